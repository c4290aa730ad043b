"""Sinks of one's own: they get what a run has to show, and can neither stop nor change it."""

from __future__ import annotations

import importlib.util
import logging
import os
import random
import re
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import Field, ValidationError

from papertape import NTM
from papertape.agents import BackpropAgent
from papertape.core import install, registry
from papertape.core.explain import explain
from papertape.core.options import Options, OptionsError
from papertape.core.recorder import Areas, Chart, Histogram
from papertape.core.trace_field import TraceField
from papertape.envs import CopyEnv
from papertape.utils.plots import Episode, Seen
from papertape.utils.run import Run as Recorded
from papertape.utils.sinks import Off, Plots, Plotter, Sink, Sinks

EXAMPLE = Path(__file__).parents[2] / "examples" / "tensorboard_sink.py"


class Keeping(Sink):
    """Keeps all that it is told."""

    limit: int = Field(10, ge=1, description="how much it keeps")

    def setup(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.told.append(("metrics", step, values))

    def episode(self, step: int, name: str, episode: Episode) -> None:
        self.told.append(("episode", step, name, episode))

    def close(self) -> None:
        self.told.append(("close",))


class Failing(Sink):
    """Fails at the second metrics."""

    def setup(self) -> None:
        self.seen = 0
        self.closed = False

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.seen += 1
        if self.seen == 2:
            raise RuntimeError("the service is gone")

    def close(self) -> None:
        self.closed = True
        raise RuntimeError("cannot even be closed")


class Leaving(Sink):
    """Wants to end the run."""

    def message(self, text: str) -> None:
        sys.exit(3)


class Meddling(Sink):
    """Changes all that it can reach."""

    def setup(self) -> None:
        torch.manual_seed(7)

    def metrics(self, step: int, values: Any) -> None:
        torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        os.chdir(self.directory)
        values.clear()

    def chart(self, step: int, name: str, chart: Any) -> None:
        chart.parts["one"].append(9.0)

    def episode(self, step: int, name: str, episode: Any) -> None:
        episode.seen.clear()
        episode.inputs[:] = 0


class Broken(Sink):
    """Cannot be set up."""

    def setup(self) -> None:
        raise ConnectionError("no such service")


class Run(Options):
    """What a run's options have of sinks."""

    plots: Plots = Field("auto", validate_default=True)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._entries, "sink", dict(registry._entries["sink"]))
    for sink in (Keeping, Failing, Leaving, Meddling, Broken):
        registry.register("sink", sink.__name__.lower(), sink)


def opened(tmp_path: Path, *plots: Any) -> Sinks:
    return Sinks(Run(plots=list(plots)).plots, tmp_path, "a_run")


def episode() -> Episode:
    bits = np.ones((3, 2), np.float32)
    bits.flags.writeable = False
    return Episode("", bits, bits, bits, bits[:, 0], {"gate": Seen(bits, TraceField("H", "gate"))})


def test_a_sink_is_chosen_by_its_name_with_its_options(tmp_path: Path) -> None:
    (kept,) = opened(tmp_path, {"type": "keeping", "limit": 3})
    assert isinstance(kept, Keeping) and kept.limit == 3
    assert (kept.directory, kept.title) == (tmp_path, "a_run")
    assert kept.options.model_dump() == {"type": "keeping", "limit": 3}


