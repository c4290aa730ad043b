"""Pictures: what they are made from, and that they show it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fast_weights import FastWeightAccessor
from matplotlib.patches import FancyArrowPatch
from PIL import Image

from papertape import DNC, NTM, SAM, SDNC, FeedForwardCircuit, StackRNN, Tape, TapeRNN, Transformer
from papertape.circuits.memory import MemoryCircuit
from papertape.core.circuit import Circuit
from papertape.core.env import Batch
from papertape.core.recorder import Areas, Chart, Connection, Histogram, Network
from papertape.core.topology import TopologyNetwork
from papertape.core.trace import Trace
from papertape.core.trace_field import TraceField
from papertape.utils.drawing.files import Files, file_name
from papertape.utils.drawing.plotly import episode_windows, in_order
from papertape.utils.plots import (
    Curve,
    Episode,
    History,
    Seen,
    chart_figure,
    curves,
    curves_figure,
    episode_figure,
    episode_from,
    layout_of,
    memory_gif,
    network_figure,
    plot_trace,
    thinned,
    wrong_bits,
)
from papertape.utils.plots.episode import Axis, slot_axes, used_slots
from papertape.utils.plots.panels import pooled


def answered(circuit: Circuit, steps: int = 7, batch_size: int = 3) -> tuple[Batch, torch.Tensor, Trace]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(0, 2, (steps, batch_size, 5), generator=generator).float()
    targets = torch.randint(0, 2, (steps, batch_size, 4), generator=generator).float()
    mask = torch.zeros(steps, batch_size)
    mask[steps // 2 :] = 1
    outputs, _, trace = circuit(inputs, trace=True)
    return Batch(inputs, targets, mask), outputs, trace


def plain() -> Circuit:
    torch.manual_seed(0)
    return FeedForwardCircuit(5, 4)


def small_dnc(memory_size: int = 9, word_size: int = 3, num_reads: int = 2, num_writes: int = 1) -> DNC:
    torch.manual_seed(0)
    return DNC(
        5,
        4,
        hidden_size=6,
        memory_size=memory_size,
        word_size=word_size,
        num_reads=num_reads,
        num_writes=num_writes,
    )


def fast_weights() -> MemoryCircuit:
    torch.manual_seed(0)
    accessor = FastWeightAccessor(6, word_size=5, key_size=4)
    return MemoryCircuit(5, 4, controller={"type": "lstm", "hidden_size": 6}, accessor=accessor)


CIRCUITS: dict[str, Callable[[], Circuit]] = {
    "feed-forward": plain,
    "ntm": lambda: NTM(5, 4, hidden_size=6, memory_size=9, word_size=3),
    "dnc": small_dnc,
    "sam": lambda: SAM(5, 4, hidden_size=6, memory_size=40, word_size=3, num_reads=2),
    "sdnc": lambda: SDNC(5, 4, hidden_size=6, memory_size=40, word_size=3),
    "tape": lambda: Tape(5, 4, memory_size=9, word_size=3),
    "fast weights": fast_weights,
    "stack": lambda: StackRNN(5, 4, hidden_size=6, memory_size=9, word_size=3, num_stacks=2),
    "soft tape": lambda: TapeRNN(5, 4, hidden_size=6, memory_size=9, word_size=3),
    "transformer": lambda: Transformer(5, 4, model_size=8),
    "deltanet": lambda: Transformer(5, 4, model_size=8, accessor={"type": "delta", "key_size": 4, "decay": True}),
    "srwm": lambda: MemoryCircuit(5, 4, hidden_size=6, accessor={"type": "srwm", "num_heads": 2, "word_size": 4}),
}


def changed(episode: Episode, change: Callable[[np.ndarray], np.ndarray]) -> Episode:
    """The episode with each of its arrays changed."""
    arrays = {name: change(part) for name, part in episode._asdict().items() if isinstance(part, np.ndarray)}
    fields = {name: seen._replace(values=change(seen.values)) for name, seen in episode.seen.items()}
    return episode._replace(**arrays, seen=fields)


def titles(episode: Episode) -> list[str]:
    return [axes.get_title(loc="left") for axes in episode_figure(episode).axes]


def test_an_episode_is_the_first_sequence_of_a_batch_in_plain_numbers() -> None:
    batch, outputs, trace = answered(small_dnc())
    episode = pickle.loads(pickle.dumps(episode_from("length 3", batch, outputs, trace)))
    assert episode.name == "length 3"
    np.testing.assert_array_equal(episode.inputs, batch.inputs[:, 0].numpy())
    np.testing.assert_allclose(episode.outputs, outputs[:, 0].sigmoid().detach().numpy(), rtol=1e-6)
    assert list(episode.seen) == list(trace)
    for name, (values, field) in episode.seen.items():
        np.testing.assert_array_equal(values, trace[name][:, 0].detach().numpy())
        assert field == trace.fields[name] and values.dtype == np.float32
    assert {part.dtype for part in episode[1:5]} == {np.dtype("float32")}


def test_who_watches_an_episode_cannot_change_the_run() -> None:
    batch, outputs, trace = answered(small_dnc())
    episode = episode_from("", batch, outputs, trace)
    for array in (episode.inputs, episode.seen["memory"].values):
        assert array is not None
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0
        assert not np.shares_memory(array, batch.inputs.numpy())
        assert not np.shares_memory(array, trace.memory.detach().numpy())


def test_an_episode_has_no_padding_and_takes_low_precision() -> None:
    batch, outputs, trace = answered(plain())
    batch.mask[-2:, 0] = 0
    episode = episode_from("", batch, outputs.bfloat16(), trace)
    assert episode.steps == len(episode.inputs) == len(episode.outputs) == len(episode.mask) == 5  # type: ignore[arg-type]
    assert episode.outputs.dtype == np.float32 and not episode.seen  # type: ignore[union-attr]


def test_wrong_bits_are_counted_where_the_mask_says() -> None:
    outputs = np.array([[0.9, 0.9], [0.9, 0.2]], dtype=np.float32)
    episode = Episode("", outputs, np.array([[0, 0], [0, 0]], np.float32), outputs, np.array([0, 1], np.float32))
    np.testing.assert_array_equal(wrong_bits(episode), [[False, False], [True, False]])
    assert "output, 1 bit wrong" in titles(episode)
    assert "output, all bits right" in titles(episode._replace(targets=outputs.round()))


def test_the_picture_has_a_panel_for_each_part_there_is() -> None:
    bare = [title for title in titles(episode_from("", *answered(plain()))) if title]
    assert len(bare) == 3 and {"input", "target"} < set(bare)
    ntm = titles(episode_from("", *answered(CIRCUITS["ntm"]())))
    assert {"write weights", "read weights", "add: words written", "reads: words read", "memory at the end"} < set(ntm)
    assert "usage" not in ntm
    dnc = titles(episode_from("", *answered(small_dnc())))
    assert {
        "usage",
        "allocation weights",
        "gates",
        "read modes: shares of backward, content and forward",
        "read weights, head 2 of 2",
    } < set(dnc)
    foreign = titles(episode_from("", *answered(fast_weights())))
    assert {"fast weights at the end", "key: under which key", "query: what is looked up", "gates"} < set(foreign)


@pytest.mark.parametrize("name", CIRCUITS)
def test_every_circuit_is_drawn_and_nothing_of_its_trace_is_left_out(name: str, tmp_path: Path) -> None:
    """Every number of every field is in some panel or still, or in what is left when it is cropped."""
    batch, outputs, trace = answered(CIRCUITS[name]())
    episode = episode_from("", batch, outputs, trace)
    figure = episode_figure(episode)
    figure.savefig(tmp_path / "episode.png")
    memory_gif(tmp_path / "episode.gif", episode)
    layout = layout_of(episode)
    images = [panel.image.T for panel in layout.panels]
    images += [still.images.reshape(episode.steps, -1) for still in layout.all_stills]
    shown = np.concatenate(images, axis=1)
    slots = slot_axes(episode)
    for field, seen in episode.seen.items():
        values = seen.values
        for place, axis in enumerate(seen.sized_axes, start=1):
            if axis in slots:
                values = values.take(slots[axis].indices, place)
        for row in values.reshape(episode.steps, -1).T:
            assert (shown == row[:, None]).all(axis=0).any(), field
    assert len(figure.axes) >= len(layout.panels) + len(layout.all_stills)
    drawn = [text for text in titles(episode) if text]
    for panel in layout.panels:
        assert any(text.startswith(panel.name) for text in drawn)


def test_the_page_shows_what_the_files_show() -> None:
    for build in CIRCUITS.values():
        episode = episode_from("", *answered(build()))
        layout = layout_of(episode)
        windows = episode_windows(episode)
        assert [window.name for window in windows] == [
            *(panel.name for panel in layout.panels),
            *(still.name for still in layout.all_stills),
        ]
        assert len({window.name for window in windows}) == len(windows)
        json.dumps([window.heatmap for window in windows], allow_nan=False)
        for panel, window in zip(layout.panels, windows, strict=False):
            np.testing.assert_allclose(window.heatmap["z"], panel.image, atol=1e-4)


def test_the_layout_of_ntm_and_dnc() -> None:
    """Bits beside words, then where is written beside where is read, with the memory."""
    for build in (CIRCUITS["ntm"], small_dnc):
        episode = episode_from("", *answered(build()))
        first, second, *_ = layout_of(episode).blocks
        assert [panel.name for panel in first.left] == ["input", "target", "output"]
        assert [panel.name for panel in first.right][:2] == ["reads", "add"]
        assert second.left[0].name == "write weights" and second.right[0].name.startswith("read weights")
        assert [still.name for still in second.stills] == ["memory"]


def field(axes: str, kind: Any, *shape: int, largest: float = 1.0, labels: tuple[str, ...] = ()) -> Seen:
    values = np.random.default_rng(0).uniform(0, largest, shape).astype(np.float32)
    return Seen(values, TraceField(axes, kind, "", labels))


def test_gates_share_a_panel_unless_they_are_strengths_or_many() -> None:
    seen = {
        "write_gates": field("H", "gate", 5, 2),
        "jump": field("", "gate", 5),
        "strengths": field("H", "gate", 5, 2, largest=9.0),
        "each": field("H W", "gate", 5, 2, 20),
    }
    panels = {panel.name: panel for panel in layout_of(Episode("", seen=seen)).panels}
    assert list(panels) == ["gates", "strengths", "each"]
    assert panels["gates"].labels == ["write 1", "write 2", "jump"] and panels["gates"].image.shape == (3, 5)
    assert panels["each"].image.shape == (40, 5) and panels["each"].labels[:2] == [
        "head 1, element 0",
        "head 1, element 1",
    ]


@pytest.mark.parametrize("heads", [12, 13, 40])
def test_heads_are_numbered_from_one_however_many_they_are(heads: int) -> None:
    (panel,) = layout_of(Episode("", seen={"strengths": field("K", "gate", 5, heads, largest=9.0)})).panels
    places, labels = panel.ticks
    assert [int(place) + 1 for place in places] == [int(label) for label in labels]


def test_slots_are_numbered_alike_in_words_and_in_memories() -> None:
    seen = {"hidden": field("M V", "words", 5, 4, 3), "slots": field("M V", "memory", 5, 4, 3)}
    layout = layout_of(Episode("", seen=seen))
    assert layout.panels[0].labels == [f"slot {number}" for number in range(4)]


def test_gates_with_names_are_called_by_them() -> None:
    seen = {
        "few_gates": field("P", "gate", 5, 2, labels=("a", "b")),
        "rates": field("H P", "gate", 5, 8, 2, labels=("a", "b")),
        "others": field("H", "gate", 5, 3, labels=("a", "b")),
    }
    panels = {panel.name: panel for panel in layout_of(Episode("", seen=seen)).panels}
    assert panels["gates"].labels == ["few a", "few b", "others 1", "others 2", "others 3"]
    assert panels["rates"].labels == [f"{head} {name}" for head in range(1, 9) for name in "ab"]


def test_fields_may_be_called_what_else_is_drawn(tmp_path: Path) -> None:
    bits = np.ones((5, 2), np.float32)
    names = ("input", "output", "gates", "reward")
    seen = {name: field("W", "words", 5, 3) for name in names} | {"write_gate": field("", "gate", 5)}
    episode = Episode("", bits, bits, bits * 0.2, bits[:, 0], seen)
    layout = layout_of(episode)
    drawn = [panel.name for panel in layout.panels]
    assert len(drawn) == len(set(drawn)) == 8
    assert [panel.name for panel in layout.panels if panel.judged] == ["output"]
    memory_gif(tmp_path / "names.gif", episode)


def test_more_heads_than_have_panels_of_their_own_lie_below_each_other() -> None:
    seen = {"read_weights": field("R N", "weighting", 5, 7, 10), "memory": field("N W", "memory", 5, 10, 3)}
    layout = layout_of(Episode("", seen=seen))
    (panel,) = layout.panels
    assert panel.image.shape == (70, 5) and len(panel.labels) == 7
    np.testing.assert_array_equal(panel.image[10:20].T, seen["read_weights"].values[:, 1])


def of_layers(**options: Any) -> Any:
    torch.manual_seed(0)
    circuit = Transformer(5, 4, model_size=8, widening=0, **options)
    return layout_of(episode_from("", *answered(circuit)))


def test_layers_are_called_layers() -> None:
    layout = of_layers(num_layers=3, accessor={"type": "attention", "num_heads": 1})
    names = {panel.name: panel for panel in layout.panels}
    layers = [f"layer {number}" for number in (1, 2, 3)]
    assert {f"read weights, {layer} of 3" for layer in layers} <= set(names)
    assert {f"keys, {layer} of 3" for layer in layers} <= {still.name for still in layout.all_stills}
    assert names["reads"].labels == layers and names["reads"].rows == "layer × element"


def test_heads_of_layers_are_called_by_both() -> None:
    layout = of_layers(num_layers=2, accessor={"type": "attention", "num_heads": 4})
    names = {panel.name: panel for panel in layout.panels}
    both = [f"layer {layer}, head {head}" for layer in (1, 2) for head in (1, 2, 3, 4)]
    assert names["read weights"].labels == names["reads"].labels == names["queries"].labels == both
    assert names["read weights"].rows == "layer × head × slot"
    assert {"keys, layer 1 of 2, head 4 of 4", "values, layer 2 of 2, head 1 of 4"} <= {
        still.name for still in layout.all_stills
    }
    layout = of_layers(num_layers=2, accessor={"type": "delta", "num_heads": 2, "num_rules": 2, "key_size": 3})
    names = {panel.name: panel for panel in layout.panels}
    rules = [f"layer {a}, rule {b}, head {c}" for a in (1, 2) for b in (1, 2) for c in (1, 2)]
    assert names["keys"].labels == names["values"].labels == rules
    assert [f"write {rule}" for rule in rules] == names["gates"].labels[:8]


def test_the_first_of_several_layers_comes_first_on_the_page() -> None:
    circuit = Transformer(5, 4, model_size=8, num_layers=3, accessor={"type": "attention", "num_heads": 1})
    episode = episode_from("", *answered(circuit))
    names = [window.name for window in in_order(episode, episode_windows(episode))]
    assert names[:4] == ["keys, layer 1 of 3", "values, layer 1 of 3", "read weights, layer 1 of 3", "output"]


def test_labels_never_lie_over_each_other() -> None:
    seen = {"add": field("L H W", "words", 5, 6, 8, 3), "strengths": field("K", "gate", 5, 30, largest=9.0)}
    for panel in layout_of(Episode("", seen=seen)).panels:
        places, labels = panel.ticks
        room = np.diff(places).min() * panel.height / len(panel.image)
        assert room >= 0.085 and len(labels) > 5, panel.name


def test_two_memories_have_their_own_weightings_beside_them() -> None:
    seen = {
        "near": field("H N", "weighting", 5, 1, 10),
        "far": field("H L", "weighting", 5, 1, 20),
        "cache": field("N W", "memory", 5, 10, 3),
        "store": field("L W", "memory", 5, 20, 3),
        "modes": field("H M", "weighting", 5, 1, 2, labels=("old", "new")),
    }
    first, second, third = layout_of(Episode("", seen=seen)).blocks
    assert [(block.left[0].name, block.stills[0].name) for block in (first, second)] == [
        ("near", "cache"),
        ("far", "store"),
    ]
    assert third.left[0].labels == ("old", "new")


def test_what_is_said_of_a_memory_is_not_written_over_the_next_one() -> None:
    seen = {
        "near": field("R N", "weighting", 5, 1, 10),
        "far": field("H L", "weighting", 5, 1, 20),
        "cache": field("N W", "memory", 5, 10, 3),
        "store": field("L W", "memory", 5, 20, 3),
    }
    figure = episode_figure(Episode("", seen=seen))
    figure.canvas.draw()
    drawn = {axes.get_title(loc="left"): axes for axes in figure.axes}
    lower_title = drawn["store at the end"]._left_title.get_window_extent()
    assert drawn["cache at the end"].xaxis.get_tightbbox().y0 > lower_title.y1


def test_a_weighting_stands_beside_the_memory_of_its_letter_and_size() -> None:
    fields = {
        "small": TraceField("N W", "memory"),
        "large_one": TraceField("N W", "memory"),
        "at": TraceField("N", "weighting"),
    }
    shapes = {"small": (5, 2), "large_one": (8, 3), "at": (8,)}
    trace = Trace({name: torch.rand(6, 2, *shape) for name, shape in shapes.items()}, fields)
    drawn = {axes.get_title(loc="left"): axes for axes in plot_trace(trace).axes}
    for title, name in (("small", "small"), ("large one", "large_one")):
        (image,) = drawn[f"{title} at the end"].images
        np.testing.assert_array_equal(image.get_array(), trace[name][-1, 0].numpy())
    (image,) = drawn["at"].images
    np.testing.assert_array_equal(image.get_array(), trace["at"][:, 0].T.numpy())
    heights = [drawn[title].get_position().height for title in ("at", "large one at the end", "small at the end")]
    assert heights[0] == pytest.approx(heights[1]) != pytest.approx(heights[2])


@pytest.mark.parametrize("slots", [2, 3, 4])
@pytest.mark.parametrize("circuit", [DNC, SDNC])
def test_slots_of_a_controller_are_not_the_modes_of_its_memory(circuit: Any, slots: int, tmp_path: Path) -> None:
    controller = {"type": "relational", "memory_size": slots, "num_heads": 1, "head_size": 5}
    batch, outputs, trace = answered(circuit(5, 4, controller=controller, memory_size=8, num_reads=1))
    episode = episode_from("", batch, outputs, trace)
    layout = layout_of(episode)
    (modes,) = (panel for panel in layout.panels if panel.name == "read modes")
    assert modes.labels == ("backward", "content", "forward")
    shown = {still.name: still.images.shape[1] for still in layout.all_stills}
    assert shown["slots"] == shown["attention"] == slots and shown["memory"] == 8
    memory_gif(tmp_path / "both.gif", episode)


@pytest.mark.parametrize("kind", ["memory", "matrix"])
def test_a_memory_or_matrix_of_each_head_is_a_still_of_its_own(kind: Any, tmp_path: Path) -> None:
    seen = {"link": field("H P Q", kind, 5, 3, 10, 8)}
    layout = layout_of(Episode("", seen=seen))
    assert [still.name for still in layout.stills] == [f"link, head {head} of 3" for head in (1, 2, 3)]
    np.testing.assert_array_equal(layout.stills[1].images, seen["link"].values[:, 1])
    memory_gif(tmp_path / "stills.gif", Episode("", seen=seen))


def test_plot_trace_draws_a_sequence_without_an_env(tmp_path: Path) -> None:
    circuit = fast_weights()
    inputs = torch.rand(7, 3, 5)
    outputs, _, trace = circuit(inputs, trace=True)
    figure = plot_trace(trace, tmp_path / "trace.png", inputs=inputs, outputs=outputs, sequence=2, title="mine")
    with Image.open(tmp_path / "trace.png") as picture:
        assert min(picture.size) > 200
    drawn = {axes.get_title(loc="left"): axes for axes in figure.axes}
    (image,) = drawn["fast weights at the end"].images
    np.testing.assert_array_equal(image.get_array(), trace.fast_weights[-1, 2].detach().numpy())
    (image,) = drawn["output"].images
    np.testing.assert_array_equal(image.get_array(), outputs[:, 2].T.detach().numpy())
    assert {"input", "key: under which key"} < set(drawn) and "target" not in drawn
    assert {"reads: words read", "gates"} < {axes.get_title(loc="left") for axes in plot_trace(trace).axes}


@pytest.mark.parametrize("alone", [True, False])
def test_plot_trace_draws_pictures_as_an_episode_does(alone: bool) -> None:
    view = torch.rand(6, 2, 4, 5, 3) * 255
    tensors = {"view": view} if alone else {"view": view, "jump": torch.rand(6, 2)}
    fields = {"view": TraceField("Y X C", "picture"), "jump": TraceField("", "gate")}
    figure = plot_trace(Trace(tensors, fields), sequence=1)
    shown = [axes for axes in figure.axes if axes.get_xlabel().startswith("step ")]
    assert [axes.get_title(loc="left") for axes in shown][:1] == ["view"]
    for axes in shown:
        (image,) = axes.images
        step = int(axes.get_xlabel().removeprefix("step "))
        np.testing.assert_array_equal(image.get_array(), view[step, 1].byte().numpy())


def test_plot_trace_takes_the_batch_first_and_single_sequences() -> None:
    torch.manual_seed(0)
    circuit = NTM(5, 4, hidden_size=6, memory_size=9, word_size=3, batch_first=True)
    inputs = torch.rand(3, 7, 5)
    _, _, trace = circuit(inputs, trace=True)
    figure = plot_trace(trace, inputs=inputs, sequence=1, batch_first=True)
    (image,) = next(axes for axes in figure.axes if axes.get_title(loc="left") == "memory at the end").images
    np.testing.assert_array_equal(image.get_array(), trace.memory[1, -1].detach().numpy())
    outputs, _, trace = circuit(inputs[0], trace=True)  # a single sequence comes back with a batch of one, time first
    plot_trace(trace, inputs=inputs[0], outputs=outputs)


def test_plot_trace_of_nothing_or_of_what_does_not_go_together_is_refused() -> None:
    inputs = torch.rand(7, 3, 5)
    _, _, trace = fast_weights()(inputs, trace=True)
    _, _, empty = plain()(inputs, trace=True)
    with pytest.raises(ValueError, match="trace: got an empty one"):
        plot_trace(empty)
    plot_trace(empty, inputs=inputs)
    with pytest.raises(ValueError, match="sequence: got 3; allowed: 0 to 2"):
        plot_trace(trace, sequence=3)
    with pytest.raises(ValueError, match=r"outputs: got shape \[6, 3, 4\]; trace.reads has \[T, B, …\] = \[7, 3\]"):
        plot_trace(trace, outputs=torch.rand(6, 3, 4))
    for given, message in {
        "sequence": "sequence: got '3'; allowed is a whole number",
        "path": "path: got 3; allowed is the name of a file",
        "inputs": "inputs: got a int; expected a tensor, or None",
    }.items():
        with pytest.raises(ValueError, match=message):
            plot_trace(trace, **{given: "3" if given == "sequence" else 3})
    with pytest.raises(ValueError, match="trace: got a int; expected what a circuit gives with trace=True"):
        plot_trace(3)


def test_panels_share_the_time_axis() -> None:
    figure = episode_figure(episode_from("", *answered(small_dnc())))
    limits = {axes.get_title(loc="left"): axes.get_xlim() for axes in figure.axes}
    assert {limits[title] for title in ("input", "target", "write weights", "usage", "gates")} == {(-0.5, 6.5)}
    places = {axes.get_title(loc="left"): axes.get_position() for axes in figure.axes}
    assert {places[title].x0 for title in ("input", "write weights", "erase: elements erased")} == {places["input"].x0}


@pytest.mark.parametrize(
    ("repeats", "options"),
    [
        (1, {"memory_size": 1, "word_size": 1, "num_reads": 1}),
        (2, {"memory_size": 256, "num_reads": 6, "num_writes": 2}),
        (500, {"memory_size": 4}),
    ],
)
def test_any_size_is_drawn(repeats: int, options: dict[str, int], tmp_path: Path) -> None:
    short = episode_from("", *answered(small_dnc(**options), steps=2))
    episode = changed(short, lambda array: np.concatenate([array] * repeats))
    episode_figure(episode).savefig(tmp_path / "episode.png")
    with Image.open(tmp_path / "episode.png") as picture:
        assert max(picture.size) < 4000


def test_values_that_are_not_finite_do_not_stop_the_drawing(tmp_path: Path) -> None:
    episode = episode_from("", *answered(small_dnc()))
    broken = changed(episode, lambda array: np.full_like(array, np.nan))
    infinite = changed(episode, lambda array: array + np.inf).seen["memory"]
    broken = broken._replace(seen={**broken.seen, "memory": infinite}, mask=episode.mask)
    episode_figure(broken).savefig(tmp_path / "broken.png")
    memory_gif(tmp_path / "broken.gif", broken)


def weights_at(*slots: int, total: int = 100) -> Episode:
    weights = np.zeros((len(slots), 1, total), np.float32)
    weights[np.arange(len(slots)), 0, slots] = 1
    blank = np.zeros((len(slots), 2), np.float32)
    fields = {name: Seen(weights, TraceField(f"{name} N", "weighting")) for name in "RH"}
    return Episode("", blank, blank, blank, blank[:, 0], fields)


@pytest.mark.parametrize(
    ("slots", "shown"),
    [
        ((10, 12), (8, 14)),
        ((0, 5), (0, 7)),
        ((98, 99), (96, 99)),
        ((99, 0, 1), (-3, 3)),
        ((97, 3), (-5, 5)),
        ((0, 40, 70), (0, 99)),
    ],
)
def test_a_large_memory_is_cropped_to_the_slots_in_use(slots: tuple[int, ...], shown: tuple[int, int]) -> None:
    found = used_slots(weights_at(*slots), Axis("N", 100))
    assert (found.first, found.last) == shown
    assert set(slots) <= set(found.indices.tolist())


def test_sharing_cells_keeps_single_spikes() -> None:
    image = np.zeros((2050, 3), np.float32)
    image[1234, 1] = -7
    shared = pooled(image, 100)
    assert shared.shape[0] <= 100 and shared.shape[1] == 3
    assert shared.min() == -7 and np.count_nonzero(shared) == 1


Rows = Sequence[tuple[int, Mapping[str, float]]]
ROWS: Rows = [
    (0, {"train/loss": 0.7, "train/learning_rate": 1e-4, "fitness/best": -3.0, "temperature": 1.0}),
    (10, {"train/loss": float("nan"), "validation/length 40/loss": 0.5, "validation/length 40/bits_wrong": 0.0}),
    (20, {"train/loss": 0.1, "train/bits_wrong": 20.0, "fitness/worst": -9.0}),
]


def panels_of(rows: Rows) -> dict[str, list[Curve]]:
    history = History()
    history.add(rows)
    return history.panels()


def test_metrics_are_sorted_into_panels() -> None:
    panels = panels_of(ROWS)
    assert list(panels) == ["loss", "bits_wrong", "learning_rate", "fitness", "temperature"]
    assert [curve.label for curve in panels["loss"]] == ["train", "validation length 40"]
    assert panels["loss"][0].steps.tolist() == [0, 20] and panels["loss"][0].values.tolist() == [0.7, 0.1]
    assert [curve.label for curve in panels["fitness"]] == ["best", "worst"]


def test_troubles_have_a_panel_when_there_are_any() -> None:
    assert not panels_of([(1, {"train/bad_steps": 0.0}), (2, {"train/bad_steps": 0.0})])
    (curve,) = panels_of([(1, {"train/bad_steps": 0.0}), (2, {"train/bad_steps": 1.0})])["bad_steps"]
    assert curve.values.tolist() == [0.0, 1.0]


def test_curves_are_drawn_on_a_scale_that_shows_zero() -> None:
    def scaled(rows: Rows) -> Any:
        (axes,) = curves_figure(panels_of(rows)).axes
        return axes

    axes = scaled([(step, {"train/bits_wrong": value}) for step, value in enumerate([30.0, 3.0, 0.02, 0.0])])
    assert axes.get_yscale() == "symlog" and axes.get_ylim()[0] <= 0
    assert scaled([(step, {"train/loss": 10.0**-step}) for step in range(4)]).get_yscale() == "log"
    assert scaled([(step, {"fitness/best": step - 5.0}) for step in range(100)]).get_yscale() == "linear"
    assert scaled([(0, {"train/bits_wrong": 0.0})]).get_yscale() == "linear"
    for counted in ("within_5", "accuracy", "units"):
        assert scaled([(step, {f"train/{counted}": 10.0**-step}) for step in range(4)]).get_yscale() == "linear"


def test_no_loss_is_given_a_unit_that_it_may_not_have() -> None:
    (axes,) = curves_figure(panels_of([(step, {"train/loss": 1.0}) for step in range(2)])).axes
    assert axes.get_title(loc="left") == "loss  1"


def test_exact_curves_keep_their_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A learning rate that starts again, a number that is now and then another, one that is always the same."""
    monkeypatch.setattr(curves, "MAX_STRETCHES", 256)
    exact: dict[str, Callable[[int], float]] = {
        "learning_rate": lambda step: 3e-3 * (1 - step % 100 / 100),
        "units": lambda step: 10 + step // 90,
        "updates_per_step": lambda step: 0.1,
    }
    for name, value in exact.items():
        panels = panels_of([(step, {f"train/{name}": value(step)}) for step in range(600)])
        (axes,) = curves_figure(panels).axes
        (line,) = axes.lines
        assert np.array_equal(line.get_ydata(), panels[name][0].values), name


