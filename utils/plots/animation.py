"""The memory at work as an animated GIF."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from PIL import Image

from .episode import Array, Episode, Pixels, Seen, Slots, slot_axes, wrong_bits
from .fields import READ_HEADS, Panel
from .figure import draw
from .panels import CHOSEN, INK, MUTED, WRONG, colour_limits, heatmap, slot_ticks

WRITE = "#ff9f1c"
READ = "#2ec4b6"

GIF_FRAMES = 240
"""A longer sequence skips steps."""
FRAME_MILLISECONDS = 130
LAST_FRAME_MILLISECONDS = 2000
GIF_DPI = 90
PALETTE_FRAMES = 12
"""From so many frames the colours are taken."""
PANEL_WIDTH = 3.6
"""Inches of a column."""
BAR = 0.24
"""Inches of what shows where a head is, beside the memory, with the space to the next."""


class _Film(NamedTuple):
    """An image of the animation and what it shows at each step."""

    image: AxesImage
    values: Array | Pixels
    """All of it: ``[rows, T]`` or ``[rows, T, 4]`` if revealed from left to right, else one a step, ``[T, …]``."""
    revealed: bool

    def show(self, step: int) -> None:
        if not self.revealed:
            self.image.set_data(self.values[step])
            return
        seen = self.values.copy()
        seen[:, step + 1 :] = np.nan if seen.ndim == 2 else 0
        self.image.set_data(seen)


def _output_colours(episode: Episode, panel: Panel) -> Array:
    """Outputs as colours, wrong bits in red, what does not count dimmed, what was chosen marked, ``[O, T, 4]``."""
    assert episode.mask is not None
    colours_of, low, high = panel.scale
    colours = np.asarray(colours_of((panel.image - low) / (high - low)), dtype=np.float32)
    if panel.judged:
        colours[:, episode.mask <= 0] = colours[:, episode.mask <= 0] * 0.35 + 0.55
        colours[wrong_bits(episode).T] = to_rgba(WRONG)
    elif panel.marked is not None:
        colours[panel.marked] = to_rgba(CHOSEN)
    return colours


def _film_figure(episode: Episode) -> tuple[Figure, list[_Film], list[Axes]]:
    """The animation's figure, its moving images, and the panels along which the time cursor runs."""
    slots = slot_axes(episode)
    weightings = [(name, seen) for name, seen in episode.of_kind("weighting").items() if seen.sized_axes[-1] in slots]
    reading = [READ_HEADS in seen.axes for _, seen in weightings]
    margins = (reading.count(False) * BAR, reading.count(True) * BAR)
    drawn = draw(episode, panel_width=PANEL_WIDTH, margins=margins)
    drawn.figure.set_dpi(GIF_DPI)
    films, timed = [], []
    for panel, image in drawn.panels:
        own = panel.judged or panel.marked is not None
        values = _output_colours(episode, panel) if own else panel.image
        films.append(_Film(image, values, True))
        if not panel.judged and panel.marked is not None:
            for dots in list(image.axes.collections):  # the film has them in its colours
                dots.remove()
        if panel.colours == "weights":
            image.axes.set_facecolor("black")
        timed.append(image.axes)
    for still, image in drawn.stills:
        image.set_cmap(still.scale.colours)
        image.set_clim(*still.scale[1:])
        image.axes.set_title(still.name, fontsize=8, color=INK, loc="left", pad=3)
        films.append(_Film(image, still.images, False))
        axis, used = still.axes[0], still.slots[0]
        if used is not None:
            beside = [(name, seen) for name, seen in weightings if seen.sized_axes[-1] == axis]
            films += _bars(drawn.figure, image.axes, beside, used)
    for name, image in drawn.pictures:
        steps, pictures = episode.pictures[name]
        seen = np.searchsorted(steps, np.arange(episode.steps), side="right") - 1
        films.append(_Film(image, pictures[seen], False))
    return drawn.figure, films, timed


def _bars(figure: Figure, memory: Axes, weightings: Sequence[tuple[str, Seen]], slots: Slots) -> list[_Film]:
    """Where the heads are at each step, on both sides of the memory: those that read on its right."""
    box = memory.get_position()
    width, _ = figure.get_size_inches()
    thin = (BAR - 0.06) / width
    sides: tuple[list[_Film], list[_Film]] = [], []
    for name, seen in weightings:
        side = sides[READ_HEADS in seen.axes]
        colours = (WRITE, READ)[READ_HEADS in seen.axes]
        step = (len(side) + 1) * BAR / width
        left = box.x1 + step - thin if side is sides[1] else box.x0 - step
        axes = figure.add_axes((left, box.y0, thin, box.height))
        values = seen.values[..., slots.indices].reshape(len(seen.values), -1, len(slots.indices)).transpose(0, 2, 1)
        image = heatmap(axes, values[0], colour_limits(values[0], "weights", largest=1))
        image.set_cmap(LinearSegmentedColormap.from_list(name, ["white", colours]))
        axes.set_xticks([])
        axes.tick_params(labelleft=False, left=False)
        axes.set_xlabel(name.split("_")[0], fontsize=7, color=colours, weight="bold", labelpad=2)
        side.append(_Film(image, values, False))
    for side in sides:
        for film in side if len(side) > 1 else ():
            film.image.axes.xaxis.label.set(rotation=90, va="top")
    outermost = sides[0][-1].image.axes if sides[0] else memory
    memory.tick_params(labelleft=False, left=False)
    outermost.tick_params(labelleft=True, left=True)
    outermost.set_yticks(*slot_ticks(slots))
    memory.set_ylabel("")
    outermost.set_ylabel("slot", fontsize=6.5, color=MUTED, labelpad=1)
    return [*sides[0], *sides[1]]


