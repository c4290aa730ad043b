"""Options of a run: one YAML file, ``key=value`` overrides, and errors that name the key."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ..core.component import kind_of
from ..core.explain import model_named
from ..core.options import Options, OptionsError, near
from ..core.registry import placed

PRESETS = Path(__file__).resolve().parent.parent / "options"
LEAGUES = PRESETS / "leagues"
DEFAULT_PRESET = "ntm-copy"
"""Stands in where none is named."""


_OTHERWISE = ("bool", "int", "float", "timestamp")
"""What YAML 1.1 reads as hardly anybody means it: yes as true, 010 as 8, 1:30 as 90, 2026-11-30 as no text."""


MOST_CHARACTERS = 1_000_000
"""Of all values of a document together."""
DEEPEST = 50
"""So many blocks and lists may be within each other; each circuit within another takes some of Python's stack."""


def excess(whole: Any) -> str:
    """What is too much about a document, before anything walks through it; empty if nothing is.

    What is there several times, as aliases make it, counts each time: ten lists, each of them ten times the one before,
    are short to write and would take all memory to show.

    Args:
        whole: plain values, or the node of YAML that they are made from.
    """
    known: dict[int, tuple[int, int]] = {}

    def measure(value: Any, above: int) -> tuple[int, int]:
        """Characters of a value, and levels of blocks and lists, of which there are others above it."""
        parts = _parts(value)
        if parts is None:
            text = value.value if isinstance(value, yaml.ScalarNode) else value
            return 1 + (len(text) if isinstance(text, str | bytes) else 0), 0
        if id(value) not in known:
            if above >= DEEPEST:  # one that is within itself has no end
                raise OverflowError
            sizes, levels = zip((0, 0), *(measure(part, above + 1) for part in parts), strict=True)
            known[id(value)] = 1 + sum(sizes), 1 + max(levels)
        size, level = known[id(value)]
        if above + level > DEEPEST:
            raise OverflowError
        return size, level

    try:
        size, _ = measure(whole, 0)
    except OverflowError:
        return f"more than {DEEPEST} blocks or lists are within each other"
    if size > MOST_CHARACTERS:
        return f"all values together, with those that aliases repeat, have more than {MOST_CHARACTERS:,} characters"
    return ""


def _parts(value: Any) -> Iterable[Any] | None:
    """What is in a block or a list; None of what is neither."""
    if isinstance(value, yaml.MappingNode):
        return itertools.chain.from_iterable(value.value)
    if isinstance(value, yaml.SequenceNode):
        nodes: list[yaml.Node] = value.value
        return nodes
    if isinstance(value, Mapping):
        return itertools.chain.from_iterable(value.items())
    return value if isinstance(value, list | tuple | set | frozenset) else None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader: 3e-4 is a number, off and dates are plain words (as in YAML 1.2), no key is given twice."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in _OTHERWISE]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def get_single_node(self) -> yaml.Node | None:
        """The document, which no values are made from yet: merging alone can make too many."""
        node = super().get_single_node()
        if said := excess(node):
            raise yaml.YAMLError(f"cannot be read: {said}")
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][\d_]*|0x_*[\da-fA-F][\da-fA-F_]*)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:(?:\d[\d_]*\.[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.(?:inf|Inf|INF))$"
        r"|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def _mapping_without_repeats(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    # What is merged in by << may be given again, which is what that is for.
    keys: dict[Any, Any] = {}
    for given, _ in node.value:
        if given.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(given)
        if not isinstance(key, Hashable):
            continue  # which is no key, as what makes the mapping says
        if key in keys:
            other = keys[key]
            said = f"the key {key!r} is given twice"
            if type(other) is not type(key):  # as 1 and true, which Python takes for equal
                said = f"the keys {other!r} and {key!r} are the same; quotation marks make words of them"
            raise yaml.constructor.ConstructorError(None, None, said, given.start_mark)
        keys[key] = key
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_repeats)


def _number(loader: _Loader, node: yaml.ScalarNode) -> float | int:
    """1e3 is a whole number, which may stand where one is wanted."""
    value: float = loader.construct_yaml_float(node)
    return int(value) if "e" in node.value.lower() and value.is_integer() else value


_Loader.add_constructor("tag:yaml.org,2002:float", _number)


