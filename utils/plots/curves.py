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

from .panels import INK, LINES, MUTED, thin_frame

CURVE_TITLES = {
    "loss": "loss (nats)",
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
RAW_POINTS = 300
"""A curve with more points is drawn faintly, with the means of stretches of it on top."""


class Curve(NamedTuple):
    """One line of a panel."""

    label: str
    steps: NDArray[np.float64]
    values: NDArray[np.float64]


def curve_panels(rows: Iterable[tuple[int, Mapping[str, float]]]) -> dict[str, list[Curve]]:
    """Sort metrics into panels: one for a metric of training, validation and test, one for others of a prefix.

    Args:
        rows: step and values by name, such as ``train/loss``, ``validation/length 40/bits_wrong`` or ``fitness/best``.

    Returns:
        The curves of each panel by its name (``loss``, ``bits_wrong``, ``fitness``), without infinite values and NaN.
    """
    points: dict[str, dict[str, list[tuple[int, float]]]] = {name: {} for name in FIRST_PANELS}
    for step, values in rows:
        for name, value in values.items():
            first, _, rest = name.partition("/")
            if first in ("train", "validation", "test") and rest:
                label, _, panel = rest.rpartition("/")
                family = panel.partition("_")[0]
                if not label and family in FAMILIES:
                    panel, label = family, panel.removeprefix(f"{family}_").replace("_", " ")
                label = label if first == "train" and label else f"{first} {label}".rstrip()
            else:
                panel, _, label = name.rpartition("/")
                panel, label = panel or name, label.replace("_", " ")
            line = points.setdefault(panel, {}).setdefault(label, [])
            if math.isfinite(value):
                line.append((step, value))
    return {
        panel: [Curve(label, *np.array(line, dtype=np.float64).reshape(-1, 2).T) for label, line in lines.items()]
        for panel, lines in points.items()
        if lines and (panel not in TROUBLES or any(value for line in lines.values() for _, value in line))
    }


def curve_title(panel: str) -> str:
    """A panel's name for people."""
    return CURVE_TITLES.get(panel, panel.replace("_", " "))


def thinned(curve: Curve, points: int) -> Curve:
    """The means of at most ``points`` stretches of a curve, or the curve itself if it is that short."""
    count = len(curve.steps)
    if count <= points:
        return curve
    edges = np.linspace(0, count, points + 1).astype(int)[:-1]
    sizes = np.diff(edges, append=count)
    return Curve(curve.label, np.add.reduceat(curve.steps, edges) / sizes, np.add.reduceat(curve.values, edges) / sizes)


def _last(curve: Curve) -> str:
    """The last value, in three digits."""
    if not len(curve.values):
        return ""
    value = curve.values[-1]
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def _scale_values(axes: Axes, curves: Sequence[Curve]) -> None:
    """A logarithmic axis where the values span more than a decade, linear near zero if some are zero."""
    values = np.concatenate([curve.values for curve in curves])
    positive = values[values > 0]
    if not len(positive) or values.min() < 0 or positive.max() < 10 * positive.min():
        if len(values) and values.min() >= 0:
            axes.set_ylim(0, 1.08 * values.max() or 1)
        return
    if values.min() > 0:
        axes.set_yscale("log")
        return
    floor = 10.0 ** math.floor(math.log10(positive.min()))
    axes.set_yscale("symlog", linthresh=floor, linscale=0.4)
    axes.set_ylim(bottom=-0.1 * floor)


def curves_figure(rows: Iterable[tuple[int, Mapping[str, float]]]) -> Figure:
    """Loss, error, learning rate, gradient norm and every other metric against the training step.

    Args:
        rows: step and values by name; see :func:`curve_panels`.
    """
    panels = curve_panels(rows)
    columns = min(len(panels), 2) or 1
    lines = math.ceil(len(panels) / columns) or 1
    figure = Figure(figsize=(5.8 * columns, 2.7 * lines), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for place, (panel, curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(lines, columns, place)
        for index, curve in enumerate(curves):
            colour = LINES[index % len(LINES)]
            smooth = thinned(curve, RAW_POINTS // 2) if len(curve.steps) > RAW_POINTS else curve
            if smooth is not curve:
                raw = thinned(curve, 4000)
                axes.plot(raw.steps, raw.values, color=colour, alpha=0.2, linewidth=0.6)
            marker = "o" if len(curve.steps) < 12 else None
            axes.plot(
                smooth.steps,
                smooth.values,
                color=colour,
                linewidth=1.4,
                marker=marker,
                markersize=3,
                label=f"{curve.label}  {_last(smooth)}",
            )
        _scale_values(axes, curves)
        alone = len(curves) == 1
        axes.set_title(
            f"{curve_title(panel)}  {_last(curves[0])}" if alone else curve_title(panel),
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
            )
        if place > len(panels) - columns:
            axes.set_xlabel("training step", fontsize=7, color=MUTED)
    return figure
