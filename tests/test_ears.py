"""The ears: any chunking gives the same, the future changes nothing, streams never end; the resampler."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_ears import SMALL, small_ears, sound, tone

from wan_streamer.config import EarsConfig
from wan_streamer.errors import CheckpointError, ConfigError, ShapeError
from wan_streamer.perception.ears import Ears, load_ears, rotate, save_ears, turns
from wan_streamer.perception.resampling import Resampler
from wan_streamer.units import SAMPLE_RATE, SAMPLES_PER_UNIT

UNITS = 14


@pytest.fixture(scope="module")
def ears() -> Ears:
    return small_ears()


def in_pieces(ears: Ears, audio_BT: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    state, pieces = None, []
    for piece_BT in audio_BT.split([size * SAMPLES_PER_UNIT for size in sizes], dim=1):
        features_BTD, state = ears(piece_BT, state)
        pieces.append(features_BTD)
    return torch.cat(pieces, dim=1)


# ---------------------------------------------------------------- the encoder


def test_shape_of_the_default_encoder():
    config = EarsConfig()
    assert (config.samples, config.frames, config.coarse, config.hop) == (2688, 7, 42, 384)
    features_BTD, _ = Ears()(torch.zeros(2, 2 * SAMPLES_PER_UNIT))
    assert features_BTD.shape == (2, 14, 288)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=6), st.integers(0, 99))
def test_chunked_is_whole(ears, sizes, seed):
    audio_BT = sound(sum(sizes), seed, rows=2)
    whole_BTD, _ = ears(audio_BT)
    torch.testing.assert_close(in_pieces(ears, audio_BT, sizes), whole_BTD, atol=2e-5, rtol=0)


def test_many_units_at_once_are_those_of_one_step(ears):
    """`piece` bounds the memory and changes nothing."""
    at_once = Ears(dataclasses.replace(SMALL, piece=1000)).eval()
    at_once.load_state_dict(ears.state_dict())
    audio_BT = sound(40)
    torch.testing.assert_close(at_once(audio_BT)[0], ears(audio_BT)[0], atol=2e-5, rtol=0)


def test_a_stream_beyond_the_window_is_the_whole(ears):
    audio_BT = sound(60)
    whole_BTD, state = ears(audio_BT)
    torch.testing.assert_close(in_pieces(ears, audio_BT, [1] * 60), whole_BTD, atol=2e-5, rtol=0)
    assert {k.shape[2] for k in (*state.keys, *state.values)} == {SMALL.window}


def test_features_do_not_depend_on_the_age_of_the_stream():
    """What repeats gives the same features in every round, however long ago the stream began."""
    torch.manual_seed(1)
    ears = Ears(dataclasses.replace(SMALL, decay=0.5)).eval().requires_grad_(False)
    audio_BT = sound(10).repeat(1, 40)
    rounds = ears(audio_BT)[0].unflatten(1, (40, -1))
    torch.testing.assert_close(rounds[:, 39], rounds[:, 12], atol=2e-5, rtol=0)
    assert (rounds[:, 12] - rounds[:, 12].roll(SMALL.frames, 1)).abs().max() > 0.1  # the units of a round do differ


@pytest.mark.parametrize("changed", [1, 2, 7, UNITS - 1])
def test_the_future_changes_nothing_bit_by_bit(ears, changed):
    """Nor does its level, which the normalisation looks at."""
    audio_BT = sound(UNITS)
    other_BT = audio_BT.clone()
    other_BT[:, changed * SAMPLES_PER_UNIT :] = 30 * sound(UNITS, 5)[:, changed * SAMPLES_PER_UNIT :]
    ours_BTD, theirs_BTD = ears(audio_BT)[0], ears(other_BT)[0]
    edge = changed * SMALL.frames
    assert torch.equal(ours_BTD[:, :edge], theirs_BTD[:, :edge])
    assert (ours_BTD[:, edge:] - theirs_BTD[:, edge:]).abs().max() > 0.1


def test_a_unit_hears_all_of_itself(ears):
    """Its first frame attends to its last samples: block-causal, not causal."""
    audio_BT = sound(3)
    other_BT = audio_BT.clone()
    other_BT[:, -SAMPLES_PER_UNIT // 4 :] *= -1
    change_T = (ears(audio_BT)[0] - ears(other_BT)[0]).abs().amax((0, 2))
    assert change_T[: 2 * SMALL.frames].max() == 0
    assert change_T[2 * SMALL.frames] > 1e-3


def test_nothing_older_than_the_window_is_seen():
    """One layer sees `window` frames; what the first convolutions and the level still know is made to fade."""
    torch.manual_seed(2)
    ears = Ears(dataclasses.replace(SMALL, layers=1, decay=1e-12)).eval().requires_grad_(False)
    audio_BT = sound(UNITS)
    other_BT = audio_BT.clone()
    other_BT[:, :SAMPLES_PER_UNIT] = sound(1, 9)
    change_T = (ears(audio_BT)[0] - ears(other_BT)[0]).abs().amax((0, 2))
    last = 2 + SMALL.window // SMALL.frames  # by the convolutions, the third unit still holds a little of the first
    assert change_T[last * SMALL.frames] > 1e-5
    assert change_T[(last + 1) * SMALL.frames :].max() == 0


def test_state_is_explicit_and_never_changed(ears):
    first_BT, second_BT = sound(3), sound(2, 1)
    _, state = ears(first_BT)
    before = [value.clone() for value in (state.sound_BT, state.level_B3, *state.keys)]
    once, _ = ears(second_BT, state)
    twice, _ = ears(second_BT, state)
    assert torch.equal(once, twice)
    assert all(map(torch.equal, before, (state.sound_BT, state.level_B3, *state.keys)))
    assert not torch.equal(ears(second_BT)[0], once)


def test_rows_of_a_batch_are_streams_of_their_own(ears):
    audio_BT = sound(4, rows=3)
    for row in range(3):
        torch.testing.assert_close(ears(audio_BT)[0][row], ears(audio_BT[row : row + 1])[0][0], atol=2e-5, rtol=0)


def test_silence_between_does_not_thin_the_level(ears):
    """The level of speech stands after three seconds of near silence."""
    _, spoken = ears(sound(10))
    _, later = ears(3e-4 * torch.randn(1, 20 * SAMPLES_PER_UNIT), spoken)
    level = [state.level_B3[0, 1] / state.level_B3[0, 0] for state in (spoken, later)]
    assert level[1] == pytest.approx(level[0].item(), rel=0.02)


def test_a_quarter_of_the_precision_is_near(ears):
    half = Ears(SMALL).to(torch.bfloat16).eval()
    half.load_state_dict(ears.state_dict())
    audio_BT = sound(8)
    near = torch.nn.functional.cosine_similarity(half(audio_BT)[0].float(), ears(audio_BT)[0], dim=2)
    assert near.mean() > 0.99


def test_layers_end_in_the_features(ears):
    layers, _ = ears.layered(sound(2))
    assert len(layers) == SMALL.layers
    assert torch.equal(layers[-1], ears(sound(2))[0])


def test_rotation_is_relative():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 8, generator=generator) for _ in range(2))

    def product(at: int, other: int) -> float:
        turned = [rotate(x, turns(1, SMALL, place)) for x, place in ((q, at), (k, other))]
        return (turned[0] * turned[1]).sum().item()

    assert product(3, 1) == pytest.approx(product(40, 38), abs=1e-4)
    assert product(3, 1) != pytest.approx(product(3, 2), abs=1e-3)


def test_positions_of_a_call_serve_training_too() -> None:
    """They are kept, and a tensor of inference mode could not be learned through."""
    with torch.inference_mode():
        first = turns(11, SMALL)
    assert turns(11, SMALL) is first
    x = torch.randn(1, 1, 11, SMALL.head, requires_grad=True)
    rotate(x, first).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize(
    "audio",
    [
        torch.zeros(SAMPLES_PER_UNIT),
        torch.zeros(1, 100),
        torch.zeros(1, 0),
        torch.zeros(1, SAMPLES_PER_UNIT, dtype=torch.int16),
        torch.zeros(1, SAMPLES_PER_UNIT, dtype=torch.float64),
        torch.zeros(1, 1, SAMPLES_PER_UNIT),
    ],
)
def test_bad_sound_is_told(ears, audio):
    with pytest.raises(ShapeError, match="audio_BT: expected"):
        ears(audio)


def test_a_state_of_something_else_is_told(ears):
    _, state = ears(sound(1, rows=2))
    with pytest.raises(ShapeError, match="expected 1 streams"):
        ears(sound(1), state)


@pytest.mark.parametrize(
    "wrong", [{"rate": 16_000}, {"heads": 5}, {"rotary": 9}, {"window": 0}, {"kernels": (127, 2, 3)}, {"layers": 0}]
)
def test_bad_shapes_of_the_encoder_are_told(wrong):
    with pytest.raises(ConfigError):
        dataclasses.replace(SMALL, **wrong)


def test_ears_are_kept_in_a_folder(ears, tmp_path):
    save_ears(ears, tmp_path / "ears")
    audio_BT = sound(2)
    assert torch.equal(load_ears(tmp_path / "ears")(audio_BT)[0], ears(audio_BT)[0])
    (tmp_path / "ears" / "config.json").write_text(json.dumps({"width": 32, "ears": 2}))
    with pytest.raises(ConfigError, match="ears"):
        load_ears(tmp_path / "ears")
    with pytest.raises(CheckpointError):
        load_ears(tmp_path)


# ---------------------------------------------------------------- the resampler


@pytest.fixture(scope="module")
def resampler() -> Resampler:
    return Resampler(SAMPLE_RATE, 16_800)


@pytest.mark.parametrize("hz", [60, 440, 3000, 7000])
def test_a_tone_stays_and_comes_late_by_what_is_stated(resampler, hz):
    out_BT, _ = resampler(tone(hz, SAMPLE_RATE, 2 * SAMPLES_PER_UNIT))
    wanted_BT = tone(hz, 16_800, out_BT.shape[1], late=resampler.delay_s)
    assert out_BT.shape[1] == 2 * 2688
    assert (out_BT - wanted_BT)[:, 200:].abs().max() < 5e-3
    assert resampler.delay_s < 0.003


@pytest.mark.parametrize("hz", [8500, 9500, 11_500])
def test_what_does_not_fit_the_new_rate_is_gone(resampler, hz):
    out_BT, _ = resampler(tone(hz, SAMPLE_RATE, 2 * SAMPLES_PER_UNIT))
    assert out_BT[:, 200:].square().mean().sqrt() < 10 ** (-60 / 20)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_resampling_in_pieces_is_exact(resampler, sizes):
    audio_BT = sound(1)[:, : 10 * sum(sizes)]
    past, pieces = None, []
    for piece_BT in audio_BT.split([10 * size for size in sizes], dim=1):
        out_BT, past = resampler(piece_BT, past)
        pieces.append(out_BT)
    torch.testing.assert_close(torch.cat(pieces, 1), resampler(audio_BT)[0], atol=1e-6, rtol=0)


def test_a_length_that_does_not_fit_is_told(resampler):
    with pytest.raises(ShapeError, match="multiple of 10"):
        resampler(torch.zeros(1, 15))
