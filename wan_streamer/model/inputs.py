"""What enters the Transformer: features of the user, latents of the agent and words become tokens of a block.

Training and live sessions share it (`model/streamer.py`).
"""

import torch
from torch import Tensor, nn

from wan_streamer.config import StreamerConfig
from wan_streamer.errors import ConfigError
from wan_streamer.model.layers import Kinds, Mixed, States, kinds_of
from wan_streamer.model.layout import LANES, Kind, UnitLayout
from wan_streamer.perception.reading import Expected


class Inputs(nn.Module):
    """Of a `Streamer`, which makes the weights."""

    config: StreamerConfig
    layout: UnitLayout
    user_audio_in: nn.Linear
    user_video_in: nn.Linear
    video_in: nn.Linear
    audio_in: nn.Linear
    text_in: nn.Embedding
    tau_in: nn.Sequential
    off: nn.Parameter  # [2, D]: microphone off, camera off
    place: nn.Parameter  # one vector per place in a block
    media_place: nn.Parameter | None  # like `place`, of media tokens, where they have a width of their own
    memory_in: nn.Parameter | None  # [sources, D]: who said it; None in a model without memory
    _kinds: dict[tuple[tuple[int, int], ...], tuple[Kinds, Tensor]]  # constants, not state

    @property
    def device(self) -> torch.device:
        return self.place.device

    def _tau(self, tau: Tensor) -> Tensor:
        """Embedding [..., D] of times [...]."""
        frequency = torch.exp(torch.linspace(0, 6, 32, device=tau.device))
        angle = tau.float()[..., None] * frequency
        return self.tau_in(torch.cat([angle.sin(), angle.cos()], dim=-1))

    def _embed_user(
        self,
        heard: Tensor | None,
        microphone: Tensor,
        seen: Tensor | None,
        camera: Tensor,
        text: Tensor,
        read: Expected | None,
    ) -> list[Tensor]:
        """Features [..., Na, Da], bool [...], [..., Nv, Dv], bool [...], ids [..., S], [..., R] -> [..., n, D] each."""
        parts = []
        if heard is not None:
            parts += [torch.where(microphone[..., None, None], self.user_audio_in(heard), self.off[0].to(heard.dtype))]
        if seen is not None:
            parts += [torch.where(camera[..., None, None], self.user_video_in(seen), self.off[1].to(seen.dtype))]
        return [*parts, self.text_in(text if read is None else torch.cat([text, read.token], dim=-1))]

    def _embed_latents(self, video: Tensor, audio: Tensor, tau: Tensor) -> list[Tensor]:
        """Video tokens [..., N, P], audio [..., 4, C] at times [..., 2] (video, audio) -> parts of [..., n, D]."""
        time = self._tau(tau)
        return [self.video_in(video) + time[..., :1, :], self.audio_in(audio) + time[..., 1:, :]]

    def _embed_memory(self, memory: Tensor) -> Tensor:
        """Memory tokens [..., 2] -> [..., D]."""
        source, token = memory.clamp(min=0).unbind(-1)  # padding is seen by nobody
        if self.memory_in is None:
            raise ConfigError("cache.memory_tokens: expected more than 0 where there is a memory, got 0")
        return self.text_in(token) + self.memory_in[source]

    def _joined(self, parts: list[Tensor], *where: slice) -> States:
        """The parts [..., n, D] of a block that stand at `where`, in order, with the vectors of their places."""
        if self.media_place is None:
            return torch.cat(parts, dim=-2) + torch.cat([self.place[slot] for slot in where])
        key = tuple((slot.start, slot.stop) for slot in where)
        if key not in self._kinds or self._kinds[key][1].device != self.device:
            text_N = self.layout.kind_N == Kind.TEXT
            row_N = torch.where(text_N, text_N.cumsum(0), (~text_N).cumsum(0)) - 1  # of `place` or of `media_place`
            index_n = torch.cat([torch.arange(slot.start, slot.stop) for slot in where])
            self._kinds[key] = kinds_of(text_N[index_n], self.device), row_N[index_n].to(self.device)
        kinds, row_n = self._kinds[key]

        def of(place: Tensor, rows: Tensor) -> Tensor:
            none = parts[0].new_empty(*parts[0].shape[:-2], 0, place.shape[1])
            return torch.cat([none, *(x for x in parts if x.shape[-1] == place.shape[1])], dim=-2) + place[rows]

        return Mixed(of(self.place, row_n[kinds.text_T]), of(self.media_place, row_n[kinds.media_M]), kinds)

    def _starts(self, like: Tensor) -> Tensor:
        return like.new_zeros(*like.shape[:-2], len(LANES), like.shape[-1])
