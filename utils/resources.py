"""Memory that a run needs and threads that it gains from, estimated from its sizes before anything is built."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..agents import BackpropAgent, EvolutionAgent
from ..agents.descent import DescentAgent
from ..core.circuit import Circuit
from ..core.component import class_of, component_of
from ..core.options import LARGEST_STEP, Options, OptionsError
from ..core.state import example
from ..core.task import Task
from ..envs.sequence import SequenceEnv

GIBIBYTE = 2**30
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux says how much memory a container may have."""

PARALLEL = 10**7
"""Multiplications and additions per step of time from which on a second thread is worth its waiting: on two busy cores
an NTM step of 2e7 took 0.20 s with one thread and 0.11 s with two, one of 1e6 took 0.02 s and 0.05 s."""


def elements(state: Any) -> int:
    """Elements of all tensors of a state."""
    return state.numel() if isinstance(state, Tensor) else sum(map(elements, state))


def available_bytes(device: torch.device) -> int:
    """Memory that this machine, this container or this GPU has, free or not."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [path.read_text().strip() for path in map(Path, _LIMITS) if path.exists()]
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *map(int, filter(str.isdigit, limits))])


def longest(env: Task, *, test: bool) -> int:
    """A lower bound of the steps of the longest sequences of training, or of the sets it is judged by; 1 if unknown."""
    if not isinstance(env, SequenceEnv):
        return 1
    lengths = []
    for variant in env.sets("validation").values() if test else [env]:
        length = 1
        for _, high in variant.ranges(variant).values():  # type: ignore[attr-defined]
            length *= high
        lengths.append(length)
    return max(lengths)


def needed_bytes(agent: Any, env: Task, circuit: Circuit) -> tuple[int, str]:
    """A lower bound of the bytes that a run needs, and what needs most of them.

    Args:
        agent: its options.
        env: of the run.
        circuit: of the run, or one on the meta device, which has all sizes and no memory.
    """
    size = example(circuit).element_size()
    weights = sum(parameter.numel() for parameter in circuit.parameters())
    batch_size = getattr(agent, "batch_size", 1)
    tested = min(getattr(agent, "evaluation_sequences", 1), getattr(agent, "evaluation_batch_size", 1))
    channels = env.input_size + env.output_size
    # Learning by gradient also takes the gradient and an average of it.
    always = {"the weights": weights * (3 if issubclass(component_of(agent), DescentAgent) else 1)}
    training = {
        "the state of a batch": elements(circuit.initial_state(batch_size)),
        "a batch": longest(env, test=False) * batch_size * channels,
    }
    testing = {
        "the state of a batch of evaluation": elements(circuit.initial_state(tested)),
        "a batch of evaluation": longest(env, test=True) * tested * channels,
    }
    if issubclass(component_of(agent), EvolutionAgent):
        strategy: Any = agent.strategy
        # Mirrored pairs share their noise, that of low rank is small; trust has two populations that take turns.
        shares = {"openai-es": 0 if getattr(strategy, "rank", None) else 0.5, "pgpe": 0.5, "trust": 2}
        share = shares.get(strategy.type, 1)
        always["the population"] = int((strategy.population or 0) * weights * share)
        training["the fitness"] = (strategy.population or 0) * batch_size
    needed = always | max(training, testing, key=lambda parts: sum(parts.values()))
    return sum(needed.values()) * size, max(needed, key=lambda what: needed[what])


SAID_FROM = 2 * GIBIBYTE
"""What a run takes is said from here on."""
KEPT = {"eager": 4.0, "native": 0.3}
"""States that the backward pass keeps for each step of time, about: benchmarks/RESULTS.md, "Memory", has 3.6 to 6.6 and
0.3 to 0.9."""

LONG = 10**4
"""Steps of sequences that are not made in order to count them."""
TOO_FAST = 30
"""Times the usual learning rate of an optimiser."""


def expected_bytes(options: Any, env: Task, circuit: Circuit) -> tuple[int, str]:
    """Bytes that a run takes, about, and what takes most of them: what it takes at the very least, with what the
    backward pass keeps of the longest sequences.

    Args:
        options: of the run.
        env: of the run.
        circuit: as in :func:`needed_bytes`.
    """
    agent = options.agent
    needed, most = needed_bytes(agent, env, circuit)
    if not issubclass(component_of(agent), BackpropAgent) or not isinstance(env, SequenceEnv):
        return needed, most
    accessor = getattr(circuit, "accessor", None)
    if accessor is None or accessor.kind == "sparse":
        return needed, most
    state = elements(circuit.initial_state(agent.batch_size)) * example(circuit).element_size()
    steps = min(_steps(env), agent.truncate or LARGEST_STEP)
    every = getattr(circuit, "recompute_every", None)
    kept = steps if not every else min(steps, every + steps / every)
    passed = int(state * kept * KEPT["eager" if options.backend == "eager" else "native"])
    return needed + passed, "what the backward pass keeps" if passed > needed else most


def _steps(env: SequenceEnv) -> int:
    """Steps of the longest training sequence, as it is made; where it is very long, the fewest."""
    fewest = longest(env, test=False)
    if fewest > LONG:
        return fewest
    hardest = env.variant(**{name: (high, high) for name, (_, high) in env.ranges(env).items()})
    return int(hardest.sample(1, torch.Generator(env.device).manual_seed(0)).inputs.shape[0])


def remarks(options: Any, env: Task, circuit: Circuit) -> Iterator[str]:
    """A line for each thing about the sizes and rates of a run that its owner may not have meant.

    Args:
        options: of the run.
        env: of the run.
        circuit: as in :func:`needed_bytes`.
    """
    taken, most = expected_bytes(options, env, circuit)
    if taken > SAID_FROM:
        yield f"memory: this run takes about {taken / GIBIBYTE:,.1f} GiB, {most} most of it"
    if issubclass(component_of(options.agent), DescentAgent):
        lr, usual = options.agent.lr, class_of(options.agent.optimiser).published_lr
        if lr is not None and lr > TOO_FAST * usual:
            yield f"agent.lr: {lr} is {lr / usual:,.0f} times the usual {usual} of this optimiser; training may diverge"
    words, slots = getattr(env, "kept_words", None), getattr(options.circuit, "memory_size", None)
    if words is not None and slots is not None and slots < words:
        yield (
            f"circuit.memory_size: {slots} slots are few for this task, whose sequences have up to {words} words to be "
            "kept; it may not be learned"
        )


def worthwhile_threads(agent: Any, circuit: Circuit) -> int:
    """CPU threads that a run gains from: one where little is computed at a time, else all that torch has.

    What is calculated is taken to be one operation for each weight and each element of the state, for each sequence of
    a batch, for each member of a population.

    Args:
        agent: its options.
        circuit: as in :func:`needed_bytes`.
    """
    weights = sum(parameter.numel() for parameter in circuit.parameters())
    members = getattr(getattr(agent, "strategy", None), "population", None) or 1
    work = members * getattr(agent, "batch_size", 1) * (weights + elements(circuit.initial_state(1)))
    return torch.get_num_threads() if work >= PARALLEL else 1


def check_memory(options: Any, env: Task, circuit: Circuit, device: torch.device) -> None:
    """Check that this machine has the memory that a run needs at least.

    Args:
        options: of the run.
        env: of the run.
        circuit: as in :func:`needed_bytes`.
        device: of the run.

    Raises:
        OptionsError: it has not; names the options that are most above their defaults, and what takes most.
    """
    (needed, most), available = needed_bytes(options.agent, env, circuit), available_bytes(device)
    if needed <= available:
        return
    raised = sorted(_raised(options), reverse=True)[:3]
    named = ", ".join(f"{path} {value}" for _, path, value in raised) or "env, circuit, agent"
    raise OptionsError(
        f"{named}: there is not enough memory; a run takes at least {needed / GIBIBYTE:,.1f} GiB, {most} most of it, "
        f"and this machine has {available / GIBIBYTE:,.1f} GiB"
    )


def _raised(block: Options, path: str = "") -> Iterator[tuple[float, str, int]]:
    """How many times its default each size among the options is, where it is larger, with its path and value."""
    for name, field in type(block).model_fields.items():
        value, usual = getattr(block, name), field.get_default(call_default_factory=True)
        if isinstance(value, Options):
            yield from _raised(value, f"{path}{name}.")
            continue
        numbers, defaults = (
            [size for size in (given if isinstance(given, list) else [given]) if type(size) is int]
            for given in (value, usual)
        )
        if (
            numbers
            and max(numbers) > max([1, *defaults])
            and not name.endswith(("seed", "steps", "every", "port", "sequences", "patience"))
        ):
            yield max(numbers) / max([1, *defaults]), f"{path}{name}", max(numbers)
