"""What a class from outside the package is tried out for before it is used: that it does what its kind promises."""

from __future__ import annotations

import contextlib
import copy
import io
import numbers
import os
import pickle
import random
import re
import traceback
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX

from .options import ContractError, OptionsError
from .placement import random_apart
from .state import compare, example, leaves, map_state
from .trace_field import TraceField, check_fields

BATCH, OTHER_BATCH = 2, 3
"""Sequences that a class is tried out with. What has the batch in another place has another shape for each."""


NO_MEMORY = re.compile(r"out of memory|can't allocate|size calculation overflow|multiplication overflow")
"""What torch says where there is not enough memory; it has an error of its own on a GPU alone."""
_NAMED = re.compile(r"[\w.\[\]]+: ")
"""How an error begins that says which option or argument is wrong."""


def is_outside(target: Any) -> bool:
    """Whether a class, or a function, is not this package's own."""
    return not str(getattr(target, "__module__", "")).startswith(f"{__name__.split('.')[0]}.")


def told(error: BaseException, owner: str) -> str:
    """One line on what a class has raised, with the place in a file from outside the package, if there is one."""
    room, torch_room = Path(__file__).parents[1], Path(torch.__file__).parent
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if os.path.isfile(frame.filename) and not {room, torch_room} & set(Path(frame.filename).parents)
    ]
    at = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{owner}: {type(error).__name__}: {str(error).partition(chr(10))[0]}{at}"


def expect(right: bool, where: str, found: str, expected: str) -> None:
    """Raise ContractError unless something is right."""
    if not right:
        raise ContractError(f"{where}: {found}; expected {expected}")


def check_numbers(where: str, values: Any) -> None:
    """See that something is numbers by name, each of any kind that :func:`plain_numbers` takes.

    Raises:
        ContractError: it is not; names the first that is none.
    """
    expect(isinstance(values, Mapping), where, f"gives a {_kind(values)}", "numbers by name")
    for name, value in values.items():
        many = isinstance(value, Tensor | np.ndarray)
        single = value.item() if many and value.ndim == 0 else value
        found = f"a {_kind(value)} of {value.dtype} and shape {list(value.shape)}" if many else repr(value)
        expect(isinstance(single, numbers.Real), where, f"{name} is {found}", "a number")


def plain_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Numbers by name as Python has them, which files and checkpoints can hold; torch and numpy have others."""
    return {name: float(value) for name, value in values.items()}


@contextlib.contextmanager
def trying(owner: Any, method: str = "", *, options: bool = False) -> Iterator[None]:
    """Within the block, what a class raises is a breach of its contract; running out of memory is none.

    Args:
        owner: an object, a class or a function.
        method: of it.
        options: whether it may also say that an option or an argument is wrong, or that something is missing here.
    """
    try:
        yield
    except (ContractError, OptionsError, MemoryError):
        raise
    except Exception as error:
        said = options and (
            isinstance(error, (OSError, ImportError)) or (isinstance(error, ValueError) and _NAMED.match(str(error)))
        )
        if said or (isinstance(error, RuntimeError) and NO_MEMORY.search(str(error))):
            raise
        name = getattr(owner, "__qualname__", type(owner).__qualname__)
        raise ContractError(told(error, f"{name}.{method}" if method else name)) from error


@contextlib.contextmanager
def under(name: str) -> Iterator[None]:
    """Within the block, a breach of contract is one of the argument of this name."""
    try:
        yield
    except ContractError as error:
        raise ContractError(f"{name}: {error}") from error


@contextlib.contextmanager
def _apart(module: nn.Module) -> Iterator[None]:
    """Within the block a module does not train; after it, it and all random numbers are as they were."""
    training = {part: part.training for part in module.modules()}
    device = example(module).device
    try:
        module.eval()
        with random_apart(device), torch.enable_grad():
            yield
    finally:
        for part, was in training.items():
            part.training = was


@contextlib.contextmanager
def undone(module: nn.Module) -> Iterator[None]:
    """After the block what a module keeps beside its weights, in buffers and extra states, and what torch, Python and
    numpy draw next, are as they were before.
    """
    drawn = random.getstate(), np.random.get_state()  # noqa: NPY002
    extra = [(part, copy.deepcopy(kept)) for part, kept in _extra_states(module)]
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with random_apart(example(module).device):
        try:
            yield
        finally:
            random.setstate(drawn[0])
            np.random.set_state(drawn[1])  # noqa: NPY002
            with torch.no_grad():
                for name, buffer in module.named_buffers():
                    if name in buffers and not torch.equal(buffer, buffers[name]):
                        buffer.copy_(buffers[name])
            for part, kept in extra:
                part.set_extra_state(kept)


def _extra_states(module: nn.Module) -> Iterator[tuple[nn.Module, Any]]:
    """The parts of a module that keep more than tensors, by torch's ``get_extra_state``, each with what it keeps."""
    for name, kept in module.state_dict().items():
        place, _, last = name.rpartition(".")
        if last == _EXTRA_STATE_KEY_SUFFIX:
            yield module.get_submodule(place), kept


