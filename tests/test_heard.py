"""Speech to write down: whose words stand where in the lanes, and which steps of a run learn what."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny import TALKER, tiny_text
from tiny_ears import TEXTS, said_corpus
from tiny_world import make_latents

from wan_streamer.errors import ConfigError
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.layout import LANES, ClipBatch, Latents
from wan_streamer.model.streamer import Streamer
from wan_streamer.training.examples.heard import HeardClips
from wan_streamer.training.loop.stage import TrainConfig
from wan_streamer.training.stages import streamer as streamer_stage
from wan_streamer.training.stages import watch
from wan_streamer.training.stages.duplex import CONFIG, HEARD_STEPS, DuplexStage

UNITS = 16


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return said_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_latents(tmp_path_factory.mktemp("latents"), units=UNITS + 2, episodes=2)


def stage(latents: Path, corpus: Path | None, **options: int) -> DuplexStage:
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, steps=20, batch=2, clip_units=UNITS, **options)
    return DuplexStage(Streamer(TALKER), tiny_text(), latents, config, heard=corpus)


def test_the_transcript_has_the_words_of_the_clips(corpus: Path) -> None:
    clips = HeardClips(corpus, "train", TALKER, tiny_text(), UNITS)
    one, again = clips.batch(0, 3, range(4)), clips.batch(0, 3, range(4))
    for field in dataclasses.fields(ClipBatch):
        assert torch.equal(getattr(one.clips, field.name), getattr(again.clips, field.name)), field.name
    said = [tiny_text().decode(row.flatten().tolist()) for row in one.clips.slot_BKSL[..., LANES.index("transcript")]]
    assert all(any(lane.startswith(text[:6]) for text in TEXTS) for lane in said), said
    assert sum(any(text in lane for text in TEXTS) for lane in said) >= 2, said  # some go on behind the clip
    assert not (one.clips.slot_BKSL[..., LANES.index("response")] > 1).any()
    assert one.lane_BKL.unique(dim=1).squeeze().tolist() == [[0.0, 1.0]] * 4
    assert not one.clips.camera_BK.any()
    assert one.clips.microphone_BK.all()


def test_every_step_learns_what_it_should(latents: Path, corpus: Path) -> None:
    listening = stage(latents, corpus, draw_every=2)
    for step in range(10):
        batch = listening.batch(step, range(2))
        _, numbers = listening.loss(batch, step, RowNoise(0, step, range(2)))
        assert listening.listens(step) == (step in HEARD_STEPS)
        assert ("video" in numbers) == (step % 2 == 0 and step not in HEARD_STEPS), step
        assert "text" in numbers


def test_held_out_speech_is_scored(latents: Path, corpus: Path) -> None:
    scores = stage(latents, corpus).validate()
    assert {"heard/text", "heard/transcript_right"} <= set(scores)
    assert not any(name.startswith("heard") for name in stage(latents, None).validate())


def test_the_model_writes_down_held_out_speech_by_itself(
    latents: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words of a model that knows them, of one that does not, and of one that never writes."""
    training = stage(latents, corpus)
    monkeypatch.setattr(streamer_stage, "ALONE", 2)
    monkeypatch.setattr(streamer_stage, "write_takes", lambda *_: None)
    lane = LANES.index("transcript")
    clips = training.heard.clips()
    true = [clip.slot_BKSL[0, ..., lane] for clip in clips]

    def alone(tokens: list[torch.Tensor]) -> float:
        takes = iter(tokens)

        def roll(streamer, clips, row, pick, draw, written_K):  # type: ignore[no-untyped-def]
            said = torch.zeros_like(clips.slot_BKSL[0])
            said[..., lane] = next(takes)
            last = Latents(clips.video_BKNP[0, 1:], clips.audio_BKTC[0, 1:])
            assert torch.equal(draw(0, None, last).video, last.video)
            return said, last

        monkeypatch.setattr(watch, "roll_out", roll)
        return training.write_samples(tmp_path / "step")["heard/words_wrong"]

    assert alone(true) == 0
    assert alone([torch.zeros_like(tokens) for tokens in true]) == 1
    assert 0.3 < alone(true[::-1]) <= 1
    written = (tmp_path / "step-heard.txt").read_text()
    assert f"true:  {tiny_text().decode(true[0].flatten().tolist())}" in written
    monkeypatch.undo()
    monkeypatch.setattr(streamer_stage, "ALONE", 1)
    monkeypatch.setattr(streamer_stage, "write_takes", lambda *_: None)
    assert training.write_samples(tmp_path / "real")["heard/words_wrong"] > 0  # the model itself, which knows nothing
    assert stage(latents, None).write_samples(tmp_path / "none") == {}


def test_a_number_of_steps_that_makes_no_sense() -> None:
    with pytest.raises(ConfigError, match="draw_every: expected at least 1 step, got 0"):
        TrainConfig(steps=1, lr=1.0, batch=1, draw_every=0)
