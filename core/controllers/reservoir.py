"""Reservoir: recurrent connections that are drawn once, or read from a file, and never learned (Jaeger 2001).

"The echo state approach to analysing and training recurrent neural networks"; leaky units and settings as in
Lukoševičius 2012, "A practical guide to applying echo state networks".
"""

from __future__ import annotations

import csv
import math
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ..home import expanded
from ..options import AnySize
from ..registry import register
from ..state import register_state
from ..trace import TraceField
from .base import Controller

UNITS = 100
"""Units where neither an option nor a connectome says how many."""
DENSITY = 0.1
"""Share of all units by which each is fed, where no option says it."""
SMALLEST_RADIUS = 1e-6
"""Largest magnitude of an eigenvalue, in units of the largest weight, that connections of a file may be scaled by."""
SMALLEST_DRAWN_RADIUS = 0.1
"""The same of weights that are drawn, which are drawn again below it: with the default density, those of less than 20
units now and then."""


@register_state
class ReservoirState(NamedTuple):
    """Activity."""

    hidden: Tensor
    """``[B, U]``"""


@register("controller", "reservoir")
class ReservoirController(Controller):
    """Leaky tanh units with fixed random connections, of which others learn to read: ``x += leak (tanh(…) - x)``.

    Each unit is fed by as many others as ``density`` says. All connections are scaled so that the largest magnitude of
    their eigenvalues is ``spectral_radius``; those that would get above ten times as much are drawn again. They are
    buffers: saved with the circuit, neither trained nor evolved.

    A ``connectome`` gives the connections instead: a file with a line for each, its source, its target and, if known,
    its weight, separated by commas, tabs or blanks. Units are in the order in which their names, which may be any,
    first appear. Lines that begin with ``#`` are skipped, and so is a first line whose third column is not a number.
    Without weights, these are drawn; weights of a connection that appears more than once are added up.
    The file is read whenever a circuit is built, from a checkpoint too.
    """

    kept = Controller.kept | {"spectral_radius", "density", "input_scale", "connectome"}

    hidden_size: AnySize = Field(
        default=None, ge=1, description=f"U, units; null: those of the connectome, or {UNITS} without one"
    )
    spectral_radius: float = Field(default=0.9, gt=0, description="largest magnitude of an eigenvalue: how much echoes")
    density: float = Field(default=DENSITY, gt=0, le=1, description="share of all units by which each is fed")
    leak: float = Field(default=1.0, gt=0, le=1, description="share of a unit's activity that each step replaces")
    input_scale: float = Field(default=1.0, gt=0, description="largest weight from an input, and largest bias")
    connectome: str | None = Field(default=None, description="file of connections; null draws them")

    trace_fields = {"hidden": TraceField("U", "words", "activity of the units")}

    @classmethod
    def check_options(cls, options: Any) -> None:
        """See :meth:`Component.check_options`."""
        super().check_options(options)
        if options.connectome is not None and options.density != DENSITY:
            raise ValueError(f"density: got {options.density}; a connectome has its own")

    def setup(self) -> None:
        """Draw or read the connections.

        Raises:
            ValueError: the connectome cannot be read, has another number of units or no cycle, or cycles too weak for
                its connections to be scaled by them.
        """
        edges = None if self.connectome is None else read_connectome(self.connectome)
        found = UNITS if edges is None else edges.shape[0]
        if edges is not None and self.hidden_size not in (None, found):
            raise ValueError(f"hidden_size: got {self.hidden_size}; the connectome has {found} units")
        size = self.hidden_size = self.hidden_size or found
        self.num_layers = 1
        # In units of the largest, whatever those of the file are: a spectral radius is what they are scaled to.
        self._edges = edges if edges is None or edges.isnan().any() else edges / edges.abs().max()
        self.recurrent: Tensor
        self.input: Tensor
        self.bias: Tensor
        self.register_buffer("recurrent", torch.empty(size, size))
        self.register_buffer("input", torch.empty(size, self.input_size))
        self.register_buffer("bias", torch.empty(size))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all weights anew, those of a connectome excepted; the same seed gives the same as at construction."""
        for part in (self.input, self.bias):
            part.uniform_(-self.input_scale, self.input_scale)
        weights = self._drawn()
        if weights.is_meta:
            return  # There are sizes alone.
        radius = _radius(weights)
        if self._edges is None or self._edges.isnan().any():
            # A small reservoir may be one cycle, of which a weak connection would blow up all others.
            while radius <= SMALLEST_DRAWN_RADIUS * weights.abs().max():
                weights = self._drawn()
                radius = _radius(weights)
        elif radius < SMALLEST_RADIUS * weights.abs().max():
            raise ValueError(
                f"connectome: got {self.connectome!r}; no eigenvalue reaches {SMALLEST_RADIUS} of its largest weight, "
                "so that nothing echoes"
            )
        self.recurrent.copy_(weights.double() * (self.spectral_radius / radius))

    def _drawn(self) -> Tensor:
        """Connections before they are scaled; those that a connectome tells are as they are."""
        weights = torch.empty_like(self.recurrent).uniform_(-1, 1)
        if self._edges is None:
            order = torch.rand_like(weights).argsort(1)  # fed by a fixed number each, so that there always is a cycle
            weights[order >= max(1, round(self.density * len(weights)))] = 0
            return weights
        edges = self._edges.to(weights)
        return torch.where(edges.isnan(), weights, edges)

    def initial_state(self, batch_size: int) -> ReservoirState:
        """Zeros."""
        return ReservoirState(self.recurrent.new_zeros(batch_size, len(self.recurrent)))

    def forward(self, x: Tensor, state: ReservoirState) -> tuple[Tensor, ReservoirState]:
        """One step; see :meth:`Controller.forward`."""
        before = state.hidden
        coming = torch.tanh(x @ self.input.T + before @ self.recurrent.T + self.bias).to(before.dtype)
        hidden = self.clipped(torch.lerp(before, coming, self.leak))
        return hidden, ReservoirState(hidden)


def _radius(weights: Tensor) -> Tensor:
    """The largest magnitude of an eigenvalue, ``[]``."""
    return torch.linalg.eigvals(weights.double()).abs().max()


def read_connectome(path: str) -> Tensor:
    """The connections of a file, to each unit (row) from each (column): ``[U, U]``, 0 where there is none.

    Args:
        path: of the file; see :class:`ReservoirController`.

    Returns:
        Weights in float64; those that the file does not tell are NaN.

    Raises:
        ValueError: the file cannot be read; a line has other columns than two or three, or as those before, or a
            weight that is no finite number, nor their sum; there is no cycle, so that nothing would echo.
    """
    try:
        text = expanded(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"connectome: got {path!r}; it cannot be read: {error}") from error
    lines = [
        (number, _columns(line))
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.startswith("#")
    ]
    if lines and len(lines[0][1]) == 3 and _number(lines[0][1][2]) is None:
        del lines[0]
    if not lines:
        raise ValueError(f"connectome: got {path!r}; there is no connection in it")
    columns = len(lines[0][1])
    units: dict[str, int] = {}
    found: dict[tuple[int, int], float] = {}
    for number, parts in lines:
        weight = _number(parts[2]) if len(parts) == 3 else math.nan
        if len(parts) != columns or columns not in (2, 3) or weight is None:
            expected = "source, target and weight" if columns == 3 else "source and target"
            raise ValueError(f"connectome: line {number} of {path!r} is {', '.join(parts)}; expected {expected}")
        source, target = (units.setdefault(name, len(units)) for name in parts[:2])
        total = found[target, source] = found.get((target, source), 0.0) + weight
        if math.isinf(total):
            raise ValueError(
                f"connectome: line {number} of {path!r}: the weights from {parts[0]} to {parts[1]} overflow"
            )
    weights = torch.zeros(len(units), len(units), dtype=torch.float64, device="cpu")
    weights[tuple(torch.tensor(list(found), device="cpu").T)] = torch.tensor(
        list(found.values()), dtype=torch.float64, device="cpu"
    )
    _check_cycle(path, weights != 0)
    return weights


def _columns(line: str) -> list[str]:
    """The columns of a line, without quotation marks."""
    if "," in line or "\t" in line:
        (parts,) = csv.reader([line], delimiter="," if "," in line else "\t", skipinitialspace=True)
        return [part.strip() for part in parts]
    return line.split()


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _check_cycle(path: str, linked: Tensor) -> None:
    """Raise ValueError unless some unit is fed by itself, however indirectly."""
    fed = linked.any(1)
    while True:
        still = (linked & fed).any(1)
        if torch.equal(still, fed):
            break
        fed = still
    if not fed.any():
        raise ValueError(f"connectome: got {path!r}; it has no cycle, without which nothing echoes")
