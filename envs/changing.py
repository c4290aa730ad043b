"""What envs share that change their task as they are learned from."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import Self

from ..core.env import Env


class ChangingEnv(Env):
    """A stream of tasks: after so many sequences the next one follows.

    How far it has come is its state, which :meth:`move_on` alone changes. All that makes up a task comes from
    ``task_seed`` and its number by :func:`~papertape.core.streams.task_generator`.
    """

    every: int = Field(default=10_000, ge=1, description="sequences of a task that are learned from before the next")
    task_seed: int = Field(
        default=0, ge=0, description="of what the tasks are, apart from the sequences that a run draws of them"
    )

    def after_setup(self) -> None:
        """Begin with the first task; see :meth:`Task.after_setup`."""
        super().after_setup()
        self.seen = 0
        """Sequences that were learned from."""
        self.changes = True
        """Whether another task ever follows; not in the sets that are judged on."""

    @property
    def task_number(self) -> int:
        """The number of the task that the next sequence is of, from 0."""
        return self.seen // self.every

    def task_numbers(self, count: int) -> Tensor:
        """The tasks that the next sequences are of, by their place in the stream, ``[count]``, on the CPU."""
        places = self.seen + torch.arange(count, device="cpu") * self.changes
        return places // self.every

    def move_on(self, count: int) -> None:
        """See :meth:`Task.move_on`."""
        self.seen += count * self.changes

    def still(self) -> Self:
        """A copy that stays with its current task, to be judged on."""
        copied = copy(self)
        copied.changes = False
        return copied

    def state_dict(self) -> dict[str, Any]:
        """How many sequences were learned from."""
        return {"seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: the state belongs to another task.
        """
        if state.keys() != self.state_dict().keys():
            raise ValueError(
                f"env state: got {', '.join(state) or 'none'}; this env keeps {', '.join(self.state_dict())}"
            )
        self.seen = state["seen"]
