"""The parts of a Transformer layer: RMSNorm, rotary positions on three axes, grouped-query attention, SwiGLU.

`Mixed`, `ByKind`        tokens of text and of media, each with a width and weights of its own (`BackboneConfig.media`)
`fuse`                   fewer operations for the same numbers, for inference on a CPU
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wan_streamer.config import BackboneConfig
from wan_streamer.model.packing import PackedLinear

AXES = (0, 0, 1, 2)  # which of (tick, row, column) turns frequency j, repeating: half of them are temporal


def rotary_table(position_N3: Tensor, config: BackboneConfig) -> Tensor:
    """Cosines and sines [2, N, head_dim] of the ids [N, 3], as `rotate` takes them.

    Frequency j turns channels j and j + head_dim / 2 with one axis. Where the three ids are equal this is the 1-D
    rotary embedding of a language model, whatever the axis. Angles are computed in float64, so an id of an hour
    (90 000) keeps its precision.
    """
    half = config.head_dim // 2
    axis = torch.tensor([AXES[j % len(AXES)] for j in range(half)], device=position_N3.device)
    exponent = torch.arange(half, dtype=torch.float64, device=position_N3.device) / half
    angle = position_N3.double()[:, axis] * config.rope_theta**-exponent
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)]).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate x [..., N, heads, head_dim] by a table [2, N, head_dim] (or one that broadcasts)."""
    cos, sin = table.unsqueeze(-2).to(x.dtype)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


class Kinds(NamedTuple):
    """Which of N tokens are text: the places of text and of media, and where each token is if all text comes first."""

    is_text: tuple[bool, ...]
    text_T: Tensor
    media_M: Tensor
    order_N: Tensor


def kinds_of(text_N: Tensor, device: torch.device | None = None) -> Kinds:
    """The `Kinds` of tokens of which some are text, bool [N]."""
    text_T, media_M = text_N.nonzero()[:, 0], (~text_N).nonzero()[:, 0]
    order_N = torch.cat([text_T, media_M]).argsort()
    return Kinds(tuple(text_N.tolist()), text_T.to(device), media_M.to(device), order_N.to(device))


@dataclasses.dataclass(frozen=True)
class Mixed:
    """Hidden states of N tokens in two widths: text [..., T, D] and media [..., M, D']."""

    text: Tensor
    media: Tensor
    kinds: Kinds

    def __add__(self, other: "Mixed") -> "Mixed":
        return Mixed(self.text + other.text, self.media + other.media, self.kinds)

    def to(self, dtype: torch.dtype) -> "Mixed":
        return Mixed(self.text.to(dtype), self.media.to(dtype), self.kinds)

    @property
    def dtype(self) -> torch.dtype:
        return self.text.dtype

    @property
    def device(self) -> torch.device:
        return self.text.device


States = Tensor | Mixed
"""Hidden states [..., N, D] of tokens, of one width or of two. A tensor holds text where there are two."""


def tokens_at(x: States, where: slice) -> Tensor:
    """The hidden states of some tokens, all of one kind: [..., n, D]."""
    if isinstance(x, Tensor):
        return x[..., where, :]
    rows_n = x.kinds.order_N[where]
    if x.kinds.is_text[where][0]:
        return x.text.index_select(-2, rows_n)
    return x.media.index_select(-2, rows_n - len(x.kinds.text_T))


def join_rows(rows: Sequence[States]) -> States:
    """The same tokens [B, N, D] of several batches as one."""
    if isinstance(rows[0], Tensor):
        return torch.cat(rows)  # type: ignore[arg-type]
    text, media = (torch.cat([getattr(x, name) for x in rows]) for name in ("text", "media"))
    return Mixed(text, media, rows[0].kinds)


def rows_of(x: States, rows: slice) -> States:
    """Some rows of a batch."""
    return x[rows] if isinstance(x, Tensor) else Mixed(x.text[rows], x.media[rows], x.kinds)


class ByKind(nn.Module):
    """One module for text and one for media."""

    def __init__(self, text: nn.Module, media: nn.Module) -> None:
        super().__init__()
        self.text, self.media = text, media

    def forward(self, x: States) -> States:
        if isinstance(x, Tensor):
            return self.text(x)
        return Mixed(self.text(x.text), self.media(x.media), x.kinds)


def by_kind(config: BackboneConfig, make: Callable[[int, int], nn.Module]) -> nn.Module:
    """`make` (width, feed-forward width), or one for each kind of token."""
    text, media = make(config.dim, config.mlp_dim), config.media
    return text if media is None else ByKind(text, make(media.dim, media.mlp_dim))


