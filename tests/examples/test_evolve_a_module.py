"""The example of evolving a module that has no gradient."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

PATH = Path(__file__).parents[2] / "examples" / "evolve_a_module.py"


def test_it_answers_exclusive_or() -> None:
    spec = importlib.util.spec_from_file_location("evolve_a_module", PATH)
    assert spec and spec.loader
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    rows = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    assert (example.main()(rows.unsqueeze(0)).flatten() > 0).tolist() == [False, True, True, False]
