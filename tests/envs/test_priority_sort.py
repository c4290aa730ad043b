"""Priority sort, decoded sequence by sequence."""

from __future__ import annotations

import pytest
import torch

from papertape.envs import PrioritySortEnv


@pytest.mark.parametrize("lengths", ["batch", "sequence"])
def test_every_sequence_is_answered_in_order_of_priority(lengths: str) -> None:
    env = PrioritySortEnv(width=6, min_items=3, max_items=9, highest=5, lengths=lengths)
    assert (env.input_size, env.output_size) == (8, 6)
    inputs, targets, mask = env.sample(40, torch.Generator().manual_seed(1))
    seen = set()
    for b in range(40):
        items = int(inputs[:, b, 7].nonzero())
        seen.add(items)
        assert 3 <= items <= 9
        assert (inputs[items:, b, :7] == 0).all()
        order = sorted(range(items), key=lambda item: -float(inputs[item, b, 6]))
        answer = torch.zeros_like(targets[:, b])
        for place, item in enumerate(order[:5]):
            answer[items + 1 + place] = inputs[item, b, :6]
        assert torch.equal(targets[:, b], answer)
        assert mask[:, b].nonzero().flatten().tolist() == list(range(items + 1, items + 1 + min(items, 5)))
    assert inputs.shape[0] == max(seen) + 1 + min(max(seen), 5)
    assert (len(seen) == 1) == (lengths == "batch")


def test_defaults_are_the_paper_s() -> None:
    env = PrioritySortEnv()
    inputs, _, mask = env.sample(300, torch.Generator().manual_seed(0))
    assert inputs.shape == (37, 300, 10)
    assert (mask.sum(0) == 16).all()
    priority = inputs[:20, :, 8]
    assert -1 <= float(priority.min()) < -0.99 and 0.99 < float(priority.max()) <= 1
    assert abs(float(priority.mean())) < 0.03
