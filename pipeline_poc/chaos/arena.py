"""Where the fault suite takes place: real servers, each behind a proxy, and a source."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Self, cast
from urllib.parse import urlsplit

import pymongo
import pymysql
import redis

from pipeline_poc.chaos.proxy import Proxy
from pipeline_poc.chaos.servers import MariaDB, Mongo, Redis
from pipeline_poc.chaos.world import REFUSED_TITLE
from pipeline_poc.stand_in import StandIn

Store = Literal["source", "mongo", "redis", "sql"]
STORES: tuple[Store, ...] = ("source", "mongo", "redis", "sql")

DATABASE = "pipeline_poc"
QUEUE_KEY = "rq:queue:migration"
_SCHEDULED_KEY = "rq:scheduled:migration"
_COLLECTIONS = ("posts", "batches", "quarantined_records", "ingestion_state", "counters", "pipeline_state")
_LOCK_WAIT_S = 1
_CONNECTIONS = 10
"""Fewest that MariaDB can be told to allow."""


class Arena:
    """Servers, proxies before them, and a source; to be used as a context manager.

    Args:
        folder: Of logs and of what the programs keep.

    Raises (on entering):
        RuntimeError: A server does not start.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mongo = Mongo()
        self.redis = Redis(appendonly=True)
        self.mariadb = MariaDB(f"--innodb-lock-wait-timeout={_LOCK_WAIT_S}")
        self.source = StandIn()
        self.shift = timedelta(0)
        """How much the clocks of new programs are ahead."""
        self._resources = ExitStack()
        self._crowd: list[pymysql.Connection[Any]] = []

    def __enter__(self) -> Self:
        with ExitStack() as resources:
            for server in (self.mongo, self.redis, self.mariadb, self.source):
                resources.enter_context(server)
            self.source.behaviour = {"n": "0"}
            self._sql_url = self.mariadb.url(DATABASE)
            ports: dict[Store, int] = {
                "source": urlsplit(self.source.url).port or 0,
                "mongo": self.mongo.port,
                "redis": self.redis.port,
                "sql": self.mariadb.port,
            }
            self.proxies = {store: resources.enter_context(Proxy(port)) for store, port in ports.items()}
            self._resources = resources.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    @property
    def settings(self) -> dict[str, Any]:
        """Settings under which programs meet the stores through the proxies, quick to see an outage."""
        port = {store: proxy.port for store, proxy in self.proxies.items()}
        return {
            "source_url": f"http://127.0.0.1:{port['source']}/posts",
            "mongo_url": f"mongodb://127.0.0.1:{port['mongo']}/?journal=true&directConnection=true",
            "mongo_database": DATABASE,
            "redis_url": f"redis://127.0.0.1:{port['redis']}/0",
            "sql_url": f"mysql+pymysql://pipeline:secret@127.0.0.1:{port['sql']}/{DATABASE}?ssl_disabled=true",
            "data_dir": str(self.folder / "data"),
        }

    @property
    def sql(self) -> dict[str, Any]:
        """Arguments of a connection to MariaDB, past the proxy."""
        return {
            "host": "127.0.0.1",
            "port": self.mariadb.port,
            "user": "pipeline",
            "password": "secret",
            "database": DATABASE,
            "ssl_disabled": True,
        }

    def jump(self, seconds: float) -> None:
        """Set the clocks of programs that start from now on before or behind; no time passes."""
        self.shift += timedelta(seconds=seconds)

    def pass_time(self, seconds: float) -> None:
        """Let time pass, as far as programs that start from now on can see."""
        self.shift += timedelta(seconds=seconds)
        # Leases in Redis are timed by its own clock.
        with self.redis_client() as client:
            for key in client.scan_iter("*lock*"):
                client.delete(key)
            client.delete(f"{QUEUE_KEY}:tick")
            for job in cast(list[bytes], client.zrange(_SCHEDULED_KEY, 0, -1)):
                client.zincrby(_SCHEDULED_KEY, -seconds, job)

    @contextmanager
    def redis_client(self) -> Iterator[redis.Redis]:
        """Give a client of Redis, past the proxy."""
        with redis.Redis.from_url(self.redis.url) as client:
            yield client

    def calm(self) -> None:
        """End every fault of stores and source."""
        for proxy in self.proxies.values():
            proxy.set(None)
        for server in (self.mongo, self.redis, self.mariadb):
            server.start()
        self.source.behaviour = {"n": "0"}
        while self._crowd:
            self._crowd.pop().close()
        with self.redis_client() as client:
            client.config_set("maxmemory", "0")
        self.mariadb.execute(
            f"DROP TRIGGER IF EXISTS {DATABASE}.fault", "SET GLOBAL read_only = 0", "SET GLOBAL max_connections = 151"
        )

    def refuse_some(self) -> None:
        """Make the relational store refuse the posts that `World.refuse` serves."""
        check = f"CHECK (title NOT LIKE '{REFUSED_TITLE}%')"
        self.mariadb.execute(f"ALTER TABLE {DATABASE}.migrated_posts ADD CONSTRAINT IF NOT EXISTS refused {check}")

    def flush(self) -> None:
        """Wipe Redis."""
        with self.redis_client() as client:
            client.flushall()

    def fill_redis(self) -> None:
        """Leave Redis no memory for another byte until it is calm again."""
        with self.redis_client() as client:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", "1")

    def kill_redis(self) -> None:
        """Kill Redis and start it again; it forgets the last second at most."""
        self.redis.kill()
        self.redis.start()

    def kill_mongo(self) -> None:
        """Kill MongoDB and start it again; it forgets nothing."""
        self.mongo.kill()
        self.mongo.start()

    def crowd_sql(self) -> None:
        """Take all of MariaDB's connections until it is calm again."""
        self.mariadb.execute(f"SET GLOBAL max_connections = {_CONNECTIONS}")
        for _ in range(_CONNECTIONS):
            with suppress(pymysql.OperationalError):
                self._crowd.append(pymysql.connect(**self.sql))

    def answer_with(self, code: int, state: str) -> None:
        """Make MariaDB answer every third row or so with an error."""
        signal = f"SIGNAL SQLSTATE '{state}' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = 'as the fault suite asked for'"
        body = f"IF NEW.externalId % 3 = 0 THEN {signal}; END IF"
        self.mariadb.execute(f"CREATE TRIGGER {DATABASE}.fault BEFORE INSERT ON migrated_posts FOR EACH ROW {body}")

    def empty(self) -> None:
        """Empty all stores, but keep tables and indexes."""
        self.calm()
        self.shift = timedelta(0)
        self.source.posts.clear()
        with pymongo.MongoClient[dict[str, Any]](self.mongo.url) as client:
            for name in _COLLECTIONS:
                client[DATABASE][name].delete_many({})
        self.flush()
        self.mariadb.execute(f"TRUNCATE TABLE {DATABASE}.migrated_posts")
