"""Scenarios in which the user says what nobody has listed: sentences from real chats, and orders.

`free_texts`  the sentences that a user of a split may say      `reply_to`  what the agent answers to a sentence
`order_text`  an order, made of parts

The agent answers with few sentences of its own, but which of them is right can only be known from the words.
"""

import functools
import re
from collections.abc import Sequence

import numpy as np

from wan_streamer.simulation.conversation.chats import chat_sentences, in_split
from wan_streamer.simulation.conversation.dialogue import Draft, Scene, Turn
from wan_streamer.simulation.conversation.overlap import after_barge_in, barge_in
from wan_streamer.simulation.conversation.repertoire import AGENT, pick
from wan_streamer.simulation.conversation.talk import EXPLANATIONS, listen
from wan_streamer.simulation.voice.natural import belongs

NATURAL_SHARE = 0.01  # of the free sentences that each natural voice reads, so that their cache fills up
REPEATED_WORDS = (2, 9)  # of a sentence that the agent is to say
LENGTHS = (0.5, 0.3, 0.2)  # shares of turns of one, two and three sentences
NAMES_TOPIC = 0.7  # share of the answers that name the topic, if there is one

TOPICS: dict[str, tuple[str, ...]] = {
    "music": ("music", "song", "songs", "band", "guitar", "piano", "concert"),
    "movies": ("movie", "movies", "film", "films"),
    "school": ("school", "college", "class", "classes", "student", "exam", "homework"),
    "work": ("work", "working", "job", "office", "boss"),
    "books": ("book", "books", "reading", "novel"),
    "games": ("game", "games", "gaming"),
    "animals": ("dog", "dogs", "cat", "cats", "animal", "animals", "pet", "horse"),
    "food": ("food", "eat", "eating", "pizza", "dinner", "lunch", "breakfast", "cook", "cooking"),
    "family": ("family", "mom", "dad", "brother", "sister", "mother", "father", "parents", "kids", "wife", "husband"),
    "friends": ("friend", "friends"),
    "sports": ("football", "soccer", "basketball", "baseball", "sport", "sports", "tennis", "gym"),
    "the weather": ("weather", "rain", "snow", "sunny", "cold", "hot"),
    "travel": ("travel", "travelling", "trip", "vacation", "flight", "country", "beach"),
    "money": ("money", "pay", "expensive", "cheap", "dollars"),
    "cars": ("car", "cars", "drive", "driving"),
    "sleep": ("sleep", "sleeping", "bed", "tired"),
}
_TOPIC_OF = {word: topic for topic, words in TOPICS.items() for word in words}
_BAD = frozenset(
    ("sick", "sad", "lost", "hurt", "broke", "broken", "bad", "terrible", "awful", "hospital", "stressed", "stress",
     "worst", "cry", "crying", "pain", "unfortunately", "sucks", "failed", "worried", "lonely", "depressed", "upset",
     "miss", "scared")
)  # fmt: skip
_GOOD = frozenset(
    ("love", "great", "awesome", "happy", "fun", "amazing", "excited", "cool", "beautiful", "wonderful", "nice", "best",
     "favorite")
)  # fmt: skip
_YOU = frozenset(("you", "your", "you're"))
_ASKS = frozenset(
    ("do", "does", "did", "are", "is", "was", "were", "have", "has", "can", "could", "would", "will", "should")
)  # fmt: skip

_OPENS = ("I'd like", "Can I get", "Could I have", "I would like to order", "Please bring me", "Can you order me",
          "I'll take", "Let me have", "Hi, can I get", "I think I'll have", "Could you bring me", "I want")  # fmt: skip
_SIZES = ("", "small ", "large ", "big ", "fresh ", "nice ")
_WITH = ("", " with sugar", " with lemon", " with extra cheese", " without onions", " for my friend", " to go",
         " for the table", " with some bread", " as soon as you can")  # fmt: skip
_ENDS = ("", ", please", ", thanks", ", if you can")


@functools.cache
def free_texts(split: str, voice: str = "") -> tuple[str, ...]:
    """Sentences in the order of their chats; splits share none. A natural `voice` has a fixed small part of them."""
    return tuple(text for text in chat_sentences(split) if not voice or belongs(voice, text, NATURAL_SHARE))


def order_text(item: str, split: str, rng: np.random.Generator) -> str:
    """An order of the item in one of the wordings of this split."""
    while True:
        opening, size = pick(_OPENS, rng), pick(_SIZES, rng)
        text = f"{opening} a {size}{item}{pick(_WITH, rng)}{pick(_ENDS, rng)}."
        if in_split(text, split):
            return text


