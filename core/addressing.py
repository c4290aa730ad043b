"""The equations of memory addressing, one pure function each.

This is the reference: every kernel is tested against it. Nothing here keeps state, draws random numbers or looks at
the values of its arguments, so each function is differentiable, batched, and works under ``torch.compile`` and
``torch.func.vmap`` in any floating-point type.

Shapes: B batch, N memory slots, W word size, K heads, R read heads, H write heads, S shifts.
Sources: NTM = Graves, Wayne & Danihelka 2014 (arXiv 1410.5401). DNC = Graves et al. 2016 (Nature 538, Methods).
Improved DNC = Csordás & Schmidhuber 2019 (arXiv 1904.10278).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

NORM_EPSILON = 1e-6
"""Added inside the square root of every norm and to the denominator of the cosine, as in DeepMind's DNC, and to the sum
that directional weightings are divided by when they are sharpened."""

USAGE_EPSILON = 1e-6
"""Usage is scaled to (1 - epsilon) * usage + epsilon before allocation, so that its logarithm is finite."""

SHARPEN_EPSILON = 1e-16
"""Added to a weighting before its logarithm is taken: a slot of weight 0 keeps a finite value and gradient.

Published NTM code adds as much to the sum of the powers instead (or nothing): of 128 equal weights to the power of 9
that leaves a weighting which sums to 0.12, and to the power of 22 zeros (or 0/0) in float32. Here no weight of N slots
is further than about N · 1e-16 from NTM eq. 9, beside rounding, at any power.
"""


def cosine_similarity(memory: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cosine of the angle between each key and each memory slot (NTM eq. 6; DNC "content-based addressing").

    Args:
        memory: contents, ``[B, N, W]``.
        keys: lookup keys, ``[B, K, W]``.
        mask: weight of each word element in the comparison, ``[B, K, W]`` in (0, 1]; both key and memory are
            multiplied by it (improved DNC eq. 4). None compares whole words.

    Returns:
        Similarities in (-1, 1), ``[B, K, N]``; 0 for an empty key or an empty slot.
    """
    if mask is None:
        dot = keys @ memory.transpose(-1, -2)
        memory_square = (memory * memory).sum(-1).unsqueeze(-2)
    else:
        keys = keys * mask
        dot = (keys * mask) @ memory.transpose(-1, -2)
        memory_square = (mask * mask) @ (memory * memory).transpose(-1, -2)
    key_norm = torch.sqrt((keys * keys).sum(-1, keepdim=True) + NORM_EPSILON)
    return dot / (key_norm * torch.sqrt(memory_square + NORM_EPSILON) + NORM_EPSILON)


