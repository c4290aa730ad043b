"""Commands as errors and hints print them: they work as they stand, in the shell that the user is in."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

GYMNASIUM = 'pip install "gymnasium>=1.1"'
TRITON = "pip install triton"
VISDOM = 'pip install "setuptools<81" wheel && pip install --no-build-isolation visdom==0.2.4 "tornado<6.6"'
"""visdom's setup.py imports pkg_resources, which newer setuptools lack and pip would fetch for the build; its server
answers every page with 403 under tornado 6.6."""
SUBMITIT = 'pip install "submitit>=1.5", which is the extra cluster: pip install -e ".[cluster]" in a clone'
ROOT = Path(__file__).absolute().parent.parent


def here(command: str) -> str:
    """A command with paths in place of ``papertape``, ``python`` and ``pip``, if these names mean others in the shell.

    They are this environment's only where it is activated.
    """
    return re.sub(r"(^|&& )(papertape|python|pip)\b", lambda found: found[1] + _program(found[2]), command)


def _program(name: str) -> str:
    folder = Path(sys.executable).parent  # not that of the file that python may be a link to
    by_name = shutil.which(name)
    if by_name and os.path.realpath(Path(by_name).parent) == os.path.realpath(folder):
        return name
    python = _written(Path(sys.executable))
    if name == "papertape":
        return _written(folder / name) if (folder / name).is_file() else f"{python} {_written(ROOT / 'main.py')}"
    return python if name == "python" else f"{python} -m pip"


def _written(path: Path) -> str:
    """A path as a shell takes it: below the working directory, from there."""
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return shlex.quote(str(path) if len(path.parts) > 1 else f"./{path}")
