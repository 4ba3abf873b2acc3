"""Recorded pairs of streams from any other system, made ready to be scored like our own recordings.

`read_pairs`  a folder -> (`Trial`, `Recording`) of every pair, one in memory at a time
`letterbox`   any picture -> 192 x 336 with its aspect kept

Two layouts, which may be mixed and lie in sub-folders. Both sides begin at time 0.

    NAME.user.wav|flac|mp3|mp4|webm|mkv     what the user said and showed      (or NAME/user.mp4)
    NAME.agent.wav|flac|mp3|mp4|webm|mkv    what the system said and showed    (or NAME/agent.mp4)
    NAME.json                               labels as in data/schema.json, if the truth is known; "axis" names the axis
    NAME.user.json|vtt|srt, NAME.agent...   words, if there are any
A sound file beside a film (NAME.agent.wav, NAME.agent.mp4) has the sound, the film only the picture.

    CLIP/input.wav, CLIP/output.wav|mp4                     Full-Duplex-Bench 1.0 and 1.5, after the system was run
    CLIP/transcription.json, CLIP/output.json               words of the user and of the system, if there are any
    CLIP/pause.json, interrupt.json, turn_taking.json, metadata.json    [start, end] -> events of the user

What was changed is told in `labels["notes"]`. Without labels the user's speech is found by its energy, and there is no
reference for the agent. Its side of the trial is silent and without a picture.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from wan_streamer.data.media import read_units
from wan_streamer.data.recordings.labels import Talk, episode_labels, read_talk
from wan_streamer.data.recordings.media import HEIGHT, WIDTH
from wan_streamer.data.recordings.sources import PICTURE, SIDES, SOUND, Side, find_items
from wan_streamer.data.shards import Episode, check_labels, episode_key
from wan_streamer.data.voice_activity import EnergyMeter
from wan_streamer.errors import DataError, MediaError
from wan_streamer.evaluation.records import Recording, Trial
from wan_streamer.files import parse_json
from wan_streamer.units import FRAMES_PER_UNIT, SAMPLES_PER_UNIT, UNIT_S

AXIS = "pairs"
LATE_S = 0.5  # an annotation that begins so much after the end belongs to another recording
GENERATOR = "pairs-1"
MARKS = {"pause.json": "pause", "interrupt.json": "barge_in", "turn_taking.json": "turn_end"}
OVERLAPS = {
    "user_interruption": "barge_in", "user_backchannel": "backchannel", "talking_to_other": "side_talk",
    "background_speech": "noise",
}  # fmt: skip
"""Folder of version 1.5 -> what the span in its metadata.json is."""
NO_TURN = ("backchannel", "side_talk", "noise")
EXPECTED = "expected NAME.user.* with NAME.agent.*, or CLIP/input.wav with CLIP/output.wav"

Pair = tuple[Trial, Recording]


@dataclass(frozen=True)
class _Stream:
    """One side: audio float32 [T], video uint8 [F, 192, 336, 3] or None; whole units."""

    audio: np.ndarray
    video: np.ndarray | None

    @property
    def lengths(self) -> dict[str, int]:
        """Units of every track."""
        lengths = {"sound": len(self.audio) // SAMPLES_PER_UNIT}
        return lengths if self.video is None else lengths | {"picture": len(self.video) // FRAMES_PER_UNIT}

    @property
    def units(self) -> int:
        return max(self.lengths.values())

    def fitted(self, units: int) -> "_Stream":
        """Cut, or filled up with silence and with the last picture: black would count as a fault of the system."""
        audio_T = self.audio[: units * SAMPLES_PER_UNIT]
        audio_T = np.pad(audio_T, (0, units * SAMPLES_PER_UNIT - len(audio_T)))
        if self.video is None:
            return _Stream(audio_T, None)
        video_FHWC = self.video[: units * FRAMES_PER_UNIT]
        missing = units * FRAMES_PER_UNIT - len(video_FHWC)
        if missing:
            video_FHWC = np.concatenate([video_FHWC, np.repeat(video_FHWC[-1:], missing, axis=0)])
        return _Stream(audio_T, video_FHWC)


@dataclass(frozen=True)
class _Files:
    """Where one pair is. `clip` is the folder of a Full-Duplex-Bench clip, else None; `labels` may not exist."""

    name: str
    user: Side
    agent: Side
    labels: Path | None = None
    clip: Path | None = None


def read_pairs(folder: str | Path) -> Iterator[Pair]:
    """All pairs in order of name. What is wrong with the folder is told at once, what is wrong with a file when its
    turn comes.

    Raises `DataError` if there is no pair, a side is missing or doubled, or labels are not valid or of another length;
    `MediaError` if a file cannot be decoded.
    """
    folder = Path(folder)
    found = find_items(folder)
    for name, reason in found.unusable.items():
        raise DataError(f"{folder}: {name}: {reason}; {EXPECTED}")
    pairs = [
        _Files(item.name, item.user, item.agent, folder / f"{item.name}.json")
        for item in found.items
        if item.kind == "pair"
    ]
    pairs += [_clip_files(folder, path) for path in sorted(folder.rglob("input.*")) if _is_media(path)]
    if not pairs:
        raise DataError(f"{folder}: {EXPECTED}, found neither")
    return (_read_pair(files, index) for index, files in enumerate(sorted(pairs, key=lambda files: files.name)))


def _is_media(path: Path) -> bool:
    return path.suffix.lower() in SOUND | PICTURE


def _clip_files(folder: Path, path: Path) -> _Files:
    clip = path.parent
    outputs = sorted(p for p in clip.glob("output.*") if _is_media(p))
    films = [p for p in outputs if p.suffix.lower() in PICTURE]
    sounds = [p for p in outputs if p.suffix.lower() in SOUND]
    if not outputs or len(films) > 1 or len(sounds) > 1:
        names = ", ".join(p.name for p in outputs) or "none"
        raise DataError(f"{clip}: expected output.wav, output.mp4 or both beside {path.name}, got {names}")
    name = clip.relative_to(folder).as_posix()
    user = Side(path, path if path.suffix.lower() in PICTURE else None)
    agent = Side((sounds or films)[0], films[0] if films else None)
    return _Files(clip.resolve().name if name == "." else name, user, agent, clip=clip)


# ---------------------------------------------------------------- sound and pictures


def letterbox(frames_THWC: np.ndarray) -> np.ndarray:
    """uint8 [T, H, W, 3] of any size -> uint8 [T, 192, 336, 3]: all of the picture, in the middle of black."""
    count, height, width, _ = frames_THWC.shape
    scale = min(HEIGHT / height, WIDTH / width)
    high, wide = max(1, round(height * scale)), max(1, round(width * scale))
    if (height, width) == (HEIGHT, WIDTH):
        return frames_THWC
    out_THWC = np.zeros((count, HEIGHT, WIDTH, 3), np.uint8)
    top, left = (HEIGHT - high) // 2, (WIDTH - wide) // 2
    for out_HWC, frame_HWC in zip(out_THWC, frames_THWC, strict=True):
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
        out_HWC[top : top + high, left : left + wide] = picture.reformat(width=wide, height=high).to_ndarray()
    return out_THWC


def _read_side(name: str, side: Side, notes: list[str]) -> _Stream:
    """All of one side. A film without sound is silent, which is noted."""
    sound: list[np.ndarray] = []
    picture: list[np.ndarray] = []
    for path in dict.fromkeys(path for path in (side.sound, side.picture) if path is not None):
        with read_units(path, max_side=WIDTH) as units:
            if path == side.sound and not units.has_audio:
                notes.append(f"{name}: {path.name} has no sound, which counts as silence")
            if path == side.picture and path != side.sound and not units.has_video:
                raise MediaError(f"{path}: expected a picture beside {side.sound.name}, got sound only")
            for unit in units:
                if path == side.sound and unit.audio is not None:
                    sound.append(unit.audio)
                if path == side.picture and units.has_video:
                    black_THWC = np.zeros((FRAMES_PER_UNIT, HEIGHT, WIDTH, 3), np.uint8)  # before the first picture
                    picture.append(black_THWC if unit.video is None else letterbox(unit.video))
    return _Stream(np.concatenate([np.zeros(0, np.float32), *sound]), _joined(picture))


def _joined(parts: list[np.ndarray]) -> np.ndarray | None:
    """Like `np.concatenate`, but the parts are freed one by one: a film is not in memory twice."""
    if not parts:
        return None
    film_FHWC = np.empty((len(parts) * FRAMES_PER_UNIT, *parts[0].shape[1:]), np.uint8)
    for at in range(len(film_FHWC) // FRAMES_PER_UNIT - 1, -1, -1):
        film_FHWC[at * FRAMES_PER_UNIT : (at + 1) * FRAMES_PER_UNIT] = parts.pop()
    return film_FHWC


# ---------------------------------------------------------------- one pair


def _read_pair(files: _Files, index: int) -> Pair:
    notes: list[str] = []
    streams = {side: _read_side(side, getattr(files, side), notes) for side in SIDES}
    talks = {side: _talk(files, side, streams[side].audio, notes) for side in SIDES}
    labels = _given_labels(files, streams["user"].units)
    units = labels["units"] if labels else max(stream.units for stream in streams.values())
    for side, stream in streams.items():
        for track, have in stream.lengths.items():
            if have not in (0, units):  # 0: no sound at all, told already
                change = "filled up at the end" if have < units else "cut"
                notes.append(f"{side}: {have * UNIT_S:.2f} s of {track} {change} to {units * UNIT_S:.2f} s")
    user, agent = (streams[side].fitted(units) for side in SIDES)
    labels = labels or _found_labels(files, index, units, talks, {s: v.video is not None for s, v in streams.items()})
    labels["notes"] = notes
    axis = labels.get("axis", AXIS)
    episode = Episode(episode_key(index), user.audio, np.zeros_like(user.audio), user.video, None, labels)
    text = [(word["start"], " " + word["text"]) for word in talks["agent"].words]
    trial = Trial(files.name, axis if isinstance(axis, str) else AXIS, episode)
    return trial, Recording(agent.audio, agent.video, text)


def _given_labels(files: _Files, units: int) -> dict[str, Any] | None:
    """The labels beside a pair, if there are any. `units` of the user's side."""
    if files.labels is None or not files.labels.exists():
        return None
    labels = check_labels(_json(files.labels), str(files.labels))
    if abs(labels["units"] - units) > 1:  # a lossy codec may add or take a little
        raise DataError(
            f"{files.labels}: expected labels of {units} units, as {files.user.sound.name} has, got {labels['units']}"
        )
    return labels


