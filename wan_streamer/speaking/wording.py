"""What to say: a small language model of the conversation reads its words, and tells which may come next.

`Talk`      what was said so far, as read
`Likely`    which word may be the agent's next, and whether it is the agent's turn
`Wording`   `read`: more words;  `revised`: other words than were read;  `likely`: what then is likely
`wished`    what is said, as the agent and its wording together find likely;   `how_sure`  it is of a word

The Transformer has to find the words among sounds and pictures, and sees few of them in a step of training. A network
that reads nothing but words learns what is said to what by itself, from conversations without end
(`training/wording`); so a word can be taken from what was said minutes ago. It is told what the reader of the user's
sound expects, before that is written down. (Fusion with a language model that is trained alone: Gulcehre et al. 2015,
section 4.1; words that are copied from what was read: See et al. 2017, section 2.2; turns foretold from words: Ekstedt
and Skantze 2020.)
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_streamer.codecs.text import END, HOLD, SILENCE
from wan_streamer.config import WordingConfig

AGENT = 0  # the source of the agent's words
UNLIKELY, CERTAIN = -10.0, -1e-4  # logarithms of probabilities that are not passed
NEVER = -1e4
TURN = 5.0  # log odds of a turn that are not passed


@dataclass(frozen=True)
class Talk:
    """The latest words that were read, oldest first: at most `window` of N.

    said_N2     int64: sources and tokens
    pair_L2ND   keys, turned to their places, and values of every layer
    copied_NC   by which words are found to be said again;   last_D  hidden state of the last one
    """

    said_N2: Tensor
    pair_L2ND: Tensor
    copied_NC: Tensor
    last_D: Tensor
    count: int


class Likely(NamedTuple):
    """word  [..., V], logarithm of how likely each token is the agent's next

    turn  [...], log odds that the agent says something before the user goes on; 0 where the agent spoke last
    """

    word: Tensor
    turn: Tensor


class WordingLayer(nn.Module):
    """Attention and a gated feed-forward part, both on a normalised copy."""

    def __init__(self, config: WordingConfig) -> None:
        super().__init__()
        D = config.dim
        self.heads = config.heads
        self.norm1, self.norm2 = nn.RMSNorm(D), nn.RMSNorm(D)
        self.qkv, self.out = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        self.up, self.down = nn.Linear(D, 2 * config.mlp_dim, bias=False), nn.Linear(config.mlp_dim, D, bias=False)

    def forward(
        self, x_BND: Tensor, turn: Tensor, seen: Tensor | None, past_2MD: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Hidden states, and keys and values [B, 2, N, D]; `seen` broadcasts to bool [B, 1, N, M + N]; None: causal."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in self.qkv(self.norm1(x_BND)).chunk(3, dim=-1))
        q, k = _turned(q, turn), _turned(k, turn)
        pair_B2ND = torch.stack([k.flatten(-2), v.flatten(-2)], dim=1)
        known = pair_B2ND if past_2MD is None else torch.cat([past_2MD[None].to(pair_B2ND.dtype), pair_B2ND], dim=2)
        keys, values = known.unflatten(-1, (self.heads, -1)).transpose(2, 3).unbind(1)
        found = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=seen, is_causal=seen is None)
        x_BND = x_BND + self.out(found.transpose(1, 2).flatten(-2))
        value, gate = self.up(self.norm2(x_BND)).chunk(2, dim=-1)
        return x_BND + self.down(F.silu(value) * gate), pair_B2ND


class Wording(nn.Module):
    """config;   vocabulary  tokens;   sources  of words, the first one is the agent

    What was said are pairs (source, token) as in a memory (`model/memory.py`), without silences.
    """

    def __init__(self, config: WordingConfig, vocabulary: int, sources: int) -> None:
        super().__init__()
        D = config.dim
        self.config = config
        self.words, self.source = nn.Embedding(vocabulary, config.token_dim), nn.Embedding(sources, D)
        self.inner, self.outer = nn.Linear(config.token_dim, D, bias=False), nn.Linear(D, config.token_dim, bias=False)
        self.layers = nn.ModuleList(WordingLayer(config) for _ in range(config.layers))
        self.norm, self.bias = nn.RMSNorm(D), nn.Parameter(torch.zeros(vocabulary))
        self.asked, self.copied = (nn.Linear(D, config.copy_dim, bias=False) for _ in range(2))
        self.copies, self.turns = nn.Linear(D, 1), nn.Linear(D, 1)
        self.chain, self.sure = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))
        self.goes_on = nn.Parameter(torch.zeros(vocabulary))  # a piece within a word more than the begin of one
        self.requires_grad_(False)

    def reset(self) -> None:
        """Weights to begin with, where those of a whole model are set."""
        nn.init.normal_(self.words.weight, std=self.config.token_dim**-0.5)
        nn.init.normal_(self.source.weight, std=0.1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if isinstance(module, WordingLayer):
                for inner in (module.out, module.down):
                    inner.weight.data.mul_(0.3)
        nn.init.constant_(self.copies.bias, -1.0)
        nn.init.zeros_(self.turns.weight)
        nn.init.constant_(self.chain, 2.0)

    # ---- live

    def begin(self) -> Talk:
        """Nothing is known of what was said before."""
        config, like = self.config, self.bias
        empty = Talk(
            like.new_zeros(0, 2, dtype=torch.long),
            like.new_zeros(config.layers, 2, 0, config.dim),
            like.new_zeros(0, config.copy_dim),
            like.new_zeros(config.dim),
            0,
        )
        return self._read(empty, self._mark(like.device))

    def read(self, talk: Talk, said_N2: Tensor) -> Talk:
        """What is said next, [N, 2]."""
        return self._read(talk, said_N2) if len(said_N2) else talk

    def _read(self, talk: Talk, said_N2: Tensor) -> Talk:
        M, N, window = len(talk.said_N2), len(said_N2), self.config.window
        place_N = torch.arange(talk.count - M, talk.count + N, device=said_N2.device)
        x_BND, pairs = self._embed(said_N2[None]), []
        turn, seen = self._turn(place_N[M:]), _near(place_N[M:], place_N, window)
        for number, layer in enumerate(self.layers):
            x_BND, pair_B2ND = layer(x_BND, turn, seen, talk.pair_L2ND[number])
            pairs.append(pair_B2ND[0])
        hidden_BND = self.norm(x_BND)
        copied_BNC = self.copied(hidden_BND)
        return Talk(
            torch.cat([talk.said_N2, said_N2])[-window:],
            torch.cat([talk.pair_L2ND, torch.stack(pairs).to(talk.pair_L2ND.dtype)], dim=2)[:, :, -window:],
            torch.cat([talk.copied_NC, copied_BNC[0].to(talk.copied_NC.dtype)])[-window:],
            hidden_BND[0, -1],
            talk.count + N,
        )

    def revised(self, talk: Talk, source: int, token_N: Tensor, ended: bool) -> Talk:
        """The latest words of `source`, behind which it has `ended` or not, were these."""
        said_N2, place_N = talk.said_N2, torch.arange(len(talk.said_N2), device=talk.said_N2.device)
        of_source_N = said_N2[:, 0] == source
        ends = place_N[of_source_N & (said_N2[:, 1] == END)].tolist()
        before = ends[-1 - ended] if len(ends) > ended else -1
        old_N = of_source_N & (said_N2[:, 1] > END) & (place_N > before)
        first = min([*place_N[old_N].tolist(), ends[-1] if ended else len(said_N2)])
        new_N2 = torch.stack([torch.full_like(token_N, source), token_N], dim=1)
        known = max(0, first - 1)  # whose last word is read again: there may be none behind it
        rest_N2 = torch.cat([said_N2[known:first], new_N2, said_N2[first:][~old_N[first:]]])
        past = (talk.said_N2[:known], talk.pair_L2ND[:, :, :known], talk.copied_NC[:known])
        return self._read(Talk(*past, talk.last_D, talk.count - len(said_N2) + known), rest_N2)

    def likely(self, talk: Talk, ahead_N2: Tensor) -> Likely:
        """What is likely, [V] and [], if what is `ahead` [N, 2] is said before."""
        talk = self.read(talk, ahead_N2)
        seen_11N = torch.ones(1, 1, len(talk.said_N2), dtype=torch.bool, device=talk.said_N2.device)
        said_1N2, last_112 = talk.said_N2[None], talk.said_N2[None, None, -1]
        chained_11N = follows(F.pad(said_1N2[:, :-1, 1], (1, 0), value=SILENCE), last_112[..., 1])
        found = self._scores(
            talk.last_D[None, None], talk.copied_NC[None], said_1N2, seen_11N, chained_11N, last_112[..., 0]
        )
        return Likely(found.word[0, 0], found.turn[0, 0])

    # ---- training

    def forward(self, said_BN2: Tensor) -> Tensor:
        """Hidden states [B, N, D] of words, each read with those before it; the mark of a beginning is one of them."""
        x_BND, place_N = self._embed(said_BN2), torch.arange(said_BN2.shape[1], device=said_BN2.device)
        turn = self._turn(place_N)
        seen = None if len(place_N) <= self.config.window else _near(place_N, place_N, self.config.window)
        for layer in self.layers:
            x_BND, _ = layer(x_BND, turn, seen)
        return self.norm(x_BND)

    def understood(self, said_BN2: Tensor, before_BK: Tensor) -> Tensor:
        """Hidden states [B, K, D] of the last of so many words that are read: `Talk.last_D` of a session there."""
        hidden_BND = self(self.begun(said_BN2[:, : int(before_BK.max())]))
        return hidden_BND.gather(1, before_BK[..., None].expand(-1, -1, hidden_BND.shape[2]))

    def begun(self, said_BN2: Tensor) -> Tensor:
        """With the mark of a beginning in front."""
        return torch.cat([self._mark(said_BN2.device).expand(len(said_BN2), 1, 2), said_BN2], dim=1)

    def likely_in(self, said_BN2: Tensor, before_BQ: Tensor, ahead_BQR2: Tensor) -> Likely:
        """The same as `likely` at Q places of B texts: [B, Q, V] and [B, Q].

        said_BN2   words, each text from its beginning; the source is below 0 behind its end
        before_BQ  how many of them are read
        ahead_BQR2 likewise, what is said then
        """
        B, N = said_BN2.shape[0], said_BN2.shape[1] + 1
        Q, R = ahead_BQR2.shape[1:3]
        before_BQ = before_BQ + 1  # the mark
        text_BN2, there_BQR = self.begun(said_BN2), ahead_BQR2[..., 0] >= 0
        text_BT2 = torch.cat([text_BN2, ahead_BQR2.flatten(1, 2)], dim=1)
        there_BT = torch.cat([text_BN2[..., 0] >= 0, there_BQR.flatten(1)], dim=1)
        step_R = torch.arange(R, device=text_BN2.device)
        place_N = torch.arange(N, device=text_BN2.device)
        place_BT = torch.cat([place_N.expand(B, N), (before_BQ[..., None] + step_R).flatten(1)], dim=1)
        # Of a text; of its branches, each what is read before it, and what of itself is.
        own_T = torch.cat([place_N.new_full((N,), -1), torch.arange(Q, device=place_N.device).repeat_interleave(R)])
        read_BT = torch.cat([place_N.expand(B, N) + 1, before_BQ.repeat_interleave(R, 1)], dim=1)
        same_TT = (own_T[:, None] == own_T) & (own_T >= 0)
        earlier_BTT = place_BT[:, None] <= place_BT[..., None]
        of_text_BTT = (own_T < 0) & (place_BT[:, None] < read_BT[..., None])
        seen_BTT = (of_text_BTT | (same_TT & earlier_BTT)) & there_BT[:, None]
        seen_BTT &= place_BT[..., None] - place_BT[:, None] < self.config.window
        itself_TT = torch.eye(len(own_T), dtype=torch.bool, device=place_N.device)
        x_BTD, turn = self._embed(text_BT2), self._turn(place_BT)
        for layer in self.layers:
            x_BTD, _ = layer(x_BTD, turn, (seen_BTT | itself_TT)[:, None])
        hidden_BTD = self.norm(x_BTD)
        ahead_BQ = there_BQR.sum(2)
        last_BQ = torch.where(ahead_BQ > 0, N + torch.arange(Q, device=place_N.device) * R + ahead_BQ, before_BQ) - 1
        asked_BQD = hidden_BTD.gather(1, last_BQ[..., None].expand(-1, -1, hidden_BTD.shape[2]))
        seen_BQT = seen_BTT.gather(1, last_BQ[..., None].expand(-1, -1, len(own_T)))
        last_BQ2 = text_BT2.gather(1, last_BQ[..., None].expand(-1, -1, 2))
        token_BN = text_BN2[..., 1]
        # Each branch goes on from its text.
        before_BQR = torch.cat([token_BN.gather(1, before_BQ - 1)[..., None], ahead_BQR2[..., :-1, 1]], dim=2)
        before_BT = torch.cat([F.pad(token_BN[:, :-1], (1, 0), value=SILENCE), before_BQR.flatten(1)], dim=1)
        oldest_BQT = place_BT.gather(1, last_BQ)[..., None] - place_BT[:, None] == self.config.window - 1
        chained_BQT = follows(before_BT, last_BQ2[..., 1]) & ~oldest_BQT  # a session has dropped the one before
        copied_BTC = self.copied(hidden_BTD)
        return self._scores(asked_BQD, copied_BTC, text_BT2, seen_BQT, chained_BQT, last_BQ2[..., 0])

    def _mark(self, device: torch.device) -> Tensor:
        """[1, 2]: before it nothing is known."""
        return torch.tensor([[self.source.num_embeddings - 1, SILENCE]], device=device)

    def _embed(self, said_BN2: Tensor) -> Tensor:
        source_BN, token_BN = said_BN2.clamp(min=0).unbind(-1)
        return self.inner(self.words(token_BN)) + self.source(source_BN)

    def _turn(self, place: Tensor) -> Tensor:
        """Cosines and sines [..., 2, pairs] of places [...]."""
        width = self.config.dim // self.config.heads
        pair = torch.arange(0, width, 2, device=place.device, dtype=torch.float64)
        angle = place[..., None] * self.config.rope_theta ** (-pair / width)
        return torch.stack([angle.cos(), angle.sin()], dim=-2).float()

    def _scores(
        self,
        hidden_BQD: Tensor,
        copied_BNC: Tensor,
        said_BN2: Tensor,
        seen_BQN: Tensor,
        chained_BQN: Tensor,
        last_by_BQ: Tensor,
    ) -> Likely:
        """Words that the model knows and, of those that are seen, words to say again.

        last_by_BQ  who said the last word before
        """
        again_BQN, share_BQ = self.again(hidden_BQD, copied_BNC, said_BN2[..., 1], seen_BQN, chained_BQN)
        own_BQV = self.own(hidden_BQD).log_softmax(-1) + F.logsigmoid(-share_BQ)[..., None]
        again_BQN = again_BQN + F.logsigmoid(share_BQ)[..., None]
        token_BQN = said_BN2[..., 1].clamp(min=0)[:, None].expand_as(again_BQN)
        word_BQV = own_BQV.exp().scatter_add(2, token_BQN, again_BQN.exp()).clamp(min=1e-9).log()
        return Likely(word_BQV, self.turn(hidden_BQD) * (last_by_BQ != AGENT))

    def turn(self, hidden: Tensor) -> Tensor:
        """Log odds [...] that it is the agent's turn, where the user spoke last."""
        return self.turns(hidden)[..., 0].float()

    def own(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of words that are known; nobody says silences."""
        known = F.linear(self.outer(hidden), self.words.weight.to(hidden.dtype)).float() + self.bias
        return F.pad(known[..., HOLD + 1 :], (HOLD + 1, 0), value=NEVER)

    def again(
        self, hidden_BQD: Tensor, copied_BNC: Tensor, token_BN: Tensor, seen_BQN: Tensor, chained_BQN: Tensor
    ) -> tuple[Tensor, Tensor]:
        """log p [B, Q, N] of saying again each word that was read, if one is, and the log odds that one is [B, Q].

        The likelier if it is `chained` (see `follows`), by how much depends on the token: who has begun a word says it
        to its end. The better one fits, the likelier is any.
        """
        fit_BQN = (self.asked(hidden_BQD) @ copied_BNC.to(hidden_BQD.dtype).mT).float() / self.config.copy_dim**0.5
        chain_B1N = self.chain + self.goes_on[token_BN.clamp(min=0)][:, None]
        fit_BQN = (fit_BQN + chain_B1N * chained_BQN).masked_fill(~seen_BQN, NEVER)
        share_BQ = self.copies(hidden_BQD)[..., 0].float() + self.sure * fit_BQN.amax(-1)
        return fit_BQN.log_softmax(-1), share_BQ


def wished(logits: Tensor, likely: Likely, talking: Tensor, config: WordingConfig) -> Tensor:
    """What is said, as the agent and its wording together find likely: the one knows when, and what it sees.

    Logits [..., V], what is likely, whether something is being said [...] -> logits [..., V]. The wording counts as
    much as its likeliest word is likely: where it cannot know, as of what is seen, its small preferences mean nothing.
    Whether a word is written is moved by what it has against one more word of an utterance, and by whose turn it is.
    """
    end, word = likely.word[..., END].clamp(UNLIKELY, CERTAIN), logits[..., END + 1 :]
    wish = likely.word[..., END + 1 :].log_softmax(-1)
    both = word + config.weight * how_sure(likely)[..., None] * wish.clamp(min=UNLIKELY)
    both = both + word.logsumexp(-1, keepdim=True) - both.logsumexp(-1, keepdim=True)
    done = torch.log1p(-end.exp()).clamp(min=UNLIKELY)
    due = torch.where(talking, config.due * done, config.turn * likely.turn.clamp(-TURN, TURN))
    return torch.cat([logits[..., : END + 1], both + due[..., None]], dim=-1)


def how_sure(likely: Likely) -> Tensor:
    """How likely the likeliest word is [...], if there is one."""
    return likely.word[..., END + 1 :].amax(-1).exp() / likely.word[..., END + 1 :].logsumexp(-1).exp()


def follows(before_BN: Tensor, last_BQ: Tensor) -> Tensor:
    """Which words stand behind a word like the last one, bool [B, Q, N]: what follows in a word of several tokens."""
    return before_BN[:, None] == last_BQ[..., None]


def _near(place_N: Tensor, other_M: Tensor, window: int) -> Tensor:
    """Which places are seen from places: those up to them in a window, bool [N, M]."""
    apart_NM = place_N[:, None] - other_M
    return (apart_NM >= 0) & (apart_NM < window)


def _turned(x_BNHd: Tensor, turn: Tensor) -> Tensor:
    cos, sin = turn.to(x_BNHd.dtype)[..., None, :, :].unbind(-2)
    left, right = x_BNHd.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
