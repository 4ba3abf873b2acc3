"""Stage `duplex`: the model learns two-sided conversation from encoded episodes (paper, stage 2)."""

from pathlib import Path

from torch import Tensor

from wan_streamer.codecs.text import TextCodec
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.streamer import Streamer
from wan_streamer.training.examples.clips import Example
from wan_streamer.training.examples.conversations import ConversationClips
from wan_streamer.training.examples.tasks import LENGTHS, TaskClips
from wan_streamer.training.examples.vocabulary import learn_text
from wan_streamer.training.examples.written import (
    AskedClips,
    EncodedClips,
    PlainClips,
    ShownClips,
    SpokenClips,
    WrittenClips,
)
from wan_streamer.training.loop.means import means
from wan_streamer.training.loop.parallel import join
from wan_streamer.training.loop.stage import TrainConfig
from wan_streamer.training.stages.objective import plain_loss, streamer_loss
from wan_streamer.training.stages.run import RunOptions, run, starting_point
from wan_streamer.training.stages.streamer import StreamerStage

TEXT_HIDDEN_SHARE = 0.1  # of clips without the agent's text, so that sound and face can be guided by it
TASK_EVERY = 5  # steps; one of them is made of tasks, if there are any: 20 % keep alive what `pretrain` taught
CONFIG = TrainConfig(steps=4000, lr=1.2e-3, muon_lr=3e-3, batch=4, warmup=100, ema=0.995, weight_decay=0.05)
RECYCLE_FROM, RECYCLE_EVERY = 0.4, 4  # share of the steps after which every fourth with pictures goes on from mistakes
SOUND_RECYCLED = (0, 1, 2, 1, 2, 1)  # how often, after so many steps, in those in which sound is all that is drawn
CYCLE = 20  # steps, of which these are not made of whole conversations
HEARD_STEPS = (1, 2, 3, 5, 7, 11, 12, 13, 15, 17)  # of speech to write down, if there is any
ASKED_STEPS = (3, 7, 13, 18)  # of conversations in which only the user is heard, if there are any
SPOKEN_STEPS = (2, 5, 8, 12, 15, 17)  # of those in which only the agent is heard, likewise
SHOWN_STEPS = (6, 11, 19)  # of those in which nothing is heard, likewise
WRITTEN_STEPS = (9, 16)  # of conversations that are only words, if they are wanted
PLAIN_STEPS = (16,)  # of those, of the words without the time in between
PLAIN_WEIGHT = 0.5
SILENT_NUMBERS = ("text", "response_right", "audio")  # of conversations in which the user is not heard
VALIDATION = (8, 4)  # batches and rows of each


