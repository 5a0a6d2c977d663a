"""Clients that respect `/health/ready`, as a load balancer sends them; count what is answered and what is not."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from itertools import cycle
from typing import Any, Self

import httpx

from pipeline_poc.chaos.rehearsal import Rehearsal

_PATHS = (
    "/data-migration/stats",
    "/data-ingestion/stats",
    "/data-migration/queue-jobs?state=finished",
    "/posts/1",
    "/quarantine",
    "/dead-letters",
    "/metrics",
)
_CLIENTS = 2
_PAUSE_S = 0.4
"""Between two requests of a client; keeps all of them, and their probes, below RATE_LIMIT_READ."""
_ANSWER_S = 15.0


class Clients:
    """Ask web servers, each time one that has just said that it is ready; to be used as a context manager.

    A store that goes away takes the requests with it that are under way: those that are answered by 503 with
    Retry-After then are counted apart, and asked once more. Any other answer but a good one, and none, is a failure.

    Args:
        servers: Where they are.
        token: May read.
        told: Gets what happens to the requests.

    Attributes:
        doing: What is going on, for the failures.
        is_store_away: Whether a store is being restarted.
    """

    def __init__(self, servers: Sequence[str], token: str, told: Rehearsal) -> None:
        self.doing = ""
        self.is_store_away = False
        self._told = told
        self._servers = servers
        self._headers = {"Authorization": f"Bearer {token}"}
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on, args=(number,)) for number in range(_CLIENTS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _ask_on(self, number: int) -> None:
        paths = cycle(_PATHS[number:] + _PATHS[:number])
        # Probes have no token: they count for the address.
        with httpx.Client(timeout=_ANSWER_S, trust_env=False) as client:
            path = next(paths)
            while not self._done.is_set():
                number += 1
                turn = number % len(self._servers)
                server = ready_server(client, [*self._servers[turn:], *self._servers[:turn]])
                if self._is_over(client, server, path):
                    path = next(paths)
                self._done.wait(_PAUSE_S)

    def _is_over(self, client: httpx.Client, server: str | None, path: str) -> bool:
        """Ask; returns whether that came to an end, be it a good one or not."""
        if server is None:
            self._told.without_server_s += _PAUSE_S / _CLIENTS
            return False
        self._told.requests += 1
        was_away = self.is_store_away
        try:
            answer = client.get(server + path, headers=self._headers)
        except httpx.HTTPError as error:
            self._told.failures.append(f"{self.doing}: {path}: {type(error).__name__}: {error}")
            return True
        if (
            answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE
            and "Retry-After" in answer.headers
            and (was_away or self.is_store_away)
        ):
            self._told.asked_to_wait += 1
            return False
        if not answer.is_success:
            self._told.failures.append(f"{self.doing}: {path}: {answer.status_code} {answer.text[:200]}")
        return True


def ask(client: httpx.Client, servers: Sequence[str], method: str, path: str) -> dict[str, Any] | None:
    """Ask a server that is ready; returns the JSON object that it answers with, None where that does not go well."""
    with suppress(httpx.HTTPError):
        if server := ready_server(client, servers):
            answer = client.request(method, server + path)
            return dict(answer.json()) if answer.is_success else None
    return None


def ready_server(client: httpx.Client, servers: Sequence[str]) -> str | None:
    """Return the first server that says it is ready; None if none of them does."""
    for server in servers:
        with suppress(httpx.HTTPError):
            if client.get(f"{server}/health/ready").is_success:
                return server
    return None
