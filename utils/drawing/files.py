"""Curves, episodes and animations as files in the folder of the run."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from ..files import replacing
from ..plots import Curve, Episode, curves_figure, episode_figure, memory_gif
from .pipe import say

KEPT_PICTURES = 40
"""Of one name; beyond that, every second one is deleted."""
FILE_NAME_BYTES = 180
"""Of a name; file systems allow 255, of which the step, the ending and what marks a file in the making need some."""


def file_name(name: str) -> str:
    """A name made fit for a file: ``length 40`` becomes ``length-40``; what is too long ends in a hash instead."""
    fit = re.sub(r"[^\w.=+-]+", "-", name).strip("-.") or "episode"
    if len(fit.encode()) <= FILE_NAME_BYTES:
        return fit
    return f"{fit.encode()[:FILE_NAME_BYTES].decode(errors='ignore')}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


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
        """See :func:`~papertape.utils.files.replacing`; the folder is made where there is none, in that of the run."""
        self.plots.mkdir(exist_ok=True)
        path.parent.mkdir(exist_ok=True)
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

    def episode(self, step: int, episode: Episode) -> bytes:
        """Write ``<name>.png``, and a copy that bears the step to ``history/``; returns its content."""
        titled = episode._replace(name=f"{episode.name}, step {step}")
        content = png(episode_figure(titled))
        self.drawn(step, episode.name, content)
        return content

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
