"""
How much one API key may send.

Token buckets in memory: rates count per gateway process, so that with three processes
a key may send three times its rate. Nothing is shared, locked or stored, and a dead
database changes nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from starlette.types import Message, Send

MESSAGES = b"messages"
BYTES = b"bytes"


class Bucket:
    """
    Fills with `rate` tokens per second up to `capacity`, and starts full.

    `take` is for what can be refused beforehand; `charge` for what has happened, and
    may leave a debt that has to be earned before anything is taken again.
    """

    __slots__ = ("_at", "_clock", "_level", "capacity", "rate")

    def __init__(self, rate: float, capacity: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self.capacity = capacity
        self._clock = clock
        self._level = capacity
        self._at = clock()

    def limit(self, rate: float, capacity: float) -> None:
        """Go on with other limits, from the level reached."""
        self._fill()
        self.rate, self.capacity = rate, capacity
        self._level = min(self._level, capacity)

    @property
    def level(self) -> float:
        """Tokens there now; below zero is a debt."""
        self._fill()
        return self._level

    def take(self, count: float) -> bool:
        """Take `count` tokens, or none."""
        self._fill()
        if self._level < count:
            return False
        self._level -= count
        return True

    def charge(self, count: float) -> None:
        """Take `count` tokens whether they are there or not."""
        self._level -= count

    def until(self, count: float) -> float:
        """Seconds until `count` tokens are there, at most those of a full bucket."""
        missing = min(count, self.capacity) - self.level
        return max(0.0, missing / self.rate)

    def _fill(self) -> None:
        now = self._clock()
        self._level = min(self.capacity, self._level + (now - self._at) * self.rate)
        self._at = now


class Quota:
    """
    Messages and bytes per second of one key; a limit that is None does not exist.

    A body costs its bytes, which are not always known before it is here: any request
    may start while the bytes are not in debt, and a long body is paid off afterwards.
    """

    __slots__ = ("_bytes", "_clock", "_messages", "_policy")

    def __init__(
        self,
        *,
        rate: float | None = None,
        burst: int | None = None,
        bytes_per_second: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._messages: Bucket | None = None
        self._bytes: Bucket | None = None
        self._policy: list[bytes] = []
        self.limit(rate=rate, burst=burst, bytes_per_second=bytes_per_second)

    def limit(self, *, rate: float | None, burst: int | None, bytes_per_second: int | None) -> None:
        """Go on with other limits; what was used up stays used up."""
        most = float(burst) if burst is not None else max(1.0, rate or 0.0)
        self._messages = self._bucket(self._messages, rate, most)
        self._bytes = self._bucket(self._bytes, bytes_per_second, float(bytes_per_second or 0))
        # Quota and window are that of a full bucket: q tokens come back in w seconds.
        self._policy = []
        if self._messages is not None:
            self._policy.append(_policy(MESSAGES, self._messages))
        if self._bytes is not None:
            self._policy.append(_policy(BYTES, self._bytes) + b';qu="content-bytes"')

    def _bucket(self, before: Bucket | None, rate: float | None, capacity: float) -> Bucket | None:
        if rate is None:
            return None
        if before is None:
            return Bucket(rate, capacity, self._clock)
        before.limit(rate, capacity)
        return before

    def take(self, messages: int) -> bool:
        """Take so many messages, or none. Charge their bytes as they come."""
        if self._bytes is not None and self._bytes.level <= 0:
            return False
        return self._messages is None or self._messages.take(messages)

    def take_some(self, messages: int) -> int:
        """Take as many of these messages as there is room for; returns how many."""
        if self._bytes is not None and self._bytes.level <= 0:
            return 0
        if self._messages is None:
            return messages
        granted = max(0, min(messages, int(self._messages.level)))
        self._messages.charge(granted)
        return granted

    def charge(self, size: int) -> None:
        """Account for bytes that came; they are never refused."""
        if self._bytes is not None:
            self._bytes.charge(size)

    @property
    def used_up(self) -> list[str]:
        """The quotas of which nothing is left: "messages", "bytes"."""
        used = []
        if self._bytes is not None and self._bytes.level <= 0:
            used.append("bytes")
        if self._messages is not None and (not used or self._messages.level < 1):
            used.append("messages")
        return used

    def retry_after(self, messages: int = 1) -> float:
        """Seconds until `take` of so many messages can succeed, as things stand."""
        waits = [0.0]
        if self._messages is not None:
            waits.append(self._messages.until(messages))
        if self._bytes is not None and self._bytes.level <= 0:
            waits.append(self._bytes.until(1))
        return max(waits)

    def telling(self, send: Send) -> Send:
        """`send`, with the state of this quota among each answer's headers."""

        async def told(event: Message) -> None:
            if event["type"] == "http.response.start":
                event["headers"] = [*event["headers"], *self.headers()]
            await send(event)

        return told

    def headers(self) -> list[tuple[bytes, bytes]]:
        """
        RateLimit-Policy and RateLimit, as draft-ietf-httpapi-ratelimit-headers-11 has them.

        Structured fields (RFC 9651): a list of items, one per quota, with its size (q),
        unit (qu) and window (w), and what remains of it now (r) and when it is whole
        again (t, seconds).
        """
        now = []
        if self._messages is not None:
            now.append(_state(MESSAGES, self._messages))
        if self._bytes is not None:
            now.append(_state(BYTES, self._bytes))
        if not now:
            return []
        return [(b"ratelimit-policy", b", ".join(self._policy)), (b"ratelimit", b", ".join(now))]


def _policy(name: bytes, bucket: Bucket) -> bytes:
    window = max(1, math.ceil(bucket.capacity / bucket.rate))
    return b'"%s";q=%d;w=%d' % (name, int(bucket.capacity), window)


def _state(name: bytes, bucket: Bucket) -> bytes:
    return b'"%s";r=%d;t=%d' % (
        name,
        max(0, int(bucket.level)),
        math.ceil(bucket.until(bucket.capacity)),
    )
