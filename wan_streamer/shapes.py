"""Shapes of what stands around the Transformer: frozen configurations that reject what they do not know.

`AudioVAEConfig`, `VideoVAEConfig`   the two codecs
`EarsConfig`, `PerceptionConfig`     encoders of the user's audio and video
"""

from dataclasses import dataclass, field

from wan_streamer.errors import ConfigError
from wan_streamer.fields import Ranged, between
from wan_streamer.units import FPS, FRAMES_PER_UNIT, SAMPLE_RATE, TICKS_PER_UNIT, UNIT_MS


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
    reading      tokens in a unit of what a reader of the ears' features expects next (`perception/reading.py`); 0: none
    reading_units  how many units of sound it looks at
    reading_due    weight of its odds that a word is due in whether the agent writes one
    reading_again  how many units of sound it looks at when it reads a whole turn; 0: it does not
    hindsight      layers that hear such a turn in both directions first (`perception/hindsight.py`); 0: none
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
    reading: int = between(0, 0, 64)
    reading_units: int = between(24, 4, 10_000)
    reading_due: float = between(0.0, 0, 10)
    reading_again: int = between(0, 0, 10_000)
    hindsight: int = between(0, 0, 64)
    ears: EarsConfig = field(default_factory=EarsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = {"hearing": ("mel", "ears"), "seeing": ("model", "eyes"), "video_ticks": (1, 2, 4)}
        for name, known in choices.items():
            if (got := getattr(self, name)) not in known:
                raise ConfigError(f"perception.{name}: expected one of {', '.join(map(str, known))}, got {got!r}")
        if self.reading and self.hearing != "ears":
            raise ConfigError(f"perception.reading: expected 0 where no ears hear, got {self.reading}")
        if self.hindsight and not (self.reading and self.reading_again):
            raise ConfigError(
                f"perception.hindsight: expected 0 where no turn is read as a whole, got {self.hindsight};"
                " set reading and reading_again"
            )

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
