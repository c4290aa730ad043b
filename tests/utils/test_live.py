"""Watching a run: the pictures come out, and nothing that goes wrong with them touches the run."""

from __future__ import annotations

import base64
import contextlib
import gc
import http.server
import importlib.util
import json
import logging
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from papertape.core import install
from papertape.core.options import OptionsError
from papertape.core.recorder import Areas, Chart, Connection, Histogram, Network
from papertape.core.trace_field import TraceField
from papertape.utils import child_process, visdom_files, visdom_server
from papertape.utils.drawing import files as drawing_files
from papertape.utils.drawing import page, process
from papertape.utils.drawing.files import Files
from papertape.utils.drawing.pace import Budget
from papertape.utils.drawing.page import Visdom
from papertape.utils.drawing.pipe import Settings
from papertape.utils.plots import Array, Episode, History, Seen, curves
from papertape.utils.sinks import Off, Plotter, drawn
from papertape.utils.visdom_server import Server

needs_visdom = pytest.mark.skipif(importlib.util.find_spec("visdom") is None, reason="visdom is not installed")
needs_signals = pytest.mark.skipif(os.name != "posix", reason="stops and kills processes by signals")


def episode(steps: int = 6) -> Episode:
    bits = (np.arange(steps * 3).reshape(steps, 3) % 2).astype(np.float32)
    weights = np.eye(8, dtype=np.float32)[:steps, None]
    memory = np.linspace(-1, 1, steps * 8 * 4, dtype=np.float32).reshape(steps, 8, 4)
    return Episode("", bits, bits, bits * 0.9, np.ones(steps, np.float32), seen(weights, memory))


def seen(weights: Array, memory: Array) -> dict[str, Seen]:
    return {
        "write_weights": Seen(weights, TraceField("H N", "weighting")),
        "read_weights": Seen(weights, TraceField("R N", "weighting")),
        "memory": Seen(memory, TraceField("N W", "memory")),
    }


