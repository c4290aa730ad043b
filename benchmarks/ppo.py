"""What an update of PPO costs: acting in 64 worlds for 128 steps, then four passes over what was seen.

    OMP_NUM_THREADS=1 python benchmarks/ppo.py
    OMP_NUM_THREADS=1 python benchmarks/ppo.py --circuit ntm --memory-size 128 --word-size 20 --hidden-size 100

Times are of the processor, not of the clock, so that they hold on a machine that does other work: median of several
updates, and of each the parts. An episode of the T-maze has 50 steps once its corridors are learned, and fewer before.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

import papertape
from papertape.agents import PPOAgent, ppo
from papertape.agents.actor_critic import ActorCritic
from papertape.envs import TMazeWorld


class Stopwatch:
    """Processor time by what it was spent on."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)

    def on(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose time is counted."""

        def timed(*given: Any, **more: Any) -> Any:
            started = time.process_time()
            result = function(*given, **more)
            self.spent[name] += time.process_time() - started
            return result

        return timed


def main() -> int:
    """Time updates and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--circuit", choices=("ntm", "dnc", "sam", "sdnc"), default="dnc")
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--memory-size", type=int, default=16)
    parser.add_argument("--word-size", type=int, default=16)
    parser.add_argument("--num-reads", type=int, default=4)
    parser.add_argument("--episodes", type=int, default=64, help="side by side")
    parser.add_argument("--steps", type=int, default=128, help="of each in an update")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--minibatches", type=int, default=4)
    parser.add_argument("--updates", type=int, default=9)
    given = parser.parse_args()
    torch.manual_seed(0)
    world = ActorCritic(TMazeWorld(maze="single", trials=10))
    sizes = {name: getattr(given, name) for name in ("hidden_size", "memory_size", "word_size", "num_reads")}
    circuit = getattr(papertape, given.circuit.upper())(world.input_size, world.output_size, **sizes)
    shape = {"batch_size": given.episodes, "rollout_steps": given.steps}
    agent = PPOAgent(world, circuit, epochs=given.epochs, minibatches=given.minibatches, lr=1e-3, **shape)
    for _ in range(10):  # until its episodes are of some length
        agent.train_step()
    watch = Stopwatch()
    played = agent.actors.world
    agent.actors.act = watch.on("acting", agent.actors.act)  # type: ignore[method-assign]
    circuit.step = watch.on("acting: the circuit", circuit.step)
    played.world.step = watch.on("acting: the world", played.world.step)  # type: ignore[method-assign]
    played.world.renew = watch.on("acting: the world", played.world.renew)  # type: ignore[method-assign]
    played.policy.sample = watch.on("acting: drawing", played.policy.sample)  # type: ignore[method-assign]
    agent.targets = watch.on("advantages", agent.targets)  # type: ignore[method-assign]
    ppo.run_again = watch.on("learning: the circuit, forward", ppo.run_again)  # type: ignore[attr-defined]
    agent.loss = watch.on("learning: the loss", agent.loss)  # type: ignore[method-assign]
    torch.Tensor.backward = watch.on("learning: backward", torch.Tensor.backward)  # type: ignore[method-assign]
    agent.descend = watch.on("learning: the optimiser", agent.descend)  # type: ignore[method-assign]
    step = watch.on("update", agent.train_step)
    spent: dict[str, list[float]] = defaultdict(list)
    for _ in range(given.updates):
        watch.spent.clear()
        step()
        for name, seconds in watch.spent.items():
            spent[name].append(seconds)
    memory = f"{given.memory_size}x{given.word_size}, LSTM {given.hidden_size}, {given.num_reads} read heads"
    work = f"{given.episodes} episodes x {given.steps} steps, {given.epochs} epochs of {given.minibatches} minibatches"
    print(f"{given.circuit} {memory}, {circuit.chosen_backend}; {work}; ", end="")
    print(f"{torch.get_num_threads()} thread(s), torch {torch.__version__}\n")
    medians = {name: statistics.median(each) for name, each in spent.items()}
    for name in sorted(medians, key=lambda part: -medians[part]):
        print(f"{name:32} {medians[name] * 1000:8.1f} ms")
    print(f"\n{given.episodes * given.steps / medians['update']:,.0f} steps per second of processor time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
