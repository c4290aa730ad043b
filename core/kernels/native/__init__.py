"""The native backend: a whole sequence, forward and backward, in C++ on the CPU; of sparse access, the lookups; of the
delta rule, where no word read is fed back, the rule. Where none is, any controller may drive the heads of an NTM, a
DNC, a stack or a soft tape: it runs first, as it is, and the memory natively after it.

Controller, heads and memory of a row of the batch stay in cache for all time steps. The memory (and the DNC's link
matrix) is stored only every few steps and computed again between, which costs little and saves most of the space.

Results equal those of the eager backend up to rounding, and are finite where those are, for weights, biases, inputs and
states of any size, as long as nothing that the equations and their gradients compute, and no sum of magnitudes within
them, exceeds the type's largest number (3.4e38 in float32). In float32, words and keys must therefore stay below about
1e18, since norms square them. Beyond that, sums meet infinities of both signs in different orders, and one backend may
give a number where the other gives NaN. Gradients agree as well, as long as strengths, sharpness and powers of links
stay below about 1e4: larger ones amplify rounding, which then decides between equal matches, and what is left of
gradients that cancel. Of a DNC's slots that are equal but for rounding another one may be allocated: words then lie
elsewhere in states and traces, and outputs and gradients are the same. Numbers below the smallest normal one (1.2e-38
in float32) may count as 0. Other rows of the batch and other members of a population are never affected.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...controllers.base import Controller
from ...members import map_initial_state
from ...state import CircuitState, leaves
from .. import eager, guard, trial
from ..formulas import Skipped, replaced, stepwise
from . import library
from .delta import delta_rule
from .library import CONTROLLERS, GIVEN, RELU_RNN, Problem
from .nearest import nearest
from .sequence import Layer, State, Weights, make_problem, run_sequence
from .sequence import run_population as run_members
from .step import Step, constants

if TYPE_CHECKING:
    from ..circuit_view import CircuitView

NAMES = {"values": "words", "actions": "moves"}
"""Parts of an interface vector that the library knows by another name."""

ACCESSORS: dict[str, guard.Options] = {
    "static": guard.STATIC,
    "dynamic": guard.DYNAMIC,
    "stack": guard.STACK,
    "soft-tape": guard.SOFT_TAPE,
}
"""What sequences understand."""
STEPS = ("static", "dynamic", "stack")
"""What single steps, and populations, understand of it."""

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
UNDERSTOOD_CONTROLLERS["rnn"] = guard.CONTROLLER | {"nonlinearity": ("tanh", "relu")}
UNDERSTOOD_CONTROLLERS["automaton"] = {
    **{name: guard.CONTROLLER[name] for name in ("input_size", "hidden_size", "clip")},
    "num_states": guard.up_to(library.MOST_STATES),
    "temperature": guard.BOUND,
    "sharpening": guard.BOUND,
    "discrete": guard.SWITCH,
}


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


def _parts(circuit: CircuitView) -> dict[str, int]:
    """Names and sizes of the parts of an interface vector, in order; the words of a soft tape have their own layer."""
    accessor: Any = circuit.accessor
    parts = {NAMES.get(name, name): size for name, size in accessor.interface.sizes.items()}
    return parts | ({"words": math.prod(accessor.read_shape(accessor))} if hasattr(accessor, "layers") else {})


def _unknown_part(circuit: CircuitView) -> str | None:
    accessor: Any = circuit.accessor
    return _unknown(tuple(accessor.interface.sizes))


@functools.cache
def _unknown(names: tuple[str, ...]) -> str | None:
    """Why the library does not know an interface vector with these parts, or None."""
    for name in names:
        if NAMES.get(name, name) not in library.PARTS:
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
    accessor: Any = circuit.accessor
    for linear in _of_interface(accessor):
        if not isinstance(linear, nn.Linear):
            return f"it needs Linear layers, not {type(linear).__name__}"
        if linear._parameters.get("bias") is None:
            return "it needs Linear layers with a bias"
    size = sum(_parts(circuit).values())
    shapes = [("weight of the interface", (size, accessor.hidden_size)), ("bias", (size,))]
    return (
        replaced((accessor.interface, *_of_interface(accessor)))
        or (Skipped("its controller is watched step by step") if stepwise(circuit.controller, Controller) else None)
        or guard.unfit(_joined(_of_interface(accessor)), shapes, inputs)
        or _unknown_part(circuit)
    )


def _of_interface(accessor: Any) -> tuple[Any, ...]:
    """The layers that make the interface vector, each from the hidden vector."""
    return (accessor.interface.linear, *getattr(accessor, "layers", ()))


def _joined(layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor]:
    """Weight and bias of one layer that does what these do side by side."""
    if len(layers) == 1:
        return layers[0].weight, layers[0].bias
    return torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])


def run(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
    """Features ``[T, B, F]`` and the last state; of sparse access and the delta rule only what takes time is native."""
    accessor: Any = circuit.accessor
    if accessor.kind in LOOKUPS or accessor.kind in RULES:
        native = nearest if accessor.kind in LOOKUPS else delta_rule
        begun = accessor.begin(state.accessor, len(inputs), native)
        return eager.run_steps(circuit, inputs, state._replace(accessor=begun))
    if not circuit.read_feedback:
        return _run_memory(circuit, inputs, state)
    known = _known(circuit)
    weights = _own_weights(known)
    given, next_state = _of_accessor(circuit, inputs, state)
    problem = _problem(circuit, known, inputs, weights, state.accessor.memory)
    features, last = run_sequence(_accessor_name(circuit), problem, inputs, weights, _state(state, given))
    carried = (part for part in (last.hidden, last.cell) if part is not None)
    return features, CircuitState(type(state.controller)(*carried), next_state(last.leaves), last.reads)


def _problem(circuit: CircuitView, known: guard.Known, inputs: Tensor, weights: Weights, memory: Tensor) -> Problem:
    """What the library is told of a sequence; put together once for each size, for that takes time, too."""
    accessor: Any = circuit.accessor
    own = (*accessor.interface.sizes.items(), *constants())
    key = (inputs.shape, memory.shape, torch.get_num_threads(), *own)
    made = guard.remembered(known.problems, key, lambda: make_problem(inputs, weights, memory, **_options(circuit)))
    return Problem.from_buffer_copy(made)


def _of_accessor(
    circuit: CircuitView, inputs: Tensor, state: CircuitState
) -> tuple[tuple[Tensor, ...], Callable[[Sequence[Tensor]], Any]]:
    """What the library takes of an accessor's state, and what makes the next one of what it gives back."""
    accessor: Any = circuit.accessor
    if accessor.kind != "soft-tape":
        return tuple(state.accessor), lambda leaves: type(state.accessor)(*leaves)
    jumps, last = accessor.jumps(state.accessor, circuit.ended(inputs), len(inputs))
    memory = state.accessor.memory
    jumps = jumps % memory.shape[-2]  # floats do not hold the count of a long life
    return (memory, jumps.to(inputs)), lambda leaves: last._replace(memory=leaves[0])


