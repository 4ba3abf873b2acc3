"""Encoding on one and on many cores, what makes a file stale, and the cluster."""

import contextlib
import dataclasses
import os
import platform
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import TALKER, shared_weights, tiny_weights
from tiny_world import make_episode

from wan_streamer.cli.app import EXTRAS
from wan_streamer.codecs.folder import codec_hash
from wan_streamer.data import cluster, encode
from wan_streamer.data.cluster import Engine, run_jobs
from wan_streamer.data.encode import encode_episode, read_metadata, source_hashes
from wan_streamer.data.latents import LatentStore, encode_shards
from wan_streamer.data.shards import check_labels, shard_name, write_shard
from wan_streamer.errors import ConfigError, DataError, WanStreamerError

UNITS = 5
EPISODES = 4


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number in range(2):
        made = [make_episode(2 * number + i, UNITS, camera=i == 0) for i in range(2)]
        write_shard(tmp_path / "shards" / shard_name(number), made)
    return tmp_path / "shards"


def encode_tiny(shards: Path, out: Path, perception=TALKER.perception, weights=None, **options) -> int:
    weights = weights or shared_weights("tiny")
    return encode_shards(shards, out, weights.audio_vae, weights.video_vae, perception, **options)


def fingerprint(weights=None) -> str:
    weights = weights or shared_weights("tiny")
    return codec_hash(weights.audio_vae, weights.video_vae)


def test_a_finished_store_is_left_as_it_is(shards: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert encode_tiny(shards, tmp_path / "out", progress=lambda *at: seen.append(at)) == EPISODES
    assert seen == [(2, 4), (4, 4)]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert len(before) == EPISODES
    assert encode_tiny(shards, tmp_path / "out") == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_many_processes_write_the_same_files(shards: Path, tmp_path: Path) -> None:
    encode_tiny(shards, tmp_path / "one")
    assert encode_tiny(shards, tmp_path / "two", engine=Engine(processes=2)) == EPISODES
    for path in sorted((tmp_path / "one").iterdir()):
        one, two = load_file(path), load_file(tmp_path / "two" / path.name)
        assert one.keys() == two.keys()
        assert all((one[name].float() - two[name].float()).abs().max() < 2e-2 for name in one)
        assert read_metadata(path) == read_metadata(tmp_path / "two" / path.name)


@pytest.mark.parametrize("changed", ["format", "codecs", "perception", "source"])
def test_stale_files_are_refused_and_made_again(shards: Path, tmp_path: Path, changed: str, monkeypatch) -> None:
    out, weights, perception = tmp_path / "out", None, TALKER.perception
    encode_tiny(shards, out)
    found = read_metadata(min(out.iterdir()))[changed]
    if changed == "format":
        monkeypatch.setattr(encode, "FORMAT", "99")
    elif changed == "codecs":
        weights = tiny_weights(seed=1)
    elif changed == "perception":
        perception = dataclasses.replace(perception, video_height=24)
    else:
        one, two = make_episode(0, UNITS), make_episode(1, UNITS, camera=False)
        write_shard(shards / shard_name(0), [dataclasses.replace(one, user_audio=one.user_audio / 2), two])
    wanted = fingerprint(weights), perception, shards
    with pytest.raises(DataError, match=rf"{encode.STAMP[changed]} {found}, expected \S+; encode the shards again"):
        LatentStore(out, *wanted)
    assert encode_tiny(shards, out, perception, weights) == (1 if changed == "source" else EPISODES)
    assert len(LatentStore(out, *wanted).paths) == EPISODES
    assert encode_tiny(shards, out, perception, weights) == 0


def test_the_source_is_the_labels_and_the_sound(tmp_path: Path) -> None:
    episode = make_episode(0, UNITS)
    changes: dict[str, dict] = {
        "same": {},
        "sound": {"agent_audio": episode.agent_audio * 0.9},
        "labels": {"labels": {**episode.labels, "generator": "other"}},
        "camera": {"user_video": None},
    }
    write_shard(tmp_path / "a.tar", [episode])
    first = source_hashes(tmp_path / "a.tar")["ep000000"]
    for name, change in changes.items():
        write_shard(tmp_path / "b.tar", [dataclasses.replace(episode, **change)])
        assert (source_hashes(tmp_path / "b.tar")["ep000000"] == first) == (name == "same")


def test_a_damaged_file_is_named_and_made_again(shards: Path, tmp_path: Path) -> None:
    encode_tiny(shards, tmp_path / "out")
    path = max((tmp_path / "out").iterdir())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=path.name):
        LatentStore(tmp_path / "out", fingerprint())
    assert encode_tiny(shards, tmp_path / "out") == 1


def test_a_damaged_shard_is_named(shards: Path, tmp_path: Path) -> None:
    path = shards / shard_name(1)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=shard_name(1)):
        encode_tiny(shards, tmp_path / "out", engine=Engine(processes=2))


@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_equal_the_whole(chunk: int, monkeypatch) -> None:
    weights, episode = shared_weights("tiny"), make_episode(3, 7)
    parts = weights.audio_vae, weights.video_vae, TALKER.perception
    monkeypatch.setattr(encode, "CHUNK_UNITS", 7)
    whole = encode_episode(episode, *parts)
    monkeypatch.setattr(encode, "CHUNK_UNITS", chunk)
    assert all(torch.equal(whole[name], value) for name, value in encode_episode(episode, *parts).items())


