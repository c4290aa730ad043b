"""The contract of a strategy: how a population changes from one generation to the next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PlainValidator
from torch import Tensor

from ...core.component import Chosen, Component
from ...core.contracts import check_numbers, expect, try_saved, trying
from ...core.members import Stack
from ...core.placement import random_apart, take_up
from ...core.recorder import Chart
from ...core.registry import contract
from ..evaluation import check_keys, check_saved, check_state
from ..genome import Layout

Initial = Literal["resampled", "copied"]
"""How the first genomes of a population of individuals come from the circuit's weights; see :func:`resample`."""

FARTHEST = 10
"""Standard deviations that members of a distribution are within."""
LARGEST_FITNESS = 1e150
"""Magnitude of fitness beyond which differences are not told apart: sums and squares of them would not be finite."""


def _as_layout(given: Any) -> Layout | None:
    if given is None or isinstance(given, Layout):
        return given
    raise ValueError(f"got a {type(given).__name__}; expected a Layout or None")


def in_range(center: Tensor, spread: Tensor, dtype: torch.dtype) -> bool:
    """Whether members with a centre ``[D]`` and standard deviations, ``[D]`` or one, are finite numbers of a type."""
    return bool((center.abs() + FARTHEST * spread).to(dtype).isfinite().all())


@contract("strategy")
class Strategy(Component, ABC):
    """Ask for a population, evaluate it, tell its fitness; again and again.

    ::

        strategy = CMAES(torch.zeros(10), sigma=0.5, seed=1)
        for _ in range(100):
            strategy.tell(-function(strategy.ask()))  # genomes [P, D] -> fitness [P], higher is better
        strategy.best

    Subclasses implement :meth:`draw`, :meth:`update`, :attr:`best`, :meth:`center_and_spread`, and name the attributes
    that they remember in :attr:`remembered`. All randomness comes from :attr:`generator`.
    """

    genome: Tensor = Field(
        kw_only=False, description="where to start, [D]; its device and type are those of the population"
    )
    seed: int = Field(default=0, exclude=True, ge=-(2**63), lt=2**63, description="of everything that is drawn")
    layout: Annotated[Layout, PlainValidator(_as_layout)] = Field(
        default=None,  # type: ignore[assignment]
        exclude=True,
        description="how named parameters lie in the genome; None takes it as one vector",
    )
    population: int = Field(default=200, ge=2, description="P, members of a generation")

    own_meaning: ClassVar[frozenset[str]] = frozenset({"sigma", "lr", "sigma_lr"})
    kept: ClassVar[frozenset[str]] = Component.kept | {"population"}
    holds_members: ClassVar[bool] = False
    """Whether :meth:`replace` can put other genomes in place of the members: a population, not a distribution."""
    remembered: ClassVar[tuple[str, ...]] = ()
    """Attributes (tensors and plain values) that go into a checkpoint."""
    adapted: ClassVar[Mapping[str, str]] = {}
    """Options that only set the first value of a remembered attribute, and that attribute: a resumed run keeps the
    attribute's value, unless the option is changed."""

    def setup(self) -> None:
        """Check the genome, and begin with what every strategy remembers.

        Raises:
            ValueError: the genome is not a vector of finite numbers, at least one, or not of the layout's size.
        """
        genome = self.genome
        right = genome.dim() == 1 and len(genome) and genome.is_floating_point() and torch.isfinite(genome).all()
        if not right:
            raise ValueError(f"genome: got shape {list(genome.shape)}; expected a vector of finite numbers")
        self.layout = self.layout or Layout({"genome": genome.shape})
        if self.layout.size != len(genome):
            raise ValueError(f"genome: got {len(genome)} elements; its layout has {self.layout.size}")
        self.genome = genome.detach().clone()
        self.generator = torch.Generator(genome.device).manual_seed(self.seed)
        self.generation = 0
        self.best_fitness = float("-inf")
        """Highest fitness of the last generation."""
        self.bad_fitness = 0
        """Members whose fitness was not finite, in all generations."""
        self._drawn: Tensor | dict[str, Stack] | None = None
        self._before_draw = self.generator.get_state()

    @classmethod
    def refuses_start(cls, options: Any) -> Iterable[str]:
        """One line for each option that would discard the genome that the population starts from.

        Args:
            options: of a strategy of this class.
        """
        if getattr(options, "initial", None) == "resampled":
            return ["initial: got 'resampled', which keeps nothing of the weights of start; allowed: copied"]
        return ()

    @property
    def per_sample(self) -> bool:
        """Whether :meth:`tell` takes the fitness of each sequence, ``[P, B]``, in the order of the sequences."""
        return False

    @property
    def recheck_sequences(self) -> int:
        """Sequences on which :meth:`candidates` are to be evaluated again."""
        return 0

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
        """The value of an option of :attr:`adapted`: the first one of its attribute."""
        return getattr(self.options, option)

    def _draw_once(self) -> Tensor | dict[str, Stack]:
        if self._drawn is None:
            self._before_draw = self.generator.get_state()
            drawn = self.draw()
            if not isinstance(drawn, dict):
                self._check_drawn(drawn)
            self._drawn = drawn
        return self._drawn

    def ask(self) -> Tensor:
        """The genomes to evaluate, ``[P, D]``; the same ones until :meth:`tell`; clone what is to be kept after it."""
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
                where there is none) and is counted in :attr:`bad_fitness`; what is beyond :data:`LARGEST_FITNESS` in
                magnitude counts as that.

        Raises:
            RuntimeError: no population was asked for.
            ValueError: no tensor, or the wrong shape.
        """
        if self._drawn is None:
            raise RuntimeError("tell: no population was asked for since the last one")
        expected = f"[{self.population}, B]" if self.per_sample else f"[{self.population}]"
        if not isinstance(fitness, Tensor):
            raise ValueError(f"fitness: got a {type(fitness).__name__}; expected a tensor of shape {expected}")
        if fitness.is_complex():
            raise ValueError(f"fitness: got {fitness.dtype}; expected real numbers")
        if fitness.dim() != (2 if self.per_sample else 1) or len(fitness) != self.population:
            raise ValueError(f"fitness: got shape {list(fitness.shape)}; expected {expected}")
        fitness = self._finite(fitness)
        self.best_fitness = float(fitness.sum(1).max() if self.per_sample else fitness.max())
        drawn, self._drawn = self._drawn, None
        self.update(fitness, drawn)
        self.generation += 1

    def _finite(self, fitness: Tensor) -> Tensor:
        fitness = fitness.detach().to(self.genome.device, torch.float64)
        fitness = torch.where(fitness.isfinite(), fitness.clamp(-LARGEST_FITNESS, LARGEST_FITNESS), fitness)
        finite = torch.isfinite(fitness)
        bad = ~(finite.all(1) if self.per_sample else finite)
        if not bad.any():
            return fitness
        self.bad_fitness += int(bad.sum())
        worst = fitness[finite].min() if finite.any() else fitness.new_zeros(())
        return torch.where(finite, fitness, worst)

    def replace(self, genomes: Tensor) -> None:
        """Replace the members that :meth:`ask` gave by others, ``[P, D]``, before :meth:`tell`.

        Raises:
            RuntimeError: the strategy holds no members (see :attr:`holds_members`), or none were asked for.
            ValueError: no tensor, the wrong shape, or numbers that are not finite.
        """
        if not self.holds_members:
            raise RuntimeError(f"replace: {type(self).__name__} holds no members that could be replaced")
        if self._drawn is None:
            raise RuntimeError("replace: no population was asked for since the last tell")
        expected = [self.population, self.layout.size]
        if not isinstance(genomes, Tensor):
            raise ValueError(f"genomes: got a {type(genomes).__name__}; expected a tensor of shape {expected}")
        if list(genomes.shape) != expected:
            raise ValueError(f"genomes: got shape {list(genomes.shape)}; expected {expected}")
        if genomes.is_complex():
            raise ValueError(f"genomes: got {genomes.dtype}; expected real numbers")
        genomes = genomes.detach().to(self.genome)
        if not genomes.isfinite().all():
            raise ValueError("genomes: got numbers that are not finite; expected finite ones")
        self.exchange(genomes)

    def exchange(self, genomes: Tensor) -> None:
        """Take genomes ``[P, D]``, finite, in place of what :meth:`draw` returned, where :attr:`holds_members`."""
        raise NotImplementedError

    def candidates(self) -> Tensor | None:
        """Genomes ``[C, D]`` to be evaluated again on :attr:`recheck_sequences` after :meth:`tell`; None: nothing."""
        return None

    def confirm(self, fitness: Tensor) -> None:
        """Take the fitness ``[C]`` of :meth:`candidates`."""

    def check(self) -> None:
        """Check by a trial on a copy that the strategy meets its contract.

        Raises:
            ContractError: it is not; names the class, what was found and what is expected.
        """
        name, size = type(self).__qualname__, self.layout.size
        values = {option: getattr(self.options, option) for option in type(self.options).model_fields}
        values.pop("type", None)

        def another() -> Any:
            with trying(self, "__init__"):
                return type(self)(self.genome, layout=self.layout, seed=self.seed, **values)

        tried = another()
        with torch.no_grad(), random_apart(self.genome.device):
            for _ in range(2):
                with trying(self, "ask"):
                    genomes, stacks = tried.ask(), tried.ask_stacks()
                    members = {len(stack) for stack in stacks.values()}
                self._check_drawn(genomes)
                kind = self.genome.dtype
                expect(genomes.dtype == kind, f"{name}.draw", f"gives {genomes.dtype}", f"{kind}, as the genome is")
                expect(members == {self.population}, f"{name}.draw", f"gives {members} members", str(self.population))
                worth = torch.arange(self.population, dtype=torch.float64, device=self.genome.device)
                with trying(self, "tell"):
                    tried.tell(worth.unsqueeze(1) if tried.per_sample else worth)
                    candidates = tried.candidates()
                    if candidates is not None:
                        tried.confirm(worth[: len(candidates)])
                with trying(self, "best"):
                    found, (center, _) = tried.best, tried.center_and_spread()
                for what, genome in (("best", found), ("center_and_spread", center)):
                    shape = list(genome.shape) if isinstance(genome, Tensor) else type(genome).__name__
                    expect(shape == [size], f"{name}.{what}", f"is {shape}", f"a genome of shape {[size]}")
                with trying(self, "metrics"):
                    check_numbers(f"{name}.metrics", tried.metrics())
                try_saved(self, "state_dict", tried.state_dict())
                with trying(self, "state_dict"):
                    resumed = another()
                    resumed.load_state_dict(tried.state_dict())
                with trying(self, "ask"):
                    same = torch.equal(resumed.ask(), tried.ask())
                expect(same, f"{name}.remembered", "goes on otherwise from its state_dict", "all that draw looks at")

    def _check_drawn(self, genomes: Any) -> None:
        """Raise ContractError unless these are so many genomes of so many elements."""
        expected = [self.population, self.layout.size]
        found = f"shape {list(genomes.shape)}" if isinstance(genomes, Tensor) else f"a {type(genomes).__name__}"
        right = isinstance(genomes, Tensor) and list(genomes.shape) == expected
        expect(right, f"{type(self).__qualname__}.draw", f"gives {found}", f"{expected}, population and genome")

    def metrics(self) -> dict[str, float]:
        """Numbers to watch: ``diversity`` and ``genome_norm``, and what the strategy has of its own."""
        center, spread = self.center_and_spread()
        return {"diversity": spread, "genome_norm": float(torch.linalg.vector_norm(center.double()))}

    def charts(self) -> dict[str, Chart]:
        """What there is to show besides numbers, by name."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values from which the next :meth:`ask` is the same bit for bit.

        Between ask and tell it is the state before the ask: the same population is drawn again.
        """
        generator = self.generator.get_state() if self._drawn is None else self._before_draw
        own = {name: _copied(getattr(self, name)) for name in self.remembered}
        return {
            "generator": generator,
            "generation": self.generation,
            "best_fitness": self.best_fitness,
            "bad_fitness": self.bad_fitness,
            "genome": self.genome.clone(),
            "options": self.options.model_dump(mode="json"),
            **own,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from :meth:`state_dict`, with the options that this strategy has.

        Raises:
            ValueError: it was saved by another strategy, for another population or genome, or with other options that
                a run keeps.
        """
        check_saved(state)
        expected = self.state_dict()
        for line in self.options.refused(state.get("options", {})):
            raise ValueError(f"agent.strategy.{line}")
        check_keys(state, expected)
        # The state of a generator has another size on another kind of device.
        tensors = {name: value for name, value in expected.items() if isinstance(value, Tensor) and name != "generator"}
        check_state("strategy", {name: state[name] for name in tensors}, tensors)
        take_up(self.generator, state["generator"])
        self.generation = state["generation"]
        self.best_fitness = state["best_fitness"]
        self.bad_fitness = state["bad_fitness"]
        self.genome = state["genome"].to(self.genome)
        self._drawn = None
        before, now = state["options"], expected["options"]
        anew = {name: option for option, name in self.adapted.items() if before[option] != now[option]}
        for name in self.remembered:
            value = self.asked(anew[name]) if name in anew else state[name]
            setattr(self, name, value.to(self.genome.device, copy=True) if isinstance(value, Tensor) else value)


AnyStrategy = Annotated[Any, Chosen("strategy")]
"""A strategy as an option: its name, or its name as ``type`` with its options."""


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def resample(genome: Tensor, layout: Layout, generator: torch.Generator, count: int) -> Tensor:
    """Fresh genomes like a given one: each parameter's elements are drawn, with replacement, from its own elements.

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
        index = torch.randint(max(len(part), 1), (count, len(part)), generator=generator, device=genome.device)
        drawn.append(part[index])
    return torch.cat(drawn, dim=1)
