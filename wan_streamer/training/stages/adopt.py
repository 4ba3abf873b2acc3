"""A new model from one that perceives the user in another way: everything else is kept.

`adopt`       the weights of a checkpoint, wherever they fit
`adopt_ears`  ears trained before (`training/ears`)
`adopt_eyes`  eyes trained before (`training/eyes`)
`adopt_reader`  the decoder that was trained with what the ears imitate
"""

from pathlib import Path

import torch
from torch import Tensor

from wan_streamer.codecs.text import CONTROL, SPACE, TextCodec
from wan_streamer.config import PerceptionConfig, load_config
from wan_streamer.errors import CheckpointError, ConfigError
from wan_streamer.model.layout import UnitLayout, unit_layout
from wan_streamer.model.streamer import Streamer
from wan_streamer.perception.ears import load_ears
from wan_streamer.perception.reading import BEGIN, WHOLE
from wan_streamer.perception.video import load_eyes, same_eyes
from wan_streamer.tensors import load_tensors
from wan_streamer.training.ears import moonshine

WORDS = ("text_in.weight", "text_out.weight")
"""Parameters with a row for every token."""
HEARING, SEEING = ("hearing.", "user_audio_in."), ("seeing.", "user_video_in.")
"""Parameters that belong to the way the user is heard and seen."""
BESIDE = ("voice", "wording", "floor", "sight")
"""Networks beside the Transformer, which learn by themselves: another shape begins anew."""
SHARED = ("agent_video", "agent_audio", "user_text", "lane_start", "noisy_video", "noisy_audio")
"""Parts of a block that are the same whatever the user's tokens are; so are the slots."""


@torch.no_grad()
def adopt(streamer: Streamer, folder: Path, text: TextCodec) -> bool:
    """Fill `streamer` with the weights in `folder`; where the two hear or see alike, with its ears or eyes too.

    text  its tokenizer: that in `folder`, maybe with more tokens, or another one

    Returns whether a reader was among them.

    Raises `CheckpointError` for a checkpoint that differs in more than perception, history and vocabulary.
    """
    config, old = streamer.config, load_config(folder / "config.json")
    tensors = load_tensors(folder / "model.safetensors")
    kept = ("audio_vae", "video_vae", "backbone", "patch")
    sizes = [(c.text.slots, c.text.tied_head, *(getattr(c, part) for part in kept)) for c in (config, old)]
    before = TextCodec.load(folder / "tokenizer.json")
    if sizes[0] != sizes[1] or config.text.vocab_size < old.text.vocab_size:
        raise CheckpointError(
            f"{folder}: expected a model of the same codecs, backbone and text as preset {config.name!r}, and of no"
            " larger vocabulary; another one cannot be adopted"
        )
    same_text = config.text.vocab_size == old.text.vocab_size
    others = [part for part in BESIDE if not same_text or getattr(config, part) != getattr(old, part)]
    known, fresh = streamer.state_dict(), _fresh(config.perception, old.perception)
    for name, value in tensors.items():
        fits = name in known and known[name].shape == value.shape
        if name in WORDS:
            _adopt_words(known[name], value.float(), text, before)
        elif name == "place":
            _adopt_places(streamer, value.float(), unit_layout(old), fresh)
        elif name.startswith(fresh) or name.partition(".")[0] in others:
            continue
        elif fits:
            known[name].copy_(value)
        else:
            raise CheckpointError(f"{folder}: {name} does not fit preset {config.name!r}")
    return any(name.startswith("reading.") for name in tensors)


def _adopt_words(new_VD: torch.Tensor, old_VD: torch.Tensor, text: TextCodec, before: TextCodec) -> None:
    """The rows of the tokens that both have; a new one begins as the mean of those that it would be written with."""
    if (pieces := text.pieces) is not None and before.pieces is None:
        new_VD[: len(CONTROL)] = old_VD[: len(CONTROL)]
        for number, piece in enumerate(pieces, start=len(CONTROL)):
            if not piece.startswith("<0x"):
                new_VD[number] = old_VD[before.encode(piece.replace(SPACE, " "))].mean(0)
        return
    first = len(old_VD)
    new_VD[:first] = old_VD
    for number, (left, right) in enumerate(text.parts(first), start=first):
        new_VD[number] = (new_VD[left] + new_VD[right]) / 2


