"""Moonshine's decoder, frozen, reads the ears' features. It makes the losses on text and the scores.

`Decoder`      cross-entropy of texts, greedy transcripts, and where in the sound it looks
`padded_texts` texts as one tensor
`load_reader`  with the original weights
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_streamer.config import EarsConfig
from wan_streamer.perception.ears import turns
from wan_streamer.perception.reading import Pair, Reader, ReaderLayer
from wan_streamer.training.ears.moonshine import BEGIN, END, decoder_weights

IGNORED = -100
TOKENS_PER_FRAME = 0.16  # 7 a second; a transcript that runs longer has lost its way
EXTRA_TOKENS = 6


class Decoder(Reader):
    """The reader with its original vocabulary: text from features [B, T, D] of which the first `frames_B` are real."""

    def _sound(self, features_BTD: Tensor, frames_B: Tensor) -> tuple[list[Pair], Tensor]:
        mask_BT = torch.arange(features_BTD.shape[1], device=features_BTD.device)[None] < frames_B[:, None]
        return self.sound(features_BTD), mask_BT[:, None, None]

    def _read(
        self, tokens_BN: Tensor, sound: list[Pair], mask_B11T: Tensor, past: list[Pair] | None
    ) -> tuple[Tensor, list[Pair]]:
        first = past[0][0].shape[2] if past else 0
        turn_NR = turns(tokens_BN.shape[1], self.config, first, tokens_BN.device)
        return self.read(tokens_BN, turn_NR, sound, mask_B11T, past)

    def cross_entropy(self, features_BTD: Tensor, frames_B: Tensor, tokens_BN: Tensor) -> Tensor:
        """Mean over all tokens and the end marks, in nats. `tokens_BN` is made by `padded_texts`."""
        targets_BN = tokens_BN[:, 1:]
        real_BN = targets_BN != IGNORED
        sound, mask_B11T = self._sound(features_BTD, frames_B)
        hidden_BND, _ = self._read(tokens_BN[:, :-1].clamp(min=0), sound, mask_B11T, None)
        logits_BNV = self.scores(hidden_BND)
        error = F.cross_entropy(logits_BNV.flatten(0, 1), targets_BN.flatten(), ignore_index=IGNORED, reduction="sum")
        return error / real_BN.sum()

    @torch.no_grad()
    def transcribe(self, features_BTD: Tensor, frames_B: Tensor) -> list[list[int]]:
        """Greedy transcripts as tokens, without marks."""
        sound, mask_B11T = self._sound(features_BTD, frames_B)
        limits = [int(frames * TOKENS_PER_FRAME) + EXTRA_TOKENS for frames in frames_B.tolist()]
        tokens_BN = torch.full((len(limits), 1), BEGIN, device=features_BTD.device)
        texts: list[list[int]] = [[] for _ in limits]
        open_rows, past = set(range(len(limits))), None
        while open_rows:
            hidden_BND, past = self._read(tokens_BN, sound, mask_B11T, past)
            tokens_BN = self.scores(hidden_BND[:, -1:]).argmax(-1)
            for row in sorted(open_rows):
                token = int(tokens_BN[row, 0])
                if token == END or len(texts[row]) >= limits[row]:
                    open_rows.discard(row)
                else:
                    texts[row].append(token)
        return texts

    @torch.no_grad()
    def attention(self, features_TD: Tensor, tokens: list[int]) -> Tensor:
        """Where in the sound it looks for each of N tokens: [N, T], a mean over all layers and heads."""
        sound, mask_B11T = self._sound(features_TD[None], torch.tensor([len(features_TD)]))
        others, queries = [cast(ReaderLayer, layer).other for layer in self.layers], []
        hooks = [o.query.register_forward_hook(lambda _, __, made: queries.append(made)) for o in others]
        self._read(torch.tensor([[BEGIN, *tokens[:-1]]]), sound, mask_B11T, None)
        for hook in hooks:
            hook.remove()
        shares = [
            torch.softmax(other.split(query_BND) @ k.transpose(2, 3) / other.head**0.5, dim=-1)[0].mean(0)
            for other, query_BND, (k, _) in zip(others, queries, sound, strict=True)
        ]
        return torch.stack(shares).mean(0)


def padded_texts(texts: list[list[int]]) -> Tensor:
    """Texts as int64 [B, N] with their marks, `IGNORED` behind the shorter ones."""
    rows = [torch.tensor([BEGIN, *text, END]) for text in texts]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)


def load_reader() -> Decoder:
    """Frozen, with the original weights. Raises `ConfigError` without the package."""
    weights = decoder_weights()
    reader = Decoder(EarsConfig(), len(weights["words.weight"]))
    reader.load_state_dict(weights)
    return reader.eval().requires_grad_(False)
