"""Stage `wording`: a small language model learns what the agent says, from conversations of words alone.

`WordingStage`   every word of the agent is foretold from those before it, of both sides
`train_wording`  the whole run

It learns alone, a thousand times as many words in an hour as the Transformer does, which reads them among sounds and
pictures. The first words of an utterance and few of the others count: the rest of a sentence follows from them.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_streamer.codecs.text import END, SILENCE, TextCodec
from wan_streamer.config import WordingConfig
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.pretrained import Weights, find_checkpoint, grown, load_weights, save_weights
from wan_streamer.speaking.wording import Wording, follows
from wan_streamer.training.loop.alone import AloneOptions, train_alone
from wan_streamer.training.loop.means import means
from wan_streamer.training.loop.stage import Stage, TrainConfig
from wan_streamer.training.wording.texts import LONG_EVERY, Texts, response_places, turn_places

FOLDER = "agent"
"""Where a run writes the agent with its new wording."""
TURNS = 0.3  # weight of whose turn it is
GOES_ON = 3.0  # how much likelier a word that was begun is said to its end, where nothing was learned of it yet
LATER = 0.3  # share of the words behind the first two of an utterance that count
HALF = 0.6931  # -log p of a word that is likelier than all others together
VALID_BATCHES, VALID_ROWS = 6, 32


class WordingStage(Stage):
    """start  folder of the agent whose wording learns. Raises `CheckpointError`."""

    name = "wording"

    def __init__(self, start: Path, config: TrainConfig) -> None:
        torch.manual_seed(config.seed)
        self.config, self.weights = config, with_wording(load_weights(start))
        wording = self.weights.streamer.wording
        assert wording is not None
        self.wording: Wording = wording.float().train().requires_grad_(True)
        if not wording.goes_on.any():
            wording.goes_on.data[within_words(self.weights.text, len(wording.goes_on))] = GOES_ON
        self.models: dict[str, nn.Module] = {"wording": self.wording}
        self.train_texts, self.valid_texts = (
            Texts(split, self.weights.config, self.weights.text) for split in ("train", "valid")
        )

    def is_hidden(self, name: str, p: nn.Parameter) -> bool:
        return p.ndim == 2 and ".layers." in name

    def batch(self, step: int, rows: range) -> Tensor:
        return self.train_texts.batch(self.config.seed, step, rows)

    def loss(self, batch: Tensor, step: int, noise: RowNoise) -> tuple[Tensor, Mapping[str, Tensor]]:
        own_BN, first_BN = response_places(batch)
        chance_BN = torch.rand(own_BN.shape, generator=torch.Generator().manual_seed(step))
        counts_BN = first_BN | (own_BN & (chance_BN < LATER))
        error_N, first_N, turn_N = self._errors(self.move(batch), self.move(counts_BN), self.move(first_BN))
        numbers = {"first": error_N[first_N].mean().detach(), "turn": turn_N.mean().detach()}
        return error_N.mean() + TURNS * turn_N.mean(), numbers

    def _errors(self, said_BN2: Tensor, counts_BN: Tensor, first_BN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-log p of every word that counts, which of them are the first of an utterance, and -log p of whose turn it is
        behind every word of the user's.
        """
        text_BN2 = self.wording.begun(said_BN2)
        asked_BQ, counts_BQ = _gathered(counts_BN)
        word_BQ = said_BN2[..., 1].gather(1, asked_BQ)
        with self.autocast():
            hidden_BND = self.wording(text_BN2)
            asked_BQD = hidden_BND.gather(1, asked_BQ[..., None].expand(-1, -1, hidden_BND.shape[2]))
            known_XD = asked_BQD[counts_BQ]
            own_XV = self.wording.own(known_XD)
            seen_BQN = torch.arange(text_BN2.shape[1], device=asked_BQ.device) <= asked_BQ[..., None]
            token_BN = text_BN2[..., 1]
            chained_BQN = follows(F.pad(token_BN[:, :-1], (1, 0), value=SILENCE), token_BN.gather(1, asked_BQ))
            copied_BNC = self.wording.copied(hidden_BND)
            again_BQN, share_BQ = self.wording.again(asked_BQD, copied_BNC, token_BN, seen_BQN, chained_BQN)
        same_BQN = text_BN2[:, None, :, 1] == word_BQ[..., None]
        again_X = again_BQN.masked_fill(~same_BQN, float("-inf")).logsumexp(-1)[counts_BQ]
        own_X = -F.cross_entropy(own_XV, word_BQ[counts_BQ], reduction="none")
        share_X = share_BQ[counts_BQ]
        likely_X = torch.logaddexp(own_X + F.logsigmoid(-share_X), again_X + F.logsigmoid(share_X))
        after_BN, agent_BN = turn_places(said_BN2)
        turn_X = self.wording.turn(hidden_BND[:, 1:-1][after_BN])
        turn_X = F.binary_cross_entropy_with_logits(turn_X, agent_BN[after_BN].float(), reduction="none")
        return -likely_X, first_BN.gather(1, asked_BQ)[counts_BQ], turn_X

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Of held-out conversations: -log p of all words of the agent, of those that begin an utterance, and of whose
        turn it is.
        """
        numbers = []
        for number in range(VALID_BATCHES):
            step = LONG_EVERY * number + (LONG_EVERY - 1 if number == VALID_BATCHES - 1 else 0)
            said_BN2 = self.move(self.valid_texts.batch(1, step, range(VALID_ROWS), misread=0.0))
            own_BN, first_BN = response_places(said_BN2)
            error_N, first_N, turn_N = self._errors(said_BN2, own_BN, first_BN)
            parts = {"loss": error_N, "first": error_N[first_N], "turn": turn_N, "right": (error_N < HALF).float()}
            numbers.append({name: part.mean().item() for name, part in parts.items()})
        return means(numbers)

    def export(self, out_dir: Path) -> None:
        save_weights(self.weights, out_dir / FOLDER)


def _gathered(counts_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Where something counts, int64 [B, Q], and which of those are not there to fill a row, bool [B, Q]."""
    most = int(counts_BN.sum(1).max())
    asked_BQ = (~counts_BN).long().argsort(dim=1, stable=True)[:, :most]
    return asked_BQ, counts_BN.gather(1, asked_BQ)