def _fresh(new: PerceptionConfig, old: PerceptionConfig) -> tuple[str, ...]:
    """What a model with perception `new` cannot take over from one with `old`."""
    same = ("ears",) if new.hearing == "ears" else ("mel_bins", "audio_dim", "audio_blocks")
    hears = all(getattr(new, name) == getattr(old, name) for name in ("hearing", *same))
    sees = new.seeing == old.seeing and same_eyes(new, old)
    return (() if hears else HEARING) + (() if sees else SEEING)


def _adopt_places(streamer: Streamer, place_ND: torch.Tensor, old: UnitLayout, fresh: tuple[str, ...]) -> None:
    new = streamer.layout
    alike = [part for part, names in (("user_audio", HEARING), ("user_video", SEEING)) if names[0] not in fresh]
    parts = [(getattr(new, part), getattr(old, part)) for part in (*SHARED, *alike)]
    parts += [(new.user_read, old.user_read)] if _size(new.user_read) == _size(old.user_read) else []
    parts += zip(new.slots, old.slots, strict=True)
    for mine, theirs in parts:
        streamer.place[mine] = place_ND[theirs]


def adopt_ears(streamer: Streamer, folder: Path) -> None:
    """Give `streamer` the ears in `folder`. Raises `ConfigError` if it has none, or of another shape."""
    ears = load_ears(folder)
    if streamer.config.perception.hearing != "ears" or ears.config != streamer.config.perception.ears:
        raise ConfigError(
            f"{folder}: expected a preset that hears with ears of this shape, got {streamer.config.name!r}"
        )
    streamer.hearing.load_state_dict(ears.state_dict())


def adopt_eyes(streamer: Streamer, folder: Path) -> None:
    """Give `streamer` the eyes in `folder`. Raises `ConfigError` if its own learn, or have another shape."""
    eyes, own = load_eyes(folder), streamer.config.perception
    if own.seeing != "eyes" or not same_eyes(eyes.config, own):
        raise ConfigError(
            f"{folder}: expected a preset with eyes of this shape, got {streamer.config.name!r}; name another with"
            " --preset: what 'wan-streamer train eyes' makes fits nano-ears"
        )
    streamer.seeing.load_state_dict(eyes.state_dict())


@torch.no_grad()
def adopt_reader(streamer: Streamer, text: TextCodec) -> None:
    """Give `streamer` the decoder of Moonshine tiny, with the rows of the tokens of `text`.

    Raises `ConfigError` without the package that has it, or if the tokens are not its own.
    """
    if streamer.reading is None or text.pieces is None:
        raise ConfigError(f"perception.reading: expected a reader and its tokens in preset {streamer.config.name!r}")
    streamer.reading.load_state_dict(original_reader(text, streamer.config.text.vocab_size))


def original_reader(text: TextCodec, vocab_size: int) -> dict[str, Tensor]:
    """Weights of a `Reader`: those of the decoder of Moonshine tiny, with the rows of the tokens of `text`.

    Raises `ConfigError` without the package that has it.
    """
    weights, vocabulary = moonshine.decoder_weights(), moonshine.Tokenizer()
    numbers = {vocabulary.named(number): number for number in range(moonshine.FIRST_TEXT, len(vocabulary.pieces))}
    row_V = torch.full((vocab_size,), moonshine.END)  # of a token that is never written, too
    row_V[[BEGIN, WHOLE]] = moonshine.BEGIN
    for token, piece in enumerate(text.pieces or (), start=len(CONTROL)):
        row_V[token] = numbers[piece]
    return weights | {"words.weight": weights["words.weight"][row_V]}


def _size(where: slice) -> int:
    return where.stop - where.start
