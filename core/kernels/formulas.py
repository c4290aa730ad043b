"""Whether a circuit's formulas are still those that kernels compute: not if they were edited, replaced or hooked.

Kernels run no Python of a circuit. So they step aside where some of it is not what they were made to agree with: a file
was edited, a function or a method was replaced, on a module, a class or an object, or a layer has hooks.

After a change of the formulas, and of the kernels, ``python -m papertape.core.kernels.formulas`` notes in agreed.py
that they agree again.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from torch import nn
from torch.nn.modules import module as of_all_modules

from .. import addressing, clipping, component, interface, sparse_addressing, sparse_memory
from ..accessors import base as accessor_base
from ..accessors import delta, dynamic, soft_tape, sparse, stack, static
from ..controllers import automaton, feedforward, gru, lstm, rnn
from ..controllers import base as controller_base
from .agreed import AGREED

MODULES: tuple[ModuleType, ...] = (
    *(addressing, interface, sparse_addressing, sparse_memory, component, clipping),
    *(accessor_base, static, dynamic, sparse, delta, stack, soft_tape),
    *(controller_base, lstm, gru, feedforward, rnn, automaton),
)
"""Where the formulas are written."""

CONSTANTS: dict[tuple[ModuleType, str], float] = {
    (module, name): vars(module)[name]
    for module, names in (
        (addressing, ("NORM_EPSILON", "USAGE_EPSILON", "SHARPEN_EPSILON")),
        (interface, ("MASK_MIN",)),
    )
    for name in names
}
"""Constants that kernels can take as arguments at each call, with the values that they had when imported."""

OF_CIRCUITS = {"circuits/memory.py": ("transition", "answer")}
"""Files, and the names in each, of what is one step of a circuit and its answer; they lie in a room above this one."""

_ROOT = Path(__file__).parents[2]

_ABOUT = frozenset(
    (
        *("__abstractmethods__", "_abc_impl", "__annotations__", "__annotate_func__", "__annotations_cache__"),
        *("__dict__", "__doc__", "__firstlineno__", "__module__", "__orig_bases__", "__parameters__", "__qualname__"),
        *("__slotnames__", "__static_attributes__", "__weakref__"),
    )
)
"""Names in a class that say something about it; some come when it is first asked for them."""

_CALLS = ("__call__", "__getattr__", "_call_impl", "_wrapped_call_impl")
"""What is called before a layer's ``forward``."""


class Skipped(str):
    """A reason why kernels step aside that users are warned of: kernels would skip something that they wrote."""

    __slots__ = ()


# ---- files -----------------------------------------------------------------------------------------------------------


def _meaning(node: Any) -> Iterator[str]:
    """What a piece of source means, whatever the version of Python: no comments, docstrings or annotations."""
    if isinstance(node, list):
        for part in node:
            if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)):
                yield from _meaning(part)
    elif isinstance(node, ast.AST):
        yield type(node).__name__
        for name in node._fields:
            if name not in ("annotation", "returns", "type_comment", "type_params", "kind", "ctx"):
                yield from (f".{name}", *_meaning(getattr(node, name, None)))
        yield ";"
    elif node is not None:
        yield repr(node)


def identity(source: str, functions: Sequence[str] = ()) -> str:
    """Short hash of what a file's source means, or of what some functions in it do."""
    tree = ast.parse(source)
    named = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    parts: list[ast.AST] = [named[name] for name in functions] or [tree]
    return hashlib.sha256(" ".join(_meaning(parts)).encode()).hexdigest()[:12]


def _files() -> dict[str, tuple[str, ...]]:
    """The files of the formulas, from the root, each with the functions that count in it; with none, all of it does."""
    ours = (module.__name__.partition(".")[2].replace(".", "/") + ".py" for module in MODULES)
    return {**dict.fromkeys(ours, ()), **OF_CIRCUITS}


def identities() -> dict[str, str]:
    """The identity of each file of formulas that can be read."""
    paths = {name: _ROOT / name for name in _files()}
    return {
        name: identity(path.read_text(encoding="utf-8"), _files()[name])
        for name, path in paths.items()
        if path.is_file()
    }


@functools.cache
def edited() -> Skipped | None:
    """Which formulas were edited since kernels were made to agree with them, or None; looked at once."""
    for name, now in identities().items():
        if AGREED.get(name) != now:
            return Skipped(
                f"{name} was edited since the kernels were made to agree with it "
                "(when they do again: python -m papertape.core.kernels.formulas)"
            )
    return None


