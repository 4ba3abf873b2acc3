"""What a reader is asked when a text is over: all of it, from all of its sound.

`Whole`        texts of a batch
`whole_texts`  of streams with a transcript
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from wan_streamer.codecs.text import END
from wan_streamer.perception.reading import ENDED_LATE, WHOLE
from wan_streamer.perception.turn import BEFORE
from wan_streamer.training.reader.streams import IGNORED

NEAR = 5  # units of sound before the first word is written, at least; `BEFORE` at most
AFTER = 4  # and behind the last one that is heard
CUT = 0.25  # share of texts of which only a first part is heard
JOINED = 0.4  # share of texts that go on in the next one: a turn may have pauses, and several sentences


class Whole(NamedTuple):
    """E texts of each of B streams of K units.

    text_BEN  int64: `WHOLE`, the words, END; then `IGNORED`, as where there are fewer texts
    near_BEK  bool: units in which they are heard
    joined_BE  bool: those that are several
    """

    text_BEN: Tensor
    near_BEK: Tensor
    joined_BE: Tensor


def whole_texts(written_BKS: Tensor, count: int, rng: torch.Generator) -> Whole:
    """At most `count` texts of each transcript, those that are in it from their beginning."""
    streams = [_texts(written_KS, rng) for written_KS in written_BKS]
    B, K = written_BKS.shape[:2]
    chosen = [[found[i] for i in torch.randperm(len(found), generator=rng)[:count].tolist()] for found in streams]
    near_BEK = torch.zeros(B, count, K, dtype=torch.bool)
    rows, joined_BE = [torch.full((1,), IGNORED)] * (B * count), torch.zeros(B, count, dtype=torch.bool)
    for stream, found in enumerate(chosen):
        for place, (words, first, last, joined) in enumerate(found):
            joined_BE[stream, place] = joined
            rows[stream * count + place] = torch.tensor([WHOLE, *words, END])
            near_BEK[stream, place, first:last] = True
    near_BEK |= ~near_BEK.any(2, keepdim=True)  # where there is no text; a row of nothing would be NaN
    text_RN = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)
    return Whole(text_RN.unflatten(0, (B, count)), near_BEK, joined_BE)


def _texts(written_KS: Tensor, rng: torch.Generator) -> list[tuple[list[int], int, int, bool]]:
    """Words, first unit of the sound, the first one behind it, and whether they are several texts."""
    found, words, units, ended, joined = [], [], [], -1, False
    for unit, slots in enumerate(written_KS.tolist()):
        for token in slots:
            if token > END:
                words.append(token)
                units.append(unit)
            elif token == END:
                if words and (ended >= 0 or units[0] >= BEFORE):
                    found.append((*_stretch(words, units, ended, unit, len(written_KS), rng), joined))
                    joined = float(torch.rand((), generator=rng)) < JOINED
                    if joined:
                        continue
                words, units, ended, joined = [], [], unit, False
    return found


def _stretch(
    words: list[int], units: list[int], ended: int, end: int, K: int, rng: torch.Generator
) -> tuple[list[int], int, int]:
    """Some sound around a text which is written in `units` and ends in unit `end`, the one before it in `ended`."""
    before, after, cut, chance = torch.rand(4, generator=rng).tolist()
    earliest = max(units[0] - BEFORE, ended - ENDED_LATE + 1, 0)
    first = earliest + int(before * max(0, units[0] - NEAR - earliest + 1))
    if chance >= CUT:
        return words[:], first, min(K, end - ENDED_LATE + 1 + int(after * AFTER))
    upto = units[int(cut * len(units))]  # what is written in this unit and before was heard two units before
    return [word for word, unit in zip(words, units, strict=True) if unit <= upto], first, upto - ENDED_LATE + 1
