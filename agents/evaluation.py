"""How well a circuit answers sequences that it is not trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from ..circuits.module import ModuleCircuit
from ..core.circuit import Circuit
from ..core.contracts import plain_numbers, told
from ..core.env import Batch, Env
from ..core.options import ContractError
from ..core.placement import seeded_apart
from ..core.recorder import ANSWERED, Recorder
from ..core.state import example
from ..core.streams import Stream, stream_seed
from ..core.structure import describe, plain, structured
from ..core.task import Task
from ..core.topology import TopologyNetwork
from ..core.trace import Trace, concatenate
from ..core.trace_field import TraceField
from ..core.world import World, WorldError, carrying, check_picture, join_episodes

IMAGES = 24
"""Images that are shown with their answers, of a task that is about images."""
PICTURE_SIZE = 160
"""Pixels that a picture of a world may have, across and down; larger ones leave some out."""
MOST_PICTURES = 64
"""Of a world in one episode."""
STRUCTURE = "structure"
"""Entry of a checkpoint whose circuit has another structure than it was built with."""
OPTIONAL = (STRUCTURE, ANSWERED)
"""Entries of a checkpoint that not all have; the second came later than checkpoints did."""
WORLD = TraceField("Y X C", "picture", "what the world looks like")


@torch.no_grad()
def evaluate(task: Task, circuit: Circuit, *, sequences: int, batch_size: int, seed: int) -> dict[str, float]:
    """Metrics of a circuit over all of a finite set, or over sequences or episodes of the seed and the batch size.

    What the circuit draws from torch's global generator follows from the seed as well, and leaves that as it was. Where
    an answer is NaN, the metrics of an env are.

    Args:
        task: an env, which hands out sequences, or a world, in which episodes are played.
        circuit: answers; inputs and outputs are time-major. It is in evaluation mode from then on: without dropout, and
            as it is after training in all else.
        sequences: how many are drawn from a set that is not finite.
        batch_size: how many at a time.
        seed: of the sequences or episodes, so that every evaluation sees the same ones.
    """
    circuit.eval()
    with seeded_apart(torch.device(task.device), seed):
        return _evaluate(task, circuit, sequences, batch_size, torch.Generator(task.device).manual_seed(seed))


def _evaluate(
    task: Task, circuit: Circuit, sequences: int, batch_size: int, generator: torch.Generator
) -> dict[str, float]:
    if isinstance(task, World):
        counts = [min(batch_size, sequences - start) for start in range(0, sequences, batch_size)]
        played = join_episodes([task.play(carrying(circuit), count, generator) for count in counts], 1)
        return plain_numbers(task.metrics(played))
    env = _env(task)
    totals: dict[str, tuple[float, float]] = {}
    for batch in env.batches(batch_size) or env.drawn(sequences, batch_size, generator):
        answers, _ = answered(env, circuit, batch)
        # A comparison would take an answer that is no number for right or wrong.
        unanswered = bool((answers.outputs.isnan().any(-1) & (answers.batch.mask > 0)).any())
        for name, (total, count) in env.tallies(*answers).items():
            old_total, old_count = totals.get(name, (0.0, 0.0))
            totals[name] = (math.nan if unanswered else old_total + float(total), old_count + float(count))
    return {name: total / count for name, (total, count) in totals.items() if count > 0}


class Answered(NamedTuple):
    """Answers, and what they are answers to."""

    outputs: Tensor
    """Logits, ``[M, B, O]``"""
    batch: Batch
    """Of M steps: all T, or those alone that count"""


def answered(env: Env, circuit: Circuit, batch: Batch, state: Any = None) -> tuple[Answered, Any]:
    """Answers to a batch, and the state after it; steps that do not count are left out where that pays.

    Args:
        env: says where it does, by :meth:`Env.counted`.
        circuit: answers.
        batch: of T steps.
        state: where to start.
    """
    counted = env.counted(batch)
    if counted is None:
        outputs, state = circuit(batch.inputs, state)
        return Answered(outputs, batch), state
    at, alone = counted
    outputs, state = circuit(batch.inputs, state, at=at)
    return Answered(outputs, alone), state


def _env(task: Task) -> Env:
    assert isinstance(task, Env)
    return task


LESSON = "lesson"
"""The name of the current lesson among the validation sets."""


def evaluate_all(
    task: Task, circuit: Circuit, stream: Stream, *, sequences: int, batch_size: int, seed: int
) -> dict[str, float]:
    """Metrics on every set of a stream, named ``<stream>/<set>/<metric>``; in validation also on the current lesson.

    Args:
        task: what is answered.
        circuit: answers, as in :func:`evaluate`.
        stream: validation or test.
        sequences: as in :func:`evaluate`, of each set.
        batch_size: how many at a time.
        seed: of the run; the stream has one of its own.
    """
    sets, lesson = dict(task.sets(stream)), task.lesson()
    if stream == "validation" and lesson is not None:
        sets[LESSON] = lesson
    own = stream_seed(seed, stream)
    return {
        f"{stream}/{name}/{metric}": value
        for name, variant in sets.items()
        for metric, value in evaluate(variant, circuit, sequences=sequences, batch_size=batch_size, seed=own).items()
    }


@torch.no_grad()
def show_episodes(task: Task, circuit: Circuit, recorder: Recorder, step: int, stream: Stream, seed: int) -> str | None:
    """Give a recorder one answered sequence or episode of the first and of the last set of a stream, to be drawn.

    The network of a circuit that has one of any topology is drawn, too. What the circuit draws from torch's global
    generator follows from the seed, and leaves that as it was.

    Each comes with its trace; of images there are several. An episode has the observations as its inputs and the
    rewards as its targets, none of which counts as an answer that could be wrong.

    Args:
        task: what is answered.
        circuit: answers.
        recorder: draws, or does not.
        step: of training.
        stream: validation or test.
        seed: of the run; the stream has one of its own.

    Returns:
        Why there is nothing to see of an episode or of its world, in one line: no picture is worth the end of a run.
    """
    if not recorder.wants_episodes:
        return None
    problem = None
    sets = task.sets(stream)
    for name in dict.fromkeys([next(iter(sets)), list(sets)[-1]]):
        variant = sets[name]
        own = stream_seed(seed, stream)
        generator = torch.Generator(variant.device).manual_seed(own)
        with seeded_apart(torch.device(variant.device), own):
            if isinstance(variant, World):
                try:
                    batch, outputs, trace, unseen = _traced_episode(variant, circuit, generator)
                except Exception as error:  # without pictures, nobody would have played this episode
                    problem = problem or f"there is no picture of an episode: {_reason(error)}"
                    continue
                problem = problem or unseen
            else:
                images = any(channels.shape for channels in variant.input_channels())
                batch = _env(variant).sample(IMAGES if images else 1, generator)
                outputs, _, trace = circuit(batch.inputs, trace=True)
        recorder.episode(step, name, batch, outputs, trace)
    for module in circuit.modules():
        if isinstance(module, TopologyNetwork):
            recorder.chart(step, "network", module.chart())
    return problem


def _reason(error: Exception) -> str:
    """One line on what a world has raised, which may already say all there is to say."""
    return str(error) if isinstance(error, WorldError | ContractError) else told(error, "env")


def _traced_episode(
    world: World, circuit: Circuit, generator: torch.Generator
) -> tuple[Batch, Tensor, Trace, str | None]:
    """One episode: observations, rewards and an empty mask; outputs ``[T, 1, O]``; what the heads did; and why there
    are no pictures of the world, if they were to be had.
    """
    inputs, rewards, outputs, traces = [], [], [], []
    world = world.pictured()
    observations, _ = world.reset(1, generator)
    film = _Film()
    state, over, own = None, False, example(circuit)
    while not over:
        film.take(world)
        inputs.append(observations.unsqueeze(0).to(own))
        answered, state, trace = circuit(inputs[-1], state, trace=True)
        step = world.step(world.decide(answered[0]))
        observations, over = step.observations, bool((step.terminated | step.truncated).all())
        rewards.append(step.rewards.view(1, 1, 1).to(inputs[-1]))
        outputs.append(answered)
        traces.append(trace)
    targets = torch.cat(rewards)
    batch = Batch(torch.cat(inputs), targets, torch.zeros_like(targets[..., 0]))
    return batch, torch.cat(outputs), film.added_to(concatenate(traces)), film.problem


class _Film:
    """Pictures of a world in one episode: of every step while there are few, then of every second one, and so on."""

    def __init__(self) -> None:
        self.pictures: list[Tensor | None] = []
        self.steps, self.between = 0, 1
        self.shape: torch.Size | None = None
        """Of the first one, which the others share."""
        self.problem: str | None = None
        """Why there are none."""

    def take(self, world: World) -> None:
        """The picture of the next step, if it is one that is taken; with the first that is none, all are given up."""
        if self.problem is None and self.steps % self.between == 0:
            try:
                self._add(world.picture())
            except Exception as error:
                self.problem = f"there are no pictures of the world: {_reason(error)}"
                self.pictures = []
        self.steps += 1

    def _add(self, picture: Tensor | None) -> None:
        if picture is not None:
            check_picture("picture", picture, self.shape)
            self.shape = picture.shape
            factor = -(-max(picture.shape[:2]) // PICTURE_SIZE)
            picture = picture[::factor, ::factor].cpu()
        self.pictures.append(picture)
        if len(self.pictures) > MOST_PICTURES:
            del self.pictures[1::2]
            self.between *= 2

    def added_to(self, trace: Trace) -> Trace:
        """The trace with a field ``world``, if anything was seen: at each step the last picture taken until then."""
        seen = [picture for picture in self.pictures if picture is not None]
        if not seen or "world" in trace:
            return trace
        shown: list[Tensor] = []
        for picture in self.pictures:
            shown.append(picture if picture is not None else shown[-1] if shown else seen[0])
        taken = torch.arange(self.steps, device="cpu") // self.between
        world = torch.stack(shown)[taken.clamp(max=len(shown) - 1)].unsqueeze(1)
        return Trace({**trace, "world": world}, {**trace.fields, "world": WORLD})


def refuse_two_modes(circuit: nn.Module, agent: str, reason: str) -> None:
    """Raise ValueError if a part of a circuit answers otherwise in training, such as by dropout or batch normalisation.

    Args:
        circuit: what is looked through.
        agent: name of the agent that cannot take such a part.
        reason: why, for the message.
    """
    for name, module in circuit.named_modules():
        share = float(module.p) if isinstance(module, _DropoutNd) else getattr(module, "dropout", None)
        found = f"has dropout {share}" if isinstance(share, float) and share > 0 else None
        tracks = isinstance(module, _InstanceNorm) and module.track_running_stats
        if tracks or isinstance(module, _BatchNorm | nn.RReLU):
            found = f"is a {type(module).__name__}"
        if found:
            raise ValueError(f"circuit: {name or 'it'} {found}, {reason}; allowed with {agent} is none")


def set_error(task: Task, values: Mapping[str, float], stream: Stream, name: str) -> float:
    """The error of one set among the metrics of :func:`evaluate_all`; not a number where it was not answered."""
    return values.get(f"{stream}/{name}/{task.error_metric}", math.nan)


def check_state(kind: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Check that a saved state fits before any of it is loaded.

    Args:
        kind: what the state is of, for the message.
        found: what the checkpoint holds by name: tensors, or what else a part keeps (``get_extra_state``).
        expected: the same of the circuit.

    Raises:
        ValueError: names the first entry that is missing, unexpected or of another shape.
    """
    for name in expected:
        if name not in found:
            raise ValueError(f"checkpoint: {kind} {name!r} is missing; it was saved from another circuit")
        shapes = [list(held[name].shape) for held in (found, expected) if isinstance(held[name], Tensor)]
        if shapes[1:] and shapes[0] != shapes[1]:
            raise ValueError(f"checkpoint: {kind} {name!r} has shape {shapes[0]}; this circuit has {shapes[1]}")
    for name in found:
        if name not in expected:
            raise ValueError(f"checkpoint: {kind} {name!r} is not part of this circuit")


