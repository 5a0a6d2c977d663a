"""One IO manager a store. They move values; what a value means is the use cases' matter."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

from dagster import ConfigurableIOManager, Failure, InputContext, OutputContext, ResourceDependency

from pipeline_poc import ingestion, migration
from pipeline_poc.clock import utc_now
from pipeline_poc.errors import PipelineError
from pipeline_poc.orchestration.metadata import ingestion_metadata, preview
from pipeline_poc.orchestration.streams import Backlog, PostStream, RowStream
from pipeline_poc.relational_store import RowState
from pipeline_poc.services import Services

_PREVIEW_ROWS = 5


class RawStoreIOManager(ConfigurableIOManager):
    """Stores posts in MongoDB; loads them as the backlog that waits there."""

    services: ResourceDependency[Services]

    def handle_output(self, context: OutputContext, obj: PostStream) -> None:
        """Store every batch of the stream."""
        services = self.services
        result = obj.result
        with _plain_failures():
            ingestion.store_all(
                obj.batches,
                services.raw_store,
                services.ledger,
                result,
                on_progress=lambda: context.log.info("stored %s of %s records", result.accounted, result.fetched),
            )
            counts = services.raw_store.counts()
            lag_s = services.ledger.backlog().lag_s(utc_now())
        context.add_output_metadata(
            ingestion_metadata(result)
            | {
                "dagster/row_count": counts.stored,
                "backlog": counts.backlog,
                "lag_s": lag_s,
                "preview": preview(
                    services.raw_store.sample(_PREVIEW_ROWS), ["externalId", "userId", "title", "body", "migrated"]
                ),
            }
        )

    def load_input(self, context: InputContext) -> Backlog:  # noqa: ARG002 - Dagster's signature
        """Return what is stored and not migrated yet."""
        self.services.require_running()
        self.services.adopt()
        return Backlog(migration.open_batches(self.services.ledger))


class RelationalStoreIOManager(ConfigurableIOManager):
    """Writes rows to the relational store; loads them as a stream."""

    services: ResourceDependency[Services]

    def handle_output(self, context: OutputContext, obj: RowStream) -> None:
        """Write every batch of the stream."""
        store = self.services.relational_store
        with _plain_failures(), closing(obj.batches):
            for batch in obj.batches:
                migration.write(batch, store)
                context.log.info("wrote batch %s: %s posts", batch.batch.id, len(batch.posts))
        context.add_output_metadata(
            obj.result.summary()
            | {
                "dagster/row_count": store.count(),
                "preview": preview(
                    store.sample(_PREVIEW_ROWS), ["externalId", "userId", "title", "body", "migratedAt"]
                ),
            }
        )

    def load_input(self, context: InputContext) -> Iterator[RowState]:  # noqa: ARG002 - Dagster's signature
        """Stream the rows by id."""
        return self.services.relational_store.rows()


@contextmanager
def _plain_failures() -> Iterator[None]:
    """Let a run fail with the pipeline's own sentence at its head."""
    try:
        yield
    except PipelineError as error:
        raise Failure(str(error)) from error
