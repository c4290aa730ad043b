"""What torch does with a module beside running it gives the numbers of running it, or one clear line.

Recorded, exported, copied to replicas, quantised, batched and differentiated in every way: kernels change memory behind
torch's back, and what torch does not see it cannot record.
"""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import papertape
from papertape import DNC, NTM, SAM, SDNC, FeedForwardCircuit, NeatCircuit, Tape
from papertape.core.circuit import Circuit
from papertape.core.kernels.native import library
from papertape.core.state import CircuitState, leaves, map_state

MEMORIES: dict[str, Any] = {"ntm": NTM, "dnc": DNC, "sam": SAM, "sdnc": SDNC, "tape": Tape}
CONTROLLERS = ("lstm", "gru", "feedforward", "direct", "neat")
OTHERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "feedforward": (FeedForwardCircuit, {}),
    "neat": (NeatCircuit, {}),
    "lstm": (papertape.LSTM, {}),
    "gru": (papertape.GRU, {}),
    "rnn": (papertape.RecurrentCircuit, {"controller": "rnn"}),
    "leaky": (papertape.RecurrentCircuit, {"controller": "leaky"}),
    "automaton": (papertape.RecurrentCircuit, {"controller": "automaton"}),
    "stack-rnn": (papertape.StackRNN, {}),
    "tape-rnn": (papertape.TapeRNN, {}),
    "delta": (papertape.MemoryCircuit, {"accessor": "delta", "read_feedback": False}),
    "delta-decay": (papertape.MemoryCircuit, {"accessor": {"type": "delta", "decay": True}, "read_feedback": False}),
    "transformer": (papertape.Transformer, {}),
    "transformer-delta": (papertape.Transformer, {"accessor": "delta"}),
}
NAMES = [*(f"{name} {controller}" for name in MEMORIES for controller in CONTROLLERS), *OTHERS]
QUICK = [f"{name} lstm" for name in MEMORIES] + [*OTHERS]
STEPS, BATCH, INPUTS, OUTPUTS = 4, 2, 5, 2
each_circuit = pytest.mark.parametrize("name", NAMES)
some_circuits = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]
)
pytestmark = pytest.mark.filterwarnings("default")  # torch warns of its own ways to record


def make(name: str, **options: Any) -> Circuit:
    torch.manual_seed(0)
    memory, _, controller = name.partition(" ")
    if controller:
        options |= {} if controller == "direct" else {"hidden_size": 6}
        return MEMORIES[memory](INPUTS, OUTPUTS, memory_size=8, word_size=4, controller=controller, **options).double()
    kind, own = OTHERS[name]
    return kind(INPUTS, OUTPUTS, **own, **options).double()


def sequence(seed: int = 0, *leading: int, steps: int = STEPS) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*leading, steps, BATCH, INPUTS, generator=generator, dtype=torch.float64)


class Outputs(nn.Module):
    """A circuit's outputs alone: what torch.jit.trace takes."""

    def __init__(self, circuit: Circuit) -> None:
        super().__init__()
        self.circuit = circuit

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.circuit(inputs)[0]
        return outputs


def assert_same(one: Callable[..., Any], circuit: Circuit) -> None:
    """On what it was recorded with and on other inputs."""
    for seed in (0, 1, 2):
        torch.testing.assert_close(one(sequence(seed)), circuit(sequence(seed))[0])


def through_file(save: Any, load: Any, thing: Any) -> Any:
    file = io.BytesIO()
    save(thing, file)
    file.seek(0)
    return load(file)


class Named(Tensor):
    """Like any tensor, but of a class of its own, as images of torchvision are."""


@some_circuits
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("which", ["inputs", "state", "weights"])
def test_subclasses_of_tensor(name: str, which: str, grad: bool) -> None:
    circuit = make(name)
    inputs, state = sequence(), circuit.initial_state(BATCH)
    with torch.set_grad_enabled(grad):
        expected = circuit(inputs, state)[0].sum()
        if which == "inputs":
            inputs = inputs.as_subclass(Named)
        elif which == "state":
            state = map_state(lambda leaf: leaf.as_subclass(Named), state)
        else:
            for part in circuit.modules():
                for key, weight in part.named_parameters(recurse=False):
                    part.register_parameter(key, nn.Parameter(weight.detach().as_subclass(Named)))
        outputs, after = circuit(inputs, state)
        torch.testing.assert_close(outputs.sum().as_subclass(Tensor), expected)
        if outputs.requires_grad:
            outputs.sum().backward()
        stepped = state
        for x in inputs:
            _, stepped = circuit.step(x, stepped)
        for leaf, other in zip(leaves(after), leaves(stepped), strict=True):
            torch.testing.assert_close(leaf.as_subclass(Tensor), other.as_subclass(Tensor))


