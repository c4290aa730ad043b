"""Agent: how a circuit learns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, PlainValidator
from torch import nn

from .circuit import Circuit
from .component import Component, outside
from .contracts import expect, is_outside, try_extra_state, under
from .distributed import Processes
from .env import Env
from .kernels.dispatch import BACKENDS
from .recorder import Recorder
from .registry import contract
from .task import Task


def _as_module(given: Any) -> Any:
    if isinstance(given, nn.Module):
        return given
    raise ValueError(f"got a {type(given).__name__}; expected a Circuit or any other torch.nn.Module")


def _as_recorder(given: Any) -> Recorder:
    if given is None or isinstance(given, Recorder):
        return given or Recorder()
    raise ValueError(f"got a {type(given).__name__}; expected a Recorder or None")


@contract("agent")
class Agent(Component, ABC):
    """Trains and tests one circuit on one task, and can stop and resume at any step."""

    env: Task = Field(kw_only=False, description="the task, on the circuit's device")
    circuit: Annotated[Circuit | Any, PlainValidator(_as_module)] = Field(
        kw_only=False,
        description="what answers, time first; any other module maps inputs [T, B, I] (and a state, if it has one) to "
        "outputs [T, B, O] (and the next state)",
    )
    seed: int = Field(
        default=0,
        exclude=True,
        ge=-(2**59),
        lt=2**59,
        description="of the run; each stream of data has one of its own made from it",
    )
    recorder: Annotated[Recorder, PlainValidator(_as_recorder)] = Field(
        default=None,  # type: ignore[assignment]
        exclude=True,
        description="where metrics, pictures and checkpoints go; None keeps nothing",
    )

    tasks: ClassVar[tuple[type[Task], ...]] = (Env,)
    """Kinds of tasks that this agent can take: envs with batches, worlds with rewards, or both."""
    needs_gradient: ClassVar[bool] = False
    """Whether it can take only circuits that are differentiable."""
    precisions: ClassVar[tuple[str, ...]] = ("float32", "bfloat16", "float64")
    """Precisions in which it can run a circuit."""
    backends: ClassVar[tuple[str, ...]] = BACKENDS
    """Backends with which it can run a circuit."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for name, kind in (("tasks", type), ("precisions", str), ("backends", str)):
            value = getattr(cls, name)
            right = isinstance(value, tuple) and all(isinstance(part, kind) for part in value)
            expected = "a tuple of kinds of tasks" if kind is type else "a tuple of words"
            expect(right, f"{cls.__qualname__}.{name}", f"is {value!r}", expected)

    @classmethod
    def task_of(cls, options: Any, task: Task) -> Task:
        """The task as an agent with these options takes it, whose sizes are those of the circuit; here as it is.

        Args:
            options: of an agent of this class.
            task: as it was built.

        Raises:
            ValueError: the agent cannot take it; says why.
        """
        return task

    def setup(self) -> None:
        """Check that env, circuit and options fit together, and try out those that come from outside the package.

        Raises:
            ValueError: they do not; names the part, what was given and what is allowed.
            ContractError: one breaks its contract; names its class, what was found and what is expected.
        """
        self.processes = Processes()
        """The processes that share the work; by default this one alone."""
        self.step = 0
        """Updates or generations done so far."""
        self.stop_requested = False
        """Set it (from a signal handler, say) to make :meth:`fit` save and return after the current step."""
        name, circuit = type(self).__name__, self.circuit
        if not isinstance(self.env, self.tasks):
            allowed = " or ".join(task.__name__ for task in self.tasks)
            raise ValueError(f"env: got a {type(self.env).__name__}; allowed with {name}: {allowed}")
        # Of several, as a cuda without a number, torch takes the one that is the current one.
        here = torch.empty(0, device=self.env.device).device
        places = {parameter.device for parameter in circuit.parameters()}
        if places and here not in places:
            there = " and ".join(sorted(map(str, places)))
            raise ValueError(
                f"circuit: is on {there}, the env on {here}; allowed is one device (move the circuit with .to)"
            )
        if outside(self.env):
            with under("env"):
                self.env.check()
        with under("circuit"):
            try_extra_state(circuit)
        if not isinstance(circuit, Circuit):
            return
        if is_outside(type(circuit)):
            with under("circuit"):
                circuit.check()
        if self.needs_gradient and not circuit.differentiable:
            raise ValueError(f"circuit: got a {type(circuit).__name__}, which has no gradient; {name} needs one")
        if circuit.autocast is not None and str(circuit.autocast).removeprefix("torch.") not in self.precisions:
            raise ValueError(
                f"circuit: its autocast is {circuit.autocast}; allowed with {name}: {', '.join(self.precisions)}"
            )
        if circuit.backend in BACKENDS and circuit.backend not in self.backends:
            raise ValueError(
                f"circuit: its backend is {circuit.backend!r}; allowed with {name}: {', '.join(self.backends)}"
            )

    @property
    def owes_validation(self) -> bool:
        """Whether the validation of this very step failed, so that it is made when the run goes on."""
        return False

    @classmethod
    def refuses_start(cls, options: Any) -> Iterable[str]:
        """One line, with its path, for each option that would discard the weights that the circuit starts with.

        Args:
            options: of an agent of this class.
        """
        return ()

    def join(self, processes: Processes) -> None:
        """Share the work with other processes, each of which has an agent with the same options and state.

        Raises:
            ValueError: there are too many of them.
        """
        self.processes = processes

    @abstractmethod
    def fit(self) -> dict[str, float]:
        """Train until done or asked to stop; return the last validation metrics."""

    @abstractmethod
    def test(self) -> dict[str, float]:
        """Evaluate on every set of the test stream without learning; return its metrics."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume bit for bit: weights, optimiser or population, step, random states.

        Its entries are the agent's own, but for two that others look for in a checkpoint: ``circuit``, the circuit's
        ``state_dict``, without which ``start``, ``sweep``, ``league``, ``compare`` and ``load_circuit`` find no weights
        there; and ``env``, the task's, without which runs are compared on the first task of a stream.
        """

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from what :meth:`state_dict` returned.

        Raises:
            ValueError: the state belongs to another circuit, env or agent; names the first difference.
        """
