"""Asset checks: is what is stored right, and does the pipeline move? They look at the stores, whoever has filled them.

All checks of an asset are one step: a step of its own would cost a run more than what most of them look at, and several
share what they read. Each can be run alone.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Literal

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSpec,
    AssetsDefinition,
    Config,
    ResourceParam,
    multi_asset_check,
)
from pydantic import Field

from pipeline_poc.orchestration import findings
from pipeline_poc.orchestration.assets import Assets
from pipeline_poc.orchestration.findings import Census, Finding, take_census
from pipeline_poc.orchestration.metadata import confirmation, raw_asset
from pipeline_poc.reconciliation import Reconciliation
from pipeline_poc.records import Entity
from pipeline_poc.services import Services

_OF_RAW = {
    "last_ingestion": "An ingestion went well within SOURCE_WARN_S, none has failed since, and it found records there.",
    "quarantine_rate": f"At most {findings.SHARE_WARN:.0%} of the records are bad, in the last answer as in all.",
    "source_schema": "The last answer had no field that the model does not have, and none of the model's has vanished.",
    "unique_ids": "No id has two documents, and the unique index is there, which forbids it.",
    "documents_fit": "A sample of the documents has the shape that MongoDB was told, but for those in quarantine.",
}
_OF_ROWS = {
    "lag": "No record waits longer than LAG_WARN_S; far longer is an error.",
    "dead_letters": "No batch waits for a person.",
    "nothing_is_stuck": "Every batch in progress gives signs of life, and every record that waits is in a batch.",
    "conservation": "stored = migrated + backlog + quarantined, and migrated ≤ rows ≤ stored: nothing is lost.",
    "content_matches": "Documents and rows agree by content hash, in a sample or, by the config, in all of them.",
    "no_stale_rows": "No row is older than the version that is flagged migrated, in the same sample.",
}
# Two documents with one id would overwrite each other's row. Nothing else that may be wrong with records is a reason to
# hold the others up: the migration puts a bad one aside by itself, and what comes late comes no earlier for waiting.
_BLOCKING = {"unique_ids"}


def _specs(asset: AssetsDefinition, texts: Mapping[str, str]) -> list[AssetCheckSpec]:
    return [
        AssetCheckSpec(name, asset=asset, description=text, blocking=name in _BLOCKING) for name, text in texts.items()
    ]


class Comparison(Config):
    """How much of both stores is compared."""

    compare: Literal["sample", "all"] = Field(
        default="sample", description="`all` streams every document and row, and keeps the outcome for the status page."
    )
    sample_size: int = Field(default=findings.SAMPLE, ge=1, description="About so many ids, spread over all of them.")


def checks_of(entity: Entity, assets: Assets) -> list[AssetChecksDefinition]:
    """Return the checks of an entity's assets."""

    @multi_asset_check(name=f"{raw_asset(entity)}_checks", specs=_specs(assets.raw, _OF_RAW), can_subset=True)
    def check_raw(context: AssetCheckExecutionContext, services: ResourceParam[Services]) -> Iterator[AssetCheckResult]:
        """Check what the last ingestions noted, and the documents."""
        of = services.of(entity.name)
        last = of.raw_store.last_ingestion()
        yield from _selected(
            context,
            {
                "last_ingestion": lambda: findings.last_ingestion(of, last),
                "quarantine_rate": lambda: findings.quarantine_rate(of, last),
                "source_schema": lambda: findings.source_schema(last),
                "unique_ids": lambda: findings.unique_ids(of),
                "documents_fit": lambda: findings.documents_fit(of),
            },
        )

    @multi_asset_check(name=f"{entity.table}_checks", specs=_specs(assets.rows, _OF_ROWS), can_subset=True)
    def check_rows(
        context: AssetCheckExecutionContext, config: Comparison, services: ResourceParam[Services]
    ) -> Iterator[AssetCheckResult]:
        """Check that the backlog moves, and that both stores agree."""
        of = services.of(entity.name)
        # Before the checks, which Dagster shows for the latest report only. Whoever migrates reports by themselves.
        if context.run.job_name == entity.job("check") and not of.ledger.backlog().batches:
            context.instance.report_runless_asset_event(confirmation(entity))

        @cache
        def compared() -> Reconciliation:
            # Of all, too, where a sample is bad or the last one of all was: it is kept for the pipeline's page, metrics
            # and alerts, which would show long what has been repaired since.
            if config.compare == "sample" and (of.last_reconciliation().summary or {}).get("ok", True):
                sample = of.reconcile_sample(config.sample_size)
                if sample.ok and not sample.outdated:
                    return sample
            return of.reconcile()

        @cache
        def counted() -> Census:
            return take_census(of)

        yield from _selected(
            context,
            {
                "lag": lambda: findings.lag(of),
                "dead_letters": lambda: findings.dead_letters(of),
                "nothing_is_stuck": lambda: findings.nothing_is_stuck(of, counted()),
                "conservation": lambda: findings.conservation(counted()),
                "content_matches": lambda: findings.content_matches(of, compared()),
                "no_stale_rows": lambda: findings.no_stale_rows(of, compared()),
            },
        )

    return [check_raw, check_rows]


def _selected(
    context: AssetCheckExecutionContext, looks: Mapping[str, Callable[[], Finding]]
) -> Iterator[AssetCheckResult]:
    """Evaluate those checks that the run has selected."""
    names = {key.name for key in context.selected_asset_check_keys}
    for name, look in looks.items():
        if name in names:
            found = look()
            yield AssetCheckResult(
                check_name=name,
                passed=not found.wrong,
                severity=found.severity,
                description="; ".join(found.wrong) or "all is well",
                metadata=found.numbers,
            )