# ---- recorded ----------------------------------------------------------------------------------------------------


@some_circuits
def test_traced(name: str) -> None:
    circuit = make(name)
    circuit(sequence())
    with torch.no_grad():
        traced = torch.jit.trace(Outputs(circuit), sequence())
        assert_same(traced, circuit)
        assert_same(through_file(torch.jit.save, torch.jit.load, traced), circuit)


@some_circuits
def test_recorded_by_make_fx(name: str) -> None:
    circuit = make(name)
    with torch.no_grad():
        assert_same(make_fx(Outputs(circuit))(sequence()), circuit)


@pytest.mark.long
@pytest.mark.slow
@each_circuit
@pytest.mark.parametrize("strict", [False, True])
def test_exported_and_saved(name: str, strict: bool) -> None:
    circuit = make(name).eval()
    with torch.no_grad():
        program = torch.export.export(circuit, (sequence(),), strict=strict)
        loaded = through_file(torch.export.save, torch.export.load, program).module()
        assert_same(lambda inputs: loaded(inputs)[0], circuit)
        given, made = circuit(sequence())[1], loaded(sequence())[1]
    assert type(made) is type(given)
    for one, other in zip(leaves(made), leaves(given), strict=True):
        torch.testing.assert_close(one, other)


def test_exported_and_saved_once() -> None:
    """One of them in every run; strict export takes seconds."""
    test_exported_and_saved("tape direct", False)


@pytest.mark.parametrize("name", ["ntm lstm", "dnc gru", "sam lstm", *OTHERS])
def test_exported_for_any_batch(name: str) -> None:
    circuit = make(name, backend="eager") if name.startswith(("ntm", "dnc")) else make(name)
    any_batch = {"inputs": {1: torch.export.Dim("batch", min=2, max=64)}}
    exported = torch.export.export(Outputs(circuit), (sequence(),), dynamic_shapes=any_batch, strict=False).module()
    for batch in (2, 7):
        inputs = torch.rand(STEPS, batch, INPUTS, dtype=torch.float64)
        torch.testing.assert_close(exported(inputs), circuit(inputs)[0])


@pytest.mark.parametrize("name", ["ntm lstm", "lstm", pytest.param("sam lstm", marks=pytest.mark.slow)])
def test_compiled_steps_of_any_batch(name: str) -> None:
    circuit = make(name)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(circuit.step, backend=counter, fullgraph=True, dynamic=True)
    for batch in range(2, 14):
        x = torch.rand(batch, INPUTS, dtype=torch.float64)
        torch.testing.assert_close(compiled(x)[0], circuit.step(x)[0])
    assert counter.frame_count == 1


@each_circuit
def test_another_default_device(name: str) -> None:
    circuit, inputs = make(name), sequence()
    expected = circuit(inputs, lengths=[STEPS, 2])[0]
    with torch.device("meta"):
        found = circuit(inputs, lengths=[STEPS, 2])[0]
        stepped, _ = circuit.step(inputs[0])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(stepped, expected[0])


def test_a_symbolic_trace_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"inputs: got a Proxy; expected \[T, B, 5\]"):
        torch.fx.symbolic_trace(make("ntm lstm"))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("trace", [False, True])
@pytest.mark.parametrize("name", QUICK)
def test_a_sequence_is_one_call_to_the_compiler_whatever_its_length(name: str, trace: bool) -> None:
    def operations(steps: int) -> int:
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("eager")
        compiled = torch.compile(circuit, backend=counter)
        made, expected = compiled(sequence(steps=steps), trace=trace), circuit(sequence(steps=steps), trace=trace)
        torch.testing.assert_close(made[0], expected[0])
        if trace:
            for field, seen in expected[2].items():
                torch.testing.assert_close(made[2][field], seen)
        return counter.op_count

    circuit = make(name)
    assert operations(3) == operations(17) < 80
    torch._dynamo.reset()


# ---- copied and changed ------------------------------------------------------------------------------------------


