"""Stage `chat`: a language model learns to answer as the agent does, in a short sentence that can be said.

`ChatStage`   every token of an answer is foretold; the model stays, what is beside its upper layers learns
`train_chat`  the whole run

It knows much, and speaks like a help page. A few hundred exchanges change how it speaks, not what it knows.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.language import PlainText, load_language_model
from wan_streamer.speaking.adapter import adapt, begin_at, fingerprint, save_adapter
from wan_streamer.speaking.chat import load_persona
from wan_streamer.speaking.turns import Marks
from wan_streamer.training.chat.exchanges import IGNORED, Conversations, Row, padded
from wan_streamer.training.loop.alone import AloneOptions, train_alone
from wan_streamer.training.loop.stage import Stage, TrainConfig

FILE = "adapter.safetensors"
"""What a run writes."""
RANK = 8
UPPER = 0.5  # share of the layers beside which something learns
VALIDATED, SAMPLED, LONGEST = 40, 12, 40  # held-out exchanges of a kind; of those, answers to read; most tokens of one


class ChatStage(Stage):
    """source  chat model (`load_language_model`);   talk  folder of texts, or None;   start  an adapter to go on from

    Raises `CheckpointError`, `ConfigError` for a model that does not chat, and `DataError`.
    """

    name = "chat"

    def __init__(self, source: str, talk: Path | None, start: Path | None, config: TrainConfig) -> None:
        torch.manual_seed(config.seed)
        model = load_language_model(source)
        self.config, self.base, self.text = config, fingerprint(model.tensors), model.text
        self.marks, self.system = Marks(model.text, source), load_persona().system
        self.data = Conversations(self.marks, self.system, talk)
        self.plain = PlainText(model, model.tensors).eval()
        layers = len(self.plain.backbone.layers)
        upper = [f"backbone.layers.{number}" for number in range(layers - round(UPPER * layers), layers)]
        self.added = adapt(self.plain, upper, RANK)
        if start is not None:
            begin_at(self.added, self.base, start)
        self.models: dict[str, nn.Module] = {"adapter": nn.ModuleList(self.added.values())}

    def batch(self, step: int, rows: range) -> Row:
        return padded([self.data.row(np.random.default_rng((self.config.seed, step, row))) for row in rows])

    def loss(self, batch: Row, step: int, noise: RowNoise) -> tuple[Tensor, Mapping[str, Tensor]]:
        error_BN, weight_BN = self._errors(batch), self.move(batch.weight_BN)
        return (error_BN * weight_BN).sum() / weight_BN.sum(), {}

    def _errors(self, batch: Row) -> Tensor:
        """-log p of every token that is foretold [B, N], 0 elsewhere."""
        target_BN = self.move(batch.target_BN)
        foretold_BN = target_BN != IGNORED
        with self.autocast():
            hidden_BND, _ = self.plain.to(self.device)(self.move(batch.token_BN))
            logits_XV = self.plain.head(hidden_BND[foretold_BN]).float()
        error_BN = torch.zeros(target_BN.shape, device=self.device)
        return error_BN.masked_scatter(
            foretold_BN, F.cross_entropy(logits_XV, target_BN[foretold_BN], reduction="none")
        )

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """-log p of a token of held-out answers, of every kind."""
        found = {}
        for kind in self.data.valid:
            batch = self.data.held_out(kind, VALIDATED)
            found[f"error/{kind}"] = (self._errors(batch).sum() / (batch.target_BN != IGNORED).sum()).item()
        return found

    @torch.inference_mode()
    def write_samples(self, stem: Path) -> dict[str, float]:
        """What it answers at the end of talks that are held out."""
        talks = [said for kind in ("own", "world") for said in self.data.valid[kind][:SAMPLED]]
        lines = [f"{said[-1].asked}\t{said[-1].seen}\t{self._answer(self.data.asked(said))}\n" for said in talks]
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_suffix(".tsv").write_text("".join(lines), encoding="utf-8")
        return {}

    def _answer(self, new: list[int]) -> str:
        said: list[int] = []
        past = None
        while len(said) < LONGEST:
            hidden_BND, past = self.plain(torch.tensor([new], device=self.device), past)
            token = int(self.plain.head(hidden_BND[0, -1]).argmax())
            if token == self.marks.stop:
                break
            said, new = [*said, token], [token]
        return self.text.decode(said)

    def export(self, out_dir: Path) -> None:
        save_adapter(self.added, self.base, out_dir / FILE)


CONFIG = TrainConfig(
    steps=500,
    lr=8e-4,
    batch=6,
    warmup=20,
    betas=(0.9, 0.98),
    ema=0.98,
    validate_every=100,
    save_every=50,
)


def train_chat(
    source: str,
    out_dir: str | Path,
    options: AloneOptions = AloneOptions(),
    talk: Path | None = None,
    start: Path | None = None,
) -> dict[str, float]:
    """Train an adapter of the chat model `source`, written to `out_dir`.

    talk   folder of texts with conversations of people; without, it learns from the agent's own exchanges alone
    start  an adapter to go on from

    Returns the last validation. Raises `ConfigError`, `DataError`, `CheckpointError`, `TrainingError`.
    """
    return train_alone(lambda config: ChatStage(source, talk, start, config), CONFIG, out_dir, options)
