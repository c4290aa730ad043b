"""Nth farthest: which vector is the n-th farthest from another (Santoro et al. 2018, section 4.1)?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch.nn import functional

from ..core.env import Batch
from ..core.registry import register
from ..core.token_env import TokenEnv
from ..core.trace_field import Channels
from .thinking import with_thinking


@register("env", "nth-farthest")
class NthFarthestEnv(TokenEnv):
    """V vectors, one a step, each with its label and with the question: the n-th farthest from the one labelled m?

    Vectors are drawn evenly from [-1, 1] in each of D dimensions, labels, n and m evenly from 1 to V; the V-th farthest
    from m is m itself. Inputs are the vector and, one-hot, its label, m and n: D + 3V channels. The answer is due at
    the last vector: the label, one of V classes.

    This is the question of the paper's text. DeepMind's code for it (``dataset_nth_farthest.py``, in sonnet) has the
    same inputs and, since commit e8bd52b7, asks for the label of the n-th nearest: the same task, with n counted from
    the other end. As first published, its answer was how many vectors are nearer to the one labelled m than the one
    labelled n is.
    """

    token_inputs = False

    vectors: int = Field(default=8, ge=2, le=1000, description="V, vectors of a sequence")
    dimensions: int = Field(default=16, ge=1, le=1000, description="D, dimensions of a vector")

    def setup(self) -> None:
        """Sizes of inputs and answers."""
        self.input_size, self.output_size = self.dimensions + 3 * self.vectors, self.vectors

    def input_channels(self) -> Sequence[Channels]:
        """The vector, its label and the question."""
        labels = tuple(self.output_names())
        asked = [Channels(name, self.vectors, tuple(f"{name}={label}" for label in labels)) for name in "mn"]
        return [Channels("vector", self.dimensions), Channels("label", self.vectors, labels), *asked]

    def output_names(self) -> Sequence[str]:
        """Labels, from 1."""
        return [str(label) for label in range(1, self.vectors + 1)]

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw vectors, labels and questions; see :meth:`Env.sample`."""
        count, device, dtype = self.vectors, self.device, torch.get_default_dtype()
        shape = (count, batch_size)
        vectors = 2 * torch.rand(*shape, self.dimensions, generator=generator, device=device, dtype=dtype) - 1
        labels = torch.rand(shape, generator=generator, device=device).argsort(0)
        m, n = torch.randint(count, (2, batch_size), generator=generator, device=device)
        reference = vectors[(labels == m).long().argmax(0), torch.arange(batch_size, device=device)]
        farthest_first = (vectors - reference).norm(dim=-1).argsort(0, descending=True)
        answer = labels.gather(0, farthest_first.gather(0, n.unsqueeze(0)))
        told = [functional.one_hot(part, count).to(dtype) for part in (labels, m.expand(shape), n.expand(shape))]
        mask = torch.zeros(shape, device=device, dtype=dtype)
        mask[-1] = 1
        return with_thinking(Batch(torch.cat([vectors, *told], -1), answer * mask.long(), mask), self.think_steps)
