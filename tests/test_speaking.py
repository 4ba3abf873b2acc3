"""The voice: sounds of speech from labels and from words, latents from sounds, the same live as in a pass."""

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny import SAYING, TALKER, tiny_weights
from tiny_clips import K, off_is_blank, random_clip
from tiny_world import make_latents

from wan_streamer import presets
from wan_streamer.codecs.folder import codec_hash, load_codecs
from wan_streamer.codecs.text import HOLD, SILENCE
from wan_streamer.data.latents import LatentStore
from wan_streamer.flow.live import UserInput, live_unit
from wan_streamer.model.layout import LANES, ClipBatch, Latents
from wan_streamer.model.packing import pack_if_possible
from wan_streamer.model.pretrained import save_weights
from wan_streamer.model.streamer import Streamer
from wan_streamer.speaking.sounds import (
    MIDDLE,
    OTHER,
    QUIET,
    SOUNDS,
    SOUNDS_PER_TICK,
    SOUNDS_PER_UNIT,
    SYMBOLS,
    UNKNOWN,
    sounds_of,
)  # fmt: skip
from wan_streamer.speaking.voice import OFFSETS, Speech, Voice, cut
from wan_streamer.training.examples.clips import ClipReader
from wan_streamer.training.examples.written import SpokenClips
from wan_streamer.training.stages import duplex
from wan_streamer.training.stages.duplex import train_duplex
from wan_streamer.training.stages.run import RunOptions
from wan_streamer.training.voice.stage import begins
from wan_streamer.units import TICKS_PER_UNIT

CHANNELS = SAYING.audio_vae.latent_dim


def saying(seed: int = 0) -> Streamer:
    """A model with a voice that is heard."""
    return tiny_weights(seed, SAYING).streamer.eval()


def voice_of(streamer: Streamer) -> Voice:
    assert streamer.voice is not None
    return streamer.voice


def labelled(*phonemes: tuple[str, float, float]) -> dict:
    return {"units": 2, "phonemes": {"agent": [{"symbol": s, "start": a, "end": b} for s, a, b in phonemes]}}


def number(symbol: str) -> int:
    return SYMBOLS.index(symbol) + 1


def test_a_part_has_the_sound_in_its_middle() -> None:
    """Parts of 10 ms, whose middles are at 5, 15, 25 ms and so on."""
    sounds = sounds_of(labelled(("h", 0.014, 0.04), ("aɪ", 0.04, 0.07), ("!", 0.08, 0.09), ("s", 0.15, 0.5)))
    first, second = sounds.tolist()
    assert first[:10] == [QUIET, *map(number, "hhhaaa"), QUIET, OTHER, QUIET]
    assert first[10:] == [*[QUIET] * 5, number("s")]
    assert second == [number("s")] * 16
    assert len(set(SYMBOLS)) == len(SYMBOLS)
    assert max(number(s) for s in SYMBOLS) < OTHER < SOUNDS


def test_a_tick_has_the_sound_in_its_middle() -> None:
    """Ticks of 40 ms, whose middles are at 20, 60, 100 ms and so on."""
    labels = labelled(("h", 0.05, 0.1), ("aɪ", 0.1, 0.19), ("!", 0.21, 0.23), ("s", 0.3, 0.5))
    first, second = sounds_of(labels, TICKS_PER_UNIT).tolist()
    assert first == [QUIET, number("h"), number("a"), number("a")]
    assert second == [number("a"), OTHER, QUIET, number("s")]


def test_a_short_sound_is_not_lost() -> None:
    """Between two middles: it has the part that it lies in, unless that is all the other sound has."""
    sounds = sounds_of(labelled(("h", 0.0, 0.026), ("b", 0.026, 0.034), ("a", 0.034, 0.07)))
    assert sounds.flatten().tolist() == [*map(number, "hhhbaaa"), *[QUIET] * 25]
    sounds = sounds_of(labelled(("h", 0.0, 0.025), ("b", 0.026, 0.034), ("a", 0.034, 0.044)))
    assert sounds.flatten().tolist() == [*map(number, "hh"), QUIET, number("a"), *[QUIET] * 28]


@pytest.mark.parametrize("labels", [{"units": 2}, {"units": 2, "phonemes": {"user": [], "agent": []}}])
def test_without_labels_nothing_is_known(labels: dict) -> None:
    """A recording has none, though somebody speaks in it."""
    assert (sounds_of(labels) == UNKNOWN).all()


