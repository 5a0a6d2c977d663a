"""The jobs that an operator launches: records are migrated again, or repaired."""

from datetime import datetime

from dagster import Config, JobDefinition, MetadataValue, OpExecutionContext, ResourceParam, job, op
from pydantic import Field

from pipeline_poc.orchestration.runs import one_at_a_time, plain_failures
from pipeline_poc.post_selection import PostSelection
from pipeline_poc.records import Entity
from pipeline_poc.replay import Replay
from pipeline_poc.selection import SelectionError
from pipeline_poc.services import Services

_SHOWN = 100
"""Ids in a log or in metadata."""


class ReplayConfig(Config):
    """Which records to migrate again: exactly one of ids, a range, a time of change, or everything."""

    ids: list[int] | None = Field(None, description="Ids of records, such as [7, 42].")
    from_id: int | None = Field(None, description="Lowest id of a range; it may have one end only.")
    to_id: int | None = Field(None, description="Highest id of a range.")
    changed_since: str | None = Field(
        None, description="Records whose content came then or later, such as 2026-01-31T09:30:00Z."
    )
    everything: bool = Field(False, description="All records that are migrated.")
    dry_run: bool = Field(True, description="Only count; if nothing is selected, all. Set it to false to act.")

    def selection(self) -> PostSelection:
        """Return the records that are meant.

        Raises:
            SelectionError: That is not clear.
        """
        nothing = not self.ids and not self.everything and self.changed_since is None
        if self.dry_run and nothing and self.from_id is None and self.to_id is None:
            return PostSelection(all=True)
        return PostSelection(
            ids=tuple(self.ids) if self.ids else None,
            from_id=self.from_id,
            to_id=self.to_id,
            changed_since=_time(self.changed_since) if self.changed_since is not None else None,
            all=self.everything,
        )


class RepairConfig(Config):
    """Whether a repair acts."""

    dry_run: bool = Field(True, description="Only say what would be repaired. Set it to false to act.")


def desk_jobs_of(entity: Entity) -> list[JobDefinition]:
    """Return the jobs that an operator launches about an entity."""
    replaying, repairing = entity.job("replay"), entity.job("repair")
    put_back, repair_faults = f"put_back_{entity.name}", f"repair_faults_of_{entity.name}"

    @op(name=put_back, description="Put migrated records back into the backlog, so that their rows are written again.")
    def put_back_(context: OpExecutionContext, config: ReplayConfig, services: ResourceParam[Services]) -> None:
        """Put migrated records back into the backlog, so that their rows are written again."""
        _replay(context, config, services.of(entity.name))

    @op(name=repair_faults, description="Compare both stores, and put what is wrong back into the backlog.")
    def repair_faults_(context: OpExecutionContext, config: RepairConfig, services: ResourceParam[Services]) -> None:
        """Compare both stores, and put what is wrong back into the backlog."""
        _repair(context, config, services.of(entity.name))

    @job(
        name=replaying,
        tags=one_at_a_time(replaying),
        config={"ops": {put_back: {"config": {"dry_run": True}}}},
        description="Migrate again: a list or a range of ids, what has changed since a time, or everything. "
        f"Workers, or a run of `{entity.job('migrate')}`, write the rows. As it stands, it only counts.",
    )
    def replay_() -> None:
        """Migrate again."""
        put_back_()

    @job(
        name=repairing,
        tags=one_at_a_time(repairing),
        config={"ops": {repair_faults: {"config": {"dry_run": True}}}},
        description="Compare both stores, and migrate again what is missing, stale or wrongly flagged. "
        "As it stands, it only says what it would do.",
    )
    def repair_() -> None:
        """Compare both stores, and migrate again what is wrong."""
        repair_faults_()

    return [replay_, repair_]


def _replay(context: OpExecutionContext, config: ReplayConfig, services: Services) -> None:
    def tell(so_far: Replay) -> None:
        if config.dry_run:
            context.log.info("counted %s records", so_far.selected)
        else:
            context.log.info("%s of %s selected records are back in the backlog", so_far.replayed, so_far.selected)

    with plain_failures(services.settings, context.retry_number):
        selection = config.selection()
        result = services.replay(selection, dry_run=config.dry_run, on_progress=tell)
    verb = "would put" if result.dry_run else "put"
    records = result.selected if result.dry_run else result.replayed
    context.log.info(
        "%s %s records back into the backlog; %s are there already, %s are in quarantine",
        verb,
        records,
        result.waiting,
        result.quarantined,
    )
    context.add_output_metadata(result.summary() | {"batch_ids": MetadataValue.json(result.batches[:_SHOWN])})


def _repair(context: OpExecutionContext, config: RepairConfig, services: Services) -> None:
    with plain_failures(services.settings, context.retry_number):
        found = services.reconcile(lambda compared: context.log.info("compared %s records", compared))
        context.log.info("compared %s records with %s rows: %s", found.stored, found.rows, found.summary())
        result = services.repair(found.faults, dry_run=config.dry_run)
    verb = "would put" if result.dry_run else "put"
    context.log.info("%s %s records back into the backlog", verb, result.repaired)
    left: dict[str, list[int]] = {fault: ids[:_SHOWN] for fault, ids in result.left.items() if ids}
    if left:
        context.log.warning("left for a person to decide: %s", left)
    numbers = {"dry_run": result.dry_run, "repaired": result.repaired, "left": MetadataValue.json(left)}
    context.add_output_metadata(found.summary() | numbers)


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise SelectionError(f"changed_since is no time, such as 2026-01-31T09:30:00Z: {text!r}") from None
