"""Conversations on disk: tar shards of aligned two-sided streams, in the layout of WebDataset.

`Episode`        both sides' sound and picture and the labels
`write_shard`    episodes -> shard-00000.tar, complete or not at all
`read_episodes`  a folder of shards -> episodes, each checked against the documented keys

A sample `ep000000` is the files `.user.flac .agent.flac .agent.mp4 .json` and, if the camera was on, `.user.mp4`.
The schema of the JSON is in docs/simulation.md. Nothing is ever unpickled.
"""

import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wan_streamer.data.shard_media import decode_flac, decode_mp4, encode_flac, encode_mp4
from wan_streamer.errors import DataError, MediaError
from wan_streamer.units import FPS, FRAMES_PER_UNIT, SAMPLES_PER_UNIT

SCHEMA = 1
SIDES = ("user", "agent")
SPLITS = ("train", "valid", "test")
USER_CRF, AGENT_CRF = 20, 8  # the agent's film is a training target, the user's only an input
_KEYS: dict[str, type] = {
    "schema": int, "generator": str, "seed": int, "split": str, "index": int, "units": int, "fps": int,
    "scenarios": list, "user": dict, "agent": dict, "words": dict, "phonemes": dict, "events": list, "mouth_open": dict,
}  # fmt: skip
_PARTS = ("user.flac", "agent.flac", "user.mp4", "agent.mp4", "json")


@dataclass(frozen=True)
class Episode:
    """One conversation.

    key          "ep000000"
    user_audio   float32 [T], mono, 24 kHz; T = units * 3840
    agent_audio  float32 [T]
    user_video   uint8 [F, H, W, 3], 25 fps, F = units * 4; None if the camera is off
    agent_video  uint8 [F, H, W, 3]; None only if it was not asked for
    labels       as documented in docs/simulation.md
    """

    key: str
    user_audio: np.ndarray
    agent_audio: np.ndarray
    user_video: np.ndarray | None
    agent_video: np.ndarray | None
    labels: dict[str, Any]

    @property
    def units(self) -> int:
        return int(self.labels["units"])


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.tar"


def check_labels(labels: Any, where: str) -> dict[str, Any]:
    """The labels, if they follow the schema. Raises `DataError` naming the first fault and the place."""

    def fail(problem: str) -> DataError:
        return DataError(f"{where}: {problem}; make the shard again or remove it")

    if not isinstance(labels, dict):
        raise fail(f"expected labels as an object, got {type(labels).__name__}")
    for key, kind in _KEYS.items():
        if key not in labels:
            raise fail(f"label {key!r} is missing")
        if not isinstance(labels[key], kind) or isinstance(labels[key], bool):
            raise fail(f"label {key!r}: expected {kind.__name__}, got {type(labels[key]).__name__}")
    if labels["schema"] != SCHEMA:
        raise fail(f"schema {labels['schema']} is not the supported {SCHEMA}")
    if labels["split"] not in SPLITS:
        raise fail(f"split: expected one of {', '.join(SPLITS)}, got {labels['split']!r}")
    if labels["units"] <= 0 or labels["fps"] != FPS:
        raise fail(f"expected units > 0 and fps {FPS}, got {labels['units']} and {labels['fps']}")
    seconds = labels["units"] * FRAMES_PER_UNIT / FPS
    for table, name in (("words", "text"), ("phonemes", "symbol")):
        for side in SIDES:
            rows = labels[table].get(side)
            if not isinstance(rows, list):
                raise fail(f"{table}: expected a list for {side!r}")
            _check_spans(rows, (name,), seconds, fail, f"{table}.{side}", ordered=True)
    _check_spans(labels["events"], ("type", "side"), seconds, fail, "events", ordered=False)
    frames = labels["units"] * FRAMES_PER_UNIT
    for side in SIDES:
        if len(labels["mouth_open"].get(side, ())) != frames:
            raise fail(f"mouth_open.{side}: expected {frames} values")
    return labels


def _check_spans(rows: list, texts: tuple[str, ...], seconds: float, fail: Any, name: str, ordered: bool) -> None:
    last = 0.0
    for i, row in enumerate(rows):
        known = isinstance(row, dict) and all(isinstance(row.get(t), str) for t in texts)
        if not known or not all(isinstance(row.get(t), int | float) for t in ("start", "end")):
            raise fail(f"{name}[{i}]: expected {', '.join(texts)}, start and end")
        if not 0 <= row["start"] <= row["end"] <= seconds + 1e-3 or (ordered and row["start"] < last - 1e-3):
            raise fail(f"{name}[{i}]: times {row['start']}-{row['end']} are out of order or outside {seconds:.2f} s")
        last = row["start"]


