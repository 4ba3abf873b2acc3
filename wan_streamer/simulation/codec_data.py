"""Media for training the codecs: long runs of the agent's voice and face, and of many other people.

`make_codec_data`  writes eight arrays, four for training and four (`_valid`) for validation

    agent_audio, other_audio     int16 [T], mono, 24 kHz; `other_audio` is espeak-ng, then real recordings if given
    agent_frames, other_frames   uint8 [T, 192, 336, 3], 25 fps; `other_frames` changes person every 24 frames
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from wan_streamer.data.cluster import Engine, run_jobs
from wan_streamer.data.media import read_sound
from wan_streamer.errors import DataError, MediaError
from wan_streamer.files import replacing
from wan_streamer.folders import describe
from wan_streamer.simulation.codec_sentences import codec_sentences
from wan_streamer.simulation.conversation.chats import chat_sentences
from wan_streamer.simulation.conversation.repertoire import agent_texts, any_wording, pick
from wan_streamer.simulation.face.motion import Gesture, gesture_tracks, pose_track
from wan_streamer.simulation.face.person import AGENT_IDENTITY, COLOURS, PROPS, SIDES, FaceIdentity, Prop
from wan_streamer.simulation.face.renderer import FaceRenderer
from wan_streamer.simulation.voice.speech import Speech, level_speech
from wan_streamer.simulation.voice.users import AGENT_DBFS, AgentVoice, UserVoice
from wan_streamer.units import FPS, SAMPLE_RATE

CHATS = 1400  # real sentences in the agent's voice: about 70 minutes
CLIP = 24  # frames of each person in other_frames
PEOPLE = {False: 480, True: 24}  # in other_frames; True: for validation
OTHERS = {False: 4800.0, True: 60.0}  # seconds of espeak-ng in other_audio

VARIANTS_OF_REPLIES = 3  # the same as in dialogues, so that the cache is shared


@dataclass(frozen=True)
class _FillCache:
    """Job: put one sentence of the agent into the cache."""

    cache: Path
    jobs: tuple[tuple[str, int], ...]

    def __call__(self, number: int) -> int:
        text, variants = self.jobs[number]
        return len(AgentVoice(self.cache, variants).renderings(text))


def _with_pauses(pieces: Iterator[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Utterances with natural silences between them, as int16 [T]."""
    out: list[np.ndarray] = []
    for piece_T in pieces:
        out += [piece_T, np.zeros(round(rng.uniform(0.15, 0.8) * SAMPLE_RATE), np.float32)]
    return np.round(np.concatenate(out) * 32767).astype(np.int16)


def _sentences(seed: int, valid: bool) -> list[str]:
    """Sentences for the agent's voice beyond its replies; the two splits share none."""
    train = codec_sentences(190, np.random.default_rng([seed, 0, 1]))
    rng = np.random.default_rng([seed, int(valid), 5])
    if not valid:
        return train + _some(chat_sentences("train"), CHATS, rng)
    grammar = codec_sentences(22, np.random.default_rng([seed, 1, 0]), frozenset(train) | frozenset(agent_texts()))
    return grammar + _some(chat_sentences("valid"), 22, rng)


def _some(texts: tuple[str, ...], count: int, rng: np.random.Generator) -> list[str]:
    return [texts[i] for i in rng.choice(len(texts), count, replace=False)]


def _agent_audio(cache: Path, seed: int, valid: bool, processes: int) -> np.ndarray:
    rng = np.random.default_rng([seed, int(valid), 0])
    jobs = [(text, 1) for text in _sentences(seed, valid)]
    if not valid:
        jobs += [(text, VARIANTS_OF_REPLIES) for text in agent_texts()]
    for _ in run_jobs(_FillCache(cache, tuple(jobs)), range(len(jobs)), Engine(processes=processes)):
        pass
    voices = {n: AgentVoice(cache, n) for _, n in jobs}
    speeches = [speech for text, n in jobs for speech in voices[n].renderings(text)]
    order = rng.permutation(len(speeches))
    return _with_pauses((speeches[i].audio for i in order), rng)


def _other_audio(seconds: float, recordings: Path | None, seed: int, valid: bool) -> np.ndarray:
    rng = np.random.default_rng([seed, int(valid), 2])
    split = "valid" if valid else "train"
    pieces: list[np.ndarray] = []
    total = 0.0
    while total < seconds:
        voice = UserVoice.sample(rng, split)
        text = any_wording(rng) if rng.random() < 0.2 else pick(chat_sentences(split), rng)
        speech = voice.speak(text, rng)
        pieces.append(speech.audio)
        total += speech.seconds + 0.475
    if recordings is not None:
        pieces += _real_speech(recordings, valid)
    return _with_pauses((pieces[i] for i in rng.permutation(len(pieces))), rng)


