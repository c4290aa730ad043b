"""World: a place that answers actions with observations and rewards, many episodes side by side."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Literal, NamedTuple, get_args

import torch
from pydantic import Field
from torch import Tensor

from .circuit import Circuit
from .contracts import check_numbers, expect, trying
from .state import example, map_state
from .task import Task

logger = logging.getLogger(__name__)

LONG = 100_000
"""Steps after which an episode may well be one that nothing ends."""


class WorldError(RuntimeError):
    """An episode cannot go on, for what stands behind a world has failed; says at which step."""


class Step(NamedTuple):
    """What gymnasium's vector environments return from ``step``, as tensors; B episodes."""

    observations: Tensor
    """``[B, I]``; zeros where the episode is over, but for the step that cuts it off: that still shows the last, from
    which an agent may judge what was to come. So may the step that ends it, if the last is no finite number."""
    rewards: Tensor
    """``[B]`` in float64; zero where the episode was over before."""
    terminated: Tensor
    """bool ``[B]``: the episode has come to its end; stays so until another takes its place."""
    truncated: Tensor
    """bool ``[B]``: the episode was cut off by a limit of time; stays so until another takes its place."""
    info: dict[str, Tensor]
    """By name ``[B]``: what :meth:`World.metrics` quotes besides the reward, for the episode so far."""


class Episodes(NamedTuple):
    """Episodes played to the end by M members of a population (or one circuit, M = 1), E by each."""

    returns: Tensor
    """Sum of rewards, ``[M, E]`` in float64."""
    lengths: Tensor
    """Steps taken, ``[M, E]``."""
    info: dict[str, Tensor]
    """By name ``[M, E]``, from the last step of each episode."""


ActionKind = Literal["categorical", "bernoulli", "normal"]


class ActionPart(NamedTuple):
    """Channels of an output, side by side, and the distribution that they give where actions are drawn.

    A sample has the same channels, and :meth:`World.decide` turns it into the action, as it does with an output; so its
    probability is the same whatever the world makes of it.
    """

    kind: ActionKind
    """``categorical``: logits of as many choices as channels, a sample is one-hot; ``bernoulli``: each channel is the
    logit of yes, a sample is 1 for yes and -1 for no; ``normal``: each channel is a mean, a sample any number near it.
    The standard deviation is the agent's."""
    size: int
    """Channels."""


