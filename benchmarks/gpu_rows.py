"""The rows of gpu_report.py, which runs this: what is tested, compared and measured on a GPU."""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from gpu_report import DONE, ROW, SICK, TEXT
from speed import CASES, forward_pass, training_step
from torch import Tensor, nn
from torch.nn import functional

import papertape
from papertape.core.circuit import Circuit
from papertape.core.kernels import graphs
from papertape.core.recorder import Recorder
from papertape.core.state import leaves, map_state
from papertape.envs import CopyEnv

ROOT = Path(__file__).resolve().parents[1]

ROW_SECONDS = 100.0
"""After which a row is given up; most of it is for compiling."""

ROUTES = {
    "eager": "eager steps",
    "graphs": "eager steps in recorded graphs",
    "sequences": "a whole sequence in one Triton kernel",
    "kernels": "Triton kernels for each step, in recorded graphs",
}
"""The ways in which a GPU runs a circuit."""

CAPTURED = "auto's route, and the whole training step recorded by its user: clipping and Adam too"


class UnavailableError(Exception):
    """A route does not run a circuit; says why."""


class Given(NamedTuple):
    """What a part is told."""

    device: torch.device
    quick: bool
    deadline: float
    """Moment (of ``time.monotonic``) at which it has to stop."""


Cells = Sequence[object]
Row = tuple[str, Callable[[], Cells]]
"""The first cells of a row, and what computes the others."""


def say(line: str) -> None:
    """Write a line into the report."""
    for part in line.split("\n"):
        print(f"{TEXT}{part}", flush=True)


def one_line(error: BaseException) -> str:
    """An error as the cell of a table."""
    text = " ".join(str(error).split()).replace("|", "/")
    return f"{type(error).__name__}: {text[:200]}"


@contextlib.contextmanager
def route(name: str, circuit: Circuit, inputs: Tensor | None = None) -> Iterator[None]:
    """Within the block, the circuit takes this route.

    Raises:
        UnavailableError: it cannot.
    """
    from papertape.core.kernels import triton

    backend = {"sequences": "triton", "kernels": "triton"}.get(name, name)
    if backend not in circuit.backends:
        raise UnavailableError(f"has no {backend}")
    circuit.backend = backend
    with contextlib.ExitStack() as stack:
        if backend in ("triton", "graphs") and inputs is not None:
            state: Any = circuit.initial_state(inputs.shape[1])
            chosen: Any = triton if backend == "triton" else graphs
            reason = chosen.unavailable(circuit, inputs, state)
            if reason is None and name == "sequences":
                from papertape.core.kernels.triton import sequences

                reason = sequences.unavailable(circuit, state)  # type: ignore[arg-type]
            if reason is not None:
                raise UnavailableError(reason)
        if name == "kernels":
            from papertape.core.kernels.triton import sequences

            stack.enter_context(mock.patch.object(sequences, "unavailable", return_value="steps are asked for"))
        yield


def check_recorded(name: str, circuit: Circuit) -> None:
    """Raise UnavailableError if a circuit that was to be recorded runs without."""
    recordings = graphs._recordings.get(circuit)
    if name in ("kernels", "graphs") and recordings is not None and recordings.refused is not None:
        raise UnavailableError(recordings.refused)


