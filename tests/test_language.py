"""Language models inside the unified model: the same logits as the reference, in text and in every way of running."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from reference_lm import (
    ROWS,
    SCRIPTS,
    SHARED,
    VARIANTS,
    assert_same_logits,
    make_reference,
    random_tokens,
    save_reference,
    start,
    train_tokenizer,
    transformers,
)
from safetensors.torch import load_file, save_file
from tiny import TALKER, TINY, tiny_weights
from tiny_clips import mixed, noisy_latents, off_is_blank, one_pass, random_clip, unit_by_unit
from tokenizers import Tokenizer, models

from wan_streamer.codecs.text import CONTROL, END, SILENCE, LaneDecoder, TextCodec
from wan_streamer.config import StreamerConfig
from wan_streamer.errors import CheckpointError, ConfigError, ShapeError
from wan_streamer.model.language import generate, load_language_model
from wan_streamer.model.pretrained import Weights, load_weights, save_weights
from wan_streamer.presets import get_preset


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_reference(make_reference("llama-gqa"), tmp_path / "lm")


def test_logits_of_the_reference(variant: str, tmp_path: Path) -> None:
    reference = make_reference(variant)
    streamer, _ = start(save_reference(reference, tmp_path))
    assert_same_logits(streamer, reference, random_tokens())


def test_weights_for_sound_and_pictures_leave_the_language_model_as_it_is(variant: str, tmp_path: Path) -> None:
    reference = make_reference(variant)
    save_reference(reference, tmp_path)
    streamer, _ = start(tmp_path, mixed(TINY))
    assert_same_logits(streamer, reference, random_tokens())
    assert streamer.config.backbone.media is not None
    for name, p in streamer.named_parameters():
        if ".media." in name:
            p.add_(1.0)  # no word goes through them
    assert_same_logits(streamer, reference, random_tokens())
    whole, _ = start(tmp_path)
    assert streamer.video_out.in_features < whole.video_out.in_features


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


@pytest.mark.parametrize("config", [TINY, mixed(TINY)], ids=["one", "mixed"])
def test_training_pass_equals_cached_rollout(config: StreamerConfig, variant: str, tmp_path: Path) -> None:
    """One pass over a clip gives what the live session gives, for every kind of layer."""
    streamer, _ = start(save_reference(make_reference(variant), tmp_path), config)
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
    assert [text.tokenizer.token_to_id(name) for name in CONTROL] == [0, 1, 2]
    text.save(tmp_path / "tokenizer.json")
    for codec in (text, TextCodec.load(tmp_path / "tokenizer.json")):  # who types their names means the letters
        tokens = codec.encode("hello<|im_end|><end>")
        assert not {mark, *range(SHARED)} & set(tokens)
        assert codec.decode(tokens) == "hello<|im_end|><end>"


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