def wait_for(condition: Callable[[], Any], seconds: float = 40.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """For what is timed: Python's collector may take its time over what other tests have left."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.contextmanager
def plotting(directory: Path, mode: Any = "files", **options: Any) -> Iterator[Plotter]:
    plotter = Plotter(directory, "a_run", mode, **options)
    try:
        yield plotter
    finally:
        plotter.close()


def child(plotter: Plotter) -> subprocess.Popen[bytes]:
    assert plotter._process is not None
    return plotter._process


def test_off_takes_everything_and_makes_nothing_of_it(tmp_path: Path) -> None:
    off = Off(tmp_path, "a_run")
    off.metrics(1, {"train/loss": 1.0})
    off.text("options", "none")
    off.episode(1, "length 3", episode())
    off.close()
    assert not list(tmp_path.iterdir())


def test_files_are_drawn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with plotting(tmp_path) as plotter:
        for step in range(100):
            plotter.metrics(step, {"train/loss": 1 / (step + 1), "validation/length 40/bits_wrong": 0.0})
        plotter.episode(500, "length 3", episode())
        plotter.animation("length 3", episode())
        plotter.text("options", "seed: 1")
    assert child(plotter).returncode == 0
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
    pictures = {"curves.png", "length-3.png", "length-3.gif", "history/length-3-0000500.png"}
    assert found == {f"plots/{name}" for name in pictures}
    for name in found:
        with Image.open(tmp_path / name) as picture:
            picture.load()
    assert not warnings(caplog)


def test_the_child_does_without_torch() -> None:
    command = child_process.command(process.main, "{}")
    listed = subprocess.run([command[0], "-X", "importtime", *command[1:]], capture_output=True, text=True, check=False)
    modules = {line.rpartition("|")[2].strip() for line in listed.stderr.splitlines()}
    assert "papertape.utils.plots" in modules
    assert "torch" not in modules


def test_visdom_that_is_not_installed_is_refused_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        OptionsError, match=rf"plots: got 'visdom'.*{re.escape(install.here(install.VISDOM))}.*plots=files"
    ):
        Plotter(tmp_path, "a_run", "visdom")


@needs_signals
def test_a_stuck_child_never_holds_up_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    large = episode()._replace(seen=seen(np.eye(8, dtype=np.float32)[:6, None], np.zeros((6, 8, 50_000), np.float32)))
    with plotting(tmp_path) as plotter, without_collector():
        child(plotter).send_signal(signal.SIGSTOP)
        slowest = 0.0
        for step in range(3000):
            start = time.thread_time()
            plotter.metrics(step, {"train/loss": 1.0})
            if step % 100 == 0:
                plotter.episode(step, f"large {step}", large)
            slowest = max(slowest, time.thread_time() - start)
        assert slowest < 0.1
        # One may be on its way.
        assert drawn.MAX_PICTURES - 1 <= len(plotter._pictures) <= drawn.MAX_PICTURES
        child(plotter).kill()
    assert len([text for text in warnings(caplog) if "left out" in text]) == 1


@needs_signals
def test_a_killed_child_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with plotting(tmp_path) as plotter:
        plotter.metrics(1, {"train/loss": 1.0})
        child(plotter).kill()
        wait_for(lambda: not plotter.alive)
        wait_for(lambda: warnings(caplog))
        for step in range(100):
            plotter.metrics(step, {"train/loss": 1.0})
            plotter.episode(step, "length 3", episode())
        assert not plotter._rows
        assert not plotter._pictures
    (warning,) = warnings(caplog)
    assert "ended with status -9" in warning
    assert "the run goes on" in warning


@needs_signals
def test_a_child_that_does_not_end_is_given_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plotter = Plotter(tmp_path, "a_run", "files")
    child(plotter).send_signal(signal.SIGSTOP)
    plotter.metrics(1, {"train/loss": 1.0})
    start = time.monotonic()
    plotter.close(timeout=0.2)
    plotter.close()
    assert time.monotonic() - start < 10
    assert "given up" in warnings(caplog)[0]


@needs_signals
def test_ctrl_c_does_not_reach_the_child(tmp_path: Path) -> None:
    with plotting(tmp_path) as plotter:
        assert os.getsid(child(plotter).pid) != os.getsid(0)
        plotter.metrics(1, {"train/loss": 1.0})
        plotter.metrics(2, {"train/loss": 0.5})
        wait_for((tmp_path / "plots" / "curves.png").exists)
        child(plotter).send_signal(signal.SIGINT)
        plotter.episode(1, "after", episode())
    assert (tmp_path / "plots" / "after.png").exists()


@needs_signals
def test_the_child_ends_with_a_killed_run_and_draws_what_it_has(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal, time\n"
        "from papertape.utils.sinks import Plotter\n"
        f"plotter = Plotter(pathlib.Path({str(tmp_path)!r}), 'a_run', 'files')\n"
        "plotter.metrics(1, {'train/loss': 1.0})\n"
        "plotter.metrics(2, {'train/loss': 0.5})\n"
        "time.sleep(1)\n"
        "print(plotter._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    wait_for((tmp_path / "plots" / "curves.png").exists)

    def gone() -> bool:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(int(killed.stdout), os.WNOHANG)
        try:
            state = Path(f"/proc/{int(killed.stdout)}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        return state == "Z"

    wait_for(gone)


def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "plots").write_text("in the way")
    with plotting(tmp_path) as plotter:
        for step in range(3):
            plotter.episode(step, "length 3", episode())
        plotter.metrics(1, {"train/loss": 1.0})
    (warning,) = warnings(caplog)
    assert "pictures cannot be written" in warning


def test_the_folder_of_a_run_that_was_deleted_stays_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    with plotting(directory) as plotter:
        directory.rmdir()
        plotter.episode(1, "length 3", episode())
    assert not directory.exists()
    (warning,) = warnings(caplog)
    assert "pictures cannot be written" in warning


def test_a_picture_that_cannot_be_drawn_costs_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with plotting(tmp_path) as plotter:
        plotter.episode(
            1, "bad", episode()._replace(seen=seen(np.eye(8, dtype=np.float32), np.zeros((1, 1), np.float32)))
        )
        plotter.episode(1, "good", episode())
    assert (tmp_path / "plots" / "good.png").exists()
    (warning,) = warnings(caplog)
    assert "the picture of bad could not be drawn" in warning


def test_pictures_that_come_too_fast_give_way_to_the_last(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with plotting(tmp_path) as plotter:
        for step in range(1, 7):
            plotter.episode(step, "length 3", episode())
    drawn = sorted(path.name for path in (tmp_path / "plots" / "history").iterdir())
    assert len(drawn) < 6
    assert drawn[-1] == "length-3-0000006.png"
    assert not warnings(caplog)


def test_plain_data_becomes_a_picture_and_a_copy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures: dict[str, Chart] = {
        "species": Areas([1, 2], {"species 0": [2, 1], "species 1": [0, 1]}, "members"),
        "trust": Histogram([1.0, 2.0, 2.0]),
        "network": Network(["in", "out"], [0, 1], [Connection(0, 1, -0.5)]),
    }
    with plotting(tmp_path) as plotter:
        for name, picture in pictures.items():
            plotter.chart(7, name, picture)
    for name in pictures:
        with Image.open(tmp_path / "plots" / f"{name}.png") as drawn:
            assert drawn.size[0] > 300
        assert (tmp_path / "plots" / "history" / f"{name}-0000007.png").exists()
    assert not warnings(caplog)


@needs_signals
def test_a_waiting_picture_gives_way_to_a_newer_one_of_its_name(tmp_path: Path) -> None:
    with plotting(tmp_path) as plotter:
        child(plotter).send_signal(signal.SIGSTOP)
        # More than the pipe to the child takes: from then on they wait here.
        for step in range(60):
            plotter.chart(step, "trust", Histogram([float(step)] * 20_000))
            plotter.chart(step, "fitness", Histogram([1.0] * 20_000))
        assert not plotter._dropped and len(plotter._pictures) <= 2
        assert plotter._pictures[-1][2][0] == 59
        child(plotter).send_signal(signal.SIGCONT)
    assert (tmp_path / "plots" / "history" / "trust-0000059.png").exists()


def test_a_page_that_fails_unforeseen_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: Server, again: bool = False) -> str:
        raise TypeError("nobody thought of this")

    monkeypatch.setattr(Server, "ensure", fail)
    drawing = page.Page(Settings("", "run", "visdom", "localhost", 1, None, None, None, 9.0, os.getpid()), Budget())
    drawing.close()
    assert "refused: TypeError: nobody thought of this\n" in capsys.readouterr().out


def test_why_a_child_has_ended_is_known_to_the_run_that_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = child_process.command(process.main, "no settings")
    monkeypatch.setattr(child_process, "command", lambda *_: ended)
    with pytest.raises(OptionsError, match=r"but the drawing process ended with status 1 \(.*JSONDecodeError"):
        Plotter(tmp_path, "a_run", "visdom")


def test_drawing_keeps_to_its_budget() -> None:
    budget = Budget()
    assert budget.left()
    start = time.process_time()
    with budget.spend("nothing"):
        while time.process_time() < start + 0.02:
            pass
    assert not budget.left()
    assert 0.07 < budget.free_at - time.monotonic() < 2


def test_curves_and_pictures_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever keeps coming, neither keeps the other waiting."""
    drawn: list[str] = []

    def draw(what: str) -> None:
        until = time.process_time() + 0.01
        while time.process_time() < until:
            pass
        drawn.append(what)

    monkeypatch.setattr(process, "CURVES_SECONDS", 0.0)
    monkeypatch.setattr(Files, "curves", lambda self, panels: draw("curves"))
    monkeypatch.setattr(Files, "episode", lambda self, step, episode: draw(episode.name))
    settings = Settings(str(tmp_path), "run", "files", "localhost", 1, None, None, None, 1.0, os.getppid())
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as pipe, os.fdopen(writer, "wb", buffering=0) as run:
        drawer = threading.Thread(target=process.run, args=(settings, pipe))
        drawer.start()
        for step in range(100):
            pickle.dump(("metrics", [(step, {"train/loss": 1.0})]), run)
            for name in ("a", "b"):
                pickle.dump(("episode", (step, {**episode()._asdict(), "name": name})), run)
            time.sleep(0.01)
        before_close = list(drawn)
        pickle.dump(("close", None), run)
        drawer.join()
    assert min(before_close.count(what) for what in ("curves", "a", "b")) >= 2


def test_only_some_earlier_pictures_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing_files, "KEPT_PICTURES", 4)
    monkeypatch.setattr(drawing_files, "episode_figure", lambda episode: Image.new("L", (1, 1)))
    monkeypatch.setattr(Image.Image, "savefig", Image.Image.save, raising=False)
    files = Files(tmp_path)
    for step in range(0, 1000, 100):
        files.episode(step, episode()._replace(name="length 3"))
        files.episode(step, episode()._replace(name="length 30"))
    kept = sorted(path.name for path in (tmp_path / "plots" / "history").glob("length-3-*"))
    assert 3 <= len(kept) <= 4
    assert kept[0] == "length-3-0000000.png"
    assert kept[-1] == "length-3-0000900.png"


