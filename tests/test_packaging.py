"""What an installed papertape holds, and the ways to start it."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from email.message import Message
from email.parser import Parser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import papertape

ROOT = Path(__file__).parents[1]
ROOMS = ("agents", "circuits", "core", "envs", "utils")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as a wheel would hold it, without the native backend, and its metadata."""
    checkout = tmp_path_factory.mktemp("a b") / "checkout"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.so", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, checkout, ignore=ignored)
    out = checkout / "out"
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", out, "dist_info", "--output-dir", out]
    subprocess.run(command, cwd=checkout, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return out


@pytest.fixture(scope="module")
def metadata(built: Path) -> Message:
    (file,) = built.glob("*.dist-info/METADATA")
    return Parser().parsestr(file.read_text())


def relative(folder: Path, pattern: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.glob(pattern)}


def test_all_modules_are_in_it_and_no_script_test_or_benchmark(built: Path) -> None:
    rooms = set().union(*(relative(ROOT, f"{room}/**/*.py") for room in ROOMS))
    assert relative(built / "papertape", "**/*.py") == rooms | {"__init__.py", "main.py"}


def test_presets_leagues_and_type_marker_are_in_it(built: Path) -> None:
    assert relative(built / "papertape", "options/**/*.*") == relative(ROOT, "options/**/*.yaml")
    trained = relative(built / "papertape", "zoo/*")
    assert trained == relative(ROOT, "zoo/*.pt") and trained
    assert sum((built / "papertape" / name).stat().st_size for name in trained) < 2e6
    assert (built / "papertape" / "py.typed").is_file()


def test_nothing_else_lands_in_site_packages(built: Path) -> None:
    assert {path.name for path in built.iterdir() if path.suffix != ".dist-info"} == {"papertape"}
    assert {path.name for path in (built / "papertape").iterdir()} == {
        *ROOMS,
        "options",
        "zoo",
        "__init__.py",
        "main.py",
        "py.typed",
    }


def test_version_and_licence(metadata: Message) -> None:
    assert metadata["Version"] == papertape.__version__
    assert metadata["License-Expression"] == "MIT"


def test_its_page_on_an_index_has_no_link_that_leads_nowhere(metadata: Message) -> None:
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = str(metadata.get_payload())
    assert text.lstrip().startswith("# Papertape") and "papertape.DNC(" in text
    addresses = re.findall(r"\]\(([^)]*)\)|(?:src|href)=\"([^\"]*)\"", text)
    assert all(address.startswith(("https://", "#")) for found in addresses for address in found if address)
    assert "(https://arxiv" not in text or addresses  # the pattern finds links where there are some
    assert "made this picture" not in text  # what stands below a picture that is not there


@pytest.mark.slow
def test_an_sdist_is_whole(tmp_path: Path) -> None:
    """All that git knows is in it, but for what only a clone has a use for, and nothing that was built."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    command = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", tmp_path]
    known = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    checkout = tmp_path / "checkout"
    for name in filter(None, known.split("\0")):
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, checkout / name)
    (checkout / "core" / "kernels" / "native" / "_baseline.so").write_bytes(b"built")
    subprocess.run(command, cwd=checkout, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        packed = {name.partition("/")[2] for name in opened.getnames()}
    here = {path.relative_to(checkout).as_posix() for path in checkout.rglob("*") if path.is_file()}
    left_out = {name for name in here - packed if not name.startswith("papertape.egg-info/")}
    assert left_out == {".gitignore", ".pre-commit-config.yaml", "core/kernels/native/_baseline.so"}


def test_what_every_import_needs_is_declared(metadata: Message) -> None:
    """Each package that a module imports when it is itself imported, rather than where it is used."""
    requirements = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    required = {re.match(r"[\w-]+", line)[0].lower() for line in requirements}  # type: ignore[index]
    files = [ROOT / "__init__.py", ROOT / "main.py", *(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))]
    files = [file for file in files if "triton" not in file.parts]  # imported where Triton is found
    nodes = [node for file in files for node in ast.parse(file.read_text(encoding="utf-8")).body]
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    others = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names - {"papertape"}
    assert {"torch", "yaml", "PIL"} <= others
    givers = packages_distributions()
    lacking = {name for name in others if not required & {giver.lower().replace("_", "-") for giver in givers[name]}}
    assert lacking <= {"pydantic_core"}  # of pydantic, which asks for the one version that fits


def test_visdom_is_an_extra(metadata: Message) -> None:
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra" not in line]
    assert required
    assert not any("visdom" in line for line in required)
    assert "visdom" in metadata.get_all("Provides-Extra", [])


def test_changelog_knows_this_version() -> None:
    assert f"## [{papertape.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_imports_without_visdom_and_gymnasium(tmp_path: Path) -> None:
    script = "import sys; sys.modules['visdom'] = sys.modules['gymnasium'] = None; import papertape.main"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [[sys.executable, str(ROOT / "main.py")], [sys.executable, "-m", "papertape.main"], ["papertape"]],
    ids=["main.py", "module", "console script"],
)
def test_starts_from_any_folder(command: list[str], tmp_path: Path) -> None:
    if command == ["papertape"]:
        command = [str(Path(sys.executable).parent / "papertape")]
    out = subprocess.run([*command, "--version"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert out.strip() == papertape.__version__


def test_kernels_that_are_there_are_not_compiled_again(tmp_path: Path) -> None:
    """But they are when anything that they are made from is newer."""
    checkout = tmp_path / "checkout"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.so", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, checkout, ignore=ignored)
    native = checkout / "core" / "kernels" / "native"
    suffix = str(sysconfig.get_config_var("EXT_SUFFIX"))
    made = [native / f"{name}{suffix}" for name in ("_baseline", "_avx2", "_avx512")]
    for library in made:
        library.write_text("made earlier")

    def build() -> set[str]:
        command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "out", "--build-temp", "temporary"]
        environment = {**os.environ, "CC": "false", "CXX": "false"}
        subprocess.run(command, cwd=checkout, check=True, capture_output=True, env=environment)
        found = {path.name for path in (checkout / "out").rglob("*.so")}
        shutil.rmtree(checkout / "out", ignore_errors=True)
        return found

    libraries = {path.name for path in made}
    assert build() and build() <= libraries
    os.utime(native / "source" / "library.cpp")
    assert build() == set()
