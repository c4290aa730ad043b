"""What stands in the documentation, README included: its code runs, its commands parse, all that it names is there."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

import papertape
from papertape.core.component import Component, fields_of, kind_of
from papertape.core.registry import KINDS, entries
from papertape.main import main, parse_arguments
from papertape.utils import factory
from papertape.utils.commands import sweep
from papertape.utils.commands.arguments import read_arguments

pytestmark = pytest.mark.usefixtures("outsiders")  # what other tests register is in no page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(page.relative_to(ROOT)) for page in DOCS.rglob("*.md"))]
LANGUAGES = {"python", "sh", "console", "yaml", "text"}
SMALLER = {
    "steps=2000": "steps=2",
    "steps=1000": "steps=2",
    "generations=200": "generations=2",
    "target=1e-8": "evaluations=50",
}
"""What a page does at length, tests do in short."""
TOOLS = {"pip", "source", "pytest", "ruff", "mypy", "pre-commit", "tensorboard"}
"""Commands that are not ours."""
METHODS = ["loss", "step"]
"""What looks like an option in the text, ``circuit.step``."""
PLACEHOLDERS = re.compile(r"…|\bRUN\b|\bNAME\b|mine\.yaml|my-task")
"""What stands for something of the reader's own."""


class Block(NamedTuple):
    """A piece of code in a page."""

    language: str
    """``indented`` where it is not fenced."""
    text: str


def blocks(text: str) -> Iterator[Block]:
    """The code of a page, directives of the site left out."""
    fenced = re.compile(r"^(`{3,})(.*)\n((?:.*\n)*?)\1$", re.MULTILINE)
    rest = fenced.sub("", text)
    for _, language, body in fenced.findall(text):
        if not language.startswith("{"):
            yield Block(language.strip(), body)
    for body in re.findall(r"(?:^|\n)\n((?: {4}.*\n)+)", rest):
        yield Block("indented", inspect.cleandoc(body))


def page_text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def our_arguments(words: list[str]) -> list[str] | None:
    """What a command gives to our command line; None where it is another program's."""
    if words[0] == "torchrun":
        start = words.index("main.py") if "main.py" in words else words.index("papertape.main")
        return words[start + 1 :]
    if words[0] == "papertape":
        return words[1:]
    if words[0] in ("python", "python3") and words[1:2] in (["main.py"], ["bootstrap.py"]):
        return words[2:] if words[1] == "main.py" or words[2:3] == ["train"] else None
    return None


def check_command(line: str) -> None:
    """Raise unless a line for the shell is one that works here."""
    words = shlex.split(line.replace("device=cuda", "device=cpu"), comments=True)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words.pop(0)
    given = our_arguments(words)
    if given is not None:
        parsed = parse_arguments(given or ["train"])
        if parsed.command == "train" and not parsed.resume and not PLACEHOLDERS.search(line):
            if "tensorboard" in line and importlib.util.find_spec("tensorboard") is None:
                return
            arguments = [word for word in parsed.arguments if not word.startswith("start=")]
            read_arguments(arguments, imports=parsed.imports)
        if parsed.command == "sweep" and not parsed.resume:
            assert not [run.problem for run in sweep.plan(parsed.arguments, parsed.imports) if run.problem], line
    elif words[0] in ("python", "python3"):
        assert (ROOT / words[1]).is_file() or importlib.util.find_spec(words[2]) or words[2] == "sphinx", line
    elif words[0].startswith(".ci/"):
        assert (ROOT / words[0]).is_file(), line
    else:
        assert words[0] in TOOLS, line