def memory(process: subprocess.Popen[bytes]) -> int:
    """MiB that a process holds."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) // 1024


METRICS = ("loss", "objective", "learning_rate", "gradient_norm", "bits_wrong", "sequences_per_second")


def test_a_history_takes_no_more_memory_as_it_gets_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "MAX_STRETCHES", 64)
    history = History()

    def size(first: int, last: int) -> int:
        for step in range(first, last):
            history.add([(step, {f"train/{name}": float(step) for name in METRICS})])
        return len(pickle.dumps(history))

    before = size(0, 1000)
    assert abs(size(1000, 20_000) - before) < before / 5


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="/proc says how much memory a process holds")
def test_the_child_does_not_grow_over_a_million_rows(tmp_path: Path) -> None:
    with plotting(tmp_path) as plotter:
        held = {}
        for step in range(1, 1_000_001):
            plotter.metrics(step, {f"train/{name}": step / 7 for name in METRICS})
            if step % 100 == 0:
                plotter.metrics(step, {f"validation/length {length}/loss": 1 / step for length in (20, 40)})
            if step % 20_000 == 0:
                plotter.episode(step, "length 20", episode())
            while len(plotter._rows) > 5000:
                time.sleep(0.01)
            if step in (100_000, 1_000_000):
                wait_for(lambda: not plotter._rows and not plotter._pictures)
                time.sleep(2)
                held[step] = memory(child(plotter))
    assert held[1_000_000] - held[100_000] < 16, held
    assert len(list((tmp_path / "plots" / "history").iterdir())) <= drawing_files.KEPT_PICTURES


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def windows(port: int, environment: str = "a_run") -> dict[str, Any]:
    """What the server shows, by the windows' names."""
    request = json.dumps({"win": None, "eid": environment}).encode()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/win_data", request, timeout=5) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found
    except (OSError, ValueError):
        return {}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server("127.0.0.1", free_port(), str(tmp_path / "data"))
    assert not server.ensure()
    yield server
    stop(server)


