"""Films and still pictures of conversations: everything in the labels is shown, and only the labels are needed."""

import dataclasses
from pathlib import Path

import av
import numpy as np
import pytest
from tiny_world import make_episode

from wan_streamer.data.shards import Episode, shard_name, write_shard
from wan_streamer.errors import ConfigError, DataError

pytest.importorskip("skia")

from sheet import contact_sheet, frame_strip

from wan_streamer.simulation.preview import timeline
from wan_streamer.simulation.preview.films import preview_frames, preview_shards, render_preview
from wan_streamer.simulation.preview.timeline import CAPTION, SIDE_COLORS, VOICE, Timeline, event_color, spoken

UNITS = 8
SHAPE = (366, 672, 3)
has_font = pytest.mark.skipif(timeline.label_font(8) is None, reason="the machine has no font")


def episode(events: list[dict] | None = None, camera: bool = True) -> Episode:
    made = make_episode(0, UNITS, camera=camera)
    return made if events is None else dataclasses.replace(made, labels=made.labels | {"events": events})


def recorded() -> Episode:
    """A recording: no mouths, no scenarios, no film at all."""
    made = episode(camera=False)
    labels = {key: value for key, value in made.labels.items() if key not in ("mouth_open", "scenarios", "seed")}
    labels |= {"source": "recorded", "recording": "mine", "start": 0.0, "transcribed": {"user": True, "agent": True}}
    labels |= {side: {"camera": False} for side in ("user", "agent")}
    return dataclasses.replace(made, agent_video=None, labels=labels)


def differs(one: np.ndarray, two: np.ndarray, by: int = 8) -> np.ndarray:
    return np.abs(one.astype(int) - two).max(axis=2) > by


