"""Structure as data: how layers of units are changed, and how all that is shaped like a parameter follows.

A structure is the size of each hidden layer, in order. A change is a list of edits: for each layer after it, which
layer it was, and which unit of that each of its units was; :data:`FRESH` where there was none. From these follow the
edits of each parameter: for a dimension, the row that each new row comes from. Everything else that is shaped like a
parameter (moments of optimisers, masks, Fisher information, anchors) is carried over by :func:`follow`, what has one
value for each unit (utilities, ages) by :func:`follow_units`, and states by ``Circuit.follow``.

An agent registers what it keeps beside the weights as a :class:`Follower` in its ``followers``.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .circuit import Circuit

FRESH = -1
"""In place of a source: there was none."""

RIDGES = (1e-8, 1e-6, 1e-4, 1e-2)
"""Penalties of the least squares by which what is removed is absorbed, as shares of the mean square of what is kept."""
LARGEST_SHARE = 4.0
"""Of a kept unit in what is removed: the smallest penalty that keeps to it is taken. What nearly cancels out on the
inputs that were seen, with large weights, would blow up on others."""

HEIR_NOISE = 1.0
"""Standard deviation of how heirs differ from their parents, as a share of the layer's weights' own."""


class Layer(NamedTuple):
    """A hidden layer of a structure."""

    size: int
    """Units."""
    residual: bool = False
    """Whether what it makes is added, unit by unit, to what it gets: to the layer below, of the same size."""
    shares: tuple[int, ...] = ()
    """Units of each task that owns some, in order, which are all; none where tasks own no units."""


Structure = tuple[Layer, ...]
"""The hidden layers of a circuit, the lowest first; none where the structure is fixed."""

Given = TypeVar("Given")
"""What is said of a group of layers."""


class LayerEdit(NamedTuple):
    """A hidden layer after a change."""

    source: int
    """Which layer it was, or :data:`FRESH`."""
    units: tuple[int, ...]
    """Which unit of that layer each of its units was, or :data:`FRESH`; one that is named twice is split."""
    residual: bool = False
    """See :attr:`Layer.residual`."""
    parents: tuple[int, ...] = ()
    """For each unit, the former unit whose incoming weights a fresh one inherits, with noise, or :data:`FRESH`; empty:
    none inherits."""
    begins: int = 0
    """Of the fresh units at the end, how many belong to a task that begins. Any other fresh unit belongs to the task of
    the unit before it, where tasks own units."""


def after(before: Structure, layers: Sequence[LayerEdit]) -> Structure:
    """The structure after a change of one."""
    return tuple(
        Layer(len(edit.units), edit.residual, _shares(before[max(edit.source, 0)].shares, edit)) for edit in layers
    )


def _shares(shares: tuple[int, ...], edit: LayerEdit) -> tuple[int, ...]:
    if not shares or edit.source == FRESH:  # as the layer below, of which it has one unit for each
        return shares
    owners = [task for task, share in enumerate(shares) for _ in range(share)]
    counts, owner = [0] * len(shares), 0
    for unit in edit.units[: len(edit.units) - edit.begins]:
        owner = owner if unit == FRESH else owners[unit]
        counts[owner] += 1
    return (*counts, edit.begins) if edit.begins else tuple(counts)


class Edit(NamedTuple):
    """Where the rows of one dimension of a tensor come from."""

    dimension: int
    sources: tuple[int, ...]
    """For each new row its former index, or :data:`FRESH`."""


class Origin(NamedTuple):
    """Where a parameter comes from."""

    name: str | None
    """What it was called before; None where it is all fresh."""
    edits: tuple[Edit, ...] = ()
    """Of its dimensions; one that is not among them stays as it was."""


class Change(NamedTuple):
    """What a change of structure did to the parameters of a circuit."""

    before: Structure
    """Of the circuit, until then."""
    layers: tuple[LayerEdit, ...]
    """What was asked for."""
    origins: Mapping[str, Origin]
    """Of each parameter, by its name now."""
    old: Mapping[str, nn.Parameter]
    """The parameters before, by their names then."""
    new: Mapping[str, nn.Parameter]
    """The parameters now. Those that were edited are other objects: an optimiser that does not follow moves none."""


class Follower(Protocol):
    """What keeps something that is shaped like a parameter, or has a value for each unit."""

    def follow(self, change: Change) -> None:
        """Carry it over to the new structure, with :func:`follow` or :func:`follow_units`."""


class Wire(NamedTuple):
    """A Linear between layers of units, by the structure that it belongs to."""

    name: str
    """Of the module in its circuit, such as ``controller.inputs.0``."""
    kind: str
    """The same for Linears that do the same for different layers."""
    below: int
    """The layer whose units are its first columns; -1 for the circuit's inputs, which stay."""
    layer: int | None = None
    """The layer whose units are its rows; None where rows stay."""
    blocks: int = 1
    """Rows of each unit, such as its gates, block by block."""
    quiet: int = 0
    """The block that is zero in a fresh residual layer, so that the layer adds nothing yet."""
    by_units: bool = False
    """Whether its weights begin as those of torch.nn.LSTM do, by the units of its layer, not by its columns."""

    def fan(self, columns: int, units: int) -> int:
        """F, where its weights and biases begin between -1/√F and 1/√F; see :func:`draw`.

        Args:
            columns: of its weight.
            units: of its layer.
        """
        return units if self.by_units else columns


