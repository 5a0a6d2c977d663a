"""The pipeline's state in one report: what answers, what is stored, what waits."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline_poc.clock import utc_now
from pipeline_poc.errors import PipelineError
from pipeline_poc.services import Services


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One service.

    Attributes:
        url: Without secrets; where it is not known yet, the name of what would be started.
        error: Why it is not available; None where it is.
    """

    name: str
    url: str
    error: str | None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A batch that waits for a person, and why."""

    batch: str
    posts: int
    attempts: int
    error: str


@dataclass(slots=True)
class Status:
    """The report.

    Attributes:
        services: Source, raw store, relational store and queue.
        source_is_stand_in: Whether the posts are made up, because the public API is not reached.
        posts: Posts by state, while the raw store answers.
        quarantined_records: Records that never became posts, by reason code.
        backlog: Batches by state, and the age in seconds of the oldest post not migrated.
        queue: Jobs by state, and live workers, while Redis answers.
        dead_letters: Batches that wait for a person.
    """

    services: list[ServiceStatus] = field(default_factory=list)
    source_is_stand_in: bool = False
    posts: dict[str, int] | None = None
    quarantined_records: dict[str, int] | None = None
    backlog: dict[str, float] | None = None
    queue: dict[str, int] | None = None
    dead_letters: list[DeadLetter] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every service answers."""
        return all(service.error is None for service in self.services)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {"ok": self.ok, **asdict(self)}


def collect(services: Services) -> Status:
    """Ask every service, one after the other; a service that is away is reported, not raised."""
    status = Status(source_is_stand_in=services.source.is_stand_in)
    _ask(status, "source", lambda: services.source.shown_url, lambda: services.source.ping())
    if _ask(status, "MongoDB", lambda: services.raw_store.shown_url, lambda: services.raw_store.ping()):
        status.posts = asdict(services.raw_store.counts())
        status.quarantined_records = services.raw_store.quarantined_record_counts()
        oldest = services.ledger.oldest_waiting()
        dead = services.ledger.batches("dead")
        status.dead_letters = [DeadLetter(batch.id, batch.size, batch.attempts, batch.error or "") for batch in dead]
        status.backlog = {
            "open_batches": len(services.ledger.batches("open")),
            "dead_batches": len(dead),
            "lag_s": round((utc_now() - oldest).total_seconds(), 3) if oldest else 0.0,
        }
    _ask(
        status,
        "relational store",
        lambda: services.relational_store.shown_url,
        lambda: services.relational_store.ping(),
    )
    if _ask(status, "Redis", lambda: services.queue.shown_url, lambda: services.queue.ping()):
        status.queue = asdict(services.queue.counts())
    return status


def _ask(status: Status, name: str, url: Callable[[], str], ping: Callable[[], None]) -> bool:
    shown = ""
    try:
        shown = url()
        ping()
    except PipelineError as error:
        status.services.append(ServiceStatus(name, shown, str(error)))
        return False
    status.services.append(ServiceStatus(name, shown, None))
    return True
