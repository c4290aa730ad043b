"""Pictures of a run: curves, one episode with what the memory did, and the memory at work as an animation.

Only numpy, matplotlib and Pillow are needed to draw, and nothing here touches pyplot's global state, so the figures can
be drawn in any thread or process.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import FancyArrowPatch
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from ..core.pictures import Areas, Histogram, Network, Picture

if TYPE_CHECKING:
    from torch import Tensor

    from ..core.circuit import Trace
    from ..core.env import Batch

Array: TypeAlias = NDArray[np.float32]

INK = "#222222"
MUTED = "#777777"
WRONG = "#e8112d"
WRITE = "#ff9f1c"
READ = "#2ec4b6"
LINES = ("#1f6f8b", "#e07a1f", "#6a4c93", "#2a9d5c", "#c0392b", "#8d6e63", "#d16ba5", "#7f8c8d")
BITS: Colormap = colormaps["Greys"]
WEIGHTS: Colormap = colormaps["magma"]
WORDS: Colormap = colormaps["RdBu_r"]
CONNECTIONS: Colormap = LinearSegmentedColormap.from_list(
    "connections", ["#17459b", "#7fa6d6", "#cccccc", "#e79b7a", "#a8132a"]
)
"""Like WORDS, but what is near zero can be seen on white."""

MAX_CELLS = 800
"""More slots or steps than this share cells, each showing its strongest one."""
MAX_HEADS = 4
"""Heads that get a panel of their own; a title says how many there are."""
USED = 0.05
"""A slot counts as used from this weight on; pictures are cropped to used slots."""


class Episode(NamedTuple):
    """One sequence with its answer and what the heads did: float32 numpy arrays, ready to be pickled.

    T steps, I inputs, O outputs, R read heads, H write heads, N slots, W word size; None where a circuit lacks a part.
    """

    name: str
    """What the sequence is, such as ``length 40``."""
    inputs: Array
    """``[T, I]``"""
    targets: Array
    """``[T, O]``"""
    outputs: Array
    """Probabilities, ``[T, O]``"""
    mask: Array
    """``[T]``: 1 where the output counts."""
    read_weights: Array | None = None
    """``[T, R, N]``"""
    write_weights: Array | None = None
    """``[T, H, N]``"""
    memory: Array | None = None
    """Contents after each step, ``[T, N, W]``"""
    reads: Array | None = None
    """``[T, R, W]``"""
    add: Array | None = None
    """``[T, H, W]``"""
    erase: Array | None = None
    """``[T, H, W]``"""
    usage: Array | None = None
    """``[T, N]``"""
    allocation_weights: Array | None = None
    """``[T, H, N]``"""
    free_gates: Array | None = None
    """``[T, R]``"""
    allocation_gates: Array | None = None
    """``[T, H]``"""
    write_gates: Array | None = None
    """``[T, H]``"""
    read_modes: Array | None = None
    """Shares of backward (H), content (1) and forward (H), ``[T, R, 1 + 2H]``"""

    @property
    def titles(self) -> tuple[str, str, str]:
        """Of inputs, targets and outputs; where no step counts it was played in a world, with rewards as targets."""
        return ("input", "target", "output") if self.mask.any() else ("observation", "reward", "output")


def episode_from(name: str, batch: Batch, outputs: Tensor, trace: Trace | None) -> Episode:
    """The first sequence of a batch, cut off after its last counted step, on the CPU.

    Args:
        name: what the sequence is.
        batch: time first, as an env hands it out.
        outputs: logits, ``[T, B, O]``.
        trace: what the heads did, time first; None where there are no heads.
    """

    def first(tensor: Tensor) -> Array:
        array: Array = tensor[:, 0].detach().float().cpu().numpy()
        return array

    mask = first(batch.mask)
    counted = np.flatnonzero(mask)
    steps = int(counted[-1]) + 1 if len(counted) else len(mask)
    parts = {} if trace is None else trace._asdict()
    seen = {
        part: first(value)[:steps] for part, value in parts.items() if value is not None and part in Episode._fields
    }
    return Episode(
        name,
        first(batch.inputs)[:steps],
        first(batch.targets)[:steps],
        first(outputs.sigmoid())[:steps],
        mask[:steps],
        **seen,
    )


def wrong_bits(episode: Episode) -> NDArray[np.bool_]:
    """Which counted outputs fall on the wrong side of one half, ``[T, O]``."""
    wrong: NDArray[np.bool_] = ((episode.outputs > 0.5) != (episode.targets > 0.5)) & (episode.mask[:, None] > 0)
    return wrong


class _Slots(NamedTuple):
    """The slots that a picture shows, counted round the memory's end: -2 is the last but one."""

    first: int
    last: int
    total: int

    @property
    def indices(self) -> NDArray[np.int_]:
        return np.arange(self.first, self.last + 1) % self.total

    @property
    def label(self) -> str:
        if self.last - self.first + 1 == self.total:
            return ""
        return f", slots {self.first % self.total}–{self.last % self.total} of {self.total}"


