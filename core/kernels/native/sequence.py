"""Whole sequences, as one function for autograd and for populations, around the calls into the library."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..guard import layer_sizes
from ..operators import flattened, operator, unflattened
from ..transforms import as_now, differentiable_once, in_memory, origin, transforms_functions
from . import library, pages
from .library import Problem, Tensors

BLOCK = 8
"""Rows of the batch that go through the sequence together; enough for the products, few enough for the cache."""


KEPT = 256
"""Problems of which sizes and shapes are remembered."""


def keep_every(slots: int) -> int:
    """Steps between two stored memories (and links): more where each is large, since memory counts for more there.

    No more than MOST_UPDATES of link.h.
    """
    return 4 if slots < 512 else 6


class Layer(NamedTuple):
    """The weights of one layer of the controller; with a population, P members' in front.

    G rows: the gates of an LSTM, a GRU or a feed-forward layer, or the units and transitions of an automaton.
    """

    input_weight: Tensor
    """``[G, …]``, columns for the input and the words read, or for the hidden vector of the layer below."""
    input_bias: Tensor
    """``[G]``"""
    recurrent_weight: Tensor | None
    """``[G, hidden]``, of an automaton ``[units, states]``; None, as its bias, for a feed-forward controller."""
    recurrent_bias: Tensor | None
    """``[G]``, of an automaton ``[units]``"""


class Weights(NamedTuple):
    """The weights of controller and interface; with a population, P members' in front."""

    layers: tuple[Layer, ...]
    interface_weight: Tensor
    """``[interface, hidden]``"""
    interface_bias: Tensor
    """``[interface]``"""


class State(NamedTuple):
    """The state before the first step, or after the last."""

    hidden: Tensor | None
    """``[B, L, hidden]``; None where none is carried."""
    cell: Tensor | None
    """``[B, L, hidden]``, LSTM."""
    reads: Tensor
    """``[B, R, W]``"""
    leaves: tuple[Tensor, ...]
    """Of the accessor's state."""


def make_problem(inputs: Tensor, weights: Weights, memory: Tensor, **options: Any) -> Problem:
    """Sizes of a sequence, for :func:`run_sequence` and :func:`run_population`.

    Args:
        inputs: ``[T, B, I]``.
        weights: see :class:`Weights`.
        memory: ``[…, N, W]``.
        options: further fields of :class:`~.library.Problem`.
    """
    return Problem(
        steps=inputs.shape[0],
        batch=inputs.shape[1],
        inputs=inputs.shape[2],
        hidden=weights.interface_weight.shape[-1],
        layers=len(weights.layers),
        slots=memory.shape[-2],
        word=memory.shape[-1],
        interface=weights.interface_bias.shape[-1],
        threads=torch.get_num_threads(),
        members=0,
        block=BLOCK,
        **{"keep_every": keep_every(memory.shape[-2])} | options,
    )


def run_sequence(
    accessor: str, problem: Problem, inputs: Tensor, weights: Weights, first: State
) -> tuple[Tensor, State]:
    """Run a sequence; differentiable once in every tensor.

    Args:
        accessor: which functions of the library, ``static`` (NTM), ``dynamic`` (DNC), ``stack`` or ``soft_tape``.
        problem: from :func:`make_problem`.
        inputs: ``[T, B, I]``.
        weights: see :class:`Weights`.
        first: the state before the first step.

    Returns:
        Features ``[T, B, F]`` and the state after the last step.
    """
    arguments = (inputs, *weights[1:], *first[:3], *(weight for layer in weights.layers for weight in layer))
    arguments += first.leaves
    problem.training = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments)
    text = bytes(problem).hex()
    if not problem.training:
        features, *made = _run_sequence(accessor, text, arguments)
    else:
        try:
            features, *made = _Sequence.apply(accessor, text, *arguments)  # type: ignore[no-untyped-call]
        except RuntimeError:
            if not transforms_functions():
                raise
            features, *made = _sequence(accessor, text, arguments)  # torch.func is at work, on other tensors
    last = iter(made)
    hidden, cell, reads = (None if tensor is None else next(last) for tensor in first[:3])
    assert reads is not None
    return features, State(hidden, cell, reads, tuple(last))


