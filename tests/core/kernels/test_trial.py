"""Kernels run automatically only after a small sequence of theirs was like eager's; the verdict is kept."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from papertape import DNC, NTM, SAM, SDNC
from papertape.core.circuit import Circuit
from papertape.core.kernels import dispatch, eager, native, trial
from papertape.core.kernels.native import library
from papertape.core.state import map_state

pytestmark = pytest.mark.skipif(isinstance(library.load(), str), reason=str(library.load()))

ROOT = Path(__file__).parents[3]
RIGHT, RIGHT_POPULATION = native.run, native.run_population


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is known yet, and what is found out is kept in a place of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(trial, "_verdicts", {})
    dispatch._warn_of_slowness.cache_clear()
    return tmp_path / "papertape" / "kernels"


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry for each trial."""
    found: list[Any] = []
    tried = trial._tried

    def counted(*arguments: Any) -> Any:
        found.append(arguments)
        return tried(*arguments)

    monkeypatch.setattr(trial, "_tried", counted)
    return found


def ntm(**options: Any) -> Circuit:
    return NTM(3, 2, memory_size=7, word_size=4, hidden_size=6, **options)


def runs_on(circuit: Circuit) -> str | None:
    """The backend that takes a short sequence."""
    dtype = next(circuit.parameters()).dtype
    circuit(torch.zeros(2, 1, circuit.input_size, dtype=dtype))
    chosen: str | None = circuit.chosen_backend  # type: ignore[attr-defined]
    return chosen


def scaled(circuit: Any, inputs: Tensor, state: Any) -> Any:
    features, last = RIGHT(circuit, inputs, state)
    return features * 1.01, last


def one_element(circuit: Any, inputs: Tensor, state: Any) -> Any:
    features, last = RIGHT(circuit, inputs, state)
    features = features.clone()
    features[-1, -1, -1] += 0.05
    return features, last


def other_state(circuit: Any, inputs: Tensor, state: Any) -> Any:
    features, last = RIGHT(circuit, inputs, state)
    return features, last._replace(reads=last.reads + 0.01)


def other_gradient(circuit: Any, inputs: Tensor, state: Any) -> Any:
    features, last = RIGHT(circuit, inputs, state)
    return features * 1.1 - features.detach() * 0.1, last


def no_gradient(circuit: Any, inputs: Tensor, state: Any) -> Any:
    features, last = RIGHT(circuit, inputs.detach(), state)
    return features, last


def no_number(circuit: Any, inputs: Tensor, state: Any) -> Any:
    features, last = RIGHT(circuit, inputs, state)
    return features * torch.nan, last


def another_shape(circuit: Any, inputs: Tensor, state: Any) -> Any:
    features, last = RIGHT(circuit, inputs, state)
    return features[:-1], last


def failing(circuit: Any, inputs: Tensor, state: Any) -> Any:
    raise RuntimeError("no kernel image\nis available")


WRONG = [scaled, one_element, other_state, other_gradient, no_gradient, no_number, another_shape, failing]