def waits(device: torch.device) -> None:
    """Wait until the GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ---- tests -----------------------------------------------------------------------------------------------------------


OUTCOME = re.compile(
    r"\[gw\d+\].*? (?P<outcome>PASSED|FAILED|ERROR|SKIPPED|XFAIL) (?P<test>\S+::.*)"
    r"|(?P<own>\S+::.*?) (?P<ended>PASSED|FAILED|ERROR|SKIPPED|XFAIL)"
)
"""How pytest tells what came of a test, in several processes and in its own."""


def tests(given: Given) -> Iterator[Row]:
    """The tests that are marked gpu, each a row if it fails."""
    chosen = ["-m", "gpu", "tests"]
    if given.quick:
        chosen = ["-m", "not slow", "tests/core/kernels/test_graphs.py", "-k", "cut_into_few_lengths or says_that"]

    def run() -> Cells:
        command = [sys.executable, "-m", "pytest", "-v", "--tb=line", "-p", "no:cacheprovider", "-p", "no:benchmark"]
        if importlib.util.find_spec("xdist") is not None:  # most of the time is for compiling
            command += ["-n", str(max((os.cpu_count() or 1) // 2, 1))]
        command += ["--continue-on-collection-errors", *chosen]
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        counts: dict[str, int] = {}
        last = ""
        assert process.stdout is not None
        with contextlib.closing(process.stdout) as lines:
            for line in lines:
                last = line.strip() or last
                if (found := OUTCOME.match(line)) is not None:
                    test, outcome = found["test"] or found["own"], found["outcome"] or found["ended"]
                    counts[outcome] = counts.get(outcome, 0) + 1
                    if outcome in ("FAILED", "ERROR"):
                        say(f"| {test.strip()} | {outcome.lower()} |")
                elif " Error" in line or "Error: " in line:
                    say(f"| | {' '.join(line.split()).replace('|', '/')[:200]} |")
                if time.monotonic() > given.deadline:
                    process.kill()
                    last = f"stopped, for the time was up, after {sum(counts.values())} tests: {counts}"
                    break
        process.wait()
        return [last.strip("= ")]

    yield "all together", run


# ---- agreement -------------------------------------------------------------------------------------------------------

INPUTS, OUTPUTS = 5, 3


class Subject(NamedTuple):
    """A circuit whose routes are compared."""

    kind: str
    options: dict[str, Any]
    steps: int
    batch_size: int

    def build(self, dtype: torch.dtype, device: torch.device) -> Circuit:
        """With the same weights in any type."""
        torch.manual_seed(0)
        circuit: Circuit = getattr(papertape, self.kind)(INPUTS, OUTPUTS, **self.options)
        return circuit.to(device, dtype)


SMALL = {"memory_size": 8, "word_size": 6, "num_reads": 2, "hidden_size": 12}
MIDDLE = {"memory_size": 128, "word_size": 20, "hidden_size": 100}
LARGE = {"memory_size": 256, "word_size": 64, "num_reads": 4, "hidden_size": 256}
SPARSE = {"memory_size": 64, "word_size": 6, "num_reads": 2, "hidden_size": 12}
DRAWN = {"memory_init": "truncated_normal", "weight_init": "learned"}
IMPROVED = {"masked_content": True, "memory_wipe": True, "link_sharpening": True}

SUBJECTS = {
    "NTM": Subject("NTM", SMALL | DRAWN, 6, 3),
    "DNC": Subject("DNC", SMALL, 6, 3),
    "NTM 128 × 20": Subject("NTM", MIDDLE, 42, 16),
    "DNC 256 × 64": Subject("DNC", LARGE, 12, 16),
    "NTM, batch 512": Subject("NTM", MIDDLE, 12, 512),
    "DNC 16 × 16, batch 512": Subject("DNC", SMALL | {"memory_size": 16, "word_size": 16}, 12, 512),
    "NTM gru, 2 writes, shifts of 2": Subject(
        "NTM", SMALL | DRAWN | {"controller": "gru", "num_writes": 2, "shift_range": 2}, 6, 3
    ),
    "NTM feedforward, masked": Subject("NTM", SMALL | {"controller": "feedforward", "masked_content": True}, 6, 3),
    "NTM 2 layers": Subject("NTM", SMALL | {"num_layers": 2}, 6, 3),
    "NTM direct": Subject("NTM", SMALL | {"controller": "direct", "hidden_size": None}, 6, 3),
    "NTM one slot": Subject("NTM", SMALL | {"memory_size": 1, "word_size": 1, "num_reads": 1}, 6, 3),
    "DNC 2 writes": Subject("DNC", SMALL | {"num_writes": 2}, 6, 3),
    "DNC masked, wipe, sharpening": Subject("DNC", SMALL | IMPROVED, 6, 3),
    "DNC tanh, usage gradient": Subject("DNC", SMALL | {"squash": "tanh", "usage_gradient": True}, 6, 3),
    "DNC gru, 2 layers": Subject("DNC", SMALL | {"controller": "gru", "num_layers": 2}, 6, 3),
    "DNC feedforward": Subject("DNC", SMALL | {"controller": "feedforward"}, 6, 3),
    "DNC 65 slots": Subject("DNC", SMALL | {"memory_size": 65}, 6, 3),
    "DNC 1024 × 32": Subject("DNC", {"memory_size": 1024, "word_size": 32, "num_reads": 4, "hidden_size": 64}, 5, 4),
    "SAM": Subject("SAM", SPARSE, 6, 3),
    "SDNC": Subject("SDNC", SPARSE, 6, 3),
    "NTM, 301 steps": Subject("NTM", SMALL, 301, 2),
}


def answers(circuit: Circuit, inputs: Tensor, state: Any) -> dict[str, list[Tensor]]:
    """Outputs, last state, and gradients of a random sum of both."""
    inputs = inputs.clone().requires_grad_()
    state = map_state(lambda leaf: leaf.detach().clone().requires_grad_(leaf.is_floating_point()), state)
    outputs, last = circuit(inputs, state)
    made = [part for part in (outputs, *leaves(last)) if part.requires_grad]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(part.shape, generator=generator, dtype=torch.float64).to(part) for part in made]
    sources = [part for part in (inputs, *leaves(state), *circuit.parameters()) if part.requires_grad]
    gradients = torch.autograd.grad(made, sources, weights, allow_unused=True, materialize_grads=True)
    return {"outputs": [outputs], "states": leaves(last), "gradients": list(gradients)}


def error(found: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Largest difference, as a share of the largest number of the same tensor."""
    worst = 0.0
    for one, other in zip(found, right, strict=True):
        if other.numel():
            one, other = one.detach().double(), other.detach().double()
            difference = (one - other).abs().max() / (other.abs().max() + 1e-2)
            worst = max(worst, float(difference.nan_to_num(float("inf"))))
    return worst


