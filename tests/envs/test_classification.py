"""Loss, metrics and sampling of the tasks that ask for a class."""

from __future__ import annotations

import math

import pytest
import torch

from papertape.envs import LettersEnv
from papertape.envs.classification import LabelledImages, shifted


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def env() -> LettersEnv:
    return LettersEnv(image_size=16, font_sizes=[12], sampling="uniform")


@pytest.fixture
def images() -> LabelledImages:
    labels = torch.tensor([2, 0, 2, 2, 0, 2, 3, 3])
    images = torch.arange(8, dtype=torch.uint8).reshape(8, 1, 1).expand(8, 2, 3) * 10
    return LabelledImages(images, labels, num_classes=5)


def test_loss_and_metrics_against_a_loop(env: LettersEnv) -> None:
    batch = env.sample(40, generator())
    outputs = torch.randn(1, 40, 26, generator=generator())
    outputs[0, :20, :] += 4 * batch.targets[0, :20]
    loss, right, each = 0.0, 0, {}
    for b in range(40):
        scores = outputs[0, b].double().tolist()
        label = batch.targets[0, b].tolist().index(1.0)
        loss -= scores[label] - math.log(sum(map(math.exp, scores)))
        hit = scores.index(max(scores)) == label
        right += hit
        each.setdefault(env.classes[label], []).append(hit)
    metrics = env.metrics(outputs, batch)
    assert float(env.loss(outputs, batch)) == pytest.approx(loss / 40, rel=1e-5)
    assert metrics.pop("loss") == pytest.approx(loss / 40, rel=1e-5)
    assert metrics.pop("accuracy") == pytest.approx(right / 40)
    assert metrics.pop("error") == pytest.approx(1 - right / 40)
    assert 0 < right < 40
    assert metrics == pytest.approx({f"accuracy/{name}": sum(hits) / len(hits) for name, hits in each.items()})


def test_metrics_of_parts_add_up_to_those_of_the_whole(env: LettersEnv) -> None:
    whole = next(iter(env.batches(26)))
    outputs = torch.randn(1, 26, 26, generator=generator()) + 2 * whole.targets
    totals: dict[str, list[float]] = {}
    start = 0
    for part in env.batches(10):
        size = part.inputs.shape[1]
        for name, (total, count) in env.tallies(outputs[:, start : start + size], part).items():
            sums = totals.setdefault(name, [0.0, 0.0])
            sums[0] += float(total)
            sums[1] += float(count)
        start += size
    assert start == 26
    assert {name: total / count for name, (total, count) in totals.items()} == pytest.approx(
        env.metrics(outputs, whole), rel=1e-5
    )


def test_masked_images_count_for_nothing(env: LettersEnv) -> None:
    batch = env.sample(8, generator())
    outputs = torch.randn(1, 8, 26, generator=generator())
    first = batch._replace(mask=batch.mask * (torch.arange(8) < 5))
    short = type(batch)(*(part[:, :5] for part in batch))
    torch.testing.assert_close(env.loss(outputs, first), env.loss(outputs[:, :5], short))
    assert env.metrics(outputs, first) == pytest.approx(env.metrics(outputs[:, :5], short))


def test_right_maps_over_a_population(env: LettersEnv) -> None:
    batch = env.sample(6, generator())
    outputs = torch.randn(3, 1, 6, 26, generator=generator())
    mapped = torch.func.vmap(lambda member: env.right(member, batch))(outputs)
    assert torch.equal(mapped, torch.stack([env.right(member, batch) for member in outputs]))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 30])
def test_balanced_draws_as_many_of_each_class_that_is_there(images: LabelledImages, batch_size: int) -> None:
    random, met = generator(), set()
    for _ in range(100):
        index = images.draw(batch_size, "balanced", random)
        met |= set(index.tolist())
        counts = torch.bincount(images.labels[index], minlength=5)
        assert counts[[1, 4]].tolist() == [0, 0]
        present = counts[[0, 2, 3]]
        assert int(present.max() - present.min()) <= 1 and int(present.sum()) == batch_size
    assert met == set(range(8))


def test_uniform_draws_every_image_alike(images: LabelledImages) -> None:
    shares = torch.bincount(images.draw(8000, "uniform", generator()), minlength=8) / 8000
    torch.testing.assert_close(shares, torch.full((8,), 1 / 8), atol=0.015, rtol=0)


def test_batches_walk_through_every_image_in_order(images: LabelledImages) -> None:
    parts = list(images.batches(3))
    assert [part.inputs.shape for part in parts] == [(1, 3, 6), (1, 3, 6), (1, 2, 6)]
    inputs = torch.cat([part.inputs for part in parts], dim=1)
    torch.testing.assert_close(inputs[0], (torch.arange(8.0) * 10 / 255).unsqueeze(-1).expand(8, 6))
    targets = torch.cat([part.targets for part in parts], dim=1)
    assert torch.equal(targets[0].argmax(-1), images.labels)
    assert (targets.sum(-1) == 1).all() and all((part.mask == 1).all() for part in parts)


def test_batch_size_below_one_is_refused(env: LettersEnv) -> None:
    with pytest.raises(ValueError, match="batch_size: got 0"):
        env.sample(0, generator())


def test_shifted_against_a_loop() -> None:
    images = torch.randint(1, 256, (5, 4, 6), generator=generator(), dtype=torch.uint8)
    down, across = torch.tensor([0, 1, -2, 3, 4]), torch.tensor([0, -1, 5, 2, 0])
    moved = shifted(images, down, across)
    for b in range(5):
        expected = torch.zeros(4, 6, dtype=torch.uint8)
        for row in range(4):
            for column in range(6):
                to = (row + int(down[b]), column + int(across[b]))
                if 0 <= to[0] < 4 and 0 <= to[1] < 6:
                    expected[to] = images[b, row, column]
        assert torch.equal(moved[b], expected)
