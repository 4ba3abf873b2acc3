"""Turns of the user that are read again as a whole: from which sound, what it changes, and who is told."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reading import CONFIG as READING
from test_reading import FRAMES, VOCABULARY, heard_and_written, livened, resumed
from test_wording import SMALL as WORDING
from test_wording import wording, words
from tiny import tiny_text, tiny_weights
from tiny_ears import SMALL

from wan_streamer.codecs.text import END, HOLD, SILENCE
from wan_streamer.data.lanes import fill_lane
from wan_streamer.evaluation.suite.play import play
from wan_streamer.model import words as words_module
from wan_streamer.model.memory import RESPONSE, TRANSCRIPT
from wan_streamer.model.pretrained import Weights
from wan_streamer.model.streamer import Streamer
from wan_streamer.perception import again as again_module
from wan_streamer.perception.again import FAR, LONG, REPEATED, WIDTH, likelihood, read_again, several
from wan_streamer.perception.ears import turns
from wan_streamer.perception.reading import ENDED_LATE, WHOLE, Pair, Reader, latest_sound
from wan_streamer.perception.turn import BEFORE, LEAST, SURE, no_turn
from wan_streamer.runtime.session import Session
from wan_streamer.speaking.wording import Talk
from wan_streamer.training.reader import whole as whole_module
from wan_streamer.training.reader.streams import IGNORED
from wan_streamer.training.reader.whole import AFTER, NEAR, whole_texts
from wan_streamer.units import SAMPLES_PER_UNIT, UNIT_S, AgentUnit, UserUnit

MOST = 16
AGAIN = dataclasses.replace(
    READING, wording=WORDING, perception=dataclasses.replace(READING.perception, reading_again=MOST)
)


def repeats(text: list[int]) -> bool:
    """Whether the last tokens of a text stand in it before."""
    rows = [tuple(text[i : i + REPEATED]) for i in range(len(text) - REPEATED + 1)]
    return bool(rows) and rows[-1] in rows[:-1]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 6), st.integers(0, 4))
def test_a_text_is_read_as_a_whole_whatever_is_guessed(right: int, wrong: int) -> None:
    reader = livened(Reader(SMALL, VOCABULARY))
    reader.words.weight.data[END] *= 1.2
    heard = heard_and_written()[0][:1]
    sound, text = reader.sound(heard.flatten(1, 2)), []
    while len(text) < 14:  # the rule: all read anew for every token
        tokens, seen = torch.tensor([[WHOLE, *text]]), torch.ones(1, 1, 1, 1, dtype=torch.bool)
        hidden, _ = reader.read(tokens, turns(len(text) + 1, SMALL), sound, seen)
        scores = reader.scores(hidden[0, -1])
        scores[[token for token in range(VOCABULARY) if token < END or repeats([*text, token])]] = -torch.inf
        token = int(scores.argmax())
        if token == END:
            break
        text.append(token)
    assert len(text) > 3
    guess = torch.tensor(text[:right] + [7] * wrong, dtype=torch.long)
    passes, read = [], reader.read
    reader.read = lambda *given, **named: passes.append(1) or read(*given, **named)
    assert read_again(reader, sound, guess, 14).tolist() == text
    assert len(passes) <= 1 + len(text) - min(right, len(text))
    assert read_again(reader, sound, guess, 3).tolist() == text[:3]


@pytest.mark.parametrize("most", [3, 12])
def test_texts_that_are_as_likely_are_found(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again_module, "FAR", 9.0)
    reader = livened(Reader(SMALL, VOCABULARY))
    reader.words.weight.data[END] *= 1.2
    heard = heard_and_written()[0][:1]
    sound = reader.sound(heard.flatten(1, 2))
    found = several(reader, sound, most)
    texts = [text.tolist() for text, _ in found]
    assert 1 < len(found) <= WIDTH
    assert len({tuple(text) for text in texts}) == len(texts)
    assert all(len(text) <= most for text in texts)
    assert not any(repeats(text[:end]) for text in texts for end in range(len(text) + 1))
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)
    again = worth(reader, sound, texts)
    assert all(one >= other - 1e-4 for one, other in zip(scores, again, strict=True))  # what may not follow is left out
    greedy = read_again(reader, sound, torch.empty(0, dtype=torch.long), most)
    if len(greedy) < most:
        assert max(again) >= worth(reader, sound, [greedy.tolist()])[0] - 1e-4


def worth(reader: Reader, sound: list[Pair], texts: list[list[int]]) -> list[float]:
    likely = likelihood(reader, sound, [torch.tensor(text, dtype=torch.long) for text in texts])
    return [one + LONG * len(text) for one, text in zip(likely, texts, strict=True)]


@pytest.mark.parametrize("loud", [1.0, 1.2, 1.5])
def test_all_short_texts_are_weighed(loud: float) -> None:
    """With so few words that none is left out, the best of all that end where nothing is likelier than an end."""
    reader = livened(Reader(SMALL, END + 3))
    reader.words.weight.data[END] *= loud
    sound = reader.sound(heard_and_written()[0][:1].flatten(1, 2))
    words = range(END + 1, END + 3)
    texts = [[*text] for count in range(3) for text in itertools.product(words, repeat=count)]

    def may_end(text: list[int]) -> bool:
        longer = likely_begin(reader, sound, [[*text, token] for token in (END, *words)])
        return len(text) == 2 or longer[0] >= max(longer)

    texts = [text for text in texts if may_end(text)]
    expected = sorted(zip(worth(reader, sound, texts), texts, strict=True), reverse=True)
    expected = [one for one in expected if one[0] >= expected[0][0] - FAR]
    found = several(reader, sound, 2)
    assert [text.tolist() for text, _ in found] == [text for _, text in expected]
    assert [score for _, score in found] == pytest.approx([score for score, _ in expected], rel=1e-4)


def likely_begin(reader: Reader, sound: list[Pair], texts: list[list[int]]) -> list[float]:
    """log p of the last token of each, behind those before it."""
    found = []
    for text in texts:
        tokens, seen = torch.tensor([[WHOLE, *text[:-1]]]), torch.ones(1, 1, 1, 1, dtype=torch.bool)
        hidden, _ = reader.read(tokens, turns(len(text), SMALL), sound, seen)
        found.append(float(reader.scores(hidden[0, -1])[END:].log_softmax(-1)[text[-1] - END]))
    return found


def test_how_likely_texts_are() -> None:
    """Token by token, and that nothing follows."""
    reader = livened(Reader(SMALL, VOCABULARY))
    sound, seen = reader.sound(heard_and_written()[0][:1].flatten(1, 2)), torch.ones(1, 1, 1, 1, dtype=torch.bool)
    texts = [torch.tensor(text, dtype=torch.long) for text in ([5, 9, 9, 30], [7], [])]
    for text, found in zip(texts, likelihood(reader, sound, texts), strict=True):
        expected, tokens = 0.0, [WHOLE]
        for token in [*text.tolist(), END]:
            hidden, _ = reader.read(torch.tensor([tokens]), turns(len(tokens), SMALL), sound, seen)
            expected += float(reader.scores(hidden[0, -1])[END:].log_softmax(-1)[token - END])
            tokens.append(token)
        assert found == pytest.approx(expected, rel=1e-4)


def test_a_turn_is_found_in_the_sound() -> None:
    """From somewhat before its first word is written, never from what was heard before the last one ended."""
    turn = no_turn(torch.device("cpu"))
    for unit in range(40):
        turn = turn.later()
        first = {20: 20 - BEFORE, 21: 20 - BEFORE, 28: 20 - BEFORE}.get(unit)
        if first is not None:
            assert turn.written(9).units(unit + 1, MOST + 8) == unit + 1 - first
        if unit == 20:
            turn = turn.written(SILENCE).written(HOLD).written(9).written(8)
    assert turn.units(40, MOST) == 0  # too long
    turn = turn.written(END)
    assert not turn.begun
    for later in (1, 2, 3):
        turn = turn.later()
        assert turn.units(100, MOST) == later + ENDED_LATE
        assert turn.units(2, MOST) == 2
    for _ in range(20):
        turn = turn.later()
    assert turn.units(100, MOST) == 1 + BEFORE  # nothing is written yet


@settings(deadline=None, max_examples=40)
@given(st.lists(st.booleans(), max_size=4), st.booleans(), st.integers(0, 3), st.integers(0, 4), st.integers(0, 9))
def test_words_are_revised_as_if_they_had_been_read(
    agent: list[bool], ended: bool, old: int, new: int, before: int
) -> None:
    """Those of the latest turn of the user, wherever the agent spoke in between; what it had said before stays."""
    made = wording()
    history = words(before)
    history[:, 0] = torch.where(history[:, 0] == TRANSCRIPT, RESPONSE, history[:, 0])
    if before:
        history[-1] = torch.tensor([TRANSCRIPT, END])
    mine = [(TRANSCRIPT, 20 + i) for i in range(old)]
    mixed = [*mine[:1], *((RESPONSE, 30 + i) for i, said in enumerate(agent) if said), *mine[1:]]
    end = [(TRANSCRIPT, END)] if ended else []
    place = 0 if mine else len(mixed)
    rest = [pair for pair in mixed if pair[0] == RESPONSE]
    revised = [(TRANSCRIPT, 10 + i) for i in range(new)]
    wanted = [*rest[:place], *revised, *rest[place:], *end]
    talk = read_all(made, history, [*mixed, *end])
    found = made.revised(talk, TRANSCRIPT, torch.tensor([t for _, t in revised], dtype=torch.long), ended)
    expected = read_all(made, history, wanted)
    size = min(len(found.said_N2), len(expected.said_N2))  # what had been forgotten does not come back
    assert torch.equal(found.said_N2[-size:], expected.said_N2[-size:])
    assert found.count == expected.count
    if talk.count <= WORDING.window:
        for one, other in zip(found_parts(found), found_parts(expected), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def read_all(made, history: torch.Tensor, said: list[tuple[int, int]]) -> Talk:
    return made.read(made.read(made.begin(), history), torch.tensor(said, dtype=torch.long).view(-1, 2))


def found_parts(talk: Talk) -> tuple[torch.Tensor, ...]:
    return talk.pair_L2ND, talk.copied_NC, talk.last_D


@pytest.mark.parametrize("cut", [0.0, 1.0])
def test_whole_texts_are_learned_from_where_they_are_heard(cut: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_module, "CUT", cut)
    monkeypatch.setattr(whole_module, "JOINED", 0.0)
    codec, spans = tiny_text(), ((1.8, "hello there my friend"), (5.0, "how are you"))
    timed = [
        {"text": word, "start": start + 0.3 * i, "end": start + 0.3 * i + 0.25}
        for start, text in spans
        for i, word in enumerate(text.split())
    ]
    speech = [{"start": start, "end": start + 0.3 * len(text.split()) - 0.05} for start, text in spans]
    lane = torch.from_numpy(fill_lane(timed, speech, 60, 8, codec, 2, "end"))
    lane = torch.cat(
        [torch.full_like(lane[:1], 9), lane]
    )  # something was said before, of which the beginning is missing
    lane[1, 0] = END
    found = set()
    for seed in range(30):
        text_BEN, near_BEK, _ = whole_texts(lane[None], 4, torch.Generator().manual_seed(seed))
        real = [(row[row != IGNORED].tolist(), near) for row, near in zip(text_BEN[0], near_BEK[0], strict=True)]
        assert sum(len(row) > 1 for row, _ in real) == 2
        assert all(len(row) <= 1 for row, near in real if near.all())
        for row, near in real:
            if len(row) <= 1:
                continue
            assert (row[0], row[-1]) == (WHOLE, END)
            text = codec.decode(row[1:-1]).strip()
            (start,) = [start for start, said in spans if said.startswith(text)]
            found.add(text)
            heard = near.nonzero()[:, 0]
            first, last = int(heard[0]), int(heard[-1])
            assert len(heard) == last - first + 1
            written = int(start / UNIT_S + 0.25 / UNIT_S) + 2 + 1  # the first word; the lane is a unit later here
            assert written - BEFORE <= first <= written - NEAR
            end = start + 0.3 * len(text.split()) - 0.05
            assert last >= int(end / UNIT_S) + 1
            assert last <= int(end / UNIT_S) + 1 + (0 if cut else AFTER)
    assert {said for _, said in spans} <= found or cut
    assert len(found) > 2 or not cut


def agent() -> Weights:
    torch.manual_seed(0)
    model = Streamer(AGAIN).eval()
    livened(model.reading)
    return dataclasses.replace(tiny_weights(), config=AGAIN, streamer=model, text=tiny_text())


UNIT = UserUnit(np.zeros(SAMPLES_PER_UNIT, np.float32), None)


def spoken_to(weights: Weights, tokens: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> list[AgentUnit]:
    """Units of a session in which the agent says and writes these tokens, slot by slot."""
    session, slots = Session(weights, seed=3), iter([torch.tensor(pair) for pair in tokens])
    monkeypatch.setattr(session, "sampler", lambda _: next(slots))
    monkeypatch.setattr(weights.streamer, "live", session.live, raising=False)
    return [session.step(UNIT) for _ in range(len(tokens) // 2)]


def test_a_turn_that_ends_is_what_it_was_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the place of what was written piece by piece, for the wording and for who listens."""
    weights, asked, sure = agent(), [], SURE + 0.1
    text = weights.text
    wrong, right = text.encode("go there"), text.encode("hello")
    whole = torch.tensor(right)

    def again(_: object, sound: list, guess_N: torch.Tensor, most: int) -> torch.Tensor:
        asked.append((sound[0][0].shape[2] // FRAMES, guess_N.tolist()))
        return whole

    monkeypatch.setattr(words_module, "read_again", again)
    monkeypatch.setattr(words_module, "several", lambda *_: [(whole, 0.0), (whole[:1], -1.0)])
    monkeypatch.setattr(words_module, "likelihood", lambda *_: [-3.0, -3.0 - sure])
    silent = [[SILENCE, SILENCE]] * 2
    said = [*silent * 2, [SILENCE, wrong[0]], [SILENCE, wrong[1]], [5, HOLD], [6, END], *silent]
    units = spoken_to(weights, said, monkeypatch)
    assert [unit.whole for unit in units] == ["", "", "", "hello", ""]
    assert "".join(unit.transcript for unit in units) == text.decode(wrong[:2])
    told = weights.streamer.live.talk.said_N2.tolist()[1:]  # behind the mark
    assert told == [[TRANSCRIPT, t] for t in right] + [[RESPONSE, 5], [RESPONSE, 6], [TRANSCRIPT, END]]
    assert max(units for units, _ in asked) == 4  # all sound since the session began
    assert not weights.streamer.live.turn.begun
    for margin, found in ((SURE - 0.1, right), (SURE + 0.1, [])):  # hardly likelier, or nothing: what was written stays
        sure, whole = margin, torch.tensor(found, dtype=torch.long)
        assert not any(unit.whole for unit in spoken_to(weights, said, monkeypatch))
        assert [TRANSCRIPT, wrong[0]] in weights.streamer.live.talk.said_N2.tolist()
    asked_for: list[tuple] = []

    def weigh(reply: str, said_N2: torch.Tensor, count: int, texts: list[list[int]]) -> list[float]:
        asked_for.append((reply, said_N2[1:].tolist(), count, texts))
        return [4.4 if text == right[:1] else 6.6 for text in texts]

    chat = SimpleNamespace(begin=lambda: "reply", weigh=weigh, next=lambda *_: None)  # who may talk about anything
    monkeypatch.setattr(weights.streamer, "chat", chat)
    sure, whole = 0.1, torch.tensor(right)  # half of what it finds likely counts: 0 + 2.2, and - 1 + 3.3
    monkeypatch.setattr(words_module, "several", lambda *_: [(whole[:1], 0.0), (whole, -1.0)])
    assert [unit.whole for unit in spoken_to(weights, said, monkeypatch)] == ["", "", "", "hello", ""]
    _, before, _, texts = asked_for[0]
    assert texts == [right[:1], right]
    assert not any(source == TRANSCRIPT for source, _ in before)
    weights.streamer.config = dataclasses.replace(
        AGAIN, perception=dataclasses.replace(AGAIN.perception, reading_again=0)
    )
    asked.clear()
    assert not any(unit.whole for unit in spoken_to(weights, said, monkeypatch))
    assert not asked


def test_who_may_answer_knows_the_turn_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its end is written, and only then; it is read once in a unit."""
    weights, known, passes = agent(), [], []
    whole = torch.tensor([40, 41])
    monkeypatch.setattr(words_module, "read_again", lambda *_: passes.append(1) or whole)
    monkeypatch.setattr(words_module, "several", lambda *_: passes.append(0) or [(whole, 0.0)])
    monkeypatch.setattr(words_module, "likelihood", lambda *_: [0.0, -9.0])
    likely = type(weights.streamer.wording).likely
    monkeypatch.setattr(
        type(weights.streamer.wording),
        "likely",
        lambda self, talk, ahead: known.append((talk.said_N2[1:].tolist(), len(ahead))) or likely(self, talk, ahead),
    )
    for speaks in (True, False):
        known.clear()
        passes.clear()
        p = 0.9 if speaks else 0.001
        odds = torch.full((AGAIN.text.vocab_size,), np.log(p / AGAIN.text.vocab_size))
        odds[SILENCE] = np.log(1 - p)
        monkeypatch.setattr(weights.streamer, "_settled", lambda *_, odds=odds: odds)
        spoken_to(weights, [[SILENCE, 9], [SILENCE, HOLD], [SILENCE, 8], [SILENCE, HOLD]], monkeypatch)
        as_whole = [[TRANSCRIPT, 40], [TRANSCRIPT, 41]]
        assert (known[1][0] == as_whole) == speaks
        assert (known[-1][0] == as_whole) == speaks
        assert passes == [1, 0, 1] * speaks  # units with an open turn; what else it may be only where it has changed
        told = weights.streamer.live.talk.said_N2[1:].tolist()
        assert told == [[TRANSCRIPT, 9], [TRANSCRIPT, 8]]  # what is written stands until the end


def test_a_session_goes_on_in_the_middle_of_a_turn() -> None:
    first = resumed(agent())
    assert first.live.turn is not None
    assert len(first.live.heard) == 7 > READING.perception.reading_units
    sound = latest_sound(first.live.heard, 3)
    assert sound[0][0].shape[2] == 3 * FRAMES


def test_a_recording_has_the_turns_as_they_were() -> None:
    def unit(text: str, ended: bool = False, whole: str = "") -> AgentUnit:
        sound, film = np.zeros(SAMPLES_PER_UNIT, np.float32), np.zeros((4, 2, 2, 3), np.uint8)
        return AgentUnit(0, sound, film, "", text, ended=("transcript",) if ended else (), whole=whole)

    units = iter(
        [unit("go"), unit(" their", True), unit("hey"), unit(" you"), unit("", True, "hello you"), unit("what", True)]
    )
    session = SimpleNamespace(step=lambda _: next(units))
    heard = play(session, [UNIT] * 6).transcript
    assert [text for _, text in heard] == ["go", " their", " hello you", "what"]
    assert heard[2][0] == pytest.approx(2 * UNIT_S, abs=1e-3)


def test_what_is_too_short_is_not_all_of_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that stops at a pause: another text is found, or what was written stays."""
    weights = agent()
    text = weights.text
    wrong, short, right = (text.encode(words) for words in ("go there", "hello", "hello how"))
    wrong = (wrong * 4)[:4]
    assert len(short) < LEAST * len(wrong) <= len(right)
    both = [(torch.tensor(short), 0.0), (torch.tensor(right), -1.0)]
    heard = itertools.count(9)  # more sound, another text
    monkeypatch.setattr(words_module, "read_again", lambda *_: torch.tensor([next(heard)]))
    monkeypatch.setattr(words_module, "likelihood", lambda *_: [-3.0, -4.0 - SURE])
    said = [[SILENCE, SILENCE]] * 2 + [[SILENCE, token] for token in wrong] + [[SILENCE, END]] + [[SILENCE, SILENCE]]
    for texts, found in ((both, "hello how"), (both[:1], "")):
        monkeypatch.setattr(words_module, "several", lambda *_, texts=texts: texts)
        assert "".join(unit.whole for unit in spoken_to(weights, said, monkeypatch)) == found
