"""The native backend: a whole sequence, forward and backward, in C++ on the CPU.

Controller, heads and memory of a row of the batch stay in cache for all time steps. The memory (and the DNC's link
matrix) is stored only every few steps and computed again between, which costs little and saves most of the space.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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
from ...stacked import map_initial_state
from . import library
from .sequence import First, Weights, make_problem, run_sequence
from .sequence import run_population as run_members

if TYPE_CHECKING:
    from ..circuit_view import CircuitView

CONTROLLERS: dict[type, int] = {LSTMController: 0, GRUController: 1, FeedForwardController: 2}
"""The number of each controller in source/controller.h."""

Expected = tuple[str, Tensor, tuple[int, ...]]
"""Name, tensor and the shape that it must have."""


def unavailable(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> str | None:
    """Why the native backend cannot run these inputs, or None."""
    return (
        _unavailable_here()
        or _unavailable_parts(circuit)
        or _unavailable_sizes(circuit, inputs, state)
        or _library_reason()
    )


def _unavailable_here() -> str | None:
    if torch.compiler.is_compiling():
        return "torch.compile is tracing it"
    if torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return "it has no rule for torch.func transforms and forward-mode derivatives"
    if torch.is_autocast_enabled("cpu"):
        return "it has no autocast"
    return None


def _library_reason() -> str | None:
    loaded = library.load()
    return loaded if isinstance(loaded, str) else None


def _unavailable_parts(circuit: CircuitView) -> str | None:
    controller: Any = circuit.controller
    accessor: Any = circuit.accessor
    if type(controller) not in CONTROLLERS:
        return f"it has no {type(controller).__name__}"
    if type(accessor) not in (StaticAccessor, DynamicAccessor):
        return f"it has no {type(accessor).__name__}"
    linears = [layer for layer in _linears(controller, accessor) if type(layer) is not nn.Linear]
    if linears:
        return f"it needs plain Linear layers, not {type(linears[0]).__name__}"
    for module in (controller, accessor, accessor.interface, *_linears(controller, accessor)):
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            return f"it would skip the hooks of {type(module).__name__}"
    return None


def _linears(controller: Any, accessor: Any) -> list[nn.Linear]:
    return [*controller.inputs, *getattr(controller, "recurrents", ()), accessor.interface.linear]


def _unavailable_sizes(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> str | None:
    """Checks every type, place and shape: the library reads memory as it is told."""
    controller: Any = circuit.controller
    accessor: Any = circuit.accessor
    steps, batch, _ = inputs.shape
    hidden, reads, writes, word = controller.hidden_size, accessor.num_reads, accessor.num_writes, accessor.word_size
    layers, width = controller.num_layers, controller.input_size
    slots = state.accessor.memory.shape[1] if state.accessor.memory.dim() == 3 else 0
    leaf_shapes = {
        "memory": (batch, slots, word),
        "usage": (batch, slots),
        "link": (batch, writes, slots, slots),
        "precedence": (batch, writes, slots),
        "read_weights": (batch, reads, slots),
        "write_weights": (batch, writes, slots),
    }
    expected: list[Expected] = [
        ("inputs", inputs, (steps, batch, width - reads * word)),
        ("reads", state.reads, (batch, reads, word)),
        *((name, leaf, (batch, layers, hidden)) for name, leaf in state.controller._asdict().items()),
        *((name, leaf, leaf_shapes[name]) for name, leaf in state.accessor._asdict().items()),
    ]
    gates = {LSTMController: 4, GRUController: 3, FeedForwardController: 1}[type(controller)] * hidden
    linears = [
        (layer, "inputs", gates, width if index == 0 else hidden) for index, layer in enumerate(controller.inputs)
    ]
    linears += [(layer, "recurrents", gates, hidden) for layer in getattr(controller, "recurrents", ())]
    linears.append((accessor.interface.linear, "interface", sum(accessor.interface.sizes.values()), hidden))
    for layer, name, rows, columns in linears:
        expected += [(f"weight of {name}", layer.weight, (rows, columns)), (f"bias of {name}", layer.bias, (rows,))]
    return _unavailable_tensors(expected, inputs.dtype)


def _unavailable_tensors(expected: Iterable[Expected], dtype: torch.dtype) -> str | None:
    for name, tensor, shape in expected:
        if type(tensor) not in (Tensor, nn.Parameter):
            return f"{name} is a {type(tensor).__name__}, not a plain tensor"
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            return f"it runs dense tensors on the CPU; {name} is {tensor.layout} on {tensor.device}"
        if tensor.dtype != dtype or tensor.dtype not in (torch.float32, torch.float64):
            return f"it runs float32 or float64 throughout; inputs are {dtype}, {name} is {tensor.dtype}"
        if tensor.shape != shape or 0 in shape:
            return f"{name} has shape {list(tensor.shape)}; expected {list(shape)}"
    return None


def run(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
    """Features ``[T, B, F]`` and the last state."""
    controller: Any = circuit.controller
    weights = _weights(circuit, dict(_parameters(circuit)), inputs.shape[2])
    first = _first(circuit, state)
    problem = make_problem(inputs, weights, state.accessor.memory, **_options(circuit))
    features, last = run_sequence(_accessor_name(circuit), problem, inputs, weights, first)
    last_hidden, last_reads = features[-1].split([controller.hidden_size, state.reads[0].numel()], dim=-1)
    hidden = last_hidden.unsqueeze(1)
    if last.lower_hidden is not None:
        hidden = torch.cat([last.lower_hidden, hidden], dim=1)
    controller_state: LSTMState | GRUState | FeedForwardState = FeedForwardState()
    if last.cell is not None:
        controller_state = LSTMState(hidden, last.cell)
    elif isinstance(controller, GRUController):
        controller_state = GRUState(hidden)
    leaves = type(state.accessor)(*last.leaves)
    return features, CircuitState(controller_state, leaves, last_reads.view_as(state.reads))


def population_unavailable(circuit: CircuitView, parameters: Mapping[str, Tensor], inputs: Tensor) -> str | None:
    """Why the native backend cannot run a population with these stacked parameters, or None."""
    reason = _unavailable_here() or _unavailable_parts(circuit)
    if reason is None and type(circuit.output) is not nn.Linear:
        reason = f"it needs a plain Linear layer for the outputs, not {type(circuit.output).__name__}"
    if reason is not None:
        return reason
    layers = dict(_parameters(circuit)) | {f"output.{name}": p for name, p in circuit.output.named_parameters()}
    members = len(next(iter(parameters.values())))
    expected = [(name, parameters[name], (members, *parameter.shape)) for name, parameter in layers.items()]
    expected.append(("inputs", inputs, (*inputs.shape[:2], circuit.input_size)))
    return _unavailable_tensors(expected, inputs.dtype) or _library_reason()


def run_population(circuit: CircuitView, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """The answers of P members to the same inputs, from their initial states.

    Args:
        circuit: what each member is.
        parameters: of P members, ``[P, *S]`` by name.
        inputs: ``[T, B, I]``.

    Returns:
        ``[T, P, B, O]``, clipped.
    """
    start = map_initial_state(circuit, parameters)
    first = _first(circuit, start)
    weights = _weights(circuit, parameters, inputs.shape[2])
    problem = make_problem(inputs, weights, start.accessor.memory, **_options(circuit))
    output = (parameters["output.weight"], parameters["output.bias"])
    answers = run_members(_accessor_name(circuit), problem, inputs, weights, *output, first)
    return answers if circuit.clip is None else answers.clamp_(-circuit.clip, circuit.clip)


def _accessor_name(circuit: CircuitView) -> str:
    return "static" if isinstance(circuit.accessor, StaticAccessor) else "dynamic"


def _options(circuit: CircuitView) -> dict[str, Any]:
    """Fields of :class:`~.library.Problem` that are not sizes."""
    controller: Any = circuit.controller
    accessor: Any = circuit.accessor
    options = {
        "controller": CONTROLLERS[type(controller)],
        "reads": accessor.num_reads,
        "writes": accessor.num_writes,
        "clip": float("inf") if controller.clip is None else controller.clip,
        "masked_content": accessor.masked_content,
    }
    if isinstance(accessor, StaticAccessor):
        return options | {"shift_range": accessor.shift_range}
    return options | {
        "squash": accessor.squash == "tanh",
        "memory_wipe": accessor.memory_wipe,
        "link_sharpening": accessor.link_sharpening,
        "usage_gradient": accessor.usage_gradient,
    }


def _first(circuit: CircuitView, state: CircuitState) -> First:
    """A state as the library takes it."""
    hidden = getattr(state.controller, "hidden", None)
    if hidden is None:
        last_hidden, lower_hidden = state.reads.new_zeros(len(state.reads), circuit.controller.hidden_size), None
    else:
        last_hidden, lower_hidden = hidden[:, -1], hidden[:, :-1] if hidden.shape[1] > 1 else None
    features = torch.cat([last_hidden, state.reads.flatten(1)], dim=1)
    return First(features, lower_hidden, getattr(state.controller, "cell", None), tuple(state.accessor))


def _parameters(circuit: CircuitView) -> Iterator[tuple[str, Tensor]]:
    """The parameters of controller and interface, by their names in the circuit."""
    for name, parameter in circuit.controller.named_parameters():
        yield f"controller.{name}", parameter
    interface: Any = circuit.accessor.interface
    for name, parameter in interface.named_parameters():
        yield f"accessor.interface.{name}", parameter


def _weights(circuit: CircuitView, parameters: Mapping[str, Tensor], input_size: int) -> Weights:
    """All weights as the library takes them, of one circuit or, stacked, of many members."""
    controller: Any = circuit.controller
    layers = [_layer_weights(controller, parameters, layer) for layer in range(controller.num_layers)]
    own, below, bias = layers[0]
    weight = torch.cat([*own, below[..., input_size:], below[..., :input_size]], dim=-1)
    uppers = layers[1:]
    return Weights(
        weight,
        bias,
        torch.stack([torch.cat([*own, below], dim=-1) for own, below, _ in uppers], dim=-3) if uppers else None,
        torch.stack([bias for _, _, bias in uppers], dim=-2) if uppers else None,
        parameters["accessor.interface.linear.weight"],
        parameters["accessor.interface.linear.bias"],
    )


def _layer_weights(
    controller: Any, parameters: Mapping[str, Tensor], layer: int
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Of one layer: weight ``[G, hidden]`` for its last hidden vector (if any), weight for its input, bias ``[G]``.

    The GRU's candidate has two blocks, for the input and for the last hidden vector, since the reset gate comes
    between.
    """
    below, bias = (parameters[f"controller.inputs.{layer}.{name}"] for name in ("weight", "bias"))
    if isinstance(controller, FeedForwardController):
        return [], below, bias
    own, own_bias = (parameters[f"controller.recurrents.{layer}.{name}"] for name in ("weight", "bias"))
    if isinstance(controller, LSTMController):
        return [own], below, bias + own_bias
    both = 2 * controller.hidden_size
    new = own[..., both:, :]
    below = torch.cat([below, torch.zeros_like(below[..., both:, :])], dim=-2)
    own = torch.cat([own[..., :both, :], torch.zeros_like(new), new], dim=-2)
    bias = torch.cat([bias[..., :both] + own_bias[..., :both], bias[..., both:], own_bias[..., both:]], dim=-1)
    return [own], below, bias
