"""The judges' arithmetic by hand, and the mouth reader against the truth of the renderer."""

import sys
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from faster_whisper.transcribe import get_compression_ratio
from tiny import tiny_weights
from tiny_world import make_episode

from wan_streamer.codecs.folder import load_codec
from wan_streamer.errors import CheckpointError, ConfigError, DataError, ShapeError
from wan_streamer.evaluation.codecs import score as codecs
from wan_streamer.evaluation.codecs.clips import Clip, clear_clips, espeak_clips, human_clips, make_clip, wav_clips
from wan_streamer.evaluation.codecs.score import rebuild, score_audio, score_video
from wan_streamer.evaluation.readers import pictures
from wan_streamer.evaluation.readers.judges import (
    MosPredictor,
    Recogniser,
    normalise,
    number_words,
    word_error_rate,
    word_errors,
)
from wan_streamer.simulation.conversation.chats import chat_sentences
from wan_streamer.simulation.voice.users import speakers_of


def film(*levels: int, size: tuple[int, int] = (16, 16)) -> np.ndarray:
    return np.stack([np.full((*size, 3), level, np.uint8) for level in levels])


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("reference", "hypothesis", "rate"),
    [
        ("one two three", "1, 2, 3!", 0),
        ("Count to twenty-one.", "count to 21", 0),
        ("It’s five o'clock, Mr. Smith", "it's 5 o'clock mister smith", 0),
        ("a hundred", "100", 0),
        ("the favourite colour", "The favorite color.", 0),
        ("a b c d", "a x c d", 0.25),  # one substitution
        ("a b c d", "a c d", 0.25),  # one deletion
        ("a b c d", "a b b c d", 0.25),  # one insertion
        ("a b", "x y z", 1.5),
        ("hello", "", 1.0),
        ("", "well well", 2.0),
        ("", "...", 0),
    ],
)
def test_word_error_rate(reference: str, hypothesis: str, rate: float) -> None:
    assert word_error_rate(reference, hypothesis) == pytest.approx(rate)


def test_word_errors_are_counted_apart_from_words() -> None:
    assert word_errors("one two three four", "one tree four five") == (3, 4)


def test_numbers() -> None:
    spoken = {
        0: "zero",
        13: "thirteen",
        40: "forty",
        99: "ninety nine",
        100: "one hundred",
        121: "one hundred twenty one",
    }
    spoken |= {1000: "one thousand", 12_305: "twelve thousand three hundred five"}
    assert {value: number_words(value) for value in spoken} == spoken
    assert normalise("1,000") == ["one", "thousand"]
    assert normalise("1, 000, no") == ["one", "zero", "no"]
    assert normalise("1234567") == ["one", "two", "three", "four", "five", "six", "seven"]


# ---------------------------------------------------------------- judges


def test_a_recogniser_in_a_loop_listens_again() -> None:
    """Only then, and to the end of what it heard, with the times of the words."""
    phrase = "and we'll see you in the next few weeks, "
    calls: list[dict] = []

    def model(loops: bool) -> SimpleNamespace:
        def transcribe(audio_T: np.ndarray, **options: object) -> tuple[list[SimpleNamespace], None]:
            calls.append(options)
            text = "A week has seven days." if not loops or "no_repeat_ngram_size" in options else 20 * phrase
            words = [SimpleNamespace(word=f" {word}", start=i, end=i + 1) for i, word in enumerate(text.split())]
            return [SimpleNamespace(compression_ratio=get_compression_ratio(text), words=words)], None

        return SimpleNamespace(transcribe=transcribe)

    recogniser, heard = Recogniser.__new__(Recogniser), []
    for loops in (False, True):
        recogniser._model = model(loops)
        heard.append(recogniser.timed(np.zeros(2400, np.float32)))
    assert heard[0] == heard[1]
    assert heard[0][1:3] == [("week", 1.0, 2.0), ("has", 2.0, 3.0)]
    assert ["no_repeat_ngram_size" in options for options in calls] == [False, False, True]


def test_a_missing_judge_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distillmos", None)
    with pytest.raises(ConfigError, match="pip install --no-deps distillmos"):
        MosPredictor()


def test_recogniser_of_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.bin"):
        Recogniser(tmp_path)


