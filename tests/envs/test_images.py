"""Reading, checking and downloading IDX files, and the task made of them."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
from pathlib import Path

import pytest
import torch

from papertape.envs import ImagesEnv
from papertape.envs import images as module
from papertape.envs.images import DATA_SETS, DataError, DataSet, fetch, load, read_idx

NAMES = list(DATA_SETS["mnist"].checksums)
TRAIN, TEST = 30, 7


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def idx(values: torch.Tensor) -> bytes:
    header = struct.pack(f">HBB{values.dim()}I", 0, 8, values.dim(), *values.shape)
    return gzip.compress(header + values.to(torch.uint8).numpy().tobytes(), mtime=0)


def small_set() -> list[torch.Tensor]:
    random = generator()
    tensors = []
    for count in (TRAIN, TEST):
        tensors.append(torch.randint(256, (count, 4, 5), generator=random, dtype=torch.uint8))
        tensors.append(torch.arange(count) % 10)
    return tensors


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that serves a small data set in place of MNIST; the data folder is still empty."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    files = {name: idx(tensor) for name, tensor in zip(NAMES, small_set(), strict=True)}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    checksums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    mirrors = ((tmp_path / "gone").as_uri() + "/", folder.as_uri() + "/")
    monkeypatch.setitem(module.DATA_SETS, "mnist", DataSet(tuple("0123456789"), mirrors, checksums))
    monkeypatch.setenv("PAPERTAPE_DATA", str(tmp_path / "data"))
    return folder


def test_downloads_once_from_the_first_mirror_that_has_it(mirror: Path, tmp_path: Path) -> None:
    expected = small_set()
    for _ in range(2):
        (images, labels), (test_images, test_labels) = load("mnist")
        for found, tensor in zip((images, labels, test_images, test_labels), expected, strict=True):
            assert torch.equal(found, tensor)
        for name in NAMES:
            (mirror / name).unlink(missing_ok=True)
    assert sorted(path.name for path in (tmp_path / "data" / "mnist").iterdir()) == sorted(NAMES)


def test_without_papertape_data_files_go_to_the_cache(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PAPERTAPE_DATA")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load("mnist")
    assert (tmp_path / "home" / ".cache" / "papertape" / "mnist" / NAMES[0]).exists()


def test_without_a_home_folder_it_is_said_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("PAPERTAPE_DATA", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(DataError, match="^mnist: there is no home folder; set HOME or PAPERTAPE_DATA$"):
        load("mnist")


def test_offline_is_one_clear_line(mirror: Path) -> None:
    for name in NAMES:
        (mirror / name).unlink()
    with pytest.raises(DataError, match=f"{NAMES[0]}: is missing and cannot be downloaded .*PAPERTAPE_DATA") as error:
        load("mnist")
    assert "\n" not in str(error.value)


def test_a_changed_download_is_not_kept(mirror: Path, tmp_path: Path) -> None:
    (mirror / NAMES[0]).write_bytes(b"something else")
    with pytest.raises(DataError, match="MD5 .* instead of"):
        load("mnist")
    assert not list(tmp_path.glob("data/mnist/*"))


def test_a_changed_file_is_refused_and_left_alone(mirror: Path, tmp_path: Path) -> None:
    load("mnist")
    path = tmp_path / "data" / "mnist" / NAMES[2]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{NAMES[2]}: got MD5 .*; the published file has"):
        load("mnist")
    assert path.exists()


def test_a_folder_that_cannot_be_written_is_an_error(mirror: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file, not a folder")
    with pytest.raises(DataError, match="cannot be written"):
        load("mnist")


def test_a_mirror_that_breaks_off_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"whole"

    def broken(address: str, timeout: float) -> None:
        raise module.HTTPException("cut short")

    monkeypatch.setattr(module.urllib.request, "urlopen", broken)
    with pytest.raises(DataError, match="cut short"):
        fetch(tmp_path / "file", ("http://localhost/",), hashlib.md5(content).hexdigest())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"plain text",
        gzip.compress(b""),
        gzip.compress(b"\0\0"),
        gzip.compress(struct.pack(">HBB", 0, 8, 0)),
        gzip.compress(struct.pack(">HBBI", 0, 8, 1, 3) + b"\1\2"),
        gzip.compress(struct.pack(">HBBI", 0, 8, 1, 3) + b"\1\2\3\4"),
        gzip.compress(struct.pack(">HBBI", 0, 13, 1, 3) + b"\1\2\3"),
        gzip.compress(struct.pack(">HBBI", 1, 8, 1, 3) + b"\1\2\3"),
        gzip.compress(struct.pack(">HBBI", 0, 8, 1, 0)),
        gzip.compress(struct.pack(">HBBI", 0, 8, 3, 3)),
        gzip.compress(struct.pack(">HBBI", 0, 8, 1, 3) + b"\1\2\3")[:-9],
        gzip.compress(bytes(1000))[:12] + b"\xff" * 30,
    ],
    ids=map(str, range(13)),  # what is compressed has the time in it
)
def test_broken_idx_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"file\.gz: not a"):
        read_idx(path)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 2, 3)])
def test_read_idx_gives_back_what_was_written(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = torch.randint(256, shape, generator=generator(), dtype=torch.uint8)
    (tmp_path / "file.gz").write_bytes(idx(values))
    assert torch.equal(read_idx(tmp_path / "file.gz"), values)


def test_labels_that_do_not_fit_the_images_are_refused(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = small_set()
    content = idx(tensors[1] + 1)
    (mirror / NAMES[1]).write_bytes(content)
    data_set = module.DATA_SETS["mnist"]
    checksums = data_set.checksums | {NAMES[1]: hashlib.md5(content).hexdigest()}
    monkeypatch.setitem(module.DATA_SETS, "mnist", data_set._replace(checksums=checksums))
    with pytest.raises(DataError, match="do not match"):
        load("mnist")


@pytest.mark.parametrize("validation", [0, 8])
def test_training_validation_and_test_images_stay_apart(mirror: Path, validation: int) -> None:
    env = ImagesEnv(validation=validation)
    assert (env.input_size, env.output_size) == (20, 10)
    images, labels, test_images, test_labels = small_set()
    ((name, judge),) = env.sets("validation").items()
    ((tested, test),) = env.sets("test").items()
    assert (name, tested) == ("images" if validation else "training images", "images")
    kept = TRAIN - validation
    judged = slice(kept, None) if validation else slice(None)
    for part, some_images, some_labels in [
        (env, images[:kept], labels[:kept]),
        (judge, images[judged], labels[judged]),
        (test, test_images, test_labels),
    ]:
        whole = next(part.batches(100))
        torch.testing.assert_close(whole.inputs[0], some_images.flatten(1) / 255)
        assert torch.equal(whole.targets[0].argmax(-1), some_labels)
        drawn = part.sample(50, generator()).inputs[0]
        assert (drawn.unsqueeze(1) == whole.inputs[0]).all(-1).any(-1).all()


def test_only_images_to_learn_from_are_moved(mirror: Path) -> None:
    env, still = ImagesEnv(validation=8, max_shift=1), ImagesEnv(validation=8)
    images = torch.nn.functional.pad(small_set()[0][:22] / 255, (1, 1, 1, 1))
    places = [(down, across) for down in range(3) for across in range(3)]
    moved = torch.stack([images[:, down : down + 4, across : across + 5] for down, across in places], 1).flatten(2)
    found = (env.sample(200, generator()).inputs[0][:, None, None] == moved).all(-1)
    assert found.any((1, 2)).all() and found.any((0, 1)).all()
    for stream in ("validation", "test"):
        ((_, judge),), ((_, same),) = env.sets(stream).items(), still.sets(stream).items()
        assert torch.equal(next(judge.batches(100)).inputs, next(same.batches(100)).inputs)
        assert torch.equal(judge.sample(20, generator()).inputs, same.sample(20, generator()).inputs)


def test_same_seed_same_batch(mirror: Path) -> None:
    env = ImagesEnv(validation=0, sampling="balanced")
    first, second, other = (env.sample(20, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.inputs, second.inputs) and not torch.equal(first.inputs, other.inputs)
    assert (first.targets.sum((0, 1)) == 2).all()
    assert float(first.inputs.min()) >= 0 and float(first.inputs.max()) <= 1


def test_no_training_image_left_is_refused(mirror: Path) -> None:
    with pytest.raises(ValueError, match="validation: got 30; allowed is less than the 30 images"):
        ImagesEnv(validation=TRAIN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "cifar"}, "^data: got 'cifar'; allowed: 'mnist' or 'fashion-mnist'"),
        ({"max_shift": 28}, "^max_shift: got 28; allowed: less than 28"),
        ({"validation": -1}, "^validation: got -1; allowed: greater than or equal to 0"),
        ({"sampling": "even"}, "^sampling: got 'even'; allowed: 'uniform' or 'balanced'"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImagesEnv(**options)


HERE = Path(os.environ.get("PAPERTAPE_DATA", "nowhere"), "mnist", NAMES[0])


@pytest.mark.skipif(not HERE.exists(), reason="MNIST is not in PAPERTAPE_DATA")
def test_mnist_itself() -> None:
    env = ImagesEnv()
    assert (env.input_size, env.output_size) == (784, 10)
    counts = torch.zeros(10)
    for batch in env.sets("test")["images"].batches(3000):
        counts += batch.targets.sum((0, 1))
    assert counts.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert len(env.labelled) == 55_000
    assert env.sample(200, generator()).inputs.shape == (1, 200, 784)
