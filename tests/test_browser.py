"""What a person sees: the visdom page of a short run, in headless Chromium."""

from __future__ import annotations

import base64
import importlib.util
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from papertape import DNC, NTM
from papertape.core import install
from papertape.core.circuit import Circuit
from papertape.core.env import Batch
from papertape.utils import visdom_files, visdom_server
from papertape.utils.plots import Episode, episode_from
from papertape.utils.sinks import Plotter

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VISDOM = importlib.util.find_spec("visdom")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(VISDOM is None, reason="visdom is not installed"),
]

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1300,4000",
    "--virtual-time-budget=10000",
)
ATTEMPTS = 15


class Page:
    """The windows of a visdom page, as the browser has built them."""

    def __init__(self, dom: str) -> None:
        self.windows: dict[str, str] = {}
        for window in dom.split('class="window"')[1:]:
            title = re.search(r'<div class="pull-right">(.*?)</div>', window)
            if title is not None:
                self.windows[title.group(1)] = window

    def lines(self, title: str) -> list[str]:
        """The paths of the curves in a window; those of the legend draw with small letters."""
        return re.findall(r'<path class="js-line"[^>]* d="(M[^"]*[LHV][^"]*)"', self.windows[title])

    def heatmap(self, title: str) -> Image.Image:
        """The picture in a window."""
        found = re.search(r'<image [^>]*href="data:image/png;base64,([^"]+)"', self.windows[title])
        assert found is not None, f"{title}: no heatmap"
        return Image.open(io.BytesIO(base64.b64decode(found.group(1))))


def open_page(url: str, screenshot: Path | None = None) -> str:
    """Load a page as a person's browser would, and return what it has become."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory() as profile:
        what = "--dump-dom" if screenshot is None else f"--screenshot={screenshot}"
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", what, url]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def answered(circuit: Circuit, name: str) -> Episode:
    bits = (torch.rand(12, 1, 5, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    with torch.no_grad():
        outputs, _, trace = circuit(bits, trace=True)
    return episode_from(name, Batch(bits, bits[..., :4], torch.ones(12, 1)), outputs, trace)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_the_page_shows_the_curves_and_the_memory_of_a_run(tmp_path: Path) -> None:
    visdom_files.fetch()
    port = free_port()
    torch.manual_seed(0)
    circuits = {
        "ntm": NTM(5, 4, hidden_size=8, memory_size=16, word_size=6),
        "dnc": DNC(5, 4, hidden_size=8, memory_size=16, word_size=6, num_reads=2),
    }
    with Plotter(tmp_path, "short_run", "visdom", port=port, data=tmp_path / "data") as plotter:
        plotter.text("options", "env: copy & paste")
        for step in range(60):
            judged = {"validation/length 12/loss": 0.8 / (step + 1)} if step % 10 == 9 else {}
            train = {
                "loss": 1 / (step + 1),
                "bits_wrong": 59.0 - step,
                "learning_rate": 1e-4,
                "gradient_norm": 1.0 + step % 7,
            }
            plotter.metrics(step, {f"train/{name}": value for name, value in train.items()} | judged)
        for name, circuit in circuits.items():
            plotter.episode(60, name, answered(circuit, name))

        everything = {
            "loss",
            "bits wrong per sequence",
            "options",
            "dnc: memory, step 60",
            "dnc: read modes, step 60",
        }
        for _ in range(ATTEMPTS):
            page = Page(open_page(f"http://localhost:{port}/env/short_run"))
            if everything <= page.windows.keys() and len(page.lines("loss")) == 2:
                break
            time.sleep(3)

        assert "env: copy &amp; paste" in page.windows["options"]
        assert len(page.lines("loss")) == 2
        for title in ("bits wrong per sequence", "learning rate", "gradient norm"):
            assert len(page.lines(title)) == 1
        # Each point of the curve is there, and errors fall: down is up in a picture's coordinates.
        heights = [float(y) for y in re.findall(r",(-?[\d.]+)", page.lines("bits wrong per sequence")[0])]
        assert len(heights) > 2
        assert heights == sorted(heights)

        parts = {
            "ntm": (
                "input",
                "target",
                "output",
                "add",
                "reads",
                "erase",
                "keys",
                "gates",
                "shift",
                "write weights",
                "read weights",
                "memory",
            ),
            "dnc": (
                "write weights",
                "read weights, head 1 of 2",
                "usage",
                "allocation weights",
                "gates",
                "read modes",
                "memory",
            ),
        }
        for name in circuits:
            for part in parts[name]:
                picture = page.heatmap(f"{name}: {part}, step 60")
                assert len(picture.convert("RGB").getcolors(10**6) or ()) > 1, f"{name}: {part} has one colour only"
        inputs = np.asarray(page.heatmap("ntm: input, step 60").convert("L"))
        assert {inputs.min(), inputs.max()} == {0, 255}
    assert visdom_server.stop(str(tmp_path / "data")) == [port]


SMALL_RUN = [
    "env.width=3",
    "env.max_length=3",
    "env.test_lengths=[4]",
    "circuit.controller.hidden_size=8",
    "circuit.memory_size=8",
    "circuit.word_size=4",
    "agent.log_every=200",  # few points, each curve one line
    "agent.evaluate_every=2000",
    "agent.retry_every=null",
    "agent.target_error=null",
    "agent.steps=1000000",
    "device=cpu",
    "threads=1",
    "plots=visdom",
]


def test_the_command_line_shows_a_run_while_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`main.py train` starts a server; the page shows curves and memory; Ctrl-C ends the run in good order."""
    monkeypatch.chdir(tmp_path)
    visdom_files.fetch()
    port = free_port()
    command = [sys.executable, "-m", "papertape.main", "train", "ntm-copy", *SMALL_RUN, f"visdom_port={port}"]
    environment = {**os.environ, "HOME": str(tmp_path)}  # visdom keeps its environments there
    run = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("runs/*/plots/curves.png")) and time.monotonic() < deadline:
            time.sleep(0.5)
        (directory,) = (tmp_path / "runs").iterdir()
        parts = {
            f"length 4: {part}" for part in ("input", "target", "output", "write weights", "read weights", "memory")
        }
        curves = ("loss", "bits wrong per sequence")
        while time.monotonic() < deadline + 240:
            # Held while it is looked at: the browser's time stands still as long as there is news.
            time.sleep(5)
            run.send_signal(signal.SIGSTOP)
            page = Page(open_page(f"http://localhost:{port}/env/{directory.name}"))
            run.send_signal(signal.SIGCONT)
            shown = {title.split(", step")[0]: title for title in page.windows}
            if {*curves, *parts} <= shown.keys() and all(len(page.lines(title)) == 3 for title in curves):
                break
        for title in curves:
            assert len(page.lines(title)) == 3  # training and both validation sets
        assert "memory_size: 8" in page.windows["options"]
        assert "StaticAccessor: memory_size 8, word_size 4" in page.windows["circuit"]
        for part in parts:
            assert len(page.heatmap(shown[part]).convert("RGB").getcolors(10**6) or ()) > 1
    finally:
        run.send_signal(signal.SIGCONT)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=90)
        # The page is still there, at the root of the server, too.
        after = [open_page(f"http://localhost:{port}{path}") for path in ("", f"/env/{directory.name}")]
        assert visdom_server.stop(str(tmp_path / ".visdom")) == [port]
    assert f'src="/env/{directory.name}"' in after[0] and "the newest of 1 runs" in after[0]
    assert {*curves} <= Page(after[1]).windows.keys()
    assert run.returncode == 0
    assert f"go on with: {install.here('papertape')} train --resume runs/{directory.name}" in said
