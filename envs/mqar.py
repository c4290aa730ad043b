"""Multi-query associative recall: pairs of keys and values, then some of the keys (Arora et al. 2023, section 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ..core.env import Batch, Env
from ..core.registry import register
from ..core.streams import Stream
from ..core.token_env import TokenEnv
from .thinking import with_thinking


@register("env", "mqar")
class MQAREnv(TokenEnv):
    """K pairs of a key and a value one after the other; each key comes once more, and its value is due at once.

    As in the authors' repository (HazyResearch/zoology), whose vocabulary of V has keys from 1 to V / 2 - 1 and values
    from V / 2 on. No key and no value comes twice. After the pairs every second step may ask for a key; the g-th of
    these is taken with a chance that falls off as g^(``power`` - 1). All other steps have token 0, or random ones. A
    sequence has L steps.
    """

    length: int = Field(default=64, ge=4, description="L, steps of a sequence; an even number")
    pairs: int = Field(default=4, ge=1, description="K, pairs of a key and a value; at most a quarter of the length")
    vocabulary: int = Field(default=8192, ge=8, le=2**20, description="V, tokens; also the classes of an answer")
    power: float = Field(
        default=0.01,
        gt=0,
        le=1,
        description="what the chance of a gap before a query falls off with, as repeated words of a language do; 1 "
        "spreads queries evenly",
    )
    fill: bool = Field(
        default=False,
        description="fill all steps that are neither pairs nor queries with random tokens, which is harder; the "
        "published runs do not",
    )
    test_sizes: list[Annotated[list[int], Field(min_length=2, max_length=2)]] = Field(
        default=[], description="[length, pairs] to be tested on besides those of training"
    )

    @classmethod
    def check_options(cls, options: Any) -> None:
        """Refuse lengths that are odd, pairs that do not fit into them, and vocabularies without enough keys."""
        super().check_options(options)
        sizes = [("length", "pairs", options.length, options.pairs)]
        sizes += [(f"test_sizes.{number}",) * 2 + tuple(size) for number, size in enumerate(options.test_sizes)]
        for length_name, pairs_name, length, pairs in sizes:
            if length % 2 or length < 4:
                raise ValueError(f"{length_name}: got {length}; allowed is an even number of at least 4")
            if not 1 <= pairs <= length // 4:
                raise ValueError(
                    f"{pairs_name}: got {pairs} pairs; allowed is 1 to {length // 4}, a quarter of {length}"
                )
            if options.vocabulary // 2 - 1 < pairs:
                raise ValueError(
                    f"vocabulary: got {options.vocabulary}; allowed is at least {2 * pairs + 2}, which has {pairs} keys"
                )

    def setup(self) -> None:
        """Sizes of inputs and answers."""
        self.input_size, self.output_size = self.vocabulary + (self.think_steps > 0), self.vocabulary

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw pairs and where they are asked for; see :meth:`Env.sample`."""
        pairs, vocabulary, device = self.pairs, self.vocabulary, self.device
        half, start = vocabulary // 2, 2 * pairs
        keys = 1 + self._distinct(half - 1, batch_size, generator)
        values = half + self._distinct(vocabulary - half, batch_size, generator)
        space = torch.arange(1, (self.length - start) // 2 + 1, device=device, dtype=torch.float64)
        chances = space.pow(self.power - 1).expand(batch_size, -1)
        gaps = chances.multinomial(pairs, generator=generator).t()
        if self.fill:
            shape = (self.length, batch_size)
            inputs = torch.randint(vocabulary, shape, generator=generator, device=device)
        else:
            inputs = torch.zeros(self.length, batch_size, dtype=torch.long, device=device)
        inputs[0:start:2], inputs[1:start:2] = keys, values
        queries = start + 2 * gaps
        inputs.scatter_(0, queries, keys)
        targets = torch.zeros_like(inputs).scatter_(0, queries, values)
        mask = torch.zeros(inputs.shape, device=device, dtype=torch.get_default_dtype()).scatter_(0, queries, 1.0)
        return with_thinking(Batch(inputs, targets, mask), self.think_steps, vocabulary)

    def _distinct(self, count: int, batch_size: int, generator: torch.Generator) -> Tensor:
        """As many different numbers below ``count`` as there are pairs, in random order, ``[K, B]``."""
        return torch.rand(batch_size, count, generator=generator, device=self.device).topk(self.pairs).indices.t()

    def input_names(self) -> Sequence[str]:
        """Numbers; and the token for thinking."""
        names = [str(token) for token in range(self.vocabulary)]
        return [*names, "think"] if self.think_steps else names

    @property
    def kept_words(self) -> int:
        """All values."""
        return self.pairs

    def sets(self, stream: Stream) -> Mapping[str, Env]:
        """Length and pairs of training, then ``test_sizes``: ``length 64, pairs 4``."""
        sizes = [[self.length, self.pairs], *self.test_sizes]
        return {
            f"length {length}, pairs {pairs}": self.changed(length=length, pairs=pairs, test_sizes=[])
            for length, pairs in sizes
        }
