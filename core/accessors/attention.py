"""Attention over the last steps (Vaswani et al. 2017, arXiv 1706.03762), with rotary positions (Su et al. 2021).

Keys and values of the last N steps are the memory: a sequence of any length has a state of one size. "RoFormer" is
arXiv 2104.09864. B batch, T steps, H heads, N steps that are seen, K key size, V value size.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ..interface import Interface
from ..kernels.transforms import known_finite, transform
from ..registry import register
from ..state import example, register_state
from ..trace import TraceField
from .base import Accessor

LONGEST_WAVE = 10_000.0
"""The slowest of the rotations takes about so many steps (RoFormer, equation 15)."""


@register_state
class AttentionState(NamedTuple):
    """Keys and values of the last steps, the latest last."""

    keys: Tensor
    """Rotated by their positions, from the first step on, ``[B, H, N, K]``"""
    values: Tensor
    """``[B, H, N, V]``"""
    seen: Tensor
    """Steps until now, ``[B]``; of the places at the end so many are in use"""


class AttentionHeads(NamedTuple):
    """What the heads do at one step."""

    queries: Tensor
    """``[B, H, K]``"""
    read_weights: Tensor
    """``[B, H, N]``"""


@register("accessor", "attention")
class AttentionAccessor(Accessor):
    """Every step writes a key and a value in place of the oldest, and reads the values whose keys match a query."""

    num_heads: int = Field(default=4, ge=1, description="H, heads, each with keys, values and a query of its own")
    key_size: int = Field(default=16, ge=2, multiple_of=2, description="K, length of a key; even")
    value_size: int = Field(default=16, ge=1, description="V, length of a value")
    memory_size: int = Field(
        default=128,
        ge=1,
        description="N, steps that are seen, the present one included; another number may be chosen for a test",
    )

    trace_fields = {
        "read_weights": TraceField("H N", "weighting", "what each head attends to, the present step last"),
        "keys": TraceField("H N K", "memory", "keys of the last steps"),
        "values": TraceField("H N V", "memory", "values of the last steps"),
        "queries": TraceField("H K", "words", "what each head looks for"),
    }

    @classmethod
    def read_shape(cls, options: Any) -> tuple[int, int]:
        """Every head reads a word."""
        return options.num_heads, options.value_size

    def setup(self) -> None:
        """Make the interface."""
        heads = self.num_heads
        sizes = {"keys": heads * self.key_size, "queries": heads * self.key_size, "values": heads * self.value_size}
        self.interface = Interface(self.hidden_size, sizes)

    def initial_state(self, batch_size: int, memory_size: int | None = None) -> AttentionState:
        """Nothing seen yet, with room for N = ``memory_size`` steps (default: as built)."""
        steps, weight = self.memory_size if memory_size is None else memory_size, example(self.interface)
        shape = (batch_size, self.num_heads, steps)
        return AttentionState(
            weight.new_zeros(*shape, self.key_size),
            weight.new_zeros(*shape, self.value_size),
            torch.zeros(batch_size, dtype=torch.int64, device=weight.device),
        )

    def observed(self, heads: AttentionHeads, state: AttentionState) -> dict[str, Tensor]:
        """See :meth:`Accessor.observed`; keys are as they were before they were rotated."""
        steps = state.keys.shape[2]
        places = state.seen.unsqueeze(1) - steps + torch.arange(steps, device=state.keys.device)
        return super().observed(heads, state._replace(keys=rotated(state.keys, -places.unsqueeze(1))))

    def sizes_of(self, state: AttentionState) -> dict[str, int]:
        """The number of steps that are seen."""
        return {"memory_size": state.keys.shape[2]}

    def forward(self, hidden: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState, AttentionHeads]:
        """One step of access; see :meth:`Accessor.forward`."""
        reads, state, queries, weights = self._attend(hidden.unsqueeze(0), state, state.keys.shape[2])
        return reads.squeeze(2), state, AttentionHeads(queries.squeeze(2), weights.squeeze(2)[..., 1:])

    def run(self, hidden: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
        """All steps at once; see :meth:`Accessor.run`."""
        reads, state, _, _ = self._attend(hidden, state, _most_seen(state))
        return reads.permute(2, 0, 1, 3), state

    def _attend(
        self, hidden: Tensor, state: AttentionState, most: int
    ) -> tuple[Tensor, AttentionState, Tensor, Tensor]:
        """Words read ``[B, H, T, V]``, the state after T steps, queries and weights ``[B, H, T, M + T]``.

        Args:
            hidden: ``[T, B, hidden_size]``.
            state: from before.
            most: M, the places at the end of the state that are looked at; those before them are not in use.
        """
        steps, room = len(hidden), state.keys.shape[2]
        parts = self.interface.parts(self.interface(hidden))
        queries, keys, values = (
            parts[name].unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0, 3)
            for name in ("queries", "keys", "values")
        )
        positions = (state.seen.unsqueeze(1) + torch.arange(steps, device=keys.device)).unsqueeze(1)
        turned = rotated(torch.cat([queries, keys], dim=1), positions)
        unused = room - most
        keys = torch.cat([state.keys[:, :, unused:], turned[:, self.num_heads :]], dim=2)
        values = torch.cat([state.values[:, :, unused:], values], dim=2)
        place = torch.arange(most + steps, device=keys.device)
        lag = place[most:, None] - place
        used = place >= most - state.seen.unsqueeze(1)
        visible = (lag >= 0) & (lag < room) & used[:, None, None]
        scores = turned[:, : self.num_heads] @ keys.mT / math.sqrt(self.key_size)
        weights = torch.softmax(scores.masked_fill(~visible, -math.inf), dim=-1)
        empty = max(unused - steps, 0)

        def last(before: Tensor, words: Tensor) -> Tensor:
            if steps == 1 and not unused:
                return words[:, :, 1:]  # a view: one place more is kept, and nothing copied
            return torch.cat([before[:, :, unused - empty : unused], words[:, :, empty - room :]], dim=2)

        after = AttentionState(last(state.keys, keys), last(state.values, values), state.seen + steps)
        if steps == 1:
            first = 0 if unused else 1  # what has just left the window
            return weights[..., first:] @ values[:, :, first:], after, queries, weights
        return _words_seen(weights, values, visible), after, queries, weights


def _words_seen(weights: Tensor, values: Tensor, visible: Tensor) -> Tensor:
    """``weights @ values``, where a word that is not finite spoils what sees it alone: 0 times it is no number either.

    Args:
        weights: 0 where nothing is visible, ``[B, H, T, M]``.
        values: ``[B, H, M, V]``
        visible: ``[B, 1, T, M]``
    """
    reads = weights @ values
    if known_finite(reads):
        return reads
    broken = ~torch.isfinite(values)
    seen = visible.squeeze(1).to(values.dtype) @ broken.to(values.dtype).movedim(1, 2).flatten(2)
    spoilt = (seen > 0).unflatten(2, (values.shape[1], -1)).movedim(2, 1)
    return (weights @ values.masked_fill(broken, 0)).masked_fill(spoilt, math.nan)


def _most_seen(state: AttentionState) -> int:
    """How many places at the end are in use in any sequence; all where that cannot be known without waiting."""
    room = state.keys.shape[2]
    known = state.seen.device.type == "cpu" and transform([state.seen]) is None
    return min(int(state.seen.max()), room) if known else room


def rotated(words: Tensor, positions: Tensor) -> Tensor:
    """Words ``[…, T, K]`` turned by their positions, by which products of two depend on how far they are apart.

    Args:
        words: K is even: element i and element K / 2 + i are a pair that is turned.
        positions: whole numbers, ``[…, T]``.
    """
    pairs = words.shape[-1] // 2
    # Angles of thousands of steps need more digits than words do.
    exact = torch.float32 if words.device.type == "mps" else torch.float64
    pace = torch.logspace(0, 1 / pairs - 1, pairs, LONGEST_WAVE, dtype=exact, device=words.device)
    angle = positions.unsqueeze(-1).to(exact) * pace
    cosine, sine = angle.cos().to(words.dtype), angle.sin().to(words.dtype)
    one, other = words.chunk(2, dim=-1)
    return torch.cat([one * cosine - other * sine, one * sine + other * cosine], dim=-1)
