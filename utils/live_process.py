"""The child process of :class:`~papertape.utils.sinks.Plotter`: draws files and talks to visdom.

It reads messages from its standard input and writes lines for the log to its standard output. It must not import torch.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import html
import importlib.util
import io
import json
import os
import pickle
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from matplotlib.colors import Colormap, to_hex, to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..core import install
from ..core import recorder as kinds
from ..core.recorder import Picture
from . import child_process, visdom_files, visdom_server
from .files import replacing
from .plots import (
    LINES,
    RAW_POINTS,
    Array,
    Colours,
    Curve,
    Episode,
    History,
    colour_limits,
    curve_title,
    curves_figure,
    episode_figure,
    layout_of,
    memory_gif,
    picture_figure,
    slot_ticks,
    thinned,
)

POLL_SECONDS = 0.5
CURVES_SECONDS = 3.0
"""Curves are redrawn at most this often."""
RETRY_SECONDS = 15.0
"""A visdom server that was lost is looked for this often."""
SAVE_SECONDS = 60.0
"""The visdom environment is saved to disk this often, and at the end."""
ORPHAN_SECONDS = 20.0
"""How long the process may take to finish when the run has died."""
CLOSE_SECONDS = 30.0
"""How long the page may take over what it still has to show when the run is over."""
KEPT_PICTURES = 40
"""Of one name; beyond that, every second one is deleted."""
MAX_POINTS = 1000
"""Of a curve in the visdom page."""
WINDOW: dict[str, Any] = {"width": 400, "height": 300}
LEGEND_WIDTH = 240
"""What a window with several curves is wider."""
MISSING_FILES = f"curves are kept, but the page stays empty until `{visdom_files.COMMAND}` has run"


class Settings(NamedTuple):
    """What the run says at the start; see :class:`~papertape.utils.sinks.Plotter`."""

    directory: str
    title: str
    mode: str
    hostname: str
    port: int
    data: str | None
    retry: float
    parent: int


def say(kind: str, text: str = "") -> None:
    """Send a line to the run: ``info`` and ``warning`` go to its log."""
    # A run that is gone does not listen; the last pictures are drawn all the same.
    with contextlib.suppress(OSError):
        # In one piece: another thread may have something to say at the same time.
        sys.stdout.write(f"{kind}: {' '.join(text.split())}\n")
        sys.stdout.flush()


def file_name(name: str) -> str:
    """A name made fit for a file: ``length 40`` becomes ``length-40``."""
    return re.sub(r"[^\w.=+-]+", "-", name).strip("-.") or "episode"


class Schedule:
    """Says when something is due: a given time after the last time, or later if it is held back."""

    def __init__(self, seconds: float) -> None:
        """
        Args:
            seconds: from one time to the next, and to the first.
        """
        self.seconds = seconds
        self.put_off()

    def put_off(self) -> None:
        """Due ``seconds`` from now."""
        self.due_at = time.monotonic() + self.seconds

    def due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() >= self.due_at


class Budget:
    """Lets this process work on a fifth of one core, so that training has the rest."""

    def __init__(self) -> None:
        """Nothing is spent yet."""
        self.free_at = 0.0
        self.failed: set[str] = set()

    def left(self) -> bool:
        """Whether there is something to spend."""
        return time.monotonic() >= self.free_at

    @contextlib.contextmanager
    def spend(self, what: str) -> Iterator[None]:
        """Do some work; the next waits four times as long as it kept the core busy.

        What cannot be done costs one warning, and nothing of the rest.
        """
        start = time.thread_time()
        try:
            yield
        except Exception as error:
            if what not in self.failed:
                say("warning", f"{what} could not be drawn: {type(error).__name__}: {error}")
            self.failed.add(what)
        finally:
            self.free_at = max(self.free_at, time.monotonic()) + 4 * (time.thread_time() - start)


def png(figure: Figure) -> bytes:
    """A figure as a PNG file's content."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


