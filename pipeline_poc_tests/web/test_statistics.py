"""Statistics: they add up, say how old they are, and cost the stores little."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from pymongo.database import Database
from rq.job import Job
from rq.serializers import JSONSerializer

from pipeline_poc.clock import utc_now
from pipeline_poc.errors import PipelineError
from pipeline_poc.migration_worker import MigrationWorker
from pipeline_poc.orchestration.reporting import Reporter
from pipeline_poc.selection import Selection
from pipeline_poc.services import Services
from pipeline_poc.settings import Settings
from pipeline_poc.stand_in import StandIn
from pipeline_poc_tests.acceptance.programs import until
from pipeline_poc_tests.web.contract import checked
from pipeline_poc_tests.web.planting import at, refuse, store

Documents = Database[dict[str, Any]]
INGESTION, MIGRATION = "/data-ingestion/stats", "/data-migration/stats"


@pytest.fixture
def api(web: httpx.Client) -> httpx.Client:
    """A client whose answers are held against the schema."""
    return checked(web)


@pytest.fixture
def worker(services: Services) -> Iterator[MigrationWorker]:
    """A worker that is registered, and executes nothing."""
    with Reporter(None) as reporter:
        worker = MigrationWorker(services, reporter)
        worker.register_birth()  # type: ignore[no-untyped-call]
        yield worker
        worker.register_death()


def counted(api: httpx.Client, **posts: int) -> dict[str, Any]:
    """Wait until the posts are counted as they are; returns the migration's statistics."""

    def look() -> Any:
        found = api.get(MIGRATION).json()
        return found if found["posts"] == posts else None

    found: dict[str, Any] = until(look, f"counted {posts}")
    return found


def fill(services: Services) -> list[str]:
    """Store 40 posts, of which 19 are migrated, one is refused, and 20 wait; returns the batches."""
    batches = store(services, range(1, 41))
    refuse(services, batches[0], 3)
    services.migrate(batches[:2])
    return batches


def test_posts_add_up(api: httpx.Client, services: Services) -> None:
    """Stored posts are the migrated, waiting and quarantined ones, in both statistics and under all names."""
    fill(services)
    posts = {"stored": 40, "migrated": 19, "backlog": 20, "quarantined": 1}
    migration = counted(api, **posts)
    assert migration["mongodb"] == {"total": 40, "migrated": 19, "pending": 20}
    assert migration["mysql"] == {"rows": 19, "total": 19}
    ingestion = api.get(INGESTION).json()
    assert ingestion["posts"] == posts
    assert (ingestion["total"], ingestion["migrated"], ingestion["pending"]) == (40, 19, 20)

    def live() -> Any:
        # The count is as of its own time; what is live in the answer is as of another.
        found = api.get(MIGRATION).json()
        return found if found["waiting"] == {"batches": 2, "posts": 20} else None

    migration = until(live, "the ledger's backlog")
    assert migration["mode"] == "running"
    assert 0 < migration["lagS"] < 120


def test_posts_add_up_while_they_move(api: httpx.Client, services: Services) -> None:
    """In every answer the equation holds, and no migrated post is taken back, while a migration runs."""
    store(services, range(1, 151))
    counted(api, stored=150, migrated=0, backlog=150, quarantined=0)
    moving = threading.Thread(target=services.migrate)
    moving.start()
    seen = []
    while moving.is_alive():
        seen += [api.get(path).json()["posts"] for path in (INGESTION, MIGRATION)]
    moving.join()
    seen.append(counted(api, stored=150, migrated=150, backlog=0, quarantined=0)["posts"])
    assert all(posts["stored"] == posts["migrated"] + posts["backlog"] + posts["quarantined"] == 150 for posts in seen)
    assert [posts["migrated"] for posts in seen] == sorted(posts["migrated"] for posts in seen)
    until(lambda: api.get(MIGRATION).json()["lagS"] == 0, "nothing waits")


def test_the_age_of_counts_is_told(api: httpx.Client, services: Services) -> None:
    """A count that began after a change has it, and says when it began and how old it gets."""
    counted(api, stored=0, migrated=0, backlog=0, quarantined=0)
    store(services, range(1, 11))
    changed_at = utc_now()

    def look() -> Any:
        found = api.get(MIGRATION).json()
        times = (found["freshness"]["countedAt"], found["live"]["asOf"])
        return found if all(at(time) > changed_at for time in times) else None

    found = until(look, "a count after the change")
    assert found["posts"]["stored"] == 10
    assert found["freshness"]["maxAgeS"] >= 0.2
    assert found["live"]["maxAgeS"] == 30
    assert found["waiting"] == {"batches": 1, "posts": 10}


def test_what_people_do_is_counted(api: httpx.Client, services: Services, database: Documents) -> None:
    """Posts that a person requeues or repairs are counted anew, though no batch moves."""
    fill(services)
    counted(api, stored=40, migrated=19, backlog=20, quarantined=1)
    assert services.requeue_quarantined(Selection(all=True)).requeued == 1
    counted(api, stored=40, migrated=19, backlog=21, quarantined=0)
    database["posts"].update_one({"externalId": 5}, {"$set": {"contentHash": "0" * 32}})
    assert services.repair({"wrongly_flagged": [5]}).repaired == 1
    counted(api, stored=40, migrated=18, backlog=22, quarantined=0)


