import io

import pytest
import torch

from papertape import DNC, NTM
from papertape.agents.population import Population
from papertape.agents.strategies import OpenAIES
from papertape.circuits import FeedForwardCircuit, NeatCircuit

CIRCUITS = {
    "feedforward": lambda: FeedForwardCircuit(5, 3, hidden_sizes=[6, 4]),
    "neat": lambda: grown(NeatCircuit(5, 3, max_nodes=4, activation="sigmoid")),
    "ntm neat": lambda: grown(NTM(5, 3, controller="neat", hidden_size=6, memory_size=4, word_size=3)),
    "ntm lstm": lambda: NTM(5, 3, hidden_size=6, num_layers=2, memory_size=4, word_size=3, num_reads=2),
    "ntm gru": lambda: NTM(5, 3, controller="gru", hidden_size=6, memory_size=4, word_size=3, num_writes=2),
    "ntm feedforward": lambda: NTM(
        5, 3, controller="feedforward", hidden_size=6, memory_size=4, word_size=3, memory_init="learned",
        weight_init="learned", masked_content=True,
    ),
    "dnc": lambda: DNC(
        5, 3, hidden_size=6, memory_size=4, word_size=3, num_reads=2, num_writes=2, masked_content=True,
        memory_wipe=True, link_sharpening=True,
    ),
}  # fmt: skip
STEPS, BATCH, MEMBERS = 4, 3, 6


def grown(circuit):
    """With connections of every kind, recurrent ones among them."""
    with torch.no_grad():
        for name, parameter in circuit.named_parameters():
            if name.endswith(("hidden_weight", "output_weight")):
                parameter.copy_(torch.randn_like(parameter) * (torch.rand_like(parameter) < 0.3))
    return circuit


def build(name):
    torch.manual_seed(1)
    return CIRCUITS[name]().double()


def one_by_one(circuit, layout, genomes, inputs):
    """``[T, P, B, O]``, and the circuit as it was."""
    kept = layout.read(circuit)
    answers = []
    for genome in genomes:
        layout.write(genome, circuit)
        answers.append(circuit(inputs)[0].detach())
    layout.write(kept, circuit)
    return torch.stack(answers, dim=1)


@pytest.mark.parametrize("rank", ["dense", None, 1])
@pytest.mark.parametrize("name", list(CIRCUITS))
def test_batched_answers_equal_a_loop_over_members(name, rank):
    circuit = build(name)
    population = Population(circuit)
    genome = population.layout.read(circuit)
    if rank == "dense":
        genomes = genome + 0.3 * torch.randn(MEMBERS, len(genome), dtype=torch.float64)
        stacks = population.layout.split(genomes)
    else:
        strategy = OpenAIES(genome, population=MEMBERS, sigma=0.3, rank=rank, layout=population.layout)
        genomes, stacks = strategy.ask(), strategy.ask_stacks()
    inputs = torch.randn(STEPS, BATCH, 5, dtype=torch.float64)
    outputs = population.outputs(stacks, inputs)
    assert outputs.shape == (STEPS, MEMBERS, BATCH, 3)
    assert not outputs.requires_grad
    torch.testing.assert_close(outputs, one_by_one(circuit, population.layout, genomes, inputs))
    assert torch.equal(population.layout.read(circuit), genome), "the circuit's own weights are left alone"


@pytest.mark.parametrize("name", list(CIRCUITS))
@pytest.mark.parametrize("mirrored", [True, False])
def test_chunks_change_nothing(name, mirrored):
    circuit = build(name)
    whole, chunked = Population(circuit), Population(circuit, memory_budget=1e-6)
    genome = whole.layout.read(circuit)
    strategy = OpenAIES(genome, population=MEMBERS, sigma=0.3, rank=1, layout=whole.layout)
    stacks = strategy.ask_stacks() if mirrored else whole.layout.split(strategy.ask())
    inputs = torch.randn(STEPS, BATCH, 5, dtype=torch.float64)
    assert chunked.chunk_size(inputs) == 2 < MEMBERS < whole.chunk_size(inputs)
    chunks = []

    def score(outputs):
        chunks.append(outputs.shape[1])
        return outputs.sum((0, 3))

    found = chunked.evaluate(stacks, inputs, score)
    assert chunks == [2, 2, 2]
    assert found.shape == (MEMBERS, BATCH)
    torch.testing.assert_close(found, whole.evaluate(stacks, inputs, score))


def test_an_odd_population_in_chunks():
    circuit = build("feedforward")
    population = Population(circuit, memory_budget=1e-6)
    genomes = torch.randn(5, population.layout.size, dtype=torch.float64)
    inputs = torch.randn(STEPS, BATCH, 5, dtype=torch.float64)
    found = population.evaluate(population.layout.split(genomes), inputs, lambda outputs: outputs.sum((0, 2, 3)))
    expected = one_by_one(circuit, population.layout, genomes, inputs).sum((0, 2, 3))
    torch.testing.assert_close(found, expected)


