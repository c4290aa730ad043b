"""The strategies: ways to change the structure or the wiring of a circuit, each in place and on its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...circuits.routed import RoutedCircuit
from ...core.circuit import Circuit
from ...core.structure import (
    FRESH,
    Change,
    LayerEdit,
    Structure,
    Wire,
    deepened,
    draw,
    groups,
    narrowed,
    replaced,
    shallower,
    unchanged,
    widened,
)


class Limits(NamedTuple):
    """What strategies keep to."""

    max_layers: int
    max_units: int
    """Of a layer; where tasks own units, of each task."""
    growth: float
    """Share of a layer's units that are added at a time."""
    pruning: float
    """Share of a layer's units that are removed or replaced at a time."""
    rewired: float
    """Share of a layer's connections or thresholds that are changed at a time."""
    min_age: int
    """Steps before a unit may be removed."""


class Subject(NamedTuple):
    """What is changed, and what is known of it. Where tasks own units, one task changes what is its own."""

    circuit: Circuit
    inputs: Tensor
    """Recent ones of the task, ``[T, B, I]``."""
    ages: Sequence[Tensor]
    """Steps since each unit of each layer was added, ``[units]``."""
    limits: Limits
    generator: torch.Generator
    """Of all choices and of fresh weights, on the CPU."""
    task: int = 0
    """Whose units are changed, where tasks own some."""
    connections: Mapping[str, Tensor] = MappingProxyType({})
    """Where weight matrices that are masked have some, bool ``[rows, columns]`` by their names."""

    @property
    def part(self) -> Circuit:
        """The circuit that runs: that of the task, of which the last units are its own, or the circuit itself."""
        if isinstance(self.circuit, RoutedCircuit):
            running: Circuit = self.circuit.routes[self.task].circuit
            return running
        return self.circuit

    @property
    def structure(self) -> Structure:
        """Of the circuit that runs."""
        return self.part.structure()

    @property
    def tasks(self) -> int:
        """How many tasks have units."""
        return len(self.circuit.routes) if isinstance(self.circuit, RoutedCircuit) else 1

    def first(self, layer: int) -> int:
        """The first unit of a layer that is the task's own."""
        return sum(self.circuit.structure()[layer].shares[: self.task])

    def size(self, layer: int) -> int:
        """How many units of a layer are the task's own."""
        return self.structure[layer].size - self.first(layer)

    def free(self, layer: int) -> Tensor:
        """Which units of a layer may go: the task's own, if it lends none to another, bool ``[units]``."""
        free = torch.arange(self.structure[layer].size, device="cpu") >= self.first(layer)
        lends = isinstance(self.circuit, RoutedCircuit) and self.circuit.lends(self.task)
        return torch.zeros_like(free) if lends else free

    def named(self, name: str) -> str:
        """What a parameter of the circuit that runs is called in the whole."""
        return f"routes.{self.task}.circuit.{name}" if isinstance(self.circuit, RoutedCircuit) else name

    def edit(self, layers: Sequence[LayerEdit]) -> Change:
        """Change the circuit, from edits of the circuit that runs."""
        if self.tasks > 1:  # units of later tasks stay
            whole = self.circuit.structure()
            layers = [
                edit._replace(
                    units=edit.units + (later := tuple(range(self.structure[index].size, whole[index].size))),
                    parents=edit.parents and edit.parents + (FRESH,) * len(later),
                )
                for index, edit in enumerate(layers)
            ]
        return self.circuit.edit(layers, self.inputs, self.generator)

    def pick(self, count: int) -> int:
        """One of so many, at random."""
        return int(torch.randint(count, (), generator=self.generator, device="cpu"))


class Done(NamedTuple):
    """What a strategy did."""

    change: Change
    reset: dict[str, Tensor]
    """By the name of a parameter, where it holds other connections now, whose moments mean nothing any more."""


class Strategy(NamedTuple):
    """A way to change a circuit."""

    name: str
    grows: int
    """1 where it adds, -1 where it removes, 0 where sizes stay."""
    possible: Callable[[Subject], bool]
    """Whether the limits leave something to do."""
    apply: Callable[[Subject], Done]
    """Change the circuit in place."""


