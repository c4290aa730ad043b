"""The contract of a circuit: states as trees, and what forward checks before anything runs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from papertape.core.circuit import Circuit
from papertape.core.options import check_choice, check_sizes
from papertape.core.state import detach, example, map_state, register_state
from papertape.core.trace import Trace


class Inner(NamedTuple):
    total: Tensor


class Outer(NamedTuple):
    inner: Inner
    last: Tensor


class Sum(Circuit):
    """The smallest circuit: outputs the running sum of a Linear of its inputs."""

    def setup(self) -> None:
        self.linear = nn.Linear(self.input_size, self.output_size)

    def initial_state(self, batch_size: int) -> Outer:
        zeros = self.linear.weight.new_zeros(batch_size, self.output_size)
        return Outer(Inner(zeros), zeros)

    def step(self, x: Tensor, state: Outer) -> tuple[Tensor, Outer]:
        y = self.linear(x)
        return state.inner.total + y, Outer(Inner(state.inner.total + y), y)


def test_map_state_keeps_the_tree():
    state = Outer(Inner(torch.ones(2)), torch.zeros(2))
    doubled = map_state(lambda leaf: 2 * leaf, state)
    assert type(doubled) is Outer and type(doubled.inner) is Inner
    assert doubled.inner.total.tolist() == [2, 2]
    summed = map_state(torch.add, state, doubled)
    assert summed.inner.total.tolist() == [3, 3] and summed.last.tolist() == [0, 0]


def test_map_state_names_what_does_not_belong():
    with pytest.raises(TypeError, match="state: got a list inside it; allowed are tensors and NamedTuples"):
        map_state(torch.clone, Outer([torch.ones(2)], torch.ones(2)))
    with pytest.raises(TypeError, match="got a float"):
        map_state(torch.clone, Outer(Inner(0.0), torch.ones(2)))


def test_detach_cuts_every_leaf():
    state = Outer(Inner(torch.ones(2, requires_grad=True) * 2), torch.ones(2, requires_grad=True))
    cut = detach(state)
    assert not cut.inner.total.requires_grad and not cut.last.requires_grad
    assert state.last.requires_grad and torch.equal(cut.inner.total, state.inner.total)


def test_an_example_is_the_first_parameter_or_what_stands_in_for_one():
    module = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(2, 3, bias=False).double()), nn.Linear(3, 1))
    module[0].register_parameter("none", None)
    assert example(module) is next(module.parameters()) is module[1][0].weight
    assert example(nn.BatchNorm1d(2, affine=False).double()).dtype == torch.float64
    assert example(nn.ReLU()).dtype == torch.float32


def test_only_named_tuples_are_registered_as_states():
    for given in (3, dict, tuple, lambda state: state):
        with pytest.raises(TypeError, match="cls: got .*; expected a class that is a NamedTuple"):
            register_state(given)


def test_a_circuit_needs_no_more_than_a_state_and_a_step():
    circuit, inputs = Sum(3, 2), torch.randn(4, 5, 3)
    outputs, state = circuit(inputs)
    torch.testing.assert_close(outputs, circuit.linear(inputs).cumsum(0))
    torch.testing.assert_close(state.inner.total, outputs[-1])
    traced, _, trace = circuit(inputs, trace=True)
    assert torch.equal(traced, outputs) and isinstance(trace, Trace) and not trace
    swapped = Sum(3, 2, batch_first=True)
    swapped.load_state_dict(circuit.state_dict())
    torch.testing.assert_close(swapped(inputs.transpose(0, 1))[0], outputs.transpose(0, 1))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("shape", [(3,), (4, 5, 2), (0, 5, 3), (4, 0, 3), (4, 5, 3, 1)])
def test_wrong_inputs_are_named(shape, batch_first):
    expected = r"expected \[B, T, 3\]" if batch_first else r"expected \[T, B, 3\]"
    with pytest.raises(ValueError, match=rf"inputs: got shape .*{expected}"):
        Sum(3, 2, batch_first=batch_first)(torch.zeros(shape))


def test_inputs_of_a_wider_type_are_refused():
    circuit = Sum(3, 2)
    with pytest.raises(ValueError, match=r"inputs: got torch.float64; the circuit has torch.float32"):
        circuit(torch.zeros(2, 5, 3, dtype=torch.float64))
    assert circuit.double()(torch.zeros(2, 5, 3, dtype=torch.float64))[0].dtype == torch.float64


def test_a_state_of_another_batch_is_refused():
    circuit = Sum(3, 2)
    with pytest.raises(ValueError, match="state: got a batch of 4; the inputs have a batch of 5"):
        circuit(torch.zeros(2, 5, 3), circuit.initial_state(4))


@pytest.mark.parametrize("state", [3, [1], (torch.ones(5, 2),), torch.ones(5, 2), Inner(torch.ones(5, 2))])
def test_a_state_of_another_structure_is_refused(state):
    circuit = Sum(3, 2)
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"state: got a {type(state).__name__}; this circuit has a Outer"):
            circuit(torch.zeros(2, 5, 3), state)
        circuit(torch.zeros(2, 5, 3), circuit.initial_state(5))
    with pytest.raises(ValueError, match=r"state.inner: got a Tensor; this circuit has a Inner"):
        circuit(torch.zeros(2, 5, 3), Outer(torch.zeros(5, 2), torch.zeros(5, 2)))


def test_a_state_of_another_shape_type_or_device_is_refused():
    circuit, inputs = Sum(3, 2), torch.zeros(2, 5, 3)
    with pytest.raises(ValueError, match=r"state.inner.total: got shape \[B, 4\]; this circuit has \[B, 2\]"):
        circuit(inputs, Sum(3, 4).initial_state(5))
    with pytest.raises(ValueError, match=r"state.inner.total: got torch.float64; this circuit has torch.float32"):
        circuit(inputs, Sum(3, 2).double().initial_state(5))
    with pytest.raises(ValueError, match=r"state.inner.total: got meta; this circuit has cpu"):
        circuit(inputs, Sum(3, 2).to("meta").initial_state(5))
    with pytest.raises(ValueError, match=r"state.inner.total: got shape \[\]; this circuit has \[B, 2\]"):
        circuit(inputs, Outer(Inner(torch.tensor(0.0)), torch.zeros(5, 2)))
    circuit(inputs, circuit.initial_state(5))
    circuit.double()(inputs.double(), circuit.initial_state(5))
    with pytest.raises(ValueError, match=r"state.inner.total: got torch.float32"):
        circuit(inputs.double(), Sum(3, 2).initial_state(5))


@pytest.mark.parametrize("inputs", [[[[0.0] * 3]], np.zeros((2, 5, 3), np.float32), None])
def test_inputs_that_are_no_tensor_are_named(inputs):
    with pytest.raises(ValueError, match=rf"inputs: got a {type(inputs).__name__}; expected \[T, B, 3\]"):
        Sum(3, 2)(inputs)


@pytest.mark.parametrize("wrong", ["yes", 1, None])
def test_batch_first_is_a_truth_value(wrong):
    with pytest.raises(ValueError, match=f"batch_first: got {wrong!r}; allowed: a valid boolean"):
        Sum(3, 2, batch_first=wrong)


@pytest.mark.parametrize("size", [0, -1, 1.0, "3", None, True, np.float64(3), torch.tensor(1.5)])
def test_check_sizes(size):
    check_sizes(one=1, many=1000, numpy=np.int64(3))
    check_sizes(at_least=0, none=0)
    with pytest.raises(ValueError, match="slots: got .*; allowed is a whole number of at least 1"):
        check_sizes(fine=2, slots=size)


def test_check_choice():
    check_choice("colour", "red", ("red", "blue"))
    with pytest.raises(ValueError, match="colour: got 'green'; allowed: red, blue"):
        check_choice("colour", "green", ("red", "blue"))
