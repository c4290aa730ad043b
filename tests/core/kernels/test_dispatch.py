"""Choosing a backend: what is logged, what is warned of, and what is refused."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from papertape import NTM, SAM
from papertape.core.kernels import dispatch, native
from papertape.core.kernels.dispatch import BackendError

SIZES = {"hidden_size": 4, "memory_size": 5, "word_size": 3}


@pytest.fixture(autouse=True)
def _never_warned() -> Iterator[None]:
    dispatch._warn_of_slowness.cache_clear()
    yield
    dispatch._warn_of_slowness.cache_clear()


def test_auto_says_why_it_is_not_the_fastest(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    circuit = SAM(2, 2, memory_size=8, word_size=3, hidden_size=4, masked_content=True)
    for _ in range(2):
        circuit(torch.rand(3, 1, 2))
    assert caplog.messages == ["backend: eager (native: it has no masked lookups in a sparse memory)"]
    caplog.clear()
    NTM(2, 2, **SIZES, backend="eager")(torch.rand(3, 1, 2))
    assert caplog.messages == ["backend: eager"]


def test_populations_say_it_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    circuit = NTM(2, 2, **{**SIZES, "hidden_size": None}, controller="direct")
    stacks = {name: parameter.detach()[None] for name, parameter in circuit.named_parameters()}
    circuit.run_population(stacks, torch.rand(3, 1, 2))
    assert caplog.messages == ["backend: eager (native: it has no DirectController)"]


def test_a_library_that_is_not_built_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native.library, "load", lambda: "the native library is not built; build it")
    for _ in range(2):
        NTM(2, 2, **SIZES)(torch.rand(3, 1, 2))
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == ["the native library is not built; build it; until then circuits run on the slower eager backend"]


def test_a_backend_that_cannot_run_is_refused() -> None:
    circuit = NTM(2, 2, **{**SIZES, "hidden_size": None}, controller="direct", backend="native")
    with pytest.raises(BackendError, match="backend: 'native' cannot run this circuit: it has no DirectController"):
        circuit(torch.rand(3, 1, 2))
    stacks = {name: parameter.detach()[None] for name, parameter in circuit.named_parameters()}
    with pytest.raises(BackendError, match="backend: 'native' cannot run a population of this circuit: it has no Dir"):
        circuit.run_population(stacks, torch.rand(3, 1, 2))
