"""Playing episodes in a world, against a toy whose every number is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from papertape.core.world import Episodes, Step, World, check_episodes


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
