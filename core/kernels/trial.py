"""Whether kernels can be trusted here: before ``auto`` takes them, a small sequence runs beside the eager backend.

Kernels depend on the processor or the GPU and its driver, on compilers and on versions of libraries, of which nobody
has tried all. So the first time that one is to serve a kind of circuit, a small circuit of that kind runs forward and
backward by it, and in float64 step by step; kernels that are compiled for the sizes of a circuit run one of these
sizes, for which they have to be compiled anyway. What differs or fails is left out. The verdict is kept in the user's
cache, in a file for each, until something that it depends on changes. A backend that is asked for by name is not tried.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..home import home
from ..members import Call, call_with
from ..state import CircuitState, leaves, map_state
from . import eager
from .guard import Known

if TYPE_CHECKING:
    from .circuit_view import CircuitView

Run = Callable[["CircuitView", Tensor, CircuitState], tuple[Tensor, CircuitState]]
RunPopulation = Callable[["CircuitView", Mapping[str, Tensor], Tensor], Tensor]

STEPS = {"static": 5, "dynamic": 5, "sparse": 3, "delta": 11, "stack": 5, "soft-tape": 5}
"""Of each kind of memory: more than between two memories that kernels store, where they store any."""
BATCH, INPUTS, OUTPUTS, MEMBERS = 2, 3, 2, 2
SMALL = {"memory_size": 19, "word_size": 5, "key_size": 6, "value_size": 5, "hidden_size": 9, "num_states": 3}
"""Sizes of a trial: whole vectors and parts of one."""
MOST = {"num_reads": 2, "num_writes": 2, "num_layers": 2, "shift_range": 2, "slots_per_read": 3, "links_per_slot": 3}
MOST |= {"num_heads": 2, "num_rules": 2, "num_stacks": 2, "num_tapes": 2}
"""Sizes of a trial where the circuit's own are larger."""
NOT_OURS = {"memory_init": "constant", "weight_init": "first", "head_init": "uniform"}
"""Options that matter only before a sequence begins."""

TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-7}
"""Largest difference, relative to the largest value of a result."""

SEED = 15


class Mistrusted(str):
    """A reason why ``auto`` leaves out a backend that could run, of which users are warned."""

    __slots__ = ()


_verdicts: dict[Any, Mistrusted | None] = {}
"""What was found out in this process, by way and kind of circuit."""
_lock = threading.Lock()


def mistrusted(
    way: str,
    library: Callable[[], str],
    run: Run,
    circuit: CircuitView,
    known: Known,
    inputs: Tensor,
    steps: int | None = None,
) -> Mistrusted | None:
    """Why ``auto`` must not run these inputs in this way, or None; tried once.

    Args:
        way: the name of a backend, or of one of several ways in which it runs sequences.
        library: gives the identity of the kernels, which changes when they do.
        run: runs a sequence in that way.
        circuit: that is to be run; a backend that it asks for by name is not tried.
        known: what kernels know of it, where verdicts are kept.
        inputs: ``[T, B, I]``; their type and device count.
        steps: of the trial; for kernels that are compiled for the sizes of a circuit, which the trial then has too:
            what it compiles is needed anyway. None: few, and small sizes.
    """
    return _kept(way, library, circuit, known, inputs, lambda probe: _try_sequence(probe, run, steps), steps is None)


def mistrusted_population(
    way: str,
    library: Callable[[], str],
    run: RunPopulation,
    circuit: CircuitView,
    known: Known,
    inputs: Tensor,
    steps: int | None = None,
) -> Mistrusted | None:
    """The same for what answers for a population; see :func:`mistrusted`."""
    attempt: Callable[[Any], str | None] = lambda probe: _try_population(probe, run, steps)  # noqa: E731
    return _kept(f"{way} population", library, circuit, known, inputs, attempt, steps is None)


# ---- verdicts --------------------------------------------------------------------------------------------------------


