"""Everything that Dagster is to know of some entities, put together."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from dagster import Definitions, in_process_executor

from pipeline_poc.orchestration.alerts import send_alerts
from pipeline_poc.orchestration.assets import assets_of
from pipeline_poc.orchestration.automation import automation_of, prune_every_night, prune_history
from pipeline_poc.orchestration.checks import checks_of
from pipeline_poc.orchestration.io_managers import RawStoreIOManager, RelationalStoreIOManager
from pipeline_poc.orchestration.metadata import raw_asset
from pipeline_poc.orchestration.replay import desk_jobs_of
from pipeline_poc.orchestration.resources import PipelineResource
from pipeline_poc.records import Entity


@lru_cache
def definitions_of(entities: Sequence[Entity]) -> Definitions:
    """Return the definitions for some entities, a tuple, each with all that belongs to it."""
    services = PipelineResource()
    common = Definitions(
        jobs=[prune_history],
        schedules=[prune_every_night],
        sensors=[send_alerts],
        resources={"services": services},
        # A step is one bounded stream: a process of its own would only cost time.
        executor=in_process_executor,
    )
    return Definitions.merge(common, *(_definitions_of(entity, services) for entity in entities))


def _definitions_of(entity: Entity, services: PipelineResource) -> Definitions:
    assets = assets_of(entity)
    automation = automation_of(entity, assets)
    io_managers: dict[str, Any] = {
        f"{raw_asset(entity)}_io": RawStoreIOManager(services=services, entity=entity.name),
        f"{entity.table}_io": RelationalStoreIOManager(services=services, entity=entity.name),
    }
    return Definitions(
        assets=list(assets),
        asset_checks=checks_of(entity, assets),
        jobs=[*automation.jobs, *desk_jobs_of(entity)],
        schedules=automation.schedules,
        sensors=[automation.sensor],
        resources=io_managers,
    )
