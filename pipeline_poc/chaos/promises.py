"""The eight promises, checked from outside: what the stores hold against what the source served.

Nothing of the pipeline's own code has a part in it, so that no mistake can hide itself. It looks
through connections of its own while no program writes.
"""

import json
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pymongo
import pymysql
import pymysql.cursors

from pipeline_poc.chaos.world import REFUSED_TITLE, Content, World, canonical

PROMISES = {
    1: "Conservation: stored = migrated + backlog + quarantined, and everything fetched is accounted for",
    2: "No duplicates: one document and one row for each post",
    3: "No stale rows: a changed post is migrated again, an older version never overwrites a newer one",
    4: "Flag after row: what is flagged as migrated has its row",
    5: "The queue is disposable: everything in it is rebuilt from the ledger",
    6: "One bad post stops only itself: it is quarantined, the others go on",
    7: "Outages heal by themselves: nothing waits for a person",
    8: "Idempotence: running everything again writes nothing",
}


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken.

    Attributes:
        promise: Its number, see `PROMISES`.
        what: What was seen, in a sentence.
        ids: The posts, or batches.
    """

    promise: int
    what: str
    ids: tuple[Any, ...] = ()

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.ids[:20])) + (", …" if len(self.ids) > 20 else "")  # noqa: PLR2004
        return f"promise {self.promise}: {self.what}" + (f" [{shown}]" if self.ids else "")


@dataclass(frozen=True, slots=True)
class Look:
    """Everything that the stores hold at a moment."""

    documents: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    batches: dict[str, dict[str, Any]]
    rejected: list[dict[str, Any]]

    @property
    def is_settled(self) -> bool:
        """Whether nothing waits that the pipeline would still move by itself."""
        waits = any(batch["state"] in ("open", "filling") for batch in self.batches.values())
        return not waits and all(document["migrated"] or document.get("quarantine") for document in self.documents)


@dataclass(slots=True)
class Watch:
    """Looks at the stores again and again.

    Args:
        mongo_url: The server itself, past all proxies.
        mongo_database: The pipeline's.
        sql: Arguments of `pymysql.connect`, past all proxies.
        world: What the source serves, and served.
    """

    mongo_url: str
    mongo_database: str
    sql: dict[str, Any]
    world: World
    _row_versions: dict[int, int] = field(default_factory=dict)
    _document_versions: dict[int, int] = field(default_factory=dict)

    def look(self) -> Look:
        """Read everything there is."""
        with pymongo.MongoClient[dict[str, Any]](self.mongo_url, tz_aware=True) as client:
            database = client[self.mongo_database]
            documents = sorted(database.posts.find({}, {"_id": False}), key=lambda found: found["externalId"])
            batches = {batch["_id"]: batch for batch in database.batches.find()}
            rejected = list(database.quarantined_records.find())
        with (
            closing(pymysql.connect(**self.sql, cursorclass=pymysql.cursors.DictCursor)) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("SELECT * FROM migrated_posts ORDER BY externalId, id")
            rows = list(cursor.fetchall())
        return Look(documents, rows, batches, rejected)

    def check(self, look: Look) -> list[Violation]:
        """Check what has to hold at every moment, in the middle of whatever was interrupted."""
        return [*_duplicates(look), *_flags(look), *self._versions(look), *self._contents(look), *_adrift(look)]

    def check_settled(self, look: Look) -> list[Violation]:
        """Check what has to hold once all faults are over and all work is done."""
        return [*self.check(look), *self._complete(look), *self._quarantined(look), *_left_over(look)]

    def _versions(self, look: Look) -> list[Violation]:
        found = []
        rows = {row["externalId"]: row["version"] for row in look.rows}
        documents = {document["externalId"]: document["version"] for document in look.documents}
        for name, now, before in (
            ("rows went back to an older version", rows, self._row_versions),
            ("documents went back to an older version", documents, self._document_versions),
        ):
            back = tuple(i for i, version in before.items() if now.get(i, version) < version)
            gone = tuple(i for i in before if i not in now)
            found += [Violation(3, name, back)] if back else []
            found += [Violation(1, "what was stored is gone", gone)] if gone else []
        self._row_versions, self._document_versions = rows, documents
        return found

    def _contents(self, look: Look) -> list[Violation]:
        found = []
        for name, things in (("documents", look.documents), ("rows", look.rows)):
            wrong = tuple(
                thing["externalId"]
                for thing in things
                if _content(thing) not in self.world.contents.get(thing["externalId"], ())
            )
            found += [Violation(1, f"{name} hold what the source never served", wrong)] if wrong else []
        return found

    def _complete(self, look: Look) -> list[Violation]:
        found = []
        documents = {document["externalId"]: document for document in look.documents}
        rows = {row["externalId"]: _content(row) for row in look.rows}
        now = self.world.now()
        lost = tuple(i for i in now if i not in documents)
        old = tuple(i for i, content in now.items() if i in documents and _content(documents[i]) != content)
        migrated = {i: document for i, document in documents.items() if not _is_refused(document)}
        missing = tuple(i for i in migrated if i not in rows)
        stale = tuple(i for i, document in migrated.items() if i in rows and rows[i] != _content(document))
        unflagged = tuple(i for i, document in migrated.items() if document["migrated"] is not True)
        extra = tuple(i for i in rows if i not in documents)
        found += [Violation(1, "posts that are served are not stored", lost)] if lost else []
        found += [Violation(3, "documents have not the content that is served", old)] if old else []
        found += [Violation(1, "posts have no row", missing)] if missing else []
        found += [Violation(3, "rows are stale", stale)] if stale else []
        found += [Violation(7, "posts are not flagged as migrated", unflagged)] if unflagged else []
        found += [Violation(1, "rows have no document", extra)] if extra else []
        return found

    def _quarantined(self, look: Look) -> list[Violation]:
        found = []
        kept = {canonical(json.loads(record["payload"])) for record in look.rejected}
        missing = tuple(text[:80] for text in self.world.bad_now() - kept)
        innocent = tuple(text[:80] for text in kept - self.world.bad)
        refused = {document["externalId"] for document in look.documents if document.get("quarantine")}
        expected = {document["externalId"] for document in look.documents if _is_refused(document)}
        found += [Violation(6, "bad records are not in quarantine", missing)] if missing else []
        found += [Violation(6, "records are in quarantine that are not bad", innocent)] if innocent else []
        if refused != expected:
            what = "posts that the relational store refuses, and quarantined posts, differ"
            found.append(Violation(6, what, tuple(sorted(refused ^ expected))))
        return found


def differences(before: Look, after: Look) -> list[Violation]:
    """Say what running everything again has written: that has to be nothing."""
    found = []
    for name, first, second in (
        ("documents", before.documents, after.documents),
        ("rows", before.rows, after.rows),
        ("batches", [*before.batches.values()], [*after.batches.values()]),
    ):
        if first != second:
            changed = [new for new in second if new not in first]
            ids = tuple(new.get("externalId", new.get("_id")) for new in changed)
            found.append(Violation(8, f"{name} were written again", ids))
    return found


def _content(thing: dict[str, Any]) -> Content:
    return thing["userId"], thing["title"], thing["body"]


def _is_refused(document: dict[str, Any]) -> bool:
    return str(document["title"]).startswith(REFUSED_TITLE)


def _duplicates(look: Look) -> list[Violation]:
    found = []
    for name, things in (("documents", look.documents), ("rows", look.rows)):
        counts = Counter(thing["externalId"] for thing in things)
        double = tuple(external_id for external_id, number in counts.items() if number > 1)
        found += [Violation(2, f"posts have several {name}", double)] if double else []
    return found


def _flags(look: Look) -> list[Violation]:
    rows = {row["externalId"]: row for row in look.rows}
    wrong = []
    for document in look.documents:
        if document["migrated"] is not True:
            continue
        row = rows.get(document["externalId"])
        if (
            row is None
            or row["version"] < document["version"]
            or (row["version"] == document["version"] and _content(row) != _content(document))
        ):
            wrong.append(document["externalId"])
    return [Violation(4, "posts are flagged as migrated without their row", tuple(wrong))] if wrong else []


def _adrift(look: Look) -> list[Violation]:
    """Posts that wait, and that nobody will ever migrate."""
    adrift = []
    both = []
    for document in look.documents:
        if document["migrated"] is True:
            both += [document["externalId"]] if document.get("quarantine") else []
        elif not document.get("quarantine") and document.get("batchId") is not None:
            batch = look.batches.get(document["batchId"])
            adrift += [document["externalId"]] if batch is None or batch["state"] == "closed" else []
    found = [Violation(1, "posts wait in batches that are closed", tuple(adrift))] if adrift else []
    return found + ([Violation(1, "posts are migrated and quarantined", tuple(both))] if both else [])


def _left_over(look: Look) -> list[Violation]:
    waiting = tuple(i for i, batch in look.batches.items() if batch["state"] in ("open", "filling", "dead"))
    return [Violation(7, "batches are left over", waiting)] if waiting else []
