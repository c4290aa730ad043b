"""TokenEnv: a task whose inputs are tokens and whose answers are classes, such as the tasks of formal languages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from .env import Batch, Env
from .lengths import picked
from .trace_field import Channels

MANY_CLASSES = 64
"""From so many on, steps that do not count are left out; below, the answers to them cost next to nothing."""


class TokenEnv(Env):
    """A task of tokens: inputs are whole numbers ``[T, B]`` below I, targets are classes ``[T, B]`` below O.

    The loss is the cross-entropy of a softmax over the classes, where the mask says that an answer counts. A subclass
    sets ``input_size`` and ``output_size`` in :meth:`setup` and implements :meth:`sample`, for which :meth:`asked` puts
    an answer behind a question. One whose inputs are vectors ``[T, B, I]`` sets ``token_inputs = False``.
    """

    token_inputs = True
    class_targets = True
    error_metric: ClassVar[str] = "error_rate"

    loss_per: Literal["sequence", "position"] = Field(  # type: ignore[assignment]
        default="position",
        description="what the training loss is the mean of: the summed loss of each sequence, or the loss of each "
        "answer that counts",
    )
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the target that is spread over all classes in the training loss, as in "
        "torch.nn.CrossEntropyLoss; the loss that is reported has none",
    )
    think_steps: int = Field(
        default=0, ge=0, description="steps between a question and its answer, with a token of their own"
    )

    def input_names(self) -> Sequence[str]:
        """What each of the I tokens is called, in pictures; here, nothing: they are numbered."""
        return ()

    def output_names(self) -> Sequence[str]:
        """What each of the O classes is called; see :meth:`input_names`."""
        return ()

    def input_channels(self) -> Sequence[Channels]:
        """The tokens, as one-hot vectors."""
        return [Channels("token", self.input_size, tuple(self.input_names()), choice=True)]

    def output_channels(self) -> Sequence[Channels]:
        """The classes."""
        return [Channels("class", self.output_size, tuple(self.output_names()), choice=True)]

    def steps_to_think(self, length: int) -> int:
        """Steps between a question of so many tokens and its answer; here, as many for each."""
        return self.think_steps

    def asked(self, question: Tensor, answer: Tensor, counts: Tensor | None = None) -> Batch:
        """A question, steps to think, then one step for each class of the answer, in which the input says nothing else.

        The last of the I tokens stands for a step of the answer, the last but one for a step to think, if there are
        any: see :attr:`extra_names`.

        Args:
            question: tokens, ``[Q, B]``.
            answer: classes, ``[A, B]``.
            counts: which of the answer counts, ``[A, B]``; None counts all.

        Returns:
            A batch of Q + :meth:`steps_to_think` + A steps.
        """
        length, batch_size = question.shape
        thinking = question.new_full((self.steps_to_think(length), batch_size), self.input_size - 2)
        before = torch.cat([question, thinking])
        inputs = torch.cat([before, torch.full_like(answer, self.input_size - 1)])
        mask = torch.zeros(inputs.shape, device=inputs.device, dtype=torch.get_default_dtype())
        mask[len(before) :] = 1 if counts is None else counts.to(mask)
        return Batch(inputs, torch.cat([torch.zeros_like(before), answer]), mask)

    @property
    def extra_names(self) -> tuple[str, ...]:
        """Names of the tokens that :meth:`asked` needs beside those of questions: the last of the I tokens."""
        return ("think", "answer") if self.steps_to_think(1) else ("answer",)

    def counted(self, batch: Batch) -> tuple[Tensor, Batch] | None:
        """See :meth:`Env.counted`: where there are many classes, and no more than half of the steps count."""
        if self.output_size < MANY_CLASSES:  # first: to count, a GPU would be waited for
            return None
        most = int(batch.mask.count_nonzero(0).max())
        if 2 * most > batch.mask.shape[0]:
            return None
        at = (batch.mask == 0).byte().argsort(dim=0, stable=True)[:most]
        return at, Batch(*(picked(part, at) for part in batch))

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Masked cross-entropy of each answer in nats, with targets smoothed by :attr:`label_smoothing`.

        Args:
            outputs: logits, ``[T, B, O]``.
            batch: the batch that was answered.

        Returns:
            ``[T, B]``.
        """
        return self._cross_entropy(outputs, batch, self.label_smoothing)

    def surprises(self, outputs: Tensor, batch: Batch) -> Tensor:
        """See :meth:`Env.surprises`: without smoothing."""
        return self._cross_entropy(outputs, batch, 0.0)

    def _cross_entropy(self, outputs: Tensor, batch: Batch, smoothing: float) -> Tensor:
        lost = functional.cross_entropy(
            outputs.flatten(0, 1), batch.targets.flatten(), reduction="none", label_smoothing=smoothing
        )
        return lost.view(batch.mask.shape) * batch.mask

    def right(self, outputs: Tensor, batch: Batch) -> Tensor:
        """1 where the likeliest class is the right one and counts, 0 elsewhere, ``[T, B]``."""
        return (outputs.argmax(-1) == batch.targets) * batch.mask

    def normaliser(self, batch: Batch) -> Tensor:
        """What the sum of :meth:`losses` is divided by: the batch size, or the number of answers that count."""
        return super().normaliser(batch) if self.loss_per == "sequence" else batch.mask.sum().clamp(min=1)

    def tallies(self, outputs: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Sums and counts; see :meth:`Env.tallies`.

        Here: loss per answer that counts, in nats and without smoothing; the share of right answers in each sequence,
        as a mean over sequences (accuracy), and of wrong ones (error_rate); the share of sequences in which any is
        wrong (sequences_wrong).
        """
        right, counted = self.right(outputs, batch).sum(0), batch.mask.sum(0)
        shares, sequences = (right / counted.clamp(min=1)).sum(), (counted > 0).sum()
        return {
            "loss": (self._cross_entropy(outputs, batch, 0.0).sum(), counted.sum()),
            "accuracy": (shares, sequences),
            "error_rate": (sequences - shares, sequences),
            "sequences_wrong": ((right < counted).sum(), sequences),
        }
