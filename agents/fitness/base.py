"""The contract of fitness: what answers to a batch are worth, from the same env that backprop uses."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from ...core.component import Chosen, Component, build
from ...core.contracts import trying
from ...core.env import Batch, Env
from ...core.options import Options
from ...core.registry import contract


@contract("fitness")
class Fitness(Component, ABC):
    """What each sequence adds to the fitness of each member, whose fitness is the sum over its sequences.

    A fitness without options or chance can as well be a plain function of an env, outputs and a batch.
    """

    kept: ClassVar[frozenset[str]] = frozenset()

    @property
    def drawn(self) -> bool:
        """Whether it draws something at random: :meth:`__call__` is then given a generator."""
        return False

    def check(self, env: Env) -> None:
        """Raise ValueError if it cannot judge the answers to an env; says why."""

    @abstractmethod
    def __call__(self, env: Env, outputs: Tensor, batch: Batch) -> Tensor:
        """
        Args:
            env: judges the answers.
            outputs: logits of all members, ``[T, P, B, O]``.
            batch: what every member has answered.

        Returns:
            ``[P, B]``, or the sum over all sequences, ``[P]``; higher is better.
        """


AnyFitness = Annotated[Any, Chosen("fitness", functions=True)]
"""A fitness as an option: its name, its name as ``type`` with its options, or a function."""


def made(chosen: Any) -> Callable[..., Tensor]:
    """The fitness that options name, or a function that is given.

    Args:
        chosen: options as :data:`AnyFitness` makes them, or a function.
    """
    if not isinstance(chosen, Options):
        return chosen
    # What is registered may be a function: its options are arguments that it is called with.
    target: Any = type(chosen).component
    return (
        build(chosen)
        if isinstance(target, type)
        else functools.update_wrapper(functools.partial(build, chosen), target)
    )


def earned(
    fitness: Callable[..., Tensor], env: Env, outputs: Tensor, batch: Batch, generator: torch.Generator | None = None
) -> Tensor:
    """What each sequence adds to the fitness of each member.

    Args:
        fitness: a :class:`Fitness`, or a function.
        env: judges the answers.
        outputs: logits of all members, ``[T, P, B, O]``.
        batch: what every member has answered.
        generator: of what the fitness draws at random.

    Returns:
        ``[P, B]`` in float64, or ``[P, 1]`` where the fitness is that of the whole batch. NaN where an answer is NaN,
        half of whose bits a comparison would call right.

    Raises:
        ValueError: the fitness has another shape; names it.
    """
    told = fitness(env, outputs, batch, **({"generator": generator} if getattr(fitness, "drawn", False) else {}))
    _check_shape(fitness, told, *outputs.shape[1:3])
    lost = outputs.isnan().any(-1).any(0)
    if told.dim() == 1:
        told, lost = told.unsqueeze(1), lost.any(1, keepdim=True)
    return told.double().masked_fill(lost, torch.nan)


def _check_shape(fitness: Any, told: Any, members: int, sequences: int) -> None:
    told_in_numbers = isinstance(told, Tensor) and not told.is_complex()
    if told_in_numbers and told.shape in ((members,), (members, sequences)):
        return
    name = getattr(fitness, "__qualname__", type(fitness).__qualname__)
    found = f"a {type(told).__name__}"
    if isinstance(told, Tensor):
        found = f"shape {list(told.shape)}" if told_in_numbers else f"{told.dtype}"
    raise ValueError(
        f"fitness: {name} gives {found} for {members} members and {sequences} sequences; expected a tensor "
        f"[{members}] or [{members}, {sequences}]"
    )


def check_fitness(fitness: Callable[..., Tensor], env: Env) -> None:
    """Try a fitness out: see that it judges the answers of some members to a few sequences.

    Raises:
        ContractError: it fails; names it and says where.
        ValueError: it has another shape; names it and what is expected.
    """
    members, sequences = 2, 3
    generator = torch.Generator(env.device).manual_seed(0)
    batch = env.sample(sequences, generator)
    outputs = env.silence(batch).unsqueeze(1).repeat(1, members, 1, 1)
    with trying(fitness), torch.no_grad():
        told = fitness(env, outputs, batch, **({"generator": generator} if getattr(fitness, "drawn", False) else {}))
    _check_shape(fitness, told, members, sequences)
