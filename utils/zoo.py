"""Trained circuits that come with the package; ``python -m papertape.utils.zoo`` made them from runs.

    python main.py train ntm-copy seed=1 threads=1 name=trained
    python -m papertape.utils.zoo runs/trained ntm-copy

Such a file is a checkpoint that holds what a circuit needs, without what learning needs, and says where it comes from:
by its entry ``origin`` it is told apart from a run's.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..agents.evaluation import STRUCTURE
from ..core.options import OptionsError, near
from . import checkpoint

if TYPE_CHECKING:
    from ..core.circuit import Circuit

ZOO = Path(__file__).resolve().parent.parent / "zoo"
TEST_SEQUENCES = 1000
"""Sequences of each set on which a file says how well it does."""


class Origin(NamedTuple):
    """Where a trained circuit comes from."""

    preset: str
    seed: int
    step: int
    metric: str
    """What the errors are, such as bits_wrong."""
    errors: Mapping[str, float]
    """Of the test, on :data:`TEST_SEQUENCES` sequences of each set."""
    version: str
    """Of the package that trained it."""


def names() -> list[str]:
    """Names of the trained circuits that there are."""
    return sorted(path.stem for path in ZOO.glob("*.pt"))


def find(name: str) -> Path | None:
    """The file of a trained circuit; None if there is none of that name."""
    return ZOO / f"{name}.pt" if name in names() else None


def load(name: str, *, backend: str = "auto", device: torch.device | str = "cpu") -> Circuit:
    """A trained circuit that comes with the package, without a network; in evaluation mode.

    Args:
        name: such as ``ntm-copy``; see :func:`names`.
        backend: what runs sequences.
        device: where to; ``auto`` takes a CUDA device where there is one.

    Raises:
        OptionsError: there is none of that name, which says what there is; or no such device here.
    """
    from .factory import load_circuit

    return load_circuit(_file(name), backend=backend, device=device)


def origin(name: str) -> Origin:
    """Where a trained circuit comes from.

    Raises:
        OptionsError: there is none of that name.
    """
    return Origin(**checkpoint.load(_file(name))["origin"])


def _file(name: str) -> Path:
    path = find(name)
    if path is None:
        meant = near(str(name), names())
        hint = f"did you mean {meant!r}? " if meant else ""
        raise OptionsError(f"load: got {name!r}; {hint}allowed: {', '.join(names())} (for a file, load_circuit)")
    return path


def keep(directory: Path, name: str) -> Path:
    """Make a file of the zoo of a run's best weights.

    Args:
        directory: of the run, which has ended.
        name: of the file.

    Raises:
        OptionsError: the run has no checkpoint or no summary.
    """
    from .. import __version__
    from .comparison import errors_on_test
    from .run import find_checkpoint, read_summary

    summary = read_summary(directory)
    if summary is None:
        raise OptionsError(f"run: {directory} has no summary.json")
    content: dict[str, Any] = checkpoint.load(find_checkpoint(str(directory)))
    errors = errors_on_test(directory, TEST_SEQUENCES)
    made = Origin(
        summary.preset, content["options"]["seed"], content["agent"]["step"], summary.metric, errors, __version__
    )
    agent = {part: content["agent"][part] for part in ("circuit", STRUCTURE, "step") if part in content["agent"]}
    ZOO.mkdir(exist_ok=True)
    path = ZOO / f"{name}.pt"
    checkpoint.save(
        path, {"options": content["options"], "sizes": content["sizes"], "agent": agent, "origin": made._asdict()}
    )
    return path


def main() -> None:
    """Make a file of the zoo."""
    parser = argparse.ArgumentParser(prog="python -m papertape.utils.zoo", description="Keep a run's best weights.")
    parser.add_argument("run", type=Path, help="folder of a run that has ended")
    parser.add_argument("name", help="of the file")
    arguments = parser.parse_args()
    path = keep(arguments.run, arguments.name)
    print(f"{path}: {origin(arguments.name)}")


if __name__ == "__main__":
    main()
