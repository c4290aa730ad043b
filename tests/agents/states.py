"""States of agents, compared bit for bit."""

from __future__ import annotations

import io
import math
from typing import Any

import torch
from torch import Tensor


def flat(part: Any, path: str = "") -> dict[str, Any]:
    """All that a state holds by its path."""
    if isinstance(part, Tensor):
        return {path: part.tolist()}
    if isinstance(part, dict | list | tuple):
        items = part.items() if isinstance(part, dict) else enumerate(part)
        return {name: leaf for key, inner in items for name, leaf in flat(inner, f"{path}.{key}").items()}
    return {path: part}


def same(left: Any, right: Any) -> bool:
    """Whether two states are equal; what is no number equals what is none."""
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(*pair) for pair in zip(left, right, strict=True))
    return bool(left == right) or (isinstance(left, float) and math.isnan(left) and math.isnan(right))


def saved(agent: Any) -> Any:
    """Its state, once through a file."""
    file = io.BytesIO()
    torch.save(agent.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)
