"""Why kernels cannot run a circuit: one guard for all backends that have kernels.

A backend says what it understands: for each kind of accessor and of controller, the options that it knows, each with
the values that it knows. A part with another option or another value runs eagerly.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container, Iterable, Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ..state import CircuitState
from .formulas import Skipped, edited, replaced
from .transforms import in_memory, transform

if TYPE_CHECKING:
    from .circuit_view import CircuitView

Made = TypeVar("Made")

Options = dict[str, Container[Any]]
"""Options by name, with the values of each that are known."""

GATES = {"lstm": 4, "gru": 3, "feedforward": 1, "rnn": 1}
"""Blocks of rows, of ``hidden_size`` each, in the weights of a controller's layer."""


def layer_sizes(kind: str, hidden: int, states: int) -> tuple[int, int, int]:
    """Rows of the input's weight of a controller's layer, and rows and columns of the recurrent one.

    Args:
        kind: of controller.
        hidden: its ``hidden_size``.
        states: of an automaton, the states among them.
    """
    if kind == "automaton":
        units = hidden - states
        return units + states**2, units, states
    rows = GATES[kind] * hidden
    return rows, rows, hidden


class _Anything(Container[Any]):
    def __contains__(self, value: object) -> bool:
        return True


class _Bound(Container[Any]):
    def __contains__(self, value: object) -> bool:
        return value is None or type(value) in (int, float)


def up_to(largest: int) -> Container[Any]:
    """Whole numbers from 0 on."""
    return range(largest + 1)


SIZE = up_to(2**31)
SWITCH = (False, True)
BOUND = _Bound()
"""A number or None."""
NOT_OURS = _Anything()
"""Any value: it matters only before a sequence begins."""

CONTROLLER: Options = {"input_size": SIZE, "hidden_size": SIZE, "num_layers": SIZE, "clip": BOUND, "dropout": (0.0,)}
ACCESSOR: Options = dict.fromkeys(("hidden_size", "memory_size", "word_size", "num_reads", "num_writes"), SIZE)
STATIC: Options = ACCESSOR | {
    "shift_range": SIZE,
    "masked_content": SWITCH,
    **dict.fromkeys(("memory_init", "weight_init", "head_init"), NOT_OURS),
}
DYNAMIC: Options = ACCESSOR | {
    "squash": ("none", "tanh"),
    **dict.fromkeys(("masked_content", "memory_wipe", "link_sharpening", "usage_gradient"), SWITCH),
}
STACK: Options = dict.fromkeys(("hidden_size", "memory_size", "word_size", "num_stacks"), SIZE)
SOFT_TAPE: Options = {
    **dict.fromkeys(("hidden_size", "memory_size", "word_size", "num_tapes"), SIZE),
    "write_layers": ([],),
    "gated_write": SWITCH,
}
DELTA: Options = {
    **dict.fromkeys(("hidden_size", "num_heads", "key_size", "value_size", "num_rules"), SIZE),
    **dict.fromkeys(("decay", "negative_eigenvalues"), SWITCH),
    "chunk_size": NOT_OURS,
}


COUNTS = ("input_length", "input_ended")
"""Parts of a state that kernels do not read: what follows from them is given to them."""


def ununderstood(part: Any, understood: Mapping[str, Options]) -> str | None:
    """Why kernels do not understand an accessor or a controller, or None.

    Args:
        part: tells its kind and its specification.
        understood: options by kind.
    """
    options = understood.get(part.kind)
    if options is None:
        return f"it has no {type(part).__name__}"
    for name, value in part.specification().items():
        known = options.get(name)
        if known is None:
            return Skipped(f"it does not know the option {name} of {type(part).__name__}")
        try:
            if value in known:
                continue
        except (TypeError, RuntimeError, ValueError):  # compares in a way of its own
            pass
        if isinstance(known, range) and type(value) is int and value > known[-1]:
            return f"its kernels take {name} up to {known[-1]}; this circuit has {value}"
        return Skipped(f"it does not know {name}={value!r} of {type(part).__name__}")
    return None


MOST_SIZES = 64
"""Sizes of sequences of which something is remembered of a circuit."""


def remembered(kept: dict[Any, Made], key: Any, make: Callable[[], Made]) -> Made:
    """What was made for a key, made once; before there are too many keys all are forgotten."""
    if key not in kept:
        if len(kept) >= MOST_SIZES:
            kept.clear()
        kept[key] = make()
    return kept[key]


