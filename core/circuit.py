"""Circuit: a recurrent module with an explicit state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .component import Component
from .contracts import (
    BATCH,
    check_seen,
    check_trace_fields,
    expect,
    try_extra_state,
    try_initial_state,
    try_steps,
    trying,
)
from .initialisers import reset
from .kernels import graphs
from .kernels.formulas import unchanged, wrote_later
from .kernels.transforms import one_call
from .lengths import check_lengths, picked, run_each_to_its_end, without_padding
from .members import Stack, map_members
from .options import check_choice
from .placement import AnyDeviceOrNone, AnyDtype, lower_type, random_apart
from .registry import contract
from .state import check_batch, compare, example, in_types_of, layout, map_state
from .structure import Change, LayerEdit, Structure, Wire, check_structure, draw_all, inputs_of, make_change
from .tokens import check_tokens, is_whole, signed
from .trace import Trace, TraceField

AT = "at: got some; allowed for time-major sequences in a batch, without lengths and trace"


@contract("circuit")
class Circuit(Component, nn.Module, ABC):
    """A recurrent module: (inputs, state) -> (outputs, state). It keeps no hidden state between calls.

    Subclasses implement :meth:`initial_state` and :meth:`step`, and may override :meth:`run` with something faster.
    """

    input_size: int = Field(
        kw_only=False, ge=1, description="I, channels of each input step, or how many tokens there are to choose from"
    )
    output_size: int = Field(kw_only=False, ge=1, description="O, channels of each output step")
    batch_first: bool = Field(default=False, exclude=True, description="sequences are [B, T, …] rather than [T, B, …]")
    backend: str = Field(
        default="auto", exclude=True, description="what runs sequences; auto takes the fastest that can"
    )
    device: AnyDeviceOrNone = Field(default=None, exclude=True, description="where the weights are")
    dtype: AnyDtype = Field(default=None, exclude=True, description="of the weights and of every state")

    embedding_size: int | None = Field(
        default=None,
        ge=1,
        description="E, elements of a learned vector for each of the I tokens that inputs are made of; null takes "
        "vectors as inputs, and tokens as one-hot vectors",
    )

    differentiable: bool = Field(default=True, init=False)
    """Whether outputs have a gradient, without which a circuit can only evolve."""
    backends: ClassVar[tuple[str, ...]] = ("auto", "graphs", "eager")
    """What :attr:`backend` may be; here, what :meth:`run` goes by."""
    trace_fields: ClassVar[Mapping[str, TraceField]] = {}
    """What a trace shows."""
    autocast: torch.dtype | None = Field(default=None, init=False)
    """Lower precision of matrix products, ``torch.bfloat16``, as under ``torch.autocast``; None leaves that to the
    caller. Outputs keep the type of the weights; each circuit says what else does."""
    watchable: ClassVar[bool] = False
    """Whether hooks on its :meth:`wires` change nothing in how it runs."""
    uniform: ClassVar[bool] = True
    """Whether all layers that :meth:`edit` changes have to be of one size."""

    def setup(self) -> None:
        """Build what the circuit is made of."""

    def after_setup(self) -> None:
        """Put what was built on its device, in its type."""
        check_choice("backend", self.backend, self.backends)
        self.embedding = nn.Embedding(self.input_size, self.embedding_size) if self.embedding_size else None
        """The vector of each token, ``[I, E]``."""
        self._checked_layout: Any = None
        """Layout of the last state that :meth:`check_state` accepted: the next most likely has the same."""
        self.first_structure = self.structure()
        """What :meth:`structure` was when the circuit was built."""
        device, dtype = self.__dict__.pop("device"), self.__dict__.pop("dtype")
        if device is not None or dtype is not None:
            self.to(device, dtype)

    def reset_parameters(self) -> None:
        """Draw all weights anew, as when it was built; here, those of each layer in the layer's own way.

        Raises:
            TypeError: there are weights that no layer has, which a subclass draws itself.
        """
        reset(self)

    # ---- structure: see core/structure.py

    def structure(self) -> Structure:
        """The hidden layers that can change, as plain data; none where :meth:`fixed` says why."""
        return ()

    def fixed(self) -> str | None:
        """Why the structure cannot change, or None."""
        return f"a {type(self).__name__} has no layers that can change"

    def wires(self, structure: Structure) -> list[Wire]:
        """Every Linear whose size depends on the structure, for a structure of the circuit."""
        return []

    def resize(self, structure: Structure) -> None:
        """Give every one of :meth:`wires` the size for another structure, and parameters that are yet to be filled."""
        raise NotImplementedError

    @property
    def fresh_residual(self) -> bool:
        """Whether a fresh layer is residual and adds nothing at first; if not, it hands on what it gets."""
        return True

    def restructure(self, structure: Sequence[Sequence[Any]]) -> None:
        """Give the circuit another structure, such as that of a checkpoint, whose weights are to be loaded then.

        Until they are, weights of what depends on the structure are drawn as those of a torch.nn.Linear.

        Args:
            structure: size and whether it is residual of each hidden layer, as :meth:`structure` gives them.

        Raises:
            ValueError: it can have no such structure; says why.
        """
        wanted = check_structure(self, structure)
        if wanted == self.structure():
            return
        self.resize(wanted)
        draw_all(self)
        self._forget_layout()

    def edit(
        self,
        layers: Sequence[LayerEdit],
        inputs: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Change:
        """Change the hidden layers in place, so that outputs stay as they are where that can be.

        Units and layers that are added, and units that are split, change nothing in what the circuit computes. The
        weights that read a removed unit take over its part, by least squares over what the layers do with the inputs.

        Args:
            layers: what the layers are to be; see :func:`~papertape.core.structure.widened` and others there.
            inputs: recent ones, ``[T, B, I]``, some hundred steps; None drops units that are removed.
            generator: of fresh weights, on the CPU; None takes torch's global one.

        Returns:
            What became of the parameters, by which all that is shaped like them follows.

        Raises:
            ValueError: such a change cannot be made; names the layer, what was given and what is allowed.
        """
        change = make_change(self, layers, inputs, generator)
        self._forget_layout()
        return change

    def _forget_layout(self) -> None:
        self._checked_layout = None

    def activity(self, inputs: Tensor) -> dict[str, Tensor]:
        """What each Linear of :meth:`wires` gets, by its name, from initial states.

        Args:
            inputs: ``[T, B, I]``

        Returns:
            ``[T · B, columns]`` in float64, on the CPU.
        """
        return inputs_of(self, self.wires(self.structure()), lambda: self.called(inputs, None, trace=True))

    def follow(self, change: Change, state: Any) -> Any:
        """A state of the circuit before a change, as it is afterwards; fresh units carry zeros.

        Args:
            change: from :meth:`edit`.
            state: from before.
        """
        return state

    def check(self) -> None:
        """See by a trial run that the circuit meets its contract; agents do so for all from outside the package.

        Raises:
            ContractError: it is not; names the class, what was found and what is expected.
        """
        check_trace_fields(type(self), self.trace_fields)
        try_extra_state(self)
        state = try_initial_state(self)
        if example(self).is_meta:
            return  # Sizes alone are known there, by which not everyone's step can go.
        gives = ("outputs", "the next state")
        try_steps(self, "step", state, self.vector_size, (self.output_size,), gives, self.differentiable)
        inputs, expected = example(self).new_zeros(3, BATCH, self.vector_size), [3, BATCH, self.output_size]
        with torch.no_grad(), random_apart(inputs.device), self.precision(inputs):
            for method in ("run", "run_traced"):
                with trying(self, method):
                    outputs, after, *seen = getattr(self, method)(inputs, self.initial_state(BATCH))
                    compare("the next state", after, state, lower_type(inputs.device))
                found = f"outputs have shape {list(outputs.shape)} for inputs {list(inputs.shape)}"
                expect(list(outputs.shape) == expected, f"{type(self).__qualname__}.{method}", found, str(expected))
        # What a circuit's memory may leave out, that has said itself.
        lacking = self.trace_fields.keys() - type(self).trace_fields.keys()
        check_seen(self, "run_traced", seen[0], self.trace_fields, (3, BATCH), lacking)

    def extra_repr(self) -> str:
        """Sizes, as torch shows them."""
        return f"{self.input_size}, {self.output_size}" + (", batch_first=True" if self.batch_first else "")

    @property
    def vector_size(self) -> int:
        """Elements of what each step takes: E with an embedding, I without."""
        return self.embedding_size or self.input_size

    @abstractmethod
    def initial_state(self, batch_size: int) -> Any:
        """State before the first step: a tree of NamedTuples of tensors, each with the batch as first dimension."""

    @abstractmethod
    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One step.

        Args:
            x: ``[B, I]``, or tokens ``[B]``; with an embedding tokens, or their vectors ``[B, E]``, as :meth:`run`
                hands them on.
            state: from :meth:`initial_state` or the last step; None starts from :meth:`initial_state`.

        Returns:
            Logits ``[B, O]`` and the next state.

        Raises:
            ValueError: as :meth:`forward`.
        """

    def run(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        """A whole sequence of vectors, ``[T, B, I]`` -> ``[T, B, O]`` and the last state; here, step by step.

        Args:
            inputs: as :meth:`forward` makes them: tokens have become vectors, ``[T, B, E]`` with an embedding.
            state: where to start.
        """
        outputs, state = one_call(self.backend, graphs.run_circuit, self, inputs, state)
        return outputs, state

    def _run(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        outputs = []
        for x in inputs.unbind(0):
            y, state = self.step(x, state)
            outputs.append(y)
        return torch.stack(outputs), state

    def called(self, inputs: Tensor, state: Any, **options: Any) -> tuple[Any, ...]:
        """What a call gives, with its hooks and a :meth:`forward` of one's own, for time-major inputs and outputs."""
        if not self.batch_first:
            return tuple(self(inputs, state, **options))
        outputs, last, *traces = self(inputs.transpose(0, 1), state, **options)
        turned = (Trace({name: seen.transpose(0, 1) for name, seen in trace.items()}, trace.fields) for trace in traces)
        return outputs.transpose(0, 1), last, *turned

    def _answers(self, inputs: Tensor) -> Tensor:
        """What a member of a population answers from its initial state, in operations that can be mapped over members.

        Args:
            inputs: ``[T, B, I]``, or tokens ``[T, B]``.

        Returns:
            ``[T, B, O]``
        """
        if not unchanged(self, Circuit):
            return self.called(inputs, None)[0]
        vectors = self.embed(inputs) if is_whole(inputs) else inputs
        run = self.run if wrote_later(self, "run", "_run") else self._run
        return run(vectors, self.initial_state(inputs.shape[1]))[0]

    def run_at(self, inputs: Tensor, state: Any, at: Tensor) -> tuple[Tensor, Any]:
        """Like :meth:`run`, with the outputs at some steps alone; here, picked from all.

        Args:
            inputs: as :meth:`run` takes them.
            state: where to start.
            at: which steps of each sequence, ``[M, B]``.

        Returns:
            ``[M, B, O]`` and the last state.
        """
        outputs, state = self.run(inputs, state)
        return picked(outputs, at), state

    def run_traced(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any, dict[str, Tensor]]:
        """Like :meth:`run`, and the tensors ``[T, B, …]`` that :attr:`trace_fields` name; here none."""
        outputs, state = self.run(inputs, state)
        return outputs, state, {}

    def run_population(self, parameters: Mapping[str, Stack], inputs: Tensor) -> Tensor:
        """The answers of many members to the same inputs, from their initial states; here, mapped over the members.

        Args:
            parameters: a stack of P members for each named parameter.
            inputs: ``[T, B, I]``, or tokens ``[T, B]``.

        Returns:
            ``[T, P, B, O]``
        """
        return map_members(self, parameters, self.shared_inputs(inputs))

    def shared_inputs(self, inputs: Tensor) -> Tensor:
        """What is the same for all members of a population: vectors, or tokens that each embeds in its own way.

        Args:
            inputs: ``[T, B, I]``, or tokens ``[T, B]``.

        Returns:
            ``[T, B, I]``, or with an embedding ``[T, B]``; vectors are given back as they are.

        Raises:
            ValueError: tokens are out of range.
        """
        if not is_whole(inputs) or inputs.dim() != 2:
            return inputs
        check_tokens(inputs, self.input_size)
        return self.embed(inputs) if self.embedding is None else inputs

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens ``[…]`` as vectors: those of the embedding ``[…, E]``, or one-hot ``[…, I]``; checks nothing."""
        if self.embedding is not None:
            vectors: Tensor = self.embedding(tokens.long())
            return vectors
        # As torch.nn.functional.one_hot, which every transform of torch can follow.
        every = torch.arange(self.input_size, device=tokens.device)
        return (signed(tokens).unsqueeze(-1) == every).to(example(self).dtype)

    def forward(
        self,
        inputs: Tensor | PackedSequence,
        state: Any = None,
        *,
        lengths: Tensor | list[int] | None = None,
        at: Tensor | None = None,
        trace: bool = False,
    ) -> Any:
        """Run a whole sequence.

        Args:
            inputs: ``[T, B, I]``, ``[B, T, I]`` with ``batch_first``, ``[T, I]`` for a single sequence, or a
                PackedSequence; at least one step. Of the circuit's type, or one that it holds without loss. Or tokens,
                whole numbers below I: the same without the last dimension.
            state: where to start; None starts from :meth:`initial_state`. A single sequence has a batch of one.
            lengths: steps of each sequence ``[B]`` where they differ: outputs after a sequence's end are zero, and its
                state is the one at its own end. What the inputs hold after it, any number, is not looked at. None runs
                all steps of all.
            at: steps of each sequence whose outputs are wanted, whole numbers below T, ``[M, B]``: where outputs have
                many channels, leaving out the others saves most of the work. None wants all. Time-major, and without
                ``lengths`` and ``trace``. Where ``clip`` bounds outputs, a step that is named twice has gradients that
                are let through or held back for each time alone, not for their sum.
            trace: also return a :class:`~papertape.core.trace.Trace` of what the heads did at each step (eager speed).

        Returns:
            Logits ``[T, B, O]`` (or as the inputs are; with ``at`` ``[M, B, O]``) and the last state; with ``trace``
            the trace as a third.

        Raises:
            ValueError: inputs, state or lengths have the wrong shape or type, inputs are of a type that would lose
                precision in the circuit's, tokens are out of range, there is an embedding but inputs are not tokens, or
                the state is not one of this circuit.
        """
        if isinstance(inputs, PackedSequence):
            if at is not None:
                raise ValueError(AT)
            return self._forward_packed(inputs, state, lengths, trace)
        single = isinstance(inputs, Tensor) and inputs.dim() == (1 if is_whole(inputs) else 2)
        shape = "[B, T, {}]" if self.batch_first else "[T, B, {}]"
        if self.embedding is not None and isinstance(inputs, Tensor) and not is_whole(inputs):
            raise ValueError(f"inputs: got {inputs.dtype} of shape {list(inputs.shape)}; {self._expected(shape)}")

        def arranged(tensor: Tensor) -> Tensor:
            return tensor.transpose(0, 1) if self.batch_first and not single else tensor

        if lengths is not None and isinstance(inputs, Tensor) and is_whole(inputs) and inputs.dim() in (1, 2):
            inputs = arranged(without_padding(arranged(inputs), lengths))
        inputs = self.check_inputs(inputs, "[T, {}]" if single else shape)
        if at is not None and (single or self.batch_first or lengths is not None or trace):
            raise ValueError(AT)
        own = inputs.dtype
        inputs = inputs.unsqueeze(1) if single else arranged(inputs)
        state = before = self.check_state(state, inputs)
        function: Any = self._run_traced_together if trace else self.run
        answered: Any
        with self.precision(inputs):
            if at is not None:
                steps = self._check_at(at, inputs)
                run_at = partial(Circuit.run_at, self) if wrote_later(self, "run", "run_at") else self.run_at
                answered, state = run_at(inputs, state, steps)
            elif lengths is None:
                answered, state = function(inputs, state)
            else:
                ends = check_lengths(lengths, *inputs.shape[:2])
                answered, state = run_each_to_its_end(function, inputs, ends, state)
            # A class of one's own may leave in it what a matrix product gave.
            state = in_types_of(state, before, inputs.device)
        outputs = (answered.pop(_OUTPUTS) if trace else answered).to(own)
        outputs = outputs.squeeze(1) if single else arranged(outputs)
        if not trace:
            return outputs, state
        return outputs, state, Trace({name: arranged(seen) for name, seen in answered.items()}, self.trace_fields)

    def _run_traced_together(self, inputs: Tensor, state: Any) -> tuple[dict[str, Tensor], Any]:
        outputs, after, seen = one_call(self.backend, self.run_traced, inputs, state)
        if type(self).run_traced is not Circuit.run_traced and wrote_later(self, "run", "run_traced"):
            outputs, after = self.run(inputs, state)
        return {**seen, _OUTPUTS: outputs}, after

    def _forward_packed(self, packed: PackedSequence, state: Any, lengths: Any, trace: bool) -> Any:
        if lengths is not None:
            raise ValueError("lengths: got some beside a PackedSequence, which has its own; leave them out")
        padded, ends = pad_packed_sequence(packed, batch_first=self.batch_first)
        outputs, *rest = self(padded, state, lengths=ends, trace=trace)
        order = packed.sorted_indices
        if order is not None:
            outputs, ends = outputs.index_select(0 if self.batch_first else 1, order), ends[order.cpu()]
        data = pack_padded_sequence(outputs, ends, batch_first=self.batch_first).data
        return PackedSequence(data, packed.batch_sizes, order, packed.unsorted_indices), *rest

    def _check_at(self, at: Tensor, inputs: Tensor) -> Tensor:
        steps, count = inputs.shape[:2]
        if not isinstance(at, Tensor) or not is_whole(at) or at.dim() != 2 or at.shape[1] != count:
            found = f"{at.dtype} of shape {list(at.shape)}" if isinstance(at, Tensor) else f"a {type(at).__name__}"
            raise ValueError(f"at: got {found}; expected whole numbers [M, {count}]")
        at = signed(at)
        if at.numel() and not bool(((at >= 0) & (at < steps)).all()):
            raise ValueError(f"at: got {int(at.min())} to {int(at.max())}; allowed are steps from 0 to {steps - 1}")
        return at.long()

    def check_inputs(self, inputs: Tensor, shape: str) -> Tensor:
        """The inputs as vectors in the circuit's type.

        Args:
            inputs: what was given: vectors, or tokens, which have one dimension fewer.
            shape: what is expected of vectors, with ``{}`` for I.

        Raises:
            ValueError: no tensor, another shape, nothing in it, a type that would lose precision in the circuit's, or
                tokens out of range.
        """
        if not isinstance(inputs, Tensor):
            raise ValueError(f"inputs: got a {type(inputs).__name__}; {self._expected(shape)}, in one torch.Tensor")
        like = example(self)
        if inputs.device != like.device:
            raise ValueError(f"inputs: got {inputs.device}; the circuit is on {like.device} (move either with .to)")
        if inputs.is_nested or inputs.layout != torch.strided or inputs.is_quantized:
            kind = "nested" if inputs.is_nested else "quantised" if inputs.is_quantized else "sparse"
            raise ValueError(f"inputs: got a {kind} tensor; {self._expected(shape)}, in a dense one")
        if is_whole(inputs) and inputs.dim() == shape.count(",") and 0 not in inputs.shape:
            check_tokens(inputs, self.input_size)
            return self.embed(inputs)
        if inputs.dim() != shape.count(",") + 1 or inputs.shape[-1] != self.vector_size or 0 in inputs.shape:
            raise ValueError(f"inputs: got shape {list(inputs.shape)}; {self._expected(shape)}")
        own = like.dtype
        eight_bits = inputs.is_floating_point() and inputs.dtype.itemsize == 1  # of which torch promotes none
        # The types are compared first: torch 2.6 cannot export what follows.
        if inputs.dtype != own and (eight_bits or torch.promote_types(inputs.dtype, own) != own):
            raise ValueError(f"inputs: got {inputs.dtype}; the circuit has {own} (convert either with .to)")
        return inputs.to(own)

    def _expected(self, shape: str) -> str:
        """What inputs are to be, in words."""
        least = "with at least one step and one sequence"
        if self.embedding is None:
            return f"expected {shape.format(self.input_size)} {least}"
        tokens = f"tokens {shape.replace(', {}', '')}, whole numbers from 0 to {self.input_size - 1}"
        return f"expected {tokens} (embedding_size is {self.embedding_size}), {least}"

    def check_state(self, state: Any, inputs: Tensor) -> Any:
        """The state, or the initial one for None.

        Args:
            state: what was given.
            inputs: from :meth:`check_inputs`, ``[…, B, I]``.

        Raises:
            ValueError: another batch than the inputs have, or another structure, shape, type or device of a tensor
                than a state of this circuit has.
        """
        batch_size = inputs.shape[-2]
        if state is None:
            return self.initial_state(batch_size)
        if torch.compiler.is_compiling():
            return state  # the comparison would be a guard, by which the first step was compiled for itself
        # Within a sequence, a step of one's own goes on with what its matrix products gave.
        lower = lower_type(inputs.device)
        found = batch_size, inputs.dtype, inputs.device, lower, layout(state)
        if found != self._checked_layout:
            with torch.no_grad():
                compare("state", state, self.initial_state_like(state), lower)
            map_state(lambda leaf: check_batch(leaf, batch_size), state)
            self._checked_layout = found
        return state

    def initial_state_like(self, state: Any) -> Any:
        """An initial state of one sequence, as large as this one where sizes are free."""
        return self.initial_state(1)

    def precision(self, inputs: Tensor) -> AbstractContextManager[Any]:
        """The context in which :meth:`forward` runs: :attr:`autocast` on the device of the inputs, or nothing."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(inputs.device.type, dtype=self.autocast)


_OUTPUTS = "outputs of the circuit"
"""Name of the outputs beside what a trace shows; no field of a trace has it."""
