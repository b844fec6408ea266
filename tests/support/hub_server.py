"""A hub on the loopback interface: serves folders as repositories, as far as the client libraries ask."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    repositories: dict[str, Path]
    requests: list[str]
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(with_body=True, asked=asked)

    def _answer(self, with_body: bool, asked: bytes = b"") -> None:
        path = unquote(urlsplit(self.path).path)
        self.requests.append(f"{self.command} {path}")
        for name, folder in self.repositories.items():
            kind = "datasets" if name.startswith("datasets/") else "models"
            repository = name.removeprefix("datasets/")
            resolve, api = f"/{name}/resolve/", f"/api/{kind}/{repository}"
            if path.startswith(resolve):
                file = folder / path.removeprefix(resolve).partition("/")[2]
                if not file.is_file():
                    return self._send(404, b"", with_body, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                return self._send_file(file, with_body)
            if path == api or path.startswith(f"{api}/"):
                return self._send_answer(repository, folder, path.removeprefix(api).strip("/"), asked)
        self._send(404, b"{}", with_body, {"X-Error-Code": "RepoNotFound"})

    def _send_answer(self, repository: str, folder: Path, question: str, asked: bytes) -> None:
        what, _, rest = question.partition("/")
        if what == "tree":
            inside = folder / rest.partition("/")[2]
            if not inside.is_dir():
                return self._send(404, b"{}", True, {"X-Error-Code": "EntryNotFound"})
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
            return self._send_json([_entry(path, folder) for path in inside.glob("**/*" if recursive else "*")])
        entries = [_entry(path, folder) for path in folder.rglob("*")]
        if what == "paths-info":
            paths = parse_qs(asked.decode()).get("paths", []) if asked[:1] != b"{" else json.loads(asked)["paths"]
            return self._send_json([entry for entry in entries if entry["path"] in paths])
        siblings = [{"rfilename": entry["path"]} for entry in entries if entry["type"] == "file"]
        self._send_json({"id": repository, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})

    def _send_file(self, file: Path, with_body: bool) -> None:
        headers = {"ETag": f'"{_sha(file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        self._send(200, file.read_bytes(), with_body, headers)

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), True, {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, with_body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Keeps the tests' output clean; `requests` has what was asked."""


def _entry(path: Path, folder: Path) -> dict[str, object]:
    found = {"path": path.relative_to(folder).as_posix()}
    if path.is_dir():
        return found | {"type": "directory", "oid": COMMIT, "size": 0}
    return found | {"type": "file", "oid": _sha(path), "size": path.stat().st_size}


def _sha(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@contextlib.contextmanager
def hub_server(repositories: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serves "user/name" (a model) and "datasets/user/name" from folders.

    Yields:
        the endpoint for `HF_ENDPOINT`, and the list of requests, "METHOD path", that grows as they come.
    """
    requests: list[str] = []
    handler = type("Handler", (_Handler,), {"repositories": repositories, "requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
