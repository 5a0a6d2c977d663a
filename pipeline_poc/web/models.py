"""What the endpoints answer and take, as types; their schemas are those of `/openapi.json`."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

from pipeline_poc.control import Mode
from pipeline_poc.health import Verdict
from pipeline_poc.migration_queue import JobState
from pipeline_poc.records import INT_MAX

ExternalId = Annotated[int, Field(ge=1, le=INT_MAX)]
_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""What is stripped; written out, since languages differ in what they mean by white space."""
Words = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True,
        min_length=1,
        max_length=500,
        pattern=rf"^[^\x00]*[^\x00{_SPACE}][^\x00]*$",
    ),
]


class Answer(BaseModel):
    """An answer; its JSON has camelCase names."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)


class Wish(BaseModel):
    """The body of a request; what it does not know is refused."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")


class LiveView(Answer):
    """That the process answers."""

    status: Literal["pass"]


class HealthCheckView(Answer):
    """A health check, under the names of the draft; what does not apply is left out."""

    component_id: str = Field("", description="Which one it is, where there are several.")
    component_type: str
    observed_value: str | float | bool = Field("", description="What was seen.")
    observed_unit: str = ""
    status: Verdict
    output: str = Field("", description="What is wrong, and what to do about it.")
    time: datetime


class HealthView(Answer):
    """A report of health in the shape of `application/health+json`."""

    status: Verdict = Field(description="The worst of all checks.")
    version: str
    release_id: str
    service_id: str
    description: str
    output: str = Field("", description="What has failed; left out where nothing has.")
    checks: dict[str, list[HealthCheckView]] = Field(description="By component and measurement.")
    timestamp: datetime = Field(description="For older clients, as the next two.")
    uptime: float = Field(description="Of the process, in seconds.")
    services: dict[str, Literal["up", "down"]]


class Freshness(Answer):
    """How old the numbers beside it may be."""

    as_of: datetime = Field(description="When they were read.")
    max_age_s: float = Field(description="Oldest that they get, in seconds; about one while the stores answer quickly.")


class CountFreshness(Answer):
    """How old a count of everything stored is; counting goes on in the background, at a bounded cost."""

    counted_at: datetime | None = Field(description="When the count was made; null before the first one.")
    max_age_s: float = Field(
        description="Oldest that it gets while posts move, in seconds; follows what a count costs."
    )


class PostCounts(Answer):
    """The conservation equation, from one pass over the posts: `stored = migrated + backlog + quarantined`."""

    stored: int
    migrated: int
    backlog: int
    quarantined: int


class IngestionNumbers(Answer):
    """What an ingestion did: `fetched = new + changed + unchanged + quarantined`."""

    started_at: datetime
    fetched: int
    new: int
    changed: int
    unchanged: int
    quarantined: int
    duration_s: float
    not_modified: bool = Field(description="Whether nothing changed: the source said so, or its answer was the same.")


class IngestionStats(Answer):
    """The ingestion: what is stored, how it went, when it goes on."""

    posts: PostCounts | None = Field(description="Totals by state; null before the first count.")
    freshness: CountFreshness
    last_run: IngestionNumbers | None = Field(description="The last one that went well.")
    last_success_at: datetime | None
    errors_since: int = Field(description="Ingestions that failed since.")
    last_error: str | None = Field(description="Why the last of them failed.")
    next_scheduled_at: datetime | None
    total: int | None = Field(description="Same as posts.stored.")
    migrated: int | None = Field(description="Same as posts.migrated.")
    pending: int | None = Field(description="Same as posts.backlog.")
    last_ingested_at: datetime | None = Field(description="Same as lastSuccessAt.")


class Throughput(Answer):
    """Posts migrated a second, on average over the last minute, quarter of an hour and hour."""

    per_s_1m: float = Field(alias="perS1m")
    per_s_15m: float = Field(alias="perS15m")
    per_s_1h: float = Field(alias="perS1h")


