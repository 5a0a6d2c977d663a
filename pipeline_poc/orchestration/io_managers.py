"""One IO manager a store and entity. They move values; what a value means is the use cases' matter."""

from collections.abc import Iterator
from contextlib import closing

from dagster import ConfigurableIOManager, InputContext, OutputContext, ResourceDependency

from pipeline_poc import ingestion, migration
from pipeline_poc.clock import utc_now
from pipeline_poc.orchestration.metadata import ingestion_metadata, migration_metadata, observation, preview
from pipeline_poc.orchestration.pace import PROGRESS_S, Pace
from pipeline_poc.orchestration.runs import plain_failures
from pipeline_poc.orchestration.streams import Backlog, PostStream, RowStream, told
from pipeline_poc.relational_store import RowState
from pipeline_poc.services import Services

_PREVIEW_ROWS = 5


class _EntityIOManager(ConfigurableIOManager):
    services: ResourceDependency[Services]
    entity: str

    @property
    def _pipeline(self) -> Services:
        return self.services.of(self.entity)


class RawStoreIOManager(_EntityIOManager):
    """Stores posts in MongoDB; loads them as the backlog that waits there."""

    def handle_output(self, context: OutputContext, obj: PostStream) -> None:
        """Store every batch of the stream."""
        services = self._pipeline
        result, pace = obj.result, Pace(PROGRESS_S)

        def progress() -> None:
            if pace.is_due():
                context.log.info("stored %s of %s records", f"{result.accounted:,}", f"{result.fetched:,}")

        with plain_failures(services.settings, context.step_context.previous_attempt_count):
            ingestion.store_all(
                told(obj, context.log.info), services.raw_store, services.ledger, result, on_progress=progress
            )
            counts = services.raw_store.counts()
            lag_s = services.ledger.backlog().lag_s(utc_now())
        context.log.info(
            "%s new, %s changed, %s unchanged, %s quarantined; %s wait to be migrated",
            *(f"{n:,}" for n in (result.new, result.changed, result.unchanged, result.quarantined, counts.backlog)),
        )
        context.log_event(observation(services.entity, result, services.source.shown_url))
        context.add_output_metadata(
            ingestion_metadata(services.entity, result)
            | {
                "dagster/row_count": counts.stored,
                "backlog": counts.backlog,
                "lag_s": lag_s,
                "preview": preview(
                    services.raw_store.sample(_PREVIEW_ROWS), ["externalId", *services.entity.names, "migrated"]
                ),
            }
        )

    def load_input(self, context: InputContext) -> Backlog:
        """Return what is stored and not migrated yet."""
        services = self._pipeline
        with plain_failures(services.settings, context.step_context.previous_attempt_count):
            services.require_running()
            services.adopt()
            return Backlog(migration.open_batches(services.ledger))


class RelationalStoreIOManager(_EntityIOManager):
    """Writes rows to the relational store; loads them as a stream."""

    def handle_output(self, context: OutputContext, obj: RowStream) -> None:
        """Write every batch of the stream."""
        services, result, pace, written = self._pipeline, obj.result, Pace(PROGRESS_S), 0
        retry_number = context.step_context.previous_attempt_count
        with plain_failures(services.settings, retry_number), closing(obj.batches):
            store, waiting = services.relational_store, services.ledger.backlog()
            context.log.info("about %s records wait in %s batches", f"{waiting.posts:,}", f"{waiting.batches:,}")
            for batch in obj.batches:
                migration.write(batch, store)
                written += len(batch.posts)
                if pace.is_due():
                    context.log.info(
                        "wrote %s of about %s records, lately batch %s",
                        f"{written:,}",
                        f"{waiting.posts:,}",
                        batch.batch.id,
                    )
        numbers = result.summary()
        context.log.info("migrated %(migrated)s records in %(batches)s batches, quarantined %(quarantined)s", numbers)
        context.add_output_metadata(
            migration_metadata(services.entity, numbers)
            | {
                "dagster/row_count": store.count(),
                "preview": preview(store.sample(_PREVIEW_ROWS), ["externalId", *services.entity.names, "migratedAt"]),
            }
        )

    def load_input(self, context: InputContext) -> Iterator[RowState]:  # noqa: ARG002 - Dagster's signature
        """Stream the rows by id."""
        return self._pipeline.relational_store.rows()
