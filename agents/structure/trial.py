"""Trials: whether a change is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...core.circuit import Circuit
from ...core.structure import Change, Edit, LayerEdit, Origin, Structure, after, plain, structured

if TYPE_CHECKING:
    from ..plasticity import Upkeep

LOOK_EVERY = 50
"""Steps from one look at whether harm is proven to the next: so many show damage, though not yet gain."""
TOLERANCE = 1.02
"""Times the loss without it, up to which a change does no harm: copies that begin alike soon differ by that much."""
BLOCKS = 10
"""Of steps, as which the losses of a trial are compared."""
LOST = 0.5
"""Drop of the mean reward from which on the original's rule takes a change back."""


class Verdict(NamedTuple):
    """What came of a trial."""

    kept: bool
    gain: float
    """Logarithm of how many times smaller the loss was with the change than without, in [-1, 1]."""


class Proposal(NamedTuple):
    """A change that is on trial."""

    step: int
    """At which it was made."""
    strategy: str
    situation: Tensor
    """In which it was chosen."""
    before: Structure
    layers: tuple[LayerEdit, ...]
    origins: Mapping[str, Origin]

    @classmethod
    def of(cls, step: int, strategy: str, situation: Tensor, change: Change) -> Proposal:
        """That of a change that a strategy has made."""
        return cls(step, strategy, situation, change.before, change.layers, change.origins)

    def change(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> Change:
        """The change of these parameters to those."""
        return Change(self.before, self.layers, self.origins, old, new)

    @property
    def after(self) -> Structure:
        """The structure with the change."""
        return after(self.before, self.layers)

    @property
    def grows(self) -> bool:
        """Whether there are more units with the change, rather than others in their places or fewer."""
        return sum(layer.size for layer in self.after) > sum(layer.size for layer in self.before)

    def state_dict(self) -> dict[str, Any]:
        """As plain data."""
        origins = {
            name: [origin.name, [[edit.dimension, list(edit.sources)] for edit in origin.edits]]
            for name, origin in self.origins.items()
        }
        return {
            **self._asdict(),
            "before": plain(self.before),
            "layers": [
                [edit.source, list(edit.units), edit.residual, list(edit.parents), edit.begins] for edit in self.layers
            ],
            "origins": origins,
        }

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> Proposal:
        """From :meth:`state_dict`."""
        layers = tuple(
            LayerEdit(source, tuple(units), residual, tuple(parents), *begins)
            for source, units, residual, parents, *begins in state["layers"]
        )
        origins = {
            name: Origin(former, tuple(Edit(dimension, tuple(sources)) for dimension, sources in edits))
            for name, (former, edits) in state["origins"].items()
        }
        return cls(**{**state, "before": structured(state["before"]), "layers": layers, "origins": origins})


def gain_of(without: list[float], changed: list[float]) -> float:
    """Logarithm of the ratio of two mean losses, in [-1, 1]; -1 where the changed one is not finite."""
    means = [max(sum(losses) / len(losses), 1e-12) for losses in (without, changed)]
    return max(-1.0, min(1.0, math.log(means[0] / means[1]))) if all(map(math.isfinite, means)) else -1.0


def harm_of(without: list[float], changed: list[float]) -> float:
    """How surely a loss is more than :data:`TOLERANCE` times another, in standard errors.

    Both series are cut into :data:`BLOCKS` of steps, since what a change does to one batch it does to the next as well:
    single steps would count as far more evidence than they are (the method of batch means: Law & Kelton, "Simulation
    modeling and analysis"). Of each block counts the logarithm of the ratio of its mean losses.

    Args:
        without: losses of batches.
        changed: losses of the same batches with a change.

    Returns:
        The mean over blocks, less the logarithm of the tolerance, in standard errors; infinite where a loss is not
        finite, 0 where there is only one.
    """
    both = torch.tensor([changed, without], dtype=torch.float64, device="cpu")
    if not bool(both.isfinite().all()):
        return math.inf
    blocks = min(BLOCKS, len(without))
    if blocks < 2:
        return 0.0
    means = torch.stack([part.mean(1) for part in both.tensor_split(blocks, dim=1)]).clamp(min=1e-12).log()
    ratios = means[:, 0] - means[:, 1] - math.log(TOLERANCE)
    mean, spread = float(ratios.mean()), float(ratios.std())
    if spread == 0:
        return math.copysign(math.inf, mean)
    return mean / (spread / math.sqrt(blocks))


class PairedTrial:
    """A changed copy learns beside the circuit, from the same batches; the circuit serves until the verdict is in.

    Taken back is what does proven harm: at a look every :data:`LOOK_EVERY` steps, or at the end of the trial, the loss
    is more than :data:`TOLERANCE` times that without the change by more than ``harm`` standard errors; see
    :func:`harm_of`. A change that adds nothing is also taken back if the loss over the last half of the trial is more
    than that, proven or not. Whatever the verdict, the circuit has learned as if there had been no trial.
    """

    def __init__(
        self,
        proposal: Proposal,
        circuit: Circuit,
        optimiser: Optimizer,
        upkeep: Upkeep,
        *,
        steps: int,
        harm: float,
    ) -> None:
        """
        Args:
            proposal: what is on trial.
            circuit: the changed copy.
            optimiser: of its parameters.
            upkeep: of it.
            steps: that it lasts.
            harm: standard errors that prove harm.
        """
        self.proposal, self.circuit, self.optimiser, self.upkeep = proposal, circuit, optimiser, upkeep
        self.steps, self.harm = steps, harm
        self.without: list[float] = []
        self.changed: list[float] = []

    def see(self, without: float, changed: float) -> Verdict | None:
        """Take account of the losses of one batch, without and with the change; the verdict once it is in."""
        self.without.append(without)
        self.changed.append(changed)
        count = len(self.without)
        half = slice(count // 2, None)
        late = self.without[half], self.changed[half]
        if not math.isfinite(changed):
            return Verdict(False, -1.0)
        ends = count >= self.steps
        if not ends and count % LOOK_EVERY:
            return None
        gain = gain_of(*late)
        if harm_of(self.without, self.changed) > self.harm:
            return Verdict(False, min(gain, 0.0))
        if not ends:
            return None
        return Verdict(self.proposal.grows or gain >= -math.log(TOLERANCE), gain)


class RewardTrial:
    """The original's rule: the circuit itself is changed, and restored if its mean reward has dropped by over 0.5.

    Until then, whatever is saved, tested or drawn is the changed one. What is restored is bit for bit as it was before;
    the batches of the trial are lost to it.
    """

    def __init__(self, proposal: Proposal, saved: Mapping[str, Any], reward: float, loss: float, *, steps: int) -> None:
        """
        Args:
            proposal: what is on trial.
            saved: what is restored.
            reward: mean before the change.
            loss: mean before the change.
            steps: that it lasts.
        """
        self.proposal, self.saved, self.reward, self.loss, self.steps = proposal, saved, reward, loss, steps
        self.rewards: list[float] = []
        self.changed: list[float] = []

    @property
    def without(self) -> list[float]:
        """The loss before, at every step."""
        return [self.loss] * len(self.changed)

    def see(self, reward: float, loss: float) -> Verdict | None:
        """Take account of one batch; the verdict once it is in."""
        self.rewards.append(reward)
        self.changed.append(loss)
        if len(self.rewards) < self.steps:
            return None
        dropped = self.reward - sum(self.rewards) / len(self.rewards)
        return Verdict(dropped <= LOST, gain_of(self.without, self.changed))
