"""The example of a task of one's own: what is asked and answered, its options, and an NTM that learns it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from papertape.core.component import build, options_of
from papertape.core.env import Env
from papertape.core.registry import import_modules, lookup

EXAMPLES = Path(__file__).parents[2] / "examples"
VALUES = yaml.safe_load((EXAMPLES / "own_task.yaml").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _imported(outsiders: None) -> None:
    import_modules([str(EXAMPLES / "own_task.py")])


def made(**options: Any) -> Env:
    return lookup("env", "n-back")(**options)


@pytest.mark.parametrize("back", [1, 4])
def test_each_word_is_answered_by_the_one_some_steps_before(back: int) -> None:
    env = made(width=3, back=back, length=9, test_lengths=[])
    env.check()
    inputs, targets, mask = env.sample(20, torch.Generator().manual_seed(back))
    assert inputs.shape == targets.shape == (9, 20, 3) and mask.shape == (9, 20)
    assert set(inputs.flatten().tolist()) == {0.0, 1.0}
    for t in range(9):
        assert (mask[t] == float(t >= back)).all()
        if t >= back:
            assert torch.equal(targets[t], inputs[t - back])


def test_it_is_chosen_by_its_options_as_any_other() -> None:
    env = build(options_of(lookup("env", "n-back")).model_validate({**VALUES["env"], "length": 10}))
    assert list(env.sets("test")) == ["length 10", "length 40", "length 80"]
    assert env.sets("test")["length 40"].sample(2, torch.Generator()).inputs.shape == (40, 2, 4)
    with pytest.raises(ValueError, match="^width: got 0; allowed: greater than or equal to 1"):
        made(width=0)
    with pytest.raises(ValueError, match=r"^back: got 6; allowed is less than the shortest length \(5\)"):
        made(back=6, test_lengths=[5])


def test_an_ntm_learns_it() -> None:
    torch.manual_seed(0)
    env = made(length=10, test_lengths=[])
    model = options_of(lookup("circuit", VALUES["circuit"]["type"]))
    circuit = build(model.model_validate(VALUES["circuit"]), env.input_size, env.output_size)
    optimiser = torch.optim.Adam(circuit.parameters(), lr=0.01)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(60):
        batch = env.sample(8, generator)
        loss = env.loss(circuit(batch.inputs)[0], batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
