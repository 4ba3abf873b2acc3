"""Ears: a streaming speech encoder, distilled from Moonshine tiny (MIT licence).

`EarsState`    what it remembers between two units
`Ears`         24 kHz sound -> 7 features per unit of 160 ms, no look-ahead beyond the unit
`load_ears`, `save_ears`   a folder with `config.json` and `model.safetensors`

A unit of sound arrives whole, so its frames may attend to each other (block-causal attention costs no latency); the
past is a window of fixed length. Positions are those in the window, so a stream never ends. Sound is resampled to
16.8 kHz, which makes a hop of the encoder 1/7 of a unit; the weights were made for 16 kHz, so voices sound 5 % lower
and slower to them.

Architecture: Jeffries et al., Moonshine: Speech Recognition for Live Transcription and Voice Commands (2024),
section 3; GroupNorm over the clip is replaced by running statistics, see `Stem`.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_streamer.config import EarsConfig, from_dict, to_dict
from wan_streamer.errors import CheckpointError, ShapeError
from wan_streamer.files import parse_json, write_json
from wan_streamer.perception.resampling import Resampler
from wan_streamer.tensors import load_module, save_atomically
from wan_streamer.units import SAMPLE_RATE, SAMPLES_PER_UNIT

EPSILON = 1e-5
TAIL_SHARE = 0.1  # of the floor, added to the weight of every unit so that silence has one at all


@dataclass(frozen=True)
class EarsState:
    """What is remembered between two units; never changed in place.

    sound_BT    last samples at 24 kHz, for the resampler
    wave_BT     last samples at 16.8 kHz, for the first convolution
    level_B3    running sums: weight, weighted mean square, weighted mean of the first convolution
    first_BCT   last normalised frames of the first convolution, for the second
    second_BCT  last frames of the second, for the third
    keys        of each layer [B, heads, frames, head], not rotated;  values  likewise
    """

    sound_BT: Tensor
    wave_BT: Tensor
    level_B3: Tensor
    first_BCT: Tensor
    second_BCT: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


class Stem(nn.Module):
    """Three convolutions that look left only, and the normalisation after the first.

    The original normalises over the whole clip. Here mean and variance run: sums over units, weighted by the unit's own
    energy and fading by `decay`, so that they follow the level of the speech and silence does not thin them.
    """

    def __init__(self, config: EarsConfig) -> None:
        super().__init__()
        (k1, k2, k3), (s1, s2, s3), C = config.kernels, config.strides, config.width
        self.config = config
        self.conv1 = nn.Conv1d(1, C, k1, s1, bias=False)
        self.gain_C = nn.Parameter(torch.ones(C))
        self.bias_C = nn.Parameter(torch.zeros(C))
        self.conv2 = nn.Conv1d(C, config.wide * C, k2, s2)
        self.conv3 = nn.Conv1d(config.wide * C, C, k3, s3)

    def first(self, wave_BT: Tensor) -> Tensor:
        """[B, T] -> [B, C, frames] in (-1, 1), before the normalisation."""
        return torch.tanh(self.conv1(wave_BT[:, None].to(self.conv1.weight.dtype)))

    def scaled(self, raw_BCT: Tensor, mean_BT: Tensor, variance_BT: Tensor) -> Tensor:
        """Normalised with statistics of every frame (or one for all)."""
        scale_BT = torch.rsqrt(variance_BT + EPSILON)
        normal = (raw_BCT - mean_BT[:, None].to(raw_BCT.dtype)) * scale_BT[:, None].to(raw_BCT.dtype)
        return normal * self.gain_C[:, None] + self.bias_C[:, None]

    def second(self, x_BCT: Tensor) -> Tensor:
        return F.gelu(self.conv2(x_BCT))

    def third(self, x_BCT: Tensor) -> Tensor:
        return F.gelu(self.conv3(x_BCT))

    def level(self, raw_BCT: Tensor, level_B3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance [B, U] after each of the U units in `raw_BCT`, and the sums after the last."""
        c = self.config
        units_BCUT = raw_BCT.detach().float().unflatten(2, (-1, c.coarse))
        mean_BU, square_BU = units_BCUT.mean((1, 3)), units_BCUT.square().mean((1, 3))
        weight_BU = square_BU + TAIL_SHARE * c.floor
        new_BU3 = torch.stack([weight_BU, weight_BU * square_BU, weight_BU * mean_BU], dim=2)
        U = mean_BU.shape[1]
        age_UU = torch.arange(U)[:, None] - torch.arange(U)[None]
        fade_UU = torch.where(age_UU >= 0, c.decay ** age_UU.clamp(min=0).double(), 0.0).to(new_BU3)
        fade_U = (c.decay ** torch.arange(1, U + 1).double()).to(new_BU3)
        sums_BU3 = torch.einsum("uv,bvk->buk", fade_UU, new_BU3) + fade_U[None, :, None] * level_B3[:, None]
        weight_BU, square_BU, mean_BU = sums_BU3.unbind(2)
        mean_BU = mean_BU / weight_BU
        variance_BU = ((square_BU / weight_BU - mean_BU.square()) * c.spread + c.floor).clamp(min=0)
        return mean_BU, variance_BU, sums_BU3[:, -1]


