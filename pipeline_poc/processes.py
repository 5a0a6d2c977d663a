"""Child processes: started with a log file each, restarted when they die, stopped as a group."""

import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

logger = logging.getLogger(__name__)

_STOP_S = 4.0
"""A child that was asked to stop is killed after so many seconds."""
_RESTART_DELAYS_S = (0.5, 2.0, 5.0, 15.0, 60.0)
"""Pauses before a child that keeps dying is started again."""
_STEADY_S = 60.0
"""A child that lived so long is restarted without a pause again."""


@dataclass(slots=True)
class _Child:
    name: str
    command: Sequence[str]
    process: subprocess.Popen[bytes]
    started_at: float
    is_needed: bool = False
    deaths: int = 0
    start_again_at: float | None = None


@dataclass(slots=True)
class Children:
    """The processes that one parent started.

    Each has a process group of its own, so that a Ctrl-C in the terminal reaches the parent
    only, and that its own children go with it. The list is kept in a file: what a killed
    parent left behind is ended by `end_leftovers` of the next one.

    Attributes:
        folder: Holds the list and, in `logs`, what each child prints.
        environment: Of the children.
    """

    folder: Path
    environment: Mapping[str, str]
    _children: list[_Child] = field(default_factory=list)

    @property
    def _list(self) -> Path:
        return self.folder / "processes.json"

    def log_path(self, name: str) -> Path:
        """Return the file that a child's output goes to."""
        return self.folder / "logs" / f"{name}.log"

    def end_leftovers(self) -> list[str]:
        """End the children of a parent that was killed; returns the names of those that lived."""
        try:
            entries = json.loads(self._list.read_text())
        except (OSError, ValueError):
            return []
        ended = []
        for entry in entries:
            with suppress(psutil.NoSuchProcess):
                # A process id may belong to somebody else by now; its time of birth tells.
                if abs(psutil.Process(entry["pid"]).create_time() - entry["created"]) < 1.0:
                    signal_group(entry["pid"], signal.SIGTERM)
                    ended.append(entry)
        deadline = time.monotonic() + _STOP_S
        for entry in ended:
            with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
                psutil.Process(entry["pid"]).wait(max(0.1, deadline - time.monotonic()))
            signal_group(entry["pid"], signal.SIGKILL)
        self._list.unlink(missing_ok=True)
        return [entry["name"] for entry in ended]

    def start(self, name: str, command: Sequence[str], *, is_needed: bool = False) -> None:
        """Start a child.

        Args:
            name: Of its log file, too.
            command: Program and arguments.
            is_needed: Whether other children can't do without it, and complain.
        """
        self._children.append(_Child(name, command, self._spawn(name, command), time.monotonic(), is_needed))
        self._save()

    def look_after(self) -> None:
        """Start again what has died, with growing pauses; to be called every second or so."""
        now = time.monotonic()
        for child in self._children:
            if child.process.poll() is None:
                continue
            if child.start_again_at is None:
                if now - child.started_at > _STEADY_S:
                    child.deaths = 0
                pause = _RESTART_DELAYS_S[min(child.deaths, len(_RESTART_DELAYS_S) - 1)]
                child.start_again_at = now + pause
                child.deaths += 1
                logger.warning(
                    "child ended",
                    extra={"child": child.name, "status": child.process.returncode, "restart_in_s": pause},
                )
            elif now >= child.start_again_at:
                # Its own children may have outlived it.
                signal_group(child.process.pid, signal.SIGKILL)
                child.process = self._spawn(child.name, child.command)
                child.started_at, child.start_again_at = now, None
                self._save()

    def stop(self) -> None:
        """Ask all children to stop, those that others need when the others are gone; kill those that are slow.

        Takes 5 s at most.
        """
        deadline = time.monotonic() + _STOP_S
        others = [child for child in self._children if not child.is_needed]
        needed = [child for child in self._children if child.is_needed]
        for asked, awaited, until in ((others, others, deadline - _STOP_S / 2), (needed, self._children, deadline)):
            for child in asked:
                if child.process.poll() is None:
                    signal_group(child.process.pid, signal.SIGTERM)
            for child in awaited:
                with suppress(subprocess.TimeoutExpired):
                    child.process.wait(max(0.05, until - time.monotonic()))
        for child in self._children:
            signal_group(child.process.pid, signal.SIGKILL)
            child.process.wait()
        self._children.clear()
        self._list.unlink(missing_ok=True)

    def _spawn(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        path = self.log_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as log:
            return spawn(command, self.environment, log)

    def _save(self) -> None:
        entries = []
        for child in self._children:
            with suppress(psutil.NoSuchProcess):
                created = psutil.Process(child.process.pid).create_time()
                entries.append({"name": child.name, "pid": child.process.pid, "created": created})
        new = self._list.with_suffix(".new")
        new.write_text(json.dumps(entries))
        new.replace(self._list)


def end_descendants() -> None:
    """Kill what is left below this process: a child that a signal kept from being listed, a library's helpers."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def spawn(
    command: Sequence[str], environment: Mapping[str, str], log: IO[bytes], folder: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a program that reads nothing, in a process group of its own.

    Args:
        command: Program and arguments.
        environment: All of its variables.
        log: Gets what it prints.
        folder: Its working directory; None: that of this process.
    """
    return subprocess.Popen(  # noqa: S603 - our own commands
        command,
        env=dict(environment),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def signal_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process group, if it is there still."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
