"""The rules of POPGym's games, one episode at a time in plain Python: the judges of batched tensors.

A game is made from one row of a world's first situation. It has the observation as a list of numbers, ``good()``, which
is what a perfect player may do, and ``step(action)``, which returns the reward and whether the episode has come to its
end or was cut off.
"""

from __future__ import annotations

import math
from typing import Any

SUITS = 4


def one_hot(*pairs: tuple[int, int]) -> list[float]:
    """Of each number and how many there are."""
    return [float(place == number) for number, count in pairs for place in range(count)]


class RepeatFirst:
    def __init__(self, row: Any, difficulty: str) -> None:
        self.hand = list(row.suits)
        self.rest = self.hand[1:]
        self.card = self.hand[0]
        self.observation = one_hot((self.card, SUITS))

    def good(self) -> int:
        return self.hand[0]

    def step(self, action: int) -> tuple[float, bool, bool]:
        reward = (1 if action == self.good() else -1) / (len(self.hand) - 1)
        self.card = self.rest.pop(0)
        self.observation = one_hot((self.card, SUITS))
        return reward, not self.rest, False


class RepeatPrevious:
    def __init__(self, row: Any, difficulty: str) -> None:
        self.k = {"easy": 4, "medium": 32, "hard": 64}[difficulty]
        self.rest = list(row.suits)
        self.count = len(self.rest)
        self.seen = [self.rest.pop(0)]
        self.observation = one_hot((self.seen[-1], SUITS))

    def good(self) -> int:
        return self.seen[-self.k] if len(self.seen) >= self.k else 0

    def step(self, action: int) -> tuple[float, bool, bool]:
        reward = 0.0
        if len(self.seen) >= self.k:
            reward = (1 if action == self.good() else -1) / (self.count - self.k)
        self.seen.append(self.rest.pop(0))
        self.observation = one_hot((self.seen[-1], SUITS))
        return reward, not self.rest, False


class Autoencode:
    def __init__(self, row: Any, difficulty: str) -> None:
        self.rest = list(row.suits)
        self.count = len(self.rest)
        self.seen = [self.rest.pop(0)]
        self.watching = True
        self.observation = one_hot((1, 2), (self.seen[-1], SUITS))

    def good(self) -> int:
        return self.seen[-1]

    def step(self, action: int) -> tuple[float, bool, bool]:
        if self.watching:
            self.seen.append(self.rest.pop(0))
            self.watching = bool(self.rest)
            self.observation = one_hot((int(self.watching), 2), (self.seen[-1], SUITS))
            return 0.0, False, False
        reward = (1 if action == self.seen.pop() else -1) / self.count
        self.observation = one_hot((0, 2), (0, SUITS))
        return reward, not self.seen, False


class CountRecall:
    def __init__(self, row: Any, difficulty: str) -> None:
        self.kinds = {"easy": 2, "medium": 4, "hard": 13}[difficulty]
        self.dealt, self.asked = list(row.dealt), list(row.asked)
        self.count = len(self.dealt)
        self.table: list[int] = []
        self.deal()

    def deal(self) -> None:
        self.table.append(self.dealt.pop(0))
        self.query = self.asked.pop(0)
        self.observation = one_hot((self.table[-1], self.kinds), (self.query, self.kinds))

    def good(self) -> int:
        return self.table.count(self.query)

    def step(self, action: int) -> tuple[float, bool, bool]:
        reward = (1 if action == self.good() else -1) / (self.count - 1)
        self.deal()
        return reward, not self.dealt, False


class HigherLower:
    def __init__(self, row: Any, difficulty: str) -> None:
        self.rest = list(row.ranks)
        self.count = len(self.rest)
        self.card = self.rest.pop(0)
        self.observation = one_hot((self.card, 13))

    def good(self) -> int:
        return 0 if self.rest[0] > self.card else 1

    def step(self, action: int) -> tuple[float, bool, bool]:
        before, self.card = self.card, self.rest.pop(0)
        self.observation = one_hot((self.card, 13))
        if self.card == before:
            reward = 0.0
        elif self.card > before:
            reward = 1 / self.count if action == 0 else -1 / self.count
        else:
            reward = 1 / self.count if action == 1 else -1 / self.count
        return reward, not self.rest, False


