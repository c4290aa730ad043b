"""The commands that hints print: one for each extra, and never for a package that may be a stranger's."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import venv
from pathlib import Path

import pytest

from papertape.core import install

ROOT = Path(__file__).parents[2]
EXTRAS = {
    name: re.findall(r'"([^"]+)"', listed)
    for name, listed in re.findall(r"^(visdom|gym) = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
}
COMMANDS = {"gym": install.GYMNASIUM, "visdom": install.VISDOM}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_install_what_the_extras_name(name: str) -> None:
    last = COMMANDS[name].rpartition("&&")[2]
    assert [word for word in shlex.split(last)[2:] if not word.startswith("-")] == EXTRAS[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_readme_says_the_same(name: str) -> None:
    assert COMMANDS[name] in (ROOT / "README.md").read_text()


def test_no_text_installs_the_package_by_its_name() -> None:
    """What an index holds under this name need not be this project."""
    paths = [path for kind in ("*.py", "*.md", "*.yaml", "*.toml", "*.txt") for path in ROOT.glob(f"**/{kind}")]
    texts = [path for path in paths if not {".venv", "tests", "runs", "build"} & set(path.relative_to(ROOT).parts)]
    assert ROOT / "README.md" in texts and ROOT / "options" / "neat-cartpole.yaml" in texts
    for path in texts:
        assert not re.search(r"pip install\b[^\n]*[\"' ]papertape\b(?!/)", path.read_text()), path


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("pip", ["pip==23.0.1", "pip"])
@pytest.mark.parametrize("setuptools", [None, "setuptools>=81"])
def test_visdom_installs_by_its_command_in_a_fresh_environment(
    tmp_path: Path, pip: str, setuptools: str | None
) -> None:
    venv.create(tmp_path / "fresh", with_pip=True)
    binaries = tmp_path / "fresh" / "bin"
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}"}
    environment = {name: value for name, value in environment.items() if name not in ("PYTHONPATH", "PIP_CONSTRAINT")}

    def run(command: str) -> str:
        done = subprocess.run(
            command, shell=True, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    before = "python -m pip install -q --upgrade" if setuptools else "python -m pip uninstall -q -y"
    try:
        run(f"python -m pip install -q --upgrade '{pip}'")
        run(f"{before} '{setuptools or 'setuptools'}'")
    except AssertionError as error:
        pytest.skip(f"no package index: {str(error)[-200:]}")
    run(install.VISDOM)
    assert run("python -c 'import visdom.server.app; print(visdom.__version__)'").strip() == "0.2.4"
