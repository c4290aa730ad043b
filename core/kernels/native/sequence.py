"""A whole sequence as one function for autograd, around the calls into the library."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import library
from .library import Problem, Tensors, address

BLOCK = 16
"""Rows of the batch that go through the sequence together; enough for the products, few enough for the cache."""

KEEP_EVERY = 6
"""Steps between two stored memories."""


def run_sequence(
    *,
    accessor: str,
    options: dict[str, Any],
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor,
    interface_weight: Tensor,
    interface_bias: Tensor,
    first_features: Tensor,
    cell: Tensor | None,
    state: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
    """Run a sequence; differentiable once in every tensor.

    Args:
        accessor: which functions of the library, ``static`` (NTM).
        options: further fields of :class:`~.library.Problem`.
        inputs: ``[T, B, I]``.
        weight: products with the controller, ``[G, C]``; C columns for the features that it sees, then the inputs.
        bias: ``[G]``.
        interface_weight: ``[interface, hidden]``.
        interface_bias: ``[interface]``.
        first_features: hidden vector and words read before the first step, ``[B, F]``.
        cell: state of the LSTM's cells before the first step, ``[B, hidden]``.
        state: leaves of the accessor's state before the first step.

    Returns:
        Features ``[T, B, F]``, the last cell state, and the leaves of the accessor's last state.
    """
    problem = Problem(
        steps=inputs.shape[0],
        batch=inputs.shape[1],
        inputs=inputs.shape[2],
        hidden=interface_weight.shape[1],
        slots=state[0].shape[1],
        word=state[0].shape[2],
        interface=interface_weight.shape[0],
        threads=torch.get_num_threads(),
        keep_every=KEEP_EVERY,
        block=BLOCK,
        **options,
    )
    arguments = (inputs, weight, bias, interface_weight, interface_bias, first_features, cell, *state)
    problem.training = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments)
    if problem.training:
        results = _Sequence.apply(accessor, problem, *arguments)  # type: ignore[no-untyped-call]
    else:
        _, features, _, last_cell, leaves = _forward(accessor, problem, *arguments)
        results = (features[1:], last_cell, *leaves)
    return results[0], results[1], tuple(results[2:])


def _library() -> ctypes.CDLL:
    loaded = library.load()
    if isinstance(loaded, str):
        raise RuntimeError(f"native backend: {loaded}")
    return loaded


def _forward(accessor: str, problem: Problem, *arguments: Tensor | None) -> tuple[Any, ...]:
    """The arguments as the library needs them, features ``[T + 1, B, F]``, records, tape, last cell, last leaves."""
    given: list[Any] = [None if t is None else t.detach().contiguous() for t in arguments]
    inputs, weight, bias, interface_weight, interface_bias, first, cell, *state = given
    loaded = _library()
    dtype = inputs.dtype
    record_size, tape_size = library.sizes(loaded, accessor, problem, dtype)
    features = inputs.new_empty(problem.steps + 1, *first.shape)
    features[0] = first
    # One block, not two: what malloc gave and got back in one piece it keeps for the next call.
    workspace = inputs.new_empty(record_size + tape_size)
    last_cell = None if cell is None else torch.empty_like(cell)
    last_state = [torch.empty_like(leaf) for leaf in state]
    x = Tensors(
        inputs=address(inputs),
        weight=address(weight),
        bias=address(bias),
        interface_weight=address(interface_weight),
        interface_bias=address(interface_bias),
        features=address(features),
        cell=address(cell),
        last_cell=address(last_cell),
        records=address(workspace),
        tape=workspace.data_ptr() + record_size * workspace.element_size(),
    )
    for i, (leaf, last) in enumerate(zip(state, last_state, strict=True)):
        x.state[i], x.last_state[i] = address(leaf), address(last)
    library.call(loaded, accessor, "forward", problem, dtype, x)
    return given, features, workspace, last_cell, last_state


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, accessor: str, problem: Problem, *arguments: Tensor | None) -> tuple[Tensor | None, ...]:
        given, features, workspace, last_cell, last_state = _forward(accessor, problem, *arguments)
        ctx.accessor, ctx.problem = accessor, problem
        ctx.leaf_shapes = [leaf.shape for leaf in last_state]
        ctx.set_materialize_grads(False)
        inputs, weight, _, interface_weight, *_ = given
        ctx.save_for_backward(inputs, weight, interface_weight, features, workspace)
        return (features[1:], last_cell, *last_state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        problem: Problem = ctx.problem
        inputs, weight, interface_weight, features, workspace = ctx.saved_tensors
        d_features, d_last_cell, *d_last_state = (None if d is None else d.contiguous() for d in gradients)
        wanted = ctx.needs_input_grad[2:]
        shapes = [
            *(inputs.shape, weight.shape, weight.shape[:1], interface_weight.shape, interface_weight.shape[:1]),
            features.shape[1:],
            (problem.batch, problem.hidden),
            *ctx.leaf_shapes,
        ]
        made = [inputs.new_empty(shape) if want else None for shape, want in zip(shapes, wanted, strict=True)]
        d_inputs, d_weight, d_bias, d_interface_weight, d_interface_bias, d_first, d_cell, *d_state = made
        record_size, _ = library.sizes(_library(), ctx.accessor, problem, inputs.dtype)
        x = Tensors(
            inputs=address(inputs),
            weight=address(weight),
            interface_weight=address(interface_weight),
            features=address(features),
            records=address(workspace),
            tape=workspace.data_ptr() + record_size * workspace.element_size(),
            d_features=address(d_features),
            d_last_cell=address(d_last_cell),
            d_first=address(d_first),
            d_cell=address(d_cell),
            d_inputs=address(d_inputs),
            d_weight=address(d_weight),
            d_bias=address(d_bias),
            d_interface_weight=address(d_interface_weight),
            d_interface_bias=address(d_interface_bias),
        )
        for i, (last, first) in enumerate(zip(d_last_state, d_state, strict=True)):
            x.d_last_state[i], x.d_state[i] = address(last), address(first)
        library.call(_library(), ctx.accessor, "backward", problem, inputs.dtype, x)
        return (None, None, *made)