def check_whole(owner: type, name: str, size: Any) -> int:
    """A size that a class gives.

    Raises:
        ContractError: it is no whole number of at least 1.
    """
    right = type(size) is int and size >= 1
    expect(right, f"{owner.__qualname__}.{name}", f"is {size!r}", "a whole number of at least 1")
    return int(size)


def check_read_shape(owner: type, shape: Any) -> tuple[int, int]:
    """R and W as an accessor's class gives them.

    Raises:
        ContractError: they are not two whole numbers of at least 1.
    """
    right = isinstance(shape, tuple | list) and len(shape) == 2 and all(type(n) is int and n >= 1 for n in shape)
    expect(right, f"{owner.__qualname__}.read_shape", f"gives {shape!r}", "two whole numbers of at least 1, R and W")
    return shape[0], shape[1]


def try_initial_state(module: Any) -> Any:
    """The state of a module before its first step, for :data:`BATCH` sequences.

    Args:
        module: an accessor, a controller or a circuit.

    Raises:
        ContractError: it is no registered NamedTuple of tensors of the module's type with the batch first.
    """
    where = f"{type(module).__qualname__}.initial_state"
    with trying(module, "initial_state"), torch.no_grad():
        state, other = module.initial_state(BATCH), module.initial_state(OTHER_BATCH)
    expect(
        not isinstance(state, Tensor), where, "is a Tensor", "a NamedTuple of tensors, with @papertape.register_state"
    )
    _check_state(where, state, other, next((parameter.dtype for parameter in module.parameters()), None))
    return state


def _check_state(where: str, state: Any, other: Any, dtype: torch.dtype | None) -> None:
    if isinstance(state, Tensor):
        shapes = [list(state.shape), list(getattr(other, "shape", []))]
        right = state.dim() > 0 and [shape[:1] for shape in shapes] == [[BATCH], [OTHER_BATCH]]
        expect(
            right and shapes[0][1:] == shapes[1][1:],
            where,
            f"has shape {shapes[0]} for {BATCH} sequences, {shapes[1]} for {OTHER_BATCH}",
            "the batch as the first dimension, and only there",
        )
        same = dtype is None or not state.is_floating_point() or state.dtype == dtype
        expect(same, where, f"is {state.dtype}", f"{dtype}, as the weights are")
        return
    kind = type(state)
    named = isinstance(state, tuple) and hasattr(state, "_fields")
    expect(named, where, f"is a {kind.__name__}", "a NamedTuple of tensors, with @papertape.register_state")
    registered = kind in torch.serialization.get_safe_globals()
    expect(registered, where, f"{kind.__qualname__} is not registered", "@papertape.register_state above its class")
    expect(type(other) is kind, where, f"is a {kind.__name__}, then a {type(other).__name__}", "the same each time")
    for name, part, another in zip(state._fields, state, other, strict=True):
        _check_state(f"{where}: {name}", part, another, dtype)


