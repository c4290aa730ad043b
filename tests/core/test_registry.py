from __future__ import annotations

import functools
import sys
from abc import abstractmethod

import pytest

from papertape.core import registry
from papertape.core.options import OptionsError
from papertape.core.registry import contract, entries, import_modules, lookup, name_of, register


class Sink:
    @abstractmethod
    def write(self) -> None: ...


class Paper(Sink):
    def write(self) -> None: ...


@pytest.fixture(autouse=True)
def _a_registry_of_its_own(monkeypatch):
    monkeypatch.setattr(registry, "_entries", {kind: {} for kind in registry.KINDS})
    monkeypatch.setattr(registry, "_contracts", {})
    monkeypatch.setattr(registry, "_loaded_entry_points", set())
    contract("sink")(Sink)


def test_what_is_registered_is_found_by_its_name():
    assert register("sink", "paper", Paper) is Paper

    @register("sink", "tape")
    class Tape(Paper): ...

    assert lookup("sink", "paper") is Paper and lookup("sink", "tape") is Tape
    assert list(entries("sink")) == ["paper", "tape"]
    assert name_of(Tape) == "tape" and name_of(Sink) is None


def test_names_come_in_their_order_whatever_was_imported_first() -> None:
    for name in ("tape", "paper", "reel"):
        register("sink", name, type(name, (Paper,), {}))
    assert list(entries("sink")) == ["paper", "reel", "tape"]
    with pytest.raises(OptionsError, match="allowed: paper, reel, tape$"):
        lookup("sink", "film")


def test_a_function_can_be_a_fitness():
    def brightness() -> None: ...

    register("fitness", "brightness", brightness)
    assert lookup("fitness", "brightness") is brightness


def test_the_same_class_may_come_again_but_no_other_takes_its_name():
    register("sink", "paper", Paper)
    again = type("Paper", (Paper,), {"__module__": Paper.__module__, "__qualname__": Paper.__qualname__})
    register("sink", "paper", again)
    assert lookup("sink", "paper") is again

    class Other(Paper): ...

    with pytest.raises(ValueError, match="sink 'paper': is taken by .*Paper; .*Other needs another"):
        register("sink", "paper", Other)


def test_what_is_no_class_has_a_name_as_well():
    register("fitness", "partial", functools.partial(max, 1))
    with pytest.raises(ValueError, match=r"fitness 'partial': is taken by functools.functools.partial"):
        register("fitness", "partial", functools.partial(max, 2))


@pytest.mark.parametrize(
    ("kind", "name", "target", "error", "message"),
    [
        ("sinks", "a", Paper, ValueError, "kind: got 'sinks'; allowed: env, circuit"),
        ("sink", "two words", Paper, ValueError, "name: got 'two words'; allowed is a word such as 'my-sink'"),
        ("sink", "", Paper, ValueError, "name: got ''"),
        ("sink", "a", 5, TypeError, "sink 'a': got a int; expected a class or a function"),
        ("sink", "a", dict, TypeError, "sink 'a': builtins.dict is no Sink; expected a class that inherits from it"),
    ],
)
def test_what_cannot_be_registered_is_refused(kind, name, target, error, message):
    with pytest.raises(error) as caught:
        register(kind, name, target)
    assert str(caught.value).startswith(message)


def test_a_class_that_lacks_a_method_is_refused():
    from papertape.core.env import Env

    contract("env")(Env)

    class Half(Env): ...

    with pytest.raises(TypeError, match=r"env 'half': .*Half lacks sample"):
        register("env", "half", Half)


def test_an_unknown_name_is_answered_with_the_nearest():
    register("sink", "paper", Paper)
    with pytest.raises(OptionsError, match=r"sink: got 'papr'; did you mean 'paper'\? allowed: paper"):
        lookup("sink", "papr")
    with pytest.raises(OptionsError, match="sink: got 3; allowed: paper"):
        lookup("sink", 3)


def test_modules_are_imported_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "sink_of_somebody.py").write_text(
        "from papertape.core.registry import register\nfrom tests_sink import Paper\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "works_too.py").write_text("VALUE = 3\n", encoding="utf-8")
    import_modules(["works_too"])
    assert sys.modules.pop("works_too").VALUE == 3
    with pytest.raises(OptionsError, match="imports: 'sink_of_somebody' cannot be imported: ModuleNotFoundError"):
        import_modules(["sink_of_somebody"])
    with pytest.raises(OptionsError, match="imports: 'is_not_there' cannot be imported: ModuleNotFoundError"):
        import_modules(["is_not_there"])


class _Point:
    def __init__(self, value, load):
        self.name, self.value, self.load, self.dist = "theirs", value, load, None


def test_installed_packages_are_asked_once_when_a_name_is_missing(monkeypatch):
    asked = []

    def load():
        asked.append(1)
        register("sink", "theirs", Paper)

    monkeypatch.setattr(registry.importlib.metadata, "entry_points", lambda group: [_Point("their_module", load)])
    assert lookup("sink", "theirs") is Paper and "theirs" in entries("sink")
    assert asked == [1]


def test_an_installed_package_that_breaks_is_named(monkeypatch):
    def load():
        raise RuntimeError("no such device")

    monkeypatch.setattr(registry.importlib.metadata, "entry_points", lambda group: [_Point("their_module", load)])
    with pytest.raises(
        OptionsError, match="entry point 'theirs' of an installed package: RuntimeError: no such device"
    ):
        lookup("sink", "theirs")