def _run_memory(circuit: CircuitView, inputs: Tensor, state: CircuitState) -> tuple[Tensor, CircuitState]:
    """The same where no word is fed back: the controller as it is, over the whole sequence; then the memory."""
    accessor: Any = circuit.accessor
    hidden, controller_state = circuit.controller.run(inputs, state.controller)
    size, words = hidden.shape[-1], math.prod(state.reads.shape[1:])
    handed_on = Layer(
        torch.eye(size, size + words, dtype=hidden.dtype, device="cpu"), hidden.new_zeros(size), None, None
    )
    weights = Weights((handed_on,), *_joined(_of_interface(accessor)))
    options = _memory_options(circuit) | {"controller": GIVEN, "clip": math.inf}
    given, next_state = _of_accessor(circuit, inputs, state)
    problem = make_problem(hidden, weights, state.accessor.memory, **options)
    first = State(None, None, state.reads, given)
    features, last = run_sequence(_accessor_name(circuit), problem, hidden, weights, first)
    return features, CircuitState(controller_state, next_state(last.leaves), last.reads)


def step(
    circuit: CircuitView, x: Tensor, state: CircuitState, checked: bool
) -> tuple[Tensor, CircuitState, Tensor | None] | None:
    """Features ``[B, F]`` of one step, the next state and outputs ``[B, O]``; None where the step must run as it is
    written. Outputs are None where only the output layer must.

    That is where :func:`unavailable` says why, and where a gradient is due: it may be differentiated twice.

    Args:
        circuit: what is run.
        x: ``[B, I]``, or what was given in its place.
        state: likewise.
        checked: whether inputs and state are what the circuit takes. If not, it runs only what ran before.
    """
    if type(x) is not Tensor or not isinstance(state, CircuitState):
        return None
    if circuit.accessor.kind not in STEPS or not circuit.read_feedback:
        return None
    if _unavailable_here(x) is not None or torch._C._len_torch_dispatch_stack():
        return None
    known = _known(circuit)
    key = x.shape, x.dtype, circuit.clip
    found: Step | None = known.steps.get(key)
    if found is not None and (known.changed(circuit) is not None or not found.serves(x, state)):
        found = None
    if found is None and checked and unavailable(circuit, x.unsqueeze(0), state) is None:
        if len(known.steps) >= MOST_STEPS:
            known.steps.clear()
        found = known.steps[key] = Step(circuit, known, _own_weights(known), _options(circuit), x, state)
    if found is None or not found.whole or (torch.is_grad_enabled() and _due(found, x, state)):
        return None
    output = circuit.output
    answers = circuit.plain_answer and found.answers_by(output) and not replaced((output,))
    return found.run(x, state, output if answers else None)


