"""The page: which windows there are, in which order, and what is in them."""

from __future__ import annotations

import base64
import io
import json
import os
import threading
from typing import Any

import numpy as np
import pytest
from PIL import Image

from papertape.core.trace_field import Channels, TraceField
from papertape.utils.drawing import page
from papertape.utils.drawing.files import png
from papertape.utils.drawing.page import Visdom
from papertape.utils.drawing.pipe import Settings
from papertape.utils.drawing.plotly import MAX_SLIDER, MAX_SLIDER_CELLS, episode_windows, in_order
from papertape.utils.plots import Episode, History, Seen, episode_figure, layout_of


class Client:
    """Stands for visdom's: keeps what it is sent, in order."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any], str]] = []

    def _send(self, message: dict[str, Any], endpoint: str = "events") -> None:
        json.dumps(message, allow_nan=False)
        self.sent.append((message["win"], message, endpoint))

    def text(self, text: str, *, win: str, opts: dict[str, Any]) -> None:
        self._send({"win": win, "text": text, "opts": opts})

    def close(self, win: str) -> None:
        self.sent = [message for message in self.sent if message[0] != win]

    def win_exists(self, win: str) -> bool:
        return win in self.order

    def save(self, environments: list[str]) -> None:
        pass

    @property
    def order(self) -> list[str]:
        return list(dict.fromkeys(name for name, *_ in self.sent))

    def last(self, name: str) -> dict[str, Any]:
        return [message for win, message, _ in self.sent if win == name][-1]


def visdom() -> tuple[Visdom, Client]:
    shown = Visdom(Settings("/nowhere", "a_run", "auto", "localhost", 1, None, None, None, 15.0, os.getpid()))
    shown.client = client = Client()
    return shown, client


class Pages:
    """Stands for a server: a client for each environment."""

    url = "http://nowhere"

    def __init__(self, **folders: str) -> None:
        self.clients: dict[str, Client] = {}
        for name, folder in folders.items():
            self.client(name).text(f"<h4>{name}</h4><p>kept in {folder}</p>", win="title", opts={})
            self.client(name).text("words", win="text", opts={})

    def ensure(self, again: bool = False) -> str:
        return ""

    def client(self, environment: str) -> Client:
        return self.clients.setdefault(environment, Client())

    def text(self, environment: str, window: str) -> str | None:
        shown = self.clients.get(environment)
        return shown.last(window)["text"] if shown and shown.win_exists(window) else None

    def environment_url(self, environment: str) -> str:
        return f"{self.url}/env/{environment}"

    def has(self, environment: str) -> bool:
        return environment in self.clients

    def forget(self, environment: str) -> None:
        self.clients.pop(environment, None)


@pytest.mark.parametrize(
    ("there", "name"),
    [
        ({}, "a_run"),
        ({"a_run": "/nowhere"}, "a_run"),  # of an earlier run in its folder
        ({"a_run": "/nowhere/else", "b": "/nowhere"}, "a_run-2"),
        ({"a_run": "/else", "a_run-2": "/nowhere/else", "a_run-3": "/nowhere"}, "a_run-3"),
    ],
)
def test_the_page_of_another_folder_is_left_alone(
    there: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "CLAIM_SECONDS", 0)
    shown, _ = visdom()
    shown.server = pages = Pages(**there)  # type: ignore[assignment]
    assert shown.connect() == ""
    assert {other for other, client in pages.clients.items() if client.win_exists("text")} == set(there) - {name}
    # Another run of the same name is told from now on whose page this is.
    other, _ = visdom()
    other.settings = other.settings._replace(directory="/somewhere")
    other.server = pages  # type: ignore[assignment]
    assert other.connect() == "" and other.environment not in {*there, name}
    client = pages.client(name)
    shown.curves(curves(*ALL))
    assert "title" not in client.order
    shown.finish()
    assert client.last("title")["text"] == f"<h4>{name}</h4><p>kept in /nowhere</p>"
    assert client.last("curve loss")["eid"] == name
    assert client.order.index("curve loss") < client.order.index("title") and page.CLAIM not in client.order
    assert pages.text(other.environment, page.CLAIM) is not None


def test_of_two_runs_that_find_a_page_free_at_once_one_takes_another() -> None:
    pages, both = Pages(), [visdom()[0] for _ in range(2)]
    together = threading.Barrier(2, timeout=60)
    look = pages.text

    def text(environment: str, window: str) -> str | None:
        shown = look(environment, window)
        if environment == "a_run" and window == page.CLAIM and shown is None:
            together.wait()
        return shown

    pages.text = text  # type: ignore[method-assign]
    for number, shown in enumerate(both):
        shown.settings = shown.settings._replace(directory=f"/{number}")
        shown.server = pages  # type: ignore[assignment]
    threads = [threading.Thread(target=shown.connect) for shown in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {shown.environment for shown in both} == {"a_run", "a_run-2"}
    for shown in both:
        assert str(pages.text(shown.environment, page.CLAIM)).endswith(shown.place)


@pytest.mark.parametrize("noticed", [True, False])
@pytest.mark.parametrize(
    ("there", "name"), [({}, "a_run"), ({"a_run": "/nowhere"}, "a_run"), ({"a_run": "/else"}, "a_run-2")]
)
def test_a_server_that_comes_back_is_asked_whose_page_it_is(
    there: dict[str, str], name: str, noticed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that has lost its pages may have given this one to another run meanwhile."""
    monkeypatch.setattr(page, "CLAIM_SECONDS", 0)
    shown, _ = visdom()
    shown.server = Pages()  # type: ignore[assignment]
    assert shown.connect() == ""
    shown.curves(curves(*ALL))
    shown.server = pages = Pages(**there)  # type: ignore[assignment]
    if noticed:
        shown.client, shown.retry = None, page.Schedule(0)
    else:
        shown.client = pages.client("a_run")
    capsys.readouterr()
    shown.curves(curves(*ALL))
    shown.finish()
    assert shown.environment == name
    assert pages.client(name).last("title")["text"] == f"<h4>{name}</h4><p>kept in /nowhere</p>"
    assert pages.client(name).last("curve loss")["eid"] == name
    for other in set(there) - {name}:
        assert pages.client(other).order == ["title", "text"]
    assert ("watch the run at http://nowhere/env/a_run-2" in capsys.readouterr().out) == (name == "a_run-2")


