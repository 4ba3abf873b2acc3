"""What was said, as the turns that a chat model reads.

`utterances`  what was said, by its beginning;   `remembered`  the same, without what is forgotten
`turns_of`    who has said what in turn
`Marks`       how a chat model writes that;   `noted`  a turn, with what is seen beside it
"""

from collections.abc import Sequence
from typing import NamedTuple

from wan_streamer.codecs.text import END, TextCodec
from wan_streamer.errors import ConfigError

AGENT = 0  # the source of the agent's words
START, STOP = "<|im_start|>", "<|im_end|>"  # ChatML
SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
BRIEF = 2  # words of a listener, at most: they are no turn

Turns = tuple[tuple[str, str], ...]
"""What each side said: "user" or "assistant", and its words."""


class Utterance(NamedTuple):
    """Words of one source up to an end of turn.

    first, last  where they stand among all that was said;   open  no end yet
    """

    source: int
    first: int
    last: int
    tokens: list[int]
    open: bool


def utterances(said: Sequence[tuple[int, int]]) -> list[Utterance]:
    """Pairs of source and token -> what was said, by its beginning."""
    done: list[Utterance] = []
    begun: dict[int, Utterance] = {}
    for place, (source, token) in enumerate(said):
        now = begun.pop(source, None)
        if token <= END:  # a mark of a beginning is no word
            if now is not None:
                done.append(now._replace(open=False))
            continue
        now = now or Utterance(source, place, place, [], True)
        begun[source] = now._replace(last=place, tokens=[*now.tokens, token])
    return sorted([*done, *begun.values()], key=lambda one: one.first)


def remembered(said: Sequence[tuple[int, int]], begin: int) -> list[Utterance]:
    """What was said from place `begin` on, a negative one; nothing whose first words are forgotten."""
    cut = {source for source, token in dict(said[:begin]).items() if token > END}
    kept = []
    for source, token in said[begin:]:
        if source not in cut:
            kept.append((source, token))
        elif token <= END:
            cut.remove(source)
    return utterances(kept)


def turns_of(spoken: Sequence[Utterance], text: TextCodec) -> Turns:
    """By the side that speaks, in words of `text`."""
    turns: list[tuple[str, str]] = []
    for one in spoken:
        if _listens(one, spoken, text):
            continue
        role, words = ASSISTANT if one.source == AGENT else USER, text.decode(one.tokens).strip()
        if turns and turns[-1][0] == role:
            words = f"{turns.pop()[1]} {words}"
        turns.append((role, words))
    return tuple(turns)


def _listens(one: Utterance, spoken: Sequence[Utterance], text: TextCodec) -> bool:
    """Whether it is a listener's "mm-hm" inside what the other side says."""
    inside = any(
        (other.source == AGENT) != (one.source == AGENT)
        and other.first < one.first
        and (other.open or one.last < other.last)
        for other in spoken
    )
    return inside and not one.open and len(text.decode(one.tokens).split()) <= BRIEF


class Marks:
    """How a chat model of `text` writes turns.

    text  its tokenizer;   source  its name

    Raises `ConfigError` if it is no chat model: the marks of ChatML are not among its tokens.
    """

    def __init__(self, text: TextCodec, source: str) -> None:
        start, stop = (text.tokenizer.token_to_id(mark) for mark in (START, STOP))
        if start is None or stop is None:
            raise ConfigError(f"{source}: expected a chat model, with tokens {START} and {STOP}; take an instruct one")
        self.text, self.start, self.stop = text, start, stop

    def opening(self, role: str) -> list[int]:
        """Tokens in front of what somebody says."""
        return [self.start, *self.text.encode(f"{role}\n")]

    def turn(self, role: str, words: str) -> list[int]:
        """Tokens of a whole turn."""
        return [*self.opening(role), *self.text.encode(words), *self.closing()]

    def closing(self) -> list[int]:
        """Tokens behind that: the first of them ends it."""
        return [self.stop, *self.text.encode("\n")]


def noted(asked: str, seen: str) -> str:
    """A turn of the user, and what is seen beside it."""
    return f"{asked} (In my hand: {seen})" if seen else asked
