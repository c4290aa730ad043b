"""The native backend: a whole sequence, forward and backward, in C++ on the CPU; of sparse access, the lookups.

Controller, heads and memory of a row of the batch stay in cache for all time steps. The memory (and the DNC's link
matrix) is stored only every few steps and computed again between, which costs little and saves most of the space.

Results are those of the eager backend, up to the rounding of either, and the same ones are finite, however large
weights, biases, inputs and states are, as long as nothing that the equations and their gradients compute, and no sum
of the magnitudes that they add up, is beyond the type's largest number (3.4e38 in float32). So words and keys have to
stay below some 1e18 there, since norms square them. Beyond, sums meet infinities of both signs in an order of their
own, and one backend may answer with a number where the other has none. So are gradients, as long as strengths,
sharpness and powers of links stay below some 1e4: they multiply rounding, which beyond decides between equal matches,
and what is left of gradients that cancel. What is below the smallest normal number (1.2e-38 in float32) may count as
0. Other rows of the batch and members of a population are never touched by any of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ... import addressing, heads
from ...accessors.dynamic import DynamicAccessor
from ...accessors.sparse import SparseAccessor
from ...accessors.static import StaticAccessor
from ...circuit import CircuitState
from ...controllers.feedforward import FeedForwardController, FeedForwardState
from ...controllers.gru import GRUController, GRUState
from ...controllers.lstm import LSTMController, LSTMState
from ...stacked import map_initial_state
from .. import eager
from ..hooks import hooked
from ..shapes import accessor_shapes
from ..transforms import transform
from . import library
from .nearest import nearest
from .sequence import Layer, State, Weights, make_problem, run_sequence
from .sequence import run_population as run_members

if TYPE_CHECKING:
    from ..circuit_view import CircuitView

CONTROLLERS: dict[type, int] = {LSTMController: 0, GRUController: 1, FeedForwardController: 2}
"""The number of each controller in source/controller.h."""

Expected = tuple[str, Tensor, tuple[int, ...]]
"""Name, tensor and the shape that it must have."""


def unavailable(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> str | None:
    """Why the native backend cannot run these inputs, or None."""
    if type(circuit.accessor) is SparseAccessor:
        return _unavailable_here() or _unavailable_lookups(circuit.accessor, state) or _library_reason()
    return (
        _unavailable_here()
        or _unavailable_parts(circuit)
        or _unavailable_sizes(circuit, inputs, state)
        or _library_reason()
    )


def _unavailable_here() -> str | None:
    return transform() or ("it has no autocast" if torch.is_autocast_enabled("cpu") else None)


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
    unknown = [name for name in accessor.interface.sizes if name not in library.PARTS]
    if unknown:
        return f"it does not know the part {unknown[0]!r} of the interface vector"
    linears = _linears(circuit).values()
    for layer in linears:
        if type(layer) is not nn.Linear:
            return f"it needs plain Linear layers, not {type(layer).__name__}"
    for module in (controller, accessor, accessor.interface, *linears):
        if hooked(module):
            return f"it would skip hooks or a replaced forward of {type(module).__name__}"
    if circuit.changed_transition:
        return f"it would skip the transition of {type(circuit).__name__}"
    return None


def _linears(circuit: CircuitView) -> dict[str, nn.Linear]:
    """The layers of controller and interface, by their names in the circuit."""
    controller: Any = circuit.controller
    accessor: Any = circuit.accessor
    linears: dict[str, nn.Linear] = {
        f"controller.inputs.{index}": layer for index, layer in enumerate(controller.inputs)
    }
    for index, layer in enumerate(getattr(controller, "recurrents", ())):
        linears[f"controller.recurrents.{index}"] = layer
    linears["accessor.interface.linear"] = accessor.interface.linear
    return linears


def _unavailable_lookups(accessor: SparseAccessor, state: CircuitState) -> str | None:
    if accessor.masked_content:
        return "it has no masked lookups in a sparse memory"
    memory = state.accessor.memory
    return _unavailable_tensors([("memory", memory, tuple(memory.shape))], memory.dtype)


def _unavailable_sizes(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> str | None:
    """Checks every type, place and shape: the library reads memory as it is told."""
    controller: Any = circuit.controller
    accessor: Any = circuit.accessor
    steps, batch, _ = inputs.shape
    hidden, reads, word = controller.hidden_size, accessor.num_reads, accessor.word_size
    layers, width = controller.num_layers, controller.input_size
    leaf_shapes = accessor_shapes(accessor, state, batch)
    expected: list[Expected] = [
        ("inputs", inputs, (steps, batch, width - reads * word)),
        ("reads", state.reads, (batch, reads, word)),
        *((name, leaf, (batch, layers, hidden)) for name, leaf in state.controller._asdict().items()),
        *((name, leaf, leaf_shapes[name]) for name, leaf in state.accessor._asdict().items()),
    ]
    gates = {LSTMController: 4, GRUController: 3, FeedForwardController: 1}[type(controller)] * hidden
    for name, layer in _linears(circuit).items():
        rows = accessor.interface.size if name.startswith("accessor") else gates
        columns = width if name == "controller.inputs.0" else hidden
        expected.append((f"weight of {name}", layer.weight, (rows, columns)))
        expected.append((f"bias of {name}", layer.bias, (rows,)))
    return _unavailable_tensors(expected, inputs.dtype)


def _unavailable_tensors(expected: Iterable[Expected], dtype: torch.dtype) -> str | None:
    floating = dtype in (torch.float32, torch.float64)
    for name, tensor, shape in expected:
        if type(tensor) not in (Tensor, nn.Parameter):
            return f"{name} is a {type(tensor).__name__}, not a plain tensor"
        if not tensor.is_cpu or tensor.layout is not torch.strided:
            return f"it runs dense tensors on the CPU; {name} is {tensor.layout} on {tensor.device}"
        if tensor.dtype is not dtype or not floating:
            return f"it runs float32 or float64 throughout; inputs are {dtype}, {name} is {tensor.dtype}"
        if tensor.shape != shape or 0 in shape:
            return f"{name} has shape {list(tensor.shape)}; expected {list(shape)}"
    return None


def run(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
    """Features ``[T, B, F]`` and the last state; of sparse access only the lookups are native, which take the time."""
    if isinstance(circuit.accessor, SparseAccessor):
        begun = circuit.accessor.begin(state.accessor, len(inputs), nearest)
        return eager.run_steps(circuit, inputs, state._replace(accessor=begun))
    weights = _weights(circuit, _parameters(_linears(circuit)))
    first = _state(state)
    problem = make_problem(inputs, weights, state.accessor.memory, **_options(circuit))
    features, last = run_sequence(_accessor_name(circuit), problem, inputs, weights, first)
    controller_state: LSTMState | GRUState | FeedForwardState = FeedForwardState()
    if last.hidden is not None and last.cell is not None:
        controller_state = LSTMState(last.hidden, last.cell)
    elif last.hidden is not None:
        controller_state = GRUState(last.hidden)
    return features, CircuitState(controller_state, type(state.accessor)(*last.leaves), last.reads)


def population_unavailable(circuit: CircuitView, parameters: Mapping[str, Tensor], inputs: Tensor) -> str | None:
    """Why the native backend cannot run a population with these stacked parameters, or None."""
    reason = _unavailable_here() or _unavailable_parts(circuit)
    output: Any = circuit.output
    if reason is None and type(output) is not nn.Linear:
        reason = f"it needs a plain Linear layer for the outputs, not {type(output).__name__}"
    if reason is None and hooked(output):
        reason = "it would skip hooks or a replaced forward of the output layer"
    if reason is not None:
        return reason
    layers = _parameters({**_linears(circuit), "output": output})
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
    first = _state(start)
    weights = _weights(circuit, parameters)
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
        "places": library.places(*accessor.interface.sizes.items()),
        "norm_epsilon": addressing.NORM_EPSILON,
        "usage_epsilon": addressing.USAGE_EPSILON,
        "sharpen_epsilon": addressing.SHARPEN_EPSILON,
        "mask_min": heads.MASK_MIN,
    }
    if isinstance(accessor, StaticAccessor):
        return options | {"shift_range": accessor.shift_range}
    return options | {
        "squash": accessor.squash == "tanh",
        "memory_wipe": accessor.memory_wipe,
        "link_sharpening": accessor.link_sharpening,
        "usage_gradient": accessor.usage_gradient,
    }


def _state(state: CircuitState) -> State:
    """A state as the library takes it."""
    hidden, cell = (getattr(state.controller, name, None) for name in ("hidden", "cell"))
    return State(hidden, cell, state.reads, tuple(state.accessor))


def _parameters(linears: Mapping[str, nn.Linear]) -> dict[str, Tensor]:
    """Weights and biases of layers, by their names."""
    parameters: dict[str, Tensor] = {}
    for name, layer in linears.items():
        parameters[f"{name}.weight"], parameters[f"{name}.bias"] = layer.weight, layer.bias
    return parameters


def _weights(circuit: CircuitView, parameters: Mapping[str, Tensor]) -> Weights:
    """All weights as the library takes them, of one circuit or, stacked, of many members."""
    ends = [f"{part}.{{}}.{name}" for part in ("inputs", "recurrents") for name in ("weight", "bias")]
    layers = (
        Layer(*(parameters.get("controller." + end.format(layer)) for end in ends))  # type: ignore[arg-type]
        for layer in range(circuit.controller.num_layers)
    )
    interface = (parameters[f"accessor.interface.linear.{name}"] for name in ("weight", "bias"))
    return Weights(tuple(layers), *interface)
