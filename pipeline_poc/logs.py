"""Logging set-up, for entry points only: one line an event, as JSON or as text for people."""

import logging
import sys
from typing import Literal

import structlog

_QUIET = ("alembic", "dagster", "faker", "httpx", "pymongo", "rq", "urllib3", "uvicorn")
"""Libraries whose information is noise beside our own canonical lines; their warnings are not."""


def configure_logging(level: str, log_format: Literal["auto", "text", "json"]) -> None:
    """Send the log to standard error; what was passed as ``extra`` becomes keys of the line.

    Args:
        level: The least severe level shown.
        log_format: ``auto`` means text on a terminal and JSON elsewhere.
    """
    as_text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[structlog.typing.Processor] = (
        # The usual formatter shows the values of variables, such as URLs with their passwords.
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if as_text
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
