"""Finds two-sided recordings in a folder and says which file is whose.

`find_items`   folder -> `Found`: the items, the files without a partner, what was ignored
`Item`         one recording: two `Side`s
`Side`         where the sound, the picture and the words of one participant are

Three layouts are known, and may be mixed in one folder; docs/recordings.md shows them:
pairs (NAME.user.mp4 + NAME.agent.mp4, or NAME/user.mp4 + NAME/agent.mp4), dual-channel files, Seamless Interaction.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from wan_streamer.data.recordings.transcripts import SUFFIXES
from wan_streamer.errors import DataError
from wan_streamer.folders import describe

SOUND = frozenset((
    ".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".oga", ".opus", ".wma", ".aif", ".aiff", ".au", ".caf", ".mka",
    ".amr",
))  # fmt: skip
PICTURE = frozenset((
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".flv", ".wmv", ".3gp",
    ".ogv", ".mxf", ".asf", ".vob", ".gif",
))  # fmt: skip
NOT_MEDIA = frozenset((
    ".json", ".jsonl", ".vtt", ".srt", ".txt", ".csv", ".md", ".npz", ".npy", ".png", ".jpg", ".jpeg", ".pdf", ".xml",
    ".html", ".ass",
))  # fmt: skip
ARCHIVES = frozenset((
    ".tar", ".zip", ".tgz", ".gz", ".7z", ".rar",
))  # fmt: skip
SIDES = ("user", "agent")
SEAMLESS = re.compile(r"^(V\d+_S\d+)_(I\d+)_(P\d+[A-Z]?)$")
SEAMLESS_SPLITS = {"train": "train", "dev": "valid", "test": "test"}


@dataclass(frozen=True)
class Side:
    """One participant of a recording.

    sound, picture   files; the same one if a film holds both. picture None: no camera; `sound` may turn out silent
    channel          0 or 1: the channel of `sound` that is this side; None: all channels are
    half             0 or 1: the left or right half of `picture` is this side; None: all of it
    words            transcripts, the better one first
    speech           a file of speech spans (Seamless Interaction)
    """

    sound: Path
    picture: Path | None
    channel: int | None = None
    half: int | None = None
    words: tuple[Path, ...] = ()
    speech: Path | None = None


@dataclass(frozen=True)
class Item:
    """One recording.

    name    unique: its path in the source folder without what says side and type
    kind    pair, dual or seamless
    group   recordings of one group go to the same split
    split   the split that the layout itself gives (Seamless Interaction), or None
    files   all files that it is made of
    """

    name: str
    kind: str
    user: Side
    agent: Side
    group: str
    split: str | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        sides = (self.user, self.agent)
        files = [p for s in sides for p in (s.sound, s.picture, *s.words, s.speech) if p is not None]
        return tuple(dict.fromkeys(files))

    def swapped(self) -> "Item":
        """The same recording with the other participant as the agent."""
        return replace(self, user=self.agent, agent=self.user)


@dataclass(frozen=True)
class Found:
    """items;  unusable   {name: reason};  ignored   {".csv": 3}: files of no use here, by ending"""

    items: list[Item]
    unusable: dict[str, str]
    ignored: dict[str, int]


@dataclass
class _Pile:
    """The files of one recording, sorted by participant, while the folder is read."""

    media: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    words: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    speech: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    split: str | None = None


def find_items(source: Path, user_channel: int = 0, split_picture: bool = False, skip: Path | None = None) -> Found:
    """All recordings under `source`, in order of name.

    user_channel    the channel of dual-channel files that is the user (0 is left)
    split_picture   dual-channel files show the user in the left half of the picture and the agent in the right one
    skip            a folder inside `source` that is left out (where the result goes)

    Raises `DataError` if `source` is not a folder.
    """
    if not source.is_dir():
        raise DataError(
            f"{source}: expected a folder of recordings (docs/recordings.md shows how to name them), found"
            f" {describe(source)}"
        )
    pairs: dict[str, _Pile] = defaultdict(_Pile)
    seamless: dict[str, _Pile] = defaultdict(_Pile)
    single: list[Path] = []
    rest: list[Path] = []
    for path in _files(source, skip):
        if (match := SEAMLESS.match(path.stem)) and path.suffix.lower() in SOUND | PICTURE | {".json", ".jsonl"}:
            pile = seamless[f"{match[1]}_{match[2]}"]
            _put_seamless(pile, match[3], path, path.relative_to(source).parts, rest)
        elif (found := _side(path, source)) is not None:
            name, side = found
            if path.suffix.lower() in SUFFIXES:
                pairs[name].words[side].append(path)
            elif path.suffix.lower() in NOT_MEDIA | ARCHIVES:
                rest.append(path)
            else:
                pairs[name].media[side].append(path)
        elif path.suffix.lower() in SOUND | PICTURE:
            single.append(path)
        else:
            rest.append(path)
    items: dict[str, Item] = {}
    unusable: dict[str, str] = {}
    for name, pile in seamless.items():
        _add_seamless(name, pile, items, unusable)
    transcripts = {name: pile.words for name, pile in pairs.items() if not pile.media}
    for name, pile in pairs.items():
        if pile.media:
            _add_pair(name, pile, items, unusable)
    for path in single:
        _add_dual(path, source, transcripts, user_channel, split_picture, items, unusable)
    rest += [path for words in transcripts.values() for paths in words.values() for path in paths]
    for path in rest:
        if path.suffix.lower() in ARCHIVES:
            unusable[path.relative_to(source).as_posix()] = "an archive; unpack it first"
    ignored = Counter(path.suffix.lower() or path.name for path in rest if path.suffix.lower() not in ARCHIVES)
    return Found([items[name] for name in sorted(items)], dict(sorted(unusable.items())), dict(sorted(ignored.items())))


def _files(source: Path, skip: Path | None) -> Iterator[Path]:
    """All files that are not hidden, in order. Links to folders are followed, each folder once."""
    seen = {os.path.realpath(skip)} if skip is not None else set()
    for folder, folders, names in os.walk(source, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _side(path: Path, source: Path) -> tuple[str, str] | None:
    """(name of the recording, side) of NAME.user.EXT or NAME/user.EXT; None for other names."""
    stem, _, side = path.stem.rpartition(".")
    if stem and side.lower() in SIDES and path.suffix:
        return (path.parent / stem).relative_to(source).as_posix(), side.lower()
    if path.stem.lower() in SIDES and path.suffix:
        name = path.parent.relative_to(source).as_posix()
        return (path.parent.resolve().name if name == "." else name), path.stem.lower()
    return None


def _one_side(who: str, media: list[Path], words: list[Path], speech: list[Path]) -> Side:
    """Raises `DataError` if it is not clear which file is which."""
    films = [path for path in media if path.suffix.lower() not in SOUND]
    sounds = [path for path in media if path.suffix.lower() in SOUND]
    if len(films) > 1 or len(sounds) > 1:
        raise DataError(f"{who}: expected one film or sound file, got {', '.join(path.name for path in media)}")
    if not media:
        raise DataError(f"no partner: there is nothing of the {who}")
    picture = films[0] if films else None
    ranked = sorted(words, key=lambda path: (*SUFFIXES, ".jsonl").index(path.suffix.lower()))
    return Side(sounds[0] if sounds else films[0], picture, words=tuple(ranked), speech=speech[0] if speech else None)


def _add_pair(name: str, pile: _Pile, items: dict[str, Item], unusable: dict[str, str]) -> None:
    try:
        user, agent = (_one_side(side, pile.media[side], pile.words[side], []) for side in SIDES)
        items[name] = Item(name, "pair", user, agent, group=name)
    except DataError as error:
        unusable[name] = str(error)


def _add_dual(
    path: Path,
    source: Path,
    transcripts: dict[str, dict[str, list[Path]]],
    user_channel: int,
    split_picture: bool,
    items: dict[str, Item],
    unusable: dict[str, str],
) -> None:
    name = path.relative_to(source).with_suffix("").as_posix()
    if name in items or name in unusable:
        name = path.relative_to(source).as_posix()  # talk.wav beside talk.mp4, or beside a pair called talk
    words = transcripts.pop(name, {})
    sides = []
    for half, (side, channel) in enumerate(zip(SIDES, (user_channel, 1 - user_channel), strict=True)):
        picture = path if split_picture and path.suffix.lower() in PICTURE else None
        ranked = sorted(words.get(side, []), key=lambda p: SUFFIXES.index(p.suffix.lower()))
        sides.append(Side(path, picture, channel, half if picture else None, tuple(ranked)))
    items[name] = Item(name, "dual", sides[0], sides[1], group=name)


def _put_seamless(pile: _Pile, who: str, path: Path, parts: tuple[str, ...], rest: list[Path]) -> None:
    folders = {part.lower() for part in parts[:-1]}
    if "annotations" in folders or folders & {"1p-is", "1p-r", "3p-is", "3p-r", "3p-v"}:
        rest.append(path)
        return
    if path.suffix.lower() in SOUND | PICTURE:
        pile.media[who].append(path)
        pile.split = next((SEAMLESS_SPLITS[part] for part in parts[:-1] if part in SEAMLESS_SPLITS), None)
    elif "vad" in folders:
        pile.speech[who].append(path)
    else:
        pile.words[who].append(path)


def _add_seamless(name: str, pile: _Pile, items: dict[str, Item], unusable: dict[str, str]) -> None:
    people = sorted(pile.media)
    try:
        if len(people) != 2:
            found = f"only {people[0]}" if len(people) == 1 else ", ".join(people) or "no film and no sound"
            raise DataError(f"no partner: expected two participants, found {found}")
        user, agent = (_one_side(who, pile.media[who], pile.words[who], pile.speech[who]) for who in people)
        group = name.rpartition("_")[0]  # people of one session meet in several interactions
        items[name] = Item(name, "seamless", user, agent, group, pile.split)
    except DataError as error:
        unusable[name] = str(error)
