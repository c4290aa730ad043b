"""Stack, soft tape, self-referential weights and attention: against loops over numbers in float64; their gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from papertape import MemoryCircuit, TapeRNN
from papertape.core.accessors import (
    AttentionAccessor,
    SelfReferentialAccessor,
    SoftTapeAccessor,
    StackAccessor,
)

ACCESSORS: dict[str, dict[str, Any]] = {
    "stack": {"num_stacks": 2, "memory_size": 4, "word_size": 3},
    "soft-tape": {"num_tapes": 2, "memory_size": 4, "word_size": 3, "write_layers": [5]},
    "srwm": {"num_heads": 2, "word_size": 3},
    "attention": {"num_heads": 2, "key_size": 4, "value_size": 3, "memory_size": 3},
}
each = pytest.mark.parametrize("name", ACCESSORS)


def softmax(numbers: list[float]) -> list[float]:
    powers = [math.exp(number - max(numbers)) for number in numbers]
    return [power / sum(powers) for power in powers]


def linear(layer: Any, vector: Tensor) -> Tensor:
    return vector @ layer.weight.T + layer.bias  # type: ignore[no-any-return]


def seeded(kind: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(6, **options).double()


def sequence(steps: int = 5, rows: int = 2) -> Tensor:
    return torch.randn(steps, rows, 6, dtype=torch.float64)


def close(found: Tensor, expected: Any) -> None:
    torch.testing.assert_close(found.detach(), torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=1e-10)


def test_a_stack_is_pushed_and_popped_by_shares() -> None:
    accessor = seeded(StackAccessor, **ACCESSORS["stack"])
    state = accessor.initial_state(2)
    stacks = [[[[0.0] * 3 for _ in range(4)] for _ in range(2)] for _ in range(2)]
    for hidden in sequence(6):
        reads, state, _ = accessor(hidden, state)
        for row in range(2):
            vector = linear(accessor.interface.linear, hidden[row])
            for stack in range(2):
                value = vector[3 * stack : 3 * stack + 3].tolist()
                push, pop, neither = softmax(vector[6 + 3 * stack : 9 + 3 * stack].tolist())
                old = stacks[row][stack]
                new = []
                for cell in range(4):
                    above = value if cell == 0 else old[cell - 1]
                    below = [0.0] * 3 if cell == 3 else old[cell + 1]
                    new.append([push * above[i] + pop * below[i] + neither * old[cell][i] for i in range(3)])
                stacks[row][stack] = new
        close(state.memory, stacks)
        close(reads, [[stack[0] for stack in row] for row in stacks])


def test_whole_pushes_and_pops_are_those_of_a_stack() -> None:
    """With actions that are certain, against a Python list."""
    accessor = seeded(StackAccessor, num_stacks=1, memory_size=8, word_size=2)
    with torch.no_grad():
        accessor.interface.linear.weight.zero_()
        accessor.interface.linear.bias.zero_()
        accessor.interface.linear.weight.T[:5].copy_(torch.diag(torch.tensor([1.0, 1, 1e3, 1e3, 1e3])))
    state, pile = accessor.initial_state(1), [[0.0, 0.0]] * 8
    for number, action in enumerate([0, 0, 2, 0, 1, 1, 0, 1, 1, 1]):
        hidden = torch.zeros(1, 6, dtype=torch.float64)
        hidden[0, 0], hidden[0, 2 + action] = number + 1.0, 1.0
        reads, state, _ = accessor(hidden, state)
        if action == 0:
            pile.insert(0, [number + 1.0, 0.0])
        elif action == 1:
            pile.pop(0)
        close(reads[0, 0], pile[0])


@pytest.mark.parametrize("given", [None, 2])
@pytest.mark.parametrize("gated", [False, True])
def test_a_soft_tape_writes_moves_and_reads(given: int | None, gated: bool) -> None:
    """Against a loop; the input of the first row ends before step 2, that of the other goes on."""
    accessor = seeded(SoftTapeAccessor, **ACCESSORS["soft-tape"], gated_write=gated)
    state = accessor.initial_state(2, input_length=given)
    tapes = [[[[0.0] * 3 for _ in range(4)] for _ in range(2)] for _ in range(2)]
    for step, hidden in enumerate(sequence(6)):
        if step == 2:
            state = accessor.end_input(state, torch.tensor([True, False]))
        reads, state, _ = accessor(hidden, state)
        for row in range(2):
            words = linear(accessor.layers[1], linear(accessor.layers[0], hidden[row]).clamp(min=0))
            moves = linear(accessor.interface.linear, hidden[row])
            length = given if given is not None else step + 1 if row else min(step + 1, 2)
            for tape in range(2):
                gate = float(torch.sigmoid(moves[10 + tape].detach())) if gated else 1.0
                new = [
                    (1 - gate) * cell + gate * word
                    for cell, word in zip(tapes[row][tape][0], words[3 * tape : 3 * tape + 3].tolist(), strict=True)
                ]
                old = [new, *tapes[row][tape][1:]]
                shares = softmax(moves[5 * tape : 5 * tape + 5].tolist())
                # To the left: the cell before comes under the head.
                starts = [-1, 0, 1, -length, length]
                tapes[row][tape] = [
                    [sum(p * old[(cell + s) % 4][i] for p, s in zip(shares, starts, strict=True)) for i in range(3)]
                    for cell in range(4)
                ]
        close(state.memory, tapes)
        close(reads, [[tape[0] for tape in row] for row in tapes])


@pytest.mark.parametrize("embedding_size", [None, 5])
def test_the_circuit_counts_its_input_up_to_the_end(embedding_size: int | None) -> None:
    """Token 3 stands for a step to think, token 4 for one of the answer."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 5, "memory_size": 6, "word_size": 2, "embedding_size": embedding_size}
    circuit = TapeRNN(5, 2, end_channels=2, **sizes)  # type: ignore[arg-type]
    tokens = torch.tensor([[0, 1, 2, 1, 3, 4, 4], [1, 2, 4, 0, 1, 4, 4]]).T
    _, state, trace = circuit(tokens, trace=True)
    assert state.accessor.input_length.tolist() == [4, 2]
    assert trace.input_length.T.tolist() == [[1, 2, 3, 4, 4, 4, 4], [1, 2, 2, 2, 2, 2, 2]]
    known = circuit.initial_state(2, input_length=4)
    assert circuit(tokens, known)[1].accessor.input_length.tolist() == [4, 4]
    assert TapeRNN(5, 2, **sizes)(tokens)[1].accessor.input_length.tolist() == [5, 2]  # type: ignore[arg-type]
    assert TapeRNN(5, 2, end_channels=0, **sizes)(tokens)[1].accessor.input_length.tolist() == [7, 7]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"end_channels: got 6; allowed is at most input_size \(5\)"):
        TapeRNN(5, 2, end_channels=6)


