"""`train voice`: stretches of what is said, sentences made of its words anew, and a voice that learns them."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import SAYING, TALKER, tiny_weights
from tiny_world import make_latents
from typer.testing import CliRunner

from wan_streamer.cli.app import app
from wan_streamer.codecs.folder import codec_hash, load_codecs
from wan_streamer.data.latents import LatentStore
from wan_streamer.errors import DataError
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.pretrained import load_weights, save_weights
from wan_streamer.speaking.pace import Pace
from wan_streamer.speaking.sounds import QUIET, SOUNDS, SOUNDS_PER_TICK, SOUNDS_PER_UNIT, SYMBOLS, UNKNOWN, sounds_of
from wan_streamer.training.loop.alone import AloneOptions
from wan_streamer.training.voice import stage
from wan_streamer.training.voice.pace import longer
from wan_streamer.training.voice.place import Place
from wan_streamer.training.voice.stage import VoiceStage, collapsed, distance, train_voice
from wan_streamer.training.voice.stretches import POOL_UNITS, Stretches, words_said
from wan_streamer.units import TICKS_PER_UNIT

UNITS = 8
VOICE = SAYING.voice
WORDS = {"one": "w", "two": "t"}  # of the tiny world, and the sound of each


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_latents(tmp_path / "data", units=UNITS, episodes=3)


@pytest.fixture
def stretches(data: Path) -> Stretches:
    assert VOICE is not None
    return Stretches(_store(data), SAYING, VOICE, tiny_weights().text)


def _store(data: Path) -> LatentStore:
    return LatentStore(data / "train", codec_hash(*load_codecs(TALKER, data)))


def _start(data: Path, folder: Path, config=TALKER) -> Path:
    weights = tiny_weights(2, config)
    audio_vae, video_vae = load_codecs(config, data)
    save_weights(dataclasses.replace(weights, audio_vae=audio_vae, video_vae=video_vae), folder)
    return folder


def test_a_stretch_is_what_was_said(stretches: Stretches) -> None:
    """Words up to each of its units, sounds before them, the voice before them; nothing beyond a conversation."""
    assert VOICE is not None
    whole = stretches.spoken[1]
    assert whole.audio_UTC is not None
    for first in (-2, 0, 3, UNITS - 2):
        words, ticks, sounds, audio, heard = stretches._cut(whole, first, 4)
        for part, full, back, more, nothing in (
            (words, whole.words_US, VOICE.word_units - 1, 0, 0),
            (ticks, whole.ticks_UT, VOICE.sound_units, 0, UNKNOWN),
            (sounds, whole.sounds_UP, VOICE.sound_units, 1, UNKNOWN),
            (audio, whole.audio_UTC.float(), VOICE.past_units, 0, 0),
        ):
            assert len(part) == back + 4 + more
            for place, unit in enumerate(range(first - back, first + 4 + more)):
                expected = full[unit] if 0 <= unit < UNITS else torch.full_like(full[0], nothing)
                assert torch.equal(part[place], expected)
        assert heard


def test_rows_are_pure_functions_of_their_numbers(stretches: Stretches) -> None:
    both = stretches.rows(0, 7, range(6), 4, 0.5)
    again = [stretches.rows(0, 7, range(a, b), 4, 0.5) for a, b in ((0, 2), (2, 6))]
    for part, *parts in zip(both, *again, strict=True):
        assert torch.equal(part, torch.cat(parts))
    assert not torch.equal(both.ticks_RUT, stretches.rows(0, 8, range(6), 4, 0.5).ticks_RUT)


def test_words_keep_their_sounds_in_sentences_made_anew(stretches: Stretches) -> None:
    """Where a word is, its sound is, for as long as it was said; and nothing is heard of it."""
    assert {text: {s[0] for said in ways for s in said.sounds} for text, ways in stretches.said.items()} == {
        word: {sound} for word, sound in WORDS.items()
    }
    made = stretches.rows(0, 0, range(8), 6, 1.0)
    assert not made.heard_R.any()
    assert not made.audio_RUTC.any()
    labels = stretches._sentence(np.random.default_rng(3))
    texts = [word["text"] for word in labels["words"]["agent"]]
    assert {"one", "two"} == set(texts)
    assert "one two" * 10 not in " ".join(texts)  # in any order
    sounds = sounds_of(labels)
    assert sounds.shape == (POOL_UNITS, SOUNDS_PER_UNIT)
    said = collapsed(torch.from_numpy(sounds))
    expected = [SYMBOLS.index(WORDS[text]) + 1 for text in texts]
    assert distance(said, expected) <= sum(a == b for a, b in pairwise(expected))  # two in one


def test_words_said() -> None:
    """A word has the sounds that begin in it, and the pause behind it, if that is short."""
    phonemes = [("h", 1.0, 1.1), ("i", 1.1, 1.2), ("j", 1.2, 1.3), ("o", 2.5, 2.6)]
    labels = {
        "words": {"agent": [{"text": t, "start": a, "end": b} for t, a, b in
                            (("hi", 1.0, 1.2), ("you", 1.2, 1.3), ("oh", 2.5, 2.6), ("mute", 3.0, 3.1))]},
        "phonemes": {"agent": [{"symbol": s, "start": a, "end": b} for s, a, b in phonemes]},
    }  # fmt: skip
    hi, you, oh = words_said(labels)
    assert [symbol for symbol, _, _ in hi.sounds] == ["h", "i"]
    assert hi.sounds[1][1:] == pytest.approx((0.1, 0.2))
    assert (hi.text, hi.pause) == ("hi", 0.0)
    assert hi.seconds == pytest.approx(0.2)
    assert [said.pause for said in (you, oh)] == [0.4, pytest.approx(0.4)]


def test_a_voice_knows_how_long_its_tokens_take() -> None:
    """Beyond what letters and marks tell, by what is said often; pauses and other utterances do not count."""
    text = tiny_weights().text
    speech, words = [], []
    for first, token in ((0.0, "one"), (100.0, "two")):
        times = [first + 0.9 * i for i in range(100)]
        words += [{"text": token, "start": t, "end": t + 0.2} for t in times]
        speech.append({"type": "speech", "side": "agent", "start": first, "end": times[-1] + 0.2})
    labels = {"words": {"agent": words}, "events": [*speech, {"type": "nod", "side": "agent", "start": 0, "end": 99}]}
    longer_V = longer([labels], text)
    plain, known = Pace(text).seconds_V, Pace(text, longer_V).seconds_V
    said = sorted({token for word in ("one", "two") for token in text.encode(word)})
    for word in ("one", "two"):
        assert known[text.encode(word)].sum() == pytest.approx(0.9, abs=0.03)
        assert plain[text.encode(word)].sum() < 0.5
    others = [token for token in range(len(plain)) if token not in said]
    assert torch.equal(plain[others], known[others])
    words[50]["start"] += 500.0  # as if it waited
    assert torch.isfinite(longer([labels], text)).all()
    assert not longer([], text).any()


@pytest.mark.parametrize(
    ("left", "right", "errors"), [([], [], 0), ([1, 2, 3], [1, 3], 1), ([1, 2], [3, 4, 2], 2), ([], [5, 6], 2)]
)
def test_distance(left: list[int], right: list[int], errors: int) -> None:
    assert distance(left, right) == distance(right, left) == errors
    assert collapsed(torch.tensor([[3, 3, QUIET, 3], [4, 4, UNKNOWN, 4]])) == [3, 3, 4, 4]


def test_a_voice_learns_to_say_words(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself, it chooses their sounds.

    The words of what is held out are the same; where they stand, and what they sound like, is not.
    """
    monkeypatch.setattr(stage, "CONFIG", dataclasses.replace(stage.CONFIG, ema=0.9, warmup=5))
    options = AloneOptions(steps=120, batch=16, lr=1e-2)
    scores = train_voice(data, str(_start(data, tmp_path / "start")), tmp_path / "run", options)
    assert scores["sounds_wrong"] < 0.2
    assert scores["sounds_right"] > 0.5  # in time, too: who has said nothing yet gets none of them right
    agent = load_weights(tmp_path / "run" / stage.FOLDER)
    assert agent.config.voice is not None
    before = load_weights(tmp_path / "start").streamer.state_dict()
    after = agent.streamer.state_dict()
    assert not after["audio_out.weight"].any()
    assert all(torch.equal(after[name], value) for name, value in before.items() if not name.startswith("audio_out."))
    assert (tmp_path / "run" / "samples" / "step-000120.wav").is_file()