def episode(steps: int = 6, slots: int = 8, heads: int = 2, name: str = "length 3") -> Episode:
    random = np.random.default_rng(0)
    bits = (random.random((steps, 3)) > 0.5).astype(np.float32)
    weights = random.dirichlet(np.ones(slots), (steps, heads)).astype(np.float32)
    memory = random.standard_normal((steps, slots, 4)).astype(np.float32)
    seen = {
        "read_weights": Seen(weights, TraceField("R N", "weighting")),
        "write_weights": Seen(weights[:, :1], TraceField("H N", "weighting")),
        "memory": Seen(memory, TraceField("N W", "memory")),
        "usage": Seen(weights[:, 0], TraceField("N", "weighting")),
        "write_gates": Seen(weights[:, :1, 0], TraceField("H", "gate")),
        "add": Seen(memory[:, :1], TraceField("H W", "words")),
    }
    mask = np.arange(steps) >= steps // 2
    return Episode(name, bits, bits, bits * 0.8 + 0.3, mask.astype(np.float32), seen)


def curves(*names: str, count: int = 5) -> Any:
    history = History()
    history.add((step, dict.fromkeys(names, 1.0 + step)) for step in range(count))
    return history.panels()


ALL = ("train/loss", "train/learning_rate", "train/bits_wrong", "temperature")


def test_loss_error_and_the_memory_at_work_come_first() -> None:
    shown, client = visdom()
    shown.text("options", "seed: 1")
    shown.curves(curves(*ALL))
    assert client.order == ["curve loss", "curve bits_wrong"], "what belongs below waits"
    shown.episode(1, episode())
    shown.episode(1, episode(name="length 9"))
    parts = ("memory", "write weights", "read weights, head 1 of 2", "output", "input", "target", "usage", "gates")
    assert client.order[2:10] == [f"length 3 {part}" for part in parts]
    below = client.order[10:]
    assert {"curve learning_rate", "curve temperature", "text options", "title", "length 9 memory"} <= set(below)
    assert below.index("curve temperature") < below.index("text options")


