"""A TCP proxy on loopback that breaks what it carries, on order.

Toxiproxy, the usual one, comes as a Go program; this one needs nothing but Python, and speaks as
much of MongoDB's protocol as it takes to refuse commands. One thread carries all connections of a
proxy. Memory: up to 2 MB for each direction of a connection whose receiver is slow.
"""

import asyncio
import contextlib
import fcntl
import socket
import struct
import sys
import termios
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Self

from pipeline_poc.chaos.faults import Fault, FaultKind, Order
from pipeline_poc.chaos.mongo_wire import refusal, request_size
from pipeline_poc.embedded import free_port

__all__ = ["Fault", "FaultKind", "Proxy"]

_CHUNK = 65_536
_QUEUE_CHUNKS = 32
"""Read ahead by so much, so that latency delays a transfer once and not once for each chunk."""
_BACKLOG = 1_024
_DRAIN_S = 2.0
"""Longest wait, before a cut, for the receiver to take what has passed."""
_SLICES_PER_S = 20
"""Into so many pieces a second bandwidth divides a stream."""


@dataclass(eq=False, slots=True)
class _Lane:
    """One direction of a connection; in the queue are chunks with the time they came, b"" is a close, None a reset."""

    source: socket.socket
    sink: socket.socket
    to_server: bool
    queue: asyncio.Queue[tuple[float, bytes | None]] = field(default_factory=lambda: asyncio.Queue(_QUEUE_CHUNKS))
    request: bytearray = field(default_factory=bytearray)


@dataclass(eq=False, slots=True)
class _Connection:
    """A client's connection with the one to the server that belongs to it."""

    sockets: list[socket.socket]
    lanes: list[_Lane] = field(default_factory=list)
    sending: int = 0
    cut: bool = False
    ending: bool = False
    reset: bool = False
    held_back: bool = False


