"""ReDo (Sokar et al. 2023, "The dormant neuron phenomenon in deep reinforcement learning")."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ...core.options import LARGEST_STEP
from ...core.registry import register
from .base import PlasticityMethod, Update
from .units import renew, renewable, scores

DORMANT = 0.025
"""Score up to which a unit is called dormant where a run reports their share (Sokar et al. 2023, section 3)."""


@register("plasticity", "redo")
class ReDo(PlasticityMethod):
    """Every so often, all dormant units are made new (algorithm 1), but of layers of which something is frozen.

    A unit is dormant if its mean magnitude over the batch is at most a small share of its layer's mean. It gets fresh
    incoming weights, and outgoing weights of zero.
    """

    judges_units: ClassVar[bool] = True

    every: int = Field(
        default=1000, ge=1, le=LARGEST_STEP, description="updates from one look at the units to the next"
    )
    threshold: float = Field(
        default=DORMANT,
        ge=0,
        lt=1,
        description="mean magnitude of a unit, as a multiple of its layer's mean, up to which it is dormant",
    )

    def looks(self, step: int) -> bool:
        """See :meth:`PlasticityMethod.looks`."""
        return step % self.every == 0

    def after_update(self, update: Update) -> None:
        """Make the dormant units new."""
        if update.activity is None:
            return
        generator = update.generator()
        for group in renewable(update.circuit):
            dormant = (scores(update.activity, group.layers) <= self.threshold).nonzero().flatten()
            if len(dormant):
                renew(update.circuit, update.optimiser, group, dormant, generator, connections=update.connections)