# ---- what units are worth --------------------------------------------------------------------------------------------


def utilities(circuit: Circuit, inputs: Tensor) -> list[Tensor]:
    """What each unit of each layer contributes: its mean magnitude times the weights by which it is read.

    The contribution utility of continual backprop (Dohare et al. 2024, "Loss of plasticity in deep continual
    learning", Methods), without its average over time.

    Args:
        circuit: whose layers are looked at.
        inputs: recent ones, ``[T, B, I]``.

    Returns:
        ``[units]`` of each layer.
    """
    structure, seen = circuit.structure(), circuit.activity(inputs)
    found = [torch.zeros(layer.size, dtype=torch.float64, device="cpu") for layer in structure]
    for wire in circuit.wires(structure):
        if wire.below >= 0:
            size = structure[wire.below].size
            weight: Any = circuit.get_submodule(wire.name).weight
            read = weight.detach().cpu().double()[:, :size].abs().sum(0)
            found[wire.below] += seen[wire.name][:, :size].abs().mean(0) * read
    return found


def _of_groups(structure: Structure, values: Sequence[Tensor]) -> list[Tensor]:
    """The values of the units of each group: those of its layers added up."""
    return [torch.stack([values[layer] for layer in group]).sum(0) for group in groups(structure)]


def _chosen(subject: Subject, fits: Callable[[int], bool]) -> list[int]:
    """The groups that are changed together: all where layers are of one size, else one of those that fit."""
    sizes = [subject.size(group[0]) for group in groups(subject.structure)]
    fitting = [index for index, size in enumerate(sizes) if fits(size)]
    if subject.circuit.uniform or not fitting:
        return fitting
    return [fitting[subject.pick(len(fitting))]]


def _share(size: int, share: float) -> int:
    return max(1, round(share * size))


# ---- the strategies --------------------------------------------------------------------------------------------------


def _can_add_neuron(subject: Subject) -> bool:
    if any(subject.size(layer) < subject.limits.max_units for layer in range(len(subject.structure))):
        return True
    return _old_enough(subject, subject.limits.pruning) != {}  # at the cap, units are replaced


def _add_neuron(subject: Subject) -> Done:
    """Heirs of the most useful units; at the cap, in the places of the least useful ones."""
    structure, limits = subject.structure, subject.limits
    values = _of_groups(structure, utilities(subject.part, subject.inputs))
    open_groups = _chosen(subject, lambda size: size < limits.max_units)
    if open_groups:
        parents = {}
        for group in open_groups:
            size = subject.size(groups(structure)[group][0])
            count = min(_share(size, limits.growth), limits.max_units - size)
            best = values[group].argsort(descending=True, stable=True).tolist()
            parents[group] = [best[index % size] for index in range(count)]
        edits = widened(structure, parents)
    else:
        heirs = {}
        for group, units in _old_enough(subject, limits.pruning).items():
            best = [unit for unit in values[group].argsort(descending=True, stable=True).tolist() if unit not in units]
            heirs[group] = {unit: best[index % len(best)] for index, unit in enumerate(units)}
        edits = replaced(structure, heirs)
    return Done(subject.edit(edits), {})


def _old_enough(subject: Subject, share: float) -> dict[int, list[int]]:
    """By group, its least useful units that are old enough to go, a share of it that leaves one unit at least."""
    structure, found = subject.structure, {}
    of_groups = [group[0] for group in groups(structure)]
    sizes = [subject.size(layer) for layer in of_groups]
    may_go = []
    for layer in of_groups:
        free = subject.free(layer)
        may_go.append(free & (subject.ages[layer][: len(free)] >= subject.limits.min_age))
    ready = [index for index, units in enumerate(may_go) if sizes[index] > 1 and bool(units.any())]
    if subject.circuit.uniform and len(ready) < len(sizes):
        return {}
    if not subject.circuit.uniform and ready:
        ready = [ready[subject.pick(len(ready))]]
    values = _of_groups(structure, utilities(subject.part, subject.inputs)) if ready else []
    counts = [min(_share(sizes[index], share), sizes[index] - 1, int(may_go[index].sum())) for index in ready]
    for index, own in zip(ready, counts, strict=True):
        order = [unit for unit in values[index].argsort(stable=True).tolist() if bool(may_go[index][unit])]
        found[index] = order[: min(counts) if subject.circuit.uniform else own]
    return found