def test_clips_know_the_sounds_of_the_agent(tmp_path: Path) -> None:
    """Of their units, of that before and of that behind; nothing before the conversation and behind it."""
    latents = make_latents(tmp_path, units=6)
    store = LatentStore(latents / "train", codec_hash(*load_codecs(TALKER, latents)), TALKER.perception)
    symbols = "hswtpk"
    store.labels[0] |= labelled(*((s, 0.16 * i, 0.16 * (i + 1)) for i, s in enumerate(symbols))) | {"units": 6}
    reader = ClipReader(store, TALKER, tiny_weights().text, 4)
    for first, expected in ((0, [UNKNOWN, *map(number, "hswtp")]), (3, [*map(number, "wtpk"), UNKNOWN, UNKNOWN])):
        sounds = reader.read(0, first).clips.sound_BKP
        assert sounds.shape == (1, 6, SOUNDS_PER_UNIT)
        assert sounds[0, :, 0].tolist() == expected
        assert (sounds == sounds[..., :1]).all()
    # the agent does everything a unit later: what the user does is cut
    spoken = SpokenClips(reader)._later(0, 1, 1, ())
    assert spoken.clips.sound_BKP[0, :, 0].tolist() == [*map(number, "hswtpk")]


@torch.no_grad()
def test_each_sound_follows_the_one_before() -> None:
    voice = voice_of(saying())
    torch.nn.init.normal_(voice.before.weight)
    words = torch.randint(0, 272, (5, 3, 2))
    sounds = torch.randint(0, SOUNDS, (5, 2, SOUNDS_PER_UNIT))
    chosen = voice.choose(words, sounds)
    ticks = chosen[:, MIDDLE::SOUNDS_PER_TICK]
    before = torch.cat([sounds[:, -1:, MIDDLE - SOUNDS_PER_TICK], ticks[:, :-1]], dim=1)
    read = voice.read(words, sounds[..., MIDDLE::SOUNDS_PER_TICK])
    for tick in range(TICKS_PER_UNIT):
        logits = voice.logits(read, tick, before[:, tick])
        assert torch.equal(logits.argmax(-1), ticks[:, tick])
        assert not torch.equal(voice.logits(read, tick, before[:, tick].flip(0)), logits)
    assert torch.equal(torch.stack([voice.choose(*row) for row in zip(words, sounds, strict=True)]), chosen)


@given(st.lists(st.integers(0, 3), min_size=8, max_size=8), st.lists(st.integers(-2, 1), min_size=8, max_size=8))
@settings(deadline=None)
def test_where_sounds_begin_is_found_where_they_were_cut(ticks: list[int], offsets: list[int]) -> None:
    """Each tick keeps its sound in `MIDDLE`; in a first tick nothing begins before the unit does."""
    offsets[4] = max(0, offsets[4])
    now, offset = torch.tensor(ticks)[None], torch.tensor(offsets)[None]
    first = cut(torch.tensor([9]), now[:, :4], offset[:, :4])
    second = cut(first[:, -1], now[:, 4:], offset[:, 4:])
    sounds = torch.cat([first, second], dim=1)
    assert torch.equal(sounds[:, MIDDLE::SOUNDS_PER_TICK], now)
    for tick, found in zip(range(4, 8), begins(sounds, now)[0].tolist(), strict=True):
        assert found == (UNKNOWN if ticks[tick] == ticks[tick - 1] else offsets[tick] - OFFSETS[0])


@torch.no_grad()
def test_what_is_said_is_not_taken_back() -> None:
    """The sound of a first tick begins in its unit, however likely an earlier begin."""
    voice = voice_of(saying())
    voice.offsets.weight.zero_()
    voice.offsets.bias.copy_(torch.tensor([9.0, 0, 0, 5]).repeat(TICKS_PER_UNIT))
    words, sounds = torch.randint(0, 272, (20, 3, 2)), torch.randint(0, SOUNDS, (20, 2, SOUNDS_PER_UNIT))
    chosen = voice.choose(words, sounds).unflatten(1, (TICKS_PER_UNIT, SOUNDS_PER_TICK))
    assert (chosen[:, :-1, 2:] == chosen[:, 1:, :1]).all()  # all others begin half a tick early
    assert torch.equal(chosen[:, 0, 0], sounds[:, -1, -1])  # of what is left, late is likeliest
    assert (chosen[:, :, MIDDLE] != chosen[:, :1, MIDDLE]).any()


