"""Recorder: who receives what an agent reports, and the plain data that it reports besides numbers and episodes.

Nothing here needs torch, so that another process can draw it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from .env import Batch
    from .trace import Trace


ANSWERED = "answered"
"""Beside metrics, how many sequences (or what else an agent counts) were answered so far; no curve shows it."""


class Mark(NamedTuple):
    """Something that happened at a step, and turned out well or not."""

    step: float
    good: bool
    label: str


class Areas(NamedTuple):
    """Parts of a whole over time, stacked: the sizes of species, say."""

    steps: Sequence[int]
    parts: Mapping[str, Sequence[float]]
    """By name, the lowest first; one value for each step."""
    label: str = ""
    """What the values are."""
    marks: Sequence[Mark] = ()
    """What happened meanwhile."""


class Histogram(NamedTuple):
    """How values are distributed: the trust of the members of a population, say."""

    values: Sequence[float]
    label: str = ""
    """What the values are."""


class Connection(NamedTuple):
    """A connection between two nodes of a :class:`Network`, by their indices."""

    source: int
    target: int
    weight: float
    recurrent: bool = False


class Network(NamedTuple):
    """Nodes and connections of a network of any topology."""

    nodes: Sequence[str]
    """Name of each node."""
    layers: Sequence[int]
    """Of each node: 0 for inputs, higher for what lies behind."""
    connections: Sequence[Connection]


Chart = Areas | Histogram | Network
"""What :meth:`Recorder.chart` takes: plain data, without torch."""


class Recorder:
    """Receives what a run has to say; this one keeps nothing, so library users need none.

    A run writes it to its folder and passes it to the sinks that ``plots`` names.
    """

    wants_episodes: bool = False
    """Whether :meth:`episode` and :meth:`chart` do anything; tracing a circuit for nothing takes time."""

    def message(self, text: str) -> None:
        """One line for a person to read."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers at a training step, named like ``train/loss`` or ``validation/length 40/bits_wrong``."""

    def progress(self, step: int, total: int | None, values: Mapping[str, float]) -> None:
        """Where the run stands, of ``total`` steps or without end; called at every step, so it must be cheap."""

    def episode(self, step: int, name: str, batch: Batch, outputs: Tensor, trace: Trace) -> None:
        """One answered batch with its trace of the memory, to be drawn (its first sequence is)."""

    def chart(self, step: int, name: str, chart: Chart) -> None:
        """Data to be drawn as a chart, in place of the last chart of that name."""

    def checkpoint(self, name: str, state: Mapping[str, Any]) -> bool | None:
        """Save a state under a name such as ``latest`` or ``best``; False says that it could not be saved."""
