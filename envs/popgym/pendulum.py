"""A pendulum to be swung up, of which one sees positions, plain or under noise (POPGym)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ...core.registry import register
from ...core.tensor_world import Outcome
from ...core.trace_field import Channels
from ...core.world import ActionPart
from ..pictures import BLUE, DARK, draw_line
from .cartpole import now
from .game import PopgymWorld

GRAVITY, SECONDS, FASTEST, TORQUE = 10.0, 0.05, 8.0, 2.0
"""As in gymnasium, of a rod of 1 kg and 1 m: m/s², how long a step takes, rad/s at most, N·m at most."""
HALF_COST = 16.2736044 / 2
"""Of a step, in gymnasium's reward: that of hanging down at full speed and torque, halved."""
SIDE, LENGTH = 60, 24
"""Pixels of a picture, and of the rod in it."""


class _Situation(NamedTuple):
    body: Tensor
    """Angle from upright and its velocity, ``[B, 2]`` in float64."""
    noise: Tensor
    """That is added to the observation at each time, ``[B, T + 1, 2]``; ``[B, 0, 2]`` if there is none."""
    time: Tensor
    """Steps taken, ``[B]``."""


class PendulumWorld(PopgymWorld[_Situation]):
    """What both tasks with a pendulum have in common."""

    steps: ClassVar[dict[str, int]] = {"easy": 200, "medium": 200, "hard": 200}
    deviations: ClassVar[dict[str, float]] = {"easy": 0.0, "medium": 0.0, "hard": 0.0}

    def setup(self) -> None:
        """Take steps and noise of the difficulty."""
        self.limit, self.deviation = self.steps[self.difficulty], self.deviations[self.difficulty]
        super().setup()

    def senses(self) -> Sequence[Channels]:
        """Where the rod points."""
        return [Channels("height", 1), Channels("side", 1)]

    def output_channels(self) -> Sequence[Channels]:
        """What turns the rod."""
        return [Channels("torque", 1)]

    def action_parts(self) -> Sequence[ActionPart]:
        """A number; see :meth:`World.action_parts`."""
        return [ActionPart("normal", 1)]

    def decide(self, outputs: Tensor) -> Tensor:
        """Torques ``[B, 1]``: the logistic function of an output, between the bounds."""
        return TORQUE * (2 * torch.sigmoid(outputs.double()) - 1)

    def check_actions(self, actions: Tensor) -> None:
        """Raise ValueError for another shape, or what is no torque."""
        shape = [len(self._running("step").terminated), 1]
        if list(actions.shape) != shape or not actions.is_floating_point() or not actions.isfinite().all():
            got = f"{actions.dtype} of shape {list(actions.shape)}"
            raise ValueError(f"actions: got {got}; allowed are finite floating-point numbers in shape {shape}")

    def shown(self, actions: Tensor) -> Tensor:
        """The torque as it is observed afterwards, ``[B, 1]``."""
        return actions.clamp(-TORQUE, TORQUE).to(torch.get_default_dtype())

    def begin(self, episodes: int, generator: torch.Generator) -> _Situation:
        """Begin anywhere, with any velocity up to 1; see :meth:`TensorWorld.begin`."""
        device = generator.device
        body = 2 * torch.rand(episodes, 2, dtype=torch.float64, generator=generator, device=device) - 1
        steps = self.limit + 1 if self.deviation else 0
        noise = self.deviation * torch.randn(episodes, steps, 2, generator=generator, device=device)
        time = torch.zeros(episodes, dtype=torch.long, device=device)
        return _Situation(body * torch.tensor([math.pi, 1.0], device=device), noise, time)

    def act(self, situation: _Situation, actions: Tensor) -> Outcome:
        """Turn for a twentieth of a second; see :meth:`TensorWorld.act`."""
        torque = actions[:, 0].double().clamp(-TORQUE, TORQUE)
        angle, speed = situation.body.unbind(-1)
        from_top = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
        cost = from_top**2 + 0.1 * speed**2 + 0.001 * torque**2
        speed = (speed + (1.5 * GRAVITY * angle.sin() + 3 * torque) * SECONDS).clamp(-FASTEST, FASTEST)
        body = torch.stack([angle + speed * SECONDS, speed], -1)
        time = situation.time + 1
        never = torch.zeros_like(time, dtype=torch.bool)
        rewards = (1 - cost / HALF_COST) / self.limit
        return Outcome(_Situation(body, situation.noise, time), rewards, never, time >= self.limit)

    def observe(self, situation: _Situation) -> Tensor:
        """Cosine and sine, with the noise of the time if there is any; see :meth:`TensorWorld.observe`."""
        angle = situation.body[:, 0]
        seen = torch.stack([angle.cos(), angle.sin()], -1).to(torch.get_default_dtype())
        return (seen + now(situation.noise, situation.time).to(seen)).clamp(-1, 1) if self.deviation else seen

    def picture(self) -> Tensor | None:
        """The rod; see :meth:`World.picture`."""
        if self.state is None:
            return None
        angle = float(self.situation.body[0, 0])
        picture, middle = torch.full((SIDE, SIDE, 3), 255, dtype=torch.uint8, device="cpu"), SIDE / 2
        end = (middle - LENGTH * math.sin(angle), middle - LENGTH * math.cos(angle))
        draw_line(picture, (middle, middle), end, 5, BLUE)
        draw_line(picture, (middle, middle), (middle, middle), 3, DARK)
        return picture


@register("env", "position-only-pendulum")
class PositionOnlyPendulumWorld(PendulumWorld):
    """A pendulum swung up by someone who sees no velocity, in 200, 150 or 100 steps.

    Observations ``[B, 2]``: cosine and sine of its angle from upright. Actions ``[B, 1]``: a torque from -2 to 2; the
    logistic function of an output between these bounds. Of T steps each gives from -1 / T to 1 / T: the more, the
    nearer it is to standing still upright without a torque. Then the episode is cut off; the best return depends on
    where it began and is below 1.
    """

    steps: ClassVar[dict[str, int]] = {"easy": 200, "medium": 150, "hard": 100}


@register("env", "noisy-position-only-pendulum")
class NoisyPositionOnlyPendulumWorld(PendulumWorld):
    """A pendulum swung up in 200 steps by someone who sees no velocity, and its position only with an error.

    Observations ``[B, 2]``: cosine and sine of its angle from upright, each with normal noise of standard deviation
    0.1, 0.2 or 0.3, within -1 and 1. Actions and rewards are those of :class:`PositionOnlyPendulumWorld`.
    """

    deviations: ClassVar[dict[str, float]] = {"easy": 0.1, "medium": 0.2, "hard": 0.3}
