"""The run's page on a visdom server, which may be lost and come back while the run goes on."""

from __future__ import annotations

import base64
import html
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ...core import install
from .. import visdom_files, visdom_server
from ..plots import LINES, Curve, Episode, curve_title
from .pace import POLL_SECONDS, Budget, Schedule
from .pipe import Settings, say
from .plotly import curve_traces, episode_windows

RETRY_SECONDS = 15.0
"""A visdom server that was lost is looked for this often."""
SAVE_SECONDS = 60.0
"""The visdom environment is saved to disk this often, and at the end."""
CLOSE_SECONDS = 5.0
"""How long the page may take over what it still has to show when the run is over, once the server is there."""
WINDOW: dict[str, Any] = {"width": 400, "height": 300}
LEGEND_WIDTH = 240
"""Added to the width of a window with several curves."""


class Visdom:
    """The run's environment on a visdom server, which may come and go.

    Everything that the page shows is kept here, so that a server that was lost and comes back gets all of it.
    """

    def __init__(self, settings: Settings) -> None:
        """
        Args:
            settings: where the server is.
        """
        self.settings = settings
        self.server = visdom_server.Server(
            settings.hostname, settings.port, settings.data, settings.user, settings.password_file
        )
        self.client: Any = None
        self.panels: dict[str, list[Curve]] = {}
        self.texts: dict[str, str] = {}
        self.episodes: dict[str, tuple[int, Episode]] = {}
        self.images: dict[str, bytes] = {}
        self.retry = Schedule(settings.retry)
        self.save_due = time.monotonic() + SAVE_SECONDS
        self.lost = False
        self.known = False
        """Whether there has been a server."""
        self.begun = False
        """Whether it shows this run, and nothing of an earlier one of its name."""
        self.fetching = False
        """Whether the page lacks its scripts, which the server fetches."""

    def connect(self) -> str:
        """Find the server or start it; return why that failed, or an empty text."""
        problem = self.server.ensure(again=self.known)
        if not problem:
            self.known = True
            try:
                self.client = self.server.client(self.settings.title)
                if not self.begun:
                    # What an earlier run of that name, or this one before it was stopped, has left there.
                    self.server.forget(self.settings.title)
                self.everything()
                self.begun = True
            except visdom_server.ERRORS as error:
                self.client = None
                # It may be what the server holds: a file that it was killed over, say.
                self.begun = False
                problem = f"the visdom server at {self.server.url} failed: {error}"
        self.retry.put_off()
        return problem

    def attempt(self, what: Callable[[], Any]) -> None:
        """Do something on the server; if that fails, the server is lost, and looked for again from time to time."""
        if self.client is None:
            if not self.retry.due() or self.connect():
                return
            if self.lost:
                self.lost = False
                say("info", f"visdom answers again at {self.server.url}")
        try:
            known = self.client.win_exists("title")
            if known is None:
                raise ConnectionError("it does not answer")
            if not known:
                self.everything()
            what()
        except visdom_server.ERRORS as error:
            self.client = None
            self.retry.put_off()
            if not self.lost:
                where = f"the visdom server at {self.server.url}"
                say("warning", f"{where} was lost ({error}); pictures go to files, and there again when it answers")
            self.lost = True

    def everything(self) -> None:
        """Show all that is known."""
        run = f"<h4>{html.escape(self.settings.title)}</h4><p>kept in {html.escape(self.settings.directory)}</p>"
        self.client.text(run, win="title", opts={"title": "run", **WINDOW})
        self.show_curves()
        for step, episode in self.episodes.values():
            self.show_episode(step, episode)
        for name, content in self.images.items():
            self.show_image(name, content)
        for name, text in self.texts.items():
            self.show_text(name, text)

    def plot(self, window: str, title: str, traces: list[dict[str, Any]], axes: dict[str, Any]) -> None:
        """Put plotly traces into a window, in place of what it showed."""
        legend = {"x": 1.02, "xanchor": "left", "y": 1, "font": {"size": 10}}
        layout = {"margin": {"l": 55, "r": 15, "t": 25, "b": 40}, "legend": legend, **axes}
        opts = {"title": title, **WINDOW}
        if sum(trace.get("showlegend", True) for trace in traces) > 1:
            opts["width"] += LEGEND_WIDTH
        self.client._send({"data": traces, "win": window, "eid": self.settings.title, "layout": layout, "opts": opts})

    def show_text(self, name: str, text: str) -> None:
        """A window with a text."""
        page = f"<pre>{html.escape(text)}</pre>"
        self.client.text(page, win=f"text {name}", opts={"title": name, **WINDOW})

    def show_episode(self, step: int, episode: Episode) -> None:
        """A window for each part of an episode."""
        for window in episode_windows(episode):
            title = f"{episode.name}: {window.name}, step {step}"
            self.plot(f"{episode.name} {window.name}", title, [window.heatmap], window.axes)

    def show_image(self, name: str, content: bytes) -> None:
        """A window with a PNG."""
        source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        data = [{"content": {"src": source, "caption": ""}, "type": "image"}]
        opts = {"title": name, **WINDOW}
        self.client._send({"data": data, "win": f"chart {name}", "eid": self.settings.title, "opts": opts})

    def show_curves(self) -> None:
        """A window for each panel of curves."""
        for panel, curves in self.panels.items():
            values = np.concatenate([curve.outline[1] for curve in curves])
            positive = values[values > 0]
            title = curve_title(panel)
            vertical: dict[str, Any] = {"rangemode": "tozero"}
            floor = 0.0
            if values.size and values.min() >= 0 and positive.size and positive.max() > 10 * positive.min():
                vertical = {"type": "log"}
                if values.min() == 0:
                    # A logarithmic axis has no zero, and a solved task should not drop out of the picture.
                    floor = 10.0 ** (np.floor(np.log10(positive.min())) - 1)
                    vertical["title"] = f"0 is drawn at {floor:g}"
            traces = [
                trace
                for index, curve in enumerate(curves)
                for trace in curve_traces(curve, LINES[index % len(LINES)], floor)
            ]
            self.plot(f"curve {panel}", title, traces, {"xaxis": {"title": "training step"}, "yaxis": vertical})

    def add(self, what: Callable[[], Any]) -> None:
        """Show something, once there are curves: the page is laid out in the order of arrival, and they come first."""
        if self.panels:
            self.attempt(what)

    def text(self, name: str, text: str) -> None:
        """Take a text and show it."""
        self.texts[name] = text
        self.add(lambda: self.show_text(name, text))

    def episode(self, step: int, episode: Episode) -> None:
        """Take an episode and show it in place of the last of its name."""
        self.episodes[episode.name] = (step, episode)
        self.add(lambda: self.show_episode(step, episode))

    def image(self, name: str, content: bytes) -> None:
        """Take a PNG and show it in place of the last of its name."""
        self.images[name] = content
        self.add(lambda: self.show_image(name, content))

    def curves(self, panels: dict[str, list[Curve]]) -> None:
        """Show all curves."""
        begins = not self.panels
        self.panels = panels
        self.attempt(self.everything if begins else self.show_curves)
        if time.monotonic() >= self.save_due:
            self.save()

    def save(self) -> None:
        """Have the server save the environment to disk."""
        self.save_due = time.monotonic() + SAVE_SECONDS
        self.attempt(lambda: self.client.save([self.settings.title]))

    def start(self) -> None:
        """Connect to the server, or say why not."""
        problem = self.connect()
        if problem and self.settings.mode == "visdom":
            say("refused", problem)
        elif problem:
            say("info", f"{problem}; pictures go to files alone until one answers there")
        else:
            say("ready")
            say("info", f"watch the run at {self.server.environment_url(self.settings.title)}")
            if self.server.process is not None:
                say("info", f"the page stays when the run is over, until {install.here('papertape page stop')}")
                self.fetching = bool(visdom_files.missing_files())
            if self.fetching:
                say("info", "it lacks its scripts, which are being fetched; what it shows is kept meanwhile")

    def check_files(self) -> None:
        """Say that the page's scripts are there, once they are."""
        if self.fetching and not visdom_files.missing_files():
            self.fetching = False
            say("info", f"the visdom page is ready: {self.server.environment_url(self.settings.title)}")

    def finish(self) -> None:
        """Show what has had to wait for curves that never came, and save."""
        if self.client is not None and not self.panels:
            self.attempt(self.everything)
        if self.client is not None:
            self.save()

    def end(self) -> None:
        """Say what is missing when the run is over."""
        self.check_files()
        if self.fetching:
            say(
                "warning",
                "the visdom page's scripts have not been fetched: curves are kept, but the page stays empty until "
                f"`{install.here('papertape page fetch')}` has run; {self.server.log} says more",
            )


