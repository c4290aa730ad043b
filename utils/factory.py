"""Builds Env, Circuit and Agent from the options that name them in the registry."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import torch
from pydantic import Field, PlainValidator, ValidationError, field_validator
from torch import nn
from torch.overrides import TorchFunctionMode

from ..agents.evaluation import load_weights
from ..circuits import MemoryCircuit
from ..core import registry
from ..core.agent import Agent
from ..core.circuit import Circuit
from ..core.component import Chosen, component_of, fields_of
from ..core.component import build as build_component
from ..core.contracts import NO_MEMORY, is_outside, under
from ..core.env import Env
from ..core.explain import explain
from ..core.kernels import dispatch
from ..core.kernels.dispatch import Backend
from ..core.options import Options, OptionsError
from ..core.recorder import Recorder
from ..core.task import Task
from ..core.world import World
from ..envs import ImagesEnv
from . import checkpoint, resources
from .options import excess, first_sentence
from .sinks import Plots

logger = logging.getLogger(__name__)

ROOMS = ("core.accessors", "core.controllers", "circuits", "envs", "agents")
"""Folders whose files register what options can name."""


def _load_rooms() -> None:
    package = __name__.split(".")[0]
    for room in ROOMS:
        found = importlib.import_module(f"{package}.{room}")
        for module in pkgutil.walk_packages(found.__path__, f"{found.__name__}."):
            importlib.import_module(module.name)


_load_rooms()

OPTIONS = {
    "env": "env.type",
    "circuit": "circuit.type",
    "agent": "agent.type",
    "controller": "circuit.controller.type",
    "accessor": "circuit.accessor.type",
    "strategy": "agent.strategy.type",
    "fitness": "agent.fitness.type",
    "optimiser": "agent.optimiser.type",
    "plasticity": "agent.plasticity",
    "curriculum": "env.curriculum.type",
    "sink": "plots",
}
"""Where options name something of each kind."""

MOST_THREADS = 1024

Precision = Literal["float32", "bfloat16", "float64"]

_DEVICE = re.compile(r"(?P<kind>[a-z_]+)(:[0-9]{1,2})?")
_NAME = re.compile(r"[^\W_][\w.=,+-]{0,99}")
TAKEN_NAMES = {"latest": "the newest run", "main": "visdom's own page, which the list of runs leaves out"}
"""Names that no run can have, and what they are."""
NAME_BYTES = 200
"""Of a name at most, as UTF-8: file systems count bytes, and take 255 with what is appended."""
_HOST = re.compile(r"[\w.-]+|[\da-fA-F:.]+")


def _check_threads(value: Any) -> int | str:
    if value == "auto" or (type(value) is int and 1 <= value <= MOST_THREADS):
        return value
    raise ValueError(f"got {value!r}; allowed: auto, or a whole number from 1 to {MOST_THREADS}")


class RunOptions(Options):
    """Everything that describes a run."""

    kept = frozenset({"seed"})

    imports: list[str] = Field(
        default=[],
        description="modules that register what the options name, by name or as paths of .py files; imported first",
    )
    seed: int = Field(default=1, ge=0, lt=2**31, description="of weights, training data and population")
    device: str = Field(
        default="auto",
        description="cpu, cuda, cuda:1, … or another that torch finds here and that has float64, such as xpu; auto "
        "takes a CUDA device where there is one",
    )
    backend: Backend = Field(default="auto", description="what runs sequences; auto takes the fastest that can")
    precision: Precision = Field(
        default="float32",
        description="of all numbers; bfloat16 is for the matrix products of controller and outputs alone, and learns "
        "by backprop",
    )
    threads: Annotated[int | str, PlainValidator(_check_threads)] = Field(
        default="auto",
        description="CPU threads; auto takes one where the circuit is small, which more would slow down, and all cores "
        "otherwise",
    )
    plots: Plots = Field(
        default="auto",
        description="where metrics and pictures go: files writes PNGs, visdom shows them live as well, auto does so "
        "where it is installed, off is nowhere; a registered sink, or a list of those",
    )
    visdom_host: str = Field(
        default="localhost",
        description="where the visdom server is, by name or address; one is started if it is localhost and none is "
        "there",
    )
    visdom_port: int = Field(default=8097, ge=1, le=65535, description="where the visdom server listens")
    visdom_user: str | None = Field(
        default=None,
        min_length=1,
        description="whose login to use if the visdom server asks for one; null takes the environment variable "
        "VISDOM_USERNAME",
    )
    visdom_password_file: str | None = Field(
        default=None,
        min_length=1,
        description="a file that holds the password of that login, which is saved nowhere else; null takes the "
        "environment variable VISDOM_PASSWORD",
    )
    start: str | None = Field(
        default=None,
        min_length=1,
        description="whose weights the circuit starts with: a run's folder, its name or latest (its best checkpoint), "
        "or a checkpoint file; null starts with fresh ones",
    )
    name: str | None = Field(
        default=None,
        description="what the folder of the run below runs/ is called; null calls it after the preset and the time",
    )
    env: Annotated[Any, Chosen("env")] = Field(description="the task")
    circuit: Annotated[Any, Chosen("circuit")] = Field(description="what learns")
    agent: Annotated[Any, Chosen("agent")] = Field(description="how it learns")

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str | None) -> str | None:
        if name in TAKEN_NAMES:
            raise ValueError(f"got {name!r}; allowed: another one, for this is {TAKEN_NAMES[name]}")
        if name is not None and (not _NAME.fullmatch(name) or len(name.encode()) > NAME_BYTES):
            raise ValueError(
                f"got {name!r}; allowed: a letter or digit, then up to 99 of these or _.=,+-, in {NAME_BYTES} bytes"
            )
        return name

    @field_validator("visdom_host")
    @classmethod
    def _check_host(cls, host: str) -> str:
        if not _HOST.fullmatch(host):
            raise ValueError(f"got {host!r}; allowed: the name or the address of a machine, without http:// and port")
        return host

    def __reduce__(self) -> tuple[Any, ...]:
        """As plain values: another process first imports what they name."""
        return parse, (self.model_dump(mode="json"),)


class Parts(NamedTuple):
    """What a run is made of."""

    env: Task
    circuit: Circuit
    agent: Agent


def parse(values: Mapping[str, Any]) -> RunOptions:
    """Validate the options of a run, after importing the modules that they name.

    Raises:
        OptionsError: lists every problem, each with the path of the key, what was given and what is allowed.
    """
    if said := excess(values):
        raise OptionsError(f"options: {said}")
    names = values.get("imports")
    if isinstance(names, list):
        registry.import_modules(name for name in names if isinstance(name, str))
    problems: list[str] = []
    device = values.get("device", "auto")
    if isinstance(device, str):
        try:
            _check_float64(resolve_device(device))
        except OptionsError as error:
            problems.append(str(error))
    try:
        options = RunOptions.model_validate(values)
    except ValidationError as error:
        raise OptionsError("\n".join([*explain(error, values, RunOptions), *problems])) from error
    problems += [*_misfits(options)]
    if problems:
        raise OptionsError("\n".join(problems))
    return options


def _misfits(options: RunOptions) -> Iterator[str]:
    """A line for each thing that the agent does not take, as its class declares."""
    agent, env = component_of(options.agent), component_of(options.env)
    named = options.agent.type

    def able(takes: Callable[[Any], bool]) -> str:
        return ", ".join(name for name, entry in registry.entries("agent").items() if takes(entry))

    if not issubclass(env, agent.tasks):
        has = "is a world with rewards" if issubclass(env, World) else "hands out batches"
        allowed = able(lambda entry: issubclass(env, entry.tasks))
        yield f"agent.type: got {named!r}; env.type {options.env.type!r} {has}, allowed: {allowed}"
    embedding_size = getattr(options.circuit, "embedding_size", None)
    if embedding_size is not None and not env.token_inputs:
        yield (
            f"circuit.embedding_size: got {embedding_size}; inputs of env.type {options.env.type!r} are no tokens, "
            "allowed is null"
        )
    if options.precision not in agent.precisions:
        others = able(lambda entry: options.precision in entry.precisions)
        yield (
            f"precision: got {options.precision!r}; allowed with agent.type {named!r}: {', '.join(agent.precisions)} "
            f"(others: {others})"
        )
    if options.backend not in agent.backends:
        yield f"backend: got {options.backend!r}; allowed with agent.type {named!r}: {', '.join(agent.backends)}"
    if options.start is not None:
        yield from agent.refuses_start(options.agent)


def resolve_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is the first GPU, or the CPU.

    Raises:
        OptionsError: no such device here.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    known = _DEVICE.fullmatch(name)
    try:
        if not known or name.startswith("cpu:"):
            raise RuntimeError("no device is called so")
        device, module = torch.device(name), torch.get_device_module(known["kind"])
    except RuntimeError as error:
        raise OptionsError(
            f"device: got {name!r}; allowed: auto, cpu, cuda, cuda:1 and so on, or another that torch finds"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise OptionsError(f"device: got {name!r}; torch finds {gpus or 'no'} CUDA device{'s'[: gpus != 1]} here")
    if not module.is_available() or (device.index or 0) >= module.device_count():
        raise OptionsError(f"device: got {name!r}; torch finds no such device here")
    return device


def _check_float64(device: torch.device) -> None:
    """Raise OptionsError where there is none, as on mps: circuits do without it, but what draws and judges does not."""
    if device.type in ("cpu", "cuda"):
        return
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, TypeError) as error:
        raise OptionsError(
            f"device: got {str(device)!r}, which has no float64, in which a run draws and adds up; allowed: cpu"
        ) from error


def build_env(options: Options, device: torch.device) -> Task:
    """The env or world that a block of options names, on a device."""
    env: Task = build_component(options, device=device)
    return env


def build_task(options: RunOptions, device: torch.device) -> Task:
    """The env or world of a run as its agent takes it, on a device.

    Raises:
        ValueError: it cannot be built, or the agent cannot take it.
    """
    agent: type[Agent] = component_of(options.agent)
    with _named_in_full("env", options.env):
        with under("env"):
            env = build_env(options.env, device)
        return agent.task_of(options.agent, env)


@contextlib.contextmanager
def _named_in_full(block: str, options: Options) -> Iterator[None]:
    """Within the block, an error that begins with one of these options, or what is in it, names the block as well."""
    try:
        yield
    except ValueError as error:
        if re.split("[.:]", str(error))[0] in type(options).model_fields:
            raise OptionsError(f"{block}.{error}") from error
        raise


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
        circuit: Circuit = build_component(options, input_size, output_size, backend=backend)
    if precision == "bfloat16":
        circuit.autocast = torch.bfloat16
    return circuit.to(device, torch.float64 if precision == "float64" else torch.float32)


class _NothingDrawn(TorchFunctionMode):
    """Skips what an embedding would draw: on the meta device PyTorch loads its compiler for it, in most of a second."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What ``func`` gives, or the tensor as it is where values would be drawn from a normal distribution."""
        kwargs = kwargs or {}
        if func is nn.init.normal_:
            return kwargs["tensor"]
        return func(*args, **kwargs)