def test_requests_count_nothing(api: httpx.Client, services: Services, database: Documents) -> None:
    """However often statistics are asked for, posts are counted only when something has moved."""
    store(services, range(1, 11))
    before = counted(api, stored=10, migrated=0, backlog=10, quarantined=0)
    time.sleep(0.6)  # A count that the last change asked for is over.
    before = api.get(MIGRATION).json()
    document = {"userId": 1, "title": "t", "body": "b", "migrated": False}
    database["posts"].insert_many([{"externalId": 1000 + i} | document for i in range(5)])
    for _ in range(20):
        for path in (INGESTION, MIGRATION):
            found = api.get(path).json()
            assert found["posts"] == before["posts"]
            assert found["freshness"]["countedAt"] == before["freshness"]["countedAt"]
    services.adopt()
    counted(api, stored=15, migrated=0, backlog=15, quarantined=0)


def test_throughput_and_attempts(api: httpx.Client, services: Services) -> None:
    """Right after a migration its rows are in the throughput of all three spans, and its attempts are counted."""
    batches = store(services, range(1, 41))
    services.ledger.start(batches[3], "somebody", utc_now())
    services.ledger.note_failure(batches[3], "gone")
    services.migrate(batches[:3])
    services.ledger.counters.add(utc_now(), {"retries.ServiceUnavailable": 2})
    counted(api, stored=40, migrated=30, backlog=10, quarantined=0)

    def look() -> Any:
        found = api.get(MIGRATION).json()
        return found if found["waiting"] == {"batches": 1, "posts": 10} and found["attempts"]["retries"] else None

    found = until(look, "the live numbers are those of now")
    throughput = found["throughput"]
    # The begin of the minute's window may have passed a part of it meanwhile.
    assert 0 < throughput["perS1m"] <= 0.5
    assert throughput["perS15m"] == pytest.approx(30 / 900, abs=0.001)
    assert throughput["perS1h"] == pytest.approx(30 / 3600, abs=0.001)
    assert found["attempts"] == {"total": 3, "retries": {"ServiceUnavailable": 2}, "mostInBacklog": 1}


def test_workers(api: httpx.Client, services: Services, worker: MigrationWorker) -> None:
    """Workers are listed with what they do, and are no longer once they have gone."""

    def shown(state: str) -> Any:
        def look() -> Any:
            found = api.get(MIGRATION).json()["workers"]
            return found if [each["state"] for each in found] == [state] else None

        return until(look, f"a worker is {state}")[0]

    worker.set_state("idle")
    idle = shown("idle")
    assert (idle["name"], idle["batch"], idle["busyS"]) == (worker.name, None, None)
    assert (utc_now() - at(idle["heartbeatAt"])).total_seconds() < 60
    [batch_id] = store(services, range(1, 6))
    services.ledger.start(batch_id, worker.name, utc_now())
    services.queue.enqueue([batch_id])
    worker.prepare_execution(Job.fetch(batch_id, connection=worker.connection, serializer=JSONSerializer))
    worker.set_state("busy")
    busy = shown("busy")
    assert busy["batch"] == batch_id
    assert 0 <= busy["busyS"] < 60
    worker.register_death()
    until(lambda: api.get(MIGRATION).json()["workers"] == [], "the worker has gone")


def test_how_the_ingestion_went(api: httpx.Client, settings: Settings, stand_in: StandIn) -> None:
    """The last ingestion shows its numbers, failures since then why and how many, and the schedule when it goes on."""
    before = api.get(INGESTION).json()
    assert (before["lastRun"], before["lastSuccessAt"], before["errorsSince"]) == (None, None, 0)
    source = {"source_url": SecretStr(stand_in.url.replace("//", "//me:hunter2@")), "source_max_attempts": 1}
    stand_in.behaviour = {"malformed": "17"}

    def after(**wanted: Any) -> Any:
        def look() -> Any:
            found = api.get(INGESTION).json()
            shown = {"errorsSince": found["errorsSince"], **(found["lastRun"] or {})}
            return found if all(shown.get(name) == value for name, value in wanted.items()) else None

        return until(look, f"the statistics show {wanted}")

    with Services(settings.model_copy(update=source)) as services:
        services.ingest()
        first = after(new=100)
        run = first["lastRun"]
        assert (run["fetched"], run["changed"], run["unchanged"]) == (117, 0, 0)
        assert (run["quarantined"], run["notModified"]) == (17, False)
        assert run["durationS"] > 0
        assert first["lastIngestedAt"] == first["lastSuccessAt"]
        assert at(first["lastSuccessAt"]) >= at(run["startedAt"])
        assert (first["errorsSince"], first["lastError"]) == (0, None)
        assert at(first["nextScheduledAt"]) > utc_now()
        stand_in.behaviour = {"status": "503"}
        with pytest.raises(PipelineError):
            services.ingest()
        failed = after(errorsSince=1)
        assert failed["lastRun"] == run
        assert "503" in failed["lastError"]
        assert "hunter2" not in str(failed)
        stand_in.behaviour = {"malformed": "17"}
        services.ingest()
        again = after(errorsSince=0)
        assert (again["lastRun"]["notModified"], again["lastRun"]["new"], again["lastError"]) == (True, 0, None)
