"""The operator's commands: what they show, what they change, and that nothing in a payload is obeyed."""

from typing import Any

import click
import pymongo
import pytest
from click.testing import CliRunner

from pipeline_poc.cli import cli
from pipeline_poc.stand_in import StandIn
from pipeline_poc_tests.acceptance.conftest import Stores
from pipeline_poc_tests.acceptance.programs import Programs
from pipeline_poc_tests.posts import record

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(180)]

NOT_OK, WRONG_USAGE, UNAVAILABLE = 1, 2, 3

SUBCOMMANDS = [
    (name, sub)
    for name, command in cli.commands.items()
    if isinstance(command, click.Group)
    for sub in command.commands
]


@pytest.fixture
def served(on_servers: Programs, stand_in: StandIn) -> Programs:
    """Programs on servers, with a source."""
    on_servers.settings |= {"source_url": stand_in.url, "retry_base_s": 0.01, "store_timeout_s": 1}
    return on_servers


def change(programs: Programs, collection: str, query: dict[str, Any], update: dict[str, Any]) -> None:
    """Change documents past the pipeline."""
    with pymongo.MongoClient[dict[str, Any]](str(programs.settings["mongo_url"])) as client:
        client[str(programs.settings["mongo_database"])][collection].update_many(query, update)


@pytest.mark.parametrize("group,command", SUBCOMMANDS)
def test_help_has_an_example(programs: Programs, group: str, command: str) -> None:
    """The help of every subcommand shows how to type it."""
    result = programs.run(group, command, "--help")
    assert result.status == 0
    _, _, examples = result.out.partition("Example")
    assert f"pipeline-poc {group} {command}" in examples


def test_quarantine(served: Programs, stand_in: StandIn) -> None:
    """Bad records are listed, shown, requeued and discarded, in JSON as in words."""
    stand_in.posts |= {101: record(101, "x" * 70_000), 102: {"id": 102}, 103: {"id": 103}}
    assert served.ask("ingest")["quarantined"] == 3
    listed = served.ask("quarantine", "list", "--limit", "2")
    assert {group["reason"]: group["count"] for group in listed["groups"]} == {"missing_field": 2, "too_long": 1}
    rest = served.ask("quarantine", "list", "--limit", "2", "--cursor", listed["next_cursor"])
    assert {item["external_id"] for item in listed["items"] + rest["items"]} == {101, 102, 103}
    (long,) = served.ask("quarantine", "list", "--reason", "too_long")["items"]
    assert long["first_at"].endswith("Z")
    assert len(served.ask("quarantine", "show", long["id"])["payload"]) > 70_000
    shown = served.run("quarantine", "list")
    assert shown.status == 0
    assert "missing_field" in shown.out
    assert "a field is missing" in shown.out
    assert served.ask("quarantine", "requeue", "--id", long["id"], "--dry-run") == {
        "dry_run": True,
        "selected": 1,
        "requeued": 0,
        "still_invalid": 1,
        "superseded": 0,
    }
    discarded = served.run("quarantine", "discard", "--reason", "missing_field", "--because", "test data")
    assert discarded.status == 0
    assert " ".join(discarded.out.split()) == "Discarded dry run no selected 2 discarded 2"
    assert [group["reason"] for group in served.ask("quarantine", "list")["groups"]] == ["too_long"]
    gone = served.ask("quarantine", "list", "--discarded")["items"]
    assert {item["discarded"]["reason"] for item in gone} == {"test data"}
    assert "command line" in gone[0]["discarded"]["by"]


def test_replay(served: Programs) -> None:
    """What a replay did is shown in words as in JSON."""
    served.ask("ingest")
    served.ask("migrate")
    done = served.ask("replay", "--from", "41", "--to", "45")
    counted = {"dry_run": False, "selected": 5, "replayed": 5, "waiting": 0, "quarantined": 0, "batches": 1}
    assert done == counted | {"duration_s": done["duration_s"]}
    said = " ".join(served.run("replay", "--all", "--dry-run").out.split())
    assert "dry run yes selected 95 replayed 0 waiting 5" in said


@pytest.mark.parametrize(
    "words", ["", "--ids x", "--ids 0", "--changed-since yesterday", "--changed-since 2026-01-31", "--all --from 1"]
)
def test_replays_that_are_not_clear(words: str) -> None:
    """Which posts to replay must be said, in one way, by ids and times that there are."""
    result = CliRunner().invoke(cli, ["replay", *words.split()])
    assert result.exit_code == WRONG_USAGE, result.output


