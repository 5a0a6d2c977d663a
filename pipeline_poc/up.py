"""``pipeline-poc up``: the whole pipeline on one machine, started, shown and stopped together."""

import fcntl
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections import ChainMap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pipeline_poc.definitions import defs
from pipeline_poc.embedded import free_port
from pipeline_poc.errors import PipelineError, ServiceStartError, SourceAnswerError, TransientError
from pipeline_poc.orchestration.instance import (
    DagsterInstance,
    fail_unfinished_runs,
    ingest_in_process,
    instance_of,
    prepare_home,
)
from pipeline_poc.orchestration.resources import close_services
from pipeline_poc.posts import POSTS
from pipeline_poc.processes import Children, end_descendants
from pipeline_poc.reconciliation import Reconciliation
from pipeline_poc.services import Services
from pipeline_poc.settings import PUBLIC_SOURCE_URL, Settings
from pipeline_poc.web.auth import check_binding
from pipeline_poc.worker import worker_command

logger = logging.getLogger(__name__)

_POLL_S = 0.25
_TICK_S = 1.0
"""While `up` waits for the first migration it enqueues more often than the sensor would."""
_UI_TIMEOUT_S = 120.0
_WORKER_GRACE_S = 3.0
"""Workers give their batch back before they would be killed with the other children."""
_INGESTION_STOP_S = 2.0
"""So long an ingestion may go on after it was asked to stop."""
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(slots=True)
class Outcome:
    """What the first pass of `up` did with an entity.

    Attributes:
        ingestion: Numbers of the ingestion; empty where it failed.
        ingestion_error: Why it failed.
        dead_batches: Batches that wait for a person.
        stuck_batches: Batches whose attempts ran out, because the relational store is away.
    """

    entity: str
    ingestion: dict[str, Any]
    ingestion_error: Exception | None
    reconciliation: Reconciliation
    lag_s: float
    dead_batches: int
    stuck_batches: int

    def as_dict(self) -> dict[str, Any]:
        """Return the outcome as JSON values."""
        return {
            "ok": self.ok,
            "entity": self.entity,
            "ingestion": {name: value for name, value in self.ingestion.items() if isinstance(value, (int, float))},
            "ingestion_error": str(self.ingestion_error) if self.ingestion_error else None,
            "reconciliation": self.reconciliation.as_dict(),
            "lag_s": self.lag_s,
            "dead_batches": self.dead_batches,
            "stuck_batches": self.stuck_batches,
        }

    @property
    def ok(self) -> bool:
        """Whether all is ingested, migrated and reconciled."""
        all_migrated = self.reconciliation.backlog == 0 and not self.dead_batches and not self.stuck_batches
        return self.ingestion_error is None and self.reconciliation.ok and all_migrated


