"""Permuted images: every image under the permutation of its own task."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from papertape.envs import LettersEnv, PermutedImagesEnv


def make(**options: Any) -> PermutedImagesEnv:
    letters = LettersEnv(image_size=12, fonts=["DejaVu Sans"], font_sizes=[10], max_shift=0, test_fonts=[])
    return PermutedImagesEnv(images=letters, **{"every": 5, **options})


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 13), min_size=1, max_size=6))
def test_pixels_against_a_loop(counts: list[int]) -> None:
    env = make()
    seen = 0
    for count in counts:
        batch = env.sample(count, torch.Generator().manual_seed(seen))
        plain = env.images.sample(count, torch.Generator().manual_seed(seen))
        assert torch.equal(batch.targets, plain.targets)
        for row in range(count):
            places = env.permutation((seen + row) // 5).tolist()
            assert batch.inputs[0, row].tolist() == [float(plain.inputs[0, row, place]) for place in places]
        env.move_on(count)
        seen += count
        assert env.task_number == seen // 5


def test_tasks_have_permutations_of_their_own() -> None:
    env = make()
    every = [env.permutation(number).tolist() for number in range(5)]
    assert all(sorted(places) == list(range(144)) for places in every)
    assert len({tuple(places) for places in every}) == 5
    assert [make().permutation(number).tolist() for number in (3, 0)] == [every[3], every[0]]
    assert make(task_seed=1).permutation(0).tolist() != every[0]
    assert len(env._known) == 2


def test_it_is_judged_on_its_current_task() -> None:
    env = make()
    env.move_on(12)
    (variant,) = env.sets("validation").values()
    (batch,) = variant.batches(26)
    (plain,) = env.images.batches(26)
    assert torch.equal(batch.inputs, plain.inputs[..., env.permutation(2)])
    state = env.state_dict()
    variant.sample(100, torch.Generator())
    variant.move_on(100)
    assert env.state_dict() == state == {"seen": 12}
    assert (variant.task_number, list(env.classes)[:2], env.error_metric) == (2, ["A", "B"], "error")
    again = make()
    again.load_state_dict(state)
    draws = [one.sample(9, torch.Generator().manual_seed(0)).inputs for one in (env, again)]
    assert torch.equal(*draws)


def test_what_has_no_images_is_refused() -> None:
    with pytest.raises(ValueError, match="images: got a CopyEnv; allowed is an env of labelled images"):
        PermutedImagesEnv(images="copy")
