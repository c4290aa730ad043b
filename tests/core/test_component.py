from __future__ import annotations

import copy
import inspect
import pickle
import re
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from pydantic import Field, ValidationError
from torch import nn

from papertape.core import registry
from papertape.core.component import Chosen, Component, build, fields_of, options_of
from papertape.core.explain import explain


@pytest.fixture(autouse=True)
def _a_registry_of_its_own(monkeypatch):
    monkeypatch.setattr(registry, "_entries", {kind: {} for kind in registry.KINDS})
    monkeypatch.setattr(registry, "_contracts", {"controller": Motor, "circuit": Machine})
    options_of.cache_clear()
    for name, motor in {"steam": Steam, "electric": Electric}.items():
        registry.register("controller", name, motor)
    registry.register("circuit", "machine", Machine)
    registry.register("circuit", "crane", Crane)
    yield
    options_of.cache_clear()


class Motor(Component, nn.Module):
    input_size: int = Field(kw_only=False, ge=1, description="channels")
    power: int = Field(5, ge=1, description="horses")
    clip: float | None = Field(20.0, gt=0, exclude=True)


class Steam(Motor):
    """Burns coal."""

    coal: Literal["brown", "black"] = "black"

    def setup(self) -> None:
        self.layer = nn.Linear(self.input_size, self.power)


class Electric(Motor):
    power: int = 7
    volts: float = Field(230.0, gt=0)


class Machine(Component, nn.Module):
    input_size: int = Field(kw_only=False, ge=1)
    motor: Annotated[Any, Chosen("controller")] = Field("steam", description="what drives it")
    low: int = Field(1, ge=1)
    high: int = Field(3, ge=1)
    made: str = Field("by hand", init=False)

    @classmethod
    def check_options(cls, options: Any) -> None:
        if options.low > options.high:
            raise ValueError(f"low: got {options.low}; allowed is at most high ({options.high})")

    def setup(self) -> None:
        self.motor = build(self.motor, self.input_size, clip=3.0)


class Crane(Machine):
    high: int = 9


class Plain(Component):
    """Has a constructor of its own."""

    def __init__(self, place: int, *, width: Annotated[int, Field(ge=1, description="metres")] = 4, name="x"):
        self.place, self.width, self.name = place, width, name


def test_fields_are_arguments_attributes_and_options():
    machine = Machine(4, motor={"type": "steam", "power": 2}, high=8)
    assert (machine.input_size, machine.low, machine.high, machine.made) == (4, 1, 8, "by hand")
    assert isinstance(machine.motor, Steam) and machine.motor.layer.weight.shape == (2, 4)
    assert machine.motor.clip == 3
    assert machine.options.model_dump() == {
        "type": "machine",
        "motor": {"type": "steam", "power": 2, "coal": "black"},
        "low": 1,
        "high": 8,
    }
    assert machine.options.model_fields_set == {"motor", "high"}


def test_options_are_what_the_constructor_takes_by_keyword_and_is_not_given_by_the_builder():
    assert list(Steam.Options.model_fields) == ["type", "power", "coal"]
    assert list(Machine.Options.model_fields) == ["type", "motor", "low", "high"]
    described = {name: field.description for name, field in Machine.Options.model_fields.items() if field.description}
    assert described == {"motor": "what drives it"}


def test_a_plain_value_changes_a_default_alone():
    assert Electric(1).power == 7
    assert fields_of(Electric)["power"].description == "horses"
    with pytest.raises(ValueError, match="power: got 0; allowed: greater than or equal to 1"):
        Electric(1, power=0)
    assert Steam(1).power == 5 and Crane(1).high == 9 and Machine(1).high == 3


def test_a_field_that_would_hide_or_be_hidden_is_refused():
    with pytest.raises(TypeError, match="Hides: setup is a method of its base; its field needs another name"):

        class Hides(Machine):
            setup: int = 5

    with pytest.raises(TypeError, match="Plain: high is a field of its base; expected its type as well, high: … = …"):

        class Plain(Machine):
            high = 9


def test_the_signature_shows_what_is_declared():
    assert str(inspect.signature(Steam)) == (
        "(input_size: int, *, power: int = 5, clip: float | None = 20.0, coal: Literal['brown', 'black'] = 'black')"
    )


def test_a_component_with_a_constructor_has_its_arguments_as_options():
    assert list(Plain.Options.model_fields) == ["width", "name"]
    assert fields_of(Plain)["width"].description == "metres"
    with pytest.raises(ValidationError):
        Plain.Options(width=0)
    assert build(Plain.Options(width=2), 5).width == 2


def test_objects_can_be_copied_and_pickled_with_their_options():
    machine = Machine(2, high=5)
    for other in (copy.deepcopy(machine), pickle.loads(pickle.dumps(machine))):
        assert other.options == machine.options
        assert torch.equal(other.motor.layer.weight, machine.motor.layer.weight)


