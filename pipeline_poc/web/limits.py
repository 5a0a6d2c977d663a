"""Rate limits: so many looks and actions for each token or address, and so few wrong tokens."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network, ip_address
from math import ceil
from typing import TypeVar, cast

from limits import RateLimitItem, parse
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.storage.redis.redispy import RedispyBridge
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import ConfigurationError, StorageError

from pipeline_poc.settings import Settings
from pipeline_poc.web.auth import Scope, hash_of

T = TypeVar("T")

logger = logging.getLogger(__name__)

KEY_PREFIX = "pipeline_poc:rate"
REDIS_TIMEOUT_S = 0.25
"""Longest wait for Redis: a request must not feel that it is away."""
REDIS_PAUSE_S = 10.0
"""Redis is left alone for so long when it did not answer."""

_FAILURES = parse("10/minute")
_SAME_FAILURE = parse("1/minute")


@dataclass(frozen=True, slots=True)
class Quota:
    """What a token or address may still do.

    Attributes:
        allowed: Whether this request is within the limit.
        remaining: Further requests within the limit.
        reset_s: Seconds until there is more.
    """

    name: str
    limit: int
    window_s: int
    allowed: bool
    remaining: int
    reset_s: int

    def headers(self) -> dict[str, str]:
        """Return the header fields of draft-ietf-httpapi-ratelimit-headers, and Retry-After if need be."""
        headers = {
            "RateLimit-Policy": f'"{self.name}";q={self.limit};w={self.window_s}',
            "RateLimit": f'"{self.name}";r={self.remaining};t={self.reset_s}',
        }
        return headers if self.allowed else {**headers, "Retry-After": str(self.reset_s)}


class Limiter:
    """Counts on Redis, so that restarts forget nothing; in this process while Redis is away.

    Args:
        settings: Say what the limits are.
        redis_url: Says where Redis is, at once; None while nobody knows. Asked again whenever Redis was away.
    """

    def __init__(self, settings: Settings, redis_url: Callable[[], str | None]) -> None:
        self._limits: dict[Scope, RateLimitItem] = {
            "read": parse(settings.rate_limit_read),
            "operate": parse(settings.rate_limit_operate),
        }
        self._redis_url = redis_url
        self._redis: RedisStorage | None = None
        self._away_until: float | None = None
        self._here = MovingWindowRateLimiter(MemoryStorage())
        self._locked_until: dict[str, float] = {}

    async def hit(self, kind: Scope, who: str) -> Quota:
        """Count a request of this kind, by a token's name or an address."""
        return await self._count(kind, self._limits[kind], _network(who))

    def locked_s(self, address: str) -> int:
        """Seconds for which an address may try no more tokens; 0 where it may."""
        return max(0, ceil(self._locked_until.get(_network(address), 0.0) - time.monotonic()))

    async def failed(self, address: str, token: str | None = None) -> None:
        """Count a wrong token against an address.

        Args:
            address: Where it came from.
            token: It, where it is known. Counts once a minute: guessing takes many tokens, whereas
                a scraper that was not told of a new one must not lock out everybody else there.
        """
        network = _network(address)
        if token is not None:
            again = await self._count("same", _SAME_FAILURE, network, hash_of(token)[:16])
            if not again.allowed:
                return
        quota = await self._count("failures", _FAILURES, network)
        if quota.remaining == 0:
            now = time.monotonic()
            self._locked_until = {key: until for key, until in self._locked_until.items() if until > now}
            self._locked_until[network] = now + quota.reset_s

    async def close(self) -> None:
        """Close the connections to Redis."""
        redis, self._redis = self._redis, None
        if redis is not None:
            await cast(RedispyBridge, redis.bridge).storage.aclose()

    async def _count(self, name: str, limit: RateLimitItem, who: str, *more: str) -> Quota:
        async def count(limiter: MovingWindowRateLimiter) -> Quota:
            allowed = await limiter.hit(limit, name, who, *more)
            reset_at, remaining = await limiter.get_window_stats(limit, name, who, *more)
            reset_s = max(1, ceil(reset_at - time.time()))
            return Quota(name, limit.amount, limit.get_expiry(), allowed, max(0, remaining), reset_s)

        return await self._on_redis(count) or await count(self._here)

    async def _on_redis(self, use: Callable[[MovingWindowRateLimiter], Awaitable[T]]) -> T | None:
        was_away = self._away_until is not None
        if self._away_until is not None:
            if time.monotonic() < self._away_until:
                return None
            self._away_until = time.monotonic() + REDIS_PAUSE_S  # Only one request waits to see whether it is back.
        try:
            async with asyncio.timeout(REDIS_TIMEOUT_S):
                if was_away:
                    await self.close()
                redis = self._open()
                if redis is None:
                    return None
                result = await use(MovingWindowRateLimiter(redis))
        except (StorageError, ConfigurationError, OSError, ValueError) as error:
            if self._away_until is None:  # Not the error's text, which may quote the URL.
                logger.warning("rate limits are counted in this process", extra={"error": type(error).__name__})
            self._away_until = time.monotonic() + REDIS_PAUSE_S
            return None
        if was_away:
            logger.info("rate limits are counted on Redis again")
        self._away_until = None
        return result

    def _open(self) -> RedisStorage | None:
        if self._redis is None and (url := self._redis_url()):
            # limits knows a socket by a scheme of its own.
            url = f"redis+{url}" if url.startswith("unix:") else url
            self._redis = RedisStorage(
                f"async+{url}",
                wrap_exceptions=True,
                implementation="redispy",
                key_prefix=KEY_PREFIX,
                socket_timeout=REDIS_TIMEOUT_S,
                socket_connect_timeout=REDIS_TIMEOUT_S,
            )
        return self._redis


def _network(address: str) -> str:
    try:
        ip = ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, IPv6Address):
        # Whoever has one IPv6 address has all 2**64 of its network.
        return str(ip.ipv4_mapped or IPv6Network((int(ip), 64), strict=False))
    return address
