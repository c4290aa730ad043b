"""One-shot classification: which images an episode has, with which labels, and how they are moved."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from papertape.envs import DataError, OneShotEnv, images
from papertape.envs.image_classes import drawn_characters, load_classes, read_folders
from papertape.envs.one_shot import moved


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve classes in three alphabets, each of its own grey, in four files that differ by their first pixel."""
    for number in range(12):
        path = tmp_path / f"alphabet {number // 4}" / f"character {number % 4}"
        path.mkdir(parents=True)
        for image in range(4):
            pixels = np.full((6, 6), 5 * number + 5, np.uint8)
            pixels[0, 0] = 100 + 5 * image
            Image.fromarray(pixels).save(path / f"{image}.png")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def make(folder: Path, **options: object) -> OneShotEnv:
    plain = {"image_size": 6, "max_rotation": 0.0, "max_shift": 0, "turned": False, "classes": 3}
    return OneShotEnv(
        **{"data": str(folder), "images_per_class": 4, "validation_share": 0.25, "test_share": 0.25, **plain, **options}
    )


@pytest.mark.parametrize("think_steps", [0, 2])
def test_episodes_against_a_loop(folder: Path, think_steps: int) -> None:
    env = make(folder, images_per_class=3, think_steps=think_steps)
    assert (env.input_size, env.output_size) == (36 + 3, 3)
    inputs, targets, mask = env.sample(40, generator())
    every = 1 + think_steps
    assert inputs.shape == (9 * every, 40, 39) and targets.shape == mask.shape == (9 * every, 40)
    dealt = set()
    for b in range(40):
        label_of: dict[int, int] = {}
        seen = set()
        last = [0.0, 0.0, 0.0]
        for step in range(9):
            at = step * every
            pixels = (255 * inputs[at, b, :36]).round().int().tolist()
            assert not inputs[at + 1 : at + every, b].any()
            assert mask[at : at + every, b].tolist() == [0] * think_steps + [1]
            assert inputs[at, b, 36:].tolist() == last
            label = int(targets[at + think_steps, b])
            grey = pixels[-1]
            assert label_of.setdefault(grey, label) == label
            assert set(pixels[1:]) == {grey} and (grey, pixels[0]) not in seen
            seen.add((grey, pixels[0]))
            last = [float(label == other) for other in range(3)]
        assert len(label_of) == 3 and sorted(label_of.values()) == [0, 1, 2]
        dealt |= set(label_of.items())
    assert {label for grey, label in dealt if grey == min(dealt)[0]} == {0, 1, 2}


def test_each_stream_has_classes_of_its_own(folder: Path) -> None:
    env = make(folder)
    greys = {}
    for name, task in {
        "training": env,
        **{part: env.sets(part)["new classes"] for part in ("validation", "test")},
    }.items():
        inputs = task.sample(100, generator()).inputs
        greys[name] = set((255 * inputs[:, :, 35]).round().int().unique().tolist())
    assert [len(greys[name]) for name in greys] == [6, 3, 3]
    assert len(set.union(*greys.values())) == 12
    again = make(folder).sets("test")["new classes"].sample(100, generator()).inputs
    assert set((255 * again[:, :, 35]).round().int().unique().tolist()) == greys["test"]


def test_metrics_by_how_often_a_class_was_met(folder: Path) -> None:
    env = make(folder, think_steps=1)
    batch = env.sample(20, generator())
    outputs = torch.randn(*batch.mask.shape, 3, generator=generator())
    hits: dict[int, list[bool]] = {}
    for b in range(20):
        met = [0, 0, 0]
        for step in batch.mask[:, b].nonzero().flatten().tolist():
            label = int(batch.targets[step, b])
            met[label] += 1
            hits.setdefault(met[label], []).append(int(outputs[step, b].argmax()) == label)
    metrics = env.metrics(outputs, batch)
    assert {name: metrics[name] for name in metrics if "/" in name} == pytest.approx(
        {f"accuracy/{number}": sum(found) / len(found) for number, found in hits.items()}
    )
    later = [hit for number in (2, 3, 4) for hit in hits[number]]
    assert metrics["error_rate"] == pytest.approx(1 - sum(later) / len(later))


