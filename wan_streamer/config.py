"""Frozen configurations that reject what they do not know.

`BackboneConfig`, `MediaConfig`   the Transformer, and weights of its own for sound and pictures
`TextConfig`                      its text lanes
`CacheConfig`                     which history is kept (`full` or `window`)
`FlowConfig`                      the flow-matching path and the solver
`VoiceConfig`                     what says the agent's words, if anything beside the Transformer does
`StreamerConfig`                  all of it, codecs and senses of `shapes.py` too: `config.json` of a checkpoint
"""

from dataclasses import dataclass, field
from pathlib import Path

from wan_streamer.errors import ConfigError
from wan_streamer.fields import Ranged, between
from wan_streamer.fields import from_dict as from_dict
from wan_streamer.fields import to_dict as to_dict
from wan_streamer.files import parse_json
from wan_streamer.shapes import AudioVAEConfig as AudioVAEConfig
from wan_streamer.shapes import EarsConfig as EarsConfig
from wan_streamer.shapes import PerceptionConfig as PerceptionConfig
from wan_streamer.shapes import VideoDecoderConfig as VideoDecoderConfig
from wan_streamer.shapes import VideoVAEConfig as VideoVAEConfig
from wan_streamer.units import AUDIO_LATENTS_PER_UNIT, FPS, SAMPLE_RATE, UNIT_MS


@dataclass(frozen=True)
class MediaConfig(Ranged):
    """Weights of their own for the tokens of sound and pictures, of both sides; heads are those of the backbone."""

    place = "backbone.media"
    dim: int = between(320, 1, 16_384)
    mlp_dim: int = between(960, 1, 131_072)


@dataclass(frozen=True)
class BackboneConfig(Ranged):
    """A decoder-only Transformer: RMSNorm, grouped-query attention, SwiGLU, rotary positions on three axes.

    media  None: all tokens go through the same weights. Else text has these, sound and pictures narrower ones of their
           own, and one attention sees all
    """

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
    media: MediaConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.media is not None and self.media.dim >= self.dim:
            raise ConfigError(f"backbone.media.dim: expected less than backbone.dim = {self.dim}, got {self.media.dim}")
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
    urge: float = between(0.0, 0, 1)  # share of the odds to begin or to end that adds up over slots, at temperature 0
    tied_head: bool = True  # logits come from the embedding; otherwise from a matrix of their own


@dataclass(frozen=True)
class VoiceConfig(Ranged):
    """Two small networks that say the agent's words (`speaking/voice.py`).

    sounds       of speech that are told apart
    word_units, sound_units, past_units   how far back they look at words, at sounds and at the voice itself
    near_units   how far back the second looks at sounds: no further than the first
    dim, layers  of each;   token_dim  of a word, or of the sounds of a tick, where they read it
    """

    place = "voice"
    sounds: int = between(49, 1, 1000)
    word_units: int = between(10, 1, 100)
    sound_units: int = between(6, 1, 100)
    near_units: int = between(3, 2, 100)
    past_units: int = between(2, 1, 100)
    dim: int = between(512, 1, 16_384)
    layers: int = between(3, 1, 64)
    token_dim: int = between(64, 1, 16_384)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.near_units > self.sound_units:
            raise ConfigError(
                f"voice.near_units: expected no more than voice.sound_units = {self.sound_units}, got {self.near_units}"
            )


@dataclass(frozen=True)
class WordingConfig(Ranged):
    """A small language model of what is said (`speaking/wording.py`).

    token_dim  of a word where it is read and chosen;   copy_dim  of what finds words to say again
    window     how many words back it reads
    weight     of what it is sure of in which word the agent says;   due  in whether an utterance goes on
    turn       in whether one begins, while the user spoke last
    """

    place = "wording"
    dim: int = between(192, 2, 16_384)
    layers: int = between(6, 1, 1000)
    heads: int = between(6, 1, 1024)
    mlp_dim: int = between(512, 1, 131_072)
    token_dim: int = between(96, 1, 16_384)
    copy_dim: int = between(64, 1, 16_384)
    rope_theta: float = between(10_000.0, 1, 1e9)
    window: int = between(768, 2, 1_000_000)
    weight: float = between(2.0, 0, 100)
    due: float = between(0.5, 0, 100)
    turn: float = between(0.25, 0, 100)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim % (2 * self.heads):
            raise ConfigError(f"wording.dim: expected a multiple of twice the {self.heads} heads, got {self.dim}")


@dataclass(frozen=True)
class FloorConfig(Ranged):
    """A small recurrent network that tells whose turn it is (`speaking/floor.py`).

    token_dim  of a word or a frame of sound where it is read;   seen_dim  of a token of the pictures
    told_dim   of what the wording makes of the words; 0: it does not tell
    weight     how much of whether the agent says something it decides; the rest is the agent's own
    stop, listen   log odds that a live agent adds where it may end what it says, and where it may say "mm-hm"
    """

    place = "floor"
    dim: int = between(160, 1, 16_384)
    layers: int = between(2, 1, 64)
    token_dim: int = between(24, 1, 16_384)
    seen_dim: int = between(8, 1, 16_384)
    told_dim: int = between(0, 0, 16_384)
    weight: float = between(0.7, 0, 1)
    stop: float = between(0.0, -10, 10)
    listen: float = between(0.0, -10, 10)


