"""The backprop agent: gradient descent on the loss of an env, in mini-batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from ..circuits.routed import RoutedCircuit
from ..core.circuit import Circuit
from ..core.component import class_of
from ..core.contracts import plain_numbers
from ..core.distributed import Processes
from ..core.env import Batch, Env
from ..core.options import LARGEST_STEP
from ..core.registry import register
from ..core.state import detach
from .descent import DescentAgent
from .evaluation import Answered, answered, check_saved
from .plasticity import DORMANT, AnyPlasticity, Update, Upkeep, dormant_share, watched

LOOK_EVERY, LOOKS = 20, 3
"""Steps from one look at whether training diverges to the next, and how many in a row must say that it does."""
DIVERGED = 1.2
"""Times the loss of answers that are all zero."""
DORMANT_EVERY, DORMANT_ROWS = 500, (8, 16)
"""Where a look at the units is a run of its own: least steps between two, and steps of time and sequences of one."""


@register("agent", "backprop")
class BackpropAgent(DescentAgent):
    """Samples a batch, runs the circuit, descends the gradient; evaluates, saves and stops as its options say.

    Several processes share each batch: all draw the same one, each answers its share of the sequences, and the
    gradients are added up: ``batch_size`` counts the sequences of all processes together. If a gradient is not finite
    in one of them, the sum is not either, and all skip that step.
    """

    meets_tasks = True

    env: Env = Field(kw_only=False, description="the task, on the circuit's device")
    steps: int | None = Field(
        default=20_000, ge=1, le=LARGEST_STEP, description="updates at most; null goes on until it is stopped"
    )
    truncate: int | None = Field(
        default=None,
        ge=1,
        description="steps of time after which the state is cut off from the gradient; null goes through whole "
        "sequences",
    )
    plasticity: AnyPlasticity = Field(
        default=None,
        description="what keeps the circuit able to learn, or sparse: one method or a list of them; null is none",
    )
    online: bool = Field(
        default=False,
        description="report the env's metrics averaged over all batches since the last row as well, each answered "
        "before it was learned from (online_accuracy), as is usual for streams of tasks",
    )

    @classmethod
    def check_options(cls, options: Any) -> None:
        """See :meth:`Component.check_options`."""
        super().check_options(options)
        endless = options.steps is None and not (options.cycle_steps or options.retry_every)
        if endless and options.schedule != "constant":
            raise ValueError(
                f"steps: got None; a {options.schedule} schedule falls over all steps, or over cycle_steps"
            )

    @classmethod
    def refuses_start(cls, options: Any) -> Iterable[str]:
        """See :meth:`Agent.refuses_start`: masks that are drawn leave little of weights that were learned."""
        for index, method in enumerate(options.plasticity):
            if class_of(method).masks:
                yield f"agent.plasticity.{index}.type: got {method.type!r}, which draws connections; allowed: any other"

    def setup(self) -> None:
        """See :meth:`DescentAgent.setup`."""
        super().setup()
        if isinstance(self.circuit, RoutedCircuit):
            self._check_routed(self.circuit)
        self.upkeep = Upkeep(self.plasticity, self.circuit, self.env, self.seed)
        self.followers.append(self.upkeep)
        self._dormant: dict[str, float] = {}
        self._online: dict[str, list[float]] = {}
        """Of each metric the sum and the count since the last row, of all processes' shares."""
        # Of what is looked out for alone: not part of the state, for it changes nothing.
        self._first_ratio: float | None = None
        self._worse_in_a_row = 0
        self._warned = False

    def _check_routed(self, circuit: RoutedCircuit) -> None:
        """Refuse what would move weights of tasks that are not at hand, or could not take up those that come."""
        if self.retry_every is not None:
            raise ValueError(f"agent.retry_every: got {self.retry_every}; tasks of a routed circuit stay: null")
        if self.plasticity:
            raise ValueError("agent.plasticity: got some; tasks of a routed circuit keep their weights: []")
        if len(circuit.routes) < min(circuit.max_tasks, circuit.tag_channels or circuit.max_tasks):
            self._check_follows()

    @property
    def last_step(self) -> int | None:
        """Updates at most; None: without end."""
        return self.steps

    @property
    def answers_per_step(self) -> int:
        """Sequences of a batch."""
        return self.batch_size

    def join(self, processes: Processes) -> None:
        """See :meth:`Agent.join`; each process needs a sequence of every batch."""
        if self.batch_size < processes.size:
            raise ValueError(
                f"agent.batch_size: got {self.batch_size}; {processes.size} processes share each batch, "
                "allowed is at least one sequence for each"
            )
        if processes.size > 1 and isinstance(self.circuit, RoutedCircuit):
            raise ValueError(f"circuit.type: got routed in {processes.size} processes; allowed is one")
        super().join(processes)

    def _own_share(self, batch: Batch) -> Batch:
        """This process's share of the sequences of a batch."""
        if self.processes.size == 1:
            return batch
        own = self.processes.mine(batch.inputs.shape[1])
        return Batch(*(part[:, own.start : own.stop] for part in batch))

    def _gradients(self, update: Update, upkeep: Upkeep) -> tuple[float, Answered, Update]:
        """Leave the gradients of a batch in a circuit's parameters.

        Args:
            update: that will be made by them.
            upkeep: of the circuit.

        Returns:
            The loss, the answers to this process's share, and the update with what the layers gave, where the upkeep
            needs it.
        """
        circuit, batch = update.circuit, update.batch
        share, reports, looks = self._own_share(batch), self._reports_dormant(circuit), upkeep.looks(update.step)
        with (
            self.own_randomness(self.processes.rank),
            watched(circuit, wanted=reports or looks) as watch,
        ):
            lost, answers = self._backward(circuit, share, self.env.normaliser(batch).to(share.mask.dtype))
        if self.processes.size > 1:
            gradients = [parameter.grad for parameter in circuit.parameters() if parameter.grad is not None]
            self.processes.add_up([*gradients, lost])
        if looks:
            activity = watch.activity(circuit, share.inputs).shared(share.mask.numel(), self.processes)
            update = update._replace(activity=activity)
        if reports:
            steps, sequences = DORMANT_ROWS
            some = share.inputs[:steps, :sequences]
            seen = watch.activity(circuit, some).shared(some.shape[0] * some.shape[1], self.processes)
            self._dormant = {"dormant_units": dormant_share(circuit, seen, DORMANT)}
        upkeep.on_gradient(update)
        return float(lost), answers, update

    def _reports_dormant(self, circuit: Circuit) -> bool:
        """Whether the share of dormant units is measured in the next step."""
        every = self.log_every
        if not circuit.watchable:
            every *= -(-DORMANT_EVERY // every)
        return circuit is self.circuit and (self.step + 1) % every == 0 and bool(circuit.structure())

    def _backward(self, circuit: Circuit, batch: Batch, normaliser: Tensor) -> tuple[Tensor, Answered]:
        """Accumulate the gradients of a batch; the loss, a scalar, and the answers, detached."""
        length = batch.inputs.shape[0]
        chunk = self.truncate or length
        state, parts = None, []
        total = torch.zeros_like(normaliser)
        for start in range(0, length, chunk):
            part = Batch(*(tensor[start : start + chunk] for tensor in batch))
            answers, state = answered(self.env, circuit, part, state)
            loss = self.env.losses(*answers).sum() / normaliser
            if loss.requires_grad:
                loss.backward()
            state = detach(state)
            parts.append(Answered(answers.outputs.detach(), answers.batch))
            total += loss.detach()
        if len(parts) == 1:  # as without truncation: nothing has to be copied
            return total, parts[0]
        outputs, batches = zip(*parts, strict=True)
        return total, Answered(torch.cat(outputs), Batch(*map(torch.cat, zip(*batches, strict=True))))

    def train_step(self) -> dict[str, float]:
        """One update; objective, learning rate and gradient norm, with the env's metrics every ``log_every`` steps.

        Raises:
            TrainingError: too many steps in a row had a loss or gradient that was not finite.
        """
        with self.own_randomness():
            return self._update()

    def _update(self) -> dict[str, float]:
        if self.tries_again():
            self._begin_again()
        if not self.circuit.training:
            self.circuit.train()
        batch = self.env.sample(self.batch_size, self.generator)
        self.meet(batch)
        self.torch_optimiser.zero_grad(set_to_none=True)
        update = Update(self.circuit, self.torch_optimiser, self.env, batch, self.step + 1, self.seed)
        loss, answers, update = self._gradients(update, self.upkeep)
        rate = self.learning_rate(self.step)
        self.answered += self.answers_per_step
        self.step += 1
        values = self.descend(loss, rate)
        if not self.bad_steps_in_a_row:
            self.upkeep.after_update(update)
            self._look_out(*answers)
            if self.online:
                self._gather(*answers)
            if self.step % self.log_every == 0:
                values |= self._metrics(*answers) | {"bad_steps": float(self.bad_steps)} | self._dormant
                values |= self._online_metrics()
                self._dormant = {}
            values |= self.after_update(batch, answers, loss)
        else:
            self.after_skip(update)
        self.env.move_on(self.batch_size)
        return values

    def meet(self, batch: Batch) -> None:
        """Tell a circuit whose units belong to tasks what it is about to learn from; a new task is given units."""
        if isinstance(self.circuit, RoutedCircuit):
            for change in self.circuit.meet(batch.inputs):
                self.restructured(change)

    def after_update(self, batch: Batch, answers: Answered, loss: float) -> dict[str, float]:
        """What a subclass does after each update, which it has counted already; here, nothing.

        Args:
            batch: that was learned from.
            answers: of the circuit before the update, to this process's share of the batch.
            loss: of the whole batch.

        Returns:
            Further metrics of this step.
        """
        return {}

    def after_skip(self, update: Update) -> None:
        """What is done after a step whose loss or gradient was not finite, in which nothing was learned."""
        self.upkeep.after_skip(update)

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

    def _gather(self, outputs: Tensor, share: Batch) -> None:
        """Add up the tallies of a batch that was answered before it was learned from.

        At each step, so that every process holds the sums that a checkpoint keeps.
        """
        for name, (total, count) in self._tallies(outputs, share).items():
            known = self._online.setdefault(name, [0.0, 0.0])
            known[0] += total
            known[1] += count

    def _online_metrics(self) -> dict[str, float]:
        """The metrics since the last row; and begin anew."""
        gathered, self._online = self._online, {}
        return _means({f"online_{name}": pair for name, pair in gathered.items()})

    def _metrics(self, outputs: Tensor, share: Batch) -> dict[str, float]:
        """The env's metrics of the whole batch, from the answers to each process's share of it."""
        if self.processes.size == 1:
            return plain_numbers(self.env.metrics(outputs, share))
        return _means(self._tallies(outputs, share))

    def _tallies(self, outputs: Tensor, share: Batch) -> dict[str, list[float]]:
        """Of each metric the sum and the count over the whole batch, from each process's share of it."""
        tallies = self.env.tallies(outputs, share)
        pairs = [[float(total), float(count)] for total, count in tallies.values()]
        sums = torch.tensor(pairs, dtype=torch.float64, device="cpu")
        self.processes.add_up([sums] if tallies else [])
        return dict(zip(tallies, sums.tolist(), strict=True))

    def _begin_again(self) -> None:
        """See :meth:`DescentAgent._begin_again`."""
        super()._begin_again()
        self.upkeep.begin(self.circuit)

    def state_dict(self) -> dict[str, Any]:
        """What every agent that descends a gradient remembers, with what was gathered since the last row, and what its
        methods of plasticity remember, if it has any.
        """
        gathered = {name: list(pair) for name, pair in self._online.items()}
        kept = self.upkeep.state_dict()
        return super().state_dict() | {"online": gathered} | ({"plasticity": kept} if kept else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from :meth:`state_dict`; see :meth:`Agent.load_state_dict`."""
        check_saved(state)
        self.upkeep.load_state_dict(state.get("plasticity", []))
        kept = {"online": {}, **state}  # which runs of before had not
        super().load_state_dict(kept)
        self._online = {name: list(pair) for name, pair in kept["online"].items()}


def _means(tallies: Mapping[str, list[float]]) -> dict[str, float]:
    """What was counted, from a sum and a count of each metric."""
    return {name: total / count for name, (total, count) in tallies.items() if count > 0}
