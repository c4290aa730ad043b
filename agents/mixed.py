"""The mixed agent: every member of a population learns by gradient descent before its fitness counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.func import vmap
from torch.optim import Optimizer

from ..core.component import class_of
from ..core.env import Batch, Env
from ..core.members import Stack, dense, map_members
from ..core.registry import entries, name_of, register
from .evolution import EvolutionAgent
from .optimisers import AnyOptimiser, build_optimiser
from .population import refuse_shared_buffers
from .strategies import AnyStrategy


@register("agent", "mixed")
class MixedAgent(EvolutionAgent):
    """Alternates: a population is made by the strategy, then each member takes a few gradient steps, then it is judged.

    All members learn at once: the sum of their losses has, with respect to each member's own part of the stacked
    parameters, that member's gradient. A member whose gradient is not finite stays as it is for that step.

    With Lamarckian inheritance the learned weights take the members' place in the strategy. With Baldwinian
    inheritance the strategy never sees them (Hinton & Nowlan 1987, "How learning can guide evolution"), members that
    it looks at twice learn for both looks, and the circuit carries what the strategy's best genome has learned in the
    last generation.
    """

    tasks = (Env,)
    needs_gradient = True
    backends: ClassVar[tuple[str, ...]] = ("auto", "eager")

    env: Env = Field(kw_only=False, description="the task, on the circuit's device")
    strategy: AnyStrategy = "trust"
    inheritance: Literal["lamarckian", "baldwinian"] = Field(
        default="lamarckian",
        description="whether the weights that a member has learned go back into the population, or only the fitness "
        "that it reached with them counts",
    )
    gradient_steps: int = Field(
        default=4,
        ge=1,
        description="updates of each member before its fitness counts, each on a batch of its own, the same for all "
        "members",
    )
    every: int = Field(
        default=1, ge=1, description="generations from one that learns to the next; those between evolve alone"
    )
    optimiser: AnyOptimiser = Field(
        default="adam", description="what makes updates out of gradients; begins anew in every generation"
    )
    lr: float | None = Field(default=None, gt=0, description="learning rate; null: the one published for the optimiser")
    clip_norm: float | None = Field(
        default=50.0, gt=0, description="the gradient of each member is scaled down to this norm; null leaves it"
    )

    @classmethod
    def check_options(cls, options: Any) -> None:
        """See :meth:`Component.check_options`."""
        super().check_options(options)
        if options.inheritance == "lamarckian" and not class_of(options.strategy).holds_members:
            able = [name for name, strategy in entries("strategy").items() if strategy.holds_members]
            raise ValueError(
                f"strategy.type: got {name_of(class_of(options.strategy))!r}, which holds no members that weights "
                f"could go back into; allowed with inheritance lamarckian: {', '.join(able)} (baldwinian goes with all)"
            )
        if not class_of(options.optimiser).elementwise:
            able = [name for name, optimiser in entries("optimiser").items() if optimiser.elementwise]
            raise ValueError(
                f"optimiser.type: got {name_of(class_of(options.optimiser))!r}, which does not update each element on "
                f"its own, so that members would not learn apart; allowed: {', '.join(able)}"
            )

    def setup(self) -> None:
        """See :meth:`EvolutionAgent.setup`."""
        super().setup()
        refuse_shared_buffers(self.circuit, training=True)
        self.optimiser = build_optimiser(self.optimiser)
        self.lr = self.lr or self.optimiser.published_lr
        self.bad_gradients = 0
        self._lessons: list[Batch] = []

    @property
    def answers_per_step(self) -> int:
        """See :meth:`EvolutionAgent.answers_per_step`; those that members learn from as well."""
        return super().answers_per_step * (1 + self._steps_to_learn)

    @property
    def _steps_to_learn(self) -> int:
        """Of the next generation."""
        return self.gradient_steps if self.step % self.every == 0 else 0

    @property
    def _answered_to_learn(self) -> int:
        """Sequences that each member answers in order to learn from them, in this generation."""
        return len(self._lessons) * self.batch_size

    def prepare(self) -> None:
        """Draw the batches to learn from, if this is a generation that learns."""
        self._lessons = [self.env.sample(self.batch_size, self.generator) for _ in range(self._steps_to_learn)]

    def trial(self, stacks: Mapping[str, Stack], drawn: Any) -> Tensor:
        """Let the members learn, then score them; see :meth:`EvolutionAgent.trial`."""
        if not self._lessons:
            return super().trial(stacks, drawn)
        lamarckian = self.inheritance == "lamarckian"

        def live(part: Mapping[str, Stack], number: int) -> Tensor:
            learned, bad = self.learn(part, number)
            found = [bad.unsqueeze(1), self.scoring.scores(learned, drawn, part=number)]
            return torch.cat([*found, self.population.layout.join(learned)] if lamarckian else found, dim=1)

        found = self.shared(stacks, live)
        size = self.population.layout.size if lamarckian else 0
        bad, scores, genomes = found.split([1, found.shape[1] - 1 - size, size], 1)
        self.answered += scores.numel() + len(scores) * self._answered_to_learn
        self.bad_gradients += int(bad.sum())
        if lamarckian:
            before = self.strategy.ask()
            # A member whose weights have grown beyond all numbers counts as the worst, and stays what it was.
            finite = genomes.to(before).isfinite().all(1, keepdim=True)
            self.strategy.replace(torch.where(finite, genomes.to(before), before))
        return scores

    def second_look(self, stacks: Mapping[str, Stack], drawn: Any) -> Tensor:
        """See :meth:`EvolutionAgent.second_look`; with Baldwinian inheritance, a trial like the first one."""
        return super().second_look(stacks, drawn) if self.inheritance == "lamarckian" else self.trial(stacks, drawn)

    def found(self) -> Tensor:
        """See :meth:`EvolutionAgent.found`; with Baldwinian inheritance, what the best genome has learned."""
        best = super().found()
        if self.inheritance == "lamarckian" or not self._lessons:
            return best
        layout = self.population.layout
        self.answered += self._answered_to_learn
        return layout.join(self.learn(layout.split(best.unsqueeze(0)), self.shards)[0])[0]

    def learn(self, stacks: Mapping[str, Stack], number: int = 0) -> tuple[dict[str, Tensor], Tensor]:
        """Parameters of members after this generation's gradient steps, in chunks that fit the memory budget.

        Args:
            stacks: P members' parameters by name.
            number: of their shard, which tells apart what is drawn for them at random.

        Returns:
            Their parameters after that, ``[P, *S]`` by name, and how many of their updates were skipped, ``[P]``.
        """
        members = len(next(iter(stacks.values())))
        # The graph keeps what every step of time has made.
        length = max(batch.inputs.shape[0] for batch in self._lessons)
        chunk = max(2, self.population.chunk_size(self._lessons[0].inputs) // length // 2 * 2)
        parts = []
        was_training = self.circuit.training
        self.circuit.train()
        with self.own_randomness(number):
            for start in range(0, members, chunk):
                part = slice(start, min(start + chunk, members))
                parts.append(self._learn_together({name: dense(stack[part]) for name, stack in stacks.items()}))
        self.circuit.train(was_training)
        learned = {name: torch.cat([parameters[name] for parameters, _ in parts]) for name in stacks}
        return learned, torch.cat([bad for _, bad in parts])

    @torch.enable_grad()
    def _learn_together(self, stacks: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        parameters = {name: stack.detach().clone().requires_grad_() for name, stack in stacks.items()}
        bad = torch.zeros(len(next(iter(parameters.values()))), device=self.strategy.genome.device)
        # Works element by element: one optimiser of stacks is one for each member.
        optimiser = self.optimiser.make(list(parameters.values()), self.lr)
        for batch in self._lessons:
            optimiser.zero_grad(set_to_none=True)
            outputs = map_members(self.circuit, parameters, self.population.given(batch.inputs))
            losses = vmap(self.env.losses, in_dims=(1, None), out_dims=1)(outputs, batch)
            (losses.sum() / self.env.normaliser(batch)).backward()
            bad += ~self._step(optimiser, list(parameters.values()))
        return {name: parameter.detach() for name, parameter in parameters.items()}, bad

    @torch.no_grad()
    def _step(self, optimiser: Optimizer, parameters: list[Tensor]) -> Tensor:
        """One update of every member whose gradient is finite; which these are, ``[P]``."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norms = torch.stack([gradient.reshape(len(gradient), -1).norm(dim=1) for gradient in gradients]).norm(dim=0)
        good = norms.isfinite()
        scale = torch.ones_like(norms)
        if self.clip_norm is not None:
            scale = (self.clip_norm / (norms + 1e-6)).clamp(max=1)
        before = [parameter.clone() for parameter in parameters] if not good.all() else []
        for gradient in gradients:
            shape = (-1,) + (1,) * (gradient.dim() - 1)
            gradient.mul_(scale.view(shape))
            gradient.masked_fill_(~good.view(shape), 0)
        optimiser.step()
        for parameter, kept in zip(parameters, before, strict=bool(before)):
            parameter[~good] = kept[~good]
        return good

    def train_step(self) -> dict[str, float]:
        """See :meth:`EvolutionAgent.train_step`; also how many updates of members were skipped so far."""
        values = super().train_step()
        self.env.move_on(self._answered_to_learn)
        return values | {"bad_gradients": float(self.bad_gradients)}

    def state_dict(self) -> dict[str, Any]:
        """What the evolution agent remembers, with the number of skipped updates."""
        return super().state_dict() | {"bad_gradients": self.bad_gradients}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from :meth:`state_dict`; see :meth:`Agent.load_state_dict`."""
        super().load_state_dict(state)
        self.bad_gradients = state["bad_gradients"]
