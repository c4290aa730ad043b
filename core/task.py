"""Task: what an env that hands out batches and a world that hands out rewards have in common."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from .options import Options
from .streams import Stream


class Task(ABC):
    """Something to be good at: sizes, sets to be judged on, how well it is solved, a curriculum where there is one."""

    error_metric: ClassVar[str]
    """The metric that says how well the task is solved; 0 is perfect."""

    options: Options
    device: torch.device
    input_size: int
    """I, channels of an input."""
    output_size: int
    """O, channels of an output."""

    def sets(self, stream: Stream) -> Mapping[str, Task]:
        """Fixed variants of this task to be judged on, by name; the first is the training range itself.

        They have the same input and output sizes; lengths beyond the training range are among them. Sets without end
        are the same in every stream, and the stream's seed decides which of their sequences or episodes are drawn; a
        finite set belongs to one stream, unless it is the whole task.

        Args:
            stream: validation or test.
        """
        return {"trained": self}

    def lesson(self) -> Task | None:
        """The current level of the curriculum as a task of its own, whose error on validation sequences decides whether
        the level rises; None where there is none to rise to.
        """
        return None

    def advance(self, error: float) -> bool:
        """Tell the curriculum the error on the current :meth:`lesson`; True if the level rose."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """What the curriculum remembers, for a checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the curriculum where :meth:`state_dict` left it.

        Raises:
            ValueError: the state belongs to another task.
        """
        if state:
            raise ValueError(f"env state: got {', '.join(state)}; this env keeps none")

    def close(self) -> None:
        """Let go of what the task holds besides memory, such as processes; what needs it next gets it back."""