def stop(server: Server) -> None:
    assert visdom_server.stop(str(server.folder)) in ([], [server.port])
    if server.process is not None:
        server.process.wait(10)


@needs_visdom
def test_a_running_server_shows_everything(tmp_path: Path, server: Server) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with plotting(run, "visdom", port=server.port) as plotter:
        plotter.text("options", "loss: <bit>")
        plotter.metrics(1, {"train/loss": 0.5, "train/bits_wrong": 0.0})
        plotter.metrics(2, {"train/loss": 0.25, "train/bits_wrong": 40.0, "validation/length 3/loss": 0.3})
        plotter.episode(2, "length 3", episode())
        plotter.chart(2, "trust", Histogram([1.0, 2.0], "trust"))
    shown = windows(server.port)
    parts = ("input", "target", "output", "write weights", "read weights", "memory")
    assert set(shown) == {
        "title",
        "text options",
        "curve loss",
        "curve bits_wrong",
        "chart trust",
        *(f"length 3 {part}" for part in parts),
    }
    train, judged = shown["curve loss"]["content"]["data"]
    assert (train["x"], train["y"], judged["y"]) == ([1, 2], [0.5, 0.25], [0.3])
    assert "&lt;bit&gt;" in shown["text options"]["content"]
    (heatmap,) = shown["length 3 memory"]["content"]["data"]
    assert heatmap["type"] == "heatmap"
    np.testing.assert_allclose(heatmap["z"], episode().seen["memory"].values[-1], atol=1e-3)
    image = shown["chart trust"]["content"]["src"].removeprefix("data:image/png;base64,")
    assert base64.b64decode(image) == (run / "plots" / "trust.png").read_bytes()
    assert json.loads((tmp_path / "data" / "a_run.json").read_text())["jsons"].keys() == shown.keys()
    assert (run / "plots" / "curves.png").exists()
    assert server.problem() == ""


