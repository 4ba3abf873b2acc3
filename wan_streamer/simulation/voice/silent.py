"""A voice that nobody hears: the words of an utterance at the times at which such a voice would say them.

`SilentVoice`  with the same `speak` as the others, a thousand times as fast
"""

from dataclasses import dataclass

import numpy as np

from wan_streamer.simulation.voice.speech import Speech, TimedPhoneme, TimedWord
from wan_streamer.units import SAMPLE_RATE

# seconds of a letter, of any word, of a word before a mark: from simulated talk
LETTER, WORD, LAST = 0.047, 0.015, 0.13
BETWEEN, AFTER = 0.035, 0.12  # seconds of silence behind a word, and behind a mark
SPREAD = 0.2  # deviation of the logarithm of a word's length
LEAD, TAIL = 0.04, 0.1  # seconds before the first and behind the last word
PACES = (0.8, 1.25)
HURRIED = (0.45, 1.25)  # where nobody is heard either: more is said in the same time


@dataclass(frozen=True)
class SilentVoice:
    """One speaker. pace: length of the words, 1 as people and synthesisers of the simulated talk in the mean."""

    pace: float = 1.0

    @staticmethod
    def sample(rng: np.random.Generator, paces: tuple[float, float] = PACES) -> "SilentVoice":
        """A random speaker."""
        return SilentVoice(round(float(rng.uniform(*paces)), 3))

    def speak(self, text: str, rng: np.random.Generator, language: str = "en") -> Speech:
        """Zeros as long as the words of `text` would take, whatever the language. Every word is one phoneme."""
        words, at = [], LEAD
        for word in text.split():
            marked = not word[-1].isalnum()
            usual = WORD + LETTER * sum(map(str.isalnum, word)) + LAST * marked
            end = at + usual * self.pace * float(np.exp(rng.normal(0, SPREAD)))
            words.append(TimedWord(word, round(at, 4), round(end, 4)))
            at = end + (AFTER if marked else BETWEEN)
        audio_T = np.zeros(round((at + TAIL) * SAMPLE_RATE), np.float32)
        sounds = tuple(TimedPhoneme("ə", word.start, word.end) for word in words)
        return Speech(text, audio_T, tuple(words), sounds)
