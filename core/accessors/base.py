"""The contract of an accessor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ..component import Chosen, Component
from ..contracts import (
    BATCH,
    check_seen,
    check_trace_fields,
    expect,
    try_begun,
    try_extra_state,
    try_initial_state,
    try_run,
    try_steps,
    trying,
)
from ..initialisers import reset
from ..options import Options
from ..registry import contract
from ..state import compare, example
from ..trace import TraceField


@contract("accessor")
class Accessor(Component, nn.Module, ABC):
    """A memory with its heads: one step maps the controller's output and a state to the words read and a new state.

    A subclass declares its options and what a trace shows, makes an :class:`~papertape.core.interface.Interface` (or
    any layer of ``hidden_size`` inputs) in :meth:`setup`, and implements the methods that are abstract here.
    """

    hidden_size: int = Field(kw_only=False, ge=1, description="size of the controller's output")

    trace_fields: ClassVar[Mapping[str, TraceField]] = {}
    """What :meth:`observed` shows, in the order in which it is drawn."""
    kind: ClassVar[str] = ""
    """Name by which kernels recognise it; a kind of one's own has no name, and runs eagerly."""
    differentiable: ClassVar[bool] = True
    """Whether what is read has a gradient, without which a circuit can only evolve."""
    readers: ClassVar[tuple[str, ...]] = ("interface.linear",)
    """Every Linear that gets the controller's output, by its name: they follow where a circuit changes that one's size.
    """

    @classmethod
    def read_shape(cls, options: Any) -> tuple[int, int]:
        """R and W: how many words a step reads, and their length; here, the options ``num_reads`` and ``word_size``."""
        return options.num_reads, options.word_size

    @abstractmethod
    def initial_state(self, batch_size: int, *_: Any, **sizes: Any) -> Any:  # so that subclasses may name their sizes
        """State before the first step, a NamedTuple of tensors with the batch as their first dimension.

        Args:
            batch_size: B.
            sizes: those of :meth:`sizes_of` that are to differ from what the accessor was built with.
        """

    @abstractmethod
    def forward(self, hidden: Tensor, state: Any) -> tuple[Tensor, Any, Any]:
        """One step of access: write, then read from the new memory.

        Args:
            hidden: the controller's output, ``[B, hidden_size]``.
            state: from :meth:`initial_state` or the last step.

        Returns:
            Words read ``[B, R, W]``, the next state, and the heads: a NamedTuple of this step's parameters.
        """

    def run(self, hidden: Tensor, state: Any) -> tuple[Tensor, Any]:
        """A whole sequence, where no word read changes what the controller gives.

        Here, step by step; a subclass that can do better gives the same.

        Args:
            hidden: the controller's output, ``[T, B, hidden_size]``.
            state: from :meth:`begin`, which is told of T steps.

        Returns:
            Words read ``[T, B, R, W]``, and the state for :meth:`end`.
        """
        read = []
        for one in hidden.unbind(0):
            words, state, _ = self(one, state)
            read.append(words)
        return torch.stack(read), state

    def reset_parameters(self) -> None:
        """Draw all weights anew, as when it was built; here, those of each layer in the layer's own way.

        Raises:
            TypeError: there are weights that no layer has, which a subclass draws itself.
        """
        reset(self)

    def sizes_of(self, state: Any) -> dict[str, int]:
        """The sizes of a state that may differ from what the accessor was built with; here, none."""
        return {}

    def begin(self, state: Any, steps: int) -> Any:
        """Prepare a state for ``steps`` calls of :meth:`forward`, each given what the last returned; here, unchanged.

        An accessor may return something private that :meth:`forward` changes in place, as long as the state stays as
        it was. Where torch records or transforms the steps, which nothing may then change in place, this is not called.
        """
        return state

    def end(self, state: Any) -> Any:
        """Make a state again of what the last of those calls returned."""
        return state

    def observed(self, heads: Any, state: Any) -> dict[str, Tensor]:
        """What a :class:`~papertape.core.trace.Trace` shows of one step, ``[B, …]`` for each of :attr:`trace_fields`.

        Here, the parts of that name of the state and of the heads; those that are None are left out.

        Args:
            heads: what :meth:`forward` gave last.
            state: the state after the step.
        """
        seen = {**heads._asdict(), **state._asdict()}
        return {name: seen[name] for name in self.trace_fields if seen.get(name) is not None}

    def check(self) -> None:
        """See by a trial run that the accessor meets its contract; circuits do so for all from outside the package.

        Raises:
            ContractError: it is not; names the class, what was found and what is expected.
        """
        check_trace_fields(type(self), self.trace_fields)
        try_extra_state(self)
        with trying(self, "specification"):
            self.specification()
        where = f"{type(self).__qualname__}.trace_fields"
        expect("reads" not in self.trace_fields, where, "has reads, the name of the words read", "another name")
        state = try_initial_state(self)
        if example(self).is_meta:
            return  # Sizes alone are known there, by which not everyone's step can go.
        gives = ("words read", "the next state", "the heads")
        shape = self.read_shape(self)
        _, after, heads = try_steps(self, "forward", state, self.hidden_size, shape, gives, self.differentiable)
        try_run(self, Accessor, state, self.hidden_size)
        try_begun(self, Accessor, state, self.hidden_size)
        with trying(self, "sizes_of"):
            sizes = self.sizes_of(after)
        with trying(self, f"initial_state, given sizes_of, {sizes},"):
            compare("the state", self.initial_state(BATCH, **sizes), after)
        named = hasattr(heads, "_asdict")
        where, found = f"{type(self).__qualname__}.forward", f"the heads are a {type(heads).__name__}"
        expect(
            named or type(self).observed is not Accessor.observed,
            where,
            found,
            "a NamedTuple, or observed of one's own",
        )
        with trying(self, "observed"), torch.no_grad():
            seen = self.observed(heads, after)
        parts = {**(heads._asdict() if named else {}), **after._asdict()}
        empty = [name for name, part in parts.items() if part is None]
        check_seen(self, "observed", seen, self.trace_fields, (BATCH,), empty)


if TYPE_CHECKING:
    AnyAccessor = Any  # what is given may be a name, what is kept is an object
else:
    AnyAccessor = Annotated[str | Mapping[str, Any] | Options | Accessor, Chosen("accessor")]
    """An accessor as an option: its name, its name as ``type`` with its options, or an object."""


class SlotOptions(Component):
    """Options of every memory of slots that heads read and write."""

    memory_size: int = Field(default=128, ge=1, description="N, number of slots")
    word_size: int = Field(default=20, ge=1, description="W, length of a slot")
    num_reads: int = Field(default=1, ge=1, description="R, number of read heads")
    num_writes: int = Field(default=1, ge=1, description="H, number of write heads")
    masked_content: bool = Field(default=False, description="lookups weigh the elements of a word (improved DNC)")


class SlotAccessor(Accessor):
    """An accessor whose state has the slots as ``memory``, ``[B, N, W]``; another N may be chosen for each state."""

    def sizes_of(self, state: Any) -> dict[str, int]:
        """The number of slots."""
        return {"memory_size": state.memory.shape[1]}
