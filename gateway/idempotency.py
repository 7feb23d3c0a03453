"""
What this process remembers of idempotency keys.

The id derived from a key makes the effect happen once, with or without memory;
this memory makes the answers better: a repeated request is answered without
publishing again, a concurrent twin shares the outcome of the first, and the same
key with another body is refused here rather than found at the database.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from forebay.brokers.api import Durability

W = TypeVar("W")


class Verdict(Enum):
    NEW = "publish it; the claim is yours until confirm or release"
    TWIN = "the same message is being published; its outcome is yours too"
    CONFLICT = "the key was used with another message"


@dataclass(frozen=True, slots=True)
class Known:
    """The same message was accepted before, this durably."""

    durability: Durability


class _Claim(Generic[W]):
    __slots__ = ("digest", "twins")

    def __init__(self, digest: bytes) -> None:
        self.digest = digest
        self.twins: list[W] = []


class IdempotencyMemory(Generic[W]):
    """
    Claim → confirm or release, per message id, with the digest of what was sent.

    Accepted ids are remembered, the least recently used forgotten first, at most
    `capacity`. Claims are held beside them and never forgotten; they are as many as
    requests are in flight. A released claim leaves nothing behind: a publish that
    failed must not stop its own retry.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._claims: dict[str, _Claim[W]] = {}
        self._known: OrderedDict[str, tuple[bytes, Durability]] = OrderedDict()

    def claim(self, message_id: str, digest: bytes, waiter: W | None = None) -> Verdict | Known:
        """What to do with a request. With TWIN, a `waiter` comes back from confirm or release."""
        known = self._known.get(message_id)
        if known is not None:
            self._known.move_to_end(message_id)
            return Known(known[1]) if known[0] == digest else Verdict.CONFLICT
        claim = self._claims.get(message_id)
        if claim is None:
            self._claims[message_id] = _Claim(digest)
            return Verdict.NEW
        if claim.digest != digest:
            return Verdict.CONFLICT
        if waiter is not None:
            claim.twins.append(waiter)
        return Verdict.TWIN

    def join(self, message_id: str, waiter: W) -> None:
        """For one who was told TWIN and gave no waiter, before anything else has happened."""
        self._claims[message_id].twins.append(waiter)

    def confirm(self, message_id: str, durability: Durability) -> list[W]:
        """The publish succeeded: remember it. Returns the twins that wait for the outcome."""
        claim = self._claims.pop(message_id)
        if self._capacity:
            self._known[message_id] = (claim.digest, durability)
            if len(self._known) > self._capacity:
                self._known.popitem(last=False)
        return claim.twins

    def release(self, message_id: str) -> list[W]:
        """The publish failed, or nobody knows. Returns the twins that wait for the outcome."""
        return self._claims.pop(message_id).twins

    def __len__(self) -> int:
        return len(self._known)


def fingerprint(body: bytes, content_type: str, ordering_key: str | None) -> bytes:
    """
    Digest of what must be equal when an idempotency key is used again.

    Not the other headers: a client's retry has another traceparent, and a later
    Forebay-Deliver-At, and is the same message all the same.
    """
    rest = f"{content_type}\x00{ordering_key if ordering_key is not None else chr(1)}\x00".encode()
    return hashlib.sha256(rest + body).digest()
