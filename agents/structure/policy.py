"""Policies: which strategy is tried next, learned from what came of those before."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .strategies import STRATEGIES

PolicyName = Literal["thompson", "epsilon-greedy", "random", "none"]

FEATURES = 8
"""Of a situation: see :meth:`~papertape.agents.SelfModifyingAgent.situation`."""
NOISE = 0.25
"""Standard deviation of what comes of a change, as the Bayesian model takes it."""
HIDDEN = 32
"""Hidden units of the network of :class:`EpsilonGreedyPolicy`."""
REMEMBERED = 256
"""Outcomes that it is trained on, the latest."""
PASSES, RATE = 20, 0.05
"""Steps of gradient descent after each outcome, and their rate."""


class Policy(ABC):
    """Chooses a strategy in a situation, and learns from what came of it.

    A situation is a vector of :data:`FEATURES` numbers of about unit size, whose last is 1. An outcome is the logarithm
    of how many times smaller the loss is with the change than without it, kept in [-1, 1].
    """

    @abstractmethod
    def choose(self, situation: Tensor, arms: Sequence[str], generator: torch.Generator) -> str | None:
        """One of the arms; None if nothing is to be changed."""

    def learn(self, situation: Tensor, arm: str, outcome: float) -> None:
        """Take account of what came of a change that was made in a situation; here, nothing."""

    def state_dict(self) -> dict[str, Any]:
        """What was learned."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from :meth:`state_dict`."""


class RandomPolicy(Policy):
    """Any arm, at random."""

    def choose(self, situation: Tensor, arms: Sequence[str], generator: torch.Generator) -> str | None:
        """See :meth:`Policy.choose`."""
        return arms[int(torch.randint(len(arms), (), generator=generator, device="cpu"))] if arms else None


