"""A recording talks to the agent: through the real command line with the built-in agent, and the clockwork alone."""

import json
import os
import subprocess
import sys
import time
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from films import make_film
from rich.console import Console
from tiny import tiny_weights

from wan_streamer import WanStreamer
from wan_streamer.data.film import FAR, NEAR
from wan_streamer.data.media import read_units
from wan_streamer.runtime import talk as talk_module
from wan_streamer.runtime.formats import Formats
from wan_streamer.runtime.talk import captions, print_summary, talk
from wan_streamer.units import UNIT_MS, AgentUnit, UserUnit

COMMAND = str(Path(sys.executable).with_name("wan-streamer"))
HELLO = Path(__file__).parent.parent / "examples" / "hello.mp4"
HEIGHT, WIDTH = 192, 336
UNITS = 44  # of the example: it is asked for its name and answers
SHORT = 15  # where nobody has to answer
KEYS = {
    "units", "unit_ms", "seconds", "fps", "realtime_factor", "deadline_misses", "model_latency_ms", "event_latency_ms",
    "stage_ms", "transcript", "checkpoint", "device", "seed",
}  # fmt: skip


def spoken(path: Path, size: tuple[int, int] | None, fps: int, rate: int | None, layout: str, count: int) -> Path:
    """The first units of the example in another container: other size, frame rate, sample rate and channels."""
    units = list(islice(read_units(HELLO), count))
    with av.open(str(path), "w") as film:
        if size is not None:
            video = film.add_stream("mpeg4", rate=fps)
            video.height, video.width, video.pix_fmt = *size, "yuv420p"
        if rate is not None:
            audio = film.add_stream("pcm_s16le", rate=rate, layout=layout)
        if size is not None:
            images = np.concatenate([unit.video for unit in units if unit.video is not None])
            for index in range(len(images) * fps // 25):
                image = av.VideoFrame.from_ndarray(images[index * 25 // fps], format="rgb24")
                film.mux(video.encode(image.reformat(width=size[1], height=size[0], format="yuv420p")))
            film.mux(video.encode(None))
        if rate is not None:
            resampler = av.AudioResampler(format="s16", layout=layout, rate=rate)
            samples = np.concatenate([unit.audio for unit in units if unit.audio is not None])
            frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 24_000, 0, Fraction(1, 24_000)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                film.mux(audio.encode(part))
            film.mux(audio.encode(None))
    return path


def run(user: Path, folder: Path, *options: str) -> tuple[list[np.ndarray], np.ndarray, dict]:
    """(frames, stereo sound [2, T], report) of a run of the real command line."""
    film, report = folder / "reply.mp4", folder / "report.json"
    line = [COMMAND, "talk", str(user), "--out", str(film), "--report", str(report), *options]
    result = subprocess.run(line, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stderr
    assert "film" in result.stdout
    return *decoded(film), json.loads(report.read_text())


def decoded(film: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """(frames, stereo sound [2, T]) of a reply."""
    with av.open(str(film)) as reply:
        video, audio = reply.streams.video[0], reply.streams.audio[0]
        assert video.average_rate == 25
        assert audio.sample_rate >= 24_000
        assert audio.channels == 2
        frames = [frame.to_ndarray(format="rgb24") for frame in reply.decode(video=0)]
    with av.open(str(film)) as reply:
        sound = np.concatenate([frame.to_ndarray() for frame in reply.decode(audio=0)], axis=1)
    return frames, sound


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small agent with random weights, where nothing depends on what an agent has learned."""
    folder = tmp_path_factory.mktemp("tiny")
    WanStreamer(tiny_weights(), "tiny").save_pretrained(folder)
    return str(folder)


def agent_sound(sound: np.ndarray) -> np.ndarray:
    """The agent alone: left = NEAR user + FAR agent, right = FAR user + NEAR agent."""
    return (NEAR * sound[1] - FAR * sound[0]) / (NEAR**2 - FAR**2)


def assert_alive(frames: list[np.ndarray], sound: np.ndarray) -> None:
    """The agent's face is a lit picture that moves, and its voice has the loudness and the pauses of speech."""
    assert frames[0].shape == (HEIGHT, 2 * WIDTH, 3)
    face = np.stack([frame[:, WIDTH + 2 :] for frame in frames]).astype(np.float32)
    assert face.mean() > 30  # not black
    assert face[0].std() > 20  # not one colour
    moved = np.abs(np.diff(face[::5], axis=0)).mean(axis=(1, 2, 3))
    assert np.median(moved) > 0.1  # not frozen
    voice = agent_sound(sound)
    loudness = np.sqrt(np.mean(voice[: len(voice) // 960 * 960].reshape(-1, 960) ** 2, axis=1))
    assert np.percentile(loudness, 98) > 0.02  # it says something
    assert np.percentile(loudness, 98) > 5 * np.percentile(loudness, 10)  # and is quiet when it does not


def assert_whole(report: dict, frames: list[np.ndarray], sound: np.ndarray, units: int) -> None:
    """The reply is as long as the recording, and the report says so."""
    assert set(report) >= KEYS
    assert report["unit_ms"] == 160
    assert report["fps"] == 25
    assert report["seed"] == 3
    assert report["units"] == units
    for seconds in (report["seconds"], len(frames) / 25, sound.shape[1] / 24_000):
        assert abs(seconds - units * UNIT_MS / 1000) <= 0.16
    assert report["stage_ms"]
    assert all(0 < stage["p50"] <= stage["p95"] for stage in report["stage_ms"].values())
    assert {entry["lane"] for entry in report["transcript"]} <= {"response", "transcript"}


@pytest.mark.slow
def test_reply_to_a_recording(tmp_path: Path) -> None:
    """Large, 30 fps, stereo 44.1 kHz."""
    user = spoken(tmp_path / "a.mkv", (480, 640), 30, 44_100, "stereo", UNITS)
    frames, sound, report = run(user, tmp_path, "--pace", "fast", "--seed", "3")
    assert_whole(report, frames, sound, UNITS)
    assert_alive(frames, sound)
    assert any(entry["lane"] == "response" and entry["text"].strip() for entry in report["transcript"])


VARIANTS = {
    "small, 50 fps, 8 kHz": ("b.mkv", (90, 122), 50, 8000, "mono"),
    "sound only": ("c.wav", None, 25, 48_000, "stereo"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_recordings_of_other_shapes(variant: str, tiny: str, tmp_path: Path) -> None:
    """What the agent gets of them is in test_media.py; here, that they are answered and shown to their end."""
    name, *shape = VARIANTS[variant]
    user, film = spoken(tmp_path / name, *shape, SHORT), tmp_path / "reply.mp4"
    report = talk(user, film, checkpoint=tiny, pace="fast", seed=3, console=Console(quiet=True))
    frames, sound = decoded(film)
    assert_whole(report, frames, sound, SHORT)
    own, agent = np.split(np.stack(frames), 2, axis=2)
    assert own.shape[1:] == agent.shape[1:] == (96, 96, 3)
    assert (own.std() > 20) == (shape[0] is not None)  # black where there is no picture
    assert agent.std() > 1
    assert np.abs(sound).max() > 0.05


def test_picture_without_sound(tmp_path: Path) -> None:
    """Nobody speaks; the agent is still there."""
    user, film = make_film(tmp_path / "mute.mp4", seconds=1.6, rate=None), tmp_path / "reply.mp4"
    assert talk(user, film, pace="fast", console=Console(quiet=True))["units"] == 10
    face = np.stack([frame[:, WIDTH + 2 :] for frame in decoded(film)[0]]).astype(np.float32)
    assert face.mean() > 30
    assert np.abs(face[-1] - face[0]).mean() > 0.1


def test_real_time(tiny: str, tmp_path: Path) -> None:
    """Paced by the clock: as long as the recording, and no later at its end than a unit and a step, however slow the
    machine is."""
    user = spoken(tmp_path / "user.mkv", (192, 336), 25, 24_000, "mono", SHORT)
    _, _, report = run(user, tmp_path, "--pace", "realtime", "--checkpoint", tiny)
    assert report["units"] == SHORT
    latency, event = report["model_latency_ms"], report["event_latency_ms"]
    assert 0 <= report["seconds"] / report["realtime_factor"] - report["seconds"] <= 0.3 + latency["p99"] / 1000
    assert report["backlog_max"] <= 1 + latency["p99"] // UNIT_MS
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
    assert 60 <= event["p50"] - latency["p50"] <= 110


def test_same_seed_same_film(tiny: str, tmp_path: Path) -> None:
    """In this process and in another."""
    user = make_film(tmp_path / "user.mp4", seconds=1.6)
    other, _, _ = run(user, tmp_path, "--pace", "fast", "--seed", "1", "--checkpoint", tiny)
    replies = []
    for seed in (1, 2):
        talk(user, tmp_path / f"{seed}.mp4", checkpoint=tiny, pace="fast", seed=seed, console=Console(quiet=True))
        replies.append(decoded(tmp_path / f"{seed}.mp4")[0])
    assert all((one == two).all() for one, two in zip(replies[0], other, strict=True))
    assert any((one != two).any() for one, two in zip(*replies, strict=True))


class StandInSession:
    """Takes `seconds` for each unit; answers with the number of the unit as grey value."""

    seed = 0

    def __init__(self, seconds: float) -> None:
        self.seconds, self.heard = seconds, 0

    def step(self, user: UserUnit, steps: int | None = None) -> AgentUnit:
        time.sleep(self.seconds)
        self.heard += 1
        if self.heard == StandInAgent.interrupt_at:
            raise KeyboardInterrupt
        picture = np.full((4, 48, 80, 3), 5 * self.heard, np.uint8)
        return AgentUnit(0, np.zeros(3840, np.float32), picture, text="ok " if self.heard == 2 else user.text)


class StandInAgent:
    """What `talk` needs of an agent, without a model."""

    name, device, default_steps, frame_size = "stand-in", "cpu", 2, (48, 80)
    formats = Formats("float32", "float32")
    chat = ""
    seconds, interrupt_at = 0.0, 0

    def warmup(self) -> None: ...

    def close(self) -> None: ...

    def session(self, seed: int = 0) -> StandInSession:
        return StandInSession(self.seconds)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandInAgent]:
    monkeypatch.setattr(talk_module, "open_agent", lambda name, device, schedule: StandInAgent())
    monkeypatch.setattr(StandInAgent, "seconds", 0.0)
    monkeypatch.setattr(StandInAgent, "interrupt_at", 0)
    return StandInAgent


def test_units_are_released_by_the_clock(stand_in: type[StandInAgent], tmp_path: Path) -> None:
    stand_in.seconds = 0.02
    user = make_film(tmp_path / "user.mp4", seconds=1.6)
    start = time.monotonic()
    report = talk(user, tmp_path / "reply.mp4", pace="realtime")
    assert time.monotonic() - start >= 1.6  # the tenth unit is complete at 1.6 s
    assert report["units"] == 10
    assert report["held_units"] == 0
    assert 20 <= report["model_latency_ms"]["p50"] < 100
    assert report["transcript"] == [{"unit": 1, "lane": "response", "text": "ok "}]


def test_fast_does_not_wait(stand_in: type[StandInAgent], tmp_path: Path) -> None:
    report = talk(make_film(tmp_path / "user.mp4", seconds=3.2), tmp_path / "reply.mp4", pace="fast")
    assert report["realtime_factor"] > 2


def test_typed_text_comes_with_its_unit(stand_in: type[StandInAgent], tmp_path: Path) -> None:
    user = make_film(tmp_path / "user.mp4", seconds=1.6)
    report = talk(user, tmp_path / "reply.mp4", pace="fast", typed={4: "Say: hello"})
    assert report["transcript"][-1] == {"unit": 4, "lane": "response", "text": "Say: hello"}


def test_too_slow_a_model_holds_units_and_stays_in_time(stand_in: type[StandInAgent], tmp_path: Path) -> None:
    stand_in.seconds = 0.25
    report = talk(make_film(tmp_path / "user.mp4", seconds=2.4), tmp_path / "reply.mp4", pace="realtime")
    assert report["units"] == 15
    assert report["held_units"] >= 3
    assert report["deadline_misses"] >= report["held_units"]
    assert report["realtime_factor"] > 0.8
    with av.open(str(tmp_path / "reply.mp4")) as reply:
        assert sum(1 for _ in reply.decode(video=0)) == 60  # a held unit is in the film, as the frame before it


def test_a_cut_recording_is_told(stand_in: type[StandInAgent], tmp_path: Path) -> None:
    user, said = make_film(tmp_path / "user.mkv", seconds=6.0), tmp_path / "said"
    user.write_bytes(user.read_bytes()[: user.stat().st_size // 2])
    with said.open("w") as file:
        report = talk(user, tmp_path / "reply.mp4", pace="fast", console=Console(file=file, width=200))
    assert 0 < report["units"] < 37
    assert len(report["warnings"]) == 1
    assert f"warning: {user}: {report['warnings'][0]}" in said.read_text()


def test_interruption_keeps_what_there_is(stand_in: type[StandInAgent], tmp_path: Path) -> None:
    stand_in.interrupt_at = 6
    film, report = tmp_path / "reply.mp4", tmp_path / "report.json"
    user = make_film(tmp_path / "user.mp4", seconds=3.2)
    console = Console(file=(tmp_path / "said").open("w"), width=200)
    with pytest.raises(KeyboardInterrupt):
        talk(user, film, report, pace="fast", console=console)
    console.file.close()
    assert "kept 0.8 s" in (tmp_path / "said").read_text()
    with av.open(str(film)) as reply:
        assert sum(1 for _ in reply.decode(video=0)) == 20
    assert json.loads(report.read_text())["interrupted"] is True
    assert sorted(os.listdir(tmp_path)) == ["reply.mp4", "report.json", "said", "user.mp4"]


def test_a_broken_model_leaves_no_film(
    stand_in: type[StandInAgent], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(self: StandInSession, user: UserUnit, steps: int | None = None) -> AgentUnit:
        raise RuntimeError("broken")

    monkeypatch.setattr(StandInSession, "step", broken)
    with pytest.raises(RuntimeError, match="broken"):
        talk(make_film(tmp_path / "user.mp4", seconds=0.6), tmp_path / "reply.mp4", tmp_path / "report.json")
    assert os.listdir(tmp_path) == ["user.mp4"]


def test_captions_join_what_is_said_in_one_go() -> None:
    words = [(1, "response", "Hel"), (2, "transcript", "a "), (3, "response", "lo."), (3, "transcript", "b"),
             (30, "response", "Bye."), (31, "transcript", " ")]  # fmt: skip
    transcript = [{"unit": unit, "lane": lane, "text": text} for unit, lane, text in words]
    assert captions(transcript) == [(1, "response", "Hello."), (2, "transcript", "a b"), (30, "response", "Bye.")]


def test_summary_for_people(stand_in: type[StandInAgent], tmp_path: Path) -> None:
    report = talk(make_film(tmp_path / "user.mp4", seconds=1.6), tmp_path / "reply.mp4", pace="fast")
    with (tmp_path / "said").open("w") as file:
        print_summary(report, tmp_path / "reply.mp4", Console(file=file, width=120))
    said = (tmp_path / "said").read_text()
    for words in ("model latency", "event latency", "1.6 s in 10 units", "agent: ok", "reply.mp4"):
        assert words in said