@dataclass(frozen=True)
class SightConfig(Ranged):
    """A read-out of the eyes that names what is held up (`perception/sight.py`).

    colours, things  the token with which each of their names begins;   names  of both, as they are written
    keep    share of what was seen that counts a unit later;   weight  in which word the agent says
    """

    place = "sight"
    colours: tuple[int, ...] = between((), 0, 4_194_304)
    things: tuple[int, ...] = between((), 0, 4_194_304)
    names: tuple[str, ...] = ()
    dim: int = between(96, 1, 16_384)
    keep: float = between(0.8, 0, 1)
    weight: float = between(1.5, 0, 100)

    @property
    def size(self) -> int:
        """How many names there are."""
        return len(self.colours) + len(self.things)


@dataclass(frozen=True)
class CacheConfig(Ranged):
    """Which history a unit may see. Part of the training mask and of the live cache alike.

    policy          "full": everything. "window": the first `sink_units` units, the last `video_units` units of
                    agent and user video, the last `audio_units` units of audio, text of the last `text_units` units.
    memory_tokens   words that have left the text window and stay readable, the latest so many; 0 for none. Where there
                    are some, they take the place of the sinks' text.
    memory_span     of those, so many stand one behind the other, and each is read with those before it; older ones all
                    stand where the span ends, so a memory can be longer than those of training. 0: all of them
    """

    place = "cache"
    policy: str = "window"
    sink_units: int = between(1, 0, 1_000_000)
    video_units: int = between(5, 0, 1_000_000)
    audio_units: int = between(23, 0, 1_000_000)
    text_units: int = between(23, 0, 1_000_000)
    memory_tokens: int = between(0, 0, 1_000_000)
    memory_span: int = between(0, 0, 1_000_000)

    @property
    def span(self) -> int:
        """Memory tokens that stand one behind the other."""
        return self.memory_span or self.memory_tokens

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy not in ("full", "window"):
            raise ConfigError(f"cache.policy: expected 'full' or 'window', got {self.policy!r}")
        if self.memory_tokens and (self.policy == "full" or self.text_units < 1):
            raise ConfigError(
                f"cache.memory_tokens: expected 0 where text leaves no window, got {self.memory_tokens} with policy"
                f" {self.policy!r} and text_units {self.text_units}"
            )
        if self.memory_span > self.memory_tokens:
            raise ConfigError(
                f"cache.memory_span: expected at most memory_tokens, {self.memory_tokens}, got {self.memory_span}"
            )


@dataclass(frozen=True)
class FlowConfig(Ranged):
    """Linear path z_tau = (1 - tau) z0 + tau eps (paper eq. 1) and the Euler grid of the solver."""

    place = "flow"
    steps: int = between(2, 1, 1000)
    shift: float = between(3.0, 0.001, 1000)  # tau' = shift tau / (1 + (shift - 1) tau): more steps in noise
    history_noise: float = between(0.1, 0, 1)  # largest tau of the noise on clean history while training
    temperature: float = between(1.0, 0, 100)  # scale of the starting noise
    picture_temperature: float = between(1.0, 0, 100)  # once more that of pictures: more of it blinks more
    seed: int = between(0, 0, 2**63 - 1)  # of the noise and the sampled tokens of a session that is given none
    renoise: bool = False  # every step jumps to data and back with fresh noise, as distilled students do
    audio_steps: int = between(0, 0, 1000)  # after so many steps the sound jumps to data; 0: it takes all of them

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.renoise and self.audio_steps:
            raise ConfigError(
                f"flow: expected audio_steps 0 with renoise, where every step jumps, got {self.audio_steps}"
            )


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
    voice: VoiceConfig | None = None
    wording: WordingConfig | None = None
    floor: FloorConfig | None = None
    sight: SightConfig | None = None
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
        if self.perception.reading and not 0 < self.perception.reading_units - 3 < self.cache.text_units * bool(
            self.cache.memory_tokens
        ):
            raise ConfigError(
                "perception.reading: expected a text memory and a text window from which the words of reading_units can"
                f" be read again, got memory_tokens {self.cache.memory_tokens}, text_units {self.cache.text_units} and"
                f" reading_units {self.perception.reading_units}"
            )
        if self.wording is not None and not self.cache.memory_tokens:
            raise ConfigError("wording: expected a text memory, without which nobody keeps what was said; got none")
        if self.floor is not None and not self.cache.memory_tokens:
            raise ConfigError("floor: expected a text memory, without which nobody keeps what was said; got none")
        if self.floor is not None and self.floor.told_dim and self.wording is None:
            raise ConfigError(f"floor.told_dim: expected 0 without a wording, got {self.floor.told_dim}")
        if self.sight is not None and (self.wording is None or self.perception.seeing != "eyes"):
            raise ConfigError(
                "sight: expected eyes that are trained before, and a wording, which knows what it cannot know"
            )
        if self.sight is not None and max(self.sight.colours + self.sight.things, default=0) >= self.text.vocab_size:
            raise ConfigError(f"sight: expected tokens below {self.text.vocab_size}, the size of the vocabulary")
        if self.sight is not None and self.sight.names and len(self.sight.names) != self.sight.size:
            raise ConfigError(f"sight: expected {self.sight.size} names or none, got {len(self.sight.names)}")
        if 0 < self.perception.reading < self.text.slots:
            raise ConfigError(
                f"perception.reading: expected 0, or a token for each of {self.text.slots} slots, got"
                f" {self.perception.reading}"
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
