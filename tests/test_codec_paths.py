"""The fast ways through the codecs give what the plain one gives, and streaming for an hour costs no memory."""

import copy
import os
import shutil
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from test_codecs import part_of, tensors_of
from tiny_world import bouncing_square, hum
from torch import Tensor

from wan_streamer.codecs.causal import MemoryBlock
from wan_streamer.codecs.folder import load_codec
from wan_streamer.codecs.video_vae import VideoVAE, frames_to_video
from wan_streamer.model.pretrained import EMBEDDED
from wan_streamer.units import SAMPLES_PER_UNIT

CODECS = EMBEDDED / "nano"
UNITS = 6
every_part = pytest.mark.parametrize("name", ["audio encoder", "audio decoder", "video encoder", "video decoder"])
Run = Callable[[Any, Any], tuple[Any, Any]]
COMPILER = next(filter(shutil.which, [os.environ.get("CXX", "c++"), "g++", "clang++"]), None)


def units_of(name: str, count: int) -> tuple[Tensor, ...]:
    """`count` inputs of 160 ms for a part of the tiny agent."""
    part, groups = part_of("tiny", name), 4 if name.startswith("audio") else 1
    return part.make(torch.Generator().manual_seed(0), count * groups).split(groups * part.taken, dim=1)


# ---- precision and memory layout


def film(units: int) -> Tensor:
    frames = bouncing_square(4 * units, 96, 128, np.random.default_rng(0))
    return frames_to_video(torch.from_numpy(frames)[None], torch.device("cpu"))


def psnr(a: Tensor, b: Tensor) -> float:
    """In dB, of values in [-1, 1]."""
    return float(10 * torch.log10(4 / (a.float() - b.float()).square().mean()))


@torch.inference_mode()
def round_trip(vae: VideoVAE, video: Tensor) -> tuple[Tensor, Tensor]:
    """Latents and frames as in a call: unit by unit, in the codec's own type."""
    dtype, before, after = vae.stats.mean_C.dtype, None, None
    latents, films = [], []
    for unit in video.split(4, dim=1):
        latent, before = vae.encode(unit.to(dtype), before)
        rebuilt, after = vae.decode(latent.to(dtype), after)
        latents.append(latent)
        films.append(rebuilt)
    return torch.cat(latents, dim=1), torch.cat(films, dim=1)


@pytest.fixture(scope="module")
def plain() -> tuple[VideoVAE, Tensor, Tensor]:
    """The trained codec in float32, contiguous; its latents and frames."""
    vae = load_codec(CODECS, "video")
    return vae, *round_trip(vae, film(UNITS))


def test_channels_last_changes_nothing(plain: tuple[VideoVAE, Tensor, Tensor]) -> None:
    vae, latent, rebuilt = plain
    last = copy.deepcopy(vae).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    got_latent, got_rebuilt = round_trip(last, film(UNITS))
    torch.testing.assert_close(got_latent, latent, atol=1e-4, rtol=0)
    torch.testing.assert_close(got_rebuilt, rebuilt, atol=1e-4, rtol=0)


def test_bfloat16_is_close(plain: tuple[VideoVAE, Tensor, Tensor]) -> None:
    """As in a call."""
    vae, latent, rebuilt = plain
    fast = copy.deepcopy(vae).to(torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload]
    got_latent, got_rebuilt = round_trip(fast, film(UNITS))
    assert (got_latent - latent).norm() < 0.02 * latent.norm()
    assert psnr(got_rebuilt, rebuilt) > 40
    assert psnr(got_rebuilt, film(UNITS)) > psnr(rebuilt, film(UNITS)) - 0.2


# ---- torch.compile


def assert_same_compiled(run: Run, units: Iterable[Any], fresh: Any, backend: str) -> None:
    """The first unit, and later ones with their state."""
    torch.compiler.reset()
    fast: Run = torch.compile(run, dynamic=False, backend=backend)
    state = fast_state = fresh
    with torch.no_grad():
        for unit in units:
            y, state = run(unit, state)
            fast_y, fast_state = fast(unit, fast_state)
            torch.testing.assert_close(fast_y, y, atol=1e-4, rtol=0)
    for got, expected in zip(tensors_of(fast_state), tensors_of(state), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@every_part
def test_traced_equals_eager(name: str) -> None:
    """Without kernels: for those of a part the C++ compiler takes half a minute."""
    assert_same_compiled(part_of("tiny", name).run, units_of(name, 3), None, "aot_eager")


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="torch.compile needs a C++ compiler")
def test_compiled_layer_equals_eager() -> None:
    """With kernels, a layer with all that is hard for a compiler: its state is added in place. Plain ones, in this
    process: to try what the processor knows would take most of the time."""
    import torch._inductor.config  # seconds, which no other test needs to wait for

    g = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = MemoryBlock(4)
    films = torch.randn(3, 1, 4, 4, 8, 8, generator=g)
    with torch._inductor.config.patch({"compile_threads": 1, "cpp.vec_isa_ok": False}):
        assert_same_compiled(block, films, None, "inductor")


# ---- an hour


def held_bytes(state: Any) -> int:
    """What a state keeps in memory: a tensor may be a small view of something large."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors_of(state)}
    return sum(storage.nbytes() for storage in storages.values())


@every_part
@torch.inference_mode()
def test_state_never_grows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """400 units one by one. Every state is made from the last one and a unit alone, so an hour goes on like this."""
    monkeypatch.setattr("test_codecs.SIDE", 32)  # small pictures, for speed
    run, units = part_of("tiny", name).run, units_of(name, 10)
    state, sizes = None, set()
    for number in range(400):
        _, state = run(units[number % len(units)], state)
        sizes.add((sum(tensor.nbytes for tensor in tensors_of(state)), held_bytes(state)))
    assert len(sizes) == 1


@torch.inference_mode()
def test_long_sound_in_random_chunks() -> None:
    """400 units (64 s) of the trained codec: no error builds up at the seams."""
    vae, rng = load_codec(CODECS, "audio"), np.random.default_rng(0)
    sound = torch.from_numpy(hum(400 * SAMPLES_PER_UNIT, rng))[None]
    sizes = rng.multinomial(400 - 40, np.full(40, 1 / 40)) + 1  # 40 chunks of at least one unit
    whole, _ = vae.encode(sound)
    rebuilt, _ = vae.decode(whole)
    before = after = None
    for start, size in zip(np.cumsum(sizes) - sizes, sizes, strict=True):
        here = slice(4 * start, 4 * (start + size))
        latent, before = vae.encode(sound[:, start * SAMPLES_PER_UNIT : (start + size) * SAMPLES_PER_UNIT], before)
        torch.testing.assert_close(latent, whole[:, here], atol=1e-5 * latent.abs().max().item(), rtol=0)
        again, after = vae.decode(whole[:, here], after)
        expected = rebuilt[:, start * SAMPLES_PER_UNIT : (start + size) * SAMPLES_PER_UNIT]
        torch.testing.assert_close(again, expected, atol=1e-5, rtol=0)