@torch.no_grad()
def test_a_voice_looks_at_its_windows_and_no_further() -> None:
    voice, config = voice_of(saying()), SAYING.voice
    assert config is not None
    long = torch.randint(0, SOUNDS, (1, K + 2, SOUNDS_PER_UNIT)), torch.randn(1, K, 4, CHANNELS)
    whole = voice.guess_clip(*long)
    last = voice.guess_clip(long[0][:, -config.sound_units - 1 :], long[1][:, -1:])
    near = voice.guess_clip(long[0][:, -config.sound_units - 2 :], long[1][:, -config.past_units :])
    torch.testing.assert_close(near[:, -1], whole[:, -1])
    assert not torch.allclose(last[:, -1], whole[:, -1])
    later = long[0].clone()
    later[:, -1] = UNKNOWN
    other = voice.guess_clip(later, long[1])  # of the unit behind the last one
    torch.testing.assert_close(other[:, :-1], whole[:, :-1])
    torch.testing.assert_close(other[:, -1, 0], whole[:, -1, 0])
    assert not torch.allclose(other[:, -1, 1], whole[:, -1, 1])


@torch.no_grad()
def test_each_tick_follows_the_ones_before_and_hears_where_in_it_a_sound_begins() -> None:
    """All ticks are said by the same weights, so a unit that is a tick later says the same a tick later."""
    voice = voice_of(saying())
    sounds, audio = torch.randint(0, SOUNDS, (1, 3, SOUNDS_PER_UNIT)), torch.randn(1, 2, 4, CHANNELS)
    guess = voice.guess(sounds[:, :2], audio, sounds[:, 2])
    later = torch.cat([audio.flatten(1, 2), guess[:, :1]], dim=1)[:, 1:].unflatten(1, (2, 4))
    moved = torch.cat([sounds.flatten(1)[:, 4:], torch.full((1, 4), UNKNOWN)], dim=1).unflatten(1, (3, -1))
    torch.testing.assert_close(voice.guess(moved[:, :2], later, moved[:, 2])[:, :3], guess[:, 1:])
    swapped = sounds.clone()
    swapped[0, 1, 4:6] = sounds[0, 1, 4:6].flip(0) + torch.tensor([1, 0])
    assert not torch.allclose(voice.guess(swapped[:, :2], audio, sounds[:, 2])[:, 1], guess[:, 1])


@torch.no_grad()
def test_what_is_said_is_remembered_in_order() -> None:
    voice = voice_of(saying())
    speech = voice.begin()
    assert (speech.words_US == SILENCE).all()
    for unit in range(3):
        speech = speech.heard(torch.full((4, CHANNELS), float(unit)))
        for slot in range(2):
            speech = speech.written(slot, torch.tensor(10 * unit + slot))
        speech, guess = voice.say(speech, known=unit != 1)
        assert guess.shape == (4, CHANNELS)
    assert speech.words_US.tolist() == [[0, 1], [10, 11], [20, 21]]
    assert speech.audio_UTC[:, 0, 0].tolist() == [1, 2]
    assert (speech.sounds_UP[0] == UNKNOWN).all()  # of the unit whose words are hidden
    assert (speech.sounds_UP[1] != UNKNOWN).all()
    following = torch.full((SOUNDS_PER_UNIT,), 6)
    other, guess = voice.say_instead(speech, torch.full((SOUNDS_PER_UNIT,), 5), following)
    assert other.sounds_UP.tolist() == [speech.sounds_UP[0].tolist(), [5] * SOUNDS_PER_UNIT]
    torch.testing.assert_close(guess, voice.guess(other.sounds_UP, other.audio_UTC, following))


@torch.no_grad()
def test_a_packed_voice_says_the_same() -> None:
    """Weights in half precision, as on most CPUs."""
    voice, said = voice_of(saying()), []
    for packed in (False, True):
        assert not packed or pack_if_possible(voice)
        speech = voice.begin().heard(torch.ones(4, CHANNELS)).written(0, 7)
        said.append(voice.say(speech))
    assert torch.equal(said[0][0].sounds_UP, said[1][0].sounds_UP)
    torch.testing.assert_close(said[0][1], said[1][1], atol=2e-3, rtol=2e-3)


def _pass(streamer: Streamer, clip: ClipBatch, noisy: Latents) -> Latents:
    history = Latents(clip.video_BKNP[:, :-1], clip.audio_BKTC[:, :-1])
    velocity, _ = streamer(clip, history, torch.zeros(1, K, 2), noisy, torch.full((1, K, 2), 0.7))
    assert velocity is not None
    return velocity


