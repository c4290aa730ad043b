"""What a recurrent module owes its user: states carried, cut, batched and traced, whatever the circuit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backends import each_circuit_and_backend, has_triton_kernels, shape
from torch import Tensor, nn

from papertape import DNC, NTM, SAM, SDNC, detach, map_state
from papertape.circuits import MemoryCircuit, Tape
from papertape.core import addressing

IMPROVED = {"masked_content": True, "memory_wipe": True, "link_sharpening": True, "squash": "tanh"}
CIRCUITS: dict[str, tuple[type[MemoryCircuit], dict[str, Any]]] = {
    "ntm": (NTM, {"num_reads": 2, "num_writes": 2}),
    "ntm gru learned": (NTM, {"controller": "gru", "memory_init": "learned", "weight_init": "learned"}),
    "ntm feedforward": (NTM, {"controller": "feedforward", "memory_init": "truncated_normal"}),
    "dnc": (DNC, {"num_reads": 2, "num_writes": 2}),
    "dnc improved 2-layer": (DNC, {"num_reads": 2, "num_layers": 2, **IMPROVED}),
    "sam": (SAM, {"num_reads": 2, "num_writes": 2, "memory_size": 40, "slots_per_read": 3}),
    "sam full masked": (SAM, {"num_reads": 2, "controller": "gru", "masked_content": True}),
    "sdnc": (SDNC, {"num_reads": 2, "memory_size": 40, "slots_per_read": 3, "links_per_slot": 4}),
}
STEPS, BATCH, INPUTS, OUTPUTS = 6, 3, 4, 2
each_circuit = pytest.mark.parametrize("name", CIRCUITS)
on_each_backend = each_circuit_and_backend(CIRCUITS)


def make(name: str, backend: str = "eager", **more: Any) -> MemoryCircuit:
    """A small circuit in float64, the same at each call."""
    torch.manual_seed(1)
    cls, options = CIRCUITS[name]
    circuit = cls(
        INPUTS, OUTPUTS, backend=backend, **{"hidden_size": 6, "memory_size": 5, "word_size": 3, **options, **more}
    ).double()
    with torch.no_grad():
        for parameter in circuit.parameters():
            parameter.mul_(2)
    return circuit


def sequence(backend: str = "eager", steps: int = STEPS, batch: int = BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(*shape(backend, steps, batch), INPUTS, generator=generator, dtype=torch.float64)


def leaves(state: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_state(lambda leaf: (found.append(leaf), leaf)[1], state)
    return found


def assert_same_state(actual: Any, expected: Any) -> None:
    assert type(actual) is type(expected)
    for one, other in zip(leaves(actual), leaves(expected), strict=True):
        torch.testing.assert_close(one, other)


@on_each_backend
def test_shapes_and_zero_reads(name, backend):
    circuit, inputs = make(name, backend), sequence(backend)
    outputs, state = circuit(inputs)
    assert circuit.chosen_backend == backend or backend == "auto"
    batch = inputs.shape[1]
    assert outputs.shape == (*inputs.shape[:2], OUTPUTS) and outputs.dtype == torch.float64
    start = circuit.initial_state(batch)
    reads, width = circuit.accessor.num_reads, circuit.accessor.word_size
    assert start.reads.shape == (batch, reads, width) and start.reads.abs().max() == 0
    assert [leaf.shape for leaf in leaves(start)] == [leaf.shape for leaf in leaves(state)]
    assert all(leaf.shape[0] == batch for leaf in leaves(start))


@on_each_backend
def test_step_by_step_and_chunked_equal_the_whole(name, backend):
    circuit, inputs = make(name, backend), sequence(backend).requires_grad_()
    whole, last = circuit(inputs)
    (gradient,) = torch.autograd.grad(whole.square().sum(), inputs)

    state, outputs = circuit.initial_state(inputs.shape[1]), []
    for x in inputs:
        y, state = circuit.step(x, state)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs), whole)
    assert_same_state(state, last)

    for cuts in ((2, 4), (1, 5), (3,)) if len(inputs) == STEPS else ((1,),):
        state, outputs = None, []
        for chunk in inputs.tensor_split(cuts):
            chunk_outputs, state = circuit(chunk, state)
            outputs.append(chunk_outputs)
        torch.testing.assert_close(torch.cat(outputs), whole)
        assert_same_state(state, last)
        (chunked,) = torch.autograd.grad(torch.cat(outputs).square().sum(), inputs)
        torch.testing.assert_close(chunked, gradient)


@on_each_backend
def test_detaching_cuts_the_gradient_exactly_there(name, backend):
    circuit, inputs = make(name, backend), sequence(backend).requires_grad_()
    cut = len(inputs) // 2
    _, state = circuit(inputs[:cut])
    assert any(leaf.requires_grad for leaf in leaves(state))
    outputs, _ = circuit(inputs[cut:], detach(state))
    (gradient,) = torch.autograd.grad(outputs.square().sum(), inputs)
    assert gradient[:cut].abs().max() == 0
    # The same as from a state that never had a past.
    constant = map_state(lambda leaf: leaf.detach().clone(), state)
    later = inputs.detach()[cut:].requires_grad_()
    (expected,) = torch.autograd.grad(circuit(later, constant)[0].square().sum(), later)
    torch.testing.assert_close(gradient[cut:], expected)
    # Without the cut there is a gradient through the state.
    outputs, _ = circuit(inputs[cut:], state)
    (uncut,) = torch.autograd.grad(outputs.square().sum(), inputs)
    assert uncut[:cut].abs().max() > 0
    torch.testing.assert_close(uncut[cut:], expected)


@on_each_backend
def test_rows_are_independent_and_batch_size_may_change(name, backend):
    circuit, inputs = make(name, backend), sequence(backend)
    steps, batch, _ = inputs.shape
    outputs, last = circuit(inputs)
    order = torch.arange(batch).roll(1)
    permuted, state = circuit(inputs[:, order])
    torch.testing.assert_close(permuted, outputs[:, order])
    assert_same_state(state, map_state(lambda leaf: leaf[order], last))
    for rows in (slice(0, 1), slice(1, batch)):
        torch.testing.assert_close(circuit(inputs[:, rows])[0], outputs[:, rows])
    torch.testing.assert_close(circuit(torch.cat([inputs, 9 * inputs], 1))[0][:, :batch], outputs)
    # Zeros after the end of a sequence change nothing before it.
    padded = torch.cat([inputs, torch.zeros_like(inputs[:2])])
    torch.testing.assert_close(circuit(padded)[0][:steps], outputs)


@on_each_backend
def test_gradient_of_one_row_stays_in_its_row(name, backend):
    circuit, inputs = make(name, backend), sequence(backend).requires_grad_()
    (gradient,) = torch.autograd.grad(circuit(inputs)[0][:, 1].square().sum(), inputs)
    others = [row for row in range(inputs.shape[1]) if row != 1]
    assert gradient[:, others].abs().max() == 0 and gradient[:, 1].abs().max() > 0


@on_each_backend
def test_batch_first(name, backend):
    inputs = sequence(backend)
    outputs, state, trace = make(name, backend)(inputs, trace=True)
    swapped = make(name, backend, batch_first=True)
    swapped_outputs, swapped_state, swapped_trace = swapped(inputs.transpose(0, 1), trace=True)
    torch.testing.assert_close(swapped_outputs.transpose(0, 1), outputs)
    torch.testing.assert_close(swapped(inputs.transpose(0, 1))[0], swapped_outputs)
    assert_same_state(swapped_state, state)
    assert list(swapped_trace) == list(trace) and len(trace) > 3
    for name, expected in trace.items():
        torch.testing.assert_close(swapped_trace[name].transpose(0, 1), expected)


@on_each_backend
def test_trace_shapes_and_same_results_as_without(name, backend):
    circuit, inputs = make(name, backend), sequence(backend)
    outputs, state = circuit(inputs)
    traced, traced_state, trace = circuit(inputs, trace=True)
    torch.testing.assert_close(traced, outputs)
    assert_same_state(traced_state, state)
    reads, writes = circuit.accessor.num_reads, circuit.accessor.num_writes
    slots, width = circuit.accessor.memory_size, circuit.accessor.word_size
    shapes = {
        "read_weights": (reads, slots),
        "write_weights": (writes, slots),
        "memory": (slots, width),
        "reads": (reads, width),
        "add": (writes, width),
    }
    if isinstance(circuit, (SAM, SDNC)):
        shapes |= {"write_gates": (writes,), "write_modes": (writes, 1 + reads)}
    else:
        shapes |= {"erase": (writes, width)}
    if isinstance(circuit, NTM):
        heads = reads + writes
        shapes |= dict.fromkeys(("gate", "strengths", "sharpness"), (heads,))
        shapes |= {"shift": (heads, 2 * circuit.shift_range + 1), "keys": (heads, width)}
    if isinstance(circuit, SDNC):
        shapes |= {"read_modes": (reads, 3)}
    if isinstance(circuit, DNC):
        shapes |= {
            "usage": (slots,),
            "free_gates": (reads,),
            "allocation_gates": (writes,),
            "allocation_weights": (writes, slots),
            "write_gates": (writes,),
            "read_modes": (reads, 1 + 2 * writes),
        }
    assert {key: tuple(part.shape[2:]) for key, part in trace.items()} == shapes
    assert all(part.shape[:2] == inputs.shape[:2] for part in trace.values())
    torch.testing.assert_close(trace.memory[-1], state.accessor.memory)
    _, last, heads = circuit.transition(inputs[-1], circuit(inputs[:-1])[1])
    for key, part in circuit.accessor.observed(heads, last.accessor).items():
        torch.testing.assert_close(trace[key][-1], part)
    torch.testing.assert_close(trace.read_weights @ trace.memory, trace.reads)


@each_circuit
def test_reads_go_back_into_the_controller(name):
    """A popular package feeds the controller zeros where the words read last should be."""
    circuit, inputs = make(name), sequence()
    seen: list[Tensor] = []
    circuit.controller.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    _, _, trace = circuit(inputs, trace=True)
    assert trace.reads[:-1].abs().amax(dim=(1, 2, 3)).min() > 0
    assert torch.equal(seen[0], torch.cat([inputs[0], torch.zeros_like(trace.reads[0]).flatten(1)], -1))
    for step in range(1, STEPS):
        assert torch.equal(seen[step], torch.cat([inputs[step], trace.reads[step - 1].flatten(1)], -1))


@each_circuit
def test_outputs_see_the_hidden_vector_and_the_new_reads(name):
    circuit, inputs = make(name, clip=None), sequence()
    hidden: list[Tensor] = []
    circuit.controller.register_forward_hook(lambda _module, _arguments, result: hidden.append(result[0]))
    outputs, _, trace = circuit(inputs, trace=True)
    features = torch.cat([torch.stack(hidden), trace.reads.flatten(2)], -1)
    torch.testing.assert_close(outputs, nn.functional.linear(features, circuit.output.weight, circuit.output.bias))


@on_each_backend
def test_clip_bounds_states_and_outputs(name, backend):
    circuit = make(name, backend)
    with torch.no_grad():
        for parameter in circuit.parameters():
            parameter.mul_(300)
    outputs, state = circuit(50 * sequence(backend, 40))
    assert outputs.abs().max() == 20
    for leaf in leaves(state.controller):
        assert leaf.abs().max() <= 20
    assert make(name, backend, clip=None)(sequence(backend))[0].isfinite().all()
    circuit.clip = None
    assert circuit.step(sequence(backend)[0], state)[0].abs().max() > 20


@each_circuit_and_backend(CIRCUITS, ["ntm", "dnc", "dnc improved 2-layer", "sam full masked", "sdnc"])
@pytest.mark.parametrize("slots", [1, 4, 11])
def test_memory_size_may_change_after_training(name, slots, backend):
    circuit, inputs = make(name, backend), sequence(backend)
    outputs, state = circuit(inputs, circuit.initial_state(inputs.shape[1], memory_size=slots))
    assert state.accessor.memory.shape[1] == slots
    _, _, trace = circuit(inputs, circuit.initial_state(inputs.shape[1], memory_size=slots), trace=True)
    assert trace.read_weights.shape[-1] == trace.write_weights.shape[-1] == trace.memory.shape[-2] == slots
    built = make(name, backend, memory_size=slots)
    built.load_state_dict(circuit.state_dict())
    torch.testing.assert_close(outputs, built(inputs)[0])


@pytest.mark.parametrize("name", ["ntm gru learned", "ntm feedforward"])
def test_memory_that_was_made_for_its_slots_refuses_another_number(name):
    with pytest.raises(ValueError, match="memory_size: got 11"):
        make(name).initial_state(BATCH, memory_size=11)


@on_each_backend
def test_no_state_is_kept_or_changed_between_calls(name, backend):
    circuit, inputs = make(name, backend), sequence(backend)
    buffers = {key: value.clone() for key, value in circuit.state_dict().items()}
    first, state = circuit(inputs)
    kept = map_state(torch.clone, state)
    circuit(inputs, state)
    assert_same_state(state, kept)
    assert torch.equal(circuit(inputs)[0], first)
    assert all(torch.equal(value, buffers[key]) for key, value in circuit.state_dict().items())


@on_each_backend
def test_every_parameter_gets_a_gradient(name, backend):
    circuit = make(name, backend)
    circuit(sequence(backend))[0].square().sum().backward()
    for key, parameter in circuit.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key


@on_each_backend
def test_the_default_random_state_is_used_at_construction_alone(name, backend):
    circuits = [make(name, backend) for _ in range(2)]
    for one, other in zip(*(circuit.state_dict().values() for circuit in circuits), strict=True):
        assert torch.equal(one, other)
    before = torch.get_rng_state()
    circuits[0](sequence(backend), trace=True)
    circuits[0](sequence(backend))[0].sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@on_each_backend
def test_extreme_inputs_give_finite_outputs_states_and_gradients(name, dtype, backend):
    for scale in (1e6,) if backend == "triton" else (0.0, 1e-6, 1e3, 1e6):
        circuit = make(name, backend).to(dtype)
        inputs = (sequence(backend, 12) * scale).to(dtype).requires_grad_()
        outputs, state = circuit(inputs)
        (outputs * torch.linspace(-1, 1, OUTPUTS)).sum().backward()
        assert outputs.isfinite().all() and inputs.grad.isfinite().all(), scale
        assert all(leaf.isfinite().all() for leaf in leaves(state)), scale
        assert all(parameter.grad.isfinite().all() for parameter in circuit.parameters()), scale


@each_circuit
def test_a_step_starts_and_converts_as_a_sequence_does(name):
    circuit, bits = make(name), sequence() > 0
    outputs, state = circuit.step(bits[0])
    torch.testing.assert_close(outputs, circuit(bits[:1])[0][0])
    assert_same_state(state, circuit(bits[:1])[1])


@each_circuit
def test_second_derivatives(name):
    """Eager dense circuits have them, as the docstrings say; no other gives wrong ones."""
    circuit, inputs = make(name), sequence().requires_grad_()
    (gradient,) = torch.autograd.grad(circuit(inputs)[0].square().sum(), inputs, create_graph=True)
    if isinstance(circuit, (SAM, SDNC)):
        with pytest.raises(RuntimeError, match="second derivatives"):
            gradient.square().sum().backward()
        return
    gradient.square().sum().backward()
    assert inputs.grad.abs().max() > 0
    circuit.backend = "auto"
    outputs, _ = circuit(inputs)
    if circuit.chosen_backend != "eager":
        (gradient,) = torch.autograd.grad(outputs.square().sum(), inputs, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivatives"):
            gradient.square().sum().backward()


@each_circuit
def test_attributes_that_were_set_wrongly_are_named(name):
    circuit = make(name)
    circuit.recompute_every = 0
    with pytest.raises(ValueError, match="recompute_every: got 0"):
        circuit(sequence())
    circuit.recompute_every, circuit.backend = None, "foo"
    with pytest.raises(ValueError, match="backend: got 'foo'; allowed: auto, native"):
        circuit(sequence())


@pytest.mark.parametrize("recompute_every", [None, 2])
@each_circuit
def test_on_the_meta_device(name, recompute_every):
    with torch.device("meta"):
        circuit = make(name, "auto", recompute_every=recompute_every)
        outputs, state = circuit(torch.zeros(STEPS, BATCH, INPUTS, dtype=torch.float64))
    assert outputs.is_meta and outputs.shape == (STEPS, BATCH, OUTPUTS)
    assert [leaf.shape for leaf in leaves(state)] == [leaf.shape for leaf in leaves(make(name)(sequence())[1])]


@each_circuit
def test_wrong_calls_are_named(name):
    circuit = make(name)
    ragged = torch.nested.nested_tensor([torch.zeros(2, 4), torch.zeros(1, 4)], layout=torch.jagged)
    for wrong, kind in ((ragged, "nested"), (torch.zeros(6, 3, 4).to_sparse(), "sparse")):
        with pytest.raises(ValueError, match=rf"inputs: got a {kind} tensor; expected \[T, B, 4\].*, in a dense one"):
            circuit(wrong)
    with pytest.raises(ValueError, match=r"inputs: got torch.float8_e5m2; the circuit has torch.float"):
        circuit(torch.zeros(6, 3, 4).to(torch.float8_e5m2))
    with pytest.raises(ValueError, match=r"inputs: got shape \[6, 3, 5\]; expected \[T, B, 4\]"):
        circuit(torch.zeros(STEPS, BATCH, INPUTS + 1))
    with pytest.raises(ValueError, match="state: got a batch of 2; the inputs have a batch of 3"):
        circuit(sequence(), circuit.initial_state(2))
    other = type(circuit)(INPUTS, OUTPUTS, hidden_size=7, memory_size=5, word_size=2).double()
    for call in (circuit, lambda inputs, state: circuit.step(inputs[0], state)):
        with pytest.raises(ValueError, match=r"state\.\w+(\.\w+)?: got .*; this circuit has"):
            call(sequence(), other.initial_state(BATCH))
        with pytest.raises(ValueError, match="state: got a tuple; this circuit has a CircuitState"):
            call(sequence(), tuple(circuit.initial_state(BATCH)))
        with pytest.raises(ValueError, match=r"state\..*: got torch.float32; this circuit has torch.float64"):
            call(sequence(), make(name).float().initial_state(BATCH))
    with pytest.raises(ValueError, match=r"inputs: got shape \[3, 5\]; expected \[B, 4\]"):
        circuit.step(torch.zeros(BATCH, INPUTS + 1))
    for wrong in (0, -1, 2.0, None):
        with pytest.raises(ValueError, match="batch_size: got"):
            circuit.initial_state(wrong)
    for wrong in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="memory_size: got"):
            circuit.initial_state(2, memory_size=wrong)


@pytest.mark.parametrize("name", [name for name, (cls, _) in CIRCUITS.items() if not has_triton_kernels(cls)])
def test_triton_refuses_sparse_circuits(name):
    circuit = make(name, "triton")
    with pytest.raises(RuntimeError, match="backend: 'triton' cannot run this circuit: it has no Sparse"):
        circuit(sequence())


def test_triton_refuses_tapes():
    with pytest.raises(RuntimeError, match="backend: 'triton' cannot run this circuit: it has no TapeAccessor"):
        Tape(INPUTS, OUTPUTS, backend="triton")(sequence().float())


def test_trace_has_the_allocation_of_every_step() -> None:
    torch.manual_seed(0)
    circuit = DNC(3, 2, hidden_size=8, memory_size=5, word_size=4, num_writes=2, num_reads=2)
    _, _, trace = circuit(torch.rand(6, 3, 3), trace=True)
    assert trace.allocation_weights.shape == (6, 3, 2, 5)
    for step in range(6):
        expected = addressing.allocation_weights(
            trace.usage[step], trace.allocation_gates[step] * trace.write_gates[step]
        )
        torch.testing.assert_close(trace.allocation_weights[step], expected)
    gated = trace.write_gates * trace.allocation_gates
    assert (gated.unsqueeze(-1) * trace.allocation_weights <= trace.write_weights + 1e-6).all()


@pytest.mark.parametrize("options", [{}, {"num_reads": 3, "num_writes": 2}, {"masked_content": True}], ids=str)
def test_an_ntm_finds_what_it_writes_in_the_very_step(options, backend):
    """NTM eqs. 2 and 5: what is read from the memory of a step is looked up in it too, not in the one before."""
    ntm = NTM(1, 1, controller="feedforward", hidden_size=2, memory_size=6, word_size=4, backend=backend, **options)
    ntm.double()
    interface = ntm.accessor.interface
    reads, heads = ntm.accessor.num_reads, ntm.accessor.num_heads
    with torch.no_grad():
        interface.linear.weight.zero_()
        interface.linear.bias.zero_()
        parts = interface.parts(interface.linear.bias)
        parts["add"].fill_(9)  # write heads stay on the first slot and leave a word of ones there;
        parts["erase"].fill_(9)
        parts["gate"].fill_(-30)
        parts["shift"].view(heads, -1)[:, 1] = 30
        parts["gate"][:reads] = 30  # read heads look for such a word, by content alone
        parts["keys"].view(heads, -1)[:reads] = 9
        parts["strengths"][:reads] = 30
    before = ntm.initial_state(1)
    before = before._replace(accessor=before.accessor._replace(memory=-torch.ones(1, 6, 4, dtype=torch.float64)))
    _, after = ntm(torch.zeros(1, 1, 1, dtype=torch.float64), before)
    assert after.accessor.read_weights[..., 0].min() > 0.999
    torch.testing.assert_close(after.reads, after.accessor.memory[:, :1].expand(1, reads, 4), rtol=0, atol=1e-3)
