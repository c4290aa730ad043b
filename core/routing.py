"""Routing: tasks own units of the hidden layers. Units of a later task may read earlier ones, never the reverse.

The units of a layer lie in the order of the tasks that own them, and :attr:`Layer.shares` says how many are whose. Each
task has a circuit of its own units and all earlier ones, which it runs as any circuit runs: what a task answers
depends on no unit that came after it, in its last bit. Of that circuit,

- what leads from units to its own units belongs to the task,
- what leads from units to earlier units is that of the tasks which own these, without their gradient,
- all else is the task's alone: what inputs and words read lead to, the interface of the memory, the outputs, and what
  the memory begins with.

So no weight is learned by two tasks. A unit is lent to a later task where the similarity of the two tasks is at least
the later one's threshold for that unit. What is not lent is not read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import Self

from .circuit import Circuit
from .structure import FRESH, Change, Layer, LayerEdit, Structure, Wire, follow_units


class Route(nn.Module):
    """What a task has: its circuit, its key, and thresholds at which units of earlier tasks are lent to it."""

    def __init__(self, circuit: Circuit, channels: int, lending: float) -> None:
        """
        Args:
            circuit: of its own units and all earlier ones.
            channels: of the key.
            lending: first threshold of each unit.
        """
        super().__init__()
        self.circuit = circuit
        self.lending = lending
        self.sum: Tensor
        """Of the first inputs of its sequences, ``[channels]``."""
        self.count: Tensor
        """Of these sequences, ``[]``."""
        self.thresholds: Tensor
        """Of each unit of the circuit, layer by layer."""
        self.register_buffer("sum", torch.zeros(channels, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("thresholds", torch.empty(0))
        self.look()
        self.forget_thresholds()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As any module; but the sum stays in float64, in which it is added up, whatever the weights are in."""
        exact = self.sum
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.sum = torch.zeros_like(self.sum, dtype=exact.dtype) if exact.is_meta else exact.to(self.sum.device)
        return self

    def look(self) -> None:
        """Take note of the structure of the circuit, which is asked for at every call."""
        self.structure = self.circuit.structure()
        self.wires = self.circuit.wires(self.structure)

    @property
    def sizes(self) -> list[int]:
        """Units of each hidden layer of the circuit."""
        return [layer.size for layer in self.structure]

    def restructure(self, structure: Structure) -> None:
        """Give the circuit another structure; see :meth:`Circuit.restructure`. Thresholds are the first ones."""
        self.circuit.restructure(structure)
        self.look()
        self.forget_thresholds()

    def forget_thresholds(self) -> None:
        """Give the first threshold to as many units as there are."""
        self.thresholds = self.thresholds.new_full((sum(self.sizes),), self.lending)

    def split_thresholds(self) -> tuple[Tensor, ...]:
        """Those of each layer, as views that can be written to."""
        return self.thresholds.split(self.sizes)

    def edit(
        self, layers: Sequence[LayerEdit], inputs: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Change:
        """Change the circuit; see :meth:`Circuit.edit`. Thresholds follow."""
        before = self.split_thresholds()
        change = self.circuit.edit(layers, inputs, generator)
        self.look()
        self.thresholds = torch.cat(follow_units(change, before, fill=self.lending))
        return change

    def see(self, first: Tensor) -> None:
        """Take the first inputs of some sequences of the task, ``[B, channels]``, into its key."""
        self.sum += first.double().sum(0)
        self.count += len(first)


def similarities(first: Tensor, routes: Sequence[Route]) -> Tensor:
    """Cosine of inputs and the keys of tasks; 0 with the key of a task that was not met.

    Args:
        first: ``[B, channels]``.
        routes: K.

    Returns:
        ``[B, K]`` in float64.
    """
    keys = torch.stack([route.sum for route in routes])
    return functional.normalize(first.double(), dim=-1) @ functional.normalize(keys.double(), dim=-1).T


# ---- shares ----------------------------------------------------------------------------------------------------------


def shared(structures: Sequence[Structure]) -> Structure:
    """The structure of all tasks together, from those of their circuits."""
    found = []
    for layers in zip(*structures, strict=True):
        sizes = [layer.size for layer in layers]
        shares = [now - before for before, now in zip([0, *sizes], sizes, strict=False)]
        found.append(Layer(sizes[-1], layers[-1].residual, tuple(shares)))
    return tuple(found)


def visible(structure: Structure, task: int) -> Structure:
    """The structure of the circuit of a task: of its own units and all earlier ones."""
    return tuple(Layer(sum(layer.shares[: task + 1]), layer.residual) for layer in structure)


def restricted(before: Structure, after: Structure, layers: Sequence[LayerEdit], task: int) -> tuple[LayerEdit, ...]:
    """What a change of all tasks' units is for the circuit of one.

    Args:
        before: the structure of all.
        after: the same after the change.
        layers: the change.
        task: whose circuit is changed.
    """
    found = []
    for edit, now in zip(layers, after, strict=True):
        count = sum(now.shares[: task + 1])
        size = sum(before[max(edit.source, 0)].shares[: task + 1])
        parents = tuple(parent if parent < size else FRESH for parent in edit.parents[:count])
        found.append(LayerEdit(edit.source, edit.units[:count], edit.residual, parents))
    return tuple(found)


def owners(layer: Layer) -> list[int]:
    """Of each unit of a layer the task that owns it."""
    return [task for task, share in enumerate(layer.shares) for _ in range(share)]


def check_shares(before: Structure, after: Structure, layers: Sequence[LayerEdit]) -> None:
    """See that a change leaves each unit to the task that owns it, and each task units.

    Raises:
        ValueError: it does not; names the layer, what was given and what is allowed.
    """
    tasks = len(before[0].shares)
    sources = [edit.source for edit in layers]
    if tasks > 1 and sources != list(range(len(before))):
        raise ValueError(f"layers: got layers {sources}; allowed with {tasks} tasks: {[*range(len(before))]}")
    begin = {edit.begins > 0 for edit in layers}
    for index, (edit, now) in enumerate(zip(layers, after, strict=True)):
        kept = [unit for unit in edit.units if unit != FRESH]
        owned_by = owners(before[max(edit.source, 0)])
        order = [owned_by[unit] for unit in kept]
        if order != sorted(order):
            raise ValueError(f"layers[{index}].units: units of a later task come before those of an earlier one")
        if min(now.shares) < 1 or len(begin) > 1:
            raise ValueError(f"layers[{index}].units: leaves tasks {now.shares} units; allowed is at least one of each")


def own_structure(structure: Structure, task: int) -> Structure:
    """The structure of a circuit of a task's own units alone."""
    return tuple(Layer(layer.shares[task], layer.residual) for layer in structure)


# ---- weights ---------------------------------------------------------------------------------------------------------


def leads_between_units(wire: Wire) -> bool:
    """Whether a Linear leads from units to units, so that its rows belong to the tasks that own these."""
    return wire.layer is not None and wire.below >= 0


def routed_weights(routes: Sequence[Route], task: int) -> dict[str, Tensor]:
    """The weights by which the circuit of a task runs, where they are not its own parameters as they are.

    Args:
        routes: of all tasks.
        task: which of them.

    Returns:
        By the names of the circuit's parameters.
    """
    found: dict[str, Tensor] = {}
    for index in range(task + 1):
        found = _own_upon(found, routes, index)
    return found


def _own_upon(earlier: Mapping[str, Tensor], routes: Sequence[Route], task: int) -> dict[str, Tensor]:
    """Those of a task, from those of the task before it."""
    route = routes[task]
    lent = lending(routes, task)
    found: dict[str, Tensor] = {}
    for wire in route.wires:
        linear: Any = route.circuit.get_submodule(wire.name)
        names = f"{wire.name}.weight", f"{wire.name}.bias"
        weight, bias = linear.weight, linear.bias
        if wire.below >= 0 and not bool(lent[wire.below].all()):
            read = functional.pad(lent[wire.below], (0, weight.shape[1] - len(lent[wire.below])), value=True)
            weight = found[names[0]] = torch.where(read, weight, 0)
        if task and leads_between_units(wire):
            former: Any = routes[task - 1].circuit.get_submodule(wire.name)
            kept = [
                earlier.get(name, getattr(former, part)).detach()
                for name, part in zip(names, ("weight", "bias"), strict=True)
            ]
            kept[0] = functional.pad(kept[0], (0, weight.shape[1] - kept[0].shape[1]))
            for name, old, own in zip(names, kept, (weight, bias), strict=True):
                blocks = old.unflatten(0, (wire.blocks, -1))
                own = own.unflatten(0, (wire.blocks, -1))[:, blocks.shape[1] :]
                found[name] = torch.cat([blocks, own], dim=1).flatten(0, 1)
    return found


def likeness(routes: Sequence[Route], task: int) -> list[Tensor]:
    """How similar a task is to the owners of earlier units: the cosine of their keys; 1 as long as one was not met.

    Args:
        routes: of all tasks.
        task: which of them.

    Returns:
        Of each layer of the task's circuit ``[earlier units]``.
    """
    route = routes[task]
    structure = shared([one.structure for one in routes[: task + 1]])
    if task == 0:
        return [route.thresholds.new_empty(0) for _ in structure]
    alike = similarities(route.sum.unsqueeze(0), routes[:task])[0]
    met = torch.stack([one.count for one in routes[: task + 1]]) > 0
    alike = torch.where(met[:task] & met[task], alike, 1.0).to(route.thresholds.dtype)
    return [alike.repeat_interleave(torch.tensor(layer.shares[:task], device=alike.device)) for layer in structure]


def lending(routes: Sequence[Route], task: int) -> list[Tensor]:
    """Of each layer of a task's circuit which of its units the task may read: its own, and those that are lent to it.

    Args:
        routes: of all tasks.
        task: which of them.

    Returns:
        bool ``[units]`` of each layer.
    """
    return [
        functional.pad(alike >= thresholds[: len(alike)], (0, len(thresholds) - len(alike)), value=True)
        for alike, thresholds in zip(likeness(routes, task), routes[task].split_thresholds(), strict=True)
    ]


@torch.no_grad()
def begin_upon(former: Route, circuit: Circuit, alone: Circuit) -> None:
    """Give the circuit of a task that begins the weights of one of its own units alone, so that it answers like that.

    It reads nothing yet of earlier units, to which inputs lead as they did in the task before.

    Args:
        former: the route of the task before.
        circuit: of all units that the task can read, whose weights are set.
        alone: of its own units.
    """
    wires = {wire.name: wire for wire in former.wires}
    for name, parameter in circuit.named_parameters():
        own: Tensor = alone.get_parameter(name)
        wire = wires.get(name.rpartition(".")[0])
        if wire is None:
            parameter.copy_(own)
            continue
        earlier = former.circuit.get_parameter(name)
        rows = earlier.shape[0] // wire.blocks if wire.layer is not None else 0
        columns = former.sizes[wire.below] if wire.below >= 0 else 0
        blocks = parameter.view(wire.blocks, -1, *parameter.shape[1:])
        blocks.zero_()
        own = own.view(wire.blocks, -1, *own.shape[1:])
        if wire.layer is not None and wire.below < 0:
            blocks[:, :rows] = earlier.view(wire.blocks, rows, *earlier.shape[1:])
        if parameter.dim() == 2:
            blocks[:, rows:, columns:] = own
        else:
            blocks[:, rows:] = own


@torch.no_grad()
def settle(routes: Sequence[Route]) -> None:
    """Write into each circuit's own parameters the weights by which it runs, so that it runs alike without routing."""
    if next(routes[0].circuit.parameters()).is_meta:  # a circuit that is only planned has no weights
        return
    for task, route in enumerate(routes):
        for name, weight in routed_weights(routes, task).items():
            parameter = route.circuit.get_parameter(name)
            if not torch.equal(parameter, weight):  # a gradient may be due of one that stays
                parameter.copy_(weight)


# ---- states ----------------------------------------------------------------------------------------------------------


def resized_state(circuit: Circuit, state: Any, before: Structure, now: Structure) -> Any:
    """A state of a circuit of some units for one of more, whose further units are zero, or of fewer."""
    if before == now:
        return state
    layers = tuple(
        LayerEdit(index, tuple(unit if unit < old.size else FRESH for unit in range(new.size)), new.residual)
        for index, (old, new) in enumerate(zip(before, now, strict=True))
    )
    return circuit.follow(Change(before, layers, {}, {}, {}), state)
