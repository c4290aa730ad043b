"""Methods of plasticity and sparse training: against slow loops, and what must hold of each of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from states import flat, saved
from torch import Tensor

import papertape
from papertape.agents import BackpropAgent, NodePerturbationAgent, SelfModifyingAgent
from papertape.agents.plasticity import (
    DORMANT,
    EWC,
    ContinualBackprop,
    GraNet,
    L2Init,
    ReDo,
    SparseEvolutionaryTraining,
    Update,
    dormant_share,
    watched,
)
from papertape.agents.plasticity.base import generator_of
from papertape.agents.plasticity.sparse import hidden_weights, largest, spread
from papertape.agents.plasticity.units import Activity, contributions, groups_of, renew
from papertape.agents.plasticity.upkeep import Upkeep
from papertape.agents.structure import PairedTrial, Verdict
from papertape.agents.structure.strategies import STRATEGIES, Limits, Subject, utilities
from papertape.circuits import FeedForwardCircuit
from papertape.core.circuit import Circuit
from papertape.core.env import Batch, Env
from papertape.core.structure import FRESH, LayerEdit, deepened, draw, narrowed, unchanged, widened
from papertape.core.topology import TopologyNetwork
from papertape.envs import CopyEnv
from papertape.main import main
from papertape.utils.run import read_metrics

SMALL = {
    "batch_size": 6,
    "log_every": 100,
    "evaluate_every": 100,
    "save_every": 100,
    "evaluation_sequences": 4,
    "steps": None,
    "clip_norm": None,
}
RATE = 0.05
OFTEN = {
    "continual-backprop": {"replacement_rate": 0.07, "maturity": 2},
    "redo": {"every": 3, "threshold": 0.6},
    "l2-init": {"strength": 0.02},
    "shrink-perturb": {"every": 4},
    "ewc": {"every": 4, "sequences": 8, "strength": 3.0},
    "set": {"density": 0.4, "every": 3},
    "granet": {"density": 0.3, "first_density": 0.8, "every": 2, "last_step": 8},
}
"""Each method with options by which it does something within a few steps."""


class Signs(Env):
    """Which of three numbers are positive; every so many sequences the rule is turned round."""

    error_metric = "bits_wrong"
    every: int = 24

    def setup(self) -> None:
        self.input_size, self.output_size, self.seen = 3, 2, 0

    @property
    def task_number(self) -> int:
        return self.seen // self.every % 2

    def move_on(self, count: int) -> None:
        self.seen += count

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Any) -> None:
        self.seen = state["seen"]

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        inputs = torch.randn(2, batch_size, 3, generator=generator, dtype=torch.float64)
        targets = (inputs[..., :2] * (1 - 2 * self.task_number) > 0).double()
        return Batch(inputs, targets, torch.ones(2, batch_size, dtype=torch.float64))


def method(name: str, **options: Any) -> dict[str, Any]:
    return {"type": name, **OFTEN[name], **options}


def make(*plasticity: Any, sizes: tuple[int, ...] = (5, 4), activation: str = "relu", **options: Any) -> Any:
    """An agent with a feed-forward circuit, which follows the gradient itself if nothing else is said."""
    torch.manual_seed(4)
    circuit = FeedForwardCircuit(3, 2, hidden_sizes=list(sizes), activation=activation).double()
    options = {"optimiser": "sgd", "lr": RATE, **SMALL, **options}
    kind = options.pop("kind", BackpropAgent)
    return kind(Signs(), circuit, **options, plasticity=list(plasticity), seed=3)


def make_memory(*plasticity: Any, controller: str = "lstm", layers: int = 1, **options: Any) -> Any:
    torch.manual_seed(1)
    env = CopyEnv(width=2, max_length=1, test_lengths=[2])
    sizes = {"controller": controller, "hidden_size": 4, "num_layers": layers}
    circuit = papertape.NTM(env.input_size, env.output_size, memory_size=4, word_size=3, backend="eager", **sizes)
    kind = options.pop("kind", BackpropAgent)
    return kind(env, circuit.double(), **{**SMALL, **options}, plasticity=list(plasticity), seed=3)


def run(agent: Any, steps: int) -> Any:
    for _ in range(steps):
        agent.train_step()
    return agent


# ------------------------------------------------------------------------------------------- against slow loops

Rows = list[list[float]]


class Loop:
    """Training by autograd and the formula of gradient descent, beside an agent; a method adds what it does."""

    def __init__(self, agent: Any) -> None:
        self.env, self.number = copy.copy(agent.env), 0
        self.circuit: Any = copy.deepcopy(agent.circuit)
        self.parameters = dict(self.circuit.named_parameters())
        self.generator = torch.Generator()
        self.generator.set_state(agent.generator.get_state())
        self.first = {name: part.detach().clone() for name, part in self.parameters.items()}

    def random(self) -> torch.Generator:
        return generator_of(3, 0, self.number)

    def penalty(self) -> Any:
        return 0.0

    def gradients(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        return found

    def after(self, batch: Batch) -> None: ...

    def hidden(self, batch: Batch) -> list[list[Rows]]:
        """By layer, what each unit gives in each step of each sequence, by loops: ``[layer][row][unit]``."""
        rows, layers = batch.inputs.flatten(0, 1).tolist(), []
        for index in range(len(self.circuit.layers) - 1):
            weight, bias = (self.parameters[f"layers.{index}.{part}"].tolist() for part in ("weight", "bias"))
            rows = [
                [
                    max(0.0, bias[unit] + sum(w * x for w, x in zip(weight[unit], row, strict=True)))
                    for unit in range(len(bias))
                ]
                for row in rows
            ]
            layers.append(rows)
        return layers

    def step(self) -> None:
        self.number += 1
        batch = self.env.sample(6, self.generator)
        loss = self.env.losses(self.circuit(batch.inputs)[0], batch).sum() / 6 + self.penalty()
        found = dict(zip(self.parameters, torch.autograd.grad(loss, [*self.parameters.values()]), strict=True))
        self.seen = self.hidden(batch)
        with torch.no_grad():
            for name, gradient in self.gradients(found).items():
                self.parameters[name] -= RATE * gradient
            self.read = [self.parameters[f"layers.{index + 1}.weight"].tolist() for index in range(len(self.seen))]
            self.after(batch)
        self.env.move_on(6)

    def renew(self, layer: int, units: list[int], generator: torch.Generator, means: list[float] | None) -> None:
        """By loops: incoming weights drawn as a Linear's, outgoing ones zero."""
        weight, bias = (self.parameters[f"layers.{layer}.{part}"] for part in ("weight", "bias"))
        above, threshold = (self.parameters[f"layers.{layer + 1}.{part}"] for part in ("weight", "bias"))
        columns = weight.shape[1]
        drawn, drawn_bias = draw((len(units), columns), columns, generator), draw((len(units),), columns, generator)
        for row in range(len(above)):
            for unit in units:
                if means is not None:
                    threshold[row] += above[row, unit] * means[unit]
                above[row, unit] = 0
        for index, unit in enumerate(units):
            bias[unit] = drawn_bias[index]
            for column in range(columns):
                weight[unit, column] = drawn[index, column]


