"""The `grouping-zoo` command. The module of a subcommand is imported when it is called, so that help comes at once."""

import contextlib
import importlib
import io
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from grouping_zoo.cli.parsing import Parser
from grouping_zoo.start_up import INTERRUPTED_EXIT_CODE
from grouping_zoo.user_errors import report_user_errors
from grouping_zoo.version import __version__


class Command(NamedTuple):
    """A module with `add_arguments(parser)` and `run(options)`, and one line of help."""

    module: str
    summary: str


COMMANDS = {
    "list": Command(
        "grouping_zoo.cli.listing", "Show the architectures and the checkpoints that come with the package."
    ),
    "info": Command("grouping_zoo.cli.info", "Describe a checkpoint or an architecture."),
    "segment": Command("grouping_zoo.cli.segment", "Group the pixels of photos, and label them by text."),
    "train": Command("grouping_zoo.engine.__main__", "Train by a recipe; see `grouping-zoo train --help`."),
    "eval": Command("grouping_zoo.cli.evaluate", "Metrics of checkpoints on held-out images."),
    "compare": Command("grouping_zoo.cli.compare", "The metrics of several checkpoints side by side."),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exit code 2 on a user's mistake, 130 on an interruption."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a character that the terminal cannot print is escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    with report_user_errors(), _quiet_interruption():
        if words[:1] == ["train"]:  # has a command line of its own
            return importlib.import_module(COMMANDS["train"].module).main(words[1:])
        parser = Parser(
            prog="grouping-zoo", description="Grouping vision models on the command line.", allow_abbrev=False
        )
        parser.add_argument("--version", action="version", version=__version__)
        commands = parser.add_subparsers(metavar="COMMAND", required=True)
        for name, (module, summary) in COMMANDS.items():
            added = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
            if words[:1] == [name]:
                command = importlib.import_module(module)
                command.add_arguments(added)
                added.set_defaults(run=command.run)
        options = parser.parse_args(words or ["--help"])
        importlib.import_module("grouping_zoo.cli.library_output").silence()
        options.run(options)


@contextlib.contextmanager
def _quiet_interruption() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED_EXIT_CODE) from None
