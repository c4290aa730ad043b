"""World: a place that answers actions with observations and rewards, many episodes side by side."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .circuit import Circuit
from .contracts import expect, trying
from .task import Task


class Step(NamedTuple):
    """What gymnasium's vector environments return from ``step``, as tensors; B episodes."""

    observations: Tensor
    """``[B, I]``; zeros where the episode is over."""
    rewards: Tensor
    """``[B]`` in float64; zero where the episode was over before."""
    terminated: Tensor
    """bool ``[B]``: the episode has come to its end; stays so until the next reset."""
    truncated: Tensor
    """bool ``[B]``: the episode was cut off by a limit of time; stays so until the next reset."""
    info: dict[str, Tensor]
    """By name ``[B]``: what :meth:`World.metrics` quotes besides the reward, for the episode so far."""


class Episodes(NamedTuple):
    """Episodes played to the end by M members of a population (or one circuit, M = 1), E by each."""

    returns: Tensor
    """Sum of rewards, ``[M, E]`` in float64."""
    lengths: Tensor
    """Steps taken, ``[M, E]``."""
    info: dict[str, Tensor]
    """By name ``[M, E]``, from the last step of each episode."""


class World(Task):
    """Episodes with rewards, after gymnasium's vector API, in batched tensors.

    Differences to gymnasium: randomness comes from a generator; several copies of the same episodes can run side by
    side, one for each member of a population; and an episode that is over stays so until the next reset, with zero
    rewards. Nothing of an episode outlives the next reset, so there is no state to be saved. ``input_size`` counts the
    channels of an observation, ``output_size`` those that :meth:`decide` turns into an action.
    """

    @abstractmethod
    def reset(self, episodes: int, generator: torch.Generator, *, copies: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
        """Begin episodes.

        Args:
            episodes: E, how many different ones.
            generator: the only source of randomness.
            copies: M, how often each is run; they are alike in everything but the actions.

        Returns:
            First observations ``[M·E, I]``, copy by copy, and ``info`` as in :class:`Step`.

        Raises:
            ValueError: a number below 1.
        """

    @abstractmethod
    def step(self, actions: Tensor) -> Step:
        """Carry out one action in each episode; those of episodes that are over are ignored.

        Args:
            actions: ``[M·E]`` or ``[M·E, A]``, what :meth:`decide` returns.

        Raises:
            RuntimeError: there was no reset before.
        """

    def check(self) -> None:
        """Begin a few episodes and take a step; see :meth:`Task.check`."""
        super().check()
        name, episodes, copies = type(self).__qualname__, 2, 3
        count = episodes * copies
        with trying(self, "reset"):
            begun = self.reset(episodes, torch.Generator(self.device).manual_seed(0), copies=copies)
        pair = isinstance(begun, tuple) and len(begun) == 2
        expect(pair, f"{name}.reset", f"returns a {type(begun).__name__}", "observations and info")
        with trying(self, "decide"):
            actions = self.decide(torch.zeros(count, self.output_size, device=self.device))
        with trying(self, "step"):
            step = self.step(actions)
        expect(isinstance(step, Step), f"{name}.step", f"returns a {type(step).__name__}", "a Step")
        of = f"of {episodes} episodes, {copies} copies of each,"
        parts: list[Any] = [("reset", "observations", begun[0], (count, self.input_size))]
        parts += [("reset", part, tensor, (count,)) for part, tensor in dict(begun[1]).items()]
        parts += [("step", part, getattr(step, part), (count,)) for part in ("rewards", "terminated", "truncated")]
        parts += [("step", "observations", step.observations, (count, self.input_size))]
        parts += [("step", part, tensor, (count,)) for part, tensor in dict(step.info).items()]
        for method, part, tensor, shape in parts:
            found = f"{tensor.dtype} of shape {list(tensor.shape)}" if isinstance(tensor, Tensor) else repr(tensor)
            right = isinstance(tensor, Tensor) and tensor.shape == shape
            truth = part in ("terminated", "truncated")
            right = right and (tensor.dtype == torch.bool if truth else tensor.dtype != torch.bool)
            expected = f"{'torch.bool' if truth else 'numbers'} of shape {list(shape)}"
            expect(right, f"{name}.{method}", f"{part} {of} are {found}", expected)
        found = f"gives {', '.join(begun[1]) or 'nothing'} as info, step gives {', '.join(step.info) or 'nothing'}"
        expect(begun[1].keys() == step.info.keys(), f"{name}.reset", found, "the same")
        numbers = torch.zeros(1, 1, dtype=torch.float64)
        with trying(self, "metrics"):
            known = self.metrics(Episodes(numbers, numbers, dict.fromkeys(step.info, numbers)))
        expect(self.error_metric in known, name, f"error_metric is {self.error_metric!r}", f"one of {', '.join(known)}")

    def decide(self, outputs: Tensor) -> Tensor:
        """Actions from a circuit's outputs ``[B, O]``; here the number of the largest, ``[B]``."""
        return outputs.argmax(-1)

    def metrics(self, episodes: Episodes) -> dict[str, float]:
        """Numbers that people quote, as means over episodes: reward, steps and what the world counts itself."""
        values = {"reward": episodes.returns, "steps": episodes.lengths, **episodes.info}
        return {name: float(value.double().mean()) for name, value in values.items()}

    def play(
        self,
        answer: Callable[[Tensor], Tensor],
        episodes: int,
        generator: torch.Generator,
        *,
        copies: int = 1,
    ) -> Episodes:
        """Play episodes to the end.

        Args:
            answer: maps observations ``[M·E, I]`` to outputs ``[M·E, O]``; called once for each step, so it can carry
                the state of a circuit along.
            episodes: E, how many different ones.
            generator: the only source of randomness.
            copies: M, how often each is played.
        """
        observations, info = self.reset(episodes, generator, copies=copies)
        returns = observations.new_zeros(copies * episodes, dtype=torch.float64)
        lengths = torch.zeros_like(returns, dtype=torch.long)
        running = torch.ones_like(returns, dtype=torch.bool)
        while running.any():
            outputs = answer(observations)
            # An answer that is no number earns none; what is done instead must be an action all the same.
            lost = outputs.isnan()
            returns = returns.masked_fill(running & lost.flatten(1).any(1), torch.nan)
            actions = self.decide(outputs.masked_fill(lost, 0))
            observations, rewards, terminated, truncated, info = self.step(actions)
            returns += rewards
            lengths += running
            running = ~(terminated | truncated)
        shape = (copies, episodes)
        return Episodes(
            returns.view(shape), lengths.view(shape), {name: value.view(shape) for name, value in info.items()}
        )


def join_episodes(parts: Sequence[Episodes], dim: int) -> Episodes:
    """Join episodes that were played separately: of more members (dim 0), or more episodes of each (dim 1)."""
    return Episodes(
        torch.cat([part.returns for part in parts], dim),
        torch.cat([part.lengths for part in parts], dim),
        {name: torch.cat([part.info[name] for part in parts], dim) for name in parts[0].info},
    )


def carrying(circuit: Circuit) -> Callable[[Tensor], Tensor]:
    """A circuit as the ``answer`` of :meth:`World.play`, with its state carried from step to step.

    Returns:
        A function that maps observations ``[E, I]`` to outputs ``[E, O]``; one for each :meth:`World.play`.
    """
    state = None

    def answer(observations: Tensor) -> Tensor:
        nonlocal state
        outputs, state = circuit(observations.unsqueeze(0), state)
        answered: Tensor = outputs[0]
        return answered

    return answer


def check_episodes(episodes: int, copies: int) -> None:
    """Raise ValueError naming the first of the two that is below 1."""
    for name, value in (("episodes", episodes), ("copies", copies)):
        if value < 1:
            raise ValueError(f"{name}: got {value}; allowed is a whole number of at least 1")