@pytest.mark.parametrize("kind", [NTM, DNC, SAM, SDNC])
@pytest.mark.parametrize("controller", ["lstm", "gru", "feedforward", "automaton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_kind_is_trusted_after_one_trial(
    kind: Any, controller: str, dtype: torch.dtype, cache: Path, trials: list[Any]
) -> None:
    for size in (8, 21):
        assert runs_on(kind(2, 2, memory_size=size, controller=controller, dtype=dtype)) == "native"
    assert len(trials) == 1
    assert [json.loads(path.read_text())["reason"] for path in cache.iterdir()] == [None]


OPTIONS: list[Callable[[], Circuit]] = [
    lambda: NTM(2, 2, num_reads=3, num_writes=4, shift_range=7, masked_content=True, num_layers=3, clip=None),
    lambda: NTM(2, 2, shift_range=0, memory_init="learned", weight_init="learned", memory_size=1, word_size=1),
    lambda: NTM(2, 2, memory_init="truncated_normal", clip=0.01),
    lambda: DNC(2, 2, memory_size=9, num_writes=3, masked_content=True, link_sharpening=True, squash="tanh"),
    lambda: DNC(2, 2, memory_size=9, memory_wipe=True, usage_gradient=True, num_reads=1),
    lambda: SAM(2, 2, memory_size=9, num_writes=4, slots_per_read=9),
    lambda: SDNC(2, 2, memory_size=3, links_per_slot=8, num_reads=1),
]


@pytest.mark.parametrize("build", OPTIONS)
def test_every_option_is_tried(build: Callable[[], Circuit], trials: list[Any]) -> None:
    assert runs_on(build()) == "native"
    assert len(trials) == 1


@pytest.mark.parametrize("wrong", WRONG)
def test_what_differs_is_left_out_and_said_once(
    wrong: Any, cache: Path, trials: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native, "run", wrong)
    torch.manual_seed(0)
    circuits = [ntm(), ntm()]
    for circuit in circuits:
        assert [runs_on(circuit) for _ in range(2)] == ["eager", "eager"]
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1 and said[0].startswith("native: ") and "small sequence" in said[0], said
    assert "\n" not in said[0] and str(cache) in said[0]
    assert len(trials) == 1
    inputs = torch.rand(3, 2, 3)
    circuits[1].load_state_dict(circuits[0].state_dict())
    circuits[1].backend = "eager"
    assert torch.equal(circuits[0](inputs)[0], circuits[1](inputs)[0])
    # What is asked for by name is what runs.
    assert native.unavailable(ntm(backend="native"), inputs, circuits[0].initial_state(2)) is None
    assert len(trials) == 1


def test_others_are_not_left_out_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_for_some(circuit: Any, inputs: Tensor, state: Any) -> Any:
        wrong = circuit.accessor.kind == "static" and inputs.dtype == torch.float32
        return (scaled if wrong else RIGHT)(circuit, inputs, state)

    monkeypatch.setattr(native, "run", wrong_for_some)
    assert runs_on(ntm()) == "eager"
    assert runs_on(ntm(dtype=torch.float64)) == "native"
    assert runs_on(DNC(2, 2, memory_size=5)) == "native"


def test_a_circuit_that_changes_is_tried_anew(trials: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_with_masks(circuit: Any, inputs: Tensor, state: Any) -> Any:
        return (scaled if circuit.accessor.memory_wipe else RIGHT)(circuit, inputs, state)

    monkeypatch.setattr(native, "run", wrong_with_masks)
    circuit = DNC(2, 2, memory_size=5)
    assert runs_on(circuit) == "native"
    circuit.accessor.memory_wipe = True
    assert runs_on(circuit) == "eager"
    circuit.accessor.memory_wipe = False
    assert runs_on(circuit) == "native"
    circuit.double()
    assert runs_on(circuit) == "native"
    assert len(trials) == 3


def test_forced_then_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "run", scaled)
    circuit = ntm(backend="native")
    assert runs_on(circuit) == "native"
    circuit.backend = "auto"
    assert runs_on(circuit) == "eager"
    circuit.backend = "native"
    assert runs_on(circuit) == "native"


def population(circuit: Circuit) -> dict[str, Tensor]:
    return {name: torch.stack([p.detach(), 0.5 * p.detach()]) for name, p in circuit.named_parameters()}


@pytest.mark.parametrize("kind", [NTM, DNC])
def test_populations_are_tried(kind: Any, trials: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = kind(2, 2, memory_size=7, word_size=3)
    inputs = torch.rand(2, 3, 2)
    right = circuit.run_population(population(circuit), inputs)
    assert circuit.chosen_backend == "native" and len(trials) == 1
    monkeypatch.setattr(trial, "_verdicts", {})
    monkeypatch.setattr(library, "identity", lambda: "another")
    monkeypatch.setattr(native, "run_population", lambda *given: RIGHT_POPULATION(*given) + 0.05)
    circuit = kind(2, 2, memory_size=7, word_size=3)
    circuit.load_state_dict(circuit.state_dict())
    answers = circuit.run_population(population(circuit), inputs)
    assert circuit.chosen_backend == "eager" and len(trials) == 2
    assert answers.shape == right.shape
    assert runs_on(circuit) == "native"  # sequences are another matter


# ---- the cache -------------------------------------------------------------------------------------------------------


def test_a_verdict_outlives_the_process(
    cache: Path, trials: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native, "run", scaled)
    assert runs_on(ntm()) == "eager"
    monkeypatch.setattr(native, "run", RIGHT)
    monkeypatch.setattr(trial, "_verdicts", {})  # as in another process
    assert runs_on(ntm()) == "eager"
    assert len(trials) == 1
    monkeypatch.setattr(trial, "_verdicts", {})
    next(cache.iterdir()).unlink()
    assert runs_on(ntm()) == "native"
    assert len(trials) == 2


def test_verdicts_of_long_ago_are_cleared(cache: Path, trials: list[Any]) -> None:
    """They may be of versions that are gone; what is not a verdict any more goes with them."""
    cache.mkdir(parents=True)
    ages = {"old.json": 366, ".old.part": 366, "new.json": 364}
    for name, days in ages.items():
        (cache / name).write_text("{}")
        then = time.time() - days * 24 * 3600
        os.utime(cache / name, (then, then))
    assert runs_on(ntm()) == "native"
    assert {path.name for path in cache.iterdir()} & set(ages) == {"new.json"}
    assert len(trials) == 1 and len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("what", ["library", "torch", "processor"])
def test_a_verdict_holds_for_what_it_was_found_with(
    what: str, trials: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert runs_on(ntm()) == "native"
    monkeypatch.setattr(trial, "_verdicts", {})
    if what == "library":
        monkeypatch.setattr(library, "identity", lambda: "avx9 0123")
    else:
        changed = {"torch": ("__version__", "9.9"), "processor": ("_processor", lambda: "another")}[what]
        monkeypatch.setattr(torch if what == "torch" else trial, *changed)
        trial._machine.cache_clear()
    assert runs_on(ntm()) == "native"
    assert len(trials) == 2
    trial._machine.cache_clear()


def garbage() -> dict[str, bytes]:
    return {
        "empty": b"",
        "cut": b'{"about": [',
        "binary": bytes(range(256)),
        "null": b"null",
        "list": b"[1, 2]",
        "other": b'{"about": ["native"], "reason": null}',
        "number": b'{"reason": 3}',
        "deep": b"[" * 100_000,
        "nan": b'{"about": NaN, "reason": NaN}',
    }


@pytest.mark.parametrize("content", garbage().values(), ids=garbage().keys())
def test_a_broken_file_is_as_none(
    content: bytes, cache: Path, trials: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert runs_on(ntm()) == "native"
    (path,) = cache.iterdir()
    path.write_bytes(content)
    monkeypatch.setattr(trial, "_verdicts", {})
    assert runs_on(ntm()) == "native"
    assert len(trials) == 2
    assert json.loads(path.read_text())["reason"] is None
    assert list(cache.iterdir()) == [path]


def test_a_reason_of_another_type_is_as_none(cache: Path, trials: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert runs_on(ntm()) == "native"
    (path,) = cache.iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), "reason": 7}))
    monkeypatch.setattr(trial, "_verdicts", {})
    assert runs_on(ntm()) == "native"
    assert len(trials) == 2


@pytest.mark.parametrize("place", ["a file", "not there", "relative", "no home", "a folder for a file", "full"])
def test_where_nothing_can_be_kept_it_runs_as_well(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    if place == "a file":
        (tmp_path / "papertape").write_text("")
    elif place == "not there":
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    elif place in ("relative", "no home"):
        monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
    elif place == "a folder for a file":
        assert runs_on(ntm()) == "native"
        (path,) = cache.iterdir()
        path.unlink()
        path.mkdir()
        monkeypatch.setattr(trial, "_verdicts", {})
    if place == "no home":

        def homeless() -> Path:
            raise RuntimeError("no home")

        monkeypatch.setattr(Path, "home", homeless)
    if place == "full":

        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(trial.json, "dump", full)
    monkeypatch.chdir(tmp_path)
    assert runs_on(ntm()) == "native"
    assert not (tmp_path / "somewhere").exists()
    if place == "relative":
        assert len(list((tmp_path / "home" / ".cache" / "papertape" / "kernels").iterdir())) == 1
    if place in ("full", "a folder for a file"):
        assert not [path for path in cache.iterdir() if path.is_file()]


def test_lack_of_memory_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: Any) -> Any:
        raise MemoryError("no memory for the scratch space")

    monkeypatch.setattr(native, "run", no_room)
    assert runs_on(ntm()) == "eager"
    assert not cache.exists()
    monkeypatch.setattr(native, "run", RIGHT)
    monkeypatch.setattr(trial, "_verdicts", {})
    assert runs_on(ntm()) == "native"


def test_processes_share_the_cache(cache: Path) -> None:
    script = (
        "import torch, papertape\n"
        "circuit = papertape.NTM(2, 2, memory_size=5)\n"
        "circuit(torch.zeros(2, 1, 2))\n"
        "print(circuit.chosen_backend)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0].strip() for process in running] == ["native"] * 3
    assert len(list(cache.iterdir())) == 1


# ---- nobody notices --------------------------------------------------------------------------------------------------


def test_threads_that_begin_together(trials: list[Any]) -> None:
    circuits = [ntm() for _ in range(4)]
    found: list[str | None] = []
    threads = [threading.Thread(target=lambda c=c: found.append(runs_on(c))) for c in circuits]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["native"] * 4
    assert len(trials) == 1


def test_random_numbers_are_left_alone(trials: list[Any]) -> None:
    for kind in (NTM, DNC, SAM, SDNC):
        circuit = kind(2, 2, memory_size=9)
        before = torch.get_rng_state()
        weights = [p.detach().clone() for p in circuit.parameters()]
        assert runs_on(circuit) == "native"
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(p, w) for p, w in zip(circuit.parameters(), weights, strict=True))
        assert all(p.grad is None for p in circuit.parameters())
    assert len(trials) == 4


def test_it_is_tried_whatever_is_switched_on(cache: Path, trials: list[Any]) -> None:
    def forget() -> None:
        trial._verdicts.clear()
        for path in cache.iterdir():
            path.unlink()

    circuit = ntm()
    inputs = torch.zeros(2, 1, 3)
    packed: list[Tensor] = []
    with torch.inference_mode():
        circuit(inputs)
    assert circuit.chosen_backend == "native"  # type: ignore[comparison-overlap,attr-defined]
    forget()
    circuit = ntm()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (packed.append(t), t)[1], lambda t: t), torch.no_grad():
        circuit(inputs)
    assert circuit.chosen_backend == "native"
    assert packed == []
    forget()
    circuit = ntm()
    with torch.device("meta"):
        state = map_state(lambda leaf: leaf.to("cpu"), circuit.initial_state(1))
        circuit(inputs, state)
    assert circuit.chosen_backend == "native"
    forget()
    circuit = ntm()
    torch.set_default_dtype(torch.float64)
    try:
        circuit(inputs)
    finally:
        torch.set_default_dtype(torch.float32)
    assert circuit.chosen_backend == "native"
    assert len(trials) == 4


