"""Parts of somebody's own in agents: what they keep beside their weights, and what they draw, changes no promise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch
from pydantic import Field
from states import same, saved
from torch import Tensor, nn

import papertape
from papertape.agents import BackpropAgent, EvolutionAgent, MixedAgent, SelfModifyingAgent
from papertape.core.options import ContractError
from papertape.core.state import register_state
from papertape.envs import CopyEnv

SMALL: dict[str, Any] = {"batch_size": 2, "evaluation_sequences": 3, "evaluate_every": 2, "save_every": 4}
POPULATION = {"type": "trust", "population": 4, "elite": 1}
AGENTS: dict[str, Any] = {
    "backprop": lambda *parts, **more: BackpropAgent(*parts, steps=4, **SMALL, **more),
    "self-modifying": lambda *parts, **more: SelfModifyingAgent(*parts, steps=4, policy="none", **SMALL, **more),
    "evolution": lambda *parts, **more: EvolutionAgent(*parts, generations=4, strategy=POPULATION, **SMALL, **more),
    "mixed": lambda *parts, **more: MixedAgent(*parts, generations=4, strategy=POPULATION, **SMALL, **more),
}


@register_state
class Hidden(NamedTuple):
    hidden: Tensor


class Plain(papertape.Controller):
    """A recurrent layer."""

    hidden_size: int = Field(4, ge=1, description="units")

    def setup(self) -> None:
        self.input = nn.Linear(self.input_size, self.hidden_size)
        self.recurrent = nn.Linear(self.hidden_size, self.hidden_size, bias=False)

    def initial_state(self, batch_size: int) -> Hidden:
        return Hidden(self.input.weight.new_zeros(batch_size, self.hidden_size))

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        hidden = torch.tanh(self.input(x) + self.recurrent(state.hidden))
        return hidden, Hidden(hidden)


class Counting(Plain):
    """Counts the steps that it is trained in as a number of Python's."""

    def setup(self) -> None:
        super().setup()
        self.seen = 0

    def get_extra_state(self) -> Any:
        return {"seen": self.seen}

    def set_extra_state(self, state: Any) -> None:
        self.seen = state["seen"]

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        self.seen += self.training
        hidden, state = super().forward(x, state)
        return hidden * (1 + 0.01 * self.seen * self.training), state


def make(agent: str, controller: type[papertape.Controller], **more: Any) -> Any:
    torch.manual_seed(0)
    env = CopyEnv(width=2, max_length=2, test_lengths=[3])
    circuit = papertape.NTM(
        env.input_size, env.output_size, controller=controller(env.input_size + 3), memory_size=4, word_size=3
    )
    return AGENTS[agent](env, circuit, **more)


def check_resumed(agent: str, controller: type[papertape.Controller]) -> None:
    """See that a run that is broken off at any step, and goes on in another process, ends as one that is not."""
    unbroken, broken = make(agent, controller), make(agent, controller)
    unbroken.fit()
    broken.train_step()
    broken.train_step()
    broken.judge()
    resumed = make(agent, controller)
    torch.rand(7)
    resumed.load_state_dict(saved(broken))
    resumed.fit()
    assert same(saved(resumed), saved(unbroken))


@pytest.mark.parametrize("agent", AGENTS)
def test_what_a_part_counts_in_its_extra_state_is_saved_and_taken_up(agent: str) -> None:
    check_resumed(agent, Counting)
    assert agent in ("evolution",) or saved(make(agent, Counting))["circuit"]["controller._extra_state"] == {"seen": 0}


class Kept:
    """Something that no checkpoint gives back."""


@pytest.mark.parametrize(
    ("method", "kept", "message"),
    [
        ("get_extra_state", Kept(), r"^\S*Broken\.get_extra_state: holds a \S+Kept; expected tensors, numbers"),
        ("set_extra_state", {}, r"^\S*Broken\.set_extra_state: KeyError: 'seen'"),
    ],
)
def test_an_extra_state_that_cannot_be_taken_up_is_refused_before_a_run(method: str, kept: Any, message: str) -> None:
    class Broken(Counting):
        def get_extra_state(self) -> Any:
            return kept

    with pytest.raises(ContractError, match=message):
        make("backprop", Broken)


class Counted(CopyEnv):
    """A stream of tasks that counts in place."""

    every: int = Field(6, ge=1, description="sequences of a task")

    def after_setup(self) -> None:
        super().after_setup()
        self.count = torch.zeros((), dtype=torch.long)

    @property
    def task_number(self) -> int:
        return int(self.count) // self.every

    def move_on(self, count: int) -> None:
        self.count += count

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict({name: value for name, value in state.items() if name != "count"})
        self.count = state["count"]


@pytest.mark.parametrize("method", ["shrink-perturb", "ewc"])
def test_a_method_that_looks_for_the_end_of_a_task_leaves_an_env_that_counts_in_place_where_it_is(method: str) -> None:
    env = Counted(width=2, max_length=2, test_lengths=[3])
    circuit = papertape.FeedForwardCircuit(env.input_size, env.output_size, hidden_sizes=[4])
    agent = BackpropAgent(env, circuit, steps=4, plasticity=method, **SMALL)
    for step in range(1, 5):
        agent.train_step()
        assert int(env.count) == 2 * step


def test_each_try_begins_with_the_first_state_of_an_env_that_counts_in_place() -> None:
    env = Counted(width=2, max_length=2, test_lengths=[3])
    circuit = papertape.FeedForwardCircuit(env.input_size, env.output_size, hidden_sizes=[4])
    agent = BackpropAgent(env, circuit, steps=6, retry_every=2, target_error=0.0, **SMALL)
    counts = []
    for _ in range(6):
        agent.train_step()
        counts.append(int(env.count))
    assert counts == [2, 4] * 3