class ThompsonPolicy(Policy):
    """Thompson sampling over a Bayesian linear model of each arm, which forgets (after Gupta et al. 2011, "Thompson
    sampling for dynamic multi-armed bandits", as Sun et al. 2020, arXiv 2004.10874, choose operators by it).

    Of each arm, ``precision`` Λ and ``moment`` b describe weights N(Λ⁻¹ b, NOISE² Λ⁻¹). Before an outcome of the
    arm is added, both lose a share of what they hold beyond the prior Λ = 1. The arm with the highest sample is chosen,
    if that is above 0, which is what comes of changing nothing.
    """

    def __init__(self, forgetting: float) -> None:
        """
        Args:
            forgetting: share that is kept of what is known of an arm, at each of its outcomes.
        """
        self.forgetting = forgetting
        self.precision = {arm: torch.eye(FEATURES, dtype=torch.float64, device="cpu") for arm in STRATEGIES}
        self.moment = {arm: torch.zeros(FEATURES, dtype=torch.float64, device="cpu") for arm in STRATEGIES}

    def sampled(self, situation: Tensor, arm: str, generator: torch.Generator) -> float:
        """What would come of an arm by weights that are drawn from its model."""
        lower = torch.linalg.cholesky(self.precision[arm])
        mean = torch.cholesky_solve(self.moment[arm].unsqueeze(1), lower).squeeze(1)
        noise = torch.randn(FEATURES, 1, generator=generator, dtype=torch.float64, device="cpu")
        spread = torch.linalg.solve_triangular(lower.T, noise, upper=True).squeeze(1)
        return float(situation @ (mean + NOISE * spread))

    def choose(self, situation: Tensor, arms: Sequence[str], generator: torch.Generator) -> str | None:
        """See :meth:`Policy.choose`."""
        values = {arm: self.sampled(situation, arm, generator) for arm in arms}
        best = max(values, key=lambda arm: values[arm], default=None)
        return best if best is not None and values[best] > 0 else None

    def learn(self, situation: Tensor, arm: str, outcome: float) -> None:
        """See :meth:`Policy.learn`."""
        prior, kept = torch.eye(FEATURES, dtype=torch.float64, device="cpu"), self.forgetting
        self.precision[arm] = prior + kept * (self.precision[arm] - prior) + torch.outer(situation, situation)
        self.moment[arm] = kept * self.moment[arm] + outcome * situation

    def state_dict(self) -> dict[str, Any]:
        """The models of all arms."""
        return {"precision": dict(self.precision), "moment": dict(self.moment)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`Policy.load_state_dict`."""
        self.precision, self.moment = dict(state["precision"]), dict(state["moment"])


class EpsilonGreedyPolicy(Policy):
    """The arm from which a small network (14 → 32 → 1, tanh) expects most, but at times any.

    Its inputs are the situation and which of the six arms it is. It is trained on the latest outcomes by gradient
    descent on the squared error.
    """

    def __init__(self, epsilon: float, generator: torch.Generator) -> None:
        """
        Args:
            epsilon: share of choices that are made at random.
            generator: of the first weights.
        """
        self.epsilon = epsilon
        size = FEATURES + len(STRATEGIES)
        self.weights = [
            torch.randn(size, HIDDEN, generator=generator, dtype=torch.float64, device="cpu") / math.sqrt(size),
            torch.zeros(HIDDEN, dtype=torch.float64, device="cpu"),
            torch.randn(HIDDEN, generator=generator, dtype=torch.float64, device="cpu") / math.sqrt(HIDDEN),
            torch.zeros((), dtype=torch.float64, device="cpu"),
        ]
        self.outcomes: deque[tuple[Tensor, float]] = deque(maxlen=REMEMBERED)

    @staticmethod
    def _inputs(situation: Tensor, arm: str) -> Tensor:
        chosen = torch.zeros(len(STRATEGIES), dtype=torch.float64, device="cpu")
        chosen[list(STRATEGIES).index(arm)] = 1
        return torch.cat([situation, chosen])

    @staticmethod
    def _expected(inputs: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """``[N, 14]`` -> ``[N]``."""
        return torch.tanh(inputs @ weights[0] + weights[1]) @ weights[2] + weights[3]

    def choose(self, situation: Tensor, arms: Sequence[str], generator: torch.Generator) -> str | None:
        """See :meth:`Policy.choose`."""
        if not arms:
            return None
        if float(torch.rand((), generator=generator, device="cpu")) < self.epsilon:
            return arms[int(torch.randint(len(arms), (), generator=generator, device="cpu"))]
        inputs = torch.stack([self._inputs(situation, arm) for arm in arms])
        return arms[int(self._expected(inputs, self.weights).argmax())]

    def learn(self, situation: Tensor, arm: str, outcome: float) -> None:
        """See :meth:`Policy.learn`."""
        self.outcomes.append((self._inputs(situation, arm), outcome))
        inputs = torch.stack([known for known, _ in self.outcomes])
        targets = torch.tensor([wanted for _, wanted in self.outcomes], dtype=torch.float64, device="cpu")
        for _ in range(PASSES):
            weights = [weight.detach().requires_grad_() for weight in self.weights]
            with torch.enable_grad():
                error = (self._expected(inputs, weights) - targets).square().mean()
                gradients = torch.autograd.grad(error, weights)
            self.weights = [
                (weight - RATE * gradient).detach() for weight, gradient in zip(weights, gradients, strict=True)
            ]

    def state_dict(self) -> dict[str, Any]:
        """Weights, and the outcomes that they are trained on."""
        return {"weights": list(self.weights), "outcomes": [list(outcome) for outcome in self.outcomes]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`Policy.load_state_dict`."""
        self.weights = list(state["weights"])
        self.outcomes = deque(((inputs, outcome) for inputs, outcome in state["outcomes"]), maxlen=REMEMBERED)


def make_policy(name: PolicyName, *, forgetting: float, epsilon: float, generator: torch.Generator) -> Policy | None:
    """The policy of a name; None for ``none``, which changes nothing."""
    if name == "thompson":
        return ThompsonPolicy(forgetting)
    if name == "epsilon-greedy":
        return EpsilonGreedyPolicy(epsilon, generator)
    return RandomPolicy() if name == "random" else None