class DuplexStage(StreamerStage):
    """Conversations of `data`, and in one step of `TASK_EVERY` the tasks of `tasks`, if it is given.

    heard    a corpus of speech to write down, in the steps `HEARD_STEPS`
    written  conversations that are only words, in the steps `WRITTEN_STEPS`, without time in `PLAIN_STEPS` of them
    shown    encoded conversations in which nothing is heard, in the steps `SHOWN_STEPS`
    spoken   encoded conversations in which only the agent is heard, in the steps `SPOKEN_STEPS`
    asked    encoded conversations in which only the user is heard, in the steps `ASKED_STEPS`
    """

    name = "duplex"

    def __init__(
        self,
        streamer: Streamer,
        text: TextCodec,
        data: Path,
        config: TrainConfig,
        tasks: Path | None = None,
        heard: Path | None = None,
        written: bool = False,
        shown: Path | None = None,
        spoken: Path | None = None,
        asked: Path | None = None,
    ) -> None:
        super().__init__(streamer, text, data, config, config.clip_units, heard)
        self.train_written, self.valid_written = (
            WrittenClips(split, streamer.config, text, config.clip_units) if written else None
            for split in ("train", "valid")
        )
        self.train_plain, self.valid_plain = (
            PlainClips(split, streamer.config, text) if written and streamer.config.cache.memory_tokens else None
            for split in ("train", "valid")
        )
        self.train_shown, self.valid_shown = (
            ShownClips(self.reader(Path(shown) / split, config.clip_units)) if shown else None
            for split in ("train", "valid")
        )
        self.train_asked, self.valid_asked = (
            AskedClips(self.reader(Path(asked) / split, config.clip_units)) if asked else None
            for split in ("train", "valid")
        )
        self.train_spoken, self.valid_spoken = (
            SpokenClips(self.reader(Path(spoken) / split, config.clip_units), hidden) if spoken else None
            for split, hidden in (("train", TEXT_HIDDEN_SHARE), ("valid", 0.0))
        )
        self.train_talks, self.valid_talks = (
            ConversationClips(clips, data) for clips in (self.train_clips, self.valid_clips)
        )
        self.train_tasks, self.valid_tasks = (
            TaskClips(self.reader(Path(tasks) / split, LENGTHS[-1]), Path(tasks) / split) if tasks else None
            for split in ("train", "valid")
        )

    def batch(self, step: int, rows: range) -> Example | Tensor:
        """An example; memory tokens [B, M, 2] in a step of `PLAIN_STEPS`."""
        seed, heard = self.config.seed, self.heard.train if self.listens(step) else None
        if self.train_plain is not None and step % CYCLE in PLAIN_STEPS:
            return self.train_plain.batch(seed, step, rows)
        clips = self._tasks_of(step) or self._spoken_of(step) or self._silent_of(step) or heard
        if clips is not None:
            return clips.batch(seed, step, rows)
        return self.train_talks.batch(seed, step, rows, TEXT_HIDDEN_SHARE, self.draws(step))

    def _tasks_of(self, step: int) -> TaskClips | None:
        """What a step of tasks draws from; None for a step of conversations."""
        return self.train_tasks if step % TASK_EVERY == TASK_EVERY - 1 else None

    def _spoken_of(self, step: int) -> SpokenClips | None:
        """Likewise of conversations in which only the agent is heard."""
        return self.train_spoken if step % CYCLE in SPOKEN_STEPS else None

    def _silent_of(self, step: int) -> WrittenClips | EncodedClips | None:
        """Likewise of conversations in which the agent is not heard."""
        if self.train_asked is not None and step % CYCLE in ASKED_STEPS:
            return self.train_asked
        if self._spoken_of(step) is not None:
            return None
        if self.train_shown is not None and step % CYCLE in SHOWN_STEPS:
            return self.train_shown
        return self.train_written if step % CYCLE in WRITTEN_STEPS else None

    def listens(self, step: int) -> bool:
        quiet = self._spoken_of(step) is not None or self._silent_of(step) is not None
        return self.heard.train is not None and step % CYCLE in HEARD_STEPS and not quiet

    def drawn(self, step: int) -> bool:
        return not self.listens(step) and self._silent_of(step) is None

    def draws(self, step: int) -> bool:
        """Whether a step of conversation learns the agent's pictures, too; every one learns its words and its sound."""
        return step % self.config.draw_every == 0 and self._spoken_of(step) is None

    def errors(
        self, batch: Example | Tensor, step: int, noise: RowNoise, misread: float = 0.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if isinstance(batch, Tensor):
            return self._plain_errors(batch)
        if not self.drawn(step):
            return super().errors(batch, step, noise, misread)
        pictures = self._tasks_of(step) is not None or self.draws(step)
        example = batch.map(self.move)
        return streamer_loss(
            self.streamer, example, noise, self.move, self.autocast(), self.recycled(step), misread=misread,
            pictures=pictures,
        )  # fmt: skip

    def recycled(self, step: int) -> int:
        """How often the model goes on from its own mistakes in a step."""
        # In tasks, what it makes of streams that are no targets means nothing.
        if self._tasks_of(step) is not None or step < RECYCLE_FROM * self.config.steps:
            return 0
        if self.draws(step):
            return int(step // self.config.draw_every % RECYCLE_EVERY == 0)
        return SOUND_RECYCLED[step % len(SOUND_RECYCLED)]

    def _plain_errors(self, memory_BM2: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        error, right = plain_loss(self.streamer, self.move(memory_BM2), self.autocast())
        return PLAIN_WEIGHT * error, {"plain": error.detach(), "plain_right": right}

    def validate(self) -> dict[str, float]:
        batches, rows = VALIDATION
        totals = [
            self.read_loss(self.valid_talks.valid(number, range(rows)), RowNoise(1, number, range(rows)))
            for number in range(batches)
        ]
        tasks = self.valid_tasks.validate(self.read_loss) if self.valid_tasks is not None else {}
        silent = self._validate_silent("written", self.valid_written, WRITTEN_STEPS[0])
        silent |= self._validate_silent("shown", self.valid_shown, SHOWN_STEPS[0])
        silent |= self._validate_silent("spoken", self.valid_spoken, SPOKEN_STEPS[0])
        silent |= self._validate_silent("asked", self.valid_asked, ASKED_STEPS[0])
        if self.valid_plain is not None:
            _, plain = self._plain_errors(self.valid_plain.batch(1, 0, range(rows)))
            silent |= {name: value.item() for name, value in plain.items()}
        return means(totals) | tasks | self.heard.validate(self.read_loss) | silent

    def _validate_silent(self, name: str, clips: WrittenClips | EncodedClips | None, step: int) -> dict[str, float]:
        """`written/...` and so on: what is said rightly in held-out conversations in which one side is not heard."""
        if clips is None:
            return {}
        batches, rows = (range(count) for count in VALIDATION)
        read = [self.read_loss(clips.batch(1, number, rows), RowNoise(3, number, rows), step) for number in batches]
        return {f"{name}/{key}": value for key, value in means(read).items() if key in SILENT_NUMBERS}


def train_duplex(
    data: Path,
    options: RunOptions,
    device: str = "auto",
    tasks: Path | None = None,
    shown: Path | None = None,
    spoken: Path | None = None,
    asked: Path | None = None,
) -> dict[str, float]:
    """Train on `data` (codecs, train/ and valid/, as `encode` writes them) for conversation.

    tasks  encoded tasks that join in, from the same codecs
    shown  encoded conversations in which nothing is heard, likewise
    spoken  in which only the agent is heard;   asked  only the user
    """
    world, data = join(device), Path(data)
    stores = [data / "train", *([Path(tasks) / "train"] if tasks else [])]
    streamer, text = starting_point(options, lambda config, start: learn_text(stores, config, options.heard, start))
    stage = DuplexStage(
        streamer, text, data, options.apply(CONFIG), tasks, options.heard, options.written, shown, spoken, asked
    )
    return run(stage, options, world)
