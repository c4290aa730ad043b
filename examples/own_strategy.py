"""A strategy of your own: a (1 + λ) evolution strategy with the one-fifth success rule.

A class that inherits from Strategy draws a population and learns from its fitness; its options are its fields. It then
stands alone, or evolves a circuit by options like any other:

    python examples/own_strategy.py
    papertape train ntm-copy --import examples.own_strategy agent.type=evolution agent.strategy.type=one-plus-lambda
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

import papertape


@papertape.register("strategy", "one-plus-lambda")
class OnePlusLambda(papertape.Strategy):
    """One parent and its λ children; the fittest of all is the next parent (Rechenberg 1973).

    The step grows while more than a fifth of the children are fitter than their parent, and shrinks while fewer are.
    """

    remembered: ClassVar[tuple[str, ...]] = ("parent", "parent_fitness", "step")

    population: int = Field(default=20, ge=2, description="λ, children of a generation")
    sigma: float = Field(default=0.1, gt=0, description="standard deviation of the first children")
    learning_rate: float = Field(default=0.3, gt=0, description="how fast the step adapts")

    def setup(self) -> None:
        """Begin with the genome that is given."""
        super().setup()
        self.parent, self.parent_fitness, self.step = self.genome.clone(), float("-inf"), self.sigma

    def draw(self) -> Tensor:
        """Children ``[P, D]``; all randomness comes from the strategy's generator."""
        shape = (self.population, len(self.parent))
        noise = torch.randn(shape, generator=self.generator, device=self.parent.device, dtype=self.parent.dtype)
        return self.parent + self.step * noise

    def update(self, fitness: Tensor, drawn: Any) -> None:
        """Take the fittest child ``[P]`` for the parent if it is fitter, and adapt the step."""
        success = float((fitness > self.parent_fitness).double().mean())
        if float(fitness.max()) > self.parent_fitness:
            self.parent, self.parent_fitness = drawn[int(fitness.argmax())].clone(), float(fitness.max())
        self.step *= 2.0 ** (self.learning_rate * (success - 0.2) / 0.8)

    @property
    def best(self) -> Tensor:
        """The parent, ``[D]``."""
        return self.parent

    def center_and_spread(self) -> tuple[Tensor, float]:
        """The parent and the step, which are shown while it evolves."""
        return self.parent, self.step


if __name__ == "__main__":
    found = papertape.minimise(
        lambda x: (x - 1).square().sum(), torch.zeros(5), strategy="one-plus-lambda", bounds=(-2, 2), evaluations=5000
    )
    print(f"{found.value:.1e} at {found.point.tolist()} after {found.evaluations} evaluations")
