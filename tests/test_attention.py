"""What tokens of a clip see: the mask, the windows, and three ways to attend that give the same numbers."""

import dataclasses

import pytest
import torch
from tiny import TINY
from tiny_clips import (
    MODELS,
    K,
    dense_mask,
    tiny_streamer,
    view_of,
)

from wan_streamer.model.layers import Layer, rotary_table, rotate
from wan_streamer.model.layout import Kind, effective_distance, unit_layout
from wan_streamer.model.streamer import Streamer


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Streamer:
    return tiny_streamer(request.param)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kind", ["windows", "dense", "flex"])
def test_attention_of_a_clip_equals_the_reference(kind: str, model: Streamer) -> None:
    """Every query against every key of the clip, one pair at a time by the rule of `layout`."""
    layout, config = model.layout, model.config
    N = len(layout.kind_N)
    x = torch.randn(1, K, N, config.backbone.dim, generator=torch.Generator().manual_seed(3))
    attention = model.backbone.layers[0].attention
    mask = dense_mask(config, layout, K)
    with torch.inference_mode():
        layer = model.backbone.layers[0]
        fast = view_of(kind, config).attend(attention, layer.attention_norm(x)).flatten(1, 2)[0]
        q, k, v = attention.project(layer.attention_norm(x.flatten(1, 2)))
        block = torch.arange(K).repeat_interleave(N)
        kinds, position = layout.kind_N.repeat(K), layout.position_N3.repeat(K, 1)
        rows = []
        for row in range(K * N):
            seen = mask[row].nonzero().squeeze(1)
            distance = effective_distance(config, kinds[seen], int(block[row]), block[seen])
            keys = rotate(k[0, seen], rotary_table(position[seen] - 4 * distance[:, None], config.backbone))
            query = rotate(q[0, row : row + 1], rotary_table(position[row : row + 1], config.backbone))
            rows.append(attention.attend(query[None], keys[None], v[:, seen], None)[0, 0])
    torch.testing.assert_close(fast, torch.stack(rows), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("policy", ["window", "full"])
@pytest.mark.parametrize("kind", ["dense", "flex"])
def test_ways_of_attention_have_the_same_gradients(kind: str, policy: str) -> None:
    if kind == "flex" and not torch.cuda.is_available():
        pytest.skip("FlexAttention has gradients on CUDA only")
    device = torch.device("cuda" if kind == "flex" else "cpu")
    config = dataclasses.replace(TINY, cache=dataclasses.replace(TINY.cache, policy=policy))
    layer = Layer(config.backbone).to(device)
    shape = (2, K, len(unit_layout(config).kind_N), config.backbone.dim)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    outputs, gradients = [], []
    for way in ("windows", kind):
        layer.zero_grad()
        own = x.clone().to(device).requires_grad_()
        outputs.append(layer(own, view_of(way, config, device).attend))
        outputs[-1].square().sum().backward()
        gradients.append([own.grad, *(p.grad for p in layer.parameters())])
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-4)
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, atol=2e-3, rtol=1e-3)


def test_mask_keeps_the_promises_of_the_design() -> None:
    layout = unit_layout(TINY)
    mask = dense_mask(TINY, layout, 3)
    N = len(layout.kind_N)

    def sees(query_block: int, query: slice, key_block: int, key: slice) -> torch.Tensor:
        return mask[query_block * N : (query_block + 1) * N, key_block * N : (key_block + 1) * N][query, key]

    # The clean latents of unit 1 stand at the head of block 2.
    assert not sees(1, layout.noisy, 2, layout.agent_video).any(), "noisy(1) must not see clean(1)"
    assert sees(1, layout.noisy, 1, layout.agent_video).all()
    assert not sees(2, layout.noisy, 1, layout.noisy).any(), "noisy tokens of another unit are invisible"
    assert not sees(1, layout.agent_video, 1, layout.user_audio).any(), "clean(0) comes before user(1)"
    assert sees(1, layout.user_audio, 1, layout.user_video).all()
    assert not sees(1, layout.user_audio, 1, layout.lane_start).any()
    assert sees(1, layout.slots[1], 1, layout.slots[0]).all()
    assert not sees(1, layout.slots[0], 1, layout.slots[1]).any()
    assert sees(1, layout.noisy, 1, layout.slots[1]).all()
    assert sees(1, layout.noisy_audio, 1, layout.noisy_video).all()
    assert mask.any(1).all(), "a fully masked row would be NaN"


def test_window_and_sinks() -> None:
    video = torch.tensor(int(Kind.VIDEO))
    blocks = torch.arange(9)
    assert effective_distance(TINY, video, 8, blocks).tolist() == [3, 2, -1, -1, -1, -1, -1, 1, 0]
    assert effective_distance(TINY, torch.tensor(int(Kind.TEXT)), 8, blocks).tolist() == [6, 5, -1, -1, 4, 3, 2, 1, 0]
