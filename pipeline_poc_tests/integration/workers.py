"""Worker processes for tests, and what the tests look at meanwhile."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from pipeline_poc_tests.acceptance.programs import Program

Start = Callable[..., Program]
"""Starts a worker process; takes arguments of the command, and settings."""


@contextmanager
def workers(environment: dict[str, str], folder: Path) -> Iterator[Start]:
    """Give a function that starts workers; none of them outlives the context."""
    started: list[Program] = []

    def start(*arguments: str, command: str = "worker", **settings: object) -> Program:
        own = {name.upper(): str(value) for name, value in settings.items()}
        line = [sys.executable, "-m", "pipeline_poc", command, *arguments]
        program = Program(line, environment | own, folder, folder / f"worker-{len(started) + 1}.log")
        started.append(program)
        return program

    try:
        yield start
    finally:
        for program in started:
            if program.is_running:
                program.kill()


class HeldRow:
    """A row that can't be written until it is released: a transaction that inserts it stays open."""

    def __init__(self, engine: sa.Engine, external_id: int) -> None:
        insert = (
            "INSERT INTO migrated_posts (externalId, userId, title, body, ingestedAt, migratedAt)"
            " VALUES (:id, 1, 't', 'b', NOW(), NOW())"
        )
        self._connection = engine.connect()
        self._connection.execute(sa.text(insert), {"id": external_id})

    def release(self) -> None:
        """Let others write it; may be called again."""
        self._connection.close()


def seconds(action: Callable[[], object]) -> float:
    """Return how long something took."""
    begun_at = time.monotonic()
    action()
    return time.monotonic() - begun_at
