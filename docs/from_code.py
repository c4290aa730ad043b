"""What the pages of the documentation take from the code, as text: options as they are declared, and public names."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic.fields import FieldInfo

import papertape
from papertape.core.component import kind_of, options_of
from papertape.core.options import Options
from papertape.core.registry import entries
from papertape.utils import factory
from papertape.utils.options import PRESETS, descriptions, first_sentence
from papertape.utils.options_help import allowed_of, named


def default_of(field: FieldInfo) -> str:
    """The default of an option as YAML has it; that it must be given, where there is none."""
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Options):
        value = value.model_dump(mode="json")
    written = yaml.safe_dump(_plain(value), default_flow_style=True, width=10**6)
    return f"`{written.removesuffix('...' + chr(10)).strip()}`"


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def type_of(field: FieldInfo) -> str:
    """The type of an option, in words; of one that is a component, its kind."""
    kind = kind_of(field)
    return f"[{kind}](#options-{kind})" if kind else named(field.annotation)


def table(fields: Mapping[str, FieldInfo]) -> list[str]:
    """Options as a table in Markdown."""
    lines = ["| option | type | default | allowed | what it is |", "| --- | --- | --- | --- | --- |"]
    for name, field in fields.items():
        cells = (f"`{name}`", type_of(field), default_of(field), allowed_of(field), field.description or "")
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return lines


def registered(kind: str) -> Iterator[str]:
    """A section for each component of a kind."""
    yield f"(options-{kind})="
    yield f"## `{factory.OPTIONS[kind]}`"
    for name, target in entries(kind).items():
        fields = {option: field for option, field in options_of(target).model_fields.items() if option != "type"}
        yield from ("", f"({kind}-{name})=", f"### {name}", "", first_sentence(target.__doc__ or ""), "")
        yield from table(fields) if fields else ["It has no options."]
    yield ""


def run_options() -> Iterator[str]:
    """What an options file has at its top."""
    yield from table(factory.RunOptions.model_fields)


def presets() -> Iterator[str]:
    """Each preset: what it is, and its file."""
    for name, description in descriptions().items():
        text = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8")
        yield from (f"(preset-{name})=", f"## {name}", "", description, "", "```yaml", text.rstrip(), "```", "")


ROOMS = (
    "papertape.circuits",
    "papertape.core.accessors",
    "papertape.core.controllers",
    "papertape.envs",
    "papertape.envs.chomsky",
    "papertape.envs.popgym",
    "papertape.agents",
    "papertape.agents.strategies",
    "papertape.agents.fitness",
    "papertape.agents.optimisers",
    "papertape.agents.plasticity",
    "papertape.agents.structure",
    "papertape.utils.plots",
    "papertape.utils.sinks",
)
"""Modules whose public names are documented after those of the package itself."""


def public(module_name: str) -> dict[str, Any]:
    """The public names of a module, in its order, without those that the package itself has as well."""
    module = importlib.import_module(module_name)
    found = {name: getattr(module, name) for name in module.__all__ if name != "__version__"}
    top = [] if module is papertape else [getattr(papertape, name) for name in papertape.__all__]
    return {name: value for name, value in found.items() if not any(value is known for known in top)}


def names(module_name: str) -> Iterator[str]:
    """Directives for the public names of a module, of autodoc where they are classes or functions."""
    for name, value in public(module_name).items():
        if inspect.isfunction(value):
            yield from (f".. autofunction:: {module_name}.{name}", "")
        elif isinstance(value, type) and value.__module__.startswith("papertape"):
            kind = "exception" if issubclass(value, BaseException) else "class"
            yield from (f".. auto{kind}:: {module_name}.{name}", "   :members:", "   :show-inheritance:", "")
        else:
            description = constant_description(module_name, name).split("\n")
            yield from (f".. py:data:: {module_name}.{name}", "", *(f"   {line}" for line in description), "")


def constant_description(module_name: str, name: str) -> str:
    """The docstring below a constant or an alias, in whichever module of the package it stands.

    Raises:
        LookupError: there is none.
    """
    known = [module for module in sys.modules if module.startswith("papertape.")]
    for module in sorted(known, key=lambda known: not known.startswith(module_name)):  # its own room first
        file = getattr(sys.modules[module], "__file__", None)
        for statement, after in _neighbours(ast.parse(Path(file).read_text(encoding="utf-8"))) if file else ():
            targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
            said = after.value if isinstance(after, ast.Expr) else None
            if isinstance(said, ast.Constant) and any(isinstance(to, ast.Name) and to.id == name for to in targets):
                return inspect.cleandoc(str(said.value))
    raise LookupError(f"{module_name}.{name} has no docstring")


def _neighbours(module: ast.Module) -> Iterator[tuple[ast.stmt, ast.stmt]]:
    """Statements that follow one another outside classes and functions."""
    otherwise = [statement.orelse for statement in module.body if isinstance(statement, ast.If)]
    for body in (module.body, *otherwise):
        yield from itertools.pairwise(body)
