"""Ingest: source → raw store. Validates, compares by content hash, writes only what differs."""

import hashlib
import heapq
import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pipeline_poc import failpoints, tracing
from pipeline_poc.clock import utc_now
from pipeline_poc.counters import observation
from pipeline_poc.errors import PipelineError, TerminalError, mask_secrets
from pipeline_poc.ledger import Ledger
from pipeline_poc.raw_store import RawStore
from pipeline_poc.records import Entity, HashedRecord, Record, RejectedRecord, reject
from pipeline_poc.source import Answer, Source

logger = logging.getLogger(__name__)

_ANSWER_MAX_AGE = timedelta(hours=24)
"""A source is asked for everything at least so often, whatever it says about changes."""
_UNKNOWN_FIELDS_MAX = 100
"""So many names of unknown fields are counted, and so many characters of each: they end in logs and metadata."""
_STATE_VERSION = 1
"""To be raised when a post is parsed or hashed in another way: makes every answer that is kept useless."""
_SAMPLE = 50
"""Posts of an answer that have to be stored still, for its ETag and digest to be used."""
_CURRENT_SOURCE = "source"


@dataclass(slots=True)
class IngestionResult:
    """What an ingestion did: ``fetched = new + changed + unchanged + quarantined``.

    Attributes:
        not_modified: Nothing changed since the last ingestion: the source said so, or its answer was the same, byte by
            byte.
        served_nothing: The source served an empty list, though posts are stored; they stay.
        batches: Ids of the batches written.
        reasons: Number of quarantined records by reason code.
        unknown_fields: Number of records that had each field which a post does not have.
        missing_fields: Number of records that lacked each field which a post has.
        etag: Of the answer; None where the source serves none.
        latency_s: Until the whole answer was there and checked, in seconds, retries included.
    """

    started_at: datetime = field(default_factory=utc_now)
    fetched: int = 0
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    quarantined: int = 0
    not_modified: bool = False
    served_nothing: bool = False
    batches: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    unknown_fields: Counter[str] = field(default_factory=Counter)
    missing_fields: Counter[str] = field(default_factory=Counter)
    etag: str | None = None
    latency_s: float = 0.0
    duration_s: float = 0.0

    @property
    def accounted(self) -> int:
        """Number of records of which it is known what became of them."""
        return self.new + self.changed + self.unchanged + self.quarantined

    def summary(self) -> dict[str, Any]:
        """Return the numbers under the names that logs, screens and metadata use."""
        return {
            "fetched": self.fetched,
            "new": self.new,
            "changed": self.changed,
            "unchanged": self.unchanged,
            "quarantined": self.quarantined,
            "not_modified": self.not_modified,
            "served_nothing": self.served_nothing,
            "batches": len(self.batches),
            "duration_s": round(self.duration_s, 3),
        }

    def answer(self) -> dict[str, Any] | None:
        """Return what the source's answer was like, to be kept; None where not all of it was looked at."""
        if self.not_modified or self.accounted != self.fetched:
            return None
        return {
            "at": self.started_at,
            "fetched": self.fetched,
            "quarantined": self.quarantined,
            # A list, and ASCII: a source's names may be nothing that MongoDB takes for one.
            "unknownFields": [
                {"name": name.encode("ascii", "backslashreplace").decode(), "records": records}
                for name, records in self.unknown_fields.most_common()
            ],
            "missingFields": [
                {"name": name, "records": records} for name, records in self.missing_fields.most_common()
            ],
        }


@dataclass(slots=True)
class ParsedBatch:
    """Some of the source's records, validated, each id at most once.

    Attributes:
        again: Posts whose id came before in the same answer.
        repeated: Number of those that repeat, word for word, the one that came before.
    """

    posts: dict[int, HashedRecord] = field(default_factory=dict)
    rejected: list[RejectedRecord] = field(default_factory=list)
    again: list[HashedRecord] = field(default_factory=list)
    repeated: int = 0

    @property
    def size(self) -> int:
        """Number of records."""
        return len(self.posts) + len(self.rejected) + len(self.again)


def ingest(source: Source, raw_store: RawStore, ledger: Ledger, *, batch_size: int) -> IngestionResult:
    """Bring the raw store to what the source serves now; idempotent.

    Raises:
        ServiceUnavailable: The source or MongoDB is away; what was stored until then is complete.
        SourceAnswerError: The source answered with something else; nothing was stored.
        TerminalError: The source served records, and none of them is a post.
    """
    result = IngestionResult()
    store_all(read(source, raw_store, result, batch_size=batch_size), raw_store, ledger, result)
    return result