def test_chunk_grows_with_the_budget_and_shrinks_with_the_memory():
    def size(budget, slots, batch=4):
        circuit = NTM(5, 3, hidden_size=8, memory_size=slots, word_size=6)
        return Population(circuit, memory_budget=budget).chunk_size(torch.zeros(10, batch, 5))

    assert size(2, 128) > size(1, 128) > 2
    assert size(2, 128) > size(2, 1024)
    assert size(2, 128, batch=4) > size(2, 128, batch=64)


def test_parameters_of_different_types_are_refused():
    circuit = FeedForwardCircuit(5, 3)
    circuit.layers[0].double()
    with pytest.raises(ValueError, match="parameters: the circuit's have different types"):
        Population(circuit)


class Fed(torch.nn.Module):
    """A plain module with a state: what it answered last is fed back."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(5 + 3, 3)
        self.mixed = torch.nn.Parameter(torch.randn(()))

    def forward(self, inputs, state=None):
        state = inputs.new_zeros(inputs.shape[1], 3) if state is None else state
        answers = []
        for x in inputs:
            state = self.mixed * self.layer(torch.cat([x, state.tanh()], 1))
            answers.append(state)
        return torch.stack(answers), state


def loaded():
    """A module that torch.jit has saved, without the class that it was written as."""
    layers = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(layers), buffer)
    return torch.jit.load(io.BytesIO(buffer.getvalue()))


def used_twice():
    """Layers with one among them under two names, and one that shares its weight with it."""
    twice, tied = torch.nn.Linear(5, 5), torch.nn.Linear(5, 5)
    tied.weight = twice.weight
    return torch.nn.Sequential(twice, torch.nn.Tanh(), twice, torch.nn.Sigmoid(), tied, torch.nn.Linear(5, 3))


def used_twice_and_frozen():
    module = used_twice()
    module[0].requires_grad_(False)
    return module


MODULES = {
    "used twice": used_twice,
    "used twice and frozen": used_twice_and_frozen,
    "scripted and loaded": loaded,
    "layers": lambda: torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 3)),
    "fed": Fed,
    "gru": lambda: torch.nn.GRU(5, 3),
    "lstm": lambda: torch.nn.LSTM(5, 3, num_layers=2),
}


@pytest.mark.filterwarnings("ignore:[A-Z]*. members answer one after another")
@pytest.mark.parametrize("name", list(MODULES))
def test_any_module_answers_for_many_members(name):
    torch.manual_seed(0)
    module = MODULES[name]().double()
    population = Population(module)
    genomes = population.layout.read(population.circuit) + 0.3 * torch.randn(6, population.layout.size).double()
    inputs = torch.randn(STEPS, BATCH, 5, dtype=torch.float64)
    own = dict(population.circuit.named_parameters(remove_duplicate=False))
    outputs = population.outputs(population.layout.split(genomes), inputs)
    for name, parameter in population.circuit.named_parameters(remove_duplicate=False):
        assert parameter is own[name], f"{name} is another"
    for member, genome in enumerate(genomes):
        population.layout.write(genome, population.circuit)
        answered = module(inputs)
        torch.testing.assert_close(outputs[:, member], answered[0] if isinstance(answered, tuple) else answered)
    scores = population.evaluate(population.layout.split(genomes), inputs, lambda outputs: outputs.sum((0, 3)))
    assert scores.shape == (6, BATCH)


@pytest.mark.filterwarnings("ignore:[A-Z]*. members answer one after another")
@pytest.mark.parametrize("name", list(MODULES))
def test_any_module_acts_in_a_world_with_a_state_of_its_own(name):
    torch.manual_seed(0)
    module = MODULES[name]().double()
    population = Population(module)
    genomes = population.layout.read(population.circuit) + 0.3 * torch.randn(4, population.layout.size).double()
    inputs = torch.randn(STEPS, BATCH, 5, dtype=torch.float64)
    answer = population.answers(population.layout.split(genomes), BATCH)
    steps = torch.stack([answer(x.repeat(4, 1)) for x in inputs])
    whole = population.outputs(population.layout.split(genomes), inputs)
    torch.testing.assert_close(steps, whole.flatten(1, 2))


def test_members_that_torch_cannot_map_are_warned_of_once():
    population = Population(torch.nn.LSTM(5, 3))
    stacks = population.layout.split(torch.randn(4, population.layout.size))
    with pytest.warns(UserWarning, match="LSTM: members answer one after another, for torch cannot map it: Batching"):
        population.outputs(stacks, torch.randn(2, 3, 5))
    population.outputs(stacks, torch.randn(2, 3, 5))
    with pytest.raises(RuntimeError, match="input.size"):
        Population(torch.nn.LSTM(4, 3)).outputs(stacks, torch.randn(2, 3, 5))
