"""The backoff decision: pure, the same for the source, the stores and the jobs."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pipeline_poc.errors import TerminalError, TransientError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently something is tried.

    Attributes:
        max_attempts: Attempts in all, the first one included.
        base_s: Upper bound of the first delay, in seconds.
        cap_s: Upper bound of every delay, in seconds.
    """

    max_attempts: int
    base_s: float
    cap_s: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do after a failed attempt.

    Attributes:
        delay_s: Seconds until the next attempt; None when there is none.
        systemic: Whether the cause lies outside the data, so that it can heal without a person.
    """

    delay_s: float | None
    systemic: bool


def decide(
    error: BaseException,
    attempt: int,
    policy: RetryPolicy,
    *,
    uniform: Callable[[float, float], float] = random.uniform,
) -> Decision:
    """Decide whether and when to try again: exponential backoff with full jitter, capped.

    Args:
        error: What the attempt raised. Terminal errors are never tried again; errors that
            the pipeline doesn't know are, since a crash may be an accident.
        attempt: Number of the attempt that failed; counts from 1.
        policy: The numbers.
        uniform: Draws from a closed interval; replaced in tests.

    Returns:
        The delay in [0, min(cap, base × 2^(attempt-1))], never below what the other side asked for.
    """
    systemic = isinstance(error, TransientError)
    if isinstance(error, TerminalError) or attempt >= policy.max_attempts:
        return Decision(delay_s=None, systemic=systemic)
    bound_s = min(policy.cap_s, policy.base_s * 2 ** min(attempt - 1, 32))
    asked_s = (error.retry_after_s or 0.0) if isinstance(error, TransientError) else 0.0
    return Decision(delay_s=max(uniform(0.0, bound_s), asked_s), systemic=systemic)


def call(func: Callable[[], T], policy: RetryPolicy, *, sleep: Callable[[float], None] = time.sleep) -> T:
    """Call ``func`` until it succeeds, gives up or fails terminally; waits in this thread.

    Raises:
        PipelineError: The error of the last attempt.
    """
    attempt = 1
    while True:
        try:
            return func()
        except TransientError as error:
            decision = decide(error, attempt, policy)
            if decision.delay_s is None:
                raise
            sleep(decision.delay_s)
            attempt += 1
