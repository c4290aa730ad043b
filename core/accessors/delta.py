"""The delta accessor: fast weights that the delta rule writes, step by step or many steps at once.

The rule: Widrow & Hoff 1960; as a memory, Schlag, Irie & Schmidhuber 2021 (arXiv 2102.11174). In chunks by the WY
representation: Yang et al. 2024 (DeltaNet, arXiv 2406.06484). With decay: Yang, Kautz & Hatamizadeh 2025 (Gated
DeltaNet, arXiv 2412.06464). Several rules a step: Siems et al. 2025 (DeltaProduct, arXiv 2502.10297). Eigenvalues down
to -1: Grazzi et al. 2025 (arXiv 2411.12537).

B batch, T steps, H heads, P rules of a step, K key size, V value size, C steps of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from ..interface import Interface
from ..kernels.transforms import known_finite
from ..registry import register
from ..state import example, register_state
from ..trace import TraceField
from .base import Accessor

LARGEST_RATE = 16.0
"""Decay rates start between 1 and this, as in Mamba 2; Gated DeltaNet's code draws them from 0 on."""
LARGEST_LOG_RATE = 64.0
"""Above this, rates and gradients by them overflow in float32, of which 0 times a rate would make NaN."""
SMALLEST_STEP, LARGEST_STEP = 1e-3, 1e-1
"""What rates start multiplied by, on a logarithmic scale between these: a step keeps 0.2 to 0.999 of the memory."""


SHORTEST = 1e-12
"""Keys and queries that are shorter are not brought to length 1."""

Rule = Callable[["DeltaAccessor", Tensor, Tensor | None, Tensor], tuple[Tensor, Tensor]]
"""What runs the rule over a whole sequence: from the accessor, interface vectors ``[T, B, size]``, the logarithms of
what is kept ``[T, B, H]`` or None, and the memory ``[B, H, K, V]``; words read ``[T, B, H, V]`` and the last memory."""


@register_state
class DeltaState(NamedTuple):
    """Fast weights after a step."""

    memory: Tensor
    """For each head a matrix from keys to values, ``[B, H, K, V]``"""


class RuledState(NamedTuple):
    """The same while a sequence runs, with another way to run it."""

    memory: Tensor
    """``[B, H, K, V]``"""
    rule: Rule


class DeltaHeads(NamedTuple):
    """What the heads do at one step, or at many: ``T`` steps are a dimension before ``B``."""

    keys: Tensor
    """``[B, P, H, K]``, of length 1"""
    values: Tensor
    """``[B, P, H, V]``"""
    write_gates: Tensor
    """``[B, P, H]`` in (0, 1); in (0, 2) with ``negative_eigenvalues``"""
    queries: Tensor
    """``[B, H, K]``, of length 1"""
    log_decay: Tensor | None
    """Logarithm of the share of the memory that a step keeps, ``[B, H]``, not above 0; None without ``decay``"""


