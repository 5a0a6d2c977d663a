"""The one resource: the stores, the source and the queue, opened once in a process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dagster import ConfigurableResource, InitResourceContext

from pipeline_poc.services import Services
from pipeline_poc.settings import load_settings

_lock = threading.Lock()
_opened: list[Services] = []


class PipelineResource(ConfigurableResource[Services]):
    """Gives assets and IO managers the `Services` that the environment names."""

    @contextmanager
    def yield_for_execution(self, context: InitResourceContext) -> Iterator[Services]:  # noqa: ARG002 - Dagster's signature
        """Yield the services of this process; opens nothing that isn't used."""
        yield services_of_process()


def services_of_process() -> Services:
    """Return the services that the environment names; opens nothing that isn't used.

    They stay open until the process ends: a sensor ticks every few seconds, and each connection
    to a store costs more than a tick. Sensors take them from here: for a resource Dagster opens
    its instance anew at each tick, and looks through all its Alembic revisions, which is a fifth
    of a second.
    """
    with _lock:
        if not _opened:
            _opened.append(Services(load_settings()))
        return _opened[0]


def close_services() -> None:
    """Close what the resource opened in this process; the next use opens it anew."""
    with _lock:
        while _opened:
            _opened.pop().close()