def _kept(
    way: str,
    library: Callable[[], str],
    circuit: CircuitView,
    known: Known,
    inputs: Tensor,
    attempt: Callable[[Any], str | None],
    small: bool,
) -> Mistrusted | None:
    """The verdict that is kept beside what is known of the circuit, where it is looked up at every call."""
    if circuit.backend != "auto":
        return None
    key = way, inputs.dtype, inputs.device
    if key not in known.verdicts:
        known.verdicts[key] = _verdict(way, library, circuit, inputs, attempt, small)
    verdict: Mistrusted | None = known.verdicts[key]
    return verdict


def _verdict(
    way: str,
    library: Callable[[], str],
    circuit: CircuitView,
    inputs: Tensor,
    attempt: Callable[[Any], str | None],
    small: bool,
) -> Mistrusted | None:
    """From this process, from the cache, or from a trial; of a ``small`` circuit or of one of the same sizes."""
    parts = [_of_kind(part, small) for part in (circuit.controller, circuit.accessor)]
    kind = [[cls.__name__, dict(sorted(options.items()))] for cls, options in parts]
    about = [way, kind, "clipped" if circuit.clip is not None else "not clipped", str(inputs.dtype), str(inputs.device)]
    key = json.dumps(about)
    with _lock:
        if key not in _verdicts:
            about += [library(), *_machine(inputs.device)]
            path = _path(about)
            found = _remembered(path, about)
            if found is None:
                found = _tried(circuit, parts, inputs, attempt)
                if found.lasting:
                    _remember(path, about, found.reason)
            reason = found.reason
            if reason is not None and found.lasting and path is not None:
                reason += f" (remembered in {path})"
            _verdicts[key] = None if reason is None else Mistrusted(reason)
        return _verdicts[key]


class _Found:
    """What a trial has found: None, or a reason; not lasting if another time it may be different."""

    def __init__(self, reason: str | None, *, lasting: bool = True) -> None:
        self.reason = reason
        self.lasting = lasting


