"""Tasks of generation: the user types what is wanted, and the agent's sound or picture becomes it.

`tts`                                "Say: ..." -> the agent's own voice and face
`generate_image`, `generate_video`   a description -> the agent's film
`generate_audio`                     a description -> the agent's sound
`generate_av`                        who says what -> film and sound of somebody else, in step
"""

import functools
import math
from dataclasses import replace

from wan_streamer.simulation.conversation.dialogue import Burst
from wan_streamer.simulation.conversation.repertoire import agent_texts, is_german, pick
from wan_streamer.simulation.sound.effects import SOUNDS
from wan_streamer.simulation.tasks.describe import HEARD, STILL_GESTURES, person, sentence
from wan_streamer.simulation.tasks.plan import AnyVoice, Look, Plan, Stage, short_sentences, some_sentences
from wan_streamer.simulation.tasks.see import HELD, film_verb, moving, still, still_sentence
from wan_streamer.units import UNIT_S

SAY, PICTURE, FILM, SOUND = "Say: ", "Picture: ", "Film: ", "Sound: "
MOST = 2  # things that a prompt says about a person; a caption says more, but a prompt has to arrive before the film
LONGEST_SAID = 40  # characters of a sentence that the agent says
TTS_SENTENCES = {"train": 300, "valid": 30, "test": 30}
"""How many chat sentences of each split the agent says beyond its repertoire; few, so that its cache stays small."""
REPERTOIRE_SHARE = 0.5
LONGEST_AV = 28  # characters of a sentence that somebody else says
NATURAL_AV = 0.5  # share of natural voices among them, if there are any


@functools.cache
def tts_sentences(split: str) -> tuple[str, ...]:
    """The chat sentences that the agent says."""
    return some_sentences(split, TTS_SENTENCES[split], LONGEST_SAID)


@functools.cache
def own_sentences() -> tuple[str, ...]:
    """The short English sentences of the agent's repertoire."""
    return tuple(t for t, label in agent_texts().items() if len(t) <= LONGEST_SAID and not is_german(label))


def _unit(seconds: float) -> float:
    """The begin of the next unit: pictures change only there."""
    return round(math.ceil(seconds / UNIT_S - 1e-6) * UNIT_S, 4)


def tts(stage: Stage) -> Plan:
    """The agent says what was typed."""
    own = stage.chance(REPERTOIRE_SHARE)
    text = pick(own_sentences() if own else tts_sentences(stage.split), stage.rng)
    plan = Plan(("response", "audio", "video"), user=stage.onlooker())
    turn = stage.say("agent", "tts", plan.ask(SAY, stage.begin(), text) + stage.gap(), stage.agent, text)
    plan.turns, plan.until = [turn], turn.end
    return plan


def generate_image(stage: Stage) -> Plan:
    """The agent's film becomes a still of somebody else, mostly with something in the hand."""
    kind = "show" if stage.chance(0.7) else pick(STILL_GESTURES, stage.rng)
    plan, look = Plan(("video",), user=stage.onlooker()), still(stage, kind)
    text = PICTURE + still_sentence(look, MOST)
    at = _unit(plan.ask(text, stage.begin()) + stage.gap())
    moved = look.gesture and replace(look.gesture, start=at + HELD[0], end=at + HELD[1])
    plan.shown, plan.until = replace(look, gesture=moved, start=at), at + stage.between(1.4, 2.2)
    return plan


def generate_audio(stage: Stage) -> Plan:
    """The agent's sound becomes what was described."""
    kind = pick(tuple(SOUNDS), stage.rng)
    plan = Plan(("audio",), user=stage.onlooker())
    start = plan.ask(SOUND + sentence(HEARD[kind]), stage.begin()) + stage.gap()
    plan.until = start + SOUNDS[kind].seconds
    plan.sounds.append(("agent", Burst(kind, start, plan.until)))
    return plan


def generate_video(stage: Stage) -> Plan:
    """The agent's film shows somebody else who does something or talks without a sound."""
    plan, (look, end) = Plan(("video",), user=stage.onlooker()), moving(stage, 0.0)
    text = FILM + sentence(person(look.identity, MOST), film_verb(look))
    cut = _unit(plan.ask(text, stage.begin()) + stage.gap())
    wait = cut + stage.between(0.1, 0.3)
    gesture = look.gesture and replace(look.gesture, start=wait, end=wait + end)
    phonemes = tuple(replace(p, start=p.start + wait, end=p.end + wait) for p in look.phonemes)
    plan.shown, plan.until = Look(look.identity, gesture, phonemes, start=cut), wait + end
    return plan


def generate_av(stage: Stage) -> Plan:
    """The agent's film and sound show somebody else who says what was typed."""
    voice: AnyVoice
    if stage.natural is not None and stage.chance(NATURAL_AV):
        human, labels, female = stage.human(stage.natural)
        voice, text = human, stage.human_sentence(human, LONGEST_AV)
    else:
        voice, labels, female = stage.robot()
        text = pick(short_sentences(stage.split, LONGEST_AV), stage.rng)
    identity = stage.person(female)
    plan = Plan(("audio", "video"), user=stage.onlooker())
    who = sentence(person(identity, most=1)).removesuffix(".")
    asked = plan.ask(f"{FILM}{who} says: ", stage.begin(), text)
    cut = _unit(asked + stage.gap())
    turn = stage.say("agent", "generate_av", cut + stage.between(0.1, 0.3), voice, text)
    plan.turns, plan.until = [turn], turn.end
    plan.shown, plan.voices["agent"] = Look(identity, start=cut), labels
    return plan