def replica(module: nn.Module) -> Any:
    """As torch.nn.parallel.replicate makes them: weights that are no parameters."""
    modules = list(module.modules())
    copies = {part: part._replicate_for_data_parallel() for part in modules}
    for part, copy in copies.items():
        for name, child in part._modules.items():
            setattr(copy, name, copies[child])
        for name, parameter in part._parameters.items():
            setattr(copy, name, parameter.clone())
        for name, buffer in part._buffers.items():
            setattr(copy, name, buffer)
    return copies[module]


@each_circuit
def test_replicas_of_data_parallel(name: str) -> None:
    circuit = make(name)
    copy = replica(circuit)
    torch.testing.assert_close(copy(sequence())[0], circuit(sequence())[0])
    bits = sequence() > 0.5
    torch.testing.assert_close(copy(bits)[0], circuit(bits)[0])
    if circuit.differentiable:
        copy(sequence())[0].sum().backward()
        gradients = [parameter.grad for parameter in circuit.parameters() if parameter.grad is not None]
        circuit.zero_grad()
        circuit(sequence())[0].sum().backward()
        expected = [parameter.grad for parameter in circuit.parameters() if parameter.grad is not None]
        torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("name", QUICK[:4])
def test_replicas_with_recomputation(name: str) -> None:
    """They have nothing to put back for the backward pass: no step is computed again, and no gradient is lost."""
    circuit = make(name, recompute_every=2)
    replica(circuit)(sequence())[0].sum().backward()
    gradients = [parameter.grad for parameter in circuit.parameters()]
    circuit.zero_grad()
    circuit(sequence())[0].sum().backward()
    torch.testing.assert_close(gradients, [parameter.grad for parameter in circuit.parameters()])


@pytest.fixture
def fully_shard() -> Iterator[Callable[[nn.Module], Any]]:
    """In a group of processes that is this one alone: its part of a sharded weight is all of it, and sharded still."""
    if not distributed.is_available():
        pytest.skip("needs torch.distributed")
    from torch.distributed import fsdp

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield fsdp.fully_shard
    distributed.destroy_process_group()


