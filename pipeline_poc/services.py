"""The composition root: the only place that constructs the source, the stores and the queue."""

import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Lock
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, overload
from urllib.parse import urlsplit

from pipeline_poc import (
    control,
    desk,
    embedded,
    enqueueing,
    failpoints,
    ingestion,
    migration,
    passport,
    reconciliation,
    replay,
    tracing,
)
from pipeline_poc.clock import utc_now
from pipeline_poc.control import Control, Mode
from pipeline_poc.dead_letters import DeadLetters
from pipeline_poc.enqueueing import TickPolicy, TickResult
from pipeline_poc.entities import ENTITIES
from pipeline_poc.errors import SettingsError
from pipeline_poc.idempotency import IdempotencyKeys
from pipeline_poc.ingestion import IngestionResult
from pipeline_poc.ledger import Ledger
from pipeline_poc.migration import MigrationResult
from pipeline_poc.migration_queue import MigrationQueue
from pipeline_poc.mongo import Mongo
from pipeline_poc.mongo_schema import MongoSchema
from pipeline_poc.post_selection import PostSelection
from pipeline_poc.posts import POSTS
from pipeline_poc.quarantine import Quarantine
from pipeline_poc.raw_store import RawStore
from pipeline_poc.reconciliation import Fault, Reconciliation, reconcile
from pipeline_poc.records import Entity
from pipeline_poc.relational_store import RelationalStore
from pipeline_poc.repairs import Repairs
from pipeline_poc.schema import Schema, Upgrade
from pipeline_poc.selection import Selection
from pipeline_poc.settings import PUBLIC_SOURCE_URL, Settings
from pipeline_poc.source import Source
from pipeline_poc.state import State

logger = logging.getLogger(__name__)

T = TypeVar("T")


class _opened(Generic[T]):  # noqa: N801 - reads as the decorator it is
    """A property that is opened by its first use and kept; several threads open it once."""

    def __init__(self, open_: Callable[[Any], T]) -> None:
        self._open = open_
        self.__doc__ = open_.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, services: None, owner: type) -> Self: ...

    @overload
    def __get__(self, services: "Services", owner: type) -> T: ...

    def __get__(self, services: "Services | None", owner: type) -> "T | Self":
        if services is None:
            return self
        # A lock for each: one that can't be reached must not keep the others shut.
        with services._locks.setdefault(self._name, Lock()):
            if self._name not in services._kept:
                services._kept[self._name] = self._open(services)
            value: T = services._kept[self._name]
            return value


