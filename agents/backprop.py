"""The backprop agent: gradient descent on the loss of an env, in mini-batches."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from ..core.agent import Agent, Recorder
from ..core.circuit import Circuit, detach
from ..core.env import Batch, Env
from ..core.options import Options
from .evaluation import check_fit, check_keys, check_state, evaluate, evaluate_all, held_out_errors, show_episodes
from .optimisers import TensorFlowRMSprop


class BackpropOptions(Options):
    """Options of :class:`BackpropAgent`."""

    type: Literal["backprop"] = "backprop"
    batch_size: int = Field(16, ge=1)
    """Sequences per step."""
    steps: int = Field(20_000, ge=1)
    """Updates at most."""
    optimiser: Literal["adam", "rmsprop", "tensorflow-rmsprop"] = "adam"
    lr: float = Field(1e-3, gt=0)
    """Learning rate."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """How the learning rate falls to ``final_lr``."""
    final_lr: float = Field(0.0, ge=0)
    restart_every: int | None = Field(None, ge=1)
    """Steps after which the schedule starts anew; null falls once, over all ``steps``."""
    restart_from_best: bool = False
    """Whether each new start of the schedule goes back to the best weights so far, with the optimiser as it was then:
    a run that came apart after it had converged is then set right."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises from zero."""
    betas: tuple[float, float] = Field((0.9, 0.999), strict=False)
    """Averaging of Adam's gradient and squared gradient."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Of RMSprop; 0.9 in the NTM paper."""
    smoothing: float = Field(0.95, ge=0, lt=1)
    """Averaging of RMSprop's squared gradient."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to the root (inside it with tensorflow-rmsprop) of the squared average."""
    weight_decay: float = Field(0.0, ge=0)
    """L2 penalty, with adam and rmsprop."""
    clip_norm: float | None = Field(50.0, gt=0)
    """Gradients are scaled down to this global norm; null leaves them."""
    clip_value: float | None = Field(None, gt=0)
    """Each gradient element is kept in [-clip_value, clip_value]; 10 in the NTM paper."""
    truncate: int | None = Field(None, ge=1)
    """Steps of time after which the state is cut off from the gradient; null goes through whole sequences."""
    log_every: int = Field(50, ge=1)
    """Steps between rows of training metrics."""
    evaluate_every: int = Field(500, ge=1)
    """Steps between evaluations on the held-out sets."""
    evaluation_sequences: int = Field(128, ge=1)
    """Sequences of each held-out set."""
    evaluation_batch_size: int = Field(64, ge=1)
    checkpoint_every: int = Field(500, ge=1)
    """Steps between checkpoints."""
    target_error: float | None = Field(None, ge=0)
    """Stop once the held-out error on the training range is at or under this."""
    target_error_beyond: float | None = Field(None, ge=0)
    """Stop only once the error on every held-out set beyond the training range is at or under this, too."""
    confirmation_sequences: int | None = Field(None, ge=1)
    """Sequences of each held-out set on which the target errors must hold once more before the run stops."""
    best_by: Literal["trained", "all"] = "trained"
    """Whether ``best`` is the checkpoint with the lowest error on the training range, or on average over all sets."""
    max_bad_steps: int = Field(100, ge=1)
    """Steps in a row with a loss or gradient that is not finite, after which the run stops with an error."""

    @model_validator(mode="after")
    def _check(self) -> BackpropOptions:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: got {list(self.betas)}; allowed are two numbers from 0 to below 1")
        if self.target_error_beyond is not None and self.target_error is None:
            raise ValueError("target_error_beyond: needs target_error, the error on the training range, as well")
        if self.final_lr > self.lr:
            raise ValueError(f"final_lr: got {self.final_lr}; allowed is at most lr ({self.lr})")
        if self.restart_from_best and self.restart_every is None:
            raise ValueError("restart_from_best: needs restart_every, the steps after which the schedule starts anew")
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps: got {self.warmup_steps}; allowed is less than steps ({self.steps})")
        return self


class TrainingError(RuntimeError):
    """Training cannot go on; the last good state has been saved."""