def _can_remove_neuron(subject: Subject) -> bool:
    return bool(_old_enough(subject, subject.limits.pruning))


def _remove_neuron(subject: Subject) -> Done:
    """Without the least useful units, which those that read them absorb."""
    return Done(subject.edit(narrowed(subject.structure, _old_enough(subject, subject.limits.pruning))), {})


def _can_add_layer(subject: Subject) -> bool:
    return subject.tasks == 1 and len(subject.structure) < subject.limits.max_layers


def _add_layer(subject: Subject) -> Done:
    """A layer upon one of the layers, which changes nothing yet."""
    structure = subject.structure
    edits = deepened(structure, subject.pick(len(structure)), residual=subject.circuit.fresh_residual)
    return Done(subject.edit(edits), {})


def _removable(structure: Structure) -> list[int]:
    """Layers upon which no residual one lies that is not above another layer of its group."""
    alone = [group[0] for group in groups(structure) if len(group) == 1]
    residual = [index for index, layer in enumerate(structure) if layer.residual]
    return sorted([*alone, *residual]) if len(structure) > 1 else []


def _can_remove_layer(subject: Subject) -> bool:
    return subject.tasks == 1 and bool(_removable(subject.structure))


def _remove_layer(subject: Subject) -> Done:
    """Without one of the layers, which those that read it absorb."""
    removable = _removable(subject.structure)
    edits = shallower(subject.structure, removable[subject.pick(len(removable))])
    return Done(subject.edit(edits), {})


def _hidden(subject: Subject) -> list[Wire]:
    """The Linears that lead to units."""
    return [wire for wire in subject.part.wires(subject.structure) if wire.layer is not None]


def _always(subject: Subject) -> bool:
    return True


def _untouched(subject: Subject) -> Change:
    """A change that leaves every size as it is."""
    return subject.circuit.edit(unchanged(subject.circuit.structure()))


def _own_rows(subject: Subject, wire: Wire) -> Tensor:
    """Which rows of a Linear that leads to units belong to the task's own, bool ``[rows]``."""
    assert wire.layer is not None
    return (torch.arange(subject.structure[wire.layer].size, device="cpu") >= subject.first(wire.layer)).repeat(
        wire.blocks
    )


@torch.no_grad()
def _rewire(subject: Subject) -> Done:
    """The weakest connections to hidden units give way to others of random weights.

    A weight of 0 is no connection and stays, whether it is masked, of a unit that is not lent, or yet to be learned.
    """
    change, reset = _untouched(subject), {}
    for wire in _hidden(subject):
        linear: Any = subject.part.get_submodule(wire.name)
        weight = linear.weight
        connected = _own_rows(subject, wire).to(weight.device).unsqueeze(1) & (weight != 0)
        count = min(_share(int(connected.sum()), subject.limits.rewired), int(connected.sum()))
        strength = torch.where(connected, weight.detach().abs(), torch.inf)
        weakest = strength.flatten().topk(count, largest=False).indices
        gone = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
        gone[weakest] = True
        assert wire.layer is not None
        fan = wire.fan(weight.shape[1], subject.structure[wire.layer].size)
        fresh = draw(weight.shape, fan, subject.generator).to(weight)
        name = subject.named(f"{wire.name}.weight")
        if name in subject.connections:
            fresh *= gains(subject.connections[name]).to(fresh)
        weight.copy_(torch.where(gone.view_as(weight), fresh, weight))
        reset[name] = gone.view_as(weight)
    return Done(change, reset)


