"""The pipeline's health: what answers, what moves, what waits for a person. For `/health` and `pipeline-poc status`.

The report has the shape of draft-inadarei-api-health-check (``application/health+json``). All
probes run side by side, each with the same deadline; what is away is reported, never raised.
"""

import asyncio
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from typing import Any, Literal, Protocol

import httpx

from pipeline_poc.clock import utc_now
from pipeline_poc.dagster_api import DagsterApi, DagsterState
from pipeline_poc.deadline import DeadlineExceeded, SharedCalls
from pipeline_poc.errors import PipelineError, mask_secrets
from pipeline_poc.services import Services

Verdict = Literal["pass", "warn", "fail"]
MEDIA_TYPE = "application/health+json"

_STARTED_AT = time.monotonic()
_SEVERITY: dict[Verdict, int] = {"pass": 0, "warn": 1, "fail": 2}
_DISK_WARN_BYTES = 1_000_000_000
_DISK_FAIL_BYTES = 100_000_000
_STORES = {"mongodb:responseTime": "mongodb", "relationalStore:responseTime": "mysql", "redis:responseTime": "redis"}
"""The checks of the stores, each with its name in the answer of the service that this one replaces."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: Component and measurement, such as ``mongodb:responseTime``.
        component: Which one it is: the name of a daemon, schedule or sensor, the URL of a store without secrets.
        value: What was seen; None where nothing could be.
        unit: Of the value.
        is_known: Whether it could be looked at.
        output: What is wrong, and what to do about it; None where all is well.
    """

    name: str
    status: Verdict
    value: Any = None
    unit: str | None = None
    output: str | None = None
    component: str | None = None
    component_type: str = "component"
    is_known: bool = True
    at: datetime = field(default_factory=utc_now)

    def as_dict(self) -> dict[str, Any]:
        """Return the check under the names of the draft."""
        named = {
            "componentId": self.component,
            "componentType": self.component_type,
            "observedValue": self.value,
            "observedUnit": self.unit,
            "status": self.status,
            "output": self.output,
        }
        return {name: value for name, value in named.items() if value is not None} | {"time": _text(self.at)}


