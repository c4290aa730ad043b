"""Rooms import downwards only, and a base class knows none of the classes that are made from it."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import papertape.utils.factory  # noqa: F401 (registers all)
from papertape.core import registry

ROOT = Path(__file__).parents[2]
ABOVE = {
    "core": {"agents", "circuits", "envs", "utils", "main"},
    "circuits": {"agents", "envs", "utils", "main"},
    "envs": {"agents", "circuits", "main"},
    "agents": {"envs", "utils", "main"},
}
"""What no file of a room may import, not even for its types."""


def imported(path: Path) -> Iterator[str]:
    """Full names of all that a file of the package imports."""
    package = ["papertape", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *([node.module] if node.module else [])]
            yield from (".".join([*module, alias.name]) for alias in node.names)


def test_imports_are_found() -> None:
    names = set(imported(ROOT / "circuits" / "tape.py"))
    assert {
        "torch",
        "torch.nn",
        "papertape.core.accessors.tape.TapeState",
        "papertape.circuits.memory.MemoryCircuit",
    } <= names
    assert "papertape.core.kernels.dispatch" in set(imported(ROOT / "core" / "kernels" / "recompute.py"))


@pytest.mark.parametrize("room", ABOVE)
def test_a_room_imports_nothing_from_above(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    upwards = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imported(path)
        if name.startswith("papertape.") and name.split(".")[1] in ABOVE[room]
    ]
    assert not upwards


def identifiers(source: str) -> set[str]:
    """Names that the code of a file uses; texts are no code."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found.add(node.name.rpartition(".")[2])
    return found


@pytest.mark.parametrize("kind", registry.KINDS)
def test_a_base_class_does_not_name_what_is_made_from_it(kind: str) -> None:
    base = registry.contract_of(kind)
    children = {entry.__name__ for entry in registry.entries(kind).values()} - {base.__name__}
    assert children
    for cls in base.__mro__:
        if cls.__module__.startswith("papertape."):
            assert not identifiers(inspect.getsource(sys.modules[cls.__module__])) & children, cls
