"""How a turn of several sentences is said, with pauses in which the speaker is not done.

`plan_pieces`  sentences -> what is said in one breath, and the silence before it
`perform`      pieces -> one utterance, and where its pauses lie

A piece before a pause ends with a comma for the synthesiser, so that the voice does not fall as at the end of a turn.
What is written down has no such comma.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from wan_streamer.simulation.conversation.timing import SENTENCES, draw_pause
from wan_streamer.simulation.voice.speech import Speech, join

JOINTS = frozenset(
    ("and", "but", "so", "or", "because", "if", "when", "that", "which", "the", "a", "an", "to", "of", "for", "with",
     "about", "i", "you", "my", "is", "are", "was", "do", "what", "like", "just", "really")
)  # fmt: skip
"""Words around which people stop: 36 % of their pauses follow one of the commonest 16."""
FILLERS = ("um", "uh", "well", "like", "you know", "let me see")
FILLED = 0.35  # share of pauses after a filler
SHORTEST = 4  # words of a sentence that can be broken


@dataclass(frozen=True)
class Piece:
    """What is said in one breath.

    text    as it is written;   said  as the synthesiser gets it
    wait    seconds of silence before it;   pause  whether that silence is a pause inside a sentence
    """

    text: str
    said: str
    wait: float = 0.0
    pause: bool = False


def plan_pieces(sentences: Sequence[str], pauses: int, rng: np.random.Generator) -> list[Piece]:
    """The sentences in order, broken at up to `pauses` places, at most one in a sentence; late ones are likelier."""
    broken = set()
    long = [i for i, text in enumerate(sentences) if len(text.split()) >= SHORTEST]
    if pauses and long:
        chances = np.array([i + 1.0 for i in long])
        count = min(pauses, len(long))
        broken = {int(i) for i in rng.choice(long, count, replace=False, p=chances / chances.sum())}
    pieces: list[Piece] = []
    for i, text in enumerate(sentences):
        wait = round(float(rng.uniform(*SENTENCES)), 3) if i else 0.0
        if i not in broken:
            pieces.append(Piece(text, text, wait))
            continue
        first, second = _break(text, rng)
        pieces += [Piece(first, first.rstrip(",") + ",", wait), Piece(second, second, draw_pause(rng), True)]
    return pieces


def _break(text: str, rng: np.random.Generator) -> tuple[str, str]:
    """The text in two, mostly at a comma or around a small word; later places are likelier."""
    words = text.split()
    plain = [word.lower().strip(",.?!") for word in words]
    weights = np.array(
        [(1 + 2 * (plain[i] in JOINTS or plain[i - 1] in JOINTS) + 3 * words[i - 1].endswith(",")) * i
         for i in range(1, len(words))]
    )  # fmt: skip
    if not plain[-1]:  # a full stop by itself, which nobody can say
        weights[-1] = 0
    place = 1 + int(rng.choice(len(weights), p=weights / weights.sum()))
    filler = f" {FILLERS[int(rng.integers(len(FILLERS)))]}" if rng.random() < FILLED else ""
    return " ".join(words[:place]) + filler, " ".join(words[place:])


def perform(pieces: Sequence[Piece], speak: Callable[[str], Speech]) -> tuple[Speech, tuple[tuple[float, float], ...]]:
    """The utterance, and (start, end) of every pause in seconds from the start of its audio."""
    whole: Speech | None = None
    pauses: list[tuple[float, float]] = []
    for piece in pieces:
        speech = speak(piece.said)
        if piece.said != piece.text and speech.words:
            last = replace(speech.words[-1], text=piece.text.split()[-1])
            speech = replace(speech, text=piece.text, words=(*speech.words[:-1], last))
        if whole is None:
            whole = speech
            continue
        whole, start, end = join(whole, speech, piece.wait)
        if piece.pause:
            pauses.append((start, end))
    if whole is None:
        raise ValueError("expected something to say")
    return whole, tuple(pauses)
