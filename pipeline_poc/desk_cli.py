"""The commands of the operator's desk: posts, quarantine and dead letters."""

import sys
from collections.abc import Sequence
from dataclasses import asdict

import click
from rich.console import Console

from pipeline_poc import desk_screens
from pipeline_poc.commands import (
    EXIT_NOT_OK,
    EXIT_UNAVAILABLE,
    Command,
    as_json,
    command,
    open_services,
    operator,
    print_json,
    show,
)
from pipeline_poc.errors import PipelineError
from pipeline_poc.selection import Selection
from pipeline_poc.settings import Settings


@click.command()
@click.argument("external_id", metavar="ID", type=int)
@as_json
@command
def post(settings: Settings, external_id: int, as_json: bool) -> None:
    """Show all that is known of one post; exit code 1 if it is unknown, or the stores don't agree about it.

    \b
    Examples:
      pipeline-poc post 42
      pipeline-poc post 42 --json | jq .verdict
    """
    with open_services(settings) as services:
        found = services.passport(external_id)
    if found is None:
        raise PipelineError(f"Neither store knows a post {external_id}")
    if as_json:
        print_json(found)
    else:
        desk_screens.show_passport(Console(highlight=False), found)
    if found.agrees is False:
        sys.exit(EXIT_NOT_OK)
    if found.away:
        sys.exit(EXIT_UNAVAILABLE)


def _selecting(body: Command) -> Command:
    """Give a command the options that select, and --dry-run."""
    for option in (
        click.option("--dry-run", is_flag=True, help="Change nothing; show what would be done."),
        click.option("--all", "everything", is_flag=True, help="All there are."),
        click.option("--reason", help="All of this reason, as `list` shows it."),
        click.option("--id", "ids", multiple=True, metavar="ID", help="This one; may be given several times."),
    ):
        body = option(body)
    return body


def _listing(body: Command) -> Command:
    """Give a command the options of a list."""
    for option in (
        click.option("--cursor", help="Go on where the list before ended."),
        click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 200), help="Most to list."),
        click.option("--reason", help="Only those of this reason."),
    ):
        body = option(body)
    return body


because = click.option("--because", required=True, help="Why; kept for whoever asks later.")


def _selection(ids: Sequence[str], reason: str | None, everything: bool) -> Selection:
    if bool(ids) + (reason is not None) + everything != 1:
        raise click.UsageError("Say which ones: by --id, by --reason, or --all.")
    return Selection(ids=tuple(ids) or None, reason=reason, all=everything)


@click.group()
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
@command
def list_quarantine(
    settings: Settings, *, reason: str | None, limit: int, cursor: str | None, discarded: bool, as_json: bool
) -> None:
    """List what is quarantined by reason, and the latest items.

    \b
    Examples:
      pipeline-poc quarantine list
      pipeline-poc quarantine list --reason missing_field --json | jq .items[].payload
    """
    with open_services(settings) as services:
        groups = [] if discarded else services.quarantine.groups()
        page = services.quarantine.items(reason, limit=limit, cursor=cursor, discarded=discarded)
    groups = [group for group in groups if reason in (None, group.reason)]
    if as_json:
        print_json({"groups": groups, "items": page.items, "next_cursor": page.next_cursor})
    else:
        desk_screens.show_quarantine(Console(highlight=False), groups, page)


@quarantine.command("show")
@click.argument("item_id", metavar="ID")
@as_json
@command
def show_quarantined(settings: Settings, item_id: str, as_json: bool) -> None:
    """Show one record or post with its whole payload.

    \b
    Example:
      pipeline-poc quarantine show post-0123456789abcdef01234567
    """
    with open_services(settings) as services:
        item = services.quarantine.item(item_id)
    if item is None:
        raise PipelineError(f"Nothing in quarantine has the id {desk_screens.visible(item_id)}")
    if as_json:
        print_json(item)
    else:
        desk_screens.show_quarantined(Console(highlight=False), item)


@quarantine.command("requeue")
@_selecting
@as_json
@command
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
    with open_services(settings) as services:
        result = services.requeue_quarantined(selection, dry_run=dry_run)
    show(asdict(result), "Requeued", as_json=as_json)


@quarantine.command("discard")
@_selecting
@because
@as_json
@command
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
    with open_services(settings) as services:
        result = services.discard_quarantined(selection, because, operator(), dry_run=dry_run)
    show(asdict(result), "Discarded", as_json=as_json)


@click.group()
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
@command
def list_dead_letters(settings: Settings, *, reason: str | None, limit: int, cursor: str | None, as_json: bool) -> None:
    """List dead letters by the type of their error, and the latest ones.

    \b
    Example:
      pipeline-poc dead-letters list --json | jq .groups
    """
    with open_services(settings) as services:
        groups = [group for group in services.dead_letters.groups() if reason in (None, group.reason)]
        page = services.dead_letters.items(reason, limit=limit, cursor=cursor)
    if as_json:
        print_json({"groups": groups, "items": page.items, "next_cursor": page.next_cursor})
    else:
        desk_screens.show_dead_letters(Console(highlight=False), groups, page)


@dead_letters.command("show")
@click.argument("batch_id", metavar="ID")
@as_json
@command
def show_dead_letter(settings: Settings, batch_id: str, as_json: bool) -> None:
    """Show one dead letter, with some of the posts that wait in it.

    \b
    Example:
      pipeline-poc dead-letters show 20240506T070809123-0123abcd
    """
    with open_services(settings) as services:
        letter = services.dead_letters.item(batch_id)
    if letter is None:
        raise PipelineError(f"No dead letter has the id {desk_screens.visible(batch_id)}")
    if as_json:
        print_json(letter)
    else:
        desk_screens.show_dead_letter(Console(highlight=False), letter)


@dead_letters.command("requeue")
@_selecting
@as_json
@command
def requeue_dead_letters(
    settings: Settings, *, ids: Sequence[str], reason: str | None, everything: bool, dry_run: bool, as_json: bool
) -> None:
    """Put dead letters back into the backlog, once their cause is gone.

    \b
    Example:
      pipeline-poc dead-letters list && pipeline-poc dead-letters requeue --all
    """
    selection = _selection(ids, reason, everything)
    with open_services(settings) as services:
        result = services.requeue_dead_letters(selection, dry_run=dry_run)
    show(asdict(result), "Requeued", as_json=as_json)


@dead_letters.command("discard")
@_selecting
@because
@as_json
@command
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
    with open_services(settings) as services:
        result = services.discard_dead_letters(selection, because, operator(), dry_run=dry_run)
    show(asdict(result), "Discarded", as_json=as_json)
