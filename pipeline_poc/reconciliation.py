"""Reconcile: compare the raw store with the relational store, post by post, by content hash.

Both are streamed by id and merged, in flat memory. What looks wrong is looked at again, since
posts and rows may move while they are compared; only what stays wrong is reported.
"""

import logging
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import chain
from typing import Any, Literal

from pipeline_poc.clock import utc_now
from pipeline_poc.errors import PipelineError, mask_secrets
from pipeline_poc.ledger import Ledger
from pipeline_poc.raw_store import PostState, RawStore
from pipeline_poc.relational_store import RelationalStore, RowState
from pipeline_poc.state import State

logger = logging.getLogger(__name__)

Fault = Literal["missing", "extra", "stale", "wrongly_flagged"]
FAULTS: tuple[Fault, ...] = ("missing", "extra", "stale", "wrongly_flagged")
"""
missing          flagged migrated, but there is no row
extra            a row without a post
stale            flagged migrated, but the row has another content
wrongly_flagged  not migrated, not quarantined, and in no batch that anybody will migrate; or the
                 stored content hash is not that of the content
"""

_KEPT = "reconciliation"
_IDS_KEPT = 1000
"""Ids of each fault that are kept; a document of the server is bounded."""
_SIGN_OF_LIFE = timedelta(seconds=5)
_GIVEN_UP_AFTER = timedelta(minutes=2)
"""Second looks at many ids take a while, without a sign of life."""
_SECOND_LOOKS = 3
_SECOND_LOOK_AFTER_S = 0.5
_PART = 100
"""Ids in a part of a sample: far fewer questions than ids, and enough places to find what is wrong in some."""
_SUSPECTS_MAX = 10_000
"""Where more ids look wrong, all are compared again: stores take no longer lists of ids."""