@torch.no_grad()
def test_training_hears_what_is_said_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """The voice that is drawn with the sounds that were chosen, unit after unit, is that of one pass over the clip."""
    streamer, clip = saying(), off_is_blank(random_clip(SAYING))
    sounds = torch.randint(0, SOUNDS, (K + 2, SOUNDS_PER_UNIT))
    sounds[0] = UNKNOWN
    monkeypatch.setattr(streamer.voice, "_choose", lambda _: sounds[len(chosen) + 1])
    monkeypatch.setattr(streamer.voice, "foresee", lambda _: sounds[len(chosen) + 2])
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
        assert isinstance(live.speech, Speech)
        chosen.append(live.speech.sounds_UP[-1])
        assert torch.equal(live.speech.words_US[-1], clip.slot_BKSL[0, k, :, LANES.index("response")])
        last = given
    assert torch.equal(torch.stack(chosen), sounds[1:-1])
    clip = dataclasses.replace(clip, sound_BKP=sounds[None])
    both = Latents(*(torch.stack([z[i] for z in noisy])[None] for i in range(2)))
    passed = _pass(streamer, clip, both)
    for i in range(2):
        torch.testing.assert_close(passed[i][0], torch.stack([v[i] for v in drawn]), atol=2e-4, rtol=2e-4)
    other = _pass(streamer, dataclasses.replace(clip, sound_BKP=torch.full_like(clip.sound_BKP, 5)), both)
    assert not torch.allclose(other.audio, passed.audio, atol=1e-2)
    assert torch.equal(other.video, passed.video)
    hidden = dataclasses.replace(clip, written_BK=torch.zeros_like(clip.written_BK))
    same = dataclasses.replace(hidden, sound_BKP=torch.full_like(clip.sound_BKP, UNKNOWN))
    # who does not know the words is not told the sounds
    assert torch.equal(_pass(streamer, hidden, both).audio, _pass(streamer, same, both).audio)


@torch.no_grad()
def test_a_fresh_voice_says_nothing() -> None:
    """A model that gets one draws as it did before."""
    before = tiny_weights().streamer.eval()
    after = Streamer(SAYING).eval()
    after.load_state_dict(after.state_dict() | before.state_dict())
    clip = random_clip(SAYING)
    noisy = Latents(clip.video_BKNP[:, 1:], clip.audio_BKTC[:, 1:])
    assert torch.equal(_pass(before, clip, noisy).audio, _pass(after, clip, noisy).audio)
    assert before.open().speech is None
    assert isinstance(after.open().speech, Speech)


def test_the_stages_of_the_model_leave_a_voice_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They learn what it does not say; it is in the checkpoint as it was."""
    monkeypatch.setitem(presets.PRESETS, "tiny", lambda: SAYING)
    monkeypatch.setattr(duplex, "VALIDATION", (1, 2))
    latents = make_latents(tmp_path / "latents", units=8)
    audio_vae, video_vae = load_codecs(SAYING, latents)
    agent = dataclasses.replace(tiny_weights(1, SAYING), audio_vae=audio_vae, video_vae=video_vae)
    save_weights(agent, tmp_path / "start")
    options = RunOptions(tmp_path / "run", "tiny", start=tmp_path / "start", steps=2, batch=2, clip_units=6)
    train_duplex(latents, options, "cpu")
    before, after = agent.streamer.state_dict(), load_file(tmp_path / "run" / "model.safetensors")
    voice = [name for name in before if name.startswith("voice.")]
    assert voice
    assert all(torch.equal(before[name].bfloat16(), after[name]) for name in voice)
    assert not torch.equal(before["audio_out.weight"].bfloat16(), after["audio_out.weight"])


def test_the_preset_tells_all_sounds_apart() -> None:
    voice = presets.get_preset("nano-ears").voice
    assert voice is not None
    assert voice.sounds == SOUNDS


@torch.no_grad()
def test_what_follows_is_foreseen_without_its_words() -> None:
    """As if the agent had nothing more to write: it waits, or it is silent, and nothing is remembered of it."""
    voice = voice_of(saying())
    asked: list[torch.Tensor] = []
    choose = voice.choose
    voice.choose = lambda words, sounds: asked.append(words[0]) or choose(words, sounds)  # type: ignore[method-assign]
    speech = voice.begin().heard(torch.ones(4, CHANNELS))
    for word, waits in ((SILENCE, SILENCE), (7, HOLD)):
        speech, _ = voice.say(speech.written(0, word).written(1, SILENCE))
        assert asked[-2][-1].tolist() == [word, SILENCE]
        assert asked[-1].tolist() == [*speech.words_US[1:].tolist(), [waits, waits]]
        speech = speech.heard(torch.ones(4, CHANNELS))
