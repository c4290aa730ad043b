"""Parts of somebody's own in agents: what they keep beside their weights, and what they draw, changes no promise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from pydantic import Field
from states import same, saved
from torch import Tensor, nn

import papertape
from papertape.agents import BackpropAgent, EvolutionAgent, MixedAgent, PPOAgent, SelfModifyingAgent
from papertape.agents.learning import LearningAgent
from papertape.agents.optimisers import Optimiser
from papertape.circuits import RoutedCircuit
from papertape.core.options import ContractError
from papertape.core.recorder import Recorder
from papertape.core.state import register_state
from papertape.envs import CopyEnv, TMazeWorld

SMALL: dict[str, Any] = {"batch_size": 2, "evaluation_sequences": 3, "evaluate_every": 2, "save_every": 4}
STEPS: dict[str, Any] = {**SMALL, "steps": 6}
GENERATIONS: dict[str, Any] = {**SMALL, "generations": 6, "strategy": {"type": "trust", "population": 4, "elite": 1}}
OFTEN = {"check_every": 2, "trial_steps": 2, "min_age": 1, "growth_threshold": -1.0, "pruning_threshold": -1.0}
RUNS: dict[str, tuple[type[LearningAgent], dict[str, Any]]] = {
    "backprop": (BackpropAgent, STEPS),
    "backprop, ewc": (BackpropAgent, {**STEPS, "plasticity": {"type": "ewc", "every": 2}}),
    "self-modifying": (SelfModifyingAgent, {**STEPS, **OFTEN, "policy": "none"}),
    "evolution": (EvolutionAgent, GENERATIONS),
    "evolution in a world": (EvolutionAgent, GENERATIONS),
    "mixed": (MixedAgent, GENERATIONS),
    "ppo": (PPOAgent, {**SMALL, "updates": 6, "rollout_steps": 4, "minibatches": 2, "epochs": 2}),
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


class Noisy(Plain):
    """Adds noise to what it gives, in training or not."""

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        hidden, state = super().forward(x, state)
        hidden = hidden + 0.1 * torch.randn_like(hidden)
        return hidden, Hidden(hidden)


class Watching(Recorder):
    """Keeps all rows, and looks at episodes."""

    wants_episodes = True

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        kept = {name: value for name, value in values.items() if not name.endswith("_per_second")}
        self.rows.append((step, kept))


def make(run: str, controller: type[papertape.Controller], **more: Any) -> Any:
    torch.manual_seed(0)
    kind, options = RUNS[run]
    in_world = run in ("evolution in a world", "ppo")
    env: Any = TMazeWorld(trials=2) if in_world else CopyEnv(width=2, max_length=2, test_lengths=[3])
    env = kind.task_of(kind.Options(**options), env)
    own = controller(env.input_size + 3)
    circuit = papertape.NTM(env.input_size, env.output_size, controller=own, memory_size=4, word_size=3)
    return kind(env, circuit, **{**options, **more})


def check_resumed(run: str, controller: type[papertape.Controller], **options: Any) -> None:
    """See that a run that is broken off, and goes on in another process, ends as one that is not, with the same rows;
    and that nobody who looks on, and nothing that was drawn before, changes anything.
    """
    watching, rest = Watching(), Watching()
    unbroken, broken = make(run, controller, recorder=watching, **options), make(run, controller, **options)
    unbroken.fit()
    drawn = torch.get_rng_state()
    while broken.step < 4:
        broken.train_step()
        if broken.step % 2 == 0:
            broken.judge()
    assert torch.equal(torch.get_rng_state(), drawn)
    resumed = make(run, controller, recorder=rest, **options)
    torch.rand(7)
    resumed.load_state_dict(saved(broken))
    resumed.fit()
    assert same(saved(resumed), saved(unbroken))
    assert same(rest.rows, [row for row in watching.rows if row[0] > 4])


@pytest.mark.parametrize("run", RUNS)
def test_what_a_part_counts_in_its_extra_state_is_saved_and_taken_up(run: str) -> None:
    check_resumed(run, Counting)


@pytest.mark.parametrize("run", RUNS)
def test_what_a_part_draws_follows_from_the_seed_and_is_resumed(run: str) -> None:
    check_resumed(run, Noisy)


@pytest.mark.parametrize("run", RUNS)
def test_a_circuit_with_chance_is_judged_by_the_same_numbers_at_every_call(run: str) -> None:
    agent = make(run, Noisy)
    first = agent.evaluate()
    torch.rand(3)
    agent.step += 1
    assert same(agent.evaluate(), first)
    assert not same(agent.evaluate("test"), first)


def test_members_draw_numbers_of_their_own() -> None:
    agent = make("evolution", Noisy)
    stacks = {name: torch.stack([weight] * 3) for name, weight in agent.circuit.named_parameters()}
    for answers in (
        agent.population.outputs(stacks, torch.zeros(2, 1, agent.env.input_size)).transpose(0, 1),
        agent.population.answers(stacks, 1)(torch.zeros(3, agent.env.input_size)),
    ):
        assert not torch.equal(answers[0], answers[1])


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


class Slowing(torch.optim.SGD):
    """Counts its steps in its groups, as some optimisers do."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
            group["lr"] /= group["count"]
        super().step()
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate


