"""CUDA graphs: a sequence of given shapes is recorded once and then replayed, without a launch per kernel.

A recording reads and writes fixed tensors, so it can serve one pass at a time: a second forward pass before the first
one's backward (two sequences in one loss, say) runs without it. What comes out is copied: no result is overwritten.
A replay runs no Python, so modules with hooks are not recorded, and nothing is while the caller records a graph.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import disable_saved_tensors_hooks

from ...state import CircuitState, leaves, rebuild
from ..formulas import hooked
from .launch import kernel_backward

if TYPE_CHECKING:
    from ..circuit_view import CircuitView

Run = Callable[["CircuitView", Tensor, CircuitState], tuple[Tensor, CircuitState]]

RECORD_AFTER = 3
"""Calls with the same shapes before they are recorded: recording costs about as much as three passes.

Twice as many after each time that a recording had to make room: many shapes in turn would be recorded all the time.
"""

KEPT = 4
"""Recordings kept for a circuit; each holds the memory of a whole forward and backward pass."""

WARM_UPS = 2
"""Passes before recording, in which libraries allocate and kernels are compiled: no graph could hold that."""

logger = logging.getLogger(__name__)


class Recordings:
    """What is recorded of one circuit, and how often each shape was seen."""

    def __init__(self) -> None:
        self.kept: OrderedDict[Any, Recording] = OrderedDict()
        self.seen: OrderedDict[Any, int] = OrderedDict()
        self.record_after = RECORD_AFTER
        self.refused = False
        """Recording failed once, as it does for a controller that looks at values: it is not tried again."""


_recordings: weakref.WeakKeyDictionary[Any, Recordings] = weakref.WeakKeyDictionary()
"""By circuit; copies and pickles of a circuit go without."""


def capture(function: Callable[[], list[Any]], pool: Any) -> tuple[list[Any], Callable[[], None], Any]:
    """Record a function: the tensors that it gave, what computes them again in place, and its pool of memory."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        made = function()
    return made, graph.replay, graph.pool()


class Recording:
    """A forward pass of fixed shapes, and its backward pass where gradients are wanted."""

    def __init__(self, run: Run, circuit: CircuitView, arguments: list[Tensor], state: CircuitState) -> None:
        """
        Args:
            run: what is recorded.
            circuit: its parameters are read where they lie, so they may change in value.
            arguments: inputs and the leaves of the state; copied, so that they lie where the graph will look.
            state: whose structure the leaves have.
        """
        parameters = _parameters(circuit)
        self.training = torch.is_grad_enabled() and any(t.requires_grad for t in [*arguments, *parameters])
        self.arguments = [t.detach().clone().requires_grad_(self.training and t.requires_grad) for t in arguments]
        self.busy: Callable[[], Any] = lambda: None
        """The token of a pass whose backward may still come, if there is one."""
        wanted = [t for t in [*self.arguments, *parameters] if t.requires_grad]
        live: list[Tensor] = []

        def forward() -> list[Tensor]:
            features, last = run(circuit, self.arguments[0], rebuild(state, self.arguments[1:]))
            live[:] = [features, *leaves(last)]
            return live

        def backward() -> list[Tensor | None]:
            outputs = [t for t in live if t.requires_grad]
            return list(torch.autograd.grad(outputs, wanted, self.gradients, retain_graph=True, allow_unused=True))

        self.gradients: list[Tensor] = []
        with side_stream():
            for _ in range(WARM_UPS):
                forward()
                self.gradients = [torch.zeros_like(t) for t in live if t.requires_grad]
                if self.training:
                    backward()
        made, self.replay_forward, pool = capture(forward, None)
        self.results = [t.detach() for t in made]
        self.differentiable = [t.requires_grad for t in made]
        if self.training:
            gradients, self.replay_backward, _ = capture(backward, pool)
            given = iter(gradients)
            self.made = [next(given) if t.requires_grad else None for t in [*self.arguments, *parameters]]

    def copy_in(self, arguments: list[Tensor]) -> None:
        """Put the values of a call where the graph looks for them."""
        with torch.no_grad():
            for place, value in zip(self.arguments, arguments, strict=True):
                place.copy_(value)

    def __call__(self, arguments: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
        """Features and the leaves of the last state; the parameters lie where the recorded ones did."""
        if self.training:
            return list(_Replay.apply(self, *arguments, *parameters))
        self.copy_in(arguments)
        self.replay_forward()
        return [t.clone() for t in self.results]


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recording: Recording, *tensors: Tensor) -> tuple[Tensor, ...]:
        recording.copy_in(list(tensors[: len(recording.arguments)]))
        recording.replay_forward()
        ctx.recording = recording
        # Lives as long as autograd keeps this pass for a backward, and no longer.
        token = tensors[0].new_empty(0)
        recording.busy = weakref.ref(token)
        ctx.save_for_backward(token)
        results = tuple(t.clone() for t in recording.results)
        ctx.mark_non_differentiable(*(t for t, d in zip(results, recording.differentiable, strict=True) if not d))
        return results

    @staticmethod
    @kernel_backward
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors  # raises where autograd would: after the pass was freed
        recording: Recording = ctx.recording
        given = [g for g, d in zip(gradients, recording.differentiable, strict=True) if d]
        for place, gradient in zip(recording.gradients, given, strict=True):
            place.copy_(gradient)
        recording.replay_backward()
        return None, *(None if t is None else t.clone() for t in recording.made)


