"""The picture of an episode: inputs, outputs, and where the heads wrote and read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .episode import Array, Episode, Slots, used_slots, wrong_bits
from .panels import INK, MUTED, WRONG, colour_bar, heatmap, largest_of, number_slots, panel_height

MAX_HEADS = 4
"""Heads that get a panel of their own; a title says how many there are."""


def _mark_wrong(figure: Figure, axes: Axes, episode: Episode) -> None:
    """Dim what does not count and put a red frame or dot on each wrong bit."""
    steps, channels = episode.outputs.shape
    box = axes.get_window_extent()
    points = 72 / figure.dpi
    cell = min(box.width / steps, box.height / channels) * points
    at, bit = np.nonzero(wrong_bits(episode))
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


class _Panel(NamedTuple):
    """What one panel of the episode figure shows."""

    title: str
    image: Array
    """``[rows, T]``"""
    kind: str
    height: float
    """Inches wanted."""
    labels: Sequence[str] = ()
    """One for each group of rows; empty numbers the rows."""
    slots: Slots | None = None
    """The slots that the rows are, if they are slots."""
    largest: float | None = None
    """End of the colour scale; None takes the largest value."""
    scaled: bool = False
    """Whether a colour bar stands beside it."""

    def draw(self, figure: Figure, axes: Axes) -> None:
        drawn = heatmap(axes, self.image, self.kind, self.title, self.largest)
        if self.slots is not None:
            number_slots(axes, self.slots)
        if self.labels:
            size = len(self.image) / len(self.labels)
            axes.set_yticks([(group + 0.5) * size - 0.5 for group in range(len(self.labels))], self.labels)
            axes.tick_params(axis="y", length=0)
            for group in range(1, len(self.labels)):
                axes.axhline(group * size - 0.5, color=MUTED, linewidth=0.5)
        if self.scaled:
            colour_bar(figure, axes, drawn)


def _bits(title: str, bits: Array) -> _Panel:
    """``[T, channels]`` as a panel."""
    return _Panel(title, bits.T, "bits", panel_height(bits.shape[1], 0.1, 0.3, 1.4))


def _words(title: str, words: Array | None) -> list[_Panel]:
    """``[T, heads, W]`` as one panel, heads one below the other."""
    if words is None:
        return []
    steps, heads, size = words.shape
    labels = [f"head {head + 1}" for head in range(heads)] if heads > 1 else ()
    image = words.reshape(steps, heads * size).T
    return [_Panel(title, image, "words", panel_height(heads * size, 0.05, 0.7, 2.0), labels, scaled=True)]


def _weights(title: str, weights: Array | None, slots: Slots) -> list[_Panel]:
    """``[T, heads, N]`` as a panel for each head, all with the same scale."""
    if weights is None:
        return []
    heads = weights.shape[1]
    shown = min(heads, MAX_HEADS)
    height = panel_height(len(slots.indices), 0.07, 0.9, 2.6 if shown == 1 else 1.4)
    return [
        _Panel(
            f"{title}{f', head {head + 1} of {heads}' if heads > 1 else ''}{slots.label}",
            weights[:, head, slots.indices].T,
            "weights",
            height,
            slots=slots,
            largest=largest_of(weights),
            scaled=head == 0,
        )
        for head in range(shown)
    ]


def _usage(usage: Array | None, slots: Slots) -> list[_Panel]:
    if usage is None:
        return []
    height = panel_height(len(slots.indices), 0.07, 0.7, 1.4)
    return [
        _Panel(f"usage{slots.label}", usage[:, slots.indices].T, "weights", height, slots=slots, largest=1, scaled=True)
    ]


def _gates(**gates: Array | None) -> list[_Panel]:
    """Gates ``[T, heads]`` by name as one panel, one row for each head."""
    rows = [
        (f"{name} {head + 1}" if gate.shape[1] > 1 else name, gate[:, head])
        for name, gate in gates.items()
        if gate is not None
        for head in range(gate.shape[1])
    ]
    if not rows:
        return []
    labels, values = zip(*rows, strict=True)
    return [_Panel("gates", np.stack(values), "bits", panel_height(len(rows), 0.13, 0.3, 1.3), labels)]


def _read_modes(modes: Array | None) -> list[_Panel]:
    """``[T, R, 1 + 2H]`` as one panel, heads one below the other."""
    if modes is None:
        return []
    steps, heads, ways = modes.shape
    writes = (ways - 1) // 2
    image = modes.reshape(steps, heads * ways).T
    height = panel_height(heads * ways, 0.1, 0.45, 1.3)
    if heads == writes == 1:
        return [_Panel("read mode", image, "bits", height, ("backward", "content", "forward"))]
    each = f" ({writes})" if writes > 1 else ""
    title = f"read modes: backward{each}, content, forward{each}"
    return [_Panel(title, image, "bits", height, [f"head {head + 1}" for head in range(heads)])]


class _Inches(NamedTuple):
    """Spaces between the panels of the episode figure."""

    left: float = 0.6
    top: float = 0.3
    bottom: float = 0.35
    title: float = 0.2
    """Above each panel."""
    block: float = 0.08
    """Below each block of panels."""
    columns: float = 0.75
    memory: float = 0.7


INCHES = _Inches()


def episode_figure(episode: Episode) -> Figure:
    """The picture known from the NTM paper (Graves 2014, figure 6); all panels share the time axis, left to right.

    Left: input, target, output (wrong bits in red, steps that do not count dimmed) and write weights. Right: words
    written, words read and read weights. Beside them: the memory after the last step. For the DNC also usage, gates and
    read modes. Parts that the episode lacks are left out; a large memory is cropped to the slots in use.
    """
    slots = used_slots(episode)
    wrong = int(wrong_bits(episode).sum())
    verdict = f", {wrong} {'bit' if wrong == 1 else 'bits'} wrong" if wrong else ", all bits right"
    inputs, targets, outputs = episode.titles
    output = _bits(outputs + (verdict if episode.mask.any() else ""), episode.outputs)
    addressing = (
        [
            *_weights("write weights", episode.write_weights, slots),
            *_weights("allocation", episode.allocation_weights, slots),
            *_usage(episode.usage, slots),
        ],
        _weights("read weights", episode.read_weights, slots),
    )
    blocks = [
        (
            [_bits(inputs, episode.inputs), _bits(targets, episode.targets), output],
            [*_words("words written", episode.add), *_words("words read", episode.reads)],
        ),
        addressing,
        (
            _gates(write=episode.write_gates, allocation=episode.allocation_gates, free=episode.free_gates),
            _read_modes(episode.read_modes),
        ),
    ]
    blocks = [block for block in blocks if any(block)]

    def needed(panels: list[_Panel]) -> float:
        return sum(panel.height + INCHES.title for panel in panels)

    steps = len(episode.inputs)
    panel_width = min(max(0.095 * steps, 3.4), 7.0)
    columns = 2 if any(right for _, right in blocks) else 1
    memory = None if episode.memory is None or addressing not in blocks else episode.memory[-1][slots.indices]
    memory_width = 0.0 if memory is None else min(max(0.05 * memory.shape[1], 0.9), 2.0)
    heights = [max(needed(left), needed(right)) for left, right in blocks]
    width = INCHES.left + columns * panel_width + (columns - 1) * INCHES.columns
    memory_left = width + INCHES.memory
    width = memory_left + memory_width + 0.5 if memory_width else width + 0.5
    height = INCHES.top + sum(heights) + len(blocks) * INCHES.block + INCHES.bottom
    figure = Figure(figsize=(width, height), dpi=130)
    FigureCanvasAgg(figure)

    def place(left: float, bottom: float, inches: float, high: float) -> Axes:
        return figure.add_axes((left / width, bottom / height, inches / width, high / height))

    top = height - INCHES.top
    lowest: dict[int, Axes] = {}
    for block, block_height in zip(blocks, heights, strict=True):
        for column, panels in enumerate(block):
            left = INCHES.left + column * (panel_width + INCHES.columns)
            bottom = top
            # The shorter column is stretched, so that both end on one line.
            stretch = (block_height - len(panels) * INCHES.title) / max(sum(panel.height for panel in panels), 1e-6)
            for panel in panels:
                bottom -= INCHES.title + panel.height * stretch
                axes = place(left, bottom, panel_width, panel.height * stretch)
                panel.draw(figure, axes)
                axes.tick_params(labelbottom=False)
                lowest[column] = axes
                if panel is output and episode.mask.any():
                    _mark_wrong(figure, axes, episode)
        if block is addressing and memory is not None:
            axes = place(memory_left, top - block_height, memory_width, block_height - INCHES.title)
            drawn = heatmap(axes, memory, "words", "memory at the end")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            number_slots(axes, slots)
            colour_bar(figure, axes, drawn)
        top -= block_height + INCHES.block
    for axes in lowest.values():
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("step", fontsize=7, color=MUTED, labelpad=1)
    figure.text(
        INCHES.left / width, 1 - 0.08 / height, episode.name, ha="left", va="top", fontsize=11, color=INK, weight="bold"
    )
    return figure
