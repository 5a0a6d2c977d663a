"""The posts that everybody moves: those of the stand-in, stored as an ingestion would store them."""

from collections.abc import Iterator

from pipeline_poc.clock import utc_now
from pipeline_poc.posts import Post
from pipeline_poc.records import HashedRecord
from pipeline_poc.services import Services
from pipeline_poc.stand_in import make_post


def hashed_posts(first: int, last: int) -> Iterator[HashedRecord]:
    """Make the posts with these ids, both included."""
    for number in range(first, last + 1):
        yield HashedRecord.of(Post.model_validate(make_post(number)))


def store_backlog(services: Services, first: int, last: int) -> None:
    """Store posts in sealed batches that wait to be migrated."""
    size = services.settings.batch_size
    for start in range(first, last + 1, size):
        now = utc_now()
        posts = list(hashed_posts(start, min(start + size - 1, last)))
        batch_id = services.ledger.create(len(posts), now)
        services.raw_store.store(posts, {}, batch_id, now)
        services.ledger.seal(batch_id, len(posts))
