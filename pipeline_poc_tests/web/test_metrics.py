"""Metrics: valid for Prometheus, equal to what happened, and bounded whatever the stores hold."""

import asyncio
import math
import re
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from pydantic import SecretStr
from pymongo.database import Database
from starlette.applications import Starlette

from pipeline_poc.clock import utc_now
from pipeline_poc.records import reject
from pipeline_poc.services import Services
from pipeline_poc.settings import Settings
from pipeline_poc.stand_in import StandIn
from pipeline_poc.web import traffic
from pipeline_poc.web.census import Census
from pipeline_poc.web.context import Context
from pipeline_poc_tests.acceptance.programs import until
from pipeline_poc_tests.posts import record
from pipeline_poc_tests.web.contract import checked
from pipeline_poc_tests.web.planting import refuse, store

Documents = Database[dict[str, Any]]


@pytest.fixture
def relational_url(tmp_path: Path) -> str:
    """SQLite: which kind it is does not matter here."""
    return f"sqlite:///{tmp_path / 'relational.db'}"


@pytest.fixture
def api(web: httpx.Client) -> httpx.Client:
    """A client whose answers are held against the schema."""
    return checked(web)


class Scrape:
    """The metrics as Prometheus reads them; whatever is wrong with any of them fails the test."""

    def __init__(self, api: httpx.Client) -> None:
        answer = api.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=1.0.0")
        self.families = list(text_string_to_metric_families(answer.text))
        names = Counter(family.name for family in self.families)
        assert set(names.values()) == {1}
        self.samples = [sample for family in self.families for sample in family.samples]
        series = Counter((sample.name, *sorted(sample.labels.items())) for sample in self.samples)
        assert max(series.values()) == 1
        for family in self.families:
            _check(family)

    def __call__(self, name: str, **labels: str) -> float | None:
        """Return the value of a series; None where it is not there."""
        values = [each.value for each in self.samples if each.name == name and each.labels == labels]
        return values[0] if values else None

    def labels(self, name: str, label: str) -> list[str]:
        """Return the values of a label."""
        return [each.labels[label] for each in self.samples if each.name == name]


def _check(family: Metric) -> None:
    assert re.fullmatch(r"pipeline_[a-z_]+", family.name)
    assert family.documentation
    # Seconds are the base unit of time; nothing comes in parts or multiples of it.
    assert not re.search(r"_(ms|millis|milliseconds|minutes|hours|percent|kilobytes|megabytes)(_|$)", family.name)
    assert all(math.isfinite(sample.value) and sample.value >= 0 for sample in family.samples)
    if family.type == "counter":
        assert {sample.name for sample in family.samples} <= {f"{family.name}_total"}
    elif family.type == "histogram":
        assert family.name.endswith("_seconds")
        for route in {sample.labels.get("route") for sample in family.samples}:
            _check_histogram([sample for sample in family.samples if sample.labels.get("route") == route])
    else:
        assert family.type == "gauge"
        assert not family.name.endswith("_total")


def _check_histogram(samples: Sequence[Sample]) -> None:
    buckets = [sample for sample in samples if sample.name.endswith("_bucket")]
    bounds = [float(sample.labels["le"]) for sample in buckets]
    counts = [sample.value for sample in buckets]
    assert bounds == sorted(set(bounds))
    assert bounds[-1] == math.inf
    assert counts == sorted(counts)
    [count] = [sample.value for sample in samples if sample.name.endswith("_count")]
    [total] = [sample.value for sample in samples if sample.name.endswith("_sum")]
    assert counts[-1] == count
    lower = [0.0, *bounds]
    alone: Sequence[float] = [after - before for before, after in zip([0.0, *counts], counts, strict=False)]
    assert total >= sum(number * lower[index] for index, number in enumerate(alone))


def test_an_empty_pipeline(api: httpx.Client) -> None:
    """A pipeline that has done nothing has all its metrics, at zero, and names its version."""
    until(lambda: Scrape(api)("pipeline_posts", state="backlog") == 0, "the first count")
    scrape = Scrape(api)
    assert scrape.labels("pipeline_build_info", "version") == [api.get("/health").json()["releaseId"]]
    assert (
        scrape("pipeline_rows_written_total") == scrape("pipeline_lag_seconds") == scrape("pipeline_queue_depth") == 0
    )
    assert scrape("pipeline_job_run_seconds_count") == 0
    for store_name in ("mongodb", "relationalStore", "redis"):
        assert scrape("pipeline_store_up", store=store_name) == 1
        assert scrape("pipeline_store_response_seconds", store=store_name) is not None
    assert scrape.labels("pipeline_daemon_up", "daemon")
    assert scrape("pipeline_migration_mode", mode="running") == 1
    assert scrape("pipeline_last_success_timestamp_seconds", what="ingestion") is None


