"""The NTM and the DNC as plain loops over single numbers, in float64, for one sequence at a time.

An oracle for tests, written from the papers; it takes the parameters of a circuit, and shares no code with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import addressing_loops as loops
import numpy as np
from addressing_loops import Array, lookup_mask, oneplus, sigmoid, softplus, take


def clip(values: Array, bound: float | None) -> Array:
    return values if bound is None else np.array([min(max(value, -bound), bound) for value in values])


@dataclass
class Loops:
    """One circuit's parameters and sizes, and everything that a step remembers."""

    parameters: dict[str, Array]
    kind: str
    """``ntm`` or ``dnc``"""
    controller: str
    num_layers: int
    memory_size: int
    word_size: int
    num_reads: int
    num_writes: int
    clip: float | None
    options: dict[str, Any] = field(default_factory=dict)

    def linear(self, name: str, x: Array) -> Array:
        weight, bias = self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"]
        return np.array([math.fsum([*(row * x), b]) for row, b in zip(weight, bias, strict=True)])

    def start(self) -> None:
        """Forget everything."""
        slots, reads, writes = self.memory_size, self.num_reads, self.num_writes
        size = self.parameters["output.weight"].shape[1] - reads * self.word_size
        self.hidden = [np.zeros(size) for _ in range(self.num_layers)]
        self.cell = [np.zeros(size) for _ in range(self.num_layers)]
        if self.controller == "neat":
            self.values = np.zeros(len(self.parameters["controller.network.hidden_weight"]) + size)
        self.reads = np.zeros((reads, self.word_size))
        if self.kind == "dnc":
            self.memory = np.zeros((slots, self.word_size))
            self.usage = np.zeros(slots)
            self.link = np.zeros((writes, slots, slots))
            self.precedence = np.zeros((writes, slots))
            self.read_weights, self.write_weights = np.zeros((reads, slots)), np.zeros((writes, slots))
            return
        self.memory = self.parameters.get("accessor.initial_memory.contents", np.full((slots, self.word_size), 1e-6))
        init = self.options.get("weight_init", "first")
        if init == "learned":
            weights = np.array([loops.softmax(row) for row in self.parameters["accessor.initial_weights.logits"]])
        else:
            row = np.full(slots, 1 / slots) if init == "uniform" else np.eye(slots)[0]
            weights = np.array([row] * (reads + writes))
        self.read_weights, self.write_weights = weights[:reads], weights[reads:]

    def control(self, x: Array) -> Array:
        """The controller: its hidden vector for an input joined with the words read last."""
        if self.controller == "neat":
            return self.control_by_network(x)
        if self.controller == "direct":
            return clip(x, self.clip)
        for layer in range(self.num_layers):
            size = len(self.hidden[layer])
            inputs = self.linear(f"controller.inputs.{layer}", x)
            if self.controller == "feedforward":
                x = clip(np.array([math.tanh(value) for value in inputs]), self.clip)
                continue
            recurrent = self.linear(f"controller.recurrents.{layer}", self.hidden[layer])
            new_hidden, new_cell = np.zeros(size), np.zeros(size)
            for unit in range(size):
                if self.controller == "lstm":
                    i, f, g, o = (inputs[gate * size + unit] + recurrent[gate * size + unit] for gate in range(4))
                    cell = sigmoid(f) * self.cell[layer][unit] + sigmoid(i) * math.tanh(g)
                    new_cell[unit] = clip(np.array([cell]), self.clip)[0]
                    new_hidden[unit] = sigmoid(o) * math.tanh(new_cell[unit])
                else:
                    r = sigmoid(inputs[unit] + recurrent[unit])
                    z = sigmoid(inputs[size + unit] + recurrent[size + unit])
                    n = math.tanh(inputs[2 * size + unit] + r * recurrent[2 * size + unit])
                    new_hidden[unit] = (1 - z) * n + z * self.hidden[layer][unit]
            self.hidden[layer], self.cell[layer] = clip(new_hidden, self.clip), new_cell
            x = self.hidden[layer]
        return x

    def control_by_network(self, x: Array) -> Array:
        """Node after node: what lies before in their order has this step's value, what does not has the last one's."""
        hidden, output = (self.parameters[f"controller.network.{name}_weight"] for name in ("hidden", "output"))
        nodes, now = len(hidden), np.zeros(len(hidden) + len(output))
        for target, row in enumerate([*hidden, *output]):
            carried = [
                now[source] if source < min(target, nodes) else self.values[source] for source in range(len(now))
            ]
            now[target] = math.tanh(math.fsum(row * np.array([1.0, *x, *carried])))
        self.values = clip(now, self.clip)
        return self.values[nodes:]

    def step(self, x: Array) -> Array:
        hidden = self.control(np.concatenate([x, self.reads.reshape(-1)]))
        vector = iter(self.linear("accessor.interface.linear", hidden))
        if self.kind == "ntm":
            self.access_static(vector)
        else:
            self.access_dynamic(vector)
        assert next(vector, None) is None, "the interface vector is longer than its parts"
        self.reads = np.array([loops.read(self.memory, weights) for weights in self.read_weights])
        return clip(self.linear("output", np.concatenate([hidden, self.reads.reshape(-1)])), self.clip)

    def access_static(self, vector: Iterator[float]) -> None:
        heads, width = self.num_reads + self.num_writes, self.word_size
        keys = take(vector, heads, width, math.tanh)
        strengths = take(vector, 1, heads, softplus)[0]
        gates = take(vector, 1, heads, sigmoid)[0]
        shifts = [loops.softmax(row) for row in take(vector, heads, 2 * self.options.get("shift_range", 1) + 1)]
        sharpness = take(vector, 1, heads, oneplus)[0]
        erase = take(vector, self.num_writes, width, sigmoid)
        add = take(vector, self.num_writes, width, math.tanh)
        masked = self.options.get("masked_content", False)
        masks = take(vector, heads, width, lookup_mask) if masked else [None] * heads

        def address(head: int, previous: Array) -> Array:
            found = loops.content(self.memory, keys[head], strengths[head], masks[head])
            return loops.location(found, previous, gates[head], shifts[head], sharpness[head])

        # NTM eqs. 2 and 5: what is read at a step is looked up in the memory of that step, which is written first.
        written = enumerate(self.write_weights, start=self.num_reads)
        self.write_weights = np.array([address(head, previous) for head, previous in written])
        self.memory = loops.write(self.memory, self.write_weights, erase, add)
        self.read_weights = np.array([address(head, previous) for head, previous in enumerate(self.read_weights)])

    def access_dynamic(self, vector: Iterator[float]) -> None:
        reads, writes, width = self.num_reads, self.num_writes, self.word_size
        squash = math.tanh if self.options.get("squash") == "tanh" else None
        read_keys = take(vector, reads, width, squash)
        read_strengths = take(vector, 1, reads, oneplus)[0]
        write_keys = take(vector, writes, width, squash)
        write_strengths = take(vector, 1, writes, oneplus)[0]
        erase = take(vector, writes, width, sigmoid)
        add = take(vector, writes, width, squash)
        free = take(vector, 1, reads, sigmoid)[0]
        allocation_gates = take(vector, 1, writes, sigmoid)[0]
        write_gates = take(vector, 1, writes, sigmoid)[0]
        modes = [loops.softmax(row) for row in take(vector, reads, 1 + 2 * writes)]
        masked = self.options.get("masked_content", False)
        read_masks = take(vector, reads, width, lookup_mask) if masked else [None] * reads
        write_masks = take(vector, writes, width, lookup_mask) if masked else [None] * writes
        sharpened = self.options.get("link_sharpening", False)
        powers = take(vector, reads, 2 * writes, oneplus) if sharpened else None

        self.usage = loops.usage(self.usage, self.write_weights, free, self.read_weights)
        allocations = loops.allocations(self.usage, allocation_gates * write_gates)
        weights = []
        for head in range(writes):
            found = loops.content(self.memory, write_keys[head], write_strengths[head], write_masks[head])
            share = allocation_gates[head]
            weights.append(write_gates[head] * (share * allocations[head] + (1 - share) * found))
        self.write_weights = np.array(weights)
        memory = self.memory
        if self.options.get("memory_wipe", False):
            memory = memory * loops.retention(free, self.read_weights)[:, None]
        self.memory = loops.write(memory, self.write_weights, erase, add)

        for head in range(writes):
            written = self.write_weights[head]
            self.link[head] = loops.link(self.link[head], self.precedence[head], written)
            self.precedence[head] = loops.precedence(self.precedence[head], written)
        new = []
        for head in range(reads):
            ways = [loops.backward(link, self.read_weights[head]) for link in self.link]
            ways += [loops.forward(link, self.read_weights[head]) for link in self.link]
            if powers is not None:
                ways = [loops.sharpen_links(way, power) for way, power in zip(ways, powers[head], strict=True)]
            found = loops.content(self.memory, read_keys[head], read_strengths[head], read_masks[head])
            ways = [*ways[:writes], found, *ways[writes:]]
            new.append(sum(mode * way for mode, way in zip(modes[head], ways, strict=True)))
        self.read_weights = np.array(new)
