"""The backoff decision: bounded, jittered, polite, and final where a retry can't help."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_poc.errors import DataError, PipelineError, ServiceUnavailable, TerminalError, TransientError
from pipeline_poc.retry import Decision, RetryPolicy, call, decide

POLICIES = st.builds(
    RetryPolicy, max_attempts=st.integers(1, 100), base_s=st.floats(0.001, 10), cap_s=st.floats(0.001, 100)
)
POLICY = RetryPolicy(max_attempts=3, base_s=1.0, cap_s=10.0)


@given(policy=POLICIES, attempt=st.integers(1, 1000), asked_s=st.none() | st.floats(0, 1000))
def test_bounds(policy: RetryPolicy, attempt: int, asked_s: float | None) -> None:
    """A delay lies between what the other side asked for and the doubled, capped bound; attempts are counted."""
    decision = decide(TransientError("later", retry_after_s=asked_s), attempt, policy)
    assert decision.systemic
    if attempt >= policy.max_attempts:
        assert decision.delay_s is None
    else:
        assert decision.delay_s is not None
        bound_s = min(policy.cap_s, policy.base_s * 2 ** (attempt - 1))
        assert (asked_s or 0) <= decision.delay_s <= max(bound_s, asked_s or 0)


def test_full_jitter() -> None:
    """The delay is drawn from the whole interval from 0 to the bound, which doubles up to the cap."""
    drawn: list[tuple[float, float]] = []

    def middle(low: float, high: float) -> float:
        drawn.append((low, high))
        return 0.5

    policy = RetryPolicy(max_attempts=100, base_s=1.0, cap_s=10.0)
    for attempt in (1, 2, 3, 4, 5, 99):
        decision = decide(TransientError("later"), attempt, policy, uniform=middle)
        assert decision.delay_s == 0.5
    assert drawn == [(0.0, 1.0), (0.0, 2.0), (0.0, 4.0), (0.0, 8.0), (0.0, 10.0), (0.0, 10.0)]


def test_retry_after_wins_over_the_cap() -> None:
    """What the other side asks for is waited, also beyond the cap."""
    assert decide(TransientError("later", retry_after_s=99.0), 1, POLICY) == Decision(delay_s=99.0, systemic=True)


@pytest.mark.parametrize("error", [TerminalError("no"), DataError("relational_1406", "too long")])
def test_terminal_errors_are_final(error: TerminalError) -> None:
    """What fails in the same way each time is never tried again."""
    assert decide(error, 1, POLICY) == Decision(delay_s=None, systemic=False)


@pytest.mark.parametrize("error", [ValueError("?"), PipelineError("?"), MemoryError()])
def test_unknown_errors_are_tried_again(error: BaseException) -> None:
    """An error that nobody foresaw may be an accident: it is tried again, but never counts as an outage."""
    first, last = decide(error, 1, POLICY), decide(error, 3, POLICY)
    assert first.delay_s is not None
    assert 0 <= first.delay_s <= 1
    assert last == Decision(delay_s=None, systemic=False)
    assert not first.systemic


def test_exhausted() -> None:
    """When the attempts run out there is no next one, but an outage is still known as one."""
    error = ServiceUnavailable("MySQL", "SQL_URL", "mysql://h", "gone")
    assert decide(error, 3, POLICY) == Decision(delay_s=None, systemic=True)


def test_call_succeeds_in_the_end() -> None:
    """A call that fails transiently is repeated with waits in between, and its value returned."""
    slept: list[float] = []
    errors = [TransientError("1"), TransientError("2", retry_after_s=7.0)]

    def func() -> str:
        if errors:
            raise errors.pop(0)
        return "value"

    assert call(func, POLICY, sleep=slept.append) == "value"
    assert len(slept) == 2
    assert 0 <= slept[0] <= 1
    assert slept[1] == 7.0


@pytest.mark.parametrize(("error", "calls"), [(TransientError("x"), 3), (TerminalError("x"), 1), (ValueError("x"), 1)])
def test_call_gives_up(error: Exception, calls: int) -> None:
    """A call raises the last error itself, once attempts run out or at once where a retry can't help."""
    made: list[int] = []

    def func() -> None:
        made.append(1)
        raise error

    with pytest.raises(type(error)) as caught:
        call(func, POLICY, sleep=lambda _: None)
    assert caught.value is error
    assert len(made) == calls
