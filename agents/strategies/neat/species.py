"""Species of NEAT: how far genomes are apart, which belong together, and how many children each group may have."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .genomes import Genomes, Markers, matches

AT_ONCE = 2**17
"""Connections that are compared at a time."""


class Distance(NamedTuple):
    """How far two genomes are apart: ``excess E / N + disjoint D / N + weights W`` (equation 1 of the paper).

    E connections are newer than all of the other genome, D more are in one genome alone, W is the mean difference of
    the weights of matching ones, and N the connections of the larger genome (1 if both have fewer than ``small``).
    """

    excess: float = 1.0
    disjoint: float = 1.0
    weights: float = 0.4
    small: int = 20

    def __call__(self, representatives: Markers, genomes: Markers) -> Tensor:
        """Distances of M representatives and P genomes, ``[M, P]``."""
        count, many = len(genomes.counts), len(representatives.counts)
        at, matching = matches(genomes.innovations.flatten().expand(many, -1), representatives.innovations)
        difference = (representatives.weights.gather(1, at) - genomes.weights.flatten()).abs_().mul_(matching)
        common = matching.view(many, count, -1).sum(2)
        weights = difference.view(many, count, -1).sum(2) / common.clamp(min=1)
        own, other = genomes.counts, representatives.counts.unsqueeze(1)
        # What is not newer than the newest of the other genome: empty room is newer than anything.
        here = torch.searchsorted(
            genomes.innovations, representatives.newest.expand(count, -1).contiguous(), right=True
        ).T
        there = torch.searchsorted(
            representatives.innovations, genomes.newest.expand(many, -1).contiguous(), right=True
        )
        excess = own - here + other - there
        disjoint = own + other - 2 * common - excess
        size = torch.maximum(own, other)
        size = torch.where(size < self.small, 1, size)
        return (self.excess * excess + self.disjoint * disjoint) / size + self.weights * weights


def speciate(
    genomes: Genomes, representatives: Genomes, numbers: Tensor, next_number: int, distance: Distance, threshold: float
) -> tuple[Tensor, int]:
    """Put each genome into the first species whose representative is nearer than the threshold, or into a new one.

    Args:
        genomes: P of them.
        representatives: one for each of M species.
        numbers: of these species, ``[M]``.
        next_number: of the next new species.
        distance: how far genomes are apart.
        threshold: of the distance.

    Returns:
        Number of each genome's species, ``[P]``, and the number of the next new species.
    """
    species = torch.full((len(genomes.nodes),), -1, device=genomes.nodes.device)
    markers = Markers.of(genomes)
    known, homeless = Markers.of(representatives), torch.arange(len(species), device=species.device)
    start = 0
    while start < len(numbers) and len(homeless):
        # Few representatives at a time where genomes are many: most find their species among the first.
        stop = start + max(1, AT_ONCE // (len(homeless) * markers.innovations.shape[1]))
        some = torch.arange(start, min(stop, len(numbers)), device=species.device)
        near = distance(known.rows(some), markers.rows(homeless)) < threshold
        first = near.to(torch.uint8).argmax(0)
        species[homeless] = torch.where(near.any(0), numbers[some][first], -1)
        homeless = homeless[~near.any(0)]
        start = stop
    while len(homeless):
        rest = markers.rows(homeless)
        near = distance(rest.rows(homeless.new_zeros(1)), rest)[0] < threshold
        near[0] = True
        species[homeless[near]] = next_number
        homeless = homeless[~near]
        next_number += 1
    return species, next_number


def quotas(shares: Tensor, children: int) -> Tensor:
    """How many children each species has: whole numbers in proportion to its share that sum up to ``children``.

    What rounding down leaves over goes to the largest remainders, of equal ones to the first.

    Args:
        shares: none negative, ``[M]`` float64; all as much where they are all 0.
        children: to hand out.
    """
    total = shares.sum()
    shares = torch.ones_like(shares) if not total > 0 else shares
    exact = shares / shares.sum() * children
    whole = exact.floor()
    left = children - int(whole.sum())
    order = torch.argsort(exact - whole, descending=True, stable=True)
    whole[order[:left]] += 1
    return whole.long()