def try_steps(
    module: Any, method: str, state: Any, width: int, shape: tuple[int, ...], gives: tuple[str, ...], gradient: bool
) -> tuple[Any, ...]:
    """What two steps of a module give; nothing of it, and no random number, is another one afterwards.

    Args:
        module: an accessor, a controller or a circuit.
        method: that takes a step.
        state: from :func:`try_initial_state`.
        width: of its input.
        shape: of what it gives first, without the batch.
        gives: what that is called, and what else a step gives; the state is the second.
        gradient: whether it promises one.

    Raises:
        ContractError: a step fails, gives something else, changes the state that it is given, or has no gradient.
    """
    name = type(module).__qualname__
    where, inputs = f"{name}.{method}", []
    results: Any = ()
    with _apart(module):
        for _ in range(2):
            kept = map_state(torch.clone, state)
            # Not all alike, as what a class does with zeros may be a case of its own.
            x = torch.linspace(-1, 1, BATCH * width, dtype=example(module).dtype, device=example(module).device)
            x = x.view(BATCH, width).requires_grad_()
            inputs.append(x)
            with undone(module), trying(module, method):
                results = getattr(module, method)(x, state)
            found = f"gives {len(results)} results" if isinstance(results, tuple) else f"gives a {_kind(results)}"
            right = isinstance(results, tuple) and len(results) == len(gives)
            expect(right, where, found, f"{len(gives)}: {', '.join(gives)}")
            first, after = results[:2]
            expected = [BATCH, *shape]
            right = isinstance(first, Tensor) and list(first.shape) == expected and first.dtype == x.dtype
            found = f"{first.dtype} of shape {list(first.shape)}" if isinstance(first, Tensor) else f"a {_kind(first)}"
            expect(right, where, f"{gives[0]} of {BATCH} sequences: {found}", f"{x.dtype} of shape {expected}")
            try:
                compare("the next state", after, state)
                map_state(_same_batch, after)
                map_state(_unchanged, state, kept)
            except ValueError as error:
                raise ContractError(f"{where}: {str(error).replace('this circuit has', 'expected')}") from error
            _try_one_row(module, method, x, state, results[0])
            state = after
        if gradient:
            promise = "a gradient, or differentiable = False" if hasattr(module, "differentiable") else "a gradient"
            expect(results[0].requires_grad, where, f"{gives[0]}: without a gradient", promise)
            with trying(module, f"{method}, its gradient"):
                sources = [*inputs, *(one for one in module.parameters() if one.requires_grad)]
                torch.autograd.grad(results[0].sum(), sources, allow_unused=True)
    return results


def try_run(module: Any, base: type, state: Any, width: int) -> None:
    """See that a run of one's own over a whole sequence gives what steps give.

    Args:
        module: an accessor or a controller.
        base: the base class of its kind.
        state: from :func:`try_initial_state`.
        width: of its input.

    Raises:
        ContractError: it fails, or gives something else.
    """
    if type(module).run is base.run:  # type: ignore[attr-defined]
        return
    where = f"{type(module).__qualname__}.run"
    with _apart(module), torch.no_grad(), trying(module, "run"):
        x = torch.linspace(-1, 1, 3 * BATCH * width, dtype=example(module).dtype, device=example(module).device)
        x = x.view(3, BATCH, width)
        expected, last = base.run(module, x, state)  # type: ignore[attr-defined]
        found, after = module.run(x, state)
    for got, wanted in zip([found, *leaves(after)], [expected, *leaves(last)], strict=True):
        right = got.shape == wanted.shape and torch.allclose(got, wanted, 1e-2, 1e-3, equal_nan=True)
        expect(right, where, "gives something else than steps do", "what they give")


def try_begun(module: Any, base: type, state: Any, width: int) -> None:
    """See that steps from a state that an accessor has begun, and ended, give what steps from the state itself do.

    Args:
        module: an accessor.
        base: the base class of its kind.
        state: from :func:`try_initial_state`.
        width: of its input.

    Raises:
        ContractError: they fail, or give something else.
    """
    cls: Any = type(module)
    if cls.begin is base.begin and cls.end is base.end:  # type: ignore[attr-defined]
        return
    with _apart(module), torch.no_grad():
        x = torch.linspace(-1, 1, BATCH * width, dtype=example(module).dtype, device=example(module).device)
        x = x.view(BATCH, width)
        expected = module(x, state)
        with trying(module, "begin"):
            begun = module.begin(state, 1)
        with trying(module, "forward, after begin"):
            found = module(x, begun)
        with trying(module, "end"):
            after = module.end(found[1])
            compare("the next state", after, expected[1])
    same = torch.allclose(found[0], expected[0], 1e-2, 1e-3, equal_nan=True)
    expect(same, f"{cls.__qualname__}.begin", "steps after it read something else", "what they read without it")


def _try_one_row(module: Any, method: str, x: Tensor, state: Any, together: Tensor) -> None:
    """Raise ContractError if the first sequence of a batch is answered otherwise alone; nothing if chance answers."""
    where = f"{type(module).__qualname__}.{method}"
    with trying(module, method), torch.no_grad():
        with undone(module):
            again = getattr(module, method)(x, state)[0]
        kept = again.shape != together.shape or not torch.allclose(again, together, 1e-3, 1e-4, equal_nan=True)
        expect(not kept, where, "answers the same input and state otherwise the next time", "all it keeps in its state")
        with undone(module):
            torch.rand(1, device=x.device), random.random(), np.random.random()  # noqa: NPY002
            other = getattr(module, method)(x, state)[0]
        if not torch.equal(other.nan_to_num(), again.nan_to_num()):
            return
        same = _one_row_is_the_same(module, method, x, state)
        if not same and x.dtype != torch.float64:
            # What sorts or picks may have rounded to another choice.
            precise = copy.deepcopy(module).double()
            state = map_state(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, state)
            same = _one_row_is_the_same(precise, method, x.double(), state)
    expect(same, where, "answers a sequence otherwise alone than in a batch", "each row of the batch for itself")