@pytest.mark.parametrize(
    ("given", "dumped"),
    [
        ("auto", "auto"),
        (["files"], "files"),
        ("keeping", "keeping"),
        ({"type": "keeping"}, "keeping"),
        ({"type": "keeping", "limit": 3}, {"type": "keeping", "limit": 3}),
        (
            ["visdom", {"type": "keeping", "limit": 3}, "failing"],
            ["visdom", {"type": "keeping", "limit": 3}, "failing"],
        ),
    ],
)
def test_options_are_saved_as_short_as_they_can_be_said(given: Any, dumped: Any) -> None:
    values = Run(plots=given).model_dump(mode="json")
    assert values == {"plots": dumped}
    assert Run(**values) == Run(plots=given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("png", "got 'png'; .*allowed: auto, .*files, keeping, .*off, visdom"),
        ("keepin", "did you mean 'keeping'"),
        ({"type": "nothing"}, "type: got 'nothing'"),
        ({"type": "keeping", "limit": 0}, "limit"),
        ([], "got none; allowed: one of auto, visdom and files"),
        (["files", "visdom"], "got files, visdom; allowed: one of auto, visdom and files"),
        (["off", "keeping"], "got off, keeping; allowed: .*or off"),
        (3, "got 3; expected a block with a type"),
    ],
)
def test_sinks_that_cannot_be_are_refused(given: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Run(plots=given)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["files", {"type": "keeping", "limt": 3}], "plots.1.limt: unknown option; did you mean 'plots.1.limit'?"),
        (["files", {"type": "keeping", "limit": 0}], "plots.1.limit: got 0; allowed: greater than or equal to 1"),
        ({"type": "keeping", "limt": 3}, "plots.limt: unknown option; did you mean 'plots.limit'?"),
    ],
)
def test_a_wrong_option_of_a_sink_is_one_line(given: Any, line: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Run(plots=given)
    assert explain(caught.value, {"plots": given}, Run) == [line]


def test_sinks_get_what_a_run_has_to_show(tmp_path: Path) -> None:
    sinks = opened(tmp_path, "keeping", "files")
    kept, files = sinks
    assert isinstance(kept, Keeping) and isinstance(files, Plotter)
    values = {"train/loss": 0.5}
    sinks.metrics(1, values)
    sinks.metrics(2, values)
    sinks.episode(2, "length 3", episode())
    sinks.chart(2, "trust", Histogram([1.0]))
    sinks.text("options", "seed: 1")
    sinks.close()
    assert kept.told[0] == ("metrics", 1, values) and kept.told[-1] == ("close",)
    _, step, name, got = kept.told[2]
    assert (step, name, got.name) == (2, "length 3", "length 3")
    assert {path.name for path in (tmp_path / "plots").glob("*.png")} == {"curves.png", "length-3.png", "trust.png"}


def test_a_sink_that_fails_is_dropped_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sinks = opened(tmp_path, "failing", "leaving", "keeping")
    failing, _, kept = sinks
    sinks.message("a line")
    for step in range(5):
        sinks.metrics(step, {"train/loss": 0.5})
    sinks.close()
    assert isinstance(failing, Failing) and failing.seen == 2 and failing.closed
    assert isinstance(kept, Keeping) and len(kept.told) == 6
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "plots: leaving failed at message (SystemExit: 3); the run goes on without it",
        "plots: failing failed at metrics (RuntimeError: the service is gone); the run goes on without it",
    ]


def test_a_sink_that_cannot_be_set_up_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="plots: broken cannot be set up: ConnectionError: no such service"):
        opened(tmp_path, "keeping", "broken")


def test_what_is_missing_for_pictures_is_named_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(self: Plotter) -> None:
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    monkeypatch.setattr(Plotter, "setup", missing)
    hint = re.escape(install.here("pip install ."))
    with pytest.raises(OptionsError, match=rf"^plots: got 'files', .* matplotlib .*{hint} .*; plots=off .*$"):
        opened(tmp_path, "files")


def test_a_sink_changes_nothing_in_the_run(tmp_path: Path) -> None:
    def next_numbers() -> tuple[float, ...]:
        return float(torch.rand(())), random.random(), float(np.random.rand())  # noqa: NPY002

    for generator in (torch.manual_seed, random.seed, np.random.seed):
        generator(3)
    expected, place = next_numbers(), Path.cwd()
    for generator in (torch.manual_seed, random.seed, np.random.seed):
        generator(3)
    sinks = opened(tmp_path, "meddling")
    values, areas, shown = {"train/loss": 0.5}, Areas([1], {"one": [1.0]}), episode()
    sinks.metrics(1, values)
    sinks.chart(1, "species", areas)
    sinks.episode(1, "length 3", shown)
    assert next_numbers() == expected and Path.cwd() == place
    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32
    assert values == {"train/loss": 0.5} and areas == Areas([1], {"one": [1.0]})
    assert set(shown.seen) == {"gate"} and (shown.inputs == 1).all()  # type: ignore[union-attr]
    assert not list(sinks), "it could not change an array, and was dropped"


