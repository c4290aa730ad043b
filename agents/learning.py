"""What all agents that learn share: evaluation, targets, checkpoints, stopping and resuming."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import random
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field

from ..circuits.normalised import NormalisedCircuit
from ..circuits.routed import RoutedCircuit
from ..core.agent import Agent
from ..core.circuit import Circuit
from ..core.component import outside
from ..core.env import Env
from ..core.options import LARGEST_STEP
from ..core.placement import seeded_apart, take_up
from ..core.recorder import ANSWERED
from ..core.streams import Stream, stream_seed
from ..core.world import World, WorldError
from .evaluation import (
    LESSON,
    check_keys,
    evaluate,
    evaluate_all,
    fitting,
    load_weights,
    set_error,
    show_episodes,
    weights_of,
)

logger = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """Training cannot go on; the last good state has been saved."""


class LearningAgent(Agent):
    """Takes steps until the target is reached; a subclass says what a step is and what belongs to its state."""

    # Steps of one agent, generations of another.
    own_meaning: ClassVar[frozenset[str]] = frozenset({"log_every", "evaluate_every", "save_every", "retry_every"})
    unit: ClassVar[str] = "step"
    """What one call of :meth:`train_step` is called in messages."""
    meets_tasks: ClassVar[bool] = False
    """Whether it tells a circuit whose units belong to tasks what it learns from."""
    judging: ClassVar[tuple[str, ...]] = ("evaluation_sequences", "evaluation_batch_size", "target_error_beyond")
    """Options that what validation finds depends on: after a change, the best weights so far are judged anew."""
    counted: ClassVar[str] = "sequences"
    """What :attr:`answers_per_step` counts."""

    batch_size: int = Field(
        default=16,
        ge=1,
        description="sequences (in a world, episodes) per step; in a population every member answers them all",
    )
    log_every: int = Field(
        default=50,
        ge=1,
        le=LARGEST_STEP,
        description="steps (generations) between rows of training metrics; changes nothing in what is learned",
    )
    evaluate_every: int = Field(
        default=500,
        ge=1,
        le=LARGEST_STEP,
        description="steps (generations) between evaluations on the validation sets. By these a run decides which "
        "weights are the best, whether the curriculum moves on and whether to stop, so another number here is another "
        "run",
    )
    evaluation_sequences: int = Field(
        default=128, ge=1, description="sequences or episodes that are drawn from each set that is not finite"
    )
    evaluation_batch_size: int = Field(default=64, ge=1, description="sequences that are evaluated at a time")
    save_every: int = Field(
        default=500,
        ge=1,
        le=LARGEST_STEP,
        description="steps (generations) between checkpoints; changes nothing in what is learned",
    )
    target_error: float | None = Field(
        default=None,
        ge=0,
        description="stop once the validation error on the training range is at or under this; "
        "of a stream, the mean over its envs",
    )
    target_error_beyond: float | None = Field(
        default=None,
        ge=0,
        description="let the validation sets beyond the training range decide, too: stop only once the error on each "
        "of them is at or under this, and take the weights with the lowest error on average over all sets for the "
        "best; null only reports them",
    )
    confirmation_sequences: int | None = Field(
        default=None,
        ge=1,
        description="other validation sequences on which the target errors must hold as well before the run stops",
    )
    retry_every: int | None = Field(
        default=None,
        ge=1,
        le=LARGEST_STEP,
        description="steps (generations) after which a run that has not reached its target begins again with the "
        "weights that it started from, a fresh optimiser or population, the first lesson of the curriculum, and new "
        "sequences; null never does",
    )

    @classmethod
    def check_options(cls, options: Any) -> None:
        """See :meth:`Component.check_options`."""
        super().check_options(options)
        if options.target_error_beyond is not None and options.target_error is None:
            raise ValueError("target_error_beyond: needs target_error, the error on the training range, as well")
        if options.retry_every is not None and options.target_error is None:
            raise ValueError("retry_every: needs target_error, without which no run has reached its target")

    def setup(self) -> None:
        """See :meth:`Agent.setup`; also the circuit's sizes must be the env's, time first."""
        super().setup()
        self.circuit = fitting(self.env, self.circuit)
        if isinstance(self.circuit, NormalisedCircuit) and not isinstance(self.env, World):
            raise ValueError("circuit.type: got normalised, whose inputs are the observations of a world; this is none")
        if isinstance(self.circuit, RoutedCircuit) and not self.meets_tasks:
            raise ValueError(
                f"circuit.type: got routed, whose tasks learn by backprop, each its own weights; {type(self).__name__} "
                "cannot: allowed with agents backprop and self-modifying"
            )
        if isinstance(self.env, Env) and outside(self.env):
            drawn = self.env.sample(1, torch.Generator(self.env.device).manual_seed(0))
            try:
                self.circuit.check_inputs(drawn.inputs, "[T, B, {}]")
            except ValueError as error:
                raise ValueError(f"env: {type(self.env).__qualname__}.sample: {error}") from error
        self.generator = torch.Generator(self.env.device).manual_seed(stream_seed(self.seed, "training"))
        self.best_error = math.inf
        self.last_validation: dict[str, float] = {}
        self.target_reached = False
        self.answered = 0
        """Sequences that were answered in all steps so far, or what else is :attr:`counted`."""
        self.first_lesson = copy.deepcopy(self.env.state_dict())  # an env may count in place
        self.told_unseen = False
        """Whether it was said that there is nothing to see of an episode."""

    @property
    @abstractmethod
    def last_step(self) -> int | None:
        """Steps at most; None: without end."""

    @property
    @abstractmethod
    def answers_per_step(self) -> int:
        """Sequences that are answered in the next step, or what else is :attr:`counted`."""

    @abstractmethod
    def train_step(self) -> dict[str, float]:
        """One step of learning; returns metrics, more of them every ``log_every`` steps.

        Raises:
            TrainingError: it cannot go on.
        """

    @contextlib.contextmanager
    def own_randomness(self, *part: int) -> Iterator[None]:
        """Within the block, draws from torch's global generator, such as those of dropout, depend on the run's seed and
        the step alone; afterwards that generator is as before: no checkpoint holds its state.

        Args:
            part: numbers that tell apart what is drawn within one step.
        """
        seed = random.Random(f"{self.seed} {self.step} {part}").getrandbits(63)
        with seeded_apart(torch.device(self.env.device), seed):
            yield

    def evaluate(self, stream: Stream = "validation", circuit: Circuit | None = None) -> dict[str, float]:
        """Metrics on the sets of a stream, ``<stream>/<set>/<metric>``; the same sequences and chance at every call.

        Args:
            stream: which.
            circuit: that answers; None: the agent's.
        """
        return evaluate_all(
            self.env,
            self.circuit if circuit is None else circuit,
            stream,
            sequences=self.evaluation_sequences,
            batch_size=self.evaluation_batch_size,
            seed=self.seed,
        )

    def judge(self) -> None:
        """Evaluate on validation; report, move the curriculum on, save the best checkpoint, see whether to stop."""
        values, self.target_reached = self.processes.share(self._examine)
        self.last_validation = values
        self.recorder.metrics(self.step, {**values, ANSWERED: self.answered})
        self._show("validation")
        if self.env.lesson() and self.env.advance(set_error(self.env, values, "validation", LESSON)):
            self.recorder.message(f"{self.unit} {self.step}: the curriculum moves on")
        score, before = self._score(values), self.best_error
        # Of equals the later: where no error is left in validation, more training still makes answers surer.
        if score <= before or self.target_reached:
            self.best_error = score
            if self.recorder.checkpoint("best", self.state_dict()) is False:
                self.best_error = before

    def _show(self, stream: Stream) -> None:
        """Show episodes of a stream; says the first time why there is nothing to see."""
        problem = show_episodes(self.env, self.circuit, self.recorder, self.step, stream, self.seed)
        if problem is not None and not self.told_unseen:
            self.told_unseen = True
            self.recorder.message(f"{self.unit} {self.step}: {problem}")

    def judge_anew(self, best: Mapping[str, Any] | None) -> None:
        """Find out how good the best weights so far are by validation as it is now, where it has changed.

        Args:
            best: the state saved with them; None: there are none.
        """
        self.best_error = math.inf
        if best is not None:
            circuit = copy.deepcopy(self.circuit)
            load_weights(circuit, best)
            score = self._score(self.evaluate(circuit=circuit))
            self.best_error = math.inf if math.isnan(score) else score

    def forget_validation(self) -> None:
        """Take nothing that validation has found for true, where it has changed: that of this step is made again."""
        self.last_validation = {}
        self.target_reached = False

    def _examine(self) -> tuple[dict[str, float], bool]:
        """Validation metrics, and whether the target is reached."""
        values = self.evaluate()
        return values, self.meets_target(values) and self._confirmed()

    def tries_again(self) -> bool:
        """Whether the next step is the first of another try (``retry_every``); says so, resets the curriculum."""
        every = self.retry_every
        again = bool(every and self.step and self.step % every == 0)
        if again:
            self.recorder.message(f"{self.unit} {self.step}: target not reached, begins again with the first weights")
            self.env.load_state_dict(copy.deepcopy(self.first_lesson))
        return again

    @property
    def limits(self) -> dict[tuple[str, ...], float | None]:
        """The target of the mean error of the validation sets that decide: those of the training range together, each
        beyond it only where asked for.
        """
        trained = tuple(self.env.training_range("validation"))
        limits = {trained: self.target_error}
        if self.target_error_beyond is not None:
            beyond = [(name,) for name in self.env.sets("validation") if name not in trained]
            limits |= dict.fromkeys(beyond, self.target_error_beyond)
        return limits

    def _mean_error(self, values: Mapping[str, float], names: Sequence[str]) -> float:
        """The mean over the errors of some validation sets."""
        return sum(set_error(self.env, values, "validation", name) for name in names) / len(names)

    def _score(self, values: Mapping[str, float]) -> float:
        """By which the best weights are chosen: the mean of the errors that decide."""
        return self._mean_error(values, [name for names in self.limits for name in names])

    def meets_target(self, values: Mapping[str, float]) -> bool:
        """Whether validation metrics are at or under the target errors."""
        return all(
            limit is not None and self._mean_error(values, names) <= limit for names, limit in self.limits.items()
        )

    def _confirmed(self) -> bool:
        """Whether the target holds on many other sequences as well; the hardest set, the last, is looked at first.

        Says where it does not: validation shows errors at which the run should have stopped.
        """
        if self.confirmation_sequences is None:
            return True
        sets = self.env.sets("validation")
        for names, limit in reversed(self.limits.items()):
            errors = [
                evaluate(
                    sets[name],
                    self.circuit,
                    sequences=self.confirmation_sequences,
                    batch_size=self.evaluation_batch_size,
                    seed=stream_seed(self.seed, "confirmation"),
                )[self.env.error_metric]
                for name in names
            ]
            error = sum(errors) / len(errors)
            if limit is None or not error <= limit:
                self.recorder.message(
                    f"{self.unit} {self.step}: target met in validation, but not on {self.confirmation_sequences:,} "
                    f"other sequences ({', '.join(names)}: {self.env.error_metric.replace('_', ' ')} {error:.4g})"
                )
                return False
        return True

    def is_done(self) -> bool:
        """Whether the target is reached or the steps are used up."""
        return self.target_reached or (self.last_step is not None and self.step >= self.last_step)

    def fit(self) -> dict[str, float]:
        """Learn until the target is reached, the steps are used up or a stop is requested.

        Returns:
            The last validation metrics.

        Raises:
            TrainingError: see :meth:`train_step`; or an episode could not go on.
            LostProcessError: another process that shares the work is gone.
        """
        if self.owes_validation:
            self._judge_or_save()
        started, before = time.monotonic(), self.answered
        while not (self.is_done() or self._stops()):
            values = self._step_or_save()
            self.recorder.progress(self.step, self.last_step, values)
            if self.step % self.log_every == 0:
                now = time.monotonic()
                values |= {f"{self.counted}_per_second": (self.answered - before) / (now - started)}
                self.recorder.metrics(self.step, {f"train/{name}": value for name, value in values.items()})
                started, before = now, self.answered
            if self._is_judged_now():
                self._judge_or_save()
                started, before = time.monotonic(), self.answered
            if self.step % self.save_every == 0:
                self.recorder.checkpoint("latest", self.state_dict())
        self.recorder.checkpoint("latest", self.state_dict())
        if self.is_done():
            # Asked to stop in the very last step: there is nothing to go on with.
            self.stop_requested = False
        if self.target_reached:
            self.recorder.message(f"{self.unit} {self.step}: target reached after {self.answered:,} {self.counted}")
        return self.last_validation

    def _step_or_save(self) -> dict[str, float]:
        """A step of learning; one in which a world fails is not taken, and the run is saved as it was before."""
        drawn = self.generator.get_state()
        try:
            return self.train_step()
        except WorldError as error:
            self.generator.set_state(drawn)
            self.recorder.checkpoint("latest", self.state_dict())
            raise TrainingError(f"{self.unit} {self.step + 1}: {error}{self._saved()}") from error

    @property
    def owes_validation(self) -> bool:
        """See :attr:`Agent.owes_validation`."""
        return bool(self.step) and not self.last_validation and self._is_judged_now()

    def _is_judged_now(self) -> bool:
        return self.step % self.evaluate_every == 0 or self.step == self.last_step

    def _judge_or_save(self) -> None:
        """Judge; where a world fails, the run is saved, and judged when it goes on."""
        try:
            self.judge()
        except WorldError as error:
            self.recorder.checkpoint("latest", {**self.state_dict(), "last_validation": {}})
            raise TrainingError(f"{self.unit} {self.step}: validation: {error}{self._saved()}") from error

    def _saved(self) -> str:
        """The end of an error's message: of several processes, the first alone saves."""
        return f"; saved as of {self.unit} {self.step}" if self.processes.first else ""

    def _stops(self) -> bool:
        """Whether any process was asked to stop; all stop at the same step."""
        stops = self.processes.any(self.stop_requested)
        if stops:  # else it is left alone: a signal may have set it meanwhile, for the next step
            self.stop_requested = True
        return stops

    def test(self) -> dict[str, float]:
        """Metrics and pictures of the test stream, without learning."""
        values = self.evaluate("test")
        self.recorder.metrics(self.step, values)
        self._show("test")
        return values

    def state_dict(self) -> dict[str, Any]:
        """Weights, curriculum, counters and the random state of the training sequences."""
        return {
            **weights_of(self.circuit),
            "env": self.env.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "best_error": self.best_error,
            "last_validation": dict(self.last_validation),
            "target_reached": self.target_reached,
            ANSWERED: self.answered,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from :meth:`state_dict`; see :meth:`Agent.load_state_dict`."""
        check_keys(state, self.state_dict())
        load_weights(self.circuit, state)
        self.env.load_state_dict(state["env"])
        if not take_up(self.generator, state["generator"]):
            logger.warning(
                "%s %d: saved on another kind of device than %s; goes on with other random numbers",
                self.unit,
                state["step"],
                self.generator.device,
            )
        self.step = state["step"]
        self.answered = state.get(ANSWERED, self.step * self.answers_per_step)
        self.best_error = state["best_error"]
        self.last_validation = dict(state["last_validation"])
        # With another target than before, going on is what was asked for.
        self.target_reached = state["target_reached"] and self.meets_target(self.last_validation)
