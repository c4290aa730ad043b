"""gymnasium's environments side by side: in this process, or shared out over a few others. Does without torch."""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from . import child_process

if TYPE_CHECKING:
    from gymnasium import Env
    from gymnasium.envs.registration import EnvSpec
    from gymnasium.vector import VectorEnv

END_SECONDS = 5.0
"""How long a process may take over the step that it is in when it is told to end."""


Stepped = tuple[np.ndarray, ...]
"""Observations, rewards, terminated and truncated, of B environments. A plain tuple: to read another class, or to write
it, a process would import all of this package."""


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

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Begin an episode from each seed; returns the first observations."""
        if len(self.made) < len(seeds):
            self.made += cast("Any", self.make(len(seeds) - len(self.made))).envs
        self.envs = self.made[: len(seeds)]
        return np.stack([env.reset(seed=seed)[0] for env, seed in zip(self.envs, seeds, strict=True)])

    def step(self, actions: np.ndarray, going: np.ndarray) -> Stepped:
        """One action each, where the episode goes on, bool ``[B]``; elsewhere the answers are zeros."""
        space = self.envs[0].observation_space
        observations = np.zeros((len(self.envs), *(space.shape or ())), space.dtype)
        rewards = np.zeros(len(self.envs))
        terminated, truncated = np.zeros((2, len(self.envs)), bool)
        for row in np.flatnonzero(going):
            observations[row], rewards[row], terminated[row], truncated[row], _ = self.envs[row].step(actions[row])
        return observations, rewards, terminated, truncated

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these alone."""
        self.envs = [self.envs[row] for row in rows]

    def renew(self, rows: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """Begin other episodes in these places; returns their first observations."""
        return np.stack([self.envs[row].reset(seed=seed)[0] for row, seed in zip(rows, seeds, strict=True)])

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
        self.over, self.rows = None, np.arange(len(seeds))
        seed: Any = seeds[0] if self.one_seed else list(seeds)
        return np.asarray(self.envs.reset(seed=seed)[0])

    def step(self, actions: np.ndarray, going: np.ndarray) -> Stepped:
        """See :meth:`Separate.step`; what an episode that is over answers is to be ignored."""
        assert self.envs is not None
        if self.mode == "Disabled" and self.over is not None and self.over.any():
            self.envs.reset(options={"reset_mask": self.over})
        given = np.repeat(actions[:1], self.envs.num_envs, 0)
        given[self.rows] = actions
        observations, rewards, terminated, truncated, info = self.envs.step(given)
        self.over = np.asarray(terminated) | np.asarray(truncated)
        observations = np.asarray(observations)
        if self.mode == "SameStep" and self.over.any() and "final_obs" in info:
            # Elsewhere the last observation is shown, here the first of the next episode.
            observations = observations.copy()
            for row in np.flatnonzero(self.over):
                observations[row] = info["final_obs"][row]
        return (
            observations[self.rows],
            np.asarray(rewards)[self.rows],
            np.asarray(terminated)[self.rows],
            np.asarray(truncated)[self.rows],
        )

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
        return np.asarray(observations)[chosen]

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
    """:class:`Separate` environments in each of a few processes, which stay as the number of episodes changes."""

    renewable = True

    def __init__(self, spec: EnvSpec, count: int) -> None:
        """
        Args:
            spec: of the environment, as ``gymnasium.make_vec`` leaves it at a vector environment.
            count: how many processes at most; no more are started than there are episodes.
        """
        self.spec = spec
        self.count = count
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
        answers = self._call("step", list(zip(self._split(actions), self._split(going), strict=True)))
        return tuple(map(np.concatenate, zip(*answers, strict=True)))

    def keep(self, rows: np.ndarray) -> None:
        """See :meth:`Separate.keep`."""
        parts = self._parts(rows)
        self._call("keep", [(part,) for part in parts])
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
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            process.kill()
            process.wait()

    def _start(self) -> None:
        cloudpickle = importlib.import_module("cloudpickle")  # a requirement of gymnasium

        # In a session of its own: Ctrl-C stops the training after its step, which these processes still have to answer.
        process = subprocess.Popen(
            child_process.command(serve),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.processes.append(process)
        # What the environment is made of may be imported from wherever this process would find it, or defined in its
        # main module. Warnings come from the first process alone: the others would repeat them.
        self._send(process, (sys.path, cloudpickle.dumps(self.spec), len(self.processes) > 1))

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
            process.kill()
            raise ChildProcessError(
                f"vectorization: a process that plays episodes of {self.spec.id} ended with status {process.wait()}"
            ) from error
        if failed:
            raise RuntimeError(f"{self.spec.id} failed in a process that plays episodes:\n{answer}")
        return answer


def serve() -> None:
    """In a process of :class:`Workers`: answer calls of :class:`Separate` environments until the pipe is closed."""
    import traceback

    # Whatever an environment prints goes to the terminal, not between the answers.
    calls, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # An environment may use all of this package, of which only a shell stands here.
    del sys.modules[__name__.partition(".")[0]]
    batch = None
    with contextlib.suppress(EOFError, BrokenPipeError):
        sys.path, spec, silent = pickle.load(calls)
        if silent:
            warnings.simplefilter("ignore")
        while True:
            name, argument = pickle.load(calls)
            try:
                if batch is None:
                    batch = _environment(pickle.loads(spec))
                answer = (False, getattr(batch, name)(*argument))
            except Exception:
                answer = (True, traceback.format_exc())
            pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()


def _environment(spec: EnvSpec) -> Separate:
    import gymnasium

    return Separate(lambda count: gymnasium.make_vec(spec, num_envs=count))


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
