"""Media for training the codecs: long runs of the agent's voice and face, and of many other people.

`make_codec_data`  writes eight arrays, four for training and four (`_valid`) for validation

    agent_audio, other_audio     int16 [T], mono, 24 kHz
    agent_frames, other_frames   uint8 [T, 192, 336, 3], 25 fps; `other_frames` changes person every 48 frames
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from wan_streamer.simulation.faces import AGENT_IDENTITY, FaceIdentity, FaceRenderer
from wan_streamer.simulation.motion import pose_track
from wan_streamer.simulation.sentences import AGENT, USER, codec_sentences
from wan_streamer.simulation.speech import Speech
from wan_streamer.simulation.voices import AgentVoice, UserVoice
from wan_streamer.units import FPS, SAMPLE_RATE

CLIP = 48  # frames of each person in other_frames

VARIANTS_OF_REPLIES = 6  # the same as in dialogues, so that the cache is shared


def _render_all(cache: str, variants: int, sentence: str) -> int:
    """Fill the cache with one sentence (in a worker process)."""
    return len(AgentVoice(cache, variants).renderings(sentence))


def _with_pauses(pieces: Iterator[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Utterances with natural silences between them, as int16 [T]."""
    out: list[np.ndarray] = []
    for piece_T in pieces:
        out += [piece_T, np.zeros(round(rng.uniform(0.15, 0.8) * SAMPLE_RATE), np.float32)]
    return np.round(np.concatenate(out) * 32767).astype(np.int16)


def _sentences(seed: int, valid: bool) -> list[str]:
    """Sentences for the agent's voice beyond its replies; the two splits share none."""
    train = codec_sentences(190, np.random.default_rng([seed, 0, 1]))
    if not valid:
        return train
    return codec_sentences(22, np.random.default_rng([seed, 1, 0]), frozenset(train) | frozenset(AGENT.values()))


def _agent_audio(cache: Path, seed: int, valid: bool, processes: int) -> np.ndarray:
    rng = np.random.default_rng([seed, int(valid), 0])
    jobs = [(text, 1 if valid else 2) for text in _sentences(seed, valid)]
    if not valid:
        jobs += [(text, VARIANTS_OF_REPLIES) for text in AGENT.values()]
    with get_context("spawn").Pool(processes) as pool:
        for variants in {n for _, n in jobs}:
            texts = [text for text, n in jobs if n == variants]
            pool.map(partial(_render_all, str(cache), variants), texts, chunksize=4)
    voices = {n: AgentVoice(cache, n) for _, n in jobs}
    speeches = [speech for text, n in jobs for speech in voices[n].renderings(text)]
    order = rng.permutation(len(speeches))
    return _with_pauses((speeches[i].audio for i in order), rng)


def _other_audio(seconds: float, seed: int, valid: bool) -> np.ndarray:
    rng = np.random.default_rng([seed, int(valid), 2])
    intents = [text for wordings in USER.values() for text in wordings]
    pieces: list[np.ndarray] = []
    total = 0.0
    while total < seconds:
        voice = UserVoice.sample(rng, "valid" if valid else "train")
        text = intents[int(rng.integers(len(intents)))] if rng.random() < 0.4 else codec_sentences(1, rng)[0]
        speech = voice.speak(text, rng)
        pieces.append(speech.audio)
        total += speech.seconds + 0.475
    return _with_pauses(iter(pieces), rng)


def _timeline(speeches: Iterator[Speech], frames: int, rng: np.random.Generator) -> tuple[tuple, list, list]:
    """Phonemes, speaking spans and listening spans of `frames` frames: talk, listen, idle, in random turns."""
    phonemes, speaking, listening = [], [], []
    time = rng.uniform(0.1, 0.6)
    while time < frames / FPS:
        kind = rng.random()
        if kind < 0.62:
            speech = next(speeches)
            moved = speech.shifted(time, round((time + speech.seconds) * SAMPLE_RATE))
            phonemes += [p for p in moved.phonemes if p.end < frames / FPS]
            speaking.append((time, time + speech.seconds))
            time += speech.seconds + rng.uniform(0.2, 0.6)
        else:
            length = rng.uniform(1.0, 3.0)
            if kind < 0.85:
                listening.append((time, time + length))
            time += length + 0.2
    return tuple(phonemes), speaking, listening


def _agent_frames(cache: Path, seed: int, valid: bool) -> np.ndarray:
    rng = np.random.default_rng([seed, int(valid), 3])
    voice = AgentVoice(cache, VARIANTS_OF_REPLIES)
    more = AgentVoice(cache, 1 if valid else 2)
    texts = _sentences(seed, valid)

    def speeches() -> Iterator[Speech]:
        while True:
            if rng.random() < 0.5:
                yield voice.speak(str(rng.choice(list(AGENT.values()))), rng)
            else:
                yield more.speak(texts[int(rng.integers(len(texts)))], rng)

    renderer = FaceRenderer(AGENT_IDENTITY)
    clips = []
    for _ in range(2 if valid else 12):
        frames = 200 if valid else 500
        motion = pose_track(frames, *_timeline(speeches(), frames, rng), rng)
        clips += [renderer.render(pose) for pose in motion.poses]
    return np.stack(clips)


def _other_frames(people: int, seed: int, valid: bool) -> np.ndarray:
    rng = np.random.default_rng([seed, int(valid), 4])
    split = "valid" if valid else "train"
    intents = [text for wordings in USER.values() for text in wordings]
    frames: list[np.ndarray] = []
    for _ in range(people):
        voice = UserVoice.sample(rng, split)
        speeches = (voice.speak(str(rng.choice(intents)), rng) for _ in iter(int, 1))
        motion = pose_track(CLIP, *_timeline(speeches, CLIP, rng), rng)
        renderer = FaceRenderer(FaceIdentity.sample(rng, split))
        frames += [renderer.render(pose) for pose in motion.poses]
    return np.stack(frames)


def _save(path: Path, make: Callable[[], np.ndarray]) -> None:
    if path.exists():
        return
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.save(file, make(), allow_pickle=False)
    temporary.replace(path)


def make_codec_data(out_dir: str | Path, seed: int = 0, processes: int = 2) -> None:
    """Write the eight arrays into `out_dir`; files that are already there are kept."""
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    cache = out / "voice_cache"
    for valid in (False, True):
        name = "_valid.npy" if valid else ".npy"
        _save(out / f"agent_audio{name}", partial(_agent_audio, cache, seed, valid, processes))
        _save(out / f"other_audio{name}", partial(_other_audio, 60 if valid else 600, seed, valid))
    for valid in (False, True):
        name = "_valid.npy" if valid else ".npy"
        _save(out / f"agent_frames{name}", partial(_agent_frames, cache, seed, valid))
        _save(out / f"other_frames{name}", partial(_other_frames, 9 if valid else 64, seed, valid))
