"""Fault runs: small histories of the pipeline, drawn from a seed, in which something goes wrong.

Every step is a process of its own that can really be killed; the servers are real. After each
step that was struck, nothing writes, and the promises that hold at every moment are checked;
in the end the faults are over, the pipeline has to settle by itself, and all eight are checked.
"""

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal

from pipeline_poc.chaos.actors import Actor, Outcome, Role
from pipeline_poc.chaos.arena import DATABASE, QUEUE_KEY, Arena
from pipeline_poc.chaos.catalogue import FAULTS
from pipeline_poc.chaos.promises import Violation, Watch, differences
from pipeline_poc.chaos.world import World

Scene = Literal["alone", "crowd"]

_WAY: tuple[Role, ...] = ("ingest", "tick", "work")
_CROWDS: tuple[tuple[Role, ...], ...] = (
    ("ingest", "ingest", "tick", "work"),
    ("tick", "tick", "work", "work"),
    ("ingest", "tick", "work", "work", "migrate"),
)
_FEWEST = 4
_SETTLE_S = 30.0
"""What is left after so many seconds without a fault, and after an hour of the clock, is left for good."""
_FAULT_S = 6.0
"""A fault of a store or of the source ends after so many seconds, or with the step that it strikes."""
_POLL_S = 0.02
_PASSING_S = 40.0
"""Longer than every time-out of these runs."""
_SETTINGS = {
    "queue_window": 5,
    "store_timeout_s": 1,
    "source_timeout_s": 1,
    "source_max_attempts": 2,
    "retry_base_s": 0.05,
    "retry_cap_s": 0.5,
    "heartbeat_interval_s": 1,
    "heartbeat_timeout_s": 5,
    "filling_timeout_s": 10,
}


@dataclass(frozen=True, slots=True)
class Round:
    """One thing that goes wrong, or two at once.

    Attributes:
        fault: Key of `FAULTS`.
        role: The step that is struck.
        scene: Whether the steps follow one another, or run all at once.
        crowd: The steps that run at once beside it.
        beside: Another fault of the world outside that lasts meanwhile; empty where there is none.
        duplicates: How often each job is delivered.
        passing_s: The time that passes afterwards, for those that come later.
    """

    fault: str
    role: Role
    scene: Scene
    crowd: tuple[Role, ...] = ()
    beside: str = ""
    duplicates: int = 1
    passing_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """A fault run, as drawn from its seed.

    Attributes:
        seed: Of everything that the run draws; the same seed gives the same plan.
        migrated_before: Posts that went all the way before anything went wrong.
        posts: Posts that come in each round.
        batch_size: Most posts in a batch.
        attempts: Of a job, before it is a dead letter.
    """

    seed: str
    migrated_before: int
    posts: int
    batch_size: int
    attempts: int
    rounds: tuple[Round, ...]


@dataclass(slots=True)
class RunResult:
    """How a fault run ended.

    Attributes:
        struck: The names of the faults that did strike.
        missed: The names of those that had nothing to strike.
        violations: Promises that were broken, each with the moment.
        killed: Number of processes that died of SIGKILL.
        settled_s: How long the pipeline took to settle once the faults were over.
    """

    plan: Plan
    struck: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    violations: list[tuple[str, Violation]] = field(default_factory=list)
    posts: int = 0
    killed: int = 0
    settled_s: float = 0.0


