"""The documentation's own part of Sphinx: directives for what comes from the code, and a check of what is built.

Directives of Markdown pages: ``{options} KIND`` lists all that is registered of a kind, with each of its options;
``{run-options}`` the options beside those blocks; ``{presets}`` the presets; ``{names} MODULE`` documents the public
names of a module from their docstrings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import from_code
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from papertape.core.component import Component, fields_of, kind_of
from papertape.utils.options_help import allowed_of, named


def describe_fields(app: Sphinx, what: str, name: str, target: Any, options: Any, lines: list[str]) -> None:
    """Add the fields of a component to its docstring, as the arguments of its constructor."""
    if what != "class" or not isinstance(target, type) or not issubclass(target, Component):
        return
    component: Any = target
    given = {field: info for field, info in fields_of(component).items() if info.init is not False}
    lines.append("")
    for field, info in given.items():
        said = [info.description or ""]
        if allowed := allowed_of(info):
            said.append(f"Allowed: {allowed}.")
        lines.append(f":param {field}: {' '.join(filter(None, said))}")
        lines.append(f":type {field}: {kind_of(info) or named(info.annotation)}")
    lines.append("")


# --------------------------------------------------------------------------------------------------------- directives


class Generated(SphinxDirective):
    """Puts lines in its place that are made from the code."""

    optional_arguments = 1
    make: Callable[..., Iterable[str]]
    """Makes the lines from the directive's arguments."""
    restructured = False
    """Whether they are reStructuredText rather than Markdown."""

    def run(self) -> list[nodes.Node]:
        """Parse the lines as if they stood in the page."""
        for file in (__file__, from_code.__file__):
            self.env.note_dependency(file)
        lines = "\n".join(type(self).make(*self.arguments)).split("\n")
        if self.restructured:
            lines = ["```{eval-rst}", *lines, "```"]
        parent = nodes.Element()
        self.state.nested_parse(StringList(lines, self.get_source_info()[0]), self.content_offset, parent, True)
        return parent.children


class OptionsOf(Generated):
    """All of a kind, ``{options} KIND``."""

    make = staticmethod(from_code.registered)


class OptionsOfRun(Generated):
    """What stands at the top, ``{run-options}``."""

    make = staticmethod(from_code.run_options)


class Presets(Generated):
    """All of them, ``{presets}``."""

    make = staticmethod(from_code.presets)


class Names(Generated):
    """The public names of a module, ``{names} MODULE``."""

    make = staticmethod(from_code.names)
    restructured = True


# ------------------------------------------------------------------------------------------------------- built pages


class _Assets(HTMLParser):
    """Collects what a browser loads with a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Look at an element."""
        given = dict(attributes)
        loads = [given.get("src"), given.get("srcset"), given.get("poster"), given.get("data")]
        if tag == "link" and (given.get("rel") or "") not in ("canonical", "next", "prev", "author", "license"):
            loads.append(given.get("href"))
        self.found += [address for address in loads if address]


def outside_assets(folder: Path) -> list[str]:
    """What built pages load from other hosts, one line each: ``file: address``."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".html":
            parser = _Assets()
            parser.feed(path.read_text(encoding="utf-8"))
            addresses = parser.found
        elif path.suffix == ".css":
            addresses = re.findall(r"(?:url\(|@import)\s*['\"]?([^'\")\s;]+)", path.read_text(encoding="utf-8"))
        else:
            continue
        found += [f"{path.relative_to(folder)}: {one}" for one in addresses if re.match(r"(https?:)?//", one)]
    return found


def refuse_outside_assets(app: Sphinx, exception: Exception | None) -> None:
    """Fail the build if a page would load anything from another host."""
    if exception is None and app.builder.format == "html" and (found := outside_assets(Path(app.outdir))):
        raise ExtensionError("pages load from other hosts:\n" + "\n".join(found))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register all of it."""
    for module in ("papertape", *from_code.ROOMS):
        for target in from_code.public(module).values():
            if isinstance(target, type) and issubclass(target, Component):
                component: Any = target
                fields_of(component)  # kept from here on: autodoc before Sphinx 9 changes the annotations of classes
    app.add_directive("options", OptionsOf)
    app.add_directive("run-options", OptionsOfRun)
    app.add_directive("presets", Presets)
    app.add_directive("names", Names)
    app.connect("autodoc-process-docstring", describe_fields)
    app.connect("build-finished", refuse_outside_assets)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
