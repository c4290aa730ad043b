"""A linear layer in which the bits of a word share their weights: what is learned about one holds for all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .options import check_sizes


class TiedBitsLinear(nn.Module):
    """``y = W x + b``, equivariant under permutations of the bits (Zaheer et al. 2017, "Deep Sets", lemma 3).

    Features come in blocks: a word, whose elements are its bits, or a single number. Between two words there are two
    weights: from each bit to the same bit, and from each bit to every other. Between a word and a single number all
    bits share one weight, and the bits of an output word share one bias. So the number of parameters does not depend on
    the length of a word (as with HyperNEAT, Merrild et al. 2018, "HyperENTM"). Words of one bit leave nothing to tie.
    """

    index: Tensor
    bias_index: Tensor

    def __init__(self, input_blocks: Sequence[int], output_blocks: Sequence[int]) -> None:
        """
        Args:
            input_blocks: number of features of each block, in order: 1, or the number of bits of a word.
            output_blocks: the same for the outputs; words have as many bits as those that come in.

        Raises:
            ValueError: no blocks, a size below 1, or words of different lengths.
        """
        super().__init__()
        blocks = [*input_blocks, *output_blocks]
        check_sizes(input_blocks=min(input_blocks, default=0), output_blocks=min(output_blocks, default=0))
        lengths = sorted({size for size in blocks if size > 1})
        if len(lengths) > 1:
            raise ValueError(f"input_blocks, output_blocks: got words of {lengths} bits; allowed is one length")
        self.blocks = tuple(input_blocks), tuple(output_blocks)
        self.in_features, self.out_features = sum(input_blocks), sum(output_blocks)
        self.weight = nn.Parameter(torch.empty(sum(1 + (min(pair) > 1) for pair in product(*self.blocks))))
        """The distinct weights, one number for each."""
        self.bias = nn.Parameter(torch.empty(len(output_blocks)))
        """One number for each block of outputs."""
        self.reset_parameters()

    def _place(self) -> None:
        """Write down which number stands where, on the device of the numbers."""
        device, (input_blocks, output_blocks) = self.weight.device, self.blocks
        number, rows = 0, []
        for height in output_blocks:
            row = []
            for width in input_blocks:
                between_words = height > 1 and width > 1
                row.append(torch.full((height, width), number + between_words, device=device).fill_diagonal_(number))
                number += 1 + between_words
            rows.append(torch.cat(row, dim=1))
        self.register_buffer("index", torch.cat(rows), persistent=False)
        owners = torch.arange(len(output_blocks), device=device)
        heights = torch.tensor(output_blocks, device=device)
        owners = owners.repeat_interleave(heights, output_size=self.out_features)
        self.register_buffer("bias_index", owners, persistent=False)

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        super()._load_from_state_dict(*arguments, **keywords)
        if self.index.device != self.weight.device:  # weights were assigned to a layer on the device meta
            self._place()

    def reset_parameters(self) -> None:
        """Draw all weights and biases anew; also what a layer that comes from the device meta has forgotten."""
        self._place()
        bound = 1 / math.sqrt(self.in_features)
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -bound, bound)

    def whole(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of the ordinary linear layer that computes the same, or of many.

        Args:
            weight: like the layer's own, ``[…, numbers]``.
            bias: like the layer's own, ``[…, blocks]``.

        Returns:
            Weight ``[…, O, I]`` and bias ``[…, O]``.
        """
        return weight[..., self.index], bias[..., self.bias_index]

    def forward(self, x: Tensor) -> Tensor:
        """``[…, I]`` -> ``[…, O]``."""
        return functional.linear(x, *self.whole(self.weight, self.bias))
