"""Where rows are in what they are to say, however late or early: what each has to choose next.

`Place`   of R rows

Told the sound of the moment, a voice that is late learns to leave sounds out. Told the next one, it learns to hurry.
(A dynamic oracle: Goldberg & Nivre 2012.)
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LATEST = 3  # sounds; who is later leaves some out


class Place:
    """sounds_RT  int64 [R, T]: the true sound of every tick;   first  the tick in which the rows begin to choose

    Until then they have said what is true.
    """

    def __init__(self, sounds_RT: Tensor, first: int) -> None:
        self.number_RT = F.pad(sounds_RT[:, 1:] != sounds_RT[:, :-1], (1, 0)).long().cumsum(1)  # of the sound of a tick
        self.each_RS = torch.zeros_like(sounds_RT).scatter(1, self.number_RT, sounds_RT)
        self.said_R = self.number_RT[:, first - 1]

    def due(self, tick: int) -> Tensor:
        """[R]: the next sound where the row is late, else what it says already."""
        now_R = self.number_RT[:, tick]
        self.said_R = torch.maximum(self.said_R, torch.where(now_R - self.said_R > LATEST, now_R - 1, 0))
        return self._sound(self.said_R + (self.said_R < now_R).long())

    def says(self, sounds_R: Tensor) -> None:
        """What the rows have chosen: the same sound still, the next or the one behind it; any other leads nowhere."""
        same_R, next_R, then_R = (sounds_R == self._sound(self.said_R + steps) for steps in range(3))
        steps_R = torch.where(same_R, 0, torch.where(next_R, 1, torch.where(then_R, 2, 0)))
        self.said_R = torch.minimum(self.said_R + steps_R, self.number_RT[:, -1])

    def _sound(self, number_R: Tensor) -> Tensor:
        return self.each_RS.gather(1, torch.minimum(number_R, self.number_RT[:, -1])[:, None])[:, 0]
