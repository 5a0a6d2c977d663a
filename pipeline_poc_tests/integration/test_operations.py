"""docs/operations.md by the letter: its commands for backup, restore and passwords, run on real servers.

No Docker, mongodump or mongosh is needed: small programs of these names stand in. That of `docker` runs here what would
run in a container; those of MongoDB take the options of the real ones, and copy documents with pymongo.
"""

import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest
import redis
import yaml
from click.testing import CliRunner
from pymongo.database import Database

from pipeline_poc import reconciliation
from pipeline_poc.chaos.servers import MariaDB, Redis
from pipeline_poc.cli import cli
from pipeline_poc.services import Services
from pipeline_poc.stand_in import StandIn
from pipeline_poc_tests.posts import record

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/operations.md").read_text("utf-8")
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]

DOCKER = """\
#!/bin/sh
# docker compose exec -T SERVICE COMMAND...
shift 4
exec "$@"
"""
MONGO_TOOL = f"""\
#!{sys.executable}
import argparse, os, pathlib, sys
import bson, pymongo
parser = argparse.ArgumentParser()
for name in ("--username", "--password", "--authenticationDatabase", "--db", "--nsInclude", "--eval"):
    parser.add_argument(name)
for name in ("--quiet", "--gzip", "--archive", "--drop"):
    parser.add_argument(name, action="store_true")
given = parser.parse_args()
assert (given.username, given.password, given.authenticationDatabase) == ("pipeline", "secret", "admin")
program, database = pathlib.Path(sys.argv[0]).name, pymongo.MongoClient(os.environ["TEST_MONGO_URL"])["pipeline_poc"]
if program == "mongodump":
    assert given.db == database.name and given.gzip and given.archive
    copy = {{name: list(database[name].find()) for name in database.list_collection_names()}}
    sys.stdout.buffer.write(bson.encode(copy))
elif program == "mongorestore":
    assert given.nsInclude == f"{{database.name}}.*" and given.drop and given.gzip and given.archive
    for name, documents in bson.decode(sys.stdin.buffer.read()).items():
        database[name].delete_many({{}})
        if documents:
            database[name].insert_many(documents)
else:
    assert given.eval or sys.stdin.read()
"""


@pytest.fixture
def mongo_database() -> str:
    """The database that the commands name."""
    return "pipeline_poc"


@pytest.fixture
def relational_url(mariadb: MariaDB) -> Iterator[str]:
    """The database that the commands name, on a server whose password they may change."""
    mariadb.start()
    mariadb.execute("CREATE DATABASE dagster")
    yield mariadb.url("pipeline_poc")
    mariadb.execute(
        "ALTER USER pipeline@'%' IDENTIFIED BY 'secret'", "DROP DATABASE pipeline_poc", "DROP DATABASE dagster"
    )