def test_bfloat16_only_rounds(shards: Path, tmp_path: Path) -> None:
    encode_tiny(shards, tmp_path / "out")
    weights = shared_weights("tiny")
    exact = encode_episode(make_episode(0, UNITS), weights.audio_vae, weights.video_vae, TALKER.perception)
    stored = load_file(tmp_path / "out" / "shard-00000-ep000000.safetensors")
    error = (stored["video"].float() - exact["video"].float()).square().mean().sqrt()
    # the film went through H.264, so compare with what that alone costs
    assert error < 0.1 * exact["video"].float().std()


def test_a_recording_without_the_agents_film_has_sound_only(tmp_path: Path) -> None:
    labels = make_episode(0, UNITS).labels
    del labels["seed"], labels["scenarios"], labels["mouth_open"]
    labels |= {"source": "recorded", "recording": "a", "start": 0.0, "transcribed": {"user": True, "agent": True}}
    labels |= {"user": {"camera": False}, "agent": {"camera": False}}
    sound = dataclasses.replace(make_episode(0, UNITS), user_video=None, agent_video=None, labels=labels)
    write_shard(tmp_path / "shards" / shard_name(0), [sound])
    assert encode_tiny(tmp_path / "shards", tmp_path / "out") == 1
    clip = LatentStore(tmp_path / "out", fingerprint(), TALKER.perception).read(0, 0, UNITS)
    assert clip.keys() == {"audio", "user_audio"}
    assert clip["audio"].shape == (UNITS + 1, 4, TALKER.audio_vae.latent_dim)


def test_a_film_of_another_size_is_refused() -> None:
    weights, episode = shared_weights("tiny"), make_episode(0, UNITS)
    narrow = dataclasses.replace(episode, agent_video=episode.agent_video[:, :, :64])
    with pytest.raises(DataError, match=r"expected a film of \(96, 96\), got \(96, 64\)"):
        encode_episode(narrow, weights.audio_vae, weights.video_vae, TALKER.perception)


def threads(number: int) -> tuple[int, int, str | None]:
    import torch

    return number, torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")


# fails for a number with a typed error; it lives in a module that loads fast
fail = partial(check_labels, where="this job")


def test_workers_have_one_thread_and_errors_keep_their_type(monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert sorted(run_jobs(threads, range(3), Engine(processes=2))) == [(n, 1, "1") for n in range(3)]
    assert "OMP_NUM_THREADS" not in os.environ
    with pytest.raises(DataError, match="this job: expected labels as an object, got int"):
        list(run_jobs(fail, range(3), Engine(processes=2)))
    with pytest.raises(WanStreamerError, match="died"):
        list(run_jobs(os._exit, range(3), Engine(processes=2)))


SLOW = """
import sys, time
from functools import partial
from pathlib import Path
from wan_streamer.data.cluster import Engine, run_jobs

def job(folder, number):
    (folder / f"{number}.safetensors.partial").touch()
    time.sleep(60)

if __name__ == "__main__":
    list(run_jobs(partial(job, Path(sys.argv[1])), range(4), Engine(processes=2)))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_parent(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    parent = subprocess.Popen(
        [sys.executable, script, tmp_path],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a background job would ignore Ctrl-C
    )
    limit = time.monotonic() + 60  # a busy machine starts processes slowly
    while len(list(tmp_path.glob("*.partial"))) < 2 and time.monotonic() < limit:
        time.sleep(0.05)
    parent.send_signal(how)
    parent.wait(timeout=30)
    limit = time.monotonic() + 15
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < limit:
            os.killpg(parent.pid, 0)  # raises when the last process of the group has ended
            time.sleep(0.05)
        pytest.fail("a worker is still there")


def test_interrupted_encoding_leaves_whole_files(shards: Path, tmp_path: Path) -> None:
    worker = subprocess.Popen([sys.executable, "-c", ""])
    killed = worker.pid
    worker.wait()

    def stop(done: int, total: int) -> None:
        (tmp_path / "out" / f".shard-00001-ep000003.safetensors.{platform.node()}-{killed}.part").touch()
        (tmp_path / "out" / f".shard-00001-ep000003.safetensors.{platform.node()}-{os.getpid()}.part").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_tiny(shards, tmp_path / "out", progress=stop)
    halves = [path for path in (tmp_path / "out").iterdir() if path.suffix == ".part"]
    assert [str(os.getpid()) in path.name for path in halves] == [True], "what another process writes now is kept"
    assert len(list((tmp_path / "out").iterdir())) == 3
    assert encode_tiny(shards, tmp_path / "out") == EPISODES - 2
    labels = LatentStore(tmp_path / "out", fingerprint()).labels
    assert [row["index"] for row in labels] == list(range(EPISODES))
    assert labels[0] == make_episode(0, UNITS).labels


def test_engine_says_what_it_needs(monkeypatch) -> None:
    with pytest.raises(ConfigError, match="local or ray"):
        Engine("slurm")
    with pytest.raises(ConfigError, match="processes"):
        Engine(processes=0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError) as missing:
        list(run_jobs(threads, range(2), Engine("ray")))
    assert EXTRAS[str(missing.value.name)] == "cluster"  # what the command line makes of it


@pytest.mark.slow
def test_ray_writes_the_same_files(shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    encode_tiny(shards, tmp_path / "one")
    assert encode_tiny(shards, tmp_path / "ray", engine=Engine("ray")) == EPISODES
    one, other = (sorted((tmp_path / name).iterdir()) for name in ("one", "ray"))
    assert [read_metadata(path) for path in one] == [read_metadata(path) for path in other]
    with pytest.raises(DataError, match="this job: expected labels as an object, got int"):
        list(cluster.run_jobs(fail, range(2), Engine("ray")))
