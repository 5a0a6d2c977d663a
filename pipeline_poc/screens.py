"""What the command line shows to people: tables."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:  # The reports come from their makers; importing those here would slow `--help` down.
    from pipeline_poc.health import Health
    from pipeline_poc.raw_store import Counts
    from pipeline_poc.reconciliation import Reconciliation
    from pipeline_poc.up import Outcome

_IDS_SHOWN = 20


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    return table


def show_numbers(console: Console, title: str, numbers: Mapping[str, Any]) -> None:
    """Show named numbers, one a line."""
    table = _table(title)
    for name, value in numbers.items():
        table.add_row(name.replace("_", " "), _number(value))
    console.print(table)


def show_outcome(console: Console, outcome: "Outcome") -> None:
    """Show what the first pass of `up` did."""
    entity = outcome.entity
    table = _table("" if entity == "posts" else entity)
    meanings = {
        "fetched": "records that the source served",
        "new": f"{entity} stored for the first time",
        "changed": f"{entity} stored in a new version",
        "unchanged": "records that are stored already",
        "quarantined": "records put aside, with a reason",
    }
    for name, meaning in meanings.items():
        if name in outcome.ingestion:
            table.add_row(name, _number(outcome.ingestion[name]), meaning)
    result = outcome.reconciliation
    table.add_row("migrated", _number(result.migrated), f"{entity} whose row is committed, of {result.stored:,} stored")
    table.add_row("backlog", _number(result.backlog), f"{entity} stored, and not migrated yet")
    table.add_row("lag", f"{outcome.lag_s:.1f} s", "age of the oldest one not migrated")
    table.add_row("reconciliation", _verdict(result), _faults(result, entity))
    console.print(table)
    if outcome.ingestion.get("not_modified"):
        console.print("The source says that nothing changed since the last ingestion.")
    if outcome.ingestion_error:
        console.print(f"[red]The ingestion failed:[/] {escape(str(outcome.ingestion_error))}")
    if outcome.dead_batches:
        console.print(f"[red]{outcome.dead_batches} batches are dead letters: `pipeline-poc status` says why.[/]")
    if outcome.stuck_batches:
        console.print(f"[red]{outcome.stuck_batches} batches can't be migrated now; the workers' logs say why.[/]")


def show_reconciliation(console: Console, result: "Reconciliation") -> None:
    """Show a comparison, with the first ids of each fault."""
    show_numbers(console, "Reconciled", {name: value for name, value in result.summary().items() if name != "ok"})
    for fault, ids in result.faults.items():
        if ids:
            more = f" … and {len(ids) - _IDS_SHOWN:,} more" if len(ids) > _IDS_SHOWN else ""
            console.print(f"[red]{fault.replace('_', ' ')}:[/] {', '.join(map(str, ids[:_IDS_SHOWN]))}{more}")
    console.print("Both stores agree." if result.ok else "[red]The stores do not agree.[/]")


_STYLES = {"pass": "[green]pass[/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}


def show_health(console: Console, report: "Health", posts: "Counts | None", *, is_stand_in: bool) -> None:
    """Show the state of the pipeline: a line a check, and what is stored."""
    width = max(len(check.name) for check in report.checks)
    for check in report.checks:
        value = _number(check.value) if isinstance(check.value, (bool, int, float)) else check.value or ""
        seen, said = f"{value} {check.unit or ''}".strip(), check.output or check.component or ""
        # A line a check, however long: a terminal wraps it, and grep finds it whole.
        console.print(
            f"{_STYLES[check.status]} [bold]{check.name:<{width}}[/] {escape(seen):>16}  [dim]{escape(said)}[/]",
            soft_wrap=True,
        )
    if is_stand_in:
        console.print("[yellow]The source is the stand-in: its posts are made up.[/]")
    if posts is not None:
        console.print()
        show_numbers(console, "Posts", asdict(posts))


def _verdict(result: "Reconciliation") -> str:
    return "[green]ok[/]" if result.ok else "[red]not ok[/]"


def _faults(result: "Reconciliation", entity: str) -> str:
    if result.ok:
        return f"{result.stored:,} {entity} and {result.rows:,} rows agree by content hash"
    return ", ".join(f"{fault.replace('_', ' ')}: {len(ids):,}" for fault, ids in result.faults.items() if ids)


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)
