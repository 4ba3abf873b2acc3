"""The text memory of the model: who sees what of it, and that training and a live session agree about it."""

import dataclasses
from functools import partial

import pytest
import torch
from tiny import TINY
from tiny_clips import K, dense_mask, noisy_latents, off_is_blank, one_pass, random_clip, unit_by_unit, view_of
from torch import Tensor

from wan_streamer.codecs.text import END, HOLD, SILENCE
from wan_streamer.config import StreamerConfig
from wan_streamer.errors import ConfigError
from wan_streamer.model.layers import rotary_table, rotate
from wan_streamer.model.layout import ClipBatch, Kind, Latents, effective_distance
from wan_streamer.model.memory import PADDING, MemoryKV, attend_memory, clip_memory, latest, readable, spoken
from wan_streamer.model.streamer import Streamer
from wan_streamer.training.examples import clips as examples

SIZE = 12
LENGTHS = (0, 5, SIZE)  # of the memories of a batch
RESPONSE, TRANSCRIPT, TYPED = 0, 1, 2
NOTHING = [PADDING, PADDING]


def with_memory(size: int = SIZE, text_units: int = K, layers: int = 2, span: int = 0) -> StreamerConfig:
    """TINY with a memory, and a text window as long as the clips of these tests."""
    cache = dataclasses.replace(TINY.cache, text_units=text_units, memory_tokens=size, memory_span=span)
    return dataclasses.replace(TINY, cache=cache, backbone=dataclasses.replace(TINY.backbone, layers=layers))


def make(config: StreamerConfig, seed: int = 0) -> Streamer:
    torch.manual_seed(seed)
    model = Streamer(config).eval()
    torch.manual_seed(seed + 1)
    torch.nn.init.normal_(model.video_out.weight, std=0.2)  # the heads start at zero, which would hide everything
    torch.nn.init.normal_(model.audio_out.weight, std=0.2)
    if model.memory_in is not None:
        torch.nn.init.normal_(model.memory_in, std=0.3)
    return model


@pytest.fixture
def model() -> Streamer:
    return make(with_memory())


def random_memory(length: int, seed: int = 0) -> Tensor:
    """int64 [length, 2]: words of all sources in any order."""
    g = torch.Generator().manual_seed(100 * seed + length)
    return torch.stack([torch.arange(length) % 3, torch.randint(END, 40, (length,), generator=g)], dim=1)


def clip_with(model: Streamer, memory_N2: Tensor, size: int = SIZE) -> ClipBatch:
    return dataclasses.replace(off_is_blank(random_clip(model.config)), memory_BM2=latest(memory_N2, size)[None])


def answer(model: Streamer, clip: ClipBatch) -> tuple[Tensor, Tensor, Tensor]:
    (video, audio), logits = one_pass(model, clip, *noisy_latents(clip))
    return video, audio, logits


def assert_same(one: tuple[Tensor, ...], other: tuple[Tensor, ...], atol: float) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=0)