def outline(options: RunOptions, env: Task) -> Circuit:
    """The circuit of a run on the meta device: it has all sizes, and takes neither memory nor time."""
    with torch.device("meta"), _NothingDrawn():
        circuit: Circuit = build_component(options.circuit, env.input_size, env.output_size)
        if is_outside(type(circuit)):
            circuit.check()
    return circuit


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
        resumed: True if the agent's state will be loaded, weights included: ``start`` is ignored.

    Raises:
        ValueError: the parts do not fit each other, the weights of ``start`` do not fit the circuit, or no memory is
            left for it.
        BackendError: the backend cannot run this circuit here.
    """
    device = resolve_device(options.device)
    env = build_task(options, device)
    try:
        with under("circuit"), memory_errors("circuit"):
            planned = outline(options, env)
            resources.check_memory(options, env, planned, device)
            for line in resources.remarks(options, env, planned):
                logger.warning("%s", line)
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
        _check_gradient(options, circuit)
        with _named_in_full("agent", options.agent):
            agent: Agent = build_component(options.agent, env, circuit, seed=options.seed, recorder=recorder)
    except BaseException:
        env.close()
        raise
    return Parts(env, circuit, agent)


def _check_gradient(options: RunOptions, circuit: Circuit) -> None:
    """Raise OptionsError if an agent needs a gradient that a circuit does not have."""
    if circuit.differentiable or not component_of(options.agent).needs_gradient:
        return
    able = ", ".join(name for name, entry in registry.entries("agent").items() if not entry.needs_gradient)
    raise OptionsError(
        f"agent.type: got {options.agent.type!r}; circuit.type {options.circuit.type!r} has no gradient, "
        f"allowed: {able}"
    )


def try_out(options: RunOptions, env: Task, circuit: Circuit) -> None:
    """Check that there is memory for the state of a batch, and that the backend can run the circuit.

    Raises:
        BackendError: the backend cannot run this circuit here.
    """
    batch_size: int = getattr(options.agent, "batch_size", 1)
    state = circuit.initial_state(batch_size)
    if not isinstance(circuit, MemoryCircuit):
        return
    inputs = state.reads.new_zeros(1, batch_size, circuit.vector_size)
    with circuit.precision(inputs):
        dispatch.choose(circuit, inputs, state)
        if isinstance(env, Env) and hasattr(options.agent, "strategy"):
            stacked = {name: parameter.detach()[None] for name, parameter in circuit.named_parameters()}
            dispatch.choose_population(circuit, stacked, inputs)


@contextlib.contextmanager
def memory_errors(what: str, kind: type[Exception] = OptionsError) -> Iterator[None]:
    """Within the block, running out of memory raises an error of this kind: one line that says what needed how much."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch has an error of its own on a GPU alone.
        message = str(error)
        if not isinstance(error, MemoryError) and not NO_MEMORY.search(message):
            raise
        asked = re.search(r"tried to allocate ([\d.]+) (\w+)", message, re.IGNORECASE)
        size = ""
        if asked:
            size = f"; {int(asked[1]) / 2**30:,.1f} GiB" if asked[2] == "bytes" else f"; {asked[1]} {asked[2]}"
            size += " were asked for at once"
        raise kind(f"{what}: there is not enough memory{size}") from error