Fill = Literal["zero", "one", "mean", "parameter"]
"""What new entries of something shaped like a parameter hold: 0, 1, the mean of its own former entries, or the
parameter's own new value."""


# ---- following -------------------------------------------------------------------------------------------------------


def select(tensor: Tensor, edits: Iterable[Edit], fill: float | Tensor = 0.0) -> Tensor:
    """A tensor with other rows.

    Args:
        tensor: of any shape.
        edits: of its dimensions.
        fill: what fresh rows hold, a number or a tensor of the new shape.
    """
    fresh = torch.zeros((), dtype=torch.bool, device=tensor.device)
    for dimension, sources in edits:
        index = torch.tensor(sources, dtype=torch.long, device=tensor.device)
        tensor = tensor.index_select(dimension, index.clamp(min=0))
        shape = [1] * tensor.dim()
        shape[dimension] = len(sources)
        fresh = fresh | (index < 0).view(shape)
    filling = fill if isinstance(fill, Tensor) else torch.full_like(tensor, fill)
    return torch.where(fresh, filling.to(tensor), tensor)


def follow(change: Change, tensors: Mapping[str, Tensor], fill: Fill = "zero") -> dict[str, Tensor]:
    """Carry over what is shaped like the parameters.

    Args:
        change: of their structure.
        tensors: one of the shape of each parameter, by the parameters' names before; those of some may lack.
        fill: what new entries hold.

    Returns:
        By the parameters' names now; for parameters that are all fresh as well, unless ``fill`` is ``mean``: there is
        none to take the mean of.

    Raises:
        ValueError: a tensor has another shape than its parameter had; names it.
    """
    for name, tensor in tensors.items():
        if name in change.old and tensor.shape != change.old[name].shape:
            raise ValueError(
                f"{name}: got shape {list(tensor.shape)}; its parameter had {list(change.old[name].shape)}"
            )
    followed = {}
    for name, parameter in change.new.items():
        origin = change.origins.get(name, Origin(name))
        if origin.name is not None and origin.name in tensors:
            tensor = tensors[origin.name]
            filling: Any = {"zero": 0.0, "one": 1.0, "parameter": parameter.detach()}.get(fill)
            if filling is None:
                filling = float(tensor.double().mean())
            followed[name] = select(tensor, origin.edits, filling) if origin.edits else tensor.clone()
        elif origin.name is None and tensors and fill != "mean":
            example = next(iter(tensors.values()))
            whole = parameter.detach() if fill == "parameter" else torch.full_like(parameter, float(fill == "one"))
            followed[name] = whole.to(example.dtype).clone()
    return followed


def follow_units(change: Change, tensors: Sequence[Tensor], fill: float = 0.0) -> list[Tensor]:
    """Carry over what has a value for each unit, such as its utility or its age.

    Args:
        change: of the structure.
        tensors: of each layer before, ``[units, …]``.
        fill: what fresh units have.

    Returns:
        Of each layer now.
    """
    followed = []
    for edit in change.layers:
        source = tensors[max(edit.source, 0)]
        followed.append(
            select(source, [Edit(0, edit.units if edit.source != FRESH else (FRESH,) * len(edit.units))], fill)
        )
    return followed


def follow_layers(change: Change, leaf: Tensor) -> Tensor:
    """A part of a recurrent state after a change; what fresh units carry is zero.

    Args:
        change: of the structure, with layers of one size.
        leaf: ``[B, L, H]``.

    Returns:
        ``[B, L', H']``
    """
    return torch.stack(
        [part.transpose(0, 1) for part in follow_units(change, [*leaf.transpose(0, 2).unbind(1)])], dim=1
    )


