"""What all commands share: settings, log, errors and exit codes.

Exit codes: 0 all is well; 1 the pipeline is not as it should be; 2 wrong usage or settings;
3 a service is not available, answers with something else than posts, or has a schema for other code.
"""

import getpass
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import click
from rich.console import Console

from pipeline_poc import screens
from pipeline_poc.entities import ENTITIES
from pipeline_poc.errors import (
    PipelineError,
    SchemaError,
    ServiceStartError,
    SettingsError,
    SourceAnswerError,
    TransientError,
    mask_secrets,
)
from pipeline_poc.logs import configure_logging
from pipeline_poc.posts import POSTS
from pipeline_poc.records import Entity
from pipeline_poc.selection import SelectionError
from pipeline_poc.settings import Settings, load_settings

if TYPE_CHECKING:
    from pipeline_poc.services import Services

Command = TypeVar("Command", bound=Callable[..., Any])

EXIT_NOT_OK = 1
EXIT_SETTINGS = 2
EXIT_UNAVAILABLE = 3

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text for people.")


def exit_code(error: PipelineError) -> int:
    """Return the exit code that an error ends with."""
    if isinstance(error, (SettingsError, SelectionError)):
        return EXIT_SETTINGS
    is_unavailable = isinstance(error, (TransientError, ServiceStartError, SourceAnswerError, SchemaError))
    return EXIT_UNAVAILABLE if is_unavailable else EXIT_NOT_OK


def command(body: Command) -> Command:
    """Read the settings, set the log up, and turn the pipeline's errors into a sentence and an exit code."""

    @wraps(body)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            settings = load_settings()
            # On a terminal the command itself says what happened.
            quiet = sys.stderr.isatty() and body.__name__ != "worker" and settings.log_level == "INFO"
            configure_logging("WARNING" if quiet else settings.log_level, settings.log_format)
            body(settings, *args, **kwargs)
        except PipelineError as error:
            _fail(error, as_json=kwargs.get("as_json", False))

    return cast(Command, run)


def _fail(error: PipelineError, *, as_json: bool) -> NoReturn:
    text = mask_secrets(str(error))
    if as_json:
        click.echo(json.dumps({"error": type(error).__name__, "message": text}))
    else:
        click.echo(f"Error: {text}", err=True)
    sys.exit(exit_code(error))


def operator() -> str:
    """Return how the person at the command line is named in what is kept."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # A container's user need not have a name.
        name = f"user {os.getuid()}"
    return f"{name} (command line)"


def open_services(settings: Settings, *, answer_timeout_s: float = 60.0) -> "Services":
    """Return the stores; each is opened when it is first used, and waited for so long in each answer.

    Raises:
        SettingsError: ENTITIES does not name the one that --entity does.
    """
    from pipeline_poc.services import Services  # noqa: PLC0415 - keeps `--help` quick

    return Services(settings, entity=chosen_entity(settings), answer_timeout_s=answer_timeout_s)


def named_entity() -> str | None:
    """Return what --entity says; None where it is not given."""
    name: str | None = click.get_current_context().find_root().params.get("entity")
    return name


def chosen_entity(settings: Settings) -> Entity:
    """Return the entity that --entity names, posts where it names none; raises as `open_services` does."""
    name = named_entity() or POSTS.name
    if name not in settings.entities:
        raise SettingsError(f"--entity {name} is none of ENTITIES ({', '.join(settings.entities)})")
    return ENTITIES[name]


def show(summary: dict[str, Any], title: str, *, as_json: bool) -> None:
    """Show named numbers, to a person or as JSON."""
    if as_json:
        click.echo(json.dumps(summary))
    else:
        screens.show_numbers(Console(highlight=False), title, summary)


def print_json(value: Any) -> None:
    """Print a value that may hold times and dataclasses as JSON."""
    click.echo(json.dumps(value, default=_as_json_value))


def _as_json_value(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return asdict(value)
