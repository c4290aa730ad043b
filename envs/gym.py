"""Any of gymnasium's environments as a world (https://gymnasium.farama.org)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..core import install
from ..core.world import Step, World, WorldOptions, check_episodes

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv


class GymOptions(WorldOptions):
    """Options of :class:`GymWorld`."""

    type: Literal["gym"] = "gym"
    id: str = Field("CartPole-v1", min_length=1)
    """Name under which gymnasium knows the environment; ``package:name`` imports a package first."""
    arguments: dict[str, Any] = Field({})
    """Passed on to the environment."""
    vectorization: Literal["sync", "async", "vector_entry_point"] = "sync"
    """How episodes run side by side, as in ``gymnasium.make_vec``: one after the other, in processes, or in the
    environment's own vectorised version. That one is fast, but takes a single seed for all its episodes, so that the
    members of a population begin in different places."""
    max_steps: int | None = Field(None, ge=1)
    """Cuts an episode off; null leaves it to the environment, which must have a limit then."""
    target: float | None = None
    """Return from which on the task counts as solved; null takes the reward threshold that gymnasium gives."""


class GymWorld(World):
    """Episodes of one of gymnasium's environments.

    Observations are flattened, discrete ones one-hot. Outputs become actions so: the largest one of a discrete action
    (of each of several), yes above 0 for binary ones, and for continuous ones the logistic function of an output
    between the bounds, or the output itself where there are none.
    """

    Options = GymOptions
    error_metric: ClassVar[str] = "shortfall"
    options: GymOptions

    def __init__(
        self,
        options: GymOptions,
        device: torch.device | str = "cpu",
        make: Callable[[int], VectorEnv] | None = None,
    ) -> None:
        """
        Args:
            options: of this world.
            device: where observations and rewards are handed out.
            make: returns a vector environment of so many episodes, in place of the one that the options name.

        Raises:
            ImportError: gymnasium is not installed.
            ValueError: gymnasium cannot make this environment, it has no limit of time or no target, or its
                observations or actions are of a kind that has no tensor.
        """
        try:
            import gymnasium
        except ImportError as error:
            raise ImportError(f"env type gym: gymnasium is not installed; {install.GYMNASIUM}") from error
        self.options = options
        self.device = torch.device(device)
        self._spaces = gymnasium.spaces
        self._begun = False
        make_vec: Callable[..., VectorEnv] = gymnasium.make_vec
        self._make: Callable[[int], VectorEnv] = make or (
            lambda count: make_vec(
                options.id, num_envs=count, vectorization_mode=options.vectorization, **options.arguments
            )
        )
        try:
            self._envs: VectorEnv | None = self._make(1)
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise ValueError(f"id: got {options.id!r}; gymnasium says: {' '.join(str(error).split())}") from error
        self.observation_space: Any = self._envs.single_observation_space
        self.action_space: Any = self._envs.single_action_space
        self.input_size = self._observation_size()
        self.output_size = self._action_size()
        self.max_steps = self._setting("max_steps", options.max_steps, "max_episode_steps")
        self.target = float(self._setting("target", options.target, "reward_threshold"))

    def _setting(self, name: str, value: float | None, in_spec: str) -> float:
        """An option, or where it is null what gymnasium knows about the environment."""
        if value is None and self._envs is not None:
            value = getattr(self._envs.spec, in_spec, None)
        if value is None:
            raise ValueError(f"{name}: got null, but gymnasium knows no {in_spec} of {self.options.id}; give a number")
        return value

    def reset(self, episodes: int, generator: torch.Generator, *, copies: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
        """Begin episodes, each from a seed of its own; see :meth:`World.reset`."""
        check_episodes(episodes, copies)
        envs = self._hold(episodes * copies)
        seeds = torch.randint(2**31, (episodes,), generator=generator, device=generator.device).repeat(copies).tolist()
        seed: Any = seeds[0] if self.options.vectorization == "vector_entry_point" else seeds
        observations, _ = envs.reset(seed=seed)
        self._returns = torch.zeros(len(seeds), dtype=torch.float64, device=self.device)
        self._terminated = torch.zeros(len(seeds), dtype=torch.bool, device=self.device)
        self._truncated = torch.zeros_like(self._terminated)
        self._steps = 0
        self._begun = True
        return self._observations(observations), self._info()

    def step(self, actions: Tensor) -> Step:
        """Pass the actions on to the environments; see :meth:`World.step`.

        Raises:
            RuntimeError: there was no reset before.
        """
        if self._envs is None or not self._begun:
            raise RuntimeError("step: there was no reset before")
        observations, rewards, terminated, truncated, _ = self._envs.step(self._numpy(actions))
        self._steps += 1
        over = self._terminated | self._truncated
        rewards = torch.as_tensor(rewards, dtype=torch.float64, device=self.device).masked_fill(over, 0)
        self._returns = self._returns + rewards
        self._terminated = self._terminated | (torch.as_tensor(terminated, device=self.device) & ~over)
        cut = torch.as_tensor(truncated, device=self.device) | (self._steps >= self.max_steps)
        self._truncated = self._truncated | (cut & ~over & ~self._terminated)
        # An environment begins anew by itself when its episode is over: what it shows then is none of ours.
        over = (self._terminated | self._truncated).unsqueeze(-1)
        return Step(
            self._observations(observations).masked_fill(over, 0),
            rewards,
            self._terminated,
            self._truncated,
            self._info(),
        )

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
        low, high = (torch.as_tensor(bound.flatten(), device=outputs.device) for bound in (space.low, space.high))
        bounded = low.isfinite() & high.isfinite()
        scaled = low.nan_to_num(0, 0, 0) + (high.nan_to_num(0, 0, 0) - low.nan_to_num(0, 0, 0)) * torch.sigmoid(outputs)
        return torch.where(bounded, scaled, outputs.maximum(low).minimum(high))

    def close(self) -> None:
        """Close the environments; the next reset opens new ones."""
        if self._envs is not None:
            self._envs.close()
            self._envs, self._begun = None, False

    def _hold(self, count: int) -> VectorEnv:
        """That many environments, kept from the last reset if they were as many."""
        if self._envs is not None and self._envs.num_envs != count:
            self.close()
        if self._envs is None:
            self._envs = self._make(count)
        return self._envs

    def _observation_size(self) -> int:
        spaces, space = self._spaces, self.observation_space
        if isinstance(space, spaces.Discrete):
            return int(space.n)
        if isinstance(space, spaces.Box | spaces.MultiBinary):
            return int(np.prod(space.shape))
        raise ValueError(
            f"id: got {self.options.id!r}, which has observations {space}; allowed are Box, Discrete and MultiBinary"
        )

    def _action_size(self) -> int:
        spaces, space = self._spaces, self.action_space
        if isinstance(space, spaces.Discrete):
            return int(space.n)
        if isinstance(space, spaces.MultiDiscrete):
            return int(space.nvec.sum())
        if isinstance(space, spaces.Box | spaces.MultiBinary):
            return int(np.prod(space.shape))
        raise ValueError(
            f"id: got {self.options.id!r}, which has actions {space}; "
            "allowed are Box, Discrete, MultiDiscrete and MultiBinary"
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
        return {"shortfall": (self.target - self._returns).clamp(min=0)}
