"""The picture of an episode: inputs, outputs, and what the heads and the memory did."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from .episode import Episode, wrong_bits
from .fields import Layout, Panel, Still, inches, layout_of, title_of
from .panels import (
    BITS,
    CHOSEN,
    INK,
    MUTED,
    WRONG,
    colour_bar,
    colour_limits,
    heatmap,
    name_axes,
    slot_ticks,
    thin_frame,
)


class _Inches(NamedTuple):
    """Spaces between the panels of the figure."""

    left: float = 0.55
    top: float = 0.3
    bottom: float = 0.35
    title: float = 0.2
    """Above each panel."""
    block: float = 0.08
    """Below each block of panels."""
    under_still: float = 0.3
    """Below a block with stills, for the numbers and names of their columns, where there are more stills below."""
    bar: float = 0.5
    """Right of a panel, for its colour bar."""
    letter: float = 0.053
    """Of a label."""
    title_letter: float = 0.058
    still: float = 0.45
    """Left of a still, for the numbers of its slots."""
    strip: float = 1.15
    """Of pictures of a world, with the numbers of their steps."""
    big_picture: float = 2.0
    """Of the one picture of a world that moves."""
    still_height: float = 1.7
    """Of a still that shares its rows with nothing."""


INCHES = _Inches()
DPI = 130
"""Pixels to an inch; an animation has fewer."""
AT_THE_END = " at the end"
"""What is said after a still's name."""
TALL_BELOW = 0.3
"""Inches below stills that are as high as the whole."""
TALL_WIDTH = 7.0
"""Inches that a line of such stills has, if they can stand in several lines."""


class Drawn(NamedTuple):
    """A figure with the images that show an episode in it."""

    figure: Figure
    panels: list[tuple[Panel, AxesImage]]
    stills: list[tuple[Still, AxesImage]]
    pictures: list[tuple[str, AxesImage]]
    """Those that move, by the names of their fields."""


def still_width(still: Still, height: float) -> float:
    """Inches for a still, whose cells are about as wide as high, within limits."""
    rows, columns = still.images.shape[1:]
    return min(max(height * columns / rows, 0.9, 0.066 * len(still.name + AT_THE_END)), 2.0)


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
        ticks = [panel.ticks for panel in panels]
        longest = max((len(label) for found in ticks if found is not None for label in found.labels), default=0)
        return max(INCHES.left, 0.25 + INCHES.letter * longest)

    heights = [max(inches(block.left, INCHES.title), inches(block.right, INCHES.title)) for block in layout.blocks]
    spaces = [
        INCHES.under_still if block.stills and following and following.stills else INCHES.block
        for block, following in itertools.zip_longest(layout.blocks, layout.blocks[1:])
    ]
    columns = [labelled(lefts)]
    width = columns[0] + panel_width + INCHES.bar
    if rights:
        columns.append(width + labelled(rights) - 0.05)
        width = columns[1] + panel_width + INCHES.bar
    beside = width
    for block, height in zip(layout.blocks, heights, strict=True):
        width = max(width, beside + sum(_still_space(still, height) for still in block.stills))
    whole = max(sum(heights) + sum(spaces[:-1]) - TALL_BELOW, INCHES.still_height)
    lines = _tall_lines(tall, whole, before + after)
    high = whole / max(len(lines), 1)
    width = max(width, *(beside + _line_width(line, high, before + after) for line in lines), 0.0)
    below = _lines(layout.stills, width)
    width = max(width, *(sum(_still_space(still, INCHES.still_height) for still in line) for line in below), 0.0)
    height = INCHES.top + sum(heights) + sum(spaces) + INCHES.bottom
    height = max(height, INCHES.top + whole + TALL_BELOW + INCHES.bottom if tall else 0.0)
    strip = INCHES.strip if margins is None else INCHES.big_picture
    height += len(episode.pictures) * strip
    height += len(below) * (INCHES.still_height + INCHES.bottom)
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    drawn = Drawn(figure, [], [], [])

    def place(left: float, bottom: float, inches_wide: float, high: float) -> Axes:
        return figure.add_axes((left / width, bottom / height, inches_wide / width, high / height))

    def draw_still(still: Still, left: float, top: float, high: float) -> float:
        axes = place(left + INCHES.still + before, top - high, still_width(still, high), high - INCHES.title)
        drawn.stills.append((still, _draw_still(axes, still)))
        if margins is None:
            colour_bar(figure, axes, drawn.stills[-1][1])
        return left + _still_space(still, high) + before + after

    def draw_pictures(name: str, top: float, high: float) -> None:
        """As many of a field's pictures as fit beside each other, or one that moves."""
        steps, pictures = episode.pictures[name]
        rows, wide = pictures.shape[1:3]
        tall_as = high - 2 * INCHES.title
        across = min(tall_as * wide / rows, panel_width)
        fit = max(int((width - columns[0] - 0.1) / (across + 0.1)), 1) if margins is None else 1
        places = np.unique(np.linspace(0, len(pictures) - 1, min(fit, len(pictures))).round().astype(int))
        for number, place_ in enumerate(places.tolist()):
            axes = place(columns[0] + number * (across + 0.1), top - high + INCHES.title, across, tall_as)
            image = axes.imshow(pictures[place_], interpolation="nearest" if rows < 200 else "auto")
            thin_frame(axes)
            axes.set_xticks([])
            axes.set_yticks([])
            if margins is None:
                axes.set_xlabel(f"step {steps[place_]}", fontsize=6.5, color=MUTED, labelpad=1)
            else:
                drawn.pictures.append((name, image))
            if not number:
                axes.set_title(title_of(name), fontsize=8, color=INK, loc="left", pad=3)

    top = height - INCHES.top
    for name in episode.pictures:
        draw_pictures(name, top, strip)
        top -= strip
    under_pictures = top
    lowest: dict[int, Axes] = {}
    for block, block_height, space in zip(layout.blocks, heights, spaces, strict=True):
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
        top -= block_height + space
    for axes in lowest.values():
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("step", fontsize=6.5, color=MUTED, labelpad=1)
    for number, line in enumerate(lines):
        left = beside
        for still in line:
            below_it = TALL_BELOW if number + 1 < len(lines) else 0.0
            left = draw_still(still, left, under_pictures - number * high, high - below_it)
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
    image = heatmap(axes, panel.image, panel.scale, title)
    name_axes(axes, down=panel.rows if panel.height > 0.075 * len(panel.rows) else "")
    ticks = panel.ticks
    if ticks is not None:
        axes.set_yticks(ticks.places, ticks.labels)
    if panel.labels:
        axes.tick_params(axis="y", length=0)
    for line in panel.lines:
        axes.axhline(line, color=MUTED, linewidth=0.5)
    if panel.marked is not None:
        row, step = np.nonzero(panel.marked)
        size = min(72 * panel.height / len(panel.image), 72 * width / panel.image.shape[1])
        axes.scatter(step, row, min(max(0.45 * size, 1.2), 4) ** 2, CHOSEN, linewidths=0, zorder=3)
    axes.tick_params(labelbottom=False)
    if panel.scaled:
        colour_bar(figure, axes, image)
    return image


