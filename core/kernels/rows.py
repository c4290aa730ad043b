"""Rows of a large tensor, read and changed without a pass over all of it, with exact gradients.

Where a step touches M of the N slots of a memory, plain operations cost N per step, twice: each change makes a new
memory, and the gradient of each read is a tensor as large as the memory. In place, both cost M, and what is kept for
the backward pass is which rows were touched. One gradient of the size of the memory goes back through all steps.
"""

from __future__ import annotations

import mmap
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..sparse_addressing import BLOCK, first_of_equals, least_recent
from .transforms import differentiable_once

UNTOUCHED_BYTES = 2**22
"""On a CPU, a gradient from this size on takes only as much memory as is written of it."""


class Rows:
    """A tensor ``[B, N, C]`` (or ``[B, N]``) of which rows are taken, replaced and added to, each time anew."""

    def __init__(self, tensor: Tensor) -> None:
        """
        Args:
            tensor: ``[B, N, C]`` or ``[B, N]``; stays as it is.
        """
        self.tensor = tensor

    def _index(self, slots: Tensor) -> Tensor:
        return slots if self.tensor.dim() == 2 else slots.unsqueeze(-1).expand(-1, -1, self.tensor.shape[-1])

    def take(self, slots: Tensor) -> Tensor:
        """Rows ``[B, M, C]`` of slots ``[B, M]``."""
        return self.tensor.gather(1, self._index(slots))

    def put(self, slots: Tensor, rows: Tensor) -> None:
        """Replace the rows of slots ``[B, M]`` by ``[B, M, C]``; a slot named twice must have the same row twice."""
        if rows.is_floating_point():
            # Emptied, then filled once: of two writes of one row, derivatives would count both, or either.
            owner = first_of_equals(slots)
            rows = torch.where(owner if rows.dim() == 2 else owner.unsqueeze(-1), rows, 0)
            self.tensor = self.tensor.scatter(1, self._index(slots), 0).scatter_add(1, self._index(slots), rows)
        else:
            self.tensor = self.tensor.scatter(1, self._index(slots), rows)

    def add(self, slots: Tensor, rows: Tensor) -> None:
        """Add rows ``[B, M, C]`` to those of slots ``[B, M]``; a slot may be named more than once."""
        self.tensor = self.tensor.scatter_add(1, self._index(slots), rows)

    def close(self) -> Tensor:
        """The tensor with all changes."""
        return self.tensor


class InPlaceRows(Rows):
    """The same on a copy that is changed in place; floating-point rows carry exact gradients.

    The copy belongs to this object alone, and so does its gradient on the way back: each version of the tensor is used
    once, by the next operation. That is what allows the gradient to be changed in place, too.
    """

    def __init__(self, tensor: Tensor) -> None:
        """
        Args:
            tensor: ``[B, N, C]`` or ``[B, N]``; stays as it is.
        """
        super().__init__(_Open.apply(tensor) if tensor.is_floating_point() else tensor.clone())  # type: ignore[no-untyped-call]
        self.differentiable = tensor.is_floating_point()

    def take(self, slots: Tensor) -> Tensor:
        """Rows ``[B, M, C]`` of slots ``[B, M]``."""
        if not self.differentiable:
            return super().take(slots)
        taken: Tensor
        self.tensor, taken = _Take.apply(self.tensor, self._index(slots))  # type: ignore[no-untyped-call]
        return taken

    def put(self, slots: Tensor, rows: Tensor) -> None:
        """Replace the rows of slots ``[B, M]`` by ``[B, M, C]``; a slot named twice must have the same row twice."""
        if self.differentiable:
            self.tensor = _Put.apply(self.tensor, slots, self._index(slots), rows)  # type: ignore[no-untyped-call]
        else:
            self.tensor.scatter_(1, self._index(slots), rows)

    def add(self, slots: Tensor, rows: Tensor) -> None:
        """Add rows ``[B, M, C]`` to those of slots ``[B, M]``; a slot may be named more than once."""
        if self.differentiable:
            self.tensor = _Add.apply(self.tensor, self._index(slots), rows)  # type: ignore[no-untyped-call]
        else:
            self.tensor.scatter_add_(1, self._index(slots), rows)

    def close(self) -> Tensor:
        """The tensor with all changes; this object must not be used any more."""
        tensor: Tensor = _Close.apply(self.tensor) if self.differentiable else self.tensor  # type: ignore[no-untyped-call]
        return tensor


