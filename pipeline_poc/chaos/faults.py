"""What a proxy can do to the connections that it carries."""

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Literal

FaultKind = Literal["down", "blackhole", "reset", "latency", "bandwidth", "cut", "slow_close", "mongo_error"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What a proxy does to its connections.

    - ``down``: connections are closed, new ones are refused.
    - ``blackhole``: connections stay open and are accepted, nothing passes, not even a close. When
      it ends, connections on which something was held back, or that were opened meanwhile, are
      reset, as after a long partition; idle ones never notice.
    - ``reset``: connections are reset, new ones as soon as they are accepted.
    - ``latency``: each chunk comes ``seconds`` later, in each direction; many can be on their way.
    - ``bandwidth``: each direction of each connection carries ``bytes_per_s``.
    - ``cut``: the connection on which byte number ``after_bytes`` passes is reset right behind it;
      that once, everything else goes on.
    - ``slow_close``: a close, or a reset, by either side reaches the other ``seconds`` later.
    - ``mongo_error``: commands to MongoDB, but for those that look after connections, fail with
      ``code``; with 43, CursorNotFound, only getMore does. The server doesn't hear of them.
      Nothing happens to requests that the driver compresses.

    Attributes:
        kind: What happens.
        after_bytes: It begins once so many bytes, of all connections and in both directions, have
            passed since the fault was set; with 0, at once.
        seconds: See ``latency`` and ``slow_close``.
        bytes_per_s: See ``bandwidth``.
        code: See ``mongo_error``.
        times: After so many refused commands ``mongo_error`` is over; with 0, it has no end.

    Raises:
        ValueError: A kind lacks the number that it needs, or a number is negative.
    """

    kind: FaultKind
    after_bytes: int = 0
    seconds: float = 0.0
    bytes_per_s: int = 0
    code: int = 0
    times: int = 0

    def __post_init__(self) -> None:
        if min(self.after_bytes, self.seconds, self.bytes_per_s, self.code, self.times) < 0:
            raise ValueError(f"a negative number in {self}")
        needed: dict[FaultKind, float] = {
            "latency": self.seconds,
            "slow_close": self.seconds,
            "bandwidth": self.bytes_per_s,
            "mongo_error": self.code,
        }
        if not needed.get(self.kind, 1):
            raise ValueError(f"a number is missing in {self}")


@dataclass(eq=False, slots=True)
class Order:
    """A fault that was set, or that none is, and what came of it."""

    fault: Fault | None = None
    passed: int = 0
    struck: int = 0
    replaced: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def in_force(self) -> Fault | None:
        """The fault, once it has begun and until it is used up."""
        if self.fault is None or self.passed < self.fault.after_bytes:
            return None
        limit = 1 if self.fault.kind == "cut" else self.fault.times
        return None if limit and self.struck >= limit else self.fault

    @property
    def kind(self) -> FaultKind | None:
        """What is in force."""
        return None if self.in_force is None else self.in_force.kind

    def untouched(self, size: int) -> int:
        """Return how many of so many bytes pass before the fault begins, or all if there is none to begin."""
        if self.fault is None or self.passed >= self.fault.after_bytes:
            return size
        return min(size, self.fault.after_bytes - self.passed)

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait, unless or until another order comes; returns whether one came."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.replaced.wait()
        return self.replaced.is_set()
