"""Who takes part: each in processes of its own, on stores of its own."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Size = Literal["posts", "few", "small", "large", "slow"]
SIZES: Mapping[Size, str] = {
    "posts": "for everything that is timed",
    "few": "where each post is a job of its own",
    "small": "in the smaller store",
    "large": "in the larger store",
    "slow": "where the stores answer late",
}
"""The numbers of posts that a run has, and what each is for."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One who takes part.

    Attributes:
        steps: Functions as `module:function`, run one after the other on the same stores.
        size: How many posts it gets.
        has_backlog: Whether these are stored, and wait to be migrated, before it begins.
        is_repeated: Whether it takes part in each round; else in the first one only.
        options: For its steps.
        settings: Of the pipeline, other than the defaults, as environment variables.
    """

    name: str
    group: str
    steps: tuple[str, ...]
    size: Size = "posts"
    has_backlog: bool = True
    is_repeated: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)


def _queue(name: str, group: str, workers: int, **more: Any) -> Contender:
    options = {"workers": workers} | more.pop("options", {})
    return Contender(name, group, ("bench.workers:queue",), has_backlog=False, options=options, **more)


_SLOW: Mapping[str, Any] = {
    "size": "slow",
    "options": {"latency_ms": 5.0},
    # Small batches: most of the time has to be waiting, or the cores of this machine would be the limit.
    "settings": {"BATCH_SIZE": "100", "QUEUE_WINDOW": "1000"},
}
_GROWING = (
    "bench.growth:ingest",
    "bench.growth:tick",
    "bench.workers:one_worker",
    "bench.growth:reconcile",
    "bench.growth:statistics",
    "bench.asset:run_again",
)

CONTENDERS = (
    Contender("limit, bound", "limit", ("bench.limit:bound",)),
    Contender("limit, text", "limit", ("bench.limit:text",)),
    Contender("limit, stages", "limit", ("bench.limit:stages",)),
    Contender("dlt, dicts", "peers", ("bench.peers:dlt_dicts",)),
    Contender("dlt, Arrow", "peers", ("bench.peers:dlt_arrow",)),
    Contender("RQ, a job each", "peers", ("bench.peers:rq_each",), size="few"),
    Contender("ours, direct", "migration", ("bench.ours:migrate",)),
    _queue("ours, 1 worker", "migration", 1),
    _queue("ours, 2 workers", "migration", 2),
    _queue("ours, 4 workers", "migration", 4),
    Contender("ours, asset", "migration", ("bench.asset:run",)),
    Contender("ours, upsert", "migration", ("bench.ours:upsert",), has_backlog=False),
    Contender("ours, queue alone", "migration", ("bench.ours:enqueue",), has_backlog=False),
    Contender("limit, bulk_write", "ingestion", ("bench.ours:bulk_write",), has_backlog=False),
    Contender("ours, ingestion", "ingestion", ("bench.ours:ingest",), has_backlog=False),
    _queue("ours, 1 worker far away", "scaling", 1, **_SLOW),
    _queue("ours, 4 workers far away", "scaling", 4, **_SLOW),
    Contender("small store", "growth", _GROWING, size="small", has_backlog=False, is_repeated=False),
    Contender("large store", "growth", _GROWING, size="large", has_backlog=False, is_repeated=False),
    Contender("up", "whole", ("bench.whole:up",), has_backlog=False),
)
GROUPS = tuple(dict.fromkeys(contender.group for contender in CONTENDERS))


def of(groups: Collection[str], *, is_small: bool) -> list[Contender]:
    """Return the contenders of some groups; for a small run, one of those that differ in their numbers only."""
    found = [contender for contender in CONTENDERS if contender.group in groups]
    if not is_small:
        return found
    kinds: dict[tuple[str, ...], list[Contender]] = {}
    for contender in found:
        kinds.setdefault(contender.steps, []).append(contender)
    # The one with most options does everything that the others do.
    return [max(kind, key=lambda contender: len(contender.options)) for kind in kinds.values()]
