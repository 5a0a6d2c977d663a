"""The operator's desk: what a person does about quarantine, dead letters and mismatches.

Everything is done by selection, in portions, and can be repeated: whatever breaks in between,
or whoever does the same at once, each post is done once and none is lost.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pipeline_poc.clock import utc_now
from pipeline_poc.dead_letters import DeadLetters
from pipeline_poc.ingestion import take_over
from pipeline_poc.ledger import Ledger
from pipeline_poc.quarantine import DEAD_LETTER, KINDS, KeptRecord, Quarantine, portions, storable
from pipeline_poc.raw_store import RawStore, post_state
from pipeline_poc.reconciliation import FAULTS, Fault, fault_of
from pipeline_poc.records import Entity, HashedRecord, RejectedRecord, StoredVersion
from pipeline_poc.relational_store import RelationalStore
from pipeline_poc.repairs import Remedy, Repairs
from pipeline_poc.selection import Selection

logger = logging.getLogger(__name__)

_CONFLICT = "conflicting_duplicate"
_REPAIRED_AT_ONCE = 1000


@dataclass(slots=True)
class Requeued:
    """What a requeueing did, or would do.

    Attributes:
        selected: Records and posts that the selection names.
        requeued: Those that are in the backlog now.
        still_invalid: Those that are no posts by today's rules either; they stay.
        superseded: Records whose post has a newer content, or another one of the same answer; they stay.
    """

    dry_run: bool
    selected: int = 0
    requeued: int = 0
    still_invalid: int = 0
    superseded: int = 0


@dataclass(slots=True)
class RequeuedBatches:
    """What a requeueing of dead letters did, or would do; counts batches."""

    dry_run: bool
    selected: int = 0
    requeued: int = 0


@dataclass(slots=True)
class DiscardResult:
    """What discarding did, or would do; counts records and posts, or batches."""

    dry_run: bool
    selected: int = 0
    discarded: int = 0


@dataclass(slots=True)
class Repair:
    """What a repair did, or would do.

    Attributes:
        repaired: Posts that are back in the backlog.
        left: Ids by fault: rows without a post, and posts that changed in this very moment.
    """

    dry_run: bool
    repaired: int = 0
    left: dict[Fault, list[int]] = field(default_factory=lambda: {fault: [] for fault in FAULTS})


def requeue_quarantined(
    selection: Selection, quarantine: Quarantine, raw_store: RawStore, ledger: Ledger, *, dry_run: bool
) -> Requeued:
    """Put back into the backlog what is valid by today's rules.

    Posts leave quarantine and their batch; the next tick adopts them. Records are parsed again
    and stored as an ingestion would; the newest one of a post counts.

    Raises:
        ServiceUnavailable: MongoDB is away; repeat it.
    """
    result = Requeued(dry_run)
    for keys in quarantine.selected("record", selection, again=True):
        _requeue_records(quarantine.records(keys), quarantine, raw_store, ledger, result)
    for keys in quarantine.selected("post", selection, again=True):
        posts = quarantine.posts(keys)
        valid = [post.key for post in posts if not isinstance(raw_store.entity.parse(post.record), RejectedRecord)]
        result.selected += len(posts)
        result.still_invalid += len(posts) - len(valid)
        released = len(valid) if dry_run else quarantine.release_posts(valid)
        result.requeued += released
        if not dry_run:
            # Whoever keeps a count of the posts sees by the counters that they have moved.
            ledger.counters.add(utc_now(), {"desk.released": released})
    _log("quarantine requeued", result)
    return result


def _requeue_records(
    records: Sequence[KeptRecord], quarantine: Quarantine, raw_store: RawStore, ledger: Ledger, result: Requeued
) -> None:
    parsed = [(record, _parse_again(record, raw_store.entity)) for record in records]
    valid = [(record, post) for record, post in parsed if post is not None]
    result.selected += len(records)
    result.still_invalid += len(records) - len(valid)
    ids = sorted({post.external_id for _, post in valid})
    # Versions before times: a post that changes in between has another version than is expected here.
    known = raw_store.versions(ids)
    changed_at = quarantine.changed_at(ids)
    chosen: dict[int, HashedRecord] = {}
    accepted: list[tuple[KeptRecord, HashedRecord]] = []
    for record, post in valid:
        if (
            _may_replace(record, post, known, changed_at)
            and chosen.setdefault(post.external_id, post).content_hash == post.content_hash
        ):
            accepted.append((record, post))
    if result.dry_run:
        result.requeued += len(accepted)
        result.superseded += len(valid) - len(accepted)
        return
    pending = [post for post in chosen.values() if not post.is_stored(known)]
    if pending:
        _store(pending, known, raw_store, ledger)
        known = raw_store.versions(ids)
    if accepted:
        # What the source serves is right in the end: it has to be asked for everything, not for changes.
        raw_store.forget_answers()
    done = [record.fingerprint for record, post in accepted if post.is_stored(known)]
    result.superseded += len(valid) - len(done)
    result.requeued += quarantine.remove_records(done)


def _parse_again(record: KeptRecord, entity: Entity) -> HashedRecord | None:
    try:
        post = entity.parse(json.loads(record.payload))
    except (ValueError, RecursionError):
        return None
    if isinstance(post, RejectedRecord):
        return None
    return HashedRecord.of(post)


def _may_replace(
    record: KeptRecord, post: HashedRecord, known: Mapping[int, StoredVersion], changed_at: Mapping[int, datetime]
) -> bool:
    """Return whether a record is the latest that is known of its post."""
    external_id = post.external_id
    if external_id not in known or post.is_stored(known):
        return True
    # Of two contents in one answer the first one counts, and it is stored.
    return record.code != _CONFLICT and not (
        external_id in changed_at and changed_at[external_id] >= record.last_seen_at
    )


def _store(
    posts: Sequence[HashedRecord], known: Mapping[int, StoredVersion], raw_store: RawStore, ledger: Ledger
) -> None:
    """Store posts as an ingestion does: first the intent, then the posts, then the seal."""
    now = utc_now()
    batch_id = ledger.create(len(posts), now)
    if not ledger.seal(batch_id, raw_store.offer(posts, known, batch_id, now)):
        take_over(batch_id, now, raw_store, ledger)


def discard_quarantined(
    selection: Selection, because: str, by: str, quarantine: Quarantine, *, dry_run: bool
) -> DiscardResult:
    """Keep what is selected for the record only: it is shown no more, and counts as quarantined.

    Raises:
        ServiceUnavailable: MongoDB is away; repeat it.
    """
    result = DiscardResult(dry_run)
    now = utc_now()
    for kind in KINDS:
        for keys in quarantine.selected(kind, selection, again=False):
            result.selected += len(keys)
            result.discarded += len(keys) if dry_run else quarantine.discard(kind, keys, because, by, now)
    _log("quarantine discarded", result, because=because, by=by)
    return result


def requeue_dead_letters(
    selection: Selection, dead_letters: DeadLetters, ledger: Ledger, *, dry_run: bool
) -> RequeuedBatches:
    """Put dead letters back into the backlog; the next tick gives them jobs.

    Raises:
        ServiceUnavailable: MongoDB is away; repeat it.
    """
    result = RequeuedBatches(dry_run)
    for letters in dead_letters.selected(selection):
        result.selected += len(letters)
        result.requeued += len(letters) if dry_run else sum(ledger.reopen(letter.id) for letter in letters)
    _log("dead letters requeued", result)
    return result


def discard_dead_letters(
    selection: Selection,
    because: str,
    by: str,
    *,
    dead_letters: DeadLetters,
    quarantine: Quarantine,
    ledger: Ledger,
    dry_run: bool,
) -> DiscardResult:
    """Give batches up: their posts go to quarantine, where they can be requeued or discarded one by one.

    Raises:
        ServiceUnavailable: MongoDB is away; repeat it.
    """
    result = DiscardResult(dry_run)
    for letters in dead_letters.selected(selection):
        result.selected += len(letters)
        for letter in [] if dry_run else letters:
            now = utc_now()
            # Before the batch is closed: posts of a closed batch would be nobody's.
            posts = quarantine.quarantine_batch(letter.id, letter.message, now)
            note = {"reason": storable(because), "at": now, "by": storable(by)}
            if ledger.close(letter.id, now, {"migrated": 0, "quarantined": posts, "discarded": note}):
                result.discarded += 1
                ledger.counters.add(now, {f"quarantined.{DEAD_LETTER}": posts})
        result.discarded += len(letters) if dry_run else 0
    _log("dead letters discarded", result, because=because, by=by)
    return result


def repair(
    faults: Mapping[Fault, Sequence[int]],
    repairs: Repairs,
    ledger: Ledger,
    relational_store: RelationalStore,
    *,
    dry_run: bool,
) -> Repair:
    """Put posts with faults back into the backlog; the next tick adopts them.

    Each is looked at again, and changed only if it still is as it was seen. Rows without a post
    are left: whether to delete them is for a person to decide.

    Args:
        faults: Ids by fault, as a reconciliation reports them.
        repairs: The posts.
        ledger: Says which posts will be migrated anyway.
        relational_store: Is only read.
        dry_run: Change nothing.

    Raises:
        ServiceUnavailable: A store is away; repeat it.
    """
    result = Repair(dry_run)
    suspects = sorted({external_id for ids in faults.values() for external_id in ids})
    for ids in portions(suspects, _REPAIRED_AT_ONCE):
        wrong: dict[Fault, list[Remedy]] = {fault: [] for fault in FAULTS}
        for fault, external_id, remedy in _look(ids, repairs, ledger, relational_store):
            if remedy is None:
                result.left[fault].append(external_id)
            else:
                wrong[fault].append(remedy)
        for fault, remedies in wrong.items():
            for few in portions(remedies):
                changed = len(few) if dry_run else repairs.put_back(few, utc_now())
                result.repaired += changed
                if not dry_run:
                    ledger.counters.add(utc_now(), {"desk.repaired": changed})
                if changed < len(few):
                    result.left[fault] += _still_wrong(few, repairs, ledger, relational_store)
    _log("repaired", result)
    return result


def _look(
    ids: Sequence[int], repairs: Repairs, ledger: Ledger, relational_store: RelationalStore
) -> Iterator[tuple[Fault, int, Remedy | None]]:
    """Yield those of these ids that are wrong now, with what mends each."""
    # In this order, a post that is migrated or stored meanwhile does not look wrong, or is not as it was seen.
    documents = {document["externalId"]: document for document in repairs.documents(ids)}
    rows = {row.external_id: row for row in relational_store.rows(ids)}
    waiting = ledger.waiting_ids()
    for external_id in ids:
        document, row = documents.get(external_id), rows.get(external_id)
        if document is None and row is None:
            continue
        post = post_state(document, repairs.entity) if document is not None else None
        fault = fault_of(post, row, waiting)
        if fault is None:
            continue
        if document is None or post is None:
            yield fault, external_id, None
        else:
            yield fault, external_id, Remedy(document, row.version if row else 0, post.content_hash)


def _still_wrong(
    remedies: Sequence[Remedy], repairs: Repairs, ledger: Ledger, relational_store: RelationalStore
) -> list[int]:
    ids = sorted(remedy.document["externalId"] for remedy in remedies)
    return [external_id for _, external_id, _ in _look(ids, repairs, ledger, relational_store)]


def _log(event: str, result: Any, **details: Any) -> None:
    numbers = {name: getattr(result, name) for name in result.__slots__ if name != "left"}
    logger.info(event, extra=numbers | details)