def _talk(files: _Files, name: str, audio_T: np.ndarray, notes: list[str]) -> Talk:
    meter = EnergyMeter()
    meter.add(audio_T)
    talk = read_talk(name, getattr(files, name), meter.levels(), notes)
    if files.clip is not None:
        path = files.clip / {"user": "transcription.json", "agent": "output.json"}[name]
        if path.exists():
            words = [
                {"text": row["text"].strip(), "start": start, "end": end}
                for row, start, end in _spans(path, len(audio_T) / SAMPLES_PER_UNIT * UNIT_S)
                if isinstance(row.get("text"), str) and row["text"].strip()
            ]
            return Talk(sorted(words, key=lambda word: word["start"]), talk.speech, True)
    return talk


def _found_labels(
    files: _Files, index: int, units: int, talks: dict[str, Talk], cameras: dict[str, bool]
) -> dict[str, Any]:
    """Minimal labels of a recording. What the agent said and when is no reference, so it is not among them."""
    talks = talks | {"agent": Talk([], [], False)}
    labels = episode_labels(files.name, "test", index, (0, units), talks, cameras) | {"generator": GENERATOR}
    for kind, start, end in _marks(files.clip, units * UNIT_S) if files.clip else ():
        _add_mark(labels["events"], kind, start, end)
    return labels


