"""The assets of an entity: what the source serves, documents in the raw store, rows in the relational store."""

from importlib.metadata import version
from typing import NamedTuple

from dagster import AssetExecutionContext, AssetIn, AssetsDefinition, AssetSpec, MetadataValue, ResourceParam, asset

from pipeline_poc import ingestion, migration
from pipeline_poc.ingestion import IngestionResult
from pipeline_poc.migration import MigrationResult
from pipeline_poc.orchestration import metadata
from pipeline_poc.orchestration.pace import FRESHNESS
from pipeline_poc.orchestration.streams import Backlog, PostStream, RowStream
from pipeline_poc.records import Entity
from pipeline_poc.services import Services
from pipeline_poc.settings import PUBLIC_SOURCE_URL
from pipeline_poc.source import Source

_OWNERS = ["team:data-engineering"]


class Assets(NamedTuple):
    """The assets of an entity, each made of the one before."""

    source: AssetSpec
    raw: AssetsDefinition
    rows: AssetsDefinition


def assets_of(entity: Entity) -> Assets:
    """Return the assets of an entity; their IO managers have the assets' names."""
    # Nothing materializes it, and nobody asks the source a second time: each ingestion tells what it saw of it.
    source = AssetSpec(
        metadata.source_asset(entity),
        group_name=entity.name,
        owners=_OWNERS,
        kinds={"api", "json"},
        tags={"layer": "source"},
        description=metadata.source_text(entity),
        metadata={
            "dagster/column_schema": metadata.source_schema(entity),
            "dagster/code_references": metadata.code_references(Source.fetch),
            "url": MetadataValue.url(PUBLIC_SOURCE_URL.replace("/posts", f"/{entity.name}")),
        },
    )

    @asset(
        name=metadata.raw_asset(entity),
        deps=[source],
        group_name=entity.name,
        owners=_OWNERS,
        kinds={"python", "mongodb"},
        tags={"layer": "raw"},
        code_version="1",
        pool="raw_store",
        io_manager_key=f"{metadata.raw_asset(entity)}_io",
        freshness_policy=FRESHNESS,
        description=metadata.raw_text(entity),
        metadata={
            "dagster/column_schema": metadata.raw_schema(entity),
            "dagster/column_lineage": metadata.raw_lineage(entity),
            "dagster/table_name": entity.name,
            "dagster/code_references": metadata.code_references(ingestion.read, ingestion.store_all),
            **metadata.links(entity),
        },
    )
    def raw(context: AssetExecutionContext, services: ResourceParam[Services]) -> PostStream:
        """Stream what the source serves now into the raw store."""
        of = services.of(entity.name)
        result = IngestionResult()
        context.log.info("ingesting %s", of.source.shown_url)
        _tag_run(context, source=of.source.shown_url)
        return PostStream(
            ingestion.read(of.source, of.raw_store, result, batch_size=of.settings.batch_size),
            result,
        )

    @asset(
        name=entity.table,
        ins={"backlog": AssetIn(key=metadata.raw_asset(entity))},
        group_name=entity.name,
        owners=_OWNERS,
        kinds={"python", "mysql"},
        tags={"layer": "relational"},
        code_version="1",
        pool="relational_store",
        io_manager_key=f"{entity.table}_io",
        freshness_policy=FRESHNESS,
        description=metadata.rows_text(entity),
        metadata={
            "dagster/column_schema": metadata.rows_schema(entity),
            "dagster/column_lineage": metadata.rows_lineage(entity),
            "dagster/table_name": entity.table,
            "dagster/code_references": metadata.code_references(migration.pending, migration.write),
            **metadata.links(entity),
        },
    )
    def rows(context: AssetExecutionContext, backlog: Backlog, services: ResourceParam[Services]) -> RowStream:
        """Stream the backlog into the relational store."""
        of = services.of(entity.name)
        result = MigrationResult()
        _tag_run(context)
        batches = migration.pending(
            backlog.batch_ids,
            of.raw_store,
            of.ledger,
            result,
            worker=f"run-{context.run.run_id}",
            heartbeat_interval_s=of.settings.heartbeat_interval_s,
        )
        return RowStream(batches, result)

    return Assets(source, raw, rows)


def _tag_run(context: AssetExecutionContext, **tags: str) -> None:
    """Tag the run with the version of the code and more, so that people find it by them."""
    tags["version"] = version("pipeline-poc")
    context.instance.add_run_tags(context.run.run_id, {f"pipeline_poc/{name}": value for name, value in tags.items()})
