"""The node-perturbation agent: its estimate is the gradient, on average, and what it learns with it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import papertape
from papertape.agents import BackpropAgent, NodePerturbationAgent
from papertape.circuits import FeedForwardCircuit
from papertape.core.circuit import Circuit
from papertape.core.distributed import Processes
from papertape.core.env import Env
from papertape.envs import CopyEnv
from papertape.main import main
from papertape.utils import factory, options


def small_env() -> CopyEnv:
    return CopyEnv(width=2, max_length=2, test_lengths=[3])


def small_circuit(kind: str, env: Env) -> Circuit:
    torch.manual_seed(1)
    if kind == "layers":
        return FeedForwardCircuit(env.input_size, env.output_size, hidden_sizes=[5]).double()
    return papertape.NTM(
        env.input_size, env.output_size, controller=kind, hidden_size=6, memory_size=4, word_size=3
    ).double()


def gradients(circuit: Circuit) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in circuit.parameters()])


@pytest.mark.parametrize("kind", ["layers", "feedforward", "lstm"])
def test_the_estimate_is_the_gradient_on_average(kind: str) -> None:
    env = small_env()
    circuit = small_circuit(kind, env)
    agent = NodePerturbationAgent(env, circuit, batch_size=2000, sigma=1e-3, seed=3)
    batch = env.sample(1, torch.Generator().manual_seed(0))
    many = type(batch)(*(part.double().expand(-1, 4000, *part.shape[2:]) for part in batch))
    normaliser = env.normaliser(many).double()
    estimate = torch.zeros(sum(parameter.numel() for parameter in circuit.parameters()), dtype=torch.float64)
    for _ in range(10):
        agent._backward(agent.circuit, many, normaliser)
        estimate += gradients(circuit) / 10
    agent.torch_optimiser.zero_grad()
    BackpropAgent(env, circuit, seed=3)._backward(circuit, many, normaliser)
    true = gradients(circuit)
    assert torch.cosine_similarity(estimate, true, dim=0) > 0.97
    assert abs(float(estimate @ true / (true @ true)) - 1) < 0.1


class Rows(nn.Module):
    """Two layers, with what the second sees put in another order."""

    def __init__(self, env: Env, order: str) -> None:
        super().__init__()
        self.order = order
        self.hidden, self.inner, self.outer = nn.Linear(env.input_size, 14), nn.Linear(2, 2), nn.Linear(14, 2)
        self.output = nn.Linear(2, env.output_size)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.hidden(inputs).tanh()
        if self.order == "slots":
            hidden = self.inner(hidden.unflatten(-1, (7, 2))).flatten(-2)
        elif self.order == "others":
            hidden = hidden + hidden.mean(1, keepdim=True)
        elif self.order == "vector":
            hidden = hidden + self.inner(inputs.new_ones(2)).sum()
        turned = {"batch first": hidden.transpose(0, 1), "flat": hidden.flatten(0, 1)}.get(self.order, hidden)
        answered = self.outer(turned)
        answered = answered.transpose(0, 1) if self.order == "batch first" else answered.view(*inputs.shape[:2], 2)
        return self.output(answered)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ("batch first", r"module.outer sees \[7, 3, 14\] of inputs \[3, 7, \d\]; .*here \[..., 7, 14\]"),
        ("flat", r"module.outer sees \[21, 14\]"),
        ("slots", r"module.inner sees \[3, 7, 7, 2\] .*, and rows of other sequences move with one"),
        ("others", r"module.outer sees \[3, 7, 14\] .*, and rows of other sequences move with one"),
        ("vector", r"module.inner sees \[2\]"),
    ],
)
def test_layers_that_see_no_row_for_each_sequence_are_refused(order: str, said: str) -> None:
    env = small_env()
    with pytest.raises(ValueError, match=f"circuit: its linear layer {said}"):
        NodePerturbationAgent(env, Rows(env, order))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    module = Rows(env, "as they are")
    drawn = torch.get_rng_state()
    before = copy.deepcopy(module.state_dict())
    NodePerturbationAgent(env, module)
    assert torch.equal(torch.get_rng_state(), drawn) and not torch.equal(state, drawn)
    assert all(torch.equal(before[name], part) for name, part in module.state_dict().items())
    assert not any(layer._forward_pre_hooks for layer in module.modules())


def test_the_noise_is_gone_after_a_step() -> None:
    env = small_env()
    circuit = small_circuit("lstm", env)
    inputs = env.sample(3, torch.Generator().manual_seed(0)).inputs.double()
    agent = NodePerturbationAgent(env, circuit.float(), lr=1e-12, seed=3)
    before = circuit(inputs.float())[0]
    agent.train_step()
    assert torch.allclose(circuit(inputs.float())[0], before, atol=1e-6)


def test_it_learns_xor() -> None:
    values = options.load_file("neat-xor")
    values |= {
        "circuit": {"type": "feedforward", "hidden_sizes": [8]},
        "agent": {"type": "node-perturbation", "lr": 0.02, "batch_size": 32, "steps": 600, "evaluate_every": 600},
    }
    errors = factory.build(factory.parse(values)).agent.fit()
    assert min(errors.values()) == 0
    assert max(value for name, value in errors.items() if not name.endswith("loss")) <= 1


def test_a_resumed_run_equals_an_unbroken_one() -> None:
    def make() -> NodePerturbationAgent:
        env = small_env()
        return NodePerturbationAgent(env, small_circuit("lstm", env).float(), batch_size=4, seed=5)

    unbroken, first, second = make(), make(), make()
    for _ in range(6):
        unbroken.train_step()
    for _ in range(3):
        first.train_step()
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        second.train_step()
    for one, other in zip(unbroken.circuit.parameters(), second.circuit.parameters(), strict=True):
        assert torch.equal(one, other)


def test_circuits_with_other_weights_are_refused() -> None:
    env = small_env()
    circuit = papertape.NTM(env.input_size, env.output_size, memory_init="learned")
    with pytest.raises(ValueError, match=r"agent\.type: got 'node-perturbation', but the circuit's weight .*contents"):
        NodePerturbationAgent(env, circuit)


def test_several_processes_are_refused() -> None:
    env = small_env()
    agent = NodePerturbationAgent(env, small_circuit("layers", env))
    with pytest.raises(ValueError, match="runs in one process"):
        agent.join(Processes(rank=0, size=2))


def test_dropout_is_refused() -> None:
    env = small_env()
    circuit = papertape.NTM(
        env.input_size, env.output_size, controller="feedforward", hidden_size=4, num_layers=2, dropout=0.2
    )
    with pytest.raises(ValueError, match=r"circuit: it has dropout 0\.2, .* allowed with node-perturbation is none"):
        NodePerturbationAgent(env, circuit)


@pytest.mark.parametrize("part", [torch.nn.AlphaDropout(0.2), torch.nn.RReLU()])
def test_modules_that_answer_otherwise_as_they_learn_are_refused(part: torch.nn.Module) -> None:
    env = small_env()
    circuit = torch.nn.Sequential(torch.nn.Linear(env.input_size, env.output_size), part)
    said = r"circuit: module\.1 (has dropout 0\.2|is a RReLU), .* allowed with node-perturbation is none"
    with pytest.raises(ValueError, match=said):
        NodePerturbationAgent(env, circuit)


def test_half_precision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["circuit.type=feedforward", "agent.type=node-perturbation", "precision=bfloat16", "agent.steps=2"]
    assert main(["train", "neat-xor", "plots=off", *words]) == 0
