"""The delta rule: against loops over numbers, in chunks against step by step, and its gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from papertape import MemoryCircuit
from papertape.core.accessors import Accessor, DeltaAccessor, DeltaState
from papertape.core.accessors.delta import chunked, unit_inverse

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "decay": {"decay": True},
    "products": {"num_rules": 3, "negative_eigenvalues": True},
    "all": {"decay": True, "num_rules": 2, "negative_eigenvalues": True},
}
each = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


def made(dtype: torch.dtype = torch.float64, **options: Any) -> DeltaAccessor:
    torch.manual_seed(0)
    sizes = {"num_heads": 2, "key_size": 5, "value_size": 3, "chunk_size": 8}
    return DeltaAccessor(6, **{**sizes, **options}).to(dtype)  # type: ignore[no-any-return]


def start(accessor: DeltaAccessor, batch_size: int = 2) -> DeltaState:
    return DeltaState(torch.randn_like(accessor.initial_state(batch_size).memory))


@each
def test_a_step_is_the_delta_rule(options: dict[str, Any]) -> None:
    """Against loops over rows, heads, rules and elements."""
    accessor = made(**options)
    state = start(accessor)
    hidden = torch.randn(2, 6, dtype=torch.float64)
    reads, after, heads = accessor(hidden, state)
    rules = accessor.num_rules
    parts = accessor.interface.parts(hidden @ accessor.interface.linear.weight.T + accessor.interface.linear.bias)

    def unit(vector: Tensor) -> list[float]:
        return (vector / vector.square().sum().sqrt()).tolist()  # type: ignore[no-any-return]

    for row in range(2):
        for head in range(2):
            table = state.memory[row, head].tolist()
            if accessor.decay:
                rate = accessor.log_rates[head].exp() * torch.log1p(parts["decay"][row, head].exp())
                table = [[torch.exp(-rate).item() * number for number in line] for line in table]
            for rule in range(rules):
                place = rule * 2 + head
                key = unit(parts["keys"][row, 5 * place : 5 * place + 5])
                value = parts["values"][row, 3 * place : 3 * place + 3].tolist()
                gate = (2 if accessor.negative_eigenvalues else 1) / (
                    1 + torch.exp(-parts["write_gates"][row, place]).item()
                )
                for element in range(3):
                    found = sum(key[i] * table[i][element] for i in range(5))
                    for i in range(5):
                        table[i][element] += gate * key[i] * (value[element] - found)
            query = unit(parts["queries"][row, 5 * head : 5 * head + 5])
            expected = [sum(query[i] * table[i][element] for i in range(5)) for element in range(3)]
            assert reads[row, head].tolist() == pytest.approx(expected, abs=1e-12)
            assert after.memory[row, head].tolist() == [pytest.approx(line, abs=1e-12) for line in table]
    assert (heads.log_decay is None) == (not accessor.decay)


@each
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("steps", [1, 8, 21])
def test_chunks_give_what_steps_give(options: dict[str, Any], steps: int, dtype: torch.dtype, close: float) -> None:
    accessor = made(dtype, **options)
    hidden, state = torch.randn(steps, 2, 6, dtype=dtype), start(accessor)
    results = []
    for run in (Accessor.run, DeltaAccessor.run):
        given = hidden.clone().requires_grad_()
        reads, after = run(accessor, given, state)
        accessor.zero_grad()
        (reads.square().sum() + after.memory.sum()).backward()
        assert given.grad is not None
        results.append([reads, after.memory, given.grad, *(part.grad for part in accessor.parameters())])
    for expected, found in zip(*results, strict=True):
        assert (expected - found).detach().abs().max() <= close * max(1, float(expected.detach().abs().max()))


def test_chunks_are_as_exact_where_a_key_is_turned_around_at_every_step() -> None:
    """All keys alike and gates of 2: what is under the key changes its sign, and no rule may be lost in rounding."""
    accessor = made(torch.float32, negative_eigenvalues=True, chunk_size=64)
    with torch.no_grad():
        accessor.interface.linear.weight.zero_()
        accessor.interface.parts(accessor.interface.linear.bias)["values"].zero_()
        accessor.interface.parts(accessor.interface.linear.bias)["write_gates"].fill_(40)
    hidden, state = torch.randn(201, 2, 6), start(accessor)
    (stepped, one), (found, other) = (run(accessor, hidden, state) for run in (Accessor.run, DeltaAccessor.run))
    # 201 steps in float32 are no nearer to the truth themselves.
    torch.testing.assert_close(found, stepped, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(other.memory, one.memory, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(found[:-2], found[2:], atol=2e-4, rtol=2e-4)  # turned around twice


def test_a_memory_that_is_forgotten_at_once_stays_finite() -> None:
    accessor = made(torch.float32, decay=True)
    with torch.no_grad():
        accessor.log_rates.fill_(8)
    hidden = torch.randn(20, 2, 6, requires_grad=True)
    reads, state = accessor.run(hidden, start(accessor))
    reads.sum().backward()
    assert reads.isfinite().all() and state.memory.isfinite().all()
    assert hidden.grad is not None and hidden.grad.isfinite().all()
    torch.testing.assert_close(reads, Accessor.run(accessor, hidden, start(accessor))[0])


@pytest.mark.parametrize("decay", [1e2, 1e4, 1e6, math.inf])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_small_decays_after_a_large_one_in_a_chunk_count(decay: float, dtype: torch.dtype, close: float) -> None:
    torch.manual_seed(0)
    keys, queries = (functional.normalize(torch.randn(1, 1, 8, 4, dtype=torch.float64), dim=-1) for _ in range(2))
    values, gates = torch.randn(1, 1, 8, 3, dtype=torch.float64), torch.rand(1, 1, 8, 1, dtype=torch.float64)
    log_decay = -0.01 * torch.rand(1, 1, 8, 1, dtype=torch.float64)
    log_decay[..., 2, :] = -decay
    memory = torch.randn(1, 4, 3, dtype=torch.float64)
    exact, given = (
        [part.to(kind, copy=True).requires_grad_() for part in (keys, values, gates, queries, log_decay, memory)]
        for kind in (torch.float64, dtype)
    )
    reads, table = [], exact[-1][0]
    for key, value, gate, query, logarithm in zip(*(part[0, 0] for part in exact[:-1]), strict=True):
        table = logarithm.exp() * table
        table = table + key[:, None] * gate * (value - key @ table)
        reads.append(query @ table)
    expected, found = (torch.stack(reads)[None, None], table[None]), chunked(*given)
    for words, last in (expected, found):
        (words.square().sum() + last.square().sum()).backward()
    results = ((*expected, *(part.grad for part in exact)), (*found, *(part.grad for part in given)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other.double(), one, atol=close, rtol=close)


@pytest.mark.parametrize("log_rate", [80.0, 89.0, 1e4])
def test_rates_beyond_what_the_type_holds_stay_finite(log_rate: float) -> None:
    """Steps that they are multiplied by may be 0, or keep nothing."""
    accessor = made(torch.float32, decay=True)
    with torch.no_grad():
        accessor.log_rates.fill_(log_rate)
        accessor.interface.parts(accessor.interface.linear.bias)["decay"].copy_(torch.tensor([-300.0, 3.0]))
    hidden = torch.randn(11, 2, 6)
    for run in (Accessor.run, DeltaAccessor.run):
        given = hidden.clone().requires_grad_()
        reads, after = run(accessor, given, state := start(accessor))
        accessor.zero_grad()
        (reads.square().sum() + after.memory.square().sum()).backward()
        assert all(part.isfinite().all() for part in (reads, after.memory))
        assert all(part.grad is not None and part.grad.isfinite().all() for part in (given, *accessor.parameters()))
    kept = accessor.observed(accessor.heads(hidden), state)["kept"]
    assert (kept[..., 0] == 1).all() and (kept[..., 1] == 0).all()


@each
def test_gradients_of_chunks(options: dict[str, Any]) -> None:
    accessor = made(chunk_size=4, **options)
    names, parameters = zip(*accessor.named_parameters(), strict=True)
    hidden, state = torch.randn(6, 2, 6, dtype=torch.float64, requires_grad=True), start(accessor)

    class Run(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.accessor = accessor

        def forward(self, hidden: Tensor, memory: Tensor) -> Any:
            reads, after = self.accessor.run(hidden, DeltaState(memory))
            return reads, after.memory

    def run(hidden: Tensor, memory: Tensor, *given: Tensor) -> Any:
        named = {f"accessor.{name}": part for name, part in zip(names, given, strict=True)}
        return torch.func.functional_call(Run(), named, (hidden, memory))

    own = [part.detach().clone().requires_grad_() for part in parameters]
    arguments = (hidden, state.memory.clone().requires_grad_(), *own)
    assert torch.autograd.gradcheck(run, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, arguments, fast_mode=True)


@pytest.mark.parametrize("size", [1, 2, 5, 16, 33])
def test_the_inverse(size: int) -> None:
    torch.manual_seed(0)
    below = torch.randn(3, 2, size, size, dtype=torch.float64).tril(-1).requires_grad_()
    identity = torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(unit_inverse(below) @ (identity + below), identity.expand_as(below))
    if size <= 5:
        assert torch.autograd.gradcheck(unit_inverse, (below,), check_forward_ad=True)
    mapped = torch.func.vmap(unit_inverse)(below)
    torch.testing.assert_close(mapped, unit_inverse(below))


def test_one_rule_that_reflects_counts_parity_without_error() -> None:
    """What eigenvalues in [0, 1] cannot (Grazzi et al. 2025): the memory's sign is the parity of the ones so far."""
    accessor = DeltaAccessor(1, num_heads=1, key_size=2, value_size=1, negative_eigenvalues=True).double()
    with torch.no_grad():
        linear = accessor.interface.linear
        linear.weight.zero_()
        linear.bias.zero_()
        bias, weight = (accessor.interface.parts(part) for part in (linear.bias, linear.weight.T))
        bias["keys"][0] = bias["queries"][0] = 1
        weight["write_gates"].fill_(80)
        bias["write_gates"].fill_(-40)
    bits = torch.randint(0, 2, (300, 3, 1)).double()
    memory = torch.zeros(3, 1, 2, 1, dtype=torch.float64)
    memory[:, :, 0] = 1
    reads, _ = accessor.run(bits, DeltaState(memory))
    torch.testing.assert_close(reads[..., 0], 1 - 2 * (bits.cumsum(0) % 2))


