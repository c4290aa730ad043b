"""Pieces that pictures are made of: colours, images of cells, frames and colour bars."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from .episode import Array, Slots

INK = "#222222"
MUTED = "#777777"
WRONG = "#e8112d"
CHOSEN = "#2ec4b6"
LINES = ("#1f6f8b", "#e07a1f", "#6a4c93", "#2a9d5c", "#c0392b", "#8d6e63", "#d16ba5", "#7f8c8d")
"""Colours of lines, in the order in which they are taken."""
BITS: Colormap = colormaps["Greys"]
WEIGHTS: Colormap = colormaps["magma"]
WORDS: Colormap = colormaps["RdBu_r"]
RISING: Colormap = LinearSegmentedColormap.from_list("rising", WORDS(np.linspace(0.5, 1, 128)))
FALLING: Colormap = LinearSegmentedColormap.from_list("falling", WORDS(np.linspace(0, 0.5, 128)))
"""The halves of the colours of words, for those that are all on one side of 0."""

Colours: TypeAlias = Literal["bits", "weights", "words"]
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


class Scale(NamedTuple):
    """How numbers become colours."""

    colours: Colormap
    low: float
    high: float


def colour_limits(image: Array, kind: Colours, largest: float | None = None) -> Scale:
    """Colour map and limits.

    ``weights`` from 0 to their largest, ``bits`` from 0 to 1 or to their largest beyond that; ``words`` symmetric about
    0, or on one side of it if all are, as are bits of which some are negative.
    """
    largest = largest_of(image) if largest is None else largest
    if kind == "weights":
        return Scale(WEIGHTS, 0.0, min(max(largest, 0.05), 1.0))
    if kind == "bits" and not (image < 0).any():
        return Scale(BITS, 0.0, max(largest, 1.0))
    largest = max(largest, 1e-6) if largest else 1.0  # of nothing, any scale is right
    if not (image < 0).any():
        return Scale(RISING, 0.0, largest)
    return Scale(WORDS, -largest, largest) if (image > 0).any() else Scale(FALLING, -largest, 0.0)


def heatmap(axes: Axes, image: Array, scale: Scale, title: str = "") -> AxesImage:
    """Draw ``[rows, columns]`` as cells, the first row on top."""
    colours, low, high = scale
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


def name_axes(axes: Axes, *, across: str = "", down: str = "") -> None:
    """Small grey names beside the ticks."""
    axes.set_xlabel(across, fontsize=6.5, color=MUTED, labelpad=1)
    axes.set_ylabel(down, fontsize=6.5, color=MUTED, labelpad=2)


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
    bar.yaxis.get_offset_text().set(fontsize=5.5, color=MUTED)
    bar.yaxis.set_major_locator(MaxNLocator(3))


def panel_height(rows: int, per_row: float, low: float, high: float) -> float:
    """Inches for so many rows, between a lowest and a highest."""
    return min(max(rows * per_row, low), high)