def test_one_step_makes_no_curves(tmp_path: Path) -> None:
    """A test run has nothing but points."""
    with plotting(tmp_path) as plotter:
        plotter.metrics(1600, {"validation/length 3/loss": 0.3, "validation/length 4/loss": 0.4})
        plotter.episode(1600, "length 3", episode())
    assert {path.name for path in (tmp_path / "plots").glob("*.*")} == {"length-3.png"}


@needs_visdom
def test_texts_without_curves_are_shown_in_the_end(tmp_path: Path, server: Server) -> None:
    with plotting(tmp_path / "run", "visdom", port=server.port) as plotter:
        plotter.text("options", "seed: 1")
    assert set(windows(server.port)) == {"title", "text options"}


@needs_visdom
def test_a_server_is_started_on_this_machine_alone_and_outlives_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    port = free_port()
    server = Server("localhost", port, str(tmp_path / "data"))
    with plotting(tmp_path, "visdom", port=port, data=tmp_path / "data") as plotter:
        assert server.problem() == ""
        with socket.socket() as elsewhere, pytest.raises(OSError, match="refused"):
            # Another address of this machine: the server must listen on none but 127.0.0.1.
            elsewhere.connect(("127.0.0.2", port))
        plotter.metrics(1, {"train/loss": 1.0})
        plotter.metrics(2, {"train/loss": 0.5})
    assert "curve loss" in windows(port)
    assert "curve loss" in json.loads((tmp_path / "data" / "a_run.json").read_text())["jsons"]
    assert f"until {install.here('papertape page stop')}" in caplog.text
    # Another run finds it, and one that is over stays on it.
    with Plotter(tmp_path, "another_run", "auto", port=port, data=tmp_path / "data") as plotter:
        plotter.text("options", "seed: 2")
        plotter.metrics(1, {"train/loss": 1.0})
        plotter.metrics(2, {"train/loss": 0.5})
    assert "curve loss" in windows(port, "another_run") and "curve loss" in windows(port)
    assert visdom_server.stop(str(tmp_path / "data")) == [port]
    assert server.problem() is None
    assert [line for line in server.log.read_text().splitlines() if "Traceback" in line] == []


@needs_visdom
@needs_signals
def test_a_started_server_outlives_a_killed_child(tmp_path: Path) -> None:
    server = Server("localhost", free_port(), str(tmp_path / "data"))
    with plotting(tmp_path, "visdom", port=server.port, data=tmp_path / "data") as plotter:
        os.killpg(child(plotter).pid, signal.SIGKILL)
        child(plotter).wait()
        assert server.problem() == ""
    stop(server)