def test_hooks_of_weights_do_not_see_it(trials: list[Any]) -> None:
    circuit = ntm()
    seen: list[Any] = []
    for parameter in circuit.parameters():
        parameter.register_hook(lambda gradient: seen.append(gradient))
    circuit.register_forward_hook(lambda *_: seen.append("forward"))
    circuit.output.register_forward_hook(lambda *_: seen.append("output"))  # type: ignore[union-attr,attr-defined]
    with torch.no_grad():
        assert runs_on(circuit) == "native"
    assert seen == ["output", "forward"]
    assert len(trials) == 1


def test_subclasses_are_tried_as_what_they_are(trials: list[Any]) -> None:
    class Own(NTM):
        def initial_state(self, batch_size: int, **sizes: int) -> Any:
            assert batch_size == 1, "none of anyone else's business"
            return super().initial_state(batch_size, **sizes)

    assert runs_on(Own(3, 2, memory_size=7)) == "native"
    assert runs_on(NTM(3, 2, memory_size=7)) == "native"
    assert len(trials) == 1


@pytest.mark.usefixtures("triton_interpreter")
@pytest.mark.parametrize("kind", [NTM, DNC])
def test_tritons_ways_are_like_eager(kind: Any) -> None:
    from papertape.core.kernels.triton import sequences, steps

    circuit = kind(2, 2, memory_size=5, word_size=4, hidden_size=8)
    inputs = torch.zeros(2, 1, 2)
    for small, count in ((True, None), (False, 9)):
        parts = [trial._of_kind(part, small) for part in (circuit.controller, circuit.accessor)]
        for run in (sequences.run, steps.run):
            assert trial._try_sequence(trial._probe(circuit, parts, inputs), run, count) is None


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        (NTM, {"memory_size": 128, "word_size": 20, "hidden_size": 100}),
        (NTM, {"memory_size": 1024, "word_size": 64, "hidden_size": 512, "num_layers": 3}),
        (DNC, {"memory_size": 256, "word_size": 64, "num_reads": 4, "hidden_size": 256}),
        (DNC, {"memory_size": 16, "word_size": 16, "num_reads": 4, "hidden_size": 64}),
    ],
)
def test_a_trial_of_ones_own_sizes_does_not_hang_on_the_last_digit(kind: Any, sizes: dict[str, int]) -> None:
    circuit = kind(8, 8, **sizes)
    inputs = torch.zeros(2, 1, 8)
    parts = [trial._of_kind(part, small=False) for part in (circuit.controller, circuit.accessor)]
    probe = trial._probe(circuit, parts, inputs)
    assert [probe.hidden_size, probe.accessor.memory_size] == [circuit.hidden_size, circuit.accessor.memory_size]
    assert trial._try_sequence(probe, eager.run, 11) is None