def _add_mark(events: list[dict], kind: str, start: float, end: float) -> None:
    """Enter an annotation about the user. The speech in it that was found is no turn of its own."""

    def inside(event: dict) -> bool:
        shared = min(event["end"], end) - max(event["start"], start)
        return shared > (event["end"] - event["start"]) / 2

    heard = [e for e in events if e["type"] == "speech" and e["side"] == "user" and inside(e)]
    if kind in NO_TURN:
        events[:] = [e for e in events if e not in heard]
    if kind == "barge_in" and heard:  # a turn that begins with a barge-in is known by the same time
        start = heard[0]["start"]
    events.append({"type": kind, "side": "user", "start": start, "end": end, "label": ""})
    events.sort(key=lambda event: (event["start"], event["side"]))


# ---------------------------------------------------------------- files of Full-Duplex-Bench


def _marks(clip: Path, seconds: float) -> Iterator[tuple[str, float, float]]:
    """(type of event, start, end) of every annotation of a clip."""
    kinds = MARKS | {"metadata.json": OVERLAPS.get(clip.parent.name, "overlap")}
    for name, kind in kinds.items():
        if (clip / name).exists():
            for _, start, end in _spans(clip / name, seconds):
                yield kind, start, end


def _spans(path: Path, seconds: float) -> Iterator[tuple[dict, float, float]]:
    """(row, start, end) of the rows of a file that have times; they end with the sound. Raises `DataError` if a row
    begins after it: the file belongs to another recording."""
    content = _json(path)
    rows = content.get("chunks", [content]) if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f'{path}: expected rows of {{"timestamp": [start, end]}}, got something else')
    for row in rows:
        times = row.get("timestamp", row.get("timestamps"))
        if isinstance(times, list) and times and all(isinstance(time, int | float) for time in times[:2]):
            start, end = float(times[0]), float(times[-1])
            if not 0 <= start <= seconds + LATE_S:
                raise DataError(f"{path}: expected times within {seconds:.2f} s of sound, got {start:g}")
            start = min(start, seconds)
            yield row, round(start, 3), round(max(start, min(end, seconds)), 3)


def _json(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected JSON, cannot be read ({error})") from error