class Page:
    """The visdom page, in a thread of its own: whatever the server does, files are drawn and the run ends in time."""

    def __init__(self, settings: Settings, budget: Budget) -> None:
        """
        Args:
            settings: where the server is.
            budget: shared with what draws the files.
        """
        self.visdom = Visdom(settings)
        self.budget = budget
        self._changed = threading.Condition()
        self._waiting: dict[str, Callable[[], Any]] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="page")
        self._thread.start()

    def put(self, what: str, show: Callable[[], Any]) -> None:
        """Have something shown; what waits under the same name gives way to it."""
        with self._changed:
            self._waiting[what] = show
            self._changed.notify()

    def close(self) -> None:
        """Show all that waits, unless there is no server or it takes too long over it."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        while self._thread.is_alive() and self.visdom.server.looking:
            self._thread.join(POLL_SECONDS)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            say("warning", f"the visdom page did not take the last pictures within {CLOSE_SECONDS:g} seconds")
        self.visdom.end()

    def _work(self) -> None:
        with self.budget.spend("the visdom page"):
            self.visdom.start()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or (self._waiting and self.budget.left()), POLL_SECONDS)
                # A server that is not there is not looked for again.
                if self._closing and (not self._waiting or self.visdom.client is None):
                    break
                ready = self._waiting and (self._closing or self.budget.left())
                what = next(iter(self._waiting)) if ready else ""
                show = self._waiting.pop(what, None)
            self.visdom.check_files()
            if show is not None:
                with self.budget.spend(f"{what} on the page"):
                    show()
        with self.budget.spend("the visdom page"):
            self.visdom.finish()
