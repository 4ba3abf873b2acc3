"""Who says what and when: one seeded conversation on one clock.

`plan_dialogue`  (seed, split, index) -> `Dialogue` with every utterance, gap and interruption at exact times

All times are seconds from the start of the episode. The agent answers `GAP` seconds after the user's last word,
and gives way `YIELD` seconds after a barge-in.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from wan_streamer.errors import ConfigError
from wan_streamer.simulation.sentences import AGENT, USER
from wan_streamer.simulation.speech import Speech, TimedPhoneme, TimedWord
from wan_streamer.units import SAMPLE_RATE, UNIT_MS

GAP = (0.20, 0.60)  # from the user's last word to the agent's first, seconds; mostly near 0.32
YIELD = (0.16, 0.48)  # from the first sound of a barge-in to the agent's last, seconds
CUT_FADE = 0.03
UNITS = (75, 125)  # shortest and longest episode, units of 160 ms
SPLITS = ("train", "valid", "test")

REPLIES: dict[str, tuple[tuple[str, float], ...]] = {
    "greeting": (("hello", 0.6), ("hi", 0.25), ("welcome", 0.15)),
    "how": (("well", 0.7), ("fine_and_you", 0.3)),
    "fine": (("glad", 1.0),),
    "name": (("name", 0.75), ("name_nice", 0.25)),
    "three": (("three", 1.0),),
    "five": (("five", 1.0),),
    "ten": (("ten", 1.0),),
    "stop": (("okay", 0.5), ("stop", 0.5)),
    "hear": (("hear", 1.0),),
    "can": (("can", 1.0),),
    "thanks": (("welcome_thanks", 0.7), ("pleasure", 0.3)),
    "bye": (("bye", 0.7), ("bye_nice", 0.3)),
}
"""What the agent answers to each intent of the user, with probabilities."""

ASKS_BACK = frozenset({"hi", "fine_and_you"})  # replies after which the user says how they are
SMILES = frozenset({"hello", "hi", "welcome", "name_nice", "glad", "welcome_thanks", "pleasure", "bye", "bye_nice"})
MIDDLE = ("how", "name", "three", "five", "ten", "interrupt", "hear", "can", "thanks")
WEIGHTS = (1.2, 1.4, 0.8, 1.4, 1.2, 1.6, 0.8, 0.9, 0.9)


@dataclass(frozen=True)
class Turn:
    """One utterance on the clock of the episode.

    side    "user" or "agent"
    label   intent of the user or name of the agent's reply
    start   where `speech.audio` begins
    cut     where it is broken off, None if it is said to its end
    """

    side: str
    label: str
    speech: Speech
    start: float
    cut: float | None = None

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
        moved = [TimedWord(w.text, w.start + self.start, w.end + self.start) for w in self.speech.words]
        return [
            TimedWord(w.text, round(w.start, 4), round(min(w.end, self.end), 4)) for w in moved if w.start < self.end
        ]

    def phonemes(self) -> list[TimedPhoneme]:
        moved = [TimedPhoneme(p.symbol, p.start + self.start, p.end + self.start) for p in self.speech.phonemes]
        return [
            TimedPhoneme(p.symbol, round(p.start, 4), round(min(p.end, self.end), 4))
            for p in moved
            if p.start < self.end
        ]


@dataclass
class Dialogue:
    """A whole conversation.

    units      length in units of 160 ms
    scenarios  names in the order in which they happen
    events     {"type", "side", "start", "end", "label"}: speech, barge_in, yield, silence
    """

    units: int
    turns: list[Turn] = field(default_factory=list)
    scenarios: list[str] = field(default_factory=list)
    events: list[dict] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.units * UNIT_MS / 1000

    def spans(self, side: str) -> list[tuple[float, float]]:
        """When this side is heard."""
        return [(turn.onset, turn.end) for turn in self.turns if turn.side == side]


def episode_rng(seed: int, split: str, index: int, purpose: int) -> np.random.Generator:
    """The only source of randomness: independent for every seed, split, episode and purpose."""
    if split not in SPLITS:
        raise ConfigError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    return np.random.default_rng([seed, SPLITS.index(split), index, purpose])


def episode_units(seed: int, split: str, index: int) -> int:
    """The length of an episode without making it."""
    return int(episode_rng(seed, split, index, 0).integers(UNITS[0], UNITS[1] + 1))


Speak = Callable[[str, np.random.Generator], Speech]


def plan_dialogue(units: int, agent: Speak, user: Speak, rng: np.random.Generator) -> Dialogue:
    """Fill `units` with exchanges in random order, as many as fit."""
    planner = _Planner(Dialogue(units), agent, user, rng)
    planner.fill()
    return planner.dialogue


class _Planner:
    def __init__(self, dialogue: Dialogue, agent: Speak, user: Speak, rng: np.random.Generator) -> None:
        self.dialogue, self.agent, self.user, self.rng = dialogue, agent, user, rng
        self.time = float(rng.uniform(0.4, 1.4))

    def fill(self) -> None:
        rng = self.rng
        opening = rng.random()
        if opening < 0.2:  # the agent greets first
            reply = "welcome" if rng.random() < 0.7 else "hello"
            self._add([self._turn("agent", reply, self.time)], "agent_greets", pause=False)
        elif opening < 0.75:
            self._exchange("greeting")
        weights = np.array(WEIGHTS) / sum(WEIGHTS)
        order = [MIDDLE[i] for i in rng.choice(len(MIDDLE), len(MIDDLE), replace=False, p=weights)]
        says_bye = rng.random() < 0.3
        wanted = int(rng.integers(2, 4)) if says_bye else int(rng.integers(3, 6))
        misses = 0
        for intent in order:
            if len(self.dialogue.scenarios) >= wanted or misses >= 6:
                break
            added = self._interrupt() if intent == "interrupt" else self._exchange(intent)
            misses += not added
        if says_bye:
            self._exchange("bye")
        self._events()

    def _turn(self, side: str, label: str, onset: float, text: str = "") -> Turn:
        """A turn whose first sound comes at `onset`."""
        speak = self.agent if side == "agent" else self.user
        speech = speak(text or AGENT[label], self.rng)
        start = round((onset - speech.phonemes[0].start) * SAMPLE_RATE) / SAMPLE_RATE
        return Turn(side, label, speech, start)

    def _user_turn(self, intent: str, onset: float) -> Turn:
        wordings = USER[intent]
        return self._turn("user", intent, onset, wordings[int(self.rng.integers(len(wordings)))])

    def _reply(self, intent: str, after: float) -> Turn:
        names, chances = zip(*REPLIES[intent], strict=True)
        label = names[int(self.rng.choice(len(names), p=chances))]
        gap = float(np.clip(self.rng.normal(0.32, 0.08), *GAP))
        return self._turn("agent", label, after + gap)

    def _add(self, turns: list[Turn], scenario: str, pause: bool = True) -> bool:
        """Keep the turns if they end 0.4 s before the episode does; then move the clock on."""
        if turns[-1].end + 0.4 > self.dialogue.seconds:
            return False
        self.dialogue.turns += turns
        self.dialogue.scenarios.append(scenario)
        rest = self.rng.uniform(0.5, 1.5)
        if pause and self.rng.random() < 0.2:  # a stretch in which nothing happens
            rest = self.rng.uniform(2.0, 3.6)
        self.time = turns[-1].end + float(rest)
        return True

    def _exchange(self, intent: str) -> bool:
        asked = self._user_turn(intent, self.time)
        turns = [asked, self._reply(intent, asked.end)]
        back = turns[-1].label in ASKS_BACK and self.rng.random() < 0.85
        if back:
            answer = self._user_turn("fine", turns[-1].end + float(self.rng.uniform(0.3, 0.8)))
            longer = [*turns, answer, self._reply("fine", answer.end)]
            if self._add(longer, intent):
                return True
        return self._add(turns, intent)

    def _interrupt(self) -> bool:
        """The user asks for a count, then breaks in; the agent stops in mid word and says so."""
        rng = self.rng
        intent = "ten" if rng.random() < 0.75 else "five"
        asked = self._user_turn(intent, self.time)
        counting = self._reply(intent, asked.end)
        latest = min(3.2, counting.end - counting.onset - YIELD[1] - 0.1)
        breaks_in = self._user_turn("stop", counting.onset + float(rng.uniform(0.7, latest)))
        cut = round(breaks_in.onset + float(rng.uniform(*YIELD)), 4)
        counting = Turn("agent", counting.label, counting.speech, counting.start, cut)
        answer = self._reply("stop", max(breaks_in.end, cut))
        if not self._add([asked, counting, breaks_in, answer], "interrupt"):
            return False
        for kind, side in (("barge_in", "user"), ("yield", "agent")):
            start = breaks_in.onset if kind == "barge_in" else cut
            end = breaks_in.end if kind == "barge_in" else cut
            self.dialogue.events.append({"type": kind, "side": side, "start": start, "end": end, "label": "stop"})
        return True

    def _events(self) -> None:
        dialogue = self.dialogue
        for turn in dialogue.turns:
            dialogue.events.append(
                {"type": "speech", "side": turn.side, "start": turn.onset, "end": turn.end, "label": turn.label}
            )
        quiet_from = 0.0
        spans = sorted((turn.onset, turn.end) for turn in dialogue.turns)
        for start, end in [*spans, (dialogue.seconds, dialogue.seconds)]:
            if start - quiet_from >= 1.5:
                dialogue.events.append(
                    {"type": "silence", "side": "both", "start": round(quiet_from, 4), "end": start, "label": ""}
                )
            quiet_from = max(quiet_from, end)
        dialogue.events.sort(key=lambda event: (event["start"], event["type"], event["side"]))
