"""The tracker: every change that was tried, what came of it, and how the structure went on; in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core.recorder import Areas, Chart, Mark
from ...core.structure import Structure, describe, plain, structured
from .strategies import STRATEGIES

TRAJECTORY = 100
"""Points of the loss that are kept of a change: every one of so many steps, or of longer trials as many, evenly."""


class Record(NamedTuple):
    """A change that was tried."""

    step: int
    """At which it was made."""
    strategy: str
    before: Structure
    after: Structure
    kept: bool
    """Whether it was kept; if not, it was taken back."""
    gain: float
    """Logarithm of how many times smaller the loss was with it than without, in [-1, 1]."""
    without: Tensor
    """Loss without the change over the trial, at most :data:`TRAJECTORY` points."""
    changed: Tensor
    """Loss with the change at the same steps."""


class Tally(NamedTuple):
    """What came of a strategy so far."""

    tried: int = 0
    kept: int = 0
    gain: float = 0.0
    """Of all changes, added up."""


def thinned(values: Sequence[float]) -> Tensor:
    """At most :data:`TRAJECTORY` of the values, evenly, the last among them."""
    values_tensor = torch.tensor(values, dtype=torch.float32, device="cpu")
    if len(values) <= TRAJECTORY:
        return values_tensor
    return values_tensor[torch.linspace(0, len(values) - 1, TRAJECTORY, device="cpu").round().long()]


class Tracker:
    """Keeps the latest records, a tally of each strategy, and a history of sizes, coarser the longer it gets."""

    def __init__(self, structure: Structure, kept_changes: int) -> None:
        """
        Args:
            structure: at the first step.
            kept_changes: records, and points of the history, that are kept at most.
        """
        self.records: deque[Record] = deque(maxlen=kept_changes)
        self.tallies = {name: Tally() for name in STRATEGIES}
        self.history: list[tuple[int, Structure]] = [(0, structure)]
        """Steps at which a structure began."""

    def add(self, record: Record) -> None:
        """Note a change whose verdict is in."""
        self.records.append(record)
        tried, kept, gain = self.tallies[record.strategy]
        self.tallies[record.strategy] = Tally(tried + 1, kept + record.kept, gain + record.gain)

    def note(self, step: int, structure: Structure) -> None:
        """Note the structure that holds from a step on."""
        if structure == self.history[-1][1]:
            return
        self.history.append((step, structure))
        if len(self.history) > (self.records.maxlen or 0):
            self.history = [self.history[0], *self.history[1:-1:2], self.history[-1]]

    @property
    def tried(self) -> int:
        """Changes so far."""
        return sum(tally.tried for tally in self.tallies.values())

    @property
    def kept(self) -> int:
        """Changes that were kept so far."""
        return sum(tally.kept for tally in self.tallies.values())

    def table(self) -> str:
        """What came of each strategy, as text."""
        lines = [f"{'strategy':20}{'tried':>7}{'kept':>7}{'mean gain':>11}"]
        for name, (tried, kept, gain) in self.tallies.items():
            lines.append(f"{name:20}{tried:7}{kept:7}{gain / tried if tried else 0.0:+11.3f}")
        return "\n".join(lines)

    def charts(self, step: int) -> dict[str, Chart]:
        """How many units each layer had until a step, with marks of changes, and how often each strategy was tried."""
        steps: list[int] = []
        shown: list[Structure] = []
        for at, structure in self.history:
            if shown:  # as it was until then
                steps.append(at)
                shown.append(shown[-1])
            steps.append(at)
            shown.append(structure)
        if step > steps[-1]:
            steps.append(step)
            shown.append(shown[-1])
        deepest = max(map(len, shown))
        sizes = {
            f"layer {index + 1}": [float(one[index].size) if index < len(one) else 0.0 for one in shown]
            for index in range(deepest)
        }
        marks = [Mark(record.step, record.kept, record.strategy) for record in self.records]
        charts: dict[str, Chart] = {"structure": Areas(steps, sizes, "units", marks)}
        if self.records:
            counts: dict[str, list[float]] = {name: [] for name in STRATEGIES}
            for record in self.records:
                for name, line in counts.items():
                    line.append((line[-1] if line else 0.0) + (record.strategy == name))
            charts["changes tried"] = Areas([record.step for record in self.records], counts, "changes, the latest")
        return charts

    def state_dict(self) -> dict[str, Any]:
        """All of it, as plain data and tensors."""
        return {
            "records": [
                [*record[:2], plain(record.before), plain(record.after), *record[4:]] for record in self.records
            ],
            "tallies": {name: list(tally) for name, tally in self.tallies.items()},
            "history": [[step, plain(structure)] for step, structure in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from :meth:`state_dict`."""
        records = (
            Record._make([*one[:2], structured(one[2]), structured(one[3]), *one[4:]]) for one in state["records"]
        )
        self.records = deque(records, maxlen=self.records.maxlen)
        self.tallies = {name: Tally(*state["tallies"][name]) for name in STRATEGIES}
        self.history = [(step, structured(layers)) for step, layers in state["history"]]

    def said(self, record: Record) -> str:
        """A record in one line."""
        verdict = "kept" if record.kept else "taken back"
        sizes = describe(record.before)
        if record.after != record.before:
            sizes += f" -> {describe(record.after)}"
        return f"{record.strategy} ({sizes}): {verdict}, gain {record.gain:+.3f}"
