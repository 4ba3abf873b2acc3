"""Drawing what the agent does in one unit. Live sessions and the rollouts of training call the same functions.

`draw_unit`     latents from noise;   `unit_noise`, `solve_unit`  its halves, for two processes
`TokenSampler`  tokens of both lanes from their logits;   `likeliest`  the likeliest ones
"""

import math

import torch
from torch import Tensor

from wan_streamer.codecs.text import END, SILENCE
from wan_streamer.config import FlowConfig, TextConfig
from wan_streamer.flow.solver import Velocity, resample, solve, time_grid
from wan_streamer.model.layout import LANES, Latents

RESPONSE = LANES.index("response")


def draw_unit(velocity: Velocity, like: Latents, flow: FlowConfig, generator: torch.Generator) -> Latents:
    """Latents of one unit, shaped like `like`, from noise drawn on the CPU."""
    return solve_unit(velocity, unit_noise(like, flow, generator), flow)


def unit_noise(like: Latents, flow: FlowConfig, generator: torch.Generator) -> list[Latents]:
    """All the noise that the solver takes for a unit, in its order, drawn on the CPU."""

    def drawn(z: Tensor, scale: float) -> Tensor:
        return torch.randn(z.shape, generator=generator).to(z.device, z.dtype) * scale

    def unit() -> Latents:
        return Latents(
            drawn(like.video, flow.temperature * flow.picture_temperature), drawn(like.audio, flow.temperature)
        )

    return [unit() for _ in range(flow.steps if flow.renoise else 1)]


def solve_unit(velocity: Velocity, noise: list[Latents], flow: FlowConfig) -> Latents:
    """Latents of one unit from its `unit_noise`."""
    grid, fresh = time_grid(flow.steps, flow.shift), iter(noise)
    if flow.renoise:
        return resample(velocity, next(fresh), grid, lambda: next(fresh))
    return solve(velocity, next(fresh), grid, flow.audio_steps)


class TokenSampler:
    """Picks the tokens of a conversation, slot after slot, as `config` says.

    generator  of the tokens, on the CPU; nothing is drawn at temperature 0
    """

    def __init__(self, config: TextConfig, generator: torch.Generator) -> None:
        self.config, self.generator = config, generator
        self.silent = True  # whether the agent is between two utterances
        self.urge = 0.0  # -log p that it would still be so, or still be talking

    def __call__(self, logits_LV: Tensor) -> Tensor:
        """Tokens [lanes] of the next slot."""
        if self.silent:
            logits_LV = logits_LV.clone()
            logits_LV[RESPONSE, SILENCE] -= self.config.start_bias
        token_L = self._draw(logits_LV)
        if self.config.temperature == 0 and self.config.urge:
            token_L = self._urged(token_L, logits_LV[RESPONSE])
        silent = int(token_L[RESPONSE]) in (SILENCE, END)
        self.silent, self.urge = silent, self.urge * (silent == self.silent)
        return token_L

    def _urged(self, token_L: Tensor, logits_V: Tensor) -> Tensor:
        """The agent begins, or ends, as soon as it would more likely than not have done so by now.

        What it may do in any of some slots is in none of them as likely as that it waits. Who draws at random begins
        and ends at some time, half of the times before this one.
        """
        p_V = logits_V.softmax(-1)
        p = float(p_V[END + 1 :].sum() if self.silent else p_V[END])
        self.urge = self.config.urge * self.urge - math.log1p(-min(p, 1 - 1e-6))
        if self.urge <= math.log(2):
            return token_L
        token_L = token_L.clone()
        token_L[RESPONSE] = logits_V[END + 1 :].argmax() + END + 1 if self.silent else END
        return token_L

    def _draw(self, logits_LV: Tensor) -> Tensor:
        if self.config.temperature == 0:
            return likeliest(logits_LV)
        probability = (logits_LV.float().cpu() / self.config.temperature).softmax(-1)
        return torch.multinomial(probability, 1, generator=self.generator).squeeze(1).to(logits_LV.device)


def likeliest(logits: Tensor) -> Tensor:
    """Logits [..., V] -> tokens [...]. Whether a word is written is decided first, then which one: where many words are
    as likely as each other, one of them is likelier than nothing.
    """
    words = logits[..., END + 1 :]
    kind = torch.cat([logits[..., : END + 1], words.logsumexp(-1, keepdim=True)], dim=-1).argmax(-1)
    return torch.where(kind > END, words.argmax(-1) + END + 1, kind)