class Pipeline:
    """Everything that `up` starts.

    Args:
        services: The stores of this process; those that are embedded live as long as it does.
        console: Shows progress.
    """

    def __init__(self, services: Services, console: Console) -> None:
        settings = services.settings
        self.services = services
        self.console = console
        grace_s = str(min(settings.shutdown_grace_s, _WORKER_GRACE_S))
        self.children = Children(settings.data_dir, ChainMap({"SHUTDOWN_GRACE_S": grace_s}, os.environ))
        self._workspace = settings.data_dir / "workspace.yaml"
        self._code_server_port: int | None = None
        """Where the code server will answer; None once the others were started behind it."""
        self._ingestion_ended = threading.Event()
        self._ingestion_ended.set()

    def first_pass(self, instance: DagsterInstance) -> Iterator[Outcome]:
        """Ingest each entity once, as a run of Dagster in this process, and wait until workers migrated all of it."""
        for services in self.services.pipelines():
            yield self._pass(services, instance)

    def _pass(self, services: Services, instance: DagsterInstance) -> Outcome:
        bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
        with bar:
            ingestion, error = self._ingest(services, instance, bar)
            stuck = self._migrate(services, bar)
            task = bar.add_task("reconciling", total=None)
            result = services.reconcile(lambda compared: bar.update(task, completed=compared))
        return Outcome(
            entity=services.entity.name,
            ingestion=ingestion,
            ingestion_error=error,
            reconciliation=result,
            lag_s=services.ledger.backlog().lag_s(result.started_at),
            dead_batches=len(services.ledger.batches("dead")),
            stuck_batches=stuck,
        )

    def _ingest(
        self, services: Services, instance: DagsterInstance, bar: Progress
    ) -> tuple[dict[str, Any], Exception | None]:
        outcome: dict[str, Any] = {}
        errors: list[Exception] = []

        def run() -> None:
            try:
                outcome.update(ingest_in_process(defs(), services.entity, instance))
            except Exception as error:  # noqa: BLE001 - Dagster wraps ours in its own
                errors.append(error)
            finally:
                self._ingestion_ended.set()

        task = bar.add_task("ingesting", total=None)
        self._ingestion_ended.clear()
        threading.Thread(target=run, name="ingestion", daemon=True).start()
        # A thread whose `join` is interrupted counts as ended, before Python 3.13; an event is safe.
        while not self._ingestion_ended.wait(_POLL_S):
            self.look_after()
            stored = sum(batch.size for batch in services.ledger.batches("open"))
            bar.update(task, completed=stored)
        bar.update(task, completed=outcome.get("fetched", 0), total=outcome.get("fetched", 1), visible=not errors)
        return outcome, _root(errors[0]) if errors else None

    def _migrate(self, services: Services, bar: Progress) -> int:
        """Wait until the backlog is empty; returns the number of batches that can't move now."""
        ledger = services.ledger
        total = sum(batch.size for batch in ledger.batches("open"))
        task = bar.add_task("migrating", total=total)
        next_tick = 0.0
        stuck = ticks = 0
        while True:
            left = ledger.batches("open")
            control = services.control()
            if not control.is_running:
                self.console.print(f"[yellow]The migration is {control.mode}: `pipeline-poc resume` lets it go on.[/]")
                return 0
            waiting = len(left) + len(ledger.batches("filling"))
            bar.update(task, completed=max(0, total - sum(batch.size for batch in left)))
            if not waiting and not services.raw_store.has_unmigrated(None):
                return 0
            if time.monotonic() >= next_tick:
                tick = services.tick()
                ticks += 1
                # Batches whose attempts ran out are all that is left, and their store is still away.
                stuck = tick.waiting_for_store if not tick.outstanding else 0
                if tick.requeued and ticks > 1:
                    # Their attempts ran out though their store answers; the sensor goes on with them.
                    return len(left)
                next_tick = time.monotonic() + _TICK_S
            if stuck and stuck == len(left):
                return stuck
            self.look_after()
            time.sleep(_POLL_S)

    def start_workers(self) -> None:
        """Start the workers of each entity."""
        for entity in self.services.settings.entities:
            of = "" if entity == POSTS.name else f"{entity}-"
            for number in range(1, self.services.settings.worker_count + 1):
                self.children.start(f"{of}worker-{number}", worker_command(entity))

    def start_dagster(self) -> None:
        """Start the code server; `look_after` starts the UI and the daemon once it answers."""
        # The same as before, if it is free: by it Dagster knows the ticks that it has kept.
        before = re.search(r"port: (\d+)", self._workspace.read_text()) if self._workspace.exists() else None
        port = free_port(int(before[1]) if before else None)
        self.children.start("code-server", code_server(port, self._workspace), is_needed=True)
        self._code_server_port = port

    def look_after(self) -> None:
        """Start what has died again, and what waits for the code server; to be called every second or so."""
        self.children.look_after()
        if self._code_server_port and _listens("127.0.0.1", self._code_server_port):
            self._code_server_port = None
            self.children.start("webserver", webserver(self._workspace))
            self.children.start("daemon", daemon(self._workspace))

    def _await_ui(self) -> bool:
        """Wait until the UI answers; False if it doesn't within two minutes."""
        deadline = time.monotonic() + _UI_TIMEOUT_S
        with self.console.status("starting the UI"):
            while time.monotonic() < deadline:
                self.look_after()
                with suppress(URLError, OSError), urlopen(f"{self.ui_url}/health/live", timeout=2):  # noqa: S310
                    return True
                time.sleep(_POLL_S)
        return False

    @property
    def ui_url(self) -> str:
        """Where the UI is."""
        settings = self.services.settings
        host = "localhost" if settings.web_host in ("127.0.0.1", "0.0.0.0") else settings.web_host  # noqa: S104
        return f"http://{host}:{settings.web_port}"

    def stay(self) -> None:
        """Say where the UI is and look after the children until the process is interrupted."""
        data_dir = self.services.settings.data_dir
        self.console.print(
            f"\nThe UI is at [bold]{self.ui_url}[/]\nThe status page is at [bold]{self.ui_url}/pipeline[/]\n"
            f"The data is in {data_dir}, the logs in {data_dir / 'logs'}\n"
            "Ctrl-C stops everything"
            if self._await_ui()
            else f"[red]The UI does not answer; the logs in {data_dir / 'logs'} say why.[/]"
        )
        while True:
            self.look_after()
            time.sleep(1.0)

    def stop(self) -> None:
        """Stop the children, and an ingestion that is still under way."""
        deadline = time.monotonic() + _INGESTION_STOP_S
        self.children.stop()
        # One that has just begun would open the stores behind our back; one that hangs has opened them.
        self._ingestion_ended.wait(max(0.0, deadline - time.monotonic()))
        end_descendants()
        close_services()


def code_server(port: int, workspace: Path) -> list[str]:
    """Return the command of the code server, and write the workspace by which others find it."""
    workspace.write_text(
        f"load_from:\n  - grpc_server:\n      host: 127.0.0.1\n      port: {port}\n      location_name: pipeline_poc\n"
    )
    grpc = ["-m", "dagster", "api", "grpc", "--module-name", "pipeline_poc.definitions", "--host", "127.0.0.1"]
    return [sys.executable, *grpc, "--port", str(port), "--log-level", "warning"]


def webserver(workspace: Path) -> list[str]:
    """Return the command of the web server."""
    return [sys.executable, "-m", "pipeline_poc", "webserver", "--workspace", str(workspace)]


