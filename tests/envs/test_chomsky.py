"""The Chomsky suite: every answer against a plain loop over one string, and how strings are drawn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from papertape.core.env import Batch
from papertape.core.registry import lookup
from papertape.envs import chomsky
from papertape.envs.strings import StringEnv

Words = list[str]


def even_pairs(words: Words) -> Words:
    unlike = sum(words[i] != words[i + 1] for i in range(len(words) - 1))
    return ["odd" if unlike % 2 else "even"]


def parity_check(words: Words) -> Words:
    return ["odd" if words.count("1") % 2 else "even"]


def cycle_navigation(words: Words) -> Words:
    place = 0
    for word in words:
        place = (place + {"left": 4, "stay": 0, "right": 1}[word]) % 5
    return [str(place)]


def value(words: Words) -> Words:
    return [str(eval("".join(words)) % 5)]


def solve_equation(words: Words) -> Words:
    if len(words) < 3:
        assert set(words) == {"0"}
        return ["0"]
    left, right = "".join(words).split("=")
    found = [str(digit) for digit in range(5) if eval(left.replace("x", str(digit))) % 5 == int(right)]
    assert len(found) == 1
    return found


def stack_manipulation(words: Words) -> Words:
    stack: Words = []
    for word in words:
        if word == "pop":
            stack = stack[:-1]
        else:
            stack.append(word.removeprefix("push "))
    first = min([i for i, word in enumerate(words) if len(word) > 1], default=len(words))
    assert first >= 1 and all(len(word) > 1 for word in words[first:])
    return [*reversed(stack), "end"]


def number(words: Words) -> int:
    return sum(2**place for place, word in enumerate(words) if word == "1")


def written(whole: int) -> Words:
    return list(reversed(f"{whole:b}"))


def two_numbers(words: Words, sign: str) -> tuple[int, int]:
    first, second = "".join(words).split(sign)
    assert "1" in first and "1" in second
    return number(list(first)), number(list(second))


def binary_addition(words: Words) -> Words:
    if len(words) <= 2:
        return [*written(number(words)), "end"]
    return [*written(sum(two_numbers(words, "+"))), "end"]


def binary_multiplication(words: Words) -> Words:
    if len(words) <= 2:
        return ["0"] * (len(words) - 1) + ["end"]
    return [*written(math.prod(two_numbers(words, "*"))), "end"]


def compute_sqrt(words: Words) -> Words:
    assert "1" in words
    return list(f"{math.isqrt(int(''.join(words), 2)):0{-(-len(words) // 2)}b}")


def missing_duplicate(words: Words) -> Words:
    if len(words) == 1:
        return ["1"]
    words = words[: len(words) // 2 * 2]
    place = words.index("missing")
    other = words[(place + len(words) // 2) % len(words)]
    words[place] = other
    assert words[: len(words) // 2] == words[len(words) // 2 :]
    return [other]


LOOPS: dict[str, Callable[[Words], Words]] = {
    "even-pairs": even_pairs,
    "parity-check": parity_check,
    "cycle-navigation": cycle_navigation,
    "modular-arithmetic": value,
    "modular-arithmetic-brackets": value,
    "solve-equation": solve_equation,
    "stack-manipulation": stack_manipulation,
    "reverse-string": lambda words: words[::-1],
    "duplicate-string": lambda words: words * 2,
    "missing-duplicate": missing_duplicate,
    "odds-first": lambda words: [words[i] for i in [*range(1, len(words), 2), *range(0, len(words), 2)]],
    "binary-addition": binary_addition,
    "binary-multiplication": binary_multiplication,
    "compute-sqrt": compute_sqrt,
    "bucket-sort": sorted,
}
each_task = pytest.mark.parametrize("name", LOOPS)


def make(name: str, **options: Any) -> StringEnv:
    env: StringEnv = lookup("env", name)(**options)
    return env


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def read(env: StringEnv, batch: Batch) -> list[tuple[Words, Words]]:
    """Each string and the answer to it that counts, in words; whatever else there is, is as it has to be."""
    found = []
    for row, answer, mask in zip(*(part.T.tolist() for part in batch), strict=True):
        words = [env.input_names()[token] for token in row]
        question = [word for word in words if word not in ("think", "answer")]
        thinking = env.steps_to_think(len(question))
        steps = len(words) - len(question) - thinking
        assert words[len(question) :] == ["think"] * thinking + ["answer"] * steps
        counted = int(sum(mask))
        assert mask == [0.0] * (len(words) - steps) + [1.0] * counted + [0.0] * (steps - counted)
        found.append((question, [env.output_names()[token] for token in answer[-steps:][:counted]]))
    return found


def test_there_are_fifteen():
    assert len(LOOPS) == len(chomsky.__all__) == 15


@each_task
def test_answers_are_those_of_a_loop(name):
    env = make(name)
    for length in [*range(1, 14), 40, 41, 97]:
        for question, answer in read(env, env.of_length(length, 8, generator(length))):
            assert len(question) == length - (name == "modular-arithmetic" and length % 2 == 0)
            assert answer == LOOPS[name](question), question


@each_task
def test_the_longest_strings_too(name):
    env = make(name)
    for question, answer in read(env, env.of_length(500, 2, generator())):
        assert answer == LOOPS[name](question)


@each_task
def test_every_class_and_every_symbol_is_found(name):
    env = make(name)
    read_all = [pair for length in (5, 8) for pair in read(env, env.of_length(length, 600, generator()))]
    assert {word for question, _ in read_all for word in question} == set(env.symbols)
    assert {word for _, answer in read_all for word in answer} == set(env.output_names())
    env.check()


def strings_of(name: str, length: int, count: int) -> Counter[str]:
    """How often each string of a length is drawn."""
    env = make(name)
    rows = env.of_length(length, count, generator()).inputs[:length].T.tolist()
    return Counter("".join(env.input_names()[token] for token in row) for row in rows)


def test_numbers_are_drawn_evenly():
    drawn = strings_of("binary-addition", 5, 10_000)
    # Lengths 1 and 3, 2 and 2, 3 and 1, each as often; then 7, 9 and 7 pairs of numbers above zero.
    assert len(drawn) == 7 + 9 + 7
    for string, count in drawn.items():
        share = 1 / 3 / (9 if string[2] == "+" else 7)
        assert abs(count / 10_000 - share) < 4 * math.sqrt(share / 10_000)
    roots = strings_of("compute-sqrt", 3, 7000)
    assert len(roots) == 7 and all(abs(count - 1000) < 130 for count in roots.values())


def test_expressions_are_split_evenly():
    splits, signs = Counter[int](), Counter[str]()
    # Of 8 tokens 5 are left within the brackets and beside the operator, of which the first expression has 1 to 4.
    for string, count in strings_of("modular-arithmetic-brackets", 8, 6000).items():
        depths = [string[1:place].count("(") - string[1:place].count(")") for place in range(2, 7)]
        place = next(p for p, depth in enumerate(depths, 2) if depth == 0 and string[p] in "+-*")
        splits[place - 1] += count
        signs[string[place]] += count
    assert set(splits) == {1, 2, 3, 4} and all(abs(count - 1500) < 150 for count in splits.values())
    assert set(signs) == set("+-*") and all(abs(count - 2000) < 150 for count in signs.values())
    assert "*" not in make("modular-arithmetic-brackets", multiplication=False).symbols


def test_the_unknown_is_any_digit_of_an_equation():
    places = Counter[int]()
    for string, count in strings_of("solve-equation", 7, 4000).items():
        places[string.index("x")] += count
    # (d+d)=v: from the place after the first digit to that of the second, the second is the next one.
    assert set(places) == {1, 3} and abs(places[3] - 1600) < 150


def test_options_change_the_vocabulary():
    assert make("bucket-sort", vocabulary_size=3).input_size == 4
    assert make("cycle-navigation", cycle_length=7).output_size == 7
    assert make("modular-arithmetic", modulus=3).output_names() == ["0", "1", "2"]
    env = make("reverse-string", think_steps=1, think_per_token=2)
    assert env.input_names() == ["0", "1", "think", "answer"]
    (question, answer), *_ = read(env, env.of_length(5, 3, generator()))
    assert answer == question[::-1]


# ---- what they share ----


def lengths_of(batches: list[Batch]) -> list[int]:
    return [len(batch.mask) - 1 for batch in batches]


def test_training_draws_a_length_for_each_batch_evenly():
    env, source = make("parity-check"), generator()
    lengths = Counter(lengths_of([env.sample(2, source) for _ in range(600)]))
    assert set(lengths) == set(range(1, 41)) and max(lengths.values()) < 40
    same = env.sample(2, generator()), env.sample(2, generator())
    assert all(torch.equal(one, other) for one, other in zip(*same, strict=True))


def test_lengths_that_are_judged_are_spread_evenly():
    env = make("parity-check").variant(length=(41, 50))
    assert lengths_of(list(env.drawn(40, 4, generator()))) == list(range(41, 51))
    assert lengths_of(list(env.drawn(20, 4, generator()))) == [42, 44, 46, 48, 50]
    assert lengths_of(list(env.drawn(4, 4, generator()))) == [46]
    twice = list(env.drawn(43, 2, generator()))
    assert len(twice) == 22 and sum(batch.mask.shape[1] for batch in twice) == 43
    assert {batch.mask.shape[1] for batch in twice} == {1, 2}


def test_sets_go_beyond_the_training_range():
    env = make("even-pairs")
    assert list(env.sets("validation")) == ["length 1-40", "length 41-100"]
    assert list(env.sets("test")) == ["length 1-40", "length 100", "length 200", "length 500", "length 41-500"]
    short = make("even-pairs", max_length=9, max_validation_length=9, max_test_length=20, test_lengths=[])
    assert list(short.sets("validation")) == ["length 1-9"]
    assert list(short.sets("test")) == ["length 1-9", "length 10-20"]
    with pytest.raises(ValueError, match="min_length: got 5; allowed is at most max_length, which is 4"):
        make("even-pairs", min_length=5, max_length=4)


def test_a_curriculum_of_lengths_may_grow():
    env = make("even-pairs", curriculum={"type": "growing", "start": 3})
    assert max(lengths_of([env.sample(1, generator(seed)) for seed in range(20)])) == 3
    assert next(iter(env.lesson().sets("validation"))) == "length 1-3"