@pytest.mark.parametrize("name", [name for name in QUICK if not name.startswith("tape ")])
@pytest.mark.parametrize("by_parts", [False, True])
def test_sharded(name: str, by_parts: bool, fully_shard: Callable[[nn.Module], Any]) -> None:
    """As a whole, and by parts that have no whole weights before they run, when the first state is made."""
    circuit, expected = make(name), make(name)
    parts: list[Any] = [circuit.controller, circuit.accessor] if by_parts and hasattr(circuit, "accessor") else []
    for part in [*parts, circuit]:
        fully_shard(part)
    outputs, state = circuit(sequence())
    wanted, _ = expected(sequence())
    torch.testing.assert_close(outputs, wanted)
    (outputs.sum() + wanted.sum()).backward()
    assert all(type(leaf) is Tensor for leaf in leaves(state))
    for own, other in zip(circuit.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(own.grad.full_tensor() if own.grad is not None else None, other.grad)


@each_circuit
def test_quantised(name: str) -> None:
    circuit = make(name).float()
    quantised = torch.ao.quantization.quantize_dynamic(circuit, {nn.Linear})
    inputs = sequence().float()
    torch.testing.assert_close(quantised(inputs)[0], circuit(inputs)[0], atol=0.05, rtol=0.05)
    assert getattr(quantised, "chosen_backend", None) != "native" or name.startswith(("sam", "sdnc", "delta"))


# ---- differentiated and batched ----------------------------------------------------------------------------------


def differentiable(names: list[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", [name for name in names if not name.startswith("tape ")])


@differentiable(NAMES)
@pytest.mark.parametrize("every", [None, 2])
def test_batched_gradients(name: str, every: int | None) -> None:
    if every and " " not in name:
        pytest.skip("only circuits with a memory recompute")
    circuit = make(name, **({"recompute_every": every} if every else {}))
    inputs = sequence().requires_grad_()
    outputs, _ = circuit(inputs)
    wanted = [inputs, *circuit.parameters()]
    upstream = torch.randn(3, *outputs.shape, dtype=torch.float64)
    options: dict[str, Any] = {"allow_unused": True, "retain_graph": True}
    made = torch.autograd.grad(outputs, wanted, upstream, is_grads_batched=True, **options)
    for index, one in enumerate(upstream):
        for gradients, expected in zip(made, torch.autograd.grad(outputs, wanted, one, **options), strict=True):
            assert (gradients is None) == (expected is None)
            if expected is not None:
                torch.testing.assert_close(gradients[index], expected)


@differentiable(QUICK)
@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_vectorised_jacobians(name: str, strategy: str) -> None:
    circuit = make(name)

    def outputs(inputs: Tensor) -> Tensor:
        result: Tensor = circuit(inputs)[0]
        return result

    made = torch.autograd.functional.jacobian(outputs, sequence(), vectorize=True, strategy=strategy)
    torch.testing.assert_close(made, torch.autograd.functional.jacobian(outputs, sequence()))


@differentiable(QUICK)
@pytest.mark.parametrize("grad", [True, False])
def test_forward_mode(name: str, grad: bool) -> None:
    circuit, tangent = make(name), sequence(3)
    with torch.set_grad_enabled(grad), forward_ad.dual_level():
        made = forward_ad.unpack_dual(circuit(forward_ad.make_dual(sequence(), tangent))[0]).tangent
    # Not finite differences: a DNC stops the gradient of its usage.
    jacobian = torch.autograd.functional.jacobian(lambda inputs: circuit(inputs)[0], sequence())
    torch.testing.assert_close(made, torch.tensordot(jacobian, tangent, dims=3))


@differentiable(QUICK)
@pytest.mark.parametrize("vectorize", [False, True])
def test_first_derivatives_that_could_be_differentiated(name: str, vectorize: bool) -> None:
    """Those of a batch are refused where they would be taken for constants."""
    circuit = make(name)

    def jacobian(create_graph: bool) -> Any:
        outputs: Callable[[Tensor], Tensor] = lambda inputs: circuit(inputs)[0].sin()  # noqa: E731
        return torch.autograd.functional.jacobian(
            outputs, sequence(), create_graph=create_graph, vectorize=vectorize and create_graph
        )

    try:
        made = jacobian(True)
    except RuntimeError as error:
        if not (vectorize and "second derivatives" in str(error)):
            raise
        return
    torch.testing.assert_close(made, jacobian(False))
    assert made.requires_grad


def _unless_refused(output: Any, inputs: list[Tensor]) -> tuple[Tensor | None, ...] | None:
    """Gradients, or None where an error says that there are none of gradients."""
    try:
        return torch.autograd.grad(output, inputs, allow_unused=True)
    except RuntimeError as error:
        if "second derivatives" not in str(error):
            raise
        return None


@differentiable(QUICK)
@pytest.mark.parametrize("options", [{}, {"backend": "eager"}, {"recompute_every": 2}], ids=str)
def test_second_derivatives_are_right_or_refused(name: str, options: dict[str, Any]) -> None:
    """Also by ``torch.autograd.grad``, which looks at nothing but the ways to what it differentiates."""
    if "recompute_every" in options and " " not in name:
        pytest.skip("only circuits with a memory recompute")
    circuit = make(name, **options)
    parameters = dict(circuit.named_parameters())
    tangents = {key: torch.randn_like(value) for key, value in parameters.items()} | {"": sequence(3)}

    def loss(values: dict[str, Tensor]) -> Tensor:
        weights = {key: value for key, value in values.items() if key in parameters}
        outputs: Tensor = torch.func.functional_call(circuit, weights, values[""])[0]
        return outputs.sin().sum()

    for values in (parameters, {"": sequence()}):
        point = {key: value.detach().clone().requires_grad_() for key, value in values.items()}
        fixed = {key: value.detach() for key, value in (parameters | {"": sequence()}).items() if key not in point}
        made = torch.autograd.grad(loss(point | fixed), [*point.values()], create_graph=True, allow_unused=True)
        first = {key: gradient for key, gradient in zip(point, made, strict=True) if gradient is not None}
        along = [(gradient * tangents[key]).sum() for key, gradient in first.items()]
        second = _unless_refused(sum(along), [*point.values()])
        sparse = name.startswith(("sam", "sdnc"))
        if second is None:
            assert sparse or options != {"backend": "eager"}
            continue
        assert not sparse and "recompute_every" not in options
        inner = torch.func.grad(lambda part, rest=fixed: loss(part | rest))
        own = {key: tangents[key] for key in point}
        _, expected = torch.func.jvp(inner, ({k: v.detach() for k, v in point.items()},), (own,))
        for one, other in zip(second, expected.values(), strict=True):
            torch.testing.assert_close(torch.zeros_like(other) if one is None else one, other)


@some_circuits
def test_mapped_over_inputs_and_around_a_circuit(name: str) -> None:
    circuit, inputs = make(name), sequence(0, 3)
    with torch.no_grad():
        expected = torch.stack([circuit(one)[0] for one in inputs])
        torch.testing.assert_close(torch.func.vmap(lambda one: circuit(one)[0])(inputs), expected)
        # torch.func is at work, but not on anything that the circuit sees.
        factors = torch.tensor([1.0, 2.0], dtype=torch.float64)
        around = torch.func.vmap(lambda factor: circuit(inputs[0])[0] * factor)(factors)
    torch.testing.assert_close(around, torch.stack([expected[0], 2 * expected[0]]))


@differentiable(QUICK)
def test_gradients_within_a_transform_of_something_else(name: str) -> None:
    circuit = make(name)
    factor = torch.tensor(2.0, dtype=torch.float64)
    torch.func.grad(lambda factor: circuit(sequence())[0].sum() * factor)(factor).backward()
    gradients = [parameter.grad for parameter in circuit.parameters()]
    circuit.zero_grad()
    circuit(sequence())[0].sum().backward()
    torch.testing.assert_close(gradients, [parameter.grad for parameter in circuit.parameters()])


@pytest.mark.skipif(isinstance(library.load(), str), reason=str(library.load()))
def test_a_profiler_and_modes_see_the_operators() -> None:
    """Which are otherwise called past torch's dispatcher."""

    class Seen(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: set[str] = set()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.add(str(func))
            return func(*args, **(kwargs or {}))

    circuit = papertape.NTM(2, 2, memory_size=5, word_size=3, hidden_size=4)
    with torch.profiler.profile() as profile:
        circuit(torch.rand(3, 2, 2))[0].sum().backward()
    profiled = {event.key for event in profile.key_averages()}
    assert {"papertape::native_forward", "papertape::native_backward"} <= profiled
    with Seen() as seen, torch.no_grad():
        circuit(torch.rand(3, 2, 2))
    assert "papertape.native_forward.default" in seen.names


def test_a_sequence_is_one_operation_with_a_shape_to_fake_tensors() -> None:
    """Whoever calls the operators themselves: torch's own checks of schema, shapes and registration."""
    memory, keys = torch.rand(2, 9, 3), torch.rand(2, 4, 3)
    nearest = torch.ops.papertape.native_nearest.default
    torch.library.opcheck(nearest, (memory, memory.norm(dim=-1), keys, keys.norm(dim=-1), 2))


MEMORY_QUICK = [*QUICK[: len(MEMORIES) - 1], "ntm gru", "ntm feedforward", "stack-rnn", "tape-rnn", "delta"]


@pytest.mark.parametrize("change", ["values", "type", "shape"])
@pytest.mark.parametrize("every", [None, 2])
@pytest.mark.parametrize("name", MEMORY_QUICK)
def test_parameters_whose_data_is_replaced_before_the_backward_pass(name: str, every: int | None, change: str) -> None:
    circuit = make(name, recompute_every=every)
    inputs = [sequence(seed).requires_grad_() for seed in (0, 0)]
    (expected,) = torch.autograd.grad(circuit(inputs[0])[0].square().sum(), inputs[0])
    answer = circuit(inputs[1])[0].square().sum()
    if change == "type":
        circuit.half()
    for parameter in circuit.parameters():
        if change == "values":
            parameter.data = 3 * parameter.data
        elif change == "shape":
            parameter.data = parameter.data[:1].clone()
    torch.testing.assert_close(torch.autograd.grad(answer, inputs[1])[0], expected)


# ---- what is loaded ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "absent"),
    [
        ("import papertape", "torch._dynamo matplotlib gymnasium scipy visdom triton papertape.utils.factory sympy"),
        ("from papertape import main; main.main(['list'])", "torch._dynamo matplotlib gymnasium scipy visdom triton"),
        (
            "import papertape, torch; papertape.NTM(2, 2)(torch.rand(2, 1, 2))[0].sum().backward()",
            "torch._dynamo matplotlib gymnasium scipy visdom triton papertape.utils.factory",
        ),
    ],
)
def test_what_takes_long_to_load_is_loaded_when_it_is_needed(script: str, absent: str) -> None:
    """Beyond what torch itself loads."""
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        f"{script}\nfound = [name for name in '{absent}'.split() if name in set(sys.modules) - before]\n"
        "print(found, file=sys.stderr); sys.exit(bool(found))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_states_of_ones_own_are_registered_by_one_function() -> None:
    assert papertape.register_state(CircuitState) is CircuitState
