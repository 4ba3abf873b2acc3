"""Decoded sound of any format, rate and number of channels -> float32 mono, by `Mono` for films and calls alike."""

import av
import numpy as np

from wan_streamer.units import SAMPLE_RATE


class Mono:
    """A stream of `av.AudioFrame`s to samples at `rate`: channels are averaged; the format may change on the way."""

    def __init__(self, rate: int = SAMPLE_RATE) -> None:
        self._rate = rate
        self._resampler: av.AudioResampler | None = None
        self._shape: tuple = ()

    def __call__(self, frame: av.AudioFrame) -> np.ndarray:
        """Samples that are ready after this frame, float32 [T]. Takes away the frame's timestamp."""
        rest = []
        if (frame.format.name, frame.layout.name, frame.sample_rate) != self._shape:
            rest = [self.finish()]
            # 32-bit integers, not floats: for integers FFmpeg scales the down-mix so that it cannot clip
            self._resampler = av.AudioResampler(format="s32", layout="mono", rate=self._rate)
            self._shape = (frame.format.name, frame.layout.name, frame.sample_rate)
        frame.pts = None  # the resampler must not invent or drop samples: holes are the caller's
        return np.concatenate([*rest, self._resample(frame)])

    def finish(self) -> np.ndarray:
        """What the resampler still holds."""
        return self._resample(None)

    def _resample(self, frame: av.AudioFrame | None) -> np.ndarray:
        parts = [part.to_ndarray()[0] for part in self._resampler.resample(frame)] if self._resampler else []
        return np.concatenate([np.zeros(0, np.int32), *parts]).astype(np.float32) / 2.0**31
