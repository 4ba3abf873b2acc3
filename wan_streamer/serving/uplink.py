"""From a visitor's tracks to units: what arrived by the server's clock, cut every 160 ms.

`AudioInput`  any audio frames -> 24 kHz mono samples, 3 840 at a time
`VideoInput`  any video frames -> the four pictures that were on at the unit's four ticks
`Uplink`      both of them and typed text -> `UserUnit`

A device that sends nothing is off: its part of the unit is None, never a stale picture and never a wait.
"""

from collections import deque
from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np

from wan_streamer.units import FPS, FRAMES_PER_UNIT, SAMPLE_RATE, SAMPLES_PER_UNIT, UserUnit

MAX_HEIGHT, MAX_WIDTH = 192, 336  # pictures are fitted into this before they travel to the model
AUDIO_OFF_S = 0.3
VIDEO_OFF_S = 1.0
MAX_GAP_S = 0.5  # a hole in the stream up to this long is filled with silence, so that time does not shrink
SLACK_UNITS = 12  # the queue's minimum over this many units (2 s) is what jitter never needed
KEEP_SLACK = SAMPLE_RATE // 100  # 10 ms


class AudioInput:
    """A queue that stays short: silence fills what came late, what jitter never needed is dropped.

    underruns  units that had to be padded
    trimmed    samples dropped because the visitor's clock runs fast or a burst arrived
    """

    def __init__(self) -> None:
        self.underruns = 0
        self.trimmed = 0
        self._chunks: deque[np.ndarray] = deque()
        self._available = 0
        self._last_arrival = -1e9
        self._next_pts: int | None = None
        self._resampler: av.AudioResampler | None = None
        self._slack: deque[int] = deque(maxlen=SLACK_UNITS)
        self._running = False

    def push(self, frame: av.AudioFrame, now: float) -> None:
        """One decoded frame. now: its arrival, `time.monotonic()` seconds."""
        self._fill_gap(frame)
        self._last_arrival = now
        if self._resampler is None:
            self._resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        frame.pts = None  # the resampler must not invent or drop samples: holes are filled above
        for out in self._resampler.resample(frame):
            self._append(out.to_ndarray().reshape(-1))

    def take(self, now: float) -> np.ndarray | None:
        """The next unit of samples, float32 [3840], or None if the microphone is off."""
        if self._available == 0 and now - self._last_arrival > AUDIO_OFF_S:
            self._running = False
            self._slack.clear()
            return None
        audio = self._pop(min(self._available, SAMPLES_PER_UNIT))
        missing = SAMPLES_PER_UNIT - len(audio)
        if missing:
            self.underruns += self._running
            pad = np.zeros(missing, np.float32)
            audio = np.concatenate([audio, pad] if self._running else [pad, audio])
        self._running = True
        self._trim()
        return np.clip(audio, -1.0, 1.0)

    def _fill_gap(self, frame: av.AudioFrame) -> None:
        if frame.pts is None or frame.sample_rate == 0:
            return
        if self._next_pts is not None:
            gap_s = (frame.pts - self._next_pts) * float(frame.time_base or Fraction(1, frame.sample_rate))
            if 0 < gap_s <= MAX_GAP_S:
                self._append(np.zeros(round(gap_s * SAMPLE_RATE), np.float32))
        self._next_pts = frame.pts + frame.samples

    def _append(self, samples: np.ndarray) -> None:
        self._chunks.append(samples.astype(np.float32, copy=False))
        self._available += len(samples)

    def _pop(self, count: int) -> np.ndarray:
        parts, left = [], count
        while left:
            chunk = self._chunks.popleft()
            if len(chunk) > left:
                self._chunks.appendleft(chunk[left:])
                chunk = chunk[:left]
            parts.append(chunk)
            left -= len(chunk)
        self._available -= count
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _trim(self) -> None:
        self._slack.append(self._available)
        excess = min(self._slack) - KEEP_SLACK
        if len(self._slack) == SLACK_UNITS and excess > KEEP_SLACK:
            self._pop(excess)
            self.trimmed += excess
            self._slack.clear()


class VideoInput:
    """Keeps the pictures of the last unit with their arrival times; converts only those that are used."""

    def __init__(self) -> None:
        self._frames: deque[tuple[float, av.VideoFrame]] = deque(maxlen=64)

    def push(self, frame: av.VideoFrame, now: float) -> None:
        self._frames.append((now, frame))

    def close(self) -> None:
        """The camera was switched off."""
        self._frames.clear()

    def pick(self, now: float) -> list[av.VideoFrame] | None:
        """The pictures of the four ticks of the 160 ms that end now, or None if the camera is off.

        A tick shows the newest picture that had arrived; the first picture also stands for ticks before it.
        """
        frames = list(self._frames)
        if not frames or now - frames[-1][0] > VIDEO_OFF_S:
            self._frames.clear()
            return None
        ticks = [now - (FRAMES_PER_UNIT - 1 - i) / FPS for i in range(FRAMES_PER_UNIT)]
        picked = [next((f for t, f in reversed(frames) if t <= tick), frames[0][1]) for tick in ticks]
        while len(self._frames) > 1 and self._frames[1][0] <= now:
            self._frames.popleft()
        return picked


def to_pictures(frames: list[av.VideoFrame]) -> np.ndarray:
    """uint8 [T, H, W, 3]: RGB, fitted into the model's size."""
    height, width = fit(frames[-1].height, frames[-1].width)
    pictures: dict[int, np.ndarray] = {}
    for frame in frames:
        if id(frame) not in pictures:
            pictures[id(frame)] = frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.stack([pictures[id(frame)] for frame in frames])


def fit(height: int, width: int) -> tuple[int, int]:
    """The size inside 192x336 with the same shape, even numbers, never enlarged."""
    scale = min(1.0, MAX_HEIGHT / height, MAX_WIDTH / width)
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)


class Uplink:
    """One visitor's input, fed by the event loop."""

    def __init__(self) -> None:
        self.audio = AudioInput()
        self.video = VideoInput()
        self._texts: deque[str] = deque()

    def push_text(self, text: str) -> None:
        self._texts.append(text)

    def cut(self, now: float) -> Callable[[], UserUnit]:
        """Take what belongs to the unit that ends now. The returned function converts it and may run in a thread.

        One typed message goes into one unit, in order.
        """
        text = self._texts.popleft() if self._texts else ""
        audio, frames = self.audio.take(now), self.video.pick(now)
        return lambda: UserUnit(audio=audio, video=None if frames is None else to_pictures(frames), text=text)

    def discard(self, now: float) -> None:
        """Drop the media of the unit that ends now; typed text stays for a later unit."""
        self.audio.take(now)
        self.video.pick(now)
