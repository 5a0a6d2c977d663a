"""What a rehearsal takes out of docker-compose.yml, and how it starts and stops that."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from alembic.config import Config
from alembic.script import ScriptDirectory
from playwright._impl._driver import compute_driver_executable

from pipeline_poc.chaos.compose import Part, Service, first_statements, interpolated, lay_out, service
from pipeline_poc.chaos.releases import next_release
from pipeline_poc.relational_store import SCHEMA_VERSION
from pipeline_poc_tests.acceptance.programs import until

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
VARIABLES = {
    "MONGO_PASSWORD": "4000a",
    "MYSQL_PASSWORD": "b",
    "REDIS_PASSWORD": "c",
    "API_OPERATE_TOKEN_HASHES": "0" * 64,
    "API_READ_TOKEN_HASHES": "1" * 64,
}
PLACES = {"@mongo:27017": "@127.0.0.1:1", "@redis:6379": "@127.0.0.1:2", "@mysql:3306": "@127.0.0.1:3", "4000": "4"}
OURS = ("dagster-storage", "schema", "code", "webserver", "daemon", "worker")


@pytest.mark.parametrize("name", OURS)
def test_a_service_as_it_stands_in_compose(name: str) -> None:
    """Command and environment are those of compose, with every variable filled in and every name of a host replaced."""
    made = service(COMPOSE, name, VARIABLES, PLACES)
    assert made.command[0] in ("pipeline-poc", "dagster", "dagster-daemon")
    assert made.environment["ENVIRONMENT"] == "production"
    assert made.environment["MONGO_URL"] == "mongodb://pipeline:4000a@127.0.0.1:1/?authSource=admin"
    assert made.environment["DAGSTER_MYSQL_URL"] == "mysql+mysqlconnector://pipeline:b@127.0.0.1:3/dagster"
    assert "${" not in str(made)
    assert made.grace_s == (60 if name in ("code", "worker") else 10)


def test_what_a_service_has_of_its_own() -> None:
    """Ports, health checks, and variables that are handed on where they are set, and only there."""
    code = service(COMPOSE, "code", VARIABLES, PLACES)
    assert code.command[-4:] == ["--port", "4", "--module-name", "pipeline_poc.definitions"]
    assert code.health == ["./healthcheck", *code.command]
    assert service(COMPOSE, "daemon", VARIABLES, PLACES).health == ["dagster-daemon", "liveness-check"]
    web = service(COMPOSE, "webserver", VARIABLES, PLACES)
    assert web.environment["API_READ_TOKEN_HASHES"] == "1" * 64
    assert "SESSION_SECRET" not in web.environment
    assert service(COMPOSE, "worker", VARIABLES, PLACES).health == ["./healthcheck", "pipeline-poc", "worker"]


def test_a_folder_has_what_volumes_and_image_bring(tmp_path: Path) -> None:
    """The health check, the configuration of Dagster that compose mounts, and where the code server is."""
    lay_out(COMPOSE, ROOT, tmp_path / "part", host="10.0.0.1", port=4)
    mounted = ROOT / "deploy" / "kubernetes" / "config" / "dagster.yaml"
    assert (tmp_path / "part" / "dagster.yaml").read_bytes() == mounted.read_bytes()
    assert (tmp_path / "part" / "healthcheck").stat().st_mode & 0o111
    workspace = yaml.safe_load((tmp_path / "part" / "workspace.yaml").read_text(encoding="utf-8"))
    found = {"host": "10.0.0.1", "port": 4, "location_name": "pipeline_poc"}
    assert workspace == {"load_from": [{"grpc_server": found}]}


SHELL = """
const [name, isPrimary] = JSON.parse(process.argv[1]), said = [];
globalThis.db = {
  hello: () => ({setName: name || undefined, isWritablePrimary: isPrimary}),
  getSiblingDB: (database) => ({auth: (user, password) => said.push([database, user, password])}),
};
globalThis.rs = {initiate: ({_id, members}) => said.push([_id, members.map(({host}) => host)])};
globalThis.quit = (status) => { console.log(JSON.stringify(said)); process.exit(status); };
require(process.argv[2]);
"""
"""As much of mongosh as the health check of MongoDB needs."""


@pytest.mark.parametrize(
    ("name", "is_primary", "status"), [("", False, 1), ("pipeline", False, 1), ("pipeline", True, 0)]
)
def test_mongodb_becomes_a_replica_set(name: str, is_primary: bool, status: int) -> None:
    """A server without a set becomes one, by the name that it was started with; healthy is what takes writes."""
    node, _ = compute_driver_executable()
    mongo = COMPOSE["services"]["mongo"]
    path = next(text for text in mongo["volumes"] if text.endswith(":/health.js:ro")).split(":")[0]
    command = [node, "-e", SHELL, json.dumps([name, is_primary]), str(ROOT / path)]
    done = subprocess.run(command, env={"MONGO_INITDB_ROOT_PASSWORD": "p"}, capture_output=True, text=True, check=False)
    started = mongo["command"][mongo["command"].index("--replSet") + 1]
    initiated = [["admin", mongo["environment"]["MONGO_INITDB_ROOT_USERNAME"], "p"], [started, ["mongo:27017"]]]
    assert (done.returncode, json.loads(done.stdout)) == (status, [] if name else initiated), done.stderr


def test_what_mysql_executes_first() -> None:
    """The statements of the script that compose mounts, without comments."""
    made, granted = first_statements(COMPOSE, ROOT)
    assert made.startswith("CREATE DATABASE dagster ")
    assert granted == "GRANT ALL ON dagster.* TO pipeline"


def test_variables_as_compose_fills_them_in() -> None:
    """A value, a default, nothing, a dollar; a variable that has to be set, and isn't, is an error."""
    text = "${A} ${B:-b} ${C}$${C} ${A:?set A}"
    assert interpolated(text, {"A": "1"}) == "1 b ${C} 1"
    with pytest.raises(KeyError, match="set A"):
        interpolated(text, {"A": ""})


