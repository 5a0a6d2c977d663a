"""A post's passport: everything that is known of one post, in both stores and on the queue."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from pipeline_poc.errors import ServiceUnavailable
from pipeline_poc.ledger import Batch, Ledger
from pipeline_poc.migration_queue import JobInfo, MigrationQueue
from pipeline_poc.mongo import Document
from pipeline_poc.quarantine import meaning
from pipeline_poc.raw_store import PostState, RawStore, post_state
from pipeline_poc.reconciliation import Fault, fault_of
from pipeline_poc.records import Entity, content_hash
from pipeline_poc.relational_store import RelationalStore, RowState

PostStage = Literal["migrated", "backlog", "quarantined", "unknown"]

_SECOND_LOOKS = 3
_SECOND_LOOK_AFTER_S = 0.1
_ID_MAX = 2**63 - 1
"""Larger numbers are no ids that a store could hold."""


@dataclass(frozen=True, slots=True)
class QuarantineDetails:
    """Why a post is in quarantine."""

    reason: str
    meaning: str
    message: str
    at: datetime | None
    is_discarded: bool


@dataclass(slots=True)
class Passport:
    """What is known of a post.

    Attributes:
        state: ``unknown`` where the raw store does not hold it.
        first_seen_at: When it first arrived.
        changed_at: When this version arrived.
        batch: The one in which this version is migrated; None where there is none, or it is forgotten.
        batch_id: Its id, also where the ledger has forgotten it.
        job: Of that batch; None where the queue does not know it.
        row: All columns; None where there is no row.
        agrees: Whether both stores are as they should be; None where that can't be told.
        verdict: Why.
        away: The error of each store that could not be asked.
    """

    external_id: int
    state: PostStage = "unknown"
    first_seen_at: datetime | None = None
    changed_at: datetime | None = None
    content_hash: str | None = None
    version: int | None = None
    batch_id: str | None = None
    batch: Batch | None = None
    job: JobInfo | None = None
    row: dict[str, Any] | None = None
    quarantine: QuarantineDetails | None = None
    agrees: bool | None = None
    verdict: str = ""
    away: dict[str, str] = field(default_factory=dict)


def passport(
    external_id: int,
    raw_store: RawStore,
    ledger: Ledger,
    queue: Callable[[], MigrationQueue],
    relational_store: Callable[[], RelationalStore],
) -> Passport | None:
    """Collect what is known of a post; None where neither store knows it.

    Args:
        external_id: The post's id in the source.
        raw_store: Holds the post.
        ledger: Holds its batch.
        queue: Opens the queue, which may be away.
        relational_store: Opens the relational store, which may be away.

    Raises:
        ServiceUnavailable: MongoDB is away.
    """
    if abs(external_id) > _ID_MAX:
        return None
    result = _look(external_id, raw_store, ledger, queue, relational_store)
    for _ in range(_SECOND_LOOKS):
        # A post that moves while it is looked at may look wrong.
        if result is None or result.agrees is not False:
            break
        time.sleep(_SECOND_LOOK_AFTER_S)
        result = _look(external_id, raw_store, ledger, queue, relational_store)
    return result


def _look(
    external_id: int,
    raw_store: RawStore,
    ledger: Ledger,
    queue: Callable[[], MigrationQueue],
    relational_store: Callable[[], RelationalStore],
) -> Passport | None:
    result = Passport(external_id)
    document = raw_store.document(external_id)
    if document is not None:
        _describe(result, document, ledger)
    if result.batch_id is not None:
        try:
            result.job = queue().job(result.batch_id)
        except ServiceUnavailable as error:
            result.away["Redis"] = str(error)
    try:
        result.row = relational_store().row(external_id)
    except ServiceUnavailable as error:
        result.away["relational store"] = str(error)
        result.verdict = "the relational store is away"
        return result
    if document is None and result.row is None:
        return None
    post = post_state(document, raw_store.entity) if document is not None else None
    waiting = {result.batch.id} if result.batch is not None and result.batch.state != "closed" else set()
    fault = fault_of(post, _row_state(raw_store.entity, result.row), waiting)
    result.agrees = fault is None
    result.verdict = _verdict(fault, post, result)
    return result


def _describe(result: Passport, document: Document, ledger: Ledger) -> None:
    quarantine, batch_id = document.get("quarantine"), document.get("batchId")
    result.state = "backlog"
    if document.get("migrated") is True:
        result.state = "migrated"
    elif quarantine is not None:
        result.state = "quarantined"
    result.first_seen_at = _time(document.get("ingestedAt"))
    result.changed_at = _time(document.get("changedAt"))
    digest, version = document.get("contentHash"), document.get("version")
    # Documents that somebody else wrote may hold anything there.
    result.content_hash = digest if isinstance(digest, str) else None
    result.version = int(version) if isinstance(version, int) and not isinstance(version, bool) else None
    result.batch_id = batch_id if isinstance(batch_id, str) else None
    result.batch = ledger.get(result.batch_id) if result.batch_id is not None else None
    if isinstance(quarantine, dict):
        code = str(quarantine.get("code"))
        result.quarantine = QuarantineDetails(
            reason=code,
            meaning=meaning(code),
            message=str(quarantine.get("message", "")),
            at=_time(quarantine.get("at")),
            is_discarded=quarantine.get("discarded") is not None,
        )


def _row_state(entity: Entity, row: dict[str, Any] | None) -> RowState | None:
    if row is None:
        return None
    digest = content_hash(*[row[name] for name in entity.stored_as.values()])
    return RowState(row["externalId"], digest, row["version"] or 0)


def _verdict(fault: Fault | None, post: PostState | None, result: Passport) -> str:
    if fault is None:
        return {
            "migrated": "it is migrated, and the row has the same content",
            "backlog": "it waits to be migrated",
            "quarantined": "it is quarantined, and is not migrated before a person requeues it",
            "unknown": "",
        }[result.state]
    if fault != "wrongly_flagged" or post is None:
        return {
            "missing": "it is flagged migrated, but there is no row",
            "extra": "there is a row, but no post",
            "stale": "it is flagged migrated, but the row has another content",
            "wrongly_flagged": "",
        }[fault]
    if not post.hash_is_right:
        return "its stored content hash is not that of its content"
    if post.migrated:
        return "it is flagged migrated, and quarantined at once"
    return f"it waits in batch {post.batch_id}, which is closed or gone"


def _time(value: Any) -> datetime | None:
    return value if isinstance(value, datetime) else None