class QueueCounts(Answer):
    """Jobs by state; the last six under the names of older clients."""

    queued: int
    started: int
    scheduled: int
    finished: int
    failed: int
    deferred: int
    waiting: int
    active: int
    completed: int
    delayed: int
    paused: bool


class WorkerView(Answer):
    """A live worker, and what it is doing."""

    name: str
    state: str = Field(description="idle, busy, suspended or started")
    batch: str | None
    busy_s: float | None = Field(description="Since it began to execute the batch, in seconds.")
    heartbeat_at: datetime | None
    succeeded: int
    failed: int


class Attempts(Answer):
    """Executions of batches."""

    total: int = Field(description="Of all batches that were ever closed.")
    retries: dict[str, int] = Field(description="Failed executions that were or will be repeated, by type of error.")
    most_in_backlog: int = Field(description="Most executions that a batch of the backlog has seen.")


class Waiting(Answer):
    """The backlog as the ledger has it, live: batches, and the posts that they were created for."""

    batches: int
    posts: int


class RelationalCounts(Answer):
    """The relational store."""

    rows: int | None = Field(description="Null while it is away or not counted yet.")
    total: int | None = Field(description="Same as rows.")


class MigrationStats(Answer):
    """The migration: what is where, how fast it moves, who moves it."""

    mode: Mode
    posts: PostCounts | None
    freshness: CountFreshness
    mongodb: dict[str, int | None] = Field(description="Same as posts, for older clients.")
    mysql: RelationalCounts
    queue: QueueCounts | None = Field(description="Null while Redis is away.")
    waiting: Waiting
    lag_s: float = Field(description="Age of the oldest post that is not migrated, in seconds.")
    throughput: Throughput
    attempts: Attempts
    workers: list[WorkerView] | None = Field(description="Null while Redis is away.")
    live: Freshness = Field(description="How fresh everything is that is not a count of all posts or rows.")


class RunView(Answer):
    """A run of Dagster."""

    run_id: str
    status: str = Field(description="Dagster's word, such as STARTED, SUCCESS or FAILURE.")
    url: str = Field(description="Its page in the UI.")


class IngestionResultView(Answer):
    """What the run did."""

    fetched: int
    new: int
    changed: int
    unchanged: int
    quarantined: int
    inserted: int = Field(description="Same as new.")
    duplicates: int = Field(description="Same as unchanged.")
    errors: int = Field(description="Same as quarantined.")
    started_at: datetime | None
    duration_ms: int


class IngestionTriggered(Answer):
    """A run was launched, or one under way was joined."""

    success: bool = Field(description="False where the run failed.")
    message: str
    joined: bool = Field(description="Whether a run that was under way already is the answer.")
    run: RunView
    result: IngestionResultView | None = Field(description="Null until the run has ended well.")


class MigrationTriggered(Answer):
    """The backlog was put on the queue, as far as the window allows; workers go on from there."""

    success: bool
    message: str
    adopted: int = Field(description="Posts that were in no batch, and are in one now.")
    posts: int = Field(description="Posts of the jobs that were enqueued now.")
    jobs: int = Field(description="Jobs that were enqueued now.")
    outstanding: int = Field(description="Jobs that wait or are executed, these included.")


class JobError(Answer):
    """Why an attempt failed; neither stack nor payload."""

    type: str
    message: str


class JobView(Answer):
    """A job of the queue; the last eight fields are those of older clients."""

    id: str
    state: JobState
    batch: str
    posts: int | None
    attempt: int = Field(description="Counts from 1; 0 before the first.")
    max_attempts: int
    enqueued_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    next_retry_at: datetime | None
    error: JobError | None
    worker: str | None
    name: str
    attempts_made: int
    created_at: datetime | None
    processed_at: datetime | None
    finished_at: datetime | None
    failed_reason: str | None
    result: dict[str, int] | None