def _real_speech(folder: Path, valid: bool) -> list[np.ndarray]:
    """Every readable sound of a folder, levelled; one file in eight, chosen by its name, is for validation."""
    pieces = []
    for path in _speech_files(folder, valid):
        try:
            pieces.append(level_speech(read_sound(path), AGENT_DBFS))
        except MediaError:
            continue  # a picture, a licence
    if not pieces:
        raise DataError(f"{folder}: expected sound files, found none that can be read")
    return pieces


def _speech_files(folder: Path, valid: bool) -> list[Path]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in files if (zlib.crc32(path.name.encode()) % 8 == 0) == valid]


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
    more = AgentVoice(cache, 1)
    texts, replies = _sentences(seed, valid), tuple(agent_texts())

    def speeches() -> Iterator[Speech]:
        while True:
            if rng.random() < 0.5:
                yield voice.speak(pick(replies, rng), rng)
            else:
                yield more.speak(texts[int(rng.integers(len(texts)))], rng)

    renderer, frames = FaceRenderer(AGENT_IDENTITY), 200 if valid else 500
    clips = [
        _film(renderer, frames, speeches(), _gestures(("wave",), 0.08, frames, rng), rng)
        for _ in range(2 if valid else 16)
    ]
    return np.concatenate(clips)


def _film(
    renderer: FaceRenderer, frames: int, speeches: Iterator[Speech], gestures: list[Gesture], rng: np.random.Generator
) -> np.ndarray:
    motion = pose_track(frames, *_timeline(speeches, frames, rng), rng, gestures=gestures)
    return renderer.film(motion.poses, *gesture_tracks(frames, gestures, rng))


def _gestures(kinds: tuple[str, ...], share: float, frames: int, rng: np.random.Generator) -> list[Gesture]:
    """Gestures one after the other that fill about `share` of the time; "show" shows anything there is."""
    gestures, at = [], rng.exponential(1.8 * (1 - share) / share)
    while at < frames / FPS:
        kind, end = pick(kinds, rng), at + rng.uniform(1.5, 2.1)
        what = pick(tuple(PROPS), rng)
        prop = Prop(what, pick(PROPS[what], rng), pick(COLOURS, rng)) if kind == "show" else None
        gestures.append(Gesture(kind, float(at), float(end), prop, pick(SIDES, rng)))
        at = end + rng.exponential(1.8 * (1 - share) / share)
    return gestures


def _person(seed: int, valid: bool, number: int) -> tuple[int, np.ndarray]:
    """Job: one person of other_frames, talking, listening and showing things."""
    rng = np.random.default_rng([seed, int(valid), 4, number])
    split = "valid" if valid else "train"
    voice = UserVoice.sample(rng, split)
    speeches = (voice.speak(any_wording(rng), rng) for _ in iter(int, 1))
    gestures = _gestures(("wave", "thumb_up", "show", "show", "show"), 0.35, CLIP, rng)
    return number, _film(FaceRenderer(FaceIdentity.sample(rng, split)), CLIP, speeches, gestures, rng)


def _other_frames(seed: int, valid: bool, processes: int) -> np.ndarray:
    job = partial(_person, seed, valid)
    people = dict(run_jobs(job, range(PEOPLE[valid]), Engine(processes=processes)))
    return np.concatenate([people[number] for number in sorted(people)])


def _save(path: Path, make: Callable[[], np.ndarray]) -> None:
    if path.exists():
        return
    with replacing(path) as part, part.open("wb") as file:
        np.save(file, make(), allow_pickle=False)


def make_codec_data(
    out_dir: str | Path, seed: int = 0, processes: int = 2, recordings: str | Path | None = None
) -> None:
    """Write the eight arrays into `out_dir`; files that are already there are kept.

    recordings  folder of real speech that joins `other_audio`
    """
    out, speech = Path(out_dir), Path(recordings) if recordings else None
    if speech is not None and not all(_speech_files(speech, valid) for valid in (False, True)):
        raise DataError(
            f"{speech}: expected sound files, more than a few of them (one in eight is for validation), found"
            f" {describe(speech)}"
        )
    out.mkdir(parents=True, exist_ok=True)
    cache = out / "voice_cache"
    for valid in (False, True):
        name = "_valid.npy" if valid else ".npy"
        _save(out / f"agent_audio{name}", partial(_agent_audio, cache, seed, valid, processes))
        _save(out / f"other_audio{name}", partial(_other_audio, OTHERS[valid], speech, seed, valid))
    for valid in (False, True):
        name = "_valid.npy" if valid else ".npy"
        _save(out / f"agent_frames{name}", partial(_agent_frames, cache, seed, valid))
        _save(out / f"other_frames{name}", partial(_other_frames, seed, valid, processes))
