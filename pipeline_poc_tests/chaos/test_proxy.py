"""The proxy does to connections what each fault says, no more, and what it broke heals when the fault ends."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any, Self

import psutil
import pymongo
import pytest
import redis
from pymongo.errors import AutoReconnect, CursorNotFound, NotPrimaryError, OperationFailure
from redis.backoff import NoBackoff
from redis.retry import Retry

from pipeline_poc.chaos.proxy import Fault, Proxy
from pipeline_poc.chaos.servers import Mongo, Redis
from pipeline_poc_tests.acceptance.programs import until

pytestmark = pytest.mark.timeout(60)

MongoClient = pymongo.MongoClient[dict[str, Any]]
NEVER = Retry(NoBackoff(), 0)


class Recorder:
    """A server that keeps what it gets, echoes it if asked to, and may begin late to read."""

    def __init__(self, *, echo: bool = False, pause_s: float = 0.0) -> None:
        self._echo = echo
        self._pause_s = pause_s
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        if pause_s:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
        self.port: int = self._listener.getsockname()[1]
        self.received: list[bytearray] = []
        self.ends: list[tuple[str, float]] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="recorder", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def total(self) -> int:
        """How many bytes came, on all connections."""
        return sum(map(len, self.received))

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            data = bytearray()
            self.received.append(data)
            threading.Thread(target=self._serve, args=(connection, data), name="recorder", daemon=True).start()

    def _serve(self, connection: socket.socket, data: bytearray) -> None:
        end = "closed"
        time.sleep(self._pause_s)
        with connection:
            try:
                while chunk := connection.recv(65_536):
                    data += chunk
                    if self._echo:
                        connection.sendall(chunk)
            except OSError:
                end = "reset"
            self.ends.append((end, time.monotonic()))


@pytest.fixture
def echo() -> Iterator[Proxy]:
    """A proxy in front of a server that echoes."""
    with Recorder(echo=True) as server, Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def sink() -> Iterator[tuple[Proxy, Recorder]]:
    """A proxy in front of a server that only listens."""
    with Recorder() as server, Proxy(server.port) as proxy:
        yield proxy, server


@pytest.fixture
def redis_proxy(redis_server: Redis, redis_url: str) -> Iterator[Proxy]:
    """A proxy in front of Redis."""
    with Proxy(redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def redis_client(redis_proxy: Proxy) -> Iterator["redis.Redis"]:
    """A client of Redis that never tries again by itself."""
    with redis.Redis(port=redis_proxy.port, socket_timeout=0.5, retry=NEVER) as client:
        yield client


@pytest.fixture
def mongo_proxy(mongo: Mongo, mongo_url: str) -> Iterator[Proxy]:
    """A proxy in front of MongoDB."""
    with Proxy(mongo.port) as proxy:
        yield proxy


@pytest.fixture
def mongo_client(mongo_proxy: Proxy) -> Iterator[MongoClient]:
    """A client of MongoDB that never tries again by itself.

    It looks at once whether a server that isn't primary is again; by default it waits for the next of the
    answers that the server sends every 10 s.
    """
    options: dict[str, Any] = {"directConnection": True, "retryReads": False, "retryWrites": False}
    with MongoClient(port=mongo_proxy.port, serverMonitoringMode="poll", **options) as client:
        yield client


def connect(proxy: Proxy) -> socket.socket:
    """Open a connection that fails rather than wait for ever."""
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=10)


def exchange(connection: socket.socket, data: bytes) -> bytes:
    """Send and return what comes back, until all of it or the end."""
    connection.sendall(data)
    return read(connection, len(data))


def read(connection: socket.socket, size: int) -> bytes:
    """Return so many bytes, or what came before the end."""
    answer = bytearray()
    while len(answer) < size and (chunk := connection.recv(65_536)):
        answer += chunk
    return bytes(answer)


def test_carries_all(echo: Proxy) -> None:
    """Without a fault every byte arrives, in both directions, also behind the end of the other one."""
    data = bytes(range(256)) * 80_000
    with connect(echo) as connection:

        def send() -> None:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        answer = read(connection, len(data) + 1)
        sender.join()
    assert answer == data
    assert (echo.fault, echo.struck) == (None, 0)


def test_many_connections(echo: Proxy) -> None:
    """Two hundred connections at once each get their own bytes."""
    connections = [connect(echo) for _ in range(200)]
    for number, connection in enumerate(connections):
        connection.sendall(b"%d" % number)
    for number, connection in enumerate(connections):
        assert connection.recv(100) == b"%d" % number
        connection.close()


def test_stop_leaves_nothing(redis_server: Redis, redis_url: str) -> None:
    """Neither threads nor sockets outlive a stop, whatever the fault; it starts again on its port."""
    me = psutil.Process()
    threads, descriptors = set(threading.enumerate()), me.num_fds()
    proxy = Proxy(redis_server.port)
    port = proxy.port
    faults = [None, Fault("down"), Fault("blackhole"), Fault("reset"), Fault("latency", seconds=60.0)]
    for fault in faults:
        proxy.set(None)
        proxy.start()
        proxy.start()
        clients = [connect(proxy) for _ in range(5)]
        assert exchange(clients[0], b"PING\r\n") == b"+PONG\r\n"
        proxy.set(fault)
        for client in clients[1:3]:
            with contextlib.suppress(ConnectionError):
                client.sendall(b"PING\r\n")
        proxy.stop()
        proxy.stop()
        for client in clients:
            client.close()
        assert set(threading.enumerate()) == threads
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
    assert me.num_fds() == descriptors
    assert proxy.port == port


def test_set_before_start(redis_server: Redis, redis_url: str) -> None:
    """A fault that is set before the start is in force from the first moment."""
    proxy = Proxy(redis_server.port)
    proxy.set(Fault("down"))
    with proxy:
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        proxy.set(None)
        connect(proxy).close()


def test_target_away(redis_client: "redis.Redis", redis_server: Redis) -> None:
    """A server that is away is an error to the client, and the proxy reaches it again once it is back."""
    redis_server.kill()
    with pytest.raises(redis.ConnectionError):
        redis_client.ping()
    redis_server.start()
    assert redis_client.ping()


def test_down(redis_proxy: Proxy, redis_client: "redis.Redis") -> None:
    """Down closes connections and refuses new ones; up again, the same port answers."""
    assert redis_client.ping()
    with connect(redis_proxy) as idle:
        assert exchange(idle, b"PING\r\n")
        redis_proxy.set(Fault("down"))
        assert idle.recv(1) == b""
    assert redis_proxy.struck == 2
    for _ in range(3):
        with pytest.raises(redis.ConnectionError):
            redis_client.ping()
        with pytest.raises(ConnectionRefusedError):
            connect(redis_proxy)
    redis_proxy.set(None)
    assert redis_client.ping()


def test_reset(redis_proxy: Proxy, redis_client: "redis.Redis") -> None:
    """Reset ends connections with a reset, new ones as well."""
    assert redis_client.ping()
    with connect(redis_proxy) as idle:
        assert exchange(idle, b"PING\r\n")
        redis_proxy.set(Fault("reset"))
        with pytest.raises(ConnectionResetError):
            idle.recv(1)
    assert redis_proxy.struck == 2
    with pytest.raises(redis.ConnectionError):
        redis_client.ping()
    assert redis_proxy.struck > 2
    redis_proxy.set(None)
    assert redis_client.ping()


def test_blackhole(redis_proxy: Proxy, redis_client: "redis.Redis") -> None:
    """In a black hole clients wait in vain; afterwards what it held back is lost, what was idle goes on."""
    idle, waiting = connect(redis_proxy), connect(redis_proxy)
    with idle, waiting:
        for connection in (idle, waiting):
            assert exchange(connection, b"PING\r\n")
        redis_proxy.set(Fault("blackhole"))
        waiting.sendall(b"SET lost 1\r\n")
        with pytest.raises(redis.TimeoutError):
            redis_client.ping()
        with connect(redis_proxy) as new:
            new.settimeout(0.1)
            with pytest.raises(TimeoutError):
                new.recv(1)
            until(lambda: redis_proxy.struck == 3, "the fault strikes")
            redis_proxy.set(None)
            for connection in (waiting, new):
                with pytest.raises(ConnectionResetError):
                    connection.recv(1)
        assert exchange(idle, b"PING\r\n")
    assert redis_client.ping()
    assert not redis_client.exists("lost")


def test_latency(redis_proxy: Proxy, redis_server: Redis) -> None:
    """Latency counts once for each way, however long the transfer; it ends for what is on its way, too."""
    with redis.Redis(port=redis_proxy.port, retry=NEVER) as client:
        client.ping()
        redis_proxy.set(Fault("latency", seconds=0.3))
        began = time.monotonic()
        client.set("large", bytes(1_500_000))
        assert 0.6 <= time.monotonic() - began < 0.3 * 20  # Once for each part would be more.
        assert redis_proxy.struck > 20
        redis_proxy.set(Fault("latency", seconds=300.0))
        timer = threading.Timer(0.2, redis_proxy.set, [None])
        timer.start()
        assert client.ping()
        timer.join()
    with redis.Redis(port=redis_proxy.port, socket_timeout=0.2, retry=NEVER) as client:
        redis_proxy.set(Fault("latency", seconds=1.0))
        with pytest.raises(redis.TimeoutError):
            client.ping()


def test_bandwidth(echo: Proxy) -> None:
    """A narrow line takes its time, and loses nothing; it is wide again once the fault ends."""
    data = bytes(range(250)) * 200
    with connect(echo) as connection:
        echo.set(Fault("bandwidth", bytes_per_s=100_000))
        began = time.monotonic()
        assert exchange(connection, data) == data
        assert time.monotonic() - began >= 0.4
        assert echo.struck >= 20
        echo.set(Fault("bandwidth", bytes_per_s=10))
        timer = threading.Timer(0.2, echo.set, [None])
        timer.start()
        assert exchange(connection, data) == data
        timer.join()


@pytest.mark.parametrize("size", [0, 1, 65_536, 100_001, 1_000_000])
def test_cut(sink: tuple[Proxy, Recorder], size: int) -> None:
    """A cut lets through so many bytes, to the byte, then resets both sides, once."""
    proxy, server = sink
    fault = Fault("cut", after_bytes=size)
    with connect(proxy) as other, connect(proxy) as connection:
        until(lambda: len(server.received) == 2, "both are connected")
        proxy.set(fault)
        with pytest.raises(ConnectionError):
            connection.sendall(bytes(50_000_000))
        until(lambda: len(server.ends) == 1, "the connections end")
        assert server.ends[0][0] == "reset"
        assert server.total == size
        assert (proxy.fault, proxy.struck) == (fault, 1)
        other.sendall(bytes(5_000_000))
        until(lambda: server.total == size + 5_000_000, "all bytes arrive")


def test_cut_waits_for_the_receiver() -> None:
    """Also a slow receiver gets all bytes before the cut."""
    with Recorder(pause_s=0.3) as server, Proxy(server.port) as proxy:
        proxy.set(Fault("cut", after_bytes=200_000))
        with connect(proxy) as connection, pytest.raises(ConnectionError):
            connection.sendall(bytes(50_000_000))
        until(lambda: len(server.ends) == 1, "the connections end")
        assert server.total == 200_000


def test_cut_counts_all_connections(echo: Proxy) -> None:
    """The bytes of all connections and both directions count; the last one decides which is cut."""
    with connect(echo) as first, connect(echo) as second:
        exchange(first, b"before the fault")
        echo.set(Fault("cut", after_bytes=25))
        assert exchange(first, b"12345") == b"12345"
        assert exchange(second, b"12345") == b"12345"
        assert echo.struck == 0
        first.sendall(b"123")
        assert read(first, 2) == b"12"
        with pytest.raises(ConnectionResetError):
            first.recv(1)
        assert exchange(second, b"goes on") == b"goes on"


def test_slow_close(sink: tuple[Proxy, Recorder]) -> None:
    """A close comes late, the bytes before it don't."""
    proxy, server = sink
    proxy.set(Fault("slow_close", seconds=0.4))
    connection = connect(proxy)
    connection.sendall(b"at once")
    until(lambda: server.total == 7, "all bytes arrive")
    closed = time.monotonic()
    connection.close()
    until(lambda: len(server.ends) == 1, "the connections end")
    assert server.ends[0][1] - closed >= 0.4
    assert server.ends[0][0] == "closed"


