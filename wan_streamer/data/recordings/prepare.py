"""People's own two-sided recordings -> the shards that `simulate` writes.

`prepare`          a folder of recordings -> OUT_DIR/train, valid and test, and OUT_DIR/report.json
`PrepareOptions`   what the result depends on
`choose_split`     name -> train, valid or test

One recording is one shard, so a shard holds all of its recording or does not exist.
"""

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av.error
import numpy as np

from wan_streamer.data.recordings.labels import (
    GENERATOR,
    SHORTEST_UNITS,
    Talk,
    count_cut,
    episode_labels,
    plan_episodes,
    read_talk,
)
from wan_streamer.data.recordings.ledger import Ledger, Result
from wan_streamer.data.recordings.media import SidesUnit, Survey, read_sides, survey
from wan_streamer.data.recordings.sources import SIDES, Item, find_items
from wan_streamer.data.shard_media import Mp4Encoder, encode_flac
from wan_streamer.data.shards import AGENT_CRF, SPLITS, USER_CRF, Sample, write_samples
from wan_streamer.errors import ConfigError, DataError, MediaError
from wan_streamer.units import UNIT_S

LONGEST_UNITS = 375  # 60 s
FILMS = {"user": (USER_CRF, "yuv420p"), "agent": (AGENT_CRF, "yuv444p")}
Progress = Callable[[float, int, str], None]


@dataclass(frozen=True)
class PrepareOptions:
    """units            longest episode, in units of 160 ms
    user_channel     channel of dual-channel files that is the user: 0 left, 1 right
    split_picture    dual-channel films show the user on the left half and the agent on the right half
    both_ways        make every recording twice, with either participant as the agent
    audio_only       accept recordings without pictures of the agent
    split            put everything into this split
    """

    units: int = LONGEST_UNITS
    user_channel: int = 0
    split_picture: bool = False
    both_ways: bool = False
    audio_only: bool = False
    split: str | None = None

    def __post_init__(self) -> None:
        if self.units < SHORTEST_UNITS:
            raise ConfigError(f"units: expected {SHORTEST_UNITS} (2 s) or more, got {self.units}")
        if self.user_channel not in (0, 1):
            raise ConfigError(f"user channel: expected 0 (left) or 1 (right), got {self.user_channel}")
        if self.split is not None and self.split not in SPLITS:
            raise ConfigError(f"split: expected one of {', '.join(SPLITS)}, got {self.split!r}")


