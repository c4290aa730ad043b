"""What agents and circuits have to show besides curves and episodes: plain data, drawn by whoever receives it.

Nothing here needs torch, so that another process can draw it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Areas(NamedTuple):
    """Parts of a whole over time, stacked: the sizes of species, say."""

    steps: Sequence[int]
    parts: Mapping[str, Sequence[float]]
    """By name, the lowest first; one value for each step."""
    label: str = ""
    """What the values are."""


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


Picture = Areas | Histogram | Network
