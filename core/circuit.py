"""Circuit: a recurrent module with an explicit state. Also the state and the trace that all circuits share."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.serialization import add_safe_globals
from torch.utils import _pytree

from .kernels.transforms import one_call
from .options import Options

State = TypeVar("State")


def register_state(cls: type[State]) -> type[State]:
    """Let a NamedTuple of tensors be saved as a state: by ``torch.save``, and in a program of ``torch.export.save``.

    A decorator; ``torch.load`` then reads it with ``weights_only``, its default. Its class must be found by its name.
    """
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
    """A tensor of the type, and on the device, in which a module computes, as far as it can be told."""
    for parameter in module.parameters():  # next(…, None) is something that torch.compile did not know in torch 2.6
        return parameter
    # A replica of torch.nn.DataParallel has weights that are no parameters, and layers may have buffers alone.
    for part in module.modules():
        for tensor in (*vars(part).values(), *part.buffers(recurse=False)):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                return tensor
    return torch.empty(0)  # quantised layers pack theirs, and compute in torch's own type


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


@register_state
class Trace(NamedTuple):
    """What the heads did at each step of a sequence, for pictures and analysis; None where a circuit has no such part.

    T steps, B batch, R read heads, H write heads, N slots, W word size. With ``batch_first`` the first two swap.
    """

    read_weights: Tensor | None = None
    """``[T, B, R, N]``"""
    write_weights: Tensor | None = None
    """``[T, B, H, N]``"""
    memory: Tensor | None = None
    """Contents after each step, ``[T, B, N, W]``."""
    reads: Tensor | None = None
    """``[T, B, R, W]``"""
    add: Tensor | None = None
    """Words written, ``[T, B, H, W]``."""
    erase: Tensor | None = None
    """``[T, B, H, W]``"""
    usage: Tensor | None = None
    """``[T, B, N]`` (DNC)"""
    allocation_weights: Tensor | None = None
    """Where each write head would allocate, ``[T, B, H, N]`` (DNC)"""
    free_gates: Tensor | None = None
    """``[T, B, R]`` (DNC)"""
    allocation_gates: Tensor | None = None
    """``[T, B, H]`` (DNC)"""
    write_gates: Tensor | None = None
    """``[T, B, H]`` (DNC)"""
    read_modes: Tensor | None = None
    """Shares of backward, content and forward, ``[T, B, R, 1 + 2H]`` (DNC)."""


class Circuit(nn.Module, ABC):
    """A recurrent module: (inputs, state) -> (outputs, state). It keeps no hidden state between calls.

    Subclasses implement :meth:`initial_state` and :meth:`step`, and may override :meth:`run` with something faster.
    """

    Options: ClassVar[type[Options]]
    differentiable: ClassVar[bool] = True
    """Whether outputs have a gradient, without which a circuit can only evolve."""

    autocast: torch.dtype | None = None
    """Lower type for matrix products, ``torch.bfloat16``; None leaves it to the caller. Outputs keep the own type.

    What else keeps it is for each circuit to say; see
    :class:`~papertape.circuits.memory_augmented.MemoryAugmentedCircuit`.
    """

    backend: str = "auto"
    """What runs sequences."""

    def __init__(self, input_size: int, output_size: int, *, batch_first: bool = False) -> None:
        """
        Args:
            input_size: I, channels of each input step.
            output_size: O, channels of each output step.
            batch_first: sequences are ``[B, T, …]`` rather than ``[T, B, …]``.

        Raises:
            ValueError: a size below 1.
        """
        super().__init__()
        check_sizes(input_size=input_size, output_size=output_size)
        if not isinstance(batch_first, bool):
            raise ValueError(f"batch_first: got {batch_first!r}; allowed are True and False")
        self.input_size = int(input_size)
        self.output_size = int(output_size)
        self.batch_first = batch_first
        self._checked_layout: Any = None
        """Of the last state that :meth:`check_state` found right: the next is most likely the same."""

    @abstractmethod
    def initial_state(self, batch_size: int) -> Any:
        """State before the first step: a tree of NamedTuples of tensors, each with the batch as first dimension."""

    @abstractmethod
    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One step.

        Args:
            x: ``[B, I]``.
            state: from :meth:`initial_state` or the last step; None starts from :meth:`initial_state`.

        Returns:
            Logits ``[B, O]`` and the next state.

        Raises:
            ValueError: as :meth:`forward`.
        """

    def run(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        """A whole sequence, ``[T, B, I]`` -> ``[T, B, O]`` and the last state; here, step by step."""
        outputs, state = one_call(self.backend, self._run, inputs, state)
        return outputs, state

    def _run(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        outputs = []
        for x in inputs.unbind(0):
            y, state = self.step(x, state)
            outputs.append(y)
        return torch.stack(outputs), state

    def run_traced(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any, Trace]:
        """Like :meth:`run`, and records what the heads did; a circuit without heads has an empty trace."""
        outputs, state = self.run(inputs, state)
        return outputs, state, Trace()

    def forward(self, inputs: Tensor, state: Any = None, *, trace: bool = False) -> Any:
        """Run a whole sequence.

        Args:
            inputs: ``[T, B, I]``, or ``[B, T, I]`` with ``batch_first``; at least one step. Of the circuit's type, or
                one that it holds without loss.
            state: where to start; None starts from :meth:`initial_state`.
            trace: also return a :class:`Trace` of what the heads did at each step (eager speed).

        Returns:
            Logits ``[T, B, O]`` (or ``[B, T, O]``) and the last state; with ``trace`` the trace as a third.

        Raises:
            ValueError: inputs or state have the wrong shape or are no tensors, inputs a type that the circuit would
                have to cut, or the state is none of this circuit.
        """
        inputs = self.check_inputs(inputs, "[B, T, {}]" if self.batch_first else "[T, B, {}]")
        own = inputs.dtype
        if self.batch_first:
            inputs = inputs.transpose(0, 1)
        state = self.check_state(state, inputs)
        if not trace:
            with self.precision(inputs):
                outputs, state = self.run(inputs, state)
            outputs = outputs.to(own)
            return (outputs.transpose(0, 1) if self.batch_first else outputs), state
        with self.precision(inputs):
            outputs, state, recorded = self.run_traced(inputs, state)
        outputs = outputs.to(own)
        if self.batch_first:
            recorded = Trace(*(part if part is None else part.transpose(0, 1) for part in recorded))
            outputs = outputs.transpose(0, 1)
        return outputs, state, recorded

    def check_inputs(self, inputs: Tensor, shape: str) -> Tensor:
        """The inputs in the circuit's type.

        Args:
            inputs: what was given.
            shape: what is expected, with ``{}`` for I.

        Raises:
            ValueError: no tensor, another shape, nothing in it, or a type that the circuit would have to cut.
        """
        expected = f"expected {shape.format(self.input_size)} with at least one step and one sequence"
        if not isinstance(inputs, Tensor):
            raise ValueError(f"inputs: got a {type(inputs).__name__}; {expected}, in one torch.Tensor")
        if inputs.dim() != shape.count(",") + 1 or inputs.shape[-1] != self.input_size or 0 in inputs.shape:
            raise ValueError(f"inputs: got shape {list(inputs.shape)}; {expected}")
        own = example(self).dtype
        if torch.promote_types(inputs.dtype, own) != own:
            raise ValueError(f"inputs: got {inputs.dtype}; the circuit has {own} (convert either with .to)")
        return inputs.to(own)

    def check_state(self, state: Any, inputs: Tensor) -> Any:
        """The state, or the initial one for None.

        Args:
            state: what was given.
            inputs: from :meth:`check_inputs`, ``[…, B, I]``.

        Raises:
            ValueError: another batch than the inputs have, or another structure, shape, type or device of a tensor
                than a state of this circuit has.
        """
        batch_size = inputs.shape[-2]
        if state is None:
            return self.initial_state(batch_size)
        if torch.compiler.is_compiling():
            return state  # the comparison would be a guard, by which the first step was compiled for itself
        layout = batch_size, inputs.dtype, inputs.device, _layout(state)
        if layout != self._checked_layout:
            with torch.no_grad():
                _compare("state", state, self.initial_state_like(state))
            map_state(lambda leaf: _check_batch(leaf, batch_size), state)
            self._checked_layout = layout
        return state

    def initial_state_like(self, state: Any) -> Any:
        """An initial state of one sequence, as large as this one where sizes are free."""
        return self.initial_state(1)

    def precision(self, inputs: Tensor) -> AbstractContextManager[Any]:
        """What :meth:`forward` runs under: :attr:`autocast` on the device of the inputs, or nothing."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(inputs.device.type, dtype=self.autocast)


def check_sizes(*, at_least: int = 1, **sizes: int) -> None:
    """Raise ValueError naming the first size that is not a whole number of at least ``at_least``."""
    for name, size in sizes.items():
        try:
            allowed = not isinstance(size, bool) and operator.index(size) >= at_least
        except TypeError:
            allowed = False
        if not allowed:
            raise ValueError(f"{name}: got {size!r}; allowed is a whole number of at least {at_least}")


def check_clip(clip: float | None) -> None:
    """Raise ValueError if the bound on states and outputs is neither a positive number nor None."""
    if clip is None:
        return
    if not isinstance(clip, (int, float)) or isinstance(clip, bool) or not clip > 0:
        raise ValueError(f"clip: got {clip!r}; allowed is a positive number or None")


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError if the value is none of the allowed ones, naming the argument, the value and the choices."""
    if value not in allowed:
        raise ValueError(f"{name}: got {value!r}; allowed: {', '.join(allowed)}")


def _layout(state: Any) -> Any:
    """Structure, shapes, types and devices of a state."""
    if isinstance(state, tuple):
        return type(state), [_layout(part) for part in state]
    return (state.shape, state.dtype, state.device) if isinstance(state, Tensor) else type(state)


def _check_batch(leaf: Tensor, batch_size: int) -> Tensor:
    if leaf.shape[0] != batch_size:
        raise ValueError(f"state: got a batch of {leaf.shape[0]}; the inputs have a batch of {batch_size}")
    return leaf


def _compare(name: str, state: Any, expected: Any) -> None:
    """Raise ValueError, naming the part, if a state has another layout than the expected one."""
    if isinstance(state, Tensor) and isinstance(expected, Tensor):
        if state.dim() != expected.dim() or state.shape[1:] != expected.shape[1:]:
            got, wanted = (", ".join(["B", *map(str, leaf.shape[1:])][: leaf.dim()]) for leaf in (state, expected))
            raise ValueError(f"{name}: got shape [{got}]; this circuit has [{wanted}]")
        for what in ("dtype", "device"):
            if getattr(state, what) != getattr(expected, what):
                raise ValueError(f"{name}: got {getattr(state, what)}; this circuit has {getattr(expected, what)}")
    elif type(state) is not type(expected):
        raise ValueError(f"{name}: got a {type(state).__name__}; this circuit has a {type(expected).__name__}")
    else:
        for field, part, wanted in zip(expected._fields, state, expected, strict=True):
            _compare(f"{name}.{field}", part, wanted)
