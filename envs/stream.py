"""A stream of any envs, one after another or in random order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..core.component import Chosen, build
from ..core.env import Batch, Env
from ..core.registry import name_of, register
from ..core.streams import Stream, task_generator
from ..core.trace_field import Channels
from .changing import ChangingEnv


@register("env", "stream")
class StreamEnv(ChangingEnv):
    """Envs whose sequences are learned from by turns; each is a task, and its place in the list is its number.

    All sequences of a batch are of one env, which also says what the loss is and what the metrics are; ``error`` is
    among these, the error metric of each. Envs are judged one by one.
    """

    error_metric: ClassVar[str] = "error"

    envs: list[Annotated[Any, Chosen("env")]] = Field(
        default=["n-parity", "n-delayed-match-to-sample"],
        min_length=1,
        validate_default=True,
        description="the envs: the name or the block of each",
    )
    order: Literal["in-turn", "random"] = Field(
        default="in-turn", description="which env follows after so many sequences: the next one, or any"
    )
    again: bool = Field(
        default=True, description="whether the first env follows the last, rather than that the last one stays"
    )
    tag_channels: bool = Field(
        default=False, description="one more input channel for each env, which is 1 at every step of its sequences"
    )
    pad: bool = Field(
        default=False,
        description="whether envs may have different channels: those with fewer get more inputs that are always 0, "
        "and outputs that do not count",
    )
    loss_per: Literal["sequence"] = Field(default="sequence", init=False)

    @classmethod
    def check_options(cls, options: Any) -> None:
        """Refuse an order that contradicts itself."""
        super().check_options(options)
        if options.order == "random" and not options.again:
            raise ValueError("again: got False; in random order there is no last env, allowed is True")

    def setup(self) -> None:
        """Build the envs.

        Raises:
            ValueError: one is a world, or is unlike the others; names the option, what was given and what is allowed.
        """
        self.envs = [env if isinstance(env, Env) else build(env, device=self.device) for env in self.envs]
        for index, env in enumerate(self.envs):
            if not isinstance(env, Env) or isinstance(env, ChangingEnv):
                raise ValueError(
                    f"envs.{index}: got a {type(env).__name__}; allowed are envs that hand out batches and have one "
                    "task each"
                )
            self._check_alike(index, env)
        self.token_inputs, self.class_targets = self.envs[0].token_inputs, self.envs[0].class_targets  # type: ignore[misc]
        if self.tag_channels and self.token_inputs:
            raise ValueError("tag_channels: got True; inputs are tokens, which have no channels: allowed is False")
        self._channels = max(env.input_size for env in self.envs)
        self.input_size = self._channels + len(self.envs) * self.tag_channels
        self.output_size = max(env.output_size for env in self.envs)
        self._only: int | None = None
        """The env that a set consists of."""

    def _check_alike(self, index: int, env: Env) -> None:
        first = self.envs[0]
        for what in ("token_inputs", "class_targets"):
            if getattr(env, what) != getattr(first, what):
                kinds = [f"{'' if getattr(one, what) else 'no '}{what.replace('_', ' ')}" for one in (env, first)]
                raise ValueError(f"envs.{index}: has {kinds[0]}; the first has {kinds[1]}, allowed is the same for all")
        for size in ("input_size", "output_size"):
            own, known = getattr(env, size), getattr(first, size)
            if own != known and not self.pad:
                raise ValueError(
                    f"envs.{index}: has {size} {own}; the first has {known}, allowed is the same for all, or pad: true"
                )

    @property
    def names(self) -> list[str]:
        """What each env is called; those of one type are counted."""
        types = [name_of(type(env)) or type(env).__qualname__ for env in self.envs]
        total, met, names = Counter(types), Counter[str](), []
        for kind in types:
            met[kind] += 1
            names.append(kind if total[kind] == 1 else f"{kind} {met[kind]}")
        return names

    @property
    def task_number(self) -> int:
        """Which of the envs the next batch is of."""
        if self._only is not None:
            return self._only
        turn, count = self.seen // self.every, len(self.envs)
        if self.order == "random":
            return int(torch.randint(count, (), generator=task_generator(self.task_seed, turn), device="cpu"))
        return turn % count if self.again else min(turn, count - 1)

    @property
    def current(self) -> Env:
        """The env that the next batch is of."""
        env: Env = self.envs[self.task_number]
        return env

    def input_channels(self) -> Sequence[Channels]:
        """Those of the current env, and which it is."""
        known = list(self.current.input_channels())
        spare = self._channels - self.current.input_size
        if known and spare:
            known.append(Channels("unused", spare))
        names = tuple(self.names)
        return [*known, Channels("env", len(names), names)] if known and self.tag_channels else known

    def output_channels(self) -> Sequence[Channels]:
        """Those of the current env."""
        known = list(self.current.output_channels())
        spare = self.output_size - self.current.output_size
        return [*known, Channels("unused", spare)] if known and spare else known

    def _given(self, batch: Batch) -> Batch:
        """A batch of the current env with channels for all."""
        inputs, targets = batch.inputs, batch.targets
        if not self.token_inputs:
            inputs = functional.pad(inputs, (0, self.input_size - inputs.shape[-1]))
            if self.tag_channels:
                inputs[..., self._channels + self.task_number] = 1
        if not self.class_targets:
            targets = functional.pad(targets, (0, self.output_size - targets.shape[-1]))
        return Batch(inputs, targets, batch.mask)

    def _own(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
        """Outputs and a batch as the current env has them."""
        env = self.current
        inputs = batch.inputs if self.token_inputs else batch.inputs[..., : env.input_size]
        targets = batch.targets if self.class_targets else batch.targets[..., : env.output_size]
        return outputs[..., : env.output_size], Batch(inputs, targets, batch.mask)

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """A batch of the current env; see :meth:`Env.sample`."""
        return self._given(self.current.sample(batch_size, generator))

    def drawn(self, count: int, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """As the current env draws them to be judged on; see :meth:`Env.drawn`."""
        return map(self._given, self.current.drawn(count, batch_size, generator))

    def batches(self, batch_size: int) -> Iterator[Batch] | None:
        """Those of the current env."""
        batches = self.current.batches(batch_size)
        return None if batches is None else map(self._given, batches)

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Those of the current env; see :meth:`Env.losses`."""
        return self.current.losses(*self._own(outputs, batch))

    def surprises(self, outputs: Tensor, batch: Batch) -> Tensor:
        """As the current env says; see :meth:`Env.surprises`."""
        return self.current.surprises(*self._own(outputs, batch))

    def right(self, outputs: Tensor, batch: Batch) -> Tensor:
        """As the current env says; see :meth:`Env.right`."""
        return self.current.right(*self._own(outputs, batch))

    def errors(self, outputs: Tensor, batch: Batch) -> Tensor:
        """As the current env says; see :meth:`Env.errors`."""
        return self.current.errors(*self._own(outputs, batch))

    def normaliser(self, batch: Batch) -> Tensor:
        """That of the current env; see :meth:`Env.normaliser`."""
        return self.current.normaliser(self._own(self.silence(batch), batch)[1])

    def tallies(self, outputs: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Those of the current env, and its error metric as ``error``; see :meth:`Env.tallies`."""
        tallies = self.current.tallies(*self._own(outputs, batch))
        return {**tallies, "error": tallies[self.current.error_metric]}

    def sets(self, stream: Stream) -> dict[str, Env]:
        """Those of each env, named after it: ``copy length 1-20``."""
        found: dict[str, Env] = {}
        for index, (name, env) in enumerate(zip(self.names, self.envs, strict=True)):
            found |= {f"{name} {label}": self._with(index, variant) for label, variant in env.sets(stream).items()}
        return found

    def training_range(self, stream: Stream) -> list[str]:
        """Those of each env: a stream is learned once all of its envs are."""
        pairs = zip(self.names, self.envs, strict=True)
        return [f"{name} {label}" for name, env in pairs for label in env.training_range(stream)]

    def _with(self, index: int, env: Env) -> StreamEnv:
        """The stream as it stays with one of its envs, in place of which another may stand."""
        variant = copy(self.still())
        variant._only = index
        variant.envs = [env if place == index else kept for place, kept in enumerate(self.envs)]
        return variant

    def lesson(self) -> Env | None:
        """That of the current env's curriculum."""
        lesson = self.current.lesson()
        assert lesson is None or isinstance(lesson, Env)
        return None if lesson is None else self._with(self.task_number, lesson)

    def advance(self, error: float) -> bool:
        """Tell the current env's curriculum."""
        return self.current.advance(error)

    def state_dict(self) -> dict[str, Any]:
        """How many sequences were learned from, and what each env remembers."""
        return super().state_dict() | {"envs": [env.state_dict() for env in self.envs]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`ChangingEnv.load_state_dict`."""
        super().load_state_dict(state)
        if len(state["envs"]) != len(self.envs):
            raise ValueError(f"env state: got {len(state['envs'])} envs; this stream has {len(self.envs)}")
        for env, kept in zip(self.envs, state["envs"], strict=True):
            env.load_state_dict(kept)
