"""Parts of a block, read without the rest: the same numbers in all ways of attention."""

import dataclasses
import itertools

import pytest
import torch
from tiny import TINY
from tiny_clips import (
    MODELS,
    K,
    noisy_latents,
    one_pass,
    random_clip,
    tiny_streamer,
)

from wan_streamer.model.layout import Latents, UnitLayout, unit_layout
from wan_streamer.model.streamer import Streamer


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Streamer:
    return tiny_streamer(request.param)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("history", "seen"), [(True, True), (False, True), (True, False), (False, False)])
def test_a_part_of_a_block_is_read_like_the_whole(history: bool, seen: bool, model: Streamer) -> None:
    """Noisy tokens are seen by nobody else; without the agent's past or the eyes, all ways of attention still agree."""
    clip = random_clip(model.config)
    noisy = noisy_latents(clip)
    if not seen:
        clip = dataclasses.replace(clip, user_video=clip.user_video[:, :0])
    past, zero = Latents(clip.video_BKNP[:, :-1], clip.audio_BKTC[:, :-1]), torch.zeros(1, K, 2)

    def read() -> torch.Tensor:
        nothing, logits = model(clip, past if history else None, zero, None, zero)
        assert nothing is None
        return logits

    def gradient(logits: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(logits.square().sum(), model.place)[0]

    logits = read()
    with torch.inference_mode():
        whole = one_pass(model, random_clip(model.config), *noisy)[1]
    assert torch.allclose(logits, whole, atol=1e-5) == (history and seen)  # both matter
    model.backbone.attention = "dense"
    dense = read()
    torch.testing.assert_close(dense, logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradient(dense), gradient(logits), atol=1e-3, rtol=1e-3)
    model.backbone.attention = "flex"  # has no gradient on CPUs
    with torch.inference_mode():
        torch.testing.assert_close(read(), logits, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_sound_alone_is_read_without_pictures(model: Streamer) -> None:
    """Without the tokens of the agent's pictures all ways of attention still agree, and they matter."""
    clip = random_clip(model.config)
    noisy, tau = noisy_latents(clip)
    past, zero = Latents(clip.video_BKNP[:, :-1, :0], clip.audio_BKTC[:, :-1]), torch.zeros(1, K, 2)
    tau_BK2, found = tau[..., None].expand(1, K, 2), []
    for way in ("windows", "dense", "flex"):
        model.backbone.attention = way
        with torch.inference_mode():
            velocity, logits = model(clip, past, zero, Latents(noisy.video[:, :, :0], noisy.audio), tau_BK2)
        assert velocity.video.shape[2] == 0
        found.append((velocity.audio, logits))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[2], found[0], atol=1e-5, rtol=1e-5)
    model.backbone.attention = "windows"
    with torch.inference_mode():
        whole = one_pass(model, clip, noisy, tau)[0]
    assert not torch.allclose(whole.audio, found[0][0], atol=1e-2)


@pytest.mark.parametrize("there", list(itertools.product([True, False], repeat=5)))
def test_parts_of_a_block_keep_their_places(there: tuple[bool, ...]) -> None:
    layout = unit_layout(TINY)
    part, kept = layout.part(*there), [i for where in layout.kept(*there) for i in range(where.start, where.stop)]
    assert torch.equal(part.position_N3, layout.position_N3[kept])
    made, drawn = ("agent_video", "agent_audio"), ("noisy_video", "noisy_audio")
    parts = (made, ("user_audio", "user_read"), ("user_video",), drawn)
    left_out = [name for names, here in zip(parts, there[:4], strict=True) if not here for name in names]
    left_out += [] if there[4] else ["agent_video", "noisy_video"]
    for field in dataclasses.fields(UnitLayout):
        pairs = [(getattr(layout, field.name), getattr(part, field.name))]
        if field.name == "slots":
            pairs = list(zip(layout.slots, part.slots, strict=True))
        for old, new in pairs:
            if isinstance(old, slice):
                expected = [] if field.name in left_out else list(range(old.start, old.stop))
                assert kept[new] == expected, field.name
    assert part.noisy.start == part.context.stop
    assert part.noisy.stop == len(part.kind_N)
