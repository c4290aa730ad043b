"""How well a circuit answers sequences that it has not been trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..core.agent import Recorder
from ..core.circuit import Circuit
from ..core.env import Batch, Env


@torch.no_grad()
def evaluate(env: Env, circuit: Circuit, *, sequences: int, batch_size: int, seed: int) -> dict[str, float]:
    """Metrics of a circuit over all of a finite set, or over sequences that depend on the seed alone.

    Args:
        env: hands out the sequences.
        circuit: answers them; inputs and outputs are time-major.
        sequences: how many are made up where the set has no end.
        batch_size: how many at a time.
        seed: of the sequences, so that every evaluation sees the same ones.
    """
    totals: dict[str, tuple[float, float]] = {}
    for batch in env.batches(batch_size) or _made_up(env, sequences, batch_size, seed):
        outputs, _ = circuit(batch.inputs)
        for name, (total, count) in env.tallies(outputs, batch).items():
            old_total, old_count = totals.get(name, (0.0, 0.0))
            totals[name] = (old_total + float(total), old_count + float(count))
    return {name: total / count for name, (total, count) in totals.items() if count > 0}


def _made_up(env: Env, sequences: int, batch_size: int, seed: int) -> Iterator[Batch]:
    generator = torch.Generator(env.device).manual_seed(seed)
    for start in range(0, sequences, batch_size):
        yield env.sample(min(batch_size, sequences - start), generator)


def evaluate_all(env: Env, circuit: Circuit, *, sequences: int, batch_size: int, seed: int) -> dict[str, float]:
    """Metrics on every held-out set of an env, named ``held_out/<set>/<metric>``."""
    values = {}
    for name, variant in env.held_out().items():
        for metric, value in evaluate(variant, circuit, sequences=sequences, batch_size=batch_size, seed=seed).items():
            values[f"held_out/{name}/{metric}"] = value
    return values


@torch.no_grad()
def show_episodes(env: Env, circuit: Circuit, recorder: Recorder, step: int, seed: int) -> None:
    """Hand a recorder that draws one answered sequence, with its trace, of the first and of the last held-out set."""
    if not recorder.wants_episodes:
        return
    held_out = env.held_out()
    for name in dict.fromkeys([next(iter(held_out)), next(reversed(held_out))]):
        variant = held_out[name]
        batch = variant.sample(1, torch.Generator(variant.device).manual_seed(seed))
        outputs, _, trace = circuit(batch.inputs, trace=True)
        recorder.episode(step, name, batch, outputs, trace)


def held_out_errors(env: Env, values: Mapping[str, float]) -> list[float]:
    """The error of each held-out set, in their order; the first is that of the training range."""
    return [values[f"held_out/{name}/{env.error_metric}"] for name in env.held_out()]


def check_state(kind: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Check that a saved state fits before any of it is taken up.

    Args:
        kind: what the state is of, for the message.
        found: names and tensors of the checkpoint.
        expected: names and tensors of the circuit.

    Raises:
        ValueError: names the first entry that is missing, unexpected or of another shape.
    """
    for name in expected:
        if name not in found:
            raise ValueError(f"checkpoint: {kind} {name!r} is missing; it was saved from another circuit")
        if tuple(found[name].shape) != tuple(expected[name].shape):
            raise ValueError(
                f"checkpoint: {kind} {name!r} has shape {list(found[name].shape)}; "
                f"this circuit has {list(expected[name].shape)}"
            )
    for name in found:
        if name not in expected:
            raise ValueError(f"checkpoint: {kind} {name!r} is not part of this circuit")


def check_keys(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise ValueError naming the first entry that a saved state lacks or has too many."""
    for name in expected:
        if name not in found:
            raise ValueError(f"checkpoint: entry {name!r} is missing; it was saved by another agent")
    for name in found:
        if name not in expected:
            raise ValueError(f"checkpoint: entry {name!r} is unknown; it was saved by another agent")


def check_fit(env: Env, circuit: Circuit) -> None:
    """Raise ValueError if a circuit cannot answer an env's sequences."""
    for name in ("input_size", "output_size"):
        if getattr(circuit, name) != getattr(env, name):
            raise ValueError(f"{name}: the circuit has {getattr(circuit, name)}, the env {getattr(env, name)}")
    if circuit.batch_first:
        raise ValueError("batch_first: got True; agents train time-major circuits")
