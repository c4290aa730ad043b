"""CUDA graphs: steps of given shapes are recorded once and then replayed, without a launch per operation.

As the backend ``graphs`` it records the eager steps of any circuit, of any controller and any memory, forward and
backward, and whole populations; no kernel of this package takes part. The Triton backend records its kernels per step
in the same way. Where there is no GPU, what is around the recording is tested with a stand-in.

A sequence is cut into pieces of 1, 2, 4, … steps, each of which is recorded once: sequences of all lengths share a few
recordings. A recording reads and writes fixed tensors, so it serves one pass at a time: a second forward pass before
the first one's backward (two sequences in one loss, say) runs without it. What comes out is copied: no result is
overwritten. Each recording is compared with the steps themselves before it is used; one that cannot be made or differs
is never used, and neither are others of that circuit, which says so once and goes on step by step.

A replay runs no Python. So modules with hooks are not recorded, nothing is while the caller records a graph, and a
module is recorded anew when one of its attributes or methods has changed; what else its Python looks at, such as the
variables of a file, must stay as it is.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks

from ..members import Call, call_with, map_members
from ..placement import random_apart
from ..state import CircuitState, leaves, rebuild
from . import eager, guard
from .formulas import as_written, hooked
from .transforms import as_now, in_memory, kernel_backward, origin, transforms_functions

if TYPE_CHECKING:
    from .circuit_view import CircuitView

Run = Callable[["CircuitView", Tensor, CircuitState], tuple[Tensor, CircuitState]]
Function = Callable[[list[Tensor]], list[Tensor]]

RECORD_AFTER = 3
"""Calls with the same shapes before they are recorded: recording costs about as much as six passes.

