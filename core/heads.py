"""From the controller's output to the parameters of the heads: one Linear, split and squashed.

B batch, R read heads, H write heads, K = R + H, W word size, S = 2 * shift_range + 1.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from .circuit import check_choice
from .tied import TiedLinear

HeadInit = Literal["parked", "uniform"]
"""How the interface of NTM heads starts: ``parked`` keeps each head where it is, sharply; ``uniform`` as torch.nn."""

PARKED_GAIN = 0.3
"""Scale of the interface's first weights with ``parked``: what the heads do depends little on the hidden vector yet."""

PARKED_GATE = -2.0
"""First bias of the gates with ``parked``: the last weighting counts 7 times as much as the content."""

PARKED_SHARPNESS = 2.0
"""First bias of the sharpness with ``parked``: an exponent near 3, so that a weighting which stays does not blur."""

MASK_MIN = 0.1
"""Smallest weight that a lookup mask can give to a word element (improved DNC)."""


def oneplus(x: Tensor) -> Tensor:
    """1 + log(1 + exp(x)), at least 1 (DNC "interface parameters")."""
    return 1 + functional.softplus(x)


class StaticHeads(NamedTuple):
    """Parameters of NTM heads at one step; the R read heads come first, then the H write heads."""

    keys: Tensor
    """``[B, K, W]`` in (-1, 1)"""
    strengths: Tensor
    """``[B, K]``, non-negative"""
    gate: Tensor
    """Content (1) against the last weighting (0), ``[B, K]``"""
    shift: Tensor
    """Distribution over shifts, ``[B, K, S]``"""
    sharpness: Tensor
    """``[B, K]``, at least 1"""
    erase: Tensor
    """``[B, H, W]`` in (0, 1)"""
    add: Tensor
    """``[B, H, W]`` in (-1, 1)"""
    mask: Tensor | None
    """Element weights of the lookup, ``[B, K, W]`` in (0.1, 1), with ``masked_content``"""

    def only(self, heads: slice) -> StaticHeads:
        """How these of the K heads address; erase and add, which only write heads have, stay whole."""
        keys, strengths, gate, shift, sharpness, erase, add, mask = self
        addressing = (part[:, heads] for part in (keys, strengths, gate, shift, sharpness))
        return StaticHeads._make((*addressing, erase, add, None if mask is None else mask[:, heads]))


class DynamicHeads(NamedTuple):
    """Parameters of DNC heads at one step."""

    read_keys: Tensor
    """``[B, R, W]``"""
    read_strengths: Tensor
    """``[B, R]``, at least 1"""
    write_keys: Tensor
    """``[B, H, W]``"""
    write_strengths: Tensor
    """``[B, H]``, at least 1"""
    erase: Tensor
    """``[B, H, W]`` in (0, 1)"""
    add: Tensor
    """Write vectors, ``[B, H, W]``"""
    free_gates: Tensor
    """``[B, R]``"""
    allocation_gates: Tensor
    """``[B, H]``"""
    write_gates: Tensor
    """``[B, H]``"""
    read_modes: Tensor
    """Shares of backward (H), content (1) and forward (H), ``[B, R, 1 + 2H]``"""
    read_mask: Tensor | None
    """``[B, R, W]`` in (0.1, 1), with ``masked_content``"""
    write_mask: Tensor | None
    """``[B, H, W]`` in (0.1, 1), with ``masked_content``"""
    link_powers: Tensor | None
    """Exponents of the backward (H) and forward (H) weightings, ``[B, R, 2H]``, with ``link_sharpening``"""


class Interface(nn.Module):
    """The Linear that maps the controller's output to the interface vector, and the sizes of its parts, in order."""

    def __init__(self, hidden_size: int, sizes: dict[str, int]) -> None:
        """
        Args:
            hidden_size: size of the controller's output.
            sizes: name and length of each part of the interface vector, in order.
        """
        super().__init__()
        self.sizes = sizes
        self.size = sum(sizes.values())
        """Length of the interface vector."""
        self.linear: nn.Linear | TiedLinear = nn.Linear(hidden_size, self.size)

    def parts(self, hidden: Tensor) -> dict[str, Tensor]:
        """The raw interface vector of ``[B, hidden_size]``, split by name."""
        vector = self.linear(hidden)
        return dict(zip(self.sizes, vector.split(list(self.sizes.values()), dim=-1), strict=True))


def lookup_mask(raw: Tensor | None, heads: int) -> Tensor | None:
    """Element weights ``[B, heads, W]`` in (0.1, 1) from their part of the interface vector, or None without one."""
    if raw is None:
        return None
    return MASK_MIN + (1 - MASK_MIN) * torch.sigmoid(raw.unflatten(-1, (heads, -1)))


