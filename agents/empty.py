"""The empty agent: drives an env through a circuit without learning, to check a new env."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..core.agent import Agent, Recorder
from ..core.circuit import Circuit
from ..core.env import Env
from ..core.options import LARGEST_STEP, Options
from ..core.streams import stream_seed
from .evaluation import check_fit, check_keys, check_state, evaluate_all, show_episodes


class EmptyOptions(Options):
    """Options of :class:`EmptyAgent`."""

    own_meaning = frozenset({"steps"})

    type: Literal["empty"] = "empty"
    batch_size: int = Field(16, ge=1)
    """Sequences per step."""
    steps: int = Field(10, ge=1, le=LARGEST_STEP)
    """Batches to draw."""


class EmptyAgent(Agent):
    """Draws batches, runs the circuit, reports shapes, ranges and metrics; nothing learns."""

    Options = EmptyOptions

    def __init__(
        self,
        env: Env,
        circuit: Circuit,
        options: EmptyOptions | None = None,
        *,
        seed: int = 0,
        recorder: Recorder | None = None,
    ) -> None:
        """Arguments and errors as in :class:`~papertape.agents.BackpropAgent`."""
        check_fit(env, circuit)
        self.env = env
        self.circuit = circuit
        self.options = options or EmptyOptions()
        self.seed = seed
        self.recorder = recorder or Recorder()
        self.generator = torch.Generator(env.device).manual_seed(stream_seed(seed, "training"))
        self.step = 0

    @torch.no_grad()
    def fit(self) -> dict[str, float]:
        """Draw and answer batches.

        Raises:
            ValueError: the env handed out a batch that breaks the contract of :class:`~papertape.core.env.Env`.
        """
        options = self.options
        values: dict[str, float] = {}
        while self.step < options.steps and not self.stop_requested:
            batch = self.env.sample(options.batch_size, self.generator)
            length = batch.inputs.shape[0]
            _check_shape("inputs", batch.inputs, (length, options.batch_size, self.env.input_size))
            _check_shape("targets", batch.targets, (length, options.batch_size, self.env.output_size))
            _check_shape("mask", batch.mask, (length, options.batch_size))
            outputs, _ = self.circuit(batch.inputs)
            values = self.env.metrics(outputs, batch)
            self.step += 1
            self.recorder.progress(self.step, options.steps, values)
            self.recorder.metrics(self.step, {f"train/{name}": value for name, value in values.items()})
            self.recorder.message(
                f"batch {self.step}: {length} steps, {float(batch.mask.sum(0).mean()):.1f} counted per sequence; "
                f"inputs in [{float(batch.inputs.min()):g}, {float(batch.inputs.max()):g}], "
                f"targets in [{float(batch.targets.min()):g}, {float(batch.targets.max()):g}]"
            )
        self.recorder.checkpoint("latest", self.state_dict())
        return values

    def test(self) -> dict[str, float]:
        """Metrics and pictures of the test sets."""
        values = evaluate_all(self.env, self.circuit, "test", sequences=64, batch_size=64, seed=self.seed)
        self.recorder.metrics(self.step, values)
        show_episodes(self.env, self.circuit, self.recorder, self.step, "test", self.seed)
        return values

    def state_dict(self) -> dict[str, Any]:
        """Weights, step and the random state of the sequences."""
        return {"circuit": self.circuit.state_dict(), "generator": self.generator.get_state(), "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        check_keys(state, self.state_dict())
        check_state("weight", state["circuit"], self.circuit.state_dict())
        self.circuit.load_state_dict(state["circuit"])
        self.generator.set_state(state["generator"].cpu())
        self.step = state["step"]


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name}: the env handed out shape {list(tensor.shape)}; expected {list(expected)}")