def test_the_next_release_has_one_step_more(tmp_path: Path) -> None:
    """Its newest revision follows this one's, works with this one's code, and is the one that its own code needs."""
    folder = next_release(ROOT, tmp_path / "next") / "pipeline_poc"
    config = Config()
    config.set_main_option("script_location", str(folder / "migrations"))
    scripts = ScriptDirectory.from_config(config)
    head = scripts.get_current_head()
    assert head == f"{int(SCHEMA_VERSION[:4]) + 1:04d}_from_{SCHEMA_VERSION[:4]}"
    assert scripts.get_revision(head).down_revision == SCHEMA_VERSION
    assert f'SCHEMA_VERSION = "{head}"' in (folder / "relational_store.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(("trap", "by_itself"), [("exit 0", True), ("", False)])
def test_a_part_ends_as_a_container_does(tmp_path: Path, trap: str, by_itself: bool) -> None:
    """It is asked, and killed when its grace is over; its children are gone with it in both cases."""
    script = f"trap '{trap}' TERM; sleep 60 & echo $! > child; while :; do sleep 0.05; done"
    part = Part("part", Service(["sh", "-c", script], {}, ["test", "-s", "child"], 0.5), tmp_path, ROOT)
    part.start()
    part.wait()
    assert not part.has_died
    assert part.stop() is by_itself
    child = int((tmp_path / "child").read_text())
    until(lambda: not _lives(child), "the child is gone with its container")


def test_a_part_runs_the_release_that_it_is_given(tmp_path: Path) -> None:
    """Its programs import the package from the folder of its release."""
    package = tmp_path / "release" / "pipeline_poc"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    part = Part("part", Service([sys.executable], {}, [], 1.0), tmp_path, tmp_path / "release")
    found = part.run(sys.executable, "-c", "import pipeline_poc; print(pipeline_poc.__file__)").stdout
    assert found.strip() == str(package / "__init__.py")


def _lives(pid: int) -> bool:
    """Return whether a process is more than an entry that nobody has read yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
