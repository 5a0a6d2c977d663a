"""What `/openapi.json` says of answers, held against the answers."""

import re
from functools import cached_property
from typing import Any

import httpx
import jsonschema_rs

METHODS = ("get", "post", "put", "patch", "delete")


def checked(client: httpx.Client) -> httpx.Client:
    """Return the client; from now on, every answer of ours must be as the server's own schema says."""
    if not _known:
        _known.append(Contract(client.get("/openapi.json").json()))
    client.event_hooks = {"response": [_known[0].check]}
    return client


_known: list["Contract"] = []
"""The schema, once a server has told it: it is the same whatever the settings, and takes a while to make."""


class Contract:
    """The schema of the endpoints."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document

    @cached_property
    def _paths(self) -> list[tuple[re.Pattern[str], dict[str, Any]]]:
        return [
            (re.compile(re.sub(r"\\{[^}]*\\}", "[^/]+", re.escape(path))), operations)
            for path, operations in self.document["paths"].items()
        ]

    @property
    def operations(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Path, method and description of everything that can be asked for."""
        return [
            (path, method, operation)
            for path, operations in self.document["paths"].items()
            for method, operation in operations.items()
        ]

    def check(self, response: httpx.Response) -> None:
        """Fail if an answer is none of those that are documented; streams are left alone."""
        path, method = response.request.url.path, response.request.method.lower()
        operations: dict[str, Any] = next((found for known, found in self._paths if known.fullmatch(path)), {})
        if method not in operations:
            return
        said = operations[method]["responses"]
        where = f"{method} {path} {response.status_code}"
        assert str(response.status_code) in said, f"{where} is not documented"
        content = said[str(response.status_code)]["content"]
        kind = response.headers["content-type"].partition(";")[0]
        assert kind in content, f"{where}: {kind} is not documented"
        if kind.endswith("json"):
            response.read()
            schema = {"components": self.document["components"], **content[kind]["schema"]}
            assert len(schema) > 1, f"{where} has no schema"
            jsonschema_rs.validator_for(schema).validate(response.json())
