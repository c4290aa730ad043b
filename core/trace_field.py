"""What a field of a trace is and how it is to be read. Nothing here needs torch, so another process can draw it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

FieldKind = Literal["weighting", "gate", "words", "memory", "matrix", "picture"]
"""What a field of a trace is, which decides how it is drawn.

``weighting``: how much each place along its last axis counts, from 0 to 1. ``gate``: numbers from 0 to 1, or strengths,
each on its own. ``words``: vectors along the last axis. ``memory``: the contents of all slots, along the last axis but
one, words along the last. ``matrix``: anything else with two axes, such as links or fast weights. ``picture``: what
something looks like, rows, columns and the three colours from 0 to 255.
"""


class TraceField(NamedTuple):
    """How one field of a trace is to be read."""

    axes: str
    """Letters of its axes after time and batch, such as ``R N``: R read heads, H write heads, N slots, W elements.
    Fields that share a letter and a size are drawn together: weightings beside the memory whose slots they are over."""
    kind: FieldKind
    description: str = ""
    """What it is, in a few words."""
    labels: tuple[str, ...] = ()
    """Names along its last axis, used where there are as many."""


class Channels(NamedTuple):
    """Channels of an input or an output that belong together, one after the other."""

    name: str
    size: int
    labels: tuple[str, ...] = ()
    """A name for each channel; none numbers them."""
    shape: tuple[int, int] | None = None
    """Rows and columns, if they are the pixels of an image."""
    choice: bool = False
    """Whether one of them is chosen: that of the largest output."""


def check_fields(owner: str, fields: Mapping[str, TraceField]) -> None:
    """Raise ValueError, naming the class and the field, if a kind is unknown or has too few axes."""
    for name, field in fields.items():
        if field.kind not in get_args(FieldKind):
            raise ValueError(f"{owner}.{name}: got kind {field.kind!r}; allowed: {', '.join(get_args(FieldKind))}")
        fewest = {"gate": 0, "weighting": 1, "words": 1, "picture": 3}.get(field.kind, 2)
        if len(field.axes.split()) < fewest:
            least = ("none", "one", "two", "three")[fewest]
            raise ValueError(f"{owner}.{name}: got axes {field.axes!r}; a {field.kind} has at least {least}")
