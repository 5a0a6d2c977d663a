"""The command that tries the channels of alerts."""

import json
import sys
from dataclasses import asdict

import click

from pipeline_poc.alerting import Message
from pipeline_poc.commands import EXIT_UNAVAILABLE, as_json, command, operator
from pipeline_poc.errors import SettingsError
from pipeline_poc.settings import Settings


@click.group()
def alerts() -> None:
    """Try the channels through which people are told of problems.

    \b
    Example:
      pipeline-poc alerts test
    """


@alerts.command()
@as_json
@command
def test(settings: Settings, as_json: bool) -> None:
    """Send a message through each of ALERT_URLS, and say what it answered; exit code 3 if one did not take it.

    \b
    Examples:
      pipeline-poc alerts test
      ALERT_URLS=json://localhost:8080/alerts pipeline-poc alerts test --json
    """
    from pipeline_poc import notifier  # noqa: PLC0415 - keeps `--help` quick

    if not settings.alert_urls:
        raise SettingsError("ALERT_URLS is not set: nobody is told of anything")
    message = Message("Test: nothing is wrong", f"Sent by {operator()} with `pipeline-poc alerts test`.", "info")
    answers = notifier.send([url.get_secret_value() for url in settings.alert_urls], message)
    if as_json:
        click.echo(json.dumps({"channels": [asdict(answer) for answer in answers]}))
    else:
        for answer in answers:
            click.echo(f"{answer.channel}  {f'not taken: {answer.problem}' if answer.problem else 'taken'}")
    if any(answer.problem for answer in answers):
        sys.exit(EXIT_UNAVAILABLE)
