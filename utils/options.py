"""Options of a run: one YAML file, ``key=value`` overrides, and errors that name the key."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import ValidationError

from ..core.options import Options

PRESETS = Path(__file__).resolve().parent.parent / "options"


Types = Mapping[str, type[Options]]
"""The options of each type that a block can have, by the type's name."""

NEAR = 0.7
"""How much alike two names are, from 0 to 1, for one to be suggested for the other."""


class OptionsError(ValueError):
    """Something in the options is wrong: one line per problem, each with the path of the key."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with 3e-4 a number, off and no plain words (as in YAML 1.2), and no key given twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as PyYAML declares it)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*(?:\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _mapping_without_repeats(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_repeats)


def _number(loader: _Loader, node: yaml.ScalarNode) -> float | int:
    """1e3 is a whole number, which may stand where one is wanted."""
    value: float = loader.construct_yaml_float(node)
    return int(value) if "e" in node.value.lower() and value.is_integer() else value


_Loader.add_constructor("tag:yaml.org,2002:float", _number)


def parse_yaml(text: str, source: str) -> Any:
    """Read YAML with the safe loader.

    Raises:
        OptionsError: not valid YAML; names the source and the line.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}, line {mark.line + 1}" if mark else source
        raise OptionsError(f"{where}: {getattr(error, 'problem', None) or error}") from error


def preset_names() -> list[str]:
    """Names of the presets that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_descriptions() -> dict[str, str]:
    """The first sentence of the comment that every preset begins with, by the preset's name."""
    descriptions = {}
    for name in preset_names():
        lines = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        descriptions[name] = first_sentence(
            " ".join(line[1:].strip() for line in itertools.takewhile(lambda line: line.startswith("#"), lines))
        )
    return descriptions


def first_sentence(text: str) -> str:
    """The first sentence of a text, on one line, without the markup of docstrings."""
    sentence = re.split(r"(?<=\.)\s+(?=[A-Z])", " ".join(text.split()), maxsplit=1)[0]
    return re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`|``([^`]*)``", lambda found: found[1] or found[2], sentence)


