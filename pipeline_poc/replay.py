"""Replay: migrated posts → backlog, so that their rows are written again, whatever became of those."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pipeline_poc import failpoints
from pipeline_poc.clock import utc_now
from pipeline_poc.ingestion import take_over
from pipeline_poc.ledger import Ledger
from pipeline_poc.mongo import Document
from pipeline_poc.post_selection import PostSelection
from pipeline_poc.quarantine import portions
from pipeline_poc.raw_store import RawStore, post_state
from pipeline_poc.records import Entity, RejectedRecord
from pipeline_poc.relational_store import RelationalStore
from pipeline_poc.repairs import Remedy, Repairs

logger = logging.getLogger(__name__)

_AT_ONCE = 1000
"""Posts in one bulk write."""


@dataclass(slots=True)
class Replay:
    """What a replay did, or would do.

    Attributes:
        selected: Migrated posts that were selected.
        replayed: Those that are in the backlog now; the others changed in this very moment, and are there anyway.
        waiting: Selected posts that are in the backlog already.
        quarantined: Selected posts that are in quarantine, and stay there.
        batches: Ids of the batches in which they are migrated.
    """

    dry_run: bool
    selected: int = 0
    replayed: int = 0
    waiting: int = 0
    quarantined: int = 0
    batches: list[str] = field(default_factory=list)
    duration_s: float = 0.0

    def summary(self) -> dict[str, Any]:
        """Return the numbers under the names that logs, screens and metadata use."""
        return {
            "dry_run": self.dry_run,
            "selected": self.selected,
            "replayed": self.replayed,
            "waiting": self.waiting,
            "quarantined": self.quarantined,
            "batches": len(self.batches),
            "duration_s": round(self.duration_s, 3),
        }


def replay(
    selection: PostSelection,
    raw_store: RawStore,
    repairs: Repairs,
    ledger: Ledger,
    relational_store: RelationalStore,
    *,
    batch_size: int,
    dry_run: bool,
    on_progress: Callable[[Replay], None] = lambda _: None,
) -> Replay:
    """Put migrated posts back into the backlog, in batches of their own.

    Each gets a version above that of its row, so that the row is written again, even if it is as it should be. A crash
    in between loses nothing: what is done is done, and the next tick takes over the batch that was not sealed.

    Args:
        selection: Which posts; those in the backlog or in quarantine are counted and left alone.
        raw_store: Holds the posts.
        repairs: Changes them, as far as they are as they were seen.
        ledger: Gets the batches.
        relational_store: Is only read, for the versions of the rows.
        batch_size: Most posts in a batch.
        dry_run: Change nothing.
        on_progress: Called after each batch.

    Raises:
        ServiceUnavailable: A store is away; repeat it.
    """
    result, began_at = Replay(dry_run), utc_now()
    if not dry_run:
        relational_store.ping()

    def is_migrated(document: Document) -> bool:
        if document.get("migrated") is True and document.get("quarantine") is None:
            return True
        if document.get("quarantine") is not None:
            result.quarantined += 1
        else:
            result.waiting += 1
        return False

    for documents in portions(filter(is_migrated, raw_store.documents(selection)), batch_size):
        result.selected += len(documents)
        if not dry_run:
            _put_back(documents, raw_store, repairs, ledger, relational_store, result=result)
        on_progress(result)
    result.duration_s = (utc_now() - began_at).total_seconds()
    logger.info("replayed", extra=result.summary())
    return result


def _put_back(
    documents: Sequence[Document],
    raw_store: RawStore,
    repairs: Repairs,
    ledger: Ledger,
    relational_store: RelationalStore,
    *,
    result: Replay,
) -> None:
    """Put posts into a batch of their own: first the intent, then the posts, then the seal."""
    now = utc_now()
    batch_id = ledger.create(len(documents), now)
    result.batches.append(batch_id)
    stamped = adoptable = 0
    for few in portions(documents, _AT_ONCE):
        rows = relational_store.rows([document["externalId"] for document in few])
        versions = {row.external_id: row.version for row in rows}
        fit: list[Remedy] = []
        unfit: list[Remedy] = []
        for document in few:
            state = post_state(document, raw_store.entity)
            remedy = Remedy(document, versions.get(state.external_id, 0), state.content_hash)
            (fit if _can_be_migrated(document, raw_store.entity) else unfit).append(remedy)
        stamped += repairs.put_back(fit, now, batch_id)
        adoptable += repairs.put_back(unfit, now)
    failpoints.reach("replay.stamped")
    if not ledger.seal(batch_id, stamped):
        take_over(batch_id, now, raw_store, ledger)
    result.replayed += stamped + adoptable
    # Whoever keeps a count of the posts sees by the counters that they have moved.
    ledger.counters.add(utc_now(), {"desk.replayed": stamped + adoptable})


def _can_be_migrated(document: Document, entity: Entity) -> bool:
    """Return whether a document is complete; adoption completes, or quarantines, what somebody else wrote."""
    is_valid = not isinstance(entity.parse(entity.as_served(document)), RejectedRecord)
    return is_valid and isinstance(document.get("ingestedAt"), datetime)
