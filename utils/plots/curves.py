"""Curves of a run: every metric against the training step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from ...core.recorder import ANSWERED
from .panels import INK, LINES, MUTED, thin_frame

CURVE_TITLES = {
    "bits_wrong": "bits wrong per sequence",
    "objective": "objective (what training minimises)",
}
"""Titles of panels whose metric's own name says too little."""
FIRST_PANELS = ("loss", "bits_wrong", "learning_rate", "gradient_norm")
"""Panels that come first, in this order."""
TROUBLES = ("bad_steps",)
"""Panels that are left out as long as there is nothing in them but zeros."""
FAMILIES = ("fitness", "trust")
"""Metrics of training whose names begin so (fitness_best, fitness_median, …) share a panel."""
MAX_STRETCHES = 2048
"""Of a curve. Where there are more points, neighbours are joined: mean, lowest and highest are kept of them."""
COUNTED = ("accuracy", "changes", "layers", "units", "within")
"""Metrics whose names begin so are counts, and shares of what is right, and have a linear axis."""
RAW_POINTS = 64
"""A curve with more points may be drawn faintly, with a smoothed one on top."""
TURNS = 0.25
"""Share of a curve's points at which it turns up or down, above which it is noisy; chance alone turns at two thirds."""
SMOOTHED_POINTS = 150
"""Of a smoothed curve, at most."""
SMOOTHED_OVER = 0.04
"""Share of a curve that each of its points is smoothed over, to both sides."""


