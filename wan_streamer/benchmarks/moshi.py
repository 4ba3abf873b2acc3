"""A unit of a Moshi-like model beside ours: the same backbone, random weights, sound only.

`bench_steps`   milliseconds of both, in turns
`MoshiStep`     per 80 ms one token through the backbone, then 8 codebooks through a small decoder, one after the other

Ours is a session's unit without decoding: what the user did, both lanes of text, and the solver for sound and picture.
Codecs are left out on both sides; `wan-streamer bench codecs` has them.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from wan_streamer.benchmarks.peers import count_parameters
from wan_streamer.config import BackboneConfig
from wan_streamer.runtime.agent import WanStreamer
from wan_streamer.runtime.clock import percentiles
from wan_streamer.units import SAMPLES_PER_UNIT, UserUnit

STEPS = 2  # of 80 ms in a unit
CODEBOOKS, CODES = 8, 2048
DEPTH_LAYERS = 6 / 32  # of the layers of the backbone, as in Moshi
WARMUP_UNITS = 3
INSTALL = "pip install 'wan-streamer[bench]'"


class MoshiStep:
    """`step` plays the next unit; its past grows by two tokens a time."""

    def __init__(self, backbone: BackboneConfig) -> None:
        from transformers import MoshiConfig
        from transformers.models.moshi.modeling_moshi import MoshiDepthDecoder, MoshiForCausalLM

        layers = max(1, round(DEPTH_LAYERS * backbone.layers))
        shape: dict[str, Any] = {
            "hidden_size": backbone.dim, "num_attention_heads": backbone.heads, "head_dim": backbone.head_dim,
            "num_key_value_heads": backbone.kv_heads, "ffn_dim": 2 * backbone.mlp_dim, "vocab_size": CODES,
            "audio_vocab_size": CODES, "num_codebooks": CODEBOOKS,
        }  # fmt: skip
        depth = shape | {"num_hidden_layers": layers, "input_size": backbone.dim}
        config = MoshiConfig(**shape, num_hidden_layers=backbone.layers, depth_decoder_config=depth)
        self.temporal: Any = MoshiForCausalLM(config).eval()
        of_depth: Any = config.depth_decoder_config  # a dictionary goes in, a configuration comes out
        self.depth: Any = MoshiDepthDecoder(of_depth).eval()
        self.parameters = count_parameters(self.temporal, self.depth)
        self._past: Any = None
        self._given_BND = torch.zeros(1, 1, backbone.dim)

    @torch.inference_mode()
    def step(self) -> list[int]:
        """The codes of the unit, `STEPS` x `CODEBOOKS` of them."""
        codes: list[int] = []
        for _ in range(STEPS):
            out = self.temporal(inputs_embeds=self._given_BND, past_key_values=self._past, use_cache=True)
            self._past, self._given_BND = out.past_key_values, out.last_hidden_state
            past, token_BN = None, out.logits[:, -1:].argmax(-1)
            for _ in range(CODEBOOKS):
                deep = self.depth(
                    input_ids=token_BN, last_hidden_state=self._given_BND, past_key_values=past, use_cache=True
                )
                past, token_BN = deep.past_key_values, deep.logits[:, -1:].argmax(-1)
                codes.append(int(token_BN))
        return codes


def bench_steps(agent: WanStreamer, units: int) -> dict[str, Any]:
    """{"ours", "moshi_like"}: `ms_a_unit` as percentiles, and parameters; or `skipped`, which says why."""
    session = agent.session(seed=0)
    height, width = agent.frame_size
    user = UserUnit(np.zeros(SAMPLES_PER_UNIT, np.float32), np.zeros((4, height, width, 3), np.uint8))

    def ours() -> float:
        stages = session.step(user).stage_ms
        return sum(stages.values()) - stages["decode"]

    rows: dict[str, dict[str, Any]] = {"ours": {"parameters": count_parameters(agent.weights.streamer)}}
    players: dict[str, Callable[[], float]] = {"ours": ours}
    try:
        moshi = MoshiStep(agent.config.backbone)
    except ImportError as error:
        rows["moshi_like"] = {"skipped": f"{error}; to measure it: {INSTALL}"}
    else:
        rows["moshi_like"] = {"parameters": moshi.parameters}
        players["moshi_like"] = lambda: _timed_ms(moshi.step)
    times: dict[str, list[float]] = {name: [] for name in players}
    for turn in range(WARMUP_UNITS + units):
        for name, play in players.items():
            ms = play()
            if turn >= WARMUP_UNITS:
                times[name].append(ms)
    for name, measured in times.items():
        rows[name]["ms_a_unit"] = percentiles(measured)
    return rows


def _timed_ms(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return (time.perf_counter() - began) * 1000
