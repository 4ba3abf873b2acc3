"""A second run goes on where the first stopped, and the command tells what happened."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_prepare import TRAIN, pair

from wan_streamer.data.recordings.prepare import PrepareOptions, prepare
from wan_streamer.data.shards import read_episodes, shard_paths
from wan_streamer.errors import ConfigError, DataError


def stamps(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob("*.tar"))}


def test_a_finished_recording_is_not_converted_again(tmp_path):
    source, out = tmp_path / "src", tmp_path / "out"
    for name in ("a", "b", "c"):
        pair(source, name, size=(48, 84))
    first = prepare(source, out, TRAIN)
    before = stamps(out)
    assert list(before) == [f"train/shard-0000{n}.tar" for n in range(3)]
    asked = []
    assert prepare(source, out, TRAIN, lambda done, all_, name: asked.append(name)) == first
    assert (stamps(out), asked) == (before, [])
    os.utime(source / "b.user.mp4", ns=(1, 1))  # changed: b is made again, in its place
    prepare(source, out, TRAIN)
    after = stamps(out)
    assert [name for name in before if before[name] != after[name]] == ["train/shard-00001.tar"]
    (source / "a.agent.mp4").write_bytes(b"")  # broken now: a goes, and no number is missing
    report = prepare(source, out, TRAIN)
    assert report["accepted"] == 2
    assert len(shard_paths(out / "train")) == 2
    assert {episode.labels["recording"] for episode in read_episodes(out / "train")} == {"b", "c"}
    for item in report["items"]:
        if item["accepted"]:
            (episode,) = [e for e in read_episodes(out / "train") if e.labels["recording"] == item["name"]]
            assert (out / item["shard"]).read_bytes().startswith(episode.key.encode())
    for path in source.iterdir():
        path.unlink()
    report = prepare(source, out, TRAIN)
    assert report["accepted"] == 2, "what is gone from the source stays"
    assert all("no longer in the source" in item["warnings"][-1] for item in report["items"])


def test_an_interrupted_run_leaves_whole_shards(tmp_path):
    source, out = tmp_path / "src", tmp_path / "out"
    for name in ("a", "b"):
        pair(source, name, size=(48, 84))

    def stop(done: float, all_: int, name: str) -> None:
        if done > 1.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source, out, TRAIN, stop)
    assert [path.relative_to(out).as_posix() for path in sorted(out.rglob("*"))] == [
        "report.json", "train", "train/shard-00000.tar",
    ]  # fmt: skip
    before = stamps(out)
    assert prepare(source, out, TRAIN)["accepted"] == 2
    assert stamps(out)["train/shard-00000.tar"] == before["train/shard-00000.tar"]
    assert len(list(read_episodes(out / "train"))) == 2


def test_one_result_belongs_to_one_source(tmp_path):
    prepare(pair(tmp_path / "src"), tmp_path / "out", TRAIN)
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="choose another folder"):
        prepare(tmp_path / "other", tmp_path / "out", TRAIN)
    with pytest.raises(DataError, match="choose another"):
        prepare(tmp_path / "src", tmp_path / "src", TRAIN)
    (tmp_path / "out" / "report.json").write_text("{}")
    with pytest.raises(DataError, match=r"report\.json"):
        prepare(tmp_path / "src", tmp_path / "out", TRAIN)
    for wrong in ({"units": 12}, {"user_channel": 2}, {"split": "dev"}):
        with pytest.raises(ConfigError, match="expected"):
            PrepareOptions(**wrong)


def test_command(tmp_path):
    source = pair(tmp_path / "src", size=(48, 84))
    (source / "alone.user.mp4").write_bytes(b"x")
    command = [sys.executable, "-m", "wan_streamer", "prepare", str(source), str(tmp_path / "out"), "--split", "test"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "120"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 recordings accepted, 1 rejected" in done.stdout
    assert "no partner: there is nothing of the agent" in done.stdout
    for path in source.glob("a.*"):
        path.unlink()
    command[5] = str(tmp_path / "none")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert json.loads((tmp_path / "none" / "report.json").read_text())["rejected"] == 1
