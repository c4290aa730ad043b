"""Circuits whose whole sequences fit into one kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...accessors.dynamic import DynamicAccessor, DynamicState
from ...accessors.static import StaticAccessor, StaticState
from ...circuit import CircuitState, map_state
from ...controllers.feedforward import FeedForwardController, FeedForwardState
from ...controllers.gru import GRUController, GRUState
from ...controllers.lstm import LSTMController, LSTMState
from ...stacked import map_initial_state
from ..hooks import hooked
from . import dnc, ntm
from .controllers import FEEDFORWARD, GRU, LSTM

if TYPE_CHECKING:
    from ..circuit_view import CircuitView

KINDS: dict[type, int] = {FeedForwardController: FEEDFORWARD, LSTMController: LSTM, GRUController: GRU}


def unavailable(circuit: CircuitView, state: CircuitState) -> str | None:
    """Why a circuit has to run step by step, or None."""
    controller: Any = circuit.controller
    accessor: Any = circuit.accessor
    if type(controller) not in KINDS or controller.num_layers != 1:
        return "whole sequences are for LSTM, GRU and feed-forward controllers of one layer"
    if type(accessor) not in (StaticAccessor, DynamicAccessor):
        return f"there is no whole sequence of {type(accessor).__name__}"
    if isinstance(accessor, StaticAccessor) and accessor.masked_content:
        return "whole sequences of an NTM have no masked_content"
    if isinstance(accessor, DynamicAccessor) and accessor.num_writes != 1:
        return f"whole sequences of a DNC have one write head; this one has {accessor.num_writes}"
    layers = (accessor.interface.linear, *controller.inputs, *getattr(controller, "recurrents", ()))
    if any(hooked(module) for module in (controller, accessor.interface, *layers)) or any(
        type(layer) is not nn.Linear for layer in layers
    ):
        return "a kernel would skip hooks and what layers other than nn.Linear do"
    slots, word = state.accessor.memory.shape[1:]
    size = accessor.interface.linear.out_features
    kernels = ntm if isinstance(accessor, StaticAccessor) else dnc
    return kernels.unavailable(controller.hidden_size, slots, word, accessor.num_reads, size)


def run(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
    """Features ``[T, B, F]`` and the last state."""
    controller: Any = circuit.controller
    accessor: Any = circuit.accessor
    linear = accessor.interface.linear
    from_inputs, recurrent, bias = _layers(controller, dict(controller.named_parameters()), inputs.shape[2])
    gates = functional.linear(inputs, from_inputs, bias)
    return _run(circuit, gates, recurrent, linear.weight, linear.bias, state)


def run_population(circuit: CircuitView, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """The answers of P members to the same inputs, from their initial states; not differentiable.

    Args:
        circuit: what each member is.
        parameters: of P members, ``[P, *S]`` by name.
        inputs: ``[T, B, I]``.

    Returns:
        ``[T, P, B, O]``, clipped.
    """
    controller: Any = circuit.controller
    steps, batch, _ = inputs.shape
    named = {name.removeprefix("controller."): part for name, part in parameters.items()}
    from_inputs, recurrent, bias = _layers(controller, named, inputs.shape[2])
    members = len(bias)
    gates = torch.baddbmm(bias.unsqueeze(1), inputs.flatten(0, 1).expand(members, -1, -1), from_inputs.mT)
    start = map_initial_state(circuit, parameters)
    features, _ = _run(
        circuit,
        gates.unflatten(1, (steps, batch)).transpose(0, 1).flatten(1, 2),
        recurrent,
        parameters["accessor.interface.linear.weight"],
        parameters["accessor.interface.linear.bias"],
        map_state(lambda leaf: leaf.repeat_interleave(batch, 0), start),
    )
    seen = features.unflatten(1, (members, batch)).transpose(0, 1).flatten(1, 2)
    answers = torch.baddbmm(parameters["output.bias"].unsqueeze(1), seen, parameters["output.weight"].mT)
    answers = answers if circuit.clip is None else answers.clamp_(-circuit.clip, circuit.clip)
    return answers.unflatten(1, (steps, batch)).transpose(0, 1)


def _run(
    circuit: CircuitView,
    gates: Tensor,
    recurrent: Tensor,
    interface_weight: Tensor,
    interface_bias: Tensor,
    state: CircuitState,
) -> tuple[Tensor, CircuitState]:
    """Features and the last state from products with the inputs ``[T, B, G]`` and layers, of members where they are."""
    controller: Any = circuit.controller
    accessor: Any = circuit.accessor
    memory: Any = state.accessor
    hidden_size, kind = controller.hidden_size, KINDS[type(controller)]
    nothing = gates.new_zeros(gates.shape[1], hidden_size)
    hidden = state.controller.hidden.flatten(1) if hasattr(state.controller, "hidden") else nothing
    cell = state.controller.cell.flatten(1) if isinstance(state.controller, LSTMState) else nothing
    weights = torch.cat([memory.read_weights, memory.write_weights], dim=1)
    layers = (gates, recurrent, interface_weight, interface_bias)
    first = torch.cat([hidden, state.reads.flatten(1)], dim=1)
    reads = accessor.num_reads
    accessor_state: StaticState | DynamicState
    if isinstance(accessor, StaticAccessor):
        shifts = 2 * accessor.shift_range + 1
        sizes = ntm.Sizes(hidden_size, reads, accessor.num_writes, shifts, kind, controller.clip)
        features, cell, contents, weights = ntm.run_sequence(sizes, *layers, first, cell, memory.memory, weights)
        accessor_state = StaticState(contents, weights[:, :reads], weights[:, reads:])
    else:
        small = dnc.Sizes(
            hidden_size,
            reads,
            kind,
            controller.clip,
            squash=accessor.squash == "tanh",
            wipe=accessor.memory_wipe,
            masked=accessor.masked_content,
            sharpen=accessor.link_sharpening,
            usage_gradient=accessor.usage_gradient,
        )
        before = dnc.State(memory.memory, memory.usage, memory.link.squeeze(1), memory.precedence.squeeze(1), weights)
        features, cell, last = dnc.run_sequence(small, *layers, first, cell, before)
        links, precedence = last.links.unsqueeze(1), last.precedence.unsqueeze(1)
        heads = last.weights[:, :reads], last.weights[:, reads:]
        accessor_state = DynamicState(last.memory, last.usage, links, precedence, *heads)
    last_hidden, last_reads = features[-1, :, :hidden_size].unsqueeze(1), features[-1, :, hidden_size:]
    controller_state: Any = FeedForwardState()
    if isinstance(controller, LSTMController):
        controller_state = LSTMState(last_hidden, cell.unsqueeze(1))
    elif isinstance(controller, GRUController):
        controller_state = GRUState(last_hidden)
    return features, CircuitState(controller_state, accessor_state, last_reads.view_as(state.reads))


def _layers(controller: Any, parameters: Mapping[str, Tensor], input_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of the inputs ``[G, I]`` and of the last features ``[G, F]``, and one bias ``[G]``.

    Each has the members of a population first where the parameters have. The GRU's candidate has two blocks, for the
    input and for the last hidden vector, since the reset gate comes between; a feed-forward controller gives the last
    hidden vector no weight.
    """
    hidden = controller.hidden_size
    weight, bias = parameters["inputs.0.weight"], parameters["inputs.0.bias"]
    if isinstance(controller, FeedForwardController):
        from_hidden = weight.new_zeros(*weight.shape[:-1], hidden)
    else:
        from_hidden, more = parameters["recurrents.0.weight"], parameters["recurrents.0.bias"]
        if isinstance(controller, LSTMController):
            bias = bias + more
        else:
            gates, candidate = weight.split([2 * hidden, hidden], dim=-2)
            weight = torch.cat([gates, candidate, torch.zeros_like(candidate)], dim=-2)
            gates, candidate = from_hidden.split([2 * hidden, hidden], dim=-2)
            from_hidden = torch.cat([gates, torch.zeros_like(candidate), candidate], dim=-2)
            first, last = bias.split([2 * hidden, hidden], dim=-1)
            more_first, more_last = more.split([2 * hidden, hidden], dim=-1)
            bias = torch.cat([first + more_first, last, more_last], dim=-1)
    return weight[..., :input_size], torch.cat([from_hidden, weight[..., input_size:]], dim=-1), bias
