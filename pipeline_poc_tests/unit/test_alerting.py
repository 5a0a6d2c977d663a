"""Of which problems people are told, and when; nothing is sent here."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

import pytest

from pipeline_poc.alerting import Alert, News, Problem, State, dump, evaluate, load, message

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
REDIS = Problem("redis", "Redis is away", "connection refused", "docs/x.md#redis", hold_s=120)
RUN = Problem("run", "a run failed", "the source is away")


class Story:
    """Evaluates one moment after the other, the state through its text as between two ticks."""

    def __init__(self) -> None:
        self.text: str | None = None
        self.state: State = {}

    def at(self, minutes: float, *problems: Problem, unknown: Iterable[str] = ()) -> list[str]:
        """Return stage and title of the news at that time."""
        now = BEGIN + timedelta(minutes=minutes)
        news, self.state = evaluate(load(self.text), problems, set(unknown), now)
        self.text = dump(self.state)
        return [f"{each.stage} {each.title}" for each in news]


@pytest.fixture
def story() -> Story:
    """Nothing is known yet."""
    return Story()


def test_one_message_as_it_begins_and_one_as_it_ends(story: Story) -> None:
    """People are told at once, then not again, and once more when it is over."""
    assert story.at(0) == []
    assert story.at(1, RUN) == ["begins a run failed"]
    assert [story.at(minute, RUN) for minute in range(2, 200)] == [[]] * 198
    assert story.at(200) == []  # It may come back within a minute.
    assert story.at(201) == ["ends a run failed"]
    assert story.at(202) == []
    assert story.state == {}


def test_it_has_to_last(story: Story) -> None:
    """What is over before its time is never told of, neither as it begins nor as it ends."""
    assert [story.at(0, REDIS), story.at(1.9, REDIS), story.at(2), story.at(3)] == [[]] * 4
    assert [story.at(4, REDIS), story.at(5.9, REDIS)] == [[]] * 2
    assert story.at(6, REDIS) == ["begins Redis is away"]
    assert story.state["redis"].since == BEGIN + timedelta(minutes=4)


def test_what_comes_and_goes_is_one_problem(story: Story) -> None:
    """Gone for less than a minute is not over."""
    assert story.at(0, RUN) == ["begins a run failed"]
    for minute in range(1, 20):
        assert story.at(minute) == []
        assert story.at(minute + 0.9, RUN) == []
    assert story.at(30) == []
    assert story.at(31) == ["ends a run failed"]


def test_a_reminder_each_day(story: Story) -> None:
    """What lasts for a day is told of again, with what is seen of it then."""
    assert story.at(0, RUN) == ["begins a run failed"]
    told = [hour for hour in range(1, 80) if story.at(60 * hour, RUN)]
    assert told == [24, 48, 72]


def test_what_nobody_can_tell_stays_as_it_was(story: Story) -> None:
    """A problem that can't be looked at neither begins nor ends nor is forgotten."""
    assert story.at(0, RUN, REDIS) == ["begins a run failed"]
    assert [story.at(minute, unknown=["run", "redis", "else"]) for minute in (1, 2, 3000)] == [[]] * 3
    assert set(story.state) == {"run", "redis"}
    assert story.at(3001, RUN) == ["lasts a run failed"]


def test_growth_is_news_once_an_hour(story: Story) -> None:
    """More than people were told of is told; fewer is not, and neither is what only comes back to its number."""

    def quarantined(count: int) -> Problem:
        return Problem("quarantine", "records wait in quarantine", f"{count} records", count=count)

    assert story.at(0, quarantined(3)) == ["begins records wait in quarantine"]
    assert story.at(30, quarantined(4)) == []
    assert story.at(60, quarantined(5)) == ["grows records wait in quarantine"]
    assert story.at(120, quarantined(5)) == []
    assert story.at(130, quarantined(2)) == []
    assert story.at(140, quarantined(4)) == ["grows records wait in quarantine"]
    assert story.at(150) == []
    assert story.at(152) == ["ends records wait in quarantine"]


def test_news_that_nobody_took_are_news_again() -> None:
    """Whoever keeps the state from before gets the same news, with the time when the problem was seen first."""
    _, before = evaluate({}, [REDIS], set(), BEGIN)
    first, _ = evaluate(before, [REDIS], set(), BEGIN + timedelta(minutes=3))
    second, _ = evaluate(before, [REDIS], set(), BEGIN + timedelta(minutes=9))
    assert first == second == [News("begins", REDIS.title, REDIS.text, BEGIN, REDIS.runbook)]


def test_problems_do_not_mix(story: Story) -> None:
    """Each has its own beginning and end; what begins comes before what ends."""
    assert story.at(0, RUN) == ["begins a run failed"]
    assert story.at(1, REDIS) == []
    assert story.at(3, REDIS) == ["begins Redis is away", "ends a run failed"]
    assert set(story.state) == {"redis"}


def test_a_clock_that_goes_back_tells_nothing(story: Story) -> None:
    """Neither as a reminder nor as an end."""
    assert story.at(0, RUN) == ["begins a run failed"]
    assert story.at(-60, RUN) == []
    assert story.at(-50) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"a": {"title": "t"}}'])
def test_a_state_that_cannot_be_read_begins_anew(text: str) -> None:
    """A cursor that somebody set by hand keeps no alert from being sent."""
    assert load(text) == {}


def test_the_state_survives_as_text() -> None:
    """All of it comes back."""
    state: Mapping[str, Alert] = {
        "a": Alert("ä", "text", BEGIN),
        "b": Alert("t", "text", BEGIN, told_at=BEGIN, told_count=3, gone_at=BEGIN),
    }
    assert load(dump(state)) == state
    assert load(None) == {}


def test_a_message() -> None:
    """It says what begins and ends, since when and where to read on, in plain words; its kind is that of the worst."""
    begins = News("begins", REDIS.title, REDIS.text, BEGIN, REDIS.runbook)
    ends, lasts = News("ends", RUN.title, RUN.text, BEGIN), News("lasts", RUN.title, RUN.text, BEGIN)
    sent = message([begins, ends], "pipeline-poc, test")
    assert (sent.title, sent.kind) == ("Problem: Redis is away, and 1 more", "failure")
    assert sent.body == (
        "Problem: Redis is away\nconnection refused\nSince 2026-01-01 00:00:00 UTC.\nWhat to do: docs/x.md#redis\n\n"
        "Over: a run failed\nIt was: the source is away\nSince 2026-01-01 00:00:00 UTC.\n\n"
        "pipeline-poc, test"
    )
    assert (message([lasts, ends], "").title, message([lasts, ends], "").kind) == (
        "Still: a run failed, and 1 more",
        "warning",
    )
    assert (message([ends], "").title, message([ends], "").kind) == ("Over: a run failed", "success")
