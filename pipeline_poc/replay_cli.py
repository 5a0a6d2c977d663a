"""The command that migrates posts again."""

from datetime import datetime

import click

from pipeline_poc.commands import as_json, command, open_services, show
from pipeline_poc.post_selection import PostSelection
from pipeline_poc.settings import Settings


def _ids(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is no list of ids, such as 1,2,3") from None


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no time, such as 2026-01-31T09:30:00Z") from None


@click.command()
@click.option("--ids", type=_ids, metavar="ID,...", help="These posts.")
@click.option("--from", "from_id", type=int, metavar="ID", help="Posts from this id on.")
@click.option("--to", "to_id", type=int, metavar="ID", help="Posts up to this id.")
@click.option("--changed-since", type=_time, metavar="TIME", help="Posts whose content came then or later.")
@click.option("--all", "everything", is_flag=True, help="All there are.")
@click.option("--dry-run", is_flag=True, help="Change nothing; show what would be done.")
@as_json
@command
def replay(
    settings: Settings,
    *,
    ids: tuple[int, ...] | None,
    from_id: int | None,
    to_id: int | None,
    changed_since: datetime | None,
    everything: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Put migrated posts back into the backlog, so that their rows are written again, right or wrong.

    What waits already, and what is in quarantine, is counted and left alone.

    \b
    Examples:
      pipeline-poc replay --ids 7,42 && pipeline-poc migrate
      pipeline-poc replay --from 1000 --to 1999 --dry-run
      pipeline-poc replay --changed-since 2026-01-31T09:30:00Z
      pipeline-poc replay --all       after the table of rows was lost
    """
    selection = PostSelection(ids=ids, from_id=from_id, to_id=to_id, changed_since=changed_since, all=everything)
    with open_services(settings) as services:
        result = services.replay(selection, dry_run=dry_run)
    show(result.summary(), "Replayed", as_json=as_json)
