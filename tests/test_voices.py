"""Voices and the microphone: repeatable, in step with their labels, split by speaker."""

import itertools
import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from wan_streamer.errors import ConfigError, ShapeError
from wan_streamer.simulation.conversation.partners import _natural_speaker
from wan_streamer.simulation.sound import microphone
from wan_streamer.simulation.sound.microphone import BANDS, PEAK, capture, speech_rms
from wan_streamer.simulation.sound.noises import NOISES, fast_size
from wan_streamer.simulation.voice.agent import AgentVoice, load_renderings, save_renderings
from wan_streamer.simulation.voice.espeak import match_words
from wan_streamer.simulation.voice.hibari import HibariVoice
from wan_streamer.simulation.voice.natural import (
    NaturalVoices,
    Sound,
    belongs,
    natural_speakers_of,
    spell,
    timed_sounds,
)
from wan_streamer.simulation.voice.speech import Speech
from wan_streamer.simulation.voice.users import (
    ACCENTS,
    ERRORS_FILE,
    MAX_ERROR,
    VARIANTS,
    UserVoice,
    clear_speakers_of,
    speakers_of,
)  # fmt: skip
from wan_streamer.units import SAMPLE_RATE

SPLITS = ("train", "valid", "test")


@pytest.fixture(scope="module")
def voice_T() -> np.ndarray:  # noqa: N802
    """Four seconds with one sentence, 0.5 s of silence before it."""
    speech = UserVoice("en-us", "m3").speak("Could you tell me what you can do?").audio
    return np.concatenate([np.zeros(SAMPLE_RATE // 2), speech, np.zeros(4 * SAMPLE_RATE)])[: 4 * SAMPLE_RATE].astype(
        np.float32
    )


def lag(changed_T: np.ndarray, voice_T: np.ndarray) -> int:
    """Samples by which `changed_T` is late."""
    size = 1 << 18
    both = np.fft.irfft(np.fft.rfft(changed_T, size) * np.conj(np.fft.rfft(voice_T, size)))
    at = int(np.argmax(both))
    return at if at < size // 2 else at - size


# ---------------------------------------------------------------- espeak


def test_equal_arguments_give_equal_bytes_in_any_order():
    jobs = [(UserVoice("en", "f2"), "Hello there."), (UserVoice("en-us", "Mike", 60, 40, 180), "Count to ten."),
            (UserVoice("en-029", "m7"), "Who are you?")]  # fmt: skip
    first = [zlib.crc32(voice.speak(text).audio.tobytes()) for voice, text in jobs]
    again = [zlib.crc32(voice.speak(text).audio.tobytes()) for voice, text in reversed(jobs)]
    assert first == again[::-1]
    assert len(set(first)) == 3


def test_every_voice_is_measured_and_unclear_ones_are_never_drawn():
    errors = json.loads(ERRORS_FILE.read_text())
    assert set(errors) == {f"{accent}+{variant}" for accent in ACCENTS for variant in VARIANTS}
    for split in SPLITS:
        rng = np.random.default_rng(0)
        drawn = [UserVoice.sample(rng, split) for _ in range(300)]
        assert max(errors[f"{v.accent}+{v.variant}"] for v in drawn) <= MAX_ERROR
        assert {v.variant for v in drawn} <= set(speakers_of(split))
        assert {v.accent for v in drawn} == set(ACCENTS)
    used = {v for split in SPLITS for accent in ACCENTS for v in clear_speakers_of(split, accent)}
    assert len(used) >= 40
    assert len(used) < len(VARIANTS) or max(errors.values()) > MAX_ERROR  # the filter does something


def test_words_that_espeak_runs_together_get_their_own_times():
    speech = UserVoice("en-us", "f2").speak("Her sister bought the bridge in the kitchen.")
    times = {word.text: (word.start, word.end) for word in speech.words}
    starts = {p.symbol: p.start for p in reversed(speech.phonemes)}  # first of each
    assert times["bought"][0] == pytest.approx(starts["b"], abs=0.01)
    assert times["kitchen."][0] == pytest.approx(starts["k"], abs=0.01)
    assert 0.05 < times["in"][1] - times["in"][0] < 0.3


def test_match_words_shares_only_the_span_that_holds_two_words():
    words = match_words("box of the books", [(0, 1), (1, 2), (3, 4)], [4, 4, 4])
    assert [(w.text, w.start, w.end) for w in words] == [
        ("box", 0, 1), ("of", 1, 1.5), ("the", 1.5, 2), ("books", 3, 4)
    ]  # fmt: skip


def test_german_has_german_sounds():
    symbols = {p.symbol for p in UserVoice("en-us", "m3").speak("Ich kann bis fünf zählen.", None, "de").phonemes}
    assert "ç" in symbols


# ---------------------------------------------------------------- natural voices


def test_natural_splits_share_no_voice():
    names = [natural_speakers_of(split) for split in SPLITS]
    assert [len(n) for n in names] == [20, 4, 4]
    assert len({name for group in names for name in group}) == 28


def test_a_missing_model_names_the_script(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"kokoro\.onnx.*fetch_kokoro\.sh"):
        NaturalVoices(tmp_path, tmp_path)


def test_belongs_takes_about_its_share_and_grows():
    pairs = [(voice, f"sentence {i}") for voice in natural_speakers_of("train") for i in range(100)]
    small = {pair for pair in pairs if belongs(*pair, 0.1)}
    large = {pair for pair in pairs if belongs(*pair, 0.3)}
    assert 0.08 < len(small) / len(pairs) < 0.12
    assert 0.27 < len(large) / len(pairs) < 0.33
    assert small < large


def test_spelling_uses_the_symbols_of_the_model():
    known = frozenset(" ,.?!ˈˌbdfhijklmnpstuvwzðŋɑɔəɛɜɡɪɹʃʊʌʒʤʧθæAIOWYᵊT")
    sounds = spell("Hello, Joe. How are you?", "en-us", known)
    assert "".join(s.tokens for s in sounds) == "həlˈO, ʤˈO. hˈW ɑɹ ju?"
    assert [s.word for s in sounds if s.ipa] == [0] * 4 + [1] * 2 + [2] * 2 + [3] + [4] * 2
    assert [s.ipa for s in sounds if s.ipa][3] == "oʊ"


def test_natural_times_come_from_the_durations_and_end_with_the_sound():
    sounds = [Sound("h", "h", 0, 0), Sound("ˈI", "aɪ", 0, 0), Sound(".", "", -1, 0)]
    audio_T = np.zeros(SAMPLE_RATE, np.float32)
    audio_T[4800:12_000] = 0.5  # 0.2 to 0.5 s
    speech = timed_sounds("Hi.", audio_T, sounds, np.array([0.2, 0.3, 0.35, 0.8, 0.9, 1.0]))
    first = speech.phonemes[0].start
    assert first == pytest.approx(0.04, abs=1e-3)  # trimmed
    assert speech.phonemes[1].start - first == pytest.approx(0.1, abs=1e-3)
    assert speech.phonemes[1].end - first == pytest.approx(0.3, abs=0.006)
    assert speech.words[0].end == speech.phonemes[1].end


def _pitch(audio_T: np.ndarray) -> float:
    """Hz, by the highest peak of the autocorrelation between 60 and 500 Hz; the median of its loudest fifth."""
    blocks = audio_T[: len(audio_T) // 1200 * 1200].reshape(-1, 1200)
    loud = blocks[np.argsort(np.square(blocks).sum(1))[-max(1, len(blocks) // 5) :]]
    lags = np.fft.irfft(np.abs(np.fft.rfft(loud, 4096)) ** 2)[:, SAMPLE_RATE // 500 : SAMPLE_RATE // 60]
    return SAMPLE_RATE / (np.median(lags.argmax(1)) + SAMPLE_RATE // 500)


def test_a_hibari_speaker_is_a_pure_function_with_words_in_order():
    voice = HibariVoice.sample(np.random.default_rng(3))
    speech, again = voice.speak("I would like a cup of tea, please."), voice.speak("I would like a cup of tea, please.")
    np.testing.assert_array_equal(speech.audio, again.audio)
    assert [w.text for w in speech.words] == ["I", "would", "like", "a", "cup", "of", "tea,", "please."]
    assert all(a.end <= b.start for a, b in itertools.pairwise(speech.words))
    assert speech.words[-1].end <= speech.seconds
    loud = np.abs(speech.audio) > 0.05 * np.abs(speech.audio).max()
    assert abs(np.flatnonzero(loud)[-1] / SAMPLE_RATE - speech.words[-1].end) < 0.15


SPEAKERS = ((0.0, 0.0), (-0.5, 0.0), (0.0, -0.2))


def test_pitch_and_tract_make_another_speaker():
    text = "Nobody knows the way to the old mill any more."
    plain, low, long = (HibariVoice(octaves, 0.0, tract).speak(text) for octaves, tract in SPEAKERS)  # no melody
    assert np.log2(_pitch(low.audio) / _pitch(plain.audio)) == pytest.approx(-0.5, abs=0.12)
    assert np.log2(_pitch(long.audio) / _pitch(plain.audio)) == pytest.approx(0, abs=0.12)

    def centre(speech: Speech) -> float:  # of the spectrum, which formants move
        power = np.abs(np.fft.rfft(speech.audio)) ** 2
        return float((power * np.arange(len(power))).sum() / power.sum() / len(power))

    assert centre(long) < 0.92 * centre(plain)


def test_only_training_hears_hibari():
    def engines(split: str) -> set[str]:
        rngs = [np.random.default_rng(i) for i in range(40)]
        return {type(_natural_speaker(rng, split, None)).__name__ for rng in rngs}

    assert engines("train") == {"HibariVoice", "NoneType"}
    assert engines("valid") == engines("test") == {"NoneType"}


def test_a_reader_goes_on_with_one_voice():
    """Sentence after sentence is decided by where it began; the same one again sounds otherwise."""
    said = [
        [speak(text, np.random.default_rng(1), "en").audio for text in ("Yes, it is.", "Yes, it is.")]
        for speak in (AgentVoice("unused").reader(np.random.default_rng(seed)) for seed in (3, 3, 4))
    ]
    assert all(map(np.array_equal, said[0], said[1]))
    assert not np.array_equal(*said[0])
    assert not np.array_equal(said[0][0], said[2][0])


def test_the_cache_gives_back_what_was_saved(tmp_path: Path):
    speech = UserVoice("en", "f1").speak("Hello there.")
    save_renderings(tmp_path / "a.npz", [speech])
    (back,) = load_renderings(tmp_path / "a.npz", "Hello there.")
    assert (back.words, back.phonemes) == (speech.words, speech.phonemes)
    assert np.abs(back.audio - speech.audio).max() < 1e-4


# ---------------------------------------------------------------- the microphone


def test_capture_is_a_pure_function_and_keeps_shape_and_peak(voice_T: np.ndarray):
    seen = set()
    for seed in range(24):
        before = voice_T.copy()
        one, done = capture(voice_T, np.random.default_rng(seed), np.roll(voice_T, SAMPLE_RATE), 1.5)
        two, same = capture(voice_T, np.random.default_rng(seed), np.roll(voice_T, SAMPLE_RATE), 1.5)
        assert one.tobytes() == two.tobytes()
        assert json.dumps(done) == json.dumps(same)
        assert voice_T.tobytes() == before.tobytes()
        assert one.dtype == np.float32
        assert one.shape == voice_T.shape
        assert np.abs(one).max() < 0.98
        seen |= set(done)
    assert seen >= {"degraded", "floor", "room", "noise", "echo", "level", "band", "opus", "loss"}


def test_loud_input_stays_below_the_peak(voice_T: np.ndarray):
    for seed in range(6):
        assert np.abs(capture(voice_T * 8, np.random.default_rng(seed))[0]).max() <= PEAK + 1e-6


def test_half_of_the_calls_are_degraded_and_strength_decides(voice_T: np.ndarray):
    short_T = voice_T[:4800]
    share = [np.mean([capture(short_T, np.random.default_rng(i), None, s)[1]["degraded"] for i in range(80)])
             for s in (0.0, 1.0, 2.0)]  # fmt: skip
    assert share[0] == 0
    assert 0.35 < share[1] < 0.65
    assert share[2] == 1


@pytest.mark.parametrize("name", ["light_room", "reverberate", "noise_floor", "drift", "overdrive", "lose_packets"])
def test_stages_do_not_delay_the_voice(voice_T: np.ndarray, name: str):
    for seed in range(3):
        changed_T, done = getattr(microphone, name)(voice_T, np.random.default_rng(seed))
        assert changed_T.dtype == np.float32
        assert not np.array_equal(changed_T, voice_T)
        assert lag(changed_T, voice_T) == 0, done


@pytest.mark.parametrize("kbps", [12, 16, 24, 32])
def test_opus_is_in_step_to_the_sample(voice_T: np.ndarray, kbps: int):
    changed_T, done = microphone.opus_call(voice_T, np.random.default_rng(0), kbps)
    assert done == {"opus": {"kbps": kbps}}
    assert len(changed_T) == len(voice_T)
    assert abs(lag(changed_T, voice_T)) <= 1
    error = np.mean((changed_T - voice_T) ** 2) / np.mean(voice_T**2)
    assert 1e-5 < error < 0.5


@pytest.mark.parametrize("band", list(BANDS))
def test_bands_keep_what_is_inside_and_nothing_else(band: str):
    noise_T = np.random.default_rng(0).standard_normal(SAMPLE_RATE, np.float32)
    changed_T, _ = microphone.band_limit(noise_T, np.random.default_rng(0), band)
    power = np.abs(np.fft.rfft(changed_T)) ** 2 / SAMPLE_RATE
    low, high = BANDS[band]
    assert power[int(1.2 * low) : int(0.9 * high)].mean() == pytest.approx(1, abs=0.1)
    assert power[int(1.15 * high) :].mean() < 0.01
    assert power[: int(0.6 * low)].mean() < 0.05


@pytest.mark.parametrize("kind", list(NOISES))
def test_noise_has_the_level_that_is_written_down(voice_T: np.ndarray, kind: str):
    level = speech_rms(voice_T)
    changed_T, done = microphone.background(voice_T, level, np.random.default_rng(3), None, kind)
    noise_T = changed_T - voice_T
    assert 20 * np.log10(level / np.sqrt(np.mean(noise_T**2))) == pytest.approx(done["noise"]["snr_db"], abs=0.05)


def test_echo_is_late_and_as_weak_as_written_down(voice_T: np.ndarray):
    silent_T = np.zeros_like(voice_T)
    echo_T, done = microphone.acoustic_echo(silent_T, voice_T, np.random.default_rng(1))
    # The loudspeaker differentiates, which moves the maximum by a sample or two.
    assert lag(echo_T, np.diff(voice_T, prepend=np.float32(0))) == pytest.approx(
        done["echo"]["delay_ms"] * SAMPLE_RATE / 1000, abs=2
    )
    assert np.abs(echo_T).max() < np.abs(voice_T).max() * 10 ** (-20 / 20)


def test_lost_packets_leave_no_click(voice_T: np.ndarray):
    tone_T = (0.3 * np.sin(2 * np.pi * 200 * np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE)).astype(np.float32)
    holes = 0
    for seed in range(5):
        changed_T, done = microphone.lose_packets(tone_T, np.random.default_rng(seed))
        holes += done["loss"]["packets"]
        assert np.abs(np.diff(changed_T)).max() < 2.2 * np.abs(np.diff(tone_T)).max()
    assert holes > 5


def test_babble_comes_from_the_caller(voice_T: np.ndarray):
    asked = []

    def babble(samples: int, rng: np.random.Generator) -> np.ndarray:
        asked.append(samples)
        return rng.standard_normal(samples, np.float32)

    kinds = {capture(voice_T, np.random.default_rng(i), None, 2.0, babble)[1].get("noise", {}).get("kind")
             for i in range(40)}  # fmt: skip
    assert "babble" in kinds
    assert set(asked) == {len(voice_T)}


def test_silence_stays_a_quiet_room():
    out_T, done = capture(np.zeros(SAMPLE_RATE, np.float32), np.random.default_rng(0), None, 0.0)
    assert 20 * np.log10(np.sqrt(np.mean(out_T**2))) == pytest.approx(done["floor"]["dbfs"], abs=1.0)


def test_wrong_shapes_are_refused(voice_T: np.ndarray):
    rng = np.random.default_rng(0)
    with pytest.raises(ShapeError, match="voice_T"):
        capture(voice_T[None], rng)
    with pytest.raises(ShapeError, match="echo_T"):
        capture(voice_T, rng, voice_T[:-1])


def test_fast_sizes_have_small_factors():
    for count in (5, 127, 4801, 360_001):
        size = rest = fast_size(count)
        assert count <= size <= 1.07 * count + 6
        assert size % 2 == 0
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        assert rest == 1
