"""Policies: distributions of actions, whose parameters are a circuit's outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..core.clipping import clipped
from ..core.world import ActionPart

LARGEST_CHANGE = 3.0
"""Of the logarithm of a standard deviation; a policy can neither freeze nor become noise."""


class Policy:
    """The distribution of actions that outputs give: independent in each part of an action.

    Parameters ``[…, P]`` are, for each part of an action in order, what :class:`~papertape.core.world.ActionPart` says,
    and then for each channel that is normal the logarithm of its standard deviation, counted from an initial one. A
    sample ``[…, A]`` has the channels of the parts.
    """

    def __init__(self, parts: Sequence[ActionPart], initial_deviation: float) -> None:
        """
        Args:
            parts: of an action; see :meth:`papertape.core.world.World.action_parts`.
            initial_deviation: standard deviation of normal channels where the circuit puts out zero.
        """
        self.parts = tuple(parts)
        self.initial = math.log(initial_deviation)
        self.sample_size = sum(part.size for part in parts)
        """A, channels of a sample."""
        self.size = self.sample_size + sum(part.size for part in parts if part.kind == "normal")
        """P, parameters."""

    def _split(self, parameters: Tensor) -> Iterator[tuple[str, Tensor, Tensor, slice]]:
        """Of each part: kind, its channels, the logarithms of its deviations (if normal), and its place in a sample."""
        start, spread = 0, self.sample_size
        for kind, size in self.parts:
            place = slice(start, start + size)
            deviations = parameters[..., :0]
            if kind == "normal":
                change = clipped(parameters[..., spread : spread + size], LARGEST_CHANGE)
                deviations, spread = self.initial + change, spread + size
            yield kind, parameters[..., place], deviations, place
            start += size

    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        """Draw actions, ``[…, P]`` -> ``[…, A]``."""
        drawn = []
        for kind, channels, deviations, _ in self._split(parameters):
            noise = torch.empty_like(channels)
            if kind == "categorical":
                # The largest logit with Gumbel noise is a draw from the softmax.
                noise.exponential_(generator=generator).log_()
                drawn.append(_one_hot(channels - noise))
            elif kind == "bernoulli":
                noise.uniform_(generator=generator)
                drawn.append(_sign(noise < torch.sigmoid(channels), channels))
            else:
                noise.normal_(generator=generator)
                drawn.append(channels + deviations.exp() * noise)
        return drawn[0] if len(drawn) == 1 else torch.cat(drawn, -1)

    def mode(self, parameters: Tensor) -> Tensor:
        """The likeliest actions, ``[…, P]`` -> ``[…, A]``."""
        found = []
        for kind, channels, *_ in self._split(parameters):
            if kind == "categorical":
                found.append(_one_hot(channels))
            else:
                found.append(_sign(channels > 0, channels) if kind == "bernoulli" else channels)
        return torch.cat(found, -1)

    def log_probability(self, parameters: Tensor, samples: Tensor) -> Tensor:
        """Logarithm of the probability (density where normal) of samples ``[…, A]``, ``[…]``."""
        found = []
        for kind, channels, deviations, place in self._split(parameters):
            sample = samples[..., place]
            if kind == "categorical":
                found.append((functional.log_softmax(channels, -1) * sample).sum(-1))
            elif kind == "bernoulli":
                found.append(functional.logsigmoid(channels * sample).sum(-1))
            else:
                distance = (sample - channels) * torch.exp(-deviations)
                found.append(-(0.5 * distance.square() + deviations + 0.5 * math.log(2 * math.pi)).sum(-1))
        return _total(found)

    def entropy(self, parameters: Tensor) -> Tensor:
        """Of the distribution (differential where normal), in nats, ``[…, P]`` -> ``[…]``."""
        found = []
        for kind, channels, deviations, _ in self._split(parameters):
            if kind == "categorical":
                logs = functional.log_softmax(channels, -1)
                found.append(-(logs.exp() * logs).sum(-1))
            elif kind == "bernoulli":
                found.append((functional.softplus(channels) - channels * torch.sigmoid(channels)).sum(-1))
            else:
                found.append((deviations + 0.5 * math.log(2 * math.pi * math.e)).sum(-1))
        return _total(found)


def _one_hot(scores: Tensor) -> Tensor:
    """1 at the largest, 0 elsewhere."""
    return torch.zeros_like(scores).scatter_(-1, scores.argmax(-1, keepdim=True), 1)


def _sign(yes: Tensor, like: Tensor) -> Tensor:
    """1 where yes, -1 where not."""
    return yes.to(like.dtype) * 2 - 1


def _total(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(tuple(parts)).sum(0)