@needs_visdom
def test_two_runs_share_the_server_that_one_of_them_starts(tmp_path: Path) -> None:
    server = Server("localhost", free_port(), str(tmp_path / "data"))
    names = ("one", "two", "three")
    plotters = []
    for name in names:
        (tmp_path / name).mkdir()
        plotters.append(Plotter(tmp_path / name, name, "auto", port=server.port, data=tmp_path / "data"))
    for step in (1, 2):
        for plotter in plotters:
            plotter.metrics(step, {"train/loss": 1 / step})
    for plotter in plotters:
        plotter.close()
    assert all("curve loss" in windows(server.port, name) for name in names)
    stop(server)


@needs_visdom
def test_runs_of_one_name_in_two_folders_have_a_page_each_before_they_show_anything(
    tmp_path: Path, server: Server
) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    with contextlib.ExitStack() as plotters:
        for folder in folders:
            plotters.enter_context(plotting(folder, "visdom", port=server.port))
        for name, folder in zip(("a_run", "a_run-2"), folders, strict=True):
            assert f"kept in {folder}<" in windows(server.port, name)[page.CLAIM]["content"]
    assert all(windows(server.port, name).keys() == {"title"} for name in ("a_run", "a_run-2"))


@needs_visdom
def test_a_run_that_goes_on_shows_nothing_that_is_no_longer_true(tmp_path: Path, server: Server) -> None:
    for name in ("length 3", "length 4"):
        with plotting(tmp_path, "visdom", port=server.port) as plotter:
            plotter.episode(1, name, episode())
    assert {window for window in windows(server.port) if window.endswith("memory")} == {"length 4 memory"}


