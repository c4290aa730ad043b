"""N-parity and N-delayed match to sample, answered bit by bit."""

from __future__ import annotations

import math

import pytest
import torch

from papertape.envs import NDelayedMatchToSampleEnv, NParityEnv, RecentBitsEnv
from papertape.envs.recent_bits import NOT_ASKED

TASKS = {NParityEnv: lambda bits: sum(bits) % 2, NDelayedMatchToSampleEnv: lambda bits: int(bits[0] == bits[-1])}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("lengths", ["batch", "sequence"])
@pytest.mark.parametrize("answers", ["last", "each"])
@pytest.mark.parametrize("heads", [None, 1, 3])
def test_answers_against_a_loop(task: type[RecentBitsEnv], lengths: str, answers: str, heads: int | None) -> None:
    env = task(min_n=3, max_n=7, heads=heads, answers=answers, lengths=lengths)
    names = [int(name) for name in env.output_channels()[0].labels]
    assert sorted(names) == list(range({None: 3, 1: 7, 3: 5}[heads], 8)) and env.output_size == len(names)
    inputs, targets, mask = env.sample(50, generator())
    seen = set()
    for b in range(50):
        asked = mask[:, b].nonzero().flatten().tolist()
        length = asked[-1] + 1
        seen.add(length)
        assert 9 <= length <= 29
        assert asked == ([length - 1] if answers == "last" else list(range(6, length)))
        bits = [int(bit) for bit in inputs[:, b, 0].tolist()]
        assert not any(bits[length:])
        for step in asked:
            wanted = [TASKS[task](bits[step - n + 1 : step + 1]) for n in names]
            assert targets[step, b].tolist() == wanted
    assert (targets[mask == 0] == 0).all()
    assert (len(seen) == 1) == (lengths == "batch")


def test_lengths_and_bits_are_drawn_evenly() -> None:
    env = NParityEnv(max_n=4, lengths="sequence")
    inputs, _, mask = env.sample(6000, generator())
    shares = torch.bincount(mask.argmax(0) + 1, minlength=18) / 6000
    torch.testing.assert_close(shares[6:18], torch.full((12,), 1 / 12), atol=0.015, rtol=0)
    assert shares[:6].sum() == 0 and len(shares) == 18
    assert abs(float(inputs[:6].mean()) - 0.5) < 0.01
    assert not NParityEnv(chance=0.0).sample(3, generator()).inputs.any()
    share_of_ones = NParityEnv(chance=None, max_n=30).sample(2000, generator()).inputs.mean((0, 2))
    assert abs(float(share_of_ones.mean()) - 0.5) < 0.03 and float(share_of_ones.std()) > 0.25


@pytest.mark.parametrize(("heads", "asked"), [(None, [2, 3, 4]), (1, [4]), (2, [3, 4])])
def test_a_growing_curriculum_asks_the_heads_that_it_has_come_to(heads: int | None, asked: list[int]) -> None:
    env = NParityEnv(max_n=6, heads=heads, curriculum={"type": "growing", "start": 2, "threshold": 0.02})
    assert env.advance(0.0) and not env.advance(0.02) and env.advance(0.01)
    lesson = env.lesson()
    assert isinstance(lesson, NParityEnv) and lesson.output_size == env.output_size
    for task, named in ((env, asked), (lesson, [4])):
        inputs, targets, mask = task.sample(8, generator())
        assert len(inputs) <= 17
        for b in range(8):
            (step,) = mask[:, b].nonzero().flatten().tolist()
            bits = inputs[: step + 1, b, 0].tolist()
            wanted = [NOT_ASKED] * env.output_size
            for n in named:
                wanted[(n - 2) % env.output_size] = sum(bits[-n:]) % 2
            assert targets[step, b].tolist() == wanted


@pytest.mark.parametrize("task", TASKS)
def test_the_curriculum_waits_for_the_newest_head_however_many_are_right(task: type[RecentBitsEnv]) -> None:
    env = task(max_n=50, curriculum={"type": "growing", "start": 42, "threshold": 0.02})
    lesson = env.lesson()
    assert lesson is not None
    batch = lesson.sample(500, generator())
    outputs = torch.where(batch.targets > 0, 9.0, -9.0)
    outputs[..., 40] = torch.randn(outputs.shape[:2], generator=generator())
    assert not env.advance(lesson.metrics(outputs, batch)["error"])
    outputs[..., 40] = torch.where(batch.targets[..., 40] > 0, 9.0, -9.0)
    assert env.advance(lesson.metrics(outputs, batch)["error"])


def test_loss_and_metrics_against_a_loop() -> None:
    env = NParityEnv(max_n=5, curriculum={"type": "growing", "start": 3}, lengths="sequence", answers="each")
    batch = env.sample(6, generator())
    outputs = torch.randn(batch.targets.shape, generator=generator())
    lost, right, asked = 0.0, [0] * 4, [0] * 4
    for t, b, head in torch.cartesian_prod(*(torch.arange(size) for size in outputs.shape)).tolist():
        target = float(batch.targets[t, b, head])
        if batch.mask[t, b] and target >= 0:
            chance = 1 / (1 + math.exp(-float(outputs[t, b, head])))
            lost -= math.log(chance if target else 1 - chance)
            right[head] += (chance > 0.5) == (target == 1)
            asked[head] += 1
    assert asked[:2] == [int(batch.mask.sum())] * 2 and asked[2:] == [0, 0]
    metrics = env.metrics(outputs, batch)
    assert metrics["loss"] == pytest.approx(lost / sum(asked), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(sum(right) / sum(asked))
    assert metrics["error"] == pytest.approx(1 - sum(right) / sum(asked))
    assert {name: value for name, value in metrics.items() if "/" in name} == pytest.approx(
        {f"accuracy/{n}": right[n - 2] / asked[n - 2] for n in (2, 3)}
    )
    assert float(env.loss(outputs, batch)) == pytest.approx(lost / 6, rel=1e-5)
    each = env.changed(loss_per="bit")
    assert float(each.loss(outputs, batch)) == pytest.approx(lost / sum(asked), rel=1e-5)
    assert float(env.right(outputs, batch).sum()) == pytest.approx(sum(right) / 2)


def test_lessons_ask_what_earlier_ones_asked_now_and_then() -> None:
    lessons = [{"n": [2, 2]}, {"n": [2, 5]}]
    env = NParityEnv(
        max_n=5, lengths="sequence", curriculum={"type": "lessons", "lessons": lessons, "mix": 0.5, "threshold": 1}
    )
    env.advance(0.0)
    batch = env.sample(400, generator())
    asked = (batch.targets[batch.mask > 0] != NOT_ASKED).sum(-1)
    assert set(asked.tolist()) == {1, 4}
    assert abs(float((asked == 1).float().mean()) - 0.25) < 0.06


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_n": 1}, "min_n"),
        ({"min_n": 9, "max_n": 8}, "min_n: got 9; allowed is at most max_n, which is 8"),
        ({"heads": 0}, "heads"),
        ({"chance": 1.5}, "chance"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        NParityEnv(**options)
