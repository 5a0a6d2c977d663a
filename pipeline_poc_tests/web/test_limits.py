"""Rate limits: counted on Redis, in this process while that is away, and never at the price of waiting."""

import asyncio
import logging
import re
from typing import Any

import pytest
import redis

from pipeline_poc.chaos.servers import Redis
from pipeline_poc.settings import Settings
from pipeline_poc.web import limits
from pipeline_poc.web.limits import Limiter
from pipeline_poc_tests.web.stack import OPERATE_HASH, OPERATE_TOKEN, READ_HASH, READ_TOKEN, WITH_TOKENS, bearer, web

pytestmark = pytest.mark.anyio

FEW: dict[str, Any] = {"rate_limit_read": "5/minute", "rate_limit_operate": "2/hour"}
THING = {"size": 1}
IN_EARNEST_S = limits.REDIS_TIMEOUT_S


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a Redis that is up however busy the machine is; tests without one lose patience."""
    monkeypatch.setattr(limits, "REDIS_TIMEOUT_S", 20.0)


@pytest.fixture
def impatience(_patience: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait no longer than in earnest."""
    monkeypatch.setattr(limits, "REDIS_TIMEOUT_S", IN_EARNEST_S)


def _keys(url: str) -> list[str]:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return sorted(client.keys())


async def test_headers(redis_url: str) -> None:
    """Each answer says what the limit is, what is left of it, and for how long."""
    async with web(lambda: redis_url, **FEW) as stack:
        for left in (4, 3):
            response = await stack.client.get("/things")
            assert response.headers["ratelimit-policy"] == '"read";q=5;w=60'
            field = re.fullmatch(r'"read";r=(\d+);t=(\d+)', response.headers["ratelimit"])
            assert field is not None
            assert int(field[1]) == left
            assert 1 <= int(field[2]) <= 60
            assert "retry-after" not in response.headers
        response = await stack.client.post("/things", json=THING)
        assert response.headers["ratelimit-policy"] == '"operate";q=2;w=3600'
        assert response.headers["ratelimit"].startswith('"operate";r=1;t=')


@pytest.mark.parametrize("place", ["redis", "here"])
async def test_limit(place: str, redis_url: str) -> None:
    """Looks and actions have limits of their own; beyond them stands 429, with the time to come again."""
    async with web(lambda: redis_url if place == "redis" else None, **FEW) as stack:
        for _ in range(5):
            assert (await stack.client.get("/things")).status_code == 200
        for method in ("GET", "HEAD", "OPTIONS"):
            response = await stack.client.request(method, "/things")
            assert response.status_code == 429
            assert 1 <= int(response.headers["retry-after"]) <= 60
            assert response.headers["ratelimit"].startswith('"read";r=0;t=')
        assert (await stack.client.get("/things")).headers["content-type"] == "application/problem+json"
        for status in (200, 200, 429):
            assert (await stack.client.post("/things", json=THING)).status_code == status
        for path in ("/health/live", "/pipeline/static/x.css", "/", "/graphql"):
            response = await stack.client.get(path)
            assert response.status_code == 200
            assert "ratelimit" not in response.headers
    keys = _keys(redis_url)
    assert len(keys) == (2 if place == "redis" else 0)
    assert all(key.startswith("pipeline_poc:rate:") for key in keys)


async def test_who_is_counted(redis_url: str) -> None:
    """A token is counted by its name, wherever it is used from and with its logins; without one, the address."""
    async with (
        web(lambda: redis_url, **WITH_TOKENS, **FEW) as one,
        web(lambda: redis_url, **WITH_TOKENS, **FEW, client=("10.0.0.2", 1), session_secret="s" * 32) as two,
    ):
        for stack in (one, two):
            await stack.client.get("/things", headers=bearer(READ_TOKEN))
        cookie = {"Cookie": f"pipeline_poc_session={two.authenticator.login(READ_TOKEN)}"}
        shared = await two.client.get("/things", headers=cookie)
        assert shared.headers["ratelimit"].startswith('"read";r=2;')
        other = await two.client.get("/things", headers=bearer(OPERATE_TOKEN))
        assert other.headers["ratelimit"].startswith('"read";r=4;')
        for stack in (one, two):
            nobody = await stack.client.get("/things")
            assert nobody.status_code == 401
            assert nobody.headers["ratelimit"].startswith('"read";r=4;')
    keys = " ".join(_keys(redis_url))
    for who in (READ_HASH[:8], OPERATE_HASH[:8], "127.0.0.1", "10.0.0.2"):
        assert who in keys
    assert READ_TOKEN not in keys
    assert READ_HASH not in keys


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff:1:2:3", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
    ],
)
async def test_addresses(one: str, other: str, is_same: bool) -> None:
    """Whoever has a network of IPv6 addresses counts once, not once for each address."""
    limiter = Limiter(Settings(_env_file=None, **FEW), lambda: None)
    await limiter.hit("read", one)
    assert (await limiter.hit("read", other)).remaining == (3 if is_same else 4)


@pytest.mark.parametrize("path", ["/things", "/", "/health/live", "/graphql"])
async def test_guesses(redis_url: str, path: str) -> None:
    """After ten wrong tokens an address may try no more, not even the right one; sessions go on, as do others."""
    async with web(lambda: redis_url, **WITH_TOKENS) as stack:
        cookie = {"Cookie": f"pipeline_poc_session={stack.authenticator.login(OPERATE_TOKEN)}"}
        for number in range(10):
            assert (await stack.client.get(path, headers=bearer(f"guess {number}"))).status_code in (200, 401)
        for token in ("guess 11", OPERATE_TOKEN):
            response = await stack.client.get(path, headers=bearer(token))
            assert response.status_code == 429
            assert 1 <= int(response.headers["retry-after"]) <= 60
            assert response.headers["content-type"] == "application/problem+json"
        assert (await stack.client.post("/login", data={"token": OPERATE_TOKEN})).status_code == 429
        assert (await stack.client.get(path, headers=cookie)).status_code == 200
        sent = await stack.connect("/graphql", bearer(OPERATE_TOKEN))
        assert [message["type"] for message in sent] == ["websocket.close"]
    assert "guess" not in " ".join(_keys(redis_url))


