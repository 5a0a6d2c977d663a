"""The sign of life of a worker: a file that is touched while it works, at which a health check looks."""

import logging
import os
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

logger = logging.getLogger(__name__)

PREFIX = "pipeline_poc-worker-"
"""Of the file's name, which ends with the id of the process; `scripts/healthcheck` looks for it."""
_BEAT_S = 5.0


class Pulse:
    """Touches a file of this process every few seconds, in a thread of its own, and removes it at the end.

    Args:
        lives: Says whether the main thread is still at work; while it is not, the file grows old.
        folder: Where the file is; by default the one for temporary files.
    """

    def __init__(self, lives: Callable[[], bool], folder: Path | None = None) -> None:
        self._lives = lives
        self._folder = folder
        self._done = threading.Event()

    def __enter__(self) -> Self:
        self._path = (self._folder or Path(tempfile.gettempdir())) / f"{PREFIX}{os.getpid()}"
        self._touch()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        with suppress(OSError):
            self._path.unlink()

    def _beat(self) -> None:
        while not self._done.wait(_BEAT_S):
            if self._lives():
                self._touch()

    def _touch(self) -> None:
        try:
            # Others may write to the folder as well: what they put there under this name is not followed.
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.utime(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            logger.warning("no sign of life can be left", extra={"path": str(self._path), "error": str(error)})
