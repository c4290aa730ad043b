"""Dropout between the layers of a controller."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from papertape import DNC, NTM


def gradients(kind: type, recompute_every: int | None) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_layers": 2, "memory_size": 6, "word_size": 4}
    circuit = kind(5, 3, dropout=0.5, recompute_every=recompute_every, backend="eager", **sizes).double()
    inputs = torch.randn(7, 3, 5, dtype=torch.float64, requires_grad=True)
    outputs, _ = circuit(inputs)
    torch.rand(11)  # what is drawn in between changes nothing
    return outputs, *torch.autograd.grad(outputs.square().sum(), [inputs, *circuit.parameters()], allow_unused=True)


@pytest.mark.parametrize("kind", [NTM, DNC])
def test_chunks_that_run_again_drop_the_same_units(kind: type) -> None:
    for one, other in zip(gradients(kind, 2), gradients(kind, None), strict=True):
        torch.testing.assert_close(one, other)


def test_running_again_leaves_the_generator_as_it_was() -> None:
    torch.manual_seed(0)
    circuit = NTM(5, 3, num_layers=2, dropout=0.5, recompute_every=2, backend="eager")
    outputs, _ = circuit(torch.randn(7, 3, 5))
    before = torch.get_rng_state()
    outputs.sum().backward()
    assert torch.equal(torch.get_rng_state(), before)