def test_the_film_has_pictures_and_two_voices(tmp_path: Path) -> None:
    loud = np.sin(np.arange(UNITS * 3840) * 0.1).astype(np.float32) * 0.5
    made = dataclasses.replace(episode(), user_audio=loud, agent_audio=np.zeros_like(loud))
    render_preview(made, tmp_path / "deep" / "film.mp4")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["film.mp4"]
    with av.open(str(tmp_path / "deep" / "film.mp4")) as film:
        video, audio = film.streams.video[0], film.streams.audio[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (video.height, video.width, video.average_rate) == (*SHAPE[:2], 25)
        assert (audio.codec_context.name, audio.layout.name, audio.rate) == ("aac", "stereo", 24_000)
        pictures, sound = [], []
        for frame in film.decode(video, audio):
            (pictures if isinstance(frame, av.VideoFrame) else sound).append(frame.to_ndarray())
    assert len(pictures) == UNITS * 4
    stereo_CT = np.concatenate(sound, axis=1)
    assert abs(stereo_CT.shape[1] - UNITS * 3840) < 4096
    left, right = stereo_CT[:, 5000:25000].std(axis=1)
    assert left > 2 * right > 0.1  # the user is on the left, and heard on both sides


def test_both_films_are_shown_at_their_moment() -> None:
    made = episode()
    bright = dataclasses.replace(made, agent_video=np.full_like(made.agent_video, 200))
    frames = list(preview_frames(bright))
    assert len(frames) == UNITS * 4
    assert frames[0].shape == SHAPE
    assert frames[0].dtype == np.uint8
    assert (frames[5][:192, 336:] == 200).all()
    assert differs(frames[0][:192, :336], frames[9][:192, :336]).any()


def test_only_cursor_and_captions_move() -> None:
    strip = Timeline(episode(), 672)
    early, late = strip.draw(0.95), strip.draw(1.1)  # both words are said and their captions still stand
    assert early.shape == (strip.height, 672, 3)
    columns = np.flatnonzero(differs(early, late, by=20)[CAPTION + 4 :].any(axis=0))  # more than the past's tint
    at = np.array([0.95, 1.1]) / (UNITS * 0.16) * 672
    assert np.abs(columns[:, None] - at).min(axis=1).max() <= 3
    assert len(columns) >= 2


@pytest.mark.parametrize("side", ["user", "agent"])
def test_speech_and_sound_have_the_colour_of_their_side(side: str) -> None:
    silent = np.zeros(UNITS * 3840, np.float32)
    made = dataclasses.replace(episode([]), user_audio=silent, agent_audio=silent)
    quiet = Timeline(made, 672).draw(0.0)
    says = [{"type": "speech", "side": side, "start": 0.5, "end": 0.9, "label": ""}]
    beep = silent.copy()
    beep[int(0.6 * 24_000) : int(0.8 * 24_000)] = 0.5
    labels = made.labels | {"events": says}
    heard = Timeline(dataclasses.replace(made, labels=labels, **{f"{side}_audio": beep}), 672).draw(0.0)
    rows, columns = np.nonzero(differs(quiet, heard))
    seconds = columns / 672 * UNITS * 0.16
    assert 0.48 < seconds.min() < 0.52
    assert 0.88 < seconds.max() < 0.92
    assert (rows.min() < CAPTION + VOICE) == (side == "user")
    loud = heard[(rows.min() + rows.max()) // 2, int(0.7 / (UNITS * 0.16) * 672)]
    assert np.abs(loud.astype(int) - SIDE_COLORS[side]).max() < 40


def test_any_event_is_shown_in_a_colour_of_its_own() -> None:
    none = Timeline(episode([]), 672).draw(0.0)
    kinds = ("barge_in", "yield", "nod", "backchannel", "gesture", "show", "remark", "purring of a cat")
    assert len({event_color(kind) for kind in kinds}) == len(kinds)
    for kind in kinds:
        for side in ("user", "agent", "both"):
            event = {"type": kind, "side": side, "start": 0.6, "end": 0.7}
            drawn = differs(none, Timeline(episode([event]), 672).draw(0.0))
            assert drawn.sum() > 20, (kind, side)
    crowd = [{"type": "nod", "side": "agent", "start": 0.5 + i / 1000, "end": 0.6} for i in range(20)]
    assert differs(none, Timeline(episode(crowd), 672).draw(0.0)).any()


def test_captions_follow_the_words() -> None:
    words = [
        {"text": text, "start": start, "end": start + 0.2}
        for text, start in (("Hello.", 0.1), ("One,", 2.0), ("two,", 2.5), ("three.", 3.0))
    ]
    assert spoken(words, 0.05) == ([], False)
    assert spoken(words, 0.2) == (["Hello."], True)
    assert spoken(words, 1.0) == (["Hello."], False)
    assert spoken(words, 1.9) == ([], False)
    assert spoken(words, 2.6) == (["One,", "two,"], True)
    assert spoken(words, 3.4) == (["One,", "two,", "three."], False)


@has_font
def test_a_long_caption_stays_on_its_side() -> None:
    made = episode([], camera=False)
    words = [{"text": f"word{i}", "start": i / 30, "end": (i + 1) / 30} for i in range(36)]
    empty = Timeline(dataclasses.replace(made, labels=made.labels | {"words": {"user": [], "agent": []}}), 672)
    full = Timeline(dataclasses.replace(made, labels=made.labels | {"words": {"user": words, "agent": []}}), 672)
    columns = np.flatnonzero(differs(empty.draw(1.0), full.draw(1.0)).any(axis=0))
    assert 250 < columns.max() < 336


def test_without_films_mouths_and_fonts_it_still_works(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(timeline, "label_font", lambda *args, **options: None)
    monkeypatch.setattr("sheet.label_font", lambda *args, **options: None)
    made = recorded()
    frames = list(preview_frames(made))
    assert len(frames) == UNITS * 4
    assert differs(frames[2], frames[20]).any()
    write_shard(tmp_path / "shards" / shard_name(0), [made])
    contact_sheet(tmp_path / "shards", tmp_path / "sheet.png")
    assert frame_strip(made, 0.0, 1.0).std() > 0


def test_the_first_conversations_of_a_folder(tmp_path: Path) -> None:
    write_shard(tmp_path / shard_name(0), [make_episode(number, 6) for number in range(3)])
    seen: list[tuple[int, int]] = []
    films = preview_shards(tmp_path, tmp_path / "preview", 2, lambda *at: seen.append(at))
    assert films == [tmp_path / "preview" / f"ep{number:06d}.mp4" for number in range(2)]
    assert all(path.stat().st_size > 1000 for path in films)
    assert seen == [(1, 2), (2, 2)]
    with pytest.raises(ConfigError, match="1 conversation or more, got 0"):
        preview_shards(tmp_path, tmp_path / "preview", 0)
    with pytest.raises(DataError, match="nowhere"):
        preview_shards(tmp_path / "nowhere", tmp_path / "preview")


def size(path: Path) -> tuple[int, int]:
    with av.open(str(path)) as picture:
        return picture.streams.video[0].height, picture.streams.video[0].width


def test_contact_sheet(tmp_path: Path) -> None:
    write_shard(tmp_path / shard_name(0), [make_episode(number, 6) for number in range(3)])
    contact_sheet(tmp_path, tmp_path / "one.png", episodes=1)
    contact_sheet(tmp_path, tmp_path / "all.png", episodes=9, columns=2)
    one, three = size(tmp_path / "one.png"), size(tmp_path / "all.png")
    assert three[0] > 1.8 * one[0]
    assert three[1] > 1.8 * one[1]
    with pytest.raises(ConfigError, match="0 episodes"):
        contact_sheet(tmp_path, tmp_path / "none.png", episodes=0)


@has_font
def test_frame_strip_tells_what_is_said_and_done(tmp_path: Path) -> None:
    made = episode([])
    plain = frame_strip(made, 0.5, 1.1, tmp_path / "strip.png", frames=4)
    assert size(tmp_path / "strip.png") == plain.shape[:2]
    mute = dataclasses.replace(made, labels=made.labels | {"words": {"user": [], "agent": []}})
    said = differs(plain, frame_strip(mute, 0.5, 1.1, frames=4))
    assert said.sum() > 50
    assert not said[: plain.shape[0] * 3 // 4].any()  # the pictures stay free of text
    waves = [{"type": "wave", "side": "user", "start": 0.65, "end": 0.75}]
    done = np.flatnonzero(differs(plain, frame_strip(episode(waves), 0.5, 1.1, frames=4)).any(axis=0))
    assert plain.shape[1] / 4 <= done.min() <= done.max() <= plain.shape[1] / 2
    for start, end, frames in ((0.5, 0.5, 4), (-1, 1, 4), (0, 2, 4), (0, 1, 1)):
        with pytest.raises(ConfigError, match="frame strip"):
            frame_strip(made, start, end, frames=frames)
