"""The command that shows the settings in force, says where each comes from, and checks them."""

import difflib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import wraps
from typing import Any, cast

import click
from pydantic import SecretStr

from pipeline_poc.commands import Command, as_json, command
from pipeline_poc.errors import SettingsError, mask_secrets
from pipeline_poc.settings import SECRETS, Settings, file_variable, given

_CLOSE = 0.85
"""How alike a misspelt name has to be, of 1; lower, it takes variables of others for ours."""

Given = Mapping[str, Mapping[str, str | None]]
"""Variables by their names in small letters, of each place that has some."""


def _misspelt_first(body: Command) -> Command:
    """Tell what may be misspelt before a command reads the settings: what it finds wrong may be due to that."""

    @wraps(body)
    def run(*args: Any, **kwargs: Any) -> None:
        with suppress(SettingsError):  # The command says it.
            for name, setting in misspelt(name for variables in given().values() for name in variables).items():
                click.echo(f"Note: {name} is no setting; {setting} is, and is not set.", err=True)
        body(*args, **kwargs)

    return cast(Command, run)


@click.command()
@as_json
@_misspelt_first
@command
def config(settings: Settings, as_json: bool) -> None:
    """Show every setting with its value, secrets masked, and where it comes from; exit code 2 if any is wrong.

    \b
    Examples:
      pipeline-poc config
      pipeline-poc config --json | jq .settings.MONGO_URL
    """
    _check_alert_urls(settings)
    origins, values = origins_of(given()), shown(settings)
    refused = _refusal_of_webserver(settings)
    if as_json:
        report = {name: {"value": values[name], "from": origins[name]} for name in values}
        click.echo(json.dumps({"settings": report, "webserver": refused or "ok"}))
        return
    names, places = max(map(len, values)), max(map(len, origins.values()))
    for name, value in values.items():
        click.echo(f"{name:<{names}}  {origins[name]:<{places}}  {as_variable(value) or '-'}")
    if refused:
        click.echo(f"\nAll are valid, but `webserver` would not start: {refused}")


def shown(settings: Settings) -> dict[str, Any]:
    """Return the settings by the names of their variables, as JSON values; secrets and passwords are masked."""
    values = settings.model_dump(mode="json")
    secrets = {name: _masked(name, getattr(settings, name)) for name in SECRETS}
    return {name.upper(): secrets.get(name, value) for name, value in values.items()}


def origins_of(places: Given) -> dict[str, str]:
    """Say of each setting where its value comes from.

    Args:
        places: What is set where; the first place that has a name wins.

    Returns:
        A place, ``file`` with a path, or ``default``, by the name of the variable.
    """
    origins = {}
    for name in Settings.model_fields:
        found = (place for place, variables in places.items() if variables.get(name) is not None)
        files = (variables.get(file_variable(name).lower()) for variables in places.values() if name in SECRETS)
        path = next(filter(None, files), None)
        origins[name.upper()] = f"file {path}" if path else next(found, "default")
    return origins


def misspelt(variables: Iterable[str]) -> dict[str, str]:
    """Return the variables that are no settings and look like one that is not set, and which one."""
    settings = {name.upper() for name in Settings.model_fields}
    files = {file_variable(name): name.upper() for name in SECRETS}
    present = {files.get(name.upper(), name.upper()) for name in variables}
    close = {
        name: difflib.get_close_matches(name, settings - present, n=1, cutoff=_CLOSE)
        for name in sorted(present - settings)
    }
    return {name: found[0] for name, found in close.items() if found}


def as_variable(value: Any) -> str:
    """Return a JSON value as it is written in `.env`; nothing for a setting that is unset."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case list():
            return ",".join(value)
        case _:
            return str(value)


def _masked(name: str, value: Any) -> str | None:
    if isinstance(value, SecretStr) and name.endswith("_url"):
        return mask_secrets(value.get_secret_value())
    return "***" if value else None


def _check_alert_urls(settings: Settings) -> None:
    if not settings.alert_urls:
        return
    from pipeline_poc import notifier  # noqa: PLC0415 - loads Apprise, which takes more than a second

    wrong = notifier.misunderstood([url.get_secret_value() for url in settings.alert_urls])
    if wrong:
        numbers = " and ".join(map(str, wrong))
        raise SettingsError(f"ALERT_URLS: Apprise does not understand no. {numbers} of {len(settings.alert_urls)}")


def _refusal_of_webserver(settings: Settings) -> str | None:
    from pipeline_poc.web.auth import check_binding  # noqa: PLC0415 - keeps `--help` quick

    try:
        check_binding(settings)
    except SettingsError as error:
        return str(error)
    return None
