"""Gathers the wheels that gpu_report.py needs on a machine without a package index, and says how they are installed.

    python benchmarks/gpu_wheels.py wheels                  # for Python 3.12 on Linux, x86-64

They are the package's own dependencies and gymnasium, with all that these need. That machine is taken to have torch
with CUDA, the Triton that belongs to it, pytest and hypothesis (Python 3.12, torch 2.11 and Triton 3.6, say).
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

THERE = ("torch",)
"""What is not gathered."""

BOUNDS = {"numpy": ",<2.4"}
"""Triton 3.6 interprets kernels with no newer one; a GPU does not mind."""

PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")


def needed() -> list[str]:
    """Requirements, as pyproject.toml states them."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    blocks = re.findall(r"^(?:dependencies|gym) = \[(.*?)\]", text, re.DOTALL | re.MULTILINE)
    found = re.findall(r'"([^"]+)"', "".join(blocks))
    found = [requirement for requirement in found if not re.match(rf"({'|'.join(THERE)})\b", requirement)]
    return [requirement + BOUNDS.get(re.split(r"[<>=]", requirement)[0], "") for requirement in found]


def main() -> None:
    """Gather, and say what to do there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="version there (default: 3.12)")
    arguments = parser.parse_args()
    requirements = needed()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(arguments.folder)]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", arguments.python]
    for each in PLATFORMS:
        command += ["--platform", each]
    if subprocess.run([*command, *requirements], check=False).returncode != 0:
        parser.exit(1, "pip could not gather them; what it said is above\n")
    wheels = sorted(arguments.folder.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    print(f"{len(wheels)} wheels, {size:.0f} MiB, in {arguments.folder}. On that machine, in the repository's root:\n")
    folder = shlex.quote(arguments.folder.name)
    print(f"    python -m pip install --no-index --find-links {folder} {shlex.join(requirements)}")
    print("    PYTHONPATH=.typing python benchmarks/gpu_report.py")


if __name__ == "__main__":
    main()
