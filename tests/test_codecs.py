"""Rules 1 and 2 of the design on every causal part: the future cannot alter the past, chunked equals whole."""

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import EMBEDDED_AGENTS, shared_weights, tiny_weights
from torch import Tensor

from wan_streamer import WanStreamer
from wan_streamer.codecs.causal import CodecStats
from wan_streamer.codecs.video_vae import VideoVAE
from wan_streamer.config import VideoDecoderConfig, VideoVAEConfig
from wan_streamer.errors import ShapeError
from wan_streamer.units import FRAMES_PER_UNIT, SAMPLES_PER_FRAME, SAMPLES_PER_UNIT

SIDE = 48  # of the codec's pictures; the video VAE is convolutional, so any checkpoint takes it


@dataclasses.dataclass(frozen=True)
class Part:
    """One causal part.

    run   (x_BT..., state) -> (y_BT..., state)
    make  (generator, groups) -> x, `groups` times `taken` long
    taken inputs that go in together and make `given` outputs
    fills groups after which the state has its size
    """

    run: Callable[[Tensor, Any], tuple[Tensor, Any]]
    make: Callable[[torch.Generator, int], Tensor]
    taken: int
    given: int
    fills: int = 1


def sound(g: torch.Generator, frames: int) -> Tensor:
    return torch.randn(1, frames * SAMPLES_PER_FRAME, generator=g) * 0.2


