"""The node-perturbation agent: learns from losses alone, by trying out changes of the sums that layers form."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.circuit import Circuit
from ..core.distributed import Processes
from ..core.env import Batch
from ..core.placement import random_apart
from ..core.registry import register
from ..core.state import example
from .backprop import BackpropAgent
from .evaluation import Answered, refuse_two_modes


class _Call(NamedTuple):
    """One use of a linear layer for B sequences, each answered twice."""

    layer: nn.Linear
    inputs: Tensor
    """Mean of what went into the layer in both answers, ``[…, B, I]``."""
    noise: Tensor
    """Added to what came out in the first answer and subtracted in the second, ``[…, B, F]``."""


@register("agent", "node-perturbation")
class NodePerturbationAgent(BackpropAgent):
    """Answers each sequence twice, with opposite noise on every layer's sums, and moves towards the better answer.

    A layer's sums are far fewer than its weights, and each sequence tries out a change of its own, so the estimate of
    the gradient is much closer than one from perturbed weights after as many answers (Werfel, Xie & Seung 2003,
    "Learning curves for stochastic gradient descent in linear feedforward networks"). With noise u on the sums of a
    layer that sees x, the change of its weights is along ``(loss+ - loss-) / (2 sigma²) u xᵀ``, whose mean is the
    gradient of the loss smoothed by the noise. No gradient is computed; the optimiser, its schedule and all else are
    those of backpropagation.
    """

    needs_gradient = False
    meets_tasks = False  # noise on the layers of one task would move the weights of all
    backends: ClassVar[tuple[str, ...]] = ("auto", "eager")

    sigma: float = Field(
        default=0.05, gt=0, description="standard deviation of the noise added to each sum that a linear layer forms"
    )
    truncate: None = Field(default=None, description="not used: no gradient goes through time")

    def setup(self) -> None:
        """See :meth:`BackpropAgent.setup`.

        Raises:
            ValueError: also where the circuit has a weight outside linear layers, answers otherwise in training (see
                :func:`refuse_two_modes`), or has a linear layer that sees anything else than a row for each sequence.
        """
        super().setup()
        self.layers = [module for module in self.circuit.modules() if isinstance(module, nn.Linear)]
        covered = {id(parameter) for layer in self.layers for parameter in layer.parameters()}
        for name, parameter in self.circuit.named_parameters():
            if id(parameter) not in covered:
                raise ValueError(
                    f"agent.type: got 'node-perturbation', but the circuit's weight {name} is in no linear layer; "
                    "allowed are circuits without learned memory and with controllers made of linear layers"
                )
        refuse_two_modes(self.circuit, "node-perturbation", "which would differ in the two answers that are compared")
        _refuse_other_rows(self.circuit)

    @property
    def answers_per_step(self) -> int:
        """Each sequence of a batch is answered twice."""
        return 2 * self.batch_size

    def join(self, processes: Processes) -> None:
        """See :meth:`Agent.join`; the noise is drawn by one process."""
        if processes.size > 1:
            raise ValueError("agent.type: got 'node-perturbation', which runs in one process")
        super().join(processes)

    @contextmanager
    def _perturbed(self) -> Iterator[list[_Call]]:
        """Add noise to what every linear layer puts out, for as long as this lasts; gives the list of its uses."""
        calls: list[_Call] = []

        def perturb(layer: nn.Module, given: tuple[Tensor, ...], sums: Tensor) -> Tensor:
            assert isinstance(layer, nn.Linear)
            first, second = given[0].chunk(2, dim=-2)
            shape = (*sums.shape[:-2], sums.shape[-2] // 2, sums.shape[-1])
            noise = torch.randn(shape, generator=self.generator, device=sums.device, dtype=sums.dtype)
            noise *= self.sigma
            calls.append(_Call(layer, (first + second) / 2, noise))
            return sums + torch.cat([noise, -noise], dim=-2)

        hooks = [layer.register_forward_hook(perturb) for layer in self.layers]
        try:
            yield calls
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def _backward(self, circuit: Circuit, batch: Batch, normaliser: Tensor) -> tuple[Tensor, Answered]:
        """Estimate the gradients of a batch; the loss and the outputs, each the mean of two answers."""
        twice = Batch(*(torch.cat([part, part], dim=1) for part in batch))
        with self._perturbed() as calls:
            outputs, _ = circuit(twice.inputs)
        loss_plus, loss_minus = self.env.losses(outputs, twice).sum(0).chunk(2)
        slope = (loss_plus - loss_minus) / (2 * self.sigma**2) / normaliser
        for layer in self.layers:
            for parameter in layer.parameters():
                parameter.grad = torch.zeros_like(parameter)
        for layer, inputs, noise in calls:
            change = (slope[:, None] * noise).flatten(0, -2)
            assert layer.weight.grad is not None
            layer.weight.grad.addmm_(change.T, inputs.flatten(0, -2).to(change))
            if layer.bias is not None:
                assert layer.bias.grad is not None
                layer.bias.grad += change.sum(0)
        for parameter in circuit.parameters():
            if not parameter.requires_grad:  # frozen
                parameter.grad = None
        first, second = outputs.chunk(2, dim=1)
        return (loss_plus + loss_minus).sum() / 2 / normaliser, Answered((first + second) / 2, batch)


@torch.no_grad()
def _refuse_other_rows(circuit: Circuit) -> None:
    """Raise ValueError if a linear layer sees anything else than ``[…, B, F]``: noise goes to its rows by sequence.

    One sequence is changed; only its own row may move in what each layer sees.
    """
    own, steps, batch, changed = example(circuit), 3, 7, 4
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(steps, batch, circuit.vector_size, generator=generator, device="cpu").to(own)
    circuit = copy.deepcopy(circuit)
    seen: list[tuple[str, Tensor]] = []

    def note(name: str, layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.append((name, given[0].clone()))

    for name, layer in circuit.named_modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(partial(note, name))
    with random_apart(own.device):
        circuit(inputs)
    before, seen = seen, []
    inputs[:, changed] += 1
    with random_apart(own.device):
        circuit(inputs)
    others = [sequence for sequence in range(batch) if sequence != changed]
    for (name, one), (_, other) in zip(before, seen, strict=False):
        rows = one.shape[-2] if one.dim() > 1 else 0
        if rows != batch or not torch.equal(one[..., others, :], other[..., others, :]):
            mixed = ", and rows of other sequences move with one" if rows == batch else ""
            raise ValueError(
                f"circuit: its linear layer {name} sees {list(one.shape)} of inputs {list(inputs.shape)}{mixed}; "
                f"allowed with node-perturbation are layers that see [..., B, F], here [..., {batch}, {one.shape[-1]}]"
            )
