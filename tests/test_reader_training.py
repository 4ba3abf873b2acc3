"""A reader that learns to follow speech: what is due in which unit, what it may know of, what a run leaves."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from test_reading import CONFIG, livened
from tiny import TALKER, tiny_text, tiny_weights
from tiny_ears import said_corpus
from tiny_world import make_episode, save_codecs
from typer.testing import CliRunner

from wan_streamer.cli.app import app
from wan_streamer.codecs.text import END, SILENCE
from wan_streamer.data.lanes import conversation_lanes
from wan_streamer.data.latents import encode_shards
from wan_streamer.data.shards import write_shard
from wan_streamer.errors import CheckpointError, DataError
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.pretrained import load_weights, save_weights
from wan_streamer.model.streamer import Streamer
from wan_streamer.perception.senses import Senses
from wan_streamer.training.examples.heard import labels_of
from wan_streamer.training.loop.alone import AloneOptions
from wan_streamer.training.reader import stage as stages
from wan_streamer.training.reader import streams
from wan_streamer.training.reader import whole as wholes
from wan_streamer.training.reader.stage import AGAIN, DUE, FOLDER, ReaderStage, train_reader
from wan_streamer.training.reader.stage import CONFIG as NUMBERS
from wan_streamer.training.reader.streams import IGNORED, TRANSCRIPT, DueStreams, misread
from wan_streamer.training.reader.whole import whole_texts
from wan_streamer.units import SAMPLES_PER_UNIT

UNITS = 24


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return said_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agent")
    weights = tiny_weights(config=CONFIG)
    livened(weights.streamer.reading)
    save_weights(weights, folder)
    return folder


@pytest.fixture(autouse=True)
def short_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "UNITS", UNITS)


def stage(corpus: Path, agent: Path, **numbers: float) -> ReaderStage:
    config = dataclasses.replace(NUMBERS, batch=2, precision="fp32", **numbers)
    return ReaderStage(corpus, agent, config)


@pytest.mark.parametrize("later", [0, 1])
def test_what_is_due_is_what_is_written_in_the_unit(corpus: Path, later: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All words of a stream are due once or, written a unit later, once more while they are missing."""
    monkeypatch.setattr(streams, "LATE", float(later))
    made = DueStreams(corpus, "train", CONFIG, tiny_text(), 0)
    batch, again = made.batch(3, range(2)), made.batch(3, range(2))
    assert all(torch.equal(one, other) for one, other in zip(batch, again, strict=True))
    for row in range(2):
        stream = made.streams.make(3, row)
        lane_KS = torch.from_numpy(conversation_lanes(labels_of(stream), CONFIG.text, tiny_text())[1][..., TRANSCRIPT])
        assert torch.equal(batch.written_BKS[row, later:], lane_KS[: UNITS - later])
        assert not batch.written_BKS[row, :later].any()
        assert (lane_KS > END).sum() > 8
        for unit in range(UNITS):
            slots = lane_KS[max(0, unit - later) : unit + 1].flatten().tolist()
            words = [token for token in slots if token > END]
            due = [token for token in batch.due_BKG[row, unit].tolist() if token != IGNORED]
            assert due[: len(words)] == words[:3]
            if len(words) < len(slots) and len(words) < 3:
                assert due == [*words, END]


def test_a_word_is_misread_where_it_is_written() -> None:
    written = torch.tensor([[[0, 0], [7, 8], [9, 1], [2, 0]]])
    due = torch.tensor([[[END, -100, -100], [7, 8, -100], [9, END, -100], [END, -100, -100]]])
    found = torch.tensor([[[5, 5, 5], [7, 30, 5], [31, 31, 5], [END, 5, 5]]])
    rng = torch.Generator().manual_seed(0)
    assert misread(written, due, found, 1.0, rng).tolist() == [[[0, 0], [7, 30], [31, 1], [2, 0]]]
    assert torch.equal(misread(written, due, found, 0.0, rng), written)
    late = torch.tensor([[[0, 0], [0, 0], [7, 8], [9, 1]]])
    assert misread(late, due, found, 1.0, rng).tolist() == [[[0, 0], [0, 0], [7, 30], [31, 1]]]


