"""Frozen configurations that reject what they do not know.

`AudioVAEConfig`, `VideoVAEConfig`   the two codecs
`EarsConfig`, `PerceptionConfig`     encoders of the user's audio and video
`BackboneConfig`, `TextConfig`       the Transformer and its text lanes
`CacheConfig`                        which history is kept (`full` or `window`)
`FlowConfig`                         the flow-matching path and the solver
`StreamerConfig`                     all of the above: what `config.json` of a checkpoint holds
"""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

from wan_streamer.errors import ConfigError
from wan_streamer.units import AUDIO_LATENTS_PER_UNIT, FPS, FRAMES_PER_UNIT, SAMPLE_RATE, TICKS_PER_UNIT, UNIT_MS


@dataclass(frozen=True)
class AudioVAEConfig:
    """24 kHz mono <-> 25 Hz latents. `hop` samples make one inner frame, 960 / hop of them one latent."""

    latent_dim: int = 32
    hop: int = 240
    dim: int = 256
    latent_blocks: int = 3  # at 25 Hz, on each side
    frame_blocks: int = 5  # at 24 000 / hop Hz, on each side
    kernel: int = 7
    latent_noise: float = 0.3  # standard deviation of the noise added to the mean while training

    @property
    def frames_per_latent(self) -> int:
        return SAMPLE_RATE // FPS // self.hop


@dataclass(frozen=True)
class VideoVAEConfig:
    """RGB frames <-> one latent frame per 4 frames, 1/16 in both directions."""

    height: int = 192
    width: int = 336
    latent_channels: int = 16
    channels: tuple[int, int, int, int] = (24, 64, 96, 128)  # at 1/2, 1/4, 1/8 and 1/16
    blocks: int = 2  # memory blocks per scale (1/4, 1/8, 1/16)
    latent_noise: float = 0.05

    @property
    def latent_height(self) -> int:
        return self.height // 16

    @property
    def latent_width(self) -> int:
        return self.width // 16