def _used_slots(episode: Episode) -> _Slots:
    """The shortest stretch of slots (round the memory's end if need be) with all that a head used, or all."""
    weights = [part for part in (episode.write_weights, episode.read_weights) if part is not None]
    total = weights[0].shape[-1] if weights else 0 if episode.memory is None else episode.memory.shape[1]
    everything = _Slots(0, total - 1, total)
    if not weights:
        return everything
    used = np.flatnonzero(np.max([part.max(axis=(0, 1)) for part in weights], axis=0) > USED)
    if total <= 32 or not len(used):
        return everything
    gaps = np.diff(used, append=used[0] + total)
    widest = int(gaps.argmax())
    length = total - int(gaps[widest]) + 1
    if length > 0.6 * total:
        return everything
    last = int(used[widest])
    first = last - length + 1
    if first < 0:
        return _Slots(first - 2, last + 2, total)
    return _Slots(max(first - 2, 0), min(last + 2, total - 1), total)


def _pooled(image: Array, limit: int = MAX_CELLS) -> Array:
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


def _largest(*parts: Array | None) -> float:
    finite = [np.abs(part[np.isfinite(part)]).max(initial=0.0) for part in parts if part is not None]
    return float(max(finite, default=0.0))


def colour_limits(image: Array, kind: str, largest: float | None = None) -> tuple[Colormap, float, float]:
    """Colour map and limits: ``bits`` 0 to 1, ``weights`` 0 to their largest, ``words`` symmetric about 0."""
    largest = _largest(image) if largest is None else largest
    if kind == "weights":
        return WEIGHTS, 0.0, min(max(largest, 0.05), 1.0)
    if kind == "bits" and (not image.size or (largest <= 1 and not (image < 0).any())):
        return BITS, 0.0, 1.0
    return WORDS, -max(largest, 1e-6), max(largest, 1e-6)


def _heatmap(axes: Axes, image: Array, kind: str, title: str = "", largest: float | None = None) -> AxesImage:
    """Draw ``[rows, columns]`` as cells, the first row on top."""
    colours, low, high = colour_limits(image, kind, largest)
    rows, columns = image.shape
    drawn = axes.imshow(
        _pooled(image),
        cmap=colours,
        vmin=low,
        vmax=high,
        aspect="auto",
        interpolation="nearest",
        extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
    )
    axes.set_title(title, fontsize=8, color=INK, loc="left", pad=3)
    _thin(axes)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
    return drawn


def _thin(axes: Axes) -> None:
    """Small grey ticks and a thin frame."""
    axes.tick_params(labelsize=6, colors=MUTED, length=2, width=0.5, pad=1.5)
    for spine in axes.spines.values():
        spine.set_linewidth(0.5)
        spine.set_color(MUTED)


