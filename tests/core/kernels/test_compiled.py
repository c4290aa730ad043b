"""When torch.compile cannot run, and what is said then."""

from __future__ import annotations

import shutil

import pytest
import torch

import papertape


def test_asked_for_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    circuit = papertape.NTM(3, 3, memory_size=4, word_size=3, hidden_size=5, backend="compiled")
    with pytest.raises(RuntimeError, match=r"backend: 'compiled' cannot run .* needs a C\+\+ compiler"):
        circuit(torch.zeros(2, 1, 3))


def test_asked_for_where_the_path_of_torch_has_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__file__", "/home/my projects/torch/__init__.py")
    circuit = papertape.NTM(3, 3, memory_size=4, word_size=3, hidden_size=5, backend="compiled")
    with pytest.raises(RuntimeError, match="'compiled' cannot run .* spaces .*my projects"):
        circuit(torch.zeros(2, 1, 3))
