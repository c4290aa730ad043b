"""A trace as a picture, without an env or an agent."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, SupportsIndex

from .episode import Episode, Seen, one_hot, pictures_of, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from ...core.trace import Trace


def plot_trace(
    trace: Trace,
    path: str | os.PathLike[str] | None = None,
    *,
    inputs: Tensor | None = None,
    outputs: Tensor | None = None,
    targets: Tensor | None = None,
    sequence: int = 0,
    batch_first: bool = False,
    title: str = "",
) -> Figure:
    """Draw what the heads and the memory of a circuit did in one sequence: every field of a trace that there is.

    ``outputs, state, trace = circuit(inputs, trace=True); plot_trace(trace, "trace.png", inputs=inputs)``.

    Args:
        trace: of a batch.
        path: a file to write as well, of any type that matplotlib knows by its ending; None writes none.
        inputs: what the circuit was given, ``[T, B, I]``, or ``[T, I]`` of a single sequence; or tokens, the same
            without I. None leaves them out, as for outputs and targets.
        outputs: what it answered, ``[T, B, O]``, drawn as they are.
        targets: what it should have, ``[T, B, O]``, drawn as they are; or classes, the same without O.
        sequence: which of the batch is drawn.
        batch_first: whether all have the batch first, ``[B, T, …]``, as from a circuit with ``batch_first``.
        title: of the figure.

    Raises:
        ValueError: there is nothing to draw, no such sequence, a part has another length or batch than the trace, or an
            argument is of another type.
    """
    # What loads matplotlib; and torch, without which a process that only draws begins sooner.
    from torch import Tensor

    from ...core.trace import Trace
    from .figure import episode_figure

    if not isinstance(trace, Trace):
        raise ValueError(f"trace: got a {type(trace).__name__}; expected what a circuit gives with trace=True")
    if not isinstance(path, str | os.PathLike | io.IOBase | None):
        raise ValueError(f"path: got {path!r}; allowed is the name of a file, such as 'trace.png', or None")
    if isinstance(sequence, bool) or not isinstance(sequence, SupportsIndex):
        raise ValueError(f"sequence: got {sequence!r}; allowed is a whole number")
    for name, part in {"inputs": inputs, "outputs": outputs, "targets": targets}.items():
        if not (part is None or isinstance(part, Tensor)):
            raise ValueError(f"{name}: got a {type(part).__name__}; expected a tensor, or None")
    parts = {"inputs": inputs, "targets": targets, "outputs": outputs}
    batch_axis = 0 if batch_first else 1
    parts = {
        name: part if part is None or part.is_floating_point() or part.dim() > 2 else one_hot(part, int(part.max()) + 1)
        for name, part in parts.items()
    }
    parts = {
        name: part.unsqueeze(batch_axis) if part is not None and part.dim() == 2 else part
        for name, part in parts.items()
    }
    given = {f"trace.{name}": tensor for name, tensor in trace.items()}
    given |= {name: tensor for name, tensor in parts.items() if tensor is not None}
    if not given:
        raise ValueError("trace: got an empty one, of a circuit without memory; expected inputs or outputs besides")
    first, expected = next((name, tensor.shape[:2]) for name, tensor in given.items())
    for name, tensor in given.items():
        if tensor.dim() < 2 or tensor.shape[:2] != expected or (name in parts and tensor.dim() != 3):
            axes = "[B, T, …]" if batch_first else "[T, B, …]"
            raise ValueError(f"{name}: got shape {list(tensor.shape)}; {first} has {axes} = {list(expected)}")
    batch = expected[batch_axis]
    if not 0 <= sequence < batch:
        raise ValueError(f"sequence: got {sequence}; allowed: 0 to {batch - 1}")

    def chosen(tensor: Tensor) -> Tensor:
        return tensor.transpose(0, 1) if batch_first else tensor

    shown = {name: None if part is None else plain(chosen(part), None, sequence) for name, part in parts.items()}
    pictures = trace.of_kind("picture")
    figure = episode_figure(
        Episode(
            title,
            shown["inputs"],
            shown["targets"],
            shown["outputs"],
            seen={
                name: Seen(plain(chosen(tensor), None, sequence), trace.fields[name])
                for name, tensor in trace.items()
                if name not in pictures
            },
            pictures={name: pictures_of(chosen(tensor), None, sequence) for name, tensor in pictures.items()},
        )
    )
    if path is not None:
        figure.savefig(path)
    return figure
