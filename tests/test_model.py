"""Rules 1, 3 and 4 of the design on the Transformer: causality, train = serve, peek or commit."""

import dataclasses
import itertools

import pytest
import torch
from tiny import TINY

from wan_streamer.codecs.patches import patchify, unpatchify
from wan_streamer.codecs.text import SILENCE
from wan_streamer.config import MediaConfig, StreamerConfig
from wan_streamer.flow.joint import stack
from wan_streamer.flow.live import UserInput, live_unit
from wan_streamer.flow.path import interpolate
from wan_streamer.flow.solver import Velocity, solve, time_grid
from wan_streamer.model.clip_view import ClipView, clip_view
from wan_streamer.model.flat_view import FlatView, flat_view
from wan_streamer.model.layers import Layer, rotary_table, rotate
from wan_streamer.model.layout import Kind, Latents, UnitLayout, effective_distance, unit_layout
from wan_streamer.model.streamer import ClipBatch, LiveState, Streamer
from wan_streamer.training.stages.rollout import roll_out
from wan_streamer.units import SAMPLES_PER_UNIT

K = 9
CPU = torch.device("cpu")


def dense_mask(config: StreamerConfig, layout: UnitLayout, blocks: int) -> torch.Tensor:
    """The table in docs/architecture.md, token by token: bool, True where the row's token sees the column's."""
    N = len(layout.kind_N)
    mask = torch.zeros(blocks * N, blocks * N, dtype=torch.bool)
    windows = [config.cache.video_units, config.cache.audio_units, config.cache.text_units]
    for q in range(blocks * N):
        for k in range(blocks * N):
            (q_block, q_place), (k_block, k_place) = divmod(q, N), divmod(k, N)
            q_noisy, k_noisy = q_place >= layout.noisy.start, k_place >= layout.noisy.start
            if q_block == k_block:
                mask[q, k] = layout.rank_N[k_place] <= layout.rank_N[q_place] and (q_noisy or not k_noisy)
            elif k_block < q_block and not k_noisy:
                near = q_block - k_block < windows[layout.kind_N[k_place]] or config.cache.policy == "full"
                mask[q, k] = near or k_block < config.cache.sink_units
    return mask


def with_policy(policy: str) -> StreamerConfig:
    return dataclasses.replace(TINY, cache=dataclasses.replace(TINY.cache, policy=policy))


def mixed(config: StreamerConfig) -> StreamerConfig:
    """With weights of their own for sound and pictures."""
    return dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, media=MediaConfig(24, 40)))


@pytest.fixture(params=["window", "full", "window, mixed"])
def model(request: pytest.FixtureRequest) -> Streamer:
    torch.manual_seed(0)
    policy, _, own = request.param.partition(", ")
    model = Streamer(mixed(with_policy(policy)) if own else with_policy(policy)).eval()
    torch.nn.init.normal_(model.video_out.weight, std=0.2)  # the heads start at zero, which would hide everything
    torch.nn.init.normal_(model.audio_out.weight, std=0.2)
    return model


def random_clip(config: StreamerConfig, seed: int = 1) -> ClipBatch:
    g = torch.Generator().manual_seed(seed)
    p, n, d = config.perception, config.video_tokens, config.audio_vae.latent_dim
    return ClipBatch(
        video_BKNP=torch.randn(1, K + 1, n, config.patch_dim, generator=g),
        audio_BKTC=torch.randn(1, K + 1, 4, d, generator=g),
        user_audio=torch.randn(1, K * SAMPLES_PER_UNIT, generator=g) * 0.1,
        microphone_BK=torch.arange(K)[None] % 4 != 2,
        user_video=torch.randint(0, 256, (1, 4 * K, p.video_height, p.video_width, 3), generator=g, dtype=torch.uint8),
        camera_BK=torch.arange(K)[None] % 5 != 3,
        user_text_BKS=torch.randint(0, 40, (1, K, 2), generator=g),
        slot_BKSL=torch.randint(0, 40, (1, K, 2, 2), generator=g),
        written_BK=torch.full((1, K), True),
        memory_BM2=torch.empty(1, 0, 2, dtype=torch.long),
    )


