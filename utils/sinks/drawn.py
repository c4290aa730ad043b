"""Watching a run while it trains: pictures in files and in visdom, drawn by another process.

Training only puts things into a mailbox. A thread of this process hands them to a child process through a pipe; the
child draws the files and talks to visdom, on a fifth of one core. Whatever happens to the child or to the server,
training goes on at its own speed: numbers pile up in the mailbox until they can be sent, pictures are dropped when too
many wait.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import pickle
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import Field

from ...core import install
from ...core.options import OptionsError
from ...core.recorder import Chart
from ...core.registry import register
from .. import child_process
from ..plots import Episode
from .base import Sink

logger = logging.getLogger(__name__)

MAX_PICTURES = 8
"""Pictures that wait at most; more are dropped."""
MAX_ROWS = 20_000
"""Rows of numbers that wait at most; then every second one is dropped."""
SEND_SECONDS = 0.25
"""Numbers are collected for this long before they are sent."""
START_SECONDS = 30.0
"""How long a run that insists on visdom waits for it at the start."""


class Plotter(Sink):
    """Takes what a run has to show and returns at once; pictures go to ``plots/`` in the folder of the run, and to
    visdom, in an environment of the run's title (and a number, where the page of another folder has that). See the
    module for how they get drawn.
    """

    mode: Literal["auto", "visdom", "files"] = Field(
        "auto",
        kw_only=False,
        description="files writes PNG files; visdom also shows all in visdom and insists on it; auto does where it can",
    )
    hostname: str = Field(
        "localhost", exclude=True, description="where the visdom server is; one is started if it is here and none is"
    )
    port: int = Field(8097, exclude=True, description="of the visdom server")
    data: Path | None = Field(
        None, exclude=True, description="where a visdom server that is started keeps its data; None takes ~/.visdom"
    )
    user: str | None = Field(None, exclude=True, description="whose login to use if the server asks for one")
    password_file: str | None = Field(None, exclude=True, description="holds the password of that login")

    def setup(self) -> None:
        """Start the drawing process.

        Raises:
            OptionsError: ``visdom`` is asked for and is not installed, or there is no server and none can be started.
        """
        self._changed = threading.Condition()
        self._rows: list[tuple[int, dict[str, float]]] = []
        self._texts: dict[str, str] = {}
        self._pictures: list[tuple[str, str, tuple[Any, ...]]] = []
        self._dropped = 0
        self._closing = False
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = threading.Event()
        self._refusal = ""
        if self.mode == "visdom" and importlib.util.find_spec("visdom") is None:
            raise OptionsError(
                f"plots: got 'visdom', which is not installed; `{install.here(install.VISDOM)}` gets it, "
                "plots=files and plots=off work without it"
            )
        from ..drawing import page, process  # which load matplotlib

        settings = {
            "directory": str(self.directory.absolute()),
            "title": self.title,
            "mode": self.mode,
            "hostname": self.hostname,
            "port": self.port,
            "data": None if self.data is None else str(self.data),
            "user": self.user,
            "password_file": self.password_file,
            "retry": page.RETRY_SECONDS,
            "parent": os.getpid(),
        }
        self._process = subprocess.Popen(
            child_process.command(process.main, json.dumps(settings)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Ctrl-C in the terminal stops the training, which then wants its last pictures drawn.
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._sender = threading.Thread(target=self._send, args=(self._process.stdin,), daemon=True, name="plots")
        self._listener = threading.Thread(
            target=self._listen, args=(self._process, self._process.stdout), daemon=True, name="plots-log"
        )
        self._sender.start()
        self._listener.start()
        if self.mode == "visdom":
            in_time = self._ready.wait(START_SECONDS)
            if not in_time or self._refusal:
                self.close(timeout=0)
                reason = self._refusal or f"it did not start within {START_SECONDS:g} seconds"
                raise OptionsError(f"plots: got 'visdom', but {reason}; plots=files and plots=off work without it")

    def __enter__(self) -> Plotter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether anything that is given to it can still be drawn."""
        return self._process is not None and self._process.returncode is None and not self._closing

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers at a training step, for the curves."""
        if not self.alive:
            return
        with self._changed:
            self._rows.append((step, dict(values)))
            if len(self._rows) > MAX_ROWS:
                del self._rows[1::2]
            self._changed.notify()

    def text(self, name: str, text: str) -> None:
        """A text, such as the run's options, for a visdom window; a later one of the same name replaces it."""
        if not self.alive:
            return
        with self._changed:
            self._texts[name] = text
            self._changed.notify()

    def episode(self, step: int, name: str, episode: Episode) -> None:
        """One answered sequence, for ``plots/<name>.png``, a copy in ``plots/history/`` and visdom.

        One that still waits for its turn gives way to a newer one of the same name; the last is always drawn.
        """
        self._put("episode", name, (step, episode._replace(name=name)._asdict()))

    def animation(self, name: str, episode: Episode) -> None:
        """One answered sequence, for the animation ``plots/<name>.gif``."""
        self._put("animation", name, (0, episode._replace(name=name)._asdict()))

    def chart(self, step: int, name: str, chart: Chart) -> None:
        """Plain data, for ``plots/<name>.png``, a copy in ``plots/history/`` and visdom; see :meth:`episode`."""
        self._put("chart", name, (step, name, type(chart).__name__, chart._asdict()))

    def _put(self, kind: str, name: str, content: tuple[Any, ...]) -> None:
        if not self.alive:
            return
        with self._changed:
            for place, (*waiting, _) in enumerate(self._pictures):
                if waiting == [kind, name]:
                    self._pictures[place] = (kind, name, content)
                    return
            if len(self._pictures) >= MAX_PICTURES:
                self._dropped += 1
                if self._dropped == 1:
                    logger.warning("plots: pictures come faster than they can be drawn; some are left out")
                return
            self._pictures.append((kind, name, content))
            self._changed.notify()

    def close(self, timeout: float = 60.0) -> None:
        """Draw everything that waits and end the child process; after ``timeout`` seconds, give up what still waits."""
        process = self._process
        if process is None or self._closing:
            return
        with self._changed:
            self._closing = True
            self._changed.notify()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            if timeout > 0:
                logger.warning("plots: the last pictures took longer than %g seconds and were given up", timeout)
            process.kill()
            process.wait()
        for thread in (self._sender, self._listener):
            thread.join(5)
        if self._dropped:
            logger.info("plots: %d pictures were left out", self._dropped)

    def _take(self) -> tuple[list[tuple[str, Any]], bool]:
        """Wait until there is something to send; return it, and whether it is the last."""
        with self._changed:
            self._changed.wait_for(lambda: self._rows or self._texts or self._pictures or self._closing)
            messages: list[tuple[str, Any]] = [("text", item) for item in self._texts.items()]
            if self._rows:
                messages.append(("metrics", self._rows))
            # One picture at a time: as long as it is stuck in the pipe, the others still count as waiting.
            if self._pictures:
                kind, _, content = self._pictures.pop(0)
                messages.append((kind, content))
            self._rows, self._texts = [], {}
            return messages, self._closing and not self._pictures

    def _send(self, pipe: IO[bytes]) -> None:
        """Hand what is in the mailbox to the child, in a thread of its own: the pipe may be full for long."""
        # The child is gone if the pipe is broken; the listener says so.
        with contextlib.suppress(OSError):
            last = False
            while not last:
                messages, last = self._take()
                for message in messages:
                    pickle.dump(message, pipe, pickle.HIGHEST_PROTOCOL)
                if last:
                    pickle.dump(("close", None), pipe, pickle.HIGHEST_PROTOCOL)
                pipe.flush()
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, SEND_SECONDS)
        with contextlib.suppress(OSError):
            pipe.close()

    def _listen(self, process: subprocess.Popen[bytes], pipe: IO[bytes]) -> None:
        """Log what the child has to say, in a thread of its own."""
        last_words = ""
        for line in pipe:
            kind, _, text = line.decode(errors="replace").strip().partition(":")
            if kind in ("info", "warning"):
                logger.log(logging.INFO if kind == "info" else logging.WARNING, "plots: %s", text.strip())
            elif kind == "ready":
                self._ready.set()
            elif kind == "refused":
                self._refusal = text.strip()
                self._ready.set()
            elif line.strip():
                last_words = line.decode(errors="replace").strip()
        status = process.wait()
        if not self._closing:
            said = f" ({last_words})" if last_words else ""
            self._refusal = f"the drawing process ended with status {status}{said}"
            logger.warning("plots: %s; the run goes on without new pictures", self._refusal)
        elif status > 0:
            logger.warning("plots: the drawing process ended with status %d (%s)", status, last_words)
        self._ready.set()
        pipe.close()


@register("sink", "auto")
class Auto(Plotter):
    """PNG files, and visdom as well where it is installed and can be reached."""

    mode: Literal["auto"] = Field("auto", init=False)


@register("sink", "visdom")
class Visdom(Plotter):
    """Live plots in visdom, and PNG files."""

    mode: Literal["visdom"] = Field("visdom", init=False)


@register("sink", "files")
class Files(Plotter):
    """PNG files."""

    mode: Literal["files"] = Field("files", init=False)


@register("sink", "off")
class Off(Sink):
    """Nothing at all."""
