"""``papertape test``: a run on sequences of their own."""

from __future__ import annotations

import argparse
import contextlib

from ..log import LOGGER, log_to
from ..run import Run, find_directory, load_agent_state, read_options
from .arguments import gives, read_saved_arguments
from .train import build, use_threads


def test(arguments: argparse.Namespace) -> int:
    """Test a run on the sets of the test stream."""
    directory = find_directory(arguments.run)
    chosen = read_saved_arguments(arguments.arguments, read_options(directory), arguments.imports)
    names = (arguments.checkpoint,) if arguments.checkpoint else ("best", "latest")
    state = load_agent_state(directory, names)
    parts = build(chosen, resumed=True, any_backend=not gives(arguments.arguments, "backend"))
    use_threads(chosen, parts.env, may_restart=arguments.restarts)
    parts.agent.load_state_dict(state)
    tested = directory / "test"
    tested.mkdir(exist_ok=True)
    recorded = Run(tested, chosen, title=f"{directory.name}_test", gif=True)
    with log_to(tested / "log"), contextlib.closing(parts.env), recorded as run:
        parts.agent.recorder = run
        LOGGER.info("test of %s at step %d", directory, parts.agent.step)
        parts.agent.test()
        LOGGER.info("pictures: %s", tested / "plots")
    return 0
