"""The command line: ``pipeline-poc COMMAND``.

Exit codes: 0 all is well; 1 the pipeline is not as it should be; 2 wrong usage or settings;
3 a service is not available, or answers with something else than posts.
"""

import asyncio
import getpass
import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import click
from rich.console import Console

from pipeline_poc import desk_screens, screens
from pipeline_poc.errors import (
    PipelineError,
    ServiceStartError,
    SettingsError,
    SourceAnswerError,
    TransientError,
    mask_secrets,
)
from pipeline_poc.logs import configure_logging
from pipeline_poc.selection import Selection, SelectionError
from pipeline_poc.settings import Settings, load_settings

if TYPE_CHECKING:
    from pipeline_poc.control import Mode
    from pipeline_poc.services import Services
    from pipeline_poc.up import Outcome

Command = TypeVar("Command", bound=Callable[..., Any])

EXIT_NOT_OK = 1
EXIT_SETTINGS = 2
EXIT_UNAVAILABLE = 3

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text for people.")


def _exit_code(error: PipelineError) -> int:
    if isinstance(error, (SettingsError, SelectionError)):
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
@click.option(
    "--workspace",
    type=click.Path(path_type=Path),
    default=Path("workspace.yaml"),
    show_default=True,
    help="Names Dagster's code servers.",
)
@_command
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
@_command
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
@_command
def drain(settings: Settings, reason: str | None, as_json: bool) -> None:
    """Put nothing more on the queue; workers finish what is on it.

    \b
    Example:
      pipeline-poc drain && pipeline-poc status
    """
    _set_mode(settings, "draining", reason, as_json=as_json)


@cli.command()
@as_json
@_command
def resume(settings: Settings, as_json: bool) -> None:
    """End a pause or a drain.

    \b
    Example:
      pipeline-poc resume
    """
    _set_mode(settings, "running", None, as_json=as_json)


def _set_mode(settings: Settings, mode: "Mode", reason: str | None, *, as_json: bool) -> None:
    with _services(settings) as services:
        control = services.set_mode(mode, by=_operator(), reason=reason)
    _show({"mode": control.mode, "by": control.by, "reason": control.reason or ""}, "Migration", as_json=as_json)


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
        services.require_running()
        services.adopt()
        _show(services.migrate().summary(), "Migrated", as_json=as_json)


@cli.command()
@as_json
@_command
def status(settings: Settings, as_json: bool) -> None:
    """Show what answers, what moves, and what waits for a person; exit code 3 if something has failed.

    The same report as GET /health. Dagster is asked through the web server on WEB_HOST and WEB_PORT.

    \b
    Examples:
      pipeline-poc status
      pipeline-poc status --json | jq '.checks["migration:lag"]'
    """
    from pipeline_poc.health import inspect  # noqa: PLC0415 - keeps `--help` quick

    with _services(settings) as services:
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


@cli.command()
@click.option("--dry-run", is_flag=True, help="Change nothing; show what would be done.")
@as_json
@_command
def repair(settings: Settings, dry_run: bool, as_json: bool) -> None:
    """Compare both stores, and put what is wrong back into the backlog; exit code 1 if something is left.

    Rows without a post are left: whether to delete them is for you to decide.

    \b
    Examples:
      pipeline-poc repair --dry-run
      pipeline-poc repair && pipeline-poc migrate && pipeline-poc reconcile
    """
    with _services(settings) as services:
        result = services.repair(dry_run=dry_run)
    if as_json:
        _print_json(result)
    else:
        desk_screens.show_repair(Console(highlight=False), result)
    if any(result.left.values()):
        sys.exit(EXIT_NOT_OK)


@cli.command()
@click.argument("external_id", metavar="ID", type=int)
@as_json
@_command
def post(settings: Settings, external_id: int, as_json: bool) -> None:
    """Show all that is known of one post; exit code 1 if it is unknown, or the stores don't agree about it.

    \b
    Examples:
      pipeline-poc post 42
      pipeline-poc post 42 --json | jq .verdict
    """
    with _services(settings) as services:
        found = services.passport(external_id)
    if found is None:
        raise PipelineError(f"Neither store knows a post {external_id}")
    if as_json:
        _print_json(found)
    else:
        desk_screens.show_passport(Console(highlight=False), found)
    if found.agrees is False:
        sys.exit(EXIT_NOT_OK)
    if found.away:
        sys.exit(EXIT_UNAVAILABLE)


