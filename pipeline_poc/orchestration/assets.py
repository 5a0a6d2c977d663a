"""The two assets: posts in the raw store, rows in the relational store."""

from dagster import AssetExecutionContext, ResourceParam, asset

from pipeline_poc import ingestion, migration
from pipeline_poc.ingestion import IngestionResult
from pipeline_poc.migration import MigrationResult
from pipeline_poc.orchestration.metadata import MIGRATED_POSTS_SCHEMA, RAW_POSTS_SCHEMA
from pipeline_poc.orchestration.streams import Backlog, PostStream, RowStream
from pipeline_poc.services import Services

_GROUP = "posts"
_OWNERS = ["team:data-engineering"]


@asset(
    group_name=_GROUP,
    owners=_OWNERS,
    kinds={"python", "mongodb"},
    code_version="1",
    pool="raw_store",
    io_manager_key="raw_store_io",
    metadata={"dagster/column_schema": RAW_POSTS_SCHEMA, "dagster/table_name": "posts"},
)
def raw_posts(context: AssetExecutionContext, services: ResourceParam[Services]) -> PostStream:
    """Posts of the source, one document each in MongoDB, with the state of their migration.

    Materializing ingests: what is new or changed is stored and joins the backlog; what is no
    valid post is put into `quarantined_records` with a reason code; nothing else is written.
    """
    result = IngestionResult()
    context.log.info("ingesting %s", services.source.shown_url)
    batches = ingestion.read(services.source, services.raw_store, result, batch_size=services.settings.batch_size)
    return PostStream(batches, result)


@asset(
    group_name=_GROUP,
    owners=_OWNERS,
    kinds={"python", "mysql"},
    code_version="1",
    pool="relational_store",
    io_manager_key="relational_store_io",
    metadata={"dagster/column_schema": MIGRATED_POSTS_SCHEMA, "dagster/table_name": "migrated_posts"},
)
def migrated_posts(context: AssetExecutionContext, raw_posts: Backlog, services: ResourceParam[Services]) -> RowStream:
    """Rows of the table `migrated_posts`, one a post, never older than a version already written.

    Workers keep it up to date from the queue and report here what they did. Materializing it
    migrates the whole backlog in the run itself, through the same code.
    """
    result = MigrationResult()
    batches = migration.pending(
        raw_posts.batch_ids,
        services.raw_store,
        services.ledger,
        result,
        worker=f"run-{context.run.run_id}",
        heartbeat_interval_s=services.settings.heartbeat_interval_s,
    )
    return RowStream(batches, result)
