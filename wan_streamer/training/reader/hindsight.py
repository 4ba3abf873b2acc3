"""Stage `hindsight`: layers that hear a turn in both directions learn to make it readable.

`HindsightStage`   from what frozen ears made of a turn: what the teacher of the ears makes of it, and its text
`train_hindsight`  the whole run

The agent's reader stays as it is and reads what they make, as a whole (`whole.py`); its cross-entropy is what carries
over to new voices, as in the training of the ears. What is heard is kept and comes again: only these layers learn, and
the ears and their teacher take most of a step.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_streamer.codecs.text import END
from wan_streamer.errors import CheckpointError
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.pretrained import find_checkpoint, grown, load_weights, save_weights
from wan_streamer.perception.ears import turns
from wan_streamer.perception.hindsight import Hindsight
from wan_streamer.perception.reading import Reader
from wan_streamer.perception.senses import senses_of
from wan_streamer.training.ears.stage import EarsLoss
from wan_streamer.training.ears.teacher import Teacher
from wan_streamer.training.loop.alone import AloneOptions, train_alone
from wan_streamer.training.loop.means import means
from wan_streamer.training.loop.stage import Stage, TrainConfig
from wan_streamer.training.reader.streams import IGNORED, DueStreams, DueTalks
from wan_streamer.training.reader.whole import whole_texts

FOLDER = "agent"
"""Where a run writes the agent with its hindsight."""
LAYERS = 2
TEXTS = 4  # of a stream
POOL = 800  # batches, which come again and again
VALID_BATCHES, VALID_ROWS = 4, 4
PARTS = EarsLoss(text=0.5)


class Heard(NamedTuple):
    """B streams of K units.

    heard_BTD    float16, what the ears made of them, K x frames
    target_BTD   float16, what the teacher makes of the clips in them, each heard alone
    trust_BT     float32, how much that counts; 0 where there is no clip
    written_BKS  int64, the transcript
    """

    heard_BTD: Tensor
    target_BTD: Tensor
    trust_BT: Tensor
    written_BKS: Tensor


class HindsightStage(Stage):
    """folder  the corpus;  start  folder of the agent;  talks  encoded conversations, if there are;  layers  how many

    Raises `CheckpointError` for an agent that reads no whole turns, `DataError` for a corpus without training or
    validation clips and for conversations that other ears heard, `ConfigError` without the teacher's package.
    """

    name = "hindsight"

    def __init__(
        self, folder: Path, start: Path, config: TrainConfig, talks: Sequence[Path] = (), layers: int = LAYERS
    ) -> None:
        self.config, weights = config, load_weights(start)
        perception = weights.config.perception
        if not perception.reading_again:
            raise CheckpointError(f"{start}: expected an agent that reads turns as a whole; `train reader` makes one")
        self.weights = grown(weights, replace(weights.config, perception=replace(perception, hindsight=layers)))
        streamer = self.weights.streamer
        assert streamer.hindsight is not None
        assert streamer.reading is not None
        self.frames = perception.ears.frames
        self.ears = streamer.hearing.float().eval().requires_grad_(False)
        self.reader: Reader = streamer.reading.float().eval().requires_grad_(False)
        self.hindsight: Hindsight = streamer.hindsight.float().train().requires_grad_(True)
        self.models: dict[str, nn.Module] = {"hindsight": self.hindsight}
        self.teacher = Teacher()
        ears = senses_of(perception, streamer.hearing, streamer.seeing)["ears"] if talks else ""
        streams = [DueStreams(folder, split, weights.config, weights.text, config.seed) for split in ("train", "valid")]
        self.train_streams, self.valid_streams = streams
        self.train_talks, self.valid_talks = (
            [DueTalks(Path(talk) / split, ears, weights.config, weights.text, config.seed) for talk in talks]
            for split in ("train", "valid")
        )
        self._kept = functools.lru_cache(maxsize=POOL)(self._made)

    def is_hidden(self, name: str, p: nn.Parameter) -> bool:
        return p.ndim == 2

    def batch(self, step: int, rows: range) -> Heard:
        return self._kept(step % POOL, rows)

    def _made(self, number: int, rows: range) -> Heard:
        if self.train_talks and number % 2:
            return self._talks(self.train_talks[number // 2 % len(self.train_talks)], number, rows)
        return self._streams(self.train_streams, number, rows)

    @torch.no_grad()
    def _streams(self, made: DueStreams, number: int, rows: range) -> Heard:
        """Streams of the corpus, whose clips the teacher hears, too."""
        streams = [made.streams.make(number, row) for row in rows]
        written_BKS = torch.stack([torch.from_numpy(made.lane(stream)) for stream in streams])
        heard_BTD = self._hear(torch.stack([torch.from_numpy(stream.audio_T) for stream in streams]))
        target_BTD, trust_BT = torch.zeros_like(heard_BTD), torch.zeros(heard_BTD.shape[:2])
        placed = [(row, one) for row, stream in enumerate(streams) for one in stream.placed]
        if placed:
            clean_CT = nn.utils.rnn.pad_sequence([torch.from_numpy(one.clean_T) for _, one in placed], batch_first=True)
            units_C = torch.tensor([one.units for _, one in placed])
            with self.autocast():
                taught_CTD = self.teacher.to(self.device)(self.move(clean_CT), self.move(units_C))[-1]
            for (row, one), taught_TD in zip(placed, taught_CTD, strict=True):
                first, count = (units * self.frames for units in (one.first, one.units))
                target_BTD[row, first : first + count] = taught_TD[:count]
                trust_BT[row, first : first + count] = PARTS.trusted.get(one.clip.kind, 1.0)
        return Heard(heard_BTD.half().cpu(), target_BTD.half().cpu(), trust_BT, written_BKS)

    def _hear(self, audio_BT: Tensor) -> Tensor:
        with self.autocast():
            return self.ears.to(self.device)(self.move(audio_BT))[0]

    @torch.no_grad()
    def _talks(self, made: DueTalks, number: int, rows: range) -> Heard:
        """Stretches of conversations, of which only the text is known."""
        batch = made.batch(number, rows)
        sound = batch.heard_BX.ndim == 2  # of what is held out
        heard_BTD = (self._hear(batch.heard_BX) if sound else batch.heard_BX.flatten(1, 2)).half().cpu()
        return Heard(heard_BTD, torch.zeros_like(heard_BTD), torch.zeros(heard_BTD.shape[:2]), batch.written_BKS)

    def loss(self, batch: Heard, step: int, noise: RowNoise) -> tuple[Tensor, Mapping[str, Tensor]]:
        text_BEN, near_BEK, _ = whole_texts(batch.written_BKS, TEXTS, torch.Generator().manual_seed(step))
        stream_R, place_R = (text_BEN[..., 1:] != IGNORED).any(2).nonzero().unbind(1)
        text_RN, near_RK = self.move(text_BEN[stream_R, place_R]), near_BEK[stream_R, place_R]
        if not len(text_RN):
            nothing = sum(p.sum() for p in self.hindsight.parameters()) * 0.0
            return nothing, {name: torch.zeros(()) for name in ("text", "cosine", "square", "right")}  # type: ignore[return-value]
        first_R, length_R = near_RK.int().argmax(1) * self.frames, near_RK.sum(1) * self.frames
        place_T = torch.arange(int(length_R.max()))
        index_RT = (first_R[:, None] + place_T).clamp(max=batch.heard_BTD.shape[1] - 1)
        real_RT = self.move(place_T < length_R[:, None])
        heard_RTD, target_RTD, trust_RT = (self.move(part[stream_R[:, None], index_RT].float()) for part in batch[:3])
        with self.autocast():
            made_RTD = self.hindsight(heard_RTD, real_RT)
            turn_NR = turns(text_RN.shape[1] - 1, self.reader.config, device=text_RN.device)
            sound = self.reader.to(self.device).sound(made_RTD)
            hidden_RND, _ = self.reader.read(text_RN[:, :-1].clamp(min=0), turn_NR, sound, real_RT[:, None, None])
        next_X = text_RN[:, 1:][text_RN[:, 1:] != IGNORED] - END
        score_XV = self.reader.scores(hidden_RND)[text_RN[:, 1:] != IGNORED][:, END:]
        weight_RT = trust_RT * real_RT
        total = weight_RT.sum().clamp(min=1)
        typical = (target_RTD.square().mean(2) * weight_RT).sum() / total
        far_RT = (made_RTD.float() - target_RTD).square().mean(2)
        numbers = {
            "text": F.cross_entropy(score_XV, next_X),
            "cosine": ((1 - F.cosine_similarity(made_RTD.float(), target_RTD, dim=2)) * weight_RT).sum() / total,
            "square": (far_RT * weight_RT).sum() / total / typical.clamp(min=1e-3),
        }
        loss = sum(getattr(PARTS, name) * value for name, value in numbers.items())
        return loss, numbers | {"right": (score_XV.argmax(-1) == next_X).float().mean()}  # type: ignore[return-value]

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The losses on held-out voices and sentences, and how many tokens are right, each behind those before it.

        Of conversations, those are called `talks/...`.
        """
        rows = range(VALID_ROWS)
        said = [self._streams(self.valid_streams, number, rows) for number in range(VALID_BATCHES)]
        talks = [self._talks(made, number, rows) for made in self.valid_talks for number in range(VALID_BATCHES)]
        return self._scores(said) | {f"talks/{key}": value for key, value in self._scores(talks).items()}

    def _scores(self, batches: list[Heard]) -> dict[str, float]:
        losses = [self.loss(batch, number, RowNoise(0, number, range(1)))[1] for number, batch in enumerate(batches)]
        return means([{name: value.item() for name, value in numbers.items()} for numbers in losses])

    def export(self, out_dir: Path) -> None:
        save_weights(self.weights, out_dir / FOLDER)


CONFIG = TrainConfig(
    steps=3000,
    lr=1e-3,
    muon_lr=2e-3,
    batch=4,
    betas=(0.9, 0.98),
    ema=0.99,
    log_every=25,
    validate_every=250,
    save_every=100,
)


def train_hindsight(
    folder: str | Path,
    start: str | Path,
    out_dir: str | Path,
    options: AloneOptions = AloneOptions(),
    talks: Sequence[Path] = (),
    layers: int = LAYERS,
) -> dict[str, float]:
    """Train the hindsight of the agent `start` on the corpus in `folder`; the agent is written to `out_dir`/agent.

    talks  folders of conversations encoded with the agent's ears, of which half of the steps are made

    Returns the last validation. Raises `ConfigError`, `DataError`, `CheckpointError`, `TrainingError`.
    """
    agent = find_checkpoint(str(start))
    return train_alone(
        lambda config: HindsightStage(Path(folder), agent, config, talks, layers), CONFIG, out_dir, options
    )