MOST_DIGITS = 1000
"""Of a whole number; Python prints none of much more than four times as many."""


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    if len(node.value) > MOST_DIGITS:
        said = f"got a number of {len(node.value):,} characters; allowed are up to {MOST_DIGITS:,}"
        raise yaml.constructor.ConstructorError(None, None, said, node.start_mark)
    value: int = loader.construct_yaml_int(node)
    return value


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def parse_yaml(text: str, source: str) -> Any:
    """Read YAML with the safe loader.

    Raises:
        OptionsError: not valid YAML, or too much of it (see :func:`excess`); names the source and, of what is not
            valid, the line.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}, line {mark.line + 1}" if mark else source
        raise OptionsError(f"{where}: {getattr(error, 'problem', None) or ' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise OptionsError(f"{source}: cannot be read: there are too many brackets within each other") from error
    except (ValueError, LookupError, AttributeError) as error:  # which the loader does not foresee
        raise OptionsError(
            f"{source}: cannot be read: a value does not fit the tag before it, as in !!int x"
        ) from error


def parse_value(text: str, key: str) -> Any:
    """What ``key=value`` gives; a shell's variable that is not set is no way to switch something off.

    Raises:
        OptionsError: not valid YAML, or nothing at all.
    """
    value = parse_yaml(text, key)
    if value is None and not text.partition("#")[0].strip():
        raise OptionsError(f"{key}: got nothing; allowed: a value, or null for none")
    return value


def names(folder: Path = PRESETS) -> list[str]:
    """Of the presets that come with the package, or of the files of another folder of it."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def descriptions(folder: Path = PRESETS) -> dict[str, str]:
    """The first sentence of the comment that every preset, or file of another folder, begins with, by its name."""
    found = {}
    for name in names(folder):
        lines = (folder / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        found[name] = first_sentence(
            " ".join(line[1:].strip() for line in itertools.takewhile(lambda line: line.startswith("#"), lines))
        )
    return found


def first_sentence(text: str) -> str:
    """The first sentence of a text, on one line, without the markup of docstrings."""
    sentence = re.split(r"(?<=\.)\s+(?=[A-Z])", " ".join(text.split()), maxsplit=1)[0]
    return re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`|``([^`]*)``", lambda found: found[1] or found[2], sentence)


