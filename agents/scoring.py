"""How members of a population are scored: on the same batch of an env, or the same episodes of a world."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..circuits.normalised import Moments, NormalisedCircuit
from ..core.circuit import Circuit
from ..core.contracts import is_outside, plain_numbers, under
from ..core.env import Batch, Env
from ..core.members import Stack
from ..core.task import Task
from ..core.world import World, carrying
from .fitness import Fitness, LossFitness, check_fitness, earned, made
from .population import Population

_SEEDS = 2**62
"""Seeds are drawn below this."""


def draw_seed(generator: torch.Generator) -> int:
    """A seed for another generator."""
    return int(torch.randint(_SEEDS, (), generator=generator, device=generator.device))


class Scoring(ABC):
    """Draws what a generation answers, and scores the answers."""

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Any:
        """Draw ``count`` sequences or episodes, the same for every member."""

    @abstractmethod
    def scores(self, stacks: Mapping[str, Stack], drawn: Any, *, part: int = 0) -> Tensor:
        """What each sequence or episode adds to the fitness of each member; a member's fitness is the sum.

        Args:
            stacks: P members' parameters by name.
            drawn: from :meth:`draw`.
            part: which part of the population these members are; parts differ in what is drawn at random for them.

        Returns:
            ``[P, count]`` in float64
        """

    @abstractmethod
    def metrics(self, circuit: Circuit, drawn: Any) -> dict[str, float]:
        """The task's metrics of one circuit on what was drawn."""


class Asked(NamedTuple):
    """What :class:`BatchScoring` draws."""

    batch: Batch
    seed: int
    """Of answers that are drawn from an output's distribution; 0 where none are."""


class BatchScoring(Scoring):
    """Fitness of the answers to a batch; see :class:`~papertape.agents.fitness.Fitness`."""

    def __init__(self, env: Env, population: Population, fitness: Callable[..., Tensor]) -> None:
        """
        Args:
            env: hands out batches and judges answers.
            population: answers.
            fitness: what answers are worth.
        """
        self.env = env
        self.population = population
        self.fitness = fitness

    def draw(self, count: int, generator: torch.Generator) -> Asked:
        """A batch of so many sequences; see :meth:`Scoring.draw`."""
        batch = self.env.sample(count, generator)
        return Asked(batch, draw_seed(generator) if getattr(self.fitness, "drawn", False) else 0)

    def scores(self, stacks: Mapping[str, Stack], drawn: Asked, *, part: int = 0) -> Tensor:
        """See :meth:`Scoring.scores`."""
        generator = torch.Generator(self.env.device).manual_seed(drawn.seed + part)
        return self.population.evaluate(
            stacks, drawn.batch.inputs, lambda outputs: earned(self.fitness, self.env, outputs, drawn.batch, generator)
        )

    def metrics(self, circuit: Circuit, drawn: Asked) -> dict[str, float]:
        """See :meth:`Scoring.metrics`."""
        outputs, _ = circuit(drawn.batch.inputs)
        return plain_numbers(self.env.metrics(outputs, drawn.batch))


class EpisodeScoring(Scoring):
    """Mean return of the episodes of a world; what is drawn is their number and their seed."""

    def __init__(self, world: World, population: Population) -> None:
        """
        Args:
            world: hands out rewards.
            population: acts.
        """
        self.world = world
        self.population = population
        self.seen: list[Moments] | None = [] if isinstance(population.circuit, NormalisedCircuit) else None
        """Of the observations of each part of a population that was scored; None where nobody asks."""

    def draw(self, count: int, generator: torch.Generator) -> tuple[int, int]:
        """How many episodes, and their seed; see :meth:`Scoring.draw`."""
        return count, draw_seed(generator)

    def scores(self, stacks: Mapping[str, Stack], drawn: tuple[int, int], *, part: int = 0) -> Tensor:
        """See :meth:`Scoring.scores`; all parts play the same episodes."""
        count, seed = drawn
        if self.seen is None:
            return self.population.play(stacks, self.world, count, seed).returns / count
        self.seen.append(Moments.of(torch.empty(0, self.world.input_size, device=self.world.device)))

        def seen(observations: Tensor) -> None:
            assert self.seen is not None
            self.seen[-1] = self.seen[-1].merged(Moments.of(observations))

        return self.population.play(stacks, self.world, count, seed, seen=seen).returns / count

    def metrics(self, circuit: Circuit, drawn: tuple[int, int]) -> dict[str, float]:
        """See :meth:`Scoring.metrics`."""
        count, seed = drawn
        generator = torch.Generator(self.world.device).manual_seed(seed)
        return plain_numbers(self.world.metrics(self.world.play(carrying(circuit), count, generator)))


def scoring_of(task: Task, population: Population, fitness: Any | None) -> Scoring:
    """How a population is scored on a task.

    Args:
        task: an env or a world.
        population: what is scored.
        fitness: options or a function; None takes an env's loss, negative, or a world's rewards.

    Raises:
        ValueError: a fitness is given for a world, or one from outside the package has another shape.
        ContractError: one from outside the package fails.
    """
    if isinstance(task, Env):
        worth = LossFitness() if fitness is None else made(fitness)
        if is_outside(worth if hasattr(worth, "__qualname__") else type(worth)):
            with under("fitness"):
                check_fitness(worth, task)
        if isinstance(worth, Fitness):
            worth.check(task)
        return BatchScoring(task, population, worth)
    assert isinstance(task, World)
    if fitness is not None:
        raise ValueError(
            f"agent.fitness: got {getattr(fitness, 'type', fitness)!r}; this env is a world with rewards, whose "
            "fitness is the mean return of the episodes: allowed is null"
        )
    return EpisodeScoring(task, population)