class Known:
    """What kernels need to know about a circuit; valid until its parts or their options change."""

    def __init__(
        self, circuit: CircuitView, accessors: Mapping[str, Options], controllers: Mapping[str, Options] | None
    ) -> None:
        """
        Args:
            circuit: that kernels are to run.
            accessors: what kernels understand.
            controllers: what kernels understand; None: the controller and the interface run as they are.
        """
        controller: Any = circuit.controller
        accessor: Any = circuit.accessor
        self.layers: dict[str, nn.Module] = {}
        """The layers of controller and interface that kernels compute, by their names in the circuit."""
        self.modules: tuple[nn.Module, ...] = (accessor,)
        """All modules whose work kernels do."""
        self.reason = ununderstood(accessor, accessors)
        if controllers is not None:
            self.reason = ununderstood(controller, controllers) or self.reason
            if not circuit.read_feedback:
                self.reason = "it feeds the words read back to the controller, which this circuit does not"
        if controllers is not None and self.reason is None:
            recurrents = getattr(controller, "recurrents", ())
            self.layers = {f"controller.inputs.{index}": layer for index, layer in enumerate(controller.inputs)}
            self.layers |= {f"controller.recurrents.{index}": layer for index, layer in enumerate(recurrents)}
            self.layers["accessor.interface.linear"] = accessor.interface.linear
            words = getattr(accessor, "layers", ())
            self.layers |= {f"accessor.layers.{index}": layer for index, layer in enumerate(words)}
            self.modules = (controller, accessor, accessor.interface, *self.layers.values())
            strange = [layer for layer in self.layers.values() if not isinstance(layer, nn.Linear)]
            if strange:
                self.reason = f"it needs Linear layers, not {type(strange[0]).__name__}"
        self.verdicts: dict[Any, Any] = {}
        """What :mod:`.trial` found out about such a circuit, by way, type and device."""
        self.steps: dict[Any, Any] = {}
        """What the native backend found out about single steps, by shape and type of their inputs."""
        self.problems: dict[Any, Any] = {}
        """What it tells its library of sequences, by their sizes."""
        owners = [cast("nn.Module", circuit), *controller.modules(), *accessor.modules()]
        self._children = [(owner._modules, dict(owner._modules)) for owner in owners]
        self._options = []
        for part in (controller, accessor):
            # A specification may depend on whether it trains, as that of a controller with dropout.
            own = vars(part)
            values = itemgetter("training", *(name for name in part.specification() if name in own))
            self._options.append((own, values, values(own)))
        self._shapes: dict[Any, list[tuple[str, tuple[int, ...]]]] = {}

    def holds(self) -> bool:
        """Whether the circuit has the same parts still, with the same options."""
        if self.reason is not None:
            return False
        for now, then in self._children:
            if now != then:
                return False
        try:
            for own, values, then in self._options:
                if values(own) != then:
                    return False
        except KeyError:  # it has lost one of them
            return False
        return True

    def parameters(self) -> list[Tensor]:
        """Weight and bias of each layer."""
        found: list[Any] = []
        for layer in self.layers.values():
            own = layer._parameters  # at once; what is computed anew (a replica's, a parametrised one) is not there
            found += (own["weight"], own["bias"]) if "weight" in own and "bias" in own else (layer.weight, layer.bias)
        return found

    def shapes(self, circuit: CircuitView, inputs: Tensor, state: CircuitState) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes of inputs, state and parameters, in the order of :func:`unfit`."""
        memory = state.accessor.memory
        key = (inputs.shape, memory.shape)
        return remembered(self._shapes, key, lambda: self._find_shapes(circuit, inputs, state))

    def _find_shapes(self, circuit: CircuitView, inputs: Tensor, state: CircuitState) -> Any:
        controller: Any = circuit.controller
        accessor: Any = circuit.accessor
        steps, batch, _ = inputs.shape
        (reads, word), writes = accessor.read_shape(accessor), getattr(accessor, "num_writes", 0)
        hidden = controller.hidden_size
        # Heads share a memory, or each has its own.
        of_one = (batch,) if writes else (batch, reads)
        slots = state.accessor.memory.shape[-2] if state.accessor.memory.dim() == len(of_one) + 2 else 0
        of_state: dict[str, tuple[int, ...]] = {
            "memory": (*of_one, slots, word),
            "usage": (batch, slots),
            "link": (batch, writes, slots, slots),
            "precedence": (batch, writes, slots),
            "read_weights": (batch, reads, slots),
            "write_weights": (batch, writes, slots),
        }
        shapes: list[tuple[str, tuple[int, ...]]] = [
            ("inputs", (steps, batch, circuit.vector_size)),
            ("reads", (batch, reads, word)),
        ]
        shapes += [(name, of_state[name]) for name in state.accessor._fields if name not in COUNTS]
        if self.layers:
            shapes += [(name, (batch, controller.num_layers, hidden)) for name in state.controller._fields]
        if self.layers:
            of_inputs, *of_recurrents = layer_sizes(controller.kind, hidden, getattr(controller, "num_states", 0))
        for name in self.layers:
            if name.startswith("controller.recurrents"):
                rows, columns = of_recurrents
            elif name.startswith("controller.inputs"):
                first = name == "controller.inputs.0"
                rows, columns = of_inputs, circuit.vector_size + reads * word if first else hidden
            else:
                rows = accessor.interface.size if name == "accessor.interface.linear" else reads * word
                columns = hidden
            shapes += [(f"weight of {name}", (rows, columns)), (f"bias of {name}", (rows,))]
        return shapes

    def unavailable(self, circuit: CircuitView, inputs: Tensor, state: CircuitState) -> str | None:
        """Why kernels cannot run these inputs, or None."""
        return self.changed(circuit) or self.unfit(circuit, inputs, state)

    def changed(self, circuit: CircuitView) -> str | None:
        """Why kernels do not understand the circuit, or which part of it was replaced, or None."""
        if self.reason is None and circuit.changed_transition:
            return Skipped(f"it would skip the transition of {type(circuit).__name__}")
        return self.changed_parts()

    def changed_parts(self) -> str | None:
        """The same for :attr:`modules` alone, of a circuit whose transition runs as it is."""
        return self.reason or edited() or replaced(self.modules)

    def unfit(self, circuit: CircuitView, inputs: Tensor, state: CircuitState) -> str | None:
        """Why kernels cannot read the tensors of a sequence, or None."""
        leaves = zip(state.accessor._fields, state.accessor, strict=True)
        tensors = [inputs, state.reads, *(leaf for name, leaf in leaves if name not in COUNTS)]
        if self.layers:
            tensors += (*state.controller, *self.parameters())
        return unfit(tensors, self.shapes(circuit, inputs, state), inputs)


_known: weakref.WeakKeyDictionary[Any, dict[str, Known]] = weakref.WeakKeyDictionary()


def known(
    backend: str, circuit: CircuitView, accessors: Mapping[str, Options], controllers: Mapping[str, Options] | None
) -> Known:
    """The :class:`Known` of a circuit and a backend, made anew when the circuit has changed."""
    found = _known.get(circuit)
    if found is None:
        found = _known[circuit] = {}
    if backend not in found or not found[backend].holds():
        found[backend] = Known(circuit, accessors, controllers)
    return found[backend]


def unavailable_here(device: torch.device) -> str | None:
    """Why kernels cannot run at this moment, or None."""
    return transform() or ("it has no autocast" if torch.is_autocast_enabled(device.type) else None)


def unfit_population(
    circuit: CircuitView, own: Mapping[str, Tensor], parameters: Mapping[str, Tensor], inputs: Tensor
) -> str | None:
    """Why kernels cannot read the parameters of a population and its inputs, or None.

    Args:
        circuit: what each member is.
        own: parameters of the circuit, ``S`` by name.
        parameters: of its members, ``[P, *S]`` by name.
        inputs: ``[T, B, I]``.
    """
    if circuit.embedding is not None:
        return "each member embeds the inputs in its own way"
    missing = next((name for name, parameter in own.items() if parameter is None), None)
    if missing is not None:
        return f"it needs {missing}, which this circuit does not have"
    members = len(next(iter(parameters.values())))
    shapes = [(name, (members, *parameter.shape)) for name, parameter in own.items()]
    shapes.append(("inputs", (*inputs.shape[:2], circuit.input_size)))
    return unfit([*(parameters[name] for name in own), inputs], shapes, inputs)


def unfit(tensors: Iterable[Tensor], shapes: Iterable[tuple[str, tuple[int, ...]]], inputs: Tensor) -> str | None:
    """Why kernels cannot read these tensors, or None; they take an address and check nothing themselves.

    Args:
        tensors: what they are given.
        shapes: the name of each, and the shape that it must have.
        inputs: whose type and device all must have.
    """
    dtype, device = inputs.dtype, inputs.device
    if dtype not in (torch.float32, torch.float64):
        return f"it runs float32 or float64; inputs are {dtype}"
    for tensor, (name, shape) in zip(tensors, shapes, strict=True):
        if type(tensor) not in (Tensor, nn.Parameter):
            return f"{name} is a {type(tensor).__name__}, not a plain tensor"
        if tensor.dtype is not dtype:
            return f"it runs float32 or float64 throughout; inputs are {dtype}, {name} is {tensor.dtype}"
        if tensor.device != device:
            return f"inputs are on {device}, {name} is on {tensor.device}"
        if not in_memory(tensor):
            return f"it has no rule for torch.func transforms and tensors that are not dense, as {name} is"
        if tensor.is_neg():
            return f"it does not know torch's negative bit, which {name} has"
        if tensor.shape != shape or 0 in shape:
            return f"{name} has shape {list(tensor.shape)}; expected {list(shape)}"
    return None
