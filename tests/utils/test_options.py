"""Options: presets are valid, and everything wrong is refused in one line that names the key."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from papertape.core.component import options_of
from papertape.core.options import OptionsError
from papertape.core.registry import lookup
from papertape.envs import images
from papertape.utils import factory, options


def parse(*assignments: str, preset: str = "ntm-copy") -> factory.RunOptions:
    values = options.load_file(preset)
    options.override(values, assignments)
    return factory.parse(values)


@pytest.mark.parametrize("preset", options.names())
def test_presets_are_valid_and_survive_a_round_trip(preset: str) -> None:
    chosen = parse(preset=preset)
    dumped = yaml.safe_dump(chosen.model_dump(mode="json"))
    assert factory.parse(options.parse_yaml(dumped, "dump")) == chosen


NEEDS = {"swimmer": ["mujoco"], "hopper": ["mujoco"], "halfcheetah": ["mujoco"], "lunarlander": ["Box2D"]}
"""Modules that the worlds of presets need besides gymnasium."""


@pytest.mark.parametrize("preset", options.names())
def test_presets_build(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = torch.zeros(6000, 28, 28, dtype=torch.uint8), torch.arange(6000) % 10
    monkeypatch.setattr(images, "load", lambda name: (pictures, pictures))
    chosen = parse("device=cpu", preset=preset)
    if chosen.env.type == "gym":
        pytest.importorskip("gymnasium")
        for name in NEEDS.get(preset, ()):
            pytest.importorskip(name)
    env, circuit, agent = factory.build(chosen)
    assert (circuit.input_size, circuit.output_size) == (env.input_size, env.output_size)
    assert type(agent).__name__ in factory.describe(factory.Parts(env, circuit, agent))


ALL_CIRCUITS = (
    "dnc, feedforward, gru, lstm, memory, neat, normalised, ntm, recurrent, routed, sam, sdnc, stack-rnn, tape, "
    "tape-rnn, transformer"
)

WRONG = [
    ("agent.lrr=1", "agent.lrr: unknown option; did you mean 'agent.lr'?"),
    ("agent.lr=fast", "agent.lr: got 'fast'; allowed: a valid number"),
    ("agent.lr=0", "agent.lr: got 0; allowed: greater than 0"),
    ("agent.lr=-1e-3", "agent.lr: got -0.001; allowed: greater than 0"),
    ("agent.lr=.nan", "agent.lr: got nan; allowed: a finite number"),
    ("agent.lr=.inf", "agent.lr: got inf; allowed: a finite number"),
    ("agent.batch_size=0", "agent.batch_size: got 0; allowed: greater than or equal to 1"),
    ("agent.batch_size=1.5", "agent.batch_size: got 1.5; allowed: a valid integer"),
    ("agent.batch_size=true", "agent.batch_size: got True; allowed: a valid integer"),
    ("agent.batch_size='16'", "agent.batch_size: got '16'; allowed: a valid integer"),
    ("agent.batch_size=null", "agent.batch_size: got None; allowed: a valid integer"),
    ("agent.clip_norm=", "agent.clip_norm: got nothing; allowed: a value, or null for none"),
    ("agent.clip_norm= # later", "agent.clip_norm: got nothing; allowed: a value, or null for none"),
    ("agent=", "agent: got nothing; allowed: a value, or null for none"),
    ("agent.optimiser=lion", "agent.optimiser.type: got 'lion'; allowed: adam, "),
    ("agent.optimiser.type=addam", "agent.optimiser.type: got 'addam'; did you mean 'adam'? allowed: adam, "),
    ("agent.optimiser=3", "agent.optimiser: got 3; expected a block with a type, such as {type: adam}"),
    ("agent.optimiser={betas: [0.5, 0.9]}", "agent.optimiser.type: missing; allowed: adam, "),
    ("agent.schedule=step", "agent.schedule: got 'step'; allowed: 'constant', 'cosine' or 'linear'"),
    ("agent.optimiser.betas=[0.9]", "agent.optimiser.betas.1: missing"),
    ("agent.optimiser.betas=[0.9,1.0]", "agent.optimiser.betas.1: got 1.0; allowed: less than 1"),
    ("agent.optimiser={type: sgd, momentum: 1}", "agent.optimiser.momentum: got 1; allowed: less than 1"),
    ("agent.optimiser.epsilonn=1", "agent.optimiser.epsilonn: unknown option; did you mean 'agent.optimiser.epsilon'?"),
    ("agent={type: backprop, target_error_beyond: 0.3}", "agent.target_error_beyond: needs target_error"),
    (
        "agent.optimiser.momentum=0.5",
        "agent.optimiser.momentum: unknown option; agent.optimiser.type graves-rmsprop or rmsprop or ",
    ),
    ("agent.momentum=0.5", "agent.momentum: unknown option"),
    ("agent={type: backprop, retry_every: 5}", "agent.retry_every: needs target_error"),
    ("agent.final_lr=1", "agent.final_lr: got 1.0; allowed is at most lr (0.003)"),
    ("agent.type=backprob", "agent.type: got 'backprob'; did you mean 'backprop'? allowed: backprop, "),
    ("agent=3", "agent: got 3; expected a block with a type, such as {type: backprop}"),
    ("agent=backprob", "agent.type: got 'backprob'; did you mean 'backprop'? allowed: backprop, "),
    ("agent=null", "agent: got None; expected a block with a type, such as {type: backprop}; allowed: backprop, "),
    ("circuit.type=mamba", f"circuit.type: got 'mamba'; allowed: {ALL_CIRCUITS}"),
    ("circuit.type=null", f"circuit.type: got None; allowed: {ALL_CIRCUITS}"),
    ("circuit.memory_size=0", "circuit.memory_size: got 0; allowed: greater than or equal to 1"),
    ("circuit.memory_size=[1]", "circuit.memory_size: got [1]; allowed: a valid integer"),
    ("circuit.shift_range=-1", "circuit.shift_range: got -1; allowed: greater than or equal to 0"),
    (
        "circuit.memory_init=zero",
        "circuit.memory_init: got 'zero'; allowed: 'constant', 'learned' or 'truncated_normal'",
    ),
    ("circuit.weight_init=last", "circuit.weight_init: got 'last'; allowed: 'first', 'uniform' or 'learned'"),
    ("circuit.link_sharpening=true", "circuit.link_sharpening: unknown option; circuit.type dnc has it"),
    ("agent.strategy.type=snes", "agent.strategy: unknown option; agent.type evolution or mixed has it"),
    ("agent.zzz=1", "agent.zzz: unknown option; known here: batch_size, "),
    (
        "circuit.controller.max_nodes=3",
        "circuit.controller.max_nodes: unknown option; circuit.controller.type neat has it",
    ),
    ("circuit.clip=0", "circuit.clip: got 0; allowed: greater than 0"),
    ("circuit.controller=lsmt", "circuit.controller.type: got 'lsmt'; did you mean 'lstm'? allowed: automaton, "),
    ("circuit.controller=[lstm]", "circuit.controller: got ['lstm']; expected a block with a type, such as {type: "),
    ("env.curriculum=growin", "env.curriculum.type: got 'growin'; did you mean 'growing'? allowed: fixed, growing"),
    ("env.curriculum=3", "env.curriculum: got 3; expected a block with a type, such as {type: fixed}"),
    ("env.curriculum={start: 3}", "env.curriculum.type: missing; allowed: fixed, growing, lessons"),
    (
        "circuit.controller.type=mamba",
        (
            "circuit.controller.type: got 'mamba'; allowed: automaton, convolution, ctm, direct, feedforward, gru, "
            "hyper-lstm, leaky, lstm, neat, plastic, relational, reservoir, rnn"
        ),
    ),
    ("circuit.controller.hidden_size=0", "circuit.controller.hidden_size: got 0; allowed: greater than or equal to 1"),
    (
        "circuit.controller.hiden_size=10",
        "circuit.controller.hiden_size: unknown option; did you mean 'circuit.controller.hidden_size'?",
    ),
    (
        "env.type=coppy",
        "env.type: got 'coppy'; did you mean 'copy'? allowed: arithmetic, associative-recall, autoencode, ",
    ),
    ("env.width=0", "env.width: got 0; allowed: greater than or equal to 1"),
    ("env.min_length=30", "env.min_length: got 30; allowed is at most max_length, which is 20"),
    ("env.test_lengths=[0]", "env.test_lengths.0: got 0; allowed: greater than or equal to 1"),
    ("env.curriculum.type=random", "env.curriculum.type: got 'random'; allowed: fixed, growing, lessons"),
    ("env.curriculum={type: growing, start: 50}", "env.curriculum.start: got 50; allowed is at most 20"),
    ("env.loss_per=mean", "env.loss_per: got 'mean'; allowed: 'sequence' or 'bit'"),
    ("seed=-1", "seed: got -1; allowed: greater than or equal to 0"),
    ("seed=one", "seed: got 'one'; allowed: a valid integer"),
    ("device=tpu9", "device: got 'tpu9'; allowed: auto, cpu, cuda, cuda:1 and so on, "),
    ("backend=fast", "backend: got 'fast'; allowed: 'auto', "),
    ("plots=png", "plots.type: got 'png'; allowed: auto, files, off, visdom"),
    ("plots=[files, png]", "plots.1: got 'png'; allowed: auto, files, off, visdom"),
    ("plots=[{type: files}, {type: nope}]", "plots.1.type: got 'nope'; allowed: auto, "),
    ("plots={type: files, x: 1}", "plots.x: unknown option; known here: none"),
    ("plots=[{type: files, sede: 1}]", "plots.0.sede: unknown option; did you mean 'seed'?"),
    ("plots.x=1", "plots.x: unknown option; known here: none"),
    ("plots.1=files", "plots.1: plots is the list [{'type': 'auto'}]; allowed after it: a place from 0 to 0"),
    ("plots=null", "plots: got None; expected a block with a type, such as {type: auto}; allowed: auto, files, "),
    ("plots=[true]", "plots.0: got True; expected a block with a type, such as {type: auto}; allowed: auto, files, "),
    ("visdom_port=70000", "visdom_port: got 70000; allowed: less than or equal to 65535"),
    ("threads=0", "threads: got 0; allowed: auto, or a whole number from 1 to 1024"),
    ("start=''", "start: got ''; allowed: 1 or more characters"),
    ("env={type: copy, 1: 2}", "env: got the key 1; allowed: a valid string"),
    ("env={type: gym, arguments: {1: 2}}", "env.arguments: got the key 1; allowed: a valid string"),
    ("agent.optimiser.betas=[1,1,1]", "agent.optimiser.betas: got [1, 1, 1]; allowed: up to 2 entries"),
    ("env.width=10000001", "env.width: got 10000001; allowed: at most 10000000"),
    ("sede=1", "sede: unknown option; did you mean 'seed'?"),
]


@pytest.mark.parametrize(("assignment", "message"), WRONG, ids=[assignment for assignment, _ in WRONG])
def test_wrong_value(assignment: str, message: str) -> None:
    with pytest.raises(OptionsError) as caught:
        parse(assignment)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("assignment", ["lr", "=3", "agent..lr=1", ".=1", "agent.lr"])
def test_not_an_assignment(assignment: str) -> None:
    with pytest.raises(OptionsError, match="expected key=value"):
        parse(assignment)


def test_first_sentences_are_plain() -> None:
    text = """Inputs of :mod:`~papertape.core.topology`, by ``torch`` (arXiv 1410.5401),
    in two lines. More."""
    assert options.first_sentence(text) == "Inputs of topology, by torch (arXiv 1410.5401), in two lines."


def test_another_optimiser_takes_over_no_settings() -> None:
    """As when a run goes on, whose options are all written down; what is given for the new one counts."""
    values = parse("agent.optimiser.epsilon=1e-5", "agent.optimiser.weight_decay=0.1").model_dump(mode="json")
    lost = options.override(values, ["agent.optimiser.smoothing=0.8", "agent.optimiser.type=graves-rmsprop"])
    (line,) = lost
    left_out = "betas, weight_decay (not among its options), epsilon (another meaning there)"
    assert line == f"agent.optimiser.type=graves-rmsprop: left out {left_out}; defaults hold for the rest"
    agent: Any = factory.parse(values).agent
    assert (agent.optimiser.epsilon, agent.optimiser.smoothing, agent.optimiser.momentum) == (1e-4, 0.8, 0.9)
    assert agent.optimiser.model_fields_set == {"type", "smoothing"}
    assert agent.lr == parse().agent.lr
    assert options.override(values, ["agent.optimiser.type=graves-rmsprop"]) == []


def test_a_block_may_be_said_by_its_name_alone() -> None:
    """In a file, and in place of one, where it is another type of it."""
    values, lines = change("ntm-copy", "agent.optimiser=graves-rmsprop", "circuit.controller=gru", "env=repeat-copy")
    assert values["circuit"]["controller"] == {"type": "gru", "hidden_size": 100} and not lines
    chosen: Any = factory.parse(values)
    assert chosen.agent.optimiser == options_of(lookup("optimiser", "graves-rmsprop"))()
    assert chosen.env.type == "repeat-copy"
    assert change("ntm-copy", "circuit=neat", "agent=evolution") == change(
        "ntm-copy", "circuit.type=neat", "agent.type=evolution"
    )
    values = parse("agent.optimiser.epsilon=1e-5").model_dump(mode="json")
    assert options.override(values, ["agent.optimiser=adam"]) == []
    assert values == parse("agent.optimiser.epsilon=1e-5").model_dump(mode="json")
    (line,) = options.override(values, ["agent.optimiser=sgd", "agent.optimiser.momentum=0.5"])
    assert line.startswith("agent.optimiser.type=sgd: left out ")
    chosen = factory.parse(values)
    assert chosen.agent.optimiser == options_of(lookup("optimiser", "sgd"))(momentum=0.5)
    chosen = factory.parse({"env": "copy", "circuit": "dnc", "agent": "backprop"})
    assert (chosen.env.type, chosen.circuit.type, chosen.agent.type) == ("copy", "dnc", "backprop")
    assert chosen == factory.parse({name: {"type": getattr(chosen, name).type} for name in ("env", "circuit", "agent")})


@pytest.mark.parametrize(
    ("blocks", "assignment", "path", "expected"),
    [
        ({}, "circuit.controller.hidden_size=32", "circuit.controller", {"type": "lstm", "hidden_size": 32}),
        ({}, "agent.optimiser.betas=[0.5,0.9]", "agent.optimiser", {"type": "adam", "betas": (0.5, 0.9)}),
        (
            {"circuit": "ntm"},
            "circuit.controller.num_layers=2",
            "circuit.controller",
            {"type": "lstm", "num_layers": 2},
        ),
        (
            {"circuit": {"type": "ntm", "controller": "gru"}},
            "circuit.controller.hidden_size=32",
            "circuit.controller",
            {"type": "gru", "hidden_size": 32},
        ),
        (
            {"agent": "evolution"},
            "agent.strategy.sigma=0.5",
            "agent.strategy",
            {"type": "openai-es", "sigma": 0.5},
        ),
    ],
)
def test_a_block_that_is_not_given_is_overridden_in_part(
    blocks: dict[str, Any], assignment: str, path: str, expected: dict[str, Any]
) -> None:
    values = {"env": {"type": "copy"}, "circuit": {"type": "ntm"}, "agent": {"type": "backprop"}, **blocks}
    assert options.override(values, [assignment]) == []
    chosen: Any = factory.parse(values)
    for part in path.split("."):
        chosen = getattr(chosen, part)
    kind = path.split(".")[-1]
    assert chosen == options_of(lookup(kind, expected["type"]))(**expected)


@pytest.mark.parametrize(
    ("paper", "preset", "expected"),
    [
        (
            "the NTM paper",
            "ntm-copy",
            {
                "optimiser": {"type": "graves-rmsprop", "smoothing": 0.95, "momentum": 0.9, "epsilon": 1e-4},
                "clip_value": 10.0,
            },
        ),
        (
            "DeepMind's DNC",
            "dnc-repeat-copy",
            {
                "optimiser": {"type": "tensorflow-rmsprop", "smoothing": 0.9, "momentum": 0.0, "epsilon": 1e-10},
                "clip_norm": 50.0,
            },
        ),
    ],
)
def test_settings_of_papers_are_as_documented(paper: str, preset: str, expected: dict[str, Any]) -> None:
    page = (options.PRESETS.parent / "docs" / "formulas.md").read_text(encoding="utf-8")
    (line,) = (line for line in page.splitlines() if line.startswith(f"| settings of {paper} |"))
    agent = parse(*line.split("`")[1].split(), preset=preset).agent.model_dump()
    assert {name: agent[name] for name in expected} == expected
    assert agent["lr"] == agent["final_lr"] == 1e-4 and agent["warmup_steps"] == 0
    assert (agent["clip_norm"] is None) == (paper == "the NTM paper")


def test_path_through_a_value() -> None:
    with pytest.raises(OptionsError, match=r"seed\.x: seed is 3, not a block"):
        parse("seed=3", "seed.x=1")


def test_every_problem_is_listed() -> None:
    with pytest.raises(OptionsError) as caught:
        parse("agent.lr=0", "env.width=x", "sed=1", "circuit.memory_size=-4")
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "env.width",
        "circuit.memory_size",
        "agent.lr",
        "sed",
    ]


FILES = [
    ("env: [1, 2", "line 1"),
    ("- 1\n- 2\n", "got list; expected a mapping"),
    ("", "got NoneType; expected a mapping"),
    ("name: a\nseed: 1\nseed: 2\n", "line 3: the key 'seed' is given twice"),
    ("seed: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
]


@pytest.mark.parametrize(("text", "message"), FILES)
def test_wrong_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(OptionsError, match="mine.yaml") as caught:
        options.load_file(str(path))
    assert message in str(caught.value)


def doubled(levels: int, first: str, row: str) -> str:
    """A short text of YAML in which each row is ten times the one before."""
    rows = [f"r0: &r0 {first}"]
    rows += [f"r{n}: &r{n} {row.format(', '.join([f'*r{n - 1}'] * 10))}" for n in range(1, levels)]
    return "\n".join(rows)


TOO_MANY = "all values together, with those that aliases repeat, have more than 1,000,000 characters"
TOO_DEEP = "more than 50 blocks or lists are within each other"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (doubled(10, "[x]", "[{}]"), TOO_MANY),
        (doubled(10, "{a: 1}", "{{<<: [{}]}}"), TOO_MANY),
        (doubled(3, "x" * 100_000, "[{}]"), TOO_MANY),
        ("imports: " + "[" * 50 + "]" * 50, TOO_DEEP),
        ("imports: &a [*a, *a]", TOO_DEEP),
        ("a: &a " + "[" * 30 + "]" * 30 + "\nb: " + "[" * 30 + "*a" + "]" * 30, TOO_DEEP),
    ],
)
def test_a_file_of_too_much_is_refused_before_anything_walks_through_it(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(OptionsError, match=f"mine.yaml: cannot be read: {said}$"):
        options.load_file(str(path))


def test_aliases_are_for_what_is_said_twice() -> None:
    assert options.parse_yaml(doubled(4, "[x]", "[{}]"), "x")["r3"][9][9][9] == ["x"]
    text = "[" * 50 + "]" * 50
    assert str(options.parse_yaml(text, "x")) == text


def test_circuits_within_each_other_have_an_end() -> None:
    circuit: Any = "lstm"
    for _ in range(300):
        circuit = {"type": "normalised", "circuit": circuit}
    with pytest.raises(OptionsError, match=f"^options: {TOO_DEEP}$"):
        factory.parse({"env": "t-maze", "circuit": circuit, "agent": "ppo"})


def test_a_list_is_no_key() -> None:
    with pytest.raises(OptionsError, match="line 1: found unhashable key"):
        options.parse_yaml("[a]: 1", "x")


@pytest.mark.parametrize("agent", ["backprop", "empty"])
def test_agents_that_take_no_rewards_are_refused_in_a_world(agent: str) -> None:
    values = {"env": {"type": "t-maze"}, "circuit": {"type": "ntm"}, "agent": {"type": agent}}
    with pytest.raises(OptionsError, match=f"^agent.type: got '{agent}'; env.type 't-maze' is a world with rewards"):
        factory.parse(values)


def test_unknown_preset_and_missing_file() -> None:
    with pytest.raises(OptionsError, match="preset: got 'ntm-cpy'; did you mean 'ntm-copy'"):
        options.load_file("ntm-cpy")
    with pytest.raises(OptionsError, match=r"nowhere/x\.yaml: cannot be read: No such file"):
        options.load_file("nowhere/x.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E5", 1e5),
        ("-2e+3", -2e3),
        (".5e1", 5.0),
        ("3", 3),
        ("e5", "e5"),
        ("~", None),
        ("off", "off"),
        ("no", "no"),
        ("true", True),
        ("False", False),
        ("010", "010"),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("2026-11-30", "2026-11-30"),
        ("0x1F", 31),
        ("0x_", "0x_"),
        ("0x_1", 1),
        ("-1_000", -1000),
        ("0", 0),
        ("1.", 1.0),
        ("-.inf", -math.inf),
    ],
)
def test_values_as_people_write_them(text: str, value: Any) -> None:
    assert options.parse_yaml(text, "test") == value


def test_a_block_that_is_merged_in_may_be_changed() -> None:
    text = "a: &a {lr: 1e-2, steps: 3}\nb:\n  <<: *a\n  steps: 5"
    assert options.parse_yaml(text, "test")["b"] == {"lr": 1e-2, "steps": 5}
    with pytest.raises(OptionsError, match="the key 'steps' is given twice"):
        options.parse_yaml(f"{text}\n  steps: 5", "test")


def test_what_no_file_of_text_holds_is_said_in_one_line() -> None:
    with pytest.raises(OptionsError, match=r"^seed: unacceptable character #x0000: [^\n]*$"):
        options.parse_yaml("1\0", "seed")


def test_a_key_is_given_once() -> None:
    with pytest.raises(OptionsError, match=r"^agent\.lr: given twice$"):
        parse("agent.lr=1e-3", "seed=2", "agent.lr=1e-3")


def test_a_key_of_the_whole_file_that_is_no_word_is_named() -> None:
    with pytest.raises(OptionsError, match=r"^got the key 1; allowed: a valid string$"):
        factory.parse({1: 2, **options.load_file("ntm-copy")})  # type: ignore[dict-item]


@pytest.mark.parametrize("value", ["null", "~", "Null", "null # of any size"])
def test_null_is_spelt_out(value: str) -> None:
    agent: Any = parse(f"agent.clip_norm={value}").agent
    assert agent.clip_norm is None


@pytest.mark.parametrize(
    ("text", "keys"),
    [("{1: a, true: b}", "1 and True"), ("{0: a, false: b}", "0 and False"), ("{1: a, 1.0: b}", "1 and 1.0")],
)
def test_keys_that_are_one_in_python_are_named_as_they_are(text: str, keys: str) -> None:
    with pytest.raises(OptionsError, match=f"the keys {keys} are the same; quotation marks make words of them"):
        options.parse_yaml(text, "test")
    assert options.parse_yaml("{'1': a, 'true': b}", "test") == {"1": "a", "true": "b"}


def test_whole_numbers_may_have_exponents() -> None:
    agent: Any = parse("agent.steps=1e3", "agent.lr=1e0").agent
    assert agent.steps == 1000 and type(agent.steps) is int
    assert agent.lr == 1 and type(agent.lr) is float
    with pytest.raises(OptionsError, match=r"^agent\.steps: got 0\.1; allowed: a valid integer"):
        parse("agent.steps=1e-1")


def change(preset: str, *assignments: str) -> tuple[dict[str, Any], list[str]]:
    """The raw values of a preset under assignments, which are valid, and what is said about them."""
    values = options.load_file(preset)
    lines = options.override(values, assignments)
    factory.parse(values)
    return values, lines


def test_another_type_keeps_what_means_the_same() -> None:
    values, lines = change("dnc-repeat-copy", "circuit.controller.type=gru")
    assert values["circuit"]["controller"] == {"type": "gru", "hidden_size": 64} and not lines
    values, lines = change("ntm-copy", "circuit.type=dnc", "circuit.word_size=12")
    assert values["circuit"]["controller"] == {"type": "lstm", "hidden_size": 100} and not lines
    assert (values["circuit"]["memory_size"], values["circuit"]["word_size"]) == (128, 12)


@pytest.mark.parametrize("name", ["neat", "feedforward"])
def test_another_type_drops_what_it_does_not_have(name: str) -> None:
    learns = ["agent.type=evolution"] if name == "neat" else []
    values, lines = change("ntm-copy", f"circuit.type={name}", *learns)
    assert values["circuit"] == {"type": name}
    left_out = "controller, memory_size, word_size, clip (not among its options)"
    line = f"circuit.type={name}: left out {left_out}; defaults hold for the rest"
    assert [each for each in lines if "circuit" in each] == [line]


def test_steps_are_not_taken_for_generations() -> None:
    before = options.load_file("ntm-copy")["agent"]
    values, lines = change("ntm-copy", "agent.strategy.type=snes", "agent.type=evolution", "agent.log_every=7")
    same = ("batch_size", "target_error", "target_error_beyond", "confirmation_sequences")
    assert values["agent"] == {
        "type": "evolution",
        "strategy": {"type": "snes"},
        "log_every": 7,
        **{key: before[key] for key in same if key in before},
    }
    assert len(lines) == 1 and lines[0].startswith("agent.type=evolution: left out ") and "evaluate_every" in lines[0]
    values, lines = change("ntm-copy", "agent.type=node-perturbation")
    assert values["agent"] == before | {"type": "node-perturbation"} and not lines
    values, lines = change("ntm-copy", "agent.type=empty")
    assert values["agent"] == {"type": "empty", "batch_size": before["batch_size"]}


def test_a_learning_rate_of_one_strategy_is_none_of_another() -> None:
    values, _ = change("mnist-es", "agent.strategy.type=snes")
    before = options.load_file("mnist-es")["agent"]["strategy"]
    assert {"lr", "sigma", "population"} <= before.keys()
    assert values["agent"]["strategy"] == {"type": "snes", "population": before["population"]}


def test_values_that_the_new_type_refuses_are_dropped() -> None:
    values, lines = change("mnist-es", "agent.type=mixed")  # whose members take up what they have learned
    assert "strategy" not in values["agent"]
    assert lines == ["agent.type=mixed: left out strategy (a value that it does not take); defaults hold for the rest"]


def test_options_that_need_each_other_are_kept_together_in_any_order() -> None:
    values = options.load_file("ntm-copy")
    values["env"] = {"type": "copy", "min_length": 15, "max_length": 30}
    options.override(values, ["env.type=repeat-copy"])
    assert values["env"] == {"type": "repeat-copy", "min_length": 15, "max_length": 30}
    options.override(values, ["env.type=dynamic-ngrams"])
    assert values["env"] == {"type": "dynamic-ngrams"}


def test_what_is_kept_need_not_be_all_that_the_new_type_needs() -> None:
    values = options.load_file("ntm-copy")
    values["env"]["curriculum"] = {"type": "growing", "threshold": 2.5, "start": 3}
    lessons = ["env.curriculum.type=lessons", "env.curriculum.lessons=[{length: [1, 5]}]"]
    (line,) = options.override(values, lessons)
    left_out = "start (not among its options)"
    assert line == f"env.curriculum.type=lessons: left out {left_out}; defaults hold for the rest"
    assert values["env"]["curriculum"] == {"type": "lessons", "lessons": [{"length": [1, 5]}], "threshold": 2.5}
    factory.parse(values)


def test_a_type_that_is_no_name_can_be_replaced() -> None:
    values = options.load_file("ntm-copy")
    values["circuit"]["type"] = values["circuit"]["controller"]["type"] = [1]
    options.override(values, ["circuit.controller.type=gru", "circuit.type=dnc"])
    assert factory.parse(values).circuit.controller.type == "gru"


def test_an_unknown_type_is_the_one_thing_wrong() -> None:
    with pytest.raises(OptionsError, match=r"^circuit\.type: got 'mamba'; allowed: dnc, [^\n]*$"):
        parse("circuit.type=mamba")
    with pytest.raises(OptionsError, match=r"^circuit\.type: got \[\]; allowed: dnc, [^\n]*$"):
        parse("circuit.type=[]")


def test_swapping_a_controller_keeps_its_size() -> None:
    chosen = parse("circuit.controller.type=gru")
    assert chosen.circuit.controller.type == "gru"
    assert chosen.circuit.controller.hidden_size == 100


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *((text, "a value does not fit the tag before it") for text in ("!!bool x", "!!timestamp x", '!!int "x"')),
        *((text, "a value does not fit the tag before it") for text in ("!!timestamp 2020-13-45", "!!int ''")),
        ("[" * 5000, "there are too many brackets within each other"),
        ("1" * 5000, "got a number of 5,000 characters; allowed are up to 1,000"),
        ("0x" + "f" * 5000, "got a number of 5,002 characters; allowed are up to 1,000"),
    ],
)
def test_what_the_loader_does_not_foresee_names_the_source(text: str, said: str) -> None:
    with pytest.raises(OptionsError, match=rf"^seed(, line 1)?: (cannot be read: )?{said}"):
        options.parse_yaml(text, "seed")


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        (["plasticity=[redo]", "plasticity.0.every=5"], [{"type": "redo", "every": 5}]),
        (["plasticity=redo", "plasticity.0.every=5"], [{"type": "redo", "every": 5}]),
        (["plasticity=redo", "plasticity.every=5"], {"type": "redo", "every": 5}),
        (["plasticity=[redo, l2-init]", "plasticity.1=ewc"], ["redo", "ewc"]),
        (["plasticity=redo", "plasticity.0=ewc"], ["ewc"]),
    ],
)
def test_one_of_several_components_is_named_by_its_number(assignments: list[str], expected: Any) -> None:
    values = options.load_file("ntm-copy")
    options.override(values, [f"agent.{assignment}" for assignment in assignments])
    assert values["agent"]["plasticity"] == expected
    factory.parse(values)


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        (["plots.0=files"], "files"),
        (["plots.type=files"], "files"),
        (["plots=[files, off]", "plots.1=auto", "plots.0=off"], None),
    ],
)
def test_plots_begin_with_their_default(assignments: list[str], expected: Any) -> None:
    if expected is None:
        with pytest.raises(OptionsError, match="plots: got off, auto; allowed: "):
            parse(*assignments)
    else:
        assert parse(*assignments).model_dump(mode="json")["plots"] == expected


@pytest.mark.parametrize("assignment", ["agent.plasticity.0=redo", "agent.plasticity.0.every=5"])
def test_a_number_where_there_are_none_is_refused(assignment: str) -> None:
    with pytest.raises(OptionsError, match=r"agent.plasticity is the list \[\]; .* nothing, it is empty"):
        options.override(options.load_file("ntm-copy"), [assignment])


def test_capitals_do_not_keep_a_name_from_being_suggested() -> None:
    with pytest.raises(OptionsError, match="did you mean 'ntm-copy'"):
        options.load_file("NTM-Copy")
