"""Every space of gymnasium: any observation fits the channels, any action is within reach, and all given are valid."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from papertape.core.world import ActionPart
from papertape.envs import GymWorld
from papertape.envs.spaces import as_floats

gymnasium = pytest.importorskip("gymnasium")
spaces = gymnasium.spaces

WHOLE = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]
FLOATS = [np.float16, np.float32, np.float64]
SHAPES = st.sampled_from([(), (1,), (3,), (2, 2)])


class Given(gymnasium.Env):
    """Shows samples, and sees that each action is one of its space."""

    def __init__(self, observations: Any, actions: Any) -> None:
        self.observation_space, self.action_space, self.taken = observations, actions, []

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        self.observation_space.seed(seed)
        return self.seen(), {}

    def seen(self) -> Any:
        try:
            with np.errstate(all="raise"):
                return self.observation_space.sample()
        except (FloatingPointError, OverflowError):  # gymnasium cannot draw from so wide a range
            return largest(self.observation_space)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        with warnings.catch_warnings():
            # gymnasium's vector environments make numbers of arrays without axes, and then warn of them.
            warnings.filterwarnings("ignore", ".*Casting input x to numpy array")
            assert self.action_space.contains(action), (action, self.action_space)
        self.taken.append(action)
        return self.seen(), 1.0, False, False, {}


def largest(space: Any) -> Any:
    """A sample of a space that has the largest number of each of its boxes."""
    if isinstance(space, spaces.Dict):
        return {name: largest(part) for name, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(map(largest, space.spaces))
    return np.nan_to_num(space.high) if isinstance(space, spaces.Box) else space.sample()


def world(observations: Any = None, actions: Any = None, **options: Any) -> GymWorld:
    observations = spaces.Box(-1, 1, (2,)) if observations is None else observations
    actions = spaces.Discrete(2) if actions is None else actions
    kind = options.pop("kind", gymnasium.vector.SyncVectorEnv)
    return GymWorld(max_steps=4, make=lambda count: kind([lambda: Given(observations, actions)] * count), **options)


@st.composite
def whole_boxes(draw: Any) -> Any:
    kind, shape = draw(st.sampled_from(WHOLE)), draw(SHAPES)
    least, most = np.iinfo(kind).min, np.iinfo(kind).max
    low = draw(st.integers(max(least, -(2**52)), min(most, 2**52)))
    return spaces.Box(low, min(low + draw(st.integers(0, 300)), most, 2**53), shape, kind)


@st.composite
def float_boxes(draw: Any) -> Any:
    kind, shape = draw(st.sampled_from(FLOATS)), draw(SHAPES)
    most = float(np.finfo(kind).max)
    ends = st.sampled_from([-math.inf, -most, -2.5, 0.0, 0.1, 3.0, most, math.inf])
    low, high = sorted((draw(ends), draw(ends)))
    low, high = (-math.inf if low == math.inf else low), (math.inf if high == -math.inf else high)
    return spaces.Box(kind(low), kind(high), shape, kind)


LEAVES = st.one_of(
    whole_boxes(),
    float_boxes(),
    st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 9), st.integers(-5, 5)),
    st.builds(spaces.MultiDiscrete, st.lists(st.integers(1, 4), min_size=1, max_size=3)),
    st.sampled_from([spaces.MultiBinary(3), spaces.MultiBinary((2, 2)), spaces.MultiDiscrete([[2, 3], [4, 1]])]),
)
ANY = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(spaces.Tuple),
        st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3).map(spaces.Dict),
    ),
    max_leaves=4,
)
RARELY = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@RARELY
@given(ANY, st.booleans())
def test_every_observation_becomes_finite_channels(space: Any, together: bool) -> None:
    made = world(space, kind=Vector) if together else world(space)
    assert made.input_size == spaces.flatdim(space)
    shown, _ = made.reset(3, torch.Generator().manual_seed(1))
    assert shown.shape == (3, made.input_size) and shown.dtype == torch.float32 and shown.isfinite().all()
    assert made.step(torch.zeros(3, dtype=torch.long)).observations.isfinite().all()
    assert sum(channels.size for channels in made.input_channels()) == made.input_size
    made.close()


class Vector(gymnasium.vector.SyncVectorEnv):
    """Steps all its environments at once, as any vector environment that somebody has written."""


@RARELY
@given(ANY, st.sampled_from(["sigmoid", "tanh", "clip", "sample"]), st.booleans(), st.randoms(use_true_random=False))
def test_any_output_becomes_an_action_of_the_space(space: Any, action: str, together: bool, random: Any) -> None:
    made = world(actions=space, action=action, **({"kind": Vector} if together else {}))
    made.reset(3, torch.Generator().manual_seed(1))
    for scale in (0.0, 3.0, 1e3, 1e38):
        outputs = torch.tensor([[random.gauss(0, 1) * scale for _ in range(made.output_size)] for _ in range(3)])
        made.step(made.decide(outputs.clamp(-3e38, 3e38)))
    made.decide(torch.full((3, made.output_size), math.inf))
    assert sum(channels.size for channels in made.output_channels()) == made.output_size
    if action != "sample":
        assert sum(part.size for part in made.action_parts()) == made.output_size
    made.close()


@RARELY
@given(whole_boxes(), st.sampled_from(["sigmoid", "tanh", "clip"]))
def test_every_whole_number_is_within_reach(space: Any, action: str) -> None:
    made = world(actions=space, action=action)
    low, high = int(space.low.flatten()[0]), int(space.high.flatten()[0])
    numbers = torch.arange(high - low + 1, dtype=torch.float64)
    share = (numbers + 0.5) / len(numbers)
    given = {"sigmoid": torch.logit(share), "tanh": torch.logit(share) / 2, "clip": numbers + low}[action]
    found = made.decide(given.unsqueeze(1).expand(-1, made.output_size))
    assert torch.equal(found[:, 0], torch.arange(low, high + 1))


@pytest.mark.parametrize("kind", FLOATS)
def test_both_ends_of_the_largest_bounds_are_within_reach(kind: Any) -> None:
    most = np.finfo(kind).max
    box = spaces.Box(-most, most, (1,), kind)
    for action in ("sigmoid", "tanh"):
        made = world(actions=box, action=action)
        ends = made.decide(torch.tensor([[-1e4], [1e4]])).flatten().tolist()
        assert ends == [float(-most), float(most)]


def test_clip_leaves_a_linear_policy_linear() -> None:
    made = world(actions=spaces.Box(np.array([-1.0, 0.0]), np.array([2.0, np.inf]), dtype=np.float64), action="clip")
    found = made.decide(torch.tensor([[0.25, 7.0], [9.0, -3.0]]))
    assert found.tolist() == [[0.25, 7.0], [2.0, 0.0]]


def test_nested_actions_arrive_as_they_are_decided() -> None:
    space = spaces.Dict(
        {"go": spaces.Discrete(3, start=5), "how": spaces.Tuple([spaces.Box(0, 10, (2,)), spaces.MultiBinary(2)])}
    )
    envs = [Given(spaces.Box(-1, 1, (2,)), space) for _ in range(2)]
    made = GymWorld(
        max_steps=4,
        action="clip",
        make=lambda count: gymnasium.vector.SyncVectorEnv([lambda at=at: envs[at] for at in range(count)]),
    )
    assert made.output_size == 7
    assert made.action_parts() == [
        ActionPart("categorical", 3), ActionPart("normal", 2), ActionPart("bernoulli", 2)
    ]  # fmt: skip
    made.reset(2, torch.Generator())
    made.step(made.decide(torch.tensor([[0.0, 9, 1, 2.5, 11, -1, 1], [3, 2, 1, -4, 4, 1, 1]])))
    (first,), (second,) = envs[0].taken, envs[1].taken
    assert (first["go"], second["go"]) == (6, 5)
    assert first["how"][0].tolist() == [2.5, 10.0] and second["how"][0].tolist() == [0.0, 4.0]
    assert first["how"][1].tolist() == [0, 1] and second["how"][1].tolist() == [1, 1]


def test_drawn_actions_follow_the_outputs_and_are_the_same_for_copies() -> None:
    made = world(actions=spaces.Discrete(3), action="sample")
    with pytest.raises(RuntimeError, match="decide: there was no reset"):
        made.decide(torch.zeros(2, 3))
    made.reset(4000, torch.Generator().manual_seed(0), copies=2)
    logits = torch.tensor([0.0, 1.0, 2.0])
    drawn = made.decide(logits.expand(8000, 3))
    assert torch.equal(drawn[:4000], drawn[4000:])
    share = torch.bincount(drawn[:4000], minlength=3) / 4000
    torch.testing.assert_close(share, logits.softmax(0), atol=0.03, rtol=0)
    made.keep(torch.arange(4000, 8000))
    assert len(made.decide(logits.expand(4000, 3))) == 4000
    with pytest.raises(ValueError, match="action: got 'sample', by which the env draws"):
        made.action_parts()
    numbers = world(actions=spaces.Box(-100, 100, (1,)), action="sample")
    numbers.reset(4000, torch.Generator().manual_seed(0))
    found = numbers.decide(torch.tensor([[3.0, math.log(2)]]).expand(4000, 2))
    assert abs(float(found.mean()) - 3) < 0.15 and abs(float(found.std()) - 2) < 0.15
    yes = world(actions=spaces.MultiBinary(1), action="sample")
    yes.reset(4000, torch.Generator().manual_seed(0))
    rate = float(yes.decide(torch.full((4000, 1), 1.0)).double().mean())
    assert abs(rate - 1 / (1 + math.exp(-1))) < 0.03


@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        (spaces.Text(5), None, "which has observations Text.*Text in it; allowed are Box"),
        (None, spaces.Tuple([spaces.Discrete(2), spaces.Text(5)]), "which has actions Tuple.*Text in it"),
        (spaces.Box(0, 1, (0,)), None, "observations Box.*: 0 channels; allowed are from 1 to"),
        (spaces.Discrete(2**21), None, "2,097,152 channels; allowed are from 1 to 1,048,576"),
        (None, spaces.Box(0, 2**40, (3,), np.int64), "whole numbers from 0 to 1099511627776"),
    ],
)
def test_what_cannot_be_put_into_channels_is_refused_in_one_line(observations: Any, actions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^id: got .*{message}") as caught:
        world(observations, actions)
    assert "\n" not in str(caught.value)


def test_large_numbers_stay_finite() -> None:
    found = as_floats(np.array([1.7e308, -1.7e308, math.inf, math.nan, 1.0]), torch.float32)
    most = float(np.finfo(np.float32).max)
    np.testing.assert_array_equal(found, np.array([most, -most, math.inf, math.nan, 1.0], np.float32))
