"""The empty agent: drives an env through a circuit without learning, to check a new env."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field

from ..core.agent import Agent
from ..core.contracts import plain_numbers
from ..core.env import Env
from ..core.options import LARGEST_STEP
from ..core.placement import take_up
from ..core.registry import register
from ..core.streams import stream_seed
from .evaluation import check_keys, evaluate_all, fitting, load_weights, show_episodes, weights_of


@register("agent", "empty")
class EmptyAgent(Agent):
    """Draws batches, runs the circuit, reports shapes, ranges and metrics; nothing learns."""

    own_meaning: ClassVar[frozenset[str]] = frozenset({"steps"})

    env: Env = Field(kw_only=False, description="the task, on the circuit's device")
    batch_size: int = Field(default=16, ge=1, description="sequences per step")
    steps: int = Field(default=10, ge=1, le=LARGEST_STEP, description="batches to draw")

    def setup(self) -> None:
        """See :meth:`Agent.setup`; also the circuit's sizes must be the env's."""
        super().setup()
        self.circuit = fitting(self.env, self.circuit).eval()
        self.generator = torch.Generator(self.env.device).manual_seed(stream_seed(self.seed, "training"))

    @torch.no_grad()
    def fit(self) -> dict[str, float]:
        """Draw and answer batches.

        Raises:
            ContractError: the env returned a batch that breaks the contract of :class:`~papertape.core.env.Env`.
        """
        values: dict[str, float] = {}
        while self.step < self.steps and not self.stop_requested:
            batch = self.env.sample(self.batch_size, self.generator)
            self.env.check_batch(batch, self.batch_size)
            outputs, _ = self.circuit(batch.inputs)
            values = plain_numbers(self.env.metrics(outputs, batch))
            self.env.move_on(self.batch_size)
            self.step += 1
            self.recorder.progress(self.step, self.steps, values)
            self.recorder.metrics(self.step, {f"train/{name}": value for name, value in values.items()})
            counted = float(batch.mask.sum(0).mean())
            self.recorder.message(
                f"batch {self.step}: {len(batch.mask)} steps, {counted:.1f} counted per sequence; "
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
        return {**weights_of(self.circuit), "generator": self.generator.get_state(), "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from :meth:`state_dict`."""
        check_keys(state, self.state_dict())
        load_weights(self.circuit, state)
        take_up(self.generator, state["generator"])
        self.step = state["step"]
