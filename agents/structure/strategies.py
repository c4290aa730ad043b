"""The strategies: ways to change the structure or the wiring of a circuit, each in place and on its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core.circuit import Circuit
from ...core.structure import (
    Change,
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
    """Of a layer."""
    growth: float
    """Share of a layer's units that are added at a time."""
    pruning: float
    """Share of a layer's units that are removed or replaced at a time."""
    rewired: float
    """Share of a layer's connections or thresholds that are changed at a time."""
    min_age: int
    """Steps before a unit may be removed."""


class Subject(NamedTuple):
    """What is changed, and what is known of it."""

    circuit: Circuit
    inputs: Tensor
    """Recent ones, ``[T, B, I]``."""
    ages: Sequence[Tensor]
    """Steps since each unit of each layer was added, ``[units]``."""
    limits: Limits
    generator: torch.Generator
    """Of all choices and of fresh weights, on the CPU."""

    @property
    def structure(self) -> Structure:
        """Of the circuit."""
        return self.circuit.structure()

    def pick(self, count: int) -> int:
        """One of so many, at random."""
        return int(torch.randint(count, (), generator=self.generator))


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
    found = [torch.zeros(layer.size, dtype=torch.float64) for layer in structure]
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
    structure = subject.structure
    sizes = [structure[group[0]].size for group in groups(structure)]
    fitting = [index for index, size in enumerate(sizes) if fits(size)]
    if subject.circuit.uniform or not fitting:
        return fitting
    return [fitting[subject.pick(len(fitting))]]


def _share(size: int, share: float) -> int:
    return max(1, round(share * size))


# ---- the strategies --------------------------------------------------------------------------------------------------


def _can_add_neuron(subject: Subject) -> bool:
    if any(layer.size < subject.limits.max_units for layer in subject.structure):
        return True
    return _old_enough(subject, subject.limits.pruning) != {}  # at the cap, units are replaced


def _add_neuron(subject: Subject) -> Done:
    """Heirs of the most useful units; at the cap, in the places of the least useful ones."""
    structure, limits = subject.structure, subject.limits
    values = _of_groups(structure, utilities(subject.circuit, subject.inputs))
    open_groups = _chosen(subject, lambda size: size < limits.max_units)
    if open_groups:
        parents = {}
        for group in open_groups:
            size = len(values[group])
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
    return Done(subject.circuit.edit(edits, subject.inputs, subject.generator), {})


def _old_enough(subject: Subject, share: float) -> dict[int, list[int]]:
    """By group, its least useful units that are old enough to go, a share of it that leaves one unit at least."""
    structure, found = subject.structure, {}
    ages = [subject.ages[group[0]] for group in groups(structure)]
    ready = [index for index, age in enumerate(ages) if len(age) > 1 and bool((age >= subject.limits.min_age).any())]
    if subject.circuit.uniform and len(ready) < len(ages):
        return {}
    if not subject.circuit.uniform and ready:
        ready = [ready[subject.pick(len(ready))]]
    values = _of_groups(structure, utilities(subject.circuit, subject.inputs)) if ready else []
    counts = [
        min(_share(len(ages[index]), share), len(ages[index]) - 1, int((ages[index] >= subject.limits.min_age).sum()))
        for index in ready
    ]
    for index, own in zip(ready, counts, strict=True):
        order = [
            unit
            for unit in values[index].argsort(stable=True).tolist()
            if int(ages[index][unit]) >= subject.limits.min_age
        ]
        found[index] = order[: min(counts) if subject.circuit.uniform else own]
    return found


def _can_remove_neuron(subject: Subject) -> bool:
    return bool(_old_enough(subject, subject.limits.pruning))


def _remove_neuron(subject: Subject) -> Done:
    """Without the least useful units, which those that read them absorb."""
    edits = narrowed(subject.structure, _old_enough(subject, subject.limits.pruning))
    return Done(subject.circuit.edit(edits, subject.inputs, subject.generator), {})


def _can_add_layer(subject: Subject) -> bool:
    return len(subject.structure) < subject.limits.max_layers


def _add_layer(subject: Subject) -> Done:
    """A layer upon one of the layers, which changes nothing yet."""
    structure = subject.structure
    edits = deepened(structure, subject.pick(len(structure)), residual=subject.circuit.fresh_residual)
    return Done(subject.circuit.edit(edits, subject.inputs, subject.generator), {})


def _removable(structure: Structure) -> list[int]:
    """Layers upon which no residual one lies that is not above another layer of its group."""
    alone = [group[0] for group in groups(structure) if len(group) == 1]
    residual = [index for index, layer in enumerate(structure) if layer.residual]
    return sorted([*alone, *residual]) if len(structure) > 1 else []


def _can_remove_layer(subject: Subject) -> bool:
    return bool(_removable(subject.structure))


def _remove_layer(subject: Subject) -> Done:
    """Without one of the layers, which those that read it absorb."""
    removable = _removable(subject.structure)
    edits = shallower(subject.structure, removable[subject.pick(len(removable))])
    return Done(subject.circuit.edit(edits, subject.inputs, subject.generator), {})


def _hidden(subject: Subject) -> list[Wire]:
    """The Linears that lead to units."""
    return [wire for wire in subject.circuit.wires(subject.structure) if wire.layer is not None]


def _always(subject: Subject) -> bool:
    return True


def _untouched(subject: Subject) -> Change:
    """A change that leaves every size as it is."""
    return subject.circuit.edit(unchanged(subject.structure))


@torch.no_grad()
def _rewire(subject: Subject) -> Done:
    """The weakest connections to hidden units give way to others of random weights."""
    change, reset = _untouched(subject), {}
    for wire in _hidden(subject):
        linear: Any = subject.circuit.get_submodule(wire.name)
        weight = linear.weight
        count = max(1, round(subject.limits.rewired * weight.numel()))
        weakest = weight.detach().abs().flatten().topk(count, largest=False).indices
        gone = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
        gone[weakest] = True
        fresh = draw(weight.shape, weight.shape[1], subject.generator).to(weight)
        weight.copy_(torch.where(gone.view_as(weight), fresh, weight))
        reset[f"{wire.name}.weight"] = gone.view_as(weight)
    return Done(change, reset)


@torch.no_grad()
def _adjust_thresholds(subject: Subject) -> Done:
    """Units whose thresholds lie furthest from what they get, which hardly ever or always fire, are set to its mean.

    Of gated layers, that is the threshold of the candidate, not of the gates.
    """
    circuit, seen = subject.circuit, subject.circuit.activity(subject.inputs)
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
        furthest = away.topk(_share(size, subject.limits.rewired)).indices
        bias = circuit.get_parameter(f"{wire.name}.bias")
        moved = torch.zeros(len(bias), dtype=torch.bool, device=bias.device)
        moved[own.start + furthest.to(bias.device)] = True
        shift = torch.zeros_like(bias)
        shift[own] = middle.to(bias)
        bias.copy_(torch.where(moved, bias - shift, bias))
        reset[f"{wire.name}.bias"] = moved
    return Done(change, reset)


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