# ---------------------------------------------------------------- pictures


def test_psnr_by_hand() -> None:
    assert pictures.psnr(film(100, 100), film(110, 90)) == pytest.approx(10 * np.log10(65025 / 100))
    assert pictures.psnr(film(100), film(100)) == float("inf")
    other = film(100)
    other[:, :8] += 10  # half of the pixels; all of those in the box
    assert pictures.psnr(film(100), other) == pytest.approx(10 * np.log10(65025 / 50))
    assert pictures.psnr(film(100), other, (slice(0, 8), slice(2, 5))) == pytest.approx(10 * np.log10(65025 / 100))


def test_ssim_by_hand() -> None:
    assert pictures.ssim(film(7, 200), film(7, 200)) == pytest.approx(1)
    c1 = (0.01 * 255) ** 2  # flat pictures have no variance, so only the luminance term is left
    assert pictures.ssim(film(100), film(110)) == pytest.approx((2 * 100 * 110 + c1) / (100**2 + 110**2 + c1))


def test_ssim_against_its_definition() -> None:
    """One window of 11 x 11: weighted means, variances and covariance written out."""
    rng = np.random.default_rng(0)
    a, b = (np.repeat(rng.integers(0, 256, (1, 11, 11, 1), dtype=np.uint8), 3, 3) for _ in range(2))
    y, x = np.mgrid[-5:6, -5:6]
    weight = np.exp(-(x**2 + y**2) / (2 * 1.5**2))
    weight /= weight.sum()
    p, q = a[0, ..., 0].astype(float), b[0, ..., 0].astype(float)
    mean_p, mean_q = (weight * p).sum(), (weight * q).sum()
    var_p, var_q = (weight * (p - mean_p) ** 2).sum(), (weight * (q - mean_q) ** 2).sum()
    both = (weight * (p - mean_p) * (q - mean_q)).sum()
    c1, c2 = 6.5025, 58.5225
    want = (2 * mean_p * mean_q + c1) * (2 * both + c2) / ((mean_p**2 + mean_q**2 + c1) * (var_p + var_q + c2))
    assert pictures.ssim(a, b) == pytest.approx(want, abs=1e-6)


def test_pictures_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match="one shape"):
        pictures.psnr(film(1), film(1, 2))
    with pytest.raises(ShapeError, match="uint8"):
        pictures.ssim(film(1).astype(np.float32), film(1))
    with pytest.raises(ShapeError, match="11 pixels"):
        pictures.ssim(film(1, size=(8, 32)), film(1, size=(8, 32)))


def test_border_flicker_by_hand() -> None:
    assert pictures.border_flicker(film(0, 2, 4, 6, 12, 14, 16, 18)) == pytest.approx(3)  # 6 at the border, 2 inside
    assert pictures.border_flicker(film(*range(0, 80, 5))) == pytest.approx(1)


def test_delayed_correlation() -> None:
    truth = np.random.default_rng(1).standard_normal(60)
    assert pictures.delayed_correlation(truth * 2 + 3, truth) == (pytest.approx(1), 0)
    assert pictures.delayed_correlation(np.roll(truth, 2), truth)[1] == 2
    assert pictures.delayed_correlation(np.roll(truth, -3), truth)[1] == -3
    assert pictures.delayed_correlation(np.ones(60), truth) == (0.0, 0)


def test_mouth_gap_of_a_painted_mouth() -> None:
    frames = np.full((3, 192, 336, 3), (236, 188, 152), np.uint8)
    frames[1, 130:138, 160:176] = (80, 24, 32)
    frames[2, 130:138, 160:176] = (80, 24, 32)
    frames[2, 126:130, 160:176] = (250, 246, 240)  # teeth belong to the opening
    assert pictures.mouth_gap_track(frames).tolist() == [0, 8, 12]


def test_mouth_shape_of_a_painted_mouth() -> None:
    frames = np.full((2, 192, 336, 3), 200, np.uint8)
    frames[1, 130:140, 150:190] = 100  # ten rows, half as bright
    assert pictures.mouth_shape_track(frames) == pytest.approx([0, 5])