def rotate(x_BHTD: Tensor, turn_TR: Tensor) -> Tensor:
    """Rotary positions: channels (0, 1), (2, 3), ... of the first 2R, as complex numbers, times `turn_TR`, which may
    have axes before it.
    """
    R = turn_TR.shape[-1]
    turned, rest = x_BHTD.split([2 * R, x_BHTD.shape[3] - 2 * R], dim=3)
    pairs = torch.view_as_complex(turned.float().unflatten(-1, (-1, 2)))
    return torch.cat([torch.view_as_real(pairs * turn_TR).flatten(-2).to(x_BHTD.dtype), rest], dim=-1)


@functools.lru_cache(256)  # a stream asks for the same in every unit
def turns(count: int, config: EarsConfig, first: int = 0, device: torch.device | None = None) -> Tensor:
    """Of the positions first .. first + count - 1: complex64 [count, R] of length one. Not to be changed."""
    with torch.inference_mode(False):  # training may ask for it again
        pairs_R = torch.arange(0, config.rotary, 2, device=device, dtype=torch.float32)
        place_T = torch.arange(first, first + count, device=device)
        angle_TR = place_T[:, None] * config.theta ** (-pairs_R / config.rotary)
        return torch.polar(torch.ones_like(angle_TR), angle_TR)


