"""Two people made audible and visible: a planned dialogue becomes two audio tracks, two films and their labels."""

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from wan_streamer.config import to_dict
from wan_streamer.data.shards import SCHEMA, SIDES, Episode, episode_key
from wan_streamer.simulation.conversation.dialogue import (
    CUT_FADE,
    Dialogue,
    Speak,
    episode_rng,
    episode_units,
    split_of,
)
from wan_streamer.simulation.conversation.free import free_texts
from wan_streamer.simulation.conversation.lines.many import MANY
from wan_streamer.simulation.conversation.repertoire import SMILES, any_wording
from wan_streamer.simulation.conversation.scenarios import plan_asked, plan_dialogue, plan_read, plan_shown
from wan_streamer.simulation.face.motion import Motion, gesture_tracks, pose_track
from wan_streamer.simulation.face.person import AGENT_IDENTITY, FaceIdentity, HandPose, Prop
from wan_streamer.simulation.face.renderer import FaceRenderer
from wan_streamer.simulation.sound.effects import SOUNDS
from wan_streamer.simulation.sound.microphone import capture
from wan_streamer.simulation.sound.noises import Noise
from wan_streamer.simulation.voice.hibari import HibariVoice
from wan_streamer.simulation.voice.natural import NaturalVoice, NaturalVoices
from wan_streamer.simulation.voice.silent import HURRIED, SilentVoice
from wan_streamer.simulation.voice.speech import Speech
from wan_streamer.simulation.voice.users import AgentVoice, UserVoice
from wan_streamer.units import FPS, FRAMES_PER_UNIT, SAMPLE_RATE, SAMPLES_PER_UNIT

GENERATOR = "3.14"
AGENT = {"engine": "piper", "speaker": "joe"}  # its voice in the labels
PLANS = 16  # purposes of the random streams from here on are attempts at a plan
CAMERA_OFF = 0.1  # share of episodes without the user's picture
LOUDSPEAKER = 0.5  # share of users without headphones, whose microphone may pick up the agent
NATURAL_SHARE = 0.5  # of episodes
HIBARI_SHARE = 0.5  # of those, where there is Kokoro too: it takes fifty times as long
ASKED_WRITTEN, ASKED_SPOKEN, ASKED_HEARD = 0.7, 0.4, 0.6  # share of conversations of what words alone decide
READ = 2 / 3  # share of conversations in which only the agent is heard: it says what nobody asked for
NOD = 0.44  # seconds
SOUND_GAIN = (0.15, 0.7)
FACE_PARAMETERS = (
    "mouth_wide", "lip_round", "blink", "gaze_x", "gaze_y", "brow", "smile", "head_x", "head_y", "roll", "yaw", "pitch",
)  # fmt: skip
HEIGHT, WIDTH = 192, 336


def mix_track(dialogue: Dialogue, side: str, rng: np.random.Generator) -> np.ndarray:
    """What is heard on one side over the whole episode before any microphone, float32 [T]; `rng` makes the noises."""
    track_T = np.zeros(dialogue.units * SAMPLES_PER_UNIT, np.float32)

    def add(audio_T: np.ndarray, start: float) -> None:
        first = round(start * SAMPLE_RATE)
        audio_T = audio_T[max(0, -first) :][: max(0, len(track_T) - max(first, 0))]
        track_T[max(first, 0) : max(first, 0) + len(audio_T)] += audio_T

    for turn in dialogue.turns:
        if turn.side != side:
            continue
        audio_T = turn.speech.audio * np.float32(10 ** (turn.gain_db / 20))
        if turn.cut is not None and turn.cut < turn.start + len(audio_T) / SAMPLE_RATE:
            audio_T = audio_T[: max(1, round((turn.cut - turn.start) * SAMPLE_RATE))]
            ramp = min(round(CUT_FADE * SAMPLE_RATE), len(audio_T))
            audio_T[-ramp:] *= np.linspace(1, 0, ramp, dtype=np.float32)
        add(audio_T, turn.start)
    if side == "user":
        for sound in dialogue.sounds:
            add(SOUNDS[sound.kind].make(rng) * np.float32(rng.uniform(*SOUND_GAIN)), sound.start)
    return track_T


