"""Plans of trials that the simulated world does not have: long ones.

`plan_recall`  facts are told, talk goes on, and each is asked for when it is so old
`plan_quiet`   nobody says anything
"""

from collections.abc import Sequence

import numpy as np

from wan_streamer.simulation.conversation.dialogue import Dialogue, Scene, Speak
from wan_streamer.simulation.conversation.facts import FACTS, recalls, tells
from wan_streamer.simulation.conversation.repertoire import Lines
from wan_streamer.simulation.conversation.scenarios import attempt
from wan_streamer.units import UNIT_MS

AGES = (300.0, 300.0, 60.0, 60.0, 20.0, 20.0)
"""Of the facts of one conversation, in the order in which they are told: seconds until each is asked for."""
BETWEEN = ("free_talk", "free_talk", "small_talk", "knowledge", "agent_skills", "arithmetic", "counting", "order")
REST = (1.0, 12.0)  # seconds of silence between two of them
EXCHANGE = 9.0  # seconds kept free before a fact is asked for
TAIL = 2.4


def plan_recall(
    agent: Speak, user: Speak, camera: bool, rng: np.random.Generator, texts: Sequence[str], lines: Lines
) -> Dialogue | None:
    """One conversation in which facts of different kinds are told, and asked for after `AGES`."""
    scene = Scene(round((AGES[0] + 60) * 1000 / UNIT_MS), agent, user, camera, rng, texts, "test", lines)
    scene.time = scene.between(0.8, 1.4)
    attempt(scene, "greeting")
    due: list[tuple[float, str]] = []
    for kind, age in zip(rng.permutation(sorted(FACTS)).tolist(), AGES, strict=False):
        told = tells(kind, "")(scene, scene.time)
        if told is None or not scene.add(told, f"tells_{kind}"):
            return None
        due.append((scene.dialogue.turns[-2].end + age, kind))
    for at, kind in sorted(due):
        while scene.time < at - EXCHANGE:
            attempt(scene, BETWEEN[int(rng.integers(len(BETWEEN)))])
            scene.time = min(scene.time + scene.between(*REST), max(scene.time, at - 1))
        asked = recalls(kind, "")(scene, max(scene.time, at))
        if asked is None or not scene.add(asked, f"recalls_{kind}"):
            return None
    return _cut(scene, TAIL)


def plan_quiet(seconds: float, agent: Speak, user: Speak, camera: bool, rng: np.random.Generator) -> Dialogue:
    """A silent user: the agent says hello, and nothing more until it is spoken to."""
    scene = Scene(round(seconds * 1000 / UNIT_MS), agent, user, camera, rng)
    attempt(scene, "agent_greets")
    return scene.finish()


def _cut(scene: Scene, tail: float) -> Dialogue:
    last = max(event["end"] for event in scene.dialogue.events)
    scene.dialogue.units = int(np.ceil((last + tail) * 1000 / UNIT_MS))
    return scene.finish()