def _members(episode: Episode) -> Iterator[tuple[str, bytes]]:
    yield "user.flac", encode_flac(episode.user_audio)
    yield "agent.flac", encode_flac(episode.agent_audio)
    if episode.user_video is not None:
        yield "user.mp4", encode_mp4(episode.user_video, USER_CRF, "yuv420p")
    if episode.agent_video is None:
        raise DataError(f"{episode.key}: an episode without the agent's film cannot be stored")
    yield "agent.mp4", encode_mp4(episode.agent_video, AGENT_CRF, "yuv444p")
    yield "json", json.dumps(check_labels(episode.labels, episode.key), sort_keys=True, ensure_ascii=False).encode()


def write_shard(path: str | Path, episodes: Iterable[Episode]) -> None:
    """Write a shard under a temporary name and rename it when it is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with tarfile.open(temporary, "w") as tar:
            for episode in episodes:
                for suffix, data in _members(episode):
                    info = tarfile.TarInfo(f"{episode.key}.{suffix}")
                    info.size = len(data)  # times and owners stay zero, so that equal content gives equal files
                    tar.addfile(info, io.BytesIO(data))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def shard_paths(folder: str | Path) -> list[Path]:
    """All shards of a folder in order. Raises `DataError` if there are none or one is missing in between."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of shards, found nothing; make one with 'wan-streamer simulate'")
    paths = sorted(folder.glob("shard-*.tar"))
    if not paths:
        raise DataError(f"{folder}: expected files named {shard_name(0)}, found none")
    numbers = [int(re.sub(r"\D", "", path.stem) or -1) for path in paths]
    missing = sorted(set(range(numbers[-1] + 1)) - set(numbers))
    if missing:
        raise DataError(f"{folder}: {shard_name(missing[0])} is missing ({len(paths)} of {numbers[-1] + 1} present)")
    return paths


def read_shard(path: str | Path, video: bool = True) -> Iterator[Episode]:
    """The episodes of one shard in order. `video=False` skips decoding the films."""
    path = Path(path)
    try:
        with tarfile.open(path, "r:") as tar:
            key = ""
            parts: dict[str, bytes] = {}
            for member in tar:
                stem, _, suffix = Path(member.name).name.partition(".")
                if suffix not in _PARTS or not member.isfile():
                    raise DataError(f"{path}: unexpected member {member.name!r}")
                if stem != key:
                    if parts:
                        yield _episode(path, key, parts, video)
                    key, parts = stem, {}
                file = tar.extractfile(member)
                parts[suffix] = file.read() if file else b""
            if not parts:
                raise DataError(f"{path}: the shard is empty")
            yield _episode(path, key, parts, video)
    except FileNotFoundError as error:
        raise DataError(f"{path}: the shard does not exist") from error
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path}: the shard is damaged or cut off ({error}); make it again") from error


def _episode(path: Path, key: str, parts: dict[str, bytes], video: bool) -> Episode:
    where = f"{path}: {key}"
    for needed in ("json", "user.flac", "agent.flac", "agent.mp4"):
        if needed not in parts:
            raise DataError(f"{where}: {key}.{needed} is missing")
    try:
        labels = check_labels(json.loads(parts["json"]), where)
    except ValueError as error:
        raise DataError(f"{where}: the labels are not valid JSON ({error})") from error
    try:
        audio = {side: decode_flac(parts[f"{side}.flac"]) for side in SIDES}
        films = {side: decode_mp4(parts[f"{side}.mp4"]) for side in SIDES if video and f"{side}.mp4" in parts}
    except MediaError as error:
        raise DataError(f"{where}: {error}") from error
    samples, frames = labels["units"] * SAMPLES_PER_UNIT, labels["units"] * FRAMES_PER_UNIT
    for side in SIDES:
        if len(audio[side]) != samples:
            raise DataError(f"{where}: {side} sound: expected {samples} samples, got {len(audio[side])}")
        if side in films and len(films[side]) != frames:
            raise DataError(f"{where}: {side} film: expected {frames} frames, got {len(films[side])}")
    return Episode(key, audio["user"], audio["agent"], films.get("user"), films.get("agent"), labels)


def read_episodes(folder: str | Path, video: bool = True) -> Iterator[Episode]:
    """All episodes of a folder in order; `video=False` skips decoding the films (they are then None)."""
    for path in shard_paths(folder):
        yield from read_shard(path, video)
