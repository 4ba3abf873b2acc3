"""Which sound of speech is due: labels on ticks, and the question that learning to speak is asked beside the sound."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import TALKER, tiny_weights
from tiny_world import make_latents

from wan_streamer import presets
from wan_streamer.benchmarks.training import random_example
from wan_streamer.codecs.folder import codec_hash, load_codecs
from wan_streamer.data.latents import LatentStore
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.streamer import Streamer
from wan_streamer.training.examples.clips import ClipReader, Example
from wan_streamer.training.examples.sounds import OTHER, QUIET, SOUNDS, SYMBOLS, UNKNOWN, sounds_of
from wan_streamer.training.stages import duplex
from wan_streamer.training.stages.duplex import train_duplex
from wan_streamer.training.stages.objective import streamer_loss
from wan_streamer.training.stages.pronouncing import Pronouncing, drawn_from
from wan_streamer.training.stages.run import RunOptions

UNITS, ROWS = 3, 2


def labelled(*phonemes: tuple[str, float, float]) -> dict:
    return {"units": 2, "phonemes": {"agent": [{"symbol": s, "start": a, "end": b} for s, a, b in phonemes]}}


def number(symbol: str) -> int:
    return SYMBOLS.index(symbol) + 1


def test_a_tick_has_the_sound_in_its_middle() -> None:
    """Ticks of 40 ms, whose middles are at 20, 60, 100 ms and so on."""
    sounds = sounds_of(labelled(("h", 0.05, 0.1), ("aɪ", 0.1, 0.19), ("!", 0.21, 0.23), ("s", 0.3, 0.5)))
    assert sounds.tolist() == [
        [QUIET, number("h"), number("a"), number("a")], [number("a"), OTHER, QUIET, number("s")]
    ]  # fmt: skip
    assert len(set(SYMBOLS)) == len(SYMBOLS)
    assert max(number(s) for s in SYMBOLS) < OTHER < SOUNDS


@pytest.mark.parametrize("labels", [{"units": 2}, {"units": 2, "phonemes": {"user": [], "agent": []}}])
def test_without_labels_nothing_is_known(labels: dict) -> None:
    """A recording has none, though somebody speaks in it."""
    assert (sounds_of(labels) == UNKNOWN).all()


def test_a_clip_knows_nothing_behind_the_end(tmp_path: Path) -> None:
    latents = make_latents(tmp_path, units=6)
    store = LatentStore(latents / "train", codec_hash(*load_codecs(TALKER, latents)), TALKER.perception)
    store.labels[0] |= labelled(("s", 0.0, 0.96)) | {"units": 6}
    reader = ClipReader(store, TALKER, tiny_weights().text, 4)
    assert (reader.read(0, 0).sound_BKT == number("s")).all()
    late = reader.read(0, 5).sound_BKT[0]
    assert (late[0] == number("s")).all()
    assert (late[1:] == UNKNOWN).all()


def loss_of(
    streamer: Streamer, example: Example, asking: Pronouncing | None, **options: bool
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    noise, exact = RowNoise(0, 0, range(ROWS)), torch.autocast("cpu", enabled=False)
    return streamer_loss(streamer, example, noise, lambda x: x, exact, pronouncing=asking, **options)


def test_what_is_asked_for_adds_to_the_loss() -> None:
    torch.manual_seed(0)
    streamer, example = Streamer(TALKER), random_example(TALKER, UNITS, ROWS)
    asking = Pronouncing(streamer.audio_out.in_features)
    plain, with_it = loss_of(streamer, example, None)[0], loss_of(streamer, example, asking)
    assert with_it[1]["sound"].item() == pytest.approx(math.log(SOUNDS), rel=1e-4)
    assert (with_it[0] - plain).item() == pytest.approx(0.2 * math.log(SOUNDS), rel=1e-4)
    with_it[0].backward()
    assert asking.out.weight.grad is not None
    assert asking.out.weight.grad.any()
    for changes in ({"sound_BKT": torch.full_like(example.sound_BKT, UNKNOWN)}, {"audio_BK": example.audio_BK * 0}):
        unknown = dataclasses.replace(example, **changes)
        assert loss_of(streamer, unknown, asking)[0].item() == loss_of(streamer, unknown, None)[0].item()
    hidden = dataclasses.replace(
        example, clips=dataclasses.replace(example.clips, written_BK=torch.zeros_like(example.clips.written_BK))
    )
    assert loss_of(streamer, hidden, asking)[0].item() == loss_of(streamer, hidden, None)[0].item()
    assert "sound" not in loss_of(streamer, example, asking, drawn=False)[1]


def test_its_gradient_reaches_the_transformer() -> None:
    """And from the tokens of the sound alone: without pictures it is the same."""
    torch.manual_seed(0)
    streamer, example = Streamer(TALKER), random_example(TALKER, UNITS, ROWS)
    asking = Pronouncing(streamer.audio_out.in_features)
    torch.nn.init.normal_(asking.out.weight)
    with drawn_from(streamer.audio_out) as hidden:
        loss_of(streamer, example, None, pictures=False)
    assert [tuple(x.shape[:3]) for x in hidden] == [(ROWS, UNITS, 4)]
    error, weight, _ = asking(hidden[0], example.sound_BKT, example.audio_BK)
    (error * weight).sum().backward()
    assert streamer.text_in.weight.grad is not None
    assert streamer.text_in.weight.grad.any()
    loss_of(streamer, example, None)
    assert len(hidden) == 1  # nobody listens any more


def test_quiet_ticks_count_little() -> None:
    asking = Pronouncing(4)
    _, weight, right = asking(torch.zeros(1, 1, 4, 4), torch.tensor([[[QUIET, 1, UNKNOWN, 2]]]), torch.ones(1, 1))
    assert weight.flatten().tolist() == pytest.approx([0.2, 1, 0, 1])
    assert right == 0
    with torch.no_grad():
        asking.out.bias[1] = 5
    assert asking(torch.zeros(1, 1, 4, 4), torch.tensor([[[QUIET, 1, UNKNOWN, 2]]]), torch.ones(1, 1))[2] == 0.5


def test_training_asks_and_the_agent_keeps_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "tiny", lambda: TALKER)
    monkeypatch.setattr(duplex, "VALIDATION", (1, 2))
    latents = make_latents(tmp_path / "latents", units=8)
    options = RunOptions(tmp_path / "run", "tiny", steps=2, batch=2, clip_units=6)
    assert train_duplex(latents, options, "cpu")["sound"] > 0
    state = load_file(tmp_path / "run" / "trainer.safetensors")
    assert state["model.pronouncing.out.weight"].any()
    assert not [name for name in load_file(tmp_path / "run" / "model.safetensors") if "pronouncing" in name]