def agreement(given: Given) -> Iterator[Row]:
    """Every route against eager steps in float64."""
    subjects = {name: SUBJECTS[name] for name in ("NTM", "DNC")} if given.quick else SUBJECTS
    for name, subject in subjects.items():
        for dtype in (torch.float64,) if given.quick else (torch.float64, torch.float32):
            rounding: list[float] = []
            for taken in ROUTES:
                kind = str(dtype).removeprefix("torch.")
                yield (
                    f"{name} | {taken} | {kind}",
                    partial(_agrees, given, subject, taken, dtype, rounding),
                )


def _untied(exact: Circuit, inputs: Tensor, state: Any) -> Tensor:
    """Which sequences can be compared, ``[B]``: in no step are two of the least used slots used as good as equally.

    Which of those is written to would hang on a last digit.
    """
    clear = torch.ones(inputs.shape[1], dtype=torch.bool, device=inputs.device)
    if not hasattr(state.accessor, "usage"):
        return clear
    state = map_state(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, state)
    with torch.no_grad():
        for x in inputs.double():
            _, state = exact.step(x, state)
            usage = state.accessor.usage.sort(-1).values[:, :4]
            clear &= (usage.diff(dim=-1) > 1e-5 * usage[:, 1:]).all(-1)
    return clear


