"""From the agent's units to a visitor's tracks: one queue, one clock, audio and video together.

`Upsampler`     24 kHz -> 48 kHz, `(x, state) -> y` with the state in the object, 480 samples in, 960 out
`Playout`       a queue of 20 ms slices (480 samples, every second one with a picture) and the pacer that plays them
`AgentAudio`, `AgentVideo`  the two aiortc tracks that the pacer feeds

aiortc sends a frame the moment `recv` returns it, so the pacer is the clock: every 20 ms one audio frame, every 40 ms a
picture. A late unit is bridged by silence and the last picture; the delay this adds is taken back later.
"""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, replace
from fractions import Fraction

import av
import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError

from wan_streamer.units import SAMPLE_RATE, SAMPLES_PER_FRAME, SAMPLES_PER_UNIT, AgentUnit, UserUnit

STEP_MS = 20  # one Opus frame
STEP_S = STEP_MS / 1000
STEP_SAMPLES = SAMPLE_RATE * STEP_MS // 1000
STEPS_PER_FRAME = SAMPLES_PER_FRAME // STEP_SAMPLES
OUT_RATE = 48_000
OUT_SAMPLES = OUT_RATE * STEP_MS // 1000
VIDEO_CLOCK = 90_000
FADE = STEP_SAMPLES // 4  # 5 ms: no click where silence begins or ends
SLACK_UNITS = 24  # about 4 s
GAP_MEMORY_STEPS = 1500  # 30 s
MAX_MARGIN_STEPS = 4
QUIET = 0.01  # RMS below which a slice can be dropped unheard
RESYNC_S = 0.5  # a pacer this late (machine asleep) leaves the time out instead of a burst


class Upsampler:
    """Doubles the rate with a 31-tap half-band filter; adds 7.5 samples (0.3 ms at 24 kHz) of delay."""

    TAPS = 31

    def __init__(self) -> None:
        n = np.arange(self.TAPS) - self.TAPS // 2
        self._kernel = (np.sinc(n / 2) * np.hamming(self.TAPS)).astype(np.float32)
        self._tail = np.zeros(self.TAPS - 1, np.float32)

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        stuffed = np.zeros(2 * len(samples), np.float32)
        stuffed[::2] = samples
        padded = np.concatenate([self._tail, stuffed])
        self._tail = padded[-(self.TAPS - 1) :]
        return np.convolve(padded, self._kernel, mode="valid")


@dataclass(frozen=True, eq=False)
class Slice:
    """20 ms. samples float32 [480] at 24 kHz; picture uint8 [H, W, 3] if one begins here; end_ms where it ends on the
    time line of the units."""

    samples: np.ndarray
    picture: np.ndarray | None
    end_ms: int