class Files:
    """Pictures as files below ``plots/``."""

    def __init__(self, directory: Path) -> None:
        """
        Args:
            directory: of the run.
        """
        self.plots = directory / "plots"
        self.failed = False

    def replacing(self, path: Path) -> contextlib.AbstractContextManager[Path]:
        """See :func:`~papertape.utils.files.replacing`; the folder is made where there is none."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return replacing(path)

    @contextlib.contextmanager
    def forgiving(self) -> Iterator[None]:
        """A full or vanished disk costs a warning."""
        try:
            yield
        except OSError as error:
            if not self.failed:
                say("warning", f"pictures cannot be written: {error}")
            self.failed = True

    def curves(self, panels: dict[str, list[Curve]]) -> None:
        """Write ``curves.png``."""
        with self.forgiving(), self.replacing(self.plots / "curves.png") as path:
            curves_figure(panels).savefig(path, format="png")

    def episode(self, step: int, episode: Episode) -> None:
        """Write ``<name>.png``, and a copy that bears the step to ``history/``."""
        titled = episode._replace(name=f"{episode.name}, step {step}")
        self.drawn(step, episode.name, png(episode_figure(titled)))

    def drawn(self, step: int, name: str, content: bytes) -> None:
        """Write a PNG as ``<name>.png``, and a copy that bears the step to ``history/``."""
        name = file_name(name)
        with self.forgiving():
            with self.replacing(self.plots / f"{name}.png") as path:
                path.write_bytes(content)
            kept = self.plots / "history" / f"{name}-{step:07d}.png"
            with self.replacing(kept) as path:
                path.write_bytes(content)
            steps = re.compile(re.escape(name) + r"-\d+\.png")
            copies = sorted(copy for copy in kept.parent.iterdir() if steps.fullmatch(copy.name))
            for copy in copies[1:-1:2] if len(copies) > KEPT_PICTURES else ():
                copy.unlink()

    def animation(self, episode: Episode) -> None:
        """Write ``<name>.gif``."""
        with self.forgiving(), self.replacing(self.plots / f"{file_name(episode.name)}.gif") as path:
            memory_gif(path, episode)


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
        self.server = visdom_server.Server(settings.hostname, settings.port, settings.data)
        self.client: Any = None
        self.panels: dict[str, list[Curve]] = {}
        self.texts: dict[str, str] = {}
        self.episodes: dict[str, tuple[int, Episode]] = {}
        self.images: dict[str, bytes] = {}
        self.retry = Schedule(settings.retry)
        self.save_due = time.monotonic() + SAVE_SECONDS
        self.lost = False
        self.fetching: subprocess.Popen[bytes] | None = None

    def connect(self) -> str:
        """Find the server or start it; return why that failed, or an empty text."""
        problem = self.server.ensure()
        if not problem:
            try:
                self.client = self.server.client(self.settings.title)
                self.everything()
            except visdom_server.ERRORS as error:
                self.client = None
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
        self.client._send({"data": data, "win": f"picture {name}", "eid": self.settings.title, "opts": opts})

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
            self.fetch_files()

    def fetch_files(self) -> None:
        """Start fetching the page's files if they are missing; curves are kept meanwhile."""
        if self.server.process is not None and visdom_files.missing_files():
            say("info", "the visdom page lacks its scripts, which are being fetched; what it shows is kept meanwhile")
            self.fetching = subprocess.Popen(
                child_process.command(visdom_files.fetch),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )

    def check_files(self) -> None:
        """Say how the fetching ended, if it has."""
        if self.fetching is None or self.fetching.poll() is None:
            return
        if self.fetching.returncode == 0:
            say("info", f"the visdom page is ready: {self.server.environment_url(self.settings.title)}")
        else:
            said = (self.fetching.communicate()[1].decode(errors="replace").strip() or "no reason given").splitlines()
            say("warning", f"the visdom page's scripts could not be fetched: {MISSING_FILES} ({said[-1]})")
        self.fetching = None

    def finish(self) -> None:
        """Show what has had to wait for curves that never came, and save."""
        if not self.panels:
            self.attempt(self.everything)
        if self.client is not None:
            self.save()

    def end(self) -> None:
        """Stop what was started here: the server, and the fetching of files with all that it has started itself."""
        self.check_files()
        if self.fetching is not None:
            with contextlib.suppress(OSError):
                os.killpg(self.fetching.pid, signal.SIGKILL)
            self.fetching.communicate()
            self.fetching = None
            say("warning", f"the visdom page's scripts were not fetched in time: {MISSING_FILES}")
        if self.server.process is not None:
            say("info", f"the visdom server ends with this run; `{visdom_server.COMMAND}` shows its curves again")
        self.server.stop()


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
        """Show all that waits, unless the server takes too long over it, and end what was started."""
        with self._changed:
            self._closing = True
            self._changed.notify()
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
                if self._closing and not self._waiting:
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


def read_messages(pipe: IO[bytes], messages: queue.Queue[tuple[str, Any]]) -> None:
    """Move messages from the run's pipe to a short queue, until the run closes it or dies."""
    try:
        while True:
            message = pickle.load(pipe)
            messages.put(message)
            if message[0] == "close":
                return
    except (EOFError, OSError, pickle.UnpicklingError):
        timer = threading.Timer(ORPHAN_SECONDS, os._exit, (1,))
        timer.daemon = True
        timer.start()
        messages.put(("close", None))


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
            say("info", f"pictures go to files alone; `{install.VISDOM}` gets live plots")
        else:
            page = Page(settings, budget)
    pictures: dict[tuple[str, str], tuple[int, Episode | Picture]] = {}

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
                content = png(picture_figure(f"{name}, step {step}", shown))
                files.drawn(step, name, content)
                on_page(what, lambda visdom: visdom.image(name, content))
            elif kind == "animation":
                files.animation(shown)
            else:
                files.episode(step, shown)
                on_page(what, lambda visdom: visdom.episode(step, shown))

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
        elif kind == "picture":
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
    with contextlib.suppress(OSError, AttributeError):
        os.nice(10)
    run(Settings(**json.loads(settings)), sys.stdin.buffer)
