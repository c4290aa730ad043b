"""The trained circuits that come with the package do what their files say."""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

import pytest
import torch
import yaml

import papertape
from papertape.agents.evaluation import evaluate, set_error
from papertape.core.env import Env
from papertape.core.options import OptionsError
from papertape.main import main
from papertape.utils import checkpoint, factory, options, zoo
from papertape.utils.commands.test import find
from papertape.utils.run import read_metrics


def task_of(name: str) -> Env:
    values = options.load_file(zoo.origin(name).preset)
    task = factory.build_env(factory.parse(values | {"device": "cpu"}).env, torch.device("cpu"))
    assert isinstance(task, Env)
    return task


def test_what_there_is() -> None:
    assert {"ntm-copy", "dnc-copy", "ntm-associative-recall", "tape-copy"} <= set(zoo.names())
    assert sum(path.stat().st_size for path in zoo.ZOO.iterdir()) < 2e6


@pytest.mark.parametrize("name", zoo.names())
def test_a_trained_circuit_answers_as_well_as_its_file_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any folder, without a network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "socket", lambda *given: pytest.fail("the network is used"))
    circuit, origin, task = papertape.load(name), zoo.origin(name), task_of(name)
    assert (circuit.input_size, circuit.output_size) == (task.input_size, task.output_size)
    assert origin.seed > 0 and origin.step > 0 and origin.version and origin.metric == task.error_metric
    trained_on = next(iter(task.sets("test")))
    assert next(iter(origin.errors)) == trained_on
    values = evaluate(task, circuit, sequences=64, batch_size=64, seed=5)
    error = set_error(task, {f"test/{trained_on}/{key}": value for key, value in values.items()}, "test", trained_on)
    assert error <= origin.errors[trained_on] + 0.05 and error < 0.1


def test_a_name_that_is_none_says_what_there_is() -> None:
    with pytest.raises(
        OptionsError, match="load: got 'ntm-cpy'; did you mean 'ntm-copy'? .*tape-copy".replace("?", r"\?")
    ):
        papertape.load("ntm-cpy")
    with pytest.raises(OptionsError, match=r"load: got '\.\./x'; allowed: dnc-copy, "):
        papertape.load("../x")


