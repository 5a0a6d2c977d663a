"""Prunes Dagster's history, which would grow for ever: old runs, events without a run, and results of checks.

Dagster prunes its ticks by itself, and nothing else. For a run it has an API, which forgets its log and, with SQLite,
its file of events; for events that belong to no run, as workers report them, and for results of checks it has none. So
this deletes from Dagster's tables, through Dagster's own connections and table objects, in SQLite and in MySQL alike.
All SQL against Dagster's storage stands here.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dagster import DagsterInstance, DagsterRunStatus, RunsFilter
from dagster._core.instance import RUNLESS_RUN_ID
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    AssetEventTagsTable,
    SqlEventLogStorageTable,
)
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.event_log.sqlite import SqliteEventLogStorage
from sqlalchemy import Column, ColumnElement, Connection, Table, select

_ENDED = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
_MOST_RUNS = 5_000
"""Deleted at once; more, after a change of the setting, take several nights. A day has about 300."""
_CHUNK = 500
"""Rows looked at in one transaction, so that nobody waits for its locks."""
_WITHOUT_RUN = SqlEventLogStorageTable.c.run_id == RUNLESS_RUN_ID


@dataclass(frozen=True, slots=True)
class Pruned:
    """How much was deleted."""

    runs: int
    events: int
    check_results: int

    def sentence(self) -> str:
        """Say it."""
        return f"pruned {self.runs} runs, {self.events} events without a run, {self.check_results} results of checks"


def prune(instance: DagsterInstance, before: datetime) -> Pruned:
    """Delete what ended before a time, but for the newest of its kind; may be repeated after a crash.

    The newest materialization of each asset stays, with its run, and so does the newest result of each check.

    Args:
        instance: Dagster's instance, in SQLite or MySQL.
        before: An aware time.
    """
    events = instance.event_log_storage
    if not isinstance(events, SqlEventLogStorage):
        raise TypeError(f"{type(events).__name__} is not kept in tables")
    kept = _runs_of_the_newest(events)
    ended = instance.get_run_records(
        RunsFilter(statuses=_ENDED, updated_before=before),
        limit=_MOST_RUNS,
        order_by="update_timestamp",
        ascending=True,
    )
    old = [record.dagster_run.run_id for record in ended if record.dagster_run.run_id not in kept]
    for run_id in old:
        _delete_run(instance, events, run_id)
    return Pruned(
        runs=len(old),
        events=_delete_events(events, before),
        check_results=_delete_check_results(events, before),
    )


def _runs_of_the_newest(events: SqlEventLogStorage) -> set[str | None]:
    entries = [record.asset_entry for record in events.get_asset_records()]
    newest = [entry.last_materialization_record for entry in entries]
    return {entry.last_run_id for entry in entries} | {record.run_id for record in newest if record is not None}


def _delete_run(instance: DagsterInstance, events: SqlEventLogStorage, run_id: str) -> None:
    # The run itself last: what is left of one that is gone would never be found.
    events.delete_events(run_id)
    if isinstance(events, SqliteEventLogStorage):
        shard = Path(events.path_for_shard(run_id))
        for path in (shard, *shard.parent.glob(f"{shard.name}-*")):
            path.unlink(missing_ok=True)
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    instance.run_storage.delete_run(run_id)


def _delete_events(events: SqlEventLogStorage, before: datetime) -> int:
    table = SqlEventLogStorageTable
    columns = (table.c.timestamp, table.c.asset_key, table.c.dagster_event_type, table.c.partition)
    if isinstance(events, SqliteEventLogStorage):  # Has each of them twice, in files with numbers of their own.
        _delete_rows(lambda: events.run_connection(RUNLESS_RUN_ID), table, columns, before, _WITHOUT_RUN)
    return _delete_rows(events.index_connection, table, columns, before, _WITHOUT_RUN)


def _delete_check_results(events: SqlEventLogStorage, before: datetime) -> int:
    table = AssetCheckExecutionsTable
    columns = (table.c.evaluation_event_timestamp, table.c.asset_key, table.c.check_name, table.c.partition)
    return _delete_rows(events.index_connection, table, columns, before)


def _delete_rows(
    connect: Callable[[], AbstractContextManager[Connection]],
    table: Table,
    columns: Sequence[Column[Any]],
    before: datetime,
    *only: ColumnElement[bool],
) -> int:
    """Delete the rows of a table that are older than a time, each but the newest of its kind.

    There is no index by time, but numbers grow with it: the walk from the oldest row ends where all are young.

    Args:
        connect: Opens a transaction.
        table: One of Dagster's.
        columns: The time, then what tells the kind.
        before: An aware time.
        only: Conditions for the rows to look at.

    Returns:
        The number of rows that were deleted.
    """
    until = before.astimezone(UTC).replace(tzinfo=None)  # As Dagster stores it.
    newest: dict[tuple[Any, ...], int] = {}
    deleted, last = 0, 0
    while True:
        with connect() as connection:
            query = select(table.c.id, *columns).where(table.c.id > last, *only).order_by(table.c.id).limit(_CHUNK)
            rows = connection.execute(query).all()
            old = [row for row in rows if row[1] < until]
            superseded = []
            for number, _, *kind in old:
                if (older := newest.get(tuple(kind))) is not None:
                    superseded.append(older)
                newest[tuple(kind)] = number
            connection.execute(table.delete().where(table.c.id.in_(superseded)))
            if table is SqlEventLogStorageTable:
                connection.execute(AssetEventTagsTable.delete().where(AssetEventTagsTable.c.event_id.in_(superseded)))
        deleted += len(superseded)
        if len(rows) < _CHUNK or not old:
            return deleted
        last = rows[-1].id