def _draw_still(axes: Axes, still: Still) -> AxesImage:
    image = heatmap(axes, still.images[-1], colour_limits(still.images[-1], still.colours), still.name + AT_THE_END)
    name_axes(axes, down=still.titles[0], across=still.titles[1])
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for axis, count in zip((axes.yaxis, axes.xaxis), still.images.shape[1:], strict=True):
        if count == 1:
            axis.set_ticks([0], ["0"])
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


EXAMPLES_ACROSS = 8


def examples_figure(episode: Episode) -> Figure:
    """Images with the answers to them, the share of each, and what they truly are where that is something else."""
    assert episode.inputs is not None
    assert episode.image_shape is not None
    names = class_names(episode)
    count = len(episode.inputs)
    across = min(count, EXAMPLES_ACROSS)
    down = -(-count // across)
    cell, high = 1.0, 1.3
    figure = Figure(figsize=(max(across * (cell + 0.1) + 0.2, 3.5), down * high + 0.5), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    width, height = figure.get_size_inches()
    wrong: NDArray[np.bool_] = np.asarray(wrong_bits(episode).any(1))
    verdict = f", {int(wrong.sum())} of {count} wrong" if wrong.any() else ", all right"
    figure.text(0.1 / width, 1 - 0.08 / height, episode.name + verdict, va="top", fontsize=11, color=INK, weight="bold")
    low, top = min(float(episode.inputs.min()), 0.0), max(float(episode.inputs.max()), 1.0)
    for number, pixels in enumerate(episode.inputs):
        row, column = divmod(number, across)
        left, bottom = 0.1 + column * (cell + 0.1), height - 0.35 - row * high - high
        axes = figure.add_axes((left / width, bottom / height, cell / width, cell / height))
        axes.imshow(pixels.reshape(episode.image_shape), cmap=BITS.reversed(), vmin=low, vmax=top)
        axes.set_xticks([])
        axes.set_yticks([])
        thin_frame(axes)
        text, colour = answer_to(episode, number, names)
        axes.set_title(text, fontsize=7, color=colour, loc="left", pad=2)
        for spine in axes.spines.values() if wrong[number] else ():
            spine.set(color=WRONG, linewidth=1.2)
    return figure


def class_names(episode: Episode) -> list[str]:
    """Of each output; numbers where they have none."""
    return [label for group in episode.output_channels for label in group.labels or map(str, range(group.size))]


def answer_to(episode: Episode, number: int, names: Sequence[str]) -> tuple[str, str]:
    """What is said of an example, and in which colour: the answer, its share, and the truth where it is another."""
    if episode.outputs is None:
        return "", INK
    given = int(episode.outputs[number].argmax())
    text = f"{names[given] if names else given}  {100 * float(episode.outputs[number, given]):.0f} %"
    if episode.targets is None:
        return text, INK
    truth = int(episode.targets[number].argmax())
    return (text, INK) if truth == given else (f"{text}, is {names[truth] if names else truth}", WRONG)


def episode_figure(episode: Episode) -> Figure:
    """The picture known from the NTM paper (Graves 2014, figure 6), with all that the trace shows.

    Left: input, target, output (wrong bits in red, steps that do not count dimmed) and where the heads wrote. Right:
    words and where the heads read. Beside them: the memory after the last step. Below: all else, and matrices after
    the last step. A large memory is cropped to the slots in use.
    """
    if episode.examples:
        return examples_figure(episode)
    drawn = draw(episode)
    for panel, image in drawn.panels:
        if panel.judged:
            mark_wrong(drawn.figure, image.axes, episode)
    return drawn.figure