def _channels(colours: NDArray[np.uint32]) -> NDArray[np.int_]:
    """Red, green and blue of colours that are one number each."""
    return np.stack([colours >> 16, colours >> 8 & 255, colours & 255], -1).astype(int)


def _palette(frames: Sequence[NDArray[np.uint32]]) -> NDArray[np.int_]:
    """One palette for all frames, ``[255, 3]``, which then differ only where something moves.

    A colour counts by the root of how often it is there, or what is rare, such as where a head is, would be lost to the
    white between the panels, and what a memory held earlier to what it holds at the end.
    """
    colours, counts = np.unique(np.stack([frame[::2, ::2] for frame in frames]), return_counts=True)
    weighed = np.repeat(colours, np.sqrt(counts).astype(int))
    strip = Image.fromarray(_channels(weighed).astype(np.uint8)[None])
    quantised = strip.quantize(255, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    palette = np.array(quantised.getpalette()).reshape(-1, 3)
    palette[palette.sum(axis=1).argmax()] = 255
    return palette


class _Quantiser:
    """Puts frames into the nearest colours of a palette; Pillow's own search settles for near ones."""

    def __init__(self, palette: NDArray[np.int_]) -> None:
        self.palette = palette
        self.nearest = np.full(1 << 24, -1, np.int16)
        """Of each colour that was met, the place in the palette."""

    def __call__(self, frame: NDArray[np.uint32]) -> Image.Image:
        new = np.unique(frame[self.nearest[frame] < 0])
        for part in np.array_split(new, len(new) // 1000 + 1):
            self.nearest[part] = ((_channels(part)[:, None] - self.palette) ** 2).sum(-1).argmin(1)
        image = Image.fromarray(self.nearest[frame].astype(np.uint8))
        image.putpalette(self.palette.astype(np.uint8).flatten().tolist())
        return image


def memory_gif(path: str | os.PathLike[str], episode: Episode) -> None:
    """Write an animated GIF of the memory at work: one frame a step.

    Left, the panels of :func:`~papertape.utils.plots.episode_figure`, revealed step by step, wrong bits in red. Right,
    the memory's contents between the slots that the heads write and read, and matrices.

    Args:
        path: file to write.
        episode: without memory there is only the left part.
    """
    figure, films, timed = _film_figure(episode)
    canvas = FigureCanvasAgg(figure)
    lines = {film.image.axes: list(film.image.axes.lines) for film in films}
    cursors = [axes.axvline(0, color=WRONG, linewidth=0.8, alpha=0.8) for axes in timed]
    counter = figure.text(0.995, 0.012, "", ha="right", va="bottom", fontsize=8, color=INK)
    moving = [(film.image.axes, film.image) for film in films]
    for artist in [*(image for _, image in moving), *cursors, counter]:
        artist.set_animated(True)
    canvas.draw()
    background = canvas.copy_from_bbox(figure.bbox)

    def frame(step: int) -> NDArray[np.uint32]:
        canvas.restore_region(background)
        for film, (axes, image) in zip(films, moving, strict=True):
            film.show(step)
            axes.draw_artist(image)
            for above in (*lines[axes], *axes.spines.values()):
                axes.draw_artist(above)
        for axes, cursor in zip(timed, cursors, strict=True):
            cursor.set_xdata([step, step])
            axes.draw_artist(cursor)
        counter.set_text(f"step {step + 1} of {steps}")
        figure.draw_artist(counter)
        rgb = np.asarray(canvas.buffer_rgba())[..., :3].astype(np.uint32)
        packed: NDArray[np.uint32] = (rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]).astype(np.uint32)
        return packed

    steps = episode.steps
    shown = list(range(0, steps, math.ceil(steps / GIF_FRAMES)))
    if shown[-1] != steps - 1:
        shown.append(steps - 1)
    palette = _palette([frame(step) for step in shown[:: math.ceil(len(shown) / PALETTE_FRAMES)]] + [frame(steps - 1)])
    quantised = _Quantiser(palette)
    frames = [quantised(frame(step)) for step in shown]
    durations = [FRAME_MILLISECONDS] * (len(frames) - 1) + [LAST_FRAME_MILLISECONDS]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, format="GIF")
