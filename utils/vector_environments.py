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
from typing import TYPE_CHECKING, Any

import numpy as np

from . import child_process

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec
    from gymnasium.vector import VectorEnv

END_SECONDS = 5.0
"""How long a process may take over the step that it is in when it is told to end."""


Stepped = tuple[np.ndarray, ...]
"""Observations, rewards, terminated and truncated, of B environments. A plain tuple: to read another class, or to write
it, a process would import all of this package."""


class VectorEnvironment:
    """A vector environment, made anew when another number of episodes is to begin."""

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

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Begin an episode from each seed; returns the first observations."""
        if self.envs is not None and self.envs.num_envs != len(seeds):
            self.close()
        if self.envs is None:
            self.envs = self.make(len(seeds))
        seed: Any = seeds[0] if self.one_seed else list(seeds)
        self.over = None
        return np.asarray(self.envs.reset(seed=seed)[0])

    def step(self, actions: np.ndarray) -> Stepped:
        """One action each. An episode that is over begins anew, so that what it then answers is to be ignored."""
        assert self.envs is not None
        mode = self.envs.metadata.get("autoreset_mode")
        if getattr(mode, "value", mode) == "Disabled" and self.over is not None and self.over.any():
            self.envs.reset(options={"reset_mask": self.over})
        observations, rewards, terminated, truncated, _ = self.envs.step(actions)
        self.over = np.asarray(terminated) | np.asarray(truncated)
        return np.asarray(observations), np.asarray(rewards), np.asarray(terminated), np.asarray(truncated)

    def close(self) -> None:
        """Close the environments; the next reset makes new ones."""
        if self.envs is not None:
            self.envs.close()
            self.envs = None


class Workers:
    """A :class:`VectorEnvironment` in each of a few processes, which stay as the number of episodes changes."""

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
        """See :meth:`VectorEnvironment.reset`."""
        parts = np.array_split(np.asarray(seeds), min(self.count, len(seeds)))
        while len(self.processes) < len(parts):
            self._start()
        self.sizes = [len(part) for part in parts]
        return np.concatenate(self._call("reset", [part.tolist() for part in parts]))

    def step(self, actions: np.ndarray) -> Stepped:
        """See :meth:`VectorEnvironment.step`."""
        answers = self._call("step", np.split(actions, np.cumsum(self.sizes)[:-1]))
        return tuple(map(np.concatenate, zip(*answers, strict=True)))

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

    def _call(self, name: str, arguments: Sequence[Any]) -> list[Any]:
        """The answers of as many processes as there are arguments, which work at the same time."""
        answers = []
        try:
            for process, argument in zip(self.processes, arguments, strict=False):
                self._send(process, (name, argument))
            for process, _ in zip(self.processes, arguments, strict=False):
                answers.append(self._receive(process))
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
    """In a process of :class:`Workers`: answer calls of a :class:`VectorEnvironment` until the pipe is closed."""
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
                answer = (False, getattr(batch, name)(argument))
            except Exception:
                answer = (True, traceback.format_exc())
            pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()


def _environment(spec: EnvSpec) -> VectorEnvironment:
    import gymnasium

    return VectorEnvironment(lambda count: gymnasium.make_vec(spec, num_envs=count))


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
