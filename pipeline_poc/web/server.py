"""The web server: Dagster's UI and our endpoints in one process, on one port."""

import asyncio
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path

import uvicorn

from pipeline_poc.errors import SettingsError
from pipeline_poc.health import Inspector
from pipeline_poc.orchestration.ui import ui_app
from pipeline_poc.posts import POSTS
from pipeline_poc.settings import Settings
from pipeline_poc.web.app import build
from pipeline_poc.web.auth import check_binding
from pipeline_poc.web.context import contexts_of

logger = logging.getLogger(__name__)

_STOP_S = 3
"""Requests that are under way when the server is stopped have so long to end; streams are cut."""
_MAX_INCOMPLETE_BYTES = 65_536
_LOOK_S = 0.1


class Server(uvicorn.Server):
    """Goes on for a while after it was asked to stop: a load balancer hears of it before it meets a closed port.

    Args:
        config: Of the server.
        inspector: Says from then on that this process is not ready.
        drain_s: How long it goes on, in seconds; a second Ctrl-C ends that.
    """

    def __init__(self, config: uvicorn.Config, inspector: Inspector, drain_s: float) -> None:
        super().__init__(config)
        self._inspector = inspector
        self._drain_s = drain_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait, then stop as uvicorn does."""
        self._inspector.is_stopping = True
        loop = asyncio.get_running_loop()
        until = loop.time() + self._drain_s
        while loop.time() < until and not self.force_exit:
            await asyncio.sleep(_LOOK_S)
        await super().shutdown(sockets)


def serve(settings: Settings, workspace: Path) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: With an address that only this machine reaches, unless there are tokens.
        workspace: Which code servers Dagster's UI shows.

    Raises:
        SettingsError: Others could reach the server without a token; or a file is missing.
    """
    check_binding(settings)
    if not workspace.is_file():
        raise SettingsError(f"there is no workspace file {workspace}: name one with --workspace")
    if "DAGSTER_HOME" not in os.environ and settings.dagster_home is None:
        raise SettingsError("DAGSTER_HOME is not set: it is the folder with Dagster's dagster.yaml and data")
    with ui_app(workspace) as ui:
        contexts = contexts_of(settings, ui)
        context = contexts[POSTS.name]
        try:
            logger.info("web server started", extra={"host": settings.web_host, "port": settings.web_port})
            config = uvicorn.Config(
                build(contexts, ui, settings),
                host=settings.web_host,
                port=settings.web_port,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=settings.web_trusted_proxies is not None,
                forwarded_allow_ips=list(settings.web_trusted_proxies or ()),
                h11_max_incomplete_event_size=_MAX_INCOMPLETE_BYTES,
                timeout_graceful_shutdown=_STOP_S,
            )
            with suppress(KeyboardInterrupt):
                Server(config, context.inspector, settings.web_drain_s).run()
        finally:
            for each in contexts.values():
                each.close()
            logger.info("web server stopped")
