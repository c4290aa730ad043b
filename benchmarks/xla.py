"""How fast circuits train, beside the same equations in JAX: one scan over time, compiled by XLA.

    pip install -e ".[benchmarks]"
    python benchmarks/xla.py                         # every case, one thread
    python benchmarks/xla.py ntm-16 --rounds 5 --instructions avx2

Prints a Markdown table: medians in milliseconds of a training step (forward, backward, clipping of the gradient's norm
and an Adam update) and how many times as long JAX takes. In JAX all of it is compiled into one function whose arguments
are given up to it. Both take turns in one process that is bound to one processor, and begin with the same weights; that
JAX's loss is the same to 1e-5 is checked first. ``--instructions`` is the native library's; JAX takes all that the
processor has, unless ``XLA_FLAGS=--xla_cpu_max_isa=AVX2`` says otherwise.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import torch
from jax import numpy as jnp
from plain import PlainCircuit
from speed import CASES, Case, add_instructions, case_step, chosen_cases, instructions_used, interleaved
from torch.nn import functional

Parameters = dict[str, jax.Array]
State = tuple[jax.Array, ...]


def lstm(parameters: Parameters, x: jax.Array, hidden: jax.Array, cell: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One step of ``torch.nn.LSTMCell``; each ``[B, …]``."""
    gates = x @ parameters["cell.weight_ih"].T + parameters["cell.bias_ih"]
    gates += hidden @ parameters["cell.weight_hh"].T + parameters["cell.bias_hh"]
    enter, forget, new, out = jnp.split(gates, 4, -1)
    cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(new)
    return jax.nn.sigmoid(out) * jnp.tanh(cell), cell


def linear(parameters: Parameters, name: str, x: jax.Array) -> jax.Array:
    """A layer of PyTorch's."""
    return x @ parameters[f"{name}.weight"].T + parameters[f"{name}.bias"]


def length(x: jax.Array) -> jax.Array:
    """Norms over the last dimension, with gradient zero where they are zero, as PyTorch has it."""
    squares = (x * x).sum(-1)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def cosine(memory: jax.Array, keys: jax.Array) -> jax.Array:
    """Cosine similarity of keys ``[B, K, W]`` with slots ``[B, N, W]``, ``[B, K, N]``."""
    norms = length(keys)[..., None] * length(memory)[:, None]
    return jnp.einsum("bkw,bnw->bkn", keys, memory) / (norms + 1e-6)


def ntm_step(case: Case, parameters: Parameters, state: State, x: jax.Array) -> tuple[State, jax.Array]:
    """The step of ``plain.PlainNTM``."""
    hidden, cell, memory, weights, read = state
    word = case.word
    hidden, cell = lstm(parameters, jnp.concatenate([x, read], 1), hidden, cell)
    ends = [2 * word, 2 * word + 2, 2 * word + 4, 2 * word + 10, 2 * word + 12, 3 * word + 12]
    keys, strengths, gate, shift, sharpness, erase, add = jnp.split(linear(parameters, "interface", hidden), ends, 1)
    keys = jnp.tanh(keys).reshape(-1, 2, word)
    strengths = jax.nn.softplus(strengths)[..., None]
    gate = jax.nn.sigmoid(gate)[..., None]
    shift = jax.nn.softmax(shift.reshape(-1, 2, 3), -1)
    sharpness = 1 + jax.nn.softplus(sharpness)[..., None]

    def address(head: slice) -> jax.Array:
        content = jax.nn.softmax(strengths[:, head] * cosine(memory, keys[:, head]), -1)
        gated = gate[:, head] * content + (1 - gate[:, head]) * weights[:, head]
        back, stay, on = (shift[:, head, i : i + 1] for i in range(3))
        shifted = jnp.roll(gated, -1, -1) * back + gated * stay + jnp.roll(gated, 1, -1) * on
        powered = (shifted + 1e-16) ** sharpness[:, head]
        return powered / powered.sum(-1, keepdims=True)

    writing = address(slice(1, 2))
    written = writing.transpose(0, 2, 1)
    memory = memory * (1 - written * jax.nn.sigmoid(erase)[:, None]) + written * jnp.tanh(add)[:, None]
    reading = address(slice(0, 1))
    weights = jnp.concatenate([reading, writing], 1)
    read = (reading @ memory)[:, 0]
    output = linear(parameters, "output", jnp.concatenate([hidden, read], 1))
    return (hidden, cell, memory, weights, read), output