def _agrees(given: Given, subject: Subject, taken: str, dtype: torch.dtype, rounding: list[float]) -> Cells:
    """``rounding`` is what eager steps of this type differ by: a sort may turn on the last digit."""
    generator = torch.Generator().manual_seed(0)
    steps, batch = (2, 2) if given.quick else (subject.steps, subject.batch_size)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(given.device, dtype)

    exact, circuit = (subject.build(kind, given.device) for kind in (torch.float64, dtype))
    exact.backend = "eager"
    state = map_state(
        # Moved a little, so that no two numbers are equal and their order is the same in every type.
        lambda leaf: leaf + 0.1 * drawn(*leaf.shape).abs() / leaf.shape[-1] if leaf.is_floating_point() else leaf,
        circuit.initial_state(batch),
    )
    first, inputs = drawn(steps, batch, INPUTS), drawn(steps, batch, INPUTS)
    clear = _untied(exact, inputs, state)
    first, inputs, state = first[:, clear], inputs[:, clear], map_state(lambda leaf: leaf[clear], state)
    with route(taken, circuit, inputs):
        for given_inputs in (inputs,) if given.quick or taken in ("eager", "sequences") else (first,) * 3 + (inputs,):
            made = answers(circuit, given_inputs, state)  # the third call records
        check_recorded(taken, circuit)
    double = map_state(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, state)
    right = answers(exact, inputs.double(), double)
    errors = [error(made[what], right[what]) for what in right]
    if taken == "eager":
        rounding[:] = [max(errors)]
    good = max(errors) < max(1e-9 if dtype == torch.float64 else 1e-3, *(10 * each for each in rounding))
    return [*(f"{each:.1e}" for each in errors), "yes" if good else "**no**"]


# ---- training --------------------------------------------------------------------------------------------------------


def training(given: Given) -> Iterator[Row]:
    """Equal steps on every route, of sequences of many lengths, beside eager steps in float64."""
    steps = 2 if given.quick else 50
    for name in ("NTM",) if given.quick else ("NTM", "DNC", "SAM"):
        right: list[tuple[list[float], list[Tensor]]] = []
        for taken in ROUTES:
            yield f"{name} | {taken}", partial(_trains, given, name, taken, steps, right)