def _selecting(command: Command) -> Command:
    """Give a command the options that select, and --dry-run."""
    for option in (
        click.option("--dry-run", is_flag=True, help="Change nothing; show what would be done."),
        click.option("--all", "everything", is_flag=True, help="All there are."),
        click.option("--reason", help="All of this reason, as `list` shows it."),
        click.option("--id", "ids", multiple=True, metavar="ID", help="This one; may be given several times."),
    ):
        command = option(command)
    return command


def _listing(command: Command) -> Command:
    """Give a command the options of a list."""
    for option in (
        click.option("--cursor", help="Go on where the list before ended."),
        click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 200), help="Most to list."),
        click.option("--reason", help="Only those of this reason."),
    ):
        command = option(command)
    return command


because = click.option("--because", required=True, help="Why; kept for whoever asks later.")


def _selection(ids: Sequence[str], reason: str | None, everything: bool) -> Selection:
    if bool(ids) + (reason is not None) + everything != 1:
        raise click.UsageError("Say which ones: by --id, by --reason, or --all.")
    return Selection(ids=tuple(ids) or None, reason=reason, all=everything)


@cli.group()
def quarantine() -> None:
    """Look at what can't be ingested or migrated; requeue or discard it.

    \b
    Examples:
      pipeline-poc quarantine list
      pipeline-poc quarantine requeue --reason too_long --dry-run
      pipeline-poc quarantine discard --reason wrong_type --because "test data"
    """


@quarantine.command("list")
@_listing
@click.option("--discarded", is_flag=True, help="Those that were discarded, instead of the others.")
@as_json
@_command
def list_quarantine(
    settings: Settings, *, reason: str | None, limit: int, cursor: str | None, discarded: bool, as_json: bool
) -> None:
    """List what is quarantined by reason, and the latest items.

    \b
    Examples:
      pipeline-poc quarantine list
      pipeline-poc quarantine list --reason missing_field --json | jq .items[].payload
    """
    with _services(settings) as services:
        groups = [] if discarded else services.quarantine.groups()
        page = services.quarantine.items(reason, limit=limit, cursor=cursor, discarded=discarded)
    groups = [group for group in groups if reason in (None, group.reason)]
    if as_json:
        _print_json({"groups": groups, "items": page.items, "next_cursor": page.next_cursor})
    else:
        desk_screens.show_quarantine(Console(highlight=False), groups, page)


@quarantine.command("show")
@click.argument("item_id", metavar="ID")
@as_json
@_command
def show_quarantined(settings: Settings, item_id: str, as_json: bool) -> None:
    """Show one record or post with its whole payload.

    \b
    Example:
      pipeline-poc quarantine show post-0123456789abcdef01234567
    """
    with _services(settings) as services:
        item = services.quarantine.item(item_id)
    if item is None:
        raise PipelineError(f"Nothing in quarantine has the id {desk_screens.visible(item_id)}")
    if as_json:
        _print_json(item)
    else:
        desk_screens.show_quarantined(Console(highlight=False), item)


@quarantine.command("requeue")
@_selecting
@as_json
@_command
def requeue_quarantined(
    settings: Settings, *, ids: Sequence[str], reason: str | None, everything: bool, dry_run: bool, as_json: bool
) -> None:
    """Put what is valid by today's rules back into the backlog.

    \b
    Examples:
      pipeline-poc quarantine requeue --all --dry-run
      pipeline-poc quarantine requeue --reason relational_1406
    """
    selection = _selection(ids, reason, everything)
    with _services(settings) as services:
        result = services.requeue_quarantined(selection, dry_run=dry_run)
    _show(asdict(result), "Requeued", as_json=as_json)


