"""What all tests share."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

# Triton's kernels are interpreted where there is no GPU, which must be known before anything imports Triton.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")
# What a shell starts in the background ignores Ctrl-C, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """The tensors of tests are small: a second thread would only wait."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _no_server_is_left() -> Iterator[None]:
    """Servers of plots outlive the runs that start them: tests have to stop them."""
    mark = f"PAPERTAPE_TESTS={os.getpid()}"
    os.environ["PAPERTAPE_TESTS"] = str(os.getpid())
    yield

    def left() -> dict[int, list[str]]:
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                environment = (process / "environ").read_bytes().decode(errors="replace").split("\0")
                if mark in environment and "papertape.utils.visdom_server" in command:
                    found[int(process.name)] = command[-3:]
        return found

    deadline = time.monotonic() + 10  # for those that are about to end
    while left() and time.monotonic() < deadline:
        time.sleep(0.2)
    running = left()
    for process in running:
        os.kill(process, signal.SIGKILL)
    assert not running, f"left running, with port and data: {running}"


EXAMPLES = Path(__file__).parents[1] / "examples"
OUTSIDE = Path(__file__).with_name("outside.py")


@pytest.fixture
def outsiders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test that begins with nothing from outside, and whose imports are forgotten after it with all they register."""
    importlib.import_module("papertape.utils.commands.train")  # and so all that the package registers itself
    from papertape.core import registry

    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in (str(EXAMPLES), str(OUTSIDE.parent))])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    own = {
        kind: {name: entry for name, entry in names.items() if entry.__module__.startswith("papertape.")}
        for kind, names in registry._entries.items()
    }
    monkeypatch.setattr(registry, "_entries", own)
    monkeypatch.setattr(registry, "_loaded_entry_points", {*registry._loaded_entry_points})
    for name, module in [*sys.modules.items()]:
        if str(getattr(module, "__file__", None)).startswith((str(EXAMPLES), str(OUTSIDE))):
            monkeypatch.delitem(sys.modules, name)
    before = set(sys.modules)
    importlib.invalidate_caches()
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith((str(tmp_path), str(EXAMPLES))):
            del sys.modules[name]


@pytest.fixture(scope="session")
def triton_interpreter() -> Iterator[None]:
    """Triton's interpreter, twice as fast: without it, skips.

    It replaces Triton's language by its own whenever a kernel calls a function, and spends half of its time so. Here it
    does so once for each launch. And it looks up the type of NumPy for a type of Triton in a new table for every value.
    """
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    import triton.language as tl
    from triton.runtime import interpreter

    from papertape.core.kernels.triton import launch

    if not launch.interpreted():
        assert torch.cuda.is_available(), "Triton was imported before TRITON_INTERPRET was set"
        pytest.skip("kernels are compiled for the GPU; TRITON_INTERPRET=1 tests the interpreter")
    patch, look_up = interpreter._patch_lang, interpreter._get_np_dtype
    looked_up = functools.cache(look_up)

    def patch_once(function: Any) -> Any:
        languages = [value for value in function.__globals__.values() if value is tl or value is tl.core]
        replaced = not any(tl.core.is_builtin(language.load) for language in languages)
        return interpreter._LangPatchScope() if replaced else patch(function)

    def look_up_once(kind: Any) -> Any:
        return looked_up(kind) if type(kind) is tl.dtype else look_up(kind)  # types of blocks are not hashable

    with pytest.MonkeyPatch.context() as monkeypatch:
        if hasattr(interpreter, "_LangPatchScope"):  # older ones, as Triton 3.2, never put the language back
            monkeypatch.setattr(interpreter, "_patch_lang", patch_once)
        monkeypatch.setattr(interpreter, "_get_np_dtype", look_up_once)
        yield


class _RootIsNoTests:
    """Keeps pytest from importing the root, a package, a second time under the name of its folder."""

    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == Path(__file__).parents[1] else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_RootIsNoTests())
