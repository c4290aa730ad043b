"""Playing episodes in a world, against a toy whose every number is known."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from papertape.core import world as module
from papertape.core.options import ContractError
from papertape.core.world import ActionPart, Episodes, Step, World, check_episodes
from papertape.envs import TMazeWorld


class Countdown(World):
    """Episode e begins at a drawn number and counts down; the reward is the action, and the end is at zero."""

    error_metric = "left"
    input_size, output_size = 1, 3

    def reset(self, episodes: int, generator: torch.Generator, *, copies: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
        check_episodes(episodes, copies)
        self.count = torch.randint(1, 6, (episodes,), generator=generator).repeat(copies)
        return self.count.unsqueeze(-1).float(), {"left": self.count}

    def step(self, actions: Tensor) -> Step:
        rewards = actions * (self.count > 0)
        self.count = (self.count - 1).clamp(min=0)
        over = self.count == 0
        return Step(
            self.count.unsqueeze(-1).float(), rewards.float(), over, torch.zeros_like(over), {"left": self.count}
        )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_play_sums_up_rewards_and_steps_until_every_episode_is_over() -> None:
    world = Countdown()
    starts = world.reset(6, generator())[0].squeeze(-1)
    asked = []

    def answer(observations: Tensor) -> Tensor:
        asked.append(observations.clone())
        choice = torch.arange(3).repeat_interleave(6)
        return torch.nn.functional.one_hot(choice, 3).float()

    episodes = world.play(answer, 6, generator(), copies=3)
    assert torch.equal(episodes.lengths, starts.long().repeat(3, 1))
    assert torch.equal(episodes.returns, torch.outer(torch.arange(3.0), starts))
    assert torch.equal(episodes.info["left"], torch.zeros(3, 6, dtype=torch.long))
    assert len(asked) == int(starts.max())
    assert torch.equal(asked[0].squeeze(-1), starts.repeat(3))


def test_an_episode_that_does_not_end_is_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONG", 3)
    monkeypatch.setattr(torch, "randint", lambda low, high, shape, generator: torch.full(shape, 6))
    Countdown().play(lambda seen: torch.zeros(len(seen), 3), 2, generator())
    (told,) = caplog.messages
    assert told == "Countdown: an episode goes on after 3 steps; it ends where step says terminated or truncated"


def test_metrics_are_means_over_episodes() -> None:
    episodes = Episodes(torch.tensor([[1.0, 2.0, 6.0]]), torch.tensor([[3, 4, 5]]), {"left": torch.tensor([[0, 1, 1]])})
    assert Countdown().metrics(episodes) == pytest.approx({"reward": 3, "steps": 4, "left": 2 / 3})


@pytest.mark.parametrize(("episodes", "copies", "name"), [(0, 1, "episodes"), (1, 0, "copies")])
def test_numbers_below_one_are_refused(episodes: int, copies: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: got 0; allowed is a whole number of at least 1"):
        Countdown().play(lambda observations: observations, episodes, generator(), copies=copies)


def test_judged_on_itself_by_default() -> None:
    world = Countdown()
    assert world.sets("test") == {"trained": world}
    world.close()


def test_single_episodes_of_a_world_of_tensors_are_dropped_and_begun_anew() -> None:
    def play(world: World, actions: list[Tensor]) -> list[Tensor]:
        return [torch.cat([step.observations, step.rewards.unsqueeze(1)], 1) for step in map(world.step, actions)]

    choose = generator(1)
    world, whole = (TMazeWorld(trials=3, min_stay=1, max_stay=2) for _ in range(2))
    assert not world.renewable
    first = [each.reset(3, generator(), copies=2)[0] for each in (world, whole)]
    assert world.renewable and torch.equal(*first)
    actions = [torch.randint(3, (6,), generator=choose) for _ in range(12)]
    rows = torch.tensor([0, 3, 4])
    world.keep(rows)
    found = play(world, [action[rows] for action in actions[:5]])
    expected = play(whole, actions)
    for one, other in zip(found, expected[:5], strict=True):
        assert torch.equal(one, other[rows])
    over = torch.tensor([True, False, True])
    begun = world.renew(over, generator(2))
    fresh = TMazeWorld(trials=3, min_stay=1, max_stay=2)
    assert torch.equal(begun[over], fresh.reset(2, generator(2))[0]) and (begun[~over] == 0).all()
    renewed = play(world, [action[rows] for action in actions[5:]])
    for one, other, new in zip(
        renewed, expected[5:], play(fresh, [action[rows][over] for action in actions[5:]]), strict=True
    ):
        assert torch.equal(one[over], new) and torch.equal(one[~over], other[rows][~over])
    assert (world.renew(torch.zeros(3, dtype=torch.bool), generator()) == 0).all()


def test_a_world_that_keeps_no_state_says_so() -> None:
    world = Countdown()
    world.reset(2, generator())
    assert not world.renewable
    with pytest.raises(RuntimeError, match=r"Countdown\.keep: .* expected all that it knows of them in state"):
        world.keep(torch.tensor([0]))
    with pytest.raises(RuntimeError, match=r"Countdown\.renew: "):
        world.renew(torch.tensor([True, False]), generator())


class Counted(NamedTuple):
    count: Tensor


class Ends(Countdown):
    """Forgets, where it is told to keep some, one of the things that it knows."""

    def reset(self, episodes: int, generator: torch.Generator, *, copies: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
        begun = super().reset(episodes, generator, copies=copies)
        self.state = Counted(self.count)
        return begun


def test_a_state_that_does_not_hold_everything_is_found_out() -> None:
    Countdown().check()
    with pytest.raises(ContractError, match=r"Ends\.step"):
        Ends().check()


@pytest.mark.parametrize(
    "parts", [[ActionPart("categorical", 2)], [ActionPart("choice", 3)], [ActionPart("normal", 2)] * 2]
)
def test_parts_of_an_action_that_do_not_fit_are_found_out(parts: list[ActionPart]) -> None:
    world = Countdown()
    assert world.action_parts() == [ActionPart("categorical", 3)]
    object.__setattr__(world, "action_parts", lambda: parts)
    with pytest.raises(ContractError, match=r"Countdown\.action_parts: gives \[\(.* of 3 channels in all"):
        world.check()


def test_a_world_that_draws_its_actions_by_itself_may_say_so() -> None:
    def refused() -> list[ActionPart]:
        raise ValueError("env: its actions are drawn by itself")

    world = Countdown()
    object.__setattr__(world, "action_parts", refused)
    world.check()
    object.__setattr__(world, "action_parts", lambda: 1 / 0)
    with pytest.raises(ContractError, match=r"Countdown\.action_parts: ZeroDivisionError"):
        world.check()


@pytest.mark.parametrize("last", [torch.nan, torch.inf])
def test_a_last_observation_that_is_no_finite_number_makes_the_return_none(last: float) -> None:
    class Diverges(Countdown):
        def step(self, actions: Tensor) -> Step:
            running = self.count > 0
            made = super().step(actions)
            odd = (made.terminated & running & (torch.arange(len(running)) % 2 == 1)).unsqueeze(1)
            return made._replace(observations=made.observations.masked_fill(odd, last))

    returns = Diverges().play(lambda seen: torch.zeros(4, 3), 4, generator()).returns
    assert returns.isnan().tolist() == [[False, True, False, True]]