def test_the_command_line_tests_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["agent.evaluation_sequences=8", "env.test_lengths=[20]", "device=cpu"]
    assert main(["test", "ntm-copy", "plots=files", *few]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    (row,) = read_metrics(folder / "metrics.jsonl")
    assert row["step"] == zoo.origin("ntm-copy").step and row["test/length 20/bits_wrong"] < 0.5
    assert list((folder / "plots").glob("*.gif"))
    assert f"pictures: {folder.relative_to(tmp_path)}/plots" in capsys.readouterr().err
    assert main(["test", "ntm-copy", "--checkpoint", "best"]) == 2
    assert "--checkpoint: got 'best'; " in capsys.readouterr().err
    assert main(["test", "nothing"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "run: got 'nothing'; " in line and "a checkpoint file, or a trained circuit: dnc-copy, " in line


@pytest.mark.parametrize("name", zoo.names())
def test_its_pictures_are_drawn_although_its_maker_drew_none(name: str) -> None:
    assert checkpoint.load(zoo.ZOO / f"{name}.pt")["options"]["plots"] == "off"
    assert "plots" not in find(argparse.Namespace(run=name, checkpoint=None)).options


def test_a_checkpoint_file_is_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["env.max_length=2", "env.test_lengths=[3]", "agent.batch_size=2", "agent.evaluation_sequences=2"]
    small += ["agent.retry_every=null", "agent.steps=2", "device=cpu", "plots=off"]
    assert main(["train", "ntm-copy", *small, "name=one"]) == 0
    assert main(["test", "runs/one/checkpoints/latest.pt"]) == 0
    assert "pictures:" not in capsys.readouterr().err  # of which plots=off draws none
    assert [row["step"] for row in read_metrics(tmp_path / "runs" / "one" / "test" / "metrics.jsonl")] == [2]
    copied = (tmp_path / "runs" / "one" / "checkpoints" / "best.pt").rename(tmp_path / "mine.pt")
    assert main(["test", "mine.pt", "circuit.word_size=19"]) == 2
    assert "has shape" in capsys.readouterr().err
    assert main(["test", str(copied)]) == 0
    assert len(list((tmp_path / "runs").glob("test-mine_*/metrics.jsonl"))) == 1
    checkpoint.save(tmp_path / "other.pt", {"step": 1})
    assert main(["test", "other.pt"]) == 2
    assert "papertape: other.pt: holds no circuit" in capsys.readouterr().err
    (tmp_path / "text.pt").write_text("text")
    assert main(["test", "text.pt"]) == 2
    assert "papertape: text.pt: is cut off, or not a checkpoint" in capsys.readouterr().err


def test_a_file_is_made_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoo, "ZOO", tmp_path / "zoo")
    small = ["env.max_length=2", "env.test_lengths=[3]", "agent.batch_size=2", "agent.evaluation_sequences=2"]
    small += ["agent.retry_every=null", "agent.steps=2", "device=cpu", "plots=off", "seed=7"]
    assert main(["train", "dnc-copy", *small, "name=one"]) == 0
    path = zoo.keep(tmp_path / "runs" / "one", "mine")
    assert zoo.names() == ["mine"] and path.stat().st_size < 300_000
    origin = zoo.origin("mine")
    assert origin[:4] == ("dnc-copy", 7, 2, "bits_wrong") and origin.errors["length 3"] > 1
    inputs = torch.rand(5, 2, 10)
    made, trained = papertape.load("mine"), papertape.load_circuit("runs/one/checkpoints/best.pt")
    assert torch.equal(made(inputs)[0], trained(inputs)[0])


HILL = """
import papertape
from papertape.agents.evaluation import evaluate_all

@papertape.register("agent", "hill")
class Hill(papertape.Agent):
    def setup(self):
        super().setup()
        self.best = 3.5
    def fit(self):
        self.step += 1
        self.recorder.checkpoint("latest", self.state_dict())
        return {}
    def test(self):
        assert self.best == 4.5, "the rest of the state was dropped"
        values = evaluate_all(self.env, self.circuit, "test", sequences=2, batch_size=2, seed=1)
        self.recorder.metrics(self.step, values)
        return values
    def state_dict(self):
        return {"WEIGHTS": self.circuit.state_dict(), "COUNT": self.step, "best": 4.5}
    def load_state_dict(self, state):
        self.circuit.load_state_dict(state["WEIGHTS"])
        self.step, self.best = state["COUNT"], state["best"]
"""


@pytest.mark.usefixtures("outsiders")
@pytest.mark.parametrize(("weights", "count"), [("weights", "count"), ("circuit", "step")])
def test_an_agent_is_tested_in_the_state_that_it_has_saved_whatever_its_entries_are(
    weights: str, count: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hill.py").write_text(HILL.replace("WEIGHTS", weights).replace("COUNT", count))
    small = ["env.max_length=2", "env.test_lengths=[3]", "circuit.memory_size=4", "device=cpu", "plots=off", "name=one"]
    values = options.load_file("ntm-copy") | {"agent": {"type": "hill"}, "imports": ["hill.py"]}
    Path("hill.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", "hill.yaml", *small]) == 0
    assert main(["test", "one"]) == 0 and main(["test", "runs/one/checkpoints/latest.pt"]) == 0
    assert [row["step"] for row in read_metrics(Path("runs/one/test/metrics.jsonl"))] == [1, 1]


@pytest.mark.parametrize("path", [None, 3, b"x", ["best.pt"]])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(ValueError, match="path: got .*; allowed is the name of a file"):
        papertape.load_circuit(path)
