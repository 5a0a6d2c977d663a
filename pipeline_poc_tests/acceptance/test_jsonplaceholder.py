"""The real API's own server, and MongoDB, Redis and MariaDB as servers: the pipeline as it is meant to run."""

import json
from typing import Any

import pytest

from pipeline_poc.entities import ENTITIES
from pipeline_poc.records import Record
from pipeline_poc_tests.acceptance.conftest import Stores
from pipeline_poc_tests.acceptance.jsonplaceholder import JsonPlaceholder
from pipeline_poc_tests.acceptance.programs import Programs

# The first run installs the server.
pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(420)]

FIELDS = ("id", "userId", "title", "body")
SERVED = {"posts": 100, "comments": 500, "users": 10, "todos": 200, "albums": 100, "photos": 5000}


def migrate(programs: Programs) -> dict[str, Any]:
    """Ingest, enqueue, execute the jobs and reconcile, each by its command; returns what the ingestion did."""
    ingestion: dict[str, Any] = programs.ask("ingest")
    programs.ask("enqueue")
    programs.ask("worker", "--burst")
    assert programs.ask("reconcile")["ok"]
    return ingestion


def test_posts_arrive_identical_to_the_byte(
    on_servers: Programs, stores: Stores, jsonplaceholder_server: JsonPlaceholder
) -> None:
    """All 100 posts arrive unaltered; a second pass writes nothing; a changed post moves again, and only it."""
    server = jsonplaceholder_server
    on_servers.settings["source_url"] = server.url
    served = server.served()
    assert len(served) == 100
    assert migrate(on_servers)["new"] == 100
    documents, rows = stores.documents(), stores.table()
    for stored in (documents, rows):
        texts = [(each["externalId"], each["userId"], each["title"], each["body"]) for each in stored]
        assert texts == [tuple(post[name] for name in FIELDS) for post in served]
    assert [row["title"].encode() for row in rows] == [post["title"].encode() for post in served]

    assert on_servers.ask("ingest")["not_modified"], "the server's ETag is not used"
    # Another URL for the same posts, which no ETag is known for.
    on_servers.settings["source_url"] = f"{server.url}?_sort=id"
    assert on_servers.ask("ingest")["unchanged"] == 100
    assert len(stores.batches()) == 1
    assert (stores.documents(), stores.table()) == (documents, rows)

    server.change(1, title="changed at the source 🦀")
    again = migrate(on_servers)
    assert (again["new"], again["changed"], again["unchanged"]) == (0, 1, 99)
    assert [batch["size"] for batch in stores.batches()] == [100, 1]
    assert stores.documents()[1:] == documents[1:]
    assert stores.table()[1:] == rows[1:]
    changed = stores.table()[0]
    assert changed["title"] == "changed at the source 🦀"
    assert changed["id"] == rows[0]["id"]
    assert changed["version"] > rows[0]["version"]


@pytest.mark.slow
def test_every_entity_arrives(on_servers: Programs, stores: Stores, jsonplaceholder_server: JsonPlaceholder) -> None:
    """All that the real API serves gets to MariaDB through queue and workers, each value as it was served."""
    on_servers.settings["source_url"] = jsonplaceholder_server.url
    said = on_servers.run("up", "--once", "--json", entities=",".join(ENTITIES))
    assert said.status == 0, said.said
    outcomes = {one["entity"]: one for one in map(json.loads, said.out.splitlines())}
    assert {name: one["ingestion"]["new"] for name, one in outcomes.items()} == SERVED
    assert all(one["ok"] for one in outcomes.values())
    for name, entity in ENTITIES.items():
        served = [entity.parse(record) for record in jsonplaceholder_server.served(name)]
        columns = ", ".join(f"`{column}`" for column in entity.stored_as.values())
        with stores.sql() as cursor:
            cursor.execute(f"SELECT {columns} FROM {entity.table} ORDER BY externalId")
            assert cursor.fetchall() == tuple(record.content for record in served if isinstance(record, Record))
