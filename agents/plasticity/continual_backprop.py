"""Continual backprop (Dohare et al. 2024, "Loss of plasticity in deep continual learning", Nature 632)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ...core.circuit import Circuit
from ...core.options import LARGEST_STEP
from ...core.registry import register
from ...core.structure import FRESH, Change, follow_units
from .base import PlasticityMethod, Update
from .units import Group, contributions, renew, renewable


@register("plasticity", "continual-backprop")
class ContinualBackprop(PlasticityMethod):
    """All along, a few of the least useful units are made new (Methods, algorithm 1), but of layers of which something
    is frozen.

    A unit is worth an average over time of its mean magnitude times the sum of the weights that read it. Of the units
    of a layer that are old enough, a small share is due at each update: whenever these add up to one, the least useful
    of them gets fresh incoming weights, and outgoing weights of zero. What it gave on average is taken up by the
    thresholds of its readers, as in the published code.

    What layers give is free to see in a feed-forward circuit; in another one a look is one more forward pass.
    """

    remembered: ClassVar[tuple[str, ...]] = ("utilities", "means", "ages", "times_seen", "due")
    judges_units: ClassVar[bool] = True

    replacement_rate: float = Field(
        default=1e-4, gt=0, le=1, description="share of a layer's units of age that are made new at each update"
    )
    maturity: int = Field(
        default=100, ge=0, le=LARGEST_STEP, description="updates during which a new unit is not judged"
    )
    decay: float = Field(default=0.99, ge=0, lt=1, description="share of the averages that is kept at each look")
    look_every: int = Field(
        default=1, ge=1, le=LARGEST_STEP, description="updates from one look at the units to the next"
    )

    def begin(self, circuit: Circuit, generator: torch.Generator) -> None:
        """See :meth:`PlasticityMethod.begin`."""
        like, structure = next(circuit.parameters()), circuit.structure()
        self.utilities = [like.new_zeros(layer.size) for layer in structure]
        """Average of what each unit of each layer contributes; that of a group is kept with its lowest layer."""
        self.means = [like.new_zeros(layer.size) for layer in structure]
        """Average of what each unit of each layer gives."""
        self.ages = [torch.zeros(layer.size, dtype=torch.long, device=like.device) for layer in structure]
        """Updates since each unit of each layer was new."""
        self.times_seen = [age.clone() for age in self.ages]
        """Looks at it since then."""
        self.due = [0.0] * len(structure)
        """Units of each layer that are to be made new, a share of one."""

    def looks(self, step: int) -> bool:
        """See :meth:`PlasticityMethod.looks`."""
        return step % self.look_every == 0

    @torch.no_grad()
    def after_update(self, update: Update) -> None:
        """Judge the units by what they gave and the weights as they are now; make new what is due."""
        activity, chosen = update.activity, []
        for mean, given in zip(self.means, activity.means, strict=True) if activity else ():
            mean.mul_(self.decay).add_(given, alpha=1 - self.decay)
        for group in renewable(update.circuit):
            lowest = group.layers[0]
            if activity:
                worth = contributions(update.circuit, group, activity)
                self.utilities[lowest].mul_(self.decay).add_(worth, alpha=1 - self.decay)
                self.times_seen[lowest] += 1
            age = self.ages[lowest].add_(1)
            ready = (age > self.maturity).nonzero().flatten()
            self.due[lowest] += self.replacement_rate * len(ready)
            count = min(int(self.due[lowest]), len(ready))
            if count:
                self.due[lowest] -= count
                ranked = (self.utilities[lowest] / self._seen(lowest))[ready].argsort(stable=True)
                chosen.append((group, ready[ranked[:count]].sort().values))
        generator = update.generator() if chosen else None
        for group, units in chosen:
            self._renew(update, group, units, generator)

    def _seen(self, layer: int) -> Tensor:
        """How much of its averages is what was seen of each unit of a layer, the lowest of its group."""
        seen: Tensor = 1 - self.decay ** self.times_seen[layer].clamp(min=1).to(self.means[0])
        return seen

    def _renew(self, update: Update, group: Group, units: Tensor, generator: Any) -> None:
        seen = self._seen(group.layers[0])
        means = [mean / seen if index in group.layers else mean for index, mean in enumerate(self.means)]
        renew(update.circuit, update.optimiser, group, units, generator, means, update.connections)
        for layer in group.layers:
            for kept in (self.utilities[layer], self.means[layer], self.ages[layer], self.times_seen[layer]):
                kept[units] = 0

    def follow(self, change: Change) -> None:
        """See :meth:`PlasticityMethod.follow`; added units are new."""
        self.utilities = follow_units(change, self.utilities)
        self.means = follow_units(change, self.means)
        self.ages = follow_units(change, self.ages)
        self.times_seen = follow_units(change, self.times_seen)
        self.due = [self.due[edit.source] if edit.source != FRESH else 0.0 for edit in change.layers]
