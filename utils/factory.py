"""Tables of everything that options can name, and the wiring of Env, Circuit and Agent.

Adding a task, a circuit or an agent is one new file with its class and its options, plus one line in a table here.
Controllers have their table in ``core/controllers``, because circuits look names up in it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import torch
from pydantic import Field, PlainValidator, SerializeAsAny, ValidationError, field_validator

from ..agents import BackpropAgent, EmptyAgent, EvolutionAgent, MixedAgent, NodePerturbationAgent
from ..agents.evaluation import check_state
from ..agents.strategies import STRATEGIES
from ..circuits import DNC, NTM, SAM, SDNC, FeedForwardCircuit, NeatCircuit, Tape
from ..circuits.memory_augmented import MemoryAugmentedCircuit
from ..core.agent import Agent, Recorder
from ..core.circuit import Circuit
from ..core.controllers import CONTROLLERS
from ..core.env import Env
from ..core.kernels import dispatch
from ..core.kernels.dispatch import Backend
from ..core.options import Options
from ..core.task import Task
from ..core.world import World
from ..envs import (
    AssociativeRecallEnv,
    CopyEnv,
    DynamicNGramsEnv,
    GymWorld,
    ImagesEnv,
    LettersEnv,
    PrioritySortEnv,
    RepeatCopyEnv,
    TMazeWorld,
    XorEnv,
)
from . import checkpoint, resources
from .options import OptionsError, Types, a_block, explain, first_sentence, types_of

ENVS: dict[str, Any] = {
    "copy": CopyEnv,
    "repeat-copy": RepeatCopyEnv,
    "associative-recall": AssociativeRecallEnv,
    "dynamic-ngrams": DynamicNGramsEnv,
    "priority-sort": PrioritySortEnv,
    "images": ImagesEnv,
    "letters": LettersEnv,
    "xor": XorEnv,
    "t-maze": TMazeWorld,
    "gym": GymWorld,
}
CIRCUITS: dict[str, Any] = {
    "ntm": NTM,
    "dnc": DNC,
    "sam": SAM,
    "sdnc": SDNC,
    "feedforward": FeedForwardCircuit,
    "neat": NeatCircuit,
    "tape": Tape,
}
AGENTS: dict[str, Any] = {
    "backprop": BackpropAgent,
    "evolution": EvolutionAgent,
    "mixed": MixedAgent,
    "node-perturbation": NodePerturbationAgent,
    "empty": EmptyAgent,
}
TABLES: dict[str, dict[str, Any]] = {"env": ENVS, "circuit": CIRCUITS, "agent": AGENTS}
"""The blocks of an options file, and the classes that each can name as its type."""

BLOCKS: dict[str, dict[str, type[Options]]] = {
    block: {name: entry.Options for name, entry in table.items()} for block, table in TABLES.items()
}
"""The options of everything in these tables."""

MOST_THREADS = 1024

Precision = Literal["float32", "bfloat16", "float64"]

_BACKENDS = get_args(Backend)
_NO_MEMORY = re.compile(r"out of memory|can't allocate|size calculation overflow|multiplication overflow")
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?|mps")
_HOST = re.compile(r"[\w.-]+|[\da-fA-F:.]+")


def _check_threads(value: Any) -> int | str:
    if value == "auto" or (type(value) is int and 1 <= value <= MOST_THREADS):
        return value
    raise ValueError(f"got {value!r}; allowed: auto, or a whole number from 1 to {MOST_THREADS}")


class RunOptions(Options):
    """Everything that describes a run."""

    kept = frozenset({"seed"})

    seed: int = Field(1, ge=0, lt=2**31)
    """Of weights, training data and population."""
    device: str = "auto"
    """cpu, cuda, cuda:1, … or mps; auto takes a CUDA device where there is one."""
    backend: Backend = "auto"
    """What runs sequences; auto takes the fastest that can."""
    precision: Precision = "float32"
    """Of all numbers; bfloat16 is for the matrix products of controller and outputs alone, and learns by backprop."""
    threads: Annotated[int | str, PlainValidator(_check_threads)] = "auto"
    """CPU threads; auto takes one where the circuit is small, which more would slow down, and all cores otherwise."""
    plots: Literal["auto", "visdom", "files", "off"] = "auto"
    """Where pictures go: files writes PNGs, visdom shows them live as well, auto does so where it is installed."""
    visdom_host: str = "localhost"
    """Where the visdom server is, by name or address; one is started if it is localhost and none is there. If it asks
    for a login, the environment variables VISDOM_USERNAME and VISDOM_PASSWORD say whose."""
    visdom_port: int = Field(8097, ge=1, le=65535)
    start: str | None = Field(None, min_length=1)
    """Whose weights the circuit starts with: a run's folder, its name or ``latest`` (its best checkpoint), or a
    checkpoint file; null starts with fresh ones."""
    env: SerializeAsAny[Options]
    circuit: SerializeAsAny[Options]
    agent: SerializeAsAny[Options]

    @field_validator("visdom_host")
    @classmethod
    def _check_host(cls, host: str) -> str:
        if not _HOST.fullmatch(host):
            raise ValueError(f"got {host!r}; allowed: the name or the address of a machine, without http:// and port")
        return host


class Parts(NamedTuple):
    """What a run is made of."""

    env: Task
    circuit: Circuit
    agent: Agent


def parse(values: Mapping[str, Any]) -> RunOptions:
    """Validate the options of a run.

    Raises:
        OptionsError: lists every problem, each with the path of the key, what was given and what is allowed.
    """
    problems: list[str] = []
    blocks: dict[str, Any] = {}
    for name in TABLES:
        try:
            blocks[name] = parse_block(name, values.get(name))
        except OptionsError as error:  # noqa: PERF203 (all problems are listed)
            problems.append(str(error))
    if "env" in blocks and "agent" in blocks:
        problems += _check_task(blocks["env"].type, blocks["agent"].type)
    if "circuit" in blocks and "agent" in blocks:
        problems += _check_gradient(blocks["circuit"].type, blocks["agent"].type)
    if "agent" in blocks:
        problems += _check_precision(values.get("precision", "float32"), blocks["agent"].type)
        problems += _check_backend(values.get("backend", "auto"), blocks["agent"].type)
    if values.get("start") is not None and "agent" in blocks:
        problems += _check_start(blocks["agent"])
    rest = {key: value for key, value in values.items() if key not in TABLES}
    placeholders = {name: Options() for name in TABLES}
    try:
        RunOptions.model_validate({**rest, **placeholders})
    except ValidationError as error:
        problems += explain(error, "", rest, RunOptions, {})
    device = values.get("device", "auto")
    if isinstance(device, str):
        try:
            resolve_device(device)
        except OptionsError as error:
            problems.append(str(error))
    if problems:
        raise OptionsError("\n".join(problems))
    return RunOptions.model_validate({**rest, **blocks})


def parse_block(name: str, given: Any) -> Options:
    """Validate one block, ``env``, ``circuit`` or ``agent``.

    Raises:
        OptionsError: lists every problem, as :func:`parse` does.
    """
    types = BLOCKS[name]
    if not isinstance(given, dict):
        raise OptionsError(f"{name}: {'missing' if given is None else f'got {given!r}'}; {a_block(given, types)}")
    if not isinstance(given.get("type"), str) or given["type"] not in types:
        raise OptionsError(f"{name}.type: got {given.get('type')!r}; allowed: {', '.join(types)}")
    model = types[given["type"]]
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise OptionsError("\n".join(explain(error, name, given, model, types))) from error


def _check_task(env: str, agent: str) -> list[str]:
    """The problem, if an agent cannot take an env."""
    if issubclass(ENVS[env], AGENTS[agent].tasks):
        return []
    able = [name for name, entry in AGENTS.items() if issubclass(ENVS[env], entry.tasks)]
    has = "is a world with rewards" if issubclass(ENVS[env], World) else "hands out batches"
    return [f"agent.type: got {agent!r}; env.type {env!r} {has}, allowed: {', '.join(able)}"]


def _check_gradient(circuit: str, agent: str) -> list[str]:
    """The problem, if an agent needs a gradient that a circuit does not have."""
    if CIRCUITS[circuit].differentiable or not AGENTS[agent].needs_gradient:
        return []
    able = [name for name, entry in AGENTS.items() if not entry.needs_gradient]
    return [f"agent.type: got {agent!r}; circuit.type {circuit!r} has no gradient, allowed: {', '.join(able)}"]


def _check_precision(precision: Any, agent: str) -> list[str]:
    """The problem, if an agent would not calculate as precisely as asked for."""
    able = [name for name, entry in AGENTS.items() if not issubclass(entry, EvolutionAgent)]
    if agent in able or precision != "bfloat16":
        return []
    allowed = "float32, float64"
    return [f"precision: got {precision!r}; allowed with agent.type {agent!r}: {allowed} (others: {', '.join(able)})"]


def _check_backend(backend: Any, agent: str) -> list[str]:
    """The problem, if an agent looks into the steps of a circuit, which only the eager backend shows."""
    if backend in ("auto", "eager") or not issubclass(AGENTS[agent], (MixedAgent, NodePerturbationAgent)):
        return []
    return [f"backend: got {backend!r}; allowed with agent.type {agent!r}: auto, eager"] if backend in _BACKENDS else []


def _check_start(agent: Any) -> list[str]:
    """The problem, if a population would not take up the weights that the circuit starts with."""
    if getattr(getattr(agent, "strategy", None), "initial", None) != "resampled":
        return []
    return ["agent.strategy.initial: got 'resampled', which keeps nothing of the weights of start; allowed: copied"]


def resolve_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is the first GPU, or the CPU.

    Raises:
        OptionsError: no such device here.
    """
    if not _DEVICE.fullmatch(name):
        raise OptionsError(f"device: got {name!r}; allowed: auto, cpu, cuda, cuda:1 and so on, mps")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise OptionsError(f"device: got {name!r}; torch finds {gpus or 'no'} CUDA device{'s'[: gpus != 1]} here")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise OptionsError(f"device: got {name!r}; torch finds no such device here")
    return device


