"""The table of everything that can happen between a user and the agent, and how a conversation is put together.

`SCENARIOS`      name -> how it is planned and how often it is drawn; `FREE`, the same for what may happen again
`plan_dialogue`  as many scenarios as fit, in random order
`plan_of`        the function of a scenario
`plan_shown`     what is seen alone;  `plan_asked`  what words alone decide;  `plan_read`  what the agent says by itself
`plan_exactly`   these scenarios and nothing else, as long as they take;  `attempt`  one of them, if it fits
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from wan_streamer.simulation.conversation import facts as facts
from wan_streamer.simulation.conversation import free as free
from wan_streamer.simulation.conversation import overlap as overlap
from wan_streamer.simulation.conversation import seen as seen
from wan_streamer.simulation.conversation import talk as talk
from wan_streamer.simulation.conversation.dialogue import Dialogue, Draft, Scene, Speak
from wan_streamer.simulation.conversation.repertoire import AGENT, KNOWN, Lines, is_german, pick, slots
from wan_streamer.units import UNIT_MS

LONGEST = 1000  # units that exactly planned scenarios may take
MISSES = 8  # scenarios in a row that do not fit before the conversation ends
READ_MISSES = 2  # sentences: each costs a rendering


@dataclass(frozen=True)
class Scenario:
    """plan: (scene, at) -> draft or None; weight: how often it is drawn, relative to the others."""

    plan: talk.Plan
    weight: float


SCENARIOS: dict[str, Scenario] = {
    "small_talk": Scenario(talk.small_talk, 1.2),
    "joke": Scenario(talk.joke, 0.6),
    "agent_name": Scenario(talk.ask("The user asks who the agent is.", "name"), 1.2),
    "agent_skills": Scenario(
        talk.ask("What can you do, are you a robot, can you hear me?", "can", "robot", "hear"), 1.2
    ),
    "camera_question": Scenario(talk.camera_question, 0.6),
    "thanks": Scenario(talk.ask("The user says thanks.", "thanks"), 0.7),
    "counting": Scenario(talk.ask("The agent counts up, or down from five.", "three", "five", "ten", "back"), 1.2),
    "arithmetic": Scenario(talk.arithmetic, 1.0),
    "knowledge": Scenario(
        talk.ask("Six small facts, and questions that the agent cannot answer.", *talk.KNOWLEDGE), 1.2
    ),
    "explanation": Scenario(
        talk.ask("Three sentences about rain, bread, the moon, tea, or a story.", *talk.EXPLANATIONS), 0.8
    ),
    "repeat_after_me": Scenario(talk.repeat_after_me, 1.0),
    "tells_name": Scenario(facts.tells("name", "The user tells their name; the agent uses it at once."), 0.35),
    "recalls_name": Scenario(
        facts.recalls("name", "The user asks for their name: the agent remembers it, or says that it was not told."),
        0.25,
    ),
    "tells_colour": Scenario(facts.tells("colour", "The user tells their favourite colour."), 0.3),
    "recalls_colour": Scenario(facts.recalls("colour", "The same for the favourite colour."), 0.2),
    "tells_fact": Scenario(facts.tells_fact, 0.5),
    "recalls_fact": Scenario(facts.recalls_fact, 0.4),
    "pause_in_turn": Scenario(talk.pause_in_turn, 1.6),
    "fast_handoff": Scenario(talk.fast_handoff, 0.8),
    "long_story": Scenario(talk.long_story, 2.2),
    "typed": Scenario(talk.typed, 0.8),
    "german": Scenario(talk.german, 0.5),
    "barge_in_stop": Scenario(overlap.barge_in_stop, 4.4),
    "barge_in_topic": Scenario(overlap.barge_in_topic, 2.6),
    "barge_in_correction": Scenario(overlap.barge_in_correction, 2.2),
    "double_barge_in": Scenario(overlap.double_barge_in, 1.6),
    "side_talk": Scenario(overlap.side_talk, 3.0),
    "noise": Scenario(overlap.noise, 3.0),
    "held_colour": Scenario(seen.held_colour, 2.4),
    "held_thing": Scenario(seen.held_thing, 1.0),
    "held_number": Scenario(seen.held_number, 2.0),
    "empty_hand": Scenario(seen.empty_hand, 1.0),
    "shows_something": Scenario(seen.shows_something, 2.4),
    "waves": Scenario(seen.waves, 2.0),
    "smiles": Scenario(seen.smiles, 1.4),
    "thumb_up": Scenario(seen.thumb_up, 1.4),
    "decoy": Scenario(seen.decoy, 1.6),
    "long_silence": Scenario(seen.long_silence, 0.2),
}
"""What may happen in the middle. Openings (`greeting`, `agent_greets`) and `goodbye` have their place."""

SHOWN = {name: scenario for name, scenario in SCENARIOS.items() if scenario.plan.__module__ == seen.__name__}
"""Those of them that are about what is seen; a long silence, too."""

FREE: dict[str, Scenario] = {
    "free_talk": Scenario(free.free_talk, 1.0),
    "order": Scenario(free.order, 0.3),
    "free_story": Scenario(free.free_story, 0.25),
    "free_barge_in": Scenario(free.free_barge_in, 0.3),
    "free_repeat": Scenario(free.free_repeat, 0.1),
    # As many go through what the agent explains as break into it: else whoever says anything would stop it.
    "user_backchannel": Scenario(overlap.user_backchannel, 0.6),
}
"""What may happen more than once, between the others."""

ASKED = {
    "arithmetic": 2.0, "tells_name": 1.0, "recalls_name": 0.3, "tells_colour": 0.8, "recalls_colour": 0.2,
    "tells_fact": 2.0, "recalls_fact": 0.5, "knowledge": 1.2, "counting": 1.0, "repeat_after_me": 0.3,
    "free_repeat": 1.5, "agent_name": 0.5, "agent_skills": 0.7, "thanks": 0.2, "order": 1.0, "free_talk": 1.5,
    "barge_in_stop": 1.4, "barge_in_topic": 0.9, "barge_in_correction": 0.9, "free_barge_in": 1.0,
    "user_backchannel": 2.4, "side_talk": 1.2, "noise": 1.6, "pause_in_turn": 2.0, "fast_handoff": 0.7,
    "small_talk": 0.7, "long_story": 2.0, "free_story": 1.5,
}  # fmt: skip
"""What words alone decide, and how often each is drawn: questions with a right answer and what it takes to know it, and
what the agent is to stop, wait or listen for. And free talk: not all that is told is a fact."""

FREE_SHARE = 0.56  # of what is drawn
BEFORE = 0.4  # share of episodes that go on after an earlier talk
HESITANT, HESITATES = 0.45, 0.5  # share of users who stop to think, and of their long turns
SILENT = 0.12  # share of episodes with a long silence
TOLD_EARLY, ASKED_FOR = 0.45, 0.85  # a fact right at the begin if there was no talk before; what was told is asked for
RECALLED = 0.25  # share of what words alone decide that asks for what was told, if anything was
OWN, FIXED = 0.5, 0.4  # share of what is read that is the agent's own; of that, what is always said alike
BREATH = (0.25, 0.7)  # seconds between two things that are read
CLOSING = 4.5  # seconds kept for a question about what was told, and as many for a goodbye

OPENERS = ("small_talk", "agent_name", "agent_skills", "counting", "knowledge", "tells_name", "arithmetic")
FRAME = {"greeting": talk.greeting, "agent_greets": seen.agent_greets, "goodbye": talk.goodbye}
SCENARIO_NAMES = (*FRAME, *SCENARIOS, *FREE)


def plan_dialogue(
    units: int,
    agent: Speak,
    user: Speak,
    camera: bool,
    rng: np.random.Generator,
    texts: Sequence[str] = (),
    split: str = "train",
    lines: Lines = KNOWN,
) -> Dialogue:
    """Fill `units` with scenarios: an opening, then a weighted draw, then perhaps a question about what was told.

    agent, user  what speaks for each side;  camera  whether the user can be seen
    texts        sentences of this split that the user may say freely; without them there is no free talk
    """
    scene = Scene(units, agent, user, camera, rng, texts, split, lines)
    scene.hesitant = HESITATES if scene.chance(HESITANT) else 0.0
    if scene.chance(BEFORE):
        scene.dialogue.before, scene.facts = facts.earlier(texts, rng, lines)
    _open(scene)
    if not scene.dialogue.before and scene.chance(TOLD_EARLY):
        attempt(scene, str(rng.choice(("tells_name", "tells_colour", "tells_fact", "tells_fact"))))
    recalls = scene.chance(ASKED_FOR) and bool(scene.facts)
    if recalls and scene.dialogue.before and scene.chance(0.4):
        attempt(scene, facts.recall_known(scene.facts, rng))
        recalls = False
    says_bye = scene.chance(0.2)
    end = scene.dialogue.seconds
    scene.limit = end - CLOSING * (recalls + says_bye)
    if scene.chance(SILENT) and scene.dialogue.turns:
        attempt(scene, "long_silence")
    _fill(scene)
    if recalls:
        scene.limit = end - CLOSING * says_bye
        attempt(scene, facts.recall_known(scene.facts, rng))
    scene.limit = end
    if says_bye:
        attempt(scene, "goodbye")
    return scene.finish()


def _open(scene: Scene) -> None:
    """Who begins. A talk that goes on needs no greeting, and may begin with a silence."""
    opening = scene.rng.random()
    if scene.dialogue.before:
        scene.time = scene.between(2.5, 6.5) if opening < 0.35 else scene.between(0.4, 1.4)
        return
    if opening < 0.2:
        attempt(scene, "agent_greets")
        return
    scene.time = scene.between(0.4, 1.4)  # before the agent would speak first
    attempt(scene, "greeting" if opening < 0.7 else str(scene.rng.choice(OPENERS)))


def _fill(scene: Scene) -> None:
    """Draw scenarios until `MISSES` in a row do not fit: those of `FREE` again and again, the others once."""
    order = iter(_draw(_weights(SCENARIOS), len(SCENARIOS), scene.rng))
    misses = 0
    while misses < MISSES and scene.time < scene.limit:
        if scene.texts and scene.chance(FREE_SHARE):
            (name,) = _draw(_weights(FREE), 1, scene.rng)
        else:
            name = next((name for name in order if name not in scene.dialogue.scenarios), "")
            if not name:
                return
        misses = 0 if attempt(scene, name) else misses + 1


def _weights(table: Mapping[str, Scenario]) -> dict[str, float]:
    return {name: scenario.weight for name, scenario in table.items()}


def _draw(weights: Mapping[str, float], count: int, rng: np.random.Generator) -> list[str]:
    """Different names, the heavy ones first as a rule."""
    shares = np.array(list(weights.values()))
    return [list(weights)[i] for i in rng.choice(len(weights), count, replace=False, p=shares / shares.sum())]


def plan_shown(units: int, agent: Speak, user: Speak, rng: np.random.Generator, lines: Lines = KNOWN) -> Dialogue:
    """Fill `units` with what is only seen, again and again."""
    scene = Scene(units, agent, user, True, rng, lines=lines)
    return _again_and_again(scene, lambda: _draw(_weights(SHOWN), 1, rng)[0])


def plan_asked(
    units: int, agent: Speak, user: Speak, rng: np.random.Generator, texts: Sequence[str], split: str, lines: Lines
) -> Dialogue:
    """Fill `units` with what words alone decide, again and again; many go on after an earlier talk.

    Half of what is told is any word of `texts`.
    """
    lines = replace(lines, words=all_words(tuple(texts)))
    scene = Scene(units, agent, user, False, rng, texts, split, lines)
    scene.hesitant = HESITATES if scene.chance(HESITANT) else 0.0
    if scene.chance(BEFORE):
        scene.dialogue.before, scene.facts = facts.earlier(texts, rng, lines)

    def name() -> str:
        known = scene.facts and scene.chance(RECALLED)
        return facts.recall_known(scene.facts, rng) if known else _draw(ASKED, 1, rng)[0]

    return _again_and_again(scene, name)


def plan_read(
    units: int, agent: Speak, user: Speak, rng: np.random.Generator, texts: Sequence[str], split: str, lines: Lines
) -> Dialogue:
    """Fill `units` with what nobody asked the agent to say: its repertoire, with any filling, and free sentences."""
    scene = Scene(units, agent, user, False, rng, texts, split, replace(lines, words=all_words(tuple(texts))))
    filled = tuple(sorted(label for label, template in AGENT.items() if slots(template) and not is_german(label)))
    fixed = tuple(sorted(label for label, template in AGENT.items() if not slots(template)))
    scene.time = scene.between(0.3, 0.8)
    misses = 0
    while misses < READ_MISSES and scene.time < scene.limit:
        label, text = "read", texts[int(rng.integers(len(texts)))]
        if scene.chance(OWN):
            label = pick(fixed if scene.chance(FIXED) else filled, rng)
            text = AGENT[label].format(**{name: scene.lines.filling(name, rng) for name in slots(AGENT[label])})
        kept = scene.add(Draft([scene.say("agent", label, scene.time, text)]), "reading")
        scene.time = scene.dialogue.turns[-1].end + scene.between(*BREATH) if kept else scene.time
        misses = 0 if kept else misses + 1
    return scene.finish()


@functools.cache
def all_words(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Each word of `texts` once."""
    return tuple(sorted({word for text in texts for word in facts.words_of(text)}))


