"""A turn of the user, read as a whole once the agent may answer it.

`Turn`  where the latest turn stands in the sound, and what it was found to be

What is written down as it comes cannot wait for what would make a word clear. When a turn may be over all of it has
been heard, so it is read once more (`perception/reading.py`, `again.py`).
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


@dataclass(frozen=True)
class Turn:
    """since  units since the turn before it ended, or the session began
    begun    units since its first word was written, that one included; 0: none is
    written_N  what is written of it;   found_N  what it was found to be the last time, token by token
    best_N   the best of what it may have been, then
    """

    since: int
    begun: int
    written_N: Tensor
    found_N: Tensor
    best_N: Tensor

    def later(self) -> "Turn":
        """One unit later."""
        return replace(self, since=self.since + 1, begun=self.begun + (self.begun > 0))

    def written(self, token: int) -> "Turn":
        """A token stands in the transcript."""
        if token == END:
            return no_turn(self.found_N.device)
        if token < END:
            return self
        return replace(self, begun=max(1, self.begun), written_N=F.pad(self.written_N, (0, 1), value=token))

    def units(self, known: int, most: int) -> int:
        """How many of the latest units hold it, of so many that are known, `most` at any time; 0: it is longer."""
        units = min(self.since + ENDED_LATE, max(1, self.begun) + BEFORE)
        return 0 if units > most else min(units, known)

    def may_be(self, text_N: Tensor) -> bool:
        """Whether a text is long enough to be all of it."""
        return len(text_N) >= max(1, LEAST * len(self.written_N))


def no_turn(device: torch.device) -> Turn:
    """Nothing is said yet."""
    nothing = torch.empty(0, dtype=torch.long, device=device)
    return Turn(0, 0, nothing, nothing, nothing)


def longest(units: int) -> int:
    """Tokens of a text in so much sound, at most: one that runs longer has lost its way."""
    return int(PACE * units) + SPARE