def build_env(options: Options, device: torch.device) -> Task:
    """The env or world that a block of options names, on a device."""
    env: Task = ENVS[options.type](options, device)  # type: ignore[attr-defined]
    return env


def build_circuit(
    options: Options,
    input_size: int,
    output_size: int,
    *,
    backend: str,
    device: torch.device,
    seed: int,
    precision: Precision = "float32",
) -> Circuit:
    """The circuit that a block of options names, with weights that depend on the seed alone."""
    # Drawn on the CPU, so that the same seed gives the same weights on every device; the caller's state is untouched.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        circuit = _make_circuit(options, input_size, output_size, backend)
    if precision == "bfloat16":
        circuit.autocast = torch.bfloat16
    return circuit.to(device, torch.float64 if precision == "float64" else torch.float32)


def _make_circuit(options: Options, input_size: int, output_size: int, backend: str) -> Circuit:
    arguments = {name: getattr(options, name) for name in type(options).model_fields if name != "type"}
    circuit: Circuit = CIRCUITS[options.type](  # type: ignore[attr-defined]
        input_size, output_size, backend=backend, **arguments
    )
    return circuit


def outline(options: RunOptions, env: Task) -> Circuit:
    """The circuit of a run on the meta device: it has all sizes, and takes neither memory nor time."""
    with torch.device("meta"):
        return _make_circuit(options.circuit, env.input_size, env.output_size, "auto")


