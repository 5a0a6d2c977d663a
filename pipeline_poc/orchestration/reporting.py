"""Tells Dagster what workers migrated: runless materializations of assets such as ``migrated_posts``, aggregated."""

import logging
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pipeline_poc.migration import MigrationResult
from pipeline_poc.posts import POSTS
from pipeline_poc.records import Entity

if TYPE_CHECKING:
    from dagster import DagsterInstance

logger = logging.getLogger(__name__)

_INTERVAL_S = 5.0
"""Dagster's event log must not grow with the rows: one report in so many seconds at most."""


class Reporter:
    """Collects results and reports their sum now and then, and once more when it is closed.

    A report that fails is made with the next one; Dagster's storage is opened by the first
    report, since it may be away when a worker starts. Dagster itself, whose import takes seconds, is
    imported in the reporter's thread, and not at all where there is nobody to tell.

    Args:
        home: DAGSTER_HOME; None where there is nobody to tell.
        entity: Whose rows they migrated.
        interval_s: Pause between two reports, in seconds.
    """

    def __init__(self, home: Path | None, entity: Entity = POSTS, *, interval_s: float = _INTERVAL_S) -> None:
        self._home = home
        self._entity = entity
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._sum: MigrationResult | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._instance: DagsterInstance | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self.report()

    def add(self, result: MigrationResult) -> None:
        """Take a result into the next report."""
        if result.batches and self._home is not None:
            with self._lock:
                if self._sum is None:
                    self._sum = MigrationResult()
                self._sum.add(result)

    def _run(self) -> None:
        if self._home is not None:
            import dagster  # noqa: F401, PLC0415 - the first jobs don't wait for it, the last report finds it there
        while not self._done.wait(self._interval_s):
            self.report()

    def report(self) -> None:
        """Report what was collected, if anything was."""
        with self._lock:
            result, self._sum = self._sum, None
        if result is None:
            return
        try:
            from dagster import AssetMaterialization, DagsterInstance  # noqa: PLC0415 - see `_run`

            from pipeline_poc.orchestration.metadata import migration_metadata  # noqa: PLC0415 - the same

            if self._instance is None:
                self._instance = DagsterInstance.from_config(str(self._home))
            numbers = migration_metadata(self._entity, result.summary())
            event = AssetMaterialization(self._entity.table, description="by workers", metadata=numbers)
            self._instance.report_runless_asset_event(event)
        except Exception as error:  # noqa: BLE001 - whatever Dagster's storage raises, the posts are migrated
            logger.warning("report to Dagster failed", extra={"error": f"{type(error).__name__}: {error}"})
            self.add(result)