def test_what_is_learned_is_what_is_asked_live(corpus: Path, agent: Path) -> None:
    """Where the words that are due are those that it finds, it finds them one after the other as in a call."""
    training = stage(corpus, agent)
    batch, window = training.batch(0, range(2)), CONFIG.perception.reading_units
    every_BQ = torch.arange(UNITS).expand(2, -1)
    with torch.no_grad():
        sound = training.reader.sound(training.ears(batch.heard_BX)[0])
        found = training.reader.ahead(sound, batch.written_BKS, 3, window)
        scores = training._scores(sound, batch.written_BKS, found.token, every_BQ)
    asked = found.token >= END
    assert asked.sum() > UNITS
    assert (found.token > END).any()
    assert torch.equal(scores.argmax(-1)[asked], found.token[asked])
    words = scores[..., END + 1 :].log_softmax(-1).clamp(min=-12.0)
    torch.testing.assert_close(words[asked], found.score[asked][:, END + 1 :], atol=1e-4, rtol=1e-4)


def test_it_hears_nothing_beyond_the_unit(corpus: Path, agent: Path) -> None:
    training, unit = stage(corpus, agent), 9
    batch = training.batch(0, range(2))
    changed_BT = batch.heard_BX.clone()
    changed_BT[:, (unit + 1) * SAMPLES_PER_UNIT :] = 0
    every_BQ = torch.arange(UNITS).expand(2, -1)
    with torch.no_grad():
        one, other = (
            training._scores(training.reader.sound(training.ears(audio)[0]), batch.written_BKS, batch.due_BKG, every_BQ)
            for audio in (batch.heard_BX, changed_BT)
        )
    torch.testing.assert_close(one[:, : unit + 1], other[:, : unit + 1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(one[:, unit + 1 :], other[:, unit + 1 :], atol=1e-2)


def test_a_run_changes_the_reader_alone_and_goes_on_exactly(corpus: Path, agent: Path, tmp_path: Path) -> None:
    """And from then on it counts in whether a word is written."""
    started = load_weights(agent)
    before = started.streamer.state_dict()
    options = AloneOptions(steps=12, lr=3e-3, batch=2, device="cpu")
    train_reader(corpus, agent, tmp_path / "whole", options)
    train_reader(corpus, agent, tmp_path / "parts", dataclasses.replace(options, minutes=0.0))
    scores = train_reader(corpus, agent, tmp_path / "parts", dataclasses.replace(options, resume=True))
    assert {"loss", "words_right", "waits_right"} <= scores.keys()
    trained = load_weights(tmp_path / "whole" / FOLDER)
    perception = dataclasses.replace(started.config.perception, reading_due=DUE, reading_again=AGAIN)
    assert trained.config == dataclasses.replace(started.config, perception=perception) != started.config
    assert trained.streamer.trust.due == DUE
    whole, parts = (load_weights(tmp_path / name / FOLDER).streamer.state_dict() for name in ("whole", "parts"))
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name
        assert torch.equal(value, before[name]) != name.startswith("reading."), name


def test_steps_lower_the_loss(corpus: Path, agent: Path) -> None:
    training = stage(corpus, agent)
    optimiser = torch.optim.AdamW(training.reader.parameters(), lr=3e-3)
    batch, losses = training.batch(0, range(2)), []
    for step in range(30):
        loss, _ = training.loss(batch, 2 * (step // 2), RowNoise(0, 0, range(2)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_whole_texts_are_learned_from_who_knows_them(corpus: Path, agent: Path) -> None:
    """A run begins between both; who reads like the one that knows them has no more to learn than the texts."""
    plain = stage(corpus, agent)
    knows = copy.deepcopy(plain.reader).requires_grad_(False)
    for weight in knows.parameters():
        weight.copy_(weight + 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    original = knows.state_dict()
    training = ReaderStage(corpus, agent, plain.config, original=original)
    for name, weight in training.reader.state_dict().items():
        torch.testing.assert_close(weight, (original[name] + plain.reader.state_dict()[name]) / 2)
    batch, errors = plain.batch(0, range(2)), []
    for weights in (original, plain.reader.state_dict()):
        pair = []
        for one in (plain, training):
            one.reader.load_state_dict(weights)
            loss, numbers = one.loss(batch, 0, RowNoise(0, 0, range(2)))
            pair.append(float(numbers["whole"]))
            one.reader.zero_grad()
            loss.backward()
            assert one.reader.norm.weight.grad.abs().sum() > 0
        errors.append(pair)
        plain.reader.load_state_dict(load_weights(agent).streamer.reading.state_dict())
    (alone, same), (other, away) = errors
    assert same == pytest.approx(alone / 2, rel=1e-3)
    assert away > other / 2 + 0.01
    assert all(weight.grad is None for weight in training.original.parameters())


def test_of_several_texts_only_the_words_are_learned(
    corpus: Path, agent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who knows whole texts ends where the first of them might end."""
    plain = stage(corpus, agent)
    knows = {name: weight + 1 for name, weight in plain.reader.state_dict().items()}
    training = ReaderStage(corpus, agent, plain.config, original=knows)
    training.reader.load_state_dict(plain.reader.state_dict())
    batch, found = plain.batch(0, range(2)), {}
    for joined in (False, True):

        def texts(*args, joined=joined) -> wholes.Whole:
            whole = whole_texts(*args)
            return whole._replace(joined_BE=torch.full_like(whole.joined_BE, joined))

        monkeypatch.setattr(stages, "whole_texts", texts)
        found[joined] = [float(one.loss(batch, 0, RowNoise(0, 0, range(2)))[1]["whole"]) for one in (plain, training)]
    assert found[True][1] == pytest.approx(found[True][0])
    assert found[False][1] > found[False][0] / 2 + 0.01


def test_an_agent_that_reads_whole_texts_begins_where_it_is(corpus: Path, agent: Path, tmp_path: Path) -> None:
    weights = load_weights(agent)
    perception = dataclasses.replace(weights.config.perception, reading_again=4)
    save_weights(
        dataclasses.replace(weights, config=dataclasses.replace(weights.config, perception=perception)), tmp_path
    )
    before = weights.streamer.reading.state_dict()
    other = {name: weight + 1 for name, weight in before.items()}
    training = ReaderStage(corpus, tmp_path, stage(corpus, agent).config, original=other)
    for name, weight in training.reader.state_dict().items():
        torch.testing.assert_close(weight, before[name])


def test_a_text_goes_on_in_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some are read as one, from the begin of the first to the end of the last."""
    written = torch.full((1, 40, 2), SILENCE)
    for unit, token in ((10, 50), (12, 51), (14, END), (20, 52), (22, END), (30, 53), (33, END)):
        written[0, unit, 0] = token
    monkeypatch.setattr(wholes, "CUT", 0.0)

    def found(joined: float) -> dict[tuple[int, ...], tuple[int, int]]:
        monkeypatch.setattr(wholes, "JOINED", joined)
        text_BEN, near_BEK, joined_BE = whole_texts(written, 8, torch.Generator().manual_seed(0))
        rows = zip(text_BEN[0].tolist(), near_BEK[0], strict=True)
        lengths = (text_BEN[0] > END).sum(1).tolist()
        assert joined_BE[0].tolist() == [bool(joined) and length > 2 for length in lengths]
        heard = {tuple(t for t in row if t > END): near.nonzero()[:, 0].tolist() for row, near in rows}
        return {text: (units[0], units[-1]) for text, units in heard.items() if text}

    assert set(found(0.0)) == {(50, 51), (52,), (53,)}
    whole = found(1.0)
    assert set(whole) == {(50, 51), (50, 51, 52), (50, 51, 52, 53)}
    assert all(first <= 10 - wholes.NEAR for first, _ in whole.values())
    assert whole[50, 51][1] < 18 < 20 <= whole[50, 51, 52][1] < 28 < 31 <= whole[50, 51, 52, 53][1]


def talks_of(folder: Path, agent: Path) -> Path:
    """Conversations of the world in train, as the ears of `agent` heard them, and in valid as they sounded."""
    weights, hearing = tiny_weights(), load_weights(agent).streamer.hearing
    for split in ("train", "valid"):
        shards, kept = folder / "shards" / split, Senses(hearing if split == "train" else None)
        write_shard(shards / "shard-00000.tar", [make_episode(i, 30, split) for i in range(2)])
        codecs = weights.audio_vae, weights.video_vae
        encode_shards(shards, folder / split, *codecs, TALKER.perception, senses=kept)
    save_codecs(*codecs, folder)
    return folder


def test_users_of_conversations_are_read_as_they_were_heard(corpus: Path, agent: Path, tmp_path: Path) -> None:
    """In every second pair of steps; what is due is what stands in the transcript of the stretch."""
    folder = talks_of(tmp_path / "talks", agent)
    training = ReaderStage(corpus, agent, dataclasses.replace(NUMBERS, batch=2, precision="fp32"), [folder])
    kinds = [training.batch(step, range(2)).heard_BX.ndim for step in range(6)]
    assert kinds == [2, 2, 4, 4, 2, 2]
    talks, batch = training.train_talks[0], training.batch(2, range(4))
    assert all(torch.equal(a, b) for a, b in zip(batch, training.batch(2, range(4)), strict=True))
    lanes = [
        torch.from_numpy(conversation_lanes(labels, CONFIG.text, tiny_text())[1][..., TRANSCRIPT])
        for labels in talks.store.labels
    ]
    words = 0
    for heard_KTD, written_KS in zip(batch.heard_BX, batch.written_BKS, strict=True):
        whole = [talks.store.heard(number, 0, 30) for number in range(2)]
        found = [
            (number, first)
            for number in range(2)
            for first in range(30 - UNITS + 1)
            if torch.equal(whole[number][first : first + UNITS], heard_KTD)
        ]
        ((number, first),) = found
        stretch = lanes[number][first : first + UNITS]
        assert any(torch.equal(written_KS[later:], stretch[: UNITS - later]) for later in (0, 1))
        words += int((written_KS > END).sum())
    assert words
    loss, _ = training.loss(batch, 2, RowNoise(0, 2, range(4)))
    loss.backward()
    assert training.reader.norm.weight.grad.abs().sum() > 0
    assert {"talks/loss", "talks/words_right"} <= training.validate().keys()


def test_conversations_that_others_heard_are_refused(corpus: Path, agent: Path, tmp_path: Path) -> None:
    folder = talks_of(tmp_path / "talks", agent)
    torch.manual_seed(5)
    other = tiny_weights(config=CONFIG)
    save_weights(dataclasses.replace(other, streamer=Streamer(CONFIG)), tmp_path / "other")
    line = ["train", "reader", "--data", str(corpus), "--from", str(tmp_path / "other"), "--talks", str(folder)]
    result = CliRunner().invoke(app, [*line, "--out", str(tmp_path / "run")])
    assert isinstance(result.exception, DataError)
    assert "encode it with the agent's" in str(result.exception)


def test_an_agent_without_a_reader_has_nothing_to_learn(corpus: Path, tmp_path: Path) -> None:
    save_weights(tiny_weights(), tmp_path / "deaf")
    with pytest.raises(CheckpointError, match="expected an agent with a reader"):
        stage(corpus, tmp_path / "deaf")
    line = ["train", "reader", "--data", str(corpus), "--from", str(tmp_path / "deaf"), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, line)
    assert isinstance(result.exception, CheckpointError)
