"""Who says and does what, and when: one seeded conversation on one clock.

`Dialogue`  a whole conversation: every utterance, gesture, sound and interruption at exact times
`Scene`     what the scenarios build on: utterances, gaps, facts told so far

All times are seconds from the start of the episode. The agent answers `GAP` seconds after the user's last word.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TypeVar

import numpy as np

from wan_streamer.data.shards import SIDES
from wan_streamer.errors import ConfigError
from wan_streamer.simulation.conversation.hesitation import SHORTEST, perform, plan_pieces
from wan_streamer.simulation.conversation.repertoire import AGENT, KNOWN, Lines, is_german, reply_label
from wan_streamer.simulation.face.motion import Gesture
from wan_streamer.simulation.face.person import Prop
from wan_streamer.simulation.voice.speech import Speech, TimedPhoneme, TimedWord
from wan_streamer.units import SAMPLE_RATE, UNIT_MS

Sound = TypeVar("Sound", TimedWord, TimedPhoneme)
GAP = (0.20, 0.60)  # from the user's last word to the agent's first, seconds; mostly near 0.32
QUICK_GAP = (0.20, 0.28)
CUT_FADE = 0.03
QUIET = 1.5  # seconds without speech that count as silence
UNITS = (125, 281)  # shortest and longest episode, units of 160 ms
SPLITS = ("train", "valid", "test")
SPOKEN = ("speech", "backchannel", "side_talk")  # kinds of turns; each is an event of the same name


@dataclass(frozen=True)
class Turn:
    """One utterance on the clock of the episode.

    side     "user" or "agent"
    label    intent of the user or name of the agent's reply
    start    where `speech.audio` begins
    cut      where it is broken off, None if it is said to its end
    kind     "speech", "backchannel" (it does not take the turn) or "side_talk" (not meant for the partner)
    gain_db  louder or softer than this voice's usual level
    pauses   (start, end) of silences in which the speaker is not done, seconds from the begin of `speech.audio`
    """

    side: str
    label: str
    speech: Speech
    start: float
    cut: float | None = None
    kind: str = "speech"
    gain_db: float = 0.0
    pauses: tuple[tuple[float, float], ...] = ()

    @property
    def onset(self) -> float:
        """First sound."""
        return round(self.start + self.speech.phonemes[0].start, 4)

    @property
    def end(self) -> float:
        """End of the last sound."""
        end = self.start + self.speech.phonemes[-1].end
        return round(end if self.cut is None else min(end, self.cut), 4)

    def words(self) -> list[TimedWord]:
        """Words on the clock; a word that is cut ends at the cut."""
        return self._on_clock(self.speech.words)

    def phonemes(self) -> list[TimedPhoneme]:
        return self._on_clock(self.speech.phonemes)

    def _on_clock(self, sounds: Sequence[Sound]) -> list[Sound]:
        moved = [replace(s, start=s.start + self.start, end=s.end + self.start) for s in sounds]
        return [
            replace(s, start=round(s.start, 4), end=round(min(s.end, self.end), 4)) for s in moved if s.start < self.end
        ]


@dataclass(frozen=True)
class Burst:
    """A sound on the user's side that is not speech: `kind` names one of `simulation.sounds`."""

    kind: str
    start: float
    end: float


@dataclass
class Draft:
    """What one scenario wants to happen.

    events  {"type", "side", "start", "end", "label"} beyond those that follow from the rest
    facts   what the agent will know afterwards
    until   end of the last thing that happens, beyond turns and gestures
    """

    turns: list[Turn] = field(default_factory=list)
    gestures: list[tuple[str, Gesture]] = field(default_factory=list)
    sounds: list[Burst] = field(default_factory=list)
    events: list[dict] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    until: float = 0.0

    @property
    def start(self) -> float:
        starts = [t.onset for t in self.turns] + [g.start for _, g in self.gestures] + [s.start for s in self.sounds]
        return min(starts + [e["start"] for e in self.events])

    @property
    def end(self) -> float:
        ends = [t.end for t in self.turns] + [g.end for _, g in self.gestures] + [s.end for s in self.sounds]
        return max([*ends, *(e["end"] for e in self.events), self.until])

    def event(self, kind: str, side: str, start: float, end: float, label: str = "") -> None:
        self.events.append({"type": kind, "side": side, "start": round(start, 4), "end": round(end, 4), "label": label})