def within_words(text: TextCodec, vocabulary: int) -> Tensor:
    """Which tokens are pieces that go on within a word, bool [V]: no begins, and no marks."""
    any_word = text.encode("a")
    behind = len(text.decode(any_word))
    pieces = [text.decode([*any_word, token])[behind:] for token in range(END + 1, vocabulary)]
    return F.pad(torch.tensor([piece[:1].isalpha() for piece in pieces], dtype=torch.bool), (END + 1, 0))


def with_wording(weights: Weights) -> Weights:
    """The agent, with a fresh wording if it has none."""
    if weights.streamer.wording is not None:
        return weights
    return grown(weights, replace(weights.config, wording=WordingConfig()))


CONFIG = TrainConfig(
    steps=3000,
    lr=3e-3,
    muon_lr=1e-2,
    batch=40,
    warmup=60,
    betas=(0.9, 0.98),
    ema=0.99,
    weight_decay=0.03,
    log_every=20,
    validate_every=250,
    save_every=100,
)


def train_wording(start: str | Path, out_dir: str | Path, options: AloneOptions = AloneOptions()) -> dict[str, float]:
    """Train the wording of the agent `start`; the agent is written to `out_dir`/agent. Needs no data.

    Returns the last validation. Raises `ConfigError`, `CheckpointError`, `TrainingError`.
    """
    agent = find_checkpoint(str(start))
    return train_alone(lambda config: WordingStage(agent, config), CONFIG, out_dir, options)
