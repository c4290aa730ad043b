"""How long a generation takes, and what evaluating a population at once saves.

    python benchmarks/evolution.py
    python benchmarks/evolution.py --rounds 21 --threads 2

First: one generation (data, evaluation, selection, mutation) of 200 networks 784-64-10 on 200 images, for every
strategy and, in the same run, for EvoTorch and evosax where they are installed and for plain batched PyTorch: dense
random masks, whole perturbations, every member's product on its own. Second: the fitness of 256 small NTMs on copy,
against a loop over members; each once through the eager backend and once through the one that the circuit would choose.
Contestants take turns, round by round; medians are printed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import papertape
from papertape.agents.evolution import EvolutionAgent
from papertape.circuits import FeedForwardCircuit
from papertape.core.env import Batch
from papertape.envs import CopyEnv
from papertape.envs.classification import ClassificationEnv

POPULATION, IMAGES, HIDDEN = 200, 200, 64

STRATEGIES: dict[str, dict[str, Any]] = {
    "trust": {"type": "trust"},
    "trust, crossover": {"type": "trust", "crossover": True},
    "openai-es": {"type": "openai-es"},
    "openai-es, rank 4": {"type": "openai-es", "rank": 4},
    "openai-es, rank 1": {"type": "openai-es", "rank": 1},
    "snes": {"type": "snes", "population": POPULATION},
    "pgpe": {"type": "pgpe"},
    "deep-ga": {"type": "deep-ga", "population": POPULATION},
    "sep-cma-es": {"type": "sep-cma-es", "population": POPULATION},
}


class Noise(ClassificationEnv):
    """Images of noise with random labels: what they show does not matter for the time."""

    classes = tuple("0123456789")

    def setup(self) -> None:
        """Sizes."""
        self.input_size, self.output_size = 784, 10

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw a batch."""
        inputs = torch.rand(1, batch_size, 784, generator=generator)
        labels = torch.randint(10, (1, batch_size), generator=generator)
        return Batch(inputs, torch.nn.functional.one_hot(labels, 10).float(), torch.ones(1, batch_size))


def ours(strategy: dict[str, Any]) -> Callable[[], object]:
    """One generation of the evolution agent; trust is paid for right answers, the others by the loss."""
    reward = "reward" if strategy["type"] == "trust" else "loss"
    circuit = FeedForwardCircuit(784, 10, hidden_sizes=[HIDDEN], activation="relu")
    agent = EvolutionAgent(Noise(), circuit, strategy=strategy, fitness=reward, batch_size=IMAGES, log_every=10**9)
    return agent.train_step


def plain_answers(genomes: Tensor, images: Tensor) -> Tensor:
    """Logits ``[P, B, 10]`` of every genome ``[P, D]`` for the same images ``[B, 784]``."""
    w1, b1, w2, b2 = genomes.split([784 * HIDDEN, HIDDEN, HIDDEN * 10, 10], 1)
    hidden = torch.relu(torch.einsum("bi,poi->pbo", images, w1.view(-1, HIDDEN, 784)) + b1.unsqueeze(1))
    return torch.einsum("pbh,poh->pbo", hidden, w2.view(-1, 10, HIDDEN)) + b2.unsqueeze(1)