Twice as many after each time that a recording had to make room: many shapes in turn would be recorded all the time.
"""

KEPT = 16
"""Recordings kept for a circuit; each holds the memory of a whole forward and backward pass of its piece."""

LONGEST = 256
"""Steps of a piece at most, a power of two. Together, pieces take twice the memory of the longest sequence at most."""

WARM_UPS = 2
"""Passes before recording, in which libraries allocate and kernels are compiled: no graph could hold that."""

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3}
"""How far a replay may be from the steps, as a share of the largest number; rounding may differ, by sums in turns."""

logger = logging.getLogger(__name__)


class BackendError(RuntimeError):
    """The backend that a circuit asks for cannot run it here; the message says why."""


class Recorder:
    """What records and replays on a GPU; tests put a stand-in in its place."""

    device = "cuda"

    def capture(self, function: Callable[[], list[Any]], pool: Any) -> tuple[list[Any], Callable[[], None], Any]:
        """Record a function: the tensors that it gave, what computes them again in place, and its pool of memory."""
        graph = torch.cuda.CUDAGraph()
        pool = torch.cuda.graph_pool_handle() if pool is None else pool
        device, stream = torch.cuda.current_device(), torch.cuda.current_stream()
        generator = torch.cuda.default_generators[device]
        before = generator.clone_state()
        try:
            # Of other threads nothing is forbidden meanwhile, such as those that load data.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                made = function()
        except BaseException:
            # Torch leaves all as if the graph were still being recorded: nothing random could be drawn any more.
            torch.cuda.set_stream(stream)
            generator.graphsafe_set_state(before)
            with contextlib.suppress(AttributeError, RuntimeError):
                torch._C._cuda_endAllocateToPool(device, pool)
            raise
        return made, graph.replay, pool

    @contextlib.contextmanager
    def side_stream(self) -> Iterator[None]:
        """Warming up must not happen on the default stream, which no graph can record."""
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            yield
        torch.cuda.synchronize()

    @contextlib.contextmanager
    def without_waiting(self) -> Iterator[None]:
        """Within the block, whatever waits for the GPU raises an error: a recording would break off there half-way."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Synchronization debug mode")
            mode = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("error")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode(mode)

    def on(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """Within the block, this GPU is the one on which streams are made and graphs run."""
        return torch.cuda.device(device)

    def recording(self) -> bool:
        """Whether the caller records a graph of its own."""
        return torch.cuda.is_current_stream_capturing()

    def stream(self) -> Any:
        """What tells the current stream from others, which do not wait for it."""
        return torch.cuda.current_stream().cuda_stream


recorder = Recorder()


class Recordings:
    """What is recorded of one circuit, and how often each shape was seen."""

    def __init__(self) -> None:
        self.kept: OrderedDict[Any, Recording] = OrderedDict()
        self.seen: OrderedDict[Any, int] = OrderedDict()
        self.record_after = RECORD_AFTER
        self.lock = threading.RLock()
        """Held while one of them is looked up, made or replayed forward: threads may share a circuit. A backward pass
        needs none, for nobody else takes its recording until it is over; and autograd runs it in a thread that whoever
        makes a recording waits for."""
        self.refused: str | None = None
        """Why recording failed once, as it does for a controller that looks at values: it is not tried again."""


_recordings: weakref.WeakKeyDictionary[Any, Recordings] = weakref.WeakKeyDictionary()
"""By circuit; copies and pickles of a circuit go without."""


class Recording:
    """A forward pass of fixed shapes, and its backward pass where gradients are wanted."""

    def __init__(
        self, circuit: nn.Module, function: Function, arguments: list[Tensor], parameters: list[Tensor]
    ) -> None:
        """
        Args:
            circuit: whose parameters these are, if there are any.
            function: what is recorded.
            arguments: copied, so that they lie where the graph will look.
            parameters: what else has a gradient; read where they lie, so they may change in value.
        """
        self.training = torch.is_grad_enabled() and any(t.requires_grad for t in [*arguments, *parameters])
        self.arguments = self._copies(arguments)
        self.busy: Callable[[], Any] = lambda: None
        """The token of a pass whose backward may still come, if there is one."""
        names = [f"circuit.{name}" for name, _ in circuit.named_parameters()] if parameters else []
        call = Call(circuit, lambda _: function(leaves_of_pass[: len(arguments)]))
        leaves_of_pass: list[Tensor] = []
        live: list[Tensor] = []

        def forward() -> list[Tensor]:
            # Each pass has leaves of its own: autograd would let a graph wait for the stream on which others were used
            # first, and torch records no graph that does.
            live.clear()
            leaves_of_pass[:] = [
                t.detach().requires_grad_(self.training and t.requires_grad) for t in [*self.arguments, *parameters]
            ]
            own = dict(zip(names, leaves_of_pass[len(arguments) :], strict=True))
            live[:] = call_with(call, own) if names else call()
            return live

        def backward() -> list[Tensor | None]:
            outputs = [t for t in live if t.requires_grad]
            wanted = [t for t in leaves_of_pass if t.requires_grad]
            return list(torch.autograd.grad(outputs, wanted, self.gradients, retain_graph=True, allow_unused=True))

        self.gradients: list[Tensor] = []
        with recorder.side_stream():
            for warm_up in range(WARM_UPS):
                with recorder.without_waiting() if warm_up == WARM_UPS - 1 else contextlib.nullcontext():
                    forward()
                    self.gradients = [torch.zeros_like(t) for t in live if t.requires_grad]
                    if self.gradients:
                        backward()
        made, self.replay_forward, pool = recorder.capture(forward, None)
        self.results = [t.detach() for t in made]
        self.differentiable = [t.requires_grad for t in made]
        self.training = bool(self.gradients)
        self.made: list[Tensor | None] = []
        if self.training:
            gradients, self.replay_backward, _ = recorder.capture(backward, pool)
            given = iter(gradients)
            self.made = [next(given) if t.requires_grad else None for t in [*self.arguments, *parameters]]

    def _copies(self, arguments: list[Tensor]) -> list[Tensor]:
        return [t.detach().clone().requires_grad_(self.training and t.requires_grad) for t in arguments]

    def copy_in(self, arguments: Sequence[Tensor]) -> None:
        """Put the values of a call where the graph looks for them."""
        with torch.no_grad():
            for place, value in zip(self.arguments, arguments, strict=True):
                place.copy_(value)

    def __call__(self, arguments: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
        """What the function gives; the parameters lie where the recorded ones did."""
        if self.training:
            return list(_Replay.apply(self, *arguments, *parameters))  # type: ignore[no-untyped-call]
        self.copy_in(arguments)
        self.replay_forward()
        return [t.clone() for t in self.results]

    def check(self, function: Function, circuit: nn.Module, arguments: list[Tensor], parameters: list[Tensor]) -> None:
        """Raise RuntimeError if a replay gives anything else than the function, or another gradient."""
        device = arguments[0].device
        with _nothing_changes(circuit, device):
            upstream = [torch.rand_like(place) for place in self.gradients]
        with _nothing_changes(circuit, device):
            self.copy_in(arguments)
            for place, value in zip(self.gradients, upstream, strict=True):
                place.copy_(value)
            self.replay_forward()
            if self.training:
                self.replay_backward()
            replayed = [None if t is None else t.clone() for t in [*self.results, *self.made]]
        with _nothing_changes(circuit, device):
            given = self._copies(arguments)
            expected: list[Tensor | None] = [*function(given)]
            if self.training:
                wanted = [t for t in [*given, *parameters] if t.requires_grad]
                outputs = [t for t in expected if t is not None and t.requires_grad]
                made = iter(torch.autograd.grad(outputs, wanted, upstream, allow_unused=True))
                expected += [next(made) if t.requires_grad else None for t in [*given, *parameters]]
        for found, right in zip(replayed, expected, strict=True):
            if not _close(found, right):
                raise RuntimeError("a replay differs from the steps that were recorded")


def _close(found: Tensor | None, right: Tensor | None) -> bool:
    if found is None or right is None:
        return found is right
    if not right.is_floating_point():
        return torch.equal(found, right)
    share = TOLERANCES.get(right.dtype, 5e-2)
    largest = float(right.detach().nan_to_num(0.0, 0.0, 0.0).abs().max()) if right.numel() else 0.0
    return torch.allclose(found, right.detach(), rtol=share, atol=share * largest, equal_nan=True)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recording: Recording, *tensors: Tensor) -> tuple[Tensor, ...]:
        recording.copy_in(tensors[: len(recording.arguments)])
        recording.replay_forward()
        ctx.recording, ctx.origin = recording, origin(*tensors)
        # Lives as long as autograd keeps this pass for a backward, and no longer.
        token = tensors[0].new_empty(0)
        recording.busy = weakref.ref(token)
        # The parameters, so that autograd notices if they change in value before the backward pass, which reads them.
        ctx.save_for_backward(token, *as_now(*tensors[len(recording.arguments) :]))
        results = tuple(t.clone() for t in recording.results)
        ctx.mark_non_differentiable(*(t for t, d in zip(results, recording.differentiable, strict=True) if not d))
        return results

    @staticmethod
    @kernel_backward
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors  # raises where autograd would: after the pass was freed, or a parameter has changed
        recording: Recording = ctx.recording
        given = [g for g, d in zip(gradients, recording.differentiable, strict=True) if d]
        for place, gradient in zip(recording.gradients, given, strict=True):
            place.copy_(gradient)
        recording.replay_backward()
        return None, *(None if t is None else t.clone() for t in recording.made)


@contextlib.contextmanager
def _nothing_changes(circuit: nn.Module, device: torch.device) -> Iterator[None]:
    """After the block, random states and buffers are what they were before it."""
    buffers = [
        (own, name, b, b.clone()) for own in circuit.modules() for name, b in own._buffers.items() if b is not None
    ]
    with random_apart(device):
        try:
            yield
        finally:
            with torch.no_grad():
                for own, name, buffer, value in buffers:
                    own._buffers[name] = buffer
                    # A copy counts as a change even if nothing changes, and a pass under way may have saved it.
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)