def test_moved_against_a_loop() -> None:
    size, count = 7, 4
    pictures = torch.rand(count, size, size, generator=generator(), dtype=torch.float64)
    angle = torch.tensor([0.0, 0.3, -1.2, math.pi / 2], dtype=torch.float64)
    shift = torch.tensor([[1, -2], [0, 0], [2, 1], [-1, 0]])
    found = moved(pictures, angle, shift)
    middle = (size - 1) / 2
    for n in range(count):
        for row in range(size):
            for column in range(size):
                y, x = row - int(shift[n, 0]) - middle, column - int(shift[n, 1]) - middle
                cosine, sine = math.cos(float(angle[n])), math.sin(float(angle[n]))
                # Counterclockwise as it is seen, rows counted downwards.
                from_x, from_y = cosine * x - sine * y + middle, sine * x + cosine * y + middle
                total = 0.0
                for i in (math.floor(from_y), math.floor(from_y) + 1):
                    for j in (math.floor(from_x), math.floor(from_x) + 1):
                        if 0 <= i < size and 0 <= j < size:
                            total += (1 - abs(from_y - i)) * (1 - abs(from_x - j)) * float(pictures[n, i, j])
                assert float(found[n, row, column]) == pytest.approx(total, abs=1e-9)
    turned = moved(pictures, torch.full((count,), math.pi / 2, dtype=torch.float64), torch.zeros(count, 2))
    torch.testing.assert_close(turned, pictures.rot90(1, (1, 2)))


def test_turned_classes_are_others(folder: Path) -> None:
    env = make(folder, turned=True)
    inputs, targets, _ = env.sample(200, generator())
    corners = set()
    for b in range(200):
        by_label: dict[int, set[tuple[int, int]]] = {}
        for step in range(12):
            image = (255 * inputs[step, b, :36].view(6, 6)).round().int()
            (place,) = (image != image[2, 2]).nonzero().tolist()
            by_label.setdefault(int(targets[step, b]), set()).add((int(image[2, 2]), *place))  # type: ignore[arg-type]
        assert all(len(looks) == 1 for looks in by_label.values())
        assert len(set.union(*by_label.values())) == 3
        corners |= {look[1:] for looks in by_label.values() for look in looks}
    assert corners == {(0, 0), (0, 5), (5, 0), (5, 5)}


def test_images_are_turned_and_moved_each_for_itself(folder: Path) -> None:
    still = make(folder, image_size=12).sample(30, generator()).inputs[..., :144]
    turning = make(folder, image_size=12, max_rotation=10.0, max_shift=2)
    first, second = (turning.sample(30, generator()).inputs[..., :144] for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(first, still)
    assert float(first.min()) >= 0 and float(first.max()) <= 1
    assert len({tuple(image.tolist()) for image in first.flatten(0, 1)}) > len(
        {tuple(i.tolist()) for i in still.flatten(0, 1)}
    )


def test_letters_are_many_and_differ() -> None:
    groups = drawn_characters(20)
    assert len(groups) > 400 and {group.shape for group in groups} == {(12, 20, 20)}
    assert len({group[0].numpy().tobytes() for group in groups}) == len(groups)
    assert all(group.flatten(1).any(1).all() for group in groups)


def test_ink_on_paper_becomes_bright_on_dark(folder: Path) -> None:
    dark = load_classes(str(folder), 6)
    for file in folder.rglob("*.png"):
        Image.fromarray(255 - np.array(Image.open(file))).save(file)
    assert torch.equal(load_classes(str(folder), 6).images, dark.images)


def test_digits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up = (torch.randint(256, (40, 28, 28), generator=generator(), dtype=torch.uint8) // 4, torch.arange(40) % 10)
    monkeypatch.setattr(images, "load", lambda name: (made_up, made_up))
    env = OneShotEnv(data="mnist", classes=2, images_per_class=5, validation_share=0.2, test_share=0.2)
    assert env.labelled.images.shape == (80, 20, 20) and env.labelled.counts.tolist() == [8] * 10
    assert env.sample(3, generator()).inputs.shape == (10, 3, 402)


def test_what_cannot_be_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"^data: got '/nowhere', which is no folder here; allowed are folders, char"):
        make(Path("/nowhere"))
    with pytest.raises(ValueError, match="^images_per_class: got 5; .* has classes of 4, the most allowed"):
        make(folder, images_per_class=5)
    with pytest.raises(ValueError, match="^classes: got 4; .* has 3 for test, the most allowed"):
        make(folder, classes=4)
    with pytest.raises(
        ValueError, match="^test_share: got 0.8; allowed is less than 1 - validation_share, which is 0.75"
    ):
        make(folder, test_share=0.8)
    with pytest.raises(ValueError, match="^max_shift: got 6; allowed is less than image_size, which is 6"):
        make(folder, max_shift=6)
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="^data: .* none of its folders holds an image"):
        make(folder / "empty")
    (folder / "alphabet 0" / "character 0" / "9.png").write_text("no image")
    with pytest.raises(DataError, match=r"9\.png: is no image that can be read"):
        make(folder)


