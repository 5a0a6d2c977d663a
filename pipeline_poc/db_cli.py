"""The commands for the schemas of the stores: look at them, and upgrade them."""

import json
import sys
from dataclasses import asdict
from typing import Any

import click

from pipeline_poc.commands import EXIT_NOT_OK, as_json, command, open_services
from pipeline_poc.schema import Schema
from pipeline_poc.settings import Settings

_PATIENCE_S = 4 * 3600.0
"""A change of a large table, or an index of a large collection, is one statement that is waited for."""


@click.group()
def db() -> None:
    """Look at the schemas of MongoDB and the relational store, and upgrade them.

    With ENVIRONMENT=production nothing else upgrades them.

    \b
    Examples:
      pipeline-poc db status
      pipeline-poc db upgrade
    """


@db.command()
@as_json
@command
def status(settings: Settings, as_json: bool) -> None:
    """Show which schema each store has, and which one this code needs; exit code 1 if it can't work with one.

    \b
    Example:
      pipeline-poc db status --json | jq .stores
    """
    with open_services(settings) as services:
        found = services.schemas()
    if as_json:
        click.echo(json.dumps({"stores": [_as_dict(schema) for schema in found]}))
    else:
        for schema in found:
            click.echo(schema.sentence())
    if not all(schema.is_usable for schema in found):
        sys.exit(EXIT_NOT_OK)


@db.command()
@click.option("--sql", is_flag=True, help="Change nothing; print the SQL that would be executed.")
@as_json
@command
def upgrade(settings: Settings, sql: bool, as_json: bool) -> None:
    """Bring both schemas to what this code needs; may be repeated, and run several times at once.

    A schema that is newer, and works with this code, is left as it is.

    \b
    Examples:
      pipeline-poc db upgrade
      pipeline-poc db upgrade --sql   the relational store's part, for a person to read first
    """
    with open_services(settings, answer_timeout_s=_PATIENCE_S) as services:
        if sql:
            text = services.schema_sql()
            click.echo(json.dumps({"sql": text}) if as_json else text or "-- nothing to do", nl=as_json or not text)
            return
        done = []
        for upgraded in services.upgrade_schemas():
            done.append(_as_dict(upgraded.after) | {"before": upgraded.before.found, "note": upgraded.note})
            if not as_json:
                click.echo(upgraded.sentence())
        if as_json:
            click.echo(json.dumps({"stores": done}))


def _as_dict(schema: Schema) -> dict[str, Any]:
    return asdict(schema) | {"verdict": schema.verdict}
