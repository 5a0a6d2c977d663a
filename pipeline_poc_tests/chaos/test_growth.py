"""Nothing grows for ever: some simulated days in short; `make week` is long, and its servers' clocks jump, too."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from dagster import DagsterInstance
from dagster._core.test_utils import freeze_time

from pipeline_poc import clock
from pipeline_poc.chaos.growth import Growth, Sizes, mongo_sizes, mysql_sizes, redis_sizes, sqlite_sizes
from pipeline_poc.chaos.servers import MariaDB
from pipeline_poc.orchestration.reporting import Reporter
from pipeline_poc.orchestration.resources import close_services
from pipeline_poc.stand_in import StandIn
from pipeline_poc_tests.conftest import Figures
from pipeline_poc_tests.scripts import script

SLOTS, POSTS = 2, 20


@pytest.fixture
def move() -> Iterator[Callable[[datetime], None]]:
    """Sets the clock of this process; those of the servers go on as they do."""
    with ExitStack() as frozen:

        def move(to: datetime) -> None:
            frozen.close()
            clock.shift(timedelta(0))
            clock.shift(to - clock.utc_now())
            frozen.enter_context(freeze_time(to))

        yield move
    clock.shift(timedelta(0))


@pytest.mark.slow
def test_days_of_traffic_leave_nothing(  # noqa: PLR0917 - fixtures are asked for by name
    move: Callable[[datetime], None],
    mongo_url: str,
    mongo_database: str,
    redis_url: str,
    sql_url: str,
    mariadb: MariaDB,
    stand_in: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    measured: Figures,
) -> None:
    """Once there is what is old enough to be pruned, Dagster's tables and the posts stay as they are."""
    week = script("simulated-week")
    week.make_home(tmp_path / "home", "mysql")
    environment = week.short_retention() | {
        "SOURCE_URL": stand_in.url,
        "MONGO_URL": mongo_url,
        "MONGO_DATABASE": mongo_database,
        "REDIS_URL": redis_url,
        "SQL_URL": f"sqlite:///{tmp_path / 'rows.db'}",
        "DAGSTER_MYSQL_URL": sql_url.replace("+pymysql", "+mysqlconnector"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    login = {"host": "127.0.0.1", "port": mariadb.port, "user": "pipeline", "password": "secret"}
    days: list[Sizes] = []
    with DagsterInstance.from_config(str(tmp_path / "home")) as instance:
        instance.optimize_for_webserver(60_000, 3600, 4)
        plan = week.Plan(days=week.SETTLED + 1, slots=SLOTS, ticks=48, posts=POSTS, changed=5)
        try:
            for _ in week.Week(instance, Reporter(tmp_path / "home"), stand_in, plan, move=move).days():
                dagster = mysql_sizes("Dagster", login, sql_url.rpartition("/")[2], None)
                others = mongo_sizes("MongoDB", mongo_url, mongo_database, None) | redis_sizes("Valkey", redis_url)
                days.append(dagster | others)
        finally:
            close_services()
    # What these let expire, they do by their own clocks.
    growth = Growth(days, week.SETTLED, free=("Valkey", "MongoDB, batches", "MongoDB, counters"))
    measured(f"days {days}")
    assert growth.problems() == []
    last = days[-1]
    assert last["Dagster, runs"] > 2 * SLOTS
    assert 56 <= last["Dagster, job_ticks"] <= 48 + 8 + 2 * SLOTS, "those of midnight are a day old, or nearly"
    assert last["MongoDB, posts"] == POSTS
    assert last["MongoDB, batches"] == len(days) * SLOTS


def test_what_grows_is_found() -> None:
    """A leak is named with its numbers; what differs a little, takes room ahead or may grow is not."""
    days = [
        {"runs": 100, "ticks": 10, "log, bytes": 0, "keys": 5, "free, keys": 1, "empty": 0, "new": 0},
        {"runs": 200, "ticks": 500, "log, bytes": 90_000_000, "keys": 400, "free, keys": 100, "empty": 0, "new": 0},
        {"runs": 300, "ticks": 495, "log, bytes": 110_000_000, "keys": 404, "free, keys": 900, "empty": 0, "new": 70},
    ]
    growth = Growth(days, 2, free=("free",))
    assert growth.problems() == [
        "runs grows: 200 on day 2, 300 on day 3",
        "new grows: 0 on day 2, 70 on day 3",
    ]
    assert growth.grows("free, keys")
    assert growth.table().row_count == len(days[0]) - 1, "what is always empty is not shown"
    with pytest.raises(ValueError, match="2 days are too few"):
        Growth(days[:2], 2).problems()


def test_sizes_of_dagster_on_one_machine(tmp_path: Path) -> None:
    """Rows of the databases for all runs; files and bytes of all of them, one for each run among them."""
    for name in ("history/runs.db", "history/runs/index.db", "history/runs/a-run.db", "schedules/schedules.db"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript("CREATE TABLE t (n INTEGER); INSERT INTO t VALUES (1), (2)")
    sizes = sqlite_sizes("Dagster", tmp_path)
    assert {name: size for name, size in sizes.items() if not name.endswith("bytes")} == {
        "Dagster, runs, t": 2,
        "Dagster, index, t": 2,
        "Dagster, schedules, t": 2,
        "Dagster, files": 4,
    }
    assert sizes["Dagster, on disk, bytes"] > sizes["Dagster, event log, bytes"] > 0