def differ(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    return all((a - b).abs().max() > 1e-3 for a, b in zip(one, other, strict=True))


# ---- what is remembered


def test_order_of_what_was_said() -> None:
    """By unit, then slot, then source; ends of turns are kept, silence and holds are not."""
    said = torch.tensor([[[5, HOLD, 7], [SILENCE, 6, END]], [[SILENCE] * 3, [END, 9, SILENCE]]])
    expected = [[RESPONSE, 5], [TYPED, 7], [TRANSCRIPT, 6], [TYPED, END], [RESPONSE, END], [TRANSCRIPT, 9]]
    assert spoken(said).tolist() == expected
    assert latest(spoken(said), 4).tolist() == expected[2:]
    assert latest(spoken(said), 7).tolist() == [NOTHING, *expected]
    assert latest(spoken(said), 0).shape == latest(spoken(said)[:0], 0).shape == (0, 2)


def test_readable_closes_holes() -> None:
    memory = torch.tensor([[[PADDING, 0], [RESPONSE, 5], [TYPED, 6], [PADDING, 8], [TRANSCRIPT, 7]]]).expand(2, 5, 2)
    shown, hidden = readable(memory, torch.tensor([True, False])).tolist()
    assert shown == [NOTHING] * 2 + [[RESPONSE, 5], [TYPED, 6], [TRANSCRIPT, 7]]
    assert hidden == [NOTHING] * 3 + [[TYPED, 6], [TRANSCRIPT, 7]]


def test_text_has_no_sinks_beside_a_memory() -> None:
    for size, expected in ((0, [6, 5, -1, -1, 4, 3, 2, 1, 0]), (4, [-1, -1, -1, -1, 4, 3, 2, 1, 0])):
        config = with_memory(size, text_units=5)
        assert effective_distance(config, torch.tensor(int(Kind.TEXT)), 8, torch.arange(9)).tolist() == expected
    video = effective_distance(with_memory(4), torch.tensor(int(Kind.VIDEO)), 8, torch.arange(9))
    assert video.tolist() == [3, 2, -1, -1, -1, -1, -1, 1, 0]


# ---- training


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("kind", "span"), [("windows", 0), ("dense", 0), ("flex", 0), ("windows", 4), ("dense", 4)])
def test_attention_to_memories_equals_the_reference(kind: str, span: int) -> None:
    """Every query of every block sees all memory tokens of its row, which end where the text window begins.

    A row of the reference has its own memory without padding, and ids relative to the block that asks.
    """
    model = make(with_memory(span=span))
    layout, config, layer = model.layout, model.config, model.backbone.layers[0]
    N, D, B = len(layout.kind_N), config.backbone.dim, len(LENGTHS)
    g = torch.Generator().manual_seed(3)
    x, m = torch.randn(B, K, N, D, generator=g), torch.randn(B, SIZE, D, generator=g)
    seen_BM = torch.arange(SIZE) >= SIZE - torch.tensor(LENGTHS)[:, None]
    attention, mask = layer.attention, dense_mask(config, layout, K)
    mask &= ~sinks_of_text(config, model)
    block = torch.arange(K).repeat_interleave(N)
    kinds, position = layout.kind_N.repeat(K), layout.position_N3.repeat(K, 1)
    with torch.inference_mode():
        memory = clip_memory(seen_BM, config.backbone, config.cache.span)
        _, (raw_k, v) = attend_memory(attention, layer.attention_norm(m), memory.own_2Md, memory.mask_B1MM)
        kv = MemoryKV(rotate(raw_k, memory.table_2Md), v, seen_BM)
        fast = view_of(kind, config, memory=SIZE).attend(attention, layer.attention_norm(x), kv).flatten(1, 2)
        for row, length in enumerate(LENGTHS):
            q, k, v = attention.project(layer.attention_norm(x[row : row + 1].flatten(1, 2)))
            _, memory_k, memory_v = attention.project(layer.attention_norm(m[row : row + 1, SIZE - length :]))
            for query in range(0, K * N, 3):
                seen, own = mask[query].nonzero().squeeze(1), int(block[query])
                distance = effective_distance(config, kinds[seen], own, block[seen])
                ids = (torch.arange(length) - length).clamp(min=-config.cache.span)
                ids = ids + 4 * (max(0, own - config.cache.text_units + 1) - own)
                ids = torch.cat([ids[:, None].expand(-1, 3), position[seen] - 4 * distance[:, None]])
                keys = rotate(torch.cat([memory_k[0], k[0, seen]]), rotary_table(ids, config.backbone))
                values = torch.cat([memory_v[0], v[0, seen]])
                asks = rotate(q[0, query : query + 1], rotary_table(position[query : query + 1], config.backbone))
                expected = attention.attend(asks[None], keys[None], values[None], None)[0, 0]
                torch.testing.assert_close(fast[row, query], expected, atol=1e-5, rtol=0)


def sinks_of_text(config: StreamerConfig, model: Streamer) -> Tensor:
    """bool [Q, Q]: text of sinks that has left the window."""
    N = len(model.layout.kind_N)
    block, kinds = torch.arange(K).repeat_interleave(N), model.layout.kind_N.repeat(K)
    return (block[:, None] - block >= config.cache.text_units) & (kinds == Kind.TEXT)


def rows_of(model: Streamer) -> ClipBatch:
    """Three different clips with memories of different lengths."""
    clips = [off_is_blank(random_clip(model.config, seed)) for seed in range(len(LENGTHS))]
    rows = [
        vars(clip) | {"memory_BM2": latest(random_memory(n), SIZE)[None]}
        for clip, n in zip(clips, LENGTHS, strict=True)
    ]
    return ClipBatch(**{name: torch.cat([row[name] for row in rows]) for name in rows[0]})


def part(clip: ClipBatch, row: int) -> ClipBatch:
    return ClipBatch(**{name: value[row : row + 1] for name, value in vars(clip).items()})


def batch_answer(model: Streamer, clips: ClipBatch) -> tuple[Tensor, Tensor, Tensor]:
    """`answer` of several rows in one pass, all with the noise of `answer`."""
    B = len(clips.memory_BM2)
    noisy, taus = zip(*(noisy_latents(part(clips, row)) for row in range(B)), strict=True)
    history = Latents(clips.video_BKNP[:, :-1], clips.audio_BKTC[:, :-1])
    noise = Latents(*(torch.cat(parts) for parts in zip(*noisy, strict=True)))
    tau = torch.cat(taus)[..., None].expand(B, K, 2)
    (video, audio), logits = model(clips, history, torch.zeros(B, K, 2), noise, tau)
    return video, audio, logits


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_ways_agree_and_padding_is_inert(model: Streamer) -> None:
    """Rows with padding, in every way of attention, are what each row is alone with a memory of its own length."""
    clips = rows_of(model)
    rows = []
    for row, length in enumerate(LENGTHS):
        alone = part(clips, row)
        rows.append(answer(model, dataclasses.replace(alone, memory_BM2=alone.memory_BM2[:, SIZE - length :])))
    expected = tuple(torch.cat(parts) for parts in zip(*rows, strict=True))
    assert torch.equal(readable(clips.memory_BM2, clips.written_BK.all(1)), clips.memory_BM2)
    other_pads = torch.where(clips.memory_BM2 == PADDING, torch.tensor([PADDING, 33]), clips.memory_BM2)
    with torch.inference_mode():
        for way in ("windows", "dense", "flex"):
            model.backbone.attention = way
            assert_same(batch_answer(model, clips), expected, atol=2e-5)
        assert_same(batch_answer(model, dataclasses.replace(clips, memory_BM2=other_pads)), expected, atol=2e-5)