def agree(agent: Any, loop: Loop, steps: int) -> None:
    for _ in range(steps):
        agent.train_step()
        loop.step()
    for name, parameter in agent.circuit.named_parameters():
        torch.testing.assert_close(parameter, loop.parameters[name], rtol=1e-10, atol=1e-12, msg=name)


def test_continual_backprop_agrees_with_a_loop() -> None:
    rate, maturity, decay = 0.07, 2, 0.9
    renewed = []

    class Slow(Loop):
        def __init__(self, agent: Any) -> None:
            super().__init__(agent)
            self.worth = [[0.0] * size for size in (5, 4)]
            self.means = [[0.0] * size for size in (5, 4)]
            self.ages = [[0] * size for size in (5, 4)]
            self.due = [0.0, 0.0]

        def after(self, batch: Batch) -> None:
            generator = self.random()
            for layer, rows in enumerate(self.seen):
                ready = []
                for unit in range(len(rows[0])):
                    given = [row[unit] for row in rows]
                    made_of_it = sum(abs(row[unit]) for row in self.read[layer])
                    worth = sum(map(abs, given)) / len(given) * made_of_it
                    self.worth[layer][unit] = decay * self.worth[layer][unit] + (1 - decay) * worth
                    mean = sum(given) / len(given)
                    self.means[layer][unit] = decay * self.means[layer][unit] + (1 - decay) * mean
                    self.ages[layer][unit] += 1
                    if self.ages[layer][unit] > maturity:
                        ready.append(unit)
                self.due[layer] += rate * len(ready)
                corrected = [1 - decay ** max(age, 1) for age in self.ages[layer]]
                count = int(self.due[layer])
                worst = sorted(ready, key=lambda unit: self.worth[layer][unit] / corrected[unit])[:count]
                if worst:
                    self.due[layer] -= count
                    means = [mean / share for mean, share in zip(self.means[layer], corrected, strict=True)]
                    self.renew(layer, sorted(worst), generator, means)
                    renewed.append((layer, worst))
                for unit in worst:
                    self.worth[layer][unit] = self.means[layer][unit] = self.ages[layer][unit] = 0

    agent = make({"type": "continual-backprop", "replacement_rate": rate, "maturity": maturity, "decay": decay})
    agree(agent, Slow(agent), 18)
    assert {layer for layer, _ in renewed} == {0, 1}
    assert len(renewed) > 5


def test_redo_agrees_with_a_loop() -> None:
    renewed = []

    class Slow(Loop):
        def after(self, batch: Batch) -> None:
            if self.number % 3:
                return
            generator = self.random()
            for layer, rows in enumerate(self.seen):
                magnitudes = [sum(abs(row[unit]) for row in rows) / len(rows) for unit in range(len(rows[0]))]
                mean = sum(magnitudes) / len(magnitudes)
                dormant = [unit for unit, magnitude in enumerate(magnitudes) if magnitude / mean <= 0.6]
                if dormant:
                    self.renew(layer, dormant, generator, None)
                    renewed.append(layer)

    agent = make(method("redo"))
    agree(agent, Slow(agent), 20)
    assert set(renewed) == {0, 1}


def test_l2_init_agrees_with_the_gradient_of_its_penalty() -> None:
    class Slow(Loop):
        def penalty(self) -> Any:
            return 0.02 * sum(((part - self.first[name]) ** 2).sum() for name, part in self.parameters.items())

    agent = make(method("l2-init"))
    agree(agent, Slow(agent), 10)


@pytest.mark.parametrize("by_env", [False, True])
def test_ewc_agrees_with_a_penalty_for_each_task(by_env: bool) -> None:
    class Slow(Loop):
        def __init__(self, agent: Any) -> None:
            super().__init__(agent)
            self.tasks: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
            self.batches: list[Batch] = []

        def after(self, batch: Batch) -> None:
            self.batches.append(batch)
            if self.number % 4 == 0:
                left = {name: part.detach().clone() for name, part in self.parameters.items()}
                self.tasks.append((self.fisher(), left))
                self.batches.clear()

        @torch.enable_grad()
        def fisher(self) -> dict[str, Tensor]:
            """Over the last eight sequences of a task of batches of six."""
            places = [(batch, column) for batch in self.batches for column in range(6)][-8:]
            total = {name: torch.zeros_like(part) for name, part in self.parameters.items()}
            for batch, column in places:
                one = Batch(*(part[:, column : column + 1] for part in batch))
                loss = self.env.losses(self.circuit(one.inputs)[0], one).sum()
                found = torch.autograd.grad(loss, [*self.parameters.values()])
                for name, gradient in zip(self.parameters, found, strict=True):
                    total[name] += gradient**2
            return {name: part / 8 for name, part in total.items()}

        def penalty(self) -> Any:
            return sum(
                1.5 * (fisher[name] * (part - left[name]) ** 2).sum()
                for fisher, left in self.tasks
                for name, part in self.parameters.items()
            )

    agent = make(method("ewc", every=None if by_env else 4))
    loop = Slow(agent)
    agree(agent, loop, 14)
    assert len(loop.tasks) == 3


@pytest.mark.parametrize("by_env", [False, True])
def test_shrink_perturb_agrees_with_its_formula(by_env: bool) -> None:
    class Slow(Loop):
        def after(self, batch: Batch) -> None:
            if self.number in (4, 8):
                generator = self.random()
                for part in self.parameters.values():
                    part.copy_(0.6 * part + 0.01 * torch.randn(part.shape, generator=generator, dtype=part.dtype))

    agent = make(method("shrink-perturb", every=None if by_env else 4))
    agree(agent, Slow(agent), 10)


