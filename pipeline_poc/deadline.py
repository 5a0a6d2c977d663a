"""Blocking calls from asynchronous code, with a deadline that holds even where a call hangs."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class DeadlineExceeded(Exception):
    """A call took longer than it may; it goes on in its thread."""


class Calls:
    """Runs blocking calls in threads that nobody has to wait for, not even the end of the process.

    Args:
        most: Calls that may be under way at once; hanging ones count until their driver gives up.
    """

    def __init__(self, most: int) -> None:
        self._free = threading.BoundedSemaphore(most)

    async def run(self, func: Callable[[], T], deadline_s: float) -> T:
        """Return what ``func`` returns.

        Raises:
            DeadlineExceeded: It takes too long, or too many calls hang already.
            Exception: Whatever it raises.
        """
        if not self._free.acquire(blocking=False):
            raise DeadlineExceeded("too many calls wait for an answer already")
        return await _within(self._start(func), deadline_s)

    def _start(self, func: Callable[[], T]) -> "Future[T]":
        def call() -> T:
            try:
                return func()
            finally:
                self._free.release()

        return in_thread(call)


class SharedCalls:
    """Blocking calls by name: whoever asks while one is under way waits for the same answer.

    A call that hangs is never made a second time beside the first one.
    """

    def __init__(self) -> None:
        self._under_way: dict[str, Future[Any]] = {}

    async def run(self, name: str, func: Callable[[], T], deadline_s: float) -> T:
        """Return what ``func`` returns; raises as `Calls.run` does."""
        future = self._under_way.get(name)
        if future is None or future.done():
            future = self._under_way[name] = in_thread(func)
        result: T = await _within(future, deadline_s)
        return result


def in_thread(func: Callable[[], T]) -> "Future[T]":
    """Call in a new daemon thread; returns the future of the result."""
    future: Future[T] = Future()

    def call() -> None:
        try:
            future.set_result(func())
        except BaseException as error:  # noqa: BLE001 - is raised again where the result is asked for
            future.set_exception(error)

    threading.Thread(target=call, name="call", daemon=True).start()
    return future


async def _within(future: "Future[T]", deadline_s: float) -> T:
    # Not `wrap_future`: cancelling that cancels what others wait for, too, and a late answer finds its loop closed.
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def wake(_: "Future[T]") -> None:
        with suppress(RuntimeError):  # The loop is closed: nobody waits any more.
            loop.call_soon_threadsafe(done.set)

    future.add_done_callback(wake)
    try:
        async with asyncio.timeout(deadline_s):
            await done.wait()
    except TimeoutError:
        raise DeadlineExceeded(f"no answer within {deadline_s:g} s") from None
    return future.result()
