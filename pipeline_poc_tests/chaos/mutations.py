"""Promises broken on purpose: each mutation is a mistake that the fault suite has to find."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutation:
    """A mistake in the code of the pipeline.

    Attributes:
        name: What is wrong.
        promises: Those of which at least one has to be seen broken.
        module: File in the package.
        right: Text that stands there exactly once.
        wrong: Text in its place.
        faults: Parts of the names of the faults that bring it to light; empty means all faults.
    """

    name: str
    promises: tuple[int, ...]
    module: str
    right: str
    wrong: str
    faults: tuple[str, ...] = ()


MUTATIONS = (
    Mutation(
        "posts are flagged before their rows are committed",
        (4,),
        "migration.py",
        "            yield unit\n",
        "            raw_store.mark_migrated(batch_id, started_at)\n            yield unit\n",
        ("kill at migration",),
    ),
    Mutation(
        "an older version overwrites a newer one",
        (3, 4),
        "table.py",
        "newer = sa.or_(table.c.version.is_(None), my.inserted.version > table.c.version)",
        "newer = sa.text('TRUE')",
        ("stop at migration.read",),
    ),
    Mutation(
        "posts are flagged by id, not by batch",
        (4,),
        "migration.py",
        "    marked = raw_store.mark_migrated(batch.id, now)\n",
        "    raw_store._posts.update_many(\n"
        '        {"externalId": {"$in": [post.external_id for post in unit.posts]}, "quarantine": None},\n'
        '        {"$set": {"migrated": True, "migratedAt": now}},\n'
        "    )\n"
        "    marked = len(unit.posts) - len(unit.refused)\n",
        ("stop at migration",),
    ),
    Mutation(
        "posts are stored before their batch is in the ledger",
        (1, 7),
        "ingestion.py",
        "    batch_id = ledger.create(len(pending), now, tracing.traceparent())\n"
        '    failpoints.reach("ingestion.intended")\n'
        "    stored = raw_store.store(pending, known, batch_id, now)\n"
        '    failpoints.reach("ingestion.stored")\n',
        '    batch_id = f"{now:%Y%m%dT%H%M%S}000-{id(pending) & 0xFFFFFFFF:08x}"\n'
        "    stored = raw_store.store(pending, known, batch_id, now)\n"
        '    failpoints.reach("ingestion.stored")\n'
        '    batch = {"_id": batch_id, "state": "filling", "size": 0, "createdAt": now, "attempts": 0}\n'
        "    ledger._batches.insert_one(batch)\n",
        ("kill at ingestion.stored",),
    ),
    Mutation(
        "posts that the relational store refuses are taken for migrated",
        (1, 4, 6),
        "relational_store.py",
        "                refused[posts[0].external_id] = (error.code, str(error))\n",
        "",
        ("refuses",),
    ),
    Mutation(
        "bad records are forgotten",
        (6,),
        "raw_store.py",
        "                self._rejected.bulk_write(chunk, ordered=False)\n",
        "                pass\n",
        ("bad record",),
    ),
    Mutation(
        "one bad record ends the ingestion",
        (1, 6, 7),
        "ingestion.py",
        "    if isinstance(post, RejectedRecord):\n",
        "    if isinstance(post, RejectedRecord):\n        raise TerminalError(post.message)\n",
        ("bad record",),
    ),
    Mutation(
        "ids of documents are not unique",
        (2,),
        "mongo_schema.py",
        'IndexModel([("externalId", ASCENDING)], unique=True)',
        'IndexModel([("externalId", ASCENDING)])',
        ("at ingestion.fetched",),
    ),
    Mutation(
        "a batch is closed though its posts are not flagged",
        (1, 7),
        "migration.py",
        "    marked = raw_store.mark_migrated(batch.id, now)\n",
        "    marked = len(unit.posts) - len(unit.refused)\n",
        ("kill at migration",),
    ),
    Mutation(
        "nobody takes over from a worker that died",
        (7,),
        "enqueueing.py",
        "    return sorted({*silent, *stuck})\n",
        "    return []\n",
        ("kill at migration", "kill at worker"),
    ),
    Mutation(
        "nobody takes over from an ingestion that died",
        (7,),
        "enqueueing.py",
        '    for batch in ledger.batches("filling"):\n',
        "    for batch in []:\n",
        ("kill at ingestion.stored",),
    ),
    Mutation(
        "jobs whose attempts ran out in an outage stay where they are",
        (7,),
        "enqueueing.py",
        "    again, first = [*lost, *put_off, *failed], [batch.id for batch in fresh]\n",
        "    again, first = [*lost, *put_off], [batch.id for batch in fresh]\n",
        ("sql: read-only", "sql: disk full", "sql: table full"),
    ),
    Mutation(
        "what the queue lost is not enqueued again",
        (5, 7),
        "enqueueing.py",
        "if batch.id not in jobs.outstanding",
        "if (now - batch.created_at).total_seconds() < 20 and batch.id not in jobs.outstanding",
        ("FLUSHALL", "without its data"),
    ),
    Mutation(
        "an answer counts as stored before it is",
        (1, 3),
        "ingestion.py",
        "        seen = _SeenIds()\n",
        "        seen = _SeenIds()\n"
        "        raw_store._state.update_one(\n"
        '            {"_id": state_key}, {"$set": {"etag": answer.etag, "ingestedAt": result.started_at,\n'
        '             "version": _STATE_VERSION, "sample": [1]}}, upsert=True)\n',
        ("kill at ingestion",),
    ),
    Mutation(
        "unchanged posts are written again",
        (8,),
        "ingestion.py",
        "    pending = [post for post in batch.posts.values() if not post.is_stored(known)]\n",
        "    pending = list(batch.posts.values())\n",
        ("kill at ingestion", "an id twice"),
    ),
    Mutation(
        "a changed post is not migrated again",
        (1, 3, 4),
        "raw_store.py",
        '            "migrated": False,\n            "migratedAt": None,\n        }\n        if stored is None:',
        '            "migrated": bool(stored),\n            "migratedAt": None,\n        }\n        if stored is None:',
        ("kill at tick",),
    ),
)
"""One or more for each promise."""
