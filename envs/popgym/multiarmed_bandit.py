"""Bandits with many arms: find out which pays best, and stay with it (POPGym)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ...core.registry import register
from ...core.tensor_world import Outcome, at, one_hot
from ...core.trace_field import Channels
from .game import PopgymWorld, for_and_against


class _Situation(NamedTuple):
    chances: Tensor
    """That an arm pays, ``[B, K]``."""
    luck: Tensor
    """An arm pays at a time if its chance is larger, ``[B, T]``."""
    paid: Tensor
    """Whether the last one did, ``[B]``."""
    time: Tensor
    """Arms pulled, ``[B]``."""


@register("env", "multiarmed-bandit")
class MultiarmedBanditWorld(PopgymWorld[_Situation]):
    """10, 20 or 30 arms, each of which pays with a chance of its own, anew in each episode of 200, 400 or 600 steps.

    Observations ``[B, 2]``: whether the last arm did not pay or did, one-hot, and then which it was. Actions: an arm.
    Of T steps, each gives 1 / T if the arm pays, else takes it; then the episode is cut off. The best return is below
    1.
    """

    arms_and_steps: ClassVar[dict[str, tuple[int, int]]] = {"easy": (10, 200), "medium": (20, 400), "hard": (30, 600)}
    previous_action: bool = True

    def setup(self) -> None:
        """Count arms and steps."""
        self.arms, self.steps = self.arms_and_steps[self.difficulty]
        super().setup()

    def senses(self) -> Sequence[Channels]:
        """The last arm's luck."""
        return [Channels("arm", 2, ("lost", "paid"))]

    def output_channels(self) -> Sequence[Channels]:
        """An arm."""
        return [Channels("arm", self.arms, tuple(map(str, range(1, self.arms + 1))), choice=True)]

    def begin(self, episodes: int, generator: torch.Generator) -> _Situation:
        """Draw how well each arm pays; see :meth:`TensorWorld.begin`."""
        device = generator.device
        chances = torch.rand(episodes, self.arms, generator=generator, device=device)
        luck = torch.rand(episodes, self.steps, generator=generator, device=device)
        none = torch.zeros(episodes, dtype=torch.bool, device=device)
        return _Situation(chances, luck, none, none.long())

    def act(self, situation: _Situation, actions: Tensor) -> Outcome:
        """Pull an arm; see :meth:`TensorWorld.act`."""
        luck = at(situation.luck, situation.time.clamp(max=self.steps - 1))
        paid = luck < at(situation.chances, actions)
        time = situation.time + 1
        rewards = for_and_against(paid, 1 / self.steps)
        return Outcome(situation._replace(paid=paid, time=time), rewards, torch.zeros_like(paid), time >= self.steps)

    def observe(self, situation: _Situation) -> Tensor:
        """Whether the last arm paid; see :meth:`TensorWorld.observe`."""
        return one_hot(situation.paid.long(), 2)
