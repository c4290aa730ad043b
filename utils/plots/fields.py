"""What is drawn of each kind of field, in files and on the page: panels over time, and stills of one step."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .episode import Array, Episode, Seen, Slots, slot_axes, wrong_bits
from .panels import Colours, Ticks, largest_of, panel_height, slot_ticks

MAX_HEADS = 4
"""Heads that get a panel of their own; more lie one below the other in one."""
MAX_GATES = 12
"""Rows that a field may have to share the panel of the gates."""
GATES = "gates"
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
    """One for each group of rows; empty numbers the rows."""
    slots: Slots | None = None
    """The slots that the rows are, if they are slots."""
    largest: float | None = None
    """End of the colour scale; None takes the largest value."""
    scaled: bool = False
    """Whether a colour bar stands beside it."""
    judged: bool = False
    """Whether these are outputs of which some may be wrong."""

    @property
    def ticks(self) -> Ticks | None:
        """Where rows are labelled, and how; None numbers them."""
        if self.slots is not None:
            return slot_ticks(self.slots)
        if not self.labels:
            return None
        size = len(self.image) / len(self.labels)
        return Ticks([(group + 0.5) * size - 0.5 for group in range(len(self.labels))], list(self.labels))


class Still(NamedTuple):
    """Rows and columns that change from step to step."""

    name: str
    images: Array
    """``[T, rows, columns]``"""
    colours: Colours
    axes: tuple[str, str]
    """Letters of the rows and of the columns."""
    slots: tuple[Slots | None, Slots | None]
    """The slots that rows and columns are, if they are slots."""


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
    over_slots = {name: seen for name, seen in episode.of_kind("weighting").items() if seen.axes[-1] in slots}
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
    for letter, used in slots.items():
        panels: tuple[list[Panel], list[Panel]] = [], []
        for name, seen in over_slots.items():
            if seen.axes[-1] == letter:
                panels[READ_HEADS in seen.axes].extend(slot_panels(name, seen, used))
        own = [still for still in stills if still.axes[0] == letter and still.name in episode.of_kind("memory")]
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
    """Inputs, targets and outputs ``[T, channels]``, a panel each, as far as they are there."""
    titles = SEQUENCE_TITLES if episode.mask is None or episode.judged else WORLD_TITLES
    wrong = int(wrong_bits(episode).sum())
    verdict = f", {wrong} {'bit' if wrong == 1 else 'bits'} wrong" if wrong else ", all bits right"
    panels = [
        Panel(title, part.T, "bits", panel_height(part.shape[1], 0.1, 0.3, 1.4), "channel")
        for title, part in zip(titles, (episode.inputs, episode.targets, episode.outputs), strict=True)
        if part is not None
    ]
    if episode.judged:
        panels[-1] = panels[-1]._replace(note=verdict, judged=True)
    return panels


def _by_head(values: Array, *, last: int = 1) -> Array:
    """``[T, …]`` with all axes but time and the last ones as one: that of the heads, 1 where there are none."""
    shape = values.shape[values.ndim - last :]
    return values.reshape(len(values), int(np.prod(values.shape[1 : values.ndim - last])), *shape)


def _heads(count: int) -> list[str]:
    return [f"head {head + 1}" for head in range(count)] if count > 1 else []


def slot_panels(name: str, seen: Seen, slots: Slots) -> list[Panel]:
    """A weighting over slots ``[T, …, N]`` as a panel for each head, all with the same scale."""
    weights = _by_head(seen.values)[:, :, slots.indices]
    heads, largest, title = weights.shape[1], largest_of(seen.values), title_of(name)
    if heads > MAX_HEADS:
        image = weights.reshape(len(weights), -1).T
        return [Panel(title, image, "weights", 2.6, "head × slot", slots.label, _heads(heads), None, largest, True)]
    height = panel_height(len(slots.indices), 0.07, 0.9, 2.6 if heads == 1 and len(seen.axes) > 1 else 1.4)
    names = [f"{title}, {head} of {heads}" for head in _heads(heads)] or [title]
    return [
        Panel(each, weights[:, head].T, "weights", height, "slot", slots.label, (), slots, largest, head == 0)
        for head, each in enumerate(names)
    ]


def rows_panels(name: str, seen: Seen, colours: Colours) -> list[Panel]:
    """Words ``[T, …, W]`` or shares ``[T, …, M]`` as one panel, heads one below the other."""
    values = _by_head(seen.values)
    steps, heads, size = values.shape
    labels = _heads(heads) or (seen.field.labels if len(seen.field.labels) == size else ())
    note = f": {seen.field.description}" if seen.field.description else ""
    row = "element" if colours == "words" else "share"
    height = panel_height(heads * size, *((0.05, 0.6, 1.6) if colours == "words" else (0.1, 0.45, 1.3)))
    image = values.reshape(steps, heads * size).T
    rows = f"head × {row}" if heads > 1 else row
    return [Panel(title_of(name), image, colours, height, rows, note, labels, scaled=colours == "words")]


def gate_panels(gates: Mapping[str, Seen]) -> list[Panel]:
    """Gates ``[T, …]`` together in one panel, a named row each; those beyond 0 to 1, or of many rows, on their own."""
    together: list[tuple[str, Array]] = []
    alone = []
    for name, seen in gates.items():
        rows = seen.values.reshape(len(seen.values), -1).T
        short = re.sub("_gates?$", "", name).replace("_", " ")
        labels = [f"{short} {row + 1}" if len(rows) > 1 else short for row in range(len(rows))]
        if len(rows) <= MAX_GATES and not (rows < 0).any() and largest_of(rows) <= 1:
            together += zip(labels, rows, strict=True)
            continue
        note = f": {seen.field.description}" if seen.field.description else ""
        numbers = [str(row + 1) for row in range(len(rows))] if 1 < len(rows) <= MAX_GATES else ()
        height = panel_height(len(rows), 0.13, 0.3, 1.3)
        alone.append(Panel(title_of(name), rows, "amounts", height, "head", note, numbers, scaled=True))
    if not together:
        return alone
    labels, values = [label for label, _ in together], np.stack([row for _, row in together])
    # As high as its labels need.
    return [Panel(GATES, values, "bits", panel_height(len(values), 0.13, 0.3, 13.0), "gate", "", labels), *alone]


def stills_of(episode: Episode, slots: Mapping[str, Slots]) -> list[Still]:
    """Memories and matrices ``[T, …, rows, columns]``, one for each head, cropped to the slots in use."""
    found = []
    for name, seen in episode.of_kind("memory", "matrix").items():
        values = _by_head(seen.values, last=2)
        rows, columns = seen.axes[-2:]
        used = slots.get(rows), slots.get(columns) if columns != rows else slots.get(rows)
        for axis, part in enumerate(used, start=2):
            if part is not None:
                values = values.take(part.indices, axis)
        shares = seen.field.kind == "matrix" and not (values < 0).any() and largest_of(values) <= 1
        heads = _heads(values.shape[1])
        found += [
            Still(
                f"{title_of(name)}, {heads[head]} of {len(heads)}" if heads else title_of(name),
                values[:, head],
                "weights" if shares else "words",
                (rows, columns),
                used,
            )
            for head in range(values.shape[1])
        ]
    return found
