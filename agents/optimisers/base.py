"""The contract of an optimiser: what makes updates out of gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from ...core.component import Chosen, Component, build
from ...core.contracts import expect, is_outside, try_saved, trying, under
from ...core.registry import contract

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
        parameter = torch.nn.Parameter(torch.ones(2, device="cpu"))
        parameter.grad = torch.ones(2, device="cpu")
        with trying(self, "make"):
            made, other = (self.make([parameter], 0.1) for _ in range(2))
        expect(isinstance(made, Optimizer), where, f"returns a {type(made).__name__}", "a torch Optimizer")
        right = all("lr" in group for group in made.param_groups)
        expect(right, where, "its groups have no lr", "one in each, which the agent sets")
        with trying(self, "make, its step"):
            made.step()
        try_saved(self, "make, its state_dict", made.state_dict())
        with trying(self, "take_up"):
            self.take_up(other, made.state_dict()["state"])
        expect(
            bool((parameter != 1).any()), where, "a step changes no parameter", "one that moves against the gradient"
        )

    def take_up(self, optimiser: Optimizer, moments: Mapping[Any, Any]) -> None:
        """Load the averages and counts of another optimiser of its kind; see :func:`load_moments`."""
        load_moments(optimiser, moments)


AnyOptimiser = Annotated[Any, Chosen("optimiser")]
"""An optimiser as an option: its name, its name as ``type`` with its options, or an object."""


def load_moments(optimiser: Optimizer, moments: Mapping[Any, Any]) -> None:
    """Load the averages and counts of another optimiser of its kind; settings stay as they are.

    Args:
        optimiser: of as many parameters.
        moments: the part ``state`` of the other's ``state_dict()``.
    """
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})


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
