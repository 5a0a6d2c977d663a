"""A collection in memory, with indexes of a single field each."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bson import ObjectId

from bench.mongo_documents import Document, bracket, is_condition, matcher, update

_SCAN_FACTOR = 2
"""A range that has more places than this many times the documents is not worth looking up place by place."""


class DuplicateKeyError(Exception):
    """A unique index has this value already."""


class _Index:
    """Ids of the documents by the value of a field."""

    def __init__(self, field: str, *, is_unique: bool) -> None:
        self.field = field
        self.is_unique = is_unique
        self._ids: dict[Any, dict[Any, None]] = {}
        self._brackets: set[str] = set()
        self._lowest, self._highest = 0, -1

    def add(self, value: Any, identity: Any) -> None:
        self._ids.setdefault(_hashable(value), {})[identity] = None
        self._brackets.add(bracket(value))
        if isinstance(value, int):
            is_first = self._highest < self._lowest
            self._lowest = value if is_first else min(self._lowest, value)
            self._highest = value if is_first else max(self._highest, value)

    def remove(self, value: Any, identity: Any) -> None:
        self._ids[_hashable(value)].pop(identity, None)

    def holds(self, value: Any) -> bool:
        return bool(self._ids.get(_hashable(value)))

    def candidates(self, condition: Any, size: int) -> Iterator[Any] | None:
        """Return the ids of all documents that may match, and some more; None where the index is no help."""
        if not is_condition(condition):
            return iter(list(self._ids.get(_hashable(condition), ())))
        if "$in" in condition:
            return (i for value in condition["$in"] for i in list(self._ids.get(_hashable(value), ())))
        bounds = {name: bound for name, bound in condition.items() if name in ("$gt", "$gte", "$lt", "$lte")}
        if not bounds:
            return None
        if not {bracket(bound) for bound in bounds.values()} & self._brackets:
            return iter(())
        if self._brackets & {"number"} and all(isinstance(bound, int) for bound in bounds.values()):
            low = max([self._lowest, *(bounds[name] for name in ("$gt", "$gte") if name in bounds)])
            high = min([self._highest, *(bounds[name] for name in ("$lt", "$lte") if name in bounds)])
            if high - low <= _SCAN_FACTOR * size:
                return (i for value in range(low, high + 1) for i in list(self._ids.get(value, ())))
        return None


def _hashable(value: Any) -> Any:
    return repr(value) if isinstance(value, (dict, list)) else value


class Collection:
    """Documents by their `_id`."""

    def __init__(self) -> None:
        self.documents: dict[Any, Document] = {}
        self.specifications: list[Document] = []
        self._indexes: list[_Index] = []

    def create_index(self, specification: Document) -> None:
        """Index the first field; that is enough to find few candidates."""
        if any(specification["name"] == known["name"] for known in self.specifications):
            return
        index = _Index(next(iter(specification["key"])), is_unique=bool(specification.get("unique")))
        for identity, document in self.documents.items():
            index.add(document.get(index.field), identity)
        self.specifications.append(specification)
        self._indexes.append(index)

    def insert(self, document: Document) -> None:
        """Insert a document.

        Raises:
            DuplicateKeyError: There is one already, by its `_id` or by a unique index.
        """
        identity = document.setdefault("_id", ObjectId())
        if identity in self.documents:
            raise DuplicateKeyError(f"_id {identity}")
        for index in self._indexes:
            if index.is_unique and index.holds(document.get(index.field)):
                raise DuplicateKeyError(f"{index.field} {document.get(index.field)}")
        self.documents[identity] = document
        for index in self._indexes:
            index.add(document.get(index.field), identity)

    def remove(self, document: Document) -> None:
        """Remove a document."""
        del self.documents[document["_id"]]
        for index in self._indexes:
            index.remove(document.get(index.field), document["_id"])

    def change(self, document: Document, changes: Mapping[str, Any]) -> bool:
        """Update a document; returns whether that made a difference."""
        before = [document.get(index.field) for index in self._indexes]
        changed = update(document, changes, is_new=False)
        if changed:
            for index, value in zip(self._indexes, before, strict=True):
                if (now := document.get(index.field)) != value:
                    index.remove(value, document["_id"])
                    index.add(now, document["_id"])
        return changed

    def upsert(self, query: Mapping[str, Any], changes: Mapping[str, Any]) -> Document:
        """Insert what an update makes of the values that a query asks for."""
        document = {name: value for name, value in query.items() if not is_condition(value)}
        update(document, changes, is_new=True)
        self.insert(document)
        return document

    def find(self, query: Mapping[str, Any]) -> Iterator[Document]:
        """Yield the documents that match; the one just yielded may be changed or removed."""
        matches = matcher(query)
        return (document for document in self._candidates(query) if matches(document))

    def _candidates(self, query: Mapping[str, Any]) -> Iterable[Document]:
        if "_id" in query:
            wanted = query["_id"]
            ids = wanted.get("$in") if is_condition(wanted) else [wanted]
            if ids is not None:
                return [self.documents[identity] for identity in ids if identity in self.documents]
        for index in self._indexes:
            if index.field in query:
                ids = index.candidates(query[index.field], len(self.documents))
                if ids is not None:
                    return (self.documents[identity] for identity in ids)
        return list(self.documents.values())
