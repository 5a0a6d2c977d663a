"""The servers of a run, and fresh databases on them for every contender."""

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from itertools import count
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

import psutil
import pymongo
import pymysql
import redis
from pymongo.uri_parser import parse_uri

from pipeline_poc.chaos.servers import MariaDB, Mongo, Redis
from pipeline_poc.orchestration.instance import instance_of, prepare_home

_SIZED = ("--innodb-buffer-pool-size=512M", "--innodb-log-file-size=256M")
"""Enough for a million posts, so that no contender waits for a disk."""
_REDIS_DATABASES = 16
making_tables = Lock()
"""To be held by whoever makes tables with Alembic, which knows one database in a process at a time."""


class Stores:
    """MariaDB, Valkey and a MongoDB, started by this process; to be used as a context manager.

    Args:
        mongo: The MongoDB, to be started; or the URL of one that runs already.
        mongo_name: What it is called in the results.
    """

    def __init__(self, mongo: Mongo | str, mongo_name: str) -> None:
        self._mongo = mongo
        self._resources = ExitStack()
        self._numbers = count()
        self.mongo_name = mongo_name

    def __enter__(self) -> Self:
        with ExitStack() as resources:
            self._mariadb = resources.enter_context(MariaDB(*_SIZED))
            self._redis = resources.enter_context(Redis())
            if isinstance(self._mongo, str):
                self._mongo_url = self._mongo
            else:
                self._mongo_url = resources.enter_context(self._mongo).url
            self._resources = resources.pop_all()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._resources.close()

    @property
    def pids(self) -> dict[str, int]:
        """The process id of each server that runs on this machine, by name."""
        ports = {"MariaDB": self._mariadb.port, "Valkey": self._redis.port}
        host, port = parse_uri(self._mongo_url)["nodelist"][0]
        if port and host in ("127.0.0.1", "localhost"):
            ports["MongoDB"] = port
        try:
            connections = psutil.net_connections("tcp")
        except psutil.AccessDenied:  # Some systems tell an administrator only.
            return {}
        listening = {
            connection.laddr.port: connection.pid
            for connection in connections
            if connection.laddr and connection.status == psutil.CONN_LISTEN and connection.pid
        }
        return {name: listening[port] for name, port in ports.items() if port in listening}

    @property
    def versions(self) -> dict[str, str]:
        """What each server calls itself."""
        with (
            pymongo.MongoClient[dict[str, Any]](self._mongo_url) as mongo,
            redis.Redis.from_url(self._redis.url) as valkey,
            pymysql.connect(host="127.0.0.1", port=self._mariadb.port, user="root") as mariadb,
            mariadb.cursor() as cursor,
        ):
            cursor.execute("SELECT VERSION()")
            said: Mapping[str, Any] = valkey.info("server")
            return {
                self.mongo_name: str(mongo.server_info()["version"]),
                "Valkey": str(said.get("valkey_version", said["redis_version"])),
                "MariaDB": "".join(cursor.fetchone() or ()),
            }

    @contextmanager
    def fresh(self, folder: Path) -> Iterator[dict[str, str]]:
        """Yield the environment of a contender that has everything for itself: empty stores and an empty Dagster."""
        name = f"bench_{secrets.token_hex(4)}"
        redis_url = self._redis.url.removesuffix("0") + str(next(self._numbers) % _REDIS_DATABASES)
        home = folder / "dagster"
        prepare_home(home)
        with making_tables, instance_of(home):
            pass  # Its storage has its tables now.
        try:
            yield {
                "MONGO_URL": self._mongo_url,
                "MONGO_DATABASE": name,
                "REDIS_URL": redis_url,
                "SQL_URL": self._mariadb.url(name),
                "DATA_DIR": str(folder / "data"),
                "DAGSTER_HOME": str(home),
            }
        finally:
            # The second one is dlt's.
            self._mariadb.execute(*(f"DROP DATABASE IF EXISTS `{own}`" for own in (name, f"{name}_staging")))
            with pymongo.MongoClient[dict[str, Any]](self._mongo_url) as mongo:
                mongo.drop_database(name)
            with redis.Redis.from_url(redis_url) as valkey:
                valkey.flushdb()


def library_versions() -> dict[str, str]:
    """Return the versions of what the contenders are made of."""
    names = "pipeline-poc dagster rq pymongo pymysql sqlalchemy redis dlt pyarrow secantusdb"
    return {name: version(name) for name in names.split()}


def plain_environment() -> dict[str, str]:
    """Return the environment of every process of a run: nothing of the caller's settings comes in."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        "no_proxy": "*",
    }
