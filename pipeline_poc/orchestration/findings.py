"""What the asset checks find, each by looking at the stores through what the rest of the pipeline uses, too."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dagster import AssetCheckSeverity, MetadataValue

from pipeline_poc.clock import utc_now
from pipeline_poc.counters import number
from pipeline_poc.ledger import Batch
from pipeline_poc.mongo import Document
from pipeline_poc.raw_store import Counts
from pipeline_poc.reconciliation import Reconciliation, spread
from pipeline_poc.services import Services

WARN, ERROR = AssetCheckSeverity.WARN, AssetCheckSeverity.ERROR

SHARE_WARN = 0.05
"""Of an answer's records: a few bad ones are data; one in twenty is a source that has changed."""
SAMPLE = 2000
"""Ids that are looked at each time: enough to see what is wrong with one in a hundred, in a fraction of a second."""

_SEVERE = 4
"""A lag of so many times the limit is an error, not a warning."""
_SHOWN = 20
_NAMED = 3
_UNSEEN = "no answer of the source was looked at yet"


class Finding(NamedTuple):
    """What a check found.

    Attributes:
        wrong: What is wrong, and what to do about it; nothing where all is well.
        numbers: For people and plots.
        severity: Of what is wrong.
    """

    wrong: list[str]
    numbers: Mapping[str, Any]
    severity: AssetCheckSeverity = WARN


def last_ingestion(services: Services, last: Document) -> Finding:
    """How the last ingestion went, and when."""
    limit_s = services.settings.source_warn_s
    errors, succeeded_at = last.get("errorsSince", 0), last.get("lastSuccessAt")
    served_nothing = bool(last.get("lastRun", {}).get("served_nothing"))
    numbers: dict[str, Any] = {"errors_since": errors, "served_nothing": served_nothing, "limit_s": limit_s}
    wrong = []
    if succeeded_at is None:
        wrong.append("no ingestion has gone well yet")
    else:
        numbers["age_s"] = age_s = (utc_now() - succeeded_at).total_seconds()
        if age_s > limit_s:
            wrong.append(f"the last ingestion that went well is older than {limit_s:g} s")
    if errors:
        numbers["last_error"] = last.get("lastError")
        wrong.append(f"{errors} failed since")
    if served_nothing:
        wrong.append("the source served nothing, though records of it are stored")
    return Finding(wrong, numbers)


def quarantine_rate(services: Services, last: Document) -> Finding:
    """How much of what the source serves is no valid record."""
    answer = last.get("lastAnswer")
    if answer is None:
        return Finding([_UNSEEN], {})
    totals, _ = services.ledger.counters.read()
    groups = services.quarantine.groups()
    in_all = _share(number(totals, "ingestion.quarantined"), number(totals, "ingestion.fetched"))
    share = _share(answer["quarantined"], answer["fetched"])
    wrong = []
    if share > SHARE_WARN:
        wrong.append(f"{share:.1%} of the last answer's {answer['fetched']:,} records were quarantined")
    if in_all > SHARE_WARN:
        wrong.append(f"{in_all:.1%} of all records ever served were quarantined")
    numbers = {
        "share_of_last_answer": share,
        "share_in_all": in_all,
        "limit": SHARE_WARN,
        "waiting": sum(group.count for group in groups),
        "reasons": MetadataValue.json({group.reason: group.count for group in groups[:_SHOWN]}),
        "pipeline": MetadataValue.url(f"{services.entity.web_path}/pipeline"),
    }
    return Finding(wrong, numbers)


def source_schema(last: Document) -> Finding:
    """Whether the source has other fields than the model."""
    answer = last.get("lastAnswer")
    if answer is None:
        return Finding([_UNSEEN], {})
    served = answer["fetched"]
    unknown = {field["name"]: field["records"] for field in answer["unknownFields"]}
    missing = {field["name"]: field["records"] for field in answer["missingFields"]}
    # A record that lacks a field is a bad record; where many do, the source has changed.
    vanished = [name for name, records in missing.items() if _share(records, served) > SHARE_WARN]
    wrong = []
    if unknown:
        wrong.append(f"fields that the model does not have: {_few(sorted(unknown))}")
    if vanished:
        wrong.append(f"fields that have vanished: {_few(sorted(vanished))}")
    numbers = {
        "unknown": len(unknown),
        "vanished": len(vanished),
        "records": served,
        "answered_at": MetadataValue.timestamp(answer["at"]),
        "unknown_fields": MetadataValue.json(dict(list(unknown.items())[:_SHOWN])),
        "missing_fields": MetadataValue.json(missing),
    }
    return Finding(wrong, numbers)


