"""How much of the journal each tenant fills."""

from __future__ import annotations

from collections import Counter, deque

SEGMENT = 2**20
"""Bytes that are accounted for together, at most."""


class JournalShares:
    """
    Bytes in the journal by tenant, for tenants that may not fill all of it.

    The journal's file says nothing of tenants, and it is drained from its oldest end: so what came in
    is noted in order, and what it no longer holds is taken off at the front. Right to a segment;
    what another process left behind is nobody's.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._segment = min(SEGMENT, capacity // 100)
        self._segments: deque[Counter[str]] = deque()
        self._last = 0
        self._used: Counter[str] = Counter()
        self.total = 0
        """Bytes noted and not yet taken off."""

    def add(self, tenant: str, size: int, held: int) -> None:
        """A body of this tenant is in the journal, which holds so many bytes with it."""
        if not self._segments or self._last >= self._segment:
            self._forget(held - size)
            self._segments.append(Counter())
            self._last = 0
        self._segments[-1][tenant] += size
        self._last += size
        self._used[tenant] += size
        self.total += size

    def has_room(self, tenant: str, share: float, held: int) -> bool:
        """Whether the tenant is below its share, now that the journal holds so many bytes."""
        self._forget(held)
        return self._used[tenant] < share * self._capacity

    def _forget(self, held: int) -> None:
        """Take off what the journal no longer holds."""
        while self._segments and (gone := self._segments[0].total()) <= self.total - held:
            self._used -= self._segments.popleft()
            self.total -= gone
