"""The tokenizer of a model: learned from everything that is said, typed and written in its training data."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from wan_streamer.codecs.text import TextCodec
from wan_streamer.data.encode import read_labels
from wan_streamer.errors import DataError
from wan_streamer.folders import expected
from wan_streamer.training.ears.corpus import load_corpus

MESSAGES = ("typed", "written")  # events whose label is a text


def learn_text(
    stores: Iterable[Path], vocab_size: int, corpus: Path | None = None, start: TextCodec | None = None
) -> TextCodec:
    """A tokenizer of at most `vocab_size` tokens for the encoded conversations and tasks in the folders `stores`.

    corpus  speech to write down, of the same words
    start   tokenizer of the model that training begins from: it stays, and grows by the tokens that it has too few of

    Raises `DataError` if a folder holds none.
    """
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
    return TextCodec.train(texts, vocab_size) if start is None else start.grow(texts, vocab_size)


def _texts(labels: dict) -> Iterator[str]:
    """Sentences of both sides, prompts and messages of one conversation; some of them twice."""
    for side in ("user", "agent"):
        yield " ".join(word["text"] for word in labels["words"][side])
    yield labels.get("prompt", "")
    yield from (event["label"] for event in labels["events"] if event["type"] in MESSAGES)
