"""Puts posts, batches and jobs into the stores, as the pipeline's own programs would."""

import os
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import httpx
from pydantic import SecretStr

from pipeline_poc.clock import utc_now
from pipeline_poc.services import Services
from pipeline_poc.settings import Settings
from pipeline_poc_tests.posts import hashed


def store(services: Services, ids: Sequence[int]) -> list[str]:
    """Store posts as an ingestion does, ten in a batch; returns the batches' ids."""
    batches = []
    for start in range(0, len(ids), 10):
        posts, now = [hashed(each) for each in ids[start : start + 10]], utc_now()
        batch_id = services.ledger.create(len(posts), now)
        known = services.raw_store.versions([post.external_id for post in posts])
        services.raw_store.store(posts, known, batch_id, now)
        assert services.ledger.seal(batch_id, len(posts))
        batches.append(batch_id)
    return batches


def refuse(services: Services, batch_id: str, *ids: int, code: str = "relational_1406") -> None:
    """Quarantine posts of a batch, as a migration does that the relational store refuses them to."""
    services.raw_store.quarantine_posts(batch_id, dict.fromkeys(ids, (code, "too long")), utc_now())


def at(text: str) -> datetime:
    """Read a time of an answer."""
    assert text.endswith("Z")
    return datetime.fromisoformat(text)


def environment_of(settings: Settings) -> dict[str, str]:
    """Return the environment of a program that has these settings."""
    values: dict[str, Any] = {name: getattr(settings, name) for name in settings.model_fields_set}
    shown = {
        name.upper(): value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in values.items()
    }
    return dict(os.environ) | shown


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """Return the problem that an answer is."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert (body["status"], body["requestId"]) == (status, answer.headers["x-request-id"])
    assert body["detail"]
    return body
