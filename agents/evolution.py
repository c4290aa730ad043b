"""The evolution agent: a population of genomes answers, and a strategy makes the next one out of the fitter."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ..circuits.normalised import Moments, NormalisedCircuit
from ..core.component import build, class_of
from ..core.contracts import is_outside, plain_numbers, under
from ..core.distributed import Processes
from ..core.env import Env
from ..core.members import Stack
from ..core.options import LARGEST_STEP, Options
from ..core.registry import register
from ..core.streams import stream_seed
from ..core.task import Task
from ..core.world import World, WorldError
from .evaluation import check_saved
from .fitness import AnyFitness
from .learning import LearningAgent, TrainingError
from .population import Population, refuse_shared_buffers
from .scoring import scoring_of
from .strategies import AnyStrategy, Strategy


@register("agent", "evolution")
class EvolutionAgent(LearningAgent):
    """Samples a batch, lets the whole population answer it at once, tells the strategy how fit each member is.

    In a world the population plays the same episodes instead, all at once, each member with a state of its own.

    The population starts from the weights that the circuit has when the agent is made, so a circuit trained by
    backprop can seed it; after every generation the circuit carries the strategy's best genome, so it can go on by
    backprop, and is saved, tested and drawn like any other. Parameters that are frozen (``requires_grad_(False)``)
    stay as they are.
    """

    tasks: ClassVar[tuple[type[Task], ...]] = (Env, World)
    precisions: ClassVar[tuple[str, ...]] = ("float32", "float64")
    unit = "generation"

    strategy: AnyStrategy = Field(default="openai-es", description="how the next population comes from the last")
    fitness: AnyFitness | None = Field(
        default=None,
        description="what makes a member fit; null takes the env's loss, negative, or in a world the mean return of "
        "the episodes",
    )
    generations: int = Field(default=1000, ge=1, le=LARGEST_STEP, description="generations at most")
    shards: int = Field(
        default=1,
        ge=1,
        description="parts in which the population is evaluated, shared out among the processes that torchrun starts: "
        "at least one for each. The number of processes changes nothing; another number of parts may round "
        "differently, and draws other answers where a fitness samples them",
    )
    memory_budget: float = Field(
        default=512.0,
        gt=0,
        description="MiB that the evaluation of a population may take; what does not fit is evaluated in chunks. "
        "Another number of chunks may round differently, and draws other numbers where members draw any: answers that "
        "a fitness samples, dropout while they learn",
    )
    log_every: int = 10
    evaluate_every: int = 50
    save_every: int = 100
    max_bad_generations: int = Field(
        default=20,
        ge=1,
        description="generations in a row without a single finite fitness, after which the run stops with an error",
    )

    @classmethod
    def refuses_start(cls, options: Any) -> Iterable[str]:
        """See :meth:`Agent.refuses_start`; the strategy decides."""
        return [f"agent.strategy.{line}" for line in class_of(options.strategy).refuses_start(options.strategy)]

    def setup(self) -> None:
        """Build the population and its strategy; see also :meth:`LearningAgent.setup`.

        Raises:
            ValueError: also where the circuit has nothing to evolve, or writes to buffers that members would share, the
                strategy cannot take so many weights, or a fitness is given for a world.
        """
        super().setup()
        self.population = Population(self.circuit, memory_budget=self.memory_budget)
        refuse_shared_buffers(self.circuit, training=False)
        self.scoring = scoring_of(self.env, self.population, self.fitness)
        self.strategy = self._build_strategy(
            self.population.layout.read(self.circuit), stream_seed(self.seed, "strategy")
        )
        self.bad_generations_in_a_row = 0
        self.first_statistics = self._statistics()
        """What a circuit that standardises its inputs knew of them at first; empty for any other."""

    def _statistics(self) -> dict[str, Tensor]:
        own = self.circuit.named_buffers(recurse=False) if isinstance(self.circuit, NormalisedCircuit) else ()
        return {name: statistic.clone() for name, statistic in own}

    def _build_strategy(self, genome: Tensor, seed: int) -> Strategy:
        chosen = self.options.strategy
        if not isinstance(chosen, Options):
            raise ValueError(
                f"strategy: got a {type(chosen).__name__} that begins from a genome of its own; allowed is its name, "
                "or a block of its type and options"
            )
        strategy: Strategy = build(chosen, genome, seed=seed, layout=self.population.layout)
        if is_outside(type(strategy)):
            with under("strategy"):
                strategy.check()
        return strategy

    @property
    def last_step(self) -> int:
        """Generations at most."""
        return self.generations

    @property
    def answers_per_step(self) -> int:
        """Sequences or episodes that all members together answer in the next generation, but for a second look."""
        return self.strategy.population * self.batch_size

    def prepare(self) -> None:
        """Called before a generation is scored; nothing here."""

    def trial(self, stacks: Mapping[str, Stack], drawn: Any) -> Tensor:
        """What each sequence or episode adds to the fitness of each member of a generation, ``[P, B]``."""
        return self.score(stacks, drawn)

    def second_look(self, stacks: Mapping[str, Stack], drawn: Any) -> Tensor:
        """As :meth:`trial`, of members that a strategy wants to know better once it was told their fitness."""
        return self.score(stacks, drawn)

    def score(self, stacks: Mapping[str, Stack], drawn: Any) -> Tensor:
        """What each sequence or episode adds to the fitness of members as they are, ``[P, B]``; counts the answers."""
        scores = self.shared(stacks, lambda part, number: self.scoring.scores(part, drawn, part=number))
        self.answered += scores.numel()
        return scores

    def shared(self, stacks: Mapping[str, Stack], function: Callable[[Mapping[str, Stack], int], Tensor]) -> Tensor:
        """Results of a function for all shards of a population, each computed by one of the processes, joined.

        Args:
            stacks: P members' parameters by name.
            function: maps the parameters of some members and the number of their shard to ``[members, width]``.

        Returns:
            ``[P, width]`` in float64
        """
        shards = self._shards(len(next(iter(stacks.values()))))
        found = []
        for number in self.processes.mine(len(shards)):
            with self.own_randomness(number, 1):  # whichever process it is; and others than members learn with
                found.append(function({name: stack[shards[number]] for name, stack in stacks.items()}, number))
        rows = [
            sum(shards[number].stop - shards[number].start for number in self.processes.share_of(rank, len(shards)))
            for rank in range(self.processes.size)
        ]
        return self.processes.gather(torch.cat(found) if found else None, rows, self.strategy.genome.device)

    def _learn_what_was_seen(self, shards: int) -> None:
        """Tell a circuit that standardises its inputs what was observed, in the order of so many shards."""
        seen = getattr(self.scoring, "seen", None)
        if seen is None or not isinstance(self.circuit, NormalisedCircuit):
            return
        rows = [len(self.processes.share_of(rank, shards)) for rank in range(self.processes.size)]
        own = [torch.cat([part.number.view(1), part.mean, part.squares]) for part in seen[: rows[self.processes.rank]]]
        for row in self.processes.gather(torch.stack(own) if own else None, rows, self.strategy.genome.device):
            number, mean, squares = row.split([1, self.env.input_size, self.env.input_size])
            self.circuit.learn(Moments(number.squeeze(0), mean, squares))
        seen.clear()

    def _shards(self, members: int) -> list[slice]:
        """Where the shards of so many members lie; bounds are even, so that mirrored pairs stay together."""
        size = math.ceil(members / self.shards / 2) * 2
        return [slice(start, min(start + size, members)) for start in range(0, members, size)]

    def found(self) -> Tensor:
        """The genome ``[D]`` that the circuit carries after a generation: the strategy's best."""
        return self.strategy.best

    def join(self, processes: Processes) -> None:
        """See :meth:`Agent.join`; each process needs a shard of the population."""
        shards = len(self._shards(self.strategy.population))
        if shards < processes.size:
            raise ValueError(
                f"agent.shards: got {self.shards}, by which a population of {self.strategy.population} has "
                f"{shards} parts; {processes.size} processes share them out, allowed is at least one for each"
            )
        super().join(processes)

    @torch.no_grad()
    def train_step(self) -> dict[str, float]:
        """One generation; best, median and worst fitness, with more to watch every ``log_every`` generations.

        Raises:
            TrainingError: too many generations in a row had no finite fitness at all.
            WorldError: the world has failed; the agent is as it was before.
        """
        if not isinstance(self.env, World):
            return self._generation()
        before = copy.deepcopy(self.state_dict())
        try:
            return self._generation()
        except WorldError:
            self.load_state_dict(before)
            seen = getattr(self.scoring, "seen", None) or []
            seen.clear()
            raise

    def _generation(self) -> dict[str, float]:
        with self.own_randomness():
            return self._live()

    def _live(self) -> dict[str, float]:
        if self.tries_again():
            seed = int(torch.randint(2**62, (), generator=self.generator, device=self.generator.device))
            self.strategy = self._build_strategy(self.strategy.genome, seed)
            for name, statistic in self.first_statistics.items():
                self.circuit.get_buffer(name).copy_(statistic)
        strategy = self.strategy
        shards = len(self._shards(strategy.population))  # the next generation may have another size
        self.circuit.eval()
        self.prepare()
        drawn = self.scoring.draw(self.batch_size, self.generator)
        scores = self.trial(strategy.ask_stacks(), drawn)
        told = scores.sum(1)
        bad_before = strategy.bad_fitness
        strategy.tell(scores if strategy.per_sample else told)
        candidates = strategy.candidates()
        learned_from = self.batch_size
        if candidates is not None:
            learned_from += strategy.recheck_sequences
            again = self.scoring.draw(strategy.recheck_sequences, self.generator)
            strategy.confirm(self.second_look(self.population.layout.split(candidates), again).sum(1))
        self.population.layout.write(self.found(), self.circuit)
        self._learn_what_was_seen(shards)
        self.step += 1
        self._count_bad(strategy.bad_fitness - bad_before, bool(told.isfinite().any()))
        values = _summary(told)
        if self.step % self.log_every == 0:
            answered = self.processes.share(lambda: self.scoring.metrics(self.circuit, drawn))
            values |= {f"best_{name}": value for name, value in answered.items()}
            values |= {**plain_numbers(strategy.metrics()), "bad_fitness": float(strategy.bad_fitness)}
        self.env.move_on(learned_from)
        return values

    def judge(self) -> None:
        """See :meth:`LearningAgent.judge`; also shows what the strategy has to show."""
        super().judge()
        if self.recorder.wants_episodes:
            for name, chart in self.strategy.charts().items():
                self.recorder.chart(self.step, name, chart)

    def _count_bad(self, bad: int, any_good: bool) -> None:
        self.bad_generations_in_a_row = 0 if any_good else self.bad_generations_in_a_row + 1
        if bad and self.strategy.bad_fitness == bad:
            self.recorder.message(
                f"generation {self.step}: the fitness of {bad} members was not finite; they count as the worst "
                "(train/bad_fitness counts on)"
            )
        if self.bad_generations_in_a_row >= self.max_bad_generations:
            self.recorder.checkpoint("latest", self.state_dict())
            raise TrainingError(
                f"no member had a finite fitness {self.bad_generations_in_a_row} generations in a row, up to "
                f"generation {self.step}: try smaller mutations or perturbations in agent.strategy"
            )

    def state_dict(self) -> dict[str, Any]:
        """What every learning agent remembers, with the strategy and its population."""
        return super().state_dict() | {
            "strategy": self.strategy.state_dict(),
            "bad_generations_in_a_row": self.bad_generations_in_a_row,
            "first_statistics": dict(self.first_statistics),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from :meth:`state_dict`; see :meth:`Agent.load_state_dict`."""
        check_saved(state)
        # Checkpoints of before have none.
        state = {"first_statistics": self.first_statistics, **state}
        super().load_state_dict(state)
        self.strategy.load_state_dict(state["strategy"])
        self.bad_generations_in_a_row = state["bad_generations_in_a_row"]
        self.first_statistics = {
            name: statistic.to(self.strategy.genome.device) for name, statistic in state["first_statistics"].items()
        }


def _summary(told: Tensor) -> dict[str, float]:
    """Best, median and worst of the finite fitness ``[P]``; not a number where there is none."""
    finite = told[told.isfinite()]
    if not len(finite):
        return dict.fromkeys(("fitness_best", "fitness_median", "fitness_worst"), math.nan)
    worst, median, best = torch.quantile(
        finite.double().cpu(), torch.tensor([0.0, 0.5, 1.0], device="cpu").double()
    ).tolist()
    return {"fitness_best": best, "fitness_median": median, "fitness_worst": worst}
