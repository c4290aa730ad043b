"""The folder of a run: what is kept of its numbers."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from papertape.envs import CopyEnv
from papertape.utils import factory, options, run
from papertape.utils.run import Run, Summary, find_directory, find_launch, is_kept, read_metrics, read_summary

LOSS = {"train/loss": 0.5}


def kept_steps(steps: range, log_every: int) -> list[int]:
    return [step for step in steps if is_kept(step, LOSS, log_every)]


@pytest.mark.parametrize("log_every", [1, 3, 50])
def test_rows_of_training_become_rarer_and_all_others_are_kept(log_every: int) -> None:
    steps = kept_steps(range(log_every, 20_000 * log_every, log_every), log_every)
    numbers = [step // log_every for step in steps]
    assert numbers[:2047] == list(range(1, 2048))
    gaps = {(number.bit_length(), after - number) for number, after in itertools.pairwise(numbers[2047:])}
    assert gaps == {(12, 2), (13, 4), (14, 8), (15, 16)}
    assert is_kept(16_385 * log_every, LOSS | {"validation/length 3/loss": 1.0}, log_every)
    assert is_kept(16_385 * log_every, {"fitness/best": 1.0}, log_every)
    assert not is_kept(16_385 * log_every, LOSS, log_every)
    assert log_every == 1 or is_kept(16_385 * log_every + 1, LOSS, log_every)


def test_a_million_rows_leave_a_few_mebibytes() -> None:
    names = ("loss", "objective", "learning_rate", "gradient_norm", "bits_wrong", "bad_steps", "sequences_per_second")
    line = json.dumps({"step": 10**6} | {f"train/{name}": 0.12345678901234567 for name in names})
    count = len(kept_steps(range(1, 10**6 + 1), 1))
    assert count < 11_500 and count * len(line) < 4 * 2**20
    assert len(kept_steps(range(10**9, 10**9 + 2**22), 1)) == 4 + 4


def test_a_run_that_goes_on_keeps_the_rows_that_it_would_have_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "EVERY_ROW", 8)
    values = options.load_file("ntm-copy")
    chosen = factory.parse({**values, "plots": "off", "agent": {**values["agent"], "log_every": 5}})

    def report(directory: Path, first: int, last: int) -> list[int]:
        directory.mkdir(exist_ok=True)
        with Run(directory, chosen) as recorder:
            recorder.forget_after(first - 1)
            for step in range(first, last + 1):
                if step % 5 == 0:
                    recorder.metrics(step, LOSS)
                if step % 70 == 0:
                    recorder.metrics(step, {"validation/length 3/loss": 1.0})
        return [row["step"] for row in read_metrics(directory / "metrics.jsonl")]

    straight = report(tmp_path / "straight", 1, 400)
    assert len(straight) < 30 and {70, 140, 210, 280, 350} <= set(straight)
    report(tmp_path / "stopped", 1, 137)
    report(tmp_path / "stopped", 101, 233)
    assert report(tmp_path / "stopped", 222, 400) == straight


def test_runs_that_go_while_others_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their files are there when they are listed, and no longer when they are looked at."""
    for name in ("gone", "here"):
        (tmp_path / name).mkdir()
        for file in ("options.yaml", "launch"):
            (tmp_path / name / file).write_text("job")
    read, when = Path.read_text, run.trained_at

    def going(directory: Path) -> float:
        if directory == tmp_path / "gone":
            shutil.rmtree(directory)
        return when(directory)

    def text_of(path: Path, **options: Any) -> str:
        if path.parent == tmp_path / "gone":
            raise FileNotFoundError
        return read(path, **options)

    monkeypatch.setattr(Path, "read_text", text_of)
    assert find_launch("job", tmp_path) == tmp_path / "here"
    monkeypatch.setattr(run, "trained_at", going)
    assert find_directory("latest", tmp_path) == tmp_path / "here"


def test_a_run_of_a_sweep_is_called_after_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sweep/seed=1", "alone/seed=1"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "sweep" / "sweep.json").touch()
    monkeypatch.chdir(tmp_path / "sweep" / "seed=1")
    chosen = factory.parse({**options.load_file("ntm-copy"), "plots": "off"})
    titles: list[str] = []
    monkeypatch.setattr(run, "Sinks", lambda plots, directory, title, **_: titles.append(title) or mock.MagicMock())
    for directory in (tmp_path / "sweep" / "seed=1", Path(), tmp_path / "alone" / "seed=1"):
        Run(directory, chosen)
    assert titles == ["sweep_seed=1", "sweep_seed=1", "seed=1"]


def test_the_latest_run_is_the_one_that_trained_last_whatever_was_tested_since(tmp_path: Path) -> None:
    for seconds, name in enumerate(("old", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "options.yaml").touch()
        os.utime(tmp_path / name / "options.yaml", (seconds, seconds))
    (tmp_path / "old" / "tested.json").touch()
    assert find_directory("latest", tmp_path) == tmp_path / "new"
    (tmp_path / "old" / "metrics.jsonl").touch()
    assert find_directory("latest", tmp_path) == tmp_path / "old"


def test_a_set_of_any_name_is_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chosen = factory.parse({**options.load_file("ntm-copy"), "plots": "off"})
    found = {"bits_wrong": 1.5, "loss": 0.5, "accuracy/1": 0.25}
    names = ("noise 1", "noise 1/2", "a/b/c")
    with caplog.at_level("INFO"), Run(tmp_path, chosen, task=CopyEnv()) as recorder:
        recorder.metrics(3, {f"test/{name}/{metric}": value for name in names for metric, value in found.items()})
    assert caplog.messages == ["step 3, test, bits wrong: noise 1: 1.5, noise 1/2: 1.5, a/b/c: 1.5"]


def test_what_is_damaged_in_numbers_is_left_out(tmp_path: Path) -> None:
    rows = [b'{"step": 1, "train/loss": 2.5}', b'{"step": "2"}', b'{"step": 3, "train/loss": "a"}', b"\xff\xfe", b"[1]"]
    rows += [b'{"step": 3, "train/loss": ' + 5000 * b"9" + b"}", 100_000 * b"["]
    rows += [b'{"step": 3, "train/loss": ' + 310 * b"9" + b"}", b'{"step": ' + 310 * b"9" + b"}"]  # no float
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([*rows, b'{"step": 4, "train/loss": null}', b'{"step": 5']))
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 4]
    whole = Summary("x", "error", ("trained", "too"), None, 3, 2.0, 0, done=True)
    for values, expected in (
        (whole, whole),
        (whole._replace(trained_on="one"), whole._replace(trained_on=("one",))),  # type: ignore[arg-type]
        (whole._replace(step="three"), None),
        (whole._replace(step=10**310), None),
    ):  # type: ignore[arg-type]
        (tmp_path / "summary.json").write_text(json.dumps(values._asdict()))
        assert read_summary(tmp_path) == expected