def test_episodes_are_traced_only_where_a_sink_wants_them(tmp_path: Path) -> None:
    assert not opened(tmp_path, "off").wants_pictures
    assert not opened(tmp_path, "failing").wants_pictures
    assert opened(tmp_path, "keeping").wants_pictures and opened(tmp_path, "meddling").wants_pictures
    assert type(next(iter(opened(tmp_path, "off")))) is Off


class AllOptions(Run):
    """What a run is told beside its sinks."""

    visdom_host: str = "localhost"
    visdom_user: None = None
    visdom_password_file: None = None
    visdom_port: int = 8097
    agent: Any


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_watched_run_learns_the_same(dropout: float, tmp_path: Path) -> None:
    def weights(*plots: Any) -> dict[str, torch.Tensor]:
        torch.manual_seed(2)
        controller = {"type": "lstm", "hidden_size": 8, "num_layers": 2, "dropout": dropout}
        circuit = NTM(5, 3, controller=controller, memory_size=6, word_size=4)
        chosen = {"steps": 12, "batch_size": 4, "log_every": 1, "evaluate_every": 4, "evaluation_sequences": 4}
        folder = tmp_path / str(plots)
        folder.mkdir()
        env = CopyEnv(width=3, max_length=3, test_lengths=[5])
        options = AllOptions(plots=list(plots), agent=BackpropAgent.Options(**chosen))
        with Recorded(folder, options, circuit) as run:  # type: ignore[arg-type]
            BackpropAgent(env, circuit, **chosen, seed=1, recorder=run).fit()
        return circuit.state_dict()

    alone = weights("off")
    for plots in (["meddling"], ["failing", "leaving", "keeping"], ["files", "keeping"]):
        watched = weights(*plots)
        assert all(torch.equal(watched[name], alone[name]) for name in alone), plots


class Writer:
    """Takes what TensorBoard's writer takes."""

    def __init__(self, log_dir: str) -> None:
        self.calls: list[tuple[Any, ...]] = [("open", log_dir)]

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.calls.append((name, *arguments))


def load_example() -> Any:
    spec = importlib.util.spec_from_file_location("tensorboard_sink", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_tensorboard_of_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("tensorboard") is None:
        stand_in = types.ModuleType("torch.utils.tensorboard")
        stand_in.SummaryWriter = Writer  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    module = load_example()
    monkeypatch.setattr(module, "SummaryWriter", Writer)
    sinks = opened(tmp_path, "tensorboard")
    (sink,) = sinks
    sinks.metrics(4, {"train/loss": 0.5})
    sinks.episode(4, "length 3", episode())
    shown: Chart = Histogram([1.0, 2.0])
    sinks.chart(4, "trust", shown)
    sinks.text("options", "seed: 1")
    sinks.close()
    calls = sink.writer.calls  # type: ignore[attr-defined]
    assert [call[0] for call in calls] == ["open", "add_scalar", "add_figure", "add_figure", "add_text", "close"]
    assert calls[1] == ("add_scalar", "train/loss", 0.5, 4)
    assert calls[0] == ("open", str(tmp_path / "tensorboard"))
    assert len(EXAMPLE.read_text().splitlines()) < 60


def test_tensorboard_is_unknown_until_it_is_imported() -> None:
    if "tensorboard" not in registry.entries("sink"):
        with pytest.raises(ValidationError, match="got 'tensorboard'"):
            Run(plots="tensorboard")


def test_the_example_writes_event_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    load_example()
    sinks = opened(tmp_path, "tensorboard")
    sinks.metrics(4, {"train/loss": 0.5})
    sinks.episode(4, "length 3", episode())
    sinks.close()
    assert list((tmp_path / "tensorboard").glob("events.*"))
