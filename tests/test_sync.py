"""The scorer of lip sync finds offsets that were put into rendered truth, and nothing where there is nothing."""

import numpy as np
import pytest

from wan_streamer.evaluation.axes.sync import mouth_from_sound, sync_offset, sync_scores
from wan_streamer.evaluation.readers.pictures import mouth_gap_track
from wan_streamer.simulation.face.motion import pose_track
from wan_streamer.simulation.face.person import AGENT_IDENTITY
from wan_streamer.simulation.face.renderer import FaceRenderer
from wan_streamer.simulation.face.visemes import mouth_track
from wan_streamer.simulation.voice.users import AgentVoice, UserVoice
from wan_streamer.units import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME

SENTENCES = (
    "Good morning, how are you doing today?",
    "I would love to hear more about your weekend.",
    "Maybe we could go for a walk before the rain begins.",
    "Please show me what you have in your hand.",
    "That is a very good question, let me think about it.",
)
LEAD_S = 0.5

Clip = tuple[np.ndarray, np.ndarray]


def shifted(audio_T: np.ndarray, early_ms: int) -> np.ndarray:
    """The same sound `early_ms` earlier, in silence."""
    count = round(early_ms * SAMPLE_RATE / 1000)
    padded_T = np.pad(audio_T, abs(count))
    return padded_T[abs(count) + count :][: len(audio_T)]


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Clip]:
    """(mouth read from the picture, sound) of the agent, one sentence each, about 18 s together."""
    voice, renderer = AgentVoice(tmp_path_factory.mktemp("voice"), variants=1), FaceRenderer(AGENT_IDENTITY)
    rng, made = np.random.default_rng(7), []
    for text in SENTENCES:
        speech = voice.renderings(text)[0]
        frames = round((speech.seconds + 2 * LEAD_S) * FPS)
        first = round(LEAD_S * SAMPLE_RATE)
        audio_T = np.zeros(frames * SAMPLES_PER_FRAME, np.float32)
        audio_T[first : first + len(speech.audio)] = speech.audio
        phonemes = speech.shifted(LEAD_S, len(audio_T)).phonemes
        poses = pose_track(frames, phonemes, [(phonemes[0].start, phonemes[-1].end)], [], rng).poses
        made.append((mouth_gap_track(renderer.film(poses)), audio_T))
    return made


def test_truth_is_in_sync(clips):
    offset, peak = sync_offset(clips)
    assert abs(offset) <= 0.010
    assert peak > 0.6
    for mouth_F, audio_T in clips:
        scores = sync_scores(mouth_F, audio_T)
        assert scores["correlation"] > 0.55
        assert scores["aperture_error"] < 1.15


@pytest.mark.parametrize("early_ms", [40, 80, 120, 200, 400, 33, -27, -40, -80, -120, -200, -400])
def test_an_offset_is_found_with_its_sign(clips, early_ms):
    offset, peak = sync_offset([(mouth_F, shifted(audio_T, early_ms)) for mouth_F, audio_T in clips])
    assert abs(offset - early_ms / 1000) <= 0.020
    assert peak > 0.6


def test_a_late_picture_is_an_early_sound(clips):
    late = [(np.concatenate([np.full(4, mouth_F[0]), mouth_F])[: len(mouth_F)], audio_T) for mouth_F, audio_T in clips]
    assert abs(sync_offset(late)[0] - 0.160) <= 0.020


def test_an_offset_is_seen_at_zero_lag(clips):
    def mean(early_ms: int, key: str) -> float:
        return float(np.mean([sync_scores(mouth_F, shifted(audio_T, early_ms))[key] for mouth_F, audio_T in clips]))

    assert mean(0, "correlation") > mean(120, "correlation") + 0.2
    assert mean(0, "aperture_error") < mean(-120, "aperture_error") - 0.2


