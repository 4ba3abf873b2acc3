"""A text as a whole, as a reader finds it in all of its sound.

`read_again`   its tokens
`likelihood`   how likely others are
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_streamer.codecs.text import END, SILENCE
from wan_streamer.perception.ears import turns
from wan_streamer.perception.reading import WHOLE, Pair, Reader

REPEATED = 4  # tokens in a row that stand in a text once only


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
    """The token after a text, no `REPEATED` in a row twice: a decoder that looks at one place in the sound for ever
    would not end (Paulus et al. 2018, section 2.5).
    """
    score_V = score_V.clone()
    score_V[:END] = float("-inf")
    last = text[len(text) - REPEATED + 1 :]
    for first in range(len(text) - REPEATED + 1):
        if text[first : first + REPEATED - 1] == last:
            score_V[text[first + REPEATED - 1]] = float("-inf")
    return int(score_V.argmax())
