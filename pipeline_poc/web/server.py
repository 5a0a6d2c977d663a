"""The web server: Dagster's UI and our endpoints in one process, on one port."""

import logging
import os
from pathlib import Path

import uvicorn

from pipeline_poc.errors import SettingsError
from pipeline_poc.orchestration.ui import ui_app
from pipeline_poc.settings import Settings
from pipeline_poc.web.app import build
from pipeline_poc.web.auth import check_binding
from pipeline_poc.web.context import Context

logger = logging.getLogger(__name__)

_STOP_S = 3
"""Requests that are under way when the server is stopped have so long to end; streams are cut."""
_MAX_INCOMPLETE_BYTES = 65_536


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
        context = Context(settings, ui)
        try:
            logger.info("web server started", extra={"host": settings.web_host, "port": settings.web_port})
            uvicorn.run(
                build(context, ui, settings),
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
        finally:
            context.close()
            logger.info("web server stopped")