def content_weights(memory: Tensor, keys: Tensor, strengths: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax over slots of strength times cosine similarity (NTM eq. 5; DNC "content-based addressing").

    Args:
        memory: contents, ``[B, N, W]``.
        keys: lookup keys, ``[B, K, W]``.
        strengths: how much a better match counts, ``[B, K]``, non-negative.
        mask: optional element mask, ``[B, K, W]``; see :func:`cosine_similarity`.

    Returns:
        Weightings that sum to 1, ``[B, K, N]``.
    """
    return torch.softmax(strengths.unsqueeze(-1) * cosine_similarity(memory, keys, mask), dim=-1)


def sharpen(weights: Tensor, power: Tensor) -> Tensor:
    """Raise each weighting to a power and renormalise it, in log space (NTM eq. 9).

    Args:
        weights: non-negative weightings, ``[..., N]``.
        power: exponent of each weighting, ``[...]``, at least 1.

    Returns:
        Weightings that sum to 1, ``[..., N]``. Finite, with finite gradients, for powers up to at least 100 and
        weights of 0, where the quotient of powers gives 0/0 in float32.
    """
    epsilon = max(SHARPEN_EPSILON, torch.finfo(weights.dtype).smallest_normal)  # of float16, in which 1e-16 is 0
    return torch.softmax(power.unsqueeze(-1) * torch.log(weights + epsilon), dim=-1)


def shift_weights(weights: Tensor, shift: Tensor) -> Tensor:
    """Circular convolution of each weighting with its shift distribution (NTM eq. 8).

    Args:
        weights: weightings, ``[B, K, N]``.
        shift: distribution over shifts, ``[B, K, S]`` with S odd; the first entry shifts by -(S - 1)/2, the last by
            +(S - 1)/2 slots.

    Returns:
        Weightings, ``[B, K, N]``.
    """
    shares = shift.split(1, -1)  # counted by Python, whose numbers roll takes in torch.jit.trace as well
    shift_range = len(shares) // 2
    shifted = weights.roll(-shift_range, -1) * shares[0]
    for index, share in enumerate(shares[1:], 1):
        shifted = shifted + weights.roll(index - shift_range, -1) * share
    return shifted


def location_weights(content: Tensor, previous: Tensor, gate: Tensor, shift: Tensor, sharpness: Tensor) -> Tensor:
    """Interpolate with the last weighting, shift and sharpen (NTM eqs. 7, 8 and 9).

    Args:
        content: content weightings, ``[B, K, N]``.
        previous: weightings of the last step, ``[B, K, N]``.
        gate: 1 takes the content weighting, 0 the previous one, ``[B, K]`` in [0, 1].
        shift: distribution over shifts, ``[B, K, S]``; see :func:`shift_weights`.
        sharpness: exponent, ``[B, K]``, at least 1.

    Returns:
        Weightings that sum to 1, ``[B, K, N]``.
    """
    gated = previous + gate.unsqueeze(-1) * (content - previous)
    return sharpen(shift_weights(gated, shift), sharpness)


def write_union(write_weights: Tensor) -> Tensor:
    """How much of each slot any head wrote: 1 - Π_h (1 - w_h) (DNC "dynamic memory allocation", several heads).

    Args:
        write_weights: ``[B, H, N]``.

    Returns:
        ``[B, N]`` in [0, 1].
    """
    untouched = 1 - write_weights[:, 0]
    for head in range(1, write_weights.shape[1]):
        untouched = untouched * (1 - write_weights[:, head])
    return 1 - untouched


def retention(free_gates: Tensor, read_weights: Tensor) -> Tensor:
    """How much of each slot the free gates leave: ψ = Π_r (1 - f_r w_r) (DNC "dynamic memory allocation").

    Args:
        free_gates: ``[B, R]`` in [0, 1].
        read_weights: read weightings of the last step, ``[B, R, N]``.

    Returns:
        ``[B, N]`` in [0, 1].
    """
    kept = 1 - free_gates.unsqueeze(-1) * read_weights
    product = kept[:, 0]
    for head in range(1, kept.shape[1]):
        product = product * kept[:, head]
    return product


def usage(previous: Tensor, write_weights: Tensor, free_gates: Tensor, read_weights: Tensor) -> Tensor:
    """How much each slot is in use: u = (u + w - u∘w)∘ψ (DNC "dynamic memory allocation").

    Args:
        previous: usage of the last step, ``[B, N]``.
        write_weights: write weightings of the last step, ``[B, H, N]``.
        free_gates: ``[B, R]``.
        read_weights: read weightings of the last step, ``[B, R, N]``.

    Returns:
        ``[B, N]`` in [0, 1].
    """
    written = write_union(write_weights)
    return (previous + written - previous * written) * retention(free_gates, read_weights)


def allocation_weights(usage: Tensor, write_gates: Tensor) -> Tensor:
    """Weightings on the least used slots, a[φ(j)] = (1 - u[φ(j)]) Π_{i<j} u[φ(i)] (DNC eq. 1).

    Heads allocate in turn: what one head takes, times its gate, raises a copy of the usage that the next head sees.
    The usage itself is left as it was.

    Args:
        usage: ``[B, N]`` in [0, 1].
        write_gates: allocation gate times write gate of each head, ``[B, H]``; only its shape matters for H = 1.

    Returns:
        Weightings that sum to 1 - Π u, so at most 1, ``[B, H, N]``.
    """
    used = (1 - USAGE_EPSILON) * usage + USAGE_EPSILON
    allocations = []
    for head in range(write_gates.shape[1]):
        ascending, order = torch.sort(used, dim=-1, stable=True)
        # The product of all smaller usages, as a sum of logarithms: its gradient needs no division by a product. The
        # shift leaves the slot itself out; adding and subtracting it would cost the gradient of empty slots its digits.
        smaller = torch.exp(torch.cumsum(functional.pad(torch.log(ascending[..., :-1]), (1, 0)), dim=-1))
        allocation = torch.zeros_like(used).scatter(-1, order, (1 - ascending) * smaller)
        allocations.append(allocation)
        used = used + (1 - used) * write_gates[:, head : head + 1] * allocation
    return torch.stack(allocations, dim=1)


def link(previous: Tensor, precedence: Tensor, write_weights: Tensor) -> Tensor:
    """Temporal links, L[i,j] = (1 - w[i] - w[j]) L[i,j] + w[i] p[j], zero on the diagonal (DNC "temporal linkage").

    Args:
        previous: links of the last step, ``[B, H, N, N]``.
        precedence: precedence of the *last* step, ``[B, H, N]``.
        write_weights: write weightings of this step, ``[B, H, N]``.

    Returns:
        ``[B, H, N, N]``; entry i,j is near 1 when slot i was written right after slot j.
    """
    row, column = write_weights.unsqueeze(-1), write_weights.unsqueeze(-2)
    diagonal = torch.eye(write_weights.shape[-1], dtype=torch.bool, device=previous.device)
    return ((1 - row - column) * previous + row * precedence.unsqueeze(-2)).masked_fill(diagonal, 0)


def precedence(previous: Tensor, write_weights: Tensor) -> Tensor:
    """How much each slot was the last one written, p = (1 - Σ w) p + w (DNC "temporal linkage").

    Args:
        previous: ``[B, H, N]``.
        write_weights: write weightings of this step, ``[B, H, N]``.

    Returns:
        ``[B, H, N]``, sums to at most 1.
    """
    return (1 - write_weights.sum(-1, keepdim=True)) * previous + write_weights


def directional_weights(link: Tensor, read_weights: Tensor, forward: bool) -> Tensor:
    """Follow the links from the last reads: f = L w, b = Lᵀ w (DNC "temporal linkage").

    Args:
        link: ``[B, H, N, N]``.
        read_weights: read weightings of the last step, ``[B, R, N]``.
        forward: True for the slots written next, False for the slots written before.

    Returns:
        ``[B, R, H, N]``.
    """
    matrix = link.transpose(-1, -2) if forward else link
    return (read_weights.unsqueeze(1) @ matrix).transpose(1, 2)


def sharpen_links(weights: Tensor, power: Tensor) -> Tensor:
    """Raise directional weightings to a power and renormalise them (improved DNC eq. 8).

    Unlike :func:`sharpen`, a weighting that is still empty (nothing written before) stays empty. The authors' code adds
    1e-6 to every weight first, which makes that one uniform, and gives weak links a floor.

    Args:
        weights: directional weightings, ``[..., N]``.
        power: exponent of each weighting, ``[...]``, at least 1.

    Returns:
        Weightings that sum to t / (t + 1e-6) where ``weights`` summed to t, ``[..., N]``.
    """
    # Rounding can leave a link, and so a weighting, a hair below zero, where a logarithm has no value.
    weights = weights.clamp(min=0)
    total = weights.sum(-1, keepdim=True)
    return sharpen(weights, power) * (total / (total + NORM_EPSILON))


def write(memory: Tensor, weights: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    """Erase, then add: M ∘ Π_h (1 - w_h e_hᵀ) + Σ_h w_h a_hᵀ (NTM eqs. 3 and 4; DNC "writing").

    Args:
        memory: ``[B, N, W]``.
        weights: write weightings, ``[B, H, N]``.
        erase: ``[B, H, W]`` in [0, 1].
        add: ``[B, H, W]``.

    Returns:
        ``[B, N, W]``.
    """
    for head in range(weights.shape[1]):
        memory = memory * (1 - weights[:, head].unsqueeze(-1) * erase[:, head].unsqueeze(-2))
    return memory + weights.transpose(-1, -2) @ add


def read(memory: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of the slots (NTM eq. 2; DNC "reading").

    Args:
        memory: ``[B, N, W]``.
        weights: ``[B, K, N]``.

    Returns:
        ``[B, K, W]``.
    """
    return weights @ memory
