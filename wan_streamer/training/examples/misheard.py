"""What is heard in the place of what was said.

`Heard`          of one user's words
`Misheard`       which words a reader takes for which others
`mishearings`    what nano takes words for (`misheard.tsv`, made by `scripts/misheard.py`)
"""

import functools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np

from wan_streamer.codecs.text import END
from wan_streamer.model.memory import RESPONSE

TABLE = Path(__file__).with_name("misheard.tsv")
LONGEST = 3  # words that are taken for others together
OFTEN = 0.9  # how often a word is misheard, at most
WORSE = (1.0, 8.0)  # times as often as the reader mishears its own world, of someone who is misheard
WRONG = 0.04  # share of the tokens of someone who is misheard that are any other


@dataclass(frozen=True)
class Misheard:
    """heard  first word -> (all words, what is heard in their place, how often that is when the first one is said)"""

    heard: dict[str, list[tuple[tuple[str, ...], str, float]]]

    def words(
        self, said: Sequence[str], rng: np.random.Generator, scale: float = 1.0, kept: Collection[str] = ()
    ) -> list[str]:
        """What is heard of each word: of several that are taken for others, all in the first; `kept` are heard right.

        scale  how much more often than it was found words are misheard
        """
        plain, heard, place = [plainly(word) for word in said], list(said), 0
        while place < len(said):
            found = [
                (words, other, scale * share)
                for words, other, share in self.heard.get(plain[place], ())
                if tuple(plain[place : place + len(words)]) == words and not set(words) & set(kept)
            ]
            chance, all_of = rng.random(), sum(share for *_, share in found)
            for words, other, share in found:
                chance -= share * min(1.0, OFTEN / all_of)
                if chance < 0:
                    heard[place : place + len(words)] = [other, *[""] * (len(words) - 1)]
                    place += len(words) - 1
                    break
            place += 1
        return heard


def plainly(word: str) -> str:
    """Small letters, no marks."""
    return "".join(letter for letter in word.lower() if letter.isalnum() or letter == "'")


def taken_for(said: Sequence[str], heard: Sequence[str]) -> Iterable[tuple[tuple[str, ...], str]]:
    """Where two texts differ: up to `LONGEST` words of the one, and what stands there in the other."""
    for kind, i1, i2, j1, j2 in SequenceMatcher(a=said, b=heard, autojunk=False).get_opcodes():
        if kind in ("replace", "delete") and i2 - i1 <= LONGEST and j2 - j1 <= LONGEST:
            yield tuple(said[i1:i2]), " ".join(heard[j1:j2])


@functools.cache
def mishearings() -> Misheard:
    heard: dict[str, list[tuple[tuple[str, ...], str, float]]] = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        said, other, share = line.split("\t")
        words = tuple(said.split())
        heard.setdefault(words[0], []).append((words, other, float(share)))
    return Misheard(heard)


@dataclass(frozen=True)
class Heard:
    """What is heard of the user's words, `scale` times as often misheard as by the reader; 0: all is heard right.

    Words that the agent says too, which it can only know from the user, are heard right.
    """

    scale: float
    rng: np.random.Generator

    @classmethod
    def somehow(cls, rng: np.random.Generator, misread: float) -> "Heard":
        """As someone's voice is heard, a share of which are misheard."""
        return cls(float(rng.uniform(*WORSE)) if rng.random() < misread else 0.0, rng)

    def turns(self, turns: list[dict]) -> list[dict]:
        """Of {"side", "text"}."""
        kept = {plainly(word) for turn in turns if turn["side"] == "agent" for word in turn["text"].split()}
        if not self.scale:
            return turns
        return [
            turn if turn["side"] == "agent" else turn | {"text": " ".join(self._words(turn["text"].split(), kept))}
            for turn in turns
        ]

    def labels(self, labels: dict) -> dict:
        """Of a conversation that is timed."""
        if not self.scale:
            return labels
        words, kept = labels["words"]["user"], {plainly(word["text"]) for word in labels["words"]["agent"]}
        heard = self._words([word["text"] for word in words], kept)
        words = [word | {"text": text} for word, text in zip(words, heard, strict=True) if text]
        return labels | {"words": labels["words"] | {"user": words}}

    def _words(self, words: list[str], kept: set[str]) -> list[str]:
        return mishearings().words(words, self.rng, self.scale, kept)

    def tokens(self, source_N: np.ndarray, token_N: np.ndarray, vocabulary: int) -> np.ndarray:
        """Some of the user's are any other."""
        said, token_N = set(token_N[source_N == RESPONSE].tolist()), token_N.copy()
        for number in np.nonzero((source_N != RESPONSE) & (token_N > END))[0] if self.scale else ():
            if token_N[number] not in said and self.rng.random() < WRONG:
                token_N[number] = self.rng.integers(END + 1, vocabulary)
        return token_N