def test_drift_is_a_slope(clips):
    """The sound gets 200 ms late: 50 ms on average in the first half, 150 ms in the second."""
    mouth_F = np.concatenate([mouth_F for mouth_F, _ in clips])
    audio_T = np.concatenate([audio_T for _, audio_T in clips])
    time_T = np.arange(len(audio_T)) / SAMPLE_RATE
    slow_T = np.interp(time_T - 0.2 * time_T / time_T[-1], time_T, audio_T).astype(np.float32)
    half = len(mouth_F) // 2
    at = half * SAMPLES_PER_FRAME
    first, second = sync_offset([(mouth_F[:half], slow_T[:at])])[0], sync_offset([(mouth_F[half:], slow_T[at:])])[0]
    assert abs(first + 0.05) <= 0.04
    assert abs(second + 0.15) <= 0.04
    assert -0.16 < second - first < -0.04


def test_nothing_to_measure_is_nan(clips):
    mouth_F, audio_T = clips[0]
    silent_T, noise_T = np.zeros_like(audio_T), 1e-4 * np.random.default_rng(0).standard_normal(len(audio_T))
    frozen_F, unseen_F = np.full(len(mouth_F), 3.0), np.full(len(mouth_F), np.nan)
    for pair in (
        (mouth_F, silent_T), (mouth_F, noise_T.astype(np.float32)), (frozen_F, audio_T), (unseen_F, audio_T),
        (mouth_F[:0], audio_T[:0]), (mouth_F[:5], audio_T[: 5 * SAMPLES_PER_FRAME]), (unseen_F, silent_T),
        (mouth_F, np.full_like(audio_T, np.nan)),
    ):  # fmt: skip
        assert np.isnan(sync_offset([pair])).all()
        scores = sync_scores(*pair)
        if pair[0] is frozen_F:  # it had a voice to follow
            assert scores == {"correlation": 0.0, "aperture_error": pytest.approx(2**0.5)}
        else:
            assert np.isnan(list(scores.values())).all()
    assert np.isnan(sync_offset([])).all()
    assert sync_offset([*clips, (frozen_F, audio_T), (mouth_F, silent_T)]) == sync_offset(clips)


def test_a_mouth_that_is_lost_now_and_then(clips):
    gappy = []
    for mouth_F, audio_T in clips:
        mouth_F = mouth_F.copy()
        mouth_F[10:30] = np.nan
        mouth_F[::7] = np.nan
        gappy.append((mouth_F, shifted(audio_T, 120)))
    assert abs(sync_offset(gappy)[0] - 0.120) <= 0.025


def test_gain_and_unit_do_not_matter(clips):
    offset, peak = sync_offset(clips)
    other = sync_offset([(mouth_F / 20, audio_T * 0.2) for mouth_F, audio_T in clips])
    assert other == pytest.approx((offset, peak), abs=0.01)


def test_the_wrong_sound_does_not_fit(clips):
    frames = min(len(mouth_F) for mouth_F, _ in clips)
    others = [
        (mouth_F[:frames], clips[(at + 1) % len(clips)][1][: frames * SAMPLES_PER_FRAME])
        for at, (mouth_F, _) in enumerate(clips)
    ]
    own, wrong = (np.mean([sync_scores(*pair)["correlation"] for pair in pairs]) for pairs in (clips, others))
    assert wrong < own - 0.25
    assert sync_offset(others)[1] < sync_offset(clips)[1] - 0.25


def test_the_opening_of_voices_that_it_was_not_fitted_on():
    rng = np.random.default_rng(3)
    called, true = [], []
    for text in SENTENCES:
        speech = UserVoice.sample(rng, "test").speak(text, rng)
        called.append(mouth_from_sound(speech.audio))
        true.append(mouth_track(speech.phonemes, len(called[-1]))[:, 0])
        assert called[-1].shape == (len(speech.audio) // SAMPLES_PER_FRAME,)
    assert np.corrcoef(np.concatenate(called), np.concatenate(true))[0, 1] > 0.6
