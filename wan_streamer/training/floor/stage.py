"""Stage `floor`: a small recurrent network learns from encoded conversations whose turn it is.

`FloorStage`   in every slot, from all that is known before: nothing, an end, words, or the words of a listener
`train_floor`  the whole run
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_streamer.config import FloorConfig
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.pretrained import Weights, find_checkpoint, grown, load_weights, save_weights
from wan_streamer.speaking.floor import BRIEF, STOP, WORDS, Floor, talking
from wan_streamer.training.floor.stretches import IGNORED, Stretch, Stretches, stacked
from wan_streamer.training.loop.alone import AloneOptions, train_alone
from wan_streamer.training.loop.means import means
from wan_streamer.training.loop.stage import Stage, TrainConfig

FOLDER = "agent"
"""Where a run writes the agent with its new floor."""
UNITS = 160  # of a stretch
DROP = 0.3
TOLD = 32  # numbers of a wording, where there is one, in a fresh floor
LOOKED_AT = 24  # held-out conversations of each folder


class FloorStage(Stage):
    """folders  encoded conversations, with `train` and `valid`;   shown  likewise, in which nothing is heard

    start  folder of the agent whose floor learns. Raises `CheckpointError`, and `DataError` for conversations that
    other ears heard or other eyes saw.
    """

    name = "floor"

    def __init__(self, folders: Sequence[Path], shown: Sequence[Path], start: Path, config: TrainConfig) -> None:
        torch.manual_seed(config.seed)
        self.config, self.weights = config, with_floor(load_weights(start))
        streamer = self.weights.streamer
        assert streamer.floor is not None
        self.floor: Floor = streamer.floor.float().train().requires_grad_(True)
        self.models: dict[str, nn.Module] = {"floor": self.floor}
        for beside in (streamer.hearing, streamer.wording):
            if beside is not None:
                beside.float().eval().requires_grad_(False)

        def stretches(folder: Path, split: str, shown: bool) -> Stretches:
            return Stretches(folder / split, streamer, self.weights.text, shown)

        all_folders = [(folder, False) for folder in folders] + [(folder, True) for folder in shown]
        self.train_parts = [stretches(folder, "train", shown) for folder, shown in all_folders]
        self.valid_parts = [stretches(folder, "valid", shown) for folder, shown in all_folders]
        units = np.array([part.units for part in self.train_parts])
        self.shares = units / units.sum()

    def batch(self, step: int, rows: range) -> Stretch:
        rng = np.random.default_rng((self.config.seed, step))
        part = self.train_parts[int(rng.choice(len(self.shares), p=self.shares))]
        return part.batch(np.random.default_rng((self.config.seed, step, rows.start)), len(rows), UNITS)

    def loss(self, batch: Stretch, step: int, noise: RowNoise) -> tuple[Tensor, Mapping[str, Tensor]]:
        with torch.random.fork_rng():
            torch.manual_seed((self.config.seed << 32) + step)  # what is left out
            error_BKS, brief, before_BKS = self._errors(Stretch(*map(self.move, batch)), DROP)
        kind_BKS = self.move(batch.kind_BKS)
        counts = kind_BKS != IGNORED
        quiet = counts & ~talking(before_BKS)
        numbers = {"quiet": error_BKS[quiet].mean().detach(), "talking": error_BKS[counts & ~quiet].mean().detach()}
        units = counts[..., 0].sum().clamp(min=1)
        return (error_BKS.sum() + brief) / units, numbers

    def _errors(self, batch: Stretch, drop: float) -> tuple[Tensor, Tensor, Tensor]:
        """-log p of what every slot holds [B, K, S], that of the words with which a listener begins, summed, and the
        agent's token before each slot.
        """
        said_BKS = batch.slot_BKS
        first_BK1 = batch.before_BKSL[..., -1:, 0]
        before_BKS = torch.cat([first_BK1, said_BKS[..., :-1]], dim=-1)
        microphone_BK, camera_BK, typed_BK = batch.there_BK3.unbind(-1)
        sensed, past = (batch.heard, microphone_BK, batch.seen, camera_BK), self.floor.begin(len(said_BKS))
        odds, _ = self.floor(*sensed, typed_BK, batch.before_BKSL, past, drop, batch.told_BKD)
        told = torch.stack([odds.of(slot, before_BKS[..., slot]) for slot in range(said_BKS.shape[2])], dim=2)
        error_X = F.nll_loss(told.flatten(0, -2), batch.kind_BKS.flatten(), ignore_index=IGNORED, reduction="none")
        error_BKS = error_X.view_as(batch.kind_BKS)
        begins = (batch.kind_BKS == BRIEF) & ~talking(before_BKS)
        return error_BKS, -odds.brief[said_BKS[begins]].sum(), before_BKS

    def validate(self) -> dict[str, float]:
        """Of held-out conversations: -log p of a slot while the agent is quiet and while it talks, of words that begin,
        of a listener's, of ends, and of waiting.
        """
        return means([numbers for part in self.valid_parts for numbers in self._validate(part)])

    @torch.no_grad()
    def _validate(self, part: Stretches) -> list[dict[str, float]]:
        found = []
        for number in range(min(LOOKED_AT, len(part.store.paths))):
            row = stacked([part.row(number, 0, part.store.labels[number]["units"])])
            error_BKS, _, before_BKS = self._errors(Stretch(*map(self.move, row)), 0.0)
            found.append((error_BKS, self.move(row.kind_BKS), talking(before_BKS)))
        error, kind, talks = (torch.cat([x.flatten() for x in parts]) for parts in zip(*found, strict=True))
        of = {
            "quiet": ~talks,
            "talking": talks,
            "begin": ~talks & (kind == WORDS),
            "listen": ~talks & (kind == BRIEF),
            "end": talks & (kind == STOP),
            "wait": ~talks & (kind == 0),
        }
        means = {name: error[which].mean().item() for name, which in of.items() if which.any()}
        return [{"loss": error.mean().item(), **means}]

    def export(self, out_dir: Path) -> None:
        save_weights(self.weights, out_dir / FOLDER)


def with_floor(weights: Weights) -> Weights:
    """The agent, with a fresh floor if it has none, or one that its wording tells nothing."""
    told = TOLD if weights.streamer.wording is not None else 0
    floor = weights.config.floor or FloorConfig()
    if weights.streamer.floor is not None and bool(floor.told_dim) == bool(told):
        return weights
    return grown(weights, replace(weights.config, floor=replace(floor, told_dim=told)))


CONFIG = TrainConfig(
    steps=2000,
    lr=2e-3,
    batch=32,
    warmup=50,
    betas=(0.9, 0.98),
    ema=0.995,
    weight_decay=0.05,
    log_every=20,
    validate_every=250,
    save_every=100,
)


def train_floor(
    folders: Sequence[Path],
    start: str | Path,
    out_dir: str | Path,
    options: AloneOptions = AloneOptions(),
    shown: Sequence[Path] = (),
) -> dict[str, float]:
    """Train the floor of the agent `start` on encoded conversations; the agent is written to `out_dir`/agent.

    shown  folders of conversations in which nothing is heard

    Returns the last validation. Raises `ConfigError`, `DataError`, `CheckpointError`, `TrainingError`.
    """
    agent = find_checkpoint(str(start))
    return train_alone(lambda config: FloorStage(folders, shown, agent, config), CONFIG, out_dir, options)