class QueueJobs(Answer):
    """Jobs, newest first."""

    counts: QueueCounts
    jobs: dict[str, list[JobView]] = Field(
        description="By state. Asked for one state: that one, page by page. Else the newest of each state, under the "
        "names of older clients: waiting, active, delayed, completed, failed."
    )
    next_cursor: str | None = Field(description="For the next page; null where this is the last one.")


class ModeView(Answer):
    """The migration's mode."""

    mode: Mode
    since: datetime | None
    by: str | None
    reason: str | None
    outstanding: int | None = Field(description="Jobs that wait or are executed; null while Redis is away.")


class ModeWish(Wish):
    """Why the mode is changed; shown to everybody who asks for it."""

    reason: Words | None = None


class SelectionWish(Wish):
    """Which ones: some ids, a reason code, or all. Exactly one of the three."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": [name], "properties": {name: {"type": type_}}}
                for name, type_ in {"ids": "array", "reason": "string", "all": "boolean"}.items()
            ]
        }
    )

    ids: list[Annotated[str, StringConstraints(min_length=1, max_length=200)]] | None = Field(
        None, min_length=1, max_length=1000
    )
    reason: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    all: Literal[True] | None = None


class DiscardWish(SelectionWish):
    """Which ones to discard, and why; the reason is kept with them."""

    because: Words


class PassportBatch(Answer):
    """The batch in which a version of a post is migrated; only its id where the ledger has forgotten it."""

    id: str | None
    state: str | None
    created_at: datetime | None
    closed_at: datetime | None
    attempts: int | None
    worker: str | None
    error: str | None


class PassportQuarantine(Answer):
    """Why a post is in quarantine."""

    reason: str
    meaning: str
    message: str
    at: datetime | None
    is_discarded: bool


class PassportView(Answer):
    """Everything that is known of one post."""

    external_id: int
    state: Literal["migrated", "backlog", "quarantined", "unknown"]
    first_seen_at: datetime | None
    changed_at: datetime | None = Field(description="When this version arrived.")
    content_hash: str | None
    version: int | None = Field(description="Grows with each content: milliseconds since 1970, or more.")
    batch: PassportBatch | None
    job: JobView | None
    row: dict[str, Any] | None = Field(description="All columns; null where there is no row.")
    quarantine: PassportQuarantine | None
    agrees: bool | None = Field(description="Whether both stores are as they should be; null where that can't be told.")
    verdict: str
    away: dict[str, str] = Field(description="The error of each store that could not be asked.")


class QuarantineGroupView(Answer):
    """What is quarantined for one reason."""

    kind: Literal["record", "post"]
    reason: str
    meaning: str
    count: int
    first_at: datetime | None
    last_at: datetime | None


class QuarantineGroups(Answer):
    """The quarantine by reason."""

    groups: list[QuarantineGroupView]
    total: int


class QuarantineItemView(Answer):
    """A record that never became a post, or a post that the relational store refuses."""

    id: str
    kind: Literal["record", "post"]
    reason: str
    message: str
    external_id: int | None
    count: int = Field(description="Arrivals of the same record.")
    first_at: datetime | None
    last_at: datetime | None
    payload: str = Field(description="The record as JSON text, exactly as it arrived.")
    discarded: dict[str, Any] | None = Field(description="Why, when and by whom; null unless it was discarded.")


class QuarantineItems(Answer):
    """A page of the quarantine, newest first."""

    items: list[QuarantineItemView]
    next_cursor: str | None


class Requeued(Answer):
    """What was requeued, or would be."""

    dry_run: bool
    selected: int
    requeued: int


class QuarantineRequeued(Requeued):
    """What became of records and posts that were tried again."""

    still_invalid: int = Field(description="Records that today's rules reject, too; they stay.")
    superseded: int = Field(description="Records whose post arrived in a newer, valid version since.")


class Discarded(Answer):
    """What was discarded, or would be."""

    dry_run: bool
    selected: int
    discarded: int


class DeadLetterGroupView(Answer):
    """Dead letters with the same type of error."""

    reason: str
    batches: int
    posts: int
    first_at: datetime | None
    last_at: datetime | None


class DeadLetterGroups(Answer):
    """Dead letters by type of error."""

    groups: list[DeadLetterGroupView]
    total: int


class DeadLetterView(Answer):
    """A batch that waits for a person."""

    id: str
    reason: str
    error: str
    posts: int
    attempts: int
    worker: str | None
    created_at: datetime
    died_at: datetime | None
    external_ids: list[Any] | None = Field(description="Some of the posts that wait in it; null in lists.")


class DeadLetterItems(Answer):
    """A page of dead letters, newest first."""

    items: list[DeadLetterView]
    next_cursor: str | None


class ReconciliationView(Answer):
    """The last comparison of both stores, or the one that is under way."""

    state: Literal["none", "running", "done", "failed", "unknown"] = Field(
        description="`unknown` only in the overview, while MongoDB is away."
    )
    started_at: datetime | None = None
    ended_at: datetime | None = None
    ok: bool | None = None
    stored: int | None = None
    migrated: int | None = None
    backlog: int | None = None
    quarantined: int | None = None
    rows: int | None = None
    missing: int | None = None
    extra: int | None = None
    stale: int | None = None
    wrongly_flagged: int | None = None
    duration_s: float | None = None
    error: str | None = None
    ids: dict[str, list[int]] = Field(default_factory=dict, description="At most 1,000 of each fault.")


class Repaired(Answer):
    """Mismatches that were put back into the backlog, or would be."""

    dry_run: bool
    repaired: int = Field(description="Posts that are in the backlog again.")
    left: dict[str, list[int]] = Field(
        description="Ids by fault of what migrating again can't repair, such as extra rows; at most 1,000 each."
    )


class SourceView(Answer):
    """The source, as far as ingestions have seen it."""

    status: Verdict
    url: str
    is_stand_in: bool
    last_success_at: datetime | None
    errors_since: int | None
    last_error: str | None
    next_at: datetime | None
    last_run: IngestionNumbers | None


class RawStoreView(Answer):
    """MongoDB."""

    status: Verdict
    stored: int | None
    migrated: int | None
    backlog: int | None
    quarantined: int | None
    counted_at: datetime | None


class QueueView(Answer):
    """Redis."""

    status: Verdict
    queued: int | None
    started: int | None
    scheduled: int | None
    finished: int | None
    failed: int | None
    deferred: int | None


class RelationalView(Answer):
    """MySQL, MariaDB or SQLite."""

    status: Verdict
    rows: int | None


class WaitingView(Answer):
    """The backlog as the ledger has it; null while MongoDB is away."""

    batches: int | None
    posts: int | None


class ThroughputView(Answer):
    """Posts migrated a second; null while MongoDB is away."""

    per_s_1m: float | None = Field(alias="perS1m")
    per_s_15m: float | None = Field(alias="perS15m")
    per_s_1h: float | None = Field(alias="perS1h")


class Sample(Answer):
    """A point of the plots; null where MongoDB was away."""

    at: float = Field(description="Seconds since 1970.")
    migrated_per_s: float | None
    backlog: int | None
    lag_s: float | None


class CheckView(Answer):
    """A health check."""

    name: str
    component: str | None
    status: Verdict
    observed_value: Any
    observed_unit: str | None
    output: str | None
    time: datetime


class Overview(Answer):
    """Everything that the status page shows; null stands for what a store that is away does not tell."""

    entity: str
    entities: list[str]
    at: datetime
    status: Verdict
    mode: Mode | None
    mode_reason: str | None
    mode_since: datetime | None
    source: SourceView
    raw_store: RawStoreView
    queue: QueueView
    relational_store: RelationalView
    waiting: WaitingView
    lag_s: float | None
    throughput: ThroughputView
    history: list[Sample]
    workers: list[WorkerView]
    recent_jobs: list[JobView]
    quarantine: list[QuarantineGroupView]
    dead_letters: list[DeadLetterGroupView]
    checks: list[CheckView]
    reconciliation: ReconciliationView
