"""Agents that any score must be seen beside. All but `replay` are blind: they know nothing of what is said or shown.

`DESCRIPTIONS` says what each of them does, `BLIND` lists the blind ones. `open_baseline` opens one of them for a
conversation, `Replay` plays a trial's reference.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wan_streamer.errors import ConfigError
from wan_streamer.evaluation.readers.observe import speech_of
from wan_streamer.evaluation.records import Trial
from wan_streamer.simulation.conversation.partners import make_episode
from wan_streamer.simulation.conversation.scenarios import plan_exactly
from wan_streamer.simulation.generate import default_cache
from wan_streamer.simulation.voice.users import AgentVoice
from wan_streamer.units import FPS, FRAMES_PER_UNIT, SAMPLE_RATE, SAMPLES_PER_UNIT, UNIT_S, AgentUnit, UserUnit

METRONOME_S = 3.0
LOOP_S = 4.0
QUIET_DB = 12.0  # above the quietest moment of the last seconds counts as speech
MEMORY_UNITS = 25

DESCRIPTIONS = {
    "silent": "a black picture and no sound",
    "always_talking": "a face that does not move, a voice that never stops",
    "metronome": 'a face that does not move, "mm-hm" every three seconds',
    "timer_0.5": "talks when the user has been quiet for 0.5 s",
    "timer_1.0": "talks when the user has been quiet for 1.0 s",
    "frozen_frame": "a face that does not move, no sound",
    "looped_video": "four seconds of a talking face again and again, no sound",
    "replay": "the reference itself: what a perfect agent scores",
}
BLIND = tuple(name for name in DESCRIPTIONS if name != "replay")


@dataclass(frozen=True)
class Canned:
    """What the blind agents have to say and to show: talk without long pauses and "mm-hm" (float32 [T]), a film (uint8
    [F, H, W, 3])."""

    talk: np.ndarray
    mhm: np.ndarray
    film: np.ndarray


@functools.cache
def canned() -> Canned:
    """From a conversation outside every suite, in the agent's own voice and face."""
    voice = AgentVoice(default_cache(), 1)
    plan = functools.partial(plan_exactly, ("explanation",), 0.2)
    episode = make_episode(99, "test", 0, voice, planner=plan)
    talk = next(e for e in episode.labels["events"] if e["type"] == "speech" and e["side"] == "agent")
    first, last = (round(talk[key] * SAMPLE_RATE) for key in ("start", "end"))
    assert episode.agent_video is not None
    start = round(talk["start"] * FPS)
    talk_T = episode.agent_audio[first:last]
    return Canned(
        np.concatenate([talk_T[round(a * SAMPLE_RATE) : round(b * SAMPLE_RATE)] for a, b in speech_of(talk_T)]),
        voice.renderings("Mm-hm.")[0].audio,
        episode.agent_video[start : start + round(LOOP_S * FPS)],
    )


class Script:
    """An agent with a fixed film, and sound that begins when `begins` says so. `begins(unit, user)` is asked when it
    is silent."""

    def __init__(self, film: np.ndarray, sound: np.ndarray, begins: Callable[[int, UserUnit], bool]) -> None:
        self.film, self.sound, self.begins = film, sound, begins
        self.index = 0
        self.position: int | None = None  # next sample of the sound, None while silent

    def step(self, user: UserUnit, steps: int | None = None) -> AgentUnit:
        asked = self.begins(self.index, user)
        if self.position is None and asked:
            self.position = 0
        audio = np.zeros(SAMPLES_PER_UNIT, np.float32)
        if self.position is not None:
            part = self.sound[self.position : self.position + SAMPLES_PER_UNIT]
            audio[: len(part)] = part
            self.position += SAMPLES_PER_UNIT
            if self.position >= len(self.sound):
                self.position = None
        at = (self.index * FRAMES_PER_UNIT + np.arange(FRAMES_PER_UNIT)) % len(self.film)
        self.index += 1
        return AgentUnit(self.index - 1, audio, self.film[at])


class SilenceTimer:
    """Says when the user has been quiet for `seconds` after having spoken: the classical end of a turn."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.levels: list[float] = []
        self.quiet_s = 0.0
        self.spoke = False

    def __call__(self, unit: int, user: UserUnit) -> bool:
        if user.audio is not None:
            for piece in user.audio.reshape(-1, SAMPLE_RATE // 50):
                level = float(10 * np.log10(np.square(piece).mean() + 1e-9))
                self.levels = [*self.levels, level][-MEMORY_UNITS * 8 :]
                loud = level > max(min(self.levels) + QUIET_DB, -55.0)
                self.quiet_s = 0.0 if loud else self.quiet_s + 0.02
                self.spoke |= loud
        if self.spoke and self.quiet_s >= self.seconds:
            self.spoke = False
            return True
        return False


def open_baseline(name: str) -> Script:
    """A fresh conversation with a blind agent. Raises `ConfigError` for an unknown name."""
    if name not in BLIND:
        raise ConfigError(f"baseline: expected one of {', '.join(BLIND)}, got {name!r}")
    store = canned()
    still, nothing = store.film[:1], np.zeros(1, np.float32)

    def never(unit: int, user: UserUnit) -> bool:
        return False

    def always(unit: int, user: UserUnit) -> bool:
        return True

    def ticks(unit: int, user: UserUnit) -> bool:
        return round(unit * UNIT_S % METRONOME_S, 3) < UNIT_S

    if name.startswith("timer_"):
        return Script(still, store.talk[: 2 * SAMPLE_RATE], SilenceTimer(float(name.removeprefix("timer_"))))
    return {
        "silent": lambda: Script(np.zeros_like(still), nothing, never),
        "always_talking": lambda: Script(still, store.talk, always),
        "metronome": lambda: Script(still, store.mhm, ticks),
        "frozen_frame": lambda: Script(still, nothing, never),
        "looped_video": lambda: Script(store.film, nothing, never),
    }[name]()


class Replay:
    """The reference of a trial as an agent. It is the only agent that is given a trial."""

    def __init__(self, trial: Trial) -> None:
        self.episode = trial.episode
        self.index = 0
        words = trial.episode.labels["words"]
        self.said, self.heard = _by_unit(words["agent"], "start"), _by_unit(words["user"], "end")

    def step(self, user: UserUnit, steps: int | None = None) -> AgentUnit:
        k, film = self.index, self.episode.agent_video
        self.index += 1
        frames = slice(k * FRAMES_PER_UNIT, (k + 1) * FRAMES_PER_UNIT)
        video = film[frames] if film is not None else np.zeros((FRAMES_PER_UNIT, 192, 336, 3), np.uint8)
        audio = self.episode.agent_audio[k * SAMPLES_PER_UNIT : (k + 1) * SAMPLES_PER_UNIT]
        return AgentUnit(k, audio, video, self.said.get(k, ""), self.heard.get(k, ""))


def _by_unit(words: list[dict], at: str) -> dict[int, str]:
    """The text of every unit in which words start or end."""
    texts: dict[int, str] = {}
    for word in words:
        unit = int(word[at] / UNIT_S)
        texts[unit] = texts.get(unit, "") + " " + word["text"]
    return texts
