"""A strategy on its own: find where a function is least or greatest."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from ...core.component import build
from ...core.explain import explain
from ...core.options import Options
from .base import AnyStrategy, Strategy

Bound = float | Sequence[float] | Tensor
Function = Callable[[Tensor], Any]


class Found(NamedTuple):
    """What :func:`minimise` and :func:`maximise` have found."""

    point: Tensor
    """The best point that was evaluated, ``[D]``."""
    value: float
    """What the function gives there."""
    evaluations: int
    """Points that were evaluated, the first one included."""
    generations: int
    """Populations that were evaluated."""
    bad_values: int
    """Evaluations that gave no finite number."""


def minimise(
    function: Function,
    x0: Tensor | Sequence[float],
    *,
    strategy: Any = "cma-es",
    bounds: tuple[Bound, Bound] | None = None,
    evaluations: int = 10_000,
    target: float | None = None,
    batched: bool = False,
    seed: int = 0,
) -> Found:
    """Find the minimum of a function by evolution, without gradients; the same seed gives the same result.

    ::

        found = minimise(lambda x: (x - 3).square().sum(), [0.0, 0.0], bounds=(-5, 5))
        found.point, found.value

    Args:
        function: maps a point ``[D]`` to a number; with ``batched``, points ``[P, D]`` to ``[P]``.
        x0: where to start, ``[D]``; a tensor's type and device are those of all points, others become float64.
        strategy: name of a strategy, a block such as ``{"type": "cma-es", "sigma": 0.5}``, or its options.
        bounds: the least and the greatest value of each element, a number or ``[D]`` each, infinite where there is
            none. What a strategy draws beyond a bound is reflected at it, so no point outside is ever evaluated.
        evaluations: points that are evaluated at most; a generation that would exceed them is not begun.
        target: stop as soon as a value is at or under this.
        batched: whether the function takes many points at once.
        seed: of everything that is drawn.

    Raises:
        ValueError: x0 is not a vector of finite numbers or lies outside the bounds, the bounds are not valid, the
            evaluations do not suffice for a generation, the strategy is unknown or cannot take so many elements, or the
            function returns another shape or no finite number at all.
    """
    return _search(function, x0, -1.0, strategy, bounds, evaluations, target, batched, seed)


def maximise(
    function: Function,
    x0: Tensor | Sequence[float],
    *,
    strategy: Any = "cma-es",
    bounds: tuple[Bound, Bound] | None = None,
    evaluations: int = 10_000,
    target: float | None = None,
    batched: bool = False,
    seed: int = 0,
) -> Found:
    """Find the maximum of a function; arguments and errors as in :func:`minimise`.

    Stops as soon as a value is at or above ``target``.
    """
    return _search(function, x0, 1.0, strategy, bounds, evaluations, target, batched, seed)


def _search(
    function: Function,
    x0: Tensor | Sequence[float],
    sign: float,
    chosen: Any,
    bounds: tuple[Bound, Bound] | None,
    evaluations: Any,
    target: Any,
    batched: bool,
    seed: int,
) -> Found:
    if not callable(function):
        raise ValueError(f"function: got {function!r}; allowed is what maps a point to a number")
    strategy = _build(chosen, _point(x0), seed)
    box = None if bounds is None else Box(bounds, strategy.genome)
    if isinstance(evaluations, bool) or not isinstance(evaluations, numbers.Integral):
        raise ValueError(f"evaluations: got {evaluations!r}; allowed is a whole number")
    goal = math.inf if target is None else sign * _target(target)
    most = int(evaluations)
    if most < 1 + strategy.population:
        raise ValueError(
            f"evaluations: got {most}; allowed is at least {1 + strategy.population}, the first point and a "
            f"generation of {strategy.population}"
        )
    best, best_fitness, used, bad = strategy.genome, -math.inf, 0, 0

    def judged(genomes: Tensor) -> Tensor:
        """Fitness ``[P]`` of genomes ``[P, D]``; remembers the best point."""
        nonlocal best, best_fitness, used, bad
        points = genomes if box is None else box.fold(genomes)
        fitness = sign * _values(function, points, batched)
        finite = fitness.isfinite()
        used, bad = used + len(points), bad + int((~finite).sum())
        ranked = torch.where(finite, fitness, -math.inf)
        at = int(ranked.argmax())
        if ranked[at] > best_fitness:
            best, best_fitness = points[at].clone(), float(ranked[at])
        return fitness

    judged(strategy.genome.unsqueeze(0))
    while best_fitness < goal and used + strategy.population <= most:
        fitness = judged(strategy.ask())
        strategy.tell(fitness.unsqueeze(1) if strategy.per_sample else fitness)
        candidates = strategy.candidates()
        if candidates is not None and used + len(candidates) <= most:
            strategy.confirm(judged(candidates))
    if best_fitness == -math.inf:
        raise ValueError(f"function: got no finite number in {used} evaluations")
    return Found(best, sign * best_fitness + 0.0, used, strategy.generation, bad)


def _target(given: Any) -> float:
    """The value at which to stop."""
    try:
        target = float(given) if isinstance(given, numbers.Real) else math.nan
    except OverflowError:  # a whole number beyond all others
        target = math.nan
    if math.isnan(target):
        raise ValueError(f"target: got {given!r}; allowed is a number, or None")
    return target


def _point(x0: Any) -> Tensor:
    """Where to start, ``[D]``; what is no tensor becomes one of float64."""
    expected = "expected a vector of one or more finite numbers, such as [0.0, 0.0]"
    try:
        start = x0 if isinstance(x0, Tensor) else torch.as_tensor(x0, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"x0: got {x0!r}; {expected}") from error
    if start.dim() != 1 or not len(start):
        raise ValueError(f"x0: got shape {list(start.shape)}; {expected}")
    if start.dtype not in (torch.float32, torch.float64):  # of fewer digits, strategies' own epsilons become 0
        raise ValueError(f"x0: got {start.dtype}; {expected}, of torch.float32 or torch.float64")
    if not bool(start.isfinite().all()):
        raise ValueError(f"x0: got {start.tolist()}; {expected}")
    return start


class _Search(Options):
    strategy: AnyStrategy


def _build(chosen: Any, genome: Tensor, seed: int) -> Strategy:
    """The strategy of that name or options; populations begin around the genome, not with its elements shuffled."""
    given = {"strategy": chosen}
    try:
        options = _Search.model_validate(given).strategy
    except ValidationError as error:
        raise ValueError("\n".join(explain(error, given, _Search))) from error
    if not isinstance(options, Options):
        raise ValueError(f"strategy: got a {type(options).__name__}; allowed is a name, a block or options of one")
    if "initial" in type(options).model_fields and "initial" not in options.model_fields_set:
        options = options.model_copy(update={"initial": "copied"})
    strategy: Strategy = build(options, genome, seed=seed)
    return strategy


def _values(function: Function, points: Tensor, batched: bool) -> Tensor:
    """What a function gives for points ``[P, D]``: ``[P]`` in float64."""
    given = function(points.clone()) if batched else [_detached(function(point)) for point in points.clone()]
    kind = str(getattr(given, "dtype", ""))
    if "complex" in kind:
        raise ValueError(f"function: gives something that is no number: {kind}")
    try:
        values = torch.as_tensor(given, dtype=torch.float64, device=points.device).detach()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"function: gives something that is no number: {error}") from error
    if values.shape != (len(points),):
        raise ValueError(
            f"function: gives shape {list(values.shape)} for {len(points)} points; expected [{len(points)}], or a "
            "number for each without batched"
        )
    return values


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


class Box:
    """The least and the greatest value of each element of a point."""

    def __init__(self, bounds: tuple[Bound, Bound], start: Tensor) -> None:
        """
        Args:
            bounds: see :func:`minimise`.
            start: a point that lies within, ``[D]``.

        Raises:
            ValueError: not two, of another size, the wrong way round, or the point lies outside.
        """
        try:
            low, high = (torch.as_tensor(bound, dtype=start.dtype, device=start.device) for bound in bounds)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(
                f"bounds: got {bounds!r}; expected two, the least and the greatest values, numbers or vectors"
            ) from error
        for bound in (low, high):
            if bound.isnan().any():
                raise ValueError("bounds: got nan; allowed are numbers, infinite where there is no bound")
            if bound.dim() and bound.shape != start.shape:
                raise ValueError(
                    f"bounds: got shape {list(bound.shape)}; allowed are numbers, or one for each of {len(start)}"
                )
        self.low, self.high = low.expand_as(start), high.expand_as(start)
        wrong = (~(self.low < self.high)).nonzero().flatten().tolist()
        if wrong:
            least, greatest = float(self.low[wrong[0]]), float(self.high[wrong[0]])
            raise ValueError(
                f"bounds: got {least:g} and {greatest:g} for element {wrong[0]}; allowed is a least value below the "
                "greatest"
            )
        outside = (~((self.low <= start) & (start <= self.high))).nonzero().flatten().tolist()
        if outside:
            least, greatest = float(self.low[outside[0]]), float(self.high[outside[0]])
            found = float(start[outside[0]])
            raise ValueError(
                f"x0: got {found:g} for element {outside[0]}; allowed by the bounds: from {least:g} to {greatest:g}"
            )

    def fold(self, points: Tensor) -> Tensor:
        """Points ``[P, D]`` reflected at the bounds, as often as it takes to be within."""
        low, high = self.low, self.high
        width = high - low
        beyond = (points - low).remainder(2 * width)
        both = low + torch.where(beyond > width, 2 * width - beyond, beyond)
        # With one bound there is one reflection; where there are two, a point within is left as it is.
        one = torch.where(low.isfinite(), low + (points - low).abs(), high - (high - points).abs())
        folded = torch.where(width.isfinite(), both, torch.where(low.isfinite() | high.isfinite(), one, points))
        within = (low <= points) & (points <= high)
        return torch.where(within, points, folded).clamp(low, high)
