"""gymnasium's environments side by side: in this process, or shared out over a few others. Does without torch."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import math
import os
import pickle
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from . import child_process

if TYPE_CHECKING:
    from gymnasium import Env, Space
    from gymnasium.vector import VectorEnv

END_SECONDS = 5.0
"""How long processes may take over the step that they are in when they are told to end."""
PARENT_SECONDS = 1.0
"""From one look at whether the process that calls is still there to the next."""


Stepped = tuple[np.ndarray, ...]
"""Observations, rewards, terminated and truncated, of B environments. A plain tuple: to read another class, or to write
it, a process would import all of this package."""


class Converter:
    """Between rows of numbers and what an environment shows and takes."""

    def __init__(self, observations: Space[Any], actions: Space[Any]) -> None:
        """
        Args:
            observations: space of one environment's.
            actions: likewise.
        """
        from gymnasium import spaces

        self.observations, self.actions = observations, actions
        self.plain = isinstance(observations, spaces.Box | spaces.MultiBinary)
        """Whether an observation is numbers as they are."""
        self.nested = isinstance(actions, spaces.Dict | spaces.Tuple)
        """Whether an action is made of others."""
        flat = spaces.flatten_space(observations)
        assert flat.shape is not None and flat.dtype is not None
        self.width, self.kind = math.prod(flat.shape), flat.dtype

    def flatten(self, observation: Any) -> np.ndarray:
        """An observation as one row of numbers, as gymnasium has it.

        Raises:
            ValueError: it is of another size than those of its space, or its numbers are none of its space's type.
        """
        if not self.plain or self.kind.kind != "f":  # plain floats are what most steps show
            self._check_whole(self.observations, observation)
        if self.plain:
            found = np.asarray(observation)
            row = found.ravel()
        else:
            from gymnasium import spaces

            found = row = cast("Any", spaces.flatten(self.observations, observation))
        self.check_size(row.size, found.shape)
        return row

    def check_size(self, size: int, shape: tuple[int, ...]) -> None:
        """Raise ValueError if an observation of this shape has another number of numbers than those of its space."""
        if size != self.width:
            raise ValueError(f"got an observation of shape {list(shape)}; its space is {self.observations}")

    def _check_whole(self, space: Any, shown: Any) -> None:
        """Raise ValueError where whole numbers are due and others are shown, which a cast would make other ones."""
        from gymnasium import spaces

        if isinstance(space, spaces.Dict | spaces.Tuple):
            names: Any = space.spaces if isinstance(space, spaces.Dict) else range(len(space.spaces))
            for name in names:
                self._check_whole(space.spaces[name], shown[name])
        elif space.dtype.kind in "biu":
            found = np.asarray(shown)
            if found.dtype == space.dtype:
                return
            with np.errstate(invalid="ignore"):
                lost = found.astype(space.dtype) != found
            if lost.any():
                raise ValueError(
                    f"got an observation of {found.dtype} with {found[lost].flat[0]}; expected {space.dtype}: "
                    f"its space is {self.observations}"
                )

    def actions_of(self, rows: np.ndarray) -> Any:
        """Actions ``[B]`` or ``[B, A]`` in the environment's types and shapes: an array, or a list of nested ones."""
        if self.nested:
            return [self._assembled(self.actions, iter(row)) for row in rows.tolist()]
        return rows.astype(self.actions.dtype).reshape(len(rows), *(self.actions.shape or ()))

    def action(self, actions: Any, row: int) -> Any:
        """One of :meth:`actions_of`."""
        # A choice is a number, anything else an array, even one of no axes.
        return actions[row] if self.nested or hasattr(self.actions, "n") else actions[row, ...]

    def _assembled(self, space: Any, numbers: Iterator[Any]) -> Any:
        """An action of a space from as many numbers as it takes."""
        from gymnasium import spaces

        if isinstance(space, spaces.Dict):
            return {name: self._assembled(part, numbers) for name, part in space.spaces.items()}
        if isinstance(space, spaces.Tuple):
            return tuple(self._assembled(part, numbers) for part in space.spaces)
        taken = np.array(list(itertools.islice(numbers, math.prod(space.shape)))).astype(space.dtype)
        return taken[0] if isinstance(space, spaces.Discrete) else taken.reshape(space.shape)


def miscounted(made: int, wanted: int) -> ValueError:
    """The error of another number of environments than was asked for."""
    return ValueError(f"make gives {made} environments for {wanted} episodes; expected as many")


