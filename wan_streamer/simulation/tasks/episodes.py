"""Independent tasks for the first stage of training: something is asked for, and some of the agent's streams answer.

`TASKS`        name -> how it is made and how often it is drawn
`make_task`    (seed, split, index) -> `data.shards.Episode`, a pure function of its arguments
`shard_tasks`  the tasks of one shard

A task is an episode of `UNITS` units like any other, with the labels "task", "targets" and perhaps "prompt". Streams
of the agent that are no targets are what they are while nothing happens: an idle face, silence. See docs/tasks.md.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from wan_streamer.config import to_dict
from wan_streamer.data.shards import SCHEMA, SIDES, Episode, episode_key
from wan_streamer.errors import ConfigError
from wan_streamer.simulation.conversation.dialogue import episode_rng
from wan_streamer.simulation.conversation.partners import (
    FACE_PARAMETERS,
    GENERATOR,
    HEIGHT,
    NOD,
    SOUND_GAIN,
    WIDTH,
)
from wan_streamer.simulation.face.motion import gesture_tracks, pose_track
from wan_streamer.simulation.face.person import AGENT_IDENTITY, FaceIdentity, FacePose, HandPose, Prop
from wan_streamer.simulation.face.renderer import FaceRenderer
from wan_streamer.simulation.sound.effects import SOUNDS
from wan_streamer.simulation.sound.microphone import capture
from wan_streamer.simulation.tasks import say as say
from wan_streamer.simulation.tasks import see as see
from wan_streamer.simulation.tasks.plan import AnyVoice, Look, Make, Plan, Stage, written_words
from wan_streamer.simulation.voice.natural import NaturalVoices
from wan_streamer.simulation.voice.speech import TimedPhoneme
from wan_streamer.units import FPS, FRAMES_PER_UNIT, SAMPLE_RATE, SAMPLES_PER_UNIT, UNIT_S

UNITS = (8, 40)  # shortest and longest task, units of 160 ms
TAIL = (0.2, 0.6)  # seconds after the last thing that happens
TRIES = 50  # plans in a row that may turn out too long
SHARD_UNITS = 1000  # of tasks in one shard, at least
MOST_TASKS = 128  # in one shard; more of the shortest do not fit
PURPOSE = 10  # random streams of tasks begin here, those of conversations below


@dataclass(frozen=True)
class Task:
    """make: (stage) -> plan; weight: how often it is drawn, relative to the others."""

    make: Make
    weight: float


TASKS: dict[str, Task] = {
    "asr": Task(see.asr, 1.0),
    "asr_natural": Task(see.asr_natural, 0.7),
    "tts": Task(say.tts, 3.0),
    "caption_image": Task(see.caption_image, 0.3),
    "caption_audio": Task(see.caption_audio, 0.3),
    "caption_video": Task(see.caption_video, 0.3),
    "dialogue": Task(see.dialogue, 1.2),
    "generate_image": Task(say.generate_image, 0.5),
    "generate_audio": Task(say.generate_audio, 0.6),
    "generate_video": Task(say.generate_video, 0.6),
    "generate_av": Task(say.generate_av, 0.8),
}
"""By seconds: 40 % speech with a face, 25 % understanding, 15 % written dialogue, 20 % other generation."""


def draw_task(rng: np.random.Generator, natural: bool) -> str:
    """The name of a task; without natural voices "asr" takes the place of "asr_natural"."""
    weights = np.array([task.weight for task in TASKS.values()])
    name = str(rng.choice(list(TASKS), p=weights / weights.sum()))
    return "asr" if name == "asr_natural" and not natural else name


def shard_tasks(
    seed: int, split: str, number: int, agent_voice: AnyVoice, natural: NaturalVoices | None = None
) -> Iterator[Episode]:
    """The tasks of shard `number`: at least `SHARD_UNITS` of them."""
    units, index = 0, number * MOST_TASKS
    while units < SHARD_UNITS:
        task = make_task(seed, split, index, agent_voice, natural)
        yield task
        units, index = units + task.units, index + 1


def make_task(
    seed: int,
    split: str,
    index: int,
    agent_voice: AnyVoice,
    natural: NaturalVoices | None = None,
    name: str | None = None,
    pictures: bool = True,
) -> Episode:
    """One task with its exact truth.

    natural   voices of other people beside espeak-ng; without them there is no "asr_natural"
    name      which task; None draws one
    pictures  False leaves both films out, for work on labels and sound alone

    Raises ConfigError for an unknown name.
    """
    if name is not None and name not in TASKS:
        raise ConfigError(f"task: expected one of {', '.join(TASKS)}, got {name!r}")
    rng = episode_rng(seed, split, index, PURPOSE)
    name = name or draw_task(rng, natural is not None)
    plan, units = _fitting(TASKS[name].make, Stage(rng, split, agent_voice, natural), name)
    sound_rng = episode_rng(seed, split, index, PURPOSE + 1)
    agent_T = _mix(plan, "agent", units, sound_rng)
    user_T, microphone = capture(_mix(plan, "user", units, sound_rng), sound_rng, strength=2.0 * plan.degrade)
    user_rng, agent_rng = (episode_rng(seed, split, index, PURPOSE + i) for i in (2, 3))
    shots = {
        "user": [_shot(plan, "user", plan.user or Look(FaceIdentity()), units, user_rng)],
        "agent": _agent_shots(plan, units, agent_rng),
    }
    labels: dict[str, Any] = {
        "schema": SCHEMA,
        "generator": GENERATOR,
        "seed": seed,
        "split": split,
        "index": index,
        "units": units,
        "fps": FPS,
        "scenarios": [name],
        "task": name,
        "targets": list(plan.targets),
        "user": {
            "voice": plan.voices.get("user", {}), "camera": plan.user is not None, "microphone": microphone,
            "identity": to_dict(plan.user.identity) if plan.user else {},
        },
        "agent": {
            "voice": plan.voices.get("agent", {"engine": "piper", "speaker": "joe"}), "camera": True,
            "identity": to_dict(AGENT_IDENTITY),
        },
        "words": {side: _words(plan, side) for side in SIDES},
        "phonemes": {s: [asdict(p) for t in plan.turns if t.side == s for p in t.phonemes()] for s in SIDES},
        "events": _events(plan, units, shots),
        "mouth_open": {s: [round(p.mouth_open, 3) for shot in shots[s] for p in shot.poses] for s in SIDES},
        "face": {
            s: {key: [round(getattr(p, key), 3) for shot in shots[s] for p in shot.poses] for key in FACE_PARAMETERS}
            for s in SIDES
        },
    }  # fmt: skip
    if plan.prompt:
        labels["prompt"] = plan.prompt
    if plan.shown:
        labels["agent"]["shown"] = to_dict(plan.shown.identity)
    user_video = shots["user"][0].film() if pictures and plan.user else None
    agent_video = np.concatenate([shot.film() for shot in shots["agent"]]) if pictures else None
    return Episode(episode_key(index), user_T, agent_T, user_video, agent_video, labels)


def _fitting(make: Make, stage: Stage, name: str) -> tuple[Plan, int]:
    """A plan that is not too long, and its length in units."""
    for _ in range(TRIES):
        plan = make(stage)
        units = max(UNITS[0], math.ceil((plan.until + stage.between(*TAIL)) / UNIT_S))
        if units <= UNITS[1]:
            return plan, units
    raise ConfigError(
        f"{name}: expected a task of at most {UNITS[1]} units, got a longer one {TRIES} times; use a faster voice"
    )


# ---------------------------------------------------------------- sound


def _mix(plan: Plan, side: str, units: int, rng: np.random.Generator) -> np.ndarray:
    """What is heard of one side before any microphone, float32 [T]."""
    track_T = np.zeros(units * SAMPLES_PER_UNIT, np.float32)
    clips = [(turn.start, turn.speech.audio) for turn in plan.turns if turn.side == side]
    for whose, sound in plan.sounds:
        if whose == side:
            clips.append((sound.start, SOUNDS[sound.kind].make(rng) * np.float32(rng.uniform(*SOUND_GAIN))))
    for start, audio_T in clips:
        first = round(start * SAMPLE_RATE)
        track_T[first : first + len(audio_T)] += audio_T[: len(track_T) - first]
    return track_T


# ---------------------------------------------------------------- pictures


@dataclass(frozen=True)
class _Shot:
    """A piece of a film: one entry per frame; `nods` in seconds from the start of the episode."""

    identity: FaceIdentity
    poses: list[FacePose]
    hands: list[HandPose | None]
    props: list[Prop | None]
    nods: list[float]

    def film(self) -> np.ndarray:
        return FaceRenderer(self.identity, HEIGHT, WIDTH).film(self.poses, self.hands, self.props)


def _shot(plan: Plan, side: str, look: Look, units: int, rng: np.random.Generator) -> _Shot:
    """One side from `look.start` to the end."""
    frames = units * FRAMES_PER_UNIT - round(look.start * FPS)

    def spans(speaker: str) -> list[tuple[float, float]]:
        turns = [turn for turn in plan.turns if turn.side == speaker]
        return [(turn.onset - look.start, turn.end - look.start) for turn in turns]

    spoken = [p for turn in plan.turns if turn.side == side for p in turn.phonemes()]
    phonemes = tuple(
        TimedPhoneme(p.symbol, p.start - look.start, p.end - look.start) for p in (*spoken, *look.phonemes)
    )
    gestures = []
    if look.gesture:
        gestures = [replace(look.gesture, start=look.gesture.start - look.start, end=look.gesture.end - look.start)]
    speaking = spans(side) + ([(phonemes[0].start, phonemes[-1].end)] if look.phonemes else [])
    listening = [] if look.still else spans("agent" if side == "user" else "user")
    motion = pose_track(frames, phonemes, speaking, listening, rng, gestures=gestures)
    hands, props = gesture_tracks(frames, gestures, rng)
    poses = motion.poses
    if look.still:
        middle = min(frames - 1, FPS)  # every still is past the rise of its gesture by then
        poses = [replace(poses[middle], blink=0.0)] * frames
        hands, props = [hands[middle]] * frames, [props[middle]] * frames
    nods = [round(at + look.start, 3) for at in motion.nods]
    return _Shot(look.identity, poses, hands, props, nods)


def _agent_shots(plan: Plan, units: int, rng: np.random.Generator) -> list[_Shot]:
    """The agent, and whom its film shows from then on."""
    if plan.shown is None:
        return [_shot(plan, "agent", Look(AGENT_IDENTITY), units, rng)]
    before = round(plan.shown.start / UNIT_S)
    idle = _shot(Plan(()), "agent", Look(AGENT_IDENTITY), before, rng)
    return [idle, _shot(plan, "agent", plan.shown, units, rng)]


# ---------------------------------------------------------------- labels


def _words(plan: Plan, side: str) -> list[dict]:
    words = [word for turn in plan.turns if turn.side == side for word in turn.words()]
    if side == "agent" and plan.answer:
        words += written_words(plan.answer, plan.answer_at)
    return [asdict(word) for word in words]


def _events(plan: Plan, units: int, shots: dict[str, list[_Shot]]) -> list[dict]:
    seconds = units * UNIT_S
    events: list[dict] = []

    def add(kind: str, side: str, start: float, end: float, label: str = "") -> None:
        start, end = max(0.0, start), min(seconds, end)
        events.append({"type": kind, "side": side, "start": round(start, 4), "end": round(end, 4), "label": label})

    if plan.prompt:
        add("typed", "user", plan.typed_at, plan.typed_at + 0.01, plan.prompt)
    if plan.answer:
        add("written", "agent", plan.answer_at, written_words(plan.answer, plan.answer_at)[-1].end, plan.answer)
    for turn in plan.turns:
        add(turn.kind, turn.side, turn.onset, turn.end, turn.label)
    for side, sound in plan.sounds:
        add("noise", side, sound.start, sound.end, sound.kind)
    for side, look in (("user", plan.user), ("agent", plan.shown)):
        if look and look.gesture:
            prop = look.gesture.prop
            label = f"{prop.colour} {prop.name}" if prop else ""
            add(look.gesture.kind, side, max(look.start, look.gesture.start), look.gesture.end, label)
    if plan.shown:
        add("shown", "agent", plan.shown.start, seconds, plan.prompt)
    for side in SIDES:
        for at in (at for shot in shots[side] for at in shot.nods if at + NOD < seconds):
            add("nod", side, at, at + NOD)
    return sorted(events, key=lambda e: (e["start"], e["type"], e["side"]))
