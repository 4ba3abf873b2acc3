"""Trials are seeded, complete and fair; blind agents do what they say; nothing of the labels reaches an agent."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import pytest
from test_scenarios import ToneVoice

from wan_streamer.errors import ConfigError
from wan_streamer.evaluation.readers.observe import Observer, loudness, speech_of
from wan_streamer.evaluation.records import Recording, Trial
from wan_streamer.evaluation.suite import stimuli
from wan_streamer.evaluation.suite.baselines import BLIND, Replay, SilenceTimer, canned, open_baseline
from wan_streamer.evaluation.suite.play import play
from wan_streamer.evaluation.suite.run import APART
from wan_streamer.evaluation.suite.stimuli import KINDS, SUITES, TrialSpec, long_conversation, make_trial, trial_list
from wan_streamer.units import SAMPLE_RATE, SAMPLES_PER_UNIT, UNIT_S, AgentUnit, UserUnit

UNIT = UserUnit(audio=np.zeros(SAMPLES_PER_UNIT, np.float32))


@pytest.fixture(scope="module", autouse=True)
def one_rendering() -> Iterator[None]:
    """Of each sentence of the agent: the synthesiser needs half a second for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stimuli, "VARIANTS", 1)
        yield


@pytest.fixture(scope="module")
def trial() -> Trial:
    return make_trial(TrialSpec("stop", 0, 0))


def test_suites_name_known_kinds_and_every_axis() -> None:
    for suite in SUITES.values():
        assert set(suite.trials) <= set(KINDS)
        axes = {KINDS[kind].axis for kind in suite.trials}
        assert {kind.axis for kind in KINDS.values()} - axes <= set(APART)  # which only `standard` has
    assert len(trial_list("quick")) == sum(SUITES["quick"].trials.values())
    assert len({spec.name for spec in trial_list("full")}) == 3 * sum(SUITES["full"].trials.values())
    first = {spec.kind for spec in trial_list("quick")[: len(SUITES["quick"].trials)]}
    assert first == set(SUITES["quick"].trials)  # the front of the list is mixed
    assert set(SUITES["standard"].trials) == set(KINDS) - {"echo"}  # which says what the agent has learned to say
    with pytest.raises(ConfigError, match="expected one of quick, full, standard"):
        trial_list("huge")


def test_trials_are_pure_functions_of_their_specification(trial: Trial) -> None:
    again = make_trial(TrialSpec("stop", 0, 0)).episode
    other = make_trial(TrialSpec("stop", 1, 0)).episode
    assert np.array_equal(again.user_audio, trial.episode.user_audio)
    assert again.labels == trial.episode.labels
    assert other.labels["events"] != again.labels["events"]
    assert again.labels["split"] == "test"


@pytest.mark.parametrize("kind", SUITES["quick"].trials)
def test_every_kind_can_be_made(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stimuli, "_voice", ToneVoice)
    monkeypatch.setitem(KINDS, kind, dataclasses.replace(KINDS[kind], pictures=False))
    made = make_trial(TrialSpec(kind, 0, 0))
    assert made.axis == KINDS[kind].axis
    assert set(KINDS[kind].scenarios) <= set(made.episode.labels["scenarios"])
    assert any(event["side"] == "user" for event in made.episode.labels["events"])


@pytest.mark.parametrize(
    ("kind", "event"), [("pause", "pause"), ("aside", "side_talk"), ("noise", "noise"), ("typed", "typed")]
)
def test_trials_hold_what_they_are_for(kind: str, event: str) -> None:
    episode = make_trial(TrialSpec(kind, 0, 1)).episode
    found = [e for e in episode.labels["events"] if e["type"] == event]
    assert found
    if KINDS[kind].interrupted:  # the reference is in the middle of a sentence
        talk = [
            (e["start"], e["end"]) for e in episode.labels["events"] if e["type"] == "speech" and e["side"] == "agent"
        ]
        assert any(start < found[0]["start"] < end for start, end in talk)


def test_an_agent_gets_sound_picture_and_typed_text_only(trial: Trial) -> None:
    units = list(trial.units())
    assert len(units) == trial.episode.units
    assert {field.name for field in dataclasses.fields(units[0])} == {"audio", "video", "text"}
    assert np.array_equal(np.concatenate([unit.audio for unit in units]), trial.episode.user_audio)
    typed = make_trial(TrialSpec("typed", 0, 0))
    event = next(e for e in typed.episode.labels["events"] if e["type"] == "typed")
    assert [unit.text for unit in typed.units()][int(event["start"] / UNIT_S)] == event["label"]


def test_a_long_conversation_is_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stimuli, "_voice", ToneVoice)
    monkeypatch.setattr(stimuli, "make_episode", functools.partial(stimuli.make_episode, pictures=False))
    parts = list(long_conversation(0, 20.0))
    assert sum(part.episode.units for part in parts) * UNIT_S >= 20
    assert len({part.name for part in parts}) == len(parts)


# ---------------------------------------------------------------- agents


def test_replay_is_the_reference(trial: Trial) -> None:
    recording = play(Replay(trial), trial.units())
    assert np.array_equal(recording.audio, trial.episode.agent_audio)
    assert np.array_equal(recording.video, trial.episode.agent_video)
    assert "".join(text for _, text in recording.text).split()[0] == trial.episode.labels["words"]["agent"][0]["text"]