@dataclass
class Dialogue:
    """A whole conversation.

    units      length in units of 160 ms
    scenarios  names in the order in which they happen
    events     {"type", "side", "start", "end", "label"}, see docs/simulation.md
    before     {"side", "text"} of short turns that were said minutes before, empty if nothing is known
    """

    units: int
    turns: list[Turn] = field(default_factory=list)
    gestures: list[tuple[str, Gesture]] = field(default_factory=list)
    sounds: list[Burst] = field(default_factory=list)
    scenarios: list[str] = field(default_factory=list)
    events: list[dict] = field(default_factory=list)
    before: list[dict[str, str]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.units * UNIT_MS / 1000

    def spans(self, side: str, kinds: tuple[str, ...] = SPOKEN) -> list[tuple[float, float]]:
        """When this side is heard."""
        return [(turn.onset, turn.end) for turn in self.turns if turn.side == side and turn.kind in kinds]

    def words(self) -> dict[str, list[dict]]:
        """Those of each side, as labels have them."""
        return {side: [asdict(w) for t in self.turns if t.side == side for w in t.words()] for side in SIDES}

    def phonemes(self) -> dict[str, list[dict]]:
        """Likewise."""
        return {side: [asdict(p) for t in self.turns if t.side == side for p in t.phonemes()] for side in SIDES}

    def gestures_of(self, side: str) -> list[Gesture]:
        return [gesture for whose, gesture in self.gestures if whose == side]


def episode_rng(seed: int, split: str, index: int, purpose: int) -> np.random.Generator:
    """The only source of randomness: independent for every seed, split, episode and purpose."""
    if split not in SPLITS:
        raise ConfigError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    return np.random.default_rng([seed, SPLITS.index(split), index, purpose])


def episode_units(seed: int, split: str, index: int) -> int:
    """The length of an episode without making it."""
    return int(episode_rng(seed, split, index, 0).integers(UNITS[0], UNITS[1] + 1))


def split_of(scenarios: list[str]) -> str:
    """The one split in which this sequence of scenarios may happen: six of eight in train, one each in valid, test."""
    return (("train",) * 6 + ("valid", "test"))[zlib.crc32("|".join(scenarios).encode()) % 8]


Speak = Callable[[str, np.random.Generator, str], Speech]
"""(text, rng, language "en" or "de") -> the utterance."""


class Scene:
    """The state of a conversation that is being planned.

    time      where the next scenario may begin
    limit     when the last scenario has to be over
    camera    whether the user can be seen
    texts     sentences that the user may say freely, in an order in which neighbours belong together
    split     whose orders the user may say
    lines     wordings and fillings of the user
    facts     what the user has told so far
    hesitant  share of the user's long turns with a pause inside
    """

    def __init__(
        self,
        units: int,
        agent: Speak,
        user: Speak,
        camera: bool,
        rng: np.random.Generator,
        texts: Sequence[str] = (),
        split: str = "train",
        lines: Lines = KNOWN,
    ) -> None:
        self.dialogue = Dialogue(units)
        self.voices = {"agent": agent, "user": user}
        self.camera, self.rng = camera, rng
        self.texts, self.split, self.lines = texts, split, lines
        self.facts: dict[str, str] = {}
        self.hesitant = 0.0
        self.time, self.limit = 0.0, self.dialogue.seconds

    # ------------------------------------------------------------ utterances

    def say(self, side: str, label: str, onset: float, text: str, kind: str = "speech", gain_db: float = 0.0) -> Turn:
        """A turn whose first sound comes at `onset`."""
        speech = self.voices[side](text, self.rng, "de" if is_german(label) else "en")
        return self.place(side, label, onset, speech, kind, gain_db)

    def place(
        self,
        side: str,
        label: str,
        onset: float,
        speech: Speech,
        kind: str = "speech",
        gain_db: float = 0.0,
        pauses: tuple[tuple[float, float], ...] = (),
    ) -> Turn:
        """An utterance that exists already, with its first sound at `onset`."""
        start = round((onset - speech.phonemes[0].start) * SAMPLE_RATE) / SAMPLE_RATE
        return Turn(side, label, speech, start, None, kind, gain_db, pauses)

    def user(self, intent: str, onset: float, kind: str = "speech", steady: bool = False, **values: str) -> Turn:
        """One of the intent's wordings; `steady`: without a pause inside."""
        text = self.lines.wording(intent, self.rng, **values)
        if steady or kind != "speech" or is_german(intent):
            return self.say("user", intent, onset, text, kind)
        return self.utter(intent, onset, text)

    def utter(self, label: str, onset: float, *sentences: str) -> Turn:
        """Sentences of the user, sometimes with pauses inside; the longer the turn, the likelier."""
        words = sum(len(text.split()) for text in sentences)
        pauses = 0
        if words >= SHORTEST and self.chance(self.hesitant * min(1.5, words / 8)):
            pauses = 1 + self.chance(0.4)
        pieces = plan_pieces(sentences, pauses, self.rng)
        speech, silences = perform(pieces, lambda text: self.voices["user"](text, self.rng, "en"))
        return self.place("user", label, onset, speech, pauses=silences)

    def agent(self, label: str, onset: float, kind: str = "speech", **values: str) -> Turn:
        return self.say("agent", label, onset, AGENT[label].format(**values), kind)

    def reply(self, intent: str, after: float, quick: bool = False, **values: str) -> Turn:
        """The agent's answer to an intent, `GAP` seconds after `after`."""
        return self.agent(reply_label(intent, self.rng), after + self.gap(quick), **values)

    def gap(self, quick: bool = False) -> float:
        if quick:
            return self.between(*QUICK_GAP)
        return float(np.clip(self.rng.normal(0.32, 0.08), *GAP))

    # ------------------------------------------------------------ chance

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    # ------------------------------------------------------------ what often happens

    def exchange(self, intent: str, at: float, label: str = "") -> Draft:
        """The user asks or says something, the agent answers."""
        asked = self.user(intent, at)
        return Draft([asked, self.reply(label or intent, asked.end)])

    def wave(self, draft: Draft, side: str, start: float) -> None:
        start = max(0.0, start)
        draft.gestures.append((side, Gesture("wave", start, start + self.between(1.5, 2.0))))

    def quiet_since(self) -> float:
        """When anything was last said or heard."""
        dialogue = self.dialogue
        return max([0.0, *(turn.end for turn in dialogue.turns), *(sound.end for sound in dialogue.sounds)])

    def unanswered(self) -> bool:
        """Whether the agent has spoken into a silence and nobody has answered: then it does not speak again."""
        dialogue = self.dialogue
        asked = [e["start"] for e in dialogue.events if e["type"] == "remark" and e["label"] in ("call", "silence")]
        return bool(asked) and not any(t.side == "user" and t.onset > asked[-1] for t in dialogue.turns)

    def show(self, draft: Draft, prop: Prop, start: float, end: float) -> None:
        draft.gestures.append(("user", Gesture("show", start, end, prop)))

    # ------------------------------------------------------------ the clock

    def add(self, draft: Draft, name: str) -> bool:
        """Keep a draft if it ends 0.4 s before `limit`; then move the clock on."""
        if draft.end + 0.4 > self.limit:
            return False
        dialogue = self.dialogue
        dialogue.turns += draft.turns
        dialogue.gestures += draft.gestures
        dialogue.sounds += draft.sounds
        dialogue.scenarios.append(name)
        draft.event("scenario", "both", draft.start, draft.end, name)
        for side, gesture in draft.gestures:
            label = "" if gesture.prop is None else f"{gesture.prop.colour} {gesture.prop.name}"
            draft.event(gesture.kind, side, gesture.start, gesture.end, label)
        for sound in draft.sounds:
            draft.event("noise", "user", sound.start, sound.end, sound.kind)
        dialogue.events += draft.events
        self.facts |= draft.facts
        rest = self.between(2.0, 3.0) if self.chance(0.15) else self.between(0.5, 1.5)
        self.time = draft.end + rest
        return True

    def finish(self) -> Dialogue:
        """Add the events that follow from the turns, and sort."""
        dialogue = self.dialogue
        dialogue.turns.sort(key=lambda turn: turn.onset)
        for turn in dialogue.turns:
            dialogue.events.append(
                {"type": turn.kind, "side": turn.side, "start": turn.onset, "end": turn.end, "label": turn.label}
            )
            for first, last in turn.pauses:
                start, end = round(turn.start + first, 4), round(turn.start + last, 4)
                dialogue.events.append({"type": "pause", "side": turn.side, "start": start, "end": end, "label": ""})
        quiet_from = 0.0
        for start, end in [*sorted((t.onset, t.end) for t in dialogue.turns), (dialogue.seconds, dialogue.seconds)]:
            if start - quiet_from >= QUIET:
                at = round(quiet_from, 4)
                dialogue.events.append({"type": "silence", "side": "both", "start": at, "end": start, "label": ""})
            quiet_from = max(quiet_from, end)
        dialogue.events.sort(key=lambda event: (event["start"], event["type"], event["side"]))
        return dialogue
