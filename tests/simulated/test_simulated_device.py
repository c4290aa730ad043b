"""What is on a device that is not the CPU does what it does on the CPU; see ``simulated_device.cpp``."""

from __future__ import annotations

import copy
import shutil
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import simulated
import torch
import yaml
from torch import Tensor

import papertape
from papertape.circuits import DNC, NTM, SAM
from papertape.core import registry
from papertape.core.circuit import Circuit
from papertape.core.distributed import Processes
from papertape.core.placement import random_apart, random_state
from papertape.core.state import leaves
from papertape.main import main

pytestmark = pytest.mark.slow

COPY = {"type": "copy", "width": 2, "max_length": 2, "test_lengths": [3]}
MAZE = {"type": "t-maze", "trials": 2, "min_stay": 1, "max_stay": 2, "test_trials": [3]}
NTM_BLOCK = {"type": "ntm", "controller": {"type": "lstm", "hidden_size": 4}, "memory_size": 6, "word_size": 4}
LAYERS = {"type": "feedforward", "hidden_sizes": [6]}
JUDGED = {"log_every": 1, "evaluate_every": 2, "save_every": 2, "batch_size": 2, "evaluation_sequences": 2}
BACKPROP = {"type": "backprop", "steps": 3, **JUDGED}
EVOLUTION = {"type": "evolution", "generations": 3, **JUDGED}
PPO = {"type": "ppo", "updates": 3, "rollout_steps": 4, "minibatches": 1, **JUDGED}
PLASTICITY = [
    {"type": "continual-backprop", "replacement_rate": 0.2, "maturity": 1},
    {"type": "redo", "every": 2, "threshold": 0.5},
    {"type": "ewc", "every": 2, "sequences": 2},
    {"type": "set", "every": 2, "density": 0.5},
]
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "backprop": (COPY, NTM_BLOCK, BACKPROP),
    "plasticity": (COPY, LAYERS, {**BACKPROP, "plasticity": PLASTICITY}),
    "self-modifying": (
        COPY,
        LAYERS,
        {**BACKPROP, "type": "self-modifying", "check_every": 3, "trial_steps": 2, "growth_threshold": 0.5},
    ),
    "ppo": (MAZE, NTM_BLOCK, PPO),
    "snes": (MAZE, NTM_BLOCK, {**EVOLUTION, "strategy": {"type": "snes", "population": 4}}),
    "cma-es": (COPY, LAYERS, {**EVOLUTION, "strategy": {"type": "cma-es", "population": 4}}),
    "deep-ga": (
        COPY,
        LAYERS,
        {**EVOLUTION, "strategy": {"type": "deep-ga", "population": 4, "truncation": 2, "elite_candidates": 2}},
    ),
    "empty": (COPY, NTM_BLOCK, {"type": "empty", "steps": 3, "batch_size": 2}),
}
UNITS = {"ppo": "updates", "snes": "generations", "cma-es": "generations", "deep-ga": "generations"}


@pytest.fixture(scope="module", autouse=True)
def device(tmp_path_factory: pytest.TempPathFactory) -> types.ModuleType:
    """The simulated device, built once."""
    if shutil.which("c++") is None or shutil.which("ninja") is None:
        pytest.skip("the simulated device needs a C++ compiler and ninja")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about compilers
        return simulated.load(tmp_path_factory.mktemp("simulated"))


def test_it_refuses_what_a_gpu_refuses() -> None:
    there = torch.ones(3, device="simulated")
    for wrong in (
        lambda: there + torch.ones(3),
        lambda: there + torch.ones(3, device="simulated:1"),
        lambda: torch.cat([there, torch.ones(3)]),
        lambda: torch.ones(3)[there.long()],
        lambda: torch.rand(3, device="simulated", generator=torch.Generator()),
        lambda: torch.Generator().set_state(torch.Generator("simulated").get_state()),
    ):
        with pytest.raises(RuntimeError):
            wrong()
    with pytest.raises(TypeError):
        there.numpy()


