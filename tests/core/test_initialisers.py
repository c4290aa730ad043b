"""What memory and weightings hold before the first step."""

from __future__ import annotations

import math

import addressing_loops as loops
import numpy as np
import pytest
import torch

from papertape.core.initialisers import CONSTANT, InitialMemory, InitialWeights

MEMORY = ["constant", "learned", "truncated_normal"]
WEIGHTS = ["first", "uniform", "learned"]
LIKE = torch.empty(1)


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_constant_memory():
    memory = InitialMemory("constant", 5, 3)
    np.testing.assert_array_equal(memory(2, 5, LIKE), np.full((2, 5, 3), 1e-6, dtype=np.float32))
    assert CONSTANT == 1e-6
    assert memory(2, 11, LIKE).shape == (2, 11, 3), "the number of slots may change after training"
    assert parameters(memory) == 0 and not memory.state_dict()


@pytest.mark.parametrize(("init", "learned"), [("learned", 15), ("truncated_normal", 0)])
def test_drawn_memory(init, learned):
    torch.manual_seed(0)
    memory = InitialMemory(init, 5, 3)
    contents = memory(2, 5, LIKE)
    assert torch.equal(contents[0], contents[1]) and torch.equal(contents, memory(2, 5, LIKE))
    assert contents.unique().numel() == 15
    assert parameters(memory) == learned
    assert list(memory.state_dict()) == ["contents"], "saved with the circuit"
    with pytest.raises(ValueError, match="memory_size: got 6"):
        memory(2, 6, LIKE)


@pytest.mark.parametrize("init", ["learned", "truncated_normal"])
def test_a_normal_is_cut_at_two_standard_deviations(init):
    """Shares under some bounds, against the distribution function of a normal of 0.5, cut at 1 on both sides."""
    torch.manual_seed(0)
    contents = InitialMemory(init, 200, 50)(1, 200, LIKE).detach().numpy().ravel()
    assert np.abs(contents).max() <= 1.0

    def normal(x):
        return (1 + math.erf(x / 0.5 / math.sqrt(2))) / 2

    for bound in (-0.9, -0.5, -0.1, 0.0, 0.3, 0.7):
        expected = (normal(bound) - normal(-1)) / (normal(1) - normal(-1))
        assert np.mean(contents < bound) == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize("init", WEIGHTS)
def test_weights(init):
    weights = InitialWeights(init, 3, 5)
    start = weights(2, 5, LIKE)
    expected = {
        "first": lambda head: [1, 0, 0, 0, 0],
        "uniform": lambda head: [0.2] * 5,
        "learned": lambda head: loops.softmax(weights.logits[head].tolist()),
    }[init]
    np.testing.assert_allclose(start.detach(), np.array([[expected(head) for head in range(3)]] * 2), rtol=1e-6)
    assert parameters(weights) == (15 if init == "learned" else 0)
    if init == "learned":
        start[0, 1, 2].backward()
        assert weights.logits.grad[1].abs().min() > 0
        with pytest.raises(ValueError, match="memory_size: got 4"):
            weights(2, 4, LIKE)
    else:
        assert weights(2, 9, LIKE).shape == (2, 3, 9)


@pytest.mark.parametrize("init", MEMORY)
def test_what_is_done_to_a_memory_is_not_done_to_what_was_learned(init):
    memory = InitialMemory(init, 5, 3)
    before = memory(1, 5, LIKE).clone()
    with torch.no_grad():
        memory(1, 5, LIKE).zero_()
    assert torch.equal(memory(1, 5, LIKE), before)


@pytest.mark.parametrize("init", MEMORY)
def test_memory_follows_the_type_of_the_module(init):
    assert InitialMemory(init, 5, 3).double()(2, 5, LIKE.double()).dtype == torch.float64


@pytest.mark.parametrize("init", WEIGHTS)
def test_weights_follow_the_type_of_the_module(init):
    assert InitialWeights(init, 3, 5).double()(2, 5, LIKE.double()).dtype == torch.float64


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="memory_init: got 'zeros'; allowed: constant, learned, truncated_normal"):
        InitialMemory("zeros", 5, 3)
    with pytest.raises(ValueError, match="weight_init: got 'last'; allowed: first, uniform, learned"):
        InitialWeights("last", 3, 5)
