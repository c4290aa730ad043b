"""The sinks of a run together, so that none of them can stop or change it."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
import torch
from pydantic import ValidationError
from pydantic_core import core_schema

from ...core.component import Chosen, build
from ...core.install import here
from ...core.options import ContractError, Options, OptionsError, a_block
from ...core.recorder import Chart
from ...core.registry import entries
from ..plots import Episode
from .base import Sink
from .drawn import Off, Plotter

logger = logging.getLogger(__name__)


class _ChosenSinks(Chosen):
    """One sink or a list of them, each by its name or as a block of its type and options."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_wrap_validator_function(
            self._validate_all,
            core_schema.list_schema(core_schema.no_info_plain_validator_function(self._validate_one)),
            serialization=core_schema.plain_serializer_function_ser_schema(_dumped),
        )

    def _validate_all(self, value: Any, each: Callable[[Any], list[Any]]) -> list[Any]:
        """The options of each; what is wrong with one of a list has its place in the path."""
        chosen = each(list(value)) if isinstance(value, list | tuple) else [self._validate_one(value)]
        kinds = [type(one).component for one in chosen]
        drawn = [one.type for one, kind in zip(chosen, kinds, strict=True) if issubclass(kind, Plotter)]
        if not chosen or len(drawn) > 1 or (Off in kinds and len(kinds) > 1):
            given = ", ".join(one.type for one in chosen) or "none"
            raise ValueError(
                f"got {given}; allowed: one of auto, visdom and files (which the others write, too) with any others, "
                "or off"
            )
        return chosen

    def _validate_one(self, value: Any) -> Any:
        """The options of one; what was no block is not explained as one."""
        if not isinstance(value, str | Mapping | Options | Sink):
            raise ValueError(f"got {value!r}; {a_block(value, entries(self.kind))}")
        try:
            return self._validate(value)
        except ValidationError:
            raise  # which knows the paths of what is wrong
        except ValueError as error:
            raise ValueError(str(error).removeprefix("type: ") if isinstance(value, str) else error) from error


def _dumped(chosen: Any) -> Any:
    """As short as it can be said: a name where all options are the defaults, and no list of one."""
    if not isinstance(chosen, list):
        return chosen
    blocks = [one.model_dump(mode="json") for one in chosen]
    short = [block["type"] if one == type(one)() else block for one, block in zip(chosen, blocks, strict=True)]
    return short[0] if len(short) == 1 else short


Plots: TypeAlias = Annotated[Any, _ChosenSinks("sink")]
"""The option ``plots``: a sink's name, its name as ``type`` with its options, or a list of those."""


class Sinks:
    """Tells all sinks of a run what it has to show. Those from outside can neither stop nor change it."""

    def __init__(self, chosen: Sequence[Options], directory: Path, title: str, **visdom: Any) -> None:
        """
        Args:
            chosen: options of each, as :data:`Plots` has them.
            directory: of the run.
            title: what the run is called.
            visdom: where its server is, ``hostname`` and ``port``.

        Raises:
            OptionsError: one cannot be set up; names it and says why.
        """
        self._sinks: list[tuple[str, Sink]] = []
        for options in chosen:
            name: str = options.type  # type: ignore[attr-defined]
            kind: Any = type(options).component
            try:
                with _undisturbed():
                    more = visdom if issubclass(kind, Plotter) else {}
                    self._sinks.append((name, build(options, directory, title, **more)))
            except Exception as error:
                self.close()
                if isinstance(error, OptionsError):
                    raise
                if isinstance(error, ContractError):
                    raise OptionsError(f"plots: {error}") from error
                if isinstance(error, ModuleNotFoundError) and issubclass(kind, Plotter):
                    raise OptionsError(
                        f"plots: got {name!r}, for which {error.name} is not installed; "
                        f"{here('pip install .')} in a clone of Papertape installs it; plots=off works without it"
                    ) from error
                raise OptionsError(f"plots: {name} cannot be set up: {type(error).__name__}: {error}") from error

    @property
    def wants_pictures(self) -> bool:
        """Whether any of them does something with episodes or pictures."""
        methods = ("episode", "animation", "chart")
        return any(getattr(type(sink), name) is not getattr(Sink, name) for sink in self for name in methods)

    def __iter__(self) -> Iterator[Sink]:
        return iter([sink for _, sink in self._sinks])

    def message(self, text: str) -> None:
        """See :meth:`Sink.message`."""
        self._tell("message", text)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """See :meth:`Sink.metrics`."""
        self._tell("metrics", step, dict(values))

    def text(self, name: str, text: str) -> None:
        """See :meth:`Sink.text`."""
        self._tell("text", name, text)

    def episode(self, step: int, name: str, episode: Episode) -> None:
        """See :meth:`Sink.episode`."""
        self._tell("episode", step, name, episode._replace(name=name))

    def animation(self, name: str, episode: Episode) -> None:
        """See :meth:`Sink.animation`."""
        self._tell("animation", name, episode._replace(name=name))

    def chart(self, step: int, name: str, chart: Chart) -> None:
        """See :meth:`Sink.chart`."""
        self._tell("chart", step, name, chart)

    def close(self) -> None:
        """See :meth:`Sink.close`."""
        self._tell("close")

    def _tell(self, method: str, *content: Any) -> None:
        for name, sink in list(self._sinks):
            if isinstance(sink, Plotter):  # which only puts it into a mailbox
                getattr(sink, method)(*content)
                continue
            if getattr(type(sink), method) is getattr(Sink, method) and method not in vars(sink):  # it does nothing
                continue
            try:
                with _undisturbed():
                    getattr(sink, method)(*map(_copied, content))
            except (Exception, SystemExit) as error:
                logger.warning(
                    "plots: %s failed at %s (%s: %s); the run goes on without it",
                    *(name, method, type(error).__name__, error),
                )
                self._sinks.remove((name, sink))
                with _undisturbed(), contextlib.suppress(Exception, SystemExit):
                    sink.close()


def _copied(content: Any) -> Any:
    """What a sink may change; the arrays of an episode cannot be changed."""
    return content._replace(seen=dict(content.seen)) if isinstance(content, Episode) else copy.deepcopy(content)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Within the block random numbers may be drawn, torch's modes and the working directory be changed; after it all is
    as it was.
    """
    place = _working_directory()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    own, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    gradient, kind = torch.is_grad_enabled(), torch.get_default_dtype()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(own)
        np.random.set_state(numbers)  # noqa: NPY002
        torch.set_grad_enabled(gradient)
        torch.set_default_dtype(kind)
        if place and _working_directory() != place:
            with contextlib.suppress(OSError):
                os.chdir(place)


def _working_directory() -> str | None:
    """None where it was removed, or cannot be read."""
    try:
        return os.getcwd()
    except OSError:
        return None
