"""NEAT: topology and weights of a network evolve together (Stanley & Miikkulainen 2002)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ....core.recorder import Areas, Chart
from ....core.registry import register
from ..base import Initial, Strategy
from .genomes import Codec, Genomes, Innovations, crossover
from .mutation import add_connections, add_nodes, mutate_others, mutate_weights, toggle, uniform
from .species import Distance, quotas, speciate

THRESHOLD_STEP = 0.1
"""How far the compatibility threshold moves in a generation towards the number of species that is asked for."""


@register("strategy", "neat")
class Neat(Strategy):
    """Networks grow from minimal ones; species protect what is new; innovation numbers tell which genes match.

    What evolves is the circuit's one :class:`~papertape.core.topology.TopologyNetwork`, which a controller or circuit
    of type neat has. The first genomes have the connections that the circuit has when the strategy is made. The
    circuit's other weights evolve by Gaussian mutation and uniform crossover; the distance between species leaves them
    out.

    Fitness is shared within a species: each has children in proportion to its mean fitness, counted from the lowest of
    the population where that is negative. Ties go to the smaller genome in crossover, to the first elsewhere.
    """

    kept: ClassVar[frozenset[str]] = Strategy.kept | {"initial", "max_connections"}
    holds_members: ClassVar[bool] = True
    adapted: ClassVar[Mapping[str, str]] = {"compatibility_threshold": "threshold"}
    remembered: ClassVar[tuple[str, ...]] = (
        "species",
        "champion",
        "next_node",
        "next_species",
        "threshold",
        "records",
        "improved",
        "sizes",
    )

    population: int = Field(default=150, ge=2, description="P, members of a generation")
    initial: Initial = Field(
        default="resampled",
        description="first weights of the connections: drawn anew, or those that the circuit has, mutated in all "
        "members but one",
    )
    max_connections: int | None = Field(
        default=None,
        ge=1,
        description="connections of a genome that there is room for; null: those at the start, and six more for each "
        "hidden node that the circuit has room for",
    )
    excess: float = Field(default=1.0, ge=0, description="c1 of the distance; see Distance")
    disjoint: float = Field(default=1.0, ge=0, description="c2 of the distance")
    weight_difference: float = Field(default=0.4, ge=0, description="c3 of the distance")
    small_genome: int = Field(
        default=20, ge=1, description="connections below which the distance is not divided by their number"
    )
    compatibility_threshold: float = Field(
        default=3.0, gt=0, description="distance from its representative within which a genome belongs to a species"
    )
    target_species: int | None = Field(
        default=None,
        ge=1,
        description="number of species towards which the threshold moves, by 0.1 a generation; null keeps it",
    )
    survivors: float = Field(
        default=0.2,
        gt=0,
        le=1,
        description="share of each species, the fittest first, that may have children (at least one member)",
    )
    elite_size: int = Field(
        default=5,
        ge=0,
        description="the champion of a species with more members than this lives on unchanged, and the fittest member "
        "of all",
    )
    species_patience: int = Field(
        default=15,
        ge=1,
        description="generations without a fitter champion after which a species has no more children, unless it has "
        "the fittest",
    )
    population_patience: int = Field(
        default=20,
        ge=1,
        description="generations without a fitter member after which only the two best species have children, once; "
        "the patience with them begins anew",
    )
    crossover: float = Field(default=0.75, ge=0, le=1, description="share of the children that have two parents")
    interspecies: float = Field(
        default=0.001, ge=0, le=1, description="share of these whose second parent may be of any species"
    )
    inherited_disabled: float = Field(
        default=0.75,
        ge=0,
        le=1,
        description="how likely a connection that is disabled in either parent is so in the child",
    )
    mutate_weights: float = Field(
        default=0.8, ge=0, le=1, description="share of the children whose connections are all mutated"
    )
    weight_step: float = Field(
        default=2.5,
        gt=0,
        description="a weight is shifted by up to this much to either side; new weights are drawn from this range",
    )
    replace_weight: float = Field(
        default=0.1, ge=0, le=1, description="share of the mutated weights that are drawn anew"
    )
    max_weight: float = Field(default=8.0, gt=0, description="mutated weights stay within this to either side")
    add_node: float = Field(default=0.03, ge=0, le=1, description="share of the children that get a new node")
    add_connection: float = Field(
        default=0.05, ge=0, le=1, description="share of the children that get a new connection"
    )
    toggle_connection: float = Field(
        default=0.0, ge=0, le=1, description="share of the children of which a connection is disabled, or enabled again"
    )
    recurrent: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="how likely a new connection is a recurrent one; 0 keeps networks feed-forward that are so",
    )
    mutate_others: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="share of the other weights of a child (heads, output layer) that mutation touches",
    )
    others_step: float = Field(default=0.1, ge=0, description="standard deviation of the noise that it adds to them")

    def setup(self) -> None:
        """See :class:`Strategy`.

        Raises:
            ValueError: also if the circuit has no network of any topology, or more than one, or one with more
                connections than there is room for.
        """
        super().setup()
        self.codec = Codec(self.layout)
        first, self.innovations, self.next_node = self.codec.first_genome(self.genome, self.max_connections)
        self.room = first.innovations.shape[1]
        """Connections that a genome can have at most."""
        self.genomes = self._fitted(first).rows(
            torch.zeros(self.population, dtype=torch.long, device=self.genome.device)
        )
        self.champion = self.genome.clone()
        """The fittest genome of the last generation, as it was evaluated, ``[D]``."""
        self.threshold = self.compatibility_threshold
        self.records: list[tuple[int, float, int]] = []
        """Of each species: its number, the best fitness it ever had and from when on there has been no better one."""
        self.improved: tuple[float, int] = (float("-inf"), 0)
        """The best fitness of all generations, and from when on there has been no better one."""
        self.sizes: list[tuple[int, list[tuple[int, int]]]] = []
        """Of each generation so far, the numbers of the species and their members; thinned out where long."""
        self._vary_first()
        self.species = torch.zeros(self.population, dtype=torch.long, device=self.genome.device)
        """Number of each member's species, ``[P]``."""
        self.next_species = 0
        self._speciate(self.genomes.rows(self.species[:0]), self.species[:0])

    @property
    def distance(self) -> Distance:
        """How far genomes are apart."""
        return Distance(self.excess, self.disjoint, self.weight_difference, self.small_genome)

    def _fitted(self, genomes: Genomes) -> Genomes:
        """The genomes with not much more room than the next generation may need: time goes with the room."""
        largest = int(genomes.connection_counts.max())
        # One new connection, and two with a new node; in steps, so that the room seldom changes.
        return genomes.with_room(min(-(-(largest + 3) // 8) * 8, self.room))

    def _vary_first(self) -> None:
        """Make the first genomes differ."""
        genomes = self.genomes
        rows = torch.ones(self.population, dtype=torch.bool, device=self.genome.device)
        rows[0] = self.initial != "copied"
        if self.initial == "resampled":
            weights = uniform(tuple(genomes.weights.shape), self.weight_step, genomes, self.generator)
            varied = genomes._replace(weights=torch.where(genomes.present, weights, torch.zeros_like(weights)))
        else:
            varied = self._mutate_weights(genomes, rows)
        self.genomes = mutate_others(varied, rows, step=self.others_step, rate=1.0, generator=self.generator)

    def _mutate_weights(self, genomes: Genomes, rows: Tensor) -> Genomes:
        return mutate_weights(
            genomes,
            rows,
            step=self.weight_step,
            replaced=self.replace_weight,
            limit=self.max_weight,
            generator=self.generator,
        )

    def draw(self) -> dict[str, Tensor]:  # type: ignore[override]
        """The circuit's parameters of each member, by name."""
        return self.codec.stacks(self.genomes)

    def exchange(self, genomes: Tensor) -> None:
        """See :meth:`Strategy.exchange`; the topologies stay as they are."""
        self.genomes = self.codec.with_weights(self.genomes, self.layout.split(genomes))
        self._drawn = {**self.draw()}

    def update(self, fitness: Tensor, drawn: Any) -> None:
        """Records of the species, children, and the species of these."""
        order = torch.argsort(fitness, descending=True, stable=True)
        best = int(order[0])
        self.champion = self.layout.join({name: part[best : best + 1] for name, part in drawn.items()})[0]
        if float(fitness[best]) > self.improved[0]:
            self.improved = (float(fitness[best]), self.generation)
        numbers, member_of = self.species.unique(return_inverse=True)
        self._record(numbers, member_of, fitness)
        children = self._quotas(numbers, member_of, fitness, best)
        representatives = self._representatives(member_of, len(numbers))
        self.genomes = self._fitted(self._reproduce(fitness, order, member_of, children, best))
        alive = (children > 0).nonzero().squeeze(1)
        self._speciate(representatives.rows(alive), numbers[alive])

    def _record(self, numbers: Tensor, member_of: Tensor, fitness: Tensor) -> None:
        """Take down how fit and how large each species is."""
        highest = fitness.new_full((len(numbers),), -torch.inf).scatter_reduce(0, member_of, fitness, "amax")
        before = {number: (record, since) for number, record, since in self.records}
        records = []
        for number, value in zip(numbers.tolist(), highest.tolist(), strict=True):
            record, since = before.get(number, (-torch.inf, self.generation))
            records.append((number, value, self.generation) if value > record else (number, record, since))
        self.records = records
        sizes = torch.bincount(member_of).tolist()
        self.sizes = thinned([*self.sizes, (self.generation, list(zip(numbers.tolist(), sizes, strict=True)))])

    def _quotas(self, numbers: Tensor, member_of: Tensor, fitness: Tensor, best: int) -> Tensor:
        """Children of each species, ``[M]``, P together; that of the best member has one at least."""
        champions = fitness.new_tensor([record for _, record, _ in self.records])
        since = torch.tensor([since for _, _, since in self.records], device=fitness.device)
        allowed = self.generation - since < self.species_patience
        if self.generation - self.improved[1] > self.population_patience:
            allowed = torch.zeros_like(allowed)
            allowed[torch.argsort(champions, descending=True, stable=True)[:2]] = True
            # What is left begins anew: nothing may be fitter for as long again.
            self.improved = (self.improved[0], self.generation)
            self.records = [(number, record, self.generation) for number, record, _ in self.records]
        allowed[member_of[best]] = True
        earned = fitness - fitness.min().clamp(max=0)
        means = earned.new_zeros(len(numbers)).index_add_(0, member_of, earned) / torch.bincount(member_of)
        if not (means * allowed).any():
            means = torch.ones_like(means)
        children = quotas(means * allowed, self.population)
        if children[member_of[best]] == 0:
            children[children.argmax()] -= 1
            children[member_of[best]] = 1
        return children

    def _representatives(self, member_of: Tensor, count: int) -> Genomes:
        """A random member of each species."""
        draws = torch.rand(self.population, generator=self.generator, device=member_of.device)
        order = torch.argsort(draws, stable=True)
        by_species = order[torch.argsort(member_of[order], stable=True)]
        sizes = torch.bincount(member_of, minlength=count)
        return self.genomes.rows(by_species[sizes.cumsum(0) - sizes])

    def _reproduce(self, fitness: Tensor, order: Tensor, member_of: Tensor, children: Tensor, best: int) -> Genomes:
        """The next generation: champions that live on, and children of the fitter members of each species.

        Args:
            fitness: ``[P]``
            order: members, the fittest first, ``[P]``.
            member_of: species of each member, counted from 0, ``[P]``.
            children: of each species, ``[M]``.
            best: the fittest member.
        """
        device = fitness.device
        by_species = order[torch.argsort(member_of[order], stable=True)]
        sizes = torch.bincount(member_of, minlength=len(children))
        starts = sizes.cumsum(0) - sizes
        parents = (sizes * self.survivors).round().long().clamp(min=1)
        which = torch.repeat_interleave(children, output_size=self.population)
        place = torch.arange(self.population, device=device) - (children.cumsum(0) - children)[which]

        def draw(species: Tensor) -> Tensor:
            share = torch.rand(len(species), generator=self.generator, device=device, dtype=torch.float64)
            return by_species[starts[species] + (share * parents[species]).long()]

        def coins(rate: float) -> Tensor:
            return torch.rand(self.population, generator=self.generator, device=device) < rate

        elite = (place == 0) & ((sizes[which] > self.elite_size) | (which == member_of[best]))
        anywhere = torch.randint(len(children), (self.population,), generator=self.generator, device=device)
        anywhere = torch.where(children[anywhere] > 0, anywhere, which)
        first, second = draw(which), draw(torch.where(coins(self.interspecies), anywhere, which))
        counts = self.genomes.connection_counts
        better = (fitness[second] > fitness[first]) | (
            (fitness[second] == fitness[first]) & (counts[second] < counts[first])
        )
        two = coins(self.crossover) & (first != second) & ~elite
        first = torch.where(elite, by_species[starts[which]], first)
        fitter, other = torch.where(two & better, second, first), torch.where(better, first, second)
        born = crossover(self.genomes, fitter, other, two, self.inherited_disabled, self.generator)
        return self._mutate(born, ~elite, coins)

    def _mutate(self, born: Genomes, may: Tensor, coins: Callable[[float], Tensor]) -> Genomes:
        """Mutate the genomes that may be, each kind of mutation in a share of them."""
        generator = self.generator
        born = self._mutate_weights(born, coins(self.mutate_weights) & may)
        born = mutate_others(born, may, step=self.others_step, rate=self.mutate_others, generator=generator)
        if self.toggle_connection:
            born = toggle(born, coins(self.toggle_connection) & may, generator)
        connected, split = coins(self.add_connection) & may, coins(self.add_node) & may
        # Few genomes change their topology: only these are looked at.
        rows = (connected | split).nonzero().squeeze(1)
        chosen = add_connections(
            born.rows(rows),
            connected[rows],
            self.codec,
            self.innovations,
            step=self.weight_step,
            recurrent=self.recurrent,
            generator=generator,
        )
        chosen, self.next_node = add_nodes(chosen, split[rows], self.codec, self.innovations, self.next_node, generator)
        born.put(rows, chosen.in_order())
        return born

    def _speciate(self, representatives: Genomes, numbers: Tensor) -> None:
        self.species, self.next_species = speciate(
            self.genomes, representatives, numbers, self.next_species, self.distance, self.threshold
        )
        target = self.target_species
        if target is not None:
            count = len(self.species.unique())
            step = THRESHOLD_STEP * ((count > target) - (count < target))
            self.threshold = max(self.threshold + step, THRESHOLD_STEP)

    @property
    def best(self) -> Tensor:
        """The fittest genome of the last generation."""
        return self.champion

    def center_and_spread(self) -> tuple[Tensor, float]:
        """Of the circuit's weights, where what is not connected counts as 0."""
        variance, center = torch.var_mean(self.layout.join(self.draw()), dim=0, correction=0)
        return center, float(variance.mean().sqrt())

    def metrics(self) -> dict[str, float]:
        """See :meth:`Strategy.metrics`; also the number of species and the mean size of the networks."""
        enabled = self.genomes.enabled & self.genomes.present
        return {
            **super().metrics(),
            "species": float(len(self.species.unique())),
            "nodes": float(self.genomes.node_counts.float().mean()),
            "connections": float(enabled.sum(1).float().mean()),
            "compatibility_threshold": self.threshold,
        }

    def charts(self) -> dict[str, Chart]:
        """The members of each species in every generation so far."""
        if not self.sizes:
            return {}
        generations = [generation for generation, _ in self.sizes]
        members = [dict(sizes) for _, sizes in self.sizes]
        numbers = sorted({number for sizes in members for number in sizes})
        parts = {f"species {number}": [sizes.get(number, 0) for sizes in members] for number in numbers}
        return {"species": Areas(generations, parts, "members")}

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Strategy.state_dict`; also all genes and innovation numbers."""
        whole = self.genomes.with_room(self.room)
        genes = {f"genomes.{name}": part.clone() for name, part in whole._asdict().items()}
        return {**super().state_dict(), **genes, "innovations": self.innovations.keys()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`Strategy.load_state_dict`."""
        super().load_state_dict(state)
        device = self.genome.device
        self.genomes = self._fitted(
            Genomes(*(state[f"genomes.{name}"].to(device, copy=True) for name in Genomes._fields))
        )
        self.innovations = Innovations(state["innovations"])
        self.improved = (self.improved[0], self.improved[1])
        self.records = [(number, record, since) for number, record, since in self.records]


MAX_SIZES = 512
"""Generations whose sizes of species are kept; of more, every second one goes."""


def thinned(sizes: list[Any]) -> list[Any]:
    """The list, or every second element and the last of one that is too long."""
    return sizes if len(sizes) <= MAX_SIZES else [*sizes[:-1:2], sizes[-1]]
