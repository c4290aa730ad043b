"""Leagues: what a file says, what is run, and that the table is what came of it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from matplotlib.figure import Figure

from papertape.agents.evaluation import evaluate_all
from papertape.core.circuit import Circuit
from papertape.core.options import OptionsError
from papertape.core.task import Task
from papertape.main import main, parse_arguments
from papertape.utils import checkpoint, comparison, factory, league, options
from papertape.utils.commands.league import plan
from papertape.utils.comparison import Outcome

SMALL: dict[str, Any] = {
    "about": "Copying.\nFigures of nobody.",
    "score": "error",
    "solved": 3.0,
    "seeds": [4],
    "common": {
        "env": {"width": 2, "max_length": 2, "test_lengths": [3]},
        "agent": {"type": "backprop", "batch_size": 4, "steps": 3, "evaluate_every": 3, "evaluation_sequences": 4},
        "device": "cpu",
    },
    "tasks": {"copy": {"env": {"type": "copy"}}},
    "circuits": {
        "small": {"circuit": {"type": "ntm", "memory_size": 4, "word_size": 3}},
        "wrong": {"circuit": {"type": "ntm", "memory_size": 0}},
    },
    "published": {"small": {"copy": 1.5}, "theirs": {"copy": 4.0}},
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(**changes: Any) -> str:
    Path("small.yaml").write_text(yaml.safe_dump({**SMALL, **changes}))
    return "small.yaml"


def outcome(task: str, circuit: str, seed: int, *errors: float, status: str = "done") -> Outcome:
    found = {f"length {10 * place}": error for place, error in enumerate(errors, 1)}
    labels = {"task": task, "circuit": circuit}
    return Outcome(f"{task},{circuit},seed={seed}", labels, seed, status, "", 1, 1.0, 0, [], found, "error_rate")


def test_all_runs_end_in_one_table_and_go_on(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert main(["league", write(), "--jobs", "1", "--sequences", "8", "agent.steps=2"]) == 1
    (directory,) = (folder / "runs").iterdir()
    said = capsys.readouterr()
    assert "copy,wrong,seed=4 failed: circuit.memory_size" in said.err
    text = (directory / "league.md").read_text()
    assert said.out == text and text.startswith("Copying. Figures of nobody. All runs here under agent.steps=2.\n")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == ["task", "small", "small, published", "wrong", "theirs, published"]
    assert lines[2][0] == "copy" and lines[2][2:] == ["1.5", "", "4"]
    assert float(lines[2][1]) == pytest.approx(float(_csv(directory)["length 3"]), abs=1e-3)
    assert lines[3][2:] == ["1", "0", "0"]
    assert (directory / "lengths.png").stat().st_size > 5_000
    assert "runs/" in said.err and "2 at a time" not in said.err
    before = (directory / "copy,small,seed=4" / "checkpoints" / "latest.pt").stat().st_mtime_ns
    assert main(["league", "--resume", "latest", "--sequences", "8"]) == 1
    assert capsys.readouterr().out == text
    assert (directory / "copy,small,seed=4" / "checkpoints" / "latest.pt").stat().st_mtime_ns == before


def test_a_circuit_s_test_may_have_a_memory_of_another_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def evaluated(task: Task, circuit: Circuit, *given: Any, **more: Any) -> dict[str, float]:
        seen.append((circuit.accessor.memory_size, circuit.initial_state(1).accessor.memory.shape[1]))  # type: ignore[union-attr, operator]
        return evaluate_all(task, circuit, *given, **more)

    file = write(test_options={"small": ["circuit.memory_size=9"]})
    words = ["--circuits", "small", "--jobs", "1", "--sequences", "4", "agent.steps=1", "agent.evaluate_every=1"]
    assert main(["league", file, *words]) == 0
    (directory,) = (folder / "runs").iterdir()
    kept = json.loads((directory / "copy,small,seed=4" / "tested.json").read_text())
    assert kept["options"] == ["circuit.memory_size=9"]
    monkeypatch.setattr(comparison, "evaluate_all", evaluated)
    (directory / "copy,small,seed=4" / "tested.json").unlink()
    assert main(["league", "--resume", "latest", "--sequences", "4", "--jobs", "1"]) == 0  # of another process
    assert comparison.errors_on_test(directory / "copy,small,seed=4", 4) and seen == [(4, 4)]
    again = comparison.errors_on_test(directory / "copy,small,seed=4", 4, ["circuit.memory_size=9"])
    assert seen[-1] == (9, 9) and again == kept["errors"]
    best = directory / "copy,small,seed=4" / "checkpoints" / "best.pt"
    state = checkpoint.load(best)
    weights = state["agent"]["circuit"]
    weights |= {name: torch.randn_like(value) for name, value in weights.items()}
    checkpoint.save(best, state)
    other = comparison.errors_on_test(directory / "copy,small,seed=4", 4, ["circuit.memory_size=9"])
    assert other != again, "other weights of the same step"


@pytest.mark.parametrize("score", ["accuracy", "return"])
def test_errors_that_are_a_share_of_nothing_have_no_such_score(
    score: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["league", write(score=score)]) == 2
    assert "the error of task 'copy' is bits_wrong" in capsys.readouterr().err
    assert not (folder / "runs").exists()


def test_what_a_league_left_is_gone_on_with_as_a_league(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["league", write(), "--circuits", "small", "--sequences", "4", "agent.steps=1", "name=ours"]) == 0
    assert main(["train", "--resume", "ours"]) == 2
    said = capsys.readouterr().err
    assert "'ours', which is a league" in said and "league --resume ours" in said


def _csv(directory: Path) -> dict[str, str]:
    import csv

    with open(directory / "runs.csv", encoding="utf-8") as file:
        return next(row for row in csv.DictReader(file) if row["circuit"] == "small")


def test_a_cell_is_the_best_the_mean_and_the_worst() -> None:
    chosen = league.League(
        about="x",
        tasks={"a": {}, "b": {}},
        circuits={"lstm": {}, "tape": {}},
        seeds=[1, 2],
        solved=90,
        published={"lstm": {"a": 91.0}},
    )
    outcomes = [
        *(outcome("a", "lstm", 1, 0.9, 0.02, 0.04), outcome("a", "lstm", 2, 0.0, 0.5, 0.3)),
        *(outcome("a", "tape", 1, 0.0, 0.25), outcome("a", "tape", 2, 0.0, status="stopped")),
        *(outcome("b", "lstm", 1, 0.0, 0.1), outcome("b", "lstm", 2, 0.0, math.nan)),
    ]
    lines = [line for line in league.table(chosen, outcomes).splitlines() if line.startswith("|")]
    assert lines[0] == "| task | lstm | lstm, published | tape |"
    assert lines[2] == "| a | 97.0 (78.5, 60.0) | 91 | 75.0 of 1 done |"
    assert lines[3] == "| b | 90.0 (nan, nan) |  |  |"
    assert lines[4] == "| solved, of 2 | 2 | 1 | 0 |"
    assert league.score(chosen.model_copy(update={"judged": "all"}), outcomes[0]) == pytest.approx(68.0)
    assert league.score(chosen.model_copy(update={"judged": "last"}), outcomes[0]) == pytest.approx(96.0)


def test_what_is_tested_on_other_sets_is_drawn_there_and_the_table_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"about": "x", "tasks": {"a": {}, "b": {}}, "circuits": {"dnc": {}, "ntm": {}}}
    chosen = league.League(**given, seeds=[1])
    far = {"length 10": 0.5, "length 15": 0.25, "length 30": 0.0}
    outcomes = [outcome("a", "dnc", 1, 0.1, 0.2, 0.3), outcome("a", "ntm", 1)._replace(errors=far)]
    outcomes += [outcome("b", circuit, 1, 0.1, 0.2) for circuit in ("dnc", "ntm")]
    said = [line for line in league.table(chosen, outcomes).splitlines() if line.startswith("Of ")]
    assert said == [
        "Of a, the means are over different sets of the test: dnc on length 20, length 30; ntm on length 15, length 30."
    ]
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: drawn.append(figure) or path.touch())
    league.write(folder, chosen, outcomes)
    axes, same = drawn[0].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10", "15", "20", "30"]
    dnc, ntm = (dict(zip(*map(list, line.get_data()), strict=True)) for line in axes.lines)
    assert dnc == pytest.approx({0: 90, 2: 80, 3: 70}) and ntm == pytest.approx({0: 50, 1: 75, 3: 100})
    assert [label.get_text() for label in same.get_xticklabels()] == ["10", "20"]


def test_a_return_is_one_less_the_error_and_the_highest_is_the_best() -> None:
    given: dict[str, Any] = {"about": "x", "tasks": {"a": {}}, "circuits": {"dnc": {}}, "seeds": [1, 2], "solved": 0.9}
    chosen = league.League(**given, score="return", published={"best": {"a": 0.789}})
    lines = league.table(chosen, [outcome("a", "dnc", 1, 0.0625), outcome("a", "dnc", 2, 1.25)]).splitlines()
    assert "Mean return over the sets" in lines[2]
    assert lines[4:] == [
        "| task | dnc | best, published |",
        "| --- | ---: | ---: |",
        "| a | 0.938 (0.344, -0.250) | 0.789 |",
        "| solved, of 1 | 1 | 0 |",
    ]


def test_what_a_circuit_or_a_task_says_precedes_what_is_common() -> None:
    chosen = league.League(
        about="x",
        common={"env": {"width": 3}, "agent": {"type": "backprop", "lr": 1.0, "optimiser": {"type": "adam", "eps": 2}}},
        circuits={"c": {"agent": {"lr": 2.0, "optimiser": {"type": "sgd"}}}},
        tasks={"t": {"env": {"type": "copy"}, "agent": {"lr": 3.0}}},
    )
    values = league.run_options(chosen, "t", "c", 7)
    assert values == {
        "env": {"width": 3, "type": "copy"},
        "agent": {"type": "backprop", "lr": 3.0, "optimiser": {"type": "sgd"}},
        "seed": 7,
    }
    assert chosen.common["agent"]["lr"] == 1.0


@pytest.mark.parametrize(
    ("changes", "words", "said"),
    [
        ({}, ["--tasks", "cpy"], "--tasks: got 'cpy'; did you mean 'copy'? allowed: copy"),
        ({}, ["--circuits", "small,large"], "--circuits: got 'large'; allowed: small, wrong"),
        ({}, ["--seeds", "a"], "--seeds: got 'a'; allowed: whole numbers"),
        ({}, ["--seeds", "²"], "--seeds: got '²'; allowed: whole numbers"),
        ({}, ["seed=3"], "seed: the runs of a league differ in it; --seeds gives them"),
        ({}, ["name=a b"], "name: got 'a b'"),
        ({"seeds": [1, 1]}, [], "small.yaml: seeds: got [1, 1]; allowed: each of them once"),
        ({"seeds": [-1]}, [], "small.yaml: seeds.0: got -1; allowed: greater than or equal to 0"),
        ({"seeds": [2**31]}, [], "small.yaml: seeds.0: got 2147483648; allowed: less than 2147483648"),
        ({}, ["--seeds", "2147483648"], "--seeds.0: got 2147483648; allowed: less than 2147483648"),
        ({}, ["--seeds", "1,01"], "--seeds: got [1, 1]; allowed: each of them once"),
        ({"circuit": {}}, [], "small.yaml: circuit: unknown option; did you mean 'circuits'?"),
        ({}, ["more"], "'more': expected key=value"),
        ({}, ["--jobs", "0"], "--jobs: got 0; allowed is a whole number of at least 1"),
        ({}, ["--circuits", "wrong"], "small.yaml: copy,wrong,seed=4: circuit.memory_size: got 0"),
        ({"tasks": {}}, [], "tasks: got {}; allowed: 1 or more entries"),
        ({"tasks": {"a b": {}}}, [], "tasks: got 'a b'; allowed: letters, digits and any of _.-"),
        ({"tasks": {40 * "漢": {}}}, [], "allowed: letters, digits and any of _.-, in 100 bytes"),
        ({"tasks": {1: {}}}, [], "tasks: got the key 1; allowed: a valid string"),
        ({"seeds": []}, [], "seeds: got []; allowed: 1 or more entries"),
        ({"score": "loss"}, [], "score: "),
        ({"published": {"small": {"recall": 1.0}}}, [], "published.small: got 'recall'; allowed: copy"),
        ({"extra": 1}, [], "extra: "),
        (
            {"common": {**SMALL["common"], "plots": {"type": "files", "x": 1}}},
            [],
            "small.yaml: copy,small,seed=4: plots.x: unknown option; known here: none",
        ),
        ({"test_options": {"large": []}}, [], "test_options: got 'large'; allowed: small, wrong"),
        ({"test_options": {"small": ["circuit.memory=9"]}}, ["--circuits", "small"], "circuit.memory"),
    ],
)
def test_bad_leagues_are_refused(
    changes: dict[str, Any], words: list[str], said: str, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    assert main(["league", write(**changes), *words]) == 2
    assert said in capsys.readouterr().err
    assert not (folder / "runs").exists()


def test_a_league_may_have_every_seed_that_a_run_may_have(folder: Path) -> None:
    found = plan(parse_arguments(["league", write(), "--seeds", "20000000,2147483647"]))[0]
    league.save(folder, found)
    assert league.load("league.yaml") == found and found.seeds == [20_000_000, 2**31 - 1]


@pytest.mark.parametrize("text", ["", "- copy"])
def test_a_file_that_is_no_league(text: str) -> None:
    Path("small.yaml").write_text(text)
    with pytest.raises(OptionsError, match="small.yaml: got .*; expected a mapping with about, tasks and circuits"):
        league.load("small.yaml")


def test_modules_are_found_from_the_league_s_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(common={**SMALL["common"], "imports": ["own.py", "json"]})
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert league.load("../small.yaml").common["imports"] == [str(folder / "own.py"), "json"]


def test_the_league_of_the_documentation_has_options() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "seeds.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    Path("mine.yaml").write_text(text)
    chosen = league.load("mine.yaml")
    for task in chosen.tasks:
        for circuit in chosen.circuits:
            factory.parse(league.run_options(chosen, task, circuit, 1))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["threads=1", "plots=off"], ""),
        (["agent.steps=2", "threads=1"], " All runs here under agent.steps=2."),
        (
            ["env={type: copy}", "agent.lr=1"],
            " All runs here under env={type: copy}, agent.lr=1. Published figures are of the tasks without that.",
        ),
    ],
)
def test_the_table_says_under_which_options(words: list[str], said: str) -> None:
    parsed = parse_arguments(["league", write(), *words])
    assert plan(parsed)[0].about == SMALL["about"] + said


@pytest.mark.parametrize(
    ("said", "words", "expected"),
    [
        ({}, [], "off"),
        ({}, ["plots=files"], "files"),
        ({"plots": "files"}, [], "files"),
        ({"plots": "files"}, ["plots=off"], "off"),
        ({}, ["plots.type=files"], "files"),
    ],
)
def test_nothing_is_drawn_unless_the_file_or_the_command_line_says_so(
    said: dict[str, Any], words: list[str], expected: str
) -> None:
    file = write(common={**SMALL["common"], **said})
    runs = plan(parse_arguments(["league", file, "--circuits", "small", *words]))[1]
    assert [run.options["plots"] for run in runs] == [expected]


def test_a_league_may_have_a_name(folder: Path) -> None:
    assert main(["league", write(), "--circuits", "small", "--jobs", "1", "--sequences", "8", "name=mine"]) == 0
    assert (folder / "runs" / "mine" / "league.md").is_file()


def test_an_unknown_league_names_those_that_there_are() -> None:
    with pytest.raises(OptionsError, match="league: got 'chomski'; did you mean 'chomsky'.*or a path"):
        league.load("chomski")
    with pytest.raises(OptionsError, match="league: got 'zebra'; allowed: chomsky, popgym, .*or a path"):
        league.load("zebra")


@pytest.mark.parametrize("name", options.names(options.LEAGUES))
def test_every_run_of_the_package_s_leagues_has_options(name: str) -> None:
    chosen = league.load(name)
    for task in chosen.tasks:
        for circuit in chosen.circuits:
            factory.parse(league.run_options(chosen, task, circuit, 1))