def unique_ids(services: Services) -> Finding:
    """Whether an id may come twice, and does."""
    if services.raw_store.keeps_ids_unique():
        return Finding([], {"repeated": 0, "unique_index": True})
    repeated = services.raw_store.repeated_ids(limit=_SHOWN)
    wrong = ["the unique index of externalId is gone: `pipeline-poc db upgrade` makes it anew"]
    if repeated:
        wrong = [
            f"ids with several documents, such as {_few(repeated)}: remove all but one, then `pipeline-poc db upgrade`"
        ]
    numbers = {"repeated": len(repeated), "unique_index": False} | _ids(services, repeated)
    return Finding(wrong, numbers, ERROR if repeated else WARN)


def documents_fit(services: Services) -> Finding:
    """Which documents of a sample have another shape than MongoDB was told."""
    parts = spread(services.raw_store.id_range(), SAMPLE)
    misfits = services.raw_store.misfits(parts, limit=_SHOWN)
    wrong = [f"documents that do not fit, such as those with the ids {_few(misfits)}"] if misfits else []
    return Finding(wrong, {"misfits": len(misfits), "ids_looked_at": sum(map(len, parts))} | _ids(services, misfits))


def lag(services: Services) -> Finding:
    """The age of the oldest record that is not migrated."""
    limit_s = services.settings.lag_warn_s
    backlog, mode = services.ledger.backlog(), services.control().mode
    lag_s = backlog.lag_s(utc_now())
    wrong = []
    if lag_s > limit_s:
        wrong.append(f"a record waits longer than {limit_s:g} s")
        if mode != "running":
            wrong.append(f"the migration is {mode}")
    numbers = {
        "lag_s": lag_s,
        "limit_s": limit_s,
        "backlog": backlog.posts,
        "batches": backlog.batches,
        "most_attempts": backlog.most_attempts,
        "oldest_batch": backlog.oldest_id or "none",
        "mode": mode,
    }
    return Finding(wrong, numbers, ERROR if lag_s > _SEVERE * limit_s else WARN)


def dead_letters(services: Services) -> Finding:
    """How many batches wait for a person."""
    groups = services.dead_letters.groups()
    batches = sum(group.batches for group in groups)
    wrong = [f"{batches} batches wait for a person: `pipeline-poc dead-letters list`"] if batches else []
    reasons = {group.reason: group.batches for group in groups[:_SHOWN]}
    numbers = {
        "dead_letters": batches,
        "records": sum(group.posts for group in groups),
        "reasons": MetadataValue.json(reasons),
    }
    return Finding(wrong, numbers)


class Census(NamedTuple):
    """How many there are of everything, counted in an order in which nothing looks wrong that only moves meanwhile.

    Attributes:
        rows_before: Counted before the documents; `rows` after them.
        is_idle: Nobody knew of any work, neither before nor after the count.
    """

    rows_before: int
    counts: Counts
    rows: int
    is_idle: bool


def take_census(services: Services) -> Census:
    """Count documents and rows, which takes time."""
    # A flag comes after its row, a row after its document.
    was_idle = not services.ledger.waiting_ids()
    rows_before = services.relational_store.count()
    counts = services.raw_store.counts()
    rows = services.relational_store.count()
    return Census(rows_before, counts, rows, was_idle and not services.ledger.waiting_ids())


def nothing_is_stuck(services: Services, census: Census) -> Finding:
    """Which batches have lost their worker, run or ingestion unnoticed by a tick, and how many records their batch."""
    silent, filling = _silent(services), _never_sealed(services)
    forgotten = census.counts.backlog if census.is_idle else 0
    wrong = []
    if silent:
        wrong.append(f"{len(silent)} batches give no sign of life: the sensor's next tick frees them")
    if filling:
        wrong.append(f"{len(filling)} batches were never completed: the sensor's next tick takes them over")
    if forgotten:
        wrong.append(f"{forgotten} records wait in no batch of the ledger: `pipeline-poc repair` puts them back")
    numbers = {
        "silent": len(silent),
        "never_completed": len(filling),
        "forgotten_records": forgotten,
        "batches": MetadataValue.json([batch.id for batch in (silent + filling)[:_SHOWN]]),
    }
    return Finding(wrong, numbers, ERROR if forgotten else WARN)