def check_session(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the commands after ``$`` and compare what they print."""
    for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).+\n?)*)", text, re.MULTILINE):
        given = our_arguments(shlex.split(command, comments=True))
        assert given is not None, command
        capsys.readouterr()
        main(given)
        printed = capsys.readouterr()
        assert printed.out + printed.err == expected.rstrip("\n") + "\n"


@pytest.fixture
def folder(tmp_path: Path, outsiders: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader works: an empty folder, from which the examples of a clone are in reach."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def checkpoint(folder: Path) -> str:
    """Of a run that has just begun."""
    small = ["env.width=2", "env.max_length=2", "circuit.memory_size=4", "circuit.controller.hidden_size=4"]
    assert main(["train", "ntm-copy", *small, "agent.steps=1", "agent.evaluate_every=1", "plots=off"]) == 0
    (found,) = folder.glob("runs/*/checkpoints/latest.pt")
    return str(found)


@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page_text(page)))])
def test_code_runs(page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for language, text in blocks(page_text(page)):
        assert language in LANGUAGES or language == "indented", f"a block in {page} has no language: {text[:60]}"
        file = re.match(r"# ([\w.]+\.(?:py|yaml))\n", text)
        if file:
            (folder / file[1]).write_text(text, encoding="utf-8")
        elif language == "python":
            for long, short in SMALLER.items():
                text = text.replace(long, short)
            if "runs/…" in text:
                text = re.sub(r"runs/…/checkpoints/\w+\.pt", checkpoint(folder), text)
            exec(compile(text, page, "exec", dont_inherit=True), names)
        elif language == "sh":
            for line in filter(None, text.splitlines()):
                check_command(re.sub(r"^for (\w+) in (\w+).*; do (.*); done$", r"\3", line).replace("=$seed", "=1"))
        elif language == "console" or text.startswith("$ "):
            check_session(text, capsys)
        elif language == "indented":
            for line in text.splitlines():
                if re.match(r"(python3?|papertape|torchrun|pip|source|pytest|pre-commit|[A-Z_]+=\S+) ", line):
                    check_command(line)


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_are_there(page: str, folder: Path) -> None:
    for command in re.findall(r"`((?:papertape|python3? main\.py) [a-z][^`]*)`", page_text(page)):
        if not PLACEHOLDERS.search(command) and "--import" not in command:
            check_command(command)


@pytest.mark.parametrize("page", [page for page in PAGES if " start=latest" in page_text(page)])
def test_a_run_starts_from_weights_that_fit(page: str, folder: Path) -> None:
    """Of the command on the line before, whose run is the latest."""
    text, command = page_text(page), "^ *papertape train "
    pairs = re.findall(f"{command}(.*)\n{command[1:]}(.*) start=latest", text, re.MULTILINE)
    assert len(pairs) == text.count(" start=latest")
    for words in pairs:
        made, taken = (read_arguments(shlex.split(line, comments=True)).circuit for line in words)
        assert made == taken


def option_is_there(path: str) -> bool:
    """Whether something that can be chosen has an option of this path, such as ``circuit.controller.hidden_size``."""
    fields = [factory.RunOptions.model_fields]
    for part in path.split("."):
        found = [known[part] for known in fields if part in known]
        if part == "type":
            return True
        if not found:
            return False
        kinds = {kind for kind in map(kind_of, found) if kind}
        fields = [dict(fields_of(target)) for kind in kinds for target in entries(kind).values()]
    return True


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/changelog.md"])
def test_options_and_names_in_the_text_are_there(page: str) -> None:
    text = page_text(page)
    own = re.findall(r"^    (\w+): .* = Field\(", text, re.MULTILINE)
    for path in re.findall(r"[`\s]((?:env|circuit|agent)\.[a-z_]+(?:\.[a-z_]+)*)(?:=|`)", text):
        assert option_is_there(path) or path.partition(".")[2] in [*own, *METHODS, "lrr"], path
    for name in re.findall(r"`(papertape(?:\.\w+)+)", text):
        if name in ("papertape.egg", "papertape.yaml"):
            continue
        found: Any = papertape
        for part in name.split(".")[1:]:
            if not hasattr(found, part):
                importlib.import_module(f"{found.__name__}.{part}")
            found = getattr(found, part)


def test_an_option_that_is_nowhere_is_found() -> None:
    assert option_is_there("circuit.controller.hidden_size")
    assert option_is_there("agent.optimiser.smoothing")
    assert not option_is_there("circuit.controller.hidden")
    assert not option_is_there("agent.hidden_size")


# ------------------------------------------------------------------------------------------------------------ the site


@pytest.fixture(scope="module")
def from_code() -> ModuleType:
    return _load("from_code")


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_option_of_everything_is_listed(from_code: ModuleType) -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in DOCS.glob("reference/options/*.md"))
    assert sorted(re.findall(r"^```\{options\} (\w+)$", pages, re.MULTILINE)) == sorted(KINDS)
    for kind in KINDS:
        text = "\n".join(from_code.registered(kind))
        for name, target in entries(kind).items():
            section = text.split(f"({kind}-{name})=\n")[1].partition("\n(")[0]
            assert re.match(rf"### {name}\n\n\w", section), f"{kind} {name} does not say what it is"
            for option, field in target.Options.model_fields.items():
                if option != "type":
                    (row,) = re.findall(rf"^\| `{option}` \|.*$", section, re.MULTILINE)
                    assert str(field.description).replace("|", "\\|") in row
                    assert len(row.split("|")[2].strip()) > 1


def test_defaults_and_bounds_are_those_that_hold(from_code: ModuleType) -> None:
    text = "\n".join(from_code.registered("circuit"))
    ntm = text.split("(circuit-ntm)=")[1].split("(circuit-sam)=")[0]
    assert "| `memory_size` | whole number | `128` | at least 1 | " in ntm
    assert "| `weight_init` | one of a few | `first` | first, uniform, learned | " in ntm
    dnc = text.split("(circuit-dnc)=")[1].split("(circuit-feedforward)=")[0]
    assert "| `controller` | [controller](#options-controller) | `{hidden_size: 256, type: lstm}` |" in dnc


def rooms() -> list[str]:
    """Every module that says what it offers, but the core's own."""
    found = ["papertape"]
    for module in pkgutil.walk_packages(papertape.__path__, "papertape."):
        inner = module.name.startswith(("papertape.tests", "papertape.core.kernels", "papertape.agents.strategies."))
        if module.ispkg and not inner and hasattr(importlib.import_module(module.name), "__all__"):
            found.append(module.name)
    return found


def test_every_public_name_has_a_page(from_code: ModuleType) -> None:
    for room in rooms():
        page = DOCS / "reference" / "api" / f"{room.removeprefix('papertape.')}.md"
        assert f"```{{names}} {room}\n" in page.read_text(encoding="utf-8")
        directives = "\n".join(from_code.names(room))
        for name in from_code.public(room):
            assert re.search(rf":: {room}\.{name}$", directives, re.MULTILINE)


def undocumented(name: str, target: Any) -> Iterator[str]:
    """What of a public class or function says nothing about itself."""
    if not target.__doc__ or (isinstance(target, type) and "__doc__" not in vars(target)):
        yield name
    if isinstance(target, type):
        for attribute, value in vars(target).items():
            function = getattr(value, "__func__", value)
            if (
                not attribute.startswith("_")
                and inspect.isfunction(function)
                and not inspect.getdoc(getattr(target, attribute))
            ):
                yield f"{name}.{attribute}"
    if isinstance(target, type) and issubclass(target, Component):
        yield from (f"{name}({field}=)" for field, info in fields_of(target).items() if _needs_words(info))


def _needs_words(info: Any) -> bool:
    return info.init is not False and not info.description


def test_every_public_name_says_what_it_is(from_code: ModuleType) -> None:
    silent = []
    for room in rooms():
        for name, target in from_code.public(room).items():
            if inspect.isfunction(target) or (isinstance(target, type) and target.__module__.startswith("papertape")):
                silent += undocumented(f"{room}.{name}", target)
            else:
                assert from_code.constant_description(room, name)
    assert not silent


def test_what_says_nothing_is_found() -> None:
    class Silent(papertape.Env):
        width: int = 3

        def levels(self) -> None:
            pass

    assert list(undocumented("Silent", Silent))[:2] == ["Silent", "Silent.levels"]


def test_every_example_and_preset_is_on_the_site(from_code: ModuleType) -> None:
    shown = (DOCS / "examples.md").read_text(encoding="utf-8")
    files = [path.name for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".yaml")]
    assert sorted(re.findall(r"literalinclude\} \.\./examples/(\S+)", shown)) == sorted(files)
    assert len(re.findall(r"\(preset-", "\n".join(from_code.presets()))) == len(list((ROOT / "options").glob("*.yaml")))


def test_a_page_that_loads_from_elsewhere_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(DOCS))
    outside_assets = _load("site_pages").outside_assets
    monkeypatch.delitem(sys.modules, "from_code")
    (tmp_path / "a.html").write_text('<a href="https://x.org"><img src="b.png"><link rel="stylesheet" href="c.css">')
    (tmp_path / "c.css").write_text('@font-face {src: url("d.woff2")}')
    assert outside_assets(tmp_path) == []
    (tmp_path / "a.html").write_text(
        '<script src="//cdn.example/mathjax.js"></script><link href="https://fonts.example/f.css" rel="stylesheet">'
    )
    (tmp_path / "c.css").write_text("@import 'http://fonts.example/g.css'")
    assert [line.rpartition("/")[2] for line in outside_assets(tmp_path)] == ["mathjax.js", "f.css", "g.css"]


@pytest.mark.parametrize("word", re.findall(r"`agent\.type=([\w-]+)`", "".join(map(page_text, PAGES))))
def test_agents_are_those_that_there_are(word: str) -> None:
    assert word in entries("agent")
