"""The picture of an episode: inputs, outputs, and what the heads and the memory did."""

from __future__ import annotations

import textwrap
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from .episode import Episode, wrong_bits
from .fields import Layout, Panel, Still, inches, layout_of
from .panels import INK, MUTED, WRONG, colour_bar, heatmap, largest_of, slot_ticks


class _Inches(NamedTuple):
    """Spaces between the panels of the figure."""

    left: float = 0.45
    top: float = 0.3
    bottom: float = 0.35
    title: float = 0.2
    """Above each panel."""
    block: float = 0.08
    """Below each block of panels."""
    bar: float = 0.5
    """Right of a panel, for its colour bar."""
    letter: float = 0.053
    """Of a label."""
    title_letter: float = 0.058
    still: float = 0.42
    """Left of a still, for what its rows are and their numbers."""
    still_height: float = 1.7
    """Of a still that shares its rows with nothing."""


INCHES = _Inches()
DPI = 130
"""Pixels to an inch; an animation has fewer."""
TALL_BELOW = 0.3
"""Inches below stills that are as high as the whole."""
TALL_WIDTH = 7.0
"""Inches that a line of such stills has, if they can stand in several lines."""
PLACES = {"N": "slot", "W": "element", "R": "read head", "H": "write head"}
"""What is numbered along an axis, by its letter; others are called by that."""


class Drawn(NamedTuple):
    """A figure with the images that show an episode in it."""

    figure: Figure
    panels: list[tuple[Panel, AxesImage]]
    stills: list[tuple[Still, AxesImage]]


def still_width(still: Still, height: float) -> float:
    """Inches for a still, whose cells are about as wide as high, within limits."""
    rows, columns = still.images.shape[1:]
    return min(max(height * columns / rows, 0.9, 0.066 * len(still.name)), 2.0)


def draw(episode: Episode, *, panel_width: float | None = None, margins: tuple[float, float] | None = None) -> Drawn:
    """Draw what :func:`~papertape.utils.plots.fields.layout_of` lays out; all panels share the time axis.

    Args:
        episode: what to draw.
        panel_width: of a column, in inches; None goes by the number of steps.
        margins: None puts a still where its rows are those of a block; inches left free on the left and on the right
            of each have all stand beside the whole, as high as it is.
    """
    layout = layout_of(episode)
    tall = [] if margins is None else layout.all_stills
    if margins is not None:
        layout = Layout([block._replace(stills=()) for block in layout.blocks], [])
    before, after = margins or (0.0, 0.0)
    if panel_width is None:
        panel_width = min(max(0.095 * episode.steps, 3.4), 7.0)
    lefts = [panel for block in layout.blocks for panel in block.left]
    rights = [panel for block in layout.blocks for panel in block.right]

    def labelled(panels: list[Panel]) -> float:
        longest = max((len(label) for panel in panels for label in panel.labels), default=0)
        return max(INCHES.left, 0.1 + INCHES.letter * longest)

    heights = [max(inches(block.left, INCHES.title), inches(block.right, INCHES.title)) for block in layout.blocks]
    columns = [labelled(lefts)]
    width = columns[0] + panel_width + INCHES.bar
    if rights:
        columns.append(width + labelled(rights) - 0.05)
        width = columns[1] + panel_width + INCHES.bar
    beside = width
    for block, height in zip(layout.blocks, heights, strict=True):
        width = max(width, beside + sum(_still_space(still, height) for still in block.stills))
    whole = max(sum(heights) + (len(heights) - 1) * INCHES.block - TALL_BELOW, INCHES.still_height)
    lines = _tall_lines(tall, whole, before + after)
    high = whole / max(len(lines), 1)
    width = max(width, *(beside + _line_width(line, high, before + after) for line in lines), 0.0)
    below = _lines(layout.stills, width)
    width = max(width, *(sum(_still_space(still, INCHES.still_height) for still in line) for line in below), 0.0)
    height = INCHES.top + sum(heights) + len(heights) * INCHES.block + INCHES.bottom
    height = max(height, INCHES.top + whole + TALL_BELOW + INCHES.bottom if tall else 0.0)
    height += len(below) * (INCHES.still_height + INCHES.bottom)
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    drawn = Drawn(figure, [], [])

    def place(left: float, bottom: float, inches_wide: float, high: float) -> Axes:
        return figure.add_axes((left / width, bottom / height, inches_wide / width, high / height))

    def draw_still(still: Still, left: float, top: float, high: float) -> float:
        axes = place(left + INCHES.still + before, top - high, still_width(still, high), high - INCHES.title)
        drawn.stills.append((still, _draw_still(axes, still)))
        if margins is None:
            colour_bar(figure, axes, drawn.stills[-1][1])
        return left + _still_space(still, high) + before + after

    top = height - INCHES.top
    lowest: dict[int, Axes] = {}
    for block, block_height in zip(layout.blocks, heights, strict=True):
        for column, panels in enumerate((block.left, block.right)):
            bottom = top
            # The shorter column is stretched, so that both end on one line.
            stretch = (block_height - len(panels) * INCHES.title) / max(inches(panels, 0), 1e-6)
            for panel in panels:
                bottom -= INCHES.title + panel.height * stretch
                axes = place(columns[column], bottom, panel_width, panel.height * stretch)
                drawn.panels.append((panel, _draw_panel(figure, axes, panel, panel_width)))
                lowest[column] = axes
        left = beside
        for still in block.stills:
            left = draw_still(still, left, top, block_height)
        top -= block_height + INCHES.block
    for axes in lowest.values():
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("step", fontsize=7, color=MUTED, labelpad=1)
    for number, line in enumerate(lines):
        left = beside
        for still in line:
            below_it = TALL_BELOW if number + 1 < len(lines) else 0.0
            left = draw_still(still, left, height - INCHES.top - number * high, high - below_it)
    top -= INCHES.bottom - INCHES.block
    for line in below:
        left = columns[0] - INCHES.still
        for still in line:
            left = draw_still(still, left, top, INCHES.still_height)
        top -= INCHES.still_height + INCHES.bottom
    at = columns[0] / width
    figure.text(at, 1 - 0.08 / height, episode.name, ha="left", va="top", fontsize=11, color=INK, weight="bold")
    return drawn


