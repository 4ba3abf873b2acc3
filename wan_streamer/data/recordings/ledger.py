"""What became of every recording: the report, which is also what a later run goes on from.

`Result`          one recording: accepted with its shard, or rejected with the reason
`Ledger`          all of them, in OUT_DIR/report.json, together with the shards in their places
`report_tables`   the report for a terminal
"""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from wan_streamer.data.shards import SPLITS, shard_name
from wan_streamer.errors import DataError
from wan_streamer.files import parse_json, write_json

REPORT = "report.json"
SHOWN = 20  # rows of a table on the terminal; the file has all


@dataclass(frozen=True)
class Result:
    """One recording.

    reason         why it was rejected
    key            changes with the files and the options; an equal key need not be converted again
    shard          "train/shard-00003.tar"
    moved_from     where the shard lay before, until it is moved
    tail_seconds   what was dropped at the end because it is shorter than 2 s
    """

    name: str
    kind: str
    accepted: bool = False
    reason: str = ""
    key: str = ""
    split: str = ""
    shard: str = ""
    moved_from: str = ""
    episodes: int = 0
    seconds: float = 0.0
    tail_seconds: float = 0.0
    warnings: tuple[str, ...] = ()


class Ledger:
    """The entries of `out_dir`. Every change is written before the next recording begins.

    Raises `DataError` if the report there cannot be read or belongs to another source.
    """

    def __init__(self, out_dir: Path, source: Path, options: dict[str, Any], ignored: dict[str, int]) -> None:
        self.out_dir, self.source, self.options, self.ignored = out_dir, str(source.resolve()), options, ignored
        self.results: dict[str, Result] = {}
        out_dir.mkdir(parents=True, exist_ok=True)
        path = out_dir / REPORT
        if path.exists():
            self._load(path)

    def _load(self, path: Path) -> None:
        try:
            old = parse_json(path.read_bytes())
            source = old["source"]
            rows = [Result(**{**row, "warnings": tuple(row["warnings"])}) for row in old["items"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: expected the report of an earlier run ({error}); choose another folder"
            ) from error
        if source != self.source:
            raise DataError(f"{path}: holds the recordings of {source}, not of {self.source}; choose another folder")
        for row in rows:
            if row.moved_from and (self.out_dir / row.moved_from).exists():  # stopped between writing and moving
                os.replace(self.out_dir / row.moved_from, self.out_dir / row.shard)
            self.results[row.name] = replace(row, moved_from="")

    def finished(self, name: str, key: str) -> Result | None:
        """The result of an earlier run, if it is still good."""
        old = self.results.get(name)
        good = old is not None and old.accepted and old.key == key and (self.out_dir / old.shard).is_file()
        return old if good else None

    def accept(self, result: Result, shard: Path) -> None:
        """Enter a recording and move its `shard` into place."""
        self._remove_old(result.name)
        path = self._free(result.split)
        self.results[result.name] = replace(result, shard=path)
        # in this order a stop in between leaves an entry without a shard, which is converted again
        self.save()
        (self.out_dir / path).parent.mkdir(exist_ok=True)
        os.replace(shard, self.out_dir / path)

    def reject(self, result: Result) -> None:
        """Enter why a recording cannot be used. What an earlier version of it left is removed."""
        self._remove_old(result.name)
        self.results[result.name] = result
        self.save()

    def _remove_old(self, name: str) -> None:
        old = self.results.pop(name, None)
        if old is not None and old.shard:
            (self.out_dir / old.shard).unlink(missing_ok=True)

    def _numbers(self, split: str) -> list[int]:
        names = (path.stem.partition("-")[2] for path in (self.out_dir / split).glob("shard-*.tar"))
        return sorted(int(name) for name in names if name.isdecimal())

    def _free(self, split: str) -> str:
        taken = set(self._numbers(split))
        number = next(number for number in range(len(taken) + 1) if number not in taken)
        return f"{split}/{shard_name(number)}"

    def close(self, present: set[str]) -> None:
        """After the last recording: note what is gone from the source, and close gaps in the shard numbers."""
        for name, result in list(self.results.items()):
            if name not in present and not result.accepted:
                del self.results[name]
            elif name not in present:
                note = "no longer in the source; its shard was kept"
                self.results[name] = replace(result, warnings=tuple(dict.fromkeys((*result.warnings, note))))
        for split in SPLITS:
            while (numbers := self._numbers(split)) and numbers[-1] != len(numbers) - 1:
                last = f"{split}/{shard_name(numbers[-1])}"
                owner = next((r for r in self.results.values() if r.shard == last), None)
                if owner is None:
                    break  # not made by this program
                path = self._free(split)
                self.results[owner.name] = replace(owner, shard=path, moved_from=last)
                self.save()
                os.replace(self.out_dir / last, self.out_dir / path)
                self.results[owner.name] = replace(owner, shard=path)
        self.save()

    def report(self) -> dict[str, Any]:
        """The content of report.json."""
        rows = [self.results[name] for name in sorted(self.results)]
        accepted = [row for row in rows if row.accepted]
        splits = {
            split: {
                "recordings": sum(row.split == split for row in accepted),
                "episodes": sum(row.episodes for row in accepted if row.split == split),
                "seconds": round(sum(row.seconds for row in accepted if row.split == split), 2),
            }
            for split in SPLITS
        }
        empty = [split for split in ("train", "valid") if accepted and not splits[split]["recordings"]]
        return {
            "source": self.source,
            "options": self.options,
            "recordings": len(rows),
            "accepted": len(accepted),
            "rejected": len(rows) - len(accepted),
            "seconds": round(sum(row.seconds for row in accepted), 2),
            "tails_dropped": sum(row.tail_seconds > 0 for row in accepted),
            "tail_seconds": round(sum(row.tail_seconds for row in accepted), 2),
            "splits": splits,
            "warnings": [f"{split} is empty, and training needs it; see --split" for split in empty],
            "ignored_files": self.ignored,
            "items": [{**asdict(row), "warnings": list(row.warnings)} for row in rows],
        }

    def save(self) -> None:
        write_json(self.out_dir / REPORT, self.report(), indent=1)


def report_tables(report: dict[str, Any]) -> list:
    """Tables of rich: totals, then what was rejected, then the warnings."""
    from rich.table import Table
    from rich.text import Text

    totals = Table(
        title=f"{report['accepted']} recordings accepted, {report['rejected']} rejected", title_justify="left"
    )
    for column in ("split", "recordings", "episodes", "minutes"):
        totals.add_column(column, justify="left" if column == "split" else "right")
    for split, row in report["splits"].items():
        totals.add_row(split, str(row["recordings"]), str(row["episodes"]), f"{row['seconds'] / 60:.1f}")
    rejected = [(item["name"], item["reason"]) for item in report["items"] if not item["accepted"]]
    warned = [(item["name"], warning) for item in report["items"] for warning in item["warnings"]]
    warned += [("", warning) for warning in report["warnings"]]
    tables = [totals]
    for title, rows in (("Rejected", rejected), ("Warnings", warned)):
        if rows:
            table = Table(title=title, title_justify="left", show_header=False)
            for name, text in rows[:SHOWN]:
                table.add_row(Text(name), Text(text))
            if len(rows) > SHOWN:
                table.add_row("...", f"{len(rows) - SHOWN} more in {REPORT}")
            tables.append(table)
    return tables