@each
def test_a_circuit_runs_it_whole_and_by_steps(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    accessor = {"type": "delta", "num_heads": 2, "key_size": 4, "value_size": 3, "chunk_size": 4, **options}
    circuit = MemoryCircuit(
        3, 2, controller={"type": "convolution", "hidden_size": 5}, accessor=accessor, read_feedback=False
    )
    inputs = torch.randn(11, 2, 3)
    outputs, last = circuit(inputs)
    state, steps = circuit.initial_state(2), []
    for x in inputs:
        y, state = circuit.step(x, state)
        steps.append(y)
    torch.testing.assert_close(outputs, torch.stack(steps), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(last.accessor.memory, state.accessor.memory, atol=1e-5, rtol=1e-5)
    first, middle = circuit(inputs[:5])
    torch.testing.assert_close(torch.cat([first, circuit(inputs[5:], middle)[0]]), outputs, atol=1e-5, rtol=1e-5)
    trace = circuit(inputs, trace=True)[2]
    assert trace.memory.shape == (11, 2, 2, 4, 3) and ("kept" in trace) == ("decay" in options)
    stacks = {name: torch.stack([part.detach(), 2 * part.detach()]) for name, part in circuit.named_parameters()}
    torch.testing.assert_close(circuit.run_population(stacks, inputs)[:, 0], outputs.detach(), atol=1e-5, rtol=1e-5)
