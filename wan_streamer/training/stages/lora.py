"""Low-rank adaptation (Hu et al. 2021): the Transformer's matrices stay, and learn a small correction each.

`add_lora`    freeze a model, but for its small input and output layers, and give each matrix of a layer a correction
`merged`      a copy with all corrections of weights added in, of spelling too: a model like any other
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from wan_streamer.errors import ConfigError
from wan_streamer.model.streamer import Streamer
from wan_streamer.tensors import whole

TRAINED_WHOLE = ("user_audio_in", "user_video_in", "video_in", "audio_in", "tau_in", "video_out", "audio_out")


class LowRank(nn.Module):
    """weight [out, in] -> weight + up down, of rank `rank`; zero at first."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.down = nn.Parameter(torch.randn(rank, columns, device=weight.device) * columns**-0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def add_lora(streamer: Streamer, rank: int) -> None:
    """Change `streamer` in place. What learns: the corrections, and the layers around latents and perception.

    Raises `ConfigError` if the rank is not between 1 and the model's width.
    """
    dim = streamer.config.backbone.dim
    if not 1 <= rank <= dim:
        raise ConfigError(f"lora: expected a rank from 1 to the model's width {dim}, got {rank}")
    streamer.requires_grad_(False)
    for name in TRAINED_WHOLE:
        getattr(streamer, name).requires_grad_(True)
    for module in streamer.backbone.layers.modules():
        if isinstance(module, nn.Linear):
            parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank))


def merged(streamer: Streamer) -> Streamer:
    """A plain model that is the same; `streamer` itself if it has no corrections."""
    if not any(parametrize.is_parametrized(module) for module in streamer.modules()):
        return streamer
    state = {name: whole(value.detach()) for name, value in streamer.state_dict().items()}
    tensors = {name: value for name, value in state.items() if "parametrizations" not in name}
    for name, module in streamer.named_modules():
        if parametrize.is_parametrized(module):
            tensors[f"{name}.weight"] = _corrected(module.parametrizations["weight"])  # type: ignore[index,arg-type]
    plain = Streamer(streamer.config).to(streamer.device)
    plain.load_state_dict(tensors)
    return plain


@torch.no_grad()
def _corrected(corrections: parametrize.ParametrizationList) -> Tensor:
    """The weight, put together where it is split over processes."""
    weight = whole(corrections.original)
    for correction in corrections:
        parts = {name: whole(p) for name, p in correction.named_parameters()}
        weight = functional_call(correction, parts, (weight,))
    return weight
