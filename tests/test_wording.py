"""What to say: a language model beside the Transformer; what it reads, what is taken over, and what it changes."""

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reading import CONFIG as READING
from test_reading import livened, resumed
from tiny import tiny_text, tiny_weights
from tiny_clips import heard_clip, noisy_latents, one_pass, unit_by_unit

from wan_streamer.codecs.text import END, HOLD, SILENCE
from wan_streamer.config import StreamerConfig, WordingConfig
from wan_streamer.errors import ConfigError
from wan_streamer.model.layout import ClipBatch
from wan_streamer.model.memory import PADDING, RESPONSE, TRANSCRIPT, foretold, timeline
from wan_streamer.model.pretrained import save_weights
from wan_streamer.model.streamer import Streamer
from wan_streamer.speaking.wording import TURN, Likely, Wording, follows, wished
from wan_streamer.training.stages.adopt import adopt

SMALL = WordingConfig(dim=24, layers=2, heads=2, mlp_dim=32, token_dim=12, copy_dim=8, window=12)
CONFIG = dataclasses.replace(READING, wording=SMALL)
VOCAB, TYPED = CONFIG.text.vocab_size, 2


def wording(config: WordingConfig = SMALL) -> Wording:
    torch.manual_seed(1)
    made = Wording(config, VOCAB, 3)
    made.reset()
    torch.nn.init.normal_(made.turns.weight)
    return made.eval()