@pytest.mark.parametrize("kind", ["circuit", "controller"])
def test_shrink_perturb_makes_no_connection_that_a_topology_lacks(kind: str) -> None:
    env = CopyEnv(width=2, min_length=1, max_length=1)
    sizes = env.input_size, env.output_size
    made: Circuit = papertape.NeatCircuit(*sizes, max_nodes=4)
    if kind == "controller":
        made = papertape.NTM(*sizes, controller={"type": "neat", "max_nodes": 4}, memory_size=4, word_size=2)
    network = next(part for part in made.modules() if isinstance(part, TopologyNetwork))
    with torch.no_grad():
        network.hidden_weight[0, 1] = 0.5
    before = [parameter != 0 for parameter in network.parameters()]
    agent = BackpropAgent(env, made, steps=2, batch_size=2, plasticity=[method("shrink-perturb", every=1)])
    for _ in range(2):
        agent.train_step()
    after = [parameter != 0 for parameter in network.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert network.hidden_weight[0, 1] != 0.5


class SlowMasks(Loop):
    """Masks as lists of pairs of a row and a column, of each layer but the last."""

    def __init__(self, agent: Any) -> None:
        super().__init__(agent)
        self.kept = {}
        for name in ("layers.0.weight", "layers.1.weight"):
            self.kept[name] = {tuple(place) for place in (self.parameters[name] != 0).nonzero().tolist()}

    def places(self, name: str) -> list[tuple[int, int]]:
        rows, columns = self.parameters[name].shape
        return [(row, column) for row in range(rows) for column in range(columns)]

    def due(self) -> bool:
        raise NotImplementedError

    def rewired(self, found: dict[str, Tensor]) -> dict[str, set[tuple[int, int]]]:
        raise NotImplementedError

    def strongest(self, name: str, count: int, among: set[tuple[int, int]]) -> set[tuple[int, int]]:
        ranked = sorted(among, key=lambda place: -abs(float(self.parameters[name][place])))
        return set(ranked[:count])

    def gradients(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.due():
            after = self.rewired(found)
            for name, kept in after.items():
                for place in self.places(name):
                    if place not in kept or place not in self.kept[name]:
                        self.parameters[name][place] = 0
            self.kept = after
        for name, kept in self.kept.items():
            for place in self.places(name):
                if place not in kept:
                    found[name][place] = 0
        return found


def test_set_agrees_with_a_loop() -> None:
    counts = {"layers.0.weight": 7, "layers.1.weight": 7}  # 14 of 15 + 20, in proportion to 8 and 9

    class Slow(SlowMasks):
        def due(self) -> bool:
            return self.number % 3 == 0

        def rewired(self, found: dict[str, Tensor]) -> dict[str, set[tuple[int, int]]]:
            generator, after = self.random(), {}
            for name, kept in self.kept.items():
                stays = self.strongest(name, len(kept) - round(0.3 * len(kept)), kept)
                drawn = torch.rand(self.parameters[name].shape, generator=generator)
                free = [place for place in self.places(name) if place not in stays]
                free.sort(key=lambda place, there=kept, drawn=drawn: (place in there, -drawn[place]))
                after[name] = stays | set(free[: counts[name] - len(stays)])
            return after

    agent = make(method("set"))
    loop = Slow(agent)
    assert {name: len(kept) for name, kept in loop.kept.items()} == counts
    first = dict(loop.kept)
    agree(agent, loop, 14)
    assert {name: len(kept) for name, kept in loop.kept.items()} == counts
    assert first != loop.kept


def test_granet_agrees_with_a_loop() -> None:
    densities = []

    class Slow(SlowMasks):
        def due(self) -> bool:
            return self.number % 2 == 0 and self.number <= 8

        def rewired(self, found: dict[str, Tensor]) -> dict[str, set[tuple[int, int]]]:
            progress = self.number / 8
            total = round(35 * (0.3 + 0.5 * (1 - progress) ** 3))
            everything = [(name, place) for name, kept in self.kept.items() for place in kept]
            everything.sort(key=lambda entry: -abs(float(self.parameters[entry[0]][entry[1]])))
            after = {}
            for name in self.kept:
                left = {place for other, place in everything[:total] if other == name}
                grown = round(0.5 * 0.5 * (1 + math.cos(math.pi * progress)) * len(left))
                stays = self.strongest(name, len(left) - grown, left)
                free = [place for place in self.places(name) if place not in left]
                free.sort(key=lambda place: -abs(float(found[name][place])))
                gone = sorted(left - stays, key=lambda place: -abs(float(found[name][place])))
                after[name] = stays | set([*free, *gone][:grown])
            densities.append(sum(map(len, after.values())) / 35)
            return after

    agent = make(method("granet"))
    agree(agent, Slow(agent), 12)
    assert len(densities) == 4
    assert densities == sorted(densities, reverse=True)
    assert densities[-1] == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(("first", "last"), [(1.0, 1.0), (0.8, 0.8), (0.9, 0.5)])
def test_granet_has_as_many_connections_as_it_says_where_there_are_few_other_places(first: float, last: float) -> None:
    agent = make({"type": "granet", "density": last, "first_density": first, "every": 1, "last_step": 6}, sizes=(8, 6))
    for step in range(1, 9):
        agent.train_step()
        kept = agent.upkeep.methods[0]
        wanted = round(kept.share(step) * sum(mask.numel() for mask in kept.connections.values()))
        assert sum(int(mask.sum()) for mask in kept.connections.values()) == wanted


# ------------------------------------------------------------------------------------------------------- units


@pytest.mark.parametrize("controller", ["lstm", "gru", "feedforward"])
@pytest.mark.parametrize("layers", [1, 2])
def test_units_of_memory_circuits_are_worth_what_they_give_times_what_reads_it(controller: str, layers: int) -> None:
    circuit = make_memory(controller=controller, layers=layers).circuit
    circuit.edit(deepened(circuit.structure(), layers - 1))
    inputs = torch.randn(5, 7, circuit.input_size, dtype=torch.float64)
    with watched(circuit, wanted=True) as watch:
        circuit(inputs)
    activity = watch.activity(circuit, inputs)
    seen = circuit.activity(inputs)
    weights = {name: part.tolist() for name, part in circuit.named_parameters()}
    found = {group.layers: contributions(circuit, group, activity) for group in groups_of(circuit)}
    assert len(found) == layers
    for group, worth in found.items():
        expected = [0.0] * 4
        for wire in circuit.wires(circuit.structure()):
            if wire.below in group:
                above = [f"controller.inputs.{wire.below + 1}", "output"][wire.below == layers]
                given = seen[above][:, :4].tolist()
                for unit in range(4):
                    read = sum(abs(row[unit]) for row in weights[f"{wire.name}.weight"])
                    expected[unit] += read * sum(abs(row[unit]) for row in given) / len(given)
        torch.testing.assert_close(worth.tolist(), expected)
    if controller == "feedforward":  # whose layers read nothing that was given before
        units = utilities(circuit, inputs)
        for group, worth in found.items():
            torch.testing.assert_close(worth, torch.stack([units[layer] for layer in group]).sum(0))


def test_what_is_watched_is_what_a_run_of_its_own_sees() -> None:
    circuit = make().circuit
    inputs = torch.randn(4, 5, 3, dtype=torch.float64)
    with watched(circuit, wanted=True) as watch:
        circuit(inputs[:2])
        circuit(inputs[2:])
    with watched(circuit, wanted=False) as nothing:
        circuit(inputs)
    assert not nothing.given
    circuit(inputs)  # no hook is left
    seen, run_anew = watch.activity(circuit, inputs), nothing.activity(circuit, inputs)
    for parts in zip(seen, run_anew, strict=True):
        for left, right in zip(*parts, strict=True):
            torch.testing.assert_close(left, right)


def test_dormant_units_are_counted_as_the_definition_says() -> None:
    circuit = make(sizes=(4, 3)).circuit
    inputs = torch.randn(6, 5, 3, dtype=torch.float64)
    with torch.no_grad():
        circuit.layers[0].weight[1], circuit.layers[0].bias[1] = 0, -1  # never above zero
        circuit.layers[1].weight[:2], circuit.layers[1].bias[:2] = 0, torch.tensor([1.0, 1e-3])
        circuit.layers[1].weight[2], circuit.layers[1].bias[2] = 0, 1
    with watched(circuit, wanted=True) as watch:
        circuit(inputs)
    activity = watch.activity(circuit, inputs)
    others = [magnitude for unit, magnitude in enumerate(activity.magnitudes[0].tolist()) if unit != 1]
    assert min(others) / (sum(others) / 4) > 0.05
    assert dormant_share(circuit, activity, DORMANT) == 2 / 7
    with torch.no_grad():
        circuit.layers[1].bias[:] = -1
    with watched(circuit, wanted=True) as watch:
        circuit(inputs)
    assert dormant_share(circuit, watch.activity(circuit, inputs), DORMANT) == 4 / 7  # a layer that gives nothing


@pytest.mark.parametrize("controller", ["lstm", "gru", "feedforward"])
@pytest.mark.parametrize("residual", [False, True])
def test_a_new_unit_of_a_memory_circuit_is_read_by_nobody(controller: str, residual: bool) -> None:
    agent = make_memory(method("continual-backprop"), controller=controller, optimiser="adam")
    if residual:
        agent.restructured(agent.circuit.edit(deepened(agent.circuit.structure(), 0)))
    renewed = 0
    for _ in range(12):
        before = [age.clone() for age in agent.upkeep.methods[0].ages]
        weights = {name: part.detach().clone() for name, part in agent.circuit.named_parameters()}
        agent.train_step()
        (group,) = groups_of(agent.circuit)
        ages = agent.upkeep.methods[0].ages[0]
        for unit in ((ages == 0) & (before[0] > 0)).nonzero().flatten().tolist():
            renewed += 1
            for wire in group.out:
                linear = agent.circuit.get_submodule(wire.name)
                assert not linear.weight[:, unit].any(), wire
                moments = agent.torch_optimiser.state[linear.weight]
                assert not moments["exp_avg"][:, unit].any()
                assert (moments["exp_avg_sq"][:, unit] > 0).all()
            for wire in group.into:
                linear, size = agent.circuit.get_submodule(wire.name), group.size
                for block in range(wire.blocks):
                    row = block * size + unit
                    if wire.layer and block == wire.quiet:
                        assert not linear.weight[row].any(), "it adds nothing to what the unit gives"
                        continue
                    moved = (linear.weight[row] - weights[f"{wire.name}.weight"][row]).abs()
                    assert moved.max() > 0.01, "drawn anew, which no update of this rate does"
    assert renewed >= 2


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_a_new_unit_below_a_residual_layer_changes_only_what_it_gave(activation: str) -> None:
    """With thresholds that take up its mean, nothing changes where the unit gives the same to all inputs."""
    torch.manual_seed(0)
    circuit = FeedForwardCircuit(3, 2, hidden_sizes=[4], activation=activation).double()
    circuit.edit(deepened(circuit.structure(), 0))
    with torch.no_grad():
        for part in circuit.parameters():
            part.normal_()
        for layer in (0, 1):
            circuit.layers[layer].weight[2] = 0
    inputs = torch.randn(2, 9, 3, dtype=torch.float64)
    with watched(circuit, wanted=True) as watch:
        before, _ = circuit(inputs)
    activity = watch.activity(circuit, inputs)
    optimiser = torch.optim.Adam(circuit.parameters())
    (group,) = groups_of(circuit)
    assert group.layers == (0, 1)
    from papertape.agents.plasticity.units import renew

    renew(circuit, optimiser, group, torch.tensor([2]), torch.Generator().manual_seed(1), activity.means)
    after, _ = circuit(inputs)
    torch.testing.assert_close(after, before)
    assert circuit.layers[0].weight[2].abs().min() > 0
    assert not circuit.layers[1].weight[2].any()


def test_units_that_are_young_or_useful_stay() -> None:
    agent = make({"type": "continual-backprop", "replacement_rate": 1.0, "maturity": 5})
    run(agent, 5)
    assert [age.tolist() for age in agent.upkeep.methods[0].ages] == [[5] * 5, [5] * 4]
    run(agent, 1)
    assert [age.tolist() for age in agent.upkeep.methods[0].ages] == [[0] * 5, [0] * 4]
    slow = make({"type": "continual-backprop", "replacement_rate": 0.01, "maturity": 5})
    weights = [part.clone() for part in flat(slow.circuit.state_dict()) if isinstance(part, Tensor)]
    assert not weights
    run(slow, 20)
    assert all((age == 20).all() for age in slow.upkeep.methods[0].ages)
    assert slow.upkeep.methods[0].due == pytest.approx([0.75, 0.6])


# ------------------------------------------------------------------------------------------------------- masks


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4),
    share=st.floats(0.01, 1),
)
def test_connections_are_spread_as_in_an_erdos_renyi_graph(sizes: list[tuple[int, int]], share: float) -> None:
    shapes = {str(index): size for index, size in enumerate(sizes)}
    counts = spread(shapes, share)
    whole = {name: rows * columns for name, (rows, columns) in shapes.items()}
    assert all(1 <= counts[name] <= whole[name] for name in shapes)
    assert abs(sum(counts.values()) - share * sum(whole.values())) <= len(shapes)
    partial = [counts[name] / sum(shapes[name]) for name in shapes if 1 < counts[name] < whole[name]]
    rounding = max((1 / sum(shapes[name]) for name in shapes), default=0)
    assert not partial or max(partial) - min(partial) <= rounding


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=1, max_size=12), st.integers(0, 14))
def test_the_largest_are_chosen_among_those_that_may_be(entries: list[tuple[int, bool]], count: int) -> None:
    values = torch.tensor([float(value) for value, _ in entries])
    among = torch.tensor([may for _, may in entries])
    chosen = largest(values, among, count)
    assert int(chosen.sum()) == min(count, int(among.sum()))
    assert not (chosen & ~among).any()
    left = values[among & ~chosen]
    assert not chosen.any() or not len(left) or values[chosen].min() >= left.max()


