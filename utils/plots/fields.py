"""What is drawn of each kind of field, in files and on the page: panels over time, and stills of one step."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...core.trace_field import Channels
from .episode import Array, Axis, Episode, Seen, Slots, chosen, slot_axes, wrong_bits
from .panels import BITS, Colours, Scale, Ticks, colour_limits, largest_of, panel_height, slot_ticks

MAX_HEADS = 4
"""Heads that get a panel of their own; more lie one below the other in one."""
MAX_GATES = 12
"""Rows that a field may have to share the panel of the gates."""
MAX_NAMED = 24
"""Rows with names that a panel of their own may have."""
GATES = "gates"
MAX_OWN_SCALES = 16
"""Rows, or groups of them, that may each have a scale of their own; more share one."""
FLAT = 0.4
"""Outputs that are all nearer to one half than this have a scale of their own, or they would all look grey."""
AXES = {"N": "slot", "W": "element", "R": "read head", "H": "write head", "K": "element of key"}
AXES |= {"U": "unit", "V": "element", "G": "element", "P": "slot, input last", "Q": "tick", "Y": "pair", "Z": "state"}
AXES |= {"J": "row"}
"""Names of axes by their letters."""
GROUPS = {"L": "layer", "E": "gate", "P": "rule", "S": "stack", "M": "slot", "N": "slot", "W": "element"}
"""Names of an axis before the others, or of gates, where it is not that of heads."""
FROM_ZERO = ("slot", "element")
"""What is numbered from 0, as along an axis of its own; heads, layers and the like are from 1."""
LABEL_HEIGHT = 0.09
"""Inches that a label beside rows needs."""
SEQUENCE_TITLES = ("input", "target", "output")
WORLD_TITLES = ("observation", "reward", "output")
READ_HEADS = "R"
"""Letter of the axis of read heads: where they read is drawn to the right, all else to the left."""


class Panel(NamedTuple):
    """Rows over time."""

    name: str
    """The same at every step of training."""
    image: Array
    """``[rows, T]``"""
    colours: Colours
    height: float
    """Inches wanted."""
    rows: str
    """What a row is."""
    note: str = ""
    """What the title says after the name."""
    labels: Sequence[str] = ()
    """One for each group of rows, of which as many are shown as there is room for; empty numbers the rows."""
    slots: Slots | None = None
    """The slots that the rows are, if they are slots."""
    largest: float | None = None
    """End of the colour scale; None takes the largest value."""
    limits: tuple[float, float] | None = None
    """Both ends of a scale in grey, in place of what the colours say."""
    named: Ticks | None = None
    """Names of rows, and where they are; in place of the labels."""
    marked: NDArray[np.bool_] | None = None
    """Cells that were chosen, ``[rows, T]``."""
    scaled: bool = False
    """Whether a colour bar stands beside it."""
    judged: bool = False
    """Whether these are outputs of which some may be wrong."""

    @property
    def scale(self) -> Scale:
        """How its numbers become colours."""
        return Scale(BITS, *self.limits) if self.limits else colour_limits(self.image, self.colours, self.largest)

    @property
    def lines(self) -> list[float]:
        """Where lines part its rows: those of one head from the next, and the memory's end from its beginning."""
        if self.slots is not None:
            return [] if self.slots.end is None else [self.slots.end]
        size = len(self.image) / max(len(self.labels), 1)
        return [group * size - 0.5 for group in range(1, len(self.labels))] if size > 1 else []

    @property
    def ticks(self) -> Ticks | None:
        """Where rows are labelled, and how; None numbers them."""
        if self.named is not None:
            return self.named
        if self.slots is not None:
            return slot_ticks(self.slots)
        if not self.labels:
            return None
        size = len(self.image) / len(self.labels)
        every = math.ceil(LABEL_HEIGHT * len(self.labels) / self.height)
        shown = range(0, len(self.labels), every)
        return Ticks([(group + 0.5) * size - 0.5 for group in shown], [self.labels[group] for group in shown])


class Still(NamedTuple):
    """Rows and columns that change from step to step."""

    name: str
    images: Array
    """``[T, rows, columns]``"""
    colours: Colours
    axes: tuple[Axis, Axis]
    """Of the rows and of the columns."""
    slots: tuple[Slots | None, Slots | None]
    """The slots that rows and columns are, if they are slots."""

    @property
    def titles(self) -> tuple[str, str]:
        """What a row and what a column is."""
        rows, columns = (
            "slot" if slots is not None else AXES.get(axis.letter, axis.letter)
            for axis, slots in zip(self.axes, self.slots, strict=True)
        )
        return rows, columns

    @property
    def note(self) -> str:
        """What the title says after the name."""
        rows = self.slots[0]
        return "" if rows is None else rows.label

    @property
    def scale(self) -> Scale:
        """How its numbers become colours, at every step."""
        return colour_limits(self.images, self.colours)


