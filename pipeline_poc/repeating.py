"""What is done every so often in a thread, beside what the main thread is at."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeating(action: Callable[[], None], interval_s: float, name: str) -> Iterator[None]:
    """Call something every so often within the context, whose end waits for the call that is under way.

    Args:
        action: Deals with its own errors: one that it raises ends the repeating.
        interval_s: Pause before each call, in seconds.
        name: Of the thread.
    """
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(interval_s):
            action()

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
