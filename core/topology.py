"""A network whose topology is in its weights: a connection is there where its weight is not zero.

Nodes have an order. First a constant 1 (the bias) and the I inputs, then up to H hidden nodes, then O outputs. A
connection to a node later in that order carries what its source has at this step; every other one (among outputs, too)
is recurrent and carries what its source had at the last step. So nodes may be connected in any way, and one step always
goes from the inputs to the outputs. S = 1 + I + H + O sources; hidden nodes and outputs, H + O, are targets.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from .options import check_choice, check_sizes
from .recorder import Connection, Network
from .state import register_state

TopologyActivation = Literal["tanh", "relu", "sigmoid", "steep-sigmoid"]
"""Of hidden nodes and of outputs; steep-sigmoid is 1 / (1 + exp(-4.9 x)) (Stanley & Miikkulainen 2002, section 4.1)."""

HIDDEN_WEIGHT, OUTPUT_WEIGHT = "hidden_weight", "output_weight"
"""Names of the parameters, by which a strategy finds them in a circuit."""


@register_state
class TopologyState(NamedTuple):
    """What recurrent connections carry to the next step."""

    values: Tensor
    """Of hidden nodes and outputs, ``[B, H + O]``."""


class TopologyWeights(NamedTuple):
    """The weights by what they carry; ``…`` is nothing or a population ``P``. Transposed: sources come first."""

    bias: Tensor
    """``[…, 1, H + O]``"""
    inputs: Tensor
    """``[…, I, H + O]``"""
    recurrent: Tensor
    """``[…, H + O, H + O]``"""
    forward: Tensor
    """Hidden to later hidden nodes, ``[…, H, H]``."""
    outputs: Tensor
    """Hidden nodes to outputs, ``[…, H, O]``."""


def split_weights(hidden_weight: Tensor, output_weight: Tensor) -> TopologyWeights:
    """Sort the weights by what they carry.

    A weight that is exactly zero has no gradient: training changes weights, not the topology.

    Args:
        hidden_weight: row by target, column by source, ``[…, H, S]``.
        output_weight: ``[…, O, S]``.
    """
    nodes, outputs, sources = hidden_weight.shape[-2], output_weight.shape[-2], hidden_weight.shape[-1]
    first = sources - nodes - outputs
    weight = torch.cat([hidden_weight, output_weight], dim=-2)
    weight = torch.where(weight != 0, weight, torch.zeros_like(weight)).transpose(-1, -2)
    among = weight[..., first:, :]
    recurrent = torch.cat([among[..., :nodes, :nodes].tril(), among[..., nodes:, :nodes]], dim=-2)
    no_delay = torch.zeros_like(among[..., :nodes, nodes:])
    recurrent = torch.cat([recurrent, torch.cat([no_delay, among[..., nodes:, nodes:]], dim=-2)], dim=-1)
    return TopologyWeights(
        weight[..., :1, :],
        weight[..., 1:first, :],
        recurrent,
        among[..., :nodes, :nodes].triu(1),
        among[..., :nodes, nodes:],
    )


def activate(activation: str, x: Tensor) -> Tensor:
    """The activation of that name."""
    if activation == "steep-sigmoid":
        return torch.sigmoid(4.9 * x)
    function: Tensor = getattr(torch, activation)(x)
    return function


def advance(weights: TopologyWeights, driven: Tensor, activation: str, passes: int) -> tuple[Tensor, Tensor]:
    """One step of a network, or of a population of them.

    Args:
        weights: of H hidden nodes and O outputs.
        driven: what bias, inputs and recurrent connections bring to each node, ``[…, B, H + O]``.
        activation: of all nodes.
        passes: how often values are passed on among hidden nodes: at least their longest forward path.

    Returns:
        Logits (sums at the output nodes) ``[…, B, O]``, and the values of all nodes, ``[…, B, H + O]``.
    """
    nodes = weights.forward.shape[-1]
    own = driven[..., :nodes]
    hidden = activate(activation, own)
    # Each pass settles the nodes that are one connection further away from the inputs.
    for _ in range(passes):
        hidden = activate(activation, own + hidden @ weights.forward)
    outputs = driven[..., nodes:] + hidden @ weights.outputs
    return outputs, torch.cat([hidden, activate(activation, outputs)], dim=-1)


def longest_path(forward: Tensor) -> int:
    """Connections on the longest path among hidden nodes, in any member of a population.

    Args:
        forward: see :class:`TopologyWeights`, ``[P, H, H]``.
    """
    connected = forward != 0
    reached = connected.any(-2)
    length = 0
    while reached.any():
        length += 1
        reached = (connected & reached.unsqueeze(-1)).any(-2)
    return length


def used_nodes(hidden_weight: Tensor, output_weight: Tensor) -> int:
    """Number of hidden nodes up to the last one that any member of a population uses.

    Args:
        hidden_weight: ``[P, H, S]``
        output_weight: ``[P, O, S]``
    """
    nodes, outputs = hidden_weight.shape[-2], output_weight.shape[-2]
    first = hidden_weight.shape[-1] - nodes - outputs
    connected = (torch.cat([hidden_weight, output_weight], dim=-2) != 0).any(0)
    at = (connected[:nodes].any(1) | connected[:, first : first + nodes].any(0)).nonzero()
    return int(at[-1]) + 1 if len(at) else 0


class TopologyNetwork(nn.Module):
    """A network whose topology is in its weights (see the module); at first every input leads to every output."""

    def __init__(
        self, input_size: int, output_size: int, max_nodes: int = 16, *, activation: TopologyActivation = "tanh"
    ) -> None:
        """
        Args:
            input_size: I.
            output_size: O.
            max_nodes: H, hidden nodes that there is room for.
            activation: of all nodes.

        Raises:
            ValueError: a size below 1 or an unknown activation.
        """
        super().__init__()
        check_sizes(input_size=input_size, output_size=output_size, max_nodes=max_nodes)
        check_choice("activation", activation, get_args(TopologyActivation))
        self.input_size = int(input_size)
        self.output_size = int(output_size)
        self.max_nodes = int(max_nodes)
        self.activation = activation
        sources = 1 + input_size + max_nodes + output_size
        self.hidden_weight = nn.Parameter(torch.zeros(max_nodes, sources))
        self.output_weight = nn.Parameter(torch.zeros(output_size, sources))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Connect every input to every output, at random, and nothing else."""
        bound = 1 / math.sqrt(1 + self.input_size)
        nn.init.zeros_(self.hidden_weight)
        nn.init.zeros_(self.output_weight)
        nn.init.uniform_(self.output_weight[:, : 1 + self.input_size], -bound, bound)

    def initial_state(self, batch_size: int) -> TopologyState:
        """Zeros."""
        return TopologyState(self.output_weight.new_zeros(batch_size, self.max_nodes + self.output_size))

    def forward(self, x: Tensor, state: TopologyState) -> tuple[Tensor, TopologyState]:
        """One step: ``[B, I]`` and a state -> logits ``[B, O]``, the sums at the output nodes, and the next state."""
        weights = split_weights(self.hidden_weight, self.output_weight)
        driven = x @ weights.inputs + weights.bias + state.values @ weights.recurrent
        outputs, values = advance(weights, driven, self.activation, self.max_nodes - 1)
        return outputs, TopologyState(values)

    def run_population(self, hidden_weight: Tensor, output_weight: Tensor, inputs: Tensor) -> Tensor:
        """Logits of every member of a population at every step.

        Args:
            hidden_weight: of each member, ``[P, H, S]``.
            output_weight: ``[P, O, S]``
            inputs: ``[T, B, I]``, the same for every member.

        Returns:
            ``[T, P, B, O]``
        """
        used, first = used_nodes(hidden_weight, output_weight), 1 + self.input_size
        kept = [*range(first + used), *range(first + self.max_nodes, hidden_weight.shape[-1])]
        if used < self.max_nodes:
            hidden_weight, output_weight = hidden_weight[:, :used, kept], output_weight[..., kept]
        weights = split_weights(hidden_weight, output_weight)
        passes = longest_path(weights.forward)
        brought = (inputs.flatten(0, 1) @ weights.inputs + weights.bias).unflatten(1, inputs.shape[:2])
        answers = []
        values = None
        for driven in brought.unbind(1):
            # Before the first step there is nothing to be carried over.
            if values is not None:
                driven = driven + values @ weights.recurrent
            outputs, values = advance(weights, driven, self.activation, passes)
            answers.append(outputs)
        return torch.stack(answers)

    def chart(self) -> Network:
        """The network as a chart: its inputs, its outputs, and the hidden nodes that have connections."""
        first, last = 1 + self.input_size, 1 + self.input_size + self.max_nodes
        rows = [*self.hidden_weight.tolist(), *self.output_weight.tolist()]
        found = [
            (source, first + row, weight)
            for row, weights in enumerate(rows)
            for source, weight in enumerate(weights)
            if weight != 0
        ]
        joined = {node for source, target, _ in found for node in (source, target)}
        shown = [node for node in range(last + self.output_size) if not first <= node < last or node in joined]
        layers = dict.fromkeys(range(first), 0)
        for node in shown[first:]:
            layers[node] = 1 + max(
                (layers[source] for source, target, _ in found if target == node > source), default=0
            )
        outputs = range(last, last + self.output_size)
        deepest = max([1, *(layers[node] + 1 for node in shown[first:] if node < last)])
        layers |= dict.fromkeys(outputs, deepest)
        names = ["bias", *(f"in {index + 1}" for index in range(self.input_size))]
        names += [f"{index + 1}" for index in range(len(shown) - first - self.output_size)]
        names += [f"out {index + 1}" for index in range(self.output_size)]
        place = {node: index for index, node in enumerate(shown)}
        return Network(
            names,
            [layers[node] for node in shown],
            [
                Connection(place[source], place[target], weight, not (source < target and source < last))
                for source, target, weight in found
            ],
        )
