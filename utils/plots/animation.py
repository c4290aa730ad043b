"""The memory at work as an animated GIF."""

from __future__ import annotations

import math
import os
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from .episode import Array, Episode, used_slots, wrong_bits
from .panels import BITS, INK, MUTED, WRONG, heatmap, largest_of, number_slots, panel_height

WRITE = "#ff9f1c"
READ = "#2ec4b6"

GIF_FRAMES = 240
"""A longer sequence skips steps."""
FRAME_MILLISECONDS = 130
LAST_FRAME_MILLISECONDS = 2000


class _Film(NamedTuple):
    """An image of the animation and what it shows at each step."""

    image: AxesImage
    values: Array
    """All of it: ``[rows, T]`` or ``[rows, T, 4]`` if revealed from left to right, else one a step, ``[T, …]``."""
    revealed: bool

    def show(self, step: int) -> None:
        if not self.revealed:
            self.image.set_data(self.values[step])
            return
        seen = self.values.copy()
        seen[:, step + 1 :] = np.nan if seen.ndim == 2 else 0
        self.image.set_data(seen)


def _output_colours(episode: Episode) -> Array:
    """Outputs as colours with wrong bits in red and what does not count dimmed, ``[O, T, 4]``."""
    colours = np.asarray(BITS(episode.outputs.T), dtype=np.float32)
    if episode.mask.any():
        colours[:, episode.mask <= 0] = colours[:, episode.mask <= 0] * 0.35 + 0.55
    colours[wrong_bits(episode).T] = to_rgba(WRONG)
    return colours


def _film_figure(episode: Episode) -> tuple[Figure, list[_Film], list[Axes]]:
    """The animation's figure, its moving images, and the panels along which the time cursor runs."""
    slots = used_slots(episode)
    inputs, targets, outputs = episode.titles
    left: list[tuple[str, Array, str, float]] = [
        (inputs, episode.inputs.T, "bits", panel_height(episode.inputs.shape[1], 0.08, 0.25, 0.8)),
        (targets, episode.targets.T, "bits", panel_height(episode.targets.shape[1], 0.08, 0.25, 0.8)),
        (outputs, _output_colours(episode), "colours", panel_height(episode.outputs.shape[1], 0.08, 0.25, 0.8)),
    ]
    heads = (("write weights", episode.write_weights, WRITE), ("read weights", episode.read_weights, READ))
    left += [
        (title, weights.max(axis=1)[:, slots.indices].T, "weights", 1.15)
        for title, weights, _ in heads
        if weights is not None
    ]
    gap, edge, panel_width = 0.24, 0.45, 4.4
    height = sum(panel[3] + gap for panel in left) + 0.5
    words = 0.0 if episode.memory is None else min(max(0.11 * episode.memory.shape[2], 1.2), 2.6)
    width = edge + panel_width + 0.25 + (words + 1.5 if words else 0.0)
    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)

    def place(x: float, y: float, inches: float, high: float) -> Axes:
        return figure.add_axes((x / width, y / height, inches / width, high / height))

    films, timed = [], []
    y = height - 0.08
    for title, values, kind, high in left:
        y -= gap + high
        axes = place(edge, y, panel_width, high)
        if kind == "colours":
            films.append(_Film(heatmap(axes, np.zeros(values.shape[:2], np.float32), "bits", title), values, True))
        else:
            films.append(_Film(heatmap(axes, values, kind, title), values, True))
        films[-1].image.set_extent((-0.5, len(episode.inputs) - 0.5, len(values) - 0.5, -0.5))
        if kind == "weights":
            number_slots(axes, slots)
            axes.set_facecolor("black")
        axes.tick_params(labelbottom=False)
        timed.append(axes)
    timed[-1].tick_params(labelbottom=True)
    timed[-1].set_xlabel("step", fontsize=7, color=MUTED, labelpad=1)
    if episode.memory is None:
        return figure, films, timed

    top, bottom = height - 0.08 - gap, y
    x = edge + panel_width + 0.75
    memory = episode.memory[:, slots.indices]
    axes = place(x, bottom, words, top - bottom)
    films.append(_Film(heatmap(axes, memory[-1], "words", "memory", largest_of(memory)), memory, False))
    axes.tick_params(labelleft=False, left=False)
    for (title, weights, colour), start in zip(heads, (x - 0.24, x + words + 0.06), strict=True):
        if weights is None:
            continue
        side = place(start, bottom, 0.18, top - bottom)
        shown = weights[:, :, slots.indices].transpose(0, 2, 1)
        image = heatmap(side, shown[0], "weights", largest=1)
        image.set_cmap(LinearSegmentedColormap.from_list(title, ["white", colour]))
        side.set_xticks([])
        side.tick_params(labelleft=False, left=False)
        if weights is episode.write_weights:
            number_slots(side, slots)
            side.tick_params(labelleft=True, left=True)
        side.set_xlabel(title.split()[0], fontsize=7, color=colour, weight="bold", labelpad=2)
        films.append(_Film(image, shown, False))
    return figure, films, timed


def memory_gif(path: str | os.PathLike[str], episode: Episode) -> None:
    """Write an animated GIF of the memory at work: one frame a step.

    Left, input, target, output (wrong bits in red) and the strongest write and read weight of each slot, revealed
    step by step. Right, the memory's contents between the slots that the write heads and the read heads are at.

    Args:
        path: file to write.
        episode: needs no trace; without memory there is only the left part.
    """
    figure, films, timed = _film_figure(episode)
    canvas = FigureCanvasAgg(figure)
    cursors = [axes.axvline(0, color=WRONG, linewidth=0.8, alpha=0.8) for axes in timed]
    counter = figure.text(0.995, 0.012, "", ha="right", va="bottom", fontsize=8, color=INK)
    moving = [(film.image.axes, film.image) for film in films]
    for artist in [*(image for _, image in moving), *cursors, counter]:
        artist.set_animated(True)
    canvas.draw()
    background = canvas.copy_from_bbox(figure.bbox)

    def frame(step: int) -> Image.Image:
        canvas.restore_region(background)
        for film, (axes, image) in zip(films, moving, strict=True):
            film.show(step)
            axes.draw_artist(image)
            for spine in axes.spines.values():
                axes.draw_artist(spine)
        for axes, cursor in zip(timed, cursors, strict=True):
            cursor.set_xdata([step, step])
            axes.draw_artist(cursor)
        counter.set_text(f"step {step + 1} of {steps}")
        figure.draw_artist(counter)
        return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")

    steps = len(episode.inputs)
    shown = list(range(0, steps, math.ceil(steps / GIF_FRAMES)))
    if shown[-1] != steps - 1:
        shown.append(steps - 1)
    # One palette for all frames, from the last, which shows every colour: frames differ only where something moves.
    palette = frame(steps - 1).quantize(255, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    colours = np.array(palette.getpalette()).reshape(-1, 3)
    colours[colours.sum(axis=1).argmax()] = 255
    palette.putpalette(colours.flatten().tolist())
    frames = [frame(step).quantize(palette=palette, dither=Image.Dither.NONE) for step in shown]
    durations = [FRAME_MILLISECONDS] * (len(frames) - 1) + [LAST_FRAME_MILLISECONDS]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, format="GIF")
