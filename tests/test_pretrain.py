"""Stage 1: every task is learned, batches and resumes are exact, and every task has its curves."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_tasks import Choir, Tone
from tiny import TALKER
from tiny_world import make_latents, save_codecs

from wan_streamer import UserUnit, WanStreamer, presets
from wan_streamer.codecs.folder import load_codecs
from wan_streamer.codecs.text import SILENCE, TextCodec
from wan_streamer.config import TextConfig
from wan_streamer.data.latents import encode_shards
from wan_streamer.data.shards import Episode, write_shard
from wan_streamer.errors import DataError
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.layout import LANES, ClipBatch, Latents
from wan_streamer.model.streamer import Streamer
from wan_streamer.simulation.tasks.episodes import TASKS, make_task
from wan_streamer.training.examples import tasks
from wan_streamer.training.examples.clips import MASKS, Example, hide, stack
from wan_streamer.training.examples.tasks import LENGTHS, MADE
from wan_streamer.training.examples.vocabulary import learn_text
from wan_streamer.training.loop.stage import TrainConfig
from wan_streamer.training.loop.trainer import Trainer
from wan_streamer.training.stages import duplex
from wan_streamer.training.stages.duplex import TASK_EVERY, DuplexStage, train_duplex
from wan_streamer.training.stages.objective import FlowSample, draw_flow, video_error
from wan_streamer.training.stages.pretrain import PretrainStage, train_pretrain
from wan_streamer.training.stages.run import RunOptions
from wan_streamer.training.stages.streamer import StreamerStage

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # "Mean of empty slice" and its like

PUPIL = dataclasses.replace(
    TALKER, backbone=dataclasses.replace(TALKER.backbone, dim=64, mlp_dim=128), text=TextConfig(vocab_size=400)
)
TRIED = 20  # tasks of each name, of which the shortest is taken: quick to draw and to learn


def short_task(name: str) -> Episode:
    tried = [make_task(3, "train", i, Tone(), Choir(), name, pictures=False).units for i in range(TRIED)]
    return make_task(3, "train", int(np.argmin(tried)), Tone(), Choir(), name)


def make_data(folder: Path) -> Path:
    """One task of each of the eleven names, real films included, encoded by the tiny codecs: to learn and held out."""
    with pytest.MonkeyPatch.context() as patch:
        for name, size in (("HEIGHT", TALKER.video_vae.height), ("WIDTH", TALKER.video_vae.width)):
            patch.setattr(f"wan_streamer.simulation.tasks.episodes.{name}", size)
        made = [dataclasses.replace(short_task(name), key=f"ep{i:06d}") for i, name in enumerate(TASKS)]
    talks = make_latents(folder / "talks", units=8)  # conversations of the same codecs
    codecs = load_codecs(PUPIL, talks)
    save_codecs(*codecs, folder)
    write_shard(folder / "shards" / "train" / "shard-00000.tar", made)
    encode_shards(folder / "shards" / "train", folder / "train", *codecs, PUPIL.perception)
    for place in (folder, folder / "shards"):
        shutil.copytree(place / "train", place / "valid")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def unvaried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sound and pictures are left alone, which takes most of the time where only what is drawn counts."""
    monkeypatch.setattr(tasks, "vary", lambda example, rng: example)


@pytest.fixture(scope="module")
def text(data: Path) -> TextCodec:
    return learn_text([data / "train"], PUPIL)


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "pupil", lambda: PUPIL)


def new_stage(data: Path, text: TextCodec, **options: float) -> PretrainStage:
    config = TrainConfig(steps=200, lr=2e-2, muon_lr=5e-2, batch=4, warmup=10, ema=0.95, validate_every=1000)
    torch.manual_seed(0)
    return PretrainStage(Streamer(PUPIL), text, data, dataclasses.replace(config, **options))


def assert_same(one: Example, two: Example) -> None:
    for name in (field.name for field in dataclasses.fields(ClipBatch)):
        assert torch.equal(getattr(one.clips, name), getattr(two.clips, name)), name
    assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in MASKS)


# One task for each set of targets: what the others train, these train as well.
LEARNED = ("asr_natural", "tts", "caption_image", "generate_audio", "generate_image", "generate_av")


