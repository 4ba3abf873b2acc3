"""The tokenizer of a model: learned from everything that is said, typed and written in its training data."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from wan_streamer.codecs.text import CONTROL, TextCodec
from wan_streamer.config import StreamerConfig
from wan_streamer.data.encode import read_labels
from wan_streamer.errors import DataError
from wan_streamer.folders import expected
from wan_streamer.training.ears.corpus import load_corpus
from wan_streamer.training.ears.moonshine import Tokenizer

MESSAGES = ("typed", "written")  # events whose label is a text


def learn_text(
    stores: Iterable[Path], config: StreamerConfig, corpus: Path | None = None, start: TextCodec | None = None
) -> TextCodec:
    """A tokenizer of a model of `config` for the encoded conversations and tasks in the folders `stores`.

    corpus  speech to write down, of the same words
    start   tokenizer of the model that training begins from: it stays, and grows by the tokens that it has too few of

    A model with a reader has tokens of the recogniser that the reader is from, and those of `start` do not grow.
    Raises `DataError` if a folder holds none.
    """
    vocab_size, pieces = config.text.vocab_size, config.perception.reading > 0
    if start is not None and (start.pieces is not None) != pieces:
        start = None
    if start is not None and pieces:
        return start
    if start is not None and start.tokenizer.get_vocab_size() >= vocab_size:
        return start
    texts: list[str] = []
    for store in stores:
        paths = sorted(Path(store).glob("*.safetensors"))
        if not paths:
            raise DataError(f"{store}: {expected('conversations', Path(store))}")
        for path in paths:
            texts += dict.fromkeys(_texts(read_labels(path)))
    if corpus is not None:
        texts += [clip.text for clip in load_corpus(corpus, "train")]
    if pieces:
        vocabulary = Tokenizer()
        numbers = vocabulary.most_used(texts, vocab_size - len(CONTROL))
        return TextCodec.of_pieces([vocabulary.named(number) for number in numbers])
    return TextCodec.train(texts, vocab_size) if start is None else start.grow(texts, vocab_size)


def _texts(labels: dict) -> Iterator[str]:
    """Sentences of both sides, prompts and messages of one conversation; some of them twice."""
    for side in ("user", "agent"):
        yield " ".join(word["text"] for word in labels["words"][side])
    yield labels.get("prompt", "")
    yield from (event["label"] for event in labels["events"] if event["type"] in MESSAGES)
