"""Tokens: what a circuit makes of whole numbers, and tasks of tokens."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import pack_sequence

import papertape
from papertape.agents import BackpropAgent, EvolutionAgent
from papertape.agents.evaluation import evaluate
from papertape.circuits import ModuleCircuit
from papertape.core.env import Batch
from papertape.core.token_env import TokenEnv
from papertape.core.trace_field import Channels
from papertape.utils.plots import episode_figure, episode_from, plot_trace, wrong_bits

SIZES: dict[str, Any] = {"hidden_size": 6, "memory_size": 5, "word_size": 3}
CIRCUITS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ntm": (papertape.NTM, SIZES),
    "dnc gru": (papertape.DNC, {**SIZES, "controller": "gru", "num_reads": 1}),
    "sam": (papertape.SAM, {**SIZES, "slots_per_read": 2}),
    "tape": (papertape.Tape, {"word_size": 3, "memory_size": 9}),
    "feedforward": (papertape.FeedForwardCircuit, {"hidden_sizes": [5]}),
    "lstm": (papertape.LSTM, {"hidden_size": 6}),
    "tape-rnn": (papertape.TapeRNN, SIZES),
    "transformer": (papertape.Transformer, {"model_size": 8}),
}
TOKENS, OUTPUTS = 5, 2
each_circuit = pytest.mark.parametrize("name", CIRCUITS)
each_embedding = pytest.mark.parametrize("embedding_size", [None, 4])


def make(name: str, embedding_size: int | None, **more: Any) -> papertape.Circuit:
    torch.manual_seed(1)
    cls, options = CIRCUITS[name]
    circuit: papertape.Circuit = cls(TOKENS, OUTPUTS, embedding_size=embedding_size, **options, **more)
    return circuit.double()


def tokens(*shape: int) -> Tensor:
    return torch.randint(TOKENS, shape, generator=torch.Generator().manual_seed(2))


def vectors_of(circuit: papertape.Circuit, given: Tensor) -> Tensor:
    """What a step is to see, token by token."""
    table = torch.eye(TOKENS, dtype=torch.float64) if circuit.embedding is None else circuit.embedding.weight
    rows = [torch.stack([table[int(token)] for token in step]) for step in given]
    return torch.stack(rows)


@each_embedding
@each_circuit
def test_every_way_in_sees_the_vectors_of_the_tokens(name, embedding_size):
    circuit, given = make(name, embedding_size), tokens(7, 3)
    expected, last = circuit.run(vectors_of(circuit, given), circuit.initial_state(3))
    for kind in (torch.int64, torch.int32, torch.uint8, torch.uint16, torch.uint32, torch.uint64):
        outputs, after = circuit(given.to(kind))
        torch.testing.assert_close(outputs, expected)
        papertape.map_state(torch.testing.assert_close, after, last)
        torch.testing.assert_close(circuit.step(given[0].to(kind))[0], expected[0])
        lengths = torch.tensor([7, 4, 2]).to(kind)
        torch.testing.assert_close(circuit(given.to(kind), lengths=lengths)[0][:4, 1], expected[:4, 1])
        steps = torch.tensor([[6, 0, 3]]).to(kind)
        torch.testing.assert_close(circuit(given.to(kind), at=steps)[0], expected[[[6, 0, 3]], [[0, 1, 2]]])
    state, steps = None, []
    for x in given:
        y, state = circuit.step(x, state)
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps), expected)
    torch.testing.assert_close(circuit(given, trace=True)[0], expected)
    torch.testing.assert_close(circuit(given[:, 1])[0], expected[:, 1])
    short = circuit(given, lengths=[7, 4, 2])[0]
    torch.testing.assert_close(short[:4, 1], expected[:4, 1])
    assert not short[4:, 1].any()
    packed, _ = circuit(pack_sequence([given[:, 0], given[:4, 1]]))
    torch.testing.assert_close(packed.data[:8], short[:4, :2].flatten(0, 1))
    first = make(name, embedding_size, batch_first=True)
    torch.testing.assert_close(first(given.T)[0], expected.transpose(0, 1))


@each_embedding
@pytest.mark.parametrize("padding", [-1, -100, TOKENS])
def test_padding_is_no_token(padding, embedding_size):
    """It is neither refused nor learned from; within a sequence, and without lengths, the check stays."""
    circuit, ends = make("lstm", embedding_size), [7, 4, 1]
    given = tokens(7, 3)
    padded = given.clone()
    padded[4:, 1] = padded[1:, 2] = padding
    expected, last = circuit(given, lengths=ends)
    outputs, after = circuit(padded, lengths=ends)
    assert torch.equal(outputs, expected)
    papertape.map_state(torch.testing.assert_close, after, last)
    assert torch.equal(circuit(padded[:, 1], lengths=[4])[0], circuit(given[:, 1], lengths=[4])[0])
    first = make("lstm", embedding_size, batch_first=True)
    assert torch.equal(first(padded.T, lengths=torch.tensor(ends))[0], expected.transpose(0, 1))
    if circuit.embedding is not None:
        weight = circuit.embedding.weight
        (found,) = torch.autograd.grad(outputs.square().sum(), weight)
        alone = sum(circuit(given[:end, row])[0].square().sum() for row, end in enumerate(ends))
        torch.testing.assert_close(found, torch.autograd.grad(alone, weight)[0])
    for refused, lengths in ((padded, None), (padded, [7, 5, 1]), (padded.T, [7, 4, 1])):
        with pytest.raises(ValueError, match=rf"got the token {padding}; allowed: 0 to 4|lengths: got \[7, 4, 1\]"):
            circuit(refused, lengths=lengths)
    assert int(padded[6, 1]) == padding


@each_embedding
@each_circuit
def test_members_see_tokens_each_in_its_own_way(name, embedding_size):
    circuit, given = make(name, embedding_size), tokens(6, 2)
    members = [{n: p.detach() * scale for n, p in circuit.named_parameters()} for scale in (1.0, 0.5, -2.0)]
    stacks = {n: torch.stack([member[n] for member in members]) for n in members[0]}
    answers = circuit.run_population(stacks, given)
    with torch.no_grad():
        for number, member in enumerate(members):
            torch.testing.assert_close(answers[:, number], functional_call(circuit, member, (given,))[0])


@each_embedding
def test_gradients_reach_the_embedding_also_mapped_and_recomputed(embedding_size):
    circuit, given = make("ntm", embedding_size), tokens(6, 2)
    own = dict(circuit.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(circuit, parameters, (given,))[0].square().sum()

    loss(own).backward()
    gradients = grad(loss)({n: p.detach() for n, p in own.items()})
    twice = vmap(grad(loss))({n: torch.stack([p.detach(), p.detach()]) for n, p in own.items()})
    again = make("ntm", embedding_size, recompute_every=2)
    again(given)[0].square().sum().backward()
    for n, parameter in own.items():
        torch.testing.assert_close(gradients[n], parameter.grad)
        torch.testing.assert_close(twice[n][1], parameter.grad)
        torch.testing.assert_close(dict(again.named_parameters())[n].grad, parameter.grad)
    if embedding_size:
        step = 1e-6
        weight = circuit.embedding.weight
        with torch.no_grad():
            weight[int(given[0, 0]), 1] += step
            higher = loss(own)
            weight[int(given[0, 0]), 1] -= 2 * step
            lower = loss(own)
        found = float(weight.grad[int(given[0, 0]), 1])
        assert math.isclose(float(higher - lower) / (2 * step), found, rel_tol=1e-5)


def test_sequences_of_embedded_tokens_are_run_by_kernels_where_they_can():
    circuit = make("ntm", 4)
    vectors = circuit.embed(tokens(6, 2))
    plain = papertape.NTM(4, OUTPUTS, **SIZES).double()
    plain(vectors.detach())
    circuit(tokens(6, 2))
    assert circuit.chosen_backend == plain.chosen_backend


@pytest.mark.parametrize(
    ("given", "embedding_size", "message"),
    [
        (tokens(3, 2) + 1, None, "inputs: got the token 5; allowed: 0 to 4"),
        (torch.tensor([[0, -1], [4, 2]]), 4, "inputs: got the token -1; allowed: 0 to 4"),
        (torch.rand(3, 2, 4), 4, r"got torch.float32 of shape \[3, 2, 4\]; expected tokens \[T, B\], .* from 0 to 4"),
        (torch.rand(3, 5), 4, r"got torch.float32 of shape \[3, 5\]; expected tokens \[T, B\]"),
        (tokens(3, 2, 5), 4, r"got shape \[3, 2, 5\]; expected tokens \[T, B\]"),
        (tokens(0, 2), 4, r"got shape \[0, 2\]; expected tokens"),
        (torch.ones(3, 2, dtype=torch.bool), None, r"got shape \[3, 2\]; expected \[T, 5\]"),
    ],
)
def test_what_are_no_tokens_is_refused_in_one_line(given, embedding_size, message):
    with pytest.raises(ValueError, match=f"^inputs: .*{message.removeprefix('inputs: ')}.*") as error:
        make("ntm", embedding_size)(given)
    assert "\n" not in str(error.value)


def test_whole_numbers_may_still_be_channels():
    given = tokens(3, 2, 5)
    circuit = make("ntm", None)
    torch.testing.assert_close(circuit(given)[0], circuit(given.double())[0])


def test_a_module_sees_vectors_and_needs_to_know_how_many_tokens():
    circuit = ModuleCircuit(TOKENS, 3, module=nn.LSTM(4, 3), embedding_size=4)
    assert circuit(tokens(6, 2))[0].shape == (6, 2, 3)
    with pytest.raises(ValueError, match="embedding_size: got 4; needs input_size"):
        ModuleCircuit(module=nn.LSTM(4, 3), embedding_size=4)


def test_an_embedding_is_saved_and_drawn_anew_with_the_circuit():
    circuit = make("ntm", 4)
    assert circuit.state_dict()["embedding.weight"].shape == (TOKENS, 4)
    before = circuit.embedding.weight.clone()
    circuit.reset_parameters()
    assert not torch.equal(circuit.embedding.weight, before)
    # Without one, the weights of a seed are what they were.
    assert not any("embedding" in n for n, _ in make("ntm", None).named_parameters())


# ---- tasks ----


class Last(TokenEnv):
    """Which of three letters came last."""

    length: int = Field(default=4, ge=1, description="letters of a question")
    broken: str = Field(default="", description="what is wrong with it")

    def setup(self) -> None:
        self.input_size, self.output_size = 3 + len(self.extra_names), 3

    def input_names(self) -> tuple[str, ...]:
        return ("a", "b", "c", *self.extra_names)

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        letters = torch.randint(3, (self.length, batch_size), generator=generator, device=self.device)
        batch = self.asked(letters, letters[-1:])
        if self.broken == "floats":
            return batch._replace(inputs=batch.inputs.float())
        return batch._replace(targets=batch.targets + 1) if self.broken == "range" else batch


def drawn(env: TokenEnv, count: int = 3) -> Batch:
    return env.sample(count, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("think_steps", [0, 2])
def test_a_question_then_time_to_think_then_the_answer(think_steps):
    env = Last(think_steps=think_steps)
    env.check()
    inputs, targets, mask = drawn(env)
    names = [[env.input_names()[token] for token in row] for row in inputs.T.tolist()]
    for row, answer, counted in zip(names, targets.T.tolist(), mask.T.tolist(), strict=True):
        assert row[4:] == ["think"] * think_steps + ["answer"]
        assert env.input_names()[answer[-1]] == row[3]
        assert counted == [0] * (4 + think_steps) + [1]


def test_losses_and_metrics_against_loops():
    env = Last()
    targets = torch.tensor([[0, 1, 2], [2, 2, 0], [1, 0, 0]])
    mask = torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 1, 0]])
    batch = Batch(torch.zeros(3, 3, dtype=torch.int64), targets, mask)
    outputs = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    losses, accuracies, wrong = [], [], 0
    for b in range(2):  # nothing of the third counts
        right = []
        for t in range(3):
            if mask[t, b]:
                logits = outputs[t, b].tolist()
                losses.append(math.log(sum(map(math.exp, logits))) - logits[targets[t, b]])
                right.append(logits.index(max(logits)) == int(targets[t, b]))
        accuracies.append(sum(right) / len(right))
        wrong += not all(right)
    found = env.metrics(outputs, batch)
    accuracy = sum(accuracies) / 2
    expected = {
        "loss": sum(losses) / 5,
        "accuracy": accuracy,
        "error_rate": 1 - accuracy,
        "sequences_wrong": wrong / 2,
    }
    assert found == pytest.approx(expected, rel=1e-6)
    assert float(env.loss(outputs, batch)) == pytest.approx(sum(losses) / 5)
    assert float(Last(loss_per="sequence").loss(outputs, batch)) == pytest.approx(sum(losses) / 3)


def test_smoothing_spreads_a_share_of_the_target_in_the_training_loss_alone():
    plain, smooth = Last(), Last(label_smoothing=0.3)
    batch = drawn(smooth)
    outputs = torch.randn(5, 3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = 0.0
    for b in range(3):
        logits = outputs[4, b].tolist()
        total = math.log(sum(map(math.exp, logits)))
        shares = [0.1 + 0.7 * (number == int(batch.targets[4, b])) for number in range(3)]
        expected += sum(share * (total - logit) for share, logit in zip(shares, logits, strict=True)) / 3
    assert float(smooth.loss(outputs, batch)) == pytest.approx(expected)
    assert smooth.metrics(outputs, batch) == plain.metrics(outputs, batch)
    for refused in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"label_smoothing: got {refused}"):
            Last(label_smoothing=refused)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("floats", r"inputs of 3 sequences: torch.float32 of shape \[5, 3\]; expected whole numbers of shape \[5, 3\]"),
        ("range", "targets: from 1 to 3; expected whole numbers below 3"),
    ],
)
def test_what_a_task_gives_is_checked(broken, message):
    with pytest.raises(TypeError, match=message):
        Last(broken=broken).check()


@pytest.mark.parametrize("fitness", ["loss", "accuracy", "reward"])
def test_populations_are_judged_as_single_circuits(fitness):
    env = Last(length=2)
    circuit = papertape.FeedForwardCircuit(env.input_size, 3, embedding_size=2)
    agent = EvolutionAgent(env, circuit, fitness=fitness, generations=2, batch_size=6, evaluation_sequences=8)
    values = agent.fit()
    assert 0 <= values["validation/trained/error_rate"] <= 1


def test_backprop_learns_what_came_last():
    env = Last(think_steps=1)
    torch.manual_seed(1)
    circuit = papertape.NTM(env.input_size, 3, embedding_size=4, **SIZES)
    agent = BackpropAgent(env, circuit, steps=250, batch_size=16, lr=1e-2, evaluation_sequences=64)
    assert agent.fit()["validation/trained/error_rate"] == 0


@each_embedding
@each_circuit
def test_answers_at_some_steps_are_those_among_all(name, embedding_size):
    circuit, given = make(name, embedding_size), tokens(7, 3)
    at = torch.tensor([[6, 0, 2], [1, 0, 5]])
    alone, last = circuit(given, at=at)
    outputs, state = circuit(given)
    torch.testing.assert_close(alone, torch.stack([outputs[at[:, row], row] for row in range(3)], 1))
    papertape.core.state.map_state(torch.testing.assert_close, last, state)
    assert circuit(given, at=at[:0])[0].shape == (0, 3, OUTPUTS)
    if alone.requires_grad:
        found, wanted = [
            torch.autograd.grad(loss, list(circuit.parameters()), allow_unused=True, materialize_grads=True)
            for loss in (alone.square().sum(), outputs.gather(0, at[..., None].expand(2, 3, OUTPUTS)).square().sum())
        ]
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("at", "more", "message"),
    [
        (torch.tensor([[7, 0, 0]]), {}, r"at: got 0 to 7; allowed are steps from 0 to 6"),
        (torch.tensor([[-1, 0, 0]]), {}, r"at: got -1 to 0"),
        (
            torch.zeros(1, 2, dtype=torch.long),
            {},
            r"at: got torch.int64 of shape \[1, 2\]; expected whole numbers \[M, 3\]",
        ),
        (torch.zeros(1, 3), {}, "at: got torch.float32"),
        ([[0, 0, 0]], {}, "at: got a list"),
        (torch.zeros(1, 3, dtype=torch.long), {"lengths": [7, 7, 7]}, "at: got some; allowed for"),
        (torch.zeros(1, 3, dtype=torch.long), {"trace": True}, "at: got some; allowed for"),
    ],
)
def test_steps_that_are_not_there_are_refused(at, more, message):
    with pytest.raises(ValueError, match=message):
        make("lstm", None)(tokens(7, 3), at=at, **more)


@pytest.mark.parametrize("truncate", [None, 3])
def test_of_many_classes_those_that_count_alone_are_answered(truncate, monkeypatch):
    """The same losses, gradients and metrics as with answers to all steps, but for rounding."""

    def learned() -> tuple[BackpropAgent, dict[str, float]]:
        torch.manual_seed(3)
        env = papertape.envs.MQAREnv(length=16, pairs=2, vocabulary=80)
        circuit = papertape.NTM(80, 80, embedding_size=4, **SIZES, dtype=torch.float64)
        agent = BackpropAgent(env, circuit, batch_size=3, lr=1e-2, steps=4, log_every=2, seed=5, truncate=truncate)
        rows = [agent.train_step() for _ in range(4)]
        return agent, rows[-1] | evaluate(env, circuit, sequences=5, batch_size=3, seed=1)

    seen: list[int] = []
    answer = papertape.NTM.answer
    monkeypatch.setattr(papertape.NTM, "answer", lambda self, x: seen.append(len(x)) or answer(self, x))
    agent, values = learned()
    assert set(seen) <= {0, 1, 2}
    monkeypatch.setattr(TokenEnv, "counted", lambda self, batch: None)
    other, expected = learned()
    assert max(seen) == 16
    assert values == pytest.approx(expected, rel=1e-5)
    for found, wanted in zip(agent.circuit.parameters(), other.circuit.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


def test_steps_that_count_come_first_and_what_is_filled_up_does_not():
    env = papertape.envs.MQAREnv(length=16, pairs=2, vocabulary=80)
    batch = env.sample(3, torch.Generator().manual_seed(0))
    batch.mask[:, 1] = 0
    batch.mask[5, 1] = 1
    found = env.counted(batch)
    assert found is not None
    at, alone = found
    assert at.shape == (2, 3) and at[0, 1] == 5
    assert alone.mask.tolist() == [[1, 1, 1], [1, 0, 1]]
    for row in range(3):
        right = batch.mask[:, row].nonzero()[:, 0]
        assert torch.equal(at[: len(right), row], right)
        assert torch.equal(alone.targets[:, row], batch.targets[at[:, row], row])
        assert torch.equal(alone.inputs[:, row], batch.inputs[at[:, row], row])
    assert papertape.envs.MQAREnv(length=16, pairs=4, vocabulary=60).counted(batch) is None  # few classes
    assert env.counted(batch._replace(mask=torch.ones_like(batch.mask))) is None  # all count


@pytest.mark.parametrize("name", ["ntm", "sam", "lstm", "tape-rnn", "transformer"])
def test_tied_answers_are_products_with_the_vectors_of_tokens(name):
    circuit, given = make(name, 4, tied_embedding=True), tokens(7, 3)
    made = []
    circuit.output.register_forward_hook(lambda module, inputs, output: made.append(output))
    outputs, _ = circuit(given)
    (vectors,) = made
    assert vectors.shape == (7, 3, 4) and circuit.output.out_features == 4
    for step, row, number in ((0, 0, 0), (3, 1, 1), (6, 2, 0)):
        pairs = zip(vectors[step, row].tolist(), circuit.embedding.weight[number].tolist(), strict=True)
        product = sum(a * b for a, b in pairs)
        assert outputs[step, row, number].item() == pytest.approx(product / 2)
    state, stepped = None, []
    for x in given:
        output, state = circuit.step(x, state)
        stepped.append(output)
    torch.testing.assert_close(torch.stack(stepped), outputs)
    members = {key: torch.stack([value, value * 0.9]).detach() for key, value in circuit.named_parameters()}
    answers = circuit.run_population(members, given)
    torch.testing.assert_close(answers[:, 0], outputs)
    other = functional_call(circuit, {key: value[1] for key, value in members.items()}, (given,))[0]
    torch.testing.assert_close(answers[:, 1], other)
    outputs[..., 1].sum().backward()
    assert circuit.embedding.weight.grad is not None and circuit.embedding.weight.grad[1].any()


def test_what_cannot_be_tied_is_refused():
    with pytest.raises(ValueError, match="tied_embedding: got True without embedding_size; allowed: False"):
        make("ntm", None, tied_embedding=True)
    with pytest.raises(ValueError, match="tied_embedding: got True for 6 classes and 5 tokens"):
        papertape.LSTM(5, 6, embedding_size=3, tied_embedding=True)


def test_a_tied_circuit_that_changes_its_structure_still_answers():
    circuit, given = make("ntm", 4, tied_embedding=True), tokens(7, 3)
    outputs, _ = circuit(given)
    circuit.edit(
        papertape.core.structure.widened(circuit.structure(), {0: [1]}), None, torch.Generator().manual_seed(0)
    )
    assert circuit.output.out_features == 4
    torch.testing.assert_close(circuit(given)[0], outputs)


def test_an_embedding_needs_a_task_of_tokens():
    env = papertape.envs.CopyEnv()
    with pytest.raises(ValueError, match="embedding_size: got 4; inputs of the env are no tokens, allowed is null"):
        BackpropAgent(env, papertape.NTM(env.input_size, env.output_size, embedding_size=4, **SIZES))


# ---- pictures ----


def test_tokens_are_drawn_by_name():
    env = Last()
    batch = drawn(env)
    outputs = torch.zeros(5, 3, 3)
    outputs[-1, 0, (int(batch.targets[-1, 0]) + 1) % 3] = 5
    trace = papertape.Trace({}, {})
    episode = episode_from("", batch, outputs, trace, env.input_channels(), env.output_channels())
    assert [group.labels for group in episode.input_channels] == [("a", "b", "c", "answer")]
    assert episode.inputs.argmax(1).tolist() == batch.inputs[:, 0].tolist()
    assert (episode.inputs.sum(1) == 1).all()
    assert episode.targets.sum(1).tolist() == [0, 0, 0, 0, 1]
    assert wrong_bits(episode).sum() == 1
    assert any("1 answer wrong" in axes.get_title(loc="left") for axes in episode_figure(episode).axes)


def test_of_many_tokens_those_that_are_seen_are_drawn():
    batch = Batch(torch.tensor([[700], [3]]), torch.tensor([[0], [41]]), torch.tensor([[0.0], [1.0]]))
    outputs = torch.zeros(2, 1, 50)
    outputs[1, 0, 7] = 9
    episode = episode_from(
        "", batch, outputs, papertape.Trace({}, {}), [Channels("token", 800)], [Channels("class", 50, choice=True)]
    )
    assert episode.input_channels[0].labels == ("3", "700") and episode.inputs.tolist() == [[0, 1], [1, 0]]
    assert episode.output_channels[0].labels == ("7", "41") and episode.targets.tolist() == [[0, 0], [0, 1]]
    assert episode.outputs.shape == (2, 2) and wrong_bits(episode).sum() == 1


def test_a_trace_is_drawn_beside_tokens():
    circuit, given = make("ntm", 4), tokens(6, 2)
    outputs, _, trace = circuit(given, trace=True)
    figure = plot_trace(trace, inputs=given, outputs=outputs, targets=given)
    assert any(axes.images and axes.images[0].get_array().shape == (TOKENS, 6) for axes in figure.axes)
