"""What the parts of the evaluation hand to each other.

    Trial        what the user does, and the truth about it       (`stimuli`, or a recording from outside)
    Recording    both sides on one clock, after an agent played   (`play`)
    Observation  what can be heard and seen of the agent          (`observe`), small enough to keep
    Case         a trial's labels with the observation            goes into every metric

Times are seconds from the start of the recording; tracks have one value per video frame (25 per second).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wan_streamer.data.shards import Episode
from wan_streamer.simulation.voice.speech import TimedWord
from wan_streamer.units import FRAMES_PER_UNIT, SAMPLES_PER_UNIT, UNIT_S, UserUnit

Span = tuple[float, float]


@dataclass(frozen=True)
class Trial:
    """One stimulus. An agent gets `units()` and nothing else.

    name     unique in a suite, such as "turn-017"
    axis     which part of the suite planned it
    episode  the user's sound and picture; the agent's side is the reference that `replay` plays
    """

    name: str
    axis: str
    episode: Episode

    def units(self) -> Iterator[UserUnit]:
        episode = self.episode
        typed: dict[int, str] = {}
        for event in episode.labels["events"]:
            if event["type"] == "typed":
                typed[int(event["start"] / UNIT_S)] = event["label"]
        for k in range(episode.units):
            video = episode.user_video
            frames = None if video is None else video[k * FRAMES_PER_UNIT : (k + 1) * FRAMES_PER_UNIT]
            sound = episode.user_audio[k * SAMPLES_PER_UNIT : (k + 1) * SAMPLES_PER_UNIT]
            yield UserUnit(audio=sound, video=frames, text=typed.get(k, ""))


@dataclass(frozen=True)
class Recording:
    """What an agent did in a trial.

    audio     float32 [T], 24 kHz mono;   video  uint8 [F, H, W, 3], None if there is no picture
    text      what the agent says, in pieces (time, text);   transcript  what it says it heard
    stage_ms  per stage, milliseconds of every unit; empty if the agent was not run here
    """

    audio: np.ndarray
    video: np.ndarray | None
    text: list[tuple[float, str]] = field(default_factory=list)
    transcript: list[tuple[float, str]] = field(default_factory=list)
    stage_ms: dict[str, list[float]] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return len(self.audio) / SAMPLES_PER_UNIT * UNIT_S


@dataclass(frozen=True)
class Observation:
    """What was heard and seen of the agent.

    speech    spans in which it is heard
    words     what a recogniser heard, [] if none was asked
    said      its own text lane joined, "" if it has none;   transcript  likewise;   text  in pieces (time, text)
    loudness  float32 [F], dB of every frame's sound
    tracks    name -> float32 [F], read from the pixels (`readers`, `pictures`); empty without a picture
    audio     int16 [T], 24 kHz, empty where nobody needs it
    mos       predicted opinion score of the voice, None without a judge or speech
    """

    seconds: float
    speech: list[Span]
    words: list[TimedWord]
    said: str
    transcript: str
    loudness: np.ndarray
    tracks: dict[str, np.ndarray]
    audio: np.ndarray
    stage_ms: dict[str, list[float]] = field(default_factory=dict)
    mos: float | None = None
    text: list[tuple[float, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """One observed trial. `labels` are those of data/schema.json; `truth` is the reference observed the same way."""

    name: str
    axis: str
    labels: dict[str, Any]
    seen: Observation
    truth: Observation

    def events(self, *types: str, side: str | None = None) -> list[dict]:
        return [e for e in self.labels["events"] if e["type"] in types and side in (None, e["side"])]
