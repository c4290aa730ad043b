"""Trace: what heads and memory did at each step of a sequence, as each accessor itself describes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.serialization import add_safe_globals

from .trace_field import FieldKind, TraceField, check_fields

__all__ = ["FieldKind", "Trace", "TraceField", "check_fields", "concatenate"]


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
        shapes = (f"{name} [{', '.join(['T', 'B', *self.fields[name].axes.split()])}]" for name in self)
        return f"Trace({', '.join(shapes)})"

    def map(self, function: Callable[[Tensor], Tensor]) -> Trace:
        """The same trace with a function applied to each tensor, which keeps the number of its dimensions."""
        return Trace({name: function(tensor) for name, tensor in self.items()}, self.fields)

    def of_kind(self, *kinds: FieldKind) -> dict[str, Tensor]:
        """The fields of some kinds, by name."""
        return {name: tensor for name, tensor in self.items() if self.fields[name].kind in kinds}


def concatenate(traces: Sequence[Trace], dim: int = 0) -> Trace:
    """Traces of sequences that follow one another, such as single steps in a world, as one.

    Args:
        traces: of one circuit, the earliest first; at least one.
        dim: that of time, 1 with ``batch_first``.

    Raises:
        ValueError: there is none, or one has other fields than the first.
    """
    if not traces:
        raise ValueError("traces: got none; expected at least one")
    first = traces[0]
    for trace in traces:
        if trace.fields != first.fields:
            raise ValueError(f"traces: got {trace!r} after {first!r}; expected the same fields in each")
    return Trace({name: torch.cat([trace[name] for trace in traces], dim) for name in first}, first.fields)


add_safe_globals([Trace, TraceField])
