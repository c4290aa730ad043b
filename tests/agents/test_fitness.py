import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from papertape import envs
from papertape.agents.fitness import AccuracyFitness, AnyFitness, LossFitness, RewardFitness, fitness
from papertape.core.env import Batch

MEMBERS, SIZE = 5, 6
NAMES = ("Copy", "RepeatCopy", "AssociativeRecall", "DynamicNGrams", "PrioritySort", "Letters")


def answered(name):
    """An env, a batch, and outputs ``[T, P, B, O]`` of some members."""
    options = getattr(envs, f"{name}Options")
    env = getattr(envs, f"{name}Env")(options(image_size=16, font_sizes=[10]) if name == "Letters" else options())
    batch = env.sample(SIZE, torch.Generator().manual_seed(1))
    shape = (batch.inputs.shape[0], MEMBERS, SIZE, env.output_size)
    return env, batch, 2 * torch.randn(shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", NAMES)
def test_each_fitness_against_a_loop_over_members(name):
    env, batch, outputs = answered(name)
    generator = torch.Generator().manual_seed(3)
    for options in (LossFitness(), AccuracyFitness(), RewardFitness(), RewardFitness(prediction="expected")):
        found = fitness(options, env, outputs, batch, generator)
        assert found.shape == (MEMBERS, SIZE) and found.dtype == torch.float64
        for member in range(MEMBERS):
            own = outputs[:, member]
            if options.type == "loss":
                expected = -env.loss(own, batch)
            elif options.type == "accuracy":
                expected = env.right(own, batch).sum() / batch.mask.sum()
            else:
                share = (env.right(own, batch) == 1) * 1.0
                if options.prediction == "expected":
                    share = torch.exp(-env.losses(own, batch))
                expected = ((11.5 * share - 1.5) * batch.mask).sum()
            torch.testing.assert_close(found[member].sum(), expected.double(), rtol=1e-5, atol=1e-6)


def test_sampled_answers_are_right_as_often_as_expected():
    env, batch, outputs = answered("Letters")
    generator = torch.Generator().manual_seed(3)
    draws = torch.stack(
        [fitness(RewardFitness(prediction="sampled"), env, 3 * outputs, batch, generator) for _ in range(3000)]
    )
    assert set(draws.unique().tolist()) == {-1.5, 10.0}
    expected = fitness(RewardFitness(prediction="expected"), env, 3 * outputs, batch, generator)
    torch.testing.assert_close(draws.mean(0), expected, atol=0.8, rtol=0)


@pytest.mark.parametrize("prediction", ["sampled", "expected"])
@pytest.mark.parametrize("kind", ["loss", "reward"])
def test_a_member_whose_outputs_are_no_numbers_has_no_finite_fitness(prediction, kind):
    env, batch, outputs = answered("Copy")
    outputs[3, 2] = float("nan")
    options = LossFitness() if kind == "loss" else RewardFitness(prediction=prediction)
    told = fitness(options, env, outputs, batch, torch.Generator()).sum(1)
    assert told.isfinite().tolist() == [True, True, False, True, True]


def test_padding_earns_nothing():
    env, batch, outputs = answered("Copy")
    longer = Batch(*(torch.cat([part, torch.zeros_like(part[:3])]) for part in batch))
    more = torch.cat([outputs, torch.randn(3, MEMBERS, SIZE, env.output_size)])
    for options in (LossFitness(), AccuracyFitness(), RewardFitness(), RewardFitness(prediction="expected")):
        torch.testing.assert_close(
            fitness(options, env, more, longer, torch.Generator()),
            fitness(options, env, outputs, batch, torch.Generator()),
        )


@pytest.mark.parametrize(
    "values", [{"type": "speed"}, {}, {"type": "reward", "prediction": "argmax"}, {"type": "loss", "right": 1.0}]
)
def test_wrong_options_are_refused(values):
    with pytest.raises(ValidationError):
        TypeAdapter(AnyFitness).validate_python(values)


def test_an_exponent_counts_sequences_by_a_power_of_their_share():
    env = envs.CopyEnv(envs.CopyOptions(lengths="sequence"))
    batch = env.sample(SIZE, torch.Generator().manual_seed(1))
    outputs = torch.randn(batch.inputs.shape[0], MEMBERS, SIZE, 8, generator=torch.Generator().manual_seed(2))
    found = fitness(AccuracyFitness(exponent=3.0), env, outputs, batch, torch.Generator())
    for member in range(MEMBERS):
        for row in range(SIZE):
            asked = batch.mask[:, row] > 0
            right = (outputs[asked, member, row] > 0) == (batch.targets[asked, row] > 0.5)
            torch.testing.assert_close(found[member, row], right.double().mean() ** 3 / SIZE)


@pytest.mark.parametrize(
    "options",
    [LossFitness(), AccuracyFitness(), AccuracyFitness(exponent=2)]
    + [RewardFitness(prediction=kind) for kind in ("likeliest", "sampled", "expected")],
)
def test_an_answer_that_is_no_number_earns_none(options):
    env, batch, outputs = answered("Copy")
    counted = int(batch.mask[:, 2].argmax())
    outputs[counted, 1, 2, 0] = torch.nan
    found = fitness(options, env, outputs, batch, torch.Generator().manual_seed(3))
    spoilt = torch.zeros(found.shape, dtype=torch.bool)
    spoilt[1, 2] = True
    assert torch.equal(found.isnan(), spoilt)
