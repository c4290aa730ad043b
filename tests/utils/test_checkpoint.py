"""Checkpoint files: whole or not at all, checked when read, never running code."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from papertape.utils import checkpoint

STATE = {"weights": torch.arange(6.0).view(2, 3), "step": 7, "name": "x", "nested": {"best": 0.5, "list": [1, 2]}}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "latest.pt"
    checkpoint.save(path, STATE)
    loaded = checkpoint.load(path)
    assert torch.equal(loaded.pop("weights"), STATE["weights"])
    assert loaded == {name: value for name, value in STATE.items() if name != "weights"}
    assert [file.name for file in tmp_path.iterdir()] == ["latest.pt"]


def test_plain_torch_opens_it(tmp_path: Path) -> None:
    path = tmp_path / "latest.pt"
    checkpoint.save(path, STATE)
    for mapped in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mapped)
        assert torch.equal(loaded["weights"], STATE["weights"])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "latest.pt"
    checkpoint.save(path, STATE)
    checkpoint.save(path, {"step": 8})
    assert checkpoint.load(path) == {"step": 8}


@pytest.mark.parametrize("keep", [0, 4, 8, 20, 56, 100, -56, -1])
def test_cut_off(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "latest.pt"
    checkpoint.save(path, STATE)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(checkpoint.CheckpointError, match=r"latest\.pt: is cut off, or not a checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize("position", [2, 60, 300, -60, -10])
def test_one_flipped_bit(tmp_path: Path, position: int) -> None:
    path = tmp_path / "latest.pt"
    checkpoint.save(path, STATE)
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(checkpoint.CheckpointError, match="damaged; its checksum"):
        checkpoint.load(path)


def test_newer_format(tmp_path: Path) -> None:
    path = tmp_path / "latest.pt"
    checkpoint.save(path, STATE)
    content = bytearray(path.read_bytes())
    content[-48] = 99
    path.write_bytes(content)
    with pytest.raises(checkpoint.CheckpointError, match="format version 99"):
        checkpoint.load(path)


def test_missing_and_foreign(tmp_path: Path) -> None:
    with pytest.raises(checkpoint.CheckpointError, match="cannot be read: No such file"):
        checkpoint.load(tmp_path / "none.pt")
    path = tmp_path / "plain.pt"
    torch.save(STATE, path)
    with pytest.raises(checkpoint.CheckpointError, match="not a checkpoint of Papertape"):
        checkpoint.load(path)


class _Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_never_runs_code(tmp_path: Path) -> None:
    """A payload with a valid checksum whose pickle would make a folder."""
    mark, path = tmp_path / "owned", tmp_path / "bad.pt"
    checkpoint.save(path, {"trap": _Malicious(mark)})
    with pytest.raises(checkpoint.CheckpointError, match="cannot be decoded"):
        checkpoint.load(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(_Malicious(mark)))  # the trap does work
    assert mark.exists()


@pytest.mark.parametrize(
    ("levels", "width", "said"), [(100, 1, "more than 50 blocks"), (20, 10, "all values together")]
)
def test_options_of_too_much_are_refused(tmp_path: Path, levels: int, width: int, said: str) -> None:
    path = tmp_path / "best.pt"
    circuit: Any = "lstm"
    for _ in range(levels):
        circuit = {"type": "normalised", "circuit": [circuit] * width}
    checkpoint.save(path, {"options": {"circuit": circuit}, "agent": {"circuit": {}}, "sizes": {}})
    with pytest.raises(checkpoint.CheckpointError, match=f"best.pt: options cannot be read: {said}"):
        checkpoint.load(path)


def test_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "latest.pt"
    checkpoint.save(path, STATE)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, {"step": 8})
    assert checkpoint.load(path)["step"] == 7
    assert [file.name for file in tmp_path.iterdir()] == ["latest.pt"]


WRITER = """
import sys, torch
from pathlib import Path
from papertape.utils import checkpoint
step = 0
while True:
    checkpoint.save(Path(sys.argv[1]), {"step": step, "weights": torch.full((200_000,), float(step))})
    step += 1
    print(step, flush=True)
"""


def test_killed_while_writing(tmp_path: Path) -> None:
    """However the writer dies, the file is one whole checkpoint."""
    path = tmp_path / "latest.pt"
    for pause in (0.001, 0.0035, 0.006, 0.011):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for _ in range(3):
            writer.stdout.readline()
        time.sleep(pause)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        state = checkpoint.load(path)
        assert (state["weights"] == state["step"]).all()