def test_a_voice_learns_how_sounds_sound(data: Path, tmp_path: Path) -> None:
    """Where each sound has latents of its own, it says these; a voice that says nothing is four times as far away."""
    training = VoiceStage(data, _start(data, tmp_path / "start", SAYING), dataclasses.replace(stage.CONFIG, steps=80))
    table = torch.randn(SOUNDS, SAYING.audio_vae.latent_dim, generator=torch.Generator().manual_seed(0))
    for part in (training.train_part, training.valid_part):
        part.spoken = [
            spoken._replace(audio_UTC=table[spoken.sounds_UP[:, ::SOUNDS_PER_TICK]].half()) for spoken in part.spoken
        ]
    optimiser = torch.optim.AdamW(training.voice.parameters(), lr=1e-2)
    for step in range(80):
        rows = range(24)
        loss, _ = training.loss(training.batch(step, rows), step, RowNoise(0, step, rows))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    due = table[training.valid_part.spoken[0].sounds_UP[:, ::SOUNDS_PER_TICK]]
    said = training.say(training.valid_part.spoken[0].sounds_UP)
    assert (said - due).square().mean() < due.square().mean() / 4


def test_a_voice_is_trained_on_from_where_it_is(data: Path, tmp_path: Path) -> None:
    start = _start(data, tmp_path / "start", SAYING)
    config = dataclasses.replace(stage.CONFIG, steps=1, batch=4)
    trained = VoiceStage(data, start, config)
    expected = tiny_weights(2, SAYING).streamer.voice
    assert expected is not None
    assert all(torch.equal(a, b) for a, b in zip(trained.voice.parameters(), expected.parameters(), strict=True))
    assert all(p.requires_grad for p in trained.voice.parameters())