def reverse(change: Change, restored: Mapping[str, nn.Parameter]) -> Change:
    """The change that takes one back: what that added goes, what it removed is fresh.

    Args:
        change: that was made.
        restored: the parameters as they are again, by their names.
    """
    places = {edit.source: index for index, edit in enumerate(change.layers) if edit.source != FRESH}
    layers = [
        LayerEdit(places[index], _inverse(change.layers[places[index]].units, layer.size), layer.residual)
        if index in places
        else LayerEdit(FRESH, (FRESH,) * layer.size, layer.residual)
        for index, layer in enumerate(change.before)
    ]
    now = {change.origins.get(name, Origin(name)).name: name for name in change.new}
    origins = dict.fromkeys(restored, Origin(None))
    for name in restored.keys() & now.keys():
        edits = change.origins.get(now[name], Origin(name)).edits
        sizes = restored[name].shape
        origins[name] = Origin(
            now[name], tuple(Edit(dimension, _inverse(sources, sizes[dimension])) for dimension, sources in edits)
        )
    return Change(after(change.before, change.layers), tuple(layers), origins, change.new, restored)


def _inverse(sources: tuple[int, ...], size: int) -> tuple[int, ...]:
    """For each of so many former rows the row that comes from it, or FRESH."""
    return tuple(sources.index(row) if row in sources else FRESH for row in range(size))


def follow_optimiser(change: Change, optimiser: torch.optim.Optimizer) -> None:
    """Let an optimiser move the parameters of the new structure, with what it has gathered about the former ones.

    Of new entries, averages of squares hold the mean of the former ones: with zero there, the first steps would be far
    too large. Other averages hold zero, and parameters that are all fresh begin like any at the first step.

    Args:
        change: of the structure.
        optimiser: of the circuit's parameters, all in one group.

    Raises:
        ValueError: it has several groups, or other parameters, or has gathered something of another shape than the
            parameter's (as Adafactor and LBFGS do), which cannot follow.
    """
    if len(optimiser.param_groups) != 1:
        raise ValueError(f"optimiser: has {len(optimiser.param_groups)} groups of parameters; allowed is one")
    (group,) = optimiser.param_groups
    names = {id(parameter): name for name, parameter in change.old.items()}
    strange = [parameter for parameter in (*group["params"], *optimiser.state) if id(parameter) not in names]
    if strange:
        raise ValueError(f"optimiser: has a parameter of shape {list(strange[0].shape)} that the circuit had not")
    gathered = {names[id(parameter)]: state for parameter, state in optimiser.state.items()}
    for name, state in gathered.items():
        expected = list(change.old[name].shape)
        for key, value in state.items():
            if isinstance(value, Tensor) and value.dim() and list(value.shape) != expected:
                raise ValueError(
                    f"optimiser: has {key!r} of shape {list(value.shape)} for {name}, which cannot follow a change of "
                    f"structure; allowed are numbers and what has the parameter's shape, {expected}"
                )
    trained = {names[id(parameter)] for parameter in group["params"]}
    group["params"][:] = [  # the list itself, which some optimisers hold on to
        parameter
        for name, parameter in change.new.items()
        if (origin := change.origins.get(name, Origin(name)).name) in trained or origin is None
    ]
    optimiser.state.clear()
    keys = {key for state in gathered.values() for key in state}
    for key in sorted(keys):
        shaped = {
            name: state[key]
            for name, state in gathered.items()
            if isinstance(state.get(key), Tensor) and state[key].dim()
        }
        followed = follow(change, shaped, "mean" if "sq" in key else "zero")
        for name, parameter in change.new.items():
            origin = change.origins.get(name, Origin(name)).name
            if origin in shaped:
                optimiser.state[parameter][key] = followed[name]
            elif origin in gathered and key in gathered[origin]:  # such as a number of steps
                value = gathered[origin][key]
                optimiser.state[parameter][key] = value.clone() if isinstance(value, Tensor) else value


# ---- what a change may be --------------------------------------------------------------------------------------------


def unchanged(structure: Structure) -> tuple[LayerEdit, ...]:
    """The edits that change nothing, to begin with."""
    return tuple(LayerEdit(index, tuple(range(layer.size)), layer.residual) for index, layer in enumerate(structure))


def groups(structure: Structure) -> list[list[int]]:
    """Layers that have their units in common: each that is not residual, with the residual ones upon it."""
    found: list[list[int]] = []
    for index, layer in enumerate(structure):
        if layer.residual and found:
            found[-1].append(index)
        else:
            found.append([index])
    return found


def _whole(value: Any) -> int:
    """A whole number of any kind; TypeError for what is none, such as true and false."""
    if isinstance(value, bool):
        raise TypeError("got a bool")
    return operator.index(value)


