"""Episodes and curves as plotly draws them in the visdom page, in the colours of the files."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import Colormap, to_hex, to_rgb
from numpy.typing import NDArray

from ..plots import RAW_POINTS, Array, Colours, Curve, Episode, colour_limits, layout_of, slot_ticks, thinned

MAX_POINTS = 1000
"""Of a curve in the visdom page."""


def colour_scale(colours: Colormap) -> list[tuple[float, str]]:
    """A colour map for plotly: the same colours as in the files."""
    return [(place, to_hex(colours(place))) for place in np.linspace(0, 1, 17).tolist()]


def jsonable(values: NDArray[np.floating[Any]]) -> Any:
    """Nested lists of numbers, with null for what JSON has no number for."""
    plain = values.astype(object)
    plain[~np.isfinite(values)] = None
    return plain.tolist()


class Window(NamedTuple):
    """A heatmap of the visdom page: what plotly draws, and its axes."""

    name: str
    heatmap: dict[str, Any]
    axes: dict[str, Any]


def heatmap_window(name: str, image: Array, colours: Colours, largest: float | None, *sides: Any) -> Window:
    """A window that shows an image ``[rows, columns]``, with the title and the ticks of its rows and of its columns."""
    colour_map, low, high = colour_limits(image, colours, largest)
    heatmap = {
        "type": "heatmap",
        "z": jsonable(np.round(image.astype(np.float64), 4)),
        "zmin": low,
        "zmax": high,
        "colorscale": colour_scale(colour_map),
        "colorbar": {"thickness": 10},
    }
    axes: dict[str, Any] = {"yaxis": {"autorange": "reversed"}, "xaxis": {}}
    for axis, (title, ticks) in zip(axes.values(), sides, strict=True):
        axis["title"] = title
        if ticks is not None:
            axis |= {"tickvals": ticks.places, "ticktext": ticks.labels}
    return Window(name, heatmap, axes)


def episode_windows(episode: Episode) -> list[Window]:
    """The heatmaps of an episode: the panels and stills of the picture in the files, a window each."""
    layout = layout_of(episode)
    panels = [
        heatmap_window(panel.name, panel.image, panel.colours, panel.largest, (panel.rows, panel.ticks), ("step", None))
        for panel in layout.panels
    ]
    stills = []
    for still in layout.all_stills:
        ticks = [None if slots is None else slot_ticks(slots) for slots in still.slots]
        sides = [(f"axis {axis}" if at is None else "slot", at) for axis, at in zip(still.axes, ticks, strict=True)]
        stills.append(heatmap_window(still.name, still.images[-1], still.colours, None, *sides))
    return [*panels, *stills]


def curve_traces(curve: Curve, colour: str, floor: float) -> list[dict[str, Any]]:
    """What plotly draws: the curve or, if it is long, its points faintly and the means of stretches of it on top."""

    def trace(steps: NDArray[np.float64], values: NDArray[np.float64], **style: Any) -> dict[str, Any]:
        values = np.maximum(values, floor) if floor else values
        points = {"x": jsonable(steps), "y": jsonable(values), "name": curve.label, "type": "scatter"}
        return {**points, "mode": "lines+markers" if len(steps) < 12 else "lines", **style}

    bold = {"color": colour, "width": 2}
    if len(curve.stretches) <= RAW_POINTS:
        return [trace(curve.steps, curve.values, line=bold)]
    red, green, blue = (int(part * 255) for part in to_rgb(colour))
    thin = {"color": f"rgba({red}, {green}, {blue}, 0.25)", "width": 1}
    points = trace(*thinned(curve, MAX_POINTS // 2).outline, line=thin, showlegend=False, hoverinfo="skip")
    means = thinned(curve, RAW_POINTS // 2)
    return [points, trace(means.steps, means.values, line=bold)]