def _still_space(still: Still, height: float) -> float:
    """Inches that a still takes with the numbers of its slots and its colour bar."""
    return INCHES.still + still_width(still, height) + INCHES.bar


def _line_width(line: list[Still], height: float, margins: float) -> float:
    return sum(_still_space(still, height) + margins for still in line)


def _tall_lines(stills: list[Still], whole: float, margins: float) -> list[list[Still]]:
    """Stills in as few lines, one below the other, as keep them from growing wider than :data:`TALL_WIDTH`."""
    lines = [stills] if stills else []
    for count in range(1, int(whole / INCHES.still_height) + 1):
        size = -(-len(stills) // count)
        lines = [stills[start : start + size] for start in range(0, len(stills), size or 1)]
        if all(_line_width(line, whole / count, margins) <= TALL_WIDTH for line in lines):
            break
    return lines


def _lines(stills: list[Still], width: float) -> list[list[Still]]:
    """Stills one beside the other, as many as fit."""
    lines: list[list[Still]] = []
    used = width
    for still in stills:
        space = _still_space(still, INCHES.still_height)
        if used + space > width:
            lines.append([])
            used = 0.0
        lines[-1].append(still)
        used += space
    return lines


def _draw_panel(figure: Figure, axes: Axes, panel: Panel, width: float) -> AxesImage:
    title = textwrap.shorten(panel.name + panel.note, int(width / INCHES.title_letter), placeholder=" …")
    image = heatmap(axes, panel.image, panel.colours, title, panel.largest)
    ticks = panel.ticks
    if ticks is not None:
        axes.set_yticks(ticks.places, ticks.labels)
    if panel.labels:
        size = len(panel.image) / len(panel.labels)
        axes.tick_params(axis="y", length=0)
        for group in range(1, len(panel.labels)) if size > 1 else ():
            axes.axhline(group * size - 0.5, color=MUTED, linewidth=0.5)
    elif panel.height >= INCHES.letter * len(panel.rows):
        _name_axis(axes, panel.rows)
    axes.tick_params(labelbottom=False)
    if panel.scaled:
        colour_bar(figure, axes, image)
    return image


def _name_axis(axes: Axes, rows: str, columns: str = "") -> None:
    axes.set_ylabel(rows, fontsize=6.5, color=MUTED, labelpad=1)
    axes.set_xlabel(columns, fontsize=6.5, color=MUTED, labelpad=1)


def _draw_still(axes: Axes, still: Still) -> AxesImage:
    image = heatmap(axes, still.images[-1], still.colours, f"{still.name} at the end", largest_of(still.images[-1]))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for axis, count in zip((axes.yaxis, axes.xaxis), still.images.shape[1:], strict=True):
        if count == 1:
            axis.set_ticks([0], ["0"])
    _name_axis(axes, *(PLACES.get(letter, letter) for letter in still.axes))
    rows, columns = still.slots
    if rows is not None:
        axes.set_yticks(*slot_ticks(rows))
    if columns is not None:
        axes.set_xticks(*slot_ticks(columns))
    return image


def mark_wrong(figure: Figure, axes: Axes, episode: Episode) -> None:
    """Dim what does not count and put a red frame or dot on each wrong bit."""
    assert episode.mask is not None
    wrong = wrong_bits(episode)
    steps, channels = wrong.shape
    box = axes.get_window_extent()
    points = 72 / figure.dpi
    cell = min(box.width / steps, box.height / channels) * points
    at, bit = np.nonzero(wrong)
    if cell >= 4:
        size = (0.75 * cell) ** 2
        axes.scatter(at, bit, size, marker="s", facecolors="none", edgecolors=WRONG, linewidths=0.9, zorder=3)
    else:
        axes.scatter(at, bit, max(cell, 1.2) ** 2, WRONG, marker="s", linewidths=0, zorder=3)
    ignored = np.where(episode.mask[None] > 0, np.nan, 0.5)
    axes.imshow(
        np.ma.masked_invalid(ignored),
        cmap="Greys",
        vmin=-1,
        vmax=3,
        alpha=0.55,
        aspect="auto",
        interpolation="nearest",
        extent=(-0.5, steps - 0.5, channels - 0.5, -0.5),
    )


def episode_figure(episode: Episode) -> Figure:
    """The picture known from the NTM paper (Graves 2014, figure 6), with all that the trace shows.

    Left: input, target, output (wrong bits in red, steps that do not count dimmed) and where the heads wrote. Right:
    words and where the heads read. Beside them: the memory after the last step. Below: all else, and matrices after
    the last step. A large memory is cropped to the slots in use.
    """
    drawn = draw(episode)
    for panel, image in drawn.panels:
        if panel.judged:
            mark_wrong(drawn.figure, image.axes, episode)
    return drawn.figure