class Separate:
    """Environments of one kind, each stepped for itself, only while its episode goes on; more are made as needed."""

    renewable = True

    def __init__(self, make: Callable[[int], VectorEnv]) -> None:
        """
        Args:
            make: returns a ``SyncVectorEnv`` of so many environments, of which they are taken.
        """
        self.make = make
        self.made: list[Env] = []
        self.envs: list[Env] = []
        self.converter: Converter | None = None

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Begin an episode from each seed; returns the first observations, ``[B, I]``."""
        if len(self.made) < len(seeds):
            self.made += cast("Any", self.make(len(seeds) - len(self.made))).envs
            if len(self.made) < len(seeds):
                raise miscounted(len(self.made), len(seeds))
        self.envs = self.made[: len(seeds)]
        return self.renew(np.arange(len(seeds)), seeds)

    def step(self, actions: np.ndarray, going: np.ndarray) -> Stepped:
        """One action each, where the episode goes on, bool ``[B]``; elsewhere the answers are zeros."""
        assert self.converter is not None
        given = self.converter.actions_of(actions)
        observations = np.zeros((len(self.envs), self.converter.width), self.converter.kind)
        rewards = np.zeros(len(self.envs))
        terminated, truncated = np.zeros((2, len(self.envs)), bool)
        for row in np.flatnonzero(going).tolist():
            action = self.converter.action(given, row)
            shown, reward, terminated[row], truncated[row], _ = self.envs[row].step(action)
            try:
                # numpy by itself takes None for nan, and digits for a number.
                rewards[row] = cast("Any", reward) + 0
            except (TypeError, ValueError) as error:
                raise ValueError(f"got the reward {reward!r}; expected a number") from error
            observations[row] = self.converter.flatten(shown)
        return observations, rewards, terminated, truncated

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these alone."""
        self.envs = [self.envs[row] for row in rows]

    def renew(self, rows: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """Begin other episodes in these places; returns their first observations."""
        if self.converter is None:
            self.converter = Converter(self.envs[0].observation_space, self.envs[0].action_space)
        begun = [self.envs[row].reset(seed=seed)[0] for row, seed in zip(rows.tolist(), seeds, strict=True)]
        return np.stack([self.converter.flatten(shown) for shown in begun]).astype(self.converter.kind)

    def render(self) -> Any:
        """What the first one looks like, if it can be seen."""
        return self.envs[0].render() if self.envs and self.envs[0].render_mode == "rgb_array" else None

    def close(self) -> None:
        """Close the environments; the next reset makes new ones."""
        for env in self.made:
            env.close()
        self.made, self.envs = [], []


class Together:
    """A vector environment that steps all its episodes at once; made anew when another number is to begin."""

    def __init__(self, make: Callable[[int], VectorEnv], *, one_seed: bool = False) -> None:
        """
        Args:
            make: returns a vector environment of so many episodes, in whichever of gymnasium's modes of autoreset.
            one_seed: it takes the seed of the first episode for all of them.
        """
        self.make = make
        self.one_seed = one_seed
        self.envs: VectorEnv | None = None
        self.converter: Converter | None = None
        self.over: np.ndarray | None = None
        self.rows = np.arange(0)

    @property
    def mode(self) -> Any:
        """When it begins anew by itself, in gymnasium's words: NextStep, SameStep or Disabled; None: not told."""
        mode = None if self.envs is None else self.envs.metadata.get("autoreset_mode")
        return getattr(mode, "value", mode)

    @property
    def renewable(self) -> bool:
        """Whether single episodes can be begun anew: where it does not do so by itself."""
        return self.mode == "Disabled" and not self.one_seed

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """See :meth:`Separate.reset`."""
        if self.envs is not None and self.envs.num_envs != len(seeds):
            self.close()
        if self.envs is None:
            self.envs = self.make(len(seeds))
            if self.envs.num_envs != len(seeds):
                raise miscounted(self.envs.num_envs, len(seeds))
        self.over, self.rows = None, np.arange(len(seeds))
        if self.converter is None:
            self.converter = Converter(self.envs.single_observation_space, self.envs.single_action_space)
        seed: Any = seeds[0] if self.one_seed else list(seeds)
        return self._flattened(self.envs.reset(seed=seed)[0])

    def step(self, actions: np.ndarray, going: np.ndarray) -> Stepped:
        """See :meth:`Separate.step`; what an episode that is over answers is to be ignored."""
        assert self.envs is not None
        if self.mode == "Disabled" and self.over is not None and self.over.any():
            self.envs.reset(options={"reset_mask": self.over})
        all_actions = np.repeat(actions[:1], self.envs.num_envs, 0)
        all_actions[self.rows] = actions
        assert self.converter is not None
        given = self.converter.actions_of(all_actions)
        if self.converter.nested:
            from gymnasium.vector.utils import concatenate, create_empty_array

            space = self.envs.single_action_space
            given = concatenate(space, given, cast("Any", create_empty_array(space, len(given))))
        shown, *told, info = self.envs.step(given)
        rewards = self._told("rewards", told[0], float)
        terminated, truncated = self._told("terminated", told[1], bool), self._told("truncated", told[2], bool)
        self.over = terminated | truncated
        observations = self._flattened(shown)
        if self.mode == "SameStep" and self.over.any() and "final_obs" in info:
            # Elsewhere the last observation is shown, here the first of the next episode.
            observations = np.array(observations)
            for row in np.flatnonzero(self.over):
                observations[row] = self.converter.flatten(info["final_obs"][row])
        return observations[self.rows], rewards[self.rows], terminated[self.rows], truncated[self.rows]

    def _told(self, name: str, values: Any, kind: type) -> np.ndarray:
        """A number of each episode, ``[B]``, in the type that it should have.

        Raises:
            ValueError: it is of another shape, or no number.
        """
        assert self.envs is not None
        found = np.asarray(values)
        if found.shape != (self.envs.num_envs,):
            raise ValueError(f"got {name} of shape {list(found.shape)}; expected {[self.envs.num_envs]}")
        try:
            return (found + 0).astype(kind)  # numpy by itself takes None for nan, and digits for a number
        except TypeError as error:
            raise ValueError(f"got {name} {found.tolist()}; expected numbers") from error

    def keep(self, rows: np.ndarray) -> None:
        """See :meth:`Separate.keep`; the others are stepped all the same."""
        self.rows = self.rows[rows]

    def renew(self, rows: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """See :meth:`Separate.renew`."""
        assert self.envs is not None
        chosen = self.rows[rows]
        mask = np.zeros(self.envs.num_envs, bool)
        mask[chosen] = True
        given: Any = [None] * self.envs.num_envs
        for row, seed in zip(chosen, seeds, strict=True):
            given[row] = seed
        observations, _ = self.envs.reset(seed=given, options={"reset_mask": mask})
        if self.over is not None:
            self.over = self.over & ~mask
        return self._flattened(observations)[chosen]

    def _flattened(self, observations: Any) -> np.ndarray:
        """Observations of all episodes as ``[B, I]``."""
        assert self.envs is not None and self.converter is not None
        if self.converter.plain:
            found = np.asarray(observations)
            rows = found.reshape(self.envs.num_envs, -1)
            self.converter.check_size(rows.shape[1], found.shape[1:])
            return rows
        from gymnasium.vector.utils import iterate

        shown = iterate(self.envs.observation_space, observations)
        return np.stack([self.converter.flatten(one) for one in shown])

    def render(self) -> Any:
        """See :meth:`Separate.render`."""
        frames = None if self.envs is None or self.envs.render_mode != "rgb_array" else self.envs.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        """See :meth:`Separate.close`."""
        if self.envs is not None:
            self.envs.close()
            self.envs = None


class Workers:
    """Environments in each of a few processes, which stay as the number of episodes changes."""

    def __init__(
        self, name: str, kind: type[Separate | Together], make: Callable[[int], VectorEnv], count: int
    ) -> None:
        """
        Args:
            name: of the environment, for messages.
            kind: what each process holds.
            make: see there.
            count: how many processes at most; no more are started than there are episodes.
        """
        self.name = name
        self.kind = kind
        self.make = make
        self.count = count
        self.renewable = kind.renewable is True
        """Whether single episodes can be begun anew."""
        self.processes: list[subprocess.Popen[bytes]] = []
        self.sizes: list[int] = []

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """See :meth:`Separate.reset`."""
        parts = np.array_split(np.asarray(seeds), min(self.count, len(seeds)))
        while len(self.processes) < len(parts):
            self._start()
        self.sizes = [len(part) for part in parts]
        return np.concatenate(self._call("reset", [(part.tolist(),) for part in parts]))

    def step(self, actions: np.ndarray, going: np.ndarray) -> Stepped:
        """See :meth:`Separate.step`."""
        given, goes = self._split(actions), self._split(going)
        # One that has nothing to do is not asked, as long as another is.
        calls = [pair if pair[1].any() or not going.any() else None for pair in zip(given, goes, strict=True)]
        answers = self._call("step", calls)
        found = tuple(map(np.concatenate, zip(*(answer for answer in answers if answer is not None), strict=True)))
        if all(call is not None for call in calls):
            return found
        asked = np.repeat([call is not None for call in calls], self.sizes)
        whole = tuple(np.zeros((len(going), *part.shape[1:]), part.dtype) for part in found)
        for part, own in zip(whole, found, strict=True):
            part[asked] = own
        return whole

    def keep(self, rows: np.ndarray) -> None:
        """See :meth:`Separate.keep`."""
        parts = self._parts(rows)
        self._call("keep", [(part,) if size else None for part, size in zip(parts, self.sizes, strict=True)])
        self.sizes = [len(part) for part in parts]

    def renew(self, rows: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """See :meth:`Separate.renew`."""
        parts = self._parts(rows)
        given = np.split(np.asarray(seeds), np.cumsum([len(part) for part in parts])[:-1])
        calls = [(part, seed.tolist()) if len(part) else None for part, seed in zip(parts, given, strict=True)]
        return np.concatenate([answer for answer in self._call("renew", calls) if answer is not None])

    def _split(self, values: np.ndarray) -> list[np.ndarray]:
        """Values of all episodes, shared out over the processes."""
        return np.split(values, np.cumsum(self.sizes)[:-1])

    def _parts(self, rows: np.ndarray) -> list[np.ndarray]:
        """Numbers of episodes, ascending, as each process counts its own."""
        ends = np.cumsum(self.sizes)
        places = np.split(rows, np.searchsorted(rows, ends)[:-1])
        return [part - (end - size) for part, end, size in zip(places, ends, self.sizes, strict=True)]

    def render(self) -> Any:
        """See :meth:`Separate.render`; nothing is seen of what other processes do."""
        return None

    def close(self) -> None:
        """End the processes; the next reset starts new ones."""
        processes, self.processes = self.processes, []
        for process in processes:
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):
                    pipe.close()
        deadline = time.monotonic() + END_SECONDS  # of all of them together
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0))
            process.kill()
            process.wait()

    def _start(self) -> None:
        cloudpickle = importlib.import_module("cloudpickle")  # a requirement of gymnasium

        # In a session of its own: Ctrl-C stops the training after its step, which these processes still have to answer.
        process = subprocess.Popen(
            child_process.command(serve, str(os.getpid())),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.processes.append(process)
        # What the environment is made of may be imported from wherever this process would find it, or defined in its
        # main module. Warnings come from the first process alone: the others would repeat them.
        made = cloudpickle.dumps((self.kind.__name__, self.make))
        self._send(process, (sys.path, made, len(self.processes) > 1))

    def _call(self, name: str, arguments: Sequence[tuple[Any, ...] | None]) -> list[Any]:
        """The answers of as many processes as there are arguments, which work at the same time; None asks nothing."""
        answers = []
        try:
            for process, argument in zip(self.processes, arguments, strict=False):
                if argument is not None:
                    self._send(process, (name, argument))
            for process, argument in zip(self.processes, arguments, strict=False):
                answers.append(None if argument is None else self._receive(process))
        except BaseException:
            # Others may have an answer on its way that nobody waits for any more.
            self.close()
            raise
        return answers

    def _send(self, process: subprocess.Popen[bytes], message: Any) -> None:
        assert process.stdin is not None
        # One that has ended says so when its answer is read.
        with contextlib.suppress(BrokenPipeError):
            pickle.dump(message, process.stdin, pickle.HIGHEST_PROTOCOL)
            process.stdin.flush()

    def _receive(self, process: subprocess.Popen[bytes]) -> Any:
        assert process.stdout is not None
        try:
            failed, answer = pickle.load(process.stdout)
        except (EOFError, pickle.UnpicklingError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)  # or its status would be that of what follows
            process.kill()
            raise ChildProcessError(
                f"a process that plays episodes of {self.name} ended with status {process.wait()}"
            ) from error
        if failed:
            raise RuntimeError(answer)
        return answer


def serve(parent: str) -> None:
    """In a process of :class:`Workers`: answer calls of the environments that it holds until the pipe is closed.

    Args:
        parent: the process that calls.
    """
    import traceback

    threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    # Whatever an environment prints goes to the terminal, not between the answers.
    calls, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # An environment may use all of this package, of which only a shell stands here.
    del sys.modules[__name__.partition(".")[0]]
    batch = None
    with contextlib.suppress(EOFError, BrokenPipeError):
        sys.path, made, silent = pickle.load(calls)
        if silent:
            warnings.simplefilter("ignore")
        while True:
            name, argument = pickle.load(calls)
            try:
                if batch is None:
                    kind, make = pickle.loads(made)
                    batch = {"Separate": Separate, "Together": Together}[kind](make)
                answer = (False, getattr(batch, name)(*argument))
            except Exception as error:
                traceback.print_exc()
                answer = (True, f"{type(error).__name__}: {error}")
            pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone, even where an environment never answers."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    time.sleep(END_SECONDS)
    os._exit(1)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
