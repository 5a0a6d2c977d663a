"""The one job there is.

Its function is compared, never imported, and nothing else that a job names is called, so that
whoever can write to Redis can ask for a batch to be migrated, and for nothing else.
"""

import re
import zlib
from collections.abc import Callable
from typing import Any

from rq.job import Job

from pipeline_poc.errors import TerminalError
from pipeline_poc.migration_queue import JOB_FUNCTION

_BATCH_ID = re.compile(r"[0-9]{8}T[0-9]{9}-[0-9a-f]{8}")
_PAYLOAD_MAX = 1000
"""Bytes of a payload, unpacked; ours have about 100."""


class RefusedJobError(TerminalError):
    """A job that names another function, or carries something else than the id of a batch."""


class MigrationJob(Job):
    """A job as the worker sees it: its function is looked up, never imported."""

    handler: Callable[[str], dict[str, Any]]
    """Set by the worker before it starts."""

    def restore(self, raw_data: dict[bytes, bytes]) -> None:
        """Take what Redis holds; a payload that can't be one of ours is emptied, not unpacked."""
        if b"data" in raw_data:
            raw_data = raw_data | {b"data": _unpacked(raw_data[b"data"])}
        super().restore(raw_data)

    @property
    def func(self) -> Callable[..., Any]:
        """The one function there is.

        Raises:
            RefusedJobError: The job asks for something else.
        """
        args: Any = self.args  # Any JSON.
        if self.func_name != JOB_FUNCTION or self.instance is not None or self.kwargs != {}:
            raise RefusedJobError(f"job {self.id} asks for {self.func_name!r}, which is not allowed")
        is_one_text = isinstance(args, list) and [type(arg) for arg in args] == [str]
        if not is_one_text or not _BATCH_ID.fullmatch(args[0]):
            raise RefusedJobError(f"job {self.id} carries no batch id")
        return type(self).handler

    @property
    def success_callback(self) -> None:
        """None: RQ would import whatever function the job names."""

    @property
    def failure_callback(self) -> None:
        """None, as above."""

    @property
    def stopped_callback(self) -> None:
        """None, as above."""

    def send_webhooks(self, *_args: Any, **_kwargs: Any) -> None:
        """Do nothing: RQ would call whatever URL the job names."""


def _unpacked(data: bytes) -> bytes:
    """Return a payload as JSON text; nothing where it is none of ours, such as one that unpacks to gigabytes."""
    if not data.startswith(b"["):
        try:
            data = zlib.decompressobj().decompress(data, _PAYLOAD_MAX + 1)
        except zlib.error:
            return b""
    # RQ would unpack once more what does not begin as JSON does.
    return data if data.startswith(b"[") and len(data) <= _PAYLOAD_MAX else b""
