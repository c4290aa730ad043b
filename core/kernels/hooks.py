"""Code that users have put around or in place of a module's own, which a backend that runs no modules would skip."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as of_all_modules


def hooked(module: nn.Module) -> bool:
    """Whether code was registered before or after this module or every module, or its ``forward`` was replaced."""
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        or of_all_modules._global_forward_pre_hooks
        or of_all_modules._global_forward_hooks
        or of_all_modules._global_backward_pre_hooks
        or of_all_modules._global_backward_hooks
        or "forward" in vars(module)
    )
