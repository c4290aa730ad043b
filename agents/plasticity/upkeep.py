"""Upkeep: all that an agent does to keep its circuit able to learn, method by method."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from ...core.circuit import Circuit
from ...core.component import build
from ...core.contracts import is_outside, trying, under
from ...core.env import Env
from ...core.options import refusal
from ...core.placement import moved
from ...core.registry import name_of
from ...core.state import example
from ...core.structure import Change
from .base import PlasticityMethod, Update, check_begun, check_calls, generator_of


class Upkeep:
    """Methods in their order, but that those that mask weights come last. It follows changes of structure."""

    def __init__(self, chosen: Sequence[Any], circuit: Circuit, env: Env, seed: int) -> None:
        """
        Args:
            chosen: options or objects of the methods.
            circuit: that will learn.
            env: what it learns.
            seed: of the run.

        Raises:
            ValueError: a method does not fit; names its place among the options.
        """
        self.seed = seed
        built: list[PlasticityMethod] = []
        for index, options in enumerate(chosen):
            method: PlasticityMethod = build(options)
            outsider = is_outside(type(method))
            if outsider:
                with under(f"agent.plasticity.{index}"):
                    check_calls(method)
            try:
                with trying(method, "check", options=True) if outsider else contextlib.nullcontext():
                    method.check(circuit, env)
                if any(type(method) is type(other) or (method.masks and other.masks) for other in built):
                    raise ValueError(f"type: got {_name(method)!r} beside another of its kind; allowed is one")
            except ValueError as error:
                raise ValueError(f"agent.plasticity.{index}.{error}") from error
            built.append(method)
        self.methods = sorted(built, key=lambda method: method.masks)
        self.begin(circuit)

    def begin(self, circuit: Circuit) -> None:
        """Start to remember, with the weights as they are; those that are to be masked become zero."""
        self.device = example(circuit).device
        # What others remember of the weights is to be what masking, which also scales them, has made of them.
        for number, method in sorted(enumerate(self.methods), key=lambda numbered: not numbered[1].masks):
            if not is_outside(type(method)):
                method.begin(circuit, generator_of(self.seed, number, 0))
                continue
            with under(f"agent.plasticity: {_name(method)}"):
                with trying(method, "begin"):
                    method.begin(circuit, generator_of(self.seed, number, 0))
                check_begun(method)

    def copied(self) -> Upkeep:
        """The same for a copy of the circuit."""
        other = copy.copy(self)
        other.methods = copy.deepcopy(self.methods)
        return other

    def looks(self, step: int) -> bool:
        """Whether a method needs to know what the layers gave."""
        return any(method.looks(step) for method in self.methods)

    def on_gradient(self, update: Update) -> None:
        """See :meth:`PlasticityMethod.on_gradient`."""
        for method, own in self._each(update):
            method.on_gradient(own)

    def after_update(self, update: Update) -> None:
        """See :meth:`PlasticityMethod.after_update`."""
        for method, own in self._each(update):
            method.after_update(own)

    def after_skip(self, update: Update) -> None:
        """See :meth:`PlasticityMethod.after_skip`."""
        for method, own in self._each(update):
            method.after_skip(own)

    @property
    def connections(self) -> dict[str, Tensor]:
        """Where weight matrices that are masked have connections; see :meth:`PlasticityMethod.connected`."""
        return {name: mask for method in self.methods for name, mask in method.connected().items()}

    def _each(self, update: Update) -> Iterator[tuple[PlasticityMethod, Update]]:
        """Each method with an update as it sees it."""
        connections = self.connections
        for number, method in enumerate(self.methods):
            activity = update.activity if method.looks(update.step) else None
            yield method, update._replace(method=number, activity=activity, connections=connections)

    def follow(self, change: Change) -> None:
        """See :meth:`PlasticityMethod.follow`."""
        for method in self.methods:
            method.follow(change)

    def state_dict(self) -> list[dict[str, Any]]:
        """What each method remembers, with its name."""
        return [{"type": _name(method), **method.state_dict()} for method in self.methods]

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Take up what :meth:`state_dict` gave.

        Raises:
            ValueError: it is that of other methods.
        """
        before, now = [state["type"] for state in states], [_name(method) for method in self.methods]
        if before != now:
            raise ValueError(refusal("agent.plasticity", before, now))
        for method, state in zip(self.methods, states, strict=True):
            method.load_state_dict(moved(state, self.device))


def _name(method: PlasticityMethod) -> str:
    """What a method is called in options, or its class where it has no name there."""
    return name_of(type(method)) or type(method).__qualname__
