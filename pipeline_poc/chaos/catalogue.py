"""The catalogue of faults: what can be struck, in which step, and how it is known that it did strike."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from pipeline_poc import failpoints
from pipeline_poc.chaos.actors import Role
from pipeline_poc.chaos.arena import Arena, Store
from pipeline_poc.chaos.proxy import Fault as ProxyFault
from pipeline_poc.chaos.world import World

Begin = Callable[[Arena, World, Random], None]
HasStruck = Callable[[Arena], bool]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        name: As in reports.
        roles: Steps of the pipeline in which it can be struck.
        point: The fail point, and what happens there; empty where it comes from outside.
        begin: Strikes from outside, before the step begins.
        has_struck: Whether the step met it; None where that can be no question.
        batch: Posts that a batch needs to have, or the step does not meet it.
    """

    name: str
    roles: tuple[Role, ...]
    point: str = ""
    begin: Begin | None = None
    has_struck: HasStruck | None = None
    batch: int = 0


_EVERY: tuple[Role, ...] = ("ingest", "tick", "work", "migrate")
_WRITERS: tuple[Role, ...] = ("work", "migrate")
_ROLES_OF_POINTS: dict[str, tuple[Role, ...]] = {
    "ingestion": ("ingest",),
    "tick": ("tick",),
    "worker": ("work",),
    "migration": _WRITERS,
}
_ROLES_OF_STORES: dict[Store, tuple[Role, ...]] = {
    "source": ("ingest",),
    "mongo": _EVERY,
    "redis": ("tick", "work"),
    "sql": _WRITERS,
}
_NETWORK: dict[str, Callable[[Random], ProxyFault]] = {
    "down at the start": lambda _: ProxyFault("down"),
    "down in the middle": lambda rng: ProxyFault("down", after_bytes=_some_bytes(rng)),
    "latency of 2 s": lambda rng: ProxyFault("latency", seconds=2.0, after_bytes=_none_or_some_bytes(rng)),
    "latency of 50 ms": lambda _: ProxyFault("latency", seconds=0.05),
    "blackhole": lambda rng: ProxyFault("blackhole", after_bytes=_none_or_some_bytes(rng)),
    "reset": lambda rng: ProxyFault("reset", after_bytes=_none_or_some_bytes(rng)),
    "cut after N bytes": lambda rng: ProxyFault("cut", after_bytes=_some_bytes(rng)),
    "slow close": lambda _: ProxyFault("slow_close", seconds=0.5),
    "narrow band": lambda _: ProxyFault("bandwidth", bytes_per_s=50_000),
}
_MONGO_ERRORS = {"not primary": 10107, "write conflict": 112}
_CURSOR_LOST = 43
_MORE_THAN_ONE_ANSWER = 150
"""Documents of which a cursor brings the first hundred only."""
_MARIADB_ERRORS = {
    "deadlock (1213)": (1213, "40001"),
    "lock wait time-out (1205)": (1205, "HY000"),
    "disk full (1021)": (1021, "HY000"),
    "server gone (2006)": (2006, "HY000"),
    "read-only (1290)": (1290, "HY000"),
    "table full (1114)": (1114, "HY000"),
}
_SOURCE: dict[str, dict[str, str]] = {
    "500": {"status": "500"},
    "429 with Retry-After": {"status": "429", "retry_after": "1", "fail_first": "1"},
    "503 at first": {"fail_first": "1"},
    "truncated JSON": {"truncate": "true"},
    "connection dropped": {"drop": "true"},
    "HTML": {"html": "true"},
    "an object": {"object": "true"},
}
_RECORDS: dict[str, Callable[[World, Random], None]] = {
    "a bad record": lambda world, _: world.spoil(1),
    "many bad records": lambda world, _: world.spoil(12),
    "bad records only": lambda world, _: world.only_bad(),
    "posts become bad records": lambda world, rng: world.spoil_posts(rng.randrange(1, 5)),
    "an id twice": lambda world, _: world.contradict(),
    "posts vanish": lambda world, rng: world.vanish(rng.randrange(1, 5)),
    "posts come back": lambda world, _: world.come_back(),
    "posts change back": lambda world, rng: world.change_back(rng.randrange(1, 5)),
    "a post changes with every look": lambda world, _: world.restless(),
    "posts that the relational store refuses": lambda world, rng: world.refuse(rng.randrange(1, 5)),
}


