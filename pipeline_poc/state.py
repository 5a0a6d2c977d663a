"""What the pipeline remembers about itself in MongoDB: one document for each key."""

from collections.abc import Mapping
from typing import Any

from pipeline_poc.mongo import Document, Mongo


class State:
    """The collection ``pipeline_state``. Every method is safe to repeat and to run in several processes.

    Raises (every method):
        ServiceUnavailable: MongoDB can't be reached.
    """

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._state = mongo.collection("pipeline_state")

    def load(self, key: str) -> Document:
        """Return what is kept under a key; empty where that is nothing."""
        with self._mongo.translated():
            kept = self._state.find_one({"_id": key}) or {}
        kept.pop("_id", None)
        return kept

    def save(self, key: str, values: Mapping[str, Any]) -> None:
        """Keep these values under a key; other values that it has stay."""
        with self._mongo.translated():
            self._state.update_one({"_id": key}, {"$set": dict(values)}, upsert=True)
