"""The native backend: a whole sequence, forward and backward, in C++ on the CPU.

Controller, heads and memory of a row of the batch stay in cache for all time steps. The memory (and the DNC's link
matrix) is stored only every few steps and computed again between, which costs little and saves most of the space.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ...accessors.dynamic import DynamicAccessor
from ...accessors.static import StaticAccessor
from ...circuit import CircuitState
from ...controllers.feedforward import FeedForwardController, FeedForwardState
from ...controllers.gru import GRUController, GRUState
from ...controllers.lstm import LSTMController, LSTMState
from . import library
from .sequence import run_sequence

if TYPE_CHECKING:
    from ..circuit_view import CircuitView


def unavailable(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> str | None:
    """Why the native backend cannot run these inputs, or None."""
    if torch.compiler.is_compiling():
        return "torch.compile is tracing it"
    if torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return "it has no rule for torch.func transforms and forward-mode derivatives"
    if torch.is_autocast_enabled("cpu"):
        return "it has no autocast"
    reason = _unavailable_parts(circuit)
    if reason is not None:
        return reason
    return _unavailable_tensors(circuit, inputs, state) or _library_reason()


def _library_reason() -> str | None:
    loaded = library.load()
    return loaded if isinstance(loaded, str) else None


def _unavailable_parts(circuit: CircuitView) -> str | None:
    controller: Any = circuit.controller
    accessor: Any = circuit.accessor
    if type(controller) not in (LSTMController, GRUController, FeedForwardController):
        return f"it has no {type(controller).__name__}"
    if controller.num_layers != 1:
        return f"it runs controllers of one layer; this one has {controller.num_layers}"
    if type(accessor) not in (StaticAccessor, DynamicAccessor):
        return f"it has no {type(accessor).__name__}"
    for option in ("masked_content", "link_sharpening"):
        if getattr(accessor, option, False):
            return f"it has no {option}"
    linears = [layer for layer in _linears(controller, accessor) if type(layer) is not nn.Linear]
    if linears:
        return f"it needs plain Linear layers, not {type(linears[0]).__name__}"
    for module in (controller, accessor, accessor.interface, *_linears(controller, accessor)):
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            return f"it would skip the hooks of {type(module).__name__}"
    return None


def _linears(controller: Any, accessor: Any) -> list[nn.Linear]:
    layers = [controller.inputs[0], accessor.interface.linear]
    return layers if isinstance(controller, FeedForwardController) else [*layers, controller.recurrents[0]]


def _unavailable_tensors(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> str | None:
    """Checks every type, place and shape: the library reads memory as it is told."""
    controller: Any = circuit.controller
    accessor: Any = circuit.accessor
    steps, batch, _ = inputs.shape
    hidden, reads, writes, word = controller.hidden_size, accessor.num_reads, accessor.num_writes, accessor.word_size
    slots = state.accessor.memory.shape[1] if state.accessor.memory.dim() == 3 else 0
    expected: list[tuple[str, Tensor, tuple[int, ...]]] = [
        ("inputs", inputs, (steps, batch, controller.input_size - reads * word)),
        ("reads", state.reads, (batch, reads, word)),
        *((name, leaf, (batch, 1, hidden)) for name, leaf in state.controller._asdict().items()),
    ]
    leaf_shapes = {
        "memory": (batch, slots, word),
        "usage": (batch, slots),
        "link": (batch, writes, slots, slots),
        "precedence": (batch, writes, slots),
        "read_weights": (batch, reads, slots),
        "write_weights": (batch, writes, slots),
    }
    expected += [(name, leaf, leaf_shapes[name]) for name, leaf in state.accessor._asdict().items()]
    gates = {LSTMController: 4, GRUController: 3, FeedForwardController: 1}[type(controller)] * hidden
    rows = (gates, sum(accessor.interface.sizes.values()), gates)
    columns = (controller.input_size, hidden, hidden)
    for index, layer in enumerate(_linears(controller, accessor)):
        name = ("inputs", "interface", "recurrents")[index]
        expected.append((f"weight of {name}", layer.weight, (rows[index], columns[index])))
        expected.append((f"bias of {name}", layer.bias, (rows[index],)))
    for name, tensor, shape in expected:
        if type(tensor) not in (Tensor, nn.Parameter):
            return f"{name} is a {type(tensor).__name__}, not a plain tensor"
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            return f"it runs dense tensors on the CPU; {name} is {tensor.layout} on {tensor.device}"
        if tensor.dtype != inputs.dtype or tensor.dtype not in (torch.float32, torch.float64):
            return f"it runs float32 or float64 throughout; inputs are {inputs.dtype}, {name} is {tensor.dtype}"
        if tensor.shape != shape or 0 in shape:
            return f"{name} has shape {list(tensor.shape)}; expected {list(shape)}"
    return None


def run(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
    """Features ``[T, B, F]`` and the last state."""
    controller: Any = circuit.controller
    accessor: Any = circuit.accessor
    hidden_size = controller.hidden_size
    kind, weight, bias = _controller_weights(controller, inputs.shape[2])
    hidden = None if isinstance(controller, FeedForwardController) else state.controller.hidden.flatten(1)
    if hidden is None:
        hidden = inputs.new_zeros(inputs.shape[1], hidden_size)
    interface = accessor.interface.linear
    options = {
        "controller": library.CONTROLLERS[kind],
        "reads": accessor.num_reads,
        "writes": accessor.num_writes,
        "clip": float("inf") if controller.clip is None else controller.clip,
    }
    if isinstance(accessor, StaticAccessor):
        options["shift_range"] = accessor.shift_range
    else:
        options["squash"] = accessor.squash == "tanh"
        options["memory_wipe"] = accessor.memory_wipe
        options["usage_gradient"] = accessor.usage_gradient
    features, cell, leaves = run_sequence(
        accessor="static" if isinstance(accessor, StaticAccessor) else "dynamic",
        options=options,
        inputs=inputs,
        weight=weight,
        bias=bias,
        interface_weight=interface.weight,
        interface_bias=interface.bias,
        first_features=torch.cat([hidden, state.reads.flatten(1)], dim=1),
        cell=state.controller.cell.flatten(1) if kind == "lstm" else None,
        state=tuple(state.accessor),
    )
    last_hidden, last_reads = features[-1, :, :hidden_size].unsqueeze(1), features[-1, :, hidden_size:]
    controller_state: LSTMState | GRUState | FeedForwardState = FeedForwardState()
    if kind == "lstm" and cell is not None:
        controller_state = LSTMState(last_hidden, cell.unsqueeze(1))
    elif kind == "gru":
        controller_state = GRUState(last_hidden)
    return features, CircuitState(controller_state, type(state.accessor)(*leaves), last_reads.view_as(state.reads))


def _controller_weights(controller: Any, input_size: int) -> tuple[str, Tensor, Tensor]:
    """Kind, one weight ``[G, hidden + reads + inputs]`` and one bias ``[G]`` of all products with the controller.

    The GRU's candidate has two blocks, for the input and for the last hidden vector, since the reset gate comes
    between; a feed-forward controller has no columns for the last hidden vector.
    """
    layer = controller.inputs[0]
    if isinstance(controller, FeedForwardController):
        weight = torch.cat([layer.weight[:, input_size:], layer.weight[:, :input_size]], dim=1)
        return "feedforward", weight, layer.bias
    recurrent = controller.recurrents[0]
    from_inputs, from_hidden = layer.weight, recurrent.weight
    if isinstance(controller, LSTMController):
        bias = layer.bias + recurrent.bias
        kind = "lstm"
    else:
        kind = "gru"
        both = 2 * controller.hidden_size
        from_inputs = torch.cat([from_inputs, torch.zeros_like(from_inputs[both:])])
        from_hidden = torch.cat([from_hidden[:both], torch.zeros_like(from_hidden[both:]), from_hidden[both:]])
        bias = torch.cat([layer.bias[:both] + recurrent.bias[:both], layer.bias[both:], recurrent.bias[both:]])
    return kind, torch.cat([from_hidden, from_inputs[:, input_size:], from_inputs[:, :input_size]], dim=1), bias
