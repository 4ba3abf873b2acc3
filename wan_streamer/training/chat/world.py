"""What users of the simulated world say to the agent, and what it answers.

`Exchange`         one of each
`world_exchanges`  in a row: facts told and asked for, what is known, what is held up
"""

from typing import NamedTuple

import numpy as np

from wan_streamer.simulation.conversation.facts import drill, quiz
from wan_streamer.simulation.conversation.free import free_texts
from wan_streamer.simulation.conversation.lines.many import MANY
from wan_streamer.simulation.conversation.repertoire import AGENT, NUMBERS, pick, with_article
from wan_streamer.simulation.face.person import COLOURS, OBJECTS, SHAPES

SHARES = {"drill": 0.4, "quiz": 0.28, "shown": 0.22, "sum": 0.1}
ANY = 0.5  # share of the talks in which any word may be told
EMPTY = 0.25  # share of what is asked about a hand that holds nothing
HELD = 0.1  # share of other exchanges while something is held up
OTHERWISE = {AGENT["dont_know"], *(AGENT["sum"].format(number=number) for number in NUMBERS)}  # said in other words
SUM = 10  # the largest


class Exchange(NamedTuple):
    """seen  what the user holds up meanwhile, "" for nothing"""

    asked: str
    answer: str
    seen: str = ""


def world_exchanges(rng: np.random.Generator, count: int) -> list[Exchange]:
    """So many of one talk, which remembers what was told in it."""
    drilled = _exchanges(drill(count, free_texts("train") if rng.random() < ANY else (), rng, MANY))
    made = []
    for kind in rng.choice([*SHARES], size=count, p=[*SHARES.values()]):
        if kind in ("shown", "sum"):
            made.append(_shown(rng) if kind == "shown" else _summed(rng))
        else:
            one = drilled.pop(0) if kind == "drill" else _asked(rng)
            made.append(one._replace(seen=f"{pick(COLOURS, rng)} {pick(OBJECTS, rng)}") if rng.random() < HELD else one)
    return made


def _asked(rng: np.random.Generator) -> Exchange:
    """Something that is known."""
    return next(one for one in iter(lambda: _exchanges(quiz(1, rng, MANY))[0], None) if one.answer not in OTHERWISE)


def _summed(rng: np.random.Generator) -> Exchange:
    """A sum, with what it is of said again, so that it is there to be looked at."""
    a = int(rng.integers(1, SUM))
    b = int(rng.integers(1, SUM - a + 1))
    asked = MANY.wording("sum", rng, a=NUMBERS[a], b=NUMBERS[b])
    return Exchange(asked, f"{NUMBERS[a].capitalize()} plus {NUMBERS[b]} is {NUMBERS[a + b]}.")


def _exchanges(turns: list[dict[str, str]]) -> list[Exchange]:
    texts = [turn["text"] for turn in turns]
    return [Exchange(*pair) for pair in zip(texts[::2], texts[1::2], strict=True)]


def _shown(rng: np.random.Generator) -> Exchange:
    """Somebody asks what they hold up, what colour it has, or which number is on it."""
    intent, colour = pick(("colour", "thing", "look_here", "digit"), rng), pick(COLOURS, rng)
    asked = MANY.wording(intent, rng)
    if rng.random() < EMPTY:
        return Exchange(asked, AGENT["nothing"])
    thing = pick(NUMBERS[:10], rng) if intent == "digit" else pick((*SHAPES, *OBJECTS), rng)
    answer = {"colour": "colour_is", "digit": "number_is"}.get(intent, "thing_is")
    values = {"colour": colour, "number": thing, "thing": with_article(thing)}
    return Exchange(asked, AGENT[answer].format(**values), f"{colour} {thing}")
