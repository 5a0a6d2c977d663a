"""The passport: everything that is known of one post, and whether both stores agree about it."""

import re
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from pymongo.database import Database

from pipeline_poc import passport as passports
from pipeline_poc.chaos.servers import MariaDB, Mongo, Redis
from pipeline_poc.clock import utc_now
from pipeline_poc.errors import ServiceUnavailable
from pipeline_poc.passport import Passport
from pipeline_poc.selection import Selection
from pipeline_poc.services import Services
from pipeline_poc.settings import Settings
from pipeline_poc_tests.integration.test_reconciliation import FAULTS_BY_HAND

Documents = Database[dict[str, Any]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Second looks come soon."""
    monkeypatch.setattr(passports, "_SECOND_LOOK_AFTER_S", 0.01)


def known(services: Services, external_id: int) -> Passport:
    """Return the passport of a post that is known."""
    found = services.passport(external_id)
    assert found is not None
    return found


def test_a_post_on_its_way(services: Services) -> None:
    """A post's passport follows it from its arrival over the queue into its row."""
    services.ingest()
    stored = known(services, 1)
    assert (stored.state, stored.agrees, stored.verdict) == ("backlog", True, "it waits to be migrated")
    assert stored.batch is not None
    assert (stored.batch.id, stored.batch.state, stored.batch.attempts) == (stored.batch_id, "open", 0)
    assert stored.first_seen_at == stored.changed_at is not None
    assert (stored.job, stored.row, stored.quarantine) == (None, None, None)
    services.tick()
    queued = known(services, 1)
    assert queued.job is not None
    assert (queued.job.id, queued.job.state) == (stored.batch_id, "queued")
    services.migrate()
    migrated = known(services, 1)
    assert (migrated.state, migrated.agrees) == ("migrated", True)
    assert migrated.batch is not None
    assert (migrated.batch.state, migrated.batch.worker) == ("closed", services.worker_name)
    assert migrated.row is not None
    assert migrated.row["externalId"] == 1
    assert (migrated.row["contentHash"], migrated.row["version"]) == (migrated.content_hash, migrated.version)


def test_a_quarantined_post(services: Services) -> None:
    """A refused post shows why, and whether somebody discarded it; the stores are as they should be."""
    services.ingest()
    batch = services.ledger.batches("open")[0]
    services.raw_store.quarantine_posts(batch.id, {1: ("relational_1406", "too long")}, utc_now())
    found = known(services, 1)
    assert (found.state, found.agrees) == ("quarantined", True)
    assert found.quarantine is not None
    assert (found.quarantine.reason, found.quarantine.message) == ("relational_1406", "too long")
    assert found.quarantine.is_discarded is False
    services.discard_quarantined(Selection(all=True), "x", "me")
    again = known(services, 1).quarantine
    assert again is not None
    assert again.is_discarded


@pytest.mark.parametrize("external_id", [12_345, 0, -1, 2**63 - 1, 2**63, -(2**63), 10**30])
def test_a_post_that_nobody_knows(services: Services, external_id: int) -> None:
    """Ids that neither store knows, or could know, have no passport."""
    services.ingest()
    assert services.passport(external_id) is None


VERDICTS = {
    "rows deleted": "it is flagged migrated, but there is no row",
    "documents deleted": "there is a row, but no post",
    "row of another content": "it is flagged migrated, but the row has another content",
    "flag taken away": "it waits in batch .*, which is closed or gone",
    "hash of something else": "its stored content hash is not that of its content",
    "migrated and quarantined": "it is flagged migrated, and quarantined at once",
}


@pytest.mark.parametrize("fault", FAULTS_BY_HAND)
def test_every_fault(services: Services, database: Documents, sql: sa.Engine, fault: str) -> None:
    """Whatever reconciliation reports of a post, its passport says in a sentence; of other posts it says nothing."""
    services.ingest()
    services.migrate()
    plant, expected = FAULTS_BY_HAND[fault]
    plant(database, sql)
    (ids,) = expected.values()
    for external_id in ids:
        found = known(services, external_id)
        assert found.agrees is False
        assert re.fullmatch(VERDICTS.get(fault, ".+"), found.verdict)
    assert known(services, 20).agrees


def test_stores_that_are_away(  # noqa: PLR0917 - fixtures are asked for by name
    services: Services, settings: Settings, redis_server: Redis, mongo: Mongo, sql_url: str, mariadb: MariaDB
) -> None:
    """A store that is away is named with its error; only without MongoDB there is no passport."""
    services.ingest()
    others = settings.model_copy(update={"sql_url": SecretStr(sql_url)})
    with Services(others) as elsewhere:
        redis_server.kill()
        found = known(elsewhere, 1)
        assert (list(found.away), found.agrees) == (["Redis"], True)
        assert "REDIS_URL" in found.away["Redis"]
        mariadb.kill()
        found = known(elsewhere, 1)
        assert (sorted(found.away), found.agrees, found.row) == (["Redis", "relational store"], None, None)
        assert found.verdict == "the relational store is away"
        assert known(elsewhere, 12_345).state == "unknown"
    mongo.kill()
    with pytest.raises(ServiceUnavailable, match="MONGO_URL"):
        services.passport(1)
    mongo.start()
    redis_server.start()


def test_a_post_that_moves_while_it_is_looked_at(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """A post that is migrated between the looks at both stores raises no alarm."""
    services.ingest()
    real = services.ledger.get

    def meanwhile(batch_id: str) -> Any:
        services.migrate()
        return real(batch_id)

    monkeypatch.setattr(services.ledger, "get", meanwhile)
    found = known(services, 1)
    assert (found.state, found.agrees) == ("migrated", True)
