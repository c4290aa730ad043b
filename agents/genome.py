"""The genome, one vector of all parameters but frozen ones, which strategies work on, and how these lie in it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..core.members import Mirrored, Stack, dense


class Layout:
    """How named parameters lie in a genome: one after another, in their order."""

    def __init__(self, shapes: Mapping[str, torch.Size | tuple[int, ...]]) -> None:
        """
        Args:
            shapes: shape of each parameter.

        Raises:
            ValueError: no parameters, or none with an element.
        """
        self.shapes = {name: torch.Size(shape) for name, shape in shapes.items()}
        self.sizes = [math.prod(shape) for shape in self.shapes.values()]
        self.size = sum(self.sizes)
        """D, elements of a genome."""
        if not self.size:
            raise ValueError("parameters: the circuit has none that are not frozen, so there is nothing to evolve")

    @classmethod
    def of(cls, module: nn.Module) -> Layout:
        """Layout of a module's parameters, but of those that are frozen (``requires_grad_(False)``): they stay."""
        named = module.named_parameters()
        return cls({name: parameter.shape for name, parameter in named if parameter.requires_grad})

    def split(self, genomes: Tensor) -> dict[str, Tensor]:
        """``[…, D]`` -> named views ``[…, *S]``."""
        parts = genomes.split(self.sizes, dim=-1)
        return {
            name: part.view(part.shape[:-1] + shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def mirrored(self, center: Tensor, noise: Tensor) -> dict[str, Mirrored]:
        """``[D]`` and ``[M, D]`` -> named mirrored stacks; see :class:`Mirrored`."""
        noises = self.split(noise)
        return {name: Mirrored(part, noises[name]) for name, part in self.split(center).items()}

    def join(self, stacks: Mapping[str, Stack]) -> Tensor:
        """Named stacks -> genomes ``[P, D]``."""
        return torch.cat([dense(stacks[name]).reshape(len(stacks[name]), -1) for name in self.shapes], 1)

    def read(self, module: nn.Module) -> Tensor:
        """The genome ``[D]`` that a module carries: a copy of its parameters."""
        # Those of a scripted module that was loaded are plain tensors, which get_parameter refuses.
        own = dict(module.named_parameters())
        return torch.cat([own[name].detach().flatten() for name in self.shapes])

    @torch.no_grad()
    def write(self, genome: Tensor, module: nn.Module) -> None:
        """Put a genome ``[D]`` into a module's parameters."""
        own = dict(module.named_parameters())
        for name, part in self.split(genome).items():
            own[name].copy_(part)
