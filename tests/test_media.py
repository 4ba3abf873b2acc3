"""Any recording becomes units: right length, right time, right shape, whatever the container holds."""

import struct
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from films import make_film

from wan_streamer.data.film import fill
from wan_streamer.data.media import read_units
from wan_streamer.data.pictures import Scaler
from wan_streamer.errors import MediaError
from wan_streamer.serving.uplink import VideoInput, fit
from wan_streamer.units import FPS, SAMPLE_RATE, UNIT_S

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
