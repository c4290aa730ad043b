"""Pieces that pictures are made of: colours, images of cells, frames and colour bars."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from .episode import Array, Slots

INK = "#222222"
MUTED = "#777777"
WRONG = "#e8112d"
LINES = ("#1f6f8b", "#e07a1f", "#6a4c93", "#2a9d5c", "#c0392b", "#8d6e63", "#d16ba5", "#7f8c8d")
BITS: Colormap = colormaps["Greys"]
WEIGHTS: Colormap = colormaps["magma"]
WORDS: Colormap = colormaps["RdBu_r"]

Colours: TypeAlias = Literal["bits", "weights", "words", "amounts"]
"""How numbers become colours; see :func:`colour_limits`."""

MAX_CELLS = 800
"""More slots or steps than this share cells, each showing its strongest one."""


def pooled(image: Array, limit: int = MAX_CELLS) -> Array:
    """The image with at most ``limit`` rows and columns; each cell takes the largest magnitude of those it covers."""
    for axis in (0, 1):
        factor = math.ceil(image.shape[axis] / limit)
        if factor > 1:
            image = np.moveaxis(image, axis, 0)
            padding = -len(image) % factor
            blocks = np.concatenate([image, np.repeat(image[-1:], padding, axis=0)]).reshape(-1, factor, image.shape[1])
            strongest = np.abs(blocks).argmax(axis=1)[:, None]
            image = np.moveaxis(np.take_along_axis(blocks, strongest, axis=1)[:, 0], 0, axis)
    return image


def largest_of(*parts: Array | None) -> float:
    """The largest finite magnitude of all parts."""
    finite = [np.abs(part[np.isfinite(part)]).max(initial=0.0) for part in parts if part is not None]
    return float(max(finite, default=0.0))


def colour_limits(image: Array, kind: Colours, largest: float | None = None) -> tuple[Colormap, float, float]:
    """Colour map and limits.

    ``bits`` from 0 to 1, ``weights`` from 0 to their largest, ``amounts`` as well, beyond 1; ``words`` symmetric about
    0, as are bits and amounts that lie outside their range.
    """
    largest = largest_of(image) if largest is None else largest
    if kind == "weights":
        return WEIGHTS, 0.0, min(max(largest, 0.05), 1.0)
    if kind == "amounts" and not (image < 0).any():
        return BITS, 0.0, max(largest, 1.0)
    if kind == "bits" and (not image.size or (largest <= 1 and not (image < 0).any())):
        return BITS, 0.0, 1.0
    largest = max(largest, 1e-6) if largest else 1.0  # of nothing, any scale is right
    return WORDS, -largest, largest


def heatmap(axes: Axes, image: Array, kind: Colours, title: str = "", largest: float | None = None) -> AxesImage:
    """Draw ``[rows, columns]`` as cells, the first row on top."""
    colours, low, high = colour_limits(image, kind, largest)
    rows, columns = image.shape
    drawn = axes.imshow(
        pooled(image),
        cmap=colours,
        vmin=low,
        vmax=high,
        aspect="auto",
        interpolation="nearest",
        extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
    )
    axes.set_title(title, fontsize=8, color=INK, loc="left", pad=3)
    thin_frame(axes)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
    return drawn


def thin_frame(axes: Axes) -> None:
    """Small grey ticks and a thin frame."""
    axes.tick_params(labelsize=6, colors=MUTED, length=2, width=0.5, pad=1.5)
    for spine in axes.spines.values():
        spine.set_linewidth(0.5)
        spine.set_color(MUTED)


class Ticks(NamedTuple):
    """Labels of some rows or columns."""

    places: list[float]
    labels: list[str]


def slot_ticks(slots: Slots) -> Ticks:
    """The slots that some rows show."""
    wanted = MaxNLocator(5, integer=True, min_n_ticks=1).tick_values(slots.first, slots.last)
    at = [int(slot) for slot in wanted if slots.first <= slot <= slots.last]
    return Ticks([float(slot - slots.first) for slot in at], [str(slot % slots.total) for slot in at])


def colour_bar(figure: Figure, axes: Axes, drawn: AxesImage) -> None:
    """A thin colour bar right of the panel."""
    box = axes.get_position()
    width, height = figure.get_size_inches()
    bar = figure.add_axes((box.x1 + 0.05 / width, box.y0, 0.07 / width, min(box.height, 1.2 / height)))
    figure.colorbar(drawn, cax=bar)
    thin_frame(bar)
    bar.tick_params(labelsize=5.5)
    bar.yaxis.set_major_locator(MaxNLocator(3))


def panel_height(rows: int, per_row: float, low: float, high: float) -> float:
    """Inches for so many rows, between a lowest and a highest."""
    return min(max(rows * per_row, low), high)
