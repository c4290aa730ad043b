"""Dynamic n-grams: predict bits drawn from a table that is new for every sequence (Graves et al. 2014, section 4.4)."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..core.env import Batch
from ..core.registry import register
from .curriculum import Range
from .sequence import SequenceEnv


@register("env", "dynamic-ngrams")
class DynamicNGramsEnv(SequenceEnv):
    """T bits, each to be predicted before it is seen: the first n - 1 are fair coins, the others follow the table.

    Tables are drawn from Beta(1/2, 1/2). Inputs have one channel, the last bit (0 at the first step); targets one, the
    next bit. Metrics are bits (of information, not of error) per sequence, the same for the best possible estimator
    (133 for 200 bits, as in the paper) and the excess over it.
    """

    error_metric: ClassVar[str] = "excess_bits"
    # Lengths in bits, of which it takes many more than the words of other tasks.
    own_meaning: ClassVar[frozenset[str]] = frozenset({"min_length", "max_length", "test_lengths"})

    order: int = Field(
        default=6,
        ge=2,
        le=10,
        description="n: a bit depends on the n - 1 before it, through a table of 2^(n-1) probabilities",
    )
    min_length: int = Field(default=200, ge=2, description="fewest bits of a training sequence")
    max_length: int = Field(default=200, ge=2, description="most bits of a training sequence")
    test_lengths: list[Annotated[int, Field(ge=2)]] = Field(
        default=[400], description="numbers of bits to be tested on besides the training range"
    )

    @staticmethod
    def ranges(options: Any) -> dict[str, Range]:
        """Bits of a sequence."""
        return {"length": (options.min_length, options.max_length)}

    def setup(self) -> None:
        """Sizes of inputs and targets."""
        self.input_size = self.output_size = 1

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """A batch at the current level; see :meth:`Env.sample`."""
        context_bits, dtype = self.order - 1, torch.get_default_dtype()
        length = self.draw(batch_size, generator)["length"]
        longest = int(length.max())
        # The distribution function of Beta(1/2, 1/2) is 2/pi arcsin(sqrt(p)); this is its inverse.
        quantiles = torch.rand(batch_size, 2**context_bits, generator=generator, device=self.device)
        table = torch.sin(torch.pi / 2 * quantiles).square()
        chances = torch.rand(longest, batch_size, 1, generator=generator, device=self.device)
        context = torch.zeros(batch_size, 1, dtype=torch.long, device=self.device)
        drawn = []
        for step, chance in enumerate(chances):
            bit = chance < (table.gather(1, context) if step >= context_bits else 0.5)
            context = (2 * context + bit) % 2**context_bits
            drawn.append(bit)
        counted = self.steps(longest) < length
        bits = (torch.stack(drawn) & counted.unsqueeze(-1)).to(dtype)
        inputs = functional.pad(bits[:-1], (0, 0, 0, 0, 1, 0)) * counted.unsqueeze(-1)
        return Batch(inputs, bits, counted.to(dtype))

    def tallies(self, outputs: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Loss per bit in nats; and per sequence the bits of information of the predictions, of the best possible
        estimator's, and the difference; see :meth:`Env.tallies`.
        """
        loss, (_, sequences) = super().tallies(outputs, batch).values()
        estimates = optimal_estimates(batch.targets.squeeze(-1), self.order)
        best = functional.binary_cross_entropy(estimates, batch.targets.squeeze(-1), reduction="none")
        bits, optimal_bits = loss[0] / math.log(2), (best * batch.mask).sum() / math.log(2)
        return {
            "loss": loss,
            "bits": (bits, sequences),
            "optimal_bits": (optimal_bits, sequences),
            "excess_bits": (bits - optimal_bits, sequences),
        }

    def beyond(self) -> list[dict[str, Range]]:
        """``test_lengths``."""
        return [{"length": (length, length)} for length in self.test_lengths]


def optimal_estimates(bits: Tensor, order: int) -> Tensor:
    """Chance that each bit is one, given those before it: (N1 + 1/2) / (N0 + N1 + 1) (Graves et al. 2014, equation 10).

    N0 and N1 count the zeros and ones that have followed the same context of order - 1 bits so far; the bits before the
    first whole context are fair coins.

    Args:
        bits: 0 or 1, ``[T, B]``.
        order: n of the n-grams.

    Returns:
        ``[T, B]``.
    """
    length, context_bits = bits.shape[0], order - 1
    estimates = torch.full_like(bits, 0.5)
    if length <= context_bits:
        return estimates
    whole = bits.long()
    contexts = sum(
        whole[place : length - context_bits + place] << (context_bits - 1 - place) for place in range(context_bits)
    )
    context = torch.as_tensor(contexts).unsqueeze(-1)
    met, bit = functional.one_hot(context.squeeze(-1), 2**context_bits).to(bits.dtype), bits[context_bits:]
    count = met.cumsum(0).gather(-1, context).squeeze(-1) - 1
    count_of_ones = (met * bit.unsqueeze(-1)).cumsum(0).gather(-1, context).squeeze(-1) - bit
    estimates[context_bits:] = (count_of_ones + 0.5) / (count + 1)
    return estimates
