"""What a person wants to see of an entity's assets, as Dagster metadata.

Types and meanings of columns come from the models and stores; nothing of them is written twice.
"""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dagster import (
    AssetMaterialization,
    AssetObservation,
    BetaWarning,
    CodeReferencesMetadataValue,
    LocalFileCodeReference,
    MetadataValue,
    TableColumn,
    TableColumnConstraints,
    TableColumnDep,
    TableColumnLineage,
    TableRecord,
    TableSchema,
)

from pipeline_poc import raw_store, table
from pipeline_poc.ingestion import IngestionResult
from pipeline_poc.records import Entity, Kind, content_hash

_PREVIEW_CHARACTERS = 60
_JSON_TYPES: Mapping[Kind, str] = {"integer": "integer", "text": "string", "flag": "boolean"}
_UNIQUE = TableColumnConstraints(nullable=False, unique=True)
_REQUIRED = TableColumnConstraints(nullable=False)


def source_asset(entity: Entity) -> str:
    """Return the name of what the source serves, as it stands in Dagster's storage."""
    return f"jsonplaceholder_{entity.name}"


def raw_asset(entity: Entity) -> str:
    """Return the name of what the raw store holds; that of the rows is `Entity.table`."""
    return f"raw_{entity.name}"


def source_schema(entity: Entity) -> TableSchema:
    """Return the fields of a record in the source."""
    values = [
        TableColumn(value.name, _JSON_TYPES[value.kind], description=value.meaning, constraints=_REQUIRED)
        for value in entity.values
    ]
    return TableSchema([TableColumn("id", "integer", description="its id; unique", constraints=_UNIQUE), *values])


def raw_schema(entity: Entity) -> TableSchema:
    """Return the fields of a document."""
    return TableSchema(
        [
            TableColumn(name, type_, description=text, constraints=_UNIQUE if name == "externalId" else None)
            for name, (type_, text) in raw_store.document_fields(entity).items()
        ]
    )


def rows_schema(entity: Entity) -> TableSchema:
    """Return the columns of a table."""
    return TableSchema(
        [
            TableColumn(
                column.name,
                str(column.type),
                description=column.doc,
                constraints=TableColumnConstraints(
                    nullable=bool(column.nullable), unique=bool(column.unique or column.primary_key)
                ),
            )
            for column in table.table_of(entity).columns
        ]
    )


def raw_lineage(entity: Entity) -> TableColumnLineage:
    """Return from which fields of the source a document's fields come."""
    copied = {stored: [name] for name, stored in entity.stored_as.items()}
    # What is made of the content, made of all of it.
    made = dict.fromkeys(("contentHash", "version"), sorted(entity.stored_as))
    return _lineage(source_asset(entity), copied | made)


def rows_lineage(entity: Entity) -> TableColumnLineage:
    """Return from which fields of a document a row's columns come."""
    return _lineage(raw_asset(entity), {name: [name] for name in table.copied(entity)})


def _lineage(upstream: str, sources: Mapping[str, Sequence[str]]) -> TableColumnLineage:
    return TableColumnLineage(
        {column: [TableColumnDep(upstream, name) for name in names] for column, names in sources.items()}
    )


def source_text(entity: Entity) -> str:
    """Return what is said of the source's asset, in Markdown."""
    return f"""{entity.name.capitalize()} as the API serves them: where the data starts. The pipeline only reads it.

Each ingestion observes it: how many records it served, how long the answer took, its ETag, and whether anything has
changed.

```json
{json.dumps({"id": 1} | _example(entity), indent=2)}
```
"""


def raw_text(entity: Entity) -> str:
    """Return what is said of the documents' asset, in Markdown."""
    values = _example(entity)
    document = {
        "externalId": 1,
        **values,
        "ingestedAt": {"$date": "2026-01-01T00:00:00.000Z"},
        "migrated": True,
        "migratedAt": {"$date": "2026-01-01T00:00:04.000Z"},
        "contentHash": content_hash(1, *values.values()),
        "version": 1767225600000,
        "changedAt": {"$date": "2026-01-01T00:00:00.000Z"},
        "batchId": "20260101T000000000-5f2b9c1e",
    }
    return f"""{entity.name.capitalize()} of the source, a document each in MongoDB, with the state of their migration.

Materializing it ingests: what is new or changed is stored and joins the backlog; what is no valid {entity.noun} is put
into `{entity.collection("quarantined_records")}` with a reason code; nothing else is written. {_links_in_text(entity)}

```json
{json.dumps(document, indent=2)}
```
"""


