"""The embedding learned from letters: nothing at first, shared by words that share letters, gone in the checkpoint."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import TALKER
from tiny_world import make_latents

from wan_streamer import presets
from wan_streamer.codecs.text import CONTROL, TextCodec
from wan_streamer.errors import TrainingError
from wan_streamer.model.pretrained import load_weights
from wan_streamer.model.streamer import Streamer
from wan_streamer.training.stages import duplex
from wan_streamer.training.stages.duplex import train_duplex
from wan_streamer.training.stages.lora import merged
from wan_streamer.training.stages.run import RunOptions
from wan_streamer.training.stages.spelling import LONGEST, Spelling, add_spelling, letters

TEXTS = ["a heart and a cart", "start the part", "he has a hat", "an umbrella", "Heart!"]


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return TextCodec.train(TEXTS * 3, 300)


def spelled(codec: TextCodec) -> Streamer:
    torch.manual_seed(0)
    streamer = Streamer(replace(TALKER, text=replace(TALKER.text, vocab_size=300)))
    add_spelling(streamer, codec)
    return streamer


def test_letters(codec: TextCodec) -> None:
    table, vocabulary = letters(codec, 300), codec.tokenizer.get_vocab()
    assert table.shape == (300, LONGEST)
    assert not table[: len(CONTROL)].any()
    of = {piece: table[number].tolist() for piece, number in vocabulary.items()}
    assert of["h"] == of["H"]
    assert of["h"][1:] == [0] * (LONGEST - 1)
    assert of["!"] == of["?"] != of["h"]  # what has no sound is one letter
    word = max((piece for piece in vocabulary if piece.isalpha() and piece.islower()), key=len)
    assert of[word][: len(word)] == [of[letter][0] for letter in word]


def test_it_begins_as_nothing_and_is_merged(codec: TextCodec) -> None:
    streamer = spelled(codec)
    token = torch.tensor([[5, 40, 280, 299]])
    plain = merged(streamer)
    assert torch.equal(plain.text_in.weight, streamer.text_in.parametrizations.weight.original)
    with torch.no_grad():
        for p in streamer.text_in.parametrizations.weight[0].parameters():
            p.normal_(std=0.1)
    whole = merged(streamer)
    assert whole.state_dict().keys() == plain.state_dict().keys() == Streamer(streamer.config).state_dict().keys()
    torch.testing.assert_close(whole.text_logits(token)[0], streamer.text_logits(token)[0])
    moved = (whole.text_in.weight != plain.text_in.weight).any(1)
    assert not moved[: len(CONTROL)].any()
    assert moved[len(CONTROL) : codec.tokenizer.get_vocab_size()].all()
    assert (whole.text_logits(token)[0] != plain.text_logits(token)[0]).any()


def test_what_one_word_learns_others_with_its_letters_have() -> None:
    torch.manual_seed(0)
    codec = TextCodec.train(["heart", "art", "umbrella", "brella"] * 9, 300)
    table, size = Spelling(codec, 16, 300), (300, 16)
    goal, row = torch.randn(16), codec.tokenizer.get_vocab()
    learn = torch.optim.Adam(table.parameters(), lr=1e-2)
    for _ in range(20):
        learn.zero_grad()
        now_VD = table(torch.zeros(size))
        error = (now_VD[row["heart"]] - goal).square() + (now_VD[row["umbrella"]] + goal).square()
        error.mean().backward()
        learn.step()
    moved_V = table(torch.zeros(size)) @ goal
    assert moved_V[row["art"]] > 0 > moved_V[row["brella"]]


def test_training_with_it_resumes_and_leaves_a_plain_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "tiny", lambda: TALKER)
    monkeypatch.setattr(duplex, "VALIDATION", (1, 2))
    latents = make_latents(tmp_path / "latents", units=8)
    for name, steps in (("whole", [4]), ("parts", [2, 4])):
        for number, until in enumerate(steps):
            minutes = 0 if until < 4 else None  # one step, then the rest
            options = RunOptions(
                tmp_path / name,
                "tiny",
                resume=number > 0,
                steps=4,
                minutes=minutes,
                batch=2,
                spelled=True,
                clip_units=6,
            )
            train_duplex(latents, options, "cpu")
    left, right = (load_file(tmp_path / name / "trainer.safetensors") for name in ("whole", "parts"))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)
    learned = [key for key in left if key.startswith("model.") and key.endswith("weight.0.out.weight")]
    assert len(learned) == 1
    assert left[learned[0]].any()
    agent = load_weights(tmp_path / "whole")
    original = left["ema.streamer.text_in.parametrizations.weight.original"]
    assert (agent.streamer.text_in.weight - original).abs().max() > 0
    with pytest.raises(TrainingError, match="same preset"):
        train_duplex(latents, RunOptions(tmp_path / "whole", resume=True, steps=5, batch=2, clip_units=6), "cpu")
