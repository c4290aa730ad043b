"""What memory and head weightings hold before the first step."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from .options import check_choice

MemoryInit = Literal["constant", "learned", "truncated_normal"]
WeightInit = Literal["first", "uniform", "learned"]


def reset(module: nn.Module) -> None:
    """Draw anew the weights of every layer within a module, each in its own way.

    Raises:
        TypeError: weights belong to something that has no ``reset_parameters``; names it.
    """
    own = [name for name, _ in module.named_parameters(recurse=False)]
    if own:
        raise TypeError(f"{type(module).__name__}: has weights of its own ({', '.join(own)}) and no reset_parameters")
    reset_layers(module)


def reset_layers(module: nn.Module) -> None:
    """The same, of a module with weights of its own, which it draws itself."""
    for part in module.children():
        draw = getattr(part, "reset_parameters", None)
        if draw is None:
            reset(part)
        else:
            draw()


CONSTANT = 1e-6
"""Value of every element with ``constant`` (Collier & Beel 2018: converges 3.5 times faster on copy than learned)."""

SPREAD = 0.5
"""Standard deviation of ``truncated_normal``, cut at two standard deviations, and of the start of ``learned``."""


class InitialMemory(nn.Module):
    """Contents of the memory before the first step (Collier & Beel 2018, section 3).

    ``constant``: 1e-6 everywhere. ``learned``: a parameter per element. ``truncated_normal``: drawn once when the
    circuit is built, kept as a buffer and saved with it.
    """

    contents: Tensor

    def __init__(self, init: MemoryInit, memory_size: int, word_size: int) -> None:
        """
        Args:
            init: one of ``constant``, ``learned``, ``truncated_normal``.
            memory_size: N, number of slots.
            word_size: W, length of a slot.

        Raises:
            ValueError: an unknown ``init``.
        """
        super().__init__()
        check_choice("memory_init", init, get_args(MemoryInit))
        self.init = init
        self.word_size = word_size
        if init == "constant":
            # No buffer, which a module that comes from the device meta would have to fill again.
            return
        drawn = torch.empty(memory_size, word_size)
        if init == "learned":
            self.contents = nn.Parameter(drawn)
        else:
            self.register_buffer("contents", drawn)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the contents anew, where they are drawn."""
        if self.init != "constant":
            nn.init.trunc_normal_(self.contents, std=SPREAD, a=-2 * SPREAD, b=2 * SPREAD)

    def forward(self, batch_size: int, memory_size: int, like: Tensor) -> Tensor:
        """Contents ``[B, N, W]``, which may be changed in place.

        Args:
            batch_size: B.
            memory_size: N.
            like: has the type and the device of constant contents.

        Raises:
            ValueError: another number of slots than the contents were made for.
        """
        if self.init == "constant":
            return like.new_full((batch_size, memory_size, self.word_size), CONSTANT)
        slots = self.contents.shape[0]
        if memory_size != slots:
            raise ValueError(
                f"memory_size: got {memory_size}; memory_init={self.init!r} holds contents for {slots} slots "
                "(only memory_init='constant' allows another number)"
            )
        return self.contents.expand(batch_size, -1, -1).clone(memory_format=torch.contiguous_format)


class InitialWeights(nn.Module):
    """Weightings of the heads before the first step.

    ``first``: all on slot 0. ``uniform``: the same on every slot. ``learned``: softmax of a parameter per slot.
    """

    logits: Tensor

    def __init__(self, init: WeightInit, num_heads: int, memory_size: int) -> None:
        """
        Args:
            init: one of ``first``, ``uniform``, ``learned``.
            num_heads: K, number of heads.
            memory_size: N, number of slots.

        Raises:
            ValueError: an unknown ``init``.
        """
        super().__init__()
        check_choice("weight_init", init, get_args(WeightInit))
        self.init = init
        self.num_heads = num_heads
        if init == "learned":
            self.logits = nn.Parameter(torch.empty(num_heads, memory_size))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weightings anew, where they are learned."""
        if self.init == "learned":
            nn.init.normal_(self.logits)

    def forward(self, batch_size: int, memory_size: int, like: Tensor) -> Tensor:
        """Weightings ``[B, K, N]``, each summing to 1.

        Args:
            batch_size: B.
            memory_size: N.
            like: has the type and the device of weightings that are not learned.

        Raises:
            ValueError: ``learned``, and another number of slots than was learned.
        """
        if self.init == "learned":
            if memory_size != self.logits.shape[1]:
                raise ValueError(
                    f"memory_size: got {memory_size}; weight_init='learned' holds weights for "
                    f"{self.logits.shape[1]} slots"
                )
            weights = torch.softmax(self.logits, dim=-1)
        elif self.init == "uniform":
            weights = torch.softmax(like.new_zeros(self.num_heads, memory_size), dim=-1)
        else:
            # Padded and not compared with torch.arange, which on the device meta loads torch._dynamo.
            weights = nn.functional.pad(like.new_ones(self.num_heads, 1), (0, memory_size - 1))
        return weights.expand(batch_size, -1, -1)
