"""Stage `sight`: a read-out of frozen eyes learns to name what is held up, from the pictures that eyes are taught with.

`SightStage`   cross-entropy of which thing it is, or none, and of its colour
`train_sight`  the whole run
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_streamer.codecs.text import TextCodec
from wan_streamer.config import SightConfig
from wan_streamer.errors import CheckpointError
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.pretrained import Weights, find_checkpoint, grown, load_weights, save_weights
from wan_streamer.perception.sight import Sight
from wan_streamer.perception.video import VideoPerceptionState, unit_range
from wan_streamer.simulation.conversation.repertoire import NUMBERS
from wan_streamer.training.eyes.data import KINDS, ClipConfig, ClipMaker
from wan_streamer.training.eyes.labels import CLASSES, NONE, UNKNOWN
from wan_streamer.training.loop.alone import AloneOptions, train_alone
from wan_streamer.training.loop.stage import Stage, TrainConfig

FOLDER = "agent"
"""Where a run writes the agent with its new sight."""
COLOUR, THING = (list(CLASSES).index(name) for name in ("colour", "thing"))
HELD = 0.75  # share of the clips in which something is held up
VALIDATED = 96  # held-out clips
DROP = 0.1


class Seen(NamedTuple):
    """frames_BTHWC uint8, one before those of the unit;   names_B2  int64: colour and thing, `UNKNOWN` where none"""

    frames_BTHWC: Tensor
    names_B2: Tensor


class SightStage(Stage):
    """start  folder of the agent whose sight learns. Raises `CheckpointError` for one without eyes or a wording."""

    name = "sight"

    def __init__(self, start: Path, config: TrainConfig) -> None:
        torch.manual_seed(config.seed)
        self.config, self.weights = config, with_sight(load_weights(start), start)
        streamer = self.weights.streamer
        assert streamer.sight is not None
        self.eyes = streamer.seeing.float().eval().requires_grad_(False)
        self.sight: Sight = streamer.sight.float().train().requires_grad_(True)
        self.models: dict[str, nn.Module] = {"sight": self.sight}
        others = {kind: share for kind, share in KINDS.items() if kind != "show"}
        clips = ClipConfig(kinds={"show": HELD / (1 - HELD) * sum(others.values()), **others})
        perception = streamer.config.perception
        self.train_clips = ClipMaker(perception, "train", clips, config.seed)
        self.valid_clips = ClipMaker(perception, "valid", clips, config.seed + 1)

    def batch(self, step: int, rows: range) -> Seen:
        return self._clips(self.train_clips, step, rows)

    def _clips(self, maker: ClipMaker, step: int, rows: range) -> Seen:
        clips = [maker.make(step, row) for row in rows]
        names = torch.stack([clip.classes_KA[0, [COLOUR, THING]] for clip in clips])
        return Seen(torch.stack([clip.frames_THWC for clip in clips]), names)

    def loss(self, batch: Seen, step: int, noise: RowNoise) -> tuple[Tensor, Mapping[str, Tensor]]:
        names_B2 = self.move(batch.names_B2)
        feature_BND = self._features(batch)
        kept = self.move(noise.uniform(tuple(feature_BND.shape)) >= DROP)
        colour, thing = self.sight(feature_BND * kept / (1 - DROP)).split(self.sight.sizes, dim=-1)
        numbers = {
            name: F.nll_loss(told, names_B2[:, i], ignore_index=UNKNOWN, reduction="sum") / len(names_B2)
            for i, (name, told) in enumerate((("colour", colour), ("thing", thing)))
        }
        return numbers["colour"] + numbers["thing"], numbers

    @torch.no_grad()
    def _features(self, batch: Seen) -> Tensor:
        """Tokens of the unit [B, N, D]."""
        frames_BTHWC = self.move(batch.frames_BTHWC)
        with self.autocast():
            eyes = self.eyes.to(self.device)
            feature_BTND, _ = eyes(frames_BTHWC[:, 1:], VideoPerceptionState(unit_range(frames_BTHWC[:, 0])))
        return feature_BTND.flatten(1, 2).float()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Of held-out people: the share of colours, of things (or none) and of cards with a number that are right."""
        batch = self._clips(self.valid_clips, 0, range(VALIDATED))
        told = self.sight(self._features(batch)).split(self.sight.sizes, dim=-1)
        names = batch.names_B2.unbind(1)
        right = [(x.argmax(-1).cpu() == truth)[truth != UNKNOWN] for x, truth in zip(told, names, strict=True)]
        thing = names[1][names[1] != UNKNOWN]
        number = torch.tensor([CLASSES["thing"][i].isdigit() for i in thing.tolist()])
        parts = {"colour": right[0], "thing": right[1], "number": right[1][number], "held": right[1][thing > 0]}
        return {f"right/{name}": part.float().mean().item() for name, part in parts.items()}

    def export(self, out_dir: Path) -> None:
        save_weights(self.weights, out_dir / FOLDER)


def names_of(text: TextCodec) -> SightConfig:
    """A sight that names all that is held up in the simulator, with the tokens of `text`."""

    def first(name: str) -> int:
        return text.encode(f"It is {name}")[len(text.encode("It is"))]

    colours = tuple(CLASSES["colour"])
    things = tuple(NUMBERS[int(name)] if name.isdigit() else name for name in CLASSES["thing"] if name != NONE)
    return SightConfig(tuple(map(first, colours)), tuple(map(first, things)), (*colours, *things))


def with_sight(weights: Weights, start: Path) -> Weights:
    """The agent, with a fresh sight if it has none."""
    config = weights.config
    if config.wording is None or config.perception.seeing != "eyes":
        raise CheckpointError(
            f"{start}: expected an agent with eyes and a wording, got {config.name!r}; train those first"
        )
    if weights.streamer.sight is not None:
        return weights
    return grown(weights, replace(config, sight=names_of(weights.text)))


CONFIG = TrainConfig(
    steps=1500,
    lr=2e-3,
    batch=32,
    warmup=30,
    betas=(0.9, 0.98),
    ema=0.99,
    weight_decay=0.02,
    log_every=20,
    validate_every=250,
    save_every=50,
)


def train_sight(start: str | Path, out_dir: str | Path, options: AloneOptions = AloneOptions()) -> dict[str, float]:
    """Train the sight of the agent `start`; the agent is written to `out_dir`/agent. Needs no data.

    Returns the last validation. Raises `ConfigError`, `CheckpointError`, `TrainingError`.
    """
    agent = find_checkpoint(str(start))
    return train_alone(lambda config: SightStage(agent, config), CONFIG, out_dir, options)
