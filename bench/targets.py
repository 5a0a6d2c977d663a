"""What is aimed at, and how figures are drawn from the results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a lap.

    Attributes:
        quantity: One of `quantities`, or a name that the lap itself gave.
    """

    contender: str
    lap: str
    quantity: str

    def by_round(self, results: Sequence[Mapping[str, Any]]) -> dict[int, float]:
        """Return it for each round that has it."""
        return {
            result["round"]: quantities(result)[self.quantity]
            for result in results
            if result["contender"] == self.contender
            and result.get("name") == self.lap
            and self.quantity in quantities(result)
        }


def quantities(result: Mapping[str, Any]) -> dict[str, float]:
    """Return everything that a lap says, by name."""
    found = {"wall, s": result["wall_s"], **result["figures"]}
    if result["peak_mb"]:
        found["peak, MB"] = max(result["peak_mb"].values())
    if result["posts"] and result["wall_s"]:
        found["posts/s"] = result["posts"] / result["wall_s"]
        found["our CPU, µs/post"] = sum(result["cpu_s"].values()) / result["posts"] * 1e6
        for server, used_s in result["server_cpu_s"].items():
            found[f"{server} CPU, µs/post"] = used_s / result["posts"] * 1e6
    return found


@dataclass(frozen=True, slots=True)
class Target:
    """A bound for a figure, or for its ratio to another one."""

    what: str
    of: Figure
    against: Figure | None
    sign: Literal["≥", "≤"]
    bound: float

    def measure(self, results: Sequence[Mapping[str, Any]]) -> "Measured | None":
        """Return what was measured; None where one of the figures is missing."""
        values = self.of.by_round(results)
        if self.against is not None:
            base = self.against.by_round(results)
            # In a round both had the same conditions.
            values = {number: value / base[number] for number, value in values.items() if base.get(number)}
        if not values:
            return None
        middle = median(values.values())
        reached = middle >= self.bound if self.sign == "≥" else middle <= self.bound
        return Measured(middle, min(values.values()), max(values.values()), reached)


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure or ratio over all rounds, and whether its median keeps to the bound."""

    median: float
    lowest: float
    highest: float
    is_reached: bool


_QUEUE = ("ours, 1 worker", "through the queue")


def _speed(contender: str, lap: str) -> Figure:
    return Figure(contender, lap, "posts/s")


def _growing(what: str, lap: str, quantity: str, bound: float = 1.2) -> Target:
    large, small = Figure("large store", lap, quantity), Figure("small store", lap, quantity)
    return Target(f"{what}, large store against small", large, small, "≤", bound)


def _whole(what: str, lap: str, quantity: str, bound: float) -> Target:
    return Target(what, Figure("up", lap, quantity), None, "≤", bound)


TARGETS = (
    Target(
        "migration through the queue, one worker, speed against the bound copy",
        _speed(*_QUEUE),
        _speed("limit, bound", "copy"),
        "≥",
        0.9,
    ),
    Target(
        "migration through the queue, one worker, speed against the text copy",
        _speed(*_QUEUE),
        _speed("limit, text", "copy"),
        "≥",
        0.7,
    ),
    Target(
        "CPU of our processes for a migrated post against the bound copy",
        Figure(*_QUEUE, "our CPU, µs/post"),
        Figure("limit, bound", "copy", "our CPU, µs/post"),
        "≤",
        1.3,
    ),
    Target("migration, speed against dlt with dicts", _speed(*_QUEUE), _speed("dlt, dicts", "load"), "≥", 4),
    Target("migration, speed against dlt with Arrow", _speed(*_QUEUE), _speed("dlt, Arrow", "load"), "≥", 2),
    Target(
        "relational upsert, rows/s against hand-built statements",
        _speed("ours, upsert", "upsert"),
        _speed("limit, stages", "upsert, text"),
        "≥",
        0.85,
    ),
    Target(
        "ingestion, speed against a bare bulk_write",
        _speed("ours, ingestion", "first ingestion"),
        _speed("limit, bulk_write", "bulk_write"),
        "≥",
        0.85,
    ),
    Target(
        "unchanged ingestion, by digest, speed against the first one",
        _speed("ours, ingestion", "unchanged, by digest"),
        _speed("ours, ingestion", "first ingestion"),
        "≥",
        3,
    ),
    Target(
        "unchanged ingestion, by content, speed against the first one",
        _speed("ours, ingestion", "unchanged, by content"),
        _speed("ours, ingestion", "first ingestion"),
        "≥",
        3,
    ),
    _growing("tick that enqueues", "ticks", "tick that enqueues, ms"),
    _growing("tick with nothing to do", "ticks", "tick with nothing to do, ms"),
    _growing("peak memory of a worker", "worker", "peak, MB"),
    _growing("peak memory of the ingestion", "ingestion", "peak, MB"),
    _growing("peak memory of the asset's run", "asset run", "peak, MB"),
    _growing("peak memory of reconcile", "reconcile", "peak, MB"),
    Target(
        "growth of Dagster's event log while the large store is migrated, MB",
        Figure("large store", "worker", "growth of the event log, MB"),
        None,
        "≤",
        5,
    ),
    Target(
        "GET /data-migration/stats of the large store, p99, ms",
        Figure("large store", "statistics", "statistics, p99, ms"),
        None,
        "≤",
        50,
    ),
    Target(
        "4 workers against 1, with 5 ms more to each store",
        _speed("ours, 4 workers far away", "through the queue"),
        _speed("ours, 1 worker far away", "through the queue"),
        "≥",
        3.5,
    ),
    _whole("stored to migrated, idle system, p95, s", "single posts", "stored to migrated, p95, s", 5),
    _whole(
        "run that ingests 100 posts, launch to success, s", "ingestion runs", "ingestion run, launch to success, s", 3
    ),
    _whole("`up` to first post migrated, s", "start", "up to first post migrated, s", 15),
    _whole("`up` to UI, s", "start", "up to UI, s", 15),
    _whole("idle CPU of everything, % of a core", "idle", "idle, % of a core", 3),
)
