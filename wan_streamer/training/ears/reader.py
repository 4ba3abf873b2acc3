"""Readers of the ears' features: Moonshine's decoder, frozen. It makes the losses on text and the scores.

`Reader`       cross-entropy of texts, greedy transcripts, and where in the sound it looks
`padded_texts` texts as one tensor
`load_reader`  with the original weights
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_streamer.config import EarsConfig
from wan_streamer.perception.ears import rotate, turns
from wan_streamer.training.ears.moonshine import BEGIN, END, decoder_weights

IGNORED = -100
TOKENS_PER_FRAME = 0.16  # 7 a second; a transcript that runs longer has lost its way
EXTRA_TOKENS = 6

Pair = tuple[Tensor, Tensor]


class Attention(nn.Module):
    def __init__(self, config: EarsConfig) -> None:
        super().__init__()
        D = config.width
        self.heads, self.head = config.heads, config.head
        self.query, self.key, self.value, self.out = (nn.Linear(D, D, bias=False) for _ in range(4))

    def split(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(2, (self.heads, self.head)).transpose(1, 2)

    def pair(self, x_BTD: Tensor) -> Pair:
        """Keys and values of what is looked at, [B, heads, T, head]."""
        return self.split(self.key(x_BTD)), self.split(self.value(x_BTD))

    def merge(self, x_BHTD: Tensor) -> Tensor:
        return self.out(x_BHTD.transpose(1, 2).flatten(2))


class ReaderLayer(nn.Module):
    """Attention to the text so far, then to the sound, then a gated feed-forward part."""

    def __init__(self, config: EarsConfig) -> None:
        super().__init__()
        D = config.width
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(D, bias=False) for _ in range(3))
        self.own, self.other = Attention(config), Attention(config)
        self.up, self.down = nn.Linear(D, 2 * config.feed * D), nn.Linear(config.feed * D, D)

    def forward(
        self, x_BND: Tensor, turn_NR: Tensor, sound: Pair, mask_B11T: Tensor, past: Pair | None
    ) -> tuple[Tensor, Pair]:
        normal = self.norm1(x_BND)
        k, v = self.own.pair(normal)
        q, k = rotate(self.own.split(self.own.query(normal)), turn_NR), rotate(k, turn_NR)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        x_BND = x_BND + self.own.merge(F.scaled_dot_product_attention(q, k, v, is_causal=past is None))
        q = self.other.split(self.other.query(self.norm2(x_BND)))
        x_BND = x_BND + self.other.merge(F.scaled_dot_product_attention(q, *sound, attn_mask=mask_B11T))
        value, gate = self.up(self.norm3(x_BND)).chunk(2, dim=2)
        return x_BND + self.down(F.silu(gate) * value), (k, v)


class Reader(nn.Module):
    """Text from features [B, T, D] of which the first `frames_B` of each row are real."""

    def __init__(self, config: EarsConfig, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(vocabulary, config.width)
        self.layers = nn.ModuleList(ReaderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, bias=False)
        self.head = nn.Linear(config.width, vocabulary, bias=False)

    def _sound(self, features_BTD: Tensor, frames_B: Tensor) -> tuple[list[Pair], Tensor]:
        T = features_BTD.shape[1]
        mask_BT = torch.arange(T, device=features_BTD.device)[None] < frames_B[:, None]
        others = [cast(ReaderLayer, layer).other for layer in self.layers]
        return [other.pair(features_BTD) for other in others], mask_BT[:, None, None]

    def _read(
        self, tokens_BN: Tensor, sound: list[Pair], mask_B11T: Tensor, past: list[Pair] | None
    ) -> tuple[Tensor, list[Pair]]:
        first = past[0][0].shape[2] if past else 0
        turn_NR = turns(tokens_BN.shape[1], self.config, first, tokens_BN.device)
        x_BND, kept = self.words(tokens_BN), []
        for i, layer in enumerate(self.layers):
            x_BND, pair = layer(x_BND, turn_NR, sound[i], mask_B11T, past[i] if past else None)
            kept.append(pair)
        return self.norm(x_BND), kept

    def cross_entropy(self, features_BTD: Tensor, frames_B: Tensor, tokens_BN: Tensor) -> Tensor:
        """Mean over all tokens and the end marks, in nats. `tokens_BN` is made by `padded_texts`."""
        targets_BN = tokens_BN[:, 1:]
        real_BN = targets_BN != IGNORED
        sound, mask_B11T = self._sound(features_BTD, frames_B)
        hidden_BND, _ = self._read(tokens_BN[:, :-1].clamp(min=0), sound, mask_B11T, None)
        logits_BNV = self.head(hidden_BND).float()
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
            tokens_BN = self.head(hidden_BND[:, -1:]).argmax(-1)
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


def load_reader() -> Reader:
    """Frozen, with the original weights. Raises `ConfigError` without the package."""
    weights = decoder_weights()
    reader = Reader(EarsConfig(), len(weights["words.weight"]))
    reader.load_state_dict(weights)
    return reader.eval().requires_grad_(False)
