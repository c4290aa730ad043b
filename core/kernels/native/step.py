"""One step of a circuit, as when it acts in a world: the same kernels, with as little around them as can be.

At a batch of one the kernel takes a tenth of the time of a step that goes operation by operation; so does Python around
it, unless what is the same at every step is found out once.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ... import addressing, interface
from ...state import CircuitState
from ..guard import Known
from . import library
from .library import Tensors
from .sequence import Weights, make_problem

if TYPE_CHECKING:
    from ..circuit_view import CircuitView

WHOLE = 16
"""Slots that fill whole vectors in every instruction set and type."""
LARGE = 2**15
"""Elements of a memory which take longer to be turned into columns and back than a step takes to look for columns."""

_POINTER = ctypes.sizeof(ctypes.c_void_p)
_COUNT = ctypes.sizeof(Tensors) // _POINTER
_Addresses = ctypes.c_void_p * _COUNT
"""What :class:`~.library.Tensors` is: addresses, one after another."""


def _place(name: str) -> int:
    """Index of a field among the addresses."""
    offset: int = getattr(Tensors, name).offset
    return offset // _POINTER


_INPUTS, _FEATURES, _READS, _LAST_READS = map(_place, ("inputs", "features", "reads", "last_reads"))
_STATE, _LAST_STATE, _RECORDS, _SAVED = map(_place, ("state", "last_state", "records", "saved"))
_OUTPUT_WEIGHT, _OUTPUT_BIAS, _OUTPUTS = map(_place, ("output_weight", "output_bias", "outputs"))
_CARRIED = [(_place(name), _place(f"last_{name}")) for name in ("hidden", "cell")]


def constants() -> tuple[float, ...]:
    """Those that the equations have at this moment."""
    return addressing.NORM_EPSILON, addressing.USAGE_EPSILON, addressing.SHARPEN_EPSILON, interface.MASK_MIN


class Step:
    """What is the same at every step of a circuit with inputs and states of these shapes; no gradients."""

    def __init__(
        self,
        circuit: CircuitView,
        known: Known,
        weights: Weights,
        options: dict[str, Any],
        x: Tensor,
        state: CircuitState,
    ) -> None:
        """
        Args:
            circuit: that the library can run on these inputs and this state.
            known: of the circuit; valid as long as the circuit has the same parts and options.
            weights: its own.
            options: see :func:`~.sequence.make_problem`.
            x: ``[B, I]``.
            state: from which it starts.
        """
        loaded = library.load()
        assert not isinstance(loaded, str), loaded
        self.known = known
        self.library = loaded
        self.threads = torch.get_num_threads()
        self.constants = constants()
        self.sizes = [*known.modules[2].sizes.items()]  # type: ignore[operator,union-attr]
        self.dtype, self.device = x.dtype, x.device
        self.kinds = type(state), type(state.controller), type(state.accessor)
        self.shapes = [tensor.shape for tensor in (x, state.reads, *state.controller, *state.accessor)]
        self.carried = len(state.controller)
        memory = state.accessor.memory
        self.in_columns = circuit.accessor.kind != "stack" and memory.shape[1] % WHOLE == 0 and memory.numel() >= LARGE
        """Whether the memory is left as the library works on it, ``[B, W, N]``, and seen as ``[B, N, W]``."""
        self.problem = make_problem(x.unsqueeze(0), weights, memory, **options)
        # The same measure as for sums of gradients in source/sequence.h.
        self.problem.threads = min(self.threads, 1 + x.shape[0] * sum(map(Tensor.numel, known.parameters())) // 2**22)
        self.problem.last_columns = self.in_columns
        self.problem.outputs = circuit.output_size
        self.going_on = library.Problem.from_buffer_copy(self.problem)
        """The same with a memory that a step has left."""
        self.going_on.given_columns = self.in_columns
        self.features = 2, x.shape[0], self.problem.hidden + state.reads[0].numel()
        self.output_shape = circuit.output_size, self.features[2]
        self.record_size, saved_size = library.sizes(loaded, circuit.accessor.kind, self.problem, x.dtype)
        self.workspace_size = self.record_size + saved_size
        self.workspaces: list[Tensor] = []
        """One that no step uses at the moment: fresh memory would cost more than what is done in it."""
        self.function = getattr(loaded, f"{circuit.accessor.kind}_{library.type_name(x.dtype)}_forward")
        self.parameters = known.parameters()
        self.layouts = [(parameter.data_ptr(), parameter.shape, parameter.stride()) for parameter in self.parameters]
        self.whole = all(parameter.is_contiguous() for parameter in self.parameters)
        fixed = Tensors()
        fixed.give(interface_weight=weights.interface_weight, interface_bias=weights.interface_bias)
        fixed.give_layers("layers", [weight for layer in weights.layers for weight in layer])
        self.fixed = fixed

    def serves(self, x: Tensor, state: CircuitState) -> bool:
        """Whether inputs, state and weights are as they were when it was made, but for their values."""
        if (type(state), type(state.controller), type(state.accessor)) != self.kinds:
            return False
        dtype, device = self.dtype, self.device
        given = x, state.reads, *state.controller, *state.accessor
        try:
            for tensor, shape in zip(given, self.shapes, strict=True):
                if type(tensor) is not Tensor or tensor.dtype is not dtype or tensor.device != device:
                    return False
                if tensor.shape != shape or not tensor.data_ptr() or tensor.is_neg():
                    return False
            for now, then, layout in zip(self.known.parameters(), self.parameters, self.layouts, strict=True):
                if now is not then or now.dtype is not dtype or now.is_neg():
                    return False
                if (now.data_ptr(), now.shape, now.stride()) != layout:
                    return False
        except RuntimeError:  # within torch.func's transforms tensors have no address
            return False
        return (
            self.whole
            and self.library is library.load()
            and self.threads == torch.get_num_threads()
            and self.constants == constants()
            and self.sizes == [*self.known.modules[2].sizes.items()]  # type: ignore[operator,union-attr]
        )

    def answers_by(self, output: nn.Module) -> bool:
        """Whether it can do the work of an output layer, too, of which no gradient is due."""
        if type(output) is not nn.Linear:
            return False
        weight: Any = output._parameters.get("weight")
        bias: Any = output._parameters.get("bias")
        learns = torch.is_grad_enabled()
        for tensor, shape in ((weight, self.output_shape), (bias, self.output_shape[:1])):
            if type(tensor) not in (nn.Parameter, Tensor) or tensor.dtype is not self.dtype or tensor.shape != shape:
                return False
            if tensor.device != self.device or not tensor.is_contiguous() or tensor.is_neg():
                return False
            if learns and tensor.requires_grad:
                return False
        return True

    def run(self, x: Tensor, state: CircuitState, output: Any) -> tuple[Tensor, CircuitState, Tensor | None]:
        """Features ``[B, F]``, the next state, and what the output layer makes of the features, if it is given."""
        x, reads = x.contiguous(), state.reads.contiguous()
        controller = [part.contiguous() for part in state.controller]
        memory = state.accessor[0]
        goes_on = self.in_columns and memory.mT.is_contiguous()
        leaves = [leaf if goes_on and leaf is memory else leaf.contiguous() for leaf in state.accessor]
        features, next_reads = x.new_empty(self.features), torch.empty_like(reads)
        next_controller = [torch.empty_like(part) for part in controller]
        next_leaves = [torch.empty_like(leaf) for leaf in leaves]
        if self.in_columns and not goes_on:
            next_leaves[0] = torch.empty_like(memory.mT, memory_format=torch.contiguous_format).mT
        try:
            workspace = self.workspaces.pop()
        except IndexError:
            workspace = x.new_empty(self.workspace_size)
        tensors = _Addresses.from_buffer_copy(self.fixed)
        tensors[_INPUTS] = x.data_ptr()
        tensors[_FEATURES] = features.data_ptr()
        tensors[_READS] = reads.data_ptr()
        tensors[_LAST_READS] = next_reads.data_ptr()
        for (at, next_at), part, next_part in zip(_CARRIED, controller, next_controller, strict=False):
            tensors[at] = part.data_ptr()
            tensors[next_at] = next_part.data_ptr()
        for index, (leaf, next_leaf) in enumerate(zip(leaves, next_leaves, strict=True)):
            tensors[_STATE + index] = leaf.data_ptr()
            tensors[_LAST_STATE + index] = next_leaf.data_ptr()
        answers = None
        if output is not None:
            answers = x.new_empty(self.features[1], self.output_shape[0])
            tensors[_OUTPUT_WEIGHT], tensors[_OUTPUT_BIAS] = output.weight.data_ptr(), output.bias.data_ptr()
            tensors[_OUTPUTS] = answers.data_ptr()
        tensors[_RECORDS] = records = workspace.data_ptr()
        tensors[_SAVED] = records + self.record_size * x.element_size()
        problem = self.going_on if goes_on else self.problem
        if self.function(ctypes.byref(problem), ctypes.byref(tensors)):
            raise MemoryError("native backend: no memory for the scratch space of a step")
        if not self.workspaces:
            self.workspaces.append(workspace)
        kind, controller_kind, accessor_kind = self.kinds
        after = kind(controller_kind(*next_controller), accessor_kind(*next_leaves), next_reads)
        return features[1], after, answers
