"""Whole sequences, as one function for autograd and for populations, around the calls into the library."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import library
from .library import Problem, Tensors

BLOCK = 8
"""Rows of the batch that go through the sequence together; enough for the products, few enough for the cache."""


def keep_every(slots: int) -> int:
    """Steps between two stored memories (and links): more where each is large, since memory counts for more there."""
    return 4 if slots < 512 else 6


class Layer(NamedTuple):
    """The weights of one layer of the controller; with a population, P members' in front.

    G rows: the gates of an LSTM, a GRU or a feed-forward layer.
    """

    input_weight: Tensor
    """``[G, …]``, columns for the input and the words read, or for the hidden vector of the layer below."""
    input_bias: Tensor
    """``[G]``"""
    recurrent_weight: Tensor | None
    """``[G, hidden]``; None, as its bias, for a feed-forward controller."""
    recurrent_bias: Tensor | None
    """``[G]``"""


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
        members=1,
        keep_every=keep_every(memory.shape[-2]),
        block=BLOCK,
        **options,
    )


def run_sequence(
    accessor: str, problem: Problem, inputs: Tensor, weights: Weights, first: State
) -> tuple[Tensor, State]:
    """Run a sequence; differentiable once in every tensor.

    Args:
        accessor: which functions of the library, ``static`` (NTM) or ``dynamic`` (DNC).
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
    if problem.training:
        results = _Sequence.apply(accessor, problem, *arguments)  # type: ignore[no-untyped-call]
    else:
        results = _forward(accessor, problem, *arguments).results
    features, hidden, cell, reads, *leaves = results
    return features, State(hidden, cell, reads, tuple(leaves))


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
        ``[T, P, B, O]``, not clipped.
    """
    inputs, output_weight, output_bias, *interface = (
        t.detach().contiguous() for t in (inputs, output_weight, output_bias, *weights[1:])
    )
    layers = [_plain(weight) for layer in weights.layers for weight in layer]
    hidden, cell, reads, *leaves = (_plain(t) for t in (*first[:3], *first.leaves))
    (steps, batch, _), (members, outputs) = inputs.shape, output_bias.shape
    problem.members, problem.batch, problem.outputs = members, members * batch, outputs
    loaded = _library()
    two_steps = inputs.new_empty(2, members * batch, output_weight.shape[2])
    answers = inputs.new_empty(steps, members, batch, outputs)
    record_size, tape_size = library.sizes(loaded, accessor, problem, inputs.dtype)
    workspace = inputs.new_empty(record_size + tape_size)
    x = _tensors(workspace, record_size)
    x.give(inputs=inputs, interface_weight=interface[0], interface_bias=interface[1])
    x.give_layers("layers", layers)
    x.give(output_weight=output_weight, output_bias=output_bias, features=two_steps, outputs=answers)
    x.give(hidden=hidden, cell=cell, reads=reads)
    x.give_leaves("state", leaves)
    library.call(loaded, accessor, "forward", problem, inputs.dtype, x)
    return answers


def _plain(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().contiguous()


def _library() -> ctypes.CDLL:
    loaded = library.load()
    if isinstance(loaded, str):
        raise RuntimeError(f"native backend: {loaded}")
    return loaded


_ARGUMENTS = ("inputs", "interface_weight", "interface_bias", "hidden", "cell", "reads")
"""The tensors that a sequence takes, in order; the layers' weights and the leaves of the accessor's state follow."""


def _layers_end(problem: Problem) -> int:
    """Where the leaves begin."""
    return len(_ARGUMENTS) + len(Layer._fields) * problem.layers


class _Run(NamedTuple):
    """What a forward pass leaves."""

    given: list[Tensor | None]
    """The arguments as the library needs them."""
    features: Tensor
    """``[T + 1, B, F]``"""
    workspace: Tensor
    """Records and tape."""
    results: tuple[Tensor | None, ...]
    """Features ``[T, B, F]``, last hidden vectors, last cell, last words read, last leaves."""


def _forward(accessor: str, problem: Problem, *arguments: Tensor | None) -> _Run:
    given = [_plain(t) for t in arguments]
    named = dict(zip(_ARGUMENTS, given, strict=False))
    end = _layers_end(problem)
    leaves = given[end:]
    inputs, state = named["inputs"], [named[name] for name in ("hidden", "cell", "reads")]
    assert inputs is not None
    loaded = _library()
    record_size, tape_size = library.sizes(loaded, accessor, problem, inputs.dtype)
    features = inputs.new_empty(problem.steps + 1, problem.batch, problem.hidden + problem.reads * problem.word)
    # One block, not two: what malloc gave and got back in one piece it keeps for the next call.
    workspace = inputs.new_empty(record_size + tape_size)
    last = [None if t is None else torch.empty_like(t) for t in (*state, *leaves)]
    x = _tensors(workspace, record_size)
    x.give(**named)
    x.give_layers("layers", given[len(_ARGUMENTS) : end])
    x.give(features=features, last_hidden=last[0], last_cell=last[1], last_reads=last[2])
    x.give_leaves("state", leaves)
    x.give_leaves("last_state", last[3:])
    library.call(loaded, accessor, "forward", problem, inputs.dtype, x)
    return _Run(given, features, workspace, (features[1:], *last))


def _tensors(workspace: Tensor, record_size: int) -> Tensors:
    return Tensors(records=workspace.data_ptr(), tape=workspace.data_ptr() + record_size * workspace.element_size())


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, accessor: str, problem: Problem, *arguments: Tensor | None) -> tuple[Tensor | None, ...]:
        run = _forward(accessor, problem, *arguments)
        ctx.accessor, ctx.problem = accessor, problem
        ctx.shapes = [None if t is None else t.shape for t in run.given]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            *run.given[:2], *run.given[len(_ARGUMENTS) : _layers_end(problem)], run.features, run.workspace
        )
        return run.results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        problem: Problem = ctx.problem
        inputs, interface_weight, *layers, features, workspace = ctx.saved_tensors
        d_features, d_last_hidden, d_last_cell, d_last_reads, *d_last_leaves = (
            None if d is None else d.contiguous() for d in gradients
        )
        made = [
            inputs.new_empty(shape) if wanted else None
            for shape, wanted in zip(ctx.shapes, ctx.needs_input_grad[2:], strict=True)
        ]
        loaded = _library()
        record_size, _ = library.sizes(loaded, ctx.accessor, problem, inputs.dtype)
        x = _tensors(workspace, record_size)
        x.give(inputs=inputs, interface_weight=interface_weight, features=features)
        x.give_layers("layers", layers)
        x.give(d_features=d_features, d_last_hidden=d_last_hidden, d_last_cell=d_last_cell, d_last_reads=d_last_reads)
        x.give(**{f"d_{name}": tensor for name, tensor in zip(_ARGUMENTS, made, strict=False)})
        x.give_layers("d_layers", made[len(_ARGUMENTS) : _layers_end(problem)])
        x.give_leaves("d_last_state", d_last_leaves)
        x.give_leaves("d_state", made[_layers_end(problem) :])
        library.call(loaded, ctx.accessor, "backward", problem, inputs.dtype, x)
        return (None, None, *made)