def test_slow_close_ends(sink: tuple[Proxy, Recorder]) -> None:
    """The end of the fault lets through the closes that it held back; a reset stays a reset."""
    proxy, server = sink
    proxy.set(Fault("slow_close", seconds=300.0))
    connect(proxy).close()
    rude = connect(proxy)
    rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    rude.sendall(b"arrives")
    until(lambda: server.total == 7, "all bytes arrive")
    rude.close()
    until(lambda: proxy.struck == 2, "the fault strikes")
    assert not server.ends
    proxy.set(None)
    until(lambda: len(server.ends) == 2, "the connections end")
    assert {end for end, _ in server.ends} == {"closed", "reset"}


@pytest.mark.parametrize("kind", ["down", "reset", "blackhole"])
def test_begins_in_mid_transfer(kind: Any, mongo_proxy: Proxy, mongo_url: str, mongo_database: str) -> None:
    """A fault with `after_bytes` leaves what comes before alone and strikes in the middle of a command."""
    options: dict[str, Any] = {"directConnection": True, "retryWrites": False, "socketTimeoutMS": 1_000}
    with MongoClient(port=mongo_proxy.port, **options) as client:
        posts = client[mongo_database]["posts"]
        posts.insert_one({})
        mongo_proxy.set(Fault(kind, after_bytes=100_000))
        posts.insert_one({})
        assert mongo_proxy.struck == 0
        with pytest.raises(AutoReconnect):
            posts.insert_many([{"body": "b" * 1_000} for _ in range(300)])
        assert mongo_proxy.struck >= 1
        mongo_proxy.set(None)
        posts.insert_one({})
        assert posts.count_documents({}) == 3


