"""JAX's equations are those of the plain implementation: the same losses over several training steps."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("jax")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import speed
import xla
from jax import numpy as jnp


@pytest.mark.parametrize("kind", ["ntm", "dnc"])
def test_losses_of_training_steps_are_the_same(kind: str) -> None:
    torch.manual_seed(0)
    case = speed.Case(kind, 6, 3, 4, 2, 8, 5, 6, 2 if kind == "dnc" else 1)
    inputs, targets = torch.rand(6, 3, 4), (torch.rand(6, 3, 2) > 0.5).float()
    plain = case.plain()
    step = xla.training_step(case, plain, jnp.array(inputs.numpy()), jnp.array(targets.numpy()))
    ours = speed.training_step(plain, inputs, targets)
    for _ in range(5):
        with torch.no_grad():
            expected = torch.nn.functional.binary_cross_entropy_with_logits(plain(inputs), targets)
        assert step() == pytest.approx(float(expected), abs=1e-6)
        ours()