def _number_slots(axes: Axes, slots: _Slots) -> None:
    """Label rows with the slots they show."""
    wanted = MaxNLocator(5, integer=True, min_n_ticks=1).tick_values(slots.first, slots.last)
    at = [int(slot) for slot in wanted if slots.first <= slot <= slots.last]
    axes.set_yticks([slot - slots.first for slot in at], [str(slot % slots.total) for slot in at])


def _scale(figure: Figure, axes: Axes, drawn: AxesImage) -> None:
    """A thin colour bar right of the panel."""
    box = axes.get_position()
    width, height = figure.get_size_inches()
    bar = figure.add_axes((box.x1 + 0.05 / width, box.y0, 0.07 / width, min(box.height, 1.2 / height)))
    figure.colorbar(drawn, cax=bar)
    _thin(bar)
    bar.tick_params(labelsize=5.5)
    bar.yaxis.set_major_locator(MaxNLocator(3))


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
    slots: _Slots | None = None
    """The slots that the rows are, if they are slots."""
    largest: float | None = None
    """End of the colour scale; None takes the largest value."""
    scaled: bool = False
    """Whether a colour bar stands beside it."""

    def draw(self, figure: Figure, axes: Axes) -> None:
        drawn = _heatmap(axes, self.image, self.kind, self.title, self.largest)
        if self.slots is not None:
            _number_slots(axes, self.slots)
        if self.labels:
            size = len(self.image) / len(self.labels)
            axes.set_yticks([(group + 0.5) * size - 0.5 for group in range(len(self.labels))], self.labels)
            axes.tick_params(axis="y", length=0)
            for group in range(1, len(self.labels)):
                axes.axhline(group * size - 0.5, color=MUTED, linewidth=0.5)
        if self.scaled:
            _scale(figure, axes, drawn)


def _height(rows: int, per_row: float, low: float, high: float) -> float:
    return min(max(rows * per_row, low), high)


def _bits(title: str, bits: Array) -> _Panel:
    """``[T, channels]`` as a panel."""
    return _Panel(title, bits.T, "bits", _height(bits.shape[1], 0.1, 0.3, 1.4))


def _words(title: str, words: Array | None) -> list[_Panel]:
    """``[T, heads, W]`` as one panel, heads one below the other."""
    if words is None:
        return []
    steps, heads, size = words.shape
    labels = [f"head {head + 1}" for head in range(heads)] if heads > 1 else ()
    image = words.reshape(steps, heads * size).T
    return [_Panel(title, image, "words", _height(heads * size, 0.05, 0.7, 2.0), labels, scaled=True)]


def _weights(title: str, weights: Array | None, slots: _Slots) -> list[_Panel]:
    """``[T, heads, N]`` as a panel for each head, all with the same scale."""
    if weights is None:
        return []
    heads = weights.shape[1]
    shown = min(heads, MAX_HEADS)
    height = _height(len(slots.indices), 0.07, 0.9, 2.6 if shown == 1 else 1.4)
    return [
        _Panel(
            f"{title}{f', head {head + 1} of {heads}' if heads > 1 else ''}{slots.label}",
            weights[:, head, slots.indices].T,
            "weights",
            height,
            slots=slots,
            largest=_largest(weights),
            scaled=head == 0,
        )
        for head in range(shown)
    ]


def _usage(usage: Array | None, slots: _Slots) -> list[_Panel]:
    if usage is None:
        return []
    height = _height(len(slots.indices), 0.07, 0.7, 1.4)
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
    return [_Panel("gates", np.stack(values), "bits", _height(len(rows), 0.13, 0.3, 1.3), labels)]


def _read_modes(modes: Array | None) -> list[_Panel]:
    """``[T, R, 1 + 2H]`` as one panel, heads one below the other."""
    if modes is None:
        return []
    steps, heads, ways = modes.shape
    writes = (ways - 1) // 2
    image = modes.reshape(steps, heads * ways).T
    height = _height(heads * ways, 0.1, 0.45, 1.3)
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
    slots = _used_slots(episode)
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
            drawn = _heatmap(axes, memory, "words", "memory at the end")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            _number_slots(axes, slots)
            _scale(figure, axes, drawn)
        top -= block_height + INCHES.block
    for axes in lowest.values():
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("step", fontsize=7, color=MUTED, labelpad=1)
    figure.text(
        INCHES.left / width, 1 - 0.08 / height, episode.name, ha="left", va="top", fontsize=11, color=INK, weight="bold"
    )
    return figure


