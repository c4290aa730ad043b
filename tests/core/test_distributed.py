"""Sharing out work, as far as one process can tell; tests/test_distributed.py starts several."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from papertape.core import distributed
from papertape.core.distributed import Processes


@given(st.integers(1, 9), st.integers(0, 40))
def test_everything_is_shared_out_once_and_evenly(size: int, count: int) -> None:
    shares = [Processes(rank, size).mine(count) for rank in range(size)]
    assert [item for share in shares for item in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert shares == [Processes(0, size).share_of(rank, count) for rank in range(size)]


def test_a_process_alone_keeps_what_it_has() -> None:
    alone, tensor = Processes(), torch.randn(3, 2, dtype=torch.float64)
    assert alone.first
    assert alone.gather(tensor, [3], tensor.device) is tensor
    assert torch.equal(alone.gather(tensor.float(), [3], tensor.device), tensor.float().double())
    kept = tensor.clone()
    alone.add_up([tensor])
    assert torch.equal(tensor, kept)
    assert alone.any(True) and not alone.any(False)
    assert alone.share(lambda: "computed") == "computed"
    state = alone.share_state(lambda: {"weight": tensor, "step": 3})
    assert torch.equal(state["weight"], tensor) and state["step"] == 3


def test_what_is_gathered_keeps_every_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two processes, this one and another with fewer rows; fitness near 1000 differs in its last digits."""
    own = 1000 + 1e-12 * torch.arange(6, dtype=torch.float64).view(3, 2)
    other = torch.zeros_like(own)
    other[:1] = own[:1] + 1e-11

    def all_gather(received: list[torch.Tensor], sent: torch.Tensor) -> None:
        received[0].copy_(sent)
        received[1].copy_(other)

    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_: None)
    monkeypatch.setattr(torch.distributed, "all_gather", all_gather)
    found = Processes(0, 2).gather(own, [3, 1], own.device)
    assert torch.equal(found, torch.cat([own, other[:1]]))


def test_without_torchrun_there_is_one_process_and_no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    with distributed.join() as processes:
        assert (processes.rank, processes.size, distributed.rank_here()) == (0, 1, 0)
    assert distributed.launch() is None


def test_a_launch_has_the_name_that_was_given_or_that_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job 7")
    assert distributed.launch() == "job 7"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    name = distributed.launch()
    assert name == distributed.launch() and str(os.getppid()) in str(name).split()
