"""Held-out speech for the judges: recordings with what is said in them.

`agent_clips`   the agent's voice, sentences that no codec training contains
`espeak_clips`  speakers of the test split, hard sentences
`clear_clips`   the same speakers with the accent in which each is understood best, sentences of everyday
`wav_clips`     any folder of recordings, text of `a.wav` in `a.txt`
`human_clips`   people, from the Debian packages asterisk-core-sounds-en-g722 and pocketsphinx-testdata
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wan_streamer.data.sound import Mono
from wan_streamer.errors import DataError
from wan_streamer.files import parse_json
from wan_streamer.simulation.codec_sentences import codec_sentences
from wan_streamer.simulation.conversation.chats import chat_sentences
from wan_streamer.simulation.conversation.repertoire import pick
from wan_streamer.simulation.voice.speech import resample
from wan_streamer.simulation.voice.users import ACCENTS, ERRORS_FILE, AgentVoice, UserVoice, speakers_of
from wan_streamer.units import SAMPLE_RATE, SAMPLES_PER_FRAME

PAUSE = np.zeros(SAMPLE_RATE // 4, np.float32)  # before and after every clip: recognisers drop words at the edge
HUMAN_RATE = 16_000
SHORTEST_TEXT, SHORTEST_CHAT = 6, 5  # words
SHORTEST, LONGEST = 2.0, 8.0  # seconds of the asterisk prompts that are used


@dataclass(frozen=True)
class Clip:
    """audio_T  float32, 24 kHz, whole codec frames;   text  what is said, None if nobody wrote it down"""

    name: str
    audio_T: np.ndarray
    text: str | None


def make_clip(name: str, audio_T: np.ndarray, rate: int, text: str | None) -> Clip:
    audio_T = np.concatenate([PAUSE, resample(audio_T, rate), PAUSE])
    return Clip(name, np.pad(audio_T, (0, -len(audio_T) % SAMPLES_PER_FRAME)), text)


def held_out_texts(seed: int, count: int) -> list[str]:
    """Sentences of six words or more from a random stream that no training data uses; the grammar makes millions."""
    rng = np.random.default_rng([seed, 2, 0])
    return [text for text in codec_sentences(3 * count, rng) if len(text.split()) >= SHORTEST_TEXT][:count]


def agent_clips(voice_cache: str | Path, seed: int, count: int) -> Iterator[Clip]:
    """The agent's voice, read from the cache of `make_codec_data` or synthesised into it."""
    voice = AgentVoice(voice_cache, 1)
    for text in held_out_texts(seed, count):
        yield make_clip(text, voice.renderings(text)[0].audio, SAMPLE_RATE, text)


def espeak_clips(seed: int, count: int) -> Iterator[Clip]:
    """A new voice of the test split for each sentence."""
    rng = np.random.default_rng([seed, 7])
    for text in held_out_texts(seed + 1, count):
        voice = UserVoice.sample(rng, "test")
        yield make_clip(f"{voice.accent}+{voice.variant}", voice.speak(text, rng).audio, SAMPLE_RATE, text)


def clear_clips(seed: int, count: int) -> Iterator[Clip]:
    """The speakers of the test split one after the other."""
    rng = np.random.default_rng([seed, 8])
    texts = tuple(text for text in chat_sentences("test") if len(text.split()) >= SHORTEST_CHAT)
    errors = parse_json(ERRORS_FILE.read_bytes())
    speakers = speakers_of("test")
    for number in range(count):
        speaker = speakers[number % len(speakers)]
        accent = min(ACCENTS, key=lambda name: errors[f"{name}+{speaker}"])
        text = pick(texts, rng)
        said_T = UserVoice(accent, speaker, rate=155).speak(text).audio
        yield make_clip(f"{accent}+{speaker}", said_T, SAMPLE_RATE, text)


def wav_clips(folder: str | Path, count: int) -> Iterator[Clip]:
    """Recordings of a folder in order of their names. Raises `DataError` if it has none."""
    paths = sorted(Path(folder).rglob("*.wav"))
    if not paths:
        raise DataError(f"{folder}: expected recordings named *.wav, found none")
    for path in paths[:count]:
        text = path.with_suffix(".txt")
        words = text.read_text(encoding="utf-8").strip() if text.is_file() else None
        yield make_clip(path.stem, decode(path), HUMAN_RATE, words)


def human_clips(root: str | Path, count: int) -> Iterator[Clip]:
    """At most `count` prompts of one woman (no transcripts), then the readers of pocketsphinx-testdata.

    root  "/" or a folder into which the packages were unpacked with `dpkg-deb -x`. Raises `DataError` without them.
    """
    share = Path(root) / "usr" / "share"
    prompts = sorted((share / "asterisk" / "sounds").rglob("*.g722"))
    lists = sorted((share / "pocketsphinx" / "test" / "data").rglob("*transcription"))
    if not prompts and not lists:
        raise DataError(
            f"{share}: expected asterisk/sounds or pocketsphinx/test/data, found neither; "
            "apt-get install asterisk-core-sounds-en-g722 pocketsphinx-testdata"
        )
    # 8 000 bytes of G.722 are a second
    long_enough = [path for path in prompts if SHORTEST <= path.stat().st_size / 8000 <= LONGEST]
    step = max(1, len(long_enough) // count)
    for path in long_enough[::step][:count]:
        yield make_clip(path.stem, decode(path), HUMAN_RATE, None)
    for path in lists:
        for text, name in re.findall(r"<s>\s*(.*?)\s*</s>\s*\((.+?)\)", path.read_text(encoding="utf-8")):
            yield make_clip(name, decode(path.parent / f"{name}.wav"), HUMAN_RATE, text)


def decode(path: Path) -> np.ndarray:
    """float32 [T] at 16 kHz of any sound file, headerless G.722 (*.g722) included. Raises `DataError`."""
    import av

    try:
        with av.open(str(path), format="g722" if path.suffix == ".g722" else None) as container:
            mono = Mono(HUMAN_RATE)
            blocks = [mono(frame) for frame in container.decode(audio=0)]
            return np.concatenate([*blocks, mono.finish()])
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise DataError(f"{path}: expected a sound file, could not read it ({error})") from error
