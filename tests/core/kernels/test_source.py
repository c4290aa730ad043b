"""The native library's source, as the compiler sees it."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from papertape.core.kernels.native import library
from papertape.core.kernels.native.identity import SOURCE

SETS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq"],
}
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"]


@pytest.mark.slow
@pytest.mark.parametrize(("instructions", "thorough"), [("baseline", False), ("avx2", True), ("avx512", False)])
def test_it_compiles_without_warnings(instructions: str, thorough: bool, tmp_path: Path) -> None:
    """With one instruction set to the end, which takes most of a minute; with the others, what the source says."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    if SETS[instructions] and platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("this processor has other instructions")
    command = [compiler, "-std=c++17", '-DBUILD_IDENTITY="test"', *WARNINGS, *SETS[instructions]]
    made = ["-O3", "-fPIC", "-c", "-o", str(tmp_path / "library.o")] if thorough else ["-fsyntax-only"]
    done = subprocess.run([*command, *made, str(SOURCE / "library.cpp")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_every_variant_is_tried() -> None:
    assert [f"_{name}" for name in SETS] == list(library.VARIANTS)