def _one_row_is_the_same(module: Any, method: str, x: Tensor, state: Any) -> bool:
    with undone(module):
        together = getattr(module, method)(x, state)[0]
    with undone(module):
        alone = getattr(module, method)(x[:1], map_state(lambda leaf: leaf[:1], state))[0]
    return alone.shape[1:] == together.shape[1:] and torch.allclose(alone[0], together[0], 1e-3, 1e-4, equal_nan=True)


def _kind(value: Any) -> str:
    return type(value).__name__


def _same_batch(leaf: Tensor) -> Tensor:
    if leaf.shape[0] != BATCH:
        raise ValueError(f"the next state: has a batch of {leaf.shape[0]}; expected {BATCH}, as before the step")
    return leaf


def _unchanged(leaf: Tensor, kept: Tensor) -> Tensor:
    if not torch.equal(leaf.nan_to_num(), kept.nan_to_num()):
        raise ValueError("changes the state that it is given; expected a new one")
    return leaf


def try_saved(owner: Any, method: str, state: Any) -> None:
    """See that a checkpoint can hold a state: what is none of plain data is written, but never read again.

    Args:
        owner: whose state it is.
        method: that gives it.
        state: of the owner.

    Raises:
        ContractError: it cannot.
    """
    where, file = f"{type(owner).__qualname__}.{method}", io.BytesIO()
    with trying(owner, method):
        torch.save(state, file)
    file.seek(0)
    try:
        torch.load(file, weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        found = f"holds a {named[1].rstrip('.')}" if named else "cannot be read back"
        raise ContractError(f"{where}: {found}; expected tensors, numbers, words and containers of these") from error


def try_extra_state(module: nn.Module) -> None:
    """See that a checkpoint can hold what parts of a module keep besides tensors, and that they take it back.

    Args:
        module: whose parts may have a ``get_extra_state``, torch's place for that.

    Raises:
        ContractError: it cannot, or they do not; names the class of the part.
    """
    with trying(module, "state_dict"):
        found = [*_extra_states(module)]
    for part, kept in found:
        try_saved(part, "get_extra_state", kept)
        with trying(part, "set_extra_state"):
            part.set_extra_state(kept)


def check_trace_fields(owner: type, fields: Any) -> None:
    """See that what a class says of its trace is something that can be said.

    Raises:
        ContractError: it is not; names the class and the field.
    """
    where = f"{owner.__qualname__}.trace_fields"
    expect(isinstance(fields, Mapping), where, f"is a {_kind(fields)}", "a mapping from names to TraceFields")
    for name, field in fields.items():
        expect(isinstance(field, TraceField), f"{where}: {name}", f"is a {_kind(field)}", "a TraceField")
    try:
        check_fields(where, fields)
    except ValueError as error:
        raise ContractError(str(error)) from error


def check_seen(
    owner: Any,
    method: str,
    seen: Any,
    fields: Mapping[str, TraceField],
    leading: tuple[int, ...],
    lacking: Collection[str],
) -> None:
    """See that what a method shows for a trace is what the class has declared.

    Args:
        owner: whose method it is.
        method: its name.
        seen: what it gave, by name.
        fields: what was declared.
        leading: sizes before the axes of each.
        lacking: fields that may be left out.

    Raises:
        ContractError: a field is missing, was not declared, or has other axes.
    """
    where = f"{type(owner).__qualname__}.{method}"
    expect(isinstance(seen, Mapping), where, f"gives a {_kind(seen)}", "tensors by name")
    for name in fields:
        expect(name in seen or name in lacking, where, f"{name} of trace_fields is not there", "what it declares")
    sizes: dict[str, tuple[int, str]] = {}
    for name, tensor in seen.items():
        expect(name in fields, where, f"{name} is shown", "it in trace_fields, which says how it is to be read")
        axes = fields[name].axes.split()
        found = f"shape {list(tensor.shape)}" if isinstance(tensor, Tensor) else f"a {_kind(tensor)}"
        right = isinstance(tensor, Tensor) and tensor.dim() == len(leading) + len(axes)
        right = right and tuple(tensor.shape[: len(leading)]) == leading
        expect(right, where, f"{name} has {found}", f"[{', '.join([*map(str, leading), *axes])}], as in trace_fields")
        for axis, size in zip(axes, tensor.shape[len(leading) :], strict=True):
            first, other = sizes.setdefault(axis, (size, name))
            expect(
                first == size,
                where,
                f"axis {axis} is {first} in {other} and {size} in {name}",
                "one size of each letter",
            )
