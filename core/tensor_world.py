"""Tensor worlds: all episodes in one state of batched tensors, and rules that are functions of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar, cast

import torch
from pydantic import Field
from torch import Tensor

from .state import map_state
from .trace_field import Channels
from .world import ActionPart, Step, World, check_episodes

Situation = TypeVar("Situation")


class Outcome(NamedTuple):
    """What an action leads to in each of B episodes."""

    situation: Any
    """A NamedTuple of tensors ``[B, …]``."""
    rewards: Tensor
    """``[B]`` in float64."""
    terminated: Tensor
    """bool ``[B]``: the episode has come to its end."""
    truncated: Tensor
    """bool ``[B]``: a limit of time is reached; it counts where the episode has not come to its end as well."""


class Running(NamedTuple):
    """B episodes as they are now."""

    situation: Any
    """What the rules are about, a NamedTuple of tensors ``[B, …]``."""
    previous: Tensor
    """The last action as it is observed, zeros before the first, ``[B, O]``; ``[B, 0]`` where it is not observed."""
    terminated: Tensor
    """bool ``[B]``"""
    truncated: Tensor
    """bool ``[B]``"""


class TensorWorld(World, Generic[Situation]):
    """A world whose episodes are the rows of one NamedTuple of tensors, the situation.

    A subclass says what is observed (:meth:`senses`) and done (:meth:`output_channels`), from which the sizes follow,
    and gives rules that keep nothing themselves: :meth:`begin`, :meth:`act`, :meth:`observe`. All that chance decides
    in an episode is drawn when it begins. Which episodes are over, and what they leave out, is handled here.
    Actions are the number of a channel in each group of outputs: ``[B]`` with one group, ``[B, A]`` with A.
    """

    previous_action: bool = Field(
        default=False, description="whether observations end with the last action, one-hot, zeros before the first"
    )

    @abstractmethod
    def senses(self) -> Sequence[Channels]:
        """What the channels of :meth:`observe` are, all of them in order."""

    @abstractmethod
    def output_channels(self) -> Sequence[Channels]:
        """What there is to choose from, a group for each number of an action."""

    @abstractmethod
    def begin(self, episodes: int, generator: torch.Generator) -> Situation:
        """Situations in which so many different episodes begin, on the generator's device."""

    @abstractmethod
    def act(self, situation: Situation, actions: Tensor) -> Outcome:
        """Carry out one action in each episode.

        Args:
            situation: of B episodes. Some may be over: any result will do for them, since it is left out.
            actions: valid ones, ``[B]`` or ``[B, A]``.
        """

    @abstractmethod
    def observe(self, situation: Situation) -> Tensor:
        """What is observed, ``[B, channels of senses]``."""

    def count(self, situation: Situation) -> dict[str, Tensor]:
        """By name ``[B]``: what is quoted besides rewards, for the episode so far."""
        return {}

    def setup(self) -> None:
        """Take the sizes from the channels."""
        self._groups = [group.size for group in self.output_channels()]
        self.output_size = sum(self._groups)
        self.input_size = sum(group.size for group in self.input_channels())

    @property
    def situation(self) -> Situation:
        """The present one of all episodes.

        Raises:
            RuntimeError: there was no reset before.
        """
        return cast(Situation, self._running("situation").situation)

    def _running(self, wanted: str) -> Running:
        if self.state is None:
            raise RuntimeError(f"{wanted}: there was no reset before")
        return cast(Running, self.state)

    def reset(self, episodes: int, generator: torch.Generator, *, copies: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
        """Begin episodes; see :meth:`World.reset`."""
        check_episodes(episodes, copies)
        begun = self.begin(episodes, generator)
        situation = map_state(lambda leaf: leaf.to(self.device).repeat(copies, *[1] * (leaf.dim() - 1)), begun)
        batch = copies * episodes
        running = torch.zeros(batch, dtype=torch.bool, device=self.device)
        previous = torch.zeros(batch, self.output_size if self.previous_action else 0, device=self.device)
        self.state = Running(situation, previous, running, running)
        return self._observations(self.state), self.count(situation)

    def step(self, actions: Tensor) -> Step:
        """Carry out one action in each episode; see :meth:`World.step`.

        Raises:
            RuntimeError: there was no reset before.
            ValueError: actions of another shape, or other numbers than :meth:`decide` gives.
        """
        before = self._running("step")
        self.check_actions(actions)
        over = before.terminated | before.truncated
        situation, rewards, terminated, truncated = self.act(cast(Situation, before.situation), actions)
        previous = self.shown(actions) if self.previous_action else before.previous
        after = Running(situation, previous, terminated, truncated & ~terminated)
        if over.any():
            after = map_state(lambda old, new: torch.where(_beside(over, new), old, new), before, after)
            rewards = rewards.masked_fill(over, 0)
        self.state = after
        hidden = (over | after.terminated).unsqueeze(-1)
        observations = self._observations(after).masked_fill(hidden, 0)
        return Step(observations, rewards, after.terminated, after.truncated, self.count(after.situation))

    def action_parts(self) -> Sequence[ActionPart]:
        """A choice in each group; see :meth:`World.action_parts`."""
        return [ActionPart("categorical", size) for size in self._groups]

    def decide(self, outputs: Tensor) -> Tensor:
        """The largest output of each group: ``[B]``, or ``[B, A]`` where there are A groups."""
        if len(self._groups) == 1:
            return outputs.argmax(-1)
        return torch.stack([part.argmax(-1) for part in outputs.split(self._groups, -1)], -1)

    def check_actions(self, actions: Tensor) -> None:
        """Raise ValueError for what :meth:`decide` never gives: another shape, or no number of a channel."""
        groups, batch = self._groups, len(self._running("step").terminated)
        shape = [batch] if len(groups) == 1 else [batch, len(groups)]
        if list(actions.shape) == shape and not actions.is_floating_point():
            if len(groups) == 1:
                wrong = (actions < 0) | (actions >= groups[0])
            else:
                wrong = (actions < 0) | (actions >= torch.tensor(groups, device=actions.device))
            if not wrong.any():
                return
        allowed = " and ".join(f"0 to {size - 1}" for size in groups)
        raise ValueError(
            f"actions: got {actions.dtype} of shape {list(actions.shape)}; allowed are the whole numbers {allowed} in "
            f"shape {shape}"
        )

    def shown(self, actions: Tensor) -> Tensor:
        """Actions as they are observed afterwards, ``[B, O]``: one-hot in each group."""
        columns = (actions,) if len(self._groups) == 1 else actions.unbind(-1)
        return torch.cat([one_hot(column, size) for column, size in zip(columns, self._groups, strict=True)], -1)

    def input_channels(self) -> Sequence[Channels]:
        """What is seen, then the last action if it is observed."""
        last = self.output_channels() if self.previous_action else ()
        labelled = [(group, tuple(f"last {label}" for label in group.labels)) for group in last]
        return [*self.senses(), *(Channels(f"last {group.name}", group.size, labels) for group, labels in labelled)]

    def _observations(self, running: Running) -> Tensor:
        seen = self.observe(cast(Situation, running.situation))
        return torch.cat([seen, running.previous], -1) if self.previous_action else seen


def _beside(rows: Tensor, leaf: Tensor) -> Tensor:
    return rows.view(-1, *[1] * (leaf.dim() - 1))


def one_hot(numbers: Tensor, size: int) -> Tensor:
    """1 at each number, 0 elsewhere: ``[…]`` to ``[…, size]``, in torch's own type."""
    return (numbers.unsqueeze(-1) == torch.arange(size, device=numbers.device)).to(torch.get_default_dtype())


def at(rows: Tensor, places: Tensor) -> Tensor:
    """One element of each row: ``[B, N]`` and ``[B]`` to ``[B]``."""
    return rows.gather(1, places.unsqueeze(-1)).squeeze(-1)