def test_ways_have_the_same_gradients(model: Streamer) -> None:
    gradients = []
    for way in ("windows", "dense"):
        model.zero_grad()
        model.backbone.attention = way
        outputs = batch_answer(model, rows_of(model))
        sum(z.square().mean() for z in outputs).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(gradients[0]["memory_in"].abs().amax(1) > 1e-6)
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("length", [*LENGTHS, 20])
def test_training_pass_equals_a_session_opened_with_the_memory(length: int, shown: bool, model: Streamer) -> None:
    clip = clip_with(model, random_memory(length))
    clip = dataclasses.replace(clip, written_BK=torch.full((1, K), shown))
    noisy, tau = noisy_latents(clip)
    live_velocity, live_logits = unit_by_unit(model, clip, noisy, tau)
    assert_same(answer(model, clip), (*live_velocity, live_logits), atol=1e-4)


def test_every_part_of_a_memory_matters(model: Streamer) -> None:
    """Words, sources, order, place: other ones give another answer. The first block sees it, and so does the last."""
    memory = random_memory(6)
    before = answer(model, clip_with(model, memory))
    for unit in (0, K - 1):
        assert differ([z[:, unit] for z in before], [z[:, unit] for z in answer(model, clip_with(model, memory[:0]))])
    other_word, other_source = memory.clone(), memory.clone()
    other_word[0, 1] += 1
    other_source[0, 0] = TYPED
    for changed in (other_word, other_source, memory.flip(0), memory[:-1]):
        assert not torch.allclose(before[2], answer(model, clip_with(model, changed))[2], atol=1e-4)


def test_hidden_words_cannot_be_read(model: Streamer) -> None:
    """Without the agent's text, its own words in the memory change nothing, bit for bit; the user's still do."""
    memory = random_memory(9)
    own = memory[:, 0] == RESPONSE
    other = torch.where(own[:, None], memory + torch.tensor([0, 1]), memory)
    dumb = partial(dataclasses.replace, written_BK=torch.full((1, K), False))
    assert not torch.equal(answer(model, clip_with(model, memory))[0], answer(model, clip_with(model, other))[0])
    hidden = answer(model, dumb(clip_with(model, memory)))
    for same in (other, memory[~own]):
        assert all(map(torch.equal, hidden, answer(model, dumb(clip_with(model, same)))))
    assert differ(hidden, answer(model, dumb(clip_with(model, memory[:0]))))


def test_memory_is_read_like_plain_text(model: Streamer) -> None:
    """`remember`, in one go or bit by bit, gives the keys and values of `Backbone.read`, before their rotation."""
    backbone, config = model.backbone, model.config.backbone
    x = torch.randn(7, config.dim, generator=torch.Generator().manual_seed(2))
    nothing = torch.empty(2, config.layers, 0, config.kv_heads, config.head_dim)
    with torch.inference_mode():
        raw = backbone.remember(x, nothing)
        _, past = backbone.read(x[None])
        parts = nothing
        for some in x.split([1, 4, 2]):
            parts = torch.cat([parts, backbone.remember(some, parts)], dim=2)
    table = rotary_table(torch.arange(7)[:, None].expand(7, 3), config)
    torch.testing.assert_close(rotate(raw[0], table), past[:, 0, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(raw[1], past[:, 1, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(parts, raw, atol=1e-5, rtol=0)


# ---- off


def test_without_a_memory_nothing_changes() -> None:
    off, on = make(with_memory(0)), make(with_memory())
    assert set(on.state_dict()) - set(off.state_dict()) == {"memory_in"}
    assert all(torch.equal(value, on.state_dict()[name]) for name, value in off.state_dict().items())
    clip = clip_with(on, random_memory(0), 0)
    assert all(map(torch.equal, answer(off, clip), answer(on, clip)))
    assert off.open().cache.bytes < on.open().cache.bytes
    with pytest.raises(ConfigError, match="memory_tokens: expected more than 0"):
        answer(off, clip_with(off, random_memory(3)))


@pytest.mark.parametrize(("lengths", "places"), [((0, 0), 4), ((0, 3), 4), ((5, 1), 8), ((SIZE, 0), SIZE)])
def test_a_batch_has_the_places_that_it_needs(
    lengths: tuple[int, ...], places: int, model: Streamer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whole steps, and never none: the processes of a step have to train the same parameters."""
    monkeypatch.setattr(examples, "MEMORY_STEP", 4)
    memories = [random_memory(length) for length in lengths]
    rows = [clip_with(model, memory) for memory in memories]
    one = torch.ones(1, K)
    stacked = examples.stack(examples.Example(row, one, one, torch.ones(1, K, 2), one.bool()) for row in rows)
    assert torch.equal(stacked.clips.memory_BM2, torch.stack([latest(memory, places) for memory in memories]))
