"""One of each kind that anyone may write, as from a program of their own; the tests import it by its path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

import papertape
from papertape.agents import BackpropAgent
from papertape.agents.optimisers import Optimiser
from papertape.core.world import Step
from papertape.envs import Curriculum


class Sign(torch.optim.Optimizer):
    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(group["lr"] * parameter.grad.sign())


@papertape.register("optimiser", "sign")
class SignDescent(Optimiser):
    """Steps of one size, against the sign of the gradient."""

    strength: float = Field(1.0, gt=0, description="what the learning rate is multiplied by")

    def make(self, parameters: Iterable[Tensor], lr: float) -> Sign:
        return Sign(parameters, lr * self.strength)


class Halves(Curriculum):
    """The easier half of each range first."""

    threshold: float = Field(50.0, gt=0, description="error under which the whole range follows")

    def make_levels(self) -> Sequence[Mapping[str, tuple[int, int]]]:
        return [{name: (low, (low + high) // 2) for name, (low, high) in self.ranges.items()}, dict(self.ranges)]


papertape.register("curriculum", "halves", Halves)  # a call does what the decorator does


@papertape.register_state
class EchoState(NamedTuple):
    hidden: Tensor


@papertape.register("circuit", "echo")
class Echo(papertape.Circuit):
    """A recurrent network without memory."""

    hidden_size: int = Field(8, ge=1, description="units")

    def setup(self) -> None:
        self.cell = nn.RNNCell(self.input_size, self.hidden_size)
        self.output = nn.Linear(self.hidden_size, self.output_size)

    def initial_state(self, batch_size: int) -> EchoState:
        return EchoState(self.output.weight.new_zeros(batch_size, self.hidden_size))

    def step(self, x: Tensor, state: EchoState | None = None) -> tuple[Tensor, EchoState]:
        hidden = self.cell(x, (state or self.initial_state(len(x))).hidden)
        return self.output(hidden), EchoState(hidden)


@papertape.register("agent", "patient")
class PatientAgent(BackpropAgent):
    """Backpropagation that takes more steps, each smaller."""

    lr: float = 1e-4
    patience: float = Field(2.0, gt=1, description="how much smaller a step is")


@papertape.register("env", "lights")
class Lights(papertape.World):
    """Each episode has a light on the left or on the right, and the reward is there."""

    error_metric: ClassVar[str] = "lost"

    length: int = Field(3, ge=1, description="steps of an episode")

    def setup(self) -> None:
        self.input_size, self.output_size = 1, 2

    def reset(self, episodes: int, generator: torch.Generator, *, copies: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
        self.light = torch.randint(2, (episodes,), generator=generator, device=self.device).repeat(copies)
        self.taken, self.lost = 0, torch.zeros(len(self.light), dtype=torch.float64)
        return self.seen(), {"lost": self.lost}

    def seen(self) -> Tensor:
        return (2.0 * self.light - 1).unsqueeze(1) * (self.taken < self.length)

    def step(self, actions: Tensor) -> Step:
        found = (actions == self.light).double() * (self.taken < self.length)
        self.taken += 1
        self.lost = self.lost + 1 - found
        over = torch.full_like(self.light, self.taken >= self.length, dtype=torch.bool)
        return Step(self.seen(), found, over, torch.zeros_like(over), {"lost": self.lost})