def test_an_object_may_stand_for_a_block():
    motor = Steam(3)
    assert Machine(3, motor=motor).motor is motor
    assert Machine(3, motor="electric").motor.volts == 230


def test_numbers_of_numpy_are_numbers():
    assert type(Steam(np.int64(3), power=np.int32(2)).power) is int


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input_size": 0}, "input_size: got 0; allowed: greater than or equal to 1"),
        ({"low": 7}, "low: got 7; allowed is at most high (3)"),
        ({"low": 1.5}, "low: got 1.5; allowed: a valid integer"),
        ({"motor": "stem"}, "motor.type: got 'stem'; did you mean 'steam'? allowed: electric, steam"),
        ({"motor": {"power": 3}}, "motor.type: missing; allowed: electric, steam"),
        ({"motor": 5}, "motor: got 5; expected a block with a type, such as {type: electric}"),
        ({"motor": {"type": "steam", "powr": 2}}, "motor.powr: unknown option; did you mean 'power'?"),
        ({"motor": {"type": "steam", "volts": 2.0}}, "motor.volts: unknown option; motor.type electric has it"),
        ({"motor": {"type": "steam", "power": 0}}, "motor.power: got 0; allowed: greater than or equal to 1"),
        ({"motor": {"type": "steam", "clip": 1.0}}, "motor.clip: unknown option; known here: power, coal"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Machine(**{"input_size": 2, **given})


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((), {}, "Machine: argument 'input_size' is missing"),
        ((1, 2), {}, "Machine: got 2 arguments by place; allowed: input_size"),
        ((1,), {"input_size": 2}, "Machine: argument 'input_size' is given twice"),
        ((1,), {"lo": 2}, "Machine: unknown argument 'lo'; did you mean 'low'?"),
        ((1,), {"made": "elsewhere"}, "Machine: unknown argument 'made'; known: input_size, motor, low, high"),
    ],
)
def test_arguments_are_checked_as_python_checks_them(arguments, keywords, message):
    with pytest.raises(TypeError) as error:
        Machine(*arguments, **keywords)
    assert str(error.value) == message


def test_a_block_of_a_file_gets_the_same_words_with_its_path():
    given = {"type": "machine", "low": 5, "motor": {"type": "steam", "volts": 1}}
    with pytest.raises(ValidationError) as error:
        Machine.Options.model_validate(given)
    assert explain(error.value, given, Machine.Options, "circuit", "circuit") == [
        "circuit.motor.volts: unknown option; circuit.motor.type electric has it"
    ]


class Turbine(Steam):
    """Has a constructor of its own, which hands on what it does not name."""

    def __init__(self, *given: Any, blades: Annotated[int, Field(ge=2)] = 3, **more: Any) -> None:
        super().__init__(*given, **more)
        self.blades = blades


class Windmill(Turbine):
    """Fixes what its base lets be chosen, and adds an option as an attribute."""

    wings: int = Field(4, ge=1)

    def __init__(self, input_size: int, *, coal: str = "none", **more: Any) -> None:
        super().__init__(input_size, coal="brown", blades=9, **more)


def test_a_constructor_that_hands_on_adds_its_options_to_those_of_its_base():
    turbine = Turbine(2, power=4, blades=5)
    assert (turbine.input_size, turbine.power, turbine.blades, turbine.layer.out_features) == (2, 4, 5, 4)
    assert turbine.options.model_dump() == {"blades": 5, "power": 4, "coal": "black"}
    assert turbine.options.model_fields_set == {"power", "blades"}
    assert turbine.specification() == {"input_size": 2, "blades": 5, "power": 4, "coal": "black", "clip": 20.0}
    assert build(turbine.options, 2).options == turbine.options
    assert Turbine(2).options.blades == 3
    with pytest.raises(ValidationError):
        Turbine.Options(blades=1)
    with pytest.raises(TypeError, match="Turbine: unknown argument 'powr'; did you mean 'power'?"):
        Turbine(2, powr=4)
    with pytest.raises(ValueError, match="power: got 0"):
        Turbine(2, power=0)


def test_options_are_those_that_the_outermost_constructor_was_given():
    mill = Windmill(2, wings=6, power=1)
    assert (mill.wings, mill.power, mill.coal, mill.blades) == (6, 1, "brown", 9)
    assert {"coal": "none", "wings": 6, "power": 1}.items() <= mill.options.model_dump().items()
    assert mill.options.model_fields_set == {"wings", "power"}


def test_a_constructor_of_ones_own_keeps_its_options_too():
    assert Plain(1, width=7).options == Plain.Options(width=7)
    copied = copy.deepcopy(Turbine(2, blades=6))
    assert copied.options.blades == 6 and pickle.loads(pickle.dumps(copied)).options == copied.options