class Block(NamedTuple):
    """Panels in two columns, with stills beside them that share the rows of its weightings."""

    left: list[Panel]
    right: list[Panel]
    stills: Sequence[Still] = ()


class Layout(NamedTuple):
    """All that is drawn of an episode."""

    blocks: list[Block]
    """From top to bottom."""
    stills: list[Still]
    """Below them."""

    @property
    def panels(self) -> list[Panel]:
        """Those of all blocks."""
        return [panel for block in self.blocks for panel in (*block.left, *block.right)]

    @property
    def all_stills(self) -> list[Still]:
        """Those beside the blocks and below."""
        return [*(still for block in self.blocks for still in block.stills), *self.stills]


def title_of(name: str) -> str:
    """The name of a field as words, which differ from what else is drawn."""
    words = name.replace("_", " ")
    return f"{words} of the trace" if words in (*SEQUENCE_TITLES, *WORLD_TITLES, GATES) else words


def layout_of(episode: Episode) -> Layout:
    """Inputs, outputs and words; weightings beside the memory that they are over; then what is left; then matrices."""
    slots = slot_axes(episode)
    over_slots = {name: seen for name, seen in episode.of_kind("weighting").items() if seen.sized_axes[-1] in slots}
    shares = {name: seen for name, seen in episode.of_kind("weighting").items() if name not in over_slots}
    words = [panel for name, seen in episode.of_kind("words").items() for panel in rows_panels(name, seen, "words")]
    rest = gate_panels(episode.of_kind("gate"))
    rest += [panel for name, seen in shares.items() for panel in rows_panels(name, seen, "bits")]

    bits = bit_panels(episode)
    beside: list[Panel] = []
    while bits and words and (not beside or inches([*beside, words[0]]) <= inches(bits)):
        beside.append(words.pop(0))
    blocks = [Block(bits, beside)]
    stills = stills_of(episode, slots)
    memories = [title_of(name) for name in episode.of_kind("memory")]
    for axis, used in slots.items():
        panels: tuple[list[Panel], list[Panel]] = [], []
        for name, seen in over_slots.items():
            if seen.sized_axes[-1] == axis:
                panels[READ_HEADS in seen.axes].extend(slot_panels(name, seen, used))
        own = [still for still in stills if still.axes[0] == axis and still.name in memories]
        if any(panels):
            blocks.append(Block(*(panels if all(panels) else in_two(panels[0] + panels[1])), own))
            stills = [still for still in stills if not any(still is other for other in own)]
    blocks.append(Block(*in_two(words + rest)))
    return Layout([block for block in blocks if block.left], stills)


def inches(panels: Iterable[Panel], title: float = 0.2) -> float:
    """Height of panels one below the other, each with its title."""
    return sum(panel.height + title for panel in panels)


def in_two(panels: list[Panel]) -> tuple[list[Panel], list[Panel]]:
    """Panels in two columns of much the same height, in order."""
    left: list[Panel] = []
    right: list[Panel] = []
    for panel in panels:
        (left if inches(left) <= inches(right) else right).append(panel)
    return left, right


def bit_panels(episode: Episode) -> list[Panel]:
    """Inputs, targets and outputs ``[T, channels]``, as far as they are there."""
    world = episode.mask is not None and not episode.judged
    titles = WORLD_TITLES if world else SEQUENCE_TITLES
    known = (episode.input_channels, () if world else episode.output_channels, episode.output_channels)
    panels = []
    for title, part, channels in zip(titles, (episode.inputs, episode.targets, episode.outputs), known, strict=True):
        if part is not None:
            panels += channel_panels(title, part, channels if sum(c.size for c in channels) == part.shape[1] else ())
    if episode.outputs is not None and episode.mask is not None and panels[-1].name == titles[2]:
        panels[-1] = _answered(panels[-1], episode)
    return panels


def _answered(panel: Panel, episode: Episode) -> Panel:
    """The panel of the outputs, which says how many are wrong or which were chosen."""
    assert episode.outputs is not None
    assert episode.mask is not None
    marked = chosen(episode.outputs, episode.output_channels)
    if marked.any():
        panel = panel._replace(marked=marked.T, limits=(0.0, max(largest_of(episode.outputs), 0.05)), scaled=True)
    if not episode.judged:
        return panel
    outputs = episode.outputs[episode.mask > 0]
    margin = largest_of(outputs - 0.5)
    if panel.limits is None and margin < FLAT:
        margin = max(margin, 1e-3)
        panel = panel._replace(limits=(0.5 - margin, 0.5 + margin), scaled=True)
    wrong = int(wrong_bits(episode).sum())
    noun = "answer" if marked.any() else "bit"
    verdict = f", {wrong} {noun}{'s' if wrong > 1 else ''} wrong" if wrong else f", all {noun}s right"
    return panel._replace(note=verdict, judged=True)


