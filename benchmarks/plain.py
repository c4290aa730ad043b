"""The NTM and the DNC written by the book: one plain eager PyTorch step after another.

What the ratios of ``speed.py`` refer to. Nothing here is tuned or shared with the library, on purpose.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def cosine(memory: Tensor, keys: Tensor) -> Tensor:
    """Cosine similarity of keys ``[B, K, W]`` with slots ``[B, N, W]``, ``[B, K, N]``."""
    norms = keys.norm(dim=-1, keepdim=True) * memory.norm(dim=-1).unsqueeze(1)
    return keys @ memory.transpose(1, 2) / (norms + 1e-6)


class PlainCircuit(nn.Module):
    """The loop over time that both circuits share; batch-first inside a step, time first outside."""

    def initial(self, batch_size: int) -> tuple[Tensor, ...]:
        """State before the first step."""
        raise NotImplementedError

    def step(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Output and next state."""
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor:
        """``[T, B, I]`` -> ``[T, B, O]``."""
        state = self.initial(inputs.shape[1])
        outputs = []
        for x in inputs:
            y, *rest = self.step(x, *state)
            state = tuple(rest)
            outputs.append(y)
        return torch.stack(outputs)


class PlainNTM(PlainCircuit):
    """NTM with an LSTM controller, one read and one write head, shifts of -1, 0 and 1."""

    def __init__(self, input_size: int, output_size: int, hidden_size: int, slots: int, word: int) -> None:
        super().__init__()
        self.hidden_size, self.slots, self.word = hidden_size, slots, word
        self.cell = nn.LSTMCell(input_size + word, hidden_size)
        self.sizes = [2 * word, 2, 2, 6, 2, word, word]
        self.interface = nn.Linear(hidden_size, sum(self.sizes))
        self.output = nn.Linear(hidden_size + word, output_size)

    def initial(self, batch_size: int) -> tuple[Tensor, ...]:
        new_zeros = self.output.weight.new_zeros
        weights = new_zeros(batch_size, 2, self.slots)
        weights[..., 0] = 1
        zeros = new_zeros(batch_size, self.hidden_size)
        memory = torch.full_like(new_zeros(batch_size, self.slots, self.word), 1e-6)
        return zeros, zeros, memory, weights, new_zeros(batch_size, self.word)

    def step(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        hidden, cell, memory, weights, read = state
        hidden, cell = self.cell(torch.cat([x, read], 1), (hidden, cell))
        keys, strengths, gate, shift, sharpness, erase, add = self.interface(hidden).split(self.sizes, 1)
        keys = torch.tanh(keys).view(-1, 2, self.word)
        strengths = functional.softplus(strengths).unsqueeze(-1)
        gate = torch.sigmoid(gate).unsqueeze(-1)
        shift = functional.softmax(shift.view(-1, 2, 3), -1)
        sharpness = 1 + functional.softplus(sharpness).unsqueeze(-1)

        def address(head: slice) -> Tensor:
            content = functional.softmax(strengths[:, head] * cosine(memory, keys[:, head]), -1)
            gated = gate[:, head] * content + (1 - gate[:, head]) * weights[:, head]
            back, stay, on = shift[:, head].split(1, -1)
            shifted = gated.roll(-1, -1) * back + gated * stay + gated.roll(1, -1) * on
            powered = (shifted + 1e-16) ** sharpness[:, head]
            return powered / powered.sum(-1, keepdim=True)

        writing = address(slice(1, 2))
        written = writing.transpose(1, 2)
        memory = memory * (1 - written * torch.sigmoid(erase).unsqueeze(1)) + written * torch.tanh(add).unsqueeze(1)
        reading = address(slice(0, 1))
        weights = torch.cat([reading, writing], 1)
        read = (reading @ memory).squeeze(1)
        return self.output(torch.cat([hidden, read], 1)), hidden, cell, memory, weights, read


class PlainDNC(PlainCircuit):
    """DNC with an LSTM controller and one write head."""

    def __init__(self, input_size: int, output_size: int, hidden_size: int, slots: int, word: int, reads: int) -> None:
        super().__init__()
        self.hidden_size, self.slots, self.word, self.reads = hidden_size, slots, word, reads
        self.cell = nn.LSTMCell(input_size + reads * word, hidden_size)
        self.sizes = [reads * word, reads, word, 1, word, word, reads, 1, 1, 3 * reads]
        self.interface = nn.Linear(hidden_size, sum(self.sizes))
        self.output = nn.Linear(hidden_size + reads * word, output_size)

    def initial(self, batch_size: int) -> tuple[Tensor, ...]:
        shapes = [
            (self.hidden_size,),
            (self.hidden_size,),
            (self.slots, self.word),
            (self.slots,),
            (self.slots,),
            (self.slots, self.slots),
            (self.slots,),
            (self.reads, self.slots),
            (self.reads * self.word,),
        ]
        return tuple(self.output.weight.new_zeros(batch_size, *shape) for shape in shapes)

    def step(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        hidden, cell, memory, usage, precedence, link, write_weights, read_weights, read = state
        hidden, cell = self.cell(torch.cat([x, read], 1), (hidden, cell))
        parts = self.interface(hidden.clamp(-20, 20)).split(self.sizes, 1)
        read_keys, read_strengths, write_key, write_strength, erase, add, free, allocate, write, modes = parts
        read_keys = read_keys.view(-1, self.reads, self.word)
        read_strengths = 1 + functional.softplus(read_strengths).unsqueeze(-1)
        write_strength = 1 + functional.softplus(write_strength).unsqueeze(-1)
        free = torch.sigmoid(free).unsqueeze(-1)
        allocate, write = torch.sigmoid(allocate), torch.sigmoid(write)
        modes = functional.softmax(modes.view(-1, self.reads, 3), -1)

        retained = (1 - free * read_weights).prod(1)
        usage = (usage + write_weights - usage * write_weights) * retained
        ascending, order = (1e-6 + (1 - 1e-6) * usage).sort(-1)
        smaller = torch.cat([torch.ones_like(ascending[:, :1]), ascending[:, :-1]], 1).cumprod(-1)
        allocation = torch.zeros_like(usage).scatter(1, order, (1 - ascending) * smaller)
        content = functional.softmax(write_strength * cosine(memory, write_key.unsqueeze(1)), -1).squeeze(1)
        write_weights = write * (allocate * allocation + (1 - allocate) * content)
        written = write_weights.unsqueeze(-1)
        memory = memory * (1 - written * torch.sigmoid(erase).unsqueeze(1)) + written * add.unsqueeze(1)

        row, column = write_weights.unsqueeze(2), write_weights.unsqueeze(1)
        link = (1 - row - column) * link + row * precedence.unsqueeze(1)
        link = link * (1 - torch.eye(self.slots, device=link.device))
        precedence = (1 - write_weights.sum(1, keepdim=True)) * precedence + write_weights
        forward = read_weights @ link.transpose(1, 2)
        backward = read_weights @ link
        content = functional.softmax(read_strengths * cosine(memory, read_keys), -1)
        read_weights = modes[..., :1] * backward + modes[..., 1:2] * content + modes[..., 2:] * forward
        read = (read_weights @ memory).flatten(1)
        output = self.output(torch.cat([hidden, read], 1))
        return output, hidden, cell, memory, usage, precedence, link, write_weights, read_weights, read
