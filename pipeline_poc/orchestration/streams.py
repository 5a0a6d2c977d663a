"""What assets hand to their IO managers: lazy streams, so that memory stays flat."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

from pipeline_poc.ingestion import IngestionResult, ParsedBatch
from pipeline_poc.migration import MigrationResult, PendingBatch


@dataclass(frozen=True, slots=True)
class PostStream:
    """Batches of validated posts to store; the result is complete when they are used up."""

    batches: Generator[ParsedBatch, None, None]
    result: IngestionResult


def told(stream: PostStream, tell: Callable[..., None]) -> Generator[ParsedBatch, None, None]:
    """Yield the batches of a stream, and tell of the answer as soon as it is there."""
    result, is_told = stream.result, False

    def tell_of_answer() -> None:
        seen = "nothing has changed" if result.not_modified else f"{result.fetched:,} records"
        tell("the source answered within %.3f s: %s", result.latency_s, seen)

    with closing(stream.batches):
        for batch in stream.batches:
            if not is_told:
                tell_of_answer()
            is_told = True
            yield batch
    if not is_told:
        tell_of_answer()


@dataclass(frozen=True, slots=True)
class RowStream:
    """Batches of posts to write as rows; each is marked migrated when the next one is asked for."""

    batches: Generator[PendingBatch, None, None]
    result: MigrationResult


@dataclass(frozen=True, slots=True)
class Backlog:
    """Ids of the open batches, oldest first, read from the ledger while they are used up."""

    batch_ids: Iterator[str]