class StaticInterface(Interface):
    """Interface of the NTM: keys, strengths, gates, shifts, sharpness of all heads, then erase and add (NTM 3.3)."""

    def __init__(
        self,
        hidden_size: int,
        word_size: int,
        num_reads: int,
        num_writes: int,
        shift_range: int,
        *,
        masked_content: bool = False,
        head_init: HeadInit = "parked",
    ) -> None:
        """Sizes and options as in :class:`papertape.NTM`.

        Raises:
            ValueError: an unknown ``head_init``.
        """
        check_choice("head_init", head_init, get_args(HeadInit))
        heads = num_reads + num_writes
        sizes = {
            "keys": heads * word_size,
            "strengths": heads,
            "gate": heads,
            "shift": heads * (2 * shift_range + 1),
            "sharpness": heads,
            "erase": num_writes * word_size,
            "add": num_writes * word_size,
        }
        if masked_content:
            sizes["mask"] = heads * word_size
        super().__init__(hidden_size, sizes)
        self.num_heads = heads
        self.num_writes = num_writes
        if head_init == "parked":
            self._park()

    @torch.no_grad()
    def _park(self) -> None:
        """Start with heads that stay where they are: what decides whether a trained NTM works on longer sequences."""
        self.linear.weight.mul_(PARKED_GAIN)
        bias = dict(zip(self.sizes, self.linear.bias.split(list(self.sizes.values())), strict=True))
        bias["gate"].add_(PARKED_GATE)
        bias["sharpness"].add_(PARKED_SHARPNESS)

    def forward(self, hidden: Tensor) -> StaticHeads:
        """Head parameters from the controller's output ``[B, hidden_size]``."""
        parts = self.parts(hidden)
        return StaticHeads(
            keys=torch.tanh(parts["keys"].unflatten(-1, (self.num_heads, -1))),
            strengths=functional.softplus(parts["strengths"]),
            gate=torch.sigmoid(parts["gate"]),
            shift=torch.softmax(parts["shift"].unflatten(-1, (self.num_heads, -1)), dim=-1),
            sharpness=oneplus(parts["sharpness"]),
            erase=torch.sigmoid(parts["erase"].unflatten(-1, (self.num_writes, -1))),
            add=torch.tanh(parts["add"].unflatten(-1, (self.num_writes, -1))),
            mask=lookup_mask(parts.get("mask"), self.num_heads),
        )


class DynamicInterface(Interface):
    """Interface of the DNC, in the order of the paper (DNC "interface parameters").

    Size without options, for one write head: W·R + 3W + 5R + 3.
    """

    def __init__(
        self,
        hidden_size: int,
        word_size: int,
        num_reads: int,
        num_writes: int,
        *,
        squash: Literal["none", "tanh"] = "none",
        masked_content: bool = False,
        link_sharpening: bool = False,
    ) -> None:
        """Sizes and options as in :class:`papertape.DNC`."""
        sizes = {
            "read_keys": num_reads * word_size,
            "read_strengths": num_reads,
            "write_keys": num_writes * word_size,
            "write_strengths": num_writes,
            "erase": num_writes * word_size,
            "add": num_writes * word_size,
            "free_gates": num_reads,
            "allocation_gates": num_writes,
            "write_gates": num_writes,
            "read_modes": num_reads * (1 + 2 * num_writes),
        }
        if masked_content:
            sizes |= {"read_mask": num_reads * word_size, "write_mask": num_writes * word_size}
        if link_sharpening:
            sizes["link_powers"] = num_reads * 2 * num_writes
        super().__init__(hidden_size, sizes)
        self.num_reads = num_reads
        self.num_writes = num_writes
        self.squash = squash

    def _squashed(self, raw: Tensor, heads: int) -> Tensor:
        words = raw.unflatten(-1, (heads, -1))
        return torch.tanh(words) if self.squash == "tanh" else words

    def forward(self, hidden: Tensor) -> DynamicHeads:
        """Head parameters from the controller's output ``[B, hidden_size]``."""
        parts = self.parts(hidden)
        powers = parts.get("link_powers")
        return DynamicHeads(
            read_keys=self._squashed(parts["read_keys"], self.num_reads),
            read_strengths=oneplus(parts["read_strengths"]),
            write_keys=self._squashed(parts["write_keys"], self.num_writes),
            write_strengths=oneplus(parts["write_strengths"]),
            erase=torch.sigmoid(parts["erase"].unflatten(-1, (self.num_writes, -1))),
            add=self._squashed(parts["add"], self.num_writes),
            free_gates=torch.sigmoid(parts["free_gates"]),
            allocation_gates=torch.sigmoid(parts["allocation_gates"]),
            write_gates=torch.sigmoid(parts["write_gates"]),
            read_modes=torch.softmax(parts["read_modes"].unflatten(-1, (self.num_reads, -1)), dim=-1),
            read_mask=lookup_mask(parts.get("read_mask"), self.num_reads),
            write_mask=lookup_mask(parts.get("write_mask"), self.num_writes),
            link_powers=None if powers is None else oneplus(powers.unflatten(-1, (self.num_reads, -1))),
        )
