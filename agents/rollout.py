"""Rollouts: some steps of many episodes in which a circuit acts, and the same steps again, as whole sequences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.circuit import Circuit
from ..core.placement import moved
from ..core.state import example, map_state
from ..core.world import WorldError
from .actor_critic import ActorCritic
from .scoring import draw_seed

SHORTEST = 0.5
"""Pieces run together where none is shorter than this part of the longest, padded; all calls together then take at most
twice the steps of the longest piece."""


class Rollout(NamedTuple):
    """T steps of B episodes, one after another in each place of the batch."""

    observations: Tensor
    """``[T, B, I]``"""
    samples: Tensor
    """Actions as they were drawn, ``[T, B, A]``."""
    outputs: Tensor
    """Of the circuit: parameters of the policy, then the value, ``[T, B, O]``."""
    rewards: Tensor
    """``[T, B]``"""
    first: Tensor
    """bool ``[T, B]``: an episode begins with this step."""
    over: Tensor
    """bool ``[T, B]``: an episode ends with this step."""
    ended: Tensor
    """bool ``[T, B]``: an episode comes to its end with this step, rather than to be cut off."""
    after: Tensor
    """Value ``[T, B]``, as the circuit puts it out, of the observation that followed, where that is none of the next
    step's: where an episode was cut off, and after the last step; zeros elsewhere."""
    states: Any
    """Of the circuit before the first step of each of S segments, ``[S·B, …]``, segment by segment. Where an episode
    begins there, it stands for nothing."""
    finished: list[tuple[float, float]]
    """Return and length of each episode that ended."""