def weights_of(circuit: Circuit) -> dict[str, Any]:
    """What a checkpoint holds of a circuit: its weights, and its structure if that is not what it was built with."""
    now, first = circuit.structure(), circuit.first_structure
    kept = {} if now == first else {STRUCTURE: {"first": plain(first), "now": plain(now)}}
    return {"circuit": circuit.state_dict(), **kept}


def load_weights(circuit: Circuit, saved: Mapping[str, Any]) -> None:
    """Give a circuit the structure and the weights of a checkpoint.

    Args:
        circuit: whatever structure it has by now.
        saved: with what :func:`weights_of` gives.

    Raises:
        ValueError: they are of another circuit; names the first difference.
    """
    first = circuit.first_structure
    kept = saved.get(STRUCTURE, {"first": plain(first), "now": plain(first)})
    if structured(kept["first"]) != first:
        began, own = describe(structured(kept["first"])), describe(first)
        raise ValueError(f"checkpoint: its hidden layers began with {began}; those of this circuit with {own}")
    circuit.restructure(kept["now"])
    check_state("weight", saved["circuit"], circuit.state_dict())
    circuit.load_state_dict(saved["circuit"])


def check_saved(state: Any) -> None:
    """Raise ValueError if this is not what a ``state_dict`` gives, by names."""
    if not isinstance(state, Mapping):
        raise ValueError(f"state: got a {type(state).__name__}; expected what state_dict gave")


