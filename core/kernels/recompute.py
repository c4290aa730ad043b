"""Activation checkpointing over chunks of time: less memory for one more forward pass.

Training keeps what every step computed until the backward pass. Here only the state between chunks is kept, and each
chunk is run again when its gradient is due, so that T steps in chunks of C take the memory of C steps and T / C states.

Unlike ``torch.utils.checkpoint`` the first pass runs without gradients: backends are faster then, and may take another
way than when they run again (a recorded graph, say), as long as the numbers are the same. It keeps no nodes of
autograd, which take more memory than the states; it does keep the parameters that ``functional_call`` has put into the
circuit, which are gone from there when the backward pass comes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function

from ..members import Call, call_with
from ..options import check_sizes
from ..placement import random_apart, random_state, set_random_state
from ..state import CircuitState, leaves, map_state, rebuild
from . import dispatch
from .transforms import as_now, differentiable_once, origin, transform

if TYPE_CHECKING:
    from .circuit_view import CircuitView


def run(circuit: CircuitView, inputs: Tensor, state: CircuitState, every: int) -> tuple[Tensor, CircuitState]:
    """What :func:`~papertape.core.kernels.dispatch.run` gives, and the same gradients (of first order), by any backend.

    Where no gradient can be due nothing is cut: under ``torch.no_grad``, on the meta device, and under ``torch.func``
    and ``torch.compile``, which decide for themselves what they keep.

    Threads may share a circuit, but not under autocast or with hooks on its parameters: each then needs a copy.

    Args:
        circuit: with the backend that runs each chunk.
        inputs: ``[T, B, I]``.
        state: where to start.
        every: C, steps of a chunk; the last may have fewer.

    Returns:
        Features ``[T, B, F]`` and the last state.

    Raises:
        ValueError: ``every`` is below 1.
    """
    check_sizes(recompute_every=every)
    named = dict(_module(circuit).named_parameters(remove_duplicate=False))
    seen = transform([inputs, *leaves(state), *named.values()])
    # A replica of DataParallel has weights, but no parameters by which they could be put back in the backward pass.
    if seen is not None or not named or not torch.is_grad_enabled() or len(inputs) <= every:
        return dispatch.run(circuit, inputs, state)
    names, parameters = tuple(named), tuple(named.values())
    parts = []
    for chunk in inputs.split(every):
        features, *last = _Chunk.apply(  # type: ignore[no-untyped-call]
            circuit, state, names, chunk, *leaves(state), *parameters
        )
        state = rebuild(state, last)
        parts.append(features)
    return torch.cat(parts), state


def _module(circuit: CircuitView) -> nn.Module:
    return cast("nn.Module", circuit)


@contextlib.contextmanager
def _drawing_again(device: torch.device, state: Tensor, state_there: Tensor | None) -> Iterator[None]:
    """Within the block, torch's global generators draw again what they drew from these states, as dropout must."""
    with random_apart(device):
        torch.set_rng_state(state)
        set_random_state(device, state_there)
        yield


@contextlib.contextmanager
def _in_modes(modes: list[tuple[nn.Module, bool]]) -> Iterator[None]:
    """Within the block, each part trains or does not, as it did when these were noted."""
    changed = [(part, mode) for part, mode in modes if part.training != mode]
    for part, mode in changed:
        part.training = mode
    try:
        yield
    finally:
        for part, mode in changed:
            part.training = not mode


def _in_place(ctx: Any, then: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The parameters of the circuit, if it still has those of then and may be run as it is, which other threads do not
    notice; else None.

    Not those of a functional_call, which are gone by now; nor with hooks, which autograd calls later as well; nor under
    autocast, which may remember the parameters as the pass without gradients has converted them.
    """
    now: dict[str, Tensor] = dict(_module(ctx.circuit).named_parameters(remove_duplicate=False))
    same = (
        not ctx.autocast["enabled"]
        and now.keys() == then.keys()
        and all(
            _lies_there(now[name], tensor)
            and now[name].requires_grad == need
            and now[name].is_leaf
            and not now[name]._backward_hooks
            for (name, tensor), need in zip(then.items(), ctx.needs_input_grad[-len(then) :], strict=True)
        )
        and all(
            buffer is ctx.buffers.get(name)
            for name, buffer in _module(ctx.circuit).named_buffers(remove_duplicate=False)
        )
    )
    return now if same else None


def _lies_there(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same memory, seen alike."""
    about = ((t.data_ptr(), t.shape, t.stride(), t.dtype, t.device) for t in (tensor, other))
    return next(about) == next(about)


class _Chunk(Function):
    """A few steps; keeps the inputs and the state before them, and the parameters as they were."""

    @staticmethod
    def forward(
        ctx: Any,
        circuit: CircuitView,
        structure: CircuitState,
        names: tuple[str, ...],
        inputs: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.circuit, ctx.names = circuit, names
        ctx.buffers = dict(_module(circuit).named_buffers(remove_duplicate=False))
        ctx.modes = [(part, part.training) for part in _module(circuit).modules()]
        # Of the state that was given, the structure alone: its tensors are kept as autograd keeps them.
        ctx.structure = map_state(lambda leaf: leaf.new_empty(0), structure)
        device = inputs.device.type
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
            "cache_enabled": torch.is_autocast_cache_enabled(),
        }
        ctx.random = torch.get_rng_state(), random_state(inputs.device)
        ctx.save_for_backward(*as_now(inputs, *tensors))
        ctx.origin = origin(inputs, *tensors)
        features, state = dispatch.run(circuit, inputs, rebuild(structure, tensors))
        results = [features, *leaves(state)]
        ctx.mark_non_differentiable(*(result for result in results if not result.is_floating_point()))
        return tuple(results)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[3:]
        saved = ctx.saved_tensors
        own = _in_place(ctx, dict(zip(ctx.names, saved[-len(ctx.names) :], strict=True)))
        # Detached: autograd itself passes the gradients on to what a tensor was computed from, and calls its hooks.
        given = [t.detach().requires_grad_(need) for t, need in zip(saved, needed, strict=True)]
        if own is not None:
            given[-len(ctx.names) :] = own.values()
        inputs, *state = given[: -len(ctx.names)]

        def run(circuit: CircuitView) -> tuple[Tensor, CircuitState]:
            return dispatch.run(circuit, inputs, rebuild(ctx.structure, state))

        with (
            torch.enable_grad(),
            torch.autocast(**ctx.autocast),
            _drawing_again(inputs.device, *ctx.random),
            _in_modes(ctx.modes),
        ):
            if own is not None:
                features, last = run(ctx.circuit)
            else:
                then = {**ctx.buffers, **dict(zip(ctx.names, given[-len(ctx.names) :], strict=True))}
                features, last = call_with(
                    Call(ctx.circuit, run), {f"circuit.{name}": tensor for name, tensor in then.items()}
                )
        results = zip([features, *leaves(last)], gradients, strict=True)
        due = [(result, d) for result, d in results if d is not None and result.requires_grad]
        wanted = [tensor for tensor, need in zip(given, needed, strict=True) if need]
        if not due or not wanted:
            return (None, None, None, *(None for _ in given))
        outputs, upstream = zip(*due, strict=True)
        # Unused: the initial contents of the memory and the output layer, which no chunk sees.
        made = iter(torch.autograd.grad(outputs, wanted, upstream, allow_unused=True))
        return (None, None, None, *(next(made) if need else None for need in needed))
