"""Any of gymnasium's environments as a world (https://gymnasium.farama.org)."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..core import install
from ..core.registry import register
from ..core.streams import Stream
from ..core.trace_field import Channels
from ..core.world import ActionPart, Episodes, Step, World, WorldError, check_episodes
from ..utils.vector_environments import Separate, Together, Workers, cores
from .spaces import Actions, Refused, Squash, as_floats, observation_channels

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

logger = logging.getLogger(__name__)

LONGEST_SPACE = 200
"""Letters of a space in a message."""
SMALLEST_CHANCE = 2.0**-54
"""By which an action is drawn; they are multiples of twice this."""


@register("env", "gym")
class GymWorld(World):
    """Episodes of one of gymnasium's environments.

    Observations are flattened, discrete ones one-hot. Outputs become actions so: the largest one of a discrete action
    (of each of several), yes above 0 for binary ones, and numbers as the option ``action`` has it: the logistic
    function or tanh of an output between the bounds, or the output itself, clipped, as everywhere where a bound is
    missing. Of an action that is a whole number between bounds, each number has an equal part of the function's range;
    clipped or without bounds, the output is rounded.

    Where a reward or an observation, even the last, is no finite number, the return of its episode is none, either.

    Metrics: shortfall, how far the mean return is below ``target``, besides reward and steps.
    """

    error_metric: ClassVar[str] = "shortfall"

    id: str = Field(
        default="CartPole-v1",
        min_length=1,
        description="name under which gymnasium knows the environment; package:name imports a package first",
    )
    arguments: dict[str, Any] = Field(default={}, description="passed on to the environment")
    vectorization: Literal["sync", "async", "vector_entry_point"] = Field(
        default="sync",
        description="how episodes run side by side: one after the other, shared out over processes, or in the "
        "environment's own vectorised version, which is fast, but takes a single seed for all its episodes, so that "
        "the members of a population begin in different places",
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="processes that async shares the episodes out over, at most; null takes one for each core; however "
        "many they are, the episodes are those of sync",
    )
    max_steps: int | None = Field(
        default=None,
        ge=1,
        description="cuts an episode off before the environment does; null leaves it to the environment, which must "
        "have a limit then; for longer episodes than those, arguments={max_episode_steps: N} moves its own limit",
    )
    action: Squash = Field(
        default="sigmoid",
        description="how an output becomes a number between bounds: by the logistic function, by tanh, or clipped, "
        "which leaves a linear policy linear; sample draws all actions: choices by the softmax of the outputs, and "
        "numbers, clipped, from a mean and the logarithm of a standard deviation, two outputs each, all means first",
    )
    reward_shift: float = Field(
        default=0.0,
        allow_inf_nan=False,
        description="added to every reward in training, such as -1 where a step survived earns 1; evaluation does "
        "without",
    )
    target: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="mean return from which on the task counts as solved; null takes the reward threshold that "
        "gymnasium gives, or 0 where it gives none: the shortfall is then the negative return",
    )
    make: Callable[[int], Any] | None = Field(
        default=None,
        exclude=True,
        description="returns a vector environment of so many episodes, in any mode of autoreset, in place of the one "
        "that the options name; it gets one seed for all episodes if vectorization is vector_entry_point",
    )

    @classmethod
    def check_options(cls, options: Any) -> None:
        """Refuse a number of processes where there are none."""
        super().check_options(options)
        if options.workers is not None and options.vectorization != "async":
            raise ValueError(
                f"workers: got {options.workers}; allowed with vectorization {options.vectorization!r} is null, "
                "only async has processes"
            )

    def setup(self) -> None:
        """Make the environment.

        Raises:
            ImportError: gymnasium is not installed.
            ValueError: gymnasium cannot make this environment, it has no limit of time or no target, or its
                observations or actions are of a kind that has no tensor.
        """
        try:
            import gymnasium
        except ImportError as error:
            raise ImportError(f"env type gym: gymnasium is not installed; {install.here(install.GYMNASIUM)}") from error
        self._begun = False
        self._drawn: GymWorld | None = None
        self._unshifted: GymWorld | None = None
        make_vec: Callable[..., VectorEnv] = gymnasium.make_vec
        # What the processes of async hold is as in sync.
        mode = "sync" if self.vectorization == "async" else self.vectorization
        make = self.make or (lambda count: make_vec(self.id, num_envs=count, vectorization_mode=mode, **self.arguments))
        try:
            envs = make(1)
        except Exception as error:  # environments of other people raise whatever they like
            kinds = gymnasium.error.Error | ImportError | TypeError | ValueError
            told = self.make is None and isinstance(error, kinds)
            reason = " ".join(f"{'' if told else f'{type(error).__name__}: '}{error}".split())
            # Of the two that name an environment, arguments are wrong once there is one of this name.
            unknown = not self.arguments or isinstance(error, gymnasium.error.Error | ImportError)
            blamed = f"id: got {self.id!r}" if unknown else f"arguments: got {self.arguments!r}"
            raise ValueError(
                f"{blamed}; gymnasium says: {reason}" if self.make is None else f"make: {reason}"
            ) from error
        if not hasattr(envs, "single_action_space"):
            raise ValueError(f"make: gives a {type(envs).__name__}; expected a vector environment of gymnasium")
        # One of gymnasium's own that somebody else has made has no spec, its environments have.
        within = getattr(next(iter(getattr(envs, "envs", ())), None), "spec", None)
        self._spec = envs.spec or within
        self._name = self.id if self.make is None else getattr(self._spec, "id", type(envs).__name__)
        self.observation_space: Any = envs.single_observation_space
        self.action_space: Any = envs.single_action_space
        kind = Separate if type(envs) is gymnasium.vector.SyncVectorEnv else Together
        self._episodes: Separate | Together | Workers
        if self.vectorization == "async":
            if self.make is None:
                # From what it has left as its spec, which the processes read without this package.
                make = functools.partial(make_vec, envs.spec)
            self._episodes = Workers(self._name, kind, make, self.workers or cores())
        elif kind is Separate:
            self._episodes = Separate(make)
        else:
            self._episodes = Together(make, one_seed=mode == "vector_entry_point")
        envs.close()
        self._seen_as = self._channels("observations", self.observation_space, observation_channels)
        self._actions: Actions = self._channels("actions", self.action_space, lambda space: Actions(space, self.action))
        self.input_size = sum(channels.size for channels in self._seen_as)
        self.output_size = self._actions.output_size
        self.step_limit: int = self._limit(_limit_of(envs.spec if within is None else within))
        known = getattr(self._spec, "reward_threshold", None) if self.target is None else self.target
        self.solved_at = None if known is None else float(known)

    def _limit(self, own: int | None) -> int:
        """Steps of an episode at most, where the environment itself has a limit or none."""
        limit = self.max_steps or own
        if limit is None:
            raise ValueError(f"max_steps: got null, but gymnasium knows no limit of {self._name}; give a number")
        if own is not None and limit > own:
            more = f", and more with arguments={{max_episode_steps: {limit}}}" if self.make is None else ""
            raise ValueError(
                f"max_steps: got {limit}, but {self._name} cuts its episodes off at {own}; allowed is null or at most "
                f"{own}{more}"
            )
        return limit

    def _channels(self, what: str, space: Any, made: Callable[[Any], Any]) -> Any:
        try:
            return made(space)
        except Refused as error:
            seen = " ".join(str(space).split())
            what = f"{what} {seen if len(seen) < LONGEST_SPACE else f'{seen[:LONGEST_SPACE]}…'}"
            raise ValueError(f"id: got {self._name!r}, which has {what}: {error}") from error

    def sets(self, stream: Stream) -> Mapping[str, World]:
        """See :meth:`Task.sets`; without the shift of rewards."""
        if self._unshifted is None:
            self._unshifted = self.changed(reward_shift=0.0, make=self.make) if self.reward_shift else self
        return {"trained": self._unshifted}

    def reset(self, episodes: int, generator: torch.Generator, *, copies: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
        """Begin episodes, each from a seed of its own; see :meth:`World.reset`."""
        check_episodes(episodes, copies)
        seeds = torch.randint(2**31, (episodes,), generator=generator, device=generator.device).repeat(copies).tolist()
        with self._named("the beginning"):
            observations = self._episodes.reset(seeds)
        self._terminated = torch.zeros(len(seeds), dtype=torch.bool, device=self.device)
        self._truncated = torch.zeros_like(self._terminated)
        self._steps = torch.zeros(len(seeds), dtype=torch.long, device=self.device)
        if self.action == "sample":
            self._chance = torch.Generator(self.device).manual_seed(seeds[0])
            self._episode_of = torch.arange(episodes, device=self.device).repeat(copies)
            self._different = episodes
        self._begun = True
        return self._observations(observations), {}

    def step(self, actions: Tensor) -> Step:
        """Pass the actions on to the environments; see :meth:`World.step`.

        Raises:
            RuntimeError: there was no reset before.
        """
        self._expect_reset("step")
        over = self._terminated | self._truncated
        with self._named(f"step {int(self._steps.max()) + 1}"):
            shown, *told = self._episodes.step(actions.detach().cpu().numpy(), (~over).cpu().numpy())
        rewarded, terminated, truncated = (torch.as_tensor(part, device=self.device) for part in told)
        self._steps = self._steps + ~over
        rewards = (rewarded.double() + self.reward_shift).masked_fill(over, 0)
        self._terminated = self._terminated | (terminated & ~over)
        cut = (truncated | (self._steps >= self.step_limit)) & ~over & ~self._terminated
        self._truncated = self._truncated | cut
        observations = self._observations(shown)
        # What diverges as it ends must not count as a success: World.play has to see it.
        ended = over | (self._terminated & observations.isfinite().all(1))
        return Step(
            observations.masked_fill(ended.unsqueeze(-1), 0),
            rewards,
            self._terminated,
            self._truncated,
            {},
        )

    def keep(self, rows: Tensor) -> None:
        """See :meth:`World.keep`."""
        self._expect_reset("keep")
        self._episodes.keep(rows.cpu().numpy())
        self._steps = self._steps[rows]
        self._terminated, self._truncated = self._terminated[rows], self._truncated[rows]
        if self.action == "sample":
            self._episode_of = self._episode_of[rows]

    def renew(self, over: Tensor, generator: torch.Generator) -> Tensor:
        """Begin new episodes, each from a seed of its own; see :meth:`World.renew`."""
        self._expect_reset("renew")
        if not self.renewable:
            raise RuntimeError(
                f"renew: the episodes of {self._name} begin anew all at once or by themselves; expected vectorization "
                "sync or async, or a vector environment in gymnasium's mode of autoreset DISABLED"
            )
        shown = torch.zeros(len(over), self.input_size, device=self.device)
        (rows,) = over.nonzero(as_tuple=True)
        if len(rows):
            seeds = torch.randint(2**31, (len(rows),), generator=generator, device=generator.device).tolist()
            with self._named("the beginning"):
                begun = self._episodes.renew(rows.cpu().numpy(), seeds)
            shown[rows] = self._observations(begun)
        self._steps = self._steps.masked_fill(over, 0)
        self._terminated, self._truncated = self._terminated & ~over, self._truncated & ~over
        return shown

    @property
    def renewable(self) -> bool:
        """See :attr:`World.renewable`; not where gymnasium steps all episodes at once and begins anew by itself."""
        return self._episodes.renewable

    @contextlib.contextmanager
    def _named(self, when: str) -> Iterator[None]:
        """Within the block, what an environment raises is a WorldError that says when."""
        try:
            yield
        except Exception as error:
            reason = " ".join(f"{'' if type(error) is RuntimeError else f'{type(error).__name__}: '}{error}".split())
            # What is caused by a StopIteration, contextlib takes for that.
            cause = None if isinstance(error, StopIteration) else error
            raise WorldError(f"env: {self._name} failed at {when} of an episode: {reason}") from cause

    def _expect_reset(self, wanted: str) -> None:
        if not self._begun:
            raise RuntimeError(f"{wanted}: there was no reset before")

    def action_parts(self) -> Sequence[ActionPart]:
        """See :meth:`World.action_parts`: choices, yes or no, or numbers near an output.

        Raises:
            ValueError: actions are drawn here.
        """
        if self.action == "sample":
            raise ValueError("action: got 'sample', by which the env draws actions; allowed are sigmoid, tanh and clip")
        return self._actions.parts()

    def decide(self, outputs: Tensor) -> Tensor:
        """Actions from outputs ``[B, O]``: ``[B]`` if it is one choice, else ``[B, A]``; see the class.

        Raises:
            RuntimeError: actions are drawn, but there was no reset before.
        """
        if self.action != "sample":
            return self._actions.decide(outputs)
        self._expect_reset("decide")
        # The same for all copies of an episode, however many of them there are.
        size = (self._different, self.output_size)
        noise = torch.rand(size, generator=self._chance, device=self.device, dtype=torch.float64)
        return self._actions.decide(outputs, noise.clamp(min=SMALLEST_CHANCE)[self._episode_of])

    def input_channels(self) -> Sequence[Channels]:
        """Observations, each number in units of its own."""
        return self._seen_as

    def output_channels(self) -> Sequence[Channels]:
        """Actions; of a discrete one, each that there is to choose from."""
        return self._actions.names()

    def pictured(self) -> World:
        """One that draws what it does, where gymnasium and what it needs for that can; see :meth:`World.pictured`."""
        if self._drawn is None:
            self._drawn = self
            if self.make is None and "render_mode" not in self.arguments:
                # Many need a package to draw with; what they raise without it differs.
                try:
                    drawn = self.changed(
                        arguments={**self.arguments, "render_mode": "rgb_array"}, vectorization="sync", workers=None
                    )
                    drawn.reset(1, torch.Generator(self.device).manual_seed(0))
                    if drawn.picture() is not None:
                        self._drawn = drawn
                except Exception as error:
                    reason = " ".join(str(error).split())
                    logger.warning("env: there are no pictures of %s, for it cannot be drawn here: %s", self.id, reason)
        return self._drawn

    def metrics(self, episodes: Episodes) -> dict[str, float]:
        """See the class."""
        found = super().metrics(episodes)
        short = -found["reward"] if self.solved_at is None else max(self.solved_at - found["reward"], 0.0)
        return {**found, "shortfall": short}

    def picture(self) -> Tensor | None:
        """What gymnasium renders; see :meth:`World.picture`."""
        with self._named("a picture"):
            frame = self._episodes.render()
            return None if frame is None else torch.from_numpy(_coloured(np.asarray(frame)))

    def close(self) -> None:
        """Close the environments; the next reset opens new ones."""
        self._episodes.close()
        self._begun = False
        for other in (self._drawn, self._unshifted):
            if other is not None and other is not self:
                other.close()

    def _observations(self, observations: np.ndarray) -> Tensor:
        return torch.as_tensor(as_floats(observations, torch.get_default_dtype()), device=self.device)


def _limit_of(spec: Any) -> int | None:
    """Steps of an episode at most: those an environment was made with, else those it is registered with, if any."""
    known = getattr(spec, "max_episode_steps", None)
    limit: int | None = getattr(spec, "kwargs", {}).get("max_episode_steps", known)
    return limit


def _coloured(frame: np.ndarray) -> np.ndarray:
    """A frame as bytes ``[rows, columns, 3]``. It may be grey, or have a fourth channel, which is left out; floats are
    parts of full brightness as long as none is above 1.

    Raises:
        ValueError: it is no picture.
    """
    layers = frame[..., None] if frame.ndim == 2 else frame
    if frame.dtype.kind not in "biuf" or layers.ndim != 3 or layers.shape[2] not in (1, 3, 4) or not frame.size:
        raise ValueError(
            f"got a frame of {frame.dtype} and shape {list(frame.shape)}; expected numbers of shape [rows, columns], "
            "[rows, columns, 3] or [rows, columns, 4]"
        )
    if frame.dtype.kind in "bf":
        layers = np.nan_to_num(layers.astype(float))
        layers = layers * 255 if layers.max() <= 1 else layers
    colours = layers[..., :3].clip(0, 255).astype(np.uint8)
    return np.repeat(colours, 3, -1) if colours.shape[2] == 1 else np.ascontiguousarray(colours)