def channel_panels(title: str, values: Array, channels: Sequence[Channels]) -> list[Panel]:
    """Channels ``[T, C]`` as a panel of those between 0 and 1, and one of those beyond, each group on its own scale.

    Args:
        title: of the first panel.
        values: what is drawn.
        channels: what the channels are, all of them, or nothing.
    """
    rows, count = values.T, values.shape[1]
    beyond = np.array([bool((row < 0).any()) or largest_of(row) > 1 for row in rows], np.bool_)
    bits = np.array([bool(np.isin(row, (0, 1)).all()) for row in rows], np.bool_)
    if channels:
        sizes = [group.size for group in channels]
        group = np.repeat(np.arange(len(channels)), sizes)
        names = [
            label for part in channels for label in (part.labels or [part.name if part.size == 1 else ""] * part.size)
        ]
        beyond = np.isin(group, group[beyond])
        if beyond.any():  # among numbers in units, one that stays small is in units of its own, too
            beyond |= np.isin(group, group[~bits])
    else:
        group, names = np.arange(count), [""] * count
        if beyond.any():
            beyond = ~bits if bits.any() else np.ones(count, np.bool_)
            group = group if bits.any() else np.zeros(count, np.int_)
    panels = []
    if not beyond.all() or not count:
        panels.append(_channels(title, rows, np.flatnonzero(~beyond), names))
    if not beyond.any():
        return panels
    groups = [np.flatnonzero(beyond & (group == number)) for number in dict.fromkeys(group[beyond].tolist())]
    if panels:
        declared = channels[group[groups[0][0]]].name if channels and len(groups) == 1 else "beyond 0 to 1"
        title = f"{title}: {declared}"
    rows, names = rows.copy(), list(names)
    own = 1 < len(groups) <= MAX_OWN_SCALES
    for members in groups if own else ():
        largest = max(largest_of(rows[members]), 1e-6)
        sign = "±" if (rows[members] < 0).any() else "≤ "
        for row in members:
            names[row] = f"{names[row] or row}, {sign}{largest:.3g}"
        rows[members] /= largest
    panel = _channels(title, rows, np.flatnonzero(beyond), names)
    return [*panels, panel._replace(scaled=not own, note=", each on its own scale" if own else "")]


