"""Evolvable Neural Turing Machine (Greve, Jacobsen & Risi 2016): a controller and a tape with one hard head."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ..core.accessors import OpenTape, TapeAccessor, TapeState
from ..core.circuit import CircuitState, map_state
from ..core.controllers import AnyControllerOptions, Controller, ControllerOptions, DirectController, DirectOptions
from ..core.options import Options
from ..core.stacked import Stack, dense, linear
from ..core.tied import TiedLinear
from .memory_augmented import MemoryAugmentedCircuit, build_controller


class TapeOptions(Options):
    """Options of :class:`Tape`."""

    type: Literal["tape"] = "tape"
    controller: AnyControllerOptions = DirectOptions()
    memory_size: int = Field(128, ge=1)
    """N, number of cells; another number may be chosen for a test."""
    word_size: int = Field(20, ge=1)
    """W, length of a cell."""
    tied: bool = False
    """All bits of a word are treated alike, whatever their number; see :class:`Tape`. With the direct controller."""
    clip: float | None = Field(20.0, gt=0)
    """Hidden state, cell state and outputs are kept in [-clip, clip]; null leaves them."""

    @model_validator(mode="after")
    def _check(self) -> TapeOptions:
        if self.tied and self.controller.type != "direct":
            raise ValueError(f"tied: got true; allowed with controller.type {self.controller.type!r}: false")
        return self


class Tape(MemoryAugmentedCircuit):
    """Evolvable Neural Turing Machine: one head writes, jumps to a similar word, moves by a cell, and reads.

    It has no gradient, for the head's choices have none: it is evolved, and agents that descend a gradient refuse it.
    """

    Options = TapeOptions
    differentiable = False
    accessor: TapeAccessor

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        controller: str | ControllerOptions | Controller = "direct",
        hidden_size: int = 100,
        num_layers: int = 1,
        memory_size: int = 128,
        word_size: int = 20,
        tied: bool = False,
        clip: float | None = 20.0,
        batch_first: bool = False,
        backend: str = "auto",
    ) -> None:
        """
        Args:
            input_size: I, channels of each input step.
            output_size: O, channels of each output step.
            controller: ``direct``, ``feedforward``, ``lstm``, ``gru``, or a controller that takes
                ``input_size + word_size`` channels (then ``hidden_size`` and ``num_layers`` are its own).
            hidden_size: size of the controller's layers, where it has any.
            num_layers: number of the controller's layers, where it has any.
            memory_size: N, number of cells.
            word_size: W, length of a cell.
            tied: with a direct controller, the O outputs and the first O elements of input, of the word to write and of
                the word read are the bits of a word, and layers treat them alike
                (:class:`~papertape.core.tied.TiedLinear`): few weights, and as many for any O above 1.
            clip: hidden state, cell state and outputs are kept in [-clip, clip]; None leaves them.
            batch_first: sequences are ``[B, T, …]`` rather than ``[T, B, …]``.
            backend: what runs sequences; ``auto`` takes the fastest that can.

        Raises:
            ValueError: an argument that is not allowed; names it, what was given and what is allowed.
        """
        built = build_controller(controller, input_size, 1, word_size, hidden_size, num_layers, clip)
        accessor = TapeAccessor(built.hidden_size, memory_size, word_size)
        super().__init__(input_size, output_size, built, accessor, clip=clip, batch_first=batch_first, backend=backend)
        if tied:
            if not isinstance(built, DirectController):
                raise ValueError(f"tied: got True; allowed with a {type(built).__name__}: False")
            for name, size in (("input_size", input_size), ("word_size", word_size)):
                if size < output_size:
                    raise ValueError(f"{name}: got {size}; allowed with tied is at least output_size ({output_size})")
            word = [output_size] + [1] * (word_size - output_size)
            hidden = [output_size] + [1] * (input_size - output_size) + word
            accessor.interface.linear = TiedLinear(hidden, word + [1] * (accessor.interface.size - word_size))
            self.output = TiedLinear(hidden + word, [output_size])

    @torch.no_grad()
    def transition(self, x: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState, Any]:
        """One step without the output layer; see :meth:`MemoryAugmentedCircuit.transition`."""
        return super().transition(x, state)

    @torch.no_grad()
    def answer(self, features: Tensor) -> Tensor:
        """Logits from features; see :meth:`MemoryAugmentedCircuit.answer`."""
        return super().answer(features)

    @torch.no_grad()
    def run_population(self, parameters: Mapping[str, Stack], inputs: Tensor) -> Tensor:
        """The answers of many members at once; see :meth:`MemoryAugmentedCircuit.run_population`.

        Controllers are mapped over the members. The tapes of all members and sequences are one batch,
        changed in place, and no longer than the sequences can tell.
        """
        if self.backend not in ("auto", "eager"):
            return super().run_population(parameters, inputs)
        stacks = {name: dense(stack) for name, stack in parameters.items()}
        members, (steps, batch, _) = len(next(iter(stacks.values()))), inputs.shape
        prefix = "controller."
        own = {name.removeprefix(prefix): stack for name, stack in stacks.items() if name.startswith(prefix)}
        control = vmap(partial(functional_call, self.controller))
        interface = _stacked(self.accessor.interface.linear, stacks, "accessor.interface.linear")
        controller = map_state(lambda leaf: leaf.expand(members, *leaf.shape), self.controller.initial_state(batch))
        tape: TapeState = OpenTape(
            *self.accessor.initial_state(members * batch, min(self.accessor.memory_size, 2 * steps + 1))
        )
        reads = inputs.new_zeros(members, batch, self.accessor.word_size)
        features = []
        for x in inputs.unbind(0):
            hidden, controller = control(own, (torch.cat([x.expand(members, -1, -1), reads], dim=-1), controller))
            vector = linear(hidden, *interface).flatten(0, 1)
            words, tape = self.accessor.access(self.accessor.interface.heads(vector), tape)
            reads = words.view_as(reads)
            features.append(torch.cat([hidden, reads], dim=-1))
        answers = linear(torch.stack(features, 1).flatten(1, 2), *_stacked(self.output, stacks, "output"))
        outputs = answers.unflatten(1, (steps, batch)).transpose(0, 1)
        return outputs if self.clip is None else outputs.clamp(-self.clip, self.clip)


def _stacked(layer: nn.Linear | TiedLinear, stacks: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """The weights ``[P, O, I]`` and biases ``[P, O]`` that all members have in a layer of that name."""
    weight, bias = stacks[f"{name}.weight"], stacks[f"{name}.bias"]
    return layer.whole(weight, bias) if isinstance(layer, TiedLinear) else (weight, bias)
