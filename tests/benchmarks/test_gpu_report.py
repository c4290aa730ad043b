"""The report of a GPU: what is written of rows that fail, crash or hang, and the whole script on a CPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import gpu_report  # noqa: E402
import gpu_wheels  # noqa: E402

ROWS = """
import os, sys, time
skip = int(sys.argv[1])

def row(index, seconds, work):
    if index > skip:
        print(f"#row {index} {seconds} row {index}", flush=True)
        work()
        print(f"#text | row {index} | done |\\n#done", flush=True)

def sick():
    print("#text | row 5 | CUDA error |\\n#done", flush=True)
    sys.exit(3)

def crash():
    print("a fault in the driver", flush=True)
    os.abort()

row(1, 60, lambda: print("noise"))
row(2, 60, crash)
row(3, 0.3, lambda: time.sleep(100))
row(4, 60, lambda: None)
row(5, 60, sick)
row(6, 60, lambda: None)
"""


def supervised(code: str, seconds: float = 60) -> list[str]:
    lines: list[str] = []
    gpu_report.supervise(lambda skip: [sys.executable, "-c", code, str(skip)], lines.append, time.monotonic() + seconds)
    return [line.strip() for line in lines]


def test_a_row_costs_no_other_row() -> None:
    assert supervised(ROWS) == [
        "| row 1 | done |",
        "| row 2 | the process ended (-6): a fault in the driver |",
        "| row 3 | it took too long |",
        "| row 4 | done |",
        "| row 5 | CUDA error |",
        "| row 6 | done |",
    ]


def test_a_run_is_cut_off_in_time() -> None:
    start = time.monotonic()
    code = "import time; print('#text | a | b |'); print('#row 1 60 long', flush=True); time.sleep(100)"
    assert supervised(code, 1.5)[-2:] == ["| long | the time was up |", "Cut off here: the time was up."]
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("status", [1, 3])
def test_a_process_that_never_begins_is_not_started_for_ever(status: int) -> None:
    (said,) = supervised(f"print('no module named x'); raise SystemExit({status})")
    assert said.startswith(f"The process ended ({status})") and said.endswith("no module named x")


def test_wheels_are_gathered_of_all_that_is_needed_but_torch() -> None:
    names = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in gpu_wheels.needed()}  # type: ignore[index]
    assert names == {"numpy", "pydantic", "pyyaml", "tqdm", "matplotlib", "pillow", "typing-extensions", "gymnasium"}


@pytest.mark.slow
def test_the_whole_script_runs_on_a_cpu(tmp_path: Path) -> None:
    """Every part has its rows; none fails, and what a CPU cannot do says so."""
    pytest.importorskip("triton")
    out = tmp_path / "report.md"
    command = [sys.executable, str(BENCHMARKS / "gpu_report.py"), "--device", "cpu", "--quick", "--out", str(out)]
    path = os.pathsep.join([str(BENCHMARKS.parent / ".typing"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True, timeout=500
    )
    text = out.read_text(encoding="utf-8")
    assert done.returncode == 0 and done.stdout == text, done.stderr
    titles, *parts = re.split(r"^### (.*)$", text, flags=re.MULTILINE)
    assert "no GPU" in titles and len(parts) == 2 * len(gpu_report.SHARES)
    for title, body in zip(parts[::2], parts[1::2], strict=True):
        rows = [line for line in body.splitlines() if line.startswith("| ") and " --- " not in line][1:]
        assert rows, title
        for row in rows:
            assert not re.search(r"Error|\*\*no\*\*|process ended|took too long|failed", row), row
            assert "not this way" not in row or "| graphs |" in row or "| captured |" in row, row
    assert "2 passed" in text and "| yes |" in text and "left out" not in text
