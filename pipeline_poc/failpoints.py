"""Fail points: boundaries between the steps of the pipeline at which the fault suite can strike.

Off unless the setting FAIL_POINTS names some, such as
``migration.committed=kill,worker.dequeued=stop:3``: at the third hit of ``worker.dequeued`` the
process stops. Never set it in production.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass

from pipeline_poc.errors import TransientError

logger = logging.getLogger(__name__)

POINTS = {
    "ingestion.fetched": "the source's records are there, nothing is written",
    "ingestion.intended": "the batch is in the ledger, its posts are not stored",
    "ingestion.stored": "the posts are stored, their batch is not sealed",
    "ingestion.sealed": "a batch is sealed, the rest of the ingestion is to come",
    "replay.stamped": "migrated posts are put into a batch again, which is not sealed",
    "tick.begun": "a tick holds its lock, nothing has happened",
    "tick.cleared": "old jobs are deleted, the new ones are not enqueued",
    "tick.enqueued": "the jobs are enqueued, the tick's lock is held",
    "worker.dequeued": "a job is taken from the queue, the ledger does not know",
    "migration.started": "the ledger knows of the execution, nothing is read",
    "migration.read": "the posts are read, no row is written",
    "migration.uncommitted": "rows are sent to the relational store, and not committed",
    "migration.committed": "rows of a batch are committed, its posts are not flagged",
    "migration.flagged": "the posts are flagged, their batch is not closed",
    "migration.closed": "the batch is closed, its job is not acknowledged",
}
"""The fail points, in the order of a post's way, with what is done and not yet done there."""


@dataclass(slots=True)
class _Armed:
    act: Callable[[], None]
    hits_left: int


_armed: dict[str, _Armed] = {}
_lock = threading.Lock()


def reach(point: str) -> None:
    """Say that the process is at a fail point; does nothing unless that is armed."""
    if not _armed:
        return
    with _lock:
        armed = _armed.get(point)
        if armed is None:
            return
        armed.hits_left -= 1
        if armed.hits_left > 0:
            return
        del _armed[point]
    logger.warning("fail point reached", extra={"point": point})
    armed.act()


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _fail() -> None:
    raise TransientError("as FAIL_POINTS asked for")


def _crash() -> None:
    raise RuntimeError("as FAIL_POINTS asked for")


ACTIONS: dict[str, Callable[[], None]] = {
    "kill": _kill,
    "stop": _stop,
    "term": _terminate,
    "fail": _fail,
    "crash": _crash,
}
"""SIGKILL, SIGSTOP or SIGTERM to this process, a transient error, an error that nobody expects."""


def parse(text: str) -> dict[str, tuple[str, int]]:
    """Read the setting: action, and at which hit (counts from 1), for each point.

    Raises:
        ValueError: A point, an action or a number is none.
    """
    plan: dict[str, tuple[str, int]] = {}
    for part in text.split(","):
        point, _, action = part.strip().partition("=")
        name, _, hit = action.partition(":")
        if point not in POINTS:
            raise ValueError(f"{point!r} is no fail point; there are {', '.join(POINTS)}")
        if name not in ACTIONS or not (hit or "1").isdecimal() or int(hit or 1) < 1:
            raise ValueError(f"{action!r} is no action; there are {', '.join(ACTIONS)}, each with `:` and a number")
        plan[point] = (name, int(hit or 1))
    return plan


def arm(text: str | None) -> None:
    """Arm the points that a setting names, and no others."""
    with _lock:
        _armed.clear()
        if text:
            _armed.update({point: _Armed(ACTIONS[name], hit) for point, (name, hit) in parse(text).items()})
            logger.warning("fail points are armed: %s", text)