def dnc_step(case: Case, parameters: Parameters, state: State, x: jax.Array) -> tuple[State, jax.Array]:
    """The step of ``plain.PlainDNC``."""
    hidden, cell, memory, usage, precedence, link, write_weights, read_weights, read = state
    reads, word = case.reads, case.word
    hidden, cell = lstm(parameters, jnp.concatenate([x, read], 1), hidden, cell)
    sizes = [reads * word, reads, word, 1, word, word, reads, 1, 1]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    parts = jnp.split(linear(parameters, "interface", jnp.clip(hidden, -20, 20)), ends, 1)
    read_keys, read_strengths, write_key, write_strength, erase, add, free, allocate, write, modes = parts
    read_keys = read_keys.reshape(-1, reads, word)
    read_strengths = 1 + jax.nn.softplus(read_strengths)[..., None]
    write_strength = 1 + jax.nn.softplus(write_strength)[..., None]
    free = jax.nn.sigmoid(free)[..., None]
    allocate, write = jax.nn.sigmoid(allocate), jax.nn.sigmoid(write)
    modes = jax.nn.softmax(modes.reshape(-1, reads, 3), -1)

    retained = (1 - free * read_weights).prod(1)
    usage = (usage + write_weights - usage * write_weights) * retained
    known = 1e-6 + (1 - 1e-6) * usage
    order = jnp.argsort(known, -1)
    ascending = jnp.take_along_axis(known, order, -1)
    smaller = jnp.cumprod(jnp.concatenate([jnp.ones_like(ascending[:, :1]), ascending[:, :-1]], 1), -1)
    rows = jnp.arange(len(x))[:, None]
    allocation = jnp.zeros_like(usage).at[rows, order].set((1 - ascending) * smaller, unique_indices=True)
    content = jax.nn.softmax(write_strength * cosine(memory, write_key[:, None]), -1)[:, 0]
    write_weights = write * (allocate * allocation + (1 - allocate) * content)
    written = write_weights[..., None]
    memory = memory * (1 - written * jax.nn.sigmoid(erase)[:, None]) + written * add[:, None]

    row, column = write_weights[:, :, None], write_weights[:, None]
    link = (1 - row - column) * link + row * precedence[:, None]
    link = link * (1 - jnp.eye(case.slots))
    precedence = (1 - write_weights.sum(1, keepdims=True)) * precedence + write_weights
    forward = jnp.einsum("brj,bij->bri", read_weights, link)
    backward = read_weights @ link
    content = jax.nn.softmax(read_strengths * cosine(memory, read_keys), -1)
    read_weights = modes[..., :1] * backward + modes[..., 1:2] * content + modes[..., 2:] * forward
    read = (read_weights @ memory).reshape(len(x), -1)
    output = linear(parameters, "output", jnp.concatenate([hidden, read], 1))
    return (hidden, cell, memory, usage, precedence, link, write_weights, read_weights, read), output


STEPS = {"ntm": ntm_step, "dnc": dnc_step}


def training_step(case: Case, plain: PlainCircuit, inputs: jax.Array, targets: jax.Array) -> Callable[[], float]:
    """A function that does one training step, and returns the loss before it."""
    parameters = {name: jnp.array(value.detach().numpy()) for name, value in plain.named_parameters()}
    first = tuple(jnp.array(part.numpy()) for part in plain.initial(case.batch_size))

    def loss(parameters: Parameters) -> jax.Array:
        def step(state: State, x: jax.Array) -> tuple[State, jax.Array]:
            return STEPS[case.kind](case, parameters, state, x)

        outputs = jax.lax.scan(step, first, inputs)[1]
        return (jnp.maximum(outputs, 0) - outputs * targets + jnp.log1p(jnp.exp(-jnp.abs(outputs)))).mean()

    def update(parameters: Parameters, means: Parameters, squares: Parameters, count: jax.Array) -> Any:
        value, gradients = jax.value_and_grad(loss)(parameters)
        norm = jnp.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
        gradients = {name: gradient * jnp.minimum(1, 50 / (norm + 1e-6)) for name, gradient in gradients.items()}
        count = count + 1
        means = {name: 0.9 * means[name] + 0.1 * gradient for name, gradient in gradients.items()}
        squares = {name: 0.999 * squares[name] + 0.001 * gradient**2 for name, gradient in gradients.items()}
        near = {name: jnp.sqrt(square / (1 - 0.999**count)) + 1e-8 for name, square in squares.items()}
        moved = {name: value - 1e-4 * means[name] / (1 - 0.9**count) / near[name] for name, value in parameters.items()}
        return value, moved, means, squares, count

    compiled: Any = jax.jit(update, donate_argnums=(0, 1, 2, 3))
    zeros = {name: jnp.zeros_like(value) for name, value in parameters.items()}
    kept = [parameters, zeros, {name: value.copy() for name, value in zeros.items()}, jnp.zeros(())]

    def step() -> float:
        value, *kept[:] = compiled(*kept)
        return float(value)  # waits for it

    return step


def contestants(name: str, backend: str = "auto") -> dict[str, Callable[[], Any]]:
    """Training steps of the library's circuit and of JAX's.

    Raises:
        RuntimeError: JAX's loss is another than that of the plain implementation.
    """
    case = CASES[name]
    torch.manual_seed(0)
    inputs = torch.rand(case.steps, case.batch_size, case.input_size)
    targets = (torch.rand(case.steps, case.batch_size, case.output_size) > 0.5).float()
    plain = case.plain()
    with torch.no_grad():
        expected = float(functional.binary_cross_entropy_with_logits(plain(inputs), targets))
    step = training_step(case, plain, jnp.array(inputs.numpy()), jnp.array(targets.numpy()))
    if abs(step() - expected) > 1e-5:
        raise RuntimeError(f"{name}: JAX's first loss is not {expected}, the plain implementation's")
    return {"papertape": case_step(name, backend, "train")[0], "jax": step}


def main() -> None:
    """Measure the named cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: all of {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=15)
    add_instructions(parser)
    arguments = parser.parse_args()
    cases = chosen_cases(parser, arguments.cases)
    used = instructions_used(parser, arguments)
    torch.set_num_threads(1)
    flags = os.environ.get("XLA_FLAGS")
    print(f"{time.strftime('%Y-%m-%d')}, {platform.processor() or platform.machine()}, {used}, ", end="")
    print(f"torch {torch.__version__}, jax {jax.__version__}{f' {flags}' if flags else ''}, one thread\n")
    print("| case | papertape ms | JAX ms | JAX takes |\n| --- | --- | --- | --- |")
    for name in cases:
        times = interleaved(contestants(name), arguments.rounds)
        ours, theirs = (statistics.median(times[who]) for who in ("papertape", "jax"))
        print(f"| {name} | {ours:.3f} | {theirs:.3f} | {theirs / ours:.1f} times as long |", flush=True)


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    main()
