"""Whose turn it is: a recurrent network beside the Transformer; what it follows, and what it changes."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reading import CONFIG as READING
from test_reading import livened, resumed
from test_wording import SMALL as WORDING
from tiny import tiny_text, tiny_weights
from tiny_clips import heard_clip, noisy_latents, one_pass, unit_by_unit

from wan_streamer.codecs.text import END, HOLD, SILENCE
from wan_streamer.config import FloorConfig, StreamerConfig, TextConfig
from wan_streamer.errors import ConfigError
from wan_streamer.flow.sampler import TokenSampler, likeliest
from wan_streamer.model.layout import ClipBatch
from wan_streamer.model.memory import RESPONSE, TRANSCRIPT
from wan_streamer.model.pretrained import save_weights
from wan_streamer.model.streamer import Streamer
from wan_streamer.speaking.floor import KINDS, NOTHING, STOP, WORDS, Floor, Odds, kind_of, settled, talking
from wan_streamer.training.stages.adopt import adopt

SMALL = FloorConfig(dim=12, layers=2, token_dim=5, seen_dim=3, weight=0.6)
CONFIG = dataclasses.replace(READING, floor=SMALL)
TOLD = dataclasses.replace(CONFIG, wording=WORDING, floor=dataclasses.replace(SMALL, told_dim=4))
VOCAB, UNITS = CONFIG.text.vocab_size, 9
HEARD, SEEN = (4, 6), (2, 7)


def floor() -> Floor:
    torch.manual_seed(1)
    made = Floor(SMALL, HEARD, SEEN, VOCAB, 2, 2)
    made.reset()
    torch.nn.init.normal_(made.out.weight)
    torch.nn.init.normal_(made.brief)
    return made.eval()


def sensed(units: int = UNITS, rows: int = 2) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    on = torch.rand(3, rows, units, generator=g) < 0.7
    heard, seen = (torch.randn(rows, units, *size, generator=g) for size in (HEARD, SEEN))
    before = torch.randint(0, VOCAB, (rows, units, 2, 2), generator=g)
    return heard, on[0], seen, on[1], on[2], before


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_units_are_followed_one_by_one_as_all_at_once(parts: list[int]) -> None:
    made, all_units = floor(), sensed(sum(parts))
    whole, last = made(*all_units, made.begin(2))
    past, upto = made.begin(2), 0
    for part in parts:
        odds, past = made(*(x[:, upto : upto + part] for x in all_units), past)
        torch.testing.assert_close(odds.kind_SBK, whole.kind_SBK[:, upto : upto + part], atol=1e-5, rtol=1e-5)
        upto += part
    torch.testing.assert_close(past, last, atol=1e-5, rtol=1e-5)


def test_the_future_changes_nothing_and_what_is_off_is_not_sensed() -> None:
    made, (heard, microphone, seen, camera, typed, before) = floor(), sensed()
    odds = made(heard, microphone, seen, camera, typed, before, made.begin(2))[0].kind_SBK
    for changed in range(6):
        parts = [heard, microphone, seen, camera, typed, before]
        x = parts[changed].clone()
        x[:, 5:] = ~x[:, 5:] if x.dtype == torch.bool else VOCAB - 1 - x[:, 5:] if x.dtype == torch.long else 3.0
        other = made(*(x if number == changed else part for number, part in enumerate(parts)), made.begin(2))
        assert torch.equal(other[0].kind_SBK[:, :5], odds[:, :5])
        assert not torch.allclose(other[0].kind_SBK[:, 5:], odds[:, 5:])
    noise = torch.where(microphone[..., None, None], heard, 9.0), torch.where(camera[..., None, None], seen, 9.0)
    same = made(noise[0], microphone, noise[1], camera, typed, before, made.begin(2))[0]
    assert torch.equal(same.kind_SBK, odds)
    off = torch.zeros_like(microphone)
    neither = made(None, microphone, None, camera, typed, before, made.begin(2))[0]
    torch.testing.assert_close(neither.kind_SBK, made(heard, off, seen, off, typed, before, made.begin(2))[0].kind_SBK)


def test_kinds_of_tokens() -> None:
    token = torch.tensor([SILENCE, HOLD, END, END + 1, VOCAB - 1])
    assert kind_of(token).tolist() == [NOTHING, NOTHING, STOP, WORDS, WORDS]
    assert talking(token).tolist() == [False, True, False, True, True]


def odds_of(kind: list[float]) -> Odds:
    """The same after every token; the likeliest word of a listener is END + 3."""
    brief = torch.zeros(VOCAB)
    brief[END + 3] = 4.0
    kinds = torch.tensor(kind).log().expand(2, 3, KINDS)
    return Odds(kinds, torch.nn.functional.pad(brief[END + 1 :].log_softmax(-1), (END + 1, 0)))


def test_odds_are_those_after_the_kind_of_the_token_before() -> None:
    made = floor()
    odds = made(*sensed(), made.begin(2))[0]
    before = torch.tensor([[SILENCE, END, VOCAB - 1] * 3] * 2)
    told = odds.of(1, before)
    torch.testing.assert_close(told.exp().sum(-1), torch.ones(2, UNITS))
    for unit, kind in ((0, NOTHING), (1, STOP), (2, WORDS)):
        torch.testing.assert_close(told[:, unit], odds.kind_SBK[:, unit, 1, kind].log_softmax(-1))


def shares(logits: torch.Tensor) -> torch.Tensor:
    """How likely nothing, an end and words are."""
    p = logits.softmax(-1)
    return torch.stack([p[:END].sum(), p[END], p[END + 1 :].sum()])


def test_a_floor_decides_whether_and_the_agent_which() -> None:
    torch.manual_seed(2)
    logits, odds, word = torch.randn(VOCAB), odds_of([0.1, 0.2, 0.7, 1e-9]), torch.tensor(END + 1)
    moved = settled(logits, odds, 0, word, SMALL)
    told, own = torch.tensor([0.1, 0.2, 0.7]), shares(logits)
    mean = own ** (1 - SMALL.weight) * told**SMALL.weight
    torch.testing.assert_close(shares(moved), mean / mean.sum())
    for part in (slice(0, END), slice(END + 1, None)):
        torch.testing.assert_close(moved[part].softmax(-1), logits[part].softmax(-1))
    alone = dataclasses.replace(SMALL, weight=0.0)
    torch.testing.assert_close(settled(logits, odds, 0, word, alone).softmax(-1), logits.softmax(-1))


def test_a_listener_says_what_listeners_say() -> None:
    """Where nothing is being said; in the middle of an utterance the agent goes on with its own words."""
    logits = torch.zeros(VOCAB)
    logits[END + 5] = 8.0
    odds, silence = odds_of([0.1, 0.0, 0.1, 0.8]), torch.tensor(SILENCE)
    begun = settled(logits, odds, 0, silence, SMALL)
    assert begun.argmax() == END + 3
    expected = logits[END + 1 :].softmax(-1) / 9 + odds.brief[END + 1 :].exp() * 8 / 9
    torch.testing.assert_close(begun[END + 1 :].softmax(-1), expected)
    assert settled(logits, odds, 0, torch.tensor(END + 1), SMALL).argmax() == END + 5
    assert settled(logits, odds_of([0.1, 0.0, 0.8, 0.1]), 0, silence, SMALL).argmax() == END + 5


@pytest.mark.parametrize("before", [SILENCE, HOLD, END, END + 1])
def test_a_live_agent_leans(before: int) -> None:
    """To an end while it talks, to the words of a listener in a silence; what else there is keeps its shares."""
    leaning, shares_K = dataclasses.replace(SMALL, weight=1.0, stop=1.5, listen=2.0), [0.5, 0.1, 0.3, 0.1]
    talks = before in (HOLD, END + 1)
    more = torch.tensor([0.0, 1.5, 0.0, 0.0] if talks else [0.0, 0.0, 0.0, 2.0]).exp()
    told = torch.tensor(shares_K) * more
    told = torch.stack([told[NOTHING], told[STOP], told[WORDS:].sum()]) / told.sum()
    args = (torch.zeros(VOCAB), odds_of(shares_K), 0, torch.tensor(before), leaning)
    torch.testing.assert_close(shares(settled(*args, live=True)), told)
    torch.testing.assert_close(shares(settled(*args)), torch.tensor([0.5, 0.1, 0.4]))  # nothing of it is learned


def test_whether_a_word_is_written_comes_before_which() -> None:
    logits = torch.full((2, VOCAB), -9.0)
    logits[:, SILENCE], logits[:, END + 1 : END + 4] = 0.0, torch.tensor([-0.5, -0.4, -0.6])
    logits[1, SILENCE] = 1.0
    assert likeliest(logits).tolist() == [END + 2, SILENCE]  # three words that are e ** -0.5 each; less than e ** 1
    logits[1, END] = 2.0
    assert likeliest(logits).tolist() == [END + 2, END]


def test_an_urge_adds_up_until_it_is_more_likely_than_not() -> None:
    """To begin, then to end; each half as strong a slot later. Without it, what is likelier than all else is said."""
    quiet = torch.zeros(2, VOCAB)
    quiet[:, [HOLD, END]] = -50.0
    quiet[:, SILENCE] = math.log((VOCAB - END - 1) * 2.0)  # a word in one of three
    ending = torch.zeros(2, VOCAB)
    ending[:, HOLD] = 30.0
    ending[:, END] = 30.0 + math.log(0.5)  # in one of three, too
    found = {}
    for urge in (0.0, 0.5, 0.8):
        sampler = TokenSampler(TextConfig(urge=urge), torch.Generator())
        said = [int(sampler(quiet)[0]) for _ in range(4)]
        if urge:
            sampler.silent, sampler.urge = False, 0.0
            said += [int(sampler(ending)[0]) for _ in range(4)]
        found[urge] = said
    word = END + 1
    assert found[0.0] == [SILENCE] * 4
    # -log(2 / 3) = .41, halved and added: .61, .71; with .8 already .73; the threshold is .69
    assert found[0.5][:3] == [SILENCE, SILENCE, word]
    assert found[0.5][4:7] == [HOLD, HOLD, END]
    assert found[0.8][:2] == [SILENCE, word]
    assert found[0.8][4:6] == [HOLD, END]


def model_and_clip(config: StreamerConfig = CONFIG) -> tuple[Streamer, ClipBatch]:
    torch.manual_seed(0)
    model = Streamer(config).eval()
    livened(model.reading)
    torch.nn.init.normal_(model.floor.out.weight)
    torch.nn.init.normal_(model.video_out.weight, std=0.2)
    torch.nn.init.normal_(model.audio_out.weight, std=0.2)
    return model, heard_clip(config)


@pytest.mark.parametrize("config", [CONFIG, dataclasses.replace(CONFIG, wording=WORDING), TOLD])
def test_training_pass_equals_cached_rollout(config: StreamerConfig) -> None:
    """Alone, beside a wording, and told by it; words are hidden in some units."""
    model, clip = model_and_clip(config)
    clip.written_BK[:, 3:5] = False
    noisy, tau = noisy_latents(clip)
    logits, live_logits = one_pass(model, clip, noisy, tau)[1], unit_by_unit(model, clip, noisy, tau)[1]
    torch.testing.assert_close(logits, live_logits, atol=1e-4, rtol=0)
    model.config = dataclasses.replace(config, floor=dataclasses.replace(SMALL, weight=0.0))
    plain = one_pass(model, clip, noisy, tau)[1]
    torch.testing.assert_close(logits[..., TRANSCRIPT, :], plain[..., TRANSCRIPT, :])
    assert not torch.allclose(logits[..., RESPONSE, :], plain[..., RESPONSE, :], atol=1e-2)


def test_what_the_wording_makes_of_the_words_counts() -> None:
    model, clip = model_and_clip(TOLD)
    noisy, tau = noisy_latents(clip)
    plain, seen = one_pass(model, clip, noisy, tau)[1], []
    model.floor.register_forward_hook(lambda _m, args, kwargs, out: seen.append(kwargs["told_BKD"]), with_kwargs=True)
    model.floor.told.weight.data.mul_(-3)
    other = one_pass(model, clip, noisy, tau)[1]
    assert not torch.allclose(other[..., RESPONSE, :], plain[..., RESPONSE, :], atol=1e-2)
    torch.testing.assert_close(other[..., TRANSCRIPT, :], plain[..., TRANSCRIPT, :])
    unit_by_unit(model, clip, noisy, tau)
    whole, *units = seen
    rows = len(units) // whole.shape[1]
    live = torch.cat(units, dim=1).view(rows, whole.shape[1], -1)
    torch.testing.assert_close(live, whole[:rows], atol=1e-4, rtol=1e-4)
    assert (whole[:, 1:] != whole[:, :-1]).any()


def test_a_call_leans_and_a_clip_does_not() -> None:
    model, clip = model_and_clip(CONFIG)
    noisy, tau = noisy_latents(clip)
    plain, live = one_pass(model, clip, noisy, tau)[1], unit_by_unit(model, clip, noisy, tau)[1]
    model.config = dataclasses.replace(CONFIG, floor=dataclasses.replace(SMALL, stop=3.0, listen=3.0))
    assert torch.equal(one_pass(model, clip, noisy, tau)[1], plain)
    leant = unit_by_unit(model, clip, noisy, tau)[1]
    assert not torch.allclose(leant[..., RESPONSE, :], live[..., RESPONSE, :], atol=1e-2)
    torch.testing.assert_close(leant[..., TRANSCRIPT, :], live[..., TRANSCRIPT, :])


def test_a_session_goes_on_with_what_was_followed() -> None:
    weights = dataclasses.replace(tiny_weights(), config=CONFIG, streamer=model_and_clip()[0], text=tiny_text())
    assert resumed(weights).live.floor.abs().max() > 0


def test_an_agent_of_another_shape_keeps_a_floor_that_fits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = dataclasses.replace(tiny_weights(), config=CONFIG, streamer=Streamer(CONFIG), text=tiny_text())
    save_weights(weights, tmp_path)
    other = dataclasses.replace(CONFIG, floor=dataclasses.replace(SMALL, layers=1))
    for config, kept in ((CONFIG, True), (READING, False), (other, False)):
        torch.manual_seed(1)
        model = Streamer(config)
        fresh = None if model.floor is None else model.floor.words.weight.clone()
        adopt(model, tmp_path, tiny_text())
        torch.testing.assert_close(model.text_in.weight, weights.streamer.text_in.weight, atol=1e-2, rtol=1e-2)
        if model.floor is not None:
            assert torch.equal(model.floor.words.weight, fresh) != kept


def test_a_floor_needs_a_memory() -> None:
    with pytest.raises(ConfigError, match="floor: expected a text memory"):
        StreamerConfig(floor=SMALL)


def test_nobody_tells_a_floor_without_a_wording() -> None:
    with pytest.raises(ConfigError, match=r"floor\.told_dim: expected 0 without a wording, got 4"):
        dataclasses.replace(TOLD, wording=None)