# ---- what may be recorded --------------------------------------------------------------------------------------------

_PASSING = frozenset(vars(nn.Module())) - {"training"} | {"chosen_backend", "_checked_layout", "_mapping"}
"""Attributes of modules that say nothing about what they compute, or are looked at apart."""


_PLAIN = (type(None), bool, int, float, str)
"""Values of classes that are compared as they are."""


class _Same:
    """Equal for the very same object alone: its id is another's as soon as it is gone, which nothing here delays."""

    def __init__(self, value: Any) -> None:
        """
        Args:
            value: the object.
        """
        try:
            self.object: Callable[[], Any] = weakref.ref(value)
        except TypeError:
            self.object = lambda: value
        self.id = id(value)

    def __hash__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return type(other) is _Same and (found := self.object()) is not None and found is other.object()


def _frozen(value: Any) -> Any:
    """What tells whether a value that Python sees is still the same."""
    if isinstance(value, Tensor):
        # A GPU reads what lies there when it replays; a number that lies on the CPU was read when it was recorded.
        if not in_memory(value) or value.is_inference():
            return _Same(value)
        where = value.data_ptr(), value.shape, value.stride(), value.dtype
        return where if value.device.type == recorder.device else (*where, value._version, _Same(value))
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        return type(value), value
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value), tuple(map(_frozen, value))
    if isinstance(value, dict):
        return dict, tuple((_frozen(key), _frozen(item)) for key, item in value.items())
    return _Same(value)


