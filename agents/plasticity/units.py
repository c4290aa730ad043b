"""Units: what the hidden layers of a circuit give, how much is made of it, and how a unit is made new."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...core.circuit import Circuit
from ...core.distributed import Processes
from ...core.structure import Wire, draw, groups
from ..structure.strategies import gains, reset_moments


class Activity(NamedTuple):
    """What the layers of a circuit gave over a batch, all steps of all sequences alike."""

    magnitudes: list[Tensor]
    """The mean magnitude of each unit of each layer, ``[units]``."""
    means: list[Tensor]
    """The mean of each unit of each layer, ``[units]``."""

    def shared(self, rows: int, processes: Processes) -> Activity:
        """That over the shares of all processes.

        Args:
            rows: steps of sequences of this process's share.
            processes: that share the batch.
        """
        if processes.size == 1:
            return self
        sums = [part * rows for part in (*self.magnitudes, *self.means)]
        count = sums[0].new_tensor([float(rows)])
        processes.add_up([*sums, count])
        parts = [part / count for part in sums]
        return Activity(parts[: len(self.magnitudes)], parts[len(self.magnitudes) :])


class Group(NamedTuple):
    """Layers that have their units in common: one, and the residual ones upon it."""

    layers: tuple[int, ...]
    size: int
    """Units."""
    into: tuple[Wire, ...]
    """The Linears that lead to the units."""
    out: tuple[Wire, ...]
    """The Linears that read them."""


def groups_of(circuit: Circuit) -> list[Group]:
    """The groups of a circuit, the lowest first; none where its layers are not known."""
    structure = circuit.structure()
    wires = circuit.wires(structure)
    return [
        Group(
            tuple(layers),
            structure[layers[0]].size,
            tuple(wire for wire in wires if wire.layer in layers),
            tuple(wire for wire in wires if wire.below in layers),
        )
        for layers in groups(structure)
    ]


def renewable(circuit: Circuit) -> list[Group]:
    """The groups whose units may be made new: nothing that leads to them or reads them is frozen."""
    frozen = {name for name, parameter in circuit.named_parameters() if not parameter.requires_grad}
    return [
        group
        for group in groups_of(circuit)
        if frozen.isdisjoint(f"{wire.name}.{part}" for wire in (*group.into, *group.out) for part in ("weight", "bias"))
    ]


class Watch:
    """What the layers give while a circuit runs; only where hooks on its Linears change nothing in how it runs."""

    def __init__(self) -> None:
        self.given: dict[int, list[Tensor]] = {}
        """By layer, ``[rows, units]`` of each run."""

    def activity(self, circuit: Circuit, inputs: Tensor) -> Activity:
        """What was seen, or what a run in evaluation gives.

        Args:
            circuit: that was watched.
            inputs: which it runs over if nothing was seen, ``[T, B, I]``.
        """
        structure, like = circuit.structure(), next(circuit.parameters())
        if not self.given:
            seen = circuit.activity(inputs)
            self.given = {layer: [seen[name]] for layer, name in _readers(circuit).items()}
        magnitudes, means = [], []
        for layer, size in enumerate(known.size for known in structure):
            parts = self.given[layer]
            rows = (parts[0] if len(parts) == 1 else torch.cat(parts))[:, :size].to(like)
            magnitudes.append(rows.abs().mean(0))
            means.append(rows.mean(0))
        return Activity(magnitudes, means)


def _readers(circuit: Circuit) -> dict[int, str]:
    """By layer, the name of a Linear that gets what the layer gives at the same step."""
    return {
        wire.below: wire.name
        for wire in circuit.wires(circuit.structure())
        if wire.below >= 0 and wire.below != wire.layer
    }


@contextlib.contextmanager
def watched(circuit: Circuit, *, wanted: bool) -> Iterator[Watch]:
    """Within the block, what the layers give is seen, if it is wanted and the circuit can be watched."""
    watch, hooks = Watch(), []
    for layer, name in _readers(circuit).items() if wanted and circuit.watchable else ():
        kept = watch.given.setdefault(layer, [])

        def keep(module: Any, given: tuple[Tensor, ...], kept: list[Tensor] = kept) -> None:
            kept.append(given[0].detach().flatten(0, -2))

        hooks.append(circuit.get_submodule(name).register_forward_pre_hook(keep))
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()


def scores(activity: Activity, layers: Sequence[int]) -> Tensor:
    """How active each unit of a group is, as a multiple of the mean of its layer (Sokar et al. 2023, equation 1).

    Of a group of several layers, its most active one counts. A layer that gives nothing has the score 0 throughout.

    Args:
        activity: of the circuit.
        layers: of the group.

    Returns:
        ``[units]``
    """
    shares = []
    for layer in layers:
        magnitude = activity.magnitudes[layer]
        shares.append(magnitude / magnitude.mean().clamp(min=torch.finfo(magnitude.dtype).tiny))
    return torch.stack(shares).amax(0)


def dormant_share(circuit: Circuit, activity: Activity, threshold: float) -> float:
    """The share of all units whose score is at most a threshold (Sokar et al. 2023, definition 3.1)."""
    found = [scores(activity, group.layers) <= threshold for group in groups_of(circuit)]
    return float(torch.cat(found).double().mean())


@torch.no_grad()
def contributions(circuit: Circuit, group: Group, activity: Activity) -> Tensor:
    """What each unit of a group contributes: its mean magnitude times the sum of the weights by which it is read.

    Args:
        circuit: which it belongs to.
        group: of layers.
        activity: of the circuit.

    Returns:
        ``[units]``; see also :func:`~papertape.agents.structure.strategies.utilities`.
    """
    found = torch.zeros_like(activity.magnitudes[group.layers[0]])
    for wire in group.out:
        read = circuit.get_parameter(f"{wire.name}.weight")[:, : group.size].abs().sum(0)
        found += activity.magnitudes[wire.below] * read
    return found


@torch.no_grad()
def renew(
    circuit: Circuit,
    optimiser: Optimizer,
    group: Group,
    units: Tensor,
    generator: torch.Generator,
    means: Sequence[Tensor] | None = None,
    connections: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Make units new: fresh weights lead to them, nothing is made of what they give, and the optimiser forgets them.

    Args:
        circuit: which they belong to.
        optimiser: of its parameters.
        group: of layers.
        units: which of its units, whole numbers.
        generator: of fresh weights, on the CPU.
        means: what each unit of each layer of the circuit gives on average, ``[units]`` of each, which the thresholds
            of what read the units take up; None lets it go.
        connections: where weight matrices that are masked have some, by their names.
    """
    reset: dict[str, Tensor] = {}

    def parameter_and_mask(name: str) -> tuple[Tensor, Tensor]:
        parameter = circuit.get_parameter(name)
        return parameter, reset.setdefault(name, torch.zeros_like(parameter, dtype=torch.bool))

    if means is not None:
        for wire in group.out:
            taken: Tensor = circuit.get_parameter(f"{wire.name}.weight")[:, units]
            circuit.get_parameter(f"{wire.name}.bias").add_(taken @ means[wire.below][units])
    for wire in group.into:
        weight, mask = parameter_and_mask(f"{wire.name}.weight")
        bias, bias_mask = parameter_and_mask(f"{wire.name}.bias")
        rows = torch.cat([block * group.size + units for block in range(wire.blocks)])
        columns = weight.shape[1]
        fan = wire.fan(columns, group.size)
        fresh = draw((len(rows), columns), fan, generator).to(weight)
        if f"{wire.name}.weight" in connections:
            fresh *= gains(connections[f"{wire.name}.weight"][rows]).to(fresh)
        weight[rows] = fresh
        bias[rows] = draw((len(rows),), fan, generator).to(bias)
        if wire.layer != group.layers[0]:  # residual: it adds nothing to what the unit gives
            quiet = wire.quiet * group.size + units
            weight[quiet] = 0
            bias[quiet] = 0
        mask[rows], bias_mask[rows] = True, True
    for wire in group.out:
        weight, mask = parameter_and_mask(f"{wire.name}.weight")
        weight[:, units] = 0
        mask[:, units] = True
    reset_moments(optimiser, circuit, reset)
