"""The run's page on a visdom server, which may be lost and come back while the run goes on."""

from __future__ import annotations

import base64
import functools
import html
import io
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ...core import install
from .. import visdom_files, visdom_server
from ..plots import LINES, Curve, Episode, curve_title, is_logarithmic
from .pace import POLL_SECONDS, Budget, Schedule
from .pipe import Settings, say
from .plotly import MARGIN, Window, curve_traces, episode_windows, in_order

RETRY_SECONDS = 15.0
"""A visdom server that was lost is looked for this often."""
SAVE_SECONDS = 60.0
"""The visdom environment is saved to disk this often, and at the end."""
CLOSE_SECONDS = 5.0
"""How long the page may take over what it still has to show when the run is over, once the server is there."""
WINDOW: dict[str, Any] = {"width": 512, "height": 275}
"""Three fit side by side on a screen of 1600 pixels, and three below each other above its lower edge at 1000."""
WIDE_WINDOW: dict[str, Any] = {"width": 1556, "height": 875}
"""As wide as three of them, and as high."""
SLIDER_HEIGHT = 36
"""Pixels of visdom's slider over pictures, which lies on top of them."""
LEADING = ("loss", "bits_wrong", "error", "avoidable_misses", "shortfall", "excess_bits", "fitness")
"""Panels of curves that come first on the page, in this order."""
WAIT_SECONDS = 120.0
"""The page is laid out in the order of arrival: what belongs below the first episode waits for it, at most so long."""
CLAIM = "claim"
"""The window by which a page is a run's until there is one with its title, which has its place below others."""
CLAIM_SECONDS = 0.5
"""From a claim on a page to the look at whose it is: longer than from finding it free to the claim."""
EARLIER_PICTURES = 24
"""Of one name, which the page keeps; beyond that, every second one is left out."""


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
        self.environment = settings.title
        """Whose page it is; see :meth:`claim`."""
        self.panels: dict[str, list[Curve]] = {}
        self.texts: dict[str, str] = {}
        self.episodes: dict[str, tuple[int, list[Window]]] = {}
        self.earlier: dict[str, list[tuple[int, bytes]]] = {}
        self.images: dict[str, bytes] = {}
        self.shown: list[str] = []
        """Windows that are on the page."""
        self.sent: dict[str, list[int]] = {}
        """Of which steps a window has pictures."""
        self.wait_until = math.inf
        self.retry = Schedule(settings.retry)
        self.save_due = time.monotonic() + SAVE_SECONDS
        self.lost = False
        self.known = False
        """Whether there has been a server."""
        self.begun = False
        """Whether it shows this run, and nothing of an earlier one in its folder."""
        self.fetching = False
        """Whether the page lacks its scripts, which the server fetches."""

    def connect(self) -> str:
        """Find the server or start it; return why that failed, or an empty text."""
        problem = self.server.ensure(again=self.known)
        if not problem:
            self.known = True
            try:
                self.begin()
            except visdom_server.ERRORS as error:
                self.client = None
                # It may be what the server holds: a file that it was killed over, say.
                self.begun = False
                problem = f"the visdom server at {self.server.url} failed: {error}"
        self.retry.put_off()
        return problem

    def begin(self) -> None:
        """Show all that is known on a page of the run's own.

        A server that has lost its pages may have given this one to another run meanwhile.
        """
        if not self.begun or not self.owns(self.environment):
            before, self.environment = self.environment, self.claim()
            if self.begun and self.environment != before:
                url = self.server.environment_url(self.environment)
                say("info", f"the page {before} is that of another run now; watch the run at {url}")
        self.client = self.server.client(self.environment)
        self.everything()
        self.begun = True

    def claim(self) -> str:
        """Make a page the run's own; gives its name: the title, with a number where the page of another folder has it.

        What an earlier run in this folder, or this one before it was stopped, has left there is gone.
        """
        for number in itertools.count(1):
            name = self.settings.title if number == 1 else f"{self.settings.title}-{number}"
            # In this order: a page that another run begins meanwhile says whose it is from its first window on.
            there = self.server.has(name)
            owner = self.owner(name)
            if owner is not None and not owner.endswith(self.place):
                continue
            if there:
                self.server.forget(name)
            self.show_owner(self.server.client(name), name, CLAIM)
            if owner is None:
                # Another run may have found it free at the same moment: it is the last one's.
                time.sleep(CLAIM_SECONDS)
            if self.owns(name):
                return name
        raise AssertionError("itertools.count ended")

    def owner(self, name: str) -> str | None:
        """What a page says about the folder that it is of; None if it says nothing."""
        return self.server.text(name, "title") or self.server.text(name, CLAIM)

    def owns(self, name: str) -> bool:
        """Whether a page says that it is of the run's folder."""
        return (self.owner(name) or "").endswith(self.place)

    @property
    def place(self) -> str:
        """By which a page is known as that of a folder."""
        return f"<p>kept in {html.escape(self.settings.directory)}</p>"

    def attempt(self, what: Callable[[], Any]) -> None:
        """Do something on the server; if that fails, the server is lost, and looked for again from time to time."""
        if self.client is None:
            if not self.retry.due() or self.connect():
                return
            if self.lost:
                self.lost = False
                say("info", f"visdom answers again at {self.server.url}")
        try:
            known = self.client.win_exists(self.shown[0] if self.shown else "title")
            if known is None:
                raise ConnectionError("it does not answer")
            if not known and self.shown:
                self.begin()
            what()
        except visdom_server.ERRORS as error:
            self.client = None
            self.retry.put_off()
            already, self.lost = self.lost, True
            if not already:
                where = f"the visdom server at {self.server.url}"
                say("warning", f"{where} was lost ({error}); pictures go to files, and there again when it answers")

    def everything(self) -> None:
        """Show all that is known."""
        self.close_gone()  # while it is known what is shown
        self.shown, self.sent = [], {}
        self.show(lambda window: True)

    def windows(self) -> Iterator[tuple[str, bool, Callable[[], Any]]]:
        """Each window in the order of the page: its name, whether it comes with the first episode or before, and what
        shows it.
        """
        leading = [panel for panel in LEADING if panel in self.panels] or list(self.panels)[:2]
        for panel in leading:
            yield f"curve {panel}", True, functools.partial(self.show_curves, panel)
        first, *others = self.episodes or [""]
        yield from self.windows_of(first, True)
        for panel in self.panels:
            if panel not in leading:
                yield f"curve {panel}", False, functools.partial(self.show_curves, panel)
        for name in self.images:
            yield f"chart {name}", False, functools.partial(self.show_image, name)
        for name in self.texts:
            yield f"text {name}", False, functools.partial(self.show_text, name)
        yield "title", False, self.show_title
        for name in others:
            yield from self.windows_of(name, False)

    def windows_of(self, name: str, first: bool) -> Iterator[tuple[str, bool, Callable[[], Any]]]:
        """Those of an episode; see :meth:`windows`."""
        step, shown = self.episodes.get(name, (0, []))
        for window in shown:
            yield f"{name} {window.name}", first, functools.partial(self.show_window, name, step, window)
        if len(self.earlier.get(name, ())) > 1:
            yield f"{name} over training", False, functools.partial(self.show_earlier, name)

    def show(self, changed: Callable[[str], bool], *, all_of_it: bool = False) -> None:
        """Show windows that have changed and those that were not shown yet, so that the page has them in its order.

        Args:
            changed: whether a window has, by its name.
            all_of_it: also what belongs below the first episode, whether that is there or not.
        """
        if not self.panels and not all_of_it:
            return
        self.close_gone()
        may_follow = all_of_it or bool(self.episodes) or time.monotonic() >= self.wait_until
        for name, first, show in list(self.windows()):
            if changed(name) if name in self.shown else first or may_follow:
                show()
                if name not in self.shown:
                    self.shown.append(name)

    def close_gone(self) -> None:
        """Close the windows of what is no longer there, such as a panel whose rows have moved to another."""
        there = {name for name, *_ in self.windows()}
        for name in [name for name in self.shown if name not in there]:
            if self.client.win_exists(name):
                self.client.close(name)
            self.shown.remove(name)

    def plot(
        self,
        window: str,
        title: str,
        traces: Sequence[dict[str, Any]],
        layout: Mapping[str, Any],
        opts: Mapping[str, Any] = WINDOW,
    ) -> None:
        """Put plotly traces into a window, in place of what it showed."""
        legend = {"x": 1.01, "xanchor": "left", "y": 1, "font": {"size": 9}, "tracegroupgap": 0}
        named = sum(trace.get("showlegend", True) for trace in traces) > 1
        layout = {"margin": MARGIN, "legend": legend, "showlegend": named, **layout}
        opts = {"title": title, **opts}
        self.client._send({"data": traces, "win": window, "eid": self.environment, "layout": layout, "opts": opts})

    def show_title(self) -> None:
        """A window with the name of the run and of its folder, in place of the one that has claimed the page."""
        self.show_owner(self.client, self.environment, "title")
        if self.client.win_exists(CLAIM):
            self.client.close(CLAIM)

    def show_owner(self, client: Any, name: str, window: str) -> None:
        """Say on a page whose it is."""
        client.text(f"<h4>{html.escape(name)}</h4>{self.place}", win=window, opts={"title": "run", **WINDOW})

    def show_text(self, name: str) -> None:
        """A window with a text."""
        page = f"<pre>{html.escape(self.texts[name])}</pre>"
        self.client.text(page, win=f"text {name}", opts={"title": name, **WINDOW})

    def show_window(self, name: str, step: int, window: Window) -> None:
        """A window with a part of an episode."""
        traces = [window.heatmap, *window.above]
        self.plot(f"{name} {window.name}", f"{name}: {window.name}, step {step}", traces, window.axes)

    def show_earlier(self, name: str) -> None:
        """A window with the pictures of an episode in the course of training, and visdom's slider over them."""
        window = f"{name} over training"
        opts = {"title": f"{name} over training", "show_slider": True, **WIDE_WINDOW}
        pictures = self.earlier[name]
        known = self.sent.get(window, []) if window in self.shown else []
        # One that follows those that are there is added; otherwise all are sent anew, since none can be taken out.
        if known != [step for step, _ in pictures[: len(known)]]:
            known = []
        for number, (_, content) in enumerate(pictures[len(known) :]):
            data = [{"content": {"src": as_source(content), "caption": ""}, "type": "image_history"}]
            message = {"data": data, "win": window, "eid": self.environment, "opts": opts}
            self.client._send(message, endpoint="update" if known or number else "events")
        self.sent[window] = [step for step, _ in pictures]

    def show_image(self, name: str) -> None:
        """A window with a PNG."""
        data = [{"content": {"src": as_source(self.images[name]), "caption": ""}, "type": "image"}]
        opts = {"title": name, **WINDOW}
        self.client._send({"data": data, "win": f"chart {name}", "eid": self.environment, "opts": opts})

    def show_curves(self, panel: str) -> None:
        """A window with a panel of curves."""
        curves = self.panels[panel]
        values = np.concatenate([curve.outline[1] for curve in curves])
        vertical: dict[str, Any] = {"rangemode": "tozero"}
        floor = 0.0
        if is_logarithmic(panel, values):
            vertical = {"type": "log"}
            if values.min() == 0:
                # A logarithmic axis has no zero, and a solved task should not drop out of the picture.
                floor = 10.0 ** (np.floor(np.log10(values[values > 0].min())) - 1)
                vertical["title"] = {"text": f"0 is drawn at {floor:g}", "font": {"size": 9}}
        small = {"tickfont": {"size": 9}, "automargin": True}
        traces = [
            trace
            for index, curve in enumerate(curves)
            for trace in curve_traces(curve, LINES[index % len(LINES)], floor)
        ]
        across = {"title": {"text": "training step", "font": {"size": 10}, "standoff": 3}, **small}
        self.plot(f"curve {panel}", curve_title(panel), traces, {"xaxis": across, "yaxis": {**vertical, **small}})

    def add(self, *names: str) -> None:
        """Show windows that have changed, once there are curves, which come first."""
        if self.panels:
            self.attempt(lambda: self.show(names.__contains__))

    def text(self, name: str, text: str) -> None:
        """Take a text and show it."""
        self.texts[name] = text
        self.add(f"text {name}")

    def episode(self, step: int, episode: Episode, picture: bytes | None = None) -> None:
        """Take an episode, and its picture as a PNG, and show it in place of the last of its name."""
        windows = in_order(episode, episode_windows(episode))
        name = episode.name
        self.episodes[name] = (step, windows)
        if picture is not None:
            earlier = self.earlier.setdefault(name, [])
            earlier[:] = [(at, content) for at, content in earlier if at != step] + [(step, for_the_slider(picture))]
            if len(earlier) > EARLIER_PICTURES:
                del earlier[1:-1:2]
        self.add(*(f"{name} {window.name}" for window in windows), f"{name} over training")

    def image(self, name: str, content: bytes) -> None:
        """Take a PNG and show it in place of the last of its name."""
        self.images[name] = content
        self.add(f"chart {name}")

    def curves(self, panels: dict[str, list[Curve]]) -> None:
        """Show all curves that have points."""
        panels = {name: drawn for name, curves in panels.items() if (drawn := [c for c in curves if len(c.stretches)])}
        if not panels:
            return
        if not self.panels:
            self.wait_until = time.monotonic() + WAIT_SECONDS
        self.panels = panels
        self.add(*(f"curve {panel}" for panel in panels))
        if time.monotonic() >= self.save_due:
            self.save()

    def save(self) -> None:
        """Have the server save the environment to disk."""
        self.save_due = time.monotonic() + SAVE_SECONDS
        self.attempt(lambda: self.client.save([self.environment]))

    def start(self) -> None:
        """Connect to the server, or say why not."""
        problem = self.connect()
        if problem and self.settings.mode == "visdom":
            say("refused", problem)
        elif problem:
            say("info", f"{problem}; pictures go to files alone until one answers there")
        else:
            say("ready")
            say("info", f"watch the run at {self.server.environment_url(self.environment)}")
            if self.server.process is not None:
                say("info", f"the page stays when the run is over, until {install.here('papertape page stop')}")
                self.fetching = bool(visdom_files.missing_files())
            if self.fetching:
                say("info", "it lacks its scripts, which are being fetched; what it shows is kept meanwhile")

    def check_files(self) -> None:
        """Say that the page's scripts are there, once they are."""
        if self.fetching and not visdom_files.missing_files():
            self.fetching = False
            say("info", f"the visdom page is ready: {self.server.environment_url(self.environment)}")

    def finish(self) -> None:
        """Show what has had to wait for curves that never came, and save."""
        if self.client is not None:
            self.attempt(lambda: self.show(lambda window: False, all_of_it=True))
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


def as_source(content: bytes) -> str:
    """A PNG as the address of an image on a page."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def for_the_slider(content: bytes) -> bytes:
    """A PNG of moderate size in few colours, with room at the bottom, where the slider lies over it."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    picture.thumbnail((WIDE_WINDOW["width"], 2 * WIDE_WINDOW["height"]))
    room = round(picture.height * SLIDER_HEIGHT / WIDE_WINDOW["height"]) + 1
    padded = Image.new("RGB", (picture.width, picture.height + room), "white")
    padded.paste(picture)
    file = io.BytesIO()
    padded.quantize(255).save(file, format="PNG", optimize=True)
    return file.getvalue()


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
        # A server is lost after as long a silence as is waited for here, and one line about it is enough.
        if self._thread.is_alive() and not self.visdom.lost:
            self.visdom.lost = True
            say("warning", f"the visdom page did not take the last pictures within {CLOSE_SECONDS:g} seconds")
        self.visdom.end()

    def _work(self) -> None:
        with self.budget.spend("the visdom page"):
            try:
                self.visdom.start()
            except Exception as error:
                say("refused", f"{type(error).__name__}: {error}")  # a run that insists on the page waits for a word
                raise
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
