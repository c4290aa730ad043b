"""Any of gymnasium's environments as a world (https://gymnasium.farama.org)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..core import install
from ..core.registry import register
from ..core.trace_field import Channels
from ..core.world import ActionKind, ActionPart, Step, World, check_episodes
from ..utils.vector_environments import Separate, Together, Workers, cores

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

MOST_WHOLE_NUMBERS = 2**24
"""Between the bounds of an action: all are within reach of an output in single precision."""
LARGEST_WHOLE_NUMBER = 2**53
"""Up to here double precision holds every whole number."""


@register("env", "gym")
class GymWorld(World):
    """Episodes of one of gymnasium's environments.

    Observations are flattened, discrete ones one-hot. Outputs become actions so: the largest one of a discrete action
    (of each of several), yes above 0 for binary ones, and for continuous ones the logistic function of an output
    between the bounds, or the output itself where there are none. Of an action that is a whole number between bounds,
    each number has an equal part of the logistic function's range; without bounds, the output is rounded.
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
        description="cuts an episode off; null leaves it to the environment, which must have a limit then",
    )
    target: float | None = Field(
        default=None,
        description="return from which on the task counts as solved; null takes the reward threshold that gymnasium "
        "gives",
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
        self._spaces = gymnasium.spaces
        self._begun = False
        self._drawn: GymWorld | None = None
        make_vec: Callable[..., VectorEnv] = gymnasium.make_vec
        # What the processes of async hold is as in sync.
        mode = "sync" if self.vectorization == "async" else self.vectorization
        make = self.make or (lambda count: make_vec(self.id, num_envs=count, vectorization_mode=mode, **self.arguments))
        try:
            envs = make(1)
        except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
            raise ValueError(f"id: got {self.id!r}; gymnasium says: {' '.join(str(error).split())}") from error
        self._spec = envs.spec
        self.observation_space: Any = envs.single_observation_space
        self.action_space: Any = envs.single_action_space
        self._episodes: Separate | Together | Workers
        if self.vectorization == "async" and self.make is None:
            assert envs.spec is not None
            self._episodes = Workers(envs.spec, self.workers or cores())
        elif type(envs) is gymnasium.vector.SyncVectorEnv:
            self._episodes = Separate(make)
        else:
            self._episodes = Together(make, one_seed=mode == "vector_entry_point")
        envs.close()
        self.input_size = self._observation_size()
        self.output_size = self._action_size()
        self.step_limit = self._setting("max_steps", self.max_steps, "max_episode_steps")
        self.solved_at = float(self._setting("target", self.target, "reward_threshold"))

    def _setting(self, name: str, value: float | None, in_spec: str) -> float:
        """An option, or where it is null what gymnasium knows about the environment."""
        if value is None:
            value = getattr(self._spec, in_spec, None)
        if value is None:
            raise ValueError(f"{name}: got null, but gymnasium knows no {in_spec} of {self.id}; give a number")
        return value

    def reset(self, episodes: int, generator: torch.Generator, *, copies: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
        """Begin episodes, each from a seed of its own; see :meth:`World.reset`."""
        check_episodes(episodes, copies)
        seeds = torch.randint(2**31, (episodes,), generator=generator, device=generator.device).repeat(copies).tolist()
        observations = self._episodes.reset(seeds)
        self._returns = torch.zeros(len(seeds), dtype=torch.float64, device=self.device)
        self._terminated = torch.zeros(len(seeds), dtype=torch.bool, device=self.device)
        self._truncated = torch.zeros_like(self._terminated)
        self._steps = torch.zeros_like(self._returns, dtype=torch.long)
        self._begun = True
        return self._observations(observations), self._info()

    def step(self, actions: Tensor) -> Step:
        """Pass the actions on to the environments; see :meth:`World.step`.

        Raises:
            RuntimeError: there was no reset before.
        """
        self._expect_reset("step")
        over = self._terminated | self._truncated
        shown, *told = self._episodes.step(self._numpy(actions), (~over).cpu().numpy())
        rewarded, terminated, truncated = (torch.as_tensor(part, device=self.device) for part in told)
        self._steps = self._steps + ~over
        rewards = rewarded.double().masked_fill(over, 0)
        self._returns = self._returns + rewards
        self._terminated = self._terminated | (terminated & ~over)
        cut = (truncated | (self._steps >= self.step_limit)) & ~over & ~self._terminated
        self._truncated = self._truncated | cut
        ended = ((self._terminated | self._truncated) & ~cut).unsqueeze(-1)
        return Step(
            self._observations(shown).masked_fill(ended, 0),
            rewards,
            self._terminated,
            self._truncated,
            self._info(),
        )

    def keep(self, rows: Tensor) -> None:
        """See :meth:`World.keep`."""
        self._expect_reset("keep")
        self._episodes.keep(rows.cpu().numpy())
        self._returns, self._steps = self._returns[rows], self._steps[rows]
        self._terminated, self._truncated = self._terminated[rows], self._truncated[rows]

    def renew(self, over: Tensor, generator: torch.Generator) -> Tensor:
        """Begin new episodes, each from a seed of its own; see :meth:`World.renew`."""
        self._expect_reset("renew")
        if not self.renewable:
            raise RuntimeError(
                f"renew: the episodes of {self.id} begin anew all at once or by themselves; expected vectorization "
                "sync or async, or a vector environment in gymnasium's mode of autoreset DISABLED"
            )
        shown = torch.zeros(len(over), self.input_size, device=self.device)
        (rows,) = over.nonzero(as_tuple=True)
        if len(rows):
            seeds = torch.randint(2**31, (len(rows),), generator=generator, device=generator.device).tolist()
            shown[rows] = self._observations(self._episodes.renew(rows.cpu().numpy(), seeds))
        self._returns, self._steps = self._returns.masked_fill(over, 0), self._steps.masked_fill(over, 0)
        self._terminated, self._truncated = self._terminated & ~over, self._truncated & ~over
        return shown

    @property
    def renewable(self) -> bool:
        """See :attr:`World.renewable`; not where gymnasium steps all episodes at once and begins anew by itself."""
        return self._episodes.renewable

    def _expect_reset(self, wanted: str) -> None:
        if not self._begun:
            raise RuntimeError(f"{wanted}: there was no reset before")

    def action_parts(self) -> Sequence[ActionPart]:
        """See :meth:`World.action_parts`: choices, yes or no, or numbers near an output."""
        spaces, space = self._spaces, self.action_space
        if isinstance(space, spaces.MultiDiscrete):
            return [ActionPart("categorical", size) for size in space.nvec.flatten().tolist()]
        kinds: dict[Any, ActionKind] = {spaces.Discrete: "categorical", spaces.MultiBinary: "bernoulli"}
        return [ActionPart(kinds.get(type(space), "normal"), self.output_size)]

    def decide(self, outputs: Tensor) -> Tensor:
        """Actions from outputs ``[B, O]``: ``[B]`` if discrete, else ``[B, A]``; see the class."""
        spaces, space = self._spaces, self.action_space
        if isinstance(space, spaces.Discrete):
            return outputs.argmax(-1) + int(space.start)
        if isinstance(space, spaces.MultiDiscrete):
            parts = outputs.split(space.nvec.flatten().tolist(), dim=-1)
            start = torch.as_tensor(space.start.flatten(), device=outputs.device)
            return torch.stack([part.argmax(-1) for part in parts], dim=-1) + start
        if isinstance(space, spaces.MultiBinary):
            return (outputs > 0).long()
        low, high = (
            torch.as_tensor(bound.astype(np.float64).flatten(), device=outputs.device)
            for bound in (space.low, space.high)
        )
        bounded = torch.as_tensor((space.bounded_below & space.bounded_above).flatten(), device=outputs.device)
        given = outputs.double()
        share = torch.sigmoid(given)
        if np.issubdtype(space.dtype, np.floating):
            scaled = low * (1 - share) + high * share
            return torch.where(bounded, scaled, given).clamp(low, high)
        low, high = (bound.clamp(-LARGEST_WHOLE_NUMBER, LARGEST_WHOLE_NUMBER) for bound in (low, high))
        chosen = torch.where(bounded, low + torch.floor(share * (high - low + 1)), torch.round(given))
        # What is not a number would be any, once it is whole.
        return torch.where(chosen.isnan(), low, chosen).clamp(low, high).long()

    def input_channels(self) -> Sequence[Channels]:
        """Observations, each number in units of its own."""
        if isinstance(self.observation_space, self._spaces.Box):
            return [Channels(f"observation {number}", 1) for number in range(1, self.input_size + 1)]
        return [Channels("observation", self.input_size)]

    def output_channels(self) -> Sequence[Channels]:
        """Actions; of a discrete one, each that there is to choose from."""
        space = self.action_space
        if isinstance(space, self._spaces.Discrete):
            return [_choice("action", int(space.n), int(space.start))]
        if isinstance(space, self._spaces.MultiDiscrete):
            sizes, starts = space.nvec.flatten().tolist(), space.start.flatten().tolist()
            pairs = zip(sizes, starts, strict=True)
            return [_choice(f"action {number}:", *pair) for number, pair in enumerate(pairs, start=1)]
        return [Channels("action", self.output_size)]

    def pictured(self) -> World:
        """One that draws what it does, where gymnasium and what it needs for that can; see :meth:`World.pictured`."""
        if self._drawn is None:
            self._drawn = self
            # Many need a package to draw with; what they raise without it differs.
            with contextlib.suppress(Exception):
                if self.make is None and "render_mode" not in self.arguments:
                    drawn = self.changed(
                        arguments={**self.arguments, "render_mode": "rgb_array"}, vectorization="sync", workers=None
                    )
                    drawn.reset(1, torch.Generator(self.device).manual_seed(0))
                    if drawn.picture() is not None:
                        self._drawn = drawn
        return self._drawn

    def picture(self) -> Tensor | None:
        """What gymnasium renders; see :meth:`World.picture`."""
        frame = self._episodes.render()
        frame = None if frame is None else np.asarray(frame)
        return torch.from_numpy(frame.copy()) if frame is not None and frame.ndim == 3 else None

    def close(self) -> None:
        """Close the environments; the next reset opens new ones."""
        self._episodes.close()
        self._begun = False
        if self._drawn is not None and self._drawn is not self:
            self._drawn.close()

    def _observation_size(self) -> int:
        spaces, space = self._spaces, self.observation_space
        if isinstance(space, spaces.Discrete):
            return int(space.n)
        if isinstance(space, spaces.Box | spaces.MultiBinary):
            return int(np.prod(space.shape))
        raise ValueError(
            f"id: got {self.id!r}, which has observations {space}; allowed are Box, Discrete and MultiBinary"
        )

    def _action_size(self) -> int:
        spaces, space = self._spaces, self.action_space
        if isinstance(space, spaces.Discrete):
            return int(space.n)
        if isinstance(space, spaces.MultiDiscrete):
            return int(space.nvec.sum())
        if isinstance(space, spaces.Box | spaces.MultiBinary):
            self._check_whole_numbers()
            return int(np.prod(space.shape))
        raise ValueError(
            f"id: got {self.id!r}, which has actions {space}; allowed are Box, Discrete, MultiDiscrete and MultiBinary"
        )

    def _check_whole_numbers(self) -> None:
        """Raise ValueError if an action is one of more whole numbers than outputs can tell apart."""
        space = self.action_space
        if not isinstance(space, self._spaces.Box) or np.issubdtype(space.dtype, np.floating):
            return
        bounds = zip(*(bound.astype(object).flatten() for bound in (space.low, space.high)), strict=True)
        bounded = (space.bounded_below & space.bounded_above).flatten()
        for low, high in (pair for pair, known in zip(bounds, bounded, strict=True) if known):
            if high - low >= MOST_WHOLE_NUMBERS or max(-low, high) > LARGEST_WHOLE_NUMBER:
                raise ValueError(
                    f"id: got {self.id!r}, which has whole numbers from {low} to {high} as actions; allowed "
                    f"are at most {MOST_WHOLE_NUMBERS:,} of them, none beyond {LARGEST_WHOLE_NUMBER:,}"
                )

    def _observations(self, observations: Any) -> Tensor:
        found = torch.as_tensor(np.asarray(observations), device=self.device)
        if isinstance(self.observation_space, self._spaces.Discrete):
            found = functional.one_hot(found.long() - int(self.observation_space.start), self.input_size)
        return found.flatten(1).to(torch.get_default_dtype())

    def _numpy(self, actions: Tensor) -> np.ndarray:
        space = self.action_space
        return actions.detach().cpu().numpy().astype(space.dtype).reshape(actions.shape[0], *space.shape)

    def _info(self) -> dict[str, Tensor]:
        return {"shortfall": (self.solved_at - self._returns).clamp(min=0)}


def _choice(name: str, count: int, start: int) -> Channels:
    """A discrete action."""
    return Channels(name, count, tuple(f"{name} {start + value}" for value in range(count)), choice=True)
