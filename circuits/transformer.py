"""The Transformer (Vaswani et al. 2017, arXiv 1706.03762), decoder only, whose attention may be any memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..core.accessors import Accessor, AnyAccessor
from ..core.component import build
from ..core.contracts import check_read_shape, check_whole, is_outside, trying
from ..core.controllers import AnyController
from ..core.controllers.base import Controller
from ..core.kernels.formulas import stepwise
from ..core.lengths import picked
from ..core.options import Options, check_sizes, check_taken
from ..core.registry import register
from ..core.state import map_state, register_state
from ..core.tied_embedding import TiedEmbedding
from ..core.trace import TraceField
from .memory import precisely


@register_state
class TransformerState(NamedTuple):
    """What the layers carry, each leaf with the layers as its second dimension."""

    controllers: Any
    """States of the controllers, leaves ``[B, L, …]``"""
    accessors: Any
    """States of the accessors, leaves ``[B, L, …]``"""


class Block(nn.Module):
    """One layer: x + Linear(memory(controller(norm(x)))), then x + MLP(norm(x))."""

    def __init__(self, size: int, controller: Any, accessor: Any, reads: int, widening: int, dropout: float) -> None:
        """
        Args:
            size: D, of what goes in and comes out.
            controller: of D inputs.
            accessor: fed by the controller.
            reads: elements of all words that a step reads.
            widening: size of the MLP's hidden layer, in D; 0 leaves the MLP out.
            dropout: share of both additions to x that is set to 0 in training.
        """
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.controller, self.accessor = controller, accessor
        self.mixed = nn.Linear(reads, size)
        self.dropout = dropout
        self.inner: nn.ModuleList = nn.ModuleList()
        if widening:
            self.inner += [nn.LayerNorm(size), nn.Linear(size, widening * size), nn.Linear(widening * size, size)]

    def forward(self, x: Tensor, state: TransformerState, whole: bool) -> tuple[Tensor, TransformerState, Tensor, Any]:
        """One step ``[B, D]``, or ``whole`` sequences ``[T, B, D]``.

        Returns:
            What comes out, as large as x; the next state of this layer; the words read; and the heads of a step.
        """
        control, access = (self.controller.run, self.accessor.run) if whole else (self.controller, self.accessor)
        hidden, controllers = control(self.norm(x).to(x.dtype), state.controllers)
        _, (reads, accessors, *heads) = precisely(access, hidden, state.accessors, x.dtype)
        x = x + self._thinned(self.mixed(reads.flatten(-2)))
        if len(self.inner):
            norm, wide, narrow = self.inner
            x = x + self._thinned(narrow(functional.gelu(wide(norm(x)))))
        return x, TransformerState(controllers, accessors), reads, heads

    def _thinned(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training) if self.dropout else x


@register("circuit", "transformer")
class Transformer(TiedEmbedding):
    """Layers that each add to x what their memory reads, and what an MLP makes of x; norms come first (GPT-2).

    The memory is attention with rotary positions over the last steps by default. With ``accessor: delta`` and
    ``controller: convolution`` it is DeltaNet; any other memory goes as well. No read feeds back, so that whole
    sequences run layer by layer. Under ``torch.autocast`` all matrix products but those of the memories take the lower
    precision.
    """

    model_size: int = Field(default=64, ge=2, description="D, channels between the layers; a norm of one hides it")
    num_layers: int = Field(default=2, ge=1, le=100, description="L, layers")
    accessor: AnyAccessor = Field(default="attention", description="the memory of each layer")
    controller: AnyController = Field(
        default="direct", description="of each layer, between the norm and the memory; direct hands on what it gets"
    )
    widening: int = Field(default=4, ge=0, description="size of each MLP's hidden layer, in D; 0 leaves the MLPs out")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share of what is added to x that is left out in training"
    )

    def setup(self) -> None:
        """Build the layers."""
        memory: Any = self.accessor
        kind: Any = type(memory).component if isinstance(memory, Options) else type(memory)
        with trying(kind, "read_shape"):
            self.read_shape = check_read_shape(kind, kind.read_shape(memory))
        """R words of W elements are read at each step in each layer."""
        for name, part in (("controller", self.controller), ("accessor", memory)):
            if not isinstance(part, Options) and self.num_layers > 1:
                raise ValueError(
                    f"{name}: got a {type(part).__name__}; allowed with {self.num_layers} layers: a name or a block"
                )
        self.input = nn.Linear(self.vector_size, self.model_size)
        self.layers = nn.ModuleList(self._layer() for _ in range(self.num_layers))
        self.norm = nn.LayerNorm(self.model_size)
        self.output = self.output_layer(self.model_size)
        first: Any = self.layers[0]
        del self.accessor, self.controller
        self.differentiable = first.accessor.differentiable and first.controller.differentiable
        fields = {"reads": TraceField("R W", "words", "words read"), **first.accessor.trace_fields}
        self.trace_fields = {name: field._replace(axes=f"L {field.axes}") for name, field in fields.items()}  # type: ignore[misc]

    def _layer(self) -> Block:
        controller: Any = build(self.controller, self.model_size)
        check_whole(type(controller), "hidden_size", getattr(controller, "hidden_size", None))
        accessor: Any = build(self.accessor, controller.hidden_size)
        for part in (controller, accessor):
            if is_outside(type(part)):
                part.check()
        reads, word = self.read_shape
        return Block(self.model_size, controller, accessor, reads * word, self.widening, self.dropout)

    def initial_state(self, batch_size: int, **sizes: int) -> TransformerState:
        """State before the first step.

        Args:
            batch_size: B.
            sizes: of each memory, where they are to differ from those at construction, such as ``memory_size``.

        Raises:
            ValueError: a size below 1, or that the memories do not have.
        """
        check_sizes(batch_size=batch_size, **sizes)
        layers: Any = self.layers
        check_taken(layers[0].accessor.initial_state, sizes)
        return _together(
            [
                TransformerState(
                    layer.controller.initial_state(batch_size), layer.accessor.initial_state(batch_size, **sizes)
                )
                for layer in layers
            ]
        )

    def initial_state_like(self, state: Any) -> TransformerState:
        """An initial state of one sequence, with memories as large as this one's."""
        accessor: Any = self.layers[0].accessor
        try:
            sizes = accessor.sizes_of(map_state(lambda leaf: leaf[:, 0], state.accessors))
        except (AttributeError, IndexError, TypeError):
            sizes = {}  # It is none of this circuit, which the comparison will say.
        return self.initial_state(1, **sizes)

    def step(self, x: Tensor, state: TransformerState | None = None) -> tuple[Tensor, TransformerState]:
        """One step; see :meth:`Circuit.step`."""
        x = self.check_inputs(x, "[B, {}]")
        state = self.check_state(state, x)
        with self.precision(x):
            features, state, _ = self._through(x, state, whole=False)
            return self._answer(features).to(x.dtype), state

    @property
    def _watched(self) -> bool:
        """Whether a hook waits for the steps of a controller or an accessor."""
        layers: Any = self.layers
        return any(stepwise(layer.controller, Controller) or stepwise(layer.accessor, Accessor) for layer in layers)

    def _run(self, inputs: Tensor, state: TransformerState) -> tuple[Tensor, TransformerState]:
        if self._watched:
            return super()._run(inputs, state)
        features, state, _ = self._through(inputs, state, whole=True)
        return self._answer(features), state

    def run_at(self, inputs: Tensor, state: TransformerState, at: Tensor) -> tuple[Tensor, TransformerState]:
        """See :meth:`Circuit.run_at`: the output layer sees these steps alone, where no graph of all is recorded."""
        if inputs.is_cuda or torch.compiler.is_compiling() or self._watched:
            return super().run_at(inputs, state, at)
        features, state, _ = self._through(inputs, state, whole=True)
        return self._answer(picked(features, at)), state

    def _answer(self, features: Tensor) -> Tensor:
        return self.compared(self.output(self.norm(features)))

    def _through(
        self, x: Tensor, state: TransformerState, *, whole: bool
    ) -> tuple[Tensor, TransformerState, list[Any]]:
        """What the last layer gives, the next state, and what each layer did."""
        own, after, done = x.dtype, [], []
        x = self.input(x).to(own)
        for number, layer in enumerate(self.layers):
            x, here, reads, heads = layer(x, map_state(lambda leaf: leaf[:, number], state), whole)  # noqa: B023
            x = x.to(own)
            after.append(here)
            done.append((reads, heads))
        return x, _together(after), done

    def run_traced(self, inputs: Tensor, state: TransformerState) -> tuple[Tensor, TransformerState, dict[str, Tensor]]:
        """Like :meth:`run`, step by step, and records what the heads of every layer did."""
        outputs, steps = [], []
        for x in inputs.unbind(0):
            y, state, done = self._through(x, state, whole=False)
            outputs.append(self._answer(y))
            seen = []
            for number, (reads, (heads,)) in enumerate(done):
                own = map_state(lambda leaf: leaf[:, number], state.accessors)  # noqa: B023 (called at once)
                accessor: Any = self.layers[number].accessor
                seen.append({"reads": reads, **accessor.observed(heads, own)})
            steps.append({name: torch.stack([layer[name] for layer in seen], 1) for name in seen[0]})
        recorded = {name: torch.stack([step[name] for step in steps]) for name in self.trace_fields if name in steps[0]}
        return torch.stack(outputs), state, recorded


def _together(states: list[TransformerState]) -> TransformerState:
    """One state of all layers."""
    return map_state(lambda *leaves: torch.stack(leaves, 1), *states)
