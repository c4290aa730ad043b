"""One step at a time by the native backend: as eager, unless a gradient is due or something was changed."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode

import papertape.circuits.memory as memory
from papertape import DNC, NTM, SAM
from papertape.core import addressing
from papertape.core.circuit import Circuit
from papertape.core.kernels import native
from papertape.core.kernels.native import library
from papertape.core.kernels.native.step import Step
from papertape.core.state import leaves, map_state

pytestmark = pytest.mark.skipif(isinstance(library.load(), str), reason=str(library.load()))

INPUTS, OUTPUTS = 4, 3
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}

CIRCUITS: dict[str, Callable[..., Circuit]] = {
    "ntm": lambda **o: NTM(INPUTS, OUTPUTS, **({"memory_size": 21, "word_size": 7, "hidden_size": 17} | o)),
    "ntm-heads": lambda **o: NTM(
        INPUTS, OUTPUTS, **({"memory_size": 16, "num_reads": 3, "num_writes": 2, "masked_content": True} | o)
    ),
    "dnc": lambda **o: DNC(INPUTS, OUTPUTS, **({"memory_size": 19, "word_size": 5, "hidden_size": 33} | o)),
    "dnc-improved": lambda **o: DNC(
        INPUTS,
        OUTPUTS,
        **(
            {"memory_size": 32, "word_size": 6, "num_writes": 2, "masked_content": True, "memory_wipe": True}
            | {"link_sharpening": True, "squash": "tanh"}
            | o
        ),
    ),
}
each_circuit = pytest.mark.parametrize("build", CIRCUITS.values(), ids=CIRCUITS.keys())


@pytest.fixture(params=["rows", "columns"])
def memories(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a step leaves a memory of 16 or 32 slots: large ones stay as the library works on them."""
    if request.param == "columns":
        monkeypatch.setattr(sys.modules[Step.__module__], "LARGE", 0)
    return str(request.param)


