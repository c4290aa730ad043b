"""Every Triton kernel of one step against core.addressing, forward and backward."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from papertape.core import addressing

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from papertape.core.kernels.triton import location
from papertape.core.kernels.triton.allocation import usage_and_allocation
from papertape.core.kernels.triton.content import content_weights
from papertape.core.kernels.triton.links import follow_links
from papertape.core.kernels.triton.location import location_weights
from papertape.core.kernels.triton.writing import write

# Batch, slots, word size, read heads, write heads: one of each, odd ones, whole tiles, more than one tile.
SHAPES = [(1, 1, 1, 1, 1), (3, 7, 5, 1, 1), (2, 16, 8, 4, 1), (2, 37, 6, 3, 3), (1, 70, 33, 1, 2)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))

Function = Callable[..., "Tensor | tuple[Tensor, ...]"]
Arguments = Sequence["Tensor | None"]


def run(function: Function, arguments: Arguments) -> tuple[list[Tensor], list[Tensor | None]]:
    """Results, and the gradients of a random sum of them: a sum of equal shares would hide errors."""
    given = [None if a is None else a.detach().clone(memory_format=torch.preserve_format) for a in arguments]
    given = [None if a is None else a.requires_grad_() for a in given]
    made = function(*given)
    results = [made] if isinstance(made, Tensor) else list(made)
    generator = torch.Generator().manual_seed(5)
    total = results[0].new_zeros(())
    for result in results:
        total = total + (result * torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result)).sum()
    wanted = [a for a in given if a is not None]
    return [r.detach() for r in results], list(torch.autograd.grad(total, wanted, allow_unused=True))


def assert_agrees(kernel: Function, reference: Function, arguments: Arguments, device: torch.device) -> None:
    """In float64 to rounding; in float32 about as well as the reference in float32."""
    expected, expected_gradients = run(reference, arguments)
    for dtype in (torch.float64, torch.float32):
        converted = [None if a is None else a.to(device, dtype) for a in arguments]
        results, gradients = run(kernel, converted)
        rounded, rounded_gradients = run(reference, [None if a is None else a.to(dtype) for a in arguments])
        made, by_reference = [*results, *gradients], [*rounded, *rounded_gradients]
        for result, wanted, near in zip(made, [*expected, *expected_gradients], by_reference, strict=True):
            if wanted is None or near is None:
                assert result is None or not result.any()
                continue
            assert result is not None and result.dtype == dtype and result.shape == wanted.shape
            assert torch.isfinite(result).all()
            error = (result.cpu().double() - wanted).abs().max()
            allowed = 4 * (near.double() - wanted).abs().max() + 1000 * torch.finfo(dtype).eps * (
                wanted.abs().max() + 0.1
            )
            assert error <= allowed, f"{dtype} {list(wanted.shape)}: error {error:.1e}, allowed {allowed:.1e}"


def uniform(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def weighting(*shape: int) -> Tensor:
    return torch.softmax(2 * normal(*shape), dim=-1)


def used_and_allocated(
    previous: Tensor, writes: Tensor, free: Tensor, reads: Tensor, gates: Tensor
) -> tuple[Tensor, ...]:
    usage = addressing.usage(previous, writes, free, reads)
    return usage, addressing.allocation_weights(usage, gates)


def linked(previous: Tensor, precedence: Tensor, writes: Tensor, reads: Tensor) -> tuple[Tensor, ...]:
    link = addressing.link(previous, precedence, writes)
    directions = [addressing.directional_weights(link, reads, forward=forward) for forward in (False, True)]
    return link, addressing.precedence(precedence, writes), *directions


@each_shape
@pytest.mark.parametrize("masked", [False, True])
def test_content(shape: tuple[int, ...], masked: bool, triton_device: torch.device) -> None:
    torch.manual_seed(0)
    batch, slots, word, heads, _ = shape
    mask = 0.1 + 0.9 * uniform(batch, heads, word) if masked else None
    arguments = [normal(batch, slots, word), normal(batch, heads, word), 5 * uniform(batch, heads), mask]
    assert_agrees(content_weights, addressing.content_weights, arguments, triton_device)


@pytest.mark.parametrize("strength", [0.0, 1.0, 300.0])
def test_content_of_empty_slots_and_empty_keys(strength: float, triton_device: torch.device) -> None:
    memory, keys = normal(2, 9, 4), normal(2, 3, 4)
    memory[0, 2:5] = 0
    memory[1] = 0
    keys[0, 1] = 0
    strengths = torch.full((2, 3), strength, dtype=torch.float64)
    assert_agrees(content_weights, addressing.content_weights, [memory, keys, strengths, None], triton_device)


def test_content_without_overflow(triton_device: torch.device) -> None:
    memory = torch.eye(6, device=triton_device).unsqueeze(0).requires_grad_()
    strengths = torch.full((1, 2), 1e4, device=triton_device)
    weights = content_weights(memory, memory.detach()[:, 2:4], strengths)
    assert torch.equal(weights.round(), torch.eye(6, device=triton_device)[None, 2:4])
    weights[0, 0, 2].backward()
    assert memory.grad is not None and torch.isfinite(memory.grad).all()


@each_shape
@pytest.mark.parametrize("shifts", [1, 3, 5])
def test_location(shape: tuple[int, ...], shifts: int, triton_device: torch.device) -> None:
    torch.manual_seed(0)
    batch, slots, _, heads, _ = shape
    arguments = [
        *(weighting(batch, heads, slots), weighting(batch, heads, slots), uniform(batch, heads)),
        *(weighting(batch, heads, shifts), 1 + 3 * uniform(batch, heads)),
    ]
    assert_agrees(location_weights, addressing.location_weights, arguments, triton_device)


def test_location_of_more_slots_than_a_tile(monkeypatch: pytest.MonkeyPatch, triton_device: torch.device) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(location, "TILE", 16)
    arguments = [weighting(2, 2, 37), weighting(2, 2, 37), uniform(2, 2), weighting(2, 2, 5), 1 + 3 * uniform(2, 2)]
    assert_agrees(location_weights, addressing.location_weights, arguments, triton_device)


@pytest.mark.parametrize("power", [1.0, 30.0, 100.0])
def test_location_sharpens_empty_slots(power: float, triton_device: torch.device) -> None:
    one_hot = torch.eye(11, dtype=torch.float64)[None, :3]
    equal = torch.full((1, 3, 11), 1 / 11, dtype=torch.float64)
    content = torch.cat([one_hot[:, :2], equal[:, :1]], dim=1)
    previous = torch.cat([one_hot[:, 1:], equal[:, :1]], dim=1)
    gate = torch.tensor([[0.0, 1.0, 0.5]], dtype=torch.float64)
    shift = torch.tensor([[[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.25, 0.5, 0.25]]], dtype=torch.float64)
    arguments = [content, previous, gate, shift, torch.full((1, 3), power, dtype=torch.float64)]
    assert_agrees(location_weights, addressing.location_weights, arguments, triton_device)


@each_shape
def test_write(shape: tuple[int, ...], triton_device: torch.device) -> None:
    torch.manual_seed(0)
    batch, slots, word, _, writes = shape
    erase = uniform(batch, writes, word)
    erase[0, 0, 0] = 1
    weights = weighting(batch, writes, slots)
    weights[0, 0] = torch.eye(slots, dtype=torch.float64)[0]
    arguments = [normal(batch, slots, word), weights, erase, normal(batch, writes, word)]
    assert_agrees(write, addressing.write, arguments, triton_device)


@each_shape
def test_usage_and_allocation(shape: tuple[int, ...], triton_device: torch.device) -> None:
    torch.manual_seed(0)
    batch, slots, _, reads, writes = shape
    arguments = [
        *(uniform(batch, slots), weighting(batch, writes, slots), uniform(batch, reads)),
        *(weighting(batch, reads, slots), uniform(batch, writes)),
    ]
    assert_agrees(usage_and_allocation, used_and_allocated, arguments, triton_device)


@pytest.mark.parametrize("usage", ["empty", "full", "ties", "rounded to ties"])
@pytest.mark.parametrize("writes", [1, 2])
def test_allocation_breaks_ties_as_a_stable_sort(usage: str, writes: int, triton_device: torch.device) -> None:
    previous = {
        "empty": torch.zeros(1, 70),
        "full": torch.ones(1, 70),
        "ties": torch.arange(70).remainder(3).div(4).unsqueeze(0),
        # Scaling makes them one number in float32: what was larger must not come after what has a smaller index.
        "rounded to ties": 1e-20 * torch.arange(70, 0, -1).unsqueeze(0),
    }[usage].to(triton_device)
    nothing = torch.zeros(1, writes, 70, device=triton_device)
    gates = torch.full((1, writes), 0.5, device=triton_device)
    arguments = (previous, nothing, torch.zeros(1, 1, device=triton_device), nothing[:, :1], gates)
    made, expected = usage_and_allocation(*arguments), used_and_allocated(*arguments)
    assert torch.equal(made[0], expected[0])
    torch.testing.assert_close(made[1], expected[1], rtol=1e-4, atol=1e-6)


@each_shape
def test_links(shape: tuple[int, ...], triton_device: torch.device) -> None:
    torch.manual_seed(0)
    batch, slots, _, reads, writes = shape
    arguments = [
        *(uniform(batch, writes, slots, slots) / slots, weighting(batch, writes, slots)),
        *(weighting(batch, writes, slots), weighting(batch, reads, slots)),
    ]
    assert_agrees(follow_links, linked, arguments, triton_device)


def test_arguments_need_not_be_contiguous(triton_device: torch.device) -> None:
    torch.manual_seed(0)
    memory = normal(6, 4, 2).permute(2, 0, 1)
    keys = normal(2, 6, 4)[:, ::2]
    assert_agrees(content_weights, addressing.content_weights, [memory, keys, uniform(3, 2).T, None], triton_device)
    heads = weighting(2, 5, 6)
    erase = uniform(1, 2, 4).expand(2, -1, -1)
    assert_agrees(write, addressing.write, [memory, heads[:, 3:], erase, keys[:, 1:]], triton_device)
    arguments = [weighting(2, 6, 3).transpose(1, 2), heads[:, ::2], uniform(3, 2).T, uniform(2, 3, 6)[..., ::2]]
    assert_agrees(location_weights, addressing.location_weights, [*arguments, 1 + uniform(3, 2).T], triton_device)
    links = uniform(6, 2, 1, 6).permute(1, 2, 3, 0)
    assert_agrees(follow_links, linked, [links, heads[:, :1], heads[:, 2:3], heads[:, 3:]], triton_device)
    arguments = [heads[:, 0], heads[:, 1:3], uniform(2, 2).T, heads[:, 3:], uniform(2, 2).T]
    assert_agrees(usage_and_allocation, used_and_allocated, arguments, triton_device)


def test_derivatives_of_derivatives_are_refused(triton_device: torch.device) -> None:
    keys = torch.ones(1, 1, 2, device=triton_device, requires_grad=True)
    weights = content_weights(torch.eye(2, device=triton_device)[None], keys, torch.ones(1, 1, device=triton_device))
    (gradient,) = torch.autograd.grad(weights[0, 0, 0].square(), keys, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(gradient.sum(), keys)
