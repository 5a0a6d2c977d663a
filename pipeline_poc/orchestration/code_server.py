"""Adapts Dagster's code server, where nothing public of Dagster's reaches."""

import logging
import multiprocessing
import sys
from functools import wraps
from typing import Any

from pipeline_poc.errors import mask_secrets

logger = logging.getLogger(__name__)

_PAUSE_S = 2.0
"""Before the next attempt."""
_IMPORTED = ["dagster._grpc.impl", "pipeline_poc.definitions", "pymysql"]
"""What a run imports."""


def adapt_code_server() -> None:
    """Make its runs start at once, and let it outlive outages, where this process is a code server; idempotent."""
    module = sys.modules.get("dagster._grpc.server")  # Its import takes time, and none but a server needs it.
    if module is not None:
        _outlive_outages(module.DagsterApiServer)
        if sys.platform == "linux":  # Elsewhere libraries of the system don't survive a fork.
            _fork_runs(module.DagsterApiServer)


def _fork_runs(server: Any) -> None:
    """Fork runs off a process that has imported what they need.

    Otherwise each is a new interpreter, whose imports take several times what a small run does.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    # Goes before the attribute of an instance, which may be there already.
    server._mp_ctx = property(lambda _: context, lambda *_: None)


def _outlive_outages(server: Any) -> None:
    """Make its thread go on after an error, such as a restart of MySQL in the moment that a run ends.

    That thread looks after runs whose process has ended, and ends the server once the last one has, after it was
    asked to stop. It ends for ever with the first error: dead runs are not noticed any more, and the server has to be
    killed.
    """
    look = server._check_for_orphaned_runs
    if hasattr(look, "__wrapped__"):
        return

    @wraps(look)
    def look_again(self: Any) -> None:
        try:
            look(self)
        except Exception as error:  # noqa: BLE001 - whatever the storage raises, the next look may go well
            logger.warning("ended runs can't be looked after: %s: %s", type(error).__name__, mask_secrets(str(error)))
            self._server_termination_event.wait(_PAUSE_S)

    server._check_for_orphaned_runs = look_again
