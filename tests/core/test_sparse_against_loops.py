"""Steps of sparse access against plain loops, where most of the slots and links are left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sparse_loops import SparseLoops
from torch import Tensor

from papertape.core import sparse_addressing
from papertape.core.accessors import SparseAccessor
from papertape.core.kernels.native import library
from papertape.core.kernels.native.nearest import nearest
from papertape.core.sparse_memory import SparseLinks, SparseState

HIDDEN, BATCH, STEPS, WIDTH = 6, 2, 20, 4
VARIATIONS: dict[str, dict[str, Any]] = {
    "sam": {"slots_per_read": 2},
    "sam many heads": {"slots_per_read": 3, "num_reads": 3, "num_writes": 2},
    "sam masked": {"slots_per_read": 2, "masked_content": True},
    "sdnc": {"slots_per_read": 3, "links_per_slot": 2},
    "sdnc one link": {"slots_per_read": 2, "links_per_slot": 1, "num_reads": 1},
    "sdnc more links than slots read": {"slots_per_read": 1, "links_per_slot": 4},
    "sdnc masked": {"slots_per_read": 3, "links_per_slot": 3, "masked_content": True},
    "sdnc all": {"slots_per_read": 9, "links_per_slot": 9},
}


def links_of(links: SparseLinks, row: int, slots: int) -> np.ndarray:
    """The link matrix: an entry counts where the row lists its column and the column its row."""
    full = np.zeros((slots, slots))
    for i in range(slots):
        for j, value in zip(links.slots[row, i].tolist(), links.values[row, i].tolist(), strict=True):
            if j >= 0 and i in links.followers[row, j].tolist():
                full[i, j] = value
    return full


@pytest.mark.parametrize("way", ["steps", "in place", "native"])
@pytest.mark.parametrize("name", VARIATIONS)
def test_every_step_equals_the_loops(name: str, way: str) -> None:
    options = {"num_reads": 2, "num_writes": 1, "slots_per_read": 4, **VARIATIONS[name]}
    slots = 9
    if way == "native" and (options.get("masked_content") or isinstance(library.load(), str)):
        pytest.skip("the library has no masks, or is not built")
    torch.manual_seed(len(name))
    accessor = SparseAccessor(HIDDEN, memory_size=slots, word_size=WIDTH, **options).double()
    with torch.no_grad():
        for parameter in accessor.parameters():
            parameter.mul_(4)
        hidden = torch.randn(STEPS, BATCH, HIDDEN, dtype=torch.float64)
        state: Any = accessor.initial_state(BATCH)
        if way != "steps":
            state = accessor.begin(state, STEPS, nearest if way == "native" else None)
        read: list[Tensor] = []
        written: list[Tensor] = []
        for x in hidden:
            words, state, _ = accessor(x, state)
            read.append(words)
            written.append(sparse_addressing.dense(state.write_slots.unsqueeze(1), state.write_weights, slots))
        last: SparseState = accessor.end(state)
    linear = accessor.interface.linear
    near = {"rtol": 1e-9, "atol": 1e-11}
    left_out = 0
    for row in range(BATCH):
        loops = SparseLoops(
            linear.weight.detach().numpy(),
            linear.bias.detach().numpy(),
            slots,
            WIDTH,
            accessor.num_reads,
            accessor.num_writes,
            min(accessor.slots_per_read, slots),
            min(accessor.links_per_slot, slots),
            accessor.masked_content,
        )
        for step in range(STEPS):
            np.testing.assert_allclose(read[step][row], loops.step(hidden[step, row].numpy()), **near)
            np.testing.assert_allclose(written[step][row], loops.write_weights, **near)
        np.testing.assert_allclose(last.memory[row], loops.memory, **near)
        found = sparse_addressing.dense(last.read_slots, last.read_weights, slots)[row]
        np.testing.assert_allclose(found, loops.read_weights, **near)
        assert last.last_access[row].tolist() == loops.last_access
        if isinstance(last.links, SparseLinks):
            np.testing.assert_allclose(links_of(last.links, row, slots), loops.link, **near)
            precedence = sparse_addressing.dense(last.links.precedence_slots, last.links.precedence, slots)[row]
            np.testing.assert_allclose(precedence, loops.precedence, **near)
            left_out += int((loops.link == 0).sum()) - slots
    assert left_out > 0 or accessor.links_per_slot in (0, 9), "a link matrix of which nothing is left out shows nothing"
