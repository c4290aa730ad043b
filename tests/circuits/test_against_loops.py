"""Whole steps, controller included, against plain loops in float64 that share no code with the circuits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from backends import each_circuit_and_backend, shape
from circuit_loops import Loops

from papertape import DNC, NTM

SIZES = {"hidden_size": 5, "memory_size": 4, "word_size": 3}
STEPS, BATCH, INPUTS, OUTPUTS = 7, 2, 3, 2

VARIATIONS: dict[str, tuple[type, dict[str, Any]]] = {
    "ntm": (NTM, {}),
    "ntm gru": (NTM, {"controller": "gru"}),
    "ntm feedforward": (NTM, {"controller": "feedforward"}),
    "ntm neat": (NTM, {"controller": "neat", "num_reads": 2}),
    "ntm 2-layer lstm": (NTM, {"num_layers": 2}),
    "ntm 3-layer gru": (NTM, {"controller": "gru", "num_layers": 3}),
    "ntm 2-layer feedforward": (NTM, {"controller": "feedforward", "num_layers": 2}),
    "ntm direct": (NTM, {"controller": "direct", "hidden_size": None, "num_reads": 2}),
    "ntm many heads": (NTM, {"num_reads": 3, "num_writes": 2}),
    "ntm no shift": (NTM, {"shift_range": 0}),
    "ntm wide shift": (NTM, {"shift_range": 3}),
    "ntm learned start": (NTM, {"memory_init": "learned", "weight_init": "learned", "num_reads": 2}),
    "ntm random start": (NTM, {"memory_init": "truncated_normal", "weight_init": "uniform"}),
    "ntm masked": (NTM, {"masked_content": True, "num_reads": 2}),
    "ntm clipped": (NTM, {"clip": 0.4}),
    "ntm not clipped": (NTM, {"clip": None}),
    "ntm one slot": (NTM, {"memory_size": 1}),
    "dnc": (DNC, {"num_reads": 1}),
    "dnc gru": (DNC, {"controller": "gru", "num_reads": 2}),
    "dnc feedforward": (DNC, {"controller": "feedforward", "num_reads": 2}),
    "dnc direct": (DNC, {"controller": "direct", "hidden_size": None}),
    "dnc 2-layer lstm": (DNC, {"num_layers": 2, "num_reads": 2}),
    "dnc many heads": (DNC, {"num_reads": 3, "num_writes": 3}),
    "dnc tanh": (DNC, {"squash": "tanh"}),
    "dnc masked": (DNC, {"masked_content": True}),
    "dnc wipe": (DNC, {"memory_wipe": True}),
    "dnc sharp links": (DNC, {"link_sharpening": True, "num_writes": 2}),
    "dnc usage gradient": (DNC, {"usage_gradient": True}),
    "dnc improved": (
        DNC,
        {"masked_content": True, "memory_wipe": True, "link_sharpening": True, "num_reads": 2, "num_writes": 2},
    ),
    "dnc clipped": (DNC, {"clip": 0.4, "num_reads": 1}),
    "dnc one slot": (DNC, {"memory_size": 1, "num_reads": 1}),
}


def circuit_and_loops(name: str, backend: str) -> tuple[torch.nn.Module, Loops]:
    """A circuit in float64 whose parameters are large enough to make every head move, and its oracle."""
    torch.manual_seed(len(name))
    cls, options = VARIATIONS[name]
    arguments = {**SIZES, **options}
    circuit = cls(INPUTS, OUTPUTS, backend=backend, **arguments).double()
    with torch.no_grad():
        for parameter in circuit.parameters():
            parameter.copy_(1.2 * torch.randn_like(parameter))
    loops = Loops(
        {key: value.numpy().copy() for key, value in circuit.state_dict().items()},
        kind=cls.__name__.lower(),
        controller=arguments.get("controller", "lstm"),
        num_layers=arguments.get("num_layers", 1),
        memory_size=arguments["memory_size"],
        word_size=arguments["word_size"],
        num_reads=circuit.accessor.num_reads,
        num_writes=circuit.accessor.num_writes,
        clip=arguments.get("clip", 20.0),
        options=options,
    )
    return circuit, loops


@pytest.mark.parametrize("name", VARIATIONS)
def test_every_step_equals_the_loops(name, backend):
    circuit, loops = circuit_and_loops(name, backend)
    steps, batch = shape(backend, STEPS, BATCH)
    inputs = torch.randn(steps, batch, INPUTS, dtype=torch.float64)
    with torch.no_grad():
        outputs, state = circuit(inputs)
        _, _, trace = circuit(inputs, trace=True)
    near = {"rtol": 1e-8, "atol": 1e-10}
    for row in range(batch):
        loops.start()
        for step in range(steps):
            expected = loops.step(inputs[step, row].numpy())
            np.testing.assert_allclose(outputs[step, row], expected, **near)
            for part in ("memory", "read_weights", "write_weights", "reads"):
                np.testing.assert_allclose(getattr(trace, part)[step, row], getattr(loops, part), **near)
        for part in state.accessor._fields:
            np.testing.assert_allclose(getattr(state.accessor, part)[row], getattr(loops, part), **near)
        np.testing.assert_allclose(state.reads[row], loops.reads, **near)
        for part in state.controller._fields:
            np.testing.assert_allclose(getattr(state.controller, part)[row], np.stack(getattr(loops, part)), **near)


@pytest.mark.parametrize("name", [name for name, (_, options) in VARIATIONS.items() if "clip" not in options])
def test_float32_agrees_with_float64(name, backend):
    """Outputs and gradients, with those of the reference, with the parameters that a circuit is born with."""
    cls, options = VARIATIONS[name]
    steps, batch = shape(backend, STEPS, BATCH)
    results = []
    for dtype, run_by in ((torch.float32, backend), (torch.float64, "eager")):
        torch.manual_seed(0)
        circuit = cls(INPUTS, OUTPUTS, backend=run_by, **{**SIZES, **options}).to(dtype)
        inputs = torch.randn(steps, batch, INPUTS).to(dtype).requires_grad_()
        outputs, _ = circuit(inputs)
        upstream = torch.randn(steps, batch, OUTPUTS).to(dtype)
        (outputs * upstream).sum().backward()
        assert outputs.dtype == dtype
        results.append([outputs, inputs.grad, *(parameter.grad for parameter in circuit.parameters())])
    for single, double in zip(*results, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-4 * max(1.0, double.abs().max().item()))


GRADIENTS = [
    name
    for name, (cls, options) in VARIATIONS.items()
    if "clip" not in options
    and "one slot" not in name
    and (cls is NTM or options.get("usage_gradient"))
    and options.get("controller") != "neat"  # what is not connected has no gradient, which differences do not know
]


@each_circuit_and_backend(VARIATIONS, [*GRADIENTS, "dnc improved"], triton=["ntm many heads", "dnc improved"])
def test_gradients_agree_with_finite_differences(name, backend):
    """By every parameter and input; the stop-gradient of the usage is off, since differences know no such thing.

    That takes some thirty runs, for which the interpreter is too slow but for one circuit of each kind.
    """
    cls, options = VARIATIONS[name]
    more = {"usage_gradient": True} if cls is DNC else {}
    torch.manual_seed(3)
    circuit = cls(2, 2, backend=backend, **{**SIZES, "hidden_size": 3, **options, **more}).double()
    names, parameters = zip(*circuit.named_parameters(), strict=True)
    inputs = torch.randn(*shape(backend, 4, 1), 2, dtype=torch.float64)

    def run(inputs, *parameters):
        return torch.func.functional_call(circuit, dict(zip(names, parameters, strict=True)), (inputs,))[0]

    arguments = [leaf.detach().clone().requires_grad_() for leaf in (inputs, *parameters)]
    # Fast mode: one random direction in, one random (not uniform) mixture of the outputs out, for each argument.
    assert torch.autograd.gradcheck(run, arguments, fast_mode=True, atol=1e-5)


def test_variations_cover_every_controller():
    used = {options.get("controller", "lstm") for _, options in VARIATIONS.values()}
    assert used == {"lstm", "gru", "feedforward", "neat", "direct"}