class World(Task):
    """Episodes with rewards, after gymnasium's vector API, in batched tensors.

    Differences from gymnasium: randomness comes from a generator; several copies of the same episodes can run side by
    side, one for each member of a population; and an episode that is over stays so, with zero rewards, until the next
    :meth:`reset` or until :meth:`renew` begins another in its place. ``input_size`` counts the channels of an
    observation, ``output_size`` those that :meth:`decide` turns into an action.

    A world of tensors that keeps all it knows of its episodes in :attr:`state` has :meth:`keep` and :meth:`renew` from
    here; another has its own, or does without: then members of a population wait for each other, and no agent can
    learn from more than whole episodes.
    """

    state: Any = Field(default=None, init=False)
    """Where B episodes are: a tree of NamedTuples of tensors ``[B, …]``, set by :meth:`reset` and :meth:`step`; None
    before, and in worlds that keep it elsewhere."""

    @abstractmethod
    def reset(self, episodes: int, generator: torch.Generator, *, copies: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
        """Begin episodes.

        Args:
            episodes: E, how many different ones.
            generator: the only source of randomness.
            copies: M, how often each is run; they are alike in everything but the actions.

        Returns:
            First observations ``[M·E, I]``, copy by copy, and ``info`` as in :class:`Step`.

        Raises:
            ValueError: a number below 1.
        """

    @abstractmethod
    def step(self, actions: Tensor) -> Step:
        """Carry out one action in each episode; those of episodes that are over are ignored.

        Args:
            actions: ``[B]`` or ``[B, A]``, what :meth:`decide` returns; B = M·E after a reset.

        Raises:
            RuntimeError: there was no reset before.
            WorldError: what stands behind the world has failed.
        """

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the episodes alone; the others are dropped.

        Args:
            rows: numbers of those that stay, ``[K]``, ascending; the world has K episodes afterwards, in this order.

        Raises:
            RuntimeError: there was no reset before, or the world cannot (see :attr:`renewable`).
        """
        self.state = map_state(lambda leaf: leaf[rows.to(leaf.device)], self._episodes_apart("keep"))

    def renew(self, over: Tensor, generator: torch.Generator) -> Tensor:
        """Begin new episodes, each different, in the places of some; the others go on.

        Args:
            over: where to, bool ``[B]``; as a rule, where an episode is terminated or truncated.
            generator: the only source of randomness.

        Returns:
            First observations ``[B, I]`` of the new episodes; zeros where another goes on.

        Raises:
            RuntimeError: there was no reset before, or the world cannot (see :attr:`renewable`).
        """
        going, count = self._episodes_apart("renew"), int(over.sum())
        shown = torch.zeros(len(over), self.input_size, device=self.device)
        if count:
            first, _ = self.reset(count, generator)
            self.state = map_state(lambda old, new: old.index_put((over.to(old.device),), new), going, self.state)
            shown = shown.to(first).index_put((over.to(first.device),), first)
        return shown

    @property
    def renewable(self) -> bool:
        """Whether single episodes can be dropped and begun anew, by :meth:`keep` and :meth:`renew`."""
        own = type(self).keep is not World.keep and type(self).renew is not World.renew
        return own or self.state is not None

    def _episodes_apart(self, wanted: str) -> Any:
        if self.state is None:
            raise RuntimeError(
                f"{type(self).__qualname__}.{wanted}: there was no reset before, or its episodes are not apart; "
                f"expected all that it knows of them in state, or a {wanted} of its own"
            )
        return self.state

    def check(self) -> None:
        """Begin a few episodes and take a step; see :meth:`Task.check`."""
        super().check()
        name, episodes, copies = type(self).__qualname__, 2, 3
        count = episodes * copies
        with trying(self, "reset"):
            begun = self.reset(episodes, torch.Generator(self.device).manual_seed(0), copies=copies)
        pair = isinstance(begun, tuple) and len(begun) == 2
        expect(pair, f"{name}.reset", f"returns a {type(begun).__name__}", "observations and info")
        seen = self._try_picture(None)
        with trying(self, "decide"):
            actions = self.decide(torch.zeros(count, self.output_size, device=self.device))
        with trying(self, "step"):
            step = self.step(actions)
        expect(isinstance(step, Step), f"{name}.step", f"returns a {type(step).__name__}", "a Step")
        self._try_picture(seen)
        of = f"of {episodes} episodes, {copies} copies of each,"
        parts: list[Any] = [("reset", "observations", begun[0], (count, self.input_size))]
        parts += [("reset", part, tensor, (count,)) for part, tensor in dict(begun[1]).items()]
        parts += _parts_of(step, "step", count, self.input_size)
        if self.renewable:
            kept = torch.tensor([0, 2, 5], device=self.device)
            with trying(self, "keep"):
                self.keep(kept)
            with trying(self, "step"):
                step = self.step(actions[kept])
            parts += _parts_of(step, "step, after keep,", len(kept), self.input_size)
            over = torch.tensor([True, False, True], device=self.device)
            with trying(self, "renew"):
                first = self.renew(over, torch.Generator(self.device).manual_seed(1))
            with trying(self, "step"):
                step = self.step(actions[kept])
            parts += [("renew", "observations", first, (len(kept), self.input_size))]
            parts += _parts_of(step, "step, after renew,", len(kept), self.input_size)
        for method, part, tensor, shape in parts:
            found = f"{tensor.dtype} of shape {list(tensor.shape)}" if isinstance(tensor, Tensor) else repr(tensor)
            right = isinstance(tensor, Tensor) and tensor.shape == shape
            truth = part in ("terminated", "truncated")
            right = right and (tensor.dtype == torch.bool if truth else tensor.dtype != torch.bool)
            expected = f"{'torch.bool' if truth else 'numbers'} of shape {list(shape)}"
            expect(right, f"{name}.{method}", f"{part} {of} are {found}", expected)
        found = f"gives {', '.join(begun[1]) or 'nothing'} as info, step gives {', '.join(step.info) or 'nothing'}"
        expect(begun[1].keys() == step.info.keys(), f"{name}.reset", found, "the same")
        numbers = torch.zeros(1, 1, dtype=torch.float64, device="cpu")
        with trying(self, "metrics"):
            known = self.metrics(Episodes(numbers, numbers, dict.fromkeys(step.info, numbers)))
        check_numbers(f"{name}.metrics", known)
        expect(self.error_metric in known, name, f"error_metric is {self.error_metric!r}", f"one of {', '.join(known)}")
        with trying(self, "action_parts"):
            try:
                drawn = [(part.kind, part.size) for part in self.action_parts()]
            except ValueError:  # it draws by itself
                return
        right = all(kind in get_args(ActionKind) for kind, _ in drawn)
        right = right and sum(size for _, size in drawn) == self.output_size
        allowed = f"{', '.join(get_args(ActionKind))}, of {self.output_size} channels in all"
        expect(right, f"{name}.action_parts", f"gives {drawn}", allowed)

    def _try_picture(self, like: torch.Size | None) -> torch.Size | None:
        """The shape of a picture, if there is anything to see; raise ContractError where it is none."""
        with trying(self, "picture"):
            try:
                picture = self.picture()
            except (ImportError, OSError, WorldError):  # this machine cannot draw, of which the class knows nothing
                return like
        if picture is None:
            return like
        check_picture(f"{type(self).__qualname__}.picture", picture, like)
        return picture.shape

    def action_parts(self) -> Sequence[ActionPart]:
        """How actions are drawn, all channels of an output in order; here one choice, as :meth:`decide` has it.

        Raises:
            ValueError: none are, because the world draws by itself.
        """
        return [ActionPart("categorical", self.output_size)]

    def decide(self, outputs: Tensor) -> Tensor:
        """Actions from a circuit's outputs ``[B, O]``, or from what was drawn from them (see :meth:`action_parts`).

        Here the number of the largest, ``[B]``.
        """
        return outputs.argmax(-1)

    def pictured(self) -> World:
        """This world, or one like it that :meth:`picture` can show."""
        return self

    def picture(self) -> Tensor | None:
        """What the first episode looks like now, bytes ``[rows, columns, 3]``, of one size for as long as it lasts;
        None where there is nothing to see.
        """
        return None

    def metrics(self, episodes: Episodes) -> dict[str, float]:
        """Numbers that people quote, as means over episodes: reward, steps and what the world counts itself."""
        values = {"reward": episodes.returns, "steps": episodes.lengths, **episodes.info}
        return {name: float(value.double().mean()) for name, value in values.items()}

    def play(
        self,
        answer: Callable[[Tensor], Tensor],
        episodes: int,
        generator: torch.Generator,
        *,
        copies: int = 1,
        keep: Callable[[Tensor], None] | None = None,
        seen: Callable[[Tensor], None] | None = None,
    ) -> Episodes:
        """Play episodes to the end.

        An answer that is nan, and a reward or an observation, even the last, that is no finite number, make the return
        of their episode nan.

        Args:
            answer: maps observations ``[M·E, I]`` to outputs ``[M·E, O]``; called once for each step, so it can carry
                the state of a circuit along. Of an episode that is over, observations are zeros and outputs ignored.
            episodes: E, how many different ones.
            generator: the only source of randomness.
            copies: M, how often each is played.
            keep: called with the numbers ``[K]``, among those so far, of the copies that go on, once the episodes of a
                tenth of them are all over; from then on ``answer`` is given the observations ``[K·E, I]`` of these
                alone. Never called in a world that is not :attr:`renewable`.
            seen: called at each step with the finite observations of all episodes that go on, ``[N, I]``.
        """
        observations, info = self.reset(episodes, generator, copies=copies)
        dropping = keep if self.renewable else None
        finite = observations.isfinite().all(1)
        returns = observations.new_zeros(copies * episodes, dtype=torch.float64).masked_fill(~finite, torch.nan)
        lengths = torch.zeros_like(returns, dtype=torch.long)
        running = torch.ones_like(returns, dtype=torch.bool)
        numbers = torch.arange(copies, device=returns.device)
        ended: list[tuple[Tensor, Episodes]] = []
        for steps in count(1):
            if steps == LONG:
                told = "%s: an episode goes on after %d steps; it ends where step says terminated or truncated"
                logger.warning(told, type(self).__qualname__, steps)
            if seen is not None:
                seen(observations[running & finite])
            outputs = answer(observations)
            # An answer that is no number earns none; what is done instead must be an action all the same.
            lost = outputs.isnan()
            actions = self.decide(outputs.masked_fill(lost, 0))
            observations, rewards, terminated, truncated, info = self.step(actions)
            finite = observations.isfinite().all(1)
            spoilt = running & (lost.flatten(1).any(1) | ~finite)
            returns = returns + rewards
            returns = returns.masked_fill(spoilt | ~returns.isfinite(), torch.nan)
            lengths = lengths + running
            running = ~(terminated | truncated)
            observations = observations.masked_fill(~running.unsqueeze(1), 0)
            going = running.view(-1, episodes).any(1)
            left = int(going.sum())
            if left == 0:
                break
            if dropping is not None and 10 * left <= 9 * len(going):
                at, rows = going.nonzero().squeeze(1), going.repeat_interleave(episodes)
                ended.append((numbers[~going], _copies(episodes, returns, lengths, info, ~rows)))
                self.keep(rows.nonzero().squeeze(1))
                dropping(at)
                observations, finite, returns, lengths, running = (
                    part[rows] for part in (observations, finite, returns, lengths, running)
                )
                numbers = numbers[at]
        ended.append((numbers, _copies(episodes, returns, lengths, info)))
        order = torch.cat([numbers for numbers, _ in ended]).argsort()
        played = join_episodes([part for _, part in ended], 0)
        return Episodes(
            played.returns[order], played.lengths[order], {name: value[order] for name, value in played.info.items()}
        )


def check_picture(where: str, picture: Any, like: torch.Size | None = None) -> None:
    """Check what :meth:`World.picture` gives where there is anything to see.

    Args:
        where: in words, for the message.
        picture: what it gave.
        like: shape of an earlier picture of this episode, if there is one.

    Raises:
        ContractError: it is no picture, or of another size than the earlier one.
    """
    tensor = isinstance(picture, Tensor)
    found = f"is {picture.dtype} of shape {list(picture.shape)}" if tensor else f"is a {type(picture).__name__}"
    right = tensor and picture.dtype == torch.uint8 and picture.dim() == 3 and picture.shape[2] == 3
    expect(right and 0 not in picture.shape, where, found, "torch.uint8 of shape [rows, columns, 3]")
    expect(like in (None, picture.shape), where, found, f"shape {like and list(like)}, as before")


def _copies(
    episodes: int, returns: Tensor, lengths: Tensor, info: dict[str, Tensor], rows: Tensor | slice = slice(None)
) -> Episodes:
    """What was played in some rows ``[M·E]``, copy by copy."""
    shape = (-1, episodes)
    own = {name: value[rows].view(shape) for name, value in info.items()}
    return Episodes(returns[rows].view(shape), lengths[rows].view(shape), own)


def _parts_of(step: Step, method: str, count: int, size: int) -> list[Any]:
    """Each tensor of a step with the method and the name that a message gives it, and the shape that it should have."""
    parts: list[Any] = [
        (method, part, getattr(step, part), (count,)) for part in ("rewards", "terminated", "truncated")
    ]
    parts += [(method, "observations", step.observations, (count, size))]
    return parts + [(method, part, tensor, (count,)) for part, tensor in dict(step.info).items()]


def join_episodes(parts: Sequence[Episodes], dim: int) -> Episodes:
    """Join episodes that were played separately: of more members (dim 0), or more episodes of each (dim 1)."""
    return Episodes(
        torch.cat([part.returns for part in parts], dim),
        torch.cat([part.lengths for part in parts], dim),
        {name: torch.cat([part.info[name] for part in parts], dim) for name in parts[0].info},
    )


def carrying(circuit: Circuit) -> Callable[[Tensor], Tensor]:
    """A circuit as the ``answer`` of :meth:`World.play`, with its state carried from step to step.

    Returns:
        A function that maps observations ``[E, I]`` of any type to outputs ``[E, O]``; one for each :meth:`World.play`.
    """
    state, own = None, example(circuit)

    def answer(observations: Tensor) -> Tensor:
        nonlocal state
        outputs, state = circuit(observations.unsqueeze(0).to(own), state)
        answered: Tensor = outputs[0]
        return answered

    return answer


def check_episodes(episodes: int, copies: int) -> None:
    """Raise ValueError naming the first of the two that is below 1."""
    for name, value in (("episodes", episodes), ("copies", copies)):
        if value < 1:
            raise ValueError(f"{name}: got {value}; allowed is a whole number of at least 1")
