"""What agents share that descend a gradient: an optimiser, its learning rate, and what is done with bad gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from ..core.component import class_of
from ..core.options import LARGEST_STEP, refusal
from ..core.registry import name_of
from ..core.structure import Change, Follower, follow_optimiser, unchanged
from .evaluation import check_keys
from .learning import LearningAgent, TrainingError
from .optimisers import AnyOptimiser, Optimiser, build_optimiser


class DescentAgent(LearningAgent):
    """Follows gradients that a subclass computes: clips them, sets the learning rate, skips what is not finite.

    What is kept beside the weights and shaped like them (a mask, what is known of their importance), or has a value for
    each unit, is kept by a :class:`~papertape.core.structure.Follower` in :attr:`followers`: whoever changes the
    structure of the circuit tells all of them by :meth:`restructured`.
    """

    needs_gradient = True

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
        lr = options.lr or class_of(options.optimiser).published_lr
        if options.final_lr > lr:
            raise ValueError(f"final_lr: got {options.final_lr}; allowed is at most lr ({lr})")

    def setup(self) -> None:
        """Build the optimiser; see also :meth:`LearningAgent.setup`."""
        super().setup()
        self.optimiser = build_optimiser(self.optimiser)
        self.lr = self.lr or self.optimiser.published_lr
        self.torch_optimiser = self._make_optimiser()
        self.followers: list[Follower] = []
        """What else follows a change of the circuit's structure, besides the optimiser."""
        self.bad_steps = 0
        self.bad_steps_in_a_row = 0
        self.first_weights = copy.deepcopy(self.circuit.state_dict()) if self.retry_every else {}

    def _make_optimiser(self) -> Optimizer:
        made: Optimizer = self.optimiser.make(self.circuit.parameters(), self.lr)
        return made

    def moments(self, optimiser: Optimizer) -> dict[Any, Any]:
        """What an optimiser of the circuit, or of a copy of it, has gathered; see :meth:`Optimiser.moments`."""
        gathered: dict[Any, Any] = self.optimiser.moments(optimiser, self.lr)
        return gathered

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        assert self.lr is not None
        last = self.last_step or LARGEST_STEP
        every = self.retry_every or last
        step %= last
        begun = step - step % every
        step, length = step - begun, min(every, last - begun)  # of the try at hand, the last of which may be cut off
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        falls = self.cycle_steps or max(length - self.warmup_steps, 1)
        fallen = (step - self.warmup_steps) % falls / falls
        if self.schedule == "cosine":
            fallen = 0.5 * (1 - math.cos(math.pi * fallen))
        return self.lr + (self.final_lr - self.lr) * fallen

    def fit(self) -> dict[str, float]:
        """See :meth:`LearningAgent.fit`.

        Raises:
            ValueError: all parameters are frozen.
        """
        if not any(parameter.requires_grad for parameter in self.circuit.parameters()):
            raise ValueError("parameters: the circuit has none that are not frozen, so there is nothing to learn")
        return super().fit()

    def _begin_again(self) -> None:
        """Take the weights that the run started from and a fresh optimiser; the sequences go on."""
        self.circuit.load_state_dict(self.first_weights)
        self.torch_optimiser = self._make_optimiser()

    def _check_follows(self) -> None:
        """See by a trial on a copy of the circuit that the optimiser can follow a change of its structure.

        Raises:
            ValueError: it cannot; says why.
        """
        circuit = copy.deepcopy(self.circuit)
        optimiser = self.optimiser.make(circuit.parameters(), self.lr)
        for parameter in circuit.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        with self.own_randomness():
            optimiser.step()
            change = circuit.edit(unchanged(circuit.structure()))
        follow_optimiser(change, optimiser)

    def restructured(self, change: Change) -> None:
        """Let all that is shaped like the circuit's parameters follow a change of their structure."""
        follow_optimiser(change, self.torch_optimiser)
        for follower in self.followers:
            follower.follow(change)

    def bounded(self, optimiser: Optimizer) -> float:
        """Clip the gradients of what an optimiser moves as the options say; their norm before that."""
        parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        total = nn.utils.get_total_norm(gradients)
        norm, limit = float(total), self.clip_norm or math.inf
        if not math.isfinite(norm):  # clipped by value, what is infinite would look like any other
            return norm
        if self.clip_value is not None:
            nn.utils.clip_grad_value_(parameters, self.clip_value)
            total = nn.utils.get_total_norm(gradients)
        if float(total) > 0.99 * limit - 1e-5:  # well below the limit PyTorch would multiply each of them by 1
            nn.utils.clip_grads_with_norm_(parameters, limit, total)
        return norm

    def descend(self, loss: float, rate: float) -> dict[str, float]:
        """One update by the gradients that the weights have; none if these or the loss are not finite.

        Args:
            loss: whose gradients they are.
            rate: learning rate.

        Returns:
            Objective, gradient norm before it was clipped, and learning rate.

        Raises:
            TrainingError: too many in a row were not finite.
        """
        norm = self.bounded(self.torch_optimiser)
        if math.isfinite(loss) and math.isfinite(norm):
            self.bad_steps_in_a_row = 0
            for group in self.torch_optimiser.param_groups:
                group["lr"] = rate
            self.torch_optimiser.step()
        else:
            self._skip(loss, norm)
        return {"objective": loss, "gradient_norm": norm, "learning_rate": rate}

    def _skip(self, loss: float, norm: float) -> None:
        self.bad_steps += 1
        self.bad_steps_in_a_row += 1
        if self.bad_steps_in_a_row == 1:
            self.recorder.message(
                f"{self.unit} {self.step}: loss {loss}, gradient norm {norm}: not finite, step skipped "
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
            "moments": self.moments(self.torch_optimiser),
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