# ---- what was replaced -----------------------------------------------------------------------------------------------


class _Record:
    """A module or a class as it was when it was imported: what its formulas are made of."""

    def __init__(self, owner: Any, names: Iterable[str]) -> None:
        """
        Args:
            owner: whose namespace counts.
            names: what counts in it.
        """
        self.owner = owner
        self.written = {name: vars(owner).get(name) for name in names}
        namespace: Any = vars(owner)
        self.namespace: Mapping[str, Any] = namespace
        present = [name for name in self.written if name in namespace]
        self.get = itemgetter(*present, present[0])
        self.values = self.get(namespace)
        self.grows = not isinstance(owner, type)
        """Whether more names change nothing, as in a module."""
        self.size = len(namespace)

    def changed(self) -> str | None:
        """The name of something that is not what was written, or None."""
        added = () if self.grows or self.owner in _TORCH else set(self.namespace) - _ABOUT
        for name in (*self.written, *added):
            if self.namespace.get(name) is not self.written.get(name):
                return f"{name} of {self.owner.__name__}"
        self.size = len(self.namespace)
        return None


def _used(module: ModuleType) -> Iterator[str]:
    """The functions of a module, and what else of its namespace they and the methods of its classes use."""
    for name, value in vars(module).items():
        if isinstance(value, FunctionType):
            yield name
    namespaces = [vars(module), *(vars(value) for value in vars(module).values() if isinstance(value, type))]
    for name, value in ((n, v) for namespace in namespaces for n, v in namespace.items()):
        if isinstance(value, FunctionType) and value.__module__ == module.__name__ and name != "__init__":
            names = (used for used in value.__code__.co_names if used in vars(module))
            yield from (used for used in names if (module, used) not in CONSTANTS)


_TORCH: dict[type, tuple[str, ...]] = {nn.Module: _CALLS, nn.Linear: (*_CALLS, "forward")}
_RECORDS: dict[Any, _Record] = {module: _Record(module, _used(module)) for module in MODULES}
_WORKING = (sparse_memory.WorkingMemory, sparse_memory.WorkingLinks)
"""What steps of sparse access do their work in, which is no layer."""

_RECORDS |= {
    value: _Record(value, [name for name in vars(value) if name not in _ABOUT])
    for module in MODULES
    for value in vars(module).values()
    if isinstance(value, type)
    and issubclass(value, (nn.Module, component.Component, *_WORKING))
    and value.__module__ == module.__name__
}
_RECORDS |= {owner: _Record(owner, names) for owner, names in _TORCH.items()}
_OF_MODULES = {module.__name__: module for module in MODULES}


@functools.cache
def _ancestry(kind: Any) -> tuple[frozenset[str], tuple[type, ...]]:
    """Names of methods that a layer of this class has as they were written, and classes that are not ours."""
    names: set[str] = set()
    strange = []
    for part in kind.__mro__[: kind.__mro__.index(nn.Module) + 1]:
        if part in _RECORDS:
            written = _RECORDS[part].written
            names |= {name for name, value in written.items() if hasattr(value, "__get__")}
        else:
            strange.append(part)
    return frozenset(names - {"__init__"}) | {"__getattribute__"}, tuple(strange)


class _Records:
    """All that was written of some classes of layers."""

    def __init__(self, kinds: tuple[type, ...]) -> None:
        """
        Args:
            kinds: the classes.
        """
        self.records = _records(kinds)
        self.ancestries = tuple(map(_ancestry, kinds))
        self._getters = [(record.get, record.namespace) for record in self.records]
        self._values = [record.values for record in self.records]
        self._classes = [record for record in self.records if not record.grows]
        self._namespaces = [record.namespace for record in self._classes]
        self._sizes = [record.size for record in self._classes]

    def changed(self) -> str | None:
        """The name of something that is not what was written, or None; quick, for it is asked at every call."""
        try:
            same = [get(namespace) for get, namespace in self._getters] == self._values
        except KeyError:
            same = False
        if same and list(map(len, self._namespaces)) == self._sizes:
            return None
        name = next((name for record in self.records if (name := record.changed()) is not None), None)
        self._sizes = [record.size for record in self._classes]
        return name


_records_of = functools.cache(_Records)