def test_mongo_error(mongo_proxy: Proxy, mongo_client: MongoClient, mongo_database: str) -> None:
    """The client sees the server's error, the server nothing of the command; the connection lives on."""
    posts = mongo_client[mongo_database]["posts"]
    posts.insert_one({"n": 1})
    mongo_proxy.set(Fault("mongo_error", code=10107))
    with pytest.raises(NotPrimaryError, match="NotWritablePrimary"):
        posts.insert_many([{"body": "b" * 1_000} for _ in range(300)])
    assert mongo_proxy.struck == 1
    assert mongo_client.admin.command("ping")["ok"] == 1
    mongo_proxy.set(Fault("mongo_error", code=14031))
    with pytest.raises(OperationFailure) as raised:
        posts.find_one({})
    assert raised.value.details == {
        "ok": 0.0,
        "errmsg": "OutOfDiskSpace, says the proxy",
        "code": 14031,
        "codeName": "OutOfDiskSpace",
    }
    mongo_proxy.set(None)
    assert [post["n"] for post in posts.find()] == [1]


def test_mongo_error_in_mid_transfer(mongo_proxy: Proxy, mongo_client: MongoClient, mongo_database: str) -> None:
    """A command that had begun to pass before the fault still succeeds; the next one fails."""
    posts = mongo_client[mongo_database]["posts"]
    mongo_client.admin.command("ping")
    mongo_proxy.set(Fault("mongo_error", code=112, after_bytes=100_000))
    posts.insert_many([{"body": "b" * 1_000} for _ in range(300)])
    assert mongo_proxy.struck == 0
    with pytest.raises(OperationFailure, match="WriteConflict"):
        posts.count_documents({})
    mongo_proxy.set(None)
    assert posts.count_documents({}) == 300


