"""Tasks of understanding: the user is heard, seen or read, and the agent writes.

`asr`, `asr_natural`                              speech -> transcript
`caption_image`, `caption_audio`, `caption_video`  a question about what is seen or heard -> a written answer
`dialogue`                                        a typed message -> a written answer
"""

from wan_streamer.errors import ConfigError
from wan_streamer.simulation.conversation.chats import chat_pairs
from wan_streamer.simulation.conversation.dialogue import Burst
from wan_streamer.simulation.conversation.repertoire import any_wording, pick
from wan_streamer.simulation.face.motion import RAISE
from wan_streamer.simulation.sound.effects import SOUNDS
from wan_streamer.simulation.tasks.describe import (
    FILM_GESTURES,
    HEARD,
    STILL_GESTURES,
    doing,
    held_still,
    person,
    sentence,
)
from wan_streamer.simulation.tasks.plan import AnyVoice, Look, Plan, Stage, short_sentences
from wan_streamer.simulation.voice.speech import TimedPhoneme

SEE, HEAR, WATCH = "What do you see?", "What do you hear?", "What happens?"
LONGEST_HEARD = 64  # characters of a sentence that is spoken to the agent
LONGEST_MESSAGE, LONGEST_ANSWER = 44, 60
HELD = (-2.0, 20.0)  # a gesture that is held still has begun long ago, and does not end, seconds
CHAT_SHARE = 0.7  # of the sentences that are heard; the rest are wordings of the conversations
TRANSCRIPT = 0.48  # seconds in which the last words of a transcript arrive


def _heard(stage: Stage, voice: AnyVoice, labels: dict, text: str) -> Plan:
    turn = stage.say("user", "asr", stage.begin(), voice, text)
    plan = Plan(("transcript",), turn.end + TRANSCRIPT, [turn], user=stage.onlooker(), degrade=True)
    plan.voices["user"] = labels
    return plan


def asr(stage: Stage) -> Plan:
    """The user says something."""
    voice, labels, _ = stage.robot()
    chats = short_sentences(stage.split, LONGEST_HEARD)
    text = pick(chats, stage.rng) if stage.chance(CHAT_SHARE) else any_wording(stage.rng)
    return _heard(stage, voice, labels, text)


def asr_natural(stage: Stage) -> Plan:
    """The user says something with a natural voice. Raises ConfigError if there is none."""
    if stage.natural is None:
        raise ConfigError("asr_natural: expected natural voices, got none; see scripts/fetch_kokoro.sh")
    voice, labels, _ = stage.human(stage.natural)
    return _heard(stage, voice, labels, stage.human_sentence(voice, LONGEST_HEARD))


def caption_image(stage: Stage) -> Plan:
    """The user's picture is a still; who is that, and what is in the hand?"""
    kind = "show" if stage.chance(0.5) else pick(STILL_GESTURES, stage.rng)
    look = still(stage, kind)
    plan = Plan(("response",), user=look)
    asked = plan.ask(SEE, stage.begin())
    plan.write(still_sentence(look), asked + stage.gap())
    return plan


def still(stage: Stage, kind: str) -> Look:
    """Somebody in the middle of one of `STILL_GESTURES`."""
    return Look(stage.person(), stage.gesture(kind, *HELD) if kind else None, still=True)


def still_sentence(look: Look, most: int = 3) -> str:
    """What is to be said about a still; `most` as in `describe.person`."""
    gesture = look.gesture
    does = held_still(gesture.kind, gesture.prop, gesture.side) if gesture else held_still("")
    return sentence(person(look.identity, most), does)


def caption_audio(stage: Stage) -> Plan:
    """A sound, a voice or nothing; what was it?"""
    kind = pick((*SOUNDS, "speech", "speech", ""), stage.rng)
    plan, start = Plan(("response",), user=stage.onlooker()), stage.between(0.3, 1.0)
    if kind == "speech":
        voice, plan.voices["user"], _ = stage.robot()
        text = pick(short_sentences(stage.split, 30), stage.rng)
        plan.turns.append(stage.say("user", "caption_audio", start, voice, text))
        end = plan.turns[0].end
    elif kind:
        end = start + SOUNDS[kind].seconds
        plan.sounds.append(("user", Burst(kind, start, end)))
    else:
        end = start + stage.between(0.5, 1.5)
    asked = plan.ask(HEAR, end + stage.between(0.1, 0.4))
    plan.write(sentence(HEARD[kind]), asked + stage.gap())
    return plan


def caption_video(stage: Stage) -> Plan:
    """The user does something; what was it?"""
    look, end = moving(stage, stage.between(0.2, 0.6))
    plan = Plan(("response",), user=look)
    asked = plan.ask(WATCH, end - stage.between(0.0, 0.3))
    plan.write(sentence("the person", film_verb(look)), asked + stage.gap())
    return plan


def moving(stage: Stage, start: float) -> tuple[Look, float]:
    """Somebody who does one of `FILM_GESTURES` from `start` on, and when it is done."""
    kind = pick(FILM_GESTURES, stage.rng)
    end = start + stage.between(1.5, 2.2) + (RAISE if kind == "show" else 0.0)
    if kind == "talk":
        return Look(stage.person(), phonemes=_silent_talk(stage, start)), end
    gesture = stage.gesture(kind, start, end) if kind else None
    return Look(stage.person(), gesture), end


def _silent_talk(stage: Stage, start: float) -> tuple[TimedPhoneme, ...]:
    """What a mouth does for a short sentence."""
    voice, _, _ = stage.robot()
    text = pick(short_sentences(stage.split, 32, shortest=24), stage.rng)
    return tuple(stage.say("user", "", start, voice, text).phonemes())


def film_verb(look: Look) -> str:
    """What is to be said about a film."""
    if look.phonemes:
        return doing("talk")
    gesture = look.gesture
    return doing(gesture.kind, gesture.prop, gesture.side) if gesture else doing("")


def dialogue(stage: Stage) -> Plan:
    """A message and its answer, both in writing."""
    pairs = [(a, b) for a, b in chat_pairs(stage.split) if len(a) <= LONGEST_MESSAGE and len(b) <= LONGEST_ANSWER]
    message, answer = pairs[int(stage.rng.integers(len(pairs)))]
    plan = Plan(("response",), user=stage.onlooker())
    plan.write(answer, plan.ask("", stage.begin(), message) + stage.gap())
    return plan
