"""Dagster's UI, GraphQL and WebSockets as an ASGI application, made of private parts of Dagster."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from dagster import DagsterInstance
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster_webserver.app import create_app_from_workspace_process_context
from dagster_webserver.version import __version__ as webserver_version
from starlette.types import ASGIApp

_STATEMENT_TIMEOUT_MS = 15_000
_POOL_RECYCLE_S = 3_600
_POOL_OVERFLOW = 20
_POLL_MS = 2_000
"""What `dagster-webserver` itself has for defaults."""


@contextmanager
def ui_app(workspace: Path) -> Iterator[ASGIApp]:
    """Open Dagster's instance and a workspace, and yield the application that `dagster-webserver` would serve.

    Args:
        workspace: A workspace.yaml; its code servers may come up later.
    """
    with DagsterInstance.get() as instance:
        instance.optimize_for_webserver(_STATEMENT_TIMEOUT_MS, _POOL_RECYCLE_S, _POOL_OVERFLOW)
        with WorkspaceProcessContext(
            instance,
            version=webserver_version,
            workspace_load_target=WorkspaceFileTarget([str(workspace)]),
            code_server_log_level="WARNING",
        ) as context:
            yield cast(ASGIApp, create_app_from_workspace_process_context(context, "", _POLL_MS))