def test_dead_letters(served: Programs) -> None:
    """Dead letters are listed, shown, requeued and given up, in JSON as in words."""
    served.ask("ingest", batch_size=50)
    change(served, "batches", {}, {"$set": {"state": "dead", "error": "ValueError: [red]what[/] nobody foresaw"}})
    listed = served.ask("dead-letters", "list")
    assert [(group["reason"], group["batches"], group["posts"]) for group in listed["groups"]] == [
        ("ValueError", 2, 100)
    ]
    first, second = (item["id"] for item in listed["items"])
    said = served.run("dead-letters", "list").out + served.run("dead-letters", "show", first).out
    assert said.count("ValueError: [red]what[/] nobody foresaw") == 3
    assert served.ask("dead-letters", "show", second)["external_ids"] == list(range(1, 21))
    done = served.ask("dead-letters", "discard", "--id", first, "--because", "give up")
    assert done == {"dry_run": False, "selected": 1, "discarded": 1}
    assert served.ask("dead-letters", "requeue", "--reason", "ValueError")["requeued"] == 1
    assert served.ask("migrate")["migrated"] == 50
    assert served.ask("quarantine", "requeue", "--reason", "dead_letter")["requeued"] == 50
    assert served.ask("migrate")["migrated"] == 50
    assert served.ask("reconcile")["migrated"] == 100


@pytest.mark.slow
def test_repair_and_post(served: Programs, stores: Stores) -> None:
    """A fault shows in the post's passport, is repaired by command, and what can't be repaired is left and named."""
    served.ask("ingest")
    served.ask("migrate")
    assert served.ask("post", "5")["agrees"] is True
    assert "The stores agree: it is migrated" in served.run("post", "5").out
    with stores.sql() as cursor:
        cursor.execute("DELETE FROM migrated_posts WHERE externalId = 5")
        cursor.execute("UPDATE migrated_posts SET externalId = 777 WHERE externalId = 6")
        cursor.connection.commit()
    for external_id, verdict in ((5, "there is no row"), (777, "a row, but no post")):
        result = served.run("post", str(external_id))
        assert result.status == NOT_OK
        assert verdict in result.out
    assert served.run("post", "12345").status == NOT_OK
    dry = served.run("repair", "--dry-run", "--json")
    assert (dry.status, dry.json["repaired"], dry.json["left"]["extra"]) == (NOT_OK, 2, [777])
    shown = served.run("repair")
    assert shown.status == NOT_OK
    assert "left, extra: 777" in shown.out
    served.ask("migrate")
    with stores.sql() as cursor:
        cursor.execute("DELETE FROM migrated_posts WHERE externalId = 777")
        cursor.connection.commit()
    assert served.ask("repair")["repaired"] == 0
    assert served.ask("reconcile")["migrated"] == 100


def test_a_store_that_is_away_is_named(served: Programs) -> None:
    """`post` shows what it knows without Redis, and exits with 3."""
    served.ask("ingest")
    result = served.run("post", "5", redis_url="redis://127.0.0.1:1/0")
    assert result.status == UNAVAILABLE
    assert "Redis is away" in result.out
    assert "The stores agree: it waits to be migrated" in result.out


def test_nothing_in_a_payload_is_obeyed(served: Programs, stand_in: StandIn) -> None:
    """Escape sequences, markup, emoji codes and letters that turn text around are shown as they are."""
    served.ask("ingest")
    hostile = "\x1b]0;owned\x07\x1b[2J[red]x[/red] [/] :skull: \u202eabc\x7f\x9b31m"
    quarantine = {"code": hostile, "message": hostile}
    change(
        served, "posts", {"externalId": 1}, {"$set": {"migrated": False, "title": hostile, "quarantine": quarantine}}
    )
    (item,) = served.ask("quarantine", "list")["items"]
    assert item["message"] == hostile
    for command in (("quarantine", "list"), ("quarantine", "show", item["id"]), ("post", "1")):
        result = served.run(*command)
        assert result.status == 0, result.said
        assert not [char for char in result.out if not char.isprintable() and char != "\n"]
        assert all(text in "".join(result.out.split()) for text in ("[red]x[/red][/]", ":skull:", r"\x1b", r"\u202e"))


def test_wrong_usage(programs: Programs) -> None:
    """Selections that say nothing, or too much, and cursors of nobody are wrong usage; nothing is done."""
    for arguments in (
        ("quarantine", "requeue"),
        ("quarantine", "requeue", "--all", "--reason", "x"),
        ("quarantine", "discard", "--all"),
        ("dead-letters", "requeue", "--id", "x", "--all"),
        ("dead-letters", "list", "--limit", "1000"),
        ("post", "five"),
    ):
        result = programs.run(*arguments)
        assert result.status == WRONG_USAGE, result.said
        assert "Usage: pipeline-poc" in result.err


def test_wrong_cursor_and_unknown_ids(served: Programs) -> None:
    """A cursor that no list returned is wrong usage; an id that nobody has is an error in one sentence."""
    assert served.run("quarantine", "list", "--cursor", "x").status == WRONG_USAGE
    for group in ("quarantine", "dead-letters"):
        result = served.run(group, "show", "0" * 32, "--json")
        assert result.status == NOT_OK
        assert "0" * 32 in result.json["message"]