@pytest.mark.parametrize("kind", ["SAM", "SDNC"])
def test_a_circuit_with_dropout_is_tried_without_and_nothing_is_drawn(kind: str) -> None:
    torch.manual_seed(5)
    controller = {"type": "lstm", "hidden_size": 4, "num_layers": 2, "dropout": 0.3}
    sizes = {"num_reads": 2, "memory_size": 12, "word_size": 4, "slots_per_read": 2}
    circuit = {"SAM": SAM, "SDNC": SDNC}[kind](3, 2, controller=controller, **sizes)
    state = torch.get_rng_state()
    found = []
    for backend in ("auto", "native", "auto"):
        circuit.backend = backend
        torch.set_rng_state(state)
        found.append(circuit(torch.ones(4, 2, 3))[0])
        assert circuit.chosen_backend == "native"
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.usefixtures("triton_interpreter")
def test_triton_is_tried_in_the_circuits_own_sizes_unless_links_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from papertape.core.kernels import triton

    monkeypatch.setattr(triton, "_unavailable_device", lambda device, asked_for: None)
    monkeypatch.setattr(trial, "_try_sequence", lambda probe, run, steps: tried.append((probe, run, steps)))
    tried: list[Any] = []
    for slots, whole in ((7, True), (300, False), (600, False)):
        circuit = DNC(2, 2, memory_size=slots, word_size=3, hidden_size=6)
        inputs = torch.zeros(2, 1, 2)
        assert triton.unavailable(circuit, inputs, circuit.initial_state(1)) is None
        assert triton.unavailable(circuit, inputs, circuit.initial_state(1)) is None
        (probe, run, steps) = tried.pop()
        assert not tried
        assert run.__module__.endswith("sequences" if whole else "steps")
        own = slots <= triton.LARGEST_TRIAL
        assert [probe.accessor.memory_size, steps] == ([slots, triton.TRIAL_STEPS] if own else [19, None])
