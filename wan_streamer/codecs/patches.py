"""Video latents <-> the tokens in which the model reads and writes them: squares of `config.patch` latents each."""

from torch import Tensor

from wan_streamer.config import StreamerConfig


def patchify(latent_CHW: Tensor, config: StreamerConfig) -> Tensor:
    """Latent frames [..., C, h, w] -> tokens [..., N, C patch patch]."""
    (rows, columns), p = config.grid, config.patch
    split = latent_CHW.unflatten(-2, (rows, p)).unflatten(-1, (columns, p))  # ... C r p c p
    return split.movedim((-4, -2), (-5, -4)).flatten(-3).flatten(-3, -2)


def unpatchify(token_NP: Tensor, config: StreamerConfig) -> Tensor:
    """Tokens [..., N, C patch patch] -> latent frames [..., C, h, w]."""
    (rows, columns), p = config.grid, config.patch
    split = token_NP.unflatten(-1, (-1, p, p)).unflatten(-4, (rows, columns))  # ... r c C p p
    return split.movedim((-5, -4), (-4, -2)).flatten(-2).flatten(-3, -2)