@torch.no_grad()
def _adjust_thresholds(subject: Subject) -> Done:
    """Units whose thresholds lie furthest from what they get, which hardly ever or always fire, are set to its mean.

    Of gated layers, that is the threshold of the candidate, not of the gates. Where tasks own units, the similarity at
    which some of those of earlier tasks are lent to the task moves as well: see :func:`_adjust_lending`.
    """
    circuit, seen = subject.part, subject.part.activity(subject.inputs)
    change, reset = _untouched(subject), {}
    for wire in _hidden(subject):
        if wire.below == wire.layer:
            continue
        structure = subject.structure
        assert wire.layer is not None
        size = structure[wire.layer].size
        own = slice(wire.quiet * size, (wire.quiet + 1) * size)
        got: Any = 0
        for part in _hidden(subject):
            if part.layer == wire.layer:
                linear: Any = circuit.get_submodule(part.name)
                got = got + seen[part.name] @ linear.weight.cpu().double()[own].T + linear.bias.cpu().double()[own]
        middle = got.mean(0)
        away = middle.abs() / got.std(0, correction=0).clamp(min=1e-6)
        away[: subject.first(wire.layer)] = -1
        furthest = away.topk(_share(subject.size(wire.layer), subject.limits.rewired)).indices
        bias = circuit.get_parameter(f"{wire.name}.bias")
        moved = torch.zeros(len(bias), dtype=torch.bool, device=bias.device)
        moved[own.start + furthest.to(bias.device)] = True
        shift = torch.zeros_like(bias)
        shift[own] = middle.to(bias)
        bias.copy_(torch.where(moved, bias - shift, bias))
        reset[subject.named(f"{wire.name}.bias")] = moved
    if isinstance(subject.circuit, RoutedCircuit) and subject.task:
        reset |= _adjust_lending(subject, subject.circuit)
    return Done(change, reset)


def _adjust_lending(subject: Subject, routed: RoutedCircuit) -> dict[str, Tensor]:
    """Of the units of earlier tasks, the least useful of those lent to the task are taken back, or as many that were
    not are lent to it, which then read nothing of them yet; which of the two is drawn where both can be.

    Returns:
        Where the moments of connections mean nothing any more; see :class:`Done`.
    """
    lent = [units[: subject.first(layer)].cpu() for layer, units in enumerate(routed.lent(subject.task))]
    values = utilities(subject.part, subject.inputs)
    takes_back = bool(subject.pick(2)) if any(map(any, lent)) and not all(map(all, lent)) else any(map(any, lent))
    reset: dict[str, Tensor] = {}
    for layer, units in enumerate(lent):
        could = units if takes_back else ~units
        count = min(_share(len(units), subject.limits.rewired), int(could.sum()))
        if takes_back:
            order = [unit for unit in values[layer].argsort(stable=True).tolist() if unit < len(could) and could[unit]]
        else:
            order = [
                unit
                for unit in torch.randperm(len(could), generator=subject.generator, device="cpu").tolist()
                if could[unit]
            ]
        chosen = torch.zeros(len(units), dtype=torch.bool, device="cpu")
        chosen[order[:count]] = True
        for name, columns in routed.lend(subject.task, layer, chosen, lent=not takes_back).items():
            reset[name] = reset[name] | columns if name in reset else columns
    return reset


STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy("add-neuron", 1, _can_add_neuron, _add_neuron),
        Strategy("remove-neuron", -1, _can_remove_neuron, _remove_neuron),
        Strategy("add-layer", 1, _can_add_layer, _add_layer),
        Strategy("remove-layer", -1, _can_remove_layer, _remove_layer),
        Strategy("rewire-connections", 0, _always, _rewire),
        Strategy("adjust-thresholds", 0, _always, _adjust_thresholds),
    )
}
"""All there are, by name."""


def gains(connected: Tensor) -> Tensor:
    """What makes fresh weights as large as they have to be where most are masked, for inputs of the same variance.

    Args:
        connected: where there are connections, bool ``[rows, columns]``.

    Returns:
        ``[rows, 1]``
    """
    return (connected.shape[1] / connected.sum(1, keepdim=True, dtype=torch.float64).clamp(min=1)).sqrt()


def reset_moments(optimiser: torch.optim.Optimizer, circuit: Circuit, reset: dict[str, Tensor]) -> None:
    """Let an optimiser forget what it has gathered about connections that are others now.

    Args:
        optimiser: of the circuit's parameters.
        circuit: that a strategy has changed.
        reset: see :class:`Done`.
    """
    for name, gone in reset.items():
        parameter = circuit.get_parameter(name)
        for key, value in optimiser.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value[gone] = value[~gone].mean() if "sq" in key and bool((~gone).any()) else 0
