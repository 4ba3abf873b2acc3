"""Any media file that FFmpeg reads -> a stream of `UserUnit`s, with bounded memory.

`read_units`   opens a file, checks it, returns a `UnitReader`
`UnitReader`   iterates the file in units of 160 ms: audio mono 24 kHz, video 25 fps

Damage in a file does not end it: what cannot be decoded is left out, and `UnitReader.warnings` tells it.
"""

import contextlib
import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path

import av.error
import numpy as np

from wan_streamer.data.tracks import MAX_SIDE, AudioTrack, VideoTrack, reason
from wan_streamer.errors import MediaError
from wan_streamer.units import UNIT_S, UserUnit

TAIL_S = 0.025  # a rest shorter than this (the padding of an audio codec's last frame) makes no unit of its own
LONGEST_GAP_S = 60.0  # a longer time without any sound or new picture is left out up to `KEPT_GAP_S`
KEPT_GAP_S = 1.0
CUT_S = 1.0  # a file that ends so much before the length that it says is told to be cut
ESTIMATED = {"mp3", "aac", "ac3", "eac3"}  # formats that say no length: FFmpeg guesses it from the bit rate


def read_units(path: str | Path, max_side: int = MAX_SIDE) -> "UnitReader":
    """Open `path`, which may have any container, size, rate and channel count; a track may be missing.

    Raises MediaError if the file is missing, a folder, not media, a list of files, or holds neither sound nor picture.
    """
    if not isinstance(path, str | os.PathLike):
        raise MediaError(f"read_units: expected the path of a file, got {type(path).__name__}")
    path = Path(path)
    if path.is_dir():
        raise MediaError(f"{path}: expected a media file, got a folder")
    if not path.exists():
        raise MediaError(f"{path}: no such file")
    if path.is_file() and path.stat().st_size == 0:
        raise MediaError(f"{path}: expected a media file, got an empty file")
    return UnitReader(path, max_side)


def read_sound(path: str | Path) -> np.ndarray:
    """The whole sound track of a file as float32 [T], mono, 24 kHz. Raises MediaError if it has none."""
    with read_units(path) as units:
        pieces = [unit.audio for unit in units if unit.audio is not None]
    if not pieces:
        raise MediaError(f"{path}: expected a sound track, found none")
    return np.concatenate(pieces)


class UnitReader(contextlib.AbstractContextManager["UnitReader"]):
    """Iterate once; close with `close()` or as a context manager.

    path       the file
    duration   seconds, as the container says it (None if it does not)
    units      estimate of the number of units (None if the duration is unknown)
    has_audio, has_video   which tracks exist; the other side of every unit is None
    warnings   what was wrong with the file, as far as it has been read
    """

    def __init__(self, path: Path, max_side: int = MAX_SIDE) -> None:
        self.path = path
        self._audio = AudioTrack.open(path)
        self._video = VideoTrack.open(path)
        tracks: list[AudioTrack | VideoTrack] = [track for track in (self._audio, self._video) if track is not None]
        if not tracks:
            raise MediaError(f"{path}: holds neither sound nor moving pictures that can be decoded")
        if self._video is not None:
            self._video.max_side = max_side
        self.has_audio, self.has_video = self._audio is not None, self._video is not None
        self.duration = tracks[0].duration
        self.units = None if self.duration is None else max(1, math.ceil((self.duration - TAIL_S) / UNIT_S))
        origin = min(track.first_s for track in tracks)
        for track in tracks:
            track.origin = origin
        self._tracks = tracks
        self._gaps: list[tuple[float, float]] = []  # (when, how long), seconds
        self._left_out_s = 0.0

    def __iter__(self) -> Iterator[UserUnit]:
        try:
            for index in itertools.count():
                self._close_gap(index * UNIT_S)
                audio = self._audio.take() if self._audio else None
                video = self._video.take() if self._video else None
                if index > 0 and all(track.end <= index * UNIT_S + TAIL_S for track in self._tracks):
                    return
                yield UserUnit(audio=audio, video=video)
        except (av.error.FFmpegError, OSError, MemoryError) as error:
            raise MediaError(f"{self.path}: cannot be decoded ({reason(error)})") from error
        finally:
            self.close()

    def _close_gap(self, now: float) -> None:
        """Broken clocks and last pictures of hours must not become hours of silence."""
        times = [time for track in self._tracks if (time := track.upcoming()) is not None]
        gap = min(times, default=max(track.end for track in self._tracks)) - now
        if gap <= LONGEST_GAP_S:
            return
        left_out = math.floor((gap - KEPT_GAP_S) / UNIT_S) * UNIT_S
        self._left_out_s += left_out
        for track in self._tracks:
            if times:
                track.skip(left_out)
            else:
                track.end -= left_out
        self._gaps.append((now, gap))

    @property
    def warnings(self) -> list[str]:
        found = [
            f"damaged packets of the {track.kind} were skipped: {track.skipped}"
            for track in self._tracks
            if track.skipped
        ]
        if self._gaps:
            now, gap = self._gaps[0]
            more = f", and {len(self._gaps) - 1} times more" if len(self._gaps) > 1 else ""
            kept = f"all but {KEPT_GAP_S:g} s was left out"
            found.append(f"nothing comes for {_spoken(gap)} after {_spoken(now)}{more}; {kept}")
        end, said = max(track.end for track in self._tracks) + self._left_out_s, self.duration or 0.0
        if end < said - CUT_S and self._tracks[0].container.format.name not in ESTIMATED:
            found.append(f"ends after {_spoken(end)} of {_spoken(said)}: it is cut off or damaged")
        return found

    def close(self) -> None:
        for track in self._tracks:
            track.container.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def _spoken(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
