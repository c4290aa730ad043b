"""Layers around a memory: attention by default, any other by its name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from papertape import Transformer
from papertape.core.accessors import AttentionAccessor
from papertape.core.state import leaves

ATTENTION = {"type": "attention", "num_heads": 2, "key_size": 4, "value_size": 4, "memory_size": 4}
KINDS: dict[str, dict[str, Any]] = {
    "attention": {"accessor": ATTENTION},
    "deltanet": {
        "controller": {"type": "convolution", "hidden_size": 6},
        "accessor": {"type": "delta", "num_heads": 2, "key_size": 4, "value_size": 3, "chunk_size": 4, "decay": True},
    },
    "lstm and ntm": {
        "controller": {"type": "lstm", "hidden_size": 6},
        "accessor": {"type": "static", "memory_size": 5, "word_size": 3},
        "widening": 0,
    },
}
each = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)


def made(**options: Any) -> Transformer:
    torch.manual_seed(0)
    return Transformer(3, 2, **{"model_size": 8, "dtype": torch.float64, **options})


def sequence(steps: int = 9) -> Tensor:
    return torch.randn(steps, 2, 3, dtype=torch.float64)


def test_it_is_a_transformer_decoder() -> None:
    """Against torch's own layers around a loop over queries, keys and values, all steps within the window."""
    circuit = made(accessor={**ATTENTION, "memory_size": 9}, num_layers=2, widening=3)
    inputs = sequence()
    x = circuit.input(inputs)
    for layer in circuit.layers:
        parts = layer.accessor.interface.parts(layer.accessor.interface(layer.norm(x)))
        steps, batch = x.shape[:2]
        query, key, value = (parts[name].view(steps, batch, 2, 4) for name in ("queries", "keys", "values"))
        words = torch.zeros(steps, batch, 2, 4, dtype=torch.float64)
        pace = torch.tensor([1.0, 0.01], dtype=torch.float64)
        for now in range(steps):
            # As complex numbers, a query and a key turned by their places.
            turn = [torch.polar(torch.ones(2, dtype=torch.float64), -(now - then) * pace) for then in range(now + 1)]
            q = torch.complex(query[now][..., :2], query[now][..., 2:])
            scores = torch.stack(
                [
                    (q * turn[then].conj() * torch.complex(key[then][..., :2], key[then][..., 2:]).conj()).real.sum(-1)
                    / 2
                    for then in range(now + 1)
                ]
            )
            words[now] = (scores.softmax(0).unsqueeze(-1) * value[: now + 1]).sum(0)
        x = x + layer.mixed(words.flatten(2))
        norm, wide, narrow = layer.inner
        x = x + narrow(nn.functional.gelu(wide(norm(x))))
    expected = circuit.output(circuit.norm(x))
    torch.testing.assert_close(circuit(inputs)[0], expected)


@each
def test_whole_sequences_are_their_steps_and_states_are_carried_over(options: dict[str, Any]) -> None:
    circuit, inputs = made(**options), sequence()
    outputs, last = circuit(inputs)
    state, steps = circuit.initial_state(2), []
    for x in inputs:
        y, state = circuit.step(x, state)
        steps.append(y)
    torch.testing.assert_close(outputs, torch.stack(steps))
    for one, other in zip(leaves(last), leaves(state), strict=True):
        torch.testing.assert_close(one, other)
    first, middle = circuit(inputs[:4])
    torch.testing.assert_close(torch.cat([first, circuit(inputs[4:], middle)[0]]), outputs)
    short, _ = circuit(inputs, lengths=[9, 5])
    torch.testing.assert_close(short[:5], outputs[:5])
    traced, _, trace = circuit(inputs, trace=True)
    torch.testing.assert_close(traced, outputs)
    assert trace.reads.shape[:3] == (9, 2, 2) and set(trace) <= set(circuit.trace_fields)
    stacks = {name: torch.stack([part.detach(), 2 * part.detach()]) for name, part in circuit.named_parameters()}
    torch.testing.assert_close(circuit.run_population(stacks, inputs)[:, 0], outputs.detach())


@each
def test_gradients(options: dict[str, Any]) -> None:
    circuit = made(**options)
    names, parameters = zip(*circuit.named_parameters(), strict=True)

    def run(inputs: Tensor, *given: Tensor) -> Tensor:
        outputs: Tensor = torch.func.functional_call(circuit, dict(zip(names, given, strict=True)), inputs)[0]
        return outputs

    own = [part.detach().clone().requires_grad_() for part in parameters]
    assert torch.autograd.gradcheck(run, (sequence(5).requires_grad_(), *own), fast_mode=True, atol=1e-5)