def _again_and_again(scene: Scene, name: Callable[[], str]) -> Dialogue:
    scene.time = scene.between(0.4, 1.4)
    misses = 0
    while misses < MISSES and scene.time < scene.limit:
        misses = 0 if attempt(scene, name()) else misses + 1
    return scene.finish()


def plan_exactly(
    names: tuple[str, ...],
    tail: float,
    agent: Speak,
    user: Speak,
    camera: bool,
    rng: np.random.Generator,
    texts: Sequence[str] = (),
    split: str = "train",
    lines: Lines = KNOWN,
) -> Dialogue | None:
    """These scenarios in this order, then `tail` seconds in which nothing happens. None if one of them does not fit."""
    scene = Scene(LONGEST, agent, user, camera, rng, texts, split, lines)
    scene.time = scene.between(0.8, 1.4)
    if not all(attempt(scene, name) for name in names):
        return None
    last = max(event["end"] for event in scene.dialogue.events)
    scene.dialogue.units = math.ceil((last + tail) * 1000 / UNIT_MS)
    return scene.finish()


def plan_of(name: str) -> talk.Plan:
    """The function of a scenario."""
    return FRAME[name] if name in FRAME else (SCENARIOS | FREE)[name].plan


def attempt(scene: Scene, name: str) -> bool:
    """The scenario is next, if it fits the situation and the time that is left."""
    draft = plan_of(name)(scene, scene.time)
    return draft is not None and scene.add(draft, name)
