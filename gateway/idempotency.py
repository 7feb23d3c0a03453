"""
What this process remembers of idempotency keys.

The id derived from a key makes the effect happen once, with or without memory;
this memory makes the answers better: a repeated request is answered without
publishing again, a concurrent twin shares the outcome of the first, and the same
key with another body is refused here rather than found at the database.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Generic, TypeVar

from forebay.brokers.api import DURABILITIES, Durability

W = TypeVar("W")

_RANK: dict[Durability, int] = {level: rank for rank, level in enumerate(DURABILITIES)}


class Verdict(Enum):
    NEW = "publish it; the claim is yours until confirm or release"
    TWIN = "the same message is being published; its outcome is yours too"
    CONFLICT = "the key was used with another message"


@dataclass(frozen=True, slots=True)
class Known:
    """The same message was accepted before, this durably."""

    durability: Durability


class IdempotencyMemory(Generic[W]):
    """
    Claim → confirm or release, per message id, with the fingerprint of what was sent.

    Accepted ids are remembered, the least recently used forgotten first, at most
    `capacity`. Claims are held beside them and never forgotten; they are as many as
    requests are in flight. A released claim leaves nothing behind: a publish that
    failed must not stop its own retry.

    Nothing in it is an object that the garbage collector would have to follow for each id.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._claims: dict[str, int] = {}
        self._twins: dict[str, list[W]] = {}
        self._known: dict[str, int] = {}
        """The fingerprint, and behind it the rank of the durability."""

    def claim(self, message_id: str, fingerprint: int, waiter: W | None = None) -> Verdict | Known:
        """What to do with a request. With TWIN, a `waiter` comes back from confirm or release."""
        known = self._known.get(message_id)
        if known is not None:
            del self._known[message_id]
            self._known[message_id] = known
            before, rank = divmod(known, len(DURABILITIES))
            return Known(DURABILITIES[rank]) if before == fingerprint else Verdict.CONFLICT
        claimed = self._claims.get(message_id)
        if claimed is None:
            self._claims[message_id] = fingerprint
            return Verdict.NEW
        if claimed != fingerprint:
            return Verdict.CONFLICT
        if waiter is not None:
            self.join(message_id, waiter)
        return Verdict.TWIN

    def claim_all(self, ids: Sequence[str], fingerprints: Sequence[int]) -> bool:
        """Claim all of these different ids, if every one is NEW; else none of them."""
        if not (self._known.keys().isdisjoint(ids) and self._claims.keys().isdisjoint(ids)):
            return False
        self._claims.update(zip(ids, fingerprints, strict=True))
        return True

    def join(self, message_id: str, waiter: W) -> None:
        """For one who was told TWIN and gave no waiter, before anything else has happened."""
        assert message_id in self._claims
        self._twins.setdefault(message_id, []).append(waiter)

    def confirm(self, message_id: str, durability: Durability) -> list[W]:
        """The publish succeeded: remember it. Returns the twins that wait for the outcome."""
        fingerprint = self._claims.pop(message_id)
        if self._capacity:
            self._known[message_id] = fingerprint * len(DURABILITIES) + _RANK[durability]
            if len(self._known) > self._capacity:
                self._forget()
        return self._twins.pop(message_id, []) if self._twins else []

    def confirm_all(self, ids: Sequence[str], durability: Durability) -> bool:
        """The same for many claims, if none of them has twins; else for none."""
        if not self._twins.keys().isdisjoint(ids):
            return False
        pop, scale, rank = self._claims.pop, len(DURABILITIES), _RANK[durability]
        remembered = [pop(message_id) * scale + rank for message_id in ids]
        if self._capacity:
            self._known.update(zip(ids, remembered, strict=True))
            while len(self._known) > self._capacity:
                self._forget()
        return True

    def release(self, message_id: str) -> list[W]:
        """The publish failed, or nobody knows. Returns the twins that wait for the outcome."""
        del self._claims[message_id]
        return self._twins.pop(message_id, [])

    def _forget(self) -> None:
        """
        Make room, for a part of what is remembered at once.

        The first key of a dictionary whose first ones have been deleted is found by stepping over all these.
        """
        for message_id in list(islice(self._known, max(1, self._capacity // 64))):
            del self._known[message_id]

    def __len__(self) -> int:
        return len(self._known)


def fingerprint(body: bytes, content_type: str, ordering_key: str | None) -> int:
    """
    What must be equal when an idempotency key is used again, as a hash with a key of this process (PEP 456).

    64 bits are enough to tell a client that it has used a key twice; the database compares SHA-256. Not
    the other headers: a client's retry has another traceparent, and a later
    Forebay-Deliver-At, and is the same message all the same.
    """
    return hash((body, content_type, ordering_key))
