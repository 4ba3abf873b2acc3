"""A reader: the decoder of a recogniser, which looks at what the ears make of the last seconds.

`Reader`       given the words that the agent has written down, it tells which are likely to come next: `Expected`
`reading`      it, if a configuration has one
`hints`        what it expects in all units of a clip;   `live_hints`  in the unit that a session has just heard
`read_so_far`  what it goes on from

The words are hints, tokens of the user beside those of the sound. The agent decides what stands in its transcript, and
when; what it has written is what the reader goes on from.

Architecture: the decoder of Moonshine (Jeffries et al. 2024, section 3; MIT licence).
"""

import itertools
from collections import deque
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_streamer.codecs.text import END, HOLD, SILENCE
from wan_streamer.perception.ears import rotate, turns
from wan_streamer.shapes import EarsConfig, PerceptionConfig

Pair = tuple[Tensor, Tensor]
BEGIN, WHOLE = SILENCE, HOLD  # whose rows are the marks before what is read as it comes, and as a whole; END: behind
UNLIKELY, CERTAIN = -12.0, -1e-4  # logarithms of the lowest and the highest probability: nothing is ruled out
WRITTEN_LATE = 3  # units from the end of a word to those after it being written, at most: older ones may be unheard
ENDED_LATE = 2  # units from the end of a text to that being written


class Expected(NamedTuple):
    """What comes next after what is written.

    token  int64 [..., R]
    score  float [..., R, V]: logarithm of the probability of each word as that token, if it is a word, from `UNLIKELY`
           to 0; at END that of no word, to `CERTAIN`; 0 for other tokens of control, and for all where nothing is known
    """

    token: Tensor
    score: Tensor


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
        self,
        x_RND: Tensor,
        turn: Tensor,
        sound: Pair,
        heard: Tensor,
        past: Pair | None = None,
        read: Tensor | None = None,
    ) -> tuple[Tensor, Pair]:
        """R texts that look at B sounds, R / B to each, one behind the other.

        turn   of the places of the N tokens, [N, pairs] or [R, 1, N, pairs]
        heard  which frames they see: bool, broadcasts to [B, 1, R / B x N, T]
        read   which tokens of the past and their own they see: bool [R, 1, N, all]; None: all before
        """
        normal = self.norm1(x_RND)
        k, v = self.own.pair(normal)
        q, k = rotate(self.own.split(self.own.query(normal)), turn), rotate(k, turn)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        causal = past is None and read is None
        x_RND = x_RND + self.own.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=read, is_causal=causal))
        q = self.other.split(self.other.query(self.norm2(x_RND)).reshape(len(sound[0]), -1, x_RND.shape[2]))
        seen = self.other.merge(F.scaled_dot_product_attention(q, *sound, attn_mask=heard))
        x_RND = x_RND + seen.view_as(x_RND)
        value, gate = self.up(self.norm3(x_RND)).chunk(2, dim=2)
        return x_RND + self.down(F.silu(gate) * value), (k, v)


