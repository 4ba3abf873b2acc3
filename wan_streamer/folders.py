"""What a folder holds, told by the names of its files: nothing is loaded, so that inputs can be checked first.

`need`       raises unless a folder holds what a command reads; the error names the command that makes it
`describe`   what a path holds, in a few words
`holds_run`  whether a training run has been there
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from wan_streamer.errors import DataError
from wan_streamer.files import parse_json

SPLITS = ("train", "valid")  # that training reads
SHARDS, LATENTS = "shard-*.tar", "*.safetensors"
CODECS = ("audio", "video")
RUN = ("trainer.safetensors", "trainer.json")  # the state of a run, by how many processes it has
ARRAYS = tuple(f"{who}_{what}{end}.npy" for what in ("audio", "frames") for who in ("agent", "other")
               for end in ("", "_valid"))  # fmt: skip
AGENT_FILES = ("config.json", "model.safetensors", "audio_vae.safetensors", "video_vae.safetensors", "tokenizer.json")
SHOWN = 3  # files that are named if nothing is known of a folder


@dataclass(frozen=True)
class Kind:
    """What a folder can hold.

    words   for it;  made  how to get it, as an error ends;  holds  whether a folder does
    """

    words: str
    made: str
    holds: Callable[[Path], bool]


def _has(folder: Path, *names: str) -> bool:
    return all((folder / name).is_file() for name in names)


def _splits(folder: Path, pattern: str) -> list[str]:
    return [split for split in SPLITS if any((folder / split).glob(pattern))]


def _is_ears(folder: Path) -> bool:
    more = ("tokenizer.json", "audio_vae.safetensors")  # what an agent has beside them
    return _has(folder, "config.json", "model.safetensors") and not any(_has(folder, name) for name in more)


def _encoded(folder: Path, tasks: bool) -> bool:
    whole = _splits(folder, LATENTS) == list(SPLITS) and _has(folder, *(f"{kind}_vae.safetensors" for kind in CODECS))
    return whole and _are_tasks(folder / "train") == tasks


def _are_tasks(folder: Path) -> bool:
    """Whether the first encoded conversation of a folder is a task; a damaged file is told when it is read."""
    try:
        with safe_open(min(folder.glob(LATENTS)), "np") as file:
            return "task" in parse_json((file.metadata() or {})["labels"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return False


KINDS: dict[str, Kind] = {
    "conversations": Kind(
        "encoded conversations (train and valid) with their codecs",
        "make them with 'wan-streamer encode SHARDS DIR --codecs AUDIO_DIR --codecs VIDEO_DIR'",
        lambda folder: _encoded(folder, tasks=False),
    ),
    "tasks": Kind(
        "encoded tasks (train and valid) with their codecs",
        "make them with 'wan-streamer simulate SHARDS/train --tasks --hours H', the same for SHARDS/valid with"
        " '--split valid', and 'wan-streamer encode SHARDS DIR --codecs AUDIO_DIR --codecs VIDEO_DIR'",
        lambda folder: _encoded(folder, tasks=True),
    ),
    "shards": Kind(
        "shards in train and valid",
        "make them with 'wan-streamer simulate SHARDS/train --hours H' and 'wan-streamer simulate SHARDS/valid"
        " --hours H --split valid'",
        lambda folder: _splits(folder, SHARDS) == list(SPLITS),
    ),
    "codec data": Kind(
        "sounds and faces for codecs",
        "make them with 'wan-streamer simulate DIR --codecs'",
        lambda folder: _has(folder, *ARRAYS),
    ),
    "agent": Kind(
        "an agent",
        "make one with 'wan-streamer train duplex --data DIR --out DIR'",
        lambda folder: _has(folder, *AGENT_FILES),
    ),
    "ears": Kind(
        "ears", "make them with 'wan-streamer train ears --data DIR --out RUN': they are in RUN/ears", _is_ears
    ),
    "eyes": Kind(
        "eyes",
        "make them with 'wan-streamer train eyes --out RUN': they are in RUN/eyes",
        lambda folder: _has(folder, "config.json", "eyes.safetensors"),
    ),
    "codec": Kind(
        "a codec",
        "make one with 'wan-streamer train codec --codec audio --data DIR --out DIR' (or video)",
        lambda folder: any(_has(folder, f"{kind}_vae.safetensors") for kind in CODECS),
    ),
    "corpus": Kind(
        "a corpus of speech for 'wan-streamer train ears'",
        "make one with 'wan-streamer corpus DIR --texts DIR'",
        lambda folder: any(path.with_suffix(".pcm").is_file() for path in folder.glob("*.jsonl")),
    ),
}


def need(folder: Path, kind: str) -> None:
    """Raise `DataError` unless `folder` holds this kind (a key of `KINDS`)."""
    if not (folder.is_dir() and KINDS[kind].holds(folder)):
        raise DataError(f"{folder}: {expected(kind, folder)}")


def expected(kind: str, folder: Path) -> str:
    """The words of an error: what was expected, what is there, and what makes what was expected."""
    known = KINDS[kind]
    return f"expected {known.words}, found {describe(folder)}; {known.made}"


def holds_run(folder: Path) -> bool:
    """Whether a training run has left its state in a folder."""
    return any(_has(folder, name) for name in RUN)


def describe(path: Path) -> str:
    """What is at a path, such as "nothing", "an agent" or "shards, which are not encoded"."""
    if not path.is_dir():
        return "a file" if path.exists() else "nothing"
    names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    if not names:
        return "an empty folder"
    for kind in KINDS.values():
        if kind is not KINDS["codec"] and kind.holds(path):
            return kind.words
    return _part(path) or f"other files ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"


def _part(folder: Path) -> str:
    """What a folder holds a part of, "" if nothing is known of it."""
    more = ("model.safetensors", "tokenizer.json")  # than a codec has
    if KINDS["codec"].holds(folder) and any(_has(folder, name) for name in more):
        return f"an agent without {next(name for name in AGENT_FILES if not _has(folder, name))}"
    if KINDS["codec"].holds(folder) and not _splits(folder, LATENTS):
        return KINDS["codec"].words
    if holds_run(folder):
        made = [kind for kind in ("ears", "eyes") if KINDS[kind].holds(folder / kind)]
        return (
            f"a run whose {made[0]} are in {folder / made[0]}"
            if made
            else "a run that has not ended (it has no weights yet)"
        )
    for pattern, words in ((SHARDS, "shards"), (LATENTS, "encoded conversations")):
        if splits := _splits(folder, pattern):
            return f"{words} in {' and '.join(splits)}" + (" without codecs" if splits == list(SPLITS) else " only")
        if any(folder.glob(f"shard-{pattern.removeprefix('shard-')}")):  # other things are safetensors too
            return f"{words} of one split (name the folder above it, with train and valid)"
    if arrays := [name for name in ARRAYS if _has(folder, name)]:
        return f"{len(arrays)} of {len(ARRAYS)} arrays of sounds and faces"
    return ""
