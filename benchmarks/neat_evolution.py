"""Whether NEAT solves what it should, and how fast it is beside the neat-python package.

    python benchmarks/neat_evolution.py
    python benchmarks/neat_evolution.py --only speed --rounds 15

First: the preset neat-xor on 20 seeds, with generations, evaluations and hidden nodes beside those that Stanley &
Miikkulainen 2002 report. Second: the preset neat-cartpole on 10 seeds, each judged by 100 episodes that it has not seen
(needs gymnasium). Third: generations per second on exclusive or, here and in neat-python where that is installed (pip
install neat-python), with the same population, rates and activation; both take turns, round by round, each from a fresh
population; medians are printed, per second of CPU time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from papertape.agents.evaluation import evaluate
from papertape.agents.evolution import EvolutionAgent
from papertape.circuits import NeatCircuit
from papertape.core.streams import stream_seed
from papertape.core.topology import TopologyNetwork
from papertape.envs import XorEnv
from papertape.utils import factory, options

POPULATION = 150
TABLE = [((0.0, 0.0), 0.0), ((0.0, 1.0), 1.0), ((1.0, 0.0), 1.0), ((1.0, 1.0), 0.0)]

CONFIG = """
[NEAT]
fitness_criterion = max
fitness_threshold = 100
no_fitness_termination = True
pop_size = {population}
reset_on_extinction = True

[DefaultGenome]
num_inputs = 2
num_hidden = 0
num_outputs = 1
feed_forward = True
initial_connection = full_direct
activation_default = sigmoid
activation_mutate_rate = 0.0
activation_options = sigmoid
aggregation_default = sum
aggregation_mutate_rate = 0.0
aggregation_options = sum
bias_init_mean = 0.0
bias_init_stdev = 1.0
bias_max_value = 8.0
bias_min_value = -8.0
bias_mutate_power = 0.5
bias_mutate_rate = 0.7
bias_replace_rate = 0.1
compatibility_disjoint_coefficient = 1.0
compatibility_weight_coefficient = 0.4
conn_add_prob = 0.05
conn_delete_prob = 0.0
enabled_default = True
enabled_mutate_rate = 0.0
node_add_prob = 0.03
node_delete_prob = 0.0
response_init_mean = 1.0
response_init_stdev = 0.0
response_max_value = 8.0
response_min_value = -8.0
response_mutate_power = 0.0
response_mutate_rate = 0.0
response_replace_rate = 0.0
weight_init_mean = 0.0
weight_init_stdev = 1.0
weight_max_value = 8.0
weight_min_value = -8.0
weight_mutate_power = 0.5
weight_mutate_rate = 0.8
weight_replace_rate = 0.1

[DefaultSpeciesSet]
compatibility_threshold = 3.0

[DefaultStagnation]
species_fitness_func = max
max_stagnation = 15
species_elitism = 1

