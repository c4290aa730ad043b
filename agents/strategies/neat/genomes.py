"""Genomes of NEAT as padded tensors: a whole population is a few tensors, after TensorNEAT (arXiv 2404.01817).

P genomes, H hidden nodes and C connections that there is room for, I inputs, O outputs, S = 1 + I + H + O sources (the
first is a constant 1), R other weights of the circuit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ....core.topology import HIDDEN_WEIGHT, OUTPUT_WEIGHT
from ...genome import Layout

EMPTY = torch.iinfo(torch.int64).max
"""Innovation number and node number where there is no gene: sorts behind all others."""

_KEY = 2**31
"""A connection's key is its source's number times this, and its target's number."""


class Genomes(NamedTuple):
    """Genes of P genomes. A genome's connections lie in the order of their innovation numbers."""

    nodes: Tensor
    """Number of each hidden node, in the order in which the genome got them, ``[P, H]``; EMPTY where there is none."""
    places: Tensor
    """Between 0, the inputs, and 1, the outputs, ``[P, H]`` float64: a connection that does not lead to a higher place
    is recurrent. inf where there is no node."""
    innovations: Tensor
    """``[P, C]``; EMPTY where there is no connection."""
    sources: Tensor
    """Index among the S sources, hidden nodes in the order of ``nodes``, ``[P, C]``."""
    targets: Tensor
    """Index among the H + O targets, ``[P, C]``."""
    weights: Tensor
    """``[P, C]``"""
    enabled: Tensor
    """bool ``[P, C]``"""
    others: Tensor
    """The weights of the circuit that are no connections of the network (heads, output layer), ``[P, R]``."""

    def rows(self, index: Tensor) -> Genomes:
        """Copies of the genomes of these indices."""
        return Genomes(*(part.index_select(0, index) for part in self))

    def put(self, index: Tensor, genomes: Genomes) -> None:
        """Put genomes in the place of those of these indices."""
        for part, other in zip(self, genomes, strict=True):
            part.index_copy_(0, index, other)

    @property
    def present(self) -> Tensor:
        """Where there is a connection, bool ``[P, C]``."""
        return self.innovations != EMPTY

    @property
    def connection_counts(self) -> Tensor:
        """Connections of each genome, enabled or not, ``[P]``."""
        return self.present.sum(1)

    @property
    def node_counts(self) -> Tensor:
        """Hidden nodes of each genome, ``[P]``."""
        return (self.nodes != EMPTY).sum(1)

    def with_room(self, room: int) -> Genomes:
        """The same genomes with room for that many connections, which must be enough for all that there are."""
        count, before = self.innovations.shape
        if room == before:
            return self
        if room < before:
            return self._replace(**{name: getattr(self, name)[:, :room].contiguous() for name in CONNECTIONS})
        added = {name: getattr(self, name).new_zeros(count, room - before) for name in CONNECTIONS}
        added["innovations"].fill_(EMPTY)
        return self._replace(**{name: torch.cat([getattr(self, name), part], 1) for name, part in added.items()})

    def in_order(self) -> Genomes:
        """The same genomes after their connections were put in the order of their innovation numbers."""
        innovations, order = self.innovations.sort(1)
        return self._replace(
            innovations=innovations,
            **{name: getattr(self, name).gather(1, order) for name in ("sources", "targets", "weights", "enabled")},
        )


CONNECTIONS = ("innovations", "sources", "targets", "weights", "enabled")
"""The parts of genomes that have an entry for each connection."""


