"""Pictures of a run: curves, one episode with what the memory did, and the memory at work as an animation.

Only numpy, matplotlib and Pillow are needed to draw, and nothing here touches pyplot's global state, so the figures can
be drawn in any thread or process. matplotlib takes a second to load: it is, with the first figure that is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ...core.recorder import Chart
from .episode import Array, Episode, Pixels, Seen, episode_from, wrong_bits
from .trace import plot_trace

if TYPE_CHECKING:
    from .animation import memory_gif
    from .charts import chart_figure, network_figure
    from .curves import (
        RAW_POINTS,
        Curve,
        History,
        curve_title,
        curves_figure,
        is_logarithmic,
        is_noisy,
        smoothed,
        thinned,
    )
    from .fields import Panel, Still, layout_of
    from .figure import episode_figure
    from .panels import LINES, Colours, colour_limits, slot_ticks

__all__ = [
    "LINES",
    "RAW_POINTS",
    "Array",
    "Chart",
    "Colours",
    "Curve",
    "Episode",
    "History",
    "Panel",
    "Pixels",
    "Seen",
    "Still",
    "colour_limits",
    "curve_title",
    "curves_figure",
    "episode_figure",
    "episode_from",
    "is_logarithmic",
    "is_noisy",
    "layout_of",
    "memory_gif",
    "network_figure",
    "chart_figure",
    "plot_trace",
    "slot_ticks",
    "smoothed",
    "thinned",
    "wrong_bits",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in ("animation", "curves", "fields", "figure", "panels", "charts"):
            found = vars(importlib.import_module(f".{module}", __name__))
            if name in found:
                return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
