"""Sends messages to people through Apprise: chats, e-mail, webhooks and whatever else ALERT_URLS names.

The URLs hold tokens and passwords. A channel is named by its number among them, and what Apprise says of one is told
without any part of its URL.
"""

import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from pipeline_poc.alerting import Message

if TYPE_CHECKING:
    from apprise import NotifyBase

_TIMEOUT_S = 20.0
"""For one channel; all are asked at once, and a tick of Dagster's sensors may take 60 s."""
_SECRET_MIN = 4
"""Shorter parts of a URL are no secrets, but might be parts of any word."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a channel did with a message.

    Attributes:
        channel: Its number in ALERT_URLS, counted from 1, and its kind, such as ``1 (Slack)``.
        problem: Why it did not take the message; None where it did.
    """

    channel: str
    problem: str | None = None


def send(urls: Sequence[str], message: Message) -> list[Answer]:
    """Send a message through all channels at once.

    Args:
        urls: The channels, as Apprise understands them; at least one.
        message: Plain text; Apprise turns it into what a channel shows.

    Returns:
        The answer of each, in their order.
    """
    services = [_service(url) for url in urls]
    with ThreadPoolExecutor(len(urls)) as pool:
        return list(pool.map(_send_one, range(1, len(urls) + 1), urls, services, [message] * len(urls)))


def misunderstood(urls: Sequence[str]) -> list[int]:
    """Return the numbers of those URLs that Apprise does not understand, counted from 1; nothing is sent."""
    return [number for number, url in enumerate(urls, 1) if _service(url) is None]


def _service(url: str) -> "NotifyBase | None":
    import apprise  # noqa: PLC0415 - it loads all its plugins, more than a second that nobody needs without an alert

    # What matters of its log is in the answers; there it might quote URLs.
    logging.getLogger(apprise.LOGGER_NAME).propagate = False
    asset = apprise.AppriseAsset(app_id="pipeline-poc", app_desc="pipeline-poc")
    return apprise.Apprise.instantiate(url, asset=asset)


def _send_one(number: int, url: str, service: "NotifyBase | None", message: Message) -> Answer:
    from apprise import Apprise, NotifyFormat  # noqa: PLC0415 - see `_service`

    if service is None:
        return Answer(str(number), "Apprise does not understand this URL")
    channel = f"{number} ({service.service_name})"
    sender = Apprise([service])
    with sender.notify(
        message.body,
        message.title,
        message.kind,
        body_format=NotifyFormat.TEXT,
        timeout=_TIMEOUT_S,
    ) as result:
        if result:
            return Answer(channel)
        said = "; ".join(dict.fromkeys(entry.message.strip() for entry in result.logs()))
        return Answer(channel, _without_parts(said, url)[:300] or f"{result.status.name.lower()}, no reason given")


def _without_parts(text: str, url: str) -> str:
    """Return a text with all that it has of a URL as ``***``."""
    _, _, rest = url.partition("://")
    parts = {part for form in (rest, unquote(rest)) for part in re.split(r"[/:@?&=,;#\s]+", form)}
    for part in sorted(parts, key=len, reverse=True):
        if len(part) >= _SECRET_MIN:
            text = text.replace(part, "***")
    return text
