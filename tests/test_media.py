"""Any recording becomes units: right length, right time, right shape, whatever the container holds."""

import struct
import wave
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from films import make_film

from wan_streamer.data.captions import to_lines
from wan_streamer.data.film import FAR, NEAR, ReplyWriter, SpeechLevel, fill
from wan_streamer.data.media import read_units
from wan_streamer.data.pictures import Scaler
from wan_streamer.errors import MediaError
from wan_streamer.serving.uplink import VideoInput, fit
from wan_streamer.units import FPS, SAMPLE_RATE, UNIT_S, AgentUnit, UserUnit

VARIABLE = [0, 100, 150, 900, 1000, 1010, 1190, 1210, 1900]  # ms; white from 1000 up to 1210

FILMS = {
    "odd size, 30 fps": ("a.mp4", {"size": (121, 161), "fps": 30}),
    "film rate, 44.1 kHz mono": ("b.mp4", {"fps": Fraction(24000, 1001), "rate": 44_100, "layout": "mono"}),
    "60 fps, 5.1": ("c.mp4", {"fps": 60, "layout": "5.1"}),
    "10 fps, 8 kHz": ("d.mkv", {"fps": 10, "rate": 8000, "layout": "mono", "codecs": ("mpeg4", "pcm_s16le")}),
    "variable frame rate": ("e.mkv", {"pts": VARIABLE}),
    "sound starts late": ("f.mp4", {"audio_start": 0.5}),
    "picture starts late": ("g.mkv", {"video_start": 0.6}),
    "browser recording": ("h.webm", {"codecs": ("libvpx", "libopus"), "audio_start": 0.3}),
    "transport stream": ("i.ts", {}),
    "no sound": ("j.mp4", {"rate": None}),
    "no picture": ("k.wav", {"size": None, "rate": 22_050, "codecs": ("", "pcm_s16le")}),
}


def moments(path: Path) -> dict[str, float]:
    """Reads the film; where tone and flash begin and end, and how long it is, in seconds."""
    found: dict[str, float] = {}
    with read_units(path) as reader:
        units = list(reader)
        assert reader.units is not None
        assert abs(reader.units - len(units)) <= 1
    found["seconds"] = len(units) * UNIT_S
    if reader.has_audio:
        audio = np.concatenate([unit.audio for unit in units])
        loud = np.nonzero(np.abs(audio) > 0.1)[0] / SAMPLE_RATE
        found["tone"], found["tone_end"] = loud[0], loud[-1]
        found["level"] = float(np.abs(audio).max())
    if reader.has_video:
        light: list[float] = []
        for unit in units:
            light += [0.0] * 4 if unit.video is None else [float(frame.mean()) for frame in unit.video]
        white = np.nonzero(np.array(light) > 200)[0] / FPS
        found["flash"], found["flash_end"] = white[0], white[-1] + 1 / FPS
    return found


@pytest.mark.parametrize("name", FILMS)
def test_length_and_time(name: str, tmp_path: Path) -> None:
    file, options = FILMS[name]
    found = moments(make_film(tmp_path / file, **options))
    assert abs(found["seconds"] - 2.0) <= UNIT_S
    shift = 0.03 if file.endswith(".ts") else 0.0  # its clock begins with the codec's padding, before the first sample
    for event, truth in {"tone": 1.0, "flash": 1.0, "tone_end": 1.2, "flash_end": 1.2}.items():
        if event in found:
            assert abs(found[event] - truth) <= 1 / FPS + shift, (event, found)
    if "level" in found:
        assert 0.4 < found["level"] < 0.6  # a down-mix neither clips nor fades


def test_missing_tracks_are_none(tmp_path: Path) -> None:
    silent = next(iter(read_units(make_film(tmp_path / "a.mp4", rate=None))))
    assert silent.audio is None
    assert silent.video is not None
    dark = next(iter(read_units(make_film(tmp_path / "b.wav", size=None, codecs=("", "pcm_s16le")))))
    assert dark.video is None
    assert dark.audio is not None


def test_camera_is_off_until_its_track_begins(tmp_path: Path) -> None:
    units = list(read_units(make_film(tmp_path / "a.mkv", video_start=0.6)))
    assert [unit.video is None for unit in units[:4]] == [True, True, True, False]
    assert units[3].video is not None
    assert units[3].video[:3].max() == 0  # 0.48 s up to 0.60 s
    assert units[3].video[3].max() > 0


def test_huge_frames_are_scaled_down(tmp_path: Path) -> None:
    unit = next(iter(read_units(make_film(tmp_path / "a.mp4", size=(1440, 2560), seconds=0.4, rate=None))))
    assert unit.video is not None
    assert unit.video.shape == (4, 360, 640, 3)


