"""Sequences of different lengths in one batch: each row stops at its own end, as in torch.nn.LSTM; some steps alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .state import map_state
from .tokens import signed

Run = Callable[[Tensor, Any], tuple[Any, Any]]
"""Maps inputs ``[T, B, I]`` and a state to tensors ``[T, B, …]`` (one, or several by name) and the last state."""


def check_lengths(lengths: Any, steps: int, batch_size: int) -> Tensor:
    """The lengths of a batch's sequences as whole numbers ``[B]`` on the CPU.

    Raises:
        ValueError: not one whole number from 1 to T for each sequence.
    """
    try:
        found = torch.as_tensor(lengths, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        found = torch.empty(0, device="cpu")
    if isinstance(lengths, (list, tuple)) and any(isinstance(length, bool) for length in lengths):
        found = found.bool()
    found = signed(found)
    right = found.shape == (batch_size,) and not (found.is_floating_point() or found.is_complex())
    if not right or found.dtype == torch.bool or not bool(((found >= 1) & (found <= steps)).all()):
        given = lengths.tolist() if isinstance(lengths, Tensor) else lengths
        raise ValueError(
            f"lengths: got {given}; expected a whole number from 1 to {steps} (the steps of the inputs) for each of "
            f"{batch_size} sequences"
        )
    return found


def without_padding(tokens: Tensor, lengths: Any) -> Tensor:
    """Tokens with 0, which always is one, after each sequence's end: what stands there, often -1, need not be one.

    Args:
        tokens: ``[T, B]``, or of a single sequence ``[T]``; without any, they are given back.
        lengths: as they were given.

    Raises:
        ValueError: as :func:`check_lengths`.
    """
    if not tokens.numel():
        return tokens
    together = signed(tokens).reshape(len(tokens), -1)
    ends = check_lengths(lengths, *together.shape).to(tokens.device)
    steps = torch.arange(len(tokens), device=tokens.device)
    return together.masked_fill(steps.unsqueeze(1) >= ends, 0).reshape(tokens.shape)


def picked(sequences: Tensor, at: Tensor) -> Tensor:
    """Some steps of each sequence: of ``[T, B, …]`` those that ``at`` ``[M, B]`` names, ``[M, B, …]``."""
    index = at.reshape(*at.shape, *[1] * (sequences.dim() - 2))
    return sequences.gather(0, index.expand(*at.shape, *sequences.shape[2:]))


def run_each_to_its_end(run: Run, inputs: Tensor, lengths: Tensor, state: Any) -> tuple[Any, Any]:
    """Run a padded batch, and after each length go on without the rows that end there.

    Args:
        run: runs some steps of some rows.
        inputs: ``[T, B, I]``; what lies after a row's end is not looked at.
        lengths: of the rows, from :func:`check_lengths`.
        state: of all rows before the first step.

    Returns:
        What ``run`` gives, ``[T, B, …]`` with zeros after each row's end, and for each row the state at its own end.
    """
    steps, batch_size = inputs.shape[:2]
    parts, start = [], 0
    for end in map(int, lengths.unique()):  # torch 2.6 knows no tolist within torch.func.grad
        rows = (lengths > start).nonzero().squeeze(1).to(inputs.device)
        if len(rows) == batch_size:
            part, state = run(inputs[start:end], state)
        else:
            here = map_state(lambda leaf: leaf.index_select(0, rows), state)  # noqa: B023 (called at once)
            part, here = run(inputs[start:end].index_select(1, rows), here)
            state = map_state(lambda leaf, new: leaf.index_copy(0, rows, new), state, here)  # noqa: B023
            part = _each(lambda piece: _spread(piece, rows, batch_size), part)  # noqa: B023
        parts.append(part)
        start = end
    if start < steps:
        parts.append(_each(lambda piece: piece.new_zeros(steps - start, *piece.shape[1:]), parts[-1]))
    return (torch.cat(parts), state) if isinstance(parts[0], Tensor) else (_joined(parts), state)


def _spread(part: Tensor, rows: Tensor, batch_size: int) -> Tensor:
    """Some rows ``[t, b, …]`` in their places among all, zeros elsewhere: ``[t, B, …]``."""
    return part.new_zeros(part.shape[0], batch_size, *part.shape[2:]).index_copy(1, rows, part)


def _each(function: Callable[[Tensor], Tensor], part: Any) -> Any:
    return function(part) if isinstance(part, Tensor) else {name: function(piece) for name, piece in part.items()}


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