@functools.cache
def paired_decoder(shape: VideoVAEConfig) -> VideoVAE:
    """Random weights: frames part in the last layers only."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = VideoDecoderConfig(channels=(4, 8, 8, 8), blocks=(1, 2, 1))
        vae = VideoVAE(dataclasses.replace(shape, decoder=decoder))
        torch.nn.init.normal_(vae.dec_out.weight, std=0.1)
        return vae.eval().requires_grad_(False)


def part_of(agent: str, name: str) -> Part:
    weights = shared_weights(agent)
    config, audio, video = weights.config, weights.audio_vae, weights.video_vae
    seen, cell = config.perception, SIDE // 16

    def pictures(g: torch.Generator, units: int) -> Tensor:
        return torch.rand(1, 4 * units, 3, SIDE, SIDE, generator=g) * 2 - 1

    def camera(g: torch.Generator, groups: int) -> Tensor:
        shape = (1, groups * FRAMES_PER_UNIT // seen.video_ticks, seen.video_height, seen.video_width, 3)
        return torch.randint(0, 256, shape, generator=g, dtype=torch.uint8)

    def audio_latents(g: torch.Generator, frames: int) -> Tensor:
        return torch.randn(1, frames, config.audio_vae.latent_dim, generator=g)

    def video_latents(g: torch.Generator, units: int) -> Tensor:
        return torch.randn(1, units, config.video_vae.latent_channels, cell, cell, generator=g)

    ears = seen.hearing == "ears"  # hear a unit at a time
    heard, tokens = (SAMPLES_PER_UNIT, seen.audio_tokens) if ears else (SAMPLES_PER_FRAME, 1)

    def voice(g: torch.Generator, groups: int) -> Tensor:
        return torch.randn(1, groups * heard, generator=g) * 0.2

    return {
        "audio encoder": Part(audio.encode, sound, SAMPLES_PER_FRAME, 1),
        "audio decoder": Part(audio.decode, audio_latents, 1, SAMPLES_PER_FRAME),
        "video encoder": Part(video.encode, pictures, 4, 1),
        "video decoder": Part(video.decode, video_latents, 1, 4),
        "paired video decoder": Part(paired_decoder(config.video_vae).decode, video_latents, 1, 4),
        "hearing": Part(weights.streamer.hearing, voice, heard, tokens, seen.lead_units + 1),
        "seeing": Part(weights.streamer.seeing, camera, FRAMES_PER_UNIT // seen.video_ticks, 1),
    }[name]


PARTS = (
    "audio encoder", "audio decoder", "video encoder", "video decoder", "paired video decoder", "hearing", "seeing"
)  # fmt: skip
every_part = pytest.mark.parametrize("name", PARTS)
every_agent = pytest.mark.parametrize("agent", ["tiny", *EMBEDDED_AGENTS])
examples = settings(max_examples=8, deadline=None, derandomize=True)
chunkings = st.lists(st.integers(1, 4), min_size=1, max_size=5)
seeds = st.integers(0, 1000)


def tensors_of(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    values = state if isinstance(state, list | tuple) else [getattr(state, f.name) for f in dataclasses.fields(state)]
    return [tensor for value in values for tensor in tensors_of(value)]


@every_agent
@every_part
@examples
@given(chunks=chunkings, seed=seeds)
@example(chunks=[1] * 8, seed=0)
@torch.inference_mode()
def test_chunked_equals_whole(agent: str, name: str, chunks: list[int], seed: int) -> None:
    part = part_of(agent, name)
    x = part.make(torch.Generator().manual_seed(seed), sum(chunks))
    whole, last_state = part.run(x, None)
    pieces, state = [], None
    for piece in x.split([part.taken * count for count in chunks], dim=1):
        y, state = part.run(piece, state)
        pieces.append(y)
    chunked = torch.cat(pieces, dim=1)
    assert whole.shape[1] == sum(chunks) * part.given
    assert whole.std() > 1e-3
    scale = max(1.0, whole.square().mean().sqrt().item())  # trained features are larger than 1
    torch.testing.assert_close(chunked, whole, atol=1e-5 * scale, rtol=0)
    for got, expected in zip(tensors_of(state), tensors_of(last_state), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)


@every_agent
@every_part
@examples
@given(groups=st.integers(1, 8), place=st.floats(0, 1, exclude_max=True), seed=seeds)
@torch.inference_mode()
def test_future_cannot_alter_the_past(agent: str, name: str, groups: int, place: float, seed: int) -> None:
    """Bit for bit, from any single sample or frame on."""
    part = part_of(agent, name)
    g = torch.Generator().manual_seed(seed)
    x, other = part.make(g, groups), part.make(g, groups)
    first = int(place * x.shape[1])
    changed = torch.cat([x[:, :first], other[:, first:]], dim=1)
    before, after = part.run(x, None)[0], part.run(changed, None)[0]
    safe = first // part.taken * part.given
    assert torch.equal(before[:, :safe], after[:, :safe])
    assert not torch.equal(before[:, safe : safe + part.given], after[:, safe : safe + part.given])


@every_agent
@every_part
@torch.inference_mode()
def test_state_has_one_size_and_is_not_changed_in_place(agent: str, name: str) -> None:
    part = part_of(agent, name)
    g = torch.Generator().manual_seed(0)
    _, state = part.run(part.make(g, part.fills), None)
    shapes = [tensor.shape for tensor in tensors_of(state)]
    for groups in (1, 5):
        kept = [tensor.clone() for tensor in tensors_of(state)]
        _, following = part.run(part.make(g, groups), state)
        assert [tensor.shape for tensor in tensors_of(following)] == shapes
        assert all(torch.equal(a, b) for a, b in zip(kept, tensors_of(state), strict=True))
        state = following


@every_part
@torch.inference_mode()
def test_rows_of_a_batch_do_not_meet(name: str) -> None:
    part = part_of("tiny", name)
    g = torch.Generator().manual_seed(0)
    x, other = part.make(g, 4), part.make(g, 4)
    together = part.run(torch.cat([x, other]), None)[0]
    torch.testing.assert_close(together[:1], part.run(x, None)[0], atol=1e-5, rtol=0)


# ---- the library's contract: `reconstruct`


@every_agent
@examples
@given(samples=st.integers(1, 10_000), seed=seeds)
def test_audio_reconstruct(agent: str, samples: int, seed: int) -> None:
    audio = (np.random.default_rng(seed).standard_normal(samples) * 0.1).astype(np.float32)
    vae = shared_weights(agent).audio_vae
    rebuilt = vae.reconstruct(audio)
    assert rebuilt.dtype == np.float32
    assert rebuilt.shape == audio.shape
    assert np.isfinite(rebuilt).all()
    assert np.array_equal(rebuilt, vae.reconstruct(audio))


@every_agent
@pytest.mark.parametrize("shape", [(4, 96, 96), (8, 48, 64), (12, 16, 16)])
def test_video_reconstruct(agent: str, shape: tuple[int, int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    kept = frames.copy()
    rebuilt = shared_weights(agent).video_vae.reconstruct(frames)
    assert rebuilt.dtype == np.uint8
    assert rebuilt.shape == frames.shape
    assert np.array_equal(frames, kept)


def test_reconstruct_of_a_loaded_agent() -> None:
    """As the library's users call it: the agent may hold its codecs in another precision."""
    agent = WanStreamer(tiny_weights(), "tiny")
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (8, 96, 96, 3), dtype=np.uint8)
    rebuilt = agent.video_vae.reconstruct(frames)
    assert rebuilt.dtype == np.uint8
    exact = shared_weights("tiny").video_vae.reconstruct(frames)
    assert np.abs(rebuilt.astype(int) - exact).mean() < 2
    audio = rng.standard_normal(5000).astype(np.float32) * 0.1
    assert np.array_equal(agent.audio_vae.reconstruct(audio), shared_weights("tiny").audio_vae.reconstruct(audio))


