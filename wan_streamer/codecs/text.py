"""Text <-> tokens of the lanes: a byte-level BPE with three control tokens, and streaming back to text."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from wan_streamer.errors import CheckpointError
from wan_streamer.files import parse_json

SILENCE = 0  # nobody speaks in this lane
HOLD = 1  # inside an utterance, but no new token in this slot
END = 2  # end of turn
CONTROL = ("<silence>", "<hold>", "<end>")
SPACE = "\u2581"  # in the pieces of a recogniser


class TextCodec:
    """Wraps a `tokenizers.Tokenizer` whose first ids are the control tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        tokenizer.encode_special_tokens = True  # who types "<end>" means the letters

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "TextCodec":
        """Learn a byte-level BPE of at most `vocab_size` tokens."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
        tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(CONTROL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def of_pieces(cls, pieces: Sequence[str]) -> "TextCodec":
        """The vocabulary of a recogniser: `pieces` in the order in which they are merged, the single letters too, with
        `SPACE` for a blank and <0x0A> for a byte; piece i becomes token i + 3. Every text begins with a blank.
        """
        vocab = {token: number for number, token in enumerate([*CONTROL, *pieces])}
        merges = [
            (piece[:cut], piece[cut:])
            for piece in pieces
            if not piece.startswith("<0x")
            for cut in range(1, len(piece))
            if piece[:cut] in vocab and piece[cut:] in vocab
        ]
        tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "always")  # type: ignore[assignment]
        tokenizer.decoder = decoders.Sequence(  # type: ignore[assignment]
            [decoders.ByteFallback(), decoders.Metaspace(SPACE, "always"), decoders.Fuse()]
        )
        tokenizer.add_special_tokens(list(CONTROL))
        return cls(tokenizer)

    @classmethod
    def load(cls, path: Path) -> "TextCodec":
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare exceptions
            raise CheckpointError(f"{path}: cannot be read as a tokenizer ({error})") from error

    @classmethod
    def extend(cls, tokenizer: Tokenizer) -> "TextCodec":
        """Put the control tokens in front of a language model's vocabulary: its token i becomes i + 3.

        Templates that add special tokens are dropped. Raises `CheckpointError` unless it is a BPE without tokens of
        these names.
        """
        data = parse_json(tokenizer.to_str())
        if data["model"]["type"] != "BPE":
            raise CheckpointError(f"tokenizer: expected a BPE, got {data['model']['type']}")
        # Added tokens join the vocabulary, because the library numbers those outside of it anew.
        vocab = data["model"]["vocab"] | {token["content"]: token["id"] for token in data["added_tokens"]}
        if taken := vocab.keys() & set(CONTROL):
            raise CheckpointError(f"tokenizer: expected no token {min(taken)}, which is a control token here")
        for token in data["added_tokens"]:
            token["id"] += len(CONTROL)
        shifted = {token: number + len(CONTROL) for token, number in vocab.items()}
        data["model"]["vocab"] = {token: number for number, token in enumerate(CONTROL)} | shifted
        marks = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        data["added_tokens"] = [
            *({"id": number, "content": token} | marks for number, token in enumerate(CONTROL)),
            *data["added_tokens"],
        ]
        data |= {"post_processor": None, "padding": None, "truncation": None}
        return cls(Tokenizer.from_str(json.dumps(data)))

    def grow(self, texts: Iterable[str], vocab_size: int) -> "TextCodec":
        """Learn more tokens behind those there are, by merging what this codec makes of `texts`.

        Every token keeps its number. Up to `vocab_size` of them, fewer where the texts give no more.
        """
        data = parse_json(self.tokenizer.to_str())
        vocab, merges = data["model"]["vocab"], data["model"]["merges"]
        split = self.tokenizer.pre_tokenizer.pre_tokenize_str  # type: ignore[union-attr]
        counts = Counter(piece for text in texts for piece, _ in split(text))
        words = [[token.value for token in self.tokenizer.model.tokenize(piece)] for piece in counts]
        times, pairs = list(counts.values()), _Pairs()
        for number, word in enumerate(words):
            pairs.add(word, number, times[number])
        while len(vocab) < vocab_size and (best := pairs.commonest()) is not None:
            merges.append(list(best))
            vocab["".join(best)] = len(vocab)
            for number in list(pairs.where[best]):
                pairs.add(words[number], number, -times[number])
                words[number] = _merged(words[number], best)
                pairs.add(words[number], number, times[number])
        return TextCodec(Tokenizer.from_str(json.dumps(data)))

    def parts(self, first: int) -> list[tuple[int, int]]:
        """Of every token from number `first` on, the two that it was merged from."""
        model = parse_json(self.tokenizer.to_str())["model"]
        halves = {model["vocab"]["".join(pair)]: pair for pair in model["merges"]}
        return [
            (model["vocab"][halves[number][0]], model["vocab"][halves[number][1]])
            for number in range(first, len(model["vocab"]))
        ]

    @property
    def pieces(self) -> list[str] | None:
        """The tokens behind the control tokens, if they are those of a recogniser (`of_pieces`)."""
        vocab = self.tokenizer.get_vocab()
        return sorted(vocab, key=vocab.__getitem__)[len(CONTROL) :] if "<0x00>" in vocab else None

    def save(self, path: Path) -> None:
        self.tokenizer.save(str(path), pretty=False)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode([token for token in tokens if token >= len(CONTROL)])


class _Pairs:
    """How often two tokens stand side by side in words, and in which words."""

    def __init__(self) -> None:
        self.count: Counter[tuple[str, str]] = Counter()
        self.where: defaultdict[tuple[str, str], set[int]] = defaultdict(set)

    def add(self, word: list[str], number: int, times: int) -> None:
        """Word `number` is there `times` more often (fewer, if negative: then it is gone)."""
        for pair in pairwise(word):
            self.count[pair] += times
            (self.where[pair].add if times > 0 else self.where[pair].discard)(number)

    def commonest(self) -> tuple[str, str] | None:
        """Of several, the last in the order of the alphabet; None if no pair is there."""
        pair = max(self.count, key=lambda pair: (self.count[pair], pair), default=None)
        return pair if pair is not None and self.count[pair] > 0 else None


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    """`word` with every such pair made one token, from the left."""
    made: list[str] = []
    for token in word:
        if made and (made[-1], token) == pair:
            made[-1] += token
        else:
            made.append(token)
    return made


class LaneDecoder:
    """Tokens of one lane, slot by slot -> the text that each unit adds. State of a session, reset at end of turn."""

    def __init__(self, codec: TextCodec) -> None:
        self.codec = codec
        self.tokens: list[int] = []
        self.shown = ""

    def push(self, tokens: list[int]) -> str:
        """Text that these tokens add. Bytes of an unfinished character wait for the next token."""
        added = ""
        for token in tokens:
            if token >= len(CONTROL):
                self.tokens.append(token)
                text = self.codec.decode(self.tokens)
                if not text.endswith("\N{REPLACEMENT CHARACTER}"):
                    added += text[len(self.shown) :]
                    self.shown = text
            elif token == END:
                self.tokens, self.shown = [], ""
        return added
