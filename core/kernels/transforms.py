"""Whether torch records or transforms operations now; kernels, which write memory unseen by it, must not run then."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.fx.experimental.proxy_tensor import get_proxy_mode

_ONE = torch.ones(())

NO_SECOND = "backend: 'eager' alone has second derivatives, and not of a sparse memory or with recompute_every"


def transform(tensors: Iterable[Tensor] = ()) -> str | None:
    """Why kernels must not run at the moment, or None: torch is recording or transforming operations.

    Args:
        tensors: what an operation takes.
    """
    if torch.compiler.is_compiling():
        return "torch.compile or torch.export is tracing it"
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return "torch.jit.trace is recording it"
    if get_proxy_mode() is not None:
        return "make_fx is recording it"
    if _forward_mode():
        return "it has no rule for forward-mode derivatives"
    for tensor in tensors:
        if not in_memory(tensor):
            return "it has no rule for torch.func transforms"
    return None


class _Classic(Function):
    """Of the form that functions must have to change a tensor in place."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def transforms_functions() -> bool:
    """Whether a torch.func transform is active, on any tensors: then :class:`_Classic` raises an error."""
    try:
        _Classic.apply(_ONE)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return True
    return False


def known_finite(*tensors: Tensor) -> bool:
    """Whether all elements are finite, as far as that can be seen at once: on a CPU, outside of transforms."""
    on_cpu = all(tensor.device.type == "cpu" for tensor in tensors)
    return on_cpu and transform(tensors) is None and all(bool(tensor.isfinite().all()) for tensor in tensors)


def in_memory(tensor: Tensor) -> bool:
    """Whether a tensor has an address: tensors within torch.func's transforms and fake tensors have none."""
    try:
        return tensor.data_ptr() != 0 or tensor.numel() == 0
    except RuntimeError:
        return False


def _forward_mode() -> bool:
    """Whether some tensor may have a tangent: torch makes one only within ``dual_level``."""
    level: int | None = getattr(forward_ad, "_current_level", None)
    if level is not None:
        return level >= 0
    try:  # a torch that does not say
        forward_ad.make_dual(_ONE, _ONE)
    except RuntimeError:
        return False
    return True


def as_now(*tensors: Tensor | None) -> list[Tensor | None]:
    """What a forward pass of kernels saves of tensors: they keep the type, the shape and the values of now.

    Who replaces ``.data`` of a parameter before the backward pass, as ``Module.double()`` does, changes what is saved
    of the parameter itself without autograd's notice, and kernels would read memory that is not there. A change in
    place is noticed as ever.
    """
    return [None if tensor is None else tensor.detach() for tensor in tensors]


def origin(*tensors: Tensor | None) -> Tensor:
    """An empty tensor which is to autograd as if it were computed from these; who asks for its gradient gets an error.

    A forward pass keeps it as ``ctx.origin`` for :func:`differentiable_once`, if its gradient depends on what it took.
    It holds nothing of what it comes from, so that nothing is kept in memory or may not be changed for its sake.
    """
    with torch.enable_grad():
        (made,) = _refusing((torch.empty(0),), tensors)
    assert made is not None
    return made


def _refusing(made: Sequence[Tensor | None], sources: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """What was made, as if computed from the sources; those that autograd does not follow do not count."""
    due = [tensor for tensor in sources if tensor is not None and tensor.requires_grad]
    if not due:
        return tuple(made)
    parts: tuple[Any, ...] = (*made, *due)
    refused: tuple[Any, ...] = torch._C._functions.DelayedError(NO_SECOND.encode(), len(parts))(*parts)
    return refused[: len(made)]


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a backward pass that cannot be differentiated itself: second derivatives raise an error.

    torch's own ``once_differentiable`` leaves the error out of the way from a gradient to what it was computed from. So
    ``torch.autograd.grad``, which goes no other way, never meets it and takes those derivatives for zero.
    """

    @wraps(backward)
    def once(ctx: Any, *gradients: Tensor | None) -> Any:
        with torch.no_grad():
            made = backward(ctx, *gradients)
        if not torch.is_grad_enabled():
            return made
        if not all(gradient is None or in_memory(gradient) for gradient in gradients):
            # What a batch is computed from cannot be told: the results would count as constants.
            raise RuntimeError(f"{NO_SECOND}; create_graph is not allowed for a batch of gradients")
        return _refusing(made if isinstance(made, tuple) else (made,), (getattr(ctx, "origin", None), *gradients))

    return once


def kernel_backward(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates the backward pass of kernels and graphs: differentiable once, one gradient at a time.

    Raises:
        RuntimeError: gradients come in a batch, which have no address.
    """

    @differentiable_once
    @wraps(backward)
    def checked(ctx: Any, *gradients: Tensor | None) -> Any:
        if not all(gradient is None or in_memory(gradient) for gradient in gradients):
            raise RuntimeError(
                "backend: 'triton' and 'graphs' have no batched gradients (is_grads_batched, vectorize); "
                "allowed is 'eager'"
            )
        return backward(ctx, *gradients)

    return checked


def one_call(backend: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of a whole sequence; torch.compile sees it as one call and does not look inside.

    Otherwise it would trace every step, anew for each length, and have no kernels. With the backend ``eager``, and for
    torch.export, every operation is traced.
    """
    if torch.compiler.is_dynamo_compiling() and backend != "eager" and not _exporting():
        from . import opaque

        return opaque.call(function, *arguments)
    return function(*arguments)


def _exporting() -> bool:
    asked = getattr(torch.compiler, "is_exporting", None)  # from torch 2.7 on
    return asked is not None and asked()