def off_is_blank(clip: ClipBatch) -> ClipBatch:
    """A microphone that is off delivers zeros and a camera that is off delivers grey, as `observe` does."""
    sound = clip.microphone_BK.repeat_interleave(SAMPLES_PER_UNIT, dim=1)
    picture = clip.camera_BK.repeat_interleave(4, dim=1)[..., None, None, None]
    return dataclasses.replace(
        clip,
        user_audio=torch.where(sound, clip.user_audio, 0.0),
        user_video=torch.where(picture, clip.user_video, torch.tensor(128, dtype=torch.uint8)),
    )


def one_pass(model: Streamer, clip: ClipBatch, noisy: Latents, tau_BK: torch.Tensor):
    history = Latents(clip.video_BKNP[:, :-1], clip.audio_BKTC[:, :-1])
    zero = torch.zeros(1, K, 2)
    with torch.inference_mode():
        return model(clip, history, zero, noisy, tau_BK[..., None].expand(1, K, 2))


def unit_by_unit(model: Streamer, clip: ClipBatch, noisy: Latents, tau_BK: torch.Tensor):
    """The same numbers through the live loop, which is given the clip's words and latents."""
    said, logits, velocities = iter(clip.slot_BKSL[0].flatten(0, 1)), [], []

    def pick(logits_LV: torch.Tensor) -> torch.Tensor:
        logits.append(logits_LV)
        return next(said)

    def draw(k: int, velocity: Velocity, last: Latents) -> Latents:
        velocities.append(velocity(Latents(noisy.video[0, k], noisy.audio[0, k]), tau_BK[0, k].item()))
        return Latents(clip.video_BKNP[0, k + 1], clip.audio_BKTC[0, k + 1])

    roll_out(model, clip, 0, pick, draw, clip.written_BK[0].tolist())
    return stack([stack(velocities)]), torch.stack(logits).unflatten(0, (K, -1))[None]


def noisy_latents(clip: ClipBatch) -> tuple[Latents, torch.Tensor]:
    g = torch.Generator().manual_seed(5)
    tau = torch.rand(1, K, generator=g) * 0.9 + 0.1
    video, audio = clip.video_BKNP[:, 1:], clip.audio_BKTC[:, 1:]
    noise = Latents(torch.randn(video.shape, generator=g), torch.randn(audio.shape, generator=g))
    t = tau[..., None, None]
    return Latents(interpolate(video, noise.video, t), interpolate(audio, noise.audio, t)), tau


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
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[2], found[0], atol=1e-5, rtol=0)
    model.backbone.attention = "windows"
    with torch.inference_mode():
        whole = one_pass(model, clip, noisy, tau)[0]
    assert not torch.allclose(whole.audio, found[0][0], atol=1e-2)


@pytest.mark.parametrize("there", list(itertools.product([True, False], repeat=4)))
def test_parts_of_a_block_keep_their_places(there: tuple[bool, bool, bool, bool]) -> None:
    layout = unit_layout(TINY)
    part, kept = layout.part(*there), [i for where in layout.kept(*there) for i in range(where.start, where.stop)]
    assert torch.equal(part.position_N3, layout.position_N3[kept])
    parts = (("agent_video", "agent_audio"), ("user_video",), ("noisy_video", "noisy_audio"))
    left_out = [name for names, here in zip(parts, there[:3], strict=True) if not here for name in names]
    left_out += [] if there[3] else ["agent_video", "noisy_video"]
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


def view_of(kind: str, config: StreamerConfig, device: torch.device = CPU, memory: int = 0) -> ClipView | FlatView:
    layout = unit_layout(config)
    if kind == "windows":
        return clip_view(config, layout, K, device)
    return flat_view(config, layout, K, device, kind == "flex", memory)


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