def test_values_are_what_happened(
    api: httpx.Client, services: Services, settings: Settings, stand_in: StandIn, database: Documents
) -> None:
    """Every counter, gauge and histogram has the value of what was done to the pipeline."""
    began_at = utc_now().replace(second=0, microsecond=0).timestamp()
    stand_in.behaviour = {"malformed": "17"}
    with Services(settings.model_copy(update={"source_url": SecretStr(stand_in.url)})) as ingesting:
        ingesting.ingest()
    batches = [batch.id for batch in services.ledger.batches("open")]
    services.ledger.start(batches[0], "somebody", utc_now())  # An attempt that comes to nothing.
    services.ledger.note_failure(batches[0], "gone")
    refused = [post["externalId"] for post in database["posts"].find({"batchId": batches[1]}).limit(2)]
    refuse(services, batches[1], *refused)
    migrated = services.migrate(batches[:4]).migrated
    waiting = sum(batch.size for batch in services.ledger.batches("open"))
    services.ledger.bury(batches[-1], utc_now(), "KeyError: x")
    services.tick()
    services.set_mode("paused", by="a test")
    database["posts"].update_one({"externalId": 1}, {"$set": {"contentHash": "0" * 32}})
    services.reconcile()

    def counted() -> Any:
        scrape = Scrape(api)
        is_new = scrape("pipeline_migration_mode", mode="paused") == 1 and scrape(
            "pipeline_reconciliation_mismatches", fault="wrongly_flagged"
        )
        # Posts are counted in the background, with rests.
        return scrape if is_new and scrape("pipeline_posts", state="migrated") == migrated else None

    scrape: Scrape = until(counted, "the metrics show all")
    posts = [scrape("pipeline_posts", state=state) for state in ("migrated", "backlog", "quarantined")]
    assert posts == [migrated, waiting, 2]
    for result, number in {"new": 100, "changed": 0, "unchanged": 0, "quarantined": 17}.items():
        assert scrape("pipeline_records_ingested_total", result=result) == number
    assert scrape("pipeline_ingestions_total", result="succeeded") == 1
    assert scrape("pipeline_ingestions_total", result="failed") == 0
    assert scrape("pipeline_batches_migrated_total") == 4
    assert scrape("pipeline_rows_written_total") == migrated
    assert scrape("pipeline_attempts_total") == 5
    number = len(batches) - 4
    assert (scrape("pipeline_backlog_batches"), scrape("pipeline_backlog_posts")) == (number, waiting)
    assert 0 < (scrape("pipeline_lag_seconds") or 0) < 600
    assert scrape("pipeline_queue_depth") == scrape("pipeline_queue_jobs", state="queued") == number - 1
    assert scrape("pipeline_dead_letter_batches", reason="KeyError") == 1
    assert scrape("pipeline_quarantined", reason="relational_1406") == 2
    assert scrape("pipeline_quarantined", reason="missing_field") is not None
    ever = [scrape("pipeline_quarantined_by_reason_total", reason=reason) for reason in ("too_long", "null_field")]
    assert all(number is not None and number > 0 for number in ever)
    for name in ("pipeline_job_wait_seconds", "pipeline_job_run_seconds"):
        assert scrape(f"{name}_count") == 4
    assert scrape("pipeline_ingestion_seconds_count") == 1
    for what in ("ingestion", "migration", "reconciliation"):
        last_at = scrape("pipeline_last_success_timestamp_seconds", what=what)
        assert last_at is not None
        assert began_at <= last_at <= utc_now().timestamp() + 1
    faults = {
        fault: scrape("pipeline_reconciliation_mismatches", fault=fault) for fault in ("missing", "extra", "stale")
    }
    assert set(faults.values()) == {0}
    assert scrape("pipeline_health_status", check="migration:mode") == 0.5


