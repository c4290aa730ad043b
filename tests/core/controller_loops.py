"""Controllers with a memory of their own as plain loops over single numbers, in float64, one sequence at a time.

An oracle for tests, written from the papers; it takes the weights of a controller by name, and shares no code with it.
Each function gives the hidden vector of every step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, Array]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def dot(left: Any, right: Any) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


def linear(weights: Weights, name: str, x: Any) -> list[float]:
    rows = weights[f"{name}.weight"]
    bias = weights.get(f"{name}.bias", np.zeros(len(rows)))
    return [dot(row, x) + b for row, b in zip(rows, bias, strict=True)]


def layer_norm(weights: Weights, name: str, x: Any) -> list[float]:
    mean = math.fsum(x) / len(x)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in x) / len(x) + 1e-5)
    gains, shifts = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return [(value - mean) / deviation * g + b for value, g, b in zip(x, gains, shifts, strict=True)]


def softmax(x: list[float]) -> list[float]:
    powers = [math.exp(value - max(x)) for value in x]
    return [power / math.fsum(powers) for power in powers]


def glu(x: list[float]) -> list[float]:
    half = len(x) // 2
    return [x[index] * sigmoid(x[half + index]) for index in range(half)]


def within(x: float, bound: float) -> float:
    return min(max(x, -bound), bound)


def plastic(inputs: Array, weights: Weights, options: Any) -> list[list[float]]:
    fixed, alpha = weights["recurrent.weight"], weights["plasticity"]
    size, rule = len(fixed), options.rule
    units = range(size)
    eta = float(weights.get("rate", 0.0))
    before = [0.0] * size
    hebb, eligible = np.zeros((size, size)), np.zeros((size, size))
    answers = []
    for x in inputs:
        driven = linear(weights, "input", x)
        now = []
        for j in units:
            total = driven[j] + math.fsum((fixed[j, i] + alpha[j, i] * hebb[j, i]) * before[i] for i in units)
            now.append(math.tanh(total))
        if rule in ("modulated", "retroactive"):
            m = math.tanh(linear(weights, "modulator", now)[0])
            scale = [float(weights["fan_out.weight"][j, 0]) * m + float(weights["fan_out.bias"][j]) for j in units]
        for j in units:
            for i in units:
                pair, old = before[i] * now[j], hebb[j, i]
                if rule == "decay":
                    hebb[j, i] = eta * pair + (1 - eta) * old
                elif rule == "oja":
                    hebb[j, i] = old + eta * now[j] * (before[i] - now[j] * old)
                elif rule == "clip":
                    hebb[j, i] = within(old + eta * pair, 1.0)
                elif rule == "modulated":
                    hebb[j, i] = within(old + scale[j] * pair, 1.0)
                else:
                    hebb[j, i] = within(old + scale[j] * eligible[j, i], 1.0)
                    eligible[j, i] = (1 - eta) * eligible[j, i] + eta * pair
        before = now
        answers.append(now)
    return answers


def automaton(inputs: Array, weights: Weights, options: Any) -> list[list[float]]:
    count = options.num_states
    number = options.hidden_size - count
    states = [1.0] + [0.0] * (count - 1)
    answers = []
    for x in inputs:
        summed, fed_back = linear(weights, "inputs.0", x), linear(weights, "recurrents.0", states)
        units = [math.tanh(summed[unit] + fed_back[unit]) for unit in range(number)]
        after = [0.0] * count
        for before in range(count):
            column = [summed[number + to * count + before] / options.temperature for to in range(count)]
            for to, likelihood in enumerate(softmax(column)):
                after[to] += likelihood * states[before]
        if options.discrete:
            likeliest = after.index(max(after))
            states = [float(to == likeliest) for to in range(count)]
        else:
            powers = [likelihood**options.sharpening for likelihood in after]
            states = [power / math.fsum(powers) for power in powers]
        answers.append(units + states)
    return answers


def leaky(inputs: Array, weights: Weights, options: Any) -> list[list[float]]:
    def f(x: float) -> float:
        if options.activation == "tanh":
            return math.tanh(x)
        return x if x > 0 else 0.01 * x

    layers, size = options.num_layers, options.hidden_size
    hidden = [[0.0] * size for _ in range(layers)]
    answers = []
    for x in inputs:
        fed: Any = x
        for layer in range(layers):
            driven = linear(weights, f"inputs.{layer}", fed)
            recurrent, bias = weights[f"recurrents.{layer}.weight"], weights[f"recurrents.{layer}.bias"]
            timescales = weights["timescale"][layer]
            now = []
            for i in range(size):
                tau = max(1.0, float(timescales[i if len(timescales) > 1 else 0]))
                total = driven[i] + bias[i]
                for j in range(size):
                    if j != i:
                        total += recurrent[i, j] * hidden[layer][j]
                kept = (1 - 1 / tau) * hidden[layer][i]
                now.append(f(kept + total / tau) if options.leak_inside else kept + f(total) / tau)
            hidden[layer] = now
            fed = now
        answers.append(list(fed))
    return answers


def reservoir(inputs: Array, weights: Weights, options: Any) -> list[list[float]]:
    size = len(weights["bias"])
    before = [0.0] * size
    answers = []
    for x in inputs:
        now = []
        for unit in range(size):
            total = dot(weights["input"][unit], x) + dot(weights["recurrent"][unit], before) + weights["bias"][unit]
            now.append((1 - options.leak) * before[unit] + options.leak * math.tanh(total))
        before = now
        answers.append(now)
    return answers


def relational(inputs: Array, weights: Weights, options: Any) -> list[list[float]]:
    heads, value_size = options.num_heads, options.head_size
    key_size = options.key_size or value_size
    width, per_head = heads * value_size, 2 * key_size + value_size
    slots = [[float(column == row) for column in range(width)] for row in range(options.memory_size)]
    answers = []
    for x in inputs:
        entered = linear(weights, "input", x)
        rows = [*slots, entered]
        for number in range(options.num_blocks):
            block = f"blocks.{number}"
            projected = [
                layer_norm(weights, f"{block}.project_norm", linear(weights, f"{block}.project", row)) for row in rows
            ]
            attended = [[0.0] * width for _ in rows]
            for head in range(heads):
                start = head * per_head
                query = [row[start : start + key_size] for row in projected]
                key = [row[start + key_size : start + 2 * key_size] for row in projected]
                value = [row[start + 2 * key_size : start + per_head] for row in projected]
                for one in range(len(rows)):
                    shares = softmax([dot(query[one], other) / math.sqrt(key_size) for other in key])
                    for element in range(value_size):
                        attended[one][head * value_size + element] = dot(shares, [other[element] for other in value])
            mixed = []
            for row, more in zip(rows, attended, strict=True):
                after = layer_norm(weights, f"{block}.attention_norm", [a + b for a, b in zip(row, more, strict=True)])
                through = after
                for layer in range(options.mlp_layers):
                    through = linear(weights, f"{block}.layers.{layer}", through)
                    if layer < options.mlp_layers - 1:
                        through = [max(value, 0.0) for value in through]
                mixed.append(
                    layer_norm(weights, f"{block}.layers_norm", [a + b for a, b in zip(through, after, strict=True)])
                )
            rows = mixed
        made = []
        for old, new in zip(slots, rows[:-1], strict=True):
            if options.gating == "none":
                made.append(new)
                continue
            gates = [
                a + b
                for a, b in zip(
                    linear(weights, "input_gates", entered),
                    linear(weights, "memory_gates", [math.tanh(value) for value in old]),
                    strict=True,
                )
            ]
            half = len(gates) // 2
            slot = []
            for element in range(width):
                at = element if options.gating == "unit" else 0
                taken = sigmoid(gates[at] + options.input_bias)
                kept = sigmoid(gates[half + at] + options.forget_bias)
                slot.append(taken * math.tanh(new[element]) + kept * old[element])
            made.append(slot)
        slots = made
        answers.append([value for slot in slots for value in slot])
    return answers


def hyper_lstm(inputs: Array, weights: Weights, options: Any) -> list[list[float]]:
    layers, size, small, width = options.num_layers, options.hidden_size, options.hyper_size, options.embedding_size
    hidden, cell = [[0.0] * size for _ in range(layers)], [[0.0] * size for _ in range(layers)]
    hyper_hidden, hyper_cell = [[0.0] * small for _ in range(layers)], [[0.0] * small for _ in range(layers)]

    def ended(name: str, gates: list[list[float]], old: list[float]) -> tuple[list[float], list[float]]:
        if options.layer_norm:
            gates = [layer_norm(weights, f"{name}.norms.{gate}", gates[gate]) for gate in range(4)]
        i, f, g, o = gates
        units = range(len(old))
        new = [sigmoid(f[u] + 1) * old[u] + sigmoid(i[u]) * math.tanh(g[u]) for u in units]
        shown = layer_norm(weights, f"{name}.norms.4", new) if options.layer_norm else new
        return [sigmoid(o[u]) * math.tanh(shown[u]) for u in units], new

    def cut(values: list[float]) -> list[list[float]]:
        part = len(values) // 4
        return [values[gate * part : (gate + 1) * part] for gate in range(4)]

    answers = []
    for x in inputs:
        fed: Any = list(x)
        for layer in range(layers):
            at = f"layers.{layer}"
            both = [*fed, *hidden[layer]]
            sums = [
                a + b
                for a, b in zip(
                    linear(weights, f"{at}.hyper_input", both),
                    linear(weights, f"{at}.hyper_recurrent", hyper_hidden[layer]),
                    strict=True,
                )
            ]
            hyper_hidden[layer], hyper_cell[layer] = ended(f"{at}.hyper_gates", cut(sums), hyper_cell[layer])
            embedded = linear(weights, f"{at}.embed_scales", hyper_hidden[layer])
            shifted = linear(weights, f"{at}.embed_bias", hyper_hidden[layer])
            of_input, of_hidden = (
                cut(linear(weights, f"{at}.input", fed)),
                cut(linear(weights, f"{at}.recurrent", hidden[layer])),
            )
            to_scales, to_bias, bias = (weights[f"{at}.{name}"] for name in ("to_scales", "to_bias", "bias"))
            gates = []
            for gate in range(4):
                z_x = embedded[gate * width : (gate + 1) * width]
                z_h = embedded[(4 + gate) * width : (5 + gate) * width]
                z_b = shifted[gate * width : (gate + 1) * width]
                gates.append(
                    [
                        dot(to_scales[0, gate, unit], z_x) * of_input[gate][unit]
                        + dot(to_scales[1, gate, unit], z_h) * of_hidden[gate][unit]
                        + dot(to_bias[gate, unit], z_b)
                        + bias[gate, unit]
                        for unit in range(size)
                    ]
                )
            hidden[layer], cell[layer] = ended(f"{at}.gates", gates, cell[layer])
            fed = hidden[layer]
        answers.append(list(fed))
    return answers


def ctm(inputs: Array, weights: Weights, options: Any) -> list[list[float]]:
    neurons, pairs = options.neurons, weights["pairs"].astype(int)
    history = [list(row) for row in weights["initial_history"]]
    activity = list(weights["initial_activity"])
    activities = [activity]  # of all ticks
    answers = []
    for x in inputs:
        features = layer_norm(weights, "features.2", glu(linear(weights, "features.0", x)))
        for _ in range(options.ticks):
            mixed = layer_norm(weights, "synapses.2", glu(linear(weights, "synapses.0", [*features, *activity])))
            activity = []
            for neuron in range(neurons):
                history[neuron] = [*history[neuron][1:], mixed[neuron]]
                values = history[neuron]
                for layer in ("first", "second"):
                    weight, bias = weights[f"{layer}.weight"][neuron], weights[f"{layer}.bias"][neuron]
                    values = glu([dot(weight[:, out], values) + bias[out] for out in range(weight.shape[1])])
                activity.append(values[0])
            activities.append(activity)
        read = []
        for pair in range(options.hidden_size):
            rate = math.log1p(math.exp(weights["decay"][pair]))
            left, right = pairs[0, pair], pairs[1, pair]
            ages = range(len(activities) - 1, -1, -1)
            shares = [math.exp(-rate * age) for age in ages]
            total = math.fsum(s * z[left] * z[right] for s, z in zip(shares, activities, strict=True))
            read.append(total / math.sqrt(math.fsum(shares)))
        answers.append(read)
    return answers
