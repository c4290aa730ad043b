"""A whole sequence in one launch, forward and backward: what a kernel is given, what it keeps, and autograd around it.

One program runs one sequence, all its steps inside the kernel. What is large (a memory, links) never leaves the chip
but for a checkpoint every few steps, from which the backward pass computes it again; what is small is stored at every
step. Products with the inputs come before the kernel and gradients of weights after it, as large products in torch.

Shapes: T steps, B batch, L layers, G = gates * hidden, F = L * hidden + R * W features, I interface, R read heads,
H write heads, K = R + H, N slots, W word size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...addressing import NORM_EPSILON
from ...interface import MASK_MIN
from ..transforms import as_now, kernel_backward, origin
from .controllers import FEEDFORWARD
from .launch import launch, parts, power_of_two

KEEP_EVERY = 8
"""Steps between two checkpoints."""

SMALL_TILE, LARGE_TILE = 1024, 4096
"""Elements of the largest part of a state up to which few warps, which wait less for each other, are fast."""

LARGEST_VECTOR = 1024
"""Elements of the widest vector (features, gates, interface), rounded up to a power of two."""


@triton.jit
def recorded_rows(t, batch, batch_size, KEEP: tl.constexpr):
    """Rows of a sequence in what is stored at step t: among steps, and among states before and after the step.

    With KEEP all steps have rows of their own; without, there is room for one step, and for two states in turns.
    """
    if KEEP:
        row = t * batch_size + batch
        return row, row, row + batch_size
    return batch, (t % 2) * batch_size + batch, ((t + 1) % 2) * batch_size + batch


@dataclass(frozen=True)
class Recurrence(ABC):
    """A controller and heads on a memory: what does not change along a sequence, and the kernels that run it.

    The state of the heads is a tuple of tensors ``[B, …]`` beside the weights of all heads, read heads first: first
    those of which there are checkpoints, then those that are stored at every step.
    """

    kind: int
    """Of the controller: FEEDFORWARD, LSTM or GRU."""
    layers: int
    hidden: int
    clip: float | None
    interface: int
    """I, length of the interface vector."""
    places: dict[str, int]
    """Where each of its parts begins."""
    slots: int
    word: int
    reads: int
    writes: int
    masked: bool
    """``masked_content``"""

    forward_kernel: ClassVar[Any]
    backward_kernel: ClassVar[Any]
    checkpointed: ClassVar[int]
    """How many tensors of the state have checkpoints."""

    @abstractmethod
    def recorded(self) -> tuple[int, ...]:
        """Shape of what a step of one sequence leaves for the backward pass, beside states and interface vector."""

    @property
    def gates(self) -> int:
        """G, sums that enter the gates of a layer."""
        return self.hidden if self.kind == FEEDFORWARD else 4 * self.hidden

    @property
    def features(self) -> int:
        """F, elements of a row of features."""
        return self.layers * self.hidden + self.reads * self.word

    @property
    @abstractmethod
    def tile(self) -> int:
        """Elements of the largest part of a state, its sides rounded up to powers of two."""

    def unavailable(self) -> str | None:
        """Why one program cannot hold a sequence, or None."""
        widest = max(4 * self.hidden, self.features, self.interface)
        return f"a vector of {widest} elements is too wide for a program" if widest > LARGEST_VECTOR else None

    def constants(self, *, backward: bool) -> dict[str, Any]:
        """Constants of a kernel; a part of the interface vector that there is not is at 0, and not looked at."""
        warps = 4 if self.tile <= (LARGE_TILE if backward else SMALL_TILE) else 8
        return {
            "KIND": self.kind,
            "LAYERS": self.layers,
            "HIDDEN": self.hidden,
            "CLIP": self.clip,
            "GATES": self.layers * self.gates,
            "FEATURES": self.features,
            "INTERFACE": self.interface,
            **{name.upper(): place for name, place in self.places.items()},
            "N": self.slots,
            "W": self.word,
            "R": self.reads,
            "H": self.writes,
            "MASK_MIN": MASK_MIN if self.masked else None,
            "KEEP_EVERY": KEEP_EVERY,
            "NORM_EPSILON": NORM_EPSILON,
            "THREADS": 32 * warps,
            "BLOCK_H": power_of_two(self.hidden),
            "BLOCK_N": power_of_two(self.slots),
            "BLOCK_W": power_of_two(self.word),
            "num_warps": warps,
        }

    def run(
        self,
        gates: Tensor,
        recurrent: Tensor,
        upper: Tensor,
        interface_weight: Tensor,
        interface_bias: Tensor,
        features: Tensor,
        cells: Tensor,
        weights: Tensor,
        *state: Tensor,
    ) -> tuple[Tensor, ...]:
        """A whole sequence; differentiable once in every tensor unless members of a population have their own weights.

        Args:
            gates: products of the gates of the first layer with the inputs, and biases of all layers,
                ``[T, B, L * G]``.
            recurrent: weights of the first layer for its own last hidden vector and the words read,
                ``[G, hidden + R * W]``; ``[P, G, hidden + R * W]`` for P members, each of which has B / P sequences,
                one member's after another's, and as many of each of the weights and biases that follow.
            upper: weights of the other layers for the hidden vector below and their own last one,
                ``[L - 1, G, 2 * hidden]``.
            interface_weight: ``[I, hidden]``.
            interface_bias: ``[I]``.
            features: hidden vectors, last layer first, and words read before the first step, ``[B, F]``.
            cells: of an LSTM before the first step, ``[B, L * hidden]``; ``[B, 0]`` for other controllers.
            weights: of all heads before the first step, ``[B, K, N]``.
            state: the rest of the heads' state before the first step.

        Returns:
            Features ``[T, B, F]``; cells, weights and the rest of the state after the last step.

        Raises:
            ValueError: gradients are wanted of a population.
        """
        arguments = (gates, recurrent, upper, interface_weight, interface_bias, features, cells, weights, *state)
        if torch.is_grad_enabled() and any(t.requires_grad for t in arguments):
            if recurrent.dim() == 3:
                raise ValueError(
                    "recurrent: got weights of a population with gradients; allowed are those of one circuit"
                )
            return _Sequence.apply(self, *arguments)
        gates, *rest = (t.detach().contiguous() for t in arguments)
        made, _, last = _forward(self, False, gates.clone(), *rest)
        return made[1:], *last


def _forward(
    recurrence: Recurrence,
    keep: bool,
    gates: Tensor,
    recurrent: Tensor,
    upper: Tensor,
    interface_weight: Tensor,
    interface_bias: Tensor,
    features: Tensor,
    cells: Tensor,
    weights: Tensor,
    *state: Tensor,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Features ``[T + 1, B, F]``, what else the backward pass needs of the steps, and all else that is last.

    Adds to ``gates``, in place.
    """
    steps, batch, _ = gates.shape
    members = recurrent.shape[0] if recurrent.dim() == 3 else 1
    rows = steps if keep else 1

    def recorded(first: Tensor, count: int) -> Tensor:
        room = first.new_empty(count, *first.shape)
        room[0] = first
        return room

    checkpointed, stored = state[: recurrence.checkpointed], state[recurrence.checkpointed :]
    all_features = recorded(features, steps + 1)
    states = [recorded(t, rows + 1) for t in (cells, weights, *stored)]
    records = [gates.new_empty(rows, batch, *size) for size in ((recurrence.interface,), recurrence.recorded())]
    last = [torch.empty_like(t) for t in checkpointed]
    checkpoints = [t.new_empty(parts(steps, KEEP_EVERY) if keep else 0, *t.shape) for t in checkpointed]
    launch(
        recurrence.forward_kernel,
        (batch,),
        *(all_features, gates, recurrent.mT.contiguous(), upper.mT.contiguous()),
        *(interface_weight.mT.contiguous(), interface_bias, *records, *states),
        *(*checkpointed, *last, *checkpoints, steps, batch, batch // members if members > 1 else batch),
        **recurrence.constants(backward=False),
        KEEP=keep,
        BLOCK_I=power_of_two(recurrence.interface),
    )
    last_cells, last_weights, *last_stored = (t[steps if keep else steps % 2] for t in states)
    return all_features, [*records, *states, *checkpoints], [last_cells, last_weights, *last, *last_stored]


def _outer(gradient: Tensor, seen: Tensor) -> Tensor:
    """Gradient of a weight ``[O, I]`` from those of what it gave and what it saw, ``[T, B, O]`` and ``[T, B, I]``."""
    return gradient.flatten(0, 1).T @ seen.flatten(0, 1)


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recurrence: Recurrence, *arguments: Tensor) -> tuple[Tensor, ...]:
        gates, recurrent, upper, interface_weight, *rest = (t.contiguous() for t in arguments)
        gates = gates.clone()  # to which the kernel adds
        features, kept, last = _forward(recurrence, True, gates, recurrent, upper, interface_weight, *rest)
        ctx.recurrence, ctx.origin = recurrence, origin(*arguments)
        ctx.save_for_backward(features, gates, *as_now(recurrent, upper, interface_weight), *kept)
        cells, weights, *state = last
        fresh, views = state[: recurrence.checkpointed], (cells, weights, *state[recurrence.checkpointed :])
        cells, weights, *stored = (t.clone() for t in views)
        return features[1:].clone(), cells, weights, *fresh, *stored

    @staticmethod
    @kernel_backward
    def backward(ctx: Any, d_later: Tensor, d_cells: Tensor, d_weights: Tensor, *d_state: Tensor) -> tuple[Any, ...]:
        recurrence: Recurrence = ctx.recurrence
        kept = ctx.saved_tensors
        features, gates, _, upper, _, interface, *_ = kept
        steps, batch, _ = gates.shape
        layers, hidden = recurrence.layers, recurrence.hidden
        d_features = torch.cat([torch.zeros_like(d_later[:1]), d_later])
        d_gates, d_interface = torch.empty_like(gates), torch.empty_like(interface)
        # The kernel changes these in place.
        d_last = [t.clone(memory_format=torch.contiguous_format) for t in (d_cells, *d_state)]
        in_turns = d_weights.new_empty(2, *d_weights.shape)
        in_turns[steps % 2] = d_weights
        rooms = [t.new_empty(batch, KEEP_EVERY, *t.shape[1:]) for t in d_state[: recurrence.checkpointed]]
        launch(
            recurrence.backward_kernel,
            (batch,),
            *kept,
            *(*rooms, d_features, d_gates, d_interface, in_turns, *d_last, steps, batch),
            **recurrence.constants(backward=True),
            BLOCK_F=power_of_two(hidden + recurrence.reads * recurrence.word),
        )
        by_layer = d_gates.unflatten(2, (layers, -1)).unbind(2)
        d_recurrent = _outer(by_layer[0], features[:-1, :, (layers - 1) * hidden :])
        d_upper = torch.empty_like(upper)
        for layer in range(1, layers):
            own = (layers - 1 - layer) * hidden
            below = features[1:, :, own + hidden : own + 2 * hidden]
            seen = torch.cat([below, features[:-1, :, own : own + hidden]], dim=2)
            d_upper[layer - 1] = _outer(by_layer[layer], seen)
        d_interface_weight = _outer(d_interface, features[1:, :, :hidden])
        d_layers = (d_gates, d_recurrent, d_upper, d_interface_weight, d_interface.sum((0, 1)))
        return None, *d_layers, d_features[0], d_last[0], in_turns[0], *d_last[1:]
