"""The sign of life of a worker: a file that is touched while it works, at which a health check looks."""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline_poc.repeating import repeating

logger = logging.getLogger(__name__)

PREFIX = "pipeline_poc-worker-"
"""Of the file's name, which ends with the id of the process; `scripts/healthcheck` looks for it."""
_BEAT_S = 5.0


@contextmanager
def pulse(lives: Callable[[], bool], folder: Path | None = None) -> Iterator[None]:
    """Touch a file of this process every few seconds, in a thread of its own, and remove it at the end.

    Args:
        lives: Says whether the main thread is still at work; while it is not, the file grows old.
        folder: Where the file is; by default the one for temporary files.
    """
    path = (folder or Path(tempfile.gettempdir())) / f"{PREFIX}{os.getpid()}"

    def beat() -> None:
        if lives():
            _touch(path)

    _touch(path)
    try:
        with repeating(beat, _BEAT_S, "pulse"):
            yield
    finally:
        with suppress(OSError):
            path.unlink()


def _touch(path: Path) -> None:
    try:
        # Others may write to the folder as well: what they put there under this name is not followed.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.utime(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        logger.warning("no sign of life can be left", extra={"path": str(path), "error": str(error)})
