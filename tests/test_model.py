"""Rules 1, 3 and 4 of the design on the Transformer: causality, train = serve, peek or commit."""

import dataclasses

import pytest
import torch
from tiny import TINY
from tiny_clips import (
    MODELS,
    noisy_latents,
    off_is_blank,
    one_pass,
    random_clip,
    tiny_streamer,
    unit_by_unit,
    with_policy,
)

from wan_streamer.codecs.patches import patchify, unpatchify
from wan_streamer.codecs.text import SILENCE
from wan_streamer.flow.live import UserInput, live_unit
from wan_streamer.flow.solver import solve, time_grid
from wan_streamer.model.cache import LiveState
from wan_streamer.model.layout import Latents
from wan_streamer.model.streamer import Streamer
from wan_streamer.units import SAMPLES_PER_UNIT


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Streamer:
    return tiny_streamer(request.param)


def test_training_pass_equals_cached_rollout(model: Streamer) -> None:
    """One pass = live rollout, with windows smaller than the clip and moved sinks (K = 9, windows 2, 3, 5, sinks 2)."""
    clip = off_is_blank(random_clip(model.config))
    noisy, tau = noisy_latents(clip)
    velocity, logits = one_pass(model, clip, noisy, tau)
    live_velocity, live_logits = unit_by_unit(model, clip, noisy, tau)
    torch.testing.assert_close(velocity.video, live_velocity.video, atol=1e-4, rtol=0)
    torch.testing.assert_close(velocity.audio, live_velocity.audio, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, live_logits, atol=1e-4, rtol=0)
    assert velocity.video.std() > 0.1


def test_user_input_cannot_reach_earlier_units(model: Streamer) -> None:
    """The future cannot alter the past, bit for bit, in both ways of running."""
    clip = off_is_blank(random_clip(model.config))
    noisy, tau = noisy_latents(clip)
    changed_unit = 5
    sound, frames = clip.user_audio.clone(), clip.user_video.clone()
    sound[:, changed_unit * SAMPLES_PER_UNIT :] *= -0.5
    frames[:, 4 * changed_unit :] = 255 - frames[:, 4 * changed_unit :]
    changed = dataclasses.replace(clip, user_audio=sound, user_video=frames)
    for run in (one_pass, unit_by_unit):
        before, after = run(model, clip, noisy, tau), run(model, changed, noisy, tau)
        assert torch.equal(before[0].video[:, :changed_unit], after[0].video[:, :changed_unit])
        assert torch.equal(before[0].audio[:, :changed_unit], after[0].audio[:, :changed_unit])
        assert torch.equal(before[1][:, :changed_unit], after[1][:, :changed_unit])
        assert not torch.equal(before[0].video[:, changed_unit], after[0].video[:, changed_unit])
        assert not torch.equal(before[1][:, changed_unit], after[1][:, changed_unit])


def say_nothing(logits_LV: torch.Tensor) -> torch.Tensor:
    return torch.tensor([SILENCE, SILENCE])


def test_peek_never_changes_the_cache(model: Streamer) -> None:
    """Solving, however often, leaves the history as it was; one commit advances it."""
    clip = random_clip(model.config)
    live = model.open()
    with torch.inference_mode():
        for k in range(4):
            sound = UserInput(clip.user_audio[0, :SAMPLES_PER_UNIT], None, model.quiet_slots())
            live_unit(model, live, model.silence(), sound, say_nothing, lambda velocity, last: last)
            cache = live.cache
            before = [t[..., : cache.length, :, :].clone() for t in (cache.raw, cache.rotated)]
            length, block = cache.length, cache.block
            g = torch.Generator().manual_seed(k)
            noise = Latents(*(torch.randn(z.shape, generator=g) for z in model.silence()))
            first = solve(lambda z, t: model.velocity(live, z, t), noise, time_grid(3, 3.0))
            again = solve(lambda z, t: model.velocity(live, z, t), noise, time_grid(3, 3.0))
            assert torch.equal(first.video, again.video)
            assert torch.equal(first.audio, again.audio)
            assert (cache.length, cache.block) == (length, block)
            assert torch.equal(cache.raw[..., :length, :, :], before[0])
            assert torch.equal(cache.rotated[..., :length, :, :], before[1])