def _trained(given: Given, name: str, taken: str, steps: int, dtype: torch.dtype) -> tuple[list[float], list[Tensor]]:
    """Loss of each step, and the weights at the end."""
    torch.manual_seed(0)
    env = CopyEnv(width=4, max_length=2 if given.quick else 6)
    options = {"SAM": SPARSE}.get(name, SMALL)
    circuit: Circuit = getattr(papertape, name)(env.input_size, env.output_size, **options).to(given.device, dtype)
    optimiser = torch.optim.Adam(circuit.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for step in range(steps):
        batch = env.sample(2 if given.quick else 16, generator)
        inputs, targets, mask = (part.to(given.device, dtype) for part in batch[:3])
        with route(taken, circuit, inputs if step == 0 else None):
            optimiser.zero_grad(set_to_none=True)
            outputs, _ = circuit(inputs)
            each = functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(-1)
            loss = (each * mask).sum() / mask.sum()
            loss.backward()
        nn.utils.clip_grad_norm_(circuit.parameters(), 10.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    check_recorded(taken, circuit)
    return losses, [part.detach() for part in circuit.parameters()]


def _trains(given: Given, name: str, taken: str, steps: int, right: list[tuple[list[float], list[Tensor]]]) -> Cells:
    start = time.perf_counter()
    losses, weights = _trained(given, name, taken, steps, torch.float32)
    seconds = time.perf_counter() - start
    if not right:
        right.append(_trained(given, name, "eager", steps, torch.float64))
    apart = max(abs(one - other) for one, other in zip(losses, right[0][0], strict=True))
    cells = [f"{steps}", f"{losses[0]:.4f}", f"{losses[-1]:.4f}", f"{apart:.1e}", f"{error(weights, right[0][1]):.1e}"]
    return [*cells, f"{seconds:.1f}"]


# ---- learning --------------------------------------------------------------------------------------------------------


class _Clock(Recorder):
    """Notes how learning goes, and stops it when the time is up."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.seen: tuple[int, dict[str, float]] = (0, {})

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        if any(name.startswith("validation/") for name in values):
            self.seen = step, dict(values)
        if time.monotonic() > self.deadline:
            raise TimeoutError


def learning(given: Given) -> Iterator[Row]:
    """ntm-copy, until it makes no mistake."""

    def run() -> Cells:
        from papertape.utils import factory
        from papertape.utils.commands.arguments import read_arguments

        few = ["agent.steps=2", "agent.evaluate_every=2", "agent.evaluation_sequences=2", "env.max_length=2"]
        few += ["agent.confirmation_sequences=2", "env.test_lengths=[]", "agent.retry_every=null"]
        assignments = ["seed=1", "plots=off", f"device={given.device}", *(few if given.quick else [])]
        clock = _Clock(given.deadline - 2)
        _, circuit, agent = factory.build(read_arguments(["ntm-copy", *assignments]), clock)
        start = time.perf_counter()
        how = "to its end"
        try:
            agent.fit()
        except TimeoutError:
            how = "until the time was up"
        seconds = time.perf_counter() - start
        step, values = clock.seen
        found = ", ".join(f"{name} {value:.3g}" for name, value in values.items() if "bits" in name or "error" in name)
        taken = getattr(circuit, "chosen_backend", None)
        return [taken, how, getattr(agent, "step", step), f"{seconds:.1f}", found]

    yield "ntm-copy, seed 1", run


# ---- speed -----------------------------------------------------------------------------------------------------------

TURN_SECONDS = 0.25
"""How long a contestant is measured."""


def measured(step: Callable[[], object], device: torch.device, quick: bool) -> tuple[float, float, float | None]:
    """Seconds of the first call, median milliseconds, and MiB at the peak beyond what was there before."""

    def timed() -> float:
        start = time.perf_counter()
        step()
        waits(device)
        return time.perf_counter() - start

    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if on_gpu else 0
    first = timed()
    if quick:
        return first, 1e3 * timed(), None
    for _ in range(4):  # graphs are recorded in the third
        timed()
    memory = (torch.cuda.max_memory_allocated(device) - before) / 2**20 if on_gpu else None
    times: list[float] = []
    while sum(times) < TURN_SECONDS or len(times) < 3:
        times.append(timed())
    return first, 1e3 * statistics.median(times), memory


def captured(step: Callable[[], object]) -> Callable[[], None]:
    """A training step of speed.py that its user has recorded whole, as torch's notes on CUDA graphs say."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        step()
    return graph.replay


def speed(given: Given) -> Iterator[Row]:
    """Every case of speed.py with every route, at several batches; first those that have a target."""
    plain: dict[str, float] = {}
    names = ["dnc-small-1"] if given.quick else ["ntm-16", "dnc-small-16", "dnc-large-16", "dnc-1024", "dnc-1024-short"]
    for size in (1,) if given.quick else (None, 1, 64, 512):
        for name in names:
            batch = CASES[name].batch_size if size is None else size
            for label in ("train",) if given.quick else ("train", "forward"):
                routes = ("plain", *ROUTES, "captured") if label == "train" else ("plain", *ROUTES)
                for taken in routes:
                    case = f"{re.sub(r'-(1|16)$', '', name)}, batch {batch} | {label}"
                    yield (
                        f"{case} | {taken}",
                        partial(_fast, given, name, batch, label, taken, plain, case),
                    )


def _fast(given: Given, name: str, batch: int, label: str, taken: str, plain: dict[str, float], place: str) -> Cells:
    case = CASES[name]._replace(batch_size=batch)
    case = case._replace(steps=1) if given.quick else case
    torch.manual_seed(0)
    inputs = torch.rand(case.steps, batch, case.input_size, device=given.device)
    targets = (torch.rand(case.steps, batch, case.output_size, device=given.device) > 0.5).float()
    make = training_step if label == "train" else forward_pass
    if taken == "plain":
        first, median, memory = measured(
            make(case.plain().to(given.device), inputs, targets), given.device, given.quick
        )
        plain[place] = median
    elif taken == "captured":
        if given.device.type != "cuda":
            raise UnavailableError("no graph holds what a CPU does")
        circuit = case.circuit("auto").to(given.device)
        step = captured(training_step(circuit, inputs, targets, capturable=True))
        first, median, memory = measured(step, given.device, given.quick)
    else:
        circuit = case.circuit("auto").to(given.device)
        with route(taken, circuit, inputs):
            first, median, memory = measured(make(circuit, inputs, targets), given.device, given.quick)
        check_recorded(taken, circuit)
    ratio = f"{plain[place] / median:.1f}" if place in plain else ""
    return [f"{median:.3f}", ratio, f"{first:.2f}", "" if memory is None else f"{memory:.0f}"]


def population(given: Given) -> Iterator[Row]:
    """Many NTMs that answer the same sequences, on every route that has populations."""
    for members in (2,) if given.quick else (256, 4096):
        for taken in ("eager", "graphs", "sequences"):
            yield f"{members} | {taken}", partial(_answer, given, members, taken)


def _answer(given: Given, members: int, taken: str) -> Cells:
    torch.manual_seed(0)
    circuit = papertape.NTM(10, 8, controller="feedforward", hidden_size=32, memory_size=32, word_size=10)
    circuit.to(given.device)
    inputs = torch.rand(1 if given.quick else 22, 1, 10, device=given.device)
    stacks = {
        name: part.detach() + 0.1 * torch.randn(members, *part.shape, device=given.device)
        for name, part in circuit.named_parameters()
    }
    with route(taken, circuit, inputs):
        step = lambda: circuit.run_population(stacks, inputs)  # noqa: E731
        first, median, memory = measured(step, given.device, given.quick)
    check_recorded(taken, circuit)
    return [f"{median:.3f}", f"{first:.2f}", "" if memory is None else f"{memory:.0f}"]


# ---- profile ---------------------------------------------------------------------------------------------------------


def profile(given: Given) -> Iterator[Row]:
    """What takes the time of a training step."""
    for name in ("dnc-small-1",) if given.quick else ("ntm-16", "dnc-large-16", "dnc-small-16", "dnc-1024"):
        for taken in ("eager",) if given.quick else ("graphs", "sequences", "kernels"):
            yield f"{name} | {taken}", partial(_profiled, given, name, taken)


def _profiled(given: Given, name: str, taken: str) -> Cells:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    case = CASES[name]
    case = case._replace(steps=1) if given.quick else case
    inputs = torch.rand(case.steps, case.batch_size, case.input_size, device=given.device)
    targets = torch.zeros(case.steps, case.batch_size, case.output_size, device=given.device)
    circuit = case.circuit("auto").to(given.device)
    step = training_step(circuit, inputs, targets)
    on_gpu = given.device.type == "cuda"
    with route(taken, circuit, inputs):
        for _ in range(1 if given.quick else 5):
            step()
        waits(given.device)
        with profiled(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as seen:
            step()
            waits(given.device)
    check_recorded(taken, circuit)
    rows: list[Any] = [
        event for event in seen.key_averages() if not on_gpu or str(event.device_type) == "DeviceType.CUDA"
    ]
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    rows.sort(key=lambda event: -getattr(event, own))
    whole = sum(getattr(event, own) for event in rows)
    slowest = "; ".join(
        f"{event.key[:60].replace('|', '/')} × {event.count}: {getattr(event, own) / 1e3:.3f} ms "
        f"({100 * getattr(event, own) / max(whole, 1e-9):.0f} %)"
        for event in rows[:3]
    )
    return [f"{whole / 1e3:.3f}", slowest]


# ---- all parts -------------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A part of the report."""

    title: str
    columns: str
    rows: Callable[[Given], Iterator[Row]]
    whole: bool = False
    """Whether a row may take all the time of the part."""


PARTS = {
    "tests": Part("Tests marked gpu", "test | result", tests, whole=True),
    "agreement": Part(
        "Agreement with eager steps in float64, as a share of the largest number",
        "circuit | route | type | outputs | states | gradients | agrees",
        agreement,
    ),
    "training": Part(
        "Equal training steps, beside eager steps in float64",
        "circuit | route | steps | first loss | last loss | losses apart | weights apart | s",
        training,
    ),
    "learning": Part("Learning", "preset | backend | ran | steps | s | errors", learning, whole=True),
    "speed": Part("Speed", "case | what | route | ms | times plain | first call, s | MiB", speed),
    "population": Part(
        "Populations of NTMs (32 × 10, 22 steps)", "members | route | ms | first call, s | MiB", population
    ),
    "profile": Part(
        "Where the time of a training step goes", "case | route | ms on the device | slowest kernels", profile
    ),
}


def environment(device: torch.device) -> str:
    """What the report was made on."""
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        place = f"{card.name}, {card.total_memory / 2**30:.0f} GiB, capability {card.major}.{card.minor}"
        place += f", CUDA {torch.version.cuda}"
    else:
        place = f"no GPU: {platform.processor() or platform.machine()}"
    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = "none"
    routes = "\n".join(f"- {name}: {what}" for name, what in {**ROUTES, "captured": CAPTURED}.items())
    place += f". Python {platform.python_version()}, torch {torch.__version__}, Triton {version}"
    return f"{place}.\n\nRoutes:\n{routes}"


def compute(parts: Mapping[str, Given], skip: int) -> int:
    """Say the rows of some parts, but for the first ``skip``; the exit status."""
    index = 0
    for name, given in parts.items():
        part = PARTS[name]
        heading, left = f"\n### {part.title}\n", 0
        table = f"| {part.columns} |\n|{' --- |' * (part.columns.count('|') + 1)}"
        for label, work in part.rows(given):
            index += 1
            if index <= skip:
                heading = table = ""
                continue
            late = time.monotonic() > given.deadline
            left += late
            lines = [heading, "" if late else table]
            if any(lines):
                say("\n".join(line for line in lines if line))
            heading, table = "", table if late else ""
            if not late and not _row(index, label, work, given.deadline + 5 - time.monotonic() if part.whole else 0):
                return SICK
        if left:
            say(f"\n{left} rows of this part were left out, for its time was up.")
    return 0


def _row(index: int, label: str, work: Callable[[], Cells], seconds: float) -> bool:
    """Say a row, which may take so long or ROW_SECONDS; False if nothing can run any more."""
    print(f"{ROW}{index} {max(seconds, ROW_SECONDS):.0f} {label}", flush=True)
    well = True
    try:
        cells = [str(cell) for cell in work()]
    except UnavailableError as reason:
        cells = [f"not this way: {' '.join(str(reason).split()).replace('|', '/')[:200]}"]
    except Exception as problem:
        cells = [one_line(problem)]
        well = not any(f"{kind} error" in str(problem) for kind in ("CUDA", "CUDA driver"))
    say(f"| {label} | {' | '.join(cells)} |")
    print(DONE, flush=True)
    gc.collect()
    if well and torch.cuda.is_available():
        torch.cuda.empty_cache()
    return well


def main() -> None:
    """Say the rows that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", metavar="PART=DEADLINE")
    parser.add_argument("--device", required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--skip", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        say("No CUDA device here: nothing was run (`--device cpu --quick` tries the script).")
        return
    if arguments.skip == 0:
        say(environment(device))
    parts = {}
    for part in arguments.parts:
        name, deadline = part.split("=")
        parts[name] = Given(device, arguments.quick, float(deadline))
    sys.exit(compute(parts, arguments.skip))


if __name__ == "__main__":
    main()
