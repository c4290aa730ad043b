"""State: what a circuit carries from step to step, a tree of NamedTuples of tensors with the batch first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals
from torch.utils import _pytree

from .placement import lower_type

State = TypeVar("State")


def register_state(cls: type[State]) -> type[State]:
    """Let a NamedTuple of tensors be saved as a state: by ``torch.save``, and in a program of ``torch.export.save``.

    A decorator; ``torch.load`` then reads it with ``weights_only``, its default. Its class must be found by its name.
    A class that is made anew, in a notebook say, takes the place of the one before.

    Raises:
        TypeError: it is no NamedTuple.
    """
    if not (isinstance(cls, type) and issubclass(cls, tuple) and hasattr(cls, "_fields")):
        raise TypeError(f"cls: got {cls!r}; expected a class that is a NamedTuple")
    name = cls.__module__, cls.__qualname__
    known: list[Any] = get_safe_globals()
    others = [one for one in known if (getattr(one, "__module__", None), getattr(one, "__qualname__", None)) != name]
    if len(others) < len(known):  # which of two of one name torch.load would take is chance
        clear_safe_globals()
        add_safe_globals(others)
    add_safe_globals([cls])
    _pytree._register_namedtuple(cls, serialized_type_name=f"{cls.__module__}.{cls.__qualname__}")  # the only way in
    return cls


def map_state(function: Callable[..., Tensor], state: State, *others: State) -> State:
    """Apply a function to each tensor of a state (a tree of NamedTuples), or to the same leaf of several states."""
    if isinstance(state, Tensor):
        return function(state, *others)  # type: ignore[return-value]
    if not isinstance(state, tuple):
        raise TypeError(f"state: got a {type(state).__name__} inside it; allowed are tensors and NamedTuples of them")
    return type(state)(*(map_state(function, *parts) for parts in zip(state, *others, strict=True)))


def leaves(state: Any) -> list[Tensor]:
    """The tensors of a state, in order."""
    found: list[Tensor] = []
    map_state(lambda leaf: found.append(leaf) or leaf, state)  # type: ignore[func-returns-value]
    return found


def rebuild(structure: State, tensors: Iterable[Tensor]) -> State:
    """A state of the same structure from other tensors, in the order of :func:`leaves`."""
    remaining = iter(tensors)
    return map_state(lambda _: next(remaining), structure)


def example(module: nn.Module) -> Tensor:
    """A tensor with the type and device that a module computes in, judged by its parameters and buffers."""
    parameter: Any = _first_parameter(module)
    if parameter is not None:
        # Of one that is sharded, the part here: what is made like the whole would be sharded as well, as no state is.
        sharded = type(parameter) is not nn.Parameter and hasattr(parameter, "to_local")
        return parameter.to_local() if sharded else parameter
    # A replica of torch.nn.DataParallel has weights that are no parameters, and layers may have buffers alone.
    for part in module.modules():
        for tensor in (*vars(part).values(), *part.buffers(recurse=False)):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                return tensor
    return torch.empty(0)  # quantised layers pack theirs, and compute in torch's own type


def _first_parameter(module: nn.Module) -> Tensor | None:
    """The first that ``module.parameters()`` would give; asked at every step, in a tenth of the time."""
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter
    for part in module._modules.values():
        found = None if part is None else _first_parameter(part)
        if found is not None:
            return found
    return None


def in_types_of(state: State, other: State, device: torch.device) -> State:
    """A state; under ``torch.autocast`` on a device, each of its tensors in the type that it has in another state."""
    if lower_type(device) is None:
        return state
    return map_state(lambda leaf, like: leaf.to(like.dtype), state, other)


def detach(state: State) -> State:
    """The same state, cut off from the graph that made it: no gradient flows to earlier steps."""
    return map_state(lambda leaf: leaf.detach(), state)


@register_state
class CircuitState(NamedTuple):
    """What a memory-augmented circuit carries from step to step; the batch is the first dimension of every leaf."""

    controller: Any
    """State of the controller, a NamedTuple of tensors ``[B, …]``."""
    accessor: Any
    """State of the memory and the heads, a NamedTuple of tensors ``[B, …]``."""
    reads: Tensor
    """Words read at the last step, fed back to the controller, ``[B, R, W]``."""


def layout(state: Any) -> Any:
    """Structure, shapes, types and devices of a state."""
    if isinstance(state, tuple):
        return type(state), [layout(part) for part in state]
    return (state.shape, state.dtype, state.device) if isinstance(state, Tensor) else type(state)


def check_batch(leaf: Tensor, batch_size: int) -> Tensor:
    """Raise ValueError if a leaf has another batch than the inputs."""
    if leaf.shape[0] != batch_size:
        raise ValueError(f"state: got a batch of {leaf.shape[0]}; the inputs have a batch of {batch_size}")
    return leaf


def compare(name: str, state: Any, expected: Any, lower: torch.dtype | None = None) -> None:
    """Raise ValueError, naming the part, if a state has another layout than the expected one.

    Args:
        name: of the state.
        state: what was given.
        expected: a state of one sequence.
        lower: a type that floating point tensors may have as well.
    """
    if isinstance(state, Tensor) and isinstance(expected, Tensor):
        if state.dim() != expected.dim() or state.shape[1:] != expected.shape[1:]:
            got, wanted = (", ".join(["B", *map(str, leaf.shape[1:])][: leaf.dim()]) for leaf in (state, expected))
            raise ValueError(f"{name}: got shape [{got}]; this circuit has [{wanted}]")
        for what in ("dtype", "device"):
            lowered = what == "dtype" and state.dtype == lower and expected.is_floating_point()
            if getattr(state, what) != getattr(expected, what) and not lowered:
                raise ValueError(f"{name}: got {getattr(state, what)}; this circuit has {getattr(expected, what)}")
    elif type(state) is not type(expected):
        raise ValueError(f"{name}: got a {type(state).__name__}; this circuit has a {type(expected).__name__}")
    else:
        for field, part, wanted in zip(expected._fields, state, expected, strict=True):
            compare(f"{name}.{field}", part, wanted, lower)
