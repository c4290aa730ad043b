"""Methods that pull all weights: to where they began, to zero with noise, or to where a task left them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ...core.circuit import Circuit
from ...core.env import Batch, Env
from ...core.registry import register
from ...core.structure import Change, follow
from ...core.topology import TopologyNetwork
from .base import AtTaskEnds, PlasticityMethod, Update


def trained(circuit: Circuit) -> dict[str, nn.Parameter]:
    """The parameters that have a gradient at present, by their names."""
    return {name: parameter for name, parameter in circuit.named_parameters() if parameter.grad is not None}


@register("plasticity", "l2-init")
class L2Init(PlasticityMethod):
    """Adds to the loss the squared distance of all weights from those that they began with.

    Kumar et al. 2023, "Maintaining plasticity in continual learning via regenerative regularization", equation 1.
    """

    remembered: ClassVar[tuple[str, ...]] = ("anchors",)

    strength: float = Field(default=1e-3, gt=0, description="what the squared distance is multiplied by")

    def begin(self, circuit: Circuit, generator: torch.Generator) -> None:
        """See :meth:`PlasticityMethod.begin`."""
        self.anchors = {name: parameter.detach().clone() for name, parameter in circuit.named_parameters()}
        """What each parameter was at first."""

    @torch.no_grad()
    def on_gradient(self, update: Update) -> None:
        """Add the gradient of the penalty."""
        known = trained(update.circuit)
        if not known:
            return
        away = torch._foreach_sub([*known.values()], [self.anchors[name] for name in known])
        gradients: Any = [parameter.grad for parameter in known.values()]
        torch._foreach_add_(gradients, away, alpha=2 * self.strength)

    def follow(self, change: Change) -> None:
        """See :meth:`PlasticityMethod.follow`; what is added begins now."""
        self.anchors = follow(change, self.anchors, "parameter")


@register("plasticity", "shrink-perturb")
class ShrinkPerturb(AtTaskEnds):
    """At the end of each task, weights shrink, and noise is added to them.

    Ash & Adams 2020, "On warm-starting neural network training", section 4.
    """

    shrink: float = Field(default=0.6, ge=0, le=1, description="share of each weight that is kept")
    noise: float = Field(default=0.01, ge=0, description="standard deviation of what is added to each weight")

    @torch.no_grad()
    def end_task(self, update: Update) -> None:
        """Shrink and perturb; connections that a topology lacks stay absent."""
        generator = update.generator()
        networks = [part for part in update.circuit.modules() if isinstance(part, TopologyNetwork)]
        topologies = {id(parameter) for network in networks for parameter in network.parameters()}
        for parameter in update.circuit.parameters():
            if not parameter.requires_grad:  # frozen
                continue
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64, device="cpu").to(parameter)
            if id(parameter) in topologies:
                drawn *= parameter != 0
            parameter.mul_(self.shrink).add_(drawn, alpha=self.noise)


@register("plasticity", "ewc")
class EWC(AtTaskEnds):
    """Holds weights where tasks that have ended left them, each as firmly as it mattered to the task.

    Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks", equation 3, with a penalty for
    each task. What weights mattered is the diagonal of the Fisher information: the mean squared gradient of the loss of
    each of the last sequences of the task. The sum of all penalties is a quadratic function, of which only the
    coefficients are kept, so that the number of tasks costs nothing.
    """

    remembered: ClassVar[tuple[str, ...]] = ("precisions", "pulls")

    strength: float = Field(default=1000.0, gt=0, description="what the penalty is multiplied by")
    sequences: int = Field(default=64, ge=1, description="of a task, its last ones, by which weights are judged")
    remembrance: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="share of the penalties of earlier tasks that is kept when another has ended",
    )

    def check(self, circuit: Circuit, env: Env) -> None:
        """See :meth:`PlasticityMethod.check`."""
        super().check(circuit, env)
        if not circuit.differentiable:
            raise ValueError(f"type: got 'ewc', which needs the gradient of a {type(circuit).__name__}; it has none")

    def begin(self, circuit: Circuit, generator: torch.Generator) -> None:
        """See :meth:`PlasticityMethod.begin`."""
        zeros = {name: torch.zeros_like(parameter) for name, parameter in circuit.named_parameters()}
        self.precisions: dict[str, Tensor] = zeros
        """Fisher information of all tasks together."""
        self.pulls: dict[str, Tensor] = {name: zero.clone() for name, zero in zeros.items()}
        """The sum over tasks of Fisher information times the weights that the task left."""
        self.recent: deque[Batch] = deque()
        """The last batches, as many as are needed."""

    def after_update(self, update: Update) -> None:
        """Keep the batch; see also :meth:`AtTaskEnds.after_update`."""
        self.recent.append(update.batch)
        held = sum(batch.mask.shape[1] for batch in self.recent)
        while held - self.recent[0].mask.shape[1] >= self.sequences:
            held -= self.recent.popleft().mask.shape[1]
        super().after_update(update)

    def end_task(self, update: Update) -> None:
        """Remember the weights, each as firmly as it mattered."""
        fisher = fisher_information(update.circuit, update.env, [*self.recent], self.sequences)
        with torch.no_grad():
            for name, parameter in update.circuit.named_parameters():
                self.precisions[name].mul_(self.remembrance).add_(fisher[name])
                self.pulls[name].mul_(self.remembrance).add_(fisher[name] * parameter)
        self.recent.clear()

    @torch.no_grad()
    def on_gradient(self, update: Update) -> None:
        """Add the gradient of the penalties."""
        for name, parameter in trained(update.circuit).items():
            pull = self.precisions[name] * parameter - self.pulls[name]
            assert parameter.grad is not None
            parameter.grad.add_(pull, alpha=self.strength)

    def follow(self, change: Change) -> None:
        """See :meth:`PlasticityMethod.follow`; what is added is free."""
        self.precisions, self.pulls = follow(change, self.precisions), follow(change, self.pulls)

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`PlasticityMethod.state_dict`."""
        return super().state_dict() | {"recent": [list(batch) for batch in self.recent]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`PlasticityMethod.load_state_dict`."""
        super().load_state_dict(state)
        self.recent = deque(Batch(*batch) for batch in state["recent"])


def fisher_information(circuit: Circuit, env: Env, batches: list[Batch], sequences: int) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher information: the mean over sequences of the squared gradient of their loss.

    Args:
        circuit: that answers, in evaluation.
        env: whose loss it is.
        batches: of which the last sequences are taken.
        sequences: how many at most.

    Returns:
        Of each parameter, by its name; zero where the loss does not depend on it.
    """
    named = dict(circuit.named_parameters())
    learned = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    found = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    if not learned:
        return found
    places = [(batch, column) for batch in batches for column in range(batch.mask.shape[1])][-sequences:]
    training = circuit.training
    circuit.eval()
    try:
        for batch, column in places:
            one = Batch(*(part[:, column : column + 1] for part in batch))
            loss = env.losses(circuit(one.inputs)[0], one).sum()
            gradients = torch.autograd.grad(loss, [*learned.values()], allow_unused=True)
            for name, gradient in zip(learned, gradients, strict=True):
                if gradient is not None:
                    found[name] += gradient.square() / len(places)
    finally:
        circuit.train(training)
    return found
