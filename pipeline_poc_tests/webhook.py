"""A webhook: a server that keeps the JSON that is posted to it."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Webhook:
    """What was posted, and how posts are answered.

    Attributes:
        received: The bodies, as they came.
        status: The answer to each post; others than 200 keep nothing.
    """

    def __init__(self, port: int) -> None:
        self.url = f"json://127.0.0.1:{port}/hook"
        self.received: list[dict[str, Any]] = []
        self.status = 200

    def titles(self) -> list[str]:
        """Return the titles of what came since this was asked last."""
        titles = [body["title"] for body in self.received]
        self.received.clear()
        return titles


@contextmanager
def webhook() -> Iterator[Webhook]:
    """Serve a webhook on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if served.status == 200:
                served.received.append(json.loads(body))
            self.send_response(served.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that the library gives it
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served = Webhook(server.server_port)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield served
        server.shutdown()
        thread.join()