def _python(circuit: nn.Module) -> tuple[Any, ...]:
    """What the Python of a circuit is, and sees: its classes, their methods, and the attributes of its modules."""
    modules = list(circuit.modules())
    kinds = {part: None for module in modules for part in type(module).__mro__}
    methods = (
        (type(value), value) if type(value) in _PLAIN else _Same(value)
        for kind in kinds
        if kind.__module__[:6] != "torch."
        for value in vars(kind).values()
    )
    attributes = (
        (type(module), *((name, _frozen(value)) for name, value in vars(module).items() if name not in _PASSING))
        for module in modules
    )
    tensors = [tensor for module in modules for tensor in (*module._parameters.values(), *module._buffers.values())]
    return (*methods, *attributes, *((_frozen(t), t.requires_grad) for t in tensors if t is not None))


def _unrecordable(circuit: CircuitView) -> str | None:
    """Why a circuit cannot be recorded, or None."""
    module = cast("nn.Module", circuit)
    modules = list(module.modules())
    if any(hooked(part) for part in modules if part is not module):
        return "a replay would skip hooks"
    if not as_written(tuple({type(part): None for part in modules})):
        return "a replay would skip a formula that was replaced"
    for part in modules:
        for tensor in (*part._parameters.values(), *part._buffers.values(), *vars(part).values()):
            # A recorded backward pass would go on into what made it, and run the hooks on it a second time.
            if isinstance(tensor, Tensor) and (tensor.grad_fn is not None or tensor._backward_hooks):
                return "its weights are computed, or have hooks"
    return None


def _unavailable_here(circuit: CircuitView, inputs: Tensor, others: Iterable[Tensor]) -> str | None:
    """Why nothing can be recorded of these tensors at the moment, or None."""
    device = inputs.device
    if device.type != recorder.device:
        return f"it records on GPUs that torch calls cuda; inputs are on {device}"
    reason = guard.unavailable_here(device) or _unrecordable(circuit)
    if reason is None and transforms_functions():
        reason = "it has no rule for torch.func transforms"
    if reason is not None:
        return reason
    if circuit.backend != "graphs" and (refused := _of(circuit).refused) is not None:
        return refused
    for tensor in (inputs, *others):
        if type(tensor) not in (Tensor, nn.Parameter) or not in_memory(tensor) or tensor.device != device:
            return f"it needs plain tensors that are all on {device}"
    return None


