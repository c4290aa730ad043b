"""What torch may do with operations instead of running them: code that changes memory by itself must stand aside."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def transform() -> str | None:
    """Why no operation may go unseen by torch at the moment, or None: it compiles, or transforms, what it sees."""
    if torch.compiler.is_compiling():
        return "torch.compile is tracing it"
    if torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return "it has no rule for torch.func transforms and forward-mode derivatives"
    return None