def check_keys(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise ValueError naming the first entry that a saved state lacks or should not have, but for its structure."""
    check_saved(found)
    for name in expected:
        if name not in found and name not in OPTIONAL:
            raise ValueError(f"checkpoint: entry {name!r} is missing; it was saved by another agent")
    for name in found:
        if name not in expected and name not in OPTIONAL:
            raise ValueError(f"checkpoint: entry {name!r} is unknown; it was saved by another agent")


def fitting(task: Task, circuit: Circuit | nn.Module) -> Circuit:
    """The circuit, or a module made a circuit, if it can answer a task.

    Raises:
        ValueError: it cannot; says why.
    """
    if not isinstance(circuit, Circuit):
        return ModuleCircuit(task.input_size, task.output_size, module=circuit)
    if circuit.embedding_size is not None and not task.token_inputs:
        raise ValueError(
            f"embedding_size: got {circuit.embedding_size}; inputs of the env are no tokens, allowed is null"
        )
    for name in ("input_size", "output_size"):
        if getattr(circuit, name) != getattr(task, name):
            raise ValueError(f"{name}: the circuit has {getattr(circuit, name)}, the env {getattr(task, name)}")
    if circuit.batch_first:
        raise ValueError("batch_first: got True; agents train time-major circuits")
    return circuit
