"""Slowly-changing regression (Dohare et al. 2024, "Loss of plasticity in deep continual learning", Methods)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..core.env import Batch, Env
from ..core.registry import register
from ..core.streams import Stream, task_generator
from ..core.trace_field import Channels
from .changing import ChangingEnv
from .regression import RegressionEnv


@register("env", "slowly-changing")
class SlowlyChangingEnv(ChangingEnv, RegressionEnv):
    """What a fixed random network says of bits, some of which stay long: inputs ``[1, B, I]``, targets ``[1, B, 1]``.

    The first of the I bits are the same in all sequences of a task, and from one task to the next one of them flips;
    the others are drawn anew in each sequence. The network has one hidden layer of linear threshold units. All its
    weights w and biases b are 1 or -1. A unit gives 1 where its sum, its bias included, is above ``threshold (I + 1) -
    S``, and so where about that share of the bits are as its weights have them. S is the number of its weights that are
    -1, and b / 2: so it is in the code that was published with the paper, where the text counts the bias as a weight.
    """

    bits: int = Field(default=20, ge=2, le=1000, description="I; m in the paper")
    slow_bits: int = Field(default=15, ge=1, description="how many of them stay while a task lasts; f in the paper")
    units: int = Field(default=100, ge=1, description="threshold units of the network that is to be learned")
    threshold: float = Field(
        default=0.7, gt=0, lt=1, description="share of its inputs that must fit for a unit to give 1; beta in the paper"
    )
    change: Literal["one", "all"] = Field(
        default="one",
        description="what the next task has of slow bits: one of them flipped, as the paper says, or all drawn anew, "
        "as the code that was published with it does unless told otherwise",
    )

    @classmethod
    def check_options(cls, options: Any) -> None:
        """Refuse more slow bits than there are."""
        super().check_options(options)
        if options.slow_bits > options.bits:
            raise ValueError(f"slow_bits: got {options.slow_bits}; allowed is at most bits, which is {options.bits}")

    def setup(self) -> None:
        """Draw the network, and the slow bits of the first task."""
        self.input_size, self.output_size = self.bits, 1
        generator, dtype = task_generator(self.task_seed, 0), torch.get_default_dtype()

        def signs(*shape: int) -> Tensor:
            return (2 * torch.randint(2, shape, generator=generator, device="cpu") - 1).to(dtype).to(self.device)

        self.weights, self.biases = signs(self.units, self.bits), signs(self.units)
        negative = (self.bits - self.weights.sum(1) + self.biases) / 2
        self.thresholds = self.threshold * (self.bits + 1) - negative
        self.output_weights, self.output_bias = signs(self.units), signs(1)
        self._first = self.slow = torch.randint(2, (self.slow_bits,), generator=generator, device="cpu").tolist()
        """Of the current task."""

    def _following(self, slow: Sequence[int], number: int) -> list[int]:
        """The slow bits of a task, from those of the task before it."""
        generator = task_generator(self.task_seed, number)
        if self.change == "all":
            return torch.randint(2, (self.slow_bits,), generator=generator, device="cpu").tolist()
        flipped = int(torch.randint(self.slow_bits, (), generator=generator, device="cpu"))
        return [bit ^ (index == flipped) for index, bit in enumerate(slow)]

    def _after(self, slow: list[int], number: int) -> list[int]:
        """The slow bits of the current task, from those of an earlier one."""
        for later in range(number + 1, self.task_number + 1):
            slow = self._following(slow, later)
        return slow

    def move_on(self, count: int) -> None:
        """See :meth:`Task.move_on`."""
        before = self.task_number
        super().move_on(count)
        self.slow = self._after(self.slow, before)

    def input_channels(self) -> Sequence[Channels]:
        """The bits that stay, and the others."""
        others = self.bits - self.slow_bits
        return [Channels("slow", self.slow_bits), *([Channels("random", others)] if others else [])]

    def answer(self, inputs: Tensor) -> Tensor:
        """What the network says of bits, ``[…, I]`` -> ``[…, 1]``."""
        fires = inputs @ self.weights.T + self.biases > self.thresholds
        return (fires.to(inputs.dtype) @ self.output_weights).unsqueeze(-1) + self.output_bias

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw the bits that do not stay; see :meth:`Env.sample`.

        Raises:
            ValueError: a batch size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}; allowed is a whole number of at least 1")
        numbers = self.task_numbers(batch_size) - self.task_number
        tasks = [self.slow]
        for number in range(1, int(numbers[-1]) + 1):
            tasks.append(self._following(tasks[-1], self.task_number + number))
        slow = torch.tensor(tasks, device="cpu")[numbers].to(self.device)
        shape = batch_size, self.bits - self.slow_bits
        random = torch.randint(2, shape, generator=generator, device=self.device)
        inputs = torch.cat([slow, random], -1).to(self.weights.dtype).unsqueeze(0)
        targets = self.answer(inputs)
        return Batch(inputs, targets, torch.ones_like(targets[..., 0]))

    def sets(self, stream: Stream) -> dict[str, Env]:
        """``current task``."""
        return {"current task": self.still()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`ChangingEnv.load_state_dict`; the slow bits follow from the number of the task."""
        super().load_state_dict(state)
        self.slow = self._after(self._first, 0)