class Operator:
    """Types what stands in the documentation."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = environment

    def follow(self, heading: str) -> list[int]:
        """Run the commands of a section; returns the exit status of each."""
        _, _, section = TEXT.partition(f"\n{heading}\n")
        blocks = re.findall(r"^```sh\n(.*?)^```", section.partition("\n#")[0], re.MULTILINE | re.DOTALL)
        assert blocks, heading
        return [self.run(line) for block in blocks for line in block.splitlines()]

    def run(self, line: str) -> int:
        """Run a line: our own commands in this process, others in a shell."""
        words = shlex.split(line, comments=True)
        if words[:4] == ["docker", "compose", "run", "--rm"]:
            words = ["pipeline-poc", *SERVICES[words[4]]["command"]]
        if words[0] == "pipeline-poc":
            return CliRunner().invoke(cli, words[1:]).exit_code
        if words[:3] == ["docker", "compose", "stop"]:
            assert SERVICES.keys() >= set(words[3:])
            return 0
        done = subprocess.run(
            ["sh", "-c", line], cwd=self._folder, env=self._environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return 0


@pytest.fixture
def operator(  # noqa: PLR0917 - fixtures
    services: Services,
    environment: dict[str, str],
    mariadb: MariaDB,
    mongo_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Operator:
    """Somebody at a shell, with the settings of the pipeline."""
    monkeypatch.setattr(reconciliation, "_SECOND_LOOK_AFTER_S", 0.01)
    monkeypatch.setattr("pipeline_poc.commands.configure_logging", lambda *_: None)
    for name in set(environment) - set(os.environ):
        monkeypatch.setenv(name, environment[name])
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {
        "docker": DOCKER,
        **dict.fromkeys(("mongodump", "mongorestore", "mongosh"), MONGO_TOOL),
    }.items():
        (programs / name).write_text(text, "utf-8")
        (programs / name).chmod(stat.S_IRWXU)
    (tmp_path / ".my.cnf").write_text(f"[client]\nsocket={mariadb.home / 'socket'}\n", "utf-8")
    shell = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "MYSQL_PASSWORD": "secret",
        "MONGO_INITDB_ROOT_PASSWORD": "secret",
        "TEST_MONGO_URL": mongo_url,
    }
    return Operator(tmp_path, shell)


def found(services: Services) -> dict[str, list[int]]:
    """Return what the last comparison found, by kind of fault."""
    return {fault: ids for fault, ids in (services.last_reconciliation().ids or {}).items() if ids}


def title(services: Services, external_id: int) -> str | None:
    """Return the title in a row."""
    row = services.relational_store.row(external_id)
    return None if row is None else str(row["title"])


def test_backup_and_restore(
    operator: Operator, services: Services, stand_in: StandIn, database: Database[dict[str, Any]]
) -> None:
    """Either store may fall back to its backup, or both: what lacks is found, and mended by the commands."""
    stand_in.behaviour = {"n": "0"}
    stand_in.posts = {number: record(number, "first") for number in range(1, 41)}
    services.ingest()
    services.migrate(batch.id for batch in services.ledger.batches("open")[:3])
    assert operator.follow("## Backup") == [0, 0, 0, 0]
    # Afterwards: what was under way is migrated, posts change and come, and two of them vanish from the source again.
    later = {number: record(number, "second") for number in (1, 2, 35, 50, 51, 60)}
    stand_in.posts |= later
    services.ingest()
    services.migrate()
    del stand_in.posts[2], stand_in.posts[60]
    services.ingest()
    assert services.reconcile().ok

    statuses = operator.follow("### MySQL alone")
    assert statuses == [0, 0, 0, 1, 0, 0, 0, 0]
    assert found(services) == {}
    assert {title(services, number) for number in later} == {"second"}
    assert title(services, 40) == "first"
    assert services.relational_store.count() == 43

    statuses = operator.follow("### MongoDB alone")
    assert statuses == [0, 0, 0, 0, 0, 1]
    assert found(services) == {"extra": [60], "stale": [2]}
    # No row went back; what the source serves is right in both stores.
    assert {title(services, number) for number in later} == {"second"}
    assert services.repair().left["extra"] == [60]
    services.adopt()
    services.migrate()
    assert (services.reconcile().faults["stale"], title(services, 2)) == ([], "first")

    statuses = operator.follow("### Both")
    assert statuses == [0] * len(statuses)
    assert found(services) == {}
    served = {number: post["title"] for number, post in stand_in.posts.items()} | {2: "first"}
    assert {number: title(services, number) for number in (*served, 60)} == served | {60: None}
    assert database["posts"].count_documents({"migrated": True}) == services.relational_store.count() == len(served)


def test_a_full_ingestion_brings_what_the_last_answer_hides(
    services: Services, stand_in: StandIn, database: Database[dict[str, Any]]
) -> None:
    """A backup that is not of one moment may lack a post of the answer that it remembers: --full asks for it again."""
    stand_in.behaviour = {"n": "200"}
    services.ingest()
    answer = database["ingestion_state"].find_one({"sample": {"$exists": True}})
    assert answer
    lost = min(set(range(1, 201)) - set(answer["sample"]))
    database["posts"].delete_one({"externalId": lost})
    assert services.ingest().not_modified
    assert services.ingest(full=True).new == 1


def test_passwords_change(operator: Operator, mariadb: MariaDB, redis_server: Redis) -> None:
    """The statement for MySQL changes the password of whoever sends it; what stands there for Redis does as well."""
    statements = [line for line in TEXT.splitlines() if line.startswith("echo ")]
    mysql, mongo, valkey = statements
    assert (operator.run(mysql), operator.run(mongo)) == (0, 0)
    login: dict[str, Any] = {"host": "127.0.0.1", "port": mariadb.port, "user": "pipeline", "ssl_disabled": True}
    pymysql.connect(password="NEW", **login).close()
    with pytest.raises(pymysql.OperationalError, match="Access denied"):
        pymysql.connect(password="secret", **login)

    command = shlex.split(valkey.partition("|")[0])[1]
    with redis.Redis.from_url(redis_server.url) as kept:
        kept.execute_command(command)
        try:
            with redis.Redis.from_url(redis_server.url) as client, pytest.raises(redis.AuthenticationError):
                client.ping()
            assert kept.ping(), "a connection that is open goes on"
        finally:
            kept.config_set("requirepass", "")


def test_sizes_can_be_looked_at(operator: Operator) -> None:
    """The questions for sizes are understood."""
    lines = [line for line in TEXT.splitlines() if "megabytes" in line or "stats(1e6)" in line]
    assert [operator.run(line) for line in lines] == [0, 0]
