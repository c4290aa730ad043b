"""Task: what an env that hands out batches and a world that hands out rewards have in common."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, get_args

from pydantic import Field
from typing_extensions import Self

from .component import Component, fields_of
from .contracts import expect, try_saved, trying
from .options import ContractError
from .placement import AnyDevice
from .registry import contract
from .streams import Stream
from .trace_field import Channels


@contract("env")
class Task(Component, ABC):
    """Sizes of inputs and outputs, sets to validate and test on, an error metric, and a curriculum where there is one.

    A subclass sets ``input_size`` and ``output_size`` in :meth:`setup`: I and O, the channels of an input and of an
    output, or how many tokens and classes there are.
    """

    device: AnyDevice = Field(default="cpu", exclude=True, description="where batches or episodes are made")

    token_inputs: ClassVar[bool] = False
    """Whether inputs are tokens, whole numbers below ``input_size``, rather than vectors of so many channels."""
    error_metric: ClassVar[str]
    """The metric that says how well the task is solved; 0 is perfect."""

    def after_setup(self) -> None:
        """Check what a subclass has set.

        Raises:
            ContractError: something is missing; names the class and what is expected.
        """
        self.input_size: int
        self.output_size: int
        name = type(self).__qualname__
        for size in ("input_size", "output_size"):
            value = getattr(self, size, None)
            if type(value) is not int or value < 1:
                raise ContractError(f"{name}: {size} is {value!r}; expected a whole number of at least 1, set in setup")
        if not isinstance(getattr(self, "error_metric", None), str):
            raise ContractError(f"{name}: has no error_metric; expected the name of one of its metrics")

    def check(self) -> None:
        """Try the task out: check shapes and types of what it returns. Agents do so with all from outside the package.

        Raises:
            ContractError: it is not; names the class, what was found and what is expected.
        """
        name = type(self).__qualname__
        for stream in get_args(Stream):
            with trying(self, "sets"):
                sets = self.sets(stream)
            found = f"gives {sets!r} for {stream}"
            expect(isinstance(sets, Mapping) and bool(sets), f"{name}.sets", found, "tasks by name, at least one")
            for label, variant in sets.items():
                found = f"{label} is a {type(variant).__name__}"
                expect(isinstance(variant, Task), f"{name}.sets", found, "a task")
                sizes = [[task.input_size, task.output_size] for task in (variant, self)]
                found = f"{label} has input_size and output_size {sizes[0]}"
                expect(sizes[0] == sizes[1], f"{name}.sets", found, f"{sizes[1]}, as the task itself")
            with trying(self, "training_range"):
                trained = tuple(self.training_range(stream))
            found = f"gives {trained!r} for {stream}"
            known = bool(trained) and len({*trained}) == len(trained) and {*trained} <= sets.keys()
            expect(known, f"{name}.training_range", found, f"some of {', '.join(map(str, sets))}, each once")
        for method in ("input_channels", "output_channels"):
            with trying(self, method):
                channels = tuple(getattr(self, method)())
            right = all(isinstance(group, Channels) for group in channels)
            expect(right, f"{name}.{method}", f"gives {channels!r}", "Channels")
        with trying(self, "state_dict"):
            state = self.state_dict()
        try_saved(self, "state_dict", state)
        with trying(self, "load_state_dict"):
            self.load_state_dict(state)

    def input_channels(self) -> Sequence[Channels]:
        """What the channels of an input are, all of them in order, for pictures; none says nothing of them."""
        return ()

    def output_channels(self) -> Sequence[Channels]:
        """What the channels of an output are; see :meth:`input_channels`."""
        return ()

    def changed(self, **changes: Any) -> Self:
        """The same task with other values of some options; what is no option, such as the device, is the same."""
        own = {name: value for name, value in self.options if name != "type"}
        given = {name: getattr(self, name) for name, field in fields_of(type(self)).items() if field.exclude}
        return type(self)(**{**own, **given, **changes})

    def sets(self, stream: Stream) -> Mapping[str, Task]:
        """Fixed variants of this task to be judged on, by name; the first is of the :meth:`training_range`.

        They have the same input and output sizes; lengths beyond the training range are among them. Sets without end
        are the same in every stream, and the stream's seed decides which of their sequences or episodes are drawn; a
        finite set belongs to one stream, unless it is the whole task.

        Args:
            stream: validation or test.
        """
        return {"trained": self}

    def training_range(self, stream: Stream) -> Sequence[str]:
        """Names of the :meth:`sets` that make up what is trained on: the first, or one of each part of a task.

        The mean of their errors, all alike, decides which weights are the best and when to stop; other sets lie beyond.

        Args:
            stream: validation or test.
        """
        return [next(iter(self.sets(stream)))]

    def lesson(self) -> Task | None:
        """The current level of the curriculum as a task of its own, whose error on validation sequences decides whether
        the level rises; None where there is none to rise to.
        """
        return None

    def advance(self, error: float) -> bool:
        """Tell the curriculum the error on the current :meth:`lesson`; True if the level rose."""
        return False

    @property
    def task_number(self) -> int:
        """Which task the next batch comes from: the same number is the same task. 0 where there is but one.

        It changes in :meth:`move_on` alone, so that a batch and its losses belong to the same task until then.
        """
        return 0

    def move_on(self, count: int) -> None:
        """Tell a stream of tasks that so many sequences were learned from, after which another task may follow.

        Agents do so at the end of each step. Drawing batches changes nothing.
        """

    def state_dict(self) -> dict[str, Any]:
        """What the task remembers, its curriculum or how far a stream has come, for a checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: the state belongs to another task.
        """
        if state:
            raise ValueError(f"env state: got {', '.join(state)}; this env keeps none")

    def close(self) -> None:
        """Release what the task holds besides memory, such as processes; they start again when needed."""
