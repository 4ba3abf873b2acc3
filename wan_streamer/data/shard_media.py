"""The media inside shards: FLAC for sound, H.264 for pictures, through FFmpeg's libraries (PyAV), in memory."""

import io
from fractions import Fraction
from typing import Any

import av
import numpy as np

from wan_streamer.errors import MediaError
from wan_streamer.units import FPS, SAMPLE_RATE


def encode_flac(audio_T: np.ndarray) -> bytes:
    """float32 [T] at 24 kHz -> FLAC, mono, 16 bit."""
    samples_T = np.round(np.clip(audio_T, -1, 1) * 32767).astype(np.int16)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="flac") as container:
        stream: Any = container.add_stream("flac", rate=SAMPLE_RATE, layout="mono", format="s16")
        for first in range(0, len(samples_T), 4096):
            frame = av.AudioFrame.from_ndarray(samples_T[None, first : first + 4096], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, first, Fraction(1, SAMPLE_RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def decode_flac(data: bytes) -> np.ndarray:
    """FLAC -> float32 [T] at 24 kHz. Raises `MediaError` for anything else."""
    try:
        with av.open(io.BytesIO(data), "r", format="flac") as container:
            pieces: list[np.ndarray] = []
            for frame in container.decode(audio=0):
                if frame.sample_rate != SAMPLE_RATE or frame.layout.nb_channels != 1:
                    raise MediaError(f"sound: expected mono at {SAMPLE_RATE} Hz, got {frame.sample_rate} Hz")
                pieces.append(frame.to_ndarray().reshape(-1))
    except (av.FFmpegError, IndexError) as error:
        raise MediaError(f"sound: not a readable FLAC stream ({error})") from error
    if not pieces:
        raise MediaError("sound: the FLAC stream is empty")
    return np.concatenate(pieces).astype(np.float32) / 32767


class Mp4Encoder:
    """H.264 in MP4 at 25 fps, written in memory piece by piece, so that only the compressed film is held.

    crf     quality, 0 (best) to 51;  pixels  yuv420p or yuv444p
    """

    def __init__(self, crf: int, pixels: str) -> None:
        self._buffer = io.BytesIO()
        self._container = av.open(self._buffer, "w", format="mp4")
        options = {"crf": str(crf), "preset": "ultrafast", "threads": "1"}  # disk is cheaper than time here
        self._stream: Any = self._container.add_stream("libx264", rate=FPS, options=options)
        self._stream.pix_fmt = pixels
        self._stream.codec_context.time_base = Fraction(1, FPS)
        self.frames = 0

    def add(self, video_THWC: np.ndarray) -> None:
        """The next frames, uint8 [T, H, W, 3]; all of one size."""
        if self.frames == 0:
            self._stream.height, self._stream.width = video_THWC.shape[1], video_THWC.shape[2]
        for image_HWC in video_THWC:
            frame = av.VideoFrame.from_ndarray(image_HWC, format="rgb24")
            frame.pts, frame.time_base = self.frames, Fraction(1, FPS)
            self._container.mux(self._stream.encode(frame))
            self.frames += 1

    def finish(self) -> bytes:
        """The complete file. At least one frame must have been added."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._buffer.getvalue()


def encode_mp4(video_THWC: np.ndarray, crf: int, pixels: str) -> bytes:
    """uint8 [T, H, W, 3] at 25 fps -> H.264 in MP4. `pixels` is yuv420p or yuv444p."""
    encoder = Mp4Encoder(crf, pixels)
    encoder.add(video_THWC)
    return encoder.finish()


def decode_mp4(data: bytes) -> np.ndarray:
    """MP4 -> uint8 [T, H, W, 3]. Raises `MediaError` for anything else."""
    try:
        with av.open(io.BytesIO(data), "r", format="mp4") as container:
            container.streams.video[0].thread_count = 1
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.FFmpegError, IndexError) as error:
        raise MediaError(f"film: not a readable MP4 file ({error})") from error
    if not frames:
        raise MediaError("film: the MP4 file has no frames")
    return np.stack(frames)
