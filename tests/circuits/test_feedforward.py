import pytest
import torch
from pydantic import ValidationError

from papertape.agents.genome import Layout
from papertape.circuits.feedforward import FeedForwardCircuit


@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid", "gelu"])
@pytest.mark.parametrize("hidden_sizes", [[], [7], [6, 5]])
def test_answers_each_step_on_its_own(activation, hidden_sizes):
    circuit = FeedForwardCircuit(4, 3, hidden_sizes=hidden_sizes, activation=activation).double()
    inputs = torch.randn(5, 2, 4, dtype=torch.float64)
    outputs, state = circuit(inputs)
    assert outputs.shape == (5, 2, 3)
    assert state == ()
    function = torch.nn.functional.gelu if activation == "gelu" else getattr(torch, activation)
    for step, x in enumerate(inputs):
        answer, state = circuit.step(x, state)
        torch.testing.assert_close(answer, outputs[step])
        for layer in circuit.layers[:-1]:
            x = function(x @ layer.weight.T + layer.bias)
        torch.testing.assert_close(answer, x @ circuit.layers[-1].weight.T + circuit.layers[-1].bias)


@pytest.mark.parametrize("hidden_sizes", [[], [7, 5]])
def test_without_a_bias_layers_are_products_alone(hidden_sizes):
    circuit = FeedForwardCircuit(4, 3, hidden_sizes=hidden_sizes, bias=False)
    assert all(name.endswith(".weight") for name, _ in circuit.named_parameters())
    inputs = torch.randn(5, 2, 4)
    x = inputs
    for layer in circuit.layers[:-1]:
        x = (x @ layer.weight.T).tanh()
    expected = x @ circuit.layers[-1].weight.T
    torch.testing.assert_close(circuit(inputs)[0], expected)
    stacks = {name: torch.stack([parameter, 2 * parameter]) for name, parameter in circuit.named_parameters()}
    torch.testing.assert_close(circuit.run_population(stacks, inputs)[:, 0], expected)
    assert circuit.structure() == () and (not hidden_sizes or "a torch.nn.Linear with a bias" in circuit.fixed())


def test_sizes_of_the_genreg_network():
    circuit = FeedForwardCircuit(784, 10, hidden_sizes=[64])
    assert Layout.of(circuit).size == 50_890


def test_inputs_are_standardised_for_one_and_for_many():
    torch.manual_seed(0)
    plain = FeedForwardCircuit(4, 3)
    circuit = FeedForwardCircuit(4, 3, input_mean=0.5, input_std=0.25)
    circuit.load_state_dict(plain.state_dict())
    inputs = torch.rand(5, 2, 4)
    expected = plain((inputs - 0.5) * 4)[0]
    torch.testing.assert_close(circuit(inputs)[0], expected)
    stacks = {name: parameter.detach().unsqueeze(0) for name, parameter in circuit.named_parameters()}
    torch.testing.assert_close(circuit.run_population(stacks, inputs)[:, 0], expected)


def test_dropout_in_training_alone_and_in_expectation_nothing():
    torch.manual_seed(0)
    circuit = FeedForwardCircuit(4, 3, hidden_sizes=[64], dropout=0.25)
    x = torch.randn(1, 1, 4)
    hidden = circuit.layers[0](x).tanh()
    outputs = circuit(x.expand(1, 20_000, 4))[0][0]
    assert len(outputs.unique(dim=0)) > 1_000
    torch.testing.assert_close(outputs.mean(0), circuit.layers[1](hidden)[0, 0], atol=0.02, rtol=0)
    spread = ((hidden[0, 0] * circuit.layers[1].weight) ** 2).sum(1) * 0.25 / 0.75
    torch.testing.assert_close(outputs.var(0), spread, atol=0, rtol=0.1)
    circuit.eval()
    assert torch.equal(circuit(x)[0], circuit.layers[1](hidden))


def test_batch_first_and_trace():
    circuit = FeedForwardCircuit(4, 3, batch_first=True)
    outputs, _, trace = circuit(torch.randn(2, 5, 4), trace=True)
    assert outputs.shape == (2, 5, 3)
    assert not trace


def test_learns_by_backprop_as_well():
    circuit = FeedForwardCircuit(4, 3)
    circuit(torch.randn(5, 2, 4))[0].sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in circuit.parameters())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_sizes": [0]}, "hidden_sizes.0: got 0"),
        ({"dropout": 1.0}, "dropout: got 1"),
        ({"hidden_sizes": [4, True]}, "hidden_sizes.1: got True"),
        ({"activation": "step"}, "activation: got 'step'; allowed: 'tanh', 'relu', 'sigmoid' or 'gelu'"),
        ({"input_std": 0.0}, "input_std: got 0.0; allowed: greater than 0"),
        ({"backend": "triton"}, "backend: got 'triton'; allowed: auto, eager"),
    ],
)
def test_wrong_arguments_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        FeedForwardCircuit(4, 3, **values)


@pytest.mark.parametrize("values", [{"hidden_sizes": [0]}, {"hidden_sizes": 64}, {"activation": "step"}, {"size": 1}])
def test_wrong_options_are_refused(values):
    with pytest.raises(ValidationError):
        FeedForwardCircuit.Options(**values)
