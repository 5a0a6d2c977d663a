"""What the operator's commands show to people.

Payloads and errors come from strangers: they are shown as they are, never obeyed.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline_poc.screens import show_numbers

if TYPE_CHECKING:  # The reports come from their makers; importing those here would slow `--help` down.
    from pipeline_poc.dead_letters import DeadLetter, DeadLetterGroup
    from pipeline_poc.desk import Repair
    from pipeline_poc.passport import Passport
    from pipeline_poc.quarantine import QuarantinedItem, QuarantineGroup
    from pipeline_poc.selection import Page

_IDS_SHOWN = 20
_PAYLOAD_SHOWN = 100
"""Characters of a payload in a line of a list."""


def visible(text: object) -> str:
    """Return a text in which every character that a terminal might obey is spelled out."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in str(text))


def _plain(text: object) -> Text:
    """Return a text that is shown as it is: no markup, no emoji codes, no control characters."""
    return Text(visible(text))


def show_repair(console: Console, result: "Repair") -> None:
    """Show what a repair did, with the first ids of what is left."""
    numbers = {"dry_run": result.dry_run, "repaired": result.repaired}
    show_numbers(console, "Repaired", numbers | {fault: len(ids) for fault, ids in result.left.items() if ids})
    for fault, ids in result.left.items():
        if ids:
            console.print(f"[red]left, {fault.replace('_', ' ')}:[/] {_first(ids)}")
    if result.repaired and not result.dry_run:
        console.print("The next tick, or `pipeline-poc migrate`, migrates them again.")


def show_passport(console: Console, passport: "Passport") -> None:
    """Show all that is known of a post."""
    table = _facts(f"Post {passport.external_id}")
    batch, job, why = passport.batch, passport.job, passport.quarantine
    facts = {
        "state": passport.state,
        "first seen": _time(passport.first_seen_at),
        "changed": _time(passport.changed_at),
        "version": passport.version,
        "content hash": passport.content_hash,
        "batch": passport.batch_id,
        "batch state": batch and f"{batch.state}, {batch.attempts} attempts, created {_time(batch.created_at)}",
        "worker": batch and batch.worker,
        "error": batch and batch.error,
        "job": job and f"{job.state}, attempt {job.attempt}",
        "quarantine": why and f"{why.reason}: {why.meaning}{' (discarded)' if why.is_discarded else ''}",
        "refusal": why and f"{why.message} ({_time(why.at)})",
    }
    for name, value in facts.items():
        if value is not None:
            table.add_row(name, _plain(value))
    for name, value in (passport.row or {}).items():
        table.add_row(f"row: {name}", _plain(value))
    console.print(table)
    for store, error in passport.away.items():
        console.print(Text.assemble((f"{store} is away: ", "red"), _plain(error)))
    said = {
        True: ("The stores agree: ", "green"),
        False: ("The stores do not agree: ", "red"),
        None: ("Whether the stores agree can't be told: ", "yellow"),
    }
    console.print(Text.assemble(said[passport.agrees], passport.verdict))


def show_quarantine(console: Console, groups: Sequence["QuarantineGroup"], page: "Page[QuarantinedItem]") -> None:
    """Show what is quarantined by reason, and a page of it."""
    if groups:
        table = _columns("Quarantine", "kind", "reason", "number", "latest", "meaning")
        for group in groups:
            numbers = f"{group.count:,}", _time(group.last_at)
            table.add_row(group.kind, _plain(group.reason), *numbers, _plain(group.meaning))
        console.print(table)
        console.print()
    if not page.items:
        console.print("Nothing is quarantined here.")
    for item in page.items:
        payload = item.payload[:_PAYLOAD_SHOWN] + ("…" if len(item.payload) > _PAYLOAD_SHOWN else "")
        console.print(Text.assemble((item.id, "bold"), "  ", _plain(item.reason), "  ", _time(item.last_at)))
        if item.discarded:
            gone = item.discarded
            console.print(Text.assemble("    discarded by ", _plain(gone.by), ": ", _plain(gone.reason)))
        console.print(Text.assemble("    ", _plain(item.message), style="dim"))
        console.print(Text.assemble("    ", _plain(payload), style="dim"))
    _show_next(console, page.next_cursor)


def show_quarantined(console: Console, item: "QuarantinedItem") -> None:
    """Show one record or post with its payload."""
    table = _facts(f"{item.kind.capitalize()} {visible(item.id)}")
    facts = {
        "reason": item.reason,
        "message": item.message,
        "post": item.external_id,
        "arrivals": item.count,
        "first": _time(item.first_at),
        "last": _time(item.last_at),
        "discarded": item.discarded and f"{item.discarded.reason} (by {item.discarded.by}, {_time(item.discarded.at)})",
    }
    for name, value in facts.items():
        if value is not None:
            table.add_row(name, _plain(value))
    console.print(table)
    console.print(_plain(item.payload), soft_wrap=True)


def show_dead_letters(console: Console, groups: Sequence["DeadLetterGroup"], page: "Page[DeadLetter]") -> None:
    """Show dead letters by the type of their error, and a page of them."""
    if groups:
        table = _columns("Dead letters", "error", "batches", "posts", "first", "latest")
        for group in groups:
            numbers = f"{group.batches:,}", f"{group.posts:,}", _time(group.first_at), _time(group.last_at)
            table.add_row(_plain(group.reason), *numbers)
        console.print(table)
        console.print()
    if not page.items:
        console.print("There are no dead letters here.")
    for letter in page.items:
        said = f"  {letter.posts:,} posts, {letter.attempts} attempts, died {_time(letter.died_at)}"
        console.print(Text.assemble((letter.id, "bold"), said))
        console.print(Text.assemble("    ", _plain(letter.message), style="dim"))
    _show_next(console, page.next_cursor)


def show_dead_letter(console: Console, letter: "DeadLetter") -> None:
    """Show one dead letter."""
    table = _facts(f"Dead letter {visible(letter.id)}")
    facts = {
        "error": letter.message,
        "posts": f"{letter.posts:,}",
        "attempts": letter.attempts,
        "worker": letter.worker,
        "created": _time(letter.created_at),
        "died": _time(letter.died_at),
        "waiting": letter.external_ids and _first(letter.external_ids),
    }
    for name, value in facts.items():
        if value is not None:
            table.add_row(name, _plain(value))
    console.print(table)


def _facts(title: str) -> Table:
    table = Table(title=Text(title), title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table


def _columns(title: str, *names: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in names:
        justify: Literal["left", "right"] = "right" if name in ("number", "batches", "posts") else "left"
        table.add_column(name, justify=justify, no_wrap=name in ("first", "latest"))
    return table


def _show_next(console: Console, cursor: str | None) -> None:
    if cursor is not None:
        console.print(f"More: --cursor {cursor}", soft_wrap=True)


def _first(ids: Sequence[Any]) -> str:
    more = f" … and {len(ids) - _IDS_SHOWN:,} more" if len(ids) > _IDS_SHOWN else ""
    return f"{', '.join(map(str, ids[:_IDS_SHOWN]))}{more}"


def _time(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}" if at else "unknown"
