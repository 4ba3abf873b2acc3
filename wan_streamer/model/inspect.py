"""What an agent is made of, as nested dictionaries of plain values; `wan-streamer inspect` prints them.

`describe_preset`       a named size; nothing is trained, read or allocated
`describe_checkpoint`   a trained agent: the same, its files, and whether model and codecs belong together

Tables of a description: parameters · tokens (of a unit, by role) · history (the key-value cache) · gflop and
megabytes (of a unit, by stage of a session) · config, and of a checkpoint also files and codecs.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from wan_streamer.codecs.audio_vae import AudioVAE
from wan_streamer.codecs.causal import State
from wan_streamer.codecs.folder import codec_hash, load_codecs
from wan_streamer.codecs.patches import unpatchify
from wan_streamer.codecs.video_vae import VideoVAE
from wan_streamer.config import StreamerConfig, load_config, to_dict
from wan_streamer.errors import CheckpointError
from wan_streamer.model.cache import MEMORY, KVCache, LiveState
from wan_streamer.model.layout import LANES, UnitLayout, effective_distance, window_units
from wan_streamer.model.memory import SOURCES
from wan_streamer.model.pretrained import codecs_of, find_checkpoint
from wan_streamer.model.streamer import Streamer
from wan_streamer.perception.audio import HOP, AudioPerception
from wan_streamer.presets import get_preset
from wan_streamer.tensors import SCALE
from wan_streamer.units import FRAMES_PER_UNIT, SAMPLES_PER_FRAME, SAMPLES_PER_UNIT, UNIT_MS

BESIDE = ("reading", "voice", "wording", "floor", "sight")  # networks that stand beside the Transformer
META = torch.device("meta")
MINUTE_UNITS = 60_000 // UNIT_MS


def describe_preset(name: str) -> dict[str, Any]:
    """The description of a preset. Raises `ConfigError` if there is none of this name."""
    return {"preset": name, **_describe(get_preset(name))}


def describe_checkpoint(name: str) -> dict[str, Any]:
    """The description of a checkpoint: an embedded one, a folder or a hub id.

    Codecs that do not belong to the model are part of the answer. Raises `CheckpointError` or `ConfigError` for
    whatever else is missing, damaged or does not fit.
    """
    folder = find_checkpoint(name)
    config = load_config(folder / "config.json")
    description = {"checkpoint": str(folder), **_describe(config)}
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    description["files"] = {path.name: path.stat().st_size for path in paths}
    description["codecs"] = _check_codecs(config, folder)
    return description


def _describe(config: StreamerConfig) -> dict[str, Any]:
    with _Unallocated():
        streamer = Streamer(config)
        audio_vae, video_vae = AudioVAE(config.audio_vae), VideoVAE(config.video_vae)
    parameters = _parameters(streamer, audio_vae, video_vae)
    for module in (streamer, audio_vae, video_vae):
        module.to(META)
    streamer.backbone.bfloat16()  # as it is served
    return {
        "name": config.name,
        "unit_ms": config.unit_ms,
        "parameters": parameters,
        "tokens": _tokens(streamer.layout),
        "history": _history(streamer),
        "megabytes": _megabytes(streamer, audio_vae, video_vae),
        "gflop": _gflop(streamer, audio_vae, video_vae),
        "config": to_dict(config),
    }


class _Unallocated(TorchFunctionMode):
    """Modules made in this context have their weights on the meta device; the few constants they compute are real."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in (nn.init.normal_, nn.init.kaiming_uniform_):  # seconds, for numbers that are not kept
            return kwargs.get("tensor", *args[:1])
        return func(*args, **kwargs | ({"device": META} if func is torch.empty else {}))


def _parameters(streamer: Streamer, audio_vae: AudioVAE, video_vae: VideoVAE) -> dict[str, int]:
    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    parts = {
        "backbone": count(streamer.backbone),
        "hearing": count(streamer.hearing),
        "seeing": count(streamer.seeing),
        "text_embedding": count(streamer.text_in),
    }
    beside = {name: getattr(streamer, name) for name in BESIDE}
    parts |= {name: count(part) for name, part in beside.items() if part is not None}
    parts["inputs_and_heads"] = count(streamer) - sum(parts.values())
    parts |= {"audio_vae": count(audio_vae), "video_vae": count(video_vae)}
    return parts | {"total": sum(parts.values())}


