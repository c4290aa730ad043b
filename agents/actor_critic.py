"""A world as an actor with a critic sees it: one output more, for the value, and perhaps the last action and reward."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from ..core.streams import Stream
from ..core.task import Task
from ..core.trace_field import Channels
from ..core.world import ActionPart, Episodes, Step, World
from .policy import Policy


class ActorCritic(World):
    """Another world, whose observations and outputs are extended.

    An observation may end with the last action as it was drawn (``[A]``) and with the last reward, zeros at first;
    what a world adds to rewards in training alone (``reward_shift``) is not in it. An output is what a
    :class:`~papertape.agents.policy.Policy` takes, and then the value. Actions are samples of that policy:
    :meth:`decide` draws them, or takes the likeliest.
    """

    world: World = Field(kw_only=False, description="in which is acted")
    previous_action: bool = Field(default=False, description="observations end with the last action as it was drawn")
    previous_reward: bool = Field(default=False, description="observations end with the last reward")
    initial_deviation: float = Field(
        default=1.0, gt=0, description="standard deviation of continuous actions where the circuit puts out zero"
    )
    sampled: bool = Field(default=False, description="decide draws actions, rather than to take the likeliest")

    def setup(self) -> None:
        """Take the sizes from the world.

        Raises:
            ValueError: the world draws its actions by itself.
        """
        self.policy = Policy(self.world.action_parts(), self.initial_deviation)
        width = self.policy.sample_size * self.previous_action + self.previous_reward
        self.input_size = self.world.input_size + width
        self.output_size = self.policy.size + 1
        self.error_metric = self.world.error_metric  # type: ignore[misc]  # each world's own
        self._shift = getattr(self.world, "reward_shift", 0.0)
        self._generator = torch.Generator(self.device)
        self._over = torch.empty(0, dtype=torch.bool, device="cpu")

    def around(self, world: World) -> ActorCritic:
        """Another world, extended in the same way."""
        return ActorCritic(world, **dict(self.options), device=world.device)

    @functools.cached_property
    def apart(self) -> ActorCritic:
        """The same world once more: its episodes go on while others are played in this one."""
        return self.around(self.world.changed())

    def check(self) -> None:
        """Try the world out; see :meth:`Task.check`."""
        self.world.check()

    def reset(self, episodes: int, generator: torch.Generator, *, copies: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
        """Begin episodes; see :meth:`World.reset`. Actions are drawn from the same generator."""
        observations, info = self.world.reset(episodes, generator, copies=copies)
        self._generator = generator
        self._over = torch.zeros(len(observations), dtype=torch.bool, device=observations.device)
        return self.begun(observations), info

    def begun(self, observations: Tensor) -> Tensor:
        """First observations of episodes as they are seen: zeros for what was not done yet."""
        more = self.input_size - self.world.input_size
        return torch.cat([observations, observations.new_zeros(len(observations), more)], -1) if more else observations

    def step(self, actions: Tensor) -> Step:
        """Carry out a sample ``[B, A]`` of the policy in each episode; see :meth:`World.step`."""
        return self.after(self.world.step(self.world.decide(actions)), actions)

    def after(self, step: Step, actions: Tensor) -> Step:
        """What a step of the world looks like after these actions ``[B, A]``."""
        shown = [step.observations]
        if self.previous_action:
            shown.append(actions)
        if self.previous_reward:
            shown.append((step.rewards - self._shift).unsqueeze(-1))
        if len(shown) > 1:
            hidden = (self._over | step.terminated).unsqueeze(-1)
            shown[1:] = [part.to(shown[0]).masked_fill(hidden, 0) for part in shown[1:]]
            step = step._replace(observations=torch.cat(shown, -1))
        self._over = step.terminated | step.truncated
        return step

    @property
    def renewable(self) -> bool:
        """See :attr:`World.renewable`."""
        return self.world.renewable

    def keep(self, rows: Tensor) -> None:
        """See :meth:`World.keep`."""
        self.world.keep(rows)
        self._over = self._over[rows.to(self._over.device)]

    def renew(self, over: Tensor, generator: torch.Generator) -> Tensor:
        """See :meth:`World.renew`."""
        self._over = self._over & ~over.to(self._over.device)
        return self.begun(self.world.renew(over, generator))

    def action_parts(self) -> Sequence[ActionPart]:
        """See :meth:`World.action_parts`.

        Raises:
            ValueError: always; actions are drawn by :meth:`decide`.
        """
        raise ValueError("env: got an ActorCritic, which draws its actions by itself; allowed is the world within")

    def decide(self, outputs: Tensor) -> Tensor:
        """Samples ``[B, A]`` of the policy that outputs ``[B, O]`` give, or the likeliest ones; see ``sampled``."""
        parameters = outputs[..., :-1]
        return self.policy.sample(parameters, self._generator) if self.sampled else self.policy.mode(parameters)

    def input_channels(self) -> Sequence[Channels]:
        """The world's, and what is added."""
        found = list(self.world.input_channels())
        if self.previous_action:
            found.append(Channels("last action", self.policy.sample_size))
        if self.previous_reward:
            found.append(Channels("last reward", 1))
        return found

    def output_channels(self) -> Sequence[Channels]:
        """The world's, and what is added."""
        spread = self.policy.size - self.policy.sample_size
        more = [Channels("deviation", spread)] if spread else []
        return [*self.world.output_channels(), *more, Channels("value", 1)]

    def pictured(self) -> World:
        """See :meth:`World.pictured`."""
        drawn = self.world.pictured()
        return self if drawn is self.world else self.around(drawn)

    def picture(self) -> Tensor | None:
        """See :meth:`World.picture`."""
        return self.world.picture()

    def metrics(self, episodes: Episodes) -> dict[str, float]:
        """See :meth:`World.metrics`."""
        return self.world.metrics(episodes)

    def sets(self, stream: Stream) -> dict[str, Task]:
        """Those of the world, extended."""
        return {name: self._extended(task) for name, task in self.world.sets(stream).items()}

    def training_range(self, stream: Stream) -> Sequence[str]:
        """See :meth:`Task.training_range`."""
        return self.world.training_range(stream)

    def lesson(self) -> Task | None:
        """See :meth:`Task.lesson`."""
        lesson = self.world.lesson()
        return None if lesson is None else self._extended(lesson)

    def _extended(self, task: Task) -> ActorCritic:
        assert isinstance(task, World)
        return self if task is self.world else self.around(task)

    def advance(self, error: float) -> bool:
        """See :meth:`Task.advance`."""
        rose = self.world.advance(error)
        self.apart.world.load_state_dict(self.world.state_dict())
        return rose

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Task.state_dict`."""
        return self.world.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`Task.load_state_dict`."""
        for world in (self.world, self.apart.world):
            world.load_state_dict(state)

    def close(self) -> None:
        """Close the world, and the one that is apart."""
        self.world.close()
        if "apart" in vars(self):
            self.apart.world.close()
