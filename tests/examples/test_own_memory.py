"""The examples of a memory and of a controller of one's own: all that ours can do, with no line of them elsewhere."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import papertape
from papertape.core.kernels import dispatch
from papertape.core.members import map_members
from papertape.core.registry import import_modules, lookup
from papertape.core.state import leaves, map_state
from papertape.core.trace import check_fields

ROOT = Path(__file__).parents[2]
BLOCK = yaml.safe_load((ROOT / "examples" / "own_memory.yaml").read_text(encoding="utf-8"))["circuit"]


@pytest.fixture(autouse=True)
def _imported(outsiders: None) -> None:
    import_modules([f"{ROOT}/examples/{name}.py" for name in ("own_memory", "own_controller")])


def delta(**more: Any) -> papertape.MemoryCircuit:
    return papertape.MemoryCircuit(
        3,
        2,
        controller={"type": "gru", "hidden_size": 8},
        accessor={"type": "fast-weights", "num_heads": 2, "key_size": 5, "value_size": 4},
        **more,
    )


def leaky(**more: Any) -> papertape.MemoryCircuit:
    return papertape.NTM(3, 2, controller={"type": "fading", "hidden_size": 8}, memory_size=6, word_size=4, **more)


def both(**more: Any) -> papertape.MemoryCircuit:
    return papertape.MemoryCircuit(
        3, 2, controller={"type": "fading", "hidden_size": 8}, accessor={"type": "fast-weights", "key_size": 5}, **more
    )


each = pytest.mark.parametrize("make", [delta, leaky, both])
Make = Callable[..., papertape.MemoryCircuit]


def test_the_memory_is_the_delta_rule() -> None:
    """Against loops over heads, rows and columns."""
    torch.manual_seed(0)
    accessor = lookup("accessor", "fast-weights")(7, num_heads=2, key_size=3, value_size=4).double()
    state = accessor.initial_state(2)
    tables = [[[[0.0] * 3 for _ in range(4)] for _ in range(2)] for _ in range(2)]
    for hidden in torch.randn(5, 2, 7, dtype=torch.float64):
        reads, state, heads = accessor(hidden, state)
        vector = hidden @ accessor.interface.linear.weight.T + accessor.interface.linear.bias
        keys, queries, values, gates = vector.split([6, 6, 8, 2], dim=1)
        for row in range(2):
            for head in range(2):
                key, query = (
                    part[row, 3 * head : 3 * head + 3] / part[row, 3 * head : 3 * head + 3].norm()
                    for part in (keys, queries)
                )
                gate, table = torch.sigmoid(gates[row, head]).item(), tables[row][head]
                for element in range(4):
                    found = sum(table[element][i] * key[i].item() for i in range(3))
                    change = gate * (values[row, 4 * head + element].item() - found)
                    table[element] = [table[element][i] + change * key[i].item() for i in range(3)]
                    read = sum(table[element][i] * query[i].item() for i in range(3))
                    assert reads[row, head, element].item() == pytest.approx(read, abs=1e-12)
        torch.testing.assert_close(state.memory, torch.tensor(tables, dtype=torch.float64))
    assert heads.keys.norm(dim=-1).allclose(torch.ones(2, 2, dtype=torch.float64))


def test_the_controller_leaks() -> None:
    torch.manual_seed(0)
    controller = lookup("controller", "fading")(3, hidden_size=4, clip=0.3).double()
    with torch.no_grad():
        controller.leak.copy_(torch.randn(4))
    state, x = controller.initial_state(2), torch.randn(2, 3, dtype=torch.float64) * 5
    share = 1 / (1 + torch.exp(-controller.leak))
    expected = (share * torch.tanh(x @ controller.input.weight.T + controller.input.bias)).clamp(-0.3, 0.3)
    hidden, state = controller(x, state)
    torch.testing.assert_close(hidden, expected)
    torch.testing.assert_close(state.hidden, expected)


@each
def test_it_learns_by_eager(make: Make) -> None:
    torch.manual_seed(0)
    circuit = make()
    inputs = torch.randint(0, 2, (6, 16, 3)).float()
    targets = inputs[..., :2].roll(1, 0)
    optimiser, losses = torch.optim.Adam(circuit.parameters(), lr=0.02), []
    for _ in range(25):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(circuit(inputs)[0][1:], targets[1:])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert circuit.chosen_backend == "eager"
    assert losses[-1] < 0.93 * losses[0]


@each
def test_its_gradients_are_right(make: Make) -> None:
    torch.manual_seed(0)
    circuit = make(dtype=torch.float64)
    names, parameters = zip(*circuit.named_parameters(), strict=True)
    inputs = torch.randn(3, 2, 3, dtype=torch.float64)

    def run(inputs: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = torch.func.functional_call(circuit, dict(zip(names, parameters, strict=True)), inputs)[
            0
        ]
        return outputs

    arguments = [leaf.detach().clone().requires_grad_() for leaf in (inputs, *parameters)]
    assert torch.autograd.gradcheck(run, arguments, fast_mode=True, atol=1e-5)


@each
def test_kernels_step_aside_without_noise(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    dispatch._warn_of_slowness.cache_clear()
    with caplog.at_level(logging.WARNING):
        circuit = make()
        circuit(torch.rand(3, 2, 3))
        circuit.eval()
        circuit(torch.rand(3, 2, 3))
    assert circuit.chosen_backend == "eager" and not caplog.records
    named = "DeltaAccessor|LeakyController"
    with pytest.raises(dispatch.BackendError, match=f"backend: 'native' cannot run this circuit: it has no ({named})"):
        make(backend="native")(torch.rand(3, 2, 3))


@each
def test_populations_are_mapped(make: Make) -> None:
    torch.manual_seed(0)
    members, inputs = [make(), make(), make()], torch.rand(4, 2, 3)
    stacks = {
        name: torch.stack([member.get_parameter(name).detach() for member in members])
        for name, _ in members[0].named_parameters()
    }
    answers = members[0].run_population(stacks, inputs)
    torch.testing.assert_close(answers, map_members(members[0], stacks, inputs))
    torch.testing.assert_close(answers, torch.stack([member(inputs)[0] for member in members], 1).detach())


@each
def test_it_is_traced(make: Make) -> None:
    torch.manual_seed(0)
    circuit, inputs = make(), torch.rand(4, 2, 3)
    check_fields("circuit", circuit.trace_fields)
    outputs, state, trace = circuit(inputs, trace=True)
    torch.testing.assert_close(outputs, circuit(inputs)[0])
    assert set(trace) == set(circuit.trace_fields) and torch.equal(trace.reads[-1], state.reads)
    assert torch.equal(trace.memory[-1], state.accessor.memory)
    assert ("read_weights" in trace) == (make is leaky)


@each
def test_its_state_goes_on_and_is_loaded_as_torch_loads(make: Make) -> None:
    torch.manual_seed(0)
    circuit, inputs = make(), torch.rand(5, 2, 3)
    whole, _ = circuit(inputs)
    first, state = circuit(inputs[:2])
    file = io.BytesIO()
    torch.save(map_state(torch.detach, state), file)
    file.seek(0)
    loaded = torch.load(file)
    assert type(loaded.accessor) is type(state.accessor) and type(loaded.controller) is type(state.controller)
    assert all(torch.equal(one, other) for one, other in zip(leaves(loaded), leaves(state), strict=True))
    torch.testing.assert_close(torch.cat([first, circuit(inputs[2:], loaded)[0]]), whole)
    with pytest.raises(ValueError, match=r"state: got a batch of 2; the inputs have a batch of 1"):
        circuit(inputs[:, :1], loaded)


@each
def test_sequences_of_several_lengths_and_recomputed_steps(make: Make) -> None:
    torch.manual_seed(0)
    circuit, inputs = make(), torch.rand(5, 2, 3)
    outputs, _ = circuit(inputs, lengths=[5, 2])
    torch.testing.assert_close(outputs[:2, 1:], circuit(inputs[:2, 1:])[0])
    gradients = []
    for every in (None, 2):
        circuit.recompute_every = every
        circuit.zero_grad()
        circuit(inputs)[0].square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in circuit.parameters()])  # type: ignore[union-attr]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@each
def test_weights_are_drawn_anew(make: Make) -> None:
    torch.manual_seed(0)
    circuit, drawn = make(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        circuit.reset_parameters()
        drawn.append([parameter.detach().clone() for parameter in circuit.parameters()])
    for (name, _), once, again, other in zip(circuit.named_parameters(), *drawn, strict=True):
        assert torch.equal(once, again) and torch.equal(once, other) == (name == "controller.leak"), name


def test_the_block_of_the_options_file_builds_it() -> None:
    options = papertape.MemoryCircuit.Options.model_validate(BLOCK)
    circuit = papertape.core.component.build(options, 3, 2)
    assert type(circuit.accessor).__name__ == "DeltaAccessor" and circuit.accessor.num_heads == 4
    assert circuit.options == options
    with pytest.raises(ValueError, match="accessor.num_heads: got 0; allowed: greater than or equal to 1"):
        papertape.MemoryCircuit(3, 2, accessor={"type": "fast-weights", "num_heads": 0})