def unavailable(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> str | None:
    """Why these steps cannot be recorded, or None."""
    return _unavailable_here(circuit, inputs, chain(leaves(state), cast("nn.Module", circuit).parameters()))


def population_unavailable(circuit: CircuitView, parameters: Mapping[str, Tensor], inputs: Tensor) -> str | None:
    """Why a population cannot be recorded, or None."""
    return _unavailable_here(circuit, inputs, parameters.values())


def _parameters(circuit: CircuitView) -> list[Tensor]:
    return list(cast("nn.Module", circuit).parameters())


def _of(circuit: CircuitView) -> Recordings:
    return _recordings.setdefault(circuit, Recordings())


def _saved_tensors_hooked() -> bool:
    """Whether the caller sees what is saved, as activation checkpointing, which needs the same when a pass runs again.

    Torch has no question for that before 2.7, but disabling such hooks is an error where there are any.
    """
    try:
        with disable_saved_tensors_hooks("asked only whether there are any"):
            return False
    except RuntimeError:
        return True


# ---- what is recorded ------------------------------------------------------------------------------------------------


def pieces(steps: int) -> list[int]:
    """The lengths into which a sequence is cut: powers of two, each once unless it is the longest, which come first."""
    rest = steps % LONGEST
    return [LONGEST] * (steps // LONGEST) + [1 << k for k in reversed(range(rest.bit_length())) if rest >> k & 1]


def run(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
    """Features ``[T, B, F]`` and the last state."""
    return run_recorded(eager.run, circuit, inputs, state)


def run_circuit(circuit: Any, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Outputs ``[T, B, O]`` and the last state of a circuit whose steps are its own, recorded where they can be.

    Raises:
        BackendError: it asks for that, and cannot be recorded; says why.
    """
    if circuit.backend != "eager" and "graphs" in circuit.backends:
        reason = unavailable(circuit, inputs, state)
        if reason is None:
            return run_recorded(_steps, circuit, inputs, state)
        if circuit.backend == "graphs":
            raise BackendError(f"backend: 'graphs' cannot run this circuit: {reason}")
    return _steps(circuit, inputs, state)


def _steps(circuit: Any, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
    outputs, state = circuit._run(inputs, state)
    return outputs, state


def run_recorded(plain: Run, circuit: CircuitView, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
    """What ``plain`` gives, replayed where these shapes have come often enough and the recording is free."""
    if _of(circuit).refused or _saved_tensors_hooked() or recorder.recording() or _unrecordable(circuit) is not None:
        return plain(circuit, inputs, state)
    seen = _python(cast("nn.Module", circuit))
    features = []
    for piece in inputs.split(pieces(len(inputs))):

        def function(given: list[Tensor], structure: CircuitState = state) -> list[Tensor]:
            made, last = plain(circuit, given[0], rebuild(structure, given[1:]))
            return [made, *leaves(last)]

        made, *last = _run(circuit, (plain, seen), function, [piece, *leaves(state)], _parameters(circuit))
        features.append(made)
        state = rebuild(state, last)
    return torch.cat(features) if len(features) > 1 else features[0], state


def run_population(circuit: CircuitView, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """The answers of P members with parameters ``[P, *S]`` to the same inputs ``[T, B, I]``: ``[T, P, B, O]``."""

    def function(given: list[Tensor]) -> list[Tensor]:
        return [map_members(circuit, dict(zip(parameters, given[1:], strict=True)), given[0])]

    arguments = [inputs, *parameters.values()]
    if _of(circuit).refused or recorder.recording():
        return function(arguments)[0]
    key = ("population", tuple(parameters), _python(cast("nn.Module", circuit)))
    return _run(circuit, key, function, arguments, [])[0]


def _run(
    circuit: CircuitView, key: Any, function: Function, arguments: list[Tensor], parameters: list[Tensor]
) -> list[Tensor]:
    """What a function gives, replayed if it can be."""
    with recorder.on(arguments[0].device):
        with _of(circuit).lock:
            recording = _find(circuit, key, function, arguments, parameters)
            if recording is not None and recording.busy() is None:
                return recording(arguments, parameters)
        return function(arguments)


def _find(
    circuit: CircuitView, key: Any, function: Function, arguments: list[Tensor], parameters: list[Tensor]
) -> Recording | None:
    """The recording for these arguments, made now if they have come often enough."""
    recordings, module = _of(circuit), cast("nn.Module", circuit)
    if recordings.refused is not None:
        return None
    seen = key[-1]
    key = (
        *key,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        recorder.stream(),
        *((t.shape, t.dtype, t.device, t.requires_grad) for t in arguments),
    )
    if key in recordings.kept:
        recordings.kept.move_to_end(key)
        return recordings.kept[key]
    recordings.seen[key] = recordings.seen.pop(key, 0) + 1
    if len(recordings.seen) > 16 * KEPT:
        recordings.seen.popitem(last=False)
    if recordings.seen[key] < recordings.record_after:
        return None
    del recordings.seen[key]
    while len(recordings.kept) >= KEPT:
        recordings.kept.popitem(last=False)
        recordings.record_after *= 2
    try:
        with _nothing_changes(module, arguments[0].device):
            recording = Recording(module, function, arguments, parameters)
        if _python(module) != seen:
            raise RuntimeError("its steps change attributes of a module")
        recording.check(function, module, arguments, parameters)
    except Exception as error:  # out of memory, or something that no graph can hold, of which anything may come
        recordings.refused = f"CUDA graphs cannot hold it: {str(error).splitlines()[0] if str(error) else error!r}"
        recordings.kept.clear()
        logger.warning("backend: this %s runs without CUDA graphs, slower: %s", type(circuit).__name__, error)
        return None
    recordings.kept[key] = recording
    return recording
