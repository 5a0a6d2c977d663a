"""A worker whose store is out of order: it begins nothing, says why, and goes on by itself."""

import sqlalchemy as sa

from pipeline_poc.services import Services
from pipeline_poc_tests.acceptance.programs import until
from pipeline_poc_tests.integration.workers import Start


def test_it_waits_and_says_why(services: Services, start: Start, sql: sa.Engine) -> None:
    """A worker whose jobs fail is shown as suspended, with the reason; once a job goes well it works on."""
    services.ingest()
    with sql.begin() as connection:
        connection.execute(sa.text("ALTER TABLE migrated_posts RENAME TO away"))
    services.tick()
    worker = start(retry_base_s=1, retry_cap_s=2)
    [info] = until(lambda: [info for info in services.queue.workers() if info.waits_for], "it waits")
    assert info.state == "suspended"
    assert "The relational store" in (info.waits_for or "")
    assert len(services.queue.snapshot().queued) >= 5, "the other jobs are left alone"
    with sql.begin() as connection:
        connection.execute(sa.text("ALTER TABLE away RENAME TO migrated_posts"))
    until(lambda: not services.ledger.batches("open"), "all is migrated")
    until(lambda: [(i.state, i.waits_for) for i in services.queue.workers()] == [("idle", None)], "it is idle")
    assert (worker.said.count("breaker opened"), worker.said.count("breaker closed")) == (1, 1)
    assert services.reconcile().ok


def test_one_failure_is_no_outage(services: Services, start: Start) -> None:
    """A single attempt that fails costs the other jobs a pause no longer than the first backoff."""
    services.ingest()
    services.tick()
    worker = start(fail_points="migration.started=fail:3", retry_base_s=1, retry_cap_s=1000)
    until(lambda: not services.ledger.batches("open"), "all is migrated")
    assert sum(batch.attempts for batch in services.ledger.batches("closed")) == 11
    assert (worker.said.count("breaker opened"), worker.said.count("breaker closed")) == (1, 1)
