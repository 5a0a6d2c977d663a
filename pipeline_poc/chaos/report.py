"""What the fault suite found, for people and for programs."""

import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline_poc.chaos.promises import PROMISES
from pipeline_poc.chaos.runs import RunResult, as_json


def table(results: Sequence[RunResult]) -> Table:
    """Show each fault with how often it struck, had nothing to strike, and broke a promise."""
    struck = Counter(name for result in results for name in result.struck)
    missed = Counter(name for result in results for name in result.missed)
    broken = Counter(
        name for result in results if result.violations for name in {round_.fault for round_ in result.plan.rounds}
    )
    shown = Table("fault", "struck", "missed", "in runs with violations", title="Faults")
    for column in shown.columns[1:]:
        column.justify = "right"
    for name in sorted(struck | missed):
        style = "red" if broken[name] else "yellow" if not struck[name] else ""
        shown.add_row(name, str(struck[name]), str(missed[name]), str(broken[name]), style=style)
    return shown


def sentences(result: RunResult, log: Path, again: str) -> Iterable[str]:
    """Say what was broken in a run, where its log is, and the command that plays it again."""
    yield f"Run {result.plan.seed} broke promises:"
    for moment, violation in result.violations:
        yield f"  {moment}: {violation}"
        yield f"    ({PROMISES[violation.promise]})"
    yield f"  plan: {result.plan}"
    yield f"  log: {log}"
    yield f"  once more: {again}"


def summary(results: Sequence[RunResult], duration_s: float) -> dict[str, Any]:
    """Return the sums over all runs as JSON values."""
    return {
        "runs": len(results),
        "faults_struck": sum(len(result.struck) for result in results),
        "faults_missed": sum(len(result.missed) for result in results),
        "kinds_of_faults_struck": len({name for result in results for name in result.struck}),
        "processes_killed": sum(result.killed for result in results),
        "posts": sum(result.posts for result in results),
        "violations": sum(len(result.violations) for result in results),
        "longest_settling_s": max((result.settled_s for result in results), default=0.0),
        "duration_s": round(duration_s, 1),
    }


def document(results: Sequence[RunResult], duration_s: float) -> dict[str, Any]:
    """Return everything as JSON values: machine, sums, and each run with its plan."""
    return {
        "machine": platform.platform(),
        "versions": {name: version(name) for name in ("pipeline-poc", "dagster", "rq", "pymongo", "pymysql", "redis")},
        "summary": summary(results, duration_s),
        "runs": [as_json(result) for result in results],
    }