@pytest.mark.parametrize("density", [0.2, 0.5, 0.7, 0.9])
def test_connections_that_give_way_come_back_only_where_there_is_no_other_place(density: float) -> None:
    agent = make(method("set", density=density, every=1))
    masks: Any = agent.upkeep.methods[0]
    before = {name: mask.clone() for name, mask in masks.connections.items()}
    weights = {name: weight.abs() for name, weight in hidden_weights(agent.circuit).items()}
    update = Update(agent.circuit, agent.torch_optimiser, agent.env, None, 1, 0)  # type: ignore[arg-type]
    for name, found in masks.rewire(update).items():
        leave, free = round(0.3 * int(before[name].sum())), int((~before[name]).sum())
        weakest = torch.where(before[name], weights[name], torch.inf).flatten().topk(leave, largest=False).indices
        assert int(found.flatten()[weakest].sum()) == max(0, leave - free)
        assert found.sum() == before[name].sum()


@pytest.mark.parametrize("name", ["set", "granet"])
@pytest.mark.parametrize("optimiser", ["adam", "rmsprop", "graves-rmsprop"])
def test_layers_that_have_lost_all_their_connections_stay_finite(name: str, optimiser: str) -> None:
    agent = run(make(method(name), optimiser=optimiser, lr=0.01), 3)
    (masks,) = agent.upkeep.methods
    weights = hidden_weights(agent.circuit)
    with torch.no_grad():
        for weight, mask in masks.connections.items():
            mask.zero_()
            weights[weight].zero_()
    run(agent, 5)
    assert name == "granet" or all(mask.any() for mask in masks.connections.values())
    assert not agent.bad_steps and all(parameter.isfinite().all() for parameter in agent.circuit.parameters())