def choose_split(group: str) -> str:
    """train, valid or test, 8:1:1, by a hash of the name: the same on every machine and in every run."""
    return (*["train"] * 8, "valid", "test")[int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") % 10]


def prepare(
    source: str | Path,
    out_dir: str | Path,
    options: PrepareOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Convert every recording of `source` that `out_dir` lacks and return the report (also OUT_DIR/report.json).

    progress   called with (recordings done, as a fraction; recordings in all; name of the current one)

    A recording that cannot be used is rejected with its reason, and the run goes on.
    Raises `DataError` if `source` is not a folder, `out_dir` holds the recordings of another one or cannot be written.
    """
    source, out_dir, options = Path(source), Path(out_dir), options or PrepareOptions()
    if source.resolve() == out_dir.resolve():
        raise DataError(f"{out_dir}: the result cannot go into the folder of the recordings; choose another one")
    found = find_items(source, options.user_channel, options.split_picture, skip=out_dir)
    work = out_dir / ".work" / "shard.tar"
    try:
        shutil.rmtree(work.parent, ignore_errors=True)
        ledger = Ledger(out_dir, source, asdict(options), found.ignored)
        for name, reason in found.unusable.items():
            ledger.reject(Result(name, "unknown", reason=reason))
        for number, item in enumerate(found.items):
            key = _key(item, options)
            if ledger.finished(item.name, key) is None:

                def report_share(share: float, number: int = number, name: str = item.name) -> None:
                    if progress is not None:
                        progress(number + share, len(found.items), name)

                report_share(0.0)
                _prepare_item(item, key, options, ledger, work, report_share)
        ledger.close({item.name for item in found.items} | set(found.unusable))
    except (OSError, av.error.FFmpegError) as error:  # reading never raises these: `read_sides` names the file
        raise DataError(f"{out_dir}: cannot be written ({getattr(error, 'strerror', None) or error})") from error
    finally:
        shutil.rmtree(work.parent, ignore_errors=True)
    return ledger.report()


def _key(item: Item, options: PrepareOptions) -> str:
    """Changes when a file of the recording or an option changes."""
    files = []
    for path in item.files:
        try:
            state = path.stat()
            files.append([path.name, state.st_size, state.st_mtime_ns])
        except OSError:
            files.append([path.name])  # told when it is opened
    text = json.dumps([GENERATOR, item.name, files, asdict(options)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _prepare_item(
    item: Item, key: str, options: PrepareOptions, ledger: Ledger, work: Path, tell: Callable[[float], None]
) -> None:
    """Convert one recording and enter it into the ledger, or enter why not."""
    done: list[int] = []
    try:
        measured = survey(item)
        warnings = list(measured.warnings)
        ways = _ways(measured.cameras, options, warnings)
        talks = {side: read_talk(side, getattr(item, side), measured.levels[side], warnings) for side in SIDES}
        words = [word for talk in talks.values() for word in talk.words]
        plan = plan_episodes(measured.first, measured.last, options.units, words)
        if not plan:
            seconds = max(0, measured.last - measured.first) * UNIT_S
            raise MediaError(f"too short: all tracks together last {seconds:.2f} s, at least 2 s are needed")
        if cut := sum(count_cut(words, end) for _, end in plan):
            warnings.append(f"{cut} words that leave no room for a cut were left out")
        split = options.split or item.split or choose_split(item.group)
        write_samples(work, _samples(item, ways, measured, talks, plan, (split, key), done, tell))
        if not done:
            raise MediaError("no episode of 2 s could be decoded")
    except (MediaError, DataError) as error:
        ledger.reject(Result(item.name, item.kind, reason=str(error)))
        return
    planned = sum(end - begin for begin, end in plan) * len(ways)
    if sum(done) < planned:
        warnings.append(f"only {sum(done) * UNIT_S:.1f} of {planned * UNIT_S:.1f} s could be decoded")
    result = Result(
        item.name,
        item.kind,
        accepted=True,
        key=key,
        split=split,
        episodes=len(done),
        seconds=round(sum(done) * UNIT_S, 2),
        tail_seconds=round((measured.last - plan[-1][1]) * UNIT_S, 2),
        warnings=tuple(warnings),
    )
    ledger.accept(result, work)


def _ways(cameras: dict[str, bool], options: PrepareOptions, warnings: list[str]) -> list[bool]:
    """The directions to make: False as recorded, True with the sides exchanged. Raises `MediaError` if none can be."""
    wanted = [False, True] if options.both_ways else [False]
    possible = [turned for turned in wanted if options.audio_only or cameras["user" if turned else "agent"]]
    if not possible:
        raise MediaError("there are no pictures of the agent; --audio-only accepts that")
    if len(possible) < len(wanted):
        missing = "user" if not cameras["user"] else "agent"
        warnings.append(f"made one way only: there are no pictures of the {missing}")
    return possible


def _samples(
    item: Item,
    ways: list[bool],
    measured: Survey,
    talks: dict[str, Talk],
    plan: list[tuple[int, int]],
    names: tuple[str, str],
    done: list[int],
    tell: Callable[[float], None],
) -> Iterator[Sample]:
    """The encoded episodes of a recording; the length of each in units is added to `done`.

    Raises `MediaError` if the files cannot be decoded. Only one episode's sound and compressed film is in memory.
    """
    split, key = names
    for number, turned in enumerate(ways):
        origin = dict(zip(SIDES, reversed(SIDES) if turned else SIDES, strict=True))  # side -> side of the recording
        way = item.swapped() if turned else item
        cameras = {side: measured.cameras[origin[side]] for side in SIDES}
        spoken = {side: talks[origin[side]] for side in SIDES}
        units = read_sides(way, plan[0][0], plan[-1][1])
        for begin, end in plan:
            episode = _Encoder(cameras)
            for unit in itertools.islice(units, end - begin):
                episode.add(unit)
                tell((number + (begin + episode.units) / plan[-1][1]) / len(ways))
            if episode.units >= SHORTEST_UNITS:
                labels = episode_labels(item.name, split, len(done), (begin, begin + episode.units), spoken, cameras)
                yield Sample(f"ep-{key[:8]}-{len(done):04d}", episode.parts(), labels)
                done.append(episode.units)
            if episode.units < end - begin:  # a damaged file ended early
                break


class _Encoder:
    """One episode while it is read: sound as samples, pictures compressed at once."""

    def __init__(self, cameras: dict[str, bool]) -> None:
        self.units = 0
        self._films = {side: Mp4Encoder(*FILMS[side]) for side in SIDES if cameras[side]}
        self._sound: dict[str, list[np.ndarray]] = {side: [] for side in SIDES}

    def add(self, unit: SidesUnit) -> None:
        for side in SIDES:
            self._sound[side].append(unit.audio[side])
            frames_THWC = unit.video[side]
            if frames_THWC is not None:
                self._films[side].add(frames_THWC)
        self.units += 1

    def parts(self) -> dict[str, bytes]:
        """The files of the sample without its labels."""
        parts = {f"{side}.flac": encode_flac(np.concatenate(self._sound[side])) for side in SIDES}
        return parts | {f"{side}.mp4": film.finish() for side, film in self._films.items()}
