"""What the user tells about themselves, and what the agent remembers of it.

`FACTS`           kind -> how it is told, asked for and answered
`tells`, `recalls`, `tells_fact`, `recalls_fact`  scenarios
`earlier`         a talk minutes before, as text, and what was told in it
`chatter`         a talk of which nothing need be remembered, as text
`drill`           nothing but what has to be found in what was said before, as text
`quiz`            whatever may be asked and is known, each as often as the others, as text
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from wan_streamer.simulation.conversation.dialogue import Draft, Scene
from wan_streamer.simulation.conversation.free import order_text, reply_text
from wan_streamer.simulation.conversation.repertoire import AGENT, KNOWN, NUMBERS, Lines, pick, reply_label
from wan_streamer.simulation.conversation.talk import EXPLANATIONS, KNOWLEDGE, QUICK, Plan

EARLIER_TURNS = 12
EARLIER_WORDS = 9  # longest free sentence of an earlier talk
DRILLED = {"tell": 0.3, "ask": 0.4, "repeat": 0.15, "order": 0.15}
UNKNOWN = 0.15  # share of what is asked for that may never have been told
REPEATED = (1, 7)  # words
BLENDED = 0.4  # share of words in the place of a value that nobody has ever said
QUIZ = (*KNOWLEDGE, *EXPLANATIONS, *QUICK, "greeting", "bye", "how", "fine", "tired", "weather", "music", "joke",
        "laugh", "name", "can", "robot", "hear", "thanks", "three", "five", "ten", "back", "sum", "stop", "wait_name",
        "wait_hear")  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """Intents of telling and of asking, the replies, and the slot that holds the value."""

    tell: str
    ask: str
    answer: str
    slot: str
    noted: str = "will_remember"


FACTS: dict[str, Fact] = {
    "name": Fact("i_am", "ask_my_name", "your_name", "name", "meet_name"),
    "colour": Fact("my_colour", "ask_my_colour", "your_colour", "colour"),
    **{
        kind: Fact(f"my_{kind}", f"ask_my_{kind}", f"your_{kind}", kind)
        for kind in ("pet", "town", "food", "hobby", "number", "job")
    },
}
OTHERS = tuple(kind for kind in FACTS if kind not in ("name", "colour"))


def _tell(scene: Scene, kind: str, at: float) -> Draft:
    fact = FACTS[kind]
    value = {fact.slot: scene.lines.filling(fact.slot, scene.rng)}
    told = scene.user(fact.tell, at, "speech", False, **value)
    return Draft([told, scene.reply(fact.noted, told.end, False, **value)], facts={kind: value[fact.slot]})


def _recall(scene: Scene, kind: str, at: float) -> Draft:
    fact, known = FACTS[kind], scene.facts.get(kind)
    asked = scene.user(fact.ask, at)
    answer = (
        scene.reply(fact.answer, asked.end, False, **{fact.slot: known}) if known else scene.reply("unknown", asked.end)
    )
    return Draft([asked, answer])


def tells(kind: str, meaning: str) -> Plan:
    """A scenario that `meaning` describes: this fact is told."""

    def plan(scene: Scene, at: float) -> Draft:
        return _tell(scene, kind, at)

    plan.__doc__ = meaning
    return plan


def recalls(kind: str, meaning: str) -> Plan:
    """A scenario that `meaning` describes: this fact is asked for."""

    def plan(scene: Scene, at: float) -> Draft:
        return _recall(scene, kind, at)

    plan.__doc__ = meaning
    return plan


def tells_fact(scene: Scene, at: float) -> Draft:
    """The user tells their pet, home, favourite food, hobby, lucky number or job; the agent will remember it."""
    return _tell(scene, pick(OTHERS, scene.rng), at)


def recalls_fact(scene: Scene, at: float) -> Draft:
    """The user asks for one of them: the agent remembers it, or says that it was not told."""
    known = tuple(kind for kind in OTHERS if kind in scene.facts)
    return _recall(scene, pick(known if known and scene.chance(0.75) else OTHERS, scene.rng), at)


def recall_known(facts: dict[str, str], rng: np.random.Generator) -> str:
    """The scenario that asks for something that was told."""
    kind = pick(tuple(sorted(facts)), rng)
    return f"recalls_{kind}" if kind in ("name", "colour") else "recalls_fact"


def earlier(
    texts: Sequence[str], rng: np.random.Generator, lines: Lines = KNOWN
) -> tuple[list[dict[str, str]], dict[str, str]]:
    """({"side", "text"} of up to `EARLIER_TURNS` short turns in order, the facts told in them)."""
    exchanges: list[tuple[str, str]] = []
    facts: dict[str, str] = {}
    for kind in rng.permutation(sorted(FACTS))[: rng.integers(4)].tolist():
        fact = FACTS[kind]
        facts[kind] = lines.filling(fact.slot, rng)
        value = {fact.slot: facts[kind]}
        exchanges.append((lines.wording(fact.tell, rng, **value), AGENT[fact.noted].format(**value)))
    if rng.random() < 0.5:  # facts about other people are not the user's
        values = {name: pick(options, rng) for name, options in lines.fillers.items()}
        exchanges.append((lines.wording("others", rng, **values), AGENT["i_see"]))
    if rng.random() < 0.4:
        intent = pick(KNOWLEDGE, rng)
        exchanges.append((lines.wording(intent, rng), AGENT[reply_label(intent, rng)]))
    said = [texts[int(i)] for i in rng.integers(len(texts), size=2)] if texts else []
    exchanges += [(text, reply_text(text, rng)) for text in said if len(text.split()) <= EARLIER_WORDS]
    exchanges = exchanges[: EARLIER_TURNS // 2 - 1]
    rng.shuffle(exchanges)
    if rng.random() < 0.5 or not exchanges:
        exchanges.insert(0, (lines.wording("greeting", rng), AGENT["hello"]))
    sides = ("user", "agent")
    return [{"side": s, "text": t} for pair in exchanges for s, t in zip(sides, pair, strict=True)], facts


def chatter(exchanges: int, texts: Sequence[str], rng: np.random.Generator) -> list[dict[str, str]]:
    """{"side", "text"} of so many short exchanges in which nothing is told that is asked for later."""
    said = [texts[int(i)] for i in rng.integers(len(texts), size=4 * exchanges)] if texts else []
    short = [text for text in said if len(text.split()) <= EARLIER_WORDS][:exchanges]
    sides = ("user", "agent")
    pairs = [(text, reply_text(text, rng)) for text in short]
    return [{"side": side, "text": text} for pair in pairs for side, text in zip(sides, pair, strict=True)]


def drill(exchanges: int, texts: Sequence[str], rng: np.random.Generator, lines: Lines) -> list[dict[str, str]]:
    """{"side", "text"} of so many exchanges, in each of which the agent repeats something that was said before.

    What was told last is what holds. Without `texts` all that is told is what `lines` has for it.
    """
    if texts:
        drawn = (texts[int(i)] for i in rng.integers(len(texts), size=exchanges))
        words = [word for text in drawn for word in words_of(text)]
        others = rng.permutation(words).tolist()
        blended = (rng.random(len(words)) < BLENDED).tolist()
        drawn_words = (_blend(*pair) if new else pair[0] for *pair, new in zip(words, others, blended, strict=True))
        lines = replace(lines, words=tuple(drawn_words))
    known: dict[str, str] = {}

    def exchange() -> tuple[str, str]:
        task, unknown = str(rng.choice(list(DRILLED), p=list(DRILLED.values()))), rng.random() < UNKNOWN
        if task == "ask" and not known and not unknown:
            task = "tell"
        if task == "repeat" and lines.words:
            first = int(rng.integers(len(lines.words)))
            phrase = " ".join(lines.words[first : first + int(rng.integers(*REPEATED))])
            return lines.wording("say", rng, phrase=phrase), phrase
        if task == "order":
            order = lines.filling("order", rng)
            return order_text(order, "train", rng), AGENT["free_order"].format(order=order)
        kind = pick(tuple(known) if task == "ask" and not unknown else tuple(FACTS), rng)
        fact = FACTS[kind]
        if task == "ask":
            label, values = (fact.answer, {fact.slot: known[kind]}) if kind in known else ("unknown", {})
            return lines.wording(fact.ask, rng), AGENT[label].format(**values)
        known[kind] = lines.filling(fact.slot, rng)
        told = {fact.slot: known[kind]}
        return lines.wording(fact.tell, rng, **told), AGENT[fact.noted].format(**told)

    sides = ("user", "agent")
    pairs = [exchange() for _ in range(exchanges)]
    return [{"side": side, "text": text} for pair in pairs for side, text in zip(sides, pair, strict=True)]


def quiz(exchanges: int, rng: np.random.Generator, lines: Lines) -> list[dict[str, str]]:
    """{"side", "text"} of so many exchanges that words alone decide and that need nothing of what was said before."""

    def exchange() -> tuple[str, str]:
        intent = pick(QUIZ, rng)
        a, b = (int(rng.integers(1, 6)) for _ in range(2))
        answer = AGENT[reply_label(intent, rng)].format(number=NUMBERS[a + b])
        return lines.wording(intent, rng, a=NUMBERS[a], b=NUMBERS[b]), answer

    sides = ("user", "agent")
    pairs = [exchange() for _ in range(exchanges)]
    return [{"side": side, "text": text} for pair in pairs for side, text in zip(sides, pair, strict=True)]


def _blend(first: str, second: str) -> str:
    """The beginning of one word and the end of another: many tokens, which have to be said again one by one."""
    return first[: (len(first) + 2) // 2] + second[len(second) // 2 :].lower()


def words_of(text: str) -> list[str]:
    """The longer ones."""
    return re.findall(r"[A-Za-z']{3,}", text)
