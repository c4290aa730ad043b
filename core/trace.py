"""Trace: what heads and memory did at each step of a sequence, as each accessor itself describes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple, get_args

from torch import Tensor
from torch.serialization import add_safe_globals

FieldKind = Literal["weighting", "gate", "words", "memory", "matrix"]
"""What a field of a trace is, which decides how it is drawn.

``weighting``: shares over its last axis, at most 1 in all. ``gate``: numbers from 0 to 1 (or strengths), each on its
own. ``words``: vectors along the last axis. ``memory``: the contents of all slots, words along the last axis.
``matrix``: anything else with two axes, such as links.
"""


class TraceField(NamedTuple):
    """How one field of a trace is to be read."""

    axes: str
    """Letters of its axes after time and batch, such as ``R N``: R read heads, H write heads, N slots, W elements."""
    kind: FieldKind
    description: str = ""
    """What it is, in a few words."""


def check_fields(owner: str, fields: Mapping[str, TraceField]) -> None:
    """Raise ValueError, naming the class and the field, if a kind is unknown or has too few axes."""
    for name, field in fields.items():
        if field.kind not in get_args(FieldKind):
            raise ValueError(f"{owner}.{name}: got kind {field.kind!r}; allowed: {', '.join(get_args(FieldKind))}")
        if field.kind in ("memory", "matrix") and len(field.axes.split()) < 2:
            raise ValueError(f"{owner}.{name}: got axes {field.axes!r}; a {field.kind} has at least two")


class Trace(Mapping[str, Tensor]):
    """Tensors ``[T, B, …]`` by name, ``trace["memory"]`` or ``trace.memory``, each with a :class:`TraceField`.

    With ``batch_first`` the first two dimensions swap. A circuit without memory has an empty trace.
    """

    tensors: dict[str, Tensor]
    fields: dict[str, TraceField]

    def __init__(self, tensors: Mapping[str, Tensor], fields: Mapping[str, TraceField]) -> None:
        """
        Args:
            tensors: by name.
            fields: of each of them.

        Raises:
            ValueError: a tensor has other axes than its field says; names it.
        """
        for name, tensor in tensors.items():
            axes = ["T", "B", *fields[name].axes.split()]
            if tensor.dim() != len(axes):
                raise ValueError(f"trace.{name}: got shape {list(tensor.shape)}; its axes are {' '.join(axes)}")
        self.tensors = dict(tensors)
        self.fields = {name: fields[name] for name in tensors}

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __getattr__(self, name: str) -> Tensor:
        tensors: dict[str, Tensor] = self.__dict__.get("tensors", {})
        if name not in tensors:
            raise AttributeError(f"this trace has no {name!r}; it has {', '.join(tensors) or 'nothing'}")
        return tensors[name]

    def __repr__(self) -> str:
        shapes = (f"{name} [T, B, {', '.join(self.fields[name].axes.split())}]" for name in self)
        return f"Trace({', '.join(shapes)})"

    def map(self, function: Callable[[Tensor], Tensor]) -> Trace:
        """The same trace with a function applied to each tensor, which keeps the number of its dimensions."""
        return Trace({name: function(tensor) for name, tensor in self.items()}, self.fields)

    def of_kind(self, *kinds: FieldKind) -> dict[str, Tensor]:
        """The fields of some kinds, by name."""
        return {name: tensor for name, tensor in self.items() if self.fields[name].kind in kinds}


add_safe_globals([Trace, TraceField])
