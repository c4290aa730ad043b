"""Sparse training: most weights that lead to units are zero, and which ones changes while the circuit learns."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ...core.circuit import Circuit
from ...core.options import LARGEST_STEP
from ...core.registry import register
from ...core.structure import Change, follow
from .base import PlasticityMethod, Update


def spread(shapes: Mapping[str, Sequence[int]], share: float) -> dict[str, int]:
    """How many connections each layer gets, so that all together have a share of all that could be.

    As in an Erdős–Rényi graph, a layer's share is in proportion to its rows plus columns over rows times columns
    (Mocanu et al. 2018, equation 3). A layer that would have more than all has all; each has one at least.

    Args:
        shapes: rows and columns of each layer's weights.
        share: of all weights.
    """
    whole = {name: rows * columns for name, (rows, columns) in shapes.items()}
    ends = {name: rows + columns for name, (rows, columns) in shapes.items()}
    left, full = share * sum(whole.values()), set[str]()
    while True:
        factor = left / max(sum(ends[name] for name in shapes if name not in full), 1)
        over = {name for name in shapes if name not in full and factor * ends[name] >= whole[name]}
        if not over:
            break
        full |= over
        left -= sum(whole[name] for name in over)
    return {name: whole[name] if name in full else max(1, round(factor * ends[name])) for name in shapes}


class SparseTraining(PlasticityMethod):
    """Keeps all but a share of the weights that lead to hidden units at zero, exactly, by a mask for each layer.

    At first, connections are drawn at random, and the weights of each layer that has a share of them are scaled up by
    the root of its inverse, so that units get inputs of the same variance as without masks. Interface, output layer
    and thresholds stay whole, and so do weights that are frozen when it begins. Gradients and moments of what is masked
    are zero. Units that a change of structure adds begin with all connections; the next time that connections change,
    each layer has its number again.
    """

    remembered: ClassVar[tuple[str, ...]] = ("connections",)
    judges_units: ClassVar[bool] = True
    masks: ClassVar[bool] = True

    density: float = Field(
        default=0.1, gt=0, le=1, description="share of the weights that lead to units that are not 0"
    )
    every: int = Field(
        default=1000, ge=1, le=LARGEST_STEP, description="updates from one change of connections to the next"
    )

    @torch.no_grad()
    def begin(self, circuit: Circuit, generator: torch.Generator) -> None:
        """See :meth:`PlasticityMethod.begin`; masks the weights."""
        weights = {name: weight for name, weight in hidden_weights(circuit).items() if weight.requires_grad}
        counts = spread({name: weight.shape for name, weight in weights.items()}, self.share(0))
        self.connections: dict[str, Tensor] = {}
        """By the name of a weight matrix, where it has connections."""
        for name, weight in weights.items():
            mask = torch.zeros(weight.numel(), dtype=torch.bool, device="cpu")
            mask[torch.randperm(len(mask), generator=generator, device="cpu")[: counts[name]]] = True
            self.connections[name] = mask.view_as(weight).to(weight.device)
            weight.mul_(self.connections[name]).mul_(math.sqrt(len(mask) / counts[name]))

    def connected(self) -> Mapping[str, Tensor]:
        """See :meth:`PlasticityMethod.connected`."""
        return self.connections

    def weights(self, circuit: Circuit) -> dict[str, Any]:
        """The weight matrices that it masks, by their names."""
        return {name: circuit.get_parameter(name) for name in self.connections}

    @abstractmethod
    def share(self, step: int) -> float:
        """Of the weights that lead to units, how many are to be connections after so many updates."""

    @abstractmethod
    def changes(self, step: int) -> bool:
        """Whether connections change with this update."""

    @abstractmethod
    def rewire(self, update: Update) -> dict[str, Tensor]:
        """Which connections there are to be, ``[rows, columns]`` of each layer; gradients are those of all weights."""

    @torch.no_grad()
    def on_gradient(self, update: Update) -> None:
        """Change the connections where that is due; then mask gradients, and the moments of what has changed."""
        weights = self.weights(update.circuit)
        if weights and self.changes(update.step) and _is_finite(update.circuit):
            before, self.connections = self.connections, self.rewire(update)
            for name, weight in weights.items():
                changed, known = before[name] != self.connections[name], bool(before[name].any())
                weight.mul_(before[name] & self.connections[name])
                for key, value in update.optimiser.state.get(weight, {}).items():
                    if isinstance(value, Tensor) and value.shape == weight.shape:
                        value[changed] = value[before[name]].mean() if known and "sq" in key else 0
                        value.mul_(self.connections[name])
        for name, weight in weights.items():
            if weight.grad is not None:
                weight.grad.mul_(self.connections[name])

    @torch.no_grad()
    def after_update(self, update: Update) -> None:
        """Mask what other methods or the optimiser may have made of the weights."""
        for name, weight in self.weights(update.circuit).items():
            weight.mul_(self.connections[name])

    @torch.no_grad()
    def follow(self, change: Change) -> None:
        """See :meth:`PlasticityMethod.follow`."""
        followed = follow(change, self.connections, "one")
        self.connections = {name: mask for name, mask in followed.items() if mask.dim() == 2}
        for name, mask in self.connections.items():
            change.new[name].mul_(mask)


def _is_finite(circuit: Circuit) -> bool:
    """Whether the norm of all gradients is, without which the update will be skipped."""
    norms = [parameter.grad.norm() for parameter in circuit.parameters() if parameter.grad is not None]
    return not norms or bool(torch.stack(norms).norm().isfinite())


def hidden_weights(circuit: Circuit) -> dict[str, Any]:
    """The weight matrices that lead to hidden units, by their names."""
    wires = circuit.wires(circuit.structure())
    names = [f"{wire.name}.weight" for wire in wires if wire.layer is not None]
    return {name: circuit.get_parameter(name) for name in names}


def largest(values: Tensor, among: Tensor, count: int) -> Tensor:
    """Where the largest of some values are, as a mask of their shape.

    Args:
        values: of any shape.
        among: which of them may be chosen, a mask of their shape.
        count: how many are chosen, at most as many as may be.
    """
    chosen = torch.zeros_like(among)
    if count > 0:
        ranked = torch.where(among, values, -torch.inf).flatten()
        chosen.view(-1)[ranked.topk(min(count, int(among.sum()))).indices] = True
    return chosen


@register("plasticity", "set")
class SparseEvolutionaryTraining(SparseTraining):
    """SET: every so often, a share of the connections of each layer, the weakest, give way to others at random.

    Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
    network science", algorithm 1. New connections begin at zero, so that they change no output.
    """

    replaced: float = Field(
        default=0.3, ge=0, lt=1, description="share of a layer's connections that are replaced each time"
    )
    last_step: int | None = Field(
        default=None,
        ge=1,
        le=LARGEST_STEP,
        description="update after which connections stay as they are; null goes on changing them without end",
    )

    def share(self, step: int) -> float:
        """See :meth:`SparseTraining.share`."""
        return self.density

    def changes(self, step: int) -> bool:
        """See :meth:`SparseTraining.changes`."""
        return step % self.every == 0 and step <= (self.last_step or step)

    def rewire(self, update: Update) -> dict[str, Tensor]:
        """See :meth:`SparseTraining.rewire`."""
        weights, generator, found = self.weights(update.circuit), update.generator(), {}
        counts = spread({name: weight.shape for name, weight in weights.items()}, self.share(update.step))
        for name, weight in weights.items():
            before = self.connections[name]
            stay = min(int(before.sum()) - round(self.replaced * int(before.sum())), counts[name])
            stays = largest(weight.abs(), before, stay)
            # Those that were there before come last: they go back only where there is no other place.
            drawn = torch.rand(weight.shape, generator=generator, device="cpu").to(weight.device) + ~before
            found[name] = stays | largest(drawn, ~stays, counts[name] - stay)
        return found


@register("plasticity", "granet")
class GraNet(SparseTraining):
    """Gradual pruning with regeneration: connections become fewer, and some grow where the gradient is largest.

    Liu et al. 2021, "Sparse training via boosting pruning plasticity with neuroregeneration", section 4. The share of
    connections falls from ``first_density`` to ``density`` by a cubic law (equation 1). What is pruned are the weakest
    of all layers together. Then a share of each layer's connections, which falls to nothing by a cosine, gives way to
    as many others, those with the largest gradients.
    """

    first_density: float = Field(default=0.5, gt=0, le=1, description="the share that the circuit begins with")
    first_step: int = Field(default=0, ge=0, le=LARGEST_STEP, description="update after which connections change")
    last_step: int = Field(
        default=10_000, ge=1, le=LARGEST_STEP, description="update after which they stay as they are"
    )
    regenerated: float = Field(
        default=0.5, ge=0, lt=1, description="share of a layer's connections that grow elsewhere each time, at first"
    )

    @classmethod
    def check_options(cls, options: Any) -> None:
        """See :meth:`Component.check_options`."""
        super().check_options(options)
        if options.first_density < options.density:
            raise ValueError(
                f"first_density: got {options.first_density}; allowed is at least density ({options.density})"
            )
        if options.last_step < options.first_step + options.every:
            raise ValueError(
                f"last_step: got {options.last_step}; allowed is at least every ({options.every}) after first_step "
                f"({options.first_step})"
            )

    def _progress(self, step: int) -> float:
        """How far the pruning is, from 0 to 1."""
        changes = (self.last_step - self.first_step) // self.every
        return min(max((step - self.first_step) // self.every / changes, 0.0), 1.0)

    def share(self, step: int) -> float:
        """See :meth:`SparseTraining.share`."""
        return self.density + (self.first_density - self.density) * (1 - self._progress(step)) ** 3

    def changes(self, step: int) -> bool:
        """See :meth:`SparseTraining.changes`."""
        return self.first_step < step <= self.last_step and (step - self.first_step) % self.every == 0

    def rewire(self, update: Update) -> dict[str, Tensor]:
        """See :meth:`SparseTraining.rewire`."""
        weights, found = self.weights(update.circuit), {}
        total = round(self.share(update.step) * sum(weight.numel() for weight in weights.values()))
        kept = torch.cat([self.connections[name].flatten() for name in weights])
        sizes = torch.cat([weight.abs().flatten() for weight in weights.values()])
        left = largest(sizes, kept, total).split([weight.numel() for weight in weights.values()])
        share = self.regenerated * 0.5 * (1 + math.cos(math.pi * self._progress(update.step)))
        for (name, weight), part in zip(weights.items(), left, strict=True):
            mask = part.view_as(weight)
            grown = round(share * int(mask.sum()))
            stays = largest(weight.abs(), mask, int(mask.sum()) - grown)
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad.abs()
            fresh = largest(gradient, ~mask, grown)
            # Those that gave way go back only where there is no other place.
            found[name] = stays | fresh | largest(gradient, mask & ~stays, grown - int(fresh.sum()))
        return found
