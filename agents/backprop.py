"""The backprop agent: gradient descent on the loss of an env, in mini-batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from ..core.agent import Recorder
from ..core.circuit import Circuit, detach
from ..core.distributed import Processes
from ..core.env import Batch, Env
from ..core.options import LARGEST_STEP, refusal
from .evaluation import check_keys
from .learning import LearningAgent, LearningOptions, TrainingError
from .optimisers import OPTIMISERS, OPTIONS, load_moments


class BackpropOptions(LearningOptions):
    """Options of :class:`BackpropAgent`."""

    kept = LearningOptions.kept | {"optimiser"}
    settings_of = {"optimiser": tuple(name for name in OPTIONS if name != "lr")}  # noqa: RUF012 (not an option)

    type: Literal["backprop"] = "backprop"
    steps: int = Field(20_000, ge=1, le=LARGEST_STEP)
    """Updates at most."""
    optimiser: Literal["adam", "rmsprop", "tensorflow-rmsprop", "graves-rmsprop"] = "adam"
    """What makes updates out of gradients. Each has published settings of its own, which the options that are null or
    not given take; those that it does not have must be null."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate: 1e-3 for adam, 1e-2 for rmsprop, 1e-4 for the other two."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """How the learning rate falls to ``final_lr``."""
    final_lr: float = Field(0.0, ge=0)
    restart_every: int | None = Field(None, ge=1, le=LARGEST_STEP)
    """Steps after which the schedule starts anew; null falls once, over all ``steps``."""
    warmup_steps: int = Field(0, ge=0, le=LARGEST_STEP)
    """Steps over which the learning rate rises from zero."""
    betas: tuple[float, float] | None = Field(None, strict=False)
    """Averaging of the gradient and the squared gradient: [0.9, 0.999] for adam."""
    momentum: float | None = Field(None, ge=0, lt=1)
    """Share of the last update that is kept: 0 for rmsprop and tensorflow-rmsprop, 0.9 for graves-rmsprop."""
    smoothing: float | None = Field(None, ge=0, lt=1)
    """Averaging of the squared gradient: 0.99 for rmsprop, 0.9 for tensorflow-rmsprop, 0.95 for graves-rmsprop."""
    epsilon: float | None = Field(None, gt=0)
    """Added to the root of the average: 1e-8 for adam and rmsprop; inside the root: 1e-10 for tensorflow-rmsprop, 1e-4
    for graves-rmsprop."""
    weight_decay: float | None = Field(None, ge=0)
    """L2 penalty: 0 for adam and rmsprop."""
    clip_norm: float | None = Field(50.0, gt=0)
    """Gradients are scaled down to this global norm; null leaves them."""
    clip_value: float | None = Field(None, gt=0)
    """Each gradient element is kept in [-clip_value, clip_value]; 10 in the NTM paper."""
    truncate: int | None = Field(None, ge=1)
    """Steps of time after which the state is cut off from the gradient; null goes through whole sequences."""
    max_bad_steps: int = Field(100, ge=1)
    """Steps in a row with a loss or gradient that is not finite, after which the run stops with an error."""

    @model_validator(mode="before")
    @classmethod
    def _take_published_settings(cls, given: Any) -> Any:
        name = given.get("optimiser", "adam") if isinstance(given, Mapping) else None
        if not isinstance(name, str) or name not in OPTIMISERS:
            return given
        published = OPTIMISERS[name].defaults
        return {**given, **{key: value for key, value in published.items() if given.get(key) is None}}

    @model_validator(mode="after")
    def _check(self) -> BackpropOptions:
        for name in OPTIONS:
            if getattr(self, name) is not None and name not in OPTIMISERS[self.optimiser].defaults:
                having = ", ".join(other for other, entry in OPTIMISERS.items() if name in entry.defaults)
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r}; optimiser {self.optimiser} has no such option, allowed: "
                    f"null (it belongs to {having})"
                )
        if self.betas is not None and not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: got {list(self.betas)}; allowed are two numbers from 0 to below 1")
        if self.final_lr > self.lr:
            raise ValueError(f"final_lr: got {self.final_lr}; allowed is at most lr ({self.lr})")
        return self