def test_mongo_error_times(mongo_proxy: Proxy, mongo_client: MongoClient, mongo_database: str) -> None:
    """After so many refusals commands pass again."""
    mongo_client.admin.command("ping")
    mongo_proxy.set(Fault("mongo_error", code=112, times=2))
    for _ in range(2):
        with pytest.raises(OperationFailure, match="WriteConflict"):
            mongo_client[mongo_database]["posts"].insert_one({})
    mongo_client[mongo_database]["posts"].insert_one({})
    assert mongo_proxy.struck == 2


def test_mongo_cursor_lost(mongo_proxy: Proxy, mongo_client: MongoClient, mongo_database: str) -> None:
    """With CursorNotFound only a cursor is lost; a new one reads everything."""
    posts = mongo_client[mongo_database]["posts"]
    mongo_proxy.set(Fault("mongo_error", code=43, times=1))
    posts.insert_many([{} for _ in range(10)])
    cursor = posts.find(batch_size=4)
    assert [next(cursor) for _ in range(4)]
    with pytest.raises(CursorNotFound):
        next(cursor)
    assert len(list(posts.find(batch_size=4))) == 10


def test_mongo_unacknowledged(mongo_proxy: Proxy, mongo_client: MongoClient, mongo_database: str) -> None:
    """A write for whose answer nobody waits gets none, and is lost."""
    database = mongo_client[mongo_database]
    unacknowledged = database.get_collection("posts", write_concern=pymongo.WriteConcern(w=0))
    mongo_client.admin.command("ping")
    mongo_proxy.set(Fault("mongo_error", code=10107))
    unacknowledged.insert_one({})
    # An answer too many would be taken for the one to this.
    assert mongo_client.admin.command("ping")["ok"] == 1
    assert mongo_proxy.struck == 1
    mongo_proxy.set(None)
    assert database["posts"].count_documents({}) == 0


def test_mongo_error_leaves_others_alone(redis_proxy: Proxy, redis_client: "redis.Redis") -> None:
    """What isn't MongoDB's protocol passes."""
    redis_proxy.set(Fault("mongo_error", code=10107))
    assert redis_client.set("a", bytes(100_000))
    assert redis_client.get("a") == bytes(100_000)
    assert redis_proxy.struck == 0


@pytest.mark.parametrize(
    "numbers",
    [
        {"kind": "latency"},
        {"kind": "slow_close"},
        {"kind": "bandwidth"},
        {"kind": "mongo_error"},
        {"kind": "cut", "after_bytes": -1},
    ],
)
def test_faults_without_sense(numbers: dict[str, Any]) -> None:
    """A fault that could do nothing is refused, so that no test passes for want of a fault."""
    with pytest.raises(ValueError, match="number"):
        Fault(**numbers)
