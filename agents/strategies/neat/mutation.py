"""Mutations of NEAT (Stanley & Miikkulainen 2002, sections 3.1 and 4.1), of many genomes at once.

Each function takes K genomes that it may change, and draws what it needs from a generator. New connections come last:
when all is done, the genomes are to be put in order (:meth:`Genomes.in_order`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .genomes import Codec, Genomes, Innovations

MIN_INTERVAL = 1e-9
"""A forward connection between places that are closer than this is not split: numbers have no room between them."""


def uniform(size: tuple[int, ...], step: float, genomes: Genomes, generator: torch.Generator) -> Tensor:
    """Even draws from [-step, step)."""
    weights = genomes.weights
    return torch.rand(size, generator=generator, device=weights.device, dtype=weights.dtype).mul_(2).sub_(1).mul_(step)


def mutate_weights(
    genomes: Genomes, rows: Tensor, *, step: float, replaced: float, limit: float, generator: torch.Generator
) -> Genomes:
    """Shift every connection's weight by up to ``step``; a share of them is drawn anew from [-step, step).

    Weights stay within ``limit`` to either side.

    Args:
        genomes: to change.
        rows: which of them, bool ``[K]``.
        step, replaced, limit: see above.
        generator: the source of randomness.
    """
    shape = tuple(genomes.weights.shape)
    drawn = uniform(shape, step, genomes, generator)
    anew = torch.rand(shape, generator=generator, device=drawn.device) < replaced
    weights = torch.where(anew, drawn, genomes.weights + drawn).clamp_(-limit, limit)
    return genomes._replace(weights=torch.where(genomes.present & rows.unsqueeze(1), weights, genomes.weights))


def mutate_others(genomes: Genomes, rows: Tensor, *, step: float, rate: float, generator: torch.Generator) -> Genomes:
    """Add Gaussian noise to a share of the weights that are no connections, in some rows, bool ``[K]``."""
    if not genomes.others.shape[1]:
        return genomes
    others = genomes.others
    noise = torch.randn(others.shape, generator=generator, device=others.device, dtype=others.dtype)
    touched = torch.rand(others.shape, generator=generator, device=others.device) < rate
    return genomes._replace(others=others + step * noise * (touched & rows.unsqueeze(1)))


def choose(candidates: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One candidate of each row, all as likely.

    Args:
        candidates: bool ``[K, M]``.
        generator: the source of randomness.

    Returns:
        Their columns, and whether there was any, ``[K]`` both.
    """
    draws = torch.rand(candidates.shape, generator=generator, device=candidates.device)
    return draws.masked_fill_(~candidates, -1.0).argmax(1), candidates.any(1)


def toggle(genomes: Genomes, rows: Tensor, generator: torch.Generator) -> Genomes:
    """Disable or enable one connection of some genomes, bool ``[K]``."""
    column, found = choose(genomes.present & rows.unsqueeze(1), generator)
    chosen = torch.zeros_like(genomes.enabled).scatter_(1, column.unsqueeze(1), found.unsqueeze(1))
    return genomes._replace(enabled=genomes.enabled ^ chosen)