CURVE_TITLES = {"loss": "loss (nats)", "bits_wrong": "bits wrong per sequence"}
"""Titles of panels whose metric's own name says too little."""
FIRST_PANELS = ("loss", "bits_wrong", "learning_rate", "gradient_norm")
"""Panels that come first, in this order."""
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
    """Sort metrics into panels: one for a metric of training and held-out sets, one for others of a prefix.

    Args:
        rows: step and values by name, such as ``train/loss``, ``held_out/length 40/bits_wrong`` or ``fitness/best``.

    Returns:
        The curves of each panel by its name (``loss``, ``bits_wrong``, ``fitness``), without infinite values and NaN.
    """
    points: dict[str, dict[str, list[tuple[int, float]]]] = {name: {} for name in FIRST_PANELS}
    for step, values in rows:
        for name, value in values.items():
            first, _, rest = name.partition("/")
            if first in ("train", "held_out") and rest:
                label, _, panel = rest.rpartition("/")
                family = panel.partition("_")[0]
                if not label and family in FAMILIES:
                    panel, label = family, panel.removeprefix(f"{family}_").replace("_", " ")
                label = label or first.replace("_", " ")
            else:
                panel, _, label = name.rpartition("/")
                panel, label = panel or name, label.replace("_", " ")
            line = points.setdefault(panel, {}).setdefault(label, [])
            if math.isfinite(value):
                line.append((step, value))
    return {
        panel: [Curve(label, *np.array(line, dtype=np.float64).reshape(-1, 2).T) for label, line in lines.items()]
        for panel, lines in points.items()
        if lines
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
    figure = Figure(figsize=(5.2 * columns, 2.7 * lines), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for place, (panel, curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(lines, columns, place)
        for index, curve in enumerate(curves):
            colour = LINES[index % len(LINES)]
            smooth = thinned(curve, RAW_POINTS // 2) if len(curve.steps) > RAW_POINTS else curve
            if smooth is not curve:
                raw = thinned(curve, 4000)
                axes.plot(raw.steps, raw.values, color=colour, alpha=0.2, linewidth=0.6)
            last = f"  {smooth.values[-1]:.3g}" if len(smooth.values) else ""
            marker = "o" if len(curve.steps) < 12 else None
            axes.plot(
                smooth.steps,
                smooth.values,
                color=colour,
                linewidth=1.4,
                marker=marker,
                markersize=3,
                label=curve.label + last,
            )
        _scale_values(axes, curves)
        axes.set_title(curve_title(panel), fontsize=9, color=INK, loc="left")
        axes.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if axes.get_yscale() == "linear":
            axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        _thin(axes)
        axes.tick_params(which="both", labelsize=7, colors=MUTED)
        axes.yaxis.get_offset_text().set(fontsize=7, color=MUTED)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False, labelcolor=INK, loc="best", handlelength=1.2)
        if place > len(panels) - columns:
            axes.set_xlabel("training step", fontsize=7, color=MUTED)
    return figure


def _picture_axes(name: str, width: float, height: float) -> tuple[Figure, Axes]:
    """An empty picture of one panel."""
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(name, fontsize=11, color=INK, weight="bold", loc="left")
    _thin(axes)
    axes.tick_params(labelsize=7)
    return figure, axes


def areas_figure(name: str, areas: Areas) -> Figure:
    """Stacked areas over time, such as the members of each species; colours repeat after twenty parts.

    Args:
        name: title of the picture.
        areas: what to draw; up to twelve parts are named in a legend.
    """
    figure, axes = _picture_axes(name, 7, 3.6)
    colours = [colormaps["tab20"](index % 20) for index in range(len(areas.parts))]
    if areas.parts:
        steps = [*areas.steps] if len(areas.steps) > 1 else [areas.steps[0], areas.steps[0] + 1]
        # A single step is as wide as a step: an area needs two ends.
        values = [[*part] if len(areas.steps) > 1 else [*part, *part] for part in areas.parts.values()]
        axes.stackplot(steps, values, colors=colours, edgecolor="white", linewidth=0.2, labels=[*areas.parts])
        axes.set_xlim(steps[0], steps[-1])
        axes.set_ylim(0, max(sum(column) for column in zip(*values, strict=True)) or 1)
        if len(areas.parts) <= 12:
            axes.legend(
                fontsize=7, frameon=False, labelcolor=INK, loc="center left", bbox_to_anchor=(1, 0.5), reverse=True
            )
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.set_xlabel("training step", fontsize=7, color=MUTED)
    axes.set_ylabel(areas.label, fontsize=7, color=MUTED)
    return figure


def histogram_figure(name: str, histogram: Histogram) -> Figure:
    """How many values lie where, with a line at their median; what is not finite is counted in the title.

    Args:
        name: title of the picture.
        histogram: what to draw.
    """
    values = np.asarray(histogram.values, dtype=np.float64)
    finite = values[np.isfinite(values)]
    lost = f" ({len(values) - len(finite)} not finite)" if len(finite) < len(values) else ""
    figure, axes = _picture_axes(name + lost, 5.2, 3.2)
    if len(finite):
        axes.hist(finite, bins=min(max(round(math.sqrt(len(finite)) * 2), 5), 60), color=LINES[0])
        middle = float(np.median(finite))
        axes.axvline(middle, color=LINES[1], linewidth=1.2, label=f"median {middle:.4g}")
        axes.legend(fontsize=7, frameon=False, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel(histogram.label, fontsize=7, color=MUTED)
    axes.set_ylabel("count", fontsize=7, color=MUTED)
    return figure


def _network_places(network: Network) -> NDArray[np.float64]:
    """Where each node is drawn, ``[nodes, 2]``: layers from left to right, in each the nodes evenly from top to bottom.

    Within a layer nodes are in the order of the mean height of what feeds them, so that fewer connections cross.
    """
    layers = np.asarray(network.layers)
    places = np.zeros((len(layers), 2))
    for layer in range(int(layers.max(initial=0)) + 1):
        nodes = np.flatnonzero(layers == layer).tolist()
        fed: dict[int, list[float]] = {node: [] for node in nodes}
        for connection in network.connections:
            if connection.target in fed and layers[connection.source] < layer:
                fed[connection.target].append(places[connection.source, 1])
        if 0 < layer < layers.max():
            nodes.sort(key=lambda node: float(np.mean(fed[node])) if fed[node] else 0.5, reverse=True)
        # Hidden layers are shifted, each by another share: connections that skip a layer do not run through its nodes.
        shift = (0.618 * layer) % 1 * 0.7 - 0.35 if 0 < layer < layers.max() else 0.0
        for rank, node in enumerate(nodes):
            places[node] = layer, 1 - (rank + 0.5 + shift) / len(nodes)
    return places


MAX_NAMED = 30
"""In a layer with more nodes than this they are dots without names."""


def network_figure(name: str, network: Network) -> Figure:
    """A network as a graph: nodes in layers, connections in the colour of their weight, recurrent ones curved.

    Args:
        name: title of the picture.
        network: what to draw.
    """
    layers = np.asarray(network.layers)
    widest = int(np.bincount(layers).max()) if len(layers) else 1
    depth = int(layers.max(initial=0))
    figure, axes = _picture_axes(name, min(max(2.0 * (depth + 1), 5.5), 11), min(max(0.42 * widest, 3.6), 9))
    places = _network_places(network)
    largest = max((abs(connection.weight) for connection in network.connections), default=1.0) or 1.0
    scale = Normalize(-largest, largest)
    for source, target, weight, recurrent in network.connections:
        strength = abs(weight) / largest
        # A loop from a node to itself is drawn between two places beside it.
        start, end = places[source], places[target]
        if source == target:
            start, end = np.add(start, (-0.07, 0.0)), np.add(end, (0.07, 0.0))
        bend = "arc3" if not recurrent else f"arc3,rad={-1.6 if source == target else 0.35}"
        axes.add_patch(
            FancyArrowPatch(
                start,
                end,
                connectionstyle=bend,
                arrowstyle="-|>",
                linestyle="--" if recurrent else "-",
                mutation_scale=7,
                shrinkA=5 if source != target else 2,
                shrinkB=8 if source != target else 5,
                color=CONNECTIONS(scale(weight)),
                linewidth=0.6 + 1.6 * strength,
                zorder=1,
            )
        )
    sizes = np.where(np.bincount(layers, minlength=depth + 1)[layers] > MAX_NAMED, 12, 130)
    axes.scatter(places[:, 0], places[:, 1], sizes, color="white", edgecolors=INK, linewidths=0.8, zorder=2)
    for (x, y), text, layer, size in zip(places, network.nodes, layers, sizes, strict=True):
        if size < 20:
            continue
        if 0 < layer < depth:
            axes.text(x, y, text, ha="center", va="center", fontsize=6, color=INK, zorder=3)
        else:
            side, align = (-9, "right") if layer == 0 else (9, "left")
            axes.annotate(
                text, (x, y), (side, 0), textcoords="offset points", ha=align, va="center", fontsize=7, color=INK
            )
    axes.set_xlim(-0.45, depth + 0.45)
    axes.set_ylim(-0.12, 1.12)
    axes.set_axis_off()
    bar = figure.colorbar(ScalarMappable(scale, CONNECTIONS), ax=axes, fraction=0.025, pad=0.02, aspect=30)
    bar.set_label("weight (dashed: recurrent)", fontsize=7, color=MUTED)
    _thin(bar.ax)
    return figure


def picture_figure(name: str, picture: Picture) -> Figure:
    """The figure of any plain data.

    Args:
        name: title of the picture.
        picture: what to draw.
    """
    if isinstance(picture, Areas):
        return areas_figure(name, picture)
    if isinstance(picture, Histogram):
        return histogram_figure(name, picture)
    return network_figure(name, picture)


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
    slots = _used_slots(episode)
    inputs, targets, outputs = episode.titles
    left: list[tuple[str, Array, str, float]] = [
        (inputs, episode.inputs.T, "bits", _height(episode.inputs.shape[1], 0.08, 0.25, 0.8)),
        (targets, episode.targets.T, "bits", _height(episode.targets.shape[1], 0.08, 0.25, 0.8)),
        (outputs, _output_colours(episode), "colours", _height(episode.outputs.shape[1], 0.08, 0.25, 0.8)),
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
            films.append(_Film(_heatmap(axes, np.zeros(values.shape[:2], np.float32), "bits", title), values, True))
        else:
            films.append(_Film(_heatmap(axes, values, kind, title), values, True))
        films[-1].image.set_extent((-0.5, len(episode.inputs) - 0.5, len(values) - 0.5, -0.5))
        if kind == "weights":
            _number_slots(axes, slots)
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
    films.append(_Film(_heatmap(axes, memory[-1], "words", "memory", _largest(memory)), memory, False))
    axes.tick_params(labelleft=False, left=False)
    for (title, weights, colour), start in zip(heads, (x - 0.24, x + words + 0.06), strict=True):
        if weights is None:
            continue
        side = place(start, bottom, 0.18, top - bottom)
        shown = weights[:, :, slots.indices].transpose(0, 2, 1)
        image = _heatmap(side, shown[0], "weights", largest=1)
        image.set_cmap(LinearSegmentedColormap.from_list(title, ["white", colour]))
        side.set_xticks([])
        side.tick_params(labelleft=False, left=False)
        if weights is episode.write_weights:
            _number_slots(side, slots)
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