def _records(kinds: tuple[type, ...]) -> tuple[_Record, ...]:
    """The same, one for each owner."""
    owners: dict[Any, None] = {}
    for kind in kinds:
        for part in kind.__mro__:
            if part in _RECORDS:
                owners[part] = None
                if part.__module__ in _OF_MODULES:
                    owners |= dict.fromkeys((_OF_MODULES[part.__module__], addressing, interface))
    if sparse in owners:
        owners |= dict.fromkeys((sparse_addressing, sparse_memory, *_WORKING))
    return tuple(_RECORDS[owner] for owner in owners)


def replaced(layers: Sequence[nn.Module]) -> Skipped | None:
    """Which part of these layers was replaced or has hooks, or None."""
    written = _records_of(tuple(map(type, layers)))
    name = written.changed()
    if name is not None:
        return Skipped(f"it would skip the replaced {name}")
    if _hooks_everywhere():
        return Skipped("it would skip hooks on all modules")
    for layer, (names, strange) in zip(layers, written.ancestries, strict=True):
        own = vars(layer)
        if _hooks_of(own):
            return Skipped(f"it would skip hooks of {type(layer).__name__}")
        if not names.isdisjoint(own):
            name = next(name for name in names if name in own)
            return Skipped(f"it would skip the {name} put into this {type(layer).__name__}")
        for other in strange:
            for name, value in vars(other).items():
                if name not in _ABOUT and (name in names or isinstance(value, property)):
                    return Skipped(f"it would skip {name} of {other.__name__}")
    return None


def as_written(kinds: tuple[type, ...]) -> bool:
    """Whether nothing of what was written of these classes was replaced."""
    return _records_of(kinds).changed() is None


def other_constants() -> Skipped | None:
    """Which constant was replaced, for kernels that are compiled with them, or None."""
    for (module, name), value in CONSTANTS.items():
        if vars(module)[name] != value:
            return Skipped(f"it would skip the replaced {name} of {module.__name__}")
    return None


def _hooks_everywhere() -> bool:
    return bool(
        of_all_modules._global_forward_pre_hooks
        or of_all_modules._global_forward_hooks
        or of_all_modules._global_backward_pre_hooks
        or of_all_modules._global_backward_hooks
    )


def _hooks_of(own: dict[str, Any]) -> bool:
    return bool(
        own["_forward_pre_hooks"] or own["_forward_hooks"] or own["_backward_pre_hooks"] or own["_backward_hooks"]
    )


def hooked(layer: nn.Module) -> bool:
    """Whether code was registered before or after a layer or every layer, or its ``forward`` was replaced."""
    own = vars(layer)
    return _hooks_everywhere() or _hooks_of(own) or "forward" in own


def unchanged(circuit: nn.Module, owner: type[nn.Module], *methods: str) -> bool:
    """Whether a circuit runs these methods as ``owner`` wrote them, and nothing before or after its ``forward``."""
    kind, own = type(circuit), vars(circuit)
    return not hooked(circuit) and all(
        getattr(kind, name) is getattr(owner, name) and name not in own for name in ("forward", *methods)
    )


def plain(layers: Iterable[nn.Module], *kinds: type[nn.Module]) -> bool:
    """Whether all of these layers are of these very classes, with no code before or after them."""
    return all(type(layer) in kinds and not hooked(layer) for layer in layers)


def stepwise(part: Any, base: type) -> bool:
    """Whether a controller or an accessor must go step by step through a sequence: code waits for each of its steps, or
    its ``forward`` was replaced by what its ``run`` does not know, which is not that of ``base``.
    """
    return hooked(part) or (type(part).run is not base.run and wrote_later(part, "forward", "run"))  # type: ignore[attr-defined]


def wrote_later(circuit: nn.Module, method: str, other: str) -> bool:
    """Whether a method was replaced by a class, or on the object, that knows nothing of how the other one works."""
    if method in vars(circuit):
        return True
    order = type(circuit).__mro__
    first, second = (next(i for i, part in enumerate(order) if name in vars(part)) for name in (method, other))
    return first < second


def _agree() -> None:
    """Note the identities of the formulas as they are."""
    lines = "".join(f'    "{name}": "{now}",\n' for name, now in sorted(identities().items()))
    text = f'''"""The formulas that the kernels agree with; written by formulas.py."""

AGREED = {{
{lines}}}
"""What each file meant."""
'''
    Path(__file__).with_name("agreed.py").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    _agree()
