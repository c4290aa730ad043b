"""A strategy of your own: a (1 + λ) evolution strategy with the one-fifth success rule (Rechenberg 1973).

One class draws a population and learns from its fitness. It then stands alone, or evolves any circuit:

    python examples/own_strategy.py
    papertape train tape-copy --import examples/own_strategy.py agent.strategy=one-plus-lambda
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

import papertape


@papertape.register("strategy", "one-plus-lambda")
class OnePlusLambda(papertape.Strategy):
    """One parent and its λ children; the fittest of all is the next parent.

    The step grows while more than a fifth of the children are fitter than their parent, and shrinks while fewer are.
    """

    population: int = Field(20, ge=2, description="λ, children of a generation")
    sigma: float = Field(0.1, gt=0, description="standard deviation of the first children")
    learning_rate: float = Field(0.3, gt=0, description="how fast the step adapts")

    remembered = ("parent", "parent_fitness", "step")  # goes into checkpoints

    def setup(self) -> None:
        super().setup()
        self.parent, self.parent_fitness, self.step = self.genome.clone(), float("-inf"), self.sigma

    def draw(self) -> Tensor:
        """Children ``[P, D]``; all that is random comes from the strategy's generator."""
        parents = self.parent.repeat(self.population, 1)
        return parents + self.step * torch.empty_like(parents).normal_(generator=self.generator)

    def update(self, fitness: Tensor, drawn: Any) -> None:
        """Learn from the fitness ``[P]`` of the children."""
        success = float((fitness > self.parent_fitness).double().mean())
        if float(fitness.max()) > self.parent_fitness:
            self.parent, self.parent_fitness = drawn[int(fitness.argmax())].clone(), float(fitness.max())
        self.step *= 2.0 ** (self.learning_rate * (success - 0.2) / 0.8)

    @property
    def best(self) -> Tensor:
        return self.parent

    def center_and_spread(self) -> tuple[Tensor, float]:
        return self.parent, self.step


if __name__ == "__main__":
    found = papertape.minimise(lambda x: (x - 1).square().sum(), [0.0] * 5, strategy="one-plus-lambda", bounds=(-2, 2))
    print(f"{found.value:.1e} at {found.point.tolist()} after {found.evaluations} evaluations")
