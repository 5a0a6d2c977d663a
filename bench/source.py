"""A source on this machine, in a process of its own, so that its CPU is nobody else's."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
from pydantic import SecretStr

from pipeline_poc.embedded import free_port


@contextmanager
def serving(posts: int) -> Iterator[SecretStr]:
    """Serve so many posts; yields their URL once the answer is made and at hand."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/posts?n={posts}"
    with subprocess.Popen([sys.executable, "-m", "pipeline_poc.stand_in", "--port", str(port)]) as process:
        try:
            await_answer(f"http://127.0.0.1:{port}/posts?n=1")
            # Not kept: it would count as memory of whoever is measured here.
            with httpx.stream("GET", url, timeout=600) as answer:
                answer.raise_for_status()
                for _ in answer.iter_raw():
                    pass
            yield SecretStr(url)
        finally:
            process.terminate()


def await_answer(url: str, timeout_s: float = 60.0) -> None:
    """Wait until something answers there with success."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            httpx.get(url, timeout=2).raise_for_status()
            return
        time.sleep(0.05)
    raise TimeoutError(f"{url} does not answer within {timeout_s:g} s")