def _index(what: str, given: Any, count: int, *, fresh: bool = False) -> int:
    """One of so many, or :data:`FRESH` where that may be.

    Raises:
        ValueError: there is no such one; begins with ``what``, says what was given and what is allowed.
    """
    try:
        index = _whole(given)
    except TypeError:
        index = count
    if not (0 <= index < count or (fresh and index == FRESH)):
        if not count:
            raise ValueError(f"{what} {given!r}; no layer can change, and Circuit.fixed says why")
        or_fresh = f", or {FRESH} for a fresh one" if fresh else ""
        raise ValueError(f"{what} {given!r}; allowed: 0 to {count - 1}{or_fresh}")
    return index


def _of_groups(
    name: str, given: Mapping[int, Given], structure: Structure
) -> Iterator[tuple[str, list[int], int, Given]]:
    """For each group that an argument names: what errors call it, its layers, their units, what is given for it."""
    joint = groups(structure)
    for key, value in given.items():
        index = _index(f"{name}: got group", key, len(joint))
        yield f"{name}[{index}]", joint[index], structure[joint[index][0]].size, value


def widened(structure: Structure, parents: Mapping[int, Sequence[int]]) -> tuple[LayerEdit, ...]:
    """The edits that add units.

    Args:
        structure: as it is.
        parents: by the index of a group (see :func:`groups`) the parent of each new unit, or :data:`FRESH`.

    Raises:
        ValueError: there is no such group or unit.
    """
    edits = list(unchanged(structure))
    for name, group, size, units in _of_groups("parents", parents, structure):
        heirs = tuple(_index(f"{name}: got unit", unit, size, fresh=True) for unit in units)
        for layer in group if heirs else ():
            kept = edits[layer]
            edits[layer] = kept._replace(
                units=kept.units + (FRESH,) * len(heirs), parents=(FRESH,) * len(kept.units) + heirs
            )
    return tuple(edits)


def narrowed(structure: Structure, removed: Mapping[int, Iterable[int]]) -> tuple[LayerEdit, ...]:
    """The edits that remove units.

    Args:
        structure: as it is.
        removed: by the index of a group (see :func:`groups`) the units that go.

    Raises:
        ValueError: there is no such group or unit, or a unit is named twice.
    """
    edits = list(unchanged(structure))
    for name, group, size, units in _of_groups("removed", removed, structure):
        gone: set[int] = set()
        for unit in units:
            index = _index(f"{name}: got unit", unit, size)
            if index in gone:
                raise ValueError(f"{name}: got unit {index} twice; allowed is once")
            gone.add(index)
        for layer in group:
            edits[layer] = edits[layer]._replace(units=tuple(unit for unit in edits[layer].units if unit not in gone))
    return tuple(edits)


def replaced(structure: Structure, parents: Mapping[int, Mapping[int, int]]) -> tuple[LayerEdit, ...]:
    """The edits that put fresh units in the places of others.

    Args:
        structure: as it is.
        parents: by the index of a group (see :func:`groups`), for each unit that goes, the parent of its successor, or
            :data:`FRESH`.

    Raises:
        ValueError: there is no such group or unit.
    """
    edits = list(unchanged(structure))
    for name, group, size, given in _of_groups("parents", parents, structure):
        heirs = {
            _index(f"{name}: got unit", unit, size): _index(f"{name}[{unit}]: got unit", parent, size, fresh=True)
            for unit, parent in given.items()
        }
        for layer in group if heirs else ():
            units = edits[layer].units
            edits[layer] = edits[layer]._replace(
                units=tuple(FRESH if unit in heirs else unit for unit in units),
                parents=tuple(heirs.get(unit, FRESH) for unit in units),
            )
    return tuple(edits)


def deepened(structure: Structure, above: int, *, residual: bool = True) -> tuple[LayerEdit, ...]:
    """The edits that put a fresh layer upon another, which changes no output.

    Args:
        structure: as it is.
        above: index of the layer that it comes upon.
        residual: whether it adds nothing at first; False where it is to hand on what it gets (ReLU).

    Raises:
        ValueError: there is no such layer.
    """
    above = _index("above: got layer", above, len(structure))
    edits = list(unchanged(structure))
    return (*edits[: above + 1], LayerEdit(FRESH, (FRESH,) * structure[above].size, residual), *edits[above + 1 :])


def shallower(structure: Structure, layer: int) -> tuple[LayerEdit, ...]:
    """The edits that remove a layer.

    Args:
        structure: as it is.
        layer: its index.

    Raises:
        ValueError: there is no such layer.
    """
    gone = _index("layer: got layer", layer, len(structure))
    return tuple(edit for edit in unchanged(structure) if edit.source != gone)


