"""Stage `pretrain`: the model learns to understand and to make things one at a time (paper, stage 1)."""

from pathlib import Path

from wan_streamer.codecs.text import TextCodec
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.layout import ClipBatch
from wan_streamer.model.streamer import Streamer
from wan_streamer.training.examples.clips import Example
from wan_streamer.training.examples.tasks import LENGTHS, TaskClips
from wan_streamer.training.examples.vocabulary import learn_text
from wan_streamer.training.loop.means import means
from wan_streamer.training.loop.parallel import join
from wan_streamer.training.loop.stage import TrainConfig
from wan_streamer.training.stages.run import RunOptions, run, starting_point
from wan_streamer.training.stages.streamer import StreamerStage

CONFIG = TrainConfig(steps=4000, lr=1.2e-3, muon_lr=3e-3, batch=4, warmup=100, ema=0.995, weight_decay=0.05)
HEARD_EVERY = 2  # steps; one of them is made of speech to write down, if there is any
SAMPLES = 2  # tasks that are rolled out after a validation


class PretrainStage(StreamerStage):
    """Whole tasks, as `encode` makes them from `simulate --tasks`."""

    name = "pretrain"

    def __init__(
        self, streamer: Streamer, text: TextCodec, data: Path, config: TrainConfig, heard: Path | None = None
    ) -> None:
        super().__init__(streamer, text, data, config, LENGTHS[-1], heard)
        self.train_tasks = TaskClips(self.train_clips, Path(data) / "train")
        self.valid_tasks = TaskClips(self.valid_clips, Path(data) / "valid")

    def batch(self, step: int, rows: range) -> Example:
        clips = self.heard.train if self.listens(step) else None
        return (clips or self.train_tasks).batch(self.config.seed, step, rows)

    def listens(self, step: int) -> bool:
        return self.heard.train is not None and step % HEARD_EVERY == HEARD_EVERY - 1

    def validate(self) -> dict[str, float]:
        totals: list[dict[str, float]] = []

        def errors(example: Example, noise: RowNoise) -> dict[str, float]:
            totals.append(self.read_loss(example, noise))
            return totals[-1]

        scores = self.valid_tasks.validate(errors)
        return means(totals) | scores | self.heard.validate(self.read_loss)

    def sample_clips(self) -> list[ClipBatch]:
        return [example.clips for example in self.valid_tasks.fullest(SAMPLES)]


def train_pretrain(
    data: Path, options: RunOptions, device: str = "auto", talks: Path | None = None
) -> dict[str, float]:
    """Train on the tasks in `data` (codecs, train/ and valid/, as `encode` writes them).

    talks  encoded conversations from whose words a new tokenizer learns as well
    """
    world, data = join(device), Path(data)
    stores = [data / "train", *([Path(talks) / "train"] if talks else [])]
    streamer, text = starting_point(options, lambda config, start: learn_text(stores, config, options.heard, start))
    return run(PretrainStage(streamer, text, data, options.apply(CONFIG), options.heard), options, world)