class InPlaceTimes(InPlaceRows):
    """Integers ``[B, N]``, changed in place, the smallest of which are found without a pass over all of them.

    The smallest of each block is at hand: a change costs a pass over the blocks that it touches.
    """

    def __init__(self, tensor: Tensor) -> None:
        """
        Args:
            tensor: ``[B, N]``; stays as it is.
        """
        self.size = tensor.shape[1]
        rest = tensor.new_full((len(tensor), -self.size % BLOCK), torch.iinfo(tensor.dtype).max)
        super().__init__(torch.cat([tensor, rest], dim=1))
        self.minima = self._blocks().amin(-1)

    def _blocks(self, blocks: Tensor | None = None) -> Tensor:
        """All blocks, or some ``[B, M]``: ``[B, M, BLOCK]``."""
        whole = self.tensor.unflatten(1, (-1, BLOCK))
        return whole if blocks is None else whole.gather(1, blocks.unsqueeze(-1).expand(-1, -1, BLOCK))

    def put(self, slots: Tensor, rows: Tensor) -> None:
        """Replace the values of slots ``[B, M]`` by ``[B, M]``; a slot named twice must have the same value twice."""
        super().put(slots, rows)
        blocks = slots // BLOCK
        self.minima.scatter_(1, blocks, self._blocks(blocks).amin(-1))

    def least_recent(self, count: int) -> Tensor:
        """What :func:`~papertape.core.sparse_addressing.least_recent` finds, ``[B, count]``."""
        # They lie in the blocks with the smallest minima; in order of index, so that the first still win.
        blocks = least_recent(self.minima, min(count, self.minima.shape[1]))
        chosen = least_recent(self._blocks(blocks).flatten(1), count)
        return blocks.gather(1, chosen // BLOCK) * BLOCK + chosen % BLOCK

    def close(self) -> Tensor:
        """The tensor with all changes; this object must not be used any more."""
        return self.tensor[:, : self.size]


def untouched_zeros(like: Tensor, shape: torch.Size) -> Tensor:
    """Zeros; large ones, on a CPU, of pages that take neither time nor memory until they are written to."""
    size = shape.numel() * like.element_size()
    if like.device.type != "cpu" or size < UNTOUCHED_BYTES:
        return like.new_zeros(shape)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=like.dtype).view(shape)


# These are linear: their gradients depend on the gradients that come in alone, and no ``ctx.origin`` is needed.


class _Open(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        return tensor.clone(memory_format=torch.contiguous_format)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor | None) -> Tensor | None:
        return gradient


class _Close(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(tensor)
        return tensor

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor | None) -> Tensor | None:
        # The incoming gradient belongs to the caller; from here on it is changed in place.
        return None if gradient is None else gradient.clone(memory_format=torch.contiguous_format)


class _Take(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        # Returned as if changed: the next operation may change it only if this one does not count as a view.
        ctx.mark_dirty(tensor)
        ctx.save_for_backward(index)
        ctx.shape = tensor.shape
        return tensor, tensor.gather(1, index)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor | None, taken: Tensor | None) -> tuple[Tensor | None, None]:
        if taken is None:
            return gradient, None
        (index,) = ctx.saved_tensors
        if gradient is None:
            gradient = untouched_zeros(taken, ctx.shape)
        return gradient.scatter_add_(1, index, taken), None


class _Put(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, slots: Tensor, index: Tensor, rows: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(tensor)
        ctx.save_for_backward(slots, index)
        return tensor.scatter_(1, index, rows)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None, None, Tensor | None]:
        if gradient is None:
            return None, None, None, None
        slots, index = ctx.saved_tensors
        rows = None
        if ctx.needs_input_grad[3]:
            owner = first_of_equals(slots)
            rows = gradient.gather(1, index) * (owner if gradient.dim() == 2 else owner.unsqueeze(-1))
        return gradient.scatter_(1, index, 0.0), None, None, rows


class _Add(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, index: Tensor, rows: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(tensor)
        ctx.save_for_backward(index)
        return tensor.scatter_add_(1, index, rows)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None, Tensor | None]:
        if gradient is None:
            return None, None, None
        (index,) = ctx.saved_tensors
        return gradient, None, gradient.gather(1, index) if ctx.needs_input_grad[2] else None