@dataclass(frozen=True)
class EarsConfig:
    """Shape of the ears, a speech encoder that is trained before the model (`perception/ears.py`).

    rate         Hz, what the first convolution sees
    kernels      of the three convolutions;  strides  likewise
    wide         channels of the second convolution, as a multiple of `width`
    rotary       how many of a head's channels are rotated
    feed         inner channels of a layer's feed-forward part, as a multiple of `width`
    window       frames before a unit that it can attend to
    decay        how much of the running level stays after a unit without new sound
    spread       variance of a whole clip against that of its active speech, measured
    floor        added to that variance
    piece        units computed at once when many are given; bounds the memory
    """

    rate: int = 16_800
    kernels: tuple[int, int, int] = (127, 7, 3)
    strides: tuple[int, int, int] = (64, 3, 2)
    width: int = 288
    wide: int = 2
    layers: int = 6
    heads: int = 8
    rotary: int = 32
    feed: int = 4
    theta: float = 10_000.0
    window: int = 170
    decay: float = 0.95
    spread: float = 0.45
    floor: float = 3e-5
    piece: int = 100

    def __post_init__(self) -> None:
        if self.rate * UNIT_MS % 1000 or self.samples % self.hop:
            raise ConfigError(f"rate: expected whole hops of {self.hop} in {UNIT_MS} ms, got {self.rate} Hz")
        if any(kernel < stride for kernel, stride in zip(self.kernels, self.strides, strict=True)):
            raise ConfigError(f"kernels: expected none below its stride, got {self.kernels} and {self.strides}")
        if self.width % self.heads or self.rotary > self.head or self.rotary % 2:
            raise ConfigError(
                f"heads: expected {self.width} channels to split, an even part rotated; got {self.heads}, {self.rotary}"
            )
        if min(self.window, self.piece, self.layers) < 1:
            raise ConfigError("window, piece, layers: expected at least 1")

    @property
    def hop(self) -> int:
        """Samples from one feature to the next."""
        return self.strides[0] * self.strides[1] * self.strides[2]

    @property
    def samples(self) -> int:
        """Samples of a unit after resampling."""
        return self.rate * UNIT_MS // 1000

    @property
    def frames(self) -> int:
        """Features per unit."""
        return self.samples // self.hop

    @property
    def coarse(self) -> int:
        """Frames of the first convolution per unit."""
        return self.samples // self.strides[0]

    @property
    def overlaps(self) -> tuple[int, int, int]:
        """What each convolution keeps of its input from unit to unit."""
        first, second, third = (kernel - stride for kernel, stride in zip(self.kernels, self.strides, strict=True))
        return first, second, third

    @property
    def head(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class PerceptionConfig:
    """Causal encoders of the user.

    hearing      "mel": a small encoder that learns with the model, 4 audio tokens in a unit. "ears": `ears`, trained
                 before, frozen, all its frames are tokens
    video_ticks  times in a unit that have video tokens of their own: 4, 2 or 1
    video_grid   tokens of a tick, rows x columns
    video_blocks residual blocks at 1/8 of the size
    """

    hearing: str = "mel"
    mel_bins: int = 64
    audio_dim: int = 192
    audio_blocks: int = 4
    video_height: int = 96
    video_width: int = 168
    video_channels: tuple[int, int, int] = (32, 64, 128)  # at 1/4, 1/8 and 1/24 of the size above
    video_grid: tuple[int, int] = (1, 1)
    video_ticks: int = FRAMES_PER_UNIT
    video_blocks: int = 0
    ears: EarsConfig = field(default_factory=EarsConfig)

    def __post_init__(self) -> None:
        if self.hearing not in ("mel", "ears"):
            raise ConfigError(f"perception.hearing: expected 'mel' or 'ears', got {self.hearing!r}")
        if self.video_ticks not in (1, 2, 4):
            raise ConfigError(f"perception.video_ticks: expected 1, 2 or 4, got {self.video_ticks}")

    @property
    def audio_tokens(self) -> int:
        """Per unit."""
        return TICKS_PER_UNIT if self.hearing == "mel" else self.ears.frames

    @property
    def audio_features(self) -> int:
        """Numbers of an audio token."""
        return self.audio_dim if self.hearing == "mel" else self.ears.width

    @property
    def video_features(self) -> int:
        """Numbers of a video token: those of its frames side by side."""
        return self.video_channels[-1] * FRAMES_PER_UNIT // self.video_ticks

    @property
    def lead_units(self) -> int:
        """Units of sound before a clip that a training step has to hear, so that it hears the clip as in a call."""
        return 0 if self.hearing == "mel" else -(-self.ears.window // self.ears.frames)


@dataclass(frozen=True)
class BackboneConfig:
    """A decoder-only Transformer: RMSNorm, grouped-query attention, SwiGLU, rotary positions on three axes."""

    dim: int = 256
    layers: int = 8
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    mlp_dim: int = 768
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    qk_norm: bool = True
    qkv_bias: bool = False


@dataclass(frozen=True)
class TextConfig:
    """Text lanes. Each lane has `slots` tokens in a unit; `lead_units` is how far text runs ahead of its sound.

    The vocabulary includes the control tokens (`codecs/text.py`).
    """

    vocab_size: int = 1024
    slots: int = 2
    lead_units: int = 1
    temperature: float = 0.0  # of sampling; 0 takes the likeliest token
    start_bias: float = 0.0  # on the logits of a silent agent's words: above 0 it speaks up sooner, below 0 later
    tied_head: bool = True  # logits come from the embedding; otherwise from a matrix of their own


@dataclass(frozen=True)
class CacheConfig:
    """Which history a unit may see. Part of the training mask and of the live cache alike.

    policy          "full": everything. "window": the first `sink_units` units, the last `video_units` units of
                    agent and user video, the last `audio_units` units of audio, text of the last `text_units` units.
    memory_tokens   words that have left the text window and stay readable, the latest so many; 0 for none. Where there
                    are some, they take the place of the sinks' text.
    """

    policy: str = "window"
    sink_units: int = 1
    video_units: int = 5
    audio_units: int = 23
    text_units: int = 23
    memory_tokens: int = 0

    def __post_init__(self) -> None:
        if self.policy not in ("full", "window"):
            raise ConfigError(f"cache.policy: expected 'full' or 'window', got {self.policy!r}")
        if self.memory_tokens < 0:
            raise ConfigError(f"cache.memory_tokens: expected 0 or more, got {self.memory_tokens}")
        if self.memory_tokens and (self.policy == "full" or self.text_units < 1):
            raise ConfigError(
                f"cache.memory_tokens: expected 0 where text leaves no window, got {self.memory_tokens} with policy"
                f" {self.policy!r} and text_units {self.text_units}"
            )


@dataclass(frozen=True)
class FlowConfig:
    """Linear path z_tau = (1 - tau) z0 + tau eps (paper eq. 1) and the Euler grid of the solver."""

    steps: int = 2
    shift: float = 3.0  # tau' = shift tau / (1 + (shift - 1) tau): more steps where noise is high
    history_noise: float = 0.1  # largest tau of the noise on clean history while training
    temperature: float = 1.0  # scale of the starting noise
    seed: int = 0  # of the noise and the sampled tokens of a session that is given none
    renoise: bool = False  # every step jumps to data and back with fresh noise, as distilled students do


@dataclass(frozen=True)
class StreamerConfig:
    """Everything that is needed to rebuild a checkpoint."""

    name: str = "nano"
    audio_vae: AudioVAEConfig = field(default_factory=AudioVAEConfig)
    video_vae: VideoVAEConfig = field(default_factory=VideoVAEConfig)
    perception: PerceptionConfig = field(default_factory=PerceptionConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    text: TextConfig = field(default_factory=TextConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    patch: int = 3  # a video token is patch x patch latent positions
    unit_ms: int = UNIT_MS
    fps: int = FPS
    sample_rate: int = SAMPLE_RATE

    def __post_init__(self) -> None:
        vae, backbone = self.video_vae, self.backbone
        cell = 16 * self.patch
        if vae.height % cell or vae.width % cell:
            raise ConfigError(
                f"video_vae: expected height and width divisible by 16 x patch = {cell}, got {vae.height}x{vae.width}"
            )
        if backbone.heads % backbone.kv_heads:
            raise ConfigError(f"backbone: {backbone.heads} heads are not a multiple of {backbone.kv_heads} kv_heads")
        if (self.unit_ms, self.fps, self.sample_rate) != (UNIT_MS, FPS, SAMPLE_RATE):
            raise ConfigError(
                f"expected units of {UNIT_MS} ms, {FPS} fps and {SAMPLE_RATE} Hz,"
                f" got {self.unit_ms} ms, {self.fps} fps, {self.sample_rate} Hz"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of agent video tokens in a unit."""
        return self.video_vae.latent_height // self.patch, self.video_vae.latent_width // self.patch

    @property
    def video_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def audio_tokens(self) -> int:
        return AUDIO_LATENTS_PER_UNIT

    @property
    def patch_dim(self) -> int:
        return self.video_vae.latent_channels * self.patch**2


def to_dict(config: object) -> dict:
    """Nested dict of a dataclass as JSON gives it back: lists in place of tuples."""
    return json.loads(json.dumps(dataclasses.asdict(config)))  # type: ignore[call-overload]


def from_dict(cls: type, data: object, where: str = "config"):
    """Build config `cls` from nested dicts. Raises `ConfigError` on unknown keys and wrong types."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected an object, got {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(data) - names)
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; known keys are {', '.join(sorted(names))}")
    values = {key: _convert(hints[key], value, f"{where}.{key}") for key, value in data.items()}
    return cls(**values)


def _convert(hint: object, value: object, where: str) -> object:
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if isinstance(hint, types.GenericAlias):  # the only generic in use: tuple[int, ...] of fixed length
        kinds = typing.get_args(hint)
        if not isinstance(value, list | tuple) or len(value) != len(kinds):
            raise ConfigError(f"{where}: expected {len(kinds)} numbers, got {value!r}")
        return tuple(_convert(kind, item, where) for kind, item in zip(kinds, value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):  # type: ignore[arg-type]
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}")  # type: ignore[attr-defined]
    return value


def load_config(path: Path) -> StreamerConfig:
    """Read `config.json`. Raises `ConfigError` if it is missing, not JSON, or does not fit."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); expected a checkpoint's config.json") from error
    except ValueError as error:
        raise ConfigError(f"{path}: expected JSON, got something else ({error})") from error
    return from_dict(StreamerConfig, data, str(path))