def words(count: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.stack(
        [torch.randint(0, 3, (count,), generator=g), torch.randint(END, VOCAB, (count,), generator=g)], 1
    )


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=6), st.integers(0, 3))
def test_words_are_read_one_by_one_as_in_one_text(parts: list[int], ahead: int) -> None:
    """However they arrive, what is likely next is the same; what is foretold is read and forgotten."""
    made, said, more = wording(), words(sum(parts)), words(3, seed=9)[:ahead]
    talk, upto = made.begin(), 0
    for part in parts:
        made.likely(talk, words(2, seed=5))  # leaves no trace
        talk = made.read(talk, said[upto : upto + part])
        upto += part
    ahead_BQR2 = torch.full((1, 1, 3, 2), PADDING)
    ahead_BQR2[0, 0, :ahead] = more
    behind = torch.full((2, 2), PADDING)
    whole = made.likely_in(torch.cat([said, behind])[None], torch.tensor([[upto]]), ahead_BQR2)
    found = made.likely(talk, more)
    torch.testing.assert_close(found.word, whole.word[0, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.turn, whole.turn[0, 0], atol=1e-5, rtol=1e-4)
    last_by = more[-1, 0] if ahead else said[-1, 0] if upto else TYPED
    assert (found.turn != 0) == (last_by != RESPONSE)
    assert len(talk.said_N2) == min(upto + 1, SMALL.window)


def test_what_is_likely_is_a_probability_of_words() -> None:
    made = wording()
    likely = made.likely(made.read(made.begin(), words(20)), words(0)).word.exp()
    assert likely[: HOLD + 1].sum() < 1e-6  # nobody says silences
    assert likely.sum() == pytest.approx(1, abs=1e-4)


def test_training_reads_like_a_session() -> None:
    """`forward`, `own` and `again`, which training uses, give what `likely` gives."""
    made, said = wording(dataclasses.replace(SMALL, window=40)), words(9)
    hidden = made(made.begun(said[None]))
    seen = torch.ones(1, 1, 10, dtype=torch.bool)
    whole = made.begun(said[None])
    chained = follows(torch.nn.functional.pad(whole[:, :-1, 1], (1, 0)), whole[:, -1:, 1])
    scores = made._scores(hidden[:, -1:], made.copied(hidden), whole, seen, chained, torch.tensor([[TRANSCRIPT]]))
    likely = made.likely(made.read(made.begin(), said), words(0))
    torch.testing.assert_close(scores.word[0, 0], likely.word, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made.turn(hidden[0, -1]), scores.turn[0, 0])


def test_a_word_is_said_again_where_it_is_found() -> None:
    """With nothing but copying, only words that were read are likely."""
    made, said = wording(), words(6)
    torch.nn.init.constant_(made.copies.bias, 50.0)
    likely = made.likely(made.read(made.begin(), said), words(0)).word.exp()
    read = {*said[:, 1].tolist(), SILENCE}
    assert sum(likely[token].item() for token in read) == pytest.approx(1, abs=1e-3)


def test_what_follows_a_word_like_the_last_one_is_said_again() -> None:
    """A word of several tokens is taken over token by token, also where the last of it is only foretold."""
    made = wording()
    for weight in (made.asked.weight, made.copied.weight):
        torch.nn.init.zeros_(weight)
    torch.nn.init.constant_(made.copies.bias, 50.0)
    torch.nn.init.constant_(made.chain, 20.0)
    said = torch.tensor([[1, 50], [1, 51], [1, 52], [0, 60], [0, 51]])
    assert made.likely(made.read(made.begin(), said), words(0)).word.argmax() == 52
    shorter = made.read(made.begin(), said[:4])
    assert made.likely(shorter, said[4:]).word.argmax() == 52


def test_who_has_begun_a_word_says_it_to_its_end() -> None:
    """Also where another word would follow as likely."""
    made = wording()
    for weight in (made.asked.weight, made.copied.weight):
        torch.nn.init.zeros_(weight)
    torch.nn.init.constant_(made.copies.bias, 50.0)
    torch.nn.init.constant_(made.chain, 1.0)
    said = torch.tensor([[1, 50], [1, 51], [1, 52], [1, 50], [1, 53], [0, 60], [0, 50]])
    likely = made.likely(made.read(made.begin(), said), words(0)).word
    torch.testing.assert_close(likely[51], likely[53])
    made.goes_on.data[53] = 2.0
    likely = made.likely(made.read(made.begin(), said), words(0)).word
    torch.testing.assert_close(likely[53] - likely[51], torch.tensor(2.0), atol=1e-4, rtol=1e-4)


def test_words_of_a_clip_stand_in_the_order_in_which_they_are_known() -> None:
    typed = torch.tensor([[[0, 0], [40, 41]]])
    slots = torch.tensor([[[[10, HOLD], [HOLD, 20]], [[11, 21], [END, END]]]])
    memory = torch.tensor([[[PADDING, PADDING], [TRANSCRIPT, 30], [RESPONSE, 31]]])
    said, before = timeline(memory, typed, slots, torch.ones(1, 2, dtype=torch.bool))
    order = [[1, 30], [0, 31], [0, 10], [1, 20], [2, 40], [2, 41], [0, 11], [1, 21], [0, END], [1, END]]
    assert said[0, : len(order)].tolist() == order
    assert (said[0, len(order) :] == PADDING).all()
    assert before.tolist() == [[[2, 3], [6, 8]]]
    hidden, before = timeline(memory, typed, slots, torch.zeros(1, 2, dtype=torch.bool))
    assert hidden[0, :7].tolist() == [[1, 30], [1, 20], [2, 40], [2, 41], [1, 21], [1, END], [PADDING, PADDING]]
    assert before.tolist() == [[[1, 1], [4, 5]]]


def test_what_is_foretold_holds_while_it_comes_true() -> None:
    expected = torch.tensor([7, 8, END])
    seven, eight, none = [TRANSCRIPT, 7], [TRANSCRIPT, 8], [PADDING, PADDING]
    assert foretold(expected, torch.tensor([0, 0]), 0).tolist() == [seven, eight, none]
    assert foretold(expected, torch.tensor([7, 0]), 1).tolist() == [eight, none, none]
    assert foretold(expected, torch.tensor([HOLD, 0]), 1).tolist() == [none, none, none]
    assert foretold(torch.tensor([SILENCE, 8, 9]), torch.tensor([0]), 0).tolist() == [none, none, none]


def test_a_wish_moves_which_word_is_said_and_what_is_against_it() -> None:
    torch.manual_seed(2)
    logits, word = torch.randn(2, VOCAB), torch.randn(2, VOCAB).log_softmax(-1)
    likely, talking = Likely(word, torch.tensor([-2.0, 9.0])), torch.tensor([False, True])
    moved = wished(logits, likely, talking, dataclasses.replace(SMALL, weight=1.0, due=0.0, turn=0.0))
    before, after = logits.softmax(-1), moved.softmax(-1)
    torch.testing.assert_close(before[:, : END + 1], after[:, : END + 1])
    wish = word[:, END + 1 :].log_softmax(-1)
    sure = wish.exp().amax(-1, keepdim=True)
    torch.testing.assert_close(moved[:, END + 1 :].softmax(-1), (logits[:, END + 1 :] + sure * wish).softmax(-1))
    due = wished(logits, likely, talking, dataclasses.replace(SMALL, weight=1.0, due=0.5, turn=0.25))
    torch.testing.assert_close(due[:, : END + 1], logits[:, : END + 1])
    torch.testing.assert_close(due[0, END + 1 :], moved[0, END + 1 :] + 0.25 * -2)  # the user goes on
    against = torch.log1p(-word[1, END].exp())  # an utterance that is at its end
    torch.testing.assert_close(due[1, END + 1 :], moved[1, END + 1 :] + 0.5 * against)
    sure = wished(logits, likely, ~talking, dataclasses.replace(SMALL, weight=1.0, due=0.0, turn=0.25))
    torch.testing.assert_close(sure[1, END + 1 :], moved[1, END + 1 :] + 0.25 * TURN)


def model_and_clip() -> tuple[Streamer, ClipBatch]:
    torch.manual_seed(0)
    model = Streamer(CONFIG).eval()
    livened(model.reading)
    torch.nn.init.normal_(model.wording.turns.weight)
    torch.nn.init.normal_(model.video_out.weight, std=0.2)
    torch.nn.init.normal_(model.audio_out.weight, std=0.2)
    return model, heard_clip(CONFIG)


def test_training_pass_equals_cached_rollout() -> None:
    """With a reader, whose words are foretold, and more words in the clip than are read back."""
    model, clip = model_and_clip()
    noisy, tau = noisy_latents(clip)
    logits, live_logits = one_pass(model, clip, noisy, tau)[1], unit_by_unit(model, clip, noisy, tau)[1]
    torch.testing.assert_close(logits, live_logits, atol=1e-4, rtol=0)
    assert (clip.slot_BKSL > HOLD).sum() > SMALL.window
    model.config = dataclasses.replace(CONFIG, wording=dataclasses.replace(SMALL, weight=0.0, due=0.0, turn=0.0))
    plain = one_pass(model, clip, noisy, tau)[1]
    torch.testing.assert_close(logits[..., TRANSCRIPT, :], plain[..., TRANSCRIPT, :])
    assert not torch.allclose(logits[..., RESPONSE, :], plain[..., RESPONSE, :], atol=1e-2)


def test_a_session_goes_on_with_what_was_said() -> None:
    weights = dataclasses.replace(tiny_weights(), config=CONFIG, streamer=model_and_clip()[0], text=tiny_text())
    assert resumed(weights).live.talk.count > 1  # something was said


def test_an_agent_of_another_shape_keeps_a_wording_that_fits(tmp_path: Path) -> None:
    """A model without one, or with another, takes over all else."""
    torch.manual_seed(0)
    weights = dataclasses.replace(tiny_weights(), config=CONFIG, streamer=Streamer(CONFIG), text=tiny_text())
    save_weights(weights, tmp_path)
    other = dataclasses.replace(CONFIG, wording=dataclasses.replace(SMALL, layers=1))
    for config, kept in ((CONFIG, True), (READING, False), (other, False)):
        torch.manual_seed(1)
        model = Streamer(config)
        fresh = None if model.wording is None else model.wording.words.weight.clone()
        adopt(model, tmp_path, tiny_text())
        torch.testing.assert_close(model.text_in.weight, weights.streamer.text_in.weight, atol=1e-2, rtol=1e-2)
        if model.wording is not None:
            assert torch.equal(model.wording.words.weight, fresh) != kept


def test_a_wording_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="multiple of twice the 2 heads"):
        dataclasses.replace(SMALL, dim=26)
    with pytest.raises(ConfigError, match="text memory"):
        StreamerConfig(wording=SMALL)
