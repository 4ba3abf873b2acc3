"""Stage `duplex`: the model learns two-sided conversation from encoded episodes (paper, stage 2)."""

from pathlib import Path

import numpy as np
from torch import Tensor

from wan_streamer.codecs.text import TextCodec
from wan_streamer.errors import DataError
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.streamer import Streamer
from wan_streamer.training.examples.augment import vary
from wan_streamer.training.examples.clips import ClipReader, Example, hide, stack
from wan_streamer.training.examples.tasks import LENGTHS, TaskClips
from wan_streamer.training.examples.vocabulary import learn_text
from wan_streamer.training.loop.parallel import join
from wan_streamer.training.loop.stage import TrainConfig
from wan_streamer.training.stages.objective import streamer_loss
from wan_streamer.training.stages.run import RunOptions, run, starting_point
from wan_streamer.training.stages.streamer import StreamerStage

CLIP_UNITS = 24  # 3.84 s: one more than nano's longest window, so that sinks are seen in their moved place
TYPED_SHARE = 0.1  # of clips in which the user types instead of speaking
MICROPHONE_OFF_SHARE = 0.5  # of the clips in which the user types
CAMERA_OFF_SHARE = 0.1  # of clips, on top of those recorded without a camera
TEXT_HIDDEN_SHARE = 0.1  # of clips without the agent's text, so that sound and face can be guided by it
FROM_START_SHARE = 0.15  # of clips that begin where the session begins
TASK_EVERY = 5  # steps; one of them is made of tasks, if there are any: 20 % keep alive what `pretrain` taught
CONFIG = TrainConfig(steps=4000, lr=1.2e-3, muon_lr=3e-3, batch=4, warmup=100, ema=0.995, weight_decay=0.05)
RECYCLE_FROM, RECYCLE_EVERY = 0.4, 4  # share of the steps after which every fourth goes on from the model's mistakes
VALIDATION = (8, 4)  # batches and rows of each


class DuplexStage(StreamerStage):
    """Conversations of `data`, and in one step of `TASK_EVERY` the tasks of `tasks`, if it is given."""

    name = "duplex"

    def __init__(
        self,
        streamer: Streamer,
        text: TextCodec,
        data: Path,
        config: TrainConfig,
        units: int,
        tasks: Path | None = None,
    ) -> None:
        super().__init__(streamer, text, data, config, units)
        self.train_tasks, self.valid_tasks = (
            TaskClips(self.reader(Path(tasks) / split, LENGTHS[-1]), Path(tasks) / split) if tasks else None
            for split in ("train", "valid")
        )
        short = min(int(clips.length.min()) for clips in (self.train_clips, self.valid_clips))
        if short < units:
            raise DataError(f"{data}: a conversation of {short} units is shorter than the clips of {units}")

    def batch(self, step: int, rows: range) -> Example:
        tasks = self._tasks_of(step)
        if tasks is not None:
            return tasks.batch(self.config.seed, step, rows)
        return stack(self._draw_varied((self.config.seed, step, row), TEXT_HIDDEN_SHARE) for row in rows)

    def _tasks_of(self, step: int) -> TaskClips | None:
        """What a step of tasks draws from; None for a step of conversations."""
        return self.train_tasks if step % TASK_EVERY == TASK_EVERY - 1 else None

    def _draw_varied(self, seed: tuple[int, ...], hidden_share: float) -> Example:
        rng = np.random.default_rng(seed)
        return vary(self._draw(self.train_clips, rng, hidden_share), rng)

    def _draw(self, clips: ClipReader, rng: np.random.Generator, hidden_share: float) -> Example:
        number = int(rng.choice(len(clips.length), p=clips.length / clips.length.sum()))
        first = int(rng.integers(0, clips.length[number] - self.units + 1))
        if rng.random() < FROM_START_SHARE:
            first = 0
        typed = rng.random() < TYPED_SHARE
        microphone = not typed or rng.random() >= MICROPHONE_OFF_SHARE
        example = clips.read(number, first, typed, microphone, camera=rng.random() >= CAMERA_OFF_SHARE)
        return hide(example, text=rng.random() < hidden_share)

    def draw_valid(self, number: int, row: int) -> Example:
        """A row of a held-out batch, the same at every validation."""
        return self._draw(self.valid_clips, np.random.default_rng((1, number, row)), 0.0)

    def loss(self, batch: Example, step: int, noise: RowNoise) -> tuple[Tensor, dict[str, Tensor]]:
        late = step >= RECYCLE_FROM * self.config.steps
        # In tasks, what the model makes of streams that are no targets means nothing.
        recycled = late and step % RECYCLE_EVERY == 0 and self._tasks_of(step) is None
        return streamer_loss(self.streamer, batch.map(self.move), noise, self.move, self.autocast(), recycled)

    def validate(self) -> dict[str, float]:
        batches, rows = VALIDATION
        totals = []
        for number in range(batches):
            batch = stack(self.draw_valid(number, row) for row in range(rows))
            totals.append(self.read_loss(batch, RowNoise(1, number, range(rows))))
        scores = {key: float(np.nanmean([numbers[key] for numbers in totals])) for key in sorted(totals[0])}
        return scores | (self.valid_tasks.validate(self.read_loss) if self.valid_tasks is not None else {})


def train_duplex(data: Path, options: RunOptions, device: str = "auto", tasks: Path | None = None) -> dict[str, float]:
    """Train on `data` (codecs, train/ and valid/, as `encode` writes them) for conversation.

    tasks  encoded tasks that join in, from the same codecs
    """
    world, data = join(device), Path(data)
    stores = [data / "train", *([Path(tasks) / "train"] if tasks else [])]
    streamer, text = starting_point(options, lambda vocabulary: learn_text(stores, vocabulary))
    stage = DuplexStage(streamer, text, data, options.apply(CONFIG), CLIP_UNITS, tasks)
    return run(stage, options, world)
