"""Shards come back as they were written, and damage is named."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wan_streamer.data import shards
from wan_streamer.data.shard_media import Mp4Encoder, encode_mp4
from wan_streamer.data.shards import SCHEMA, Episode, check_labels, read_episodes, read_shard, shard_name, write_shard
from wan_streamer.errors import DataError
from wan_streamer.units import FRAMES_PER_UNIT, SAMPLES_PER_UNIT


def an_episode(index: int = 0, units: int = 3, camera: bool = True) -> Episode:
    rng = np.random.default_rng(index)
    frames, samples = units * FRAMES_PER_UNIT, units * SAMPLES_PER_UNIT
    row_W = np.linspace(40, 200, 64)
    film = np.stack([np.tile((row_W + 2 * t)[None, :, None], (48, 1, 3)) for t in range(frames)]).astype(np.uint8)
    word = {"text": "Hello.", "start": 0.1, "end": 0.4}
    labels = {
        "schema": SCHEMA, "generator": "test", "seed": 1, "split": "train", "index": index, "units": units, "fps": 25,
        "scenarios": ["greeting"], "user": {"camera": camera}, "agent": {},
        "words": {"user": [word], "agent": [word]},
        "phonemes": {"user": [], "agent": [{"symbol": "h", "start": 0.1, "end": 0.15}]},
        "events": [{"type": "speech", "side": "agent", "start": 0.1, "end": 0.4, "label": "hello"}],
        "mouth_open": {"user": [0.0] * frames, "agent": [0.5] * frames},
    }  # fmt: skip
    user, agent = (rng.uniform(-0.5, 0.5, samples).astype(np.float32) for _ in range(2))
    return Episode(f"ep{index:06d}", user, agent, film if camera else None, film[:, ::-1], labels)


def a_recording(agent_camera: bool = True) -> Episode:
    """`an_episode` as if it had been recorded: without what only a simulator knows."""
    episode = an_episode()
    labels = {k: v for k, v in episode.labels.items() if k not in ("seed", "scenarios", "mouth_open")}
    labels |= {
        "source": "recorded", "recording": "talk", "start": 1.5, "transcribed": {"user": True, "agent": False},
        "user": {"camera": True}, "agent": {"camera": agent_camera}, "phonemes": {"user": [], "agent": []},
    }  # fmt: skip
    return replace(episode, labels=labels, agent_video=episode.agent_video if agent_camera else None)


def rewrite(path, change) -> None:
    """Copy a tar while `change(name, data)` returns the new data, or None to leave the member out."""
    with tarfile.open(path) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            data = change(name, data)
            if data is not None:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def test_round_trip(tmp_path):
    written = [an_episode(0), an_episode(1, camera=False)]
    write_shard(tmp_path / shard_name(0), written)
    write_shard(tmp_path / shard_name(1), [an_episode(2)])
    assert sorted(p.name for p in tmp_path.iterdir()) == [shard_name(0), shard_name(1)]
    read = list(read_episodes(tmp_path))
    assert [e.key for e in read] == ["ep000000", "ep000001", "ep000002"]
    for a, b in zip(written, read[:2], strict=True):
        assert a.labels == b.labels
        assert b.user_audio.dtype == np.float32
        assert np.abs(a.user_audio - b.user_audio).max() < 1e-4
        assert np.abs(a.agent_audio - b.agent_audio).max() < 1e-4
        assert b.agent_video.shape == a.agent_video.shape
        assert np.abs(a.agent_video.astype(int) - b.agent_video).mean() < 2.0
    assert read[1].user_video is None
    assert np.abs(written[0].user_video.astype(int) - read[0].user_video).mean() < 3.0
    silent = next(read_episodes(tmp_path, video=False))
    assert silent.agent_video is None
    assert silent.units == 3


def test_a_recording_needs_no_simulator_keys_and_may_lack_the_agents_film(tmp_path):
    second = replace(a_recording(agent_camera=False), key="ep000001")
    write_shard(tmp_path / shard_name(0), [a_recording(), second])
    whole, blind = read_episodes(tmp_path)
    assert whole.labels == a_recording().labels
    assert whole.agent_video is not None
    assert blind.agent_video is None
    assert blind.user_video is not None
    with tarfile.open(tmp_path / shard_name(0)) as tar:
        assert len([name for name in tar.getnames() if name.endswith("agent.mp4")]) == 1
    for made in (a_recording(), an_episode()):  # their labels do not say that there was no camera
        with pytest.raises(DataError, match="without the agent's film"):
            write_shard(tmp_path / shard_name(1), [replace(made, agent_video=None)])


def test_a_film_in_pieces_is_the_same_film(tmp_path):
    film_THWC = an_episode().agent_video
    encoder = Mp4Encoder(20, "yuv420p")
    for piece in np.split(film_THWC, [1, 5, 8]):
        encoder.add(piece)
    assert encoder.finish() == encode_mp4(film_THWC, 20, "yuv420p")


def test_equal_episodes_give_equal_files(tmp_path):
    for name in ("a", "b"):
        write_shard(tmp_path / name / shard_name(0), [an_episode()])
    assert (tmp_path / "a" / shard_name(0)).read_bytes() == (tmp_path / "b" / shard_name(0)).read_bytes()


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match="film"):
        write_shard(tmp_path / shard_name(0), [an_episode(), replace(an_episode(1), agent_video=None)])
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_shard_and_gap(tmp_path):
    with pytest.raises(DataError, match="expected a folder of shards"):
        list(read_episodes(tmp_path / "nothing"))
    with pytest.raises(DataError, match=shard_name(0)):
        list(read_episodes(tmp_path))
    write_shard(tmp_path / shard_name(1), [an_episode()])
    with pytest.raises(DataError, match=f"{shard_name(0)} is missing"):
        list(read_episodes(tmp_path))


@pytest.mark.parametrize("keep", [0, 100, 0.3, 0.6])
def test_a_truncated_shard_is_damaged(tmp_path, keep):
    path = tmp_path / shard_name(0)
    write_shard(path, [an_episode(0), an_episode(1)])
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(DataError, match=shard_name(0)):
        list(read_shard(path))


@pytest.mark.parametrize("part", ["user.flac", "user.mp4", "agent.mp4", "json"])
def test_a_missing_or_broken_part_is_named(tmp_path, part):
    for change in (lambda data: None, lambda data: b"not media, not JSON"):
        path = tmp_path / shard_name(0)
        write_shard(path, [an_episode()])
        rewrite(path, lambda name, data, change=change: change(data) if name.endswith(part) else data)
        with pytest.raises(DataError, match="ep000000"):
            list(read_shard(path))


TEXT = {"text": 1, "start": 0.0, "end": 0.1}
TIMES = {"text": "a", "start": True, "end": 0.1}
BEFORE = {"text": "a", "start": -0.5, "end": 0.1}
OUTSIDE = {"text": "a", "start": 5.0, "end": 6.0}
BACKWARDS = {"text": "a", "start": 0.4, "end": 0.1}
FAULTS = [  # of a simulated conversation: what is changed, what is told
    ({"targets": ["picture"]}, "targets"),
    ({"schema": 99}, "schema 99"),
    ({"source": "invented"}, "source"),
    ({"units": "3"}, "'units': expected int"),
    ({"units": True}, "'units': expected int"),
    ({"units": 0}, "units > 0"),
    ({"fps": 30}, "fps 25"),
    ({"index": -1}, "'index'"),
    ({"generator": None}, "'generator'"),
    ({"split": "dev"}, "split"),
    ({"user": []}, "'user'"),
    ({"user": {"camera": "on"}}, "camera"),
    ({"scenarios": "greeting"}, "'scenarios'"),
    ({"before": "hello"}, "'before'"),
    ({"before": [{"side": "both", "text": "Hello."}]}, r"before\[0\]"),
    ({"before": [{"side": "user"}]}, r"before\[0\]"),
    ({"words": {"user": []}}, "words"),
    ({"words": {"user": [], "agent": [TEXT]}}, r"words.agent\[0\]"),
    ({"words": {"user": [TIMES], "agent": []}}, r"words.user\[0\]"),
    ({"words": {"user": [BEFORE], "agent": []}}, "outside"),
    ({"phonemes": {"user": [{"text": "a", "start": 0, "end": 0}], "agent": []}}, r"phonemes.user\[0\]"),
    ({"events": [{"type": "speech"}]}, r"events\[0\]"),
    ({"events": [{"type": "speech", "side": "dog", "start": 0, "end": 0}]}, r"events\[0\].*side"),
    ({"events": [{"type": "speech", "side": "user", "start": 0, "end": 0, "label": 3}]}, r"events\[0\].*label"),
    ({"mouth_open": {"user": 3, "agent": []}}, "mouth_open"),
    ({"mouth_open": {"user": ["a"] * 12, "agent": [0] * 12}}, "mouth_open"),
    ({"mouth_open": {"user": [1.5] * 12, "agent": [0] * 12}}, "mouth_open"),
]
RECORDED_FAULTS = [
    ({"start": -1.0}, "'start'"),
    ({"start": "0"}, "'start'"),
    ({"recording": 3}, "'recording'"),
    ({"transcribed": {"user": True}}, "transcribed"),
    ({"agent": {}}, "camera"),
]
AGREEMENT_FAULTS = [  # one key against another: only `check_labels` sees them
    ({"words": {"user": [], "agent": [OUTSIDE]}}, "outside"),
    ({"words": {"user": [BACKWARDS], "agent": []}}, "out of order"),
    ({"mouth_open": {"user": [], "agent": []}}, "mouth_open"),
    ({"units": 4}, "mouth_open"),
]


@pytest.mark.parametrize(
    ("labels", "change", "problem"),
    [(an_episode().labels, *fault) for fault in FAULTS + AGREEMENT_FAULTS]
    + [(a_recording().labels, *fault) for fault in RECORDED_FAULTS],
)
def test_labels_are_checked(labels, change, problem):
    with pytest.raises(DataError, match=problem):
        check_labels(json.loads(json.dumps(labels | change)), "here")


def test_the_schema_file_and_the_check_agree():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(Path(shards.__file__).with_name("schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    accepts = jsonschema.Draft202012Validator(schema).is_valid
    recorded = a_recording().labels
    good = [an_episode().labels, an_episode().labels | {"source": "simulated"}, recorded, recorded | {"start": 0}]
    good += [an_episode().labels | {"before": before} for before in ([], [{"side": "user", "text": "Hello."}])]
    good += [an_episode().labels | {"seed": -1}, recorded | {"new_key": 1}]
    for labels in good:
        check_labels(labels, "here")
        assert accepts(labels)
        needed = labels.keys() - {"source", "new_key", "before"}
        for key in needed:
            less = {k: v for k, v in labels.items() if k != key}
            assert not accepts(less), key
            with pytest.raises(DataError, match=repr(key)):
                check_labels(less, "here")
    assert not accepts(recorded | {"source": "simulated"})
    for base, faults in ((an_episode().labels, FAULTS), (recorded, FAULTS + RECORDED_FAULTS)):
        for change, problem in faults:
            assert not accepts(base | change), problem
    assert all(accepts(an_episode().labels | change) for change, _ in AGREEMENT_FAULTS)
    known = set(schema["properties"])
    assert set(an_episode().labels) | set(recorded) | {"task", "targets", "prompt", "face", "before"} == known


def test_every_documented_key_is_needed():
    for labels in (an_episode().labels, a_recording().labels):
        for key in labels.keys() - {"source"}:
            with pytest.raises(DataError, match=repr(key)):
                check_labels({k: v for k, v in labels.items() if k != key}, "here")


def test_sound_of_another_length_is_refused(tmp_path):
    episode = an_episode()
    path = tmp_path / shard_name(0)
    write_shard(path, [replace(episode, user_audio=episode.user_audio[:-100])])
    with pytest.raises(DataError, match=r"expected 11520 samples, got 11420"):
        list(read_shard(path))