@dataclass(frozen=True)
class _Acting:
    """What one side looks like: poses and hands, one entry per frame."""

    motion: Motion
    hands: list[HandPose | None]
    props: list[Prop | None]

    def film(self, identity: FaceIdentity) -> np.ndarray:
        return FaceRenderer(identity, HEIGHT, WIDTH).film(self.motion.poses, self.hands, self.props)

    def parameters(self) -> dict[str, list[float]]:
        """The face in numbers, one value per frame."""
        return {name: [round(getattr(pose, name), 3) for pose in self.motion.poses] for name in FACE_PARAMETERS}


def _act(dialogue: Dialogue, side: str, rng: np.random.Generator, energy: float) -> _Acting:
    other = "user" if side == "agent" else "agent"
    frames, gestures = dialogue.units * FRAMES_PER_UNIT, dialogue.gestures_of(side)
    turns = [turn for turn in dialogue.turns if turn.side == side]
    phonemes = tuple(p for turn in turns for p in turn.phonemes())
    happy = [turn.onset - 0.1 for turn in turns if turn.label in SMILES]
    # Nobody turns to a partner who talks to somebody else.
    listening = dialogue.spans(other, ("speech",))
    motion = pose_track(frames, phonemes, dialogue.spans(side), listening, rng, happy, energy, gestures)
    return _Acting(motion, *gesture_tracks(frames, gestures, rng))


Planner = Callable[[Speak, Speak, bool, np.random.Generator], Dialogue | None]
"""(agent's voice, user's voice, whether the camera is on, rng) -> what happens; None: try again with another rng."""


def make_episode(
    seed: int,
    split: str,
    index: int,
    agent_voice: AgentVoice,
    natural: NaturalVoices | None = None,
    pictures: bool = True,
    planner: Planner | None = None,
    filmed: bool = True,
) -> Episode:
    """One conversation with its exact truth, a pure function of the arguments.

    natural   users speak with these voices in a quarter of the training episodes, and in half of the others
    pictures  False leaves both films out, for work on labels and sound alone
    planner   decides what happens, with the camera always on; None: as many scenarios of the split as fit
    filmed    False leaves the agent's film out, and its face is no target: it is there for its words and its voice
    """
    rng = episode_rng(seed, split, index, 1)
    user_voice = UserVoice.sample(rng, split)
    identity = FaceIdentity.sample(rng, split)
    camera = bool(rng.random() >= CAMERA_OFF) or planner is not None
    human = _natural_speaker(rng, split, natural)
    echo = bool(rng.random() < LOUDSPEAKER)

    voice = human.name if isinstance(human, NaturalVoice) else ""
    planner = planner or _planner_of(split, episode_units(seed, split, index), voice)
    dialogue = _planned(planner, agent_voice.speak, _of(user_voice, human), camera, seed, split, index)
    sound_rng = episode_rng(seed, split, index, 3)
    agent_T = mix_track(dialogue, "agent", sound_rng)
    user_T, microphone = capture(
        mix_track(dialogue, "user", sound_rng), sound_rng, agent_T if echo else None, babble=_babble(split)
    )
    acting = {
        "user": _act(dialogue, "user", episode_rng(seed, split, index, 4), float(rng.uniform(0.7, 1.5))),
        "agent": _act(dialogue, "agent", episode_rng(seed, split, index, 5), 1.0),
    }
    nods = [
        {"type": "nod", "side": side, "start": at, "end": round(at + NOD, 3), "label": ""}
        for side in SIDES for at in acting[side].motion.nods if at + NOD < dialogue.seconds
    ]  # fmt: skip
    labels = {
        "schema": SCHEMA,
        "generator": GENERATOR,
        "seed": seed,
        "split": split,
        "index": index,
        "units": dialogue.units,
        "fps": FPS,
        "scenarios": dialogue.scenarios,
        "user": {
            "voice": human.labels() if human else asdict(user_voice), "identity": to_dict(identity), "camera": camera,
            "microphone": microphone,
        },
        "agent": {"voice": AGENT, "identity": to_dict(AGENT_IDENTITY), "camera": True},
        "words": dialogue.words(),
        "phonemes": dialogue.phonemes(),
        "events": sorted(dialogue.events + nods, key=lambda e: (e["start"], e["type"], e["side"])),
        "mouth_open": {side: [round(p.mouth_open, 3) for p in acting[side].motion.poses] for side in SIDES},
        "face": {side: acting[side].parameters() for side in SIDES},
    }  # fmt: skip
    if dialogue.before:
        labels["before"] = dialogue.before
    if not filmed:
        labels["targets"] = ["response", "transcript", "audio"]
    user_video = acting["user"].film(identity) if pictures and camera else None
    agent_video = acting["agent"].film(AGENT_IDENTITY) if pictures and filmed else None
    return Episode(episode_key(index), user_T, agent_T, user_video, agent_video, labels)


