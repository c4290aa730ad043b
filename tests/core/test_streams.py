"""Seeds of streams."""

from __future__ import annotations

from papertape.core.streams import stream_seed, task_generator


def test_no_two_streams_share_a_seed() -> None:
    parts = ("training", "strategy", "validation", "confirmation", "test")
    for seeds in (range(50), range(2**31 - 50, 2**31), [*range(25), *range(858_993_459, 858_993_484)]):
        # Generators on the CPU look at no more than 32 bits.
        assert len({stream_seed(seed, part) % 2**32 for seed in seeds for part in parts}) == 5 * 50


def test_each_task_of_each_stream_of_tasks_has_a_generator_of_its_own() -> None:
    seeds = {task_generator(seed, number).initial_seed() for seed in range(30) for number in range(30)}
    assert len(seeds) == 900
    assert task_generator(3, 4).initial_seed() in seeds
