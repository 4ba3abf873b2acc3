"""What to say about anything: a chat language model writes the agent's answers, word by word.

`Persona`   who the agent is to the language model: a sentence, and exchanges to go on from;   `load_persona`
`Model`     what computes
`Chat`      it, its tokenizer and the agent's;   `next`: the token that comes next in an answer;   `weigh`: how likely
            it is that the user says something
`Reply`     what a session has read and means to say
`worded`    logits with that token in the place of all words;   `within`  of a slot inside an answer

It sees the conversation as turns, without silences and at its own places; when the agent speaks, waits and stops is
decided as before. So an answer is a function of what was said, and nothing of it is part of a session's state.
(Examples before the conversation: Brown et al. 2020, section 2.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from wan_streamer.codecs.text import END, HOLD, SILENCE, TextCodec
from wan_streamer.errors import ConfigError
from wan_streamer.fields import from_dict
from wan_streamer.files import parse_json
from wan_streamer.speaking.pace import Pace
from wan_streamer.speaking.turns import (
    AGENT,
    ASSISTANT,
    SYSTEM,
    USER,
    Marks,
    Turns,
    Utterance,
    noted,
    remembered,
    turns_of,
)

JOE = Path(__file__).with_name("joe.json")
HISTORY, DROPPED = 704, 64  # words of the agent's vocabulary that are read; how many are forgotten at once
SHORT, WORDS = 5, 30  # words after which an answer ends with its last sentence; most of one
AHEAD = 2  # tokens that are found before they are needed
PIECE = 8  # tokens of a word, at most
REPEAT = 3  # tokens in a row are not said twice in an answer
MARKS = ("'", "-", ",", ".", "?", "!")
UNFINISHED = 3.0
NEVER = -1e4


class Model(NamedTuple):
    """A language model. Past: what was computed of M tokens, [Z, 2, 1, M, G, d], None for no tokens.

    read    tokens [N] and a past -> logits [V] after the last, and the new past
    weigh   tokens [N] of several ways to go on, which of them [N, N] each comes after, itself included, and a past
            -> log p [N, V] after each
    forget  a past, and a range of its tokens -> the past without those
    """

    read: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
    weigh: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    forget: Callable[[Tensor, int, int], Tensor]


@dataclass(frozen=True)
class Persona:
    """system     what the agent is told about itself
    exchanges  what was said to it and what it said, as examples
    adapter    file that a language model has learned the same from (`speaking/adapter.py`), beside that of the persona
    sentences  of an answer, at most
    """

    system: str
    exchanges: tuple[tuple[str, str], ...] = ()
    adapter: str | None = None
    sentences: int = 1


def load_persona(path: Path | None = None) -> Persona:
    """Of a JSON file; None: Joe. Raises `ConfigError`."""
    where = JOE if path is None else path
    try:
        who = from_dict(Persona, parse_json(where.read_bytes()), str(where))
        return who if who.adapter is None else replace(who, adapter=str(where.parent / who.adapter))
    except OSError as error:
        raise ConfigError(f"{where}: expected a persona as JSON ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"{where}: expected a persona as JSON, got something else ({error})") from error


@dataclass
class Reply:
    """Of one session; can be made anew from what was said.

    tokens, past    what the language model has read, and computed of it;   logits_V  after the last one
    turns, seen     what is answered, and what was held up beside it;   begin  tokens that stand before the answer
    words           of the answer so far;   said  the same in the agent's tokens;   complete  nothing follows
    spoken          how many tokens of it the agent has said, -1 as long as it does not
    own             False: what is said there is something else
    """

    tokens: list[int]
    past: Tensor
    logits_V: Tensor
    turns: Turns = ()
    seen: tuple[str, ...] = ()
    begin: int = 0
    words: list[str] = field(default_factory=list)
    said: list[int] = field(default_factory=list)
    complete: bool = False
    spoken: int = -1
    own: bool = True

    @property
    def shown(self) -> str:
        """What is held up beside the turn that is answered."""
        return self.seen[-1] if self.seen else ""


class Chat:
    """model  the language model;   text  its tokenizer;   own  the agent's;   source  its name

    Raises `ConfigError` if it is no chat model.
    """

    def __init__(self, model: Model, text: TextCodec, own: TextCodec, persona: Persona, source: str) -> None:
        self.model, self.text, self.own = model, text, own
        self.sentences, self.pace = persona.sentences, Pace(own)
        self.marks = Marks(text, source)
        pieces = [text.decode([token]) for token in range(text.tokenizer.get_vocab_size())]
        self.begins = [piece[:1] == " " for piece in pieces]
        self.sayable_V = torch.tensor([_sayable(piece) for piece in pieces])
        self.sayable_V[self.marks.stop] = True
        turns = [(SYSTEM, persona.system)]
        turns += [turn for asked, answer in persona.exchanges for turn in ((USER, asked), (ASSISTANT, answer))]
        self.prefix = [token for turn in turns for token in self.marks.turn(*turn)]
        self.ready = Reply([], torch.empty(0), torch.empty(0))
        self._read(self.ready, self.prefix)

    def begin(self) -> Reply:
        """Nothing was said yet."""
        return replace(self.ready, words=[], said=[])

    def next(self, reply: Reply, said_N2: Tensor, count: int, seen: str = "") -> int | None:
        """The agent's token that comes next in its answer to the user, END behind the last one.

        said_N2  what was said, as in a memory;   count  how many there have been of them, forgotten ones included
        seen     what the user holds up, "" for nothing
        None     where there is nothing to answer, or the agent says something of its own
        """
        spoken = _latest(said_N2, count)
        talking = next((one for one in reversed(spoken) if one.source == AGENT and one.open), None)
        turns = turns_of([one for one in spoken if talking is None or one.first < talking.first], self.own)
        if not turns or turns[-1][0] != USER:
            return None
        if talking is None:
            if turns != reply.turns or seen != reply.shown or reply.spoken >= 0:
                self._ask(reply, turns, seen)
            return self._after(reply, [])
        said = talking.tokens
        if not 0 <= reply.spoken <= len(said):
            if not reply.turns:  # in a session that was resumed
                self._ask(reply, turns, seen)
            reply.own = reply.spoken < 0 and self._after(reply, []) == said[0]
        reply.spoken = len(said)
        if not reply.own:
            return None
        words = self.own.decode(said).split()
        if turns != reply.turns and words == reply.words[: len(words)] and self.own.encode(" ".join(words)) == said:
            self._ask(reply, turns, reply.shown, words)  # the last words of the user are written down late
            reply.spoken = len(said)
        return self._after(reply, said)

    @torch.inference_mode()
    def weigh(self, reply: Reply, said_N2: Tensor, count: int, texts: Sequence[Sequence[int]]) -> list[float]:
        """log p of each of some texts, tokens of the agent's, as what the user says next; arguments as of `next`."""
        turns = turns_of(_latest(said_N2, count), self.own)
        turns = turns if turns and turns[-1][0] == USER else (*turns, (USER, ""))
        self._drop(reply, turns)
        begun = turns[-1][1]
        known = self.prefix + self._read_as(turns[:-1], (*reply.seen, *[""] * len(turns)))
        known += [*self.marks.opening(USER), *self.text.encode(begun)]
        same = _alike(known[:-1], reply.tokens)
        lead = " " * bool(begun)
        rows = [[*self.text.encode(lead + self.own.decode([*text])), self.marks.stop] for text in texts]
        token_N, seen_NN, ways = _tree(known[same:], rows)
        found_NV = self.model.weigh(token_N, seen_NN, reply.past[:, :, :, :same] if same else None)
        return [float(sum(found_NV[place, token] for place, token in way)) for way in ways]

    def _ask(self, reply: Reply, turns: Turns, seen: str, words: Sequence[str] = ()) -> None:
        """Read what was said, up to behind the first `words` of the answer."""
        self._drop(reply, turns)
        pairs = zip(reply.turns, turns[:-1], reply.seen, strict=False)
        known = [held if old == new else "" for old, new, held in pairs]
        reply.seen = (*known, *[""] * (len(turns) - 1 - len(known)), seen)
        tokens = self.prefix + self._read_as(turns, reply.seen) + self.marks.opening(ASSISTANT)
        reply.turns, reply.begin, reply.spoken, reply.complete = turns, len(tokens), -1, False
        reply.words, reply.said = list(words), self.own.encode(" ".join(words)) if words else []
        tokens += self.text.encode(" ".join(words))
        same = _alike(tokens[:-1], reply.tokens)  # without the last, whose logits are asked for
        reply.tokens, reply.past = reply.tokens[:same], reply.past[:, :, :, :same]
        self._read(reply, tokens[same:])

    def _drop(self, reply: Reply, turns: Turns) -> None:
        """The oldest turns, where they are forgotten; those behind them need not be read anew."""
        old = reply.turns[:-1]  # the last one may go on
        count = next((n for n in range(len(old)) if old[n:] == turns[: len(old) - n]), 0)
        begin = len(self.prefix)
        end = begin + len(self._read_as(old[:count], reply.seen))
        if count:
            reply.past = self.model.forget(reply.past, begin, end)
            reply.tokens, reply.begin = reply.tokens[:begin] + reply.tokens[end:], reply.begin + begin - end
        reply.turns, reply.seen = reply.turns[count:], reply.seen[count:]

    def _read_as(self, turns: Turns, seen: Sequence[str]) -> list[int]:
        """Tokens of turns, with what was held up beside them."""
        return [
            token
            for (role, words), held in zip(turns, seen, strict=False)
            for token in self.marks.turn(role, noted(words, held))
        ]

    @torch.inference_mode()
    def _read(self, reply: Reply, tokens: list[int]) -> None:
        reply.logits_V, reply.past = self.model.read(torch.tensor(tokens), reply.past if reply.tokens else None)
        reply.tokens = reply.tokens + tokens

    def _after(self, reply: Reply, said: list[int]) -> int | None:
        """The agent's token behind those that it has `said` of its answer."""
        known = len(reply.said)
        while len(reply.said) <= len(said) and self._goes_on(reply):
            pass
        if said != reply.said[: len(said)]:  # another word than was meant: go on from there
            words = self.own.decode(said).split()
            self._ask(reply, reply.turns, reply.shown, words)
            reply.spoken, reply.said = len(said), list(said)
            self._goes_on(reply)
        elif len(reply.said) == known <= len(said) + AHEAD:
            self._goes_on(reply)  # while nothing has to be found; words come in bursts
        if len(said) < len(reply.said):
            return reply.said[len(said)]
        return END if said else None

    def _goes_on(self, reply: Reply) -> bool:
        """One more word of the answer, if there is one."""
        ends = sum(word[-1] in ".!?" for word in reply.words)
        ended = len(reply.words) >= SHORT and reply.words[-1][-1] in ".!?" and ends >= self.sentences
        reply.complete = reply.complete or ended or len(reply.words) >= WORDS
        if reply.complete:
            return False
        piece: list[int] = []
        while len(piece) < PIECE:
            token = self._likeliest(reply)
            if token == self.marks.stop or (piece and self.begins[token]):
                break
            piece.append(token)
            self._read(reply, [token])
        word = self.text.decode(piece).strip()
        reply.complete = not word
        if word:
            reply.words.append(word)
            reply.said += self.own.encode(word)
        return bool(word)

    def _likeliest(self, reply: Reply) -> int:
        """Of what can be said, and does not say the same again."""
        answer = reply.tokens[reply.begin :]
        logits_V = reply.logits_V.masked_fill(~self.sayable_V.to(reply.logits_V.device), NEVER)
        last = answer[len(answer) - REPEAT + 1 :]
        for first in range(len(answer) - REPEAT + 1):
            if answer[first : first + REPEAT - 1] == last:
                logits_V[answer[first + REPEAT - 1]] = NEVER
        return int(logits_V.argmax())


