"""Films of a reply: both sides, voices, subtitles."""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from wan_streamer.data.captions import to_lines
from wan_streamer.data.film import FAR, NEAR, ReplyWriter, SpeechLevel
from wan_streamer.data.media import read_units
from wan_streamer.errors import MediaError
from wan_streamer.units import SAMPLE_RATE, AgentUnit, UserUnit


def reply(index: int, level: int) -> AgentUnit:
    time = (np.arange(3840) + index * 3840) / SAMPLE_RATE
    audio = (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    return AgentUnit(index=index, audio=audio, video=np.full((4, 48, 80, 3), level, np.uint8))


def test_film_of_a_reply(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "reply.mp4"
    writer = ReplyWriter(path, 48, 80)
    for index in range(10):
        writer.write(UserUnit(video=np.full((4, 100, 100, 3), 250, np.uint8)), reply(index, 250 if index == 5 else 60))
        assert not path.exists()
    writer.close()
    assert [entry.name for entry in path.parent.iterdir()] == ["reply.mp4"]
    with av.open(str(path)) as film:
        video, audio = film.streams.video[0], film.streams.audio[0]
        assert (video.width, video.height, video.average_rate, video.codec_context.name) == (160, 48, 25, "h264")
        assert (audio.sample_rate, audio.channels) == (24_000, 2)
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(frames) == 40
    assert all(frame[:, :78].mean() > 230 for frame in frames)  # the user is on the left
    bright = [index for index, frame in enumerate(frames) if frame[:, 82:].mean() > 200]
    assert bright == [20, 21, 22, 23]  # the agent's unit 5, at its time
    with av.open(str(path)) as film:
        sound = np.concatenate([frame.to_ndarray() for frame in film.decode(audio=0)], axis=1)
    assert abs(sound.shape[1] - 38_400) <= 1024
    left, right = np.abs(sound[:, 4000:30_000]).max(axis=1)
    assert abs(left - 0.5 * FAR) < 0.03  # the agent speaks from the right, but into both ears
    assert abs(right - 0.5 * NEAR) < 0.03


def tone(index: int, level: float, frequency: float) -> np.ndarray:
    time = (np.arange(3840) + index * 3840) / SAMPLE_RATE
    return (level * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


@pytest.mark.parametrize(("user", "agent"), [(0.3, 0.1), (0.08, 0.4), (0.9, 0.9), (0.9, 0.01), (0.0, 0.2)])
def test_the_agent_is_as_loud_as_the_user(user: float, agent: float, tmp_path: Path) -> None:
    """They take turns over the hiss of both microphones; the film is neither shifted nor clipped."""
    rng, picture = np.random.default_rng(0), np.full((4, 48, 80, 3), 60, np.uint8)
    with ReplyWriter(tmp_path / "reply.mp4", 48, 80) as writer:
        for index in range(40):
            turn = index // 5 % 2
            hiss = (0.001 * rng.standard_normal((2, 3840))).astype(np.float32)
            swell = np.minimum(1, np.arange(3840) / 480) if index % 5 == 0 else 1.0
            sides = [(turn == 0) * tone(index, user, 300), (turn == 1) * tone(index, agent, 700)]
            mine, its = hiss + np.array(sides) * swell
            writer.write(UserUnit(audio=mine), AgentUnit(index, its, picture))
    with av.open(str(tmp_path / "reply.mp4")) as film:
        stereo = np.concatenate([frame.to_ndarray() for frame in film.decode(audio=0)], axis=1)
    assert abs(stereo.shape[1] - 40 * 3840) <= 1024
    power = np.square(stereo[:, : 40 * 3840].reshape(2, 8, 5, 3840)[:, 4:, 1:4])  # [ear, turn, unit, sample]
    level = np.sqrt(power.mean(axis=(2, 3)))
    assert np.abs(stereo).max() < 1.0
    for mine, its in (level[:, 0], level[:, 1]), (level[:, 2], level[:, 3]):
        wanted = agent if user == 0 else min(max(user, agent / 4), agent * 4, 1.0)
        assert its == pytest.approx(wanted / 2**0.5 * np.array([FAR, NEAR]), rel=0.1)
        assert mine == pytest.approx(user / 2**0.5 * np.array([NEAR, FAR]), rel=0.1, abs=0.002)


def test_steady_noise_is_not_somebody_who_speaks() -> None:
    rng = np.random.default_rng(0)
    noise, voice = SpeechLevel(), SpeechLevel()
    for index in range(50):
        hiss = (0.01 * rng.standard_normal(3840)).astype(np.float32)
        noise.add(hiss)
        voice.add(hiss + (index % 5 > 2) * tone(index, 0.2, 300))
    assert noise.rms is None
    assert voice.rms == pytest.approx(0.2 / 2**0.5, rel=0.08)


def subtitles(path: Path) -> list[tuple[float, float, str]]:
    """(begin, end, text) as a player reads them."""
    with av.open(str(path)) as film:
        (stream,) = film.streams.subtitles
        assert stream.codec_context.name == "mov_text"
        found = [(float(p.pts * p.time_base), float(p.duration * p.time_base), bytes(p)[2:].decode())
                 for p in film.demux(stream) if p.size > 2]  # fmt: skip
        return [(round(begin, 3), round(begin + length, 3), text) for begin, length, text in found]


@pytest.mark.parametrize("name", ["reply.mp4", "reply.mov"])
def test_subtitles_of_a_reply(name: str, tmp_path: Path) -> None:
    said, heard = {5: "Hel", 6: "lo,", 10: " Joe.", 100: "Bye."}, {0: "Hi.", 9: "Ä\n"}
    with ReplyWriter(tmp_path / name, 48, 80) as writer:
        for index in range(110):
            agent = replace(reply(index, 60), text=said.get(index, ""), transcript=heard.get(index, ""))
            writer.write(UserUnit(), agent)
    assert subtitles(tmp_path / name) == [
        (0.0, 0.8, "heard: Hi."),
        (0.8, 1.12, "agent: Hello, Joe.\nheard: Hi."),
        (1.12, 1.44, "agent: Hello, Joe."),
        (1.44, 2.56, "agent: Hello, Joe.\nheard: Ä"),
        (2.56, 2.72, "agent: Hello, Joe."),
        (16.0, 17.12, "agent: Bye."),
    ]
    with av.open(str(tmp_path / name)) as film:
        assert [stream.type for stream in film.streams] == ["video", "audio", "subtitle"]
        assert film.duration / 1e6 == pytest.approx(17.6, abs=0.05)
        assert sum(1 for _ in film.decode(video=0)) == 440


def test_silent_and_other_films(tmp_path: Path) -> None:
    for name, count in (("silent.mp4", 1), ("other.mkv", 0)):
        with ReplyWriter(tmp_path / name, 48, 80) as writer:
            writer.write(UserUnit(), reply(0, 60))
        with av.open(str(tmp_path / name)) as film:
            assert len(film.streams.subtitles) in (0, count)
        with read_units(tmp_path / name) as units:
            assert len(list(units)) == 1


def test_long_talk_is_cut_at_words() -> None:
    words = [{"unit": unit, "lane": "response", "text": f" word{unit}"} for unit in range(60)]
    lines = to_lines(words, 84)
    assert len(lines) > 3
    assert max(len(line.text) for line in lines) <= 84
    assert " ".join(line.text for line in lines) == " ".join(f"word{unit}" for unit in range(60))
    assert len(to_lines(words)) == 1


def test_film_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="ends in"):
        ReplyWriter(tmp_path / "reply.doc", 48, 80)
    (tmp_path / "file").write_text("x")
    with pytest.raises(MediaError, match="cannot be written"):
        ReplyWriter(tmp_path / "file" / "reply.mp4", 48, 80)
    writer = ReplyWriter(tmp_path / "empty.mp4", 48, 80)
    writer.close()
    writer = ReplyWriter(tmp_path / "given up.mp4", 48, 80)
    writer.write(UserUnit(), reply(0, 60))
    writer.abort()
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
