"""The native backend: a whole sequence, forward and backward, in C++ on the CPU; of sparse access, the lookups; of the
delta rule, where no word read is fed back, the rule. Where none is, any controller may drive the heads of an NTM or a
DNC: it runs first, as it is, and the memory natively after it.

Controller, heads and memory of a row of the batch stay in cache for all time steps. The memory (and the DNC's link
matrix) is stored only every few steps and computed again between, which costs little and saves most of the space.

Results equal those of the eager backend up to rounding, and are finite where those are, for weights, biases, inputs and
states of any size, as long as nothing that the equations and their gradients compute, and no sum of magnitudes within
them, exceeds the type's largest number (3.4e38 in float32). In float32, words and keys must therefore stay below about
1e18, since norms square them. Beyond that, sums meet infinities of both signs in different orders, and one backend may
give a number where the other gives NaN. Gradients agree as well, as long as strengths, sharpness and powers of links
stay below about 1e4: larger ones amplify rounding, which then decides between equal matches, and what is left of
gradients that cancel. Numbers below the smallest normal one (1.2e-38 in float32) may count as 0. Other rows of the
batch and other members of a population are never affected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ... import addressing, interface
from ...controllers.feedforward import FeedForwardState
from ...controllers.gru import GRUState
from ...controllers.lstm import LSTMState
from ...members import map_initial_state
from ...state import CircuitState, leaves
from .. import eager, guard, trial
from ..formulas import Skipped, hooked, replaced
from . import library
from .delta import delta_rule
from .nearest import nearest
from .sequence import Layer, State, Weights, make_problem, run_sequence
from .sequence import run_population as run_members
from .step import Step

if TYPE_CHECKING:
    from ..circuit_view import CircuitView

CONTROLLERS = {"lstm": 0, "gru": 1, "feedforward": 2}
"""The number of each controller in source/controller.h."""
GIVEN = 3
"""There, that of hidden vectors which a controller made before."""

ACCESSORS: dict[str, guard.Options] = {"static": guard.STATIC, "dynamic": guard.DYNAMIC}
"""What sequences understand."""

LOOKUPS: dict[str, guard.Options] = {
    "sparse": guard.ACCESSOR
    | {"slots_per_read": guard.SIZE, "links_per_slot": guard.SIZE, "masked_content": guard.SWITCH}
}
"""What lookups in a sparse memory understand."""

RULES: dict[str, guard.Options] = {"delta": guard.DELTA}
"""What rules of fast weights understand."""

MOST_STEPS = 8
"""Shapes of single steps that are remembered of a circuit, each with its scratch space."""

UNDERSTOOD_CONTROLLERS = dict.fromkeys(CONTROLLERS, guard.CONTROLLER)


def unavailable(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> str | None:
    """Why the native backend cannot run these inputs, or None."""
    reason = _unavailable_here(inputs)  # first: what is found out about a circuit is not for torch to record
    if reason is not None:
        return reason
    if circuit.accessor.kind in LOOKUPS:
        known = guard.known("lookups", circuit, LOOKUPS, None)
        reason = _unavailable_lookups(circuit, known, inputs, state)
    elif circuit.accessor.kind in RULES:
        known = guard.known("rules", circuit, RULES, None)
        reason = _unavailable_rule(circuit, known, inputs, state)
    elif not circuit.read_feedback:
        known = guard.known("memory alone", circuit, ACCESSORS, None)
        reason = _unavailable_memory(circuit, known, inputs, state)
    else:
        known = _known(circuit)
        reason = known.unavailable(circuit, inputs, state) or _unknown_part(circuit)
    return reason or _library_reason() or trial.mistrusted("native", library.identity, run, circuit, known, inputs)


def _unknown_part(circuit: CircuitView) -> str | None:
    accessor: Any = circuit.accessor
    for name in accessor.interface.sizes:
        if name not in library.PARTS:
            return f"it does not know the part {name!r} of the interface vector"
    return None


def _known(circuit: CircuitView) -> guard.Known:
    return guard.known("native", circuit, ACCESSORS, UNDERSTOOD_CONTROLLERS)


def _unavailable_here(inputs: Tensor) -> str | None:
    if not inputs.is_cpu:
        return f"it runs on the CPU; inputs are on {inputs.device}"
    return guard.unavailable_here(inputs.device)


def _library_reason() -> str | None:
    loaded = library.load()
    return loaded if isinstance(loaded, str) else None


def _unavailable_lookups(circuit: CircuitView, known: guard.Known, inputs: Tensor, state: CircuitState) -> str | None:
    accessor: Any = circuit.accessor
    reason = eager.recorded(circuit, inputs, state) or known.changed_parts()
    if reason is None and accessor.masked_content:
        reason = "it has no masked lookups in a sparse memory"
    memory = state.accessor.memory
    return reason or guard.unfit([memory], [("memory", tuple(memory.shape))], inputs)


def _unavailable_rule(circuit: CircuitView, known: guard.Known, inputs: Tensor, state: CircuitState) -> str | None:
    accessor: Any = circuit.accessor
    if circuit.read_feedback:
        return "it runs the delta rule over whole sequences, where no word read is fed back"
    reason = eager.recorded(circuit, inputs, state) or known.changed_parts()
    shape = (inputs.shape[1], accessor.num_heads, accessor.key_size, accessor.value_size)
    return reason or guard.unfit([state.accessor.memory], [("memory", shape)], inputs)


def _unavailable_memory(circuit: CircuitView, known: guard.Known, inputs: Tensor, state: CircuitState) -> str | None:
    """Why a memory whose words are not fed back cannot run natively after its controller, or None."""
    reason = eager.recorded(circuit, inputs, state) or known.unavailable(circuit, inputs, state)
    if reason is not None:
        return reason
    interface: Any = circuit.accessor.interface
    linear = interface.linear
    if not isinstance(linear, nn.Linear):
        return f"it needs Linear layers, not {type(linear).__name__}"
    shapes = [("weight of the interface", (interface.size, circuit.accessor.hidden_size)), ("bias", (interface.size,))]
    return (
        replaced((interface, linear))
        or (Skipped("its controller is watched step by step") if hooked(circuit.controller) else None)
        or guard.unfit([linear.weight, linear.bias], shapes, inputs)
        or _unknown_part(circuit)
    )


def run(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
    """Features ``[T, B, F]`` and the last state; of sparse access and the delta rule only what takes time is native."""
    accessor: Any = circuit.accessor
    if accessor.kind in LOOKUPS or accessor.kind in RULES:
        native = nearest if accessor.kind in LOOKUPS else delta_rule
        begun = accessor.begin(state.accessor, len(inputs), native)
        return eager.run_steps(circuit, inputs, state._replace(accessor=begun))
    if not circuit.read_feedback:
        return _run_memory(circuit, inputs, state)
    weights = _own_weights(_known(circuit))
    first = _state(state)
    problem = make_problem(inputs, weights, state.accessor.memory, **_options(circuit))
    features, last = run_sequence(_accessor_name(circuit), problem, inputs, weights, first)
    controller_state: LSTMState | GRUState | FeedForwardState = FeedForwardState()
    if last.hidden is not None and last.cell is not None:
        controller_state = LSTMState(last.hidden, last.cell)
    elif last.hidden is not None:
        controller_state = GRUState(last.hidden)
    return features, CircuitState(controller_state, type(state.accessor)(*last.leaves), last.reads)


def _run_memory(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
    """The same where no word is fed back: the controller as it is, over the whole sequence; then the memory."""
    accessor: Any = circuit.accessor
    hidden, controller_state = circuit.controller.run(inputs, state.controller)
    size, words = hidden.shape[-1], math.prod(state.reads.shape[1:])
    handed_on = Layer(torch.eye(size, size + words, dtype=hidden.dtype), hidden.new_zeros(size), None, None)
    weights = Weights((handed_on,), accessor.interface.linear.weight, accessor.interface.linear.bias)
    options = _memory_options(circuit) | {"controller": GIVEN, "clip": math.inf}
    problem = make_problem(hidden, weights, state.accessor.memory, **options)
    first = State(None, None, state.reads, tuple(state.accessor))
    features, last = run_sequence(_accessor_name(circuit), problem, hidden, weights, first)
    return features, CircuitState(controller_state, type(state.accessor)(*last.leaves), last.reads)


def step(circuit: CircuitView, x: Tensor, state: CircuitState, checked: bool) -> tuple[Tensor, CircuitState] | None:
    """Features ``[B, F]`` of one step and the next state; None where the step must run as it is written.

    That is where :func:`unavailable` says why, and where a gradient is due: it may be differentiated twice.

    Args:
        circuit: what is run.
        x: ``[B, I]``, or what was given in its place.
        state: likewise.
        checked: whether inputs and state are what the circuit takes. If not, it runs only what ran before.
    """
    if type(x) is not Tensor or not isinstance(state, CircuitState):
        return None
    if circuit.accessor.kind not in ACCESSORS or not circuit.read_feedback:
        return None
    if _unavailable_here(x) is not None or torch._C._len_torch_dispatch_stack():
        return None
    known = _known(circuit)
    key = x.shape, x.dtype
    found: Step | None = known.steps.get(key)
    if found is not None and (known.changed(circuit) is not None or not found.serves(x, state)):
        found = None
    if found is None and checked and unavailable(circuit, x.unsqueeze(0), state) is None:
        if len(known.steps) >= MOST_STEPS:
            known.steps.clear()
        found = known.steps[key] = Step(circuit, known, _own_weights(known), _options(circuit), x, state)
    if found is None or not found.whole or (torch.is_grad_enabled() and _due(found, x, state)):
        return None
    return found.run(x, state)


def _due(step: Step, x: Tensor, state: CircuitState) -> bool:
    """Whether a gradient may be asked for."""
    return any(tensor.requires_grad for tensor in (x, *leaves(state), *step.parameters))


def population_unavailable(circuit: CircuitView, parameters: Mapping[str, Tensor], inputs: Tensor) -> str | None:
    """Why the native backend cannot run a population with these stacked parameters, or None."""
    output: Any = circuit.output
    known = _known(circuit)
    reason = _unavailable_here(inputs) or known.changed(circuit) or _unknown_part(circuit) or replaced((output,))
    if reason is None and not isinstance(output, nn.Linear):
        reason = f"it needs a Linear layer for the outputs, not {type(output).__name__}"
    if reason is not None:
        return reason
    own = {**_named(known), "output.weight": output.weight, "output.bias": output.bias}
    return (
        guard.unfit_population(circuit, own, parameters, inputs)
        or _library_reason()
        or trial.mistrusted_population("native", library.identity, run_population, circuit, known, inputs)
    )


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
    return str(circuit.accessor.kind)


def _options(circuit: CircuitView) -> dict[str, Any]:
    """Fields of :class:`~.library.Problem` that are not sizes."""
    controller: Any = circuit.controller
    clip = math.inf if controller.clip is None else controller.clip
    return _memory_options(circuit) | {"controller": CONTROLLERS[controller.kind], "clip": clip}


def _memory_options(circuit: CircuitView) -> dict[str, Any]:
    """Those of them that belong to the memory and its heads."""
    accessor: Any = circuit.accessor
    options = {
        "reads": accessor.num_reads,
        "writes": accessor.num_writes,
        "masked_content": accessor.masked_content,
        "places": library.places(*accessor.interface.sizes.items()),
        "norm_epsilon": addressing.NORM_EPSILON,
        "usage_epsilon": addressing.USAGE_EPSILON,
        "sharpen_epsilon": addressing.SHARPEN_EPSILON,
        "mask_min": interface.MASK_MIN,
    }
    if accessor.kind == "static":
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


def _named(known: guard.Known) -> dict[str, Tensor]:
    """The parameters of controller and interface, by their names in the circuit."""
    names = (f"{name}.{part}" for name in known.layers for part in ("weight", "bias"))
    return dict(zip(names, known.parameters(), strict=True))


def _own_weights(known: guard.Known) -> Weights:
    """All weights of a circuit as the library takes them."""
    flat = known.parameters()
    inputs, recurrents, interface = [], [], (flat[-2], flat[-1])
    for name, *layer in zip(known.layers, flat[::2], flat[1::2], strict=True):
        if name.startswith("controller.inputs"):
            inputs.append(layer)
        elif name.startswith("controller.recurrents"):
            recurrents.append(layer)
    without: list[Any] = [(None, None)] * len(inputs)
    layers = (Layer(*below, *own) for below, own in zip(inputs, recurrents or without, strict=True))
    return Weights(tuple(layers), *interface)


def _weights(circuit: CircuitView, parameters: Mapping[str, Tensor]) -> Weights:
    """All weights as the library takes them, of one circuit or, stacked, of many members."""
    controller: Any = circuit.controller
    ends = [f"{part}.{{}}.{name}" for part in ("inputs", "recurrents") for name in ("weight", "bias")]
    layers = (
        Layer(*(parameters.get("controller." + end.format(layer)) for end in ends))  # type: ignore[arg-type]
        for layer in range(controller.num_layers)
    )
    interface = (parameters[f"accessor.interface.linear.{name}"] for name in ("weight", "bias"))
    return Weights(tuple(layers), *interface)
