"""The command line: ``pipeline-poc COMMAND``.

Exit codes: 0 all is well; 1 the pipeline is not as it should be; 2 wrong usage or settings;
3 a service is not available, or answers with something else than posts.
"""

import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import click
from rich.console import Console

from pipeline_poc import screens
from pipeline_poc.errors import (
    PipelineError,
    ServiceStartError,
    SettingsError,
    SourceAnswerError,
    TransientError,
    mask_secrets,
)
from pipeline_poc.logs import configure_logging
from pipeline_poc.settings import Settings, load_settings

if TYPE_CHECKING:
    from pipeline_poc.services import Services
    from pipeline_poc.up import Outcome

Command = TypeVar("Command", bound=Callable[..., Any])

EXIT_NOT_OK = 1
EXIT_SETTINGS = 2
EXIT_UNAVAILABLE = 3

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text for people.")


def _exit_code(error: PipelineError) -> int:
    if isinstance(error, SettingsError):
        return EXIT_SETTINGS
    is_unavailable = isinstance(error, (TransientError, ServiceStartError, SourceAnswerError))
    return EXIT_UNAVAILABLE if is_unavailable else EXIT_NOT_OK


def _command(command: Command) -> Command:
    """Read the settings, set the log up, and turn the pipeline's errors into a sentence and an exit code."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            settings = load_settings()
            # On a terminal the command itself says what happened.
            quiet = sys.stderr.isatty() and command.__name__ != "worker" and settings.log_level == "INFO"
            configure_logging("WARNING" if quiet else settings.log_level, settings.log_format)
            command(settings, *args, **kwargs)
        except PipelineError as error:
            _fail(error, as_json=kwargs.get("as_json", False))

    return cast(Command, run)


def _fail(error: PipelineError, *, as_json: bool) -> NoReturn:
    text = mask_secrets(str(error))
    if as_json:
        click.echo(json.dumps({"error": type(error).__name__, "message": text}))
    else:
        click.echo(f"Error: {text}", err=True)
    sys.exit(_exit_code(error))


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog="Settings: see .env.example.")
@click.version_option(package_name="pipeline-poc")
def cli() -> None:
    """Move posts from an API through MongoDB and a Redis queue to MySQL, and prove that none is lost.

    Stores are embedded unless MONGO_URL, REDIS_URL and SQL_URL name others.

    \b
    Examples:
      pipeline-poc up                 everything on this machine, with the UI
      pipeline-poc status             what answers, what is stored, what waits
      pipeline-poc reconcile          prove that both stores agree
    """


@cli.command()
@click.option("--once", is_flag=True, help="Ingest, migrate, reconcile, then stop; no UI, no schedule.")
@as_json
@_command
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

    def show(outcome: "Outcome") -> None:
        if as_json:
            click.echo(json.dumps(outcome.as_dict()))
        else:
            screens.show_outcome(console, outcome)

    with ExitStack() as stack:
        services = _services(settings)
        stack.callback(services.close, wait=True)
        with ThreadPoolExecutor(1) as pool, console.status("starting the stores"):
            opening = pool.submit(services.open_all)
            from pipeline_poc.up import first_pass_and_stay  # noqa: PLC0415 - imports Dagster while the stores start

            opening.result()
        outcome = first_pass_and_stay(services, console, once=once, show=show)
    if once and not (outcome and outcome.ok):
        error = outcome and outcome.ingestion_error
        sys.exit(_exit_code(error) if isinstance(error, PipelineError) else EXIT_NOT_OK)


@cli.command()
@as_json
@_command
def ingest(settings: Settings, as_json: bool) -> None:
    """Bring the raw store to what the source serves now.

    \b
    Examples:
      pipeline-poc ingest
      SOURCE_URL=https://api.example.org/posts pipeline-poc ingest --json
    """
    with _services(settings) as services:
        _show(services.ingest().summary(), "Ingested", as_json=as_json)


@cli.command()
@as_json
@_command
def enqueue(settings: Settings, as_json: bool) -> None:
    """Put the backlog on the queue, as one tick of the sensor does.

    \b
    Example:
      pipeline-poc enqueue && pipeline-poc worker --burst
    """
    with _services(settings) as services:
        result = services.tick()
        if as_json:
            click.echo(json.dumps(asdict(result)))
        else:
            click.echo(result.sentence())


@cli.command()
@click.option("--count", default=1, show_default=True, type=click.IntRange(1, 64), help="Worker processes.")
@click.option("--burst", is_flag=True, help="Stop when the queue is empty.")
@as_json
@_command
def worker(settings: Settings, count: int, burst: bool, as_json: bool) -> None:
    """Execute migration jobs until SIGTERM or Ctrl-C; the running job is finished first.

    \b
    Examples:
      pipeline-poc worker --count 4
      pipeline-poc worker --burst     until the queue is empty
    """
    from pipeline_poc.worker import run_worker, run_workers  # noqa: PLC0415 - imports Dagster

    if count == 1:
        with _services(settings) as services:
            jobs = run_worker(services, burst=burst)
            if as_json:
                click.echo(json.dumps({"jobs": jobs}))
    else:
        status = run_workers(count, burst=burst)
        if as_json:
            click.echo(json.dumps({"workers": count, "exit_status": status}))
        sys.exit(status)


@cli.command()
@as_json
@_command
def migrate(settings: Settings, as_json: bool) -> None:
    """Migrate the whole backlog in this process, past the queue.

    \b
    Example:
      pipeline-poc ingest && pipeline-poc migrate && pipeline-poc reconcile
    """
    with _services(settings) as services:
        services.adopt()
        _show(services.migrate().summary(), "Migrated", as_json=as_json)


@cli.command()
@as_json
@_command
def requeue(settings: Settings, as_json: bool) -> None:
    """Put dead letters back into the backlog, once their cause is gone.

    \b
    Example:
      pipeline-poc status && pipeline-poc requeue
    """
    with _services(settings) as services:
        _show({"batches": services.requeue()}, "Requeued", as_json=as_json)


@cli.command()
@as_json
@_command
def status(settings: Settings, as_json: bool) -> None:
    """Show what answers, what is stored, and what waits; exit code 3 if a service is away.

    \b
    Examples:
      pipeline-poc status
      pipeline-poc status --json | jq .backlog.lag_s
    """
    from pipeline_poc.status import collect  # noqa: PLC0415 - keeps `--help` quick

    with _services(settings) as services:
        report = collect(services)
    if as_json:
        click.echo(json.dumps(report.as_dict()))
    else:
        screens.show_status(Console(highlight=False), report)
    if not report.ok:
        sys.exit(EXIT_UNAVAILABLE)


@cli.command()
@as_json
@_command
def reconcile(settings: Settings, as_json: bool) -> None:
    """Compare both stores, post by post; exit code 1 if they don't agree.

    \b
    Examples:
      pipeline-poc reconcile
      pipeline-poc reconcile --json | jq .ids.missing
    """
    with _services(settings) as services:
        result = services.reconcile()
    if as_json:
        click.echo(json.dumps(result.as_dict()))
    else:
        screens.show_reconciliation(Console(highlight=False), result)
    if not result.ok:
        sys.exit(EXIT_NOT_OK)


def _services(settings: Settings) -> "Services":
    from pipeline_poc.services import Services  # noqa: PLC0415 - keeps `--help` quick

    return Services(settings)


def _show(summary: dict[str, Any], title: str, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(summary))
    else:
        screens.show_numbers(Console(highlight=False), title, summary)


def main() -> None:
    """Run the command line."""
    cli(prog_name="pipeline-poc")