class RMSNorm(nn.Module):
    """Computed in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps
        self.twice: Tensor | None = None  # the weight, twice, once it is fused

    def forward(self, x: Tensor) -> Tensor:
        if self.twice is not None:
            return normalised(x.float(), self.eps, self.twice).to(x.dtype)
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.eps).to(x.dtype)


def normalised(x: Tensor, eps: float, twice: Tensor | None = None) -> Tensor:
    """`rms_norm`, as the layer norm of x and -x, whose mean is 0: that has one fused operation on a CPU."""
    width = x.shape[-1]
    return F.layer_norm(torch.cat([x, -x], dim=-1), (2 * width,), twice, None, eps)[..., :width]


class Attention(nn.Module):
    """Projections of grouped-query attention. What is attended to is the caller's business (training or cache)."""

    def __init__(self, config: BackboneConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(dim, q, bias=config.qkv_bias)
        self.kv_proj = nn.Linear(dim, 2 * kv, bias=config.qkv_bias)
        self.out_proj = nn.Linear(q, dim, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.fused: FusedProjection | None = None

    def heads(self, x: States) -> tuple[Tensor, Tensor]:
        """x [..., D] -> queries and behind them keys [..., Q + G, d], not rotated yet, and values [..., G, d]."""
        if self.fused is not None:
            assert isinstance(x, Tensor)
            return self.fused(x)
        q, k, v = self.project(x)
        return torch.cat([q, k], dim=-2), v

    def project(self, x: States) -> tuple[Tensor, Tensor, Tensor]:
        """x [..., D] -> q [..., Q, d], k and v [..., G, d]; keys are not rotated yet."""
        assert isinstance(x, Tensor)
        config = self.config
        q = self.q_norm(self.q_proj(x).unflatten(-1, (config.heads, config.head_dim)))
        k, v = self.kv_proj(x).unflatten(-1, (2, config.kv_heads, config.head_dim)).unbind(-3)
        return q, self.k_norm(k), v

    def attend(self, q_BNQd: Tensor, k_BMGd: Tensor, v_BMGd: Tensor, mask: Tensor | None) -> Tensor:
        """Softmax attention and the output projection: [B, N, D]. The mask broadcasts to [B, 1, N, M]."""
        return self.out_proj(self.mix(q_BNQd, k_BMGd, v_BMGd, mask))

    def close(self, mixed: Tensor, like: States) -> States:
        """The output projection [..., N, D] of what `mix` gives, for tokens of the kinds of `like`."""
        return self.out_proj(mixed)

    def mix(self, q_BNQd: Tensor, k_BMGd: Tensor, v_BMGd: Tensor, mask: Tensor | None) -> Tensor:
        """Softmax attention without the output projection: [B, N, Q d]."""
        config = self.config
        B, N = q_BNQd.shape[:2]
        repeat = config.heads // config.kv_heads
        # The query heads that share a key head become extra rows, so keys and values are never copied per head.
        q_BGNd = q_BNQd.unflatten(2, (config.kv_heads, repeat)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        k_BGMd, v_BGMd = k_BMGd.transpose(1, 2), v_BMGd.transpose(1, 2)
        if mask is not None:
            mask = mask.repeat(1, 1, repeat, 1)
        out = F.scaled_dot_product_attention(q_BGNd, k_BGMd, v_BGMd, attn_mask=mask)
        return out.unflatten(2, (repeat, N)).permute(0, 3, 1, 2, 4).reshape(B, N, -1)


class MixedAttention(Attention):
    """The same with projections for text, its own, and for media, of `Mixed` tokens."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config, config.dim)
        assert config.media is not None
        self.media = Attention(config, config.media.dim)

    def project(self, x: States) -> tuple[Tensor, Tensor, Tensor]:
        if isinstance(x, Tensor):
            return super().project(x)
        parts = zip(super().project(x.text), self.media.project(x.media), strict=True)
        q, k, v = (torch.cat(pair, dim=-3).index_select(-3, x.kinds.order_N) for pair in parts)
        return q, k, v

    def close(self, mixed: Tensor, like: States) -> States:
        if isinstance(like, Tensor):
            return super().close(mixed, like)
        text, media = (mixed.index_select(-2, places) for places in (like.kinds.text_T, like.kinds.media_M))
        return Mixed(self.out_proj(text), self.media.out_proj(media), like.kinds)


class SwiGLU(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Layer(nn.Module):
    """Pre-norm Transformer layer. What is attended to is the caller's, so that all ways share every weight and line."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.attention_norm = by_kind(config, lambda dim, _: RMSNorm(dim, config.norm_eps))
        self.attention = Attention(config, config.dim) if config.media is None else MixedAttention(config)
        self.mlp_norm = by_kind(config, lambda dim, _: RMSNorm(dim, config.norm_eps))
        self.mlp = by_kind(config, SwiGLU)

    def forward(self, x: States, attend: Callable[[Attention, States], States]) -> States:
        """`attend` gets the projections and the normalised hidden states; it returns what is added to them."""
        x = x + attend(self.attention, self.attention_norm(x))  # type: ignore[operator]
        return x + self.mlp(self.mlp_norm(x))


class FusedProjection:
    """`Attention.heads` in one product of the weights of all heads; later changes of the weights are not seen."""

    def __init__(self, attention: Attention) -> None:
        config, both = attention.config, (attention.q_proj, attention.kv_proj)
        self.shape, self.turned, self.eps = (-1, config.head_dim), config.heads + config.kv_heads, config.norm_eps
        linear = nn.Linear(both[0].in_features, sum(part.out_features for part in both), bias=both[0].bias is not None)
        linear.weight.data = torch.cat([part.weight.detach() for part in both])
        if both[0].bias is not None:
            linear.bias.data = torch.cat([part.bias.detach() for part in both])
        self.linear = PackedLinear(linear) if isinstance(both[0], PackedLinear) else linear
        norms = (attention.q_norm, config.heads), (attention.k_norm, config.kv_heads)
        self.weight = None
        if config.qk_norm:
            weights = [(cast(RMSNorm, norm).weight.detach().float(), count) for norm, count in norms]
            self.weight = torch.cat([weight.expand(count, -1) for weight, count in weights])

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        heads = self.linear(x).unflatten(-1, self.shape)
        turned, v = heads[..., : self.turned, :], heads[..., self.turned :, :]
        if self.weight is not None:
            turned = normalised(turned.float(), self.eps).mul_(self.weight).to(heads.dtype)
        return turned, v


def fuse(module: nn.Module) -> None:
    """Fuse all norms and attention inside `module`, which is in the format it will stay in."""
    for part in module.modules():
        if isinstance(part, RMSNorm):
            part.twice = part.weight.detach().float().repeat(2)
        elif type(part) is Attention:
            part.fused = FusedProjection(part)