class Markers(NamedTuple):
    """What distances between genomes are made of, without unused room: C is the connections of the largest."""

    innovations: Tensor
    """``[P, C]``; EMPTY where there is no connection."""
    weights: Tensor
    """``[P, C]``"""
    counts: Tensor
    """Connections of each genome, ``[P]``."""
    newest: Tensor
    """Highest innovation number of each genome, -1 without connections, ``[P]``."""

    @classmethod
    def of(cls, genomes: Genomes) -> Markers:
        """The markers of genomes."""
        counts = genomes.connection_counts
        room = max(int(counts.max()), 1) if len(counts) else 1
        innovations = genomes.innovations[:, :room].contiguous()
        newest = innovations.gather(1, (counts - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
        newest = torch.where(counts > 0, newest, -1)
        return cls(innovations, genomes.weights[:, :room].contiguous(), counts, newest)

    def rows(self, index: Tensor) -> Markers:
        """Those of the genomes of these indices."""
        return Markers(*(part.index_select(0, index) for part in self))


class Innovations:
    """Innovation numbers: one for each pair of nodes that was ever connected, in the order of appearance.

    One table for the whole run (the paper keeps one for each generation): so no genome can ever get the same
    connection under two numbers.
    """

    def __init__(self, keys: Iterable[int] = ()) -> None:
        """
        Args:
            keys: of the connections that have numbers already, in the order of these.
        """
        self._numbers = {key: number for number, key in enumerate(keys)}

    def __len__(self) -> int:
        """Numbers given so far."""
        return len(self._numbers)

    def keys(self) -> list[int]:
        """The keys from which the same table can be made again."""
        return list(self._numbers)

    def numbers(self, sources: Tensor, targets: Tensor) -> Tensor:
        """The innovation numbers of connections; new pairs get new ones.

        Args:
            sources, targets: numbers of the nodes, ``[K]`` each.

        Returns:
            ``[K]``
        """
        keys = (sources * _KEY + targets).tolist()
        found = [self._numbers.setdefault(key, len(self._numbers)) for key in keys]
        return torch.tensor(found, dtype=torch.long, device=sources.device)


class Codec:
    """Between genes and the weights of a circuit that has one :class:`~papertape.core.topology.TopologyNetwork`."""

    def __init__(self, layout: Layout) -> None:
        """
        Args:
            layout: of the circuit's parameters.

        Raises:
            ValueError: there is no such network among them, or more than one.
        """
        found = [name[: -len(HIDDEN_WEIGHT)] for name in layout.shapes if name.endswith(HIDDEN_WEIGHT)]
        if len(found) != 1:
            raise ValueError(
                f"strategy: got neat, which evolves one network of any topology, of which there are {len(found)}; it "
                "needs circuit type neat, or a controller of type neat"
            )
        self.layout = layout
        self.names = (found[0] + HIDDEN_WEIGHT, found[0] + OUTPUT_WEIGHT)
        (self.hidden, self.sources), (self.outputs, _) = (layout.shapes[name] for name in self.names)
        self.targets = self.hidden + self.outputs
        self.first = self.sources - self.targets
        """1 + I, sources that are no targets."""
        others = {name: shape for name, shape in layout.shapes.items() if name not in self.names}
        self.others = Layout(others) if others else None

    @property
    def fixed_nodes(self) -> int:
        """Nodes that every genome has; hidden nodes are numbered from here on."""
        return self.first + self.outputs

    def node_numbers(self, genomes: Genomes) -> Tensor:
        """The number of each source, ``[P, S]``; EMPTY where there is none."""
        fixed = torch.arange(self.fixed_nodes, device=genomes.nodes.device).expand(len(genomes.nodes), -1)
        return torch.cat([fixed[:, : self.first], genomes.nodes, fixed[:, self.first :]], 1)

    def all_places(self, genomes: Genomes) -> Tensor:
        """The place of each source, ``[P, S]``; inf where there is none."""
        count = len(genomes.places)
        return torch.cat(
            [genomes.places.new_zeros(count, self.first), genomes.places, genomes.places.new_ones(count, self.outputs)],
            1,
        )

    def stacks(self, genomes: Genomes) -> dict[str, Tensor]:
        """The circuit's parameters of each genome, by name ``[P, *S]``; hidden nodes in the order of their places."""
        count, index = len(genomes.nodes), self._index(genomes)
        values = torch.where(genomes.present & genomes.enabled, genomes.weights, torch.zeros_like(genomes.weights))
        matrix = genomes.weights.new_zeros(count, self.targets * self.sources).scatter_add_(1, index, values)
        matrix = matrix.view(count, self.targets, self.sources)
        parts = {} if self.others is None else self.others.split(genomes.others)
        parts |= {self.names[0]: matrix[:, : self.hidden], self.names[1]: matrix[:, self.hidden :]}
        return {name: parts[name] for name in self.layout.shapes}

    def _index(self, genomes: Genomes) -> Tensor:
        """Where each connection is in the flattened weights of all targets, ``[P, C]``."""
        ranks = genomes.places.argsort(dim=1, stable=True).argsort(dim=1)
        fixed = torch.arange(self.sources, device=ranks.device).expand(len(ranks), -1)
        slots = torch.cat([fixed[:, : self.first], self.first + ranks, fixed[:, self.first + self.hidden :]], 1)
        row = slots.gather(1, genomes.targets + self.first) - self.first
        return row * self.sources + slots.gather(1, genomes.sources)

    def with_weights(self, genomes: Genomes, stacks: Mapping[str, Tensor]) -> Genomes:
        """The same genomes with the weights that the circuits have now; what is not enabled keeps its own.

        Args:
            genomes: as they were for :meth:`stacks`.
            stacks: the circuit's parameters of each genome, by name ``[P, *S]``.
        """
        matrix = torch.cat([stacks[name] for name in self.names], 1).flatten(1)
        found = matrix.gather(1, self._index(genomes))
        weights = torch.where(genomes.present & genomes.enabled, found, genomes.weights)
        others = genomes.others if self.others is None else self.others.join(stacks)
        return genomes._replace(weights=weights, others=others)

    def first_genome(self, weights: Tensor, max_connections: int | None) -> tuple[Genomes, Innovations, int]:
        """One genome whose network is that of a circuit, the innovation numbers of its connections, the next node's.

        Args:
            weights: of the circuit, ``[D]``.
            max_connections: C; None makes room for six more for each hidden node that there is room for.

        Raises:
            ValueError: the circuit has more connections than there is room for.
        """
        parts = self.layout.split(weights)
        matrix = torch.cat([parts[name] for name in self.names])
        targets, sources = matrix.nonzero().unbind(1)
        count = len(targets)
        room = min(count + 6 * self.hidden, matrix.numel()) if max_connections is None else max_connections
        if count > room:
            raise ValueError(f"max_connections: got {room}; the circuit has {count} to begin with")
        slots = torch.cat([targets, sources - self.first])
        slots = slots[(slots >= 0) & (slots < self.hidden)].unique()
        local = torch.arange(self.targets, device=weights.device)
        local[slots] = torch.arange(len(slots), device=weights.device)
        # Slots that no connection uses lie behind, so that every hidden node keeps an index below H.
        targets = local[targets]
        sources = torch.where(sources < self.first, sources, self.first + local[(sources - self.first).clamp(min=0)])
        nodes = torch.full((1, self.hidden), EMPTY, device=weights.device)
        nodes[0, : len(slots)] = self.fixed_nodes + torch.arange(len(slots), device=weights.device)
        places = torch.full((1, self.hidden), torch.inf, dtype=torch.float64, device=weights.device)
        places[0, : len(slots)] = (slots + 1).double() / (self.hidden + 1)
        padding = room - count

        def padded(part: Tensor, value: float) -> Tensor:
            return torch.cat([part, part.new_full((padding,), value)]).unsqueeze(0)

        others = weights.new_empty(1, 0)
        if self.others is not None:
            others = self.others.join({name: parts[name].unsqueeze(0) for name in self.others.shapes})
        genome = Genomes(
            nodes,
            places,
            torch.full((1, room), EMPTY, device=weights.device),
            padded(sources, 0),
            padded(targets, 0),
            padded(matrix[matrix != 0], 0),
            padded(torch.ones(count, dtype=torch.bool, device=weights.device), False),
            others,
        )
        innovations = Innovations()
        numbers = self.node_numbers(genome)[0]
        genome.innovations[0, :count] = innovations.numbers(numbers[sources], numbers[targets + self.first])
        return genome, innovations, self.fixed_nodes + len(slots)


def matches(mine: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Where other genomes have the connections of mine.

    Args:
        mine: innovation numbers, ``[K, …]``.
        others: ascending, ``[K, C]``.

    Returns:
        Index in ``others`` of each connection, and whether it is there, ``[K, …]`` both.
    """
    at = torch.searchsorted(others, mine.contiguous()).clamp_(max=others.shape[1] - 1)
    return at, (others.gather(1, at) == mine) & (mine != EMPTY)


def crossover(
    genomes: Genomes, fitter: Tensor, other: Tensor, two: Tensor, disabled_rate: float, generator: torch.Generator
) -> Genomes:
    """Children of pairs: matching connections from either parent, disjoint and excess ones from the fitter.

    So a child has the topology of its fitter parent. A connection that is disabled in either parent is so in the child
    with ``disabled_rate`` (Stanley & Miikkulainen 2002, section 3.2). Other weights come from either.

    Args:
        genomes: parents.
        fitter: index of the fitter parent of each child, ``[K]``.
        other: index of the other one, ``[K]``.
        two: bool ``[K]``; where it is False the child is a copy of the first.
        disabled_rate: see above.
        generator: the source of randomness.
    """
    children = genomes.rows(fitter)
    weights, enabled = genomes.weights.index_select(0, other), genomes.enabled.index_select(0, other)
    at, matching = matches(children.innovations, genomes.innovations.index_select(0, other))
    both = two.unsqueeze(1)
    coins = torch.rand((2, *at.shape), generator=generator, device=at.device)
    taken = matching & (coins[0] < 0.5) & both
    disabled = ~children.enabled | (matching & ~enabled.gather(1, at))
    drawn = ~(disabled & (coins[1] < disabled_rate)) & children.present
    others = children.others
    if others.shape[1]:
        coins = torch.rand(others.shape, generator=generator, device=at.device)
        others = torch.where((coins < 0.5) & both, genomes.others.index_select(0, other), others)
    return children._replace(
        weights=torch.where(taken, weights.gather(1, at), children.weights),
        enabled=torch.where(both, drawn, children.enabled),
        others=others,
    )
