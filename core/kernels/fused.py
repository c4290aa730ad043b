"""LSTM, GRU and RNN over a whole sequence by torch's own functions, where they compute what the controllers do.

They know no ``clip``. So they run as many steps as cannot reach it: a cell of an LSTM grows by at most 1 a step, and
states of a GRU and of tanh units do not leave [-1, 1].
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from . import formulas, guard, transforms
from .guard import CONTROLLER, Options

UNDERSTOOD: dict[str, Options] = {
    "lstm": CONTROLLER,
    "gru": CONTROLLER,
    "rnn": CONTROLLER | {"nonlinearity": ("tanh", "relu")},
}
"""Options of controllers, by kind."""


def unavailable(controller: Any, inputs: Tensor, state: Any) -> str | None:
    """Why these functions cannot run a controller here, or None."""
    if inputs.device.type != "cpu" or torch.is_autocast_enabled("cpu") or not inputs.numel():
        return "it is not on a CPU, under autocast, or of no size"
    reason = guard.ununderstood(controller, UNDERSTOOD) or formulas.edited()
    if reason is not None:
        return reason
    layers = [*controller.inputs, *controller.recurrents]
    reason = formulas.replaced([controller, *layers])
    if reason is not None:
        return reason
    if any(not isinstance(layer, nn.Linear) or layer.bias is None for layer in layers):
        return "it needs Linear layers with a bias"
    tensors = [inputs, *state, *controller.parameters()]
    if any(type(tensor) not in (Tensor, nn.Parameter) or tensor.dtype != inputs.dtype for tensor in tensors):
        return "its tensors differ in type"
    if controller.clip is not None and (controller.clip < 1 or getattr(controller, "nonlinearity", None) == "relu"):
        return "clip may cut its states"
    return transforms.transform(tensors)


def run(controller: Any, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
    """A whole sequence, as :meth:`Controller.run`; only where it is not :func:`unavailable`."""
    made, done = [], 0
    while done < len(inputs):
        count = _safe_steps(controller, state, len(inputs) - done)
        if count:
            hidden, state = _steps(controller, inputs[done : done + count], state)
        else:
            hidden, state = controller(inputs[done], state)
            hidden = hidden.unsqueeze(0)
        made.append(hidden)
        done += len(hidden)
    return torch.cat(made) if len(made) > 1 else made[0], state


def _safe_steps(controller: Any, state: Any, most: int) -> int:
    """How many steps cannot reach ``clip``, at most ``most``; 0 where that is not known, as of what is no number."""
    if controller.clip is None:
        return most
    if controller.kind == "lstm":
        left = controller.clip - float(state.cell.detach().abs().amax())
        return min(math.floor(left), most) if left >= 1 else 0
    return most if state.hidden.detach().abs().amax() <= controller.clip else 0


def _steps(controller: Any, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Some steps without ``clip``."""
    weights = [
        tensor
        for given, recurrent in zip(controller.inputs, controller.recurrents, strict=True)
        for tensor in (given.weight, recurrent.weight, given.bias, recurrent.bias)
    ]
    before: Any = [part.transpose(0, 1).contiguous() for part in state]
    options: Any = (weights, True, controller.num_layers, 0.0, False, False, False)
    if controller.kind == "lstm":
        hidden, *after = torch.lstm(inputs, before, *options)
    elif controller.kind == "gru":
        hidden, *after = torch.gru(inputs, *before, *options)
    elif controller.nonlinearity == "tanh":
        hidden, *after = torch.rnn_tanh(inputs, *before, *options)
    else:
        hidden, *after = torch.rnn_relu(inputs, *before, *options)
    return hidden, type(state)(*(part.transpose(0, 1) for part in after))
