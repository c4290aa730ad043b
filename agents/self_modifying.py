"""The self-modifying agent: learns by backprop without end, and changes the structure of its circuit where it pays."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..circuits.routed import RoutedCircuit
from ..core.circuit import Circuit
from ..core.distributed import Processes
from ..core.env import Batch
from ..core.options import LARGEST_STEP
from ..core.placement import moved
from ..core.registry import register
from ..core.streams import stream_seed
from ..core.structure import Change, Structure, follow_optimiser, follow_units, reverse
from .backprop import BackpropAgent
from .evaluation import Answered, load_weights, weights_of
from .plasticity import Update, Upkeep
from .structure.grades import GRADES, Grades, check_grades, reward
from .structure.policy import PolicyName, make_policy
from .structure.strategies import STRATEGIES, Done, Limits, Strategy, Subject, reset_moments
from .structure.tracker import Record, Tracker, thinned
from .structure.trial import PairedTrial, Proposal, RewardTrial, Verdict

_CPU = torch.device("cpu")
GRADE_EVERY = 5
"""Steps from one batch whose answers are graded to the next, but in a trial by the reward."""
REMEMBERED_ROWS = 256
"""Steps of sequences of the latest batches that are kept, by which units are judged and what is removed is absorbed."""


@register("agent", "self-modifying")
class SelfModifyingAgent(BackpropAgent):
    """Backprop without end that grows, prunes and rewires the hidden layers, and keeps what does no harm.

    Every ``check_every`` steps a policy chooses one of six strategies, or none. A trial says whether the change is
    kept; what came of it teaches the policy. Layers of a feed-forward circuit, and of the controllers lstm, gru and
    feedforward of any memory circuit, can change.
    """

    steps: int | None = None
    policy: PolicyName = Field(
        default="thompson",
        description="what chooses among strategies: Thompson sampling over a linear model of each, the one of which a "
        "small network expects most (at times any), any at random, or none, which changes nothing",
    )
    check_every: int = Field(default=500, ge=1, description="steps between checks of whether something is changed")
    growth_threshold: float = Field(
        default=-0.5, ge=-1, le=1, description="mean reward up to which nothing that removes is tried"
    )
    pruning_threshold: float = Field(
        default=0.5, ge=-1, le=1, description="mean reward from which on what removes is tried as well"
    )
    grades: Grades = Field(
        default=GRADES,
        strict=False,
        min_length=1,
        description="what an answer is worth by its error: pairs of an error and a reward, between which it is linear",
    )
    max_layers: int = Field(default=3, ge=1, le=100, description="hidden layers at most")
    max_units: int | None = Field(
        default=None,
        ge=1,
        description="units of a layer at most, of each task where tasks own units; null: four times as many as the "
        "largest has at first",
    )
    growth: float = Field(default=1.0, gt=0, le=1, description="share of its units that a layer grows by at a time")
    pruning: float = Field(default=0.1, gt=0, lt=1, description="share of its units that a layer loses at a time")
    rewired: float = Field(
        default=0.1, gt=0, lt=1, description="share of its connections or thresholds that a layer changes at a time"
    )
    min_age: int = Field(default=100, ge=0, description="steps before a unit may be removed or replaced")
    verdict: Literal["paired", "reward"] = Field(
        default="paired",
        description="what decides whether a change is kept: a changed copy beside the circuit on the same batches, or "
        "whether the reward of the changed circuit drops by more than 0.5",
    )
    trial_steps: int = Field(default=250, ge=2, description="steps of a trial")
    harm: float = Field(
        default=3.0,
        gt=0,
        description="standard errors beyond a loss 2 % above that without the change, which prove harm",
    )
    forgetting: float = Field(
        default=0.98, gt=0, le=1, description="share of what thompson knows of a strategy that it keeps at each outcome"
    )
    epsilon: float = Field(default=0.1, ge=0, le=1, description="share of the choices of epsilon-greedy made at random")
    kept_changes: int = Field(
        default=200, ge=2, le=100_000, description="changes whose course is kept, the latest, for table and pictures"
    )

    @classmethod
    def check_options(cls, options: Any) -> None:
        """See :meth:`Component.check_options`."""
        super().check_options(options)
        check_grades(options.grades)
        if options.growth_threshold > options.pruning_threshold:
            raise ValueError(
                f"growth_threshold: got {options.growth_threshold}; allowed is at most pruning_threshold "
                f"({options.pruning_threshold}), or it would grow and prune at the same reward"
            )
        if options.trial_steps > options.check_every:
            raise ValueError(
                f"trial_steps: got {options.trial_steps}; allowed is at most check_every ({options.check_every})"
            )
        if options.retry_every is not None:
            raise ValueError(f"retry_every: got {options.retry_every}; what modifies itself does not begin again: null")

    def setup(self) -> None:
        """Build the policy and the tracker; see also :meth:`BackpropAgent.setup`.

        Raises:
            ValueError: also where the structure of the circuit cannot change, is larger than the options allow, or the
                optimiser cannot follow a change.
        """
        super().setup()
        seed = stream_seed(self.seed, "strategy")
        self.structural = torch.Generator().manual_seed(seed)
        """Of all that is drawn besides sequences: choices, and weights of what is added."""
        self.chooser = make_policy(
            self.policy,
            forgetting=self.forgetting,
            epsilon=self.epsilon,
            generator=torch.Generator().manual_seed(seed),
        )
        structure = self.circuit.structure()
        fixed = self.circuit.fixed()
        if self.chooser and fixed:
            raise ValueError(f"circuit: its structure is fixed: {fixed}; allowed with policy none alone")
        if self.chooser:
            self._check_follows()
        self.largest = _largest(structure)
        """Units of the largest layer at first; where tasks own units, the most that one of them has."""
        if self.chooser and (self.max_units or self.largest) < self.largest:
            raise ValueError(f"agent.max_units: got {self.max_units}; the circuit begins with {self.largest}")
        if self.chooser and self.max_layers < len(structure):
            raise ValueError(f"agent.max_layers: got {self.max_layers}; the circuit begins with {len(structure)}")
        self.bounds = Limits(
            self.max_layers, self.max_units or 4 * self.largest, self.growth, self.pruning, self.rewired, self.min_age
        )
        self.tracker = Tracker(structure, self.kept_changes)
        self.trial: PairedTrial | RewardTrial | None = None
        self.born = _born(structure, -LARGEST_STEP)
        """Of each layer the step at which each unit was added; those that were there from the beginning are of age."""
        self.updates = 0
        """Of all circuits, those on trial as well."""
        self._recent: list[Tensor] = []
        self._sums = {"steps": 0.0, "loss": 0.0, "graded": 0.0, "reward": 0.0}
        self._last = {"reward": 0.0, "loss": 0.0}
        self._rehearsed: float | None = None
        self._rehearsal: Update | None = None

    def join(self, processes: Processes) -> None:
        """See :meth:`Agent.join`; structures that differ between processes have no common gradient."""
        if processes.size > 1:
            raise ValueError(f"agent.type: got 'self-modifying' in {processes.size} processes; allowed is one")
        super().join(processes)

    # ---- learning

    def meet(self, batch: Batch) -> None:
        """See :meth:`BackpropAgent.meet`; a copy that is on trial is told as well, so that it knows the same tasks."""
        super().meet(batch)
        if isinstance(self.trial, PairedTrial) and isinstance(self.trial.circuit, RoutedCircuit):
            self.trial.circuit.meet(batch.inputs)  # begins no task: with one that does, the trial has ended

    def _gradients(self, update: Update, upkeep: Upkeep) -> tuple[float, Answered, Update]:
        """See :meth:`BackpropAgent._gradients`; also those of a copy that is on trial, with the same randomness."""
        if isinstance(self.trial, PairedTrial):
            self.trial.optimiser.zero_grad(set_to_none=True)
            same = update._replace(circuit=self.trial.circuit, optimiser=self.trial.optimiser)
            self._rehearsed, _, self._rehearsal = super()._gradients(same, self.trial.upkeep)
            if not math.isfinite(self.bounded(self.trial.optimiser)):
                self._rehearsed = math.inf
        return super()._gradients(update, upkeep)

    def after_skip(self, update: Update) -> None:
        """See :meth:`BackpropAgent.after_skip`; the copy on trial takes no step either, and a change that the circuit
        itself is trying is taken back.
        """
        super().after_skip(update)
        if isinstance(self.trial, PairedTrial) and self._rehearsal is not None:
            self.trial.upkeep.after_skip(self._rehearsal)
        elif isinstance(self.trial, RewardTrial):
            self._close(Verdict(False, -1.0))

    def after_update(self, batch: Batch, answers: Answered, loss: float) -> dict[str, float]:
        """Go on with the trial, or see whether one begins; see :meth:`BackpropAgent.after_update`."""
        self.updates += 1
        if self.chooser is None:
            return {}
        self._sums["steps"] += 1
        self._sums["loss"] += loss
        worth = 0.0
        if self.step % GRADE_EVERY == 0 or isinstance(self.trial, RewardTrial):
            worth = reward(self.env, *answers, self.grades)
            self._sums["graded"] += 1
            self._sums["reward"] += worth
        self._remember(batch.inputs)
        verdict = None
        if isinstance(self.trial, PairedTrial):
            assert self._rehearsed is not None and self._rehearsal is not None
            if math.isfinite(self._rehearsed):
                for group in self.trial.optimiser.param_groups:
                    group["lr"] = self.learning_rate(self.step - 1)
                self.trial.optimiser.step()
                self.trial.upkeep.after_update(self._rehearsal)
                self.updates += 1
            else:
                self.trial.upkeep.after_skip(self._rehearsal)
            verdict = self.trial.see(loss, self._rehearsed)
        elif self.trial is not None:
            verdict = self.trial.see(worth, loss)
        if verdict is not None:
            self._close(verdict)
        if self.step % self.check_every == 0:
            self._check()
        if self.step % self.log_every:
            return {}
        sizes = [layer.size for layer in self.circuit.structure()]
        return {
            "reward": self._means()[0],
            "units": float(sum(sizes)),
            "layers": float(len(sizes)),
            "changes_tried": float(self.tracker.tried),
            "changes_kept": float(self.tracker.kept),
            "updates_per_step": self.updates / self.step,
        }

    def _remember(self, inputs: Tensor) -> None:
        """Keep the inputs of the latest batches, as many as are needed."""
        self._recent.append(inputs)
        rows = 0
        for index, kept in enumerate(reversed(self._recent)):
            rows += kept.shape[0] * kept.shape[1]
            if rows >= REMEMBERED_ROWS:
                del self._recent[: len(self._recent) - index - 1]
                return

    def _inputs(self) -> Tensor:
        """The inputs of the latest batches that are as long as the last one, ``[T, B, I]``."""
        last = self._recent[-1]
        return torch.cat([inputs for inputs in self._recent if len(inputs) == len(last)], dim=1)

    # ---- changing

    def situation(self, structure: Structure) -> Tensor:
        """What policies know: the mean reward since the last check and before, the logarithm of the loss and how it
        changed, how deep and how wide the circuit is of what it may be, how many changes were kept of late, and 1.

        Args:
            structure: of the circuit.

        Returns:
            ``[8]`` in float64.
        """
        worth, loss = self._means()
        loss = max(loss, 1e-12)
        before = max(self._last["loss"], 1e-12)
        late = [record.kept for record in list(self.tracker.records)[-10:]]
        values = [
            worth,
            worth - self._last["reward"],
            math.tanh(math.log(loss) / 5),
            math.tanh(math.log(loss / before)) if self._last["loss"] else 0.0,
            len(structure) / self.bounds.max_layers,
            _largest(structure) / self.bounds.max_units,
            sum(late) / len(late) if late else 0.5,
            1.0,
        ]
        return torch.tensor(values, dtype=torch.float64, device="cpu")

    def _means(self) -> tuple[float, float]:
        """Mean reward and mean loss since the last check; where nothing was graded since, the reward before."""
        sums = self._sums
        worth = sums["reward"] / sums["graded"] if sums["graded"] else self._last["reward"]
        return worth, sums["loss"] / max(sums["steps"], 1.0)

    def _check(self) -> None:
        """See what the policy wants to change, and put it on trial."""
        worth, loss = self._means()
        situation = self.situation(self.circuit.structure())
        self._last = {"reward": worth, "loss": loss}
        self._sums = dict.fromkeys(self._sums, 0.0)
        if self.trial is not None or self.chooser is None:
            return
        subject = self._subject(self.circuit)
        arms = [name for name, strategy in STRATEGIES.items() if self._fits(strategy, worth)]
        arms = [name for name in arms if STRATEGIES[name].possible(subject)]
        chosen = self.chooser.choose(situation, arms, self.structural)
        if chosen is not None:
            self._begin(chosen, STRATEGIES[chosen].apply, situation)

    def restructured(self, change: Change) -> None:
        """See :meth:`DescentAgent.restructured`; of a task that has begun. A trial that is under way ends without a
        verdict: a copy that is on trial is dropped, a circuit that is on trial itself stays as it is.
        """
        super().restructured(change)
        self.born = follow_units(change, self.born, fill=self.step)
        self.tracker.note(self.step, self.circuit.structure())
        if self.trial is not None:
            self.recorder.message(f"step {self.step}: another task has come; the trial of a change ends undecided")
            self.trial = None

    def _fits(self, strategy: Strategy, worth: float) -> bool:
        """Whether the thresholds let a strategy be tried at a mean reward."""
        if strategy.grows < 0:
            return worth >= self.pruning_threshold and worth > self.growth_threshold
        return strategy.grows > 0 or worth > self.growth_threshold

    def _subject(self, circuit: Circuit) -> Subject:
        """A circuit of the structure of the agent's own, as strategies take it: where tasks own units, they change
        those of the task of most of the last batch.
        """
        ages, inputs, task = [self.step - born for born in self.born], self._inputs(), 0
        if isinstance(circuit, RoutedCircuit):
            circuit.settle()
            tasks = circuit.tasks_of(circuit.shared_inputs(inputs)[0])
            task = int(tasks[-self._recent[-1].shape[1] :].mode().values)
            inputs = inputs[:, tasks == task]
        return Subject(circuit, inputs, ages, self.bounds, self.structural, task, self.upkeep.connections)

    def try_out(self, strategy: Strategy, apply: Callable[[Subject], Done]) -> None:
        """Put a change on trial, whatever the policy would choose; what comes of it counts as one of a strategy.

        Args:
            strategy: that learns from it.
            apply: changes the circuit of what it is given in place.

        Raises:
            RuntimeError: another change is on trial, or nothing was learned from yet.
        """
        if self.trial is not None or not self._recent:
            raise RuntimeError("a change is on trial already" if self.trial else "nothing was learned from yet")
        self._begin(strategy.name, apply, self.situation(self.circuit.structure()))

    def _begin(self, strategy: str, apply: Callable[[Subject], Done], situation: Tensor) -> None:
        changed = copy.deepcopy(self.circuit).train()
        optimiser = self.optimiser.make(changed.parameters(), self.lr)
        self.optimiser.take_up(optimiser, copy.deepcopy(self.moments(self.torch_optimiser)))
        done = apply(self._subject(changed))
        follow_optimiser(done.change, optimiser)
        reset_moments(optimiser, changed, done.reset)
        upkeep = self.upkeep.copied()
        upkeep.follow(done.change)
        proposal = Proposal.of(self.step, strategy, situation, done.change)
        if self.verdict == "paired":
            self.trial = PairedTrial(proposal, changed, optimiser, upkeep, steps=self.trial_steps, harm=self.harm)
            return
        self.trial = RewardTrial(
            proposal, self._snapshot(), self._last["reward"], self._last["loss"], steps=self.trial_steps
        )
        self._adopt(proposal, weights_of(changed), self.moments(optimiser), upkeep)

    def _snapshot(self) -> dict[str, Any]:
        """What is needed to restore the circuit bit for bit."""
        kept = {
            **weights_of(self.circuit),
            "moments": self.moments(self.torch_optimiser),
            "born": self.born,
            "plasticity": self.upkeep.state_dict(),
        }
        return copy.deepcopy(kept)

    def _take(self, saved: Mapping[str, Any], moments: Mapping[Any, Any]) -> None:
        """Give the circuit other weights, of any structure, and an optimiser that knows them."""
        load_weights(self.circuit, saved)
        self.torch_optimiser = self._make_optimiser()
        self.optimiser.take_up(self.torch_optimiser, moments)

    def _adopt(self, proposal: Proposal, saved: Mapping[str, Any], moments: Mapping[Any, Any], upkeep: Upkeep) -> None:
        """Make the circuit what its changed copy is."""
        old = dict(self.circuit.named_parameters())
        self._take(saved, moments)
        change = proposal.change(old, dict(self.circuit.named_parameters()))
        self.born = follow_units(change, self.born, fill=self.step)
        self._let_others_follow(change)
        self.upkeep.methods = upkeep.methods  # which have followed, and gone on with the copy
        self.tracker.note(self.step, self.circuit.structure())

    def _let_others_follow(self, change: Change) -> None:
        """Let followers follow a change, but for the upkeep, whose state comes from that of a copy or from before."""
        for follower in self.followers:
            if follower is not self.upkeep:
                follower.follow(change)

    def _close(self, verdict: Verdict) -> None:
        """End the trial as the verdict says."""
        trial, self.trial = self.trial, None
        assert trial is not None and self.chooser is not None
        proposal = trial.proposal
        if isinstance(trial, PairedTrial):
            if verdict.kept:
                self._adopt(proposal, weights_of(trial.circuit), self.moments(trial.optimiser), trial.upkeep)
        elif not verdict.kept:
            changed = proposal.change({}, dict(self.circuit.named_parameters()))
            self._take(trial.saved, trial.saved["moments"])
            self._let_others_follow(reverse(changed, dict(self.circuit.named_parameters())))
            self.born = moved(trial.saved["born"], _CPU)
            self.upkeep.load_state_dict(trial.saved["plasticity"])
            self.tracker.note(self.step, self.circuit.structure())
        record = Record(
            proposal.step,
            proposal.strategy,
            proposal.before,
            proposal.after,
            verdict.kept,
            verdict.gain,
            thinned(trial.without),
            thinned(trial.changed),
        )
        self.tracker.add(record)
        self.chooser.learn(proposal.situation, proposal.strategy, verdict.gain)
        self.recorder.message(f"step {self.step}: {self.tracker.said(record)}")

    # ---- reporting

    def judge(self) -> None:
        """See :meth:`LearningAgent.judge`; also draws how the structure went on."""
        super().judge()
        self._draw()

    def _draw(self) -> None:
        """Charts of the structure over time, and of what was tried."""
        if self.recorder.wants_episodes:
            for name, chart in self.tracker.charts(self.step).items():
                self.recorder.chart(self.step, name, chart)

    def fit(self) -> dict[str, float]:
        """See :meth:`LearningAgent.fit`; at last tells what came of each strategy."""
        values = super().fit()
        self._tell()
        return values

    def _tell(self) -> None:
        if self.tracker.tried:
            self.recorder.message(f"{self.updates:,} updates, those on trial included\n{self.tracker.table()}")

    def test(self) -> dict[str, float]:
        """See :meth:`LearningAgent.test`; also draws and tells what came of each strategy."""
        values = super().test()
        self._draw()
        self._tell()
        return values

    def state_dict(self) -> dict[str, Any]:
        """What a backprop agent remembers, with policy, tracker, ages, and a trial that is under way."""
        trial: dict[str, Any] | None = None
        if isinstance(self.trial, PairedTrial):
            trial = {
                "kind": "paired",
                "proposal": self.trial.proposal.state_dict(),
                **weights_of(self.trial.circuit),
                "moments": self.moments(self.trial.optimiser),
                "plasticity": self.trial.upkeep.state_dict(),
                "without": list(self.trial.without),
                "changed": list(self.trial.changed),
            }
        elif self.trial is not None:
            trial = {
                "kind": "reward",
                "proposal": self.trial.proposal.state_dict(),
                "saved": self.trial.saved,
                "reward": self.trial.reward,
                "loss": self.trial.loss,
                "rewards": list(self.trial.rewards),
                "changed": list(self.trial.changed),
            }
        return super().state_dict() | {
            "policy": self.policy,
            "chooser": self.chooser.state_dict() if self.chooser else {},
            "tracker": self.tracker.state_dict(),
            "structural": self.structural.get_state(),
            "trial": trial,
            "largest": self.largest,
            "born": list(self.born),
            "updates": self.updates,
            "recent": list(self._recent),
            "sums": dict(self._sums),
            "last": dict(self._last),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from :meth:`state_dict`; see :meth:`Agent.load_state_dict`."""
        state = {"largest": self.largest, **state}  # which runs of before had not
        super().load_state_dict(state)
        self.largest = state["largest"]
        self.bounds = self.bounds._replace(max_units=self.max_units or 4 * self.largest)
        if self.chooser and state["policy"] == self.policy:
            self.chooser.load_state_dict(moved(state["chooser"], _CPU))
        self.tracker.load_state_dict(moved(state["tracker"], _CPU))
        self.structural.set_state(state["structural"].cpu())
        self.born, self.updates = moved(state["born"], _CPU), state["updates"]
        self._recent = moved(list(state["recent"]), torch.device(self.env.device))
        self._sums, self._last = dict(state["sums"]), dict(state["last"])
        self.trial = self._trial_from(state["trial"]) if state["trial"] and self.chooser else None

    def _trial_from(self, state: Mapping[str, Any]) -> PairedTrial | RewardTrial:
        trial: PairedTrial | RewardTrial
        proposal = Proposal.load(moved(state["proposal"], _CPU))
        if state["kind"] == "paired":
            changed = copy.deepcopy(self.circuit).train()
            load_weights(changed, state)
            optimiser = self.optimiser.make(changed.parameters(), self.lr)
            self.optimiser.take_up(optimiser, state["moments"])
            upkeep = self.upkeep.copied()
            upkeep.load_state_dict(state["plasticity"])
            trial = PairedTrial(proposal, changed, optimiser, upkeep, steps=self.trial_steps, harm=self.harm)
            trial.without = list(state["without"])
        else:
            trial = RewardTrial(proposal, state["saved"], state["reward"], state["loss"], steps=self.trial_steps)
            trial.rewards = list(state["rewards"])
        trial.changed = list(state["changed"])
        return trial


def _largest(structure: Structure) -> int:
    """Units of the largest layer; where tasks own units, the most that one of them has of its own."""
    return max((units for layer in structure for units in layer.shares or (layer.size,)), default=1)


def _born(structure: Structure, step: int) -> list[Tensor]:
    """The same step for all units."""
    return [torch.full((layer.size,), step, device="cpu") for layer in structure]
