import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from papertape.agents.genome import Layout
from papertape.core.members import Mirrored, call_with, dense, linear

SHAPES = {"weight": (4, 6), "bias": (4,), "scale": (), "cube": (2, 3, 2)}


def mirrored(pairs, rank, rows=4, columns=6):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    if rank is None:
        weight = Mirrored(normal(rows, columns), normal(pairs, rows, columns))
    else:
        weight = Mirrored(normal(rows, columns), left=normal(pairs, rows, rank), right=normal(pairs, columns, rank))
    return weight, Mirrored(normal(rows), normal(pairs, rows))


@pytest.mark.parametrize("rank", [None, 1, 3])
def test_members_are_the_centre_plus_and_minus_the_noise_in_turn(rank):
    weight, bias = mirrored(3, rank)
    for stack in (weight, bias):
        members = dense(stack)
        assert len(stack) == len(members) == 6
        for pair, noise in enumerate(stack.whole_noise()):
            torch.testing.assert_close(members[2 * pair], stack.center + noise)
            torch.testing.assert_close(members[2 * pair + 1], stack.center - noise)


@pytest.mark.parametrize("rank", [None, 2])
def test_a_slice_of_members(rank):
    weight, _ = mirrored(4, rank)
    assert torch.equal(dense(weight[slice(2, 6)]), dense(weight)[2:6])


@pytest.mark.parametrize("rank", ["dense", None, 1, 3])
@pytest.mark.parametrize("shared", [True, False])
def test_linear_against_a_loop_over_members(rank, shared):
    weight, bias = mirrored(3, None if rank == "dense" else rank)
    if rank == "dense":
        weight, bias = dense(weight), dense(bias)
    x = torch.randn(5, 6, dtype=torch.float64) if shared else torch.randn(6, 5, 6, dtype=torch.float64)
    kept = x.clone()
    found = linear(x, weight, bias)
    for member in range(6):
        expected = nn.functional.linear(x if shared else x[member], dense(weight)[member], dense(bias)[member])
        torch.testing.assert_close(found[member], expected)
        without = nn.functional.linear(x if shared else x[member], dense(weight)[member])
        torch.testing.assert_close(linear(x, weight, None)[member], without)
    assert torch.equal(x, kept)


def test_layout_splits_and_joins():
    layout = Layout(SHAPES)
    assert layout.size == 24 + 4 + 1 + 12
    genomes = torch.randn(5, layout.size)
    parts = layout.split(genomes)
    assert {name: tuple(part.shape) for name, part in parts.items()} == {n: (5, *s) for n, s in SHAPES.items()}
    assert torch.equal(layout.join(parts), genomes)
    assert torch.equal(layout.split(genomes[2])["cube"], parts["cube"][2])
    parts["bias"].zero_()
    assert not genomes[:, 24:28].any(), "parts are views of the genomes"


def test_layout_reads_and_writes_a_module():
    source, target = nn.GRUCell(3, 4), nn.GRUCell(3, 4)
    layout = Layout.of(source)
    genome = layout.read(source)
    layout.write(genome, target)
    for one, other in zip(source.parameters(), target.parameters(), strict=True):
        assert torch.equal(one, other)
    genome.zero_()
    assert source.weight_hh.any(), "the genome is a copy"


def test_a_module_without_parameters_is_refused():
    with pytest.raises(ValueError, match="parameters: the circuit has none"):
        Layout.of(nn.Tanh())


def test_a_module_called_with_other_tensors_is_itself_again():
    shared, tied = nn.Linear(2, 2), nn.Linear(2, 2)
    tied.weight = shared.weight
    shared.register_buffer("offset", torch.zeros(2))
    module = nn.ModuleDict({"one": shared, "other": shared, "tied": tied})
    before = {name: id(part) for name, part in module.state_dict(keep_vars=True).items()}

    class Parts(nn.Module):
        def forward(self, parts=None):
            return dict(self.module.state_dict(keep_vars=True)) | (parts or {})

    call = Parts()
    call.module = module
    for name in ("one.weight", "other.weight", "tied.weight"):
        given = {f"module.{name}": torch.ones(2, 2), "module.other.offset": torch.full((2,), 3.0)}
        seen = call_with(call, given, ({"more": 1},))
        assert all(seen[tied] is given[f"module.{name}"] for tied in ("one.weight", "other.weight", "tied.weight"))
        assert seen["one.offset"] is seen["other.offset"] is given["module.other.offset"]
        assert seen["tied.bias"] is tied.bias and seen["more"] == 1
        assert {name: id(part) for name, part in module.state_dict(keep_vars=True).items()} == before
    both = {"module.one.weight": torch.ones(2, 2), "module.tied.weight": torch.zeros(2, 2)}
    seen = call_with(call, both)
    assert seen["one.weight"] is both["module.one.weight"], "what is tied may be apart for one call"
    assert seen["tied.weight"] is both["module.tied.weight"]


def test_threads_that_give_one_module_other_tensors_take_turns():
    module, turns = nn.Linear(1, 1), threading.Barrier(2)

    def call(value):
        turns.wait()
        return call_with(Slow(module), {"inner.weight": torch.full((1, 1), value)}, (torch.ones(1, 1),))

    class Slow(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            before = self.inner.weight.item()
            time.sleep(0.02)
            return before, self.inner.weight.item()

    own = module.weight
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(call, [1.0, 2.0])) == [(1.0, 1.0), (2.0, 2.0)]
    assert module.weight is own
