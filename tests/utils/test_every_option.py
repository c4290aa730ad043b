"""Every option of everything.

Changed when a run goes on, it holds from then on or is refused before that; huge, it is refused at once or harmless.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer

from papertape.agents import BackpropAgent
from papertape.agents.learning import LearningAgent
from papertape.core import registry
from papertape.core.component import kind_of, options_of
from papertape.core.distributed import Processes
from papertape.core.kernels.dispatch import BackendError
from papertape.core.options import Options, OptionsError
from papertape.core.world import World
from papertape.envs import PopgymWorld, StringEnv, images
from papertape.main import main
from papertape.utils import factory
from papertape.utils.commands.train import choose_resumed, prepare

COPY = {"type": "copy", "width": 2, "max_length": 2, "test_lengths": [3]}
NTM = {"type": "ntm", "controller": {"type": "lstm", "hidden_size": 4}, "memory_size": 6, "word_size": 4}
STEPS = {"log_every": 2, "evaluate_every": 3, "batch_size": 2, "evaluation_sequences": 2, "evaluation_batch_size": 2}
BACKPROP = {"type": "backprop", "steps": 3, **STEPS}
EVOLUTION = {"type": "evolution", "generations": 3, **STEPS}
TRUST = {"type": "trust", "population": 6}
POPULATIONS: dict[str, dict[str, Any]] = {
    "trust": {"population": 6, "elite": 1, "survivors": 0.5},
    "deep-ga": {"population": 6, "truncation": 3, "elite_candidates": 2, "elite_sequences": 2},
    "cma-es": {"population": 6},
    "sep-cma-es": {"population": 6},
    "neat": {"population": 12},
}
PLASTICITY: dict[str, dict[str, Any]] = {
    "continual-backprop": {"replacement_rate": 0.2, "maturity": 1},
    "redo": {"every": 2, "threshold": 0.5},
    "shrink-perturb": {"every": 2},
    "ewc": {"every": 2, "sequences": 2},
    "set": {"every": 2, "density": 0.5},
    "granet": {"every": 2, "density": 0.3, "last_step": 10},
}
"""By which each does something within a few steps."""
XOR = {"type": "xor"}
MAZE = {"type": "t-maze", "trials": 2, "min_stay": 1, "max_stay": 2, "test_trials": [3]}
FEEDFORWARD = {"type": "feedforward", "hidden_sizes": [4]}
NEAT = {"type": "neat", "max_nodes": 4}

Blocks = dict[str, dict[str, Any]]


def entries(kind: str) -> dict[str, Any]:
    """All of a kind by its name that the package has; other tests register more."""
    everything = registry.entries(kind)
    return {name: entry for name, entry in everything.items() if entry.__module__.startswith("papertape.")}


def homes() -> Iterator[tuple[str, Blocks]]:
    """For each type of each block, a small run that has it; the path of the block is what is changed."""
    envs: Blocks = {
        "copy": COPY,
        "repeat-copy": {"max_length": 2, "max_repeats": 2, "width": 2},
        "associative-recall": {"max_items": 3, "test_items": [4]},
        "dynamic-ngrams": {"order": 2, "min_length": 20, "max_length": 20, "test_lengths": [25]},
        "priority-sort": {"min_items": 3, "max_items": 4, "highest": 2, "test_items": [5], "width": 2},
        "images": {"validation": 10},
        "permuted-images": {"images": {"type": "images", "validation": 10}},
        "letters": {"image_size": 12, "font_sizes": [8]},
        "mqar": {"length": 8, "pairs": 2, "vocabulary": 12, "test_sizes": [[8, 1], [12, 2]]},
        "selective-copying": {"copied": 2, "words": 2, "min_length": 4, "max_length": 5, "test_lengths": [6]},
        "induction-heads": {"words": 3, "min_length": 4, "max_length": 5, "test_lengths": [6]},
        "nth-farthest": {"vectors": 3, "dimensions": 2},
        "word-problem": {"group": "S3", "max_length": 3, "test_lengths": [4]},
        "brackets": {"max_length": 4, "test_lengths": [5]},
        "n-parity": {"max_n": 4},
        "n-delayed-match-to-sample": {"max_n": 4},
        "one-shot": {"classes": 2, "images_per_class": 3, "image_size": 5},
        "xor": XOR,
        "t-maze": MAZE,
        "cued-t-maze": {"corridor": 2, "test_corridors": [3]},
        "gym": {"max_steps": 5},
    }
    strings = {"max_length": 3, "max_validation_length": 4, "max_test_length": 5, "test_lengths": [4]}
    for name, entry in entries("env").items():
        if issubclass(entry, StringEnv):  # of those that have the same options, one
            same = [
                other
                for other in envs
                if set(options_of(entries("env")[other]).model_fields) == set(options_of(entry).model_fields)
            ]
            envs |= {} if same else {name: strings}
        elif not issubclass(entry, PopgymWorld) or name == "minesweeper":  # all of them have the same options
            envs.setdefault(name, {})
    for name, given in envs.items():
        agent = {**EVOLUTION, "strategy": TRUST} if issubclass(entries("env")[name], World) else BACKPROP
        circuit = FEEDFORWARD if name in ("images", "letters", "xor", "gym") else NTM
        yield "env", {"env": {**given, "type": name}, "circuit": circuit, "agent": agent}
    tokens = {"type": "even-pairs", **strings}
    for tied in (False, True):
        circuit = {**NTM, "embedding_size": 3, "tied_embedding": tied}
        yield "circuit", {"env": tokens, "circuit": circuit, "agent": BACKPROP}
    sparse = {**NTM, "memory_size": 12, "num_reads": 2, "slots_per_read": 2}
    dnc = {**NTM, "type": "dnc", "num_reads": 2}
    circuits: Blocks = {"ntm": NTM, "dnc": dnc, "sam": sparse, "sdnc": {**sparse, "links_per_slot": 3}}
    circuits |= {"memory": {"controller": NTM["controller"], "accessor": {"type": "static", "memory_size": 6}}}
    circuits |= {"feedforward": FEEDFORWARD, "neat": NEAT, "tape": {"memory_size": 6, "word_size": 4}}
    circuits |= {"lstm": {"hidden_size": 4}, "gru": {"hidden_size": 4}, "recurrent": {"controller": NTM["controller"]}}
    for name in ("stack-rnn", "tape-rnn"):
        circuits[name] = {"controller": {"type": "rnn", "hidden_size": 4}, "memory_size": 6, "word_size": 4}
    circuits["transformer"] = {"model_size": 4, "accessor": {"type": "attention", "memory_size": 6}}
    circuits |= {"normalised": {"circuit": FEEDFORWARD}, "routed": {"circuit": NTM}}
    for name in entries("circuit"):
        agent = {**EVOLUTION, "strategy": TRUST} if name in ("neat", "tape", "normalised") else BACKPROP
        env = MAZE if name == "normalised" else COPY
        yield "circuit", {"env": env, "circuit": {**circuits[name], "type": name}, "agent": agent}
    sizes: Blocks = {
        "direct": {},
        "automaton": {"hidden_size": 6, "num_states": 3},
        "relational": {"memory_size": 3, "num_heads": 1, "head_size": 3},
        "ctm": {"hidden_size": 4, "neurons": 5, "ticks": 2, "history": 3},
    }
    for name in entries("controller"):
        size = sizes.get(name, {"hidden_size": 4})
        circuit = {**NTM, "controller": {"type": name, **size}}
        yield "circuit.controller", {"env": COPY, "circuit": circuit, "agent": BACKPROP}
    accessors: Blocks = {
        "dynamic": {"num_reads": 2},
        "sparse": {"memory_size": 12, "num_reads": 2, "slots_per_read": 2},
        "delta": {"decay": True, "num_heads": 2, "key_size": 4, "value_size": 4, "chunk_size": 2},
        "attention": {"num_heads": 2, "key_size": 4, "value_size": 4},
    }
    for name, entry in entries("accessor").items():
        known = options_of(entry).model_fields
        sizes = {size: number for size, number in (("memory_size", 6), ("word_size", 4)) if size in known}
        accessor = {"type": name, **sizes, **accessors.get(name, {})}
        agent = BACKPROP if entry.differentiable else {**EVOLUTION, "strategy": TRUST}
        circuit = {"type": "memory", "controller": NTM["controller"], "accessor": accessor}
        yield "circuit.accessor", {"env": COPY, "circuit": circuit, "agent": agent}
    for name in entries("optimiser"):
        for momentum in ({}, {"momentum": 0.5}) if name == "rmsprop" else ({},):
            agent = {**BACKPROP, "optimiser": {"type": name, **momentum}}
            yield "agent.optimiser", {"env": COPY, "circuit": NTM, "agent": agent}
    for name in entries("plasticity"):
        chosen: Blocks = {"type": name, **PLASTICITY.get(name, {})}
        yield "agent.plasticity.0", {"env": COPY, "circuit": NTM, "agent": {**BACKPROP, "plasticity": [chosen]}}
    yield "agent", {"env": COPY, "circuit": NTM, "agent": BACKPROP}
    yield "agent", {"env": COPY, "circuit": NTM, "agent": {**BACKPROP, "target_error": 1e-9, "retry_every": 9}}
    yield "agent", {"env": COPY, "circuit": NTM, "agent": {**BACKPROP, "target_error": 1e-9}}
    yield "agent", {"env": COPY, "circuit": NTM, "agent": {**EVOLUTION, "strategy": TRUST, "target_error": 1e-9}}
    yield "agent", {"env": XOR, "circuit": FEEDFORWARD, "agent": {**EVOLUTION, "type": "mixed", "strategy": TRUST}}
    yield "agent", {"env": XOR, "circuit": FEEDFORWARD, "agent": {**BACKPROP, "type": "node-perturbation"}}
    yield "agent", {"env": XOR, "circuit": FEEDFORWARD, "agent": {"type": "empty", "steps": 2, "batch_size": 2}}
    modifying = {**BACKPROP, "type": "self-modifying", "check_every": 4, "trial_steps": 2}
    yield "agent", {"env": COPY, "circuit": NTM, "agent": modifying}
    ppo = {**STEPS, "type": "ppo", "updates": 3, "rollout_steps": 4, "minibatches": 2, "epochs": 1}
    yield "agent", {"env": MAZE, "circuit": NTM, "agent": ppo}
    for name in entries("strategy"):
        agent = {**EVOLUTION, "strategy": {"type": name, "population": 4, **POPULATIONS.get(name, {})}}
        yield "agent.strategy", {"env": XOR, "circuit": NEAT if name == "neat" else FEEDFORWARD, "agent": agent}
    for name in entries("fitness"):
        agent = {**EVOLUTION, "strategy": TRUST, "fitness": {"type": name}}
        yield "agent.fitness", {"env": XOR, "circuit": FEEDFORWARD, "agent": agent}
    for curriculum in (
        {"type": "fixed"},
        {"type": "growing"},
        {"type": "lessons", "lessons": [{"length": [1, 1]}, {"length": [1, 2]}]},
    ):
        yield "env.curriculum", {"env": {**COPY, "curriculum": curriculum}, "circuit": NTM, "agent": BACKPROP}
    yield "", {"env": COPY, "circuit": NTM, "agent": BACKPROP}


HOMES = list(homes())


def name_of(home: tuple[str, Blocks]) -> str:
    where, blocks = home
    block = at(blocks, where.split(".")) if where else {"type": "run"}
    return " ".join([where, *(str(block[key]) for key in ("type", "momentum") if key in block)])


def at(block: Any, path: list[str]) -> Any:
    for part in path:
        block = block[int(part) if isinstance(block, list) else part]
    return block


def at_options(options: Any, where: str) -> Any:
    for part in where.split(".") if where else ():
        options = options[int(part)] if isinstance(options, list) else getattr(options, part)
    return options


def others(annotation: Any, value: Any) -> Iterator[Any]:
    """Other values that an option might take."""
    if get_origin(annotation) is Literal:
        yield from (other for other in get_args(annotation) if other != value)
        return
    if get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            if member is not type(None):
                yield from others(member, value)
            elif value is not None:
                yield None
    elif isinstance(value, bool):
        yield not value
    elif annotation is int:
        yield from (3, 4, 2, 1, 0) if value is None else (value + 1, value + 2, value - 1, value // 2, 2 * value)
    elif annotation is float:
        yield from (0.5, 0.1) if value is None else (value / 2, 2 * value, 0.5, value + 0.5)
    elif value == (0.9, 0.999):
        yield [0.5, 0.9]
    elif isinstance(value, list) and value and isinstance(value[0], int):
        yield [*value, value[-1] + 1]
    elif isinstance(value, list) and value and isinstance(value[0], str):
        yield [*value, "DejaVu Serif"]
    elif isinstance(value, list):
        yield from (["DejaVu Serif"], [[2, 2], [3, 2]], value[:1])
    elif value is None and get_origin(annotation) is list:
        yield [[2, 3]]


SPECIAL: dict[str, Any] = {
    "env.id": "Acrobot-v1",
    "env.data": "fashion-mnist",
    "env.operations": ["addition", "multiplication"],
    "env.arguments": {"sutton_barto_reward": True},
    "env.curriculum.lessons": [{"length": [1, 2]}, {"length": [2, 2]}],
    "device": None,  # another one is not here
    "plots": "files",
    "imports": ["this"],
    "threads": 2,
    "env.workers": None,  # goes with asynchronous environments alone
    "start": "latest",
}

NEED_TARGET = ("agent.target_error_beyond", "agent.retry_every")
"""Options that only a run with a target error can have."""
NEED_TOKENS = ("circuit.embedding_size", "circuit.tied_embedding")
"""Options that only a run with a task of tokens can have."""


def changes(options: Any, where: str) -> Iterator[tuple[str, list[Any]]]:
    """The path of each option of a block, with other values that it might take; blocks within it are for others."""
    block = at_options(options, where)
    for name, field in type(block).model_fields.items():
        path = f"{where}.{name}" if where else name
        value = getattr(block, name)
        if path in SPECIAL:
            yield path, [] if SPECIAL[path] is None else [SPECIAL[path]]
        elif name == "type":
            kind = [part for part in where.split(".") if not part.isdecimal()][-1]
            yield path, [other for other in entries(kind) if other != value]
        elif kind := kind_of(field):
            if value is None or value == []:
                yield path, [{"type": other} for other in entries(kind)]
        else:
            yield path, list(others(field.annotation, value))


def leaves(value: Any, path: str = "", seen: frozenset[int] = frozenset()) -> dict[str, Any]:
    """Everything plain that an object is made of, by its path; options themselves are left out."""
    if isinstance(value, Tensor):
        return {path: (tuple(value.shape), value.dtype, value.detach().double().flatten().tolist())}
    if isinstance(value, torch.Generator):
        return {path: value.get_state().tolist()}
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return {path: repr(value)}
    if id(value) in seen or isinstance(value, Options | type):
        return {}
    seen |= {id(value)}
    if isinstance(value, Optimizer):
        parts: Any = [{name: part for name, part in group.items() if name != "params"} for group in value.param_groups]
        return leaves(parts, f"{path}.groups", seen)
    if isinstance(value, Mapping):
        items = [(str(key), part) for key, part in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(number), part) for number, part in enumerate(value)]
    elif type(value).__module__.startswith("papertape") or isinstance(value, nn.Module):
        # Trust's second buffer holds anything before it is written to.
        items = [(name, part) for name, part in vars(value).items() if name not in ("recorder", "_next")]
    else:
        return {}
    return {inner: leaf for name, part in items for inner, leaf in leaves(part, f"{path}.{name}", seen).items()}


def whole(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def asked(options: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(dict(options))
    *blocks, name = path.split(".")
    at(changed, blocks)[name] = value
    return changed


def state_after(agent: Any) -> str:
    """What a step makes of an agent."""
    if not isinstance(agent, LearningAgent):
        return ""
    agent.train_step()
    state = {name: part for name, part in leaves(agent.state_dict()).items() if ".options." not in name}
    return repr(state)


def resumed(directory: Path, assignment: str) -> factory.Parts:
    return prepare(choose_resumed([assignment] if assignment else [], directory), Processes())


@pytest.mark.parametrize("home", HOMES, ids=name_of)
def test_a_changed_option_holds_or_is_refused(
    home: tuple[str, Blocks], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    made_up = (torch.rand(40, 28, 28, generator=generator), torch.arange(40) % 10)
    monkeypatch.setattr(images, "load", lambda name: (made_up, made_up))
    where, blocks = home
    Path("run.yaml").write_text(yaml.safe_dump({**blocks, "plots": "off", "device": "cpu"}))
    assert main(["train", "run.yaml"]) == 0
    (directory,) = Path("runs").iterdir()
    before = factory.parse(yaml.safe_load((directory / "options.yaml").read_text()))
    files = whole(directory)
    fresh, loaded = factory.build(before), resumed(directory, "")
    began, went_on = leaves(fresh.agent), leaves(loaded.agent)
    learned = {path for path in began if went_on.get(path) != began[path]}
    adapted = getattr(getattr(fresh.agent, "strategy", None), "adapted", {})
    learned |= {f".strategy.{name}" for name in adapted.values()}
    next_state = state_after(loaded.agent)
    for parts in (fresh, loaded):
        parts.env.close()
    problems = []
    held = refused = 0
    for path, values in changes(before, where):
        valid = []
        for value in values:
            changed = asked(before.model_dump(mode="json"), path, value)
            with contextlib.suppress(OptionsError, ValueError):
                if path.endswith("type"):  # the other options change with it
                    valid.append((value, None))
                    continue
                valid.append((value, factory.parse(changed)))
                break
        lacks = (path in NEED_TARGET and before.agent.target_error is None) or (  # type: ignore[attr-defined]
            path in NEED_TOKENS and not fresh.env.token_inputs
        )
        if values and not valid and not lacks:
            problems.append(f"{path}: no other value was found among {values}")
        for value, chosen in valid:
            assignment = f"{path}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}"
            try:
                parts = resumed(directory, assignment)
            except (ValueError, BackendError) as error:
                refused += 1
                if chosen is not None and (path not in str(error) or "\n" in str(error)):
                    problems.append(f"{assignment}: refused by {error}")
            else:
                held += 1
                parts.env.close()
                if chosen is not None:
                    # What a strategy adapts is learned, unless its own option is changed.
                    own = {f".strategy.{adapted.get(path.removeprefix('agent.strategy.'))}"}
                    problem = ignored(factory.build(chosen), parts, began, learned - own, next_state)
                    if problem:
                        problems.append(f"{assignment}: {problem}")
            if whole(directory) != files:
                problems.append(f"{assignment}: files have changed")
    assert not problems, "\n".join(problems)
    assert held + refused


def ignored(
    wanted: factory.Parts, got: factory.Parts, began: Mapping[str, Any], learned: set[str], next_state: str
) -> str:
    """Why a changed option does not hold; nothing where it does.

    Args:
        wanted: a fresh run that has the other value.
        got: the run that goes on with it.
        began: what a fresh run is made of that has the value of before.
        learned: what training changes.
        next_state: of the run that goes on as it was.
    """
    wanted.env.close()
    should, has = leaves(wanted.agent), leaves(got.agent)
    moved = {path for path in should.keys() | began.keys() if should.get(path) != began.get(path)}
    for path in sorted(moved - learned):
        if has.get(path) != should.get(path):
            return f"{path[1:]} is {str(has.get(path))[:60]}, in a new run it would be {str(should.get(path))[:60]}"
    if moved and moved <= learned and state_after(got.agent) == next_state:
        return "it says only how a run begins"
    return ""


MODELS = [factory.RunOptions, *(options_of(entry) for kind in registry.KINDS for entry in entries(kind).values())]


def numbers_in(annotation: Any) -> set[type]:
    """Kinds of numbers that an option can be or hold."""
    if annotation in (int, float):
        return {annotation}
    if get_origin(annotation) in (Literal, dict):
        return set()
    return {kind for part in get_args(annotation) for kind in numbers_in(part)}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__qualname__.removesuffix(".Options"))
def test_no_number_is_beyond_what_can_be(model: type[Options]) -> None:
    for name, field in model.model_fields.items():
        for kind in numbers_in(field.annotation):
            for number in (2**31, 10**12, 10**400) if kind is int else (1e300, -1e300, 1e-300, 1e39):
                for value in (number, [number], [number, number], [[number, number]]):
                    with pytest.raises(ValidationError) as caught:
                        model.model_validate({name: value})
                    assert any(problem["loc"][0] == name for problem in caught.value.errors()), (name, value)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"circuit": {**NTM, "memory_size": 10**7, "word_size": 10**4}}, "circuit.memory_size 10000000"),
        ({"agent": {**BACKPROP, "batch_size": 10**7}, "circuit": {**NTM, "memory_size": 10**4}}, "agent.batch_size"),
        ({"env": {**COPY, "test_lengths": [10**7]}, "agent": {**BACKPROP, "evaluation_sequences": 1000,
          "evaluation_batch_size": 1000}}, "env.test_lengths 10000000"),
        ({"env": {**COPY, "max_length": 10**7}, "agent": {**BACKPROP, "batch_size": 10**3}}, "env.max_length"),
        ({"circuit": {**NTM, "controller": {"type": "lstm", "hidden_size": 10**7}}}, "circuit.controller.hidden_size"),
        ({"agent": {**EVOLUTION, "strategy": {"type": "trust", "population": 10**7}}, "circuit": {"type": "ntm"}},
         "agent.strategy.population"),
    ],
)  # fmt: skip
def test_memory_that_the_machine_does_not_have(options: Blocks, named: str) -> None:
    chosen = factory.parse({"env": COPY, "circuit": NTM, "agent": BACKPROP, "device": "cpu", **options})
    with pytest.raises(OptionsError, match=r"there is not enough memory; a run takes at least [\d,.]+ GiB, ") as caught:
        factory.build(chosen)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_it_goes_on_with_the_new_value_at_the_next_resume_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that is asked for once holds, although the run is killed before its next checkpoint."""
    monkeypatch.chdir(tmp_path)
    agent = {**EVOLUTION, "strategy": {"type": "snes", "population": 4}}
    options = {"env": XOR, "circuit": FEEDFORWARD, "agent": agent, "plots": "off", "device": "cpu"}
    Path("run.yaml").write_text(yaml.safe_dump(options))
    assert main(["train", "run.yaml"]) == 0
    (directory,) = Path("runs").iterdir()
    path = directory / "options.yaml"
    path.write_text(path.read_text().replace("sigma: 0.1", "sigma: 0.7"))
    strategy = resumed(directory, "").agent.strategy  # type: ignore[attr-defined]
    assert (strategy.deviations == 0.7).all()


@pytest.mark.parametrize("before", [0.0, 0.5])
@pytest.mark.parametrize("after", [0.0, 0.5])
def test_momentum_is_switched_on_and_off(before: float, after: float, tmp_path: Path) -> None:
    """RMSprop keeps a buffer only with momentum; the averages of squares go on."""

    def agent(momentum: float) -> BackpropAgent:
        block = {**BACKPROP, "optimiser": {"type": "rmsprop", "momentum": momentum}}
        parts = factory.build(factory.parse({"env": COPY, "circuit": NTM, "agent": block, "device": "cpu"}))
        assert isinstance(parts.agent, BackpropAgent)
        return parts.agent

    trained, other = agent(before), agent(after)
    for _ in range(2):
        trained.train_step()
    other.load_state_dict(trained.state_dict())
    for (_, old), (_, new) in zip(
        trained.torch_optimiser.state.items(), other.torch_optimiser.state.items(), strict=True
    ):
        assert torch.equal(old["square_avg"], new["square_avg"])
        assert ("momentum_buffer" in new) == (after > 0)
        if after and not before:
            assert not new["momentum_buffer"].any()
        if after and before:
            assert torch.equal(new["momentum_buffer"], old["momentum_buffer"])
    other.train_step()