def make_shown(seed: int, split: str, index: int) -> Episode:
    """A conversation about what the user shows and does, which is seen; nobody is heard, and what is said is written.

    The agent's words are all there is to learn.
    """
    rng = episode_rng(seed, split, index, 1)
    user, agent, identity = SilentVoice.sample(rng), SilentVoice.sample(rng), FaceIdentity.sample(rng, split)
    dialogue = _planned(_about_seen(seed, split, index), agent.speak, user.speak, True, seed, split, index)
    acting = _act(dialogue, "user", episode_rng(seed, split, index, 4), float(rng.uniform(0.7, 1.5)))
    labels = {
        "schema": SCHEMA, "generator": GENERATOR, "seed": seed, "split": split, "index": index,
        "units": dialogue.units, "fps": FPS, "scenarios": dialogue.scenarios,
        "user": {"voice": asdict(user), "identity": to_dict(identity), "camera": True},
        "agent": {"voice": asdict(agent), "identity": to_dict(AGENT_IDENTITY), "camera": True},
        "words": dialogue.words(), "events": dialogue.events, "targets": ["response", "transcript"],
    }  # fmt: skip
    return Episode(episode_key(index), _silence(dialogue), _silence(dialogue), acting.film(identity), None, labels)


def make_spoken(seed: int, split: str, index: int, agent_voice: AgentVoice) -> Episode:
    """A conversation of which only the agent is heard and nobody seen; what the user says is written.

    The agent's words and its voice are what there is to learn; its voice alone where it reads what nobody asked for.
    """
    user = SilentVoice.sample(episode_rng(seed, split, index, 1))
    reads = episode_rng(seed, split, index, 7).random() < READ
    planner = _reading(seed, split, index) if reads else _asked_or_any(seed, split, index, ASKED_SPOKEN)
    agent = agent_voice.reader(episode_rng(seed, split, index, 8)) if reads else agent_voice.speak
    dialogue = _planned(planner, agent, user.speak, False, seed, split, index)
    labels = {
        "schema": SCHEMA, "generator": GENERATOR, "seed": seed, "split": split, "index": index,
        "units": dialogue.units, "fps": FPS, "scenarios": dialogue.scenarios,
        "user": {"voice": asdict(user), "camera": False},
        "agent": {"voice": AGENT, "identity": to_dict(AGENT_IDENTITY), "camera": False},
        "words": dialogue.words(), "phonemes": dialogue.phonemes(), "events": dialogue.events,
        "before": dialogue.before, "targets": ["audio"] if reads else ["response", "transcript", "audio"],
    }  # fmt: skip
    agent_T = mix_track(dialogue, "agent", episode_rng(seed, split, index, 3))
    return Episode(episode_key(index), _silence(dialogue), agent_T, None, None, labels)


def make_asked(seed: int, split: str, index: int) -> Episode:
    """A conversation of which only the user is heard and nobody seen; what the agent says is written.

    The words of both are what there is to learn.
    """
    rng = episode_rng(seed, split, index, 1)
    user_voice, agent = UserVoice.sample(rng, split), SilentVoice.sample(rng)
    human = _natural_speaker(rng, split, None)
    planner = _asked_or_any(seed, split, index, ASKED_HEARD)
    dialogue = _planned(planner, agent.speak, _of(user_voice, human), False, seed, split, index)
    sound_rng = episode_rng(seed, split, index, 3)
    user_T, microphone = capture(mix_track(dialogue, "user", sound_rng), sound_rng, babble=_babble(split))
    labels = {
        "schema": SCHEMA, "generator": GENERATOR, "seed": seed, "split": split, "index": index,
        "units": dialogue.units, "fps": FPS, "scenarios": dialogue.scenarios,
        "user": {
            "voice": human.labels() if human else asdict(user_voice), "camera": False, "microphone": microphone,
        },
        "agent": {"voice": asdict(agent), "identity": to_dict(AGENT_IDENTITY), "camera": False},
        "words": dialogue.words(), "events": dialogue.events, "before": dialogue.before,
        "targets": ["response", "transcript"],
    }  # fmt: skip
    return Episode(episode_key(index), user_T, _silence(dialogue), None, None, labels)