def read(kind: str, name: str, folder: Path) -> tuple[Path, str]:
    """Where a YAML file is, and what it says: one of a folder of the package by its name, or any by its path.

    Args:
        kind: what errors call it: preset or league
        name: without ``.yaml``, or a path that ends in ``.yaml`` or ``.yml``
        folder: of those that come with the package

    Raises:
        OptionsError: no such file, or it cannot be read.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    try:
        return path, path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        if path.parent != folder:
            raise OptionsError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
        meant = near(name, names(folder))
        asked = f"did you mean {meant!r}? " if meant else ""
        allowed = "what `list` shows" if meant else ", ".join(names(folder))
        raise OptionsError(f"{kind}: got {name!r}; {asked}allowed: {allowed}, or a path to a .yaml file") from error


def load_file(name: str) -> dict[str, Any]:
    """Options of a preset, or of a YAML file given by its path.

    Raises:
        OptionsError: no such preset or file, not valid YAML, or not a mapping.
    """
    path, text = read("preset", name, PRESETS)
    values = parse_yaml(text, name)
    if not isinstance(values, dict):
        raise OptionsError(f"{name}: got {type(values).__name__}; expected a mapping with env, circuit and agent")
    if isinstance(values.get("imports"), list):
        values["imports"] = placed(values["imports"], path.parent)
    return values


BLOCKS = {"env": "env", "circuit": "circuit", "agent": "agent", "plots": "sink"}
"""The blocks of an options file and their kinds."""
BEGINS = {"plots": "auto"}
"""What a block is that is not given and need not be."""
RUN = "run"
"""Stands for the kind of the whole, of which these are the blocks."""


def _inner(kind: str | None, block: dict[str, Any], part: str) -> tuple[str | None, Any]:
    """The kind of a block within a block, with the raw values that it has or begins with."""
    inner, found = block.get(part), BLOCKS.get(part) if kind == RUN else None
    if inner is None and found:
        inner = BEGINS.get(part)
    model = model_named(kind, block) if kind != RUN else None
    field = model.model_fields.get(part) if model else None
    if field is not None:
        found = kind_of(field)
        if inner is None and not field.is_required():
            inner = field.get_default(call_default_factory=True)
    return found, {"type": inner} if found and isinstance(inner, str) else inner


def override(values: dict[str, Any], assignments: Iterable[str]) -> list[str]:
    """Set ``path.to.key=value`` in place; values are read as YAML.

    A block that gets another ``type`` (or is replaced by the name of one) keeps the options that mean the same there. A
    block that is not given starts from its default. An element of a list is named by its number,
    from 0, as in errors.

    Args:
        values: what to change.
        assignments: of the form ``path.to.key=value``, each path once.

    Returns:
        A line for each block that has lost options to its new type.

    Raises:
        OptionsError: not of the form key=value, a value that is empty, a path that is given twice or goes through
            something that is not a block.
    """
    parsed: dict[tuple[str, ...], Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        path = tuple(key.split("."))
        if not equals or not all(path):
            raise OptionsError(f"{assignment!r}: expected key=value, such as agent.lr=3e-4")
        if path in parsed:
            raise OptionsError(f"{key}: given twice")
        parsed[path] = parse_value(text, key)
    lost = []
    # Types first, the outermost before all: what is set for the new type must outlive the change of type.
    for path, value in sorted(parsed.items(), key=lambda item: (item[0][-1] != "type", len(item[0]))):
        block: Any = values
        kind: str | None = RUN
        for depth, part in enumerate(path[:-1]):
            below = ".".join(path[: depth + 1])
            if isinstance(block, list):
                kind, inner = None, block[_place(path, depth, block)]
                inner = {"type": inner} if isinstance(inner, str) else inner
            else:
                kind, inner = _inner(kind, block, part)
                inner = {} if inner is None else inner
            if isinstance(inner, dict) and path[depth + 1].isdecimal():  # one, or none, where there may be several
                inner = [inner] if inner else []
            if isinstance(inner, dict):
                inner = dict(inner)
            elif isinstance(inner, list | tuple):
                inner = list(inner)
            else:
                raise OptionsError(f"{'.'.join(path)}: {below} is {inner!r}, not a block of options")
            block[_place(path, depth, block) if isinstance(block, list) else part] = inner
            block = inner
        if isinstance(block, list):
            block[_place(path, len(path) - 1, block)] = value
            continue
        found, inner = _inner(kind, block, path[-1])
        if found and isinstance(value, str) and isinstance(inner, dict):
            block[path[-1]] = block = dict(inner)
            path, kind = (*path, "type"), found
        name = path[-1]
        if name == "type" and len(path) > 1 and block.get("type", value) != value:
            given = {below[len(path) - 1] for below in parsed if below[: len(path) - 1] == path[:-1] != below}
            if left := change_type(block, kind, value, given):
                lost.append(f"{'.'.join(path)}={value}: {left}")
        block[name] = value
    return lost


def _place(path: Sequence[str], depth: int, block: list[Any]) -> int:
    """The place in a list that a part of a path names."""
    part, where = path[depth], ".".join(path[:depth])
    if part.isdecimal() and int(part) < len(block):
        return int(part)
    raise OptionsError(
        f"{'.'.join(path)}: {where} is the list {block!r}; allowed after it: "
        + (f"a place from 0 to {len(block) - 1}" if block else "nothing, it is empty")
    )


def change_type(block: dict[str, Any], kind: str | None, name: Any, given: Collection[str] = ()) -> str:
    """Give a block another type, with those of its options that mean the same there and have a value that it takes.

    Args:
        block: of options, changed in place.
        kind: of the component that it describes.
        name: of the new type.
        given: options that are set for the new type, of which nothing is said.

    Returns:
        What the block has lost, and why; empty if nothing.
    """
    old, new = model_named(kind, block), model_named(kind, {"type": name})
    if new is None:
        return ""  # What is wrong about it is for the validation to say.
    particular: frozenset[str] = frozenset()
    if old is not None:
        pair = [entry for entry in (old.component, new.component) if isinstance(entry, type)]
        if len(pair) < 2 or not any(itertools.starmap(issubclass, itertools.permutations(pair))):
            particular = old.own_meaning | new.own_meaning
    waiting = [key for key in block if key in new.model_fields and key != "type" and key not in particular]
    kept: dict[str, Any] = {"type": name}
    # An option may be possible only together with another one: until no more of them are, each is tried again.
    while accepted := [key for key in waiting if _is_possible(new, {**kept, key: block[key]})]:
        kept[accepted[0]] = block[accepted[0]]
        waiting.remove(accepted[0])
    lost = [key for key in block if key not in kept]
    for key in lost:
        del block[key]
    block["type"] = name
    said = [key for key in lost if key not in given]
    why = {
        "not among its options": [key for key in said if key not in new.model_fields],
        "another meaning there": [key for key in said if key in new.model_fields and key in particular],
        "a value that it does not take": [key for key in said if key in waiting],
    }
    reasons = [f"{', '.join(keys)} ({reason})" for reason, keys in why.items() if keys]
    return f"left out {', '.join(reasons)}; defaults hold for the rest" if reasons else ""


def _is_possible(model: type[Options], block: Mapping[str, Any]) -> bool:
    """Whether values are valid, apart from others that are to come."""
    try:
        model.model_validate(block)
    except ValidationError as error:
        return all(problem["type"] == "missing" for problem in error.errors())
    return True