@pytest.mark.parametrize("factor", [math.nan, 1e200])
@pytest.mark.parametrize("name", ["set", "granet"])
def test_a_step_that_is_skipped_changes_no_connections(
    name: str, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = run(make(method(name)), 1)
    while not agent.upkeep.methods[0].changes(agent.step + 1):
        run(agent, 1)
    before = copy.deepcopy(agent.circuit.state_dict()), copy.deepcopy(agent.upkeep.methods[0].connections)
    losses = agent.env.losses
    monkeypatch.setattr(agent.env, "losses", lambda *given: losses(*given) * factor)
    run(agent, 1)
    assert agent.bad_steps == 1
    torch.testing.assert_close((dict(agent.circuit.state_dict()), agent.upkeep.methods[0].connections), before)


@pytest.mark.parametrize("name", ["set", "granet"])
@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd", "rmsprop", "graves-rmsprop"])
def test_masked_weights_are_zero_whatever_else_is_done_to_them(name: str, optimiser: str) -> None:
    others = [method("l2-init"), method("shrink-perturb"), method("continual-backprop")]
    chosen = {"type": optimiser, "momentum": 0.9} if optimiser in ("sgd", "rmsprop") else optimiser
    agent = make(method(name), *others, optimiser=chosen, lr=0.01)
    masks: Any = agent.upkeep.methods[-1]
    assert masks.masks
    changes = 0
    for _ in range(14):
        before = {weight: mask.clone() for weight, mask in masks.connections.items()}
        agent.train_step()
        for weight, parameter in hidden_weights(agent.circuit).items():
            mask = masks.connections[weight]
            changes += int((mask != before[weight]).sum())
            assert not parameter[~mask].any()
            for moment in agent.torch_optimiser.state[parameter].values():
                if isinstance(moment, Tensor) and moment.shape == mask.shape and "sq" not in str(moment):
                    assert moment.isfinite().all()
        moments = agent.torch_optimiser.state[parameter]
        first = moments.get("exp_avg", moments.get("momentum_buffer"))
        if first is not None and "continual-backprop" not in [type(other) for other in agent.upkeep.methods]:
            assert not first[~mask].any()
    assert changes > 10


def test_at_first_layers_give_what_they_would_without_masks() -> None:
    torch.manual_seed(0)
    circuit = FeedForwardCircuit(200, 2, hidden_sizes=[300], activation="relu")
    inputs = torch.randn(100, 200)
    before = circuit.layers[0](inputs).detach().std()
    agent = make({"type": "set", "density": 0.1})
    agent.upkeep.methods[0].begin(circuit, torch.Generator().manual_seed(0))
    assert (circuit.layers[0].weight != 0).double().mean() == pytest.approx(0.1, abs=1e-4)
    assert float(circuit.layers[0](inputs).detach().std()) == pytest.approx(float(before), rel=0.1)


@pytest.mark.parametrize("kind", ["redo", "continual-backprop", "self-modifying"])
def test_fresh_weights_give_what_they_would_without_masks(kind: str) -> None:
    torch.manual_seed(0)
    circuit = FeedForwardCircuit(200, 2, hidden_sizes=[300], activation="relu").double()
    inputs = torch.randn(100, 200).double()
    before = float(circuit.layers[0](inputs).detach().std())
    others: list[Any] = {
        "redo": [ReDo(every=1)],
        "continual-backprop": [ContinualBackprop(maturity=0, replacement_rate=1.0)],
    }.get(kind, [])
    upkeep = Upkeep([SparseEvolutionaryTraining(density=0.1), *others], circuit, Signs(), 0)
    if kind == "self-modifying":
        limits = Limits(max_layers=3, max_units=400, growth=1.0, pruning=0.3, rewired=1.0, min_age=100)
        ages = [torch.full((300,), 1000)]
        taken = Subject(circuit, inputs, ages, limits, torch.Generator(), 0, upkeep.connections)
        STRATEGIES["rewire-connections"].apply(taken)
    else:
        dead = Activity([torch.zeros(300).double()], [torch.zeros(300).double()])
        optimiser = torch.optim.SGD(circuit.parameters(), lr=0.1)
        upkeep.after_update(Update(circuit, optimiser, Signs(), None, 1, 0, activity=dead))  # type: ignore[arg-type]
    assert not circuit.layers[1].weight.any() or kind == "self-modifying", "all units are new"
    assert (circuit.layers[0].weight != 0).double().mean() == pytest.approx(0.1, abs=1e-4)
    assert float(circuit.layers[0](inputs).detach().std()) == pytest.approx(before, rel=0.1)


@pytest.mark.parametrize("order", [["set", "l2-init"], ["l2-init", "granet"]])
def test_weights_are_pulled_to_what_they_were_after_masks_came_upon_them(order: list[str]) -> None:
    agent = make(*map(method, order))
    (pulls,) = (one for one in agent.upkeep.methods if isinstance(one, L2Init))
    for name, parameter in agent.circuit.named_parameters():
        assert torch.equal(pulls.anchors[name], parameter), name
    masks = agent.upkeep.methods[-1]
    drawn = {name: mask.clone() for name, mask in masks.connections.items()}
    masks.begin(agent.circuit, generator_of(agent.seed, 1, 0))
    assert all(torch.equal(drawn[name], mask) for name, mask in masks.connections.items()), "each keeps its own number"


def test_a_connection_that_grows_begins_at_zero_with_a_moment_like_the_others() -> None:
    agent = make(method("set", every=5), optimiser="adam")
    run(agent, 4)
    before = {name: mask.clone() for name, mask in agent.upkeep.methods[0].connections.items()}
    update = Update(agent.circuit, agent.torch_optimiser, agent.env, None, 5, 0)  # type: ignore[arg-type]
    weights = hidden_weights(agent.circuit)
    squares = {name: agent.torch_optimiser.state[part]["exp_avg_sq"].clone() for name, part in weights.items()}
    agent.upkeep.on_gradient(update)
    for name, weight in weights.items():
        grown = agent.upkeep.methods[0].connections[name] & ~before[name]
        assert grown.any()
        assert not weight[grown].any()
        moments = agent.torch_optimiser.state[weight]
        assert not moments["exp_avg"][grown].any()
        assert (moments["exp_avg_sq"][grown] == squares[name][before[name]].mean()).all()


@pytest.mark.parametrize("name", ["shrink-perturb", "ewc"])
def test_a_task_ends_with_a_step_that_is_skipped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make(method(name, every=None))
    run(agent, 3)
    before = [parameter.clone() for parameter in agent.circuit.parameters()]
    bounded = agent.bounded
    monkeypatch.setattr(agent, "bounded", lambda optimiser: math.nan * bounded(optimiser))
    agent.train_step()
    assert agent.bad_steps == 1 and agent.env.task_number == 1
    if name == "shrink-perturb":
        assert not any(map(torch.equal, agent.circuit.parameters(), before))
    else:
        assert all(map(torch.equal, agent.circuit.parameters(), before))
        assert any(part.any() for part in agent.upkeep.methods[0].precisions.values())


def test_a_circuit_that_is_frozen_whole_has_nothing_to_learn() -> None:
    agent = make(steps=3)
    agent.circuit.requires_grad_(False)
    with pytest.raises(ValueError, match="parameters: the circuit has none that are not frozen"):
        agent.fit()


@pytest.mark.parametrize("name", OFTEN)
@pytest.mark.parametrize("frozen", [["layers.0.weight"], ["layers.1.bias", "layers.2.weight"], None])
def test_what_is_frozen_stays(name: str, frozen: list[str] | None) -> None:
    torch.manual_seed(4)
    circuit = FeedForwardCircuit(3, 2, hidden_sizes=[5, 4], activation="relu").double()
    kept = {}
    for part, parameter in circuit.named_parameters():
        if frozen is None or part in frozen:
            kept[part] = parameter.requires_grad_(False).clone()
    agent = BackpropAgent(Signs(), circuit, **SMALL, optimiser="sgd", lr=RATE, plasticity=[method(name)], seed=3)
    for _ in range(14):
        agent.train_step()
    for part, value in kept.items():
        assert torch.equal(agent.circuit.get_parameter(part), value), part
    if name in ("set", "granet"):
        masked = agent.upkeep.methods[0].connections
        assert set(masked) == {"layers.0.weight", "layers.1.weight"} - set(kept)
        assert all((agent.circuit.get_parameter(part)[~mask] == 0).all() for part, mask in masked.items())


# ------------------------------------------------------------------------------------ resume, structure, agents

ALL = [[method(name)] for name in OFTEN] + [
    [method(name) for name in OFTEN if name != "granet"],
    [method("granet"), method("continual-backprop", look_every=2), method("redo"), method("l2-init")],
]


def names_of(plasticity: Any) -> str:
    return "+".join(part["type"] for part in plasticity)


@pytest.mark.parametrize("plasticity", ALL, ids=names_of)
@pytest.mark.parametrize("builder", [make, make_memory])
def test_a_run_resumes_bit_for_bit(builder: Callable[..., Any], plasticity: list[Any]) -> None:
    whole, states = builder(*plasticity, optimiser="adam"), []
    for _ in range(11):
        states.append(saved(whole))
        whole.train_step()
    expected = flat(saved(whole))
    for at in (4, 9):
        again = builder(*plasticity, optimiser="adam")
        again.load_state_dict(states[at])
        run(again, 11 - at)
        assert flat(saved(again)) == expected, at


@pytest.mark.parametrize("verdict", ["paired", "reward"])
@pytest.mark.parametrize("plasticity", ALL[-2:], ids=names_of)
def test_a_self_modifying_run_resumes_bit_for_bit_with_them(plasticity: list[Any], verdict: str) -> None:
    often = {"check_every": 4, "trial_steps": 3, "min_age": 1, "growth_threshold": -1.0, "pruning_threshold": -1.0}
    options = {"kind": SelfModifyingAgent, "policy": "random", **often, "verdict": verdict, "optimiser": "adam"}
    whole, states = make(*plasticity, **options), []
    structures = set()
    for _ in range(30):
        states.append(saved(whole))
        whole.train_step()
        structures.add(whole.circuit.structure())
        check_in_step(whole)
    assert len(structures) > 1
    expected = flat(saved(whole))
    for at in (10, 21):
        again = make(*plasticity, **options)
        again.load_state_dict(states[at])
        run(again, 30 - at)
        assert flat(saved(again)) == expected, at


@pytest.mark.parametrize("plasticity", ALL[-2:], ids=names_of)
def test_what_a_trial_keeps_is_its_copy_bit_for_bit(plasticity: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever masks the circuit has that served meanwhile: each changes its connections by its own weights."""

    def keep(trial: PairedTrial, without: float, changed: float) -> Verdict | None:
        trial.without.append(without)
        trial.changed.append(changed)
        if len(trial.changed) < trial.steps:
            return None
        kept.append(flat(copy.deepcopy(trial.circuit.state_dict())))
        return Verdict(True, 0.0)

    kept: list[dict[str, Any]] = []
    compared = 0
    monkeypatch.setattr(PairedTrial, "see", keep)
    often = {"check_every": 8, "trial_steps": 7, "min_age": 1, "growth_threshold": -1.0, "pruning_threshold": -1.0}
    agent = make(*plasticity, kind=SelfModifyingAgent, policy="random", **often, optimiser="adam")
    for _ in range(40):
        agent.train_step()
        if len(kept) > compared:
            compared += 1
            assert flat(agent.circuit.state_dict()) == kept[-1]
    assert compared == agent.tracker.kept >= 3


def check_in_step(agent: Any) -> None:
    """All that methods remember has the shape of the circuit's parameters or units, and masks hold."""
    shapes = {name: part.shape for name, part in agent.circuit.named_parameters()}
    sizes = [layer.size for layer in agent.circuit.structure()]
    for kept in agent.upkeep.methods:
        if isinstance(kept, L2Init):
            assert {name: part.shape for name, part in kept.anchors.items()} == shapes
        elif isinstance(kept, EWC):
            for shaped in (kept.precisions, kept.pulls):
                assert {name: part.shape for name, part in shaped.items()} == shapes
        elif isinstance(kept, ContinualBackprop):
            for units in (kept.utilities, kept.means, kept.ages):
                assert [len(part) for part in units] == sizes
            assert len(kept.due) == len(sizes)
        elif isinstance(kept, SparseEvolutionaryTraining | GraNet):
            weights = hidden_weights(agent.circuit)
            assert kept.connections.keys() == weights.keys()
            for name, weight in weights.items():
                assert not weight[~kept.connections[name]].any()


@settings(deadline=None, max_examples=6)
@given(
    edits=st.lists(st.sampled_from(["widen", "narrow", "deepen", "nothing"]), min_size=1, max_size=5),
    memory=st.booleans(),
    sparse=st.sampled_from(["set", "granet"]),
    seed=st.integers(0, 99),
)
def test_everything_follows_changes_of_structure(edits: list[str], memory: bool, sparse: str, seed: int) -> None:
    plasticity = [method(name) for name in OFTEN if name not in ("set", "granet")] + [method(sparse)]
    agent = (make_memory if memory else make)(
        *plasticity, optimiser="adam", **({} if memory else {"activation": "tanh"})
    )
    generator = torch.Generator().manual_seed(seed)
    for edit in edits:
        run(agent, 4)
        structure = agent.circuit.structure()
        layers = unchanged(structure)
        if edit == "widen":
            layers = widened(structure, {0: [0, -1]})
        elif edit == "narrow" and structure[0].size > 2:
            layers = narrowed(structure, {0: [1]})
        elif edit == "deepen":
            layers = deepened(structure, len(structure) - 1)
        inputs = agent.env.sample(20, generator).inputs
        agent.restructured(agent.circuit.edit(layers, inputs, generator))
        check_in_step(agent)
    run(agent, 4)
    check_in_step(agent)
    masks = agent.upkeep.methods[-1]
    if sparse == "set":
        counts = spread({name: part.shape for name, part in hidden_weights(agent.circuit).items()}, masks.density)
        assert {name: int(mask.sum()) for name, mask in masks.connections.items()} == counts
    else:
        assert sum(int(mask.sum()) for mask in masks.connections.values())


def test_what_follows_is_what_belongs_to_the_same_unit() -> None:
    plasticity = [method("continual-backprop", replacement_rate=1e-6), method("l2-init"), method("set")]
    agent = run(make(*plasticity), 5)
    worth, anchors, masks = (copy.deepcopy(agent.upkeep.methods[index]) for index in range(3))
    structure = agent.circuit.structure()
    agent.restructured(agent.circuit.edit(widened(structure, {0: [2]}), None, torch.Generator().manual_seed(0)))
    worth_now, anchors_now, masks_now = agent.upkeep.methods
    assert worth_now.utilities[0].tolist() == [*worth.utilities[0].tolist(), 0]
    assert worth_now.ages[0].tolist() == [5, 5, 5, 5, 5, 0]
    assert worth_now.due == worth.due
    name = "layers.0.weight"
    assert torch.equal(anchors_now.anchors[name][:5], anchors.anchors[name])
    assert torch.equal(anchors_now.anchors[name][5], agent.circuit.layers[0].weight[5])
    assert torch.equal(masks_now.connections[name][:5], masks.connections[name])
    assert masks_now.connections[name][5].all()


@pytest.mark.parametrize("plasticity", [[], [method("continual-backprop")]], ids=["none", "some"])
@pytest.mark.parametrize("builder", [make, make_memory])
def test_looking_at_dormant_units_changes_nothing(builder: Callable[..., Any], plasticity: list[Any]) -> None:
    often, never = builder(*plasticity, optimiser="adam", log_every=1), builder(*plasticity, optimiser="adam")
    run(often, 9)
    run(never, 9)
    assert flat(often.state_dict()) == flat(never.state_dict())


def test_dormant_units_are_reported_at_log_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make(log_every=3)
    values = [agent.train_step() for _ in range(6)]
    assert ["dormant_units" in row for row in values] == [False, False, True] * 2
    assert all(0 <= row["dormant_units"] <= 1 for row in values[2::3])
    monkeypatch.setattr("papertape.agents.backprop.DORMANT_EVERY", 4)
    memory = make_memory(log_every=3)
    assert ["dormant_units" in memory.train_step() for _ in range(12)] == ([False] * 5 + [True]) * 2


def test_a_run_that_begins_again_remembers_nothing() -> None:
    agent = make(*ALL[-2], retry_every=6, target_error=0.0)
    fresh = {name: part.clone() for name, part in agent.circuit.state_dict().items()}
    run(agent, 6)
    agent._begin_again()
    other = make(*ALL[-2], retry_every=6, target_error=0.0)
    assert flat(agent.circuit.state_dict()) == flat(fresh)
    left, right = flat(agent.upkeep.state_dict()), flat(other.upkeep.state_dict())
    assert left == right


def test_a_step_that_is_skipped_changes_no_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = run(make(method("continual-backprop"), method("set")), 3)
    before = flat(agent.circuit.state_dict()), flat(agent.upkeep.state_dict())
    monkeypatch.setattr(type(agent), "bounded", lambda self, optimiser: math.inf)
    bad = agent.env.sample(6, torch.Generator())._replace(inputs=torch.full((2, 6, 3), math.nan, dtype=torch.float64))
    monkeypatch.setattr(agent.env, "sample", lambda *sizes: bad)
    agent.train_step()
    assert agent.bad_steps == 1
    assert (flat(agent.circuit.state_dict()), flat(agent.upkeep.state_dict())) == before


def test_ewc_holds_what_mattered_to_a_task() -> None:
    def forgotten(*plasticity: Any) -> float:
        agent = make(*plasticity, sizes=(20,), activation="tanh", optimiser="adam", lr=0.02)
        agent.env.every = 150 * 6
        run(agent, 190)
        agent.env.seen = 0
        batch = agent.env.sample(200, torch.Generator().manual_seed(0))
        return float(agent.env.loss(agent.circuit(batch.inputs)[0].detach(), batch))

    assert forgotten(method("ewc", every=None, strength=300.0, sequences=48)) < 0.5 * forgotten()


# ------------------------------------------------------------------------------------------------------ options


def test_a_method_is_given_by_its_name_its_options_an_object_or_a_list() -> None:
    def types(plasticity: Any) -> list[type]:
        circuit = FeedForwardCircuit(3, 2)
        agent = BackpropAgent(Signs(), circuit.double(), plasticity=plasticity)
        return [type(kept) for kept in agent.upkeep.methods]

    assert types(None) == types([]) == []
    assert types("redo") == types({"type": "redo"}) == types(ReDo()) == types(["redo"]) == [ReDo]
    assert types(["set", L2Init()]) == [L2Init, SparseEvolutionaryTraining]


@pytest.mark.parametrize(
    ("plasticity", "message"),
    [
        (["ret"], r"plasticity\.0\.type: got 'ret'; .*allowed: "),
        ([3], r"plasticity\.0: got 3; expected a block with a type"),
        ({"type": "l2-init", "strength": -1.0}, r"plasticity\.0\.strength: got -1\.0"),
        (["redo", "redo"], r"agent\.plasticity\.1\.type: got 'redo' beside another of its kind"),
        (["set", "granet"], r"agent\.plasticity\.1\.type: got 'granet' beside another of its kind"),
        (
            {"type": "granet", "first_density": 0.01},
            r"plasticity\.0\.first_density: got 0\.01; allowed is at least dens",
        ),
        ({"type": "granet", "last_step": 10}, r"plasticity\.0\.last_step: got 10; allowed is at least every \(1000\)"),
    ],
)
def test_methods_that_cannot_be_are_refused(plasticity: Any, message: str) -> None:
    circuit = FeedForwardCircuit(3, 2)
    with pytest.raises(ValueError, match=message):
        BackpropAgent(Signs(), circuit.double(), plasticity=plasticity)


@pytest.mark.parametrize("name", ["continual-backprop", "redo", "set", "granet"])
def test_circuits_without_units_to_judge_are_refused(name: str) -> None:
    env = CopyEnv(width=2, max_length=2, test_lengths=[3])
    circuit: Circuit = papertape.NTM(env.input_size, env.output_size, controller="direct", memory_size=4)
    expected = rf"^agent\.plasticity\.0\.type: got '{name}', .*units: a DirectController has no layers that can change$"
    with pytest.raises(ValueError, match=expected):
        BackpropAgent(env, circuit, plasticity=name)
    BackpropAgent(env, circuit, plasticity="l2-init")


def test_ewc_without_a_gradient_is_refused() -> None:
    env = CopyEnv(width=2, max_length=2, test_lengths=[2])
    circuit = papertape.MemoryCircuit(env.input_size, env.output_size, controller="feedforward", accessor="tape")
    with pytest.raises(ValueError, match=r"agent\.plasticity\.0\.type: got 'ewc', which needs the gradient of"):
        NodePerturbationAgent(env, circuit, plasticity={"type": "ewc", "every": 2})


@pytest.mark.parametrize("name", ["ewc", "shrink-perturb"])
def test_tasks_whose_end_nobody_says_are_refused(name: str) -> None:
    env = CopyEnv(width=2, max_length=2, test_lengths=[3])
    circuit = papertape.NTM(env.input_size, env.output_size, memory_size=4)
    with pytest.raises(ValueError, match=r"^agent\.plasticity\.0\.every: got None; the env has a single task"):
        BackpropAgent(env, circuit, plasticity=name)
    BackpropAgent(env, circuit, plasticity={"type": name, "every": 5})


def test_runs_go_on_with_the_methods_that_they_began_with() -> None:
    state = saved(run(make("redo"), 2))
    for other in ([], ["l2-init"], ["redo", "l2-init"]):
        with pytest.raises(ValueError, match=r"^agent\.plasticity: \['redo'\] -> .*; a run that goes on keeps it"):
            make(*other).load_state_dict(state)
    with pytest.raises(ValueError, match=r"^agent\.plasticity: \[\] -> \['redo'\]"):
        make("redo").load_state_dict(saved(make()))


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    env = {"type": "copy", "width": 2, "max_length": 2, "test_lengths": [3]}
    circuit = {"type": "ntm", "controller": {"type": "gru", "hidden_size": 4}, "memory_size": 4, "word_size": 3}
    agent = {**SMALL, "type": "backprop", "steps": 12, "log_every": 500, "evaluate_every": 6, "save_every": 6}
    options = {"env": env, "circuit": circuit, "agent": agent, "plots": "off", "device": "cpu", "threads": 1}
    Path("run.yaml").write_text(yaml.safe_dump(options))
    both = "agent.plasticity=[{type: set, density: 0.3, every: 4}, {type: continual-backprop, maturity: 3}, l2-init]"
    assert main(["train", "run.yaml", "name=whole", both, "agent.log_every=4"]) == 0
    assert main(["train", "run.yaml", "name=part", both, "agent.log_every=4", "agent.steps=6"]) == 0
    assert main(["train", "--resume", "part", "agent.steps=12"]) == 0

    def agent_state(name: str) -> dict[str, Any]:
        file = Path(f"runs/{name}/checkpoints/latest.pt")
        return flat(torch.load(file, weights_only=True)["agent"])

    assert agent_state("whole") == agent_state("part")
    assert main(["test", "whole"]) == 0
    assert main(["train", "run.yaml", "name=redo", "agent.plasticity=redo"]) == 0
    one = ["agent.plasticity.type=ewc", "agent.plasticity.every=5", "agent.plasticity.strength=2.5"]
    assert main(["train", "run.yaml", "name=ewc", *one]) == 0
    assert main(["train", "--resume", "ewc", "agent.plasticity.0.strength=3.5", "agent.steps=14"]) == 0
    capsys.readouterr()
    assert main(["train", "run.yaml", "agent.plasticity=ewc"]) != 0
    assert "agent.plasticity.0.every: got None" in capsys.readouterr().err
    assert main(["train", "run.yaml", "agent.plasticity={type: set, densety: 0.1}"]) != 0
    assert (
        "agent.plasticity.0.densety: unknown option; did you mean 'agent.plasticity.0.density'?"
        in capsys.readouterr().err
    )
    assert main(["train", "run.yaml", "agent.plasticity=redo", "circuit={type: transformer, model_size: 4}"]) != 0
    assert "agent.plasticity.0.type: got 'redo'" in capsys.readouterr().err
    assert main(["train", "run.yaml", "name=begun", "start=redo", "agent.plasticity=l2-init"]) == 0
    assert main(["train", "run.yaml", "start=redo", "agent.plasticity=[l2-init, set]"]) != 0
    assert "agent.plasticity.1.type: got 'set', which draws connections" in capsys.readouterr().err
    for name, row in (("whole", 4), ("part", 12)):
        assert any(found["step"] == row for found in read_metrics(Path(f"runs/{name}/metrics.jsonl")))


@pytest.mark.parametrize("kind", ["lstm", "gru", "feedforward"])
@pytest.mark.parametrize("way", ["renewed", "grown", "restructured"])
def test_new_units_begin_as_the_first_ones_do(kind: str, way: str) -> None:
    """By the units of a gated layer, as in torch.nn.LSTM, however many columns its weights have."""
    torch.manual_seed(0)
    circuit = papertape.NTM(3, 3, controller=kind, hidden_size=100, memory_size=4, word_size=4, num_reads=1)
    linear = circuit.get_submodule("controller.inputs.0")
    begun = [float(part.detach().abs().max()) for part in (linear.weight, linear.bias)]
    with torch.no_grad():
        linear.weight.zero_(), linear.bias.zero_()
    if way == "renewed":
        (group,) = groups_of(circuit)
        optimiser = torch.optim.Adam(circuit.parameters())
        renew(circuit, optimiser, group, torch.arange(100), torch.Generator().manual_seed(1))
    elif way == "grown":
        edit = LayerEdit(0, (*range(100), *[FRESH] * 100))
        circuit.edit([edit], generator=torch.Generator().manual_seed(1))
        begun = [value / (1 if kind == "feedforward" else 2**0.5) for value in begun]
    else:
        circuit.restructure([(100, False), (100, False)])
    linear = circuit.get_submodule("controller.inputs.0")
    found = [float(part.detach().abs().max()) for part in (linear.weight, linear.bias)]
    assert found == pytest.approx(begun, rel=0.05)


def test_averages_are_corrected_by_how_often_a_unit_was_seen() -> None:
    """Units made new between two looks have been seen at the later one, whatever their age."""
    circuit = FeedForwardCircuit(3, 2, hidden_sizes=[4])
    optimiser, env = torch.optim.Adam(circuit.parameters()), CopyEnv()
    batch = env.sample(1, torch.Generator())
    kept = ContinualBackprop(look_every=10, decay=0.9, maturity=0, replacement_rate=1e-9)
    kept.begin(circuit, torch.Generator())
    ones = Activity([torch.ones(4)], [torch.ones(4)])
    for step in range(1, 26):
        if step == 6:
            for part in (kept.utilities, kept.means, kept.ages, kept.times_seen):
                part[0][1] = 0
        kept.after_update(
            Update(circuit, optimiser, env, batch, step, seed=0, activity=ones if kept.looks(step) else None)
        )
    torch.testing.assert_close(kept.means[0] / kept._seen(0), torch.ones(4))


def test_what_is_remembered_is_where_the_circuit_is() -> None:
    """A checkpoint is read to the CPU, whatever device the circuit is on."""
    circuit = FeedForwardCircuit(4, 2, hidden_sizes=[3])
    env = CopyEnv(width=2, max_length=2)
    method = papertape.agents.BackpropAgent.Options(plasticity="continual-backprop").plasticity
    state = Upkeep(method, circuit, env, 1).state_dict()
    elsewhere = Upkeep(method, circuit.to("meta"), env, 1)
    elsewhere.load_state_dict(state)
    remembered = elsewhere.methods[0].state_dict()
    assert all(tensor.is_meta for name in ("utilities", "means", "ages") for tensor in remembered[name])