class Concentration:
    def __init__(self, row: Any, difficulty: str) -> None:
        self.kinds = 13 if difficulty == "hard" else 2
        self.cards = list(row.kinds)
        count = len(self.cards)
        self.steps = {52: 104, 104: 208}[count]
        self.open: set[int] = set()
        self.turn: list[int] = []
        self.taken = 0
        self.see()

    def see(self) -> None:
        visible = self.open | set(self.turn)
        faces = [card if place in visible else self.kinds for place, card in enumerate(self.cards)]
        self.observation = one_hot(*((face, self.kinds + 1) for face in faces))

    def good(self) -> int:
        left = [place for place in range(len(self.cards)) if place not in self.open and place not in self.turn]
        if self.turn:
            return next(place for place in left if self.cards[place] == self.cards[self.turn[0]])
        return left[0]

    def step(self, action: int) -> tuple[float, bool, bool]:
        self.taken += 1
        self.turn.append(action)
        self.see()
        reward = 0.0
        if action in self.open:
            reward = -len(self.turn) / self.steps
            self.turn = []
        elif len(self.turn) == 2:
            first, second = self.turn
            if first != second and self.cards[first] == self.cards[second]:
                reward = 1 / (len(self.cards) // 2)
                self.open |= {first, second}
            else:
                reward = -2 / self.steps
            self.turn = []
        return reward, len(self.open) == len(self.cards), self.taken == self.steps


class Battleship:
    def __init__(self, row: Any, difficulty: str) -> None:
        self.side = {"easy": 8, "medium": 10, "hard": 12}[difficulty]
        ships = [divmod(square, self.side) for square, ship in enumerate(row.ships) if ship]
        self.afloat, self.parts = set(ships), len(ships)
        self.taken = 0
        self.observation = one_hot((0, 2))

    def good(self) -> tuple[int, int]:
        return min(self.afloat)

    def step(self, action: list[int]) -> tuple[float, bool, bool]:
        square = tuple(action)
        hit = square in self.afloat
        self.afloat -= {square}
        self.taken += 1
        self.observation = one_hot((int(hit), 2))
        reward = 1 / self.parts if hit else -1 / (self.side**2 - self.parts)
        return reward, not self.afloat, self.taken == self.side**2


class MineSweeper:
    def __init__(self, row: Any, difficulty: str) -> None:
        self.side = {"easy": 4, "medium": 6, "hard": 8}[difficulty]
        self.mines = {divmod(square, self.side) for square, mine in enumerate(row.mines) if mine}
        self.covered = {(y, x) for y in range(self.side) for x in range(self.side)} - self.mines
        self.safe = len(self.covered)
        self.taken = 0
        self.channels = min(len(self.mines) + 1, 10)
        self.observation = one_hot((0, self.channels))

    def good(self) -> tuple[int, int]:
        return min(self.covered)

    def step(self, action: list[int]) -> tuple[float, bool, bool]:
        y, x = action
        if (y, x) in self.mines:
            reward = -0.5 - 1 / self.safe
        elif (y, x) in self.covered:
            reward = 1 / self.safe
        else:
            reward = -0.5 / (self.safe - 2)
        self.covered -= {(y, x)}
        self.taken += 1
        near = sum(abs(y - row) <= 1 and abs(x - column) <= 1 for row, column in self.mines)
        self.observation = one_hot((near, self.channels))
        return reward, (y, x) in self.mines or not self.covered, self.taken == self.safe


class MultiarmedBandit:
    def __init__(self, row: Any, difficulty: str) -> None:
        self.row = row
        self.steps = {"easy": 200, "medium": 400, "hard": 600}[difficulty]
        self.taken = 0
        self.observation = one_hot((0, 2))

    def good(self) -> int:
        return max(range(len(self.row.chances)), key=lambda arm: self.row.chances[arm])

    def step(self, action: int) -> tuple[float, bool, bool]:
        paid = self.row.luck[self.taken] < self.row.chances[action]
        self.taken += 1
        self.observation = one_hot((int(paid), 2))
        return (1 if paid else -1) / self.steps, False, self.taken == self.steps


class CartPole:
    steps = {"easy": 200, "medium": 400, "hard": 600}

    def __init__(self, row: Any, difficulty: str) -> None:
        self.body, self.noise = list(row.body), row.noise
        self.limit = self.steps[difficulty]
        self.taken = 0
        self.see()

    def see(self) -> None:
        self.observation = [self.body[0], self.body[2]]

    def good(self) -> int:
        x, speed, angle, turning = self.body
        return int(angle + 0.3 * turning + 0.02 * x + 0.05 * speed > 0)

    def step(self, action: int) -> tuple[float, bool, bool]:
        x, speed, angle, turning = self.body
        force = 10.0 if action == 1 else -10.0
        # Mass of the pole 0.1 kg, of both 1.1 kg; half its length 0.5 m.
        part = (force + 0.05 * turning**2 * math.sin(angle)) / 1.1
        bend = (9.8 * math.sin(angle) - math.cos(angle) * part) / (0.5 * (4 / 3 - 0.1 * math.cos(angle) ** 2 / 1.1))
        pull = part - 0.05 * bend * math.cos(angle) / 1.1
        self.body = [x + 0.02 * speed, speed + 0.02 * pull, angle + 0.02 * turning, turning + 0.02 * bend]
        self.taken += 1
        self.see()
        fallen = not (-2.4 <= self.body[0] <= 2.4 and -math.pi / 15 <= self.body[2] <= math.pi / 15)
        return 1 / self.limit, fallen, self.taken == self.limit


class VelocityOnlyCartPole(CartPole):
    def see(self) -> None:
        self.observation = [self.body[1], self.body[3]] if self.taken else [self.body[0], self.body[2]]


class NoisyCartPole(CartPole):
    steps = {"easy": 200, "medium": 200, "hard": 200}

    def see(self) -> None:
        x, angle = (self.body[place] + self.noise[self.taken][place // 2] for place in (0, 2))
        self.observation = [min(max(x, -4.8), 4.8), min(max(angle, -2 * math.pi / 15), 2 * math.pi / 15)]


class Pendulum:
    steps = {"easy": 200, "medium": 150, "hard": 100}

    def __init__(self, row: Any, difficulty: str) -> None:
        (self.angle, self.speed), self.noise = row.body, row.noise
        self.limit = self.steps[difficulty]
        self.taken = 0
        self.see()

    def see(self) -> None:
        self.observation = [math.cos(self.angle), math.sin(self.angle)]

    def good(self) -> list[float]:
        return [2.0 if self.speed * math.cos(self.angle) < 0 else -2.0]

    def step(self, action: list[float]) -> tuple[float, bool, bool]:
        torque = min(max(action[0], -2.0), 2.0)
        from_top = math.atan2(math.sin(self.angle), math.cos(self.angle))
        cost = from_top**2 + 0.1 * self.speed**2 + 0.001 * torque**2
        self.speed += (15 * math.sin(self.angle) + 3 * torque) * 0.05
        self.speed = min(max(self.speed, -8.0), 8.0)
        self.angle += self.speed * 0.05
        self.taken += 1
        self.see()
        return (16.2736044 / 2 - cost) / (16.2736044 / 2) / self.limit, False, self.taken == self.limit


class NoisyPendulum(Pendulum):
    steps = {"easy": 200, "medium": 200, "hard": 200}

    def see(self) -> None:
        pairs = zip((math.cos(self.angle), math.sin(self.angle)), self.noise[self.taken], strict=True)
        self.observation = [min(max(plain + noise, -1.0), 1.0) for plain, noise in pairs]


LOOPS: dict[str, Any] = {
    "autoencode": Autoencode,
    "battleship": Battleship,
    "concentration": Concentration,
    "count-recall": CountRecall,
    "higher-lower": HigherLower,
    "minesweeper": MineSweeper,
    "multiarmed-bandit": MultiarmedBandit,
    "noisy-position-only-cartpole": NoisyCartPole,
    "noisy-position-only-pendulum": NoisyPendulum,
    "position-only-cartpole": CartPole,
    "position-only-pendulum": Pendulum,
    "repeat-first": RepeatFirst,
    "repeat-previous": RepeatPrevious,
    "velocity-only-cartpole": VelocityOnlyCartPole,
}
