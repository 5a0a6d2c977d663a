"""How large everything is day by day, and whether what must stay as it is does so."""

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pymongo
import pymysql
import redis
from rich.table import Table

_TOLERANCE = 0.02
"""By so much a number may be larger on the last day: one tick or job more or less at midnight."""
_TOLERANCE_BYTES = 0.25
"""Stores take room ahead, and leave holes."""
_SLACK = 3
_SLACK_BYTES = 10_000_000
_BYTES = "bytes"

Sizes = dict[str, int]
"""Numbers by name; the name of a number of bytes ends with that word."""


@dataclass(frozen=True, slots=True)
class Growth:
    """The sizes at the end of each day.

    Attributes:
        days: One after the other.
        settled: The first day on which as much goes as comes, counted from 1.
        free: How the names of those begin that may grow.
    """

    days: Sequence[Sizes]
    settled: int
    free: Collection[str] = ()

    def must_be_flat(self, name: str) -> bool:
        """Return whether it may not grow."""
        return not name.startswith(tuple(self.free))

    def grows(self, name: str) -> bool:
        """Return whether the last day has more of it than the first settled one, beyond the tolerance."""
        before, after = self.days[self.settled - 1].get(name, 0), self.days[-1].get(name, 0)
        is_bytes = name.endswith(_BYTES)
        share, slack = (_TOLERANCE_BYTES, _SLACK_BYTES) if is_bytes else (_TOLERANCE, _SLACK)
        return after > before + max(share * before, slack)

    def problems(self) -> list[str]:
        """Say what grows and must not.

        Raises:
            ValueError: There are too few days for that.
        """
        if len(self.days) <= self.settled:
            raise ValueError(f"{len(self.days)} days are too few: it takes {self.settled} until anything is flat")
        return [
            f"{name} grows: {self.days[self.settled - 1].get(name, 0):,} on day {self.settled}, "
            f"{self.days[-1].get(name, 0):,} on day {len(self.days)}"
            for name in self.days[-1]
            if self.must_be_flat(name) and self.grows(name)
        ]

    def table(self) -> Table:
        """Show what there is of everything that is not always empty."""
        shown = Table("", *(f"day {number}" for number in range(1, len(self.days) + 1)), "must be flat", "is")
        for column in shown.columns[1:-2]:
            column.justify = "right"
        for name in self.days[-1]:
            values = [day.get(name, 0) for day in self.days]
            if any(values):
                cells = (f"{value / 1e6:,.1f} M" if name.endswith(_BYTES) else f"{value:,}" for value in values)
                verdict = "grows" if self.grows(name) else "flat"
                shown.add_row(name, *cells, "yes" if self.must_be_flat(name) else "no", verdict)
        return shown


def mysql_sizes(label: str, url: Mapping[str, Any], database: str, folder: Path | None) -> Sizes:
    """Count the rows of each table, and the bytes of all of them on disk.

    Args:
        label: Stands before each name.
        url: Arguments of a connection.
        database: Its name.
        folder: Where the server has its data; None: nobody asks for bytes.
    """
    with closing(pymysql.connect(**url, database=database)) as connection, connection.cursor() as cursor:
        cursor.execute("SHOW TABLES")
        tables = [row[0] for row in cursor.fetchall()]
        sizes = {}
        for table in tables:
            cursor.execute(f"SELECT COUNT(*) FROM `{table}`")  # noqa: S608 # nosec B608
            sizes[f"{label}, {table}"] = int(cast(tuple[int], cursor.fetchone())[0])
    if folder:
        sizes[f"{label}, event log, {_BYTES}"] = _bytes(folder / database, "event_logs.*")
        sizes[f"{label}, on disk, {_BYTES}"] = _bytes(folder / database, "*")
    return sizes


def sqlite_sizes(label: str, folder: Path) -> Sizes:
    """Count the rows of each table of Dagster's databases for all runs, the files in the folder, and their bytes."""
    sizes = {}
    for path in sorted(folder.rglob("*.db")):
        if path.stem not in ("runs", "index", "schedules"):
            continue  # The events of one run.
        with closing(sqlite3.connect(path)) as connection:
            for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                count = connection.execute(f'SELECT COUNT(*) FROM "{table}"').fetchone()[0]  # noqa: S608 # nosec B608
                sizes[f"{label}, {path.stem}, {table}"] = int(count)
    # Files beside a database come and go with its connections.
    sizes[f"{label}, files"] = sum(path.suffix == ".db" for path in folder.rglob("*"))
    sizes[f"{label}, event log, {_BYTES}"] = _bytes(folder / "history" / "runs", "*")
    sizes[f"{label}, on disk, {_BYTES}"] = _bytes(folder, "*")
    return sizes


def mongo_sizes(label: str, url: str, database: str, folder: Path | None) -> Sizes:
    """Count the documents of each collection, and the bytes of all of them on disk.

    Args:
        label: Stands before each name.
        url: Of the server.
        database: Its name.
        folder: Where the server has its data; None: nobody asks for bytes.
    """
    with pymongo.MongoClient[dict[str, Any]](url) as client:
        names = sorted(client[database].list_collection_names())
        sizes = {f"{label}, {name}": client[database][name].count_documents({}) for name in names}
    if folder:
        sizes[f"{label}, on disk, {_BYTES}"] = _bytes(folder, "*")
    return sizes


def redis_sizes(label: str, url: str) -> Sizes:
    """Return the number of keys, and the memory that is used."""
    with redis.Redis.from_url(url) as client:
        memory = cast(dict[str, Any], client.info("memory"))
        return {
            f"{label}, keys": cast(int, client.dbsize()),
            f"{label}, used_memory, {_BYTES}": int(memory["used_memory"]),
        }


def _bytes(folder: Path, pattern: str) -> int:
    """Sum up what files take on disk, where holes take nothing."""
    total = 0
    for path in folder.rglob(pattern):
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:  # Removed meanwhile.
            continue
    return total