@register("accessor", "delta")
class DeltaAccessor(Accessor):
    """Fast weights: each rule looks up what a key finds and writes the difference to the wanted value.

    A step decays the memory, S = a S with a = 1 without ``decay``, then does for each of its P rules
    S = S + b k (v - Sᵀ k)ᵀ, and reads Sᵀ q. A rule multiplies the memory by I - b k kᵀ: one whose gate b goes up to 2
    can reflect it, by which products of them can track states that no sum of decays can.
    """

    num_heads: int = Field(default=4, ge=1, description="H, matrices, each with keys and a query of its own")
    key_size: int = Field(default=32, ge=1, description="K, length of a key")
    value_size: int = Field(default=32, ge=1, description="V, length of a word written or read")
    num_rules: int = Field(default=1, ge=1, le=100, description="P, delta rules of a step, one after the other")
    decay: bool = Field(default=False, description="each head keeps a learned share of its memory at each step")
    negative_eigenvalues: bool = Field(
        default=False, description="write gates go up to 2 rather than 1, so that a rule can also turn a key around"
    )
    chunk_size: int = Field(
        default=16, ge=1, le=4096, description="C, steps that are computed at once where no read is fed back"
    )

    kind = "delta"

    trace_fields = {
        "memory": TraceField("H K V", "matrix", "from keys to values, after the step"),
        "keys": TraceField("P H K", "words", "where each rule writes"),
        "values": TraceField("P H V", "words", "what is to be found there"),
        "queries": TraceField("H K", "words", "where each head reads"),
        "write_gates": TraceField("P H", "gate", "how much of the difference is written"),
        "kept": TraceField("H", "gate", "share of the memory that is kept"),
    }

    @classmethod
    def read_shape(cls, options: Any) -> tuple[int, int]:
        """Every head reads a word."""
        return options.num_heads, options.value_size

    def setup(self) -> None:
        """Make the interface, and the rates of decay."""
        heads, rules = self.num_heads, self.num_rules
        sizes = {
            "keys": rules * heads * self.key_size,
            "values": rules * heads * self.value_size,
            "write_gates": rules * heads,
            "queries": heads * self.key_size,
        }
        if self.decay:
            sizes["decay"] = heads
            self.log_rates = nn.Parameter(torch.empty(heads))
        self.interface = Interface(self.hidden_size, sizes)
        self._draw_rates()

    def reset_parameters(self) -> None:
        """Draw all weights and rates anew."""
        self.interface.linear.reset_parameters()
        self._draw_rates()

    @torch.no_grad()
    def _draw_rates(self) -> None:
        """Start with heads that forget at different paces, all slowly (Mamba 2's code)."""
        if self.decay:
            self.log_rates.copy_(torch.empty_like(self.log_rates).uniform_(1, LARGEST_RATE).log())
            low, high = math.log(SMALLEST_STEP), math.log(LARGEST_STEP)
            step = torch.empty_like(self.log_rates).uniform_(low, high).exp()
            self.interface.parts(self.interface.linear.bias)["decay"].copy_(step + torch.log(-torch.expm1(-step)))

    def initial_state(self, batch_size: int) -> DeltaState:
        """Matrices of zeros."""
        shape = (batch_size, self.num_heads, self.key_size, self.value_size)
        return DeltaState(example(self.interface).new_zeros(shape))

    def heads(self, hidden: Tensor) -> DeltaHeads:
        """What the heads do, from the controller's output ``[…, hidden_size]``."""
        parts = self.interface.parts(self.interface(hidden))
        each = (self.num_rules, self.num_heads)
        gates = torch.sigmoid(parts["write_gates"].unflatten(-1, each))
        return DeltaHeads(
            keys=_unit(parts["keys"].unflatten(-1, (*each, self.key_size))),
            values=parts["values"].unflatten(-1, (*each, self.value_size)),
            write_gates=self.largest_gate * gates,
            queries=_unit(parts["queries"].unflatten(-1, (self.num_heads, -1))),
            log_decay=self._log_decay(parts),
        )

    @property
    def largest_gate(self) -> int:
        """What a write gate stays below."""
        return 2 if self.negative_eigenvalues else 1

    def _log_decay(self, parts: dict[str, Tensor]) -> Tensor | None:
        if not self.decay:
            return None
        rates = self.log_rates.clamp(max=LARGEST_LOG_RATE).exp()
        return -rates * functional.softplus(parts["decay"])

    def begin(self, state: DeltaState, steps: int, rule: Rule | None = None) -> DeltaState | RuledState:
        """The state, with its own way to run the rule if there is one; see :meth:`Accessor.begin`."""
        return state if rule is None else RuledState(state.memory, rule)

    def forward(self, hidden: Tensor, state: DeltaState | RuledState) -> tuple[Tensor, DeltaState, DeltaHeads]:
        """One step of access; see :meth:`Accessor.forward`."""
        heads, memory = self.heads(hidden), state.memory
        if heads.log_decay is not None:
            memory = heads.log_decay.exp()[..., None, None] * memory
        for key, value, gate in zip(
            heads.keys.unbind(-3), heads.values.unbind(-3), heads.write_gates.unbind(-2), strict=True
        ):
            difference = value - (key.unsqueeze(-2) @ memory).squeeze(-2)
            memory = memory + key.unsqueeze(-1) * (gate.unsqueeze(-1) * difference).unsqueeze(-2)
        return (heads.queries.unsqueeze(-2) @ memory).squeeze(-2), DeltaState(memory), heads

    def run(self, hidden: Tensor, state: DeltaState | RuledState) -> tuple[Tensor, DeltaState]:
        """A whole sequence in chunks, by matrix products, or in its own way; see :meth:`Accessor.run`."""
        if isinstance(state, RuledState):
            vectors = self.interface(hidden)
            reads, memory = state.rule(self, vectors, self._log_decay(self.interface.parts(vectors)), state.memory)
            return reads, DeltaState(memory)
        steps, heads = len(hidden), self.heads(hidden)
        size = min(self.chunk_size, steps)
        rules, decay = size * self.num_rules, heads.log_decay
        reads, memory = chunked(
            _in_chunks(heads.keys.movedim(2, 1).flatten(0, 1), rules),
            _in_chunks(heads.values.movedim(2, 1).flatten(0, 1), rules),
            _in_chunks(heads.write_gates.movedim(2, 1).flatten(0, 1).unsqueeze(-1), rules),
            _in_chunks(heads.queries, size),
            None if decay is None else _in_chunks(decay.unsqueeze(-1), size),
            state.memory.flatten(0, 1),
        )
        each = (-1, self.num_heads)
        reads = reads.flatten(1, 2)[:, :steps].unflatten(0, each).permute(2, 0, 1, 3)
        return reads, DeltaState(memory.unflatten(0, each))

    def observed(self, heads: DeltaHeads, state: DeltaState) -> dict[str, Tensor]:
        """See :meth:`Accessor.observed`; what is kept rather than its logarithm."""
        seen = super().observed(heads, state)
        return seen if heads.log_decay is None else {**seen, "kept": heads.log_decay.exp()}


