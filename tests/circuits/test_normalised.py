"""Circuits behind running statistics of their inputs: what they take."""

from __future__ import annotations

import pytest

from papertape.circuits import NormalisedCircuit, RoutedCircuit


def test_circuits_that_have_to_be_told_of_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"circuit\.type: got routed within normalised.* allowed is any other"):
        NormalisedCircuit(3, 2, circuit="routed")
    with pytest.raises(ValueError, match=r"circuit\.type: got routed within normalised.* allowed is any other"):
        NormalisedCircuit(3, 2, circuit=RoutedCircuit(3, 2, circuit="feedforward"))
