"""Circuits whose whole sequences fit into one kernel."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ...accessors.dynamic import DynamicState
from ...accessors.static import StaticState
from ...controllers.gru import GRUState
from ...controllers.lstm import LSTMState
from ...members import map_initial_state
from ...state import CircuitState, map_state
from .. import guard
from .controllers import FEEDFORWARD, GRU, LSTM
from .dynamic_sequence import DynamicRecurrence
from .recurrence import Recurrence
from .static_sequence import StaticRecurrence

if TYPE_CHECKING:
    from ..circuit_view import CircuitView

KINDS = {"feedforward": FEEDFORWARD, "lstm": LSTM, "gru": GRU}
"""The controllers that sequences understand."""

CONTROLLERS = dict.fromkeys(KINDS, guard.CONTROLLER)
ACCESSORS = {"static": guard.STATIC, "dynamic": guard.DYNAMIC}


def unavailable(circuit: CircuitView, state: CircuitState) -> str | None:
    """Why a circuit that the backend runs has to run step by step, or None."""
    known = guard.known("sequences", circuit, ACCESSORS, CONTROLLERS)
    return known.changed(circuit) or _recurrence(circuit, state.accessor.memory.shape[1]).unavailable()


def _recurrence(circuit: CircuitView, slots: int) -> Recurrence:
    """What the kernels are told about a circuit with a memory of so many slots."""
    controller: Any = circuit.controller
    accessor: Any = circuit.accessor
    parts = accessor.interface.sizes
    sizes: dict[str, Any] = {
        "kind": KINDS[controller.kind],
        "layers": controller.num_layers,
        "hidden": controller.hidden_size,
        "clip": controller.clip,
        "interface": accessor.interface.size,
        "places": dict(zip(parts, accumulate(parts.values(), initial=0), strict=False)),
        "slots": slots,
        "word": accessor.word_size,
        "reads": accessor.num_reads,
        "writes": accessor.num_writes,
        "masked": accessor.masked_content,
    }
    if accessor.kind == "static":
        return StaticRecurrence(**sizes, shifts=2 * accessor.shift_range + 1)
    return DynamicRecurrence(
        **sizes,
        squash=accessor.squash == "tanh",
        wipe=accessor.memory_wipe,
        sharpen=accessor.link_sharpening,
        usage_gradient=accessor.usage_gradient,
    )


class _Layers(NamedTuple):
    """The layers of a controller as kernels take them; each has the members of a population first, if there are any."""

    inputs: Tensor
    """Weights of the first layer for the inputs, ``[G, I]``."""
    recurrent: Tensor
    """Of the first layer for its last hidden vector and the words read, ``[G, hidden + R * W]``."""
    upper: Tensor
    """Of the other layers for the hidden vector below and their own last one, ``[L - 1, G, 2 * hidden]``."""
    bias: Tensor
    """Of the first layer, ``[G]``."""
    upper_bias: Tensor
    """Of the other layers, ``[(L - 1) * G]``."""

    def gates(self, first: Tensor) -> Tensor:
        """Sums that enter the gates of all layers before a step, ``[…, L * G]``; ``first`` are those of the first."""
        if self.upper_bias.shape[-1] == 0:
            return first
        bias = self.upper_bias.reshape(*self.upper_bias.shape[:-1], *(1,) * (first.dim() - self.bias.dim()), -1)
        return torch.cat([first, bias.expand(*first.shape[:-1], -1)], dim=-1)


def run(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
    """Features ``[T, B, F]`` and the last state."""
    accessor: Any = circuit.accessor
    linear = accessor.interface.linear
    layers = _layers(circuit.controller, dict(circuit.controller.named_parameters()), inputs.shape[2])
    gates = layers.gates(functional.linear(inputs, layers.inputs, layers.bias))
    return _run(circuit, gates, (layers.recurrent, layers.upper, linear.weight, linear.bias), state)


def run_population(circuit: CircuitView, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """The answers of P members to the same inputs, from their initial states; not differentiable.

    Args:
        circuit: what each member is.
        parameters: of P members, ``[P, *S]`` by name.
        inputs: ``[T, B, I]``.

    Returns:
        ``[T, P, B, O]``, clipped.
    """
    steps, batch, _ = inputs.shape
    named = {name.removeprefix("controller."): part for name, part in parameters.items()}
    layers = _layers(circuit.controller, named, inputs.shape[2])
    members = len(layers.bias)
    seen = inputs.flatten(0, 1).expand(members, -1, -1)
    gates = layers.gates(torch.baddbmm(layers.bias.unsqueeze(1), seen, layers.inputs.mT))
    interface = (parameters["accessor.interface.linear.weight"], parameters["accessor.interface.linear.bias"])
    start = map_initial_state(circuit, parameters)
    features, _ = _run(
        circuit,
        gates.unflatten(1, (steps, batch)).transpose(0, 1).flatten(1, 2),
        (layers.recurrent, layers.upper, *interface),
        map_state(lambda leaf: leaf.repeat_interleave(batch, 0), start),
    )
    seen = features.unflatten(1, (members, batch)).transpose(0, 1).flatten(1, 2)
    answers = torch.baddbmm(parameters["output.bias"].unsqueeze(1), seen, parameters["output.weight"].mT)
    answers = answers if circuit.clip is None else answers.clamp_(-circuit.clip, circuit.clip)
    return answers.unflatten(1, (steps, batch)).transpose(0, 1)


def _run(
    circuit: CircuitView, gates: Tensor, weights: tuple[Tensor, ...], state: CircuitState
) -> tuple[Tensor, CircuitState]:
    """Features and the last state from the sums that enter the gates before a step, ``[T, B, L * G]``.

    ``weights`` are ``recurrent``, ``upper``, ``interface_weight`` and ``interface_bias`` of :meth:`Recurrence.run`.
    """
    memory: Any = state.accessor
    controller: Any = state.controller
    recurrence = _recurrence(circuit, memory.memory.shape[1])
    reads, hidden, layers = recurrence.reads, recurrence.hidden, recurrence.layers
    if hasattr(controller, "hidden"):
        hiddens = _last_first(controller.hidden).flatten(1)
    else:
        hiddens = gates.new_zeros(gates.shape[1], layers * hidden)
    cells = controller.cell.flatten(1) if isinstance(controller, LSTMState) else hiddens[:, :0]
    heads = torch.cat([memory.read_weights, memory.write_weights], dim=1)
    rest: tuple[Tensor, ...] = (memory.memory,)
    if isinstance(memory, DynamicState):
        rest = (memory.memory, memory.link, memory.precedence, memory.usage)
    first = torch.cat([hiddens, state.reads.flatten(1)], dim=1)
    features, cells, heads, *last = recurrence.run(gates, *weights, first, cells, heads, *rest)

    last_features = features[-1].clone()  # of which views would keep all steps
    last_hiddens = _last_first(last_features[:, : layers * hidden].unflatten(1, (layers, hidden)))
    if isinstance(controller, LSTMState):
        controller = LSTMState(last_hiddens, cells.view_as(controller.cell))
    elif isinstance(controller, GRUState):
        controller = GRUState(last_hiddens)
    if isinstance(memory, DynamicState):
        contents, link, precedence, usage = last
        memory = DynamicState(contents, usage, link, precedence, heads[:, :reads], heads[:, reads:])
    else:
        (contents,) = last
        memory = StaticState(contents, heads[:, :reads], heads[:, reads:])
    last_reads = last_features[:, layers * hidden :].view_as(state.reads)
    if layers > 1:
        features = torch.cat([features[..., :hidden], features[..., layers * hidden :]], dim=-1)
    return features, CircuitState(controller, memory, last_reads)


def _last_first(hiddens: Tensor) -> Tensor:
    """Hidden vectors of all layers ``[B, L, hidden]``, the last layer first; of one layer the same tensor."""
    return hiddens.flip(1) if hiddens.shape[1] > 1 else hiddens


def _layers(controller: Any, parameters: Mapping[str, Tensor], input_size: int) -> _Layers:
    """The layers of a controller from its parameters by name."""
    (weight, from_hidden, bias), *upper = (_layer(controller, parameters, k) for k in range(controller.num_layers))
    both = [torch.cat([below, own], dim=-1) for below, own, _ in upper]
    *members, gates, hidden = from_hidden.shape
    return _Layers(
        weight[..., :input_size],
        torch.cat([from_hidden, weight[..., input_size:]], dim=-1),
        torch.stack(both, dim=-3) if both else weight.new_empty(*members, 0, gates, 2 * hidden),
        bias,
        torch.cat([more for _, _, more in upper], dim=-1) if upper else bias[..., :0],
    )


def _layer(controller: Any, parameters: Mapping[str, Tensor], index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of a layer for what is below and for its own last hidden vector ``[G, hidden]``, and one bias ``[G]``.

    The GRU's candidate has two blocks, for the input and for the last hidden vector, since the reset gate comes
    between; a feed-forward layer gives its last hidden vector no weight.
    """
    hidden = controller.hidden_size
    weight, bias = parameters[f"inputs.{index}.weight"], parameters[f"inputs.{index}.bias"]
    if controller.kind == "feedforward":
        return weight, weight.new_zeros(*weight.shape[:-1], hidden), bias
    from_hidden, more = parameters[f"recurrents.{index}.weight"], parameters[f"recurrents.{index}.bias"]
    if controller.kind == "lstm":
        return weight, from_hidden, bias + more
    gates, candidate = weight.split([2 * hidden, hidden], dim=-2)
    weight = torch.cat([gates, candidate, torch.zeros_like(candidate)], dim=-2)
    gates, candidate = from_hidden.split([2 * hidden, hidden], dim=-2)
    from_hidden = torch.cat([gates, torch.zeros_like(candidate), candidate], dim=-2)
    first, last = bias.split([2 * hidden, hidden], dim=-1)
    more_first, more_last = more.split([2 * hidden, hidden], dim=-1)
    return weight, from_hidden, torch.cat([first + more_first, last, more_last], dim=-1)
