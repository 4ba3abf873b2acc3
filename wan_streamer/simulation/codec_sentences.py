"""Varied English from a small grammar, so that codecs hear every sound of the language."""

import numpy as np

from wan_streamer.simulation.conversation.repertoire import pick

_PEOPLE = (
    "the teacher", "my brother", "your sister", "an old farmer", "the young doctor", "our neighbour", "a good friend",
    "the boy next door", "her mother", "the tall man", "a busy chef", "the judge", "Paul", "Jane", "Theo", "George",
)  # fmt: skip
_VERBS = (
    "found", "bought", "painted", "washed", "carried", "watched", "measured", "forgot", "borrowed", "chose", "threw",
    "fixed", "described", "pushed", "shared", "enjoyed", "brought", "kept", "showed", "pulled",
)  # fmt: skip
_THINGS = (
    "a yellow umbrella", "the broken chair", "five blue cups", "a huge box of books", "the purple vase",
    "some fresh air", "a small wooden boat", "the first page", "three green apples", "a piece of cheese",
    "the other watch", "an orange", "a loud noise", "the cold water", "a leather jacket", "two dozen eggs",
    "a quiet voice", "the thick rope", "a bowl of soup", "her favourite song", "the usual treasure", "the bridge",
    "a shiny coin", "new shoes",
)  # fmt: skip
_PLACES = (
    "in the kitchen", "near the river", "behind the house", "on the beach", "at the station", "under the table",
    "after lunch", "before breakfast", "on a rainy Thursday", "last January", "without a word", "with both hands",
    "in the garage", "around the corner", "for the whole year", "every evening", "through the window",
)  # fmt: skip
_STARTS = (
    "I think", "Maybe", "Yesterday", "As you know,", "To be honest,", "Of course", "You should know that", "Well,",
    "We heard that", "Usually", "It is true that", "Imagine that",
)  # fmt: skip
_ASKS = (
    "Do you know why", "Could you explain how", "Are you sure that", "Did you hear that", "Why do you think that",
)  # fmt: skip
_NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fifteen", "twenty", "thirty", "fifty", "a hundred", "a thousand",
)  # fmt: skip
_SHORT = (
    "Yes, of course.", "No, thank you.", "That sounds good.", "I am not sure.", "Let me think about it.", "Really?",
    "What a lovely day!", "Please, go on.", "I see what you mean.", "Could you say that again?", "Just a moment.",
    "Oh, I am sorry.", "That is a good question.", "Right.", "Great!", "Have a nice evening.", "Okay, go ahead.",
)  # fmt: skip


def codec_sentence(rng: np.random.Generator) -> str:
    """One random sentence. Not meant to make sense, only to sound like English."""
    kind = int(rng.integers(10))
    if kind == 0:
        return pick(_SHORT, rng)
    if kind == 1:
        count = int(rng.integers(3, 7))
        spoken = ", ".join(pick(_NUMBERS, rng) for _ in range(count))
        return spoken[0].upper() + spoken[1:] + "."
    core = f"{pick(_PEOPLE, rng)} {pick(_VERBS, rng)} {pick(_THINGS, rng)}"
    place = f" {pick(_PLACES, rng)}" if kind % 2 == 0 else ""
    if kind in (2, 3):
        return f"{pick(_ASKS, rng)} {core}{place}?"
    if kind in (4, 5, 6):
        return f"{pick(_STARTS, rng)} {core}{place}."
    return core[0].upper() + core[1:] + place + "."


def codec_sentences(count: int, rng: np.random.Generator, exclude: frozenset[str] = frozenset()) -> list[str]:
    """`count` different sentences, none of them in `exclude`."""
    found: dict[str, None] = {}
    while len(found) < count:
        sentence = codec_sentence(rng)
        if sentence not in exclude:
            found[sentence] = None
    return list(found)