def _of(user_voice: UserVoice, human: NaturalVoice | HibariVoice | None) -> Speak:
    """How the user speaks: `human`, if there is one, but for what is not English."""

    def speak(text: str, rng: np.random.Generator, language: str) -> Speech:
        return human.speak(text, rng) if human and language == "en" else user_voice.speak(text, rng, language)

    return speak


def _silence(dialogue: Dialogue) -> np.ndarray:
    return np.zeros(dialogue.units * SAMPLES_PER_UNIT, np.float32)


def written_conversation(seed: int, split: str, index: int, seen: bool = False) -> dict:
    """What the labels of a conversation tell of its words, without anybody who says or shows them.

    units, words, events and before, as in the labels of `make_episode`; `seen`: it is about what somebody would see.
    """
    user, agent = (SilentVoice.sample(episode_rng(seed, split, index, purpose), HURRIED) for purpose in (1, 2))
    planner = _about_seen(seed, split, index) if seen else _asked_or_any(seed, split, index, ASKED_WRITTEN)
    dialogue = _planned(planner, agent.speak, user.speak, seen, seed, split, index)
    return {
        "units": dialogue.units, "words": dialogue.words(), "events": dialogue.events, "before": dialogue.before,
    }  # fmt: skip


def _about_seen(seed: int, split: str, index: int) -> Planner:
    def plan(agent: Speak, user: Speak, camera: bool, rng: np.random.Generator) -> Dialogue | None:
        return _if_of(split, plan_shown(episode_units(seed, split, index), agent, user, rng, MANY))

    return plan


def _planned(planner: Planner, agent: Speak, user: Speak, camera: bool, seed: int, split: str, index: int) -> Dialogue:
    """The first plan that succeeds."""
    attempts = (
        planner(agent, user, camera, episode_rng(seed, split, index, PLANS + attempt)) for attempt in itertools.count()
    )
    return next(planned for planned in attempts if planned is not None)


def _natural_speaker(
    rng: np.random.Generator, split: str, natural: NaturalVoices | None
) -> NaturalVoice | HibariVoice | None:
    """Who speaks in place of espeak-ng in half of the episodes: one of `natural`, in training also one of hibari's.

    All of hibari's come from one voice of the training split, so no other split has them.
    """
    if rng.random() >= NATURAL_SHARE:
        return None
    if split == "train" and (natural is None or rng.random() < HIBARI_SHARE):
        return HibariVoice.sample(rng)
    return None if natural is None else natural.sample(rng, split)


def _planner_of(split: str, units: int, voice: str) -> Planner:
    """Conversations whose sequence of scenarios is one of this split; `voice`: of Kokoro, else empty."""
    texts = free_texts(split, voice)

    def plan(agent: Speak, user: Speak, camera: bool, rng: np.random.Generator) -> Dialogue | None:
        return _if_of(split, plan_dialogue(units, agent, user, camera, rng, texts, split, MANY))

    return plan


def _asked_or_any(seed: int, split: str, index: int, asked: float) -> Planner:
    """With a chance of `asked` only what words alone decide; nobody is seen, and the user is not heard."""
    units = episode_units(seed, split, index)
    if episode_rng(seed, split, index, 6).random() >= asked:
        return _planner_of(split, units, "")

    def plan(agent: Speak, user: Speak, camera: bool, rng: np.random.Generator) -> Dialogue | None:
        return _if_of(split, plan_asked(units, agent, user, rng, free_texts(split), split, MANY))

    return plan


def _reading(seed: int, split: str, index: int) -> Planner:
    """The agent reads aloud; splits share no sentence."""
    units = episode_units(seed, split, index)

    def plan(agent: Speak, user: Speak, camera: bool, rng: np.random.Generator) -> Dialogue | None:
        return plan_read(units, agent, user, rng, free_texts(split), split, MANY)

    return plan


def _if_of(split: str, dialogue: Dialogue) -> Dialogue | None:
    """The dialogue, if its sequence of scenarios is one of this split."""
    return dialogue if split_of(dialogue.scenarios) == split else None


def _babble(split: str) -> Noise:
    """Other people of the same split, talking over one another."""

    def babble(samples: int, rng: np.random.Generator) -> np.ndarray:
        out_T = np.zeros(samples, np.float32)
        for _ in range(3):
            voice, first = UserVoice.sample(rng, split), 0
            while first < samples:
                audio_T = voice.speak(any_wording(rng), rng).audio[: samples - first]
                out_T[first : first + len(audio_T)] += audio_T
                first += len(audio_T) + int(rng.integers(1, SAMPLE_RATE))
        return out_T

    return babble
