"""Messages through Apprise to a webhook, and the commands that try and check the channels."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result

from pipeline_poc import notifier
from pipeline_poc.alerting import Message
from pipeline_poc.cli import cli
from pipeline_poc.notifier import Answer
from pipeline_poc_tests.webhook import Webhook, webhook

SECRET = "S3CRET"
WRONG_SETTING, UNAVAILABLE = 2, 3


@pytest.fixture
def hook() -> Iterator[Webhook]:
    """A webhook that takes everything."""
    with webhook() as served:
        yield served


@pytest.fixture
def _kept_log() -> Iterator[None]:
    """A command sets up the log of its process, which here is the one of all tests."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What a program would show; `caplog` also has what loggers keep to themselves."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    logging.getLogger().addHandler(handler)
    yield text
    logging.getLogger().removeHandler(handler)


def test_each_channel_answers_for_itself(hook: Webhook, log: io.StringIO) -> None:
    """A message arrives as it is; a channel that fails or is none says so, without its URL, and hinders no other."""
    with webhook() as refusing:
        refusing.status = 401
        urls = [
            hook.url,
            refusing.url.replace("json://", f"json://user:{SECRET}@") + f"/{SECRET}?+X-Token={SECRET}",
            f"nothing://{SECRET}",
            f"json://{SECRET}.invalid/{SECRET}",
        ]
        answers = notifier.send(urls, Message("a <title> & *more*", "line 1\nline 2", "warning"))
        assert refusing.received == []
    assert answers[0] == Answer("1 (JSON)")
    assert [answer.channel for answer in answers] == ["1 (JSON)", "2 (JSON)", "3", "4 (JSON)"]
    assert "401" in (answers[1].problem or "")
    assert answers[2].problem == "Apprise does not understand this URL"
    assert "onnection" in (answers[3].problem or "")
    assert SECRET not in repr(answers) + log.getvalue()
    assert SECRET.lower() not in repr(answers) + log.getvalue()
    [body] = hook.received
    assert (body["title"], body["message"], body["type"]) == ("a <title> & *more*", "line 1\nline 2", "warning")


def alerts_test(*arguments: str) -> Result:
    """Run `pipeline-poc alerts test`; no secret is said."""
    result = CliRunner().invoke(cli, ["alerts", "test", *arguments])
    assert SECRET not in result.output + result.stderr
    return result


@pytest.mark.usefixtures("_kept_log")
def test_the_command_that_tries_the_channels(hook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    """`alerts test` sends a message through each channel and says who took it; status 3 if one did not."""
    result = alerts_test()
    assert (result.exit_code, result.stderr) == (
        WRONG_SETTING,
        "Error: ALERT_URLS is not set: nobody is told of anything\n",
    )
    monkeypatch.setenv("ALERT_URLS", hook.url)
    result = alerts_test()
    assert (result.exit_code, result.stdout) == (0, "1 (JSON)  taken\n")
    assert [body["type"] for body in hook.received] == ["info"]
    assert hook.titles() == ["Test: nothing is wrong"]

    monkeypatch.setenv("ALERT_URLS", f"json://127.0.0.1:1/{SECRET},\n{hook.url}")
    result = alerts_test("--json")
    assert result.exit_code == UNAVAILABLE
    first, second = json.loads(result.stdout)["channels"]
    assert (first["channel"], second) == ("1 (JSON)", {"channel": "2 (JSON)", "problem": None})
    assert first["problem"]
    assert alerts_test().stdout.splitlines()[0].startswith("1 (JSON)  not taken: ")


@pytest.mark.usefixtures("_kept_log")
def test_config_checks_the_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """`config` names those that Apprise does not understand, by number, and sends nothing."""
    monkeypatch.setenv("ALERT_URLS", f"json://127.0.0.1:1/, nothing://{SECRET}, slack://{SECRET}")
    result = CliRunner().invoke(cli, ["config"])
    assert (result.exit_code, result.stderr) == (
        WRONG_SETTING,
        "Error: ALERT_URLS: Apprise does not understand no. 2 and 3 of 3\n",
    )
    monkeypatch.setenv("ALERT_URLS", f"json://127.0.0.1:1/{SECRET},mailto://u:{SECRET}@example.org?to=a@b.org,c@d.org")
    result = CliRunner().invoke(cli, ["config", "--json"])
    assert json.loads(result.stdout)["settings"]["ALERT_URLS"] == {"value": "***", "from": "environment"}