@needs_visdom
@pytest.mark.parametrize("again", ["another", "our own"])
def test_a_server_that_dies_gets_everything_again_when_it_is_back(
    again: str, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(page, "RETRY_SECONDS", 3.0 if again == "another" else 0.1)
    with plotting(tmp_path, "visdom", port=server.port, data=server.folder) as plotter:
        plotter.metrics(1, {"train/loss": 1.0})
        plotter.metrics(2, {"train/loss": 0.5})
        plotter.text("options", "seed: 1")
        plotter.episode(1, "length 3", episode())
        before = wait_for(lambda: (shown := windows(server.port)) and page.CLAIM not in shown and shown)
        assert server.process is not None
        server.process.kill()
        server.process.wait()
        if again == "another":
            assert not server.ensure()
        for step in range(1000):
            plotter.metrics(step, {"train/loss": 0.5})
            if before.keys() <= windows(server.port).keys():
                break
            time.sleep(0.1)
        assert before.keys() <= windows(server.port).keys()
    assert len(warnings(caplog)) <= 1
    if again == "our own":
        assert visdom_server.stop(str(server.folder)) == [server.port]


@needs_visdom
def test_a_server_that_is_stopped_stays_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The run that started it goes on without; the next one starts it again."""
    monkeypatch.setattr(page, "RETRY_SECONDS", 0.1)
    server = Server("localhost", free_port(), str(tmp_path / "data"))
    with plotting(tmp_path, "visdom", port=server.port, data=tmp_path / "data") as plotter:
        assert visdom_server.stop(str(tmp_path / "data")) == [server.port]
        for step in range(80):
            plotter.metrics(step, {"train/loss": 0.5})
            time.sleep(0.1)
        assert server.problem() is None
    (warning,) = warnings(caplog)
    assert "was lost" in warning
    assert (tmp_path / "plots" / "curves.png").exists()
    with plotting(tmp_path, "visdom", port=server.port, data=tmp_path / "data"):
        assert server.problem() == ""
    stop(server)


class Stranger:
    """A server that is none of visdom's: it sends bytes, one after the other with pauses between, and no more."""

    def __init__(self, says: bytes = b"", pause: float = 0.0) -> None:
        self.says, self.pause = says, pause
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]
        self.calls: list[socket.socket] = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.calls.append(self.socket.accept()[0])
                threading.Thread(target=self.answer, args=(self.calls[-1],), daemon=True).start()

    def answer(self, call: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self.pause:
                for byte in self.says:
                    call.sendall(bytes([byte]))
                    time.sleep(self.pause)
            elif self.says:
                call.recv(2**16)
                call.sendall(self.says)
                call.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for each in (self.socket, *self.calls):
            each.close()


OTHERS = {
    "silent": Stranger,
    "a byte a second": lambda: Stranger(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue", pause=1.0),
    "SSH": lambda: Stranger(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "not a byte of HTTP": lambda: Stranger(bytes(range(128, 256)) * 4),
    "endless headers": lambda: Stranger(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500),
    "cut off": lambda: Stranger(b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\ntrue"),
    "not found": lambda: Stranger(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno"),
    "bad request": lambda: Stranger(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
    "another page": lambda: Stranger(b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>"),
}


@pytest.fixture
def stranger(request: pytest.FixtureRequest) -> Iterator[Stranger]:
    stranger = OTHERS[request.param]()
    yield stranger
    stranger.close()


@needs_visdom
@pytest.mark.parametrize("stranger", OTHERS, indirect=True)
def test_a_server_that_is_none_of_visdoms_leaves_the_files(
    tmp_path: Path, stranger: Stranger, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with plotting(tmp_path, "auto", port=stranger.port) as plotter:
        start = time.thread_time()
        for step in range(1000):
            plotter.metrics(step, {"train/loss": 1.0})
        plotter.episode(1, "length 3", episode())
        assert time.thread_time() - start < 0.5
        wait_for(lambda: (tmp_path / "plots" / "curves.png").exists())
        wait_for(lambda: stranger.calls and "as a visdom server does" in caplog.text)
        start = time.monotonic()
    assert time.monotonic() - start < 10
    assert child(plotter).returncode == 0
    assert (tmp_path / "plots" / "length-3.png").exists()
    (said,) = [record.getMessage() for record in caplog.records]
    assert "does not answer as a visdom server does; pictures go to files alone" in said


@needs_visdom
def test_files_do_not_wait_for_a_server_that_is_being_looked_for(tmp_path: Path) -> None:
    stranger = Stranger()
    with plotting(tmp_path, "auto", port=stranger.port) as plotter:
        wait_for(lambda: stranger.calls)
        asked = time.monotonic()
        plotter.episode(1, "length 3", episode())
        wait_for(lambda: (tmp_path / "plots" / "length-3.png").exists())
        assert time.monotonic() - asked < visdom_server.ANSWER_SECONDS - 1
    stranger.close()


class Halfway(http.server.BaseHTTPRequestHandler):
    """A visdom server that answers its first requests as it should."""

    good = 3
    bad = staticmethod(lambda call: call.send_error(500))
    asked = 0

    def do_POST(self) -> None:
        type(self).asked += 1
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        if type(self).asked > self.good:
            self.bad()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"[]" if self.path == "/env_state" else b"true")

    def trickle(self) -> None:
        self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
        for _ in range(600):
            self.wfile.write(b".")
            time.sleep(1)

    def log_message(self, *_: Any) -> None:
        pass


FAILURES: dict[str, Callable[[Any], Any]] = {
    "HTTP errors": lambda call: call.send_error(500),
    "not found": lambda call: call.send_error(404),
    "asks for a login": lambda call: (call.send_response(400), call.end_headers()),
    "a byte a second": Halfway.trickle,
    "silence": lambda call: time.sleep(600),
    "hangs up": lambda call: call.connection.shutdown(socket.SHUT_RDWR),
    "nonsense": lambda call: call.wfile.write(b"\0" * 100),
}


@needs_visdom
@pytest.mark.parametrize("good", [1, 3, 8])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_server_that_fails_halfway_leaves_the_files(
    failure: str, good: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whenever it begins to: one line, all files, and a run that is over in time."""
    caplog.set_level(logging.INFO)
    handler = type("Handler", (Halfway,), {"good": good, "bad": FAILURES[failure]})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as failing:
        failing.daemon_threads = True
        failing.block_on_close = False
        threading.Thread(target=failing.serve_forever, daemon=True).start()
        with plotting(tmp_path, "auto", port=failing.server_port) as plotter:
            for step in range(1, 10):
                plotter.metrics(step, {"train/loss": 1.0})
            for length in range(3):
                plotter.episode(1, f"length {length}", episode())
            wait_for(lambda: handler.asked > good)  # type: ignore[attr-defined]
            start = time.monotonic()
        assert time.monotonic() - start < 5 + page.CLOSE_SECONDS + visdom_server.ANSWER_SECONDS
        failing.shutdown()
    assert child(plotter).returncode == 0
    drawn = {path.name for path in (tmp_path / "plots").glob("*.png")}
    assert drawn == {"curves.png", "length-0.png", "length-1.png", "length-2.png"}
    said = [text for record in caplog.records if "watch the run at" not in (text := record.getMessage())]
    assert len(said) <= 1, said


@needs_visdom
@pytest.mark.parametrize("lost_first", [True, False])
def test_a_server_that_is_lost_while_the_run_ends_costs_one_line(
    lost_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Silence is a loss after as long as the end waits: either of the two may be first to say so."""
    given_up, over = threading.Event(), threading.Event()

    def start(visdom: Visdom) -> None:
        visdom.client = type("Silent", (), {"win_exists": lambda self, window: None})()
        if not lost_first:
            given_up.wait()
        visdom.attempt(lambda: None)
        if lost_first:
            given_up.wait()
        over.set()

    monkeypatch.setattr(Visdom, "start", start)
    monkeypatch.setattr(page, "CLOSE_SECONDS", 0.5)
    settings = Settings(str(tmp_path), "run", "auto", "localhost", free_port(), None, None, None, 1.0, os.getpid())
    shown = page.Page(settings, Budget())
    shown.close()
    given_up.set()
    assert over.wait(10)
    (said,) = capsys.readouterr().out.splitlines()
    assert ("was lost" if lost_first else "did not take the last pictures") in said


@needs_visdom
def test_scripts_that_the_page_lacks_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: Server
) -> None:
    """Once they are there, or when the run ends without them."""
    settings = Settings(str(tmp_path), "run", "auto", "localhost", server.port, None, None, None, 1.0, os.getpid())
    missing = ["main.js"]
    monkeypatch.setattr(visdom_files, "missing_files", lambda: missing)
    for found, last in (
        (False, "warning: the visdom page's scripts have not been fetched"),
        (True, "info: the visdom"),
    ):
        visdom = Visdom(settings)
        visdom.server.process = server.process
        visdom.start()
        if found:
            missing.clear()
            visdom.check_files()
        visdom.end()
        *_, fetched, said = capsys.readouterr().out.splitlines()
        assert "being fetched" in fetched and said.startswith(last)


@needs_visdom
def test_a_run_that_insists_on_visdom_is_refused_without_a_server(tmp_path: Path) -> None:
    silent = Stranger()
    with pytest.raises(OptionsError, match=r"plots: got 'visdom', but .* does not answer.*plots=files"):
        Plotter(tmp_path, "a_run", "visdom", port=silent.port)
    with pytest.raises(OptionsError, match="there is no visdom server at http://127.0.0.3"):
        Plotter(tmp_path, "a_run", "visdom", hostname="127.0.0.3", port=free_port())
    silent.close()


@needs_visdom
def test_the_client_raises_when_the_server_is_gone(server: Server) -> None:
    connected = server.client("a_run")
    assert connected.win_exists("title") is False
    stop(server)
    with pytest.raises(ConnectionError):
        connected.text("anyone there?")