def count_threads(options: RunOptions, env: Task) -> int:
    """CPU threads of a run; what auto stands for follows from the sizes."""
    if not isinstance(options.threads, str):
        return options.threads
    return resources.worthwhile_threads(options.agent, outline(options, env))


def build(options: RunOptions, recorder: Recorder | None = None, *, resumed: bool = False) -> Parts:
    """Env, Circuit and Agent of a run, wired.

    Args:
        options: of the run; its ``start``, if any, is the path of a checkpoint file.
        recorder: where metrics, pictures and checkpoints go; None keeps nothing.
        resumed: the agent's state is to be loaded, which has weights of its own: ``start`` is left alone.

    Raises:
        ValueError: the parts do not fit each other, the weights of ``start`` do not fit the circuit, or no memory is
            left for it.
        BackendError: the backend cannot run this circuit here.
    """
    device = resolve_device(options.device)
    env = build_env(options.env, device)
    try:
        with memory_errors("circuit"):
            resources.check_memory(options, env, outline(options, env), device)
            circuit = build_circuit(
                options.circuit,
                env.input_size,
                env.output_size,
                backend=options.backend,
                device=device,
                seed=options.seed,
                precision=options.precision,
            )
            try_out(options, env, circuit)
        if options.start is not None and not resumed:
            take_over(options, circuit)
        agent: Agent = AGENTS[options.agent.type](  # type: ignore[attr-defined]
            env, circuit, options.agent, seed=options.seed, recorder=recorder
        )
    except BaseException:
        env.close()
        raise
    return Parts(env, circuit, agent)


