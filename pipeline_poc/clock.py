"""The one place that asks what time it is."""

from datetime import UTC, datetime, timedelta

_shift = timedelta(0)


def utc_now() -> datetime:
    """Return the current time, aware, UTC, cut to milliseconds.

    MongoDB stores milliseconds: a time that has more would differ from itself once read back.
    """
    now = datetime.now(UTC) + _shift
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def shift(by: timedelta) -> None:
    """Set this process's clock before or behind the right time; for tests of clocks that are wrong."""
    global _shift  # noqa: PLW0603 - a process has one clock
    _shift = by