def _tokens(layout: UnitLayout) -> dict[str, int]:
    """Tokens of one unit: those that enter the history, by role, and those that only the solver sees."""
    roles = {
        "agent_video": layout.agent_video,
        "agent_audio": layout.agent_audio,
        "user_audio": layout.user_audio,
        "user_video": layout.user_video,
        "user_text": layout.user_text,
        "user_read": layout.user_read,
        "lane_starts": layout.lane_start,
        "lane_slots": slice(layout.slots[0].start, layout.slots[-1].stop),
        "history": layout.context,
        "solved": layout.noisy,
    }
    return {name: where.stop - where.start for name, where in roles.items()}


def _seen_history(config: StreamerConfig, layout: UnitLayout) -> tuple[int, Tensor]:
    """(block, [M, 2]) where every window is full: which (block, layout index) of earlier units that block sees.

    A full memory comes last, as tokens of the block `MEMORY`. Under `full` the history has no end; the block is the one
    that begins after a minute.
    """
    block = MINUTE_UNITS
    if config.cache.policy == "window":
        block = int(window_units(config).max()) + config.cache.sink_units
    kind_N = layout.kind_N[layout.context]
    distance = effective_distance(config, kind_N[None], block, torch.arange(block)[:, None])
    memory_M2 = torch.tensor([MEMORY, 0]).expand(config.cache.memory_tokens, 2)
    return block, torch.cat([(distance >= 0).nonzero(), memory_M2])


def _live(streamer: Streamer) -> LiveState:
    """A session (on the meta device) whose next unit is the block of `_seen_history`."""
    block, seen_M2 = _seen_history(streamer.config, streamer.layout)
    live = streamer.open()
    cache = live.cache
    while len(seen_M2) + streamer.layout.context.stop > cache.raw.shape[2]:
        cache._grow()
    cache.block, cache.length = block - 1, len(seen_M2)
    cache.block_M[: cache.length], cache.index_M[: cache.length] = seen_M2.unbind(1)
    if streamer.reading is not None:  # a full window, with a word in every slot
        perception, ears, units = streamer.config.perception, streamer.config.perception.ears, range(cache.block)
        shape = (ears.layers, 2, ears.heads, ears.frames, ears.head)
        known = units[: perception.reading_units - 1]
        live.heard.extend(torch.empty(shape, device=META) for _ in known)
        live.said.extend(
            torch.empty(streamer.config.text.slots, len(SOURCES), dtype=torch.long, device=META) for _ in known
        )
    return live


def _history(streamer: Streamer) -> dict[str, Any]:
    """Sizes of the cache of a live session. The cache keeps keys twice: before and after rotation."""
    config, layout, backbone = streamer.config, streamer.layout, streamer.config.backbone
    block, seen_M2 = _seen_history(config, layout)
    cache: KVCache = _live(streamer).cache
    element = cache.raw.element_size()
    slice_bytes = 2 * backbone.layers * layout.context.stop * backbone.kv_heads * backbone.head_dim * element
    limited = config.cache.policy == "window"
    return {
        "policy": config.cache.policy,
        "grows_without_limit": not limited,
        "measured_at_unit": block,
        "visible_tokens": len(seen_M2),
        "element_bytes": element,
        "kv_slice_bytes": slice_bytes,
        "cache_bytes_per_unit": slice_bytes * 3 // 2,
        "kv_bytes_per_minute": slice_bytes * MINUTE_UNITS,
        "cache_bytes_visible": slice_bytes * 3 // 2 * len(seen_M2) // layout.context.stop,
        "cache_bytes_allocated": cache.bytes,
    }


