"""Frozen configurations that reject what they do not know.

`AudioVAEConfig`, `VideoVAEConfig`   the two codecs
`EarsConfig`, `PerceptionConfig`     encoders of the user's audio and video
`BackboneConfig`, `TextConfig`       the Transformer and its text lanes
`CacheConfig`                        which history is kept (`full` or `window`)
`FlowConfig`                         the flow-matching path and the solver
`StreamerConfig`                     all of the above: what `config.json` of a checkpoint holds
"""

from dataclasses import dataclass, field
from pathlib import Path

from wan_streamer.errors import ConfigError
from wan_streamer.fields import Ranged, between
from wan_streamer.fields import from_dict as from_dict
from wan_streamer.fields import to_dict as to_dict
from wan_streamer.files import parse_json
from wan_streamer.units import AUDIO_LATENTS_PER_UNIT, FPS, FRAMES_PER_UNIT, SAMPLE_RATE, TICKS_PER_UNIT, UNIT_MS


@dataclass(frozen=True)
class AudioVAEConfig(Ranged):
    """24 kHz mono <-> 25 Hz latents. `hop` samples make one inner frame, 960 / hop of them one latent."""

    place = "audio_vae"
    latent_dim: int = between(32, 1, 4096)
    hop: int = between(240, 1, 960)
    dim: int = between(256, 1, 16_384)
    latent_blocks: int = between(3, 0, 256)  # at 25 Hz, on each side
    frame_blocks: int = between(5, 0, 256)  # at 24 000 / hop Hz, on each side
    kernel: int = between(7, 1, 255)
    latent_noise: float = between(0.3, 0, 100)  # standard deviation of the noise added to the mean while training

    def __post_init__(self) -> None:
        super().__post_init__()
        if SAMPLE_RATE // FPS % self.hop:
            raise ConfigError(f"audio_vae.hop: expected a divisor of {SAMPLE_RATE // FPS}, got {self.hop}")

    @property
    def frames_per_latent(self) -> int:
        return SAMPLE_RATE // FPS // self.hop


@dataclass(frozen=True)
class VideoDecoderConfig(Ranged):
    """A decoder that is not the mirror image of its encoder; by default a light one, for slow machines."""

    place = "video_vae.decoder"
    channels: tuple[int, int, int, int] = between((16, 48, 64, 128), 1, 16_384)  # at 1/2, 1/4, 1/8 and 1/16
    blocks: tuple[int, int, int] = between((1, 2, 2), 0, 256)  # at 1/4, 1/8 and 1/16
    paired: bool = True  # two frames share the features at 1/4


@dataclass(frozen=True)
class VideoVAEConfig(Ranged):
    """RGB frames <-> one latent frame per 4 frames, 1/16 in both directions."""

    place = "video_vae"
    height: int = between(192, 16, 4096)
    width: int = between(336, 16, 4096)
    latent_channels: int = between(16, 1, 4096)
    channels: tuple[int, int, int, int] = between((24, 64, 96, 128), 1, 16_384)  # at 1/2, 1/4, 1/8 and 1/16
    blocks: int = between(2, 0, 256)  # memory blocks per scale (1/4, 1/8, 1/16)
    decoder: VideoDecoderConfig | None = None  # None: the encoder's mirror image
    latent_noise: float = between(0.05, 0, 100)

    @property
    def decoding(self) -> VideoDecoderConfig:
        """The shape of the decoder, given or not."""
        return self.decoder or VideoDecoderConfig(self.channels, (self.blocks,) * 3, paired=False)

    @property
    def latent_height(self) -> int:
        return self.height // 16

    @property
    def latent_width(self) -> int:
        return self.width // 16


