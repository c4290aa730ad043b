"""Curves of groups of runs: the median of each as a line, its quartiles as a band."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from .curves import curve_title, scale_values
from .panels import INK, LINES, MUTED, thin_frame

if TYPE_CHECKING:
    from ..comparison import Band


def bands_figure(bands: Sequence[Band], metric: str) -> Figure:
    """The validation error of each group on the training range against the sequences seen.

    Args:
        bands: one for each group.
        metric: what the errors are.
    """
    figure = Figure(figsize=(8, 4.5 + 0.18 * len(bands)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, band in enumerate(bands):
        colour = LINES[index % len(LINES)]
        low, middle, high = band.quartiles
        style = ("-", "--", ":", "-.")[index // len(LINES) % 4]
        axes.fill_between(band.places, low, high, color=colour, alpha=0.18, linewidth=0)
        marker = "o" if len(band.places) < 12 else None
        axes.plot(
            band.places, middle, style, color=colour, linewidth=1.5, marker=marker, markersize=3, label=band.label
        )
    values = np.concatenate([band.quartiles.ravel() for band in bands])
    scale_values(axes, metric, values[np.isfinite(values)])
    axes.set_title(f"validation: {curve_title(metric)}, median and quartiles", fontsize=10, color=INK, loc="left")
    axes.set_xlabel("sequences seen", fontsize=8, color=MUTED)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    thin_frame(axes)
    axes.tick_params(which="both", labelsize=8, colors=MUTED)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower left", fontsize=8, frameon=False, labelcolor=INK)
    return figure
