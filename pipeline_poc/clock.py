"""The one place that asks what time it is."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """Return the current time, aware, UTC, cut to milliseconds.

    MongoDB stores milliseconds: a time that has more would differ from itself once read back.
    """
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)
