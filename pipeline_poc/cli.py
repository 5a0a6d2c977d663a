"""The command line: ``pipeline-poc COMMAND``; `commands` says what its exit codes mean."""

import asyncio
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from pipeline_poc import alerts_cli, chaos_cli, config_cli, db_cli, desk_cli, desk_screens, replay_cli, screens
from pipeline_poc.commands import (
    EXIT_NOT_OK,
    EXIT_UNAVAILABLE,
    as_json,
    chosen_entity,
    command,
    exit_code,
    named_entity,
    open_services,
    operator,
    print_json,
    show,
)
from pipeline_poc.errors import PipelineError
from pipeline_poc.settings import Settings

if TYPE_CHECKING:
    from pipeline_poc.control import Mode
    from pipeline_poc.up import Outcome


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog="Settings: see `pipeline-poc config`.")
@click.option("--entity", help="What the command is about, one of ENTITIES.  [default: posts]")
@click.version_option(package_name="pipeline-poc")
def cli(entity: str | None) -> None:
    """Move posts from an API through MongoDB and a Redis queue to MySQL, and prove that none is lost.

    Stores are embedded unless MONGO_URL, REDIS_URL and SQL_URL name others.

    \b
    Examples:
      pipeline-poc up                 everything on this machine, with the UI
      pipeline-poc status             what answers, what is stored, what waits
      pipeline-poc reconcile          prove that both stores agree
      pipeline-poc --entity comments reconcile
    """


@cli.command()
@click.option("--once", is_flag=True, help="Ingest, migrate, reconcile, then stop; no UI, no schedule.")
@as_json
@command
def up(settings: Settings, once: bool, as_json: bool) -> None:
    """Start everything, ingest, migrate, show what happened, and stay up with the UI.

    \b
    Examples:
      pipeline-poc up                 stays until Ctrl-C
      WEB_PORT=3001 pipeline-poc up   the UI on another port
      pipeline-poc up --once --json   for scripts; exit code 0 once all is migrated and reconciled
    """
    # Dagster captures a run's output at the level of file descriptors; what is said here escapes it.
    console = Console(file=os.fdopen(os.dup(sys.stdout.fileno()), "w"), highlight=False, quiet=as_json)

    def show_outcome(outcome: "Outcome") -> None:
        if as_json:
            click.echo(json.dumps(outcome.as_dict()))
        else:
            screens.show_outcome(console, outcome)

    with ExitStack() as stack:
        services = open_services(settings)
        stack.callback(services.close, wait=True)
        with ThreadPoolExecutor(1) as pool, console.status("starting the stores"):
            opening = pool.submit(services.open_all)
            from pipeline_poc.up import first_pass_and_stay  # noqa: PLC0415 - imports Dagster while the stores start

            opening.result()
        outcomes = first_pass_and_stay(services, console, once=once, show=show_outcome)
    if once and not (len(outcomes) == len(settings.entities) and all(outcome.ok for outcome in outcomes)):
        errors = [outcome.ingestion_error for outcome in outcomes if isinstance(outcome.ingestion_error, PipelineError)]
        sys.exit(exit_code(errors[0]) if errors else EXIT_NOT_OK)


@cli.command()
@click.option("--full", is_flag=True, help="Ask for everything, even if nothing has changed since the last time.")
@as_json
@command
def ingest(settings: Settings, full: bool, as_json: bool) -> None:
    """Bring the raw store to what the source serves now.

    \b
    Examples:
      pipeline-poc ingest
      pipeline-poc ingest --full      after MongoDB was restored from a backup
      SOURCE_URL=https://api.example.org/posts pipeline-poc ingest --json
    """
    with open_services(settings) as services:
        show(services.ingest(full=full).summary(), "Ingested", as_json=as_json)


@cli.command()
@as_json
@command
def enqueue(settings: Settings, as_json: bool) -> None:
    """Put the backlog on the queue, as one tick of the sensor does.

    \b
    Example:
      pipeline-poc enqueue && pipeline-poc worker --burst
    """
    with open_services(settings) as services:
        result = services.tick()
        if as_json:
            click.echo(json.dumps(asdict(result)))
        else:
            click.echo(result.sentence(services.entity.noun))


@cli.command()
@click.option("--count", default=1, show_default=True, type=click.IntRange(1, 64), help="Worker processes.")
@click.option("--burst", is_flag=True, help="Stop when the queue is empty.")
@as_json
@command
def worker(settings: Settings, count: int, burst: bool, as_json: bool) -> None:
    """Execute migration jobs until SIGTERM or Ctrl-C; the running job is finished first.

    With several ENTITIES, and none chosen by --entity, each gets workers of its own.

    \b
    Examples:
      pipeline-poc worker --count 4
      pipeline-poc worker --burst     until the queue is empty
    """
    from pipeline_poc.worker import run_worker, run_workers  # noqa: PLC0415 - imports RQ

    entities = [chosen_entity(settings).name] if named_entity() else settings.entities
    if count * len(entities) == 1:
        with open_services(settings) as services:
            jobs = run_worker(services, burst=burst, close=True)
            if as_json:
                click.echo(json.dumps({"jobs": jobs}))
    else:
        status = run_workers(count, entities, burst=burst, grace_s=settings.shutdown_grace_s)
        if as_json:
            click.echo(json.dumps({"workers": count * len(entities), "exit_status": status}))
        sys.exit(status)


