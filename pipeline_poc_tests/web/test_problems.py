"""Errors: each is a problem as RFC 9457 has it, with an id that is in the log, and tells no secret."""

import logging

import httpx
import pytest

from pipeline_poc.web.problems import Problem
from pipeline_poc_tests.web.stack import web

pytestmark = pytest.mark.anyio


def _problem(response: httpx.Response, status: int) -> Problem:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(response.content)
    assert set(response.json()) >= {"type", "title", "status", "detail", "instance", "requestId"}
    assert (problem.status, problem.instance) == (status, response.request.url.raw_path.decode().partition("?")[0])
    assert problem.request_id == response.headers["x-request-id"]
    assert problem.title
    assert "hunter2" not in response.text
    return problem


@pytest.mark.parametrize(
    ("kind", "status", "detail"),
    [
        ("not-found", 404, "no post 7"),
        ("conflict", 409, "one is under way; wait for it"),
        ("data", 422, "too long"),
        ("unavailable", 503, "MongoDB at mongodb://me:***@db (MONGO_URL) is not available: refused"),
        ("settings", 503, "REDIS_URL redis://:***@host is wrong"),
    ],
)
async def test_errors_of_the_pipeline(kind: str, status: int, detail: str) -> None:
    """An error of the pipeline says what it says to everybody, without passwords."""
    async with web() as stack:
        problem = _problem(await stack.client.get(f"/errors/{kind}"), status)
    assert problem.detail == detail


async def test_when_to_come_again() -> None:
    """What is away is asked for again after as long as it said, else after a few seconds."""
    async with web() as stack:
        assert (await stack.client.get("/errors/busy")).headers["retry-after"] == "12"
        assert int((await stack.client.get("/errors/unavailable")).headers["retry-after"]) > 0


async def test_what_nobody_expected(caplog: pytest.LogCaptureFixture) -> None:
    """What nobody expected is answered without a word of it; the log has the stack under the request id, once."""
    async with web() as stack:
        response = await stack.client.get("/errors/unexpected")
    problem = _problem(response, 500)
    assert "RuntimeError" not in response.text
    [record] = [record for record in caplog.records if record.exc_info]
    assert record.levelno == logging.ERROR
    assert vars(record)["request_id"] == problem.request_id


async def test_values_that_are_not_valid() -> None:
    """Each wrong value is named, and none is repeated."""
    async with web() as stack:
        for body in ({"size": "hunter2"}, {}, ["hunter2"] * 50):
            problem = _problem(await stack.client.post("/things", json=body), 422)
            assert problem.errors
            assert problem.errors[0].loc[0] == "body"
        broken = await stack.client.post(
            "/things", content=b'{"size": hunter2', headers={"content-type": "application/json"}
        )
        assert _problem(broken, 422).errors


async def test_what_is_not_there() -> None:
    """Unknown paths and wrong methods among our own are problems, too, and say what is allowed."""
    async with web() as stack:
        _problem(await stack.client.get("/things/no%20such?secret=hunter2"), 404)
        response = await stack.client.put("/things")
    _problem(response, 405)
    assert response.headers["allow"]
