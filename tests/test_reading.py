"""The reader: what it expects next is the same in a clip and in a call, and depends on nothing that comes later."""

import dataclasses
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import TALKER, tiny_text, tiny_weights
from tiny_clips import K, heard_clip, noisy_latents, one_pass, unit_by_unit
from tiny_ears import SMALL

from wan_streamer.codecs.text import END, SILENCE, TextCodec
from wan_streamer.config import CacheConfig, StreamerConfig
from wan_streamer.errors import ConfigError
from wan_streamer.model.layout import ClipBatch
from wan_streamer.model.packing import PackedLinear
from wan_streamer.model.pretrained import Weights
from wan_streamer.model.streamer import Streamer
from wan_streamer.perception.ears import turns
from wan_streamer.perception.reading import (
    BEGIN,
    CERTAIN,
    ENDED_LATE,
    UNLIKELY,
    WRITTEN_LATE,
    Expected,
    Reader,
    still_expected,
)
from wan_streamer.perception.trust import Trust, as_expected
from wan_streamer.runtime.formats import Formats, apply_formats
from wan_streamer.runtime.session import Session
from wan_streamer.runtime.state import resume_session, session_state
from wan_streamer.units import SAMPLES_PER_UNIT, UserUnit

COUNT, WINDOW, VOCABULARY, FRAMES = 3, 5, 40, 7
PERCEPTION = dataclasses.replace(TALKER.perception, hearing="ears", ears=SMALL, reading=COUNT, reading_units=WINDOW)
CACHE = CacheConfig(sink_units=2, video_units=2, audio_units=3, text_units=9, memory_tokens=8)
CONFIG = dataclasses.replace(TALKER, perception=PERCEPTION, cache=CACHE)


def livened(reader: Reader) -> Reader:
    """With weights that make it say many different things."""
    torch.manual_seed(1)
    for name, p in reader.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(p)
        elif p.ndim == 2:
            torch.nn.init.normal_(p, std=1.5 * p.shape[1] ** -0.5)
    return reader.eval().requires_grad_(False)