@dataclass(slots=True)
class Reconciliation:
    """The comparison's outcome; ``stored = migrated + backlog + quarantined``.

    Attributes:
        rows: Rows in the relational store.
        faults: Ids by kind of fault, ascending.
        outdated: Ids of posts that are flagged migrated, though the row has an older version, whatever its content.
    """

    started_at: datetime = field(default_factory=utc_now)
    stored: int = 0
    migrated: int = 0
    backlog: int = 0
    quarantined: int = 0
    rows: int = 0
    faults: dict[Fault, list[int]] = field(default_factory=lambda: {fault: [] for fault in FAULTS})
    outdated: list[int] = field(default_factory=list)
    duration_s: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every post is where it says it is."""
        return not any(self.faults.values())

    def as_dict(self) -> dict[str, Any]:
        """Return the outcome with the ids of all faults, as JSON values."""
        return self.summary() | {"ids": self.faults}

    def summary(self) -> dict[str, Any]:
        """Return the numbers under the names that logs, screens and metadata use."""
        return {
            "ok": self.ok,
            "stored": self.stored,
            "migrated": self.migrated,
            "backlog": self.backlog,
            "quarantined": self.quarantined,
            "rows": self.rows,
            **{fault: len(ids) for fault, ids in self.faults.items()},
            "duration_s": round(self.duration_s, 3),
        }


def reconcile(
    raw_store: RawStore,
    ledger: Ledger,
    relational_store: RelationalStore,
    *,
    parts: Sequence[range] | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Reconciliation:
    """Compare all posts with all rows; writes nothing.

    Args:
        raw_store: The truth.
        ledger: Says which posts will still be migrated.
        relational_store: Is compared.
        parts: The ids to compare, ascending; None means all.
        on_progress: Called now and then with the number of ids compared so far.

    Raises:
        ServiceUnavailable: A store is away.
    """
    result = Reconciliation()
    waiting = ledger.waiting_ids()
    pairs = (
        _merge(raw_store.states(), relational_store.rows())
        if parts is None
        else chain.from_iterable(_merge(raw_store.states(part), relational_store.rows(part)) for part in parts)
    )
    for compared, (external_id, post, row) in enumerate(pairs, start=1):
        result.stored += post is not None
        result.rows += row is not None
        if post is not None:
            result.migrated += post.migrated
            result.quarantined += post.quarantined and not post.migrated
            result.backlog += not post.migrated and not post.quarantined
        fault = fault_of(post, row, waiting)
        if fault is not None:
            result.faults[fault].append(external_id)
        if _is_outdated(post, row):
            result.outdated.append(external_id)
        if compared % 1000 == 0:
            on_progress(compared)
    _look_again(result, raw_store, ledger, relational_store)
    result.duration_s = (utc_now() - result.started_at).total_seconds()
    logger.info("reconciled", extra=result.summary() | {f"{name}_ids": ids[:20] for name, ids in result.faults.items()})
    return result


@dataclass(frozen=True, slots=True)
class LastReconciliation:
    """The latest comparison, as it is kept in MongoDB.

    Attributes:
        state: ``none`` where there never was one.
        summary: Of the last one that was completed, which may be one before this; None where there is none.
        ids: Its faults, the first 1,000 of each kind.
        error: Why this one failed.
    """

    state: Literal["none", "running", "done", "failed"]
    started_at: datetime | None = None
    ended_at: datetime | None = None
    summary: dict[str, Any] | None = None
    ids: dict[Fault, list[int]] | None = None
    error: str | None = None


def keep(compare: Callable[[Callable[[int], None]], Reconciliation], state: State) -> Reconciliation:
    """Run a comparison and keep how it goes and ends, for others to look at.

    Args:
        compare: Runs it; takes what is to be called now and then while it does.
        state: Where it is kept.

    Raises:
        PipelineError: Whatever the comparison raises.
    """
    started_at = utc_now()
    state.save(_KEPT, {"state": "running", "startedAt": started_at, "aliveAt": started_at, "error": None})
    signs_of_life = [started_at]

    def show_life(_: int) -> None:
        now = utc_now()
        if now - signs_of_life[-1] > _SIGN_OF_LIFE:
            signs_of_life[:] = [now]
            state.save(_KEPT, {"aliveAt": now})

    try:
        result = compare(show_life)
    except BaseException as error:
        with suppress(PipelineError):  # The comparison's own error says more.
            text = mask_secrets(f"{type(error).__name__}: {error}")
            state.save(_KEPT, {"state": "failed", "endedAt": utc_now(), "error": text})
        raise
    ids = {fault: ids[:_IDS_KEPT] for fault, ids in result.faults.items()}
    state.save(_KEPT, {"state": "done", "endedAt": utc_now(), "summary": result.summary(), "ids": ids})
    return result


def last(state: State) -> LastReconciliation:
    """Return how the latest comparison went; one whose process died counts as failed."""
    kept = state.load(_KEPT)
    known: LastReconciliation = LastReconciliation(
        state=kept.get("state", "none"),
        started_at=kept.get("startedAt"),
        ended_at=kept.get("endedAt"),
        summary=kept.get("summary"),
        ids=kept.get("ids"),
        error=kept.get("error"),
    )
    if known.state == "running" and utc_now() - kept["aliveAt"] > _GIVEN_UP_AFTER:
        return replace(known, state="failed", ended_at=kept["aliveAt"], error="its process gave no sign of life")
    return known


def _look_again(result: Reconciliation, raw_store: RawStore, ledger: Ledger, relational_store: RelationalStore) -> None:
    for _ in range(_SECOND_LOOKS):
        suspects = sorted({external_id for ids in (*result.faults.values(), result.outdated) for external_id in ids})
        if not suspects:
            return
        time.sleep(_SECOND_LOOK_AFTER_S)
        waiting = ledger.waiting_ids()
        again: dict[Fault, list[int]] = {fault: [] for fault in FAULTS}
        outdated: list[int] = []
        suspected, asked = set(suspects), suspects if len(suspects) <= _SUSPECTS_MAX else None
        for external_id, post, row in _merge(raw_store.states(asked), relational_store.rows(asked)):
            fault = fault_of(post, row, waiting)
            if fault is not None and external_id in suspected:
                again[fault].append(external_id)
            if _is_outdated(post, row) and external_id in suspected:
                outdated.append(external_id)
        result.faults, result.outdated = again, outdated


def fault_of(post: PostState | None, row: RowState | None, waiting: Collection[str]) -> Fault | None:
    """Return what is wrong with a post and its row; None where they are as they should be.

    Args:
        post: None where there is none.
        row: None where there is none.
        waiting: Ids of the batches that are not closed.
    """
    if post is None:
        return "extra"
    if post.migrated:
        if row is None:
            return "missing"
        if row.content_hash != post.content_hash:
            return "stale"
        return "wrongly_flagged" if post.quarantined or not post.hash_is_right else None
    if post.quarantined:
        return None
    # A post in no batch yet is adopted by the next tick; one in a finished batch is lost.
    orphaned = post.batch_id is not None and post.batch_id not in waiting
    return "wrongly_flagged" if orphaned or not post.hash_is_right else None


def _is_outdated(post: PostState | None, row: RowState | None) -> bool:
    if post is None or row is None or post.version is None:
        return False
    return post.migrated and row.version < post.version


def spread(ids: range, size: int) -> list[range]:
    """Return short parts of a range, spread over all of it, with about so many ids together.

    Where each part is, chance decides: what one sample misses, a later one finds.

    Args:
        ids: All of them, where they are no more than ``size``.
        size: At least 1.
    """
    if len(ids) <= size:
        return [ids[start : start + _PART] for start in range(0, len(ids), _PART)]
    length = min(_PART, size)
    stride = len(ids) // (size // length)
    places = range(0, len(ids) - stride + 1, stride)
    starts = [place + random.randrange(stride - length + 1) for place in places]  # noqa: S311 - nothing here is secret
    return [ids[start : start + length] for start in starts]


def _merge(
    posts: Iterable[PostState], rows: Iterable[RowState]
) -> Iterator[tuple[int, PostState | None, RowState | None]]:
    """Join two streams that ascend by id; yields every id once, with what each stream has of it."""
    post_stream, row_stream = iter(posts), iter(rows)
    post, row = next(post_stream, None), next(row_stream, None)
    while post is not None and row is not None:
        if post.external_id < row.external_id:
            yield post.external_id, post, None
            post = next(post_stream, None)
        elif row.external_id < post.external_id:
            yield row.external_id, None, row
            row = next(row_stream, None)
        else:
            yield post.external_id, post, row
            post, row = next(post_stream, None), next(row_stream, None)
    while post is not None:
        yield post.external_id, post, None
        post = next(post_stream, None)
    while row is not None:
        yield row.external_id, None, row
        row = next(row_stream, None)