def _parameters(circuit: CircuitView) -> list[Tensor]:
    return [*circuit.controller.parameters(), *circuit.accessor.parameters()]


@contextlib.contextmanager
def side_stream() -> Iterator[None]:
    """Warming up must not happen on the default stream, which no graph can record."""
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        yield
    torch.cuda.synchronize()


def _saved_tensors_hooked() -> bool:
    """Whether the caller sees what is saved, as activation checkpointing, which needs the same when a pass runs again.

    Torch has no question for that before 2.7, but disabling such hooks is an error where there are any.
    """
    try:
        with disable_saved_tensors_hooks("asked only whether there are any"):
            return False
    except RuntimeError:
        return True


def run(plain: Run, circuit: CircuitView, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
    """What ``plain`` gives, replayed where these shapes have come often enough and the recording is free."""
    if (
        _saved_tensors_hooked()
        or torch.cuda.is_current_stream_capturing()
        or any(hooked(module) for part in (circuit.controller, circuit.accessor) for module in part.modules())
    ):
        return plain(circuit, inputs, state)
    parameters = _parameters(circuit)
    # A recorded backward pass would go on into what made a parameter, and run the hooks on it a second time.
    if any(parameter.grad_fn is not None or parameter._backward_hooks for parameter in parameters):
        return plain(circuit, inputs, state)
    recordings = _recordings.setdefault(circuit, Recordings())
    arguments = [inputs, *leaves(state)]
    recording = None if recordings.refused else _find(recordings, plain, circuit, arguments, state)
    if recording is None or recording.busy() is not None:
        return plain(circuit, inputs, state)
    features, *last = recording(arguments, parameters)
    return features, rebuild(state, last)


def _find(
    recordings: Recordings, plain: Run, circuit: CircuitView, arguments: list[Tensor], state: CircuitState
) -> Recording | None:
    """The recording for these arguments, made now if they have come often enough."""
    key = (
        plain,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *((t.shape, t.dtype, t.device, t.requires_grad) for t in arguments),
        # Parameters are read where they lay when it was recorded.
        *((t.data_ptr(), t.requires_grad) for t in _parameters(circuit)),
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
        recordings.kept[key] = Recording(plain, circuit, arguments, state)
    except RuntimeError as error:  # out of memory, or something that no graph can hold
        recordings.refused = True
        logger.warning("CUDA graphs: this circuit runs without them: %s", error)
        return None
    return recordings.kept[key]