def _channels(title: str, rows: Array, shown: NDArray[np.int_], names: Sequence[str]) -> Panel:
    """Some of the channels ``[C, T]`` as a panel, with the names that they have."""
    labels = [names[row] for row in shown]
    named = None
    if len(rows) == 1 and not any(labels):
        named = Ticks([], [])
    elif any(labels) or len(shown) < len(rows):
        every = -(-len(shown) // 4) if len(shown) > 8 else (2 if len(shown) > 4 else 1)
        texts = [
            label or (str(row) if place % every == 0 else "")
            for place, (row, label) in enumerate(zip(shown, labels, strict=True))
        ]
        places = [place for place, text in enumerate(texts) if text]
        named = Ticks([float(place) for place in places], [texts[place] for place in places])
    low = 0.13 * len(shown) if any(labels) and len(shown) <= MAX_OWN_SCALES else 0.3
    height = max(panel_height(len(shown), 0.1, 0.3, 1.4), low)
    return Panel(title, rows[shown], "bits", height, "channel", named=named)


def _by_head(values: Array, *, last: int = 1) -> Array:
    """``[T, …]`` with all axes but time and the last ones as one: that of the heads, 1 where there are none."""
    shape = values.shape[values.ndim - last :]
    return values.reshape(len(values), int(np.prod(values.shape[1 : values.ndim - last])), *shape)


def _groups(seen: Seen, last: int = 1) -> list[tuple[str, int]]:
    """What the axes before the last ones are, and their sizes; without those of size 1."""
    before = seen.sized_axes[: len(seen.axes) - last]
    return [(GROUPS.get(axis.letter, "head"), axis.size) for axis in before if axis.size > 1]


def _labels(groups: Sequence[tuple[str, int]], *, counted: bool = False) -> list[str]:
    """Each of them, such as ``layer 2, head 1``, or ``layer 2 of 2, head 1 of 4``; nothing of no groups."""
    places = np.ndindex(*(size for _, size in groups)) if groups else ()
    return [
        ", ".join(
            f"{name} {number + (name not in FROM_ZERO)}" + (f" of {size}" if counted else "")
            for (name, size), number in zip(groups, place, strict=True)
        )
        for place in places
    ]


def _by_title(name: str, groups: Sequence[tuple[str, int]]) -> list[str]:
    """Titles of what a field shows apart of each of them."""
    return [f"{title_of(name)}, {label}" for label in _labels(groups, counted=True)] or [title_of(name)]


def slot_panels(name: str, seen: Seen, slots: Slots) -> list[Panel]:
    """A weighting over slots ``[T, …, N]`` as a panel for each head, all with the same scale."""
    weights = _by_head(seen.values)[:, :, slots.indices]
    heads, largest, groups = weights.shape[1], largest_of(weights), _groups(seen)
    if heads > MAX_HEADS:
        image = weights.reshape(len(weights), -1).T
        rows, labels = " × ".join([*(group for group, _ in groups), "slot"]), _labels(groups)
        return [Panel(title_of(name), image, "weights", 2.6, rows, slots.label, labels, None, largest, scaled=True)]
    height = panel_height(len(slots.indices), 0.07, 0.9, 2.6 if heads == 1 and len(seen.axes) > 1 else 1.4)
    return [
        Panel(each, weights[:, head].T, "weights", height, "slot", slots.label, (), slots, largest, scaled=head == 0)
        for head, each in enumerate(_by_title(name, groups))
    ]


def rows_panels(name: str, seen: Seen, colours: Colours) -> list[Panel]:
    """Words ``[T, …, W]`` or shares ``[T, …, D]`` as one panel, heads one below the other."""
    values, groups = _by_head(seen.values), _groups(seen)
    steps, heads, size = values.shape
    labels = _labels(groups) or (seen.field.labels if len(seen.field.labels) == size else ())
    note = f": {seen.field.description}" if seen.field.description else ""
    row = AXES.get(seen.axes[-1], "element" if colours == "words" else "share")
    height = panel_height(heads * size, *((0.05, 0.6, 1.6) if colours == "words" else (0.1, 0.45, 1.3)))
    image = values.reshape(steps, heads * size).T
    rows = " × ".join([*(group for group, _ in groups), row])
    return [Panel(title_of(name), image, colours, height, rows, note, labels, scaled=colours == "words")]


def gate_panels(gates: Mapping[str, Seen]) -> list[Panel]:
    """Gates ``[T, …]`` together in one panel, a named row each; those beyond 0 to 1, or of many rows, on their own."""
    together: list[tuple[str, Array]] = []
    alone = []
    for name, seen in gates.items():
        rows = seen.values.reshape(len(seen.values), -1).T
        short = re.sub("_gates?$", "", name).replace("_", " ")
        names = _row_names(seen)
        groups = _groups(seen, 0)
        numbers = names or _numbers(groups)
        labels = [f"{short} {number}".rstrip() for number in numbers]
        if len(rows) <= MAX_GATES and not (rows < 0).any() and largest_of(rows) <= 1:
            together += zip(labels, rows, strict=True)
            continue
        note = f": {seen.field.description}" if seen.field.description else ""
        named = names and len(rows) <= MAX_NAMED
        height = panel_height(len(rows), 0.13, 0.3, 3.2 if named else 1.3)
        down = "" if named else " × ".join(group for group, _ in groups) or "head"
        alone.append(Panel(title_of(name), rows, "bits", height, down, note, numbers, scaled=True))
    if not together:
        return alone
    labels, values = [label for label, _ in together], np.stack([row for _, row in together])
    # As high as its labels need.
    return [Panel(GATES, values, "bits", panel_height(len(values), 0.13, 0.3, 13.0), "gate", "", labels), *alone]


def _row_names(seen: Seen) -> list[str]:
    """Names of the rows of a gate ``[T, …]`` whose last axis has as many, after the number of their head; or none."""
    names = seen.field.labels
    if not names or seen.values.shape[-1] != len(names):
        return []
    return [f"{head} {name}".lstrip() for head in _numbers(_groups(seen)) for name in names]


def _numbers(groups: Sequence[tuple[str, int]]) -> list[str]:
    """Labels after the name of a gate, where heads are numbers alone; one empty label of no groups."""
    return [re.sub(r"^head (\d+)$", r"\1", label) for label in _labels(groups)] or [""]


def stills_of(episode: Episode, slots: Mapping[Axis, Slots]) -> list[Still]:
    """Memories and matrices ``[T, …, rows, columns]``, one for each head, cropped to the slots in use."""
    found = []
    for name, seen in episode.of_kind("memory", "matrix").items():
        values = _by_head(seen.values, last=2)
        rows, columns = seen.sized_axes[-2:]
        used = slots.get(rows), slots.get(columns)
        for axis, part in enumerate(used, start=2):
            if part is not None:
                values = values.take(part.indices, axis)
        shares = seen.field.kind == "matrix" and not (values < 0).any() and largest_of(values) <= 1
        found += [
            Still(each, values[:, head], "weights" if shares else "words", (rows, columns), used)
            for head, each in enumerate(_by_title(name, _groups(seen, 2)))
        ]
    return found