class Actors:
    """B episodes side by side in which a circuit acts; a new one takes the place of each that is over.

    What it remembers is enough to go on exactly, in any world: the seed of the episodes and all actions since they
    began are played again.
    """

    def __init__(self, world: ActorCritic, count: int) -> None:
        """
        Args:
            world: that no one else plays in.
            count: B.
        """
        self.world = world
        self.count = count
        self._actions: list[Tensor] | None = None

    @property
    def begun(self) -> bool:
        """Whether there are episodes to go on with."""
        return self._actions is not None

    def end(self) -> None:
        """Cut all episodes off."""
        self._actions = None

    def begin(self, generator: torch.Generator) -> None:
        """Begin all episodes."""
        self._actions = None
        self._seed = draw_seed(generator)
        self._chance = torch.Generator(self.world.device).manual_seed(self._seed)
        self._observations, _ = self.world.reset(self.count, self._chance)
        self._first = torch.ones(self.count, dtype=torch.bool, device=self._observations.device)
        self._state: Any = None
        self._returns = torch.zeros(self.count, dtype=torch.float64, device=self._observations.device)
        self._lengths = torch.zeros_like(self._returns)
        self._actions = []

    @torch.no_grad()
    def act(self, circuit: Circuit, steps: int, segment: int, generator: torch.Generator) -> Rollout:
        """Take T steps in every episode.

        Args:
            circuit: acts.
            steps: T.
            segment: steps from one state of the circuit that is kept to the next.
            generator: by which actions are drawn.

        Raises:
            WorldError: the world has failed, or outputs, observations or rewards are not finite. What is remembered is
                then as before, but the world is not: these episodes can be taken up again, and must be.
        """
        assert self._actions is not None
        world, policy, own = self.world, self.world.policy, example(circuit)
        initial = circuit.initial_state(self.count)
        observations, state, first = self._observations.to(own), self._state, self._first
        state = initial if state is None else state
        returns, lengths = self._returns, self._lengths
        rows: list[tuple[Tensor, ...]] = []
        finished: list[tuple[float, float]] = []
        states, ends, done = [], [], []
        for step in range(steps):
            if step % segment == 0:
                states.append(state)
            if first.any():
                state = _where(first, initial, state)
            outputs, state = circuit.step(observations, state)
            if not outputs.isfinite().all():
                check_finite("observations", observations)
                check_finite("outputs of the circuit", outputs)
            samples = policy.sample(outputs[:, :-1], generator)
            actions = world.world.decide(samples)
            done.append(actions)
            made = world.after(world.world.step(actions), samples)
            over = made.terminated | made.truncated
            rows.append((observations, samples, outputs, made.rewards.to(own), first, over, made.terminated))
            returns, lengths = returns + made.rewards, lengths + 1
            observations, first = made.observations.to(own), over
            if over.any():
                cut = (made.truncated & ~made.terminated).nonzero().squeeze(1)
                if len(cut):
                    ends.append((step, cut, observations[cut], _rows(state, cut)))
                observations = torch.where(over.unsqueeze(-1), world.renew(over, self._chance).to(own), observations)
                finished += zip(returns[over].tolist(), lengths[over].tolist(), strict=True)
                returns, lengths = returns.masked_fill(over, 0), lengths.masked_fill(over, 0)
        going = (~first).nonzero().squeeze(1)
        if len(going):
            ends.append((steps - 1, going, observations[going], _rows(state, going)))
        seen, samples, outputs, rewards, begun, over, ended = (
            torch.stack(column) for column in zip(*rows, strict=True)
        )
        check_finite("observations", seen)
        check_finite("rewards", rewards)
        after = torch.zeros_like(rewards)
        if ends:
            times = torch.cat([torch.full_like(places, time) for time, places, *_ in ends])
            places = torch.cat([places for _, places, *_ in ends])
            shown, last = torch.cat([shown for *_, shown, _ in ends]), _joined([last for *_, last in ends])
            check_finite("observations", shown)
            judged, _ = circuit.step(shown, last)
            check_finite("outputs of the circuit", judged)
            after[times, places] = judged[:, -1]
        self._actions += done
        self._observations, self._first, self._state = observations, first, state
        self._returns, self._lengths = returns, lengths
        return Rollout(seen, samples, outputs, rewards, begun, over, ended, after, _joined(states), finished)

    def state_dict(self) -> dict[str, Any]:
        """The seed of the episodes, all actions since they began, and where the circuit stands."""
        if self._actions is None:
            return {}
        return {
            "seed": self._seed,
            "kind": torch.device(self.world.device).type,
            "actions": torch.stack(self._actions) if self._actions else None,
            "observations": self._observations,
            "first": self._first,
            "state": self._state,
            "returns": self._returns,
            "lengths": self._lengths,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Play the same episodes again up to where they were.

        Returns:
            Whether they are the same. If not, since the world is another one now or is on another kind of device, there
            are none to go on with.
        """
        self._actions = None
        if not state or len(state["first"]) != self.count:
            return not state
        device = torch.device(self.world.device)
        if state.get("kind", device.type) != device.type:
            return False  # from the same seed it draws other episodes, which may begin alike
        state = moved(state, device)
        world, chance = self.world, torch.Generator(self.world.device).manual_seed(state["seed"])
        shown, _ = world.reset(self.count, chance)
        actions = [] if state["actions"] is None else list(state["actions"].unbind(0))
        for done in actions:
            made = world.world.step(done)
            over, shown = made.terminated | made.truncated, made.observations
            if over.any():
                shown = torch.where(over.unsqueeze(-1), world.world.renew(over, chance), shown)
        was = state["observations"]
        own = world.world.input_size
        if was.shape[1] != world.input_size or not torch.equal(was[:, :own], shown[:, :own].to(was)):
            return False
        self._seed, self._chance, self._actions = state["seed"], chance, actions
        self._observations, self._first, self._state = was, state["first"], state["state"]
        self._returns, self._lengths = state["returns"], state["lengths"]
        return True


class Pieces(NamedTuple):
    """Parts of a rollout that lie within a segment and an episode, as a padded batch of n; l steps are the longest."""

    positions: Tensor
    """Where each step is in the rollout, t · B + b, ``[l, n]``; after the end of a piece, any."""
    real: Tensor
    """bool ``[l, n]``: the step is one of the piece."""
    cells: Tensor
    """Where the state of the circuit is that each starts from, s · B + b, ``[n]``."""
    fresh: Tensor
    """bool ``[n]``: an episode begins, from the circuit's initial state."""


def pieces_of(first: Tensor, segment: int, cells: Tensor) -> Iterator[Pieces]:
    """The pieces of some segments, those of about the same length together.

    Args:
        first: bool ``[T, B]``: an episode begins with this step.
        segment: L, steps of a segment; T is a multiple of it.
        cells: which segments of which places, s · B + b, ``[n]``.
    """
    batch = first.shape[1]
    begins = first.unflatten(0, (-1, segment)).transpose(1, 2).flatten(0, 1)[cells]
    starts = begins.clone()
    starts[:, 0] = True
    number, offset = starts.nonzero().unbind(1)
    flat = number * segment + offset
    lengths = torch.diff(flat, append=flat.new_tensor([len(cells) * segment]))
    lengths, order = lengths.sort(descending=True, stable=True)
    number, offset = number[order], offset[order]
    fresh, cells = begins[number, offset], cells[number]
    times = cells // batch * segment + offset
    start, sizes = 0, lengths.tolist()
    while start < len(sizes):
        longest = sizes[start]
        end = start + 1
        while end < len(sizes) and sizes[end] >= SHORTEST * longest:
            end += 1
        part = slice(start, end)
        steps = torch.arange(longest, device=first.device).unsqueeze(1)
        reached = (times[part] + steps).clamp(max=len(first) - 1)
        yield Pieces(reached * batch + cells[part] % batch, steps < lengths[part], cells[part], fresh[part])
        start = end


def run_again(circuit: Circuit, rollout: Rollout, segment: int, cells: Tensor) -> tuple[Tensor, Tensor]:
    """What a circuit puts out at the steps of some segments, as whole sequences, from the states it had at their start.

    Args:
        circuit: with a gradient, if wanted.
        rollout: what was seen.
        segment: see :func:`pieces_of`.
        cells: likewise.

    Returns:
        Outputs ``[N, O]``, and where each step is in the rollout, t · B + b, ``[N]``.
    """
    observations = rollout.observations.flatten(0, 1)
    outputs, positions = [], []
    for piece in pieces_of(rollout.first, segment, cells):
        state = _rows(rollout.states, piece.cells)
        if piece.fresh.any():
            state = _where(piece.fresh, circuit.initial_state(len(piece.cells)), state)
        answered, _ = circuit(observations[piece.positions], state)
        kept = piece.real.flatten().nonzero().squeeze(1)
        outputs.append(answered.flatten(0, 1).index_select(0, kept))
        positions.append(piece.positions.flatten()[kept])
    return torch.cat(outputs), torch.cat(positions)


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise WorldError if a tensor, called so in the message, is not finite."""
    if not tensor.isfinite().all():
        raise WorldError(f"{name} are not finite")


def _where(rows: Tensor, here: Any, there: Any) -> Any:
    """States of some rows (bool ``[B]``) from here, of all others from there."""
    return map_state(lambda one, other: torch.where(rows.view(-1, *[1] * (one.dim() - 1)), one, other), here, there)


def _rows(state: Any, rows: Tensor) -> Any:
    """Some rows of a state."""
    return map_state(lambda leaf: leaf.index_select(0, rows), state)


def _joined(states: list[Any]) -> Any:
    """The rows of several states, one after another."""
    return map_state(lambda *leaves: torch.cat(leaves), *states)