@quarantine.command("discard")
@_selecting
@because
@as_json
@_command
def discard_quarantined(
    settings: Settings,
    *,
    ids: Sequence[str],
    reason: str | None,
    everything: bool,
    dry_run: bool,
    because: str,
    as_json: bool,
) -> None:
    """Keep what is selected for the record only: it is listed no more.

    \b
    Example:
      pipeline-poc quarantine discard --reason not_an_object --because "the source's banner"
    """
    selection = _selection(ids, reason, everything)
    with _services(settings) as services:
        result = services.discard_quarantined(selection, because, _operator(), dry_run=dry_run)
    _show(asdict(result), "Discarded", as_json=as_json)


@cli.group()
def dead_letters() -> None:
    """Look at batches whose attempts ran out; requeue or discard them.

    \b
    Examples:
      pipeline-poc dead-letters list
      pipeline-poc dead-letters requeue --all
      pipeline-poc dead-letters discard --reason ValueError --because "will not be mended"
    """


@dead_letters.command("list")
@_listing
@as_json
@_command
def list_dead_letters(settings: Settings, *, reason: str | None, limit: int, cursor: str | None, as_json: bool) -> None:
    """List dead letters by the type of their error, and the latest ones.

    \b
    Example:
      pipeline-poc dead-letters list --json | jq .groups
    """
    with _services(settings) as services:
        groups = [group for group in services.dead_letters.groups() if reason in (None, group.reason)]
        page = services.dead_letters.items(reason, limit=limit, cursor=cursor)
    if as_json:
        _print_json({"groups": groups, "items": page.items, "next_cursor": page.next_cursor})
    else:
        desk_screens.show_dead_letters(Console(highlight=False), groups, page)


@dead_letters.command("show")
@click.argument("batch_id", metavar="ID")
@as_json
@_command
def show_dead_letter(settings: Settings, batch_id: str, as_json: bool) -> None:
    """Show one dead letter, with some of the posts that wait in it.

    \b
    Example:
      pipeline-poc dead-letters show 20240506T070809123-0123abcd
    """
    with _services(settings) as services:
        letter = services.dead_letters.item(batch_id)
    if letter is None:
        raise PipelineError(f"No dead letter has the id {desk_screens.visible(batch_id)}")
    if as_json:
        _print_json(letter)
    else:
        desk_screens.show_dead_letter(Console(highlight=False), letter)


@dead_letters.command("requeue")
@_selecting
@as_json
@_command
def requeue_dead_letters(
    settings: Settings, *, ids: Sequence[str], reason: str | None, everything: bool, dry_run: bool, as_json: bool
) -> None:
    """Put dead letters back into the backlog, once their cause is gone.

    \b
    Example:
      pipeline-poc dead-letters list && pipeline-poc dead-letters requeue --all
    """
    selection = _selection(ids, reason, everything)
    with _services(settings) as services:
        result = services.requeue_dead_letters(selection, dry_run=dry_run)
    _show(asdict(result), "Requeued", as_json=as_json)


@dead_letters.command("discard")
@_selecting
@because
@as_json
@_command
def discard_dead_letters(
    settings: Settings,
    *,
    ids: Sequence[str],
    reason: str | None,
    everything: bool,
    dry_run: bool,
    because: str,
    as_json: bool,
) -> None:
    """Give batches up: their posts go to quarantine, where they can still be requeued.

    \b
    Example:
      pipeline-poc dead-letters discard --reason ValueError --because "will not be mended"
    """
    selection = _selection(ids, reason, everything)
    with _services(settings) as services:
        result = services.discard_dead_letters(selection, because, _operator(), dry_run=dry_run)
    _show(asdict(result), "Discarded", as_json=as_json)


def _operator() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # A container's user need not have a name.
        name = f"user {os.getuid()}"
    return f"{name} (command line)"


def _services(settings: Settings) -> "Services":
    from pipeline_poc.services import Services  # noqa: PLC0415 - keeps `--help` quick

    return Services(settings)


def _show(summary: dict[str, Any], title: str, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(summary))
    else:
        screens.show_numbers(Console(highlight=False), title, summary)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, default=_as_json_value))


def _as_json_value(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return asdict(value)


def main() -> None:
    """Run the command line."""
    cli(prog_name="pipeline-poc")
