"""Tokenizers that grow, and models that begin with more words than the one they come from."""

import dataclasses
import runpy
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import TALKER, tiny_text, tiny_weights

from wan_streamer.codecs.text import TextCodec
from wan_streamer.config import TextConfig
from wan_streamer.errors import CheckpointError
from wan_streamer.model.pretrained import load_weights, save_weights
from wan_streamer.model.streamer import Streamer
from wan_streamer.training.examples.vocabulary import learn_text
from wan_streamer.training.stages.adopt import adopt

SCRIPT = Path(__file__).parent.parent / "scripts" / "pack_agent.py"
SAID = ["banana bread and bandanas", "a banana, a bandana", "bananas are bread"] * 3
OLD = tiny_text()
GROWN = OLD.grow(SAID, OLD.tokenizer.get_vocab_size() + 16)


def test_new_tokens_stand_behind_the_old() -> None:
    old, new = (codec.tokenizer.get_vocab() for codec in (OLD, GROWN))
    assert len(new) == len(old) + 16
    assert {token: new[token] for token in old} == old
    assert sorted(new.values()) == list(range(len(new)))


@given(st.text(max_size=40) | st.sampled_from(SAID))
def test_a_grown_tokenizer_says_the_same_in_no_more_tokens(text: str) -> None:
    tokens = GROWN.encode(text)
    assert GROWN.decode(tokens) == OLD.decode(OLD.encode(text))
    assert len(tokens) <= len(OLD.encode(text))


def test_it_learns_what_is_said_most() -> None:
    for text in SAID:
        assert len(GROWN.encode(text)) < 0.6 * len(OLD.encode(text))
    assert len(GROWN.encode(" banana")) == 1


def test_it_stops_where_the_texts_give_no_more() -> None:
    small = OLD.grow(["ab"], 10_000)
    assert small.tokenizer.get_vocab_size() == OLD.tokenizer.get_vocab_size() + 1
    assert OLD.grow([], 10_000).tokenizer.get_vocab() == OLD.tokenizer.get_vocab()


def test_a_tokenizer_that_is_large_enough_stays() -> None:
    config = dataclasses.replace(TALKER, text=TextConfig(vocab_size=OLD.tokenizer.get_vocab_size()))
    assert learn_text([], config, start=OLD) is OLD


@pytest.mark.parametrize("small", [False, True])
def test_a_model_with_more_words_begins_with_those_it_comes_from(small: bool, tmp_path: Path) -> None:
    save_weights(tiny_weights(), tmp_path, small)
    first, size = TALKER.text.vocab_size, GROWN.tokenizer.get_vocab_size()
    model = Streamer(dataclasses.replace(TALKER, text=TextConfig(vocab_size=size)))
    adopt(model, tmp_path, GROWN)
    old = load_weights(tmp_path).streamer.text_in.weight
    new, seen = model.text_in.weight, set()
    torch.testing.assert_close(new[:first], old)
    for number, (left, right) in enumerate(GROWN.parts(first), start=first):
        torch.testing.assert_close(new[number], (new[left] + new[right]) / 2)
        assert GROWN.decode([left]) + GROWN.decode([right]) == GROWN.decode([number])
        seen.add(number)
    assert seen == set(range(first, size))


@pytest.mark.parametrize("part", [False, True])
def test_a_packed_agent_is_the_same_agent(part: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, or only what was learned, which a model begins from and has its own ears and eyes beside."""
    save_weights(tiny_weights(), tmp_path / "run")
    options = ["--without-senses"] if part else []
    monkeypatch.setattr(sys, "argv", ["pack_agent.py", str(tmp_path / "run"), str(tmp_path / "out"), *options])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    kept, model = load_weights(tmp_path / "run").streamer.state_dict(), Streamer(TALKER)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if part:
        adopt(model, tmp_path / "out", OLD)
    else:
        model = load_weights(tmp_path / "out").streamer
    for name, value in model.state_dict().items():
        expected = before[name] if part and name.startswith(("hearing.", "seeing.")) else kept[name]
        torch.testing.assert_close(value, expected, rtol=0.01, atol=float(expected.abs().max()) / 200)


def test_fewer_words_are_refused(tmp_path: Path) -> None:
    save_weights(tiny_weights(), tmp_path)
    few = TextCodec.train(SAID, 265)
    model = Streamer(dataclasses.replace(TALKER, text=TextConfig(vocab_size=265)))
    with pytest.raises(CheckpointError, match="vocabulary"):
        adopt(model, tmp_path, few)