@pytest.mark.parametrize("name", BLIND)
def test_blind_agents_cannot_hear_words_or_see(name: str, trial: Trial) -> None:
    """The same loudness with other words, and another picture, change nothing."""
    units = list(trial.units())
    rng = np.random.default_rng(0)
    shape = [np.sqrt(np.square(unit.audio.reshape(-1, 480)).mean(1)) for unit in units]
    noise = [(np.repeat(level, 480) * rng.choice([-1.0, 1.0], SAMPLES_PER_UNIT)).astype(np.float32) for level in shape]
    blind = [UserUnit(audio=audio, video=None) for audio in noise]
    first, second = (play(open_baseline(name), given) for given in (units, blind))
    assert np.array_equal(first.audio, second.audio)
    assert np.array_equal(first.video, second.video)


def test_what_blind_agents_do() -> None:
    sounds = {name: play(open_baseline(name), [UNIT] * 50).audio for name in BLIND}
    assert not any(sounds[name].any() for name in ("silent", "frozen_frame", "looped_video"))
    assert loudness(sounds["always_talking"])[5:].min() > -60 or len(speech_of(sounds["always_talking"])) == 1
    begins = [start for start, _ in speech_of(sounds["metronome"])]
    assert np.allclose(np.diff(begins), 3.0, atol=0.17)
    assert not sounds["timer_0.5"].any()  # nobody has spoken
    with pytest.raises(ConfigError, match="expected one of silent"):
        open_baseline("clever")


def test_silence_timer() -> None:
    rng = np.random.default_rng(0)
    loud = UserUnit(audio=rng.normal(0, 0.1, SAMPLES_PER_UNIT).astype(np.float32))
    quiet = UserUnit(audio=rng.normal(0, 0.001, SAMPLES_PER_UNIT).astype(np.float32))
    timer = SilenceTimer(0.5)
    answers = [timer(k, unit) for k, unit in enumerate([quiet] * 5 + [loud] * 5 + [quiet] * 8)]
    assert answers == [False] * 13 + [True] + [False] * 4  # 0.64 s after the last loud unit, once


def test_canned_talk_has_no_long_pause() -> None:
    assert len(speech_of(np.tile(canned().talk, 2))) == 1


# ---------------------------------------------------------------- observing


def test_observer_hears_and_sees() -> None:
    audio = np.zeros(4 * SAMPLE_RATE, np.float32)
    audio[SAMPLE_RATE : 2 * SAMPLE_RATE] = 0.1 * np.sin(np.arange(SAMPLE_RATE) * 0.15)
    asked: list[int] = []

    def recognise(given: np.ndarray) -> list[tuple[str, float, float]]:
        asked.append(len(given))
        return [("hum", 0.35, 1.35)]

    def read(frames: np.ndarray) -> dict[str, np.ndarray]:
        asked.append(-len(frames))
        return {"mouth": frames[:, 0, 0, 0].astype(np.float32)}

    frames = np.zeros((100, 8, 8, 3), np.uint8)
    frames[50:] = 7
    observer = Observer(recognise, None, read)
    seen = observer(Recording(audio, frames, [(1.0, "hum")]))
    assert [(round(a, 1), round(b, 1)) for a, b in seen.speech] == [(1.0, 2.0)]
    assert [word.text for word in seen.words] == ["hum"]
    assert seen.words[0].start == pytest.approx(1.0, abs=0.03)  # moved back to the clock of the recording
    assert asked[0] == pytest.approx(1.7 * SAMPLE_RATE, abs=500)  # the speech and a little around it
    assert asked[1] == -2  # equal pictures are read once
    assert seen.tracks["mouth"].tolist() == [0.0] * 50 + [7.0] * 50
    assert np.flatnonzero(seen.tracks["change"]).tolist() == [50]

    later = observer(Recording(np.roll(audio, SAMPLE_RATE), None))
    assert len(asked) == 2  # equal speech is heard once
    assert later.words[0].start == pytest.approx(2.0, abs=0.03)
    observer(Recording(np.roll(audio, SAMPLE_RATE) / 2, None))
    assert len(asked) == 3


def test_silence_is_not_given_to_the_recogniser() -> None:
    def recognise(given: np.ndarray) -> list[tuple[str, float, float]]:
        raise AssertionError("recognisers hear things in silence")

    seen = Observer(recognise, None, lambda frames: {})(Recording(np.zeros(SAMPLE_RATE, np.float32), None))
    assert (seen.words, seen.speech, seen.tracks) == ([], [], {})


def test_play_keeps_texts_and_times() -> None:
    class Counter:
        k = 0

        def step(self, user: UserUnit, steps: int | None = None) -> AgentUnit:
            self.k += 1
            frames = np.full((4, 8, 8, 3), self.k, np.uint8)
            return AgentUnit(
                self.k - 1,
                np.zeros(SAMPLES_PER_UNIT, np.float32),
                frames,
                "a" if self.k == 3 else "",
                "",
                {"solve": 5.0},
            )

    recording = play(Counter(), [UNIT] * 4)
    assert recording.text == [(0.32, "a")]
    assert recording.stage_ms == {"solve": [5.0] * 4}
    assert recording.seconds == pytest.approx(0.64)
    assert recording.video is not None
    assert recording.video[:, 0, 0, 0].tolist() == [k for k in range(1, 5) for _ in range(4)]
