"""From a visitor's tracks to units: what arrived by the server's clock, cut every 160 ms.

`AudioInput`  any audio frames -> 24 kHz mono samples, 3 840 at a time
`VideoInput`  pictures -> the four that were on at the unit's four ticks; `fit` is the size that they have
`Uplink`      both of them and typed text -> `UserUnit`

A device that sends nothing is off: its part of the unit is None, never a stale picture and never a wait.
"""

from collections import deque
from fractions import Fraction

import av
import numpy as np

from wan_streamer.data.pictures import one_size
from wan_streamer.data.sound import Mono
from wan_streamer.errors import ServingError
from wan_streamer.units import FPS, FRAMES_PER_UNIT, SAMPLE_RATE, SAMPLES_PER_UNIT, UserUnit

MAX_HEIGHT, MAX_WIDTH = 192, 336  # pictures are fitted into this before they travel to the model
AUDIO_OFF_S = 0.3
VIDEO_OFF_S = 1.0
KEEP_VIDEO_S = 1.5  # units may be cut this late and still find their pictures
MAX_GAP_S = 0.5  # a hole in the stream up to this long is filled with silence, so that time does not shrink
SLACK_UNITS = 12  # the queue's minimum over this many units (2 s) is what jitter never needed
KEEP_SLACK = SAMPLE_RATE // 100  # 10 ms
MAX_TEXTS = 8  # typed messages that wait for their unit; one is taken every 160 ms


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
        self._mono = Mono()
        self._slack: deque[int] = deque(maxlen=SLACK_UNITS)
        self._running = False

    def push(self, frame: av.AudioFrame, now: float) -> None:
        """One decoded frame. now: its arrival, `time.monotonic()` seconds."""
        self._fill_gap(frame)
        self._last_arrival = now
        self._append(self._mono(frame))

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

    def catch_up(self) -> None:
        """After a stall: keep the newest unit only, so that what was missed does not delay all that follows."""
        missed = max(0, self._available - SAMPLES_PER_UNIT)
        self._pop(missed)
        self.trimmed += missed

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
    """Keeps the pictures of the last units with their arrival times."""

    def __init__(self) -> None:
        self._pictures: deque[tuple[float, np.ndarray]] = deque()

    def push(self, picture: np.ndarray, now: float) -> None:
        """One picture, uint8 [H, W, 3]. now: its arrival, `time.monotonic()` seconds."""
        self._pictures.append((now, picture))
        while self._pictures[0][0] < now - KEEP_VIDEO_S:  # by time, not by number: cameras differ in their rate
            self._pictures.popleft()

    def close(self) -> None:
        """The camera was switched off."""
        self._pictures.clear()

    def take(self, now: float) -> np.ndarray | None:
        """uint8 [4, H, W, 3]: the four ticks of the 160 ms that end now, or None if the camera is off.

        A tick shows the newest picture that had arrived; the first picture also stands for ticks before it.
        """
        pictures = list(self._pictures)
        if not pictures or now - pictures[-1][0] > VIDEO_OFF_S:
            self._pictures.clear()
            return None
        ticks = [now - (FRAMES_PER_UNIT - 1 - i) / FPS for i in range(FRAMES_PER_UNIT)]
        picked = [next((p for t, p in reversed(pictures) if t <= tick), pictures[0][1]) for tick in ticks]
        while len(self._pictures) > 1 and self._pictures[1][0] <= now:
            self._pictures.popleft()
        return one_size(picked)


def fit(height: float, width: float) -> tuple[int, int]:
    """The size inside 192x336 with the same shape, even numbers, never enlarged."""
    scale = min(1.0, MAX_HEIGHT / height, MAX_WIDTH / width)
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)


class Uplink:
    """One visitor's input, fed by the event loop.

    muted  devices ("microphone", "camera") that are off for the model although they send
    """

    def __init__(self) -> None:
        self.audio = AudioInput()
        self.video = VideoInput()
        self.muted: set[str] = set()
        self._texts: deque[str] = deque()

    def push_text(self, text: str) -> None:
        """Raises `ServingError` when too many wait already."""
        if len(self._texts) >= MAX_TEXTS:
            raise ServingError(f"typed text: {MAX_TEXTS} messages are waiting; try again in a moment")
        self._texts.append(text)

    def take(self, now: float) -> UserUnit:
        """The unit that ends now. One typed message goes into one unit, in order."""
        text = self._texts.popleft() if self._texts else ""
        audio, video = self.audio.take(now), self.video.take(now)  # muted ones too: nothing old may come after
        return UserUnit(
            audio=None if "microphone" in self.muted else audio,
            video=None if "camera" in self.muted else video,
            text=text,
        )

    def catch_up(self) -> None:
        """Units were skipped: so is the sound that belongs to them. Pictures are taken by their time anyway."""
        self.audio.catch_up()

    def discard(self, now: float) -> None:
        """Drop the media of the unit that ends now; typed text stays for a later unit."""
        self.audio.take(now)
        self.video.take(now)
