"""What pictures show of tasks: channels with names and scales, images, worlds; and the colours of animations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from papertape import NTM
from papertape.agents.evaluation import IMAGES, MOST_PICTURES, PICTURE_SIZE, show_episodes
from papertape.circuits.feedforward import FeedForwardCircuit
from papertape.core.recorder import Recorder
from papertape.core.registry import lookup
from papertape.core.streams import stream_seed
from papertape.core.task import Task
from papertape.core.trace_field import Channels, TraceField, check_fields
from papertape.envs.gym import GymWorld
from papertape.envs.letters import LettersEnv
from papertape.envs.one_shot import OneShotEnv
from papertape.envs.tmaze import GOAL, HERE, OTHER, TMazeWorld
from papertape.utils.plots import (
    Episode,
    Seen,
    curves_figure,
    episode_figure,
    episode_from,
    layout_of,
    memory_gif,
    smoothed,
    wrong_bits,
)
from papertape.utils.plots.curves import RAW_POINTS, History
from papertape.utils.plots.episode import Slots
from papertape.utils.plots.panels import BITS, FALLING, RISING, WORDS, colour_limits


class Keep(Recorder):
    """Keeps episodes as a run draws them."""

    wants_episodes = True

    def __init__(self, task: Task) -> None:
        self.task, self.kept = task, []

    def episode(self, step: int, name: str, batch: Any, outputs: Any, trace: Any) -> None:
        channels = self.task.input_channels(), self.task.output_channels()
        self.kept.append(episode_from(name, batch, outputs, trace, *channels))


def shown(task: Task, circuit: Any = None) -> Episode:
    torch.manual_seed(0)
    keep = Keep(task)
    circuit = circuit or FeedForwardCircuit(task.input_size, task.output_size)
    show_episodes(task, circuit, keep, 0, "validation", 0)
    return keep.kept[0]


def panels(episode: Episode) -> dict[str, Any]:
    return {panel.name: panel for panel in layout_of(episode).panels}


def sequence(inputs: np.ndarray, channels: tuple[Channels, ...] = (), **parts: Any) -> Episode:
    return Episode("", inputs.astype(np.float32), input_channels=channels, **parts)


def test_a_count_among_bits_has_a_scale_of_its_own_and_hides_none_of_them() -> None:
    bits = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]])
    count = np.array([[0], [0], [20]])
    channels = (Channels("words", 3), Channels("repeats", 1, ("repeats",)))
    for known in (channels, ()):
        found = panels(sequence(np.hstack([bits, count]), known))
        assert list(found) == ["input", "input: repeats" if known else "input: beyond 0 to 1"]
        np.testing.assert_array_equal(found["input"].image, bits.T)
        assert found["input"].scale == (BITS, 0, 1)
        (other,) = (panel for name, panel in found.items() if name != "input")
        assert other.scale == (BITS, 0, 20) and other.image.tolist() == [[0, 0, 20]]
    negative = panels(sequence(np.hstack([bits, count - 10]), channels))["input: repeats"]
    assert negative.scale == (WORDS, -10, 10) and negative.named.labels == ["repeats"]


def test_channels_in_several_units_have_each_its_own_scale_and_say_which() -> None:
    values = np.array([[100, 0.001, -3], [50, 0.004, 6]])
    channels = tuple(Channels(name, 1) for name in ("place", "angle", "speed"))
    (panel,) = layout_of(sequence(values, channels)).panels
    np.testing.assert_allclose(panel.image, [[1, 0.5], [0.25, 1], [-0.5, 1]], atol=1e-6)
    assert panel.named.labels == ["place, ≤ 100", "angle, ≤ 0.004", "speed, ±6"]
    assert "own scale" in panel.note
    # What is not known to be in units of its own, and holds no bits, is drawn as it is.
    (panel,) = layout_of(sequence(values)).panels
    np.testing.assert_allclose(panel.image, values.T)


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("copy", {"width": 3}, {"input": ["start", "end"]}),
        ("repeat-copy", {"width": 3}, {"input": ["start", "repeats"], "output": ["end"]}),
        ("priority-sort", {"width": 3}, {"input": ["end"], "input: priority": ["priority"]}),
        ("associative-recall", {"width": 3}, {"input": ["item", "query"]}),
    ],
)
def test_rows_of_tasks_are_named(name: str, options: dict[str, Any], named: dict[str, list[str]]) -> None:
    task = lookup("env", name)(**options)
    for channels, size in ((task.input_channels(), task.input_size), (task.output_channels(), task.output_size)):
        assert sum(group.size for group in channels) in (0, size)
        assert all(len(group.labels) in (0, group.size) for group in channels)
    found = panels(shown(task))
    for panel, labels in named.items():
        assert set(labels) <= set(found[panel].named.labels)


def answered(outputs: np.ndarray, mask: list[float]) -> Episode:
    targets = (outputs > 0.5).astype(np.float32)
    return Episode("", outputs, targets, outputs.astype(np.float32), np.array(mask, np.float32))


def test_flat_outputs_have_a_scale_about_one_half_and_clear_ones_do_not() -> None:
    flat = panels(answered(np.array([[0.9, 0.1], [0.51, 0.48], [0.5, 0.49]], np.float32), [0, 1, 1]))["output"]
    assert flat.scale.colours is BITS and flat.scaled
    np.testing.assert_allclose(flat.scale[1:], (0.48, 0.52), atol=1e-6)
    clear = panels(answered(np.array([[0.5, 0.5], [0.51, 0.98]], np.float32), [0, 1]))["output"]
    assert clear.scale == (BITS, 0, 1)
    same = panels(answered(np.full((2, 2), 0.5, np.float32), [1, 1]))["output"]
    assert same.scale.low < 0.5 < same.scale.high


def test_words_on_one_side_of_zero_use_half_of_the_colours() -> None:
    up = np.array([[0.0, 0.2]], np.float32)
    assert colour_limits(up, "words") == (RISING, 0, pytest.approx(0.2))
    assert colour_limits(-up, "words") == (FALLING, pytest.approx(-0.2), 0)
    assert colour_limits(up - 0.1, "words").colours is WORDS
    for half, place in ((RISING, 0.0), (FALLING, 1.0)):
        np.testing.assert_allclose(half(place), WORDS(0.5), atol=0.02)


def test_the_scale_of_weights_fits_the_slots_that_are_shown() -> None:
    weights = np.full((4, 1, 100), 0.001, np.float32)
    weights[:, 0, 50] = 0.3
    usage = np.zeros((4, 100), np.float32)
    usage[:, 50] = 0.2
    seen = {
        "read_weights": Seen(weights, TraceField("R N", "weighting")),
        "usage": Seen(usage, TraceField("N", "weighting")),
    }
    found = panels(Episode("", seen=seen))
    assert found["read weights"].scale.high == pytest.approx(0.3)
    assert found["usage"].scale.high == pytest.approx(0.2)


def test_a_range_over_the_end_of_the_memory_says_so_and_has_a_line_there() -> None:
    slots = Slots(-3, 4, 100)
    assert slots.label == ", slots 97–99 and 0–4 of 100" and slots.end == 2.5
    assert Slots(3, 9, 100).label == ", slots 3–9 of 100" and Slots(3, 9, 100).end is None
    weights = np.zeros((6, 1, 100), np.float32)
    weights[np.arange(6), 0, (np.arange(6) + 97) % 100] = 1
    memory = np.arange(6 * 100 * 2, dtype=np.float32).reshape(6, 100, 2)
    seen = {
        "write_weights": Seen(weights, TraceField("H N", "weighting")),
        "memory": Seen(memory, TraceField("N W", "memory")),
    }
    layout = layout_of(Episode("", seen=seen))
    (panel,), (still,) = layout.panels, layout.all_stills
    assert panel.lines == [still.slots[0].end] and "and 0–" in panel.note
    rows = [int(row) for row in panel.image.argmax(0)]
    assert rows == list(range(rows[0], rows[0] + 6)), "the walk is in one piece"
    first = still.slots[0].indices[0]
    np.testing.assert_array_equal(still.images[:, 0], memory[:, first])


def test_images_are_shown_with_answer_and_truth() -> None:
    episode = shown(LettersEnv(image_size=12, font_sizes=[8]))
    assert episode.examples and episode.steps == IMAGES and episode.image_shape == (12, 12)
    np.testing.assert_allclose(episode.outputs.sum(1), 1, rtol=1e-5)  # type: ignore[union-attr]
    figure = episode_figure(episode)
    assert len(figure.axes) == IMAGES
    for number, axes in enumerate(figure.axes):
        (image,) = axes.images
        np.testing.assert_allclose(image.get_array(), episode.inputs[number].reshape(12, 12))  # type: ignore[index]
        answer, truth = (int(part[number].argmax()) for part in (episode.outputs, episode.targets))  # type: ignore[index]
        title = axes.get_title(loc="left")
        assert title.startswith(f"{chr(65 + answer)} ") and "%" in title
        assert title.endswith(f", is {chr(65 + truth)}") == (answer != truth)
    wrong = (episode.outputs.argmax(1) != episode.targets.argmax(1)).sum()  # type: ignore[union-attr]
    assert wrong_bits(episode).sum() == wrong
    assert f"{wrong} of {IMAGES} wrong" in figure.texts[0].get_text()


def test_images_in_a_sequence_are_pictures_and_no_rows() -> None:
    task = OneShotEnv(classes=2, images_per_class=3, image_size=8)
    episode = shown(task)
    generator = torch.Generator().manual_seed(stream_seed(0, "validation"))
    inputs = task.sets("validation")["new classes"].sample(IMAGES, generator).inputs  # type: ignore[attr-defined]
    steps, pictures = episode.pictures["image"]
    assert steps == list(range(6)) and pictures.shape == (6, 8, 8, 3)
    assert np.array_equal(pictures[..., 1], (255 * inputs[:, 0, :64]).byte().view(6, 8, 8).numpy())
    assert episode.inputs is not None and np.array_equal(episode.inputs, inputs[:, 0, 64:].numpy())
    assert panels(episode)["input"].ticks.labels == ["1", "2"]
    episode_figure(episode)


def test_the_maze_is_drawn_from_above() -> None:
    maze = TMazeWorld(maze="double", trials=2, corridor=1)
    assert maze.picture() is None
    maze.reset(1, torch.Generator().manual_seed(0))
    goal = int(maze.situation.goals[0, 0])

    def where(colour: tuple[int, int, int]) -> list[tuple[int, int]]:
        picture = maze.picture()
        assert picture is not None and picture.dtype == torch.uint8
        cells = (picture[::12, ::12] == torch.tensor(colour)).all(-1).nonzero()
        return [(int(row), int(column)) for row, column in cells]

    rows, columns = 5, 5  # home is in the middle, two below the junction
    ends = {0: (4, 0), 1: (0, 0), 2: (0, 4), 3: (4, 4)}
    assert where(GOAL) == [ends[goal]] and set(where(OTHER)) == set(ends.values()) - {ends[goal]}
    assert where(HERE) == [(rows - 1, columns // 2)]
    walked = []
    for action in (1, 1, 0, 1, 2, 1):  # up, left at the junction, right at the next: to end 1
        maze.step(torch.tensor([action]))
        walked += where(HERE)
    assert walked == [(3, 2), (2, 2), (2, 1), (2, 0), (1, 0), (0, 0)]


def test_a_world_is_shown_with_named_rows_and_the_actions_taken(tmp_path: Path) -> None:
    world = TMazeWorld(trials=3)
    circuit = NTM(4, 3, controller="gru", hidden_size=5, memory_size=4, word_size=3)
    episode = shown(world, circuit)
    steps, frames = episode.pictures["world"]
    assert len(steps) == len(frames) <= MOST_PICTURES and "world" not in episode.seen
    found = panels(episode)
    assert found["observation"].named.labels == ["home", "junction", "end", "reward"]
    assert found["output"].named.labels == ["left", "straight", "right"]
    assert found["output"].marked.sum(0).tolist() == [1] * episode.steps
    np.testing.assert_array_equal(found["output"].marked.argmax(0), episode.outputs.argmax(1))  # type: ignore[union-attr]
    titles = [axes.get_title(loc="left") for axes in episode_figure(episode).axes]
    assert "world" in titles
    memory_gif(tmp_path / "world.gif", episode)
    with Image.open(tmp_path / "world.gif") as film:
        assert film.n_frames == episode.steps  # type: ignore[attr-defined]


def test_long_episodes_keep_few_pictures_in_order() -> None:
    episode = shown(TMazeWorld(trials=400))
    steps, frames = episode.pictures["world"]
    assert episode.steps >= 400 and len(steps) == len(frames) <= MOST_PICTURES
    assert list(steps) == sorted(steps) and steps[-1] > episode.steps / 2


def gym_world(monkeypatch: pytest.MonkeyPatch, *, can_render: bool) -> GymWorld:
    gymnasium = pytest.importorskip("gymnasium")

    class Shown(gymnasium.Env):  # type: ignore[misc, name-defined]
        metadata = {"render_modes": ["rgb_array"], "render_fps": 1}
        observation_space = gymnasium.spaces.Box(-9, 9, (2,), np.float32)
        action_space = gymnasium.spaces.Discrete(2, start=5)

        def __init__(self, render_mode: str | None = None) -> None:
            if render_mode and not can_render:
                raise gymnasium.error.DependencyNotInstalled("no pencils")
            self.render_mode, self.time = render_mode, 0

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            self.time = 0
            return np.zeros(2, np.float32), {}

        def step(self, action: Any) -> Any:
            self.time += 1
            return np.array([self.time, -self.time / 100], np.float32), 1.0, self.time == 4, False, {}

        def render(self) -> Any:
            return np.full((400, 300, 3), 10 * self.time, np.uint8)

    name = f"Shown{int(can_render)}-v0"
    monkeypatch.setitem(
        gymnasium.registry,
        name,
        gymnasium.envs.registration.EnvSpec(name, Shown, max_episode_steps=9, reward_threshold=4.0),
    )
    return GymWorld(id=name)


def test_gymnasium_renders_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    world = gym_world(monkeypatch, can_render=True)
    episode = shown(world)
    steps, frames = episode.pictures["world"]
    assert list(steps) == [0, 1, 2, 3] and [int(frame[0, 0, 0]) for frame in frames] == [0, 10, 20, 30]
    assert max(frames.shape[1:3]) <= PICTURE_SIZE
    assert world.picture() is None, "the world that is trained in is left as it is"
    world.close()


def test_where_gymnasium_cannot_render_observations_and_actions_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    world = gym_world(monkeypatch, can_render=False)
    episode = shown(world)
    assert not episode.pictures and episode.steps == 4
    found = panels(episode)
    assert [label.split(",")[0] for label in found["observation"].named.labels] == ["observation 1", "observation 2"]
    assert found["output"].named.labels == ["action 5", "action 6"] and found["output"].marked.any()
    world.close()


def test_an_animation_has_the_colours_of_all_its_frames(tmp_path: Path) -> None:
    """What the memory held earlier was once shown in the colour of a head that it came near to."""
    memory = np.zeros((8, 10, 4), np.float32)
    memory[:4, 2] = -0.6
    memory[4:, 2] = 0.9
    memory[6:, 3] = -0.9
    weights = np.zeros((8, 1, 10), np.float32)
    weights[:, 0, 2] = 1
    seen = {
        "write_weights": Seen(weights, TraceField("H N", "weighting")),
        "memory": Seen(memory, TraceField("N W", "memory")),
    }
    memory_gif(tmp_path / "film.gif", Episode("", seen=seen))
    expected = np.array(WORDS((-0.6 + 0.9) / 1.8)[:3]) * 255
    with Image.open(tmp_path / "film.gif") as film:
        early = np.asarray(film.convert("RGB")).reshape(-1, 3).astype(int)
        film.seek(7)
        late = np.asarray(film.convert("RGB")).reshape(-1, 3).astype(int)
    assert (np.abs(early - expected).max(1) <= 6).sum() > 1000
    assert (np.abs(late - expected).max(1) <= 6).sum() < 100
    for colour in ((255, 255, 255), (255, 159, 28)):  # the paper and the head that writes
        assert (np.abs(early - colour).max(1) <= 4).sum() > 100


def test_fields_of_pictures_need_three_axes() -> None:
    check_fields("Own", {"view": TraceField("Y X C", "picture")})
    with pytest.raises(ValueError, match="a picture has at least three"):
        check_fields("Own", {"view": TraceField("Y X", "picture")})


def curves_of(rows: list[tuple[int, dict[str, float]]]) -> Any:
    history = History()
    history.add(rows)
    return history.panels()


def test_a_noisy_curve_is_smoothed_over_its_points_and_keeps_its_ends_and_mean() -> None:
    noise = np.random.default_rng(0).standard_normal(400)
    (curve,) = curves_of([(step, {"train/loss": 10 + float(value)}) for step, value in enumerate(noise)])["loss"]
    steps, values = smoothed(curve)
    assert len(steps) == len(values) <= 200
    assert values.std() < noise.std() / 2 and values.mean() == pytest.approx(curve.values.mean(), abs=0.05)
    (line,) = curves_of([(step, {"train/loss": 3.0 * step}) for step in range(RAW_POINTS + 1)])["loss"]
    np.testing.assert_allclose(smoothed(line)[1], line.values)


def test_parts_of_a_metric_share_a_panel() -> None:
    classes = {f"validation/images/accuracy/{name}": 0.5 for name in "0123456789"}
    row = {"validation/images/accuracy": 0.5, **classes, "train/accuracy": 0.1, "train/accuracy/7": 0.2}
    found = curves_of([(1, row), (2, row)])
    assert set(found) == {"accuracy", "accuracy of each"}
    assert [curve.label for curve in found["accuracy"]] == ["validation images", "train"]
    labels = [curve.label for curve in found["accuracy of each"]]
    assert labels == [*(f"validation images {name}" for name in "0123456789"), "train 7"]


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (6, 2), (7, 3), (12, 3), (30, 4)])
def test_many_curves_are_in_more_columns(count: int, columns: int) -> None:
    row = {f"value{number}": 1.0 for number in range(count)}
    figure = curves_figure(curves_of([(1, row), (2, row)]))
    assert {axes.get_subplotspec().get_geometry()[1] for axes in figure.axes} == {columns}  # type: ignore[union-attr]