class PlainTrust:
    """Trust as one would first write it in batched PyTorch."""

    def __init__(self) -> None:
        self.env, self.generator = Noise(), torch.Generator().manual_seed(0)
        self.genomes = 0.05 * torch.randn(POPULATION, 785 * HIDDEN + (HIDDEN + 1) * 10)
        self.trust = torch.zeros(POPULATION)

    @torch.no_grad()
    def __call__(self) -> None:
        """One generation."""
        batch = self.env.sample(IMAGES, self.generator)
        right = plain_answers(self.genomes, batch.inputs[0]).argmax(-1) == batch.targets[0].argmax(-1)
        self.trust = 0.8 * self.trust + torch.where(right, 10.0, -1.5).sum(1)
        order = self.trust.argsort(descending=True)[: POPULATION // 5]
        survivors, trust = self.genomes[order], self.trust[order]
        chosen = torch.multinomial((trust - trust.min()).add(1e-6), POPULATION - len(order), replacement=True)
        self.genomes = torch.cat([self.mutated(survivors, 0.08), self.mutated(survivors[chosen], 0.07)])
        self.trust = torch.cat([trust, 0.03 * trust[chosen]])

    def mutated(self, genomes: Tensor, rate: float) -> Tensor:
        """Noise on a share of the weights."""
        return genomes + (torch.rand_like(genomes) < rate) * torch.randn_like(genomes) * 0.1


class PlainES:
    """OpenAI-ES as one would first write it in batched PyTorch."""

    def __init__(self) -> None:
        self.env, self.generator = Noise(), torch.Generator().manual_seed(0)
        self.center = (0.05 * torch.randn(785 * HIDDEN + (HIDDEN + 1) * 10)).requires_grad_()
        self.adam = torch.optim.Adam([self.center], 0.01, maximize=True)

    @torch.no_grad()
    def __call__(self) -> None:
        """One generation."""
        batch = self.env.sample(IMAGES, self.generator)
        noise = torch.randn(POPULATION // 2, len(self.center))
        logits = plain_answers(torch.cat([self.center + 0.02 * noise, self.center - 0.02 * noise]), batch.inputs[0])
        fitness = (torch.log_softmax(logits, -1) * batch.targets[0]).sum((1, 2))
        ranks = fitness.argsort().argsort() / (POPULATION - 1) - 0.5
        self.center.grad = (ranks[: POPULATION // 2] - ranks[POPULATION // 2 :]) @ noise / (POPULATION * 0.02)
        self.adam.step()


def evotorch(kind: str) -> Callable[[], object]:
    """One generation of EvoTorch: its PGPE (mirrored, ClipUp), SNES or genetic algorithm, vectorised."""
    package, algorithms, operators = (
        importlib.import_module(name) for name in ("evotorch", "evotorch.algorithms", "evotorch.operators")
    )
    env, generator = Noise(), torch.Generator().manual_seed(0)

    @torch.no_grad()
    def objective(genomes: Tensor) -> Tensor:
        batch = env.sample(IMAGES, generator)
        logits = plain_answers(genomes, batch.inputs[0])
        return (torch.log_softmax(logits, -1) * batch.targets[0]).sum((1, 2))

    size = 785 * HIDDEN + (HIDDEN + 1) * 10
    problem = package.Problem(
        "max", objective, solution_length=size, initial_bounds=(-0.05, 0.05), vectorized=True, seed=0
    )
    if kind == "pgpe":
        searcher = algorithms.PGPE(
            problem, popsize=POPULATION, stdev_init=0.02, center_learning_rate=0.075, stdev_learning_rate=0.1,
            optimizer="clipup", optimizer_config={"max_speed": 0.15},
        )  # fmt: skip
    elif kind == "snes":
        searcher = algorithms.SNES(problem, popsize=POPULATION, stdev_init=0.02)
    else:
        mutation = operators.GaussianMutation(problem, stdev=0.02)
        searcher = algorithms.GeneticAlgorithm(problem, popsize=POPULATION, operators=[mutation])
    step: Callable[[], object] = searcher.step
    return step


def evosax(kind: str) -> Callable[[], object]:
    """One generation of evosax (JAX, compiled): its OpenAI-ES or SNES."""
    jax, jnp, algorithms = (importlib.import_module(name) for name in ("jax", "jax.numpy", "evosax.algorithms"))
    size = 785 * HIDDEN + (HIDDEN + 1) * 10
    name = {"openai-es": "Open_ES", "snes": "SNES"}[kind]
    searcher = getattr(algorithms, name)(population_size=POPULATION, solution=jnp.zeros(size))
    params = searcher.default_params
    state = searcher.init(jax.random.key(0), jnp.zeros(size), params)

    def answers(genome: Any, images: Any) -> Any:
        w1, b1, w2, b2 = jnp.split(genome, [784 * HIDDEN, 785 * HIDDEN, 785 * HIDDEN + HIDDEN * 10])
        return jax.nn.relu(images @ w1.reshape(784, HIDDEN) + b1) @ w2.reshape(HIDDEN, 10) + b2

    def generation(key: Any, state: Any) -> Any:
        key_images, key_labels, key_ask, key_tell = jax.random.split(key, 4)
        images = jax.random.uniform(key_images, (IMAGES, 784))
        labels = jax.nn.one_hot(jax.random.randint(key_labels, (IMAGES,), 0, 10), 10)
        genomes, state = searcher.ask(key_ask, state, params)
        logits = jax.vmap(answers, (0, None))(genomes, images)
        loss = -(jax.nn.log_softmax(logits) * labels).sum((1, 2))
        return searcher.tell(key_tell, genomes, loss, state, params)[0]

    compiled = jax.jit(generation)
    keys = iter(jax.random.split(jax.random.key(1), 100_000))

    def step() -> None:
        nonlocal state
        state = jax.block_until_ready(compiled(next(keys), state))

    return step


def race(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, taking turns after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if number:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(own) for name, own in times.items()}


def members() -> dict[str, Callable[[], object]]:
    """The fitness of 256 NTMs (feed-forward controller of 32, memory 32 x 10) for 16 sequences of 10 words."""
    env = CopyEnv(min_length=10, max_length=10)
    sizes: dict[str, Any] = {"hidden_size": 32, "memory_size": 32, "word_size": 10}
    eager, chosen = (
        papertape.NTM(env.input_size, env.output_size, controller="feedforward", backend=backend, **sizes)
        for backend in ("eager", "auto")
    )
    strategy = {"type": "openai-es", "population": 256}
    agent, eager_agent = (EvolutionAgent(env, circuit, strategy=strategy) for circuit in (chosen, eager))
    genomes, stacks = agent.strategy.ask(), agent.strategy.ask_stacks()
    asked = agent.scoring.draw(16, torch.Generator().manual_seed(0))
    batch = asked.batch

    @torch.no_grad()
    def loop(circuit: papertape.NTM) -> None:
        for genome in genomes:
            agent.population.layout.write(genome, circuit)
            env.loss(circuit(batch.inputs)[0], batch)

    return {
        "all at once": lambda: agent.scoring.scores(stacks, asked),
        "all at once, eager": lambda: eager_agent.scoring.scores(stacks, asked),
        "a loop, eager": lambda: loop(eager),
        "a loop, chosen backend": lambda: loop(chosen),
    }


def main() -> None:
    """Run both comparisons and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (default: 9)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1; evosax takes all it finds)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    contestants = {name: ours(strategy) for name, strategy in STRATEGIES.items()}
    contestants |= {"plain PyTorch, trust": PlainTrust(), "plain PyTorch, OpenAI-ES": PlainES()}
    for package, build, kinds in (
        ("evotorch", evotorch, ("pgpe", "snes", "ga")),
        ("evosax", evosax, ("openai-es", "snes")),
    ):
        if importlib.util.find_spec(package) is None:
            print(f"{package} is not installed and left out")
        else:
            contestants |= {f"{package} {kind}": build(kind) for kind in kinds}
    print(f"One generation, {POPULATION} x 784-{HIDDEN}-10 x {IMAGES} images, {arguments.threads} thread(s), median:")
    for name, median in race(contestants, arguments.rounds).items():
        print(f"  {name:26} {median:8.1f} ms")
    print("Fitness of 256 NTMs, 16 sequences of 10 words:")
    taken = race(members(), max(3, arguments.rounds // 3))
    for name, median in taken.items():
        print(f"  {name:26} {median:8.1f} ms, ratio {median / taken['all at once']:.1f}")


if __name__ == "__main__":
    main()
