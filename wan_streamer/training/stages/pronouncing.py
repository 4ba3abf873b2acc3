"""Which sound of speech is due: what the Transformer is asked beside the sound itself while it learns to speak.

Most of the error of the flow is noise that nothing foretells, and what the words decide is a small part of it. A second
question has only that part: at the tokens from which a unit of sound is drawn, which phoneme is said in each tick (a
second target next to the acoustic one, as in multi-task learning of speech synthesis, Wu et al. 2015). Nothing of it is
kept in a checkpoint.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_streamer.training.examples.sounds import QUIET, SOUNDS, UNKNOWN

QUIET_WEIGHT = 0.2  # of ticks in which nothing is said


class Pronouncing(nn.Module):
    """Reads hidden states [B, K, 4, D] of the sound's noisy tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, SOUNDS)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, hidden_BKTD: Tensor, sound_BKT: Tensor, counts_BK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Errors and weights [B, K, 4], and the share of spoken ticks that are right; what is unknown has no weight."""
        logits_BKTC = self.out(hidden_BKTD).float()
        target_BKT = sound_BKT.clamp(min=QUIET)
        error_BKT = F.cross_entropy(logits_BKTC.movedim(-1, 1), target_BKT, reduction="none")
        weight_BKT = torch.where(sound_BKT > QUIET, 1.0, QUIET_WEIGHT) * (sound_BKT != UNKNOWN) * counts_BK[..., None]
        spoken_BKT = (sound_BKT > QUIET) & (weight_BKT > 0)
        right = ((logits_BKTC.argmax(-1) == target_BKT) & spoken_BKT).sum() / spoken_BKT.sum()
        return error_BKT, weight_BKT, right


@contextlib.contextmanager
def drawn_from(audio_out: nn.Module) -> Iterator[list[Tensor]]:
    """What `Streamer.audio_out` reads inside, of every pass."""
    read: list[Tensor] = []
    handle = audio_out.register_forward_pre_hook(lambda module, given: read.append(given[0]))
    try:
        yield read
    finally:
        handle.remove()
