"""Keeps Dagster's code server whole while Dagster's storage is away.

A thread of the server looks after runs whose process has ended, and ends the server once the last one has, after it was
asked to stop. That thread ends for ever with the first error, such as a restart of MySQL in the moment that a run ends:
dead runs are not noticed any more, and the server has to be killed.
"""

import logging
import sys
from functools import wraps
from typing import Any

from pipeline_poc.errors import mask_secrets

logger = logging.getLogger(__name__)

_PAUSE_S = 2.0
"""Before the next attempt."""


def outlive_outages() -> None:
    """Make the thread go on after an error, where this process is a code server; idempotent."""
    module = sys.modules.get("dagster._grpc.server")  # Its import takes time, and none but a server needs it.
    if module is None:
        return
    look = module.DagsterApiServer._check_for_orphaned_runs
    if hasattr(look, "__wrapped__"):
        return

    @wraps(look)
    def look_again(server: Any) -> None:
        try:
            look(server)
        except Exception as error:  # noqa: BLE001 - whatever the storage raises, the next look may go well
            logger.warning("ended runs can't be looked after: %s: %s", type(error).__name__, mask_secrets(str(error)))
            server._server_termination_event.wait(_PAUSE_S)

    module.DagsterApiServer._check_for_orphaned_runs = look_again
