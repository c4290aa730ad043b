"""Evolvable Neural Turing Machine (Greve, Jacobsen & Risi 2016): a controller and a tape with one hard head."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import vmap

from ..core.accessors.tape import OpenTape, TapeOptions, TapeState
from ..core.controllers import AnyController
from ..core.kernels.formulas import hooked, plain, unchanged
from ..core.members import Stack, call_with, dense, linear, map_controller_state
from ..core.registry import register
from ..core.tied_bits import TiedBitsLinear
from .memory import MemoryCircuit


@register("circuit", "tape")
class Tape(TapeOptions, MemoryCircuit):
    """Evolvable Neural Turing Machine: one head writes, jumps to a similar word, moves by a cell, and reads.

    It has no gradient, for the head's choices have none: it is evolved, and agents that descend a gradient refuse it.
    """

    controller: AnyController = "direct"
    accessor: Any = Field(default="tape", init=False)
    recompute_every: int | None = Field(default=None, init=False)
    tied_embedding: bool = Field(default=False, init=False)
    tied_bits: bool = Field(
        default=False,
        description="with a direct controller: the O outputs and the first O elements of input, of the word to write "
        "and of the word read are the bits of a word, which share their weights: few, and as many for any O > 1",
    )

    @classmethod
    def check_options(cls, options: Any) -> None:
        """See :meth:`Component.check_options`."""
        super().check_options(options)
        kind = getattr(options.controller, "type", type(options.controller).__name__)
        if options.tied_bits and kind not in ("direct", "DirectController"):
            raise ValueError(f"tied_bits: got True; allowed with a {kind} controller: False")

    def setup(self) -> None:
        """Build the circuit, with layers that tie bits where asked for."""
        super().setup()
        if not self.tied_bits:
            return
        taken = "embedding_size" if self.embedding_size else "input_size"
        for name, size in ((taken, self.vector_size), ("word_size", self.word_size)):
            if size < self.output_size:
                raise ValueError(
                    f"{name}: got {size}; allowed with tied_bits is at least output_size ({self.output_size})"
                )
        word = [self.output_size] + [1] * (self.word_size - self.output_size)
        hidden = [self.output_size] + [1] * (self.vector_size - self.output_size)
        hidden += word if self.read_feedback else []
        interface = self.accessor.interface
        interface.linear = TiedBitsLinear(hidden, word + [1] * (interface.size - self.word_size))
        self.output = TiedBitsLinear(hidden + word, [self.output_size])

    @torch.no_grad()
    def run_population(self, parameters: Mapping[str, Stack], inputs: Tensor) -> Tensor:
        """The answers of many members at once; see :meth:`Circuit.run_population`.

        Controllers are mapped over the members. The tapes of all members and sequences are one batch,
        changed in place, and only as long as the sequences can use.
        """
        layers = (self.accessor.interface.linear, self.output)
        written = plain(layers, nn.Linear, TiedBitsLinear) and all(layer.bias is not None for layer in layers)
        written &= unchanged(self, Tape, "run", "_run", "transition", "answer", "compared")
        watched = hooked(self.accessor) or hooked(self.accessor.interface)
        if self.backend not in ("auto", "eager") or self.embedding is not None or watched or not written:
            return super().run_population(parameters, inputs)
        inputs = self.shared_inputs(inputs)
        stacks = {name: dense(stack) for name, stack in parameters.items()}
        members, (steps, batch, _) = len(next(iter(stacks.values()))), inputs.shape
        prefix = "controller."
        own = {name.removeprefix(prefix): stack for name, stack in stacks.items() if name.startswith(prefix)}
        control = vmap(partial(call_with, self.controller))
        interface = _stacked(self.accessor.interface.linear, stacks, "accessor.interface.linear")
        controller = map_controller_state(self, stacks, batch)
        tape: TapeState = OpenTape(
            *self.accessor.initial_state(members * batch, min(self.accessor.memory_size, 2 * steps + 1))
        )
        reads = inputs.new_zeros(members, batch, self.accessor.word_size)
        features = []
        for x in inputs.unbind(0):
            seen = x.expand(members, -1, -1)
            seen = torch.cat([seen, reads], dim=-1) if self.read_feedback else seen
            hidden, controller = control(own, (seen, controller))
            vector = linear(hidden, *interface).flatten(0, 1)
            words, tape = self.accessor.access(self.accessor.heads(vector), tape)
            reads = words.view_as(reads)
            features.append(torch.cat([hidden, reads], dim=-1))
        answers = linear(torch.stack(features, 1).flatten(1, 2), *_stacked(self.output, stacks, "output"))
        outputs = answers.unflatten(1, (steps, batch)).transpose(0, 1)
        return outputs if self.clip is None else outputs.clamp(-self.clip, self.clip)


def _stacked(layer: nn.Linear | TiedBitsLinear, stacks: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """The weights ``[P, O, I]`` and biases ``[P, O]`` that all members have in a layer of that name."""
    weight, bias = stacks[f"{name}.weight"], stacks[f"{name}.bias"]
    return layer.whole(weight, bias) if isinstance(layer, TiedBitsLinear) else (weight, bias)
