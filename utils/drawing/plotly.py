"""Episodes and curves as plotly draws them in the visdom page, in the colours of the files."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import Colormap, to_hex, to_rgb
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from ..plots import (
    Array,
    Curve,
    Episode,
    Panel,
    Pixels,
    Still,
    is_noisy,
    layout_of,
    slot_ticks,
    smoothed,
    thinned,
    wrong_bits,
)
from ..plots.fields import READ_HEADS, title_of
from ..plots.figure import EXAMPLES_ACROSS, answer_to, class_names
from ..plots.panels import BITS, CHOSEN, MUTED, WRONG, Scale, Ticks, pooled

MAX_POINTS = 1000
"""Of a curve in the visdom page."""
MAX_CELLS = 400
"""Rows and columns of a heatmap in the page; more share cells."""
MAX_SLIDER, MAX_SLIDER_CELLS = 64, 160_000
"""Steps of a slider, and the cells of all of them together."""
ENLARGED = 240
"""Pixels that a small picture is enlarged to, about."""
MARGIN = {"l": 50, "r": 12, "t": 30, "b": 34}
"""Pixels around what is drawn in a window."""


def colour_scale(colours: Colormap) -> list[tuple[float, str]]:
    """A colour map for plotly: the same colours as in the files."""
    return [(place, to_hex(colours(place))) for place in np.linspace(0, 1, 17).tolist()]


def jsonable(values: NDArray[np.floating[Any]]) -> Any:
    """Nested lists of numbers, with null for what JSON has no number for."""
    plain = values.astype(object)
    plain[~np.isfinite(values)] = None
    return plain.tolist()


class Window(NamedTuple):
    """A heatmap of the visdom page: what plotly draws, and its layout."""

    name: str
    heatmap: dict[str, Any]
    axes: dict[str, Any]
    """Axes, lines and a slider."""
    above: Sequence[dict[str, Any]] = ()
    """What is drawn on top of the heatmap."""


def heatmap_window(name: str, image: Array, scale: Scale, rows: Side, columns: Side) -> Window:
    """A window that shows an image ``[rows, columns]``."""
    heatmap = {
        "type": "heatmap",
        "z": cells(image),
        "zmin": scale.low,
        "zmax": scale.high,
        "colorscale": colour_scale(scale.colours),
        "showscale": scale != Scale(BITS, 0.0, 1.0),
        "colorbar": {"thickness": 8, "len": 0.9, "tickfont": {"size": 9}, "x": 1.01, "xpad": 0},
    }
    axes: dict[str, Any] = {}
    shrunk = pooled(image, MAX_CELLS).shape
    for name_, side, total, drawn, letter in (
        ("yaxis", rows, image.shape[0], shrunk[0], "y"),
        ("xaxis", columns, image.shape[1], shrunk[1], "x"),
    ):
        limits = [-0.5, max(total, 1) - 0.5]
        # Said outright: visdom's page keeps the range that an axis had before, unless the new one has its own.
        axis = {"title": {"text": side.title, "font": {"size": 10}, "standoff": 3}, "autorange": False}
        axis |= {"tickfont": {"size": 9}, "zeroline": False, "showgrid": False, "automargin": True}
        axis["range"] = limits[::-1] if letter == "y" else limits
        ticks = numbered(total) if side.ticks is None else side.ticks
        axis |= {"tickvals": ticks.places, "ticktext": ticks.labels}
        axes[name_] = axis
        if drawn < total:
            factor = -(-total // MAX_CELLS)
            heatmap |= {f"{letter}0": (factor - 1) / 2, f"d{letter}": factor}
    return Window(name, heatmap, axes)


class Side(NamedTuple):
    """Rows or columns of a heatmap."""

    title: str
    ticks: Ticks | None = None


def numbered(count: int) -> Ticks:
    """Some of so many rows or columns, by their numbers."""
    wanted = MaxNLocator(8, integer=True, min_n_ticks=1).tick_values(0, max(count - 1, 0))
    at = [int(place) for place in wanted if 0 <= place < max(count, 1)]
    return Ticks([float(place) for place in at], [str(place) for place in at])


def cells(image: Array, digits: int = 4) -> Any:
    """What plotly takes as the values of a heatmap; of more cells than :data:`MAX_CELLS` some share one."""
    return jsonable(np.round(pooled(image, MAX_CELLS).astype(np.float64), digits))


def slider(steps: Sequence[int], method: str, changes: Sequence[list[Any]], prefix: str = "step ") -> dict[str, Any]:
    """The layout of a window with a slider, which stands at its end."""
    marks = [
        {"label": str(step), "method": method, "args": change} for step, change in zip(steps, changes, strict=True)
    ]
    style = {
        "currentvalue": {"prefix": prefix, "font": {"size": 10}, "xanchor": "right", "offset": 4},
        "pad": {"t": 26, "b": 0},
        "font": {"size": 8},
        "len": 0.87,  # to the right of it is visdom's link
        "x": 0,
        "ticklen": 3,
        "minorticklen": 2,
        "bgcolor": "#dddddd",
        "transition": {"duration": 0},
    }
    return {"sliders": [{**style, "active": len(marks) - 1, "steps": marks}], "margin": {**MARGIN, "b": 62}}


def marks(step: NDArray[Any], row: NDArray[Any], **marker: Any) -> dict[str, Any]:
    """Markers on some cells of a heatmap."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": step.tolist(),
        "y": row.tolist(),
        "marker": marker,
        "showlegend": False,
        "hoverinfo": "skip",
    }


