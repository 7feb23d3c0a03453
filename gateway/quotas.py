"""
How much one API key may send.

Token buckets in memory: rates count per gateway process, so that with three processes
a key may send three times its rate. Nothing is shared, locked or stored, and a dead
database changes nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable

from starlette.types import Message, Send

MESSAGES = b"messages"
BYTES = b"bytes"

FRESH = 0.01
NEAR = 0.01
"""
Seconds, and share of a quota, within which what a caller was told is not told again.
"""


class Bucket:
    """
    Fills with `rate` tokens per second up to `capacity`, and starts full.

    `level` is right as of when its owner has filled it last. Below zero it is a debt, which has to be
    earned before anything is taken again.
    """

    __slots__ = ("capacity", "level", "rate")

    def __init__(self, rate: float, capacity: float) -> None:
        self.rate = rate
        self.capacity = capacity
        self.level = capacity

    def limit(self, rate: float, capacity: float) -> None:
        """Go on with other limits, from the level reached."""
        self.rate, self.capacity = rate, capacity
        self.level = min(self.level, capacity)

    def until(self, count: float) -> float:
        """Seconds until `count` tokens are there, at most those of a full bucket."""
        return max(0.0, (min(count, self.capacity) - self.level) / self.rate)


class Quota:
    """
    Messages and bytes per second of one key; a limit that is None does not exist.

    A body costs its bytes, which are not always known before it is here: any request
    may start while the bytes are not in debt, and a long body is paid off afterwards.
    """

    __slots__ = ("_at", "_buckets", "_bytes", "_clock", "_messages", "_policy", "_told_at", "_told_levels")

    def __init__(
        self,
        *,
        rate: float | None = None,
        burst: int | None = None,
        bytes_per_second: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._at = clock()
        """As of when the buckets are right."""
        self._buckets: tuple[Bucket, ...] = ()
        """Those that there are."""
        self._messages: Bucket | None = None
        self._bytes: Bucket | None = None
        self._policy: tuple[bytes, bytes] | None = None
        self._told_at = -math.inf
        self._told_levels = (0.0, 0.0)
        self.limit(rate=rate, burst=burst, bytes_per_second=bytes_per_second)

    def limit(self, *, rate: float | None, burst: int | None, bytes_per_second: int | None) -> None:
        """Go on with other limits; what was used up stays used up."""
        self._fill()
        most = float(burst) if burst is not None else max(1.0, rate or 0.0)
        self._messages = _bucket(self._messages, rate, most)
        self._bytes = _bucket(self._bytes, bytes_per_second, float(bytes_per_second or 0))
        self._buckets = tuple(bucket for bucket in (self._messages, self._bytes) if bucket is not None)
        policies = []
        if self._messages is not None:
            policies.append(_policy(MESSAGES, self._messages))
        if self._bytes is not None:
            policies.append(_policy(BYTES, self._bytes) + b';qu="content-bytes"')
        self._policy = (b"ratelimit-policy", b", ".join(policies)) if policies else None
        self._told_at = -math.inf

    def take(self, messages: int) -> bool:
        """Take so many messages, or none. Charge their bytes as they come."""
        self._fill()
        if self._bytes is not None and self._bytes.level <= 0:
            return False
        bucket = self._messages
        if bucket is not None:
            if bucket.level < messages:
                return False
            bucket.level -= messages
        return True

    def take_whole(self, size: int) -> bool:
        """Take one message and charge its bytes, or neither."""
        if not self.take(1):
            return False
        self.charge(size)
        return True

    def take_some(self, messages: int) -> int:
        """Take as many of these messages as there is room for; returns how many."""
        self._fill()
        if self._bytes is not None and self._bytes.level <= 0:
            return 0
        bucket = self._messages
        if bucket is None:
            return messages
        granted = max(0, min(messages, int(bucket.level)))
        bucket.level -= granted
        return granted

    def charge(self, size: int) -> None:
        """Account for bytes that came; they are never refused."""
        if self._bytes is not None:
            self._bytes.level -= size

    @property
    def used_up(self) -> list[str]:
        """The quotas of which nothing is left: "messages", "bytes"."""
        self._fill()
        used = []
        if self._bytes is not None and self._bytes.level <= 0:
            used.append("bytes")
        if self._messages is not None and (not used or self._messages.level < 1):
            used.append("messages")
        return used

    def retry_after(self, messages: int = 1) -> float:
        """Seconds until `take` of so many messages can succeed, as things stand."""
        self._fill()
        waits = [0.0]
        if self._messages is not None:
            waits.append(self._messages.until(messages))
        if self._bytes is not None and self._bytes.level <= 0:
            waits.append(self._bytes.until(1))
        return max(waits)

    def _fill(self) -> float:
        now = self._clock()
        passed = now - self._at
        self._at = now
        for bucket in self._buckets:
            level = bucket.level + passed * bucket.rate
            bucket.level = level if level < bucket.capacity else bucket.capacity
        return now

    # ---- what the caller is told

    def telling(self, send: Send) -> Send:
        """`send`, with what there is to tell of this quota among an answer's headers."""

        # Not a coroutine: one more of them for each piece of each answer would be felt.
        def told(event: Message) -> Awaitable[None]:
            if event["type"] == "http.response.start" and (more := self.to_tell(event["status"])):
                event["headers"] = [*event["headers"], *more]
            return send(event)

        return told

    def to_tell(self, status: int) -> list[tuple[bytes, bytes]]:
        """
        The headers that an answer with this status has besides.

        The state of the quota on every 429, and else where it is news: to a key that sends thousands of
        messages per second, they would cost more on each answer than counting the messages.
        """
        return self.headers() if status == 429 or self.has_news else []

    def headers(self) -> list[tuple[bytes, bytes]]:
        """
        RateLimit-Policy and RateLimit, as draft-ietf-httpapi-ratelimit-headers-11 has them.

        Structured fields (RFC 9651): a list of items, one per quota, with its size (q),
        unit (qu) and window (w), and what remains of it now (r) and when it is whole
        again (t, seconds).
        """
        self._told_at = self._fill()
        states = []
        if self._messages is not None:
            states.append(_state(MESSAGES, self._messages))
        if self._bytes is not None:
            states.append(_state(BYTES, self._bytes))
        self._told_levels = (
            0.0 if self._messages is None else self._messages.level,
            0.0 if self._bytes is None else self._bytes.level,
        )
        return [] if self._policy is None else [self._policy, (b"ratelimit", b", ".join(states))]

    @property
    def has_news(self) -> bool:
        """Whether what was told last is old, or far from what was so at the last look."""
        messages, size = self._messages, self._bytes
        told_messages, told_size = self._told_levels
        return (
            self._clock() - self._told_at > FRESH
            or (messages is not None and abs(told_messages - messages.level) > messages.capacity * NEAR)
            or (size is not None and abs(told_size - size.level) > size.capacity * NEAR)
        )


def _bucket(before: Bucket | None, rate: float | None, capacity: float) -> Bucket | None:
    if rate is None:
        return None
    if before is None:
        return Bucket(rate, capacity)
    before.limit(rate, capacity)
    return before


def _policy(name: bytes, bucket: Bucket) -> bytes:
    # Quota and window are those of a full bucket: q tokens come back in w seconds.
    window = max(1, math.ceil(bucket.capacity / bucket.rate))
    return b'"%s";q=%d;w=%d' % (name, int(bucket.capacity), window)


def _state(name: bytes, bucket: Bucket) -> bytes:
    return b'"%s";r=%d;t=%d' % (
        name,
        max(0, int(bucket.level)),
        math.ceil(bucket.until(bucket.capacity)),
    )