def load_file(name: str) -> dict[str, Any]:
    """Options of a preset, or of a YAML file given by its path.

    Raises:
        OptionsError: no such preset or file, not valid YAML, or not a mapping.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        if path.parent == PRESETS:
            near = _near(name, preset_names())
            names = (
                f"did you mean {near!r}? allowed: what `list` shows"
                if near
                else f"allowed: {', '.join(preset_names())}"
            )
            raise OptionsError(f"preset: got {name!r}; {names}, or a path to a .yaml file") from error
        raise OptionsError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    values = parse_yaml(text, name)
    if not isinstance(values, dict):
        raise OptionsError(f"{name}: got {type(values).__name__}; expected a mapping with env, circuit and agent")
    return values


def types_of(annotation: Any) -> dict[str, type[Options]]:
    """What a block can be, from the annotation of its option: one model, or several that its ``type`` tells apart."""
    if get_origin(annotation) in (Annotated, Union, UnionType):
        members = get_args(annotation)[: 1 if get_origin(annotation) is Annotated else None]
        return {name: model for member in members for name, model in types_of(member).items()}
    if isinstance(annotation, type) and issubclass(annotation, Options) and "type" in annotation.model_fields:
        return {annotation.model_fields["type"].default: annotation}
    return {}


def _model(block: Any, types: Types) -> type[Options] | None:
    """The options of the type that raw values name, if they name one."""
    name = block.get("type") if isinstance(block, dict) else None
    return types.get(name) if isinstance(name, str) else None


def types_at(path: Sequence[str], block: Any, types: Types) -> Types:
    """The types that a block within a block can have; none where there is no such block.

    Args:
        path: of the inner block, from the outer one.
        block: the raw values of the outer block.
        types: of the outer block.
    """
    for part in path:
        model = _model(block, types)
        if model is None or part not in model.model_fields:
            return {}
        types, block = types_of(model.model_fields[part].annotation), block.get(part)
    return types


def override(values: dict[str, Any], assignments: Iterable[str], blocks: Mapping[str, Types]) -> list[str]:
    """Set ``path.to.key=value`` in place; values are read as YAML.

    A block that gets another ``type`` keeps those of its options that mean the same there; so does one that gets
    another name for something that has settings of its own.

    Args:
        values: what to change.
        assignments: of the form ``path.to.key=value``, each path once.
        blocks: the types of each outermost block.

    Returns:
        A line for each block that has lost options to its new type or name.

    Raises:
        OptionsError: not of the form key=value, a path that is given twice or goes through something that is not a
            block.
    """
    parsed: dict[tuple[str, ...], Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        path = tuple(key.split("."))
        if not equals or not all(path):
            raise OptionsError(f"{assignment!r}: expected key=value, such as agent.lr=3e-4")
        if path in parsed:
            raise OptionsError(f"{key}: given twice")
        parsed[path] = parse_yaml(text, key)
    lost = []
    # Types first, the outermost before all: what is set for the new type must outlive the change of type.
    for path, value in sorted(parsed.items(), key=lambda item: (item[0][-1] != "type", len(item[0]))):
        block = values
        for depth, part in enumerate(path[:-1]):
            block = block.setdefault(part, {})
            if not isinstance(block, dict):
                raise OptionsError(
                    f"{'.'.join(path)}: {'.'.join(path[: depth + 1])} is {block!r}, not a block of options"
                )
        if path[-1] == "type" and len(path) > 1 and block.get("type", value) != value:
            types = types_at(path[1:-1], values[path[0]], blocks.get(path[0], {}))
            keys = change_type(block, types, value)
            if keys:
                lost.append(f"{'.'.join(path)}={value}: left out what means nothing or something else there: {keys}")
        elif len(path) > 1 and block.get(path[-1], value) != value:
            model = _model(block, types_at(path[1:-1], values[path[0]], blocks.get(path[0], {})))
            settings = model.settings_of.get(path[-1], ()) if model else ()
            gone = [key for key in settings if key in block and (*path[:-1], key) not in parsed]
            for key in gone:
                del block[key]
            if gone:
                lost.append(f"{'.'.join(path)}={value}: left out what belongs to {block[path[-1]]}: {', '.join(gone)}")
        block[path[-1]] = value
    return lost


def change_type(block: dict[str, Any], types: Types, name: Any) -> str:
    """Give a block another type, with those of its options that mean the same there and have a value that it takes.

    Returns:
        The options that the block has lost.
    """
    old, new = _model(block, types), _model({"type": name}, types)
    if new is None:
        return ""  # What is wrong about it is for the validation to say.
    related = old is not None and (issubclass(old, new) or issubclass(new, old))
    particular = frozenset() if related or old is None else old.own_meaning | new.own_meaning
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
    return ", ".join(lost)


def _is_possible(model: type[Options], block: Mapping[str, Any]) -> bool:
    """Whether values are valid, apart from others that are to come."""
    try:
        model.model_validate(block)
    except ValidationError as error:
        return all(problem["type"] == "missing" for problem in error.errors())
    return True


def explain(error: ValidationError, prefix: str, given: Any, model: type[Options], types: Types) -> list[str]:
    """One line per problem: path of the key, what was given, what is allowed.

    Args:
        error: from pydantic.
        prefix: path of the block that was validated.
        given: the raw block.
        model: what the block was validated by.
        types: what else the block could be, to say where an option belongs that is not known here.
    """
    lines = []
    for problem in error.errors(include_url=False):
        path = _path(problem["loc"], given)
        where = ".".join(part for part in (prefix, *path) if part)
        value, kind, context = problem["input"], problem["type"], problem.get("ctx", {})
        if kind == "extra_forbidden":
            lines.append(f"{where}: unknown option; {_hint(prefix, path, given, model, types)}")
        elif kind == "missing":
            lines.append(f"{where}: missing")
        elif kind == "union_tag_invalid":
            lines.append(f"{where}.type: got {context['tag']!r}; allowed: {context['expected_tags']}")
        elif kind in ("union_tag_not_found", "model_type", "model_attributes_type"):
            names = types_at(path, given, types)
            lines.append(f"{where}: got {_short(value)}; {a_block(value, names)}")
        elif kind == "value_error":
            message = str(context["error"])
            lines.append(f"{where}.{message}" if re.match(r"^[a-z_0-9.]+: ", message) else f"{where}: {message}")
        else:
            message = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
            lines.append(f"{where}: got {_short(value)}; allowed: {message}")
    return lines


def a_block(given: Any, types: Iterable[str]) -> str:
    """What is said where a block was expected, with an example that is what was meant if that can be guessed."""
    names = list(types)
    example = given if given in names else names[0] if names else None
    return "expected a block with a type" + (f", such as {{type: {example}}}" if example else "")


def _hint(prefix: str, path: list[str], given: Any, model: type[Options], types: Types) -> str:
    """What an unknown option may have meant: one that another type of its block has, or one with a similar name."""
    known: type[Options] | None = model
    for part in path[:-1]:
        types = types_at([part], given, types)
        given = given.get(part) if isinstance(given, dict) else None
        known = _model(given, types)
        prefix = f"{prefix}.{part}"
    having = [name for name, other in types.items() if path[-1] in other.model_fields]
    if having:
        return f"{prefix}.type {' or '.join(having)} has it"
    if known is None:
        return "no such option"
    near = _near(path[-1], known.model_fields)
    return f"did you mean {near!r}?" if near else f"known here: {', '.join(known.model_fields)}"


def _near(name: str, names: Iterable[str]) -> str | None:
    """The name that is most like a mistyped one, if any is like it."""
    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=NEAR)), None)


def _path(location: tuple[int | str, ...], given: Any) -> list[str]:
    """The keys of a location, without the tags that pydantic adds for the members of a union."""
    path = []
    for depth, part in enumerate(location):
        if isinstance(given, dict) and part not in given and given.get("type") == part and depth + 1 < len(location):
            continue
        path.append(str(part))
        if isinstance(given, dict):
            given = given.get(part)
        elif isinstance(given, list) and isinstance(part, int) and part < len(given):
            given = given[part]
    return path


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
