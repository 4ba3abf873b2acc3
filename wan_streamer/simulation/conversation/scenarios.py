"""The table of everything that can happen between a user and the agent, and how a conversation is put together.

`SCENARIOS`      name -> how it is planned and how often it is drawn
`plan_dialogue`  as many scenarios as fit, in random order
`plan_exactly`   these scenarios and nothing else, as long as they take
"""

import math
from dataclasses import dataclass

import numpy as np

from wan_streamer.simulation.conversation import overlap as overlap
from wan_streamer.simulation.conversation import seen as seen
from wan_streamer.simulation.conversation import talk as talk
from wan_streamer.simulation.conversation.dialogue import Dialogue, Scene, Speak
from wan_streamer.units import UNIT_MS

LONGEST = 1000  # units that exactly planned scenarios may take
MISSES = 8  # scenarios in a row that do not fit before the conversation ends


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
    "tells_name": Scenario(talk.tells_name, 0.8),
    "recalls_name": Scenario(talk.recalls_name, 0.7),
    "tells_colour": Scenario(talk.tells_colour, 0.8),
    "recalls_colour": Scenario(talk.recalls_colour, 0.7),
    "pause_in_turn": Scenario(talk.pause_in_turn, 1.0),
    "fast_handoff": Scenario(talk.fast_handoff, 0.8),
    "long_story": Scenario(talk.long_story, 1.0),
    "typed": Scenario(talk.typed, 0.8),
    "german": Scenario(talk.german, 0.5),
    "barge_in_stop": Scenario(overlap.barge_in_stop, 1.2),
    "barge_in_topic": Scenario(overlap.barge_in_topic, 1.0),
    "barge_in_correction": Scenario(overlap.barge_in_correction, 0.7),
    "double_barge_in": Scenario(overlap.double_barge_in, 0.5),
    "user_backchannel": Scenario(overlap.user_backchannel, 1.0),
    "side_talk": Scenario(overlap.side_talk, 0.7),
    "noise": Scenario(overlap.noise, 0.8),
    "held_colour": Scenario(seen.held_colour, 1.0),
    "held_thing": Scenario(seen.held_thing, 1.0),
    "held_number": Scenario(seen.held_number, 0.7),
    "empty_hand": Scenario(seen.empty_hand, 0.4),
    "shows_something": Scenario(seen.shows_something, 0.8),
    "waves": Scenario(seen.waves, 0.6),
    "smiles": Scenario(seen.smiles, 0.5),
    "thumb_up": Scenario(seen.thumb_up, 0.5),
    "decoy": Scenario(seen.decoy, 0.8),
    "long_silence": Scenario(seen.long_silence, 0.4),
}
"""What may happen in the middle. Openings (`greeting`, `agent_greets`) and `goodbye` have their place."""

OPENERS = ("small_talk", "agent_name", "agent_skills", "counting", "knowledge", "tells_name", "arithmetic")
FRAME = {"greeting": talk.greeting, "agent_greets": seen.agent_greets, "goodbye": talk.goodbye}
SCENARIO_NAMES = (*FRAME, *SCENARIOS)


def plan_dialogue(units: int, agent: Speak, user: Speak, camera: bool, rng: np.random.Generator) -> Dialogue:
    """Fill `units` with scenarios: an opening, then a weighted draw without repetition, then perhaps a goodbye.

    agent, user  what speaks for each side;  camera  whether the user can be seen
    """
    scene = Scene(units, agent, user, camera, rng)
    opening = rng.random()
    if opening < 0.15:
        _try(scene, "agent_greets")
    else:
        scene.time = scene.between(0.4, 1.4)  # before the agent would speak first
        if opening < 0.75:
            _try(scene, "greeting")
        else:
            _try(scene, str(rng.choice(OPENERS)))
    weights = np.array([s.weight for s in SCENARIOS.values()])
    order = rng.choice(len(SCENARIOS), len(SCENARIOS), replace=False, p=weights / weights.sum())
    says_bye, misses = scene.chance(0.3), 0
    names = _memory_in_order([list(SCENARIOS)[i] for i in order])
    for name in [name for name in names if name not in scene.dialogue.scenarios]:
        if misses == MISSES or (says_bye and scene.time > scene.dialogue.seconds - 5):
            break
        misses = 0 if _try(scene, name) else misses + 1
    if says_bye:
        _try(scene, "goodbye")
    return scene.finish()


def plan_exactly(
    names: tuple[str, ...], tail: float, agent: Speak, user: Speak, camera: bool, rng: np.random.Generator
) -> Dialogue | None:
    """These scenarios in this order, then `tail` seconds in which nothing happens. None if one of them does not fit."""
    scene = Scene(LONGEST, agent, user, camera, rng)
    scene.time = scene.between(0.8, 1.4)
    if not all(_try(scene, name) for name in names):
        return None
    last = max(event["end"] for event in scene.dialogue.events)
    scene.dialogue.units = math.ceil((last + tail) * 1000 / UNIT_MS)
    return scene.finish()


def _memory_in_order(names: list[str]) -> list[str]:
    """Three times in four what is recalled was told before: move the question behind the fact, close enough to fit."""
    for fact in ("name", "colour"):
        told, asked = names.index(f"tells_{fact}"), names.index(f"recalls_{fact}")
        if asked < told and (asked + told) % 4:
            names[asked], names[told] = names[told], names[asked]
        elif asked > told + 2:
            names.insert(told + 2, names.pop(asked))
    return names


def _try(scene: Scene, name: str) -> bool:
    plan = FRAME[name] if name in FRAME else SCENARIOS[name].plan
    draft = plan(scene, scene.time)
    return draft is not None and scene.add(draft, name)