@dataclass(frozen=True, slots=True)
class Health:
    """The report."""

    checks: tuple[Check, ...]
    at: datetime = field(default_factory=utc_now)

    @property
    def status(self) -> Verdict:
        """The worst of all checks."""
        return max((check.status for check in self.checks), key=_SEVERITY.__getitem__, default="pass")

    def find(self, name: str) -> Check:
        """Return the first check of that name."""
        return next(check for check in self.checks if check.name == name)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values; ``timestamp``, ``uptime`` and ``services`` are those of older clients."""
        checks: dict[str, list[dict[str, Any]]] = {}
        for check in self.checks:
            checks.setdefault(check.name, []).append(check.as_dict())
        failing = [check for check in self.checks if check.status == "fail"]
        report: dict[str, Any] = {
            "status": self.status,
            "version": version("pipeline-poc").partition(".")[0],
            "releaseId": version("pipeline-poc"),
            "serviceId": "pipeline_poc",
            "description": "API to MongoDB to Redis queue to MySQL",
        }
        if failing:
            report["output"] = "; ".join(f"{check.name}: {check.output}" for check in failing)[:1000]
        return report | {
            "checks": checks,
            "timestamp": _text(self.at),
            "uptime": round(time.monotonic() - _STARTED_AT, 3),
            "services": {
                old: "up" if check.status != "fail" else "down"
                for check in self.checks
                if (old := _STORES.get(check.name))
            },
        }


class Store(Protocol):
    """A store that can be asked whether it is there."""

    @property
    def shown_url(self) -> str:
        """Where it is, without secrets."""

    def ping(self) -> None:
        """Check that it answers."""


class Inspector:
    """Takes reports; keeps hanging probes to one thread each, however often it is asked.

    Args:
        services: The stores, which need not be up.
        dagster: Dagster's GraphQL; None leaves out what Dagster says.
    """

    def __init__(self, services: Services, dagster: DagsterApi | None = None) -> None:
        self._services = services
        self._dagster = dagster
        self._calls = SharedCalls()
        self._deadline_s = services.settings.health_timeout_s
        self.dagster_state: DagsterState | None = None
        """What Dagster said in the last report; None while it is away."""
        self.is_stopping = False
        """Whether this process was asked to stop, so that requests had better go to another one."""

    async def report(self) -> Health:
        """Look at everything; takes as long as the slowest probe, and never longer than HEALTH_TIMEOUT_S."""
        services = self._services
        groups = await asyncio.gather(
            self._store("mongodb:responseTime", lambda: services.raw_store),
            self._store("relationalStore:responseTime", lambda: services.relational_store),
            self._store("redis:responseTime", lambda: services.queue),
            self._probe(_LEDGER_CHECKS, lambda: _ledger(services), "MongoDB does not tell"),
            self._probe(("quarantine:records",), lambda: _quarantine(services), "MongoDB does not tell"),
            self._probe(_QUEUE_CHECKS, lambda: _queue(services), "Redis does not tell"),
            self._probe(("disk:free",), lambda: _disk(services), "the folder can't be read"),
            *([self._ask_dagster(self._dagster)] if self._dagster else []),
        )
        return Health(tuple(check for group in groups for check in group))

    async def ready(self) -> Health:
        """Look only at what the next request needs: MongoDB, Redis, and a process that stays."""
        if self.is_stopping:
            output = "this process was asked to stop: send requests to another one"
            return Health((Check("process:stopping", "fail", output=output, component_type="system"),))
        services = self._services
        groups = await asyncio.gather(
            self._store("mongodb:responseTime", lambda: services.raw_store),
            self._store("redis:responseTime", lambda: services.queue),
        )
        return Health(tuple(check for group in groups for check in group))

    async def _store(self, name: str, open_: Callable[[], Store]) -> tuple[Check, ...]:
        def measure() -> tuple[float, str]:
            store = open_()
            begun_at = time.perf_counter()
            store.ping()
            return round((time.perf_counter() - begun_at) * 1000, 1), store.shown_url

        try:
            duration_ms, url = await self._calls.run(name, measure, self._deadline_s)
        except (PipelineError, DeadlineExceeded) as error:
            output = mask_secrets(str(error))
            return (Check(name, "fail", unit="ms", output=output, component_type="datastore"),)
        return (Check(name, "pass", duration_ms, "ms", component=url, component_type="datastore"),)

    async def _probe(
        self, names: Iterable[str], look: Callable[[], tuple[Check, ...]], unknown: str
    ) -> tuple[Check, ...]:
        """Look; where that fails, the checks of these names are not known, which is worth a warning."""
        names = tuple(names)
        try:
            return await self._calls.run(names[0], look, self._deadline_s)
        except (PipelineError, OSError, DeadlineExceeded):
            return tuple(Check(name, "warn", output=f"not known: {unknown}", is_known=False) for name in names)

    async def _ask_dagster(self, dagster: DagsterApi) -> tuple[Check, ...]:
        try:
            self.dagster_state = await asyncio.wait_for(dagster.state(), self._deadline_s)
            return _dagster_checks(self.dagster_state)
        except (PipelineError, TimeoutError) as error:
            self.dagster_state = None
            output = str(error) or f"Dagster's webserver does not answer within {self._deadline_s:g} s"
            return tuple(Check(name, "warn", output=output, is_known=False) for name in _DAGSTER_CHECKS)


_LEDGER_CHECKS = ("source:lastSuccess", "migration:mode", "migration:lag", "deadLetters:batches")
_QUEUE_CHECKS = ("workers:live", "queue:depth")
_DAGSTER_CHECKS = ("dagster:codeLocation", "dagster:daemons", "dagster:schedule", "dagster:sensor")


async def inspect(services: Services) -> Health:
    """Take a report from outside of the web server, which is asked for what Dagster says."""
    stores: tuple[Callable[[], object], ...] = (
        lambda: services.raw_store,
        lambda: services.queue,
        lambda: services.relational_store,
    )
    # Embedded ones that nobody uses have to be started first, for which a probe has no time.
    await asyncio.gather(*map(asyncio.to_thread, stores), return_exceptions=True)
    settings = services.settings
    host = f"[{settings.web_host}]" if ":" in settings.web_host else settings.web_host
    token = settings.api_token
    async with httpx.AsyncClient(
        base_url=f"http://{host}:{settings.web_port}",
        headers={"Authorization": f"Bearer {token.get_secret_value()}"} if token else {},
        timeout=settings.health_timeout_s,
    ) as client:
        return await Inspector(services, DagsterApi(client)).report()


def _ledger(services: Services) -> tuple[Check, ...]:
    settings, now = services.settings, utc_now()
    control = services.control()
    lag_s = round(services.ledger.backlog().lag_s(now), 3)
    dead = len(services.ledger.batches("dead", limit=1000))
    said = f": {control.reason}" if control.reason else ""
    return (
        _source(services, now),
        Check("migration:mode", "pass", "running")
        if control.is_running
        else Check("migration:mode", "warn", control.mode, output=f"{control.mode} by {control.by}{said}"),
        Check("migration:lag", "pass", lag_s, "s")
        if lag_s < settings.lag_warn_s
        else Check(
            "migration:lag", "warn", lag_s, "s", f"a post waits longer than LAG_WARN_S, {settings.lag_warn_s:g} s"
        ),
        _waiting_for_a_person("deadLetters:batches", dead, "`pipeline-poc dead-letters list`"),
    )


def _source(services: Services, now: datetime) -> Check:
    name, limit_s = "source:lastSuccess", services.settings.source_warn_s
    last = services.raw_store.last_ingestion()
    errors, last_error = last.get("errorsSince", 0), last.get("lastError")
    said = f"; {errors} failed since, the last one with {last_error}" if errors else ""
    if "lastSuccessAt" not in last:
        return Check(name, "warn", unit="s", output=f"no ingestion has gone well yet{said}")
    age_s = round((now - last["lastSuccessAt"]).total_seconds(), 3)
    if age_s > limit_s:
        return Check(name, "warn", age_s, "s", f"the last ingestion that went well is older than {limit_s:g} s{said}")
    if last.get("lastRun", {}).get("served_nothing"):
        return Check(name, "warn", age_s, "s", f"the source served nothing, though posts of it are stored{said}")
    return Check(name, "warn" if errors else "pass", age_s, "s", said.removeprefix("; ") or None)


def _quarantine(services: Services) -> tuple[Check, ...]:
    groups = services.quarantine.groups()
    count = sum(group.count for group in groups)
    reasons = ", ".join(f"{group.reason}: {group.count}" for group in groups[:10])
    return (_waiting_for_a_person("quarantine:records", count, f"{reasons}; `pipeline-poc quarantine list`"),)


def _waiting_for_a_person(name: str, count: int, output: str) -> Check:
    return Check(name, "warn", count, output=f"they wait for a person: {output}") if count else Check(name, "pass", 0)


def _queue(services: Services) -> tuple[Check, ...]:
    counts = services.queue.counts()
    depth = Check("queue:depth", "pass", counts.queued)
    if counts.workers:
        waiting = [worker.waits_for for worker in services.queue.workers() if worker.waits_for]
        said = (
            f"{len(waiting)} of {counts.workers} begin nothing until a store is well: {waiting[0]}" if waiting else None
        )
        return (Check("workers:live", "warn" if said else "pass", counts.workers, output=said), depth)
    return (Check("workers:live", "warn", 0, output="none is registered: `pipeline-poc worker` starts one"), depth)


def _disk(services: Services) -> tuple[Check, ...]:
    folder = services.settings.data_dir.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    status: Verdict = "fail" if free < _DISK_FAIL_BYTES else "warn" if free < _DISK_WARN_BYTES else "pass"
    output = None if status == "pass" else "the disk of DATA_DIR is nearly full"
    return (Check("disk:free", status, free, "bytes", output, str(existing), component_type="system"),)


def _dagster_checks(state: DagsterState) -> tuple[Check, ...]:
    now = utc_now()
    locations = tuple(
        Check("dagster:codeLocation", "fail" if error else "pass", not error, output=error, component=name)
        for name, error in state.locations.items()
    ) or (Check("dagster:codeLocation", "fail", output="the workspace names no code location"),)
    daemons = tuple(
        Check(
            "dagster:daemons",
            "pass" if daemon.is_healthy else "fail",
            round((now - daemon.heartbeat_at).total_seconds(), 1) if daemon.heartbeat_at else None,
            "s",
            None if daemon.is_healthy else "it gives no sign of life: is `dagster-daemon run` running?",
            component=daemon.name,
        )
        for daemon in state.daemons
    )
    automations = tuple(
        Check(
            name,
            "pass" if automation.is_running else "warn",
            "RUNNING" if automation.is_running else "STOPPED",
            output=None if automation.is_running else "it was stopped in Dagster's UI",
            component=automation.name,
        )
        for name, found in (("dagster:schedule", state.schedules), ("dagster:sensor", state.sensors))
        for automation in found
    )
    return (*locations, *daemons, *automations)


def _text(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