class Reader(nn.Module):
    """Reads features [B, T, D] of the ears. Tokens are those of the agent's text."""

    def __init__(self, config: EarsConfig, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(vocabulary, config.width)
        self.layers = nn.ModuleList(ReaderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, bias=False)

    def sound(self, features_BTD: Tensor) -> list[Pair]:
        """What each layer looks at: keys and values [B, heads, T, head]."""
        return [cast(ReaderLayer, layer).other.pair(features_BTD) for layer in self.layers]

    def read(
        self,
        tokens_RN: Tensor,
        turn: Tensor,
        sound: list[Pair],
        heard: Tensor,
        past: list[Pair] | None = None,
        read: Tensor | None = None,
    ) -> tuple[Tensor, list[Pair]]:
        """Hidden states [R, N, D] of more tokens, and the past for the next call; arguments as in `ReaderLayer`."""
        x_RND, kept = self.words(tokens_RN), []
        for i, layer in enumerate(self.layers):
            x_RND, pair = layer(x_RND, turn, sound[i], heard, past[i] if past else None, read)
            kept.append(pair)
        return self.norm(x_RND), kept

    def scores(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocabulary] of the token after each."""
        return F.linear(hidden, self.words.weight.to(hidden.dtype)).float()

    @torch.no_grad()
    def ahead(
        self,
        sound: list[Pair],
        written_BKS: Tensor,
        count: int,
        window: int,
        last: bool = False,
        guess_G: Tensor | None = None,
    ) -> Expected:
        """The next `count` tokens after what is written before each of K units: [B, K, count].

        sound        of K units, as `sound` gives it
        written_BKS  tokens of the transcript; those of unit k are read from unit k + 1 on
        window       units of sound that are looked at, the unit itself included; less after the end of a text
        last         only what comes in the last unit: [B, 1, count]
        guess_G      what may come in all of them: changes nothing but the time, if it is right (speculative decoding)

        A text that ends is followed by END and then SILENCE. A unit depends on nothing behind it, nor on what was said
        before the last end that is written: the decoder has learned from one text at a time.
        """
        (B, K), device = written_BKS.shape[:2], written_BKS.device
        unit_Q = torch.arange(K - 1 if last else 0, K, device=device)
        prefix_BQN, length_BQ, near_BQF = read_so_far(written_BKS, unit_Q, window, sound[0][0].shape[2] // K)
        prefix_RN, length_R = prefix_BQN.flatten(0, 1), length_BQ.flatten()
        guess_G = written_BKS.new_empty(0) if guess_G is None else guess_G[: count - 1]
        G = len(guess_G)
        ends_RH = length_R[:, None] - 1 + torch.arange(G + 1, device=device)
        tokens_RN = F.pad(prefix_RN, (0, G)).scatter(1, ends_RH[:, 1:], guess_G.expand(len(prefix_RN), -1))
        N = tokens_RN.shape[1]
        turn_MR = turns(N + count, self.config, device=device)
        hidden_RND, past = self.read(tokens_RN, turn_MR[:N], sound, near_BQF.repeat_interleave(N, 1)[:, None])
        ready = list(hidden_RND.gather(1, ends_RH[..., None].expand(-1, -1, hidden_RND.shape[2])).unbind(1))
        right = 0  # so much of the guess
        real_RM = torch.arange(N, device=device)[None] < length_R[:, None]
        found: list[Tensor] = []
        scores: list[Tensor] = []
        for number in range(count):
            if number and number <= G and right == number - 1 and bool((found[-1] == guess_G[right]).all()):
                right += 1
                real_RM = torch.arange(N, device=device)[None] < (length_R + right)[:, None]
            elif number:
                real_RM = F.pad(real_RM, (0, 1), value=True)
                turn = turn_MR[length_R + number - 1][:, None, None]
                hidden_RND, past = self.read(
                    found[-1][:, None], turn, sound, near_BQF[:, None], past, real_RM[:, None, None]
                )
                ready[number:] = [hidden_RND[:, 0]]
            logits_RV = self.scores(ready[number])
            logits_RV[:, :END] = float("-inf")
            found.append(logits_RV.argmax(-1))
            score_RW = logits_RV[:, END + 1 :].log_softmax(-1).clamp(min=UNLIKELY)
            none_R1 = logits_RV[:, END:].log_softmax(-1)[:, :1].clamp(UNLIKELY, CERTAIN)
            scores.append(F.pad(torch.cat([none_R1, score_RW], dim=1), (END, 0)))
            if last and device.type != "meta" and bool((found[-1] == END).all()):  # silences need not be read on
                break
        left = count - len(found)
        found_RC = F.pad(torch.stack(found, dim=1), (0, left), value=SILENCE)
        score_RCV = F.pad(torch.stack(scores, dim=1), (0, 0, 0, left))
        ended_RC = (found_RC == END).cumsum(1) - (found_RC == END).long() > 0
        found_RC, score_RCV = found_RC.masked_fill(ended_RC, SILENCE), score_RCV.masked_fill(ended_RC[..., None], 0)
        return Expected(found_RC.unflatten(0, (B, -1)), score_RCV.unflatten(0, (B, -1)))


def read_so_far(written_BKS: Tensor, unit_Q: Tensor, window: int, frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a reader goes on from in units Q of K with `frames` frames each.

    The words before, behind the mark, int64 [B, Q, N]; how many, [B, Q]; which frames are looked at, bool [B, Q, F].
    """
    ended_BQ = _last_end(written_BKS, unit_Q)
    unit_F = torch.arange(written_BKS.shape[1], device=unit_Q.device).repeat_interleave(frames)
    age_QF = unit_Q[:, None] - unit_F[None]
    near_BQF = (age_QF >= 0) & (age_QF < window) & (unit_F >= ended_BQ[..., None] - ENDED_LATE)
    return *_before(written_BKS, unit_Q, ended_BQ, window), near_BQF


def _last_end(written_BKS: Tensor, unit_Q: Tensor) -> Tensor:
    """The last unit before each of units Q in which the end of a text is written: int64 [B, Q]; -1 for none."""
    unit_K = torch.arange(written_BKS.shape[1], device=unit_Q.device)
    last_BK = torch.where((written_BKS == END).any(2), unit_K, -1).cummax(1).values
    return F.pad(last_BK, (1, 0), value=-1)[:, unit_Q]


def _before(written_BKS: Tensor, unit_Q: Tensor, ended_BQ: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """The words that stand before units Q and are in their windows, behind the mark: [B, Q, N], and how many [B, Q].

    What stands behind them is no text.
    """
    K, S = written_BKS.shape[1:]
    token_BT = written_BKS.flatten(1)
    unit_T = torch.arange(K, device=unit_Q.device).repeat_interleave(S)
    age_QT = unit_Q[:, None] - unit_T[None]
    there_BQT = (token_BT > END)[:, None] & (age_QT > 0) & (age_QT <= max(1, window - WRITTEN_LATE))
    there_BQT &= unit_T > ended_BQ[..., None]
    length_BQ = there_BQT.sum(2)
    most = len(there_BQT[0, 0]) if length_BQ.is_meta else int(length_BQ.max())  # sizes are asked for without values
    first_BQN = there_BQT.int().argsort(dim=2, descending=True, stable=True)[..., :most]
    text_BQN = token_BT[:, None].expand(-1, len(unit_Q), -1).gather(2, first_BQN)
    return F.pad(text_BQN, (1, 0), value=BEGIN), length_BQ + 1


def reading(config: PerceptionConfig, vocabulary: int) -> Reader | None:
    """The reader of a model with so many tokens, frozen, if it has one."""
    return Reader(config.ears, vocabulary).requires_grad_(False) if config.reading else None


def hints(
    reader: Reader | None,
    config: PerceptionConfig,
    heard_BKTD: Tensor | None,
    microphone_BK: Tensor,
    written_BKS: Tensor,
) -> Expected | None:
    """[B, K, R] of clips in which `written_BKS` is written down; None without a reader or ears."""
    if reader is None or heard_BKTD is None:
        return None
    with torch.no_grad():
        sound = reader.sound(heard_BKTD.float().flatten(1, 2))
    return _if_on(microphone_BK, reader.ahead(sound, written_BKS, config.reading, config.reading_units))


def live_hints(
    reader: Reader | None,
    config: PerceptionConfig,
    past: deque[Tensor],
    heard_TD: Tensor,
    microphone: Tensor,
    written: list[Tensor],
    before: Expected | None = None,
) -> Expected | None:
    """[R] of a unit with the features `heard_TD`, as `hints` gives them in a clip.

    past     what is looked at of the units before, [layers, 2, heads, T, head] each; the new one is added here. A text
             that is read as a whole may be longer than what is looked at in a unit
    written  tokens [S] of the latest units before
    before   what was expected in the last one: most of it still is, and need not be found anew one by one
    """
    if reader is None:
        return None
    with torch.no_grad():
        past.append(torch.stack([torch.cat(pair) for pair in reader.sound(heard_TD.float()[None])]))
    again = 0 if config.hindsight else config.reading_again  # which looks at what hindsight makes
    while len(past) > max(config.reading_units, again):
        past.popleft()
    count = min(len(past), config.reading_units) - 1
    known = written[-count:] if count else []
    silent_S = torch.full_like(written[0], SILENCE) if written else torch.tensor([SILENCE], device=heard_TD.device)
    written_KS = torch.stack([*[silent_S] * (count - len(known)), *known, silent_S])
    sound = latest_sound(past, count + 1)
    guess_G = still_expected(before, known[-1]) if known and not heard_TD.is_meta else None
    found_11R = reader.ahead(sound, written_KS[None], config.reading, config.reading_units, True, guess_G)
    return _if_on(microphone, Expected(found_11R.token[0, 0], found_11R.score[0, 0]))


def latest_sound(past: deque[Tensor], units: int) -> list[Pair]:
    """What a reader looks at of the last `units`."""
    return [(key[None], value[None]) for key, value in torch.cat(list(past)[-units:], dim=3)]


def still_expected(before: Expected | None, written_S: Tensor) -> Tensor | None:
    """The words that were expected behind those that have been written since; None where others have been."""
    said, left = [t for t in written_S.tolist() if t >= END], [] if before is None else before.token.tolist()
    if left[: len(said)] != said:
        return None
    words = itertools.takewhile(lambda token: token > END, left[len(said) :])
    return torch.tensor(list(words), dtype=torch.long, device=written_S.device)


def _if_on(microphone: Tensor, expected: Expected) -> Expected:
    token = torch.where(microphone[..., None], expected.token, SILENCE)
    return Expected(token, expected.score * microphone[..., None, None])