def _latest(said_N2: Tensor, count: int) -> list[Utterance]:
    """What is not forgotten."""
    first = max(count - len(said_N2), -(-max(0, count - HISTORY) // DROPPED) * DROPPED)
    return remembered([(int(source), int(token)) for source, token in said_N2.tolist()], first - count)


def _alike(new: Sequence[int], old: Sequence[int]) -> int:
    """How many of the first tokens are the same."""
    pairs = enumerate(zip(new, old, strict=False))
    return next((n for n, (one, other) in pairs if one != other), min(len(new), len(old)))


def _tree(first: Sequence[int], rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, list[list[tuple[int, int]]]]:
    """What goes on from `first` in several ways, where those that begin alike are the same up to there.

    Tokens [N]; which of them each comes after, itself included, bool [N, N]; and for every row its tokens, each with
    the place of the one before.
    """
    tokens, after, places = list(first), [*range(-1, len(first) - 1)], dict[tuple[int, int], int]()
    ways = []
    for row in rows:
        place, way = len(first) - 1, []
        for token in row:
            way.append((place, token))
            if (place, token) not in places:
                places[place, token] = len(tokens)
                tokens.append(token)
                after.append(place)
            place = places[place, token]
        ways.append(way)
    seen_NN = torch.eye(len(tokens), dtype=torch.bool)
    for number, place in enumerate(after):
        if place >= 0:
            seen_NN[number] |= seen_NN[place]
    return torch.tensor(tokens), seen_NN, ways


def _sayable(piece: str) -> bool:
    """Whether a token can be read aloud as it is: letters and the marks of a sentence, no figures."""
    letters = piece.removeprefix(" ").replace("'", "").replace("-", "")
    return piece.isascii() and (letters.isalpha() or piece in MARKS)


def worded(logits_V: Tensor, token: int) -> Tensor:
    """Logits [V] of a slot with `token`, if it is a word, in the place of all words; whether one is said stays."""
    if token == END:
        return logits_V
    mass = logits_V[END + 1 :].logsumexp(-1)
    logits_V = torch.cat([logits_V[: END + 1], torch.full_like(logits_V[END + 1 :], NEVER)])
    logits_V[token] = mass
    return logits_V


def within(logits_V: Tensor, complete: bool, due: bool) -> Tensor:
    """Logits [V] of a slot inside an answer. Who says nothing pauses. If the answer is complete, what would be a word
    is its end. If it is not, its end is e ** `UNFINISHED` times less likely than Transformer and floor find, who do
    not know that more follows, and else there is a word if one is `due`, and a pause if not.
    """
    silent, words = logits_V[:END].logsumexp(-1), logits_V[END + 1 :].logsumexp(-1)
    rest = torch.logaddexp(silent, words)
    logits_V = logits_V.clone()
    logits_V[SILENCE] = NEVER
    if complete:
        logits_V[END] = torch.logaddexp(logits_V[END], words)
        logits_V[HOLD], logits_V[END + 1 :] = silent, NEVER
    elif due:
        logits_V[HOLD] = NEVER
        logits_V[END + 1 :] += rest - words
        logits_V[END] -= UNFINISHED
    else:
        logits_V[HOLD], logits_V[END + 1 :] = rest, NEVER
        logits_V[END] -= UNFINISHED
    return logits_V
