"""The answers of a whole population, in one batched computation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from ..circuits.module import ModuleCircuit
from ..core.circuit import Circuit
from ..core.component import Component
from ..core.contracts import is_outside
from ..core.members import Call, Stack, call_with, dense, mapping_of
from ..core.placement import random_apart
from ..core.state import example
from ..core.world import Episodes, World, join_episodes
from .genome import Layout

MEBIBYTE = 2**20


class _Step(nn.Module):
    """One step of a circuit, from its initial state where there is none yet."""

    def __init__(self, circuit: Circuit) -> None:
        super().__init__()
        self.circuit = circuit

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return self.circuit.step(x, self.circuit.initial_state(x.shape[0]) if state is None else state)


class Players:
    """Members of a population that act in a world, each with a state of its own for each of its episodes."""

    def __init__(self, step: _Step, stacks: Mapping[str, Stack], episodes: int) -> None:
        """See :meth:`Population.answers`."""
        self._step = step
        self._stacks = stacks
        self._parameters = {f"circuit.{name}": dense(stack) for name, stack in stacks.items()}
        self._episodes = episodes
        self._state: tuple[Any, ...] = ()

    @torch.no_grad()
    def __call__(self, observations: Tensor) -> Tensor:
        """Observations ``[P·E, I]``, member by member, to outputs ``[P·E, O]``."""
        given = observations.to(example(self._step.circuit)).unflatten(0, (-1, self._episodes))
        mapping = mapping_of(self._step.circuit, self._stacks, given[0].unsqueeze(0))
        outputs, after = mapping(self._answer, randomness="different")(self._parameters, given, *self._state)
        self._state = (after,)
        answered: Tensor = outputs.flatten(0, 1)
        return answered

    def _answer(self, member: Mapping[str, Tensor], *arguments: Any) -> Any:
        return call_with(self._step, member, arguments)

    def keep(self, members: Tensor) -> None:
        """Go on with some members alone, by their numbers ``[K]`` among those so far."""
        self._parameters = {name: stack[members] for name, stack in self._parameters.items()}
        self._state = tree_map(lambda leaf: leaf[members], self._state)


class Population:
    """Evaluates P genomes on the same B sequences with stacked parameters: no loop over members, no gradients.

    A circuit answers by its :meth:`~papertape.core.circuit.Circuit.run_population`. Any
    other module is mapped over the members with ``torch.func.vmap``.
    """

    def __init__(self, circuit: Circuit | nn.Module, *, memory_budget: float = 512.0) -> None:
        """
        Args:
            circuit: what each member is, or any module; its own parameters are left alone.
            memory_budget: MiB that the evaluation may take; members beyond it wait for the next chunk.

        Raises:
            ValueError: the circuit has no parameters, or parameters of different types or on different devices.
        """
        if len({(parameter.dtype, parameter.device) for parameter in circuit.parameters()}) > 1:
            raise ValueError("parameters: the circuit's have different types or devices; a genome has one")
        self.circuit = circuit if isinstance(circuit, Circuit) else ModuleCircuit(module=circuit)
        self.layout = Layout.of(self.circuit)
        self._frozen = {
            name: parameter for name, parameter in self.circuit.named_parameters() if name not in self.layout.shapes
        }
        self.dtype = next(circuit.parameters()).dtype
        """What members compute in."""
        self.memory_budget = memory_budget
        self._step = _Step(self.circuit)

    def outputs(self, stacks: Mapping[str, Stack], inputs: Tensor) -> Tensor:
        """Logits of all members at once.

        Args:
            stacks: P members' parameters by name.
            inputs: ``[T, B, I]``, or tokens ``[T, B]``, the same for every member.

        Returns:
            ``[T, P, B, O]``
        """
        members = len(next(iter(stacks.values())))
        with torch.no_grad():
            frozen = {name: parameter.expand(members, *parameter.shape) for name, parameter in self._frozen.items()}
            return self.circuit.run_population({**stacks, **frozen}, self.given(inputs))

    def given(self, inputs: Tensor) -> Tensor:
        """Inputs as all members take them: tokens that each embeds in its own way, or vectors in their type."""
        inputs = self.circuit.shared_inputs(inputs)
        return inputs if inputs.dim() == 2 else inputs.to(self.dtype)

    def evaluate(self, stacks: Mapping[str, Stack], inputs: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
        """Answer and score all members, a chunk that fits the memory budget at a time.

        Args:
            stacks: P members' parameters by name.
            inputs: ``[T, B, I]``, or tokens ``[T, B]``, the same for every member.
            score: maps logits ``[T, members, B, O]`` to ``[members, …]``.

        Returns:
            ``[P, …]``
        """
        members = len(next(iter(stacks.values())))
        chunk = self.chunk_size(inputs)
        scores = []
        for start in range(0, members, chunk):
            part = slice(start, min(start + chunk, members))
            scores.append(score(self.outputs({name: stack[part] for name, stack in stacks.items()}, inputs)))
        return torch.cat(scores)

    def answers(self, stacks: Mapping[str, Stack], episodes: int) -> Players:
        """All members as the ``answer`` of :meth:`World.play`, with their states carried from step to step.

        Args:
            stacks: P members' parameters by name.
            episodes: E, episodes that each member plays.
        """
        return Players(self._step, stacks, episodes)

    def play(
        self,
        stacks: Mapping[str, Stack],
        world: World,
        episodes: int,
        seed: int,
        *,
        seen: Callable[[Tensor], None] | None = None,
    ) -> Episodes:
        """Episodes of all members at once, a chunk that fits the memory budget at a time.

        Args:
            stacks: P members' parameters by name.
            world: where they act.
            episodes: E, the same ones for every member.
            seed: of the episodes.
            seen: see :meth:`World.play`.
        """
        members = len(next(iter(stacks.values())))
        chunk = self.chunk_size(torch.empty(1, episodes, world.input_size, device="cpu"))
        played = []
        for start in range(0, members, chunk):
            part = slice(start, min(start + chunk, members))
            answer = self.answers({name: stack[part] for name, stack in stacks.items()}, episodes)
            generator = torch.Generator(world.device).manual_seed(seed)
            copies = part.stop - part.start
            played.append(world.play(answer, episodes, generator, copies=copies, keep=answer.keep, seen=seen))
        return join_episodes(played, 0)

    def chunk_size(self, inputs: Tensor) -> int:
        """Members that fit the memory budget; even, so that mirrored pairs stay together, and at least 2.

        A member is taken to need its parameters, its outputs, and its state eight times over: the last, the next and
        what lies between.
        """
        length, batch = inputs.shape[:2]
        carried = _elements(self.circuit.initial_state(batch))
        widest = max((shape[0] for shape in self.layout.shapes.values() if shape), default=1)
        outputs = self.circuit.output_size or widest
        # Taken to be answered for all steps at once, as layers without a state are.
        elements = self.layout.size + length * batch * (2 * outputs + 3 * max(widest, outputs)) + 8 * carried
        size = int(self.memory_budget * MEBIBYTE / (elements * self.dtype.itemsize))
        return max(2, size // 2 * 2)


@torch.no_grad()
def refuse_shared_buffers(circuit: Circuit, *, training: bool) -> None:
    """Raise ValueError if a module writes to a buffer what its inputs or its weights decide: members would share it.

    Args:
        circuit: the package's own, of the package's own parts, carry all that in their state.
        training: whether members answer as they do in training.
    """
    own_parts = any(isinstance(part, Component) and is_outside(type(part)) for part in circuit.modules())
    if not (own_parts or isinstance(circuit, ModuleCircuit)):
        return
    own, written = example(circuit), []
    inputs = torch.linspace(0, 1, 6 * circuit.vector_size, dtype=own.dtype, device=own.device).view(2, 3, -1)
    circuit = copy.deepcopy(circuit).train(training)
    with random_apart(own.device):
        circuit._answers(inputs)  # makes buffers that are not there before the first answer
    for change in (0.0, 0.01):
        call = Call(circuit, partial(type(circuit)._answers, inputs=inputs + change))
        parts = {name: part + change * part.requires_grad for name, part in call.named_parameters()}
        parts |= {name: buffer.clone() for name, buffer in call.named_buffers()}
        with random_apart(own.device):
            functional_call(call, parts, (), tie_weights=False)  # puts into parts what is written
        written.append(parts)
    for name, _ in circuit.named_buffers():
        one, other = (parts[f"circuit.{name}"] for parts in written)
        if not ((one == other) | one.isnan()).all():
            owner = type(circuit.get_submodule(name.rpartition(".")[0])).__name__
            raise ValueError(
                f"circuit: {owner} writes what it is given to its buffer {name}, which all members of a population "
                "would share; allowed are modules that keep it in a state, which goes in and out"
            )


def _elements(state: Any) -> int:
    """Elements of all tensors of a state."""
    return state.numel() if isinstance(state, Tensor) else sum(_elements(part) for part in state)
