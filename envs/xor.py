"""Exclusive or: the truth table of parity, the smallest task that no network without hidden nodes can do."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field

from ..core.env import Batch, Env
from ..core.registry import register


@register("env", "xor")
class XorEnv(Env):
    """The truth table of exclusive or, a row a sequence of a single step: inputs ``[1, B, I]``, targets ``[1, B, 1]``.

    Every batch has each row as often as any other, in the order of the table; what is left over where their number does
    not divide the batch goes to rows drawn at random. The table is the whole task: training, validation and test all
    see every row.
    """

    bits: int = Field(
        default=2, ge=2, le=10, description="inputs; with more than two, the answer is whether an odd number is 1"
    )
    bias: bool = Field(
        default=False, description="one more input that is always 1, for circuits that have no bias of their own"
    )

    def setup(self) -> None:
        """Sizes of inputs, targets and the table."""
        self.input_size, self.output_size = self.bits + self.bias, 1
        self._rows = 2**self.bits

    def _batch(self, rows: torch.Tensor) -> Batch:
        """The rows of these numbers ``[B]``."""
        powers = torch.arange(self.bits - 1, -1, -1, device=self.device)
        bits = (rows.unsqueeze(1) >> powers) & 1
        targets = bits.sum(1, keepdim=True) % 2
        if self.bias:
            bits = torch.cat([bits, torch.ones_like(targets)], 1)
        dtype = torch.get_default_dtype()
        mask = torch.ones(1, len(rows), dtype=dtype, device=self.device)
        return Batch(bits.to(dtype).unsqueeze(0), targets.to(dtype).unsqueeze(0), mask)

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Rows of the table; see :class:`XorEnv` and :meth:`Env.sample`.

        Raises:
            ValueError: a batch size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}; allowed is a whole number of at least 1")
        whole = torch.arange(batch_size - batch_size % self._rows, device=self.device) % self._rows
        drawn = torch.randperm(self._rows, generator=generator, device=self.device)[: batch_size % self._rows]
        return self._batch(torch.cat([whole, drawn]))

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Every row once, in order; see :meth:`Env.batches`."""
        for rows in torch.arange(self._rows, device=self.device).split(batch_size):
            yield self._batch(rows)
