"""Extreme but finite weights, biases, inputs and states: native against eager, within the bound that is stated.

The bound (see the native backend): nothing that the equations compute, and no sum of the magnitudes that they add up,
is beyond the type's largest number. Whether that is so is seen here in runs of the reference, also in float64. Then the
same results are finite. Their values, and gradients, agree as long as no exponent (strength, sharpness, power of links)
is so large that it makes rounding visible.
"""

from __future__ import annotations

import copy
import math
import random
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import papertape
from papertape.core.circuit import Circuit
from papertape.core.kernels.native import library
from papertape.core.state import leaves, map_state

pytestmark = pytest.mark.skipif(isinstance(library.load(), str), reason=str(library.load()))

LARGEST = torch.finfo(torch.float32).max
LARGEST_EXPONENT = 1e4
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8}
ADDING = {f"aten::{name}" for name in ("mm", "bmm", "addmm", "baddbmm", "sum", "cumsum", "add", "sub")}


class Range(TorchDispatchMode):
    """The largest magnitude of anything computed, sums being those of magnitudes; and the largest exponent."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self.exponent = 0.0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        found = tree_leaves(result)
        if function._schema.name == "aten::softplus":
            self.exponent = max(self.exponent, result.max().item())
        if function._schema.name in ADDING:
            sizes = [abs(a) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
            if function._schema.name == "aten::sub":
                sizes[1] = -sizes[1]
            found += tree_leaves(function(*sizes, **(kwargs or {})))
        for part in found:
            if isinstance(part, Tensor) and part.is_floating_point() and part.numel():
                largest = part.detach().abs().max().item()
                self.most = max(self.most, math.inf if math.isnan(largest) else largest)
        return result


class Drawn(NamedTuple):
    circuit: Circuit
    inputs: Tensor
    state: Any


def draw(seed: int) -> Drawn:
    """A circuit of any options, of which weights, biases, inputs or states are multiplied by 1e4 to 1e38."""
    choose = random.Random(seed)
    torch.manual_seed(seed)
    options: dict[str, Any] = {
        "controller": choose.choice(["lstm", "gru", "feedforward"]),
        "num_layers": choose.choice([1, 1, 2]),
        "num_reads": choose.randint(1, 3),
        "num_writes": choose.choice([1, 1, 2]),
        "memory_size": choose.choice([1, 4, 7, 16, 20]),
        "word_size": choose.choice([1, 3, 5, 8]),
        "hidden_size": choose.choice([3, 6, 17]),
        "clip": choose.choice([None, 20.0]),
        "masked_content": choose.random() < 0.3,
    }
    circuit: Circuit
    if choose.random() < 0.5:
        options |= {"shift_range": choose.choice([0, 1, 2]), "weight_init": choose.choice(["first", "learned"])}
        options |= {"memory_init": choose.choice(["constant", "truncated_normal", "learned"])}
        options |= {"head_init": choose.choice(["parked", "uniform"])}
        circuit = papertape.NTM(4, 2, **options)
    else:
        options |= {name: choose.random() < 0.5 for name in ("memory_wipe", "link_sharpening", "usage_gradient")}
        circuit = papertape.DNC(4, 2, squash=choose.choice(["none", "tanh"]), **options)
    dtype = choose.choice([torch.float32, torch.float32, torch.float64])
    circuit = circuit.to(dtype)
    groups = ["weights", "biases", "inputs", "states"]
    scales = {group: 10 ** choose.uniform(4, 38) for group in groups if choose.random() < 0.4}
    scales = scales or {choose.choice(groups): 10 ** choose.uniform(4, 38)}
    everywhere = choose.random() < 0.5

    def grown(part: Tensor, group: str) -> Tensor:
        return (part * scales.get(group, 1.0)).clamp(-LARGEST, LARGEST)

    with torch.no_grad():
        for name, parameter in circuit.named_parameters():
            if everywhere or choose.random() < 0.5:
                parameter.copy_(grown(parameter, "biases" if "bias" in name else "weights"))
    steps, batch = choose.randint(1, 5), choose.randint(1, 3)
    inputs = grown(torch.randn(steps, batch, 4, dtype=dtype), "inputs")
    state = map_state(
        lambda part: part.detach() + torch.rand_like(part) / (2 * part.shape[-1] + 2), circuit.initial_state(batch)
    )
    # Weightings stay weightings; contents and the controller's state have any size.
    signed = map_state(lambda part: grown(part * torch.randn_like(part).sign(), "states"), state)
    accessor = state.accessor._replace(memory=signed.accessor.memory)
    return Drawn(circuit, inputs, signed._replace(accessor=accessor))


def results(drawn: Drawn, backend: str) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs with the last state, and the gradients of a random sum of them in everything."""
    circuit, inputs, state = drawn
    circuit.backend = backend
    inputs = inputs.detach().clone().requires_grad_()
    state = map_state(lambda part: part.detach().clone().requires_grad_(), state)
    outputs, last = circuit(inputs, state)
    made = [outputs, *leaves(last)]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(part.shape, generator=generator, dtype=torch.float64).to(part) for part in made]
    given = [inputs, *leaves(state), *circuit.parameters()]
    gradients = torch.autograd.grad(made, given, weights, allow_unused=True)
    gradients = [torch.zeros_like(g) if d is None else d for d, g in zip(gradients, given, strict=True)]
    return [part.detach() for part in made], gradients


