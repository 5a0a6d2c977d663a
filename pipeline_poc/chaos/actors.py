"""The actors of the fault suite: a step of the pipeline in a process of its own, made to be killed.

They are forked from a server process that has imported everything, so that one costs some
hundredths of a second instead of two seconds.
"""

import multiprocessing
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import psutil

from pipeline_poc import clock
from pipeline_poc.errors import PipelineError
from pipeline_poc.logs import configure_logging
from pipeline_poc.services import Services
from pipeline_poc.settings import load_settings
from pipeline_poc.worker import run_worker

Role = Literal["ingest", "tick", "work", "migrate", "reconcile"]

_ANSWER_TIMEOUT_S = 1.0
"""Short, so that a frozen store costs a run a second and not a minute."""
_HANGS_S = 90.0
"""An actor that takes so long hangs: no fault that is struck lasts half as long."""

_forks = multiprocessing.get_context("forkserver")
# The program itself, too, or each fork would import it once more.
_forks.set_forkserver_preload(["__main__", __name__])


def _ingest(services: Services) -> Any:
    return services.ingest().summary()


def _tick(services: Services) -> Any:
    return asdict(services.tick())


def _work(services: Services) -> Any:
    return run_worker(services, burst=True)


def _migrate(services: Services) -> Any:
    return services.migrate().summary()


def _reconcile(services: Services) -> Any:
    return services.reconcile().as_dict()


_ROLES: dict[Role, Callable[[Services], Any]] = {
    "ingest": _ingest,
    "tick": _tick,
    "work": _work,
    "migrate": _migrate,
    "reconcile": _reconcile,
}
"""``migrate`` is the way of asset and command line: the whole backlog, without the queue."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an actor ended.

    Attributes:
        status: ``done``, ``failed`` with an error of the pipeline, ``crashed`` with another one,
            ``killed`` by a signal, or ``hung``.
        value: What each of its roles returned; the error's class and text; the signal.
    """

    roles: tuple[Role, ...]
    status: Literal["done", "failed", "crashed", "killed", "hung"]
    value: Any


class Actor:
    """Steps of the pipeline, one after the other, that have begun.

    Args:
        roles: What it does.
        settings: Named as in `Settings`.
        shift: How much its clock is ahead.
        log: What it says is added to this file.
    """

    def __init__(self, roles: tuple[Role, ...], settings: dict[str, Any], shift: timedelta, log: Path) -> None:
        self.roles = roles
        self._answer, theirs = _forks.Pipe(duplex=False)
        self._process = _forks.Process(target=_act, args=(roles, settings, shift, log, theirs))
        self._process.start()
        self._pid = self._process.pid or 0
        theirs.close()

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.is_alive()

    def signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, number)

    def has_stopped(self) -> bool:
        """Wait until it is stopped by SIGSTOP, or has ended; returns which."""
        deadline = time.monotonic() + _HANGS_S
        while time.monotonic() < deadline and self._process.is_alive():
            with suppress(psutil.NoSuchProcess):
                if psutil.Process(self._pid).status() == psutil.STATUS_STOPPED:
                    return True
            time.sleep(0.01)
        return False

    def outcome(self) -> Outcome:
        """Wait for its end; one that hangs is killed."""
        self._process.join(_HANGS_S)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            return Outcome(self.roles, "hung", f"for {_HANGS_S:.0f} s")
        with self._answer:
            try:
                status, value = self._answer.recv()
            except EOFError:
                return Outcome(self.roles, "killed", self._process.exitcode)
        return Outcome(self.roles, status, value)


def _act(roles: tuple[Role, ...], settings: dict[str, Any], shift: timedelta, log: Path, answer: Connection) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    configure_logging("INFO", "json")
    clock.shift(shift)
    try:
        with Services(load_settings(env_file=None, **settings), answer_timeout_s=_ANSWER_TIMEOUT_S) as services:
            value = {role: _ROLES[role](services) for role in roles}
    except PipelineError as error:
        answer.send(("failed", f"{type(error).__name__}: {error}"))
    except Exception as error:  # noqa: BLE001 - whatever it is, the suite has to know
        answer.send(("crashed", f"{type(error).__name__}: {error}"))
    else:
        answer.send(("done", value))