either_memory = pytest.mark.usefixtures("memories")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry for each native step."""
    found: list[Any] = []
    run = Step.run

    def counted(self: Step, *arguments: Any) -> Any:
        found.append(arguments)
        return run(self, *arguments)

    monkeypatch.setattr(Step, "run", counted)
    return found


def acted(circuit: Circuit, inputs: Tensor, state: Any = None) -> list[Tensor]:
    """All answers, one after another, and the leaves of the last state."""
    answers = []
    for x in inputs:
        y, state = circuit.step(x, state)
        answers.append(y)
    return [torch.stack(answers), *leaves(state)]


def moved(state: Any) -> Any:
    """A state moved a little in every leaf: no two slots are alike, between which rounding would decide."""
    return map_state(lambda leaf: leaf.detach() + 0.5 * torch.rand_like(leaf) / (leaf.shape[-1] + 1), state)


def assert_like_eager(circuit: Circuit, inputs: Tensor, state: Any = None) -> None:
    """Steps of the circuit against those of the same one in float64, as they are written."""
    dtype = inputs.dtype
    state = moved(circuit.initial_state(inputs.shape[1])) if state is None else state
    found = acted(circuit, inputs, state)
    before = circuit.backend
    circuit.double().backend = "eager"
    expected = acted(circuit, inputs.double(), map_state(lambda leaf: leaf.double(), state))
    circuit.to(dtype).backend = before
    for part, reference in zip(found, expected, strict=True):
        assert part.dtype == dtype
        torch.testing.assert_close(
            part.double(), reference, rtol=0, atol=TOLERANCE[dtype] * (1 + reference.abs().max())
        )


@either_memory
@each_circuit
@pytest.mark.parametrize("controller", ["lstm", "gru", "feedforward"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 9, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_are_those_of_eager(
    build: Callable[..., Circuit], controller: str, layers: int, batch: int, dtype: torch.dtype, steps: list[Any]
) -> None:
    torch.manual_seed(0)
    circuit = build(controller=controller, num_layers=layers, dtype=dtype)
    with torch.no_grad():
        assert_like_eager(circuit, torch.randn(3, batch, INPUTS, dtype=dtype))
    assert len(steps) == 3
    assert circuit.chosen_backend == "native"


@either_memory
@pytest.mark.parametrize("name", library.INSTRUCTION_SETS)
@pytest.mark.parametrize("batch", [1, 4, 7])
@each_circuit
def test_every_instruction_set(
    build: Callable[..., Circuit], batch: int, name: str, monkeypatch: pytest.MonkeyPatch, steps: list[Any]
) -> None:
    variant = library.load_variant(name)
    if isinstance(variant, str):
        pytest.skip(variant)
    torch.manual_seed(0)
    circuit = build(controller="gru")
    with torch.no_grad():
        circuit.step(torch.randn(batch, INPUTS))  # by another set, of which nothing may be left
        monkeypatch.setattr(library, "load", lambda: variant)
        steps.clear()
        assert_like_eager(circuit, torch.randn(4, batch, INPUTS))
    assert len(steps) == 4


@either_memory
@each_circuit
def test_steps_are_those_of_a_sequence(build: Callable[..., Circuit], steps: list[Any]) -> None:
    torch.manual_seed(0)
    circuit, inputs = build(dtype=torch.float64), torch.randn(7, 3, INPUTS, dtype=torch.float64)
    with torch.no_grad():
        outputs, last = circuit(inputs)
        found = acted(circuit, inputs)
    for part, reference in zip(found, [outputs, *leaves(last)], strict=True):
        torch.testing.assert_close(part, reference, rtol=0, atol=1e-10)
    assert len(steps) == 7


@either_memory
@each_circuit
def test_the_state_is_left_as_it_was(build: Callable[..., Circuit], steps: list[Any]) -> None:
    torch.manual_seed(0)
    circuit, x = build(), torch.randn(2, INPUTS)
    with torch.no_grad():
        _, state = circuit.step(x)
        before = [leaf.clone() for leaf in leaves(state)]
        first, second = circuit.step(x, state), circuit.step(x, state)
    assert all(map(torch.equal, leaves(state), before))
    assert all(map(torch.equal, [first[0], *leaves(first[1])], [second[0], *leaves(second[1])]))
    held = {leaf.untyped_storage().data_ptr() for leaf in leaves(state)}
    assert held.isdisjoint(leaf.untyped_storage().data_ptr() for leaf in leaves(first[1]))
    assert len(steps) == 3


@each_circuit
def test_gradients_are_eagers_also_twice(build: Callable[..., Circuit], steps: list[Any]) -> None:
    torch.manual_seed(0)
    circuit, x = build(), torch.randn(2, INPUTS)
    with torch.no_grad():
        _, state = circuit.step(x)
        steps.clear()
    y, after = circuit.step(x, state)
    (gradient,) = torch.autograd.grad(y.sum(), [circuit.output.weight], create_graph=True)  # type: ignore[union-attr]
    assert gradient.abs().sum() > 0 and after.reads.requires_grad
    for parameter in circuit.parameters():
        parameter.requires_grad_(False)
    assert steps == []
    circuit.step(x, state)
    assert len(steps) == 1  # nothing is due
    y, _ = circuit.step(x.clone().requires_grad_(), state)
    y, _ = circuit.step(x, map_state(lambda leaf: leaf.clone().requires_grad_(), state))
    assert y.requires_grad and len(steps) == 1


def test_weights_are_read_at_every_step(steps: list[Any]) -> None:
    torch.manual_seed(0)
    circuit, x = CIRCUITS["ntm"](), torch.randn(1, INPUTS)
    other = CIRCUITS["ntm"]()

    def check() -> None:
        steps.clear()
        with torch.no_grad():
            found = circuit.step(x, state)
            assert len(steps) == 1
            circuit.backend = "eager"
            expected = circuit.step(x, state)
            circuit.backend = "auto"
        parts = zip([found[0], *leaves(found[1])], [expected[0], *leaves(expected[1])], strict=True)
        for part, reference in parts:
            torch.testing.assert_close(part, reference, rtol=0, atol=1e-5)

    with torch.no_grad():
        _, state = circuit.step(x)
        for parameter in circuit.parameters():
            parameter.add_(0.1)
        check()
        for parameter in circuit.parameters():
            parameter.data.mul_(0.5)
        check()
        for parameter, given in zip(circuit.parameters(), other.parameters(), strict=True):
            parameter.data = given.detach().clone()
        check()
        circuit.controller.inputs[0].weight = nn.Parameter(torch.randn_like(circuit.controller.inputs[0].weight))
        check()
        circuit.load_state_dict(other.state_dict(), assign=True)
        check()


@contextlib.contextmanager
def hooked(circuit: Any) -> Any:
    handle = circuit.controller.inputs[0].register_forward_hook(lambda *_: None)
    yield
    handle.remove()


@contextlib.contextmanager
def replaced(circuit: Any) -> Any:
    circuit.transition = type(circuit).transition.__get__(circuit)
    yield
    del circuit.transition


@contextlib.contextmanager
def not_contiguous(circuit: Any) -> Any:
    weight = circuit.accessor.interface.linear.weight
    held = weight.data
    weight.data = held.T.contiguous().T
    yield
    weight.data = held


@contextlib.contextmanager
def lower_precision(circuit: Any) -> Any:
    circuit.autocast = torch.bfloat16
    yield
    circuit.autocast = None


class Passing(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


STEPPING_ASIDE: dict[str, Any] = {
    "hook": hooked,
    "replaced": replaced,
    "not contiguous": not_contiguous,
    "autocast": lower_precision,
    "torch.autocast": lambda circuit: torch.autocast("cpu", dtype=torch.bfloat16),
    "a mode": lambda circuit: Passing(),
}


@pytest.mark.parametrize("change", STEPPING_ASIDE.values(), ids=STEPPING_ASIDE.keys())
@pytest.mark.parametrize("checked", [False, True])
def test_it_steps_aside_and_comes_back(change: Any, checked: bool, steps: list[Any]) -> None:
    torch.manual_seed(0)
    circuit, x = CIRCUITS["ntm"](), torch.randn(1, INPUTS)
    with torch.no_grad():
        state = circuit.initial_state(1)
        if not checked:
            circuit.step(x, state)
            steps.clear()
        with change(circuit):
            circuit.step(x, state)
        assert steps == []
        circuit.step(x, state)
    assert len(steps) == 1


class Doubled(NTM):
    def answer(self, features: Tensor) -> Tensor:
        return super().answer(features) * 2


def with_a_hook(circuit: Any) -> None:
    circuit.output.register_forward_hook(lambda module, given, answered: answered + 1)


def with_another_layer(circuit: Any) -> None:
    circuit.output = nn.Sequential(circuit.output, nn.Tanh())


def without_biases(circuit: Any) -> None:
    circuit.output = nn.Linear(circuit.output.in_features, OUTPUTS, bias=False)


def pruned(circuit: Any) -> None:
    prune.l1_unstructured(circuit.output, "weight", 0.5)


def normalised(circuit: Any) -> None:
    torch.nn.utils.parametrizations.weight_norm(circuit.output)


def with_a_negative_bit(circuit: Any) -> None:
    circuit.output.weight.data = torch._neg_view(circuit.output.weight.data)


def with_strides(circuit: Any) -> None:
    circuit.output.weight.data = circuit.output.weight.data.T.contiguous().T


def with_an_answer(circuit: Any) -> None:
    circuit.answer = lambda features: features[..., :OUTPUTS]


@pytest.mark.parametrize("batch", [1, 9])
@pytest.mark.parametrize(
    ("kind", "change", "natively"),
    [
        (NTM, None, True),
        (Doubled, None, False),
        *((NTM, change, False) for change in (with_a_hook, with_another_layer, without_biases, with_strides)),
        *((NTM, change, False) for change in (pruned, normalised, with_a_negative_bit)),
        (NTM, with_an_answer, False),
    ],
)
def test_the_output_layer_is_native_where_it_is_plain(
    kind: type[NTM], change: Any, natively: bool, batch: int, steps: list[Any]
) -> None:
    torch.manual_seed(0)
    circuit, inputs = kind(INPUTS, OUTPUTS, memory_size=9, word_size=4, hidden_size=8), torch.randn(3, batch, INPUTS)
    if change is not None:
        change(circuit)
    with torch.no_grad():
        found = acted(circuit, inputs)
        assert [output is not None for *_, output in steps] == [natively] * 3
        circuit.backend = "eager"
        for part, reference in zip(found, acted(circuit, inputs), strict=True):
            torch.testing.assert_close(part, reference, rtol=0, atol=1e-5)


def test_another_formula_for_clipping_is_followed(steps: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    circuit, x = CIRCUITS["ntm"](), torch.randn(2, INPUTS)
    monkeypatch.setattr(memory, "clipped", lambda outputs, clip: torch.tanh(outputs) / 2)
    with torch.no_grad():
        state = circuit.initial_state(2)
        torch.testing.assert_close(circuit.step(x, state)[0], circuit(x.unsqueeze(0), state)[0][0])
    assert [output for *_, output in steps] == [None]


@pytest.mark.parametrize("build", [CIRCUITS["ntm"], CIRCUITS["dnc"]])
def test_a_weight_that_is_turned_where_it_lies(build: Callable[..., Circuit], steps: list[Any]) -> None:
    torch.manual_seed(0)
    circuit, x = build(controller="rnn", hidden_size=9), torch.randn(2, INPUTS)
    weight = circuit.controller.recurrents[0].weight
    with torch.no_grad():
        _, state = circuit.step(x)
        circuit.step(x, state)
        weight.data = weight.data.T
        found, _ = circuit.step(x, state)
        circuit.backend = "eager"
        torch.testing.assert_close(found, circuit.step(x, state)[0])


@pytest.mark.parametrize("part", ["input", "state"])
def test_tensors_that_are_the_negative_of_what_lies_in_memory(part: str, steps: list[Any]) -> None:
    torch.manual_seed(0)
    circuit, x = CIRCUITS["ntm"](), torch.randn(2, INPUTS)
    with torch.no_grad():
        _, state = circuit.step(x)
        circuit.step(x, state)
        if part == "input":
            x = torch._neg_view(x)
        else:
            state = state._replace(reads=torch._neg_view(state.reads))
        found = circuit.step(x, state)[0], circuit(x.unsqueeze(0), state)[0][0]
        circuit.backend = "eager"
        for outputs in found:
            torch.testing.assert_close(outputs, circuit.step(x, state)[0])


def test_an_output_layer_that_alone_learns_gets_its_gradient(steps: list[Any]) -> None:
    torch.manual_seed(0)
    circuit, x = CIRCUITS["ntm"](), torch.randn(2, INPUTS)
    circuit.requires_grad_(False)
    circuit.output.requires_grad_(True)
    outputs, _ = circuit.step(x)
    assert [output for *_, output in steps] == [None]
    outputs.sum().backward()
    assert circuit.output.weight.grad is not None and circuit.output.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("batch", [1, 9])
def test_outputs_are_clipped_as_the_circuit_says_now(batch: int, steps: list[Any]) -> None:
    torch.manual_seed(0)
    circuit, x = CIRCUITS["ntm"](), torch.randn(batch, INPUTS)
    with torch.no_grad():
        circuit.output.weight.mul_(1e3)
        circuit.output.bias[0] = torch.nan
        whole = circuit.output(circuit.transition(x, circuit.initial_state(batch))[0])
        for clip in (20.0, None, 3.0, 20.0):
            circuit.clip = clip
            outputs, _ = circuit.step(x)
            expected = whole if clip is None else whole.clamp(-clip, clip)
            torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-2, equal_nan=True)
    assert len(steps) == 4 and whole[:, 1:].abs().max() > 20


def test_options_and_constants_that_change(steps: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    circuit, inputs = CIRCUITS["dnc"](), torch.randn(3, 2, INPUTS)
    with torch.no_grad():
        assert_like_eager(circuit, inputs)
        circuit.accessor.memory_wipe = True
        assert_like_eager(circuit, inputs)
        circuit.controller.clip = 0.01
        assert_like_eager(circuit, inputs)
        monkeypatch.setattr(addressing, "NORM_EPSILON", 0.2)
        assert_like_eager(circuit, inputs)
        sizes = circuit.accessor.interface.sizes
        circuit.accessor.interface.sizes = dict(sorted(sizes.items(), key=lambda part: part[0][::-1]))
        assert_like_eager(circuit, inputs)
        assert len(steps) == 15
        circuit.double()
        assert_like_eager(circuit, inputs.double())
        assert len(steps) == 18


def test_other_batches_memories_and_layouts(steps: list[Any]) -> None:
    torch.manual_seed(0)
    circuit = CIRCUITS["ntm"]()
    with torch.no_grad():
        for batch, slots in ((1, 21), (3, 21), (1, 21), (1, 40), (3, 5), (1, 21)):
            assert_like_eager(
                circuit, torch.randn(2, batch, INPUTS), moved(circuit.initial_state(batch, memory_size=slots))
            )
        x = torch.randn(INPUTS, 3).T
        state = map_state(
            lambda leaf: leaf.transpose(0, 1).contiguous().transpose(0, 1), moved(circuit.initial_state(3))
        )
        assert_like_eager(circuit, x[None], state)
    assert len(steps) == 13


@pytest.mark.parametrize("name", ["ntm-heads", "dnc-improved"])
def test_a_memory_in_columns_goes_wherever_one_in_rows_does(
    name: str, memories: str, steps: list[Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    circuit, inputs = CIRCUITS[name](dtype=torch.float64), torch.randn(5, 3, INPUTS, dtype=torch.float64)
    with torch.no_grad():
        _, state = circuit.step(inputs[0])
        _, state = circuit.step(inputs[1], state)
        assert state.accessor.memory.is_contiguous() == (memories == "rows")
        expected = acted(circuit, inputs, state)
        in_rows = map_state(lambda leaf: leaf.contiguous(), state)
        torch.save(list(leaves(state)), tmp_path / "state.pt")
        saved = iter(torch.load(tmp_path / "state.pt", weights_only=True))
        for other in (in_rows, map_state(Tensor.clone, state), map_state(lambda leaf: next(saved), state)):
            assert all(map(torch.equal, acted(circuit, inputs, other), expected))
        some = acted(circuit, inputs[:, [2, 0]], map_state(lambda leaf: leaf[[2, 0]], state))
        outputs, last = circuit(inputs, state)
        circuit.backend = "eager"
        as_written = acted(circuit, inputs, state)
    for part, whole in zip(some, expected, strict=True):
        torch.testing.assert_close(part, whole[:, [2, 0]] if part is some[0] else whole[[2, 0]], rtol=0, atol=1e-12)
    for found in ([outputs, *leaves(last)], as_written):
        for part, reference in zip(found, expected, strict=True):
            torch.testing.assert_close(part, reference, rtol=0, atol=1e-10)
    assert len(steps) == 2 + 4 * 5 + 5


def test_many_batches_are_not_all_remembered(steps: list[Any]) -> None:
    circuit = CIRCUITS["ntm"]()
    with torch.no_grad():
        for batch in range(1, 4 * native.MOST_STEPS):
            circuit.step(torch.zeros(batch, INPUTS))
    assert len(steps) == 4 * native.MOST_STEPS - 1
    assert len(native._known(circuit).steps) <= native.MOST_STEPS  # type: ignore[arg-type]


def test_what_is_wrong_is_said_as_before(steps: list[Any]) -> None:
    circuit, x = CIRCUITS["ntm"](), torch.randn(2, INPUTS)
    with torch.no_grad():
        _, state = circuit.step(x)
        steps.clear()
        with pytest.raises(ValueError, match="inputs: got shape"):
            circuit.step(torch.randn(2, INPUTS + 1), state)
        with pytest.raises(ValueError, match="state: got a batch of 2; the inputs have a batch of 3"):
            circuit.step(torch.randn(3, INPUTS), state)
        with pytest.raises(ValueError, match="the circuit has torch.float32"):
            circuit.step(x.double(), state)
        with pytest.raises(ValueError, match="state"):
            circuit.step(x, map_state(lambda leaf: leaf.double(), state))
        with pytest.raises(ValueError, match="state"):
            circuit.step(x, tuple(state))
        with pytest.raises(ValueError, match="inputs: got a list"):
            circuit.step([1.0], state)  # type: ignore[arg-type]
        assert steps == []
        circuit.step(x.half().requires_grad_(False), state)  # held without loss
    assert len(steps) == 1


def test_transforms_see_every_operation(steps: list[Any]) -> None:
    circuit, x = CIRCUITS["dnc"](), torch.randn(2, INPUTS)
    with torch.no_grad():
        _, state = circuit.step(x)
        expected, _ = circuit.step(x, state)
    steps.clear()

    def stepped(x: Tensor) -> Tensor:
        return circuit.step(x, state)[0]

    with torch.no_grad():
        mapped = torch.func.vmap(stepped)(torch.stack([x, x]))
    torch.testing.assert_close(mapped[1], expected)
    _, tangent = torch.func.jvp(stepped, (x,), (torch.ones_like(x),))
    assert tangent.abs().sum() > 0
    assert torch.func.jacrev(stepped)(x).shape == (2, OUTPUTS, 2, INPUTS)
    assert steps == []


def test_threads_step_at_once() -> None:
    torch.manual_seed(0)
    circuit, inputs = CIRCUITS["ntm"](), torch.randn(30, 2, INPUTS)
    with torch.no_grad():
        expected = acted(circuit, inputs)
    found: list[list[Tensor]] = []

    def work() -> None:
        with torch.no_grad():
            found.append(acted(circuit, inputs))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(a, e) for made in found for a, e in zip(made, expected, strict=True))


def test_other_backends_and_memories_step_as_they_are_written(steps: list[Any]) -> None:
    with torch.no_grad():
        CIRCUITS["ntm"](backend="eager").step(torch.randn(1, INPUTS))
        SAM(INPUTS, OUTPUTS, memory_size=9).step(torch.randn(1, INPUTS))
        circuit = CIRCUITS["ntm"](backend="native", controller="direct", hidden_size=None)
        circuit.step(torch.randn(1, INPUTS))
    assert steps == []
    assert "no DirectController" in str(
        native.unavailable(circuit, torch.randn(1, 1, INPUTS), circuit.initial_state(1))
    )
