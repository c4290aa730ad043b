"""The backprop agent: gradient descent on the loss of an env, in mini-batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from ..core.circuit import Circuit
from ..core.component import build, class_of
from ..core.contracts import is_outside, under
from ..core.distributed import Processes
from ..core.env import Batch, Env
from ..core.options import LARGEST_STEP, refusal
from ..core.registry import name_of, register
from ..core.state import detach
from ..core.structure import Change, Follower, follow_optimiser
from .evaluation import check_keys
from .learning import LearningAgent, TrainingError
from .optimisers import AnyOptimiser, Optimiser

LOOK_EVERY, LOOKS = 20, 3
"""Steps from one look at whether training diverges to the next, and how many in a row must say that it does."""
DIVERGED = 1.2
"""Times the loss of answers that are all zero."""


@register("agent", "backprop")
class BackpropAgent(LearningAgent):
    """Samples a batch, runs the circuit, descends the gradient; evaluates, saves and stops as its options say.

    Several processes share each batch: all draw the same one, each answers its share of the sequences, and the
    gradients are added up: ``batch_size`` counts the sequences of all processes together. If a gradient is not finite
    in one of them, the sum is not either, and all skip that step.

    What is kept beside the weights and shaped like them (a mask, what is known of their importance), or has a value for
    each unit, is kept by a :class:`~papertape.core.structure.Follower` in :attr:`followers`: whoever changes the
    structure of the circuit tells all of them by :meth:`restructured`.
    """

    needs_gradient = True

    env: Env = Field(kw_only=False, description="the task, on the circuit's device")
    steps: int | None = Field(
        default=20_000, ge=1, le=LARGEST_STEP, description="updates at most; null goes on until it is stopped"
    )
    optimiser: AnyOptimiser = Field(default="adam", description="what makes updates out of gradients")
    lr: float | None = Field(default=None, gt=0, description="learning rate; null: the one published for the optimiser")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        default="constant", description="how the learning rate falls to final_lr"
    )
    final_lr: float = Field(default=0.0, ge=0, description="learning rate at the end of a schedule that falls")
    cycle_steps: int | None = Field(
        default=None,
        ge=1,
        le=LARGEST_STEP,
        description="steps of one fall of the learning rate, after which it starts anew; null falls once, over all "
        "steps",
    )
    warmup_steps: int = Field(
        default=0, ge=0, le=LARGEST_STEP, description="steps over which the learning rate rises from zero"
    )
    clip_norm: float | None = Field(
        default=50.0, gt=0, description="gradients are scaled down to this global norm; null leaves them"
    )
    clip_value: float | None = Field(
        default=None,
        gt=0,
        description="each gradient element is kept in [-clip_value, clip_value]; 10 in the NTM paper",
    )
    truncate: int | None = Field(
        default=None,
        ge=1,
        description="steps of time after which the state is cut off from the gradient; null goes through whole "
        "sequences",
    )
    max_bad_steps: int = Field(
        default=100,
        ge=1,
        description="steps in a row with a loss or gradient that is not finite, after which the run stops with an "
        "error",
    )

    @classmethod
    def check_options(cls, options: Any) -> None:
        """See :meth:`Component.check_options`."""
        super().check_options(options)
        if (
            options.steps is None
            and options.schedule != "constant"
            and not (options.cycle_steps or options.retry_every)
        ):
            raise ValueError(
                f"steps: got None; a {options.schedule} schedule falls over all steps, or over cycle_steps"
            )
        lr = options.lr or class_of(options.optimiser).published_lr
        if options.final_lr > lr:
            raise ValueError(f"final_lr: got {options.final_lr}; allowed is at most lr ({lr})")

    def setup(self) -> None:
        """Build the optimiser; see also :meth:`LearningAgent.setup`."""
        super().setup()
        self.optimiser = build(self.optimiser)
        if is_outside(type(self.optimiser)):
            with under("optimiser"):
                self.optimiser.check()
        self.lr = self.lr or self.optimiser.published_lr
        self.torch_optimiser = self._make_optimiser()
        self.followers: list[Follower] = []
        """What else follows a change of the circuit's structure, besides the optimiser."""
        self.bad_steps = 0
        self.bad_steps_in_a_row = 0
        # Of what is looked out for alone: not part of the state, for it changes nothing.
        self._first_ratio: float | None = None
        self._worse_in_a_row = 0
        self._warned = False
        self.first_weights = copy.deepcopy(self.circuit.state_dict()) if self.retry_every else {}

    def _make_optimiser(self) -> Optimizer:
        made: Optimizer = self.optimiser.make(self.circuit.parameters(), self.lr)
        return made

    @property
    def last_step(self) -> int | None:
        """Updates at most; None: without end."""
        return self.steps

    @property
    def answers_per_step(self) -> int:
        """Sequences of a batch."""
        return self.batch_size

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        assert self.lr is not None
        length = self.retry_every or self.steps or LARGEST_STEP
        step %= length
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        falls = self.cycle_steps or max(length - self.warmup_steps, 1)
        fallen = (step - self.warmup_steps) % falls / falls
        if self.schedule == "cosine":
            fallen = 0.5 * (1 - math.cos(math.pi * fallen))
        return self.lr + (self.final_lr - self.lr) * fallen

    def _begin_again(self) -> None:
        """Take the weights that the run started from and a fresh optimiser; the sequences go on."""
        self.circuit.load_state_dict(self.first_weights)
        self.torch_optimiser = self._make_optimiser()

    def join(self, processes: Processes) -> None:
        """See :meth:`Agent.join`; each process needs a sequence of every batch."""
        if self.batch_size < processes.size:
            raise ValueError(
                f"agent.batch_size: got {self.batch_size}; {processes.size} processes share each batch, "
                "allowed is at least one sequence for each"
            )
        super().join(processes)

    def _own_share(self, batch: Batch) -> Batch:
        """This process's share of the sequences of a batch."""
        own = self.processes.mine(batch.inputs.shape[1])
        return Batch(*(part[:, own.start : own.stop] for part in batch))

    def restructured(self, change: Change) -> None:
        """Let all that is shaped like the circuit's parameters follow a change of their structure."""
        follow_optimiser(change, self.torch_optimiser)
        for follower in self.followers:
            follower.follow(change)

    def _gradients(self, circuit: Circuit, batch: Batch) -> tuple[float, float, Tensor]:
        """Leave the gradients of a batch in a circuit's parameters, bounded as the options say.

        Returns:
            The loss, the norm of the gradient before it was scaled down, and the outputs to this process's share,
            ``[T, B, O]``, detached.
        """
        share = self._own_share(batch)
        with self.own_randomness(self.processes.rank):
            lost, outputs = self._backward(circuit, share, self.env.normaliser(batch).to(share.inputs.dtype))
        gradients = [parameter.grad for parameter in circuit.parameters() if parameter.grad is not None]
        self.processes.add_up([*gradients, lost])
        loss = float(lost)
        if self.clip_value is not None:
            nn.utils.clip_grad_value_(circuit.parameters(), self.clip_value)
        return loss, float(nn.utils.clip_grad_norm_(circuit.parameters(), self.clip_norm or math.inf)), outputs

    def _backward(self, circuit: Circuit, batch: Batch, normaliser: Tensor) -> tuple[Tensor, Tensor]:
        """Accumulate the gradients of a batch; the loss, a scalar, and the outputs ``[T, B, O]``, detached."""
        length = batch.inputs.shape[0]
        chunk = self.truncate or length
        state, outputs = None, []
        total = torch.zeros_like(normaliser)
        for start in range(0, length, chunk):
            part = Batch(*(tensor[start : start + chunk] for tensor in batch))
            answered, state = circuit(part.inputs, state)
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
        if self.tries_again():
            self._begin_again()
        self.circuit.train()
        batch = self.env.sample(self.batch_size, self.generator)
        self.torch_optimiser.zero_grad(set_to_none=True)
        loss, norm, outputs = self._gradients(self.circuit, batch)
        rate = self.learning_rate(self.step)
        self.step += 1
        values = {"objective": loss, "gradient_norm": norm, "learning_rate": rate}
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._skip(loss, norm)
            return values
        self.bad_steps_in_a_row = 0
        for group in self.torch_optimiser.param_groups:
            group["lr"] = rate
        self.torch_optimiser.step()
        share = self._own_share(batch)
        self._look_out(outputs, share)
        if self.step % self.log_every == 0:
            values |= self._metrics(outputs, share) | {"bad_steps": float(self.bad_steps)}
        values |= self.after_update(batch, outputs, loss)
        return values

    def after_update(self, batch: Batch, outputs: Tensor, loss: float) -> dict[str, float]:
        """What a subclass does after each update, which it has counted already; here, nothing.

        Args:
            batch: that was learned from.
            outputs: of the circuit before the update, to this process's share of the batch, ``[T, B, O]``.
            loss: of the whole batch.

        Returns:
            Further metrics of this step.
        """
        return {}

    def _look_out(self, outputs: Tensor, share: Batch) -> None:
        """Say once that the loss stays above that of answers that are all zero, as where the rate is too high."""
        if self._warned or (self.step > 1 and self.step % LOOK_EVERY):
            return
        with torch.no_grad():
            nothing = float(self.env.losses(torch.zeros_like(outputs), share).sum())
            ratio = float(self.env.losses(outputs, share).sum()) / nothing if nothing > 0 else math.nan
        if self._first_ratio is None:
            self._first_ratio = ratio
        worse = ratio > DIVERGED * max(1.0, self._first_ratio)
        self._worse_in_a_row = self._worse_in_a_row + 1 if worse else 0
        if self._worse_in_a_row == LOOKS:
            self._warned = True
            self.recorder.message(
                f"step {self.step}: the loss is {ratio:.3g} times that of answers that are all zero, and was "
                f"{self._first_ratio:.3g} times at first: training diverges; try an agent.lr below {self.lr}, or a "
                "smaller agent.clip_norm"
            )

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
        if self.bad_steps_in_a_row >= self.max_bad_steps:
            self.recorder.checkpoint("latest", self.state_dict())
            raise TrainingError(
                f"loss or gradient was not finite {self.bad_steps_in_a_row} steps in a row, up to step {self.step}: "
                "try a smaller agent.lr or agent.clip_norm; the last good weights are saved"
            )

    def state_dict(self) -> dict[str, Any]:
        """What every learning agent remembers, with the optimiser and the weights to begin again with."""
        return super().state_dict() | {
            "optimiser": _name(self.optimiser),
            "moments": self.torch_optimiser.state_dict()["state"],
            "bad_steps": self.bad_steps,
            "bad_steps_in_a_row": self.bad_steps_in_a_row,
            "first_weights": self.first_weights,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from :meth:`state_dict`; see :meth:`Agent.load_state_dict`."""
        check_keys(state, self.state_dict())
        if state["optimiser"] != _name(self.optimiser):
            raise ValueError(refusal("agent.optimiser.type", state["optimiser"], _name(self.optimiser)))
        if self.retry_every and not state["first_weights"]:
            raise ValueError(
                f"{refusal('agent.retry_every', None, self.retry_every)}: without it, the weights to begin "
                "again with were not kept"
            )
        super().load_state_dict(state)
        self.torch_optimiser = self._make_optimiser()  # of parameters that are others if the structure is
        self.optimiser.take_up(self.torch_optimiser, state["moments"])
        self.bad_steps = state["bad_steps"]
        self.bad_steps_in_a_row = state["bad_steps_in_a_row"]
        self.first_weights = dict(state["first_weights"])


def _name(optimiser: Optimiser) -> str:
    """What an optimiser is called in options, or its class where it has no name there."""
    return name_of(type(optimiser)) or type(optimiser).__qualname__