@pytest.mark.slow
def test_tasks_of_every_target_are_learned_by_heart(data: Path, text: TextCodec, tmp_path: Path) -> None:
    stage = new_stage(data, text)
    clips = stage.train_tasks
    targets = {tuple(sorted(labels["targets"])) for labels in clips.reader.store.labels if labels["task"] in LEARNED}
    assert targets == {tuple(sorted(labels["targets"])) for labels in clips.reader.store.labels}
    clips.reader.length = np.where(np.isin(clips.names, LEARNED), clips.reader.length, 0)  # the others are not drawn
    trainer = Trainer(stage, tmp_path)
    before, after = trainer.validate(), trainer.run()
    curves = {name for name in after if "/" in name}
    assert {name.partition("/")[0] for name in curves} == set(TASKS)
    for labels in stage.train_clips.store.labels:
        known = {name.partition("/")[2] for name in curves if name.startswith(f"{labels['task']}/")}
        assert {name.removesuffix("_right") for name in known} == set(labels["targets"])  # nothing else is scored
    left = {"video": 0.06, "audio": 0.5, "response": 0.12, "transcript": 0.12}  # tiny codecs: their sound is half noise
    for name in (name for name in curves if name.partition("/")[0] in LEARNED):
        if name.endswith("_right"):
            assert after[name] > 0.75, name
        else:
            assert after[name] < left[name.partition("/")[2]] * before[name], name
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["tts/audio"] == pytest.approx(after["tts/audio"], abs=1e-5)
    assert ">asr/transcript<" in (tmp_path / "curves.html").read_text()


def test_batches_depend_on_the_step_alone(data: Path, text: TextCodec) -> None:
    """What a resume relies on, and that rows are independent of how a batch is split."""
    one, two = new_stage(data, text), new_stage(data, text)
    one.batch(3, range(2))
    for step in range(6):
        whole = one.batch(step, range(3))
        assert_same(whole, stack(two.batch(step, range(row, row + 1)) for row in range(3)))


@pytest.mark.usefixtures("unvaried")
def test_a_batch_holds_whole_tasks_of_about_one_length(data: Path, text: TextCodec) -> None:
    clips = new_stage(data, text).train_tasks
    share = clips.reader.length / clips.reader.length.sum()  # of the rows
    assert (share * clips.reader.length).sum() / (share * clips.fit).sum() > 0.75  # of the units hold something
    drawn, lengths = [], clips.reader.length
    for step in range(150):
        example = clips.batch(5, step, range(2))
        units = example.recalled_BK.shape[1]
        assert units in LENGTHS
        known = (example.video_BK + example.audio_BK + example.lane_BKL.sum(2) > 0).sum(1)
        drawn += [int(count) for count in known if count]
        assert all(0 <= units - count < 16 for count in known if count)
    share = sum(lengths[lengths >= 24]) / sum(lengths)  # by seconds, not by number
    assert np.mean(np.array(drawn) >= 24) == pytest.approx(share, abs=0.15)


@pytest.mark.usefixtures("unvaried")
def test_conditions_are_hidden_where_sound_or_pictures_are_made(data: Path, text: TextCodec) -> None:
    clips = new_stage(data, text).train_tasks
    found: dict[tuple[bool, ...], int] = {}
    for step in range(600):
        example = clips.batch(1, step, range(1))
        hidden = (
            not example.clips.written_BK.any().item(),
            not example.clips.microphone_BK.any().item(),
            not example.recalled_BK.any().item(),
        )
        found[hidden] = found.get(hidden, 0) + 1
        if any(hidden):
            assert example.video_BK.any() or example.audio_BK.any()
        if hidden[1]:
            assert (example.clips.user_text_BKS == SILENCE).all()
            assert not example.lane_BKL.any()
    no, yes = False, True
    assert set(found) == {(no, no, no), (yes, no, no), (no, yes, no), (no, no, yes), (yes, yes, yes)}
    assert 0.05 < 1 - found[no, no, no] / 600 < 0.3


@torch.no_grad()
def test_only_targets_are_learned(data: Path, text: TextCodec) -> None:
    stage = new_stage(data, text)
    for name in TASKS:
        (example,) = stage.valid_tasks.samples(name, 6)
        number = list(stage.valid_tasks.names).index(name)
        targets = set(stage.valid_clips.store.labels[number]["targets"])
        _, numbers = stage.loss(example, 0, RowNoise(0, 0, range(1)))
        assert {stream for stream in ("video", "audio") if numbers[stream] == numbers[stream]} == targets & MADE
        for number, lane in enumerate(LANES):
            learned = numbers[f"{lane}_right"] == numbers[f"{lane}_right"]
            written = (example.clips.slot_BKSL[..., number] != SILENCE).any()
            assert learned == written == (lane in targets), name


def test_hidden_history_is_nothing_but_noise(data: Path, text: TextCodec) -> None:
    stage = new_stage(data, text)
    (example,) = stage.valid_tasks.samples("tts", 1)
    blind, flow = hide(example, history=True), PUPIL.flow
    other = dataclasses.replace(blind.clips, audio_BKTC=blind.clips.audio_BKTC + 1)
    one, two = (
        draw_flow(clips, flow, RowNoise(0, 0, range(1)), lambda x: x, blind.recalled_BK)
        for clips in (blind.clips, other)
    )
    assert torch.equal(one.history.audio, two.history.audio)
    assert (one.history_tau_BK2 == 1).all()
    assert not torch.equal(one.noisy.audio, two.noisy.audio)


