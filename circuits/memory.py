"""A controller and an accessor wired into one recurrent module."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.accessors import Accessor, AnyAccessor
from ..core.clipping import clipped
from ..core.component import build, options_of, validated
from ..core.contracts import check_read_shape, check_whole, is_outside, trying
from ..core.controllers import AnyController
from ..core.controllers.base import Controller, LayeredController
from ..core.kernels import dispatch, recompute
from ..core.kernels.formulas import stepwise, unchanged
from ..core.kernels.transforms import one_call
from ..core.lengths import picked
from ..core.members import Stack
from ..core.options import AnySize, Options, check_sizes, check_taken
from ..core.placement import lower_type
from ..core.registry import lookup, register
from ..core.state import CircuitState, example, in_types_of, map_state
from ..core.structure import Change, Structure, Wire, follow_layers, resized, unlike_linear
from ..core.tied_bits import TiedBitsLinear
from ..core.tied_embedding import TiedEmbedding
from ..core.trace import TraceField


@register("circuit", "memory")
class MemoryCircuit(TiedEmbedding):
    """Any controller with any memory: controller(x_t, r_{t-1}) -> h_t; heads(h_t) write, then read r_t; y_t(h_t, r_t).

    Without ``read_feedback`` the controller sees x_t alone. Then it runs over the whole sequence first, and the memory
    after it: a memory that has a parallel form for that uses it (:meth:`Accessor.run`).

    Under ``torch.autocast`` the matrix products of the controller and of the output layer take the lower precision.
    The interface vector, addressing, the memory and every state stay in the circuit's own type, and so do the outputs:
    weightings that are carried over many steps would not survive 8 bits.
    """

    backends = dispatch.BACKENDS

    controller: AnyController = Field(default="lstm", description="what sees the input and drives the heads")
    accessor: AnyAccessor = Field(default="static", description="the memory and its heads")
    read_feedback: bool = Field(default=True, description="the controller sees the words that were read last")
    hidden_size: AnySize = Field(
        default=None,
        ge=1,
        exclude=True,
        description="of the controller, where that is given by its name; None: its default",
    )
    num_layers: int | None = Field(default=None, ge=1, exclude=True, description="of the controller, likewise")
    dropout: float | None = Field(default=None, ge=0, lt=1, exclude=True, description="of the controller, likewise")
    clip: float | None = Field(
        default=20.0,
        gt=0,
        description="hidden state, cell state and outputs are kept in [-clip, clip]; null leaves them",
    )
    recompute_every: int | None = Field(
        default=None,
        ge=1,
        description="steps of time per chunk: training keeps the state between chunks and runs each again in the "
        "backward pass, for less memory; null keeps every step",
    )

    def setup(self) -> None:
        """Build the controller, the accessor and the output layer."""
        memory = self._chosen_accessor()
        kind: Any = type(memory).component if isinstance(memory, Options) else type(memory)
        with trying(kind, "read_shape"):
            reads, word = check_read_shape(kind, kind.read_shape(memory))
        self.read_shape = (reads, word)
        """R words of W elements are read at each step."""
        wanted = self.vector_size + (reads * word if self.read_feedback else 0)
        self.controller = build(self._chosen_controller(), wanted, clip=self.clip)
        own_clip = getattr(self.controller, "clip", self.clip)
        if own_clip != self.clip and "clip" in self.options.model_fields_set:
            name = type(self.controller).__name__
            raise ValueError(f"clip: got {self.clip}; the {name} that is given says {own_clip}")
        if self.controller.input_size != wanted:
            words = f" and {reads} words of {word} elements" if self.read_feedback else ""
            raise ValueError(
                f"controller: its input_size is {self.controller.input_size}; expected {wanted}, the circuit's "
                f"{'embedding_size' if self.embedding_size else 'input_size'}{words}"
            )
        if isinstance(self.controller.options, Options):
            self.options = self.options.model_copy(update={"controller": self.controller.options})
        check_whole(type(self.controller), "hidden_size", getattr(self.controller, "hidden_size", None))
        self.accessor = build(memory, self.controller.hidden_size)
        if self.accessor.hidden_size != self.controller.hidden_size:
            raise ValueError(
                f"accessor: its hidden_size is {self.accessor.hidden_size}; expected {self.controller.hidden_size}, "
                "the controller's"
            )
        for part in (self.controller, self.accessor):
            if is_outside(type(part)):
                part.check()
        self.hidden_size = self.controller.hidden_size
        self.output: nn.Linear | TiedBitsLinear = self.output_layer(self.hidden_size + reads * word)
        self.differentiable = self.accessor.differentiable and self.controller.differentiable
        shared = sorted(self.accessor.trace_fields.keys() & self.controller.trace_fields.keys())
        if shared:
            raise ValueError(
                f"controller: its trace shows {', '.join(shared)}, as that of the accessor does; expected other names"
            )
        self.trace_fields = {  # type: ignore[misc]  # what its parts show, others with each class of circuits
            "reads": TraceField("R W", "words", "words read"),
            **self.accessor.trace_fields,
            **self.controller.trace_fields,
        }
        self.chosen_backend: str | None = None
        self._unnamed = self._unnamed_reader()

    def _unnamed_reader(self) -> str | None:
        """A Linear of the accessor that may get the controller's output, where the accessor does not say which do."""
        if type(self.accessor).readers is not Accessor.readers:
            return None
        for name, part in self.accessor.named_modules():
            if name not in Accessor.readers and isinstance(part, nn.Linear) and part.in_features == self.hidden_size:
                return name
        return None

    def fixed(self) -> str | None:
        """See :meth:`Circuit.fixed`; a controller in layers and a plain interface can change."""
        if not (isinstance(self.controller, LayeredController) and self.controller.changeable):
            return f"a {type(self.controller).__name__} has no layers that can change"
        if self._unnamed:
            return f"the {self._unnamed} of a {type(self.accessor).__name__} may get its output; its readers do not say"
        named = dict(self.accessor.named_modules())
        missing = [name for name in self.accessor.readers if name not in named]
        if missing:
            return f"a {type(self.accessor).__name__} has no {missing[0]} that can change"
        layers = [
            self.controller.get_submodule(wire.name) for wire in self.controller.wires(self.controller.structure())
        ]
        own = {id(parameter) for layer in layers for parameter in layer.parameters()}
        if own != {id(parameter) for parameter in self.controller.parameters()}:
            return f"a {type(self.controller).__name__} has weights beside its layers"
        return unlike_linear([*layers, *map(named.__getitem__, self.accessor.readers), self.output])

    def structure(self) -> Structure:
        """See :meth:`Circuit.structure`: the layers of the controller."""
        return () if self.fixed() else self.controller.structure()

    def wires(self, structure: Structure) -> list[Wire]:
        """See :meth:`Circuit.wires`; the accessor's readers and the output layer read the last layer."""
        last = len(structure) - 1
        own = [wire._replace(name=f"controller.{wire.name}") for wire in self.controller.wires(structure)]
        accessor = [Wire(f"accessor.{name}", name, last) for name in self.accessor.readers]
        return [*own, *accessor, Wire("output", "output", last)]

    def resize(self, structure: Structure) -> None:
        """See :meth:`Circuit.resize`."""
        self.controller.resize(structure)
        self.hidden_size = self.accessor.hidden_size = self.controller.hidden_size
        for name in self.accessor.readers:
            reader: Any = self.accessor.get_submodule(name)
            resized(reader, self.hidden_size, reader.out_features)
        reads, word = self.read_shape
        resized(self.output, self.hidden_size + reads * word, self.output.out_features)  # type: ignore[arg-type]
        if isinstance(self.controller.options, Options):
            self.options = self.options.model_copy(update={"controller": self.controller.options})

    def follow(self, change: Change, state: Any) -> CircuitState:
        """See :meth:`Circuit.follow`; memory and reads are as they were."""
        return state._replace(controller=map_state(lambda leaf: follow_layers(change, leaf), state.controller))

    def _chosen_accessor(self) -> Any:
        """Options or object of the accessor; a circuit with a memory of its own has that one's options itself."""
        if not isinstance(self.accessor, str):
            return self.accessor
        model = options_of(lookup("accessor", self.accessor))
        return validated(model, {name: getattr(self, name) for name in model.model_fields if name != "type"})

    def _chosen_controller(self) -> Any:
        """Options or object of the controller, with the sizes that were given beside its name.

        Raises:
            ValueError: a size is given beside a controller that has its own, or no such size.
        """
        chosen: Any = self.controller
        given = {
            name: value
            for name in ("hidden_size", "num_layers", "dropout")
            if (value := getattr(self, name)) is not None
        }
        if not given:
            return chosen
        for name, value in given.items():
            if not isinstance(chosen, Options):
                raise ValueError(f"{name}: got {value}; the {type(chosen).__name__} that is given has its own")
            if name not in type(chosen).model_fields:
                raise ValueError(f"{name}: got {value}; a {chosen.type} controller has none")  # type: ignore[attr-defined]
            if "controller" in self.options.model_fields_set and name in chosen.model_fields_set:
                raise ValueError(f"{name}: got {value}; the controller that is given says {getattr(chosen, name)}")
        return validated(type(chosen), {**dict(chosen), **given})

    def extra_repr(self) -> str:
        """Sizes and what runs the circuit."""
        return f"{super().extra_repr()}, clip={self.clip}, backend={self.backend!r}"

    def initial_state(self, batch_size: int, **sizes: int) -> CircuitState:
        """State before the first step; the initial reads are zero.

        Args:
            batch_size: B.
            sizes: of the memory, where they are to differ from those at construction, such as ``memory_size``.

        Raises:
            ValueError: a size below 1 or that the memory does not have, or another number of slots than initial
                contents were made for.
        """
        check_sizes(batch_size=batch_size, **sizes)
        check_taken(self.accessor.initial_state, sizes)
        return CircuitState(
            self.controller.initial_state(batch_size),
            self.accessor.initial_state(batch_size, **sizes),
            example(self.output).new_zeros(batch_size, *self.read_shape),
        )

    def ended(self, inputs: Tensor) -> Tensor | None:
        """Which steps are beyond the input, for a memory that asks (:meth:`SoftTapeAccessor.end_input`); here, None.

        Args:
            inputs: of one step or of many, ``[…, B, I]``.

        Returns:
            ``[…, B]``, or None: the memory is told nothing.
        """
        return None

    def transition(self, x: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState, Any]:
        """One step without the output layer.

        Args:
            x: ``[B, I]``.
            state: from :meth:`initial_state` or the last step.

        Returns:
            Features ``[B, F]`` (hidden vector and words read), the next state, and the head parameters.
        """
        with contextlib.nullcontext() if self.differentiable else torch.no_grad():
            seen = torch.cat([x, state.reads.flatten(1)], dim=-1) if self.read_feedback else x
            hidden, controller_state = self.controller(seen, state.controller)
            controller_state = in_types_of(controller_state, state.controller, x.device)
            memory, ended = state.accessor, self.ended(x)
            if ended is not None:
                memory = self.accessor.end_input(memory, ended)
            hidden, (reads, accessor_state, heads) = precisely(self.accessor, hidden, memory, state.reads.dtype)
        features = torch.cat([hidden, reads.flatten(1)], dim=-1)
        return features, CircuitState(controller_state, accessor_state, reads), heads

    def transitions(self, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
        """Many steps without the output layer: all at once where no read is fed back, and no hook waits for steps.

        Args:
            inputs: ``[T, B, I]``.
            state: where to start; what its accessor has begun may be changed in place.

        Returns:
            Features ``[T, B, F]`` and the last state.
        """
        told = self.ended(inputs[:1]) is not None
        watched = self.changed_transition or stepwise(self.controller, Controller) or stepwise(self.accessor, Accessor)
        if self.read_feedback or told or watched:
            features = []
            for x in inputs.unbind(0):
                feature, state, _ = self.transition(x, state)
                features.append(feature)
            return torch.stack(features), state
        with contextlib.nullcontext() if self.differentiable else torch.no_grad():
            hidden, controller_state = self.controller.run(inputs, state.controller)
            controller_state = in_types_of(controller_state, state.controller, inputs.device)
            hidden, (reads, accessor_state) = precisely(self.accessor.run, hidden, state.accessor, state.reads.dtype)
        last = reads[-1].clone()  # a view would keep those of all steps, and torch.save write them
        return torch.cat([hidden, reads.flatten(2)], dim=-1), CircuitState(controller_state, accessor_state, last)

    @property
    def changed_transition(self) -> bool:
        """Whether a subclass or a user replaced :meth:`transition`, so that no kernel knows what a step is."""
        return type(self).transition is not _TRANSITION or "transition" in vars(self)

    @property
    def plain_answer(self) -> bool:
        """Whether :meth:`answer` is the output layer, clipped, and nothing else."""
        kind, own = type(self), vars(self)
        replaced = kind.answer is not _ANSWER or kind.compared is not TiedEmbedding.compared or clipped is not _CLIPPED
        return not (self.tied_embedding or replaced or "answer" in own or "compared" in own)

    def answer(self, features: Tensor) -> Tensor:
        """Logits from features, ``[…, F]`` -> ``[…, O]``."""
        with contextlib.nullcontext() if self.differentiable else torch.no_grad():
            outputs = self.compared(self.output(features)).to(features.dtype)
            return clipped(outputs, self.clip)

    def initial_state_like(self, state: Any) -> CircuitState:
        """An initial state of one sequence, with a memory as large as this one's."""
        try:
            sizes = self.accessor.sizes_of(state.accessor)
        except (AttributeError, IndexError):
            sizes = {}  # It is none of this circuit, which the comparison will say.
        return self.initial_state(1, **sizes)

    def step(self, x: Tensor, state: CircuitState | None = None) -> tuple[Tensor, CircuitState]:
        """One step, natively where no gradient is due; see :meth:`Circuit.step`."""
        made = None if state is None or self.autocast is not None else dispatch.step(self, x, state, checked=False)
        if made is None:
            x = self.check_inputs(x, "[B, {}]")
            state = self.check_state(state, x)
            with self.precision(x):
                made = dispatch.step(self, x, state, checked=True) or (*self.transition(x, state)[:2], None)
                return self._answered(*made)
        return self._answered(*made)

    def _answered(self, features: Tensor, state: CircuitState, outputs: Tensor | None) -> tuple[Tensor, CircuitState]:
        return self.answer(features) if outputs is None else outputs, state

    def run(self, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
        """A whole sequence through the chosen backend; see :meth:`Circuit.run`."""
        features, state = self._features(inputs, state)
        return self.answer(features), state

    def run_at(self, inputs: Tensor, state: CircuitState, at: Tensor) -> tuple[Tensor, CircuitState]:
        """See :meth:`Circuit.run_at`: the output layer sees these steps alone."""
        features, state = self._features(inputs, state)
        return self.answer(picked(features, at)), state

    def _features(self, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
        if self.recompute_every is None:
            return one_call(self.backend, dispatch.run, self, inputs, state)
        return one_call(self.backend, recompute.run, self, inputs, state, self.recompute_every)

    def _run(self, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
        features, state = self.transitions(inputs, state)
        return self.answer(features), state

    def run_population(self, parameters: Mapping[str, Stack], inputs: Tensor) -> Tensor:
        """The answers of many members at once, through the chosen backend; see :meth:`Circuit.run_population`."""
        if not self.plain_answer or not unchanged(self, MemoryCircuit, "run", "_run"):
            return super().run_population(parameters, inputs)
        return dispatch.run_population(self, parameters, self.shared_inputs(inputs))

    def run_traced(self, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState, dict[str, Tensor]]:
        """Like :meth:`run`, step by step, and records what the heads and the controller did."""
        features, state, recorded = self._run_traced(inputs, state)
        return self.answer(features), state, recorded

    def _run_traced(self, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState, dict[str, Tensor]]:
        features, steps = [], []
        for x in inputs.unbind(0):
            before = state
            feature, state, heads = self.transition(x, before)
            features.append(feature)
            seen = {**self.accessor.observed(heads, state.accessor), "reads": state.reads}
            if self.controller.trace_fields:
                fed = torch.cat([x, before.reads.flatten(1)], dim=-1) if self.read_feedback else x
                seen |= self.controller.observed(fed, before.controller, state.controller)
            steps.append(seen)
        recorded = {name: torch.stack([step[name] for step in steps]) for name in self.trace_fields if name in steps[0]}
        return torch.stack(features), state, recorded


def precisely(access: Any, hidden: Tensor, state: Any, dtype: torch.dtype) -> tuple[Tensor, Any]:
    """The hidden vectors in a type, and what an accessor gives for them and a state, without autocast."""
    if lower_type(hidden.device) is None:
        return hidden, access(hidden, state)
    hidden = hidden.to(dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        return hidden, access(hidden, state)


_TRANSITION, _ANSWER, _CLIPPED = MemoryCircuit.transition, MemoryCircuit.answer, clipped
"""As it was written, whatever is put in its place."""