def _some_bytes(rng: Random) -> int:
    """Draw a number in the size of what a step sends and receives: some kilobytes, mostly."""
    return 1 + int(rng.lognormvariate(8.0, 1.2))


def _none_or_some_bytes(rng: Random) -> int:
    return rng.choice((0, _some_bytes(rng)))


def _points() -> Iterator[Fault]:
    for point in failpoints.POINTS:
        # Nobody replays in a fault run: tests of the replay itself strike there.
        roles = _ROLES_OF_POINTS.get(point.partition(".")[0], ())
        for action in failpoints.ACTIONS if roles else ():
            yield Fault(f"{action} at {point}", roles, point=f"{point}={action}")


def _network() -> Iterator[Fault]:
    for store, roles in _ROLES_OF_STORES.items():
        for name, make in _NETWORK.items():
            # What is refused from the start leaves the proxy nothing to count.
            has_struck = None if name == "down at the start" else _struck(store)
            yield Fault(f"{store}: {name}", roles, begin=_through(store, make), has_struck=has_struck)
    for name, code in _MONGO_ERRORS.items():
        begin = _through("mongo", _mongo_error(code))
        yield Fault(f"mongo: {name} ({code})", _EVERY, begin=begin, has_struck=_struck("mongo"))
    yield Fault(
        f"mongo: cursor lost ({_CURSOR_LOST})",
        ("ingest", *_WRITERS),
        begin=_through("mongo", lambda _: ProxyFault("mongo_error", code=_CURSOR_LOST)),
        has_struck=_struck("mongo"),
        batch=_MORE_THAN_ONE_ANSWER,
    )


def _mongo_error(code: int) -> Callable[[Random], ProxyFault]:
    return lambda rng: ProxyFault(
        "mongo_error", code=code, times=rng.choice((1, 2, 0)), after_bytes=_none_or_some_bytes(rng)
    )


def _through(store: Store, make: Callable[[Random], ProxyFault]) -> Begin:
    return lambda arena, _, rng: arena.proxies[store].set(make(rng))


def _struck(store: Store) -> HasStruck:
    return lambda arena: arena.proxies[store].struck > 0


def _servers() -> Iterator[Fault]:
    yield Fault("redis: FLUSHALL", ("tick", "work"), begin=lambda arena, *_: arena.flush())
    yield Fault("redis: killed, back with its data", ("tick", "work"), begin=lambda arena, *_: arena.kill_redis())
    yield Fault("redis: killed, back without its data", ("tick", "work"), begin=_lose_redis)
    yield Fault("redis: at maxmemory", ("tick", "work"), begin=lambda arena, *_: arena.fill_redis())
    yield Fault("mongo: killed and back", _EVERY, begin=lambda arena, *_: arena.kill_mongo())
    for name, (code, state) in _MARIADB_ERRORS.items():
        yield Fault(f"sql: {name}", _WRITERS, begin=_answering(code, state))
    yield Fault("sql: too many connections (1040)", _WRITERS, begin=lambda arena, *_: arena.crowd_sql())


def _lose_redis(arena: Arena, _: World, __: Random) -> None:
    arena.flush()
    arena.kill_redis()


def _answering(code: int, state: str) -> Begin:
    return lambda arena, *_: arena.answer_with(code, state)


def _clocks() -> Iterator[Fault]:
    yield Fault("clock: an hour ahead", _EVERY, begin=lambda arena, *_: arena.jump(3600))
    yield Fault("clock: an hour back", _EVERY, begin=lambda arena, *_: arena.jump(-3600))


def _answers() -> Iterator[Fault]:
    for name, behaviour in _SOURCE.items():
        yield Fault(f"source: {name}", ("ingest",), begin=_behaving(behaviour))
    for name, change in _RECORDS.items():
        yield Fault(f"source: {name}", ("ingest",), begin=_serving(change))


def _behaving(behaviour: dict[str, str]) -> Begin:
    return lambda arena, *_: arena.source.behaviour.update(behaviour)


def _serving(change: Callable[[World, Random], None]) -> Begin:
    return lambda _, world, rng: change(world, rng)


FAULTS: dict[str, Fault] = {
    fault.name: fault for group in (_points, _network, _servers, _clocks, _answers) for fault in group()
}
"""All faults by name."""