class Proxy:
    """A proxy in a thread of its own; starts again on the port that it had.

    Where the target refuses, a client's connection is accepted, then reset.

    Args:
        target_port: Where to pass connections on to.
        target_host: The machine of the target.

    Attributes:
        port: Where the proxy listens, on 127.0.0.1.
    """

    def __init__(self, target_port: int, target_host: str = "127.0.0.1") -> None:
        self.port = free_port()
        self._target = (target_host, target_port)
        self._order = Order()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        # From here on, for the thread of the proxy alone.
        self._loop: asyncio.AbstractEventLoop
        self._stopping: asyncio.Event
        self._gate: socket.socket
        self._listening = False
        self._connections: dict[_Connection, asyncio.Task[None]] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to listen, under the fault that is set; nothing happens if it does.

        Raises:
            OSError: The port was taken meanwhile.
        """
        with self._lock:
            if self._thread is not None:
                return
            ready: Future[None] = Future()
            self._thread = threading.Thread(
                target=asyncio.run, args=(self._run(ready),), name=f"proxy-{self.port}", daemon=True
            )
            self._thread.start()
            try:
                ready.result()
            except OSError:
                self._thread.join()
                self._thread = None
                raise

    def stop(self) -> None:
        """Close all connections and end the thread; idempotent."""
        with self._lock:
            if self._thread is not None:
                self._loop.call_soon_threadsafe(self._stopping.set)
                self._thread.join()
                self._thread = None

    def set(self, fault: Fault | None) -> None:
        """Put a fault in the place of the one that is set, or end it; in force once this returns."""
        with self._lock:
            if self._thread is None:
                self._order = Order(fault)
            else:
                asyncio.run_coroutine_threadsafe(self._replace(fault), self._loop).result()

    @property
    def fault(self) -> Fault | None:
        """The fault that was set last, whether or not it has begun."""
        return self._order.fault

    @property
    def struck(self) -> int:
        """How often the fault did something since it was set.

        Connections for ``down``, ``blackhole``, ``reset`` and ``cut`` (those that ``down`` refuses
        never come here), chunks for ``latency`` and ``bandwidth``, commands for ``mongo_error``,
        and for ``slow_close`` the closes, of which each side makes one.
        """
        return self._order.struck

    async def _run(self, ready: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        try:
            self._gate = self._bound()
        except OSError as error:
            ready.set_exception(error)
            return
        if self._order.kind != "down":
            self._listen()
        ready.set_result(None)
        await self._stopping.wait()
        self._shut()
        self._end_connections(reset=False)
        await asyncio.gather(*self._connections.values(), return_exceptions=True)

    async def _replace(self, fault: Fault | None) -> None:
        self._order.replaced.set()
        self._order = Order(fault)
        self._strike_connections()
        if self._order.kind != "down" and not self._listening:
            self._listen()
        # Those that were held back end by themselves now.
        ending = [task for each, task in self._connections.items() if each.ending or each.held_back]
        await asyncio.gather(*ending, return_exceptions=True)

    def _strike_connections(self) -> None:
        """End all connections if that is what the fault does; harmless if it was done."""
        order = self._order
        if order.kind == "down" and self._listening:
            self._shut()
            # Bound but not listening: connections are refused, and nobody else can take the port.
            self._gate = self._bound()
        if order.kind in {"down", "reset"}:
            order.struck += self._end_connections(reset=order.kind == "reset")

    def _end_connections(self, *, reset: bool) -> int:
        ending = [connection for connection in self._connections if not connection.ending]
        for connection in ending:
            connection.ending = True
            connection.reset = reset
            self._connections[connection].cancel()
        return len(ending)

    def _bound(self) -> socket.socket:
        gate = socket.socket()
        gate.setblocking(False)
        gate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            gate.bind(("127.0.0.1", self.port))
        except OSError:
            gate.close()
            raise
        return gate

    def _listen(self) -> None:
        self._gate.listen(_BACKLOG)
        self._loop.add_reader(self._gate, self._accept)
        self._listening = True

    def _shut(self) -> None:
        self._loop.remove_reader(self._gate)
        self._gate.close()
        self._listening = False

    def _accept(self) -> None:
        try:
            client, _ = self._gate.accept()
        except OSError:  # The client has gone already.
            return
        _prepare(client)
        if self._order.kind == "reset":
            self._order.struck += 1
            _close(client, reset=True)
            return
        connection = _Connection([client])
        task = self._loop.create_task(self._serve(connection))
        self._connections[connection] = task
        # Not in a `finally`, which a task that is cancelled before its first step never reaches.
        task.add_done_callback(lambda _: self._forget(connection))

    def _forget(self, connection: _Connection) -> None:
        for each in connection.sockets:
            _close(each, reset=connection.reset)
        del self._connections[connection]

    async def _serve(self, connection: _Connection) -> None:
        try:
            if self._order.kind == "blackhole":
                await self._hold_back(connection)
            client, server = connection.sockets[0], socket.socket()
            connection.sockets.append(server)
            _prepare(server)
            await self._loop.sock_connect(server, self._target)
            connection.lanes = [_Lane(client, server, to_server=True), _Lane(server, client, to_server=False)]
            async with asyncio.TaskGroup() as group:
                for lane in connection.lanes:
                    group.create_task(self._receive(lane))
                    group.create_task(self._deliver(connection, lane))
        except* OSError:
            # What one side is told, the other is told as well.
            connection.reset = True

    async def _receive(self, lane: _Lane) -> None:
        while True:
            chunk: bytes | None = None
            with contextlib.suppress(OSError):
                chunk = await self._loop.sock_recv(lane.source, _CHUNK)
            await lane.queue.put((time.monotonic(), chunk))
            if not chunk:
                return

    async def _deliver(self, connection: _Connection, lane: _Lane) -> None:
        came, chunk = await lane.queue.get()
        while chunk:
            while chunk and not connection.cut:
                chunk = await self._pass(connection, lane, came, chunk)
            came, chunk = await lane.queue.get()
        await self._hold_end(connection, came)
        if chunk is None:
            raise ConnectionResetError
        if not connection.cut:
            lane.sink.shutdown(socket.SHUT_WR)

    async def _pass(self, connection: _Connection, lane: _Lane, came: float, chunk: bytes) -> bytes:
        """Pass a chunk, or a part of it, or do to it what the fault does; returns what is still to be passed."""
        order = self._order
        if lane.request and order.kind != "mongo_error":
            chunk = bytes(lane.request) + chunk
            lane.request.clear()
        if order.in_force is not None:
            return await self._strike(order.in_force, connection, lane, came=came, chunk=chunk)
        size = order.untouched(len(chunk))
        order.passed += size
        if order.kind == "cut":
            # Said before the bytes are sent, so that no other connection is taken for this one.
            connection.cut = True
            order.struck += 1
        await self._send(connection, lane, chunk[:size])
        if connection.cut:
            await self._cut(connection)
        self._strike_connections()
        return chunk[size:]

    async def _strike(self, fault: Fault, connection: _Connection, lane: _Lane, *, came: float, chunk: bytes) -> bytes:
        order = self._order
        match fault.kind:
            case "down" | "reset":
                # This connection is about to end.
                await order.wait()
                return chunk
            case "blackhole":
                await self._hold_back(connection)
            case "cut":
                connection.cut = True
                order.struck += 1
                await self._cut(connection)
            case "latency":
                # Before the wait, at the end of which the client may have lost patience and gone.
                order.struck += 1
                if await order.wait(came + fault.seconds - time.monotonic()):
                    return chunk
            case "bandwidth":
                size = max(1, fault.bytes_per_s // _SLICES_PER_S)
                order.struck += 1
                await self._send(connection, lane, chunk[:size])
                await order.wait(len(chunk[:size]) / fault.bytes_per_s)
                return chunk[size:]
            case "mongo_error" if lane.to_server:
                return await self._refuse(fault, connection, lane, chunk)
        await self._send(connection, lane, chunk)
        return b""

    async def _refuse(self, fault: Fault, connection: _Connection, lane: _Lane, chunk: bytes) -> bytes:
        """Answer in place of MongoDB, once a request is there as a whole."""
        lane.request += chunk
        size = request_size(lane.request)
        if size is not None and len(lane.request) < size:
            return b""
        # Where no request begins, this is the rest of one that had begun to pass before the fault.
        data = bytes(lane.request)
        lane.request.clear()
        request, rest = (data, b"") if size is None else (data[:size], data[size:])
        answer = None if size is None else refusal(request, fault.code)
        if answer is None:
            await self._send(connection, lane, request)
            return rest
        self._order.struck += 1
        if answer:
            await connection.lanes[1].queue.put((time.monotonic(), answer))
        return rest

    async def _hold_back(self, connection: _Connection) -> None:
        order = self._order
        if not connection.held_back:
            connection.held_back = True
            order.struck += 1
        await order.wait()
        raise ConnectionResetError

    async def _hold_end(self, connection: _Connection, came: float) -> None:
        """Wait as long as the fault keeps the end of one side from the other."""
        while (fault := self._order.in_force) is not None:
            seconds = 0.0
            match fault.kind:
                case "blackhole":
                    await self._hold_back(connection)
                case "slow_close":
                    self._order.struck += 1
                    seconds = fault.seconds
                case "latency":
                    seconds = came + fault.seconds - time.monotonic()
            if not await self._order.wait(seconds):
                return

    async def _send(self, connection: _Connection, lane: _Lane, chunk: bytes) -> None:
        connection.sending += 1
        try:
            await self._loop.sock_sendall(lane.sink, chunk)
            return
        except OSError:
            if connection.cut:
                raise
        finally:
            connection.sending -= 1
        # The receiver has gone; its sender learns it as of any other end.
        await self._hold_end(connection, time.monotonic())
        raise ConnectionResetError

    async def _cut(self, connection: _Connection) -> None:
        """Reset a connection once the receivers have all that passed, since a reset throws away what is unsent."""
        deadline = time.monotonic() + _DRAIN_S
        while time.monotonic() < deadline and (connection.sending or any(map(_unsent, connection.sockets))):
            await asyncio.sleep(0.002)
        raise ConnectionAbortedError


def _prepare(connection: socket.socket) -> None:
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _close(connection: socket.socket, *, reset: bool) -> None:
    if reset:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _unsent(connection: socket.socket) -> int:
    """Return how many bytes the other side hasn't acknowledged; 0 where the system doesn't tell."""
    with contextlib.suppress(OSError):
        return int.from_bytes(fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return 0
