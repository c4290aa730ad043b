import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from papertape import envs
from papertape.agents import EvolutionAgent
from papertape.agents.fitness import AccuracyFitness, AnyFitness, LossFitness, RewardFitness, earned
from papertape.circuits import FeedForwardCircuit
from papertape.core.env import Batch
from papertape.envs.chomsky import ParityCheckEnv

MEMBERS, SIZE = 5, 6
NAMES = ("Copy", "RepeatCopy", "AssociativeRecall", "DynamicNGrams", "PrioritySort", "Letters")


def answered(name):
    """An env, a batch, and outputs ``[T, P, B, O]`` of some members."""
    env = getattr(envs, f"{name}Env")(**({"image_size": 16, "font_sizes": [10]} if name == "Letters" else {}))
    batch = env.sample(SIZE, torch.Generator().manual_seed(1))
    shape = (batch.inputs.shape[0], MEMBERS, SIZE, env.output_size)
    return env, batch, 2 * torch.randn(shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", NAMES)
def test_each_fitness_against_a_loop_over_members(name):
    env, batch, outputs = answered(name)
    generator = torch.Generator().manual_seed(3)
    for fitness in (LossFitness(), AccuracyFitness(), RewardFitness(), RewardFitness(prediction="expected")):
        found = earned(fitness, env, outputs, batch, generator)
        assert found.shape == (MEMBERS, SIZE) and found.dtype == torch.float64
        for member in range(MEMBERS):
            own = outputs[:, member]
            if isinstance(fitness, LossFitness):
                expected = -env.loss(own, batch)
            elif isinstance(fitness, AccuracyFitness):
                expected = env.right(own, batch).sum() / batch.mask.sum()
            else:
                share = (env.right(own, batch) == 1) * 1.0
                if fitness.prediction == "expected":
                    share = torch.exp(-env.losses(own, batch))
                expected = ((11.5 * share - 1.5) * batch.mask).sum()
            torch.testing.assert_close(found[member].sum(), expected.double(), rtol=1e-5, atol=1e-6)


def test_sampled_answers_are_right_as_often_as_expected():
    env, batch, outputs = answered("Letters")
    generator = torch.Generator().manual_seed(3)
    draws = torch.stack(
        [earned(RewardFitness(prediction="sampled"), env, 3 * outputs, batch, generator) for _ in range(3000)]
    )
    assert set(draws.unique().tolist()) == {-1.5, 10.0}
    expected = earned(RewardFitness(prediction="expected"), env, 3 * outputs, batch, generator)
    torch.testing.assert_close(draws.mean(0), expected, atol=0.8, rtol=0)


@pytest.mark.parametrize("prediction", ["sampled", "expected"])
@pytest.mark.parametrize("kind", ["loss", "reward"])
def test_a_member_whose_outputs_are_no_numbers_has_no_finite_fitness(prediction, kind):
    env, batch, outputs = answered("Copy")
    outputs[3, 2] = float("nan")
    fitness = LossFitness() if kind == "loss" else RewardFitness(prediction=prediction)
    told = earned(fitness, env, outputs, batch, torch.Generator()).sum(1)
    assert told.isfinite().tolist() == [True, True, False, True, True]


def test_padding_earns_nothing():
    env, batch, outputs = answered("Copy")
    longer = Batch(*(torch.cat([part, torch.zeros_like(part[:3])]) for part in batch))
    more = torch.cat([outputs, torch.randn(3, MEMBERS, SIZE, env.output_size)])
    for fitness in (LossFitness(), AccuracyFitness(), RewardFitness(), RewardFitness(prediction="expected")):
        torch.testing.assert_close(
            earned(fitness, env, more, longer, torch.Generator()),
            earned(fitness, env, outputs, batch, torch.Generator()),
        )


@pytest.mark.parametrize(
    "values", [{"type": "speed"}, {}, {"type": "reward", "prediction": "argmax"}, {"type": "loss", "right": 1.0}]
)
def test_wrong_options_are_refused(values):
    with pytest.raises(ValidationError):
        TypeAdapter(AnyFitness).validate_python(values)


def test_an_exponent_counts_sequences_by_a_power_of_their_share():
    env = envs.CopyEnv(lengths="sequence")
    batch = env.sample(SIZE, torch.Generator().manual_seed(1))
    outputs = torch.randn(batch.inputs.shape[0], MEMBERS, SIZE, 8, generator=torch.Generator().manual_seed(2))
    found = earned(AccuracyFitness(exponent=3.0), env, outputs, batch, torch.Generator())
    for member in range(MEMBERS):
        for row in range(SIZE):
            asked = batch.mask[:, row] > 0
            right = (outputs[asked, member, row] > 0) == (batch.targets[asked, row] > 0.5)
            torch.testing.assert_close(found[member, row], right.double().mean() ** 3 / SIZE)


@pytest.mark.parametrize(
    "fitness",
    [LossFitness(), AccuracyFitness(), AccuracyFitness(exponent=2)]
    + [RewardFitness(prediction=kind) for kind in ("likeliest", "sampled", "expected")],
)
def test_an_answer_that_is_no_number_earns_none(fitness):
    env, batch, outputs = answered("Copy")
    counted = int(batch.mask[:, 2].argmax())
    outputs[counted, 1, 2, 0] = torch.nan
    found = earned(fitness, env, outputs, batch, torch.Generator().manual_seed(3))
    spoilt = torch.zeros(found.shape, dtype=torch.bool)
    spoilt[1, 2] = True
    assert torch.equal(found.isnan(), spoilt)


def sharpness(env, outputs, batch):
    """Fitness as anyone's function: of each sequence."""
    return -(outputs.abs() * batch.mask.unsqueeze(1).unsqueeze(-1)).sum((0, 3))


@pytest.mark.parametrize(
    "function", [sharpness, lambda env, outputs, batch: sharpness(env, outputs, batch).sum(1)], ids=["each", "whole"]
)
def test_a_function_is_a_fitness(function):
    env = envs.CopyEnv(width=2, max_length=2, test_lengths=[])
    torch.manual_seed(0)
    circuit = FeedForwardCircuit(env.input_size, env.output_size, hidden_sizes=[3])
    agent = EvolutionAgent(env, circuit, fitness=function, strategy={"type": "snes", "population": 9}, batch_size=5)
    drawn = agent.scoring.draw(5, torch.Generator().manual_seed(1))
    stacks = agent.strategy.ask_stacks()
    scores = agent.score(stacks, drawn)
    expected = sharpness(env, agent.population.outputs(stacks, drawn.batch.inputs), drawn.batch).double().sum(1)
    torch.testing.assert_close(scores.sum(1), expected, rtol=1e-6, atol=1e-6)
    first = agent.train_step()["fitness_best"]
    for _ in range(60):
        last = agent.train_step()["fitness_best"]
    assert last > first


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda env, outputs, batch: outputs, r"<lambda> gives shape \[6, 2, 3, 2\] for 2 members and 3 sequences"),
        (lambda env, outputs, batch: 1.0, r"gives a float .*expected a tensor \[2\] or \[2, 3\]"),
        (lambda env, outputs, batch: outputs.sum((0, 3)) * 1j, r"gives torch.complex64 .*expected a tensor \[2\] or"),
    ],
)
def test_a_function_that_gives_something_else_is_named(function, message):
    env = envs.CopyEnv(width=2, min_length=2, max_length=2, test_lengths=[])
    circuit = FeedForwardCircuit(env.input_size, env.output_size, hidden_sizes=[3])
    with pytest.raises(ValueError, match=message):
        EvolutionAgent(env, circuit, fitness=function, strategy="snes")


