"""Stage `ears`: distil the full-context teacher into block-causal ears.

`EarsStage`   losses: features of the teacher, and the text as the frozen decoder reads it from the ears
`train_ears`  the whole run

A clip's target features are made on the fly by the teacher, from the clean clip alone; the ears hear the stream that
it is in. The decoder's cross-entropy is what carries over to new voices, features alone learn the voices there are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_streamer.errors import DataError, TrainingError
from wan_streamer.flow.noise import RowNoise
from wan_streamer.perception.ears import Ears, load_ears, save_ears
from wan_streamer.training.ears.data import Stream, StreamConfig, StreamMaker
from wan_streamer.training.ears.moonshine import Tokenizer, encoder_weights
from wan_streamer.training.ears.reader import load_reader, padded_texts
from wan_streamer.training.ears.teacher import Teacher
from wan_streamer.training.loop.alone import AloneOptions, train_alone
from wan_streamer.training.loop.stage import Stage, TrainConfig

FOLDER = "ears"
"""Where a run writes what `load_ears` reads."""


@dataclass(frozen=True)
class EarsLoss:
    """What is minimised: 1 - cosine, mean square (against the target's), the same of middle layers, cross-entropy.

    taps        the middle layers, counted from 0
    trusted     how much the teacher's features of a kind count (others: 1); it mishears espeak-ng
    """

    cosine: float = 1.0
    square: float = 1.0
    middle: float = 0.3
    text: float = 0.15
    taps: tuple[int, ...] = (1, 3)
    trusted: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({"espeak": 0.4}))


class Streams(NamedTuple):
    """A batch: B streams that hold C clips.

    audio_BT   float32, what the ears hear;  clean_CT  what the teacher hears, zeros behind the end of a clip
    place_C3   int64: stream, first unit, units
    tokens_CN  int64, see `padded_texts`;  trust_C  float32
    """

    audio_BT: Tensor
    clean_CT: Tensor
    place_C3: Tensor
    tokens_CN: Tensor
    trust_C: Tensor


class EarsStage(Stage):
    """folder  the corpus;  start  folder of ears to begin from, None for the teacher's own

    Raises `ConfigError`, `DataError`, `CheckpointError`.
    """

    name = "ears"

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        start: Path | None = None,
        streams: StreamConfig | None = None,
        parts: EarsLoss | None = None,
        reload_every: int = 50,
    ) -> None:
        self.config, self.parts = config, parts or EarsLoss()
        self.reload_every, self._reloads = reload_every, 0
        self.ears = Ears() if start is None else load_ears(start)
        if start is None:
            self.ears.load_state_dict(encoder_weights())
        self.ears.train().requires_grad_(True)
        self.teacher, self.reader, self.tokenizer = Teacher(), load_reader(), Tokenizer()
        self.models: dict[str, nn.Module] = {"ears": self.ears}
        self.train_streams = StreamMaker(folder, "train", streams or StreamConfig(), config.seed)
        self.valid_streams: StreamMaker | None = None
        try:
            self.valid_streams = StreamMaker(folder, "valid", streams or StreamConfig(), config.seed + 1)
        except DataError:  # a young corpus; validation says so
            self.valid_streams = None

    def batch(self, step: int, rows: range) -> Streams:
        if step // self.reload_every > self._reloads:
            self._reloads = step // self.reload_every
            self.train_streams.reload()
        return self.streams([self.train_streams.make(step, row) for row in rows])

    def streams(self, streams: list[Stream]) -> Streams:
        """Streams as tensors. Raises `TrainingError` if none holds a clip."""
        placed = [(row, one) for row, stream in enumerate(streams) for one in stream.placed]
        if not placed:
            raise TrainingError("a batch without a clip: expected streams longer than the shortest clip")
        return Streams(
            torch.stack([torch.from_numpy(stream.audio_T) for stream in streams]),
            nn.utils.rnn.pad_sequence([torch.from_numpy(one.clean_T) for _, one in placed], batch_first=True),
            torch.tensor([(row, one.first, one.units) for row, one in placed]),
            padded_texts([self.tokenizer.encode(one.clip.text) for _, one in placed]),
            torch.tensor([self.parts.trusted.get(one.clip.kind, 1.0) for _, one in placed]),
        )

    def loss(self, batch: Streams, step: int, noise: RowNoise) -> tuple[Tensor, Mapping[str, Tensor]]:
        audio_BT, clean_CT, place_C3, tokens_CN, trust_C = (self.move(part) for part in batch)
        row_C, first_C, units_C = place_C3.unbind(1)
        frames = self.ears.config.frames
        with self.autocast():
            layers, _ = self.ears.layered(audio_BT)
            targets = self.teacher.to(self.device)(clean_CT, units_C)
        place_T = torch.arange(targets[-1].shape[1], device=self.device)
        real_CT = place_T < units_C[:, None] * frames
        frame_CT = (first_C[:, None] * frames + place_T).clamp(max=layers[-1].shape[1] - 1)
        weight_CT = trust_C[:, None] * real_CT
        weight_CT = weight_CT / weight_CT.sum()

        def heard(layer: int) -> Tensor:
            return layers[layer][row_C[:, None], frame_CT].float()

        def square(mine_CTD: Tensor, theirs_CTD: Tensor) -> Tensor:
            typical = (theirs_CTD.square().mean(2) * real_CT).sum() / real_CT.sum()
            return ((mine_CTD - theirs_CTD).square().mean(2) * weight_CT).sum() / typical

        mine_CTD, theirs_CTD = heard(-1), targets[-1].float()
        numbers = {
            "cosine": ((1 - F.cosine_similarity(mine_CTD, theirs_CTD, dim=2)) * weight_CT).sum(),
            "square": square(mine_CTD, theirs_CTD),
            "middle": torch.stack([square(heard(tap), targets[tap].float()) for tap in self.parts.taps]).sum(),
        }
        with self.autocast():
            numbers["text"] = self.reader.to(self.device).cross_entropy(mine_CTD, units_C * frames, tokens_CN)
        total = sum(getattr(self.parts, name) * value for name, value in numbers.items())
        return total, numbers  # type: ignore[return-value]

    def validate(self) -> dict[str, float]:
        """The losses on eight streams of voices and sentences kept for it; scores are made by `score_ears`."""
        if self.valid_streams is None:
            return {}
        streams = [self.valid_streams.make(0, row) for row in range(8)]
        with torch.no_grad():
            _, numbers = self.loss(self.streams(streams), 0, RowNoise(0, 0, range(1)))
        return {name: value.item() for name, value in numbers.items()}

    def export(self, out_dir: Path) -> None:
        save_ears(self.ears, out_dir / FOLDER)


CONFIG = TrainConfig(
    steps=2000, lr=2.5e-4, batch=4, warmup=30, betas=(0.9, 0.98), weight_decay=0.005, ema=0.99,
    log_every=5, validate_every=100, save_every=25,
)  # fmt: skip


def train_ears(
    folder: str | Path, out_dir: str | Path, start: str | Path | None = None, options: AloneOptions = AloneOptions()
) -> dict[str, float]:
    """Distil ears on the corpus in `folder`; they are written to `out_dir`/ears. Returns the last validation.

    start  folder of ears to begin from; None begins from the teacher's own

    Raises `ConfigError` without the teacher's package, `DataError` without a corpus, `CheckpointError` for weights
    that do not fit, `TrainingError` for a resume that does not.
    """
    begin = None if start is None else Path(start)
    return train_alone(lambda config: EarsStage(Path(folder), config, begin), CONFIG, out_dir, options)