def reply_to(text: str, rng: np.random.Generator) -> tuple[str, dict[str, str]]:
    """(the agent's reply, values of its slots) to the last sentence of a turn."""
    words = re.findall(r"[a-z']+", text.lower())
    if text.endswith("?"):
        if words[0] == "why":
            return "free_why", {}
        if words[0] in _ASKS:
            return ("free_program" if _YOU & set(words) else "free_maybe"), {}
        return pick(("free_question", "free_unsure"), rng), {}
    topic = next((_TOPIC_OF[word] for word in words if word in _TOPIC_OF), None)
    if topic and rng.random() < NAMES_TOPIC:
        return "free_topic", {"topic": topic}
    if _BAD & set(words):
        return "sorry_to_hear", {}
    if _GOOD & set(words):
        return "free_great", {}
    if words[0] in ("thanks", "thank"):
        return "welcome_thanks", {}
    if words[0] in ("yes", "yeah", "no", "ok", "okay", "sure"):
        return "free_right", {}
    if {"will", "going", "plan", "hope", "tomorrow"} & set(words):
        return "free_luck", {}
    if {"think", "believe", "guess", "feel"} & set(words):
        return "free_thought", {}
    return pick(("i_see", "free_interesting", "free_more", "free_really"), rng), {}


def some_sentences(texts: Sequence[str], count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Neighbours; in four of ten cases the last one has a topic and is no question."""
    at, wanted = 0, rng.random() < 0.4
    for _ in range(12):
        at = int(rng.integers(max(1, len(texts) - count + 1)))
        last = texts[at : at + count][-1]
        if not wanted or (last[-1] != "?" and any(w in _TOPIC_OF for w in re.findall(r"[a-z']+", last.lower()))):
            break
    return tuple(texts[at : at + count])


def _answer(scene: Scene, text: str, after: float) -> Turn:
    label, values = reply_to(text, scene.rng)
    return scene.agent(label, after + scene.gap(), **values)


def free_talk(scene: Scene, at: float) -> Draft | None:
    """The user says one to three sentences of their own, once or twice; the agent answers what fits the last one."""
    if not scene.texts:
        return None
    draft = Draft()
    for _ in range(1 + scene.chance(0.6)):
        count = 1 + int(scene.rng.choice(3, p=LENGTHS))
        said = some_sentences(scene.texts, count, scene.rng)
        told = scene.utter("free", at, *said)
        draft.turns += [told, _answer(scene, said[-1], told.end)]
        at = draft.end + scene.between(0.3, 1.2)
    return draft


def order(scene: Scene, at: float) -> Draft | None:
    """The user orders something in words of their own; the agent repeats what it is."""
    if not scene.texts:
        return None
    draft = Draft()
    for _ in range(1 + scene.chance(0.4)):
        item = scene.lines.filling("order", scene.rng)
        asked = scene.utter("order", at, order_text(item, scene.split, scene.rng))
        draft.turns += [asked, scene.agent("free_order", asked.end + scene.gap(), order=item)]
        at = draft.end + scene.between(0.3, 1.2)
    return draft


def free_repeat(scene: Scene, at: float) -> Draft | None:
    """The user asks for a sentence of their own to be repeated; the agent says it, whatever it means."""
    least, most = REPEATED_WORDS
    tried = (scene.texts[int(scene.rng.integers(len(scene.texts)))] for _ in range(12 if scene.texts else 0))
    said = next((text for text in tried if least <= len(text.split()) <= most), None)
    if said is None:
        return None
    asked = scene.user("say", at, phrase=said)
    return Draft([asked, scene.say("agent", "say_free", asked.end + scene.gap(), said)])


def free_story(scene: Scene, at: float) -> Draft | None:
    """The user tells something in three or four sentences of their own; the agent says "mm-hm" in between."""
    if not scene.texts:
        return None
    said = some_sentences(scene.texts, 3 + scene.chance(0.4), scene.rng)
    told = scene.utter("free", at, *said)
    draft = Draft([told])
    listen(scene, draft, told)
    draft.turns.append(_answer(scene, said[-1], told.end))
    return draft


def free_barge_in(scene: Scene, at: float) -> Draft | None:
    """The user breaks into an explanation with a sentence of their own, which is answered."""
    if not scene.texts:
        return None
    draft = scene.exchange(pick(EXPLANATIONS, scene.rng), at)
    (said,) = some_sentences(scene.texts, 1, scene.rng)
    if barge_in(scene, draft, "free", 0.7, 4.0, said) is None:
        return None
    draft.turns.append(_answer(scene, said, after_barge_in(draft)))
    return draft


def reply_text(text: str, rng: np.random.Generator) -> str:
    """The agent's answer as text."""
    label, values = reply_to(text, rng)
    return AGENT[label].format(**values)