def panel_window(panel: Panel, episode: Episode) -> Window:
    """A panel over time: its rows parted as in the files, wrong bits in red, what was chosen marked."""
    rows, columns = Side(panel.rows, panel.ticks), Side("step")
    window = heatmap_window(panel.name, panel.image, panel.scale, rows, columns)
    shapes: list[dict[str, Any]] = [
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": {"color": MUTED, "width": 1}}
        for y in panel.lines
    ]
    above = []
    if panel.judged:
        assert episode.mask is not None
        step, bit = np.nonzero(wrong_bits(episode))
        above = [marks(step, bit, symbol="square-open", size=6, color=WRONG)] if len(step) else []
        edges = np.flatnonzero(np.diff(episode.mask <= 0, prepend=False, append=False))
        veil = {"type": "rect", "yref": "paper", "y0": 0, "y1": 1, "fillcolor": "white", "opacity": 0.55}
        shapes += [
            {**veil, "x0": first - 0.5, "x1": behind - 0.5, "line": {"width": 0}}
            for first, behind in edges.reshape(-1, 2).tolist()
        ]
    elif panel.marked is not None:
        row, step = np.nonzero(panel.marked)
        above = [marks(step, row, size=5, color=CHOSEN)]
    return window._replace(axes={**window.axes, **({"shapes": shapes} if shapes else {})}, above=above)