def take_over(options: RunOptions, circuit: Circuit) -> None:
    """Give a circuit the weights of the checkpoint file that ``start`` names, whichever agent trained them.

    Raises:
        OptionsError: the weights do not fit; names the first that does not, and the options that differ.
        checkpoint.CheckpointError: the file is missing, damaged, foreign or holds no circuit.
    """
    content = checkpoint.load(Path(str(options.start)), "cpu")
    try:
        saved, theirs = content["agent"], content["options"]
        if "circuit" not in saved:
            raise KeyError("circuit")
    except (KeyError, TypeError) as error:
        raise checkpoint.CheckpointError(f"start: {options.start} holds no circuit") from error
    try:
        load_weights(circuit, saved)
    except ValueError as error:
        ours = options.model_dump(mode="json")
        lines = [
            f"{path}: {there!r} there, {here!r} here"
            for block in ("env", "circuit")
            for path, there, here in differences(theirs[block], ours[block], block)
        ]
        raise OptionsError("\n".join([f"start: {options.start} does not fit; {error}", *lines])) from error


def differences(theirs: Any, ours: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Path and both values of each option that is not the same in two sets of options."""
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        keys = dict.fromkeys([*theirs, *ours])
        below = f"{path}." if path else ""
        return [found for key in keys for found in differences(theirs.get(key), ours.get(key), f"{below}{key}")]
    return [] if theirs == ours else [(path, theirs, ours)]


def load_circuit(
    path: str | Path,
    *,
    backend: str = "auto",
    device: torch.device | str = "cpu",
    imports: Sequence[str] | None = None,
    options: Options | None = None,
) -> Circuit:
    """The circuit of a checkpoint file, built from the options saved with it, with its trained weights.

    Device and backend are those given here, whatever the run had; of its options only the circuit's block and the
    precision count. It is in evaluation mode, in which dropout is off: agents that train it change that, and a loop of
    one's own by ``train()``. What comes from outside the package must be importable here: a checkpoint holds no code,
    but the names of the modules that its run has imported.

    Args:
        path: a file such as ``runs/<run>/checkpoints/best.pt``.
        backend: what runs sequences.
        device: where to; ``auto`` takes a CUDA device where there is one.
        imports: modules that register what the circuit is made of, in place of those that the checkpoint names; these
            are imported only if the circuit has a part that is not known yet. ``[]`` imports nothing.
        options: of the circuit, in place of those saved with it; for what its weights fit to, such as a larger memory.

    Raises:
        OptionsError: no such device here, a module cannot be imported, or the path is none.
        checkpoint.CheckpointError: the file is missing, damaged, foreign or holds no circuit that can be built.
    """
    if not isinstance(path, str | os.PathLike):
        raise OptionsError(f"path: got {path!r}; allowed is the name of a file, such as 'runs/…/checkpoints/best.pt'")
    place = resolve_device(str(device))
    registry.import_modules(imports or ())
    content = checkpoint.load(Path(path), place)
    try:
        kept, saved, sizes = content["options"], content["agent"], content["sizes"]
        saved["circuit"]
        values, named = {"circuit": kept["circuit"]}, kept.get("imports", [])
    except (KeyError, TypeError) as error:
        raise checkpoint.CheckpointError(f"{path}: holds no circuit") from error
    try:
        try:
            block = _Circuit.model_validate(values).circuit if options is None else options
        except ValidationError:
            if imports is not None or not named:
                raise
            registry.import_modules(named)
            block = _Circuit.model_validate(values).circuit
    except (ValidationError, OptionsError) as error:
        lines = explain(error, values, _Circuit) if isinstance(error, ValidationError) else [str(error)]
        needed = ", ".join(repr(name) for name in named)
        hint = f" (its run has imported {needed}; imports= names what to import instead)" if needed else ""
        raise checkpoint.CheckpointError(
            f"{path}: holds no circuit that can be built here: {'; '.join(lines)}{hint}"
        ) from error
    circuit = build_circuit(
        block,
        sizes["input_size"],
        sizes["output_size"],
        backend=backend,
        device=place,
        seed=0,
        precision=kept.get("precision", "float32"),
    )
    load_weights(circuit, saved)
    return circuit.eval()


class _Circuit(Options):
    circuit: Annotated[Any, Chosen("circuit")]


def describe(parts: Parts) -> str:
    """The hierarchy that was built, as text: Agent { Env, Circuit { Controller, Accessor } } with sizes."""
    env, circuit, agent = parts
    parameters = sum(parameter.numel() for parameter in circuit.parameters())
    lines = [
        type(agent).__name__,
        f"  {type(env).__name__}: {env.input_size} inputs, {env.output_size} outputs",
        f"  {type(circuit).__name__}: {parameters:,} parameters on {env.device}",
    ]
    for part in (getattr(circuit, "controller", None), getattr(circuit, "accessor", None)):
        if part is not None:
            sizes = [f"{name} {value}" for name, value in part.options if type(value) is int]
            lines.append(": ".join([f"    {type(part).__name__}", *filter(None, [", ".join(sizes)])]))
    return "\n".join(lines)


def entries() -> dict[str, dict[str, str]]:
    """Every name that options can use, by its option, with the first sentence of what it stands for."""
    described = {
        option: {
            name: first_sentence((entry.__doc__ or "").split("\n\n")[0])
            for name, entry in registry.entries(kind).items()
        }
        for kind, option in OPTIONS.items()
    }
    return {**described, "env.data": dict.fromkeys(get_args(fields_of(ImagesEnv)["data"].annotation), "")}
