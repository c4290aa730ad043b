"""What circuits reach on each set of the test, such as sequences of growing length: a panel for each task."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .panels import INK, LINES, MUTED, thin_frame

COLUMNS = 3
CROWDED = 44
"""Letters below a panel, beyond which they are turned."""


def lengths_figure(drawn: Mapping[str, Mapping[str, tuple[Sequence[str], Sequence[float]]]], quantity: str) -> Figure:
    """A line for each circuit over the sets of a task's test, in their order; over those that it was tested on.

    Args:
        drawn: by task and circuit the names of the sets and the figure of each.
        quantity: what the figures are.
    """
    columns = min(COLUMNS, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.6 * rows + 0.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    circuits = list(dict.fromkeys(circuit for lines in drawn.values() for circuit in lines))
    handles = {}
    for index, (task, lines) in enumerate(drawn.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        sets = _together(names for names, _ in lines.values())
        for circuit, (names, figures) in lines.items():
            place = circuits.index(circuit)
            style = ("-", "--", ":", "-.")[place // len(LINES) % 4]
            colour = LINES[place % len(LINES)]
            places = list(map(sets.index, names))
            (line,) = axes.plot(places, figures, style, color=colour, marker="o", markersize=3, linewidth=1.4)
            handles[circuit] = line
        labels = [_short(name, sets) for name in sets]
        axes.set_xticks(range(len(sets)), labels)
        axes.set_title(task, fontsize=9, color=INK, loc="left")
        if index % columns == 0:
            axes.set_ylabel(quantity, fontsize=8, color=MUTED)
        axes.grid(True, axis="y", color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        thin_frame(axes)
        axes.tick_params(labelsize=7, colors=MUTED)
        axes.spines[["top", "right"]].set_visible(False)
        if sum(map(len, labels)) > CROWDED:
            axes.tick_params(axis="x", rotation=45)
    figure.legend(
        [handles[circuit] for circuit in circuits],
        circuits,
        loc="outside lower left",
        fontsize=8,
        frameon=False,
        labelcolor=INK,
        ncols=min(6, len(circuits)),
    )
    return figure


def _together(lists: Iterable[Sequence[str]]) -> list[str]:
    """The sets of all, once each; where they are not the same for all, by the last number in their names."""
    first, *others = map(list, lists)
    if all(names == first for names in others):
        return first
    found = dict.fromkeys(name for names in (first, *others) for name in names)
    return sorted(found, key=lambda name: int((re.findall(r"\d+", name) or [0])[-1]))


def _short(name: str, names: Sequence[str]) -> str:
    """The name of a set without the word that all of them begin with."""
    first = {other.partition(" ")[0] for other in names}
    return name.partition(" ")[2] if len(first) == 1 and " " in name else name