@pytest.mark.parametrize(
    "audio",
    [
        np.zeros((2, 960), np.float32),
        np.zeros(960, np.int16),
        np.zeros(0, np.float32),
    ],
    ids=["two rows", "int16", "empty"],
)
def test_audio_reconstruct_refuses(audio: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="expected"):
        shared_weights("tiny").audio_vae.reconstruct(audio)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((4, 96, 96), np.uint8),
        np.zeros((4, 96, 96, 4), np.uint8),
        np.zeros((4, 96, 96, 3), np.float32),
        np.zeros((5, 96, 96, 3), np.uint8),
        np.zeros((0, 96, 96, 3), np.uint8),
        np.zeros((4, 96, 100, 3), np.uint8),
    ],
    ids=["grey", "alpha", "float", "five frames", "no frames", "odd width"],
)
def test_video_reconstruct_refuses(frames: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="expected"):
        shared_weights("tiny").video_vae.reconstruct(frames)


def test_what_is_computed_in_place_is_the_same() -> None:
    """The decoder adds and activates in place where nothing is learned; what it is given stays as it is."""
    vae = tiny_weights().video_vae
    latent = torch.randn(1, 2, vae.config.latent_channels, vae.config.latent_height, vae.config.latent_width)
    given = latent.clone()
    with torch.enable_grad():
        learned, after = vae.decode(latent)
    with torch.no_grad():
        live, again = vae.decode(latent)
    assert torch.equal(learned, live)
    assert torch.equal(latent, given)
    assert all(torch.equal(one, other) for one, other in zip(after.blocks, again.blocks, strict=True))


def test_fixed_weights_draw_the_same() -> None:
    vae = tiny_weights().video_vae
    latent = torch.randn(1, 2, vae.config.latent_channels, vae.config.latent_height, vae.config.latent_width)
    with torch.inference_mode():
        before, _ = vae.decode(latent)
        vae.fix()
        after, _ = vae.decode(latent)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


def test_partial_frames_are_refused() -> None:
    weights = shared_weights("tiny")
    with pytest.raises(ShapeError, match="960 samples"):
        weights.audio_vae.encode(torch.zeros(1, 959))
    with pytest.raises(ShapeError, match="fours"):
        weights.video_vae.encode(torch.zeros(1, 3, 3, SIDE, SIDE))


def test_statistics_standardise_and_restore() -> None:
    latent = torch.randn(2, 500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 1.0, 30.0]) + 5
    stats = CodecStats(3)
    stats.measure(latent.flatten(0, 1))
    standard = stats.standardise(latent, -1)
    torch.testing.assert_close(standard.flatten(0, 1).mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(standard.flatten(0, 1).std(0), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(stats.restore(standard, -1), latent)
    assert torch.equal(stats.standardise(latent.mT, 1), standard.mT)


@every_agent
@pytest.mark.parametrize("share", [0.0, 0.75])
@torch.inference_mode()
def test_a_pixel_keeps_its_share_of_the_frame_before(agent: str, share: float) -> None:
    """Against the same decoder that keeps nothing: what is drawn afresh does not depend on what was shown."""
    vae = copy.deepcopy(shared_weights(agent).video_vae)
    latent = torch.randn(1, 3, vae.config.latent_channels, 3, 4, generator=torch.Generator().manual_seed(0))

    def film(logit: float) -> Tensor:
        vae.dec_out.weight[12:], vae.dec_out.bias[12:] = 0.0, logit
        return vae.decode(latent)[0]

    fresh = film(-torch.inf)
    expected = [fresh[:, 0]]
    for frame in fresh[:, 1:].unbind(1):
        expected.append((1 - share) * frame + share * expected[-1])
    kept = film(torch.logit(torch.tensor(share)).item())
    torch.testing.assert_close(kept, torch.stack(expected, 1), atol=1e-5, rtol=1e-5)
    assert ((kept - fresh).abs().max() > 1e-3) == (share > 0)
