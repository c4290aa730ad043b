"""Strategy options that cannot be, or cannot work together, are refused with the name of the option."""

import pytest
from pydantic import TypeAdapter, ValidationError

from papertape.agents.strategies import AnyStrategy
from papertape.core.component import options_of
from papertape.core.registry import entries

ADAPTER = TypeAdapter(AnyStrategy)

WRONG = [
    ({"type": "deep-ga", "population": 10}, "truncation: got 20; allowed is at most population (10)"),
    ({"type": "deep-ga", "population": 9, "truncation": 3}, "elite_candidates: got 10; allowed is at most"),
    ({"type": "deep-ga", "sigma": 0}, "sigma"),
    ({"type": "deep-ga", "truncation": 0}, "truncation"),
    ({"type": "openai-es", "population": 201}, "population: got 201; allowed is an even number"),
    ({"type": "openai-es", "betas": [0.9, 1.0]}, "betas.1"),
    ({"type": "openai-es", "betas": [0.9]}, "betas"),
    ({"type": "openai-es", "rank": 0}, "rank"),
    ({"type": "openai-es", "sigma": -0.1}, "sigma"),
    ({"type": "openai-es", "lr": "fast"}, "lr"),
    ({"type": "pgpe", "population": 51}, "population: got 51; allowed is an even number"),
    ({"type": "pgpe", "lr": 0.5}, "lr: got 0.5; allowed is at most max_speed (0.15)"),
    ({"type": "pgpe", "momentum": 1.0}, "momentum"),
    ({"type": "trust", "population": 4, "crossover": True}, "survivors: got 0.2, 1 of 4; crossover needs two parents"),
    ({"type": "trust", "elite": 41}, "elite: got 41; allowed is at most the number of survivors (40)"),
    ({"type": "trust", "survivors": 0.0}, "survivors"),
    ({"type": "trust", "decay": 1.0}, "decay"),
    ({"type": "trust", "decay_per": "image"}, "decay_per"),
    ({"type": "trust", "child_mutation": 1.5}, "child_mutation"),
    ({"type": "trust", "population": 1}, "population"),
    ({"type": "trust", "initial": "random"}, "initial"),
    ({"type": "snes", "population": 1}, "population"),
    ({"type": "snes", "sigma": float("inf")}, "sigma"),
    ({"type": "cma-es", "population": 3}, "population"),
    ({"type": "sep-cma-es", "truncation": 3}, "truncation"),
    ({"type": "cma-es", "restarts": "always"}, "restarts"),
    ({"type": "ars", "population": 7}, "population: got 7; allowed is an even number"),
    ({"type": "ars", "population": 8, "top": 5}, "top: got 5; allowed is at most the number of directions (4)"),
    ({"type": "cr-fm-nes", "population": 9}, "population: got 9; allowed is an even number"),
    ({"type": "neat", "population": 1}, "population"),
    ({"type": "neat", "survivors": 0.0}, "survivors"),
    ({"type": "neat", "recurrent": True}, "recurrent"),
    ({"type": "neat", "compatibility_threshold": 0}, "compatibility_threshold"),
    ({"type": "neat", "add_node": 1.5}, "add_node"),
    ({"type": "genetic"}, "'genetic'"),
    ({}, "type"),
]


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_wrong_options_are_refused(values, message):
    with pytest.raises(ValidationError) as caught:
        ADAPTER.validate_python(values)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", list(entries("strategy")))
def test_defaults_are_valid_and_named_by_type(name):
    expected = options_of(entries("strategy")[name])
    assert type(ADAPTER.validate_python({"type": name})) is expected
    assert type(ADAPTER.validate_python(name)) is expected