class Playout:
    """Plays units in order on its own clock until `close`.

    late      20 ms steps bridged by silence since the first unit
    dropped   20 ms slices dropped to take back delay
    position_ms  end of what was played last, on the time line of the units
    """

    def __init__(self, *, prebuffer_ms: int, max_ms: int) -> None:
        self.late = 0
        self.dropped = 0
        self.position_ms = 0
        self.audio, self.video = AgentAudio(), AgentVideo()
        self._prebuffer_ms, self._max_ms = prebuffer_ms, max_ms
        self._queue: deque[Slice] = deque()
        self._picture: np.ndarray | None = None  # the last one played; no picture is sent before the first
        self._upsample = Upsampler()
        self._step = 0
        self._plays_from: int | None = None  # first step that may play; None until the first unit
        self._picture_step = -(10**9)
        self._gap = True
        self._last_sample = 0.0
        self._slack: deque[float] = deque(maxlen=SLACK_UNITS)
        self._gaps: deque[int] = deque()  # the steps at which an answer was missing

    @property
    def queued_ms(self) -> float:
        """How long a sample that is pushed now waits."""
        return len(self._queue) * STEP_MS

    def push(self, unit: AgentUnit | UserUnit, start_ms: int = 0) -> None:
        """Queue one unit. The first one starts the clock of the answer after the prebuffer.

        unit      without sound it is silent, without picture the last one stays
        start_ms  where it begins on the time line
        """
        if self._plays_from is None:
            self._plays_from = self._step + max(1, round(self._prebuffer_ms / STEP_MS))
        self._slack.append(self.queued_ms)
        audio = np.zeros(SAMPLES_PER_UNIT, np.float32) if unit.audio is None else unit.audio
        for i, samples in enumerate(audio.reshape(-1, STEP_SAMPLES)):
            frame, rest = divmod(i, STEPS_PER_FRAME)
            picture = unit.video[frame] if rest == 0 and unit.video is not None else None
            self._queue.append(Slice(samples, picture, start_ms + (i + 1) * STEP_MS))
        self._take_back()

    def clear(self) -> int:
        """Drop what is queued, and return its ms. The next unit starts the clock anew, after the prebuffer."""
        dropped = len(self._queue)
        self._queue.clear()
        self._slack.clear()
        self._plays_from = None
        return dropped * STEP_MS

    def _take_back(self) -> None:
        """Drop delay that no unit of the last seconds needed: hidden in a pause, or at once when it is far too much."""
        excess = 0.0
        if len(self._slack) == SLACK_UNITS:
            excess = min(self._slack) - self._margin_ms()
        if self.queued_ms > self._max_ms:
            while self.queued_ms > self._max_ms / 2:
                self._drop(0)
        elif excess > 0:
            quiet = (i for i, s in enumerate(self._queue) if float(np.sqrt(np.mean(s.samples**2))) < QUIET)
            if (index := next(quiet, None)) is not None:
                self._drop(index)

    def _margin_ms(self) -> int:
        """What may stay queued: more after each interruption of the last half minute, so that they do not recur."""
        while self._gaps and self._step - self._gaps[0] > GAP_MEMORY_STEPS:
            self._gaps.popleft()
        return max(self._prebuffer_ms, STEP_MS) + STEP_MS * min(len(self._gaps), MAX_MARGIN_STEPS)

    def _drop(self, index: int) -> None:
        """Drop one slice; its picture begins with the next one instead."""
        dropped = self._queue[index]
        del self._queue[index]
        if index < len(self._queue) and self._queue[index].picture is None:
            self._queue[index] = replace(self._queue[index], picture=dropped.picture)
        self.dropped += 1
        self._slack.clear()

    def step(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Advance 20 ms: float32 [960] at 48 kHz, and a picture when one is due."""
        picture: np.ndarray | None = None
        samples: np.ndarray | None = None
        if self._plays_from is not None and self._step >= self._plays_from:
            if self._queue:
                playing = self._queue.popleft()
                samples, picture, self.position_ms = playing.samples, playing.picture, playing.end_ms
                self._picture = self._picture if picture is None else picture
            else:
                self.late += 1
                if not self._gap:
                    self._gaps.append(self._step)
        if samples is None:
            audio = np.zeros(STEP_SAMPLES, np.float32)
            audio[:FADE] = self._last_sample * np.linspace(1, 0, FADE, dtype=np.float32)
            self._gap, self._last_sample = True, 0.0
        else:
            audio = samples
            if self._gap:
                audio = audio.copy()
                audio[:FADE] *= np.linspace(0, 1, FADE, dtype=np.float32)
            self._gap, self._last_sample = False, float(audio[-1])
        if picture is None and self._step - self._picture_step >= STEPS_PER_FRAME:
            picture = self._picture  # keep the stream alive while a unit is late
        if picture is not None:
            self._picture_step = self._step
        self._step += 1
        return self._upsample(audio), picture

    async def run(self) -> None:
        """Pace the tracks until cancelled.

        Times of frames follow the clock, also over what was left out: a browser reckons from them which picture belongs
        to which sound, over the last twenty reports.
        """
        start, left_out = time.monotonic(), 0
        while True:
            behind = time.monotonic() - start - (self._step + left_out) * STEP_S
            if behind > RESYNC_S:
                left_out += round(behind / STEP_S)
            elif behind < 0:
                await asyncio.sleep(-behind)
            pts = self._step + left_out
            samples, picture = self.step()
            self.audio.put(samples, pts * OUT_SAMPLES)
            if picture is not None:
                self.video.put(picture, pts * VIDEO_CLOCK * STEP_MS // 1000)

    def close(self) -> None:
        self.audio.stop()
        self.video.stop()


class _PacedTrack(MediaStreamTrack):
    """Hands out what the pacer put in; keeps little, so that a peer that is not connected yet gets no old media."""

    LIMIT = 3

    def __init__(self) -> None:
        super().__init__()
        self._frames: asyncio.Queue[av.AudioFrame | av.VideoFrame | None] = asyncio.Queue()

    def _offer(self, frame: av.AudioFrame | av.VideoFrame) -> None:
        while self._frames.qsize() >= self.LIMIT:
            self._frames.get_nowait()
        self._frames.put_nowait(frame)

    async def recv(self) -> av.AudioFrame | av.VideoFrame:
        if self.readyState != "live":
            raise MediaStreamError
        frame = await self._frames.get()
        if frame is None:
            raise MediaStreamError
        return frame

    def stop(self) -> None:
        super().stop()
        self._frames.put_nowait(None)


class AgentAudio(_PacedTrack):
    """48 kHz, 20 ms frames, both channels alike: a mono frame would reach the Opus encoder 3 dB quieter."""

    kind = "audio"

    def put(self, samples: np.ndarray, pts: int) -> None:
        pcm = (np.clip(samples, -1, 1) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(np.repeat(pcm, 2)[None], format="s16", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = OUT_RATE, pts, Fraction(1, OUT_RATE)
        self._offer(frame)


class AgentVideo(_PacedTrack):
    """25 fps RGB."""

    kind = "video"

    def put(self, picture: np.ndarray, pts: int) -> None:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.pts, frame.time_base = pts, Fraction(1, VIDEO_CLOCK)
        self._offer(frame)
