"""What every generated task has in common."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from papertape.core.env import Batch, Env
from papertape.envs import (
    AssociativeRecallEnv,
    CopyEnv,
    DynamicNGramsEnv,
    PrioritySortEnv,
    RepeatCopyEnv,
)
from papertape.envs.sequence import SequenceEnv, place

SMALL = [
    (CopyEnv, {"width": 3, "max_length": 5}),
    (RepeatCopyEnv, {"width": 3, "max_length": 3, "max_repeats": 4}),
    (AssociativeRecallEnv, {"width": 3, "max_items": 4}),
    (PrioritySortEnv, {"width": 3, "min_items": 3, "max_items": 8, "highest": 5}),
    (DynamicNGramsEnv, {"order": 3, "min_length": 5, "max_length": 12}),
]


def make(env_class: type[SequenceEnv], **options: object) -> SequenceEnv:
    return env_class(**options)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("lengths", ["batch", "sequence"])
@pytest.mark.parametrize(("env_class", "options"), SMALL)
def test_shapes_and_values(env_class: type[SequenceEnv], options: dict, lengths: str) -> None:
    env = make(env_class, **options, lengths=lengths)
    for batch_size in (1, 7):
        inputs, targets, mask = env.sample(batch_size, generator())
        length = inputs.shape[0]
        assert inputs.shape == (length, batch_size, env.input_size)
        assert targets.shape == (length, batch_size, env.output_size)
        assert mask.shape == (length, batch_size)
        assert {inputs.dtype, targets.dtype, mask.dtype} == {torch.float32}
        assert set(targets.unique().tolist()) <= {0.0, 1.0}
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        assert (mask.sum(0) > 0).all()
        assert mask[-1].any(), "no step is padding in every sequence"
        assert (targets[mask == 0] == 0).all()


@pytest.mark.parametrize(("env_class", "options"), SMALL)
def test_same_seed_same_batch_and_no_other_randomness(env_class: type[SequenceEnv], options: dict) -> None:
    env = make(env_class, **options, lengths="sequence")
    first = env.sample(6, generator(3))
    state = torch.get_rng_state()
    second = env.sample(6, generator(3))
    assert torch.equal(torch.get_rng_state(), state)
    other = env.sample(6, generator(4))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert first.inputs.shape != other.inputs.shape or not torch.equal(first.inputs, other.inputs)


@pytest.mark.parametrize("loss", ["bit", "sequence"])
@pytest.mark.parametrize(("env_class", "options"), SMALL)
def test_padding_changes_nothing(env_class: type[SequenceEnv], options: dict, loss: str) -> None:
    env = make(env_class, **options, lengths="sequence", loss_per=loss)
    batch = env.sample(4, generator())
    outputs = torch.randn(batch.targets.shape, generator=generator())
    noise = torch.randn(3, 4, env.output_size, generator=generator())
    padded = Batch(*(functional.pad(part, (0, 0) * (part.dim() - 1) + (0, 3)) for part in batch))
    answers = torch.where(batch.mask.unsqueeze(-1) > 0, outputs, -outputs)
    torch.testing.assert_close(env.loss(outputs, batch), env.loss(torch.cat([answers, noise]), padded))
    assert env.metrics(outputs, batch) == pytest.approx(env.metrics(torch.cat([answers, noise]), padded), abs=1e-5)


@pytest.mark.parametrize("lengths", ["batch", "sequence"])
@pytest.mark.parametrize(("env_class", "options"), SMALL)
def test_draws_cover_the_range_evenly(env_class: type[SequenceEnv], options: dict, lengths: str) -> None:
    env = make(env_class, **options, lengths=lengths)
    random = generator()
    drawn = [env.draw(20, random) for _ in range(100)]
    for name, (low, high) in env.ranges(env).items():
        values = torch.stack([draw[name] for draw in drawn])
        if lengths == "batch":
            assert (values == values[:, :1]).all()
            values = values[:, 0]
        else:
            assert (values != values[:, :1]).any()
        shares = torch.bincount(values.flatten(), minlength=high + 1) / values.numel()
        assert shares[:low].sum() == 0 and shares.shape[0] == high + 1
        expected = torch.full((high - low + 1,), 1 / (high - low + 1))
        torch.testing.assert_close(shares[low:], expected, atol=0.15 if lengths == "batch" else 0.05, rtol=0)


@pytest.mark.parametrize(("env_class", "options"), SMALL)
def test_metrics_against_a_loop(env_class: type[SequenceEnv], options: dict) -> None:
    env = make(env_class, **options, lengths="sequence", loss_per="bit")
    batch = env.sample(5, generator())
    outputs = torch.randn(batch.targets.shape, generator=generator())
    loss, counted, wrong = 0.0, 0, 0
    for t, b, o in torch.cartesian_prod(*(torch.arange(size) for size in outputs.shape)).tolist():
        if batch.mask[t, b]:
            chance = torch.sigmoid(outputs[t, b, o].double())
            loss -= float(torch.log(chance if batch.targets[t, b, o] == 1 else 1 - chance))
            counted += 1
            wrong += int((chance > 0.5) != (batch.targets[t, b, o] == 1))
    metrics = Env.metrics(env, outputs, batch)
    assert metrics["loss"] == pytest.approx(loss / counted, rel=1e-5)
    assert float(env.loss(outputs, batch)) == pytest.approx(loss / counted, rel=1e-5)
    by_sequence = make(env_class, **options, lengths="sequence", loss_per="sequence")
    assert float(by_sequence.loss(outputs, batch)) == pytest.approx(loss / 5, rel=1e-5)
    if env_class is not DynamicNGramsEnv:
        assert metrics["bits_wrong"] == pytest.approx(wrong / 5)


def test_right_answers_have_no_bits_wrong() -> None:
    for env_class, options in SMALL[:4]:
        env = make(env_class, **options)
        batch = env.sample(3, generator())
        assert env.metrics(batch.targets * 2 - 1, batch)[env.error_metric] == 0


@pytest.mark.parametrize(("env_class", "options"), SMALL)
def test_sets_stay_while_the_curriculum_moves(env_class: type[SequenceEnv], options: dict) -> None:
    env = make(env_class, **options, curriculum={"type": "growing", "start": 3})
    before = env.sets("validation")
    while env.advance(0.0):
        pass
    after = env.sets("validation")
    assert list(before) == list(after) and len(before) > 1
    for name, variant in after.items():
        assert (variant.input_size, variant.output_size) == (env.input_size, env.output_size)
        assert not variant.advance(0.0)
        samples = [sets[name].sample(2, generator()) for sets in (before, after)]
        assert all(torch.equal(a, b) for a, b in zip(*samples, strict=True))
    first = next(iter(after.values()))
    assert isinstance(first, SequenceEnv) and first.curriculum.ranges == env.ranges(env)


@pytest.mark.parametrize(
    ("env_class", "options", "names"),
    [
        (CopyEnv, {}, ["length 1-20", "length 20", "length 40", "length 80", "length 120"]),
        (CopyEnv, {"min_length": 5, "max_length": 5, "test_lengths": []}, ["length 5"]),
        (
            RepeatCopyEnv,
            {},
            ["length 1-10, repeats 1-10", "length 20, repeats 10", "length 10, repeats 20"],
        ),
        (RepeatCopyEnv, {"test_sizes": [[4, 3]]}, ["length 1-10, repeats 1-10", "length 4, repeats 3"]),
        (AssociativeRecallEnv, {}, ["items 2-6", "items 6", "items 10", "items 12", "items 15", "items 20"]),
        (DynamicNGramsEnv, {}, ["length 200", "length 400"]),
        (PrioritySortEnv, {}, ["items 20", "items 30", "items 40"]),
    ],
)
def test_names_of_sets(env_class: type[SequenceEnv], options: dict, names: list[str]) -> None:
    for stream in ("validation", "test"):
        assert list(make(env_class, **options).sets(stream)) == names


@pytest.mark.parametrize(("env_class", "options"), SMALL)
def test_a_lesson_is_the_current_level_alone(env_class: type[SequenceEnv], options: dict) -> None:
    env = make(env_class, **options, curriculum={"type": "growing", "start": 3})
    while (lesson := env.lesson()) is not None:
        assert isinstance(lesson, SequenceEnv) and lesson.lengths == "sequence"
        assert lesson.ranges(lesson) == env.curriculum.levels[env.curriculum.level]
        assert lesson.lesson() is None
        assert env.advance(0.0)
    assert not env.advance(0.0)
    assert make(env_class, **options).lesson() is None


def test_sets_have_many_lengths_where_training_has_one_in_a_batch() -> None:
    env = make(CopyEnv, max_length=20)
    for task, least, most in ((env, 1, 1), (env.sets("validation")["length 1-20"], 12, 20)):
        lengths = task.sample(64, generator()).mask.sum(0)  # type: ignore[union-attr]
        assert least <= len(lengths.unique()) <= most


def test_curriculum_is_part_of_the_state() -> None:
    options = {"max_length": 9, "curriculum": {"type": "growing", "start": 2, "step": 3, "threshold": 0.5}}
    env = make(CopyEnv, **options)
    assert not env.advance(0.5) and env.advance(0.4) and env.advance(0.0)
    resumed = make(CopyEnv, **options)
    resumed.load_state_dict(env.state_dict())
    assert torch.equal(resumed.sample(4, generator()).inputs, env.sample(4, generator()).inputs)
    assert resumed.state_dict() == env.state_dict() == {"level": 2}
    assert max(len(resumed.sample(1, generator(seed)).inputs) for seed in range(50)) == 2 * 8 + 2


def test_float64_follows_the_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        for env_class, options in SMALL:
            assert {part.dtype for part in make(env_class, **options).sample(2, generator())} == {torch.float64}
    finally:
        torch.set_default_dtype(torch.float32)


def test_place_against_a_loop() -> None:
    words = torch.arange(1.0, 13).reshape(3, 2, 2)
    index = torch.tensor([[0, 7], [2, 1], [-1, 0]])
    where = torch.tensor([[True, False], [True, True], [False, True]])
    placed = place(words, index, where)
    for t in range(3):
        for b in range(2):
            expected = words[index[t, b], b] if where[t, b] else torch.zeros(2)
            assert torch.equal(placed[t, b], expected)


@pytest.mark.parametrize("env_class", [env_class for env_class, _ in SMALL])
def test_batch_size_below_one_is_refused(env_class: type[SequenceEnv]) -> None:
    with pytest.raises(ValueError, match="batch_size: got 0; allowed is a whole number of at least 1"):
        make(env_class).sample(0, generator())


@pytest.mark.parametrize(
    ("env_class", "options", "message"),
    [
        (CopyEnv, {"width": 0}, "width: got 0; allowed: greater than or equal to 1"),
        (CopyEnv, {"width": 8.0}, "width: got 8.0; allowed: a valid integer"),
        (CopyEnv, {"min_length": 0}, "min_length"),
        (CopyEnv, {"min_length": 5, "max_length": 4}, "min_length: got 5; allowed is at most max_length, which is 4"),
        (CopyEnv, {"max_length": "20"}, "max_length: got '20'; allowed: a valid integer"),
        (CopyEnv, {"test_lengths": [0]}, r"test_lengths\.0"),
        (CopyEnv, {"test_lengths": 20}, "test_lengths: got 20; allowed: a valid list"),
        (CopyEnv, {"lengths": "row"}, "lengths: got 'row'; allowed: 'batch' or 'sequence'"),
        (CopyEnv, {"loss_per": "word"}, "loss_per: got 'word'; allowed: 'sequence' or 'bit'"),
        (CopyEnv, {"curriculum": {"type": "steep"}}, "curriculum"),
        (RepeatCopyEnv, {"min_repeats": 3, "max_repeats": 2}, "min_repeats: got 3; allowed is at most max_repeats"),
        (RepeatCopyEnv, {"repeat_scale": 0.0}, "repeat_scale"),
        (RepeatCopyEnv, {"test_sizes": [[1]]}, r"test_sizes\.0"),
        (RepeatCopyEnv, {"test_sizes": [[1, 0]]}, r"test_sizes\.0\.1"),
        (AssociativeRecallEnv, {"min_items": 1}, "min_items"),
        (AssociativeRecallEnv, {"test_items": [1]}, r"test_items\.0"),
        (AssociativeRecallEnv, {"words_per_item": 0}, "words_per_item"),
        (DynamicNGramsEnv, {"order": 1}, "order"),
        (DynamicNGramsEnv, {"order": 11}, "order"),
        (DynamicNGramsEnv, {"min_length": 201}, "min_length: got 201; allowed is at most max_length, which is 200"),
        (PrioritySortEnv, {"highest": 0}, "highest"),
        (PrioritySortEnv, {"min_items": 21}, "min_items: got 21; allowed is at most max_items, which is 20"),
    ],
)
def test_wrong_options_are_refused(env_class: type[SequenceEnv], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        env_class(**options)


def test_metrics_take_outputs_that_carry_a_gradient(recwarn: pytest.WarningsRecorder) -> None:
    env = make(CopyEnv)
    batch = env.sample(2, generator())
    assert env.metrics(torch.zeros_like(batch.targets, requires_grad=True), batch)["bits_wrong"] > 0
    assert not recwarn.list
