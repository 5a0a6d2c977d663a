"""The web server with real stores and Dagster's real UI, in a thread of the test process."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from starlette.types import ASGIApp

from pipeline_poc.embedded import free_port
from pipeline_poc.settings import Settings
from pipeline_poc.web.app import build
from pipeline_poc.web.context import contexts_of
from pipeline_poc.web.server import Server

START_S = 30.0
ANSWER_S = 15.0
"""No answer takes longer, whatever is away: what the server promises, and what a busy machine adds."""


@contextmanager
def served(settings: Settings, ui: ASGIApp) -> Iterator[httpx.Client]:
    """Serve with these settings; yields a client that knows the address."""
    with server_and_client(settings, ui) as (_, client):
        yield client


@contextmanager
def server_and_client(settings: Settings, ui: ASGIApp) -> Iterator[tuple[Server, httpx.Client]]:
    """Serve with these settings; yields the server, too."""
    port = free_port()
    contexts = contexts_of(settings, ui)
    config = uvicorn.Config(build(contexts, ui, settings), port=port, log_config=None, timeout_graceful_shutdown=1)
    server = Server(config, contexts["posts"].inspector, settings.web_drain_s)
    thread = threading.Thread(target=server.run, name="web", daemon=True)
    thread.start()
    deadline = time.monotonic() + START_S
    while not server.started:
        assert time.monotonic() < deadline, "the web server does not start"
        assert thread.is_alive(), "the web server ended at its start"
        time.sleep(0.02)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=ANSWER_S, trust_env=False) as client:
            yield server, client
    finally:
        server.should_exit = True
        thread.join(START_S)
        for context in contexts.values():
            context.close()
        assert not thread.is_alive(), "the web server does not stop"
