"""The Dagster definitions of the pipeline."""

from dagster import Definitions, in_process_executor

from pipeline_poc.orchestration.alerts import send_alerts
from pipeline_poc.orchestration.assets import migrated_posts, raw_posts
from pipeline_poc.orchestration.automation import (
    check_every_ten_minutes,
    check_posts,
    enqueue_backlog,
    ingest_every_ten_minutes,
    ingest_posts,
    migrate_posts,
    prune_every_night,
    prune_history,
)
from pipeline_poc.orchestration.checks import CHECKS
from pipeline_poc.orchestration.io_managers import RawStoreIOManager, RelationalStoreIOManager
from pipeline_poc.orchestration.resources import PipelineResource

_services = PipelineResource()

defs = Definitions(
    assets=[raw_posts, migrated_posts],
    asset_checks=CHECKS,
    jobs=[ingest_posts, migrate_posts, check_posts, prune_history],
    schedules=[ingest_every_ten_minutes, check_every_ten_minutes, prune_every_night],
    sensors=[enqueue_backlog, send_alerts],
    resources={
        "services": _services,
        "raw_store_io": RawStoreIOManager(services=_services),
        "relational_store_io": RelationalStoreIOManager(services=_services),
    },
    # A step is one bounded stream: a process of its own would only cost time.
    executor=in_process_executor,
)