def test_it_sees_so_many_steps_and_no_more() -> None:
    circuit, inputs = made(accessor=ATTENTION, num_layers=1), sequence()
    changed = inputs.clone()
    changed[2] += 1
    one, other = circuit(inputs)[0], circuit(changed)[0]
    same = [torch.allclose(one[step], other[step]) for step in range(9)]
    assert same == [True, True, False, False, False, False, True, True, True]
    longer = circuit.initial_state(2, memory_size=9)
    one, other = circuit(inputs, longer)[0], circuit(changed, longer)[0]
    assert not any(torch.allclose(one[step], other[step]) for step in range(2, 9))
    assert circuit(inputs, circuit(inputs, longer)[1])[0].isfinite().all()


def test_a_key_is_turned_once_and_shown_as_it_was() -> None:
    torch.manual_seed(0)
    accessor = AttentionAccessor(5, num_heads=2, key_size=4, value_size=3, memory_size=4).double()
    state, keys = accessor.initial_state(2), []
    for hidden in torch.randn(7, 2, 5, dtype=torch.float64):
        before = state
        _, state, heads = accessor(hidden, state)
        torch.testing.assert_close(state.keys[:, :, :-1], before.keys[:, :, 1:], rtol=0, atol=0)
        keys.append(accessor.interface.parts(accessor.interface(hidden))["keys"].view(2, 2, 4))
    torch.testing.assert_close(accessor.observed(heads, state)["keys"], torch.stack(keys[3:], dim=2))
    assert state.seen.tolist() == [7, 7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sequence_without_end_is_as_exact_as_its_beginning(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    accessor = AttentionAccessor(5, num_heads=2, key_size=8, value_size=3, memory_size=6).to(dtype)
    hidden = torch.randn(12, 2, 5, dtype=dtype)
    early = accessor.initial_state(2)
    late = early._replace(seen=early.seen + 10_000_000)
    for x in hidden:
        expected, early, _ = accessor(x, early)
        reads, late, _ = accessor(x, late)
        if early.seen[0] > 6:  # until then the late one sees zeros
            torch.testing.assert_close(reads, expected, rtol=1e-5, atol=1e-6)


def test_dropout_is_for_training_alone() -> None:
    circuit, inputs = made(dropout=0.5), sequence()
    assert not torch.equal(circuit(inputs)[0], circuit(inputs)[0])
    circuit.eval()
    assert torch.equal(circuit(inputs)[0], circuit(inputs)[0])


def test_lower_precision_keeps_the_types_of_outputs_and_states() -> None:
    circuit = made(dtype=torch.float32, **KINDS["deltanet"])
    expected, _ = circuit(torch.ones(4, 2, 3))
    circuit.autocast = torch.bfloat16
    outputs, state = circuit(torch.ones(4, 2, 3))
    assert {outputs.dtype, *(leaf.dtype for leaf in leaves(state))} == {torch.float32}
    torch.testing.assert_close(outputs, expected, atol=0.05, rtol=0.05)


def test_one_object_makes_one_layer() -> None:
    torch.manual_seed(0)
    accessor = AttentionAccessor(8, num_heads=2)
    assert Transformer(3, 2, model_size=8, num_layers=1, accessor=accessor).layers[0].accessor is accessor
    with pytest.raises(ValueError, match="accessor: got a AttentionAccessor; allowed with 2 layers: a name or a block"):
        Transformer(3, 2, model_size=8, accessor=accessor)


@pytest.mark.parametrize("accessor", ["attention", "delta", "srwm", "static"])
@pytest.mark.parametrize("part", ["controller", "accessor"])
def test_hooks_of_a_layer_see_every_step(accessor: str, part: str) -> None:
    torch.manual_seed(0)
    circuit = Transformer(3, 2, model_size=8, num_layers=2, accessor=accessor)
    inputs, seen = torch.randn(4, 2, 3), []
    expected = circuit(inputs)[0]
    layers: Any = circuit.layers
    getattr(layers[1], part).register_forward_hook(lambda module, given, made: seen.append(given[0].shape))
    at = torch.tensor([[0, 1], [3, 3]])
    torch.testing.assert_close(circuit(inputs)[0], expected)
    torch.testing.assert_close(circuit(inputs, at=at)[0], expected.gather(0, at.unsqueeze(-1).expand(-1, -1, 2)))
    assert seen == [(2, 8)] * 8
