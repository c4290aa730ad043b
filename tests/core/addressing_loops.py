"""The equations of memory addressing as plain loops over single numbers, in float64, written from the papers.

An oracle for tests: slow, without a batch, and sharing no code with ``core.addressing``. Arrays are numpy; M is the
memory ``[N, W]``, w a weighting ``[N]``, L the links ``[N, N]``. The small constants are those that the documentation
of ``core.addressing`` states.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NORM_EPSILON = 1e-6
USAGE_EPSILON = 1e-6
MASK_MIN = 0.1


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def oneplus(x: float) -> float:
    return 1 + softplus(x)


def lookup_mask(x: float) -> float:
    return MASK_MIN + (1 - MASK_MIN) * sigmoid(x)


def take(vector: Iterator[float], rows: int, columns: int, function: Callable[[float], float] | None = None) -> Array:
    """The next ``rows * columns`` numbers, each put through a function."""
    numbers = [next(vector) for _ in range(rows * columns)]
    return np.array([function(x) if function else x for x in numbers]).reshape(rows, columns)


def softmax(values: list[float] | Array) -> Array:
    top = max(values)
    powers = [math.exp(value - top) for value in values]
    return np.array([power / math.fsum(powers) for power in powers])


def cosine(key: Array, word: Array, mask: Array | None = None) -> float:
    mask = np.ones_like(key) if mask is None else mask
    dot = key_square = word_square = 0.0
    for k, m, weight in zip(key, word, mask, strict=True):
        dot += (k * weight) * (m * weight)
        key_square += (k * weight) ** 2
        word_square += (m * weight) ** 2
    norms = math.sqrt(key_square + NORM_EPSILON) * math.sqrt(word_square + NORM_EPSILON)
    return dot / (norms + NORM_EPSILON)


def content(memory: Array, key: Array, strength: float, mask: Array | None = None) -> Array:
    return softmax([strength * cosine(key, word, mask) for word in memory])


def interpolate(content_weights: Array, previous: Array, gate: float) -> Array:
    return np.array([gate * c + (1 - gate) * p for c, p in zip(content_weights, previous, strict=True)])


def shift(weights: Array, distribution: Array) -> Array:
    """NTM eq. 8: each slot hands its weight on to the slot that lies the shift away, around the ring."""
    slots, shift_range = len(weights), len(distribution) // 2
    shifted = np.zeros(slots)
    for source in range(slots):
        for index, share in enumerate(distribution):
            shifted[(source + index - shift_range) % slots] += weights[source] * share
    return shifted


def sharpen(weights: Array, power: float) -> Array:
    """NTM eq. 9, each quotient taken relative to the largest weight so that float64 does not underflow."""
    top = max(weights)
    powers = [(weight / top) ** power for weight in weights]
    return np.array([value / math.fsum(powers) for value in powers])


def location(content_weights: Array, previous: Array, gate: float, distribution: Array, sharpness: float) -> Array:
    return sharpen(shift(interpolate(content_weights, previous, gate), distribution), sharpness)


def union(write_weights: Array) -> Array:
    """``[H, N]`` -> ``[N]``."""
    result = np.zeros(write_weights.shape[1])
    for slot in range(len(result)):
        untouched = 1.0
        for head in range(len(write_weights)):
            untouched *= 1 - write_weights[head, slot]
        result[slot] = 1 - untouched
    return result


def retention(free_gates: Array, read_weights: Array) -> Array:
    """``[R]``, ``[R, N]`` -> ``[N]``."""
    result = np.ones(read_weights.shape[1])
    for slot in range(len(result)):
        for head in range(len(free_gates)):
            result[slot] *= 1 - free_gates[head] * read_weights[head, slot]
    return result


def usage(previous: Array, write_weights: Array, free_gates: Array, read_weights: Array) -> Array:
    written, kept = union(write_weights), retention(free_gates, read_weights)
    return np.array([(u + w - u * w) * k for u, w, k in zip(previous, written, kept, strict=True)])


def allocation(used: Array) -> Array:
    """DNC eq. 1 for one head: walk through the free list, from the least to the most used slot."""
    scaled = [(1 - USAGE_EPSILON) * u + USAGE_EPSILON for u in used]
    free_list = sorted(range(len(scaled)), key=lambda slot: scaled[slot])
    result, product = np.zeros(len(scaled)), 1.0
    for slot in free_list:
        result[slot] = (1 - scaled[slot]) * product
        product *= scaled[slot]
    return result


def allocations(used: Array, gates: Array) -> Array:
    """Several heads in turn, ``[N]``, ``[H]`` -> ``[H, N]``: each sees what the ones before it took."""
    seen, result = np.array(used, dtype=np.float64), []
    for gate in gates:
        taken = allocation(seen)
        result.append(taken)
        seen = np.array([u + (1 - u) * gate * a for u, a in zip(seen, taken, strict=True)])
    return np.array(result)


def link(previous: Array, precedence_weights: Array, weights: Array) -> Array:
    slots = len(weights)
    result = np.zeros((slots, slots))
    for i in range(slots):
        for j in range(slots):
            if i != j:
                result[i, j] = (1 - weights[i] - weights[j]) * previous[i, j] + weights[i] * precedence_weights[j]
    return result


def precedence(previous: Array, weights: Array) -> Array:
    total = math.fsum(weights)
    return np.array([(1 - total) * p + w for p, w in zip(previous, weights, strict=True)])


def forward(links: Array, weights: Array) -> Array:
    slots = len(weights)
    return np.array([math.fsum(links[i, j] * weights[j] for j in range(slots)) for i in range(slots)])


def backward(links: Array, weights: Array) -> Array:
    slots = len(weights)
    return np.array([math.fsum(links[j, i] * weights[j] for j in range(slots)) for i in range(slots)])


def sharpen_links(weights: Array, power: float) -> Array:
    total = math.fsum(weights)
    return np.zeros(len(weights)) if total == 0 else sharpen(weights, power) * (total / (total + NORM_EPSILON))


def write(memory: Array, weights: Array, erase: Array, add: Array) -> Array:
    """``[N, W]``, ``[H, N]``, ``[H, W]``, ``[H, W]`` -> ``[N, W]``: all heads erase, then all add."""
    result = np.array(memory, dtype=np.float64)
    for slot in range(memory.shape[0]):
        for element in range(memory.shape[1]):
            for head in range(len(weights)):
                result[slot, element] *= 1 - weights[head, slot] * erase[head, element]
            for head in range(len(weights)):
                result[slot, element] += weights[head, slot] * add[head, element]
    return result


def read(memory: Array, weights: Array) -> Array:
    """``[N, W]``, ``[N]`` -> ``[W]``."""
    slots, width = memory.shape
    return np.array([math.fsum(weights[i] * memory[i, j] for i in range(slots)) for j in range(width)])
