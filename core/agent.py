"""Agent: how a circuit learns, and where it reports to while it does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from .circuit import Trace
from .distributed import Processes
from .env import Batch, Env
from .pictures import Picture
from .task import Task


class Recorder:
    """Receives what a run has to say; this one keeps nothing, so library users need none.

    ``papertape.utils.run.Run`` writes it to a run directory and to visdom.
    """

    wants_episodes: bool = False
    """Whether :meth:`episode` and :meth:`picture` do anything; tracing a circuit for nothing takes time."""

    def message(self, text: str) -> None:
        """One line for a person to read."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers at a training step, named like ``train/loss`` or ``validation/length 40/bits_wrong``."""

    def progress(self, step: int, total: int, values: Mapping[str, float]) -> None:
        """Where the run stands; called at every step, so it must be cheap."""

    def episode(self, step: int, name: str, batch: Batch, outputs: Tensor, trace: Trace | None) -> None:
        """One answered batch with its trace of the memory, to be drawn (its first sequence is)."""

    def picture(self, step: int, name: str, picture: Picture) -> None:
        """Plain data to be drawn, in place of the last of that name."""

    def checkpoint(self, name: str, state: Mapping[str, Any]) -> None:
        """Save a state under a name such as ``latest`` or ``best``."""


class Agent(ABC):
    """Trains and tests one circuit on one task, and can stop and go on at any step."""

    tasks: ClassVar[tuple[type[Task], ...]] = (Env,)
    """Kinds of tasks that this agent can take: envs with batches, worlds with rewards, or both."""
    needs_gradient: ClassVar[bool] = False
    """Whether it can take only circuits that are differentiable."""
    recorder: Recorder
    processes: Processes = Processes()
    """Those that share the work; by default this one is alone."""
    step: int = 0
    """Updates or generations done so far."""
    stop_requested: bool = False
    """Set it (from a signal handler, say) to make :meth:`fit` save and return after the current step."""

    def join(self, processes: Processes) -> None:
        """Share the work with other processes, each of which has an agent of the same options and the same state.

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
        """Everything needed to go on bit for bit: weights, optimiser or population, step, random states."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a run where :meth:`state_dict` left it.

        Raises:
            ValueError: the state belongs to another circuit, env or agent; names the first difference.
        """