def check_change(structure: Structure, layers: Sequence[LayerEdit], *, uniform: bool, fresh_residual: bool) -> None:
    """See that a change can be made.

    Args:
        structure: as it is.
        layers: as it is to be.
        uniform: whether all layers have to be of one size.
        fresh_residual: whether fresh layers have to be residual; if not, they must not be.

    Raises:
        ValueError: it cannot; names the layer, what was given and what is allowed.
    """
    if not (isinstance(layers, list | tuple) and all(isinstance(edit, LayerEdit) for edit in layers)):
        raise ValueError(f"layers: got {layers!r}; expected a LayerEdit for each layer, as widened and others give")
    if not layers:
        raise ValueError("layers: got none; at least one hidden layer has to stay")
    last = -1
    for index, edit in enumerate(layers):
        where = f"layers[{index}]"
        _index(f"{where}.source: got layer", edit.source, len(structure), fresh=True)
        if not edit.units:
            raise ValueError(f"{where}.units: got none; allowed is at least one unit")
        fresh = next((count for count, unit in enumerate(reversed(edit.units)) if unit != FRESH), len(edit.units))
        _index(f"{where}.begins: got", edit.begins, fresh + 1)
        if edit.parents and len(edit.parents) != len(edit.units):
            raise ValueError(
                f"{where}.parents: got {len(edit.parents)}; expected one for each of {len(edit.units)} units"
            )
        if edit.source == FRESH:
            below = layers[index - 1] if index else None
            if below is None:
                raise ValueError(f"{where}.source: got a fresh layer; allowed above another one")
            if len(below.units) != len(edit.units) or any(unit != FRESH for unit in edit.units):
                raise ValueError(
                    f"{where}.units: a fresh layer has {len(below.units)} fresh units, as the one below it"
                )
            if edit.residual != fresh_residual:
                raise ValueError(f"{where}.residual: got {edit.residual}; a fresh layer here has {fresh_residual}")
            continue
        if edit.source <= last:
            raise ValueError(f"{where}.source: got layer {edit.source} after layer {last}; allowed is a later one")
        last, before = edit.source, structure[edit.source]
        for unit in (*edit.units, *edit.parents):
            _index(f"{where}: got unit", unit, before.size, fresh=True)
        if edit.residual != before.residual:
            raise ValueError(f"{where}.residual: got {edit.residual}; layer {edit.source} has {before.residual}")
        if edit.residual and (index == 0 or _carried(structure, layers, index - 1, edit.source - 1) != edit.units):
            raise ValueError(f"{where}: it is residual, so that its units have to be those of the layer below it")
    if uniform and len({len(edit.units) for edit in layers}) > 1:
        sizes = ", ".join(str(len(edit.units)) for edit in layers)
        raise ValueError(f"layers: got sizes {sizes}; allowed is one size for all")


def _carried(structure: Structure, layers: Sequence[LayerEdit], now: int, then: int) -> tuple[int, ...]:
    """For each unit of a layer after the change, the unit of a layer before it that it carries on, or FRESH."""
    edit = layers[now]
    if edit.source == FRESH:  # hands on what it gets, as yet
        return _carried(structure, layers, now - 1, then)
    tied = edit.source <= then and all(structure[index].residual for index in range(edit.source + 1, then + 1))
    return edit.units if tied else (FRESH,) * len(edit.units)


def check_structure(circuit: Circuit, structure: Sequence[Sequence[Any]]) -> Structure:
    """The structure, if a circuit can have it.

    Raises:
        ValueError: it cannot; says why.
    """
    try:
        wanted = structured(structure)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"structure: got {structure!r}; expected size and whether residual of each layer") from error
    if wanted == circuit.structure():
        return wanted
    refused = circuit.fixed()
    if refused:
        raise ValueError(f"structure: got {describe(wanted)}; it is fixed: {refused}")
    if not wanted or min(layer.size for layer in wanted) < 1 or wanted[0].residual:
        raise ValueError(f"structure: got {describe(wanted)}; allowed are layers of units, the lowest not residual")
    shares = next((layer.shares for layer in wanted if layer.shares), ())
    if shares and not any(layer.shares for layer in circuit.structure()):
        raise ValueError(f"structure: got shares {shares}; no task owns units here, allowed is none")
    different = any(above.residual and above.size != below.size for below, above in pairwise(wanted))
    if different or (circuit.uniform and len({layer.size for layer in wanted}) > 1):
        where = "all layers" if circuit.uniform else "a residual layer and that below it"
        raise ValueError(f"structure: got {describe(wanted)}; allowed is one size of {where}")
    return wanted


