"""The contract of a method that keeps a circuit able to learn, or sparse: what it does around each update."""

from __future__ import annotations

import inspect
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import copy, deepcopy
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from ...core.circuit import Circuit
from ...core.component import Chosen, Component, outside
from ...core.contracts import expect, try_saved, trying
from ...core.env import Batch, Env
from ...core.options import LARGEST_STEP, ContractError
from ...core.registry import contract, name_of
from ...core.structure import Change
from ...core.task import Task
from .units import Activity


class Update(NamedTuple):
    """One update of a circuit's weights."""

    circuit: Circuit
    optimiser: Optimizer
    """Of the circuit's parameters."""
    env: Env
    batch: Batch
    """That is learned from, the whole of it."""
    step: int
    """The number of the update, from 1."""
    seed: int
    """Of the run."""
    method: int = 0
    """The number of the method that sees it."""
    activity: Activity | None = None
    """What the layers gave, where the method asked for it and once they have."""

    connections: Mapping[str, Tensor] = MappingProxyType({})
    """Where weight matrices that a method masks have connections, by their names."""

    def generator(self) -> torch.Generator:
        """A fresh generator on the CPU, of all that the method draws in this update; the same at every call."""
        return generator_of(self.seed, self.method, self.step)


def generator_of(seed: int, method: int, step: int) -> torch.Generator:
    """A generator on the CPU that depends on these alone.

    Args:
        seed: of the run.
        method: its number.
        step: number of the update, 0 before the first.
    """
    drawn = random.Random(f"plasticity {seed} {method} {step}").getrandbits(63)
    return torch.Generator().manual_seed(drawn)


@contract("plasticity")
class PlasticityMethod(Component, ABC):
    """Does something to the gradient of a batch, or to the weights after an update.

    What it remembers is shaped like the circuit's parameters or has a value for each unit, so that it can follow a
    change of structure; it never keeps the circuit itself. :attr:`remembered` names the attributes.
    """

    own_meaning: ClassVar[frozenset[str]] = frozenset({"every", "strength", "density"})
    remembered: ClassVar[tuple[str, ...]] = ()
    """Attributes that make up its state, of plain data and tensors; set in :meth:`begin`."""
    judges_units: ClassVar[bool] = False
    """Whether it needs to know the circuit's layers of units."""
    masks: ClassVar[bool] = False
    """Whether it keeps weights at zero: then it has the last word on gradients and weights."""

    def check(self, circuit: Circuit, env: Env) -> None:
        """Raise ValueError where a circuit or env does not fit, before anything begins; names the option first."""
        if self.judges_units and (why := circuit.fixed()):
            name = name_of(type(self)) or type(self).__qualname__
            raise ValueError(f"type: got {name!r}, which has to know the circuit's hidden units: {why}")

    def begin(self, circuit: Circuit, generator: torch.Generator) -> None:
        """Start to remember, with the weights as they are when training begins.

        Args:
            circuit: that will learn.
            generator: of all that is drawn, on the CPU.
        """

    def connected(self) -> Mapping[str, Tensor]:
        """Where there are connections, bool ``[rows, columns]`` by the name of each weight matrix that it masks."""
        return {}

    def looks(self, step: int) -> bool:
        """Whether it needs to know what the layers gave in the update of this number."""
        return False

    def on_gradient(self, update: Update) -> None:
        """Called with the gradient of the whole batch in the parameters, before it is clipped."""

    def after_update(self, update: Update) -> None:
        """Called after the optimiser's step."""

    def after_skip(self, update: Update) -> None:
        """Called instead, where loss or gradient were not finite and the optimiser made no step."""

    def follow(self, change: Change) -> None:
        """Carry over what is remembered to a new structure."""

    def state_dict(self) -> dict[str, Any]:
        """What it remembers."""
        return {name: getattr(self, name) for name in self.remembered}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        for name in self.remembered:
            setattr(self, name, state[name])


CALLS = {
    "check": ("circuit", "env"),
    "begin": ("circuit", "generator"),
    "connected": (),
    "looks": ("step",),
    "on_gradient": ("update",),
    "after_update": ("update",),
    "after_skip": ("update",),
    "follow": ("change",),
}
"""What an agent calls of a method, with the arguments that it gives by place."""


def check_calls(method: PlasticityMethod) -> None:
    """See whether what an agent calls can be called, and that a method says what it remembers.

    Raises:
        ContractError: it cannot; names the class and what is expected.
    """
    name = type(method).__qualname__
    for call, arguments in CALLS.items():
        signature = inspect.signature(getattr(method, call))
        try:
            signature.bind(*arguments)
        except TypeError as error:
            expected = ", ".join(arguments)
            raise ContractError(f"{name}.{call}: takes {signature}; expected {expected}") from error
    remembered = method.remembered
    right = isinstance(remembered, tuple) and all(isinstance(one, str) for one in remembered)
    expect(right, f"{name}.remembered", f"is {remembered!r}", "a tuple of the names of attributes")


def check_begun(method: PlasticityMethod) -> None:
    """See whether a method that has begun can be saved and go on.

    Raises:
        ContractError: it cannot; names the class and why.
    """
    with trying(method, "state_dict"):
        state = method.state_dict()
    try_saved(method, "state_dict", state)
    with trying(method, "load_state_dict"):
        method.load_state_dict(state)
    with trying(method, "looks"):
        method.looks(1)


AnyPlasticity = Annotated[Any, Chosen("plasticity", many=True)]
"""Methods as an option: the name of one, its name as ``type`` with its options, an object, or a list of those."""


class AtTaskEnds(PlasticityMethod):
    """A method that does something each time a task has ended."""

    every: int | None = Field(
        default=None,
        ge=1,
        le=LARGEST_STEP,
        description="updates that a task lasts; null goes by the env, where that has one task after another",
    )

    def check(self, circuit: Circuit, env: Env) -> None:
        """See :meth:`PlasticityMethod.check`."""
        super().check(circuit, env)
        if self.every is None and type(env).task_number is Task.task_number:
            raise ValueError("every: got None; the env has a single task, allowed is a number of updates")

    def ends(self, update: Update) -> bool:
        """Whether a task ends with an update."""
        if self.every is not None:
            return update.step % self.every == 0
        return _number_after(update.env, update.batch.mask.shape[1]) != update.env.task_number

    def after_update(self, update: Update) -> None:
        """See :meth:`PlasticityMethod.after_update`."""
        if self.ends(update):
            self.end_task(update)

    def after_skip(self, update: Update) -> None:
        """See :meth:`PlasticityMethod.after_skip`; a task ends all the same."""
        if self.ends(update):
            self.end_task(update)

    @abstractmethod
    def end_task(self, update: Update) -> None:
        """Do it: a task has ended with this update."""


def _number_after(env: Env, count: int) -> int:
    """The number of the task once so many more sequences were learned from; the env stays where it is."""
    if not outside(env):  # the package's own change nothing in place, and some take long to go back
        after = copy(env)
        after.move_on(count)
        return after.task_number
    before = deepcopy(env.state_dict())
    env.move_on(count)
    number = env.task_number
    env.load_state_dict(before)
    return number
