"""A text as a whole, as a reader finds it in all of its sound.

`read_again`   its tokens, each the likeliest after those before
`several`      texts that it may be, and how likely each is
`likelihood`   how likely others are
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_streamer.codecs.text import END, SILENCE
from wan_streamer.perception.ears import turns
from wan_streamer.perception.reading import WHOLE, Pair, Reader

REPEATED = 4  # tokens in a row that stand in a text once only
WIDTH, FAR = 8, 2.0  # texts that are followed side by side, up to so much worse than the best
LONG = 0.25  # what a token adds to log p: else what goes on is always worse than what ended


@torch.no_grad()
def read_again(reader: Reader, sound: list[Pair], guess_G: Tensor, most: int) -> Tensor:
    """The text of one stretch of sound, heard to its end: tokens [N], `most` of them.

    sound    as `sound` gives it, of one row
    guess_G  what it may be: changes nothing but the time, if it is right (speculative decoding)
    """
    device = guess_G.device
    heard = torch.ones(1, 1, 1, sound[0][0].shape[2], dtype=torch.bool, device=device)
    turn_MR = turns(most + 1, reader.config, device=device)
    text_N = F.pad(guess_G[:most], (1, 0), value=WHOLE)
    hidden_1ND, past = reader.read(text_N[None], turn_MR[: len(text_N)], sound, heard)
    guess, text = text_N[1:].tolist(), list[int]()
    for score_V in reader.scores(hidden_1ND[0]):
        token = _likeliest(score_V, text)
        if len(text) == len(guess) or token != guess[len(text)]:
            break
        text.append(token)
    past = [(k[:, :, : len(text) + 1], v[:, :, : len(text) + 1]) for k, v in past]
    while token != END and len(text) < most:
        text.append(token)
        token_11 = torch.tensor([[token]], device=device)
        hidden_1ND, past = reader.read(token_11, turn_MR[len(text), None], sound, heard, past)
        token = _likeliest(reader.scores(hidden_1ND[0, 0]), text)
    return torch.tensor(text, dtype=torch.long, device=device)


@torch.no_grad()
def several(reader: Reader, sound: list[Pair], most: int) -> list[tuple[Tensor, float]]:
    """Up to `WIDTH` texts [N] of one stretch of sound, heard to its end, with log p and `LONG` a token, the best first.

    sound  as `sound` gives it, of one row;   most  tokens of one
    All that are about as good are followed side by side (beam search: Sutskever et al. 2014, section 3.2). The begin of
    a long text is likelier than the text, so one ends only where that is likelier than any token (Hannun et al. 2019,
    section 2.4), and a token adds something (Murray and Chiang 2018, section 4).
    """
    device = sound[0][0].device
    heard = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    turn_MR = turns(most + 1, reader.config, device=device)
    texts, score_R, past = [list[int]()], torch.zeros(1, device=device), None
    token_R1, done = torch.full((1, 1), WHOLE, device=device), list[tuple[list[int], float]]()
    for place in range(most + 1):
        hidden_R1D, past = reader.read(token_R1, turn_MR[place, None], sound, heard, past)
        score_RV = torch.stack([_allowed(*pair) for pair in zip(reader.scores(hidden_R1D[:, 0]), texts, strict=True)])
        ends_R = (score_RV.argmax(-1) == END) | (place == most)
        all_RV = score_R[:, None] + score_RV.log_softmax(-1)
        done += [(texts[row], float(all_RV[row, END])) for row in ends_R.nonzero()[:, 0].tolist()]
        done = sorted(done, key=lambda one: one[1], reverse=True)[:WIDTH]
        all_RV = all_RV + LONG
        all_RV[:, END] = float("-inf")
        score_R, index_R = all_RV.flatten().topk(min(WIDTH, all_RV.numel()))
        kept_R, token_R1 = index_R // all_RV.shape[1], index_R[:, None] % all_RV.shape[1]
        good_R = score_R > _least(done)
        if not bool(good_R.any()):
            break
        kept_R, token_R1, score_R = kept_R[good_R], token_R1[good_R], score_R[good_R]
        texts = [[*texts[row], token] for row, token in zip(kept_R.tolist(), token_R1[:, 0].tolist(), strict=True)]
        past = [(k[kept_R], v[kept_R]) for k, v in past]
    return [(torch.tensor(text, device=device).long(), score) for text, score in done if score >= done[0][1] - FAR]


def _least(done: list[tuple[list[int], float]]) -> float:
    """What a text has to be better than to be followed, beside those that have ended, the best first."""
    if not done:
        return float("-inf")
    return max(done[0][1] - FAR, done[-1][1] if len(done) == WIDTH else float("-inf"))


@torch.no_grad()
def likelihood(reader: Reader, sound: list[Pair], texts: list[Tensor]) -> list[float]:
    """log p of each of some texts, and that it ends there, as the whole of one stretch of sound."""
    rows = [F.pad(F.pad(text, (1, 0), value=WHOLE), (0, 1), value=END) for text in texts]
    text_RN = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=SILENCE)
    turn_NR = turns(text_RN.shape[1] - 1, reader.config, device=text_RN.device)
    heard = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=text_RN.device)
    hidden_RND, _ = reader.read(text_RN[:, :-1], turn_NR, sound, heard)
    score_RNV = reader.scores(hidden_RND)[..., END:].log_softmax(-1)
    next_RN = text_RN[:, 1:]
    score_RN = score_RNV.gather(2, (next_RN - END).clamp(min=0)[..., None])[..., 0]
    return (score_RN * (next_RN != SILENCE)).sum(1).tolist()


def _likeliest(score_V: Tensor, text: list[int]) -> int:
    return int(_allowed(score_V, text).argmax())


def _allowed(score_V: Tensor, text: list[int]) -> Tensor:
    """Logits of the token after a text, no `REPEATED` in a row twice: a decoder that looks at one place in the sound
    for ever would not end (Paulus et al. 2018, section 2.5).
    """
    score_V = score_V.clone()
    score_V[:END] = float("-inf")
    last = text[len(text) - REPEATED + 1 :]
    for first in range(len(text) - REPEATED + 1):
        if text[first : first + REPEATED - 1] == last:
            score_V[text[first + REPEATED - 1]] = float("-inf")
    return score_V
