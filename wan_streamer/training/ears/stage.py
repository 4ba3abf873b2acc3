"""Stage `ears`: distil the full-context teacher into block-causal ears.

`EarsStage`   losses: features of the teacher, and the text as the frozen decoder reads it from the ears
`train_ears`  the whole run

A clip's target features are made on the fly by the teacher, from the clean clip alone; the ears hear the stream that
it is in. The decoder's cross-entropy is what carries over to new voices, features alone learn the voices there are.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_streamer.errors import ConfigError, DataError, TrainingError
from wan_streamer.flow.noise import RowNoise
from wan_streamer.perception.ears import Ears, load_ears, save_ears
from wan_streamer.training.ears.data import Stream, StreamConfig, StreamMaker
from wan_streamer.training.ears.moonshine import Tokenizer, encoder_weights
from wan_streamer.training.ears.reader import load_reader
from wan_streamer.training.ears.teacher import Teacher
from wan_streamer.training.loop.parallel import join
from wan_streamer.training.loop.stage import Stage, TrainConfig
from wan_streamer.training.loop.trainer import Trainer

FOLDER = "ears"
"""Where a run writes what `load_ears` reads."""


@dataclass(frozen=True)
class EarsLoss:
    """What is minimised: 1 - cosine, mean square (against the target's), the same of middle layers, cross-entropy.

    taps        the middle layers, counted from 0
    trusted     how much the teacher's features of a source count (others: 1); it mishears espeak-ng
    """

    cosine: float = 1.0
    square: float = 1.0
    middle: float = 0.3
    text: float = 0.15
    taps: tuple[int, ...] = (1, 3)
    trusted: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({"espeak": 0.4}))


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
        self.config, self.parts, self.reload_every = config, parts or EarsLoss(), reload_every
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

    def batch(self, step: int, rows: range) -> list[Stream]:
        return [self.train_streams.make(step, row) for row in rows]

    def loss(self, batch: list[Stream], step: int, noise: RowNoise) -> tuple[Tensor, Mapping[str, Tensor]]:
        audio_BT = self.move(torch.stack([torch.from_numpy(stream.audio_T) for stream in batch]))
        with self.autocast():
            layers, _ = self.ears.layered(audio_BT)
        clips = [(row, one) for row, stream in enumerate(batch) for one in stream.placed]
        if not clips:
            raise TrainingError("a batch without a clip: expected streams longer than the shortest clip")
        frames = self.ears.config.frames
        spans = [(row, slice(one.first * frames, (one.first + one.units) * frames)) for row, one in clips]
        with self.autocast():
            targets = [self.teacher.to(self.device)(self.move(torch.from_numpy(one.clean_T))) for _, one in clips]
        trust = [self.parts.trusted.get(one.clip.source, 1.0) for _, one in clips]
        numbers = self._features(layers, spans, targets, trust)
        heard = [layers[-1][row, span].float() for row, span in spans]
        features_BTD = nn.utils.rnn.pad_sequence(heard, batch_first=True)
        frames_B = torch.tensor([len(rows) for rows in heard], device=self.device)
        texts = [self.tokenizer.encode(one.clip.text) for _, one in clips]
        with self.autocast():
            numbers["text"] = self.reader.to(self.device).cross_entropy(features_BTD, frames_B, texts)
        total = sum(getattr(self.parts, name) * value for name, value in numbers.items())
        return total, numbers  # type: ignore[return-value]

    def _features(
        self, layers: list[Tensor], spans: list[tuple[int, slice]], targets: list[list[Tensor]], trust: list[float]
    ) -> dict[str, Tensor]:
        counts = torch.tensor([len(target[-1]) for target in targets])
        weight_T = torch.tensor(trust).repeat_interleave(counts).to(self.device)
        weight_T = weight_T / weight_T.sum()

        def pair(layer: int) -> tuple[Tensor, Tensor]:
            mine = torch.cat([layers[layer][row, span] for row, span in spans])
            return mine.float(), torch.cat([target[layer] for target in targets]).float()

        def square(mine_TD: Tensor, theirs_TD: Tensor) -> Tensor:
            return ((mine_TD - theirs_TD).square().mean(1) * weight_T).sum() / theirs_TD.square().mean()

        mine_TD, theirs_TD = pair(len(layers) - 1)
        return {
            "cosine": ((1 - F.cosine_similarity(mine_TD, theirs_TD, dim=1)) * weight_T).sum(),
            "square": square(mine_TD, theirs_TD),
            "middle": torch.stack([square(*pair(layer)) for layer in self.parts.taps]).sum(),
        }

    def after_step(self, step: int) -> None:
        if (step + 1) % self.reload_every == 0:
            self.train_streams.reload()

    def validate(self) -> dict[str, float]:
        """The losses on eight streams of voices and sentences kept for it; scores are made by `score_ears`."""
        if self.valid_streams is None:
            return {}
        streams = [self.valid_streams.make(0, row) for row in range(8)]
        with torch.no_grad():
            _, numbers = self.loss([stream for stream in streams if stream.placed], 0, RowNoise(0, 0, range(1)))
        return {name: value.item() for name, value in numbers.items()}

    def export(self, out_dir: Path) -> None:
        save_ears(self.ears, out_dir / FOLDER)


CONFIG = TrainConfig(
    steps=2000, lr=2.5e-4, batch=4, warmup=30, betas=(0.9, 0.98), weight_decay=0.005, ema=0.99, precision="fp32",
    log_every=5, validate_every=100, save_every=25,
)  # fmt: skip
"""fp32, because processors without bfloat16 arithmetic are twelve times slower in it; elsewhere give `precision`."""


def train_ears(
    folder: str | Path,
    out_dir: str | Path,
    start: str | Path | None = None,
    resume: bool = False,
    steps: int | None = None,
    minutes: float | None = None,
    lr: float | None = None,
    batch: int | None = None,
    precision: str | None = None,
    device: str = "auto",
) -> dict[str, float]:
    """Distil ears on the corpus in `folder`; they are written to `out_dir`/ears. Returns the last validation.

    start    folder of ears to begin from; None begins from the teacher's own
    resume   go on in `out_dir`, exactly where the run was if the corpus has not grown
    minutes  save and leave after so many; a later resume goes on

    Raises `ConfigError` without the teacher's package, `DataError` without a corpus, `CheckpointError` for weights
    that do not fit, `TrainingError` for a resume that does not.
    """
    world = join(device)
    if world.size > 1:
        raise ConfigError(f"ears train in one process, expected one, got {world.size}; start it without torchrun")
    config = dataclasses.replace(
        CONFIG,
        steps=CONFIG.steps if steps is None else steps,
        lr=CONFIG.lr if lr is None else lr,
        batch=CONFIG.batch if batch is None else batch,
        precision=CONFIG.precision if precision is None else precision,
    )
    stage = EarsStage(Path(folder), config, None if start is None else Path(start))
    trainer = Trainer(stage, Path(out_dir), world)
    if resume:
        trainer.resume()
    return trainer.run(minutes)