def _unit(vectors: Tensor) -> Tensor:
    return functional.normalize(vectors, dim=-1, eps=SHORTEST)


def _in_chunks(rows: Tensor, size: int) -> Tensor:
    """Rows ``[R, B, H, …]`` in chunks, the last filled up with zeros: ``[B * H, chunks, size, …]``."""
    rows = functional.pad(rows, (0, 0, 0, 0, 0, 0, 0, -len(rows) % size))
    return rows.unflatten(0, (-1, size)).permute(2, 3, 0, 1, 4).flatten(0, 1)


def chunked(
    keys: Tensor, values: Tensor, gates: Tensor, queries: Tensor, log_decay: Tensor | None, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """The delta rule over N chunks of C steps of P rules; rules with a gate of 0 in steps without decay do nothing.

    Within a chunk, let row r of U be what rule r adds under its key, and g_r the decay up to it. Then
    (I + A) U = b V - b g K S, where A is the part of b K Kᵀ g_r / g_i below the diagonal: U for all rules at once, so
    that a chunk is a few matrix products (DeltaNet, section 3.2; Gated DeltaNet, section 3.3).

    Args:
        keys: ``[M, N, C * P, K]``, of length 1, of M matrices.
        values: ``[M, N, C * P, V]``
        gates: ``[M, N, C * P, 1]``
        queries: ``[M, N, C, K]``
        log_decay: ``[M, N, C, 1]``, not above 0; None for none.
        memory: before the first chunk, ``[M, K, V]``.

    Returns:
        Words read after each step ``[M, N, C, V]``, and the memory after all.
    """
    steps, rows = queries.shape[-2], keys.shape[-2]
    rules = rows // steps
    place = torch.arange(rows, device=keys.device)
    at_reads = place[rules - 1 :: rules]
    # What is not finite spoils what comes after it; in a product of matrices it would spoil what comes before, too.
    spoilt = None
    if not known_finite(keys, values, gates, *(() if log_decay is None else (log_decay,))):
        broken = ~(torch.isfinite(keys).all(-1, keepdim=True) & torch.isfinite(gates) & torch.isfinite(values))
        if log_decay is not None:
            broken = broken | log_decay.isnan().repeat_interleave(rules, -2)
            log_decay = torch.nan_to_num(log_decay, 0, 0, -math.inf)
        spoilt = (broken.flatten(1, 2).cumsum(1) > 0).view_as(broken)
        keys, values, gates = (torch.nan_to_num(part, 0, 0, 0) for part in (keys, values, gates))
    gated, late, sought = gates * keys, keys, queries
    among, read = gated @ keys.mT, queries @ keys.mT
    ends: Any = [None] * keys.shape[1]
    read = read * (at_reads[:, None] >= place).to(read.dtype)
    if log_decay is not None:
        # A step's decay comes before the first of its rules.
        kept, share = log_decay.cumsum(-2).exp(), _kept_between(log_decay).repeat_interleave(rules, -1)
        among, read = among * share.repeat_interleave(rules, -2), read * share
        gated, sought = gated * kept.repeat_interleave(rules, -2), queries * kept
        late, ends = keys * share[..., -1:, :].mT, kept[..., -1:, :].unbind(1)
    inverse = unit_inverse(among)
    wanted, found = inverse @ (gates * values), inverse @ gated
    starts, added = [], []
    for to_add, by_key, by_late, share in zip(wanted.unbind(1), found.unbind(1), late.mT.unbind(1), ends, strict=True):
        starts.append(memory)
        added.append(torch.baddbmm(to_add, by_key, memory, alpha=-1))
        memory = torch.baddbmm(memory if share is None else share * memory, by_late, added[-1])
    reads = sought @ torch.stack(starts, 1) + read @ torch.stack(added, 1)
    if spoilt is None:
        return reads, memory
    return reads.masked_fill(spoilt[..., at_reads, :], math.nan), memory.masked_fill(spoilt[:, -1, -1:], math.nan)


def _kept_between(log_decay: Tensor) -> Tensor:
    """The share of what step i wrote that is left after step r, ``[…, C, C]`` of rows r; 1 where r is not after i.

    From sums between each two steps: a difference of sums from the start on would lose small decays after a large one.
    """
    steps = log_decay.shape[-2]
    return log_decay.expand(*log_decay.shape[:-1], steps).tril(-1).cumsum(-2).exp()


def _by_blocks(below: Tensor) -> Tensor:
    """From blocks of 1 up, two at a time: the inverse of [[X, 0], [A, Z]] is [[X⁻¹, 0], [-Z⁻¹ A X⁻¹, Z⁻¹]]. These are a
    few matrix products for all blocks of one size, which round as little as substitution does.
    """
    size = int(below.shape[-1])  # which torch.jit.trace makes a tensor
    padding = (1 << (size - 1).bit_length()) - size
    below = functional.pad(below, (0, padding, 0, padding))
    inverse, width = below.new_ones(*below.shape[:-1], 1, 1), 1
    while width < below.shape[-1]:
        pairs = (-1, 2 * width)
        blocks = below.unflatten(-1, pairs).unflatten(-3, pairs).diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
        upper, lower = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        corner = -(lower @ blocks[..., width:, :width] @ upper)
        above = torch.cat([upper, torch.zeros_like(upper)], -1)
        inverse, width = torch.cat([above, torch.cat([corner, lower], -1)], -2), 2 * width
    return inverse.squeeze(-3)[..., :size, :size].contiguous()


class _UnitInverse(Function):
    """Whose gradient needs the inverse alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(below: Tensor) -> Tensor:
        return _by_blocks(below)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        return -(inverse.mT @ gradient @ inverse.mT).tril(-1)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        return -(inverse @ tangent.tril(-1) @ inverse)


def unit_inverse(below: Tensor) -> Tensor:
    """(I + A)⁻¹, where A ``[…, C, C]`` counts below the diagonal alone."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return _by_blocks(below)  # it cannot save functions with a gradient of their own
    inverse: Tensor = _UnitInverse.apply(below)  # type: ignore[no-untyped-call]
    return inverse
