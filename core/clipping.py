"""Outputs that are kept in a range, with a gradient that leads back into it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .kernels.transforms import transform


class _Clipped(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(outputs: Tensor, bound: float) -> Tensor:
        return outputs.clamp(-bound, bound)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        outputs, ctx.bound = inputs
        ctx.save_for_backward(outputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (outputs,) = ctx.saved_tensors
        outwards = torch.where(gradient < 0, outputs > ctx.bound, outputs < -ctx.bound)
        return gradient.masked_fill(outwards, 0), None


class _WithTangents(_Clipped):
    """The same for forward-mode derivatives as well, which torch.compile does not know."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        _Clipped.setup_context(ctx, inputs, output)
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (outputs,) = ctx.saved_tensors
        return tangent.masked_fill(outputs.abs() > ctx.bound, 0)


def clipped(outputs: Tensor, clip: float | None) -> Tensor:
    """Outputs in [-clip, clip], of any shape, as the DNC's published code keeps them; as they are, where it is None.

    Those beyond the range have the gradient of those at its edge where a step against it leads back, and none where it
    would lead on. With none at all, answers whose classes have all left the range would stay what they are for ever.
    """
    if clip is None:
        return outputs
    # Where no gradient is due, as when a circuit acts, and for TorchScript, which cannot save one that is Python.
    if not torch.is_grad_enabled() or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return outputs.clamp(-clip, clip)
    if _within(outputs, clip):
        return outputs
    function = _Clipped if torch.compiler.is_compiling() else _WithTangents
    made: Tensor = function.apply(outputs, clip)  # type: ignore[no-untyped-call]
    return made


def _within(outputs: Tensor, clip: float) -> bool:
    """Whether all are known to be in the range: a look that is cheaper than a function of autograd, on a CPU."""
    if not outputs.is_cpu or not outputs.numel() or transform([outputs]) is not None:
        return False
    lowest, highest = outputs.detach().aminmax()
    return -clip <= lowest.item() and highest.item() <= clip
