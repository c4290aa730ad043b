"""The contract of a controller."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..component import Chosen, Component
from ..contracts import (
    BATCH,
    check_seen,
    check_trace_fields,
    expect,
    try_extra_state,
    try_initial_state,
    try_run,
    try_steps,
    trying,
)
from ..initialisers import reset
from ..options import Options
from ..registry import contract
from ..state import example
from ..structure import Layer, Structure, Wire, resized_list
from ..trace import TraceField


@contract("controller")
class Controller(Component, nn.Module, ABC):
    """Maps the input and the words read last to the hidden vector that drives the heads, with an explicit state.

    A subclass has an attribute ``hidden_size``, the size of that vector, as an option or set in :meth:`setup`.
    """

    input_size: int = Field(kw_only=False, ge=1, description="channels of the input and of all words read, together")
    clip: float | None = Field(
        default=20.0,
        gt=0,
        exclude=True,
        description="hidden and cell states are kept in [-clip, clip]; None leaves them",
    )

    trace_fields: ClassVar[Mapping[str, TraceField]] = {}
    """What :meth:`observed` shows, in the order in which it is drawn; under other names than the fields of a memory."""
    kind: ClassVar[str] = ""
    """Name by which kernels recognise it; a kind of one's own has no name, and runs eagerly."""
    differentiable: ClassVar[bool] = True
    """Whether the hidden vector has a gradient, without which a circuit can only evolve."""

    @abstractmethod
    def initial_state(self, batch_size: int) -> Any:
        """State before the first step, a NamedTuple of tensors ``[B, …]``."""

    @abstractmethod
    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One step: ``[B, input_size]`` and a state -> hidden ``[B, hidden_size]`` and the next state."""

    def run(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        """A whole sequence, ``[T, B, input_size]`` -> hidden ``[T, B, hidden_size]`` and the last state.

        Here, step by step; a subclass that can do better gives the same.
        """
        hiddens = []
        for x in inputs.unbind(0):
            hidden, state = self(x, state)
            hiddens.append(hidden)
        return torch.stack(hiddens), state

    def reset_parameters(self) -> None:
        """Draw all weights anew, as when it was built; here, those of each layer in the layer's own way.

        Raises:
            TypeError: there are weights that no layer has, which a subclass draws itself.
        """
        reset(self)

    def observed(self, x: Tensor, before: Any, after: Any) -> dict[str, Tensor]:
        """What a :class:`~papertape.core.trace.Trace` shows of one step, ``[B, …]`` for each of :attr:`trace_fields`.

        Here, the parts of that name of the state after it.

        Args:
            x: what :meth:`forward` was given, ``[B, input_size]``.
            before: the state before the step.
            after: the state after it.
        """
        return {name: getattr(after, name) for name in self.trace_fields if hasattr(after, name)}

    def check(self) -> None:
        """See by a trial run that the controller meets its contract; circuits do so for all from outside the package.

        Raises:
            ContractError: it is not; names the class, what was found and what is expected.
        """
        check_trace_fields(type(self), self.trace_fields)
        try_extra_state(self)
        with trying(self, "specification"):
            self.specification()
        where = f"{type(self).__qualname__}.trace_fields"
        expect("reads" not in self.trace_fields, where, "has reads, the name of the words read", "another name")
        state = try_initial_state(self)
        if example(self).is_meta:
            return  # Sizes alone are known there, by which not everyone's step can go.
        size: Any = self.hidden_size
        gives = ("hidden", "the next state")
        _, after = try_steps(self, "forward", state, self.input_size, (size,), gives, self.differentiable)
        try_run(self, Controller, state, self.input_size)
        x = example(self).new_zeros(BATCH, self.input_size)
        with trying(self, "observed"), torch.no_grad():
            seen = self.observed(x, state, after)
        check_seen(self, "observed", seen, self.trace_fields, (BATCH,), ())

    def clipped(self, x: Tensor) -> Tensor:
        """The tensor, kept in [-clip, clip]."""
        return x if self.clip is None else torch.clamp(x, -self.clip, self.clip)


if TYPE_CHECKING:
    AnyController = Any  # what is given may be a name, what is kept is an object
else:
    AnyController = Annotated[str | Mapping[str, Any] | Options | Controller, Chosen("controller")]
    """A controller as an option: its name, its name as ``type`` with its options, or an object."""


class LayeredOptions(Component):
    """Options of every controller with layers of one size, each fed by the one before."""

    hidden_size: int = Field(default=100, ge=1, description="size of each layer and of the controller's output")
    num_layers: int = Field(default=1, ge=1, le=100, description="layers, each fed by the one before")
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the outputs of each layer but the last that is set to 0 in training, as in torch.nn.LSTM",
    )

    @classmethod
    def check_options(cls, options: Any) -> None:
        """See :meth:`Component.check_options`."""
        super().check_options(options)
        if options.dropout and options.num_layers == 1:
            raise ValueError(f"dropout: got {options.dropout}; it is between layers, allowed with num_layers 1: 0")


class LayeredController(LayeredOptions, Controller):
    """A controller with layers of one size, each fed by the one before."""

    changeable: ClassVar[bool] = False
    """Whether its layers can change; it then makes them by :meth:`linear_layers` and calls :meth:`passed_on`."""
    quiet: ClassVar[int] = 0
    """The block of rows of a layer that makes its output zero when it is zero."""
    by_units: ClassVar[bool] = False
    """Whether weights begin by the units of a layer; see :class:`~papertape.core.structure.Wire`."""

    def passed_on(self, made: Tensor, got: Tensor, layer: int) -> Tensor:
        """What a layer gives to the next: what it made, added to what it got where it is residual, after dropout."""
        return self.between_layers(self.clipped(got + made) if layer in self.residual else made, layer)

    def between_layers(self, x: Tensor, layer: int) -> Tensor:
        """Apply ``dropout`` to the output of a layer, except of the last, as torch.nn.LSTM does."""
        if self.dropout and self.training and layer < self.num_layers - 1:
            return functional.dropout(x, self.dropout)
        return x

    def specification(self) -> dict[str, Any]:
        """See :meth:`Component.specification`; dropout is 0 without effect, residual layers are named if any."""
        leaves_out = self.training and self.num_layers > 1
        found = {**super().specification(), "dropout": self.dropout if leaves_out else 0.0}
        residual = getattr(self, "residual", ())
        return {**found, "residual": residual} if residual else found

    def linear_layers(self, gates: int) -> nn.ModuleList:
        """The input Linear of each layer, with ``gates`` outputs for each hidden unit."""
        self.gates = gates
        self.residual: tuple[int, ...] = ()
        """Layers whose output is added to what they get, as a change of structure adds them."""
        self.inputs: Any = nn.ModuleList(
            nn.Linear(self.hidden_size if layer else self.input_size, gates * self.hidden_size)
            for layer in range(self.num_layers)
        )
        linears: nn.ModuleList = self.inputs
        return linears

    def structure(self) -> Structure:
        """The layers, all of one size."""
        return tuple(Layer(self.hidden_size, index in self.residual) for index in range(self.num_layers))

    def wires(self, structure: Structure) -> list[Wire]:
        """Every Linear of the layers, for a structure; see :class:`~papertape.core.structure.Wire`."""
        return [
            Wire(f"inputs.{layer}", "inputs", layer - 1, layer, self.gates, self.quiet, self.by_units)
            for layer in range(len(structure))
        ]

    def resize(self, structure: Structure) -> None:
        """Give every one of :meth:`wires` the size for another structure, and parameters that are yet to be filled."""
        size, linears = structure[0].size, range(len(structure))
        resized_list(self.inputs, [(size if layer else self.input_size, self.gates * size) for layer in linears])
        self.hidden_size, self.num_layers = size, len(structure)
        self.residual = tuple(index for index, layer in enumerate(structure) if layer.residual)
        if isinstance(self.options, Options):
            sizes = {"hidden_size": self.hidden_size, "num_layers": self.num_layers}
            self.options = self.options.model_copy(update=sizes)


class GatedController(LayeredController):
    """A controller of gated layers, with weights that start as in torch.nn."""

    quiet = 2  # the candidate, of LSTM and GRU alike
    by_units = True

    def build(self, gates: int) -> None:
        """Make the input and the recurrent Linear of each layer."""
        self.inputs = self.linear_layers(gates)
        self.recurrents = nn.ModuleList(
            nn.Linear(self.hidden_size, gates * self.hidden_size) for _ in range(self.num_layers)
        )
        self._draw()

    def wires(self, structure: Structure) -> list[Wire]:
        """See :meth:`LayeredController.wires`; each layer also gets what it gave itself."""
        inputs = super().wires(structure)
        return inputs + [
            Wire(f"recurrents.{wire.layer}", "recurrents", index, index, wire.blocks, wire.quiet, wire.by_units)
            for index, wire in enumerate(inputs)
        ]

    def resize(self, structure: Structure) -> None:
        """See :meth:`LayeredController.resize`."""
        size = structure[0].size
        resized_list(self.recurrents, [(size, self.gates * size)] * len(structure))
        super().resize(structure)

    def reset_parameters(self) -> None:
        """Draw all weights and biases anew; the same seed gives the same ones as at construction."""
        reset(self)
        self._draw()

    def _draw(self) -> None:
        """In place of what each layer has drawn for itself."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def zeros(self, batch_size: int) -> Tensor:
        """A state's part before the first step, ``[B, num_layers, hidden_size]``."""
        return example(self).new_zeros(batch_size, self.num_layers, self.hidden_size)