def test_mouth_gap_follows_the_renderer() -> None:
    pytest.importorskip("skia")
    from wan_streamer.simulation.face.person import AGENT_IDENTITY, FacePose
    from wan_streamer.simulation.face.renderer import FaceRenderer

    truth_T = np.abs(np.sin(np.arange(50) * 0.37)) * np.linspace(0.2, 1, 50)
    renderer = FaceRenderer(AGENT_IDENTITY)
    heads = [
        FacePose(mouth_open=float(gap), teeth=0.4, head_x=np.sin(i / 9), head_y=np.cos(i / 7), roll=np.sin(i / 5) * 0.4)
        for i, gap in enumerate(truth_T)
    ]
    frames = np.stack([renderer.render(pose) for pose in heads])
    blue = frames[..., ::-1].copy()  # the shape does not depend on the hue
    for track_T, least in (
        (pictures.mouth_gap_track(frames), 0.97),
        (pictures.mouth_shape_track(frames), 0.93),
        (pictures.mouth_shape_track(blue), 0.93),
    ):
        correlation, delay = pictures.delayed_correlation(track_T, truth_T)
        assert correlation > least
        assert delay == 0


# ---------------------------------------------------------------- codecs


def test_score_audio_by_hand() -> None:
    """A codec that loses sounds below 0.5, a recogniser that hears loud clips, a judge that likes them."""
    clips = [
        Clip("loud", np.full(960, 0.9, np.float32), "one two three four"),
        Clip("quiet", np.full(960, 0.1, np.float32), "five six"),
        Clip("untold", np.full(960, 0.2, np.float32), None),
    ]
    scores = score_audio(
        round_trip=lambda audio: np.where(audio < 0.5, 0, audio),
        clips=clips,
        recognise=lambda audio: {0.9: "1 2 3 for", 0.1: "5 6", 0.2: "seven eight"}.get(round(float(audio[0]), 1), ""),
        predict=lambda audio: 1 + 2 * float(audio[0]),
    )
    assert scores["wer_original"] == 12.5  # 1 of 8
    assert scores["wer_round_trip"] == 62.5  # 1 + 2 + 2 of 8
    assert scores["wer_points"] == 50
    assert scores["mos_original"] == pytest.approx(1.8)
    assert scores["mos_drop"] == pytest.approx(0.2)
    assert (scores["clips"], scores["words"]) == (3, 8)


def test_rebuild_in_parts_is_the_whole() -> None:
    vae = tiny_weights().video_vae
    video = make_episode(0, units=9, camera=False).agent_video
    assert np.abs(rebuild(vae, video).astype(int) - vae.reconstruct(video)).max() <= 1


def test_score_video_of_a_tiny_codec() -> None:
    vae = tiny_weights().video_vae
    episodes = [make_episode(number, units=6, camera=False) for number in range(3)]
    scores = score_video(vae, episodes, films=2, frames=15)
    assert set(scores) == {"agent"}  # nobody else had a camera
    row = scores["agent"]
    assert row["films"] == 2
    first, second = (pictures.psnr(e.agent_video[:12], rebuild(vae, e.agent_video[:12])) for e in episodes[:2])
    assert row["psnr"] == pytest.approx((first + second) / 2, abs=1e-3)
    assert "gap_kept" not in row  # the truth says that no mouth moved


def test_score_film_reads_the_mouth(monkeypatch: pytest.MonkeyPatch) -> None:
    """A codec that is two frames late: the film is another one, the mouth is the same, only delayed."""
    gap_T = np.round(6 + 5 * np.sin(np.arange(24) * 0.9)).astype(int)
    frames = np.full((24, 192, 336, 3), (236, 188, 152), np.uint8)
    for frame, gap in zip(frames, gap_T, strict=True):
        frame[130 : 130 + gap, 150:190] = (80, 24, 32)
    monkeypatch.setattr(codecs, "rebuild", lambda vae, film: np.roll(film, 2, axis=0))
    row = codecs.score_film(tiny_weights().video_vae, frames, gap_T / 19)
    assert row["gap_truth_original"] == pytest.approx(1)
    assert row["shape_truth_original"] == pytest.approx(1)
    assert (row["gap_delay"], row["shape_delay"]) == (2, 2)
    assert row["gap_kept"] == pytest.approx(np.corrcoef(np.roll(gap_T, 2), gap_T)[0, 1])
    assert row["psnr"] < 40


