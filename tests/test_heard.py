"""Speech to write down: whose words stand where in the lanes, and which steps of a run learn what."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny import TALKER, tiny_text
from tiny_world import make_latents

from wan_streamer.errors import ConfigError
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.layout import LANES
from wan_streamer.model.streamer import ClipBatch, Streamer
from wan_streamer.simulation.voice.users import UserVoice
from wan_streamer.training.ears.corpus import CorpusWriter
from wan_streamer.training.examples.heard import HeardClips
from wan_streamer.training.loop.stage import TrainConfig
from wan_streamer.training.stages.duplex import CONFIG, HEARD_STEPS, DuplexStage

UNITS = 16
TEXTS = ("Hello there.", "How are you?", "One two three.", "Stop it now.")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    writer = CorpusWriter(folder, "espeak")
    for i, text in enumerate(TEXTS * 2):
        speech = UserVoice("en-us", "m3").speak(text)
        words = tuple((word.text, word.start, word.end) for word in speech.words)
        writer.add(speech.audio, "m3", text, "train" if i < len(TEXTS) else "valid", "", words)
    return folder


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


def test_a_number_of_steps_that_makes_no_sense() -> None:
    with pytest.raises(ConfigError, match="draw_every: expected at least 1 step, got 0"):
        TrainConfig(steps=1, lr=1.0, batch=1, draw_every=0)