def store_all(
    batches: Generator[ParsedBatch, None, None],
    raw_store: RawStore,
    ledger: Ledger,
    result: IngestionResult,
    *,
    on_progress: Callable[[], None] = lambda: None,
) -> None:
    """Store what `read` yields, and keep how it ended; raises as `ingest` does.

    Args:
        batches: The source's records.
        raw_store: Where the posts go.
        ledger: Where the batches go.
        result: Is added to.
        on_progress: Called after each batch.
    """
    try:
        with tracing.ingesting(), closing(batches):
            for batch in batches:
                with tracing.storing(batch.size):
                    store(batch, raw_store, ledger, result)
                on_progress()
    except PipelineError as error:
        _note_failure(error, raw_store, ledger, result)
        raise
    now = utc_now()
    run = result.summary() | {"started_at": result.started_at}
    raw_store.note_ingestion(now, run=run, error=None, answer=result.answer())
    ledger.counters.add(
        now,
        {
            f"ingestion.{name}": getattr(result, name)
            for name in ("fetched", "new", "changed", "unchanged", "quarantined")
        }
        | {f"quarantined.{code}": count for code, count in result.reasons.items()}
        | {"ingestion.succeeded": 1}
        | observation("ingestion.run", result.duration_s),
    )


def _note_failure(error: PipelineError, raw_store: RawStore, ledger: Ledger, result: IngestionResult) -> None:
    text = f"{type(error).__name__}: {mask_secrets(str(error))}"
    # An answer without a single post is a failure, and says most of all what has become of the source.
    answer = result.answer() if result.fetched else None
    try:
        raw_store.note_ingestion(utc_now(), run=None, error=text, answer=answer)
    except PipelineError as store_error:
        logger.warning("failure not noted", extra={"error": str(store_error)})
        return
    ledger.counters.add(utc_now(), {"ingestion.failed": 1})


def read(
    source: Source, raw_store: RawStore, result: IngestionResult, *, batch_size: int
) -> Generator[ParsedBatch, None, None]:
    """Fetch and yield batches of records to `store`, one at a time.

    A batch counts as stored when the next one is asked for; when all are, the answer's ETag and digest are kept.
    Raises as `ingest` does.
    """
    state_key = hashlib.blake2b(source.url.encode(), digest_size=16).hexdigest()
    state = _load_state(state_key, raw_store)
    last = state if _is_usable(state, raw_store) else {}
    asked_at = time.perf_counter()
    with source.fetch(last.get("etag"), last.get("digest")) as answer:
        result.latency_s = time.perf_counter() - asked_at
        result.etag = answer.etag
        result.not_modified = answer.not_modified
        result.fetched = answer.count
        result.served_nothing = not answer.not_modified and not answer.count and raw_store.has_posts()
        seen = _SeenIds()
        sample: list[HashedRecord] = []
        for batch in _parsed(answer, raw_store.entity, result, batch_size):
            yield (checked := _checked(batch, seen, raw_store))
            sample = _sample(sample, checked)
        _finish(result)
        if not answer.not_modified:
            values = {
                "etag": answer.etag,
                "digest": answer.digest,
                "ingestedAt": result.started_at,
                "version": _STATE_VERSION,
                "sample": [hashed.external_id for hashed in sample],
            }
            if not raw_store.save_state(state_key, {"url": source.shown_url, **values}, before=state):
                # Another ingestion ended meanwhile: which answer is the newer one, nobody knows.
                raw_store.drop_state(state_key)


def store(batch: ParsedBatch, raw_store: RawStore, ledger: Ledger, result: IngestionResult) -> None:
    """Store what is new or changed of a batch: first the intent, then the posts, then the seal."""
    failpoints.reach("ingestion.fetched")
    now = utc_now()
    raw_store.quarantine_records(batch.rejected, now)
    result.quarantined += len(batch.rejected)
    result.reasons.update(record.code for record in batch.rejected)

    known = raw_store.versions(list(batch.posts))
    pending = [post for post in batch.posts.values() if not post.is_stored(known)]
    result.unchanged += len(batch.posts) - len(pending) + batch.repeated
    if not pending:
        return
    batch_id = ledger.create(len(pending), now, tracing.traceparent())
    failpoints.reach("ingestion.intended")
    stored = raw_store.store(pending, known, batch_id, now)
    failpoints.reach("ingestion.stored")
    if not ledger.seal(batch_id, stored.new + stored.changed):
        # Somebody took this ingestion for dead and moved its posts on; the stragglers follow.
        take_over(batch_id, now, raw_store, ledger, traceparent=tracing.traceparent())
    failpoints.reach("ingestion.sealed")
    result.batches.append(batch_id)
    result.new += stored.new
    result.changed += stored.changed
    result.unchanged += stored.unchanged


def take_over(
    batch_id: str, created_at: datetime, raw_store: RawStore, ledger: Ledger, *, traceparent: str | None = None
) -> int:
    """Move what an ingestion stored, but never sealed, into a new batch of its trace, and abandon the old one.

    Returns:
        Number of posts moved. Repeating is safe: what comes late is moved the next time.
    """
    moved = 0
    if raw_store.has_unmigrated(batch_id):
        heir = ledger.create(0, created_at, traceparent)
        moved = raw_store.move(batch_id, heir)
        ledger.seal(heir, moved)
    ledger.abandon(batch_id, utc_now())
    return moved


