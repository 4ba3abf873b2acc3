"""Conversations on disk: tar shards of aligned two-sided streams, in the layout of WebDataset.

`Episode`        both sides' sound and picture and the labels
`check_labels`   the labels, if they follow data/schema.json and agree with themselves
`write_shard`    episodes -> shard-00000.tar, complete or not at all
`write_samples`  the same for episodes that are encoded already
`read_episodes`  a folder of shards -> episodes, each checked against the documented keys

A sample `ep000000` is the files `.user.flac .agent.flac .agent.mp4 .json` and, if the camera was on, `.user.mp4`.
Only a recorded conversation whose label `agent.camera` is false may lack `.agent.mp4`. The JSON is described, key by
key, in data/schema.json (JSON Schema), and in words in docs/simulation.md and docs/recordings.md. Schema 1 has two
kinds of labels: "source" is "simulated" (also if the key is absent) or "recorded". Nothing is ever unpickled.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wan_streamer.data.shard_media import decode_flac, decode_mp4, encode_flac, encode_mp4
from wan_streamer.errors import DataError, MediaError
from wan_streamer.files import parse_json, replacing
from wan_streamer.folders import SHARDS, describe
from wan_streamer.units import FPS, FRAMES_PER_UNIT, SAMPLES_PER_UNIT

SCHEMA = 1
SIDES = ("user", "agent")
SPLITS = ("train", "valid", "test")
USER_CRF, AGENT_CRF = 23, 11  # the agent's film is a training target, the user's only an input
TARGETS = ("response", "transcript", "audio", "video")
SOURCES = ("simulated", "recorded")
_KEYS: dict[str, type] = {
    "schema": int, "generator": str, "split": str, "index": int, "units": int, "fps": int,
    "user": dict, "agent": dict, "words": dict, "phonemes": dict, "events": list,
}  # fmt: skip
_SIMULATED: dict[str, type] = {"seed": int, "scenarios": list, "mouth_open": dict}
_RECORDED: dict[str, type] = {"recording": str, "start": float, "transcribed": dict}
_PARTS = ("user.flac", "agent.flac", "user.mp4", "agent.mp4", "json")


@dataclass(frozen=True)
class Episode:
    """One conversation.

    key          "ep000000"
    user_audio   float32 [T], mono, 24 kHz; T = units * 3840
    agent_audio  float32 [T]
    user_video   uint8 [F, H, W, 3], 25 fps, F = units * 4; None if the camera is off
    agent_video  uint8 [F, H, W, 3]; None if it was not asked for or a recording has none
    labels       as documented in data/schema.json
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


def episode_key(index: int) -> str:
    return f"ep{index:06d}"


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.tar"


def check_labels(labels: Any, where: str) -> dict[str, Any]:
    """The labels, if they follow the schema. Raises `DataError` naming the first fault and the place.

    data/schema.json says the same about keys, types and ranges; what compares one key with another (times inside the
    episode and in order, one mouth value per frame) is checked only here.
    """

    def fail(problem: str) -> DataError:
        return DataError(f"{where}: {problem}; make the shard again or remove it")

    if not isinstance(labels, dict):
        raise fail(f"expected labels as an object, got {type(labels).__name__}")
    source = labels.get("source", SOURCES[0])
    if source not in SOURCES:
        raise fail(f"source: expected one of {', '.join(SOURCES)}, got {source!r}")
    recorded = source == "recorded"
    for key in _KEYS | (_RECORDED if recorded else _SIMULATED):
        if key not in labels:
            raise fail(f"label {key!r} is missing")
    for key, kind in (_KEYS | _SIMULATED | _RECORDED).items():
        if key in labels and not _is(labels[key], kind):
            raise fail(f"label {key!r}: expected {kind.__name__}, got {type(labels[key]).__name__}")
    if labels["schema"] != SCHEMA:
        raise fail(f"schema {labels['schema']} is not the supported {SCHEMA}")
    if labels["split"] not in SPLITS:
        raise fail(f"split: expected one of {', '.join(SPLITS)}, got {labels['split']!r}")
    if labels["units"] <= 0 or labels["fps"] != FPS:
        raise fail(f"expected units > 0 and fps {FPS}, got {labels['units']} and {labels['fps']}")
    for key in ("index", "start"):
        if labels.get(key, 0) < 0:
            raise fail(f"label {key!r}: expected 0 or more, got {labels[key]}")
    seconds = labels["units"] * FRAMES_PER_UNIT / FPS
    for side in SIDES:
        camera = labels[side].get("camera", None if recorded else True)
        if not isinstance(camera, bool):
            raise fail(f"{side}: expected 'camera' as true or false, got {camera!r}")
        if recorded and not isinstance(labels["transcribed"].get(side), bool):
            raise fail(f"transcribed: expected true or false for {side!r}")
        for table, name in (("words", "text"), ("phonemes", "symbol")):
            rows = labels[table].get(side)
            if not isinstance(rows, list):
                raise fail(f"{table}: expected a list for {side!r}")
            _check_spans(rows, (name,), seconds, fail, f"{table}.{side}", ordered=True)
    _check_spans(labels["events"], ("type", "side"), seconds, fail, "events", ordered=False)
    for i, event in enumerate(labels["events"]):
        if event["side"] not in (*SIDES, "both"):
            raise fail(f"events[{i}]: expected side user, agent or both, got {event['side']!r}")
        if not isinstance(event.get("label", ""), str):
            raise fail(f"events[{i}]: expected the label as text, got {type(event['label']).__name__}")
    if not set(labels.get("targets", ())) <= set(TARGETS):
        raise fail(f"targets: expected some of {', '.join(TARGETS)}, got {labels['targets']}")
    _check_before(labels.get("before", []), fail)
    if "mouth_open" in labels:
        _check_mouths(labels["mouth_open"], labels["units"] * FRAMES_PER_UNIT, fail)
    return labels


