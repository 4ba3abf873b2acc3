"""The film of a conversation: the user on the left, the agent on the right, both voices, subtitles.

`ReplyWriter`   writes it unit by unit on a thread of its own
`FilmEncoder`   pictures and sound into an open container
`both_voices`   mono of both sides -> stereo
`SpeechLevel`   how loud somebody speaks
`fill`          crops and scales a picture so that it fills a frame
"""

import contextlib
import math
import os
import queue
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.stream import Stream
from av.video.stream import VideoStream

from wan_streamer.data.captions import LONGEST, to_cues, to_lines
from wan_streamer.errors import MediaError
from wan_streamer.units import FPS, FRAMES_PER_UNIT, SAMPLE_RATE, SAMPLES_PER_UNIT, UNIT_MS, AgentUnit, UserUnit

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
CAMERA_OFF = 24  # grey value of the user's half when there is no camera
SUBTITLES = ("mp4", "mov")  # the formats that find them wherever they are in the file
PAN = math.radians(25)  # a voice is a little on its side: constant power, 0 is one ear only and 45 degrees the middle
NEAR, FAR = (f(PAN) / (math.cos(PAN) + math.sin(PAN)) for f in (math.cos, math.sin))  # the sum never clips
HOP = SAMPLE_RATE // 50  # 20 ms
SILENT_DB, QUIETEST_DB = -90, -55  # digital silence; what is less loud than this is no speech
ABOVE_DB, BELOW_DB = 9, 12  # speech is so much above the noise, and at most so much below its own mean
ENOUGH_HOPS = 10  # 0.2 s of speech say how loud somebody is
GAIN = (0.25, 4.0)  # the agent gets at most 12 dB less or more
QUEUE_UNITS = 64  # about ten seconds: the encoder is far faster than real time, this only takes up stalls


