"""What a person wants to see of an asset, as Dagster metadata."""

from collections.abc import Mapping, Sequence
from typing import Any

from dagster import MetadataValue, TableColumn, TableRecord, TableSchema

from pipeline_poc import raw_store, table
from pipeline_poc.ingestion import IngestionResult

_PREVIEW_CHARACTERS = 60

RAW_POSTS_SCHEMA = TableSchema(
    columns=[TableColumn(name, type_, description=text) for name, (type_, text) in raw_store.FIELDS.items()]
)
MIGRATED_POSTS_SCHEMA = TableSchema(
    columns=[TableColumn(name, type_, description=table.COLUMNS[name]) for name, type_ in table.column_types().items()]
)


def ingestion_metadata(result: IngestionResult) -> dict[str, Any]:
    """Return an ingestion's numbers, plottable over time, and what it put aside."""
    numbers = result.summary()
    numbers["posts_per_s"] = round(result.fetched / result.duration_s, 1) if result.duration_s else 0.0
    if result.reasons:
        numbers["quarantine_reasons"] = MetadataValue.json(dict(result.reasons))
    if result.unknown_fields:
        numbers["unknown_fields"] = MetadataValue.json(dict(result.unknown_fields))
    return numbers


def preview(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> MetadataValue[Any]:
    """Return some rows as a table, long texts cut; an empty table where there are none."""
    return MetadataValue.table(
        records=[TableRecord({name: _shown(row.get(name)) for name in columns}) for row in rows],
        schema=TableSchema(columns=[TableColumn(name, "string") for name in columns]),
    )


def _shown(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _PREVIEW_CHARACTERS else f"{text[:_PREVIEW_CHARACTERS]}…"