def run_population(
    accessor: str,
    problem: Problem,
    inputs: Tensor,
    weights: Weights,
    output_weight: Tensor,
    output_bias: Tensor,
    first: State,
) -> Tensor:
    """The answers of P members, each with its own weights, to the same sequences; not differentiable.

    Args:
        accessor: see :func:`run_sequence`.
        problem: from :func:`make_problem`.
        inputs: ``[T, B, I]``, the same for all members.
        weights: of P members each.
        output_weight: ``[P, O, F]``.
        output_bias: ``[P, O]``.
        first: the state of each member before the first step, the same for all sequences: ``[P, …]``.

    Returns:
        ``[T, P, B, O]``, clipped.
    """
    batch, (members, outputs) = inputs.shape[1], output_bias.shape
    problem.members, problem.batch, problem.outputs = members, members * batch, outputs
    layers = [weight for layer in weights.layers for weight in layer]
    tensors = (inputs, *weights[1:], output_weight, output_bias, *first[:3], *layers, *first.leaves)
    with torch.no_grad():
        return _population(accessor, bytes(problem).hex(), tensors)


def _plain(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _library() -> ctypes.CDLL:
    loaded = library.load()
    if isinstance(loaded, str):
        raise RuntimeError(f"native backend: {loaded}")
    return loaded


@functools.lru_cache(maxsize=KEPT)
def _problem(text: str) -> Problem:
    """A problem from the text that operators take, its bytes; not to be changed."""
    return Problem.from_buffer_copy(bytes.fromhex(text))


@functools.lru_cache(maxsize=KEPT)
def _sizes(loaded: ctypes.CDLL, accessor: str, text: str, dtype: torch.dtype) -> tuple[int, int]:
    """Elements of the records, and of the saved memories and links."""
    return library.sizes(loaded, accessor, _problem(text), dtype)


def _tensors(workspace: Tensor, record_size: int) -> Tensors:
    return Tensors(records=workspace.data_ptr(), saved=workspace.data_ptr() + record_size * workspace.element_size())


_ARGUMENTS = ("inputs", "interface_weight", "interface_bias", "hidden", "cell", "reads")
"""The tensors that a sequence takes, in order; the layers' weights and the leaves of the accessor's state follow."""


def _layers_end(problem: Problem) -> int:
    """Where the leaves begin."""
    return len(_ARGUMENTS) + len(Layer._fields) * problem.layers


class _Room(NamedTuple):
    """Room for what a forward pass leaves."""

    features: Tensor
    """``[T + 1, B, F]``"""
    workspace: Tensor
    """Records, and saved memories and links."""
    last: list[Tensor]
    """The last state: hidden vectors, cell, words read, leaves."""
    record_size: int

    @classmethod
    def make(cls, accessor: str, text: str, arguments: Sequence[Tensor | None]) -> _Room:
        problem, inputs = _problem(text), arguments[0]
        assert inputs is not None
        features = inputs.new_empty(problem.steps + 1, problem.batch, problem.hidden + problem.reads * problem.word)
        record_size, saved_size = _sizes(_library(), accessor, text, inputs.dtype)
        # One block, not two: what was given and came back in one piece is kept for the next call.
        workspace = pages.empty(record_size + saved_size, inputs)
        state = (*arguments[3 : len(_ARGUMENTS)], *arguments[_layers_end(problem) :])
        last = [torch.empty_like(t) for t in state if t is not None]
        return cls(features, workspace, last, record_size)

    def results(self) -> list[Tensor]:
        return [self.features, self.workspace, *self.last]


def _empty(accessor: str, text: str, arguments: Sequence[Tensor | None]) -> list[Tensor]:
    """Room for what a forward pass leaves; see :class:`_Room`."""
    return _Room.make(accessor, text, [_plain(t) for t in arguments]).results()


def _run_forward(accessor: str, text: str, arguments: Sequence[Tensor | None]) -> list[Tensor]:
    """Run a sequence; features ``[T + 1, B, F]``, the workspace, and the last state."""
    problem = _problem(text)
    given = [_plain(t) for t in arguments]
    room = _Room.make(accessor, text, given)
    end = _layers_end(problem)
    x = _tensors(room.workspace, room.record_size)
    carried = given[3 : len(_ARGUMENTS)]
    remaining = iter(room.last)
    last_hidden, last_cell, last_reads = (None if t is None else next(remaining) for t in carried)
    x.give(**dict(zip(_ARGUMENTS, given, strict=False)))
    x.give_layers("layers", given[len(_ARGUMENTS) : end])
    x.give(features=room.features, last_hidden=last_hidden, last_cell=last_cell, last_reads=last_reads)
    x.give_leaves("state", given[end:])
    x.give_leaves("last_state", remaining)
    library.call(_library(), accessor, "forward", problem, room.features.dtype, x)
    return room.results()


@functools.lru_cache(maxsize=KEPT)
def _shapes(accessor: str, text: str) -> tuple[tuple[int, ...], ...]:
    """Of all that a sequence takes, in order."""
    p = _problem(text)
    # What the library tells apart further, by other numbers, has one block of rows, as an rnn has.
    kind = next((kind for kind, number in library.CONTROLLERS.items() if number == p.controller), "rnn")
    gates, *recurrent = layer_sizes(kind, p.hidden, p.states)
    layer = ((gates, p.hidden), (gates,), tuple(recurrent), (recurrent[0],))
    carried = (p.batch, p.layers, p.hidden)
    memory, heads = (p.batch, p.slots, p.word), [(p.batch, count, p.slots) for count in (p.reads, p.writes)]
    linked = ((p.batch, p.slots), (p.batch, p.writes, p.slots, p.slots), (p.batch, p.writes, p.slots))
    own = (p.batch, p.reads, p.slots, p.word)
    leaves = {
        "static": (memory, *heads),
        "dynamic": (memory, *linked, *heads),
        "stack": (own,),
        "soft_tape": (own, (p.steps, p.batch)),
    }
    return (
        (p.steps, p.batch, p.inputs),
        *((p.interface, p.hidden), (p.interface,)),
        *(carried, carried, (p.batch, p.reads, p.word)),
        *((gates, p.inputs + p.reads * p.word), *layer[1:]),
        *(layer * (p.layers - 1)),
        *leaves[accessor],
    )


def _empty_gradients(
    accessor: str, text: str, wanted: Sequence[bool], saved: Sequence[Tensor | None], gradients: Sequence[Tensor | None]
) -> list[Tensor]:
    """Room for the gradients of the arguments that want one."""
    features = saved[-2]
    assert features is not None
    shapes = _shapes(accessor, text)
    return [features.new_empty(shape) for shape, want in zip(shapes, wanted, strict=True) if want]


def _run_backward(
    accessor: str, text: str, wanted: Sequence[bool], saved: Sequence[Tensor | None], gradients: Sequence[Tensor | None]
) -> list[Tensor]:
    """Gradients of a sequence; see :func:`_backward`."""
    problem = _problem(text)
    inputs, interface_weight, *layers = (_plain(t) for t in saved[:-2])
    features, workspace = saved[-2:]
    assert features is not None and workspace is not None
    d_features, d_last_hidden, d_last_cell, d_last_reads, *d_last_leaves = (_plain(d) for d in gradients)
    made = _empty_gradients(accessor, text, wanted, saved, gradients)
    remaining = iter(made)
    given = [next(remaining) if want else None for want in wanted]
    end = _layers_end(problem)
    loaded = _library()
    x = _tensors(workspace, _sizes(loaded, accessor, text, features.dtype)[0])
    x.give(inputs=inputs, interface_weight=interface_weight, features=features)
    x.give_layers("layers", layers)
    x.give(d_features=d_features, d_last_hidden=d_last_hidden, d_last_cell=d_last_cell, d_last_reads=d_last_reads)
    x.give(**{f"d_{name}": tensor for name, tensor in zip(_ARGUMENTS, given, strict=False)})
    x.give_layers("d_layers", given[len(_ARGUMENTS) : end])
    x.give_leaves("d_last_state", d_last_leaves)
    x.give_leaves("d_state", given[end:])
    library.call(loaded, accessor, "backward", problem, features.dtype, x)
    return made


def _empty_answers(accessor: str, text: str, tensors: Sequence[Tensor | None]) -> Tensor:
    """Room for the answers of a population."""
    problem, inputs = _problem(text), tensors[0]
    assert inputs is not None
    return inputs.new_empty(problem.steps, problem.members, problem.batch // problem.members, problem.outputs)


def _run_population(accessor: str, text: str, tensors: Sequence[Tensor | None]) -> Tensor:
    """Run a population; see :func:`run_population` for the order of the tensors."""
    problem = _problem(text)
    inputs, *parameters = (_plain(t) for t in tensors)
    interface_weight, interface_bias, output_weight, output_bias, hidden, cell, reads, *rest = parameters
    assert inputs is not None and output_weight is not None
    end = len(Layer._fields) * problem.layers
    answers = _empty_answers(accessor, text, tensors)
    two_steps = inputs.new_empty(2, problem.batch, output_weight.shape[2])
    loaded = _library()
    record_size, saved_size = _sizes(loaded, accessor, text, inputs.dtype)
    workspace = pages.empty(record_size + saved_size, inputs)
    x = _tensors(workspace, record_size)
    x.give(inputs=inputs, interface_weight=interface_weight, interface_bias=interface_bias)
    x.give_layers("layers", rest[:end])
    x.give(output_weight=output_weight, output_bias=output_bias, features=two_steps, outputs=answers)
    x.give(hidden=hidden, cell=cell, reads=reads)
    x.give_leaves("state", rest[end:])
    library.call(loaded, accessor, "forward", problem, inputs.dtype, x)
    return answers


def _differentiable(accessor: str, text: str, arguments: Sequence[Tensor | None]) -> list[Tensor]:
    """What :data:`_sequence` is to autograd."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments):
        return list(_Sequence.apply(accessor, text, *arguments))  # type: ignore[no-untyped-call]
    return _run_sequence(accessor, text, arguments)


def _run_sequence(accessor: str, text: str, arguments: Sequence[Tensor | None]) -> list[Tensor]:
    """Features ``[T, B, F]`` and the last state, without what the backward pass would need."""
    features, _, *last = _forward(accessor, text, arguments)
    return [features[1:], *last]


def _empty_sequence(accessor: str, text: str, arguments: Sequence[Tensor | None]) -> list[Tensor]:
    features, *rest = _empty(accessor, text, arguments)
    return [features[1:], *rest[1:]]


_forward = operator(
    "native_forward(str accessor, str problem, Tensor?[] arguments) -> Tensor[]",
    "CPU",
    _run_forward,
    _empty,
    on_memory=True,
)
_backward = operator(
    "native_backward(str accessor, str problem, bool[] wanted, Tensor?[] saved, Tensor?[] gradients) -> Tensor[]",
    "CPU",
    _run_backward,
    _empty_gradients,
    on_memory=True,
)
_GRADIENTS = [f"d_{index}" for index in range(4 + library.MOST_LEAVES)]
"""Names of the gradients of features, hidden vectors, cell, words read, and leaves."""


def _run_flat_backward(
    accessor: str, text: str, wanted: Sequence[bool], saved: Sequence[Any], *gradients: Any
) -> Tensor:
    """The same in one tensor, for gradients that come in batches: what ``is_grads_batched`` can repeat by itself."""
    return flattened(_run_backward(accessor, text, wanted, saved, list(gradients)))


def _empty_flat(accessor: str, text: str, wanted: Sequence[bool], saved: Sequence[Any], *gradients: Any) -> Tensor:
    return flattened(_empty_gradients(accessor, text, wanted, saved, list(gradients)))


_flat_backward = operator(
    "native_flat_backward(str accessor, str problem, bool[] wanted, Tensor?[] saved, "
    + ", ".join(f"Tensor? {name}" for name in _GRADIENTS)
    + ") -> Tensor",
    "CPU",
    _run_flat_backward,
    _empty_flat,
)
_population = operator(
    "native_population(str accessor, str problem, Tensor?[] tensors) -> Tensor", "CPU", _run_population, _empty_answers
)


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, accessor: str, text: str, *arguments: Tensor | None) -> tuple[Tensor, ...]:
        features, workspace, *last = _forward(accessor, text, arguments)
        ctx.accessor, ctx.text, ctx.given = accessor, text, [t is not None for t in arguments[3:6]]
        ctx.set_materialize_grads(False)
        layers = arguments[len(_ARGUMENTS) : _layers_end(_problem(text))]
        ctx.save_for_backward(*as_now(*arguments[:2], *layers), features, workspace)
        ctx.origin = origin(*arguments)
        return features[1:], *last

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, d_features: Tensor | None, *d_last: Tensor | None) -> tuple[Tensor | None, ...]:
        remaining = iter(d_last)
        d_carried = [next(remaining) if given else None for given in ctx.given]
        gradients = (d_features, *d_carried, *remaining)
        wanted = ctx.needs_input_grad[2:]
        about = (ctx.accessor, ctx.text, wanted, ctx.saved_tensors)
        if all(d is None or in_memory(d) for d in gradients):
            made = iter(_backward(*about, gradients))
        else:
            every = _shapes(ctx.accessor, ctx.text)
            shapes = [shape for shape, want in zip(every, wanted, strict=True) if want]
            flat = _flat_backward(*about, *gradients, *(None,) * (len(_GRADIENTS) - len(gradients)))
            made = iter(unflattened(flat, shapes))
        return None, None, *(next(made) if want else None for want in wanted)


_sequence = operator(
    "native_sequence(str accessor, str problem, Tensor?[] arguments) -> Tensor[]",
    "CPU",
    _run_sequence,
    _empty_sequence,
    _differentiable,
)
