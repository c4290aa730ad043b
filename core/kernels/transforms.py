"""What torch may do with operations instead of running them: code that changes memory by itself must stand aside."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.fx.experimental.proxy_tensor import get_proxy_mode

_ONE = torch.ones(())


def transform(tensors: Iterable[Tensor] = ()) -> str | None:
    """Why no operation may go unseen by torch at the moment, or None: it records, or transforms, what it sees.

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
    """Whether torch.func is at work, on whatever tensors: then it takes no autograd function of this form."""
    try:
        _Classic.apply(_ONE)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return True
    return False


def in_memory(tensor: Tensor) -> bool:
    """Whether a tensor has an address: what torch.func hands on, and what only pretends to have values, has none."""
    try:
        return tensor.data_ptr() != 0 or tensor.numel() == 0
    except RuntimeError:
        return False


def _forward_mode() -> bool:
    """Whether some tensor may have a tangent: torch does not say, but makes one only within ``dual_level``."""
    try:
        forward_ad.make_dual(_ONE, _ONE)
    except RuntimeError:
        return False
    return True


def one_call(backend: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a whole sequence gives; to torch.compile it is one call.

    It would make a graph of every step, again for each length, and have no kernels. With the backend ``eager``, and
    for torch.export, it gets what it asks for: every operation.
    """
    if torch.compiler.is_dynamo_compiling() and backend != "eager" and not _exporting():
        from . import opaque

        return opaque.call(function, *arguments)
    return function(*arguments)


def _exporting() -> bool:
    asked = getattr(torch.compiler, "is_exporting", None)  # from torch 2.7 on
    return asked is not None and asked()
