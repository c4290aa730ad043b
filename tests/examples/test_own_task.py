"""The example of a task of one's own: against a plain list, and through a circuit."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from papertape.core.component import build, options_of
from papertape.core.env import Env
from papertape.core.registry import import_modules, lookup

ROOT = Path(__file__).parents[2]
VALUES = yaml.safe_load((ROOT / "examples" / "own_task.yaml").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _imported_from_the_folder_above(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    import_modules(VALUES["imports"])


def made(**options: Any) -> Env:
    return lookup("env", "brackets")(**options)


@pytest.mark.parametrize("kinds", [1, 3])
def test_against_a_list(kinds: int) -> None:
    env = made(kinds=kinds, length=30)
    env.check()
    inputs, targets, mask = env.sample(20, torch.Generator().manual_seed(kinds))
    assert inputs.shape == (30, 20, kinds + 1) and targets.shape == (30, 20, kinds) and (mask == 1).all()
    assert (inputs.sum(-1) == 1).all()
    deepest = 0
    for b in range(20):
        stack: list[int] = []
        for t in range(30):
            seen = int(inputs[t, b].argmax())
            if seen == kinds:
                stack.pop()
            else:
                stack.append(seen)
            deepest = max(deepest, len(stack))
            assert targets[t, b].tolist() == [float(bool(stack) and kind == stack[-1]) for kind in range(kinds)]
    assert deepest > 5


def test_it_is_chosen_by_its_options_as_any_other() -> None:
    env = build(options_of(lookup("env", "brackets")).model_validate(VALUES["env"]))
    assert list(env.sets("test")) == ["length 20", "length 40"]
    assert env.sets("test")["length 40"].sample(2, torch.Generator()).inputs.shape == (40, 2, 3)
    with pytest.raises(ValueError, match="^kinds: got 0; allowed: greater than or equal to 1"):
        made(kinds=0)


def test_a_circuit_gets_better_at_it() -> None:
    torch.manual_seed(0)
    env = made(length=5)
    model = options_of(lookup("circuit", VALUES["circuit"]["type"]))
    circuit = build(model.model_validate(VALUES["circuit"]), env.input_size, env.output_size, backend="eager")
    optimiser = torch.optim.Adam(circuit.parameters(), lr=0.01)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(30):
        batch = env.sample(8, generator)
        loss = env.loss(circuit(batch.inputs)[0], batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


def test_it_takes_less_than_40_lines() -> None:
    module = ast.parse((ROOT / "examples" / "own_task.py").read_text(encoding="utf-8"))
    (task,) = (node for node in module.body if isinstance(node, ast.ClassDef))
    assert task.end_lineno - task.decorator_list[0].lineno + 1 < 40  # type: ignore[operator]
