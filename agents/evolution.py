"""The evolution agent: a population of genomes answers, and a strategy makes the next one out of the fitter."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..core.agent import Agent, Recorder
from ..core.circuit import Circuit
from ..core.env import Batch, Env
from ..core.options import Options
from .backprop import TrainingError
from .evaluation import check_fit, check_keys, check_state, evaluate_all, held_out_errors, show_episodes
from .fitness import AnyFitness, LossFitness, fitness
from .population import Population
from .strategies import STRATEGIES, AnyStrategyOptions, OpenAIESOptions, Strategy


class EvolutionOptions(Options):
    """Options of :class:`EvolutionAgent`."""

    type: Literal["evolution"] = "evolution"
    strategy: AnyStrategyOptions = OpenAIESOptions()
    """How the next population comes from the last."""
    fitness: AnyFitness = LossFitness()
    """What makes a member fit."""
    batch_size: int = Field(16, ge=1)
    """Sequences that every member answers in a generation, the same for all."""
    generations: int = Field(1000, ge=1)
    """Generations at most."""
    memory_budget: float = Field(512.0, gt=0)
    """MiB that the evaluation of a population may take; what does not fit is evaluated in chunks."""
    log_every: int = Field(10, ge=1)
    """Generations between rows of training metrics."""
    evaluate_every: int = Field(50, ge=1)
    """Generations between evaluations of the best genome on the held-out sets."""
    evaluation_sequences: int = Field(128, ge=1)
    """Sequences of each held-out set."""
    evaluation_batch_size: int = Field(64, ge=1)
    checkpoint_every: int = Field(100, ge=1)
    """Generations between checkpoints."""
    target_error: float | None = Field(None, ge=0)
    """Stop once the held-out error on the training range is at or under this."""
    target_error_beyond: float | None = Field(None, ge=0)
    """Stop only once the error on every held-out set beyond the training range is at or under this, too."""
    confirmation_sequences: int | None = Field(None, ge=1)
    """Sequences of each held-out set on which the target errors must hold once more before the run stops."""
    best_by: Literal["trained", "all"] = "trained"
    """Whether ``best`` is the checkpoint with the lowest error on the training range, or on average over all sets."""
    max_bad_generations: int = Field(20, ge=1)
    """Generations in a row without a single finite fitness, after which the run stops with an error."""

    @model_validator(mode="after")
    def _check(self) -> EvolutionOptions:
        if self.target_error_beyond is not None and self.target_error is None:
            raise ValueError("target_error_beyond: needs target_error, the error on the training range, as well")
        return self


class EvolutionAgent(Agent):
    """Samples a batch, lets the whole population answer it at once, tells the strategy how fit each member is.

    The population starts from the weights that the circuit has when the agent is made, so a circuit trained by
    backprop can seed it; after every generation the circuit carries the strategy's best genome, so it can go on by
    backprop, and is saved, tested and drawn like any other.
    """

    Options = EvolutionOptions

    def __init__(
        self,
        env: Env,
        circuit: Circuit,
        options: EvolutionOptions | None = None,
        *,
        seed: int = 0,
        recorder: Recorder | None = None,
    ) -> None:
        """
        Args:
            env: the task, on the circuit's device.
            circuit: what each member is, and where the best genome is put; time-major.
            options: default options when None.
            seed: of the training sequences and of the strategy; held-out sequences have their own.
            recorder: where metrics, pictures and checkpoints go; None keeps nothing.

        Raises:
            ValueError: the circuit's sizes are not the env's, the circuit is batch-first or has nothing to evolve, or
                the strategy cannot take so many weights.
        """
        check_fit(env, circuit)
        self.env = env
        self.circuit = circuit
        self.options = options or EvolutionOptions()
        self.seed = seed
        self.recorder = recorder or Recorder()
        self.population = Population(circuit, memory_budget=self.options.memory_budget)
        layout = self.population.layout
        entry = STRATEGIES[self.options.strategy.type]
        self.strategy: Strategy = entry(self.options.strategy, layout.read(circuit), seed=seed + 1, layout=layout)
        self.generator = torch.Generator(env.device).manual_seed(seed)
        self.step = 0
        self.bad_generations_in_a_row = 0
        self.best_error = math.inf
        self.last_held_out: dict[str, float] = {}
        self.level_errors: list[float] = []
        self.target_reached = False

    def scores(self, stacks: Mapping[str, Any], batch: Batch) -> Tensor:
        """What each sequence of a batch adds to the fitness of each member, ``[P, B]``."""
        return self.population.evaluate(
            stacks,
            batch.inputs,
            lambda outputs: fitness(self.options.fitness, self.env, outputs, batch, self.generator),
        )

    @torch.no_grad()
    def train_step(self) -> dict[str, float]:
        """One generation; best, median and worst fitness, with more to watch every ``log_every`` generations.

        Raises:
            TrainingError: too many generations in a row had no finite fitness at all.
        """
        options, strategy = self.options, self.strategy
        self.circuit.eval()
        batch = self.env.sample(options.batch_size, self.generator)
        scores = self.scores(strategy.ask_stacks(), batch)
        told = scores.sum(1)
        bad_before = strategy.bad_fitness
        strategy.tell(scores if strategy.per_sample else told)
        candidates = strategy.candidates()
        if candidates is not None:
            second = self.env.sample(strategy.recheck_sequences, self.generator)
            strategy.confirm(self.scores(self.population.layout.split(candidates), second).sum(1))
        self.population.layout.write(strategy.best, self.circuit)
        self.step += 1
        self._count_bad(strategy.bad_fitness - bad_before, bool(told.isfinite().any()))
        values = _summary(told)
        if self.step % options.log_every == 0:
            outputs, _ = self.circuit(batch.inputs)
            answered = self.env.metrics(outputs, batch)
            self.level_errors.append(answered[self.env.error_metric])
            values |= {f"best_{name}": value for name, value in answered.items()}
            values |= {**strategy.metrics(), "bad_fitness": float(strategy.bad_fitness)}
        return values

    def _count_bad(self, bad: int, any_good: bool) -> None:
        self.bad_generations_in_a_row = 0 if any_good else self.bad_generations_in_a_row + 1
        if bad and self.strategy.bad_fitness == bad:
            self.recorder.message(
                f"generation {self.step}: the fitness of {bad} members was not finite; they count as the worst "
                "(train/bad_fitness counts on)"
            )
        if self.bad_generations_in_a_row >= self.options.max_bad_generations:
            self.recorder.checkpoint("latest", self.state_dict())
            raise TrainingError(
                f"no member had a finite fitness {self.bad_generations_in_a_row} generations in a row, up to "
                f"generation {self.step}: try smaller mutations or perturbations in agent.strategy"
            )

    def evaluate(self, sequences: int | None = None, *, confirmation: bool = False) -> dict[str, float]:
        """Held-out metrics of the circuit, ``held_out/<set>/<metric>``; the same sequences at every call.

        Args:
            sequences: of each set; None takes ``evaluation_sequences``.
            confirmation: take the other sequences, on which a target is confirmed.
        """
        self.circuit.eval()
        return evaluate_all(
            self.env,
            self.circuit,
            sequences=sequences or self.options.evaluation_sequences,
            batch_size=self.options.evaluation_batch_size,
            seed=self.held_out_seed + confirmation,
        )

    @property
    def held_out_seed(self) -> int:
        """Seed of the held-out sequences: never that of the training sequences."""
        return self.seed + 1_000_003

    def _evaluate_and_judge(self) -> None:
        """Evaluate, report, move the curriculum on, save the best checkpoint, see whether the target is reached."""
        options = self.options
        values = self.last_held_out = self.evaluate()
        if self.meets_target(values) and options.confirmation_sequences:
            values = self.last_held_out = self.evaluate(options.confirmation_sequences, confirmation=True)
        self.target_reached = self.meets_target(values)
        self.recorder.metrics(self.step, values)
        show_episodes(self.env, self.circuit, self.recorder, self.step, self.held_out_seed)
        if self.level_errors and self.env.advance(sum(self.level_errors) / len(self.level_errors)):
            self.recorder.message(f"generation {self.step}: the curriculum moves on")
        self.level_errors.clear()
        errors = held_out_errors(self.env, values)
        score = errors[0] if options.best_by == "trained" else sum(errors) / len(errors)
        if score < self.best_error or self.target_reached:
            self.best_error = score
            self.recorder.checkpoint("best", self.state_dict())

    def meets_target(self, values: Mapping[str, float]) -> bool:
        """Whether held-out metrics are at or under the target errors."""
        options = self.options
        if options.target_error is None:
            return False
        trained, *beyond = held_out_errors(self.env, values)
        limit = math.inf if options.target_error_beyond is None else options.target_error_beyond
        return trained <= options.target_error and all(error <= limit for error in beyond)

    def fit(self) -> dict[str, float]:
        """Evolve until the target is reached, the generations are used up or a stop is requested.

        Returns:
            The last held-out metrics.

        Raises:
            TrainingError: see :meth:`train_step`.
        """
        options = self.options
        answers = self.strategy.population * options.batch_size
        started, generations = time.monotonic(), 0
        while self.step < options.generations and not self.target_reached and not self.stop_requested:
            values = self.train_step()
            generations += 1
            self.recorder.progress(self.step, options.generations, values)
            if self.step % options.log_every == 0:
                now = time.monotonic()
                values |= {"sequences_per_second": generations * answers / (now - started)}
                self.recorder.metrics(self.step, {f"train/{name}": value for name, value in values.items()})
                started, generations = now, 0
            if self.step % options.evaluate_every == 0 or self.step == options.generations:
                self._evaluate_and_judge()
                started, generations = time.monotonic(), 0
            if self.step % options.checkpoint_every == 0:
                self.recorder.checkpoint("latest", self.state_dict())
        self.recorder.checkpoint("latest", self.state_dict())
        if self.target_reached:
            self.recorder.message(
                f"generation {self.step}: target reached after {self.step * answers:,} answered sequences"
            )
        return self.last_held_out

    def test(self) -> dict[str, float]:
        """Held-out metrics and pictures of the circuit, without learning."""
        values = self.evaluate()
        self.recorder.metrics(self.step, values)
        show_episodes(self.env, self.circuit, self.recorder, self.step, self.held_out_seed)
        return values

    def state_dict(self) -> dict[str, Any]:
        """Weights of the best genome, strategy with its population, curriculum, counters and random states."""
        return {
            "circuit": self.circuit.state_dict(),
            "strategy": self.strategy.state_dict(),
            "env": self.env.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "bad_generations_in_a_row": self.bad_generations_in_a_row,
            "best_error": self.best_error,
            "last_held_out": dict(self.last_held_out),
            "level_errors": list(self.level_errors),
            "target_reached": self.target_reached,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`; see :meth:`Agent.load_state_dict`."""
        check_keys(state, self.state_dict())
        check_state("weight", state["circuit"], self.circuit.state_dict())
        self.strategy.load_state_dict(state["strategy"])
        self.circuit.load_state_dict(state["circuit"])
        self.env.load_state_dict(state["env"])
        self.generator.set_state(state["generator"].cpu())
        self.step = state["step"]
        self.bad_generations_in_a_row = state["bad_generations_in_a_row"]
        self.best_error = state["best_error"]
        self.last_held_out = dict(state["last_held_out"])
        self.level_errors = list(state["level_errors"])
        # With another target than before, going on is what was asked for.
        self.target_reached = state["target_reached"] and self.meets_target(self.last_held_out)


def _summary(told: Tensor) -> dict[str, float]:
    """Best, median and worst of the finite fitness ``[P]``; not a number where there is none."""
    finite = told[told.isfinite()]
    if not len(finite):
        return dict.fromkeys(("fitness_best", "fitness_median", "fitness_worst"), math.nan)
    worst, median, best = torch.quantile(finite.double().cpu(), torch.tensor([0.0, 0.5, 1.0]).double()).tolist()
    return {"fitness_best": best, "fitness_median": median, "fitness_worst": worst}