class Curve(NamedTuple):
    """One line of a panel, of as many points as there are, in at most :data:`MAX_STRETCHES` stretches."""

    label: str
    first: tuple[float, float]
    """Step and value of the first point; of NaN if there is none."""
    last: tuple[float, float]
    stretches: NDArray[np.float64]
    """``[N, 7]``: how many points a stretch has, the sums of their steps and values, step and value of the lowest and
    of the highest."""

    @property
    def exact(self) -> bool:
        """Whether each point is a stretch of its own."""
        return not len(self.stretches) or bool(self.stretches[:, 0].max() == 1)

    @property
    def steps(self) -> NDArray[np.float64]:
        """The mean step of each stretch, ``[N]``."""
        return self.stretches[:, 1] / self.stretches[:, 0]

    @property
    def values(self) -> NDArray[np.float64]:
        """The mean value of each stretch, ``[N]``."""
        return self.stretches[:, 2] / self.stretches[:, 0]

    @property
    def outline(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Steps and values of the lowest and the highest point of each stretch, in order, and of first and last."""
        if self.exact:
            return self.steps, self.values
        extremes = self.stretches[:, 3:].reshape(-1, 2)
        points = np.concatenate([[self.first], extremes, [self.last]])
        return tuple(points[np.argsort(points[:, 0], kind="stable")].T)


class _Line:
    """Takes the points of a curve one by one, in bounded memory."""

    def __init__(self) -> None:
        self.first = self.last = (math.nan, math.nan)
        self.stretches = np.empty((MAX_STRETCHES, 7))
        self.count = 0
        self.size = 1
        """Points in a stretch."""
        self.open: list[float] = []
        """The stretch that takes the next point; not yet among the others."""

    def add(self, step: float, value: float) -> None:
        self.last = (step, value)
        if not self.open:
            self.first = self.last
        elif self.open[0] < self.size:
            self.open[:3] = self.open[0] + 1, self.open[1] + step, self.open[2] + value
            if value < self.open[4]:
                self.open[3:5] = self.last
            if value > self.open[6]:
                self.open[5:7] = self.last
            return
        else:
            self.stretches[self.count] = self.open
            self.count += 1
            if self.count == MAX_STRETCHES:
                self.count, self.size = self.count // 2, 2 * self.size
                self.stretches[: self.count] = _halved(self.stretches)
        self.open = [1, *self.last, *self.last, *self.last]

    def curve(self, label: str) -> Curve:
        last = np.array(self.open, dtype=np.float64).reshape(-1, 7)
        return Curve(label, self.first, self.last, np.concatenate([self.stretches[: self.count], last]))


def _joined(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Stretches ``[…, 7]`` and those that follow them as one each."""
    joined = left + right
    joined[..., 3:5] = np.where(right[..., 4:5] < left[..., 4:5], right[..., 3:5], left[..., 3:5])
    joined[..., 5:7] = np.where(right[..., 6:7] > left[..., 6:7], right[..., 5:7], left[..., 5:7])
    return joined


def _halved(stretches: NDArray[np.float64]) -> NDArray[np.float64]:
    """Neighbouring stretches joined to half as many; an odd last one stays."""
    even = len(stretches) // 2 * 2
    return np.concatenate([_joined(stretches[:even:2], stretches[1:even:2]), stretches[even:]])


class History:
    """Numbers of the whole run, as curves; memory depends on the number of curves, not on the length of the run.

    Metrics are sorted into panels: one for a metric of training, validation and test, one for others of a prefix.
    """

    def __init__(self) -> None:
        """Empty."""
        self._lines: dict[str, dict[str, _Line]] = {name: {} for name in FIRST_PANELS}
        self._steps: tuple[float, float] | None = None

    @property
    def one_step(self) -> bool:
        """Whether there is no more than one step, of which no curve can be drawn."""
        return self._steps is None or self._steps[0] == self._steps[1]

    def add(self, rows: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Add step and values by name, such as ``train/loss``, ``validation/length 40/loss`` or ``fitness/best``.

        Infinite values and NaN are left out.
        """
        for step, values in rows:
            low, high = self._steps or (step, step)
            self._steps = min(low, step), max(high, step)
            for name, value in values.items():
                if name == ANSWERED:
                    continue
                panel, label = _place(name, values)
                lines = self._lines.setdefault(panel, {})
                if label not in lines:
                    lines[label] = _Line()
                if math.isfinite(value):
                    lines[label].add(step, value)

    def panels(self) -> dict[str, list[Curve]]:
        """The curves of each panel by its name (``loss``, ``bits_wrong``, ``fitness``)."""
        panels = {
            panel: [line.curve(label) for label, line in lines.items()] for panel, lines in self._lines.items() if lines
        }
        return {
            panel: curves
            for panel, curves in panels.items()
            if panel not in TROUBLES or any(curve.outline[1].any() for curve in curves)
        }


def _place(name: str, values: Mapping[str, float]) -> tuple[str, str]:
    """The panel of a metric, and its label there; a part of another of the values, such as the accuracy of one class,
    is in a panel with the other parts.
    """
    first, _, rest = name.partition("/")
    if first in ("train", "validation", "test") and rest:
        whole, _, part = name.rpartition("/")
        if whole in values:
            panel, label = _place(whole, {})
            return f"{panel} of each", f"{label} {part}"
        label, _, panel = rest.rpartition("/")
        family = panel.partition("_")[0]
        if not label and family in FAMILIES:
            panel, label = family, panel.removeprefix(f"{family}_").replace("_", " ")
        return panel, label if first == "train" and label else f"{first} {label}".rstrip()
    panel, _, label = name.rpartition("/")
    return panel or name, label.replace("_", " ")


def curve_title(panel: str) -> str:
    """A panel's name for people."""
    return CURVE_TITLES.get(panel, panel.replace("_", " "))


def thinned(curve: Curve, stretches: int) -> Curve:
    """A curve in at most so many stretches."""
    fewer = curve.stretches
    while len(fewer) > stretches:
        fewer = _halved(fewer)
    return curve._replace(stretches=fewer)


def is_noisy(curve: Curve) -> bool:
    """Whether a curve is drawn faintly, with a smoothed one on top: if it is long and goes up and down by chance.

    What is exact, such as a learning rate or a number of units, turns seldom: smoothed, its steps would become ramps.
    """
    if len(curve.stretches) <= RAW_POINTS:
        return False
    moves = np.diff(curve.values)
    moves = moves[np.abs(moves) > 1e-9 * np.abs(curve.values).max()]  # means of equal values differ by a rounding
    turns = np.count_nonzero(np.diff(np.sign(moves)))
    return bool(turns > TURNS * len(curve.stretches))


def smoothed(curve: Curve) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and values of a curve's weighted mean over its neighbourhood, which is narrower near both ends."""
    curve = thinned(curve, SMOOTHED_POINTS)
    places, counts = np.arange(len(curve.stretches)), curve.stretches[:, 0]
    radius = np.minimum(SMOOTHED_OVER * len(places), np.minimum(places, places[::-1]))
    near = np.maximum(1 - np.abs(places[:, None] - places) / (radius[:, None] + 1), 0) * counts
    return curve.steps, near @ curve.values / near.sum(1)


def _last(values: NDArray[np.float64]) -> str:
    """The last value, in three digits."""
    if not len(values):
        return ""
    value = values[-1]
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def is_logarithmic(panel: str, values: NDArray[np.float64]) -> bool:
    """Whether a panel's axis of values ``[N]`` is logarithmic: they span more than a decade and are not counted."""
    positive = values[values > 0]
    if not len(positive) or values.min() < 0 or panel.startswith(COUNTED):
        return False
    return bool(positive.max() > 10 * positive.min())


def scale_values(axes: Axes, panel: str, values: NDArray[np.float64]) -> None:
    """A logarithmic axis where values ``[N]`` ask for one, linear near zero if some are zero."""
    if not is_logarithmic(panel, values):
        if len(values) and values.min() >= 0:
            axes.set_ylim(0, 1.08 * values.max() or 1)
        return
    if values.min() > 0:
        axes.set_yscale("log")
        return
    floor = 10.0 ** math.floor(math.log10(values[values > 0].min()))
    axes.set_yscale("symlog", linthresh=floor, linscale=0.4)
    axes.set_ylim(bottom=-0.1 * floor)


def curves_figure(panels: Mapping[str, Sequence[Curve]]) -> Figure:
    """Loss, error, learning rate, gradient norm and every other metric against the training step.

    Args:
        panels: from a :class:`History`.
    """
    columns = next(columns for columns, most in ((1, 1), (2, 6), (3, 12), (4, math.inf)) if len(panels) <= most)
    lines = math.ceil(len(panels) / columns) or 1
    figure = Figure(figsize=(5.8 * columns, 2.7 * lines), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for place, (panel, curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(lines, columns, place)
        for index, curve in enumerate(curves):
            colour = LINES[index % len(LINES)]
            line = (curve.steps, curve.values)
            if is_noisy(curve):
                line = smoothed(curve)
                axes.plot(*curve.outline, color=colour, alpha=0.2, linewidth=0.6)
            marker = "o" if len(curve.steps) < 12 else None
            axes.plot(
                *line,
                color=colour,
                linewidth=1.4,
                marker=marker,
                markersize=3,
                label=f"{curve.label}  {_last(line[1])}",
            )
        scale_values(axes, panel, np.concatenate([curve.outline[1] for curve in curves]))
        alone = len(curves) == 1
        axes.set_title(
            f"{curve_title(panel)}  {_last(curves[0].values)}" if alone else curve_title(panel),
            fontsize=9,
            color=INK,
            loc="left",
        )
        axes.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if axes.get_yscale() == "linear":
            axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        thin_frame(axes)
        axes.tick_params(which="both", labelsize=7, colors=MUTED)
        axes.yaxis.get_offset_text().set(fontsize=7, color=MUTED)
        axes.spines[["top", "right"]].set_visible(False)
        if not alone:
            axes.legend(
                fontsize=7,
                frameon=False,
                labelcolor=INK,
                handlelength=1.2,
                loc="upper left",
                bbox_to_anchor=(1, 1),
                borderaxespad=0,
                ncols=-(-len(curves) // 14),
            )
        if place > len(panels) - columns:
            axes.set_xlabel("training step", fontsize=7, color=MUTED)
    return figure