class Layer(nn.Module):
    """Attention and feed-forward, both on a normalised copy."""

    def __init__(self, config: EarsConfig) -> None:
        super().__init__()
        D = config.width
        self.config = config
        self.norm1 = nn.LayerNorm(D, bias=False)
        self.query, self.key, self.value, self.out = (nn.Linear(D, D, bias=False) for _ in range(4))
        self.norm2 = nn.LayerNorm(D, bias=False)
        self.up = nn.Linear(D, config.feed * D)
        self.down = nn.Linear(config.feed * D, D)

    def split(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(2, (self.config.heads, self.config.head)).transpose(1, 2)

    def forward(
        self, x_BTD: Tensor, turn_TR: Tensor, past: tuple[Tensor, Tensor] | None = None, mask_TT: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """turn_TR  of the places of all keys, see `turns`; those of the queries are the last of them

        Returns the features and the keys (not rotated) and values, those of the past included.
        """
        normal = self.norm1(x_BTD)
        q, k, v = self.split(self.query(normal)), self.split(self.key(normal)), self.split(self.value(normal))
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        turned_q, turned_k = rotate(q, turn_TR[turn_TR.shape[0] - q.shape[2] :]), rotate(k, turn_TR)
        seen = F.scaled_dot_product_attention(turned_q, turned_k, v, attn_mask=mask_TT)
        x_BTD = x_BTD + self.out(seen.transpose(1, 2).flatten(2))
        return x_BTD + self.down(F.gelu(self.up(self.norm2(x_BTD)))), (k, v)


class Ears(nn.Module):
    """`forward(audio_BT, state) -> (features_BTD, state)`: T samples at 24 kHz, a multiple of 3 840; 7 x 288 per unit.

    Any number of units at a time, with the same result. Give finite samples, nominally in [-1, 1]. Raises `ShapeError`.
    """

    def __init__(self, config: EarsConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or EarsConfig()
        self.resample = Resampler(SAMPLE_RATE, config.rate)
        self.stem = Stem(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, bias=False)

    def start(self, batch: int = 1) -> EarsState:
        """The state before the first unit, after endless silence."""
        c, like = self.config, self.norm.weight
        none = tuple(like.new_zeros(batch, c.heads, 0, c.head) for _ in range(c.layers))
        sums = torch.tensor([1e-9, 0.0, 0.0], device=like.device).expand(batch, 3)
        return EarsState(
            torch.zeros(batch, 2 * self.resample.reach, device=like.device),
            torch.zeros(batch, c.overlaps[0], device=like.device),
            sums,
            like.new_zeros(batch, c.width, 0),
            like.new_zeros(batch, c.wide * c.width, 0),
            none,
            none,
        )

    def forward(self, audio_BT: Tensor, state: EarsState | None = None) -> tuple[Tensor, EarsState]:
        layers, state = self.layered(audio_BT, state)
        return layers[-1], state

    def layered(self, audio_BT: Tensor, state: EarsState | None = None) -> tuple[list[Tensor], EarsState]:
        """What every layer gives, [B, T, D] each; the last is normalised and is the output."""
        state = self._checked(audio_BT, state)
        pieces = []
        for piece_BT in audio_BT.split(self.config.piece * SAMPLES_PER_UNIT, dim=1):
            layers, state = self._step(piece_BT, state)
            pieces.append(layers)
        return [torch.cat(parts, dim=1) if len(parts) > 1 else parts[0] for parts in zip(*pieces, strict=True)], state

    def _checked(self, audio_BT: Tensor, state: EarsState | None) -> EarsState:
        if audio_BT.ndim != 2 or audio_BT.dtype != torch.float32 or audio_BT.numel() == 0:
            raise ShapeError(f"audio_BT: expected float32 [B, T], got {audio_BT.dtype} {list(audio_BT.shape)}")
        if audio_BT.shape[1] % SAMPLES_PER_UNIT:
            raise ShapeError(
                f"audio_BT: expected a multiple of {SAMPLES_PER_UNIT} samples, got {audio_BT.shape[1]}; pad the sound"
            )
        state = state or self.start(audio_BT.shape[0])
        if state.sound_BT.shape[0] != audio_BT.shape[0] or len(state.keys) != self.config.layers:
            raise ShapeError(
                f"state: expected {audio_BT.shape[0]} streams of {self.config.layers} layers,"
                f" got {state.sound_BT.shape[0]} of {len(state.keys)}"
            )
        return state

    def _step(self, audio_BT: Tensor, state: EarsState) -> tuple[list[Tensor], EarsState]:
        c = self.config
        wave_BT, sound_BT = self.resample(audio_BT, state.sound_BT)
        padded_BT = torch.cat([state.wave_BT, wave_BT], dim=1)
        x_BTD, level_B3, first_BCT, second_BCT = self._convolve(padded_BT, state)
        past, T = state.keys[0].shape[2], x_BTD.shape[1]
        turn_TR = turns(past + T, c, device=x_BTD.device)
        mask_TT = self._mask(past, T) if c.frames < T else None  # one unit sees all that is kept
        layers, keys, values = [], [], []
        for layer, k, v in zip(self.layers, state.keys, state.values, strict=True):
            x_BTD, (k, v) = layer(x_BTD, turn_TR, (k, v), mask_TT)
            layers.append(x_BTD)
            first = max(0, k.shape[2] - c.window)
            keys.append(k[:, :, first:])
            values.append(v[:, :, first:])
        layers[-1] = self.norm(x_BTD)
        wave_BT = padded_BT[:, padded_BT.shape[1] - c.overlaps[0] :]
        return layers, EarsState(sound_BT, wave_BT, level_B3, first_BCT, second_BCT, tuple(keys), tuple(values))

    def _convolve(self, padded_BT: Tensor, state: EarsState) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        c, stem = self.config, self.stem
        raw_BCT = stem.first(padded_BT)
        mean_BU, variance_BU, level_B3 = stem.level(raw_BCT, state.level_B3)
        mean_BT, variance_BT = (x.repeat_interleave(c.coarse, 1) for x in (mean_BU, variance_BU))
        lead = 0
        if state.second_BCT.shape[2] == 0:  # silence before the stream, normalised as its first unit
            lead = c.kernels[1]
            raw_BCT = F.pad(raw_BCT, (lead, 0))
            mean_BT, variance_BT = (torch.cat([x[:, :1].expand(-1, lead), x], 1) for x in (mean_BT, variance_BT))
        first_BCT = torch.cat([state.first_BCT, stem.scaled(raw_BCT, mean_BT, variance_BT)], dim=2)
        second_BCT = torch.cat([state.second_BCT, stem.second(first_BCT)], dim=2)
        x_BTD = stem.third(second_BCT).transpose(1, 2)
        _, second, third = c.overlaps
        first_BCT = first_BCT[..., first_BCT.shape[2] - second :]
        return x_BTD, level_B3, first_BCT, second_BCT[..., second_BCT.shape[2] - third :]

    def _mask(self, past: int, T: int) -> Tensor:
        """[T, past + T], True where a frame (row) may look: its own unit, and the window before the unit."""
        c, device = self.config, self.norm.weight.device
        unit_T = torch.arange(T, device=device)[:, None] // c.frames * c.frames + past
        key_T = torch.arange(past + T, device=device)[None]
        return (key_T < unit_T + c.frames) & (key_T >= unit_T - c.window)


def save_ears(ears: Ears, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write shape and weights; bfloat16 takes half the space."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().to(dtype) for name, value in ears.state_dict().items()}
    save_atomically(tensors, folder / "model.safetensors")
    write_json(folder / "config.json", to_dict(ears.config))


def load_ears(folder: str | Path) -> Ears:
    """What `save_ears` wrote, in float32. Raises `CheckpointError` if it is missing or damaged, `ConfigError`."""
    path = Path(folder) / "config.json"
    try:
        data = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected the shape of ears ({error})") from error
    ears = Ears(from_dict(EarsConfig, data))
    load_module(ears, path.with_name("model.safetensors"))
    return ears.eval()
