"""What the fault suite found, for people and for programs."""

import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline_poc.chaos.promises import PROMISES, Violation
from pipeline_poc.chaos.runs import RunResult
from pipeline_poc.chaos.stack import StackResult


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


def stack_table(result: StackResult) -> Table:
    """Show each kind of blow at the whole pipeline with its number."""
    shown = Table("blow", "times", title="At the whole pipeline")
    shown.columns[1].justify = "right"
    for name, times in sorted(result.blows.items()):
        shown.add_row(name, str(times))
    return shown


def sentences(result: RunResult, log: Path, again: str) -> Iterable[str]:
    """Say what was broken in a run, if anything was, where its log is, and the command that plays it again."""
    if result.violations:
        yield f"Run {result.plan.seed} broke promises:"
        yield from _said(result.violations)
        yield f"  plan: {result.plan}"
        yield f"  log: {log}"
        yield f"  once more: {again}"


def stack_sentences(result: StackResult, logs: Path) -> Iterable[str]:
    """Say what was broken at the whole pipeline, if anything was, and where its logs are."""
    if result.violations:
        yield f"The whole pipeline, seed {result.seed}, broke promises:"
        yield from _said(result.violations)
        yield f"  logs: {logs}"


def _said(violations: Sequence[tuple[str, Violation]]) -> Iterable[str]:
    for moment, violation in violations:
        yield f"  {moment}: {violation}"
        yield f"    ({PROMISES[violation.promise]})"


def summary(results: Sequence[RunResult], stack: StackResult | None, duration_s: float) -> dict[str, Any]:
    """Return the sums over everything as JSON values."""
    found: dict[str, Any] = {
        "fault_runs": len(results),
        "faults_struck": sum(len(result.struck) for result in results),
        "faults_missed": sum(len(result.missed) for result in results),
        "kinds_of_faults_struck": len({name for result in results for name in result.struck}),
        "sigkills": sum(result.killed for result in results),
        "posts": sum(result.posts for result in results),
        "violations": sum(len(result.violations) for result in results),
        "longest_settling_s": max((result.settled_s for result in results), default=0.0),
    }
    if stack is not None:
        found["sigkills"] += stack.killed
        found["posts"] += stack.posts
        found["violations"] += len(stack.violations)
        found["stack_settling_s"] = stack.settled_s
    return found | {"duration_s": round(duration_s, 1)}


def document(results: Sequence[RunResult], stack: StackResult | None) -> dict[str, Any]:
    """Return machine, versions, and each run with its plan, as JSON values."""
    return {
        "machine": platform.platform(),
        "versions": {name: version(name) for name in ("pipeline-poc", "dagster", "rq", "pymongo", "pymysql", "redis")},
        "runs": [asdict(result) | _violations(result) for result in results],
        # `asdict` takes counters apart the wrong way.
        "stack": asdict(stack) | _violations(stack) | {"blows": dict(stack.blows), "starts": dict(stack.starts)}
        if stack
        else None,
    }


def _violations(result: RunResult | StackResult) -> dict[str, Any]:
    return {"violations": [{"moment": moment, **asdict(found)} for moment, found in result.violations]}
