"""Strategies on their own: the optimum is found, bounds hold, and counts are true."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from papertape.agents.strategies import SNES, maximise, minimise
from papertape.agents.strategies.search import Box


def rosenbrock(x: torch.Tensor) -> torch.Tensor:
    return (100 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1 - x[..., :-1]) ** 2).sum(-1)


def test_rosenbrock() -> None:
    found = minimise(rosenbrock, [0.0] * 4, evaluations=6000)
    assert (found.point - 1).abs().max() < 1e-6
    assert found.value == float(rosenbrock(found.point)) < 1e-12


@pytest.mark.parametrize(
    ("strategy", "tolerance"),
    [
        ("cma-es", 1e-6),
        ("sep-cma-es", 1e-6),
        ("snes", 1e-6),
        ({"type": "pgpe", "population": 40, "max_speed": 0.1}, 0.2),
        ({"type": "openai-es", "population": 40, "lr": 0.05, "weight_decay": 0.0}, 0.2),
        ({"type": "trust", "population": 50}, 0.2),
        ({"type": "trust", "population": 50, "decay_per": "sample"}, 0.2),
        ({"type": "deep-ga", "population": 50, "truncation": 10, "sigma": 0.05}, 0.2),
    ],
)
def test_every_strategy_finds_the_top_of_a_hill(strategy: Any, tolerance: float) -> None:
    # From zeros: individuals begin as mutated copies of the point, not with its elements shuffled.
    found = maximise(lambda x: -(x - 0.7).square().sum(1), torch.zeros(4), strategy=strategy, batched=True)
    assert float((found.point - 0.7).abs().max()) < tolerance
    assert found.point.dtype == torch.float32 and found.value <= 0


def test_the_same_seed_finds_the_same_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one, same, other = (minimise(rosenbrock, [0.0, 0.0], evaluations=200, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.point, same.point) and one.value == same.value
    assert not torch.equal(one.point, other.point)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.filterwarnings("error")
def test_a_gradient_of_the_function_is_not_used(batched: bool) -> None:
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    found = minimise(lambda x: scale * rosenbrock(x), [0.0, 0.0], evaluations=100, batched=batched)
    plain = minimise(rosenbrock, [0.0, 0.0], evaluations=100, batched=batched)
    assert torch.equal(found.point, plain.point) and found.value == plain.value


@pytest.mark.parametrize("batched", [False, True])
def test_counts_are_those_of_the_calls(batched: bool) -> None:
    asked = []

    def function(x: torch.Tensor) -> torch.Tensor:
        asked.append(x.clone())
        return rosenbrock(x)

    found = minimise(function, [0.5, 0.5], evaluations=100, batched=batched)
    points = torch.cat(asked) if batched else torch.stack(asked)
    assert found.evaluations == len(points) == 1 + 6 * found.generations <= 100
    assert found.generations == 16
    values = rosenbrock(points)
    assert found.value == float(values.min())
    assert torch.equal(found.point, points[values.argmin()])
    assert torch.equal(points[0], torch.tensor([0.5, 0.5], dtype=torch.float64))


def test_second_looks_count() -> None:
    block = {"type": "deep-ga", "population": 20, "truncation": 5, "elite_candidates": 5}
    asked = []
    found = minimise(lambda x: asked.append(1) or x.square().sum(), [1.0, 1.0], strategy=block, evaluations=100)
    assert found.evaluations == len(asked) == 1 + 25 * found.generations - (5 if len(asked) % 25 == 21 else 0) <= 100


@pytest.mark.parametrize(
    ("bounds", "optimum"),
    [
        ((-1.0, 0.5), [0.5, 0.5]),  # at a bound
        (([-5.0, -1.0], [5.0, 0.25]), [2.0, 0.25]),  # one of its own for each element
        ((-math.inf, 1.5), [1.5, 1.5]),
        ((-0.25, math.inf), [2.0, 2.0]),
        ((torch.tensor([-1.0, -math.inf]), torch.tensor([1.0, math.inf])), [1.0, 2.0]),
        ((np.array([-1.0, -1.0]), 3), [2.0, 2.0]),
    ],
)
def test_no_point_outside_the_bounds_is_evaluated(bounds: Any, optimum: list[float]) -> None:
    asked = []

    def function(x: torch.Tensor) -> torch.Tensor:
        asked.append(x.clone())
        return (x - 2).square().sum(-1)

    block = {"type": "cma-es", "sigma": 2.0}
    found = minimise(function, [0.0, 0.0], strategy=block, bounds=bounds, evaluations=1500, batched=True)
    points = torch.cat(asked)
    low, high = (torch.as_tensor(bound, dtype=torch.float64) for bound in bounds)
    assert (points >= low).all() and (points <= high).all()
    torch.testing.assert_close(found.point, torch.tensor(optimum, dtype=torch.float64), atol=1e-4, rtol=0)


def test_points_are_reflected_as_often_as_it_takes() -> None:
    start = torch.zeros(3, dtype=torch.float64)
    box = Box((torch.tensor([-1.0, -1.0, -math.inf]), torch.tensor([2.0, math.inf, math.inf])), start)
    points = torch.tensor([[2.5, -3.0, 70.0], [-1.5, 4.0, -9.0], [9.0, -1.0, 0.1], [0.3, 0.3, 0.3]]).double()
    # 9 -> reflected at 2: -5 -> at -1: 3 -> at 2: 1.
    expected = torch.tensor([[1.5, 1.0, 70.0], [-0.5, 4.0, -9.0], [1.0, -1.0, 0.1], [0.3, 0.3, 0.3]]).double()
    assert torch.equal(box.fold(points)[3], points[3]), "within the bounds nothing changes, not even a bit"
    torch.testing.assert_close(box.fold(points), expected.to(points))


def test_stops_at_the_target() -> None:
    found = minimise(rosenbrock, [0.0, 0.0], target=0.1)
    assert found.value <= 0.1 and found.evaluations < 1000
    assert minimise(rosenbrock, [1.0, 1.0], target=0.0).evaluations == 1
    assert maximise(lambda x: -rosenbrock(x), [0.0, 0.0], target=-0.1).evaluations == found.evaluations


def test_what_is_not_finite_is_counted_and_never_the_best() -> None:
    def half(x: torch.Tensor) -> float:
        return math.nan if x[0] > 0.2 else -math.inf if x[1] > 0.9 else float((x - 0.1).square().sum())

    found = minimise(half, [0.0, 0.0], strategy={"type": "cma-es", "sigma": 0.5}, evaluations=500)
    assert 0 < found.bad_values < found.evaluations
    assert 0 <= found.value < 1e-3 and found.value == half(found.point)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x0": [[0.0]]}, r"x0: got shape \[1, 1\]; expected a vector of one or more finite numbers"),
        ({"x0": [math.nan]}, r"x0: got \[nan\]"),
        ({"x0": torch.zeros(2, dtype=torch.float16)}, "x0: got torch.float16; .* of torch.float32 or torch.float64"),
        ({"x0": torch.zeros(2, dtype=torch.int64)}, "x0: got torch.int64; .* of torch.float32 or torch.float64"),
        ({"strategy": "cma"}, "strategy.type: got .cma.; allowed: .*cma-es, "),
        ({"strategy": {"type": "snes", "sigma": -1.0}}, "strategy.sigma: got -1.0; allowed: greater than 0"),
        ({"strategy": {"type": "snes", "sgima": 1.0}}, "strategy.sgima: unknown option; did you mean 'strategy.sigma'"),
        ({"strategy": SNES(torch.zeros(2))}, "strategy: got a SNES; allowed is a name, a block or options"),
        ({"strategy": "neat"}, "neat: no network|network"),
        ({"evaluations": 6}, "evaluations: got 6; allowed is at least 7, the first point and a generation of 6"),
        ({"bounds": (1.0, 2.0)}, "x0: got 0 for element 0; allowed by the bounds: from 1 to 2"),
        ({"bounds": (2.0, 1.0)}, "bounds: got 2 and 1 for element 0; allowed is a least value below"),
        ({"bounds": ([-1.0, 0.0], [1.0, 0.0])}, "bounds: got 0 and 0 for element 1; allowed is a least"),
        ({"bounds": (0.0, [1.0, 1.0, 1.0])}, r"bounds: got shape \[3\]; allowed are numbers, or one for each of 2"),
        ({"bounds": (0.0,)}, r"bounds: got \(0.0,\); expected two"),
        ({"bounds": (0.0, math.nan)}, "bounds: got nan"),
        ({"function": 3}, "function: got 3; allowed is what maps a point"),
        ({"function": lambda x: x}, r"function: gives something that is no number|function: gives shape"),
        ({"function": lambda x: x.sum(), "batched": True}, r"function: gives shape \[\] for 1 points; expected \[1\]"),
        ({"function": lambda x: x.sum(1) * 1j, "batched": True}, "function: gives .* no number: torch.complex128"),
        ({"function": lambda x: x.sum(1).numpy() * 1j, "batched": True}, "function: gives .* no number: complex128"),
        ({"function": lambda x: 10**400}, "function: gives something that is no number: int too large"),
        ({"x0": [10**400]}, "x0: got .*; expected a vector of one or more finite numbers"),
        ({"bounds": (0, 10**400)}, "bounds: got .*; expected two"),
        ({"target": 10**400}, "target: got .*; allowed is a number"),
        ({"function": lambda x: math.nan}, "function: got no finite number in 997 evaluations"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    given = {"function": lambda x: x.square().sum(), "x0": [0.0, 0.0], "evaluations": 1000, **arguments}
    with pytest.raises(ValueError, match=message):
        minimise(given.pop("function"), given.pop("x0"), **given)
