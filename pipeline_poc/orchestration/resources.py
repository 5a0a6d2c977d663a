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
    """Gives assets, IO managers and the sensor the `Services` that the environment names.

    They stay open until the process ends: a sensor ticks every few seconds, and each connection
    to a store costs more than a tick.
    """

    @contextmanager
    def yield_for_execution(self, context: InitResourceContext) -> Iterator[Services]:  # noqa: ARG002 - Dagster's signature
        """Yield the services of this process; opens nothing that isn't used."""
        with _lock:
            if not _opened:
                _opened.append(Services(load_settings()))
        yield _opened[0]


def close_services() -> None:
    """Close what the resource opened in this process; the next use opens it anew."""
    with _lock:
        while _opened:
            _opened.pop().close()
