"""`GET /metrics` for Prometheus: everything in base units, no label without a bound.

Counters and histograms come from MongoDB, where they survive every restart and add up over all
processes; several web servers show the same numbers.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from importlib.metadata import version

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline_poc.counters import histogram, number
from pipeline_poc.health import Health
from pipeline_poc.reconciliation import FAULTS
from pipeline_poc.web import traffic
from pipeline_poc.web.census import Tally
from pipeline_poc.web.snapshot import LedgerPart, QueuePart, Snapshot

_VERDICTS = {"pass": 1.0, "warn": 0.5, "fail": 0.0}
_REASONS_MAX = 50
"""Reason codes that a metric has a series for; further ones are added up as `other`."""


def render(snapshot: Snapshot, tally: Tally, health: Health) -> bytes:
    """Return the metrics in Prometheus's text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(snapshot, tally, health))
    return generate_latest(registry)


class _Collector(Collector):
    def __init__(self, snapshot: Snapshot, tally: Tally, health: Health) -> None:
        self._snapshot = snapshot
        self._tally = tally
        self._health = health

    def collect(self) -> Iterator[Metric]:
        yield _gauge("pipeline_build_info", "The version that runs.", [((version("pipeline-poc"),), 1)], ["version"])
        yield from _health(self._health)
        yield from _tally(self._tally)
        if self._snapshot.ledger:
            yield from _ledger(self._snapshot.ledger)
        if self._snapshot.queue:
            yield from _queue(self._snapshot.queue)


def _health(health: Health) -> Iterator[Metric]:
    yield _gauge(
        "pipeline_health_status",
        "1 pass, 0.5 warn, 0 fail; the worst of all components of a check.",
        [
            ((name,), min(_VERDICTS[check.status] for check in health.checks if check.name == name))
            for name in dict.fromkeys(check.name for check in health.checks)
        ],
        ["check"],
    )
    stores = [(check.name.partition(":")[0], check) for check in health.checks if check.name.endswith(":responseTime")]
    yield _gauge(
        "pipeline_store_up",
        "Whether a store answers.",
        [((name,), float(check.status != "fail")) for name, check in stores],
        ["store"],
    )
    yield _gauge(
        "pipeline_store_response_seconds",
        "How long a store took to answer a ping.",
        [((name,), check.value / 1000) for name, check in stores if check.value is not None],
        ["store"],
    )
    yield _gauge(
        "pipeline_daemon_up",
        "Whether a daemon of Dagster gives signs of life.",
        [
            ((check.component,), float(check.status == "pass"))
            for check in health.checks
            if check.name == "dagster:daemons" and check.component
        ],
        ["daemon"],
    )


def _tally(tally: Tally) -> Iterator[Metric]:
    if tally.posts:
        yield _gauge(
            "pipeline_posts",
            "Posts in MongoDB by state, as counted last.",
            [((state,), getattr(tally.posts, state)) for state in ("migrated", "backlog", "quarantined")],
            ["state"],
        )
    if tally.rows is not None:
        yield _gauge("pipeline_relational_rows", "Rows in the relational store, as counted last.", [((), tally.rows)])
    if tally.counted_at:
        yield _gauge(
            "pipeline_counted_timestamp_seconds",
            "When posts and rows were counted last.",
            [((), tally.counted_at.timestamp())],
        )