async def test_guesses_at_the_login(redis_url: str) -> None:
    """Wrong tokens in the form count as well, and a restart does not forget them."""
    for attempts in (6, 4):
        async with web(lambda: redis_url, **WITH_TOKENS) as stack:
            for number in range(attempts):
                assert (await stack.client.post("/login", data={"token": f"{number}"})).status_code == 401
    async with web(lambda: redis_url, **WITH_TOKENS) as stack:
        await stack.client.post("/login", data={"token": "one more"})
        for data in ({"token": OPERATE_TOKEN}, {"token": "wrong"}):
            assert (await stack.client.post("/login", data=data)).status_code == 429
        assert (await stack.client.get("/login")).status_code == 200


async def test_an_old_token_is_no_guess(redis_url: str) -> None:
    """A scraper that goes on with a token that is no longer good locks out nobody at its address."""
    async with web(lambda: redis_url, **WITH_TOKENS) as stack:
        for _ in range(30):
            assert (await stack.client.get("/things", headers=bearer("replaced"))).status_code == 401
        assert (await stack.client.get("/things", headers=bearer(READ_TOKEN))).status_code == 200


@pytest.mark.parametrize("how", ["stop", "kill", "pause"])
async def test_redis_away(
    redis_server: Redis, redis_url: str, how: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Redis is away requests are answered and limited all the same; once it is back, it counts again."""
    caplog.set_level(logging.INFO, "pipeline_poc.web.limits")
    async with web(lambda: redis_url, **FEW) as stack:
        assert (await stack.client.get("/things")).status_code == 200
        getattr(redis_server, how)()
        monkeypatch.setattr(limits, "REDIS_TIMEOUT_S", IN_EARNEST_S)
        try:
            for _ in range(5):
                assert (await stack.client.get("/things")).status_code == 200
            assert (await stack.client.get("/things")).status_code == 429
        finally:
            redis_server.start()
        assert (await stack.client.get("/things")).status_code == 429  # It is left alone for a while.
        monkeypatch.setattr(limits, "REDIS_TIMEOUT_S", 20.0)
        stack.limiter._away_until = 0.0
        assert (await stack.client.get("/things")).status_code == 200
    levels = [(record.levelno, record.getMessage()) for record in caplog.records if "counted" in record.getMessage()]
    assert levels == [
        (logging.WARNING, "rate limits are counted in this process"),
        (logging.INFO, "rate limits are counted on Redis again"),
    ]


async def test_only_one_waits(redis_server: Redis, redis_url: str, impatience: None) -> None:
    """A Redis that does not answer is asked once in a while by one request; the others do not wait for it."""
    asked: list[str] = []

    def url() -> str:
        asked.append(redis_url)
        return redis_url

    limiter = Limiter(Settings(_env_file=None), url)
    redis_server.pause()
    try:
        await limiter.hit("read", "x")
        assert len(asked) == 1
        await asyncio.gather(*(limiter.hit("read", "x") for _ in range(50)))
        assert len(asked) == 1
        limiter._away_until = 0.0  # The pause is over.
        quotas = await asyncio.gather(*(limiter.hit("read", "x") for _ in range(50)))
        assert len(asked) == 2
        assert min(quota.remaining for quota in quotas) == 600 - 101
    finally:
        redis_server.resume()
        await limiter.close()


async def test_url_that_comes_later(redis_url: str) -> None:
    """A Redis that is started later counts from then on."""
    known: list[str] = []
    limiter = Limiter(Settings(_env_file=None), lambda: known[0] if known else None)
    assert (await limiter.hit("read", "x")).remaining == 599
    known.append(redis_url)
    assert (await limiter.hit("read", "x")).remaining == 599
    assert len(_keys(redis_url)) == 1
    await limiter.close()


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2@127.0.0.1:1/0",
        "redis://:hunter2@no-such-host.invalid/0",
        "redis://:hunter2@127.0.0.1:port/0",
        "unix:///no/such/socket?password=hunter2",
        "rediss://:hunter2@127.0.0.1:1/0",
        "nonsense hunter2",
    ],
)
async def test_wrong_url(url: str, caplog: pytest.LogCaptureFixture, impatience: None) -> None:
    """A Redis that can't be reached is no reason to fail, and its password is never told."""
    limiter = Limiter(Settings(_env_file=None, **FEW), lambda: url)
    assert [(await limiter.hit("read", "x")).allowed for _ in range(6)] == [True] * 5 + [False]
    assert "counted in this process" in caplog.text
    assert not [record for record in caplog.records if "hunter2" in str(vars(record))]
    await limiter.close()


async def test_password(caplog: pytest.LogCaptureFixture, redis_server: Redis, redis_url: str) -> None:
    """A login that Redis refuses counts as away, and the password is not told."""
    limiter = Limiter(Settings(_env_file=None, **FEW), lambda: redis_url.replace("//", "//u:hunter2@"))
    assert (await limiter.hit("read", "x")).allowed
    assert "counted in this process" in caplog.text
    assert not [record for record in caplog.records if "hunter2" in str(vars(record))]
    await limiter.close()