def test_nine_windows_of_a_size_lie_above_the_lower_edge_of_a_usual_screen() -> None:
    across, down = (page.WINDOW[side] for side in ("width", "height"))
    assert 3 * (across + 10) + 10 <= 1585, "with a scroll bar"
    rows = -(-(down + 14 + 10) // 15) * 15  # visdom's grid
    assert 60 + 3 * rows <= 1000
    shown, client = visdom()
    shown.curves(curves(*ALL))
    shown.episode(1, episode())
    sizes = {tuple(client.last(name)["opts"][side] for side in ("width", "height")) for name in client.order}
    assert sizes == {(across, down)}, "with one size nothing overlaps and no gap is left"


def test_what_waits_for_an_episode_that_never_comes_is_shown_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, client = visdom()
    shown.text("options", "seed: 1")
    shown.curves(curves(*ALL))
    shown.finish()
    assert {"curve temperature", "text options", "title"} <= set(client.order)
    monkeypatch.setattr(page, "WAIT_SECONDS", 0)
    shown, client = visdom()
    shown.curves(curves(*ALL))
    assert "curve temperature" in client.order


def strong(shown: Episode, largest: float) -> Episode:
    """The same with gates up to so much; beyond 1 they leave the panel of the gates."""
    gates = shown.seen["write_gates"]
    return shown._replace(seen={**shown.seen, "write_gates": gates._replace(values=largest * gates.values)})


def test_windows_of_what_is_no_longer_there_are_closed() -> None:
    shown, client = visdom()
    shown.curves(curves(*ALL))
    shown.episode(1, episode())
    shown.episode(1, episode(name="length 9"))
    assert "length 3 gates" in client.order and "length 3 write gates" not in client.order
    shown.episode(2, strong(episode(), 9))
    assert "length 3 gates" not in client.order and {"length 3 write gates", "length 9 gates"} <= set(client.order)
    shown.episode(3, episode())
    assert "length 3 gates" in client.order and "length 3 write gates" not in client.order


def test_windows_are_closed_on_a_server_that_was_away_meanwhile() -> None:
    shown, client = visdom()
    shown.curves(curves(*ALL))
    shown.episode(1, episode())
    shown.client = None
    shown.episode(2, strong(episode(), 9))
    assert "length 3 gates" in client.order
    shown.client = client
    shown.everything()
    assert "length 3 gates" not in client.order and "length 3 write gates" in client.order


def test_curves_that_are_unknown_come_first_where_there_are_no_others() -> None:
    shown, client = visdom()
    shown.curves(curves("train/joy", "train/sorrow", "train/rest"))
    assert client.order == ["curve joy", "curve sorrow"]


def test_no_window_is_empty() -> None:
    shown, client = visdom()
    history = History()
    history.add((step, {"train/loss": 1.0, "train/broken": float("nan")}) for step in range(3))
    shown.curves(history.panels())
    shown.episode(1, episode())
    shown.finish()
    assert "curve broken" not in client.order
    for name in client.order:
        message = client.last(name)
        if "data" in message:
            assert any(trace.get("z") or trace.get("x") for trace in message["data"]), name


def test_errors_are_smoothed_over_the_raw_curve() -> None:
    shown, client = visdom()
    history = History()
    noise = np.random.default_rng(0).standard_normal(300)
    history.add((step, {"train/bits_wrong": 9 + float(value)}) for step, value in enumerate(noise))
    shown.curves(history.panels())
    raw, smooth = client.last("curve bits_wrong")["data"]
    assert "0.25" in raw["line"]["color"] and raw["showlegend"] is False
    assert np.std(smooth["y"]) < np.std(raw["y"]) / 2
    assert smooth["line"]["width"] > raw["line"]["width"]


def test_the_memory_has_a_slider_over_the_steps() -> None:
    shown = episode()
    (window,) = (window for window in episode_windows(shown) if window.name == "memory")
    (slider,) = window.axes["sliders"]
    assert [step["label"] for step in slider["steps"]] == list("012345")
    assert slider["active"] == 5
    for step, place in enumerate(slider["steps"]):
        assert place["method"] == "restyle" and place["args"][1] == [0]
        np.testing.assert_allclose(place["args"][0]["z"][0], shown.seen["memory"].values[step], atol=1e-3)
    memory = shown.seen["memory"].values
    assert window.heatmap["zmax"] == pytest.approx(np.abs(memory).max()), "one scale for all steps"


def test_large_memories_and_long_episodes_stay_small_on_the_page() -> None:
    large = episode(steps=300, slots=900)
    windows = {window.name: window for window in episode_windows(large)}
    steps = windows["memory"].axes["sliders"][0]["steps"]
    cells = sum(np.size(step["args"][0]["z"][0]) for step in steps)
    assert 2 <= len(steps) <= MAX_SLIDER and cells <= MAX_SLIDER_CELLS
    assert steps[-1]["label"] == "299"
    weights = windows["write weights"]
    rows = np.shape(weights.heatmap["z"])[0]
    assert rows <= 400 and weights.heatmap["dy"] * rows >= 900 and weights.axes["yaxis"]["range"] == [899.5, -0.5]


def test_earlier_pictures_are_kept_with_a_slider_over_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "EARLIER_PICTURES", 4)
    shown, client = visdom()
    shown.curves(curves(*ALL))
    for step in range(1, 4):
        shown.episode(step, episode(), png(episode_figure(episode()._replace(name=f"step {step}"))))
        assert ("length 3 over training" in client.order) == (step > 1), "one picture makes no slider"
    sent = [(message, endpoint) for name, message, endpoint in client.sent if name == "length 3 over training"]
    assert [endpoint for _, endpoint in sent] == ["events", "update", "update"]
    source = sent[0][0]["data"][0]["content"]["src"].removeprefix("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(source))) as picture:
        lowest = np.asarray(picture.convert("L"))[-picture.height // 30 :]
    assert lowest.min() > 250, "the slider lies over nothing"
    for step in range(4, 7):
        shown.episode(step, episode(), png(episode_figure(episode())))
    assert [step for step, _ in shown.earlier["length 3"]] == shown.sent["length 3 over training"]
    assert shown.earlier["length 3"][0][0] == 1 and shown.earlier["length 3"][-1][0] == 6
    assert len(shown.earlier["length 3"]) <= 4


def test_heads_are_apart_and_named() -> None:
    names = [window.name for window in episode_windows(episode(heads=3))]
    assert {f"read weights, head {head} of 3" for head in (1, 2, 3)} <= set(names)
    many = {window.name: window for window in episode_windows(episode(heads=7))}["read weights"]
    assert len(many.axes["shapes"]) == 6 and many.axes["yaxis"]["ticktext"] == [f"head {n}" for n in range(1, 8)]


def test_wrong_bits_are_marked_and_what_does_not_count_is_veiled() -> None:
    shown = episode()
    (window,) = (window for window in episode_windows(shown) if window.name == "output")
    (veil,) = window.axes["shapes"]
    assert (veil["x0"], veil["x1"]) == (-0.5, 2.5)
    right = shown._replace(outputs=shown.targets)
    (window,) = (window for window in episode_windows(right) if window.name == "output")
    assert not window.above
    flipped = shown._replace(outputs=1 - shown.targets)  # type: ignore[operator]
    (window,) = (window for window in episode_windows(flipped) if window.name == "output")
    assert len(window.above[0]["x"]) == 3 * 3


def test_axes_say_what_they_are() -> None:
    windows = {window.name: window for window in episode_windows(episode(slots=50))}
    titles = {
        name: tuple(window.axes[axis]["title"]["text"] for axis in ("xaxis", "yaxis"))
        for name, window in windows.items()
    }
    assert titles["memory"] == ("element", "slot")
    assert titles["write weights"] == ("step", "slot")
    assert titles["input"] == ("step", "channel")
    assert all(title for pair in titles.values() for title in pair)


def test_the_page_crops_to_used_slots_as_the_files_do() -> None:
    weights = np.zeros((6, 1, 100), np.float32)
    weights[np.arange(6), 0, np.arange(6) + 40] = 1
    seen = {
        "write_weights": Seen(weights, TraceField("H N", "weighting")),
        "memory": Seen(np.ones((6, 100, 3), np.float32), TraceField("N W", "memory")),
    }
    shown = Episode("", seen=seen)
    windows = {window.name: window for window in episode_windows(shown)}
    (panel,) = layout_of(shown).panels
    rows = len(panel.image)
    assert rows < 12
    assert np.shape(windows["write weights"].heatmap["z"])[0] == np.shape(windows["memory"].heatmap["z"])[0] == rows


def test_images_and_worlds_have_windows_of_their_own() -> None:
    images = np.random.default_rng(0).random((5, 12)).astype(np.float32)
    outputs = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]]
    channels = (Channels("image", 12, shape=(3, 4)),), (Channels("class", 3, ("a", "b", "c"), choice=True),)
    shown = Episode(
        "images", images, outputs[::-1].copy(), outputs, np.ones(5, np.float32), {}, *channels, examples=True
    )
    (window,) = episode_windows(shown)
    assert [note["text"] for note in window.axes["annotations"]] == [
        "a  100 %, is b",
        "b  100 %, is a",
        "c  100 %",
        "a  100 %, is b",
        "b  100 %, is a",
    ]
    frames = np.zeros((6, 5, 5, 3), np.uint8)
    world = episode()._replace(pictures={"world": ([0, 1, 2, 3, 4, 5], frames)})
    windows = in_order(world, episode_windows(world))
    assert windows[0].name == "world" and len(windows[0].axes["sliders"][0]["steps"]) == 6
    assert windows[0].axes["images"][0]["source"].startswith("data:image/png")
