"""What people really typed to each other: sentences of the chitchat dataset (PyPI `chitchat-dataset`, MIT licence).

`in_split`        whether a text may be said in a split
`chat_sentences`  clean single sentences of one split, in an order that never changes
`chat_pairs`      a message and its answer, for text dialogue
"""

import functools
import re
import zlib
from itertools import pairwise
from typing import Any

_PLAIN = re.compile(r"[A-Za-z][A-Za-z' ,]*[.?!]?")
_WORD, _I = re.compile(r"[A-Za-z']+"), re.compile(r"\bi\b")
_ENDS = re.compile(r"(?<=[.?!])\s+")
_PARTS = str.maketrans("',.?!", "     ")
_SHARES = {"train": range(8), "valid": range(8, 9), "test": range(9, 10)}
_KEPT_OUT = frozenset(
    (
        "ass", "asshole", "bitch", "boob", "boobs", "cant", "cum", "damn", "dead", "dick", "die", "dont", "drug",
        "drugs", "drunk", "gay", "hate", "hell", "idiot", "im", "ive", "lmao", "lol", "naked", "omg", "penis", "porn",
        "r", "stupid", "thats", "u", "ur", "weed", "wtf",
    )
)  # fmt: skip
_KEPT_OUT_STEMS = ("fuck", "shit", "bitch", "sex", "nigg", "kill", "rape", "suicid", "haha")
_HUM = re.compile(r"hmm+")
WORDS = (3, 14)  # shortest and longest sentence


@functools.cache
def _conversations() -> tuple[tuple[str, ...], ...]:
    """One tuple per chat: what was said in turn, messages of one turn joined."""
    import chitchat_dataset

    chats: Any = chitchat_dataset.Dataset()
    return tuple(tuple(" ".join(m["text"] for m in turn) for turn in chats[key]["messages"]) for key in sorted(chats))


def _split_of(text: str) -> int:
    return zlib.crc32(text.lower().encode()) % 10


def in_split(text: str, split: str) -> bool:
    """Every text belongs to one split."""
    return _split_of(text) in _SHARES[split]


def _tidy(text: str) -> str | None:
    """The text with a capital and a full stop, or None if it is not one plain, polite sentence."""
    text = " ".join(text.split())
    if not _PLAIN.fullmatch(text) or not WORDS[0] <= text.count(" ") + 1 <= WORDS[1]:
        return None
    words = _WORD.findall(text)  # shouting, abbreviations and keyboards fallen asleep on are left out
    if any(len(word) > 18 or (len(word) > 1 and word.isupper()) for word in words):
        return None
    parts = text.lower().translate(_PARTS).split()
    if not _KEPT_OUT.isdisjoint(parts) or any(p.startswith(_KEPT_OUT_STEMS) or _HUM.fullmatch(p) for p in parts):
        return None
    text = _I.sub("I", text[0].upper() + text[1:])
    return text if text[-1] in ".?!" else text + "."


@functools.cache
def _sentences() -> tuple[str, ...]:
    """Different sentences of all splits."""
    parts = dict.fromkeys(part for chat in _conversations() for turn in chat for part in _ENDS.split(turn))
    return tuple(dict.fromkeys(sentence for part in parts if (sentence := _tidy(part))))


@functools.cache
def _pairs() -> tuple[tuple[str, str], ...]:
    """Different pairs of all splits."""
    tidied = ([_tidy(turn) for turn in chat] for chat in _conversations())
    return tuple(dict.fromkeys((a, b) for turns in tidied for a, b in pairwise(turns) if a and b))


@functools.cache
def chat_sentences(split: str) -> tuple[str, ...]:
    """Different sentences of `split`, about 88 000 for "train"; the splits share none."""
    return tuple(sentence for sentence in _sentences() if in_split(sentence, split))


@functools.cache
def chat_pairs(split: str) -> tuple[tuple[str, str], ...]:
    """(message, answer), both single clean sentences; split by the message."""
    return tuple(pair for pair in _pairs() if in_split(pair[0], split))