def add_connections(
    genomes: Genomes,
    wanted: Tensor,
    codec: Codec,
    innovations: Innovations,
    *,
    step: float,
    recurrent: float,
    generator: torch.Generator,
) -> Genomes:
    """Connect two nodes of each genome that were not connected that way; the weight is drawn from [-step, step).

    Args:
        genomes: to change; one that has no room or no such pair stays as it is.
        wanted: which of them, bool ``[K]``.
        codec: of the network.
        innovations: gives the connections their numbers.
        step: largest weight.
        recurrent: how likely a recurrent connection is looked for rather than a forward one.
        generator: the source of randomness.
    """
    count, device = len(genomes.nodes), genomes.nodes.device
    places = codec.all_places(genomes)
    forward = places.unsqueeze(1) < places[:, codec.first :].unsqueeze(2)
    exists = places.isfinite()
    looked_for = torch.rand(count, 1, 1, generator=generator, device=device) < recurrent
    allowed = (forward ^ looked_for) & exists.unsqueeze(1) & exists[:, codec.first :].unsqueeze(2)
    size = codec.targets * codec.sources
    # What is no connection is marked in one more column, which is cut off.
    index = torch.where(genomes.present, genomes.targets * codec.sources + genomes.sources, size)
    taken = torch.zeros(count, size + 1, dtype=torch.bool, device=device).scatter_(1, index, True)
    counts = genomes.connection_counts
    chosen, found = choose(allowed.flatten(1) & ~taken[:, :size], generator)
    weights = uniform((count,), step, genomes, generator)
    rows = (found & wanted & (counts < genomes.weights.shape[1])).nonzero().squeeze(1)
    sources, targets, at = chosen[rows] % codec.sources, chosen[rows] // codec.sources, counts[rows]
    numbers = codec.node_numbers(genomes)
    genomes.innovations[rows, at] = innovations.numbers(numbers[rows, sources], numbers[rows, codec.first + targets])
    genomes.sources[rows, at] = sources
    genomes.targets[rows, at] = targets
    genomes.weights[rows, at] = weights[rows]
    genomes.enabled[rows, at] = True
    return genomes


def add_nodes(
    genomes: Genomes, wanted: Tensor, codec: Codec, innovations: Innovations, next_node: int, generator: torch.Generator
) -> tuple[Genomes, int]:
    """Split an enabled connection of each genome by a new node: the way in weighs 1, the way out what it weighed.

    The same connection split in several genomes gives the same node in all of them, at the same place.

    Args:
        genomes: to change; one that has no room or nothing to split stays as it is. What leaves the bias is not split.
        wanted: which of them, bool ``[K]``.
        codec: of the network.
        innovations: gives the connections their numbers.
        next_node: number of the next new node.
        generator: the source of randomness.

    Returns:
        The genomes, and the number of the next new node.
    """
    counts, nodes = genomes.connection_counts, genomes.node_counts
    places = codec.all_places(genomes)
    start = places.gather(1, genomes.sources)
    end = places.gather(1, genomes.targets + codec.first)
    wide = (start - end).abs() > MIN_INTERVAL
    splittable = genomes.present & genomes.enabled & (genomes.sources > 0) & (wide | (start == end))
    column, found = choose(splittable, generator)
    room = (counts + 2 <= genomes.weights.shape[1]) & (nodes < codec.hidden)
    rows = (found & wanted & room).nonzero().squeeze(1)
    column, node, at = column[rows], nodes[rows], counts[rows]
    split, which = genomes.innovations[rows, column].unique(return_inverse=True)
    share = torch.rand(len(split), generator=generator, device=rows.device, dtype=torch.float64)[which]
    low = torch.minimum(start[rows, column], end[rows, column])
    high = torch.maximum(start[rows, column], end[rows, column])
    # Of a node with itself, or of one output with another: any place before them.
    low = torch.where(low == high, torch.zeros_like(low), low)
    genomes.nodes[rows, node] = next_node + which
    genomes.places[rows, node] = low + (0.25 + 0.5 * share) * (high - low)
    genomes.enabled[rows, column] = False
    old_source, old_target, weight = (
        part[rows, column].clone() for part in (genomes.sources, genomes.targets, genomes.weights)
    )
    numbers = codec.node_numbers(genomes)
    for offset, source, target, value in (
        (0, old_source, node, torch.ones_like(weight)),
        (1, codec.first + node, old_target, weight),
    ):
        genomes.innovations[rows, at + offset] = innovations.numbers(
            numbers[rows, source], numbers[rows, codec.first + target]
        )
        genomes.sources[rows, at + offset] = source
        genomes.targets[rows, at + offset] = target
        genomes.weights[rows, at + offset] = value
        genomes.enabled[rows, at + offset] = True
    return genomes, next_node + len(split)
