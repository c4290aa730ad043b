"""Where the metrics and the pictures of a run go: files and visdom, which another process draws, and anyone's own."""

from .base import Sink
from .drawn import Off, Plotter
from .several import Plots, Sinks

__all__ = ["Off", "Plots", "Plotter", "Sink", "Sinks"]
