"""Two people made audible and visible: a planned dialogue becomes two audio tracks, two films and their labels.

`make_episode`  (seed, split, index) -> `data.shards.Episode`, a pure function of its arguments
"""

from dataclasses import asdict

import numpy as np

from wan_streamer.data.shards import SCHEMA, Episode
from wan_streamer.simulation.dialogue import CUT_FADE, SMILES, Dialogue, episode_rng, episode_units, plan_dialogue
from wan_streamer.simulation.faces import AGENT_IDENTITY, FaceIdentity, FacePose, FaceRenderer
from wan_streamer.simulation.motion import Motion, pose_track
from wan_streamer.simulation.voices import AgentVoice, UserVoice
from wan_streamer.units import FPS, FRAMES_PER_UNIT, SAMPLE_RATE, SAMPLES_PER_UNIT

GENERATOR = "1.0"
CAMERA_OFF = 0.1  # share of episodes without the user's picture
HEIGHT, WIDTH = 192, 336


def mix_track(dialogue: Dialogue, side: str) -> np.ndarray:
    """The clean voice of one side over the whole episode, float32 [T]."""
    track_T = np.zeros(dialogue.units * SAMPLES_PER_UNIT, np.float32)
    for turn in dialogue.turns:
        if turn.side != side:
            continue
        audio_T = turn.speech.audio
        if turn.cut is not None and turn.cut < turn.start + len(audio_T) / SAMPLE_RATE:
            length = max(1, round((turn.cut - turn.start) * SAMPLE_RATE))
            ramp = min(round(CUT_FADE * SAMPLE_RATE), length)
            audio_T = audio_T[:length].copy()
            audio_T[-ramp:] *= np.linspace(1, 0, ramp, dtype=np.float32)
        first = round(turn.start * SAMPLE_RATE)
        skip = max(0, -first)
        audio_T = audio_T[skip:][: len(track_T) - max(first, 0)]
        track_T[max(first, 0) : max(first, 0) + len(audio_T)] += audio_T
    return track_T


def room_and_noise(track_T: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict]:
    """A light room and a noise floor, as a real microphone has; also returns what was added."""
    noise_dbfs = float(np.round(rng.uniform(-72, -50), 1))
    reverb = bool(rng.random() < 0.5)
    decay = float(np.round(rng.uniform(0.08, 0.3), 3)) if reverb else 0.0
    wet = float(np.round(rng.uniform(0.08, 0.3), 3)) if reverb else 0.0
    if reverb:
        length = int(decay * SAMPLE_RATE)
        tail_T = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
        tail_T *= wet / np.sqrt(np.sum(tail_T**2))
        tail_T[0] = 1.0
        size = 1 << int(np.ceil(np.log2(len(track_T) + length)))
        spectrum = np.fft.rfft(track_T, size) * np.fft.rfft(tail_T, size)
        track_T = np.fft.irfft(spectrum, size)[: len(track_T)]
    white = np.fft.rfft(rng.standard_normal(len(track_T)))
    slope = float(np.round(rng.uniform(0.2, 0.9), 2))
    coloured_T = np.fft.irfft(white / np.maximum(np.arange(len(white)), 20.0) ** slope, len(track_T))
    coloured_T *= 10 ** (noise_dbfs / 20) / np.sqrt(np.mean(coloured_T**2))
    mixed_T = np.clip(track_T + coloured_T, -0.98, 0.98).astype(np.float32)
    return mixed_T, {"noise_dbfs": noise_dbfs, "noise_slope": slope, "room_seconds": decay, "room_wet": wet}


def _motion(dialogue: Dialogue, side: str, rng: np.random.Generator, energy: float) -> Motion:
    other = "user" if side == "agent" else "agent"
    phonemes = tuple(p for turn in dialogue.turns if turn.side == side for p in turn.phonemes())
    happy = [t.onset - 0.1 for t in dialogue.turns if t.side == side and (t.label in SMILES or t.label == "greeting")]
    return pose_track(
        dialogue.units * FRAMES_PER_UNIT, phonemes, dialogue.spans(side), dialogue.spans(other), rng, happy, energy
    )


def _film(identity: FaceIdentity, poses: list[FacePose]) -> np.ndarray:
    renderer = FaceRenderer(identity, HEIGHT, WIDTH)
    return np.stack([renderer.render(pose) for pose in poses])


def make_episode(seed: int, split: str, index: int, agent_voice: AgentVoice, pictures: bool = True) -> Episode:
    """One conversation with its exact truth.

    pictures  False leaves both films out, for work on labels and sound alone
    """
    rng = episode_rng(seed, split, index, 1)
    user_voice = UserVoice.sample(rng, split)
    identity = FaceIdentity.sample(rng, split)
    camera = bool(rng.random() >= CAMERA_OFF)
    dialogue = plan_dialogue(
        episode_units(seed, split, index), agent_voice.speak, user_voice.speak, episode_rng(seed, split, index, 2)
    )
    agent_T = mix_track(dialogue, "agent")
    user_T, room = room_and_noise(mix_track(dialogue, "user"), episode_rng(seed, split, index, 3))
    motions = {
        "user": _motion(dialogue, "user", episode_rng(seed, split, index, 4), float(rng.uniform(0.7, 1.5))),
        "agent": _motion(dialogue, "agent", episode_rng(seed, split, index, 5), 1.0),
    }
    end = dialogue.seconds
    events = dialogue.events + [
        {"type": "nod", "side": side, "start": at, "end": round(at + 0.44, 3), "label": ""}
        for side in ("agent", "user") for at in motions[side].nods if at + 0.44 < end
    ]  # fmt: skip
    sides = ("user", "agent")
    words = {s: [asdict(w) for t in dialogue.turns if t.side == s for w in t.words()] for s in sides}
    phonemes = {s: [asdict(p) for t in dialogue.turns if t.side == s for p in t.phonemes()] for s in sides}
    labels = {
        "schema": SCHEMA,
        "generator": GENERATOR,
        "seed": seed,
        "split": split,
        "index": index,
        "units": dialogue.units,
        "fps": FPS,
        "scenarios": dialogue.scenarios,
        "user": {"voice": asdict(user_voice), "identity": _plain(identity), "camera": camera, "room": room},
        "agent": {"voice": {"engine": "piper", "speaker": "joe"}, "identity": _plain(AGENT_IDENTITY)},
        "words": words,
        "phonemes": phonemes,
        "events": sorted(events, key=lambda e: (e["start"], e["type"], e["side"])),
        "mouth_open": {side: [round(p.mouth_open, 3) for p in motions[side].poses] for side in ("user", "agent")},
    }
    user_video = _film(identity, motions["user"].poses) if pictures and camera else None
    agent_video = _film(AGENT_IDENTITY, motions["agent"].poses) if pictures else None
    return Episode(f"ep{index:06d}", user_T, agent_T, user_video, agent_video, labels)


def _plain(identity: FaceIdentity) -> dict:
    """As JSON gives it back: lists in place of tuples."""

    def lists(value: object) -> object:
        return [lists(v) for v in value] if isinstance(value, tuple) else value

    return {key: lists(value) for key, value in asdict(identity).items()}
