"""One sequence with its answer and what the heads did: what pictures of the memory are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...core.trace_field import Channels, TraceField

if TYPE_CHECKING:
    from torch import Tensor

    from ...core.env import Batch
    from ...core.trace import Trace


Array: TypeAlias = NDArray[np.float32]
"""What pictures are drawn from: arrays of float32."""
Pixels: TypeAlias = NDArray[np.uint8]
"""An image, one byte for each colour of a pixel."""

MOST_PICTURES = 64
"""Of one field in an episode."""

MOST_TOKENS = 40
"""That a picture has a row for, each; of more, those alone that an episode has."""

USED = 0.05
"""A slot counts as used from this weight on; pictures are cropped to used slots."""


class Axis(NamedTuple):
    """An axis of a field. Parts of a circuit may use one letter for different things, so that its size counts, too."""

    letter: str
    size: int


class Seen(NamedTuple):
    """One field of a trace."""

    values: Array
    """``[T, …]``, with the axes that the field has after time and batch."""
    field: TraceField

    @property
    def axes(self) -> list[str]:
        """Letters of the axes after time."""
        return self.field.axes.split()

    @property
    def sized_axes(self) -> list[Axis]:
        """The same with their sizes."""
        return [Axis(*axis) for axis in zip(self.axes, self.values.shape[1:], strict=True)]


class Episode(NamedTuple):
    """One sequence with its answer and what the heads did: float32 numpy arrays, ready to be pickled.

    T steps, I inputs, O outputs; None for what is not there.
    """

    name: str
    """What the sequence is, such as ``length 40``."""
    inputs: Array | None = None
    """``[T, I]``"""
    targets: Array | None = None
    """``[T, O]``"""
    outputs: Array | None = None
    """``[T, O]``, probabilities where there are targets."""
    mask: Array | None = None
    """``[T]``: 1 where the output counts."""
    seen: Mapping[str, Seen] = {}
    """What the heads and the memory did, each field of the trace by its name."""
    input_channels: Sequence[Channels] = ()
    """What the channels of an input are; nothing is known where there are none."""
    output_channels: Sequence[Channels] = ()
    """What the channels of an output are."""
    pictures: Mapping[str, tuple[Sequence[int], Pixels]] = {}
    """What things look like, by name: the steps, and their pictures as bytes ``[K, rows, columns, 3]``."""
    examples: bool = False
    """Whether these are not T steps but T examples of a single step each, such as images."""

    @property
    def steps(self) -> int:
        """T."""
        parts = (self.inputs, self.targets, self.outputs, *(seen.values for seen in self.seen.values()))
        lengths = [len(part) for part in parts if part is not None]
        return lengths[0] if lengths else max(steps[-1] + 1 for steps, _ in self.pictures.values())

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """Rows and columns of an input that is an image."""
        shapes = [channels.shape for channels in self.input_channels]
        return shapes[0] if len(shapes) == 1 else None

    @property
    def judged(self) -> bool:
        """Whether any output counts; none does in a world, which gives rewards instead of targets."""
        return self.mask is not None and bool(self.mask.any())

    def of_kind(self, *kinds: str) -> dict[str, Seen]:
        """The fields of some kinds, by name."""
        return {name: seen for name, seen in self.seen.items() if seen.field.kind in kinds}


def plain(tensor: Tensor, steps: int | None = None, sequence: int = 0) -> Array:
    """One sequence of ``[T, B, …]`` as numbers of its own that nobody can change, ``[T, …]``."""
    array: Array = tensor[:steps, sequence].detach().float().cpu().numpy().copy()
    array.flags.writeable = False
    return array


def episode_from(
    name: str,
    batch: Batch,
    outputs: Tensor,
    trace: Trace,
    input_channels: Sequence[Channels] = (),
    output_channels: Sequence[Channels] = (),
) -> Episode:
    """The first sequence of a batch, cut off after its last counted step, on the CPU; of images, the whole batch.

    Args:
        name: what the sequence is.
        batch: time first, as an env hands it out.
        outputs: logits, ``[T, B, O]``.
        trace: what the heads did, time first.
        input_channels: what the channels of an input are, if that is known.
        output_channels: what the channels of an output are.
    """
    outputs = _probabilities(outputs, output_channels)
    inputs, targets, mask = batch
    if are_tokens(inputs):
        known = sum(group.size for group in input_channels)
        kept, input_channels = _kept(inputs[:, 0], known or int(inputs.max()) + 1, input_channels)
        inputs = one_hot(inputs, kept)
    if are_tokens(targets):
        import torch  # which what draws does without

        first = mask[:, 0] > 0
        seen = torch.cat([targets[first, 0], outputs[first, 0].argmax(-1)])
        kept, output_channels = _kept(seen, outputs.shape[-1], output_channels)
        targets, outputs = one_hot(targets, kept) * mask.unsqueeze(-1), outputs[..., kept]
    counted = np.flatnonzero(plain(mask))
    steps: int | None = int(counted[-1]) + 1 if len(counted) else len(mask)
    examples = len(mask) == 1 and len(input_channels) == 1 and input_channels[0].shape is not None

    def taken(tensor: Tensor) -> Array:
        return plain(tensor.transpose(0, 1)) if examples else plain(tensor, steps)

    of_kind = {field: trace.fields[field].kind for field in trace}
    images: dict[str, Tensor] = {}
    if not examples:
        inputs, input_channels, images = _images_apart(inputs, input_channels)
    images |= {field: trace[field] for field in trace if of_kind[field] == "picture"}
    return Episode(
        name,
        taken(inputs),
        taken(targets),
        taken(outputs),
        taken(mask),
        {field: Seen(taken(trace[field]), trace.fields[field]) for field in trace if of_kind[field] != "picture"},
        tuple(input_channels),
        tuple(output_channels),
        {image: pictures_of(tensor, steps) for image, tensor in images.items()},
        examples,
    )


def are_tokens(tensor: Tensor) -> bool:
    """Whether these are whole numbers ``[T, B]``, tokens or classes, rather than vectors."""
    return tensor.dim() == 2 and not tensor.is_floating_point()


def one_hot(tokens: Tensor, kept: Tensor | int) -> Tensor:
    """Tokens ``[…]`` as vectors ``[…, K]``, 1 where they are one of those that are kept, or of the first K."""
    import torch  # which what draws does without

    every = torch.arange(kept, device=tokens.device) if isinstance(kept, int) else kept
    return (tokens.unsqueeze(-1) == every).float()


def _kept(seen: Tensor, size: int, channels: Sequence[Channels]) -> tuple[Tensor, Sequence[Channels]]:
    """The tokens that are drawn, ``[K]``, with their names: all, or too many, those that are seen."""
    import torch  # which what draws does without

    if size <= MOST_TOKENS or len(channels) != 1:
        return torch.arange(size, device=seen.device), channels
    kept, group = seen.unique(), channels[0]
    labels = tuple(group.labels[token] if group.labels else str(token) for token in kept.tolist())
    return kept, (group._replace(size=len(kept), labels=labels),)


def _probabilities(outputs: Tensor, channels: Sequence[Channels]) -> Tensor:
    """Of each output: where one of several is chosen they sum to 1."""
    sizes = [group.size for group in channels]
    if sum(sizes) != outputs.shape[-1]:
        return outputs.sigmoid()
    import torch  # which what draws does without

    parts = zip(outputs.split(sizes, -1), channels, strict=True)
    return torch.cat([part.softmax(-1) if group.choice else part.sigmoid() for part, group in parts], -1)


def _images_apart(inputs: Tensor, channels: Sequence[Channels]) -> tuple[Tensor, Sequence[Channels], dict[str, Tensor]]:
    """Inputs ``[T, B, I]`` without the pixels of images, if anything is left, and these as pictures, grey."""
    sizes = [group.size for group in channels]
    rest = [group for group in channels if group.shape is None]
    if not rest or len(rest) == len(channels) or sum(sizes) != inputs.shape[-1]:
        return inputs, channels, {}
    import torch  # which what draws does without

    parts = list(zip(channels, inputs.split(sizes, -1), strict=True))
    images = {
        group.name: (255 * part.clamp(0, 1)).unflatten(-1, (*group.shape, 1)).expand(*(-1,) * 4, 3)
        for group, part in parts
        if group.shape is not None
    }
    return torch.cat([part for group, part in parts if group.shape is None], -1), rest, images


def pictures_of(tensor: Tensor, steps: int | None = None, sequence: int = 0) -> tuple[Sequence[int], Pixels]:
    """Some of one sequence's pictures ``[T, B, rows, columns, 3]``, with their steps."""
    pictures = tensor[:steps, sequence]
    between = -(-len(pictures) // MOST_PICTURES)
    return list(range(0, len(pictures), between)), pictures[::between].byte().cpu().numpy().copy()


def chosen(values: Array, channels: Sequence[Channels]) -> NDArray[np.bool_]:
    """Which channels ``[T, channels]`` are the largest of those of which one is chosen; none where nothing is."""
    found = np.zeros(values.shape, np.bool_)
    start = 0
    for group in channels if sum(group.size for group in channels) == values.shape[1] else ():
        if group.choice:
            largest = values[:, start : start + group.size].argmax(1)
            found[np.arange(len(values)), start + largest] = True
        start += group.size
    return found


def wrong_bits(episode: Episode) -> NDArray[np.bool_]:
    """Which counted outputs are wrong, ``[T, O]``: on the wrong side of one half, or chosen in place of another.

    None is where there are no targets.
    """
    if episode.outputs is None or episode.targets is None or episode.mask is None:
        return np.zeros((episode.steps, 0), np.bool_)
    wrong: NDArray[np.bool_] = (episode.outputs > 0.5) != (episode.targets > 0.5)
    channels = episode.output_channels
    if episode.judged and any(group.choice for group in channels):
        one_of = np.repeat([group.choice for group in channels], [group.size for group in channels])
        taken = chosen(episode.outputs, channels)
        wrong = np.where(one_of, taken & ~chosen(episode.targets, channels), wrong)
    return wrong & (episode.mask[:, None] > 0)


class Slots(NamedTuple):
    """The slots that a picture shows, counted round the memory's end: -2 is the last but one."""

    first: int
    last: int
    total: int

    @property
    def indices(self) -> NDArray[np.int_]:
        """Of each slot shown, within the memory."""
        return np.arange(self.first, self.last + 1) % self.total

    @property
    def label(self) -> str:
        """For a title; empty where all slots are shown."""
        if self.last - self.first + 1 == self.total:
            return ""
        first, last = self.first % self.total, self.last % self.total
        shown = f"{first}–{last}" if first <= last else f"{first}–{self.total - 1} and 0–{last}"
        return f", slots {shown} of {self.total}"

    @property
    def end(self) -> float | None:
        """Where the memory's end lies between two rows, if it lies within what is shown."""
        return -self.first - 0.5 if self.first < 0 else None


def slot_axes(episode: Episode) -> dict[Axis, Slots]:
    """The axes that are slots, with the slots that are used.

    They are those of each memory, and those that are called N.
    """
    memories = episode.of_kind("memory").values()
    axes = dict.fromkeys(seen.sized_axes[-2] for seen in memories)
    axes |= dict.fromkeys(axis for seen in episode.seen.values() for axis in seen.sized_axes if axis.letter == "N")
    return {axis: used_slots(episode, axis) for axis in axes}


def used_slots(episode: Episode, axis: Axis) -> Slots:
    """The shortest stretch of slots (round the memory's end if need be) with all that a weighting used, or all.

    Args:
        episode: has an axis of slots.
        axis: that one.
    """
    total = axis.size
    weights = [seen.values for seen in episode.of_kind("weighting").values() if seen.sized_axes[-1] == axis]
    everything = Slots(0, total - 1, total)
    if not weights or total <= 32:
        return everything
    used = np.flatnonzero(np.max([part.reshape(-1, total).max(axis=0) for part in weights], axis=0) > USED)
    if not len(used):
        return everything
    gaps = np.diff(used, append=used[0] + total)
    widest = int(gaps.argmax())
    length = total - int(gaps[widest]) + 1
    if length > 0.6 * total:
        return everything
    last = int(used[widest])
    first = last - length + 1
    if first < 0:
        return Slots(first - 2, last + 2, total)
    return Slots(max(first - 2, 0), min(last + 2, total - 1), total)