@dataclass(frozen=True)
class EarsConfig(Ranged):
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

    place = "ears"
    rate: int = between(16_800, 100, 192_000)
    kernels: tuple[int, int, int] = between((127, 7, 3), 1, 4096)
    strides: tuple[int, int, int] = between((64, 3, 2), 1, 4096)
    width: int = between(288, 1, 16_384)
    wide: int = between(2, 1, 64)
    layers: int = between(6, 1, 256)
    heads: int = between(8, 1, 256)
    rotary: int = between(32, 0, 1024)
    feed: int = between(4, 1, 64)
    theta: float = between(10_000.0, 1, 1e12)
    window: int = between(170, 1, 100_000)
    decay: float = between(0.95, 0, 1)
    spread: float = between(0.45, 1e-9, 1e9)
    floor: float = between(3e-5, 0, 1e9)
    piece: int = between(100, 1, 100_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rate * UNIT_MS % 1000 or self.samples % self.hop:
            raise ConfigError(f"rate: expected whole hops of {self.hop} in {UNIT_MS} ms, got {self.rate} Hz")
        if any(kernel < stride for kernel, stride in zip(self.kernels, self.strides, strict=True)):
            raise ConfigError(f"kernels: expected none below its stride, got {self.kernels} and {self.strides}")
        if self.width % self.heads or self.rotary > self.head or self.rotary % 2:
            raise ConfigError(
                f"heads: expected {self.width} channels to split, an even part rotated; got {self.heads}, {self.rotary}"
            )

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
class PerceptionConfig(Ranged):
    """Causal encoders of the user.

    hearing      "mel": a small encoder that learns with the model, 4 audio tokens in a unit. "ears": `ears`, trained
                 before, frozen, all its frames are tokens
    seeing       "model": the encoder of pictures learns with the model. "eyes": trained before, frozen
    video_ticks  times in a unit that have video tokens of their own: 4, 2 or 1
    video_grid   tokens of a tick, rows x columns
    video_blocks residual blocks at 1/8 of the size
    """

    place = "perception"
    hearing: str = "mel"
    seeing: str = "model"
    mel_bins: int = between(64, 1, 512)
    audio_dim: int = between(192, 1, 16_384)
    audio_blocks: int = between(4, 0, 256)
    video_height: int = between(96, 24, 4096)
    video_width: int = between(168, 24, 4096)
    video_channels: tuple[int, int, int] = between((32, 64, 128), 1, 16_384)  # at 1/4, 1/8 and 1/24 of the size above
    video_grid: tuple[int, int] = between((1, 1), 1, 64)
    video_ticks: int = between(FRAMES_PER_UNIT, 1, FRAMES_PER_UNIT)
    video_blocks: int = between(0, 0, 256)
    ears: EarsConfig = field(default_factory=EarsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = {"hearing": ("mel", "ears"), "seeing": ("model", "eyes"), "video_ticks": (1, 2, 4)}
        for name, known in choices.items():
            if (got := getattr(self, name)) not in known:
                raise ConfigError(f"perception.{name}: expected one of {', '.join(map(str, known))}, got {got!r}")

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
class BackboneConfig(Ranged):
    """A decoder-only Transformer: RMSNorm, grouped-query attention, SwiGLU, rotary positions on three axes."""

    place = "backbone"
    dim: int = between(256, 1, 16_384)
    layers: int = between(8, 1, 256)
    heads: int = between(4, 1, 1024)
    kv_heads: int = between(2, 1, 1024)
    head_dim: int = between(64, 2, 1024)
    mlp_dim: int = between(768, 1, 131_072)
    rope_theta: float = between(10_000.0, 1, 1e12)
    norm_eps: float = between(1e-5, 0, 1)
    qk_norm: bool = True
    qkv_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_dim % 2:
            raise ConfigError(f"backbone.head_dim: expected an even number, got {self.head_dim}")
        if self.heads % self.kv_heads:
            raise ConfigError(f"backbone: {self.heads} heads are not a multiple of {self.kv_heads} kv_heads")


@dataclass(frozen=True)
class TextConfig(Ranged):
    """Text lanes. Each lane has `slots` tokens in a unit.

    vocab_size   includes the control tokens (`codecs/text.py`)
    lead_units   how far the agent's words run ahead of their sound
    heard_units  how long after its end a user's word is written down: more are heard rightly, and later
    """

    place = "text"
    vocab_size: int = between(1024, 4, 4_194_304)
    slots: int = between(2, 1, 64)
    lead_units: int = between(1, 0, 1000)
    heard_units: int = between(1, 0, 1000)
    temperature: float = between(0.0, 0, 100)  # of sampling; 0 takes the likeliest token
    start_bias: float = between(0.0, -1000, 1000)  # on the logits of a silent agent's words: above 0 speaks up sooner
    tied_head: bool = True  # logits come from the embedding; otherwise from a matrix of their own


@dataclass(frozen=True)
class CacheConfig(Ranged):
    """Which history a unit may see. Part of the training mask and of the live cache alike.

    policy          "full": everything. "window": the first `sink_units` units, the last `video_units` units of
                    agent and user video, the last `audio_units` units of audio, text of the last `text_units` units.
    memory_tokens   words that have left the text window and stay readable, the latest so many; 0 for none. Where there
                    are some, they take the place of the sinks' text.
    """

    place = "cache"
    policy: str = "window"
    sink_units: int = between(1, 0, 1_000_000)
    video_units: int = between(5, 0, 1_000_000)
    audio_units: int = between(23, 0, 1_000_000)
    text_units: int = between(23, 0, 1_000_000)
    memory_tokens: int = between(0, 0, 1_000_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy not in ("full", "window"):
            raise ConfigError(f"cache.policy: expected 'full' or 'window', got {self.policy!r}")
        if self.memory_tokens and (self.policy == "full" or self.text_units < 1):
            raise ConfigError(
                f"cache.memory_tokens: expected 0 where text leaves no window, got {self.memory_tokens} with policy"
                f" {self.policy!r} and text_units {self.text_units}"
            )


@dataclass(frozen=True)
class FlowConfig(Ranged):
    """Linear path z_tau = (1 - tau) z0 + tau eps (paper eq. 1) and the Euler grid of the solver."""

    place = "flow"
    steps: int = between(2, 1, 1000)
    shift: float = between(3.0, 0.001, 1000)  # tau' = shift tau / (1 + (shift - 1) tau): more steps in noise
    history_noise: float = between(0.1, 0, 1)  # largest tau of the noise on clean history while training
    temperature: float = between(1.0, 0, 100)  # scale of the starting noise
    seed: int = between(0, 0, 2**63 - 1)  # of the noise and the sampled tokens of a session that is given none
    renoise: bool = False  # every step jumps to data and back with fresh noise, as distilled students do


@dataclass(frozen=True)
class StreamerConfig(Ranged):
    """Everything that is needed to rebuild a checkpoint."""

    name: str = "nano"
    audio_vae: AudioVAEConfig = field(default_factory=AudioVAEConfig)
    video_vae: VideoVAEConfig = field(default_factory=VideoVAEConfig)
    perception: PerceptionConfig = field(default_factory=PerceptionConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    text: TextConfig = field(default_factory=TextConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    patch: int = between(3, 1, 64)  # a video token is patch x patch latent positions
    unit_ms: int = between(UNIT_MS, 1, 10_000)
    fps: int = between(FPS, 1, 1000)
    sample_rate: int = between(SAMPLE_RATE, 1, 1_000_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        vae = self.video_vae
        cell = 16 * self.patch
        if vae.height % cell or vae.width % cell:
            raise ConfigError(
                f"video_vae: expected height and width divisible by 16 x patch = {cell}, got {vae.height}x{vae.width}"
            )
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


def load_config(path: Path) -> StreamerConfig:
    """Read `config.json`. Raises `ConfigError` if it is missing, not JSON, or holds what does not fit."""
    try:
        data = parse_json(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); expected a checkpoint's config.json") from error
    except ValueError as error:
        raise ConfigError(f"{path}: expected JSON, got something else ({error})") from error
    return from_dict(StreamerConfig, data, str(path))
