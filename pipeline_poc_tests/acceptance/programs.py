"""Starts the pipeline's programs as a person would, and sees to it that none outlives its test."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

T = TypeVar("T")

TIMEOUT_S = 60.0
"""Longest wait for anything; generous, since a machine that runs tests may be busy."""
STOP_S = 10.0
"""What is promised of `up`: so long after it was asked to stop every process is gone."""
AUTOMATION = (
    "ingest_posts_every_ten_minutes",
    "check_posts_every_ten_minutes",
    "prune_every_night",
    "enqueue_posts",
    "send_alerts",
)
"""The schedules and sensors, all of which run unasked."""
_MARK = "PIPELINE_POC_TEST"
"""Environment variable that every process inherits which a test started, however it detaches."""
_TICKS = """
import time
from pipeline_poc.errors import PipelineError
from pipeline_poc.services import Services
from pipeline_poc.settings import Settings
with Services(Settings()) as services:
    while True:
        try:
            print(services.tick().sentence(), flush=True)
        except PipelineError as error:
            print(error, flush=True)
        time.sleep(1)
"""
_NOWHERE = "http://127.0.0.1:9"
"""A proxy that isn't there: no test reaches the internet."""


def allowed_s(promised_s: float = STOP_S) -> float:
    """Return how long stopping may take: as promised, or longer in proportion where the cores have too much to do."""
    return promised_s * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def until(condition: Callable[[], T], what: str, timeout_s: float = TIMEOUT_S) -> T:
    """Wait for something to become true; returns what it became."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"after {timeout_s:.0f} s still not: {what}"
        time.sleep(0.1)
    return value


@dataclass(frozen=True, slots=True)
class Result:
    """What a command said and how it ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as the one JSON value that it has to be."""
        return json.loads(self.out)

    @property
    def said(self) -> str:
        """Everything that was said."""
        return self.out + self.err


class Program:
    """A command that runs.

    Attributes:
        pid: Of the process itself.
        started_at: When, on the monotonic clock.
    """

    def __init__(self, command: list[str], environment: dict[str, str], folder: Path, log: Path) -> None:
        self._log = log
        self.started_at = time.monotonic()
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def said(self) -> str:
        """What it printed so far."""
        return self._log.read_text(errors="replace")

    def wait_for(self, text: str) -> float:
        """Wait until it prints this; returns the seconds since its start.

        Raises:
            AssertionError: It ended before, or nothing came; shows what it printed.
        """
        deadline = time.monotonic() + TIMEOUT_S
        while text not in self.said:
            ended = self._process.poll() is not None and text not in self.said
            assert not ended, f"ended with {self._process.returncode} and without {text!r}:\n{self.said}"
            assert time.monotonic() < deadline, f"does not say {text!r}:\n{self.said}"
            time.sleep(0.05)
        return time.monotonic() - self.started_at

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it as the kernel would when memory runs out; its children live on."""
        self._process.kill()
        self._process.wait(TIMEOUT_S)

    def wait(self) -> int:
        """Wait until it ends; returns its exit status."""
        return self._process.wait(TIMEOUT_S)


class Programs:
    """The programs of one test: a folder, an environment, and a mark by which all of them are found.

    Args:
        folder: Their working directory; holds DATA_DIR and what they print.
        settings: Of all of them, named as in `Settings`.
    """

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.settings = settings
        self._mark = uuid.uuid4().hex
        self._started: list[Program] = []

    def environment(self, **settings: object) -> dict[str, str]:
        """Return the environment of a program: nothing of ours but where programs are."""
        given = {"data_dir": self.data_dir} | self.settings | settings
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "http_proxy": _NOWHERE,
            "https_proxy": _NOWHERE,
            "no_proxy": "127.0.0.1,localhost",
            _MARK: self._mark,
        } | {name.upper(): str(value) for name, value in given.items() if value is not None}

    def run(self, *arguments: str, **settings: object) -> Result:
        """Run a command to its end."""
        ended = subprocess.run(
            [sys.executable, "-m", "pipeline_poc", *arguments],
            env=self.environment(**settings),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S * 2,
            check=False,
        )
        result = Result(ended.returncode, ended.stdout, ended.stderr)
        assert "Traceback" not in result.said, result.said
        return result

    def ask(self, *arguments: str, **settings: object) -> Any:
        """Run a command that has to end well; returns the JSON value that it prints."""
        result = self.run(*arguments, "--json", **settings)
        assert result.status == 0, f"{arguments} ended with {result.status}: {result.said}"
        return result.json

    def start(self, *arguments: str, **settings: object) -> Program:
        """Start a command."""
        return self.launch(sys.executable, "-m", "pipeline_poc", *arguments, **settings)

    def launch(self, *command: str, **settings: object) -> Program:
        """Start any program."""
        log = self.folder / f"program-{len(self._started) + 1}.log"
        program = Program(list(command), self.environment(**settings), self.folder, log)
        self._started.append(program)
        return program

    @contextmanager
    def up(self, **settings: object) -> Iterator[Program]:
        """Start everything, and wait until the UI answers; see to it that the end is a good one."""
        program = self.start("up", **settings)
        try:
            program.wait_for("The UI is at")
            yield program
            status, stopped_s = self.stop(program, signal.SIGTERM)
            assert status == 0, program.said
            assert stopped_s < allowed_s()
            assert "Traceback" not in program.said
        finally:
            self.kill_all()

    def stop(self, program: Program, number: signal.Signals) -> tuple[int, float]:
        """Stop it as a person does; returns its exit status, and seconds until the last process was gone."""
        asked_at = time.monotonic()
        program.signal(number)
        until(lambda: not self.processes(), "every process is gone")
        return program.wait(), time.monotonic() - asked_at

    def start_ticks(self, **settings: object) -> Program:
        """Start a process that enqueues every second, as the sensor does every few."""
        return self.launch(sys.executable, "-c", _TICKS, **settings)

    def processes(self, *words: str) -> list[psutil.Process]:
        """Find the live processes that this started, directly or not, by words of their command line."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                is_ours = process.environ().get(_MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE
                if is_ours and set(words) <= set(process.cmdline()):
                    found.append(process)
        return found

    def kill_all(self) -> None:
        """End every process that this started, all at once."""
        while left := self.processes():
            for process in left:
                with suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(left, timeout=1.0)
        for program in self._started:
            program.wait()
