"""Random language models of `transformers`, a tokenizer like theirs, and the same model as ours."""

from pathlib import Path

import pytest
import torch
from tiny import TINY
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from wan_streamer.codecs.text import CONTROL, TextCodec
from wan_streamer.config import StreamerConfig
from wan_streamer.model.language import initialise_from
from wan_streamer.model.streamer import Streamer

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


def start(source: Path, config: StreamerConfig = TINY) -> tuple[Streamer, TextCodec]:
    torch.manual_seed(0)
    streamer, text = initialise_from(config, str(source))
    return streamer.eval().requires_grad_(False), text


def random_tokens(rows: int = 2, length: int = 40) -> torch.Tensor:
    return torch.randint(0, ROWS, (rows, length), generator=torch.Generator().manual_seed(2))


def assert_same_logits(streamer: Streamer, reference: torch.nn.Module, token_BN: torch.Tensor) -> None:
    with torch.inference_mode():
        expected = reference(token_BN).logits
        logits, _ = streamer.text_logits(token_BN + SHARED)
    assert expected.std() > 0.5
    torch.testing.assert_close(logits[..., SHARED:], expected, atol=1e-4, rtol=0)
