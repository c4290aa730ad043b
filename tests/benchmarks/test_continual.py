"""Rows of continual learning: kept by seed, gone on with, and told in a table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from papertape.envs import images

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import continual


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def small(name: str, **sizes: int) -> continual.Row:
    make = {"arithmetic": continual.arithmetic, "slowly-changing": continual.slowly_changing}[name]
    return continual.ROWS[name]._replace(measure=make(**sizes))


def test_each_seed_is_measured_once_and_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(continual.ROWS, "arithmetic", small("arithmetic", samples=6400))
    monkeypatch.setitem(continual.ROWS, "slowly-changing", small("slowly-changing", examples=4000))
    words = ["continual.py", "arithmetic", "slowly-changing", "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", words)
    assert continual.main() == 0
    first = capsys.readouterr().out
    assert first.count("seed 1:") == first.count("seed 2:") == 2
    row = next(line for line in first.splitlines() if line.startswith("| from 2×2 |"))
    assert "held-out pairs: " in row
    assert row.endswith("| 2 |  |")
    file = Path("runs/continual/arithmetic/1.json")
    measured = json.loads(file.read_text())
    assert measured["updates_per_step"] > 1
    assert measured["tried"] > 0
    assert measured["updated"] > 400 * 19  # weights of the first circuit at every step
    assert continual.main() == 0
    again = capsys.readouterr().out
    assert "seed 1:" not in again
    assert again[again.index("| what") :] == first[first.index("| what") :]
    file.write_text(json.dumps({**measured, "held_out_5": 12.5}))
    monkeypatch.setattr(sys, "argv", [*words, "agent.policy=none", "--minutes", "0"])
    assert continual.main() == 0
    assert "from 2×2" not in capsys.readouterr().out


def test_compute_is_told_beside_the_fixed_circuit() -> None:
    seeds = {1: {"updated": 300.0}, 2: {"updated": 100.0}}
    other = Path("runs/continual/arithmetic-fixed")
    other.mkdir(parents=True)
    (other / "7.json").write_text(json.dumps({"updated": 160.0}))
    assert continual.compute(continual.ROWS["arithmetic"], seeds, []) == "1.25 ×"
    assert continual.compute(continual.ROWS["arithmetic"], seeds, ["agent.lr=1"]) == ""


def test_a_plain_removal_is_flagged_and_the_agent_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continual, "CHANGES", 2)
    monkeypatch.setattr(continual, "LEARNED", 300)
    found = continual.flagged(101, [])
    kinds = ("removal_plain", "removal_absorbed", "widening")
    assert set(found) == {f"{kind}{what}" for kind in kinds for what in ("", "_worse", "_right")}
    assert all(share in (0.0, 0.5, 1.0) for share in found.values())
    for kind in kinds:  # what was taken back and what was worse are the same changes where every verdict is right
        assert found[f"{kind}_right"] < 1 or found[kind] == found[f"{kind}_worse"]
    assert "removals" in continual._flagged_told([found])


@pytest.mark.parametrize(
    ("plasticity", "fixed"),
    [
        ("[l2-init, {type: redo, every: 9}]", []),
        ("l2-init", continual.CHANGING),
    ],
)
def test_permuted_images_are_told_before_they_are_learned_from(
    monkeypatch: pytest.MonkeyPatch, plasticity: str, fixed: list[str]
) -> None:
    labels = torch.arange(60) % 10
    drawn = torch.zeros(60, 28, 28, dtype=torch.uint8)
    for index, label in enumerate(labels.tolist()):
        drawn[index, 2 * label : 2 * label + 2] = 255
    monkeypatch.setattr(images, "load", lambda name: ((drawn, labels), (drawn, labels)))
    measure = continual.permuted(plasticity, *fixed, tasks=4)
    quick = ["agent.check_every=10", "agent.trial_steps=5"] if fixed else []
    found = measure(1, ["env.every=320", "agent.log_every=20", *quick])
    assert all(20 < found[name] < 95 for name in ("first", "middle", "last")), "at first guessed, then known"
    assert 0 <= found["dormant"] <= 100
    told = continual.ROWS["permuted-redo"].tell([found, {**found, "last": 0.0}])
    assert told.startswith(f"tasks 91-100: {found['last'] / 2:.1f} %, worst 0.0; ")


def test_unknown_rows_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["continual.py", "algebra"])
    with pytest.raises(SystemExit):
        continual.main()
    assert "row: got 'algebra'; allowed: arithmetic-fixed, arithmetic," in capsys.readouterr().err
