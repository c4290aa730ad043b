"""Tied layers: against ordinary ones, alike for every bit, few numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from papertape.core.tied_bits import TiedBitsLinear

blocks = st.lists(st.booleans(), min_size=1, max_size=4)
"""Which of some blocks are words."""


def layer_of(inputs: list[bool], outputs: list[bool], bits: int) -> TiedBitsLinear:
    return TiedBitsLinear([bits if word else 1 for word in inputs], [bits if word else 1 for word in outputs]).double()


def permuted(features: torch.Tensor, kinds: list[bool], order: torch.Tensor) -> torch.Tensor:
    """Features with the bits of each word in another order."""
    parts = features.split([len(order) if word else 1 for word in kinds], dim=-1)
    return torch.cat([part[..., order] if word else part for part, word in zip(parts, kinds, strict=True)], dim=-1)


@settings(deadline=None)
@given(blocks, blocks, st.integers(2, 6), st.integers(0, 2**31))
def test_another_order_of_the_bits_that_go_in_is_that_order_of_those_that_come_out(inputs, outputs, bits, seed):
    torch.manual_seed(seed)
    layer, order = layer_of(inputs, outputs, bits), torch.randperm(bits)
    x = torch.randn(3, layer.in_features).double()
    torch.testing.assert_close(layer(permuted(x, inputs, order)), permuted(layer(x), outputs, order))


@settings(deadline=None)
@given(blocks, blocks, st.integers(2, 6))
def test_every_number_is_used_and_words_of_any_length_have_as_many(inputs, outputs, bits):
    layer, longer = layer_of(inputs, outputs, bits), layer_of(inputs, outputs, bits + 1)
    assert layer.index.unique().tolist() == list(range(len(layer.weight)))
    assert layer.bias_index.unique().tolist() == list(range(len(layer.bias)))
    assert (layer.weight.shape, layer.bias.shape) == (longer.weight.shape, longer.bias.shape)
    assert len(layer.weight) == len(inputs) * len(outputs) + sum(inputs) * sum(outputs)


def test_own_and_other_bits_and_single_numbers():
    layer = TiedBitsLinear([2, 1], [1, 2])
    layer.weight.data, layer.bias.data = torch.tensor([1.0, 2, 3, 4, 5]), torch.tensor([10.0, 20])
    weight, bias = layer.whole(layer.weight, layer.bias)
    assert weight.tolist() == [[1, 1, 2], [3, 4, 5], [4, 3, 5]]
    assert bias.tolist() == [10, 20, 20]
    x = torch.randn(4, 3)
    torch.testing.assert_close(layer(x), functional.linear(x, weight, bias))


def test_words_of_one_bit_leave_nothing_to_tie():
    layer = TiedBitsLinear([1, 1, 1], [1, 1])
    assert len(layer.weight) == 6
    assert layer.weight.abs().max() <= 3**-0.5


def test_gradients_are_sums_over_what_is_tied():
    layer = TiedBitsLinear([2, 1], [2]).double()
    x = torch.randn(5, 3).double()
    assert torch.autograd.gradcheck(
        lambda weight, bias: torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,)),
        (layer.weight, layer.bias),
    )


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ([], [1], "input_blocks: got 0"),
        ([2], [0], "output_blocks: got 0"),
        ([2, 3], [2], r"input_blocks, output_blocks: got words of \[2, 3\] bits; allowed is one length"),
        ([2], [3], r"input_blocks, output_blocks: got words of \[2, 3\] bits"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(inputs, outputs, message):
    with pytest.raises(ValueError, match=message):
        TiedBitsLinear(inputs, outputs)
