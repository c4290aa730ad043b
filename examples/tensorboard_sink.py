"""A sink of your own: the curves and pictures of a run in TensorBoard.

    pip install tensorboard
    papertape train ntm-copy --import examples/tensorboard_sink.py plots=tensorboard
    tensorboard --logdir runs

`plots='[auto, tensorboard]'` also writes files and shows the run in visdom;
`plots='{type: tensorboard, pictures: false}'` leaves pictures out, which take a second of training each.
"""

from collections.abc import Mapping

from pydantic import Field
from torch.utils.tensorboard import SummaryWriter

import papertape
from papertape.utils.plots import Chart, Episode, chart_figure, episode_figure


@papertape.register("sink", "tensorboard")
class TensorBoardSink(papertape.Sink):
    """Metrics, texts and pictures as TensorBoard's event files, in the folder of the run."""

    pictures: bool = Field(True, description="whether episodes and pictures are drawn")

    def setup(self) -> None:
        self.writer = SummaryWriter(str(self.directory / "tensorboard"))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def text(self, name: str, text: str) -> None:
        self.writer.add_text(name, f"```\n{text}\n```")

    def episode(self, step: int, name: str, episode: Episode) -> None:
        if self.pictures:
            self.writer.add_figure(name, episode_figure(episode), step)

    def chart(self, step: int, name: str, chart: Chart) -> None:
        if self.pictures:
            self.writer.add_figure(name, chart_figure(name, chart), step)

    def close(self) -> None:
        self.writer.close()
