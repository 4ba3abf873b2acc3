"""What the voices of the corpus say: sentences from transcripts of meetings and from typed conversations.

`load_sentences`  all usable sentences of a folder of texts, by kind
`rows_of`         a table of them
`for_test`        whether a text belongs to the part that no training voice ever says
"""

import csv
import gzip
import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

from wan_streamer.errors import DataError

WORDS = (3, 26)
"""Fewest and most words of a sentence: 1 to 9 seconds of speech."""
TEST_SHARE = 0.06
MEETINGS = Path("ami") / "words.tsv.gz"
TALK = Path("talk")
TYPED = {"topical": TALK / "topical.tsv.gz", "orders": TALK / "orders.tsv.gz", "chat": TALK / "chat.tsv"}

_SENTENCE = re.compile(r"[^.!?]+[.!?]*")
_ALLOWED = re.compile(r"[A-Za-z][A-Za-z',.?! -]*")


def for_test(text: str, share: float = TEST_SHARE) -> bool:
    """Whether this text is among the fixed random `share` (0..1) that only test voices say."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) < share * 2**32


def load_sentences(folder: str | Path) -> dict[str, list[str]]:
    """Distinct sentences of every kind, in the order of the files: {"meetings" | "topical" | "orders" | "chat": [...]}.

    folder  has `ami/words.tsv.gz` and `talk/*.tsv*` (tab-separated, with a header)

    Raises `DataError` if a file is missing or has other columns.
    """
    folder = Path(folder)
    kinds = {"meetings": _usable(_meeting_sentences(folder / MEETINGS))}
    for kind, path in TYPED.items():
        kinds[kind] = _usable(_typed_sentences(folder / path))
    return kinds


def rows_of(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Of a table with tabs and a header. Raises `DataError`."""
    if not path.is_file():
        raise DataError(f"{path}: expected a table of texts, found nothing")
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    reader = csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    missing = [name for name in columns if name not in (reader.fieldnames or [])]
    if missing:
        raise DataError(f"{path}: expected the columns {', '.join(columns)}, found none named {missing[0]}")
    yield from reader


def _meeting_sentences(path: Path) -> Iterator[str]:
    """What one person says up to a full stop, um and uh included; cut-off words end a sentence unused."""
    said: dict[tuple[str, str], list[str]] = {}
    for row in rows_of(path, ("meeting", "speaker", "kind", "text")):
        who = (row["meeting"], row["speaker"])
        words = said.setdefault(who, [])
        if row["kind"] == "w":
            words.append(row["text"])
        elif row["kind"] == "punc" and words:
            words[-1] += row["text"]
            if row["text"] in ".?!":
                yield " ".join(words)
                said[who] = []
        elif row["kind"] == "disfmarker":
            said[who] = []


def _typed_sentences(path: Path) -> Iterator[str]:
    for row in rows_of(path, ("text",)):
        yield from _SENTENCE.findall(row["text"])


def _usable(sentences: Iterator[str]) -> list[str]:
    """Sentences of ordinary words, each once; those with figures, capitals in a row or strange marks are left out."""
    seen: dict[str, str] = {}
    for sentence in sentences:
        text = " ".join(sentence.split()).strip(" -,")
        count = len(text.split())
        if not WORDS[0] <= count <= WORDS[1] or not _ALLOWED.fullmatch(text) or re.search(r"[A-Z]{2}", text):
            continue
        seen.setdefault(text.lower(), text)
    return list(seen.values())
