"""What worlds and strategies cost: steps that are wasted, steps per second, processes, evaluations of a search.

    python benchmarks/worlds.py                     # all of it
    python benchmarks/worlds.py waste speed workers
    python benchmarks/worlds.py search --seeds 10   # beside pycma, with pip install "cma>=3.3"

Needs pip install "gymnasium[mujoco]>=1.1". How well presets learn is told by ``benchmarks/learning.py swimmer`` and the
like, which goes on where it was cut off.

waste: steps of environments, counted in each, to steps of episodes, with 200 random linear policies. speed: steps of
episodes in a second of CPU time, of training as ``papertape train swimmer`` does it. workers: time of the same episodes
with one process and with two, in turn, whose returns have to be equal to the last bit; and, on Linux, processor time of
this process and of the busiest of the others, which on idle cores is what one waits for. search: evaluations until a
function falls to 1e-9, median over seeds, from the same points and step sizes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

import papertape
from papertape.agents.evolution import EvolutionAgent
from papertape.agents.population import Population
from papertape.agents.strategies import minimise
from papertape.circuits import FeedForwardCircuit
from papertape.envs import GymWorld
from papertape.utils.vector_environments import Workers

WASTE = ("Hopper-v5", "Walker2d-v5", "CartPole-v1")
POLICIES = 200
MEMBERS = (16, 64, 160)
"""That play in one process and in two."""
WORKERS_STEPS = 16_000
"""Of all of them together."""
GOAL = 1e-9
SIZES = (10, 40)


class Counted(gymnasium.Wrapper):
    """Counts the steps of all environments of its kind."""

    steps = 0

    def step(self, action: Any) -> Any:
        """A step, and one more."""
        Counted.steps += 1
        return super().step(action)


def policies(world: GymWorld, count: int) -> tuple[Population, dict[str, Tensor]]:
    """Random linear policies, with weights from a standard normal distribution."""
    population = Population(FeedForwardCircuit(world.input_size, world.output_size, hidden_sizes=[]))
    generator = torch.Generator().manual_seed(0)
    return population, population.layout.split(torch.randn(count, population.layout.size, generator=generator))


def waste() -> None:
    """Steps of environments to steps of episodes."""
    for name in WASTE:

        def make(count: int, name: str = name) -> Any:
            return gymnasium.vector.SyncVectorEnv([lambda: Counted(gymnasium.make(name))] * count)

        world = GymWorld(make=make, action="clip")
        population, stacks = policies(world, POLICIES)
        Counted.steps = 0
        played = population.play(stacks, world, 1, seed=0)
        useful = int(played.lengths.sum())
        longest = POLICIES * int(played.lengths.max())
        print(
            f"waste: {name}: {Counted.steps:,} steps, {useful:,} of them useful: {Counted.steps / useful:.3f} "
            f"(until the longest ends: {longest / useful:.1f})",
            flush=True,
        )
        world.close()


def speed(rounds: int = 3) -> None:
    """Steps of Swimmer in training."""
    world = GymWorld(id="Swimmer-v5", action="clip")
    circuit = FeedForwardCircuit(world.input_size, world.output_size, hidden_sizes=[], bias=False, zero_outputs=True)
    strategy = {"type": "sep-cma-es", "population": 12, "sigma": 0.5}
    agent = EvolutionAgent(world, circuit, strategy=strategy, batch_size=1, log_every=10**9)
    agent.train_step()
    rates = []
    for _ in range(rounds):
        started = time.process_time()
        agent.train_step()
        rates.append(12 * world.step_limit / (time.process_time() - started))
    print(f"speed: Swimmer-v5, 12 members: {statistics.median(rates):,.0f} useful steps per CPU second", flush=True)


def workers(rounds: int = 3) -> None:
    """One process and two, in turn."""
    for members in MEMBERS:
        steps = WORKERS_STEPS // members
        worlds = {
            count: GymWorld(id="Swimmer-v5", action="clip", vectorization="async", workers=count, max_steps=steps)
            for count in (1, 2)
        }
        population, stacks = policies(worlds[1], members)
        seconds: dict[int, list[float]] = {count: [] for count in worlds}
        busy: dict[int, list[float]] = {count: [] for count in worlds}
        returns = {}
        for turn in range(rounds + 1):
            for count, world in worlds.items():
                started, before = time.perf_counter(), _busy(world)
                returns[count] = population.play(stacks, world, 1, seed=turn).returns
                if turn:  # the first starts the processes
                    seconds[count].append(time.perf_counter() - started)
                    spent = [after - once for after, once in zip(_busy(world), before, strict=True)]
                    busy[count].append(spent[0] + max(spent[1:]))
            assert torch.equal(returns[1], returns[2])
        told = []
        for what, found in (("", seconds), (" of processor time", busy)):
            ratio = statistics.median(one / two for one, two in zip(found[1], found[2], strict=True))
            middle = {count: statistics.median(values) for count, values in found.items()}
            told.append(
                f"{middle[1]:.2f} s{what} with one process, {middle[2]:.2f} s with two, {ratio:.2f} times as fast"
            )
        print(f"workers: Swimmer-v5, {members} members: {'; '.join(told)}; the same returns", flush=True)
        for world in worlds.values():
            world.close()


def _busy(world: GymWorld) -> list[float]:
    """Processor time so far of this process, and of each that steps a world (by /proc, so on Linux alone)."""
    assert isinstance(world._episodes, Workers)
    found = [time.process_time()]
    for process in world._episodes.processes:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        found.append(sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK"))
    return found


def sphere(x: Tensor) -> Tensor:
    """``[…, D]`` -> ``[…]``, as all of them."""
    return x.square().sum(-1)


def ellipsoid(x: Tensor) -> Tensor:
    """Axes from 1 to 1000 times as long."""
    return (torch.logspace(0, 6, x.shape[-1], dtype=x.dtype) * x.square()).sum(-1)


def rosenbrock(x: Tensor) -> Tensor:
    """A bent valley."""
    return (100 * (x[..., 1:] - x[..., :-1].square()).square() + (1 - x[..., :-1]).square()).sum(-1)


FUNCTIONS: dict[Callable[[Tensor], Tensor], float] = {sphere: 1.0, ellipsoid: 1.0, rosenbrock: 0.0}
"""With what each element of the first point is."""


def search(seeds: int) -> None:
    """Evaluations of cma-es and cr-fm-nes, and of pycma where it is installed."""
    try:
        import cma
    except ImportError:
        cma = None
        print('search: without pycma, which pip install "cma>=3.3" installs')
    for size in SIZES:
        for function, first in FUNCTIONS.items():
            found: dict[str, list[float]] = {"cma-es": [], "cr-fm-nes": []}
            for seed in range(seeds):
                for name in ("cma-es", "cr-fm-nes"):
                    chosen = {"type": name, "sigma": 0.5}
                    given: dict[str, Any] = {"evaluations": 200_000, "target": GOAL, "batched": True, "seed": seed}
                    ended = minimise(function, [first] * size, strategy=chosen, **given)
                    found[name].append(ended.evaluations if ended.value <= GOAL else float("inf"))
                if cma is not None:
                    found.setdefault("pycma", []).append(_pycma(cma, function, [first] * size, seed))
            medians = {name: statistics.median(counts) for name, counts in found.items()}
            told = ", ".join(f"{name} {median:,.0f}" for name, median in medians.items())
            ratio = f"; cma-es to pycma {medians['cma-es'] / medians['pycma']:.2f}" if "pycma" in medians else ""
            print(f"search: {function.__name__} {size}-D: {told}{ratio}", flush=True)


def _pycma(cma: Any, function: Callable[[Tensor], Tensor], first: list[float], seed: int) -> float:
    options = {"seed": seed + 1, "ftarget": GOAL, "verbose": -9, "maxfevals": 200_000}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        strategy = cma.CMAEvolutionStrategy(first, 0.5, options)
        strategy.optimize(lambda x: float(function(torch.from_numpy(np.asarray(x)))))
    return float(strategy.result.evaluations) if strategy.result.fbest <= GOAL else float("inf")


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"waste": waste, "speed": speed, "workers": workers, "search": None}
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(parts)}; none is all")
    parser.add_argument("--seeds", type=int, default=10, help="of each search")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(parts)
    if unknown:
        parser.error(f"part: got {', '.join(sorted(unknown))}; allowed: {', '.join(parts)}")
    torch.set_num_threads(1)
    print(f"{time.strftime('%Y-%m-%d')}, papertape {papertape.__version__}, gymnasium {gymnasium.__version__}")
    for name, part in parts.items():
        if name in (arguments.parts or parts):
            search(arguments.seeds) if part is None else part()


if __name__ == "__main__":
    main()
