"""Every Triton kernel compiles for GPUs, which needs none."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import papertape

KERNELS = {
    *("content_forward", "content_backward", "location_forward", "location_backward"),
    *("memory_forward", "memory_backward", "allocation_forward", "allocation_backward", "usage_backward"),
    *("links_forward", "links_backward", "links_again"),
    *("static_forward", "static_backward", "dynamic_forward", "dynamic_backward"),
}


SHARED = 48 * 1024
"""Bytes of shared memory that every GPU gives a program."""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_every_kernel_compiles(tmp_path: Path) -> None:
    script = Path(__file__).with_name("compile_triton.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, script, "80"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, *_ in lines} == KERNELS
    assert max(int(shared) for *_, shared in lines) <= SHARED


def test_kernels_read_every_constant_that_they_take() -> None:
    """Each value of a constant is another kernel to compile."""
    found = set()
    for file in (Path(papertape.__file__).parent / "core" / "kernels" / "triton").glob("*.py"):
        for function in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(function, ast.FunctionDef) and "jit" in "".join(map(ast.unparse, function.decorator_list)):
                read = {node.id for part in function.body for node in ast.walk(part) if isinstance(node, ast.Name)}
                assert not {argument.arg for argument in function.args.args} - read, function.name
                found.add(function.name)
    assert found >= KERNELS
