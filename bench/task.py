"""A contender's process: `python -m bench.task job.json` runs one step, and leaves its laps beside the job."""

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pymysql
from sqlalchemy.engine import make_url

from bench.meter import Meter
from pipeline_poc.settings import Settings, load_settings


@dataclass(frozen=True, slots=True)
class Task:
    """What a step has to do, and to do it with.

    Attributes:
        posts: How many to move.
        is_small: Whether this run is only to see that everything works.
        options: Of this contender.
        settings: The pipeline's own, which name the stores.
    """

    posts: int
    is_small: bool
    options: dict[str, Any]
    settings: Settings
    meter: Meter

    def connect(self) -> "pymysql.Connection[Any]":
        """Connect to the relational store with the plain driver."""
        assert self.settings.sql_url
        url = make_url(self.settings.sql_url.get_secret_value())
        return pymysql.connect(
            host=url.host, port=url.port or 0, user=url.username, password=url.password or "", database=url.database
        )

    def check_rows(self, table: str = "migrated_posts") -> None:
        """Fail unless every post has its row: whoever leaves work out is not quicker.

        Raises:
            RuntimeError: It has not.
        """
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"SELECT COUNT(*) FROM {table}")  # noqa: S608 - our own names
            (rows,) = cursor.fetchone() or (0,)
        if rows != self.posts:
            raise RuntimeError(f"{rows} rows for {self.posts} posts")


def main(job_file: Path) -> None:
    """Run the step that a job names, which is `module:function`."""
    job = json.loads(job_file.read_text())
    module, function = job["step"].split(":")
    step: Callable[[Task], None] = getattr(importlib.import_module(module), function)
    meter = Meter(job["servers"])
    step(Task(job["posts"], job["is_small"], job["options"], load_settings(env_file=None), meter))
    job_file.with_suffix(".laps").write_text(json.dumps([asdict(lap) for lap in meter.laps]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