@pytest.mark.parametrize("content", [b"P5 8 8 2;", b"P5 60000 60000 255\n", b"P5", b"\x89PNG\r\n\x1a\nrubbish"])
def test_damaged_images_are_named(folder: Path, content: bytes) -> None:
    (folder / "alphabet 0" / "character 0" / "9.pgm").write_bytes(content)
    with pytest.raises(DataError, match=r"9\.pgm: is no image that can be read"):
        make(folder)


def test_images_of_16_bits_and_transparent_ones_are_grey(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    ramp = np.linspace(0, 65535, 36).astype(np.uint16).reshape(6, 6)
    Image.fromarray(ramp).save(tmp_path / "a" / "0.png")
    ink = np.zeros((6, 6, 4), np.uint8)
    ink[2, :, 3] = 255  # black, on what is transparent
    Image.fromarray(ink).save(tmp_path / "a" / "1.png")
    Image.fromarray(ink).convert("LA").save(tmp_path / "a" / "2.png")
    (found,) = read_folders(tmp_path, 6)
    assert found[0].tolist() == (ramp >> 8).tolist()
    white = np.full((6, 6), 255)
    white[2] = 0
    assert found[1].tolist() == found[2].tolist() == white.tolist()


@pytest.mark.parametrize("kind", [np.float32, np.int32])
@pytest.mark.parametrize("white", [1, 255, 65535, 100_000])
def test_numbers_without_a_scale_of_their_own_are_as_bright_as_what_they_hold(
    tmp_path: Path, kind: type, white: int
) -> None:
    (tmp_path / "a").mkdir()
    ramp = (np.linspace(0, 1, 36) * white).astype(kind).reshape(6, 6)
    ramp[0, 0] = -white
    Image.fromarray(ramp).save(tmp_path / "a" / "0.tif")
    if kind is np.float32:
        ramp[0, :3] = np.nan, np.inf, -np.inf
        Image.fromarray(ramp).save(tmp_path / "a" / "1.tif")
    with Image.open(tmp_path / "a" / "0.tif") as image:
        assert image.mode == ("F" if kind is np.float32 else "I")
    (found,) = read_folders(tmp_path, 6)
    due = (np.nan_to_num(ramp.astype(float), posinf=0, neginf=0).clip(0) * 255 / white).round()
    np.testing.assert_allclose(found[-1], due, atol=1)
    assert found[-1].max() == 255 and found[-1][0, 0] == 0


def test_folders_behind_links_are_classes_each_once(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    links = tmp_path_factory.mktemp("links")
    for number in range(3):
        (links / f"class {number}").symlink_to(folder / "alphabet 0" / f"character {number}")
    (links / "once more").symlink_to(folder / "alphabet 0" / "character 0")
    (links / "round").symlink_to(links)
    assert [len(images) for images in read_folders(links, 6)] == [4, 4, 4]
