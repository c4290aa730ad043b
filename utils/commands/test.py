"""``papertape test``: a run, a checkpoint file or a trained circuit of the package on sequences of their own."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...agents.evaluation import load_weights
from ...core import install
from ...core.agent import Agent
from ...core.options import OptionsError
from .. import checkpoint, comparison, factory, zoo
from ..log import LOGGER, log_to
from ..run import RUNS, Run, check_path, find_directory, load_agent_state, new_directory, read_options, title_of
from .arguments import gives, read_saved_arguments
from .train import build


class Tested(NamedTuple):
    """What is tested."""

    name: str
    options: dict[str, Any]
    state: Mapping[str, Any]
    folder: Path | None
    """Where what comes of it goes; None for a new folder."""
    bare: bool = False
    """Whether the state is that of a circuit alone, without what its agent keeps besides."""


def test(arguments: argparse.Namespace) -> int:
    """Test on the sets of the test stream."""
    tested = find(arguments)
    chosen = read_saved_arguments(arguments.arguments, tested.options, arguments.imports)
    if chosen.start != tested.options.get("start"):
        raise OptionsError(f"start: got {chosen.start!r}; a test takes the weights of {tested.name}, leave it out")
    if chosen.name and tested.folder:
        raise OptionsError(f"name: got {chosen.name!r}; a test of a run goes to {tested.folder}, leave it out")
    if tested.folder:
        check_writable(tested.folder)
    parts = build(chosen, resumed=True, any_backend=not gives(arguments.arguments, "backend"))
    with contextlib.closing(parts.env):
        torch.set_num_threads(factory.count_threads(chosen, parts.env))
        try:
            take_up(parts.agent, tested)
        except ValueError as error:
            if not arguments.arguments:
                raise
            raise comparison.misfit(arguments.arguments, str(error)) from error
        folder = tested.folder or new_directory(f"test-{Path(tested.name).stem}", chosen.name)
        folder.mkdir(exist_ok=True)
        title = f"{title_of(folder.parent)}_test" if tested.folder else None
        recorded = Run(folder, chosen, task=parts.env, title=title, gif=True)
        with log_to(folder / "log"):
            with recorded as run:
                parts.agent.recorder = run
                LOGGER.info("test of %s at step %d", tested.name, parts.agent.step)
                parts.agent.test()
                if run.wants_episodes:
                    LOGGER.info("pictures and animations are still being drawn, which can take longer than the test")
            if run.wants_episodes and any((folder / "plots").iterdir()):
                LOGGER.info("pictures: %s", folder / "plots")
    return 0


def check_writable(folder: Path) -> None:
    """Raise OptionsError if a test cannot leave what comes of it in a folder, which need not be there."""
    check_path(folder.parent)
    there = folder if folder.is_dir() else folder.parent
    if not os.access(there, os.W_OK | os.X_OK):
        compare = install.here(f"papertape compare {shlex.quote(str(folder.parent))}")
        raise OptionsError(
            f"run: a test of {folder.parent} goes to {folder}, and {there} cannot be written; test a copy of the run, "
            f"or have its errors from: {compare}"
        )


def find(arguments: argparse.Namespace) -> Tested:
    """What the command line names: a run, a checkpoint file, or a trained circuit of the package, in this order.

    Raises:
        OptionsError: nothing of that name.
        checkpoint.CheckpointError: the file cannot be read, or holds no circuit.
    """
    name = arguments.run
    path = Path(name) if Path(name).is_file() else None
    if path is None and not any((folder / "options.yaml").is_file() for folder in (Path(name), RUNS / name)):
        path = zoo.find(name)
    if path is None:
        try:
            directory = find_directory(name)
        except OptionsError as error:
            kept = f"a checkpoint file, or a trained circuit: {', '.join(zoo.names())}"
            raise OptionsError(f"{error}, or {kept}") from error
        names = (arguments.checkpoint,) if arguments.checkpoint else ("best", "latest")
        return Tested(str(directory), read_options(directory), load_agent_state(directory, names), directory / "test")
    if arguments.checkpoint:
        raise OptionsError(f"--checkpoint: got {arguments.checkpoint!r}; {path} is a checkpoint already, leave it out")
    content = checkpoint.load(path)
    if not isinstance(content.get("options"), dict) or not isinstance(content.get("agent"), dict):
        raise checkpoint.CheckpointError(f"{path}: holds no circuit")
    of_a_run = path.parent.name == "checkpoints" and (path.parents[1] / "options.yaml").is_file()
    options = content["options"]
    if path.parent == zoo.ZOO:
        options = {key: value for key, value in options.items() if key != "plots"}  # its maker had no use for pictures
    folder = path.parents[1] / "test" if of_a_run else None
    return Tested(str(path), options, content["agent"], folder, bare="origin" in content)


def take_up(agent: Agent, tested: Tested) -> None:
    """Give an agent the state that it is tested in; of a circuit alone, its weights."""
    if not tested.bare:
        agent.load_state_dict(tested.state)
        return
    load_weights(agent.circuit, tested.state)
    agent.step = tested.state["step"]
