"""What assets hand to their IO managers: lazy streams, so that memory stays flat."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from pipeline_poc.ingestion import IngestionResult, ParsedBatch
from pipeline_poc.migration import MigrationResult, PendingBatch


@dataclass(frozen=True, slots=True)
class PostStream:
    """Batches of validated posts to store; the result is complete when they are used up."""

    batches: Generator[ParsedBatch, None, None]
    result: IngestionResult


@dataclass(frozen=True, slots=True)
class RowStream:
    """Batches of posts to write as rows; each is marked migrated when the next one is asked for."""

    batches: Generator[PendingBatch, None, None]
    result: MigrationResult


@dataclass(frozen=True, slots=True)
class Backlog:
    """Ids of the open batches, oldest first, read from the ledger while they are used up."""

    batch_ids: Iterator[str]