@pytest.mark.parametrize("name", [name for name in registry.entries("circuit") if name != "neat"])
def test_circuits_answer_as_on_the_cpu(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    here: Circuit = registry.entries("circuit")[name](5, 3)
    there = copy.deepcopy(here).to("simulated")
    inputs = torch.rand(4, 3, 5)
    expected, last = here(inputs, lengths=[4, 2, 3])
    found, state = there(inputs.to("simulated"), lengths=[4, 2, 3])
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)
    for leaf, right in zip(leaves(state), leaves(last), strict=True):
        torch.testing.assert_close(leaf.cpu(), right, rtol=1e-4, atol=1e-5)
    if here.differentiable:
        expected.square().sum().backward()
        found.square().sum().backward()
        for parameter, right in zip(there.parameters(), here.parameters(), strict=True):
            if right.grad is not None:
                assert parameter.grad is not None
                torch.testing.assert_close(parameter.grad.cpu(), right.grad, rtol=1e-3, atol=1e-4)
    *_, trace = there(inputs.to("simulated"), trace=True)
    papertape.plot_trace(trace, tmp_path / "trace.png", inputs=inputs.to("simulated"))


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_anywhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env, circuit, agent = RUNS[name]
    Path("own.yaml").write_text(yaml.safe_dump({"env": env, "circuit": circuit, "agent": agent}))
    more = f"agent.{UNITS.get(name, 'steps')}="
    plots = "files" if name == "backprop" else "off"
    assert main(["train", "own.yaml", "device=simulated", f"plots={plots}", "name=run", "threads=1"]) == 0
    assert main(["test", "run"]) == 0
    assert main(["train", "--resume", "run", f"{more}5"]) == 0
    assert main(["train", "--resume", "run", f"{more}7", "device=cpu"]) == 0
    assert main(["train", "--resume", "run", f"{more}9", "device=simulated:1"]) == 0


def test_dropout_is_the_same_when_steps_run_again() -> None:
    def gradients(every: int | None) -> list[Tensor | None]:
        torch.manual_seed(1)
        controller = {"type": "lstm", "hidden_size": 8, "num_layers": 2, "dropout": 0.5}
        circuit = NTM(5, 3, controller=controller, memory_size=6, word_size=4, recompute_every=every, backend="eager")
        circuit.to("simulated")
        inputs = torch.rand(7, 2, 5).to("simulated")
        torch.manual_seed(2)
        circuit(inputs)[0].square().sum().backward()
        return [parameter.grad for parameter in circuit.parameters()]

    for found, right in zip(gradients(2), gradients(None), strict=True):
        if right is not None:
            torch.testing.assert_close(found, right)


def test_chains_of_seeds_are_the_same_genomes() -> None:
    from papertape.agents.strategies import DeepGA

    genome = torch.linspace(-1, 1, 9)
    for initial in ("copied", "resampled"):
        options: Any = {"population": 4, "truncation": 2, "elite_candidates": 0, "initial": initial, "share": 0.5}
        here, there = DeepGA(genome, **options), DeepGA(genome.to("simulated"), **options)
        assert torch.equal(there.rebuild([3, 4, 5]).cpu(), here.rebuild([3, 4, 5]))


def test_what_is_drawn_apart_changes_nothing() -> None:
    place = torch.device("simulated:0")
    before = random_state(place)
    with random_apart(place):
        torch.rand(3, device=place)
    after = random_state(place)
    assert before is not None
    assert after is not None
    assert torch.equal(before, after)


@pytest.mark.parametrize("kind", [NTM, DNC, SAM])
def test_populations_answer_as_on_the_cpu(kind: type[Circuit]) -> None:
    torch.manual_seed(1)
    here = kind(5, 3)
    there = copy.deepcopy(here).to("simulated")
    stacks = {name: torch.stack([p, 1.1 * p]).detach() for name, p in here.named_parameters()}
    inputs = torch.rand(4, 3, 5)
    expected = here.run_population(stacks, inputs)
    found = there.run_population({name: p.to("simulated") for name, p in stacks.items()}, inputs.to("simulated"))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)


def test_processes_add_up_by_way_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_reduce(flat: Tensor) -> None:
        assert flat.device.type == "cpu"  # all that gloo knows besides CUDA
        flat *= 2

    monkeypatch.setattr("papertape.core.distributed.distributed.all_reduce", all_reduce)
    given = [torch.ones(2, 3, device="simulated"), torch.ones(1, device="simulated")]
    Processes(0, 2).add_up(given)
    assert [tensor.tolist() for tensor in given] == [[[2.0] * 3] * 2, [2.0]]


def test_a_run_is_refused_where_there_is_no_float64(
    device: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    device.float64(False)
    try:
        assert main(["train", "ntm-copy", "device=simulated"]) == 2
    finally:
        device.float64(True)
    assert "device: got 'simulated', which has no float64" in capsys.readouterr().err
    assert main(["train", "ntm-copy", "device=simulated:8"]) == 2
    assert "device: got 'simulated:8'; torch finds no such device here" in capsys.readouterr().err
