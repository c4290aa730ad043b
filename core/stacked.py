"""Parameters of a whole population, stacked: what a circuit needs to answer for all members in one computation.

A *stack* of a parameter of shape ``S`` holds it for P members: a tensor ``[P, *S]``, or :class:`Mirrored`, which keeps
the members' common centre apart from what makes them differ, so that products with it can be shared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from .circuit import Circuit, map_state


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


def dense(stack: Stack) -> Tensor:
    """A stack as one tensor, ``[P, *S]``."""
    if isinstance(stack, Tensor):
        return stack
    return _plus_minus(stack.center, stack.whole_noise())


def linear(x: Tensor, weight: Stack, bias: Stack) -> Tensor:
    """The linear layer of every member: ``x @ weight[p].T + bias[p]``.

    Args:
        x: ``[S, I]``, the same for all members, or ``[P, S, I]``.
        weight: stack of ``[O, I]``.
        bias: stack of ``[O]``.

    Returns:
        ``[P, S, O]``
    """
    bias = dense(bias)
    if isinstance(weight, Tensor):
        return torch.bmm(_each(x, len(weight)), weight.transpose(1, 2)).add_(bias.unsqueeze(1))
    pairs = len(weight) // 2
    shared = x @ weight.center.T
    if x.dim() == 2:
        return _plus_minus(shared, _times_noise(x, weight)).add_(bias.unsqueeze(1))
    shared = shared.unflatten(0, (pairs, 2)) + bias.unflatten(0, (pairs, 2)).unsqueeze(2)
    change = _times_noise(x.unflatten(0, (pairs, 2)).flatten(1, 2), weight).unflatten(1, (2, x.shape[1]))
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


class Call(nn.Module):
    """A function of a circuit as a module's forward, which ``functional_call`` can give other parameters."""

    def __init__(self, circuit: Any, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.circuit = circuit
        self.function = function

    def forward(self) -> Any:
        """What the function gives."""
        return self.function(self.circuit)


def _map(circuit: Any, function: Callable[[Any], Any], stacks: Mapping[str, Stack], at: int) -> Any:
    """``function(circuit)`` with each member's parameters; members are dimension ``at`` of the result."""
    call = Call(circuit, function)
    parameters = {f"circuit.{name}": dense(stack) for name, stack in stacks.items()}
    return vmap(lambda member: functional_call(call, member, ()), out_dims=at)(parameters)


def map_members(circuit: Any, stacks: Mapping[str, Stack], inputs: Tensor) -> Tensor:
    """The answers of all members, step by step in plain operations that ``torch.func.vmap`` maps over the members.

    Args:
        circuit: what each member is; its own parameters are left alone.
        stacks: of P members for each named parameter.
        inputs: ``[T, B, I]``, the same for every member.

    Returns:
        ``[T, P, B, O]``
    """

    def run(circuit: Circuit) -> Tensor:
        return Circuit.run(circuit, inputs, circuit.initial_state(inputs.shape[1]))[0]

    outputs: Tensor = _map(circuit, run, stacks, at=1)
    return outputs


def map_initial_state(circuit: Any, stacks: Mapping[str, Stack]) -> Any:
    """The state of each member before the first step of one sequence: ``[P, …]`` in every leaf."""
    state = _map(circuit, lambda circuit: circuit.initial_state(1), stacks, at=0)
    return map_state(lambda leaf: leaf.squeeze(1), state)


class Layout:
    """How named parameters lie in a genome: one after another, in their order."""

    def __init__(self, shapes: Mapping[str, torch.Size | tuple[int, ...]]) -> None:
        """
        Args:
            shapes: shape of each parameter.

        Raises:
            ValueError: no parameters.
        """
        if not shapes:
            raise ValueError("parameters: the circuit has none, so there is nothing to evolve")
        self.shapes = {name: torch.Size(shape) for name, shape in shapes.items()}
        self.sizes = [math.prod(shape) for shape in self.shapes.values()]
        self.size = sum(self.sizes)
        """D, elements of a genome."""

    @classmethod
    def of(cls, module: nn.Module) -> Layout:
        """Layout of a module's parameters."""
        return cls({name: parameter.shape for name, parameter in module.named_parameters()})

    def split(self, genomes: Tensor) -> dict[str, Tensor]:
        """``[…, D]`` -> named views ``[…, *S]``."""
        parts = genomes.split(self.sizes, dim=-1)
        return {
            name: part.view(part.shape[:-1] + shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def mirrored(self, center: Tensor, noise: Tensor) -> dict[str, Mirrored]:
        """``[D]`` and ``[M, D]`` -> named mirrored stacks; see :class:`Mirrored`."""
        noises = self.split(noise)
        return {name: Mirrored(part, noises[name]) for name, part in self.split(center).items()}

    def join(self, stacks: Mapping[str, Stack]) -> Tensor:
        """Named stacks -> genomes ``[P, D]``."""
        return torch.cat(
            [dense(stacks[name]).reshape(-1, size) for name, size in zip(self.shapes, self.sizes, strict=True)], 1
        )

    def read(self, module: nn.Module) -> Tensor:
        """The genome ``[D]`` that a module carries: a copy of its parameters."""
        return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])

    @torch.no_grad()
    def write(self, genome: Tensor, module: nn.Module) -> None:
        """Put a genome ``[D]`` into a module's parameters."""
        parts = self.split(genome)
        for name, parameter in module.named_parameters():
            parameter.copy_(parts[name])