[DefaultReproduction]
elitism = 1
survival_threshold = 0.2
"""
"""Of neat-python: rates of the paper, as far as it has them; the population is to be filled in."""


def learn(preset: str, seed: int) -> tuple[EvolutionAgent, float]:
    """An agent that has followed a preset to its end, and the seconds that it took."""
    values = {**options.load_file(preset), "seed": seed, "device": "cpu", "plots": "off"}
    agent = factory.build(factory.parse(values)).agent
    assert isinstance(agent, EvolutionAgent)
    start = time.perf_counter()
    agent.fit()
    return agent, time.perf_counter() - start


def hidden_nodes(agent: EvolutionAgent) -> int:
    """Hidden nodes of the network that was found."""
    (network,) = (module for module in agent.circuit.modules() if isinstance(module, TopologyNetwork))
    return len(network.chart().nodes) - 1 - network.input_size - network.output_size


def xor(seeds: int) -> None:
    """How many seeds solve exclusive or, and what it takes them."""
    solved = []
    for seed in range(1, seeds + 1):
        agent, seconds = learn("neat-xor", seed)
        wrong = evaluate(agent.env, agent.circuit, sequences=4, batch_size=4, seed=0)["bits_wrong"]
        nodes = hidden_nodes(agent)
        print(
            f"  seed {seed:2}: {wrong * 4:.0f} of 4 rows wrong, generation {agent.step}, {nodes} nodes, {seconds:.1f} s"
        )
        if wrong == 0:
            solved.append((agent.step, nodes))
    print(f"exclusive or: {len(solved)} of {seeds} seeds solved", end="")
    if solved:
        generations, nodes = (statistics.mean(part) for part in zip(*solved, strict=True))
        worst = max(generation for generation, _ in solved)
        print(
            f" in {generations:.0f} generations ({generations * POPULATION:,.0f} evaluations) on average, {worst} at "
            f"most, with {nodes:.2f} hidden nodes; the paper: 32 (4,755), 90 (13,459) at most, 2.35",
            end="",
        )
    print()


def cartpole(seeds: int) -> None:
    """How many seeds balance the pole for 500 steps in every one of 100 new episodes."""
    solved = 0
    for seed in range(1, seeds + 1):
        agent, seconds = learn("neat-cartpole", seed)
        steps = evaluate(agent.env, agent.circuit, sequences=100, batch_size=100, seed=stream_seed(seed, "test"))[
            "steps"
        ]
        solved += steps == 500
        nodes = hidden_nodes(agent)
        print(f"  seed {seed:2}: {steps:.1f} steps, generation {agent.step}, {nodes} nodes, {seconds:.1f} s")
    print(f"CartPole-v1: {solved} of {seeds} seeds last 500 steps in every one of 100 new episodes")


def ours(population: int, seed: int) -> Callable[[], object]:
    """A generation of the agent: evaluation, selection, mutation, species."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "strategy": {"type": "neat", "population": population, "weight_step": 0.5},
        "batch_size": 4,
        "log_every": 10**9,
    }
    circuit = NeatCircuit(2, 1, max_nodes=8, activation="steep-sigmoid")
    return EvolutionAgent(XorEnv(), circuit, **settings, seed=seed).train_step


def neat_python(size: int, seed: int) -> Callable[[], object]:
    """A generation of neat-python."""
    package = importlib.import_module("neat")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config")
        path.write_text(CONFIG.format(population=size))
        config = package.Config(
            package.DefaultGenome,
            package.DefaultReproduction,
            package.DefaultSpeciesSet,
            package.DefaultStagnation,
            path,
        )
    population = package.Population(config, seed=seed)

    def judge(genomes: list[Any], config: Any) -> None:
        for _, genome in genomes:
            network = package.nn.FeedForwardNetwork.create(genome, config)
            genome.fitness = 4 - sum((network.activate(inputs)[0] - target) ** 2 for inputs, target in TABLE)

    return lambda: population.run(judge, 1)


def speed(population: int, rounds: int, generations: int) -> None:
    """Generations per second of both, round by round."""
    contestants: dict[str, Callable[[int, int], Callable[[], object]]] = {"papertape": ours}
    if importlib.util.find_spec("neat") is not None:
        contestants["neat-python"] = neat_python
    else:
        print("neat-python is not installed (pip install neat-python)")
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(rounds + 1):
        for name, make in contestants.items():
            generation = make(population, round_)
            start = time.process_time()
            for _ in range(generations):
                generation()
            if round_:  # the first warms up
                rates[name].append(generations / (time.process_time() - start))
    print(f"population {population}, the first {generations} generations, per second of CPU time:")
    for name, found in rates.items():
        print(f"  {name}: {statistics.median(found):.1f} generations ({min(found):.1f} to {max(found):.1f})")
    if len(rates) == 2:
        mine, theirs = (statistics.median(found) for found in rates.values())
        print(f"  papertape / neat-python: {mine / theirs:.1f}")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["xor", "cartpole", "speed"], help="this part alone")
    parser.add_argument("--xor-seeds", type=int, default=20)
    parser.add_argument("--cartpole-seeds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--generations", type=int, default=100, help="of each round")
    parser.add_argument("--populations", type=int, nargs="+", default=[150, 1500], help="whose speed is measured")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only in (None, "xor"):
        xor(arguments.xor_seeds)
    if arguments.only in (None, "cartpole"):
        cartpole(arguments.cartpole_seeds)
    if arguments.only in (None, "speed"):
        for population in arguments.populations:
            speed(population, arguments.rounds, arguments.generations)


if __name__ == "__main__":
    main()