def test_padding_does_not_change_the_loss(data: Path, text: TextCodec) -> None:
    """Of pictures: the end of a short clip is no motion."""
    reader = new_stage(data, text).valid_clips
    number = int(np.argmin(reader.length))
    losses = []
    for units in (int(reader.length[number]), 40):
        example = reader.read(number, 0, units=units)
        example = dataclasses.replace(example, video_BK=(torch.arange(units) < reader.length[number]).float()[None])
        clean = Latents(*(z[:, 1:] for z in (example.clips.video_BKNP, example.clips.audio_BKTC)))
        zero, time = Latents(*(torch.zeros_like(z) for z in clean)), torch.zeros(1, units, 2)
        sample = FlowSample(zero, time, zero, 1 + time, clean, zero)
        losses.append(video_error(zero, sample, example).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("kind", ["pretrain", "duplex with tasks"])
def test_resumed_equals_uninterrupted(kind: str, data: Path, text: TextCodec, tmp_path: Path) -> None:
    def stage() -> StreamerStage:
        if kind == "pretrain":
            return new_stage(data, text, steps=TASK_EVERY + 1, batch=1)
        config = TrainConfig(steps=TASK_EVERY + 1, lr=1e-3, batch=1, validate_every=1000, clip_units=8)
        torch.manual_seed(0)
        return DuplexStage(Streamer(PUPIL), text, data / "talks", config, data)

    Trainer(stage(), tmp_path / "whole").run()
    for _ in range(2):
        part = Trainer(stage(), tmp_path / "parts")
        if part.out.joinpath("trainer.safetensors").exists():
            part.resume()
        part.run(minutes=None if part.step else 0)
    left, right = (load_file(tmp_path / name / "trainer.safetensors") for name in ("whole", "parts"))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_samples_are_written_and_are_not_random(data: Path, text: TextCodec, tmp_path: Path) -> None:
    stage = new_stage(data, text)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    stage.write_samples(tmp_path / "a")
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()
    stage.write_samples(tmp_path / "b")
    for ending in ("png", "wav", "txt"):
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()
    captions = (tmp_path / "a.txt").read_text()
    shown = [labels for labels in stage.valid_clips.store.labels if labels["task"] in ("tts", "generate_av")]
    prompts = [labels["prompt"] for labels in shown]
    assert all(f"user typed: {prompt}" in captions for prompt in prompts)
    assert "model response:" in captions


def test_a_pretrained_agent_goes_on_to_conversation(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplex, "VALIDATION", (1, 1))
    monkeypatch.setattr(tasks, "VALID_TASKS", 1)
    first, second = tmp_path / "pretrain", tmp_path / "duplex"
    train_pretrain(data, RunOptions(first, "pupil", steps=1, batch=1), "cpu")
    scores = train_duplex(
        data / "talks", RunOptions(second, start=str(first), steps=1, batch=1, clip_units=8), "cpu", data
    )
    assert {"loss", "tts/audio", "asr/transcript"} <= set(scores)
    assert (first / "tokenizer.json").read_bytes() == (second / "tokenizer.json").read_bytes()
    agent = WanStreamer.from_pretrained(second)
    assert agent.session(seed=0).step(UserUnit(text="Say: hello")).video.shape == (4, 96, 96, 3)


def test_the_tokenizer_knows_prompts_and_answers(data: Path, tmp_path: Path) -> None:
    stores = [data / "train", data / "talks" / "train"]
    config = dataclasses.replace(PUPIL, text=dataclasses.replace(PUPIL.text, vocab_size=1000))
    text = learn_text(stores, config)
    for word in ("Say", ":", " says", "Picture", " you", "hello"):
        assert len(text.encode(word)) == 1, word
    with pytest.raises(DataError, match="found an empty folder"):
        learn_text([tmp_path], config)


def test_what_is_no_task_is_refused(data: Path, text: TextCodec) -> None:
    config = TrainConfig(steps=1, lr=1e-3, batch=1)
    with pytest.raises(DataError, match="expected tasks, got a conversation"):
        PretrainStage(Streamer(PUPIL), text, data / "talks", config)
    stage = new_stage(data, text)
    stage.train_clips.store.labels[0]["units"] = LENGTHS[-1] + 1
    with pytest.raises(DataError, match="at most 40 units, got 41"):
        tasks.TaskClips(stage.train_clips, data)