@cli.command()
@click.option(
    "--workspace",
    type=click.Path(path_type=Path),
    default=Path("workspace.yaml"),
    show_default=True,
    help="Names Dagster's code servers.",
)
@command
def webserver(settings: Settings, workspace: Path) -> None:
    """Serve Dagster's UI, the REST endpoints, the status page and the metrics, on WEB_HOST and WEB_PORT.

    \b
    Examples:
      DAGSTER_HOME=/dagster pipeline-poc webserver
      WEB_HOST=0.0.0.0 API_OPERATE_TOKEN_HASHES=... pipeline-poc webserver --workspace deploy/workspace.yaml
    """
    from pipeline_poc.web.server import serve  # noqa: PLC0415 - imports Dagster

    serve(settings, workspace)


@cli.command()
@as_json
def token(as_json: bool) -> None:
    """Make a token for the REST endpoints, and the hash of it that goes into the settings.

    \b
    Example:
      pipeline-poc token              then API_OPERATE_TOKEN_HASHES=<hash>, or API_READ_TOKEN_HASHES=<hash>
    """
    from pipeline_poc.web.auth import new_token  # noqa: PLC0415 - keeps `--help` quick

    made, digest = new_token()
    if as_json:
        click.echo(json.dumps({"token": made, "hash": digest}))
    else:
        click.echo(f"token  {made}\nhash   {digest}\nThe token is shown this once; whoever has it may use it.")


@cli.command()
@click.option("--reason", help="Why; shown to everybody.")
@as_json
@command
def pause(settings: Settings, reason: str | None, as_json: bool) -> None:
    """Begin no more migration jobs; what is executed is finished, and ingestion goes on.

    \b
    Example:
      pipeline-poc pause --reason "MySQL moves to another host"
    """
    _set_mode(settings, "paused", reason, as_json=as_json)


@cli.command()
@click.option("--reason", help="Why; shown to everybody.")
@as_json
@command
def drain(settings: Settings, reason: str | None, as_json: bool) -> None:
    """Put nothing more on the queue; workers finish what is on it.

    \b
    Example:
      pipeline-poc drain && pipeline-poc status
    """
    _set_mode(settings, "draining", reason, as_json=as_json)


@cli.command()
@as_json
@command
def resume(settings: Settings, as_json: bool) -> None:
    """End a pause or a drain.

    \b
    Example:
      pipeline-poc resume
    """
    _set_mode(settings, "running", None, as_json=as_json)


def _set_mode(settings: Settings, mode: "Mode", reason: str | None, *, as_json: bool) -> None:
    with open_services(settings) as services:
        control = services.set_mode(mode, by=operator(), reason=reason)
    show({"mode": control.mode, "by": control.by, "reason": control.reason or ""}, "Migration", as_json=as_json)


@cli.command()
@as_json
@command
def migrate(settings: Settings, as_json: bool) -> None:
    """Migrate the whole backlog in this process, past the queue.

    \b
    Example:
      pipeline-poc ingest && pipeline-poc migrate && pipeline-poc reconcile
    """
    with open_services(settings) as services:
        services.require_running()
        services.adopt()
        show(services.migrate().summary(), "Migrated", as_json=as_json)


@cli.command()
@as_json
@command
def status(settings: Settings, as_json: bool) -> None:
    """Show what answers, what moves, and what waits for a person; exit code 3 if something has failed.

    The same report as GET /health. Dagster is asked through the web server on WEB_HOST and WEB_PORT.

    \b
    Examples:
      pipeline-poc status
      pipeline-poc status --json | jq '.checks["migration:lag"]'
    """
    from pipeline_poc.health import inspect  # noqa: PLC0415 - keeps `--help` quick

    with open_services(settings) as services:
        report = asyncio.run(inspect(services))
        posts = services.raw_store.counts() if report.find("mongodb:responseTime").status == "pass" else None
        is_stand_in = services.source.is_stand_in
    if as_json:
        click.echo(json.dumps(report.as_dict() | {"posts": asdict(posts) if posts else None}))
    else:
        screens.show_health(Console(highlight=False), report, posts, is_stand_in=is_stand_in)
    if report.status == "fail":
        sys.exit(EXIT_UNAVAILABLE)


@cli.command()
@as_json
@command
def reconcile(settings: Settings, as_json: bool) -> None:
    """Compare both stores, post by post; exit code 1 if they don't agree.

    \b
    Examples:
      pipeline-poc reconcile
      pipeline-poc reconcile --json | jq .ids.missing
    """
    with open_services(settings) as services:
        result = services.reconcile()
    if as_json:
        click.echo(json.dumps(result.as_dict()))
    else:
        screens.show_reconciliation(Console(highlight=False), result)
    if not result.ok:
        sys.exit(EXIT_NOT_OK)


@cli.command()
@click.option("--dry-run", is_flag=True, help="Change nothing; show what would be done.")
@as_json
@command
def repair(settings: Settings, dry_run: bool, as_json: bool) -> None:
    """Compare both stores, and put what is wrong back into the backlog; exit code 1 if something is left.

    Rows without a post are left: whether to delete them is for you to decide.

    \b
    Examples:
      pipeline-poc repair --dry-run
      pipeline-poc repair && pipeline-poc migrate && pipeline-poc reconcile
    """
    with open_services(settings) as services:
        result = services.repair(dry_run=dry_run)
    if as_json:
        print_json(result)
    else:
        desk_screens.show_repair(Console(highlight=False), result)
    if any(result.left.values()):
        sys.exit(EXIT_NOT_OK)


for other in (
    config_cli.config,
    db_cli.db,
    alerts_cli.alerts,
    desk_cli.post,
    desk_cli.quarantine,
    desk_cli.dead_letters,
    replay_cli.replay,
    chaos_cli.chaos,
):
    cli.add_command(other)


def main() -> None:
    """Run the command line."""
    cli(prog_name="pipeline-poc")