def conservation(census: Census) -> Finding:
    """Whether each record and each row is accounted for."""
    counts, rows = census.counts, census.rows
    accounted = counts.migrated + counts.backlog + counts.quarantined
    wrong = []
    if counts.stored != accounted:
        wrong.append(f"{counts.stored:,} records are stored, but {accounted:,} are migrated, wait or are quarantined")
    if counts.migrated > rows:
        wrong.append(f"{counts.migrated - rows:,} records are flagged migrated and have no row")
    if census.rows_before > counts.stored:
        wrong.append(f"{census.rows_before - counts.stored:,} rows have no document")
    if wrong:
        wrong.append("`pipeline-poc reconcile` finds which, `pipeline-poc repair` mends them")
    numbers = {
        "stored": counts.stored,
        "migrated": counts.migrated,
        "backlog": counts.backlog,
        "quarantined": counts.quarantined,
        "rows": rows,
    }
    return Finding(wrong, numbers, ERROR)


def content_matches(services: Services, compared: Reconciliation) -> Finding:
    """Which documents and rows of a comparison disagree."""
    found = {fault: ids for fault, ids in compared.faults.items() if ids}
    wrong = [f"{len(ids):,} {fault}, such as {_few(ids)}" for fault, ids in found.items()]
    if wrong:
        wrong.append("`pipeline-poc repair` mends them")
    numbers: dict[str, Any] = {name: value for name, value in compared.summary().items() if name not in _EQUATION}
    numbers |= {"documents_compared": compared.stored, "rows_compared": compared.rows}
    first = [external_id for ids in found.values() for external_id in ids]
    shown: dict[str, list[int]] = {fault: ids[:_SHOWN] for fault, ids in found.items()}
    numbers |= _ids(services, first) | ({"ids": MetadataValue.json(shown)} if shown else {})
    return Finding(wrong, numbers, ERROR)


_EQUATION = {"ok", "stored", "migrated", "backlog", "quarantined", "rows"}
"""What of a comparison tells about the whole, and not about what was compared."""


def no_stale_rows(services: Services, compared: Reconciliation) -> Finding:
    """Which rows of a comparison have an older version than the one that is flagged migrated."""
    stale, wrong = compared.outdated, []
    if stale:
        such = f"{len(stale):,} rows are older than what is flagged migrated, such as {_few(stale)}"
        wrong.append(f"{such}: `pipeline-poc replay` migrates them again")
    numbers = {"stale_rows": len(stale), "documents_compared": compared.stored}
    return Finding(wrong, numbers | _ids(services, stale), ERROR)


def _silent(services: Services) -> list[Batch]:
    begun, timeout_s = services.ledger.begun(), services.settings.heartbeat_timeout_s
    silent = [batch for batch in begun if not batch.is_alive(utc_now(), timeout_s)]
    if not silent:
        return []
    # What waits for its next attempt needs no sign of life; only Redis knows.
    jobs = services.queue.snapshot()
    return [batch for batch in silent if batch.id not in jobs.queued | jobs.scheduled]


def _never_sealed(services: Services) -> list[Batch]:
    now, limit_s = utc_now(), services.settings.filling_timeout_s
    filling = services.ledger.batches("filling")
    return [batch for batch in filling if abs((now - batch.created_at).total_seconds()) > limit_s]


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _few(values: Sequence[object]) -> str:
    return ", ".join(map(str, values[:_NAMED])) + (", …" if len(values) > _NAMED else "")


def _ids(services: Services, ids: Sequence[object]) -> dict[str, Any]:
    """Return the first ids, and where to read about the first of them; nothing where there are none."""
    if not ids:
        return {}
    shown: dict[str, Any] = {"ids": MetadataValue.json([*map(str, ids[:_SHOWN])])}
    numeric = next((external_id for external_id in ids if isinstance(external_id, int)), None)
    if numeric is not None:
        shown["passport"] = MetadataValue.url(f"{services.entity.web_path}/posts/{numeric}")
    return shown
