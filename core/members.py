"""Parameters of all members of a population, stacked, so that a circuit answers for all of them in one computation.

A *stack* of a parameter of shape ``S`` holds it for P members: a tensor ``[P, *S]``, or :class:`Mirrored`, which keeps
the members' common centre apart from what makes them differ, so that products with it can be shared.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_leaves, tree_map

from .contracts import undone
from .state import map_state

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Mirrored:
    """A stack around a centre: members 2m and 2m + 1 are ``center + noise[m]`` and ``center - noise[m]``, P = 2M.

    The noise is given either whole or, for matrices, as factors: ``noise[m] = left[m] @ right[m].T``.
    """

    center: Tensor
    """``[*S]``"""
    noise: Tensor | None = None
    """``[M, *S]``, or None with factors."""
    left: Tensor | None = None
    """``[M, rows, rank]``"""
    right: Tensor | None = None
    """``[M, columns, rank]``"""

    def __len__(self) -> int:
        """P, the number of members."""
        part = self.left if self.noise is None else self.noise
        assert part is not None
        return 2 * part.shape[0]

    def __getitem__(self, members: slice) -> Mirrored:
        """The members of a slice with even bounds."""
        pairs = slice(members.start // 2, members.stop // 2)
        parts = (part if part is None else part[pairs] for part in (self.noise, self.left, self.right))
        return Mirrored(self.center, *parts)

    def whole_noise(self) -> Tensor:
        """The noise of each pair, ``[M, *S]``."""
        if self.noise is not None:
            return self.noise
        assert self.left is not None and self.right is not None
        return self.left @ self.right.transpose(1, 2)


Stack = Tensor | Mirrored

_CHANGING = threading.RLock()
"""Of two threads that put tensors into one module, one would put back what the other has put there."""


def dense(stack: Stack) -> Tensor:
    """A stack as one tensor, ``[P, *S]``."""
    if isinstance(stack, Tensor):
        return stack
    return _plus_minus(stack.center, stack.whole_noise())


def linear(x: Tensor, weight: Stack, bias: Stack | None) -> Tensor:
    """The linear layer of every member: ``x @ weight[p].T + bias[p]``.

    Args:
        x: ``[S, I]``, the same for all members, or ``[P, S, I]``.
        weight: stack of ``[O, I]``.
        bias: stack of ``[O]``, or None for a layer without.

    Returns:
        ``[P, S, O]``
    """
    made = _weighted(x, weight)
    return made if bias is None else made.add_(dense(bias).unsqueeze(1))


def _weighted(x: Tensor, weight: Stack) -> Tensor:
    if isinstance(weight, Tensor):
        return torch.bmm(_each(x, len(weight)), weight.transpose(1, 2))
    shared = x @ weight.center.T
    if x.dim() == 2:
        return _plus_minus(shared, _times_noise(x, weight))
    shared = shared.unflatten(0, (len(weight) // 2, 2))
    change = _times_noise(x.unflatten(0, shared.shape[:2]).flatten(1, 2), weight).unflatten(1, (2, x.shape[1]))
    shared[:, 0] += change[:, 0]
    shared[:, 1] -= change[:, 1]
    return shared.flatten(0, 1)


def _each(x: Tensor, members: int) -> Tensor:
    """``[S, I]`` or ``[members, S, I]`` -> ``[members, S, I]``, without a copy."""
    return x if x.dim() == 3 else x.expand(members, -1, -1)


def _times_noise(x: Tensor, weight: Mirrored) -> Tensor:
    """``x @ noise[m].T`` for x of ``[S, I]`` or ``[M, S, I]``: ``[M, S, O]``."""
    if weight.noise is not None:
        return torch.bmm(_each(x, len(weight.noise)), weight.noise.transpose(1, 2))
    assert weight.left is not None and weight.right is not None
    if x.dim() == 3:
        narrow = torch.bmm(x, weight.right)
    else:
        # One wide product instead of many narrow ones.
        pairs, columns, rank = weight.right.shape
        narrow = x @ weight.right.permute(1, 0, 2).reshape(columns, pairs * rank)
        narrow = narrow.unflatten(1, (pairs, rank)).transpose(0, 1)
    return torch.bmm(narrow, weight.left.transpose(1, 2))


def _plus_minus(center: Tensor, change: Tensor) -> Tensor:
    """``center`` ``[*S]`` plus and minus each of ``change`` ``[M, *S]``, in turn: ``[2M, *S]``."""
    result = change.new_empty(change.shape[0], 2, *change.shape[1:])
    torch.add(center, change, out=result[:, 0])
    torch.sub(center, change, out=result[:, 1])
    return result.flatten(0, 1)


def call_with(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    arguments: tuple[Any, ...] = (),
    options: dict[str, Any] | None = None,
) -> Any:
    """What a module gives with other tensors in place of its parameters and buffers.

    As ``torch.func.functional_call`` does it; but that fills a submodule that is used under several names once for each
    of them, and leaves in it what it filled in first.

    Args:
        module: what is called; it is as it was before afterwards.
        tensors: by any of the names of what they stand for; what is tied and is not named itself goes with it.
        arguments: of the call.
        options: keywords of the call.
    """
    # The compiler, which knows no locks, runs in one thread.
    with contextlib.nullcontext() if torch.compiler.is_compiling() else _CHANGING:
        own = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
        tied = {id(own[name]): tensor for name, tensor in tensors.items()}
        places = {}
        for prefix, part in module.named_modules():  # each once
            for kind in (part.named_parameters, part.named_buffers):
                for name, held in kind(prefix, recurse=False, remove_duplicate=False):
                    if id(held) in tied:
                        places[name] = tensors.get(name, tied[id(held)])
        return functional_call(module, places, arguments, options, tie_weights=False)


class Call(nn.Module):
    """A function of a circuit as a module's forward, which :func:`call_with` can give other parameters."""

    def __init__(self, circuit: Any, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.circuit = circuit
        self.function = function

    def forward(self) -> Any:
        """What the function gives."""
        return self.function(self.circuit)


def one_by_one(function: Callable[..., Any], *, out_dims: int = 0, randomness: str = "error") -> Callable[..., Any]:
    """The result of ``torch.func.vmap``, one member after another, for operations that vmap has no rules for."""

    def each(*arguments: Any) -> Any:
        members = len(tree_leaves(arguments)[0])
        found = [function(*tree_map(lambda leaf: leaf[member], arguments)) for member in range(members)]  # noqa: B023
        return tree_map(lambda *parts: torch.stack(parts, out_dims), *found)

    return each


def mapping_of(circuit: Any, stacks: Mapping[str, Stack], inputs: Tensor) -> Callable[..., Callable[..., Any]]:
    """``torch.func.vmap``, or :func:`one_by_one` where torch has no rules for what a circuit does.

    The circuit remembers which; it warns once where members answer one after another.

    Args:
        circuit: what each member is.
        stacks: of P members for each named parameter.
        inputs: what they are to answer, ``[T, B, I]``, or tokens ``[T, B]``.
    """
    known: Callable[..., Any] | None = circuit.__dict__.get("_mapping")
    if known is None:
        few, short = {name: dense(stack[0:2]) for name, stack in stacks.items()}, inputs[:1, :1]
        # What is drawn, written or counted here changes nothing in what comes after: a run that goes on tries it again.
        with torch.no_grad(), undone(circuit):
            try:
                known = vmap
                _map(circuit, lambda circuit: circuit._answers(short), few, known)
            except RuntimeError as error:
                known = one_by_one
                _map(circuit, lambda circuit: circuit._answers(short), few, known)  # else it is at fault itself
                reason = str(error).splitlines()[0]
                named = type(getattr(circuit, "module", circuit)).__name__
                warnings.warn(
                    f"{named}: members answer one after another, for torch cannot map it: {reason}", stacklevel=2
                )
        circuit.__dict__["_mapping"] = known
    return known


def _map(
    circuit: Any,
    function: Callable[[Any], Any],
    stacks: Mapping[str, Stack],
    mapping: Callable[..., Callable[..., Any]] = vmap,
    *,
    at: int = 0,
) -> Any:
    """``function(circuit)`` with each member's parameters; members are dimension ``at`` of the result.

    What is drawn at random, as by dropout, differs between members.
    """
    call = Call(circuit, function)
    parameters = {f"circuit.{name}": dense(stack) for name, stack in stacks.items()}
    return mapping(lambda member: call_with(call, member), out_dims=at, randomness="different")(parameters)


def map_members(circuit: Any, stacks: Mapping[str, Stack], inputs: Tensor) -> Tensor:
    """The answers of all members, step by step in plain operations that ``torch.func.vmap`` maps over the members.

    Args:
        circuit: what each member is; its own parameters are left alone.
        stacks: of P members for each named parameter.
        inputs: ``[T, B, I]``, or tokens ``[T, B]``, the same for every member.

    Returns:
        ``[T, P, B, O]``
    """
    mapping = mapping_of(circuit, stacks, inputs)
    outputs: Tensor = _map(circuit, lambda own: own._answers(inputs), stacks, mapping, at=1)
    return outputs


def map_initial_state(circuit: Any, stacks: Mapping[str, Stack]) -> Any:
    """The state of each member before the first step of one sequence: ``[P, …]`` in every leaf."""
    state = _map(circuit, lambda circuit: circuit.initial_state(1), stacks)
    return map_state(lambda leaf: leaf.squeeze(1), state)


def map_controller_state(circuit: Any, stacks: Mapping[str, Stack], batch_size: int) -> Any:
    """The state of each member's controller before the first step: ``[P, B, …]`` in every leaf."""
    return _map(circuit, lambda circuit: circuit.controller.initial_state(batch_size), stacks)
