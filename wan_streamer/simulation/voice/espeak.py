"""espeak-ng as a library inside this process.

`Espeak`       samples with phoneme events, or the phonemes alone
`match_words`  written words on the spans of spoken ones
"""

import _ctypes
import ctypes
import functools
import threading
from typing import Any

import numpy as np

from wan_streamer.errors import ConfigError
from wan_streamer.simulation.voice.speech import TimedWord


@functools.lru_cache(maxsize=20_000)
def _sounds(word: str, language: str) -> int:
    """How many phonemes a word has when it is said alone."""
    with Espeak.lock:
        return max(1, sum(len(spoken) for spoken in Espeak.get().phonemes(word, language)))


def match_words(
    text: str, spans: list[tuple[float, float]], sounds: list[int], language: str = "en"
) -> tuple[TimedWord, ...]:
    """Written words on spoken spans.

    spans     start and end of every spoken word, seconds
    sounds    how many phonemes each of them has
    language  of espeak-ng

    espeak runs some small words together ("in the"): the phonemes that the words have alone tell which, and the
    words of one span share its time by their phonemes.
    """
    written = text.split()
    if len(written) == len(spans):
        return tuple(TimedWord(w, *span) for w, span in zip(written, spans, strict=True))
    counts = [_sounds(word, language) for word in written]
    groups = _groups(counts, sounds) if len(written) > len(spans) else [len(written)]
    if len(groups) == 1:
        spans = [(spans[0][0], spans[-1][1])]
    words: list[TimedWord] = []
    for size, (start, end) in zip(groups, spans, strict=True):
        first = len(words)
        edges = np.cumsum([0, *counts[first : first + size]])
        times = start + (end - start) * edges / edges[-1]
        words += [TimedWord(written[first + i], float(times[i]), float(times[i + 1])) for i in range(size)]
    return tuple(words)


def _groups(counts: list[int], sounds: list[int]) -> list[int]:
    """How many words each span holds, so that their numbers of phonemes differ least in all."""
    extra = len(counts) - len(sounds)
    best: dict[int, tuple[int, list[int]]] = {0: (0, [])}  # words used so far -> (difference, words per span)
    for span, sound in enumerate(sounds):
        following: dict[int, tuple[int, list[int]]] = {}
        for used, (cost, sizes) in best.items():
            for size in range(1, extra + 2 - (used - span)):
                new = (cost + abs(sound - sum(counts[used : used + size])), [*sizes, size])
                if used + size not in following or new < following[used + size]:
                    following[used + size] = new
        best = following
    return best[len(counts)][1]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int), ("unique", ctypes.c_uint), ("text_position", ctypes.c_int), ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int), ("sample", ctypes.c_int), ("user_data", ctypes.c_void_p),
        ("string", ctypes.c_char * 8),
    ]  # fmt: skip


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Espeak:
    """espeak-ng in this process. The library has global state, so there is one, and every call holds `lock`."""

    lock = threading.RLock()
    _one: "Espeak | None" = None

    @classmethod
    def get(cls) -> "Espeak":
        """The library of this process, loaded on first use."""
        if cls._one is None:
            cls._one = cls()
        return cls._one

    def __init__(self) -> None:
        import espeakng_loader

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
        self._set_voice(voice)
        for parameter, value in ((1, rate), (3, pitch), (4, pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        data = text.encode() + b"\0"
        self._library.espeak_Synth(data, len(data), 0, 0, 0, 1, None, None)
        self._library.espeak_Synchronize()
        audio_T = np.concatenate(self._pieces) if self._pieces else np.zeros(1, np.int16)
        return audio_T.astype(np.float32) / 32768, self._rate, list(self._events)

    def phonemes(self, text: str, voice: str) -> list[list[str]]:
        """IPA symbols of every spoken word of a clause, stress marks included. espeak may run two words together."""
        self._start()
        self._set_voice(voice)
        speak = self._library.espeak_TextToPhonemes
        speak.restype = ctypes.c_char_p
        rest = ctypes.c_char_p(text.encode())
        spoken = ""
        while rest.value is not None:  # one clause a call
            spoken += " " + speak(ctypes.byref(rest), 1, 2 | ord("_") << 8).decode()  # UTF-8 in, IPA out, "_" between
        return [[p for p in word.split("_") if p] for word in spoken.split()]

    def _set_voice(self, voice: str) -> None:
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ConfigError(f"espeak-ng has no voice {voice!r}")