def test_curves_of_nothing_and_of_much_are_drawn(tmp_path: Path) -> None:
    curves_figure({}).savefig(tmp_path / "nothing.png")
    curves_figure(panels_of([(3, {"train/loss": float("inf")})])).savefig(tmp_path / "infinite.png")
    noise = np.random.default_rng(0).uniform(1, 2, 20_000).tolist()
    panels = panels_of([(step, {"train/loss": value}) for step, value in enumerate(noise)])
    curves_figure(panels).savefig(tmp_path / "much.png")
    (axes,) = curves_figure(panels).axes
    outline, means = axes.lines
    assert outline.get_ydata()[[0, -1]].tolist() == [noise[0], noise[-1]]  # type: ignore[index]
    assert len(means.get_xdata()) <= 150  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 63, 64, 65, 1000])
def test_a_curve_keeps_first_last_extremes_and_means(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "MAX_STRETCHES", 8)
    values = np.random.default_rng(count).standard_normal(count)
    steps = np.arange(count) * 10
    rows = [(int(step), {"train/loss": float(value)}) for step, value in zip(steps, values, strict=True)]
    (curve,) = panels_of(rows)["loss"]
    assert curve.exact == (count <= 8)
    assert len(curve.stretches) <= 8 and curve.stretches[:, 0].sum() == count
    size = int(curve.stretches[0, 0])
    for number, (mean, low, high) in enumerate(curve.stretches[:, [2, 4, 6]]):
        part = values[number * size : (number + 1) * size]
        np.testing.assert_allclose([mean / len(part), low, high], [part.mean(), part.min(), part.max()])
    drawn_steps, drawn = curve.outline
    assert (np.diff(drawn_steps) >= 0).all()
    assert all(values[int(step) // 10] == value for step, value in zip(drawn_steps, drawn, strict=True))
    assert {values[0], values[-1], values.min(), values.max()} <= set(drawn.tolist())
    assert drawn_steps[[0, -1]].tolist() == [0, steps[-1]]
    fewer = thinned(curve, 3)
    assert len(fewer.stretches) <= 3 and {values[0], values[-1], values.min(), values.max()} <= set(fewer.outline[1])
    assert (fewer.values * fewer.stretches[:, 0]).sum() == pytest.approx(values.sum())


def test_the_gif_has_a_frame_for_each_step(tmp_path: Path) -> None:
    for name, circuit in {
        "dnc": small_dnc(),
        "ntm": NTM(5, 4, hidden_size=6, memory_size=128, word_size=20),
        "none": plain(),
    }.items():
        memory_gif(tmp_path / f"{name}.gif", episode_from("", *answered(circuit)))
        with Image.open(tmp_path / f"{name}.gif") as film:
            assert film.n_frames == 7  # type: ignore[attr-defined]


def test_names_longer_than_a_file_may_have_are_shortened_and_stay_apart(tmp_path: Path) -> None:
    files = Files(tmp_path)
    names = ["ü" * 300 + end for end in "ab"]
    for name in names:
        files.drawn(1_000_000_000, name, name[-1].encode())
    assert not files.failed
    assert sorted(path.read_bytes() for path in (tmp_path / "plots").glob("*.png")) == [b"a", b"b"]
    assert len(list((tmp_path / "plots" / "history").iterdir())) == 2
    assert file_name("length 40") == "length-40"


def test_a_long_gif_skips_steps(tmp_path: Path) -> None:
    memory_gif(tmp_path / "long.gif", episode_from("", *answered(plain(), steps=500)))
    with Image.open(tmp_path / "long.gif") as film:
        assert 100 < film.n_frames <= 250  # type: ignore[attr-defined]


def test_fitness_of_a_population_shares_a_panel() -> None:
    names = ("fitness_best", "fitness_median", "fitness_worst", "trust_most", "best_loss")
    panels = panels_of([(1, {f"train/{name}": 1.0 for name in names})])
    assert [curve.label for curve in panels["fitness"]] == ["best", "median", "worst"]
    assert [curve.label for curve in panels["trust"]] == ["most"]
    assert set(panels) == {"fitness", "trust", "best_loss"}


NETWORK = Network(
    ["bias", "in 1", "1", "2", "out 1"],
    [0, 0, 1, 2, 3],
    [
        Connection(1, 2, 2.0),
        Connection(2, 3, -1.0),
        Connection(3, 4, 0.5),
        Connection(0, 4, 0.1),
        Connection(3, 2, 1.0, True),
        Connection(4, 4, -2.0, True),
    ],
)


@pytest.mark.parametrize(
    "chart",
    [
        Areas([], {}),
        Areas([3], {"one": [5.0]}),
        Areas(range(50), {f"species {index}": [float(index)] * 50 for index in range(30)}, "members"),
        Histogram([]),
        Histogram([1.0, 1.0]),
        Histogram([1.0, float("nan"), float("inf")], "trust"),
        Network(["in", "out"], [0, 1], []),
        Network([str(index) for index in range(90)], [0] * 80 + [1] * 10, [Connection(3, 85, 0.0)]),
        NETWORK,
    ],
)
def test_plain_data_is_drawn(chart: Chart, tmp_path: Path) -> None:
    chart_figure("a chart", chart).savefig(tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as drawn:
        colours = np.asarray(drawn.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 3


def test_the_network_has_an_arrow_for_each_connection_and_recurrent_ones_are_curved() -> None:
    axes = network_figure("network", NETWORK).axes[0]
    arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    assert len(arrows) == 6
    curved = [arrow.get_connectionstyle().rad != 0 for arrow in arrows]
    assert curved == [False] * 4 + [True] * 2
    red, _, blue, _ = arrows[0].get_edgecolor()
    assert red > blue, "positive weights are red"
    names = {text.get_text() for text in axes.texts}
    assert {"bias", "in 1", "1", "2", "out 1"} <= names
    places = axes.collections[0].get_offsets()
    assert [round(x) for x in places[:, 0]] == [0, 0, 1, 2, 3]


def test_the_chart_of_a_network_has_the_nodes_that_are_used_in_layers() -> None:
    module = TopologyNetwork(2, 1, 4)
    with torch.no_grad():
        module.hidden_weight[1, 1] = 0.5
        module.hidden_weight[3, 4] = -0.5
        module.hidden_weight[1, 6] = 0.25
        module.output_weight[0, 6] = 2.0
        module.output_weight[0, 7] = 3.0
    network = module.chart()
    assert network.nodes == ["bias", "in 1", "in 2", "1", "2", "out 1"]
    assert network.layers == [0, 0, 0, 1, 2, 3]
    joined = {(source, target): (weight, recurrent) for source, target, weight, recurrent in network.connections}
    assert joined[1, 3] == (0.5, False) and joined[3, 4] == (-0.5, False) and joined[4, 3] == (0.25, True)
    assert joined[4, 5] == (2.0, False) and joined[5, 5] == (3.0, True)
    assert len(joined) == 5 + 3