def _due(step: Step, x: Tensor, state: CircuitState) -> bool:
    """Whether a gradient may be asked for."""
    return any(tensor.requires_grad for tensor in (x, *leaves(state), *step.parameters))


def population_unavailable(circuit: CircuitView, parameters: Mapping[str, Tensor], inputs: Tensor) -> str | None:
    """Why the native backend cannot run a population with these stacked parameters, or None."""
    output: Any = circuit.output
    known = _known(circuit)
    reason = _unavailable_here(inputs) or known.changed(circuit) or _unknown_part(circuit) or replaced((output,))
    if reason is None and circuit.accessor.kind not in STEPS:
        reason = f"it runs no populations with a {type(circuit.accessor).__name__}"
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
    first = _state(start, tuple(start.accessor))
    weights = _weights(circuit, parameters)
    problem = make_problem(inputs, weights, start.accessor.memory, **_options(circuit))
    output = (parameters["output.weight"], parameters["output.bias"])
    return run_members(_accessor_name(circuit), problem, inputs, weights, *output, first)


def _accessor_name(circuit: CircuitView) -> str:
    return str(circuit.accessor.kind).replace("-", "_")


def _options(circuit: CircuitView) -> dict[str, Any]:
    """Fields of :class:`~.library.Problem` that are not sizes."""
    controller: Any = circuit.controller
    clip = math.inf if controller.clip is None else controller.clip
    number = RELU_RNN if getattr(controller, "nonlinearity", "tanh") == "relu" else CONTROLLERS[controller.kind]
    options = _memory_options(circuit) | {"controller": number, "clip": clip}
    options["output_clip"] = math.inf if circuit.clip is None else circuit.clip
    if controller.kind == "automaton":
        sharpening = math.inf if controller.discrete else controller.sharpening
        options |= {"states": controller.num_states, "temperature": controller.temperature, "sharpening": sharpening}
    return options


def _memory_options(circuit: CircuitView) -> dict[str, Any]:
    """Those of them that belong to the memory and its heads."""
    accessor: Any = circuit.accessor
    options = {
        "reads": accessor.read_shape(accessor)[0],
        "places": library.places(*_parts(circuit).items()),
        **dict(zip(("norm_epsilon", "usage_epsilon", "sharpen_epsilon", "mask_min"), constants(), strict=True)),
    }
    if accessor.kind in ("stack", "soft-tape"):
        return options | {"keep_every": 1}
    options |= {"writes": accessor.num_writes, "masked_content": accessor.masked_content}
    if accessor.kind == "static":
        return options | {"shift_range": accessor.shift_range}
    return options | {
        "squash": accessor.squash == "tanh",
        "memory_wipe": accessor.memory_wipe,
        "link_sharpening": accessor.link_sharpening,
        "usage_gradient": accessor.usage_gradient,
    }


def _state(state: CircuitState, of_accessor: tuple[Tensor, ...]) -> State:
    """A state as the library takes it."""
    hidden, cell = (getattr(state.controller, name, None) for name in ("hidden", "cell"))
    return State(hidden, cell, state.reads, of_accessor)


def _named(known: guard.Known) -> dict[str, Tensor]:
    """The parameters of controller and interface, by their names in the circuit."""
    names = (f"{name}.{part}" for name in known.layers for part in ("weight", "bias"))
    return dict(zip(names, known.parameters(), strict=True))


def _own_weights(known: guard.Known) -> Weights:
    """All weights of a circuit as the library takes them."""
    flat = known.parameters()
    inputs, recurrents, interface = [], [], []
    for name, *layer in zip(known.layers, flat[::2], flat[1::2], strict=True):
        if name.startswith("controller.inputs"):
            inputs.append(layer)
        elif name.startswith("controller.recurrents"):
            recurrents.append(layer)
        else:
            interface.append(layer)
    without: list[Any] = [(None, None)] * len(inputs)
    layers = (Layer(*below, *own) for below, own in zip(inputs, recurrents or without, strict=True))
    joined = interface[0] if len(interface) == 1 else map(torch.cat, zip(*interface, strict=True))
    return Weights(tuple(layers), *joined)


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