def _tried(circuit: CircuitView, parts: Any, inputs: Tensor, attempt: Callable[[Any], str | None]) -> _Found:
    """Try it in a thread of its own: grad mode, autocast and whatever else the caller has switched on end there."""
    found = _Found("its trial did not end", lasting=False)

    def work() -> None:
        nonlocal found
        try:
            with torch.cuda.device(inputs.device) if inputs.is_cuda else contextlib.nullcontext():
                found = _Found(attempt(_probe(circuit, parts, inputs)))
        except Exception as error:
            text = str(error).strip().partition("\n")[0]
            reason = f"a small sequence fails: {type(error).__name__}: {text}"
            found = _Found(reason, lasting=not isinstance(error, (MemoryError, torch.OutOfMemoryError)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return found


# ---- the cache -------------------------------------------------------------------------------------------------------


KEPT_SECONDS = 365 * 24 * 3600.0
"""Nothing else tells that the versions which a verdict is about are gone; of those that are not, it is found again."""


def _path(about: list[Any]) -> Path | None:
    """The file of a verdict, in the user's cache; None where there is no such place."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        cache = Path(given) if os.path.isabs(given) else home() / ".cache"
    except OSError:
        return None
    return cache / "papertape" / "kernels" / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]}.json"


def _remembered(path: Path | None, about: list[Any]) -> _Found | None:
    """A verdict that was kept, or None; whatever else the file holds, it is as if there were none."""
    if path is None:
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["about"] == about and isinstance(kept["reason"], (str, type(None))):
            return _Found(kept["reason"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    return None


def _remember(path: Path | None, about: list[Any], reason: str | None) -> None:
    """Keep a verdict, whole or not at all, and drop those of long ago; without one the next process tries again."""
    if path is None:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump({"about": about, "reason": reason}, file)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        for other in path.parent.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process has dropped it
                if time.time() - other.stat().st_mtime > KEPT_SECONDS:
                    other.unlink()


@functools.cache
def _machine(device: torch.device) -> tuple[str, ...]:
    """What a verdict depends on besides circuit and kernels: processor or GPU and driver, and versions."""
    versions = (f"torch {torch.__version__}", f"Python {platform.python_version()}")
    if device.type == "cpu":
        return (*versions, platform.machine(), _processor())
    from importlib import metadata

    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = "none"
    driver = str(getattr(torch._C, "_cuda_getDriverVersion", lambda: None)())
    with contextlib.suppress(OSError):
        driver = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").partition("\n")[0]
    gpu = torch.cuda.get_device_properties(device)
    toolkit = f"CUDA {torch.version.cuda}, HIP {torch.version.hip}"
    return (*versions, f"Triton {triton}", toolkit, driver, gpu.name, str((gpu.major, gpu.minor)))


def _processor() -> str:
    """Its name, and what it can do where the system tells."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        told = dict(reversed([[side.strip() for side in line.partition(":")[::2]] for line in lines]))
        names = [*("vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags")]
        names += ["CPU implementer", "CPU part", "CPU variant", "CPU revision", "Features"]
        return hashlib.sha256(repr([told.get(name) for name in names]).encode()).hexdigest()[:16]
    return platform.processor()


# ---- trials ----------------------------------------------------------------------------------------------------------


def _of_kind(part: Any, small: bool) -> tuple[Any, dict[str, Any]]:
    """The class that kernels know a controller or an accessor as, and the options that it has in a trial."""
    if not part.kind:  # of one's own: kernels leave it as it is
        from ..controllers import LSTMController

        return LSTMController, {"hidden_size": SMALL["hidden_size"], "clip": None}
    cls = next(base for base in type(part).__mro__ if "kind" in vars(base))
    own = part.specification()
    given = "input_size" if "input_size" in own else "hidden_size"
    # Layers that a change of structure made residual are no argument: they run as they are, or kernels step aside.
    options = {name: value for name, value in own.items() if name != given and name != "residual"}
    for name, value in options.items():
        if name in NOT_OURS:
            options[name] = NOT_OURS[name]
        elif name in SMALL and small:
            options[name] = SMALL[name]
        elif name in MOST and small:
            options[name] = min(value, MOST[name])
        elif name == "clip" and value is not None:
            options[name] = 1.0
        elif name == "dropout":  # two runs would leave out different units
            options[name] = 0.0
    return cls, options


def _probe(circuit: CircuitView, parts: Any, inputs: Tensor) -> Any:
    """A small circuit of the same kind with random weights; nothing is drawn from torch's own generators."""
    kind: Any = next(base for base in type(circuit).__mro__ if "transition" in vars(base))
    (controller, controller_options), (accessor, accessor_options) = parts
    shape = accessor.read_shape(SimpleNamespace(**accessor_options))
    fed = math.prod(shape) if circuit.read_feedback else 0
    hidden = controller_options.get("hidden_size", SMALL["hidden_size"])
    probe = kind.__new__(kind)
    # Its options as they are; not built anew, for that would take as long as the trial.
    vars(probe).update(vars(circuit))
    nn.Module.__init__(probe)
    with torch.device("meta"):
        probe.controller = controller(INPUTS + fed, **controller_options)
        probe.accessor = accessor(hidden, **accessor_options)
        probe.output = nn.Linear(hidden + math.prod(shape), OUTPUTS)
    probe.input_size, probe.output_size, probe.hidden_size, probe.read_shape = INPUTS, OUTPUTS, hidden, shape
    probe.embedding_size = probe.embedding = None
    probe.clip = None if circuit.clip is None else probe.controller.clip
    probe.backend = probe.chosen_backend = "eager"
    generator = torch.Generator().manual_seed(SEED)
    probe._apply(lambda like: ((_random(like, generator) - 0.5) * _scale(like)).to(inputs))
    return probe


def _scale(weight: Tensor) -> float:
    """What keeps the sums that enter many units as small as those of few, where nothing depends on a last digit."""
    return min(1.0, math.sqrt(16 / weight.shape[-1])) if weight.dim() > 1 else 1.0


def _random(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(like.shape, generator=generator, dtype=torch.float64, device="cpu")
    return drawn if like.is_meta else drawn.to(like)


def _start(probe: Any, generator: torch.Generator, steps: int | None) -> tuple[Tensor, CircuitState]:
    """Inputs and a first state; a little moved from where circuits begin, so that no two slots are alike."""
    weight = next(probe.parameters())
    steps = STEPS[probe.accessor.kind] if steps is None else steps
    inputs = _random(weight.new_empty(steps, BATCH, INPUTS), generator) - 0.5
    state = probe.initial_state(BATCH)
    if all(leaf.is_floating_point() for leaf in leaves(state)):
        state = map_state(lambda leaf: leaf.detach() + _random(leaf, generator) / (2 * leaf.shape[-1]), state)
    return inputs, state


def _results(probe: Any, run: Run, inputs: Tensor, state: CircuitState) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Features and the last state, and the gradients of a random sum of them, by name."""
    inputs = inputs.clone().requires_grad_()
    first = map_state(lambda leaf: leaf.clone().requires_grad_(leaf.is_floating_point()), state)
    features, last = run(probe, inputs, first)
    made = {
        "features": features,
        **{f"leaf {index} of the last state": leaf for index, leaf in enumerate(leaves(last))},
    }
    generator = torch.Generator().manual_seed(SEED + 1)
    due = [part for part in made.values() if part.requires_grad]
    total = sum((part * (_random(part, generator) - 0.5)).sum() for part in due)
    wanted = {"inputs": inputs}
    wanted |= {f"leaf {index} of the state": leaf for index, leaf in enumerate(leaves(first)) if leaf.requires_grad}
    wanted |= {name: p for name, p in probe.named_parameters() if not name.startswith("output.")}
    gradients = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)  # type: ignore[arg-type]
    named = zip(wanted, gradients, strict=True)
    return {name: part.detach() for name, part in made.items()}, {
        f"gradient of {name}": gradient for name, gradient in named if gradient is not None
    }


def _try_sequence(probe: Any, run: Run, steps: int | None = None) -> str | None:
    """What differs between a way to run sequences and the eager backend, or None."""
    dtype = next(probe.parameters()).dtype
    inputs, state = _start(probe, torch.Generator().manual_seed(SEED), steps)
    found = _results(probe, run, inputs, state)
    probe.double()
    exact = map_state(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, state)
    expected = _results(probe, eager.run, inputs.double(), exact)
    for results, references in zip(found, expected, strict=True):
        reason = _difference(results, references, TOLERANCE[dtype])
        if reason is not None:
            return reason
    return None


def _try_population(probe: Any, run: RunPopulation, steps: int | None = None) -> str | None:
    """What differs between the answers for a population and those of its members, or None."""
    dtype = next(probe.parameters()).dtype
    generator = torch.Generator().manual_seed(SEED)
    inputs, _ = _start(probe, generator, steps)
    with torch.no_grad():
        stacks = {
            name: _random(p.new_empty(MEMBERS, *p.shape), generator) - 0.5 for name, p in probe.named_parameters()
        }
        answers = run(probe, stacks, inputs)
        probe.double()
        members = [{name: stack[member].double() for name, stack in stacks.items()} for member in range(MEMBERS)]
        expected = torch.stack([_answers(probe, member, inputs.double()) for member in members], 1)
    return _difference({"answers": answers}, {"answers": expected}, TOLERANCE[dtype])


def _answers(probe: Any, member: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """Of one member, ``[T, B, O]``."""

    def run(probe: Any) -> Tensor:
        features, _ = eager.run(probe, inputs, probe.initial_state(inputs.shape[1]))
        answers: Tensor = probe.answer(features)
        return answers

    answers: Tensor = call_with(Call(probe, run), {f"circuit.{name}": part for name, part in member.items()})
    return answers


def _difference(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> str | None:
    """What is not as expected, or None. Relative to the largest value; what is small beside others may differ more."""
    largest = max((float(part.double().abs().max()) for part in expected.values()), default=0.0)
    for name in {**expected, **found}:
        if name not in found or name not in expected:
            part = (found if name in found else expected)[name]
            if part.any():
                return f"a small sequence has {'a' if name in found else 'no'} {name}, unlike eager"
            continue
        reference = expected[name].double()
        difference = float((found[name].double() - reference).abs().max())
        bound = tolerance * (float(reference.abs().max()) + 0.01 * largest)
        if not difference <= bound:
            return f"of a small sequence the {name} differs from eager's by {difference:.1e}, more than {bound:.1e}"
    return None
