"""Runs the tests of the simulated device in a process of their own: autograd must not have begun before it is known."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_on_a_simulated_device() -> None:
    tests = Path(__file__).with_name("test_simulated_device.py")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "slow", "-p", "no:cacheprovider", str(tests)],
        env=environment | {"PAPERTAPE_SIMULATED": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    if " passed" not in done.stdout:
        pytest.skip(done.stdout[-300:])
