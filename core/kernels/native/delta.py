"""The delta rule in C++: a whole sequence, forward and backward, each head's memory in cache for all steps."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from ...accessors.delta import SHORTEST, DeltaAccessor
from ..operators import flattened, operator, unflattened
from ..transforms import differentiable_once, in_memory, origin
from . import library

KEPT_EVERY = 16
"""Steps between two memories that are stored for the way back."""


class Delta(ctypes.Structure):
    """Sizes of a sequence, and where parts of the interface vector begin; mirrors ``Delta`` in source/delta.h."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in (
                *("steps", "batch", "heads", "rules", "key", "value", "interface"),
                *("keys", "values", "gates", "queries", "threads", "every"),
            )
        ),
        *((name, ctypes.c_double) for name in ("largest_gate", "shortest")),
    ]


def delta_rule(
    accessor: DeltaAccessor, vectors: Tensor, log_decay: Tensor | None, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """What :meth:`DeltaAccessor.run` computes from interface vectors; see :data:`~papertape.core.accessors.delta.Rule`.

    Raises:
        MemoryError: no room for the scratch memory.
    """
    problem = Delta(
        *vectors.shape[:2],
        *(accessor.num_heads, accessor.num_rules, accessor.key_size, accessor.value_size, vectors.shape[2]),
        threads=torch.get_num_threads(),
        every=KEPT_EVERY,
        largest_gate=accessor.largest_gate,
        shortest=SHORTEST,
        **_begins(accessor),
    )
    vectors, memory = vectors.contiguous(), memory.contiguous()
    log_decay = None if log_decay is None else log_decay.contiguous()
    reads, last = _DeltaRule.apply(bytes(problem).hex(), vectors, log_decay, memory)  # type: ignore[no-untyped-call]
    return reads, last


def _begins(accessor: DeltaAccessor) -> dict[str, int]:
    """Where the parts of the interface vector begin."""
    places = {}
    begin = 0
    for name, size in accessor.interface.sizes.items():
        places[{"write_gates": "gates"}.get(name, name)] = begin
        begin += size
    places.pop("decay", None)
    return places


def _read(text: str) -> Delta:
    return Delta.from_buffer_copy(bytes.fromhex(text))


def _call(direction: str, problem: Delta, *tensors: Tensor | None) -> None:
    loaded = library.load()
    assert not isinstance(loaded, str), loaded
    dtype = next(tensor.dtype for tensor in tensors if tensor is not None)
    function = getattr(loaded, f"delta_{library.type_name(dtype)}_{direction}")
    if function(ctypes.byref(problem), *(ctypes.c_void_p(library.address(tensor)) for tensor in tensors)):
        raise MemoryError(f"native backend: no memory for the scratch space of the {direction} pass")


def _room(text: str, vectors: Tensor, log_decay: Tensor | None, memory: Tensor, training: bool) -> list[Tensor]:
    """Room for words read ``[T, B, H, V]``, the last memory, and for the way back memories and what rules changed."""
    problem = _read(text)
    each = (problem.steps, problem.batch, problem.heads)
    count = -(-problem.steps // problem.every) if training else 0
    kept = memory.new_empty(count, *memory.shape), memory.new_empty(*each, problem.rules * training, problem.value)
    return [vectors.new_empty(*each, problem.value), torch.empty_like(memory), *kept]


def _run_forward(text: str, vectors: Tensor, log_decay: Tensor | None, memory: Tensor, training: bool) -> list[Tensor]:
    vectors, memory = vectors.contiguous(), memory.contiguous()
    log_decay = None if log_decay is None else log_decay.contiguous()
    reads, last, *kept = made = _room(text, vectors, log_decay, memory, training)
    _call("forward", _read(text), vectors, log_decay, memory, reads, *(kept if training else (None, None)), last)
    return made


def _gradients(text: str, vectors: Tensor, log_decay: Tensor | None, *others: Tensor) -> list[Tensor]:
    """Room for the gradients of vectors, decay (empty without) and memory; the last of the others is as large as it."""
    # The part of the decay is not among what the library writes.
    made = torch.empty_like(vectors) if log_decay is None else torch.zeros_like(vectors)
    return [
        made,
        vectors.new_empty(0) if log_decay is None else torch.empty_like(log_decay),
        torch.empty_like(others[-1]),
    ]


def _run_backward(text: str, vectors: Tensor, log_decay: Tensor | None, *others: Tensor) -> list[Tensor]:
    """The others: memories and changes from the way there, and the gradients of words read and of the last memory."""
    vectors, *others = (part.contiguous() for part in (vectors, *others))  # type: ignore[assignment]
    log_decay = None if log_decay is None else log_decay.contiguous()
    made = _gradients(text, vectors, log_decay, *others)
    d_vectors, d_log_decay, d_first = made
    of_decay = None if log_decay is None else d_log_decay
    _call("backward", _read(text), vectors, log_decay, *others, d_vectors, of_decay, d_first)
    return made


def _run_flat_backward(text: str, *tensors: Any) -> Tensor:
    """The same in one tensor, for gradients that come in batches: what ``is_grads_batched`` can repeat by itself."""
    return flattened(_run_backward(text, *tensors))


def _empty_flat(text: str, *tensors: Any) -> Tensor:
    return flattened(_gradients(text, *tensors))


_forward = operator(
    "native_delta_forward(str problem, Tensor vectors, Tensor? log_decay, Tensor memory, bool training) -> Tensor[]",
    "CPU",
    _run_forward,
    _room,
)
_backward = operator(
    "native_delta_backward(str problem, Tensor vectors, Tensor? log_decay, Tensor saved, Tensor changes, "
    "Tensor d_reads, Tensor d_last) -> Tensor[]",
    "CPU",
    _run_backward,
    _gradients,
)
_flat_backward = operator(
    "native_delta_flat_backward(str problem, Tensor vectors, Tensor? log_decay, Tensor saved, Tensor changes, "
    "Tensor d_reads, Tensor d_last) -> Tensor",
    "CPU",
    _run_flat_backward,
    _empty_flat,
)


class _DeltaRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, text: str, vectors: Tensor, log_decay: Tensor | None, memory: Tensor) -> tuple[Tensor, ...]:
        reads, last, *kept = _forward(text, vectors, log_decay, memory, any(ctx.needs_input_grad))
        ctx.text = text
        ctx.save_for_backward(vectors, log_decay, *kept)
        ctx.origin = origin(vectors, log_decay, memory)
        return reads, last

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, d_reads: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        vectors, log_decay, *kept = ctx.saved_tensors
        about = (ctx.text, vectors, log_decay, *kept, d_reads, d_last)
        if in_memory(d_reads) and in_memory(d_last):
            d_vectors, d_log_decay, d_memory = _backward(*about)
        else:
            shapes = [vectors.shape, (0,) if log_decay is None else log_decay.shape, d_last.shape]
            d_vectors, d_log_decay, d_memory = unflattened(_flat_backward(*about), shapes)
        return None, d_vectors, None if log_decay is None else d_log_decay, d_memory
