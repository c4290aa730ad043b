"""Options of a run: one YAML file, ``key=value`` overrides, and errors that name the key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

PRESETS = Path(__file__).resolve().parent.parent / "options"


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
            raise OptionsError(
                f"preset: got {name!r}; allowed: {', '.join(preset_names())}, or a path to a .yaml file"
            ) from error
        raise OptionsError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    values = parse_yaml(text, name)
    if not isinstance(values, dict):
        raise OptionsError(f"{name}: got {type(values).__name__}; expected a mapping with env, circuit and agent")
    return values


def override(values: dict[str, Any], assignments: Iterable[str]) -> list[str]:
    """Set ``path.to.key=value`` in place; values are read as YAML.

    Giving a block another ``type`` drops those of its options that were set for the old type.

    Returns:
        The paths of dropped options.

    Raises:
        OptionsError: not of the form key=value, or a path through something that is not a block.
    """
    parsed = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not all(key.split(".")):
            raise OptionsError(f"{assignment!r}: expected key=value, such as agent.lr=3e-4")
        parsed.append((key.split("."), parse_yaml(text, key)))
    dropped = []
    # Types first: what is set for the new type must outlive the change of type.
    for path, value in sorted(parsed, key=lambda item: item[0][-1] != "type"):
        block = values
        for depth, part in enumerate(path[:-1]):
            block = block.setdefault(part, {})
            if not isinstance(block, dict):
                raise OptionsError(
                    f"{'.'.join(path)}: {'.'.join(path[: depth + 1])} is {block!r}, not a block of options"
                )
        if path[-1] == "type" and block.get("type", value) != value:
            prefix = ".".join(path[:-1])
            dropped += [f"{prefix}.{key}" for key in block if key not in ("type", "controller")]
            for key in [key for key in block if key not in ("type", "controller")]:
                del block[key]
        block[path[-1]] = value
    return dropped


def explain(error: ValidationError, prefix: str, given: Any, known: Mapping[str, Any] | None = None) -> list[str]:
    """One line per problem: path of the key, what was given, what is allowed.

    Args:
        error: from pydantic.
        prefix: path of the block that was validated.
        given: the raw block.
        known: options of the block, to suggest a name for a mistyped one.
    """
    lines = []
    for problem in error.errors(include_url=False):
        path = _path(problem["loc"], given)
        where = ".".join(part for part in (prefix, *path) if part)
        value, kind, context = problem["input"], problem["type"], problem.get("ctx", {})
        if kind == "extra_forbidden":
            close = difflib.get_close_matches(path[-1], list(known or ()), n=1) if len(path) == 1 else []
            hint = (
                f"did you mean {close[0]!r}?"
                if close
                else f"known here: {', '.join(known)}"
                if known and len(path) == 1
                else "no such option"
            )
            lines.append(f"{where}: unknown option; {hint}")
        elif kind == "missing":
            lines.append(f"{where}: missing")
        elif kind == "union_tag_invalid":
            lines.append(f"{where}.type: got {context['tag']!r}; allowed: {context['expected_tags']}")
        elif kind == "union_tag_not_found":
            lines.append(f"{where}: got {_short(value)}; expected a block with a type")
        elif kind == "value_error":
            message = str(context["error"])
            lines.append(f"{where}.{message}" if re.match(r"^[a-z_0-9.]+: ", message) else f"{where}: {message}")
        else:
            message = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
            lines.append(f"{where}: got {_short(value)}; allowed: {message}")
    return lines


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
