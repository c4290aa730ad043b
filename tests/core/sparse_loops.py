"""SAM and SDNC as plain loops over single numbers, in float64, for one sequence (Rae et al. 2016, arXiv 1610.09027).

An oracle for tests: everything is written out over all slots, with zeros where nothing is kept, and shares no code with
``core.sparse_addressing`` or the sparse accessor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import addressing_loops as loops
import numpy as np
from addressing_loops import Array, take

ACCESS_THRESHOLD = 0.005


def first_largest(values: Array | list[float], count: int) -> list[int]:
    """Where the largest values are; of equal ones (such as the similarities of equal words) the first."""
    return sorted(range(len(values)), key=lambda index: (-round(values[index], 12), index))[:count]


def kept(values: Array, count: int) -> Array:
    """The largest values, and zeros for the others."""
    result = np.zeros(len(values))
    for index in first_largest(values, count):
        result[index] = values[index]
    return result


def limited(links: Array, count: int) -> Array:
    """Links of which each row keeps so many, and then each column."""
    rows = np.array([kept(row, count) for row in links])
    return np.array([kept(column, count) for column in rows.T]).T


@dataclass
class SparseLoops:
    """Sizes and the interface's parameters, and everything that a step remembers."""

    weight: Array
    bias: Array
    memory_size: int
    word_size: int
    num_reads: int
    num_writes: int
    slots_per_read: int
    links_per_slot: int
    masked: bool

    def __post_init__(self) -> None:
        slots = self.memory_size
        self.memory = np.zeros((slots, self.word_size))
        self.read_weights = np.zeros((self.num_reads, slots))
        self.write_weights = np.zeros((self.num_writes, slots))
        self.link, self.precedence = np.zeros((slots, slots)), np.zeros(slots)
        self.last_access = [0] * slots
        self.steps = 0

    def step(self, hidden: Array) -> Array:
        """What the heads read, ``[R, W]``, after the controller has put out ``[hidden_size]``."""
        numbers = [math.fsum([*(row * hidden), b]) for row, b in zip(self.weight, self.bias, strict=True)]
        vector, reads, writes, width = iter(numbers), self.num_reads, self.num_writes, self.word_size
        keys = take(vector, reads, width)
        strengths = take(vector, 1, reads, loops.oneplus)[0]
        words = take(vector, writes, width)
        gates = take(vector, 1, writes, loops.sigmoid)[0]
        shares = [loops.softmax(row) for row in take(vector, writes, 1 + reads)]
        modes = [loops.softmax(row) for row in take(vector, reads, 3)] if self.links_per_slot else None
        masks = take(vector, reads, width, loops.lookup_mask) if self.masked else [None] * reads
        assert not list(vector)
        self.steps += 1
        self.write(words, gates, shares)
        self.read_weights = np.array([self.look(head, keys, strengths, masks, modes) for head in range(reads)])
        for slot in range(self.memory_size):
            if math.fsum([*self.write_weights[:, slot], *self.read_weights[:, slot]]) > ACCESS_THRESHOLD:
                self.last_access[slot] = self.steps
        return np.array([loops.read(self.memory, weights) for weights in self.read_weights])

    def write(self, words: Array, gates: Array, shares: list[Array]) -> None:
        slots = range(self.memory_size)
        oldest = sorted(slots, key=lambda slot: (self.last_access[slot], slot))[: self.num_writes]
        self.write_weights = np.zeros((self.num_writes, self.memory_size))
        for head, slot in enumerate(sorted(oldest)):
            self.memory[slot] = 0
            self.write_weights[head, slot] += gates[head] * shares[head][0]
            for read in range(self.num_reads):
                self.write_weights[head] += gates[head] * shares[head][1 + read] * self.read_weights[read]
        for slot in slots:
            for head in range(self.num_writes):
                self.memory[slot] += self.write_weights[head, slot] * words[head]
        if self.links_per_slot:
            (written,) = self.write_weights
            self.link = limited(loops.link(self.link, self.precedence, written), self.links_per_slot)
            self.precedence = kept(loops.precedence(self.precedence, written), self.links_per_slot)

    def look(
        self, head: int, keys: Array, strengths: Array, masks: Array | list[None], modes: list[Array] | None
    ) -> Array:
        similar = [loops.cosine(keys[head], word, masks[head]) for word in self.memory]
        nearest = first_largest(similar, self.slots_per_read)
        found = np.zeros(self.memory_size)
        found[nearest] = loops.softmax([strengths[head] * similar[slot] for slot in nearest])
        if modes is None:
            return found
        last = self.read_weights[head]
        ways = (loops.backward(self.link, last), found, loops.forward(self.link, last))
        mixed = sum(mode * way for mode, way in zip(modes[head], ways, strict=True))
        return kept(np.asarray(mixed), self.slots_per_read)
