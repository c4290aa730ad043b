"""The PPO agent: a circuit learns from rewards how to act (Schulman et al. 2017, arXiv 1707.06347)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ..circuits.module import ModuleCircuit
from ..circuits.normalised import Moments, NormalisedCircuit
from ..core.distributed import Processes
from ..core.options import LARGEST_STEP
from ..core.registry import register
from ..core.state import example
from ..core.task import Task
from ..core.world import World, WorldError
from .actor_critic import ActorCritic
from .descent import DescentAgent
from .evaluation import check_keys, refuse_two_modes
from .policy import Policy
from .rollout import Actors, Rollout, check_finite, run_again

SMALLEST_DEVIATION = 1e-8
"""What is divided by a standard deviation is divided by at least this."""


class Targets(NamedTuple):
    """What a rollout says about each of its N = T · B steps, ``[N]`` each."""

    advantages: Tensor
    """How much better the action was than what the policy does on average."""
    values: Tensor
    """What the circuit's value should have been."""
    log_probabilities: Tensor
    """Of the actions, by the policy that drew them."""


def advantages(rewards: Tensor, values: Tensor, after: Tensor, over: Tensor, discount: float, decay: float) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, equation 16).

    A_t = δ_t + γ λ A_{t+1} within an episode, with δ_t = r_t + γ V_{t+1} - V_t.

    Args:
        rewards: ``[T, B]``.
        values: of each step, ``[T, B]``.
        after: value of what follows each step, ``[T, B]``: of the next one, of what followed where an episode was cut
            off, 0 where it came to its end.
        over: bool ``[T, B]``: an episode ends with this step, whether it came to its end or was cut off.
        discount: γ.
        decay: λ.

    Returns:
        ``[T, B]``
    """
    differences = rewards + discount * after - values
    kept = discount * decay * (~over).to(rewards.dtype)
    following, found = torch.zeros_like(rewards[0]), []
    for difference, share in zip(differences.flip(0), kept.flip(0), strict=True):
        following = difference + share * following
        found.append(following)
    return torch.stack(found).flip(0)


@register("agent", "ppo")
class PPOAgent(DescentAgent):
    """Acts in a world, then learns from what followed; all over again, an update at a time.

    An update takes ``rollout_steps`` steps in ``batch_size`` episodes side by side, by actions that are drawn, and then
    makes several passes over them. Circuits run again over whole segments, from the states they had at their start and
    from their initial state wherever an episode begins, so that a gradient goes through a segment as it does through a
    sequence. The loss is that of Schulman et al., equation 9:

        -min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) + c_1 (V - R)² / 2 - c_2 H

    with the ratio ρ of an action's probability to that when it was drawn, and advantages A by
    :func:`advantages`. An episode that comes to its end has no value after it; one that is cut off has that of the
    observation at which it was.

    The circuit has one output more than the policy has parameters: the value. See
    :class:`~papertape.agents.actor_critic.ActorCritic`.
    """

    tasks = (World,)
    precisions: ClassVar[tuple[str, ...]] = ("float32", "float64")
    kept = frozenset({"type", "previous_action", "previous_reward"})
    unit = "update"
    judging = (*DescentAgent.judging, "evaluation_actions", "initial_deviation")
    counted = "steps"

    env: World = Field(kw_only=False, description="the world, on the circuit's device")
    updates: int = Field(default=1000, ge=1, le=LARGEST_STEP, description="updates at most")
    batch_size: int = Field(default=64, ge=1, description="episodes side by side")
    rollout_steps: int = Field(default=128, ge=1, description="steps in each episode from one update to the next")
    segment_steps: int | None = Field(
        default=None,
        ge=1,
        description="steps through which a gradient goes, a part of rollout_steps; null: all of them",
    )
    epochs: int = Field(default=4, ge=1, description="passes over what was seen, in each update")
    minibatches: int = Field(
        default=4, ge=1, description="parts of a pass, each a step of the optimiser; segments are shared out at random"
    )
    discount: float = Field(default=0.99, ge=0, le=1, description="gamma, what a reward is worth a step earlier")
    trace_decay: float = Field(
        default=0.95,
        ge=0,
        le=1,
        description="lambda of generalised advantage estimation: 0 trusts the value of the next step, 1 what followed",
    )
    clip_ratio: float = Field(
        default=0.2, gt=0, description="epsilon, how far the probability of an action may move in an update, relatively"
    )
    clip_change: float | None = Field(
        default=None,
        gt=0,
        description="how far the value may move in an update, as the circuit puts it out; null: as far as it will",
    )
    value_weight: float = Field(default=0.5, ge=0, description="c_1, of the squared error of values in the loss")
    entropy_weight: float = Field(default=0.01, ge=0, description="c_2, of the policy's entropy in the loss")
    normalise_advantages: bool = Field(
        default=True, description="the advantages of an update are shifted and scaled to mean 0 and deviation 1"
    )
    normalise_values: bool = Field(
        default=True,
        description="the circuit puts out values in units of the standard deviation of all targets so far, around "
        "their mean, which keeps them within its reach whatever the rewards are",
    )
    previous_action: bool = Field(default=False, description="the circuit sees the last action as well")
    previous_reward: bool = Field(default=False, description="the circuit sees the last reward as well")
    initial_deviation: float = Field(
        default=1.0,
        gt=0,
        description="standard deviation of continuous actions, before they are brought into bounds, where the circuit "
        "puts out zero",
    )
    evaluation_actions: Literal["likeliest", "sampled"] = Field(
        default="likeliest", description="how it acts in validation and test"
    )
    restart_every: int = Field(
        default=32,
        ge=1,
        description="updates after which all episodes are cut off and begin anew; a run that goes on plays those since "
        "then again, which takes so much longer",
    )
    lr: float | None = 3e-4
    clip_norm: float | None = 0.5
    log_every: int = 10
    evaluate_every: int = 50
    save_every: int = 50

    @classmethod
    def check_options(cls, options: Any) -> None:
        """See :meth:`Component.check_options`."""
        super().check_options(options)
        segment = options.segment_steps or options.rollout_steps
        if options.rollout_steps % segment:
            raise ValueError(
                f"segment_steps: got {segment}; allowed is what divides rollout_steps, which is {options.rollout_steps}"
            )
        if options.normalise_advantages and options.batch_size * options.rollout_steps == 1:
            raise ValueError(
                "normalise_advantages: got True; allowed where batch_size and rollout_steps are 1 is False, for the "
                "advantage of a single step would always be 0"
            )
        segments = options.batch_size * (options.rollout_steps // segment)
        if segments % options.minibatches:
            raise ValueError(
                f"minibatches: got {options.minibatches}; allowed is what divides the segments of an update, of which "
                f"batch_size {options.batch_size} and segment_steps {segment} make {segments}"
            )

    @classmethod
    def task_of(cls, options: Any, task: Task) -> Task:
        """See :meth:`Agent.task_of`."""
        own = {name: getattr(options, name) for name in ("previous_action", "previous_reward", "initial_deviation")}
        own["sampled"] = options.evaluation_actions == "sampled"
        if isinstance(task, ActorCritic):
            if dict(task.options) == own:
                return task
            task = task.world
        return ActorCritic(task, **own, device=task.device) if isinstance(task, World) else task

    def setup(self) -> None:
        """Take up the world; see also :meth:`DescentAgent.setup`.

        Raises:
            ValueError: also where episodes of the world cannot begin one by one, or the circuit answers otherwise in
                training (see :func:`refuse_two_modes`) or has a state of which nothing is known.
        """
        self.env = self.task_of(self.options, self.env)  # type: ignore[assignment]
        super().setup()
        assert isinstance(self.env, ActorCritic)
        refuse_two_modes(self.circuit, "ppo", "which would differ when it acts and when it learns")
        self._check_state()
        apart = self.env.apart
        apart.reset(1, torch.Generator(self.env.device).manual_seed(0))
        if not apart.renewable:
            raise ValueError(
                f"env: got a {type(self.env.world).__name__}, whose episodes cannot begin anew one by one; allowed "
                "with ppo are worlds that can (see World.renewable)"
            )
        self.actors = Actors(apart, self.batch_size)
        self._unfinished: Mapping[str, Any] = {}
        """Episodes of a run that goes on, as long as it has not."""
        self.finished: list[tuple[float, float]] = []
        """Return and length of each episode that ended since metrics were returned."""
        self.value_count, self.value_mean, self.value_squares = 0, 0.0, 0.0
        """Targets of values so far, their mean, and their summed squared distances from it."""

    def _check_state(self) -> None:
        """Raise ValueError if a module carries a state of its own kind."""
        if not isinstance(self.circuit, ModuleCircuit):
            return
        with torch.no_grad():
            _, state = self.circuit.step(example(self.circuit).new_zeros(1, self.env.input_size))
        if state != ():
            raise ValueError(
                f"circuit: {type(self.circuit.module).__name__} carries a state of its own kind, of which single "
                "episodes cannot be begun anew; allowed with ppo are modules without, and every papertape.Circuit"
            )

    @property
    def last_step(self) -> int:
        """Updates at most."""
        return self.updates

    @property
    def answers_per_step(self) -> int:
        """Steps that are taken in the world for an update."""
        return self.batch_size * self.rollout_steps

    def join(self, processes: Processes) -> None:
        """See :meth:`Agent.join`; one process acts and learns."""
        if processes.size > 1:
            raise ValueError("agent.type: got 'ppo', which runs in one process")
        super().join(processes)

    def _begin_again(self) -> None:
        """Also begin with other episodes, and know nothing of values."""
        super()._begin_again()
        self.actors = Actors(self.actors.world, self.batch_size)
        self._unfinished = {}
        self.value_count, self.value_mean, self.value_squares = 0, 0.0, 0.0

    @property
    def value_deviation(self) -> float:
        """Standard deviation of all targets of values so far; 1 before there are any."""
        if self.value_count < 2:
            return 1.0
        return max(math.sqrt(self.value_squares / self.value_count), SMALLEST_DEVIATION)

    def _worth(self, values: Tensor) -> Tensor:
        """What the circuit's values are worth in rewards."""
        return values * self.value_deviation + self.value_mean if self.normalise_values else values

    def _note(self, targets: Tensor) -> None:
        """Count targets of values in their mean and deviation (Chan et al. 1979)."""
        found = targets.double()
        count, mean = found.numel(), float(found.mean())
        both, shift = self.value_count + count, mean - self.value_mean
        self.value_squares += float((found - mean).square().sum()) + shift**2 * self.value_count * count / both
        self.value_mean += shift * count / both
        self.value_count = both

    def targets(self, rollout: Rollout) -> Targets:
        """What a rollout teaches; its values count in the mean and deviation of values.

        Raises:
            WorldError: rewards and values are so large that together they are not finite; the rollout is lost.
        """
        values = rollout.outputs[..., -1]
        following = torch.cat([values[1:], values[-1:]])
        elsewhere = rollout.over.clone()
        elsewhere[-1] = True
        after = self._worth(torch.where(elsewhere, rollout.after, following)).masked_fill(rollout.ended, 0)
        worth = self._worth(values)
        found = advantages(rollout.rewards, worth, after, rollout.over, self.discount, self.trace_decay)
        returns = found + worth
        check_finite("targets of values", returns)
        if self.normalise_values:
            self._note(returns)
            returns = (returns - self.value_mean) / self.value_deviation
        if self.normalise_advantages:
            found = (found - found.mean()) / found.std(correction=0).clamp(min=SMALLEST_DEVIATION)
        drawn = self._policy.log_probability(rollout.outputs[..., :-1], rollout.samples)
        return Targets(*(part.flatten() for part in (found, returns, drawn)))

    @property
    def _policy(self) -> Policy:
        return self.actors.world.policy

    def loss(self, outputs: Tensor, rollout: Rollout, targets: Targets, positions: Tensor) -> dict[str, Tensor]:
        """The loss at some steps of a rollout, and what it is made of, as means over these steps.

        Args:
            outputs: of the circuit at these steps, ``[N, O]``.
            rollout: of which they are steps.
            targets: of all its steps.
            positions: which steps, t · B + b, ``[N]``.

        Returns:
            ``loss``, and parts of it by name.
        """
        parameters, values = outputs[:, :-1], outputs[:, -1]
        samples, old_values = rollout.samples.flatten(0, 1)[positions], rollout.outputs[..., -1].flatten()[positions]
        advantage, wanted, drawn = (part[positions] for part in targets)
        change = self._policy.log_probability(parameters, samples) - drawn
        ratio = change.exp()
        clipped = ratio.clamp(1 - self.clip_ratio, 1 + self.clip_ratio)
        policy_loss = -torch.minimum(ratio * advantage, clipped * advantage).mean()
        errors = (values - wanted).square()
        if self.clip_change is not None:
            near = old_values + (values - old_values).clamp(-self.clip_change, self.clip_change)
            errors = torch.maximum(errors, (near - wanted).square())
        value_loss, entropy = 0.5 * errors.mean(), self._policy.entropy(parameters).mean()
        return {
            "loss": policy_loss + self.value_weight * value_loss - self.entropy_weight * entropy,
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            # Schulman's estimate of the divergence of the old policy from the new one, never negative.
            "divergence": (ratio - 1 - change).mean(),
            "clipped": (ratio != clipped).to(ratio.dtype).mean(),
        }

    def train_step(self) -> dict[str, float]:
        """One update; returns the parts of the loss, and of the episodes that ended their mean return and length.

        Raises:
            TrainingError: too many losses or gradients in a row were not finite.
            WorldError: the world has failed, or outputs, observations, rewards or their sums are not finite.
        """
        with self.own_randomness():
            return self._update()

    def _update(self) -> dict[str, float]:
        if self.tries_again():
            self._begin_again()
        self._take_up()
        if not self.actors.begun:
            self.actors.begin(self.generator)
        segment = self.segment_steps or self.rollout_steps
        self.circuit.eval()
        try:
            rollout = self.actors.act(self.circuit, self.rollout_steps, segment, self.generator)
            targets = self.targets(rollout)
        except WorldError:
            self._unfinished = self.actors.state_dict()
            self.actors.end()
            raise
        self.circuit.train()
        rate = self.learning_rate(self.step)
        self.answered += self.answers_per_step
        self.step += 1
        cells = self.batch_size * (self.rollout_steps // segment)
        seen: list[dict[str, float]] = []
        for _ in range(self.epochs):
            order = torch.randperm(cells, generator=self.generator, device=self.generator.device)
            for chosen in order.chunk(self.minibatches):
                outputs, positions = run_again(self.circuit, rollout, segment, chosen)
                parts = self.loss(outputs, rollout, targets, positions)
                self.torch_optimiser.zero_grad(set_to_none=True)
                if parts["loss"].requires_grad:  # else all weights are frozen
                    parts["loss"].backward()
                numbers = dict(zip(parts, torch.stack([*parts.values()]).tolist(), strict=True))
                descended = self.descend(numbers.pop("loss"), rate)
                seen.append({**numbers, **descended})
        values = {name: sum(numbers[name] for numbers in seen) / len(seen) for name in seen[0]}
        if isinstance(self.circuit, NormalisedCircuit):
            self.circuit.learn(Moments.of(rollout.observations.flatten(0, 1)))
        if self.step % self.restart_every == 0:
            self.actors.end()
        self.finished += rollout.finished
        if self.step % self.log_every == 0:
            values["bad_steps"] = float(self.bad_steps)
            if self.finished:
                returns, lengths = zip(*self.finished, strict=True)
                values |= {"reward": sum(returns) / len(returns), "steps": sum(lengths) / len(lengths)}
            self.finished = []
        return values

    def state_dict(self) -> dict[str, Any]:
        """What is remembered of descent, with the episodes as they are and what is known of values."""
        return super().state_dict() | {
            "episodes": self._unfinished or self.actors.state_dict(),
            "finished": list(self.finished),
            "values": (self.value_count, self.value_mean, self.value_squares),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from :meth:`state_dict`; see :meth:`Agent.load_state_dict`. Episodes go on with the next update."""
        check_keys(state, self.state_dict())
        super().load_state_dict(state)
        self._unfinished, self.finished = state["episodes"], list(state["finished"])
        self.value_count, self.value_mean, self.value_squares = state["values"]

    def _take_up(self) -> None:
        """Play the episodes of a run that goes on up to where they were."""
        if self._unfinished and not self.actors.load_state_dict(self._unfinished):
            self.recorder.message(f"{self.unit} {self.step}: the world is not what it was, its episodes begin anew")
        self._unfinished = {}
