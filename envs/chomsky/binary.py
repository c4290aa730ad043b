"""Whole numbers of any size as digits: what the tasks of binary arithmetic compute with, for a whole batch at once."""

from __future__ import annotations

import torch
from torch import Tensor

from ..strings import Strings


def carried(digits: Tensor, base: int = 2) -> tuple[Tensor, Tensor]:
    """The same numbers with digits below the base.

    Args:
        digits: whole numbers, also negative ones, the lowest digit first, ``[D, B]``.
        base: of the digits.

    Returns:
        Digits ``[D, B]`` from 0 to base - 1, and what is carried beyond the last ``[B]``: negative where the number is.
    """
    carry, found = torch.zeros_like(digits[0]), []
    for digit in digits:
        total = digit + carry
        found.append(total % base)
        carry = torch.div(total, base, rounding_mode="floor")
    return torch.stack(found), carry


def drawn_bits(within: Tensor, generator: torch.Generator) -> Tensor:
    """Bits of numbers that are drawn evenly, and are not zero.

    Args:
        within: which number each place belongs to, counted from 1, or 0 for none, ``[L, B]``.
        generator: the only source of randomness.

    Returns:
        ``[L, B]``: 0 where there is no number.
    """
    numbers = range(1, int(within.max()) + 1)
    bits = torch.zeros_like(within)
    while True:
        zero = [((within == number) & (bits == 0)) | (within != number) for number in numbers]
        again = torch.stack([part.all(0) for part in zero]).any(0)
        if not again.any():
            return bits
        fresh = torch.randint(2, within.shape, generator=generator, device=within.device) * (within > 0)
        bits = torch.where(again, fresh, bits)


def two_numbers(length: int, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Two binary numbers above zero, the lowest bit first, with the token 2 between them: their lengths are drawn, too.

    Args:
        length: of both and the token, at least 3.
        batch_size: B.
        generator: the only source of randomness.

    Returns:
        The string ``[L, B]``, and each of the numbers as bits ``[L, B]``, the lowest first.
    """
    device = generator.device
    place = torch.arange(length, device=device).unsqueeze(1)
    first = 1 + torch.randint(length - 2, (batch_size,), generator=generator, device=device)
    within = (place < first).long() + 2 * (place > first)
    bits = drawn_bits(within, generator)
    moved = (place + first + 1).clamp(max=length - 1)
    second = bits.gather(0, moved) * (place + first + 1 < length)
    return torch.where(within == 0, 2, bits), bits * (within == 1), second


def short_number(length: int, batch_size: int, generator: torch.Generator) -> Tensor:
    """A binary number in place of two, where a string is too short for them, ``[L, B]``; never all ones."""
    number = torch.randint(2**length - 1, (batch_size,), generator=generator, device=generator.device)
    return number >> torch.arange(length, device=number.device).unsqueeze(1) & 1


def ended(question: Tensor, bits: Tensor, ends: Tensor) -> Strings:
    """An answer of bits, the lowest first, then the class 2, after which nothing counts.

    Args:
        question: ``[Q, B]``.
        bits: of the answer, ``[A, B]``.
        ends: how many of them there are, ``[B]``.
    """
    place = torch.arange(len(bits), device=bits.device).unsqueeze(1)
    return Strings(question, torch.where(place == ends, 2, bits * (place < ends)), place <= ends)


def bit_length(bits: Tensor) -> Tensor:
    """Bits without leading zeros of numbers ``[L, B]``, the lowest bit first: ``[B]``."""
    place = torch.arange(1, len(bits) + 1, device=bits.device).unsqueeze(1)
    return (place * bits).amax(0)
