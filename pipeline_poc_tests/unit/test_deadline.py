"""Blocking calls with a deadline, as seen by several event loops, one after the other."""

import asyncio
import threading

import pytest

from pipeline_poc.deadline import DeadlineExceeded, SharedCalls


def test_a_late_answer(caplog: pytest.LogCaptureFixture) -> None:
    """A call that outlives its loop is not made twice; the next loop gets its answer, and nothing is logged."""
    calls, answers, asked = SharedCalls(), threading.Event(), threading.Semaphore(2)

    def look() -> str:
        assert asked.acquire(blocking=False)
        assert answers.wait(10)
        return "there"

    for _ in range(2):
        with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.01 s"):
            asyncio.run(calls.run("store", look, 0.01))

    async def ask_again() -> str:
        answers.set()
        return await calls.run("store", look, 10)

    assert asyncio.run(ask_again()) == "there"
    assert asked.acquire(blocking=False), "the call was made once"
    assert caplog.text == ""


def test_what_a_call_raises() -> None:
    """An error reaches whoever asked."""
    with pytest.raises(ZeroDivisionError):
        asyncio.run(SharedCalls().run("x", lambda: 1 / 0, 10))