def test_a_function_earns_nothing_for_an_answer_that_is_no_number():
    env, batch, outputs = answered("Copy")
    outputs[0, 1, 2, 0] = torch.nan
    each = earned(lambda env, outputs, batch: outputs.nan_to_num().sum((0, 3)), env, outputs, batch)
    assert each.isnan().nonzero().tolist() == [[1, 2]]
    whole = earned(lambda env, outputs, batch: outputs.nan_to_num().sum((0, 2, 3)), env, outputs, batch)
    assert whole.shape == (MEMBERS, 1) and whole.isnan().nonzero().tolist() == [[1, 0]]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_probabilities_are_those_of_the_outputs_whatever_smooths_the_loss(smoothing):
    env = ParityCheckEnv(label_smoothing=smoothing)
    batch = env.sample(SIZE, torch.Generator().manual_seed(1))
    sure = 4 * torch.nn.functional.one_hot(batch.targets, env.output_size).float().unsqueeze(1)
    found = earned(RewardFitness(right=1.0, wrong=0.0, prediction="expected"), env, sure, batch)
    right = math.exp(4) / (math.exp(4) + env.output_size - 1)
    torch.testing.assert_close(found[0], right * batch.mask.sum(0).double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prediction", ["expected", "sampled"])
def test_answers_without_probabilities_are_refused(prediction):
    env = envs.ArithmeticEnv()
    circuit = FeedForwardCircuit(env.input_size, env.output_size)
    EvolutionAgent(env, circuit, fitness=RewardFitness())
    with pytest.raises(ValueError, match=rf"agent.fitness.prediction: got '{prediction}'; .* allowed is 'likeliest'"):
        EvolutionAgent(env, circuit, fitness=RewardFitness(prediction=prediction))
