"""What is shown and heard when there is nothing new: the last picture rests, the sound fades, and fades in again."""

from typing import Any

import numpy as np

from wan_streamer.units import FRAMES_PER_UNIT, SAMPLE_RATE, SAMPLES_PER_UNIT, AgentUnit

FADE = SAMPLE_RATE // 100  # 10 ms: the sound goes to silence and comes back without a click


class Still:
    """Follows the units of a session. frame_size  height and width, for a still before there is any picture"""

    def __init__(self, frame_size: tuple[int, int]) -> None:
        self._frame = np.zeros((*frame_size, 3), np.uint8)  # the last one shown
        self._sample = np.float32(0)  # the last one heard
        self._silent = False

    def follow(self, unit: AgentUnit) -> None:
        """`unit` went out."""
        self._frame, self._sample = unit.video[-1], unit.audio[-1]

    def unit(self, index: int, **others: Any) -> AgentUnit:
        """A still in place of unit `index`; `others` are fields of `AgentUnit`."""
        audio = np.zeros(SAMPLES_PER_UNIT, np.float32)
        audio[:FADE] = self._sample * (0.5 + 0.5 * np.cos(np.linspace(0, np.pi, FADE, dtype=np.float32)))
        self._silent = True
        return AgentUnit(index, audio, np.repeat(self._frame[None], FRAMES_PER_UNIT, axis=0), **others)

    def fade_in(self, audio_T: np.ndarray) -> np.ndarray:
        """The sound of a unit that is none; faded in after a still."""
        if self._silent:
            self._silent, audio_T = False, audio_T.copy()
            audio_T[:FADE] *= np.linspace(0, 1, FADE, dtype=np.float32)
        return audio_T