def _is(value: Any, kind: type) -> bool:
    """Whether a JSON value has a type; a truth value is no number, a whole number is a float."""
    return not isinstance(value, bool) and isinstance(value, (int, float) if kind is float else kind)


def _check_before(turns: Any, fail: Any) -> None:
    if not isinstance(turns, list):
        raise fail(f"label 'before': expected list, got {type(turns).__name__}")
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict) or turn.get("side") not in SIDES or not isinstance(turn.get("text"), str):
            raise fail(f"before[{i}]: expected a side, user or agent, and a text")


def _check_mouths(mouths: dict, frames: int, fail: Any) -> None:
    for side in SIDES:
        values = mouths.get(side)
        if not isinstance(values, list) or len(values) != frames or not all(_is(v, float) for v in values):
            raise fail(f"mouth_open.{side}: expected {frames} values")
        if not all(0 <= value <= 1 for value in values):
            raise fail(f"mouth_open.{side}: expected values from 0 to 1")


def _check_spans(rows: list, texts: tuple[str, ...], seconds: float, fail: Any, name: str, ordered: bool) -> None:
    last = 0.0
    for i, row in enumerate(rows):
        known = isinstance(row, dict) and all(isinstance(row.get(t), str) for t in texts)
        if not known or not all(_is(row.get(t), float) for t in ("start", "end")):
            raise fail(f"{name}[{i}]: expected {', '.join(texts)}, start and end")
        if not 0 <= row["start"] <= row["end"] <= seconds + 1e-3 or (ordered and row["start"] < last - 1e-3):
            raise fail(f"{name}[{i}]: times {row['start']}-{row['end']} are out of order or outside {seconds:.2f} s")
        last = row["start"]


@dataclass(frozen=True)
class Sample:
    """One conversation as it lies in a shard: `parts` is {"user.flac": bytes, ...} without "json"."""

    key: str
    parts: dict[str, bytes]
    labels: dict[str, Any]


def may_lack_agent_film(labels: dict[str, Any]) -> bool:
    """Whether the labels say that there never was a film of the agent: a recording without that camera."""
    return labels.get("source") == "recorded" and labels["agent"].get("camera") is False


def _sample(episode: Episode) -> Sample:
    parts = {"user.flac": encode_flac(episode.user_audio), "agent.flac": encode_flac(episode.agent_audio)}
    if episode.user_video is not None:
        parts["user.mp4"] = encode_mp4(episode.user_video, USER_CRF, "yuv420p")
    if episode.agent_video is not None:
        parts["agent.mp4"] = encode_mp4(episode.agent_video, AGENT_CRF, "yuv444p")
    return Sample(episode.key, parts, episode.labels)


def write_shard(path: str | Path, episodes: Iterable[Episode]) -> None:
    """Write a shard under a temporary name and rename it when it is complete."""
    write_samples(path, (_sample(episode) for episode in episodes))


def write_samples(path: str | Path, samples: Iterable[Sample]) -> None:
    """`write_shard` for encoded conversations. One sample is held in memory at a time."""
    path = Path(path)
    with replacing(path) as part, tarfile.open(part, "w") as tar:
        for sample in samples:
            labels = check_labels(sample.labels, sample.key)
            if "agent.mp4" not in sample.parts and not may_lack_agent_film(labels):
                raise DataError(f"{sample.key}: an episode without the agent's film cannot be stored")
            text = json.dumps(labels, sort_keys=True, ensure_ascii=False)
            for suffix, data in (sample.parts | {"json": text.encode()}).items():
                info = tarfile.TarInfo(f"{sample.key}.{suffix}")
                info.size = len(data)  # times and owners stay zero, so that equal content gives equal files
                tar.addfile(info, io.BytesIO(data))


def shard_paths(folder: str | Path) -> list[Path]:
    """All shards of a folder in order. Raises `DataError` if there are none or one is missing in between."""
    folder = Path(folder)
    paths = sorted(folder.glob(SHARDS))
    if not paths:
        raise DataError(
            f"{folder}: expected a folder of shards ({shard_name(0)}), found {describe(folder)}; make one with"
            " 'wan-streamer simulate DIR --hours H'"
        )
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
    for needed in ("json", "user.flac", "agent.flac"):
        if needed not in parts:
            raise DataError(f"{where}: {key}.{needed} is missing")
    try:
        labels = check_labels(parse_json(parts["json"]), where)
    except ValueError as error:
        raise DataError(f"{where}: the labels are not valid JSON ({error})") from error
    if "agent.mp4" not in parts and not may_lack_agent_film(labels):
        raise DataError(f"{where}: {key}.agent.mp4 is missing")
    if "user.mp4" not in parts and labels["user"].get("camera") is True:
        raise DataError(f"{where}: {key}.user.mp4 is missing, and the labels say that the camera was on")
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
