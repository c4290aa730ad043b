"""The main loop of the process that draws: it takes what the run sends and draws it, within its budget.

It is started by :class:`~papertape.utils.sinks.drawn.Plotter`, reads messages from its standard input and writes lines
for the log to its standard output.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ...core import install
from ...core import recorder as kinds
from ...core.recorder import Chart
from ..plots import Episode, History, chart_figure
from .files import Files, png
from .pace import POLL_SECONDS, Budget, Schedule
from .page import Page, Visdom
from .pipe import Settings, read_messages, say

CURVES_SECONDS = 3.0
"""Curves are redrawn at most this often."""


def run(settings: Settings, pipe: IO[bytes]) -> None:
    """Draw until the run is over."""
    messages: queue.Queue[tuple[str, Any]] = queue.Queue(4)
    threading.Thread(target=read_messages, args=(pipe, messages), daemon=True).start()
    files = Files(Path(settings.directory))
    history = History()
    curves = Schedule(CURVES_SECONDS)
    budget = Budget()
    page: Page | None = None
    if settings.mode != "files":
        if importlib.util.find_spec("visdom") is None:
            say("info", f"pictures go to files alone; `{install.here(install.VISDOM)}` gets live plots")
        else:
            page = Page(settings, budget)
    pictures: dict[tuple[str, str], tuple[int, Episode | Chart]] = {}

    def on_page(what: str, show: Callable[[Visdom], Any]) -> None:
        if page is not None:
            visdom = page.visdom
            page.put(what, lambda: show(visdom))

    def draw_curves() -> None:
        curves.put_off()
        if history.one_step:
            return
        with budget.spend("the curves"):
            panels = history.panels()
            files.curves(panels)
            on_page("the curves", lambda visdom: visdom.curves(panels))

    def draw_picture() -> None:
        kind, name = next(iter(pictures))
        step, shown = pictures.pop((kind, name))
        what = f"the picture of {name}"
        with budget.spend(what):
            if not isinstance(shown, Episode):
                content = png(chart_figure(f"{name}, step {step}", shown))
                files.drawn(step, name, content)
                on_page(what, lambda visdom: visdom.image(name, content))
            elif kind == "animation":
                files.animation(shown)
            else:
                content = files.episode(step, shown)
                on_page(what, lambda visdom: visdom.episode(step, shown, content))

    open_ = True
    changed = False
    pictures_turn = True
    while open_:
        try:
            kind, content = messages.get(timeout=POLL_SECONDS)
        except queue.Empty:
            kind, content = "nothing", None
            # A process that the run forked may hold the pipe open after the run's death.
            open_ = os.getppid() == settings.parent
        if kind == "metrics":
            history.add(content)
            changed = True
        elif kind == "text":
            name, text = content
            on_page(f"the text {name}", functools.partial(Visdom.text, name=name, text=text))
        elif kind in ("episode", "animation"):
            step, fields = content
            episode = Episode(**fields)
            # One that waits for its turn gives way to a newer one of the same name.
            pictures[kind, episode.name] = (step, episode)
        elif kind == "chart":
            step, name, what, fields = content
            pictures[kind, name] = (step, getattr(kinds, what)(**fields))
        elif kind == "close":
            open_ = False
        if not budget.left():
            continue
        # Turn by turn: either alone could use up the budget for ever.
        if pictures and (pictures_turn or not curves.due()):
            pictures_turn = False
            draw_picture()
        elif changed and curves.due():
            pictures_turn = True
            changed = False
            draw_curves()
    if changed:
        draw_curves()
    while pictures:
        draw_picture()
    if page is not None:
        page.close()


def main(settings: str) -> None:
    """Entry of the child process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run(Settings(**json.loads(settings)), sys.stdin.buffer)