def jittered(drawn: Drawn, seed: int) -> Drawn:
    """The same but for the last bits: what rounding does to the results is what this does to them."""
    generator = torch.Generator().manual_seed(seed)

    def jitter(part: Tensor) -> Tensor:
        steps = torch.randint(-2, 3, part.shape, generator=generator).to(part)
        return part.detach() * (1 + torch.finfo(part.dtype).eps * steps)

    circuit = copy.deepcopy(drawn.circuit)
    with torch.no_grad():
        for parameter in circuit.parameters():
            parameter.copy_(jitter(parameter))
    return Drawn(circuit, jitter(drawn.inputs), map_state(jitter, drawn.state))


def reach(drawn: Drawn) -> tuple[float, float]:
    """Largest magnitude within equations and gradients, relative to the type's largest number; the largest exponent."""
    exact = Drawn(copy.deepcopy(drawn.circuit).double(), drawn.inputs.double(), map_state(Tensor.double, drawn.state))
    with Range() as own:
        results(drawn, "eager")
    with Range() as wide:
        results(exact, "eager")
    return max(own.most, wide.most) / torch.finfo(drawn.inputs.dtype).max, max(own.exponent, wide.exponent)


def differences(drawn: Drawn, finite_results_only: bool) -> list[str]:
    """Where native differs from eager by more than rounding does, or only in which results are finite."""
    native, eager = results(drawn, "native"), results(drawn, "eager")
    tolerance, found = TOLERANCE[drawn.inputs.dtype], []
    rounded: list[Any] = []
    for kind, actual, expected in zip(("result", "gradient"), native, eager, strict=True):
        if finite_results_only and kind == "gradient":
            break
        largest = max(part.abs().nan_to_num(posinf=0, neginf=0).max() for part in expected)
        bound = 64 * torch.finfo(drawn.inputs.dtype).eps * largest
        for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
            if not torch.equal(a.isfinite(), e.isfinite()):
                counts = [int((~part.isfinite()).sum()) for part in (a, e)]
                found.append(f"{kind} {index}: {counts[0]} not finite, {counts[1]} in eager")
                continue
            if finite_results_only:
                continue
            error = (a - e).abs().nan_to_num().max()
            if error <= max(bound, tolerance * e.abs().nan_to_num(posinf=0, neginf=0).max()):
                continue
            rounded = rounded or [results(jittered(drawn, seed), "eager") for seed in range(6)]
            noise = max((part[kind == "gradient"][index] - e).abs().nan_to_num(nan=math.inf).max() for part in rounded)
            if error > 100 * noise:
                found.append(f"{kind} {index}: differs by {error:.1e}, rounding makes {noise:.1e}")
    return found


def check(seeds: range) -> tuple[int, int]:
    """Compare all those within the bound; how many they were, and how many of them in values and gradients."""
    inside = compared = 0
    for seed in seeds:
        drawn = draw(seed)
        largest, exponent = reach(drawn)
        if largest < 0.3:
            inside += 1
            compared += exponent <= LARGEST_EXPONENT
            found = differences(drawn, finite_results_only=exponent > LARGEST_EXPONENT)
            assert not found, f"seed {seed}: {found}"
    return inside, compared


def test_some() -> None:
    inside, compared = check(range(60))
    assert inside > 30 and compared > 5


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_many(part: int) -> None:
    inside, compared = check(range(100 + 400 * part, 500 + 400 * part))
    assert inside > 200 and compared > 40
