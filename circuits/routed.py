"""A circuit whose units belong to tasks: what one task learns changes no answer to an earlier one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.circuit import Circuit
from ..core.component import Chosen, build
from ..core.contracts import is_outside
from ..core.kernels.dispatch import Backend
from ..core.members import Call, Stack, call_with
from ..core.options import check_taken
from ..core.registry import register
from ..core.routing import (
    Route,
    begin_upon,
    check_shares,
    leads_between_units,
    lending,
    likeness,
    own_structure,
    owners,
    resized_state,
    restricted,
    routed_weights,
    settle,
    shared,
    similarities,
    visible,
)
from ..core.state import map_state, register_state
from ..core.structure import (
    FRESH,
    Change,
    LayerEdit,
    Origin,
    Structure,
    Wire,
    after,
    check_change,
    check_structure,
    unchanged,
)


@register_state
class RoutedState(NamedTuple):
    """Of which task each sequence is, and the state of a circuit with the units of all tasks."""

    task: Tensor
    """``[B]``, whole numbers; -1 before the first step, which decides it."""
    inner: Any
    """Units that the task does not have are zero."""


@register("circuit", "routed")
class RoutedCircuit(Circuit):
    """Any circuit whose hidden layers can change, with units, heads and inputs of each task's own.

    Each task has a circuit of its own units and those of all earlier tasks, which it may read and does not change. It
    begins as a circuit of its own units alone, and learns what to read of the others. All that does not lead to units
    from units is its own as well; see :mod:`papertape.core.routing`. The first input of a sequence says of which task
    it is: by channels that the env keeps for that, or as the nearest of the tasks' keys.

    Agents that descend a gradient tell it by :meth:`meet` which sequences they learn from; a task that comes for the
    first time is given units by that, if it has none.

    A task keeps its weights in tensors of the size of all units so far, so that parameters grow with the cube of the
    number of tasks: an NTM with 100 units of each of twelve tasks has 28 million.

    While a task's circuit answers, it holds the weights that the task reads. Threads take turns at that, but one that
    looks at the parameters meanwhile, to save or to change them, needs a copy.
    """

    backends = get_args(Backend)

    circuit: Annotated[Any, Chosen("circuit")] = Field(
        default="ntm", description="what the first task has, with hidden layers that can change"
    )
    tasks: int = Field(default=1, ge=1, description="tasks that have units from the beginning")
    max_tasks: int = Field(default=16, ge=1, description="tasks at most; inferred ones are then the most similar")
    added: int | None = Field(
        default=None,
        ge=1,
        description="units of each hidden layer that any further task has of its own; null: as many as the first",
    )
    tag_channels: int = Field(
        default=0,
        ge=0,
        description="the last channels of an input, of which the first step of a sequence sets that of its task; 0 "
        "infers the task, as the one whose key the first input is most similar to",
    )
    novelty: float = Field(
        default=0.5,
        ge=-1,
        le=1,
        description="cosine similarity of a batch's first inputs with the nearest key, under which an inferred task is "
        "a new one",
    )
    key_sequences: int = Field(
        default=512, ge=1, description="sequences of a task, its first ones, whose first inputs make its key"
    )
    lending: float = Field(
        default=0.0,
        ge=-1,
        le=2,
        description="similarity of two tasks from which on units of the earlier are lent to the later one, at first; 2 "
        "lends none",
    )

    @classmethod
    def check_options(cls, options: Any) -> None:
        """See :meth:`Component.check_options`."""
        super().check_options(options)
        if options.embedding_size is not None:
            raise ValueError(f"embedding_size: got {options.embedding_size}; tasks share none, allowed is null")
        most = min(options.max_tasks, options.tag_channels or options.max_tasks)
        if options.tasks > most:
            raise ValueError(f"tasks: got {options.tasks}; allowed is at most {most} (max_tasks, tag_channels)")

    def setup(self) -> None:
        """Build the circuit of each task.

        Raises:
            ValueError: an object is given whose sizes are others, whose hidden layers cannot change, or which is
                routed.
        """
        given: Any = self.circuit
        del self.circuit
        own = {"backend": self.backend} if not isinstance(given, Circuit) else {}
        circuit = build(given, self.input_size, self.output_size, **own)
        sizes = [circuit.input_size, circuit.output_size]
        if sizes != [self.input_size, self.output_size]:
            raise ValueError(f"circuit: has sizes {sizes}; expected {[self.input_size, self.output_size]}")
        if self.tag_channels >= self.input_size:
            raise ValueError(
                f"tag_channels: got {self.tag_channels}; inputs have {self.input_size} channels, allowed is fewer"
            )
        if isinstance(circuit, RoutedCircuit):  # whose routes would have to hand on tasks that come
            raise ValueError("circuit.type: got routed within routed; allowed is any other")
        if is_outside(type(circuit)):
            circuit.check()
        refused = circuit.fixed() or (None if circuit.embedding_size is None else "it has an embedding")
        if refused:
            raise ValueError(f"circuit: tasks can own no units of it: {refused}")
        self.differentiable = circuit.differentiable
        self.trace_fields = circuit.trace_fields  # type: ignore[misc]
        self.uniform = circuit.uniform  # type: ignore[misc]
        self.routes: Any = nn.ModuleList([Route(circuit, self.input_size - self.tag_channels, self.lending)])
        """Of each task, in the order in which they came."""
        while len(self.routes) < self.tasks:
            self._add(self._with_another())

    # ---- structure

    def structure(self) -> Structure:
        """See :meth:`Circuit.structure`: the units of all tasks, with the share of each."""
        return shared([route.structure for route in self.routes])

    def fixed(self) -> str | None:
        """See :meth:`Circuit.fixed`."""
        refused: str | None = self.routes[-1].circuit.fixed()
        return refused

    @property
    def fresh_residual(self) -> bool:
        """See :meth:`Circuit.fresh_residual`."""
        residual: bool = self.routes[-1].circuit.fresh_residual
        return residual

    def wires(self, structure: Structure) -> list[Wire]:
        """See :meth:`Circuit.wires`: those of the last task, whose circuit has all units."""
        last = len(self.routes) - 1
        return [wire._replace(name=_name(last, wire.name)) for wire in self.routes[last].circuit.wires(structure)]

    def restructure(self, structure: Sequence[Sequence[Any]]) -> None:
        """See :meth:`Circuit.restructure`; with the shares of tasks."""
        wanted = check_structure(self, structure)
        if wanted == self.structure():
            return
        tasks = len(wanted[0].shares)
        wrong = [layer for layer in wanted if sum(layer.shares) != layer.size or len(layer.shares) != tasks]
        if wrong or min(min(layer.shares) for layer in wanted) < 1:
            raise ValueError(f"structure: got {wanted}; the shares of all tasks add up to each layer's size")
        del self.routes[tasks:]
        while len(self.routes) < tasks:
            self.routes.append(copy.deepcopy(self.routes[-1]))
        for task, route in enumerate(self.routes):
            route.restructure(visible(wanted, task))
        self._forget_layout()

    def edit(
        self,
        layers: Sequence[LayerEdit],
        inputs: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Change:
        """See :meth:`Circuit.edit`. A fresh unit belongs to the task of the unit before it; those of a task that begins
        come last. A task that lends units to others keeps all it has. With several tasks no layer is added or removed.
        """
        before = self.structure()
        check_change(before, layers, uniform=self.uniform, fresh_residual=self.fresh_residual)
        now = after(before, layers)
        check_shares(before, now, layers)
        self._check_lent(before, layers)
        settle(self.routes)
        former = dict(self.named_parameters())
        origins: dict[str, Origin] = {}
        own = self._inputs_of_tasks(inputs)
        for task, route in enumerate(self.routes):
            change = route.edit(restricted(before, now, layers, task), own.get(task), generator)
            origins |= {
                _name(task, name): Origin(None if origin.name is None else _name(task, origin.name), origin.edits)
                for name, origin in change.origins.items()
            }
        if layers[0].begins:
            self._add(now)
            task = len(self.routes) - 1
            names = (_name(task, name) for name, _ in self.routes[task].circuit.named_parameters())
            origins |= dict.fromkeys(names, Origin(None))
        settle(self.routes)
        self._forget_layout()
        return Change(before, tuple(layers), origins, former, dict(self.named_parameters()))

    def _check_lent(self, before: Structure, layers: Sequence[LayerEdit]) -> None:
        for edit in layers:
            if edit.source == FRESH:
                continue
            owned_by = owners(before[edit.source])
            for unit in sorted({*range(len(owned_by))} - {*edit.units}):
                if self.lends(owned_by[unit]):
                    raise ValueError(
                        f"layers[{edit.source}].units: task {owned_by[unit]} lends units to others; allowed is to keep "
                        f"unit {unit}"
                    )

    def _inputs_of_tasks(self, inputs: Tensor | None) -> dict[int, Tensor]:
        if inputs is None:
            return {}
        vectors = self.shared_inputs(inputs)
        tasks = self.tasks_of(vectors[0])
        return {int(task): vectors[:, tasks == task] for task in tasks.unique()}

    def begin(self) -> Change:
        """Give units to a task that comes for the first time; what it has of its own is drawn by torch's global
        generator.

        Raises:
            ValueError: there are as many tasks as there may be.
        """
        if len(self.routes) >= self.max_tasks:
            raise ValueError(f"max_tasks: got {self.max_tasks}; another task has come, allowed is more")
        structure = self.structure()
        edits = [
            edit._replace(units=edit.units + (FRESH,) * count, begins=count)
            for edit, count in zip(unchanged(structure), self._counts(structure), strict=True)
        ]
        return self.edit(edits)

    def _counts(self, structure: Structure) -> list[int]:
        """Units of each layer that a further task has."""
        return [self.added or layer.shares[0] for layer in structure]

    def _with_another(self) -> Structure:
        structure = self.structure()
        return tuple(
            layer._replace(size=layer.size + count, shares=(*layer.shares, count))
            for layer, count in zip(structure, self._counts(structure), strict=True)
        )

    def _add(self, structure: Structure) -> None:
        """Give the last task of a structure a route."""
        task = len(self.routes)
        alone = self._alone(structure, task)
        circuit = copy.deepcopy(self.routes[-1].circuit)
        circuit.restructure(visible(structure, task))
        begin_upon(self.routes[-1], circuit, alone)
        route = Route(circuit, len(self.routes[0].sum), self.lending)
        self.routes.append(route.to(self.routes[0].thresholds))
        settle(self.routes)

    def _alone(self, structure: Structure, task: int) -> Circuit:
        """A circuit of a task's own units, whose weights are drawn."""
        alone: Circuit = copy.deepcopy(self.routes[0].circuit)
        alone.restructure(own_structure(structure, task))
        alone.reset_parameters()
        return alone

    def activity(self, inputs: Tensor) -> dict[str, Tensor]:
        """See :meth:`Circuit.activity`: of the last task's circuit."""
        last = len(self.routes) - 1
        settle(self.routes)
        seen: dict[str, Tensor] = self.routes[last].circuit.activity(inputs)
        return {_name(last, name): given for name, given in seen.items()}

    def follow(self, change: Change, state: Any) -> RoutedState:
        """See :meth:`Circuit.follow`."""
        return RoutedState(state.task, self.routes[-1].circuit.follow(change, state.inner))

    def reset_parameters(self) -> None:
        """Draw all weights anew, and forget the keys of the tasks and what was lent."""
        structure = self.structure()
        self.routes[0].circuit.reset_parameters()
        for task, route in enumerate(self.routes):
            route.sum.zero_()
            route.count.zero_()
            route.forget_thresholds()
            if task:
                begin_upon(self.routes[task - 1], route.circuit, self._alone(structure, task))
        settle(self.routes)

    def settle(self) -> None:
        """Let the circuit of each task have the weights as its own by which it runs: what it reads of earlier ones is
        copied, what it may not read is zero. No answer changes.
        """
        settle(self.routes)

    def lent(self, task: int) -> list[Tensor]:
        """Of each layer which units a task may read, bool ``[units of its circuit]``; its own are among them."""
        return lending(self.routes, task)

    def lends(self, task: int) -> bool:
        """Whether any of a task's own units is lent to another."""
        for later in range(task + 1, len(self.routes)):
            for lent, layer in zip(self.lent(later), self.structure(), strict=True):
                first = sum(layer.shares[:task])
                if bool(lent[first : first + layer.shares[task]].any()):
                    return True
        return False

    @torch.no_grad()
    def lend(self, task: int, layer: int, units: Tensor, *, lent: bool) -> dict[str, Tensor]:
        """Move the similarity at which units of earlier tasks are lent to a task, so that they are lent now or are not.

        Args:
            task: that they are lent to.
            layer: of the units.
            units: which of those that the earlier tasks own, bool ``[units]``.
            lent: whether they are to be.

        Returns:
            By the name of a parameter where connections are others now: what reads these units, which is zero.
        """
        route = self.routes[task]
        settle(self.routes)
        alike = likeness(self.routes, task)[layer]
        thresholds = route.split_thresholds()[layer][: len(alike)]
        moved = alike if lent else torch.nextafter(alike, torch.full_like(alike, 3.0))
        thresholds.copy_(torch.where(units.to(thresholds.device), moved, thresholds))
        settle(self.routes)
        found = {}
        for wire in route.wires:
            if wire.below == layer:
                weight = route.circuit.get_parameter(f"{wire.name}.weight")
                columns = torch.zeros_like(weight, dtype=torch.bool)
                columns[:, : len(units)] = units.to(weight.device)
                if leads_between_units(wire):
                    assert wire.layer is not None
                    rows = torch.arange(route.sizes[wire.layer], device=weight.device)
                    columns &= (rows >= self.routes[task - 1].sizes[wire.layer]).repeat(wire.blocks).unsqueeze(1)
                found[_name(task, f"{wire.name}.weight")] = columns
        return found

    def live_weights(self) -> int:
        """How many numbers are learned: the circuit of a task also has room for weights of earlier ones."""
        count = 0
        for task, route in enumerate(self.routes):
            circuit, earlier = route.circuit, self.routes[task - 1].sizes if task else []
            count += sum(parameter.numel() for parameter in circuit.parameters())
            for wire in route.wires:
                linear: Any = circuit.get_submodule(wire.name)
                if task and leads_between_units(wire):
                    assert wire.layer is not None
                    count -= wire.blocks * earlier[wire.layer] * (linear.in_features + 1)
        return count

    # ---- tasks

    def tasks_of(self, first: Tensor) -> Tensor:
        """Which task answers each sequence, ``[B]``, from its first input ``[B, I]``; the last one answers for those
        that have no units yet.

        Raises:
            ValueError: none of the tag channels is set.
        """
        if not self.tag_channels:
            met = torch.stack([route.count for route in self.routes]) > 0
            alike = similarities(first, self.routes)
            return torch.where(met, alike, -2.0).argmax(-1)
        tags = first[:, -self.tag_channels :]
        most, tasks = tags.max(-1)
        if not bool((most > 0).all()):
            raise ValueError(f"inputs: none of the last {self.tag_channels} channels is set, which say the task")
        return tasks.clamp(max=len(self.routes) - 1)

    def _key(self, first: Tensor) -> Tensor:
        return first[:, : first.shape[1] - self.tag_channels]

    @torch.no_grad()
    def meet(self, inputs: Tensor) -> list[Change]:
        """Take note of sequences that are learned from: their tasks' keys, and tasks that come for the first time.

        Args:
            inputs: ``[T, B, I]``, or tokens ``[T, B]``; where tasks are inferred, of one task.

        Returns:
            The changes by which tasks were given units.

        Raises:
            ValueError: a task too many has come, or none of the tag channels is set.
        """
        first = self.shared_inputs(inputs)[0]
        changes = []
        if self.tag_channels:
            while int(first[:, -self.tag_channels :].argmax(-1).max()) >= len(self.routes):
                changes.append(self.begin())
            tasks = self.tasks_of(first)
        else:
            alike = similarities(first.mean(0, keepdim=True), self.routes)[0].tolist()
            counts = [int(route.count) for route in self.routes]
            task = max(range(len(counts)), key=lambda index: (counts[index] > 0, alike[index]))
            if counts[task] and alike[task] < self.novelty:
                if 0 in counts:
                    task = counts.index(0)
                elif len(counts) < self.max_tasks:
                    changes.append(self.begin())
                    task = len(counts)
            tasks = torch.full((len(first),), task, device=first.device)
        for task, route in enumerate(self.routes):
            own = self._key(first[tasks == task])
            left = self.key_sequences - int(route.count)
            if len(own) and left > 0:
                route.see(own[:left])
        return changes

    # ---- running

    def initial_state(self, batch_size: int, **sizes: int) -> RoutedState:
        """State before the first step; of the memory, sizes as the circuit takes them.

        Raises:
            ValueError: a size that it does not have, such as that of a memory where there is none.
        """
        circuit = self.routes[-1].circuit
        check_taken(circuit.initial_state, sizes)
        inner = circuit.initial_state(batch_size, **sizes)
        return RoutedState(self.routes[0].count.new_full((batch_size,), -1), inner)

    def initial_state_like(self, state: Any) -> RoutedState:
        """See :meth:`Circuit.initial_state_like`."""
        inner = self.routes[-1].circuit.initial_state_like(getattr(state, "inner", state))
        return RoutedState(self.routes[0].count.new_full((1,), -1), inner)

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One step; see :meth:`Circuit.step`."""
        x = self.check_inputs(x, "[B, {}]")
        with self.precision(x):
            outputs, state = self.run(x.unsqueeze(0), self.check_state(state, x))
            return outputs[0].to(x.dtype), state

    def run(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        """A whole sequence: those of each task by its circuit; see :meth:`Circuit.run`."""
        outputs, state, _ = self._routed(inputs, state, trace=False)
        return outputs, state

    def run_traced(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any, dict[str, Tensor]]:
        """See :meth:`Circuit.run_traced`."""
        return self._routed(inputs, state, trace=True)

    def run_population(self, parameters: Mapping[str, Stack], inputs: Tensor) -> Tensor:
        """Not possible.

        Raises:
            ValueError: always.
        """
        raise ValueError("circuit.type: got routed, whose tasks learn by gradients; a population cannot evolve them")

    def _routed(self, inputs: Tensor, state: RoutedState, *, trace: bool) -> tuple[Tensor, Any, dict[str, Tensor]]:
        begins = state.task < 0
        tasks = state.task
        if bool(begins.any()):
            tasks = torch.where(begins, self.tasks_of(inputs[0]), tasks)
        present = [int(task) for task in tasks.unique()]  # torch 2.6 knows no tolist within torch.func.grad
        if len(present) == 1:
            return self._answered(present[0], inputs, state, trace)
        rows = [(tasks == task).nonzero().flatten() for task in present]
        parts = [
            self._answered(task, inputs[:, own], map_state(lambda leaf, own=own: leaf[own], state), trace)
            for task, own in zip(present, rows, strict=True)
        ]
        order = torch.cat(rows).argsort()
        outputs = torch.cat([part[0] for part in parts], dim=1)[:, order]
        after_all = map_state(lambda *leaves: torch.cat(leaves)[order], *(part[1] for part in parts))
        seen = {name: torch.cat([part[2][name] for part in parts], dim=1)[:, order] for name in parts[0][2]}
        return outputs, after_all, seen

    def _answered(
        self, task: int, inputs: Tensor, state: RoutedState, trace: bool
    ) -> tuple[Tensor, RoutedState, dict[str, Tensor]]:
        """The answers of one task's circuit."""
        circuit = self.routes[task].circuit
        own, every = self.routes[task].structure, self.routes[-1].structure
        begins = state.task < 0
        inner = resized_state(circuit, state.inner, every, own)
        if bool(begins.any()):
            first = circuit.initial_state_like(inner)

            def begun(leaf: Tensor, start: Tensor) -> Tensor:
                here = begins.view(-1, *(1,) * (leaf.dim() - 1))
                return torch.where(here, start, leaf)

            inner = map_state(begun, inner, first)
        weights = routed_weights(self.routes, task)
        called = Call(circuit, lambda circuit: circuit.called(inputs, inner, trace=trace))
        outputs, last, *seen = call_with(called, {f"circuit.{name}": weight for name, weight in weights.items()})
        last = resized_state(circuit, last, own, every)
        return outputs, RoutedState(torch.full_like(state.task, task), last), dict(seen[0]) if trace else {}


def _name(task: int, name: str) -> str:
    """A parameter of a task's circuit, by its name there."""
    return f"routes.{task}.circuit.{name}"