def try_out(options: RunOptions, env: Task, circuit: Circuit) -> None:
    """See whether there is room for the state of a batch, and whether the backend can run it.

    Raises:
        BackendError: the backend cannot run this circuit here.
    """
    batch_size: int = getattr(options.agent, "batch_size", 1)
    state = circuit.initial_state(batch_size)
    if not isinstance(circuit, MemoryAugmentedCircuit):
        return
    inputs = state.reads.new_zeros(1, batch_size, circuit.input_size)
    with circuit.precision(inputs):
        dispatch.choose(circuit, inputs, state)
        if isinstance(env, Env) and issubclass(AGENTS[options.agent.type], EvolutionAgent):  # type: ignore[attr-defined]
            stacked = {name: parameter.detach()[None] for name, parameter in circuit.named_parameters()}
            dispatch.choose_population(circuit, stacked, inputs)


@contextlib.contextmanager
def memory_errors(what: str, kind: type[Exception] = OptionsError) -> Iterator[None]:
    """Within the block, running out of memory is an error of this kind, of one line, which says for how much."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch has an error of its own on a GPU alone.
        message = str(error)
        if not isinstance(error, MemoryError) and not _NO_MEMORY.search(message):
            raise
        asked = re.search(r"tried to allocate ([\d.]+) (\w+)", message, re.IGNORECASE)
        size = ""
        if asked:
            size = f"; {int(asked[1]) / 2**30:,.1f} GiB" if asked[2] == "bytes" else f"; {asked[1]} {asked[2]}"
            size += " were asked for at once"
        raise kind(f"{what}: there is not enough memory{size}") from error


def take_over(options: RunOptions, circuit: Circuit) -> None:
    """Give a circuit the weights of the checkpoint file that ``start`` names, whichever agent has found them.

    Raises:
        OptionsError: the weights do not fit; names the first that does not, and the options that differ.
        checkpoint.CheckpointError: the file is missing, damaged, foreign or holds no circuit.
    """
    content = checkpoint.load(Path(str(options.start)), "cpu")
    try:
        weights, theirs = content["agent"]["circuit"], content["options"]
    except (KeyError, TypeError) as error:
        raise checkpoint.CheckpointError(f"start: {options.start} holds no circuit") from error
    try:
        check_state("weight", weights, circuit.state_dict())
    except ValueError as error:
        ours = options.model_dump(mode="json")
        lines = [
            f"{path}: {there!r} there, {here!r} here"
            for block in ("env", "circuit")
            for path, there, here in differences(theirs[block], ours[block], block)
        ]
        raise OptionsError("\n".join([f"start: {options.start} does not fit; {error}", *lines])) from error
    circuit.load_state_dict(weights)


def differences(theirs: Any, ours: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Path and both values of each option that is not the same in two sets of options."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = dict.fromkeys([*theirs, *ours])
        below = f"{path}." if path else ""
        return [found for key in keys for found in differences(theirs.get(key), ours.get(key), f"{below}{key}")]
    return [] if theirs == ours else [(path, theirs, ours)]


def load_circuit(path: str | Path, *, backend: str = "auto", device: torch.device | str = "cpu") -> Circuit:
    """The circuit of a checkpoint file, built from the options saved with it, with its trained weights.

    Device and backend are those given here, whatever the run had; of its options only the circuit's block and the
    precision count.

    Args:
        path: a file such as ``runs/<run>/checkpoints/best.pt``.
        backend: what runs sequences.
        device: where to; ``auto`` takes a CUDA device where there is one.

    Raises:
        OptionsError: no such device here.
        checkpoint.CheckpointError: the file is missing, damaged, foreign or holds no circuit.
    """
    place = resolve_device(str(device))
    content = checkpoint.load(Path(path), place)
    try:
        options, weights = content["options"], content["agent"]["circuit"]
        block = parse_block("circuit", options["circuit"])
        sizes = content.get("sizes") or _sizes(options)
    except (KeyError, TypeError, OptionsError) as error:
        raise checkpoint.CheckpointError(f"{path}: holds no circuit that this version can build: {error}") from error
    circuit = build_circuit(
        block,
        sizes["input_size"],
        sizes["output_size"],
        backend=backend,
        device=place,
        seed=0,
        precision=options.get("precision", "float32"),
    )
    circuit.load_state_dict(weights)
    return circuit


def _sizes(options: Mapping[str, Any]) -> dict[str, int]:
    """Sizes of a circuit whose checkpoint does not hold them: those of its env."""
    with contextlib.closing(build_env(parse_block("env", options["env"]), torch.device("cpu"))) as env:
        return {"input_size": env.input_size, "output_size": env.output_size}


def describe(parts: Parts) -> str:
    """The hierarchy that was built, as text: Agent { Env, Circuit { Controller, Accessor } } with sizes."""
    env, circuit, agent = parts
    parameters = sum(parameter.numel() for parameter in circuit.parameters())
    lines = [
        type(agent).__name__,
        f"  {type(env).__name__}: {env.input_size} inputs, {env.output_size} outputs",
        f"  {type(circuit).__name__}: {parameters:,} parameters on {env.device}",
    ]
    controller, accessor = getattr(circuit, "controller", None), getattr(circuit, "accessor", None)
    if controller is not None:
        lines.append(f"    {type(controller).__name__}: {controller.num_layers} x {controller.hidden_size}")
    if accessor is not None:
        lines.append(
            f"    {type(accessor).__name__}: memory {accessor.memory_size} x {accessor.word_size}, "
            f"{accessor.num_reads} read and {accessor.num_writes} write heads"
        )
    return "\n".join(lines)


def entries() -> dict[str, dict[str, str]]:
    """Every name that options can use, by its option, with the first sentence of what it stands for."""
    types: dict[str, Types] = {
        **BLOCKS,
        "circuit.controller": types_of(NTM.Options.model_fields["controller"].annotation),
        "agent.strategy": types_of(EvolutionAgent.Options.model_fields["strategy"].annotation),
        "agent.fitness": types_of(EvolutionAgent.Options.model_fields["fitness"].annotation),
        "env.curriculum": types_of(CopyEnv.Options.model_fields["curriculum"].annotation),
    }
    described = {**TABLES, "circuit.controller": CONTROLLERS, "agent.strategy": STRATEGIES}
    named = {
        "agent.optimiser": get_args(BackpropAgent.Options.model_fields["optimiser"].annotation),
        "env.data": get_args(ImagesEnv.Options.model_fields["data"].annotation),
    }
    return {
        **{
            f"{block}.type": {
                name: first_sentence((described.get(block, models)[name].__doc__ or "").split("\n\n")[0])
                for name in models
            }
            for block, models in types.items()
        },
        **{option: dict.fromkeys(names, "") for option, names in named.items()},
    }