def still_window(still: Still) -> Window:
    """A memory or a matrix, with a slider over the steps of the episode."""
    sides = [
        Side(title, None if slots is None else slot_ticks(slots))
        for title, slots in zip(still.titles, still.slots, strict=True)
    ]
    window = heatmap_window(still.name, still.images[-1], still.scale, sides[0], sides[1])
    shown = pooled(still.images[-1], MAX_CELLS).size
    most = int(min(MAX_SLIDER, max(MAX_SLIDER_CELLS // max(shown, 1), 1)))
    steps = np.unique(np.linspace(0, len(still.images) - 1, most).round().astype(int)).tolist()
    if len(steps) < 2:
        return window
    changes = [[{"z": [cells(still.images[step], 3)]}, [0]] for step in steps]
    return window._replace(axes={**window.axes, **slider(steps, "restyle", changes)})


def picture_window(name: str, steps: Sequence[int], pictures: Pixels) -> Window:
    """What something looks like, with a slider over the steps of the episode."""
    sources = [picture_source(picture) for picture in pictures]
    place: dict[str, Any] = {
        "xref": "paper",
        "yref": "paper",
        "x": 0.5,
        "y": 1,
        "sizex": 1,
        "sizey": 1,
        "sizing": "contain",
    }
    place["xanchor"] = "center"
    nothing = marks(np.zeros(0), np.zeros(0))
    hidden = {"visible": False, "autorange": False, "range": [0, 1]}
    changes = [[{"images[0].source": source}] for source in sources]
    layout = {"images": [{**place, "source": sources[-1]}], "xaxis": hidden, "yaxis": hidden}
    return Window(name, nothing, {**layout, **slider(steps, "relayout", changes)})


def picture_source(picture: Pixels) -> str:
    """A picture ``[rows, columns, 3]`` as the address of an image on a page; small ones are enlarged."""
    factor = max(1, ENLARGED // max(picture.shape[:2]))
    file = io.BytesIO()
    Image.fromarray(picture.repeat(factor, 0).repeat(factor, 1)).save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def examples_window(episode: Episode) -> Window:
    """Images side by side, each with its answer."""
    assert episode.inputs is not None
    assert episode.image_shape is not None
    rows, columns = episode.image_shape
    across = min(len(episode.inputs), EXAMPLES_ACROSS)
    down = -(-len(episode.inputs) // across)
    room = max(rows // 4, 2)
    mosaic = np.full((down * (rows + room), across * (columns + 1)), np.nan, np.float32)
    names = class_names(episode)
    notes = []
    for number, pixels in enumerate(episode.inputs):
        top, left = number // across * (rows + room) + room, number % across * (columns + 1)
        mosaic[top : top + rows, left : left + columns] = pixels.reshape(rows, columns)
        text, colour = answer_to(episode, number, names)
        note = {"text": text, "x": left - 0.5, "y": top - 0.5, "xanchor": "left", "yanchor": "bottom"}
        notes.append({**note, "showarrow": False, "font": {"size": 10, "color": colour}, "borderpad": 0})
    scale = Scale(BITS.reversed(), min(0.0, float(episode.inputs.min())), max(1.0, float(episode.inputs.max())))
    window = heatmap_window("images", mosaic, scale, Side(""), Side(""))
    window.heatmap["showscale"] = False
    axes = {name: {**axis, "visible": False} for name, axis in window.axes.items()}
    return window._replace(axes={**axes, "annotations": notes})


def episode_windows(episode: Episode) -> list[Window]:
    """The heatmaps of an episode: the panels and stills of the picture in the files, a window each."""
    if episode.examples:
        return [examples_window(episode)]
    layout = layout_of(episode)
    panels = [panel_window(panel, episode) for panel in layout.panels]
    pictures = [picture_window(title_of(name), *shown) for name, shown in episode.pictures.items()]
    return [*panels, *(still_window(still) for still in layout.all_stills), *pictures]


def in_order(episode: Episode, windows: Sequence[Window]) -> list[Window]:
    """The windows of an episode in the order of the page: the memory, where it is written and read, the answer, the
    question; then all else.
    """
    weightings = [
        (title_of(name), READ_HEADS in seen.axes)
        for name, seen in episode.of_kind("weighting").items()
        if name in ("write_weights", "read_weights") or "N" in seen.axes
    ]
    worded = sorted(weightings, key=lambda found: (found[0] not in ("write weights", "read weights"), found[1]))
    first = [
        *(title_of(name) for name in (*episode.pictures, *episode.of_kind("memory"))),
        *(next((title for title, reads in worded if reads == side), "") for side in (False, True)),
        *("output", "input", "observation", "target", "reward", "usage", "gates"),
    ]
    taken = []
    for begins in filter(None, first):
        named = [window for window in windows if window not in taken and f"{window.name}, ".startswith(f"{begins}, ")]
        taken += named[:1]
    return [*taken, *(window for window in windows if window not in taken)]


def curve_traces(curve: Curve, colour: str, floor: float) -> list[dict[str, Any]]:
    """What plotly draws: the curve or, if it is long and noisy, its points faintly and a smoothed curve on top."""

    def trace(steps: NDArray[np.float64], values: NDArray[np.float64], **style: Any) -> dict[str, Any]:
        values = np.maximum(values, floor) if floor else values
        points = {"x": jsonable(steps), "y": jsonable(values), "name": curve.label, "type": "scatter"}
        return {**points, "mode": "lines+markers" if len(steps) < 12 else "lines", **style}

    bold = {"color": colour, "width": 2}
    if not is_noisy(curve):
        few = thinned(curve, MAX_POINTS)
        return [trace(few.steps, few.values, line=bold)]
    red, green, blue = (int(part * 255) for part in to_rgb(colour))
    thin = {"color": f"rgba({red}, {green}, {blue}, 0.25)", "width": 1}
    points = trace(*thinned(curve, MAX_POINTS // 2).outline, line=thin, showlegend=False, hoverinfo="skip")
    return [points, trace(*smoothed(curve), line=bold)]
