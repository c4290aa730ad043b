"""The delta rule in C++: against one step after another, forward and backward, and when it is chosen."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from papertape import MemoryCircuit
from papertape.core.accessors import Accessor, DeltaAccessor, DeltaState
from papertape.core.kernels.native import library
from papertape.core.kernels.native.delta import KEPT_EVERY, delta_rule

pytestmark = pytest.mark.skipif(isinstance(library.load(), str), reason="the native library is not built")

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "decay": {"decay": True},
    "products": {"num_rules": 3, "negative_eigenvalues": True},
    "all": {"decay": True, "num_rules": 2, "negative_eigenvalues": True},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("sizes", [(5, 3, 2 * KEPT_EVERY + 5), (32, 32, KEPT_EVERY), (17, 40, 1)], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_it_gives_what_steps_give(
    options: dict[str, Any], dtype: torch.dtype, close: float, sizes: tuple[int, int, int], threads: int
) -> None:
    torch.manual_seed(0)
    key, value, steps = sizes
    accessor = DeltaAccessor(6, num_heads=2, key_size=key, value_size=value, **options).to(dtype)
    hidden, first = torch.randn(steps, 3, 6, dtype=dtype), torch.randn(3, 2, key, value, dtype=dtype)
    results = []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    for native in (False, True):
        given, memory = hidden.clone().requires_grad_(), first.clone().requires_grad_()
        accessor.zero_grad()
        if native:
            reads, last = accessor.run(given, accessor.begin(DeltaState(memory), steps, delta_rule))
        else:
            reads, last = Accessor.run(accessor, given, DeltaState(memory))
        weights = torch.arange(reads.numel(), dtype=dtype).view_as(reads).cos()
        ((reads * weights).sum() + last.memory.square().sum()).backward()
        gradients = [given.grad, memory.grad, *(part.grad for part in accessor.parameters())]
        results.append([reads, last.memory, *gradients])
    torch.set_num_threads(before)
    for expected, found in zip(*results, strict=True):
        assert expected is not None and found is not None
        assert (expected - found).detach().abs().max() <= close * max(1, float(expected.detach().abs().max()))


def test_a_key_of_zeros_finds_and_changes_nothing() -> None:
    accessor = DeltaAccessor(3, num_heads=1, key_size=4, value_size=2).double()
    with torch.no_grad():
        accessor.interface.linear.weight.zero_()
        accessor.interface.parts(accessor.interface.linear.bias)["keys"].zero_()
    hidden, state = torch.randn(5, 1, 3, dtype=torch.float64), DeltaState(torch.randn(1, 1, 4, 2, dtype=torch.float64))
    expected, found = Accessor.run(accessor, hidden, state), accessor.run(hidden, accessor.begin(state, 5, delta_rule))
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1].memory, state.memory)


@pytest.mark.parametrize("feedback", [False, True])
def test_auto_takes_it_where_no_word_read_is_fed_back(feedback: bool) -> None:
    torch.manual_seed(0)
    circuit = MemoryCircuit(
        3, 2, controller={"type": "convolution", "hidden_size": 5}, accessor="delta", read_feedback=feedback
    )
    inputs = torch.randn(7, 2, 3)
    found = circuit(inputs)[0]
    assert circuit.chosen_backend == ("eager" if feedback else "native")
    circuit.backend = "eager"
    torch.testing.assert_close(found, circuit(inputs)[0], atol=1e-5, rtol=1e-5)


KEYS = """
import itertools, torch, papertape

for key, (dtype, close) in itertools.product(range(1, 10), [(torch.float32, 1e-4), (torch.float64, 1e-10)]):
    made = []
    for backend in ("native", "eager"):
        torch.manual_seed(key)
        accessor = {"type": "delta", "key_size": key, "value_size": 3, "num_heads": 2, "num_rules": 2}
        circuit = papertape.MemoryCircuit(3, 2, hidden_size=4, accessor=accessor, read_feedback=False, backend=backend)
        outputs, _ = circuit.to(dtype)(torch.rand(20, 3, 3, dtype=dtype))
        outputs.square().sum().backward()
        made.append([outputs, *(parameter.grad for parameter in circuit.parameters())])
    torch.testing.assert_close(*made, atol=close, rtol=close)
"""


@pytest.mark.parametrize("name", library.INSTRUCTION_SETS)
def test_keys_of_any_length_stay_within_their_memory(name: str) -> None:
    """In a process of its own, which ends where it writes what is not its own; a vector may hold two numbers alone."""
    if isinstance(library.load_variant(name), str):
        pytest.skip(f"there is no {name} here")
    own = {**os.environ, library.FORCED: name, "MALLOC_CHECK_": "3"}
    done = subprocess.run([sys.executable, "-c", KEYS], env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