def phone_film(path: Path) -> Path:
    """A phone held upright writes a landscape track with a display matrix of 90 degrees clockwise."""
    with av.open(str(path), "w") as film:
        video = film.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt = 96, 160, "yuv420p"
        image = np.zeros((96, 160, 3), np.uint8)
        image[:, :40] = 255  # the left of the sensor
        for _ in range(8):
            film.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        film.mux(video.encode(None))
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 96 << 16, 0, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("source", ["film", "call"])
def test_a_rotated_picture_is_upright(source: str, tmp_path: Path) -> None:
    path = phone_film(tmp_path / "phone.mp4")
    if source == "film":
        unit = next(iter(read_units(path)))
        assert unit.video is not None
        shown = unit.video[0]
    else:
        with av.open(str(path)) as film:
            shown = Scaler(fit)(next(film.decode(video=0)))
    assert shown.shape == (160, 96, 3)
    assert shown[:30].mean() > 200  # turned clockwise, the left side is the top
    assert shown[60:].mean() < 30


@pytest.mark.parametrize("source", ["film", "call"])
def test_a_camera_that_is_turned_keeps_its_shape(source: str, tmp_path: Path) -> None:
    """In the middle of a film or a call the picture changes its size: nothing is squeezed, a unit has one size."""
    if source == "film":
        parts = [make_film(tmp_path / f"{h}.ts", seconds=1.0, size=(h, w)) for h, w in ((96, 160), (160, 96))]
        (tmp_path / "both.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
        shapes = [unit.video.shape for unit in read_units(tmp_path / "both.ts") if unit.video is not None]
    else:
        camera, shapes = VideoInput(), []
        for number in range(50):
            camera.push(np.zeros((96, 160, 3) if number < 25 else (160, 96, 3), np.uint8), number / 25)
            if number % 4 == 3:
                shapes.append(camera.take(number / 25).shape)
    assert shapes[:4] == [(4, 96, 160, 3)] * 4
    assert shapes[-4:] == [(4, 160, 96, 3)] * 4


def test_units_follow_each_other_without_a_seam(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    film = make_film(path, size=None, rate=24_000, layout="mono", tone=(0.0, 2.0), codecs=("", "pcm_s16le"))
    audio = np.concatenate([unit.audio for unit in read_units(film) if unit.audio is not None])
    truth = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(48_000) / 24_000)
    assert np.abs(audio[:48_000] - truth).max() < 1e-3
    assert not audio[48_000:].any()


def test_a_gap_in_the_sound_becomes_silence(tmp_path: Path) -> None:
    """Packets lost from 0.5 s to 1.0 s: what follows stays at its time."""
    path = tmp_path / "gap.mkv"
    with av.open(str(path), "w") as film:
        audio = film.add_stream("pcm_s16le", rate=24_000, layout="mono")
        for start in [*range(0, 12_000, 480), *range(24_000, 48_000, 480)]:
            frame = av.AudioFrame.from_ndarray(np.full((1, 480), 8000, np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 24_000, start, Fraction(1, 24_000)
            film.mux(audio.encode(frame))
        film.mux(audio.encode(None))
    found = np.concatenate([unit.audio for unit in read_units(path) if unit.audio is not None])
    assert found[:11_990].min() > 0.2
    assert np.abs(found[12_010:23_990]).max() < 1e-6
    assert found[24_010:47_990].min() > 0.2


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts"])
def test_damaged_packets_are_left_out(name: str, tmp_path: Path) -> None:
    """400 wrong bytes in the middle of a file; the rest is there, and somebody is told."""
    path = make_film(tmp_path / name, seconds=4.0)
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for place in rng.integers(len(data) * 3 // 10, len(data) * 6 // 10, 400):
        data[place] = rng.integers(256)
    path.write_bytes(data)
    with read_units(path) as reader:
        assert len(list(reader)) >= 24
        assert any("damaged packets of the audio were skipped" in warning for warning in reader.warnings)


def test_a_whole_film_has_no_warnings(tmp_path: Path) -> None:
    for name, options in (
        ("a.mp4", {}),
        ("b.mkv", {"video_start": 0.6}),
        ("c.mp3", {"size": None, "codecs": ("", "mp3")}),
    ):
        with read_units(make_film(tmp_path / name, **options)) as reader:
            assert len(list(reader)) in (13, 14)
            assert reader.warnings == []


def test_a_film_that_was_cut_off(tmp_path: Path) -> None:
    whole = make_film(tmp_path / "a.mkv", seconds=8.0).read_bytes()
    (tmp_path / "a.mkv").write_bytes(whole[: len(whole) // 2])
    with read_units(tmp_path / "a.mkv") as reader:
        seconds = len(list(reader)) * UNIT_S
        assert 0.5 < seconds < 7
        (warning,) = reader.warnings
        assert "of 8.0 s: it is cut off or damaged" in warning
    whole = make_film(tmp_path / "b.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MediaError, match="was it cut off"):
        read_units(tmp_path / "b.mp4")


@pytest.mark.parametrize("tracks", ["both", "sound", "picture"])
def test_a_gap_of_hours_is_left_out(tracks: str, tmp_path: Path) -> None:
    """A recorder that was paused for three hours: a second of the pause stays, and what follows is in step."""
    path, pause = tmp_path / "gap.mkv", 3 * 3600
    with av.open(str(path), "w") as film:
        video = film.add_stream("mpeg4", rate=25)
        video.height, video.width, video.pix_fmt, video.codec_context.time_base = 48, 64, "yuv420p", Fraction(1, 1000)
        audio = film.add_stream("pcm_s16le", rate=24_000, layout="mono")
        for number in range(100):
            time, event = number / 25 + (pause if number >= 50 else 0), number in (10, 75)
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 255 * event, np.uint8), format="rgb24")
            picture.pts, picture.time_base = round(time * 1000), Fraction(1, 1000)
            if tracks != "sound":
                film.mux(video.encode(picture))
            sound = av.AudioFrame.from_ndarray(np.full((1, 960), 16_000 * event, np.int16), format="s16", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = 24_000, round(time * 24_000), Fraction(1, 24_000)
            if tracks != "picture":
                film.mux(audio.encode(sound))
        film.mux(video.encode(None))
        film.mux(audio.encode(None))
    with read_units(path) as reader:
        units = list(reader)
        assert 5.0 <= len(units) * UNIT_S <= 5.5
        (warning,) = reader.warnings
        assert "3.0 h after 2." in warning
    frames = [frame for unit in units if unit.video is not None for frame in unit.video]
    blocks = [block for unit in units if unit.audio is not None for block in unit.audio.reshape(-1, 960)]
    seen = [index for index, frame in enumerate(frames) if frame.mean() > 128]
    heard = [index for index, block in enumerate(blocks) if np.abs(block).mean() > 0.2]
    for events in (seen, heard):
        if events:
            assert events[0] == 10
            assert 100 <= events[-1] <= 104  # 1 s after the end of the pause, of which a second and a bit are left
    assert not (seen and heard) or abs(seen[-1] - heard[-1]) <= 1


def test_a_length_of_hours_that_is_not_there(tmp_path: Path) -> None:
    """Every picture is said to stay for 24 minutes."""
    path = make_film(tmp_path / "a.mp4", seconds=1.0, rate=None, codecs=("mpeg4", ""))
    data = bytearray(path.read_bytes())
    table = data.index(b"stts") + 4 + 4  # number of entries, then (pictures, ticks of each)
    assert struct.unpack(">2I", data[table : table + 8]) == (1, 25)
    ticks = struct.unpack(">I", data[table + 8 : table + 12])[0]
    for box in (b"mvhd", b"tkhd", b"mdhd"):  # the lengths that the film and its track say
        place = data.index(box) + 4 + (20 if box == b"tkhd" else 16)
        data[place : place + 4] = struct.pack(">I", 25 * ticks * 36_000)
    data[table + 8 : table + 12] = struct.pack(">I", ticks * 36_000)
    path.write_bytes(data)
    with read_units(path) as reader:
        assert len(list(reader)) * UNIT_S < 40
        assert reader.warnings[0].startswith("nothing comes for 24 min")


def test_lists_of_files_are_refused(tmp_path: Path) -> None:
    make_film(tmp_path / "a.ts", seconds=0.4)
    (tmp_path / "endless.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n" + "#EXTINF:0.4,\na.ts\n" * 3)
    (tmp_path / "concat.txt").write_text("ffconcat version 1.0\n" + "file a.ts\n" * 3)
    (tmp_path / "itself.txt").write_text("ffconcat version 1.0\nfile itself.txt\n")
    for name in ("endless.m3u8", "concat.txt", "itself.txt"):
        with pytest.raises(MediaError, match=r"list of files|Too many open files"):
            read_units(tmp_path / name)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "folder"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_text("this is only text, not a film\n" * 50), "not a media file"),
        (lambda path: wave_without_samples(path), "neither sound nor moving pictures"),
    ],
)
def test_bad_input(make, words: str, tmp_path: Path) -> None:
    path = tmp_path / "input.mp4"
    make(path)
    with pytest.raises(MediaError, match=words) as caught:
        read_units(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def wave_without_samples(path: Path) -> None:
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(24_000)


def test_text_drawn_as_a_picture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello\n" * 100)
    with pytest.raises(MediaError, match="text"):
        read_units(path)


@pytest.mark.parametrize("shape", [(90, 400), (400, 90), (192, 336), (7, 5)])
def test_fill_keeps_the_middle(shape: tuple[int, int]) -> None:
    frames = np.zeros((2, *shape, 3), np.uint8)
    rows, columns = (slice(2 * side // 5, 3 * side // 5 + 1) for side in shape)
    frames[:, rows, columns] = 255
    filled = fill(frames, 96, 168)
    assert filled.shape == (2, 96, 168, 3)
    bright_rows, bright_columns = np.nonzero(filled[0].max(axis=2) > 100)
    assert abs(bright_rows.mean() - 48) < 12
    assert abs(bright_columns.mean() - 84) < 24


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
