"""Sounds of speech: labels on ticks, chosen by the agent after its words, told where its voice is drawn."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import SAYING, TALKER, tiny_weights
from tiny_clips import K, off_is_blank, random_clip, tiny_streamer
from tiny_world import make_latents

from wan_streamer import presets
from wan_streamer.benchmarks.training import random_example
from wan_streamer.codecs.folder import codec_hash, load_codecs
from wan_streamer.codecs.sounds import OTHER, QUIET, SOUNDS, SYMBOLS, UNKNOWN, Sounds, preceding, sounds_of
from wan_streamer.data.latents import LatentStore
from wan_streamer.flow.live import UserInput, live_unit
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.layout import Latents
from wan_streamer.model.streamer import Streamer
from wan_streamer.training.examples.clips import ClipReader, Example
from wan_streamer.training.examples.written import SpokenClips
from wan_streamer.training.stages import duplex
from wan_streamer.training.stages.duplex import train_duplex
from wan_streamer.training.stages.objective import QUIET_WEIGHT, SOUND_WEIGHT, streamer_loss
from wan_streamer.training.stages.run import RunOptions

UNITS, ROWS = 3, 2


def saying(seed: int = 0) -> Streamer:
    """A model that chooses sounds, and to whose voice they make a difference."""
    torch.manual_seed(seed)
    streamer = Streamer(SAYING).eval()
    assert streamer.sounds is not None
    for weight in (streamer.sounds.told.weight, streamer.audio_out.weight, streamer.sounds.out.weight):
        torch.nn.init.normal_(weight)
    return streamer


def labelled(*phonemes: tuple[str, float, float]) -> dict:
    return {"units": 2, "phonemes": {"agent": [{"symbol": s, "start": a, "end": b} for s, a, b in phonemes]}}


def number(symbol: str) -> int:
    return SYMBOLS.index(symbol) + 1


def test_a_tick_has_the_sound_in_its_middle() -> None:
    """Ticks of 40 ms, whose middles are at 20, 60, 100 ms and so on."""
    sounds = sounds_of(labelled(("h", 0.05, 0.1), ("aɪ", 0.1, 0.19), ("!", 0.21, 0.23), ("s", 0.3, 0.5)))
    first, second = sounds.tolist()
    assert first == [QUIET, number("h"), number("a"), number("a")]
    assert second == [number("a"), OTHER, QUIET, number("s")]
    assert len(set(SYMBOLS)) == len(SYMBOLS)
    assert max(number(s) for s in SYMBOLS) < OTHER < SOUNDS


@pytest.mark.parametrize("labels", [{"units": 2}, {"units": 2, "phonemes": {"user": [], "agent": []}}])
def test_without_labels_nothing_is_known(labels: dict) -> None:
    """A recording has none, though somebody speaks in it."""
    assert (sounds_of(labels) == UNKNOWN).all()


def test_clips_know_the_sounds_of_the_agent(tmp_path: Path) -> None:
    """Of their units and of that before; nothing before the conversation and behind it."""
    latents = make_latents(tmp_path, units=6)
    store = LatentStore(latents / "train", codec_hash(*load_codecs(TALKER, latents)), TALKER.perception)
    symbols = "hswtpk"
    store.labels[0] |= labelled(*((s, 0.16 * i, 0.16 * (i + 1)) for i, s in enumerate(symbols))) | {"units": 6}
    reader = ClipReader(store, TALKER, tiny_weights().text, 4)
    for first, expected in ((0, [UNKNOWN, *map(number, "hswt")]), (3, [*map(number, "wtpk"), UNKNOWN])):
        sounds = reader.read(0, first).clips.sound_BKT
        assert sounds.shape == (1, 5, 4)
        assert sounds[0, :, 0].tolist() == expected
        assert (sounds == sounds[..., :1]).all()
    spoken = SpokenClips(reader)._later(
        0, 1, 1, ()
    )  # the agent does everything a unit later: what the user does is cut
    assert spoken.clips.sound_BKT[0, :, 0].tolist() == [*map(number, "hswtp")]


def test_each_sound_follows_the_one_before() -> None:
    torch.manual_seed(0)
    module = Sounds(SOUNDS, 8, 8)
    hidden, last = torch.randn(8), torch.tensor([3, 3, 3, 7])
    chosen = module.choose(hidden, last)
    before = torch.cat([last[-1:], chosen[:-1]])
    assert torch.equal(module(hidden, before).argmax(-1), chosen)
    clip = torch.stack([last, chosen])[None]
    assert torch.equal(preceding(clip)[0, 0], before)
    assert torch.equal(module.choose(hidden, None), module.choose(hidden, torch.full((4,), UNKNOWN)))
    told = module.tell(torch.tensor([UNKNOWN, QUIET, 5, UNKNOWN]))
    assert not told[[0, 3]].any()
    assert told[1:3].any()


@torch.no_grad()
def test_training_reads_what_is_chosen_live() -> None:
    """The voice that is drawn with the sounds that were chosen, unit after unit, is that of one pass over the clip."""
    streamer, clip = saying(), off_is_blank(random_clip(SAYING))
    live, noise = streamer.open(), torch.Generator().manual_seed(3)
    last = Latents(clip.video_BKNP[0, 0], clip.audio_BKTC[0, 0])
    noisy, drawn, chosen = [], [], []
    for k in range(K):
        given = Latents(clip.video_BKNP[0, k + 1], clip.audio_BKTC[0, k + 1])
        noisy.append(Latents(*(torch.randn(z.shape, generator=noise) for z in given)))
        audio = clip.user_audio[0].unflatten(0, (K, -1))[k] if clip.microphone_BK[0, k] else None
        frames = clip.user_video[0].unflatten(0, (K, -1))[k] if clip.camera_BK[0, k] else None
        slots = iter(clip.slot_BKSL[0, k])

        def draw(velocity, _, given=given):
            drawn.append(velocity(noisy[-1], 0.7))
            return given

        live_unit(streamer, live, last, UserInput(audio, frames, clip.user_text_BKS[0, k]), lambda _: next(slots), draw)  # noqa: B023
        chosen.append(live.sounds)
        last = given
    assert len({tuple(sounds.tolist()) for sounds in chosen}) > 1
    first = torch.full((4,), UNKNOWN)
    clip = dataclasses.replace(clip, sound_BKT=torch.stack([first, *chosen])[None])
    history = Latents(clip.video_BKNP[:, :-1], clip.audio_BKTC[:, :-1])
    both = Latents(*(torch.stack([z[i] for z in noisy])[None] for i in range(2)))
    passed = streamer(clip, history, torch.zeros(1, K, 2), both, torch.full((1, K, 2), 0.7))
    for i in range(2):
        torch.testing.assert_close(passed.velocity[i][0], torch.stack([v[i] for v in drawn]), atol=2e-4, rtol=2e-4)
    assert torch.equal(passed.sounds.argmax(-1)[0], torch.stack(chosen))
    other = dataclasses.replace(clip, sound_BKT=torch.full_like(clip.sound_BKT, 5))
    untold = streamer(other, history, torch.zeros(1, K, 2), both, torch.full((1, K, 2), 0.7))
    assert not torch.allclose(untold.velocity.audio, passed.velocity.audio, atol=1e-2)


def loss_of(streamer: Streamer, example: Example, **options: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    noise, exact = RowNoise(0, 0, range(ROWS)), torch.autocast("cpu", enabled=False)
    return streamer_loss(streamer, example, noise, lambda x: x, exact, **options)


def with_clips(example: Example, **changes: torch.Tensor) -> Example:
    return dataclasses.replace(example, clips=dataclasses.replace(example.clips, **changes))


def test_choosing_sounds_is_learned_where_they_are_known() -> None:
    streamer, example = saying(), random_example(SAYING, UNITS, ROWS)
    torch.nn.init.zeros_(streamer.sounds.out.weight)
    torch.nn.init.zeros_(streamer.sounds.out.bias)
    loss, numbers = loss_of(streamer, example)
    assert numbers["sound"].item() == pytest.approx(math.log(SOUNDS), rel=1e-4)
    loss.backward()
    assert streamer.sounds.out.weight.grad.any()
    unknown = with_clips(example, sound_BKT=torch.full_like(example.clips.sound_BKT, UNKNOWN))
    silent = dataclasses.replace(example, audio_BK=torch.zeros_like(example.audio_BK))
    hidden = with_clips(example, written_BK=torch.zeros_like(example.clips.written_BK))
    for other in (unknown, silent, hidden):
        assert not loss_of(streamer, other)[1]["sound"] > 0
    same = with_clips(hidden, sound_BKT=unknown.clips.sound_BKT)  # who does not know the words is not told the sounds
    assert loss_of(streamer, hidden)[0].item() == loss_of(streamer, same)[0].item()


def test_quiet_ticks_count_little() -> None:
    streamer, example = saying(), random_example(SAYING, UNITS, ROWS)
    half = torch.full_like(example.clips.sound_BKT, QUIET)
    half[:, :, ::2] = 1
    with torch.no_grad():
        streamer.sounds.out.weight.zero_()
        streamer.sounds.out.bias.zero_()
        streamer.sounds.out.bias[1] = 4
    _, numbers = loss_of(streamer, with_clips(example, sound_BKT=half))
    right, wrong = (-streamer.sounds.out.bias.log_softmax(0)[i].item() for i in (1, QUIET))
    assert numbers["sound"].item() == pytest.approx((right + QUIET_WEIGHT * wrong) / (1 + QUIET_WEIGHT), rel=1e-4)
    assert numbers["sound_right"] == 1
    assert SOUND_WEIGHT > 0


def test_a_voice_that_is_told_nothing_is_kept() -> None:
    """A model that begins to choose sounds draws as it did before where none are known."""
    torch.manual_seed(0)
    before = tiny_streamer("window")
    config = dataclasses.replace(before.config, text=dataclasses.replace(before.config.text, sounds=SOUNDS))
    after = Streamer(config).eval()
    after.load_state_dict(after.state_dict() | before.state_dict())
    clip = random_clip(config)
    history = Latents(clip.video_BKNP[:, :-1], clip.audio_BKTC[:, :-1])
    given = (history, torch.zeros(1, K, 2), history, torch.full((1, K, 2), 0.5))
    left, right = before(clip, *given), after(clip, *given)
    assert torch.equal(left.velocity.audio, right.velocity.audio)
    assert left.sounds is None
    assert right.sounds.shape == (1, K, 4, SOUNDS)
    told = dataclasses.replace(clip, sound_BKT=torch.randint(0, SOUNDS, (1, K + 1, 4)))
    assert (after(told, *given).velocity.audio != right.velocity.audio).any()


def test_an_agent_learns_sounds_from_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "tiny", lambda: SAYING)
    monkeypatch.setattr(duplex, "VALIDATION", (1, 2))
    latents = make_latents(tmp_path / "latents", units=8)
    options = RunOptions(tmp_path / "run", "tiny", steps=2, batch=2, clip_units=6)
    assert train_duplex(latents, options, "cpu")["sound"] > 0
    assert load_file(tmp_path / "run" / "model.safetensors")["sounds.told.weight"].any()


def test_the_preset_tells_all_sounds_apart() -> None:
    assert presets.get_preset("nano-ears").text.sounds == SOUNDS