def _load_state(state_key: str, raw_store: RawStore) -> dict[str, Any]:
    """Return what is kept about a source; once another one is ingested, no answer says any more what is stored."""
    current = raw_store.load_state(_CURRENT_SOURCE)
    if current.get("key") != state_key:
        raw_store.forget_answers()
        raw_store.save_state(_CURRENT_SOURCE, {"key": state_key, "ingestedAt": utc_now()}, before=current)
    return raw_store.load_state(state_key)


def _is_usable(state: dict[str, Any], raw_store: RawStore) -> bool:
    """Return whether the answer that is kept says still what is stored."""
    if state.get("version") != _STATE_VERSION or abs(utc_now() - state["ingestedAt"]) > _ANSWER_MAX_AGE:
        return False
    # Somebody may have emptied the store since, or a part of it. An empty list, which has no sample, would hide
    # that the source goes on serving nothing.
    sample = state.get("sample", [])
    stored = raw_store.versions(sample)
    return bool(sample) and all(external_id in stored for external_id in sample)


def _parsed(answer: Answer, entity: Entity, result: IngestionResult, batch_size: int) -> Iterator[ParsedBatch]:
    batch = ParsedBatch()
    for record in answer.records():
        _add(batch, record, entity, result)
        if batch.size >= batch_size:
            yield batch
            batch = ParsedBatch()
    if batch.size:
        yield batch


def _sample(sample: list[HashedRecord], batch: ParsedBatch) -> list[HashedRecord]:
    """Return a few posts of all batches so far: those of the lowest hashes, which are spread evenly over them."""
    return heapq.nsmallest(_SAMPLE, [*sample, *batch.posts.values()], key=lambda hashed: hashed.content_hash)


def _add(batch: ParsedBatch, record: Any, entity: Entity, result: IngestionResult) -> None:
    for name in entity.unknown_fields(record):
        shown = name[:_UNKNOWN_FIELDS_MAX]
        if shown in result.unknown_fields or len(result.unknown_fields) < _UNKNOWN_FIELDS_MAX:
            result.unknown_fields[shown] += 1
    post = entity.parse(record)
    if isinstance(post, RejectedRecord):
        batch.rejected.append(post)
        result.missing_fields.update(entity.missing_fields(record))
        return
    hashed = HashedRecord.of(post)
    if batch.posts.setdefault(post.external_id, hashed) is not hashed:
        batch.again.append(hashed)


def _checked(batch: ParsedBatch, seen: "_SeenIds", raw_store: RawStore) -> ParsedBatch:
    """Take out of a batch what repeats or contradicts a record that came before in the same answer."""
    earlier = [external_id for external_id in batch.posts if seen.add(external_id)]
    known = raw_store.versions(earlier)
    batch.again[:0] = [batch.posts.pop(external_id) for external_id in earlier]
    for hashed in batch.again:
        first = batch.posts.get(hashed.external_id)
        if hashed.is_stored(known) if first is None else hashed.content_hash == first.content_hash:
            batch.repeated += 1
        else:
            batch.rejected.append(_conflict(hashed.record))
    return batch


def _conflict(post: Record) -> RejectedRecord:
    message = f"id {post.external_id} came before in the same answer, with another content"
    return reject(post.model_dump(by_alias=True), "conflicting_duplicate", message)


def _finish(result: IngestionResult) -> None:
    result.duration_s = (utc_now() - result.started_at).total_seconds()
    logger.info(
        "ingestion finished",
        extra=result.summary() | {"reasons": dict(result.reasons), "unknown_fields": dict(result.unknown_fields)},
    )
    if result.served_nothing:
        logger.warning("the source served nothing, though posts are stored; they stay")
    if result.accounted != result.fetched:
        raise PipelineError(f"{result.fetched} records were fetched, but {result.accounted} are accounted for")
    if result.fetched and result.quarantined == result.fetched:
        reasons = ", ".join(f"{code}: {count}" for code, count in result.reasons.most_common())
        raise TerminalError(f"All {result.fetched} records of the source were quarantined ({reasons})")


class _SeenIds:
    """A set of ids that takes a bit for each where they are dense."""

    _PAGE_BITS = 10

    def __init__(self) -> None:
        self._pages: dict[int, int] = {}

    def add(self, external_id: int) -> bool:
        """Add an id; return whether it was there already."""
        page, bit = external_id >> self._PAGE_BITS, 1 << (external_id & ((1 << self._PAGE_BITS) - 1))
        bits = self._pages.get(page, 0)
        self._pages[page] = bits | bit
        return bool(bits & bit)
