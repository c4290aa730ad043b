"""Associative recall, decoded sequence by sequence."""

from __future__ import annotations

import pytest
import torch

from papertape.envs import AssociativeRecallEnv


@pytest.mark.parametrize("lengths", ["batch", "sequence"])
@pytest.mark.parametrize("size", [1, 3])
def test_every_sequence_asks_for_the_item_after_the_query(size: int, lengths: str) -> None:
    env = AssociativeRecallEnv(words_per_item=size, width=16, lengths=lengths)
    assert (env.input_size, env.output_size) == (18, 16)
    inputs, targets, mask = env.sample(150, torch.Generator().manual_seed(2))
    seen, queries = set(), set()
    for b in range(150):
        starts = inputs[:, b, 16].nonzero().flatten().tolist()
        items = [inputs[start + 1 : start + 1 + size, b, :16] for start in starts]
        count = len(items)
        seen.add(count)
        assert starts == [number * (size + 1) for number in range(count)] and 2 <= count <= 6
        first, last = inputs[:, b, 17].nonzero().flatten().tolist()
        assert (first, last) == (count * (size + 1), count * (size + 1) + size + 1)
        query = [number for number, item in enumerate(items) if torch.equal(item, inputs[first + 1 : last, b, :16])]
        assert len(query) == 1 and query[0] < count - 1
        queries.add(query[0])
        answer = torch.zeros_like(targets[:, b])
        answer[last + 1 : last + 1 + size] = items[query[0] + 1]
        assert torch.equal(targets[:, b], answer)
        assert mask[:, b].nonzero().flatten().tolist() == list(range(last + 1, last + 1 + size))
        words = torch.cat([torch.arange(s + 1, s + 1 + size) for s in [*starts, first]])
        silent = torch.ones(len(inputs), dtype=torch.bool).index_fill(0, words, False)
        assert (inputs[silent, b, :16] == 0).all()
    assert inputs.shape[0] == max(seen) * (size + 1) + 2 * size + 2
    assert queries == set(range(max(seen) - 1))
    assert (len(seen) == 1) == (lengths == "batch")
