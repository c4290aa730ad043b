"""A pole on a cart, of which one sees positions, velocities, or positions under noise (POPGym)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ...core.registry import register
from ...core.tensor_world import Outcome
from ...core.trace_field import Channels
from ..pictures import BLUE, DARK, OPEN, ORANGE, draw_line
from .game import PopgymWorld

GRAVITY, CART, POLE, HALF_LENGTH, FORCE, SECONDS = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
"""Of Barto, Sutton & Anderson 1983, as in gymnasium: m/s², kg, kg, m, N, and how long a step takes."""
EDGE, FALLEN = 2.4, math.radians(12)
"""An episode ends when the cart is farther out than so many metres, or the pole leans more than so far."""
SCALE, WIDTH, HEIGHT = 24, 132, 60
"""Of a picture: pixels of a metre, and its size."""


class _Situation(NamedTuple):
    body: Tensor
    """Position and velocity of the cart, angle and velocity of the pole, ``[B, 4]`` in float64."""
    noise: Tensor
    """That is added to the observation at each time, ``[B, T + 1, 2]``; ``[B, 0, 2]`` if there is none."""
    time: Tensor
    """Steps taken, ``[B]``."""


class CartPoleWorld(PopgymWorld[_Situation]):
    """What the three tasks with a cart and a pole have in common."""

    steps: ClassVar[dict[str, int]] = {"easy": 200, "medium": 400, "hard": 600}
    deviations: ClassVar[dict[str, float]] = {"easy": 0.0, "medium": 0.0, "hard": 0.0}

    def setup(self) -> None:
        """Take steps and noise of the difficulty."""
        self.limit, self.deviation = self.steps[self.difficulty], self.deviations[self.difficulty]
        super().setup()

    def senses(self) -> Sequence[Channels]:
        """Where cart and pole are."""
        return [Channels("position of the cart", 1), Channels("angle of the pole", 1)]

    def output_channels(self) -> Sequence[Channels]:
        """A push."""
        return [Channels("push", 2, ("left", "right"), choice=True)]

    def begin(self, episodes: int, generator: torch.Generator) -> _Situation:
        """Begin almost at rest, almost upright; see :meth:`TensorWorld.begin`."""
        device = generator.device
        body = torch.rand(episodes, 4, dtype=torch.float64, generator=generator, device=device) * 0.1 - 0.05
        noise = torch.randn(episodes, self.limit + 1 if self.deviation else 0, 2, generator=generator, device=device)
        return _Situation(body, self.deviation * noise, torch.zeros(episodes, dtype=torch.long, device=device))

    def act(self, situation: _Situation, actions: Tensor) -> Outcome:
        """Push for a fiftieth of a second; see :meth:`TensorWorld.act`."""
        body = moved(situation.body, actions)
        time = situation.time + 1
        fallen = (body[:, 0].abs() > EDGE) | (body[:, 2].abs() > FALLEN)
        rewards = torch.full_like(body[:, 0], 1 / self.limit)
        return Outcome(_Situation(body, situation.noise, time), rewards, fallen, time >= self.limit)

    def observe(self, situation: _Situation) -> Tensor:
        """Positions, with the noise of the time if there is any; see :meth:`TensorWorld.observe`."""
        seen = situation.body[:, ::2].to(torch.get_default_dtype())
        if not self.deviation:
            return seen
        farthest = 2 * torch.tensor([EDGE, FALLEN], device=seen.device).to(seen)
        return (seen + now(situation.noise, situation.time).to(seen)).clamp(-farthest, farthest)

    def picture(self) -> Tensor | None:
        """Cart and pole from the side; see :meth:`World.picture`."""
        if self.state is None:
            return None
        x, _, angle, _ = self.situation.body[0].tolist()
        picture = torch.full((HEIGHT, WIDTH, 3), 255, dtype=torch.uint8, device="cpu")
        across, ground = WIDTH / 2 + SCALE * x, HEIGHT * 0.75
        top = (across + 2 * HALF_LENGTH * SCALE * math.sin(angle), ground - 2 * HALF_LENGTH * SCALE * math.cos(angle))
        draw_line(picture, (0, ground), (WIDTH, ground), 1, OPEN)
        draw_line(picture, (across - 6, ground), (across + 6, ground), 7, DARK if abs(x) <= EDGE else ORANGE)
        draw_line(picture, (across, ground), top, 3, BLUE if abs(angle) <= FALLEN else ORANGE)
        return picture


@register("env", "position-only-cartpole")
class PositionOnlyCartPoleWorld(CartPoleWorld):
    """A pole balanced by someone who sees no velocities, for 200, 400 or 600 steps.

    Observations ``[B, 2]``: position of the cart in metres, angle of the pole in radians. Actions: a push to the left
    or to the right. Of T steps each gives 1 / T, the one with which the pole falls as well; then the episode ends, and
    after T it is cut off.
    """


@register("env", "velocity-only-cartpole")
class VelocityOnlyCartPoleWorld(CartPoleWorld):
    """A pole balanced by someone who sees no positions, but the first, for 200, 400 or 600 steps.

    Observations ``[B, 2]``: velocity of the cart in metres a second, that of the pole in radians a second; the first
    one is of positions, as in popgym. Actions and rewards are those of :class:`PositionOnlyCartPoleWorld`.
    """

    def senses(self) -> Sequence[Channels]:
        """How fast cart and pole move."""
        return [Channels("velocity of the cart", 1), Channels("velocity of the pole", 1)]

    def observe(self, situation: _Situation) -> Tensor:
        """Velocities; see :meth:`TensorWorld.observe`."""
        seen = torch.where(situation.time.unsqueeze(-1) == 0, situation.body[:, ::2], situation.body[:, 1::2])
        return seen.to(torch.get_default_dtype())


@register("env", "noisy-position-only-cartpole")
class NoisyPositionOnlyCartPoleWorld(CartPoleWorld):
    """A pole balanced for 200 steps by someone who sees no velocities, and positions only with an error.

    Observations ``[B, 2]``: position of the cart in metres, angle of the pole in radians, each with normal noise of
    standard deviation 0.1, 0.2 or 0.3, within twice the bounds at which an episode ends. Actions and rewards are those
    of :class:`PositionOnlyCartPoleWorld`.
    """

    steps: ClassVar[dict[str, int]] = {"easy": 200, "medium": 200, "hard": 200}
    deviations: ClassVar[dict[str, float]] = {"easy": 0.1, "medium": 0.2, "hard": 0.3}


def moved(body: Tensor, pushes: Tensor) -> Tensor:
    """Cart and pole ``[B, 4]`` after a push ``[B]``, 0 to the left or 1 to the right, by Euler's method."""
    _, speed, angle, turning = body.unbind(-1)
    mass, weight = CART + POLE, POLE * HALF_LENGTH
    cos, sin = angle.cos(), angle.sin()
    force = (FORCE * (2 * pushes - 1) + weight * turning**2 * sin) / mass
    bend = (GRAVITY * sin - cos * force) / (HALF_LENGTH * (4 / 3 - POLE * cos**2 / mass))
    pull = force - weight * bend * cos / mass
    return body + SECONDS * torch.stack([speed, pull, turning, bend], -1)


def now(noise: Tensor, time: Tensor) -> Tensor:
    """The noise of a time: ``[B, T, K]`` and ``[B]`` to ``[B, K]``."""
    return noise[torch.arange(len(time), device=time.device), time]
