"""Stage `reader`: a recogniser's decoder learns to follow speech as it arrives, in the tokens of an agent.

`ReaderStage`   in every unit, from what is heard up to it and written before: which words are due
`train_reader`  the whole run

The decoder has learned from whole clips, with five times as many tokens. In a call it is asked in every unit, hears
nothing beyond it, and spells most of the longer words in pieces it has never written. What is due are the words that
stand in the unit of the transcript (`data/lanes.py`), then END. In every second step it goes on from its own mistakes.
Texts that are over are read once more as a whole (`whole.py`). Speech is that of a corpus and, in half of the steps, of
users in encoded conversations.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_streamer.codecs.text import END
from wan_streamer.errors import CheckpointError
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.pretrained import find_checkpoint, load_weights, save_weights
from wan_streamer.perception.ears import turns
from wan_streamer.perception.reading import Pair, Reader, read_so_far
from wan_streamer.perception.senses import senses_of
from wan_streamer.training.loop.alone import AloneOptions, train_alone
from wan_streamer.training.loop.means import means
from wan_streamer.training.loop.stage import Stage, TrainConfig
from wan_streamer.training.reader.streams import IGNORED, Due, DueStreams, DueTalks, misread
from wan_streamer.training.reader.whole import whole_texts
from wan_streamer.training.stages.adopt import original_reader

FOLDER = "agent"
"""Where a run writes the agent with its new reader."""
ASKED = 36  # units of a stream, those in which words are due first
TEXTS = 4  # of a stream, that are read as a whole
MISREAD = 0.6  # of the words that are found as others, in every second step
DUE = 1.0  # how much it counts in whether the agent writes a word, from now on
AGAIN = 64  # units of sound from which it reads a turn as a whole, from now on
WAIT = 0.5  # weight of END: most units have no word
VALID_BATCHES, VALID_ROWS = 4, 4


class ReaderStage(Stage):
    """folder  the corpus;  start  folder of the agent whose reader learns;  talks  encoded conversations, if there are
    original  weights of a reader that reads whole texts well, which are learned from it, too: half-way to it learning
              begins, unless the agent's reads them already

    Raises `CheckpointError` for an agent without one, `DataError` for a corpus without training or validation clips
    and for conversations that other ears heard.
    """

    name = "reader"

    def __init__(
        self,
        folder: Path,
        start: Path,
        config: TrainConfig,
        talks: Sequence[Path] = (),
        original: dict[str, Tensor] | None = None,
    ) -> None:
        self.config, self.weights = config, load_weights(start)
        streamer = self.weights.streamer
        if streamer.reading is None:
            raise CheckpointError(f"{start}: expected an agent with a reader, got {streamer.config.name!r} without one")
        self.ears = streamer.hearing.float().eval().requires_grad_(False)
        self.reader: Reader = streamer.reading.float().train().requires_grad_(True)
        self.original: Reader | None = None
        if original is not None:
            self.original = copy.deepcopy(self.reader).eval().requires_grad_(False)
            self.original.load_state_dict(original)
            if not streamer.config.perception.reading_again:
                half_way(self.reader, self.original)
        self.models: dict[str, nn.Module] = {"reader": self.reader}
        self.perception = streamer.config.perception
        ears = senses_of(self.perception, streamer.hearing, streamer.seeing)["ears"] if talks else ""
        self.train_streams, self.valid_streams = (
            DueStreams(folder, split, streamer.config, self.weights.text, config.seed) for split in ("train", "valid")
        )
        self.train_talks, self.valid_talks = (
            [DueTalks(Path(talk) / split, ears, streamer.config, self.weights.text, config.seed) for talk in talks]
            for split in ("train", "valid")
        )

    def batch(self, step: int, rows: range) -> Due:
        # In pairs of steps: in every second one it goes on from its own mistakes.
        if self.train_talks and step // 2 % 2:
            return self.train_talks[step // 4 % len(self.train_talks)].batch(step, rows)
        return self.train_streams.batch(step, rows)

    def loss(self, batch: Due, step: int, noise: RowNoise) -> tuple[Tensor, Mapping[str, Tensor]]:
        heard_BX, written_BKS, due_BKG = (self.move(part) for part in batch)
        chance_BK = noise.uniform(due_BKG.shape[:2])
        asked_BQ = ((batch.due_BKG[..., 0] > END) + chance_BK).topk(min(ASKED, due_BKG.shape[1]), 1).indices
        asked_BQ = self.move(asked_BQ.sort(1).values)
        with self.autocast():
            if heard_BX.ndim == 2:
                with torch.no_grad():
                    heard_BX, _ = self.ears.to(self.device)(heard_BX)
            heard_BTD = heard_BX.view(len(heard_BX), -1, heard_BX.shape[-1])
            sound = self.reader.sound(heard_BTD)
        if step % 2:
            with torch.no_grad():
                found_BQG = self._scores(sound, written_BKS, due_BKG, asked_BQ).argmax(-1)
            found_BKG = due_BKG.scatter(1, asked_BQ[..., None].expand_as(found_BQG), found_BQG)
            written_BKS = misread(written_BKS, due_BKG, found_BKG, MISREAD, torch.Generator().manual_seed(step))
        whole = self._whole(heard_BTD, sound, batch.written_BKS, torch.Generator().manual_seed(step))
        scores_BQGV = self._scores(sound, written_BKS, due_BKG, asked_BQ)
        due_BQG = due_BKG.gather(1, asked_BQ[..., None].expand(-1, -1, due_BKG.shape[2]))
        error_BQG = F.cross_entropy(scores_BQGV.movedim(-1, 1), due_BQG, ignore_index=IGNORED, reduction="none")
        word_BQG, end_BQG, right_BQG = due_BQG > END, due_BQG == END, scores_BQGV.argmax(-1) == due_BQG
        weight_BQG = word_BQG + WAIT * end_BQG
        numbers = {
            "words_right": (right_BQG & word_BQG).sum() / word_BQG.sum().clamp(min=1),
            "waits_right": (right_BQG & end_BQG).sum() / end_BQG.sum().clamp(min=1),
            "whole": whole.detach(),
        }
        return (error_BQG * weight_BQG).sum() / weight_BQG.sum() + whole, numbers

    def _whole(self, heard_BTD: Tensor, sound: list[Pair], written_BKS: Tensor, rng: torch.Generator) -> Tensor:
        """Cross-entropy of whole texts, of which all is heard; half of it, and how far it is from who knows them.

        Who knows them ends where the first of several might end, so of those only the texts are learned.
        """
        text_BEN, near_BEK, joined_BE = (self.move(part) for part in whole_texts(written_BKS, TEXTS, rng))
        text_RN, frames = text_BEN.flatten(0, 1), sound[0][0].shape[2] // near_BEK.shape[2]
        heard_B1TF = near_BEK.repeat_interleave(frames, 2).repeat_interleave(text_RN.shape[1] - 1, 1)[:, None]

        def scored(reader: Reader, sound: list[Pair]) -> Tensor:
            with self.autocast():
                turn_NR = turns(text_RN.shape[1] - 1, reader.config, device=text_RN.device)
                hidden_RND, _ = reader.read(text_RN[:, :-1].clamp(min=0), turn_NR, sound, heard_B1TF)
            return reader.scores(hidden_RND).flatten(0, 1)[text_RN[:, 1:].flatten() != IGNORED][:, END:]

        next_X = text_RN[:, 1:][text_RN[:, 1:] != IGNORED] - END
        score_XV = scored(self.reader, sound)
        error_X, count = F.cross_entropy(score_XV, next_X, reduction="none"), max(1, len(next_X))
        if self.original is None:
            return error_X.sum() / count
        alone_X = ~joined_BE.flatten()[:, None].expand_as(text_RN[:, 1:])[text_RN[:, 1:] != IGNORED]
        with torch.no_grad(), self.autocast():
            original = self.original.to(self.device)
            known_XV = scored(original, original.sound(heard_BTD))
        away_XV = F.kl_div(score_XV.log_softmax(-1), known_XV.log_softmax(-1), reduction="none", log_target=True)
        return torch.where(alone_X, error_X / 2 + away_XV.sum(-1), error_X).sum() / count

    def _scores(self, sound: list[Pair], written_BKS: Tensor, due_BKG: Tensor, asked_BQ: Tensor) -> Tensor:
        """Logits [B, Q, G, V] of what is due in the units `asked_BQ`, each after those before it."""
        K, G = due_BKG.shape[1:]
        unit_K = torch.arange(K, device=due_BKG.device)
        frames = sound[0][0].shape[2] // K
        parts = read_so_far(written_BKS, unit_K, self.perception.reading_units, frames)
        text_BQN, length_BQ, near_BQF, due_BQG = (_of(part, asked_BQ) for part in (*parts, due_BKG))
        text_BQN = text_BQN[..., : int(length_BQ.max())]
        place_RG = length_BQ.flatten()[:, None] - 1 + torch.arange(G, device=due_BKG.device)
        known_RG = due_BQG.flatten(0, 1)[:, : G - 1].clamp(min=0)
        tokens_RN = F.pad(text_BQN.flatten(0, 1), (0, G - 1)).scatter(1, place_RG[:, 1:], known_RG)
        N = tokens_RN.shape[1]
        with self.autocast():
            turn_NR = turns(N, self.reader.config, device=tokens_RN.device)
            hidden_RND, _ = self.reader.read(tokens_RN, turn_NR, sound, near_BQF.repeat_interleave(N, 1)[:, None])
            hidden_RGD = hidden_RND.gather(1, place_RG[..., None].expand(-1, -1, hidden_RND.shape[2]))
        scores_RGV = self.reader.scores(hidden_RGD)
        scores_RGV = scores_RGV.masked_fill(torch.arange(scores_RGV.shape[2], device=scores_RGV.device) < END, -1e4)
        return scores_RGV.unflatten(0, asked_BQ.shape)

    def validate(self) -> dict[str, float]:
        """Of held-out voices and sentences: the loss, and what is right of the words and of the units without one.

        Of conversations, those are called `talks/...`.
        """
        talks = [self._validate(made) for made in self.valid_talks]
        return self._validate(self.valid_streams) | {f"talks/{key}": value for key, value in means(talks).items()}

    @torch.no_grad()
    def _validate(self, made: DueStreams | DueTalks) -> dict[str, float]:
        rows, numbers = range(VALID_ROWS), []
        for number in range(VALID_BATCHES):
            loss, parts = self.loss(made.batch(number, rows), 0, RowNoise(0, number, rows))
            numbers.append({"loss": loss.item(), **{name: value.item() for name, value in parts.items()}})
        return means(numbers)

    def export(self, out_dir: Path) -> None:
        config = replace(self.weights.config, perception=replace(self.perception, reading_due=DUE, reading_again=AGAIN))
        save_weights(replace(self.weights, config=config), out_dir / FOLDER)


@torch.no_grad()
def half_way(reader: Reader, other: Reader) -> None:
    """Weights between two, one of which began as the other, know what both know (Wortsman et al. 2022, section 4)."""
    for mine, its in zip(reader.parameters(), other.parameters(), strict=True):
        mine.lerp_(its, 0.5)


def _of(x_BKX: Tensor, unit_BQ: Tensor) -> Tensor:
    """The entries of units Q: [B, Q, ...]."""
    index = unit_BQ if x_BKX.ndim == 2 else unit_BQ[..., None].expand(-1, -1, x_BKX.shape[2])
    return x_BKX.gather(1, index)


CONFIG = TrainConfig(
    steps=2000,
    lr=8e-4,
    batch=4,
    warmup=50,
    betas=(0.9, 0.98),
    ema=0.99,
    log_every=10,
    validate_every=200,
    save_every=50,
)


def train_reader(
    folder: str | Path,
    start: str | Path,
    out_dir: str | Path,
    options: AloneOptions = AloneOptions(),
    talks: Sequence[Path] = (),
    original: bool = False,
) -> dict[str, float]:
    """Train the reader of the agent `start` on the corpus in `folder`; the agent is written to `out_dir`/agent.

    talks  folders of conversations encoded with the agent's ears, of which half of the steps are made
    original  begin half-way to the decoder as it was made, and learn whole texts from it, too

    Returns the last validation. Raises `ConfigError`, `DataError`, `CheckpointError`, `TrainingError`.
    """
    agent = find_checkpoint(str(start))

    def stage(config: TrainConfig) -> ReaderStage:
        weights = load_weights(agent) if original else None
        known = None if weights is None else original_reader(weights.text, weights.config.text.vocab_size)
        return ReaderStage(Path(folder), agent, config, talks, known)

    return train_alone(stage, CONFIG, out_dir, options)