class _HearingNetwork(nn.Module):
    """`AudioPerception` after its Fourier transform: there is no autocast region on the meta device."""

    def __init__(self, hearing: AudioPerception) -> None:
        super().__init__()
        self.filters, self.project, self.blocks = hearing.filters, hearing.project, hearing.blocks

    def forward(self, audio_BT: Tensor, state: None) -> tuple[Tensor, None]:
        B, T = audio_BT.shape
        mel = audio_BT.new_empty(B, T // HOP, len(self.filters)) @ self.filters
        hidden = self.project(mel.reshape(B, T // SAMPLES_PER_FRAME, -1))
        fresh: State = None
        for block in self.blocks:
            hidden, _ = block(hidden, fresh)
        return hidden, None


def _megabytes(streamer: Streamer, audio_vae: AudioVAE, video_vae: VideoVAE) -> dict[str, float]:
    """10^6 bytes that the stages of a session must at least read: weights in bfloat16 and the visible history.

    Each pass through the backbone reads all of it once, or the weights of text or of media where they have their own;
    what passes between layers is not counted. On a device whose memory carries B bytes per second, a unit takes its
    bytes / B or more.
    """
    config, element = streamer.config, 2

    def weights(*modules: nn.Module | None) -> int:
        return element * sum(p.numel() for module in modules if module is not None for p in module.parameters())

    _, seen_M2 = _seen_history(config, streamer.layout)
    per_token = element * 2 * config.backbone.layers * config.backbone.kv_heads * config.backbone.head_dim
    history, whole = per_token * len(seen_M2), weights(streamer.backbone)
    media = element * sum(p.numel() for name, p in streamer.backbone.named_parameters() if ".media." in name)
    head = weights(streamer.text_in if streamer.text_out is None else streamer.text_out)
    inputs = weights(streamer.user_audio_in, streamer.user_video_in, streamer.video_in, streamer.audio_in)
    solver = weights(streamer.video_in, streamer.audio_in, streamer.tau_in, streamer.video_out, streamer.audio_out)
    reader = config.perception.reading * weights(streamer.reading)  # once for each of its tokens
    parts = [part for vae in (audio_vae, video_vae) for part in vae.named_parameters()]
    read = {
        "observe": weights(streamer.hearing, streamer.seeing) + reader + inputs + whole + history + head,
        "text": config.text.slots * (whole - media + history + head),
        "solve": config.flow.steps * ((media or whole) + history + solver),
        "decode": element * sum(p.numel() for name, p in parts if name.startswith("dec_")),
    }
    read["unit"] = sum(read.values())
    read["second"] = read["unit"] * 1000 // UNIT_MS
    return {name: round(value / 1e6, 3) for name, value in read.items()}


@torch.no_grad()
def _gflop(streamer: Streamer, audio_vae: AudioVAE, video_vae: VideoVAE) -> dict[str, float]:
    """10^9 operations (a multiplication and an addition are two) of matrix products and convolutions, by stage.

    The stages of a session run on the meta device with the history of `_seen_history`. Spectra, norms and the softmax
    are not counted.
    """
    config, perception = streamer.config, streamer.config.perception
    live, last = _live(streamer), streamer.silence()
    if isinstance(streamer.hearing, AudioPerception):
        streamer.hearing = _HearingNetwork(streamer.hearing)
    sound = torch.empty(SAMPLES_PER_UNIT, device=META)
    shape = (FRAMES_PER_UNIT, perception.video_height, perception.video_width, 3)
    frames = torch.empty(shape, dtype=torch.uint8, device=META)
    tokens = torch.zeros(len(LANES), dtype=torch.long, device=META)

    def decode() -> None:
        audio_vae.decode(last.audio[None])
        video_vae.decode(unpatchify(last.video, config)[None, None])

    def speak() -> None:
        for slot in range(config.text.slots):
            streamer.speak(live, slot, tokens)

    operations = {
        "observe": _operations(lambda: streamer.observe(live, last, sound, frames, streamer.quiet_slots())),
        "text": _operations(speak),
        "solve": config.flow.steps * _operations(lambda: streamer.velocity(live, last, 1.0)),
        "decode": _operations(decode),
    }
    operations["unit"] = sum(operations.values())
    operations["second"] = operations["unit"] * 1000 / UNIT_MS
    return {name: round(value / 1e9, 4) for name, value in operations.items()}


def _operations(stage: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        stage()
    return counter.get_total_flops()


def _check_codecs(config: StreamerConfig, folder: Path) -> dict[str, str]:
    """Fingerprints of the codecs in the folder and of those the model was trained on."""
    with _Unallocated():
        streamer = Streamer(config)
    expected = {name: list(value.shape) for name, value in streamer.state_dict().items()}
    path = folder / "model.safetensors"
    try:
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if not name.endswith(SCALE)]  # noqa: SIM118  (not a dict)
            found = {name: file.get_slice(name).get_shape() for name in names}
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: not found; expected a checkpoint's weights") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); fetch or train the checkpoint again") from error
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(f"{path}: {name} expected {expected.get(name)}, got {found.get(name)}")
    trained_on, present = codecs_of(folder), codec_hash(*load_codecs(config, folder))
    verdict = "yes" if present == trained_on else "NO: this agent cannot be loaded"
    return {"in_the_folder": present, "model_trained_on": trained_on, "belong_together": verdict}