def draw(seed: int, number: int, posts: int, faults: Sequence[str]) -> Plan:
    """Draw the plan of a run.

    Args:
        seed: Of all runs.
        number: Of this run; the faults take turns.
        posts: Posts that go through it, more or less.
        faults: Names of the faults to draw from.
    """
    rng = Random(f"{seed}/{number}")
    rounds = [_draw_round(faults[number % len(faults)], faults, rng)]
    while rng.random() < 0.3:  # noqa: PLR2004 - one run in three has another round
        rounds.append(_draw_round(rng.choice(faults), faults, rng))
    batch = max(FAULTS[round_.fault].batch for round_ in rounds)
    posts = max(_FEWEST, posts, 2 * batch)
    return Plan(
        seed=f"{seed}/{number}",
        migrated_before=rng.choice((0, posts // 4, posts // 2)),
        posts=posts // 2,
        batch_size=max(batch, rng.choice((3, 10, 25))),
        # What nobody expects is tried again, too, but in the end it is for a person.
        attempts=3 if any(FAULTS[round_.fault].point.endswith("=crash") for round_ in rounds) else rng.choice((1, 3)),
        rounds=tuple(rounds),
    )


def _draw_round(name: str, faults: Sequence[str], rng: Random) -> Round:
    fault = FAULTS[name]
    from_outside = [other for other in faults if not FAULTS[other].point]
    return Round(
        fault=name,
        role=rng.choice(fault.roles),
        scene=rng.choice(("alone", "alone", "crowd")),
        crowd=rng.choice(_CROWDS),
        beside=rng.choice(from_outside) if from_outside and rng.random() < 0.2 else "",  # noqa: PLR2004
        duplicates=rng.choice((1, 1, 1, 10)),
        passing_s=rng.choice((0.0, _PASSING_S)),
    )


class Run:
    """Plays a plan.

    Args:
        arena: Is emptied first.
        plan: What happens.
        log: The programs' log is added to this file.
    """

    def __init__(self, arena: Arena, plan: Plan, log: Path) -> None:
        self.arena = arena
        self.plan = plan
        self.log = log
        self.rng = Random(plan.seed)
        self.world = World(self.rng, arena.source.posts)
        self.watch = Watch(arena.mongo.url, DATABASE, arena.sql, self.world)
        self.result = RunResult(plan)

    def play(self) -> RunResult:
        """Play it to the end; returns how it went, whatever happened."""
        self.arena.empty()
        self.log.touch()
        self.world.add(self.plan.migrated_before or 1)
        self._check_done("before", self._act(_WAY))
        for number, round_ in enumerate(self.plan.rounds, start=1):
            self._play(round_, f"round {number}")
        self._settle()
        self.result.posts = len(self.world.contents)
        return self.result

    def _play(self, round_: Round, moment: str) -> None:
        self.world.add(self.plan.posts)
        self.world.change(self.plan.posts // 3)
        if round_.beside:
            self._begin(round_.beside)
        if round_.scene == "alone":
            before, after = (("ingest", "tick"), ()) if round_.role == "migrate" else _around(round_.role)
            if before:
                self._act(before)
            self._deliver_again(round_.duplicates)
            self._strike(round_, (), moment)
            if after:
                self._act(after)
        else:
            self._act(("ingest", "tick"))
            self.world.change(self.plan.posts // 3)
            self.world.add(2)
            self._deliver_again(round_.duplicates)
            self._strike(round_, round_.crowd, moment)
        self._check(moment)
        if round_.passing_s:
            self.arena.pass_time(round_.passing_s)

    def _strike(self, round_: Round, others: Sequence[Role], moment: str) -> None:
        fault = FAULTS[round_.fault]
        said = self.log.stat().st_size
        self._begin(round_.fault)
        victim = self._start((round_.role,), fail_points=fault.point or None)
        crowd = [self._start((role,)) for role in others]
        if fault.point.endswith("=stop") and victim.has_stopped():
            self._outcomes(crowd)
            crowd = []
            self._check(f"{moment}, while one is asleep")
            self._overtake()
            self._check(f"{moment}, after it was overtaken")
            victim.signal(signal.SIGCONT)
        ends = time.monotonic() + _FAULT_S
        while time.monotonic() < ends and any(actor.is_alive for actor in [victim, *crowd]):
            time.sleep(_POLL_S)
        log = self.log.read_bytes()[said:]
        has_struck = (
            b"fail point reached" in log if fault.point else not fault.has_struck or fault.has_struck(self.arena)
        )
        # Whoever waits for a store to come back need wait no longer.
        self.arena.calm()
        self._outcomes([victim, *crowd])
        (self.result.struck if has_struck else self.result.missed).append(round_.fault)

    def _overtake(self) -> None:
        """Change what a sleeper works on under its hands; now and then, others take its work over, too."""
        self.world.change(self.plan.posts)
        self.arena.pass_time(_PASSING_S)
        self._act(("ingest",))
        if self.rng.random() < 0.7:  # noqa: PLR2004
            for _ in range(2):
                self._act(("tick", "work"))
                self.arena.pass_time(_PASSING_S)

    def _begin(self, name: str) -> None:
        begin = FAULTS[name].begin
        if begin:
            begin(self.arena, self.world, self.rng)

    def _settle(self) -> None:
        """End all faults, and see whether the pipeline comes to rest by itself."""
        self.arena.calm()
        self.world.settle()
        begun = time.monotonic()
        self._check_done("in the end", self._act(("ingest",)))
        while True:
            self._check_done("while it settles", self._act(("tick", "work")))
            self.arena.pass_time(_PASSING_S)
            before = self.watch.look()
            if before.is_settled or time.monotonic() - begun > _SETTLE_S:
                break
        self.result.settled_s = round(time.monotonic() - begun, 3)
        self._note("settled", self.watch.check_settled(before))
        with self.arena.redis_client() as client:
            client.flushall()
        self.world.rephrase()
        again = self._act(("ingest", "tick", "work", "reconcile"))
        self._check_done("again", again)
        self._note("run again", differences(before, self.watch.look()))
        if again.status == "done" and not again.value["reconcile"]["ok"]:
            self._note("reconciled", [Violation(1, f"reconcile says {again.value['reconcile']}")])

    def _start(self, roles: tuple[Role, ...], **settings: Any) -> Actor:
        drawn = {"batch_size": self.plan.batch_size, "retry_max_attempts": self.plan.attempts}
        given = self.arena.settings | _SETTINGS | drawn | settings
        return Actor(roles, given, self.arena.shift, self.log)

    def _act(self, roles: tuple[Role, ...]) -> Outcome:
        actor = self._start(roles)
        (outcome,) = self._outcomes([actor])
        return outcome

    def _outcomes(self, actors: Sequence[Actor]) -> list[Outcome]:
        outcomes = [actor.outcome() for actor in actors]
        self.result.killed += sum(o.status == "killed" and o.value == -signal.SIGKILL for o in outcomes)
        hung = [outcome for outcome in outcomes if outcome.status == "hung"]
        self._note("during a fault", [Violation(7, f"{outcome.roles} hung {outcome.value}") for outcome in hung])
        return outcomes

    def _check_done(self, moment: str, outcome: Outcome) -> None:
        if outcome.status != "done":
            self._note(moment, [Violation(7, f"{outcome.roles} {outcome.status} without a fault: {outcome.value}")])

    def _check(self, moment: str) -> None:
        self._note(moment, self.watch.check(self.watch.look()))

    def _note(self, moment: str, violations: Sequence[Violation]) -> None:
        self.result.violations += [(moment, violation) for violation in violations]

    def _deliver_again(self, times: int) -> None:
        if times > 1:
            with self.arena.redis_client() as client:
                # Each once: rounds in which nobody works would multiply what the ones before have added.
                for job in set(client.lrange(QUEUE_KEY, 0, -1)):
                    client.rpush(QUEUE_KEY, *[job] * (times - 1))


def _around(role: Role) -> tuple[tuple[Role, ...], tuple[Role, ...]]:
    index = _WAY.index(role)
    return _WAY[:index], _WAY[index + 1 :]


def prepare(arena: Arena) -> None:
    """Let the pipeline make its tables and indexes, and make the relational store refuse some posts.

    Raises:
        RuntimeError: Even that fails.
    """
    outcome = Actor(("reconcile",), arena.settings | _SETTINGS, arena.shift, arena.folder / "prepare.log").outcome()
    if outcome.status != "done":
        raise RuntimeError(f"the pipeline does not even start: {outcome.value}")
    arena.refuse_some()