def lives_of_other_ages(model: Streamer) -> list[LiveState]:
    """Sessions that have heard different noise for different times."""
    lives = []
    for units in (1, 4, 9):
        live = model.open()
        for k in range(units):
            g = torch.Generator().manual_seed(100 * units + k)
            noise = UserInput(torch.randn(SAMPLES_PER_UNIT, generator=g) * 0.1, None, model.quiet_slots())
            live_unit(model, live, model.silence(), noise, say_nothing, lambda velocity, last: last)
        lives.append(live)
    return lives


@torch.inference_mode()
def test_sessions_together_are_each_alone(model: Streamer) -> None:
    """One pass for sessions of different ages gives what a pass for each gives, and commits nothing."""
    lives, where = lives_of_other_ages(model), torch.arange(model.layout.opening.stop)
    for live in lives:
        live.cache.open_block()
    x_BND = torch.randn(len(lives), len(where), model.config.backbone.dim, generator=torch.Generator().manual_seed(1))
    caches = [live.cache for live in lives]
    lengths = [cache.length for cache in caches]
    together, slices = model.backbone.step(x_BND, where, caches)
    for b, cache in enumerate(caches):
        alone, (part,) = model.backbone.step(x_BND[b, None], where, [cache])
        torch.testing.assert_close(together[b], alone[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(slices[b].key_ZNGd, part.key_ZNGd, atol=1e-5, rtol=0)
        torch.testing.assert_close(slices[b].value_ZNGd, part.value_ZNGd, atol=1e-5, rtol=0)
    assert [cache.length for cache in caches] == lengths
    assert not torch.allclose(together[0], together[1], atol=1e-2), "they have different histories"


@torch.inference_mode()
def test_an_hour_changes_nothing() -> None:
    """A session that is an hour older sees the same distances, so it gives the same numbers."""
    torch.manual_seed(0)
    config = with_policy("window")
    model = Streamer(dataclasses.replace(config, cache=dataclasses.replace(config.cache, sink_units=0))).eval()
    for head in (model.video_out, model.audio_out):
        torch.nn.init.normal_(head.weight, std=0.2)
    live = lives_of_other_ages(model)[-1]
    state = live.cache.state()
    hour = 22_500
    older = dataclasses.replace(state, block=state.block + hour, block_M=state.block_M + hour)
    latents = []
    for kept in (state, older):
        live.cache.restore(kept)
        live.cache.open_block()
        g = torch.Generator().manual_seed(3)
        noise = Latents(*(torch.randn(z.shape, generator=g) for z in model.silence()))
        latents.append(model.velocity(live, noise, 0.5))
    torch.testing.assert_close(latents[0].video, latents[1].video, atol=1e-4, rtol=0)
    torch.testing.assert_close(latents[0].audio, latents[1].audio, atol=1e-4, rtol=0)
    live.cache.restore(dataclasses.replace(state, block=state.block + 1))
    live.cache.open_block()
    assert not torch.allclose(model.velocity(live, noise, 0.5).video, latents[0].video, atol=1e-3), "positions matter"


def test_window_cache_stays_flat_and_full_grows() -> None:
    sizes = {}
    for policy in ("window", "full"):
        torch.manual_seed(0)
        model = Streamer(with_policy(policy)).eval()
        live = model.open()
        lengths = []
        with torch.inference_mode():
            for _ in range(70):
                nothing = UserInput(None, None, model.quiet_slots())
                live_unit(model, live, model.silence(), nothing, say_nothing, lambda velocity, last: last)
                lengths.append((live.cache.length, live.cache.bytes))
        sizes[policy] = lengths
    assert len(set(sizes["window"][20:])) == 1, "cost and memory are flat once the windows are full"
    context = model.layout.context.stop
    assert [length for length, _ in sizes["full"]] == [context * (k + 1) for k in range(70)]


def test_patches_round_trip() -> None:
    model = Streamer(TINY)
    latent = torch.randn(2, 3, 4, 6, 6)
    tokens = patchify(latent, model.config)
    assert tokens.shape == (2, 3, 4, 36)
    assert torch.equal(unpatchify(tokens, model.config), latent)
    assert torch.equal(tokens[0, 0, 1], latent[0, 0, :, :3, 3:].flatten())