def daemon(workspace: Path) -> list[str]:
    """Return the command of Dagster's daemon."""
    return [sys.executable, "-m", "dagster._daemon", "run", "-w", str(workspace)]


def first_pass_and_stay(
    services: Services, console: Console, *, once: bool, show: Callable[[Outcome], None]
) -> list[Outcome]:
    """Start the pipeline, ingest and migrate, show the outcome, and stay up until interrupted.

    Args:
        services: The stores; all of them answer.
        console: Shows what happens.
        once: Don't stay, and start neither UI nor schedule.
        show: Shows an outcome.

    Returns:
        The outcome of each entity; of fewer where the first pass did not come to its end.

    Raises:
        ServiceStartError: Another `up` uses the same data, or the UI's port can't be used.
        TransientError: A store went away during the first pass, and there is no staying.
    """
    outcomes: list[Outcome] = []
    try:
        with _started(services, console, with_ui=not once) as (pipeline, instance):
            try:
                for outcome in pipeline.first_pass(instance):
                    outcomes.append(outcome)
                    show(outcome)
            except TransientError as error:
                if once:
                    raise
                console.print(f"[red]{escape(str(error))}[/]\nWhat is left follows by itself once that is over.")
            if not once:
                pipeline.stay()
    except KeyboardInterrupt:
        return outcomes
    return outcomes


def _use_stand_in_if_offline(services: Services, console: Console) -> None:
    try:
        services.source.ping()
        if services.source.is_stand_in:
            console.print("[yellow]The source is the stand-in: its posts are made up.[/]\n")
    except TransientError as error:
        logger.info("stand-in used", extra={"reason": str(error)})
        services.start_stand_in()
        console.print(
            f"[yellow]{PUBLIC_SOURCE_URL} can't be reached.\n"
            f"A stand-in with made-up posts takes its place: {services.source.shown_url}[/]\n"
        )
    except SourceAnswerError:
        logger.debug("the API answers, though with a refusal: the ingestion will say so")


@contextmanager
def _started(services: Services, console: Console, *, with_ui: bool) -> Iterator[tuple[Pipeline, DagsterInstance]]:
    """Start the pipeline; stop every process of it at the end.

    Raises:
        ServiceStartError: Another `up` uses the same data, or the UI's port can't be used.
    """
    settings = services.settings
    with _interrupts(), _alone(settings.data_dir):
        pipeline = Pipeline(services, console)
        for name in pipeline.children.end_leftovers():
            console.print(f"Ended a leftover of a killed start: {name}")
        if with_ui:
            check_binding(settings)
            _check_port(settings.web_host, settings.web_port)
        if settings.may_use_stand_in:
            _use_stand_in_if_offline(services, console)
        with _instance(settings) as instance:
            try:
                pipeline.start_workers()
                if with_ui:
                    pipeline.start_dagster()
                yield pipeline, instance
            finally:
                # Whoever is impatient now would leave processes behind. SIG_IGN would be inherited by
                # helpers that Dagster has to stop with these very signals.
                for number in _ENDING:
                    signal.signal(number, lambda *_: None)
                if with_ui:
                    console.print("\nStopping.")
                pipeline.stop()


def _check_port(host: str, port: int) -> None:
    """Find out whether the UI can listen there.

    Raises:
        ServiceStartError: It can't.
    """
    remedy = f"choose another port, such as WEB_PORT={port + 1}"
    # What listens at another address of "localhost" may be what the browser finds there.
    if _listens(host, port) or _listens("localhost", port):
        raise ServiceStartError(f"port {port} (WEB_PORT) is in use by another program: stop it, or {remedy}")
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise ServiceStartError(f"the UI can't use {host} port {port} (WEB_HOST, WEB_PORT): {error.strerror}") from None


@contextmanager
def _instance(settings: Settings) -> Iterator[DagsterInstance]:
    """Open Dagster's instance, for the children too; what nobody else can be using is put in order first."""
    own = settings.data_dir.absolute() / "dagster"
    home = (settings.dagster_home or own).absolute()
    os.environ["DAGSTER_HOME"] = str(home)
    if home == own:
        prepare_home(home)
    # Two daemons on one instance would both start what its schedules want.
    with _alone(home), instance_of(home) as instance:
        if home == own:
            fail_unfinished_runs(instance)
        yield instance


@contextmanager
def _alone(data_dir: Path) -> Iterator[None]:
    """Hold the right to run `up` on this data."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / "up.lock").open("a+")
    except OSError as error:
        raise ServiceStartError(f"DATA_DIR can't be used: {error}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise ServiceStartError(
                f"`pipeline-poc up` is already running on {data_dir} (process {lock.read().strip() or 'unknown'}): "
                "stop it with Ctrl-C, or choose another DATA_DIR and DAGSTER_HOME"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def _interrupts() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into KeyboardInterrupt, even where a shell ignores them for us."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=0.5):
            return True
    except OSError:
        return False


def _root(error: Exception) -> Exception:
    """Return the pipeline's own error among the causes, else the error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, PipelineError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return error
