"""The contract of an optimiser: what makes updates out of gradients."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from ...core.component import Chosen, Component, build
from ...core.contracts import expect, is_outside, try_saved, trying, under
from ...core.placement import seeded_apart
from ...core.registry import contract

GROUPS = "groups"
"""Among the moments of an optimiser, which are those of numbered parameters: what it has gathered in its groups."""
_NOT_GATHERED = ("params", "lr")
"""Entries of a group that are the agent's."""
Share = Annotated[float, Field(ge=0, lt=1)]
"""A share that an average keeps at each step."""


@contract("optimiser")
class Optimiser(Component, ABC):
    """Options of an optimiser, with their published values, and how it is built from them.

    The learning rate and its schedule are the agent's: it sets ``lr`` of every group before each step.
    """

    # Published together with the rest of one optimiser, and not for another.
    own_meaning: ClassVar[frozenset[str]] = frozenset({"betas", "smoothing", "momentum", "epsilon", "weight_decay"})
    published_lr: ClassVar[float] = 1e-3
    """Learning rate where the agent has none of its own."""
    elementwise: ClassVar[bool] = True
    """Whether each element is updated by its own gradient alone, so that it can update stacked members at once."""

    @abstractmethod
    def make(self, parameters: Iterable[Tensor], lr: float) -> Optimizer:
        """A fresh optimiser of parameters, with a learning rate."""

    def check(self) -> None:
        """Check by a trial on a parameter of its own that the optimiser meets its contract.

        Raises:
            ContractError: it is not; names the class, what was found and what is expected.
        """
        where = f"{type(self).__qualname__}.make"
        parameter, copied = (torch.nn.Parameter(torch.ones(2, device="cpu")) for _ in range(2))
        with trying(self, "make"):
            made, other = (self.make([each], 0.1) for each in (parameter, copied))
        expect(isinstance(made, Optimizer), where, f"returns a {type(made).__name__}", "a torch Optimizer")
        right = all("lr" in group for group in made.param_groups)
        expect(right, where, "its groups have no lr", "one in each, which the agent sets")
        self._try_step(made, parameter)
        try_saved(self, "make, its state_dict", made.state_dict())
        expect(
            bool((parameter != 1).any()), where, "a step changes no parameter", "one that moves against the gradient"
        )
        self._try_step(made, parameter)
        copied.data.copy_(parameter)
        with trying(self, "take_up"):
            self.take_up(other, copy.deepcopy(self.moments(made, 0.1)))
        for optimiser, moved in ((made, parameter), (other, copied)):
            self._try_step(optimiser, moved)
        same = torch.allclose(parameter, copied, rtol=0, atol=0, equal_nan=True)
        found = "a step of another that has taken up its state is another one"
        expect(same, where, found, "all that it counts in its state or its groups, which checkpoints hold")

    def _try_step(self, optimiser: Optimizer, parameter: Tensor) -> None:
        parameter.grad = torch.ones_like(parameter)
        with seeded_apart(parameter.device, 0), trying(self, "make, its step"):
            optimiser.step()

    def moments(self, optimiser: Optimizer, lr: float) -> dict[Any, Any]:
        """What a checkpoint holds of an optimiser of its kind: averages and counts of parameters, and under ``groups``
        what it has changed in its groups, where some count. Settings are not part of it: they are the options' own.

        Args:
            optimiser: from :meth:`make`.
            lr: with which it was made.
        """
        gathered: dict[Any, Any] = dict(optimiser.state_dict()["state"])
        if not is_outside(type(self)):  # the package's own keep nothing there
            return gathered
        fresh = self.make([one for group in optimiser.param_groups for one in group["params"]], lr)
        groups = [
            {
                name: value
                for name, value in now.items()
                if name not in _NOT_GATHERED and not _same(value, was.get(name))
            }
            for now, was in zip(optimiser.param_groups, fresh.param_groups, strict=False)
        ]
        return gathered | ({GROUPS: groups} if any(groups) else {})

    def take_up(self, optimiser: Optimizer, moments: Mapping[Any, Any]) -> None:
        """Load the averages and counts of another optimiser of its kind; see :func:`load_moments`."""
        load_moments(optimiser, moments)


AnyOptimiser = Annotated[Any, Chosen("optimiser")]
"""An optimiser as an option: its name, its name as ``type`` with its options, or an object."""


def load_moments(optimiser: Optimizer, moments: Mapping[Any, Any]) -> None:
    """Load the averages and counts of another optimiser of its kind; settings stay as they are.

    Args:
        optimiser: of as many parameters.
        moments: the other's :meth:`Optimiser.moments`, or the part ``state`` of its ``state_dict()``.
    """
    groups = optimiser.state_dict()["param_groups"]
    for group, changed in zip(groups, moments.get(GROUPS, ()), strict=False):
        group.update(changed)
    gathered = {parameter: state for parameter, state in moments.items() if parameter != GROUPS}
    optimiser.load_state_dict({"state": gathered, "param_groups": groups})


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        return isinstance(left, Tensor) and isinstance(right, Tensor) and torch.equal(left, right)
    return bool(left == right)


def build_optimiser(chosen: Any) -> Optimiser:
    """The optimiser that an agent's option names or is; one from outside the package is tried out.

    Raises:
        ContractError: it is not what the contract says.
    """
    built: Optimiser = build(chosen)
    if is_outside(type(built)):
        with under("optimiser"):
            built.check()
    return built
