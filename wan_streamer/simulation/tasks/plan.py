"""What the independent tasks are built on.

`Plan`   what happens in one task, on one clock          `Look`   a person in one of the two films
`Stage`  who is there to act it out: voices and chance   `typed_until`, `written_words`   how text takes time

All times are seconds from the start of the episode.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Protocol

import numpy as np

from wan_streamer.simulation.conversation.chats import chat_sentences
from wan_streamer.simulation.conversation.dialogue import Burst, Turn
from wan_streamer.simulation.conversation.repertoire import OBJECTS, SHAPES, pick
from wan_streamer.simulation.face.motion import Gesture
from wan_streamer.simulation.face.person import COLOURS, DIGITS, FaceIdentity, Prop
from wan_streamer.simulation.voice.natural import NaturalVoice, NaturalVoices, belongs
from wan_streamer.simulation.voice.speech import Speech, TimedPhoneme, TimedWord
from wan_streamer.simulation.voice.users import UserVoice
from wan_streamer.units import SAMPLE_RATE, UNIT_S

DESCRIBED, FREE = 6, 4  # characters of a prompt that arrive with every unit: words of the world, anybody's words
WRITTEN = 3.2  # words per second of an answer without voice
GAP = (0.32, 0.64)  # from the end of a prompt to the answer, seconds; more than the unit by which text leads
CAMERA = 0.5  # share of the tasks that need no picture of the user and have one
NATURAL_TEXTS = 400  # sentences that natural voices read; each voice has its own `NATURAL_SHARE` of them
NATURAL_SHARE = 0.1
FEMALE = frozenset(
    {"f1", "f2", "f3", "f4", "f5", "Alicia", "Andrea", "Annie", "anika", "aunty", "belinda", "grandma", "linda",
     "steph"}
)  # fmt: skip
"""Speakers of espeak-ng that are women; the others are men."""


class AnyVoice(Protocol):
    """The agent, an espeak-ng speaker or a natural one."""

    def speak(self, text: str, rng: np.random.Generator) -> Speech: ...


@dataclass(frozen=True)
class Look:
    """A person in one of the films.

    gesture   what they do, None for nothing
    phonemes  what their mouth says beyond the turns of their side
    still     one picture, held
    start     when the film cuts to them; the begin of a unit
    """

    identity: FaceIdentity
    gesture: Gesture | None = None
    phonemes: tuple[TimedPhoneme, ...] = ()
    still: bool = False
    start: float = 0.0


@dataclass
class Plan:
    """One task.

    targets  streams of the agent that are supervised: response, transcript, audio, video
    until    end of the last thing that happens
    sounds   (side, sound)
    prompt   what the user types at `typed_at`, "" for nothing
    answer   what the agent writes from `answer_at` on, "" for nothing
    user     the user's picture, None if the camera is off
    shown    whom the agent's film shows instead of the agent
    degrade  whether the user's microphone and line may be bad
    voices   labels of the voices that are heard, by side
    """

    targets: tuple[str, ...]
    until: float = 0.0
    turns: list[Turn] = field(default_factory=list)
    sounds: list[tuple[str, Burst]] = field(default_factory=list)
    prompt: str = ""
    typed_at: float = 0.0
    answer: str = ""
    answer_at: float = 0.0
    user: Look | None = None
    shown: Look | None = None
    degrade: bool = False
    voices: dict[str, dict] = field(default_factory=dict)

    def ask(self, prompt: str, at: float, free: str = "") -> float:
        """The user types `prompt` and then `free`, which may hold any words; returns when all of it has arrived."""
        self.prompt, self.typed_at = prompt + free, round(at, 4)
        return typed_until(prompt, at, free)

    def write(self, answer: str, at: float) -> None:
        """The agent answers without voice."""
        self.answer, self.answer_at = answer, round(at, 4)
        self.until = max(self.until, written_words(answer, at)[-1].end)


def typed_until(text: str, at: float, free: str = "") -> float:
    """When a text that is sent at `at` has arrived: two tokens a unit, and rare words have more tokens."""
    return at + UNIT_S * (1 + math.ceil(len(text) / DESCRIBED + len(free) / FREE))


def written_words(text: str, at: float) -> list[TimedWord]:
    """The words of a written answer, spread over time."""
    step = 1 / WRITTEN
    return [TimedWord(w, round(at + i * step, 4), round(at + (i + 1) * step, 4)) for i, w in enumerate(text.split())]


@functools.cache
def short_sentences(split: str, longest: int, shortest: int = 0) -> tuple[str, ...]:
    """All chat sentences of a split with so many characters."""
    return tuple(text for text in chat_sentences(split) if shortest <= len(text) <= longest)


@functools.cache
def some_sentences(split: str, count: int, longest: int) -> tuple[str, ...]:
    """A fixed choice of `count` chat sentences of at most `longest` characters; the splits share none."""
    known = short_sentences(split, longest)
    return tuple(known[i] for i in np.random.default_rng(0).permutation(len(known))[:count])


class Stage:
    """The voices and the chance that one task is made with.

    agent    the agent's voice
    natural  voices of other people beside espeak-ng, None if there are none
    """

    def __init__(self, rng: np.random.Generator, split: str, agent: AnyVoice, natural: NaturalVoices | None) -> None:
        self.rng, self.split, self.agent, self.natural = rng, split, agent, natural

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def begin(self) -> float:
        """When the first thing happens."""
        return self.between(0.1, 0.6)

    def gap(self) -> float:
        return self.between(*GAP)

    # ------------------------------------------------------------ people

    def person(self, female: bool | None = None) -> FaceIdentity:
        """Somebody of this split; a woman or a man, if it matters."""
        while True:
            identity = FaceIdentity.sample(self.rng, self.split)
            if female is None or identity.feminine == female:
                return identity

    def onlooker(self) -> Look | None:
        """The user's picture in a task that does not need it."""
        return Look(self.person()) if self.chance(CAMERA) else None

    def thing(self) -> Prop:
        kind = pick(("shape", "object", "digit"), self.rng)
        names = {"shape": SHAPES, "object": OBJECTS, "digit": DIGITS}[kind]
        return Prop(kind, pick(names, self.rng), pick(COLOURS, self.rng))

    def gesture(self, kind: str, start: float, end: float) -> Gesture:
        side = "left" if self.chance(0.5) else "right"
        return Gesture(kind, start, end, self.thing() if kind == "show" else None, side)

    # ------------------------------------------------------------ voices

    def robot(self) -> tuple[UserVoice, dict, bool]:
        """An espeak-ng speaker, its labels, and whether it is a woman's voice."""
        voice = UserVoice.sample(self.rng, self.split)
        return voice, asdict(voice), voice.variant in FEMALE

    def human(self, natural: NaturalVoices) -> tuple[NaturalVoice, dict, bool]:
        """The same for a natural speaker."""
        voice = natural.sample(self.rng, self.split)
        return voice, voice.labels(), voice.name[1] == "f"

    def human_sentence(self, voice: NaturalVoice, longest: int) -> str:
        """One of the sentences that this voice reads. Few, since natural speech is slow to make and cached."""
        texts = some_sentences(self.split, NATURAL_TEXTS, longest)
        own = tuple(text for text in texts if belongs(voice.name, text, NATURAL_SHARE))
        return pick(own or texts, self.rng)

    def say(self, side: str, label: str, onset: float, voice: AnyVoice, text: str) -> Turn:
        """A turn whose first sound comes at `onset`."""
        speech = voice.speak(text, self.rng)
        start = round((onset - speech.phonemes[0].start) * SAMPLE_RATE) / SAMPLE_RATE
        return Turn(side, label, speech, max(0.0, start))


Make = Callable[[Stage], Plan]
