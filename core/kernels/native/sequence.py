"""Whole sequences, as one function for autograd and for populations, around the calls into the library."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import library
from .library import Problem, Tensors

BLOCK = 16
"""Rows of the batch that go through the sequence together; enough for the products, few enough for the cache."""


def keep_every(slots: int) -> int:
    """Steps between two stored memories (and links): more where each is large, since memory counts for more there."""
    return 4 if slots < 512 else 6


class Weights(NamedTuple):
    """The weights of controller and interface; with a population, P members' in front.

    C columns for the features that the first layer sees, G gates, L layers.
    """

    weight: Tensor
    """Products of the controller's first layer, with the features that it sees and with the inputs, ``[G, C + I]``."""
    bias: Tensor
    """``[G]``"""
    upper_weight: Tensor | None
    """Products of the layers above, with their own last hidden vector (not feed-forward) and with that of the layer
    below, ``[L - 1, G, …]``; None for one layer."""
    upper_bias: Tensor | None
    """``[L - 1, G]``"""
    interface_weight: Tensor
    """``[interface, hidden]``"""
    interface_bias: Tensor
    """``[interface]``"""


class First(NamedTuple):
    """The state before the first step, and after the last."""

    features: Tensor
    """The last layer's hidden vector and the words read, ``[B, F]``."""
    lower_hidden: Tensor | None
    """Hidden vectors of the layers below, ``[B, L - 1, hidden]``; None where nothing is carried."""
    cell: Tensor | None
    """``[B, L, hidden]``, LSTM."""
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
        layers=1 if weights.upper_bias is None else 1 + weights.upper_bias.shape[-2],
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
    accessor: str, problem: Problem, inputs: Tensor, weights: Weights, first: First
) -> tuple[Tensor, First]:
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
    arguments = (inputs, *weights, *first[:3], *first.leaves)
    problem.training = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments)
    if problem.training:
        results = _Sequence.apply(accessor, problem, *arguments)  # type: ignore[no-untyped-call]
    else:
        results = _forward(accessor, problem, *arguments).results
    features, last_lower_hidden, last_cell, *leaves = results
    return features, First(features[-1], last_lower_hidden, last_cell, tuple(leaves))


