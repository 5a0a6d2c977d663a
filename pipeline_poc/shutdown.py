"""The end of a process that was asked to stop: in time, whatever hangs in it."""

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

logger = logging.getLogger(__name__)

_SIGNALS = {signal.SIGTERM, signal.SIGINT}
_IDLE_S = 1.5
"""A process that has nothing to finish for so long and still is there hangs in something."""
_AGAIN_S = 1.0
"""A second signal within so long is the same one: a terminal and a parent both send it."""
_LAST_S = 1.0
"""Time for the last thing to do."""
_LOOK_S = 0.1
_LEFT = b"\0"


class Grace:
    """Ends this process some time after SIGTERM or SIGINT; a second signal ends it at once.

    Sees the signals even while the main thread is inside a call of a driver. The process ends
    with status 0, without a word to anything that could hang. To be used in the main thread; the
    signals need handlers of their own, which tell the main thread.

    Args:
        grace_s: How long the process may go on, in seconds.
        idle_since: Since when, by `time.monotonic`, nothing is being done that deserves the grace; else None.
        last: Is called before the end, and given a second.
    """

    def __init__(self, grace_s: float, idle_since: Callable[[], float | None], last: Callable[[], None]) -> None:
        self._grace_s = grace_s
        self._idle_since = idle_since
        self._last = last

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        # Python writes the number of each signal there, at once; handlers have to wait for the main thread.
        self._before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="shutdown", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._before)
        os.write(self._writer, _LEFT)
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    def _watch(self) -> None:
        asked_at: float | None = None
        while asked_at is None or not self._is_over(asked_at):
            if not select.select([self._reader], [], [], None if asked_at is None else _LOOK_S)[0]:
                continue
            said = os.read(self._reader, 1)
            if said == _LEFT:
                return
            if said[0] not in _SIGNALS:
                continue
            if asked_at is None:
                asked_at = time.monotonic()
            elif time.monotonic() - asked_at > _AGAIN_S:
                break
        logger.warning("leaving at once", extra={"waited_s": round(time.monotonic() - asked_at, 1)})
        last = threading.Thread(target=self._last, name="last", daemon=True)
        last.start()
        last.join(_LAST_S)
        os._exit(0)

    def _is_over(self, asked_at: float) -> bool:
        now = time.monotonic()
        idle_since = self._idle_since()
        return now - asked_at > self._grace_s or (idle_since is not None and now - max(asked_at, idle_since) > _IDLE_S)