@pytest.mark.parametrize("first_keys", ["inputs", "drawn"])
@pytest.mark.parametrize("scaling", ["norm", "softmax", "none"])
def test_weights_that_change_themselves(scaling: str, first_keys: str) -> None:
    """Equations 5 to 8, with biases of the rates, against loops; step by step and all steps at once."""
    accessor = seeded(SelfReferentialAccessor, **ACCESSORS["srwm"], input_scaling=scaling, first_keys=first_keys)
    torch.nn.init.normal_(accessor.rate_biases)
    steps, state = sequence(), accessor.initial_state(2)
    _, at_once = accessor.run(steps, state)
    matrices = [[accessor.initial[head].tolist() for head in range(2)] for _ in range(2)]

    def times(matrix: list[list[float]], vector: list[float]) -> list[float]:
        return [sum(weight * x for weight, x in zip(line, vector, strict=True)) for line in matrix]

    for hidden in steps:
        reads, state, _ = accessor(hidden, state)
        for row in range(2):
            for head in range(2):
                x = linear(accessor.interface.linear, hidden[row])[3 * head : 3 * head + 3].tolist()
                matrix = matrices[row][head]
                if scaling == "norm":
                    mean = sum(x) / 3
                    deviation = math.sqrt(sum((number - mean) ** 2 for number in x) / 3 + 1e-5)
                    x = [(number - mean) / deviation for number in x]
                made = times(matrix, softmax(x) if scaling == "softmax" else x)
                query, key = softmax(made[3:6]), softmax(made[6:9])
                biases = accessor.rate_biases[head].tolist()
                rates = [1 / (1 + math.exp(-rate - bias)) for rate, bias in zip(made[9:], biases, strict=True)]
                wanted, found = times(matrix, query), times(matrix, key)
                of_row = [rates[0]] * 3 + [rates[1]] * 3 + [rates[2]] * 3 + [rates[3]] * 4
                matrices[row][head] = [
                    [matrix[i][j] + of_row[i] * (wanted[i] - found[i]) * key[j] for j in range(3)] for i in range(13)
                ]
                close(reads[row, head], made[:3])
        close(state.memory, matrices)
    close(at_once.memory, matrices)


def test_weights_change_where_they_are_read_before_anything_is_learned() -> None:
    """Random keys are nearly alike: they change what is read as little for the same input as for any other."""

    def changes(first_keys: str) -> tuple[float, float]:
        accessor = seeded(SelfReferentialAccessor, num_heads=8, word_size=16, first_keys=first_keys)
        before = accessor.initial_state(32)
        hidden, other = torch.randn(2, 32, 6, dtype=torch.float64)
        _, after, _ = accessor(hidden, before)

        def change(asked: torch.Tensor) -> float:
            now, then = accessor(asked, after)[0], accessor(asked, before)[0]
            return float((now - then).norm() / then.norm())

        with torch.no_grad():
            return change(hidden), change(other)

    there, elsewhere = changes("inputs")
    assert there > 0.12
    assert there > 1.5 * elsewhere
    assert max(changes("drawn")) < 0.03