def test_a_run_goes_on_exactly(data: Path, tmp_path: Path) -> None:
    """Interrupted or not, a new voice is the same: first weights, data and noise hang on the seed alone."""
    start = str(_start(data, tmp_path / "start"))
    options = AloneOptions(steps=12, batch=4, device="cpu")
    train_voice(data, start, tmp_path / "whole", options)
    train_voice(data, start, tmp_path / "parts", dataclasses.replace(options, minutes=0.0))
    train_voice(data, start, tmp_path / "parts", dataclasses.replace(options, resume=True))
    whole, parts = (load_weights(tmp_path / name / stage.FOLDER).streamer.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_on_the_command_line(data: Path, tmp_path: Path) -> None:
    line = ["train", "voice", "--data", str(data), "--from", str(_start(data, tmp_path / "start")), "--steps", "2"]
    result = CliRunner().invoke(app, [*line, "--batch", "2", "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert "sounds_wrong" in result.output
    assert f"serve --checkpoint {tmp_path / 'run' / 'agent'}" in result.output.replace("\n", "")
    save_weights(tiny_weights(2), tmp_path / "other")  # with codecs of its own
    line[5] = str(tmp_path / "other")
    assert isinstance(CliRunner().invoke(app, [*line, "--out", str(tmp_path / "no")]).exception, DataError)


def test_without_phonemes_there_is_nothing_to_learn(data: Path) -> None:
    store = _store(data)
    for labels in store.labels:
        del labels["phonemes"]
    assert VOICE is not None
    with pytest.raises(DataError, match="phonemes"):
        Stretches(store, SAYING, VOICE, tiny_weights().text)


@pytest.mark.parametrize("own", [False, True])
def test_a_voice_that_goes_on_from_itself_learns_what_is_due(data: Path, tmp_path: Path, own: bool) -> None:
    """One that only ever says nothing: after itself it is told the next sound, after true ones that of the moment."""
    training = VoiceStage(data, _start(data, tmp_path / "agent", SAYING), dataclasses.replace(stage.CONFIG, steps=1))
    voice, seen = training.voice, training.voice.config.sound_units
    with torch.no_grad():  # the error of a tick tells which sound is due
        voice.choice.weight.zero_()
        voice.choice.bias.copy_(-0.1 * torch.arange(SOUNDS))
    words, sounds, *_ = training.train_part.rows(0, 0, range(1), UNITS, 1.0)
    error, _ = training._choosing(words, sounds[:, :seen], sounds, own)
    place, told = Place(sounds.flatten(1), TICKS_PER_UNIT * seen), sounds[:, seen:].flatten().tolist()
    due = []
    for tick in range(TICKS_PER_UNIT * seen, sounds.shape[1] * TICKS_PER_UNIT):
        due.append(int(place.due(tick)))
        place.says(torch.tensor([QUIET]))
    assert due != told
    expected = torch.nn.functional.cross_entropy(
        voice.choice.bias.expand(len(told), -1), torch.tensor(due if own else told), ignore_index=UNKNOWN
    )
    torch.testing.assert_close(error, expected, atol=1e-2, rtol=1e-2)