class SlowingDescent(Optimiser):
    """Steps that become smaller."""

    weight_decay: float = Field(0.0, ge=0, description="an option")

    def make(self, parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
        return Slowing(parameters, lr, weight_decay=self.weight_decay)


@pytest.mark.parametrize("run", ["backprop", "self-modifying"])
def test_what_an_optimiser_counts_in_its_groups_is_saved_and_its_settings_are_the_options(run: str) -> None:
    check_resumed(run, Plain, optimiser=SlowingDescent())
    agent, changed = (make(run, Plain, optimiser=SlowingDescent(weight_decay=decay)) for decay in (0.0, 0.5))
    agent.train_step()
    changed.load_state_dict(saved(agent))
    (group,) = changed.torch_optimiser.param_groups
    assert (group["count"], group["weight_decay"]) == (1, 0.5)


@pytest.mark.parametrize("verdict", ["paired", "reward"])
def test_a_change_of_structure_goes_on_with_what_an_optimiser_counts_in_its_groups(verdict: str) -> None:
    env = CopyEnv(width=2, max_length=2, test_lengths=[3])
    circuit = papertape.FeedForwardCircuit(env.input_size, env.output_size, hidden_sizes=[4])
    options = {**STEPS, **OFTEN, "steps": 12, "verdict": verdict, "policy": "random"}
    agent = SelfModifyingAgent(env, circuit, **options, optimiser=SlowingDescent())
    agent.fit()
    assert agent.tracker.kept or agent.trial
    (group,) = agent.torch_optimiser.param_groups
    assert group["count"] == 12 or verdict == "reward"
    assert saved(agent)["moments"]["groups"] == [{"count": group["count"]}]


def test_an_optimiser_that_counts_where_no_checkpoint_looks_is_refused() -> None:
    class Forgetful(SlowingDescent):
        def make(self, parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
            class Counted(torch.optim.SGD):
                count = 0

                def step(self, closure: Any = None) -> None:  # type: ignore[override]
                    self.count += 1
                    for group in self.param_groups:
                        group["lr"] = 0.1 / self.count
                    super().step()

            return Counted(parameters, lr)

    with pytest.raises(ContractError, match=r"^optimiser: \S*Forgetful\.make: a step of another that has taken up its"):
        make("backprop", Plain, optimiser=Forgetful())


class Steps(Plain):
    """Counts its steps of training in a buffer."""

    def setup(self) -> None:
        super().setup()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        self.steps += self.training
        hidden, state = super().forward(x, state)
        return hidden * (1 + 0.01 * self.steps * self.training), state


class Spectral(Plain):
    """Its weights are divided by their norm, an estimate of which it keeps as it trains."""

    def setup(self) -> None:
        super().setup()
        nn.utils.parametrizations.spectral_norm(self.recurrent)


def test_a_part_may_count_its_steps_in_a_buffer() -> None:
    check_resumed("mixed", Steps)
    check_resumed("evolution", Spectral)  # whose members do not train


def test_a_part_of_a_memory_circuit_whose_members_would_share_what_they_write_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^circuit: _SpectralNorm writes .* its buffer controller\.recurrent\."):
        make("mixed", Spectral)


class NoDecay(Optimiser):
    """Biases do not decay."""

    def make(self, parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
        held = [*parameters]
        biases, weights = [one for one in held if one.dim() < 2], [one for one in held if one.dim() >= 2]
        groups = [{"params": biases, "weight_decay": 0.0}, {"params": weights, "weight_decay": 0.5}]
        return torch.optim.AdamW([group for group in groups if group["params"]], lr)


class Factored(Optimiser):
    """Averages of rows and of columns."""

    def make(self, parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adafactor(parameters, lr)


def layers(env: CopyEnv) -> papertape.Circuit:
    return papertape.FeedForwardCircuit(env.input_size, env.output_size, hidden_sizes=[4])


def of_tasks(env: CopyEnv, most: int) -> papertape.Circuit:
    inner = {"type": "feedforward", "hidden_sizes": [4]}
    return RoutedCircuit(env.input_size, env.output_size, circuit=inner, max_tasks=most)


@pytest.mark.parametrize(
    ("optimiser", "message"),
    [
        (NoDecay, r"^optimiser: has 2 groups of parameters; allowed is one"),
        (Factored, r"^optimiser: has 'row_var' of shape \S+ \S+ for \S+, which cannot follow a change of structure"),
    ],
)
@pytest.mark.parametrize("changing", ["layers", "tasks"])
def test_an_optimiser_that_cannot_follow_a_change_of_structure_is_refused_before_a_run(
    changing: str, optimiser: type[Optimiser], message: str
) -> None:
    env = CopyEnv(width=2, max_length=2, test_lengths=[3])
    if changing == "layers":
        BackpropAgent(env, layers(env), **STEPS, optimiser=optimiser())
        SelfModifyingAgent(env, layers(env), **STEPS, optimiser=optimiser(), policy="none")
        with pytest.raises(ValueError, match=message):
            SelfModifyingAgent(env, layers(env), **STEPS, optimiser=optimiser())
    else:
        BackpropAgent(env, of_tasks(env, 1), **STEPS, optimiser=optimiser())
        with pytest.raises(ValueError, match=message):
            BackpropAgent(env, of_tasks(env, 2), **STEPS, optimiser=optimiser())
