"""Of which problems people are told, and when: as one begins, as it grows, daily while it lasts, and when it is over.

Nothing here looks or sends. What is known, what is wrong now and the time make the news and what is known next. Whoever
sends the news keeps what is known next only once somebody has taken them, so that none is lost.
"""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from pydantic import TypeAdapter, ValidationError

logger = logging.getLogger(__name__)

Stage = Literal["begins", "grows", "lasts", "ends"]

_REMINDER = timedelta(days=1)
_GROWTH_PAUSE = timedelta(hours=1)
"""A flood of bad records is news once an hour, not with each record."""
_CLEAR = timedelta(minutes=1)
"""So long a problem has to be gone: one that comes and goes is one problem."""
_HEADLINES: dict[Stage, str] = {"begins": "Problem", "grows": "Worse", "lasts": "Still", "ends": "Over"}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong now.

    Attributes:
        key: Names it, the same as long as it lasts.
        title: What is wrong, in a few words.
        text: What was seen, and what to do about it; no secrets.
        runbook: Where to read on.
        hold_s: Nobody is told before it has lasted so long, in seconds.
        count: How many things wait for a person; people are told again when there are more.
    """

    key: str
    title: str
    text: str
    runbook: str | None = None
    hold_s: float = 0
    count: int = 0


@dataclass(frozen=True, slots=True)
class Alert:
    """What is known of a problem.

    Attributes:
        since: When it was seen first.
        told_at: When people were told last; None where they were not yet.
        told_count: How many things waited then, or fewer, if some went since.
        gone_at: When it was first seen no more; None while it lasts.
    """

    title: str
    text: str
    since: datetime
    told_at: datetime | None = None
    told_count: int = 0
    gone_at: datetime | None = None


State = Mapping[str, Alert]
"""What is known of each problem, by key."""


@dataclass(frozen=True, slots=True)
class News:
    """What people have to be told of a problem."""

    stage: Stage
    title: str
    text: str
    since: datetime
    runbook: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent; ``kind`` decides on colours and icons."""

    title: str
    body: str
    kind: Literal["failure", "warning", "success", "info"]


def evaluate(
    before: State, problems: Iterable[Problem], unknown: Collection[str], now: datetime
) -> tuple[list[News], State]:
    """Compare what is wrong now with what is known.

    Args:
        before: What is known.
        problems: Everything that is wrong now.
        unknown: Keys of which nobody can say anything now: what is known of them stays.
        now: When.

    Returns:
        The news, worst first, and what is known once they were told.
    """
    wrong = {problem.key: problem for problem in problems}
    news: list[News] = []
    after: dict[str, Alert] = {}
    for key in dict.fromkeys([*before, *wrong]):
        alert, said = before.get(key), None
        if key in wrong:
            alert, said = _there(alert, wrong[key], now)
        elif alert and key not in unknown:
            alert, said = _gone(alert, now)
        if alert:
            after[key] = alert
        if said:
            news.append(said)
    return sorted(news, key=lambda each: list(_HEADLINES).index(each.stage)), after


def _there(alert: Alert | None, problem: Problem, now: datetime) -> tuple[Alert, News | None]:
    alert = alert or Alert(problem.title, problem.text, since=now)
    alert = replace(
        alert,
        title=problem.title,
        text=problem.text,
        told_count=min(alert.told_count, problem.count),
        gone_at=None,
    )
    stage = _due(alert, problem, now)
    if stage is None:
        return alert, None
    news = News(stage, problem.title, problem.text, alert.since, problem.runbook)
    return replace(alert, told_at=now, told_count=problem.count), news


def _due(alert: Alert, problem: Problem, now: datetime) -> Stage | None:
    if alert.told_at is None:
        return "begins" if now - alert.since >= timedelta(seconds=problem.hold_s) else None
    if problem.count > alert.told_count and now - alert.told_at >= _GROWTH_PAUSE:
        return "grows"
    return "lasts" if now - alert.told_at >= _REMINDER else None


def _gone(alert: Alert, now: datetime) -> tuple[Alert | None, News | None]:
    if alert.told_at is None:
        return None, None
    gone_at = alert.gone_at or now
    if now - gone_at < _CLEAR:
        return replace(alert, gone_at=gone_at), None
    return None, News("ends", alert.title, alert.text, alert.since)


def message(news: Sequence[News], signature: str) -> Message:
    """Put all news into one message, so that an outage of much is not as many messages.

    Args:
        news: At least one, worst first.
        signature: Which pipeline this is.
    """
    first, more = news[0], len(news) - 1
    title = f"{_HEADLINES[first.stage]}: {first.title}" + (f", and {more} more" if more else "")
    kind: Literal["failure", "warning", "success"] = (
        "success" if first.stage == "ends" else "warning" if first.stage == "lasts" else "failure"
    )
    return Message(title, "\n\n".join([*map(_paragraph, news), signature]), kind)


def _paragraph(news: News) -> str:
    said = f"It was: {news.text}" if news.stage == "ends" else news.text
    lines = [f"{_HEADLINES[news.stage]}: {news.title}", said, f"Since {news.since:%Y-%m-%d %H:%M:%S} UTC."]
    if news.runbook:
        lines.append(f"What to do: {news.runbook}")
    return "\n".join(lines)


_STATE = TypeAdapter(dict[str, Alert])


def dump(state: State) -> str:
    """Return what is known as text."""
    return _STATE.dump_json(dict(state), exclude_defaults=True).decode()


def load(text: str | None) -> State:
    """Return what is known from its text; where that is none of ours, nothing is, and people are told once more."""
    if text is None:
        return {}
    try:
        return _STATE.validate_json(text)
    except ValidationError:
        logger.warning("state of the alerts is not readable and begins anew")
        return {}
