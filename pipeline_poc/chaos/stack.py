"""The whole pipeline as real programs, at which the fault suite strikes while posts flow.

Scheduler daemon, code server, web server and several workers run as in production, each started
again when it dies; the servers are real, and behind proxies.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self

import pymongo
from pymongo.errors import PyMongoError

from pipeline_poc.chaos.arena import DATABASE, STORES, Arena
from pipeline_poc.chaos.promises import Violation, Watch, differences
from pipeline_poc.chaos.proxy import Fault
from pipeline_poc.chaos.world import World
from pipeline_poc.embedded import free_port
from pipeline_poc.orchestration.instance import prepare_home
from pipeline_poc.processes import signal_group, spawn
from pipeline_poc.up import code_server, daemon, webserver

logger = logging.getLogger(__name__)

_WORKERS = 3
_DAEMONS = ("daemon-1", "daemon-2")
_CHANGED = 50
"""Posts that change in each round."""
_ROUND_S = (0.5, 3.0)
"""Bounds of the pause between two blows."""
_FAULT_S = (1.0, 6.0)
"""Bounds of the time that a store is in trouble, and a program asleep."""
_SETTLE_S = 300.0
_LOOK_S = 1.0
_RESTART_S = 0.5
_SETTINGS = {
    "batch_size": 500,
    "store_timeout_s": 2,
    "source_max_attempts": 2,
    "retry_base_s": 0.2,
    "retry_cap_s": 3,
    "heartbeat_interval_s": 1,
    "heartbeat_timeout_s": 6,
    "filling_timeout_s": 15,
    "log_format": "json",
}


class Programs:
    """Programs that are started again whenever they die; to be used as a context manager.

    Args:
        commands: By name.
        environment: Of all of them.
        logs: Folder of what each prints.
    """

    def __init__(self, commands: Mapping[str, Sequence[str]], environment: dict[str, str], logs: Path) -> None:
        self.starts: Counter[str] = Counter()
        self._commands = commands
        self._environment = environment
        self._logs = logs
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look_after, name="programs", daemon=True)

    def __enter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        for name in self._commands:
            self._processes[name] = self.launch(name, self._commands[name])
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        for process in self._processes.values():
            signal_group(process.pid, signal.SIGKILL)
            process.wait()

    def launch(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a program in a process group of its own; who asks looks after it."""
        self.starts[name] += 1
        with (self._logs / f"{name}.log").open("ab") as log:
            return spawn(command, self._environment, log, self._logs)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a program and its children."""
        signal_group(self._processes[name].pid, number)

    def _look_after(self) -> None:
        while not self._done.wait(_RESTART_S):
            for name, process in self._processes.items():
                if process.poll() is not None:
                    self._processes[name] = self.launch(name, self._commands[name])


@dataclass(slots=True)
class StackResult:
    """How it ended.

    Attributes:
        blows: Number of blows by kind.
        starts: Number of starts by program.
        killed: Number of SIGKILLs that met a living process.
        settled_s: How long the last posts took to arrive once the faults were over.
    """

    seed: int
    blows: Counter[str] = field(default_factory=Counter)
    starts: Counter[str] = field(default_factory=Counter)
    violations: list[tuple[str, Violation]] = field(default_factory=list)
    posts: int = 0
    killed: int = 0
    settled_s: float = 0.0
    duration_s: float = 0.0


class Stack:
    """Lets posts flow through the programs and strikes at them.

    Args:
        arena: The stores.
        seed: Of all that is drawn.
        posts: New posts in all.
        kills: SIGKILLs in all.
        logs: Folder of what the programs print.
        on_blow: Called with what happens, in a few words.
    """

    def __init__(
        self, arena: Arena, *, seed: int, posts: int, kills: int, logs: Path, on_blow: Callable[[str], None]
    ) -> None:
        self.arena = arena
        self.rng = Random(f"{seed}/stack")
        self.world = World(self.rng, arena.source.posts)
        self.watch = Watch(arena.mongo.url, DATABASE, arena.sql, self.world)
        self.result = StackResult(seed)
        self._posts = posts
        self._kills = kills
        self._logs = logs
        self._on_blow = on_blow
        self._ingestion: subprocess.Popen[bytes] | None = None
        self._asleep: dict[str, float] = {}
        self._trouble_until = 0.0

    def play(self) -> StackResult:
        """Play it to the end; returns how it went, whatever happened."""
        begun = time.monotonic()
        self.arena.empty()
        for number in (1, 2):
            prepare_home(self._home(number))
        with Programs(self._commands(), self._environment(), self._logs) as programs:
            self._flow(programs)
            self._settle(programs)
            self.result.starts = programs.starts
        self.result.posts = len(self.world.contents)
        self.result.duration_s = round(time.monotonic() - begun, 1)
        return self.result

    def _flow(self, programs: Programs) -> None:
        each = max(1, self._posts // max(1, self._kills))
        while self.result.killed < self._kills or len(self.world.contents) < self._posts:
            if len(self.world.contents) < self._posts:
                self.world.add(each)
            self.world.change(_CHANGED)
            self._ingest(programs)
            self._wake(programs)
            if time.monotonic() > self._trouble_until:
                self.arena.calm()
            self._blow(programs)
            time.sleep(self.rng.uniform(*_ROUND_S))

    def _blow(self, programs: Programs) -> None:
        workers = [f"worker-{number}" for number in range(1, _WORKERS + 1)]
        kind = self.rng.choices(
            ["kill a worker", "kill another", "kill an ingestion", "stop", "terminate", "trouble", "flush", "trigger"],
            [40, 12, 14, 6, 6, 12, 3, 7],
        )[0]
        if kind == "kill a worker":
            self._kill(programs, self.rng.choice(workers))
        elif kind == "kill another":
            self._kill(programs, self.rng.choice([*_DAEMONS, "web", "code-server"]))
        elif kind == "kill an ingestion":
            self._kill_ingestion(programs)
        elif kind == "stop":
            name = self.rng.choice([*workers, *_DAEMONS, "web", "code-server"])
            self._say(f"SIGSTOP {_kind(name)}")
            programs.signal(name, signal.SIGSTOP)
            self._asleep[name] = time.monotonic() + self.rng.uniform(*_FAULT_S) * 2
        elif kind == "terminate":
            name = self.rng.choice(workers)
            self._say(f"SIGTERM {_kind(name)}")
            programs.signal(name, signal.SIGTERM)
        elif kind == "trouble":
            self._trouble()
        elif kind == "flush":
            self._say("FLUSHALL")
            self.arena.flush()
        else:
            self._say("trigger by REST")
            programs.launch("trigger", ["curl", "-s", "-m", "10", "-X", "POST", f"{self._web}/trigger-migration"])

    def _kill(self, programs: Programs, name: str) -> None:
        self._say(f"SIGKILL {_kind(name)}")
        programs.signal(name, signal.SIGKILL)
        self.result.killed += 1

    def _kill_ingestion(self, programs: Programs) -> None:
        self._ingest(programs)
        time.sleep(self.rng.uniform(0.5, 3.0))
        if self._ingestion and self._ingestion.poll() is None:
            self._say("SIGKILL ingestion")
            signal_group(self._ingestion.pid, signal.SIGKILL)
            self.result.killed += 1

    def _trouble(self) -> None:
        store = self.rng.choice(STORES)
        troubles: dict[str, Callable[[], None]] = {
            "down": lambda: self.arena.proxies[store].set(Fault("down")),
            "blackhole": lambda: self.arena.proxies[store].set(Fault("blackhole")),
            "latency of 2 s": lambda: self.arena.proxies[store].set(Fault("latency", seconds=2.0)),
            "reset": lambda: self.arena.proxies[store].set(Fault("reset", after_bytes=self.rng.randrange(100_000))),
            "cut": lambda: self.arena.proxies[store].set(Fault("cut", after_bytes=self.rng.randrange(1, 200_000))),
        }
        servers = {"mongo": self.arena.mongo, "redis": self.arena.redis, "sql": self.arena.mariadb}
        if store in servers:
            troubles["killed"] = servers[store].kill
            troubles["frozen"] = servers[store].pause
        name = self.rng.choice(list(troubles))
        self._say(f"{store}: {name}")
        troubles[name]()
        self._trouble_until = time.monotonic() + self.rng.uniform(*_FAULT_S)

    def _wake(self, programs: Programs, *, everybody: bool = False) -> None:
        for name, until in list(self._asleep.items()):
            if everybody or time.monotonic() > until:
                programs.signal(name, signal.SIGCONT)
                del self._asleep[name]

    def _ingest(self, programs: Programs) -> None:
        if self._ingestion is None or self._ingestion.poll() is not None:
            self._ingestion = programs.launch("ingest", [sys.executable, "-m", "pipeline_poc", "ingest"])

    def _settle(self, programs: Programs) -> None:
        """End all faults, and see whether the pipeline comes to rest by itself."""
        self._wake(programs, everybody=True)
        self.arena.calm()
        self.world.settle()
        begun = time.monotonic()
        if self._ingestion:
            self._ingestion.wait()
        self._check_ingestion(programs)
        while not self._is_settled() and time.monotonic() - begun < _SETTLE_S:
            time.sleep(_LOOK_S)
        self.result.settled_s = round(time.monotonic() - begun, 1)
        before = self.watch.look()
        self._note("settled", self.watch.check_settled(before))
        self.world.rephrase()
        self._check_ingestion(programs)
        with self.arena.redis_client() as client:
            client.flushall()
        time.sleep(10 * _LOOK_S)
        self._note("run again", differences(before, self.watch.look()))
        said = self._command("reconcile", "--json")
        if said.returncode != 0 or not json.loads(said.stdout)["ok"]:
            self._note("reconciled", [Violation(1, f"reconcile says {said.stdout} {said.stderr}")])

    def _check_ingestion(self, programs: Programs) -> None:
        self._ingest(programs)
        if self._ingestion and self._ingestion.wait() != 0:
            self._note("in the end", [Violation(7, "an ingestion fails without a fault")])
        self._ingestion = None

    def _is_settled(self) -> bool:
        with pymongo.MongoClient[dict[str, Any]](self.arena.mongo.url) as client:
            database = client[DATABASE]
            try:
                waits = database.batches.find_one({"state": {"$in": ["open", "filling"]}})
                return waits is None and database.posts.find_one({"migrated": False, "quarantine": None}) is None
            except PyMongoError:
                return False

    def _command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "pipeline_poc", *arguments]
        return subprocess.run(
            command,
            env=self._environment(),
            cwd=self._logs,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SETTLE_S,
        )

    def _commands(self) -> Mapping[str, Sequence[str]]:
        workspace = self.arena.folder / "workspace.yaml"
        self._web_port = free_port()
        self._web = f"http://127.0.0.1:{self._web_port}"
        return {
            "code-server": code_server(free_port(), workspace),
            "web": webserver(workspace),
            "daemon-1": daemon(workspace),
            # Another instance of Dagster: a second sensor and a second schedule on the same pipeline.
            "daemon-2": ["env", f"DAGSTER_HOME={self._home(2)}", *daemon(workspace)],
        } | {f"worker-{number}": [sys.executable, "-m", "pipeline_poc", "worker"] for number in range(1, _WORKERS + 1)}

    def _home(self, number: int) -> Path:
        return self.arena.folder / f"dagster-{number}"

    def _environment(self) -> dict[str, str]:
        settings = self.arena.settings | _SETTINGS | {"dagster_home": self._home(1), "web_port": self._web_port}
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.arena.folder),
            "LANG": "C.UTF-8",
            "no_proxy": "*",
        } | {name.upper(): str(value) for name, value in settings.items()}

    def _say(self, blow: str) -> None:
        self.result.blows[blow] += 1
        self._on_blow(blow)

    def _note(self, moment: str, violations: Sequence[Violation]) -> None:
        self.result.violations += [(moment, violation) for violation in violations]


def _kind(name: str) -> str:
    return name.rstrip("-0123456789")
