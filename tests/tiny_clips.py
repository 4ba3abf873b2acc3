"""Clips, masks and passes of tiny models, for the tests of the Transformer."""

import dataclasses

import torch
from tiny import TINY

from wan_streamer.config import MediaConfig, StreamerConfig
from wan_streamer.flow.joint import stack
from wan_streamer.flow.path import interpolate
from wan_streamer.flow.solver import Velocity
from wan_streamer.model.layout import ClipBatch, Latents, UnitLayout, unit_layout
from wan_streamer.model.memory import PADDING
from wan_streamer.model.streamer import Streamer
from wan_streamer.model.views.clip_view import ClipView, clip_view
from wan_streamer.model.views.flat_view import FlatView, flat_view
from wan_streamer.speaking.sounds import no_sounds
from wan_streamer.training.stages.rollout import roll_out
from wan_streamer.units import SAMPLES_PER_UNIT

K = 9
CPU = torch.device("cpu")
MODELS = ("window", "full", "window, mixed")


def tiny_streamer(kind: str) -> Streamer:
    """One of `MODELS`, with random weights."""
    torch.manual_seed(0)
    policy, _, own = kind.partition(", ")
    model = Streamer(mixed(with_policy(policy)) if own else with_policy(policy)).eval()
    torch.nn.init.normal_(model.video_out.weight, std=0.2)  # the heads start at zero, which would hide everything
    torch.nn.init.normal_(model.audio_out.weight, std=0.2)
    return model


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
        sound_BKP=no_sounds(1, K + 2),
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


def heard_clip(config: StreamerConfig) -> ClipBatch:
    """A clip for a model with ears and a memory: sound from so long before it as they look back, nothing remembered."""
    clip, lead = random_clip(config), config.perception.lead_units
    sound = torch.randn(1, (lead + K) * SAMPLES_PER_UNIT, generator=torch.Generator().manual_seed(3))
    heard = dataclasses.replace(clip, user_audio=sound[:, : K * SAMPLES_PER_UNIT], microphone_BK=clip.camera_BK)
    blank = off_is_blank(heard)
    sound = torch.cat([torch.zeros(1, lead * SAMPLES_PER_UNIT), blank.user_audio], dim=1)
    memory = torch.full((1, config.cache.memory_tokens, 2), PADDING)
    return dataclasses.replace(blank, user_audio=sound, memory_BM2=memory)


def one_pass(model: Streamer, clip: ClipBatch, noisy: Latents, tau_BK: torch.Tensor):
    history = Latents(clip.video_BKNP[:, :-1], clip.audio_BKTC[:, :-1])
    zero = torch.zeros(1, K, 2)
    with torch.inference_mode():
        return model(clip, history, zero, noisy, tau_BK[..., None].expand(1, K, 2))[:2]


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


def view_of(kind: str, config: StreamerConfig, device: torch.device = CPU, memory: int = 0) -> ClipView | FlatView:
    layout = unit_layout(config)
    if kind == "windows":
        return clip_view(config, layout, K, device)
    return flat_view(config, layout, K, device, kind == "flex", memory)
