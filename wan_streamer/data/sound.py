"""Sound of any format, rate and number of channels -> float32 mono, for films, calls and arrays alike.

`Mono`        frames that FFmpeg has decoded -> samples
`MonoArrays`  arrays of any length -> samples
`Microphone`  arrays of any length -> units
"""

import av
import numpy as np

from wan_streamer.errors import ShapeError
from wan_streamer.units import SAMPLE_RATE, SAMPLES_PER_UNIT, UserUnit, check_level, to_numpy

MOST_CHANNELS = 8  # more columns than this are samples: the array is turned the wrong way


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


class MonoArrays:
    """A stream of arrays to samples at 24 kHz.

    name   of who takes the arrays, for errors
    rate   samples per second of what comes, 1 000 to 768 000

    An array is float (nominally in [-1, 1]) or int16, [samples] or [samples, channels]; a tensor or a list as well.
    """

    def __init__(self, name: str, rate: int = SAMPLE_RATE) -> None:
        if not (isinstance(rate, int) and 1000 <= rate <= 768_000):
            raise ShapeError(f"{name}: expected a rate of 1000 to 768000 samples per second, got {rate!r}")
        self.rate = rate
        self._name = name
        self._mono = Mono()

    def __call__(self, samples: object) -> np.ndarray:
        """Samples that are ready with these, float32 [T]. Raises `ShapeError`."""
        sound_T = _mono_array(f"{self._name}.push", samples)
        if not len(sound_T):
            return sound_T
        frame = av.AudioFrame.from_ndarray(sound_T[None], format="fltp", layout="mono")
        frame.sample_rate = self.rate
        return self._mono(frame)

    def finish(self) -> np.ndarray:
        """What the resampler still holds."""
        rest, self._mono = self._mono.finish(), Mono()
        return rest


class Microphone:
    """Sound as it comes, in pieces of any length, to units of 160 ms.

    rate   samples per second of what comes, 1 000 to 768 000

    A piece is float (nominally in [-1, 1]) or int16, [samples] or [samples, channels]; an array, a tensor or a list.
    """

    def __init__(self, rate: int = SAMPLE_RATE) -> None:
        self._mono = MonoArrays("Microphone", rate)
        self._rest = np.zeros(0, np.float32)

    def push(self, samples: object) -> list[UserUnit]:
        """The units that are complete with these samples; usually none or one. Raises `ShapeError`."""
        self._rest = np.concatenate([self._rest, self._mono(samples)])
        return self._units()

    def finish(self) -> list[UserUnit]:
        """What is left, with silence up to the end of its unit. The microphone can be used again."""
        rest = np.concatenate([self._rest, self._mono.finish()])
        self._rest = np.pad(rest, (0, -len(rest) % SAMPLES_PER_UNIT))
        return self._units()

    def _units(self) -> list[UserUnit]:
        whole = len(self._rest) // SAMPLES_PER_UNIT * SAMPLES_PER_UNIT
        units, self._rest = self._rest[:whole], self._rest[whole:]
        return [UserUnit(audio=audio.clip(-1, 1)) for audio in units.reshape(-1, SAMPLES_PER_UNIT)]


def _mono_array(where: str, samples: object) -> np.ndarray:
    """float32 [T]: the mean of the channels."""
    array = to_numpy(where, samples)
    if array.ndim == 1:
        array = array[:, None]
    fits = array.ndim == 2 and 1 <= array.shape[1] <= MOST_CHANNELS
    if not fits or not (array.dtype.kind == "f" or array.dtype == np.int16):
        raise ShapeError(
            f"{where}: expected float or int16, [samples] or [samples, up to {MOST_CHANNELS} channels],"
            f" got {array.dtype.name} {list(array.shape)}"
        )
    sound_T = array.mean(axis=1, dtype=np.float32) / (32768 if array.dtype == np.int16 else 1)
    return check_level(where, sound_T)