def _ledger(ledger: LedgerPart) -> Iterator[Metric]:
    totals = ledger.totals
    yield _gauge("pipeline_lag_seconds", "Age of the oldest post that is not migrated.", [((), ledger.lag_s)])
    yield _gauge("pipeline_backlog_batches", "Batches that wait.", [((), ledger.backlog.batches)])
    yield _gauge("pipeline_backlog_posts", "Posts that these batches were created for.", [((), ledger.backlog.posts)])
    yield _gauge(
        "pipeline_migration_mode",
        "1 for the mode in force.",
        [((mode,), float(ledger.control.mode == mode)) for mode in ("running", "draining", "paused")],
        ["mode"],
    )
    yield _gauge(
        "pipeline_quarantined",
        "Records and posts in quarantine that wait for a person, by reason.",
        _bounded((group.reason, group.count) for group in ledger.quarantine),
        ["reason"],
    )
    yield _gauge(
        "pipeline_dead_letter_batches",
        "Batches that wait for a person, by type of error.",
        _bounded((group.reason, group.batches) for group in ledger.dead_letters),
        ["reason"],
    )
    yield _counter(
        "pipeline_records_ingested",
        "Records that ingestions saw, by what became of them.",
        [((kind,), number(totals, f"ingestion.{kind}")) for kind in ("new", "changed", "unchanged", "quarantined")],
        ["result"],
    )
    yield _counter(
        "pipeline_ingestions",
        "Ingestions by how they ended.",
        [((result,), number(totals, f"ingestion.{result}")) for result in ("succeeded", "failed")],
        ["result"],
    )
    yield _counter("pipeline_batches_migrated", "Batches closed.", [((), number(totals, "migration.batches"))])
    yield _counter("pipeline_rows_written", "Posts migrated.", [((), number(totals, "migration.rows"))])
    yield _counter("pipeline_attempts", "Executions of closed batches.", [((), number(totals, "migration.attempts"))])
    yield _counter("pipeline_dead_letters", "Batches buried.", [((), number(totals, "migration.dead_letters"))])
    yield _counter(
        "pipeline_refused_jobs",
        "Jobs on the queue that ask for something else than the migration of a batch.",
        [((), number(totals, "migration.refused_jobs"))],
    )
    yield _counter(
        "pipeline_retries",
        "Failed executions that are repeated, by type of error.",
        _bounded(totals.get("retries", {}).items()),
        ["reason"],
    )
    yield _counter(
        "pipeline_quarantined_by_reason",
        "Records and posts ever put into quarantine, by reason; a record counts with each arrival.",
        _bounded(totals.get("quarantined", {}).items()),
        ["reason"],
    )
    yield _histogram(
        totals, "migration.wait", "pipeline_job_wait_seconds", "From a batch's creation to its last execution."
    )
    yield _histogram(totals, "migration.run", "pipeline_job_run_seconds", "Time that a batch's execution took.")
    yield _histogram(
        totals, "ingestion.run", "pipeline_ingestion_seconds", "Time that an ingestion which went well took."
    )
    yield _counter(
        "pipeline_http_requests",
        "Requests to the web server, by the route in our code.",
        traffic.requests(totals),
        ["route", "method", "status"],
    )
    yield _durations(totals)
    times: dict[str, datetime | None] = {
        "ingestion": ledger.last_ingestion.get("lastSuccessAt"),
        "migration": max(ledger.rows_per_minute, default=None),
        "reconciliation": ledger.reconciliation.ended_at if ledger.reconciliation.state == "done" else None,
    }
    yield _gauge(
        "pipeline_last_success_timestamp_seconds",
        "When something last went well; the migration to the minute, and for two hours.",
        [((what,), at.timestamp()) for what, at in times.items() if at],
        ["what"],
    )
    if ledger.reconciliation.summary:
        yield _gauge(
            "pipeline_reconciliation_mismatches",
            "What the last completed comparison of both stores found.",
            [((fault,), ledger.reconciliation.summary.get(fault, 0)) for fault in FAULTS],
            ["fault"],
        )


def _queue(queue: QueuePart) -> Iterator[Metric]:
    states = ("queued", "started", "scheduled", "finished", "failed", "deferred")
    yield _gauge("pipeline_queue_depth", "Jobs that wait for a worker.", [((), queue.counts.queued)])
    yield _gauge(
        "pipeline_queue_jobs",
        "Jobs by state.",
        [((state,), getattr(queue.counts, state)) for state in states],
        ["state"],
    )
    found = [worker.state for worker in queue.workers]
    yield _gauge(
        "pipeline_workers",
        "Live workers by state.",
        [((state,), found.count(state)) for state in ("idle", "busy", "suspended", "started")],
        ["state"],
    )


Samples = Iterable[tuple[tuple[str, ...], float]]


def _gauge(name: str, text: str, samples: Samples, labels: list[str] | None = None) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels or [])
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _counter(name: str, text: str, samples: Samples, labels: list[str] | None = None) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels or [])
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _histogram(totals: dict[str, object], kept_as: str, name: str, text: str) -> Metric:
    group, _, own = kept_as.partition(".")
    kept = totals.get(group, {})
    buckets, seconds = histogram(kept if isinstance(kept, dict) else {}, own)
    family = HistogramMetricFamily(name, text)
    family.add_metric([], [(bound, count) for bound, count in buckets], seconds)
    return family


def _durations(totals: dict[str, object]) -> Metric:
    family = HistogramMetricFamily(
        "pipeline_http_request_seconds", "Time until the answer to a request begins.", labels=["route"]
    )
    for route, buckets, seconds in traffic.durations(totals):
        family.add_metric([route], buckets, seconds)
    return family


def _bounded(counted: Iterable[tuple[str, float]]) -> Samples:
    # The same reason may come twice, as that of records and that of posts: a series stands once.
    sums: dict[str, float] = {}
    for reason, count in counted:
        sums[reason] = sums.get(reason, 0) + count
    ordered = sorted(sums, key=lambda reason: (-sums[reason], reason))
    shown = {reason: sums[reason] for reason in ordered[:_REASONS_MAX]}
    if rest := ordered[_REASONS_MAX:]:
        shown["other"] = shown.get("other", 0) + sum(sums[reason] for reason in rest)
    return [((reason,), count) for reason, count in shown.items()]
