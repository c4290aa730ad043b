"""Sink: somewhere that the metrics and the pictures of a run go."""

from __future__ import annotations

import inspect
from abc import ABC
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from ...core.component import Component
from ...core.contracts import expect
from ...core.options import ContractError
from ...core.registry import contract

if TYPE_CHECKING:
    from ...core.recorder import Chart
    from ..plots import Episode


CALLS = {
    "message": ("text",),
    "metrics": ("step", "values"),
    "text": ("name", "text"),
    "episode": ("step", "name", "episode"),
    "animation": ("name", "episode"),
    "chart": ("step", "name", "chart"),
    "close": (),
}
"""What a run calls of a sink, with the arguments that it gives by place."""


@contract("sink")
class Sink(Component, ABC):
    """Somewhere that the metrics and the pictures of a run go: files, a page, a service.

    A subclass declares its options, opens what it needs in :meth:`setup`, and implements those of the methods that it
    has a use for; here, all do nothing. It is called by the training process, which waits for it. Whatever it does, the
    run stays the same: what it raises is logged once, and it is asked for nothing more.
    """

    directory: Path = Field(kw_only=False, description="folder of the run, which is there")
    title: str = Field(kw_only=False, description="what the run is called")

    def after_setup(self) -> None:
        """See whether what a run calls can be called.

        Raises:
            ContractError: it cannot; names the class, the method and what is expected.
        """
        for method, arguments in CALLS.items():
            where = f"{type(self).__qualname__}.{method}"
            called = getattr(self, method)
            expect(callable(called), where, f"is a {type(called).__name__}", "a method")
            try:
                inspect.signature(called).bind(*arguments)
            except TypeError as error:
                expected = ", ".join(arguments) or "no argument"
                raise ContractError(f"{where}: takes {inspect.signature(called)}; expected {expected}") from error

    def message(self, text: str) -> None:
        """One line for a person to read."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers at a training step, named like ``train/loss`` or ``validation/length 40/bits_wrong``."""

    def text(self, name: str, text: str) -> None:
        """A text, such as the run's options, in place of the last of that name."""

    def episode(self, step: int, name: str, episode: Episode) -> None:
        """One answered sequence at a training step, which :func:`~papertape.utils.plots.episode_figure` draws."""

    def animation(self, name: str, episode: Episode) -> None:
        """One answered sequence of a test, for :func:`~papertape.utils.plots.memory_gif`."""

    def chart(self, step: int, name: str, chart: Chart) -> None:
        """Plain data at a training step, which :func:`~papertape.utils.plots.chart_figure` draws."""

    def close(self) -> None:
        """The run is over: write what is left."""
