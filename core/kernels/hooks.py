"""Code that users have registered on modules, which a backend that runs no modules would skip."""

from __future__ import annotations

from torch import nn


def hooked(module: nn.Module) -> bool:
    """Whether code was registered that runs before or after a module, forward or backward."""
    return bool(
        module._forward_pre_hooks or module._forward_hooks or module._backward_pre_hooks or module._backward_hooks
    )