class BackpropAgent(LearningAgent):
    """Samples a batch, runs the circuit, descends the gradient; evaluates, saves and stops as its options say.

    Several processes share each batch: all draw the same one, each answers its share of the sequences, and the
    gradients are added up: ``batch_size`` counts the sequences of all processes together. What is not finite in
    one of them makes the sum so, and all skip that step.
    """

    Options: ClassVar[type[BackpropOptions]] = BackpropOptions
    needs_gradient = True
    env: Env
    options: BackpropOptions

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
            seed: of the run; each stream of data has one of its own made from it.
            recorder: where metrics, pictures and checkpoints go; None keeps nothing.

        Raises:
            ValueError: the circuit's sizes are not the env's, or the circuit is batch-first or has no gradient.
        """
        super().__init__(env, circuit, options or BackpropOptions(), seed=seed, recorder=recorder)
        self.optimiser = self._build_optimiser()
        self.bad_steps = 0
        self.bad_steps_in_a_row = 0
        self.first_weights = copy.deepcopy(circuit.state_dict()) if self.options.retry_every else {}

    @property
    def last_step(self) -> int:
        """Updates at most."""
        return self.options.steps

    @property
    def answers_per_step(self) -> int:
        """Sequences of a batch."""
        return self.options.batch_size

    def _build_optimiser(self) -> Optimizer:
        entry = OPTIMISERS[self.options.optimiser]
        return entry.build(self.circuit.parameters(), **{name: getattr(self.options, name) for name in entry.defaults})

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        options = self.options
        length = options.retry_every or options.steps
        step %= length
        if step < options.warmup_steps:
            return options.lr * (step + 1) / options.warmup_steps
        falls = options.restart_every or max(length - options.warmup_steps, 1)
        fallen = (step - options.warmup_steps) % falls / falls
        if options.schedule == "constant":
            return options.lr
        if options.schedule == "cosine":
            fallen = 0.5 * (1 - math.cos(math.pi * fallen))
        return options.lr + (options.final_lr - options.lr) * fallen

    def _begin_again(self) -> None:
        """Take the weights that the run started from and a fresh optimiser; the sequences go on."""
        self.circuit.load_state_dict(self.first_weights)
        self.optimiser = self._build_optimiser()

    def join(self, processes: Processes) -> None:
        """See :meth:`Agent.join`; each process needs a sequence of every batch."""
        if self.options.batch_size < processes.size:
            raise ValueError(
                f"agent.batch_size: got {self.options.batch_size}; {processes.size} processes share each batch, "
                "allowed is at least one sequence for each"
            )
        super().join(processes)

    def _own_share(self, batch: Batch) -> Batch:
        """This process's share of the sequences of a batch."""
        own = self.processes.mine(batch.inputs.shape[1])
        return Batch(*(part[:, own.start : own.stop] for part in batch))

    def _backward(self, batch: Batch, normaliser: Tensor) -> tuple[Tensor, Tensor]:
        """Accumulate the gradients of a batch; the loss, a scalar, and the outputs ``[T, B, O]``, detached."""
        length = batch.inputs.shape[0]
        chunk = self.options.truncate or length
        state, outputs = None, []
        total = torch.zeros_like(normaliser)
        for start in range(0, length, chunk):
            part = Batch(*(tensor[start : start + chunk] for tensor in batch))
            answered, state = self.circuit(part.inputs, state)
            loss = self.env.losses(answered, part).sum() / normaliser
            if loss.requires_grad:
                loss.backward()
            state = detach(state)
            outputs.append(answered.detach())
            total += loss.detach()
        return total, torch.cat(outputs)

    def train_step(self) -> dict[str, float]:
        """One update; objective, learning rate and gradient norm, with the env's metrics every ``log_every`` steps.

        Raises:
            TrainingError: too many steps in a row had a loss or gradient that was not finite.
        """
        options = self.options
        if self.tries_again():
            self._begin_again()
        self.circuit.train()
        batch = self.env.sample(options.batch_size, self.generator)
        self.optimiser.zero_grad(set_to_none=True)
        share = self._own_share(batch)
        lost, outputs = self._backward(share, self.env.normaliser(batch).to(share.inputs.dtype))
        gradients = [parameter.grad for parameter in self.circuit.parameters() if parameter.grad is not None]
        self.processes.add_up([*gradients, lost])
        loss = float(lost)
        if options.clip_value is not None:
            nn.utils.clip_grad_value_(self.circuit.parameters(), options.clip_value)
        norm = float(nn.utils.clip_grad_norm_(self.circuit.parameters(), options.clip_norm or math.inf))
        rate = self.learning_rate(self.step)
        self.step += 1
        values = {"objective": loss, "gradient_norm": norm, "learning_rate": rate}
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._skip(loss, norm)
            return values
        self.bad_steps_in_a_row = 0
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        if self.step % options.log_every == 0:
            values |= self._metrics(outputs, share) | {"bad_steps": float(self.bad_steps)}
        return values

    def _metrics(self, outputs: Tensor, share: Batch) -> dict[str, float]:
        """The env's metrics of the whole batch, from the answers to each process's share of it."""
        if self.processes.size == 1:
            return self.env.metrics(outputs, share)
        tallies = self.env.tallies(outputs, share)
        sums = torch.stack([torch.stack(pair) for pair in tallies.values()]).double()
        self.processes.add_up([sums])
        pairs = zip(tallies, sums.tolist(), strict=True)
        return {name: total / count for name, (total, count) in pairs if count > 0}

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

    def state_dict(self) -> dict[str, Any]:
        """What every learning agent remembers, with the optimiser and the weights to begin again with."""
        return super().state_dict() | {
            "optimiser": self.options.optimiser,
            "moments": self.optimiser.state_dict()["state"],
            "bad_steps": self.bad_steps,
            "bad_steps_in_a_row": self.bad_steps_in_a_row,
            "first_weights": self.first_weights,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`; see :meth:`Agent.load_state_dict`."""
        check_keys(state, self.state_dict())
        if state["optimiser"] != self.options.optimiser:
            raise ValueError(refusal("agent.optimiser", state["optimiser"], self.options.optimiser))
        if self.options.retry_every and not state["first_weights"]:
            raise ValueError(
                f"{refusal('agent.retry_every', None, self.options.retry_every)}: without it, the weights to begin "
                "again with were not kept"
            )
        super().load_state_dict(state)
        load_moments(self.optimiser, state["moments"])
        self.bad_steps = state["bad_steps"]
        self.bad_steps_in_a_row = state["bad_steps_in_a_row"]
        self.first_weights = dict(state["first_weights"])
