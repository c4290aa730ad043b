"""What every option of every registered class is, on the command line and in Python."""

from __future__ import annotations

import inspect
import re

import pytest

from papertape.core import registry
from papertape.core.component import fields_of, options_of
from papertape.main import main
from papertape.utils import factory
from papertape.utils.options import load_file, names
from papertape.utils.options_help import options_help

REGISTERED = [(kind, name) for kind in registry.KINDS for name in registry.entries(kind)]


@pytest.mark.parametrize(("kind", "name"), REGISTERED)
def test_every_option_of_every_class_says_what_it_is(kind, name):
    for option, field in options_of(registry.lookup(kind, name)).model_fields.items():
        line = field.description or ""
        assert option == "type" or (len(line) > 3 and "\n" not in line and line == line.strip()), option


def test_every_argument_of_every_constructor_says_what_it_is():
    for kind, name in REGISTERED:
        target = registry.lookup(kind, name)
        if isinstance(target, type):
            missing = [
                arg for arg, field in fields_of(target).items() if field.init is not False and not field.description
            ]
            assert not missing, (kind, name, missing)


@pytest.mark.parametrize("preset", names())
def test_all_options_of_a_preset_are_explained(preset, capsys):
    options = factory.parse({**load_file(preset), "device": "cpu"})
    said = list(options_help(options))
    assert all(option.help and option.type and option.here for option in said)
    dumped = options.model_dump(mode="json")
    for option in said:
        value = dumped
        for part in option.path.split("."):
            value = value[part] if isinstance(value, dict) else None
    expected = [path for path in paths(dumped) if not path.endswith("type")]
    assert {option.path for option in said} >= set(expected)
    assert main(["show", preset, "--help-options"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if re.match(r"\S", line)] and max(map(len, lines)) <= 100


def paths(values, prefix=""):
    for name, value in values.items():
        if name != "lessons" and isinstance(value, dict) and "type" in value:
            yield from paths(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


@pytest.mark.parametrize(
    "line",
    [
        "env: env, by its name or as a block; must be given; here copy; allowed: arithmetic,\n    associative-recall",
        "circuit.shift_range: whole number; default 1; allowed: at least 0\n    largest shift in",
        "circuit.clip: number or null; default 20.0; here 2.0; allowed: above 0\n",
        "circuit.masked_content: true or false; default false\n    lookups weigh",
        "circuit.head_init: one of a few; default parked; allowed: parked, uniform\n",
        "circuit.controller.num_layers: whole number; default 1; allowed: at least 1, at most 100\n",
        "agent.optimiser.betas: list of: number, number; default [0.9, 0.999]; allowed: at least 0, below 1\n",
        "env.width: whole number; default 8; here 3; allowed: at least 1\n    bits of a word\n",
        "plots: sink, by its name or as a block; default auto; here off; allowed: auto, ",
    ],
)
def test_type_default_allowed_and_help_are_those_declared(line, capsys):
    assert main(["show", "ntm-copy", "env.width=3", "plots=off", "agent.optimiser=adam", "--help-options"]) == 0
    assert line in capsys.readouterr().out


def test_the_signature_of_a_constructor_has_every_option():
    for kind, name in REGISTERED:
        target = registry.lookup(kind, name)
        assert options_of(target).model_fields.keys() - {"type"} <= set(inspect.signature(target).parameters), (
            kind,
            name,
        )
