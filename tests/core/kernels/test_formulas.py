"""Kernels run what is written: where a formula, a method or an option is another, something else runs."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import papertape
from papertape import DNC, NTM, SAM
from papertape.circuits import MemoryCircuit
from papertape.core import addressing, interface, sparse_addressing
from papertape.core.accessors import DynamicAccessor, SparseAccessor, StaticAccessor, dynamic, static
from papertape.core.controllers import Controller, FeedForwardController, GRUController, LSTMController
from papertape.core.interface import Interface
from papertape.core.kernels import dispatch, formulas, guard, native, triton
from papertape.core.kernels.agreed import AGREED
from papertape.core.sparse_memory import WorkingMemory

STEPS, BATCH, INPUTS, OUTPUTS = 3, 2, 4, 2
CONTROLLERS = {"lstm": LSTMController, "gru": GRUController, "feedforward": FeedForwardController}


def make(circuit: type[MemoryCircuit] = NTM, **options: Any) -> MemoryCircuit:
    torch.manual_seed(0)
    return circuit(INPUTS, OUTPUTS, hidden_size=4, memory_size=5, word_size=3, **options).double()


def inputs() -> Tensor:
    return torch.rand(STEPS, BATCH, INPUTS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def reasons(circuit: MemoryCircuit) -> list[str | None]:
    """Why each kernel stands aside, for single circuits and for populations."""
    parameters = {name: torch.stack([part, part]) for name, part in circuit.named_parameters()}
    x, state = inputs(), circuit.initial_state(BATCH)
    found = [native.unavailable(circuit, x, state)]
    if not isinstance(circuit.accessor, SparseAccessor):
        found.append(native.population_unavailable(circuit, parameters, x))
        found.append(guard.known("triton", circuit, triton.ACCESSORS, None).changed(circuit))
    return found


def assert_as_written(circuit: MemoryCircuit, name: str) -> None:
    """Every kernel stands aside and names the reason; what runs is what is written, and a warning says why, once."""
    for reason in reasons(circuit):
        assert reason is not None and name in reason
    expected, _ = make_eager_copy(circuit)(inputs())
    assert torch.equal(circuit(inputs())[0], expected) and circuit.chosen_backend == "eager"


def test_it_runs_where_nothing_was_changed() -> None:
    for circuit in (make(), make(DNC), make(SAM)):
        assert set(reasons(circuit)) == {None}


# ---- options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("circuit", "accessor"), [(NTM, StaticAccessor), (DNC, DynamicAccessor)])
def test_an_option_that_a_subclass_of_an_accessor_adds(circuit: Any, accessor: Any) -> None:
    class Curious(accessor):
        curiosity: float = 0.5

    built = make(circuit)
    built.accessor = Curious(4, memory_size=5, word_size=3, num_reads=built.accessor.num_reads).double()
    assert built.accessor.specification()["curiosity"] == 0.5
    assert built.accessor.specification()["memory_size"] == 5
    assert_as_written(built, "the option curiosity of Curious")


@pytest.mark.parametrize("name", CONTROLLERS)
def test_an_option_that_a_subclass_of_a_controller_adds(name: str) -> None:
    class Curious(CONTROLLERS[name]):
        curiosity: float = 0.5

        def setup(self) -> None:
            super().setup()
            del self.curiosity  # it does not even keep it

    built = NTM(INPUTS, OUTPUTS, controller=Curious(INPUTS + 3, hidden_size=4), memory_size=5, word_size=3).double()
    assert all("the option curiosity of Curious" in str(reason) for reason in reasons(built)[:2])
    whole = guard.known("sequences", built, triton.ACCESSORS, dict.fromkeys(CONTROLLERS, guard.CONTROLLER))
    assert "the option curiosity of Curious" in str(whole.changed(built))


def test_a_value_that_kernels_do_not_know() -> None:
    circuit = make(DNC)
    circuit(inputs())
    circuit.accessor.squash = "softsign"
    assert_as_written(circuit, "squash='softsign'")


def test_a_subclass_that_changes_nothing_keeps_its_kernels() -> None:
    class Named(LSTMController):
        def describe(self) -> str:
            return "mine"

    built = NTM(INPUTS, OUTPUTS, controller=Named(INPUTS + 3, hidden_size=4), memory_size=5, word_size=3).double()
    assert reasons(built)[:2] == [None, None]


# ---- what is replaced --------------------------------------------------------------------------------------------

FUNCTIONS = {
    NTM: [
        *((addressing, name) for name in ("content_weights", "cosine_similarity", "location_weights", "write", "read")),
        (addressing, "torch"),
        *((static, name) for name in ("oneplus", "lookup_mask", "functional")),
        *((StaticAccessor, "forward"), (StaticAccessor, "heads"), (Interface, "forward"), (Interface, "parts")),
        *((LSTMController, "forward"), (Controller, "clipped")),
        *((MemoryCircuit, "transition"), (nn.Linear, "forward"), (nn.Module, "__call__")),
    ],
    DNC: [
        *((addressing, name) for name in ("usage", "retention", "allocation_weights", "link", "precedence")),
        *((addressing, name) for name in ("directional_weights", "sharpen_links", "write_union")),
        *((DynamicAccessor, "forward"), (DynamicAccessor, "heads"), (DynamicAccessor, "_words"), (dynamic, "oneplus")),
    ],
    SAM: [
        *((sparse_addressing, name) for name in ("similarity", "top_k")),
        *((SparseAccessor, name) for name in ("forward", "_access")),
        *((WorkingMemory, name) for name in ("most_similar", "least_recent")),
    ],
}


@pytest.mark.parametrize(
    ("circuit", "owner", "name"), [(circuit, *at) for circuit, all_of in FUNCTIONS.items() for at in all_of]
)
def test_what_is_replaced_in_a_module_or_a_class(
    circuit: Any, owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = make(circuit)
    built(inputs())
    assert built.chosen_backend == "native"
    own = getattr(owner, name)
    replacement: Any
    if isinstance(own, type(torch)):
        replacement = type(torch)("other")
    else:

        def replacement(*arguments: Any, **options: Any) -> Any:
            return own(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, replacement)
        state = built.initial_state(BATCH)
        reason = native.unavailable(built, inputs(), state)
        assert isinstance(reason, formulas.Skipped) and (name in reason or "transition" in reason)
    assert native.unavailable(built, inputs(), state) is None


def test_a_constant_that_kernels_were_compiled_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """The native ones are given it at each call."""
    assert formulas.other_constants() is None
    monkeypatch.setattr(interface, "MASK_MIN", 0.3)
    assert "MASK_MIN" in str(formulas.other_constants())


def test_a_method_put_into_a_class_that_had_none(monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = make()
    monkeypatch.setattr(StaticAccessor, "__call__", nn.Module.__call__, raising=False)
    assert_as_written(circuit, "__call__ of StaticAccessor")


@pytest.mark.parametrize("part", ["controller", "accessor", "accessor.interface", "controller.inputs.0"])
@pytest.mark.parametrize("name", ["forward", "_call_impl"])
def test_what_is_put_into_a_module(part: str, name: str) -> None:
    circuit = make()
    circuit(inputs())
    module = circuit.get_submodule(part)
    module.__dict__[name] = getattr(module, name)
    reason = native.unavailable(circuit, inputs(), circuit.initial_state(BATCH))
    assert reason is not None and name in reason


@pytest.mark.parametrize(
    "change",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.orthogonal,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: layer.register_forward_hook(lambda *_: None),
        lambda layer: layer.register_forward_pre_hook(lambda *_: None),
        lambda layer: layer.register_full_backward_hook(lambda *_: None),
    ],
    ids=["weight_norm", "spectral_norm", "orthogonal", "prune", "forward hook", "forward pre hook", "backward hook"],
)
@pytest.mark.parametrize("part", ["controller.inputs.0", "controller.recurrents.0", "accessor.interface.linear"])
def test_what_torch_hangs_on_a_layer(part: str, change: Callable[[nn.Module], Any]) -> None:
    circuit = make().eval()
    circuit(inputs())
    change(circuit.get_submodule(part))
    expected = make_eager_copy(circuit)(inputs())[0]
    torch.testing.assert_close(circuit(inputs())[0], expected)
    assert circuit.chosen_backend == "eager"


def make_eager_copy(circuit: MemoryCircuit) -> Callable[..., Any]:
    def run(x: Tensor) -> Any:
        chosen, circuit.backend = circuit.backend, "eager"
        try:
            return circuit(x)
        finally:
            circuit.backend = chosen

    return run


def test_a_layer_that_is_exchanged() -> None:
    class Twice(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    circuit = make()
    circuit(inputs())
    old = circuit.controller.inputs[0]
    circuit.controller.inputs[0] = Twice(old.in_features, old.out_features).double()
    for reason in reasons(circuit)[:2]:  # Triton's kernels of a step run the controller as it is
        assert "forward of Twice" in str(reason)
    torch.testing.assert_close(circuit(inputs())[0], make_eager_copy(circuit)(inputs())[0])
    circuit.controller.inputs[0] = nn.Linear(old.in_features, old.out_features).double()
    circuit(inputs())
    assert circuit.chosen_backend == "native"


def test_it_is_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatch._warn_of_slowness.cache_clear()
    monkeypatch.setattr(addressing, "write", lambda memory, weights, erase, add: memory + weights.mT @ add)
    with caplog.at_level(logging.WARNING, dispatch.__name__):
        for _ in range(3):
            make()(inputs())
    assert [record.message.partition(";")[0] for record in caplog.records] == [
        "native: it would skip the replaced write of papertape.core.addressing"
    ]


# ---- what is edited ----------------------------------------------------------------------------------------------


def test_the_formulas_are_those_that_the_kernels_agree_with() -> None:
    """After a change of both: python -m papertape.core.kernels.formulas."""
    assert formulas.identities() == AGREED


def test_comments_and_annotations_mean_nothing_and_numbers_do() -> None:
    source = 'def f(x: int) -> int:\n    """What."""\n    return x + 1\n'
    same = "def f(x):\n    # so\n    return x + 1\n"
    assert formulas.identity(source) == formulas.identity(same) != formulas.identity(same.replace("1", "2"))
    assert formulas.identity(source + "y = 2\n", ["f"]) == formulas.identity(same + "y = 3\n", ["f"])


@pytest.mark.slow
@pytest.mark.parametrize("file", ["core/addressing.py", "core/interface.py", "core/controllers/lstm.py"])
def test_edited_formulas_run_as_they_are_edited(file: str, tmp_path: Path) -> None:
    root = Path(papertape.__file__).parent
    copy = tmp_path / "papertape"
    shutil.copytree(
        root, copy, ignore=shutil.ignore_patterns("runs", ".typing", "tests", ".git", "__pycache__", "build", ".venv")
    )
    edits = {
        "core/addressing.py": ("return weights @ memory", "return 2 * (weights @ memory)"),
        "core/interface.py": ("return 1 + functional.softplus(x)", "return 2 + functional.softplus(x)"),
        "core/controllers/lstm.py": ("torch.tanh(candidate)", "torch.sin(candidate)"),
    }
    text = (copy / file).read_text()
    assert edits[file][0] in text
    (copy / file).write_text(text.replace(*edits[file]))
    script = (
        "import torch, papertape; torch.manual_seed(0); c = papertape.NTM(3, 2, memory_size=5, word_size=3)\n"
        "x = torch.rand(3, 2, 3); y = c(x)[0]; chosen = c.chosen_backend; c.backend = 'eager'\n"
        "assert chosen == 'eager' and torch.equal(c(x)[0], y)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"{file} was edited since the kernels were made to agree with it") == 1
