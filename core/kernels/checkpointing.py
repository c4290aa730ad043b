"""Activation checkpointing over chunks of time: less memory for one more forward pass.

Training keeps what every step computed until the backward pass. Here only the state between chunks is kept, and each
chunk is run again when its gradient is due, so that T steps in chunks of C take the memory of C steps and T / C states.

Unlike ``torch.utils.checkpoint`` the first pass runs without gradients: backends are faster then, and may take another
way than when they run again (a recorded graph, say), as long as the numbers are the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.autograd.function import once_differentiable

from ..circuit import CircuitState, map_state
from . import dispatch

if TYPE_CHECKING:
    from .circuit_view import CircuitView


def run(circuit: CircuitView, inputs: Tensor, state: CircuitState, every: int) -> tuple[Tensor, CircuitState]:
    """What :func:`~tapehead.core.kernels.dispatch.run` gives, and the same gradients (of first order), by any backend.

    Where no gradient can be due nothing is cut: under ``torch.no_grad``, and under ``torch.func`` and
    ``torch.compile``, which decide for themselves what they keep.

    Args:
        circuit: with the backend that runs each chunk.
        inputs: ``[T, B, I]``.
        state: where to start.
        every: C, steps of a chunk; the last may have fewer.

    Returns:
        Features ``[T, B, F]`` and the last state.
    """
    transformed = (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )
    if transformed or not torch.is_grad_enabled() or len(inputs) <= every:
        return dispatch.run(circuit, inputs, state)
    parameters = [*circuit.controller.parameters(), *circuit.accessor.parameters()]
    parts = []
    for chunk in inputs.split(every):
        features, *leaves = _Chunk.apply(  # type: ignore[no-untyped-call]
            circuit, state, chunk, *_leaves(state), *parameters
        )
        state = _rebuild(state, leaves)
        parts.append(features)
    return torch.cat(parts), state


def _leaves(state: CircuitState) -> list[Tensor]:
    found: list[Tensor] = []
    map_state(lambda leaf: found.append(leaf) or leaf, state)  # type: ignore[func-returns-value]
    return found


def _rebuild(structure: CircuitState, leaves: list[Tensor]) -> CircuitState:
    remaining = iter(leaves)
    return map_state(lambda _: next(remaining), structure)


class _Chunk(Function):
    """A few steps; keeps the inputs and the state before them."""

    @staticmethod
    def forward(
        ctx: Any, circuit: CircuitView, structure: CircuitState, inputs: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        count = len(_leaves(structure))
        ctx.set_materialize_grads(False)
        ctx.circuit, ctx.parameters = circuit, tensors[count:]
        # Of the state that was given, the structure alone: its tensors are kept as autograd keeps them.
        ctx.structure = map_state(lambda leaf: leaf.new_empty(0), structure)
        device = inputs.device.type
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
            "cache_enabled": torch.is_autocast_cache_enabled(),
        }
        ctx.save_for_backward(inputs, *tensors[:count])
        features, state = dispatch.run(circuit, inputs, _rebuild(structure, list(tensors[:count])))
        results = [features, *_leaves(state)]
        ctx.mark_non_differentiable(*(result for result in results if not result.is_floating_point()))
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        kept = ctx.saved_tensors
        given = [t.detach().requires_grad_(need) for t, need in zip(kept, needed[: len(kept)], strict=True)]
        with torch.enable_grad(), torch.autocast(**ctx.autocast):
            features, state = dispatch.run(ctx.circuit, given[0], _rebuild(ctx.structure, given[1:]))
        results = zip([features, *_leaves(state)], gradients, strict=True)
        due = [(result, d) for result, d in results if d is not None and result.requires_grad]
        arguments = [*given, *ctx.parameters]
        wanted = [argument for argument, need in zip(arguments, needed, strict=True) if need]
        if not due or not wanted:
            return (None, None, *(None for _ in arguments))
        outputs, upstream = zip(*due, strict=True)
        made = iter(torch.autograd.grad(outputs, wanted, upstream, allow_unused=True))
        return (None, None, *(next(made) if need else None for need in needed))