def test_requests_are_counted_by_route(web: httpx.Client, services: Services) -> None:
    """Each request counts under the route in our code, whatever its path, method and query are."""
    for path in (
        "/posts/1",
        "/posts/2?x=1",
        "/posts/hostile%22%7D%0A",
        "/nothing/of/ours",
        "/pipeline/no.such%20thing",
    ):
        web.get(path)
    web.request("PROPFIND", "/posts/1")
    web.get("/health/live")
    with web.stream("GET", "/events") as answer:
        assert answer.status_code == 200

    def counted() -> Any:
        scrape = Scrape(web)
        is_counted = scrape("pipeline_http_request_seconds_count", route="/events")
        return scrape if is_counted else None

    scrape: Scrape = until(counted, "requests are counted")
    assert scrape("pipeline_http_requests_total", route="/posts/{externalId}", method="GET", status="404") == 2
    counts = {
        (sample.labels["route"], sample.labels["method"], sample.labels["status"]): sample.value
        for sample in scrape.samples
        if sample.name == "pipeline_http_requests_total" and sample.labels["route"] != "/metrics"
    }
    assert counts == {
        ("/posts/{externalId}", "GET", "404"): 2,
        ("/posts/{externalId}", "GET", "422"): 1,
        ("/posts/{externalId}", "other", "405"): 1,
        ("dagster", "GET", "200"): 1,
        ("other", "GET", "404"): 1,
        ("/health/live", "GET", "200"): 1,
        ("/events", "GET", "200"): 1,
    }
    assert scrape("pipeline_http_request_seconds_count", route="/posts/{externalId}") == 4
    # Several web servers count into the same, and no count by the minute grows by it.
    totals, minutes = services.ledger.counters.read()
    assert totals["http"]["requests"]["GET 404 other"] == 1
    assert not minutes


def test_what_can_not_be_kept_is_kept_later(settings: Settings, services: Services) -> None:
    """Requests of a time without MongoDB are counted once it is back; a dot in a route divides nothing."""

    async def save() -> None:
        context = Context(settings, Starlette())
        nowhere = {"mongo_url": SecretStr("mongodb://127.0.0.1:9"), "store_timeout_s": 0.1}
        away = Services(settings.model_copy(update=nowhere))
        context.traffic.add("/a.b", "GET", 200, 0.02)
        real, context.services = context.services, away
        await context.save_traffic(deadline_s=30)
        context.services = real
        context.traffic.add("/a.b", "GET", 200, 0.03)
        await context.save_traffic(deadline_s=30)
        await context.save_traffic(deadline_s=30)
        away.close()
        context.close()
        await context.dagster.close()

    asyncio.run(save())
    totals = services.ledger.counters.read()[0]
    assert list(traffic.requests(totals)) == [(("/a.b", "GET", "200"), 2)]
    [(route, buckets, seconds)] = traffic.durations(totals)
    assert (route, buckets[-1], round(seconds, 2)) == ("/a.b", ("+Inf", 2), 0.05)


def test_requests_make_nobody_count_posts(services: Services) -> None:
    """What is counted of requests is no sign that posts have moved."""
    census = Census(services)
    before = census._signs()
    services.ledger.counters.add_to_totals({"http.requests.x": 1})
    assert census._signs() == before
    services.ledger.counters.add_to_totals({"desk.released": 1})
    assert census._signs() != before


def test_labels_are_bounded(api: httpx.Client, services: Services, database: Documents) -> None:
    """However many reasons there are, and whatever they are called, series are few, valid and complete."""
    hostile = 'x"} 1\npipeline_evil{a="\\'
    now = utc_now()
    codes = [*(f"reason_{number:03}" for number in range(200)), hostile, "other", "wrong_type"]
    kept = [reject(record(1000 + number), code, "x") for number, code in enumerate(codes)]
    for _ in range(2):
        services.raw_store.quarantine_records(kept, now)
    services.raw_store.quarantine_records([reject(record(n), "other", "x") for n in range(1, 6)], now)
    services.raw_store.quarantine_records([reject(record(n), hostile, "x") for n in range(11, 16)], now)
    # The same reason among records and among posts.
    batches = store(services, range(1, 11))
    refuse(services, batches[0], 1, 2, 3, code="wrong_type")
    for number in range(120):
        batch_id = services.ledger.create(1, now - timedelta(seconds=number))
        services.ledger.seal(batch_id, 1)
        services.ledger.bury(batch_id, now, f"Error{number}: x")
    services.ledger.counters.add(now, {f"retries.Error{number}": 1 for number in range(120)})

    def shown() -> Any:
        scrape = Scrape(api)
        return scrape if scrape.labels("pipeline_retries_total", "reason") else None

    scrape: Scrape = until(shown, "the metrics show it")
    for name, total in {
        "pipeline_quarantined": 203 + 5 + 5 + 3,
        "pipeline_dead_letter_batches": 120,
        "pipeline_retries_total": 120,
    }.items():
        reasons = scrape.labels(name, "reason")
        assert len(reasons) <= 51
        assert "other" in reasons
        assert sum(scrape(name, reason=reason) or 0 for reason in reasons) == total
    assert scrape("pipeline_quarantined", reason="wrong_type") == 4
    assert scrape("pipeline_quarantined", reason=hostile) == 6
    assert not [sample for sample in scrape.samples if "evil" in sample.name]