class BackpropAgent(Agent):
    """Samples a batch, runs the circuit, descends the gradient; evaluates, saves and stops as its options say."""

    Options = BackpropOptions

    def __init__(
        self,
        env: Env,
        circuit: Circuit,
        options: BackpropOptions | None = None,
        *,
        seed: int = 0,
        recorder: Recorder | None = None,
    ) -> None:
        """
        Args:
            env: the task, on the circuit's device.
            circuit: what learns; time-major.
            options: default options when None.
            seed: of the training sequences; held-out sequences have their own.
            recorder: where metrics, pictures and checkpoints go; None keeps nothing.

        Raises:
            ValueError: the circuit's sizes are not the env's, or the circuit is batch-first.
        """
        check_fit(env, circuit)
        self.env = env
        self.circuit = circuit
        self.options = options or BackpropOptions()
        self.seed = seed
        self.recorder = recorder or Recorder()
        self.optimiser = self._build_optimiser()
        self.generator = torch.Generator(env.device).manual_seed(seed)
        self.step = 0
        self.bad_steps = 0
        self.bad_steps_in_a_row = 0
        self.best_error = math.inf
        self.last_held_out: dict[str, float] = {}
        self.level_errors: list[float] = []
        self.target_reached = False
        self.best: dict[str, Any] = {}
        """Weights and optimiser at the lowest error, where ``restart_from_best`` needs them."""

    def _build_optimiser(self) -> Optimizer:
        options = self.options
        parameters = self.circuit.parameters()
        if options.optimiser == "adam":
            return torch.optim.Adam(
                parameters,
                options.lr,
                options.betas,
                options.epsilon,
                weight_decay=options.weight_decay,
            )
        if options.optimiser == "rmsprop":
            return torch.optim.RMSprop(
                parameters,
                options.lr,
                alpha=options.smoothing,
                eps=options.epsilon,
                momentum=options.momentum,
                weight_decay=options.weight_decay,
            )
        return TensorFlowRMSprop(
            parameters,
            options.lr,
            smoothing=options.smoothing,
            momentum=options.momentum,
            epsilon=options.epsilon,
        )

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        options = self.options
        if step < options.warmup_steps:
            return options.lr * (step + 1) / options.warmup_steps
        length = options.restart_every or options.steps - options.warmup_steps
        fallen = (step - options.warmup_steps) % length / length
        if options.schedule == "constant":
            return options.lr
        if options.schedule == "cosine":
            fallen = 0.5 * (1 - math.cos(math.pi * fallen))
        return options.lr + (options.final_lr - options.lr) * fallen

    def _restarts(self, step: int) -> bool:
        """Whether the schedule starts anew at a step."""
        since = step - self.options.warmup_steps
        return self.options.restart_every is not None and since > 0 and since % self.options.restart_every == 0

    def _backward(self, batch: Batch) -> tuple[float, Tensor]:
        """Accumulate the gradients of a batch; the loss and the outputs ``[T, B, O]``, detached."""
        length = batch.inputs.shape[0]
        chunk = self.options.truncate or length
        normaliser = self.env.normaliser(batch)
        state, outputs, total = None, [], 0.0
        for start in range(0, length, chunk):
            part = Batch(*(tensor[start : start + chunk] for tensor in batch))
            answered, state = self.circuit(part.inputs, state)
            loss = self.env.losses(answered, part).sum() / normaliser
            if loss.requires_grad:
                loss.backward()
            state = detach(state)
            outputs.append(answered.detach())
            total += float(loss.detach())
        return total, torch.cat(outputs)

    def train_step(self) -> dict[str, float]:
        """One update; loss, learning rate and gradient norm, with the env's metrics every ``log_every`` steps.

        Raises:
            TrainingError: too many steps in a row had a loss or gradient that was not finite.
        """
        options = self.options
        if options.restart_from_best and self.best and self._restarts(self.step):
            self.circuit.load_state_dict(self.best["circuit"])
            self.optimiser.load_state_dict(copy.deepcopy(self.best["optimiser"]))
        self.circuit.train()
        batch = self.env.sample(options.batch_size, self.generator)
        self.optimiser.zero_grad(set_to_none=True)
        loss, outputs = self._backward(batch)
        if options.clip_value is not None:
            nn.utils.clip_grad_value_(self.circuit.parameters(), options.clip_value)
        norm = float(nn.utils.clip_grad_norm_(self.circuit.parameters(), options.clip_norm or math.inf))
        rate = self.learning_rate(self.step)
        self.step += 1
        values = {"loss": loss, "gradient_norm": norm, "learning_rate": rate}
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._skip(loss, norm)
            return values
        self.bad_steps_in_a_row = 0
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        if self.step % options.log_every == 0:
            values |= self.env.metrics(outputs, batch) | {"loss": loss}
            self.level_errors.append(values[self.env.error_metric])
        return values

    def _skip(self, loss: float, norm: float) -> None:
        self.bad_steps += 1
        self.bad_steps_in_a_row += 1
        if self.bad_steps_in_a_row == 1:
            self.recorder.message(
                f"step {self.step}: loss {loss}, gradient norm {norm}: not finite, step skipped "
                f"({self.bad_steps} so far)"
            )
        if self.bad_steps_in_a_row >= self.options.max_bad_steps:
            self.recorder.checkpoint("latest", self.state_dict())
            raise TrainingError(
                f"loss or gradient was not finite {self.bad_steps_in_a_row} steps in a row, up to step {self.step}: "
                "try a smaller agent.lr or agent.clip_norm; the last good weights are saved"
            )

    def evaluate(self) -> dict[str, float]:
        """Held-out metrics, ``held_out/<set>/<metric>``; the same sequences at every call."""
        self.circuit.eval()
        return evaluate_all(
            self.env,
            self.circuit,
            sequences=self.options.evaluation_sequences,
            batch_size=self.options.evaluation_batch_size,
            seed=self.held_out_seed,
        )

    @property
    def held_out_seed(self) -> int:
        """Seed of the held-out sequences: never that of the training sequences."""
        return self.seed + 1_000_003

    def _evaluate_and_judge(self) -> None:
        """Evaluate, report, move the curriculum on, save the best checkpoint, see whether the target is reached."""
        options = self.options
        values = self.last_held_out = self.evaluate()
        self.target_reached = self.meets_target(values) and self._confirmed()
        self.recorder.metrics(self.step, values)
        show_episodes(self.env, self.circuit, self.recorder, self.step, self.held_out_seed)
        if self.level_errors and self.env.advance(sum(self.level_errors) / len(self.level_errors)):
            self.recorder.message(f"step {self.step}: the curriculum moves on")
        self.level_errors.clear()
        errors = held_out_errors(self.env, values)
        score = errors[0] if options.best_by == "trained" else sum(errors) / len(errors)
        if score < self.best_error or self.target_reached:
            self.best_error = score
            if options.restart_from_best:
                self.best = copy.deepcopy(
                    {"circuit": self.circuit.state_dict(), "optimiser": self.optimiser.state_dict()}
                )
            self.recorder.checkpoint("best", self.state_dict())

    def _confirmed(self) -> bool:
        """Whether the target holds on many other sequences as well; the hardest set, the last, is looked at first."""
        options = self.options
        if options.confirmation_sequences is None:
            return True
        for name, variant in reversed(self.env.held_out().items()):
            values = evaluate(
                variant,
                self.circuit,
                sequences=options.confirmation_sequences,
                batch_size=options.evaluation_batch_size,
                seed=self.held_out_seed + 1,
            )
            if values[self.env.error_metric] > self._limit(name):
                return False
        return True

    def _limit(self, name: str) -> float:
        """The target error of a held-out set."""
        options = self.options
        limit = options.target_error if name == next(iter(self.env.held_out())) else options.target_error_beyond
        return math.inf if limit is None else limit

    def meets_target(self, values: Mapping[str, float]) -> bool:
        """Whether held-out metrics are at or under the target errors."""
        if self.options.target_error is None:
            return False
        names = self.env.held_out()
        errors = held_out_errors(self.env, values)
        return all(error <= self._limit(name) for name, error in zip(names, errors, strict=True))

    def fit(self) -> dict[str, float]:
        """Train until the target is reached, the steps are used up or a stop is requested.

        Returns:
            The last held-out metrics.

        Raises:
            TrainingError: see :meth:`train_step`.
        """
        options = self.options
        started, sequences = time.monotonic(), 0
        while self.step < options.steps and not self.target_reached and not self.stop_requested:
            values = self.train_step()
            sequences += options.batch_size
            self.recorder.progress(self.step, options.steps, values)
            if self.step % options.log_every == 0:
                now = time.monotonic()
                values |= {"sequences_per_second": sequences / (now - started), "bad_steps": self.bad_steps}
                self.recorder.metrics(self.step, {f"train/{name}": value for name, value in values.items()})
                started, sequences = now, 0
            if self.step % options.evaluate_every == 0 or self.step == options.steps:
                self._evaluate_and_judge()
                started, sequences = time.monotonic(), 0
            if self.step % options.checkpoint_every == 0:
                self.recorder.checkpoint("latest", self.state_dict())
        self.recorder.checkpoint("latest", self.state_dict())
        if self.target_reached:
            self.recorder.message(
                f"step {self.step}: target reached after {self.step * options.batch_size:,} sequences"
            )
        return self.last_held_out

    def test(self) -> dict[str, float]:
        """Held-out metrics and pictures, without learning."""
        values = self.evaluate()
        self.recorder.metrics(self.step, values)
        show_episodes(self.env, self.circuit, self.recorder, self.step, self.held_out_seed)
        return values

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser, curriculum, counters and the random state of the training sequences."""
        return {
            "circuit": self.circuit.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "env": self.env.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "bad_steps": self.bad_steps,
            "bad_steps_in_a_row": self.bad_steps_in_a_row,
            "best_error": self.best_error,
            "last_held_out": dict(self.last_held_out),
            "level_errors": list(self.level_errors),
            "target_reached": self.target_reached,
            "best": self.best,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`; see :meth:`Agent.load_state_dict`."""
        check_keys(state, self.state_dict())
        check_state("weight", state["circuit"], self.circuit.state_dict())
        self.circuit.load_state_dict(state["circuit"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.env.load_state_dict(state["env"])
        self.generator.set_state(state["generator"].cpu())
        self.step = state["step"]
        self.bad_steps = state["bad_steps"]
        self.bad_steps_in_a_row = state["bad_steps_in_a_row"]
        self.best_error = state["best_error"]
        self.last_held_out = dict(state["last_held_out"])
        self.level_errors = list(state["level_errors"])
        self.best = dict(state["best"])
        # With another target than before, going on is what was asked for.
        self.target_reached = state["target_reached"] and self.meets_target(self.last_held_out)
