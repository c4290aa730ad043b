"""Species of NEAT: how far genomes are apart, which belong together, and how many children each group may have."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .genomes import Genomes, matches


class Distance(NamedTuple):
    """How far two genomes are apart: ``excess E / N + disjoint D / N + weights W`` (equation 1 of the paper).

    E connections are newer than all of the other genome, D more are in one genome alone, W is the mean difference of
    the weights of matching ones, and N the connections of the larger genome (1 if both have fewer than ``small``).
    """

    excess: float = 1.0
    disjoint: float = 1.0
    weights: float = 0.4
    small: int = 20

    def __call__(self, representatives: Genomes, genomes: Genomes) -> Tensor:
        """Distances of M representatives and P genomes, ``[M, P]``."""
        count, connections = genomes.innovations.shape
        many = len(representatives.nodes)
        mine = genomes.innovations.flatten().expand(many, -1)
        at, matching = matches(mine, representatives.innovations)
        difference = (representatives.weights.gather(1, at) - genomes.weights.flatten()).abs() * matching
        matching = matching.view(many, count, connections)
        common = matching.sum(2)
        weights = difference.view(many, count, connections).sum(2) / common.clamp(min=1)
        own, other = genomes.connection_counts, representatives.connection_counts
        # The newest connection of each, -1 where there is none.
        newest = genomes.innovations.masked_fill(~genomes.present, -1).amax(1)
        newest_other = representatives.innovations.masked_fill(~representatives.present, -1).amax(1)
        newer = ((genomes.innovations > newest_other.view(-1, 1, 1)) & genomes.present).sum(2)
        older = torch.searchsorted(representatives.innovations, newest.expand(many, -1).contiguous(), right=True)
        excess = newer + (other.unsqueeze(1) - torch.minimum(older, other.unsqueeze(1)))
        disjoint = own + other.unsqueeze(1) - 2 * common - excess
        size = torch.maximum(own.expand(many, -1), other.unsqueeze(1))
        size = torch.where(size < self.small, torch.ones_like(size), size).clamp(min=1)
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
    genomes, representatives = genomes.packed(), representatives.packed()
    if len(numbers):
        near = distance(representatives, genomes) < threshold
        first = near.to(torch.uint8).argmax(0)
        species = torch.where(near.any(0), numbers[first], species)
    while (homeless := (species < 0).nonzero().squeeze(1)).numel():
        rest = genomes.rows(homeless)
        near = distance(rest.rows(homeless.new_zeros(1)), rest)[0] < threshold
        near[0] = True
        species[homeless[near]] = next_number
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