def run_population(
    accessor: str,
    problem: Problem,
    inputs: Tensor,
    weights: Weights,
    output_weight: Tensor,
    output_bias: Tensor,
    first: First,
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
    given = [None if t is None else t.detach().contiguous() for t in weights]
    inputs, output_weight, output_bias = (t.detach().contiguous() for t in (inputs, output_weight, output_bias))
    (steps, batch, _), (members, outputs) = inputs.shape, output_bias.shape
    problem.members, problem.batch, problem.outputs = members, members * batch, outputs
    loaded = _library()
    features, lower_hidden, cell = (
        None if t is None else t.detach().repeat_interleave(batch, dim=0).contiguous() for t in first[:3]
    )
    assert features is not None
    two_steps = torch.stack([features, features])
    answers = inputs.new_empty(steps, members, batch, outputs)
    record_size, tape_size = library.sizes(loaded, accessor, problem, inputs.dtype)
    workspace = inputs.new_empty(record_size + tape_size)
    x = _tensors(workspace, record_size)
    x.give(inputs=inputs, **dict(zip(Weights._fields, given, strict=True)))
    x.give(output_weight=output_weight, output_bias=output_bias, features=two_steps, outputs=answers)
    leaves = [leaf.detach().contiguous() for leaf in first.leaves]
    x.give(lower_hidden=lower_hidden, cell=cell)
    x.give_leaves("state", leaves)
    library.call(loaded, accessor, "forward", problem, inputs.dtype, x)
    return answers


def _library() -> ctypes.CDLL:
    loaded = library.load()
    if isinstance(loaded, str):
        raise RuntimeError(f"native backend: {loaded}")
    return loaded


_ARGUMENTS = ("inputs", *Weights._fields, "features", "lower_hidden", "cell")
"""The tensors that a sequence takes, in order; the leaves of the accessor's state follow."""


class _Run(NamedTuple):
    """What a forward pass leaves."""

    given: list[Tensor | None]
    """The arguments as the library needs them."""
    features: Tensor
    """``[T + 1, B, F]``"""
    workspace: Tensor
    """Records and tape."""
    results: tuple[Tensor | None, ...]
    """Features ``[T, B, F]``, last lower hidden vectors, last cell, last leaves."""


def _forward(accessor: str, problem: Problem, *arguments: Tensor | None) -> _Run:
    given = [None if t is None else t.detach().contiguous() for t in arguments]
    named = dict(zip(_ARGUMENTS, given, strict=False))
    leaves = [leaf for leaf in given[len(_ARGUMENTS) :] if leaf is not None]
    inputs, first, lower_hidden, cell = (named[name] for name in ("inputs", "features", "lower_hidden", "cell"))
    assert inputs is not None and first is not None
    loaded = _library()
    record_size, tape_size = library.sizes(loaded, accessor, problem, inputs.dtype)
    features = inputs.new_empty(problem.steps + 1, *first.shape)
    features[0] = first
    # One block, not two: what malloc gave and got back in one piece it keeps for the next call.
    workspace = inputs.new_empty(record_size + tape_size)
    last_lower_hidden, last_cell = (None if t is None else torch.empty_like(t) for t in (lower_hidden, cell))
    last_leaves = [torch.empty_like(leaf) for leaf in leaves]
    x = _tensors(workspace, record_size)
    x.give(**named)
    x.give(features=features, last_lower_hidden=last_lower_hidden, last_cell=last_cell)
    x.give_leaves("state", leaves)
    x.give_leaves("last_state", last_leaves)
    library.call(loaded, accessor, "forward", problem, inputs.dtype, x)
    return _Run(given, features, workspace, (features[1:], last_lower_hidden, last_cell, *last_leaves))


def _tensors(workspace: Tensor, record_size: int) -> Tensors:
    return Tensors(records=workspace.data_ptr(), tape=workspace.data_ptr() + record_size * workspace.element_size())


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, accessor: str, problem: Problem, *arguments: Tensor | None) -> tuple[Tensor | None, ...]:
        run = _forward(accessor, problem, *arguments)
        ctx.accessor, ctx.problem = accessor, problem
        ctx.shapes = [None if t is None else t.shape for t in run.given]
        ctx.set_materialize_grads(False)
        named = dict(zip(_ARGUMENTS, run.given, strict=False))
        kept = [named[name] for name in ("inputs", "weight", "upper_weight", "interface_weight")]
        ctx.save_for_backward(*kept, run.features, run.workspace)
        return run.results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        problem: Problem = ctx.problem
        inputs, weight, upper_weight, interface_weight, features, workspace = ctx.saved_tensors
        d_features, d_last_lower_hidden, d_last_cell, *d_last_leaves = (
            None if d is None else d.contiguous() for d in gradients
        )
        made = [
            inputs.new_empty(shape) if wanted else None
            for shape, wanted in zip(ctx.shapes, ctx.needs_input_grad[2:], strict=True)
        ]
        record_size, _ = library.sizes(_library(), ctx.accessor, problem, inputs.dtype)
        x = _tensors(workspace, record_size)
        x.give(inputs=inputs, weight=weight, upper_weight=upper_weight, interface_weight=interface_weight)
        x.give(features=features, d_features=d_features)
        x.give(d_last_lower_hidden=d_last_lower_hidden, d_last_cell=d_last_cell)
        names = ("d_first" if name == "features" else f"d_{name}" for name in _ARGUMENTS)
        x.give(**dict(zip(names, made, strict=False)))
        x.give_leaves("d_last_state", d_last_leaves)
        x.give_leaves("d_state", made[len(_ARGUMENTS) :])
        library.call(_library(), ctx.accessor, "backward", problem, inputs.dtype, x)
        return (None, None, *made)
