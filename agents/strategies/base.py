"""The contract of a strategy: how a population changes from one generation to the next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...core.options import Options
from ...core.pictures import Picture
from ...core.stacked import Layout, Stack
from ..evaluation import check_keys, check_state

Initial = Literal["resampled", "copied"]
"""How the first genomes of a population of individuals come from the circuit's weights; see :func:`resample`."""


class StrategyOptions(Options):
    """Options that every strategy has."""

    own_meaning = frozenset({"sigma", "lr", "sigma_lr"})

    kept = Options.kept | {"population"}

    type: str
    population: int | None = Field(200, ge=2)
    """P, members of a generation."""


class Strategy(ABC):
    """Ask for a population, evaluate it, tell its fitness; again and again.

    Subclasses implement :meth:`draw`, :meth:`update`, :attr:`best`, :meth:`center_and_spread`, and name the attributes
    that they remember in :attr:`remembered`. All randomness comes from :attr:`generator`.
    """

    Options: ClassVar[type[StrategyOptions]]
    per_sample: bool = False
    """Whether :meth:`tell` takes the fitness of each sequence, ``[P, B]`` in the order in which they were answered."""
    holds_members: ClassVar[bool] = False
    """Whether :meth:`replace` can put other genomes in place of the members: a population, not a distribution."""
    recheck_sequences: int = 0
    """Sequences on which :meth:`candidates` are to be evaluated again."""
    remembered: ClassVar[tuple[str, ...]] = ()
    """Attributes (tensors and plain values) that go into a checkpoint."""
    adapted: ClassVar[Mapping[str, str]] = {}
    """Options that only say where a remembered attribute begins, and that attribute: a run that goes on goes on from
    where it has got, unless another value is asked for."""
    options: StrategyOptions

    def __init__(
        self,
        options: StrategyOptions,
        initial: Tensor,
        *,
        population: int,
        seed: int = 0,
        layout: Layout | None = None,
    ) -> None:
        """
        Args:
            options: of this strategy.
            initial: genome to start from, ``[D]``; its device and type are those of the population.
            population: P, members of a generation.
            seed: of everything that is drawn.
            layout: how named parameters lie in the genome; None takes it as one vector.

        Raises:
            ValueError: the genome is not a vector of finite numbers, or not of the layout's size.
        """
        if initial.dim() != 1 or not initial.is_floating_point() or not torch.isfinite(initial).all():
            raise ValueError(f"initial: got shape {list(initial.shape)}; expected a vector of finite numbers")
        self.options = options
        self.layout = layout or Layout({"genome": initial.shape})
        if self.layout.size != len(initial):
            raise ValueError(f"initial: got {len(initial)} elements; its layout has {self.layout.size}")
        self.population = population
        self.initial = initial.detach().clone()
        self.generator = torch.Generator(initial.device).manual_seed(seed)
        self.generation = 0
        self.best_fitness = float("-inf")
        """Highest fitness of the last generation."""
        self.bad_fitness = 0
        """Members whose fitness was not finite, in all generations."""
        self._drawn: Tensor | dict[str, Stack] | None = None
        self._before_draw = self.generator.get_state()

    @abstractmethod
    def draw(self) -> Tensor | dict[str, Stack]:
        """The next population, as genomes ``[P, D]`` or as named stacks; changes nothing but the generator."""

    @abstractmethod
    def update(self, fitness: Tensor, drawn: Any) -> None:
        """Learn from the fitness, ``[P]`` (or ``[P, B]``) and finite, of what :meth:`draw` returned."""

    @property
    @abstractmethod
    def best(self) -> Tensor:
        """The genome ``[D]`` to hand over: the centre of a distribution, or the best individual."""

    @abstractmethod
    def center_and_spread(self) -> tuple[Tensor, float]:
        """Mean genome ``[D]`` of the population and the root mean square distance of an element from it."""

    def asked(self, option: str) -> Any:
        """What an option of :attr:`adapted` says: where its attribute begins."""
        return getattr(self.options, option)

    def _draw_once(self) -> Tensor | dict[str, Stack]:
        if self._drawn is None:
            self._before_draw = self.generator.get_state()
            self._drawn = self.draw()
        return self._drawn

    def ask(self) -> Tensor:
        """The genomes to evaluate, ``[P, D]``; the same ones until :meth:`tell`."""
        drawn = self._draw_once()
        return drawn if isinstance(drawn, Tensor) else self.layout.join(drawn)

    def ask_stacks(self) -> Mapping[str, Stack]:
        """The same population as stacked parameters by name, in the form that is cheapest to evaluate."""
        drawn = self._draw_once()
        return self.layout.split(drawn) if isinstance(drawn, Tensor) else drawn

    def tell(self, fitness: Tensor) -> None:
        """Take the fitness of the population that was asked for.

        Args:
            fitness: ``[P]``, or ``[P, B]`` with :attr:`per_sample`; higher is better. It is taken as float64: members
                that are nearly alike differ in its last digits. What is not finite counts as the worst finite one (0
                where there is none) and is counted in :attr:`bad_fitness`.

        Raises:
            RuntimeError: no population was asked for.
            ValueError: the wrong shape.
        """
        if self._drawn is None:
            raise RuntimeError("tell: no population was asked for since the last one")
        if fitness.dim() != (2 if self.per_sample else 1) or len(fitness) != self.population:
            expected = f"[{self.population}, B]" if self.per_sample else f"[{self.population}]"
            raise ValueError(f"fitness: got shape {list(fitness.shape)}; expected {expected}")
        fitness = self._finite(fitness.to(self.initial.device, torch.float64))
        self.best_fitness = float(fitness.sum(1).max() if self.per_sample else fitness.max())
        drawn, self._drawn = self._drawn, None
        self.update(fitness, drawn)
        self.generation += 1

    def _finite(self, fitness: Tensor) -> Tensor:
        finite = torch.isfinite(fitness)
        bad = ~(finite.all(1) if self.per_sample else finite)
        if not bad.any():
            return fitness
        self.bad_fitness += int(bad.sum())
        worst = fitness[finite].min() if finite.any() else fitness.new_zeros(())
        return torch.where(finite, fitness, worst)

    def replace(self, genomes: Tensor) -> None:
        """Put what the members have become, ``[P, D]``, in place of what was asked for, before :meth:`tell`.

        Raises:
            RuntimeError: the strategy holds no members (see :attr:`holds_members`).
        """
        raise RuntimeError(f"replace: {type(self).__name__} holds no members that could be replaced")

    def candidates(self) -> Tensor | None:
        """Genomes ``[C, D]`` to be evaluated again on :attr:`recheck_sequences` after :meth:`tell`; None: nothing."""
        return None

    def confirm(self, fitness: Tensor) -> None:
        """Take the fitness ``[C]`` of :meth:`candidates`."""

    def metrics(self) -> dict[str, float]:
        """Numbers to watch: ``diversity`` and ``genome_norm``, and what the strategy has of its own."""
        center, spread = self.center_and_spread()
        return {"diversity": spread, "genome_norm": float(torch.linalg.vector_norm(center))}

    def pictures(self) -> dict[str, Picture]:
        """By name, what there is to show besides numbers."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values from which the next :meth:`ask` goes on bit for bit.

        Between ask and tell it is the state before the ask: the same population is drawn again.
        """
        generator = self.generator.get_state() if self._drawn is None else self._before_draw
        own = {name: _copied(getattr(self, name)) for name in self.remembered}
        return {
            "generator": generator,
            "generation": self.generation,
            "best_fitness": self.best_fitness,
            "bad_fitness": self.bad_fitness,
            "initial": self.initial.clone(),
            "options": self.options.model_dump(mode="json"),
            **own,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`, with the options that this strategy has.

        Raises:
            ValueError: it was saved by another strategy, for another population or genome, or with other options that
                a run keeps.
        """
        expected = self.state_dict()
        for line in self.options.refused(state.get("options", {})):
            raise ValueError(f"agent.strategy.{line}")
        check_keys(state, expected)
        tensors = {name: value for name, value in expected.items() if isinstance(value, Tensor)}
        check_state("strategy", {name: state[name] for name in tensors}, tensors)
        self.generator.set_state(state["generator"].cpu())
        self.generation = state["generation"]
        self.best_fitness = state["best_fitness"]
        self.bad_fitness = state["bad_fitness"]
        self.initial = state["initial"].to(self.initial)
        self._drawn = None
        before, now = state["options"], expected["options"]
        anew = {name: option for option, name in self.adapted.items() if before[option] != now[option]}
        for name in self.remembered:
            value = self.asked(anew[name]) if name in anew else state[name]
            setattr(self, name, value.to(self.initial.device, copy=True) if isinstance(value, Tensor) else value)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def resample(genome: Tensor, layout: Layout, generator: torch.Generator, count: int) -> Tensor:
    """Fresh individuals that look like a genome: each parameter's elements drawn, with replacement, from its own.

    They keep the distribution of every parameter (that of its initialiser, for a fresh circuit) and nothing else.

    Args:
        genome: ``[D]``
        layout: where each parameter lies.
        generator: the source of randomness.
        count: P, number of genomes.

    Returns:
        ``[P, D]``
    """
    drawn = []
    for part in genome.split(layout.sizes):
        index = torch.randint(len(part), (count, len(part)), generator=generator, device=genome.device)
        drawn.append(part[index])
    return torch.cat(drawn, dim=1)