def plain(structure: Structure) -> list[list[Any]]:
    """A structure as plain data, for a checkpoint."""
    return [[layer.size, layer.residual, *([list(layer.shares)] if layer.shares else [])] for layer in structure]


def structured(layers: Iterable[Sequence[Any]]) -> Structure:
    """The structure that is said by plain data: of each layer its size, whether it is residual, and shares if any."""
    return tuple(
        Layer(_whole(size), _either(residual), *(tuple(map(_whole, shares)) for shares in more))
        for size, residual, *more in layers
    )


def _either(value: Any) -> bool:
    """True or false; TypeError for what is neither, such as a number."""
    if not isinstance(value, bool):
        raise TypeError(f"got a {type(value).__name__}")
    return value


def describe(structure: Structure) -> str:
    """A structure in words: ``8 + 8 - 4`` has a residual layer upon its first."""
    return (
        "".join(
            f"{(' + ' if layer.residual else ' - ') if index else ''}{layer.size}"
            for index, layer in enumerate(structure)
        )
        or "no layers"
    )


# ---- making a change -------------------------------------------------------------------------------------------------


def unlike_linear(layers: Iterable[nn.Module]) -> str | None:
    """Why some layer cannot change its size, or None."""
    for layer in layers:
        if type(layer) is not nn.Linear or layer.bias is None:
            return f"it has a {type(layer).__name__} where only a torch.nn.Linear with a bias can change"
        computed = next((name for name in ("weight", "bias") if name not in layer._parameters), None)
        if computed is not None:  # as pruning and torch's old weight_norm and spectral_norm leave it
            return f"the {computed} of a torch.nn.Linear is computed from others, and cannot change its size"
    return None


def resized(linear: nn.Linear, inputs: int, outputs: int) -> None:
    """Give a Linear another size, and new parameters that are yet to be filled."""
    like = linear.weight
    linear.in_features, linear.out_features = inputs, outputs
    for name, shape in (("weight", (outputs, inputs)), ("bias", (outputs,))):
        old: Any = getattr(linear, name)
        if old is not None:
            setattr(linear, name, nn.Parameter(like.detach().new_empty(shape), requires_grad=old.requires_grad))


def resized_list(linears: nn.ModuleList, sizes: Sequence[tuple[int, int]]) -> None:
    """The same for a list of them, which gets as many as there are sizes."""
    while len(linears) > len(sizes):
        del linears[-1]
    while len(linears) < len(sizes):
        like: Any = linears[-1]
        linears.append(nn.Linear(1, 1, device=like.weight.device, dtype=like.weight.dtype))
    for linear, (inputs, outputs) in zip(linears, sizes, strict=True):
        resized(linear, inputs, outputs)  # type: ignore[arg-type]


def draw(shape: Sequence[int], fan: int, generator: torch.Generator | None) -> Tensor:
    """Weights or biases between -1/√F and 1/√F, of F = fan, in float64; see :meth:`Wire.fan`."""
    bound = fan**-0.5
    return (2 * torch.rand(tuple(shape), generator=generator, dtype=torch.float64, device="cpu") - 1) * bound


def draw_all(circuit: Circuit) -> None:
    """Draw the weights of all that depends on the structure of a circuit, as they begin; see :meth:`Wire.fan`."""
    structure = circuit.structure()
    for wire in circuit.wires(structure):
        linear: Any = circuit.get_submodule(wire.name)
        linear.reset_parameters()
        if wire.by_units and wire.layer is not None:
            bound = structure[wire.layer].size ** -0.5
            for parameter in linear.parameters():
                nn.init.uniform_(parameter, -bound, bound)


