"""Circuits whose whole sequences fit into one kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...accessors.static import StaticAccessor, StaticState
from ...circuit import CircuitState, map_state
from ...controllers.feedforward import FeedForwardController, FeedForwardState
from ...controllers.gru import GRUController, GRUState
from ...controllers.lstm import LSTMController, LSTMState
from ...stacked import map_initial_state
from . import ntm
from .controllers import FEEDFORWARD, GRU, LSTM

if TYPE_CHECKING:
    from ..circuit_view import CircuitView

KINDS: dict[type, int] = {FeedForwardController: FEEDFORWARD, LSTMController: LSTM, GRUController: GRU}


def unavailable(circuit: CircuitView, state: CircuitState) -> str | None:
    """Why a circuit has to run step by step, or None."""
    controller: Any = circuit.controller
    accessor: Any = circuit.accessor
    if type(accessor) is not StaticAccessor or accessor.masked_content:
        return "whole sequences are for NTM heads without masks"
    if type(controller) not in KINDS or controller.num_layers != 1:
        return "whole sequences are for LSTM, GRU and feed-forward controllers of one layer"
    for module in (
        controller,
        accessor.interface,
        *controller.inputs,
        *recurrents(controller),
        accessor.interface.linear,
    ):
        hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        if hooks or (isinstance(module, nn.Linear) and type(module) is not nn.Linear):
            return "a kernel would skip hooks and what layers other than nn.Linear do"
    slots, word = state.accessor.memory.shape[1:]
    size = accessor.interface.linear.out_features
    return ntm.unavailable(controller.hidden_size, slots, word, accessor.num_reads, size)


def recurrents(controller: Any) -> list[nn.Module]:
    """The layers that see the last hidden vector; none in a feed-forward controller."""
    return list(getattr(controller, "recurrents", ()))


def run(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
    """Features ``[T, B, F]`` and the last state."""
    controller: Any = circuit.controller
    accessor: Any = circuit.accessor
    linear = accessor.interface.linear
    batch, hidden_size = inputs.shape[1], controller.hidden_size
    from_inputs, recurrent, bias = _layers(controller, dict(controller.named_parameters()), inputs.shape[2])
    features, cell, memory, weights = ntm.run_sequence(
        _sizes(circuit),
        functional.linear(inputs, from_inputs, bias),
        recurrent,
        linear.weight,
        linear.bias,
        *_first(state, inputs.new_zeros(batch, hidden_size)),
    )
    last = features[-1]
    last_hidden = last[:, :hidden_size].unsqueeze(1)
    controller_state: Any = FeedForwardState()
    if isinstance(controller, LSTMController):
        controller_state = LSTMState(last_hidden, cell.unsqueeze(1))
    elif isinstance(controller, GRUController):
        controller_state = GRUState(last_hidden)
    reads = accessor.num_reads
    accessor_state = StaticState(memory, weights[:, :reads], weights[:, reads:])
    return features, CircuitState(controller_state, accessor_state, last[:, hidden_size:].view_as(state.reads))


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
    state = map_state(lambda leaf: leaf.repeat_interleave(batch, 0), start)
    features, *_ = ntm.run_sequence(
        _sizes(circuit),
        gates.unflatten(1, (steps, batch)).transpose(0, 1).flatten(1, 2),
        recurrent,
        parameters["accessor.interface.linear.weight"],
        parameters["accessor.interface.linear.bias"],
        *_first(state, gates.new_zeros(members * batch, controller.hidden_size)),
    )
    seen = features.unflatten(1, (members, batch)).transpose(0, 1).flatten(1, 2)
    answers = torch.baddbmm(parameters["output.bias"].unsqueeze(1), seen, parameters["output.weight"].mT)
    answers = answers if circuit.clip is None else answers.clamp_(-circuit.clip, circuit.clip)
    return answers.unflatten(1, (steps, batch)).transpose(0, 1)


def _sizes(circuit: CircuitView) -> ntm.Sizes:
    controller: Any = circuit.controller
    accessor: Any = circuit.accessor
    shifts = 2 * accessor.shift_range + 1
    kind = KINDS[type(controller)]
    return ntm.Sizes(controller.hidden_size, accessor.num_reads, accessor.num_writes, shifts, kind, controller.clip)


def _first(state: CircuitState, nothing: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features ``[B, F]``, cell ``[B, hidden]``, memory ``[B, N, W]`` and weights ``[B, K, N]`` before the first step.

    ``nothing`` ``[B, hidden]`` stands for what a controller does not have.
    """
    hidden = state.controller.hidden.flatten(1) if hasattr(state.controller, "hidden") else nothing
    cell = state.controller.cell.flatten(1) if isinstance(state.controller, LSTMState) else nothing
    weights = torch.cat([state.accessor.read_weights, state.accessor.write_weights], dim=1)
    return torch.cat([hidden, state.reads.flatten(1)], dim=1), cell, state.accessor.memory, weights


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
