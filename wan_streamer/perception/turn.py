"""A turn of the user, read as a whole once the agent may answer it.

`Turn`     where the latest turn stands in the sound, and what it was found to be
`may_be`   whether a text is long enough

What is written down as it comes cannot wait for what would make a word clear. When a turn may be over all of it has
been heard, so it is read once more (`perception/reading.py`, `again.py`). What was said before a pause is read when the
next word comes: a reader ends where a sentence may end.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_streamer.codecs.text import END
from wan_streamer.perception.reading import ENDED_LATE

BEFORE = 8  # units of sound before the one in which the first word is written
PACE = 1.2  # tokens in a unit of sound
SURE = 3.0  # how much likelier than what the agent has written another text has to be, as a logarithm, to count
LEAST = 0.65  # tokens of it for one that is written: a reader that ends with a sentence has not heard the rest
SPARE = 6  # tokens more, at most
APART = 5  # units from one word to the next that are a pause
AFTER = 2  # units of sound behind the last word before a pause


@dataclass(frozen=True)
class Turn:
    """since  units since the turn before it ended, or the session began
    age_N    units since each of its words was written, that one included;   written_N  those words
    closed   how many of them stand before its last pause;   earlier_N  what was said there, as it was found to be
    found_N  what was said behind it, as it was found to be the last time, token by token
    best_N   the best of what that may have been, then
    """

    since: int
    age_N: Tensor
    written_N: Tensor
    closed: int
    earlier_N: Tensor
    found_N: Tensor
    best_N: Tensor

    def later(self) -> "Turn":
        """One unit later."""
        return replace(self, since=self.since + 1, age_N=self.age_N + 1)

    def written(self, token: int) -> "Turn":
        """A token stands in the transcript."""
        if token == END:
            return no_turn(self.written_N.device)
        if token < END:
            return self
        return replace(
            self, age_N=F.pad(self.age_N, (0, 1), value=1), written_N=F.pad(self.written_N, (0, 1), value=token)
        )

    @property
    def behind(self) -> Tensor:
        """What is written behind the last pause."""
        return self.written_N[self.closed :]

    @property
    def pauses(self) -> bool:
        """Whether the last word came after a pause."""
        return len(self.behind) > 1 and int(self.age_N[-2] - self.age_N[-1]) >= APART

    def units(self, known: int, most: int) -> int:
        """How many of the latest units hold what is said behind the last pause, of so many that are known, `most` at
        any time; 0: it is longer.
        """
        since = int(self.age_N[self.closed - 1]) - 1 if self.closed else self.since
        begun = int(self.age_N[self.closed]) if len(self.behind) else 1
        units = min(since + ENDED_LATE, begun + BEFORE)
        return 0 if units > most else min(units, known)

    def unheard(self) -> int:
        """How many of the latest units come after what was said before a pause, behind which the last word stands."""
        return max(0, int(self.age_N[-2]) + ENDED_LATE - AFTER - 1)

    def broken(self, text_N: Tensor) -> "Turn":
        """What was said before the pause was this; the last word is the first behind it."""
        earlier_N, nothing = torch.cat([self.earlier_N, text_N]), text_N[:0]
        return replace(self, closed=len(self.written_N) - 1, earlier_N=earlier_N, found_N=nothing, best_N=nothing)


def may_be(text_N: Tensor, written_N: Tensor) -> bool:
    """Whether a text is long enough to be all of what is written."""
    return len(text_N) >= max(1, LEAST * len(written_N))


def no_turn(device: torch.device) -> Turn:
    """Nothing is said yet."""
    nothing = torch.empty(0, dtype=torch.long, device=device)
    return Turn(0, nothing, nothing, 0, nothing, nothing, nothing)


def longest(units: int) -> int:
    """Tokens of a text in so much sound, at most: one that runs longer has lost its way."""
    return int(PACE * units) + SPARE
