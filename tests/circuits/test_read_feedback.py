"""Circuits whose controller does not see what was read: a whole sequence at once gives what steps give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import prune

from papertape import MemoryCircuit
from papertape.core.accessors import StaticAccessor
from papertape.core.controllers import DirectController
from papertape.core.kernels import dispatch, native
from papertape.core.members import map_members
from papertape.core.options import ContractError
from papertape.core.state import leaves

SIZES = {"memory_size": 6, "word_size": 3}


HEADS = ("num_reads", "memory_wipe")


def made(controller: Any = "lstm", accessor: Any = "static", **more: Any) -> MemoryCircuit:
    torch.manual_seed(0)
    sizes = {} if controller == "direct" else {"hidden_size": 5}
    heads = {name: more.pop(name) for name in HEADS if name in more}
    return MemoryCircuit(
        4,
        2,
        controller={"type": controller, **sizes},
        accessor={"type": accessor, **SIZES, **heads},
        read_feedback=False,
        dtype=torch.float64,
        **more,
    )


@pytest.mark.parametrize("accessor", ["static", "dynamic", "sparse", "tape"])
@pytest.mark.parametrize("controller", ["direct", "feedforward", "gru"])
def test_a_whole_sequence_is_its_steps(controller: str, accessor: str) -> None:
    circuit, inputs = made(controller, accessor), torch.randn(5, 3, 4, dtype=torch.float64)
    assert circuit.controller.input_size == 4
    outputs, last = circuit(inputs)
    state, steps = circuit.initial_state(3), []
    for x in inputs:
        answer, state = circuit.step(x, state)
        steps.append(answer)
    torch.testing.assert_close(outputs, torch.stack(steps))
    for one, other in zip(leaves(last), leaves(state), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(circuit(inputs, trace=True)[0], outputs)


def test_what_was_read_does_not_reach_the_controller() -> None:
    circuit, inputs = made(), torch.randn(5, 3, 4, dtype=torch.float64)
    expected = circuit(inputs)[1].controller
    with torch.no_grad():
        circuit.accessor.interface.linear.weight.add_(1)
    for one, other in zip(circuit(inputs)[1].controller, expected, strict=True):
        assert torch.equal(one, other)


needs_native = pytest.mark.skipif(isinstance(native.library.load(), str), reason="the native library is not built")


@needs_native
@pytest.mark.parametrize("accessor", [{"type": "static", "num_reads": 2}, {"type": "dynamic", "memory_wipe": True}])
@pytest.mark.parametrize("controller", ["direct", "convolution", "lstm", "gru", "feedforward", "rnn"])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-4), (torch.float64, 1e-12)])
def test_the_memory_runs_natively_after_its_controller(
    controller: str, accessor: dict[str, Any], dtype: torch.dtype, close: float
) -> None:
    """Outputs, states and gradients are those of steps; also from a state that was carried over, and to one."""
    results = []
    for backend in ("eager", "auto"):
        circuit = made(
            controller, accessor["type"], backend=backend, **{k: v for k, v in accessor.items() if k != "type"}
        ).to(dtype)
        inputs = torch.randn(2, 17, 3, 4, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
        _, state = circuit(inputs[0])
        outputs, last = circuit(inputs[1], state)
        assert circuit.chosen_backend == ("native" if backend == "auto" else "eager")
        total = sum(leaf.square().sum() for leaf in leaves(last)) + outputs.square().sum()
        gradients = torch.autograd.grad(total, [inputs, *circuit.parameters()])
        with torch.no_grad():
            without = circuit(inputs[1], state)[0]
        torch.testing.assert_close(without, outputs.detach())
        results.append([outputs, *leaves(last), *gradients])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=close, rtol=close)


@needs_native
def test_kernels_step_aside_where_the_controller_or_the_heads_are_not_as_they_were() -> None:
    inputs, seen = torch.randn(5, 3, 4, dtype=torch.float64), []
    circuit = made()
    circuit.step(inputs[0], circuit.initial_state(3))
    assert circuit.chosen_backend is None
    expected = circuit(inputs)[0]
    assert circuit.chosen_backend == "native"
    handle = circuit.controller.register_forward_hook(lambda *arguments: seen.append(1))
    torch.testing.assert_close(circuit(inputs)[0], expected)
    assert circuit.chosen_backend == "eager" and len(seen) == 5
    handle.remove()
    torch.nn.utils.parametrizations.weight_norm(circuit.accessor.interface.linear)
    torch.testing.assert_close(circuit(inputs)[0], expected)
    assert circuit.chosen_backend == "eager"
    circuit.backend = "native"
    with pytest.raises(dispatch.BackendError, match="native"):
        circuit(inputs)


@needs_native
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("pruned", [False, True])
def test_kernels_step_aside_where_a_layer_of_the_interface_has_no_bias(layer: int, pruned: bool) -> None:
    circuit = MemoryCircuit(3, 2, controller="convolution", accessor="soft-tape", read_feedback=False)
    linear = (circuit.accessor.interface.linear, circuit.accessor.layers[0])[layer]
    if pruned:
        prune.random_unstructured(linear, "bias", 0.5)
    else:
        linear.bias = None
    inputs = torch.ones(3, 1, 3)
    assert "bias" in str(native.unavailable(circuit, inputs, circuit.initial_state(1)))
    assert circuit(inputs)[0].shape == (3, 1, 2) and circuit.chosen_backend == "eager"


def test_populations_and_a_replaced_transition() -> None:
    circuit, inputs = made("feedforward"), torch.randn(5, 3, 4, dtype=torch.float64)
    stacks = {name: torch.stack([part.detach(), part.detach() + 0.1]) for name, part in circuit.named_parameters()}
    answers = map_members(circuit, stacks, inputs)
    torch.testing.assert_close(answers[:, 0], circuit(inputs)[0].detach())

    class Doubled(MemoryCircuit):
        def transition(self, x: Tensor, state: Any) -> Any:
            features, state, heads = super().transition(x, state)
            return 2 * features, state, heads

    doubled = Doubled(4, 2, accessor={"type": "static", **SIZES}, read_feedback=False)
    inputs = inputs.float()
    outputs, _ = doubled(inputs)
    torch.testing.assert_close(outputs[0], doubled.step(inputs[0])[0])


def test_hooks_see_every_step() -> None:
    circuit, inputs, seen = made("feedforward"), torch.randn(5, 3, 4, dtype=torch.float64), []
    expected = circuit(inputs)[0]
    circuit.accessor.register_forward_hook(lambda *arguments: seen.append(arguments[1][0].shape))
    torch.testing.assert_close(circuit(inputs)[0], expected)
    assert seen == [(3, 5)] * 5


def test_a_run_that_gives_something_else_is_refused() -> None:
    class Forgetful(DirectController):
        def run(self, inputs: Tensor, state: Any) -> Any:
            return torch.zeros_like(inputs), state

    class Lazy(StaticAccessor):
        def run(self, hidden: Tensor, state: Any) -> Any:
            return super().run(hidden, state)[0], state

    with pytest.raises(ContractError, match=r"Forgetful\.run: gives something else than steps do"):
        Forgetful(3).check()
    with pytest.raises(ContractError, match=r"Lazy\.run: gives something else than steps do"):
        Lazy(3, **SIZES).check()


def test_a_controller_with_room_for_words_is_refused() -> None:
    with pytest.raises(ValueError, match="controller: its input_size is 7; expected 4, the circuit's input_size$"):
        MemoryCircuit(4, 2, controller=DirectController(7), accessor={"type": "static", **SIZES}, read_feedback=False)