def rows_text(entity: Entity) -> str:
    """Return what is said of the rows' asset, in Markdown."""
    return f"""Rows of the table `{entity.table}`, one a {entity.noun}, never older than a version already written.

Workers keep it up to date from the queue and report here what they did; the job of the checks reports when nothing was
left to do. Materializing it migrates the whole backlog in the run itself, by the same code. {_links_in_text(entity)}

```sql
{table.create_sql(entity)}
```
"""


def _example(entity: Entity) -> dict[str, Any]:
    """Return a record's values beside the id, each as its meaning where that is a text."""
    made: Mapping[Kind, Callable[[str], Any]] = {
        "integer": lambda _: 1,
        "text": lambda meaning: meaning,
        "flag": lambda _: False,
    }
    return {value.name: made[value.kind](value.meaning) for value in entity.values}


def _links_in_text(entity: Entity) -> str:
    return f"[The pipeline now]({entity.web_path}/pipeline) · [the API](/docs)"


def links(entity: Entity) -> dict[str, MetadataValue[Any]]:
    """Return links to what the web server has beside Dagster's pages."""
    return {"pipeline": MetadataValue.url(f"{entity.web_path}/pipeline"), "api": MetadataValue.url("/docs")}


def code_references(*functions: Callable[..., Any]) -> CodeReferencesMetadataValue:
    """Return where functions stand; by what they know themselves, since Dagster's own helper parses their files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BetaWarning)
        return CodeReferencesMetadataValue(
            code_references=[
                LocalFileCodeReference(
                    file_path=function.__code__.co_filename,
                    line_number=function.__code__.co_firstlineno,
                    label=f"{function.__module__.removeprefix('pipeline_poc.')}.{function.__name__}",
                )
                for function in functions
            ]
        )


def observation(entity: Entity, result: IngestionResult, url: str) -> AssetObservation:
    """Return what an ingestion saw of the source; a number that it did not see is left out, so that plots have a gap.

    Args:
        entity: What it ingested.
        result: Of the ingestion.
        url: Of the source, without secrets.
    """
    seen: dict[str, Any] = {
        "latency_s": round(result.latency_s, 4),
        "not_modified": result.not_modified,
        "url": MetadataValue.url(url),
    }
    if not result.not_modified:
        seen["count"] = result.fetched
    if result.etag:
        seen["etag"] = result.etag
    return AssetObservation(source_asset(entity), metadata=seen)


def ingestion_metadata(entity: Entity, result: IngestionResult) -> dict[str, Any]:
    """Return an ingestion's numbers, plottable over time, and what it put aside."""
    numbers = result.summary()
    numbers["records_per_s"] = round(result.fetched / result.duration_s, 1) if result.duration_s else 0.0
    numbers["dagster/column_lineage"] = raw_lineage(entity)
    if result.reasons:
        numbers["quarantine_reasons"] = MetadataValue.json(dict(result.reasons))
    if result.unknown_fields:
        numbers["unknown_fields"] = MetadataValue.json(dict(result.unknown_fields))
    if result.missing_fields:
        numbers["missing_fields"] = MetadataValue.json(dict(result.missing_fields))
    return numbers


def migration_metadata(entity: Entity, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return a migration's numbers, plottable over time; the UI takes a column's lineage from the latest report."""
    return {**summary, "dagster/column_lineage": rows_lineage(entity)}


def confirmation(entity: Entity) -> AssetMaterialization:
    """Return the report that the rows are up to date, though nobody had anything to migrate."""
    numbers = {"migrated": 0, "quarantined": 0, "batches": 0, "lag_s": 0.0}
    return AssetMaterialization(
        entity.table, description="nothing was left to migrate", metadata=migration_metadata(entity, numbers)
    )


def preview(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> MetadataValue[Any]:
    """Return some rows as a table, long texts cut; an empty table where there are none."""
    return MetadataValue.table(
        records=[TableRecord({name: _shown(row.get(name)) for name in columns}) for row in rows],
        schema=TableSchema(columns=[TableColumn(name, "string") for name in columns]),
    )


def _shown(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _PREVIEW_CHARACTERS else f"{text[:_PREVIEW_CHARACTERS]}…"
