"""Letters: what is drawn, where it is moved to, and the task made of it."""

from __future__ import annotations

import pytest
import torch

from papertape.envs import LettersEnv
from papertape.envs.classification import shifted
from papertape.envs.letters import draw_letters, font_path


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def boxes(images: torch.Tensor) -> list[tuple[int, int, int, int]]:
    found = []
    for image in images:
        rows, columns = image.any(1).nonzero(), image.any(0).nonzero()
        found.append((int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())))
    return found


def test_letters_are_centred_and_differ() -> None:
    images = draw_letters("DejaVu Sans", 24, 40)
    assert images.shape == (26, 40, 40) and images.dtype == torch.uint8
    for top, bottom, left, right in boxes(images):
        assert abs(top - (39 - bottom)) <= 1 and abs(left - (39 - right)) <= 1
        assert 10 <= bottom - top <= 26
    assert len({tuple(image.flatten().tolist()) for image in images}) == 26
    assert (images == 255).any()


def test_font_may_be_a_family_or_a_file() -> None:
    path = font_path("DejaVu Serif")
    assert path.endswith(".ttf")
    assert torch.equal(draw_letters(path, 20, 30), draw_letters("DejaVu Serif", 20, 30))
    assert not torch.equal(draw_letters("DejaVu Serif", 20, 30), draw_letters("DejaVu Sans", 20, 30))


@pytest.mark.parametrize(
    ("font", "size", "message"),
    [
        ("No Such Font", 20, "fonts: got 'No Such Font', which is not a font here; there are .*DejaVu Sans"),
        ("STIXNonUnicode", 20, "fonts: got 'STIXNonUnicode', which has no A"),
        ("DejaVu Sans", 60, "font_sizes: got 60; . in DejaVu Sans is then .* pixels, allowed is at most 30"),
    ],
)
def test_fonts_that_do_not_serve_are_refused(font: str, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_letters(font, size, 30)


def test_defaults_are_the_published_setting() -> None:
    env = LettersEnv()
    assert (env.input_size, env.output_size, "".join(env.classes)) == (10_000, 26, "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    inputs, targets, mask = env.sample(26, generator())
    assert inputs.shape == (1, 26, 10_000) and mask.shape == (1, 26)
    assert torch.equal(targets.sum((0, 1)), torch.ones(26))
    assert float(inputs.min()) == 0 and float(inputs.max()) == 1


def test_every_font_size_and_place_turns_up() -> None:
    env = LettersEnv(
        image_size=30, fonts=["DejaVu Sans", "DejaVu Serif"], font_sizes=[12, 16], max_shift=2, sampling="uniform"
    )
    assert len(env.labelled) == 4 * 26
    batch = env.sample(4000, generator())
    images = batch.inputs[0].reshape(-1, 30, 30).mul(255).round().byte()
    hits = (batch.targets[0].argmax(-1) == 0).nonzero().flatten()
    seen = {tuple(images[hit].flatten().tolist()) for hit in hits}
    every = {
        tuple(
            shifted(env.labelled.images[number : number + 1], torch.tensor([down]), torch.tensor([across]))
            .flatten()
            .tolist()
        )
        for number in range(0, 104, 26)
        for down in range(-2, 3)
        for across in range(-2, 3)
    }
    assert seen <= every and len(seen) > 70
    again = env.sample(4000, generator())
    assert torch.equal(again.inputs, batch.inputs)


def test_fonts_of_the_test_are_not_looked_at_before() -> None:
    env = LettersEnv(image_size=20, font_sizes=[12], test_fonts=["DejaVu Serif", "DejaVu Sans Mono"])
    assert list(env.sets("validation")) == ["trained fonts"]
    sets = env.sets("test")
    assert list(sets) == ["trained fonts", "new fonts"]
    sizes = [sum(part.inputs.shape[1] for part in variant.batches(10)) for variant in sets.values()]
    assert sizes == [26, 52]
    assert list(LettersEnv(image_size=20, font_sizes=[12]).sets("test")) == ["trained fonts"]
    moving = LettersEnv(image_size=20, font_sizes=[12], max_shift=1)
    assert moving.batches(10) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 4}, "image_size"),
        ({"fonts": []}, "fonts"),
        ({"font_sizes": [0]}, r"font_sizes\.0"),
        ({"font_sizes": []}, "font_sizes"),
        ({"max_shift": -1}, "max_shift"),
        ({"max_shift": 100}, "max_shift: got 100; allowed is less than image_size, which is 100"),
        ({"loss_per": "bit"}, "loss_per: got 'bit'; allowed: 'sequence'"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        LettersEnv(**options)
