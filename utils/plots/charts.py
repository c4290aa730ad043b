"""Figures of the charts of :mod:`papertape.core.recorder`: areas, histograms and networks."""

from __future__ import annotations

import math

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ...core.recorder import Areas, Chart, Histogram, Network
from .panels import INK, LINES, MUTED, thin_frame

CONNECTIONS: Colormap = LinearSegmentedColormap.from_list(
    "connections", ["#17459b", "#7fa6d6", "#cccccc", "#e79b7a", "#a8132a"]
)
"""Like WORDS, but what is near zero can be seen on white."""


def _chart_axes(name: str, width: float, height: float) -> tuple[Figure, Axes]:
    """An empty chart of one panel."""
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(name, fontsize=11, color=INK, weight="bold", loc="left")
    thin_frame(axes)
    axes.tick_params(labelsize=7)
    return figure, axes


def areas_figure(name: str, areas: Areas) -> Figure:
    """Stacked areas over time, such as the members of each species; colours repeat after twenty parts.

    Args:
        name: title of the chart.
        areas: what to draw; up to twelve parts are named in a legend.
    """
    figure, axes = _chart_axes(name, 7, 3.6)
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
    for good, symbol, colour, word in ((True, "^", "#2e7d32", "kept"), (False, "x", "#a8132a", "taken back")):
        marked = [mark.step for mark in areas.marks if mark.good == good]
        if marked:
            heights = [1.02] * len(marked)
            axes.scatter(
                marked,
                heights,
                14,
                color=colour,
                marker=symbol,
                linewidths=0.8,
                clip_on=False,
                transform=axes.get_xaxis_transform(),
                label=f"{len(marked)} {word}",
            )
    if areas.marks:
        axes.set_title(name, fontsize=11, color=INK, weight="bold", loc="left", pad=14)  # above the marks
        axes.legend(fontsize=7, frameon=False, labelcolor=INK, loc="center left", bbox_to_anchor=(1, 0.5), reverse=True)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.set_xlabel("training step", fontsize=7, color=MUTED)
    axes.set_ylabel(areas.label, fontsize=7, color=MUTED)
    return figure


def histogram_figure(name: str, histogram: Histogram) -> Figure:
    """How many values lie where, with a line at their median; what is not finite is counted in the title.

    Args:
        name: title of the chart.
        histogram: what to draw.
    """
    values = np.asarray(histogram.values, dtype=np.float64)
    finite = values[np.isfinite(values)]
    lost = f" ({len(values) - len(finite)} not finite)" if len(finite) < len(values) else ""
    figure, axes = _chart_axes(name + lost, 5.2, 3.2)
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
        name: title of the chart.
        network: what to draw.
    """
    layers = np.asarray(network.layers)
    widest = int(np.bincount(layers).max()) if len(layers) else 1
    depth = int(layers.max(initial=0))
    figure, axes = _chart_axes(name, min(max(2.0 * (depth + 1), 5.5), 11), min(max(0.42 * widest, 3.6), 9))
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
    thin_frame(bar.ax)
    return figure


def chart_figure(name: str, chart: Chart) -> Figure:
    """The figure of any chart.

    Args:
        name: title of the chart.
        chart: what to draw.
    """
    if isinstance(chart, Areas):
        return areas_figure(name, chart)
    if isinstance(chart, Histogram):
        return histogram_figure(name, chart)
    return network_figure(name, chart)