@pytest.mark.parametrize("pieces", [[1, 1, 5], [2, 3, 2], [7], [4, 3]])
@pytest.mark.parametrize("size", [3, 5, 20])
def test_attention_from_places_that_are_in_use_is_that_from_all(size: int, pieces: list[int]) -> None:
    """Rows have seen different numbers of steps; step by step all places are looked at."""
    accessor = seeded(AttentionAccessor, num_heads=2, key_size=4, value_size=3, memory_size=size)
    hidden = sequence(7, rows=3)
    fresh, ahead = accessor.initial_state(3), accessor.run(sequence(2, rows=3), accessor.initial_state(3))[1]
    begun = [torch.stack([first[0], *second[1:]]) for first, second in zip(fresh, ahead, strict=True)]
    state = stepwise = type(fresh)(*begun)
    assert state.seen.tolist() == [0, 2, 2]
    for piece in hidden.split(pieces):
        reads, state = accessor.run(piece, state)
        for step, x in enumerate(piece):
            expected, stepwise, _ = accessor(x, stepwise)
            torch.testing.assert_close(reads[step], expected, atol=1e-12, rtol=1e-10)
        for found, wanted in zip(state, stepwise, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-10)


def test_attention_sees_the_last_steps_by_how_far_they_are() -> None:
    """Against loops that turn each query and key by its place in the whole sequence."""
    accessor = seeded(AttentionAccessor, **ACCESSORS["attention"])
    hidden, state = sequence(7), accessor.initial_state(2)
    whole, last = accessor.run(hidden, state)
    for step in range(7):
        reads, state, heads = accessor(hidden[step], state)
        torch.testing.assert_close(whole[step], reads)
        for row in range(2):
            for head in range(2):
                vectors = [linear(accessor.interface.linear, hidden[t, row]).tolist() for t in range(7)]

                def turned(t: int, at: int) -> list[float]:
                    words = vectors[t][at : at + 4]  # noqa: B023 (called at once)
                    angles = [t, t / 100]
                    return [words[i] * math.cos(angles[i]) - words[2 + i] * math.sin(angles[i]) for i in (0, 1)] + [
                        words[i] * math.sin(angles[i]) + words[2 + i] * math.cos(angles[i]) for i in (0, 1)
                    ]

                seen = range(max(0, step - 2), step + 1)
                query = turned(step, 8 + 4 * head)
                scores = [sum(q * k for q, k in zip(query, turned(t, 4 * head), strict=True)) / 2 for t in seen]
                weights = softmax(scores)
                values = [vectors[t][16 + 3 * head : 19 + 3 * head] for t in seen]
                close(reads[row, head], [sum(w * v[i] for w, v in zip(weights, values, strict=True)) for i in range(3)])
                close(heads.read_weights[row, head], [0.0] * (3 - len(weights)) + weights)
    for one, other in zip(last, state, strict=True):
        torch.testing.assert_close(one, other)


@each
def test_gradients(name: str) -> None:
    torch.manual_seed(0)
    circuit = MemoryCircuit(
        3,
        2,
        controller={"type": "rnn", "hidden_size": 4},
        accessor={"type": name, **ACCESSORS[name]},
        dtype=torch.float64,
    )
    names, parameters = zip(*circuit.named_parameters(), strict=True)
    inputs = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)

    def run(inputs: Tensor, *given: Tensor) -> Tensor:
        outputs: Tensor = torch.func.functional_call(circuit, dict(zip(names, given, strict=True)), inputs)[0]
        return outputs

    own = [part.detach().clone().requires_grad_() for part in parameters]
    assert torch.autograd.gradcheck(run, (inputs, *own), fast_mode=True, atol=1e-5)


@each
def test_whole_sequences_halves_and_populations(name: str) -> None:
    torch.manual_seed(0)
    circuit = MemoryCircuit(
        3,
        2,
        controller={"type": "convolution", "hidden_size": 4},
        accessor={"type": name, **ACCESSORS[name]},
        read_feedback=False,
        dtype=torch.float64,
    )
    inputs = torch.randn(6, 2, 3, dtype=torch.float64)
    outputs, _ = circuit(inputs)
    state, steps = circuit.initial_state(2), []
    for x in inputs:
        y, state = circuit.step(x, state)
        steps.append(y)
    torch.testing.assert_close(outputs, torch.stack(steps))
    first, middle = circuit(inputs[:2])
    torch.testing.assert_close(torch.cat([first, circuit(inputs[2:], middle)[0]]), outputs)
    stacks = {part: torch.stack([own.detach(), 2 * own.detach()]) for part, own in circuit.named_parameters()}
    torch.testing.assert_close(circuit.run_population(stacks, inputs)[:, 0], outputs.detach())


@pytest.mark.parametrize("name", ["stack", "soft-tape", "attention"])
def test_another_size_may_be_chosen_for_a_test(name: str) -> None:
    torch.manual_seed(0)
    circuit = MemoryCircuit(3, 2, accessor={"type": name, **ACCESSORS[name]})
    state = circuit.initial_state(2, memory_size=9)
    outputs, after = circuit(torch.rand(5, 2, 3), state)
    assert circuit.accessor.sizes_of(after.accessor) == {"memory_size": 9} and outputs.isfinite().all()
    assert circuit(torch.rand(1, 2, 3), after)[1].accessor[0].shape == after.accessor[0].shape


def test_odd_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="key_size: got 5; allowed: "):
        AttentionAccessor(3, key_size=5)