def make_change(
    circuit: Circuit,
    layers: Sequence[LayerEdit],
    inputs: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Change:
    """Change the structure of a circuit in place; see :meth:`Circuit.edit`."""
    before = circuit.structure()
    refused = circuit.fixed()
    if refused:
        raise ValueError(f"layers: the structure is fixed: {refused}")
    check_change(before, layers, uniform=circuit.uniform, fresh_residual=circuit.fresh_residual)
    lost = {*range(len(before))} - {edit.source for edit in layers}
    if inputs is None and any(not before[index].residual for index in lost):
        raise ValueError("inputs: got none; a layer that is not residual can only be removed by what it does with some")
    old_wires = {(wire.kind, wire.layer): wire for wire in circuit.wires(before)}
    seen = {} if inputs is None else circuit.activity(inputs)
    former = dict(circuit.named_parameters())
    changed = after(before, layers)
    rewiring = _Rewiring(before, tuple(layers), former, seen, {**_readers(old_wires.values())}, generator)
    made = [
        rewiring.wire(wire, None if _is_fresh(wire, layers) else old_wires[wire.kind, _source(wire, layers)])
        for wire in circuit.wires(changed)
    ]
    circuit.resize(changed)
    present = dict(circuit.named_parameters())
    origins: dict[str, Origin] = {}
    with torch.no_grad():
        for values, sources in made:
            for name, value in values.items():
                present[name].copy_(value)
            origins |= sources
    return Change(before, tuple(layers), origins, former, present)


def _source(wire: Wire, layers: Sequence[LayerEdit]) -> int | None:
    return None if wire.layer is None else layers[wire.layer].source


def _is_fresh(wire: Wire, layers: Sequence[LayerEdit]) -> bool:
    return _source(wire, layers) == FRESH


def _readers(wires: Iterable[Wire]) -> dict[int, str]:
    """By layer (-1: the inputs) the name of a Linear that gets what the layer gives."""
    return {wire.below: wire.name for wire in wires if wire.layer != wire.below}


class _Rewiring:
    """The weights of each Linear after a change."""

    def __init__(
        self,
        before: Structure,
        layers: tuple[LayerEdit, ...],
        former: Mapping[str, Tensor],
        seen: Mapping[str, Tensor],
        readers: Mapping[int, str],
        generator: torch.Generator | None,
    ) -> None:
        self.before, self.layers, self.former, self.generator = before, layers, former, generator
        self.seen, self.readers = seen, readers

    def wire(self, wire: Wire, old: Wire | None) -> tuple[dict[str, Tensor], dict[str, Origin]]:
        """Weight and bias of a Linear by their names, and where they come from."""
        if old is None:
            return self._fresh(wire)
        weight = self.former[f"{old.name}.weight"].detach().cpu().double()
        bias = self.former[f"{old.name}.bias"].detach().cpu().double()
        columns = self._columns(wire, old, weight.shape[1])
        shared = self._shared(columns, weight.shape[1])
        if old.name in self.seen:
            absorbed, constant = self._absorbed(wire, old, shared)
            bias = bias + weight @ constant
            shared = shared + absorbed
        rows = self._rows(wire, old)
        weight = weight @ shared
        if rows is not None:
            weight, bias = self._with_fresh_rows(wire, rows, weight, bias)
        edits = [] if rows is None else [Edit(0, rows)]
        names = {"weight": [*edits, Edit(1, columns)], "bias": edits}
        return (
            {f"{wire.name}.weight": weight, f"{wire.name}.bias": bias},
            {f"{wire.name}.{part}": Origin(f"{old.name}.{part}", tuple(made)) for part, made in names.items()},
        )

    def _fresh(self, wire: Wire) -> tuple[dict[str, Tensor], dict[str, Origin]]:
        """A Linear of a fresh layer: one block is zero if it is residual; if not, it hands on what it gets."""
        assert wire.layer is not None
        size = len(self.layers[wire.layer].units)
        if self.layers[wire.layer].residual:
            weight = draw((wire.blocks, size, size), size, self.generator)
            bias = draw((wire.blocks, size), size, self.generator)
            weight[wire.quiet] = 0
            bias[wire.quiet] = 0
        else:
            weight, bias = (
                torch.eye(size, dtype=torch.float64, device="cpu")[None],
                torch.zeros(1, size, dtype=torch.float64, device="cpu"),
            )
        names = f"{wire.name}.weight", f"{wire.name}.bias"
        values = weight.flatten(0, 1), bias.flatten()
        return dict(zip(names, values, strict=True)), dict.fromkeys(names, Origin(None))

    def _rows(self, wire: Wire, old: Wire) -> tuple[int, ...] | None:
        if wire.layer is None or old.layer is None:
            return None
        size, units = self.before[old.layer].size, self.layers[wire.layer].units
        return tuple(FRESH if unit == FRESH else block * size + unit for block in range(wire.blocks) for unit in units)

    def _columns(self, wire: Wire, old: Wire, width: int) -> tuple[int, ...]:
        """For each column its former index, or FRESH."""
        if old.below < 0:
            return tuple(range(width))
        size = self.before[old.below].size
        if wire.below < 0:
            return (FRESH,) * self._width_of_inputs()
        return (*_carried(self.before, self.layers, wire.below, old.below), *range(size, width))

    def _width_of_inputs(self) -> int:
        return self.former[f"{self.readers[-1]}.weight"].shape[1]

    @staticmethod
    def _shared(columns: tuple[int, ...], width: int) -> Tensor:
        """What each former column gives to each new one, ``[former, new]``: where one was split, they share it."""
        shared = torch.zeros(width, len(columns), dtype=torch.float64, device="cpu")
        for new, former in enumerate(columns):
            if former != FRESH:
                shared[former, new] = 1 / columns.count(former)
        return shared

    def _given(self, now: int) -> Tensor:
        """What a layer after the change would have given before it, ``[n, units]``: 0 of units that were not there."""
        if now < 0:
            return self.seen[self.readers[-1]]
        edit = self.layers[now]
        if edit.source == FRESH:
            return self._given(now - 1)
        given = self.seen[self.readers[edit.source]][:, : self.before[edit.source].size]
        return select(given, [Edit(1, edit.units)])

    def _absorbed(self, wire: Wire, old: Wire, shared: Tensor) -> tuple[Tensor, Tensor]:
        """How former columns that are gone follow from those that are kept, by least squares over what was seen.

        Returns:
            What each former column gives to each new one, ``[former, new]``, and a constant of each, ``[former]``.
        """
        absorbed, constant = torch.zeros_like(shared), torch.zeros(len(shared), dtype=torch.float64, device="cpu")
        if old.below < 0:
            return absorbed, constant
        then, units = self.seen[old.name], self.before[old.below].size
        if wire.layer == wire.below and wire.layer is not None:  # what a layer tells itself
            now = select(then, [Edit(1, self.layers[wire.layer].units)])
        else:
            now = self._given(wire.below)
        width = now.shape[1]
        left = then[:, :units] - now @ shared[:units, :width].T
        # One step with an input that is not a number would make all weights so.
        finite = (now.isfinite().all(1) & left.isfinite().all(1)).nonzero().flatten()
        now, left = now[finite], left[finite]
        gone = (left != 0).any(0).nonzero().flatten()
        if len(gone):
            known = torch.cat([now, torch.ones_like(now[:, :1])], dim=1)
            square = known.T @ known
            middle, due = square.diagonal().mean(), known.T @ left[:, gone]
            for penalty in RIDGES:
                found = torch.linalg.solve(
                    square + penalty * middle * torch.eye(width + 1, dtype=square.dtype, device="cpu"), due
                )
                if found[:-1].abs().max() <= LARGEST_SHARE:
                    break
            absorbed[gone, :width], constant[gone] = found[:-1].T, found[-1]
        return absorbed, constant

    def _with_fresh_rows(
        self, wire: Wire, rows: tuple[int, ...], weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rows as they are now: what fresh units get is drawn, or that of their parents with noise."""
        assert wire.layer is not None
        edit = self.layers[wire.layer]
        chosen = [Edit(0, rows)]
        if FRESH not in edit.units:
            return select(weight, chosen), select(bias, chosen)
        size = self.before[edit.source].size
        parents = edit.parents or (FRESH,) * len(edit.units)
        heirs = tuple(
            FRESH if parent == FRESH else block * size + parent for block in range(wire.blocks) for parent in parents
        )
        columns = weight.shape[1]
        fan = wire.fan(columns, len(edit.units))
        drawn = draw((len(rows), columns), fan, self.generator), draw((len(rows),), fan, self.generator)
        noise = (
            HEIR_NOISE
            * weight.std(correction=0)
            * torch.randn(len(rows), columns, generator=self.generator, dtype=torch.float64, device="cpu")
        )
        inherited = [Edit(0, heirs)]
        fresh_weight = torch.where(
            torch.tensor(heirs, device="cpu").unsqueeze(1) < 0, drawn[0], select(weight, inherited) + noise
        )
        return select(weight, chosen, fresh_weight), select(bias, chosen, select(bias, inherited, drawn[1]))


def inputs_of(circuit: Circuit, wires: Iterable[Wire], run: Any) -> dict[str, Tensor]:
    """What the Linears of some wires get while something runs, ``[n, columns]`` of each, in float64 on the CPU."""
    seen: dict[str, list[Tensor]] = {}
    hooks = []
    for wire in wires:
        kept = seen.setdefault(wire.name, [])

        def keep(module: nn.Module, given: tuple[Tensor, ...], kept: list[Tensor] = kept) -> None:
            kept.append(given[0].detach().flatten(0, -2).cpu().double())

        hooks.append(circuit.get_submodule(wire.name).register_forward_pre_hook(keep))
    training = circuit.training
    try:
        circuit.eval()
        with torch.no_grad():
            run()
    finally:
        circuit.train(training)
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}
