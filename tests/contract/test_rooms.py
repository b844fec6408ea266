"""Arrows between the rooms of the package go one way: a room imports from lower floors alone."""

import ast
from pathlib import Path

import pytest

import grouping_zoo

SOURCE = Path(grouping_zoo.__file__).parent
FLOORS = [
    {"start_up", "version", "settings", "grouping", "label_maps", "output_files"},
    {"user_errors", "group_tree"},
    {"layers", "viz"},
    {"models"},
    {"data"},
    {"hf", "objectives"},
    {"inference"},
    {"evaluation"},
    {"engine"},
    {"cli"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imported_rooms(file: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "grouping_zoo":
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            rooms |= {parts[1] for name in names if len(parts := name.split(".")) > 1 and parts[1] in FLOOR_OF}
    return rooms


@pytest.mark.parametrize("room", sorted(FLOOR_OF))
def test_a_room_imports_from_lower_floors_alone(room: str) -> None:
    files = [*(SOURCE / room).rglob("*.py"), *SOURCE.glob(f"{room}.py")]
    assert files
    for file in files:
        for other in imported_rooms(file) - {room}:
            assert FLOOR_OF[other] < FLOOR_OF[room], f"{file.relative_to(SOURCE)} imports {other}"


def test_every_room_has_a_floor() -> None:
    rooms = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} == set(FLOOR_OF)