class Services:
    """The source, the stores and the queue that the settings name; each is opened when first used.

    A store whose URL is set is that store, whatever happens; one whose URL is not set is embedded.
    Close it, or use it as a context manager: embedded services stop with their last user.

    Args:
        settings: Say which they are.
        entity: Whose pipeline this is.
        answer_timeout_s: Longest wait for the answer to a single question, in seconds.
        shared: Whose connections are used; see `of`.

    Raises (every property):
        ServiceUnavailable: A store is away.
        ServiceStartError: An embedded service does not start, or is not installed.
        SettingsError: A URL is not valid.
        SchemaError: A store has a schema that this code can't work with; in production, one that is not upgraded.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        entity: Entity = POSTS,
        answer_timeout_s: float = 60.0,
        shared: "Services | None" = None,
    ) -> None:
        self.settings = settings
        self.entity = entity
        """Whose pipeline this is."""
        self._shared = shared
        self._answer_timeout_s = answer_timeout_s
        self._kept: dict[str, Any] = {}
        self._locks: dict[str, Lock] = {}
        self._resources = ExitStack()
        self._leases: list[embedded.Lease] = []
        if settings.fail_points:
            failpoints.arm(settings.fail_points)
        tracing.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self, *, wait: bool = False) -> None:
        """Close all connections and leases.

        Args:
            wait: Return when those embedded services that nobody else uses have stopped.
        """
        self._resources.close()
        leases, self._leases = self._leases, []
        # Each takes a second or two to stop: all at once, if somebody waits for them.
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda lease: lease.close(wait), leases))

    def of(self, name: str) -> "Services":
        """Return the pipeline of another entity, on the same connections; it is closed with this one.

        Raises:
            SettingsError: ENTITIES does not name it.
        """
        if name == self.entity.name:
            return self
        if name not in self.settings.entities:
            raise SettingsError(f"{name} is none of ENTITIES ({', '.join(self.settings.entities)})")
        with self._locks.setdefault("of", Lock()):
            if f"of {name}" not in self._kept:
                other = Services(
                    self.settings, entity=ENTITIES[name], answer_timeout_s=self._answer_timeout_s, shared=self
                )
                self._resources.callback(other.close)
                self._kept[f"of {name}"] = other
            found: Services = self._kept[f"of {name}"]
            return found

    def pipelines(self) -> "list[Services]":
        """Return the pipelines of all ENTITIES."""
        return [self.of(name) for name in self.settings.entities]

    @_opened
    def source(self) -> Source:
        """The API: SOURCE_URL, else the stand-in in tests or where `up` had to start it, else the public API."""
        settings = self.settings
        stand_in = None
        if settings.may_use_stand_in:
            is_test = settings.environment == "test"
            stand_in = self._embedded("source") if is_test else embedded.running("source", settings.data_dir)
        url = settings.source_url.get_secret_value() if settings.source_url else stand_in or PUBLIC_SOURCE_URL
        source = Source(
            _beside_posts(url, self.entity),
            timeout_s=settings.source_timeout_s,
            policy=settings.source_policy,
            is_stand_in=stand_in is not None,
        )
        self._resources.callback(source.close)
        return source

    @_opened
    def _mongo_server(self) -> Mongo:
        if self._shared is not None:
            return self._shared._mongo_server.of(self.entity)
        settings = self.settings
        url = settings.mongo_url.get_secret_value() if settings.mongo_url else self._embedded("mongo")
        mongo = Mongo(
            url,
            settings.mongo_database,
            timeout_s=settings.store_timeout_s,
            answer_timeout_s=self._answer_timeout_s,
        )
        self._resources.callback(mongo.close)
        return mongo.of(self.entity)

    @_opened
    def _mongo(self) -> Mongo:
        """MongoDB, with its schema."""
        if self._shared is not None:
            return self._shared._mongo.of(self.entity)
        self._mongo_schema.ensure(may_upgrade=self._may_upgrade)
        return self._mongo_server

    @property
    def _mongo_schema(self) -> MongoSchema:
        return MongoSchema(
            self._mongo_server, ledger_retention_s=self.settings.ledger_retention_s, entities=self._entities
        )

    @property
    def _entities(self) -> list[Entity]:
        return [ENTITIES[name] for name in self.settings.entities]

    @property
    def _may_upgrade(self) -> bool:
        """Whether schemas are upgraded by whoever comes first; in production, somebody decides when."""
        return self.settings.environment != "production"

    @_opened
    def raw_store(self) -> RawStore:
        """MongoDB."""
        return RawStore(self._mongo)

    @_opened
    def ledger(self) -> Ledger:
        """The ledger of batches."""
        return Ledger(self._mongo)

    @_opened
    def queue(self) -> MigrationQueue:
        """The migration queue."""
        settings = self.settings
        queue = MigrationQueue(
            settings.redis_url.get_secret_value() if settings.redis_url else self._embedded("redis"),
            self.entity.queue(settings.queue_name),
            timeout_s=settings.store_timeout_s,
            job_timeout_s=settings.job_timeout_s,
        )
        self._resources.callback(queue.close)
        return queue

    @property
    def redis_url(self) -> str | None:
        """Where Redis is; None where it is embedded, and not up. May hold a password."""
        url = self.settings.redis_url
        return url.get_secret_value() if url else embedded.running("redis", self.settings.data_dir)

    @_opened
    def _relational_server(self) -> RelationalStore:
        if self._shared is not None:
            return self._shared._relational_server.of(self.entity)
        settings = self.settings
        url = (
            settings.sql_url.get_secret_value()
            if settings.sql_url
            else f"sqlite:///{settings.data_dir.absolute() / 'relational.sqlite'}"
        )
        store = RelationalStore(
            url,
            timeout_s=settings.store_timeout_s,
            answer_timeout_s=self._answer_timeout_s,
            entities=self._entities,
        )
        self._resources.callback(store.close)
        return store.of(self.entity)

    @_opened
    def relational_store(self) -> RelationalStore:
        """The relational store, with its schema."""
        if self._shared is not None:
            return self._shared.relational_store.of(self.entity)
        self._relational_server.ensure_schema(may_upgrade=self._may_upgrade)
        return self._relational_server

    @_opened
    def quarantine(self) -> Quarantine:
        """What is quarantined."""
        return Quarantine(self._mongo)

    @_opened
    def dead_letters(self) -> DeadLetters:
        """The batches that wait for a person."""
        return DeadLetters(self._mongo)

    @_opened
    def state(self) -> State:
        """What the pipeline remembers about itself."""
        return State(self._mongo)

    @property
    def _common_state(self) -> State:
        return State(self._mongo.of(POSTS))

    @_opened
    def idempotency_keys(self) -> IdempotencyKeys:
        """The keys of requests that must act once."""
        return IdempotencyKeys(self._mongo)

    def _embedded(self, kind: embedded.Kind) -> str:
        lease = embedded.lease(kind, self.settings.data_dir)
        self._leases.append(lease)
        return lease.url

    def open_all(self) -> None:
        """Open and check the stores and the queue now, so that what is wrong shows at once."""
        self.raw_store.ping()
        self.ledger.batches("open", limit=1)
        self.queue.ping()
        self.relational_store.ping()

    def schemas(self) -> list[Schema]:
        """Return which schemas the stores have; changes nothing."""
        return [self._mongo_schema.read(), self._relational_server.schema()]

    def upgrade_schemas(self) -> Iterator[Upgrade]:
        """Bring the schema of one store after the other to what this code needs; idempotent."""
        yield self._mongo_schema.upgrade()
        yield self._relational_server.upgrade_schema()

    def schema_sql(self) -> str:
        """Return what an upgrade would execute in the relational store; nothing where there is nothing to do."""
        return self._relational_server.schema_sql()

    def start_stand_in(self) -> None:
        """Start the stand-in for the public API; other processes of this DATA_DIR use it, too."""
        self._embedded("source")
        self._kept.pop("source", None)

    def adopt(self) -> int:
        """Give every unmigrated post a batch; returns the number of posts that had none."""
        adopted = 0
        while moved := enqueueing.adopt(self.raw_store, self.ledger, self._tick_policy):
            adopted += moved
        return adopted

    def ingest(self, *, full: bool = False) -> IngestionResult:
        """Bring the raw store to what the source serves now.

        Args:
            full: Ask for everything, whatever is kept of the last answer.
        """
        if full:
            self.raw_store.forget_answers()
        return ingestion.ingest(self.source, self.raw_store, self.ledger, batch_size=self.settings.batch_size)

    def tick(self) -> TickResult:
        """Bring the queue in line with the backlog."""
        return enqueueing.tick(
            self.raw_store,
            self.ledger,
            self.queue,
            self._relational_store_is_up,
            self._tick_policy,
            mode=self.control().mode,
        )

    def control(self) -> Control:
        """Return the mode of the migration of all entities."""
        return control.load(self._common_state)

    def set_mode(self, mode: Mode, *, by: str, reason: str | None = None) -> Control:
        """Pause, drain or resume the migration of all entities; returns what is in force now."""
        wanted = Control(mode, utc_now(), by, reason)
        control.save(self._common_state, wanted)
        logger.info("migration mode set", extra={"mode": mode, "by": by, "reason": reason})
        return wanted

    def require_running(self) -> None:
        """Refuse to begin a migration while it is paused or drains.

        Raises:
            MigrationPausedError: It is.
        """
        self.control().require_running()

    def migrate(self, batch_ids: Iterable[str] | None = None) -> MigrationResult:
        """Migrate these batches, or the whole backlog, in this process."""
        return migration.migrate(
            migration.open_batches(self.ledger) if batch_ids is None else batch_ids,
            self.raw_store,
            self.ledger,
            self.relational_store,
            worker=self.worker_name,
            heartbeat_interval_s=self.settings.heartbeat_interval_s,
        )

    def requeue_quarantined(self, selection: Selection, *, dry_run: bool = False) -> desk.Requeued:
        """Put back into the backlog what of the quarantine is valid by today's rules."""
        return desk.requeue_quarantined(selection, self.quarantine, self.raw_store, self.ledger, dry_run=dry_run)

    def discard_quarantined(
        self, selection: Selection, because: str, by: str, *, dry_run: bool = False
    ) -> desk.DiscardResult:
        """Keep what is selected of the quarantine for the record only."""
        return desk.discard_quarantined(selection, because, by, self.quarantine, dry_run=dry_run)

    def requeue_dead_letters(self, selection: Selection, *, dry_run: bool = False) -> desk.RequeuedBatches:
        """Put dead letters back into the backlog."""
        return desk.requeue_dead_letters(selection, self.dead_letters, self.ledger, dry_run=dry_run)

    def discard_dead_letters(
        self, selection: Selection, because: str, by: str, *, dry_run: bool = False
    ) -> desk.DiscardResult:
        """Give dead letters up: their posts go to quarantine."""
        return desk.discard_dead_letters(
            selection,
            because,
            by,
            dead_letters=self.dead_letters,
            quarantine=self.quarantine,
            ledger=self.ledger,
            dry_run=dry_run,
        )

    def passport(self, external_id: int) -> passport.Passport | None:
        """Collect what is known of a post; None where neither store knows it."""
        return passport.passport(
            external_id, self.raw_store, self.ledger, lambda: self.queue, lambda: self.relational_store
        )

    def reconcile(self, on_progress: Callable[[int], None] = lambda _: None) -> Reconciliation:
        """Compare both stores, post by post, and keep the outcome."""

        def compare(show_life: Callable[[int], None]) -> Reconciliation:
            def progress(compared: int) -> None:
                show_life(compared)
                on_progress(compared)

            return reconcile(self.raw_store, self.ledger, self.relational_store, on_progress=progress)

        return reconciliation.keep(compare, self.state)

    def reconcile_sample(self, size: int) -> Reconciliation:
        """Compare about so many ids, spread over all of them; the outcome is not kept."""
        parts = reconciliation.spread(self.raw_store.id_range(), size)
        return reconcile(self.raw_store, self.ledger, self.relational_store, parts=parts)

    def last_reconciliation(self) -> reconciliation.LastReconciliation:
        """Return how the latest comparison went."""
        return reconciliation.last(self.state)

    def repair(self, faults: Mapping[Fault, Sequence[int]] | None = None, *, dry_run: bool = False) -> desk.Repair:
        """Put posts with faults back into the backlog; None means all that a comparison finds now."""
        return desk.repair(
            self.reconcile().faults if faults is None else faults,
            Repairs(self._mongo),
            self.ledger,
            self.relational_store,
            dry_run=dry_run,
        )

    def replay(
        self,
        selection: PostSelection,
        *,
        dry_run: bool = False,
        on_progress: Callable[[replay.Replay], None] = lambda _: None,
    ) -> replay.Replay:
        """Put migrated posts back into the backlog, so that their rows are written again."""
        return replay.replay(
            selection,
            self.raw_store,
            Repairs(self._mongo),
            self.ledger,
            self.relational_store,
            batch_size=self.settings.batch_size,
            dry_run=dry_run,
            on_progress=on_progress,
        )

    @property
    def worker_name(self) -> str:
        """How this process signs what it executes in the ledger."""
        return f"{socket.gethostname()}-{os.getpid()}"

    @property
    def _tick_policy(self) -> TickPolicy:
        settings = self.settings
        return TickPolicy(
            window=settings.queue_window,
            batch_size=settings.batch_size,
            heartbeat_timeout_s=settings.heartbeat_timeout_s,
            filling_timeout_s=settings.filling_timeout_s,
            retry_cap_s=settings.retry_cap_s,
        )

    def _relational_store_is_up(self) -> bool:
        return enqueueing.store_is_up(lambda: self.relational_store.ping())


def _beside_posts(url: str, entity: Entity) -> str:
    """Return where an entity is served, by the URL of the posts: ``…/posts?…`` becomes ``…/comments?…``."""
    if entity is POSTS:
        return url
    parts = urlsplit(url)
    parent, _, last = parts.path.rpartition("/")
    if last != POSTS.name:
        raise SettingsError(f"SOURCE_URL has to end with /{POSTS.name} where ENTITIES names others: it does not")
    return parts._replace(path=f"{parent}/{entity.name}").geturl()