def test_load_codec_without_a_codec(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"video_vae\.json"):
        load_codec(tmp_path, "video")


# ---------------------------------------------------------------- recordings


def write_wave(path: Path, audio_T: np.ndarray, rate: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(np.round(audio_T * 32767).astype("<i2").tobytes())


def tone(seconds: float, rate: int, frequency: float = 440) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)


def loudest_frequency(audio_T: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(audio_T)).argmax() * 24_000 / len(audio_T))


@pytest.mark.parametrize("make", [clear_clips, espeak_clips])
def test_synthetic_clips_are_unseen(make: Callable[[int, int], Iterator[Clip]]) -> None:
    clips, again = list(make(0, 9)), list(make(0, 9))
    assert [clip.name for clip in clips] == [clip.name for clip in again]
    assert all(np.array_equal(a.audio_T, b.audio_T) for a, b in zip(clips, again, strict=True))
    assert {clip.name.partition("+")[2] for clip in clips} <= set(speakers_of("test"))
    assert all(np.abs(clip.audio_T).max() > 0.05 for clip in clips)
    assert not {clip.text for clip in clips} & set(chat_sentences("train"))
    assert all(len(clip.text.split()) >= 5 for clip in clips if clip.text is not None)


def test_clips_of_a_folder(tmp_path: Path) -> None:
    write_wave(tmp_path / "a.wav", tone(0.5, 48_000), 48_000)
    write_wave(tmp_path / "b.wav", tone(0.5, 8_000), 8_000)
    (tmp_path / "a.txt").write_text("Hello there.\n")
    first, second = wav_clips(tmp_path, 5)
    assert (first.text, second.text) == ("Hello there.", None)
    for clip in (first, second):
        assert clip.audio_T.dtype == np.float32
        assert len(clip.audio_T) % 960 == 0
        assert len(clip.audio_T) == pytest.approx(24_000, abs=1000)  # half a second and two quarters of silence
        assert loudest_frequency(clip.audio_T) == pytest.approx(440, abs=2)
    assert len(list(wav_clips(tmp_path, 1))) == 1


def test_human_clips(tmp_path: Path) -> None:
    share = tmp_path / "usr" / "share"
    prompts = share / "asterisk" / "sounds" / "en"
    prompts.mkdir(parents=True)
    encoder = av.CodecContext.create("g722", "w")
    encoder.sample_rate, encoder.layout, encoder.format = 16_000, "mono", "s16"
    samples = np.round(tone(3, 16_000) * 32767).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
    frame.sample_rate = 16_000
    packets = [*encoder.encode(frame), *encoder.encode(None)]
    (prompts / "hello.g722").write_bytes(b"".join(bytes(packet) for packet in packets))
    (prompts / "beep.g722").write_bytes(b"\0" * 800)  # too short to judge
    readers = share / "pocketsphinx" / "test" / "data" / "cards"
    write_wave(readers / "001.wav", tone(1, 16_000, 300), 16_000)
    (readers / "cards.transcription").write_text("<s> ten of clubs  </s> (001)\n")
    hello, cards = human_clips(tmp_path, 5)
    assert (hello.name, hello.text) == ("hello", None)
    assert loudest_frequency(hello.audio_T) == pytest.approx(440, abs=2)
    assert (cards.name, cards.text) == ("001", "ten of clubs")
    assert loudest_frequency(cards.audio_T) == pytest.approx(300, abs=2)


def test_recordings_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\*\.wav"):
        list(wav_clips(tmp_path, 1))
    with pytest.raises(DataError, match="apt-get install"):
        list(human_clips(tmp_path, 1))
    (tmp_path / "a.wav").write_text("not a sound")
    with pytest.raises(DataError, match=r"a\.wav"):
        list(wav_clips(tmp_path, 1))


def test_a_clip_is_whole_frames() -> None:
    clip = make_clip("x", np.ones(1001, np.float32) * 0.1, 16_000, "x")
    assert len(clip.audio_T) % 960 == 0
    assert clip.audio_T[:5000].max() == 0