def heard_and_written(units: int = K) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [2, units, 7, D], tokens [2, units, 2] of which half are words, and a few the end of a text."""
    g = torch.Generator().manual_seed(2)
    words = torch.randint(END + 1, VOCABULARY, (2, units, 2), generator=g)
    written = torch.where(torch.rand(2, units, 2, generator=g) < 0.5, words, SILENCE)
    written[..., 1] = torch.where(torch.rand(2, units, generator=g) < 0.2, END, written[..., 1])
    return torch.randn(2, units, FRAMES, SMALL.width, generator=g), written


def expected_of(reader: Reader, heard: torch.Tensor, written: torch.Tensor, last: bool = False) -> Expected:
    return reader.ahead(reader.sound(heard.flatten(1, 2)), written, COUNT, WINDOW, last)


def ahead(reader: Reader, heard: torch.Tensor, written: torch.Tensor, last: bool = False) -> torch.Tensor:
    return expected_of(reader, heard, written, last).token


@torch.no_grad()
def one_by_one(reader: Reader, heard_KTD: torch.Tensor, written_KS: torch.Tensor, k: int) -> list[int]:
    """The rule, word by word: the text and the sound of the window of unit k, read anew for every token."""
    ended = max((unit for unit in range(k) if END in written_KS[unit].tolist()), default=-1)
    sound = reader.sound(heard_KTD[max(0, k - WINDOW + 1, ended - ENDED_LATE) : k + 1].flatten(0, 1)[None])
    all_seen = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    words = written_KS[max(0, k - WINDOW + WRITTEN_LATE, ended + 1) : k].flatten().tolist()
    text = [BEGIN, *(word for word in words if word > END)]
    found: list[int] = []
    while len(found) < COUNT and END not in found:
        hidden, _ = reader.read(torch.tensor([text + found]), turns(len(text + found), SMALL), sound, all_seen)
        scores = reader.scores(hidden[0, -1])
        found.append(int(scores[END:].argmax()) + END)
    return found + [SILENCE] * (COUNT - len(found))


def test_a_clip_is_read_as_the_rule_says() -> None:
    reader = livened(Reader(SMALL, VOCABULARY))
    heard, written = heard_and_written()
    found = ahead(reader, heard, written)
    expected = [[one_by_one(reader, heard[b], written[b], k) for k in range(K)] for b in range(2)]
    assert found.tolist() == expected
    assert len({tuple(unit) for row in expected for unit in row}) > K // 2  # it says different things


def test_a_text_that_ends_is_followed_by_silence() -> None:
    reader = livened(Reader(SMALL, VOCABULARY))
    torch.nn.init.zeros_(reader.words.weight[END + 1 :])
    heard, written = heard_and_written()
    found = ahead(reader, heard, written)
    assert (found[..., 0] == END).any()
    for unit in found.flatten(0, 1).tolist():
        if END in unit:
            assert unit[unit.index(END) + 1 :] == [SILENCE] * (COUNT - 1 - unit.index(END))
    for k in range(K):  # a session stops reading there
        assert torch.equal(ahead(reader, heard[:, : k + 1], written[:, : k + 1], last=True)[:, 0], found[:, k])


def test_scores_are_those_of_words_and_of_none() -> None:
    """Of its first choice among words, and whether it is one; nothing behind the end, where sessions no longer read."""
    reader = livened(Reader(SMALL, VOCABULARY))
    reader.words.weight.data[END] *= 2
    heard, written = heard_and_written()
    token, score = expected_of(reader, heard, written)
    assert token.shape == score.shape[:3]
    assert (score[..., :END] == 0).all()
    assert score.min() >= UNLIKELY
    ended = (token == SILENCE)[..., None]
    assert 0 < ended.sum() < ended.numel()
    assert (score.masked_select(ended) == 0).all()
    words = score[..., END + 1 :]
    likeliest = words.argmax(-1) + END + 1
    assert torch.equal(likeliest[token > END], token[token > END])
    none, known = score[..., END], token > SILENCE
    assert ((none <= CERTAIN) == known).all()
    assert torch.equal((none > torch.log1p(-none.exp()) + words.amax(-1))[known], (token == END)[known])
    whole = torch.where(words > UNLIKELY, words, -torch.inf).exp().sum(-1)
    torch.testing.assert_close(whole[token > SILENCE], torch.ones(int((token > SILENCE).sum())), atol=1e-3, rtol=0)
    for k in range(K):
        live = expected_of(reader, heard[:, : k + 1], written[:, : k + 1], last=True)
        torch.testing.assert_close(live.score[:, 0], score[:, k], atol=1e-5, rtol=1e-5)


def test_trust_moves_words_and_leaves_whether_one_is_written() -> None:
    trust, logits, hidden, score = trusting(0.0)
    before, after = logits.softmax(-1), trust(logits, hidden, score).softmax(-1)
    torch.testing.assert_close(after[:, : END + 1], before[:, : END + 1])
    assert (after[:, 9] > 0.9 * before[:, END + 1 :].sum(-1)).all()
    torch.testing.assert_close(trust(logits, hidden, torch.zeros_like(score)), logits)
    torch.nn.init.zeros_(trust.weight.bias)  # an agent may learn not to
    torch.testing.assert_close(trust(logits, hidden, score), logits)


def test_trust_in_whether_a_word_is_due() -> None:
    """The odds of a word are those of the agent times those of the reader to a power; which word stays as it was."""
    trust, logits, hidden, score = trusting(0.5)
    trust_not, *_ = trusting(0.0)
    score[:, END] = math.log(0.2)
    before, after = (each(logits, hidden, score).softmax(-1) for each in (trust_not, trust))
    words, then = before[:, END + 1 :].sum(-1), after[:, END + 1 :].sum(-1)
    torch.testing.assert_close(then / (1 - then), words / (1 - words) * (0.8 / 0.2) ** 0.5, rtol=1e-4, atol=0)
    torch.testing.assert_close(after[:, END + 1 :] / then[:, None], before[:, END + 1 :] / words[:, None])
    torch.testing.assert_close(after[:, 0] / after[:, END], before[:, 0] / before[:, END])
    score[:, END] = CERTAIN
    assert trust(logits, hidden, score).isfinite().all()
    score[:, END] = UNLIKELY
    assert trust(logits, hidden, score).isfinite().all()
    torch.testing.assert_close(trust(logits, hidden, torch.zeros_like(score)), logits)  # nothing is known


def trusting(due: float) -> tuple[Trust, torch.Tensor, torch.Tensor, torch.Tensor]:
    """One, and logits, hidden states and scores of five slots."""
    torch.manual_seed(0)
    trust = Trust(8, due)
    trust.reset()
    score = torch.full((5, VOCABULARY), UNLIKELY)
    score[:, : END + 1], score[:, 9] = 0, -0.1
    return trust, torch.randn(5, VOCABULARY), torch.randn(5, 8), score


def test_words_count_as_long_as_they_were_expected() -> None:
    token = torch.tensor([[5, 6, 7], [5, 6, 7], [5, 6, 7], [SILENCE, 6, 7]])
    written = torch.tensor([[5, 6, 7], [5, 9, 7], [8, 6, 7], [8, 6, 7]])
    kept = as_expected(Expected(token, torch.ones(4, 3, VOCABULARY)), written)[..., 0]
    assert kept.tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 0, 0]]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, K - 1))
def test_what_comes_later_changes_nothing(k: int) -> None:
    """Neither later sound, nor words that are written in the unit itself or later; and units are read one at a time."""
    reader = livened(Reader(SMALL, VOCABULARY))
    heard, written = heard_and_written()
    whole = ahead(reader, heard, written)
    other_heard, other_written = heard.clone(), written.clone()
    other_heard[:, k + 1 :] += 1
    other_written[:, k:] = 7
    assert torch.equal(ahead(reader, other_heard, other_written)[:, : k + 1], whole[:, : k + 1])
    so_far = ahead(reader, heard[:, : k + 1], written[:, : k + 1], last=True)
    assert torch.equal(so_far[:, 0], whole[:, k])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, K - 1), st.integers(0, COUNT), st.integers(0, COUNT))
def test_a_guess_changes_nothing_but_the_time(k: int, right: int, wrong: int) -> None:
    reader = livened(Reader(SMALL, VOCABULARY))
    heard, written = (x[:1, : k + 1] for x in heard_and_written())
    sound, passes, read = reader.sound(heard.flatten(1, 2)), [], reader.read
    found = reader.ahead(sound, written, COUNT, WINDOW, last=True)
    true = [token for token in found.token.flatten().tolist() if token > END][:right]
    guess = torch.tensor(true + [7] * wrong, dtype=torch.long)
    reader.read = lambda *given, **named: passes.append(1) or read(*given, **named)
    again = reader.ahead(sound, written, COUNT, WINDOW, last=True, guess_G=guess)
    assert torch.equal(again.token, found.token)
    torch.testing.assert_close(again.score, found.score, atol=1e-4, rtol=1e-4)
    needed = min(COUNT, int((found.token != SILENCE).sum()))
    assert len(passes) <= max(1, needed - len(true))
    assert len(passes) >= 1


def test_what_isstill_expected_is_guessed() -> None:
    before = Expected(torch.tensor([5, 6, END]), torch.zeros(3, VOCABULARY))
    for written, guess in (
        ([SILENCE, SILENCE], [5, 6]),
        ([5, SILENCE], [6]),
        ([5, 6], []),
        ([8, 6], None),
        ([5, END], None),
    ):
        found = still_expected(before, torch.tensor(written))
        assert (None if found is None else found.tolist()) == guess
    assert still_expected(None, torch.tensor([SILENCE])).tolist() == []
    assert still_expected(None, torch.tensor([5])) is None


def model_and_clip() -> tuple[Streamer, ClipBatch]:
    torch.manual_seed(0)
    model = Streamer(CONFIG).eval()
    livened(model.reading)
    torch.nn.init.normal_(model.video_out.weight, std=0.2)
    torch.nn.init.normal_(model.audio_out.weight, std=0.2)
    return model, heard_clip(CONFIG)


def test_training_pass_equals_cached_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a reader, whose window is shorter than the clip; the microphone is off in some units."""
    model, clip = model_and_clip()
    noisy, tau = noisy_latents(clip)
    model.trust.due = 0.5
    velocity, logits = one_pass(model, clip, noisy, tau)
    live_velocity, live_logits = unit_by_unit(model, clip, noisy, tau)
    torch.testing.assert_close(logits, live_logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(velocity.video, live_velocity.video, atol=1e-4, rtol=0)
    words = CONFIG.text.vocab_size
    nothing = Expected(torch.full((1, K, COUNT), SILENCE), torch.zeros(1, K, COUNT, words))
    monkeypatch.setattr(Reader, "ahead", lambda *args, **_: nothing)
    assert not torch.allclose(one_pass(model, clip, noisy, tau)[1], logits, atol=1e-2)  # it matters
    off = dataclasses.replace(clip, microphone_BK=torch.zeros_like(clip.microphone_BK))
    silent = one_pass(model, off, noisy, tau)[1]
    monkeypatch.undo()
    torch.testing.assert_close(one_pass(model, off, noisy, tau)[1], silent)  # nothing is read where nothing is heard


def test_what_the_reader_expects_moves_the_transcript_alone() -> None:
    model, clip = model_and_clip()
    noisy, tau = noisy_latents(clip)
    trusted = one_pass(model, clip, noisy, tau)[1]
    torch.nn.init.zeros_(model.trust.weight.bias)
    plain = one_pass(model, clip, noisy, tau)[1]
    torch.testing.assert_close(trusted[..., 0, :], plain[..., 0, :])
    assert not torch.allclose(trusted[..., 1, :], plain[..., 1, :], atol=1e-2)
    torch.testing.assert_close(trusted.softmax(-1)[..., : END + 1], plain.softmax(-1)[..., : END + 1])
    model.trust.due = 0.5
    due = one_pass(model, clip, noisy, tau)[1]
    torch.testing.assert_close(due[..., 0, :], plain[..., 0, :])
    before, after = (x.log_softmax(-1)[..., 1, : END + 1] for x in (plain, due))
    assert not torch.allclose(before, after, atol=0.1)


def resumed(weights: Weights) -> Session:
    """A session goes on from a record of another as that would have; it is given back."""
    g = torch.Generator().manual_seed(4)
    units = [UserUnit(torch.randn(SAMPLES_PER_UNIT, generator=g).clamp(-1, 1).numpy() * 0.1, None) for _ in range(12)]
    whole, first, second = (Session(weights, seed=3) for _ in range(3))
    expected = [whole.step(unit) for unit in units]
    for unit in units[:7]:
        first.step(unit)
    resume_session(second, session_state(first))
    for unit, out in zip(units[7:], expected[7:], strict=True):
        again = second.step(unit)
        assert (again.text, again.transcript) == (out.text, out.transcript)
        assert (again.audio == out.audio).all()
    return first


def test_a_session_goes_on_with_what_it_has_heard() -> None:
    weights = dataclasses.replace(tiny_weights(), config=CONFIG, streamer=model_and_clip()[0], text=tiny_text())
    resumed(weights)


def test_its_weights_are_packed_with_those_of_the_agent() -> None:
    weights = dataclasses.replace(tiny_weights(), config=CONFIG, streamer=model_and_clip()[0])
    reader, (heard, written) = weights.streamer.reading, heard_and_written()
    reader.to(torch.bfloat16).to(torch.float32)  # as from a checkpoint
    before = ahead(reader, heard, written)
    apply_formats(weights, Formats("half", "float32"))
    assert all(isinstance(part, PackedLinear) for part in reader.modules() if isinstance(part, torch.nn.Linear))
    assert (ahead(reader, heard, written) == before).float().mean() > 0.9  # sums in another order may choose otherwise


@pytest.mark.parametrize(
    ("perception", "cache", "words"),
    [
        ({"hearing": "mel"}, {}, "where no ears hear"),
        ({}, {"memory_tokens": 0}, "text memory"),
        ({"reading_units": 40}, {}, "text window"),
    ],
)
def test_a_reader_needs_ears_and_a_memory(perception: dict, cache: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        StreamerConfig(
            perception=dataclasses.replace(PERCEPTION, **perception), cache=dataclasses.replace(CACHE, **cache)
        )


LETTERS = [f"<0x{byte:02X}>" for byte in range(256)] + ["\u2581", *"abcdehlnorstw,'"]
PIECES = "_h el _t he _hel lo _hello _the re _there".replace("_", "\u2581").split(" ") + LETTERS


@given(st.text(max_size=30))
@example("<silence> <hold>, <end>")  # names of control tokens are words when somebody types them
def test_pieces_write_every_text(text: str) -> None:
    codec = TextCodec.of_pieces(PIECES)
    said = " ".join(text.split(" ")).replace("\u2581", " ")
    assert codec.decode(codec.encode(said)).strip(" ") == said.strip(" ")


def test_pieces_are_merged_in_their_order() -> None:
    codec = TextCodec.of_pieces(PIECES)
    assert codec.pieces == PIECES
    first = len(PIECES[:6]) + END + 1
    assert codec.encode("hello there") == codec.encode(" hello there") == [first, first + 3]
    assert tiny_text().pieces is None


@pytest.mark.moonshine
def test_a_model_writes_and_reads_with_the_tokens_of_a_recogniser(tmp_path) -> None:
    """A tokenizer of its pieces, a model that takes its words over from another tokenizer, and the decoder's rows."""
    from wan_streamer.model.pretrained import save_weights
    from wan_streamer.training.ears.moonshine import END as STOP
    from wan_streamer.training.ears.moonshine import Tokenizer, decoder_weights
    from wan_streamer.training.stages.adopt import adopt, adopt_reader

    vocabulary = Tokenizer()
    numbers = vocabulary.most_used(["Hello there, how are you?", "please"], 400)
    codec = TextCodec.of_pieces([vocabulary.named(number) for number in numbers])
    text = "Hello there, please."
    assert [numbers[token - END - 1] for token in codec.encode(text)] == vocabulary.encode(text)
    with pytest.raises(ConfigError, match="vocab_size"):
        vocabulary.most_used([], 100)
    save_weights(tiny_weights(), tmp_path)
    size = codec.tokenizer.get_vocab_size() + 2
    whole = dataclasses.replace(PERCEPTION, ears=dataclasses.replace(StreamerConfig().perception.ears))
    model = Streamer(
        dataclasses.replace(CONFIG, perception=whole, text=dataclasses.replace(CONFIG.text, vocab_size=size))
    )
    assert not adopt(model, tmp_path, codec)
    adopt_reader(model, codec)
    rows, theirs = model.reading.words.weight, decoder_weights()["words.weight"]
    assert torch.equal(rows[END + 1 : size - 2], theirs[numbers])
    assert torch.equal(rows[size - 2 :], theirs[[STOP, STOP]])
    (hello,) = codec.encode("Hello")
    old = tiny_weights()
    expected = old.streamer.text_in.weight[old.text.encode(" Hello")].mean(0)
    torch.testing.assert_close(model.text_in.weight[hello], expected, atol=0.01, rtol=0.01)