def fill(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [T, H, W, 3] of any size -> uint8 [T, height, width, 3]: the middle, cropped to the wanted aspect."""
    _, have_h, have_w, _ = frames.shape
    crop_w = min(have_w, max(1, round(have_h * width / height)))
    crop_h = min(have_h, max(1, round(have_w * height / width)))
    top, left = (have_h - crop_h) // 2, (have_w - crop_w) // 2
    middle = np.ascontiguousarray(frames[:, top : top + crop_h, left : left + crop_w])
    if (crop_h, crop_w) == (height, width):
        return middle
    pictures = [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in middle]
    return np.stack([frame.reformat(width=width, height=height).to_ndarray() for frame in pictures])


def both_voices(user_T: np.ndarray, agent_T: np.ndarray) -> np.ndarray:
    """float32 [T] of the user and of the agent -> float32 [2, T], each nearer to its side."""
    stereo_CT = np.stack([NEAR * user_T + FAR * agent_T, FAR * user_T + NEAR * agent_T])
    return np.clip(stereo_CT, -1, 1).astype(np.float32)


class SpeechLevel:
    """How loud somebody speaks, from all that was heard so far, in constant memory. Steady noise is no speech."""

    def __init__(self) -> None:
        self._hops = np.zeros(1 - SILENT_DB, int)  # how many hops had SILENT_DB, one dB more, ..., 0 dB
        self.peak = 0.0

    def add(self, audio_T: np.ndarray) -> None:
        """float32 [T], whole hops."""
        power = np.square(audio_T.reshape(-1, HOP)).mean(axis=1)
        level_dB = np.round(10 * np.log10(power + 1e-12)).clip(SILENT_DB, 0).astype(int)
        self._hops += np.bincount(level_dB - SILENT_DB, minlength=len(self._hops))
        self.peak = max(self.peak, float(np.abs(audio_T).max()))

    @property
    def rms(self) -> float | None:
        """Of what is speech; None as long as too little is known."""
        level_dB = SILENT_DB + np.arange(len(self._hops))
        noise_dB = level_dB[np.searchsorted(self._hops.cumsum(), 0.1 * self._hops.sum())]
        hops = np.where(level_dB > max(noise_dB + ABOVE_DB, QUIETEST_DB), self._hops, 0)
        if hops.sum() < ENOUGH_HOPS:
            return None
        power = 10 ** (level_dB / 10)
        mean_dB = 10 * np.log10((hops * power).sum() / hops.sum())
        hops = np.where(level_dB > mean_dB - BELOW_DB, hops, 0)  # without the fringes of the words
        return math.sqrt((hops * power).sum() / hops.sum())


class _Match:
    """Makes the agent as loud as the user: a gain that follows what both have said so far, gliding over a unit."""

    def __init__(self) -> None:
        self._user, self._agent = SpeechLevel(), SpeechLevel()
        self._gain = 1.0

    def __call__(self, user_T: np.ndarray, agent_T: np.ndarray) -> np.ndarray:
        """float32 [3840] of both sides -> that of the agent with its gain, within [-1, 1]."""
        self._user.add(user_T)
        self._agent.add(agent_T)
        heard, said, before = self._user.rms, self._agent.rms, self._gain
        if heard is not None and said is not None:
            self._gain = min(max(heard / said, GAIN[0]), GAIN[1], 1 / max(self._agent.peak, 1e-6))
        return np.clip(agent_T * np.linspace(before, self._gain, len(agent_T), dtype=np.float32), -1, 1)


class FilmEncoder:
    """H.264 at 25 fps and AAC stereo at 24 kHz, into an open container. `options` are those of x264."""

    def __init__(self, container: OutputContainer, options: dict[str, str], bit_rate: int | None = None) -> None:
        self._container = container
        # PyAV's default number of threads costs more than the encoding
        self._video: VideoStream = container.add_stream("libx264", rate=FPS, options=options | {"threads": "1"})
        self._video.pix_fmt, self._video.codec_context.time_base = "yuv420p", Fraction(1, FPS)
        self._audio: AudioStream = container.add_stream("aac", rate=SAMPLE_RATE, layout="stereo")
        if bit_rate is not None:
            self._audio.bit_rate = bit_rate
        self._frames = self._samples = 0

    def picture(self, image_HWC: np.ndarray) -> None:
        """The next one, uint8 [H, W, 3]; all have the size of the first."""
        if self._frames == 0:
            self._video.height, self._video.width = image_HWC.shape[:2]
        frame = av.VideoFrame.from_ndarray(image_HWC, format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = self._frames, Fraction(1, FPS)
        self._container.mux(self._video.encode(frame))
        self._frames += 1

    def sound(self, stereo_CT: np.ndarray) -> None:
        """The next samples, float32 [2, T]. The first picture comes before them."""
        sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(stereo_CT), format="fltp", layout="stereo")
        sound.sample_rate, sound.pts, sound.time_base = SAMPLE_RATE, self._samples, Fraction(1, SAMPLE_RATE)
        self._container.mux(self._audio.encode(sound))
        self._samples += stereo_CT.shape[1]

    def finish(self) -> None:
        """Encode what the codecs hold back; the container stays open."""
        self._container.mux(self._video.encode(None))
        self._container.mux(self._audio.encode(None))


class ReplyWriter(contextlib.AbstractContextManager["ReplyWriter"]):
    """H.264 at 25 fps, 2 x `width` by `height`, and AAC stereo at 24 kHz.

    Unit k of the user and unit k of the agent share the place k x 160 ms, so the film is as long as the input. The
    agent is as loud as the user. What it says and what it heard are subtitles (not in .mkv).
    The file appears under its name when it is complete: until then it is written beside it under a hidden name.

    path            .mp4, .m4v, .mov or .mkv
    height, width   of each half; `WanStreamer.frame_size` has those of an agent

    As a context manager it is closed at the end, or leaves no file after an error.
    Raises MediaError if the place cannot be written or the encoder fails (from `write` or `close`).
    """

    def __init__(self, path: str | Path, height: int, width: int) -> None:
        self.path, self.height, self.width = Path(path), height, width
        check_film_path(self.path)
        self._part = self.path.with_name(f".{self.path.stem}.{os.getpid()}.part{self.path.suffix}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._container: OutputContainer = av.open(
                f"file:{self._part}", "w", format=FORMATS[self.path.suffix.lower()], options={"movflags": "+faststart"}
            )
        except (av.error.FFmpegError, OSError) as error:
            raise MediaError(f"{self.path}: cannot be written ({getattr(error, 'strerror', error)})") from error
        self._film = FilmEncoder(self._container, {"preset": "superfast", "crf": "20"}, 128_000)
        self._subtitles: Stream | None = None
        if FORMATS[self.path.suffix.lower()] in SUBTITLES:
            self._subtitles = self._container.add_mux_stream("mov_text")
            self._subtitles.time_base = Fraction(1, 1000)
        self._match = _Match()
        self._words: list[dict] = []
        self.units = 0  # encoded so far
        self._error: BaseException | None = None
        self._queue: queue.Queue[tuple[UserUnit, AgentUnit] | None] = queue.Queue(QUEUE_UNITS)
        self._thread = threading.Thread(target=self._run, name="film", daemon=True)
        self._thread.start()

    def write(self, user: UserUnit, agent: AgentUnit) -> None:
        """Hand over the next unit; returns at once."""
        self._raise()
        self._queue.put((user, agent))

    def close(self) -> None:
        """Encode what is waiting, finish the file and give it its name. A film without a unit leaves no file."""
        self._queue.put(None)
        self._thread.join()
        try:
            self._raise()
            if self.units == 0:
                self._part.unlink(missing_ok=True)
            else:
                os.replace(self._part, self.path)
        except OSError as error:
            raise MediaError(f"{self.path}: cannot be written ({error.strerror})") from error

    def abort(self) -> None:
        """Stop and leave no file."""
        self._queue.put(None)
        self._thread.join()
        self._part.unlink(missing_ok=True)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _raise(self) -> None:
        if self._error is not None:
            self._part.unlink(missing_ok=True)
            reason = getattr(self._error, "strerror", None) or self._error
            raise MediaError(f"{self.path}: the film cannot be written ({reason})") from self._error

    def _run(self) -> None:
        """Encode until the queue says None. After an error the rest is taken and thrown away, so `put` never hangs."""
        while (item := self._queue.get()) is not None:
            self._guard(lambda item=item: self._encode(*item))  # type: ignore[misc]
        self._guard(self._finish)
        with contextlib.suppress(av.error.FFmpegError, OSError, ValueError):
            self._container.close()

    def _guard(self, action: Callable[[], None]) -> None:
        if self._error is None:
            try:
                action()
            except Exception as error:
                self._error = error

    def _finish(self) -> None:
        if self.units:
            self._film.finish()
            self._caption()
            self._container.close()

    def _caption(self) -> None:
        if self._subtitles is None:
            return
        for begin, end, text in to_cues(to_lines(self._words, LONGEST), self.units):
            data = text.encode(errors="replace")
            packet = av.Packet(len(data).to_bytes(2, "big") + data)
            packet.stream, packet.time_base = self._subtitles, Fraction(1, 1000)
            packet.pts = packet.dts = begin * UNIT_MS
            packet.duration = (end - begin) * UNIT_MS
            self._container.mux(packet)

    def _encode(self, user: UserUnit, agent: AgentUnit) -> None:
        shape = (FRAMES_PER_UNIT, self.height, self.width, 3)
        left = np.full(shape, CAMERA_OFF, np.uint8)
        if user.video is not None:
            left = fill(user.video, self.height, self.width)
        both = np.concatenate([left, fill(agent.video, self.height, self.width)], axis=2)
        for image in both:
            self._film.picture(image)
        heard = np.zeros(SAMPLES_PER_UNIT, np.float32) if user.audio is None else user.audio
        self._film.sound(both_voices(heard, self._match(heard, agent.audio)))
        for lane, text in (("response", agent.text), ("transcript", agent.transcript)):
            if text:
                self._words.append({"unit": self.units, "lane": lane, "text": text})
        self.units += 1


def check_film_path(path: Path, recording: Path | None = None) -> None:
    """Raises MediaError if no film can be written there, or if it would replace the `recording` that it answers."""
    if path.suffix.lower() not in FORMATS:
        raise MediaError(f"{path}: expected a name that ends in {', '.join(FORMATS)}")
    if path.is_dir():
        raise MediaError(f"{path}: expected the name of a film, got a folder")
    if recording is not None and path.exists() and recording.exists() and path.samefile(recording):
        raise MediaError(f"{path}: the film would replace the recording")
