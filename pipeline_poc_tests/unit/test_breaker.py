"""The breaker: when a worker begins nothing, and when it tries again."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline_poc.breaker import Breaker
from pipeline_poc.errors import ServiceUnavailable, TransientError


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


class Store:
    """A store that answers, or does not, and counts the pings."""

    def __init__(self, *, is_up: bool) -> None:
        self.is_up = is_up
        self.pinged: list[str] = []

    def __call__(self, setting: str) -> bool:
        """Answer a ping."""
        self.pinged.append(setting)
        return self.is_up


def away(retry_after_s: float | None = None) -> ServiceUnavailable:
    """Return the error of a store that is away."""
    return ServiceUnavailable("The store", "SQL_URL", "mysql://u:secret@h/d", "gone", retry_after_s=retry_after_s)


def longest(_low: float, high: float) -> float:
    """Draw the upper bound."""
    return high


def test_it_is_closed_at_first() -> None:
    """Until something fails, jobs begin without a ping; a success changes nothing."""
    breaker, store = Breaker(1, 60), Store(is_up=False)
    assert breaker.may_try(store)
    assert not breaker.succeeded()
    assert (breaker.state, breaker.reason, store.pinged) == ("closed", None, [])


def test_open_half_open_closed() -> None:
    """After a failure nothing begins until the pause is over and the store answers; a success closes it."""
    clock, store = Clock(), Store(is_up=True)
    breaker = Breaker(1, 60, clock=clock, uniform=longest)
    assert breaker.failed(away())
    assert breaker.state == "open"
    assert "gone" in (breaker.reason or "")
    assert "secret" not in (breaker.reason or "")
    clock.now += 0.99
    assert not breaker.may_try(store)
    assert store.pinged == []
    clock.now += 0.02
    assert breaker.may_try(store)
    assert (breaker.state, store.pinged) == ("half open", ["SQL_URL"])
    assert breaker.succeeded()
    assert (breaker.state, breaker.reason) == ("closed", None)


def test_failures_in_a_row_make_the_pause_longer() -> None:
    """The pause doubles with each failure of a trial, up to the cap; a success resets it; it opens once."""
    clock, store = Clock(), Store(is_up=True)
    breaker = Breaker(1, 10, clock=clock, uniform=longest)
    pauses, opened = [], 0
    for _ in range(6):
        opened += breaker.failed(away())
        begun_at = clock.now
        while not breaker.may_try(store):
            clock.now += 0.25
        pauses.append(clock.now - begun_at)
    assert (pauses, opened) == ([1, 2, 4, 8, 10, 10], 1)
    breaker.succeeded()
    breaker.failed(away())
    clock.now += 1
    assert breaker.may_try(store)


def test_a_store_that_does_not_answer_is_pinged_every_two_seconds() -> None:
    """However long an outage lasts, the pause does not grow while the ping fails."""
    clock, store = Clock(), Store(is_up=False)
    breaker = Breaker(1, 60, clock=clock, uniform=longest)
    breaker.failed(away())
    for _ in range(1000):
        clock.now += 0.1
        assert not breaker.may_try(store)
    assert 45 <= len(store.pinged) <= 51
    store.is_up = True
    clock.now += 2
    assert breaker.may_try(store)


def test_an_error_of_no_store_needs_no_ping() -> None:
    """Other transient errors wait for the pause only."""
    clock, store = Clock(), Store(is_up=False)
    breaker = Breaker(1, 60, clock=clock, uniform=longest)
    breaker.failed(TransientError("a deadlock"))
    assert not breaker.may_try(store)
    clock.now += 1
    assert breaker.may_try(store)
    assert store.pinged == []


@given(
    base_s=st.floats(0.001, 100),
    factor=st.floats(1, 1000),
    failures=st.integers(1, 60),
    asked_s=st.none() | st.floats(0, 1e6),
    share=st.floats(0, 1),
)
def test_no_pause_is_beyond_its_bounds(
    base_s: float, factor: float, failures: int, asked_s: float | None, share: float
) -> None:
    """The first pause never exceeds the base, none the cap, whatever the other side asks for."""
    clock, cap_s = Clock(), base_s * factor
    breaker = Breaker(base_s, cap_s, clock=clock, uniform=lambda low, high: low + share * (high - low))
    for number in range(failures):
        breaker.failed(away(asked_s))
        begun_at = clock.now
        longest_s = cap_s if number or asked_s else base_s
        clock.now += longest_s * 1.001 + 1e-6
        assert breaker.may_try(lambda _: True), clock.now - begun_at
