"""The operators of this package: what torch sees of a kernel, so that it can record, batch and differentiate it.

Kernels read and write memory behind torch's back. As operators they are seen as one operation each: a mode, a batching
rule or a fake tensor gets it whole, and never runs what is inside by mistake.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import Library, register_fake, register_vmap

_LIBRARY = Library("papertape", "FRAGMENT")


def operator(
    schema: str,
    device: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    autograd: Any = None,
    *,
    on_memory: bool = False,
) -> Callable[..., Any]:
    """Register an operator ``papertape::name``; under ``torch.func.vmap`` it runs for one member after another.

    Args:
        schema: its name, arguments and results.
        device: dispatch key of the kernel, such as ``CPU``.
        kernel: what it does; must not return what it was given, nor views of one tensor twice.
        fake: results of the same shapes, without values, for tensors without values.
        autograd: the same as the kernel, differentiable; None where it has no gradient.
        on_memory: whether callers give it tensors in memory alone, and want no gradient. Then the kernel is called as
            it is while torch does not watch, which saves the way through its dispatcher.

    Returns:
        What calls it.
    """
    name = schema[: schema.index("(")]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, kernel, device)
    if autograd is not None:
        _LIBRARY.impl(name, autograd, "Autograd")
    register_fake(f"papertape::{name}", fake, lib=_LIBRARY)
    registered: Callable[..., Any] = getattr(torch.ops.papertape, name).default

    def each_member(info: Any, dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        made = [registered(*_member(list(arguments), list(dims), index)) for index in range(info.batch_size)]
        if isinstance(made[0], Tensor):
            return torch.stack(made), 0
        return [torch.stack(parts) for parts in zip(*made, strict=True)], [0 for _ in made[0]]

    register_vmap(f"papertape::{name}", each_member, lib=_LIBRARY)
    if not on_memory:
        return registered

    def call(*arguments: Any) -> Any:
        return registered(*arguments) if _watched() else kernel(*arguments)

    return call


def _watched() -> bool:
    """Whether operations are seen one by one: by a mode, a transform of torch.func or a profiler."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None  # type: ignore[attr-defined,unused-ignore]
        or torch.autograd._profiler_enabled()  # type: ignore[attr-defined,unused-ignore]
    )


def _member(argument: Any, dim: Any, index: int) -> Any:
    """What one member of a batch gets of an argument, which has its batch in that dimension, or none."""
    if isinstance(argument, list):
        dims = dim if isinstance(dim, (list, tuple)) else [dim] * len(argument)
        return [_member(part, at, index) for part, at in zip(argument, dims, strict=True)]
    return argument if dim is None else argument.select(dim, index)


def flattened(parts: Iterable[Tensor]) -> Tensor:
    """Tensors of any shapes as one: for gradients that come in batches, torch repeats what gives a single tensor."""
    return torch.cat([part.flatten() for part in parts])


def unflattened(flat: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The tensors of these shapes of which :func:`flattened` made one."""
    parts = flat.split([math.prod(shape) for shape in shapes])
    return [part.view(tuple(shape)) for part, shape in zip(parts, shapes, strict=True)]
