"""The word problem of a group: what a word of its elements multiplies to (Merrill et al. 2024; Grazzi et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..core.env import Batch
from ..core.registry import register
from ..core.token_env import TokenEnv
from .curriculum import Range
from .sequence import SequenceEnv, Sizes
from .thinking import with_thinking


@register("env", "word-problem")
class WordProblemEnv(TokenEnv, SequenceEnv):
    """Elements of a group one after the other, drawn evenly; what all so far multiply to is due at each step.

    S5 is all permutations of five things, A5 the even ones among them, Z60 the turns of sixty things in a ring; with Z2
    the answer is a parity. An element is applied after those before it. Inputs are the elements that words are made of
    and, if there are ``think_steps``, a token for these; answers are all elements of the group.
    """

    group: Literal["S3", "S4", "S5", "A4", "A5", "Z2", "Z60"] = Field(
        default="S5", description="symmetric (S), alternating (A) or cyclic (Z) group, of as many things"
    )
    moved: int | None = Field(
        default=None,
        ge=2,
        description="most things that an element of a word moves, by which the task is easier: 2 are swaps, and "
        "nothing moved; null takes all elements",
    )
    answers: Literal["each", "last"] = Field(default="each", description="ask at each step, or at the last one alone")
    min_length: int = Field(default=1, ge=1, description="fewest elements of a training sequence")
    max_length: int = Field(default=128, ge=1, description="most elements of a training sequence")
    test_lengths: Sizes = Field(
        default=[256, 512], description="numbers of elements to be tested on besides the training range"
    )

    @staticmethod
    def ranges(options: Any) -> dict[str, Range]:
        """Elements of a sequence."""
        return {"length": (options.min_length, options.max_length)}

    @classmethod
    def check_options(cls, options: Any) -> None:
        """Refuse words without a choice of elements."""
        super().check_options(options)
        if options.moved is not None and len(_moving(elements_of(options.group), options.moved)) < 2:
            raise ValueError(f"moved: got {options.moved}; no element of {options.group} moves so few things")

    def setup(self) -> None:
        """Sizes of inputs and answers; the group's table."""
        elements = elements_of(self.group)
        chosen = _moving(elements, self.moved or len(elements[0]))
        self.tokens = torch.tensor([elements.index(element) for element in chosen], device=self.device)
        """The number within the group of each element that words are made of."""
        self.products = products_of(elements).to(self.device)
        turns = self.group.startswith("Z")
        self.names = [str(number) if turns else "".join(map(_digit, at)) for number, at in enumerate(elements)]
        self.input_size, self.output_size = len(chosen) + (self.think_steps > 0), len(elements)

    def input_names(self) -> Sequence[str]:
        """Where each element puts things, or how far it turns them; and the token for thinking."""
        names = [self.names[number] for number in self.tokens.tolist()]
        return [*names, "think"] if self.think_steps else names

    def output_names(self) -> Sequence[str]:
        """Where each element puts things, or how far it turns them."""
        return self.names

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """A batch at the current level; see :meth:`Env.sample`."""
        length = self.draw(batch_size, generator)["length"]
        longest = int(length.max())
        words = torch.randint(len(self.tokens), (longest, batch_size), generator=generator, device=self.device)
        factors = self.tokens[words]
        state, states = factors[0], factors.clone()
        for number in range(1, longest):
            state = states[number] = self.products[state, factors[number]]
        step = self.steps(longest)
        there = step < length
        asked: Tensor = step == length - 1 if self.answers == "last" else there
        batch = Batch(words * there, states * asked, asked.to(torch.get_default_dtype()))
        return with_thinking(batch, self.think_steps, self.input_size - 1)

    @property
    def kept_words(self) -> int:
        """The state."""
        return 1

    def beyond(self) -> list[dict[str, Range]]:
        """``test_lengths``."""
        return [{"length": (length, length)} for length in self.test_lengths]


def elements_of(group: str) -> list[tuple[int, ...]]:
    """The elements of a group: for each thing the place where it goes; the one that moves nothing first.

    Args:
        group: a letter and a number of things, such as ``S5``.
    """
    kind, size = group[0], int(group[1:])
    if kind == "Z":
        return [tuple((place + turn) % size for place in range(size)) for turn in range(size)]
    every = permutations(range(size))
    return [element for element in every if kind == "S" or _swaps(element) % 2 == 0]


def products_of(elements: Sequence[tuple[int, ...]]) -> Tensor:
    """The number of the element that is the first, then the second, ``[G, G]``."""
    number = {element: index for index, element in enumerate(elements)}
    return torch.tensor(
        [[number[tuple(second[place] for place in first)] for second in elements] for first in elements], device="cpu"
    )


def _swaps(element: tuple[int, ...]) -> int:
    """Pairs of things that change their order, which are even in number where the element is even."""
    return sum(element[i] > element[j] for i in range(len(element)) for j in range(i + 1, len(element)))


def _moving(elements: Sequence[tuple[int, ...]], most: int) -> list[tuple[int, ...]]:
    """The elements that move at most so many things."""
    return [element for element in elements if sum(place != to for place, to in enumerate(element)) <= most]


def _digit(place: int) -> str:
    return str(place + 1)
