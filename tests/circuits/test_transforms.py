"""torch.compile, torch.func, copies, pickles and state dicts."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.func import functional_call, stack_module_state, vmap

from papertape import DNC, NTM, SAM, SDNC, map_state
from papertape.circuits import MemoryCircuit

CIRCUITS: dict[str, tuple[type[MemoryCircuit], dict[str, Any]]] = {
    "ntm": (NTM, {}),
    "ntm masked gru learned": (
        NTM,
        {"controller": "gru", "masked_content": True, "memory_init": "learned", "weight_init": "learned"},
    ),
    "ntm feedforward": (NTM, {"controller": "feedforward", "num_reads": 2, "num_writes": 2}),
    "dnc": (DNC, {"num_reads": 2}),
    "dnc improved": (
        DNC,
        {
            "num_reads": 2, "num_writes": 2, "num_layers": 2, "masked_content": True, "memory_wipe": True,
            "link_sharpening": True, "usage_gradient": True, "squash": "tanh",
        },
    ),
    "sam": (SAM, {"num_reads": 2, "num_writes": 2}),
    "sdnc": (SDNC, {"num_reads": 2, "slots_per_read": 3, "links_per_slot": 3, "masked_content": True}),
}  # fmt: skip
STEPS, BATCH, INPUTS, OUTPUTS = 4, 3, 4, 2
each_circuit = pytest.mark.parametrize("name", CIRCUITS)


def make(name: str, seed: int = 0, **more: Any) -> MemoryCircuit:
    torch.manual_seed(seed)
    cls, options = CIRCUITS[name]
    return cls(INPUTS, OUTPUTS, **{"hidden_size": 6, "memory_size": 5, "word_size": 3, **options, **more}).double()


def sequence(*leading: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(*leading, STEPS, BATCH, INPUTS, generator=generator, dtype=torch.float64)


# ---- torch.compile -----------------------------------------------------------------------------------------------


@pytest.fixture
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def unrolled(step: Any, circuit: MemoryCircuit, inputs: Tensor) -> Tensor:
    state, outputs = circuit.initial_state(BATCH), []
    for x in inputs:
        y, state = step(x, state)
        outputs.append(y)
    return torch.stack(outputs)


@pytest.mark.usefixtures("_fresh_compiler")
@each_circuit
def test_step_compiles_whole_and_once(name):
    """Without graph breaks, and into one graph that serves the first state and all later ones.

    Compiling for real takes tens of seconds: another layout of the first state would double them.
    """
    counter = CompileCounter()
    circuit, inputs = make(name), sequence()
    with torch.no_grad():
        compiled = torch.compile(circuit.step, fullgraph=True, dynamic=False, backend=counter)
        torch.testing.assert_close(unrolled(compiled, circuit, inputs), unrolled(circuit.step, circuit, inputs))
    assert counter.frame_count == 1


@pytest.mark.filterwarnings("default")  # the compiler trips over its own
@pytest.mark.skipif(" " in torch.__file__, reason="torch.compile passes paths with spaces wrongly to the C++ compiler")
@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("name", ["ntm", "dnc"])
def test_compiled_to_machine_code(name):
    circuit, inputs = make(name), sequence()
    outputs = unrolled(torch.compile(circuit.step, fullgraph=True, dynamic=False), circuit, inputs)
    expected = unrolled(circuit.step, circuit, inputs)
    torch.testing.assert_close(outputs, expected)
    parameters = list(circuit.parameters())
    gradients = torch.autograd.grad(outputs.square().sum(), parameters)
    for one, other in zip(gradients, torch.autograd.grad(expected.square().sum(), parameters), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at it
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("recompute_every", [None, 2])
@pytest.mark.parametrize("name", ["ntm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dnc", "sdnc"))])
def test_a_whole_sequence_is_one_call_to_the_compiler(name, recompute_every):
    """It keeps the backend that it has: traced, it would be a graph of all steps, and without kernels."""
    counter = CompileCounter()
    circuit, inputs = make(name, recompute_every=recompute_every), sequence()
    expected = circuit(inputs)[0]
    chosen, circuit.chosen_backend = circuit.chosen_backend, None
    outputs, _ = torch.compile(circuit, backend=counter)(inputs)
    assert circuit.chosen_backend == chosen
    assert counter.op_count < 40
    torch.testing.assert_close(outputs, expected)
    parameters = list(circuit.parameters())
    gradients = torch.autograd.grad(outputs.square().sum(), parameters)
    for one, other in zip(gradients, torch.autograd.grad(expected.square().sum(), parameters), strict=True):
        torch.testing.assert_close(one, other)


# ---- populations -------------------------------------------------------------------------------------------------


@each_circuit
def test_stacked_parameters_equal_one_circuit_after_another(name):
    members, inputs = [make(name, seed) for seed in range(3)], sequence(3)
    parameters, buffers = stack_module_state(members)
    skeleton = copy.deepcopy(members[0]).to("meta")

    def member(parameters, buffers, inputs):
        return functional_call(skeleton, (parameters, buffers), (inputs,))

    outputs, state = vmap(member)(parameters, buffers, inputs)
    for index, circuit in enumerate(members):
        expected, expected_state = circuit(inputs[index])
        torch.testing.assert_close(outputs[index], expected)
        map_state(lambda leaf, other, index=index: torch.testing.assert_close(leaf[index], other) or leaf,
                  state, expected_state)  # fmt: skip


@each_circuit
def test_one_flat_vector_gives_the_same_in_a_population_of_any_size(name):
    circuit, inputs = make(name), sequence()
    names = [key for key, _ in circuit.named_parameters()]
    shapes = [parameter.shape for parameter in circuit.parameters()]

    def run(genome: Tensor) -> Tensor:
        parts = genome.split([shape.numel() for shape in shapes])
        parameters = {key: part.view(shape) for key, part, shape in zip(names, parts, shapes, strict=True)}
        return functional_call(circuit, parameters, (inputs,))[0]

    generator = torch.Generator().manual_seed(1)
    size = sum(shape.numel() for shape in shapes)
    population = torch.randn(5, size, generator=generator, dtype=torch.float64)
    together = vmap(run)(population)
    for genome, outputs in zip(population, together, strict=True):
        torch.testing.assert_close(vmap(run)(genome.unsqueeze(0))[0], outputs)
        nn.utils.vector_to_parameters(genome, circuit.parameters())
        torch.testing.assert_close(circuit(inputs)[0], outputs)


def test_gradients_per_member():
    """vmap over grad: what a Lamarckian step of a whole population needs."""
    members, inputs = [make("dnc", seed) for seed in range(2)], sequence()
    parameters, buffers = stack_module_state(members)

    def loss(parameters, buffers):
        return functional_call(members[0], (parameters, buffers), (inputs,))[0].square().sum()

    gradients = vmap(torch.func.grad(loss))(parameters, buffers)
    for index, circuit in enumerate(members):
        circuit(inputs)[0].square().sum().backward()
        for key, parameter in circuit.named_parameters():
            torch.testing.assert_close(gradients[key][index], parameter.grad)


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_kernels_refuse_transforms(backend):
    circuit, inputs = make("ntm", backend=backend), sequence()
    parameters = {key: torch.stack([parameter, parameter]) for key, parameter in circuit.named_parameters()}
    with pytest.raises(RuntimeError, match=f"backend: '{backend}' cannot run this circuit: it has no rule for torch.f"):
        vmap(lambda parameters: functional_call(circuit, parameters, (inputs,))[0])(parameters)


# ---- copies ------------------------------------------------------------------------------------------------------


def pickled(circuit: MemoryCircuit) -> MemoryCircuit:
    return pickle.loads(pickle.dumps(circuit))


def saved(circuit: MemoryCircuit) -> MemoryCircuit:
    """Through a file of weights alone, into a circuit that was born with others."""
    file = io.BytesIO()
    torch.save(circuit.state_dict(), file)
    file.seek(0)
    name = next(name for name, (_, options) in CIRCUITS.items() if options is circuit.of_options)
    other = make(name, seed=99)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
@each_circuit
def test_copies_give_the_same_and_share_nothing(name, copied):
    circuit, inputs = make(name), sequence()
    circuit.of_options = CIRCUITS[name][1]
    expected, _ = circuit(inputs)
    twin = copied(circuit)
    assert torch.equal(twin(inputs)[0], expected)
    with torch.no_grad():
        for parameter in circuit.parameters():
            parameter.zero_()
    assert torch.equal(twin(inputs)[0], expected)


@each_circuit
def test_a_state_survives_a_file(name):
    circuit, inputs = make(name), sequence()
    _, state = circuit(inputs)
    leaves: list[Tensor] = []
    map_state(lambda leaf: (leaves.append(leaf.detach()), leaf)[1], state)
    file = io.BytesIO()
    torch.save(leaves, file)
    file.seek(0)
    loaded = iter(torch.load(file, weights_only=True))
    restored = map_state(lambda _: next(loaded), state)
    assert torch.equal(circuit(inputs, restored)[0], circuit(inputs, state)[0])


@each_circuit
@pytest.mark.parametrize("controller", ["lstm", "gru", "feedforward", "direct"])
def test_a_state_is_saved_as_it_is(name, controller):
    sizes = {"hidden_size": None, "num_layers": None} if controller == "direct" else {}
    circuit, inputs = make(name, controller=controller, **sizes), sequence()
    with torch.no_grad():
        _, state, trace = circuit(inputs, trace=True)
    file = io.BytesIO()
    torch.save((state, trace), file)
    file.seek(0)
    loaded, loaded_trace = torch.load(file)  # weights_only is the default
    assert torch.equal(circuit(inputs, loaded)[0], circuit(inputs, state)[0])
    assert torch.equal(loaded_trace.memory, trace.memory)


@each_circuit
def test_whole_numbers_and_bits_are_taken_as_they_are(name):
    circuit, bits = make(name), sequence() > 0
    expected, _ = circuit(bits.double())
    for dtype in (torch.bool, torch.int64, torch.float32):
        torch.testing.assert_close(circuit(bits.to(dtype))[0], expected)


@each_circuit
def test_moves_between_types(name):
    circuit = make(name).float()
    outputs, state = circuit(sequence().float())
    assert outputs.dtype == torch.float32
    map_state(lambda leaf: pytest.fail("not float32") if leaf.dtype == torch.float64 else leaf, state)
